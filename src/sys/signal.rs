//! Signals as values, and the ways to block, read, raise and die of them (`signal(7)`).

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize};

use super::inherit;

/// A signal's number, 1 to 64; real-time signals too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Signal(i32);

/// Names of the standard signals by number, as `kill -l` gives them on Linux.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// What [`Signal::parse`] did not understand.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown signal '{0}'")]
pub struct UnknownSignal(String);

impl Signal {
    /// Hang-up of the terminal.
    pub const HUP: Signal = Signal(libc::SIGHUP);
    /// Ctrl-C.
    pub const INT: Signal = Signal(libc::SIGINT);
    /// Ctrl-\.
    pub const QUIT: Signal = Signal(libc::SIGQUIT);
    /// Stops whoever gets it.
    pub const STOP: Signal = Signal(libc::SIGSTOP);
    /// The one that cannot be refused.
    pub const KILL: Signal = Signal(libc::SIGKILL);
    /// Nobody reads what was written.
    pub const PIPE: Signal = Signal(libc::SIGPIPE);
    /// The polite request to end.
    pub const TERM: Signal = Signal(libc::SIGTERM);
    /// A child changed its state.
    pub const CHLD: Signal = Signal(libc::SIGCHLD);
    /// Go on after a stop.
    pub const CONT: Signal = Signal(libc::SIGCONT);
    /// Ctrl-Z.
    pub const TSTP: Signal = Signal(libc::SIGTSTP);
    /// The background read the terminal.
    pub const TTIN: Signal = Signal(libc::SIGTTIN);
    /// The background changed the terminal.
    pub const TTOU: Signal = Signal(libc::SIGTTOU);
    /// The soft limit of CPU time is used up.
    pub const XCPU: Signal = Signal(libc::SIGXCPU);
    /// For the program to define.
    pub const USR1: Signal = Signal(libc::SIGUSR1);
    /// For the program to define.
    pub const USR2: Signal = Signal(libc::SIGUSR2);
    /// The terminal has another size.
    pub const WINCH: Signal = Signal(libc::SIGWINCH);

    /// Returns the signal with this number, if there is one.
    pub fn from_number(number: i32) -> Option<Signal> {
        (1..=64).contains(&number).then_some(Signal(number))
    }

    /// Reads `TERM`, `SIGTERM`, `term` or `15`.
    pub fn parse(text: &str) -> Result<Signal, UnknownSignal> {
        let unknown = || UnknownSignal(text.to_owned());
        if let Ok(number) = text.parse::<i32>() {
            return Signal::from_number(number).ok_or_else(unknown);
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let index = NAMES.iter().position(|known| *known == name).ok_or_else(unknown)?;
        Ok(Signal(index as i32 + 1))
    }

    /// Returns the number.
    pub const fn number(self) -> i32 {
        self.0
    }

    /// True for the four of which `agent-run` dies itself, so that a shell sees them.
    pub fn is_mirrored(self) -> bool {
        [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM].contains(&self)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.get(self.0 as usize - 1) {
            Some(name) => write!(f, "SIG{name}"),
            None => write!(f, "signal {}", self.0),
        }
    }
}

/// Builds the kernel's form of a set.
fn set_of(signals: &[Signal]) -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the whole set that it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialised by the line above.
    let mut set = unsafe { set.assume_init() };
    for signal in signals {
        // SAFETY: `set` is initialised and the number is within 1..=64 by construction.
        unsafe { libc::sigaddset(&mut set, signal.0) };
    }
    set
}

/// Blocks every signal that can be blocked, so that from here on they are read from
/// [`SignalQueue`] and nothing is interrupted half done.
pub fn block_all() {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset initialises the set, and a full set is a valid mask.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), std::ptr::null_mut());
    }
}

/// Blocks `signals`, which are to be read from a [`SignalQueue`].
pub fn block(signals: &[Signal]) {
    change_mask(libc::SIG_BLOCK, signals);
}

/// Lets `signals` through again.
pub fn unblock(signals: &[Signal]) {
    change_mask(libc::SIG_UNBLOCK, signals);
}

fn change_mask(how: i32, signals: &[Signal]) {
    let set = set_of(signals);
    // SAFETY: a valid set.
    unsafe { libc::pthread_sigmask(how, &set, std::ptr::null_mut()) };
}

/// Gives back the default action of SIGCHLD: ignored (as some launchers leave it), the kernel
/// would reap children by itself and nobody could learn how they ended (`wait(2)`, Notes).
pub fn expect_children() {
    set_default(Signal::CHLD);
}

