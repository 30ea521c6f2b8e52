//! The output of a run in the background, as it is kept on disk: in the format of Kubernetes' container logs (CRI),
//! a line each, `TIME stdout|stderr F|P TEXT`, where `P` means that the line goes on in the stream's next entry.
//!
//! It is bounded: when the file has half of what may be kept it becomes the older one, of which there is one.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::SystemTime;

use crate::registry::record::Timestamp;
use crate::run::RunId;
use crate::sys::files;

/// The file's name in a run's directory.
pub const LOG: &str = "output.log";
/// The older one's.
const OLDER: &str = "output.log.1";
/// What is left of them when the run has ended.
const TAIL: &str = "output.tail.log";
const NEW_TAIL: &str = "output.tail.log.new";
/// How much of that is kept, in bytes.
const KEPT: u64 = 256 * 1024;
/// The longest text of one entry; a longer line has several.
const LONGEST: usize = 16 * 1024;
/// Entries are written together up to this size, in bytes.
const BATCH: usize = 8 * 1024;

/// Returns where the log `name` of run `id` is, in the part `runs` or `ended` of the registry at `root`.
pub fn path_of(root: &Path, part: &str, id: &RunId, name: &str) -> String {
    root.join(part).join(id.as_str()).join(name).to_string_lossy().into_owned()
}

/// Returns whether there is a log in `directory`.
pub fn is_in(directory: &File) -> bool {
    [LOG, TAIL].iter().any(|name| files::open_file_in(directory, name).is_ok())
}

/// Who has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The command's stdout.
    Stdout,
    /// Its stderr.
    Stderr,
    /// We ourselves, of the log.
    Note,
}

impl Stream {
    /// Returns the word that stands in the log.
    pub fn word(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
            Stream::Note => "agent-run",
        }
    }
}

/// One entry of the log, or a line put together of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When it was written.
    pub at: SystemTime,
    /// Where.
    pub stream: Stream,
    /// The text, without its end.
    pub text: Vec<u8>,
    /// Whether the line's end has been written.
    pub whole: bool,
}

impl Line {
    fn parse(entry: &[u8]) -> Option<Line> {
        let mut parts = entry.splitn(4, |byte| *byte == b' ');
        let at = humantime::parse_rfc3339(std::str::from_utf8(parts.next()?).ok()?).ok()?;
        let word = parts.next()?;
        let known = [Stream::Stdout, Stream::Stderr, Stream::Note];
        let stream = known.into_iter().find(|stream| stream.word().as_bytes() == word)?;
        let whole = match parts.next()? {
            b"F" => true,
            b"P" => false,
            _ => return None,
        };
        Some(Line { at, stream, text: parts.next()?.to_owned(), whole })
    }

    /// Returns the text, invalid UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.text).into_owned()
    }
}

/// Writes the log.
#[derive(Debug)]
pub struct Writer {
    directory: File,
    file: File,
    size: u64,
    limit: u64,
    /// Bytes that could not be written, and why.
    lost: Option<(u64, String)>,
    /// Streams in the middle of a line.
    begun: Vec<Stream>,
}

impl Writer {
    /// Goes on with the log in `directory`, of which `limit` bytes are kept.
    pub fn open(directory: &File, limit: u64) -> io::Result<Writer> {
        let file = files::append_file_in(directory, LOG)?;
        let size = file.metadata()?.len();
        Ok(Writer { directory: directory.try_clone()?, file, size, limit, lost: None, begun: Vec::new() })
    }

    /// Ends the lines that are not ended: whoever was writing them is gone.
    pub fn end_lines(&mut self) {
        for stream in std::mem::take(&mut self.begun) {
            self.write(stream, b"\n");
        }
    }

