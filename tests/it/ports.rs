//! Ports: claimed, held, displaced, freed, shown.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use agent_run::Signal;
use agent_run::sys::process::{Stat, now_in_ticks, own_uid};
use serde_json::Value;

use crate::harness::{Done, Place, Running, agent_run, finish, is_dead, misbehave, skipped, wait_until};

/// Starts the helper bare, as a server that we never started; returns when it has touched `up`.
#[track_caller]
fn stranger(place: &Place, script: &str) -> Running {
    let mut command = Command::new(misbehave());
    command.args(script.split(' ')).args(["touch", &place.text("up"), "pause"]);
    place.furnish(&mut command);
    let running = Running::spawn(command);
    place.wait_for_file("up");
    running
}

/// Starts a run that listens on `port`.
#[track_caller]
fn server(place: &Place, options: &[&str], port: u16, script: &str) -> Running {
    let port = port.to_string();
    let words = [&["--port", &port], options, &["--", misbehave()]].concat();
    let mut command = place.command(&words);
    command.args(script.split(' ')).args(["touch", &place.text("up"), "pause"]);
    let running = Running::spawn(command);
    place.wait_for_file("up");
    running
}

fn entry(done: &Done) -> Value {
    let ports = done.json()["ports"].clone();
    assert_eq!(ports.as_array().unwrap().len(), 1, "{ports}");
    ports[0].clone()
}

fn end(running: Running) -> Done {
    running.signal(Signal::KILL);
    running.wait()
}

#[test]
fn the_command_is_told_its_ports() {
    let place = Place::new();
    let (one, other) = (place.port().to_string(), place.port().to_string());
    let script = "echo $PORT $PORT0 $PORT1 $HOST $1 $2";
    let words = ["--port", &one, "--port", &other, "--", "sh", "-c", script, "sh", "x{port}", "{port1}"];
    let done = place.run(&words).expect_code(0);
    assert_eq!(done.stdout, format!("{one} {one} {other} 127.0.0.1 x{one} {other}\n"));
    let record = place.the_ended();
    assert_eq!(
        record["ports"],
        serde_json::json!([one.parse::<u16>().unwrap(), other.parse::<u16>().unwrap()])
    );
    assert_eq!(record["command"][4], format!("x{one}"));
    // Whoever asks for none gets none.
    let place = Place::new();
    let done = place.run(&["sh", "-c", "echo ${PORT-none} ${HOST-none} $1", "sh", "{port}"]).expect_code(0);
    assert_eq!(done.stdout, "none none {port}\n");
}

#[test]
fn a_claim_is_the_kernels_and_ends_with_the_run() {
    let place = Place::new();
    let port = place.port();
    let run = server(&place, &[], port, "print up");
    // Held before anybody listens, against whoever asks for it properly.
    let text = port.to_string();
    let done = place.run(&["--port", &text, "--", "true"]).expect_code(125);
    assert!(done.stderr.contains(&format!("port {port} is held by run ")), "{done:?}");
    let shown = entry(&place.run(&["port", "show", &text, "--json"]));
    assert_eq!((&shown["claimed"], &shown["state"]), (&true.into(), &"bound".into()), "{shown}");
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    // A run is also found by its port.
    let found = place.run(&["status", &format!(":{port}"), "--json"]).expect_code(0).json();
    assert_eq!(found["run"]["port"], port);
    assert_eq!(found["run"]["url"], format!("http://127.0.0.1:{port}"));
    place.run(&["stop", &format!(":{port}")]).expect_code(0);
    run.wait();
    place.run(&["--port", &text, "--", "true"]).expect_code(0);
}

#[test]
fn a_server_binds_over_its_claim_and_one_that_cannot_is_told() {
    let place = Place::new();
    let port = place.port();
    for address in ["127.0.0.1", "0.0.0.0", "[::1]", "[::]"] {
        let words =
            ["--port", &port.to_string(), "--", misbehave(), "listen", &format!("{address}:{{port}}")];
        let done = place.run(&[&words[..], &["exit", "4"]].concat());
        assert_eq!(done.code, Some(4), "{address}: {done:?}");
    }
    let place = Place::new();
    let plain = format!("127.0.0.1:{port}");
    let words = ["--port", &port.to_string(), "--", misbehave(), "listen_plain", &plain, "exit", "4"];
    let done = place.run(&words).expect_code(98);
    assert!(done.stderr.contains("--claim release"), "{done:?}");
    // What it is told to do helps.
    let release = [&["--claim", "release"], &words[..]].concat();
    let done = place.run(&release).expect_code(4);
    assert_eq!(done.stderr, "");
}

