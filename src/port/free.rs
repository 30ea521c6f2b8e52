//! Freeing ports, and what came of it in one word.

use std::io;

use super::diagnose::{Finding, diagnose};
use super::displace::{How, Means, Outcome, Registry, make_room};
use super::holders::Holder;

/// What came of one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Nobody held it.
    Free,
    /// Who held it has been ended.
    Cleaned,
    /// Somebody has been ended, somebody else holds it still.
    Partial,
    /// It is held by what cannot be seen from here, and was not touched.
    Ghost,
    /// It is held, and nobody could be ended.
    Stuck,
}

impl Status {
    /// Returns the word that stands in answers.
    pub fn word(self) -> &'static str {
        match self {
            Status::Free => "free",
            Status::Cleaned => "cleaned",
            Status::Partial => "partial",
            Status::Ghost => "ghost",
            Status::Stuck => "stuck",
        }
    }
}

/// What came of freeing one port.
#[derive(Debug)]
pub struct Freed {
    /// The port.
    pub port: u16,
    /// In one word.
    pub status: Status,
    /// In detail.
    pub outcome: Outcome,
    /// Why it is not free, if it is not.
    pub diagnostics: Vec<Finding>,
}

/// Ends who listens on `port`. Errors if the kernel cannot be asked who that is.
pub fn free(port: u16, means: &Means, registry: &Registry) -> io::Result<Freed> {
    let outcome = make_room(port, means, registry)?;
    let status = classify(&outcome.ended, &outcome.remaining);
    let is_free = matches!(status, Status::Free | Status::Cleaned);
    let diagnostics = if is_free { Vec::new() } else { diagnose(port, means, registry) };
    Ok(Freed { port, status, outcome, diagnostics })
}

/// Pure: the status, from who was ended and who holds the port now.
pub fn classify<T>(ended: &[(T, How)], remaining: &[Holder]) -> Status {
    match (ended.is_empty(), remaining.is_empty()) {
        (true, true) => Status::Free,
        (false, true) => Status::Cleaned,
        (false, false) => Status::Partial,
        (true, false) if remaining.iter().all(Holder::is_ghost) => Status::Ghost,
        (true, false) => Status::Stuck,
    }
}
