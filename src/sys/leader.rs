//! The command's first process: born in its cgroup, put in order, and replaced by the program.
//!
//! std's `Command` and command-group are not used: neither can make a process in a cgroup (`clone3(2)`,
//! CLONE_INTO_CGROUP), and to move there afterwards takes a wait for all CPUs (15 ms were seen). What exec
//! needs is made before, since nothing may be allocated after.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::ptr;

use super::cgroup::Entrance;
use super::children;
use super::process::{self, Pid};
use super::signal::Signal;
use super::spawn::Rlimit;
use super::tty::{self, Terminal};
use super::{inherit, namespace};

/// Where names are looked for if PATH is not set (`execvp(3)`).
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// What the leader does between fork and exec.
#[derive(Debug)]
pub struct LeaderSetup {
    /// Sent to the leader by the kernel if the supervisor dies (`PR_SET_PDEATHSIG`).
    pub on_supervisor_death: Signal,
    /// Limits, in this order.
    pub rlimits: Vec<Rlimit>,
    /// Given to the leader if the group named with it has it now.
    pub terminal: Option<(Terminal, Pid)>,
    /// The only descriptor of ours that the command inherits: held open as long as something of the
    /// run lives.
    pub tree_lock: Option<File>,
    /// The cgroup that it is born in.
    pub cgroup: Option<Entrance>,
    /// Whether it is in a pid namespace that we are not in.
    pub isolated: bool,
    /// Listening sockets, passed on as `sd_listen_fds(3)` tells: from descriptor 3 on, with LISTEN_PID and LISTEN_FDS.
    pub sockets: Vec<RawFd>,
    /// In place of the caller's stdin.
    pub input: Option<OwnedFd>,
    /// Whether that is a terminal which is to be its own: it leads a session then.
    pub owns_terminal: bool,
    /// In place of the caller's stdout and stderr.
    pub outputs: Option<(OwnedFd, OwnedFd)>,
}

/// A program to be executed.
#[derive(Debug)]
pub struct Program {
    /// Where it may be, in the order of PATH.
    places: Vec<CString>,
    words: Vec<CString>,
    environment: Vec<CString>,
    directory: Option<CString>,
}

impl Program {
    /// Prepares `words` with our environment without `less` and with `more`, by whose PATH it is looked for, started in
    /// `directory` if not where we are. Errors if a word has a
    /// NUL byte, which `execve(2)` cannot pass on.
    pub fn new(
        words: &[OsString],
        less: &[&str],
        more: Vec<(OsString, OsString)>,
        directory: Option<PathBuf>,
    ) -> io::Result<Program> {
        let mut variables: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
        variables.retain(|name, _| !less.iter().any(|other| name == other));
        variables.extend(more);
        let path = variables.get(OsStr::new("PATH")).map_or(OsStr::new(DEFAULT_PATH), |path| path);
        let name = words.first().map_or(OsStr::new(""), |word| word);
        let places = places(name, path).into_iter().map(|place| text(place.into_os_string()));
        let pairs = variables.iter().map(|(name, value)| {
            let mut pair = name.clone();
            pair.push("=");
            pair.push(value);
            text(pair)
        });
        Ok(Program {
            places: places.collect::<io::Result<_>>()?,
            words: words.iter().cloned().map(text).collect::<io::Result<_>>()?,
            environment: pairs.collect::<io::Result<_>>()?,
            directory: directory.map(|path| text(path.into_os_string())).transpose()?,
        })
    }
}

fn text(word: OsString) -> io::Result<CString> {
    Ok(CString::new(word.into_vec())?)
}

/// A name with a slash is a path; others are looked for in each directory of `path`, an empty one being here.
fn places(name: &OsStr, path: &OsStr) -> Vec<PathBuf> {
    if name.is_empty() || name.as_bytes().contains(&b'/') {
        return vec![name.into()];
    }
    let directories = path.as_bytes().split(|byte| *byte == b':').map(OsStr::from_bytes);
    directories
        .map(|directory| if directory.is_empty() { Path::new(".") } else { Path::new(directory) }.join(name))
        .collect()
}

/// The arrays of pointers that exec takes; they point into a [`Program`].
struct Pointers {
    words: Vec<*const libc::c_char>,
    /// `sh FILE ARG...`, for a file that is no program; the file is filled in.
    script: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    /// `LISTEN_PID=` and room for a number, which the child alone knows.
    listen_pid: Box<[u8; 32]>,
    _listen_fds: Option<CString>,
}

const LISTEN_PID: &[u8] = b"LISTEN_PID=";

