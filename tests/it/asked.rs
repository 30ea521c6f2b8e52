//! Questions at a terminal, and what answers do.

use crate::harness::pty::{PROMPT, Pty};
use crate::harness::{Place, is_dead};

const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";

#[test]
fn a_held_port_is_asked_about() {
    let place = Place::new();
    let port = place.port();
    let mut pty = Pty::shell(&place, "bash");
    pty.line(&format!("$HELPER listen 127.0.0.1:{port} touch ../up pause &"));
    place.wait_for_file("up");
    let holder = place.pid_in("up");
    for (answer, what_follows) in
        [("n\r", "--force ends it"), ("\r", "--force ends it"), (CTRL_D, "--force ends it"), (CTRL_C, "")]
    {
        pty.line(&format!("$RUN --port {port} echo got"));
        let asked = pty.expect("end it? [y/N] ");
        assert!(asked.contains(&format!("(pid {holder}, ")), "{asked}");
        pty.send(answer);
        pty.expect(what_follows);
        pty.expect(PROMPT);
        assert!(!is_dead(holder), "{answer:?}");
    }
    // In the background nobody is asked, or the job would be stopped for reading.
    pty.line(&format!("$RUN --port {port} echo got & wait $!; echo code $?"));
    pty.expect("code 125");
    pty.line(&format!("$RUN --port {port} echo go''t"));
    pty.expect("end it? [y/N] ");
    pty.line("y");
    pty.expect("got");
    assert!(is_dead(holder));
    pty.line(&format!("$HELPER listen 127.0.0.1:{port} touch ../again pause &"));
    place.wait_for_file("again");
    pty.line(&format!("$RUN port free {port}"));
    pty.expect("end this process? [y/N] ");
    pty.line("y");
    pty.expect("1 in total");
    pty.leave();
}
