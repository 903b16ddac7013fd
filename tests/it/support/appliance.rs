//! The real binary in a process of its own.

use std::{
    ffi::OsString,
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
    admin: String,
    rest: String,
    manner: Manner,
}

/// How the process is started.
#[derive(Clone, Default)]
struct Manner {
    environment: Vec<(&'static str, OsString)>,
    /// What mounts it has for itself.
    mounts: Option<String>,
    unprivileged: bool,
    /// What a shell does first.
    before: Option<&'static str>,
}

/// A running appliance; killed when dropped.
pub(crate) struct Appliance {
    child: Child,
    home: tempfile::TempDir,
    manner: Manner,
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
            // A test machine that is busy with others' tests is no overload that anybody asked for.
            serve: "workers = 2\nqueue_delay_max = \"0 s\"\n".into(),
            // A failing origin shall be asked again at once: tests do not wait for patience to end.
            fill: "retry_delay = \"10 ms\"\nretry_delay_max = \"50 ms\"\n".into(),
            source_extra: String::new(),
            catalog: String::new(),
            storage: String::new(),
            admin: String::new(),
            rest: String::new(),
            manner: Manner::default(),
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

    /// With the rules of overload in force.
    pub(crate) fn sheds(mut self) -> Self {
        self.serve = self.serve.replace("queue_delay_max = \"0 s\"\n", "");
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

    pub(crate) fn operators(mut self, lines: &str) -> Self {
        self.admin.push_str(lines);
        self.admin.push('\n');
        self
    }

    /// Whole tables.
    pub(crate) fn tables(mut self, lines: &str) -> Self {
        self.rest.push_str(lines);
        self.rest.push('\n');
        self
    }

    pub(crate) fn environment(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.manner.environment.push((name, value.into()));
        self
    }

    /// With mounts of its own, made by a shell; `$VOLUME` is its volume.
    pub(crate) fn mounts(mut self, commands: &str) -> Self {
        self.manner.mounts = Some(commands.into());
        self
    }

    /// As a user without any rights, where the tests are run by root.
    pub(crate) fn unprivileged(mut self) -> Self {
        self.manner.unprivileged = true;
        self
    }

    /// What a shell does before it becomes the appliance.
    pub(crate) fn before(mut self, commands: &'static str) -> Self {
        self.manner.before = Some(commands);
        self
    }

    fn text(&self, home: &Path) -> String {
        let Self { source, capacity, serve, fill, source_extra, catalog, storage, admin, rest, manner: _ } = self;
        let volume = home.join("volume");
        format!(
            "[serve]\nhttp = [\"127.0.0.1:0\"]\n{serve}\n[storage]\n{storage}\n[[storage.volume]]\npath = {volume:?}\n\
             capacity = \"{capacity}\"\n\n[catalog]\n{catalog}\n[fill]\n{fill}\n[[fill.source]]\nkind = \"origin\"\n\
             url = \"{source}\"\n{source_extra}\n[admin]\nlisten = \"127.0.0.1:0\"\n{admin}\n{rest}"
        )
    }

    pub(crate) fn start(self) -> Appliance {
        let home = tempfile::Builder::new().prefix("oca-test-").tempdir().expect("a scratch folder");
        fs::create_dir(home.path().join("volume")).expect("a volume");
        fs::write(home.path().join("oca.toml"), self.text(home.path())).expect("a configuration");
        let (child, [http, https, admin], ready_after) = launch(home.path(), &self.manner);
        let (http, admin) = (http.expect("it listens"), admin.expect("it listens"));
        Appliance { child, home, manner: self.manner, http, https, admin, ready_after }
    }
}

/// The process, and its addresses for HTTP, HTTPS and operators.
fn launch(home: &Path, manner: &Manner) -> (Child, [Option<SocketAddr>; 3], Duration) {
    let begin = Instant::now();
    let mut child = spawn(home, manner);
    let mut addresses = None;
    wait_until("ready", READY_MAX, || {
        addresses = announced(home, &mut child);
        addresses.is_some()
    });
    (child, addresses.expect("announced"), begin.elapsed())
}

/// Its addresses, once it has said them.
fn announced(home: &Path, child: &mut Child) -> Option<[Option<SocketAddr>; 3]> {
    if let Some(status) = child.try_wait().expect("it is our child") {
        panic!("the appliance ended with {status} before it was ready:\n{}", tail(home));
    }
    let text = fs::read_to_string(home.join("announced.json")).unwrap_or_default();
    if !text.trim_end().ends_with('}') {
        return None;
    }
    let announcement: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let address = |value: &serde_json::Value| value.as_str().map(|text| text.parse().expect("an address"));
    let [http, https, admin] = ["http", "https", "admin"].map(|name| &announcement[name]);
    Some([address(&http[0]), address(&https[0]), address(admin)])
}

fn spawn(home: &Path, manner: &Manner) -> Child {
    let announced = home.join("announced.json");
    drop(fs::remove_file(&announced));
    let log = fs::File::options().create(true).append(true).open(home.join("log")).expect("a log");
    let mut command = match manner.before {
        _ if manner.unprivileged && rustix::process::geteuid().is_root() => as_nobody(home),
        Some(before) => {
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("{before}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_oca")]);
            shell
        }
        None => match &manner.mounts {
            Some(mounts) => {
                let mut shell = Command::new("unshare");
                let script = format!("{mounts} && exec \"$0\" \"$@\"");
                shell.args(["-m", "sh", "-c", &script, env!("CARGO_BIN_EXE_oca")]).env("VOLUME", home.join("volume"));
                shell
            }
            None => Command::new(env!("CARGO_BIN_EXE_oca")),
        },
    };
    command
        .envs(manner.environment.iter().map(|(name, value)| (name, value)))
        .arg("serve")
        .arg("--config")
        .arg(home.join("oca.toml"))
        .arg("--announce")
        .arg(&announced)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a descriptor"))
        .stderr(log)
        .spawn()
        .expect("the appliance starts")
}

