//! What the command gets: the caller's signals, descriptors and directory, our variables, the limits.

use std::collections::HashMap;
use std::process::Command;

use crate::harness::{Done, Place, agent_run, finish, misbehave};

fn shell(place: &Place, script: &str) -> Done {
    let mut command = Command::new("bash");
    command.args(["-c", script]).env_clear();
    place.furnish(&mut command);
    command.env("RUN", agent_run()).env("HELPER", misbehave());
    finish(command)
}

/// `SigBlk` and `SigIgn` as `/proc/self/status` gives them.
fn masks(status: &str) -> HashMap<String, String> {
    let fields = status.lines().filter_map(|line| line.split_once(":\t"));
    fields
        .filter(|(key, _)| ["SigBlk", "SigIgn"].contains(key))
        .map(|(key, value)| (key.into(), value.into()))
        .collect()
}

#[test]
fn dispositions_and_mask_are_the_callers() {
    let place = Place::new();
    for before in ["", "trap '' HUP;", "trap '' PIPE INT;", "trap '' USR1 TERM QUIT CHLD;"] {
        let bare = shell(&place, &format!("{before} exec $HELPER status")).expect_code(0);
        let ours = shell(&place, &format!("{before} exec $RUN -- $HELPER status")).expect_code(0);
        assert_eq!(masks(&bare.stdout), masks(&ours.stdout), "{before}");
        assert!(masks(&bare.stdout).len() == 2);
    }
}

#[test]
fn a_blocked_signal_stays_blocked_for_the_command() {
    let place = Place::new();
    let block = "import os,signal,sys; signal.pthread_sigmask(signal.SIG_BLOCK,[signal.SIGUSR2,signal.SIGALRM]); os.execv(sys.argv[1],sys.argv[1:])";
    let python = |words: &[&str]| {
        let mut command = Command::new("python3");
        command.args(["-c", block]).args(words);
        place.furnish(&mut command);
        finish(command).expect_code(0).stdout
    };
    let bare = python(&[misbehave(), "status"]);
    assert_eq!(masks(&bare), masks(&python(&[agent_run(), "--", misbehave(), "status"])));
    assert_ne!(masks(&bare)["SigBlk"], "0000000000000000");
}

#[test]
fn nohup_survives_the_hangup() {
    let place = Place::new();
    let script =
        "trap '' HUP; $RUN -- sh -c 'kill -HUP $PPID; kill -HUP $(ps -o ppid= -p $PPID); echo alive'";
    assert_eq!(shell(&place, script).expect_code(0).stdout, "alive\n");
}

