//! What every test stands on.

pub(crate) mod agents;
pub(crate) mod pty;

use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::wait::waitpid;
use serde_json::Value;

/// Longer than anything takes on a loaded machine.
fn ceiling() -> Duration {
    Duration::from_secs(if is_slow_machine() { 120 } else { 30 })
}

/// Where a test runs on a machine that is made of software, everything is slower and the trees are smaller.
pub(crate) fn is_slow_machine() -> bool {
    std::env::var_os("AGENT_RUN_TEST_SLOW").is_some()
}

/// Tests that measure time run beside each other, and none of those that keep every CPU busy beside them.
static QUIET: RwLock<()> = RwLock::new(());

/// Held by a test that measures time.
pub(crate) fn measuring() -> RwLockReadGuard<'static, ()> {
    QUIET.read().unwrap_or_else(PoisonError::into_inner)
}

/// Held by a test that starts hundreds of processes.
pub(crate) fn crowding() -> RwLockWriteGuard<'static, ()> {
    QUIET.write().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until `condition` holds. The only place that sleeps.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < ceiling(), "waited {:?} in vain until {what}", ceiling());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns a binary that cargo built, or its copy where another user can run it.
fn binary(built: &'static str) -> &'static str {
    static COPIES: OnceLock<Option<String>> = OnceLock::new();
    match COPIES.get_or_init(|| std::env::var("AGENT_RUN_TEST_BINARIES").ok()) {
        Some(copies) => String::leak(format!("{copies}/{}", built.rsplit('/').next().unwrap())),
        None => built,
    }
}

/// Returns the helper with the bad habits.
pub(crate) fn misbehave() -> &'static str {
    binary(env!("CARGO_BIN_EXE_misbehave"))
}

/// Returns who stands in for coding agents.
pub(crate) fn standin() -> &'static str {
    binary(env!("CARGO_BIN_EXE_standin"))
}

/// Returns the binary under test.
pub(crate) fn agent_run() -> &'static str {
    binary(env!("CARGO_BIN_EXE_agent-run"))
}

/// One test's own world.
pub(crate) struct Place {
    directory: tempfile::TempDir,
    marker: String,
}

const MARKER: &str = "AGENT_RUN_TEST_PLACE";

/// What a finished program left.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Done {
    /// The code as a shell shows it.
    pub(crate) fn shell_code(&self) -> i32 {
        self.code.unwrap_or_else(|| 128 + self.signal.unwrap())
    }

    #[track_caller]
    pub(crate) fn expect_code(self, code: i32) -> Done {
        assert_eq!(self.shell_code(), code, "{self:#?}");
        self
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in {self:#?}"))
    }
}

impl Place {
    pub(crate) fn new() -> Place {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let directory = tempfile::Builder::new().prefix("agent-run-test-").tempdir().unwrap();
        let marker = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        fs::create_dir(directory.path().join("home")).unwrap();
        fs::create_dir(directory.path().join("work")).unwrap();
        fs::write(directory.path().join("home/.inputrc"), "set enable-bracketed-paste off\n").unwrap();
        Place { directory, marker }
    }

    /// A port that nobody has; each call gives another.
    pub(crate) fn port(&self) -> u16 {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let first = 20_000 + std::process::id() * 41 % 8_000;
        loop {
            // Those between are for whoever falls back to the next one.
            let port = (first + NEXT.fetch_add(2, Ordering::Relaxed)) as u16;
            if agent_run::sys::tcp::Reservation::take(port).is_ok() {
                return port;
            }
        }
    }

