//! Directories held by descriptor: nothing here follows a symbolic link out of where it was
//! told to work (`openat(2)`, `O_NOFOLLOW`).

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, FcntlArg, OFlag, fcntl, openat, renameat};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Opens the directory `path`, which must not be a symbolic link.
pub fn open_directory(path: &Path) -> io::Result<File> {
    Ok(File::from(nix::fcntl::open(path, DIRECTORY, Mode::empty())?))
}

/// Opens the directory `name` in `parent`, which must not be a symbolic link.
pub fn open_directory_in(parent: &File, name: &OsStr) -> io::Result<File> {
    Ok(File::from(openat(parent, name, DIRECTORY, Mode::empty())?))
}

/// Makes the directory `name` in `parent`, mode 0700 whatever the umask.
pub fn make_directory_in(parent: &File, name: &OsStr) -> io::Result<()> {
    Ok(mkdirat(parent, name, Mode::S_IRWXU)?)
}

/// Renames within one directory tree.
pub fn rename_between(from: &File, old: &OsStr, to: &File, new: &OsStr) -> io::Result<()> {
    Ok(renameat(from, old, to, new)?)
}

/// Opens or creates the file `name` in `parent`, mode 0600, never through a link.
pub fn create_file_in(parent: &File, name: &str) -> io::Result<File> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(File::from(openat(parent, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?))
}

/// Opens or creates the file `name` in `parent`, mode 0600, never through a link, and leaves what is in it.
pub fn open_shared_in(parent: &File, name: &str) -> io::Result<File> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(File::from(openat(parent, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?))
}

/// Opens or creates the file `name` in `parent`, mode 0600, never through a link, for appending.
pub fn append_file_in(parent: &File, name: &str) -> io::Result<File> {
    let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(File::from(openat(parent, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?))
}

/// Opens the file `name` in `parent` for reading, never through a link.
pub fn open_file_in(parent: &File, name: &str) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(File::from(openat(parent, name, flags, Mode::empty())?))
}

/// Opens `count` descriptors, so that as many can be opened when they are dropped.
pub fn reserve_descriptors(count: usize) -> io::Result<Vec<File>> {
    let first = File::open("/dev/null")?;
    let more: io::Result<Vec<File>> = (1..count).map(|_| first.try_clone()).collect();
    more.map(|mut all| {
        all.push(first);
        all
    })
}

/// Takes over a descriptor that the caller left open for us; from here on nobody inherits it. `None` if
/// there is none, or if it is a standard one.
pub fn take_descriptor(number: i32) -> Option<File> {
    // SAFETY: F_SETFD changes a flag; EBADF says that there is no such descriptor.
    if number < 3 || unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return None;
    }
    // SAFETY: open, and named to us by the caller for our use alone.
    Some(unsafe { File::from_raw_fd(number) })
}

/// Locks the byte at `offset` of `file` for its open file description: held as long as a copy of the
/// descriptor is open anywhere (`F_OFD_SETLK`, Linux 3.15, fcntl_locking(2)). The byte need not exist.
pub fn lock_byte(file: &File, offset: u64) -> io::Result<()> {
    Ok(fcntl(file, FcntlArg::F_OFD_SETLK(&byte_lock(offset))).map(drop)?)
}

/// Locks the byte at `offset` as [`lock_byte`] does, and waits for it as long as somebody else has it; false if a signal
/// came.
pub fn wait_for_byte(file: &File, offset: u64) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLKW(&byte_lock(offset))) {
        Err(Errno::EINTR) => Ok(false),
        result => Ok(result.map(|_| true)?),
    }
}

/// Returns whether somebody else holds the lock of [`lock_byte`].
pub fn is_byte_locked(file: &File, offset: u64) -> io::Result<bool> {
    let mut lock = byte_lock(offset);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

/// Returns whether `pid` has a descriptor of `file` through which the byte at `offset` is locked: the lock is
/// told in `/proc/PID/fdinfo/FD` (Linux 4.1, proc_pid_fdinfo(5)).
pub fn holds_byte(pid: i32, file: &File, offset: u64) -> bool {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    descriptors.into_iter().any(|entry| {
        let same = std::fs::File::metadata(file).ok().zip(std::fs::metadata(entry.path()).ok());
        let same = same.is_some_and(|(one, other)| (one.dev(), one.ino()) == (other.dev(), other.ino()));
        let info = || {
            let number = entry.file_name().to_string_lossy().into_owned();
            std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap_or_default()
        };
        let locks_it = |line: &str| {
            let start = line.split_whitespace().nth_back(1).and_then(|start| start.parse::<u64>().ok());
            line.starts_with("lock:") && line.contains("OFDLCK") && start == Some(offset)
        };
        same && info().lines().any(locks_it)
    })
}

/// Returns the name of user `uid`, by /etc/passwd alone: a directory service would take threads and time.
pub fn user_name(uid: u32) -> Option<String> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    let mut lines = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let found = lines.find(|fields| fields.get(2).is_some_and(|field| field.parse() == Ok(uid)))?;
    Some(found.first()?.to_string())
}

