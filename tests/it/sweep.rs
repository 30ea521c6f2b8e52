//! Sweeping. Each test has a world of its own (namespaces of users, processes and networks): a sweep looks at every
//! process that it can see, and nobody's but the test's are to be seen.

use std::process::Command;

use serde_json::Value;

use crate::harness::{Done, Place, agent_run, finish, misbehave, skipped};

/// What every script has: `leftover NAME WORDS` starts the helper as an orphan in a session of its own, called NAME.
const PRELUDE: &str = r#"
orphan() { setsid -f bash -c 'exec -a "$0" "$M" "$@"' "$@"; }
leftover() {
  name=$1; shift
  orphan "$name" "$@" touch "$W/up-$name" pause </dev/null >/dev/null 2>&1
  until [ -s "$W/up-$name" ]; do :; done
}
pid() { cat "$W/up-$1"; }
lives() { [ -e "/proc/$1" ] && ! grep -q '^State:.Z' "/proc/$1/status"; }
"#;

/// Runs `script` as the first process of a world; `None` if none can be made.
fn world(place: &Place, script: &str) -> Option<Done> {
    let mut command = Command::new("unshare");
    place.furnish(&mut command);
    command.args(["--user", "--map-root-user", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]);
    command.args(["bash", "-c", &format!("{PRELUDE}\n{script}")]);
    command.env("A", agent_run()).env("M", misbehave()).env("W", place.path("work"));
    command.env("AGENT_RUN_SWEEP_PLACES", place.path("work").join("web_*"));
    let done = finish(command);
    if done.stderr.contains("unshare:") {
        skipped("no namespaces can be made");
        return None;
    }
    Some(done)
}