#[test]
fn a_command_that_listened_or_succeeded_gets_no_hint() {
    let place = Place::new();
    let port = place.port();
    let script = format!("on USR1 exit 3 end listen 127.0.0.1:{port}");
    let run = server(&place, &["--events", "../events"], port, &script);
    wait_until("it was seen to listen", || {
        std::fs::read_to_string(place.path("events")).is_ok_and(|text| text.contains("\"listening\""))
    });
    run.signal(Signal::USR1);
    assert_eq!(run.wait().expect_code(3).stderr, "");
    let done = place.run(&["--port", "auto", "--", "true"]).expect_code(0);
    assert_eq!(done.stderr, "");
}

#[test]
fn a_command_can_be_given_the_listening_sockets() {
    let place = Place::new();
    let (one, other) = (place.port(), place.port());
    let (first, second) = (one.to_string(), other.to_string());
    let words = ["--port", &first, "--port", &second, "--claim", "listen-fd", "--", misbehave()];
    let mut command = place.command(&words);
    command.args(["answer_given", "2", "touch", "../up", "pause"]);
    let run = Running::spawn(command);
    place.wait_for_file("up");
    let mut said = String::new();
    TcpStream::connect(("127.0.0.1", one)).unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said.trim().parse::<i32>().unwrap(), place.pid_in("up"));
    run.signal(Signal::TERM);
    run.wait();
    assert!(TcpStream::connect(("127.0.0.1", one)).is_err());
}

#[test]
fn two_hundred_at_once_get_two_hundred_ports() {
    let _crowd = crate::harness::crowding();
    let place = Place::new();
    let words = ["-q", "--port", "auto", "--cgroup", "false", "--", misbehave(), "await", "../go"];
    let runs: Vec<Running> = (0..200).map(|_| Running::spawn(place.command(&words))).collect();
    let records = || -> Vec<Value> {
        let seen = place.unfinished();
        seen.iter().filter_map(|it| place.record_in(it)).filter(|it| it["state"] == "running").collect()
    };
    wait_until("all run", || records().len() == 200);
    let ports: BTreeSet<u64> = records().iter().map(|record| record["ports"][0].as_u64().unwrap()).collect();
    std::fs::write(place.path("go"), "go").unwrap();
    assert_eq!(ports.len(), 200, "{ports:?}");
    runs.into_iter().for_each(|run| drop(run.wait().expect_code(0)));
}

#[test]
fn a_held_port_names_its_holder() {
    let place = Place::new();
    let port = place.port();
    let holder = stranger(&place, &format!("listen 127.0.0.1:{port}"));
    let text = port.to_string();
    let done = place.run(&["--port", &text, "--", "true"]).expect_code(125);
    let expected =
        [format!("port {port} is held by misbehave (pid {}, user ", holder.pid()), "--force".to_owned()];
    assert!(expected.iter().all(|part| done.stderr.contains(part)), "{done:?}");
    assert_eq!(done.stderr.lines().count(), 1, "{done:?}");
    // The next free one instead, and it is said.
    let done = place.run(&["--port", &text, "--fallback", "--", "sh", "-c", "echo $PORT"]).expect_code(0);
    let other: u16 = done.stdout.trim().parse().unwrap();
    assert!(other > port && done.stderr.contains(&format!("port {other} was taken instead")), "{done:?}");
    assert!(!is_dead(holder.pid()));
    end(holder);
}

#[test]
fn force_displaces_who_holds_the_port() {
    let place = Place::new();
    let port = place.port();
    for script in [format!("listen 127.0.0.1:{port}"), format!("ignore TERM listen [::]:{port}")] {
        let holder = stranger(&place, &script);
        let words =
            ["-q", "--grace", "1s", "--port", &port.to_string(), "--force", "--", misbehave(), "listen"];
        let done = place.run(&[&words[..], &[&format!("0.0.0.0:{port}"), "exit", "4"]].concat());
        assert_eq!(done.code, Some(4), "{script}: {done:?}");
        assert!(is_dead(holder.pid()), "{script}");
        holder.wait();
        std::fs::remove_file(place.path("up")).unwrap();
    }
}

