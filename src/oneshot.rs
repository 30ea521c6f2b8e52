//! The leader of a session whose command is started anew for each message: reads a marker and a message, starts the
//! command with it, waits for its end and for that of all that it leaves behind, and prints the marker with its status.
//!
//! A process of our own, so that such a session has a leader, a process group and limits like any other run.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::exit::{NOT_EXECUTABLE, NOT_FOUND, SIGNAL_BASE, USAGE};
use crate::sys::clock::BootTime;
use crate::sys::signal::{self, Signal};
use crate::sys::tree::{self, Descend};
use crate::sys::{children, inherit, waits};

/// The word, not shown in the help, that begins the command line of such a leader.
pub const HOST: &str = "--oneshot-host";

/// Stands in an argument for the message; without it, the message goes to stdin.
pub const PROMPT: &str = "{prompt}";

/// What a command leaves behind is killed after this time.
const GRACE: Duration = Duration::from_secs(1);
/// What SIGKILL does not end in this time is left to the end of the session.
const GIVE_UP_AFTER: Duration = Duration::from_secs(10);

/// Returns the command line of the leader for `command`.
pub fn words(command: &[OsString]) -> Vec<OsString> {
    // Ourselves, whatever has become of the file.
    let mut words: Vec<OsString> = vec!["/proc/self/exe".into(), HOST.into()];
    words.extend_from_slice(command);
    words
}

/// Runs in this process, until nobody has a message any more; returns its exit code.
pub fn run(command: &[OsString]) -> u8 {
    if command.is_empty() {
        return USAGE;
    }
    inherit::rename_process(c"arun-oneshot", "arun-oneshot");
    // Ctrl-C is for the command; not ignored, which the command would inherit.
    signal::outlive(Signal::INT);
    let _ = children::become_subreaper();
    let mut messages = BufReader::new(io::stdin());
    loop {
        let (Some(marker), Some(text)) = (next(&mut messages), next(&mut messages)) else { return 0 };
        let status = carry_out(command, &text);
        end_what_is_left();
        let mut last = marker;
        last.extend(format!("{status}\n").into_bytes());
        if io::stdout().write_all(&last).and_then(|()| io::stdout().flush()).is_err() {
            return 0;
        }
    }
}

/// Reads what stands before the next NUL; `None` at the end.
fn next(from: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    from.read_until(0, &mut bytes).ok()?;
    (bytes.pop() == Some(0)).then_some(bytes)
}

fn carry_out(command: &[OsString], text: &[u8]) -> i32 {
    let takes = command.iter().any(|word| word.to_string_lossy().contains(PROMPT));
    let words: Vec<OsString> = command.iter().map(|word| filled(word, text)).collect();
    let stdin = if takes { Stdio::null() } else { Stdio::piped() };
    let child = Command::new(&words[0]).args(&words[1..]).stdin(stdin).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            let _ = writeln!(io::stderr(), "cannot run '{}': {error}", words[0].display());
            let missing = error.kind() == io::ErrorKind::NotFound;
            return i32::from(if missing { NOT_FOUND } else { NOT_EXECUTABLE });
        }
    };
    // One that reads nothing ends all the same; what it leaves behind may have its stdin.
    let (stdin, text) = (child.stdin.take(), text.to_vec());
    let tells = move || stdin.map(|mut stdin| stdin.write_all(&text));
    let _ = thread::Builder::new().spawn(tells);
    let ended = child.wait();
    let code = |status: std::process::ExitStatus| {
        status.code().or_else(|| status.signal().map(|signal| i32::from(SIGNAL_BASE) + signal))
    };
    ended.ok().and_then(code).unwrap_or(1)
}

fn filled(word: &OsStr, text: &[u8]) -> OsString {
    let (word, place) = (word.as_bytes(), PROMPT.as_bytes());
    match memchr::memmem::find(word, place) {
        Some(at) => OsString::from_vec([&word[..at], text, &word[at + place.len()..]].concat()),
        None => OsString::from_vec(word.to_vec()),
    }
}

/// Ends what the command has left behind: politely, then not.
fn end_what_is_left() {
    const LOOK_AGAIN: Duration = Duration::from_millis(10);
    let begun = BootTime::now();
    let mut asked = false;
    while children::any_child_exists() {
        while let Some((pid, _)) = children::peek_ended(children::Whom::Any) {
            if children::reap(pid).is_none() {
                break;
            }
        }
        let spent = BootTime::now().saturating_since(begun);
        if spent >= GIVE_UP_AFTER {
            return;
        }
        let late = spent >= GRACE;
        if late || !asked {
            let signals: &[Signal] = if late { &[Signal::KILL] } else { &[Signal::TERM, Signal::CONT] };
            tree::walk(&mut |member| {
                signals.iter().for_each(|signal| drop(member.send(*signal)));
                Descend::Yes
            });
            asked = true;
        }
        if children::any_child_exists() {
            let _ = waits::any(&[], Some(LOOK_AGAIN));
        }
    }
}
