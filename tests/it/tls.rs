//! Delivery by TLS: the same bytes, sessions that end as they should, certificates that change.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use rustls::{
    HandshakeKind, ProtocolVersion,
    version::{TLS12, TLS13},
};

use crate::support::{
    Appliance, Authority, Client, Content, Issued, KeyKind, Origin, Over, Random, Setup, missing_tool, replace,
    request, run, wait_until,
};

const PATIENCE: Duration = Duration::from_secs(20);
const GOOD: (KeyKind, i32) = (KeyKind::Ecdsa, 2040);

/// An appliance at `a.test` with one film, which it holds.
struct Scene {
    authority: Authority,
    issued: Issued,
    appliance: Appliance,
    content: Content,
    _origin: Origin,
}

fn scene(length: u64, serve: &str, tls: &str) -> Scene {
    let (authority, origin) = (Authority::new(), Origin::start());
    let content = origin.publish_new("/film.mp4", 1, length);
    let issued = authority.issue("a", &["a.test"], GOOD);
    let appliance = Setup::new(&origin).serve(serve).tls(&issued, &[], tls).start();
    content.assert_is(0, &appliance.get("/film.mp4").body);
    Scene { authority, issued, appliance, content, _origin: origin }
}

impl Scene {
    fn connect(&self) -> Client {
        self.authority.connect(self.appliance.https(), "a.test")
    }

    fn handshakes(&self, outcome: &str) -> f64 {
        self.appliance.metric("oca_tls_handshakes_total", &format!("outcome=\"{outcome}\""))
    }

    fn closed(&self, reason: &str) -> f64 {
        self.appliance.metric("oca_connections_closed_total", &format!("reason=\"{reason}\""))
    }
}

#[test]
fn every_byte_is_the_source_s() {
    let scene = scene(48 << 20, "", "");
    let mut random = Random::new();
    for (version, code) in [(&TLS13, ProtocolVersion::TLSv1_3), (&TLS12, ProtocolVersion::TLSv1_2)] {
        let config = scene.authority.client(&[version], &["http/1.1"]);
        let mut client = Client::connect_tls(scene.appliance.https(), "a.test", &config).expect("a session");
        assert_eq!(client.session().protocol_version(), Some(code));
        assert_eq!(client.session().alpn_protocol(), Some(&b"http/1.1"[..]));
        scene.content.assert_is(0, &client.get("/film.mp4").body);
        // Around the sizes of records, of what is encrypted at once, and of windows.
        let edges = [1, 16 << 10, 64 << 10, 256 << 10, 2 << 20, 8 << 20];
        for (size, off) in edges.into_iter().flat_map(|size: u64| [(size, 0), (size, 1)]) {
            for length in [size.saturating_sub(1), size, size + 1].into_iter().filter(|length| *length > 0) {
                let start = random.number(0, (48 << 20) - length) / 4096 * 4096 + off;
                let end = (start + length).min(48 << 20);
                let response = client.range("/film.mp4", &format!("bytes={start}-{}", end - 1));
                assert_eq!((response.status(), response.body.len() as u64), (206, end - start));
                scene.content.assert_is(start, &response.body);
            }
        }
        let parts = client.range("/film.mp4", "bytes=5-70000,1000000-3000000").parts();
        scene.content.assert_is(5, &parts[0].body);
        scene.content.assert_is(1_000_000, &parts[1].body);
        assert_eq!(client.ask("HEAD", "/film.mp4", &[]).status(), 200);
        assert_eq!(client.range("/film.mp4", "bytes=99999999-").status(), 416);
    }
    assert!(scene.appliance.metric("oca_sent_bytes_total", "path=\"encrypted\"") >= f64::from(2 * (48 << 20)));
}

