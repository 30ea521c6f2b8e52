//! What is on disk: one root directory, in it `runs/` with one directory for each unfinished run
//! and `ended/` with what is left to tell of the finished ones.
//!
//! - `runs/<id>/` is made and locked under a temporary name and then renamed, so whoever sees an id
//!   sees a locked directory with a record.
//! - The lock is an exclusive flock on the directory's own descriptor, held by guard and supervisor.
//!   Held means supervised. A pid never proves life.
//! - A record says `starting` before anything is started, and goes last. Each change adds a line to its
//!   file, and the last whole line counts, so nobody sees half of one. A record of a newer version is never
//!   written to.
//! - The tree lock is a byte of `tree.locks` that the command inherits locked: held, something of the run
//!   still lives.

mod entry;
pub mod record;
pub mod root;
pub mod seen;
pub mod store;

use std::io;
use std::path::PathBuf;

use crate::run::RunId;

/// Something on disk is not as it must be.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The root cannot be trusted or used.
    #[error("the state directory {path} cannot be used: {why}", path = path.display())]
    Root {
        /// Where it is.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// An operation failed.
    #[error("cannot {what} in {path}: {source}", path = path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A live run has the name.
    #[error("the name '{name}' is taken by run {holder}")]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        holder: RunId,
    },
    /// There is no such run.
    #[error("there is no run '{}'", .0.escape_debug())]
    Unknown(String),
    /// More than one run is meant.
    #[error("'{selector}' could be any of {}", list(candidates))]
    Ambiguous {
        /// What was typed.
        selector: String,
        /// What it fits.
        candidates: Vec<String>,
    },
}

fn list(candidates: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut text = candidates.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if candidates.len() > SHOWN {
        text.push_str(&format!(" and {} more", candidates.len() - SHOWN));
    }
    text
}

/// Returns a number for `bytes` that is the same in every version of this program (FNV-1a).
fn fingerprint<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
