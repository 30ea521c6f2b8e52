//! The promise: whatever a run has started is gone when it ends, however it ends and however that hides.
//!
//! Every ending meets a tree of all kinds of children at once, with and without a stopped one. With
//! `AGENT_RUN_TEST_FULL=1` each kind also meets each ending alone.

use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use agent_run::Signal;
use agent_run::sys::process::Pidfd;

use crate::harness::{Done, Place, Running, crowding, is_slow_machine, misbehave, wait_until};

/// Long enough for one process to have its turn among the hundreds that all wake to die.
const GRACE: Duration = Duration::from_millis(600);

/// What the issue of a teardown may take beyond the grace.
const MARGIN: Duration = Duration::from_millis(500);

/// Kinds of children, each a script of the helper; `@` becomes the place's own word.
const KINDS: [(&str, &str); 11] = [
    ("plain", "child touch ../up-plain pause end"),
    ("session", "session touch ../up-session pause end"),
    ("daemon", "daemon touch ../up-daemon pause end"),
    ("polite", "session daemon on TERM touch ../told exit 0 end touch ../up-polite pause end pause end"),
    ("deaf", "daemon ignore ALL touch ../up-deaf pause end"),
    ("bare", "daemon touch ../up-bare bare note @ pause end"),
    ("renamed", "session name systemd touch ../up-renamed pause end"),
    ("wide", "wide 200 append ../wide pause end child await ../wide touch ../up-wide pause end"),
    ("deep", "deep 200 touch ../up-deep ignore TERM pause end"),
    ("hopping", "child touch ../up-hopping hop end"),
    ("breeding", "child subreaper on TERM daemon ignore TERM pause end end touch ../up-breeding pause end"),
];

const STOPPED: (&str, &str) = ("stopped", "child touch ../up-stopped stop pause end");

/// How a run ends, and what is then true.
struct Way {
    name: &'static str,
    /// What the leader does when it is told to go on.
    leader: &'static str,
    end: fn(&Place, &Running),
    reason: &'static str,
    code: i32,
}

fn go(place: &Place, _: &Running) {
    std::fs::write(place.path("go"), "go").unwrap();
}

fn to_guard(signal: Signal) -> impl Fn(&Place, &Running) {
    move |_, guard| guard.signal(signal)
}

fn to_group(guard: &Running, signal: Signal) {
    // The guard leads the group and is our own child, so the number is its own.
    agent_run::sys::process::signal_group_of_own_child(guard.pid(), signal).unwrap();
}

const WAYS: [Way; 12] = [
    Way { name: "the leader exits", leader: "exit 3", end: go, reason: "exit", code: 3 },
    Way { name: "the leader crashes", leader: "die SEGV", end: go, reason: "signal", code: 139 },
    Way {
        name: "the lease ends",
        leader: "pause",
        end: |place, _| drop(place.run(&["renew", &id_of(place), "1ms"]).expect_code(0)),
        reason: "ttl",
        code: 124,
    },
    Way {
        name: "stop",
        leader: "pause",
        end: |place, _| drop(place.run(&["stop", &id_of(place)]).expect_code(0)),
        reason: "stop",
        code: 143,
    },
    Way {
        name: "TERM",
        leader: "pause",
        end: |p, g| to_guard(Signal::TERM)(p, g),
        reason: "signal",
        code: 143,
    },
    Way {
        name: "INT",
        leader: "pause",
        end: |p, g| to_guard(Signal::INT)(p, g),
        reason: "signal",
        code: 130,
    },
    Way {
        name: "HUP",
        leader: "pause",
        end: |p, g| to_guard(Signal::HUP)(p, g),
        reason: "signal",
        code: 129,
    },
    Way {
        name: "QUIT",
        leader: "pause",
        end: |p, g| to_guard(Signal::QUIT)(p, g),
        reason: "signal",
        code: 131,
    },
    Way {
        name: "KILL of the guard",
        leader: "pause",
        end: |p, g| to_guard(Signal::KILL)(p, g),
        reason: "supervisor_lost",
        code: 137,
    },
    Way {
        name: "KILL of the supervisor",
        leader: "pause",
        end: |place, _| kill_supervisor(place),
        reason: "supervisor_lost",
        code: 125,
    },
    Way {
        name: "KILL of the guard's group",
        leader: "pause",
        end: |_, guard| to_group(guard, Signal::KILL),
        reason: "supervisor_lost",
        code: 137,
    },
    Way {
        name: "TERM and then KILL of the guard's group",
        leader: "pause",
        end: |place, guard| {
            to_group(guard, Signal::TERM);
            // As soon as the teardown has begun, which a harness's 200 ms are longer than.
            wait_until("the teardown has begun", || {
                let unfinished = place.unfinished();
                unfinished.is_empty()
                    || place.record_in(&unfinished[0]).is_none_or(|it| it["state"] == "stopping")
            });
            to_group(guard, Signal::KILL);
        },
        reason: "signal",
        code: 137,
    },
];

