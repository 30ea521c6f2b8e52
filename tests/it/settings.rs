//! Flags over environment over files over defaults.

use std::fs;

use crate::harness::{Place, finish, misbehave};

#[test]
fn the_nearest_source_counts_and_v_says_which() {
    let place = Place::new();
    fs::create_dir_all(place.path("home/.config/agent-run")).unwrap();
    fs::write(
        place.path("home/.config/agent-run/config.toml"),
        "ttl = \"1h\"\ngrace = \"1h\"\nidle = \"4h\"\n",
    )
    .unwrap();
    fs::write(place.path("agent-run.toml"), "ttl = \"2h\"\ngrace = \"2h\"\n").unwrap();
    let mut command = place.command(&["-v", "--ttl", "3h", misbehave(), "exit", "0"]);
    command.env("AGENT_RUN_GRACE", "3s").env("AGENT_RUN_ID", "ignored");
    let done = finish(command).expect_code(0);
    for line in ["ttl = 3h (from --ttl)", "grace = 3s (from AGENT_RUN_GRACE)"] {
        assert!(done.stderr.contains(line), "{done:?}");
    }
    assert!(done.stderr.contains("config.toml:3)"), "{done:?}");
    let record = place.the_ended();
    assert_eq!(
        (record["ttl_s"].as_f64(), record["grace_s"].as_f64(), record["idle_timeout_s"].as_f64()),
        (Some(10800.0), Some(3.0), Some(14400.0))
    );
}

#[test]
fn a_mistake_in_a_file_is_named_by_line() {
    let place = Place::new();
    fs::write(place.path("work/agent-run.toml"), "# ours\nttl = \"2h\"\nttll = \"3h\"\n").unwrap();
    let done = place.run(&[misbehave(), "touch", &place.text("started")]).expect_code(125);
    assert!(done.stderr.contains("agent-run.toml:3: unknown setting 'ttll'"), "{done:?}");
    assert_eq!(done.stderr.lines().count(), 1);
    assert!(!place.path("started").exists());
}

#[test]
fn a_mistake_in_the_environment_is_named() {
    let place = Place::new();
    let mut command = place.command(&[misbehave(), "exit", "0"]);
    command.env("AGENT_RUN_TTL", "soon");
    let done = finish(command).expect_code(125);
    assert!(done.stderr.contains("AGENT_RUN_TTL: 'soon' is not a duration"), "{done:?}");
}
