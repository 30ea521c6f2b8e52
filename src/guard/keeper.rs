//! The terminal's keeper: who has it, and when it moves.
//!
//! The leader takes it itself just before its exec, if the guard's group has it and a person sits there;
//! every later move is made here. What a shell does for its jobs, this does for the leader, with one
//! difference: when the leader stops, we stop too, so that the shell above sees its job stop.

use std::os::fd::{AsFd, BorrowedFd};

use crate::sys::process::Pid;
use crate::sys::signal::Signal;
use crate::sys::tty::{self, Modes, Terminal};

/// The controlling terminal, as the guard looks after it.
#[derive(Debug)]
pub struct Keeper {
    terminal: Terminal,
    own_group: Pid,
    /// As the caller had them.
    modes: Option<Modes>,
    /// As the leader had them when it was stopped.
    leaders_modes: Option<Modes>,
    /// A person sat in front of us when we started, and we were what they looked at.
    at_once: bool,
    leader: Option<Pid>,
    /// The leader, or a job of its own, has the terminal because we gave it.
    held_by_leader: bool,
    /// The leader gets it when we are in the foreground again.
    wanted: bool,
    /// The leader had it when we took it for the last time.
    taken_from_leader: bool,
}

/// What to do about a leader that was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reaction {
    /// It may go on.
    Continue,
    /// We stop too, and all of our group: what a key at the terminal does without us.
    StopGroup,
    /// We alone stop: somebody sent it SIGSTOP, which says nothing of our group.
    StopAlone,
    /// It stays stopped.
    Nothing,
}

impl Keeper {
    /// Opens the terminal; `None` if the session has none. To be called while stdin and stdout are the
    /// caller's.
    pub fn open() -> Option<Keeper> {
        let terminal = Terminal::open()?;
        let modes = terminal.modes();
        let own_group = tty::own_group();
        let at_once = tty::is_interactive() && terminal.foreground() == Some(own_group);
        Some(Keeper {
            terminal,
            own_group,
            modes,
            leaders_modes: None,
            at_once,
            leader: None,
            held_by_leader: false,
            wanted: false,
            taken_from_leader: false,
        })
    }

    /// Returns whether the leader gets the terminal at once: a person sits in front of it, and we are
    /// what the person looks at. In a pipeline it waits until the leader asks for it by reading.
    pub fn gives_at_once(&self) -> bool {
        self.at_once
    }

    /// Returns the modes as the caller had them.
    pub fn callers_modes(&self) -> Option<Modes> {
        self.modes.clone()
    }

    /// Gives the terminal's descriptor up, for the supervisor.
    pub fn into_terminal(self) -> Terminal {
        self.terminal
    }

    fn has_it(&self) -> bool {
        self.terminal.foreground() == Some(self.own_group)
    }

    fn leader_has_it(&self) -> bool {
        self.leader.is_some() && self.terminal.foreground() == self.leader
    }

    pub(super) fn leader_started(&mut self, leader: Pid) {
        self.leader = Some(leader);
        // It may have given it to a job of its own already.
        self.held_by_leader = self.at_once && !self.has_it();
    }

    /// Returns whether the leader had the terminal until we took it.
    pub(super) fn leader_had_terminal(&self) -> bool {
        self.held_by_leader || self.taken_from_leader
    }

    pub(super) fn leader_stopped(&mut self, signal: Signal) -> Reaction {
        let wants_terminal = [Signal::TTIN, Signal::TTOU].contains(&signal);
        if wants_terminal && (self.has_it() || self.leader_has_it()) {
            self.give();
            return Reaction::Continue;
        }
        if wants_terminal {
            self.wanted = true;
            return Reaction::StopGroup;
        }
        let held = self.held_by_leader;
        self.suspend();
        match signal {
            Signal::TSTP => Reaction::StopGroup,
            _ if held => Reaction::StopAlone,
            _ => Reaction::Nothing,
        }
    }

    /// Takes the terminal for the time that the leader is stopped.
    fn suspend(&mut self) {
        if self.held_by_leader && self.leader_has_it() {
            self.leaders_modes = self.terminal.modes();
            // A shell that does not put the modes right itself (dash) must not get those of an editor.
            self.put_modes_right();
            let _ = self.terminal.give_to(self.own_group);
        }
        self.wanted |= self.held_by_leader;
        self.held_by_leader = false;
    }

    /// We go on: in the foreground with the terminal for the leader, in the background without. Returns
    /// whether the leader has it now.
    pub(super) fn resumed(&mut self) -> bool {
        if self.wanted && self.has_it() {
            self.give();
            if let Some(modes) = self.leaders_modes.take() {
                self.terminal.set_modes(&modes);
            }
        }
        self.held_by_leader
    }

    fn give(&mut self) {
        if let Some(leader) = self.leader {
            // Refused if the leader is gone: its end is on its way to us.
            self.held_by_leader = self.terminal.give_to(leader).is_ok();
            self.wanted = false;
        }
    }

    /// Gives the terminal back to a leader that it was taken from for the teardown; false if it is not ours to give.
    pub(super) fn lend(&mut self) -> bool {
        if self.taken_from_leader && self.has_it() {
            self.give();
        }
        self.held_by_leader
    }

    /// Takes the terminal from the leader, or from a job of its own that it left in front. Only what we gave
    /// is taken: while our job is in the background, the terminal is the shell's.
    pub(super) fn take_back(&mut self) {
        self.taken_from_leader |= self.held_by_leader;
        if self.held_by_leader && !self.has_it() {
            let _ = self.terminal.give_to(self.own_group);
        }
        self.held_by_leader = false;
    }

    /// Puts the modes back as the caller had them, if the leader had the terminal and it is ours again.
    pub(super) fn restore_modes(&self) {
        if self.taken_from_leader && self.has_it() {
            self.put_modes_right();
        }
    }

    fn put_modes_right(&self) {
        if let Some(modes) = &self.modes {
            self.terminal.set_modes(modes);
        }
    }
}

impl AsFd for Keeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.terminal.as_fd()
    }
}