#[test]
fn a_run_is_displaced_through_its_supervisor() {
    let place = Place::new();
    let port = place.port();
    let script = format!("on TERM touch {} exit 0 end listen 127.0.0.1:{port}", place.text("told"));
    let first = server(&place, &["--name", "web"], port, &script);
    let text = port.to_string();
    let done = place.run(&["--port", &text, "--", "true"]).expect_code(125);
    assert!(done.stderr.contains(" web"), "{done:?}");
    place.run(&["--port", &text, "--name", "web", "--force", "--", "true"]).expect_code(0);
    assert!(place.path("told").exists());
    let said = first.wait().expect_code(0).stderr;
    assert!(said.contains("somebody wanted its port"), "{said}");
    let reasons: Vec<Value> = place.ended().iter().map(|record| record["end"]["reason"].clone()).collect();
    assert!(reasons.contains(&"displaced".into()), "{reasons:?}");
}

#[test]
fn a_name_is_displaced_too() {
    let place = Place::new();
    let first = place.start(&["--name", "web"], &["touch", "../up", "pause"], "up");
    place.run(&["--name", "web", "--", "true"]).expect_code(125);
    place.run(&["--name", "web", "--force", "--", "true"]).expect_code(0);
    assert_eq!(first.wait().shell_code(), 143);
}

#[test]
fn another_living_agents_run_is_not_taken_without_steal() {
    let place = Place::new();
    let port = place.port();
    let text = port.to_string();
    // Two agents: each has set its marker for what it starts.
    let agent = |script: String| {
        let mut command = Command::new("sh");
        place.furnish(&mut command);
        command.args(["-c", &script]);
        command
    };
    let (binary, helper, up) = (agent_run(), misbehave(), place.text("up"));
    let serve = format!(
        "CLAUDECODE=1 {binary} --port {port} -- {helper} listen 127.0.0.1:{port} touch {up} pause; true"
    );
    let theirs = Running::spawn(agent(serve));
    place.wait_for_file("up");
    let take =
        |more: &str| agent(format!("CODEX_CI=1 {binary} --port {port} --force {more} -- true; echo $?"));
    let done = finish(take(""));
    assert!(done.stdout == "125\n" && done.stderr.contains("--steal"), "{done:?}");
    assert!(done.stderr.contains("claude-code"), "{done:?}");
    let kept = place.run(&["port", "show", &text, "--json"]).json();
    assert!(kept["ports"].as_array().unwrap().iter().any(|it| it["state"] == "listening"), "{kept}");
    assert_eq!(finish(take("--steal")).stdout, "0\n");
    theirs.wait();
}

#[test]
fn freeing_ends_every_kind_of_listener() {
    let place = Place::new();
    let port = place.port();
    let kinds = [
        (format!("listen 127.0.0.1:{port}"), 1),
        (format!("listen [::1]:{port}"), 1),
        (format!("listen [::]:{port}"), 1),
        (format!("v6only [::]:{port}"), 1),
        (format!("listen_plain 0.0.0.0:{port}"), 1),
        // Prefork: one socket, five processes.
        (format!("listen 127.0.0.1:{port} wide 4 pause end"), 5),
        (
            format!(
                "reuseport 127.0.0.1:{port} child reuseport 127.0.0.1:{port} touch ../second pause end await ../second"
            ),
            2,
        ),
    ];
    for (script, count) in &kinds {
        let holder = stranger(&place, script);
        let done = place.run(&["port", "free", &port.to_string(), "--json"]).expect_code(0);
        let freed = entry(&done);
        assert_eq!(freed["status"], "cleaned", "{script}: {freed}");
        assert_eq!(freed["killed"].as_array().unwrap().len(), *count, "{script}: {freed}");
        assert_eq!(freed["still_listening"], false, "{script}: {freed}");
        wait_until(&format!("{script}: it is dead"), || is_dead(holder.pid()));
        holder.wait();
        wait_until("all are gone", || place.processes().is_empty());
        std::fs::remove_file(place.path("up")).unwrap();
    }
}

#[test]
fn freeing_is_gentle_first_and_says_what_it_did() {
    let place = Place::new();
    let (polite, deaf, free) = (place.port(), place.port(), place.port());
    let script = format!(
        "child ignore TERM listen 127.0.0.1:{deaf} touch ../deaf pause end await ../deaf listen 127.0.0.1:{polite}"
    );
    let holder = stranger(&place, &script);
    let ports = [polite, deaf, free].map(|port| port.to_string());
    let words = ["port", "free", "-k", "300ms", &ports[0], &ports[1], &ports[2], &ports[0]];
    let dry = place.run(&[&words[..], &["--dry-run"]].concat()).expect_code(0);
    assert!(dry.stdout.contains("PID") && dry.stdout.contains("misbehave"), "{dry:?}");
    assert!(!is_dead(holder.pid()));
    let done = place.run(&words).expect_code(0);
    for expected in [
        format!("{polite} cleaned"),
        format!("{deaf} cleaned"),
        format!("{free} free"),
        "1 ended gracefully, 1 killed by force, 2 in total".to_owned(),
    ] {
        assert!(done.stdout.contains(&expected), "{expected}: {done:?}");
    }
    holder.wait();
}

