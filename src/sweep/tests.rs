//! Plans over made-up observations.

use std::path::PathBuf;
use std::time::Duration;

use super::directories::Directory;
use super::observe::{Observation, SeenOfRun};
use super::plan::{Item, Kind, Plan};
use super::snapshot::{End, Process};
use super::{Options, Scope, apply, plan};
use crate::owner::Mark;
use crate::registry::record::State;
use crate::run::RunId;
use crate::sys::process::{Pid, ProcessRef, Stat};

const AGENT: Pid = 50;
const US: Pid = 90;

fn process(pid: Pid, parent: Pid, words: &[&str]) -> Process {
    let comm = words.first().map_or("", |word| word.rsplit('/').next().unwrap_or_default()).to_owned();
    let stat = Stat {
        pid,
        comm,
        state: b'S',
        parent,
        group: pid,
        session: pid,
        terminal: 0,
        threads: 1,
        cpu_ticks: 0,
        children_ticks: 0,
        start_time: 1000 + pid as u64,
        resident_pages: 1,
    };
    Process {
        identity: ProcessRef { pid, start_time: stat.start_time, inode: None },
        stat,
        command: words.iter().map(|word| (*word).to_owned()).collect(),
        age: Duration::from_secs(60),
        run: None,
        run_directory: None,
        mark: None,
        cwd: Some("/home/me".into()),
        cwd_deleted: false,
        unit: None,
        in_container: false,
        agent: None,
    }
}

/// An agent's server that was adopted by pid 1.
fn vite() -> Process {
    process(100, 1, &["node", "/x/.bin/vite"])
}

fn marked(process: Process, pid: Option<Pid>) -> Process {
    Process { mark: Some(Mark { agent: "claude-code", session: Some("s1".into()), pid }), ..process }
}

/// A machine with pid 1, an agent, ourselves, and these.
fn machine(processes: Vec<Process>) -> Observation {
    let mut seen = Observation { registry: Some("/state".into()), ..Observation::default() };
    let agent = Process { agent: Some("claude-code"), ..process(AGENT, 1, &["claude"]) };
    let snapshot = &mut seen.processes;
    snapshot.reapers.insert(1);
    snapshot.inits.insert(1);
    snapshot.living_agents.insert("claude-code");
    snapshot.ours.extend([US, 1]);
    for process in
        [process(1, 0, &["systemd"]), agent, process(US, 1, &["agent-run"])].into_iter().chain(processes)
    {
        let stat = &process.stat;
        snapshot.parents.insert(stat.pid, stat.parent);
        snapshot.names.insert(stat.pid, stat.comm.clone());
        snapshot.sessions.insert(stat.pid, stat.session);
        snapshot.children.entry(stat.parent).or_default().push(stat.pid);
        snapshot.processes.insert(stat.pid, process);
    }
    seen
}

fn listening(mut seen: Observation, pid: Pid, port: u16) -> Observation {
    seen.processes.listening.entry(pid).or_default().insert(port);
    seen
}

fn directory(seen: &mut Observation, path: &str) -> Directory {
    let found = Directory {
        path: path.into(),
        inode: (1, 2),
        is_link: false,
        belongs_to: None,
        age: Duration::from_secs(86_400),
    };
    seen.directories.push(found.clone());
    found
}

/// Each thing of the plan: what, its first process, why it stays (empty if it goes).
fn told(seen: &Observation, options: &Options) -> Vec<(Kind, Pid, String)> {
    let items = plan(seen, options).items;
    let first = |item: &Item| item.root.as_ref().map_or(0, |root| root.pid);
    items.iter().map(|item| (item.kind, first(item), item.spared.clone().unwrap_or_default())).collect()
}

#[track_caller]
fn check(seen: Observation, options: Options, expected: &[(Kind, Pid, &str)]) {
    let found = told(&seen, &options);
    let fits = |(found, wanted): (&(Kind, Pid, String), &(Kind, Pid, &str))| {
        let why = if wanted.2.is_empty() { found.2.is_empty() } else { found.2.contains(wanted.2) };
        found.0 == wanted.0 && found.1 == wanted.1 && why
    };
    assert!(
        found.len() == expected.len() && found.iter().zip(expected).all(fits),
        "{found:?}\nis not {expected:?}"
    );
}

