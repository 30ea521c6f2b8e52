//! Cgroups of ours in the v2 hierarchy (`cgroups(7)`, Documentation/admin-guide/cgroup-v2.rst).
//!
//! A run's processes go into a leaf of their own: `cgroup.kill` (Linux 5.14) ends all of them in one step,
//! however fast they fork, and `populated` says whether any lives. That needs no controller and no privilege
//! beyond a cgroup that we may write to; limits need the controllers.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::{AccessFlags, UnlinkatFlags, access, unlinkat};

use super::files;
use super::process::Pid;

/// Where systems mount the hierarchy: alone, or beside those of version 1.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// Why no leaf can be made.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// Version 1 alone, or no cgroups at all.
    #[error("no cgroup v2 hierarchy is mounted on /sys/fs/cgroup")]
    NoHierarchy,
    /// Our own cgroup is not below the mount: a container's view.
    #[error("our own cgroup cannot be seen from here")]
    NotVisible,
    /// The directory may not be written.
    #[error("{} may not be written: {source}", path.display())]
    NotOurs {
        /// Our cgroup.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No cgroup that we may write to hands these controllers down.
    #[error("no cgroup that we may write to hands down {0}")]
    NoController(String),
}

/// Returns where the hierarchy is mounted, if it is.
pub fn mount() -> Option<PathBuf> {
    let is_v2 =
        |mount: &&&str| statfs(**mount).is_ok_and(|seen| seen.filesystem_type() == CGROUP2_SUPER_MAGIC);
    MOUNTS.iter().find(is_v2).map(PathBuf::from)
}

/// Returns the directory of the cgroup that this process is in.
pub fn own() -> Result<PathBuf, Unusable> {
    let mount = mount().ok_or(Unusable::NoHierarchy)?;
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).ok_or(Unusable::NoHierarchy)?;
    let directory = PathBuf::from(format!("{}{path}", mount.display()));
    if path.contains("/..") || !directory.exists() {
        return Err(Unusable::NotVisible);
    }
    Ok(directory)
}

/// Returns the nearest cgroup, ours or above it, in which a leaf can be made that has `controllers`.
/// Processes can be moved into it only if the common ancestor, which it is, may be written.
pub fn parent_with(controllers: &[&str]) -> Result<PathBuf, Unusable> {
    let own = own()?;
    let writable = |path: &Path| {
        access(&path.join("cgroup.procs"), AccessFlags::W_OK).and(access(path, AccessFlags::W_OK))
    };
    writable(&own).map_err(|error| Unusable::NotOurs { path: own.clone(), source: error.into() })?;
    if controllers.is_empty() {
        return Ok(own);
    }
    let candidates = own.ancestors().take_while(|path| writable(path).is_ok());
    for candidate in candidates {
        if hands_down(candidate, controllers) {
            return Ok(candidate.to_owned());
        }
    }
    Err(Unusable::NoController(controllers.join(", ")))
}

/// Returns whether leaves of `path` have `controllers`, switched on here if they were not.
fn hands_down(path: &Path, controllers: &[&str]) -> bool {
    let has = || {
        let text = fs::read_to_string(path.join("cgroup.subtree_control")).unwrap_or_default();
        let on: Vec<&str> = text.split_whitespace().collect();
        controllers.iter().all(|wanted| on.contains(wanted))
    };
    // Where processes are, the kernel refuses some controllers, and takes others (cpu, pids) at the price that no
    // leaf below can be entered any more. The root alone may have both, and has no type.
    let may_switch = || {
        let processes = fs::read_to_string(path.join("cgroup.procs"));
        !path.join("cgroup.type").exists() || processes.is_ok_and(|text| text.is_empty())
    };
    let switch_on = || {
        let wanted: Vec<String> = controllers.iter().map(|name| format!("+{name}")).collect();
        fs::write(path.join("cgroup.subtree_control"), wanted.join(" ")).is_ok()
    };
    has() || (may_switch() && switch_on() && has())
}