#[test]
fn requests_that_are_sent_ahead_are_answered_in_order() {
    let scene = scene(5_000_000, "", "");
    let mut client = scene.connect();
    let ranges = [0_u64, 1_000_000, 7, 4_000_000, 42];
    let ask = |start: &u64| request("GET", "/film.mp4", &[("Range", &format!("bytes={start}-{}", start + 299_999))]);
    client.send(&ranges.iter().flat_map(ask).collect::<Vec<u8>>());
    for start in ranges {
        scene.content.assert_is(start, &client.read_response("GET").expect("an answer").body);
    }
}

#[test]
fn curl_gets_the_film_by_each_version() {
    if missing_tool("curl") {
        return;
    }
    let scene = scene(3_000_000, "", "");
    let (root, address) = (scene.authority.root(), scene.appliance.https());
    let target = format!("https://a.test:{}/film.mp4", address.port());
    let resolve = format!("a.test:{}:127.0.0.1", address.port());
    for version in [&["--tlsv1.3"][..], &["--tlsv1.2", "--tls-max", "1.2"], &["--http1.1"]] {
        let common = ["-sS", "--fail", "--cacert", root.to_str().expect("text"), "--resolve", &resolve];
        let got = run("curl", &[&common[..], version, &["-r", "5-", &target]].concat());
        scene.content.assert_is(5, &got);
        assert_eq!(got.len(), 2_999_995, "{version:?}");
    }
}

/// What `openssl s_client` says of a connection that asks nothing; `arguments` come on top.
fn s_client(appliance: &Appliance, arguments: &[&str]) -> String {
    let address = appliance.https().to_string();
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &address])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    // Tickets of TLS 1.3 come after the handshake: a response behind them tells that they have come.
    let mut input = child.stdin.take().expect("piped");
    input.write_all(b"HEAD /film.mp4 HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n").expect("taken");
    let output = child.wait_with_output().expect("it ends");
    drop(input);
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn openssl_is_shown_the_certificate_of_the_name_it_asks_for() {
    if missing_tool("openssl") {
        return;
    }
    let (authority, origin) = (Authority::new(), Origin::start());
    origin.publish_new("/film.mp4", 1, 1000);
    let first = authority.issue("first", &["first.test"], GOOD);
    let ecdsa = authority.issue("ecdsa", &["b.test", "*.b.test"], GOOD);
    let rsa = authority.issue("rsa", &["b.test", "*.b.test"], (KeyKind::Rsa, 2040));
    let appliance = Setup::new(&origin).tls(&first, &[&ecdsa, &rsa], "").start();
    for version in ["-tls1_2", "-tls1_3"] {
        let said = |host: &str, more: &[&str]| {
            let name = ["-ign_eof", version, "-servername", host, "-verify_hostname", host, "-CAfile"];
            s_client(&appliance, &[&name[..], &[authority.root().to_str().expect("text")], more].concat())
        };
        for host in ["first.test", "b.test", "x.b.test"] {
            let text = said(host, &[]);
            assert!(text.contains("Verify return code: 0 (ok)") && text.contains("HTTP/1.1 200"), "{host}: {text}");
        }
        assert!(said("x.b.test", &[]).contains("Peer signature type: ECDSA"));
        let text = said("x.b.test", &["-sigalgs", "RSA-PSS+SHA256:RSA+SHA256"]);
        assert!(text.contains("Peer signature type: RSA-PSS"), "{text}");
        let other = said("unknown.test", &[]);
        assert!(other.contains("hostname mismatch") && other.contains("CN = first"), "{other}");
    }
    for old in ["-tls1", "-tls1_1"] {
        let text = s_client(&appliance, &["-ign_eof", old, "-cipher", "DEFAULT:@SECLEVEL=0"]);
        assert!(text.contains(" alert ") && !text.contains("HTTP/1.1"), "{old}: {text}");
    }
}