#[test]
fn two_kinds_of_evidence_make_a_leftover() {
    use Kind::{Leftover, Suspect};
    let one_kind = "--suspects";
    check(listening(machine(vec![vite()]), 100, 8456), Options::default(), &[(Leftover, 100, "")]);
    check(machine(vec![vite()]), Options::default(), &[(Suspect, 100, one_kind)]);
    check(machine(vec![vite()]), Options { suspects: true, ..Options::default() }, &[(Suspect, 100, "")]);
    check(
        listening(machine(vec![process(100, 1, &["x"])]), 100, 8456),
        Options::default(),
        &[(Suspect, 100, one_kind)],
    );
    check(listening(machine(vec![process(100, 1, &["x"])]), 100, 22), Options::default(), &[]);
    // An agent's variables and an agent's place make no server.
    let idle = marked(Process { cwd: Some("/tmp/web_1".into()), ..process(100, 1, &["x"]) }, Some(9999));
    let mut seen = machine(vec![idle]);
    seen.places = vec!["/tmp/web_*".into()];
    check(seen, Options::default(), &[(Suspect, 100, one_kind)]);
    let gone = Process { cwd_deleted: true, ..vite() };
    check(machine(vec![gone]), Options::default(), &[(Leftover, 100, "")]);
}

#[test]
fn whoever_has_somebody_is_spared() {
    let at_terminal = |mut process: Process| {
        process.stat.terminal = 34816;
        process
    };
    for (server, why) in [
        (at_terminal(vite()), "it has a terminal"),
        (Process { in_container: true, ..vite() }, "it is in a container"),
        (Process { unit: Some("web.service".into()), ..vite() }, "it is the service web.service"),
        (Process { unit: Some("docker-1.scope".into()), ..vite() }, "docker-1.scope"),
        (process(100, AGENT, &["vite"]), "its parent claude (pid 50) lives"),
        (process(100, 0, &["vite"]), "outside of this pid namespace"),
        (marked(vite(), Some(AGENT)), "its agent may be alive"),
        (marked(vite(), None), "its agent may be alive"),
    ] {
        check(listening(machine(vec![server]), 100, 8456), Options::default(), &[(Kind::Leftover, 100, why)]);
    }
    // A number that was given to somebody younger is not the agent.
    let mut late = marked(vite(), Some(AGENT));
    late.stat.start_time = 1;
    check(listening(machine(vec![late]), 100, 8456), Options::default(), &[(Kind::Leftover, 100, "")]);
}

#[test]
fn what_the_person_does_not_want_stays() {
    let seen = || listening(machine(vec![vite(), process(101, 100, &["esbuild"])]), 100, 8456);
    let stays = |options: Options, why| check(seen(), options, &[(Kind::Leftover, 100, why)]);
    stays(Options { except_pids: vec![101], ..Options::default() }, "excepted");
    stays(Options { older_than: Duration::from_secs(61), ..Options::default() }, "younger");
    stays(Options { older_than: Duration::from_secs(60), ..Options::default() }, "");
    stays(Options { only: vec![Kind::Directory], ..Options::default() }, "--only");
    stays(Options { protected: vec!["esbuild".into()], ..Options::default() }, "esbuild is protected");
    stays(Options { scope: Scope::Session("other".into()), ..Options::default() }, "not of the session");
}

