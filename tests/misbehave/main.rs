//! A program with a verb for each bad habit. Verbs are carried out one after the other; a block begins
//! with `child`, `session`, `daemon`, `wide N`, `deep N` or `on SIG` and goes to its `end`.
//!
//! ```text
//! misbehave ignore TERM,INT touch /x/ready pause
//! misbehave daemon on TERM touch /x/told exit 0 end touch /x/up pause end exit 3
//! ```

#![allow(clippy::undocumented_unsafe_blocks, reason = "a test helper of bad habits")]

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, Ordering};

static LAST: AtomicI32 = AtomicI32::new(0);
static HANDLERS: Mutex<Vec<(i32, Vec<String>)>> = Mutex::new(Vec::new());

mod net;
mod vm;

fn main() {
    if std::process::id() == 1 && std::env::args().count() == 1 {
        vm::init();
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    carry_out(&words);
}

/// Carries out one verb after the other; returns when there is none left.
fn carry_out(words: &[String]) {
    let mut rest = words;
    while let Some((verb, after)) = rest.split_first() {
        let taken = one(verb, after);
        rest = &after[taken..];
    }
}

/// Puts the wall clock forward or back.
fn set_clock(seconds: i64) {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &mut now) };
    now.tv_sec += seconds;
    assert_eq!(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &now) }, 0, "only root may");
}

/// Carries out one verb and returns how many words it took.
fn one(verb: &str, after: &[String]) -> usize {
    match verb {
        "ignore" if after[0] == "ALL" => (1..65).for_each(|number| set(number, libc::SIG_IGN)),
        "ignore" => after[0].split(',').for_each(|name| set(signal(name), libc::SIG_IGN)),
        "touch" => fs::write(&after[0], std::process::id().to_string()).expect("touch"),
        "note" => {}
        "await" => await_file(&after[0]),
        "append" => {
            let mut file = fs::OpenOptions::new().create(true).append(true).open(&after[0]).expect("append");
            writeln!(file, "{}", std::process::id()).expect("append");
        }
        "print" => print(&format!("{}\n", after[0])),
        "exit" => leave(after[0].parse().expect("a code")),
        "die" => die(signal(&after[0])),
        "name" => fs::write("/proc/self/comm", &after[0]).expect("comm"),
        "lines" => {
            (0..after[0].parse::<u64>().expect("a number")).for_each(|n| print(&format!("line {n}\n")))
        }
        "env" => print(&format!("{}\n", std::env::var(&after[0]).unwrap_or_else(|_| "unset".into()))),
        "child" | "session" | "daemon" => return block(verb, 1, after),
        // Takes so many MiB of memory and writes to them.
        "hold" => std::mem::forget(vec![1u8; after[0].parse::<usize>().expect("a number") << 20]),
        // Opens so many files.
        "files" => (0..after[0].parse::<u32>().expect("a number"))
            .for_each(|_| std::mem::forget(fs::File::open("/dev/null").expect("/dev/null"))),
        // Is busy for so many seconds and prints which part of them it had the CPU.
        "set_clock" => set_clock(after[0].parse().expect("seconds")),
        "share" => share(after[0].parse().expect("a number")),
        "deep" => return 1 + deep(after[0].parse().expect("a number"), &after[1..]),
        "wide" => return 1 + block("child", after[0].parse().expect("a number"), &after[1..]),
        "on" => {
            let length = block_length(&after[1..]);
            HANDLERS.lock().unwrap().push((signal(&after[0]), after[1..length].to_vec()));
            set(signal(&after[0]), note as *const () as libc::sighandler_t);
            // Taken in `pause` alone, so that none falls between two lines.
            mask(libc::SIG_BLOCK, signal(&after[0]));
            return 1 + length;
        }
        "pause" => {
            pause();
            return 0;
        }
        // Runs the block in a child, and again whenever that ends, until it is told to end itself.
        "watch" => watch(after),
        _ => {
            return net::one(verb, after).unwrap_or_else(|| {
                without_argument(verb, after);
                0
            });
        }
    }
    1
}

fn watch(after: &[String]) -> ! {
    let length = block_length(after);
    loop {
        match unsafe { libc::fork() } {
            0 => {
                carry_out(&after[..length - 1]);
                leave(0);
            }
            child => unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) },
        };
    }
}

