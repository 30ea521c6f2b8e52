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
    leader: Option<Pid>,
    /// The leader has the terminal, or gets it back when it goes on.
    given: bool,
    /// The leader had it when it was last asked after.
    leader_had_it: bool,
}

/// What to do about a leader that was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reaction {
    /// It may go on.
    Continue,
    /// We stop too.
    StopToo,
}

impl Keeper {
    /// Opens the terminal; `None` if the session has none.
    pub fn open() -> Option<Keeper> {
        let terminal = Terminal::open()?;
        let modes = terminal.modes();
        let own_group = tty::own_group();
        Some(Keeper {
            terminal,
            own_group,
            modes,
            leaders_modes: None,
            leader: None,
            given: false,
            leader_had_it: false,
        })
    }

    /// Returns whether the leader gets the terminal at once: a person sits in front of it, and we are
    /// what the person looks at. In a pipeline it waits until the leader asks for it by reading.
    pub fn gives_at_once(&self) -> bool {
        tty::is_interactive() && self.has_it()
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

    pub(super) fn leader_started(&mut self, leader: Pid) {
        self.leader = Some(leader);
        self.given = self.gives_at_once() || self.leader_has_it();
        self.leader_had_it = self.given;
    }

    fn leader_has_it(&self) -> bool {
        self.leader.is_some() && self.terminal.foreground() == self.leader
    }

    /// Returns whether the leader had the terminal until we took it back.
    pub(super) fn leader_had_terminal(&self) -> bool {
        self.leader_had_it
    }

    pub(super) fn leader_stopped(&mut self, signal: Signal) -> Reaction {
        let wants_terminal = [Signal::TTIN, Signal::TTOU].contains(&signal);
        if wants_terminal && (self.has_it() || self.leader_has_it()) {
            self.give();
            return Reaction::Continue;
        }
        if self.leader_has_it() {
            self.leaders_modes = self.terminal.modes();
            // A shell that does not put the modes right itself (dash) must not get those of an editor.
            self.restore_modes();
            let _ = self.terminal.give_to(self.own_group);
        }
        // Whoever stopped for want of the terminal gets it when we are in the foreground again.
        self.given |= wants_terminal;
        Reaction::StopToo
    }

    /// We go on: in the foreground with the terminal for the leader, in the background without.
    pub(super) fn resumed(&mut self) {
        if self.given && self.has_it() {
            self.give();
            if let Some(modes) = self.leaders_modes.take() {
                self.terminal.set_modes(&modes);
            }
        }
    }

    fn give(&mut self) {
        if let Some(leader) = self.leader {
            // Refused if the leader is gone: its end is on its way to us.
            self.given = self.terminal.give_to(leader).is_ok();
            self.leader_had_it = self.given;
        }
    }

    /// Takes the terminal back from the leader, or from a job of its own that it left in front. Only what
    /// we gave is taken.
    pub(super) fn take_back(&mut self) {
        if self.given && self.terminal.foreground().is_some_and(|group| group != self.own_group) {
            let _ = self.terminal.give_to(self.own_group);
        }
        self.given = false;
    }

    /// Puts the modes back as the caller had them.
    pub(super) fn restore_modes(&self) {
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