    /// A path within the place.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The same as text.
    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// Gives `command` this place's environment and nothing of ours.
    pub(crate) fn furnish(&self, command: &mut Command) {
        command.env_clear().envs(self.environment()).current_dir(self.path("work"));
    }

    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("PATH", std::env::var("PATH").unwrap()),
            ("HOME", self.text("home")),
            ("LANG", "C.UTF-8".to_owned()),
            ("TERM", "xterm".to_owned()),
            ("INPUTRC", self.text("home/.inputrc")),
            ("AGENT_RUN_STATE_DIR", self.text("state")),
            ("PS1", "$ ".to_owned()),
            (MARKER, self.marker.clone()),
        ]
    }

    /// The binary with these arguments.
    pub(crate) fn command<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(agent_run());
        command.args(arguments);
        self.furnish(&mut command);
        command
    }

    /// Runs the binary to its end.
    #[track_caller]
    pub(crate) fn run(&self, arguments: &[&str]) -> Done {
        finish(self.command(arguments))
    }

    /// Starts the binary with the helper, and returns when the helper has touched `ready`.
    #[track_caller]
    pub(crate) fn start(&self, options: &[&str], helper: &[&str], ready: &str) -> Running {
        let mut words = options.to_vec();
        words.extend(["--", misbehave()]);
        words.extend(helper);
        let running = Running::spawn(self.command(&words));
        self.wait_for_file(ready);
        running
    }

    #[track_caller]
    pub(crate) fn wait_for_file(&self, name: &str) {
        let path = self.path(name);
        wait_until(&format!("{name} is there"), || fs::metadata(&path).is_ok_and(|seen| seen.len() > 0));
    }

    /// The pid that the helper wrote to `name`.
    pub(crate) fn pid_in(&self, name: &str) -> i32 {
        fs::read_to_string(self.path(name)).unwrap().trim().parse().unwrap()
    }

    /// The records of the finished runs.
    pub(crate) fn ended(&self) -> Vec<Value> {
        let entries = fs::read_dir(self.state().join("ended")).into_iter().flatten().flatten();
        let texts = entries.filter_map(|entry| fs::read(entry.path().join("record.jsonl")).ok());
        texts.map(|text| last_line(&text)).collect()
    }

    /// The one finished run, of which nobody is left: in the background, those who entered its end go a little later.
    #[track_caller]
    pub(crate) fn the_ended(&self) -> Value {
        wait_until("a run has ended", || !self.ended().is_empty());
        let ended = self.ended();
        assert_eq!(ended.len(), 1, "{ended:#?}");
        let keepers = ["guard", "supervisor"].map(|keeper| ended[0][keeper]["pid"].as_i64());
        let are_dead = || keepers.iter().flatten().all(|pid| is_dead(*pid as i32));
        wait_until("its guard and supervisor have gone", are_dead);
        ended.into_iter().next().unwrap()
    }

    /// The unfinished runs' directories.
    pub(crate) fn unfinished(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.state().join("runs")).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    /// The record of the one unfinished run.
    #[track_caller]
    pub(crate) fn the_record(&self) -> Value {
        let unfinished = self.unfinished();
        assert_eq!(unfinished.len(), 1, "{unfinished:?}");
        last_line(&fs::read(unfinished[0].join("record.jsonl")).unwrap())
    }

    /// The record in the directory of an unfinished run, while it is there.
    pub(crate) fn record_in(&self, directory: &Path) -> Option<Value> {
        let text = fs::read(directory.join("record.jsonl")).ok()?;
        // It may be just being written.
        text.ends_with(b"\n").then(|| last_line(&text))
    }

    /// Waits until the record satisfies `condition`.
    #[track_caller]
    pub(crate) fn wait_for_record(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        // One that is just being entered has no name and perhaps no record yet.
        let hidden = |entry: &PathBuf| entry.file_name().unwrap().as_encoded_bytes().starts_with(b".new-");
        let mut found = None;
        wait_until(what, || {
            let entries = self.unfinished();
            let entry = entries.first().filter(|entry| entries.len() == 1 && !hidden(entry));
            found = entry.and_then(|entry| self.record_in(entry)).filter(&condition);
            found.is_some()
        });
        found.unwrap()
    }

    /// The supervisor of the one unfinished run, once it is entered: the command may be up before.
    #[track_caller]
    pub(crate) fn supervisor(&self) -> i32 {
        let record =
            self.wait_for_record("the supervisor is known", |record| record["supervisor"].is_object());
        record["supervisor"]["pid"].as_i64().unwrap() as i32
    }

    /// A word of this place alone, for the arguments of a process that clears its environment.
    pub(crate) fn marker(&self) -> String {
        format!("place-{}", self.marker)
    }

    /// The processes that bear this place's marker.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let (variable, word) = (format!("{MARKER}={}", self.marker), self.marker());
        let has = |pid: &i32, file: &str, wanted: &str| {
            let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            text.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes())
        };
        let bears = |pid: &i32| has(pid, "environ", &variable) || has(pid, "cmdline", &word);
        agent_run::sys::tree::all_processes().filter(bears).collect()
    }

    /// Fails if anything is left.
    #[track_caller]
    pub(crate) fn expect_nothing_left(&self) {
        let left: Vec<String> = self.processes().iter().map(|pid| describe(*pid)).collect();
        assert!(left.is_empty(), "processes are left: {left:#?}");
        let unfinished = self.unfinished();
        assert!(unfinished.is_empty(), "entries are left: {unfinished:?}");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.expect_nothing_left();
        }
        // Only what this test started bears its marker.
        for pid in self.processes() {
            let _ =
                agent_run::sys::process::Pidfd::open(pid).map(|pidfd| pidfd.send(agent_run::Signal::KILL));
        }
    }
}

