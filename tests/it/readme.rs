//! The README says what is true, and all of it.

use std::fs;
use std::path::Path;

use crate::harness::Place;

fn readme() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap()
}

/// The long flags in a help text.
fn flags(help: &str) -> Vec<String> {
    let words = help.split(|c: char| c.is_whitespace() || ",:[]()".contains(c));
    let words = words
        .map(|word| word.trim_end_matches('.'))
        .filter(|word| word.starts_with("--") && word[2..].starts_with(char::is_alphabetic));
    let mut found: Vec<String> = words.map(str::to_owned).collect();
    found.sort();
    found.dedup();
    found
}

#[test]
fn every_option_of_a_run_is_in_the_readme() {
    let place = Place::new();
    let readme = readme();
    for flag in flags(&place.run(&["--help"]).stdout) {
        assert!(
            ["--help", "--version"].contains(&flag.as_str()) || readme.contains(&flag),
            "{flag} is not in the README"
        );
    }
}

#[test]
fn every_option_in_the_readme_exists() {
    let place = Place::new();
    let mut known = String::new();
    for verb in ["", "ps", "status", "stop", "renew", "logs", "wait"] {
        let words: Vec<&str> = [verb, "--help"].into_iter().filter(|word| !word.is_empty()).collect();
        known.push_str(&place.run(&words).stdout);
    }
    let table = readme();
    let table = table.split("## Options of a run").nth(1).unwrap().split("## ").next().unwrap();
    for flag in flags(&table.replace('`', " ")) {
        assert!(flags(&known).contains(&flag), "{flag} of the README does not exist");
    }
}

/// Every flag in the page exists, and every flag of these verbs is in the page.
fn page_is_true(page: &str, group: &str, verbs: &[&str]) {
    let place = Place::new();
    let docs = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
    let help = |words: &[&str]| flags(&place.run(words).stdout);
    let of_runs = help(&["--help"]);
    let mut known = of_runs.clone();
    for verb in verbs {
        known.extend(help(&[group, verb, "--help"]));
    }
    // What is said to other programs is theirs.
    let others = ["--input-format", "--output-format", "--model"].map(str::to_owned);
    for flag in flags(&docs.replace(['`', '|', '"'], " ")) {
        assert!(known.contains(&flag) || others.contains(&flag), "{flag} of {page} does not exist");
    }
    // The default needs no word; the rest is of every verb.
    let plain = ["--help", "--background", "--json", "--grace", "--dry-run", "--lines"].map(str::to_owned);
    for flag in known.iter().filter(|flag| !of_runs.contains(flag) && !plain.contains(flag)) {
        assert!(docs.contains(flag.as_str()), "{flag} is not in {page}");
    }
}

#[test]
fn every_option_of_servers_exists_and_is_told() {
    page_is_true("docs/servers.md", "server", &["start", "ensure", "stop", "restart", "status", "logs"]);
}

#[test]
fn every_option_of_sessions_exists_and_is_told() {
    page_is_true("docs/sessions.md", "session", &["start", "send", "list", "close", "interrupt", "health"]);
}

#[test]
fn the_example_script_leaves_no_server() {
    let place = Place::new();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/dev-server.sh");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = std::process::Command::new("bash");
    command.arg(script).arg(format!("python3 -m http.server {port} --bind 127.0.0.1"));
    command.arg(format!("http://127.0.0.1:{port}/"));
    place.furnish(&mut command);
    let bin = Path::new(crate::harness::agent_run()).parent().unwrap().to_str().unwrap();
    command.env("PATH", format!("{bin}:{}", std::env::var("PATH").unwrap()));
    let done = crate::harness::finish(command).expect_code(0);
    assert!(done.stdout.contains("ok:"), "{done:?}");
}
