//! Whether the command ever listens on the port that is held for it: one that cannot bind a held port ends
//! without, and is told what to do.

use std::time::Duration;

use super::Claims;
use crate::ports::ClaimMode;
use crate::sys::clock::BootTime;
use crate::sys::sockets::{self, State};
use crate::sys::tcp::Reservation;

/// The first look comes after this, each other one after twice the time.
const FIRST: Duration = Duration::from_millis(20);
/// Who has not listened by then does not end for that reason.
const GIVE_UP: Duration = Duration::from_secs(60);

/// Looks for a listener now and then, until there is one.
#[derive(Debug)]
pub(super) struct Lookout {
    port: u16,
    begun: BootTime,
    next: Option<BootTime>,
    pause: Duration,
    seen: bool,
}

impl Lookout {
    /// Returns the lookout for the first port that is held.
    pub(super) fn of(claims: &Claims, now: BootTime) -> Option<Lookout> {
        let port = claims.ports.first().filter(|_| claims.mode == ClaimMode::Hold).map(Reservation::port)?;
        Some(Lookout { port, begun: now, next: Some(now + FIRST), pause: FIRST, seen: false })
    }

    /// Returns when to look next; `None` for never.
    pub(super) fn next(&self) -> Option<BootTime> {
        self.next
    }

    /// Looks, if it is time, and returns the port when somebody is seen to listen for the first time.
    pub(super) fn look(&mut self, now: BootTime) -> Option<u16> {
        if self.next.is_none_or(|next| now < next) {
            return None;
        }
        // If the kernel cannot be asked, nothing can be said.
        self.seen =
            sockets::list(&[State::Listening], Some(self.port)).map_or(true, |found| !found.is_empty());
        self.pause *= 2;
        let over = self.seen || now.saturating_since(self.begun) > GIVE_UP;
        self.next = (!over).then_some(now + self.pause);
        self.seen.then_some(self.port)
    }

    /// Returns the port, if nobody was seen to listen on it.
    pub(super) fn never_listened(&self) -> Option<u16> {
        (!self.seen && self.next.is_some()).then_some(self.port)
    }
}
