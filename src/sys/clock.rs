//! Time that goes on while the machine sleeps.
//!
//! A lease is a promise in wall time, so it is kept on `CLOCK_BOOTTIME`
//! (`clock_gettime(2)`, Linux 2.6.39): unlike `CLOCK_MONOTONIC` it counts suspend, and unlike
//! `CLOCK_REALTIME` nobody can set it.

use std::io;
use std::ops::Add;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId as Clock, clock_gettime};
use serde::{Deserialize, Serialize};

/// An instant on `CLOCK_BOOTTIME`, as the time since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BootTime(Duration);

impl BootTime {
    /// Returns the present instant.
    pub fn now() -> Self {
        // The clock exists since 2.6.39 and the call has no other error.
        let now = clock_gettime(Clock::CLOCK_BOOTTIME).expect("CLOCK_BOOTTIME");
        BootTime(now.into())
    }

    /// Returns the instant that lies `since_boot` after boot.
    pub const fn from_boot(since_boot: Duration) -> Self {
        BootTime(since_boot)
    }

    /// Returns the time since boot.
    pub const fn since_boot(self) -> Duration {
        self.0
    }

    /// Returns the time from `earlier` until this instant, zero if `earlier` is later.
    pub fn saturating_since(self, earlier: BootTime) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for BootTime {
    type Output = BootTime;
    fn add(self, span: Duration) -> BootTime {
        BootTime(self.0.saturating_add(span))
    }
}

/// A timer on `CLOCK_BOOTTIME` that wakes whoever polls its descriptor (`timerfd_create(2)`).
#[derive(Debug)]
pub struct Timer(TimerFd);

impl Timer {
    /// Creates a timer that is not armed.
    pub fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        Ok(Timer(TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)?))
    }

    /// Arms the timer for `at`, or disarms it. An instant that has passed fires at once.
    pub fn set(&self, at: Option<BootTime>) -> io::Result<()> {
        match at {
            // Zero would disarm, so the earliest instant is one nanosecond after boot.
            Some(at) => {
                let at = at.0.max(Duration::from_nanos(1));
                let when = Expiration::OneShot(at.into());
                self.0.set(when, TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
            }
            None => self.0.unset()?,
        }
        Ok(())
    }

    /// Forgets that the timer has fired, so that polling waits again.
    pub fn clear(&self) {
        let mut ticks = [0u8; 8];
        // EAGAIN means that it has not fired: nothing to forget.
        let _ = nix::unistd::read(&self.0, &mut ticks);
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_never_go_below_zero() {
        let early = BootTime::from_boot(Duration::from_secs(5));
        let late = early + Duration::from_secs(2);
        assert_eq!(late.saturating_since(early), Duration::from_secs(2));
        assert_eq!(early.saturating_since(late), Duration::ZERO);
    }

    #[test]
    fn an_instant_in_the_past_fires_at_once() {
        let timer = Timer::new().unwrap();
        timer.set(Some(BootTime::from_boot(Duration::ZERO))).unwrap();
        let woken = crate::sys::waits::readable(timer.as_fd(), Some(Duration::from_secs(5)));
        assert!(woken.unwrap());
        timer.clear();
        let woken = crate::sys::waits::readable(timer.as_fd(), Some(Duration::ZERO));
        assert!(!woken.unwrap());
    }
}
