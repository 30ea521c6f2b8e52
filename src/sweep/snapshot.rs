//! Every process at one moment, as far as it tells of itself, with what it has open.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::env as vars;
use crate::owner::{self, Mark};
use crate::programs;
use crate::run::RunId;
use crate::sys::descriptors::{self, Kind as Open};
use crate::sys::process::{self, Environment, Pid, ProcessRef, Stat};
use crate::sys::sockets::{self, Socket, State};
use crate::sys::{crew, spawn, tree};

/// One process of our user.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its entry.
    pub stat: Stat,
    /// Which one it is.
    pub identity: ProcessRef,
    /// Its command line, invalid UTF-8 replaced.
    pub command: Vec<String>,
    /// How long it has run.
    pub age: Duration,
    /// The run that it says it is of.
    pub run: Option<RunId>,
    /// Where that run's managed directory is.
    pub run_directory: Option<PathBuf>,
    /// What an agent has put into its environment.
    pub mark: Option<Mark>,
    /// Where it works.
    pub cwd: Option<PathBuf>,
    /// Whether that place does not exist any more.
    pub cwd_deleted: bool,
    /// The service that a service manager runs it as.
    pub unit: Option<String>,
    /// Whether it is in a pid namespace below ours, as in a container.
    pub in_container: bool,
    /// The agent whose program it is.
    pub agent: Option<&'static str>,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Of our user, by pid.
    pub processes: BTreeMap<Pid, Process>,
    /// The parent of each process, of other users too.
    pub parents: HashMap<Pid, Pid>,
    /// The name of each.
    pub names: HashMap<Pid, String>,
    /// We and our ancestors.
    pub ours: HashSet<Pid>,
    /// Those that adopt orphans.
    pub reapers: HashSet<Pid>,
    /// Those of them that are known to be nothing else.
    pub inits: HashSet<Pid>,
    /// The session of each process.
    pub sessions: HashMap<Pid, Pid>,
    /// What each init of a container has started first: what the container is for.
    pub first_children: HashSet<Pid>,
    /// Agents of which a process lives.
    pub living_agents: HashSet<&'static str>,
    /// Our user's processes by parent.
    pub(super) children: HashMap<Pid, Vec<Pid>>,
    /// The service that we run in ourselves.
    pub own_unit: Option<String>,
    /// Ports on which each listens.
    pub listening: HashMap<Pid, BTreeSet<u16>>,
    /// Connections that each has.
    pub connections: HashMap<Pid, usize>,
    /// What stdin and stdout of our user's processes are, where both are pipes or both sockets.
    pub stdio: HashMap<Pid, [End; 2]>,
    /// Who has the pipes and sockets of which somebody's stdio is one end.
    pub holders: HashMap<End, Vec<Pid>>,
    /// The other ends of Unix sockets, by inode; `None` for one that is closed.
    pub peers: HashMap<u32, Option<u32>>,
    /// Who works in a directory, runs a program from there or has something in it open: of those that were asked for.
    pub users: HashMap<PathBuf, Vec<Pid>>,
}

/// One end of a pipe or of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// A pipe, both ends of which have this inode.
    Pipe(u32),
    /// A socket with this inode.
    Socket(u32),
}

/// What one look at a process gives.
struct Look {
    stat: Stat,
    /// Of our user's processes.
    process: Option<Process>,
    /// Its pipes and sockets, by descriptor.
    ends: Vec<(RawFd, End)>,
    /// Directories that it uses, of those that were asked for.
    uses: Vec<PathBuf>,
}