/// Finds the directory of the cgroup v2 with this id: its inode there (`cgroup_id(2)` does not exist; kernfs
/// uses one number for both).
pub fn directory_of(id: u64) -> Option<PathBuf> {
    let mount = mount()?;
    let mut waiting = vec![mount.clone()];
    if fs::metadata(&mount).is_ok_and(|seen| std::os::unix::fs::MetadataExt::ino(&seen) == id) {
        return Some(mount);
    }
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.ino() == id {
                return Some(entry.path());
            }
            waiting.push(entry.path());
        }
    }
    None
}

/// A cgroup of ours.
#[derive(Debug)]
pub struct Leaf {
    path: PathBuf,
    directory: File,
    /// `cgroup.kill` was used on it.
    was_killed: AtomicBool,
}

impl Leaf {
    /// Makes the cgroup `name` in `parent`.
    pub fn make(parent: &Path, name: &str) -> io::Result<Leaf> {
        let path = parent.join(name);
        fs::create_dir(&path)?;
        Leaf::open(&path).inspect_err(|_| drop(fs::remove_dir(&path)))
    }

    /// Opens the cgroup at `path`; an error if there is none, or something else.
    pub fn open(path: &Path) -> io::Result<Leaf> {
        let directory = files::open_directory(path)?;
        if nix::sys::statfs::fstatfs(&directory)?.filesystem_type() != CGROUP2_SUPER_MAGIC {
            return Err(io::Error::other("it is not a cgroup"));
        }
        Ok(Leaf { path: path.to_owned(), directory, was_killed: AtomicBool::new(false) })
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the way in; `must` tells whether whoever cannot enter is not started.
    pub fn entrance(&self, must: bool) -> io::Result<Entrance> {
        let processes = self.open_file("cgroup.procs", OFlag::O_WRONLY)?;
        let takes_births = !self.was_killed.load(Ordering::Relaxed);
        Ok(Entrance { directory: self.directory.try_clone()?, processes, must, takes_births })
    }

    fn open_file(&self, name: &str, how: OFlag) -> io::Result<File> {
        Ok(File::from(openat(
            &self.directory,
            name,
            how | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW,
            Mode::empty(),
        )?))
    }

    /// Reads one of its files.
    pub fn read(&self, name: &str) -> io::Result<String> {
        let mut text = String::new();
        self.open_file(name, OFlag::O_RDONLY)?.read_to_string(&mut text)?;
        Ok(text)
    }

    /// Writes one of its files.
    pub fn write(&self, name: &str, value: &str) -> io::Result<()> {
        self.open_file(name, OFlag::O_WRONLY)?.write_all(value.as_bytes())
    }

    /// Returns the number that stands behind `key` in a file of lines `key number`.
    pub fn count(&self, name: &str, key: &str) -> Option<u64> {
        let text = self.read(name).ok()?;
        text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
    }

    /// Returns whether a process lives in it or below; one that is gone is empty.
    pub fn is_populated(&self) -> bool {
        self.count("cgroup.events", "populated") == Some(1)
    }

    /// Sends SIGKILL to every process in it and below, in one step that no fork escapes (`cgroup.kill`,
    /// Linux 5.14; before, nothing happens).
    pub fn kill(&self) -> io::Result<()> {
        self.was_killed.store(true, Ordering::Relaxed);
        self.write("cgroup.kill", "1")
    }

    /// Stops every process in it and below, or lets them go on (`cgroup.freeze`, Linux 5.2).
    pub fn freeze(&self, stop: bool) -> io::Result<()> {
        self.write("cgroup.freeze", if stop { "1" } else { "0" })
    }

    /// Returns the number by which the kernel knows it, as sockets tell it of where they were made (`name_to_handle_at(2)`: it
    /// is the directory's inode).
    pub fn id(&self) -> Option<u64> {
        self.directory.metadata().ok().map(|seen| std::os::unix::fs::MetadataExt::ino(&seen))
    }

    /// Returns the processes in it and below.
    pub fn processes(&self) -> Vec<Pid> {
        let mut found = Vec::new();
        visit(&self.path, &mut |path| {
            found.extend(pids_in(&fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default()));
        });
        found
    }

    /// Returns the processes in it, not those below.
    pub fn own_processes(&self) -> Vec<Pid> {
        pids_in(&self.read("cgroup.procs").unwrap_or_default()).collect()
    }

    /// Removes it, and what was made below it; it must be empty.
    pub fn remove(&self) -> io::Result<()> {
        if unlinkat(AT_FDCWD, &self.path, UnlinkatFlags::RemoveDir).is_ok() {
            return Ok(());
        }
        let mut below = Vec::new();
        visit(&self.path, &mut |path| below.push(path.to_owned()));
        for path in below.iter().rev() {
            match unlinkat(AT_FDCWD, path, UnlinkatFlags::RemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// One from another pid namespace is 0.
fn pids_in(text: &str) -> impl Iterator<Item = Pid> {
    text.lines().filter_map(|line| line.parse::<Pid>().ok()).filter(|pid| *pid > 0)
}

/// Visits `path` and all cgroups below it, parents first.
fn visit(path: &Path, see: &mut dyn FnMut(&Path)) {
    see(path);
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            visit(&entry.path(), see);
        }
    }
}

/// Returns whether `pid` is in the cgroup at `path` or below it, by its own entry in /proc.
pub fn is_within(pid: Pid, path: &Path) -> bool {
    let text = fs::read(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let line = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"0::"));
    let mount = MOUNTS.iter().rev().find_map(|mount| path.strip_prefix(mount).ok());
    match (line, mount) {
        (Some(line), Some(wanted)) => {
            let seen = Path::new(std::ffi::OsStr::from_bytes(line.trim_ascii_start()));
            seen.strip_prefix("/").is_ok_and(|seen| seen.starts_with(wanted))
        }
        _ => false,
    }
}

/// The way into a cgroup, for a process that is to be born in it.
#[derive(Debug)]
pub struct Entrance {
    directory: File,
    /// `cgroup.procs`, for a kernel that cannot fork into a cgroup.
    processes: File,
    /// Whether a process that cannot enter is not started: its limits would not hold.
    must: bool,
    takes_births: bool,
}

impl Entrance {
    /// Returns the descriptor for `clone3(2)`. None for a cgroup that has been killed once: a process that is born into it
    /// from outside dies at once, since the kernel compares how often each of the two cgroups was killed
    /// (`cgroup_post_fork`, seen with Linux 6.18).
    pub(super) fn for_birth(&self) -> Option<RawFd> {
        self.takes_births.then(|| self.directory.as_raw_fd())
    }

    /// Enters; async-signal-safe.
    pub(super) fn pass(&self) -> io::Result<()> {
        // SAFETY: one byte of static memory; 0 stands for the writing process.
        let written = unsafe { libc::write(self.processes.as_raw_fd(), c"0".as_ptr().cast(), 1) };
        if written < 0 && self.must { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_is_made_and_removed_where_it_can_be() {
        let Ok(parent) = parent_with(&[]) else { return };
        let leaf = Leaf::make(&parent, &format!("agent-run-unit-{}", std::process::id())).unwrap();
        assert!(!leaf.is_populated());
        assert!(leaf.processes().is_empty());
        fs::create_dir(leaf.path().join("below")).unwrap();
        assert_eq!(Leaf::open(leaf.path()).unwrap().path(), leaf.path());
        leaf.remove().unwrap();
        assert!(!leaf.path().exists());
        leaf.remove().unwrap();
        assert!(!is_within(super::super::process::own_pid(), leaf.path()));
    }

    #[test]
    fn another_directory_is_no_leaf() {
        assert!(Leaf::open(Path::new("/tmp")).is_err());
    }
}