/// Lets `signal` pass without effect on this process; what it executes has the default again (`signal(7)`).
pub fn outlive(signal: Signal) {
    extern "C" fn nothing(_: libc::c_int) {}
    let handler = nothing as extern "C" fn(libc::c_int);
    // SAFETY: the handler does nothing, which is async-signal-safe.
    unsafe { libc::signal(signal.0, handler as libc::sighandler_t) };
}

/// Lets signals do again what they do by default: for a process of ours that anybody may end.
pub fn be_mortal() {
    (1..=64).map(Signal).for_each(set_default);
    let none = set_of(&[]);
    // SAFETY: a valid set.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()) };
}

fn set_default(signal: Signal) {
    // SAFETY: SIG_DFL is a valid disposition for every signal; failure (KILL, STOP) changes nothing.
    unsafe { libc::signal(signal.0, libc::SIG_DFL) };
}

/// Returns whether one of `signals` waits to be delivered to this process.
pub fn pending(signals: &[Signal]) -> Option<Signal> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigpending fills the set that it is given.
    let set = unsafe {
        libc::sigpending(set.as_mut_ptr());
        set.assume_init()
    };
    // SAFETY: `set` is initialised and the numbers are valid.
    signals.iter().copied().find(|signal| unsafe { libc::sigismember(&set, signal.0) } == 1)
}

/// Lets `signal`'s default action happen to this process now, and returns if that was a stop
/// that ended (or that the kernel refused, since our process group is orphaned).
pub fn suffer(signal: Signal) {
    set_default(signal);
    let only = set_of(&[signal]);
    // SAFETY: valid sets and a valid number; the process is single-threaded where this is called, so
    // the signal goes to this thread and is delivered before sigprocmask returns (signal(7)).
    unsafe {
        libc::raise(signal.0);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &only, std::ptr::null_mut());
        libc::pthread_sigmask(libc::SIG_BLOCK, &only, std::ptr::null_mut());
    }
}

/// Dies of `signal`, without a core of our own; if it was ignored by the caller or does not
/// kill, ends with 128 + its number.
pub fn die_of(signal: Signal) -> ! {
    let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid resource and a valid pointer.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &no_core) };
    suffer(signal);
    exit_now(128 + signal.0)
}

/// Ends this process at once, without destructors or buffers (`_exit(2)`): what a forked
/// process shares with its parent must not be flushed or dropped twice.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Signals as things to read instead of interruptions (`signalfd(2)`).
#[derive(Debug)]
pub struct SignalQueue(OwnedFd);

impl SignalQueue {
    /// Opens a queue of `signals`, which must be blocked. A signal that the caller had ignored
    /// is left out: `nohup` and a script's `&` mean it. SIGCHLD is not: to ignore it is an old way to be rid
    /// of zombies, see [`expect_children`].
    pub fn open(signals: &[Signal]) -> io::Result<SignalQueue> {
        let heeded: Vec<Signal> = signals
            .iter()
            .copied()
            .filter(|signal| *signal == Signal::CHLD || !inherit::ignored(*signal))
            .collect();
        let set = set_of(&heeded);
        // SAFETY: a valid set; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        Ok(SignalQueue(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Takes the next signal, if one has come.
    pub fn next(&self) -> Option<Signal> {
        self.next_from().map(|(signal, _)| signal)
    }

    /// Takes the next signal, if one has come, and says whether the kernel itself sent it, as it does
    /// for a key pressed at the terminal (`SI_KERNEL`, sigaction(2)).
    pub fn next_from(&self) -> Option<(Signal, bool)> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the buffer is as long as said; the kernel writes whole records only.
        let got = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        if got != size as isize {
            return None;
        }
        // SAFETY: a whole record was read.
        let info = unsafe { info.assume_init() };
        Some((Signal::from_number(info.ssi_signo as i32)?, info.ssi_code == libc::SI_KERNEL))
    }
}

impl AsFd for SignalQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for SignalQueue {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Sends `signal` to every process of our own process group, ourselves included.
pub fn send_to_own_group(signal: Signal) {
    // SAFETY: kill(2) with pid 0 has no memory preconditions.
    unsafe { libc::kill(0, signal.0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_read() {
        for text in ["TERM", "SIGTERM", "term", "15"] {
            assert_eq!(Signal::parse(text), Ok(Signal::TERM), "{text}");
        }
        assert_eq!(Signal::parse("KILL"), Ok(Signal::KILL));
        assert_eq!(Signal::parse("SYS").unwrap().number(), libc::SIGSYS);
        for text in ["", "0", "65", "-1", "NOPE", "SIG", "TERM "] {
            assert!(Signal::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_those_of_the_numbers() {
        assert_eq!(Signal::INT.to_string(), "SIGINT");
        assert_eq!(Signal::WINCH.to_string(), "SIGWINCH");
        assert_eq!(Signal::from_number(34).unwrap().to_string(), "signal 34");
    }
}
