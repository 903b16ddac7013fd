//! Life under a service manager: listeners that outlive the process, what it is told, and how a stop is announced.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Client, Content, Origin, missing_tool, replace, wait_until};

const LENGTH: u64 = 300_000;
const PATIENCE: Duration = Duration::from_secs(30);

/// What a service manager has of a service: its listener, its folder, its process.
struct Managed {
    listener: TcpListener,
    home: tempfile::TempDir,
    child: Option<Child>,
    environment: Vec<(&'static str, String)>,
}

impl Managed {
    fn new(origin: &Origin, serve: &str) -> Self {
        let home = tempfile::Builder::new().prefix("oca-test-").tempdir().expect("a scratch folder");
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let managed = Self { listener, home, child: None, environment: Vec::new() };
        managed.configure(managed.address(), origin, serve);
        managed
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("bound")
    }

    fn path(&self, name: &str) -> String {
        self.home.path().join(name).display().to_string()
    }

    fn configure(&self, http: SocketAddr, origin: &Origin, serve: &str) {
        let (volume, url) = (self.home.path().join("volume"), origin.url());
        let text = format!(
            "[serve]\nhttp = [\"{http}\"]\nworkers = 2\nqueue_delay_max = \"0 s\"\n{serve}\n[[storage.volume]]\npath = {volume:?}\ncapacity = \"1 GiB\"\n\
             [[fill.source]]\nkind = \"origin\"\nurl = \"{url}\"\n[admin]\nlisten = \"127.0.0.1:0\"\n"
        );
        replace(&self.home.path().join("oca.toml"), &text);
    }

    /// Starts it as systemd does: the listener is descriptor 3, and the environment says whose it is.
    fn spawn(&mut self) {
        drop(fs::remove_file(self.home.path().join("announced.json")));
        let log = fs::File::options().create(true).append(true).open(self.home.path().join("log")).expect("a log");
        let listener: OwnedFd = self.listener.try_clone().expect("a descriptor").into();
        let script = "exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=oca.socket exec \"$0\" \"$@\"";
        let child = Command::new("sh")
            .args(["-c", script, env!("CARGO_BIN_EXE_oca"), "serve", "--config"])
            .args([&self.path("oca.toml"), "--announce", &self.path("announced.json")])
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::from(listener))
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("it starts"));
    }

    fn start(&mut self) {
        self.spawn();
        let announced = self.home.path().join("announced.json");
        wait_until("serving", PATIENCE, || {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().expect("ours"));
            assert!(ended.is_none(), "it ended with {ended:?}:\n{}", self.log());
            announced.exists()
        });
    }

    fn admin(&self) -> SocketAddr {
        let text = fs::read_to_string(self.home.path().join("announced.json")).expect("announced");
        let announced: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        announced["admin"].as_str().and_then(|text| text.parse().ok()).expect("an address")
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.child.as_ref().expect("it runs")), signal).expect("it runs");
    }

    fn wait(&mut self) {
        let mut child = self.child.take().expect("it runs");
        let mut status = None;
        wait_until("its end", PATIENCE, || {
            status = child.try_wait().expect("ours");
            status.is_some()
        });
        assert!(status.is_some_and(|status| status.success()), "{status:?}:\n{}", self.log());
    }

    fn log(&self) -> String {
        read_end(&self.home.path().join("log"))
    }
}

