//! The lines of a log that has times and streams.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, stdout};
use std::os::fd::AsFd;
use std::time::{Duration, SystemTime};

use serde_json::json;

use super::printer::Printer;
use super::server::args::LineArgs;
use crate::exit;
use crate::failure::Failure;
use crate::lease::parse_duration;
use crate::output::{self, Line, Reader};
use crate::owner;
use crate::registry::record::{State, Timestamp};
use crate::registry::seen::SeenRun;
use crate::service::Pattern;
use crate::sys::files::Changes;
use crate::sys::process::Pidfd;
use crate::sys::waits;

/// Returns whether `run` has such a log.
pub(super) fn has_some(run: &SeenRun) -> bool {
    output::is_in(&run.directory)
}

/// Shows the lines that are wanted.
pub(super) fn show(run: &SeenRun, args: &LineArgs, printer: &Printer) -> Result<u8, Failure> {
    let filter = Filter::of(args)?;
    let view = View::of(args, printer);
    let unreadable = |error: io::Error| {
        Failure::new(
            "no_log",
            format!("cannot read the log of run {}: {error}", run.id),
            None,
            exit::SOMETHING_REMAINS,
        )
    };
    let changes = Changes::within(&run.directory).map_err(unreadable)?;
    let mut reader = Reader::open(&run.directory).map_err(unreadable)?;
    let mut last: VecDeque<Line> = VecDeque::new();
    let most = args.lines.unwrap_or(usize::MAX);
    while let Some(line) = reader.next_line().map_err(unreadable)? {
        if filter.fits(&line) {
            last.push_back(line);
            // Without a number, nothing is kept back.
            let late = if most == usize::MAX { 0 } else { most };
            while last.len() > late {
                let line = last.pop_front();
                if most == usize::MAX && !line.is_some_and(|line| view.print(&line)) {
                    return Ok(0);
                }
            }
        }
    }
    let follows = args.follow && run.state != State::Finished;
    if !follows {
        // What has no end yet, or never got one.
        last.extend(reader.rest().into_iter().filter(|line| filter.fits(line)));
        last.drain(..last.len().saturating_sub(most));
    }
    if !last.iter().all(|line| view.print(line)) {
        return Ok(0);
    }
    if follows {
        let mut more = || {
            while let Some(line) = reader.next_line()? {
                if filter.fits(&line) && !view.print(&line) {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        follow(run, &changes, &mut more).map_err(unreadable)?;
    }
    reader.rest().iter().filter(|line| filter.fits(line)).all(|line| view.print(line));
    Ok(0)
}

/// Calls `more` until it says that nobody reads, or nobody supervises the run; sleeps until something changes.
pub(super) fn follow(
    run: &SeenRun,
    changes: &Changes,
    more: &mut dyn FnMut() -> io::Result<bool>,
) -> io::Result<()> {
    let record = run.record.as_ref().ok();
    let keepers = record.into_iter().flat_map(|record| [&record.guard, &record.supervisor]).flatten();
    let mut pinned: Vec<_> = keepers.filter_map(|keeper| keeper.pin()).collect();
    loop {
        // Who is dead before the lock is asked after needs no more waiting for.
        pinned.retain(Pidfd::is_alive);
        let over = !run.is_supervised();
        if !more()? || over {
            return Ok(());
        }
        // A reader that has gone (`| head`) is seen by the hang-up of stdout.
        let stdout = stdout();
        let mut fds = vec![(stdout.as_fd(), false), (changes.as_fd(), true)];
        fds.extend(pinned.iter().map(|pidfd| (pidfd.as_fd(), true)));
        let unseen = pinned.is_empty().then_some(Duration::from_millis(100));
        if waits::any(&fds, unseen)?[0] {
            return Ok(());
        }
        changes.clear();
    }
}

struct Filter {
    since: Option<SystemTime>,
    grep: Option<Pattern>,
}

impl Filter {
    fn of(args: &LineArgs) -> Result<Filter, Failure> {
        let wrong = |flag: &str, error: String| {
            Failure::usage(format!("{flag}: {error}"), "see agent-run logs --help")
        };
        let span = args.since.as_deref().map(parse_duration).transpose();
        let span = span.map_err(|error| wrong("--since", error.to_string()))?;
        let grep = args.grep.as_deref().map(Pattern::parse).transpose();
        Ok(Filter {
            since: span.and_then(|span| SystemTime::now().checked_sub(span)),
            grep: grep.map_err(|error| wrong("--grep", error.to_string()))?,
        })
    }

    fn fits(&self, line: &Line) -> bool {
        let text = || plain(&line.text());
        self.since.is_none_or(|since| line.at >= since)
            && self.grep.as_ref().is_none_or(|pattern| pattern.is_in(&text()))
    }
}

/// Returns `text` without what is for a terminal; where it was drawn anew (a progress bar), a space.
fn plain(text: &str) -> String {
    strip_ansi_escapes::strip_str(text.trim_end_matches('\r').replace('\r', " "))
}

/// The same, with its colours (SGR, ECMA-48): what moves the cursor or names the window is not for who reads it now.
fn coloured(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("\x1b[") {
        let (before, sequence) = rest.split_at(at);
        shown.push_str(&plain(before));
        let end =
            sequence[2..].find(|c: char| !c.is_ascii_digit() && !";:".contains(c)).map_or(0, |end| end + 3);
        match sequence.get(..end).filter(|sequence| sequence.ends_with('m')) {
            Some(colour) => shown.push_str(colour),
            // Another sequence: what is left is stripped with it.
            None => {
                shown.push_str(&plain(sequence));
                return shown;
            }
        }
        rest = &sequence[end..];
    }
    shown.push_str(&plain(rest));
    // Whatever was begun ends with the line.
    if shown.contains('\x1b') { shown + "\x1b[0m" } else { shown }
}

/// How a line is shown.
struct View<'a> {
    printer: &'a Printer,
    raw: bool,
    /// Colours are for eyes.
    keeps_colours: bool,
}

impl View<'_> {
    fn of<'a>(args: &LineArgs, printer: &'a Printer) -> View<'a> {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        View {
            printer,
            raw: args.raw,
            keeps_colours: stdout().is_terminal() && !plain && !owner::is_agents(),
        }
    }

    /// Returns false if nobody takes it.
    fn print(&self, line: &Line) -> bool {
        if self.printer.is_json() {
            self.printer.fields(&[
                ("line", json!(line.text())),
                ("at", json!(Timestamp(line.at))),
                ("stream", json!(line.stream.word())),
            ]);
            return true;
        }
        let end: &[u8] = if line.whole { b"\n" } else { b"" };
        if self.raw {
            return self.printer.raw(&[&line.text, end].concat());
        }
        let text = if self.keeps_colours { coloured(&line.text()) } else { plain(&line.text()) };
        self.printer.raw(format!("{} {:<6} {text}\n", Timestamp(line.at), line.stream.word()).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_stay_and_nothing_else() {
        for (text, expected, without) in [
            ("plain", "plain", "plain"),
            ("\x1b[32mok\x1b[0m now", "\x1b[32mok\x1b[0m now\x1b[0m", "ok now"),
            ("\x1b[2J\x1b[Hx\x1b[31mred", "xred", "xred"),
            ("\x1b]0;title\x07x", "x", "x"),
            ("10%\r20%\r", "10% 20%", "10% 20%"),
            ("\x1b[", "", ""),
        ] {
            assert_eq!(coloured(text), expected, "{text:?}");
            assert_eq!(plain(text), without, "{text:?}");
        }
    }
}
