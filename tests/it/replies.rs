//! Replies of sessions in trouble: floods, readers that are slow or gone, messages that nobody waits for.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Instant;

use agent_run::Signal;
use agent_run::control::frames::{FromSession, Head, Received, ToSession};
use agent_run::control::{Request, encode};
use serde_json::Value;

use crate::harness::agents::Agents;
use crate::harness::{Running, wait_until};

#[test]
fn a_flood_keeps_nothing_from_its_turn() {
    let _crowd = crate::harness::crowding();
    let agents = Agents::new();
    for (name, flood) in [("out", "yes"), ("err", "yes >&2"), ("both", "yes >&2 & yes; wait")] {
        agents.start(&[name, "--provider", "bash"]);
        let begun = Instant::now();
        let done = agents.send(&[name, "--timeout", "300ms", flood]);
        assert_eq!(
            done.code,
            Some(124),
            "{flood}: {} of stdout, {}",
            done.stdout.len(),
            &done.stderr[..done.stderr.len().min(300)]
        );
        agents.run(&["session", "interrupt", name]).expect_code(0);
        agents.run(&["session", "close", name, "--force"]).expect_code(0);
        assert!(begun.elapsed().as_secs() < 20, "{flood}: {:?}", begun.elapsed());
    }
}

#[test]
fn a_slow_reader_gets_all_of_a_reply_and_how_the_session_ended() {
    let agents = Agents::new();
    agents.start(&["bash"]);
    let mut command = agents.command(&["session", "send", "bash", "seq 1 290000; exit 3"]);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The program is slowed down with its reader, so it cannot have ended before that has read anything.
    let mut first = [0; 100];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    let (mut rest, mut told) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(first.len() + rest.len(), (1..=290_000).map(|n: u32| n.to_string().len() + 1).sum::<usize>());
    assert!(told.contains("it ended with code 3"), "{told}");
}

#[test]
fn large_replies_come_as_they_were_said() {
    let agents = Agents::new();
    agents.start(&["bash"]);
    // One after the other in the same memory, with readers at once and one that is late.
    for first in [1_u32, 2_000_000, 3_000_000] {
        let last = first + 700_000;
        let numbers: String = (first..=last).map(|number| format!("{number}\n")).collect();
        std::fs::write(agents.0.path("numbers"), numbers).unwrap();
        let mut command = agents.command(&["session", "send", "bash", "cat ../numbers"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut stdout, mut text) = (child.stdout.take().unwrap(), Vec::new());
        for _ in 0..10 {
            // Meanwhile the session would say all the rest, if it did not wait for us.
            (&mut stdout).take(64 << 10).read_to_end(&mut text).unwrap();
            agents.until_busy("bash");
        }
        stdout.read_to_end(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
        let mut lines = text.lines().zip(first..).enumerate();
        let wrong = lines.find(|(_, (line, number))| line.parse::<u32>() != Ok(*number));
        assert_eq!((wrong, text.lines().count()), (None, 700_001), "{first}");
    }
}

#[test]
fn who_reads_no_memory_gets_all_by_the_socket() {
    let agents = Agents::new();
    agents.start(&["bash"]);
    let numbers: String = (1..=400_000).map(|number| format!("{number}\n")).collect();
    std::fs::write(agents.0.path("numbers"), &numbers).unwrap();
    let mut stream = UnixStream::connect(agents.0.unfinished()[0].join("control.sock")).unwrap();
    let head = Head { timeout_s: None, stream: false, wait: true };
    let message = ToSession::Send(head, "cat ../numbers".to_owned()).encode();
    stream.write_all(&[encode(Request::Talk), message].concat()).unwrap();
    let (mut received, mut text, mut offered) = (Received::default(), Vec::new(), false);
    loop {
        match received.from_session().unwrap() {
            Some(FromSession::Text(more)) => text.extend(more),
            // Its descriptor is not taken, and nothing is said of it.
            Some(FromSession::Memory(..)) => offered = true,
            Some(FromSession::Over(_)) => break,
            Some(other) => panic!("{other:?}"),
            None => {
                let (room, most) = received.room();
                let mut buffer = vec![0; most.min(4096)];
                let length = stream.read(&mut buffer).unwrap();
                assert_ne!(length, 0, "the reply has an end");
                room.extend_from_slice(&buffer[..length]);
            }
        }
    }
    assert!(offered && text == numbers.as_bytes(), "{offered}, {} bytes", text.len());
}

#[test]
fn a_reader_that_goes_ends_the_wait() {
    let agents = Agents::new();
    agents.start(&["bash"]);
    let mut command = agents.command(&["session", "send", "bash", "yes"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0; 10]).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(141));
    let busy = agents.send(&["bash", "--json", "echo x"]).expect_code(1);
    assert!(busy.stderr.contains("which nobody waits for"), "{busy:#?}");
    agents.start(&["lines", "--provider", "bash"]);
    let mut command = agents.command(&["session", "send", "lines", "--stream", "--json", "yes"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0; 10]).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(141));
    agents.run(&["session", "close", "lines", "--force"]).expect_code(0);
    agents.run(&["session", "interrupt", "bash"]).expect_code(0);
    assert_eq!(agents.send(&["bash", "echo x"]).expect_code(0).stdout, "x\n");
}

