//! The limits of a run: rlimits of its processes, as `setrlimit(2)` knows them, and limits of its whole tree.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::lease;
use crate::sys::spawn::Rlimit;

/// A soft and a hard value; what is `None` stays as the caller has it. The kernel's
/// "unlimited" is `u64::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Where the process is warned or refused.
    pub soft: Option<u64>,
    /// How far it may raise the soft value itself.
    pub hard: Option<u64>,
}

/// A limit that could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{text}' is not a limit: {why}")]
pub struct BadLimit {
    text: String,
    why: String,
}

/// What the value of a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Things.
    Count,
    /// Bytes; `2G` = `2GiB` = 2^31.
    Bytes,
    /// CPU time, whole seconds, rounded up.
    Seconds,
}

/// The limits of a run. The rlimits count for every process of the tree by itself, `memory`, `pids` and
/// `cpu_percent` for their sum.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Open descriptors (RLIMIT_NOFILE).
    pub nofile: Option<Bound>,
    /// Size of a file it writes, in bytes (RLIMIT_FSIZE).
    pub fsize: Option<Bound>,
    /// Data segment, heap and private writable mappings, in bytes (RLIMIT_DATA).
    pub data: Option<Bound>,
    /// Size of a core dump, in bytes (RLIMIT_CORE).
    pub core: Option<Bound>,
    /// CPU time in seconds (RLIMIT_CPU): SIGXCPU at the soft, SIGKILL at the hard value.
    pub cpu_time: Option<Bound>,
    /// Memory of the whole tree, in bytes; above it the run ends.
    #[serde(default)]
    pub memory: Option<u64>,
    /// Processes of the whole tree (with threads, where a cgroup counts them); above it the run ends.
    #[serde(default)]
    pub pids: Option<u64>,
    /// CPU of the whole tree, in percent of one core; more is not given.
    #[serde(default)]
    pub cpu_percent: Option<u64>,
}

impl Limits {
    /// Returns them in the kernel's form.
    pub fn rlimits(&self) -> Vec<Rlimit> {
        let table = [
            (libc::RLIMIT_NOFILE, self.nofile),
            (libc::RLIMIT_FSIZE, self.fsize),
            (libc::RLIMIT_DATA, self.data),
            (libc::RLIMIT_CORE, self.core),
            (libc::RLIMIT_CPU, self.cpu_time),
        ];
        let set = table.into_iter().filter_map(|(resource, bound)| Some((resource, bound?)));
        set.map(|(resource, Bound { soft, hard })| Rlimit { resource, soft, hard }).collect()
    }

    /// Returns the name of the first limit whose hard value is above what this process may grant.
    pub fn first_not_grantable(&self) -> Option<&'static str> {
        let names = [
            ("nofile", libc::RLIMIT_NOFILE, self.nofile),
            ("fsize", libc::RLIMIT_FSIZE, self.fsize),
            ("data", libc::RLIMIT_DATA, self.data),
            ("core", libc::RLIMIT_CORE, self.core),
            ("cpu-time", libc::RLIMIT_CPU, self.cpu_time),
        ];
        names.into_iter().find_map(|(name, resource, bound)| {
            let (_, highest) = crate::sys::spawn::current_rlimit(resource).ok()?;
            let wanted = bound?.hard.or(bound?.soft)?;
            (wanted > highest && crate::sys::process::own_uid() != 0).then_some(name)
        })
    }
}

/// Reads `SOFT[:HARD]`; one value alone sets both, `unlimited` and an empty side are taken.
/// CPU time with one value leaves a second between the warning and the kill.
pub fn parse_bound(text: &str, unit: Unit) -> Result<Bound, BadLimit> {
    let bad = |why: String| BadLimit { text: text.to_owned(), why };
    let value = |side: &str| if side.is_empty() { Ok(None) } else { parse_value(side, unit).map(Some) };
    let bound = match text.split_once(':') {
        Some((soft, hard)) => Bound { soft: value(soft).map_err(bad)?, hard: value(hard).map_err(bad)? },
        None => {
            let both = value(text).map_err(bad)?;
            let room = if unit == Unit::Seconds { 1 } else { 0 };
            Bound { soft: both, hard: both.map(|value| value.saturating_add(room)) }
        }
    };
    match bound {
        Bound { soft: None, hard: None } => Err(bad("it is empty; write SOFT or SOFT:HARD".to_owned())),
        Bound { soft: Some(soft), hard: Some(hard) } if soft > hard => {
            Err(bad("the soft value is above the hard one".to_owned()))
        }
        _ => Ok(bound),
    }
}