/// The last line of the output, as the answer of a sweep.
fn answer(done: &Done) -> Value {
    let line = done.stdout.lines().next_back().unwrap_or_default();
    let answer: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {done:#?}"));
    answer["sweep"].clone()
}

fn kinds(items: &Value) -> Vec<&str> {
    items.as_array().unwrap().iter().map(|item| item["kind"].as_str().unwrap()).collect()
}

#[test]
fn two_kinds_of_evidence_make_a_leftover_and_one_a_suspect() {
    let place = Place::new();
    let script = r#"
        cd /; leftover vite listen 127.0.0.1:8456
        OPENCODE=1 OPENCODE_PID=99999 leftover x listen 127.0.0.1:8500
        mkdir "$W/web_1"; cd "$W/web_1"; leftover uvicorn
        cd /; leftover plain listen 127.0.0.1:8600; leftover quiet
        $A sweep --list --json
    "#;
    let Some(done) = world(&place, script) else { return };
    let found = answer(&done)["found"].clone();
    let mut seen: Vec<(String, String)> = found
        .as_array()
        .unwrap()
        .iter()
        .map(|item| {
            (item["command"][0].as_str().unwrap_or("").to_owned(), item["kind"].as_str().unwrap().to_owned())
        })
        .collect();
    seen.sort();
    let expected = [
        ("", "directory"),
        ("plain", "suspect"),
        ("uvicorn", "leftover"),
        ("vite", "leftover"),
        ("x", "leftover"),
    ];
    let expected: Vec<(String, String)> = expected.map(|(a, b)| (a.to_owned(), b.to_owned())).to_vec();
    assert_eq!(seen, expected, "{found:#}");
}

#[test]
fn a_sweep_ends_leftovers_with_their_trees_and_removes_directories() {
    let place = Place::new();
    let script = r#"
        mkdir "$W/web_1"; echo x > "$W/web_1/file"; cd "$W/web_1"
        leftover vite listen 127.0.0.1:8456 child ignore TERM touch "$W/below" pause end await "$W/below"
        cd /; leftover innocent
        $A sweep </dev/null >"$W/listed" 2>&1; echo "rc $?"
        $A sweep --yes --json -k 300ms; echo "rc $?"
        lives "$(pid innocent)" && echo innocent
        lives "$(pid vite)" || echo gone; lives "$(cat "$W/below")" || echo below
        [ -e "$W/web_1" ] || echo removed
        $A sweep --yes --json
    "#;
    let Some(done) = world(&place, script) else { return };
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert_eq!(
        (lines[0], &lines[2..7]),
        ("rc 1", &["rc 0", "innocent", "gone", "below", "removed"][..]),
        "{done:#?}"
    );
    let first: Value = serde_json::from_str(lines[1]).unwrap();
    let first = &first["sweep"];
    assert_eq!(
        (kinds(&first["ended"]), kinds(&first["removed"])),
        (vec!["leftover"], vec!["directory"]),
        "{first}"
    );
    assert_eq!((&first["freed"]["ports"][0], &first["killed"]), (&8456.into(), &1.into()), "{first}");
    assert!(
        first["freed"]["memory_bytes"].as_u64().unwrap() > 0 && first["remaining"] == serde_json::json!([])
    );
    assert_eq!(answer(&done)["found"], serde_json::json!([]));
    let listed = std::fs::read_to_string(place.path("work/listed")).unwrap();
    assert!(listed.contains("EVIDENCE") && listed.contains("--yes"), "{listed}");
}

#[test]
fn whoever_has_somebody_is_spared_with_the_reason() {
    let place = Place::new();
    let script = r#"
        # Below a program that lives, here the one that all begins with.
        cd /; ( exec -a vite "$M" listen 127.0.0.1:8455 touch "$W/up-first" pause ) &
        until [ -s "$W/up-first" ]; do :; done
        # Below a program that only happens to be an orphan itself.
        leftover editor child exec /bin/bash -c 'exec -a vite "$M" listen 127.0.0.1:8457 touch "$W/up-inner" pause' end
        until [ -s "$W/up-inner" ]; do :; done
        # An agent that lives, and one of its servers.
        orphan opencode touch "$W/agent" pause </dev/null >/dev/null 2>&1; until [ -s "$W/agent" ]; do :; done
        OPENCODE=1 OPENCODE_PID=$(cat "$W/agent") leftover uvicorn listen 127.0.0.1:8458
        # In a terminal of its own.
        setsid -f script -qfc "bash -c 'exec -a flask \"\$M\" listen 127.0.0.1:8459 touch \"\$W/up-tty\" pause'" /dev/null </dev/null >/dev/null 2>&1
        until [ -s "$W/up-tty" ]; do :; done
        $A sweep --yes --json >"$W/swept"; for it in first inner tty; do lives "$(cat "$W/up-$it")" && echo "$it"; done
        lives "$(pid uvicorn)" && echo uvicorn
        cat "$W/swept"; $A sweep --yes --all --json
    "#;
    let Some(done) = world(&place, script) else { return };
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert_eq!(&lines[..4], ["first", "inner", "tty", "uvicorn"], "{done:#?}");
    let swept: Value = serde_json::from_str(lines[4]).unwrap();
    let why: Vec<&str> = swept["sweep"]["refused"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["spared"].as_str().unwrap())
        .collect();
    for reason in ["its agent may be alive", "terminal", "its parent misbehave", "its parent bash"] {
        assert!(why.iter().any(|why| why.contains(reason)), "{reason}: {why:?}");
    }
    let all = answer(&done);
    assert_eq!(all["ended"][0]["command"][0], "uvicorn", "{all}");
    assert_eq!(all["ended"].as_array().unwrap().len(), 1, "{all}");
}

#[test]
fn directories_that_are_links_or_in_use_stay() {
    let place = Place::new();
    let script = r#"
        mkdir "$W/home" "$W/web_used" "$W/web_open" "$W/web_fresh" "$W/web_old"; echo precious > "$W/home/file"
        ln -s "$W/home" "$W/web_link"; touch -d '2 hours ago' "$W/web_used" "$W/web_open" "$W/web_old"; touch -hd '2 hours ago' "$W/web_link"
        ( cd "$W/web_used"; exec "$M" touch "$W/up-used" pause ) & until [ -s "$W/up-used" ]; do :; done
        exec 9>"$W/web_open/file"; touch -d '2 hours ago' "$W/web_open"
        $A sweep --yes --json; ls "$W"; cat "$W/home/file"
    "#;
    let Some(done) = world(&place, script) else { return };
    for kept in ["web_used", "web_open", "web_fresh", "web_link", "precious"] {
        assert!(done.stdout.lines().any(|line| line == kept), "{kept}: {done:#?}");
    }
    assert!(!done.stdout.lines().any(|line| line == "web_old"), "{done:#?}");
}

#[test]
fn dead_runs_and_their_survivors_are_ended() {
    let place = Place::new();
    let script = r#"
        cd /; $A -q -k 300ms --cgroup false -- "$M" daemon touch "$W/up-d" pause end await "$W/up-d" touch "$W/up-r" pause </dev/null >/dev/null 2>&1 &
        until [ -s "$W/up-r" ] && grep -q running "$AGENT_RUN_STATE_DIR"/runs/*/record.jsonl; do :; done
        # A second one, whose entry is lost too.
        $A -q --cgroup false -- "$M" daemon touch "$W/up-d2" pause end await "$W/up-d2" touch "$W/up-r2" pause </dev/null >/dev/null 2>&1 &
        until [ -s "$W/up-r2" ]; do :; done
        keepers=$(for p in /proc/[0-9]*; do case $(cat $p/comm 2>/dev/null) in agent-run|arun-supervisor) echo ${p#/proc/};; esac; done)
        kill -STOP $keepers; kill -KILL $keepers; for p in $keepers; do while lives $p; do :; done; done
        second=$(tr '\0' '\n' < /proc/$(cat "$W/up-d2")/environ | sed -n 's/^AGENT_RUN_ID=//p'); rm -r "$AGENT_RUN_STATE_DIR/runs/$second"
        # A living one is none of ours to end.
        $A -q --cgroup false -- "$M" touch "$W/up-live" pause </dev/null >/dev/null 2>&1 & until [ -s "$W/up-live" ]; do :; done
        while [ -e "$AGENT_RUN_STATE_DIR/runs/" ] && [ "$(ls "$AGENT_RUN_STATE_DIR/runs" | wc -l)" -gt 2 ]; do :; done
        $A sweep --yes --json >"$W/swept"; echo "rc $?"
        lives "$(cat "$W/up-d")" || echo one; lives "$(cat "$W/up-d2")" || echo two; lives "$(cat "$W/up-live")" && echo living
        cat "$W/swept"
    "#;
    let Some(done) = world(&place, script) else { return };
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert_eq!(&lines[..4], ["rc 0", "one", "two", "living"], "{done:#?}");
    let ended = answer(&done)["ended"].clone();
    assert!(kinds(&ended).contains(&"survivor"), "{ended}");
    // The world ends with the living one in it.
    let _ = std::fs::remove_dir_all(place.state());
}

#[test]
fn what_is_excepted_or_too_young_stays() {
    let place = Place::new();
    let script = r#"
        cd /; leftover vite listen 127.0.0.1:8456; leftover flask listen 127.0.0.1:8457; leftover plain listen 127.0.0.1:8458
        for options in "--older-than 1h" "--only directory" "--except $(pid vite) --except $(pid flask)"; do
            $A sweep --yes --quiet $options; echo "rc $?"
        done
        lives "$(pid vite)" && lives "$(pid flask)" && lives "$(pid plain)" && echo all
        $A sweep --yes --quiet --except "$(pid flask)" --suspects; echo "rc $?"
        lives "$(pid vite)" || echo vite; lives "$(pid flask)" && echo flask; lives "$(pid plain)" || echo plain
    "#;
    let Some(done) = world(&place, script) else { return };
    let expected = "rc 0\nrc 0\nrc 0\nall\nrc 0\nvite\nflask\nplain\n";
    assert_eq!((done.stdout.as_str(), done.stderr.as_str()), (expected, ""), "{done:#?}");
}

#[test]
fn a_session_takes_what_it_has_started() {
    let place = Place::new();
    let script = r#"
        cd /; CLAUDECODE=1 CLAUDE_CODE_SESSION_ID=mine leftover vite listen 127.0.0.1:8456
        CLAUDECODE=1 CLAUDE_CODE_SESSION_ID=other leftover flask listen 127.0.0.1:8457
        ( exec -a claude "$M" touch "$W/agent" pause ) & until [ -s "$W/agent" ]; do :; done
        $A sweep --yes --session mine --json; lives "$(pid vite)" || echo vite; lives "$(pid flask)" && echo flask
        CLAUDECODE=1 $A sweep --session self --yes; echo "rc $?"
    "#;
    let Some(done) = world(&place, script) else { return };
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert_eq!(&lines[1..], ["vite", "flask", "rc 2"], "{done:#?}");
}

#[test]
fn a_server_over_stdio_whose_client_was_killed_is_a_leftover() {
    let place = Place::new();
    let script = r#"
        cd /; export OPENCODE=1 OPENCODE_PID=99999
        # Real pipes, as a client makes them: `sleep` is the client.
        ( "$M" touch "$W/client" pause | orphan mcp-server-git touch "$W/up-mcp" pause 2>/dev/null | sleep 600 ) &
        until [ -s "$W/up-mcp" ] && [ -s "$W/client" ]; do :; done
        $A sweep --list --json >"$W/before"
        kill -KILL "$(cat "$W/client")" $(for p in /proc/[0-9]*; do case $(cat $p/comm 2>/dev/null) in sleep) echo ${p#/proc/};; esac; done)
        while lives "$(cat "$W/client")"; do :; done
        $A sweep --yes --json
    "#;
    let Some(done) = world(&place, script) else { return };
    let swept = answer(&done);
    assert_eq!(swept["ended"][0]["command"][0], "mcp-server-git", "{swept:#} {done:?}");
    assert!(swept["ended"][0]["evidence"].to_string().contains("client_gone"), "{swept:#}");
}

#[test]
fn two_hundred_leftovers_and_two_sweeps_at_once() {
    let _crowd = crate::harness::crowding();
    let place = Place::new();
    let script = r#"
        cd /; for n in $(seq 200); do orphan vite listen 127.0.0.1:$((8100 + n)) append "$W/all" pause </dev/null >/dev/null 2>&1; done
        until [ "$(wc -l < "$W/all" 2>/dev/null || echo 0)" = 200 ]; do :; done
        $A sweep --yes --json >"$W/one" & first=$!; $A sweep --yes --json >"$W/two"; two=$?; wait $first; echo "rc $? $two"
        left=0; for p in $(cat "$W/all"); do lives $p && left=$((left + 1)); done; echo "left $left"
    "#;
    let Some(done) = world(&place, script) else { return };
    assert_eq!(done.stdout, "rc 0 0\nleft 0\n", "{done:#?}");
}

#[test]
fn hostile_names_leave_the_table_a_table() {
    let place = Place::new();
    let script = r#"
        cd /; long=$(printf 'x%.0s' $(seq 60000)); evil=$(printf 'vite\n\033[31mred')
        orphan vite listen 127.0.0.1:8456 note "$evil" note "$long" touch "$W/up-e" pause </dev/null >/dev/null 2>&1
        until [ -s "$W/up-e" ]; do :; done
        $A sweep --list; $A sweep --yes --quiet; lives "$(cat "$W/up-e")" || echo gone
    "#;
    let Some(done) = world(&place, script) else { return };
    assert!(!done.stdout.contains('\u{1b}'), "{done:?}");
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert_eq!(
        (lines.len(), lines[2]),
        (3, "gone"),
        "{:?}",
        lines.iter().map(|it| it.len()).collect::<Vec<_>>()
    );
}

#[test]
fn a_monitor_sweeps_what_is_old_enough_and_stops_cleanly() {
    let place = Place::new();
    let script = r#"
        cd /; $A sweep --monitor --interval 1s --older-than 0 --json >"$W/log" & monitor=$!
        leftover vite listen 127.0.0.1:8456; while lives "$(pid vite)"; do :; done
        kill -TERM $monitor; wait $monitor; echo "rc $?"; wc -l < "$W/log"
        $A sweep --monitor --interval 1ms; echo "rc $?"
    "#;
    let Some(done) = world(&place, script) else { return };
    assert_eq!(done.stdout, "rc 0\n1\nrc 2\n", "{done:#?}");
}

#[test]
fn a_timer_is_installed_and_removed() {
    let place = Place::new();
    std::fs::create_dir_all(place.path("bin")).unwrap();
    let fake = place.path("bin/systemctl");
    std::fs::write(&fake, format!("#!/bin/sh\necho \"$@\" >> {}\n", place.text("calls"))).unwrap();
    std::fs::set_permissions(&fake, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let run = |words: &[&str], with_systemd: bool| {
        let mut command = place.command(&[&["sweep"], words].concat());
        let path = if with_systemd { place.text("bin") } else { "/nonexistent".to_owned() };
        command.env("PATH", format!("{path}:/usr/bin:/bin")).env_remove("XDG_CONFIG_HOME");
        if !with_systemd {
            command.env("PATH", "/nonexistent");
        }
        finish(command)
    };
    run(&["--install-timer", "--interval", "30m", "--older-than", "2h"], true).expect_code(0);
    let unit = |name: &str| std::fs::read_to_string(place.path("home/.config/systemd/user").join(name));
    assert!(unit("agent-run-sweep.timer").unwrap().contains("OnUnitActiveSec=1800s"));
    assert!(unit("agent-run-sweep.service").unwrap().contains("sweep --yes --quiet --older-than 2h"));
    assert!(
        std::fs::read_to_string(place.path("calls")).unwrap().contains("enable --now agent-run-sweep.timer")
    );
    run(&["--uninstall-timer"], true).expect_code(0);
    assert!(unit("agent-run-sweep.timer").is_err());
    let crontab = run(&["--install-timer", "--interval", "30m"], false).expect_code(0);
    assert!(
        crontab.stdout.starts_with("*/30 * * * * ") && crontab.stdout.contains("sweep --yes"),
        "{crontab:?}"
    );
}

