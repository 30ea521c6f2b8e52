//! The verbs on runs.

use serde_json::{Value, json};

use crate::harness::{Place, Running, misbehave, wait_until};

/// A run that waits, named `name`.
fn paused(place: &Place, name: &str, options: &[&str]) -> Running {
    let options = [&["--name", name], options].concat();
    place.start(&options, &["touch", &place.text(name), "pause"], name)
}

fn status(place: &Place, run: &str) -> Value {
    place.run(&["status", "--json", run]).json()["run"].clone()
}

#[test]
fn ps_lists_what_runs() {
    let place = Place::new();
    let empty = place.run(&["ps"]).expect_code(0);
    assert_eq!(empty.stdout.lines().count(), 1);
    assert_eq!(place.run(&["ps", "--json"]).json(), json!({ "version": 1, "runs": [] }));
    assert!(!place.state().exists(), "looking makes nothing");
    let running = paused(&place, "web", &["--ttl", "1h", "--label", "team=a"]);
    wait_until("the run is entered as running", || status(&place, "web")["state"] == "running");
    let listed = place.run(&["ps", "--json"]).expect_code(0).json();
    let run = &listed["runs"][0];
    assert_eq!(
        (&run["name"], &run["state"], &run["labels"]["team"]),
        (&json!("web"), &json!("running"), &json!("a"))
    );
    assert_eq!(run["usage"]["pids"], 1);
    assert!(run["usage"]["rss_bytes"].as_u64().unwrap() > 0);
    let table = place.run(&["ps"]).expect_code(0).stdout;
    assert!(table.lines().nth(1).unwrap().contains("web") && table.contains(" 1h "), "{table}");
    assert_eq!(place.run(&["ps", "--json", "--label", "team=b"]).json()["runs"], json!([]));
    place.run(&["stop", "web"]).expect_code(0);
    running.wait().expect_code(143);
    assert_eq!(place.run(&["ps", "--json"]).json()["runs"], json!([]));
    assert_eq!(place.run(&["ps", "--all", "--json"]).json()["runs"][0]["end"]["reason"], "stop");
}

#[test]
fn the_table_fits_the_terminal() {
    let place = Place::new();
    let long = "x".repeat(300);
    let running = paused(&place, "web", &["--env", &format!("A={long}")]);
    place.run(&["sh", "-c", "exit 0", &long]).expect_code(0);
    for columns in [60, 100, 200] {
        let mut pty = crate::harness::pty::Pty::shell(&place, "bash");
        pty.ask(&format!("stty cols {columns}"));
        let shown = pty.ask("$RUN ps --all");
        assert_eq!(shown.lines().count(), 3, "{shown}");
        assert!(shown.lines().all(|line| line.trim_end().chars().count() <= columns), "{columns}: {shown}");
        assert!(shown.lines().any(|line| line.trim_end().ends_with('…')), "{shown}");
        pty.leave();
    }
    running.signal(agent_run::Signal::TERM);
    running.wait().expect_code(143);
}

#[test]
fn status_has_the_codes_of_init_scripts() {
    let place = Place::new();
    let running = paused(&place, "web", &["--idle", "1h"]);
    place.wait_for_record("it runs", |record| record["state"] == "running");
    let done = place.run(&["status", "--json", "web"]).expect_code(0);
    let run = &done.json()["run"];
    assert_eq!(run["leader"]["pid"], place.pid_in("web"));
    assert!(run["usage"]["fds"].as_u64().unwrap() >= 3);
    assert!(run["idle_s"].as_f64().unwrap() < 3600.0);
    assert_eq!(run["idle_timeout_s"], 3600.0);
    let id = run["id"].as_str().unwrap().to_owned();
    let shown = place.run(&["status", &id[..4]]).expect_code(0).stdout;
    assert!(shown.contains(&id) && shown.contains("running"), "{shown}");
    running.signal(agent_run::Signal::TERM);
    running.wait().expect_code(143);
    let done = place.run(&["status", "web"]).expect_code(3);
    assert!(done.stdout.contains("signal, code 143"), "{done:?}");
    let unknown = place.run(&["status", "--json", "nobody"]).expect_code(4);
    assert_eq!(unknown.json()["error"]["kind"], "unknown_run");
}