#[test]
fn all_means_the_configured_list() {
    let place = Place::new();
    let port = place.port();
    let holder = stranger(&place, &format!("listen 127.0.0.1:{port}"));
    let mut command = place.command(&["port", "free", "all", "--quiet"]);
    command.env("AGENT_RUN_FREE_PORTS", port.to_string());
    let done = finish(command).expect_code(0);
    assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("", ""));
    holder.wait();
}

#[test]
fn who_is_merely_connected_is_spared() {
    let place = Place::new();
    let (served, own) = (place.port(), place.port());
    let server = TcpListener::bind(("127.0.0.1", served)).unwrap();
    let client = stranger(&place, &format!("connect 127.0.0.1:{served} 127.0.0.1:{own}"));
    let freed = entry(&place.run(&["port", "free", &own.to_string(), "--json"]).expect_code(0));
    assert_eq!(freed["status"], "free", "{freed}");
    // A server can listen beside it, as the kernel allows; the client lives.
    place.run(&["--port", &own.to_string(), "--force", "--", "true"]).expect_code(0);
    assert!(!is_dead(client.pid()));
    let found = place.run(&["port", "diagnose", &own.to_string(), "--json"]).json().to_string();
    assert!(found.contains("established") && found.contains("misbehave"), "{found}");
    drop(server);
    end(client);
}

#[test]
fn who_has_bound_without_listening_is_named_and_spared() {
    let place = Place::new();
    let port = place.port();
    let holder = stranger(&place, &format!("bind 127.0.0.1:{port}"));
    let text = port.to_string();
    if entry(&place.run(&["port", "show", &text, "--json"])).is_null() {
        return skipped("this kernel does not list bound sockets");
    }
    let freed = entry(&place.run(&["port", "free", &text, "--json"]).expect_code(1));
    assert_eq!(
        (&freed["status"], &freed["remaining_pids"][0]),
        (&"stuck".into(), &holder.pid().into()),
        "{freed}"
    );
    let done = place.run(&["--port", &text, "--force", "--", "true"]).expect_code(125);
    assert!(done.stderr.contains("does not listen"), "{done:?}");
    assert!(!is_dead(holder.pid()));
    end(holder);
}

#[test]
fn a_server_that_is_started_again_leads_to_its_parent() {
    let place = Place::new();
    let port = place.port();
    let text = port.to_string();
    let script = format!("watch listen 127.0.0.1:{port} touch {} pause end", place.text("up"));
    let mut command = Command::new(misbehave());
    command.args(script.split(' '));
    place.furnish(&mut command);
    let watcher = Running::spawn(command);
    place.wait_for_file("up");
    let freed = entry(&place.run(&["port", "free", &text, "--json"]).expect_code(1));
    assert_eq!(freed["status"], "partial", "{freed}");
    assert_eq!(freed["watcher"]["pid"], watcher.pid(), "{freed}");
    assert!(!is_dead(watcher.pid()));
    let done = place.run(&["--port", &text, "--force", "-q", "--", "true"]).expect_code(0);
    assert!(is_dead(watcher.pid()), "{done:?}");
    watcher.wait();
}

#[test]
fn a_zombie_leader_with_live_threads_is_a_ghost() {
    let place = Place::new();
    let port = place.port();
    let mut command = Command::new(misbehave());
    let (address, up) = (format!("127.0.0.1:{port}"), place.text("up"));
    command.args(["headless", &address, "touch", &up, "pause"]);
    place.furnish(&mut command);
    let holder = Running::spawn(command);
    place.wait_for_file("up");
    wait_until("its first thread is dead", || {
        agent_run::sys::process::Stat::read(holder.pid()).is_some_and(|stat| stat.state == b'Z')
    });
    let freed = entry(&place.run(&["port", "free", &port.to_string(), "--json"]).expect_code(1));
    assert_eq!((&freed["status"], &freed["ghost"]), (&"ghost".into(), &true.into()), "{freed}");
    assert_eq!(freed["killed"], serde_json::json!([]), "{freed}");
    assert!(!freed["diagnostics"].as_array().unwrap().is_empty());
    end(holder);
    // One that passes a container's port on is protected, and no more to be seen through.
    let place = Place::new();
    let proxy = stranger(&place, &format!("name docker-proxy listen 127.0.0.1:{port}"));
    let freed = entry(&place.run(&["port", "free", &port.to_string(), "--json"]).expect_code(1));
    assert_eq!((&freed["status"], &freed["ghost"]), (&"ghost".into(), &true.into()), "{freed}");
    assert!(!is_dead(proxy.pid()));
    end(proxy);
}