impl Pointers {
    fn into(program: &Program, setup: &LeaderSetup) -> io::Result<Pointers> {
        let ended = |texts: &[CString]| {
            texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect::<Vec<_>>()
        };
        let words = ended(&program.words);
        let script = [c"sh".as_ptr(), ptr::null()].into_iter().chain(words.iter().skip(1).copied()).collect();
        let mut environment = ended(&program.environment);
        let mut listen_pid = Box::new([0; 32]);
        let mut listen_fds = None;
        if !setup.sockets.is_empty() {
            listen_pid[..LISTEN_PID.len()].copy_from_slice(LISTEN_PID);
            let fds = listen_fds.insert(CString::new(format!("LISTEN_FDS={}", setup.sockets.len()))?);
            // Before those of the environment, which count if they are there twice only for bad programs.
            environment.insert(0, fds.as_ptr());
            environment.insert(0, listen_pid.as_ptr().cast());
        }
        Ok(Pointers { words, script, environment, listen_pid, _listen_fds: listen_fds })
    }

    /// Enters the pid of this process; async-signal-safe.
    fn enter_pid(&mut self) {
        let mut digits = [0u8; 10];
        let mut number = process::own_pid();
        let mut count = 0;
        while number > 0 {
            digits[count] = b'0' + (number % 10) as u8;
            (number, count) = (number / 10, count + 1);
        }
        for (place, digit) in self.listen_pid[LISTEN_PID.len()..].iter_mut().zip(digits[..count].iter().rev())
        {
            *place = *digit;
        }
    }
}

/// What the child works with, in memory that it shares with us while we wait for its exec.
struct Birth<'a> {
    program: &'a Program,
    setup: &'a LeaderSetup,
    pointers: Pointers,
    supervisor: Pid,
    /// Whether it is born in the cgroup.
    inside: bool,
    /// Why there was no exec.
    failed: Option<Unborn>,
}

/// Why there was no exec: the error number, and which step before it failed, if one did.
#[derive(Clone, Copy)]
struct Unborn {
    step: Option<&'static str>,
    errno: i32,
}

/// Names the step of an error that is to come; async-signal-safe.
fn at(step: &'static str) -> impl FnOnce(io::Error) -> Unborn {
    move |error| Unborn { step: Some(step), errno: error.raw_os_error().unwrap_or(libc::EINVAL) }
}

/// The leader was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The process could not be made, or not be put in order.
    #[error("cannot {step}: {source}")]
    Prepare {
        /// What could not be done.
        step: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The program could not be executed.
    #[error("{0}")]
    Execute(io::Error),
}

/// Starts `program` as the leader of its own process group, with what the caller of `agent-run` had: mask,
/// dispositions, closed descriptors. Returns after its exec. All signals must be blocked.
pub fn start(program: &Program, setup: &LeaderSetup) -> Result<Pid, StartError> {
    let pointers = Pointers::into(program, setup)
        .map_err(|source| StartError::Prepare { step: "pass sockets on", source })?;
    let supervisor = process::own_pid();
    let mut birth = Birth { program, setup, pointers, supervisor, inside: false, failed: None };
    let pid = spawn(&mut birth).map_err(|source| StartError::Prepare { step: "fork", source })?;
    let Some(Unborn { step, errno }) = birth.failed else { return Ok(pid) };
    let _ = children::wait_for(pid);
    let source = io::Error::from_raw_os_error(errno);
    Err(step.map_or_else(
        || StartError::Execute(io::Error::from_raw_os_error(errno)),
        |step| StartError::Prepare { step, source },
    ))
}

/// Makes the child, in the cgroup if there is one and the kernel can; returns when it has exec'ed or ended.
fn spawn(birth: &mut Birth<'_>) -> io::Result<Pid> {
    let mut stack = Stack::new();
    if let Some(directory) = birth.setup.cgroup.as_ref().and_then(Entrance::for_birth) {
        birth.inside = true;
        // An error before Linux 5.7, or where a sandbox hides the call; the leader tries by itself then.
        if let Ok(pid) = clone::into_cgroup(directory, &mut stack, birth) {
            return Ok(pid);
        }
        birth.inside = false;
    }
    clone::plain(&mut stack, birth)
}

/// A stack for the child: it shares our memory, and must not write over ours.
struct Stack(Vec<MaybeUninit<u128>>);

impl Stack {
    fn new() -> Stack {
        const BYTES: usize = 256 * 1024;
        let mut room = Vec::new();
        room.resize_with(BYTES / size_of::<u128>(), MaybeUninit::uninit);
        Stack(room)
    }
}

/// `vfork(2)` in its safe form, as glibc's posix_spawn has it: the child shares our memory (nothing is copied)
/// but not our stack, and this thread waits until it execs or exits.
mod clone {
    use super::*;