#[test]
fn wrong_calls_of_sweep_end_nothing() {
    let place = Place::new();
    for words in [
        &["--only", "everything"][..],
        &["--older-than", "yesterday"],
        &["--session", "0"],
        &["--session", "999999999"],
        &["--list", "--monitor"],
        &["--all", "--session", "self"],
    ] {
        let done = place.run(&[&["sweep", "--yes"], words].concat()).expect_code(2);
        assert_eq!(done.stderr.lines().count(), 1, "{done:?}");
    }
    for glob in ["/*", "/tmp/*", "tmp/web_*", "/tmp/../*", "/home/[x"] {
        let mut command = place.command(&["sweep", "--list"]);
        command.env("AGENT_RUN_SWEEP_PLACES", glob);
        finish(command).expect_code(2);
    }
    place.run(&["sweep", "--yes", "--except", "no such run"]).expect_code(4);
    let odd = place.run(&["sweep", "--install-timer", "--only", "orphan"]).expect_code(2);
    assert_eq!(odd.stderr.lines().count(), 1, "{odd:?}");
}

#[test]
fn what_a_container_is_for_is_no_leftover() {
    let place = Place::new();
    let script = r#"
        printf tini > /proc/self/comm; cd /
        orphan vite listen 127.0.0.1:8456 touch "$W/up-main" pause </dev/null >/dev/null 2>&1; until [ -s "$W/up-main" ]; do :; done
        leftover flask listen 127.0.0.1:8457
        $A sweep --yes --json; lives "$(cat "$W/up-main")" && echo main; lives "$(pid flask)" || echo flask
    "#;
    let Some(done) = world(&place, script) else { return };
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert_eq!(&lines[1..], ["main", "flask"], "{done:#?}");
    assert!(lines[0].contains("what this container is for"), "{done:#?}");
}

