//! Looks whether the command is ready, and afterwards whether it is well. It tells the driver what it has found, and
//! lets it start and end the commands of `cmd:` checks: whatever runs is part of the tree.
//!
//! No event tells that a socket listens (sock_diag(7) reports the end of sockets alone), so until it is ready the
//! kernel is asked every fifteen milliseconds, which costs about a hundredth of a core.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::probe;
use super::scan::Scanner;
use crate::registry::record::{Health, Timestamp};
use crate::service::{Check, Service};
use crate::sys::children::Ended;
use crate::sys::descriptors::{self, Kind as Descriptor};
use crate::sys::process::Pid;
use crate::sys::sockets::{self, Socket, State};
use crate::sys::tree::{self, Descend};

const LOOK_EVERY: Duration = Duration::from_millis(15);
/// Of one that has answered for long, and not well.
const SLOWEST_LOOK: Duration = Duration::from_millis(250);
/// While somebody else listens on the port, of whom more is to be found out each time.
const LOOK_RARELY: Duration = Duration::from_millis(100);
/// A server for which nothing else is asked is ready if it lives so long: one that fails at once is not.
const SETTLES_IN: Duration = Duration::from_millis(300);
/// After a look that found something wrong the next one comes sooner.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// So many in a row make it unhealthy.
const FAILURES: u32 = 3;

/// What the driver hears.
#[derive(Debug)]
pub(super) enum Told {
    /// All that makes it ready is true; where it listens, if it does.
    Ready(Option<SocketAddr>),
    /// Why it is not ready yet.
    Pending(String),
    /// The last look at its health, and whether it is the one that decides.
    Health(Health, bool),
    /// Start this command; the answer says which process it is and tells of its end.
    Start(String, oneshot::Sender<(Pid, oneshot::Receiver<Ended>)>),
    /// End this one.
    Kill(Pid),
}

/// Where the command is found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Its first port.
    pub(super) port: Option<u16>,
    /// The id of its cgroup.
    pub(super) leaf: Option<u64>,
}

/// Looks as long as it lives.
#[derive(Debug)]
pub(super) struct Checker(JoinHandle<()>);

impl Drop for Checker {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Checker {
    /// Begins to look, within a runtime.
    pub(super) fn start(
        service: Service,
        place: Place,
        scanner: Option<Scanner>,
        driver: mpsc::UnboundedSender<Told>,
    ) -> Checker {
        let watch = Watch { service, place, scanner, driver, begun: Instant::now() };
        Checker(tokio::spawn(watch.run()))
    }
}

struct Watch {
    service: Service,
    place: Place,
    scanner: Option<Scanner>,
    driver: mpsc::UnboundedSender<Told>,
    begun: Instant,
}

/// Why a check is not true, and when to look again.
struct NotYet {
    why: String,
    again: Duration,
}

impl NotYet {
    fn soon(why: impl Into<String>) -> NotYet {
        NotYet { why: why.into(), again: LOOK_EVERY }
    }
}

impl Watch {
    async fn run(self) {
        self.get_ready().await;
        // Whoever does not hear is about to end us.
        let place = self.listeners().ok().and_then(|places| places.first().copied());
        let _ = self.driver.send(Told::Ready(place));
        if !self.service.health.is_empty() {
            self.stay_healthy().await;
        }
    }

    async fn get_ready(&self) {
        if self.service.ready.is_empty() {
            return sleep(SETTLES_IN).await;
        }
        let mut told = String::new();
        for check in &self.service.ready {
            while let Err(NotYet { why, again }) = self.ask(check).await {
                if why != told {
                    told.clone_from(&why);
                    let _ = self.driver.send(Told::Pending(why));
                }
                self.pause(again).await;
            }
        }
    }

    /// Waits, at most until there is something new in the output.
    async fn pause(&self, span: Duration) {
        match &self.scanner {
            Some(scanner) => drop(timeout(span, scanner.news()).await),
            None => sleep(span).await,
        }
    }

    async fn stay_healthy(&self) {
        let interval = self.service.health_interval;
        let (mut failures, mut next) = (0u32, interval);
        loop {
            sleep(next).await;
            let begun = Instant::now();
            let wrong = self.first_wrong().await;
            failures = if wrong.is_some() { failures.saturating_add(1) } else { 0 };
            next = if wrong.is_some() { interval.min(LOOK_AGAIN) } else { interval };
            let health = Health {
                ok: wrong.is_none(),
                at: Timestamp::now(),
                latency_ms: begun.elapsed().as_millis() as u64,
                why: wrong,
            };
            let decides = health.ok || failures >= FAILURES;
            let _ = self.driver.send(Told::Health(health, decides));
        }
    }

