//! What every protocol has to keep to, and what each has of its own. A [`Partner`] plays the program.

use super::*;
use serde_json::json;

/// The program of one protocol. What it says is written with places that [`fill`] fills.
#[derive(Clone, Copy)]
struct Partner {
    form: &'static str,
    /// What it says before the first message, each once it was written to.
    hello: &'static [&'static str],
    /// A message with a text, and how to find that text in what was written.
    message: &'static str,
    heard: fn(&str) -> String,
    /// A reply, and what is to be told of it.
    reply: &'static str,
    told: &'static str,
    by: CompleteBy,
    /// What else it can say; without it, it cannot tell whose a line is, and everything is the reply.
    talks: Option<Talks>,
}

#[derive(Clone, Copy)]
struct Talks {
    /// Complete replies to others, notifications and requests.
    others: &'static str,
    failure: &'static str,
    /// What is written for an interrupt, and the answer to it.
    interrupt: Option<(&'static str, &'static str)>,
}

/// A program that prints plain text.
const PLAIN: Partner = Partner {
    form: "quiet:500ms",
    hello: &[],
    message: "@RAW",
    heard: |written| written.strip_suffix('\n').unwrap().to_owned(),
    reply: "@RAW",
    told: "@RAW",
    by: CompleteBy::Quiet,
    talks: None,
};

const MARKER: Partner = Partner {
    hello: &["banner\nagent-run-ready-0"],
    by: CompleteBy::Marker,
    heard: |written| written.trim_end().rsplit_once('\n').unwrap().0.to_owned(),
    reply: "@RAW@MARK\n",
    ..PLAIN
};

