//! A run ends with its owner.

use std::process::Command;

use agent_run::Signal;

use crate::harness::{Place, Running, agent_run, misbehave, wait_until};

const DEAF_CHILD: &str = "daemon ignore TERM touch ../ready pause end pause";

fn words(script: &str) -> Vec<&str> {
    script.split(' ').collect()
}

/// A process that waits, not under us.
fn stranger(place: &Place) -> Running {
    let mut command = Command::new("sleep");
    place.furnish(&mut command);
    command.arg("1000");
    Running::spawn(command)
}

#[test]
fn a_run_ends_with_the_process_that_owns_it() {
    let place = Place::new();
    let owner = stranger(&place);
    let run = place.start(&["-k", "200ms", "--owner", &owner.pid().to_string()], &words(DEAF_CHILD), "ready");
    assert_eq!(place.the_record()["owner"]["pid"], owner.pid());
    owner.signal(Signal::KILL);
    owner.wait();
    let done = run.wait().expect_code(143);
    assert!(done.stderr.contains("its owner") && done.stderr.lines().count() == 1, "{done:?}");
    assert_eq!(place.the_ended()["end"]["reason"], "owner_gone");
}

#[test]
fn the_parent_can_be_the_owner() {
    let place = Place::new();
    let script = format!("{} --owner parent {} {DEAF_CHILD} & sleep 1000", agent_run(), misbehave());
    let mut command = Command::new("sh");
    place.furnish(&mut command);
    command.args(["-c", &script]);
    let shell = Running::spawn(command);
    place.wait_for_file("ready");
    assert_eq!(place.the_record()["owner"]["pid"], shell.pid());
    let sleep = agent_run::sys::tree::all_processes()
        .filter_map(agent_run::sys::process::Stat::read)
        .find(|stat| stat.parent == shell.pid() && stat.comm == "sleep");
    let sleep = agent_run::sys::process::Pidfd::open(sleep.unwrap().pid).unwrap();
    shell.signal(Signal::KILL);
    sleep.send(Signal::KILL).unwrap();
    shell.forget();
    wait_until("the run is over", || place.unfinished().is_empty() && place.processes().is_empty());
    assert_eq!(place.the_ended()["end"]["reason"], "owner_gone");
}

#[test]
fn auto_finds_the_agent_that_set_the_marker() {
    let place = Place::new();
    // The outer shell stands for the agent, the inner one for the shell of its tool.
    let inner = format!("{} --owner auto {} {DEAF_CHILD}; true", agent_run(), misbehave());
    let script = format!("CLAUDECODE=1 CLAUDE_CODE_SESSION_ID=abc sh -c '{inner}'; true");
    let mut command = Command::new("sh");
    place.furnish(&mut command);
    command.args(["-c", &script]);
    let agent = Running::spawn(command);
    place.wait_for_file("ready");
    let owner = place.the_record()["owner"].clone();
    assert_eq!((&owner["agent"], &owner["session"]), (&"claude-code".into(), &"abc".into()));
    assert_eq!(owner["pid"], agent.pid());
    agent.signal(Signal::KILL);
    agent.forget();
    wait_until("the run is over", || place.unfinished().is_empty() && place.processes().is_empty());
    assert_eq!(place.the_ended()["end"]["reason"], "owner_gone");
}

#[test]
fn an_owner_that_is_not_there_is_refused() {
    let place = Place::new();
    let gone = stranger(&place);
    let pid = gone.pid().to_string();
    gone.signal(Signal::KILL);
    gone.wait();
    for (owner, said) in
        [(pid.as_str(), "is not running"), ("nobody", "neither auto"), ("-1", "neither auto")]
    {
        let done = place.run(&["--owner", owner, "touch", "../started"]).expect_code(125);
        assert!(done.stderr.contains(said) && done.stderr.lines().count() == 1, "{done:?}");
    }
    assert!(!place.path("started").exists());
}
