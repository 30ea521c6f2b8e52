//! What the caller handed us, read before Rust's runtime changes it.
//!
//! Rust sets SIGPIPE to ignored and opens closed standard descriptors before `main`. The command
//! must find what the caller left (`nohup`, a script's `&`, a closed stdin), so this is read
//! from an `.init_array` entry, which runs earlier (glibc passes it `argc, argv, envp`).

use std::ffi::{CStr, c_char, c_int};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use super::signal::Signal;

/// Bit n-1 is set if signal n was ignored.
static IGNORED: AtomicU64 = AtomicU64::new(0);
/// Bit n-1 is set if signal n was blocked.
static BLOCKED: AtomicU64 = AtomicU64::new(0);
/// Bit n is set if descriptor n (0 to 2) was closed.
static CLOSED: AtomicU8 = AtomicU8::new(0);
/// Bit n % 64 of word n / 64 is set if descriptor n was open; those of 0 to 2 are not used.
static OPEN: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];
/// Where the arguments lie, to rename the supervisor.
static ARGUMENTS: AtomicPtr<c_char> = AtomicPtr::new(std::ptr::null_mut());
static ARGUMENTS_LENGTH: AtomicUsize = AtomicUsize::new(0);

#[used]
#[unsafe(link_section = ".init_array")]
static CAPTURE: extern "C" fn(c_int, *const *const c_char) = capture;

extern "C" fn capture(argc: c_int, argv: *const *const c_char) {
    capture_signals();
    for fd in 0..3 {
        // SAFETY: F_GETFD only reads; EBADF says that it is closed.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
            CLOSED.fetch_or(1 << fd, Ordering::Relaxed);
        }
    }
    capture_descriptors();
    if cfg!(target_env = "gnu") {
        capture_arguments(argc, argv);
    }
}

/// One poll(2) tells of a thousand descriptors which are open: POLLNVAL says of one that it is not.
fn capture_descriptors() {
    let mut limit = MaybeUninit::<libc::rlimit>::zeroed();
    // SAFETY: a valid resource and place; more descriptors than the limit would be EINVAL.
    let most = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, limit.as_mut_ptr());
        limit.assume_init().rlim_cur.min(64 * OPEN.len() as u64) as usize
    };
    let mut polled = [libc::pollfd { fd: 0, events: 0, revents: 0 }; 64 * OPEN.len()];
    for (number, entry) in polled.iter_mut().enumerate() {
        entry.fd = number as c_int;
    }
    // SAFETY: `most` entries are there; a timeout of 0 does not wait.
    if unsafe { libc::poll(polled.as_mut_ptr(), most as libc::nfds_t, 0) } < 0 {
        return;
    }
    for (number, entry) in polled[..most].iter().enumerate().skip(3) {
        if entry.revents & libc::POLLNVAL == 0 {
            OPEN[number / 64].fetch_or(1 << (number % 64), Ordering::Relaxed);
        }
    }
}

/// Closes what the caller left open beside the standard descriptors: the command has it, and whoever
/// reads the other end must not wait for us. What is ours is close-on-exec, and stays.
pub fn close_callers_others() {
    for (index, word) in OPEN.iter().enumerate() {
        let mut bits = word.swap(0, Ordering::Relaxed);
        while bits != 0 {
            let number = (index * 64) as c_int + bits.trailing_zeros() as c_int;
            bits &= bits - 1;
            // SAFETY: F_GETFD only reads. A descriptor without FD_CLOEXEC was inherited, since we open none
            // such, so nobody in this process owns it.
            unsafe {
                let flags = libc::fcntl(number, libc::F_GETFD);
                if flags >= 0 && flags & libc::FD_CLOEXEC == 0 {
                    libc::close(number);
                }
            }
        }
    }
}

