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
/// be looked at.
pub fn held_by(pid: Pid, kind: Kind, wanted: &HashSet<u32>) -> Vec<u32> {
    let mut held = Vec::new();
    each(pid, &mut |_, link| held.extend(inode_in(link, kind).filter(|inode| wanted.contains(inode))));
    held.sort_unstable();
    held.dedup();
    held
}

/// Returns what /proc says that the descriptor `fd` of `pid` stands for.
pub fn behind(pid: Pid, fd: RawFd) -> Option<Vec<u8>> {
    Some(fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?.into_os_string().into_encoded_bytes())
}

/// Calls `visit` with each descriptor of `pid` and what /proc says that it stands for: `socket:[7]`, `pipe:[7]`, a path.
/// Never, if its descriptors may not be looked at. Of a process whose first thread has ended while others go on, only these
/// tell.
pub fn each(pid: Pid, visit: &mut dyn FnMut(RawFd, &[u8])) {
    if each_in(&format!("/proc/{pid}/fd"), visit) {
        return;
    }
    let is_headless = || Stat::read(pid).is_some_and(|stat| stat.state == b'Z' && stat.threads > 1);
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut places = threads.map(|thread| format!("{}/fd", thread.path().display()));
    let _ = is_headless() && places.any(|place| each_in(&place, visit));
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

/// Looks at the descriptors in `directory`; returns whether there are any.
fn each_in(directory: &str, visit: &mut dyn FnMut(RawFd, &[u8])) -> bool {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let Ok(mut opened) = Dir::open(directory, flags, Mode::empty()) else { return false };
    let at = opened.as_raw_fd();
    // One buffer for all of them: there may be tens of thousands.
    let mut link = [0u8; libc::PATH_MAX as usize];
    let mut any = false;
    for entry in opened.iter().flatten() {
        let name = entry.file_name();
        let Some(fd) = name.to_str().ok().and_then(|name| name.parse().ok()) else { continue };
        any = true;
        if let Some(link) = link_of(at, name, &mut link) {
            visit(fd, link);
        }
    }
    any
}

fn link_of<'a>(directory: RawFd, name: &CStr, link: &'a mut [u8]) -> Option<&'a [u8]> {
    // SAFETY: a path that ends with a NUL, and a buffer as long as said.
    let length = unsafe { libc::readlinkat(directory, name.as_ptr(), link.as_mut_ptr().cast(), link.len()) };
    link.get(..usize::try_from(length).ok()?)
}

/// Reads a link like `socket:[123]`.
pub fn inode_in(link: &[u8], kind: Kind) -> Option<u32> {
    let inode = link.strip_prefix(kind.prefix())?.strip_suffix(b"]")?;
    std::str::from_utf8(inode).ok()?.parse().ok()
}
