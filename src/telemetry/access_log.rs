//! The access log: one line per response, written by a thread of its own.
//!
//! worker -> its ring (bounded, no wake-up, no lock) -> writer thread, ten times a second -> file
//!
//! A full ring drops the line and counts it: a slow log disk never slows a viewer. So are lines counted that the disk refuses.

use std::{
    borrow::Cow,
    fs::File,
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use crossbeam_queue::ArrayQueue;
use parking_lot::Mutex;

use super::{AccessConfig, AccessFormat};

/// How often the writer looks into the rings.
const ROUND: Duration = Duration::from_millis(100);
/// Text gathered for one write, give or take a line.
const BATCH_BYTES: usize = 256 << 10;
/// The log names people by their addresses: for its owner and group only.
const FILE_MODE: u32 = 0o640;

/// What is logged of one response.
#[derive(Clone, Debug)]
pub struct Record {
    /// When it ended.
    pub unix_millis: u64,
    /// Who asked.
    pub client: SocketAddr,
    /// What the request said.
    pub words: Words,
    /// In which protocol.
    pub protocol: &'static str,
    /// With what result.
    pub status: u16,
    /// Bytes of the body handed out.
    pub bytes: u64,
    /// From the request's head to the end of the body, in microseconds.
    pub duration_us: u64,
    /// From the request's head to the response's, in microseconds.
    pub first_byte_us: u64,
    /// What the cache did.
    pub outcome: &'static str,
    /// Why it was not allowed.
    pub denied: Option<&'static str>,
    /// Number of the request, unique while the process runs.
    pub request_id: u64,
}

/// Longest method, target, range, user agent or referer in the log, in bytes.
const WORD_MAX: usize = 512;

/// What is logged of a request's own words, as it was sent, each cut to [`WORD_MAX`] bytes. In one allocation: a worker makes
/// one for every request.
#[derive(Clone, Debug)]
pub struct Words {
    text: Vec<u8>,
    /// Where each word ends; `None` for what was not said.
    ends: [Option<u16>; 5],
}

impl Words {
    /// Takes down method and target, `Range`, `User-Agent` and `Referer`.
    pub fn new((method, target): (&str, &str), fields: [Option<&[u8]>; 3]) -> Self {
        let words = [Some(method.as_bytes()), Some(target.as_bytes()), fields[0], fields[1], fields[2]];
        let mut text =
            Vec::with_capacity(words.iter().flatten().map(|word| word.len()).sum::<usize>().min(5 * WORD_MAX));
        let mut ends = [None; 5];
        for (end, word) in ends.iter_mut().zip(words) {
            if let Some(word) = word {
                text.extend_from_slice(cut(word));
                *end = u16::try_from(text.len()).ok();
            }
        }
        Self { text, ends }
    }

    fn word(&self, at: usize) -> Option<&[u8]> {
        let end = usize::from(self.ends[at]?);
        let start = self.ends[..at].iter().rev().find_map(|end| *end).map_or(0, usize::from);
        Some(&self.text[start..end])
    }

    fn text(&self, at: usize) -> Option<Cow<'_, str>> {
        self.word(at).map(String::from_utf8_lossy)
    }
}

/// One worker's lines on their way to the writer.
#[derive(Debug)]
pub struct Ring {
    lines: ArrayQueue<Record>,
    dropped: AtomicU64,
}

impl Ring {
    /// Hands a line over; never waits.
    pub fn push(&self, record: Record) {
        if self.lines.push(record).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The access log, or that there is none.
#[derive(Debug)]
pub struct AccessLog {
    shared: Option<Arc<Shared>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    rings: Vec<Arc<Ring>>,
    path: PathBuf,
    format: AccessFormat,
    reopen: AtomicBool,
    stop: AtomicBool,
    /// Lines that could not be written.
    lost: AtomicU64,
}

/// The file, and how writing to it went so far.
struct Output {
    file: File,
    /// Whether the last write failed; said once, not ten times a second.
    failing: bool,
    /// Whether the last write ended within a line.
    torn: bool,
}

impl AccessLog {
    /// Opens the file and starts its writer.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn start(config: &AccessConfig, workers: usize) -> io::Result<Self> {
        let Some(path) = &config.path else { return Ok(Self { shared: None, writer: Mutex::new(None) }) };
        let file = open(path)?;
        let ring = || Arc::new(Ring { lines: ArrayQueue::new(config.queue_max.max(1)), dropped: AtomicU64::new(0) });
        let shared = Arc::new(Shared {
            rings: (0..workers).map(|_| ring()).collect(),
            path: path.clone(),
            format: config.format,
            reopen: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            lost: AtomicU64::new(0),
        });
        let writer = std::thread::Builder::new().name("oca-access-log".into()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.write(file)
        })?;
        Ok(Self { shared: Some(shared), writer: Mutex::new(Some(writer)) })
    }