#[test]
fn openssl_resumes_its_session_and_not_under_another_name() {
    if missing_tool("openssl") {
        return;
    }
    let (authority, origin) = (Authority::new(), Origin::start());
    origin.publish_new("/film.mp4", 1, 1000);
    // One certificate for both names: nothing but the name tells the sessions apart.
    let issued = authority.issue("both", &["a.test", "b.test"], GOOD);
    let appliance = Setup::new(&origin).tls(&issued, &[], "").start();
    let ticket = authority.folder().join("ticket");
    let ticket = ticket.to_str().expect("text");
    for version in ["-tls1_2", "-tls1_3"] {
        let said = |host: &str, more: &[&str]| {
            s_client(&appliance, &[&["-ign_eof", version, "-servername", host][..], more].concat())
        };
        assert!(said("a.test", &["-sess_out", ticket]).contains("New, TLS"));
        let again = said("a.test", &["-sess_in", ticket]);
        assert!(again.contains("Reused, TLS"), "{version}: {again}");
        let other = said("b.test", &["-sess_in", ticket]);
        assert!(other.contains("New, TLS") && !other.contains("Reused"), "{version}: {other}");
    }
    assert_eq!(appliance.metric("oca_tls_handshakes_total", "outcome=\"resumed\""), 2.0);
}

#[test]
fn certificates_change_under_load_and_nobody_notices() {
    const ROTATIONS: u64 = 100;
    let scene = scene(200_000, "", "");
    let address = scene.appliance.https();
    let (over, handshakes) = (AtomicBool::new(false), AtomicU64::new(0));
    // New sessions only: each has to be shown a certificate and to check the signature of its key.
    let config = || {
        let config = scene.authority.client(&[&TLS13], &["http/1.1"]);
        let mut config = Arc::unwrap_or_clone(config);
        config.resumption = rustls::client::Resumption::disabled();
        Arc::new(config)
    };
    let serials = thread::scope(|scope| {
        let load = || {
            let config = config();
            let mut serials = std::collections::BTreeSet::new();
            while !over.load(Ordering::Relaxed) {
                let mut client = Client::connect_tls(address, "a.test", &config).expect("no handshake fails");
                serials.insert(client.session().peer_certificates().expect("shown")[0].to_vec());
                for _ in 0..3 {
                    scene.content.assert_is(0, &client.get("/film.mp4").body);
                }
                handshakes.fetch_add(1, Ordering::Relaxed);
            }
            serials
        };
        let ended = Over(&over);
        let running = [scope.spawn(load), scope.spawn(load)];
        let mut old = scene.connect();
        // Between two requests it may wait for longer than for its first.
        scene.content.assert_is(0, &old.get("/film.mp4").body);
        for rotation in 1..=ROTATIONS {
            scene.authority.issue("a", &["a.test"], (KeyKind::Ecdsa, 2040));
            if rotation % 2 == 0 {
                scene.appliance.signal(Signal::HUP);
            }
            let renewed = || scene.appliance.metric("oca_tls_renewals_total", "outcome=\"used\"");
            wait_until("it is in use", PATIENCE, || renewed() >= rotation as f64);
        }
        scene.content.assert_is(0, &old.get("/film.mp4").body);
        let before = handshakes.load(Ordering::Relaxed);
        wait_until("the last is seen", PATIENCE, || handshakes.load(Ordering::Relaxed) > before + 4);
        drop(ended);
        running.map(|running| running.join().expect("every request was answered"))
    });
    assert!(serials.iter().all(|serials| serials.len() > 10), "they saw few of the certificates");
    assert_eq!(scene.handshakes("failed") + scene.handshakes("cut"), 0.0);
    eprintln!("{ROTATIONS} rotations, {} handshakes", handshakes.load(Ordering::Relaxed));
}

