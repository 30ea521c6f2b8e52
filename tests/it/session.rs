//! Sessions: programs that answer messages, by stand-ins for coding agents and by real programs.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};

use agent_run::Signal;
use agent_run::sys::process::{Pidfd, Stat};
use serde_json::Value;

use crate::harness::agents::Agents;
use crate::harness::{Done, Running, agent_run, finish, is_dead, skipped, standin, wait_until};

#[test]
fn every_protocol_passes_one_table() {
    let agents = Agents::new();
    for (name, words, by) in [
        ("claude", &["claude"][..], "result_event"),
        ("codex", &["codex"], "turn_completed"),
        ("gemini", &["gemini"], "rpc_response"),
        ("acp", &["acp", "--protocol", "acp", "--", "acp-agent"], "rpc_response"),
        ("once", &["once", "--provider", "claude", "--protocol", "oneshot"], "process_exit"),
        ("exec", &["exec", "--provider", "codex", "--protocol", "oneshot"], "process_exit"),
    ] {
        let once = by == "process_exit";
        let record = agents.start(words);
        assert_eq!((&record["kind"], &record["state"]), (&"session".into(), &"ready".into()), "{record:#}");
        let reply = agents.reply(name, "hello");
        assert_eq!(
            (reply["text"].as_str().unwrap().trim(), &reply["complete_by"]),
            ("you said: hello", &by.into())
        );
        // What is another's, what is no message, characters in pieces, and what it says beside.
        let trouble =
            if once { "[half stderr=oops] foo" } else { "[foreign garbage notify half stderr=oops] foo" };
        let reply = agents.reply(name, trouble);
        assert_eq!(reply["text"].as_str().unwrap().trim(), "you said: foo äöü€😀", "{name}: {reply:#}");
        assert_eq!(reply["stderr"], "oops\n", "{name}");
        let streamed = agents.send(&[name, "--stream", "--json", "[chunks=4] abcd"]).expect_code(0).stdout;
        let lines: Vec<Value> = streamed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let text: String = lines.iter().filter_map(|line| line["text"].as_str()).collect();
        assert_eq!(text.trim(), "you said: abcd", "{name}: {lines:#?}");
        assert_eq!(lines.last().unwrap()["reply"]["complete_by"], by, "{name}");
        let failed = agents.send(&[name, "[error] x"]);
        assert_eq!(failed.code, Some(if once { 3 } else { 1 }), "{name}: {failed:#?}");
        assert!(failed.stderr.contains("standin was told to fail"), "{name}: {failed:#?}");
        // One of them on a line of 10 MB, which keeps a CPU busy for a while.
        let bytes = if name == "claude" { 10_000_000 } else { 200_000 };
        let long = agents.send(&[name, &format!("[bytes={bytes}] x")]).expect_code(0).stdout;
        assert_eq!(long.trim_end().len(), bytes, "{name}");
        // Its time runs out, and it goes on; what comes late is no answer to the next one.
        let late = agents.send(&[name, "--timeout", "100ms", "[delay=60000] late"]);
        assert_eq!(late.code, Some(124), "{name}: {late:#?}");
        let busy = agents.send(&[name, "--json", "next"]).expect_code(1);
        assert_eq!(busy.json()["error"]["kind"], "busy", "{name}");
        assert!(busy.stderr.contains("still busy"), "{name}: {busy:#?}");
        agents.run(&["session", "interrupt", name]).expect_code(0);
        assert_eq!(agents.reply(name, "next")["text"].as_str().unwrap().trim(), "you said: next", "{name}");
        if !once {
            let died = agents.send(&[name, "--json", "--stream", "[die] in the middle"]).expect_code(1);
            let last = died.stdout.lines().next_back().unwrap();
            let last: Value = serde_json::from_str(last).unwrap();
            assert_eq!(last["reply"]["died"], "it ended with code 9", "{name}: {last:#}");
            let gone = agents.send(&[name, "x"]).expect_code(3);
            assert!(gone.stderr.contains("has ended (exit, code 9)"), "{name}: {gone:#?}");
        }
    }
}