/// The binary, where everybody may run it, as a user who owns its home and nothing else.
fn as_nobody(home: &Path) -> Command {
    use std::os::unix::{fs::chown, process::CommandExt};
    const NOBODY: u32 = 65_534;
    let binary = home.join("oca");
    fs::copy(env!("CARGO_BIN_EXE_oca"), &binary).expect("copied");
    for path in [home, &home.join("volume"), &binary] {
        chown(path, Some(NOBODY), Some(NOBODY)).expect("we are root");
    }
    let mut command = Command::new(binary);
    command.uid(NOBODY).gid(NOBODY);
    command
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

    pub(crate) fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// Where operators connect to.
    pub(crate) fn admin_url(&self) -> String {
        format!("http://{}", self.admin)
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
        self.admin_with(path, "")
    }

    /// As `admin`, with further fields, each with its line end.
    pub(crate) fn admin_with(&self, path: &str, fields: &str) -> Response {
        let mut client = Client::connect(self.admin);
        let head = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{fields}\r\n", self.admin);
        client.send(head.as_bytes());
        client.read_response("GET").expect("the response is whole")
    }

    /// The status page, as a browser without scripts gets it.
    pub(crate) fn page(&self) -> String {
        let page = self.admin_with("/", "Accept: text/html\r\n");
        assert_eq!(page.status(), 200);
        String::from_utf8(page.body).expect("text")
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

    /// A path as the appliance sees it, which may have mounts of its own.
    pub(crate) fn seen(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.child.id()));
        root.join(path.strip_prefix("/").expect("an absolute path"))
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

    /// All of its log.
    pub(crate) fn whole_log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.home.path().join("log")).expect("a log")).into_owned()
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it is our child");
    }

    /// Starts again on the same storage. The addresses change.
    pub(crate) fn start_again(&mut self) {
        let (child, [http, https, admin], ready_after) = launch(self.home.path(), &self.manner);
        (self.child, self.https, self.ready_after) = (child, https, ready_after);
        (self.http, self.admin) = (http.expect("it listens"), admin.expect("it listens"));
    }

    /// As `start_again`, if it is ready by then; killed if it is not. Tells which.
    pub(crate) fn start_again_until(&mut self, end: Instant) -> bool {
        self.child = spawn(self.home.path(), &self.manner);
        loop {
            if let Some([http, https, admin]) = announced(self.home.path(), &mut self.child) {
                (self.http, self.https) = (http.expect("it listens"), https);
                self.admin = admin.expect("it listens");
                return true;
            }
            if Instant::now() >= end {
                self.kill();
                return false;
            }
            std::thread::park_timeout(Duration::from_millis(2));
        }
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