/// The record that counts of a record file.
fn last_line(text: &[u8]) -> Value {
    let line = text.trim_ascii_end().split(|byte| *byte == b'\n').next_back().unwrap();
    serde_json::from_slice(line).unwrap()
}

fn describe(pid: i32) -> String {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    format!("{pid} {}", String::from_utf8_lossy(&arguments).replace('\0', " "))
}

/// Runs `command` to its end, which must come.
#[track_caller]
pub(crate) fn finish(mut command: Command) -> Done {
    command.stdin(Stdio::null());
    Running::spawn(command).wait()
}

/// A program that runs.
pub(crate) struct Running {
    child: Child,
    shown: String,
}

impl Running {
    #[track_caller]
    pub(crate) fn spawn(mut command: Command) -> Running {
        let shown = format!("{command:?}");
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Running { child: child.unwrap_or_else(|error| panic!("{shown}: {error}")), shown }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub(crate) fn signal(&self, signal: agent_run::Signal) {
        // Our own child, not yet waited for.
        agent_run::sys::process::signal_own_child(self.pid(), signal).unwrap();
    }

    /// Holds it as a debugger does: to everybody else, its parent and its children included, it looks as if it ran.
    #[track_caller]
    pub(crate) fn freeze(&self) {
        let pid = nix::unistd::Pid::from_raw(self.pid());
        ptrace::seize(pid, ptrace::Options::empty()).unwrap();
        ptrace::interrupt(pid).unwrap();
        waitpid(pid, None).unwrap();
    }

    /// Reaps it, without a look at its outputs.
    pub(crate) fn forget(mut self) {
        self.child.wait().unwrap();
    }

    /// Collects the outputs and the status.
    #[track_caller]
    pub(crate) fn wait(mut self) -> Done {
        let read = |stream: Option<Box<dyn Read + Send>>| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                stream.into_iter().for_each(|mut stream| drop(stream.read_to_end(&mut bytes)));
                String::from_utf8_lossy(&bytes).into_owned()
            })
        };
        let stdout = read(self.child.stdout.take().map(|stream| Box::new(stream) as Box<dyn Read + Send>));
        let stderr = read(self.child.stderr.take().map(|stream| Box::new(stream) as Box<dyn Read + Send>));
        let mut status = None;
        wait_until(&format!("{} has ended", self.shown), || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let status = status.unwrap();
        wait_until(&format!("nobody holds the output of {} any more", self.shown), || {
            stdout.is_finished() && stderr.is_finished()
        });
        let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
        Done { code: status.code(), signal: status.signal(), stdout, stderr }
    }
}

/// Returns whether this machine offers the rung of containment.
pub(crate) fn offers(rung: &str) -> bool {
    let place = Place::new();
    let rungs = place.run(&["doctor", "--json"]).expect_code(0).json()["rungs"].clone();
    rungs.as_array().unwrap().iter().any(|known| known["name"] == rung && known["usable"] == true)
}

/// Says that this machine cannot run a test.
#[allow(clippy::print_stderr, reason = "a person reads what was not tested")]
pub(crate) fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}

/// True if `pid` is gone or a zombie.
pub(crate) fn is_dead(pid: i32) -> bool {
    agent_run::sys::process::Stat::read(pid).is_none_or(|stat| stat.is_dead())
}
