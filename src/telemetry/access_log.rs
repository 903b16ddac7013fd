//! The access log: one line per response, written by a thread of its own.
//!
//! worker -> its lines, as text (bounded, no wake-up) -> writer thread, ten times a second or more -> file
//!
//! What the worker has at hand anyway it writes down at once: handing records over, to be put into words by another thread, costs twice as much. The lock on
//! its lines is held by the writer only to put an empty buffer in their place. A line for which there is no room is dropped and counted: a slow log
//! disk never slows a viewer. So are lines counted that the disk refuses.

use std::{
    fs::File,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::Mutex;

use self::line::{LINE_MAX, write_line};
pub use self::line::{Record, Words, hexadecimal};
use super::{AccessConfig, AccessFormat};

mod line;

/// How often the writer looks for lines.
const ROUND: Duration = Duration::from_millis(100);
/// The same while a round has more than so many bytes. One of a tenth of a second would be megabytes then, and whoever shares a core with the writer would wait for
/// a millisecond until they are copied.
const BUSY_ROUND: Duration = Duration::from_millis(10);
const BUSY_BYTES: usize = 64 << 10;
/// What one of `log.access.queue_max` lines is taken to have, in bytes.
const LINE_BYTES: usize = 512;
/// Memory that is kept from round to round, for each worker.
const KEPT_BYTES: usize = 256 << 10;
/// The log names people by their addresses: for its owner and group only.
const FILE_MODE: u32 = 0o640;

/// One worker's lines on their way to the writer.
#[derive(Debug)]
pub struct Lines {
    text: Mutex<Vec<u8>>,
    bytes_max: usize,
    format: AccessFormat,
    dropped: AtomicU64,
}

impl Lines {
    fn new(config: &AccessConfig) -> Self {
        let bytes_max = config.queue_max.saturating_mul(LINE_BYTES).max(LINE_MAX);
        Self { text: Mutex::default(), bytes_max, format: config.format, dropped: AtomicU64::new(0) }
    }

    /// Hands a line over; never waits for the file.
    pub fn push(&self, record: &Record) {
        let mut text = self.text.lock();
        let before = text.len();
        // Whether it fits is known when it is written; that nothing does, before.
        if before < self.bytes_max {
            write_line(&mut text, record, self.format);
        }
        if before >= self.bytes_max || text.len() > self.bytes_max {
            text.truncate(before);
            drop(text);
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
    workers: Vec<Arc<Lines>>,
    path: PathBuf,
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
        let shared = Arc::new(Shared {
            workers: (0..workers).map(|_| Arc::new(Lines::new(config))).collect(),
            path: path.clone(),
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

    /// Where one worker writes its lines; `None` where there is no access log.
    pub fn lines(&self, worker: usize) -> Option<Arc<Lines>> {
        self.shared.as_ref()?.workers.get(worker).cloned()
    }

    /// Lines that did not get into the file so far: the writer was behind, or the file could not be written.
    pub fn dropped(&self) -> u64 {
        let Some(shared) = &self.shared else { return 0 };
        let dropped = shared.workers.iter().map(|lines| lines.dropped.load(Ordering::Relaxed)).sum::<u64>();
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
            let mut most = 0;
            for lines in &self.workers {
                std::mem::swap(&mut *lines.text.lock(), &mut text);
                most = most.max(text.len());
                self.put_out(&mut output, &text);
                text.clear();
                text.shrink_to(KEPT_BYTES);
            }
            if stopping {
                return;
            }
            std::thread::park_timeout(if most > BUSY_BYTES { BUSY_ROUND } else { ROUND });
        }
    }

    /// Writes `text`, whole lines; what cannot be written is lost and counted.
    fn put_out(&self, output: &mut Output, text: &[u8]) {
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::{line::WORD_MAX, *};

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
        let lines = log.lines(0).expect("there");
        records.iter().for_each(|record| lines.push(record));
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
    fn what_does_not_fit_is_dropped_and_counted() {
        let lines = Lines::new(&AccessConfig { path: None, format: AccessFormat::Json, queue_max: 40 });
        (0..1000).for_each(|number| lines.push(&record(&format!("/{number:03}"))));
        let text = String::from_utf8(lines.text.lock().clone()).expect("text");
        let dropped = lines.dropped.load(Ordering::Relaxed);
        assert_eq!(text.lines().count() as u64 + dropped, 1000);
        lines.text.lock().resize(40 * LINE_BYTES, b' ');
        lines.push(&record("/"));
        assert_eq!((lines.text.lock().len(), lines.dropped.load(Ordering::Relaxed)), (40 * LINE_BYTES, dropped + 1));
        assert!(text.len() <= 40 * LINE_BYTES && text.len() > 39 * LINE_BYTES && text.ends_with("}\n"));
        // The longest has room in the shortest queue, and is not cut.
        let lines = Lines::new(&AccessConfig { path: None, format: AccessFormat::Json, queue_max: 1 });
        let long = "\u{1}".repeat(WORD_MAX);
        let fields = [long.as_bytes(); 3].map(Some);
        lines.push(&Record { words: Words::new((&long, &long), fields), ..record("/") });
        assert!(lines.dropped.load(Ordering::Relaxed) == 0 && lines.text.lock().len() > 5 * 6 * WORD_MAX);
    }

    #[test]
    fn a_moved_file_is_opened_anew() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (path, moved) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let config = AccessConfig { path: Some(path.clone()), format: AccessFormat::Json, queue_max: 4 };
        let log = AccessLog::start(&config, 1).expect("started");
        std::fs::rename(&path, &moved).expect("moved");
        log.reopen();
        log.lines(0).expect("there").push(&record("/after"));
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
        assert!(log.lines(0).is_none());
        assert_eq!(log.dropped(), 0);
    }

    #[test]
    fn lines_that_the_disk_refuses_are_counted() {
        // Every write to it fails with ENOSPC.
        let config = AccessConfig { path: Some("/dev/full".into()), format: AccessFormat::Json, queue_max: 8 };
        let log = AccessLog::start(&config, 2).expect("started");
        for worker in [0, 1, 1] {
            log.lines(worker).expect("there").push(&record("/a"));
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
                let lines = log.lines(worker).expect("there");
                scope.spawn(move || (0..5_000).for_each(|n| lines.push(&record(&format!("/{worker}/{n}")))));
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
