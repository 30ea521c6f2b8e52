//! What `agent-run` costs, beside its peers: `cargo bench --bench peers`.
//!
//! Figures of one machine say nothing about another, so all are ratios, measured in turn within one run;
//! peers that are not installed are skipped. `cargo bench --bench peers launch` runs one part.

#![allow(clippy::print_stdout, reason = "it is a program of its own")]

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agent_run::Signal;

const AGENT_RUN: &str = env!("CARGO_BIN_EXE_agent-run");
const MISBEHAVE: &str = env!("CARGO_BIN_EXE_misbehave");

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let state = tempfile::Builder::new().prefix("agent-run-bench-").tempdir_in("/var/tmp").unwrap();
    type Part = fn(&Path);
    let parts: [(&str, Part); 8] = [
        ("launch", launch),
        ("pipe", pipe),
        ("memory", memory),
        ("idle", idle),
        ("many", many),
        ("teardown", teardown),
        ("left", left),
        ("ports", ports),
    ];
    for (name, part) in parts {
        if wanted.is_empty() || wanted.iter().any(|word| word == name) {
            println!("\n{name}");
            part(state.path());
        }
    }
}

fn agent_run(state: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(AGENT_RUN);
    command.args(words).env("AGENT_RUN_STATE_DIR", state.join("state"));
    command
}

fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).exists())
}

/// Prints rows of `name value (limit)`.
fn row(name: &str, value: String, limit: &str) {
    println!("  {name:<44} {value:>12}  {limit}");
}

fn launch(state: &Path) {
    let peers: [(&str, &[&str]); 7] = [
        ("tini", &["tini", "-s", "-g", "/bin/true"]),
        ("dumb-init", &["dumb-init", "/bin/true"]),
        ("timeout", &["timeout", "60", "/bin/true"]),
        ("bwrap", &["bwrap", "--dev-bind", "/", "/", "--unshare-pid", "/bin/true"]),
        ("bare", &["/bin/true"]),
        ("agent-run", &[AGENT_RUN, "/bin/true"]),
        ("without cgroup", &[AGENT_RUN, "--cgroup", "false", "/bin/true"]),
    ];
    let present: Vec<_> =
        peers.iter().filter(|(_, words)| words[0].starts_with('/') || installed(words[0])).collect();
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); present.len()];
    for round in 0..420 {
        for (index, (_, words)) in present.iter().enumerate() {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).env("AGENT_RUN_STATE_DIR", state.join("state"));
            let begun = Instant::now();
            let status = command.status().unwrap();
            // The first rounds warm the caches.
            if round >= 20 && status.success() {
                times[index].push(begun.elapsed());
            }
        }
    }
    let medians: Vec<Duration> = times.iter_mut().map(|times| median(times)).collect();
    let of = |name: &str| present.iter().position(|(peer, _)| *peer == name).map(|index| medians[index]);
    let (Some(ours), Some(lighter)) = (of("agent-run"), of("without cgroup")) else { return };
    if let Some(tini) = of("tini") {
        row("/bin/true, median, x tini, without cgroup", ratio(lighter, tini), "at most 1.6");
    }
    for (name, limit) in
        [("tini", "at most 1.8"), ("bwrap", "below 1"), ("timeout", ""), ("dumb-init", ""), ("bare", "")]
    {
        match of(name).filter(|peer| !peer.is_zero()) {
            Some(peer) => row(&format!("/bin/true, median, x {name}"), ratio(ours, peer), limit),
            None => {
                row(&format!("/bin/true, x {name}"), "-".to_owned(), "not installed, or it cannot run here")
            }
        }
    }
}

/// A gigabyte through a pipe, which is the caller's own, so nothing of ours is in the way.
fn pipe(state: &Path) {
    let timed = |before: &str| {
        let begun = Instant::now();
        let script = format!("{before} head -c 1000000000 /dev/zero | cat > /dev/null");
        let status =
            Command::new("sh").args(["-c", &script]).env("AGENT_RUN_STATE_DIR", state.join("state")).status();
        assert!(status.unwrap().success());
        begun.elapsed()
    };
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..7 {
        bare.push(timed(""));
        ours.push(timed(AGENT_RUN));
    }
    row("1 GB through a pipe, median, x bare", ratio(median(&mut ours), median(&mut bare)), "about 1");
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn ratio(ours: Duration, peers: Duration) -> String {
    format!("{:.2}", ours.as_secs_f64() / peers.as_secs_f64())
}

/// Runs that wait, ended when this is dropped.
struct Runs<'a> {
    state: &'a Path,
    children: Vec<Child>,
}

