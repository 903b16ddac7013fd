//! What benches share: the real binary on a scratch volume, and a client that reads responses without looking at them.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A running appliance; ended when dropped.
#[derive(Debug)]
pub(crate) struct Appliance {
    child: Child,
    /// Where viewers connect to.
    pub(crate) http: SocketAddr,
    /// Where operators connect to.
    pub(crate) admin: SocketAddr,
}

/// A folder that goes with the bench.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// A new folder where the build writes.
    pub(crate) fn new(name: &str) -> io::Result<Self> {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(err) = fs::remove_dir_all(&self.0) {
            eprintln!("{} is left: {err}", self.0.display());
        }
    }
}

impl Appliance {
    /// Starts `oca serve` on a volume and a source below `home`. `serve` is TOML for the inside of `[serve]`.
    pub(crate) fn start(home: &Path, capacity: &str, serve: &str) -> io::Result<Self> {
        let (config, announcement) = (home.join("oca.toml"), home.join("announcement.json"));
        let text = format!(
            "[serve]\nhttp = [\"127.0.0.1:0\"]\n{serve}\n[storage]\nscrub_rate = \"0 bps\"\n[[storage.volume]]\npath = {:?}\n\
             capacity = \"{capacity}\"\n[[fill.source]]\nkind = \"origin\"\nurl = \"file://{}\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             [log]\nfilter = \"warn\"\n",
            home.join("volume"),
            home.join("source").display(),
        );
        fs::write(&config, text)?;
        if announcement.exists() {
            fs::remove_file(&announcement)?;
        }
        let mut child = Command::new(env!("CARGO_BIN_EXE_oca"))
            .args(["serve", "--config"])
            .arg(&config)
            .arg("--announce")
            .arg(&announcement)
            .stdout(Stdio::null())
            .spawn()?;
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
        let address = |text: &serde_json::Value| {
            text.as_str().and_then(|text| text.parse().ok()).ok_or(io::ErrorKind::InvalidData)
        };
        Ok(Self { http: address(&value["http"][0])?, admin: address(&value["admin"])?, child })
    }

    /// CPU seconds used so far, by all threads.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        cpu_seconds_of(self.id())
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sum of a metric's series.
    pub(crate) fn metric(&self, name: &str) -> io::Result<f64> {
        let mut stream = TcpStream::connect(self.admin)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
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

/// CPU seconds that a process has used so far, by all its threads.
pub(crate) fn cpu_seconds_of(id: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    // After the name in parentheses, the 12th and 13th field are user and system time in ticks.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

/// A client that drops bodies in the kernel (`MSG_TRUNC`, `tcp(7)`), so that it does not become what is measured.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
}

impl Client {
    /// Connects.
    pub(crate) fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self { stream })
    }

    /// Asks for a range, or for everything, and takes the response; gives the body's length.
    pub(crate) fn fetch(&mut self, path: &str, range: Option<(u64, u64)>) -> io::Result<u64> {
        let range = range.map(|(start, end)| format!("Range: bytes={start}-{}\r\n", end - 1)).unwrap_or_default();
        self.stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: bench\r\n{range}\r\n").as_bytes())?;
        let mut head = Vec::with_capacity(2048);
        let end = loop {
            let mut piece = [0_u8; 1024];
            // Looked at without taking, so that no byte of the body is taken with the head.
            let seen = rustix::net::recv(&self.stream, &mut piece[..], rustix::net::RecvFlags::PEEK)?.0;
            if seen == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let before = head.len();
            head.extend_from_slice(&piece[..seen]);
            let end = head.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4);
            let take = end.unwrap_or(head.len()) - before;
            self.stream.read_exact(&mut piece[..take])?;
            head.truncate(before + take);
            if let Some(end) = end {
                break end;
            }
        };
        let text = String::from_utf8_lossy(&head[..end]).to_ascii_lowercase();
        if !text.starts_with("http/1.1 20") {
            return Err(io::Error::other(text.lines().next().unwrap_or_default().to_owned()));
        }
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
        let length: u64 = length.ok_or(io::ErrorKind::InvalidData)?;
        let mut left = length;
        let mut nowhere = vec![0_u8; 1 << 16];
        while left > 0 {
            let room = usize::try_from(left).unwrap_or(usize::MAX).min(nowhere.len());
            let (_, dropped) = rustix::net::recv(&self.stream, &mut nowhere[..room], rustix::net::RecvFlags::TRUNC)?;
            if dropped == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left = left.saturating_sub(dropped as u64);
        }
        Ok(length)
    }
}

/// The value of `--name=N` on the command line.
pub(crate) fn option(name: &str) -> Option<u64> {
    std::env::args().find_map(|argument| argument.strip_prefix(&format!("--{name}="))?.parse().ok())
}

/// Whether this is a short run that only shows that the bench works (`--test`).
pub(crate) fn is_smoke() -> bool {
    std::env::args().any(|argument| argument == "--test" || argument == "--smoke")
}