const PARTNERS: [Partner; 11] = [
    Partner {
        form: "claude",
        heard: |written| text_at(written, "/message/content/0/text"),
        reply: r#"{"type":"system","subtype":"init"}
{"type":"assistant","message":{"content":[{"type":"text","text":"no"}]},"parent_tool_use_id":"toolu_1"}
{"type":"stream_event","event":{"delta":{"type":"thinking_delta","thinking":"no"}},"parent_tool_use_id":null}
{"type":"stream_event","event":{"delta":{"type":"text_delta","text":@ONE}},"parent_tool_use_id":null}
{"type":"stream_event","event":{"delta":{"type":"text_delta","text":@TWO}},"parent_tool_use_id":null}
{"type":"assistant","message":{"content":[{"type":"text","text":@TEXT}]},"parent_tool_use_id":null}
{"type":"result","subtype":"success","is_error":false,"num_turns":1,"result":@TEXT,"user_message_uuid":@UUID}
"#,
        by: CompleteBy::ResultEvent,
        talks: Some(Talks {
            others: r#"{"type":"control_request","request_id":"r","request":{"subtype":"can_use_tool"}}
{"type":"result","subtype":"success","result":"no","num_turns":1,"origin":{"kind":"task-notification"}}
{"type":"result","subtype":"success","result":"no","num_turns":1,"user_message_uuid":"other"}
{"type":"result","subtype":"success","result":"no","num_turns":1,"user_message_uuids":["other"]}
{"type":"result","subtype":"success","result":"no","num_turns":0}
"#,
            failure: r#"{"type":"result","subtype":"error_during_execution","errors":["told to"]}
"#,
            interrupt: Some((
                r#"{"subtype":"interrupt"}"#,
                r#"{"type":"control_response","response":{"subtype":"success","request_id":"interrupt-1"}}
{"type":"result","subtype":"error_during_execution","terminal_reason":"aborted_streaming"}
"#,
            )),
        }),
        ..PLAIN
    },
    Partner {
        form: "codex",
        hello: &[
            r#"{"id":1,"result":{"userAgent":"codex"}}"#,
            r#"{"id":2,"result":{"thread":{"id":"mine"}}}"#,
        ],
        heard: |written| text_at(written, "/params/input/0/text"),
        reply: CODEX,
        by: CompleteBy::TurnCompleted,
        talks: Some(Talks {
            // A turn of this thread that is not ours, one of another thread, and a request with our number.
            others: r#"{"id":99,"result":{"turn":{"id":"turn-99"}}}
{"method":"item/completed","params":{"threadId":"mine","turnId":"turn-99","item":{"type":"agentMessage","text":"no"}}}
{"method":"turn/completed","params":{"threadId":"mine","turn":{"id":"turn-99","status":"completed"}}}
{"method":"item/agentMessage/delta","params":{"threadId":"other","turnId":"turn-3","itemId":"i","delta":"no"}}
{"method":"turn/completed","params":{"threadId":"other","turn":{"id":"turn-3","status":"completed"}}}
{"method":"thread/status/changed","params":{"threadId":"mine","status":{"type":"idle"}}}
{"method":"other/ask","id":3,"params":{}}
"#,
            failure: r#"{"id":@ID,"result":{"turn":{"id":"turn-@ID"}}}
{"method":"turn/completed","params":{"threadId":"mine","turn":{"id":"turn-@ID","status":"failed","error":{"message":"told to"}}}}
"#,
            interrupt: Some((
                r#""method":"turn/interrupt","params":{"threadId":"mine","turnId":"turn-3"}}"#,
                r#"{"id":4,"result":{}}
{"method":"turn/completed","params":{"threadId":"mine","turn":{"id":"turn-@ID","status":"interrupted","error":null}}}
"#,
            )),
        }),
        ..PLAIN
    },
    Partner {
        form: "acp",
        hello: &[
            r#"{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":1,"agentCapabilities":{}}}"#,
            r#"{"jsonrpc":"2.0","id":2,"result":{"sessionId":"mine"}}"#,
        ],
        heard: |written| text_at(written, "/params/prompt/0/text"),
        reply: r#"{"method":"session/update","params":{"sessionId":"mine","update":{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":@ONE}}}}
{"method":"session/update","id":null,"params":{"sessionId":"mine","update":{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":@TWO}}}}
{"id":@ID,"result":{"stopReason":"end_turn"}}
"#,
        by: CompleteBy::RpcResponse,
        talks: Some(Talks {
            others: r#"{"method":"session/update","params":{"sessionId":"other","update":{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"no"}}}}
{"method":"session/update","params":{"sessionId":"mine","update":{"sessionUpdate":"agent_thought_chunk","content":{"type":"text","text":"no"}}}}
{"id":99,"result":{"stopReason":"end_turn"}}
{"method":"fs/read_text_file","id":3,"params":{}}
"#,
            failure: "{\"id\":@ID,\"error\":{\"code\":-32603,\"message\":\"told to\"}}\n",
            interrupt: Some((
                r#"{"jsonrpc":"2.0","method":"session/cancel","params":{"sessionId":"mine"}}"#,
                "{\"id\":@ID,\"result\":{\"stopReason\":\"cancelled\"}}\n",
            )),
        }),
        ..PLAIN
    },
    Partner {
        form: "jsonrpc",
        message: r#"{"method":"say","params":[@TEXT],"id":"not this"}"#,
        heard: |written| text_at(written, "/params/0"),
        reply: "{\"jsonrpc\":\"2.0\",\"id\":@ID,\"result\":@TEXT,\"error\":null}\n",
        told: "@TEXT",
        by: CompleteBy::RpcResponse,
        talks: Some(Talks {
            others: r#"{"jsonrpc":"2.0","id":99,"result":"no"}
{"jsonrpc":"2.0","id":1,"method":"ask","params":{}}
{"jsonrpc":"2.0","id":null,"method":"note"}
"#,
            failure: "{\"jsonrpc\":\"2.0\",\"id\":@ID,\"error\":{\"code\":1,\"message\":\"told to\"}}\n",
            interrupt: None,
        }),
        ..PLAIN
    },
    Partner {
        form: "ndjson:type=result",
        message: r#"{"say":@TEXT}"#,
        heard: |written| text_at(written, "/say"),
        reply: "{\"type\":\"note\"}\n{\"type\":\"result\",\"text\":@TEXT}\n",
        told: "{\"type\":\"note\"}\n{\"type\":\"result\",\"text\":@TEXT}\n",
        by: CompleteBy::ResultEvent,
        ..PLAIN
    },
    Partner { form: "marker:{marker}", reply: "@RAW\n@MARK\n", told: "@RAW\n", ..MARKER },
    Partner {
        form: r"marker:printf '%s%d\n' {marker} $?",
        // A terminal shows what was typed.
        reply: "> printf '%s%d\\n' @MARK $?\r\n@RAW@MARK0\r\n",
        told: "> printf '%s%d\\n' @MARK $?\r\n@RAW",
        ..MARKER
    },
    Partner {
        form: "marker:{json}{nul}{quoted}{nul}{x {marker}",
        heard: |written| {
            let (text, rest) = written.split_once('\0').unwrap();
            let text: String = serde_json::from_str(text).unwrap();
            let quoted = rest.split_once('\0').unwrap().0.replace(r"'\''", "\u{1}");
            assert_eq!(quoted, format!("'{}'", text.replace('\'', "\u{1}")));
            text
        },
        ..MARKER
    },
    Partner {
        form: "oneshot",
        hello: &[],
        heard: |written| written.split('\0').nth(1).unwrap().to_owned(),
        reply: "@RAW@MARK7\n",
        by: CompleteBy::ProcessExit,
        ..MARKER
    },
    Partner {
        form: "prompt:^agent> $",
        hello: &["welcome\nagent> "],
        reply: "@RAW\n\x1b[1magent> \x1b[0m",
        told: "@RAW\n",
        by: CompleteBy::Prompt,
        ..PLAIN
    },
    PLAIN,
];

/// A turn: the answer to the request, the text in pieces and whole, and the end.
const CODEX: &str = r#"{"id":@ID,"result":{"turn":{"id":"turn-@ID","status":"inProgress"}}}
{"method":"item/agentMessage/delta","params":{"threadId":"mine","turnId":"turn-@ID","itemId":"i","delta":@ONE}}
{"method":"item/agentMessage/delta","params":{"threadId":"mine","turnId":"turn-@ID","itemId":"i","delta":@TWO}}
{"method":"item/completed","params":{"threadId":"mine","turnId":"turn-@ID","item":{"type":"agentMessage","id":"i","text":@TEXT}}}
{"method":"turn/completed","params":{"threadId":"mine","turn":{"id":"turn-@ID","status":"completed","error":null}}}
"#;

/// Whatever could be taken for the end of a reply or for a place in a template.
const NASTY: &str = "ä\"]}\n'\"\\ {marker} {text}{nul}{json}\n{\"type\":\"result\",\"result\":\"no\"}\nagent-run-0\n\
    \tthe agent> is\nagent>\n$? äöü€😀 '\\''\u{2028}";

/// Puts `text` and what is in the message that was `written` into what a partner says.
fn fill(template: &str, written: &str, text: &str) -> String {
    let message: Value = serde_json::from_str(written).unwrap_or_default();
    let (one, two) = text.split_at(text.ceil_char_boundary(text.len() / 2));
    let places = [
        ("@ID", message["id"].to_string()),
        ("@UUID", message["uuid"].to_string()),
        ("@MARK", marker(written).to_owned()),
        ("@ONE", json!(one).to_string()),
        ("@TWO", json!(two).to_string()),
        ("@TEXT", json!(text).to_string()),
        ("@RAW", text.to_owned()),
    ];
    places.iter().fold(template.to_owned(), |filled, (place, value)| filled.replace(place, value))
}

fn text_at(written: &str, pointer: &str) -> String {
    let message: Value = serde_json::from_str(written).unwrap();
    message.pointer(pointer).unwrap().as_str().unwrap().to_owned()
}

fn marker(written: &str) -> &str {
    let at = written.match_indices("agent-run-").map(|(at, _)| at);
    // The message may have the like of it.
    let mut found = at.filter_map(|at| written.get(at..at + 31));
    found.find(|it| !it.contains(char::is_whitespace)).unwrap_or_default()
}

/// A conversation with a partner.
struct Chat {
    partner: Partner,
    talk: Box<dyn Talk>,
    stream: bool,
    count: u128,
    /// What the last message had written.
    written: String,
    out: Out,
}

impl Chat {
    fn new(partner: Partner, approvals: Approvals, stream: bool) -> Chat {
        let talk = talk(&parse(partner.form).unwrap(), approvals, "/work", false);
        let mut chat = Chat { partner, talk, stream, count: 0, written: String::new(), out: Out::default() };
        chat.talk.open(&mut chat.out);
        chat
    }

    fn open(partner: Partner, stream: bool) -> Chat {
        Chat::accepting(partner, Approvals::Decline, stream)
    }

    fn accepting(partner: Partner, approvals: Approvals, stream: bool) -> Chat {
        let mut chat = Chat::new(partner, approvals, stream);
        for hello in partner.hello {
            assert!(!chat.talk.is_open(), "{}", partner.form);
            chat.take(hello);
            chat.take(if partner.by == CompleteBy::Prompt { "" } else { "\n" });
        }
        assert!(chat.talk.is_open() && chat.out.broken.is_none(), "{}: {:?}", partner.form, chat.out.broken);
        chat
    }

    fn send(&mut self, text: &str) {
        (self.out, self.count) = (Out::default(), self.count + 1);
        let message = &fill(self.partner.message, "", text);
        let message = Message { text: message, stream: self.stream, token: self.count << 70 | self.count };
        self.talk.send(message, &mut self.out).unwrap();
        self.written = self.wrote();
        assert_eq!((self.partner.heard)(&self.written), text, "{}", self.partner.form);
        assert!(self.out.done.is_none() && self.out.text.is_empty());
    }

    fn take(&mut self, bytes: impl AsRef<[u8]>) {
        self.talk.take(bytes.as_ref(), &mut self.out);
    }

    fn wrote(&mut self) -> String {
        String::from_utf8(std::mem::take(&mut self.out.write)).unwrap()
    }

    fn fill(&self, template: &str, text: &str) -> String {
        fill(template, &self.written, text)
    }

    fn reply(&self, text: &str) -> String {
        self.fill(self.partner.reply, text)
    }

    /// What is to be told of a reply with this text, if `before` came first.
    fn told(&self, before: &str, text: &str) -> String {
        let told = self.fill(self.partner.told, text);
        if self.partner.talks.is_some() { told } else { format!("{before}{told}") }
    }

    fn goes_on(&self) {
        assert!(self.out.done.is_none(), "{}: {:?}", self.partner.form, self.out);
    }

    /// Returns how the reply ended, which told `text`.
    fn ends(&mut self, text: &str, case: &str) -> Done {
        if self.partner.by == CompleteBy::Quiet {
            self.goes_on();
            assert_eq!(self.talk.pause(), Some(Duration::from_millis(500)));
            self.talk.still(&mut self.out);
        }
        let Out { text: told, done, broken, .. } = std::mem::take(&mut self.out);
        let (form, told) = (self.partner.form, String::from_utf8(told).unwrap());
        // A text of 10 MB is nothing to print.
        assert!(told == text, "{form}, {case}: {} is not {}", cut(&told), cut(text));
        assert_eq!((broken, self.talk.pause()), (None, None), "{form}, {case}");
        done.unwrap_or_else(|| panic!("{form}, {case}: the reply did not end"))
    }

    fn ends_well(&mut self, text: &str, case: &str) {
        let done = self.ends(text, case);
        assert_eq!((done.by, done.failed), (self.partner.by, None), "{}, {case}", self.partner.form);
    }
}

fn cut(text: &str) -> String {
    format!("{:?}", text.chars().take(2000).collect::<String>())
}

/// Every partner, with streaming and without.
fn each(with: impl Fn(Chat)) {
    for stream in [false, true] {
        PARTNERS.iter().for_each(|partner| with(Chat::open(*partner, stream)));
    }
}

#[test]
fn messages_in_a_row_get_the_texts_that_answer_them() {
    each(|mut chat| {
        for text in ["simple", NASTY, "", "second"] {
            chat.send(text);
            let reply = chat.reply(&format!("you said: {text}"));
            chat.take(reply);
            chat.ends_well(&chat.told("", &format!("you said: {text}")), text);
        }
    });
}

#[test]
fn how_the_bytes_come_changes_nothing() {
    each(|mut chat| {
        let text = format!("{NASTY}\n{NASTY}");
        chat.send("whole");
        chat.reply(&text).as_bytes().iter().for_each(|byte| chat.take([*byte]));
        chat.ends_well(&chat.told("", &text), "bytes");
        for at in 0.. {
            chat.send("in two");
            let reply = chat.reply(NASTY);
            let Some((one, two)) = reply.as_bytes().split_at_checked(at) else { break };
            chat.take(one);
            chat.take(two);
            chat.ends_well(&chat.told("", NASTY), "in two");
        }
    });
}

#[test]
fn ten_megabytes_on_one_line_are_a_reply() {
    each(|mut chat| {
        // Written once, as it needs no escapes: making JSON of so much takes longer than all other tests.
        let text = "0123456789".repeat(1_000_000);
        chat.send("much");
        chat.reply("#").replace('#', &text).as_bytes().chunks(1 << 12).for_each(|piece| chat.take(piece));
        let told = chat.told("", "#").replace('#', &text);
        chat.ends_well(&told, "much");
    });
}

#[test]
fn what_is_no_reply_to_the_message_completes_nothing() {
    let garbage = "no JSON\n[\"an\", \"array\"]\n\n{broken\n{}\nnull\n17\n\"id\"\nagent-run-0-0\n";
    each(|mut chat| {
        let others = chat.partner.talks.map_or("", |talks| talks.others);
        for before in [garbage.to_owned(), others.to_owned(), format!("{others}{garbage}{others}")] {
            chat.send("hello");
            chat.take(&before);
            chat.goes_on();
            let refuses = chat.wrote().contains("answers no");
            assert_eq!(
                refuses,
                chat.partner.talks.is_some() && before.contains(others),
                "{}",
                chat.partner.form
            );
            chat.take(chat.reply("mine"));
            chat.ends_well(&chat.told(&before, "mine"), &before);
            if chat.partner.talks.is_some() {
                chat.send("hello");
                let between = |line| format!("{line}\n{before}");
                chat.take(chat.reply("mine").lines().map(between).collect::<String>());
                chat.ends_well(&chat.told("", "mine"), "between");
            }
        }
    });
}

#[test]
fn a_late_reply_is_not_the_next_ones() {
    each(|mut chat| {
        chat.send("first");
        let first = chat.reply("late");
        chat.goes_on();
        // Those two cannot tell what comes after the end from what comes before it.
        let knows_end = !matches!(chat.partner.by, CompleteBy::Prompt | CompleteBy::Quiet);
        chat.take(if knows_end { first.repeat(2) } else { first.clone() });
        chat.ends_well(&chat.told("", "late"), "first");
        chat.take(&first);
        assert!(chat.out.done.is_none() && chat.out.text.is_empty(), "{}: {:?}", chat.partner.form, chat.out);
        chat.send("second");
        if chat.partner.talks.is_some() {
            // Pieces of text do not say whose they are, their end does.
            chat.take(first.lines().last().unwrap());
            chat.take("\n");
            chat.goes_on();
        }
        chat.take(chat.reply("next"));
        chat.ends_well(&chat.told("", "next"), "second");
    });
}

#[test]
fn a_message_that_fails_does_not_end_the_conversation() {
    each(|mut chat| {
        let Some(talks) = chat.partner.talks else { return };
        chat.send("fail");
        chat.take(chat.fill(talks.failure, ""));
        let (told, form) = (String::from_utf8(chat.out.text.clone()).unwrap(), chat.partner.form);
        assert_eq!(told.contains("told to"), form == "jsonrpc", "{form}: {told}");
        let failed = chat.ends(&told, "failed").failed.unwrap();
        assert!(failed.contains("told to"), "{form}: {failed}");
        chat.send("again");
        chat.take(chat.reply("well"));
        chat.ends_well(&chat.told("", "well"), "after");
    });
}

#[test]
fn an_interrupt_is_asked_for_and_its_answer_is_the_end() {
    each(|mut chat| {
        chat.send("long");
        let reply = chat.reply("never told");
        let Some((wanted, answer)) = chat.partner.talks.and_then(|talks| talks.interrupt) else {
            assert!(!chat.talk.interrupt(&mut chat.out) && chat.wrote().is_empty(), "{}", chat.partner.form);
            return;
        };
        if chat.partner.form != "acp" {
            chat.take(&reply[..=reply.find('\n').unwrap()]);
        }
        assert!(chat.talk.interrupt(&mut chat.out));
        let wrote = chat.wrote();
        assert!(wrote.contains(wanted), "{wrote} has no {wanted}");
        chat.goes_on();
        chat.take(chat.fill(answer, ""));
        let failed = chat.ends("", "interrupted").failed.unwrap();
        assert!(["aborted_streaming", "interrupted", "cancelled"].contains(&&*failed), "{failed}");
        chat.send("again");
        chat.take(chat.reply("well"));
        chat.ends_well(&chat.told("", "well"), "after");
    });
}

/// A conversation that asks this partner one thing, `hello`, of which the reply is not there yet.
fn asked(form: &str, approvals: Approvals, stream: bool) -> Chat {
    let partner = PARTNERS.iter().find(|partner| partner.form == form).unwrap();
    let mut chat = Chat::accepting(*partner, approvals, stream);
    chat.send("hello");
    chat
}

#[test]
fn half_a_character_costs_no_reply() {
    let table = [
        (&b"\\ud83d"[..], "\u{fffd}"),
        (b"\\ud83d\\u0041", "\u{fffd}A"),
        (b"\\\\ \\ude00", "\\ \u{fffd}"),
        (b"\xf0\x9f", "\u{fffd}"),
        (b"\\ud83d\\ude00\\ud83d", "😀\u{fffd}"),
    ];
    for form in ["claude", "codex", "acp", "jsonrpc", "ndjson:type=result"] {
        for (half, mended) in table {
            let mut chat = asked(form, Approvals::Decline, false);
            for part in chat.reply("#").split_inclusive('#') {
                chat.take(part.trim_end_matches('#'));
                chat.take(if part.ends_with('#') { half } else { b"" });
            }
            // Lines of JSON are told as they are.
            match form.starts_with("ndjson") {
                true => assert!(chat.out.done.is_some(), "{half:?}"),
                false => chat.ends_well(&chat.told("", mended), mended),
            }
        }
    }
}

#[test]
fn nothing_is_sent_before_it_is_open_and_a_bad_message_leaves_nothing_said() {
    for partner in PARTNERS.iter().filter(|partner| !partner.hello.is_empty()) {
        let mut chat = Chat::new(*partner, Approvals::Decline, false);
        chat.wrote();
        let sent = chat.talk.send(Message { text: "x", stream: false, token: 1 }, &mut chat.out);
        assert!(sent.is_err() && chat.wrote().is_empty(), "{}", partner.form);
    }
    let bad = [
        ("oneshot", "a\0b"),
        ("marker:{json}{nul}{quoted}{nul}{x {marker}", "a\0b"),
        ("jsonrpc", ""),
        ("jsonrpc", "two words"),
        ("jsonrpc", "[]"),
        ("jsonrpc", r#"{"method":7}"#),
        ("ndjson:type=result", "{\n}}"),
    ];
    for (form, text) in bad {
        let mut chat = asked(form, Approvals::Decline, false);
        chat.take(chat.reply("x"));
        chat.out = Out::default();
        assert!(chat.talk.send(Message { text, stream: false, token: 1 }, &mut chat.out).is_err(), "{text}");
        assert!(chat.wrote().is_empty(), "{form}: {text}");
    }
    for (form, text, written) in [
        ("jsonrpc", "ping", r#"{"id":2,"jsonrpc":"2.0","method":"ping"}"#),
        ("jsonrpc", r#""ping""#, r#"{"id":2,"jsonrpc":"2.0","method":"ping"}"#),
        ("ndjson:type=result", "{\n \"a\": 1\n}\n", r#"{"a":1}"#),
        ("ndjson:type=result", "as it is\n", "as it is"),
    ] {
        let mut chat = asked(form, Approvals::Decline, false);
        chat.talk.send(Message { text, stream: false, token: 1 }, &mut chat.out).unwrap();
        assert_eq!(chat.wrote(), format!("{written}\n"), "{form}");
    }
}

#[test]
fn a_line_that_never_ends_breaks_the_conversation() {
    let much = vec![b'x'; 1 << 20];
    for form in ["claude", "codex", "acp", "jsonrpc", "ndjson:type=result"] {
        let mut chat = asked(form, Approvals::Decline, false);
        let taken = (0..100).take_while(|_| {
            chat.take(&much);
            chat.out.broken.is_none()
        });
        assert_eq!(taken.count(), 64, "{form}");
    }
}

#[test]
fn what_a_program_says_on_its_way_is_told_in_a_stream_alone() {
    // Claude's without pieces, so that they come whole.
    let claude = r#"{"type":"assistant","message":{"content":[{"type":"text","text":"first "}]}}
{"type":"assistant","message":{"content":[{"type":"thinking","thinking":"no"},{"type":"text","text":"then"}]}}
{"type":"result","subtype":"success","result":"then","user_message_uuid":@UUID}
"#;
    let end = CODEX.lines().last().unwrap();
    let item = r#"{"method":"item/completed","params":{"threadId":"mine","item":{"type":"agentMessage","id":"j","text":"then"}}}"#;
    let codex = CODEX.replace(end, &format!("{item}\n{end}"));
    // It may have nothing but a result.
    let alone = claude.split_inclusive('\n').next_back().unwrap();
    let table =
        [("claude", claude, "first then"), ("claude", alone, "then"), ("codex", &codex, "first\nthen")];
    for (form, reply, streamed) in table {
        for (stream, told) in [(false, "then"), (true, streamed)] {
            let mut chat = asked(form, Approvals::Decline, stream);
            chat.take(chat.fill(reply, "first"));
            chat.ends_well(told, "on its way");
        }
    }
}

#[test]
fn claude_says_how_it_went_in_several_places() {
    let well = Some(None);
    let table: [(&str, Option<Option<&str>>); 19] = [
        (r#""is_error":false"#, well),
        (r#""terminal_reason":"completed","stop_reason":"end_turn""#, well),
        (r#""terminal_reason":null,"stop_reason":null,"errors":[]"#, well),
        (r#""subtype":"error_max_turns""#, Some(Some("error_max_turns"))),
        (r#""subtype":"error_max_turns","errors":["a","b"]"#, Some(Some("error_max_turns: a; b"))),
        (r#""subtype":"error_x","terminal_reason":"completed""#, Some(Some("error_x"))),
        (r#""subtype":"error_x","terminal_reason":"aborted_tools""#, Some(Some("aborted_tools"))),
        (r#""terminal_reason":"prompt_too_long""#, Some(Some("prompt_too_long"))),
        (r#""is_error":true"#, Some(Some("text"))),
        (r#""is_error":true,"result":null"#, Some(Some("error"))),
        (r#""stop_reason":"tool_use""#, Some(Some("tool_use"))),
        (r#""stop_reason":"pause_turn""#, Some(Some("pause_turn"))),
        (r#""user_message_uuids":["other",@UUID],"num_turns":0"#, well),
        (r#""user_message_uuids":[],"user_message_uuid":@UUID"#, well),
        (r#""user_message_uuids":["other"],"user_message_uuid":@UUID"#, None),
        (r#""user_message_uuid":"other","subtype":"error_x""#, None),
        (r#""origin":{"kind":"human"}"#, well),
        (r#""origin":{"kind":"task-notification"}"#, None),
        // An interrupted one may not have come to its first turn.
        (r#""num_turns":0,"subtype":"error_during_execution""#, Some(Some("error_during_execution"))),
    ];
    for (fields, wanted) in table {
        let mut chat = asked("claude", Approvals::Decline, false);
        // Of two fields with one name the last counts.
        let base = r#""type":"result","subtype":"success","num_turns":1,"result":"text""#;
        chat.take(chat.fill(&format!("{{{base},{fields}}}\n"), ""));
        let done = chat.out.done.as_ref();
        assert_eq!(done.map(|done| done.failed.as_deref()), wanted, "{fields}");
        let details = done.and_then(|done| done.details.as_ref());
        assert!(details.is_none_or(|it| it["type"] == "result" && it.get("result").is_none()), "{details:?}");
    }
}

/// What is answered to a request with these parameters.
fn answered(chat: &mut Chat, method: &str, params: &Value) -> Value {
    chat.wrote();
    chat.take(format!("{}\n", json!({ "id": "q", "method": method, "params": params })));
    let answer: Value = serde_json::from_str(&chat.wrote()).unwrap();
    assert_eq!(answer["id"], "q");
    answer.get("result").unwrap_or(&answer["error"]["code"]).clone()
}

#[test]
fn codex_is_allowed_what_the_policy_allows() {
    let network = json!({ "network": { "enabled": true } });
    let table = [
        ("item/commandExecution/requestApproval", r#"{"decision":"accept"}"#, r#"{"decision":"decline"}"#),
        ("item/fileChange/requestApproval", r#"{"decision":"accept"}"#, r#"{"decision":"decline"}"#),
        ("execCommandApproval", r#"{"decision":"approved"}"#, r#"{"decision":"denied"}"#),
        ("applyPatchApproval", r#"{"decision":"approved"}"#, r#"{"decision":"denied"}"#),
        (
            "item/permissions/requestApproval",
            r#"{"permissions":{"network":{"enabled":true}},"scope":"turn"}"#,
            r#"{"permissions":{},"scope":"turn"}"#,
        ),
        ("item/tool/requestUserInput", r#"{"answers":{}}"#, r#"{"answers":{}}"#),
        ("item/tool/call", "-32601", "-32601"),
    ];
    for (method, accepted, declined) in table {
        for (approvals, wanted) in [(Approvals::Accept, accepted), (Approvals::Decline, declined)] {
            let mut chat = asked("codex", approvals, false);
            let answer = answered(&mut chat, method, &json!({ "permissions": network }));
            assert_eq!(answer.to_string(), wanted, "{method}");
            chat.goes_on();
        }
    }
}

#[test]
fn an_overloaded_codex_is_asked_again_a_few_times() {
    let overloaded = |chat: &mut Chat| {
        chat.take(chat.fill("{\"id\":@ID,\"error\":{\"code\":-32001,\"message\":\"overloaded\"}}\n", ""));
    };
    for patience in [1, 4] {
        let mut chat = asked("codex", Approvals::Decline, false);
        for pause in [200, 400, 800, 1600].into_iter().take(patience) {
            assert_eq!(chat.talk.pause(), None);
            chat.talk.still(&mut chat.out);
            assert_eq!(chat.wrote(), "");
            overloaded(&mut chat);
            assert_eq!(chat.talk.pause(), Some(Duration::from_millis(pause)));
            chat.goes_on();
            chat.talk.still(&mut chat.out);
            let (before, written) = (chat.fill("@ID", ""), chat.wrote());
            chat.written = written;
            assert_eq!(text_at(&chat.written, "/params/input/0/text"), "hello");
            assert_ne!(before, chat.fill("@ID", ""));
        }
        if patience == 1 {
            chat.take(chat.reply("at last"));
            chat.ends_well("at last", "again");
        } else {
            overloaded(&mut chat);
            assert_eq!(chat.ends("", "overloaded").failed.unwrap(), "overloaded (-32001)");
        }
    }
}

#[test]
fn codex_may_tell_of_a_turn_before_it_has_answered() {
    for stream in [false, true] {
        let mut chat = asked("codex", Approvals::Decline, stream);
        assert!(chat.talk.interrupt(&mut chat.out));
        assert_eq!(chat.wrote(), "", "it is not known yet what to interrupt");
        let turn = chat.reply("early");
        let (answer, events) = turn.split_at(turn.find('\n').unwrap() + 1);
        let others = chat.partner.talks.unwrap().others;
        chat.take(format!("{others}{events}{others}"));
        chat.goes_on();
        chat.wrote();
        chat.take(answer);
        assert_eq!(chat.wrote(), "", "it is over");
        chat.ends_well("early", "early");

        chat.send("second");
        chat.talk.interrupt(&mut chat.out);
        chat.take(chat.reply("").lines().next().unwrap().to_owned() + "\n");
        assert!(chat.wrote().contains(r#""turn/interrupt","params":{"threadId":"mine","turnId":"turn-4"}"#));
        chat.take(
            chat.fill(CODEX, "").lines().last().unwrap().replace("completed\",\"error", "failed\",\"error"),
        );
        chat.take("\n");
        assert_eq!(chat.ends("", "failed").failed.unwrap(), "failed");

        chat.send("third");
        chat.take(chat.fill("{\"id\":@ID,\"result\":{\"turn\":{}}}\n", ""));
        assert!(chat.ends("", "no number").failed.is_some());
    }
}

#[test]
fn acp_permissions_are_chosen_by_kind() {
    let option = |kind: &str| json!({ "optionId": format!("id-{kind}"), "name": "x", "kind": kind });
    let table: [(&[&str], Approvals, Option<&str>); 6] = [
        (&["reject_once", "allow_always", "allow_once"], Approvals::Accept, Some("id-allow_once")),
        (&["reject_once", "allow_always"], Approvals::Accept, Some("id-allow_always")),
        (&["allow_once", "reject_always", "reject_once"], Approvals::Decline, Some("id-reject_once")),
        (&["allow_once", "reject_always"], Approvals::Decline, Some("id-reject_always")),
        (&["allow_once"], Approvals::Decline, None),
        (&[], Approvals::Accept, None),
    ];
    for (kinds, approvals, wanted) in table {
        let mut chat = asked("acp", approvals, false);
        let options: Vec<Value> = kinds.iter().map(|kind| option(kind)).collect();
        let params = json!({ "sessionId": "mine", "toolCall": {}, "options": options });
        let cancelled = json!({ "outcome": { "outcome": "cancelled" } });
        let wanted = wanted.map(|id| json!({ "outcome": { "outcome": "selected", "optionId": id } }));
        let wanted = wanted.unwrap_or(cancelled.clone());
        let ask = |chat: &mut Chat| answered(chat, "session/request_permission", &params);
        assert_eq!(ask(&mut chat), wanted, "{kinds:?}");
        assert!(chat.talk.interrupt(&mut chat.out));
        assert_eq!(ask(&mut chat), cancelled, "after session/cancel");
        chat.take(chat.reply(""));
        chat.send("next");
        assert_eq!(ask(&mut chat), wanted, "the next one is not cancelled");
    }
}

#[test]
fn there_is_no_talking_with_who_does_not_open() {
    let auth = r#"{"id":2,"error":{"code":-32000,"message":"Authentication required"}}"#;
    let v1 = r#"{"id":1,"result":{"protocolVersion":1}}"#;
    let table: [(&str, &[&str], &str); 8] = [
        ("acp", &[r#"{"id":1,"result":{"protocolVersion":2}}"#], "version 2"),
        ("acp", &[r#"{"id":1,"result":{}}"#], "version null"),
        ("acp", &[r#"{"id":1,"error":{"code":1,"message":"no"}}"#], "no (1)"),
        ("acp", &[v1, auth], "Authentication required (-32000)"),
        ("acp", &[v1, r#"{"id":2,"result":{}}"#], "no session"),
        ("codex", &[r#"{"id":1,"error":"odd"}"#], "odd"),
        ("codex", &[r#"{"id":1,"result":{}}"#, auth], "Authentication required (-32000)"),
        ("codex", &[r#"{"id":1,"result":{}}"#, r#"{"id":2,"result":{"thread":7}}"#], "no thread"),
    ];
    for (form, answers, why) in table {
        let partner = PARTNERS.iter().find(|partner| partner.form == form).unwrap();
        let mut chat = Chat::new(*partner, Approvals::Decline, false);
        for answer in answers {
            assert_eq!(chat.out.broken, None, "{form}: {answers:?}");
            chat.take(format!("{answer}\n"));
        }
        let broken = chat.out.broken.as_deref().unwrap();
        assert!(broken.contains(why) && !chat.talk.is_open(), "{form}: {broken}");
    }
}

#[test]
fn a_status_may_follow_the_marker_and_nothing_else() {
    let table: [(&str, Option<Option<i32>>); 16] = [
        ("\n", Some(None)),
        ("\r\n", Some(None)),
        ("0\n", Some(Some(0))),
        ("130\r\n", Some(Some(130))),
        (" 1\n", Some(Some(1))),
        ("-1\n", Some(Some(-1))),
        ("-2147483648\r\n", Some(Some(i32::MIN))),
        (" $?\r\n", None),
        ("\"; echo\n", None),
        ("0x\n", None),
        ("99999999999\n", None),
        ("\u{e4}\n", None),
        ("              \n", None),
        ("", None),
        ("130", None),
        ("-", None),
    ];
    for (after, wanted) in table {
        for size in [1, 100] {
            let mut chat = asked("marker:{marker}", Approvals::Decline, false);
            let mark = marker(&chat.written).to_owned();
            format!("text{mark}{after}").as_bytes().chunks(size).for_each(|piece| chat.take(piece));
            assert_eq!(chat.out.done.as_ref().map(|done| done.status), wanted, "{after:?}");
            if wanted.is_none() {
                // It was an echo: the end is still to come.
                chat.take(format!(" and\n{mark}5\n"));
                assert_eq!(chat.ends(&format!("text{mark}{after} and\n"), after).status, Some(5));
            }
        }
    }
}

#[test]
fn a_protocol_is_written_as_it_is_read() {
    let good = "claude codex acp jsonrpc oneshot ndjson:type=result ndjson:a.b=c=d ndjson:done=true quiet:500ms \
        quiet:100us quiet:1s250ms marker:{marker} marker:{x}{{marker}}{text} prompt:^[>:]+$ prompt:(>|:)";
    for text in good.split(' ') {
        let protocol = parse(text).unwrap();
        assert_eq!(parse(&protocol.to_string()), Ok(protocol.clone()), "{text}");
        assert_eq!(protocol.to_string().replace(' ', ""), text);
    }
    assert_eq!(parse("quiet:1.5").unwrap().to_string(), "quiet:1s 500ms");
    let bad = [
        ("", "is no protocol"),
        ("telnet", "is no protocol"),
        ("Claude", "is no protocol"),
        ("claude:", "is no protocol"),
        ("marker", "is no protocol"),
        ("prompt:", "is no protocol"),
        ("prompt:(", "bad pattern"),
        ("marker:echo", "{marker} once"),
        ("marker:{marker} {marker}", "{marker} once"),
        ("quiet:0s", "before it begins"),
        ("quiet:0", "before it begins"),
        ("quiet:", "bad duration"),
        ("quiet:-1s", "bad duration"),
        ("quiet:1parsec", "bad duration"),
        ("ndjson:type", "no field and value"),
        ("ndjson:=x", "no field and value"),
        ("ndjson:x=", "no field and value"),
        ("\u{1b}[2J", "'\\u{1b}[2J' is no protocol"),
    ];
    for (text, why) in bad {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(why), "{text:?}: {error}");
    }
}
