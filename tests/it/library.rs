//! The library: launched through the binary, asked by the control socket.

use std::process::Command;

use crate::harness::{Place, agent_run, finish, misbehave};

/// The library reads the process's own environment, so it is used from a process of its own: the example.
fn example(place: &Place, words: &[&str]) -> crate::harness::Done {
    let beside = std::path::Path::new(agent_run()).parent().unwrap().join("examples/launch");
    let mut command = Command::new(beside);
    command.args(words);
    place.furnish(&mut command);
    command.env("AGENT_RUN_BIN", agent_run());
    finish(command)
}

#[test]
fn the_library_launches_and_waits() {
    let place = Place::new();
    let done = example(&place, &[misbehave(), "print", "hello", "exit", "5"]).expect_code(0);
    assert_eq!(done.stdout, "hello\n");
    assert!(done.stderr.contains("it ended: exit, code 5"), "{done:?}");
    assert_eq!(place.the_ended()["labels"]["started-by"], "example");
}

#[test]
fn what_the_library_launches_has_its_lease_and_no_leaked_descriptor() {
    let place = Place::new();
    let done = example(&place, &[misbehave(), "fds", "pause"]).expect_code(0);
    assert!(done.stderr.contains("it ended: ttl, code 124"), "{done:?}");
    let leaked =
        done.stdout.lines().filter(|line| line.contains("tree.locks") || line.contains("started")).count();
    assert_eq!(leaked, 1, "{done:?}");
}

#[test]
fn a_command_that_does_not_start_is_an_error() {
    let place = Place::new();
    let done = example(&place, &["no-such-command"]).expect_code(1);
    assert!(done.stderr.contains("command not found") && done.stderr.contains("NotStarted(127)"), "{done:?}");
}