#[test]
fn another_users_listener_is_not_touched() {
    if own_uid() != 0 {
        return skipped("only root can start something as another user");
    }
    let place = Place::new();
    let port = place.port();
    // Ours, looked at by another user, who sees that it is there and not whose.
    let holder = stranger(&place, &format!("listen 127.0.0.1:{port}"));
    let mut command = Command::new("setpriv");
    place.furnish(&mut command);
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", agent_run()]);
    command.args(["port", "free", &port.to_string(), "--json"]).env("AGENT_RUN_STATE_DIR", "/nonexistent/x");
    command.current_dir("/");
    let done = finish(command);
    if done.stdout.is_empty() {
        end(holder);
        return skipped("another user cannot run the binary here");
    }
    let freed = entry(&done.expect_code(1));
    assert_eq!((&freed["status"], &freed["ghost"]), (&"ghost".into(), &true.into()), "{freed}");
    assert!(!is_dead(holder.pid()));
    end(holder);
}

#[test]
fn another_namespace_does_not_count() {
    let place = Place::new();
    let port = place.port();
    let mut command = Command::new("unshare");
    let (address, up) = (format!("0.0.0.0:{port}"), place.text("up"));
    command.args(["-r", "-n", misbehave(), "listen", &address, "touch", &up, "pause"]);
    place.furnish(&mut command);
    let mut holder = Some(Running::spawn(command));
    wait_until("it listens or cannot", || {
        place.path("up").exists() || is_dead(holder.as_ref().unwrap().pid())
    });
    if !place.path("up").exists() {
        holder.take().unwrap().wait();
        return skipped("no network namespace can be made");
    }
    let holder = holder.unwrap();
    let freed = entry(&place.run(&["port", "free", &port.to_string(), "--json"]).expect_code(0));
    assert_eq!(freed["status"], "free", "{freed}");
    let found = place.run(&["port", "diagnose", &port.to_string(), "--json"]).json().to_string();
    assert!(found.contains("another network namespace"), "{found}");
    assert!(!is_dead(holder.pid()));
    end(holder);
}

#[test]
fn a_host_without_ipv6_has_ports_too() {
    let place = Place::new();
    let without = |words: &[&str]| {
        let mut command = Command::new(misbehave());
        place.furnish(&mut command);
        command.args(["refuse", &libc_inet6(), "97", "exec", agent_run()]).args(words);
        finish(command)
    };
    let port = place.port();
    let done =
        without(&["--port", &port.to_string(), "--", misbehave(), "listen", "127.0.0.1:{port}", "exit", "4"]);
    assert_eq!(done.code, Some(4), "{done:?}");
    let done = without(&["port", "pick"]).expect_code(0);
    assert!(done.stdout.trim().parse::<u16>().is_ok(), "{done:?}");
}

fn libc_inet6() -> String {
    nix::libc::AF_INET6.to_string()
}

#[test]
fn a_sandbox_is_told_from_a_port_in_use() {
    let place = Place::new();
    let port = place.port().to_string();
    let sandboxed = |words: &[&str]| {
        let mut command = Command::new(misbehave());
        place.furnish(&mut command);
        command.args(["refuse", &libc_inet6(), "1", "exec", agent_run()]).args(words);
        finish(command)
    };
    let done = sandboxed(&["--port", &port, "--", "true"]).expect_code(125);
    assert!(done.stderr.contains("sandbox") && !done.stderr.contains("is held"), "{done:?}");
    let found = sandboxed(&["port", "diagnose", &port, "--json"]).expect_code(0);
    assert_eq!(found.json()["ports"][0]["diagnostics"][0]["kind"], "sandbox", "{found:?}");
}