fn capture_signals() {
    let mut mask = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: a null new set only asks; the old one is written.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, std::ptr::null(), mask.as_mut_ptr()) };
    for number in 1..=64 {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: a null new action only asks; an invalid number (32, 33) leaves the zeroed action.
        let ignored = unsafe {
            libc::sigaction(number, std::ptr::null(), action.as_mut_ptr());
            action.assume_init_ref().sa_sigaction == libc::SIG_IGN
        };
        if ignored {
            IGNORED.fetch_or(1 << (number - 1), Ordering::Relaxed);
        }
        // SAFETY: the mask was zeroed and then filled; the number is in range.
        if unsafe { libc::sigismember(mask.as_ptr(), number) } == 1 {
            BLOCKED.fetch_or(1 << (number - 1), Ordering::Relaxed);
        }
    }
}

fn capture_arguments(argc: c_int, argv: *const *const c_char) {
    if argc < 1 || argv.is_null() {
        return;
    }
    // SAFETY: glibc passes main's argv, an array of argc pointers to C strings.
    let (first, last) = unsafe { (*argv, *argv.add(argc as usize - 1)) };
    if first.is_null() || last.is_null() || last < first {
        return;
    }
    // SAFETY: `last` is a C string that lives as long as the process.
    let end = last as usize + unsafe { CStr::from_ptr(last) }.count_bytes();
    ARGUMENTS.store(first.cast_mut(), Ordering::Relaxed);
    ARGUMENTS_LENGTH.store(end - first as usize, Ordering::Relaxed);
}

/// Returns whether the caller had `signal` ignored when it started us.
pub fn ignored(signal: Signal) -> bool {
    IGNORED.load(Ordering::Relaxed) >> (signal.number() - 1) & 1 == 1
}

/// Returns whether descriptor `fd` (0 to 2) was closed when we were started.
pub fn closed(fd: i32) -> bool {
    CLOSED.load(Ordering::Relaxed) >> fd & 1 == 1
}

/// Forgets which of the standard descriptors were closed: the command gets others than the caller's.
pub fn forget_closed() {
    CLOSED.store(0, Ordering::Relaxed);
}

/// Puts dispositions, mask and closed descriptors back as the caller had them. Called in the
/// child just before exec, so only async-signal-safe calls (`signal-safety(7)`).
pub(super) fn restore() {
    for fd in 0..3 {
        if closed(fd) {
            // SAFETY: what Rust opened in place of a closed descriptor is nobody's.
            unsafe { libc::close(fd) };
        }
    }
    let (ignored, blocked) = (IGNORED.load(Ordering::Relaxed), BLOCKED.load(Ordering::Relaxed));
    let mut mask = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set.
    unsafe { libc::sigemptyset(mask.as_mut_ptr()) };
    for number in 1..=64 {
        let was_ignored = ignored >> (number - 1) & 1 == 1;
        // Handlers do not survive the exec; only SIGPIPE did we (Rust) ignore ourselves.
        if was_ignored || number == libc::SIGPIPE {
            let action = if was_ignored { libc::SIG_IGN } else { libc::SIG_DFL };
            // SAFETY: both are valid dispositions; an invalid number fails and changes nothing.
            unsafe { libc::signal(number, action) };
        }
        if blocked >> (number - 1) & 1 == 1 {
            // SAFETY: initialised above, number in range.
            unsafe { libc::sigaddset(mask.as_mut_ptr(), number) };
        }
    }
    // SAFETY: a valid set.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, mask.as_ptr(), std::ptr::null_mut()) };
}

/// Gives this process another name and argument list, as far as the old list has room, so that
/// no kill by name takes guard and supervisor both. `std::env::args` must not be used after it.
pub fn rename_process(comm: &CStr, title: &str) {
    // SAFETY: PR_SET_NAME reads a C string and keeps its first 15 bytes (prctl(2)).
    unsafe { libc::prctl(libc::PR_SET_NAME, comm.as_ptr()) };
    let start = ARGUMENTS.load(Ordering::Relaxed);
    let length = ARGUMENTS_LENGTH.load(Ordering::Relaxed);
    if start.is_null() {
        return;
    }
    let kept = title.len().min(length);
    // SAFETY: the kernel gave us these `length` writable bytes for the arguments; clap has copied
    // what it read of them, and this process has one thread.
    unsafe {
        std::ptr::write_bytes(start.cast::<u8>(), 0, length);
        std::ptr::copy_nonoverlapping(title.as_ptr(), start.cast::<u8>(), kept);
    }
}
