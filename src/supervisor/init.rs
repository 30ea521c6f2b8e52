//! The first process of a run's pid namespace (`--isolate pid`). The kernel ends the namespace with it, so
//! not even SIGKILL of everything else leaves anything.
//!
//! It reaps, and waits for one of two things: to be told that the leader has ended, then it ends as soon as
//! it has no child; or the death of guard and supervisor both, then it ends the tree itself, with grace.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::time::Duration;

use crate::sys::children::{self, Whom};
use crate::sys::clock::BootTime;
use crate::sys::namespace::{Lifeline, Lifelines};
use crate::sys::process::{self, Pid};
use crate::sys::signal::{self, Signal, SignalQueue};
use crate::sys::spawn::{self, Forked};
use crate::sys::tcp::Reservation;
use crate::sys::{inherit, waits};

/// Forks the init, which must be the first fork since `namespace::unshare_pids`, and returns it with the
/// supervisor's lifeline. It lets go of `claims`, which are not for it to hold.
pub(super) fn start(
    lifelines: Lifelines,
    polite: Signal,
    grace: Duration,
    claims: &mut Vec<Reservation>,
) -> io::Result<(Pid, Lifeline)> {
    match spawn::fork_beside_threads()? {
        Forked::Child => {
            inherit::rename_process(c"arun-init", "arun-init");
            let _ = spawn::let_go_of(&[0, 1, 2]);
            inherit::close_callers_others();
            claims.clear();
            // Without its queue it cannot wait, and its end is the namespace's.
            let _ = Init { readers: lifelines.for_init(), polite, grace }.run();
            signal::exit_now(0)
        }
        Forked::Parent(init) => Ok((init, lifelines.for_supervisor())),
    }
}

struct Init {
    readers: [File; 2],
    polite: Signal,
    grace: Duration,
}

impl Init {
    fn run(&self) -> io::Result<()> {
        let queue = SignalQueue::open(&[Signal::CHLD])?;
        let (mut leader_ended, mut dead) = (false, [false; 2]);
        loop {
            reap_all();
            if leader_ended && !children::any_child_exists() {
                return Ok(());
            }
            if dead == [true; 2] {
                return self.end_all(&queue);
            }
            let mut fds = vec![(queue.as_fd(), true)];
            fds.extend(
                self.readers.iter().zip(dead).filter(|(_, dead)| !dead).map(|(fd, _)| (fd.as_fd(), true)),
            );
            waits::any(&fds, None)?;
            while queue.next().is_some() {}
            for (reader, dead) in self.readers.iter().zip(&mut dead) {
                let told = !*dead && waits::readable(reader.as_fd(), Some(Duration::ZERO))?;
                match told.then(|| {
                    let mut reader = reader;
                    reader.read(&mut [0; 8])
                }) {
                    Some(Ok(0)) => *dead = true,
                    Some(Ok(_)) => leader_ended = true,
                    _ => {}
                }
            }
        }
    }

    /// Asks all to end, and returns when they have or the grace is over; our end is then theirs.
    fn end_all(&self, queue: &SignalQueue) -> io::Result<()> {
        const LOOK_AGAIN: Duration = Duration::from_millis(20);
        let deadline = BootTime::now() + self.grace;
        process::signal_namespace(self.polite);
        process::signal_namespace(Signal::CONT);
        while process::signal_namespace_probe() && BootTime::now() < deadline {
            let left = deadline.saturating_since(BootTime::now());
            // Not all of them are our children, so their ends are not all told.
            waits::readable(queue.as_fd(), Some(left.min(LOOK_AGAIN)))?;
            while queue.next().is_some() {}
            reap_all();
        }
        Ok(())
    }
}

fn reap_all() {
    while let Some((pid, _)) = children::peek_ended(Whom::Any) {
        children::reap(pid);
    }
}
