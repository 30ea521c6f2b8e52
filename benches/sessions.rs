//! What a message to a session costs: `cargo bench --bench sessions [-- line|python|stream ...]`.
//!
//! As in `peers`, ratios are measured in turn within one run; the two times are of this machine alone.

#![allow(clippy::print_stdout, reason = "it is a program of its own")]

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_run::manager::{Manager, ManagerConfig, Piece, SessionSpec};

const AGENT_RUN: &str = env!("CARGO_BIN_EXE_agent-run");
const AT_ONCE: usize = 20;
const BYTES: u64 = 100_000_000;

fn main() {
    // The library reads its environment, so it is used from a process that was started with it.
    let Some(state) = std::env::var_os("AGENT_RUN_BENCH_STATE") else {
        let state = tempfile::Builder::new().prefix("agent-run-bench-").tempdir_in("/var/tmp").unwrap();
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.env("AGENT_RUN_BENCH_STATE", state.path()).env("AGENT_RUN_BIN", AGENT_RUN);
        again.env("AGENT_RUN_STATE_DIR", state.path().join("state")).args(std::env::args().skip(1));
        assert!(again.status().unwrap().success());
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
        let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|word| word == name);
        if is_wanted("line") {
            round_trips().await;
        }
        if is_wanted("python") {
            against_a_new_process().await;
        }
        if is_wanted("stream") {
            many_at_once(Path::new(&state)).await;
        }
    });
}

fn row(name: &str, value: String, limit: &str) {
    println!("  {name:<56} {value:>12}  {limit}");
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn cat() -> SessionSpec {
    SessionSpec { name: Some("cat".into()), ..SessionSpec::command(["cat"], "marker:{marker}") }
}

async fn round_trips() {
    let manager = Manager::new(ManagerConfig::default());
    let session = manager.spawn(cat()).await.unwrap();
    let mut bare = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut to, mut from) = (bare.stdin.take().unwrap(), bare.stdout.take().unwrap());
    let (mut times, mut bare_times) = (Vec::new(), Vec::new());
    for _ in 0..500 {
        let begun = Instant::now();
        manager.send(&session, "hello").await.unwrap();
        times.push(begun.elapsed());
        let begun = Instant::now();
        to.write_all(b"hello\n").unwrap();
        from.read_exact(&mut [0; 6]).unwrap();
        bare_times.push(begun.elapsed());
    }
    drop(to);
    bare.wait().unwrap();
    row("a line to cat and back, by the library", format!("{:?}", median(times)), "(under 150 µs)");
    row("the same with a cat of one's own, half as many switches", format!("{:?}", median(bare_times)), "");
    let mut times = Vec::new();
    for _ in 0..200 {
        let begun = Instant::now();
        let mut command = Command::new(AGENT_RUN);
        let output = command.args(["session", "send", "cat", "hello"]).output().unwrap();
        times.push(begun.elapsed());
        assert_eq!(output.stdout, b"hello\n");
    }
    row("the same from the command line", format!("{:?}", median(times)), "(under 2 ms)");
    manager.shutdown(Duration::from_secs(5)).await.unwrap();
}

async fn against_a_new_process() {
    let manager = Manager::new(ManagerConfig::default());
    let session = manager.spawn(SessionSpec::provider("python")).await.unwrap();
    let (mut ours, mut anew) = (Vec::new(), Vec::new());
    for _ in 0..30 {
        let begun = Instant::now();
        manager.send(&session, "print(1 + 1)").await.unwrap();
        ours.push(begun.elapsed());
        let begun = Instant::now();
        Command::new("python3").args(["-c", "print(1 + 1)"]).stdout(Stdio::null()).status().unwrap();
        anew.push(begun.elapsed());
    }
    let ratio = median(anew).as_secs_f64() / median(ours).as_secs_f64();
    row("python: faster than starting it for each command", format!("{ratio:.0} ×"), "(at least 20 ×)");
    manager.shutdown(Duration::from_secs(5)).await.unwrap();
}

async fn many_at_once(state: &Path) {
    let file = state.join("data");
    std::fs::write(&file, "0123456789abcdef".repeat(BYTES as usize / 16)).unwrap();
    let manager = Arc::new(Manager::new(ManagerConfig::default()));
    let mut sessions = Vec::new();
    for _ in 0..AT_ONCE {
        sessions.push(manager.spawn(SessionSpec::provider("bash")).await.unwrap());
    }
    let mut ratios = Vec::new();
    for _ in 0..3 {
        let begun = Instant::now();
        let script = format!("cat {} | cat >/dev/null", file.display());
        let pipes: Vec<_> =
            (0..AT_ONCE).map(|_| Command::new("sh").args(["-c", &script]).spawn().unwrap()).collect();
        pipes.into_iter().for_each(|mut pipe| drop(pipe.wait()));
        let through_pipes = begun.elapsed();
        let begun = Instant::now();
        let tasks: Vec<_> = sessions
            .iter()
            .map(|session| {
                let (manager, session) = (Arc::clone(&manager), session.clone());
                let text = format!("cat {}", file.display());
                tokio::spawn(async move {
                    let mut reply = manager.stream(&session, &text).await.unwrap();
                    let mut bytes = 0;
                    while let Piece::Text(text) = reply.next().await.unwrap() {
                        bytes += text.len() as u64;
                    }
                    assert_eq!(bytes, BYTES);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        ratios.push(through_pipes.as_secs_f64() / begun.elapsed().as_secs_f64());
    }
    ratios.sort_by(f64::total_cmp);
    let gives = format!("{:.2}", ratios[ratios.len() / 2]);
    row("20 sessions of 100 MB each at once, of cat through a pipe", gives, "(at least 0.5)");
    manager.shutdown(Duration::from_secs(5)).await.unwrap();
}