impl Snapshot {
    /// Looks at all, and at who uses `places`: each process is looked at once.
    pub fn take(places: &[PathBuf]) -> Snapshot {
        let mut seen = Snapshot::default();
        // Asked once: each time leaves a zombie where pid 1 does not reap.
        static ADOPTER: OnceLock<Option<Pid>> = OnceLock::new();
        let adopter = *ADOPTER.get_or_init(|| spawn::who_adopts().ok());
        // They may be hidden (hidepid, proc(5)), and adopt all the same.
        seen.reapers.insert(1);
        seen.reapers.extend(adopter);
        let mut oldest: HashMap<Pid, (u64, Pid)> = HashMap::new();
        let looks = look_at_all(&places.iter().map(PathBuf::as_path).collect());
        seen.note_sockets(&looks);
        for Look { stat, process, uses, .. } in looks {
            let pid = stat.pid;
            for place in uses {
                seen.users.entry(place).or_default().push(pid);
            }
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

    fn note_sockets(&mut self, looks: &[Look]) {
        let states = [State::Listening, State::Established];
        // Where the kernel cannot be asked, there is less evidence.
        let found = sockets::list(&states, None).unwrap_or_default();
        let by_inode: HashMap<u32, &Socket> = found.iter().map(|socket| (socket.inode, socket)).collect();
        for (look, inode) in looks.iter().flat_map(|look| look.sockets().map(move |inode| (look, inode))) {
            let Some(socket) = by_inode.get(&inode) else { continue };
            match socket.state {
                State::Listening => {
                    self.listening.entry(look.stat.pid).or_default().insert(socket.local.port());
                }
                _ => *self.connections.entry(look.stat.pid).or_default() += 1,
            }
        }
        self.note_stdio(looks);
    }

    fn note_stdio(&mut self, looks: &[Look]) {
        self.peers = sockets::unix_peers().unwrap_or_default();
        let ours = looks.iter().filter(|look| look.process.is_some());
        self.stdio = ours.filter_map(|look| Some((look.stat.pid, look.stdio()?))).collect();
        let other_end = |end: &End| match end {
            End::Pipe(_) => Some(*end),
            End::Socket(inode) => self.peers.get(inode).copied().flatten().map(End::Socket),
        };
        let wanted: HashSet<End> = self.stdio.values().flatten().filter_map(other_end).collect();
        for look in looks {
            let theirs: HashSet<End> = look.ends.iter().map(|(_, end)| *end).collect();
            for end in theirs.into_iter().filter(|end| wanted.contains(end)) {
                self.holders.entry(end).or_default().push(look.stat.pid);
            }
        }
    }

    /// Returns the ancestors of `pid`, nearest first, without reapers.
    pub fn ancestors(&self, pid: Pid) -> Vec<Pid> {
        let parent =
            |pid: &Pid| self.parents.get(pid).copied().filter(|it| *it > 0 && !self.reapers.contains(it));
        std::iter::successors(parent(&pid), parent).take(MOST_ANCESTORS).collect()
    }

    /// Returns the topmost of those that only wrap `pid`, as `sh -c` and `npm run` do; `pid` itself if there is none.
    pub fn wrapped(&self, pid: Pid) -> Pid {
        // One that has started something else too is answerable for that.
        let alone = |pid: &Pid| self.children.get(pid).is_some_and(|children| children.len() == 1);
        let wraps = |pid: &Pid| {
            let wrapper = self.processes.get(pid).is_some_and(|it| programs::is_wrapper(&it.command));
            wrapper && alone(pid) && !self.ours.contains(pid)
        };
        self.ancestors(pid).into_iter().take_while(wraps).last().unwrap_or(pid)
    }

    /// Returns `pid` and all of our user's below it.
    pub fn tree(&self, pid: Pid) -> Vec<&Process> {
        let mut found: Vec<&Process> = self.processes.get(&pid).into_iter().collect();
        let mut next = 0;
        while let Some(parent) = found.get(next).map(|process| process.stat.pid) {
            let children = self.children.get(&parent).into_iter().flatten().filter(|child| **child != parent);
            found.extend(children.filter_map(|child| self.processes.get(child)));
            next += 1;
        }
        found
    }
}

impl Look {
    fn sockets(&self) -> impl Iterator<Item = u32> {
        let all = self.ends.iter().filter_map(|(_, end)| match end {
            End::Socket(inode) => Some(*inode),
            End::Pipe(_) => None,
        });
        // Two descriptors of one socket are one connection.
        all.collect::<HashSet<u32>>().into_iter()
    }

    fn stdio(&self) -> Option<[End; 2]> {
        let end = |wanted: RawFd| self.ends.iter().find(|(fd, _)| *fd == wanted).map(|(_, end)| *end);
        Some([end(0)?, end(1)?])
    }

    fn take(pid: Pid, now: u64, own: u32, places: &HashSet<&Path>) -> Option<Look> {
        let stat = Stat::read(pid).filter(|stat| !stat.is_dead())?;
        let is_ours = fs::metadata(format!("/proc/{pid}")).is_ok_and(|seen| seen.uid() == own);
        let process = is_ours.then(|| Process::look(pid, now)).flatten();
        let mut look = Look { stat, process, ends: Vec::new(), uses: Vec::new() };
        let note = |path: &Path, uses: &mut Vec<PathBuf>| {
            let place = path.ancestors().find(|it| places.contains(it)).map(Path::to_owned);
            uses.extend(place.filter(|place| !uses.contains(place)));
        };
        descriptors::each(pid, &mut |fd, link| {
            if let Some(end) = end_of(link) {
                look.ends.push((fd, end));
            } else if !places.is_empty() && link.first() == Some(&b'/') {
                note(Path::new(OsStr::from_bytes(link)), &mut look.uses);
            }
        });
        let links = if places.is_empty() { &[][..] } else { &["cwd", "exe", "root"] };
        for path in links.iter().filter_map(|name| fs::read_link(format!("/proc/{pid}/{name}")).ok()) {
            note(&path, &mut look.uses);
        }
        Some(look)
    }
}

fn end_of(link: &[u8]) -> Option<End> {
    let socket = || descriptors::inode_in(link, Open::Socket).map(End::Socket);
    descriptors::inode_in(link, Open::Pipe).map(End::Pipe).or_else(socket)
}

/// Looks at every living process: at its entry, what it has open and, of our user's, all that it tells of itself.
fn look_at_all(places: &HashSet<&Path>) -> Vec<Look> {
    let (own, now) = (process::own_uid(), process::now_in_ticks());
    let pids: Vec<Pid> = tree::all_processes().collect();
    let seen = Mutex::new(Vec::with_capacity(pids.len()));
    crew::share(pids.len(), &|first, step| {
        let mine = pids.iter().skip(first).step_by(step);
        let part: Vec<_> = mine.filter_map(|pid| Look::take(*pid, now, own, places)).collect();
        // Nothing can panic while it is held.
        seen.lock().unwrap_or_else(PoisonError::into_inner).extend(part);
    });
    seen.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// A table that was read while processes came and went might have a circle.
const MOST_ANCESTORS: usize = 10_000;

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
        let variable = |name: &str| environment.text(name);
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

    /// Returns its command line, or its name if it has cleared that.
    pub(super) fn shown_command(&self) -> Vec<String> {
        if self.command.is_empty() { vec![self.stat.comm.clone()] } else { self.command.clone() }
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