#[test]
fn closed_connections_are_told_with_their_time() {
    let place = Place::new();
    let port = place.port();
    let holder = stranger(&place, &format!("answer 127.0.0.1:{port}"));
    let mut said = String::new();
    TcpStream::connect(("127.0.0.1", port)).unwrap().read_to_string(&mut said).unwrap();
    end(holder);
    let text = port.to_string();
    let found = place.run(&["port", "diagnose", &text, "--json"]).json()["ports"][0]["diagnostics"].clone();
    let waits = found.as_array().unwrap().iter().find(|it| it["kind"] == "time_wait");
    assert!(waits.is_some_and(|it| it["finding"].as_str().unwrap().contains("s left")), "{found}");
    // A run has it all the same, and is told.
    let words = ["-v", "--port", &text, "--", misbehave(), "listen", "127.0.0.1:{port}", "exit", "4"];
    let done = place.run(&words).expect_code(4);
    assert!(done.stderr.contains("TIME_WAIT"), "{done:?}");
}

#[test]
fn free_ports_are_picked() {
    let place = Place::new();
    let done = place.run(&["port", "pick", "-n", "5"]).expect_code(0);
    let ports: BTreeSet<u16> = done.stdout.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(ports.len(), 5, "{done:?}");
    let port = place.port();
    let range = format!("{port}-{port}");
    assert_eq!(place.run(&["port", "pick", "--range", &range]).expect_code(0).stdout, format!("{port}\n"));
    let holder = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let none = place.run(&["port", "pick", "--range", &range]).expect_code(1);
    assert!(none.stderr.contains("no free port is left"), "{none:?}");
    drop(holder);
    let held = place.run(&["port", "pick", "--range", &range, "--hold", "sh", "-c", "echo $PORT {port}"]);
    assert_eq!(held.expect_code(0).stdout, format!("{port} {port}\n"));
}

#[test]
fn what_is_no_port_is_refused_with_a_reason() {
    let place = Place::new();
    for text in ["0", "65536", "80a", "9000-8000", "-", "8000-", ""] {
        let done = place.run(&["--port", text, "--", "true"]).expect_code(125);
        assert!(done.stderr.contains("--port: '") && done.stderr.lines().count() == 1, "{done:?}");
        if !text.starts_with('-') {
            let done = place.run(&["port", "free", text]).expect_code(2);
            assert_eq!(done.stderr.lines().count(), 1, "{done:?}");
        }
    }
    let port = place.port().to_string();
    let twice = place.run(&["--port", &port, "--port", &port, "--", "true"]).expect_code(125);
    assert!(twice.stderr.contains("asked for twice"), "{twice:?}");
    place.run(&["--steal", "--port", &port, "--", "true"]).expect_code(125);
    let claim = place.run(&["--claim", "maybe", "--", "true"]).expect_code(125);
    assert!(claim.stderr.contains("hold, release or listen-fd"), "{claim:?}");
    if own_uid() != 0 {
        let done = place.run(&["--port", "80", "--", "true"]);
        assert!(done.code == Some(0) || done.stderr.contains("privileged"), "{done:?}");
    }
}

#[test]
fn five_thousand_ports_at_once() {
    let place = Place::new();
    let first = place.port();
    let holder = stranger(&place, &format!("listen 127.0.0.1:{first}"));
    let range = format!("{first}-{}", first + 4_999);
    let shown = place.run(&["port", "show", &range, "--json"]).expect_code(0);
    assert!(shown.json()["ports"].as_array().unwrap().iter().any(|it| it["port"] == first), "{shown:?}");
    // Claims for one run, until there is no room for more.
    let mut command = Command::new("sh");
    place.furnish(&mut command);
    let script = format!("ulimit -n 200; exec {} $(seq 300 | sed 's/.*/--port auto/') -- true", agent_run());
    command.args(["-c", &script]);
    let done = finish(command).expect_code(125);
    assert!(done.stderr.contains("ulimit -n"), "{done:?}");
    end(holder);
}

#[test]
fn freed_by_one_of_its_own_run_a_server_ends_alone() {
    let place = Place::new();
    let port = place.port();
    let helper = misbehave();
    let script = format!(
        "{helper} listen 127.0.0.1:{port} touch {up} pause & {helper} await {up} && {binary} port free {port}; echo rc $?",
        up = place.text("up"),
        binary = agent_run(),
    );
    let done = place.run(&["--", "sh", "-c", &script]).expect_code(0);
    assert!(done.stdout.contains(&format!("{port} cleaned")) && done.stdout.contains("rc 0"), "{done:?}");
}

