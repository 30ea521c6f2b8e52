//! The directives at the head of a message: `[word word=value ...] rest`.

use std::time::Duration;

use serde_json::Value;

use crate::stage::refuse;

/// Every directive there is; any other word is refused, so that a test's misspelling cannot pass unseen.
const WORDS: &str = "api_error approve bytes chunks delay die error foreign foreign_uuid garbage half late \
    max_turns no_result no_uuid notify overloaded silence stderr unknown_request";

#[derive(Default)]
pub(crate) struct Script {
    words: Vec<(String, String)>,
    rest: String,
}

impl Script {
    /// Parses a message's content: a string, or an array of blocks with texts.
    pub(crate) fn parse(content: &Value) -> Script {
        let blocks = content.as_array().into_iter().flatten();
        let texts: Vec<&str> = blocks.filter_map(|block| block["text"].as_str()).collect();
        let text = content.as_str().map_or_else(|| texts.join("\n"), str::to_owned);
        let mut rest = text.trim();
        let mut script = Script::default();
        while let Some((inside, after)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            script.words.extend(inside.split_whitespace().map(word));
            rest = after.trim_start();
        }
        script.rest = rest.to_owned();
        script
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        let found = self.words.iter().find(|(word, _)| word == name);
        found.map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str) -> Option<u64> {
        let number = |value: &str| value.parse().ok();
        let wrong = || refuse(&format!("{name} needs a number"));
        self.value(name).map(|value| number(value).unwrap_or_else(wrong))
    }

    /// How long the reply is to be waited for.
    pub(crate) fn wait(&self) -> Duration {
        let [delay, late] = ["delay", "late"].map(|name| self.number(name).unwrap_or(0));
        Duration::from_millis(delay + late)
    }

    /// The reply's text; `count` is the number of this message in its conversation.
    pub(crate) fn reply(&self, count: u64, tail: &str) -> String {
        let text = match self.number("bytes") {
            Some(size) => "x".repeat(size as usize),
            None if self.rest == "history" => format!("you said: history ({count})"),
            None => format!("you said: {}", self.rest),
        };
        text + tail + if self.has("half") { " äöü€😀" } else { "" }
    }

    /// The text in as many pieces as `chunks` says, or in `usual` ones, or in one where `bytes` told its size.
    pub(crate) fn pieces(&self, text: &str, usual: u64) -> Vec<String> {
        let usual = if self.has("bytes") { 1 } else { usual };
        let wanted = self.number("chunks").unwrap_or(usual).max(1) as usize;
        if wanted == 1 {
            return vec![text.to_owned()];
        }
        let starts = text.char_indices().map(|(at, _)| at);
        let marks: Vec<usize> = starts.chain([text.len()]).collect();
        let mark = |piece: usize| marks[piece * (marks.len() - 1) / wanted];
        let piece = |at| text[mark(at)..mark(at + 1)].to_owned();
        (0..wanted).map(piece).collect()
    }
}

fn word(text: &str) -> (String, String) {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    if !WORDS.split(' ').any(|word| word == name) {
        refuse(&format!("unknown directive {name:?}"));
    }
    (name.to_owned(), value.to_owned())
}
