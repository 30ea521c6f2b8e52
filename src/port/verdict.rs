//! What becomes of who holds a port: decided without looking, from what was seen.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;

use super::holders::{Holder, Process};
use crate::run::RunId;
use crate::sys::files;
use crate::sys::process::Pid;
use crate::sys::sockets::State;

/// Never ended for a port: they hold it for somebody else, and much else besides.
const PROTECTED: [&str; 18] = [
    "systemd",
    "init",
    "launchd",
    "systemd-resolve",
    "dockerd",
    "docker-proxy",
    "containerd",
    "containerd-shim",
    "rootlesskit",
    "rootlessport",
    "slirp4netns",
    "pasta",
    "conmon",
    "sshd",
    "sshd-session",
    "tmux: server",
    "supervisord",
    "wslrelay.exe",
];

/// What is known of us and of what may not be touched.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// Our user.
    pub uid: u32,
    /// We and our ancestors.
    pub ours: HashSet<Pid>,
    /// The runs that we are in: to end one would end us.
    pub within: HashSet<RunId>,
    /// Names that are protected beside the built-in ones.
    pub protected: Vec<String>,
    /// Whose the runs of other living owners are.
    pub strangers: HashMap<RunId, String>,
    /// Whether these may be ended too.
    pub steal: bool,
}

/// What becomes of one holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The process is ended.
    End(Process),
    /// Its run is ended, by its supervisor.
    EndRun(RunId),
    /// It stays.
    Spare(Option<Process>, Spared),
}

/// Why somebody is not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spared {
    /// It is pid 1.
    Init,
    /// It is this program or one that it was started by.
    Ours,
    /// It belongs to another user.
    OtherUser(u32),
    /// Its name is protected.
    Protected,
    /// It has bound the port and does not listen: it may be about to connect from there.
    NotListening,
    /// It is the claim of a run that we are in.
    AroundUs,
    /// It is a run of somebody else who is alive.
    OtherOwner {
        /// The run.
        run: RunId,
        /// Whose.
        owner: String,
    },
    /// No process that has it can be seen.
    Unseen {
        /// The user who made it.
        uid: u32,
    },
}

impl fmt::Display for Spared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Spared::Init => f.write_str("it is pid 1; if it is a socket unit: systemctl stop its .socket"),
            Spared::Ours => f.write_str("it is this command or one that started it"),
            Spared::OtherUser(uid) => {
                let user = files::user_name(*uid).unwrap_or_else(|| uid.to_string());
                write!(f, "it belongs to user {user}; end it as that user")
            }
            Spared::Protected => f.write_str("its name is protected; end it by its own means"),
            Spared::AroundUs => f.write_str("it is the claim of the run that this command is in"),
            Spared::NotListening => {
                f.write_str("it has bound the port but does not listen; end it by its pid")
            }
            Spared::OtherOwner { run, owner } => {
                write!(f, "it is run {run} of {owner}, who is alive; --steal takes it all the same")
            }
            Spared::Unseen { uid } => {
                let user = files::user_name(*uid).unwrap_or_else(|| uid.to_string());
                write!(f, "no process of it can be seen (it was made by user {user})")
            }
        }
    }
}

/// Decides about everybody who has `holder`'s socket.
pub fn judge(holder: &Holder, context: &Context) -> Vec<Verdict> {
    if let Some(run) = holder.run.as_ref().filter(|run| !context.within.contains(run)) {
        let spared = context.strangers.get(run).filter(|_| !context.steal).map(|owner| {
            let first = holder.processes.first().cloned();
            Verdict::Spare(first, Spared::OtherOwner { run: run.clone(), owner: owner.clone() })
        });
        return vec![spared.unwrap_or_else(|| Verdict::EndRun(run.clone()))];
    }
    if holder.is_claim {
        return vec![Verdict::Spare(None, Spared::AroundUs)];
    }
    if holder.processes.iter().all(|process| process.is_zombie) {
        let unseen = Spared::Unseen { uid: holder.socket.uid };
        return vec![Verdict::Spare(holder.processes.first().cloned(), unseen)];
    }
    if holder.socket.state != State::Listening {
        let spare = |process: &Process| Verdict::Spare(Some(process.clone()), Spared::NotListening);
        return holder.processes.iter().map(spare).collect();
    }
    holder.processes.iter().map(|process| one(process, context)).collect()
}

fn one(process: &Process, context: &Context) -> Verdict {
    match refusal(process, context) {
        Some(why) => Verdict::Spare(Some(process.clone()), why),
        None => Verdict::End(process.clone()),
    }
}