fn without_argument(verb: &str, after: &[String]) {
    match verb {
        "status" => print(&fs::read_to_string("/proc/self/status").expect("status")),
        "limits" => print(&fs::read_to_string("/proc/self/limits").expect("limits")),
        "fds" => {
            for fd in fs::read_dir("/proc/self/fd").expect("fd").flatten() {
                let target =
                    fs::read_link(fd.path()).map(|path| path.display().to_string()).unwrap_or_default();
                print(&format!("{} {target}\n", fd.file_name().to_string_lossy()));
            }
        }
        // Goes on as a fresh program without environment and descriptors.
        "bare" => {
            for fd in 0..1024 {
                unsafe { libc::close(fd) };
            }
            (1..32).for_each(|number| mask(libc::SIG_UNBLOCK, number));
            let error = Command::new("/proc/self/exe").args(after).env_clear().exec();
            panic!("{error}");
        }
        // The same with the descriptors.
        "cleared" => {
            let error = Command::new("/proc/self/exe").args(after).env_clear().exec();
            panic!("{error}");
        }
        "closed" => (3..1024).for_each(|fd| {
            unsafe { libc::close(fd) };
        }),
        "unlimit" => unsafe {
            let mut limit = std::mem::zeroed::<libc::rlimit>();
            libc::getrlimit(libc::RLIMIT_LOCKS, &mut limit);
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_LOCKS, &limit);
        },
        "raw" => {
            let mut modes = unsafe { std::mem::zeroed::<libc::termios>() };
            unsafe {
                libc::tcgetattr(0, &mut modes);
                libc::cfmakeraw(&mut modes);
                libc::tcsetattr(0, libc::TCSANOW, &modes);
            }
        }
        "subreaper" => unsafe {
            libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
        },
        "stop" => unsafe {
            libc::raise(libc::SIGSTOP);
        },
        "hop" => hop(),
        "spin" => loop {
            std::hint::spin_loop();
        },
        "end" => {}
        _ => panic!("unknown verb {verb}"),
    }
}

/// Forks a successor and dies, for ever: whoever wants to kill it must be faster than one fork.
fn hop() {
    loop {
        match unsafe { libc::fork() } {
            0 => unsafe {
                libc::setsid();
            },
            _ => leave(0),
        }
    }
}

/// Waits for signals and carries out what `on` said about them.
fn pause() {
    loop {
        unsafe {
            let mut none = std::mem::zeroed::<libc::sigset_t>();
            libc::sigemptyset(&mut none);
            libc::sigsuspend(&none);
        }
        let seen = LAST.swap(0, Ordering::SeqCst);
        let handler = HANDLERS
            .lock()
            .unwrap()
            .iter()
            .find(|(number, _)| *number == seen)
            .map(|(_, words)| words.clone());
        if let Some(words) = handler {
            carry_out(&words);
        }
    }
}

extern "C" fn note(number: i32) {
    LAST.store(number, Ordering::SeqCst);
}

/// Returns how many words the block has, its `end` included.
fn block_length(words: &[String]) -> usize {
    let mut depth = 1;
    for (index, word) in words.iter().enumerate() {
        match word.as_str() {
            "child" | "session" | "daemon" | "deep" | "wide" | "on" | "watch" => depth += 1,
            "end" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return index + 1;
        }
    }
    panic!("a block without end");
}

/// Runs the block in `count` new processes.
fn block(kind: &str, count: usize, after: &[String]) -> usize {
    let length = block_length(after);
    for _ in 0..count {
        match unsafe { libc::fork() } {
            0 => {
                if kind != "child" {
                    unsafe { libc::setsid() };
                }
                if kind == "daemon" && unsafe { libc::fork() } != 0 {
                    leave(0);
                }
                carry_out(&after[..length - 1]);
                leave(0);
            }
            -1 => panic!("fork: {}", std::io::Error::last_os_error()),
            _ => {}
        }
    }
    if kind == "daemon" {
        // Its first half is dead at once, as with real daemons.
        unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) };
    }
    length
}

/// Runs the block at the end of a line of `count` new processes, each the child of the one before.
fn deep(count: usize, after: &[String]) -> usize {
    let length = block_length(after);
    if unsafe { libc::fork() } == 0 {
        for _ in 1..count {
            if unsafe { libc::fork() } != 0 {
                pause();
            }
        }
        carry_out(&after[..length - 1]);
        leave(0);
    }
    length
}

fn signal(name: &str) -> i32 {
    agent_run::Signal::parse(name).expect("a signal").number()
}

fn set(number: i32, action: libc::sighandler_t) {
    unsafe { libc::signal(number, action) };
}

fn mask(how: i32, number: i32) {
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, number);
        libc::sigprocmask(how, &set, std::ptr::null_mut());
    }
}

fn share(seconds: f64) {
    let cpu_time = || {
        let mut time = unsafe { std::mem::zeroed::<libc::timespec>() };
        unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    let (begun, before) = (std::time::Instant::now(), cpu_time());
    while begun.elapsed().as_secs_f64() < seconds {
        std::hint::spin_loop();
    }
    print(&format!("{}\n", (cpu_time() - before) / begun.elapsed().as_secs_f64()));
}

/// Waits until somebody has made `path`.
fn await_file(path: &str) {
    while fs::metadata(path).is_err() {
        unsafe { libc::usleep(1000) };
    }
}

fn die(number: i32) {
    set(number, libc::SIG_DFL);
    unsafe { libc::raise(number) };
}

fn print(text: &str) {
    let mut stdout = std::io::stdout();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

fn leave(code: i32) -> ! {
    unsafe { libc::_exit(code) }
}
