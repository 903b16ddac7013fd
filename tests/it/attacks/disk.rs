//! Files that change under the server.

use std::{fs, os::unix::fs::symlink, path::PathBuf};

use rustls::version::{TLS12, TLS13};

use super::PATIENCE;
use crate::support::{Appliance, Authority, Client, Content, KeyKind, Origin, Setup, request, run, wait_until};

const LENGTH: u64 = 16 << 20;

struct Victim {
    authority: Authority,
    appliance: Appliance,
    content: Content,
    _origin: Origin,
}

fn victim() -> Victim {
    let (authority, origin) = (Authority::new(), Origin::start());
    let content = origin.publish_new("/film.mp4", 1, LENGTH);
    let issued = authority.issue("a", &["a.test"], (KeyKind::Ecdsa, 2040));
    let appliance = Setup::new(&origin).tls(&issued, &[], "").start();
    content.assert_is(0, &appliance.get("/film.mp4").body);
    Victim { authority, appliance, content, _origin: origin }
}

impl Victim {
    /// The largest: the film.
    fn file(&self) -> PathBuf {
        let files = walkdir::WalkDir::new(self.appliance.volume()).into_iter().filter_map(Result::ok);
        let largest = files
            .filter(|entry| entry.file_type().is_file())
            .max_by_key(|entry| entry.metadata().expect("it is there").len());
        largest.expect("the film is stored").into_path()
    }

    /// Cuts the film's file short while `client` is being sent it, and sees what it and those after it get.
    fn cut_under(&self, mut client: Client) {
        client.send(&request("GET", "/film.mp4", &[]));
        let head = client.read_head().expect("it begins");
        let file = fs::File::options().write(true).open(self.file()).expect("it is there");
        file.set_len(1 << 20).expect("cut short");
        match client.read_body(&head, "GET") {
            // All of it had left before, or another copy was fetched.
            Ok(body) => self.content.assert_is(0, &body),
            Err(cut) => self.content.assert_is(0, &cut.received),
        }
        assert_eq!(self.appliance.admin("/live").status(), 200, "the process lives");
        for _ in 0..3 {
            match self.appliance.connect().try_ask("GET", "/film.mp4", &[("Range", "bytes=9000000-9000999")]) {
                Ok(response) if response.status() == 206 => self.content.assert_is(9_000_000, &response.body),
                Ok(response) => assert!(response.status() >= 500, "{}", response.status()),
                Err(cut) => self.content.assert_is(9_000_000, &cut.received),
            }
        }
        assert_eq!(self.appliance.metric("oca_panics_total", ""), 0.0);
    }
}

/// SIGBUS by truncation (the hazard of every server that maps what it serves): somebody cuts a stored file short, and reading behind its
/// new end ends the process. The response may end short or fail; the process must live, and no byte be wrong.
#[test]
fn truncation_of_a_file_that_is_served() {
    let victim = victim();
    victim.cut_under(victim.appliance.connect());
}

/// As above by TLS, where the bytes are read in user space.
#[test]
fn truncation_of_a_file_that_is_encrypted() {
    for version in [&TLS12, &TLS13] {
        let victim = victim();
        let config = victim.authority.client(&[version], &[]);
        let client = Client::connect_tls(victim.appliance.https(), "a.test", &config).expect("a session");
        victim.cut_under(client);
        // Sessions that begin afterwards are none the worse.
        let mut client = Client::connect_tls(victim.appliance.https(), "a.test", &config).expect("a session");
        if let Ok(response) = client.try_ask("GET", "/film.mp4", &[("Range", "bytes=12000000-12999999")])
            && response.status() == 206
        {
            victim.content.assert_is(12_000_000, &response.body);
        }
    }
}

