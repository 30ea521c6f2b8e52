//! Processes: what they are, what became of them, and signals that cannot hit a stranger.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::OnceLock;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::signal::Signal;
use super::waits;

/// A process id as the kernel counts them.
pub type Pid = i32;

/// Returns our own pid. Not cached: it differs after a fork.
pub fn own_pid() -> Pid {
    std::process::id() as Pid
}

/// Returns our parent's pid.
pub fn parent_pid() -> Pid {
    nix::unistd::getppid().as_raw()
}

/// Returns our effective user id.
pub fn own_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// What `/proc/PID/stat` tells (`proc_pid_stat(5)`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The process.
    pub pid: Pid,
    /// The command's name, at most 15 bytes.
    pub comm: String,
    /// `R`, `S`, `D`, `T`, `Z`...
    pub state: u8,
    /// The parent.
    pub parent: Pid,
    /// The process group.
    pub group: Pid,
    /// The session.
    pub session: Pid,
    /// The controlling terminal's device number; 0 for none.
    pub terminal: Pid,
    /// Threads that have not ended.
    pub threads: u64,
    /// CPU time used, in clock ticks (user and system; waited-for children not counted).
    pub cpu_ticks: u64,
    /// CPU time of the children that it has waited for, in clock ticks.
    pub children_ticks: u64,
    /// Start, in clock ticks after boot.
    pub start_time: u64,
    /// Resident memory in pages.
    pub resident_pages: u64,
}

impl Stat {
    /// Reads the entry of `pid`; `None` if there is no such process or it cannot be seen.
    pub fn read(pid: Pid) -> Option<Stat> {
        Stat::parse(&read_entry(&format!("/proc/{pid}/stat"))?)
    }

    /// Parses one line. The name may hold spaces and parentheses, so the fields are counted from
    /// the last parenthesis.
    fn parse(text: &str) -> Option<Stat> {
        let (head, tail) = text.rsplit_once(')')?;
        let (pid, comm) = head.split_once(" (")?;
        let fields: Vec<&str> = tail.split_ascii_whitespace().collect();
        // Field 3 of the manual page is index 0 here.
        let number = |index: usize| fields.get(index - 3)?.parse::<u64>().ok();
        let signed = |index: usize| fields.get(index - 3)?.parse::<Pid>().ok();
        Some(Stat {
            pid: pid.parse().ok()?,
            comm: comm.to_owned(),
            state: *fields.first()?.as_bytes().first()?,
            parent: signed(4)?,
            group: signed(5)?,
            session: signed(6)?,
            terminal: signed(7)?,
            threads: number(20)?,
            cpu_ticks: number(14)? + number(15)?,
            children_ticks: number(16)? + number(17)?,
            start_time: number(22)?,
            resident_pages: number(24)?,
        })
    }

    /// Returns how long the process has run at `now`, see [`now_in_ticks`].
    pub fn age(&self, now: u64) -> Duration {
        Duration::from_millis(now.saturating_sub(self.start_time) * 1000 / ticks_per_second())
    }

    /// True for a process that was stopped by a signal.
    pub fn is_stopped(&self) -> bool {
        self.state == b'T'
    }

    /// True for a process that is dead and only waits to be reaped. One whose first thread has ended while
    /// others go on has the state of a zombie too, and is not dead.
    pub fn is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X') && self.threads <= 1
    }
}

/// Reads a short file of /proc. A process's name may be no text.
fn read_entry(path: &str) -> Option<String> {
    Some(String::from_utf8_lossy(&read_bytes(path)?).into_owned())
}

/// Reads a file of /proc. Such a file has no size to go by, and one more read would make the kernel write its text anew:
/// what did not fill the buffer was all.
fn read_bytes(path: &str) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 4096];
    let mut file = File::open(path).ok()?;
    let length = file.read(&mut buffer).ok()?;
    buffer.truncate(length);
    if length == 4096 {
        file.read_to_end(&mut buffer).ok()?;
    }
    Some(buffer)
}

