//! The appliance under callgrind, and what callgrind wrote about its threads.

use std::{
    collections::HashMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Longest wait for a start under callgrind, which takes some fifty times as long as without, on a busy machine.
const START_PATIENCE: Duration = Duration::from_secs(300);

/// A running appliance whose instructions are counted; ended when dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    child: Child,
    out: PathBuf,
    /// Where viewers connect to.
    pub(crate) http: SocketAddr,
}

/// Instructions that a thread has executed itself, by function.
pub(crate) type Counts = HashMap<String, u64>;

impl Counted {
    /// Starts `oca serve --config` under callgrind. `home` takes what it writes.
    pub(crate) fn start(home: &Path, config: &Path) -> io::Result<Self> {
        let (out, announcement) = (home.join("callgrind"), home.join("announcement.json"));
        for old in [&out, &announcement] {
            match if old.is_dir() { fs::remove_dir_all(old) } else { fs::remove_file(old) } {
                Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
                _ => {}
            }
        }
        fs::create_dir(&out)?;
        let child = Command::new("valgrind")
            .args([
                "--tool=callgrind",
                "--separate-threads=yes",
                "--compress-strings=no",
                "--compress-pos=no",
                "--quiet",
            ])
            // Threads take turns under valgrind; without fairness one that polls could keep the worker waiting.
            .arg("--fair-sched=try")
            .arg(format!("--callgrind-out-file={}", out.join("counts").display()))
            .arg(env!("CARGO_BIN_EXE_oca"))
            .args(["serve", "--config"])
            .arg(config)
            .arg("--announce")
            .arg(&announcement)
            .stdout(Stdio::null())
            .spawn()
            .map_err(|err| match err.kind() {
                io::ErrorKind::NotFound => {
                    io::Error::new(err.kind(), "valgrind is not installed (Debian package valgrind)")
                }
                _ => err,
            })?;
        // From here on it is ended when dropped, whatever fails.
        let mut counted = Self { child, out, http: SocketAddr::from(([127, 0, 0, 1], 0)) };
        let begun = Instant::now();
        while !announcement.exists() {
            if let Some(status) = counted.child.try_wait()? {
                return Err(io::Error::other(format!("oca under callgrind ended with {status}")));
            }
            if begun.elapsed() > START_PATIENCE {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
        let value: serde_json::Value = serde_json::from_slice(&fs::read(&announcement)?)?;
        counted.http =
            value["http"][0].as_str().and_then(|text| text.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(counted)
    }

    /// Ends it in order, and gives what each of its threads executed.
    pub(crate) fn stop(mut self) -> io::Result<Vec<Counts>> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = self.child.wait()?;
        if !status.success() {
            return Err(io::Error::other(format!("oca under callgrind ended with {status}")));
        }
        let mut threads = Vec::new();
        for file in fs::read_dir(&self.out)? {
            // The file without a number is the sum of nothing when threads are kept apart.
            let text = fs::read_to_string(file?.path())?;
            threads.push(read_counts(&text).map_err(|err| io::Error::new(io::ErrorKind::InvalidData, err))?);
        }
        Ok(threads)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // Ended already when `stop` was called.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Reads a file of callgrind's (its manual, "Callgrind Format Specification"), as written without compression: `fn=` opens a
/// function, a line `LINE COST` is its own cost, and the line after `calls=` is what a called one cost, which is counted there.
pub(crate) fn read_counts(text: &str) -> Result<Counts, String> {
    let mut counts = Counts::new();
    let (mut function, mut is_call, mut own) = (None, false, 0);
    let mut summary: Option<u64> = None;
    for (number, line) in text.lines().enumerate() {
        if let Some(name) = line.strip_prefix("fn=") {
            function = Some(counts.entry(name.to_owned()).or_insert(0));
        } else if line.starts_with("calls=") {
            is_call = true;
        } else if let Some(total) = line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: ")) {
            summary = total.trim().parse().ok().or(summary);
        } else if line.starts_with(|first: char| first.is_ascii_digit()) {
            let fault = || format!("line {}: '{line}' is not a position and a cost", number + 1);
            let cost: u64 = line.split_once(' ').and_then(|(_, cost)| cost.trim().parse().ok()).ok_or_else(fault)?;
            if !std::mem::take(&mut is_call) {
                **function.as_mut().ok_or_else(fault)? += cost;
                own += cost;
            }
        }
    }
    // What the file itself says of the sum, so that a line we misread is found out.
    match summary {
        Some(total) if total != own => Err(format!("functions sum up to {own} instructions, callgrind says {total}")),
        _ => Ok(counts),
    }
}