    /// The ring of one worker; `None` where there is no access log.
    pub fn ring(&self, worker: usize) -> Option<Arc<Ring>> {
        self.shared.as_ref()?.rings.get(worker).cloned()
    }

    /// Lines that did not get into the file so far: the writer was behind, or the file could not be written.
    pub fn dropped(&self) -> u64 {
        let Some(shared) = &self.shared else { return 0 };
        let dropped = shared.rings.iter().map(|ring| ring.dropped.load(Ordering::Relaxed)).sum::<u64>();
        dropped + shared.lost.load(Ordering::Relaxed)
    }

    /// Opens the file anew, after somebody has moved it away.
    pub fn reopen(&self) {
        if let Some(shared) = &self.shared {
            shared.reopen.store(true, Ordering::Release);
        }
    }

    /// Writes what is waiting and ends. Blocks.
    pub fn close(&self) {
        if let Some(shared) = &self.shared {
            shared.stop.store(true, Ordering::Release);
        }
        if let Some(writer) = self.writer.lock().take() {
            writer.thread().unpark();
            if writer.join().is_err() {
                tracing::error!("the access log's writer panicked");
            }
        }
    }
}

impl Drop for AccessLog {
    /// An appliance that does not come up leaves no thread behind.
    fn drop(&mut self) {
        self.close();
    }
}

/// At most [`WORD_MAX`] bytes; no character of UTF-8 is cut in two.
fn cut(word: &[u8]) -> &[u8] {
    if word.len() <= WORD_MAX {
        return word;
    }
    let is_within = |at: usize| word.get(at).is_some_and(|byte| byte & 0xc0 == 0x80);
    let end = (WORD_MAX - 3..=WORD_MAX).rev().find(|at| !is_within(*at)).unwrap_or(WORD_MAX);
    &word[..end]
}

fn open(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).mode(FILE_MODE).open(path)
}

impl Shared {
    fn write(&self, file: File) {
        let mut output = Output { file, failing: false, torn: false };
        let mut text = Vec::new();
        loop {
            let stopping = self.stop.load(Ordering::Acquire);
            if self.reopen.swap(false, Ordering::AcqRel) {
                match open(&self.path) {
                    Ok(file) => output = Output { file, failing: false, torn: false },
                    Err(err) => {
                        tracing::error!(error = %err, "access log cannot be reopened; the old file is written on");
                    }
                }
            }
            for ring in &self.rings {
                // One ring's length at the most: a worker that logs faster than this writes cannot hold it here.
                for _ in 0..ring.lines.capacity() {
                    let Some(record) = ring.lines.pop() else { break };
                    write_line(&mut text, &record, self.format);
                    if text.len() >= BATCH_BYTES {
                        self.put_out(&mut output, &mut text);
                    }
                }
            }
            self.put_out(&mut output, &mut text);
            if stopping {
                return;
            }
            std::thread::park_timeout(ROUND);
        }
    }

    /// Writes `text`, whole lines, and empties it; what cannot be written is lost and counted.
    fn put_out(&self, output: &mut Output, text: &mut Vec<u8>) {
        let (unwritten, result) = output.write(text);
        if let Err(err) = &result {
            // What remains ends with a line's end, so each of its line ends is a line that was not written whole.
            let lost = unwritten.iter().filter(|byte| **byte == b'\n').count() as u64;
            self.lost.fetch_add(lost, Ordering::Relaxed);
            if !output.failing {
                tracing::error!(error = %err, "access log cannot be written; lines are lost until it can");
            }
        }
        output.failing = result.is_err();
        text.clear();
    }
}