impl<'a> Runs<'a> {
    fn start(state: &'a Path, count: usize) -> Runs<'a> {
        let start = |_| {
            let mut command = agent_run(state, &["-q", "--ttl", "1h", "sleep", "3600"]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
        };
        let runs = Runs { state, children: (0..count).map(start).collect() };
        runs.wait_until_up();
        runs
    }

    fn wait_until_up(&self) {
        while self.keepers().len() < 2 * self.children.len() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Guards and supervisors whose run has its command.
    fn keepers(&self) -> Vec<u32> {
        let child = |pid: u32| {
            let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
            text.split_ascii_whitespace().next()?.parse::<u32>().ok()
        };
        let named = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let pairs = self.children.iter().filter_map(|guard| {
            let supervisor = child(guard.id())?;
            (named(child(supervisor)?) == "sleep\n").then_some([guard.id(), supervisor])
        });
        pairs.flatten().collect()
    }
}

impl Drop for Runs<'_> {
    fn drop(&mut self) {
        let _ = agent_run(self.state, &["stop", "--all"]).stdout(Stdio::null()).status();
        self.children.iter_mut().for_each(|child| drop(child.wait()));
    }
}

fn memory(state: &Path) {
    for (count, limit) in [(1, "at most 2560"), (100, "at most 500")] {
        let runs = Runs::start(state, count);
        let kilobytes: u64 = runs.keepers().iter().map(|pid| pss(*pid)).sum();
        row(
            &format!("guard + supervisor, PSS, KiB a run of {count}"),
            (kilobytes / count as u64).to_string(),
            limit,
        );
    }
}

fn pss(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or("0");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn idle(state: &Path) {
    let runs = Runs::start(state, 100);
    // The last of them may still be writing its record.
    let mut before = activity(&runs);
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let now = activity(&runs);
        if now == before {
            break;
        }
        before = now;
    }
    std::thread::sleep(Duration::from_secs(10));
    let after = activity(&runs);
    row("100 idle runs, context switches in 10 s", (after.0 - before.0).to_string(), "0");
    row("100 idle runs, CPU ticks in 10 s", (after.1 - before.1).to_string(), "0");
}

/// Context switches and CPU ticks of all keepers.
fn activity(runs: &Runs<'_>) -> (u64, u64) {
    let switches = |pid: &u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let lines = text.lines().filter(|line| line.contains("ctxt_switches"));
        lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum::<u64>()
    };
    let ticks = |pid: &u32| agent_run::sys::process::Stat::read(*pid as i32).map_or(0, |stat| stat.cpu_ticks);
    let keepers = runs.keepers();
    (keepers.iter().map(switches).sum(), keepers.iter().map(ticks).sum())
}

/// From the signal to the last death: all of the tree has the writing end of a pipe.
fn teardown(state: &Path) {
    const ROUNDS: usize = 7;
    const HOSTILE: &str = "wide 230 ignore ALL pause end daemon hop end deep 20 ignore ALL pause end pause";
    let obedient = |before: &[&str]| {
        let words = [before, &[MISBEHAVE, "wide", "1000", "print", "x", "pause", "end", "pause"]].concat();
        time_to_end(state, &words, 2000, Signal::TERM)
    };
    let bwrap: &[&str] = &["bwrap", "--dev-bind", "/", "/", "--unshare-pid", "--die-with-parent"];
    let (mut ours, mut theirs, mut lighter) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(obedient(&[AGENT_RUN]));
        lighter.push(obedient(&[AGENT_RUN, "--cgroup", "false"]));
        if installed("bwrap") {
            theirs.push(obedient(bwrap));
        }
    }
    if !theirs.is_empty() {
        let peer = median(&mut theirs);
        row("TERM to 1000 obedient, x bwrap", ratio(median(&mut ours), peer), "at most 1.3");
        row("the same without cgroup", ratio(median(&mut lighter), peer), "at most 1.3");
    }
    for (name, cgroup) in [("with", "true"), ("without", "false")] {
        let words: Vec<&str> = [AGENT_RUN, "-k", "0", "--cgroup", cgroup, MISBEHAVE].into();
        let words: Vec<&str> = words.into_iter().chain(HOSTILE.split(' ')).collect();
        let mut times: Vec<Duration> =
            (0..ROUNDS).map(|_| time_to_end(state, &words, 0, Signal::KILL)).collect();
        let shown = median(&mut times).as_millis().to_string();
        row(&format!("KILL of the guard, 250 hostile, {name} cgroup, ms"), shown, "below 150");
    }
}

/// Starts `words`, waits until `bytes` have come (or a while), sends `signal` to the first process and returns
/// the time until nobody has the pipe any more.
fn time_to_end(state: &Path, words: &[&str], bytes: usize, signal: Signal) -> Duration {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).env("AGENT_RUN_STATE_DIR", state.join("state")).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    if bytes > 0 {
        stdout.read_exact(&mut vec![0; bytes]).unwrap();
    } else {
        // Deaf processes say nothing; in this time they are all there.
        std::thread::sleep(Duration::from_millis(500));
    }
    let begun = Instant::now();
    agent_run::sys::process::signal_own_child(child.id() as i32, signal).unwrap();
    let _ = stdout.read_to_end(&mut Vec::new());
    let took = begun.elapsed();
    child.wait().unwrap();
    took
}