/// Returns why `process` may not be ended, if so.
pub fn refusal(process: &Process, context: &Context) -> Option<Spared> {
    let pid = process.process.pid;
    if pid == 1 {
        Some(Spared::Init)
    } else if context.ours.contains(&pid) {
        Some(Spared::Ours)
    } else if process.uid != context.uid {
        Some(Spared::OtherUser(process.uid))
    } else if is_protected(process, context) {
        Some(Spared::Protected)
    } else if process.is_zombie {
        Some(Spared::Unseen { uid: process.uid })
    } else {
        None
    }
}

fn is_protected(process: &Process, context: &Context) -> bool {
    is_protected_name(&process.name, process.command.first().map(String::as_str), &context.protected)
}

/// Returns whether a process of this name, or that runs this program, is never ended; `more` names beside the built-in
/// ones.
pub fn is_protected_name(name: &str, program: Option<&str>, more: &[String]) -> bool {
    // Some put a title there: "sshd-session: ann@pts/1".
    let program = program.and_then(|word| Path::new(word.split(':').next()?).file_name()?.to_str());
    let known = |name: &str| PROTECTED.contains(&name) || more.iter().any(|known| known == name);
    [Some(name), program].into_iter().flatten().any(known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::ProcessRef;
    use crate::sys::sockets::Socket;
    use std::time::Duration;

    fn process(pid: Pid, uid: u32, name: &str) -> Process {
        Process {
            process: ProcessRef { pid, start_time: 1, inode: None },
            uid,
            parent: 1,
            name: name.to_owned(),
            command: vec![format!("/usr/bin/{name}")],
            age: Duration::ZERO,
            is_zombie: false,
        }
    }

    fn holder(processes: Vec<Process>, run: Option<&RunId>) -> Holder {
        let address = "127.0.0.1:80".parse().unwrap();
        let socket = Socket {
            state: State::Listening,
            local: address,
            remote: address,
            v6only: false,
            uid: 7,
            inode: 1,
            cgroup: None,
            expires: Duration::ZERO,
        };
        Holder { socket, processes, run: run.cloned(), is_claim: false }
    }

    fn context() -> Context {
        Context {
            uid: 7,
            ours: HashSet::from([50, 40]),
            protected: vec!["postgres".into()],
            ..Context::default()
        }
    }

    #[test]
    fn nobody_elses_is_ended() {
        let table = [
            (process(60, 7, "node"), None),
            (process(1, 7, "node"), Some(Spared::Init)),
            (process(50, 7, "node"), Some(Spared::Ours)),
            (process(40, 7, "bash"), Some(Spared::Ours)),
            (process(60, 8, "node"), Some(Spared::OtherUser(8))),
            (process(60, 0, "node"), Some(Spared::OtherUser(0))),
            (process(60, 7, "docker-proxy"), Some(Spared::Protected)),
            (process(60, 7, "postgres"), Some(Spared::Protected)),
            (Process { is_zombie: true, ..process(60, 7, "x") }, Some(Spared::Unseen { uid: 7 })),
        ];
        for (process, expected) in table {
            let verdicts = judge(&holder(vec![process.clone()], None), &context());
            let wanted = match expected {
                None => Verdict::End(process),
                Some(why) => Verdict::Spare(Some(process), why),
            };
            assert_eq!(verdicts, vec![wanted]);
        }
        let mut bound = holder(vec![process(60, 7, "node")], None);
        bound.socket.state = State::Bound;
        assert!(matches!(judge(&bound, &context())[..], [Verdict::Spare(Some(_), Spared::NotListening)]));
        let nobody = judge(&holder(Vec::new(), None), &context());
        assert_eq!(nobody, vec![Verdict::Spare(None, Spared::Unseen { uid: 7 })]);
    }

    #[test]
    fn a_run_is_ended_as_one_unless_it_is_somebody_elses_or_around_us() {
        let run = RunId::random();
        let held = holder(vec![process(60, 7, "node")], Some(&run));
        assert_eq!(judge(&held, &context()), vec![Verdict::EndRun(run.clone())]);
        let mut theirs = context();
        theirs.strangers.insert(run.clone(), "claude-code".into());
        assert!(matches!(judge(&held, &theirs)[..], [Verdict::Spare(_, Spared::OtherOwner { .. })]));
        theirs.steal = true;
        assert_eq!(judge(&held, &theirs), vec![Verdict::EndRun(run.clone())]);
        let mut within = context();
        within.within.insert(run);
        assert!(matches!(judge(&held, &within)[..], [Verdict::End(_)]));
    }
}
