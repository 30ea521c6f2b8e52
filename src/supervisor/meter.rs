//! The limits of the whole tree: read from its cgroup where the kernel holds them, else measured.
//!
//! A look at a large tree costs something, so looks are so far apart that all of them together cost less
//! than a hundredth of a core. Memory is first taken as the sum of what is resident, which counts shared
//! pages many times; only if that is too much, the exact share (PSS) decides.

use std::collections::HashMap;
use std::time::Duration;

use crate::containment::Cell;
use crate::exit::Reason;
use crate::limits::Limits;
use crate::registry::record::Exceeded;
use crate::sys::cgroup::Leaf;
use crate::sys::clock::BootTime;
use crate::sys::process::{self, Pid, Stat};
use crate::sys::signal::Signal;
use crate::sys::tree::{self, Descend};

/// Between two looks, whatever they cost.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// One look costs at most this part of the time until the next.
const COST: u32 = 100;
/// Between two looks at the CPU time.
const CPU_PERIOD: Duration = Duration::from_millis(50);

/// What has become too much.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Excess {
    pub(super) reason: Reason,
    pub(super) figures: Exceeded,
}

/// Watches the limits of one tree.
#[derive(Debug)]
pub(super) struct Meter {
    memory: Option<u64>,
    pids: Option<u64>,
    /// The kernel holds them; we only notice.
    by_kernel: bool,
    next: BootTime,
    throttle: Option<Throttle>,
    peak_memory: u64,
    /// What the kernel had refused before the command was started the last time.
    refused_before: [u64; 2],
}

/// Where the kernel counts what it has refused.
const REFUSED: [(&str, &str); 2] = [("memory.events", "oom_kill "), ("pids.events", "max ")];

impl Meter {
    /// Returns the meter for `limits`; `None` if they need none.
    pub(super) fn of(limits: &Limits, cell: Option<&Cell>, now: BootTime) -> Option<Meter> {
        let by_kernel = cell.is_some_and(|cell| cell.limited);
        let Limits { memory, pids, cpu_percent, .. } = *limits;
        memory.or(pids).or(cpu_percent)?;
        let throttle = cpu_percent.filter(|_| !by_kernel).map(|percent| Throttle::new(percent, now));
        Some(Meter { memory, pids, by_kernel, next: now, throttle, peak_memory: 0, refused_before: [0; 2] })
    }

    /// Begins anew, with a command that is just started.
    pub(super) fn begin_again(&mut self, leaf: Option<&Leaf>, now: BootTime) {
        let count = |(file, key)| leaf.and_then(|leaf| leaf.count(file, key)).unwrap_or_default();
        self.refused_before = REFUSED.map(count);
        (self.next, self.peak_memory) = (now, 0);
        self.throttle = self.throttle.as_ref().map(|throttle| Throttle::new(throttle.percent, now));
    }

    /// Returns when to look next; `None` for never.
    pub(super) fn next(&self) -> Option<BootTime> {
        let looks = self.pids.is_some() || (self.memory.is_some() && !self.by_kernel);
        let next = looks.then_some(self.next);
        next.into_iter().chain(self.throttle.as_ref().map(|throttle| throttle.next)).min()
    }

    /// Returns whether the tree is stopped by us now.
    pub(super) fn holds_the_tree(&self) -> bool {
        self.throttle.as_ref().is_some_and(|throttle| throttle.stopped)
    }

    /// Looks, if it is time, and returns what is too much; `probes` and what is below them do not count.
    pub(super) fn look<T>(
        &mut self,
        leaf: Option<&Leaf>,
        probes: &HashMap<Pid, T>,
        now: BootTime,
    ) -> Option<Excess> {
        if let Some(throttle) = self.throttle.as_mut().filter(|throttle| now >= throttle.next) {
            throttle.balance(leaf, now);
        }
        if now < self.next {
            return None;
        }
        let excess = if self.by_kernel { self.refused_by_kernel(leaf) } else { self.measure(probes) };
        let cost = BootTime::now().saturating_since(now);
        self.next = now + (cost * COST).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        excess
    }

    /// Returns what the kernel has refused the tree. Also asked when the leader has died: the kernel has
    /// killed it then, and says why here alone.
    pub(super) fn refused_by_kernel(&self, leaf: Option<&Leaf>) -> Option<Excess> {
        let leaf = leaf.filter(|_| self.by_kernel)?;
        let [memory, pids] = REFUSED;
        let happened = |(file, key), before| leaf.count(file, key).is_some_and(|count| count > before);
        let count = |file: &str| leaf.read(file).ok()?.trim().parse::<u64>().ok();
        if let Some(limit) = self.memory.filter(|_| happened(memory, self.refused_before[0])) {
            // memory.peak is there since Linux 5.19.
            let peak = count("memory.peak").unwrap_or(limit);
            return Some(excess(Reason::Memory, limit, peak));
        }
        let limit = self.pids.filter(|_| happened(pids, self.refused_before[1]))?;
        Some(excess(Reason::Pids, limit, count("pids.peak").unwrap_or(limit)))
    }