#[test]
fn a_script_that_does_more_than_serve_is_not_taken_with_its_server() {
    let place = Place::new();
    let script = r#"
        cd /; cat > "$W/work.sh" <<'END'
bash -c 'exec -a vite "$M" listen 127.0.0.1:8456 touch "$W/up-vite" pause' &
bash -c 'exec -a claude "$M" touch "$W/up-claude" pause' &
wait
END
        setsid -f bash "$W/work.sh" </dev/null >/dev/null 2>&1
        until [ -s "$W/up-vite" ] && [ -s "$W/up-claude" ]; do :; done
        # An orchestrator that serves, with an agent below it.
        leftover app.py listen 127.0.0.1:8457 child exec /bin/bash -c 'exec -a codex "$M" touch "$W/up-codex" pause' end
        until [ -s "$W/up-codex" ]; do :; done
        $A sweep --yes --suspects --quiet; for it in vite claude codex; do lives "$(cat "$W/up-$it")" && echo "$it"; done
    "#;
    let Some(done) = world(&place, script) else { return };
    assert_eq!(done.stdout, "vite\nclaude\ncodex\n", "{done:#?}");
}

#[test]
fn where_an_agent_works_is_not_removed() {
    let place = Place::new();
    let script = r#"
        mkdir -p "$W/real/web_deep/src" "$W/real/web_used" "$W/real/web_old"; ln -s real "$W/link"
        echo x > "$W/real/web_deep/src/app.js"; touch -d '2 hours ago' "$W"/real/web_*
        ( cd "$W/real/web_used"; exec "$M" touch "$W/up-used" pause ) & until [ -s "$W/up-used" ]; do :; done
        touch -d '2 hours ago' "$W"/real/web_*
        export AGENT_RUN_SWEEP_PLACES="$W/link/web_*"; $A sweep --yes --quiet; ls "$W/real"
    "#;
    let Some(done) = world(&place, script) else { return };
    assert_eq!(done.stdout, "web_deep\nweb_used\n", "{done:#?}");
}

