//! A wall clock that jumps moves no deadline. It is everybody's, so this runs in a virtual machine alone.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::{Place, Running, misbehave, skipped};

const DAY: i64 = 86_400;

fn shift(seconds: i64) {
    let status = Command::new(misbehave()).args(["set_clock", &seconds.to_string()]).status();
    assert!(status.unwrap().success());
}

#[test]
fn a_lease_ends_in_its_time_whatever_the_clock_says() {
    if std::env::var_os("AGENT_RUN_TEST_CLOCK").is_none() {
        return skipped("the clock of this machine is not ours");
    }
    for jump in [DAY, -2 * DAY] {
        let place = Place::new();
        let lease = Duration::from_secs(4);
        let begun = Instant::now();
        let words = ["--ttl", "4s", "-k", "300ms", "--", misbehave(), "touch", "../up", "pause"];
        let run = Running::spawn(place.command(&words));
        place.wait_for_file("up");
        shift(jump);
        let left = place
            .run(&["status", "--json", place.the_record()["id"].as_str().unwrap()])
            .expect_code(0)
            .json();
        // The record tells the end by the clock that was; what is left is told by the one that counts.
        assert_eq!(left["run"]["state"], "running", "{left}");
        run.wait().expect_code(124);
        let took = begun.elapsed();
        shift(-jump);
        assert!(took >= lease && took < lease + Duration::from_secs(30), "{jump}: {took:?}");
        assert_eq!(place.the_ended()["end"]["reason"], "ttl");
        // An entry from the future or of yesterday hides nothing.
        place.run(&["ps", "--all"]).expect_code(0);
    }
}
