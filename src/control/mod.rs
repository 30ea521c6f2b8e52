//! What may be asked of a living run through its socket, and what guard and supervisor tell
//! each other.
//!
//! One request a connection: a line of JSON, answered by a line of JSON, but for `talk`, which frames follow and answer
//! (see [`frames`]). Requests and answers carry a version;
//! a supervisor refuses one that it does not know. `stop` is answered when the teardown has begun:
//! that it is over is for the run's lock to say, since a supervisor can die and its guard go on.

pub mod client;
pub mod frames;
pub mod link;

use serde::{Deserialize, Serialize};

/// The version of requests and answers.
pub const VERSION: u32 = 1;

/// A request or an answer is never longer, in bytes.
pub const LONGEST_LINE: u64 = 64 * 1024;

/// One line to a supervisor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Envelope<T> {
    /// [`VERSION`].
    pub version: u32,
    /// What is asked or answered.
    #[serde(flatten)]
    pub body: T,
}

/// What may be asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// End the run.
    Stop {
        /// Seconds between the polite signal and SIGKILL; null for the run's own grace.
        grace_s: Option<f64>,
        /// Whether somebody wants its port or its name.
        #[serde(default)]
        displaced: bool,
    },
    /// Grant the lease anew, from now on.
    Renew {
        /// Seconds; null for no lease.
        ttl_s: Option<f64>,
    },
    /// End the command and start it again, on the same port.
    Restart {
        /// As of `stop`.
        grace_s: Option<f64>,
    },
    /// Say what only the supervisor knows.
    Live,
    /// Take a session that has nothing to do: it is not given to another one until it has dealt with a message, or for half a
    /// minute.
    Take,
    /// Ask the program of a session for the end of its reply.
    Interrupt,
    /// Talk with a session: frames follow at once, and are the answer too.
    Talk,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// It is done, or has begun.
    Done,
    /// What only the supervisor knows.
    Live {
        /// Seconds since something happened, if the run has an idle time.
        idle_s: Option<f64>,
        /// Whether a session's program deals with a message.
        #[serde(default)]
        busy: bool,
        /// How many messages it has dealt with.
        #[serde(default)]
        messages: u64,
    },
    /// It is not done.
    Refused {
        /// Why not.
        message: String,
    },
}

/// Reads one line.
pub fn decode<T: for<'de> Deserialize<'de>>(line: &[u8]) -> Result<T, String> {
    let envelope: Envelope<serde_json::Value> =
        serde_json::from_slice(line).map_err(|error| format!("the message cannot be read: {error}"))?;
    if envelope.version != VERSION {
        return Err(format!("version {} is spoken here, not {}", VERSION, envelope.version));
    }
    serde_json::from_value(envelope.body).map_err(|error| format!("the message cannot be read: {error}"))
}

/// Writes one line, its end included.
pub fn encode<T: Serialize>(body: T) -> Vec<u8> {
    // Serialising plain structs into memory has no way to fail.
    let mut line = serde_json::to_vec(&Envelope { version: VERSION, body }).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire() {
        for request in [
            Request::Stop { grace_s: Some(0.5), displaced: true },
            Request::Renew { ttl_s: None },
            Request::Live,
        ] {
            assert_eq!(decode::<Request>(&encode(request.clone())), Ok(request));
        }
        let answer = Answer::Refused { message: "a \"reason\"\n".into() };
        let line = encode(answer.clone());
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(decode::<Answer>(&line), Ok(answer));
    }

    #[test]
    fn another_version_is_refused() {
        let error = decode::<Request>(br#"{"version":2,"request":"live"}"#).unwrap_err();
        assert!(error.contains("version 1"), "{error}");
        for text in ["", "{}", "nonsense", r#"{"version":1,"request":"dance"}"#] {
            assert!(decode::<Request>(text.as_bytes()).is_err(), "{text}");
        }
    }
}
