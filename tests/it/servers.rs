//! Real servers on claimed ports. `.ci/fetch-servers` gets those that a machine does not have.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use agent_run::Signal;

use crate::harness::{Place, Running, skipped, wait_until};

/// What `.ci/fetch-servers` got.
fn fetched(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/servers").join(path)
}

fn can_run(program: &str, argument: &str) -> bool {
    Command::new(program).arg(argument).output().is_ok_and(|output| output.status.success())
}

/// Asks for `/` and returns the status line, if there is an answer.
fn get(host: &str, port: u16) -> Option<String> {
    let mut stream = TcpStream::connect((host, port)).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text).ok()?;
    String::from_utf8_lossy(&text).lines().next().map(str::to_owned)
}

/// Starts the server on a claimed port, twice on the same one, each time with a connection that the server has closed.
#[track_caller]
fn serves_twice(place: &Place, options: &[&str], command: &[&str]) {
    let mut choice = "auto".to_owned();
    for round in 0..2 {
        let words = [&["--port", &choice], options, &["--"], command].concat();
        let run = Running::spawn(place.command(&words));
        let record = place.wait_for_record("it runs", |record| record["state"] == "running");
        let port = u16::try_from(record["ports"][0].as_u64().unwrap()).unwrap();
        wait_until(&format!("{command:?} answers in round {round}"), || {
            ["127.0.0.1", "::1"].iter().any(|host| get(host, port).is_some_and(|line| line.contains(" 200 ")))
        });
        run.signal(Signal::TERM);
        run.wait();
        place.expect_nothing_left();
        choice = port.to_string();
    }
}

#[test]
fn python_http_server() {
    let place = Place::new();
    serves_twice(&place, &[], &["python3", "-m", "http.server", "{port}"]);
}

#[test]
fn node_http() {
    if !can_run("node", "--version") {
        return skipped("there is no node");
    }
    let place = Place::new();
    let script =
        "require('http').createServer((q, r) => r.end('hi')).listen(process.env.PORT, process.env.HOST)";
    serves_twice(&place, &[], &["node", "-e", script]);
}

#[test]
fn uvicorn() {
    let python = fetched("python/bin/python");
    let python = python.to_str().unwrap();
    if !can_run(python, "--version") {
        return skipped("there is no uvicorn; .ci/fetch-servers gets it");
    }
    let place = Place::new();
    let app = "async def app(scope, receive, send):\n    if scope['type'] == 'http':\n        \
        await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n        \
        await send({'type': 'http.response.body', 'body': b'hi'})\n";
    std::fs::write(place.path("work/app.py"), app).unwrap();
    serves_twice(&place, &[], &[python, "-m", "uvicorn", "app:app", "--port", "{port}", "--lifespan", "off"]);
    // Given the socket instead.
    let words = [python, "-m", "uvicorn", "app:app", "--fd", "3", "--lifespan", "off"];
    serves_twice(&place, &["--claim", "listen-fd"], &words);
}

#[test]
fn vite() {
    let script = fetched("vite/node_modules/vite/bin/vite.js");
    if !can_run("node", "--version") || !script.exists() {
        return skipped("there is no vite; .ci/fetch-servers gets it");
    }
    let place = Place::new();
    std::fs::write(place.path("work/index.html"), "<h1>hi</h1>").unwrap();
    let words = ["node", script.to_str().unwrap(), "--port", "{port}", "--strictPort"];
    serves_twice(&place, &[], &words);
}