impl Drop for Managed {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended already.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn read_end(file: &Path) -> String {
    let log = fs::read(file).unwrap_or_default();
    String::from_utf8_lossy(&log[log.len().saturating_sub(8000)..]).into_owned()
}

/// Asks until told to stop, each time by a new connection or by one that it keeps. Tells how often it was answered.
fn ask_for_ever(address: SocketAddr, keep: bool, (content, stop): (&Content, &AtomicBool)) -> usize {
    let (mut kept, mut answered): (Option<Client>, usize) = (None, 0);
    while !stop.load(Ordering::Relaxed) {
        let was_kept = kept.is_some();
        let mut client = kept.take().unwrap_or_else(|| Client::connect(address));
        match client.try_ask("GET", "/film.mp4", &[]) {
            Ok(response) => {
                assert_eq!(response.status(), 200);
                assert!(response.body.len() as u64 == LENGTH, "{} bytes", response.body.len());
                content.assert_is(0, &response.body);
                answered += 1;
                let closes = response.head.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
                kept = Some(client).filter(|_| keep && !closes);
            }
            // Closed between two requests, which a client of a kept connection has to expect (RFC 9112, 9.3.1).
            Err(cut) if was_kept && cut.received.is_empty() => {}
            Err(cut) => panic!("cut after {} bytes, kept: {was_kept}, reset: {}", cut.received.len(), cut.reset),
        }
    }
    answered
}

#[test]
fn a_hundred_reloads_and_fifty_restarts_cost_no_viewer_anything() {
    let origin = Origin::start();
    let content = Arc::new(origin.publish_new("/film.mp4", 1, LENGTH));
    let mut managed = Managed::new(&origin, "");
    managed.start();
    let (stop, restarts) = (Arc::new(AtomicBool::new(false)), AtomicUsize::new(0));
    let begun = Instant::now();
    let viewers: Vec<_> = (0..6)
        .map(|number| {
            let (address, content, stop) = (managed.address(), Arc::clone(&content), Arc::clone(&stop));
            thread::spawn(move || ask_for_ever(address, number % 2 == 0, (&content, &stop)))
        })
        .collect();
    for round in 0..50 {
        // A reload while it serves, and one right before the end. Each finds another configuration, which every worker takes up.
        for half in 0..2 {
            let changed = format!("ranges_max = {}\nidle_timeout = \"{} s\"", 3 + half, 50 + round);
            managed.configure(managed.address(), &origin, &changed);
            managed.signal(Signal::HUP);
            assert_eq!(Client::connect(managed.address()).get("/film.mp4").status(), 200);
        }
        managed.signal(Signal::TERM);
        managed.wait();
        managed.start();
        restarts.fetch_add(1, Ordering::Relaxed);
        assert!(viewers.iter().all(|viewer| !viewer.is_finished()), "a viewer was let down:\n{}", managed.log());
    }
    stop.store(true, Ordering::Relaxed);
    let answered: Vec<usize> =
        viewers.into_iter().map(|viewer| viewer.join().expect("no viewer was let down")).collect();
    eprintln!("{:?} responses in {:?} over 50 restarts and 100 reloads", answered, begun.elapsed());
    assert!(answered.iter().all(|count| *count > 50), "{answered:?}");
    managed.signal(Signal::TERM);
    managed.wait();
}

#[test]
fn a_listener_that_the_configuration_does_not_name_is_refused() {
    let origin = Origin::start();
    let mut managed = Managed::new(&origin, "");
    managed.configure("127.0.0.1:0".parse().expect("an address"), &origin, "");
    managed.spawn();
    let status = managed.child.as_mut().expect("it runs").wait().expect("ours");
    assert_eq!(status.code(), Some(2), "no restart would mend it");
    let said = managed.log();
    assert!(said.contains(&managed.address().to_string()) && said.contains("oca.socket"), "{said}");
}

#[test]
fn the_service_manager_hears_of_every_change() {
    let origin = Origin::start();
    let mut managed = Managed::new(&origin, "drain_delay = \"1 s\"");
    let socket = UnixDatagram::bind(managed.path("notify")).expect("bound");
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    managed.environment = vec![("NOTIFY_SOCKET", managed.path("notify")), ("WATCHDOG_USEC", "1000000".into())];
    managed.start();
    let hear = |wanted: &str| {
        let mut buffer = [0; 1000];
        loop {
            let count = socket.recv(&mut buffer).unwrap_or_else(|err| panic!("nothing more, not {wanted}: {err}"));
            let said = String::from_utf8_lossy(&buffer[..count]).into_owned();
            if said.contains(wanted) {
                return said;
            }
        }
    };
    assert!(hear("READY=1").contains("STATUS=serving"));
    hear("WATCHDOG=1");
    hear("WATCHDOG=1");
    managed.signal(Signal::HUP);
    assert!(hear("RELOADING=1").contains("MONOTONIC_USEC="));
    hear("READY=1");
    managed.signal(Signal::TERM);
    assert!(hear("STOPPING=1").contains("STATUS=draining"));
    // It says so before anybody is refused.
    let ready = Client::connect(managed.admin()).ask("GET", "/ready", &[("Connection", "close")]);
    assert_eq!(ready.status(), 503);
    assert_eq!(Client::connect(managed.address()).get("/nothing.mp4").status(), 404, "it serves on");
    assert!(hear("STATUS=stopping").contains("STOPPING=1"));
    managed.wait();
}

/// What of `systemd-analyze security` is left open; 100 is everything.
const EXPOSURE_MAX: &str = "20";

#[test]
fn systemd_finds_no_fault_with_the_units() {
    if missing_tool("systemd-analyze") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let units = ["oca.service", "oca.socket"].map(|name| {
        let unit = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name)).expect("there");
        // It is looked at where it is installed, which it is not here.
        let unit = unit.replace("/usr/local/bin/oca", env!("CARGO_BIN_EXE_oca"));
        let file = folder.path().join(name);
        fs::write(&file, unit).expect("written");
        file
    });
    let verified = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&units).output().expect("it runs");
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(verified.status.success() && !said.contains("oca."), "{said}");
    let secure = Command::new("systemd-analyze")
        .args(["security", "--no-pager", "--offline=true", "--threshold", EXPOSURE_MAX])
        .arg(&units[0])
        .output()
        .expect("it runs");
    assert!(secure.status.success(), "{}", String::from_utf8_lossy(&secure.stdout));
}