impl Output {
    /// Writes as much as the file takes; gives back what it did not.
    fn write<'t>(&mut self, text: &'t [u8]) -> (&'t [u8], io::Result<()>) {
        if text.is_empty() {
            return (text, Ok(()));
        }
        if self.torn {
            // The rest of a torn line is gone; the next one begins on a line of its own.
            if let Err(err) = self.file.write_all(b"\n") {
                return (text, Err(err));
            }
            self.torn = false;
        }
        let mut rest = text;
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => return (rest, Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    self.torn = rest[count - 1] != b'\n';
                    rest = &rest[count..];
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return (rest, Err(err)),
            }
        }
        (rest, Ok(()))
    }
}

fn write_line(text: &mut Vec<u8>, record: &Record, format: AccessFormat) {
    let written = match format {
        AccessFormat::Json => write_json(text, record),
        AccessFormat::Combined => write_combined(text, record),
    };
    debug_assert!(written.is_ok(), "writing to memory cannot fail");
    text.push(b'\n');
}

/// By hand: a serializer that knows no names takes three times as long, and this is done for every response.
fn write_json(text: &mut Vec<u8>, record: &Record) -> io::Result<()> {
    let words = &record.words;
    text.extend_from_slice(b"{");
    number(text, "time_ms", record.unix_millis);
    write!(text, "\"client\":\"{}\",", record.client.ip())?;
    string(text, "method", words.word(0))?;
    string(text, "target", words.word(1))?;
    string(text, "protocol", Some(record.protocol.as_bytes()))?;
    number(text, "status", record.status.into());
    number(text, "bytes", record.bytes);
    number(text, "duration_us", record.duration_us);
    number(text, "first_byte_us", record.first_byte_us);
    string(text, "cache", Some(record.outcome.as_bytes()))?;
    string(text, "denied", record.denied.map(str::as_bytes))?;
    string(text, "range", words.word(2))?;
    string(text, "user_agent", words.word(3))?;
    string(text, "referer", words.word(4))?;
    text.extend_from_slice(b"\"request_id\":\"");
    text.extend_from_slice(&hexadecimal(record.request_id));
    text.extend_from_slice(b"\"}");
    Ok(())
}

fn number(text: &mut Vec<u8>, name: &str, value: u64) {
    label(text, name);
    text.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    text.push(b',');
}

/// Nothing, where there is none.
fn string(text: &mut Vec<u8>, name: &str, value: Option<&[u8]>) -> io::Result<()> {
    let Some(value) = value else { return Ok(()) };
    label(text, name);
    if value.iter().all(|byte| (0x20..0x7f).contains(byte) && !matches!(byte, b'"' | b'\\')) {
        text.push(b'"');
        text.extend_from_slice(value);
        text.push(b'"');
    } else {
        quote(text, &String::from_utf8_lossy(value));
    }
    text.push(b',');
    Ok(())
}

/// A string of JSON in printable ASCII: who looks at the log in a terminal sees neither escapes of one byte (C1) nor text that runs
/// backwards, which JSON would let through.
fn quote(text: &mut Vec<u8>, value: &str) {
    text.push(b'"');
    for unit in value.encode_utf16() {
        match u8::try_from(unit) {
            Ok(byte @ (b'"' | b'\\')) => text.extend_from_slice(&[b'\\', byte]),
            Ok(byte @ 0x20..0x7f) => text.push(byte),
            _ => text.extend_from_slice(format!("\\u{unit:04x}").as_bytes()),
        }
    }
    text.push(b'"');
}

fn label(text: &mut Vec<u8>, name: &str) {
    text.push(b'"');
    text.extend_from_slice(name.as_bytes());
    text.extend_from_slice(b"\":");
}

/// A request's number as it stands in the log.
pub fn hexadecimal(number: u64) -> [u8; 16] {
    let bytes = number.to_be_bytes();
    std::array::from_fn(|at| {
        let two = bytes[at / 2];
        b"0123456789abcdef"[usize::from(if at % 2 == 0 { two >> 4 } else { two & 0xf })]
    })
}

