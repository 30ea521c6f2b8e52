//! What guard and supervisor tell each other, one packet a message. The channel's end is the other
//! one's death.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::exit::Ending;
use crate::run::RunId;
use crate::sys::clock::BootTime;
use crate::sys::net::{Packets, Received};
use crate::sys::process::Pid;
use crate::sys::signal::Signal;

/// From the supervisor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToGuard {
    /// The command runs.
    Spawned {
        /// Its leader.
        leader: Pid,
        /// The init of its pid namespace.
        init: Option<Pid>,
        /// When the lease ends.
        deadline: Option<BootTime>,
    },
    /// The lease was renewed.
    Deadline(Option<BootTime>),
    /// The leader was stopped, by this signal.
    LeaderStopped(Signal),
    /// The teardown has begun; it is over within this time.
    Ending {
        /// Grace and the time for SIGKILL.
        within: Duration,
    },
    /// The leader has ended, others live; the terminal is the guard's again.
    LeaderEnded {
        /// The signal that it died of before any teardown had begun.
        by_itself: Option<Signal>,
    },
    /// Nothing of the tree is left; what remains to be done may take its time.
    Finishing,
    /// All is given back; the supervisor exits.
    Over {
        /// How to end.
        ending: Ending,
        /// What the person is told.
        message: Option<String>,
        /// As in `LeaderEnded`.
        by_itself: Option<Signal>,
        /// Whether the terminal's modes are put back: the leader could not do it itself.
        restore_modes: bool,
    },
}

/// What whoever launches a run hears of it, one line a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToLauncher {
    /// The command has been started.
    Started(RunId),
    /// Nothing was, and nothing is left.
    Failed {
        /// What `agent-run` returns for it.
        code: u8,
        /// Why.
        message: String,
    },
    /// Another run was faster to take the name.
    NameTaken {
        /// The name.
        name: String,
        /// That run.
        holder: RunId,
    },
}

impl ToLauncher {
    /// Writes it; whoever wanted to know may have gone.
    pub fn send(&self, mut to: &File) {
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        let _ = to.write_all(&line);
    }

    /// Reads it; `None` if who should have written it died first.
    pub fn receive(from: impl Read) -> Option<ToLauncher> {
        let mut line = String::new();
        BufReader::new(from).read_line(&mut line).ok()?;
        serde_json::from_str(&line).ok()
    }
}

/// From the guard.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToSupervisor {
    /// A signal asked for the end.
    Signal(Signal),
    /// A signal for the leader alone.
    ForwardToLeader(Signal),
    /// A signal for the leader's process group, as the terminal would send it.
    ForwardToGroup(Signal),
    /// The leader may go on.
    Continue,
}

/// One end of the channel.
#[derive(Debug)]
pub struct Link(pub Packets);

/// What [`Link::receive`] found.
#[derive(Debug, PartialEq)]
pub enum Heard<T> {
    /// A message.
    Message(T),
    /// Nothing yet.
    Nothing,
    /// The other one is dead.
    Closed,
}

impl Link {
    /// Creates both ends.
    pub fn pair() -> std::io::Result<(Link, Link)> {
        let (one, other) = Packets::pair()?;
        Ok((Link(one), Link(other)))
    }

    /// Sends `message`. That the other one is dead, reading tells.
    pub fn send<T: Serialize>(&self, message: &T) {
        let text = serde_json::to_vec(message).unwrap_or_default();
        // The queue holds hundreds of these and the other side reads at once; if it is stopped so long
        // that the queue is full, the message is not worth blocking for.
        let _ = self.0.send(&text);
    }

    /// Takes a message, without waiting.
    pub fn receive<T: for<'de> Deserialize<'de>>(&self) -> Heard<T> {
        match self.0.receive() {
            Received::Closed => Heard::Closed,
            Received::Nothing => Heard::Nothing,
            Received::Message(text) => match serde_json::from_slice(&text) {
                Ok(message) => Heard::Message(message),
                // Both ends are one program, so this cannot come; the end is the safe reading.
                Err(_) => Heard::Closed,
            },
        }
    }
}
