//! A run's record file: a line for each state that was written, of which the last whole one counts.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};

use super::record::{Record, RecordError};
use crate::sys::files;

/// The file's name in a run's directory.
pub(super) const RECORD: &str = "record.jsonl";
/// It is written anew when it is longer, in bytes: a run may be renewed for weeks.
pub(super) const LONG_RECORD: u64 = 64 * 1024;

pub(super) fn to_line(record: &Record) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    Ok(line)
}

/// Adds the entry as a line; the last whole line counts. Neither a reader nor a crash meets half of an
/// entry, and it costs no new file.
pub(super) fn write_record(directory: &File, record: &Record) -> io::Result<()> {
    let mut file = files::append_file_in(directory, RECORD)?;
    if file.metadata()?.len() > LONG_RECORD {
        const NEW: &str = "record.jsonl.new";
        files::create_file_in(directory, NEW)?.write_all(&to_line(record)?)?;
        return files::rename_between(directory, OsStr::new(NEW), directory, OsStr::new(RECORD));
    }
    if let Err(error) = file.write_all(&to_line(record)?) {
        // A full disk may have taken half a line: what is written next must not continue it.
        let _ = file.write_all(b"\n");
        return Err(error);
    }
    Ok(())
}

pub(super) fn read_record(directory: &File) -> Result<Record, RecordError> {
    let broken = |error: io::Error| RecordError::Broken(error.to_string());
    let mut file = files::open_file_in(directory, RECORD).map_err(broken)?;
    // Most are read by one call, which counts when hundreds are listed.
    let mut text = vec![0; 8 * 1024];
    let length = file.read(&mut text).map_err(broken)?;
    text.truncate(length);
    if length == 8 * 1024 {
        file.read_to_end(&mut text).map_err(broken)?;
    }
    last_record(&text)
}

/// Reads the last line that is an entry. If there is none, what is wrong with the last one is told.
fn last_record(text: &[u8]) -> Result<Record, RecordError> {
    let mut wrong = None;
    for line in text.split(|byte| *byte == b'\n').rev().filter(|line| !line.is_empty()) {
        match Record::parse(line) {
            Ok(record) => return Ok(record),
            Err(error @ RecordError::Newer(_)) => return Err(error),
            Err(error) => wrong = wrong.or(Some(error)),
        }
    }
    Err(wrong.unwrap_or_else(|| RecordError::Broken("it is empty".to_owned())))
}