fn write_combined(text: &mut Vec<u8>, record: &Record) -> io::Result<()> {
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(record.unix_millis);
    // "Sun, 06 Nov 1994 08:49:37 GMT" holds what the combined format wants in another order; always UTC.
    let date = httpdate::fmt_http_date(time);
    let time = match (date.get(5..7), date.get(8..11), date.get(12..16), date.get(17..25)) {
        (Some(day), Some(month), Some(year), Some(clock)) => format!("{day}/{month}/{year}:{clock} +0000"),
        _ => "-".into(),
    };
    let words = &record.words;
    let (method, target) = (words.text(0).unwrap_or_default(), words.text(1).unwrap_or_default());
    let request = format!("{method} {target} {}", record.protocol);
    let or_dash = |field: Option<Cow<'_, str>>| escaped(field.as_deref().unwrap_or("-"));
    write!(
        text,
        "{} - - [{time}] \"{}\" {} {} \"{}\" \"{}\"",
        record.client.ip(),
        escaped(&request),
        record.status,
        record.bytes,
        or_dash(words.text(4)),
        or_dash(words.text(3)),
    )
}

/// Quotes, backslashes and everything that is not printable ASCII as `\xHH`: nobody can end the field or forge a line.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' | 0..=0x1f | 0x7f.. => out.push_str(&format!("\\x{byte:02X}")),
            _ => out.push(char::from(byte)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(target: &str) -> Record {
        Record {
            unix_millis: 784_111_777_000,
            client: SocketAddr::from(([192, 0, 2, 1], 5)),
            words: Words::new(("GET", target), [Some(b"bytes=0-4"), Some(b"player\"\n{}"), None]),
            protocol: "HTTP/1.1",
            status: 206,
            bytes: 5,
            duration_us: 7,
            first_byte_us: 6,
            outcome: "hit",
            denied: None,
            request_id: 0x1f,
        }
    }

    fn logged(format: AccessFormat, records: Vec<Record>) -> String {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("access.log");
        let config = AccessConfig { path: Some(path.clone()), format, queue_max: 4 };
        let log = AccessLog::start(&config, 1).expect("started");
        let ring = log.ring(0).expect("a ring");
        records.into_iter().for_each(|record| ring.push(record));
        log.close();
        std::fs::read_to_string(path).expect("written")
    }

    #[test]
    fn a_client_cannot_forge_a_line() {
        let json = logged(AccessFormat::Json, vec![record("/a\"}\n{\"x")]);
        assert_eq!(json.lines().count(), 1);
        let value: serde_json::Value = serde_json::from_str(&json).expect("one object");
        assert_eq!((&value["target"], &value["user_agent"]), (&"/a\"}\n{\"x".into(), &"player\"\n{}".into()));
        let combined = logged(AccessFormat::Combined, vec![record("/a\" 200\n")]);
        assert_eq!(
            combined,
            "192.0.2.1 - - [06/Nov/1994:08:49:37 +0000] \"GET /a\\x22 200\\x0A HTTP/1.1\" 206 5 \"-\" \"player\\x22\\x0A{}\"\n"
        );
    }

    #[test]
    fn words_are_kept_apart_and_cut() {
        let long = "x".repeat(WORD_MAX + 1);
        let words = Words::new(("GET", &long), [None, Some(b"a\xff"), Some(b"")]);
        assert_eq!((words.word(0), words.word(1).map(<[u8]>::len)), (Some(&b"GET"[..]), Some(WORD_MAX)));
        assert_eq!((words.text(2), words.text(3), words.text(4)), (None, Some("a\u{fffd}".into()), Some("".into())));
        let split = format!("{}\u{20ac}", "x".repeat(WORD_MAX - 2));
        assert_eq!(Words::new(("GET", &split), [None; 3]).text(1), Some("x".repeat(WORD_MAX - 2).into()));
        assert_eq!(hexadecimal(0x1f), *b"000000000000001f");
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        let ring = Ring { lines: ArrayQueue::new(2), dropped: AtomicU64::new(0) };
        (0..5).for_each(|_| ring.push(record("/a")));
        assert_eq!((ring.lines.len(), ring.dropped.load(Ordering::Relaxed)), (2, 3));
    }

    #[test]
    fn a_moved_file_is_opened_anew() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (path, moved) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let config = AccessConfig { path: Some(path.clone()), format: AccessFormat::Json, queue_max: 4 };
        let log = AccessLog::start(&config, 1).expect("started");
        std::fs::rename(&path, &moved).expect("moved");
        log.reopen();
        log.ring(0).expect("a ring").push(record("/after"));
        log.close();
        assert!(std::fs::read_to_string(path).expect("written").contains("/after"));
        assert_eq!(std::fs::read_to_string(moved).expect("kept"), "");
    }

    #[test]
    fn a_log_that_was_asked_for_and_cannot_be_opened_is_said_at_once() {
        let dir = tempfile::tempdir().expect("tempdir");
        let config = AccessConfig {
            path: Some(dir.path().join("no-such-folder/access.log")),
            format: AccessFormat::Json,
            queue_max: 4,
        };
        assert_eq!(AccessLog::start(&config, 1).expect_err("no folder").kind(), io::ErrorKind::NotFound);
        let config = AccessConfig { path: None, ..config };
        let log = AccessLog::start(&config, 1).expect("nothing to open");
        assert!(log.ring(0).is_none());
        assert_eq!(log.dropped(), 0);
    }

    #[test]
    fn lines_that_the_disk_refuses_are_counted() {
        // Every write to it fails with ENOSPC.
        let config = AccessConfig { path: Some("/dev/full".into()), format: AccessFormat::Json, queue_max: 8 };
        let log = AccessLog::start(&config, 2).expect("started");
        for worker in [0, 1, 1] {
            log.ring(worker).expect("a ring").push(record("/a"));
        }
        log.close();
        assert_eq!(log.dropped(), 3);
    }

    #[test]
    fn a_torn_line_spoils_no_other() {
        let (reader, writer) = io::pipe().expect("a pipe");
        let size = rustix::pipe::fcntl_setpipe_size(&writer, 4096).expect("a small pipe");
        rustix::io::ioctl_fionbio(&writer, true).expect("writes do not wait");
        let mut output = Output { file: File::from(std::os::fd::OwnedFd::from(writer)), failing: false, torn: false };
        let line = "x".repeat(size - 50) + "\n";
        let text = [line.as_str(), line.as_str(), "last\n"].concat();
        let (unwritten, result) = output.write(text.as_bytes());
        assert_eq!(result.expect_err("the pipe is full").kind(), io::ErrorKind::WouldBlock);
        assert!(output.torn, "the second line began");
        assert_eq!(unwritten.iter().filter(|byte| **byte == b'\n').count(), 2, "it and the third are lost");

        let mut first = vec![0; size];
        let mut reader = io::BufReader::new(reader);
        io::Read::read_exact(&mut reader, &mut first).expect("what fitted");
        assert!(output.write(b"next\n").1.is_ok());
        drop(output);
        let mut rest = String::new();
        io::Read::read_to_string(&mut reader, &mut rest).expect("text");
        assert_eq!(rest, "\nnext\n");
    }

    #[test]
    fn every_line_is_written_once_however_many_come() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("access.log");
        let config = AccessConfig { path: Some(path.clone()), format: AccessFormat::Combined, queue_max: 100_000 };
        let log = AccessLog::start(&config, 4).expect("started");
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let ring = log.ring(worker).expect("a ring");
                scope.spawn(move || (0..5_000).for_each(|n| ring.push(record(&format!("/{worker}/{n}")))));
            }
        });
        log.close();
        let text = std::fs::read_to_string(path).expect("written");
        for worker in 0..4 {
            let prefix = format!("\"GET /{worker}/");
            let numbers =
                text.lines().filter_map(|line| line.split_once(&prefix)?.1.split(' ').next()?.parse::<u32>().ok());
            assert!(numbers.eq(0..5_000), "worker {worker}: each once, in order");
        }
        assert_eq!(text.lines().count(), 20_000);
    }

    #[test]
    fn only_owner_and_group_may_read_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("access.log");
        drop(open(&path).expect("made"));
        let mode = std::fs::metadata(path).expect("there").permissions().mode();
        assert_eq!(mode & 0o7, 0, "{mode:o}");
    }
}