fn parse_value(text: &str, unit: Unit) -> Result<u64, String> {
    if text == "unlimited" || text == "infinity" {
        return Ok(u64::MAX);
    }
    match unit {
        Unit::Count => text.parse().map_err(|_| "write a whole number or 'unlimited'".to_owned()),
        Unit::Bytes => parse_size(text).map_err(|error| error.to_string()),
        Unit::Seconds => {
            let span = lease::parse_duration(text).map_err(|error| error.to_string())?;
            Ok(span.as_secs() + u64::from(span > Duration::from_secs(span.as_secs())))
        }
    }
}

/// A size that could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not a size; write it like 512M, 2G or 2GiB (powers of 1024)")]
pub struct BadSize(String);

/// Reads a size in bytes: `512`, `64K`, `2G`, `2GiB`, `1.5GB`. All units are powers of 1024, as
/// in systemd and docker.
pub fn parse_size(text: &str) -> Result<u64, BadSize> {
    let bad = || BadSize(text.to_owned());
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(bad()),
    };
    let scaled = match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(1 << shift),
        Err(_) => {
            let fraction = number.parse::<f64>().map_err(|_| bad())?;
            Some((fraction * (1u64 << shift) as f64) as u64)
        }
    };
    scaled.filter(|bytes| *bytes < u64::MAX).ok_or_else(bad)
}

/// Reads a share of the CPU in percent of one core: `50`, `50%`, `250%`.
pub fn parse_percent(text: &str) -> Result<u64, BadLimit> {
    let number = text.strip_suffix('%').unwrap_or(text).parse().ok().filter(|percent| *percent > 0);
    let why = "write percent of one core, like 50% or 200%".to_owned();
    number.ok_or(BadLimit { text: text.to_owned(), why })
}

/// Writes a size for a person: `512 MiB`.
pub fn format_size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 10.0 {
        format!("{value:.0} {}", units[unit])
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        let table =
            [("0", 0), ("512", 512), ("64K", 65_536), ("2G", 1 << 31), ("2GiB", 1 << 31), ("1.5k", 1536)];
        for (text, expected) in table {
            assert_eq!(parse_size(text), Ok(expected), "{text}");
        }
        for text in ["", "G", "2X", "-1", "1.2.3", "99999999999T", "."] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn bounds_are_soft_and_hard() {
        let bound = |soft, hard| Ok(Bound { soft, hard });
        assert_eq!(parse_bound("64:128", Unit::Count), bound(Some(64), Some(128)));
        assert_eq!(parse_bound("64", Unit::Count), bound(Some(64), Some(64)));
        assert_eq!(parse_bound("64:", Unit::Count), bound(Some(64), None));
        assert_eq!(parse_bound(":1M", Unit::Bytes), bound(None, Some(1 << 20)));
        assert_eq!(parse_bound("unlimited", Unit::Bytes), bound(Some(u64::MAX), Some(u64::MAX)));
        assert_eq!(parse_bound("1500ms", Unit::Seconds), bound(Some(2), Some(3)));
        for text in ["", ":", "5:4", "x", "1:2:3", "-1"] {
            assert!(parse_bound(text, Unit::Count).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_written() {
        for (bytes, expected) in [(0, "0 B"), (1536, "1.5 KiB"), (50 << 20, "50 MiB"), (3 << 40, "3.0 TiB")] {
            assert_eq!(format_size(bytes), expected);
        }
    }
}