/// Returns our ancestors, nearest first, as far as they can be seen.
pub fn ancestors() -> Vec<Pid> {
    ancestors_of(own_pid())
}

/// Returns the ancestors of `pid`, nearest first, as far as they can be seen.
pub fn ancestors_of(pid: Pid) -> Vec<Pid> {
    let parent_of = |pid: Pid| Some(Stat::read(pid)?.parent).filter(|parent| *parent > 0);
    std::iter::successors(parent_of(pid), |pid| parent_of(*pid)).collect()
}

/// Returns us and our ancestors: who must never be signalled.
pub fn own_line() -> HashSet<Pid> {
    ancestors().into_iter().chain([own_pid()]).collect()
}

/// Returns the command line of `pid`, invalid UTF-8 replaced; empty if it cannot be seen or was cleared.
pub fn command_line(pid: Pid) -> Vec<String> {
    let text = read_bytes(&format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = text.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    let mut words: Vec<String> = words.collect();
    while words.last().is_some_and(String::is_empty) {
        words.pop();
    }
    words
}

/// The variables that a process was started with (`proc_pid_environ(5)`).
#[derive(Clone, Debug, Default)]
pub struct Environment(Vec<u8>);

impl Environment {
    /// Reads those of `pid`; `None` if they cannot be seen.
    pub fn of(pid: Pid) -> Option<Environment> {
        read_bytes(&format!("/proc/{pid}/environ")).map(Environment)
    }

    /// Returns the values by their names, for who asks for many.
    pub fn by_name(&self) -> HashMap<&[u8], &[u8]> {
        let split = |entry: &'_ [u8]| entry.iter().position(|byte| *byte == b'=');
        let mut found = HashMap::new();
        for entry in self.entries() {
            if let Some(at) = split(entry) {
                // The first one counts, as for getenv(3).
                found.entry(&entry[..at]).or_insert(&entry[at + 1..]);
            }
        }
        found
    }

    /// Returns the value of `name`.
    pub fn get(&self, name: &str) -> Option<OsString> {
        let value = self.entries().find_map(|it| it.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
        Some(OsString::from_vec(value.to_owned()))
    }

    /// Returns the value of `name`, invalid UTF-8 replaced.
    pub fn text(&self, name: &str) -> Option<String> {
        Some(self.get(name)?.to_string_lossy().into_owned())
    }

    /// Returns all, as `NAME=VALUE`.
    pub fn entries(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == 0)
    }
}

/// Returns the present as [`Stat::start_time`] counts it.
pub fn now_in_ticks() -> u64 {
    let since_boot = super::clock::BootTime::now().since_boot();
    let hertz = ticks_per_second();
    since_boot.as_secs() * hertz + u64::from(since_boot.subsec_nanos()) * hertz / 1_000_000_000
}

/// Clock ticks in a second, for [`Stat::cpu_ticks`] and [`Stat::start_time`].
pub fn ticks_per_second() -> u64 {
    // SAFETY: sysconf has no preconditions.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u64::try_from(ticks).unwrap_or(100).max(1)
}

/// Bytes in a page, for [`Stat::resident_pages`].
pub fn page_size() -> u64 {
    // SAFETY: sysconf has no preconditions.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}

/// Returns the id of this boot: a pid and start time of another boot name nobody.
pub fn boot_id() -> String {
    let id = read_entry("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// Bytes that `pid` and the children that it has waited for have read and written, system
/// calls counted, devices and terminals included (`proc_pid_io(5)`: rchar + wchar).
pub fn bytes_moved(pid: Pid) -> Option<u64> {
    let text = read_entry(&format!("/proc/{pid}/io"))?;
    let field =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    Some(field("rchar:")?.wrapping_add(field("wchar:")?))
}

/// Returns the memory of `pid` in bytes, of shared pages its share (PSS, `proc_pid_smaps(5)`, Linux 4.14); `None`
/// if it is gone or another user's.
pub fn proportional_memory(pid: Pid) -> Option<u64> {
    let text = read_entry(&format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// A process pinned by descriptor (`pidfd_open(2)`, Linux 5.3): while we hold it, a signal sent
/// through it reaches that process or nobody, however often its number is used again.
#[derive(Debug)]
pub struct Pidfd(OwnedFd);

impl Pidfd {
    /// Pins the process that bears `pid` now. Check afterwards that it is the one meant.
    pub fn open(pid: Pid) -> io::Result<Pidfd> {
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else owns; it is close-on-exec by definition.
        Ok(Pidfd(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// Returns the process's own number in pidfs, which is never used again during a boot
    /// (Linux 6.9; `None` before, when all pidfds share one inode).
    fn inode(&self) -> Option<u64> {
        const PIDFS_MAGIC: i64 = 0x5049_4446;
        // The kernel's, so it is asked once.
        static HAS_PIDFS: OnceLock<bool> = OnceLock::new();
        let kind = || nix::sys::statfs::fstatfs(&self.0).map(|it| it.filesystem_type().0);
        let has_pidfs = *HAS_PIDFS.get_or_init(|| kind() == Ok(PIDFS_MAGIC));
        let inode = nix::sys::stat::fstat(&self.0).ok()?.st_ino;
        has_pidfs.then_some(inode)
    }

    /// Sends `signal` (`pidfd_send_signal(2)`).
    pub fn send(&self, signal: Signal) -> io::Result<()> {
        let info: *const libc::siginfo_t = std::ptr::null();
        // SAFETY: a null siginfo asks for the default one.
        let result = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal.number(), info, 0)
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Returns whether the process has not ended yet (a zombie has).
    pub fn is_alive(&self) -> bool {
        !waits::readable(self.0.as_fd(), Some(Duration::ZERO)).unwrap_or(false)
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A process that can be told from every other one of this boot: a start time alone cannot, since a
/// tick is 10 ms and numbers are used again within it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRef {
    /// The number, in our pid namespace.
    pub pid: Pid,
    /// Start, in clock ticks after boot.
    pub start_time: u64,
    /// The pidfd's inode where the kernel has pidfs; it decides.
    pub inode: Option<u64>,
}

impl ProcessRef {
    /// Pins the process that bears `pid` now, and tells who it is; `None` if there is none.
    pub fn observe(pid: Pid) -> Option<(ProcessRef, Pidfd)> {
        ProcessRef::observe_with_entry(pid).map(|(process, pidfd, _)| (process, pidfd))
    }

    /// The same, with its entry.
    pub fn observe_with_entry(pid: Pid) -> Option<(ProcessRef, Pidfd, Stat)> {
        let pidfd = Pidfd::open(pid).ok()?;
        let stat = Stat::read(pid)?;
        // Alive after its entry was read, so the entry was its own.
        let process = ProcessRef { pid, start_time: stat.start_time, inode: pidfd.inode() };
        pidfd.is_alive().then_some((process, pidfd, stat))
    }

    /// Returns the identity of the process that bears `pid`, which must be this process or an unreaped
    /// child of it: only then is the number certain.
    pub fn of_own(pid: Pid) -> Option<ProcessRef> {
        let inode = Pidfd::open(pid).ok()?.inode();
        Some(ProcessRef { pid, start_time: Stat::read(pid)?.start_time, inode })
    }

    /// Pins the process if it still lives and is the one meant.
    pub fn pin(&self) -> Option<Pidfd> {
        let pinned = Pidfd::open(self.pid).ok()?;
        let started = Stat::read(self.pid)?.start_time;
        let same = match self.inode {
            Some(_) => pinned.inode() == self.inode,
            None => started == self.start_time,
        };
        (same && pinned.is_alive()).then_some(pinned)
    }
}

/// Sends `signal` to a child of ours that we have not reaped: its number cannot be used again
/// before we do, so this needs no pidfd.
pub fn signal_own_child(child: Pid, signal: Signal) -> io::Result<()> {
    kill(child, signal)
}

/// Sends `signal` to the process group of an unreaped child of ours that leads it: the zombie
/// pins the group's number. Atomic against forks within the group on Linux.
pub fn signal_group_of_own_child(leader: Pid, signal: Signal) -> io::Result<()> {
    kill(-leader, signal)
}

fn kill(target: Pid, signal: Signal) -> io::Result<()> {
    // SAFETY: kill(2) touches no memory of ours.
    if unsafe { libc::kill(target, signal.number()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sends `signal` to every process of our pid namespace but us, which must be its init (`kill(2)`, -1).
pub fn signal_namespace(signal: Signal) {
    if own_pid() == 1 {
        // SAFETY: no memory is passed. We are pid 1, so -1 means the processes of our namespace alone.
        unsafe { libc::kill(-1, signal.number()) };
    }
}

/// Returns whether any process but us, which must be its init, is in our pid namespace.
pub fn signal_namespace_probe() -> bool {
    // SAFETY: no memory is passed; signal 0 is not sent, only asked for.
    own_pid() == 1 && unsafe { libc::kill(-1, 0) } == 0
}

/// Returns what `/proc/PID/cgroup` says of `pid` (`proc_pid_cgroup(5)`).
pub fn cgroups(pid: Pid) -> Option<String> {
    read_entry(&format!("/proc/{pid}/cgroup"))
}

/// Returns whether /proc is that of our own pid namespace: else its numbers mean other processes.
pub fn proc_is_ours() -> bool {
    std::fs::read_link("/proc/self").is_ok_and(|own| own.as_os_str() == own_pid().to_string().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_with_hostile_names_are_read() {
        let tail = "S 1 42 7 0 -1 4194560 0 0 0 0 11 22 0 0 20 0 1 0 12345 1000 99 0";
        for name in ["sh", "a b", "x) Z 9 9 (y", "((", ")"] {
            let stat = Stat::parse(&format!("77 ({name}) {tail}")).unwrap();
            assert_eq!(stat.comm, name);
            assert_eq!((stat.pid, stat.parent, stat.group, stat.session), (77, 1, 42, 7));
            assert_eq!((stat.cpu_ticks, stat.start_time, stat.resident_pages), (33, 12345, 99));
            assert_eq!(stat.state, b'S');
            assert_eq!(stat.threads, 1);
        }
        for broken in ["", "77", "77 (sh", "77 (sh) S 1 2", "x (sh) S"] {
            assert_eq!(Stat::parse(broken), None, "{broken}");
        }
    }

    #[test]
    fn a_dead_first_thread_is_not_a_dead_process() {
        let line = |state: char, threads: u32| {
            format!("7 (x) {state} 1 7 7 0 -1 0 0 0 0 0 1 1 0 0 20 0 {threads} 0 5 0 0 0")
        };
        for (state, threads, dead) in
            [('Z', 1, true), ('Z', 0, true), ('Z', 2, false), ('S', 1, false), ('X', 1, true)]
        {
            assert_eq!(Stat::parse(&line(state, threads)).unwrap().is_dead(), dead, "{state} {threads}");
        }
    }

    #[test]
    fn our_own_entry_is_ours() {
        let stat = Stat::read(own_pid()).unwrap();
        assert_eq!(stat.parent, parent_pid());
        assert!(!stat.is_dead());
        let own = ProcessRef::of_own(own_pid()).unwrap();
        assert_eq!(own.start_time, stat.start_time);
        assert!(own.pin().unwrap().is_alive());
    }

    #[test]
    fn another_identity_under_the_same_number_is_not_pinned() {
        let own = ProcessRef::of_own(own_pid()).unwrap();
        let by_time = ProcessRef { inode: None, ..own.clone() };
        assert!(by_time.pin().is_some());
        assert!(ProcessRef { start_time: own.start_time + 1, ..by_time }.pin().is_none());
        let stranger = ProcessRef { inode: own.inode.map(|inode| inode + 1), ..own.clone() };
        assert_eq!(stranger.pin().is_some(), own.inode.is_none());
    }
}