#[test]
fn an_interrupt_is_for_the_message_of_who_asks() {
    let agents = Agents::new();
    agents.start(&["bash"]);
    let fifo = agents.0.text("fifo");
    let first = agents.send_in_background(&["bash", &format!("mkfifo {fifo}; cat {fifo}")]);
    agents.until_busy("bash");
    let second = agents.send_in_background(&["bash", "echo no"]);
    let third = agents.send_in_background(&["bash", "--timeout", "20s", "echo third"]);
    // Whether it waits for its turn by now or has not begun to: it is not carried out.
    second.signal(Signal::INT);
    let refused = second.wait();
    assert!(refused.code != Some(0) && refused.stdout.is_empty(), "{refused:#?}");
    std::fs::write(&fifo, "first\n").unwrap();
    assert_eq!(first.wait().expect_code(0).stdout, "first\n");
    assert_eq!(third.wait().expect_code(0).stdout, "third\n");
}

#[test]
fn a_reply_that_was_interrupted_is_130_whatever_the_protocol() {
    let agents = Agents::new();
    for name in ["claude", "codex", "gemini", "bash"] {
        agents.start(&[name]);
        let text = if name == "bash" { "sleep 1000" } else { "[delay=60000] x" };
        let sent = agents.send_in_background(&[name, text]);
        agents.until_busy(name);
        sent.signal(Signal::INT);
        let done = sent.wait().expect_code(130);
        assert!(done.stderr.contains("Ctrl-C again leaves it to itself"), "{done:#?}");
    }
}

#[test]
fn a_reply_that_nobody_waits_for_is_no_reason_to_live() {
    let agents = Agents::new();
    agents.start(&["bash", "--idle", "500ms"]);
    assert_eq!(agents.send(&["bash", "--timeout", "100ms", "sleep 1000"]).code, Some(124));
    wait_until("it is gone", || agents.0.unfinished().is_empty());
}

#[test]
fn what_a_program_says_before_it_takes_messages_is_in_its_log() {
    let agents = Agents::new();
    for (name, script) in
        [("early", "echo out; echo err >&2; exit 3"), ("late", "echo out; echo err >&2; sleep 0.2; exit 3")]
    {
        let words = ["session", "start", name, "--protocol", "prompt:^ready> $", "--", "sh", "-c", script];
        let failed = agents.run(&words).expect_code(1);
        assert!(failed.stderr.contains("ended with code 3"), "{failed:#?}");
        assert!(failed.stderr.contains("| out") && failed.stderr.contains("| err"), "{failed:#?}");
        let log = agents.run(&["logs", name, "--raw"]).expect_code(0).stdout;
        assert!(log.contains("out\n") && log.contains("err\n"), "{log}");
    }
}

#[test]
fn a_name_that_has_ended_is_no_beginning_of_an_id() {
    let agents = Agents::new();
    let record = agents.start(&["other", "--provider", "bash"]);
    let id = record["id"].as_str().unwrap();
    // Too short for the beginning of an id.
    agents.send(&[&id[..2], "echo wrong"]).expect_code(4);
    assert_eq!(agents.send(&[&id[..4], "echo right"]).expect_code(0).stdout, "right\n");
    agents.start(&[&id[..4], "--provider", "bash"]);
    agents.run(&["session", "close", &id[..4]]).expect_code(0);
    let ended = agents.send(&[&id[..4], "echo wrong"]).expect_code(3);
    assert!(ended.stdout.is_empty(), "{ended:#?}");
}

#[test]
fn whoever_takes_a_session_has_it_alone() {
    let agents = Agents::new();
    let first = agents.start(&["--provider", "gemini", "--approvals", "accept", "--reuse"]);
    let again = agents.start(&["--provider", "gemini", "--approvals", "accept", "--reuse"]);
    assert_eq!(first["id"], again["id"]);
    // It is taken, and has not been used yet.
    let another = agents.start(&["--provider", "gemini", "--approvals", "accept", "--reuse"]);
    assert_ne!(first["id"], another["id"]);
    agents.send(&[first["id"].as_str().unwrap(), "hello"]).expect_code(0);
    let later = agents.start(&["--provider", "gemini", "--approvals", "accept", "--reuse"]);
    assert_eq!(first["id"], later["id"]);
    // What may do more is not given to who asks for less.
    let declining = agents.start(&["--provider", "gemini", "--reuse"]);
    assert_ne!(first["id"], declining["id"]);
}

#[test]
fn a_document_that_has_begun_is_ended() {
    let agents = Agents::new();
    agents.start(&["bash"]);
    // It closes its stdout, so its reply has no end.
    let done = agents.send(&["bash", "--json", "echo begun; exec 7>&- >&-; exec sleep 1000"]);
    assert_eq!(done.code, Some(1), "{done:#?}");
    let document: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(document["reply"]["text"], "begun\n", "{document}");
    // What is no character at all does not spoil one that comes in two parts.
    agents.start(&["other", "--provider", "bash"]);
    let reply = agents.reply("other", r"printf '\377x\303'; sleep 0.2; printf '\251\n'");
    assert_eq!(reply["text"], "\u{fffd}xé\n");
}

#[test]
fn many_may_talk_and_others_still_ask() {
    let _crowd = crate::harness::crowding();
    let agents = Agents::new();
    agents.start(&["bash"]);
    let fifo = agents.0.text("fifo");
    let first = agents.send_in_background(&["bash", &format!("mkfifo {fifo}; cat {fifo}")]);
    agents.until_busy("bash");
    let others: Vec<Running> = (0..70).map(|_| agents.send_in_background(&["bash", "echo x"])).collect();
    let list = agents.run(&["session", "list", "--json"]).expect_code(0);
    assert_eq!(list.json()["runs"][0]["busy"], true);
    std::fs::write(&fifo, "y\n").unwrap();
    first.wait().expect_code(0);
    let codes: Vec<Option<i32>> = others.into_iter().map(|it| it.wait().code).collect();
    let served = codes.iter().filter(|code| **code == Some(0)).count();
    assert!(served >= 60 && codes.iter().all(|code| [Some(0), Some(1)].contains(code)), "{codes:?}");
}
