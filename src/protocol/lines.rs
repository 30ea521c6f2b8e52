//! Splitting output into lines, and reading those as JSON.

use serde_json::Value;

/// A line is never longer, in bytes: 10 MB on one line are heard of.
const LONGEST: usize = 64 << 20;

/// What has come of a line that is not ended yet.
#[derive(Debug, Default)]
pub(super) struct Lines {
    begun: Vec<u8>,
}

/// A line was longer than [`LONGEST`].
#[derive(Debug)]
pub(super) struct TooLong;

impl Lines {
    /// Calls `take` with each line that is ended by `bytes`, without its end.
    pub(super) fn feed(&mut self, bytes: &[u8], take: &mut dyn FnMut(&[u8])) -> Result<(), TooLong> {
        let mut rest = bytes;
        while let Some(at) = memchr::memchr(b'\n', rest) {
            let (line, after) = rest.split_at(at);
            if self.begun.is_empty() {
                take(trimmed(line));
            } else {
                self.begun.extend_from_slice(line);
                let line = std::mem::take(&mut self.begun);
                take(trimmed(&line));
            }
            rest = &after[1..];
        }
        if self.begun.len() + rest.len() > LONGEST {
            self.begun = Vec::new();
            return Err(TooLong);
        }
        self.begun.extend_from_slice(rest);
        Ok(())
    }
}

/// Reads a line of JSON. JavaScript may write half a character (`"\ud83d"`), or bytes may be cut off one: such a reply is
/// one still.
pub(super) fn read_json(line: &[u8]) -> Option<Value> {
    serde_json::from_slice(line).or_else(|_| serde_json::from_str(&mended(line))).ok()
}

/// Returns `line` with U+FFFD for what is no UTF-8 and for each surrogate that stands alone.
fn mended(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let unit = |text: &str, at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    let mut mended = String::with_capacity(text.len());
    let mut rest = &*text;
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        mended.push_str(before);
        let (length, is_alone) = match (unit(escape, 0), unit(escape, 6)) {
            (Some(0xd800..0xdc00), Some(0xdc00..0xe000)) => (12, false),
            (Some(0xd800..0xe000), _) => (6, true),
            _ => (escape.char_indices().nth(2).map_or(escape.len(), |(end, _)| end), false),
        };
        mended.push_str(if is_alone { "\u{fffd}" } else { &escape[..length] });
        rest = &escape[length..];
    }
    mended + rest
}

fn trimmed(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

impl TooLong {
    pub(super) fn why(&self) -> String {
        format!("it wrote a line longer than {} MiB", LONGEST >> 20)
    }
}
