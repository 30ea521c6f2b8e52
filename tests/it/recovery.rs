//! Guard and supervisor are killed in the same instant: whoever comes next ends the run.

use agent_run::Signal;
use agent_run::sys::process::Pidfd;

use crate::harness::{Place, Running, agent_run, finish, misbehave, offers, skipped, wait_until};

/// Starts a run and kills guard and supervisor at once.
#[track_caller]
fn orphan(place: &Place, options: &[&str], script: &str) {
    let mut command = place.command(&[options, &["-q", "-k", "300ms", "--", misbehave()]].concat());
    command.args(script.split(' ').map(|word| if word == "@" { place.marker() } else { word.to_owned() }));
    let guard = Running::spawn(command);
    place.wait_for_file("ready");
    let record = place.wait_for_record("it runs", |record| record["state"] == "running");
    let supervisor = Pidfd::open(record["supervisor"]["pid"].as_i64().unwrap() as i32).unwrap();
    // Neither may see the other's end.
    guard.freeze();
    supervisor.send(Signal::KILL).unwrap();
    wait_until("the supervisor is dead", || !supervisor.is_alive());
    guard.signal(Signal::KILL);
    // The guard's zombie goes with this; what it started may hold its output.
    guard.forget();
    // A launch looks for orphans at most once in ten seconds; that time is over.
    std::fs::remove_file(place.state().join("looked")).unwrap();
}

/// The orphans' children are gone when `verb` returns, and the record says what has happened.
#[track_caller]
fn is_finished_by(place: &Place, what: &str, verb: &[&str]) {
    place.run(verb).expect_code(0);
    // A launch does not wait for it.
    wait_until(&format!("nothing is left: {what}"), || {
        place.unfinished().is_empty() && place.processes().is_empty()
    });
    let ended = place.ended();
    let lost = ended.iter().find(|record| record["end"]["reason"] == "supervisor_lost");
    let lost = lost.unwrap_or_else(|| panic!("{ended:#?}"));
    assert_eq!((&lost["end"]["verified"], &lost["end"]["code"]), (&true.into(), &125.into()));
    assert!(lost["dir"].is_null(), "{lost}");
}

#[test]
fn each_mark_alone_is_enough() {
    let marks = [
        ("the environment", "daemon unlimit closed ignore TERM touch ../ready pause end pause"),
        ("the rlimit", "daemon ignore TERM touch ../ready bare note @ pause end pause"),
        ("the tree lock", "daemon unlimit ignore TERM touch ../ready cleared note @ pause end pause"),
        ("being the leader", "unlimit ignore TERM touch ../ready bare note @ pause"),
        (
            "its parent",
            "daemon child unlimit touch ../ready bare note @ ignore TERM pause end pause end pause",
        ),
    ];
    for (mark, script) in marks {
        let place = Place::new();
        orphan(&place, &["--cgroup", "false"], script);
        assert!(!place.processes().is_empty(), "{mark}: nothing was left to find");
        is_finished_by(&place, mark, &[misbehave(), "exit", "0"]);
    }
    if offers("cgroup") {
        let place = Place::new();
        orphan(&place, &[], "daemon unlimit ignore TERM touch ../ready bare note @ pause end pause");
        assert!(!place.processes().is_empty(), "the cgroup: nothing was left to find");
        is_finished_by(&place, "a launch", &[misbehave(), "exit", "0"]);
    }
}

#[test]
fn what_is_left_is_asked_first() {
    let place = Place::new();
    orphan(
        &place,
        &[],
        "session daemon on TERM touch ../told exit 0 end touch ../ready pause end pause end pause",
    );
    is_finished_by(&place, "a launch", &[misbehave(), "exit", "0"]);
    assert!(place.path("told").exists());
}

#[test]
fn stop_ends_an_orphan() {
    let place = Place::new();
    orphan(&place, &[], "daemon ignore TERM touch ../ready pause end pause");
    let id = place.the_record()["id"].as_str().unwrap().to_owned();
    place.run(&["status", &id]).expect_code(1);
    is_finished_by(&place, "stop", &["stop", &id]);
}