#[test]
fn a_server_that_its_agent_talks_to_is_spared_by_the_session_too() {
    let place = Place::new();
    let script = r#"
        cd /; cat > "$W/agent.sh" <<'END'
coproc { exec -a mcp-server "$M" touch "$W/up-mcp" pause; }
bash -c 'exec -a vite "$M" listen 127.0.0.1:8456 touch "$W/up-vite" pause' </dev/null >/dev/null 2>&1 &
wait
END
        ( export OPENCODE=1 OPENCODE_PID=$BASHPID; exec -a opencode bash "$W/agent.sh" ) &
        agent=$!; until [ -s "$W/up-mcp" ] && [ -s "$W/up-vite" ]; do :; done
        $A sweep --yes --session $agent --json; lives "$(cat "$W/up-mcp")" && echo mcp; lives "$(cat "$W/up-vite")" || echo vite
    "#;
    let Some(done) = world(&place, script) else { return };
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert_eq!(&lines[1..], ["mcp", "vite"], "{done:#?}");
}

#[test]
fn real_servers_that_were_left_are_found() {
    let place = Place::new();
    let script = r#"
        mkdir "$W/web_a" "$W/web_b" "$W/plain"; printf 'from http.server import *\nHTTPServer(("127.0.0.1", 8081), SimpleHTTPRequestHandler).serve_forever()' >"$W/plain/app.py"
        serve() { ( cd "$1"; shift; setsid -f "$@" </dev/null >/dev/null 2>&1 ); }
        # In an agent's place; with the agent's variables; with neither, but on a port of development servers.
        serve "$W/web_a" python3 -m http.server -b 127.0.0.1 7001
        CLAUDECODE=1 CLAUDE_PID=99999 serve "$W/plain" python3 -m http.server -b 127.0.0.1 7002
        serve "$W/plain" python3 app.py
        # With nothing but its name, and below a shell that lives.
        serve "$W/plain" python3 -m http.server -b 127.0.0.1 7003
        ( cd "$W/plain"; exec python3 -m http.server -b 127.0.0.1 8082 ) >/dev/null 2>&1 &
        for port in 7001 7002 8081 7003 8082; do until grep -q ":$(printf %04X $port) .* 0A " /proc/net/tcp; do :; done; done
        $A sweep --yes --json
    "#;
    let Some(done) = world(&place, script) else { return };
    let swept = answer(&done);
    assert_eq!(swept["freed"]["ports"], serde_json::json!([7001, 7002, 8081]), "{swept:#}");
    let refused = swept["refused"].to_string();
    assert!(refused.contains("one kind of evidence") && refused.contains("its parent bash"), "{swept:#}");
}