    /// Adds what `stream` got. A full disk must not stop a server: what is lost is told when there is room again.
    pub fn write(&mut self, stream: Stream, bytes: &[u8]) {
        let now = Timestamp::now();
        self.begun.retain(|other| *other != stream);
        self.begun.extend((!bytes.ends_with(b"\n")).then_some(stream));
        let mut entries = Vec::with_capacity(bytes.len() + 64);
        if let Some((lost, why)) = &self.lost {
            // The first new line ends what was cut off.
            entries.extend(
                format!("\n{now} {} F {lost} bytes of output were lost: {why}\n", Stream::Note.word())
                    .bytes(),
            );
        }
        let mut failed = None;
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if entries.len() >= BATCH {
                failed = failed.or(self.append(&std::mem::take(&mut entries)).err());
            }
            let text = line.strip_suffix(b"\n");
            let mut pieces = text.unwrap_or(line).chunks(LONGEST).peekable();
            if pieces.peek().is_none() {
                entries.extend(format!("{now} {} F \n", stream.word()).bytes());
            }
            while let Some(piece) = pieces.next() {
                let tag = if text.is_some() && pieces.peek().is_none() { 'F' } else { 'P' };
                entries.extend(format!("{now} {} {tag} ", stream.word()).bytes());
                entries.extend(piece);
                entries.push(b'\n');
            }
        }
        match failed.map_or_else(|| self.append(&entries), Err) {
            Ok(()) => self.lost = None,
            Err(error) => {
                let before = self.lost.take().map_or(0, |(lost, _)| lost);
                self.lost = Some((before + bytes.len() as u64, error.to_string()));
            }
        }
    }

    fn append(&mut self, entries: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size + entries.len() as u64 > self.limit / 2 {
            let turned =
                files::rename_between(&self.directory, OsStr::new(LOG), &self.directory, OsStr::new(OLDER));
            // It was turned before, and then there was no room for a new one.
            turned.or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            })?;
            self.file = files::append_file_in(&self.directory, LOG)?;
            self.size = 0;
        }
        self.file.write_all(entries)?;
        self.size += entries.len() as u64;
        Ok(())
    }
}

/// Reads the log from its beginning on, through its turns from one file to the next.
#[derive(Debug)]
pub struct Reader {
    directory: File,
    /// What is read now.
    file: Option<BufReader<File>>,
    /// It is not written to any more, and is read to its end.
    is_last_look: bool,
    /// An entry of which the end has not been written yet.
    begun: Vec<u8>,
    /// The entry that was read last.
    last: Vec<u8>,
    /// Only the tail is left, and it is what is read.
    in_tail: bool,
    /// Lines of which the end has not been written yet.
    partial: [Option<Line>; 2],
}

impl Reader {
    /// Opens the log of the run in `directory`.
    pub fn open(directory: &File) -> io::Result<Reader> {
        let open = |name| files::open_file_in(directory, name).map(BufReader::new).ok();
        let file = open(TAIL).or_else(|| open(OLDER)).or_else(|| open(LOG));
        Ok(Reader {
            directory: directory.try_clone()?,
            file,
            is_last_look: false,
            begun: Vec::new(),
            last: Vec::new(),
            in_tail: false,
            partial: [None, None],
        })
    }

    /// Returns the next whole line; `None` if there is none yet.
    pub fn next_line(&mut self) -> io::Result<Option<Line>> {
        while let Some(entry) = self.next_entry()? {
            let place = match entry.stream {
                Stream::Note => return Ok(Some(entry)),
                Stream::Stdout => &mut self.partial[0],
                Stream::Stderr => &mut self.partial[1],
            };
            let line = match place.take() {
                Some(mut line) => {
                    line.text.extend(entry.text);
                    Line { whole: entry.whole, ..line }
                }
                None => entry,
            };
            if line.whole {
                return Ok(Some(line));
            }
            *place = Some(line);
        }
        Ok(None)
    }

    /// Returns what was written of lines that have no end yet.
    pub fn rest(&mut self) -> Vec<Line> {
        self.partial.iter_mut().filter_map(Option::take).collect()
    }

    /// Returns the next entry; one that cannot be read is passed over.
    fn next_entry(&mut self) -> io::Result<Option<Line>> {
        loop {
            let read = match &mut self.file {
                Some(file) => file.read_until(b'\n', &mut self.begun)?,
                None => 0,
            };
            if read == 0 {
                if self.turn()? {
                    continue;
                }
                return Ok(None);
            }
            if self.begun.last() != Some(&b'\n') {
                // Its end may be on its way, or was lost when the files were turned.
                continue;
            }
            self.begun.pop();
            self.last = std::mem::take(&mut self.begun);
            if let Some(line) = Line::parse(&self.last) {
                return Ok(Some(line));
            }
        }
    }

