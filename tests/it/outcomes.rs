//! How runs end: codes, reasons, and that nothing is left, whoever dies.

use agent_run::Signal;
use serde_json::json;

use crate::harness::{Place, Running, is_dead, misbehave, wait_until};

#[test]
fn the_commands_code_is_ours() {
    for code in [0, 1, 3, 124, 125, 126, 127, 255] {
        let place = Place::new();
        place.run(&[misbehave(), "exit", &code.to_string()]).expect_code(code);
        let record = place.the_ended();
        assert_eq!((&record["end"]["reason"], &record["end"]["code"]), (&json!("exit"), &json!(code)));
    }
}

#[test]
fn we_die_of_what_a_shell_must_see_and_return_the_rest() {
    for (name, code, signal) in [
        ("INT", None, Some(2)),
        ("TERM", None, Some(15)),
        ("HUP", None, Some(1)),
        ("QUIT", None, Some(3)),
        ("KILL", Some(137), None),
        ("SEGV", Some(139), None),
        ("USR1", Some(138), None),
    ] {
        let place = Place::new();
        let done = place.run(&["--core", "0", misbehave(), "die", name]);
        assert_eq!((done.code, done.signal), (code, signal), "{name}: {done:?}");
        assert_eq!(place.the_ended()["end"]["reason"], "signal");
    }
}

#[test]
fn a_lease_ends_the_run_and_says_so() {
    let place = Place::new();
    let done = place.run(&["--ttl", "100ms", misbehave(), "pause"]).expect_code(124);
    assert_eq!(done.stderr.lines().count(), 1, "{done:?}");
    assert!(done.stderr.starts_with("agent-run: the lease of 100ms ended"), "{done:?}");
    assert_eq!(place.the_ended()["end"]["reason"], "ttl");
    let quiet = Place::new();
    assert_eq!(quiet.run(&["-q", "--ttl", "100ms", misbehave(), "pause"]).expect_code(124).stderr, "");
}

#[test]
fn preserve_status_keeps_the_commands_code() {
    let place = Place::new();
    place
        .run(&["--ttl", "100ms", "--preserve-status", misbehave(), "on", "TERM", "exit", "9", "end", "pause"])
        .expect_code(9);
}

#[test]
fn the_lease_ends_a_stopped_and_a_deaf_command_too() {
    for habit in [&["stop"][..], &["ignore", "TERM,INT,HUP", "pause"]] {
        let place = Place::new();
        let words = [&["--ttl", "100ms", "-k", "100ms", misbehave()], habit].concat();
        place.run(&words).expect_code(124);
    }
}

#[test]
fn what_the_command_leaves_behind_goes_with_it() {
    let place = Place::new();
    let script =
        "daemon pause end session pause end child ignore TERM touch ../deaf pause end await ../deaf exit 4";
    let words: Vec<&str> = script.split(' ').collect();
    let done = place.run(&[&["-k", "200ms", misbehave()], &words[..]].concat());
    done.expect_code(4);
    assert_eq!(place.the_ended()["end"]["killed"], 1);
    place.expect_nothing_left();
}

#[test]
fn a_pipes_reader_is_not_kept_waiting_by_what_is_left_behind() {
    let place = Place::new();
    let done = place.run(&["sh", "-c", "sleep 60 & echo hi"]);
    assert_eq!(done.expect_code(0).stdout, "hi\n");
}

#[test]
fn a_signal_to_us_ends_the_run_politely() {
    for (signal, name) in
        [(Signal::TERM, "TERM"), (Signal::INT, "INT"), (Signal::HUP, "HUP"), (Signal::QUIT, "QUIT")]
    {
        let place = Place::new();
        let words = [
            "daemon",
            "on",
            "TERM",
            "touch",
            &place.text("told"),
            "exit",
            "0",
            "end",
            "touch",
            &place.text("up"),
            "pause",
            "end",
            "touch",
            &place.text("ready"),
            "pause",
        ];
        let running = place.start(&["--core", "0"], &words, "ready");
        place.wait_for_file("up");
        running.signal(signal);
        let done = running.wait();
        assert_eq!(done.signal, Some(signal.number()), "{name}: {done:?}");
        place.wait_for_file("told");
        assert_eq!(place.the_ended()["end"]["reason"], "signal");
    }
}

#[test]
fn a_second_interrupt_does_not_wait_for_the_grace() {
    let place = Place::new();
    let words = ["ignore", "INT,TERM", "touch", &place.text("ready"), "pause"];
    let running = place.start(&["-k", "1h"], &words, "ready");
    running.signal(Signal::INT);
    place.wait_for_record("the teardown has begun", |record| record["state"] == "stopping");
    // A press just after the first is the same one, told twice; a person goes on pressing.
    wait_until("it has ended", || {
        running.signal(Signal::INT);
        is_dead(running.pid())
    });
    running.wait().expect_code(130);
}

#[test]
fn a_second_term_does_not_shorten_the_grace() {
    let place = Place::new();
    let words = ["on", "USR1", "exit", "7", "end", "ignore", "TERM", "touch", &place.text("ready"), "pause"];
    let running = place.start(&["-k", "1h"], &words, "ready");
    running.signal(Signal::TERM);
    place.wait_for_record("the teardown has begun", |record| record["state"] == "stopping");
    running.signal(Signal::TERM);
    running.signal(Signal::USR1);
    running.wait().expect_code(7);
}

