//! Looks for lines in the command's output, as it passes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use crate::service::{Check, Pattern};

/// More of a line is not looked at, in bytes.
const LONGEST: usize = 64 * 1024;

/// Scans one stream; its copies, for other streams, share what was found.
#[derive(Clone, Debug)]
pub(super) struct Scanner {
    shared: Arc<Shared>,
    /// The beginning of a line.
    begun: Vec<u8>,
}

#[derive(Debug)]
struct Shared {
    wanted: Vec<(Pattern, AtomicBool)>,
    news: Notify,
}

impl Scanner {
    /// Looks for what `checks` want of the output; `None` if they want nothing.
    pub(super) fn of(checks: &[Check]) -> Option<Scanner> {
        let patterns = checks.iter().filter_map(|check| match check {
            Check::Log(pattern) => Some((pattern.clone(), AtomicBool::new(false))),
            _ => None,
        });
        let wanted: Vec<_> = patterns.collect();
        let shared = Arc::new(Shared { wanted, news: Notify::new() });
        (!shared.wanted.is_empty()).then_some(Scanner { shared, begun: Vec::new() })
    }

    /// Returns whether a line like `pattern` has passed.
    pub(super) fn has_seen(&self, pattern: &Pattern) -> bool {
        self.shared.wanted.iter().any(|(wanted, seen)| wanted == pattern && seen.load(Ordering::Acquire))
    }

    /// Waits until something is found.
    pub(super) async fn news(&self) {
        self.shared.news.notified().await;
    }

    /// Takes what the stream got.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        if self.shared.wanted.iter().all(|(_, seen)| seen.load(Ordering::Acquire)) {
            self.begun = Vec::new();
            return;
        }
        // What draws a line again and again begins it anew by a carriage return.
        for piece in bytes.split_inclusive(|byte| [b'\n', b'\r'].contains(byte)) {
            let room = LONGEST.saturating_sub(self.begun.len()).min(piece.len());
            self.begun.extend(&piece[..room]);
            let whole = piece.ends_with(b"\n") || piece.ends_with(b"\r");
            // A prompt has no end, so what is there of a line counts too.
            self.look();
            if whole {
                self.begun.clear();
            }
        }
    }

    fn look(&self) {
        // Colours stand in the middle of words.
        let stripped = self.begun.contains(&b'\x1b').then(|| strip_ansi_escapes::strip(&self.begun));
        let line = String::from_utf8_lossy(stripped.as_deref().unwrap_or(&self.begun));
        let line = line.trim_end_matches(['\n', '\r']);
        for (pattern, seen) in &self.shared.wanted {
            if !seen.load(Ordering::Acquire) && pattern.is_in(line) {
                seen.store(true, Ordering::Release);
                self.shared.news.notify_one();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::parse_check;

    #[test]
    fn lines_are_found_however_they_come() {
        let table: [(&str, &[&str], bool); 9] = [
            ("ready", &["not yet\nready now\n"], true),
            ("^ready$", &["rea", "dy\n"], true),
            ("^ready$", &["ready\r\n"], true),
            ("^ready$", &["\rbuilding 1\rbuilding 2", "\rready"], true),
            ("ready in \\d+ ms", &["\u{1b}[32mready\u{1b}[0m in \u{1b}[1m12\u{1b}[22m ms\n"], true),
            ("> $", &["> "], true),
            ("ab", &["a\nb\n"], false),
            ("ready", &["READY\n"], false),
            ("", &[], false),
        ];
        for (pattern, pieces, expected) in table {
            let pattern = Pattern::parse(pattern).unwrap();
            let mut scanner = Scanner::of(&[Check::Log(pattern.clone())]).unwrap();
            pieces.iter().for_each(|piece| scanner.take(piece.as_bytes()));
            assert_eq!(scanner.has_seen(&pattern), expected, "{pieces:?}");
        }
        assert!(Scanner::of(&[parse_check("port").unwrap()]).is_none());
    }
}
