//! Taking a snapshot: each process's entry, and of our user's all that it tells of itself.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::snapshot::{Process, Snapshot};
use crate::env as vars;
use crate::owner;
use crate::programs;
use crate::run::RunId;
use crate::sys::process::{self, Environment, Pid, ProcessRef, Stat};
use crate::sys::{crew, spawn, tree};

impl Snapshot {
    /// Looks at every process, and at none of what it has open.
    pub fn take() -> Snapshot {
        let mut seen = Snapshot::default();
        // Asked once: each time leaves a zombie where pid 1 does not reap.
        static ADOPTER: OnceLock<Option<Pid>> = OnceLock::new();
        let adopter = *ADOPTER.get_or_init(|| spawn::who_adopts().ok());
        // They may be hidden (hidepid, proc(5)), and adopt all the same.
        seen.reapers.insert(1);
        seen.reapers.extend(adopter);
        let mut oldest: HashMap<Pid, (u64, Pid)> = HashMap::new();
        for (stat, process) in look_at_all() {
            let pid = stat.pid;
            seen.parents.insert(pid, stat.parent);
            seen.names.insert(pid, stat.comm.clone());
            seen.sessions.insert(pid, stat.session);
            let first = oldest.entry(stat.parent).or_insert((stat.start_time, pid));
            *first = (*first).min((stat.start_time, pid));
            if programs::is_reaper(&stat.comm) {
                seen.inits.insert(pid);
                seen.reapers.insert(pid);
            }
            if let Some(process) = process {
                seen.children.entry(process.stat.parent).or_default().push(pid);
                seen.living_agents.extend(process.agent);
                seen.processes.insert(pid, process);
            }
        }
        let of_container = |pid: &Pid| {
            seen.inits.contains(pid)
                && seen.names.get(pid).is_some_and(|name| programs::is_container_init(name))
        };
        seen.first_children =
            oldest.iter().filter(|(parent, _)| of_container(parent)).map(|(_, (_, first))| *first).collect();
        // A supervisor adopts too, but what it has adopted is supervised.
        seen.reapers.retain(|pid| !seen.names.get(pid).is_some_and(|name| programs::is_keeper(name)));
        seen.ours = process::own_line();
        seen.own_unit = unit_of(process::own_pid());
        seen
    }
}

/// Reads the entry of every living process, and looks at those of our user.
fn look_at_all() -> Vec<(Stat, Option<Process>)> {
    let (own, now) = (process::own_uid(), process::now_in_ticks());
    let is_ours = |pid: Pid| fs::metadata(format!("/proc/{pid}")).is_ok_and(|seen| seen.uid() == own);
    let look = |pid: Pid| {
        let process = is_ours(pid).then(|| Process::look(pid, now)).flatten();
        let stat = process.as_ref().map(|process| process.stat.clone()).or_else(|| Stat::read(pid));
        stat.filter(|stat| !stat.is_dead()).map(|stat| (stat, process))
    };
    let pids: Vec<Pid> = tree::all_processes().collect();
    let seen = Mutex::new(Vec::with_capacity(pids.len()));
    crew::share(pids.len(), &|first, step| {
        let part: Vec<_> = pids.iter().skip(first).step_by(step).filter_map(|pid| look(*pid)).collect();
        // Nothing can panic while it is held.
        seen.lock().unwrap_or_else(PoisonError::into_inner).extend(part);
    });
    seen.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the service in whose cgroup `pid` is, if a service manager has put it there.
fn unit_of(pid: Pid) -> Option<String> {
    unit_in(&process::cgroups(pid)?)
}

/// Reads a service out of `/proc/PID/cgroup` (`cgroups(7)`): one of systemd or of OpenRC, or a container's scope.
fn unit_in(cgroups: &str) -> Option<String> {
    const OF_CONTAINERS: [&str; 4] = ["docker-", "libpod-", "crio-", "cri-containerd-"];
    let in_hierarchy = |prefix: &str| cgroups.lines().find_map(|line| line.strip_prefix(prefix));
    if let Some(service) = cgroups.lines().find_map(|line| line.split_once("name=openrc:/")).map(|(_, it)| it)
    {
        return Some(service.to_owned()).filter(|name| !name.is_empty());
    }
    let path = in_hierarchy("0::").or_else(|| in_hierarchy("1:name=systemd:"))?;
    let is_unit = |part: &&str| {
        let is_scope = part.ends_with(".scope") && OF_CONTAINERS.iter().any(|it| part.starts_with(it));
        part.ends_with(".service") || part.starts_with("openrc.") || is_scope
    };
    let last = path.rsplit('/').find(is_unit)?;
    (!last.starts_with("user@")).then(|| last.to_owned())
}

/// Our own pid namespace.
fn own_namespace() -> Option<&'static PathBuf> {
    static OWN: OnceLock<Option<PathBuf>> = OnceLock::new();
    OWN.get_or_init(|| fs::read_link("/proc/self/ns/pid").ok()).as_ref()
}

impl Process {
    fn look(pid: Pid, now: u64) -> Option<Process> {
        let (identity, _, stat) = ProcessRef::observe_with_entry(pid)?;
        let command = process::command_line(pid);
        let environment = Environment::of(pid).unwrap_or_default();
        let variables = environment.by_name();
        let variable = |name: &str| {
            variables.get(name.as_bytes()).map(|value| String::from_utf8_lossy(value).into_owned())
        };
        let cwd = fs::read_link(format!("/proc/{pid}/cwd")).ok();
        let text = cwd.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        let named = text.strip_suffix(" (deleted)");
        Some(Process {
            identity,
            age: stat.age(now),
            run: variable(vars::ID).and_then(|text| RunId::parse(&text)),
            run_directory: variable(vars::DIR).map(PathBuf::from),
            mark: owner::mark_in(&variable),
            // The kernel's own words; a directory of that name would be there.
            cwd_deleted: named.is_some() && !PathBuf::from(&text).exists(),
            cwd: named.map(PathBuf::from).or(cwd),
            unit: unit_of(pid),
            in_container: fs::read_link(format!("/proc/{pid}/ns/pid"))
                .is_ok_and(|theirs| own_namespace().is_some_and(|own| *own != theirs)),
            agent: owner::agent_named(&command, Some(stat.comm.clone())),
            command,
            stat,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_known_by_their_cgroup() {
        for (cgroups, expected) in [
            ("0::/system.slice/ssh.service\n", Some("ssh.service")),
            ("0::/user.slice/user-1.slice/user@1.service/app.slice/x.service\n", Some("x.service")),
            ("0::/user.slice/user-1.slice/user@1.service/app.slice/vte.scope\n", None),
            ("0::/user.slice/user-1.slice/session-1.scope\n", None),
            ("12:pids:/x.service\n1:name=systemd:/system.slice/cron.service\n0::/\n", None),
            ("1:name=systemd:/system.slice/cron.service\n", Some("cron.service")),
            ("0::/system.slice/docker-0a.scope\n", Some("docker-0a.scope")),
            ("0::/machine.slice/libpod-1.scope/container\n", Some("libpod-1.scope")),
            ("0::/openrc.nginx\n", Some("openrc.nginx")),
            ("7:name=openrc:/sshd\n0::/\n", Some("sshd")),
            ("7:name=openrc:/\n0::/\n", None),
            ("0::/\n", None),
            ("", None),
        ] {
            assert_eq!(unit_in(cgroups).as_deref(), expected, "{cgroups}");
        }
    }
}