#[test]
fn a_bad_pair_is_refused_and_the_one_in_use_stays() {
    let scene = scene(100_000, "", "");
    let refused = || scene.appliance.metric("oca_tls_renewals_total", "outcome=\"refused\"");
    let shown = || scene.connect().session().peer_certificates().expect("shown")[0].clone();
    let (before, good) = (shown(), fs::read_to_string(&scene.issued.certificate).expect("there"));
    let expiry = scene.appliance.metric("oca_tls_certificate_expiry_seconds", "");
    let other = scene.authority.issue("other", &["a.test"], GOOD);
    let old = scene.authority.issue("old", &["a.test"], (KeyKind::Ecdsa, 2021));
    let read = |path: &Path| fs::read_to_string(path).expect("there");
    for (number, (text, word)) in [
        (read(&other.certificate), "is not the key of"),
        ("nonsense".into(), "holds no certificate"),
        (read(&old.certificate), "expired on"),
    ]
    .into_iter()
    .enumerate()
    {
        replace(&scene.issued.certificate, &text);
        wait_until("it is refused", PATIENCE, || refused() > number as f64);
        assert_eq!(shown(), before);
        assert!(scene.appliance.log().contains(word), "{word}: {}", scene.appliance.log());
    }
    fs::remove_file(&scene.issued.certificate).expect("removed");
    scene.appliance.signal(Signal::HUP);
    wait_until("it is missed", PATIENCE, || refused() >= 4.0);
    assert_eq!(shown(), before);
    assert_eq!(scene.appliance.metric("oca_tls_renewals_total", "outcome=\"used\""), 0.0);
    assert_eq!(scene.appliance.metric("oca_tls_certificate_expiry_seconds", ""), expiry);
    // As it was: nothing to take over. Then a good one.
    replace(&scene.issued.certificate, &good);
    scene.authority.issue("a", &["a.test"], (KeyKind::Rsa, 2041));
    wait_until("it is in use", PATIENCE, || shown() != before);
    wait_until("so it says", PATIENCE, || {
        scene.appliance.metric("oca_tls_certificate_expiry_seconds", "") > expiry + 360.0 * 86_400.0
    });
}

