//! How a run ended, and the number that `agent-run` returns for it.

use serde::{Deserialize, Serialize};

use crate::sys::children::Ended;
use crate::sys::signal::Signal;

/// The lease or the idle time ended the run (as timeout(1)).
pub const TIMED_OUT: u8 = 124;
/// `agent-run` itself failed or was called wrongly in the run form.
pub const OWN_FAILURE: u8 = 125;
/// The command was found but could not be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// The command was not found.
pub const NOT_FOUND: u8 = 127;
/// 128 + N: killed by signal N.
pub const SIGNAL_BASE: u8 = 128;
/// A verb was called wrongly.
pub const USAGE: u8 = 2;
/// Something remains, and it is listed.
pub const SOMETHING_REMAINS: u8 = 1;
/// `status`: the run is dead and has left something.
pub const DEAD_WITH_REMAINS: u8 = 1;
/// `status`: the run is not running.
pub const NOT_RUNNING: u8 = 3;
/// No such run.
pub const UNKNOWN_RUN: u8 = 4;

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The leader exited by itself.
    Exit,
    /// The leader died of a signal, or one was sent to `agent-run`.
    Signal,
    /// The lease ended.
    Ttl,
    /// Nothing happened for the idle time.
    Idle,
    /// Somebody asked for it.
    Stop,
    /// Somebody wanted its port or its name.
    Displaced,
    /// The owner has gone.
    OwnerGone,
    /// The soft limit of CPU time was used up.
    CpuTime,
    /// The tree had more memory than it may have.
    Memory,
    /// The tree had more processes than it may have.
    Pids,
    /// It did not get ready in time.
    ReadyTimeout,
    /// It did not answer as it should.
    Unhealthy,
    /// Guard or supervisor was killed; the other one ended the run.
    SupervisorLost,
    /// The command could not be started.
    LaunchFailed,
}

impl Reason {
    /// Returns the word that stands in records and messages.
    pub fn word(self) -> &'static str {
        match self {
            Reason::Exit => "exit",
            Reason::Signal => "signal",
            Reason::Ttl => "ttl",
            Reason::Idle => "idle",
            Reason::Stop => "stop",
            Reason::Displaced => "displaced",
            Reason::OwnerGone => "owner_gone",
            Reason::CpuTime => "cpu_time",
            Reason::Memory => "memory",
            Reason::Pids => "pids",
            Reason::ReadyTimeout => "ready_timeout",
            Reason::Unhealthy => "unhealthy",
            Reason::SupervisorLost => "supervisor_lost",
            Reason::LaunchFailed => "launch_failed",
        }
    }
}

/// How `agent-run` has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// With this code.
    Code(u8),
    /// Of this signal, so that a shell's list or loop stops too.
    DieOf(Signal),
}

impl Ending {
    /// Returns the code as a shell shows it.
    pub fn code(self) -> u8 {
        match self {
            Ending::Code(code) => code,
            Ending::DieOf(signal) => SIGNAL_BASE + signal.number() as u8,
        }
    }
}

/// What is known when the teardown is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Why the run ended.
    pub reason: Reason,
    /// How the leader ended, if it did.
    pub leader: Option<Ended>,
    /// Whether nothing of the tree was left.
    pub verified: bool,
    /// `--preserve-status`: the lease and the idle time leave the leader's own code.
    pub preserve_status: bool,
}

/// Returns how `agent-run` has to end. The table of DESIGN.md, "Exit codes".
pub fn ending(facts: &Facts) -> Ending {
    let Some(leader) = facts.leader.filter(|_| facts.verified) else {
        return Ending::Code(OWN_FAILURE);
    };
    match facts.reason {
        Reason::SupervisorLost | Reason::LaunchFailed => Ending::Code(OWN_FAILURE),
        // As the kernel does it, whatever the leader made of what it was refused.
        Reason::Memory | Reason::Pids => Ending::Code(SIGNAL_BASE + Signal::KILL.number() as u8),
        Reason::Ttl | Reason::Idle | Reason::ReadyTimeout if !facts.preserve_status => {
            Ending::Code(TIMED_OUT)
        }
        _ => mirror(leader),
    }
}

/// Returns how to end as `leader` did.
pub fn mirror(leader: Ended) -> Ending {
    match leader {
        // The kernel gives eight bits.
        Ended::Exited(code) => Ending::Code(code as u8),
        Ended::Signaled(signal) if signal.is_mirrored() => Ending::DieOf(signal),
        Ended::Signaled(signal) => Ending::Code(SIGNAL_BASE + signal.number() as u8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_exit_codes() {
        use Ended::{Exited, Signaled};
        let segv = Signal::parse("SEGV").unwrap();
        let table = [
            (Reason::Exit, Some(Exited(0)), Ending::Code(0)),
            (Reason::Exit, Some(Exited(3)), Ending::Code(3)),
            (Reason::Signal, Some(Signaled(Signal::INT)), Ending::DieOf(Signal::INT)),
            (Reason::Signal, Some(Signaled(Signal::HUP)), Ending::DieOf(Signal::HUP)),
            (Reason::Signal, Some(Signaled(segv)), Ending::Code(139)),
            (Reason::Signal, Some(Exited(0)), Ending::Code(0)),
            (Reason::Ttl, Some(Signaled(Signal::TERM)), Ending::Code(124)),
            (Reason::Idle, Some(Exited(0)), Ending::Code(124)),
            (Reason::Stop, Some(Exited(0)), Ending::Code(0)),
            (Reason::Stop, Some(Signaled(Signal::TERM)), Ending::DieOf(Signal::TERM)),
            (Reason::Stop, Some(Signaled(Signal::KILL)), Ending::Code(137)),
            (Reason::Displaced, Some(Signaled(Signal::KILL)), Ending::Code(137)),
            (Reason::CpuTime, Some(Signaled(Signal::XCPU)), Ending::Code(152)),
            (Reason::SupervisorLost, Some(Exited(0)), Ending::Code(125)),
            (Reason::Memory, Some(Signaled(Signal::TERM)), Ending::Code(137)),
            (Reason::Pids, Some(Exited(101)), Ending::Code(137)),
            (Reason::OwnerGone, Some(Signaled(Signal::KILL)), Ending::Code(137)),
            (Reason::Exit, None, Ending::Code(125)),
        ];
        for (reason, leader, expected) in table {
            let facts = Facts { reason, leader, verified: true, preserve_status: false };
            assert_eq!(ending(&facts), expected, "{reason:?} {leader:?}");
            let unproved = Facts { verified: false, ..facts };
            assert_eq!(ending(&unproved), Ending::Code(125), "{reason:?} {leader:?} not verified");
        }
    }

    #[test]
    fn preserve_status_keeps_the_leaders_code() {
        let facts =
            |reason, leader| Facts { reason, leader: Some(leader), verified: true, preserve_status: true };
        assert_eq!(ending(&facts(Reason::Ttl, Ended::Exited(7))), Ending::Code(7));
        let term = Ended::Signaled(Signal::TERM);
        assert_eq!(ending(&facts(Reason::Idle, term)), Ending::DieOf(Signal::TERM));
    }

    #[test]
    fn words_are_those_of_the_record() {
        for reason in
            [Reason::Ttl, Reason::OwnerGone, Reason::SupervisorLost, Reason::LaunchFailed, Reason::CpuTime]
        {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.word());
        }
    }
}