    /// Goes on to the file that has come after the one that is read, if there is one.
    fn turn(&mut self) -> io::Result<bool> {
        let Ok(newest) = files::open_file_in(&self.directory, LOG) else { return self.go_on_in_tail() };
        let Some(file) = &self.file else {
            self.file = Some(BufReader::new(newest));
            return Ok(true);
        };
        if files::is_same(file.get_ref(), &newest) {
            return Ok(false);
        }
        // It may have grown once more before it was turned away.
        if !std::mem::replace(&mut self.is_last_look, true) {
            return Ok(true);
        }
        self.is_last_look = false;
        self.begun.clear();
        // Whoever reads slowly may be two files behind.
        let older = files::open_file_in(&self.directory, OLDER).ok();
        let between = older.filter(|older| !files::is_same(older, file.get_ref()));
        self.file = Some(BufReader::new(between.unwrap_or(newest)));
        Ok(true)
    }

    /// The run has ended while this was read, and only the tail of its log is left: goes on there behind what was read last.
    fn go_on_in_tail(&mut self) -> io::Result<bool> {
        let Ok(mut tail) = files::open_file_in(&self.directory, TAIL) else { return Ok(false) };
        if std::mem::replace(&mut self.in_tail, true) || self.file.is_none() {
            return Ok(false);
        }
        let mut text = Vec::new();
        tail.read_to_end(&mut text)?;
        let known = [self.last.as_slice(), b"\n"].concat();
        let at = text.windows(known.len()).rposition(|window| window == known);
        // Whoever was further behind than the tail reaches misses what was before.
        tail.seek(SeekFrom::Start(at.map_or(0, |at| at + known.len()) as u64))?;
        self.begun.clear();
        self.file = Some(BufReader::new(tail));
        Ok(true)
    }
}

/// Returns the last `count` lines of the log in `directory`, as far as they can be read.
pub fn last_lines(directory: &File, count: usize) -> Vec<Line> {
    let Ok(mut reader) = Reader::open(directory) else { return Vec::new() };
    let mut lines = std::collections::VecDeque::new();
    while let Ok(Some(line)) = reader.next_line() {
        lines.push_back(line);
        if lines.len() > count {
            lines.pop_front();
        }
    }
    lines.extend(reader.rest());
    lines.drain(..lines.len().saturating_sub(count));
    lines.into()
}