#[test]
fn the_guards_death_ends_the_run() {
    let place = Place::new();
    let words =
        ["daemon", "touch", &place.text("daemon"), "pause", "end", "touch", &place.text("ready"), "pause"];
    let running = place.start(&[], &words, "ready");
    place.wait_for_file("daemon");
    running.signal(Signal::KILL);
    assert_eq!(running.wait().signal, Some(9));
    let record = place.the_ended();
    assert_eq!(record["end"]["reason"], "supervisor_lost");
    for name in ["ready", "daemon"] {
        assert!(is_dead(place.pid_in(name)));
    }
    wait_until("the supervisor has gone", || place.processes().is_empty());
}

#[test]
fn the_supervisors_death_ends_the_run_with_grace() {
    let place = Place::new();
    let words = [
        "daemon",
        "on",
        "TERM",
        "touch",
        &place.text("told"),
        "exit",
        "0",
        "end",
        "touch",
        &place.text("daemon"),
        "pause",
        "end",
        "child",
        "ignore",
        "TERM",
        "touch",
        &place.text("deaf"),
        "pause",
        "end",
        "touch",
        &place.text("ready"),
        "pause",
    ];
    let running = place.start(&["-k", "300ms"], &words, "ready");
    place.wait_for_file("daemon");
    place.wait_for_file("deaf");
    let record =
        place.wait_for_record("the supervisor is known", |record| record["supervisor"]["pid"].is_i64());
    let supervisor =
        agent_run::sys::process::Pidfd::open(record["supervisor"]["pid"].as_i64().unwrap() as i32).unwrap();
    supervisor.send(Signal::KILL).unwrap();
    let done = running.wait().expect_code(125);
    assert!(done.stderr.contains("supervisor was killed"), "{done:?}");
    place.wait_for_file("told");
    let record = place.the_ended();
    assert_eq!(
        (&record["end"]["reason"], &record["end"]["verified"]),
        (&json!("supervisor_lost"), &json!(true))
    );
}

#[test]
fn a_stopped_supervisor_goes_on() {
    let place = Place::new();
    let words = ["touch", &place.text("ready"), "pause"];
    let running = place.start(&["--ttl", "1s"], &words, "ready");
    let record =
        place.wait_for_record("the supervisor is known", |record| record["supervisor"]["pid"].is_i64());
    let supervisor =
        agent_run::sys::process::Pidfd::open(record["supervisor"]["pid"].as_i64().unwrap() as i32).unwrap();
    supervisor.send(Signal::parse("STOP").unwrap()).unwrap();
    running.wait().expect_code(124);
}

#[test]
fn idleness_is_counted_by_bytes() {
    let place = Place::new();
    place.run(&["--idle", "300ms", misbehave(), "pause"]).expect_code(124);
    assert_eq!(place.the_ended()["end"]["reason"], "idle");
    // One that prints all the time is not idle: it lives until its lease ends.
    let busy = Place::new();
    busy.run(&["--idle", "500ms", "--ttl", "1500ms", "sh", "-c", "while :; do echo x; sleep 0.05; done"])
        .expect_code(124);
    assert_eq!(busy.the_ended()["end"]["reason"], "ttl");
}

#[test]
fn a_used_up_cpu_time_has_its_reason() {
    let place = Place::new();
    place.run(&["--core", "0", "--cpu-time", "1s", misbehave(), "spin"]).expect_code(152);
    assert_eq!(place.the_ended()["end"]["reason"], "cpu_time");
}

#[test]
fn events_tell_the_story() {
    let place = Place::new();
    let events = place.text("events");
    place
        .run(&["--ttl", "100ms", "-k", "100ms", "--events", &events, misbehave(), "ignore", "TERM", "pause"])
        .expect_code(124);
    let text = std::fs::read_to_string(&events).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["started", "signal", "escalated", "ended"]);
    assert_eq!(lines[3]["end"]["reason"], "ttl");
}

#[test]
fn children_from_before_do_not_keep_us() {
    // `sleep & exec agent-run`: the sleep is our child and none of our business.
    let place = Place::new();
    let script = format!(
        "sleep 61 >/dev/null 2>&1 & echo $! > {}; exec {} -- sh -c 'exit 5'",
        place.text("sleep"),
        crate::harness::agent_run()
    );
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &script]);
    place.furnish(&mut command);
    crate::harness::finish(command).expect_code(5);
    let sleep = agent_run::sys::process::Pidfd::open(place.pid_in("sleep")).unwrap();
    assert!(sleep.is_alive());
    sleep.send(Signal::KILL).unwrap();
    wait_until("the sleep is dead", || place.processes().is_empty());
}

#[test]
fn an_inner_run_gets_one_term_and_ends_its_own_tree() {
    let place = Place::new();
    let inner = crate::harness::agent_run();
    let words = [
        "--",
        inner,
        "--",
        misbehave(),
        "on",
        "TERM",
        "append",
        &place.text("told"),
        "end",
        "on",
        "USR1",
        "exit",
        "0",
        "end",
        "touch",
        &place.text("ready"),
        "pause",
    ];
    let running = Running::spawn(place.command(&[&["-k", "1h"], &words[..]].concat()));
    place.wait_for_file("ready");
    running.signal(Signal::TERM);
    place.wait_for_file("told");
    let helper = agent_run::sys::process::Pidfd::open(place.pid_in("ready")).unwrap();
    helper.send(Signal::USR1).unwrap();
    running.wait().expect_code(0);
    assert_eq!(std::fs::read_to_string(place.path("told")).unwrap().lines().count(), 1);
}
