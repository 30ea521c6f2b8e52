//! A run as an answer shows it: its record, with what only a look at the moment tells.

use std::time::Duration;

use serde_json::{Value, json};

use crate::lease::format_duration;
use crate::owner;
use crate::registry::record::{Record, RecordError, State};
use crate::registry::seen::SeenRun;
use crate::teardown::marks::Marks;
use crate::usage::Usage;

/// Returns the run as JSON: the record's fields, `state` as it is now, and `usage` and `idle_s`.
pub(super) fn json(run: &SeenRun, usage: Option<Usage>, idle_s: Option<f64>) -> Value {
    let mut value = match &run.record {
        Ok(record) => record_json(record),
        Err(error) => json!({ "id": run.id, "record_error": error.to_string() }),
    };
    value["state"] = json!(run.state);
    value["usage"] = json!(usage);
    value["idle_s"] = json!(idle_s);
    value
}

fn record_json(record: &Record) -> Value {
    // A record was made of JSON or can be: its maps have string keys only.
    let mut value = serde_json::to_value(record).unwrap_or_default();
    value["port"] = json!(record.ports.first());
    value["url"] = json!(record.url());
    value
}

/// Returns the command as one line that a terminal can show, cut to `width` columns.
pub(super) fn command_line(record: &Record) -> String {
    // A program that is given in an argument is nobody's to read in a table.
    let brief = |word: &String| match word.split_once('\n') {
        Some((first, rest)) if rest.len() > 200 => format!("{first}…"),
        _ => word.clone(),
    };
    shown_words(&record.command.iter().map(brief).collect::<Vec<_>>())
}

/// Returns words as one line that a terminal can show. Nobody reads more than the beginning of a long one.
pub(super) fn shown_words(words: &[String]) -> String {
    const MOST_WORDS: usize = 200;
    words.iter().take(MOST_WORDS).map(|word| shown(word)).collect::<Vec<_>>().join(" ")
}

/// Control characters, and those that change how the rest of the line is shown.
pub(super) fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// Quotes what would not read as one word; control characters never reach a terminal.
fn shown(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!(
            "'{}'",
            word.chars()
                .flat_map(|c| if is_unseen(c) { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
                .collect::<String>()
        )
    }
}

/// Returns a duration for a narrow column, to the nearest minute from an hour on: `5s`, `12m`, `1h30m`, `2d4h`.
pub(super) fn brief(span: Duration) -> String {
    let seconds = span.as_secs() + u64::from(span.subsec_millis() >= 500);
    let with = |first: u64, unit: char, rest: u64, smaller: char| match rest {
        0 => format!("{first}{unit}"),
        rest => format!("{first}{unit}{rest}{smaller}"),
    };
    // What is shown is rounded, so that a lease of two hours reads so a moment later.
    let (minutes, hours) = ((seconds + 30) / 60, (seconds + 1800) / 3600);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3570 => format!("{minutes}m"),
        3570..84_600 => with(minutes / 60, 'h', minutes % 60, 'm'),
        _ => with(hours / 24, 'd', hours % 24, 'h'),
    }
}

/// Returns how a finished run ended, in words.
pub(super) fn ended(record: &Record) -> Option<String> {
    let end = record.end.as_ref()?;
    let verified = if end.verified { "" } else { ", something is left" };
    Some(format!("{}, code {}{verified}", end.reason.word(), end.code))
}

/// Returns what lives of a run that nobody stands above: found by its marks, as whoever ends it does.
pub(super) fn usage_of_orphan(run: &SeenRun) -> Option<Usage> {
    let marks = Marks::of(run.record.as_ref().ok()?, None)?;
    Some(Usage::of(&marks.living()))
}

/// Returns the lines of `status`.
pub(super) fn lines(run: &SeenRun, usage: Option<Usage>, idle_s: Option<f64>) -> Vec<(&'static str, String)> {
    let record = match &run.record {
        Ok(record) => record,
        Err(error) => return broken(run, error),
    };
    let mut lines = vec![("run", record.id.to_string())];
    let mut add = |key, value: Option<String>| lines.extend(value.map(|value| (key, value)));
    add("name", record.name.clone());
    add("state", Some(run.state.word().to_owned()));
    add("ended", ended(record));
    add("command", Some(command_line(record)));
    add("in", Some(record.cwd.clone()));
    let labels: Vec<String> = record.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    add("labels", Some(labels.join(" ")).filter(|text| !text.is_empty()));
    add("started", Some(format!("{} ({} ago)", record.started_at, brief(record.started_at.age()))));
    if run.state != State::Finished {
        add(
            "lease",
            Some(
                record
                    .time_left()
                    .map_or("none".to_owned(), |left| format!("{} left", format_duration(left))),
            ),
        );
        add("idle", idle_s.and_then(|idle| Duration::try_from_secs_f64(idle).ok()).map(format_duration));
        add("leader", record.leader.as_ref().map(|leader| format!("pid {}", leader.pid)));
    }
    let ports: Vec<String> = record.ports.iter().map(u16::to_string).collect();
    add("port", Some(ports.join(" ")).filter(|text| !text.is_empty()));
    add("url", record.url());
    add("owner", record.owner.as_ref().map(owner::title));
    add("uses", usage.map(|usage| uses(&usage)));
    add("directory", record.dir.clone());
    add("log", record.log.clone());
    lines
}

fn uses(usage: &Usage) -> String {
    let memory = crate::limits::format_size(usage.rss_bytes);
    let fds = usage.fds.map_or(String::new(), |fds| format!(", {fds} descriptors"));
    format!("{memory}, {:.1} s of CPU, {} processes{fds}", usage.cpu_s, usage.pids)
}

fn broken(run: &SeenRun, error: &RecordError) -> Vec<(&'static str, String)> {
    vec![("run", run.id.to_string()), ("state", run.state.word().to_owned()), ("record", error.to_string())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_brief_and_round() {
        for (seconds, expected) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (3569, "59m"),
            (3599, "1h"),
            (5399, "1h30m"),
            (7199, "2h"),
            (86_399, "1d"),
            (129_600, "1d12h"),
        ] {
            assert_eq!(brief(Duration::from_secs(seconds)), expected, "{seconds}");
        }
    }

    #[test]
    fn nothing_unseen_reaches_a_terminal() {
        for word in ["a\u{1b}[0m", "a\u{202e}b", "a\u{200b}b", "\u{7f}"] {
            assert!(!shown(word).chars().any(is_unseen), "{word:?}");
        }
    }
}