#[test]
fn stop_returns_when_nothing_is_left() {
    let place = Place::new();
    let words = [
        "daemon",
        "touch",
        &place.text("daemon"),
        "ignore",
        "TERM",
        "pause",
        "end",
        "touch",
        &place.text("ready"),
        "pause",
    ];
    let running = place.start(&["--name", "web", "-k", "200ms"], &words, "ready");
    place.wait_for_file("daemon");
    let dry = place.run(&["stop", "--dry-run", "web"]).expect_code(0);
    assert!(dry.stdout.starts_with("would stop web"), "{dry:?}");
    let stopped = place.run(&["stop", "web"]).expect_code(0);
    assert!(
        stopped.stdout.contains("stopped web") && stopped.stdout.contains("1 needed SIGKILL"),
        "{stopped:?}"
    );
    assert!(crate::harness::is_dead(place.pid_in("daemon")));
    assert!(place.unfinished().is_empty());
    // The leader obeyed, so its death is what a shell sees.
    assert_eq!(running.wait().signal, Some(15));
    place.run(&["stop", "web"]).expect_code(0);
}

#[test]
fn stop_takes_another_grace() {
    let place = Place::new();
    let words = ["ignore", "TERM", "touch", &place.text("ready"), "pause"];
    let running = place.start(&["--name", "web", "-k", "1h"], &words, "ready");
    place.run(&["stop", "web", "--grace", "50ms"]).expect_code(0);
    running.wait().expect_code(137);
}

#[test]
fn stop_all_stops_all_and_labels_choose() {
    let place = Place::new();
    let a = paused(&place, "a", &["--label", "side=left"]);
    let b = paused(&place, "b", &["--label", "side=right"]);
    let c = paused(&place, "c", &["--label", "side=right"]);
    let done = place.run(&["stop", "--label", "side=right", "--json"]).expect_code(0);
    assert_eq!(done.json()["runs"].as_array().unwrap().len(), 2);
    b.wait().expect_code(143);
    c.wait().expect_code(143);
    assert_eq!(place.run(&["ps", "--json"]).json()["runs"][0]["name"], "a");
    place.run(&["stop", "--all"]).expect_code(0);
    a.wait().expect_code(143);
    place.run(&["stop", "--all"]).expect_code(0);
}

#[test]
fn renew_moves_the_deadline() {
    let place = Place::new();
    let running = paused(&place, "web", &["--ttl", "1h"]);
    place.wait_for_record("it runs", |record| record["state"] == "running");
    let before = status(&place, "web")["deadline_boot_s"].as_f64().unwrap();
    place.run(&["renew", "web", "2h"]).expect_code(0);
    let after = status(&place, "web");
    assert!(after["deadline_boot_s"].as_f64().unwrap() > before + 3000.0);
    assert_eq!(after["ttl_s"], 7200.0);
    place.run(&["renew", "web", "0"]).expect_code(0);
    assert_eq!(status(&place, "web")["expires_at"], Value::Null);
    place.run(&["renew", "web", "10ms"]).expect_code(0);
    running.wait().expect_code(124);
    place.run(&["renew", "web", "1h"]).expect_code(3);
}

#[test]
fn wait_returns_the_runs_code() {
    let place = Place::new();
    let words = ["on", "USR1", "exit", "42", "end", "touch", &place.text("ready"), "pause"];
    let running = place.start(&["--name", "job"], &words, "ready");
    place.run(&["wait", "job", "--timeout", "50ms"]).expect_code(124);
    let waiter = Running::spawn(place.command(&["wait", "job"]));
    running.signal(agent_run::Signal::USR1);
    waiter.wait().expect_code(42);
    running.wait().expect_code(42);
    place.run(&["wait", "job"]).expect_code(42);
}