#[test]
fn a_bad_pair_is_named_before_anything_starts() {
    let authority = Authority::new();
    let (issued, other) = (authority.issue("a", &["a.test"], GOOD), authority.issue("b", &["b.test"], GOOD));
    let volume = authority.folder().join("volume");
    let config = authority.folder().join("oca.toml");
    fs::write(
        &config,
        format!(
            "[serve]\nhttps = [\"127.0.0.1:0\"]\n[serve.tls]\ncertificate = {:?}\nkey = {:?}\n[[storage.volume]]\npath = {volume:?}\n\
             capacity = \"64 MiB\"\n[[fill.source]]\nkind = \"origin\"\nurl = \"http://127.0.0.1:9/\"\n",
            issued.certificate, other.key
        ),
    )
    .expect("written");
    for command in [&["check-config"][..], &["serve", "--config"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_oca")).args(command).arg(&config).output().expect("it runs");
        let shown = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{shown}");
        assert!(
            shown.contains("is not the key of the first certificate in") && shown.contains("oca.toml:5:"),
            "{shown}"
        );
    }
    assert!(!volume.exists());
}

#[test]
fn plaintext_gets_an_answer_that_it_can_read() {
    let scene = scene(1000, "", "");
    let mut client = Client::connect(scene.appliance.https());
    let response = client.get("/film.mp4");
    assert_eq!(response.status(), 400);
    assert!(client.until_closed().is_empty());
    wait_until("it is counted", PATIENCE, || scene.handshakes("plaintext") == 1.0);

    // What is neither gets an alert.
    let mut client = Client::connect(scene.appliance.https());
    client.send(&[0; 100]);
    let alert = client.until_closed();
    assert_eq!(alert.first(), Some(&21), "{alert:?}");
    wait_until("it is counted", PATIENCE, || scene.handshakes("failed") == 1.0);
    scene.content.assert_is(0, &scene.connect().get("/film.mp4").body);
}

#[test]
fn a_handshake_that_stalls_is_cut() {
    let scene = scene(1000, "", "handshake_timeout = \"1 s\"");
    for begin in [&[][..], &[0x16], &[0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc, 3, 3]] {
        let began = Instant::now();
        let mut client = Client::connect(scene.appliance.https());
        client.send(begin);
        client.until_closed();
        assert!(began.elapsed() < PATIENCE, "{begin:?}");
    }
    wait_until("they are counted", PATIENCE, || scene.handshakes("cut") == 3.0);
    assert_eq!(scene.closed("handshake_timeout"), 3.0);
    // Who is through is not held to it.
    let mut client = scene.connect();
    scene.content.assert_is(0, &client.get("/film.mp4").body);
    drop(client);
    assert_eq!(scene.closed("handshake_timeout"), 3.0);
}

#[test]
fn the_oldest_handshake_gives_way() {
    let scene = scene(1000, "", "handshakes_max = 8");
    // Two workers, four each: however the kernel spreads them, some are too many.
    let mut silent: Vec<TcpStream> =
        (0..40).map(|_| TcpStream::connect(scene.appliance.https()).expect("it listens")).collect();
    wait_until("some are cut", PATIENCE, || scene.closed("handshakes_max") >= 32.0);
    // Viewers get in all the same.
    for _ in 0..20 {
        scene.content.assert_is(0, &scene.connect().get("/film.mp4").body);
    }
    // Whoever came last is still there or has given way to those; the first has gone.
    assert_eq!(silent[0].read(&mut [0; 8]).expect("closed"), 0);
    drop(silent);
}

#[test]
fn a_client_that_closes_its_half_gets_its_answer() {
    let scene = scene(8 << 20, "", "");
    for fields in [&[("Connection", "close")][..], &[]] {
        for _ in 0..5 {
            let mut client = scene.connect();
            client.send(&request("GET", "/film.mp4", fields));
            client.finish();
            let response = client.read_response("GET").expect("an answer");
            scene.content.assert_is(0, &response.body);
            // The end is said inside of TLS: this client takes a bare FIN for a fault.
            let cut = client.take(1).expect_err("that was all");
            assert!(cut.received.is_empty() && !cut.reset);
        }
    }
}

#[test]
fn who_waits_costs_no_time() {
    let scene = scene(64 << 20, "", "");
    let silent = Client::connect(scene.appliance.https());
    let mut idle = scene.connect();
    scene.content.assert_is(0, &idle.range("/film.mp4", "bytes=0-99").body);
    let mut blocked = scene.connect();
    blocked.send(&request("GET", "/film.mp4", &[]));
    blocked.read_head().expect("it begins");
    let pass = |seconds| {
        let began = Instant::now();
        wait_until("time passes", PATIENCE, || began.elapsed() >= Duration::from_secs(seconds));
    };
    // Until its buffers are full.
    pass(1);
    let before = scene.appliance.cpu_time();
    pass(2);
    let spent = scene.appliance.cpu_time() - before;
    eprintln!("{spent:?} of two seconds");
    // A worker that asks its sockets again and again would have taken all of them.
    assert!(spent < Duration::from_millis(400), "{spent:?}");
    drop((silent, idle, blocked));
}

#[test]
fn keys_that_change_in_the_middle_change_no_byte() {
    let scene = scene(24 << 20, "", "");
    let mut client = scene.connect();
    for n in 0..8_u64 {
        client.refresh_keys();
        let start = n * 1_000_000;
        let range = format!("bytes={start}-{}", start + 15_999_999);
        client.send(&request("GET", "/film.mp4", &[("Range", &range)]));
        let head = client.read_head().expect("it begins");
        // With the response under way.
        client.refresh_keys();
        scene.content.assert_is(start, &client.read_body(&head, "GET").expect("whole"));
    }
}

#[test]
fn clients_that_take_nothing_or_little_are_cut() {
    let scene = scene(64 << 20, "stall_timeout = \"2 s\"", "");
    let mut client = scene.connect();
    client.send(&request("GET", "/film.mp4", &[]));
    let head = client.read_head().expect("it begins");
    wait_until("it is cut", PATIENCE, || scene.closed("stalled") == 1.0);
    let cut = client.read_body(&head, "GET").expect_err("what was not taken is lost");
    scene.content.assert_is(0, &cut.received);

    // Whoever fetches it first has to be through within a window.
    let scene = self::scene(16 << 20, "send_rate_min = \"1 Tbps\"\nsend_rate_window = \"1 s\"", "");
    let mut client = scene.connect();
    client.send(&request("GET", "/film.mp4", &[]));
    wait_until("it is cut", PATIENCE, || scene.closed("too_slow") == 1.0);
}

#[test]
fn idle_clients_are_let_go_and_a_drain_finishes_what_is_begun() {
    let scene = scene(1000, "idle_timeout = \"300 ms\"", "");
    let mut idle = scene.connect();
    scene.content.assert_is(0, &idle.get("/film.mp4").body);
    // As TLS has it: a bare FIN would be a fault to this client.
    assert!(!idle.take(1).expect_err("closed").reset);
    assert_eq!(scene.closed("idle_timeout"), 1.0);

    let mut scene = self::scene(32 << 20, "", "");
    let mut client = scene.connect();
    client.send(&request("GET", "/film.mp4", &[]));
    let head = client.read_head().expect("it begins");
    let mut handshaking = Client::connect(scene.appliance.https());
    scene.appliance.signal(Signal::TERM);
    assert!(handshaking.until_closed().is_empty(), "who has asked nothing is sent away");
    scene.content.assert_is(0, &client.read_body(&head, "GET").expect("what was begun is finished"));
    drop(client);
    assert!(scene.appliance.wait_for_exit(PATIENCE).success());
}

#[test]
fn a_slow_client_costs_little_memory() {
    const SLOW: usize = 300;
    const COST_MAX: u64 = 72 << 10;
    let scene = scene(16 << 20, "stall_timeout = \"1 min\"", "");
    let config = scene.authority.client(&[&TLS13], &["http/1.1"]);
    let before = scene.appliance.resident_bytes();
    let slow: Vec<Client> = (0..SLOW)
        .map(|_| {
            let mut client = Client::connect_tls(scene.appliance.https(), "a.test", &config).expect("a session");
            client.send(&request("GET", "/film.mp4", &[]));
            client.read_head().expect("it begins");
            client
        })
        .collect();
    let each = scene.appliance.resident_bytes().saturating_sub(before) / SLOW as u64;
    eprintln!("memory: {each} bytes for each of {SLOW} clients that take nothing");
    assert!(each < COST_MAX, "{each}");
    drop(slow);
}

#[test]
fn an_idle_session_costs_little_memory() {
    const IDLE: usize = 1000;
    const COST_MAX: u64 = 24 << 10;
    let (_, hard) = rlimit::Resource::NOFILE.get().expect("the kernel says so");
    rlimit::Resource::NOFILE.set(hard, hard).expect("up to the hard limit is ours");
    let scene = scene(4 << 20, "", "");
    let config = scene.authority.client(&[&TLS13], &["http/1.1"]);
    let connect = || {
        let mut client = Client::connect_tls(scene.appliance.https(), "a.test", &config).expect("a session");
        scene.content.assert_is(0, &client.range("/film.mp4", "bytes=0-299999").body);
        client
    };
    // The allocator's own stock is filled by these.
    drop((0..50).map(|_| connect()).collect::<Vec<_>>());
    let before = scene.appliance.resident_bytes();
    let idle: Vec<Client> = (0..IDLE).map(|_| connect()).collect();
    let each = scene.appliance.resident_bytes().saturating_sub(before) / IDLE as u64;
    eprintln!("memory: {each} bytes for each of {IDLE} idle sessions");
    assert!(each < COST_MAX, "{each}");
    assert!(idle.iter().skip(1).any(|client| client.session().handshake_kind() == Some(HandshakeKind::Resumed)));
}
