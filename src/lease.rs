//! Durations as people write them, and the lease that they grant.

use std::time::Duration;

use crate::sys::clock::BootTime;

/// The longest duration taken: a hundred years, far from any overflow.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 60 * 60);

/// A duration that could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{text}' is not a duration: {why}; write it like 90s, 1h30m or 0 for none")]
pub struct BadDuration {
    text: String,
    why: &'static str,
}

/// Reads `90s`, `1h30m`, `1.5h`, `250ms`, `90` (seconds, as timeout(1) takes it) and `0`.
pub fn parse_duration(text: &str) -> Result<Duration, BadDuration> {
    let bad = |why| BadDuration { text: text.to_owned(), why };
    if text.is_empty() {
        return Err(bad("it is empty"));
    }
    if text.starts_with('-') {
        return Err(bad("it is negative"));
    }
    let span = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|_| bad("it is too long")),
        Err(_) => humantime::parse_duration(text).map_err(|error| bad(why(&error))),
    }?;
    if span > LONGEST { Err(bad("it is too long")) } else { Ok(span) }
}

fn why(error: &humantime::DurationError) -> &'static str {
    use humantime::DurationError::{NumberOverflow, UnknownUnit};
    match error {
        NumberOverflow => "it is too long",
        UnknownUnit { .. } => "its unit is unknown",
        _ => "it cannot be read",
    }
}

/// Reads a duration of which `0` means none.
pub fn parse_limit(text: &str) -> Result<Option<Duration>, BadDuration> {
    Ok(Some(parse_duration(text)?).filter(|span| !span.is_zero()))
}

/// Writes a duration for a person: `1h 30m`, `5s`, `300ms`; at most two units.
pub fn format_duration(span: Duration) -> String {
    let coarse = match span.as_secs() {
        0 => Duration::from_millis(span.as_millis() as u64),
        1..60 if span.subsec_millis() != 0 => return format!("{:.1}s", span.as_secs_f64()),
        _ => Duration::from_secs(span.as_secs()),
    };
    let text = humantime::format_duration(coarse).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// How long a run may live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    ttl: Duration,
    deadline: BootTime,
}

impl Lease {
    /// Grants `ttl` from `now` on.
    pub fn grant(ttl: Duration, now: BootTime) -> Lease {
        Lease { ttl, deadline: now + ttl }
    }

    /// Returns the duration that was asked for last.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Returns the instant at which it ends.
    pub fn deadline(&self) -> BootTime {
        self.deadline
    }

    /// Returns whether it has ended.
    pub fn is_over(&self, now: BootTime) -> bool {
        now >= self.deadline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        let table = [
            ("90s", 90_000),
            ("1h30m", 5_400_000),
            ("1h 30m", 5_400_000),
            ("0", 0),
            ("0s", 0),
            ("5", 5_000),
            ("1.5", 1_500),
            ("250ms", 250),
            ("2d", 172_800_000),
        ];
        for (text, expected) in table {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(expected)), "{text}");
        }
        assert_eq!(parse_limit("0"), Ok(None));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "5x", "-1s", "-1", "1e99h", "1e99", "inf", "NaN", "s", "999999999999h", "1h-2m", " "]
        {
            let error = parse_duration(text).expect_err(text);
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }

    #[test]
    fn durations_are_written() {
        let table = [(0, "0s"), (300, "300ms"), (1_500, "1.5s"), (5_000, "5s"), (5_400_000, "1h 30m")];
        for (milliseconds, expected) in table {
            assert_eq!(format_duration(Duration::from_millis(milliseconds)), expected);
        }
    }

    #[test]
    fn a_lease_ends_at_its_deadline() {
        let start = BootTime::from_boot(Duration::from_secs(100));
        let lease = Lease::grant(Duration::from_secs(10), start);
        assert!(!lease.is_over(start + Duration::from_millis(9_999)));
        assert!(lease.is_over(start + Duration::from_secs(10)));
    }
}
