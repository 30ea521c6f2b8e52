//! What is said on a connection that talks with a session, after [`super::Request::Talk`]: frames of a kind, a length and
//! so many bytes, since replies are large and need not be text. The request itself is not answered, so the first message
//! goes with it; who is not let in is told so by a frame.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::protocol::CompleteBy;

/// A frame is never longer, in bytes.
pub const LONGEST: usize = 64 << 20;
/// A message is never longer, in bytes.
pub const LONGEST_MESSAGE: usize = LONGEST - 4096;
/// The kind and the length, little-endian.
const HEADER: usize = 5;

/// How a message is to be dealt with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// Seconds until its reply is not waited for any more; null for no end.
    pub timeout_s: Option<f64>,
    /// Whether what the program says is wanted as it comes.
    pub stream: bool,
    /// Whether it waits for its turn.
    pub wait: bool,
}

/// How a reply ended, after its text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// By what it was known that it is complete; null if the program died.
    pub complete_by: Option<CompleteBy>,
    /// From the message to here, in seconds.
    pub duration_s: f64,
    /// Bytes of the text.
    pub bytes: u64,
    /// Why the message was not dealt with as it should have been.
    pub failed: Option<String>,
    /// The status that the program gave.
    pub status: Option<i32>,
    /// What the program said of it, without the text.
    pub details: Option<Value>,
    /// What went to stderr meanwhile, at most the last 64 KiB of it.
    pub stderr: String,
    /// How the session ended in the middle of the reply.
    pub died: Option<String>,
}

/// Why a message was not dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusedFor {
    /// Another one is.
    Busy,
    /// Another one was, until its time was over.
    Timeout,
    /// It cannot be one, or there is no talking with the program any more.
    Protocol,
    /// The session has ended.
    Died,
}

/// A message was not dealt with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refusal {
    /// Why not, in a word.
    pub kind: RefusedFor,
    /// Why not.
    pub message: String,
}

/// To the session.
#[derive(Clone, Debug, PartialEq)]
pub enum ToSession {
    /// A message.
    Send(Head, String),
    /// The end of the reply is wanted.
    Interrupt,
    /// It reads the session's memory: slots may be lent.
    Mapped,
    /// The slot of this number has been read.
    Returned(u32),
}

/// From the session.
#[derive(Clone, Debug, PartialEq)]
pub enum FromSession {
    /// More of the reply's text.
    Text(Vec<u8>),
    /// It is over.
    Over(Box<Reply>),
    /// There will be none.
    Refused(Refusal),
    /// The message has come, and its reply takes a while.
    Here,
    /// With it comes the descriptor of memory that the session writes and the client may read: so many slots of so many
    /// bytes.
    Memory(u32, u32),
    /// More of the reply's text: in the slot of this number, so many bytes. The session does not touch it until it is
    /// returned.
    Lent(u32, u32),
}

fn frame(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut bytes = Vec::with_capacity(HEADER + length);
    bytes.push(kind);
    bytes.extend((length as u32).to_le_bytes());
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // Serialising plain structs into memory has no way to fail.
    serde_json::to_vec(value).unwrap_or_default()
}

impl ToSession {
    /// Returns the bytes of the frame.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            ToSession::Send(head, text) => {
                let head = json(head);
                frame(b'S', &[&(head.len() as u32).to_le_bytes(), &head, text.as_bytes()])
            }
            ToSession::Interrupt => frame(b'I', &[]),
            ToSession::Mapped => frame(b'M', &[]),
            ToSession::Returned(index) => frame(b'B', &[&index.to_le_bytes()]),
        }
    }

    fn decode(kind: u8, body: &[u8]) -> Option<ToSession> {
        match kind {
            b'S' => {
                let length = u32::from_le_bytes(body.get(..4)?.try_into().ok()?) as usize;
                let (head, text) = body[4..].split_at_checked(length)?;
                let text = String::from_utf8(text.to_vec()).ok()?;
                Some(ToSession::Send(serde_json::from_slice(head).ok()?, text))
            }
            b'I' => Some(ToSession::Interrupt),
            b'M' => Some(ToSession::Mapped),
            b'B' => Some(ToSession::Returned(u32::from_le_bytes(body.try_into().ok()?))),
            _ => None,
        }
    }
}

impl FromSession {
    /// Returns the beginning of a text frame, which `length` bytes follow.
    pub fn text_header(length: usize) -> [u8; HEADER] {
        let mut header = [b'T', 0, 0, 0, 0];
        header[1..].copy_from_slice(&(length as u32).to_le_bytes());
        header
    }

    /// Returns the bytes of the frame.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            FromSession::Text(text) => frame(b'T', &[text]),
            FromSession::Over(reply) => frame(b'O', &[&json(reply)]),
            FromSession::Refused(refusal) => frame(b'R', &[&json(refusal)]),
            FromSession::Here => frame(b'H', &[]),
            FromSession::Memory(count, size) => frame(b'M', &[&count.to_le_bytes(), &size.to_le_bytes()]),
            FromSession::Lent(index, length) => frame(b'L', &[&index.to_le_bytes(), &length.to_le_bytes()]),
        }
    }

    fn decode(kind: u8, body: Vec<u8>) -> Option<FromSession> {
        match kind {
            b'T' => Some(FromSession::Text(body)),
            b'O' => serde_json::from_slice(&body).ok().map(|reply| FromSession::Over(Box::new(reply))),
            b'R' => serde_json::from_slice(&body).ok().map(FromSession::Refused),
            b'H' => Some(FromSession::Here),
            b'M' => two(&body).map(|(count, size)| FromSession::Memory(count, size)),
            b'L' => two(&body).map(|(index, length)| FromSession::Lent(index, length)),
            _ => None,
        }
    }
}

