//! What the descriptors of other processes stand for (`proc_pid_fd(5)`).

use std::collections::HashSet;
use std::ffi::CStr;
use std::fs;
use std::os::fd::{AsRawFd, RawFd};

use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use super::process::{Pid, Stat};

/// What a descriptor may stand for, beside files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A socket of any family.
    Socket,
    /// One end of a pipe.
    Pipe,
}

impl Kind {
    fn prefix(self) -> &'static [u8] {
        match self {
            Kind::Socket => b"socket:[",
            Kind::Pipe => b"pipe:[",
        }
    }
}

/// Returns which of those `wanted`, by inode, `pid` has a descriptor of; none if its descriptors may not
/// be looked at. Of a process whose first thread has ended while others go on, only these tell.
pub fn held_by(pid: Pid, kind: Kind, wanted: &HashSet<u32>) -> Vec<u32> {
    match held_in(&format!("/proc/{pid}/fd"), kind, wanted) {
        Some(held) => held,
        None => held_by_threads(pid, kind, wanted),
    }
}

/// Returns whose `pid` is, if its descriptors may not be looked at.
pub fn user_of_closed(pid: Pid) -> Option<u32> {
    let refused = fs::read_dir(format!("/proc/{pid}/fd")).err()?;
    // The directory is root's then; who it runs as stands in its status (`proc_pid_status(5)`).
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let effective = line.split_whitespace().nth(1)?.parse().ok();
    effective.filter(|_| refused.kind() == std::io::ErrorKind::PermissionDenied)
}

/// Returns what the descriptor `fd` of `pid` stands for, if that is a `kind`.
pub fn behind(pid: Pid, fd: RawFd, kind: Kind) -> Option<u32> {
    let link = fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?;
    inode_in(link.as_os_str().as_encoded_bytes(), kind)
}

fn held_by_threads(pid: Pid, kind: Kind, wanted: &HashSet<u32>) -> Vec<u32> {
    let is_headless = Stat::read(pid).is_some_and(|stat| stat.state == b'Z' && stat.threads > 1);
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let held = |thread: fs::DirEntry| held_in(&format!("{}/fd", thread.path().display()), kind, wanted);
    threads.filter(|_| is_headless).filter_map(held).find(|held| !held.is_empty()).unwrap_or_default()
}

/// Looks at the descriptors in `directory`; `None` if there are none.
fn held_in(directory: &str, kind: Kind, wanted: &HashSet<u32>) -> Option<Vec<u32>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut opened = Dir::open(directory, flags, Mode::empty()).ok()?;
    let at = opened.as_raw_fd();
    let (mut held, mut any) = (Vec::new(), false);
    for entry in opened.iter().flatten() {
        let name = entry.file_name();
        if name.to_bytes()[0] != b'.' {
            any = true;
            held.extend(link_of(at, name, kind).filter(|inode| wanted.contains(inode)));
        }
    }
    held.sort_unstable();
    held.dedup();
    any.then_some(held)
}

/// Reads a link like `socket:[123]`. Without an allocation: there may be tens of thousands.
fn link_of(directory: RawFd, name: &CStr, kind: Kind) -> Option<u32> {
    let mut link = [0u8; 32];
    // SAFETY: a path that ends with a NUL, and a buffer as long as said.
    let length = unsafe { libc::readlinkat(directory, name.as_ptr(), link.as_mut_ptr().cast(), link.len()) };
    inode_in(link.get(..usize::try_from(length).ok()?)?, kind)
}

fn inode_in(link: &[u8], kind: Kind) -> Option<u32> {
    let inode = link.strip_prefix(kind.prefix())?.strip_suffix(b"]")?;
    std::str::from_utf8(inode).ok()?.parse().ok()
}
