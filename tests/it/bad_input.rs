//! Bad input: one line that says what to do, nothing started, nothing left.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use crate::harness::{Done, Place, finish, misbehave};

#[track_caller]
fn refused(place: &Place, words: &[&str], code: i32, said: &str) -> Done {
    let done = place.run(words).expect_code(code);
    assert_eq!(done.stderr.lines().count(), 1, "{words:?}: {}", done.stderr);
    assert!(done.stderr.starts_with("agent-run: "), "{words:?}: {}", done.stderr);
    assert!(done.stderr.contains(said), "{words:?}: {} lacks {said:?}", done.stderr);
    assert_eq!(done.stdout, "", "{words:?}");
    place.expect_nothing_left();
    done
}

#[test]
fn what_cannot_be_run_is_said() {
    let place = Place::new();
    fs::write(place.path("work/plain"), "text").unwrap();
    let touch = place.text("started");
    refused(&place, &[], 125, "there is no command");
    refused(&place, &["--"], 125, "there is no command");
    refused(&place, &["--ttl", "5s"], 125, "there is no command");
    refused(&place, &["no-such-command"], 127, "command not found");
    refused(&place, &["./no-such-file"], 127, "no such file");
    refused(&place, &["./plain"], 126, "permission denied");
    refused(&place, &["."], 126, "directory");
    refused(&place, &["/"], 126, "directory");
    refused(&place, &[""], 125, "empty");
    refused(&place, &["--no-such-option", misbehave(), "touch", &touch], 125, "--no-such-option");
    refused(&place, &["mcp", "start"], 2, "agent-run -- mcp");
    assert!(!place.path("started").exists());
    assert!(place.ended().iter().all(|record| record["end"]["reason"] == "launch_failed"));
}

#[test]
fn wrong_values_are_refused_before_anything_starts() {
    let place = Place::new();
    let touch = place.text("started");
    let table = [
        (&["--ttl", "5x"][..], "--ttl: '5x' is not a duration"),
        (&["--ttl", "-1s"], "--ttl: '-1s' is not a duration: it is negative"),
        (&["--ttl", "1e99h"], "--ttl: '1e99h' is not a duration"),
        (&["--ttl", ""], "--ttl: '' is not a duration"),
        (&["--idle", "soon"], "--idle"),
        (&["--grace", "-5"], "--grace"),
        (&["--signal", "NOPE"], "--signal: unknown signal 'NOPE'"),
        (&["--signal", "STOP"], "--signal"),
        (&["--keep", "maybe"], "--keep: 'maybe' is not one of"),
        (&["--name", "a/b"], "--name: 'a/b' cannot be a name"),
        (&["--name", "a\nb"], "--name: 'a\\nb' cannot be a name"),
        (&["--name", ""], "--name"),
        (&["--label", "novalue"], "--label"),
        (&["--env", "NOVALUE"], "--env: 'NOVALUE' sets no variable"),
        (&["--env", "=x"], "--env"),
        (&["--nofile", "9:3"], "--nofile: '9:3' is not a limit"),
        (&["--data", "1X"], "--data"),
        (&["--copy", "missing"], "cannot copy missing"),
        (&["--chdir", "missing"], "cannot start in missing"),
        (&["--chdir", "/etc/passwd"], "cannot start in /etc/passwd"),
        (&["--log", "/no/such/dir/log"], "cannot write /no/such/dir/log"),
        (&["--events", "/"], "cannot write /"),
        (&["--scratch", "--chdir", "/tmp"], "cannot be used with"),
        (&["-q", "-v"], "cannot be used with"),
    ];
    for (options, said) in table {
        refused(&place, &[options, &[misbehave(), "touch", &touch]].concat(), 125, said);
        assert!(!place.path("started").exists(), "{options:?}");
    }
    assert!(place.ended().is_empty());
}

#[test]
fn wrong_calls_of_verbs_are_refused() {
    let place = Place::new();
    refused(&place, &["status", "nobody"], 4, "there is no run 'nobody'");
    refused(&place, &["stop", "nobody"], 4, "there is no run");
    refused(&place, &["wait", "nobody"], 4, "there is no run");
    refused(&place, &["logs", "nobody"], 4, "there is no run");
    refused(&place, &["renew", "nobody", "1h"], 4, "there is no run");
    refused(&place, &["stop"], 2, "no run is named");
    refused(&place, &["renew", "nobody"], 2, "missing");
    refused(&place, &["renew", "nobody", "5x"], 2, "'5x' is not a duration");
    refused(&place, &["wait", "x", "--timeout", "-1"], 2, "--timeout");
    refused(&place, &["ps", "--bogus"], 2, "--bogus");
    refused(&place, &["stop", "a\u{1b}[31mb"], 4, "a\\u{1b}[31mb");
}

