//! What the driver does for a command that serves: it hears the checker, and starts the command again.

use std::fs::File;
use std::io;
use std::time::Duration;

use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use super::checker::{Checker, Place, Told};
use super::driver::Driver;
use super::machine::Event;
use super::meter::Meter;
use super::relay::CommandEnds;
use super::start::{self, LaunchFailure};
use crate::control::Answer;
use crate::control::link::ToGuard;
use crate::exit::Reason;
use crate::lease::format_duration;
use crate::limits::format_size;
use crate::ports::ClaimMode;
use crate::registry::record::{Health, State, Timestamp};
use crate::run::Isolation;
use crate::sys::cgroup::Leaf;
use crate::sys::children::Ended;
use crate::sys::clock::BootTime;
use crate::sys::leader;
use crate::sys::process::{self, Pid, ProcessRef};
use crate::sys::signal::Signal;
use crate::sys::tcp::Reservation;

/// A started probe, and how it will have ended.
type Started = (Pid, oneshot::Receiver<Ended>);

impl Driver {
    /// Begins to look whether the command is ready.
    pub(super) fn check(&mut self) {
        // Whether a session is ready, who talks with it knows.
        let waits = self.spec.session.is_none() && self.spec.gets_ready() && self.machine.is_running();
        let leaf = self.tree.leaf().and_then(Leaf::id);
        let port = self.run.record.ports.first().copied();
        self.checker = waits.then(|| {
            let scanner = self.outputs.scanner.clone();
            // Its own channel: what the one before has said is nothing any more.
            let (tell, told) = mpsc::unbounded_channel();
            self.told = told;
            Checker::start(self.spec.service.clone(), Place { port, leaf }, scanner, tell)
        });
    }

    /// Takes in what the checker says; what it said of a command that has ended since is nothing any more.
    pub(super) fn hear(&mut self, told: Told) {
        if self.checker.is_none() || !self.machine.is_running() {
            // What is begun now would not be ended with the rest.
            return;
        }
        match told {
            Told::Start(command, answer) => drop(self.start_probe(&command).map(|it| answer.send(it))),
            Told::Kill(pid) => self.kill_probe(pid),
            Told::Ready(place) => {
                (self.run.record.ready_at, self.run.record.trouble) = (Some(Timestamp::now()), None);
                self.run.record.host = place.map(|place| place.ip().to_string());
                self.take_in(Event::Ready);
            }
            Told::Pending(why) => {
                self.run.record.trouble = Some(why);
                self.save();
            }
            Told::Health(health, decides) => self.note_health(health, decides),
        }
    }

    fn note_health(&mut self, health: Health, decides: bool) {
        let ok = health.ok;
        self.run.record.trouble = health.why.clone();
        self.run.record.health = Some(health);
        self.save();
        if decides {
            self.take_in(Event::Health(ok));
        }
    }

    /// Enters the state that has just begun.
    pub(super) fn enter_state(&mut self) {
        let state = self.machine.state();
        self.run.record.state = state;
        self.save();
        let more = json!({ "port": self.run.record.ports.first(), "why": self.run.record.trouble });
        match state {
            State::Ready | State::Unhealthy => self.events.write(state.word(), &self.run.record, more),
            _ => {}
        }
    }

    /// Nothing of it lives: tidies up until it is started again.
    pub(super) fn enter_pause(&mut self) {
        self.checker = None;
        self.outputs.finish(Duration::from_secs(1));
        self.tell_why();
        self.tree.clear();
        self.probes.clear();
        self.exceeded = None;
        self.take_released_ports();
        self.run.record.leader = None;
        (self.run.record.ready_at, self.run.record.health) = (None, None);
        self.enter_state();
        let more = json!({ "why": self.run.record.trouble });
        self.events.write("restarting", &self.run.record, more);
        // The guard takes a teardown that lasts so long for hung.
        self.link.send(&ToGuard::Deadline(self.machine.lease().map(|lease| lease.deadline())));
    }

    /// Enters why the command is started again, and puts it into its log between its lives.
    fn tell_why(&mut self) {
        let Some((reason, pause)) = self.machine.pause(BootTime::now()) else { return };
        let trouble = || self.run.record.trouble.clone().map_or(String::new(), |why| format!(": {why}"));
        let figures = self.exceeded.as_ref();
        let why = match (reason, self.tree.leader_ended()) {
            (Reason::Stop, _) => "a restart was asked for".to_owned(),
            (Reason::ReadyTimeout, _) => format!("it did not get ready in time{}", trouble()),
            (Reason::Unhealthy, _) => format!("it was unhealthy{}", trouble()),
            (Reason::LaunchFailed, _) => format!("it could not be started{}", trouble()),
            (Reason::Memory, _) => {
                let size = |bytes: Option<u64>| format_size(bytes.unwrap_or_default());
                let (peak, limit) = (size(figures.map(|it| it.peak)), size(figures.map(|it| it.limit)));
                format!("it had {peak} of memory, more than the {limit} of --memory")
            }
            (Reason::Pids, _) => {
                format!("it had more processes than the {} of --pids", figures.map_or(0, |it| it.limit))
            }
            (_, Some(Ended::Exited(code))) => format!("it ended with code {code}"),
            (_, Some(Ended::Signaled(signal))) => format!("it died of {signal}"),
            (reason, None) => reason.word().to_owned(),
        };
        self.outputs.remark(&format!("{why}; it is started again in {}", format_duration(pause)));
        self.run.record.restarted_for = Some(why.clone());
        self.run.record.trouble = Some(why);
    }

