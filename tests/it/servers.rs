//! Real servers on claimed ports. `.ci/fetch-servers` gets those that a machine does not have.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use agent_run::Signal;
use agent_run::sys::process::Pidfd;

use crate::harness::{Place, Running, misbehave, skipped, wait_until};

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

/// Leads the server through a life: started by a caller that is killed, ensured, restarted, crashed, its log turned (if
/// it `writes` a line for each request), ended with a child that is deaf to the polite signal.
#[track_caller]
fn lives_as_a_named_server(place: &Place, writes: bool, command: &[&str]) {
    let deaf = ["daemon", "ignore", "TERM", "pause", "end", "exec"];
    let options = [
        "--port",
        "auto",
        "--ready",
        "http:/",
        "--restart",
        "on-failure",
        "--log-size",
        "64K",
        "-k",
        "300ms",
    ];
    let words = |verb: &'static str| {
        let mut words = vec!["server", verb, "web", "--json"];
        words.extend(options);
        words.extend(["--", misbehave()]);
        words.extend(deaf);
        words.extend(command);
        words
    };
    let caller = Running::spawn(place.command(&words("start")));
    place.wait_for_record("it runs", |record| record["leader"].is_object());
    caller.signal(Signal::KILL);
    caller.forget();
    let first = place.wait_for_record("it is ready", |record| record["state"] == "ready");
    let port = u16::try_from(first["ports"][0].as_u64().unwrap()).unwrap();
    let answers = |what: &str| {
        let hosts = ["127.0.0.1", "::1"];
        let well = hosts.iter().any(|host| get(host, port).is_some_and(|line| line.contains(" 200 ")));
        assert!(well, "{command:?} does not answer {what}");
    };
    answers("at first");
    let ensured = place.run(&words("ensure")).expect_code(0).json()["run"].clone();
    assert_eq!((&ensured["id"], &ensured["leader"]), (&first["id"], &first["leader"]));
    let restarted = place.run(&["server", "restart", "web", "--json"]).expect_code(0).json()["run"].clone();
    assert_eq!((&restarted["port"], &restarted["restarts"]), (&port.into(), &1.into()));
    answers("after a restart");
    let leader = restarted["leader"]["pid"].as_i64().unwrap() as i32;
    Pidfd::open(leader).unwrap().send(Signal::KILL).unwrap();
    place.wait_for_record("it is back", |record| record["state"] == "ready" && record["restarts"] == 2);
    answers("after a crash");
    if writes {
        let older = place.unfinished()[0].join("output.log.1");
        wait_until("the log was turned", || {
            (0..100).for_each(|_| drop(get("127.0.0.1", port)));
            older.exists()
        });
        answers("after its log was turned");
    }
    let stopped = place.run(&["server", "stop", "web"]).expect_code(0);
    assert!(stopped.stdout.contains("(1 needed SIGKILL)"), "{stopped:?}");
    place.expect_nothing_left();
}

#[test]
fn python_http_server() {
    let place = Place::new();
    serves_twice(&place, &[], &["python3", "-m", "http.server", "{port}"]);
    lives_as_a_named_server(&place, true, &["python3", "-m", "http.server", "{port}", "--bind", "127.0.0.1"]);
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
    lives_as_a_named_server(&place, false, &["node", "-e", script]);
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
    let words = [python, "-m", "uvicorn", "app:app", "--port", "{port}", "--lifespan", "off"];
    lives_as_a_named_server(&place, true, &words);
}

#[test]
fn a_websocket_client_reconnects_to_the_server_that_replaces_its_own() {
    let python = fetched("python/bin/python");
    let python = python.to_str().unwrap();
    if !can_run(python, "--version") {
        return skipped("there is no uvicorn; .ci/fetch-servers gets it");
    }
    let place = Place::new();
    let app = "import os\n\nasync def app(scope, receive, send):\n    if scope['type'] == 'websocket':\n        \
        await receive()\n        await send({'type': 'websocket.accept'})\n        \
        await send({'type': 'websocket.send', 'text': str(os.getpid())})\n        \
        while (await receive())['type'] != 'websocket.disconnect':\n            pass\n";
    let client = "import sys, time\nfrom websockets.sync.client import connect\nseen = None\n\
        while True:\n    try:\n        with connect(sys.argv[1]) as socket:\n            pid = socket.recv()\n            \
        if pid != seen:\n                seen = pid\n                open(sys.argv[2], 'a').write(pid + '\\n')\n            \
        socket.recv()\n    except Exception:\n        time.sleep(0.02)\n";
    std::fs::write(place.path("work/app.py"), app).unwrap();
    std::fs::write(place.path("work/client.py"), client).unwrap();
    let port = place.port().to_string();
    let serve = ["-m", "uvicorn", "app:app", "--port", "{port}", "--lifespan", "off"];
    let start = |more: &[&str]| {
        let words = [
            &["server", "start", "web", "--json", "--port", &port, "--ready", "ws:/x"],
            more,
            &["--", python],
            &serve,
        ];
        let done = place.run(&words.concat()).expect_code(0);
        done.json()["run"]["leader"]["pid"].to_string()
    };
    let first = start(&[]);
    let mut command = Command::new(python);
    place.furnish(&mut command);
    command.args(["client.py", &format!("ws://127.0.0.1:{port}/x"), &place.text("seen")]);
    let client = Running::spawn(command);
    place.wait_for_file("seen");
    let second = start(&["--force"]);
    let seen = || std::fs::read_to_string(place.path("seen")).unwrap();
    wait_until("the client is connected again", || seen().lines().count() == 2);
    assert_eq!(seen(), format!("{first}\n{second}\n"));
    client.signal(Signal::KILL);
    client.forget();
    place.run(&["server", "stop", "web"]).expect_code(0);
    assert_eq!(place.ended().len(), 2);
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
    lives_as_a_named_server(&place, false, &words);
}
