//! What the four programs share: stdin read by a thread, lines written out, and the switches in STANDIN.
//!
//! STANDIN is a comma-separated list of `ignore_eof`, `ignore_term`, `slow_start=MS`, `ask_auth`, `v2`,
//! `close_stdin` (once the first prompt has come) and `log=PATH`.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Read, Write, stdin, stdout};
use std::os::fd::FromRawFd;
use std::process::exit;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::script::Script;

/// What came of a wait; the error is the interrupt that ended it.
pub(crate) type Heard<T> = Result<T, Value>;

/// How a turn ended that was not interrupted; `Open` is one that is not to be completed.
pub(crate) enum End {
    Done(String),
    Failed,
    Open,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Prompt,
    Interrupt,
    Answer,
    Other,
}

pub(crate) struct Stage {
    messages: Receiver<Value>,
    held: VecDeque<Value>,
    /// The turn or session that an interrupt must name to be meant for the turn being played.
    pub current: String,
    /// How many requests were made of the client; their ids count from 0, like the client's own.
    asked: u64,
    /// Whether messages carry "jsonrpc".
    tagged: bool,
    split: bool,
}

/// Writes a line of JSON.
macro_rules! send {
    ($stage:expr, $($json:tt)+) => { $stage.line(&serde_json::json!($($json)+)) };
}
pub(crate) use send;

impl Stage {
    pub(crate) fn open(tagged: bool) -> Stage {
        let (sender, messages) = channel();
        thread::spawn(move || read_stdin(sender));
        Stage::new(messages, tagged)
    }

    fn new(messages: Receiver<Value>, tagged: bool) -> Stage {
        Stage { messages, held: VecDeque::new(), current: String::new(), asked: 0, tagged, split: false }
    }

    /// The next message, first of those put off during a turn.
    pub(crate) fn next(&mut self) -> Value {
        let held = self.held.pop_front();
        held.unwrap_or_else(|| self.messages.recv().unwrap_or_else(|_| at_end()))
    }

    /// What precedes every reply: `stderr`, `half` and `garbage`.
    pub(crate) fn begin(&mut self, script: &Script) {
        self.split = script.has("half");
        if let Some(text) = script.value("stderr") {
            eprintln!("{text}");
        }
        if script.has("garbage") {
            send!(self, "this is not JSON\n[\"an\", \"array\"]\n");
        }
    }

    /// Plays a turn up to its end: the wait, `ask` (a method and its parameters) if told to, and the text.
    pub(crate) fn play(
        &mut self,
        script: &Script,
        count: u64,
        ask: (&str, Value),
        speak: impl Fn(&Stage, &str),
    ) -> Heard<End> {
        self.pause(script)?;
        let tail = self.ask(script, ask)?;
        if script.has("error") {
            return Ok(End::Failed);
        }
        let text = script.reply(count, &tail);
        speak(self, &text);
        if script.has("no_result") {
            let ends = [Kind::Interrupt, Kind::Prompt];
            return self.hear(None, &ends).map_or(Ok(End::Open), Err);
        }
        Ok(End::Done(text))
    }

    /// Waits as long as `delay` and `late` say; `late` hears no interrupt.
    fn pause(&mut self, script: &Script) -> Heard<()> {
        let until = Instant::now() + script.wait();
        let interrupt: &[Kind] = &[Kind::Interrupt];
        let ends = if script.has("late") { &[] } else { interrupt };
        self.hear(Some(until), ends).map_or(Ok(()), Err)
    }

    /// Makes the requests of `approve` and `unknown_request`; gives what the reply has to say of the answers.
    fn ask(&mut self, script: &Script, (method, params): (&str, Value)) -> Heard<String> {
        let mut tail = String::new();
        if script.has("approve") {
            let answer = self.request(method, params)?;
            let (result, outcome) = (&answer["result"], &answer["result"]["outcome"]);
            let words = [&result["decision"], &outcome["optionId"], &outcome["outcome"]];
            let word = words.iter().find_map(|word| word.as_str());
            tail += &format!(" decision={}", word.unwrap_or("none"));
        }
        if script.has("unknown_request") {
            let answer = self.request("standin/unknown", json!({}))?;
            tail += &format!(" refused={}", answer["error"]["code"]);
        }
        Ok(tail)
    }