#[test]
fn a_name_is_unique_among_live_runs() {
    let place = Place::new();
    let running = place.start(&["--name", "web"], &["touch", &place.text("ready"), "pause"], "ready");
    let done = place.run(&["--name", "web", misbehave(), "exit", "0"]).expect_code(125);
    assert!(done.stderr.contains("the name 'web' is taken by run"), "{done:?}");
    running.signal(agent_run::Signal::TERM);
    running.wait().expect_code(143);
    place.run(&["--name", "web", misbehave(), "exit", "0"]).expect_code(0);
}

#[test]
fn a_state_directory_that_cannot_be_trusted_is_refused() {
    let place = Place::new();
    let state = place.state();
    let real = place.path("real");
    fs::create_dir(&real).unwrap();
    fs::set_permissions(&real, fs::Permissions::from_mode(0o700)).unwrap();
    symlink(&real, &state).unwrap();
    let command = [misbehave(), "exit", "0"];
    refused(&place, &command, 125, "symbolic link");
    fs::remove_file(&state).unwrap();
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o770)).unwrap();
    refused(&place, &command, 125, "chmod 700");
    fs::remove_dir(&state).unwrap();
    fs::write(&state, "").unwrap();
    refused(&place, &command, 125, "not a directory");
    fs::remove_file(&state).unwrap();
}

#[test]
fn a_state_directory_of_another_user_is_refused() {
    let place = Place::new();
    let mut command = place.command(&[misbehave(), "exit", "0"]);
    // `/` is root's; `/proc/1` is not ours if we are not root.
    command.env(
        "AGENT_RUN_STATE_DIR",
        if agent_run::sys::process::own_uid() == 0 { "/proc/self/fd" } else { "/" },
    );
    let done = finish(command).expect_code(125);
    assert!(done.stderr.contains("AGENT_RUN_STATE_DIR"), "{done:?}");
}

#[test]
fn records_that_cannot_be_read_harm_nobody() {
    let place = Place::new();
    place.run(&["--name", "old", misbehave(), "exit", "0"]).expect_code(0);
    let ended = place.state().join("ended");
    let sound = fs::read_dir(&ended).unwrap().flatten().next().unwrap().path();
    let lines = fs::read_to_string(sound.join("record.jsonl")).unwrap();
    let text = lines.lines().last().unwrap();
    for (id, content) in [
        ("0000000a", text[..text.len() / 2].to_owned()),
        ("0000000b", "\0\u{1}garbage".to_owned()),
        ("0000000c", text.replacen("\"version\":1", "\"version\":99", 1)),
    ] {
        fs::create_dir(ended.join(id)).unwrap();
        fs::write(ended.join(id).join("record.jsonl"), &content).unwrap();
    }
    let listed = place.run(&["ps", "--all"]).expect_code(0);
    assert_eq!(listed.stdout.lines().count(), 5, "{listed:?}");
    assert!(listed.stdout.contains("version 99"), "{listed:?}");
    place.run(&["status", "0000000a"]).expect_code(3);
    place.run(&["status", "old"]).expect_code(3);
    let newer = fs::read_to_string(ended.join("0000000c/record.jsonl")).unwrap();
    assert!(newer.contains("\"version\":99"));
}

#[test]
fn an_ambiguous_beginning_lists_the_candidates() {
    let place = Place::new();
    place.run(&[misbehave(), "exit", "0"]).expect_code(0);
    let ended = place.state().join("ended");
    let sound = fs::read_dir(&ended).unwrap().flatten().next().unwrap().path();
    let text = fs::read_to_string(sound.join("record.jsonl")).unwrap();
    for id in ["zzzz0001", "zzzz0002"] {
        fs::create_dir(ended.join(id)).unwrap();
        fs::write(ended.join(id).join("record.jsonl"), &text).unwrap();
    }
    let done = place.run(&["status", "zzzz"]).expect_code(2);
    assert!(done.stderr.contains("zzzz0001") && done.stderr.contains("zzzz0002"), "{done:?}");
}

