//! What holds a run's processes together, beside the two subreapers: the ladder of containment.
//!
//! The strongest rung that can be had is used. A cgroup leaf ends all of a run in one step and finds its
//! processes even when nobody stands above them; with the controllers of the hierarchy it also holds
//! the limits of the whole tree.

use std::io;
use std::path::PathBuf;

use crate::limits::Limits;
use crate::run::{RunId, RunSpec};
use crate::sys::cgroup::{self, Entrance, Leaf, Unusable};

/// What the name of each leaf begins with.
pub const LEAF_PREFIX: &str = "agent-run-";

/// Where a run's leaf is to be made, if one can be.
#[derive(Debug)]
pub struct Plan {
    parent: Option<PathBuf>,
    /// Whether the limits of the tree are the kernel's business.
    limited: bool,
}

/// The limits of the tree, by the controller that holds each.
fn controllers(limits: &Limits) -> Vec<&'static str> {
    let wanted = [("memory", limits.memory), ("pids", limits.pids), ("cpu", limits.cpu_percent)];
    wanted.into_iter().filter_map(|(name, limit)| limit.map(|_| name)).collect()
}

impl Plan {
    /// Looks for the place, best first: with the controllers that `spec` needs, without, none.
    pub fn of(spec: &RunSpec) -> Plan {
        if !spec.cgroup {
            return Plan { parent: None, limited: false };
        }
        let controllers = controllers(&spec.limits);
        match cgroup::parent_with(&controllers) {
            Ok(parent) => Plan { parent: Some(parent), limited: !controllers.is_empty() },
            Err(Unusable::NoController(_)) => Plan { parent: cgroup::parent_with(&[]).ok(), limited: false },
            Err(_) => Plan { parent: None, limited: false },
        }
    }

    /// Returns where the leaf of run `id` will be, for its record: it is entered before it is made.
    pub fn leaf_path(&self, id: &RunId) -> Option<PathBuf> {
        Some(self.parent.as_ref()?.join(format!("{LEAF_PREFIX}{id}")))
    }

    /// Makes the leaf of run `id`, with the limits in force. `None` if that is not possible here: then the
    /// limits are for the supervisor to watch.
    pub fn make(&self, id: &RunId, limits: &Limits) -> Option<Cell> {
        let leaf = Leaf::make(self.parent.as_ref()?, &format!("{LEAF_PREFIX}{id}")).ok()?;
        let limited = self.limited && impose(&leaf, limits).is_ok();
        Some(Cell { leaf, limited })
    }
}

fn impose(leaf: &Leaf, limits: &Limits) -> io::Result<()> {
    if let Some(bytes) = limits.memory {
        leaf.write("memory.max", &bytes.to_string())?;
        // Not there without swap accounting; without it, swap would only put the limit off.
        let _ = leaf.write("memory.swap.max", "0");
        // All or nothing: half a tree is of no use (Linux 4.19).
        leaf.write("memory.oom.group", "1")?;
    }
    if let Some(count) = limits.pids {
        leaf.write("pids.max", &count.to_string())?;
    }
    if let Some(percent) = limits.cpu_percent {
        const PERIOD_US: u64 = 100_000;
        leaf.write("cpu.max", &format!("{} {PERIOD_US}", percent * PERIOD_US / 100))?;
    }
    Ok(())
}

/// A run's leaf.
#[derive(Debug)]
pub struct Cell {
    /// The cgroup.
    pub leaf: Leaf,
    /// Whether the kernel holds the limits of the tree.
    pub limited: bool,
}

impl Cell {
    /// Opens the way in, for the leader.
    pub fn entrance(&self) -> io::Result<Entrance> {
        self.leaf.entrance(self.limited)
    }
}

/// Returns the leaf of run `id`, if there is one where this process would make it.
pub fn leaf_of(id: &RunId) -> Option<Leaf> {
    let parent = cgroup::parent_with(&[]).ok()?;
    Leaf::open(&parent.join(format!("{LEAF_PREFIX}{id}"))).ok()
}

/// One rung of the ladder, as `doctor` tells of it.
#[derive(Debug)]
pub struct Rung {
    /// Its name, as in a record's `containment`.
    pub name: &'static str,
    /// What it gives.
    pub gives: &'static str,
    /// Why it cannot be had; `None` if it can.
    pub obstacle: Option<String>,
    /// What to do about that.
    pub advice: Option<&'static str>,
}

/// Looks at each rung, strongest first.
pub fn rungs() -> Vec<Rung> {
    let cgroup = |name, gives, controllers: &[&str], advice| {
        let obstacle = cgroup::parent_with(controllers).err().map(|why| why.to_string());
        let advice = obstacle.as_ref().map(|_| advice);
        Rung { name, gives, obstacle, advice }
    };
    let namespace = crate::sys::namespace::probe().err().map(|why| why.to_string());
    vec![
        Rung {
            name: "pid_namespace",
            gives: "nothing outlives SIGKILL of everything at once (--isolate pid; process ids look different inside)",
            advice: namespace.as_ref().map(|_| {
                "allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone=1, \
                 kernel.apparmor_restrict_unprivileged_userns=0), or run as root"
            }),
            obstacle: namespace,
        },
        cgroup(
            "cgroup_limits",
            "the kernel holds --memory, --pids and --cpu; without it they are measured",
            &["memory", "pids", "cpu"],
            "start from a delegated scope: systemd-run --user --scope -p Delegate=yes",
        ),
        cgroup(
            "cgroup",
            "the whole tree is ended in one step, and found again if guard and supervisor were killed",
            &[],
            "start from a cgroup that you may write to: systemd-run --user --scope",
        ),
        Rung {
            name: "subreaper",
            gives: "guard and supervisor end the tree, daemons and new sessions included",
            obstacle: None,
            advice: None,
        },
    ]
}