/// Cuts the log of a run that has ended to its tail, which gets a name of its own: whoever reads along has that already.
/// Returns the name of what is left.
pub fn keep_tail(directory: &File) -> io::Result<&'static str> {
    let Ok(mut log) = files::open_file_in(directory, LOG) else { return Ok(LOG) };
    let length = log.metadata()?.len();
    let mut older = files::open_file_in(directory, OLDER).ok();
    let before = older.as_ref().map_or(Ok(0), |older| older.metadata().map(|seen| seen.len()))?;
    if length + before <= KEPT {
        return Ok(LOG);
    }
    let mut tail = Vec::new();
    if let Some(older) = older.as_mut().filter(|_| length < KEPT) {
        older.seek(SeekFrom::Start(before.saturating_sub(KEPT - length)))?;
        older.read_to_end(&mut tail)?;
    }
    log.seek(SeekFrom::Start(length.saturating_sub(KEPT)))?;
    log.read_to_end(&mut tail)?;
    // The first line may be half of one.
    let whole = tail.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let written =
        files::create_file_in(directory, NEW_TAIL).and_then(|mut file| file.write_all(&tail[whole..]));
    if let Err(error) = written {
        let _ = files::remove_file_in(directory, NEW_TAIL);
        return Err(error);
    }
    files::rename_between(directory, OsStr::new(NEW_TAIL), directory, OsStr::new(TAIL))?;
    files::remove_file_in(directory, OLDER)?;
    files::remove_file_in(directory, LOG)?;
    Ok(TAIL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> (tempfile::TempDir, File) {
        let place = tempfile::tempdir().unwrap();
        let directory = files::open_directory(place.path()).unwrap();
        (place, directory)
    }

    fn texts(reader: &mut Reader) -> Vec<String> {
        std::iter::from_fn(|| reader.next_line().unwrap()).map(|line| line.text()).collect()
    }

    #[test]
    fn lines_are_read_as_they_were_written() {
        let (_place, directory) = place();
        let mut writer = Writer::open(&directory, 1 << 20).unwrap();
        let mut reader = Reader::open(&directory).unwrap();
        writer.write(Stream::Stdout, b"one\ntw");
        writer.write(Stream::Stderr, b"oops\n");
        assert_eq!(texts(&mut reader), ["one", "oops"]);
        writer.write(Stream::Stdout, b"o\n\nlast");
        assert_eq!(texts(&mut reader), ["two", ""]);
        assert_eq!(reader.rest()[0].text, b"last");
        let long = vec![b'x'; 3 * LONGEST + 1];
        writer.write(Stream::Stdout, &[b"\n".as_slice(), &long, b"\n"].concat());
        assert_eq!(texts(&mut reader), [String::new(), "x".repeat(3 * LONGEST + 1)]);
        let streams: Vec<Stream> = last_lines(&directory, 9).into_iter().map(|line| line.stream).collect();
        assert_eq!(streams.iter().filter(|stream| **stream == Stream::Stderr).count(), 1);
    }

    #[test]
    fn it_is_bounded_and_nothing_is_lost_to_who_reads_along() {
        let (place, directory) = place();
        let mut writer = Writer::open(&directory, 4096).unwrap();
        let mut reader = Reader::open(&directory).unwrap();
        let mut seen = Vec::new();
        for number in 0..500 {
            writer.write(Stream::Stdout, format!("line {number}\n").as_bytes());
            if number % 7 == 0 {
                seen.extend(texts(&mut reader));
            }
        }
        seen.extend(texts(&mut reader));
        let expected: Vec<String> = (0..500).map(|number| format!("line {number}")).collect();
        assert_eq!(seen, expected);
        let kept: u64 =
            [LOG, OLDER].iter().map(|name| place.path().join(name).metadata().map_or(0, |it| it.len())).sum();
        assert!(kept <= 4096, "{kept}");
        let last = last_lines(&directory, 3);
        assert_eq!(last.iter().map(Line::text).collect::<Vec<_>>(), ["line 497", "line 498", "line 499"]);
    }

    #[test]
    fn the_tail_of_what_has_ended_is_kept() {
        let (place, directory) = place();
        assert_eq!(keep_tail(&directory).unwrap(), LOG);
        let mut writer = Writer::open(&directory, 4 * KEPT).unwrap();
        let line = [b"y".repeat(100), b"\n".to_vec()].concat();
        (0..6_000).for_each(|_| writer.write(Stream::Stdout, &line));
        writer.write(Stream::Stdout, b"the end\n");
        keep_tail(&directory).unwrap();
        let length = place.path().join(TAIL).metadata().unwrap().len();
        assert!(length <= KEPT && length > KEPT / 2, "{length}");
        assert!(!place.path().join(OLDER).exists() && !place.path().join(LOG).exists());
        let mut reader = Reader::open(&directory).unwrap();
        let lines = texts(&mut reader);
        assert_eq!(lines.last().unwrap(), "the end");
        assert_eq!(lines[0].len(), 100);
    }

    #[test]
    fn whoever_reads_along_goes_on_in_the_tail() {
        let (_place, directory) = place();
        let mut writer = Writer::open(&directory, KEPT).unwrap();
        let write = |writer: &mut Writer, from: u32, to: u32| {
            (from..to).for_each(|n| {
                writer.write(Stream::Stdout, format!("line {n} {}\n", "z".repeat(100)).as_bytes())
            });
        };
        write(&mut writer, 0, 10);
        let mut reader = Reader::open(&directory).unwrap();
        let mut seen = texts(&mut reader);
        write(&mut writer, 10, 4_000);
        writer.write(Stream::Stderr, b"half");
        writer.end_lines();
        let mut whole = Writer::open(&directory, KEPT).unwrap();
        whole.limit = 8 * KEPT;
        write(&mut whole, 4_000, 6_000);
        assert_eq!(keep_tail(&directory).unwrap(), TAIL);
        seen.extend(texts(&mut reader));
        assert!(seen.last().unwrap().starts_with("line 5999 "));
        let mut sorted = seen.clone();
        sorted.dedup();
        assert_eq!(sorted.len(), seen.len());
    }

    #[test]
    fn what_is_no_entry_is_passed_over() {
        for entry in
            ["", "x", "2026-01-01T00:00:00Z stdout F", "2026-01-01T00:00:00Z out F x", "now stdout F x"]
        {
            assert_eq!(Line::parse(entry.as_bytes()), None, "{entry}");
        }
        let line = Line::parse(b"2026-01-01T00:00:00.5Z stderr P a b  c").unwrap();
        assert_eq!((line.text().as_str(), line.whole), ("a b  c", false));
    }
}