#[test]
fn a_run_does_not_end_itself_for_a_port_or_a_name() {
    let place = Place::new();
    let port = place.port();
    let helper = misbehave();
    // Without the environment that tells of the run around; the guard above us does.
    let script = format!(
        "{helper} listen 127.0.0.1:{port} touch {up} pause & {helper} await {up} && \
         env -i AGENT_RUN_STATE_DIR=$AGENT_RUN_STATE_DIR {binary} port free {port}; echo rc $?; \
         {binary} --name web --force -- true; echo rc $?",
        up = place.text("up"),
        binary = agent_run(),
    );
    let done =
        place.run(&["--name", "web", "--port", &port.to_string(), "--", "sh", "-c", &script]).expect_code(0);
    // The claim of the run around stays, and is as free as a port of a run can be.
    assert!(done.stdout.contains(&format!("{port} cleaned")) && done.stdout.contains("rc 0"), "{done:?}");
    assert!(done.stdout.contains("rc 125") && done.stderr.contains("in which this command runs"), "{done:?}");
}

#[test]
fn an_isolated_run_can_let_go_of_its_port() {
    if !crate::harness::offers("pid_namespace") {
        return skipped("--isolate pid cannot be had here");
    }
    let place = Place::new();
    let port = place.port();
    let plain = format!("127.0.0.1:{port}");
    let words = ["--isolate", "pid", "--claim", "release", "--port", &port.to_string(), "--", misbehave()];
    place.run(&[&words[..], &["listen_plain", &plain, "exit", "4"]].concat()).expect_code(4);
    // Nor does the namespace's first process hold what guard and supervisor hold.
    let run = server(&place, &["--isolate", "pid"], port, "print up");
    let shown = entry(&place.run(&["port", "show", &port.to_string(), "--json"]));
    assert_eq!((&shown["claimed"], &shown["processes"]), (&true.into(), &serde_json::json!([])), "{shown}");
    run.signal(Signal::TERM);
    run.wait();
}

#[test]
fn a_shell_between_watcher_and_server_hides_nothing() {
    let place = Place::new();
    let port = place.port();
    let up = place.text("up");
    // The shell that starts the server dies with it; what is above that starts both again.
    let script =
        format!("while :; do sh -c '{} listen 127.0.0.1:{port} touch {up} pause; true'; done", misbehave());
    let mut command = Command::new("bash");
    command.args(["-c", &script]);
    place.furnish(&mut command);
    let watcher = Running::spawn(command);
    place.wait_for_file("up");
    let freed = entry(&place.run(&["port", "free", &port.to_string(), "--json"]).expect_code(1));
    assert_eq!(
        (&freed["status"], &freed["watcher"]["pid"]),
        (&"partial".into(), &watcher.pid().into()),
        "{freed}"
    );
    let freed = entry(&place.run(&["port", "free", "--force", &port.to_string(), "--json"]).expect_code(0));
    assert_eq!(freed["status"], "cleaned", "{freed}");
    wait_until("the loop is over", || is_dead(watcher.pid()));
    watcher.wait();
    wait_until("all are gone", || place.processes().is_empty());
}

#[test]
fn who_only_waited_for_the_port_was_started_by_nobody_again() {
    let place = Place::new();
    let port = place.port();
    // Both below one shell: the second takes the port when the first has let go of it.
    let script = format!(
        "{helper} listen 127.0.0.1:{port} touch {up} pause & {helper} await {up} touch {waits} takeover 127.0.0.1:{port} pause & \
         wait; exec {helper} pause",
        helper = misbehave(),
        up = place.text("up"),
        waits = place.text("waits"),
    );
    let mut command = Command::new("bash");
    command.args(["-c", &script]);
    place.furnish(&mut command);
    let shell = Running::spawn(command);
    place.wait_for_file("up");
    place.wait_for_file("waits");
    let waits = Stat::read(place.pid_in("waits")).unwrap();
    wait_until("it is older than a clock's tick", || waits.age(now_in_ticks()) > Duration::from_millis(20));
    let freed = entry(&place.run(&["port", "free", "--force", "--json", &port.to_string()]).expect_code(0));
    assert_eq!(freed["killed"].as_array().unwrap().len(), 2, "{freed}");
    assert!(!is_dead(shell.pid()), "it has started nothing again: {freed}");
    end(shell);
}