/// How many of seven processes each launcher leaves behind: a plain one, one in a session of its own, a
/// daemon, a deaf daemon, a stopped one, a bare daemon, and the leader.
fn left(state: &Path) {
    let peers: [(&str, &[&str]); 6] = [
        ("timeout -k 1", &["timeout", "-k", "1", "60"]),
        ("tini -s -g", &["tini", "-s", "-g", "--"]),
        ("dumb-init", &["dumb-init"]),
        (
            "bwrap --unshare-pid --die-with-parent",
            &["bwrap", "--dev-bind", "/", "/", "--unshare-pid", "--die-with-parent"],
        ),
        ("agent-run", &[AGENT_RUN, "-k", "500ms"]),
        ("agent-run --cgroup false", &[AGENT_RUN, "-k", "500ms", "--cgroup", "false"]),
    ];
    println!("  {:<40} {:>8} {:>8} {:>8}", "processes left of 7, after", "exit", "TERM", "KILL");
    for (name, words) in peers {
        if !words[0].starts_with('/') && !installed(words[0]) {
            continue;
        }
        let counts = [None, Some(Signal::TERM), Some(Signal::KILL)].map(|how| left_after(state, words, how));
        println!("  {name:<40} {:>8} {:>8} {:>8}", counts[0], counts[1], counts[2]);
    }
}

/// Starts the tree, lets it end (by itself without a signal), waits two seconds, and removes what is left.
fn left_after(state: &Path, words: &[&str], signal: Option<Signal>) -> usize {
    let go = state.join("go");
    let _ = fs::remove_file(&go);
    let mark = format!("left-{}", std::process::id());
    let script = format!(
        "child print x pause end session print x pause end daemon print x pause end daemon ignore ALL print x pause end \
         child print x stop pause end daemon print x bare note {mark} pause end await {} exit 0",
        go.display()
    );
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg(MISBEHAVE).args(script.split_whitespace()).args(["note", &mark]);
    command.env("AGENT_RUN_STATE_DIR", state.join("state")).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0; 12]).unwrap();
    match signal {
        Some(signal) => agent_run::sys::process::signal_own_child(child.id() as i32, signal).unwrap(),
        None => fs::write(&go, "go").unwrap(),
    }
    std::thread::sleep(Duration::from_secs(2));
    let bears = |pid: &i32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|byte| *byte == 0).any(|word| word == mark.as_bytes())
    };
    let found: Vec<i32> = agent_run::sys::tree::all_processes().filter(bears).collect();
    for pid in &found {
        let _ = agent_run::sys::process::Pidfd::open(*pid).map(|pidfd| pidfd.send(Signal::KILL));
    }
    let _ = child.wait();
    found.len()
}

fn many(state: &Path) {
    const COUNT: usize = 500;
    let tini = installed("tini").then(|| start_tini(COUNT));
    let begun = Instant::now();
    let runs = Runs::start(state, COUNT);
    let ours = begun.elapsed();
    row("500 runs up, x tini", tini.map_or("-".to_owned(), |tini| ratio(ours, tini)), "at most 3");
    let mut times: Vec<Duration> = (0..20)
        .map(|_| {
            let begun = Instant::now();
            let listed = agent_run(state, &["ps", "--json"]).output().unwrap();
            assert!(listed.status.success());
            begun.elapsed()
        })
        .collect();
    drop(runs);
    row("ps --json over 500 runs, ms, median", median(&mut times).as_millis().to_string(), "below 50");
}

/// Returns how long `count` of tini take until each has its command.
fn start_tini(count: usize) -> Duration {
    let begun = Instant::now();
    let mut children: Vec<Child> = (0..count)
        .map(|_| {
            Command::new("tini").args(["-s", "-g", "sleep", "3600"]).stdin(Stdio::null()).spawn().unwrap()
        })
        .collect();
    let up = |pid: u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let child = text.split_ascii_whitespace().next().unwrap_or("x").to_owned();
        fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|name| name == "sleep\n")
    };
    while !children.iter().all(|child| up(child.id())) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let taken = begun.elapsed();
    for child in &children {
        // Our own children, not yet waited for.
        let _ = agent_run::sys::process::signal_own_child(child.id() as i32, agent_run::Signal::TERM);
    }
    children.iter_mut().for_each(|child| drop(child.wait()));
    taken
}