/// Runs `script` where it may mount, with `$RUN`; nobody else sees the mounts.
fn with_mounts(place: &Place, script: &str) -> Option<Done> {
    let mut command = std::process::Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]);
    place.furnish(&mut command);
    command.env("RUN", crate::harness::agent_run()).env("HELPER", misbehave());
    command.env("AGENT_RUN_STATE_DIR", place.path("disk/state"));
    fs::create_dir(place.path("disk")).unwrap();
    let done = finish(command);
    if done.stderr.contains("unshare:") {
        // A machine that lets nobody make a user namespace (some containers); said, not hidden.
        crate::harness::skipped(&done.stderr);
        return None;
    }
    Some(done)
}

#[test]
fn a_full_disk_is_said_and_nothing_is_left() {
    let place = Place::new();
    let script = "mount -t tmpfs -o size=64k,mode=700 none ../disk || exit 99; mkdir -m 700 ../disk/state; \
                  cat /dev/zero > ../disk/filler 2>/dev/null; \
                  $RUN $HELPER touch ../started; code=$?; ls -A ../disk/state/runs; test -e ../started && exit 98; exit $code";
    let Some(done) = with_mounts(&place, script) else { return };
    let done = done.expect_code(125);
    assert!(done.stderr.contains("No space left") && done.stderr.contains("make room"), "{done:?}");
    assert_eq!((done.stderr.lines().count(), done.stdout.as_str()), (1, ""), "{done:?}");
}

#[test]
fn a_disk_that_fills_up_during_a_run_does_not_keep_it() {
    let place = Place::new();
    let script = "mount -t tmpfs -o size=256k,mode=700 none ../disk || exit 99; \
                  $RUN sh -c 'cat /dev/zero > $TMPDIR/filler 2>/dev/null; exit 7'; code=$?; ls -A ../disk/state/runs; exit $code";
    let Some(done) = with_mounts(&place, script) else { return };
    assert_eq!(done.expect_code(7).stdout, "");
}

#[test]
fn a_full_disk_stops_no_server_and_what_its_log_has_lost_is_told() {
    let place = Place::new();
    // More lines than a pipe holds: when the last is written, others have met the full disk.
    let script = "mount -t tmpfs -o size=8m,mode=700 none ../disk || exit 99; \
                  $RUN server start web --ready log:up -- $HELPER print up await ../fill lines 20000 touch ../written \
                  await ../go print end touch ../ended pause >/dev/null || exit 98; \
                  cat /dev/zero > ../disk/filler 2>/dev/null; echo x > ../fill; \
                  until [ -s ../written ]; do :; done; \
                  rm ../disk/filler; echo x > ../go; until [ -s ../ended ]; do :; done; \
                  until $RUN server logs web | grep -q ' end$'; do :; done; \
                  $RUN server logs web; $RUN server stop web >/dev/null";
    let Some(done) = with_mounts(&place, script) else { return };
    let done = done.expect_code(0);
    assert!(
        done.stdout.contains(" agent-run ") && done.stdout.contains("bytes of output were lost: "),
        "{done:?}"
    );
    assert!(done.stdout.ends_with(" stdout end\n"), "{done:?}");
}

#[test]
fn a_read_only_disk_is_said() {
    let place = Place::new();
    let script = "mount -t tmpfs -o ro none ../disk || exit 99; $RUN $HELPER touch ../started; code=$?; \
                  test -e ../started && exit 98; exit $code";
    let Some(done) = with_mounts(&place, script) else { return };
    let done = done.expect_code(125);
    assert!(done.stderr.contains("Read-only file system"), "{done:?}");
}

#[test]
fn a_read_only_place_is_said() {
    if agent_run::sys::process::own_uid() == 0 {
        return; // root writes where it likes; the suite also runs as another user
    }
    let place = Place::new();
    fs::create_dir(place.path("closed")).unwrap();
    fs::set_permissions(place.path("closed"), fs::Permissions::from_mode(0o500)).unwrap();
    let mut command = place.command(&[misbehave(), "exit", "0"]);
    command.env("AGENT_RUN_STATE_DIR", place.path("closed/state"));
    let done = finish(command).expect_code(125);
    assert!(
        done.stderr.contains("Permission denied") && done.stderr.contains("AGENT_RUN_STATE_DIR"),
        "{done:?}"
    );
}