    pub(super) fn plain(stack: &mut Stack, birth: &mut Birth<'_>) -> io::Result<Pid> {
        let top = stack.0.as_mut_ptr_range().end;
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        // SAFETY: `top` ends a stack that is aligned for a call and lives until this returns, as does `birth`, which
        // nobody else uses meanwhile: CLONE_VFORK keeps this thread until the child has left both. All
        // signals are blocked, so no handler runs on it, and the child makes async-signal-safe calls alone.
        let pid = unsafe { libc::clone(be_born, top.cast(), flags, ptr::from_mut(birth).cast()) };
        if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) }
    }

    extern "C" fn be_born(birth: *mut libc::c_void) -> libc::c_int {
        // SAFETY: `plain` and `into_cgroup` pass a valid exclusive reference.
        let birth = unsafe { &mut *birth.cast::<Birth<'_>>() };
        birth.failed = Some(become_program(birth));
        super::super::signal::exit_now(127)
    }

    /// glibc's clone cannot say CLONE_INTO_CGROUP, and clone3 with a new stack has no wrapper.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    pub(super) fn into_cgroup(directory: RawFd, stack: &mut Stack, birth: &mut Birth<'_>) -> io::Result<Pid> {
        // libc's own constant is of a type that it does not fit into.
        const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
        // SAFETY: all zeroes is a valid value of this struct of integers.
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.flags = (libc::CLONE_VM | libc::CLONE_VFORK) as u64 | CLONE_INTO_CGROUP;
        arguments.exit_signal = libc::SIGCHLD as u64;
        arguments.cgroup = directory as u64;
        arguments.stack = stack.0.as_mut_ptr() as u64;
        arguments.stack_size = size_of_val(stack.0.as_slice()) as u64;
        let result: isize;
        // SAFETY: as in `plain`; the child finds its argument and function in registers that the call preserves,
        // begins on the top of the new stack, which is aligned by 16, and never returns from `be_born`.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            std::arch::asm!(
                "syscall",
                "test rax, rax",
                "jnz 2f",
                "xor ebp, ebp",
                "mov rdi, r12",
                "call r13",
                "ud2",
                "2:",
                inlateout("rax") libc::SYS_clone3 as isize => result,
                in("rdi") &raw mut arguments,
                in("rsi") size_of::<libc::clone_args>(),
                in("r12") ptr::from_mut(birth),
                in("r13") be_born as extern "C" fn(*mut libc::c_void) -> libc::c_int,
                lateout("rcx") _,
                lateout("r11") _,
            );
        }
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            std::arch::asm!(
                "svc #0",
                "cbnz x0, 2f",
                "mov x29, xzr",
                "mov x0, x20",
                "blr x21",
                "brk #1",
                "2:",
                inlateout("x0") &raw mut arguments => result,
                in("x1") size_of::<libc::clone_args>(),
                in("x8") libc::SYS_clone3,
                in("x20") ptr::from_mut(birth),
                in("x21") be_born as extern "C" fn(*mut libc::c_void) -> libc::c_int,
            );
        }
        if result < 0 { Err(io::Error::from_raw_os_error(-result as i32)) } else { Ok(result as Pid) }
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    pub(super) fn into_cgroup(_: RawFd, _: &mut Stack, _: &mut Birth<'_>) -> io::Result<Pid> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Runs in the child, and returns only why it could not. Everything here is async-signal-safe
/// (`signal-safety(7)`) and changes nothing of ours but `birth`.
fn become_program(birth: &mut Birth<'_>) -> Unborn {
    let prepared = prepare(birth.setup, birth.supervisor, birth.inside);
    let enter = || birth.program.directory.as_deref().map_or(Ok(()), nix::unistd::chdir);
    match prepared.and_then(|()| enter().map_err(|error| at("enter the directory to start in")(error.into())))
    {
        Ok(()) => {
            birth.pointers.enter_pid();
            let error = execute(birth.program, &mut birth.pointers);
            Unborn { step: None, errno: error.raw_os_error().unwrap_or(libc::EINVAL) }
        }
        Err(unborn) => unborn,
    }
}

fn prepare(setup: &LeaderSetup, supervisor: Pid, inside: bool) -> Result<(), Unborn> {
    let group =
        if setup.owns_terminal { super::spawn::lead_own_session } else { super::spawn::lead_own_group };
    group().map_err(at("make a process group"))?;
    // SAFETY: a prctl without pointers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, setup.on_supervisor_death.number()) };
    // From within a namespace, a parent outside has no number.
    if process::parent_pid() != if setup.isolated { 0 } else { supervisor } {
        // The supervisor died before the line above could count.
        return Err(at("find the supervisor")(io::Error::from_raw_os_error(libc::ESRCH)));
    }
    if let Some(cgroup) = setup.cgroup.as_ref().filter(|_| !inside) {
        cgroup.pass().map_err(at("enter the run's cgroup, which holds its limits"))?;
    }
    // The terminal may only be moved from the background with TTOU blocked.
    super::signal::block_all();
    if let Some((terminal, group)) = &setup.terminal
        && terminal.foreground() == Some(if setup.isolated { 0 } else { *group })
    {
        // Refused only if the terminal has gone, and then the guard sees that.
        let _ = terminal.give_to(tty::own_group());
    }
    if setup.isolated {
        namespace::mount_own_proc().map_err(at("mount /proc for the pid namespace"))?;
    }
    for limit in &setup.rlimits {
        limit.apply().map_err(at("set a limit"))?;
    }
    if let Some(stdin) = &setup.input {
        connect(stdin.as_raw_fd(), 0).map_err(at("connect the input"))?;
        if setup.owns_terminal {
            super::tty::take_as_own(0).map_err(at("take the terminal"))?;
        }
    }
    if let Some((stdout, stderr)) = &setup.outputs {
        connect(stdout.as_raw_fd(), 1)
            .and_then(|()| connect(stderr.as_raw_fd(), 2))
            .map_err(at("connect the output"))?;
    }
    if let Some(lock) = &setup.tree_lock {
        inherit_high(lock.as_raw_fd());
    }
    // Last, since the numbers may be in use for what was needed until now.
    for (from, to) in setup.sockets.iter().zip(3..) {
        connect(*from, to).map_err(at("pass a socket on"))?;
    }
    inherit::restore();
    Ok(())
}

/// Makes `from` be `to` as well.
fn connect(from: RawFd, to: RawFd) -> io::Result<()> {
    // SAFETY: both are descriptors of ours; dup2 closes the target and cannot leave it closed.
    if unsafe { libc::dup2(from, to) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Tries each place as `execvp(3)` does: on to the next if it is not there or not allowed; a file that is no
/// program is a script for sh.
fn execute(program: &Program, pointers: &mut Pointers) -> io::Error {
    let mut refused = None;
    let mut last = libc::ENOENT;
    for place in &program.places {
        // SAFETY: both arrays end with a null pointer and point to C strings that live as long as `program`.
        unsafe { libc::execve(place.as_ptr(), pointers.words.as_ptr(), pointers.environment.as_ptr()) };
        last = io::Error::last_os_error().raw_os_error().unwrap_or(libc::ENOENT);
        if last == libc::ENOEXEC {
            pointers.script[1] = place.as_ptr();
            // SAFETY: as above.
            unsafe {
                libc::execve(c"/bin/sh".as_ptr(), pointers.script.as_ptr(), pointers.environment.as_ptr())
            };
            break;
        }
        match last {
            libc::EACCES => refused = Some(last),
            libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT => {}
            _ => break,
        }
    }
    io::Error::from_raw_os_error(refused.filter(|_| last != libc::ENOEXEC).unwrap_or(last))
}

/// Leaves a copy of `fd` open across exec, far above the numbers that programs use by convention
/// (LISTEN_FDS, make's jobserver).
fn inherit_high(fd: RawFd) {
    for lowest in [900, 200, 60, 3] {
        // SAFETY: F_DUPFD makes a copy and touches nothing else; without room at or above `lowest`
        // it fails with EINVAL or EMFILE.
        if unsafe { libc::fcntl(fd, libc::F_DUPFD, lowest) } >= 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_for_in_path() {
        let table = [
            ("ls", "/bin:/usr/bin", vec!["/bin/ls", "/usr/bin/ls"]),
            ("ls", ":/bin", vec!["./ls", "/bin/ls"]),
            ("ls", "", vec!["./ls"]),
            ("./ls", "/bin", vec!["./ls"]),
            ("/x/ls", "/bin", vec!["/x/ls"]),
        ];
        for (name, path, expected) in table {
            let found = places(OsStr::new(name), OsStr::new(path));
            assert_eq!(found, expected.iter().map(PathBuf::from).collect::<Vec<_>>(), "{name} in {path:?}");
        }
    }

    #[test]
    fn a_word_with_a_nul_is_refused() {
        assert!(Program::new(&["a\0b".into()], &[], Vec::new(), None).is_err());
        assert!(Program::new(&["a".into()], &[], vec![("X".into(), "a\0b".into())], None).is_err());
    }
}