    async fn first_wrong(&self) -> Option<String> {
        for check in &self.service.health {
            if let Err(NotYet { why, .. }) = self.ask(check).await {
                return Some(why);
            }
        }
        None
    }

    async fn ask(&self, check: &Check) -> Result<(), NotYet> {
        match check {
            Check::Log(pattern) => match self.scanner.as_ref().is_some_and(|it| it.has_seen(pattern)) {
                true => Ok(()),
                // What passes wakes us.
                false => {
                    Err(NotYet { why: format!("no line is like '{check}'"), again: Duration::from_secs(1) })
                }
            },
            Check::Port => self.listeners().map(drop),
            Check::Http { path, status } => {
                let places = self.listeners()?;
                self.in_time(probe::http(&places, path, *status)).await
            }
            Check::Ws { path } => {
                let places = self.listeners()?;
                self.in_time(probe::websocket(&places, path)).await
            }
            Check::Cmd(command) => self.command(command).await,
        }
    }

    /// Returns where processes of the tree listen on the port.
    fn listeners(&self) -> Result<Vec<SocketAddr>, NotYet> {
        let Some(port) = self.place.port else { return Err(NotYet::soon("it has no port")) };
        let found = sockets::list(&[State::Listening], Some(port)).map_err(|error| NotYet {
            why: format!("the kernel cannot be asked: {error}"),
            again: LOOK_RARELY,
        })?;
        if found.is_empty() {
            return Err(NotYet::soon(format!("nothing listens on port {port}")));
        }
        let ours = self.ours(&found);
        let places: Vec<SocketAddr> = found
            .iter()
            .filter(|socket| ours.contains(&socket.inode))
            .flat_map(Socket::reachable_at)
            .collect();
        if places.is_empty() {
            let why = format!("whoever listens on port {port} is not of this run");
            return Err(NotYet { why, again: LOOK_RARELY });
        }
        Ok(places)
    }

    /// Returns which of `found` processes of the tree have: who was in the run's cgroup when it made the socket, who has it
    /// open. Of one that does not let us see what it has open (it has other rights than we), the user must do.
    fn ours(&self, found: &[Socket]) -> HashSet<u32> {
        let made_here = |socket: &&Socket| self.place.leaf.is_some() && socket.cgroup == self.place.leaf;
        let mut ours: HashSet<u32> = found.iter().filter(made_here).map(|socket| socket.inode).collect();
        let inodes: HashSet<u32> = found.iter().map(|socket| socket.inode).collect();
        let mut closed: HashSet<u32> = HashSet::new();
        tree::walk(&mut |member| {
            if ours.len() == inodes.len() {
                return Descend::No;
            }
            ours.extend(descriptors::held_by(member.stat.pid, Descriptor::Socket, &inodes));
            closed.extend(descriptors::user_of_closed(member.stat.pid));
            Descend::Yes
        });
        if ours.is_empty() {
            ours.extend(found.iter().filter(|it| closed.contains(&it.uid)).map(|socket| socket.inode));
        }
        ours
    }

    async fn command(&self, command: &str) -> Result<(), NotYet> {
        let begun = Instant::now();
        // It may take half of the time, not more.
        let failed = |why: String| NotYet { why, again: begun.elapsed().max(LOOK_EVERY) };
        let (started, answer) = oneshot::channel();
        let _ = self.driver.send(Told::Start(command.to_owned(), started));
        let Ok((pid, ended)) = answer.await else {
            return Err(NotYet { why: format!("'{command}' could not be started"), again: LOOK_AGAIN });
        };
        match timeout(probe::PATIENCE, ended).await {
            Ok(Ok(Ended::Exited(0))) => Ok(()),
            Ok(Ok(Ended::Exited(code))) => Err(failed(format!("'{command}' returns {code}"))),
            Ok(Ok(Ended::Signaled(signal))) => Err(failed(format!("'{command}' died of {signal}"))),
            Ok(Err(_)) => Err(failed(format!("'{command}' was lost"))),
            Err(_) => {
                let _ = self.driver.send(Told::Kill(pid));
                Err(failed(format!("'{command}' takes more than {} s", probe::PATIENCE.as_secs())))
            }
        }
    }

    async fn in_time(&self, answer: impl Future<Output = Result<(), String>>) -> Result<(), NotYet> {
        let answer = timeout(probe::PATIENCE, answer).await;
        let late = || Err(format!("it does not answer within {} s", probe::PATIENCE.as_secs()));
        // A server that answers, and not well, is not asked a hundred times a second for long.
        let again = (self.begun.elapsed() / 100).clamp(LOOK_EVERY, SLOWEST_LOOK);
        answer.unwrap_or_else(|_| late()).map_err(|why| NotYet { why, again })
    }
}
