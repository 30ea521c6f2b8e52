//! The limits of the whole tree, held by the kernel or measured.

use std::time::{Duration, Instant};

use agent_run::Signal;

use crate::harness::{Place, Running, misbehave, wait_until};

#[test]
fn too_much_memory_ends_the_run_and_says_so() {
    let place = Place::new();
    let done =
        place.run(&["--memory", "100M", misbehave(), "wide", "3", "hold", "60", "pause", "end", "pause"]);
    let done = done.expect_code(137);
    assert!(done.stderr.contains("more than the 100 MiB of --memory"), "{done:?}");
    assert_eq!(done.stderr.lines().count(), 1, "{done:?}");
    let end = place.the_ended()["end"].clone();
    assert_eq!((&end["reason"], &end["exceeded"]["limit"]), (&"memory".into(), &(100u64 << 20).into()));
    assert!(end["exceeded"]["peak"].as_u64().unwrap() >= 100 << 20, "{end}");
    place.expect_nothing_left();
}

#[test]
fn shared_pages_count_once() {
    let place = Place::new();
    // 70 MiB, written before three more share them: 280 by the sum of what is resident.
    let script = "hold 70 wide 3 pause end touch ../held pause";
    let words: Vec<&str> = ["--memory", "150M", misbehave()].into_iter().chain(script.split(' ')).collect();
    let run = Running::spawn(place.command(&words));
    place.wait_for_file("held");
    let begun = Instant::now();
    wait_until("several looks have passed", || begun.elapsed() > Duration::from_millis(700));
    run.signal(Signal::TERM);
    run.wait().expect_code(143);
    assert_eq!(place.the_ended()["end"]["reason"], "signal");
}

#[test]
fn too_many_processes_end_the_run() {
    let place = Place::new();
    let done = place.run(&["--pids", "20", misbehave(), "wide", "50", "pause", "end", "pause"]);
    let done = done.expect_code(137);
    assert!(done.stderr.contains("more than the 20 of --pids"), "{done:?}");
    assert_eq!(place.the_ended()["end"]["reason"], "pids");
    place.expect_nothing_left();
}

#[test]
fn the_cpu_is_shared_out() {
    for rung in ["true", "false"] {
        let place = Place::new();
        let done = place.run(&["--cpu", "30%", "--cgroup", rung, misbehave(), "share", "2"]).expect_code(0);
        let share: f64 = done.stdout.trim().parse().unwrap();
        assert!((0.05..0.45).contains(&share), "{share} with cgroup {rung}");
        place.expect_nothing_left();
    }
}

#[test]
fn a_throttled_tree_is_ended_politely_all_the_same() {
    for rung in ["true", "false"] {
        let place = Place::new();
        let words = ["--cpu", "5%", "--cgroup", rung, "-k", "10s"];
        let script = "on TERM touch ../told exit 4 end child spin end touch ../ready pause";
        let run = place.start(&words, &script.split(' ').collect::<Vec<_>>(), "ready");
        run.signal(Signal::TERM);
        run.wait().expect_code(4);
        assert!(place.path("told").exists());
    }
}

#[test]
fn bad_limits_are_refused() {
    let place = Place::new();
    for (flag, value, said) in [
        ("--memory", "lots", "is not a size"),
        ("--memory", "0", "is too small"),
        ("--pids", "0", "is not a number of processes"),
        ("--cpu", "0%", "percent of one core"),
        ("--isolate", "net", "neither pid nor none"),
        ("--cgroup", "maybe", "neither true nor false"),
    ] {
        let done = place.run(&[flag, value, "touch", "../started"]).expect_code(125);
        assert!(done.stderr.contains(said) && done.stderr.lines().count() == 1, "{done:?}");
    }
    assert!(!place.path("started").exists());
}
