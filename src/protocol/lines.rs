//! Splitting output into lines.

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

fn trimmed(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

impl TooLong {
    pub(super) fn why(&self) -> String {
        format!("it wrote a line longer than {} MiB", LONGEST >> 20)
    }
}