#[test]
fn real_programs_answer_one_message_after_the_other() {
    let agents = Agents::new();
    let there = |program: &str| Command::new(program).arg("--version").output().is_ok();
    type Program<'a> = (&'a [&'a str], &'a str, &'a [(&'a str, &'a str, i32)]);
    let table: [Program; 5] = [
        (
            &["bash"],
            "bash",
            &[
                ("x=5; cd /; declare -A m; m[a]=1", "", 0),
                ("echo $x ${m[a]} $PWD; (exit 7)", "5 1 /\n", 7),
                ("cat; read y; echo \"got:$y\"", "got:\n", 0),
                ("if then", "", 2),
                ("echo one\necho two; printf three", "one\ntwo\nthree", 0),
            ],
        ),
        (
            &["python"],
            "python3",
            &[
                ("def f(x):\n    return x * 2\nf(21)", "42\n", 0),
                ("f(2", "", 1),
                ("print('a'); f('é')", "a\n'éé'\n", 0),
            ],
        ),
        (
            &["node"],
            "node",
            &[
                ("const q = 5; [q]", "[ 5 ]\n", 0),
                ("new Promise((done) => setTimeout(() => done(q + 1), 20))", "6\n", 0),
                ("throw new Error('x')", "", 1),
            ],
        ),
        (
            &["sqlite3", "--protocol", "marker:.print {marker}", "--", "sqlite3"],
            "sqlite3",
            &[("select 1 + 1;", "2\n", 0)],
        ),
        (
            &["bc", "--protocol", "marker:print \"{marker}\\n\"", "--", "bc", "-q"],
            "bc",
            &[("2^70", "1180591620717411303424\n", 0)],
        ),
    ];
    for (words, program, messages) in table {
        if !there(program) {
            skipped(&format!("no {program}"));
            continue;
        }
        agents.start(words);
        for (text, expected, code) in messages {
            let done = agents.send(&[words[0], text]).expect_code(*code);
            assert_eq!(done.stdout, *expected, "{program}: {text}: {done:#?}");
        }
    }
    let prompt = agents.start(&[
        "ask",
        "--protocol",
        "prompt:^ask> $",
        "--",
        "bash",
        "-c",
        "printf 'ask> '; while read -r line; do echo \"-$line-\"; printf 'ask> '; done",
    ]);
    assert_eq!(prompt["state"], "ready");
    assert_eq!(agents.reply("ask", "hello")["text"], "-hello-\n");
    agents.start(&["quiet", "--protocol", "quiet:150ms", "--", "cat"]);
    assert_eq!(agents.reply("quiet", "hello")["complete_by"], "quiet");
    let program = "import sys, json\nfor line in sys.stdin:\n    print(json.dumps({'n': 1}), flush=True)\n    print(json.dumps({'end': {'ok': True}, 'said': line}), flush=True)";
    agents.start(&["lines", "--protocol", "ndjson:end.ok=true", "--", "python3", "-c", program]);
    assert_eq!(agents.reply("lines", "{\"q\": 1}")["text"].as_str().unwrap().lines().count(), 2);
}

#[test]
fn a_program_may_have_a_terminal() {
    let agents = Agents::new();
    agents.start(&["py", "--pty", "--protocol", "prompt:^>>> $", "--", "python3", "-i", "-q"]);
    assert_eq!(agents.reply("py", "1 + 1")["text"].as_str().unwrap().trim(), "2");
    assert_eq!(
        agents.reply("py", "__import__('sys').stdin.isatty()")["text"].as_str().unwrap().trim(),
        "True"
    );
    // Ctrl-C is a key.
    assert_eq!(agents.send(&["py", "--timeout", "100ms", "__import__('time').sleep(1000)"]).code, Some(124));
    agents.run(&["session", "interrupt", "py"]).expect_code(0);
    assert_eq!(agents.reply("py", "'é' * 2")["text"].as_str().unwrap().trim(), "'éé'");
    agents.start(&["shell", "--pty", "--provider", "bash"]);
    let long = "x".repeat(100_000);
    assert_eq!(agents.reply("shell", &format!("echo {long}"))["text"].as_str().unwrap().trim(), long);
}

#[test]
fn an_interrupt_ends_what_is_carried_out_and_not_the_program() {
    let agents = Agents::new();
    for (name, endless, after, expected) in [
        ("bash", "while :; do :; done; echo no", "echo yes", "yes\n"),
        ("bash", "sleep 100; echo no", "echo yes", "yes\n"),
        ("python", "while True: pass", "'yes'", "'yes'\n"),
        ("node", "while (true) {}", "'yes'", "yes\n"),
    ] {
        if name == "node" && Command::new("node").arg("--version").output().is_err() {
            skipped("no node");
            continue;
        }
        agents.start(&[name, "--reuse"]);
        let sent = agents.send_in_background(&[name, endless]);
        agents.until_busy(name);
        // As Ctrl-C does.
        sent.signal(Signal::INT);
        let done = sent.wait();
        assert_eq!((done.code, done.stdout.as_str()), (Some(130), ""), "{name}: {done:#?}");
        assert_eq!(agents.send(&[name, after]).expect_code(0).stdout, expected);
    }
}

#[test]
fn one_message_is_dealt_with_at_a_time() {
    let agents = Agents::new();
    agents.start(&["bash"]);
    let fifo = agents.0.text("fifo");
    let first = agents.send_in_background(&["bash", &format!("mkfifo {fifo}; echo a; cat {fifo}; echo b")]);
    agents.until_busy("bash");
    let refused = agents.send(&["bash", "--no-wait", "--json", "echo c"]).expect_code(1);
    assert_eq!(refused.json()["error"]["kind"], "busy");
    let waited = agents.send(&["bash", "--timeout", "50ms", "echo d"]).expect_code(124);
    assert!(waited.stderr.contains("waited for its turn"), "{waited:#?}");
    let second = agents.send_in_background(&["bash", "echo e"]);
    let third = agents.send_in_background(&["bash", "echo f"]);
    fs::write(&fifo, "middle\n").unwrap();
    assert_eq!(first.wait().stdout, "a\nmiddle\nb\n");
    assert_eq!((second.wait().stdout.as_str(), third.wait().stdout.as_str()), ("e\n", "f\n"));
}

#[test]
fn much_streams_through_in_constant_memory() {
    let _crowd = crate::harness::crowding();
    let agents = Agents::new();
    let record = agents.start(&["bash"]);
    let supervisor = record["supervisor"]["pid"].as_i64().unwrap();
    let sent = agents.send(&["bash", "yes 0123456789 | head -c 60000000; echo é"]).expect_code(0);
    assert_eq!(sent.stdout.len(), 60_000_003);
    assert!(sent.stdout.ends_with("é\n"));
    let status = fs::read_to_string(format!("/proc/{supervisor}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 32 * 1024, "{peak} KiB");
    // As one document, too.
    let reply = agents.reply("bash", "yes é | head -c 3000001");
    assert_eq!(reply["bytes"], 3_000_001);
    assert_eq!(reply["text"].as_str().unwrap().chars().count(), 2_000_001);
}

#[test]
fn a_session_that_is_idle_ends_and_one_that_is_busy_does_not() {
    let agents = Agents::new();
    agents.start(&["busy", "--provider", "bash", "--idle", "300ms"]);
    let done = agents.send(&["busy", "sleep 1; echo done"]).expect_code(0);
    assert_eq!(done.stdout, "done\n");
    wait_until("it is gone", || agents.0.unfinished().is_empty());
    let gone = agents.send(&["busy", "echo x"]).expect_code(3);
    assert!(gone.stderr.contains("has ended (idle"), "{gone:#?}");
}

#[test]
fn a_session_ends_with_its_owner() {
    let agents = Agents::new();
    let mut owner = Command::new("sleep").arg("1000").spawn().unwrap();
    let record = agents.start(&["bash", "--owner", &owner.id().to_string()]);
    let leader = record["leader"]["pid"].as_i64().unwrap() as i32;
    let sent = agents.send_in_background(&["bash", "echo begun; sleep 1000"]);
    agents.until_busy("bash");
    owner.kill().unwrap();
    owner.wait().unwrap();
    let done = sent.wait();
    assert_eq!((done.code, done.stdout.as_str()), (Some(1), "begun\n"), "{done:#?}");
    assert!(done.stderr.contains("owner_gone"), "{done:#?}");
    assert!(is_dead(leader));
}

#[test]
fn places_in_the_pool_follow_living_processes() {
    let agents = Agents::new();
    let cat = |name| [name, "--max-sessions", "2", "--protocol", "marker:{marker}", "--", "cat"];
    agents.start(&cat("a"));
    let second = agents.start(&cat("b"));
    let full = agents.run(&[&["session", "start", "--json"], &cat("c")[..]].concat()).expect_code(1);
    assert_eq!(full.json()["error"]["kind"], "process_limit");
    assert!(full.stderr.contains("process limit reached (2 of 2 sessions); longest idle is a"), "{full:#?}");
    let waits = agents.run(&[&["session", "start", "--wait", "50ms"], &cat("c")[..]].concat()).expect_code(1);
    assert!(waits.stderr.contains("process limit"), "{waits:#?}");
    // Its record stays; the processes do not.
    let keepers = ["guard", "supervisor"].map(|who| second[who]["pid"].as_i64().unwrap() as i32);
    let pinned = keepers.map(|pid| Pidfd::open(pid).unwrap());
    pinned.iter().for_each(|keeper| keeper.send(Signal::STOP).unwrap());
    pinned.iter().for_each(|keeper| keeper.send(Signal::KILL).unwrap());
    wait_until("both are dead", || keepers.iter().all(|pid| is_dead(*pid)));
    agents.start(&cat("c"));
    // One that is waited for comes when another one goes.
    let mut command = agents.command(&[&["session", "start", "--wait", "20s", "-q"], &cat("d")[..]].concat());
    command.stdin(Stdio::null());
    let waiting = Running::spawn(command);
    agents.run(&["session", "close", "a"]).expect_code(0);
    waiting.wait().expect_code(0);
    agents.run(&["sweep", "--only", "orphan", "--yes", "--quiet"]);
    let zero =
        agents.run(&["session", "start", "x", "--provider", "bash", "--max-sessions", "0"]).expect_code(1);
    assert!(zero.stderr.contains("the limit is 0"), "{zero:#?}");
}

#[test]
fn an_idle_session_like_it_is_used_again() {
    let agents = Agents::new();
    let first = agents.start(&["--provider", "bash", "--reuse"]);
    let again = agents.start(&["--provider", "bash", "--reuse"]);
    assert_eq!(first["id"], again["id"]);
    assert_eq!((&first["reused"], &again["reused"]), (&false.into(), &true.into()));
    let other = agents.start(&["--provider", "bash", "--reuse", "--env", "A=b"]);
    assert_ne!(first["id"], other["id"]);
    fs::create_dir(agents.0.path("work/sub")).unwrap();
    let elsewhere = agents.start(&["--provider", "bash", "--reuse", "--chdir", "sub"]);
    assert_ne!(first["id"], elsewhere["id"]);
    let closed = agents.run(&["session", "close", "--provider", "bash"]).expect_code(0);
    assert_eq!(closed.stdout.lines().count(), 3, "{closed:#?}");
}

#[test]
fn health_has_the_shape_that_orchestrators_read() {
    let agents = Agents::new();
    agents.start(&["bash"]);
    agents.start(&["once", "--provider", "claude", "--protocol", "oneshot"]);
    agents.send(&["bash", "true"]).expect_code(0);
    let health = agents.run(&["session", "health", "--json"]).expect_code(0).json();
    assert_eq!(
        (&health["total_processes"], &health["alive_processes"], &health["dead_processes"]),
        (&2.into(), &2.into(), &0.into())
    );
    let process = &health["processes"][0];
    assert_eq!(
        (&process["provider"], &process["alive"], &process["messages"]),
        (&"bash".into(), &true.into(), &1.into())
    );
    assert!(process["idle_time"].as_f64().unwrap() < 60.0);
    for figure in ["memory_mb", "cpu_percent", "num_fds"] {
        assert!(process["resource_usage"][figure].is_number(), "{process:#}");
    }
    assert_eq!(
        (&process["session_mode"], &health["processes"][1]["session_mode"]),
        (&true.into(), &false.into())
    );
    assert_eq!(process["run"]["state"], "ready");
    let list = agents.run(&["session", "list"]).expect_code(0).stdout;
    assert!(list.contains("NAME") && list.contains("bash") && list.contains("oneshot"), "{list}");
}

#[test]
fn what_closes_its_stdin_or_speaks_another_version_is_told() {
    let agents = Agents::new();
    let mut command = agents.command(&["session", "start", "claude", "-q"]);
    command.env("STANDIN", "close_stdin,ignore_eof");
    finish(command).expect_code(0);
    agents.send(&["claude", "hello"]).expect_code(0);
    let long = "x".repeat(200_000);
    let mut refused = agents.send(&["claude", "--json", &long[..100_000]]);
    if refused.code == Some(0) {
        refused = agents.send(&["claude", "--json", &long]);
    }
    assert_eq!(refused.error_kind(), "protocol", "{refused:#?}");
    for (habit, why) in [("v2", "speaks version 2"), ("ask_auth", "(-32000)")] {
        let mut command = agents.command(&["session", "start", "gemini"]);
        command.env("STANDIN", habit);
        let failed = finish(command).expect_code(1);
        assert!(failed.stderr.contains(why), "{failed:#?}");
    }
}

impl Done {
    fn error_kind(&self) -> String {
        self.json()["error"]["kind"].as_str().unwrap_or_default().to_owned()
    }
}

#[test]
fn of_two_starts_of_one_name_one_loses() {
    let agents = Agents::new();
    let start = || {
        let mut command = agents.command(&["session", "start", "one", "--provider", "bash", "-q"]);
        command.stdin(Stdio::null());
        Running::spawn(command)
    };
    let mut codes = [start(), start()].map(|it| it.wait().code);
    codes.sort();
    assert_eq!(codes, [Some(0), Some(1)]);
}

#[test]
fn wrong_calls_of_session_start_nothing() {
    let agents = Agents::new();
    for (words, code, expected) in [
        (&["start", "x", "--", "cat"][..], 2, "nobody knows how 'cat' is spoken to"),
        (&["start", "x", "--protocol", "dance", "--", "cat"], 2, "is no protocol"),
        (&["start", "x", "--protocol", "prompt:(", "--", "cat"], 2, "bad pattern"),
        (&["start", "x", "--protocol", "marker:x", "--", "cat"], 2, "must have {marker} once"),
        (&["start", "x", "--protocol", "quiet:0s", "--", "cat"], 2, "end every reply before it begins"),
        (&["start", "x", "--protocol", "claude"], 2, "there is no command"),
        (&["start", "--provider", "claud"], 2, "did you mean 'claude'?"),
        (&["start", "x", "--provider", "bash", "--protocol", "oneshot"], 2, "how bash takes one message"),
        (&["start", "x", "--provider", "bash", "--approvals", "maybe"], 2, "neither decline nor accept"),
        (&["start", "x", "--provider", "bash", "--max-sessions", "-1"], 2, "is not a number"),
        (&["start", "x", "--provider", "bash", "--ready", "port"], 2, "is ready when it takes messages"),
        (&["start", "x", "--protocol", "acp", "--", "no-such-program"], 1, "command not found"),
        (&["start", "x", "--protocol", "oneshot", "--", "no-such-program"], 1, "command not found"),
        (&["send", "nobody", "x"], 4, "nobody"),
        (&["send", "nobody", "--timeout", "soon", "x"], 2, "--timeout"),
        (&["close"], 2, "no session is named"),
        (&["interrupt", "nobody"], 4, "nobody"),
    ] {
        let done = agents.run(&[&["session"], words].concat()).expect_code(code);
        assert!(done.stderr.contains(expected), "{words:?}: {done:#?}");
        assert_eq!(done.stderr.trim_end().lines().count(), 1, "{done:#?}");
    }
    agents.run(&["session", "close", "nobody"]).expect_code(0);
    agents.start(&["bash"]);
    let nul = agents.0.path("nul");
    fs::write(&nul, "echo a\0b").unwrap();
    let mut command = agents.command(&["session", "send", "bash", "-"]);
    command.stdin(fs::File::open(&nul).unwrap());
    let refused = Running::spawn(command).wait();
    assert!(refused.code == Some(1) && refused.stderr.contains("has a NUL"), "{refused:#?}");
    let idle = agents.run(&["session", "interrupt", "bash"]).expect_code(1);
    assert!(idle.stderr.contains("deals with no message"), "{idle:#?}");
}

#[test]
fn a_file_adds_providers_and_limits() {
    let agents = Agents::new();
    let text = "max_sessions = 1\n[provider.echo]\nbinary = \"cat\"\nprotocol = \"marker:{marker}\"\nidle = \"1h\"\n\
                [provider.huge]\nbinary = \"cat\"\nprotocol = \"marker:{marker}\"\nneeds = \"900000G\"\n";
    fs::write(agents.0.path("work/agent-run.toml"), text).unwrap();
    let record = agents.start(&["echo"]);
    assert_eq!((&record["provider"], &record["idle_timeout_s"]), (&"echo".into(), &3600.0.into()));
    assert_eq!(agents.reply("echo", "hello")["text"], "hello\n");
    let full = agents.run(&["session", "start", "--provider", "bash"]).expect_code(1);
    assert!(full.stderr.contains("process limit reached (1 of 1 sessions)"), "{full:#?}");
    let huge = agents.run(&["session", "start", "--provider", "huge", "--json"]).expect_code(1);
    assert_eq!(huge.error_kind(), "resource_limit", "{huge:#?}");
}

/// The library reads the process's own environment, so it is used from processes of their own: the examples.
fn example(agents: &Agents, name: &str, words: &[&str]) -> Done {
    let beside = std::path::Path::new(agent_run()).parent().unwrap().join("examples").join(name);
    let mut command = Command::new(beside);
    command.args(words);
    agents.0.furnish(&mut command);
    command.env("AGENT_RUN_BIN", agent_run()).env("PATH", agents.path());
    finish(command)
}

#[test]
fn the_library_talks_with_five_providers_at_once() {
    let agents = Agents::new();
    let done = example(&agents, "orchestrator", &["1 + 1"]).expect_code(0);
    let lines: Vec<&str> = done.stdout.lines().collect();
    let expected = [
        "claude (result_event): you said: 1 + 1",
        "codex (turn_completed): you said: 1 + 1",
        "gemini (rpc_response): you said: 1 + 1",
        "bash (marker): ",
        "python (marker): 2",
        "5 of 5 sessions are alive",
    ];
    assert_eq!(lines, expected, "{done:#?}");
    assert!(agents.0.unfinished().is_empty());
}

#[test]
fn the_library_has_a_pool_with_limits_and_reuse() {
    let agents = Agents::new();
    let done = example(&agents, "pool", &[]).expect_code(0);
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert_eq!(
        (lines[0], lines[2]),
        ("an idle session is used again: true", "there is a place again: hello"),
        "{done:#?}"
    );
    assert!(lines[1].contains("process limit reached (2 of 2 sessions)"), "{done:#?}");
    assert!(agents.0.unfinished().is_empty());
}

#[test]
fn a_host_that_is_killed_takes_its_sessions_along() {
    let agents = Agents::new();
    let beside = std::path::Path::new(agent_run()).parent().unwrap().join("examples/orchestrator");
    let mut command = Command::new(beside);
    command.args(["[silence] x", "claude"]).stdin(Stdio::null());
    agents.0.furnish(&mut command);
    command.env("AGENT_RUN_BIN", agent_run()).env("PATH", agents.path());
    let host = Running::spawn(command);
    wait_until("it talks", || {
        let health = agents.run(&["session", "health", "--json"]).json();
        health["processes"][0]["busy"] == true
    });
    host.signal(Signal::KILL);
    host.wait();
    wait_until("its session is gone", || agents.0.unfinished().is_empty());
}

#[test]
fn a_start_that_is_given_up_leaves_no_session() {
    let agents = Agents::new();
    let mut command = Command::new(standin());
    agents.0.furnish(&mut command);
    command.arg("host").env("AGENT_RUN_BIN", agent_run()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut host = command.spawn().unwrap();
    let mut said = [0; 9];
    host.stdout.take().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"given up\n");
    std::fs::write(agents.0.path("go"), "").unwrap();
    assert_eq!(agents.0.the_ended()["end"]["reason"], "stop");
    assert!(host.try_wait().unwrap().is_none(), "its owner lives");
    drop(host.stdin.take());
    assert!(host.wait().unwrap().success());
}

#[test]
fn a_session_of_which_nobody_answers_is_said() {
    let agents = Agents::new();
    let run = agents.start(&["bash"]);
    // The guard first: it would wake the supervisor.
    let keepers = ["guard", "supervisor"].map(|keeper| {
        let pid = run[keeper]["pid"].as_i64().unwrap() as i32;
        let keeper = Pidfd::open(pid).unwrap();
        keeper.send(Signal::STOP).unwrap();
        wait_until("it is stopped", || Stat::read(pid).unwrap().is_stopped());
        keeper
    });
    let done = agents.send(&["bash", "echo x"]).expect_code(1);
    keepers.iter().rev().for_each(|keeper| keeper.send(Signal::CONT).unwrap());
    assert!(done.stderr.contains("its supervisor does not answer"), "{done:#?}");
    // A reply that takes longer than that is no such thing.
    assert_eq!(agents.send(&["bash", "sleep 6; echo y"]).expect_code(0).stdout, "y\n");
}

#[test]
fn a_program_that_ignores_the_end_of_its_input_is_closed_by_force() {
    let agents = Agents::new();
    let mut command = agents.command(&["session", "start", "claude", "-q"]);
    command.env("STANDIN", "ignore_eof,ignore_term");
    finish(command).expect_code(0);
    let closed = agents.run(&["session", "close", "claude", "--grace", "100ms"]).expect_code(0);
    assert!(closed.stdout.contains("needed SIGKILL"), "{closed:#?}");
}