#[test]
fn no_descriptor_leaks_but_the_tree_lock() {
    let place = Place::new();
    for open in ["", "7</dev/zero"] {
        let bare = shell(&place, &format!("exec $HELPER fds {open}")).expect_code(0).stdout;
        let log = if open.is_empty() { String::new() } else { format!("--events {}", place.text("events")) };
        let ours = shell(&place, &format!("exec $RUN {log} -- $HELPER fds {open}")).expect_code(0).stdout;
        let listed = |text: &str| {
            text.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let extra: Vec<&str> = ours
            .lines()
            .filter(|line| !listed(&bare).contains(&line.split(' ').next().unwrap().to_owned()))
            .collect();
        assert_eq!(extra.len(), 1, "{ours}");
        let (number, target) = extra[0].split_once(' ').unwrap();
        assert!(number.parse::<i32>().unwrap() >= 900 && target.ends_with("/tree.locks"), "{extra:?}");
    }
}

#[test]
fn a_few_descriptors_are_enough() {
    let place = Place::new();
    shell(&place, "ulimit -n 28; exec $RUN -- $HELPER exit 6").expect_code(6);
}

#[test]
fn a_closed_stdin_stays_closed() {
    let place = Place::new();
    let script = "exec $RUN -- sh -c 'test -e /proc/$$/fd/0 || echo closed' 0<&-";
    assert_eq!(shell(&place, script).expect_code(0).stdout, "closed\n");
    let err = shell(&place, "$RUN -- $HELPER exit 3 2>&-; exit $?");
    err.expect_code(3);
}

#[test]
fn variables_tell_the_command_of_its_run() {
    let place = Place::new();
    let done = shell(
        &place,
        "$RUN --env A=b=c --env EMPTY= -- sh -c 'echo $AGENT_RUN_ID; echo $AGENT_RUN_DIR; echo $TMPDIR; echo $A; echo ${EMPTY-unset}; ls -ld $TMPDIR; pwd'",
    );
    let done = done.expect_code(0);
    let lines: Vec<&str> = done.stdout.lines().collect();
    let record = place.the_ended();
    assert_eq!(lines[0], record["id"].as_str().unwrap());
    assert_eq!(lines[1], place.state().join("runs").join(lines[0]).join("tmp").to_str().unwrap());
    assert_eq!((lines[1], lines[3], lines[4]), (lines[2], "b=c", ""));
    assert!(lines[5].starts_with("drwx------"), "{}", lines[5]);
    assert_eq!(lines[6], place.text("work"));
}

#[test]
fn inner_runs_know_their_outer_ones() {
    let place = Place::new();
    let done = shell(&place, "$RUN -- $RUN -- sh -c 'echo $AGENT_RUN_PARENTS $AGENT_RUN_ID'").expect_code(0);
    let (outer, inner) = done.stdout.trim().split_once(' ').unwrap();
    let ended = place.ended();
    let inner = ended.iter().find(|record| record["id"] == inner).unwrap();
    assert_eq!(inner["parents"], serde_json::json!([outer]));
}

#[test]
fn limits_are_set_on_the_command_alone() {
    let place = Place::new();
    let limits =
        ["--nofile", "64:128", "--fsize", "1M", "--data", "512M", "--core", "0", "--cpu-time", "100s:1h"];
    let done = place.run(&[&limits[..], &[misbehave(), "limits"]].concat()).expect_code(0);
    let row = |name: &str| {
        let line = done.stdout.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(row("Max open files"), ["64", "128"]);
    assert_eq!(row("Max file size"), ["1048576", "1048576"]);
    assert_eq!(row("Max data size"), ["536870912", "536870912"]);
    assert_eq!(row("Max core file size"), ["0", "0"]);
    assert_eq!(row("Max cpu time"), ["100", "3600"]);
    let mark = place.the_ended()["mark"].as_u64().unwrap();
    assert_eq!(row("Max file locks")[0], mark.to_string());
}

#[test]
fn output_through_a_pipe_is_byte_exact() {
    let place = Place::new();
    for log in ["", "--log ../log"] {
        let script = format!(
            "$RUN {log} -- head -c 40000000 /dev/urandom | tee >(sha256sum >&2) | sha256sum; $RUN {log} -- cat < $RUN | cmp - $RUN && echo same"
        );
        let done = shell(&place, &script).expect_code(0);
        assert_eq!(done.stdout.lines().next(), done.stderr.lines().next(), "{done:?}");
        assert!(done.stdout.ends_with("same\n"));
    }
}

#[test]
fn a_reader_that_goes_ends_the_writer() {
    let place = Place::new();
    for log in ["", "--log ../log"] {
        let done = shell(&place, &format!("set -o pipefail; $RUN {log} -- yes | head -n 1"));
        assert_eq!(done.expect_code(141).stdout, "y\n");
    }
}

#[test]
fn writers_learn_that_the_command_has_closed_its_stdin() {
    let place = Place::new();
    // If we held on to it, `yes` would write into a pipe that nobody reads until the lease ends.
    let script = "{ yes; echo > ../ended; } | $RUN --ttl 20s -- sh -c \
                  'exec 0<&-; while ! test -e ../ended; do sleep 0.01; done'";
    shell(&place, script).expect_code(0);
}

#[test]
fn words_that_are_no_text_arrive_as_they_are() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let odd = std::ffi::OsStr::from_bytes(b"\xff\xfe odd");
    std::fs::create_dir(place.path("work").join(odd)).unwrap();
    std::fs::write(place.path("work").join(odd).join("file"), "content").unwrap();
    let mut command = place.command(&["--chdir"]);
    command
        .arg(odd)
        .arg("--env")
        .arg(std::ffi::OsStr::from_bytes(b"ODD=\xff"))
        .args(["sh", "-c", "cat file; printf %s \"$ODD$1\" | od -An -tx1", "sh"])
        .arg(odd);
    let done = finish(command).expect_code(0);
    assert!(done.stdout.starts_with("content") && done.stdout.contains("ff ff fe 20 6f 64 64"), "{done:?}");
}

#[test]
fn large_environments_and_many_arguments_are_handed_on() {
    let place = Place::new();
    let arguments: Vec<String> = (0..20_000).map(|n| n.to_string()).collect();
    let mut command = place.command(&["sh", "-c", "echo $# ${#BIG}", "sh"]);
    command.args(&arguments).env("BIG", "x".repeat(120_000));
    for n in 0..8 {
        command.env(format!("BIG{n}"), "x".repeat(120_000));
    }
    assert_eq!(finish(command).expect_code(0).stdout, "20000 120000\n");
    assert_eq!(place.the_ended()["command"].as_array().unwrap().len(), 20_004);
}