fn two(body: &[u8]) -> Option<(u32, u32)> {
    let (one, other) = body.split_at_checked(4)?;
    Some((u32::from_le_bytes(one.try_into().ok()?), u32::from_le_bytes(other.try_into().ok()?)))
}

/// Something else than a frame has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what was received is no frame")]
pub struct NoFrame;

/// What has come of frames. A large one is received where it stays.
#[derive(Debug, Default)]
pub struct Received {
    /// What has come and is not dealt with, from `taken` on.
    bytes: Vec<u8>,
    taken: usize,
    /// The kind and the length of the frame of which `body` is the beginning.
    large: Option<(u8, usize)>,
    body: Vec<u8>,
}

/// What is shorter is copied.
const LARGE: usize = 16 * 1024;
/// As much is received at once.
const AT_ONCE: usize = 64 * 1024;

impl Received {
    /// Begins with `bytes`, which have come already.
    pub fn beginning_with(bytes: &[u8]) -> Received {
        Received { bytes: bytes.to_vec(), ..Received::default() }
    }

    /// Returns where to append what comes next, and how much of it there may be at most.
    pub fn room(&mut self) -> (&mut Vec<u8>, usize) {
        if let Some((_, length)) = self.large {
            let left = length - self.body.len();
            return (&mut self.body, left);
        }
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.reserve(AT_ONCE);
        (&mut self.bytes, AT_ONCE)
    }

    fn next(&mut self) -> Result<Option<(u8, Vec<u8>)>, NoFrame> {
        if let Some((kind, length)) = self.large {
            if self.body.len() < length {
                return Ok(None);
            }
            self.large = None;
            return Ok(Some((kind, std::mem::take(&mut self.body))));
        }
        let rest = &self.bytes[self.taken..];
        let Some(header) = rest.first_chunk::<HEADER>() else { return Ok(None) };
        let (kind, length) =
            (header[0], u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize);
        if length > LONGEST {
            return Err(NoFrame);
        }
        let rest = &rest[HEADER..];
        if rest.len() < length && length < LARGE {
            return Ok(None);
        }
        let have = rest.len().min(length);
        let mut body = Vec::with_capacity(length);
        body.extend_from_slice(&rest[..have]);
        self.taken += HEADER + have;
        if have < length {
            (self.large, self.body) = (Some((kind, length)), body);
            return Ok(None);
        }
        Ok(Some((kind, body)))
    }

    /// Takes the next frame to the session; `None` until it is all there.
    pub fn to_session(&mut self) -> Result<Option<ToSession>, NoFrame> {
        self.next()?.map(|(kind, body)| ToSession::decode(kind, &body).ok_or(NoFrame)).transpose()
    }

    /// Takes the next frame from the session; `None` until it is all there.
    pub fn from_session(&mut self) -> Result<Option<FromSession>, NoFrame> {
        self.next()?.map(|(kind, body)| FromSession::decode(kind, body).ok_or(NoFrame)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_wire_in_any_pieces() {
        let head = Head { timeout_s: Some(1.5), stream: true, wait: false };
        let long = "x".repeat(LARGE + 100);
        let sent = [
            ToSession::Send(head.clone(), "hällo\n".into()),
            ToSession::Send(head, long),
            ToSession::Interrupt,
            ToSession::Mapped,
            ToSession::Returned(7),
        ];
        let bytes: Vec<u8> = sent.iter().flat_map(ToSession::encode).collect();
        for size in [1, 2, 3, 5, 64, 1000, LARGE, LARGE + 20, bytes.len()] {
            let (mut received, mut got) = (Received::default(), Vec::new());
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (room, most) = received.room();
                let (piece, others) = rest.split_at(size.min(most).min(rest.len()));
                room.extend_from_slice(piece);
                rest = others;
                while let Some(frame) = received.to_session().unwrap() {
                    got.push(frame);
                }
            }
            assert_eq!(got, sent, "{size}");
        }
        let refusal = Refusal { kind: RefusedFor::Busy, message: "no".into() };
        let (memory, lent) = (FromSession::Memory(8, 1 << 17), FromSession::Lent(3, 5));
        for frame in [FromSession::Text(vec![0, 255]), FromSession::Refused(refusal), memory, lent] {
            let mut received = Received::beginning_with(&frame.encode());
            assert_eq!(received.from_session(), Ok(Some(frame)));
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for bytes in [
            &b"S\x04\0\0\0\xff\xff\xff\xff"[..],
            b"X\0\0\0\0",
            b"S\xff\xff\xff\xff",
            b"S\x02\0\0\0ab",
            b"B\x01\0\0\0a",
        ] {
            let mut received = Received::beginning_with(bytes);
            assert_eq!(received.to_session(), Err(NoFrame), "{bytes:?}");
        }
    }
}
