//! What the text of a setting means.

use std::time::Duration;

use crate::lease::parse_duration;
use crate::limits::parse_size;
use crate::ports::ClaimMode;
use crate::run::{Isolation, Keep, OwnerChoice};
use crate::service::Restart;
use crate::sys::signal::Signal;

pub(super) fn parse_polite_signal(text: &str) -> Result<Signal, String> {
    let signal = Signal::parse(text).map_err(|error| format!("{error}; write it like TERM, INT or 15"))?;
    match signal.number() {
        libc::SIGSTOP => Err("SIGSTOP does not end a process; use TERM or INT".to_owned()),
        _ => Ok(signal),
    }
}

pub(super) fn parse_keep(text: &str) -> Result<Keep, String> {
    let known = [Keep::Never, Keep::OnFailure, Keep::Always];
    known
        .into_iter()
        .find(|keep| keep.word() == text)
        .ok_or_else(|| format!("'{}' is not one of never, on-failure, always", text.escape_debug()))
}

pub(super) fn parse_restart(text: &str) -> Result<Restart, String> {
    let known = [Restart::Never, Restart::OnFailure, Restart::Always];
    let found = known.into_iter().find(|restart| restart.word() == text);
    found.ok_or_else(|| format!("'{}' is not one of never, on-failure, always", text.escape_debug()))
}

pub(super) fn parse_interval(text: &str) -> Result<Duration, String> {
    const SHORTEST: Duration = Duration::from_millis(100);
    let span = parse_duration(text).map_err(|error| error.to_string())?;
    if span < SHORTEST { Err(format!("'{text}' is too short: 100ms is the least")) } else { Ok(span) }
}

pub(super) fn parse_log_size(text: &str) -> Result<u64, String> {
    const LEAST: u64 = 64 * 1024;
    let bytes = parse_size(text).map_err(|error| error.to_string())?;
    if bytes < LEAST { Err(format!("'{text}' is too small: 64K is the least")) } else { Ok(bytes) }
}

pub(super) fn parse_owner(text: &str) -> Result<OwnerChoice, String> {
    match text {
        "none" => Ok(OwnerChoice::None),
        "auto" => Ok(OwnerChoice::Auto),
        "parent" => Ok(OwnerChoice::Parent),
        _ => text.parse().ok().filter(|pid| *pid > 0).map(OwnerChoice::Pid).ok_or_else(|| {
            format!("'{}' is neither auto, parent, none nor a process id", text.escape_debug())
        }),
    }
}

pub(super) fn parse_claim(text: &str) -> Result<ClaimMode, String> {
    let known = [ClaimMode::Hold, ClaimMode::Release, ClaimMode::ListenFd];
    let found = known.into_iter().find(|mode| mode.word() == text);
    found.ok_or_else(|| {
        format!("'{}' is no way to claim a port: write hold, release or listen-fd", text.escape_debug())
    })
}

/// An absolute path with a name in it that is no glob: nobody means all of a disk, or all of a home.
pub(super) fn globs(text: &str) -> Result<Vec<String>, String> {
    let globs = names(text);
    for glob in &globs {
        let shown = glob.escape_debug();
        glob::Pattern::new(glob).map_err(|error| format!("'{shown}' is no glob: {error}"))?;
        let parts: Vec<&str> = glob.split('/').collect();
        let last = parts.last().copied().unwrap_or_default().trim_matches(['*', '?']);
        if !glob.starts_with('/') || parts.len() < 3 || last.is_empty() || parts.contains(&"..") {
            return Err(format!("'{shown}' means too much: write it like /tmp/web_*"));
        }
    }
    Ok(globs)
}

pub(super) fn names(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

pub(super) fn parse_isolation(text: &str) -> Result<Isolation, String> {
    match text {
        "none" => Ok(Isolation::None),
        "pid" => Ok(Isolation::Pid),
        _ => Err(format!("'{}' is neither pid nor none", text.escape_debug())),
    }
}

pub(super) fn parse_memory(text: &str) -> Result<Option<u64>, String> {
    // Less than a process that does nothing has.
    const LEAST: u64 = 1 << 20;
    let bytes = parse_size(text).map_err(|error| error.to_string())?;
    if bytes < LEAST {
        return Err(format!("'{text}' is too small; no program runs in less than 1M"));
    }
    Ok(Some(bytes))
}

pub(super) fn parse_count(text: &str) -> Result<Option<u64>, String> {
    let count = text.parse().ok().filter(|count| *count > 0);
    count.map(Some).ok_or_else(|| format!("'{}' is not a number of processes", text.escape_debug()))
}

pub(super) fn parse_truth(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        _ => Err(format!("'{}' is neither true nor false", text.escape_debug())),
    }
}
