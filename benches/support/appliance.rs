//! The real binary on a scratch volume.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::cores;

/// How an appliance is set up. `serve` and `tables` are TOML: for the inside of `[serve]`, and for tables of their own.
#[derive(Clone, Debug)]
pub(crate) struct Setup<'a> {
    /// Its scratch folder.
    pub(crate) home: &'a Path,
    /// `storage.volume.capacity`.
    pub(crate) capacity: &'a str,
    /// Where it fills from.
    pub(crate) source: String,
    /// Where viewers connect to.
    pub(crate) address: &'a str,
    pub(crate) serve: &'a str,
    pub(crate) storage: &'a str,
    pub(crate) tables: &'a str,
    /// Another binary than the one that was just built.
    pub(crate) binary: Option<PathBuf>,
    /// Added to its environment.
    pub(crate) environment: &'a [(&'a str, &'a str)],
    /// Whether it gets a core of its own.
    pub(crate) pinned: bool,
    /// Whether it writes an access log.
    pub(crate) log: bool,
}

/// A running appliance; ended when dropped.
#[derive(Debug)]
pub(crate) struct Appliance {
    child: Child,
    /// Where viewers connect to.
    pub(crate) http: SocketAddr,
    /// Where viewers connect to by TLS.
    pub(crate) https: Option<SocketAddr>,
    /// Where operators connect to.
    pub(crate) admin: SocketAddr,
}

impl<'a> Setup<'a> {
    /// An appliance on `home` that fills from the folder `source` in it.
    pub(crate) fn new(home: &'a Path, capacity: &'a str) -> Self {
        let source = format!("file://{}", home.join("source").display());
        Self {
            home,
            capacity,
            source,
            address: "127.0.0.1",
            serve: "",
            storage: "",
            tables: "",
            binary: None,
            environment: &[],
            pinned: false,
            log: false,
        }
    }

    /// Starts it.
    ///
    /// # Errors
    /// It ends at once, or does not say where it listens.
    pub(crate) fn start(&self) -> io::Result<Appliance> {
        let Self { home, capacity, source, address, serve, storage, tables, .. } = self;
        let (config, announcement) = (home.join("oca.toml"), home.join("announcement.json"));
        let access =
            if self.log { format!("[log.access]\npath = {:?}\n", home.join("access.log")) } else { String::new() };
        let text = format!(
            "[serve]\nhttp = [\"{address}:0\"]\n{serve}\n[storage]\nscrub_rate = \"0 bps\"\n{storage}\n[[storage.volume]]\npath = {:?}\n\
             capacity = \"{capacity}\"\n[[fill.source]]\nkind = \"origin\"\nurl = \"{source}\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             [log]\nfilter = \"warn\"\n{access}{tables}",
            home.join("volume"),
        );
        fs::write(&config, text)?;
        if announcement.exists() {
            fs::remove_file(&announcement)?;
        }
        let binary = self.binary.clone().unwrap_or_else(|| env!("CARGO_BIN_EXE_oca").into());
        let mut command = Command::new(binary);
        command.args(["serve", "--config"]).arg(&config).arg("--announce").arg(&announcement).stdout(Stdio::null());
        command.envs(self.environment.iter().copied());
        let mut child = if self.pinned { cores::spawn_server(&mut command)? } else { command.spawn()? };
        let begun = Instant::now();
        while !announcement.exists() {
            if let Some(status) = child.try_wait()? {
                return Err(io::Error::other(format!("oca ended with {status}")));
            }
            if begun.elapsed() > Duration::from_secs(60) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        let value: serde_json::Value = serde_json::from_slice(&fs::read(&announcement)?)?;
        let address = |text: &serde_json::Value| text.as_str().and_then(|text| text.parse().ok());
        let known = |text: &serde_json::Value| address(text).ok_or(io::ErrorKind::InvalidData);
        Ok(Appliance {
            http: known(&value["http"][0])?,
            https: address(&value["https"][0]),
            admin: known(&value["admin"])?,
            child,
        })
    }
}

impl Appliance {
    /// CPU seconds used so far, by all threads.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        cores::cpu_seconds(&[self.id()])
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sum of a metric's series.
    pub(crate) fn metric(&self, name: &str) -> io::Result<f64> {
        let mut stream = TcpStream::connect(self.admin)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let series =
            text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
        Ok(series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// Ends it in order and waits.
    pub(crate) fn stop(mut self) -> io::Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("oca ended with {status}"))) }
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        // Ended already when `stop` was called.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