    fn measure<T>(&mut self, probes: &HashMap<Pid, T>) -> Option<Excess> {
        let mut found = Vec::new();
        // What we start ourselves to look after it is not the command's.
        tree::walk(&mut |member| match probes.contains_key(&member.stat.pid) {
            true => Descend::No,
            false => {
                found.push(member.stat.clone());
                Descend::Yes
            }
        });
        let count = found.len() as u64;
        if let Some(limit) = self.pids.filter(|limit| count > *limit) {
            return Some(excess(Reason::Pids, limit, count));
        }
        let limit = self.memory?;
        let resident = |stat: &Stat| stat.resident_pages * process::page_size();
        let sum: u64 = found.iter().map(resident).sum();
        if sum <= limit {
            self.peak_memory = self.peak_memory.max(sum);
            return None;
        }
        // Another user's process does not tell its share.
        let exact: u64 =
            found.iter().map(|stat| process::proportional_memory(stat.pid).unwrap_or(resident(stat))).sum();
        self.peak_memory = self.peak_memory.max(exact);
        (exact > limit).then(|| excess(Reason::Memory, limit, self.peak_memory))
    }
}

fn excess(reason: Reason, limit: u64, peak: u64) -> Excess {
    Excess { reason, figures: Exceeded { limit, peak } }
}

/// Gives the tree a share of the CPU by stopping it for a while when it has used too much: by the freezer of
/// its cgroup, which nobody within notices, else by SIGSTOP and SIGCONT.
#[derive(Debug)]
struct Throttle {
    percent: u64,
    next: BootTime,
    looked: BootTime,
    /// CPU time of the tree at the last look, in microseconds; `None` before the first.
    used: Option<u64>,
    /// Used above the share, in microseconds.
    debt: i64,
    stopped: bool,
}

impl Throttle {
    fn new(percent: u64, now: BootTime) -> Throttle {
        Throttle { percent, next: now, looked: now, used: None, debt: 0, stopped: false }
    }

    fn balance(&mut self, leaf: Option<&Leaf>, now: BootTime) {
        let used = leaf.and_then(|leaf| leaf.count("cpu.stat", "usage_usec ")).unwrap_or_else(used_by_tree);
        let elapsed = now.saturating_since(self.looked);
        // A process that dies unwaited-for takes its time with it.
        let more = used.saturating_sub(self.used.unwrap_or(used));
        (self.used, self.looked) = (Some(used), now);
        let pause = self.settle(more, elapsed);
        self.stop(pause.is_some(), leaf);
        self.next = now + pause.unwrap_or(CPU_PERIOD);
    }

    /// Pure: books what was used and what was granted, and returns for how long the tree must rest.
    fn settle(&mut self, used_us: u64, elapsed: Duration) -> Option<Duration> {
        let granted = |span: Duration| (span.as_micros() as u64 * self.percent / 100) as i64;
        // What was not used in one period may be used in the next, no more.
        let most_saved = granted(CPU_PERIOD);
        self.debt = (self.debt + used_us as i64 - granted(elapsed)).max(-most_saved);
        let rest = u64::try_from(self.debt).ok().filter(|debt| *debt > 0)? * 100 / self.percent;
        Some(Duration::from_micros(rest).max(Duration::from_millis(1)))
    }

    fn stop(&mut self, stop: bool, leaf: Option<&Leaf>) {
        if self.stopped == stop {
            return;
        }
        self.stopped = stop;
        if leaf.is_some_and(|leaf| leaf.freeze(stop).is_ok()) {
            return;
        }
        let signal = if stop { Signal::STOP } else { Signal::CONT };
        tree::walk(&mut |member| {
            let _ = member.send(signal);
            Descend::Yes
        });
    }
}

fn used_by_tree() -> u64 {
    let ticks: u64 = tree::list().iter().map(|stat| stat.cpu_ticks + stat.children_ticks).sum();
    ticks * 1_000_000 / process::ticks_per_second()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_rests_for_what_it_used_too_much() {
        let mut throttle = Throttle::new(50, BootTime::now());
        let ms = Duration::from_millis;
        // A whole core for 100 ms at half a core: rests as long again.
        assert_eq!(throttle.settle(100_000, ms(100)), Some(ms(100)));
        assert_eq!(throttle.settle(0, ms(100)), None);
        // Two cores.
        assert_eq!(throttle.settle(200_000, ms(100)), Some(ms(300)));
        assert_eq!(throttle.settle(0, ms(300)), None);
        // An hour of rest is not saved up.
        assert_eq!(throttle.settle(0, ms(3_600_000)), None);
        assert_eq!(throttle.settle(100_000, ms(100)), Some(ms(50)));
    }

    #[test]
    fn no_limit_needs_no_meter() {
        assert!(Meter::of(&Limits::default(), None, BootTime::now()).is_none());
        let limits = Limits { memory: Some(1), ..Limits::default() };
        assert!(Meter::of(&limits, None, BootTime::now()).unwrap().next().is_some());
    }
}