    fn request(&mut self, method: &str, params: Value) -> Heard<Value> {
        send!(self, {"id": self.asked, "method": method, "params": params});
        let heard = self.hear(None, &[Kind::Interrupt, Kind::Answer]);
        let heard = heard.unwrap_or_default();
        let answered = self.kind(&heard) == Kind::Answer;
        self.asked += 1;
        if answered { Ok(heard) } else { Err(heard) }
    }

    /// Reads on and answers nothing, not even an interrupt, until another prompt comes.
    pub(crate) fn silence(&mut self) {
        self.hear(None, &[Kind::Prompt]);
    }

    /// Reads until one of the kinds `ends` comes or the time is up. Prompts and unknown messages are put off;
    /// a prompt that is among the ends gives nothing.
    fn hear(&mut self, until: Option<Instant>, ends: &[Kind]) -> Option<Value> {
        loop {
            let prompted = self.held.iter().any(|held| self.kind(held) == Kind::Prompt);
            if prompted && ends.contains(&Kind::Prompt) {
                return None;
            }
            let message = match until {
                None => self.messages.recv().unwrap_or_else(|_| at_end()),
                Some(until) => receive(&self.messages, until)?,
            };
            match self.kind(&message) {
                Kind::Prompt | Kind::Other => self.held.push_back(message),
                kind if ends.contains(&kind) => return Some(message),
                _ => {}
            }
        }
    }

    fn kind(&self, message: &Value) -> Kind {
        let params = &message["params"];
        match message["method"].as_str().or(message["type"].as_str()) {
            _ if is_prompt(message) => Kind::Prompt,
            Some("turn/interrupt") if params["turnId"] == self.current => Kind::Interrupt,
            Some("session/cancel") if params["sessionId"] == self.current => Kind::Interrupt,
            Some("control_request") if message["request"]["subtype"] == "interrupt" => Kind::Interrupt,
            None if message["id"] == self.asked => Kind::Answer,
            _ => Kind::Other,
        }
    }

    /// Writes the reply's lines; `notify` has an aside follow each, `die` ends the process amid them.
    pub(crate) fn say(&self, script: &Script, lines: &[Value], aside: impl Fn(usize) -> Value) {
        for (at, line) in lines.iter().enumerate() {
            if script.has("die") && at == lines.len() / 2 {
                let line = self.encode(line);
                write(&line.as_bytes()[..line.len() / 2]);
                die(script.value("die").unwrap_or_default());
            }
            self.line(line);
            if script.has("notify") {
                self.line(&aside(at));
            }
        }
    }