/// As above, cut between the look at whether bytes are in memory and their being read: clients that take nothing stop the server in the
/// middle of what it has found there. Reading on raises SIGBUS for real, which the handler has to survive; the log shows that it did. Only
/// those who are sent the film may be cut: who is sent another one at that moment gets all of it.
#[test]
fn truncation_between_the_look_and_the_reading() {
    const CLIENTS: u64 = 12;
    let (authority, origin) = (Authority::new(), Origin::start());
    let content = origin.publish_new("/film.mp4", 1, LENGTH);
    let other = origin.publish_new("/other.mp4", 2, LENGTH / 2);
    let issued = authority.issue("a", &["a.test"], (KeyKind::Ecdsa, 2040));
    let setup = Setup::new(&origin).workers(1).tls(&issued, &[], "").tables("[log]\nfilter = \"debug\"");
    let appliance = setup.start();
    content.assert_is(0, &appliance.get("/film.mp4").body);
    other.assert_is(0, &appliance.get("/other.mp4").body);
    let victim = Victim { authority, appliance, content, _origin: origin };
    let config = victim.authority.client(&[&TLS13], &["http/1.1"]);
    let begun = |target: &str, from: u64| {
        let mut client = Client::connect_tls(victim.appliance.https(), "a.test", &config).expect("a session");
        client.send(&request("GET", target, &[("Range", &format!("bytes={from}-"))]));
        let head = client.read_head().expect("it begins");
        (client, head, from)
    };
    let cut: Vec<_> = (0..CLIENTS).map(|n| begun("/film.mp4", (1 << 20) + n * 300_001)).collect();
    let whole: Vec<_> = (0..4).map(|n| begun("/other.mp4", n * 10_001)).collect();
    let sent = || victim.appliance.metric("oca_sent_bytes_total", "path=\"encrypted\"");
    let mut before = -1.0;
    wait_until("all sockets are full", PATIENCE, || {
        let now = sent();
        std::mem::replace(&mut before, now) == now
    });
    let file = fs::File::options().write(true).open(victim.file()).expect("it is there");
    file.set_len(1 << 20).expect("cut short");
    let mut broken = 0;
    for (mut client, head, from) in cut {
        let read = client.read_body(&head, "GET");
        broken += u64::from(read.is_err());
        victim.content.assert_is(from, &read.unwrap_or_else(|cut| cut.received));
    }
    for (mut client, head, from) in whole {
        other.assert_is(from, &client.read_body(&head, "GET").expect("it has lost nothing"));
    }
    assert!(broken > 0, "no response was cut");
    let log = victim.appliance.whole_log();
    assert!(log.contains("pages of a file are gone, and were in what was to be sent"), "no page was missed");
    assert_eq!(victim.appliance.admin("/live").status(), 200, "the process lives");
}

/// A FIFO, a link or a folder in place of a stored file (CWE-59, CWE-363): opening a FIFO waits for ever, a link leads anywhere. After a
/// restart neither may hang the server nor be served.
#[test]
fn fifo_and_link_in_the_volume() {
    let mut victim = victim();
    let elsewhere = tempfile::tempdir().expect("a folder");
    let secret = elsewhere.path().join("secret");
    fs::write(&secret, vec![b's'; usize::try_from(LENGTH).expect("it fits")]).expect("a file");
    let file = victim.file();
    for kind in ["fifo", "link", "folder"] {
        victim.appliance.stop();
        if file.is_dir() {
            fs::remove_dir(&file).expect("it was ours");
        } else {
            // It may have been given up already.
            drop(fs::remove_file(&file));
        }
        match kind {
            "fifo" => drop(run("mkfifo", &[file.to_str().expect("text")])),
            "link" => symlink(&secret, &file).expect("a link"),
            _ => fs::create_dir(&file).expect("a folder"),
        }
        victim.appliance.start_again();
        match victim.appliance.connect().try_ask("GET", "/film.mp4", &[("Range", "bytes=5000000-5000999")]) {
            Ok(response) if response.status() == 206 => victim.content.assert_is(5_000_000, &response.body),
            Ok(response) => assert!(response.status() >= 500, "{kind}: {}", response.status()),
            Err(cut) => victim.content.assert_is(5_000_000, &cut.received),
        }
        assert_eq!(victim.appliance.admin("/live").status(), 200, "{kind}");
    }
}