/// Who holds a port, among 2,000 processes with 20 files each.
fn ports(state: &Path) {
    const TRIES: usize = 11;
    let crowd = start_helper("files 20 wide 1000 pause end print up pause");
    let ours = start(agent_run(
        state,
        &["--port", "auto", "--", MISBEHAVE, "listen", "127.0.0.1:{port}", "print", "up", "pause"],
    ));
    let in_run = u16::try_from(the_port(state)).unwrap();
    // In the middle of the crowd, where it is looked for last.
    let last = agent_run::sys::tcp::Reservation::take(0).unwrap().port();
    let stranger = start_helper(&format!("listen 127.0.0.1:{last} print up pause"));
    let rest = start_helper("files 20 wide 1000 pause end print up pause");
    let cell = agent_run::sys::cgroup::parent_with(&[]).ok().and_then(|parent| {
        let leaf = agent_run::sys::cgroup::Leaf::make(&parent, "agent-run-bench").ok()?;
        let port = agent_run::sys::tcp::Reservation::take(0).unwrap().port();
        let script = format!(
            "echo 0 > {}/cgroup.procs; exec {MISBEHAVE} listen 127.0.0.1:{port} print up pause",
            leaf.path().display()
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script]);
        Some((leaf, port, start(command)))
    });
    let look = |port: u16| agent_run(state, &["port", "show", &port.to_string(), "--json"]);
    let bare = agent_run(state, &["--version"]);
    let mut commands = vec![bare, look(in_run), look(last)];
    commands.extend(cell.as_ref().map(|(_, port, _)| look(*port)));
    let peers = [
        ("ss", format!("ss -ltnpH sport = :{last}")),
        ("lsof", format!("lsof -nP -iTCP:{last} -sTCP:LISTEN")),
    ];
    let there: Vec<_> = peers.iter().filter(|(name, _)| installed(name)).collect();
    commands.extend(there.iter().map(|(_, words)| {
        let mut words = words.split(' ');
        let mut command = Command::new(words.next().unwrap());
        command.args(words);
        command
    }));
    let mut times: Vec<Vec<Duration>> = commands.iter().map(|_| Vec::new()).collect();
    for _ in 0..TRIES {
        for (command, times) in commands.iter_mut().zip(&mut times) {
            let begun = Instant::now();
            assert!(command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().code().is_some());
            times.push(begun.elapsed());
        }
    }
    let mut medians = times.iter_mut().map(|times| median(times));
    let mut next = || medians.next().unwrap();
    let ms = |took: Duration| format!("{:.1}", took.as_secs_f64() * 1000.0);
    let (started, in_run, last) = (next(), next(), next());
    row(
        "of a run of ours, ms beside the start of the program",
        ms(in_run.saturating_sub(started)),
        "below 5",
    );
    if cell.is_some() {
        row("in a cgroup of its own, ms", ms(next().saturating_sub(started)), "below 5");
    }
    for (name, _) in there {
        row(
            &format!("in the worst place, x {name}"),
            ratio(last, next()),
            if *name == "ss" { "at most 0.5" } else { "at most 0.25" },
        );
    }
    let mut left = vec![crowd, ours, stranger, rest];
    let leaf = cell.map(|(leaf, _, child)| {
        left.push(child);
        leaf
    });
    for mut child in left {
        // A child of ours; the crowd dies with its group, of which it is the leader.
        let _ = agent_run::sys::process::signal_group_of_own_child(child.id() as i32, Signal::TERM);
        child.wait().unwrap();
    }
    leaf.iter().for_each(|leaf| drop(leaf.remove()));
    claims(state);
}

/// What a claim adds to a launch.
fn claims(state: &Path) {
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..200 {
        for (words, times) in [&["/bin/true"][..], &["--port", "auto", "/bin/true"]].iter().zip(&mut times) {
            let begun = Instant::now();
            assert!(agent_run(state, words).status().unwrap().success());
            times.push(begun.elapsed());
        }
    }
    let [mut without, mut with] = times;
    let more = median(&mut with).saturating_sub(median(&mut without));
    row("a claim adds to a launch, ms", format!("{:.2}", more.as_secs_f64() * 1000.0), "below 0.3");
}

fn start_helper(script: &str) -> std::process::Child {
    let mut command = Command::new(MISBEHAVE);
    command.args(script.split(' '));
    start(command)
}

/// Starts `command` in a group of its own, and returns when it has said "up".
fn start(mut command: Command) -> std::process::Child {
    use std::os::unix::process::CommandExt;
    let mut child = command.stdout(Stdio::piped()).process_group(0).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
    child
}

/// The port of the one run.
fn the_port(state: &Path) -> u64 {
    let listed = agent_run(state, &["ps", "--json"]).output().unwrap();
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    listed["runs"][0]["port"].as_u64().unwrap()
}