    /// What was let go for the command is held until it comes again.
    fn take_released_ports(&mut self) {
        if self.claims.mode == ClaimMode::Release {
            let ports = &self.run.record.ports;
            // Whoever was faster has it; the command will say so.
            self.claims.ports = ports.iter().filter_map(|port| Reservation::take(*port).ok()).collect();
        }
    }

    /// Starts the command again, as it was started before.
    pub(super) fn start_again(&mut self) {
        match self.start_leader() {
            Ok(leader) => self.began_again(leader),
            Err(LaunchFailure { message, code }) => {
                self.outputs.finish(Duration::ZERO);
                self.run.record.trouble = Some(message);
                self.take_in(Event::StartFailed(code));
            }
        }
    }

    fn start_leader(&mut self) -> Result<Pid, LaunchFailure> {
        let ends = self.outputs.open().map_err(LaunchFailure::own("cannot pass the output on"))?;
        let mut setup = self.setup(ends).map_err(LaunchFailure::own("cannot open the cgroup"))?;
        setup.tree_lock =
            Some(self.run.tree_lock().map_err(LaunchFailure::own("cannot make the tree lock"))?);
        if self.claims.mode == ClaimMode::Release {
            self.claims.ports.clear();
        }
        let program = start::program(&self.spec, &self.run);
        let program = program.map_err(|error| start::not_executed(&self.spec, &error))?;
        leader::start(&program, &setup).map_err(|error| start::not_started(&self.spec, &error))
    }

    fn setup(&mut self, ends: Option<CommandEnds>) -> io::Result<leader::LeaderSetup> {
        let entrance = self.tree.leaf().map(|leaf: &Leaf| leaf.entrance(self.limited)).transpose()?;
        start::leader_setup(&self.spec, &mut self.run, None, entrance, &self.claims, ends)
    }

    fn began_again(&mut self, leader: Pid) {
        self.leader = leader;
        self.tree.grow(leader);
        let now = BootTime::now();
        let leaf = self.tree.leaf();
        self.meter.iter_mut().for_each(|meter: &mut Meter| meter.begin_again(leaf, now));
        let deadline = self.machine.lease().map(|lease| lease.deadline());
        self.link.send(&ToGuard::Spawned { leader, init: None, deadline });
        self.run.record.leader = ProcessRef::of_own(leader);
        self.run.record.restarts += 1;
        let more = json!({ "leader": self.run.record.leader, "command": self.run.record.command });
        self.events.write("started", &self.run.record, more);
        self.take_in(Event::Started);
        self.check();
        // It may have ended before anybody looked.
        self.look_at_children();
    }

    /// Somebody wants it to be started again.
    pub(super) fn restart(&mut self, grace: Option<Duration>) -> Answer {
        let refused = |message: &str| Answer::Refused { message: message.to_owned() };
        if !self.machine.goes_on() {
            return refused("the run is ending");
        }
        if !self.spec.background {
            return refused("it runs in the foreground, where it is for its caller to start it again");
        }
        if self.spec.isolation == Isolation::Pid {
            return refused("a pid namespace ends with what it was made for; stop it and start it anew");
        }
        self.take_in(Event::Restart { grace });
        Answer::Done
    }

    fn start_probe(&mut self, command: &str) -> Option<Started> {
        let null = || File::options().write(true).open("/dev/null");
        let ends = CommandEnds { stdin: None, stdout: null().ok()?.into(), stderr: null().ok()?.into() };
        let setup = leader::LeaderSetup { sockets: Vec::new(), ..self.setup(Some(ends)).ok()? };
        let program = start::shell(command, &self.spec, &self.run).ok()?;
        let pid = leader::start(&program, &setup).ok()?;
        let (tell, ended) = oneshot::channel();
        self.probes.insert(pid, tell);
        Some((pid, ended))
    }

    fn kill_probe(&mut self, pid: Pid) {
        // Still ours: it is reaped by us, and then it is not among them any more.
        if self.probes.contains_key(&pid) {
            let _ = process::signal_group_of_own_child(pid, Signal::KILL);
        }
    }

    /// Passes on the ends of those that were probes.
    pub(super) fn tell_probes(&mut self, reaped: &[(Pid, Ended)]) {
        for (pid, ended) in reaped {
            if let Some(tell) = self.probes.remove(pid) {
                // Whoever asked may have lost patience.
                let _ = tell.send(*ended);
            }
        }
    }
}
