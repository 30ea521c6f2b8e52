//! A terminal with a shell in it, as a person has one.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use agent_run::sys::waits;
use nix::fcntl::OFlag;
use nix::pty;

use super::{Place, wait_until};

/// What the shells prompt with: nothing else prints it.
pub(crate) const PROMPT: &str = "PROMPT> ";

/// A program that leads a session on a terminal of its own.
pub(crate) struct Pty {
    master: Option<File>,
    child: Child,
    seen: Arc<Mutex<Vec<u8>>>,
    /// What lies before it has been expected already.
    mark: usize,
    stop: Option<PipeWriter>,
    reader: Option<JoinHandle<()>>,
}

impl Pty {
    /// Starts an interactive shell, and waits for its prompt.
    pub(crate) fn shell(place: &Place, shell: &str) -> Pty {
        let mut command = Command::new(shell);
        if shell == "bash" {
            command.args(["--norc", "--noprofile"]);
        }
        command.arg("-i");
        let mut pty = Pty::start(place, command);
        pty.expect(PROMPT);
        pty
    }

    /// Starts `command` as the leader of the terminal's session.
    pub(crate) fn start(place: &Place, mut command: Command) -> Pty {
        let (master, slave_end) = open_terminal();
        let slave = || Stdio::from(slave_end.try_clone().unwrap());
        command.stdin(slave()).stdout(slave()).stderr(slave());
        place.furnish(&mut command);
        command.env("PS1", PROMPT).env("RUN", super::agent_run()).env("HELPER", super::misbehave());
        // SAFETY: setsid and ioctl are async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                nix::libc::ioctl(0, nix::libc::TIOCSCTTY, 0);
                Ok(())
            })
        };
        let child = command.spawn().unwrap();
        drop((command, slave_end));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (stopped, stop) = std::io::pipe().unwrap();
        let (copy, collected) = (master.try_clone().unwrap(), Arc::clone(&seen));
        let reader = std::thread::spawn(move || collect(copy, stopped, collected));
        Pty { master: Some(master), child, seen, mark: 0, stop: Some(stop), reader: Some(reader) }
    }

    /// Types `text`.
    pub(crate) fn send(&mut self, text: &str) {
        self.master.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Types a line.
    pub(crate) fn line(&mut self, text: &str) {
        self.send(&format!("{text}\r"));
    }

    fn screen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    /// Waits until `text` is printed after what was expected last; returns what came before it.
    #[track_caller]
    pub(crate) fn expect(&mut self, text: &str) -> String {
        let mut found = None;
        wait_until(&format!("the terminal shows {text:?}"), || {
            let screen = self.screen();
            found = screen[self.mark..].find(text).map(|at| screen[self.mark..self.mark + at].to_owned());
            found.is_some()
        });
        let before = found.unwrap();
        self.mark += before.len() + text.len();
        before
    }

    /// Presses `key` until `text` is printed: a program may not listen yet when it prompts. As slowly as a
    /// person, since a press too many throws away what is typed next.
    #[track_caller]
    pub(crate) fn press_until(&mut self, key: &str, text: &str) {
        const AGAIN: Duration = Duration::from_secs(1);
        let mut pressed: Option<Instant> = None;
        wait_until(&format!("{key:?} makes the terminal show {text:?}"), || {
            if pressed.is_none_or(|at| at.elapsed() > AGAIN) {
                self.send(key);
                pressed = Some(Instant::now());
            }
            let screen = self.screen();
            let found = screen[self.mark..].find(text);
            self.mark += found.map_or(0, |at| at + text.len());
            found.is_some()
        });
    }

    /// Types a command and returns what it printed, when the prompt is back.
    #[track_caller]
    pub(crate) fn ask(&mut self, command: &str) -> String {
        self.line(&format!("echo 'BE''GIN'; {command}; echo 'EN''D'"));
        self.expect("BEGIN\r\n");
        let answer = self.expect("END\r\n");
        self.expect(PROMPT);
        answer.lines().collect::<Vec<_>>().join("\n")
    }

    /// The terminal's modes as a command finds them.
    #[track_caller]
    pub(crate) fn modes(&mut self) -> String {
        self.ask("stty -g")
    }

    /// The process group that has the terminal.
    pub(crate) fn foreground(&self) -> i32 {
        nix::unistd::tcgetpgrp(self.master.as_ref().unwrap().as_fd()).map_or(0, |group| group.as_raw())
    }

    /// Closes the terminal, as a window manager does, and waits for the session's leader.
    #[track_caller]
    pub(crate) fn hang_up(mut self) {
        // The reading thread has a copy, which must be gone too.
        drop((self.stop.take(), self.master.take()));
        self.reader.take().unwrap().join().unwrap();
        self.wait();
    }

    /// Waits for the session's leader to end.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the session's leader has ended", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Leaves the shell.
    #[track_caller]
    pub(crate) fn leave(mut self) {
        self.line("exit");
        self.wait();
    }
}

/// Opens a terminal's both ends. Close-on-exec from the first moment: tests start programs in parallel,
/// and whoever inherited the master would keep the terminal from hanging up.
fn open_terminal() -> (File, File) {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = pty::posix_openpt(flags).unwrap();
    pty::grantpt(&master).unwrap();
    pty::unlockpt(&master).unwrap();
    let slave = File::options()
        .read(true)
        .write(true)
        .custom_flags(flags.bits())
        .open(pty::ptsname_r(&master).unwrap());
    (File::from(OwnedFd::from(master)), slave.unwrap())
}

/// Collects what is printed until the terminal is closed or `stop`'s other end is.
fn collect(mut master: File, stop: PipeReader, seen: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = [0; 4096];
    loop {
        let ready = waits::any(&[(master.as_fd(), true), (stop.as_fd(), true)], None).unwrap();
        if ready[1] {
            return;
        }
        match master.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(length) => seen.lock().unwrap().extend_from_slice(&buffer[..length]),
        }
    }
}
