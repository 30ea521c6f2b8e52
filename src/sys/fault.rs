//! Steps at which a test can have a process of ours killed: `AGENT_RUN_FAULT=supervisor:7` sends SIGKILL to the
//! supervisor at its seventh step. Debug builds alone know it; in a release build nothing of this is left.

#[cfg(debug_assertions)]
use std::cell::{Cell, OnceCell};

#[cfg(debug_assertions)]
thread_local! {
    static ROLE: Cell<&'static str> = const { Cell::new("guard") };
    static STEPS: Cell<u32> = const { Cell::new(0) };
    static FATAL: OnceCell<Option<(String, u32)>> = const { OnceCell::new() };
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
        let fatal = |known: &OnceCell<Option<(String, u32)>>| {
            let wanted = known.get_or_init(|| {
                let text = std::env::var(FAULT).ok()?;
                let (role, step) = text.split_once(':')?;
                Some((role.to_owned(), step.parse().ok()?))
            });
            wanted.as_ref().is_some_and(|(role, step)| *role == ROLE.get() && *step == STEPS.get())
        };
        if FATAL.with(fatal) {
            let _ = super::process::signal_own_child(super::process::own_pid(), super::signal::Signal::KILL);
        }
    }
}

/// Read in debug builds: who is killed at which step.
#[cfg(debug_assertions)]
const FAULT: &str = "AGENT_RUN_FAULT";