#[test]
fn logs_follow_to_the_end() {
    let place = Place::new();
    let words = [
        "print",
        "one",
        "on",
        "USR1",
        "print",
        "two",
        "exit",
        "0",
        "end",
        "touch",
        &place.text("ready"),
        "pause",
    ];
    let running = place.start(&["--name", "job", "--log", &place.text("log")], &words, "ready");
    wait_until("the log has the first line", || {
        std::fs::read_to_string(place.path("log")).is_ok_and(|text| text == "one\n")
    });
    assert_eq!(place.run(&["logs", "job"]).expect_code(0).stdout, "one\n");
    let follower = Running::spawn(place.command(&["logs", "-f", "job"]));
    running.signal(agent_run::Signal::USR1);
    assert_eq!(follower.wait().expect_code(0).stdout, "one\ntwo\n");
    running.wait().expect_code(0);
    let bare = paused(&place, "bare", &[]);
    assert!(place.run(&["logs", "bare"]).expect_code(2).stderr.contains("--log"));
    bare.signal(agent_run::Signal::TERM);
    bare.wait().expect_code(143);
}

#[test]
fn a_verb_is_one_only_as_the_first_word() {
    let place = Place::new();
    std::fs::write(place.path("work/ps"), "#!/bin/sh\necho my own ps $1\n").unwrap();
    std::fs::set_permissions(place.path("work/ps"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    for words in [&["--ttl", "1h", "ps"][..], &["--", "ps"], &["run", "ps"]] {
        let mut command = place.command(words);
        command.env("PATH", place.path("work"));
        command.arg("--all");
        assert_eq!(crate::harness::finish(command).expect_code(0).stdout, "my own ps --all\n");
    }
}

#[test]
fn help_and_version_are_answers() {
    let place = Place::new();
    let help = place.run(&["--help"]).expect_code(0);
    assert!(help.stdout.contains("Usage: agent-run [OPTIONS] [--] COMMAND [ARG]..."), "{help:?}");
    assert_eq!(
        place.run(&["--version"]).expect_code(0).stdout,
        format!("agent-run {}\n", env!("CARGO_PKG_VERSION"))
    );
    assert!(place.run(&["stop", "--help"]).expect_code(0).stdout.contains("--dry-run"));
    let _ = misbehave();
}

#[test]
fn a_finished_run_is_not_renewed() {
    let place = Place::new();
    place.run(&["--name", "web", "true"]).expect_code(0);
    let done = place.run(&["renew", "web", "1h", "--json"]).expect_code(3);
    assert!(done.stderr.contains("run web has ended"), "{done:?}");
    assert_eq!(done.json()["error"]["kind"], "not_running");
    let done = place.run(&["stop", "web"]).expect_code(0);
    assert!(done.stdout.contains("had ended already"), "{done:?}");
}

#[test]
fn a_crash_is_told() {
    let place = Place::new();
    let done = place.run(&["--core", "0", "sh", "-c", "kill -SEGV $$"]).expect_code(139);
    assert_eq!(done.stderr, "agent-run: 'sh' died of SIGSEGV\n");
    let done = place.run(&["sh", "-c", "kill -PIPE $$"]).expect_code(141);
    assert_eq!(done.stderr, "");
}

#[test]
fn logs_are_lines_for_a_program() {
    let place = Place::new();
    let log = place.text("log");
    place.run(&["--name", "job", "--log", &log, "sh", "-c", "echo one; printf two"]).expect_code(0);
    let done = place.run(&["logs", "job", "--json"]).expect_code(0);
    assert_eq!(done.stdout, "{\"version\":1,\"line\":\"one\"}\n{\"version\":1,\"line\":\"two\"}\n");
    assert_eq!(place.run(&["logs", "job"]).expect_code(0).stdout, "one\ntwo");
}

#[test]
fn nothing_is_stopped_if_one_is_unknown() {
    let place = Place::new();
    let running = place.start(&["--name", "web"], &["touch", &place.text("web"), "pause"], "web");
    let done = place.run(&["stop", "web", "nope"]).expect_code(4);
    assert!(done.stderr.contains("nothing was stopped"), "{done:?}");
    place.run(&["stop", "web"]).expect_code(0);
    running.wait().expect_code(143);
}

#[test]
fn a_run_without_a_socket_can_be_stopped() {
    let place = Place::new();
    let running = place.start(&["--name", "web"], &["touch", &place.text("web"), "pause"], "web");
    let entry = place.wait_for_record("it runs", |record| record["state"] == "running")["id"].clone();
    std::fs::remove_file(place.state().join("runs").join(entry.as_str().unwrap()).join("control.sock"))
        .unwrap();
    place.run(&["stop", "web"]).expect_code(0);
    running.wait().expect_code(143);
    place.expect_nothing_left();
}
