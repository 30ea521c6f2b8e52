//! A signal between any two lines: whoever dies or is stopped at whatever step, nothing is left in the end.
//!
//! Only debug builds have these steps; in a release build the first round says so and the test ends.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::harness::{Done, Place, Running, agent_run, misbehave, skipped, wait_until};

/// A run whose leader leaves a daemon behind that must be killed.
const SCRIPT: &str = "daemon ignore TERM touch ../up pause end await ../up exit 3";

/// More steps than anybody has.
const MOST: u32 = 60;

/// Runs with `signal` sent to `role` at `step`; returns how it ended.
fn run_with_fault(place: &Place, role: &str, step: u32, signal: &str) -> Done {
    let mut command = place.command(&["-k", "50ms", "--", misbehave()]);
    command.args(SCRIPT.split(' ')).env("AGENT_RUN_FAULT", format!("{role}:{step}:{signal}"));
    Running::spawn(command).wait()
}

fn leaves() -> Vec<String> {
    let entries = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(fs::read_dir);
    let names = entries.into_iter().flatten().flatten().flatten().map(|entry| entry.file_name());
    names.filter_map(|name| name.into_string().ok()).filter(|name| name.starts_with("agent-run-")).collect()
}

#[track_caller]
fn nothing_is_left(place: &Place, what: &str) {
    // Whoever is left of the two ends the run; if nobody is, the next launch does.
    let _ = fs::remove_file(place.state().join("looked"));
    // An entry that has no name yet is left alone for a minute; that time is over.
    for entry in fs::read_dir(place.state().join("runs")).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(b".new-") {
            let past = SystemTime::now() - Duration::from_secs(120);
            fs::File::open(entry.path()).unwrap().set_modified(past).unwrap();
        }
    }
    place.run(&["-q", misbehave(), "exit", "0"]).expect_code(0);
    let runs = place.state().join("runs");
    let entries = || fs::read_dir(&runs).map_or(0, Iterator::count);
    wait_until(&format!("{what}: the entry is gone"), || entries() == 0);
    wait_until(&format!("{what}: the processes are gone"), || place.processes().is_empty());
    let ended = place.ended();
    for record in &ended {
        assert_eq!(record["end"]["verified"], true, "{what}: {record}");
        let cgroup = record["cgroup"].as_str().unwrap_or("/nonexistent");
        assert!(!Path::new(cgroup).exists(), "{what}: {cgroup} is left");
        let id = record["id"].as_str().unwrap();
        assert!(!leaves().iter().any(|name| name.ends_with(id)), "{what}: a leaf is left");
    }
}

#[track_caller]
fn every_step_of(role: &str) {
    let mut killed = 0;
    for step in 1..MOST {
        let place = Place::new();
        let done = run_with_fault(&place, role, step, "KILL");
        let undisturbed = done.code == Some(3) && done.stderr.is_empty();
        nothing_is_left(&place, &format!("{role} killed at step {step}"));
        if !undisturbed {
            killed += 1;
        } else if step > killed + 3 {
            // Some steps come after the last word: three undisturbed runs mean that there are no more.
            assert!(killed > 5 || !cfg!(debug_assertions), "{role} has only {killed} steps");
            return;
        }
    }
    panic!("{role} has more than {MOST} steps");
}

#[test]
fn the_guard_may_die_at_every_step() {
    every_step_of("guard");
}

#[test]
fn the_supervisor_may_die_at_every_step() {
    every_step_of("supervisor");
}

/// Signals that are read as data may come at any step, and cost nothing but the end that they ask for.
#[track_caller]
fn is_heeded_at_every_step(role: &str, signal: &str, codes: &[i32]) {
    // Somewhat more than either has.
    for step in 1..30 {
        let place = Place::new();
        let done = run_with_fault(&place, role, step, signal);
        let what = format!("{signal} to the {role} at step {step}");
        assert!(codes.contains(&done.shell_code()), "{what}: {done:?}");
        nothing_is_left(&place, &what);
    }
}

#[test]
fn the_guard_may_be_asked_to_end_at_every_step() {
    // 3 if the leader had ended by then.
    is_heeded_at_every_step("guard", "TERM", &[143, 3]);
}

#[test]
fn the_supervisor_may_be_asked_to_end_at_every_step() {
    is_heeded_at_every_step("supervisor", "TERM", &[143, 3]);
}

#[test]
fn the_supervisor_may_be_stopped_at_every_step() {
    is_heeded_at_every_step("supervisor", "STOP", &[3]);
}

#[test]
fn a_fork_that_fails_leaves_nothing() {
    if agent_run::sys::process::own_uid() == 0 {
        return skipped("nothing keeps root from forking");
    }
    let mut refused = 0;
    for limit in 1..8 {
        let place = Place::new();
        // In a user namespace of its own the limit counts what is in there alone.
        let script = format!("ulimit -u {limit}; exec {} -q -- {} exit 4", agent_run(), misbehave());
        let mut command = Command::new("unshare");
        place.furnish(&mut command);
        command.args(["--user", "--map-current-user", "bash", "-c", &script]);
        let done = Running::spawn(command).wait();
        if done.stderr.contains("unshare:") {
            return skipped(&done.stderr);
        }
        if done.code == Some(125) {
            refused += 1;
            assert_eq!(done.stderr.lines().count(), 1, "{done:?}");
        } else {
            assert_eq!(done.code, Some(4), "{done:?}");
        }
        place.expect_nothing_left();
    }
    assert!(refused > 0, "no fork was refused");
}