#[test]
fn a_pid_namespace_leaves_nothing_to_recover() {
    if !offers("pid_namespace") {
        return skipped("--isolate pid cannot be had here");
    }
    let place = Place::new();
    let script = "session daemon on TERM touch ../told exit 0 end touch ../up pause end pause end \
                  daemon ignore TERM pause end await ../up touch ../ready pause";
    orphan(&place, &["--isolate", "pid"], script);
    wait_until("the init has ended all", || place.processes().is_empty());
    assert!(place.path("told").exists(), "nobody was asked");
    is_finished_by(&place, "a launch", &[misbehave(), "exit", "0"]);
}

#[test]
fn an_orphan_shows_what_lives_of_it() {
    let place = Place::new();
    orphan(&place, &[], "daemon ignore TERM touch ../ready pause end pause");
    let id = place.the_record()["id"].as_str().unwrap().to_owned();
    let run = place.run(&["status", &id, "--json"]).expect_code(1).json()["run"].clone();
    assert_eq!(run["state"], "orphaned");
    assert!(run["usage"]["pids"].as_u64().unwrap() >= 1, "{run}");
    is_finished_by(&place, "stop", &["stop", &id]);
}

#[test]
fn an_entry_that_cannot_be_read_can_be_stopped() {
    let place = Place::new();
    orphan(&place, &[], "daemon ignore TERM touch ../ready pause end pause");
    let entry = place.unfinished().remove(0);
    let leaf = place.the_record()["cgroup"].as_str().map(str::to_owned);
    std::fs::write(entry.join("record.jsonl"), "no record").unwrap();
    let id = entry.file_name().unwrap().to_str().unwrap().to_owned();
    let done = place.run(&["stop", &id, "-k", "200ms"]).expect_code(0);
    assert!(done.stdout.contains("whose record could not be read"), "{done:?}");
    place.expect_nothing_left();
    // Its cgroup is found by its name.
    if let Some(leaf) = leaf {
        assert!(!std::path::Path::new(&leaf).exists(), "{leaf} is left");
    }
}

#[test]
fn a_stranger_without_a_mark_is_spared() {
    let place = Place::new();
    let mut stranger = place.command(&[""; 0]);
    stranger = {
        let mut command = std::process::Command::new(misbehave());
        command.envs(stranger.get_envs().filter_map(|(name, value)| Some((name, value?)))).arg("pause");
        command
    };
    let stranger = Running::spawn(stranger);
    orphan(&place, &[], "daemon ignore TERM touch ../ready pause end pause");
    place.run(&[misbehave(), "exit", "0"]).expect_code(0);
    wait_until("the orphan is gone", || place.unfinished().is_empty() && place.processes().len() == 1);
    assert_eq!(place.processes(), [stranger.pid()]);
    stranger.signal(Signal::KILL);
    stranger.wait();
}

#[test]
fn a_recovery_within_a_run_does_not_hold_that_up() {
    let place = Place::new();
    orphan(&place, &[], "daemon ignore TERM touch ../ready pause end pause");
    let inner = format!("AGENT_RUN_STATE_DIR={}", place.text("state"));
    let outer = place.text("outer");
    let mut command =
        place.command(&["-k", "100ms", "--env", &inner, "--", agent_run(), misbehave(), "exit", "0"]);
    command.env("AGENT_RUN_STATE_DIR", &outer);
    finish(command).expect_code(0);
    // What has ended was looking after the orphan, and went politely.
    let entry = std::fs::read_dir(place.path("outer/ended")).unwrap().next().unwrap().unwrap();
    let text = std::fs::read_to_string(entry.path().join("record.jsonl")).unwrap();
    let record: serde_json::Value = serde_json::from_str(text.lines().next_back().unwrap()).unwrap();
    assert_eq!(record["end"]["killed"], 0, "{record}");
    place.run(&["stop", "--all"]).expect_code(0);
}
