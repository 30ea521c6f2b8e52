//! When what is due in a teardown. Pure: the clock is an argument.

use std::time::Duration;

use crate::sys::clock::BootTime;

/// How long SIGKILL is repeated before what is left is reported. A process in uninterruptible sleep
/// or of another user by sudo does not go away by waiting longer.
pub const KILL_FOR: Duration = Duration::from_secs(10);

/// Between looks while SIGKILL is repeated: at first short enough to win against a process that forks
/// and dies in a loop, later long enough to cost nothing.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Who wakes so much too late has not waited, but slept.
const OVERSLEPT: Duration = Duration::from_secs(1);

/// Between asking the leader's process group, which ends most trees, and looking for the others; and between
/// two looks for newcomers, since a thousand processes may die within a moment. Within a short grace
/// there is time for it too.
pub fn look_after(grace: Duration) -> Duration {
    (grace / 4).min(Duration::from_millis(20))
}

/// Where a teardown stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Polite { until: BootTime },
    Killing { until: BootTime, next: BootTime, pause: Duration },
}

/// What is due now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing before [`Progress::wake_at`].
    Nothing,
    /// SIGKILL to all that is left; `first` if the grace has just ended.
    Kill {
        /// The grace has just ended.
        first: bool,
    },
    /// Saying what is left.
    GiveUp,
}

impl Progress {
    /// Begins with the polite phase, of `grace`.
    pub fn begin(grace: Duration, now: BootTime) -> Progress {
        Progress { phase: Phase::Polite { until: now + grace } }
    }

    /// Ends the polite phase.
    pub fn kill_now(&mut self, now: BootTime) {
        if let Phase::Polite { until } = &mut self.phase {
            *until = now;
        }
    }

    /// Ends the polite phase at the latest after `grace` from now.
    pub fn shorten(&mut self, grace: Duration, now: BootTime) {
        if let Phase::Polite { until } = &mut self.phase {
            *until = (*until).min(now + grace);
        }
    }

    /// Returns whether the polite phase is over.
    pub fn is_killing(&self) -> bool {
        matches!(self.phase, Phase::Killing { .. })
    }

    /// Returns when to ask again.
    pub fn wake_at(&self) -> BootTime {
        match self.phase {
            Phase::Polite { until } => until,
            Phase::Killing { next, .. } => next,
        }
    }

    /// Returns what is due, and takes it as done.
    pub fn due(&mut self, now: BootTime) -> Due {
        match self.phase {
            Phase::Polite { until } if now < until => Due::Nothing,
            Phase::Polite { .. } => {
                self.phase =
                    Phase::Killing { until: now + KILL_FOR, next: now + FIRST_PAUSE, pause: FIRST_PAUSE };
                Due::Kill { first: true }
            }
            // Nobody looked for a while (the machine slept): the ten seconds were not used.
            Phase::Killing { next, pause, .. } if now.saturating_since(next) > OVERSLEPT => {
                self.phase = Phase::Killing { until: now + OVERSLEPT, next: now + pause, pause };
                Due::Kill { first: false }
            }
            Phase::Killing { until, .. } if now >= until => Due::GiveUp,
            Phase::Killing { next, .. } if now < next => Due::Nothing,
            Phase::Killing { until, pause, .. } => {
                let pause = (pause * 2).min(LONGEST_PAUSE);
                self.phase = Phase::Killing { until, next: now + pause, pause };
                Due::Kill { first: false }
            }
        }
    }

    /// Makes another SIGKILL due at once: something has just died, and its children came to us.
    pub fn hurry(&mut self, now: BootTime) {
        if let Phase::Killing { next, pause, .. } = &mut self.phase {
            (*next, *pause) = (now, FIRST_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(milliseconds: u64) -> BootTime {
        BootTime::from_boot(Duration::from_millis(milliseconds))
    }

    #[test]
    fn grace_then_kill_then_report() {
        let mut progress = Progress::begin(Duration::from_millis(300), at(0));
        assert_eq!(progress.due(at(299)), Due::Nothing);
        assert_eq!(progress.wake_at(), at(300));
        assert_eq!(progress.due(at(300)), Due::Kill { first: true });
        assert!(progress.is_killing());
        assert_eq!(progress.due(at(300)), Due::Nothing);
        assert_eq!(progress.due(at(301)), Due::Kill { first: false });
        let mut now = progress.wake_at();
        while now < at(10_300) {
            assert_eq!(progress.due(now), Due::Kill { first: false });
            now = progress.wake_at();
        }
        assert_eq!(progress.due(now), Due::GiveUp);
    }

    #[test]
    fn no_grace_kills_at_once() {
        let mut progress = Progress::begin(Duration::ZERO, at(7));
        assert_eq!(progress.due(at(7)), Due::Kill { first: true });
    }

    #[test]
    fn a_second_press_ends_the_grace() {
        let mut progress = Progress::begin(Duration::from_secs(5), at(0));
        progress.kill_now(at(100));
        assert_eq!(progress.due(at(100)), Due::Kill { first: true });
        // Once it kills, the press changes nothing: the ten seconds are not begun anew.
        progress.kill_now(at(200));
        let mut now = progress.wake_at();
        while progress.due(now) != Due::GiveUp {
            assert!(now < at(10_200));
            now = progress.wake_at();
        }
    }

    #[test]
    fn a_machine_that_slept_does_not_give_up_unseen() {
        let mut progress = Progress::begin(Duration::ZERO, at(0));
        progress.due(at(0));
        assert_eq!(progress.due(at(60_000)), Due::Kill { first: false });
        assert_eq!(progress.due(at(60_500)), Due::Kill { first: false });
        let mut now = progress.wake_at();
        while progress.due(now) != Due::GiveUp {
            assert!(now < at(61_300));
            now = progress.wake_at();
        }
    }

    #[test]
    fn the_grace_is_only_ever_shortened() {
        let mut progress = Progress::begin(Duration::from_secs(5), at(0));
        progress.shorten(Duration::from_secs(60), at(0));
        assert_eq!(progress.wake_at(), at(5_000));
        progress.shorten(Duration::from_secs(1), at(1_000));
        assert_eq!(progress.wake_at(), at(2_000));
    }

    #[test]
    fn looks_become_rarer_until_something_dies() {
        let mut progress = Progress::begin(Duration::ZERO, at(0));
        let mut now = at(0);
        for _ in 0..12 {
            assert!(matches!(progress.due(now), Due::Kill { .. }));
            now = progress.wake_at();
        }
        progress.due(now);
        assert_eq!(progress.wake_at(), now + LONGEST_PAUSE);
        progress.hurry(now);
        assert_eq!(progress.due(now), Due::Kill { first: false });
        assert_eq!(progress.wake_at(), now + FIRST_PAUSE * 2);
    }
}