/// Returns whether both are the same file.
pub fn is_same(one: &File, other: &File) -> bool {
    let identity = |file: &File| file.metadata().map(|seen| (seen.dev(), seen.ino())).ok();
    identity(one).is_some() && identity(one) == identity(other)
}

fn byte_lock(offset: u64) -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: offset as i64,
        l_len: 1,
        l_pid: 0,
    }
}

/// Tells when a file was written to (`inotify(7)`).
#[derive(Debug)]
pub struct Changes(Inotify);

impl Changes {
    /// Watches the file `path`, or of a directory the files in it.
    pub fn of(path: &Path) -> io::Result<Changes> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        // A record that has grown long is written anew and renamed.
        inotify.add_watch(path, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_MOVED_TO)?;
        Ok(Changes(inotify))
    }

    /// Watches the files in `directory`, wherever it is moved.
    pub fn within(directory: &File) -> io::Result<Changes> {
        Changes::of(Path::new(&format!("/proc/self/fd/{}", directory.as_raw_fd())))
    }

    /// Forgets what has changed until now.
    pub fn clear(&self) {
        while self.0.read_events().is_ok_and(|events| !events.is_empty()) {}
    }
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Removes the file `name` from `parent`; one that is not there is no error.
pub fn remove_file_in(parent: &File, name: &str) -> io::Result<()> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Gives a pipe as much room as a user may have (`F_SETPIPE_SZ`, fcntl(2)); refused, it keeps what it has.
pub fn enlarge_pipe(pipe: impl AsFd) {
    const ROOM: i32 = 1 << 20;
    let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(ROOM));
}

/// Fills `bytes` with random ones (`getrandom(2)`, Linux 3.17).
pub fn fill_random(bytes: &mut [u8]) {
    // SAFETY: the buffer is as long as said. Up to 256 bytes come whole and uninterrupted.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    assert_eq!(got, bytes.len() as isize, "getrandom(2) failed: {}", io::Error::last_os_error());
}

/// Removes the directory `name` in `parent` if it is empty; returns whether it is gone.
pub fn remove_empty_in(parent: &File, name: &str) -> io::Result<bool> {
    match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(true),
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Removes the directory `name` in `parent` with all that is in it, whatever modes it was given,
/// however deep it is, following no link and leaving other file systems alone.
///
/// Depth costs nothing: a subdirectory that is not empty is moved up beside its top before it is
/// opened, so two descriptors and no recursion suffice.
pub fn remove_tree_in(parent: &File, name: &OsStr) -> io::Result<()> {
    match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::ENOTDIR) => return Ok(unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)?),
        Err(_) => {}
    }
    let name = c_string(name)?;
    let _ = fchmodat(parent, name.as_c_str(), Mode::S_IRWXU, FchmodatFlags::NoFollowSymlink);
    let top = File::from(openat(parent, name.as_c_str(), DIRECTORY, Mode::empty())?);
    let device = fstat(&top)?.st_dev;
    let prefix = format!(".agent-run-removing-{}-{:x}", std::process::id(), fstat(&top)?.st_ino);
    let mut flattener = Flattener { top: &top, device, prefix, moved: 0, first_error: None };
    flattener.empty(&top)?;
    while flattener.moved > 0 {
        flattener.next_generation()?;
    }
    match flattener.first_error {
        Some(error) => Err(error),
        None => Ok(unlinkat(parent, name.as_c_str(), UnlinkatFlags::RemoveDir)?),
    }
}

/// Empties one directory tree by moving its inner directories to the top.
struct Flattener<'top> {
    top: &'top File,
    device: u64,
    /// Begins the names that moved directories wait under.
    prefix: String,
    /// How many directories wait at the top under a name of ours.
    moved: u64,
    first_error: Option<io::Error>,
}