/// Runs `script` in a world with what `.ci/fetch-servers` got, in `$S`, if `sh -c check` can use that.
fn world_with_servers(place: &Place, check: &str, script: &str) -> Option<Done> {
    let servers = concat!("S=", env!("CARGO_MANIFEST_DIR"), "/target/servers");
    let checked = Command::new("sh").args(["-c", &format!("{servers}; {check}")]).output();
    if !checked.is_ok_and(|output| output.status.success()) {
        skipped("there is no such server; .ci/fetch-servers gets it");
        return None;
    }
    world(place, &format!("{servers}\n{script}"))
}

/// As `sweep --json` shows them: the commands that have `word` in them.
fn with_word(items: &Value, word: &str) -> usize {
    let has = |item: &&Value| item["command"].to_string().contains(word);
    items.as_array().map_or(0, |items| items.iter().filter(has).count())
}

#[test]
fn a_real_vite_whose_agent_was_killed_is_a_leftover() {
    let place = Place::new();
    let script = r#"
        mkdir "$W/plain"; cd "$W/plain"; echo '<h1>hi</h1>' >index.html
        bash -c 'export OPENCODE=1 OPENCODE_PID=$BASHPID
            setsid -f node "$0" --host 127.0.0.1 --port 8457 --strictPort </dev/null >/dev/null 2>&1
            exec -a opencode "$M" touch "$W/up-agent" pause' "$S/vite/node_modules/vite/bin/vite.js" &
        until grep -q ":2109 .* 0A " /proc/net/tcp && [ -s "$W/up-agent" ]; do :; done
        $A sweep --list --json; kill -KILL "$(pid agent)"; wait
        $A sweep --yes --json
        pgrep node >&2 && exit 9; true
    "#;
    let check = r#"node "$S/vite/node_modules/vite/bin/vite.js" --version"#;
    let Some(done) = world_with_servers(&place, check, script) else { return };
    let done = done.expect_code(0);
    let before: Value = serde_json::from_str(done.stdout.lines().next().unwrap()).unwrap();
    let spared = before["sweep"]["refused"][0]["spared"].as_str().unwrap_or_default();
    assert!(spared.contains("its agent may be alive"), "{before:#}");
    let swept = answer(&done);
    assert_eq!(with_word(&swept["ended"], "vite.js"), 1, "{swept:#}");
    assert_eq!(swept["freed"]["ports"], serde_json::json!([8457]), "{swept:#}");
}