fn id_of(place: &Place) -> String {
    place.the_record()["id"].as_str().unwrap().to_owned()
}

fn kill_supervisor(place: &Place) {
    let pid = place.supervisor();
    Pidfd::open(pid).unwrap().send(Signal::KILL).unwrap();
}

/// Lets a tree of `kinds` meet its end by `way`.
#[track_caller]
fn meet(way: &Way, kinds: &[(&str, &str)], options: &[&str]) {
    let _alone = crowding();
    let place = Place::new();
    let mut script: Vec<String> = Vec::new();
    for (name, kind) in kinds {
        let kind = if is_slow_machine() { kind.replace("200", "20") } else { (*kind).to_owned() };
        let words = kind.split(' ').map(|word| if word == "@" { place.marker() } else { word.to_owned() });
        script.extend(words.chain(["await".to_owned(), format!("../up-{name}")]));
    }
    script.extend(["touch", "../ready", "await", "../go"].map(String::from));
    script.extend(way.leader.split(' ').map(String::from));
    let mut command =
        place.command(&[&["-q", "--core", "0", "-k", "600ms"], options, &["--", misbehave()]].concat());
    command.args(&script).process_group(0);
    let begun = Instant::now();
    let guard = Running::spawn(command);
    place.wait_for_file("ready");
    // What a loaded machine takes to start hundreds of processes tells what it takes to end them.
    let pace = begun.elapsed() * 2;
    if way.leader == "pause" {
        go(&place, &guard);
    }
    let mark =
        place.wait_for_record("it is marked", |record| !record["mark"].is_null())["mark"].as_u64().unwrap();
    let begun = Instant::now();
    (way.end)(&place, &guard);
    let done: Done = guard.wait();
    wait_until(&format!("the run is over: {done:?} {options:?}"), || place.unfinished().is_empty());
    let took = begun.elapsed();
    let what = format!("{} {options:?}", way.name);
    // A small tree may be gone before the second signal comes.
    let in_time = way.name.starts_with("TERM and then") && done.shell_code() == 143;
    assert!(done.shell_code() == way.code || in_time, "{what}: {done:?}");
    let end = place.the_ended()["end"].clone();
    assert_eq!(
        (end["reason"].as_str(), end["verified"].as_bool()),
        (Some(way.reason), Some(true)),
        "{what}: {end}"
    );
    assert_eq!(marked(mark), Vec::<i32>::new(), "{what}: processes with the run's mark are left");
    place.expect_nothing_left();
    if kinds.iter().any(|(name, _)| *name == "polite") {
        assert!(place.path("told").exists(), "{what}: the polite daemon was not asked");
    }
    let limit = if is_slow_machine() { (GRACE + MARGIN) * 10 } else { GRACE + MARGIN.max(pace) };
    assert!(took < limit, "{what}: it took {took:?}");
}

/// Processes that bear the run's rlimit, which nothing in the tree can lose by accident.
fn marked(mark: u64) -> Vec<i32> {
    let bears = |pid: &i32| {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
        limits.contains(&format!(" {mark} "))
    };
    agent_run::sys::tree::all_processes().filter(bears).collect()
}

/// The ladder: what this machine offers, and each lower rung alone. (Each is the default in some place.)
const RUNGS: [&[&str]; 3] = [&[], &["--cgroup", "false"], &["--isolate", "pid", "--cgroup", "false"]];

fn all_kinds(way: &Way) {
    for rung in RUNGS {
        if rung.contains(&"pid") && !crate::harness::offers("pid_namespace") {
            crate::harness::skipped("--isolate pid cannot be had here");
            continue;
        }
        meet(way, &KINDS, rung);
        meet(way, &[&KINDS[..], &[STOPPED]].concat(), rung);
    }
}

macro_rules! endings {
    ($($name:ident = $index:literal;)*) => {
        $(#[test] fn $name() { all_kinds(&WAYS[$index]); })*
    };
}

endings! {
    leader_exits = 0;
    leader_crashes = 1;
    lease_ends = 2;
    stop = 3;
    term = 4;
    int = 5;
    hup = 6;
    quit = 7;
    guard_killed = 8;
    supervisor_killed = 9;
    group_killed = 10;
    term_then_kill = 11;
}

#[test]
fn every_kind_meets_every_ending_alone() {
    if std::env::var_os("AGENT_RUN_TEST_FULL").is_none() {
        return crate::harness::skipped("the full product; AGENT_RUN_TEST_FULL=1 runs it");
    }
    for way in &WAYS {
        for kind in KINDS.iter().chain([&STOPPED]) {
            meet(way, std::slice::from_ref(kind), &[]);
            meet(way, &[*kind, STOPPED], &[]);
        }
    }
}