impl Flattener<'_> {
    fn waiting_name(&self, index: u64) -> CString {
        CString::new(format!("{}-{index}", self.prefix)).unwrap_or_default()
    }

    /// Empties the directory that was moved last, and removes it.
    fn next_generation(&mut self) -> io::Result<()> {
        self.moved -= 1;
        let name = self.waiting_name(self.moved);
        let directory = File::from(openat(self.top, name.as_c_str(), DIRECTORY, Mode::empty())?);
        // Its children must not take the name that it still bears.
        let held = CString::new(self.prefix.as_str()).unwrap_or_default();
        renameat(self.top, name.as_c_str(), self.top, held.as_c_str())?;
        self.empty(&directory)?;
        if let Err(error) = unlinkat(self.top, held.as_c_str(), UnlinkatFlags::RemoveDir) {
            self.first_error.get_or_insert(error.into());
        }
        Ok(())
    }

    fn empty(&mut self, directory: &File) -> io::Result<()> {
        let mut entries = Dir::from_fd(directory.try_clone()?.into())?;
        let names: Vec<(CString, Option<Type>)> = entries
            .iter()
            .flatten()
            .map(|entry| (entry.file_name().to_owned(), entry.file_type()))
            .filter(|(name, _)| !matches!(name.to_bytes(), b"." | b".."))
            .collect();
        for (name, kind) in names {
            if let Err(error) = self.remove(directory, &name, kind) {
                self.first_error.get_or_insert(error);
            }
        }
        Ok(())
    }

    fn remove(&mut self, directory: &File, name: &CStr, kind: Option<Type>) -> io::Result<()> {
        if kind != Some(Type::Directory) {
            match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => return Ok(()),
                Err(Errno::EISDIR | Errno::EPERM) => {}
                Err(error) => return Err(error.into()),
            }
        }
        match unlinkat(directory, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            Err(_) => {}
        }
        let seen = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if seen.st_dev != self.device {
            return Err(io::Error::other("another file system is mounted in it; unmount that first"));
        }
        if SFlag::from_bits_truncate(seen.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR {
            // Moving a directory changes its "..", so it must be writable; emptying it needs the rest.
            // ENOTSUP from a glibc before 2.32; then the modes that it has must do.
            let _ = fchmodat(directory, name, Mode::S_IRWXU, FchmodatFlags::NoFollowSymlink);
        }
        renameat(directory, name, self.top, self.waiting_name(self.moved).as_c_str())?;
        self.moved += 1;
        Ok(())
    }
}

fn c_string(name: &OsStr) -> io::Result<CString> {
    CString::new(name.as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn parent(of: &Path) -> File {
        open_directory(of).unwrap()
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let place = tempfile::tempdir().unwrap();
        let outside = place.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        let victim = place.path().join("victim");
        fs::create_dir_all(victim.join("a/b")).unwrap();
        symlink(&outside, victim.join("a/link")).unwrap();
        symlink("/nonexistent", victim.join("dangling")).unwrap();
        remove_tree_in(&parent(place.path()), OsStr::new("victim")).unwrap();
        assert!(!victim.exists());
        assert!(outside.join("kept").exists());
    }

    #[test]
    fn modes_do_not_save_a_directory() {
        let place = tempfile::tempdir().unwrap();
        let victim = place.path().join("victim");
        for inner in ["ro/deep/er", "none/deep", "noexec/deep"] {
            fs::create_dir_all(victim.join(inner)).unwrap();
            fs::write(victim.join(inner).join("file"), "x").unwrap();
        }
        for (inner, mode) in [("ro/deep", 0o500), ("ro", 0o500), ("none", 0), ("noexec", 0o600)] {
            fs::set_permissions(victim.join(inner), fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::set_permissions(&victim, fs::Permissions::from_mode(0o000)).unwrap();
        remove_tree_in(&parent(place.path()), OsStr::new("victim")).unwrap();
        assert!(!victim.exists());
    }

    #[test]
    fn depth_needs_no_descriptors() {
        let place = tempfile::tempdir().unwrap();
        let root = parent(place.path());
        make_directory_in(&root, OsStr::new("victim")).unwrap();
        let mut here = open_directory_in(&root, OsStr::new("victim")).unwrap();
        for _ in 0..5_000 {
            make_directory_in(&here, OsStr::new("d")).unwrap();
            make_directory_in(&here, OsStr::new("e")).unwrap();
            here = open_directory_in(&here, OsStr::new("d")).unwrap();
        }
        remove_tree_in(&root, OsStr::new("victim")).unwrap();
        assert!(!place.path().join("victim").exists());
    }

    #[test]
    fn a_locked_byte_is_seen_by_others_until_the_last_copy_closes() {
        let place = tempfile::tempdir().unwrap();
        let open = || create_file_in(&parent(place.path()), "locks").unwrap();
        let holder = open();
        lock_byte(&holder, 1 << 39).unwrap();
        let copy = holder.try_clone().unwrap();
        drop(holder);
        assert!(is_byte_locked(&open(), 1 << 39).unwrap());
        assert!(!is_byte_locked(&open(), 7).unwrap());
        drop(copy);
        assert!(!is_byte_locked(&open(), 1 << 39).unwrap());
    }

    #[test]
    fn names_of_our_own_kind_are_removed_too() {
        let place = tempfile::tempdir().unwrap();
        let victim = place.path().join("victim");
        fs::create_dir_all(victim.join("sub/.agent-run-removing-0/x")).unwrap();
        remove_tree_in(&parent(place.path()), OsStr::new("victim")).unwrap();
        assert!(!victim.exists());
    }
}
