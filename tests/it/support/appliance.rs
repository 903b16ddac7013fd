//! The real binary in a process of its own.

use std::{
    fs,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{Client, Origin, Response, wait_until};

/// Longest time from start to ready that any test accepts.
const READY_MAX: Duration = Duration::from_secs(20);

/// A configuration being put together. Each part is TOML for the inside of one table.
pub(crate) struct Setup {
    source: String,
    capacity: String,
    serve: String,
    fill: String,
    source_extra: String,
    catalog: String,
    storage: String,
    rest: String,
}

/// A running appliance; killed when dropped.
pub(crate) struct Appliance {
    child: Child,
    home: tempfile::TempDir,
    http: SocketAddr,
    https: Option<SocketAddr>,
    admin: SocketAddr,
    /// From start to ready.
    pub(crate) ready_after: Duration,
}

impl Setup {
    pub(crate) fn new(origin: &Origin) -> Self {
        Self::from_url(&origin.url())
    }

    pub(crate) fn from_url(url: &str) -> Self {
        Self {
            source: url.into(),
            capacity: "1 GiB".into(),
            serve: "workers = 2\n".into(),
            // A failing origin shall be asked again at once: tests do not wait for patience to end.
            fill: "retry_delay = \"10 ms\"\nretry_delay_max = \"50 ms\"\n".into(),
            source_extra: String::new(),
            catalog: String::new(),
            storage: String::new(),
            rest: String::new(),
        }
    }

    pub(crate) fn capacity(mut self, capacity: &str) -> Self {
        self.capacity = capacity.into();
        self
    }

    pub(crate) fn serve(mut self, lines: &str) -> Self {
        self.serve.push_str(lines);
        self.serve.push('\n');
        self
    }

    /// In place of the two workers of all tests.
    pub(crate) fn workers(mut self, count: usize) -> Self {
        self.serve = self.serve.replace("workers = 2\n", &format!("workers = {count}\n"));
        self
    }

    pub(crate) fn fill(mut self, lines: &str) -> Self {
        self.fill.push_str(lines);
        self.fill.push('\n');
        self
    }

    pub(crate) fn source(mut self, lines: &str) -> Self {
        self.source_extra.push_str(lines);
        self.source_extra.push('\n');
        self
    }

    pub(crate) fn catalog(mut self, lines: &str) -> Self {
        self.catalog.push_str(lines);
        self.catalog.push('\n');
        self
    }

    pub(crate) fn storage(mut self, lines: &str) -> Self {
        self.storage.push_str(lines);
        self.storage.push('\n');
        self
    }

    /// Whole tables.
    pub(crate) fn tables(mut self, lines: &str) -> Self {
        self.rest.push_str(lines);
        self.rest.push('\n');
        self
    }

    fn text(&self, home: &Path) -> String {
        let Self { source, capacity, serve, fill, source_extra, catalog, storage, rest } = self;
        let volume = home.join("volume");
        format!(
            "[serve]\nhttp = [\"127.0.0.1:0\"]\n{serve}\n[storage]\n{storage}\n[[storage.volume]]\npath = {volume:?}\n\
             capacity = \"{capacity}\"\n\n[catalog]\n{catalog}\n[fill]\n{fill}\n[[fill.source]]\nkind = \"origin\"\n\
             url = \"{source}\"\n{source_extra}\n[admin]\nlisten = \"127.0.0.1:0\"\n\n{rest}"
        )
    }

    pub(crate) fn start(self) -> Appliance {
        let home = tempfile::Builder::new().prefix("oca-test-").tempdir().expect("a scratch folder");
        fs::create_dir(home.path().join("volume")).expect("a volume");
        fs::write(home.path().join("oca.toml"), self.text(home.path())).expect("a configuration");
        let (child, [http, https, admin], ready_after) = launch(home.path());
        let (http, admin) = (http.expect("it listens"), admin.expect("it listens"));
        Appliance { child, home, http, https, admin, ready_after }
    }
}

/// The process, and its addresses for HTTP, HTTPS and operators.
fn launch(home: &Path) -> (Child, [Option<SocketAddr>; 3], Duration) {
    let announced = home.join("announced.json");
    drop(fs::remove_file(&announced));
    let log = fs::File::options().create(true).append(true).open(home.join("log")).expect("a log");
    let begin = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_oca"))
        .arg("serve")
        .arg("--config")
        .arg(home.join("oca.toml"))
        .arg("--announce")
        .arg(&announced)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a descriptor"))
        .stderr(log)
        .spawn()
        .expect("the appliance starts");
    let mut text = String::new();
    wait_until("ready", READY_MAX, || {
        if let Some(status) = child.try_wait().expect("it is our child") {
            panic!("the appliance ended with {status} before it was ready:\n{}", tail(home));
        }
        text = fs::read_to_string(&announced).unwrap_or_default();
        text.trim_end().ends_with('}')
    });
    let announcement: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let address = |value: &serde_json::Value| value.as_str().map(|text| text.parse().expect("an address"));
    let [http, https, admin] = ["http", "https", "admin"].map(|name| &announcement[name]);
    (child, [address(&http[0]), address(&https[0]), address(admin)], begin.elapsed())
}

fn tail(home: &Path) -> String {
    let log = fs::read(home.join("log")).unwrap_or_default();
    String::from_utf8_lossy(&log[log.len().saturating_sub(8000)..]).into_owned()
}

impl Appliance {
    pub(crate) fn http(&self) -> SocketAddr {
        self.http
    }

    pub(crate) fn https(&self) -> SocketAddr {
        self.https.expect("it listens")
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.http)
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        self.connect().get(path)
    }

    pub(crate) fn range(&self, path: &str, range: &str) -> Response {
        self.connect().range(path, range)
    }

    pub(crate) fn admin(&self, path: &str) -> Response {
        Client::connect(self.admin).ask("GET", path, &[("Connection", "close")])
    }

    /// Sum of a metric over all series whose labels contain `labels` (as written, such as `status="200"`).
    pub(crate) fn metric(&self, name: &str, labels: &str) -> f64 {
        let text = String::from_utf8(self.admin("/metrics").body).expect("text");
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.rsplit_once(' '))
            .filter(|(series, _)| series.split('{').next() == Some(name) && series.contains(labels))
            .map(|(_, value)| value.parse::<f64>().expect("a number"))
            .sum()
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Memory in use, in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("the kernel says so");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// Time that its threads have computed.
    pub(crate) fn cpu_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it runs");
        // Behind the name, which may hold anything: user and system time in ticks.
        let (_, fields) = stat.rsplit_once(") ").expect("the kernel says so");
        let ticks = fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().expect("a number"));
        Duration::from_millis(ticks.sum::<u64>() * 1000 / rustix::param::clock_ticks_per_second())
    }

    pub(crate) fn volume(&self) -> PathBuf {
        self.home.path().join("volume")
    }

    /// Whether `connections` connections of viewers are open and the appliance has taken everything they sent.
    pub(crate) fn has_read_everything(&self, connections: usize) -> bool {
        let table = fs::read_to_string("/proc/net/tcp").expect("the kernel lists its sockets");
        let ours = format!(":{:04X}", self.http.port());
        // Local address, peer's address, state (01: established), queues as `tx:rx`.
        let unread: Vec<bool> = table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .filter(|fields| fields[1].ends_with(&ours) && fields[3] == "01")
            .map(|fields| !fields[4].ends_with(":00000000"))
            .collect();
        unread.len() >= connections && !unread.contains(&true)
    }

    /// Whether the volume's database has all of an asset on record, so that no crash can lose it.
    pub(crate) fn is_durable(&self, path: &str) -> bool {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        let database = rusqlite::Connection::open_with_flags(self.volume().join("catalog.sqlite"), flags);
        let sealed = database.and_then(|database| {
            database.busy_timeout(Duration::from_secs(5))?;
            let query = "SELECT max(sealed) FROM asset WHERE path = ?1";
            database.query_row(query, [path.trim_start_matches('/')], |row| row.get::<_, Option<bool>>(0))
        });
        sealed.expect("the database can be read while it is used") == Some(true)
    }

    /// What its files cost the file system, database included.
    pub(crate) fn disk_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        walkdir::WalkDir::new(self.volume())
            .into_iter()
            .filter_map(Result::ok)
            .filter(|entry| entry.file_type().is_file())
            // It may be evicted between being listed and being looked at.
            .filter_map(|entry| Some(entry.metadata().ok()?.blocks() * 512))
            .sum()
    }

    pub(crate) fn log(&self) -> String {
        tail(self.home.path())
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it is our child");
    }

    /// Starts again on the same storage. The addresses change.
    pub(crate) fn start_again(&mut self) {
        let (child, [http, https, admin], ready_after) = launch(self.home.path());
        (self.child, self.https, self.ready_after) = (child, https, ready_after);
        (self.http, self.admin) = (http.expect("it listens"), admin.expect("it listens"));
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("it runs");
    }

    pub(crate) fn wait_for_exit(&mut self, limit: Duration) -> ExitStatus {
        let mut status = None;
        wait_until("exit", limit, || {
            status = self.child.try_wait().expect("it is our child");
            status.is_some()
        });
        status.expect("it has ended")
    }

    /// Ends it the polite way.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait_for_exit(Duration::from_secs(40));
        assert!(status.success(), "SIGTERM ends it with success, not {status}:\n{}", self.log());
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            drop(writeln!(std::io::stderr(), "--- the appliance's log\n{}", tail(self.home.path())));
        }
    }
}
