//! Steps at which a test can have a signal come: `AGENT_RUN_FAULT=supervisor:7:KILL` sends SIGKILL to the
//! supervisor at its seventh step. Debug builds alone know it; in a release build nothing of this is left.

#[cfg(debug_assertions)]
use std::cell::{Cell, OnceCell};

#[cfg(debug_assertions)]
use super::signal::Signal;

#[cfg(debug_assertions)]
thread_local! {
    static ROLE: Cell<&'static str> = const { Cell::new("guard") };
    static STEPS: Cell<u32> = const { Cell::new(0) };
    static WANTED: OnceCell<Option<(String, u32, Signal)>> = const { OnceCell::new() };
}

/// Names what this process is from now on; its steps are counted anew.
pub fn become_role(role: &'static str) {
    #[cfg(debug_assertions)]
    {
        ROLE.set(role);
        STEPS.set(0);
    }
    let _ = role;
}

/// A step: between two of these, what is on disk or in the kernel has changed.
pub fn step() {
    #[cfg(debug_assertions)]
    {
        STEPS.set(STEPS.get() + 1);
        let signal = WANTED.with(|known| {
            let (role, step, signal) = known.get_or_init(wanted).as_ref()?;
            (*role == ROLE.get() && *step == STEPS.get()).then_some(*signal)
        });
        if let Some(signal) = signal {
            let _ = super::process::signal_own_child(super::process::own_pid(), signal);
        }
    }
}

#[cfg(debug_assertions)]
fn wanted() -> Option<(String, u32, Signal)> {
    let text = std::env::var(FAULT).ok()?;
    let mut parts = text.split(':');
    let (role, step, signal) = (parts.next()?, parts.next()?, parts.next()?);
    Some((role.to_owned(), step.parse().ok()?, Signal::parse(signal).ok()?))
}

/// Read in debug builds: who gets which signal at which step.
#[cfg(debug_assertions)]
const FAULT: &str = "AGENT_RUN_FAULT";