#[test]
fn a_run_that_only_claims_is_displaced_and_counted() {
    let place = Place::new();
    let port = place.port();
    let run = server(&place, &[], port, "print up");
    let freed = entry(&place.run(&["port", "free", &port.to_string(), "--json"]).expect_code(0));
    assert_eq!(freed["status"], "cleaned", "{freed}");
    assert_eq!(freed["ended"][0]["run"], place.the_ended()["id"], "{freed}");
    run.wait();
}

#[test]
fn nobody_is_ended_for_a_launch_that_cannot_be() {
    let place = Place::new();
    let port = place.port();
    let holder = stranger(&place, &format!("listen 127.0.0.1:{port}"));
    let text = port.to_string();
    for wrong in [["--log", "/nonexistent/x"], ["--events", "/nonexistent/x"], ["--chdir", "/nonexistent"]] {
        place.run(&[&["--port", &text, "--force"], &wrong[..], &["--", "true"]].concat()).expect_code(125);
        assert!(!is_dead(holder.pid()), "{wrong:?}");
    }
    end(holder);
}

#[test]
fn a_fallback_is_taken_whatever_is_in_the_way() {
    let place = Place::new();
    let (served, own) = (place.port(), place.port());
    let server = TcpListener::bind(("127.0.0.1", served)).unwrap();
    let client = stranger(&place, &format!("connect 127.0.0.1:{served} 127.0.0.1:{own}"));
    let bound = place.port();
    let words = |port: u16, more: &'static [&'static str]| {
        let port = port.to_string();
        place.run(&[&["--port", &port, "--fallback"], more, &["--", "sh", "-c", "echo $PORT"]].concat())
    };
    let done = words(own, &[]).expect_code(0);
    assert!(!done.stdout.is_empty(), "{done:?}");
    std::fs::remove_file(place.path("up")).unwrap();
    let holder = stranger(&place, &format!("bind 127.0.0.1:{bound}"));
    let done = words(bound, &["--force"]).expect_code(0);
    assert!(done.stdout.trim() != bound.to_string() && done.stderr.contains("was taken instead"), "{done:?}");
    let quiet = words(bound, &["-q"]).expect_code(0);
    assert_eq!(quiet.stderr, "");
    end(client);
    end(holder);
    drop(server);
}

#[test]
fn sockets_are_passed_on_with_few_descriptors_too() {
    let place = Place::new();
    let (one, other) = (place.port(), place.port());
    let script = format!(
        "ulimit -n 64; exec {} --port {one} --port {other} --claim listen-fd -- {} answer_given 2 touch {} pause",
        agent_run(),
        misbehave(),
        place.text("up")
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]);
    place.furnish(&mut command);
    let run = Running::spawn(command);
    place.wait_for_file("up");
    let mut said = String::new();
    TcpStream::connect(("127.0.0.1", one)).unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said.trim().parse::<i32>().unwrap(), place.pid_in("up"));
    let shown = place.run(&["port", "show", &one.to_string()]).expect_code(0).stdout;
    assert!(shown.contains("listening") && shown.contains("misbehave"), "{shown}");
    run.signal(Signal::TERM);
    run.wait();
}

#[test]
fn a_recovery_does_not_hold_the_port_of_the_launch_that_began_it() {
    let place = Place::new();
    let port = place.port();
    // An orphan that takes two seconds to end.
    let first = place.start(
        &["-k", "2s"],
        &[
            "daemon", "ignore", "TERM", "touch", "../deaf", "pause", "end", "await", "../deaf", "touch",
            "../up", "pause",
        ],
        "up",
    );
    let record = place.wait_for_record("it runs", |record| record["state"] == "running");
    let supervisor =
        agent_run::sys::process::Pidfd::open(record["supervisor"]["pid"].as_i64().unwrap() as i32).unwrap();
    supervisor.send(Signal::STOP).unwrap();
    first.signal(Signal::KILL);
    supervisor.send(Signal::KILL).unwrap();
    wait_until("the supervisor is dead", || !supervisor.is_alive());
    first.forget();
    std::fs::remove_file(place.state().join("looked")).unwrap();
    let words = [
        "--port",
        &port.to_string(),
        "--claim",
        "release",
        "--",
        misbehave(),
        "listen_plain",
        "127.0.0.1:{port}",
    ];
    place.run(&[&words[..], &["exit", "4"]].concat()).expect_code(4);
    place.run(&["--port", &port.to_string(), "--", "true"]).expect_code(0);
    wait_until("the orphan is gone", || place.unfinished().is_empty() && place.processes().is_empty());
}
