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
use crate::sys::sockets::{self, State};
use crate::sys::tree::{self, Descend};

const LOOK_EVERY: Duration = Duration::from_millis(15);
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
    /// All that makes it ready is true.
    Ready,
    /// Why it is not ready yet.
    Pending(String),
    /// The last look at its health, and whether it is the one that decides.
    Health(Health, bool),
    /// Start this command; the answer says which process it is and tells of its end.
    Start(String, oneshot::Sender<(Pid, oneshot::Receiver<Ended>)>),
    /// End this one.
    Kill(Pid),
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
        port: Option<u16>,
        scanner: Option<Scanner>,
        driver: mpsc::UnboundedSender<Told>,
    ) -> Checker {
        let watch = Watch { service, port, scanner, driver };
        Checker(tokio::spawn(watch.run()))
    }
}

struct Watch {
    service: Service,
    port: Option<u16>,
    scanner: Option<Scanner>,
    driver: mpsc::UnboundedSender<Told>,
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
        let _ = self.driver.send(Told::Ready);
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
                in_time(probe::http(&places, path, *status)).await
            }
            Check::Ws { path } => {
                let places = self.listeners()?;
                in_time(probe::websocket(&places, path)).await
            }
            Check::Cmd(command) => self.command(command).await,
        }
    }

    /// Returns where processes of the tree listen on the port.
    fn listeners(&self) -> Result<Vec<SocketAddr>, NotYet> {
        let Some(port) = self.port else { return Err(NotYet::soon("it has no port")) };
        let found = sockets::list(&[State::Listening], Some(port)).map_err(|error| NotYet {
            why: format!("the kernel cannot be asked: {error}"),
            again: LOOK_RARELY,
        })?;
        if found.is_empty() {
            return Err(NotYet::soon(format!("nothing listens on port {port}")));
        }
        let inodes: HashSet<u32> = found.iter().map(|socket| socket.inode).collect();
        let mut ours = HashSet::new();
        tree::walk(&mut |member| {
            ours.extend(descriptors::held_by(member.stat.pid, Descriptor::Socket, &inodes));
            if ours.len() < inodes.len() { Descend::Yes } else { Descend::No }
        });
        let places: Vec<SocketAddr> = found
            .iter()
            .filter(|socket| ours.contains(&socket.inode))
            .map(|socket| probe::reachable(socket.local))
            .collect();
        if places.is_empty() {
            let why = format!("whoever listens on port {port} is not of this run");
            return Err(NotYet { why, again: LOOK_RARELY });
        }
        Ok(places)
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
}

async fn in_time(answer: impl Future<Output = Result<(), String>>) -> Result<(), NotYet> {
    match timeout(probe::PATIENCE, answer).await {
        Ok(result) => result.map_err(NotYet::soon),
        Err(_) => Err(NotYet::soon(format!("it does not answer within {} s", probe::PATIENCE.as_secs()))),
    }
}