    /// Writes a line, with `half` byte by byte where its characters have several.
    pub(crate) fn line(&self, message: &Value) {
        let line = self.encode(message);
        if !self.split {
            return write(line.as_bytes());
        }
        for part in line.as_bytes().chunk_by(|a, b| a.is_ascii() && b.is_ascii()) {
            write(part);
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// A message as a line of JSON; a bare string, as it stands, and nothing at all for an empty one.
    fn encode(&self, message: &Value) -> String {
        match message {
            Value::String(text) if text.is_empty() => String::new(),
            Value::String(text) => format!("{text}\n"),
            Value::Object(_) if self.tagged => {
                let tag = json!({"jsonrpc": "2.0"});
                format!("{}\n", with(message.clone(), tag))
            }
            other => format!("{other}\n"),
        }
    }

    pub(crate) fn error(&self, id: &Value, code: i64, message: &str) {
        send!(self, {"id": id, "error": {"code": code, "message": message}});
    }
}

/// Plays a one-shot run. `build` is given the reply's text in pieces (none if the run is to fail) and tells
/// what to write at once, as the reply, and after it.
pub(crate) fn one_shot(prompt: &str, build: impl Fn(&[String]) -> [Vec<Value>; 3]) -> ! {
    let script = Script::parse(&json!(prompt));
    if script.has("silence") {
        park();
    }
    let mut pieces = script.pieces(&script.reply(1, ""), 2);
    if script.has("error") {
        pieces.clear();
    }
    let [before, text, after] = build(&pieces);
    let mut stage = Stage::new(channel().1, false);
    stage.begin(&script);
    before.iter().for_each(|line| stage.line(line));
    thread::sleep(script.wait());
    let aside = json!({"type": "system", "subtype": "hook_started"});
    stage.say(&script, &text, |_| aside.clone());
    if script.has("no_result") {
        park();
    }
    after.iter().for_each(|line| stage.line(line));
    if script.has("error") {
        eprintln!("standin was told to fail");
        exit(3);
    }
    exit(0)
}

/// All of stdin, as a one-shot run reads its prompt.
pub(crate) fn read_all() -> String {
    let mut text = String::new();
    let _ = stdin().read_to_string(&mut text);
    log(&text);
    text
}

fn read_stdin(sender: Sender<Value>) {
    // SAFETY: nothing else in this process reads or closes fd 0.
    let mut reader = BufReader::new(unsafe { File::from_raw_fd(0) });
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|read| read > 0) {
        log(&line);
        let message = serde_json::from_str(&line);
        let message = message.unwrap_or_else(|_| refuse(&format!("not JSON: {line}")));
        if is_prompt(&message) && switch("close_stdin").is_some() {
            drop(reader);
            let _ = sender.send(message);
            park();
        }
        let _ = sender.send(message);
        line.clear();
    }
}

fn receive(messages: &Receiver<Value>, until: Instant) -> Option<Value> {
    let rest = || until.saturating_duration_since(Instant::now());
    let heard = messages.recv_timeout(rest());
    if heard == Err(RecvTimeoutError::Disconnected) {
        thread::sleep(rest());
    }
    heard.ok()
}

fn is_prompt(message: &Value) -> bool {
    let method = &message["method"];
    message["type"] == "user" || method == "turn/start" || method == "session/prompt"
}

/// The value of a switch in STANDIN, empty if it has none.
pub(crate) fn switch(name: &str) -> Option<String> {
    let switches = std::env::var("STANDIN").ok()?;
    let pair = |switch| str::split_once(switch, '=').unwrap_or((switch, ""));
    let found = switches.split(',').map(pair).find(|pair| pair.0 == name);
    found.map(|pair| pair.1.to_owned())
}

pub(crate) fn apply_switches() {
    if switch("ignore_term").is_some() {
        for signal in [libc::SIGTERM, libc::SIGINT] {
            // SAFETY: ignoring a signal runs no code of ours.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
    }
    if let Some(wait) = switch("slow_start") {
        let wait = wait.parse().unwrap_or_else(|_| refuse("slow_start needs a number"));
        thread::sleep(Duration::from_millis(wait));
    }
}

fn log(text: &str) {
    let Some(path) = switch("log") else { return };
    let file = OpenOptions::new().create(true).append(true).open(&path);
    if file.and_then(|mut file| file.write_all(text.as_bytes())).is_err() {
        refuse(&format!("cannot write to {path}"));
    }
}

fn write(bytes: &[u8]) {
    let mut out = stdout().lock();
    if out.write_all(bytes).and_then(|()| out.flush()).is_err() {
        exit(1);
    }
}

fn at_end() -> ! {
    if switch("ignore_eof").is_some() {
        park();
    }
    exit(0)
}

fn park() -> ! {
    loop {
        thread::park();
    }
}

/// Ends a run that the test itself got wrong.
pub(crate) fn refuse(why: &str) -> ! {
    eprintln!("standin: {why}");
    exit(64)
}

fn die(signal: &str) -> ! {
    if signal.is_empty() {
        exit(9);
    }
    // By number, those that have the same everywhere.
    let mut signals = "- HUP INT QUIT ILL TRAP ABRT - FPE KILL - SEGV - PIPE ALRM TERM".split(' ');
    let number = signals.position(|name| name == signal.trim_start_matches("SIG"));
    let number = number.unwrap_or_else(|| refuse(&format!("unknown signal {signal}")));
    // SAFETY: the default action of each of these ends the process.
    unsafe {
        libc::signal(number as i32, libc::SIG_DFL);
        libc::raise(number as i32);
    }
    park()
}

/// A random identifier in the form of a UUID.
pub(crate) fn uuid() -> String {
    let random = RandomState::new().hash_one(0);
    let (high, low, all) = (random >> 32, random & 0xffff, random >> 16);
    format!("{high:08x}-{low:04x}-4000-8000-{all:012x}")
}

/// The object with the fields of another added or replaced.
pub(crate) fn with(mut object: Value, extra: Value) -> Value {
    if let (Value::Object(fields), Value::Object(extra)) = (&mut object, extra) {
        fields.extend(extra);
    }
    object
}