#[test]
fn a_session_takes_what_it_has_started_and_nothing_else() {
    let server = |pid| process(pid, AGENT, &["vite"]);
    let of = |scope| Options { scope, older_than: Duration::from_secs(3600), ..Options::default() };
    let seen =
        || listening(listening(machine(vec![server(100), process(200, 1, &["vite"])]), 100, 8456), 200, 8457);
    let others = (Kind::Leftover, 200, "not of the session");
    check(seen(), of(Scope::Process(AGENT, None)), &[(Kind::Leftover, 100, ""), others]);
    let marked = marked(process(100, 1, &["vite"]), None);
    check(machine(vec![marked]), of(Scope::Session("s1".into())), &[(Kind::Leftover, 100, "")]);
    // It is still talked to.
    let mut seen = seen();
    seen.processes.stdio.insert(100, [End::Pipe(7), End::Pipe(8)]);
    seen.processes.holders.extend([(End::Pipe(7), vec![100, AGENT]), (End::Pipe(8), vec![100, AGENT])]);
    check(seen, of(Scope::Process(AGENT, None)), &[(Kind::Leftover, 100, "somebody talks to it"), others]);
}

#[test]
fn the_client_of_a_server_over_stdio_is_there_or_gone() {
    let (pipe, socket) = (|holder: Pid| (End::Pipe(7), vec![100, holder]), End::Socket(8));
    let goes = [(Kind::Leftover, 100, "")];
    let stays = [(Kind::Suspect, 100, "--suspects")];
    type Case<'a> = (End, Vec<(End, Vec<Pid>)>, Vec<(u32, Option<u32>)>, &'a [(Kind, Pid, &'a str)]);
    let table: Vec<Case> = vec![
        (End::Pipe(7), vec![(End::Pipe(7), vec![100])], vec![], &goes),
        // Its own child has the other end.
        (End::Pipe(7), vec![pipe(101)], vec![], &goes),
        (End::Pipe(7), vec![pipe(AGENT)], vec![], &stays),
        (socket, vec![], vec![(8, None)], &goes),
        (socket, vec![(End::Socket(9), vec![AGENT])], vec![(8, Some(9))], &stays),
        // Open, but of somebody who does not show what he has.
        (socket, vec![], vec![(8, Some(9))], &stays),
        // Not a Unix socket.
        (socket, vec![], vec![], &stays),
    ];
    for (end, holders, peers, expected) in table {
        let mut seen = machine(vec![process(100, 1, &["mcp-server-git"]), process(101, 100, &["git"])]);
        seen.processes.stdio.insert(100, [end, end]);
        seen.processes.holders.extend(holders);
        seen.processes.peers.extend(peers);
        check(seen, Options::default(), expected);
    }
    // By itself it says nothing: half of all daemons are like that.
    let mut seen = machine(vec![process(100, 1, &["x"])]);
    seen.processes.stdio.insert(100, [End::Pipe(7), End::Pipe(7)]);
    check(seen, Options::default(), &[]);
}

#[test]
fn a_server_goes_with_what_wraps_it_and_what_is_below() {
    let tree = || {
        vec![
            process(100, 1, &["npm", "run", "dev"]),
            process(101, 100, &["vite"]),
            process(102, 101, &["esbuild"]),
        ]
    };
    let seen = listening(machine(tree()), 101, 8456);
    let item = plan(&seen, &Options::default()).items.remove(0);
    assert_eq!((item.kind, item.pids), (Kind::Leftover, vec![100, 101, 102]));
    // A wrapper that does something else too is not taken with it.
    let mut others = tree();
    others.push(process(103, 100, &["make"]));
    let item = plan(&listening(machine(others), 101, 8456), &Options::default()).items.remove(0);
    assert_eq!(item.pids, [101, 102]);
}

#[test]
fn directories_go_when_nobody_but_who_goes_uses_them() {
    let place = || PathBuf::from("/tmp/web_1");
    let world = |users: &[Pid]| {
        let mut seen = listening(machine(vec![vite(), process(200, AGENT, &["vim"])]), 100, 8456);
        directory(&mut seen, "/tmp/web_1");
        if !users.is_empty() {
            seen.processes.users.insert(place(), users.to_vec());
        }
        seen
    };
    let leftover = (Kind::Leftover, 100, "");
    let dir = |why| (Kind::Directory, 0, why);
    check(world(&[]), Options::default(), &[leftover, dir("")]);
    check(world(&[100]), Options::default(), &[leftover, dir("")]);
    check(world(&[100, 200]), Options::default(), &[leftover, dir("process 200 uses it")]);
    let excepted = Options { except_pids: vec![100], ..Options::default() };
    check(world(&[100]), excepted, &[(Kind::Leftover, 100, "excepted"), dir("process 100 uses it")]);
    for (change, why) in [
        ((|it: &mut Directory| it.is_link = true) as fn(&mut Directory), "it is a link"),
        (|it| it.belongs_to = Some("root".into()), "it belongs to root"),
        (|it| it.age = Duration::from_secs(1), "changed a moment ago"),
    ] {
        let mut seen = world(&[]);
        change(&mut seen.directories[0]);
        check(seen, Options::default(), &[leftover, dir(why)]);
    }
}

fn run(state: State) -> SeenOfRun {
    SeenOfRun {
        id: RunId::parse("aaaaaaaa").expect("an id"),
        state,
        record: None,
        is_newer: false,
        is_around_us: false,
        keepers: Vec::new(),
        living: Vec::new(),
        age: Duration::from_secs(5),
    }
}

#[test]
fn orphans_and_survivors_go_unless_we_are_within() {
    let with = |run: SeenOfRun| Observation { runs: vec![run], ..machine(Vec::new()) };
    let orphan = || run(State::Orphaned);
    check(with(orphan()), Options::default(), &[(Kind::Orphan, 0, "")]);
    check(with(run(State::Running)), Options::default(), &[]);
    check(
        with(SeenOfRun { is_newer: true, ..orphan() }),
        Options::default(),
        &[(Kind::Orphan, 0, "a newer")],
    );
    check(
        with(SeenOfRun { is_around_us: true, ..orphan() }),
        Options::default(),
        &[(Kind::Orphan, 0, "within")],
    );

    let id = orphan().id;
    let marked = |place: &str| Process {
        run: Some(id.clone()),
        run_directory: Some(place.into()),
        ..process(100, 1, &["x"])
    };
    check(
        machine(vec![marked("/state/runs/aaaaaaaa/tmp")]),
        Options::default(),
        &[(Kind::Survivor, 100, "")],
    );
    // Another registry's, or one that is still there, or below a living keeper.
    check(machine(vec![marked("/other/runs/aaaaaaaa/tmp")]), Options::default(), &[]);
    let mut seen = machine(vec![marked("/state/runs/aaaaaaaa/tmp")]);
    seen.runs.push(run(State::Running));
    check(seen, Options::default(), &[]);
    let kept = Process { stat: Stat { parent: 70, ..marked("").stat }, ..marked("/state/runs/aaaaaaaa/tmp") };
    check(machine(vec![process(70, 1, &["agent-run"]), kept]), Options::default(), &[]);
    let mut seen = machine(vec![process(100, 1, &["x"])]);
    seen.in_cgroups.insert(100, id);
    check(seen, Options::default(), &[(Kind::Survivor, 100, "")]);
}

/// Ended when the test is, whatever becomes of that.
struct Sleeper(std::process::Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Sleeper {
    fn new() -> (Sleeper, ProcessRef) {
        let child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let (identity, _) = ProcessRef::observe(child.id() as Pid).unwrap();
        (Sleeper(child), identity)
    }
}

fn leftover(process: ProcessRef) -> Plan {
    let (pids, members) = (vec![process.pid], vec![process.clone()]);
    Plan { items: vec![Item { root: Some(process), members, pids, ..Item::of(Kind::Leftover) }] }
}

#[test]
fn who_has_ended_between_look_and_kill_is_gone() {
    let (sleeper, process) = Sleeper::new();
    drop(sleeper);
    let report = apply(&leftover(process), &Options::default());
    assert!(report.remaining().next().is_none(), "{report:?}");
}

#[test]
fn a_number_that_is_another_process_by_now_is_left_alone() {
    let (mut sleeper, process) = Sleeper::new();
    let earlier = ProcessRef { start_time: process.start_time - 1, inode: None, ..process };
    apply(&leftover(earlier), &Options::default());
    assert_eq!(sleeper.0.try_wait().unwrap(), None);
}
