//! The terminal: a command in the foreground works as if `agent-run` were not there. Each claim with bash
//! and with dash as the shell above; each ends with the prompt back and the modes as they were.

use std::process::Command;

use agent_run::Signal;
use agent_run::sys::process::{Pidfd, Stat};

use crate::harness::pty::{PROMPT, Pty};
use crate::harness::{Place, agent_run, misbehave, wait_until};

const SHELLS: [&str; 2] = ["bash", "dash"];
const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";
const CTRL_Z: &str = "\x1a";

/// Runs `claim` in both shells, between two looks at the modes.
#[track_caller]
fn in_both_shells(claim: impl Fn(&Place, &mut Pty)) {
    for shell in SHELLS {
        let place = Place::new();
        let mut pty = Pty::shell(&place, shell);
        let before = pty.modes();
        claim(&place, &mut pty);
        assert_eq!(pty.modes(), before, "the modes have changed in {shell}");
        pty.leave();
    }
}

fn wait_for_state(pid: i32, state: u8) {
    wait_until(&format!("{pid} is in state {}", char::from(state)), || {
        Stat::read(pid).is_some_and(|stat| stat.state == state)
    });
}

/// A press within 200 ms of the first is the same one, told twice; a person's second comes later, and once:
/// one too many would reach the shell's prompt and throw away what is typed next.
fn press_again_and_it_ends(place: &Place, pty: &mut Pty) {
    let first = std::time::Instant::now();
    wait_until("it is another press", || first.elapsed() > std::time::Duration::from_millis(250));
    pty.send(CTRL_C);
    wait_until("the run has ended", || place.unfinished().is_empty());
}