#[test]
fn a_real_flask_that_reloads_is_a_leftover() {
    let place = Place::new();
    let script = r#"
        mkdir "$W/web_f"; cd "$W/web_f"; printf 'import flask\napp = flask.Flask(__name__)\n' >hello.py
        setsid -f "$S/python/bin/python" -m flask --app hello run --debug --port 7004 </dev/null >/dev/null 2>&1
        cd /; until grep -q ":1B5C .* 0A " /proc/net/tcp && [ "$(pgrep -c python)" = 2 ]; do :; done
        $A sweep --yes --json
        pgrep python >&2 && exit 9; [ ! -e "$W/web_f" ]
    "#;
    let check = r#""$S/python/bin/python" -c 'import flask'"#;
    let Some(done) = world_with_servers(&place, check, script) else { return };
    let done = done.expect_code(0);
    let swept = answer(&done);
    assert_eq!(with_word(&swept["ended"], "flask"), 1, "{swept:#}");
    // The one that looks for changes, and the one that serves.
    assert_eq!(swept["ended"][0]["pids"].as_array().unwrap().len(), 2, "{swept:#}");
    assert_eq!(swept["freed"]["ports"], serde_json::json!([7004]), "{swept:#}");
}

#[test]
fn a_server_over_sockets_whose_client_was_killed_is_a_leftover() {
    let place = Place::new();
    // As node makes them: a pair of Unix sockets for each of stdin and stdout.
    let script = r#"
        cd /; cat >"$W/client.mjs" <<'END'
import { spawn } from 'node:child_process'
import { writeFileSync } from 'node:fs'
spawn('bash', ['-c', 'exec -a mcp-server-git "$M" touch "$W/up-mcp" pause'], { stdio: ['pipe', 'pipe', 'ignore'], detached: true })
writeFileSync(process.env.W + '/client', String(process.pid))
END
        OPENCODE=1 OPENCODE_PID=99999 node "$W/client.mjs" & until [ -s "$W/up-mcp" ] && [ -s "$W/client" ]; do :; done
        $A sweep --list --json; kill -KILL $(cat "$W/client"); wait
        $A sweep --yes --json
    "#;
    let Some(done) = world(&place, script) else { return };
    let before = done.stdout.lines().next().unwrap();
    assert!(!before.contains("client_gone"), "{before}");
    let swept = answer(&done);
    assert_eq!(swept["ended"][0]["command"][0], "mcp-server-git", "{swept:#} {done:?}");
    assert!(swept["ended"][0]["evidence"].to_string().contains("client_gone"), "{swept:#}");
}

