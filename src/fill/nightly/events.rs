//! The event log of fills: JSON lines that tell why each asset is or is not here.
//!
//! `{"time":1764115200,"sequence":42,"event":"held","asset":"films/1.mp4","bytes":1048576,"source":"origin"}`

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::asset::UnixTime;

/// The log of one appliance; does nothing where none is configured.
#[derive(Debug, Default)]
pub(super) struct Events(Option<Mutex<Log>>);

#[derive(Debug)]
struct Log {
    path: PathBuf,
    size_max: u64,
    file: Option<File>,
    size: u64,
    /// A line could not be written: said once, until one can be again.
    failing: bool,
}

impl Events {
    pub(super) fn new(path: Option<PathBuf>, size_max: u64) -> Self {
        Self(path.map(|path| Mutex::new(Log { path, size_max, file: None, size: 0, failing: false })))
    }

    /// Writes one line. Blocks for as long as the file does; a line that cannot be written is lost, with a warning.
    pub(super) fn note(&self, time: UnixTime, sequence: u64, event: &str, mut more: Value) {
        let Some(log) = &self.0 else { return };
        let mut line = json!({ "time": time.0, "sequence": sequence, "event": event });
        if let (Some(line), Some(more)) = (line.as_object_mut(), more.as_object_mut()) {
            line.append(more);
        }
        let mut log = log.lock();
        match log.write(&format!("{line}\n")) {
            Ok(()) => log.failing = false,
            Err(err) => {
                log.file = None;
                if !std::mem::replace(&mut log.failing, true) {
                    tracing::warn!(path = %log.path.display(), error = %err, "event log of fills cannot be written");
                }
            }
        }
    }

    /// Opens the file anew: somebody has moved it.
    pub(super) fn reopen(&self) {
        if let Some(log) = &self.0 {
            log.lock().file = None;
        }
    }

    /// The last lines about an asset, oldest first. Blocks.
    pub(super) fn about(&self, asset: &str, max: usize) -> Vec<Value> {
        let Some(log) = &self.0 else { return Vec::new() };
        let path = log.lock().path.clone();
        let mut found = std::collections::VecDeque::new();
        for path in [aside(&path), path] {
            let Ok(file) = File::open(path) else { continue };
            for line in BufReader::new(file).lines().map_while(Result::ok) {
                let Ok(line) = serde_json::from_str::<Value>(&line) else { continue };
                if line["asset"] == asset {
                    found.push_back(line);
                    if found.len() > max {
                        found.pop_front();
                    }
                }
            }
        }
        found.into()
    }
}

/// Where a full log is put.
fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

impl Log {
    fn write(&mut self, line: &str) -> io::Result<()> {
        if self.size + line.len() as u64 > self.size_max && self.file.is_some() {
            self.file = None;
            std::fs::rename(&self.path, aside(&self.path))?;
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let file = OpenOptions::new().create(true).append(true).open(&self.path)?;
                self.size = file.metadata()?.len();
                none.insert(file)
            }
        };
        file.write_all(line.as_bytes())?;
        self.size += line.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_again_and_a_full_log_is_put_aside() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("fill.log");
        let events = Events::new(Some(path.clone()), 1000);
        for number in 0..40 {
            let asset = if number % 10 == 9 { "b\nc" } else { "a" };
            events.note(UnixTime(number), 7, "held", json!({ "asset": asset }));
        }
        let about = events.about("b\nc", 10);
        assert_eq!(about.last().expect("found")["time"], 39);
        assert!((2..4).contains(&about.len()), "what was put aside before is dropped: {about:?}");
        for file in [aside(&path), path.clone()] {
            assert!(std::fs::metadata(&file).expect("there").len() <= 1000);
        }
        std::fs::rename(&path, dir.path().join("moved")).expect("moved");
        events.reopen();
        events.note(UnixTime(99), 7, "failed", json!({ "asset": "a", "reason": "not_found" }));
        assert_eq!(std::fs::read_to_string(&path).expect("anew").lines().count(), 1);
        assert_eq!(events.about("a", 1)[0]["reason"], "not_found");
    }
}