fn name_of(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

fn kill(pid: i32) {
    Pidfd::open(pid).unwrap().send(Signal::KILL).unwrap();
}

#[test]
fn a_repl_keeps_ctrl_c() {
    in_both_shells(|_, pty| {
        pty.line("$RUN python3 -q");
        pty.expect(">>> ");
        pty.press_until(CTRL_C, "KeyboardInterrupt");
        pty.expect(">>> ");
        // A late echo of the key may still throw away what is typed.
        pty.press_until("print(6*7)\r", "\n42");
        pty.expect(">>> ");
        pty.send(CTRL_D);
        pty.expect(PROMPT);
    });
}

#[test]
fn a_shell_within_has_job_control() {
    in_both_shells(|_, pty| {
        pty.line("PS1='IN''NER> ' $RUN bash --norc --noprofile -i");
        pty.expect("INNER> ");
        pty.line("sleep 1000");
        // Until it is itself, it is a copy of the shell that heeds no key.
        wait_until("the job has the terminal", || name_of(pty.foreground()) == "sleep");
        pty.send(CTRL_Z);
        pty.expect("Stopped");
        pty.expect("INNER> ");
        pty.line("fg");
        pty.expect("sleep 1000");
        wait_until("the job has the terminal", || name_of(pty.foreground()) == "sleep");
        pty.send(CTRL_C);
        pty.expect("INNER> ");
        pty.line("exit");
        pty.expect(PROMPT);
    });
}

#[test]
fn full_screen_programs_draw() {
    in_both_shells(|place, pty| {
        std::fs::write(place.path("work/file"), "first line\nsecond line\n").unwrap();
        pty.line("$RUN vim -u NONE -N file");
        pty.expect("first line");
        pty.send("ohello from vim\x1b:wq\r");
        pty.expect(PROMPT);
        assert!(std::fs::read_to_string(place.path("work/file")).unwrap().contains("hello from vim"));
        pty.line("$RUN less file");
        pty.expect("second line");
        pty.send("q");
        pty.expect(PROMPT);
    });
}

#[test]
fn an_editor_can_be_suspended_and_resumed() {
    in_both_shells(|place, pty| {
        std::fs::write(place.path("work/file"), "first line\n").unwrap();
        pty.line("$RUN vim -u NONE -N file");
        pty.expect("first line");
        pty.send(CTRL_Z);
        pty.expect(PROMPT);
        let suspended = pty.modes();
        pty.line("fg");
        pty.expect("first line");
        pty.send(":q!\r");
        pty.expect(PROMPT);
        assert_eq!(pty.modes(), suspended);
    });
}

#[test]
fn ctrl_c_ends_a_server_and_the_list_that_it_is_in() {
    in_both_shells(|place, pty| {
        pty.line("$RUN $HELPER touch ../ready pause; echo went-on");
        place.wait_for_file("ready");
        pty.send(CTRL_C);
        let shown = pty.expect(PROMPT);
        assert!(!shown.replacen("echo went-on", "", 1).contains("went-on"), "{shown}");
        assert_eq!(place.the_ended()["end"]["signal"], 2);
    });
}

#[test]
fn ctrl_c_during_a_teardown_kills_at_once() {
    in_both_shells(|place, pty| {
        pty.line("$RUN -k 1h $HELPER child ignore INT,TERM touch ../deaf pause end await ../deaf touch ../ready pause");
        place.wait_for_file("ready");
        pty.send(CTRL_C);
        place.wait_for_record("the teardown has begun", |record| record["state"] == "stopping");
        press_again_and_it_ends(place, pty);
        pty.expect(PROMPT);
        assert_eq!(place.the_ended()["end"]["killed"], 1);
    });
}

#[test]
fn ctrl_c_without_the_terminal_is_passed_on_once() {
    in_both_shells(|place, pty| {
        // In a pipeline the command does not have the terminal, so we get the key.
        pty.line("$RUN $HELPER on INT append ../told end touch ../ready pause | cat");
        place.wait_for_file("ready");
        pty.send(CTRL_C);
        place.wait_for_file("told");
        press_again_and_it_ends(place, pty);
        pty.expect(PROMPT);
        assert_eq!(std::fs::read_to_string(place.path("told")).unwrap().lines().count(), 1);
        // It dies of the key, so that a script ends too.
        assert_eq!(place.the_ended()["end"]["code"], 130);
    });
}

#[test]
fn ctrl_z_stops_and_fg_goes_on() {
    in_both_shells(|place, pty| {
        pty.line("$RUN sh -c 'echo $$ > ../pid; exec cat'");
        place.wait_for_file("pid");
        let leader = place.pid_in("pid");
        pty.line("one");
        pty.expect("one\r\none");
        pty.send(CTRL_Z);
        pty.expect(PROMPT);
        wait_for_state(leader, b'T');
        pty.line("fg");
        wait_until("the command has the terminal again", || pty.foreground() == leader);
        pty.line("two");
        pty.expect("two\r\ntwo");
        pty.send(CTRL_Z);
        pty.expect(PROMPT);
        pty.line("fg");
        wait_until("the command has the terminal again", || pty.foreground() == leader);
        pty.send(CTRL_D);
        pty.expect(PROMPT);
        assert_eq!(place.the_ended()["end"]["code"], 0);
    });
}

#[test]
fn in_the_background_it_takes_no_terminal_until_fg() {
    in_both_shells(|place, pty| {
        pty.line("$RUN sh -c 'echo $$ > ../pid; exec cat' &");
        pty.expect(PROMPT);
        place.wait_for_file("pid");
        let leader = place.pid_in("pid");
        wait_for_state(leader, b'T');
        assert_eq!(pty.ask("echo the shell has the keyboard"), "the shell has the keyboard");
        wait_until("the shell has seen its job stop", || pty.ask("jobs").contains("Stopped"));
        pty.line("fg");
        wait_until("the command has the terminal", || pty.foreground() == leader);
        pty.line("typed");
        pty.expect("typed\r\ntyped");
        pty.send(CTRL_D);
        pty.expect(PROMPT);
    });
}

#[test]
fn a_background_server_goes_on_and_can_be_interrupted_after_fg() {
    in_both_shells(|place, pty| {
        pty.line("$RUN $HELPER touch ../ready pause &");
        pty.expect(PROMPT);
        place.wait_for_file("ready");
        assert_eq!(pty.ask("echo free"), "free");
        pty.line("fg");
        let shell = pty.foreground();
        wait_until("the job has the terminal", || pty.foreground() != shell || pty.foreground() != 0);
        pty.expect("pause");
        wait_until("the run is in front", || {
            let group = pty.foreground();
            Stat::read(group).is_some_and(|stat| stat.comm == "agent-run" || stat.comm == "misbehave")
        });
        pty.send(CTRL_C);
        pty.expect(PROMPT);
        assert_eq!(place.the_ended()["end"]["signal"], 2);
    });
}

#[test]
fn modes_are_put_right_after_a_raw_program_is_killed() {
    in_both_shells(|place, pty| {
        pty.line("$RUN $HELPER raw touch ../ready pause");
        place.wait_for_file("ready");
        kill(place.pid_in("ready"));
        pty.expect(PROMPT);
    });
}

#[test]
fn modes_are_put_right_when_the_lease_ends_a_raw_program() {
    in_both_shells(|_, pty| {
        pty.line("$RUN --ttl 200ms $HELPER raw pause");
        pty.expect("the lease of 200ms ended");
        pty.expect(PROMPT);
    });
}

#[test]
fn modes_that_a_command_sets_on_purpose_stay() {
    for shell in SHELLS {
        let place = Place::new();
        let mut pty = Pty::shell(&place, shell);
        let before = pty.modes();
        pty.ask("$RUN stty -ixon");
        let after = pty.modes();
        assert_ne!(before, after);
        pty.leave();
    }
}

#[test]
fn one_ctrl_c_ends_a_scripts_loop() {
    for script in SHELLS {
        in_both_shells(|place, pty| {
            let text =
                "for i in 1 2 3; do $RUN $HELPER append ../runs touch ../ready pause; done; echo went on\n";
            std::fs::write(place.path("work/script"), text).unwrap();
            pty.line(&format!("{script} ./script"));
            place.wait_for_file("ready");
            pty.send(CTRL_C);
            let shown = pty.expect(PROMPT);
            assert!(!shown.contains("went on"), "{shown}");
            assert_eq!(std::fs::read_to_string(place.path("runs")).unwrap().lines().count(), 1);
        });
    }
}

#[test]
fn a_script_can_be_suspended_and_resumed() {
    for script in SHELLS {
        in_both_shells(|place, pty| {
            std::fs::write(place.path("work/script"), "$RUN sh -c 'echo $$ > ../pid; exec cat'; echo then\n")
                .unwrap();
            pty.line(&format!("{script} ./script"));
            place.wait_for_file("pid");
            let leader = place.pid_in("pid");
            wait_until("the command has the terminal", || pty.foreground() == leader);
            pty.send(CTRL_Z);
            pty.expect(PROMPT);
            pty.line("fg");
            wait_until("the command has the terminal again", || pty.foreground() == leader);
            pty.line("x");
            pty.expect("x\r\nx");
            pty.send(CTRL_D);
            pty.expect("then");
            pty.expect(PROMPT);
        });
    }
}

#[test]
fn a_pipeline_into_a_pager_works() {
    in_both_shells(|_, pty| {
        pty.line("$RUN $HELPER lines 100000 | less");
        pty.expect("line 5");
        pty.send("q");
        pty.expect(PROMPT);
    });
}

#[test]
fn who_reads_or_sets_the_terminal_in_a_pipeline_gets_it() {
    in_both_shells(|_, pty| {
        pty.line("$RUN sh -c 'echo ask''ing; read x; echo got $x' | cat");
        pty.expect("asking");
        pty.line("word");
        pty.expect("got word");
        pty.expect(PROMPT);
        pty.line("$RUN sh -c 'stty -echo; echo hid''den; read x; stty echo; echo got $x' 2>&1 | cat");
        pty.expect("hidden");
        pty.line("secret");
        let shown = pty.expect("got secret");
        assert!(!shown.contains("secret"), "{shown}");
        pty.expect(PROMPT);
    });
}

#[test]
fn command_substitution_returns_at_once() {
    in_both_shells(|_, pty| {
        assert_eq!(pty.ask("x=$($RUN -- sh -c 'sleep 60 & echo hi'); echo \"<$x>\""), "<hi>");
    });
}

#[test]
fn closing_the_terminal_ends_the_run() {
    for shell in SHELLS {
        for command in [
            "$RUN $HELPER touch ../ready pause",
            "$RUN $HELPER touch ../ready pause | cat",
            "$RUN $HELPER ignore HUP touch ../ready pause",
        ] {
            let place = Place::new();
            let mut pty = Pty::shell(&place, shell);
            pty.line(&command.replace("$RUN", "$RUN -k 200ms"));
            place.wait_for_file("ready");
            pty.hang_up();
            wait_until("all is gone", || place.processes().is_empty());
            assert_eq!(place.the_ended()["end"]["reason"], "signal");
        }
    }
}

#[test]
fn nohup_outlives_the_terminal() {
    for shell in SHELLS {
        let place = Place::new();
        let mut pty = Pty::shell(&place, shell);
        pty.line("nohup $RUN --name kept $HELPER touch ../ready pause >/dev/null 2>&1 &");
        place.wait_for_file("ready");
        place.wait_for_record("it is entered", |record| record["state"] == "running");
        pty.hang_up();
        assert!(place.run(&["status", "kept"]).expect_code(0).stdout.contains("running"));
        place.run(&["stop", "kept"]).expect_code(0);
    }
}

#[test]
fn as_session_leader_it_neither_freezes_nor_stays() {
    let place = Place::new();
    let mut command = Command::new(agent_run());
    command.args(["sh", "-c", "echo $$ > ../pid; exec cat"]);
    let mut pty = Pty::start(&place, command);
    place.wait_for_file("pid");
    pty.line("one");
    pty.expect("one\r\none");
    // Nobody above could let it go on, so it is continued at once.
    pty.send(CTRL_Z);
    pty.line("two");
    pty.expect("two\r\ntwo");
    pty.send(CTRL_C);
    pty.wait();
    assert_eq!(place.the_ended()["end"]["signal"], 2);

    let place = Place::new();
    let mut command = Command::new(agent_run());
    command.args([misbehave(), "touch", "../ready", "pause"]);
    let pty = Pty::start(&place, command);
    place.wait_for_file("ready");
    pty.hang_up();
    wait_until("all is gone", || place.processes().is_empty());
}

#[test]
fn the_prompt_is_back_when_guard_or_supervisor_is_killed() {
    for victim in ["guard", "supervisor"] {
        in_both_shells(|place, pty| {
            pty.line("$RUN $HELPER raw touch ../ready pause");
            place.wait_for_file("ready");
            let record =
                place.wait_for_record("both are known", |record| record["supervisor"]["pid"].is_i64());
            kill(record[victim]["pid"].as_i64().unwrap() as i32);
            pty.expect(PROMPT);
            wait_until("the run has ended", || place.unfinished().is_empty() && place.ended().len() == 1);
        });
    }
}

#[test]
fn a_script_goes_on_with_the_terminal_when_its_guard_is_killed() {
    for script in SHELLS {
        in_both_shells(|place, pty| {
            let text = "$RUN $HELPER raw touch ../ready pause; while test -e ../state/runs/*; do :; done; read x; echo got $x\n";
            std::fs::write(place.path("work/script"), text).unwrap();
            pty.line(&format!("{script} ./script"));
            place.wait_for_file("ready");
            let record =
                place.wait_for_record("the guard is known", |record| record["guard"]["pid"].is_i64());
            kill(record["guard"]["pid"].as_i64().unwrap() as i32);
            wait_until("the run has ended", || place.unfinished().is_empty());
            pty.line("word");
            pty.expect("got word");
            pty.expect(PROMPT);
        });
    }
}

#[test]
fn a_suspended_editor_can_be_stopped() {
    in_both_shells(|place, pty| {
        pty.line("$RUN --name ed -k 300ms vim -u NONE -N file");
        pty.expect("~");
        wait_until("it has the terminal", || name_of(pty.foreground()) == "vim");
        pty.send(CTRL_Z);
        pty.expect(PROMPT);
        // Before, the stop that the editor's own wish for the terminal causes stopped the guard again.
        place.run(&["stop", "ed"]).expect_code(0);
        pty.line("wait; :");
        pty.expect(PROMPT);
        assert_eq!(place.the_ended()["end"]["reason"], "stop");
    });
}

/// A program that puts the terminal right when it is asked to end needs the terminal for that.
#[test]
fn full_screen_programs_end_politely() {
    for program in ["top", "less /etc/passwd"] {
        in_both_shells(|place, pty| {
            pty.line(&format!("$RUN --name it -k 20s {program}"));
            let name = program.split(' ').next().unwrap();
            wait_until("it has the terminal", || name_of(pty.foreground()) == name);
            pty.expect(if name == "top" { "PID" } else { "root" });
            place.run(&["stop", "it"]).expect_code(0);
            pty.expect(PROMPT);
            assert_eq!(place.the_ended()["end"]["killed"], 0, "{program}");
        });
    }
}

#[test]
fn they_do_so_when_the_supervisor_is_killed() {
    in_both_shells(|place, pty| {
        pty.line("$RUN -k 20s less /etc/passwd");
        wait_until("it has the terminal", || name_of(pty.foreground()) == "less");
        pty.expect("root");
        kill(place.supervisor());
        pty.expect(PROMPT);
        assert_eq!(place.the_ended()["end"]["killed"], 0);
    });
}

#[test]
fn ctrl_c_during_a_teardown_ends_the_script_too() {
    for shell in SHELLS {
        let place = Place::new();
        let mut pty = Pty::shell(&place, shell);
        let script = "for i in 1 2 3; do\n$RUN -k 1h $HELPER child ignore INT,TERM touch ../up pause end await ../up exit 0\n\
                      echo again\ndone\n";
        std::fs::write(place.path("work/loop"), script).unwrap();
        pty.line(&format!("{shell} loop"));
        place.wait_for_record("the teardown has begun", |record| record["state"] == "stopping");
        press_again_and_it_ends(&place, &mut pty);
        let printed = pty.expect(PROMPT);
        assert!(!printed.contains("again"), "{shell}: {printed}");
        pty.leave();
    }
}