#[test]
fn the_library_sweeps_from_a_host_with_threads() {
    let place = Place::new();
    let script = r#"
        cd /; leftover vite listen 127.0.0.1:8456; leftover quiet
        "$(dirname "$A")/examples/sweep"; "$(dirname "$A")/examples/sweep" --yes | tail -n1
        lives "$(pid vite)" || echo ended; lives "$(pid quiet)" && echo quiet
    "#;
    let Some(done) = world(&place, script) else { return };
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert!(
        lines[0].starts_with("leftover [")
            && lines[0].ends_with(
                "vite listen 127.0.0.1:8456 touch {}/up-vite pause: goes"
                    .replace("{}", &place.path("work").display().to_string())
                    .as_str()
            ),
        "{done:#?}"
    );
    assert_eq!(&lines[lines.len() - 3..], ["1 gone, 0 remain", "ended", "quiet"], "{done:#?}");
}

#[test]
fn what_cannot_be_removed_is_told() {
    let place = Place::new();
    let script = r#"
        mkdir -p "$W/ro/web_x"; touch -d '2 hours ago' "$W/ro/web_x"
        mount --bind "$W/ro" "$W/ro" && mount -o remount,bind,ro "$W/ro" || { echo skipped; exit; }
        export AGENT_RUN_SWEEP_PLACES="$W/ro/web_*"; $A sweep --yes --json >"$W/swept"; echo "rc $?"; cat "$W/swept"
    "#;
    let Some(done) = world(&place, script) else { return };
    if done.stdout.starts_with("skipped") {
        return skipped("nothing can be mounted");
    }
    assert!(done.stdout.starts_with("rc 1"), "{done:#?}");
    let remains = answer(&done)["remaining"][0]["remains"].clone();
    assert!(remains.as_str().unwrap().contains("Read-only"), "{remains}");
}

#[test]
fn another_users_server_is_none_of_ours() {
    if agent_run::sys::process::own_uid() != 0 {
        return skipped("only root can be somebody else");
    }
    let place = Place::new();
    let script = r#"
        cd /; theirs() { for p in /proc/[0-9]*; do tr '\0' ' ' <$p/cmdline 2>/dev/null | grep -q "^vite $1 " && echo "${p#/proc/}"; done; }
        OPENCODE=1 OPENCODE_PID=99999 setpriv --reuid 65534 --regid 65534 --clear-groups setsid -f bash -c 'exec -a vite sleep 1001' </dev/null >/dev/null 2>&1
        OPENCODE=1 OPENCODE_PID=99999 setsid -f bash -c 'exec -a vite sleep 1002' </dev/null >/dev/null 2>&1
        until [ -n "$(theirs 1001)" ] && [ -n "$(theirs 1002)" ]; do :; done
        $A sweep --yes --json; lives "$(theirs 1001)" && echo theirs; [ -z "$(theirs 1002)" ] && echo ended
    "#;
    let mut command = Command::new("unshare");
    place.furnish(&mut command);
    command.args(["--net", "--pid", "--fork", "--mount-proc", "--kill-child"]);
    command.args(["bash", "-c", &format!("{PRELUDE}\n{script}")]).env("A", agent_run());
    command.env("AGENT_RUN_SWEEP_PLACES", place.path("work").join("web_*"));
    let done = finish(command);
    if done.stderr.contains("unshare:") {
        return skipped("no namespaces can be made");
    }
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert_eq!(&lines[1..], ["theirs", "ended"], "{done:#?}");
    assert!(!lines[0].contains("1001"), "{}", lines[0]);
}
