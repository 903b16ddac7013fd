//! HTTP/2 inside of TLS, by a client that writes every frame itself, and by curl.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use rustix::process::Signal;
use rustls::version::TLS13;

use crate::support::{
    Appliance, Authority, Client, Content, KeyKind, Origin, Setup,
    http2::{
        DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Http2, OK, PARTIAL, PING, RST_STREAM, Stream, frame, head,
    },
    missing_tool, run, wait_until,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// In place of lines for `[serve]`.
const ONE_WORKER: &str = "one worker";

struct Scene {
    authority: Authority,
    appliance: Appliance,
    content: Content,
    _origin: Origin,
}

fn scene(length: u64, serve: &str, tables: &str) -> Scene {
    let (authority, origin) = (Authority::new(), Origin::start());
    let content = origin.publish_new("/film.mp4", 1, length);
    let issued = authority.issue("a", &["a.test"], (KeyKind::Ecdsa, 2040));
    let protocols = "protocols = [\"h2\", \"http/1.1\"]";
    let setup = if serve == ONE_WORKER { Setup::new(&origin).workers(1) } else { Setup::new(&origin).serve(serve) };
    let appliance = setup.tls(&issued, &[], protocols).tables(tables).start();
    content.assert_is(0, &appliance.get("/film.mp4").body);
    Scene { authority, appliance, content, _origin: origin }
}

impl Scene {
    fn connect(&self, window: u32) -> Http2 {
        let config = self.authority.client(&[&TLS13], &["h2"]);
        let client = Client::connect_tls(self.appliance.https(), "a.test", &config).expect("a session");
        assert_eq!(client.session().alpn_protocol(), Some(&b"h2"[..]));
        Http2::begin(client, window)
    }

    fn closed(&self, reason: &str) -> f64 {
        self.appliance.metric("oca_connections_closed_total", &format!("reason=\"{reason}\""))
    }
}

#[test]
fn curl_gets_the_film_and_the_log_says_how() {
    if missing_tool("curl") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("access.log");
    let scene = scene(5_000_000, "", &format!("[log.access]\npath = {log:?}"));
    let address = scene.appliance.https();
    let (target, resolve) =
        (format!("https://a.test:{}/film.mp4", address.port()), format!("a.test:{}:127.0.0.1", address.port()));
    let root = scene.authority.root();
    let common = ["-sS", "--fail", "--cacert", root.to_str().expect("text"), "--resolve", &resolve];
    let body = folder.path().join("body");
    let body = body.to_str().expect("text");
    for (version, expected) in [("--http2", "2"), ("--http1.1", "1.1")] {
        let more = [version, "-r", "7-", "-o", body, "-w", "%{http_version} %{response_code}", &target];
        let said = run("curl", &[&common[..], &more].concat());
        assert_eq!(String::from_utf8_lossy(&said), format!("{expected} 206"));
        let got = std::fs::read(body).expect("written");
        assert_eq!(got.len(), 4_999_993);
        scene.content.assert_is(7, &got);
    }
    wait_until("it is logged", PATIENCE, || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.contains("\"protocol\":\"HTTP/2\"") && text.matches("\"protocol\":\"HTTP/1.1\"").count() >= 2
    });
}

#[test]
fn every_byte_of_many_streams_at_once() {
    let scene = scene(24 << 20, "", "");
    let mut client = scene.connect(1 << 20);
    let whole = client.ask("/film.mp4", &[]);
    let mut asked = BTreeMap::new();
    for n in 0..90_u64 {
        let (start, length) = (n * 250_000 + n, 1 + n * n * 60);
        let range = format!("bytes={start}-{}", start + length - 1);
        asked.insert(client.ask("/film.mp4", &[("range", &range)]), (start, length));
    }
    let mut allowed: BTreeMap<u32, usize> = client.streams.keys().map(|stream| (*stream, 1 << 20)).collect();
    while client.streams.values().any(|stream| !stream.ended) {
        let stream = client.step().expect("the connection goes on").stream;
        let Some(allowed) = allowed.get_mut(&stream) else { continue };
        if *allowed - client.streams[&stream].body.len() < 1 << 19 && !client.streams[&stream].ended {
            *allowed += 1 << 19;
            client.allow(stream, 1 << 19);
        }
    }
    assert_eq!(client.streams[&whole].status, Some(OK));
    assert_eq!(client.streams[&whole].body.len(), 24 << 20);
    scene.content.assert_is(0, &client.streams[&whole].body);
    for (stream, (start, length)) in asked {
        let stream = &client.streams[&stream];
        assert!(!stream.reset);
        assert_eq!((stream.status, stream.body.len() as u64), (Some(PARTIAL), length));
        scene.content.assert_is(start, &stream.body);
    }
    assert_eq!(scene.appliance.metric("oca_connection_errors_total", ""), 0.0);
}

#[test]
fn a_client_that_allows_nothing_out_is_cut() {
    let scene = scene(8 << 20, "stall_timeout = \"600 ms\"", "");
    // Its socket takes everything; its windows nothing, from the first byte on or in the middle.
    for window in [0, 100_000] {
        let mut client = scene.connect(window);
        let stream = client.ask("/film.mp4", &[]);
        let before = scene.closed("stalled");
        while client.streams[&stream].body.len() < window as usize {
            client.step().expect("that much is allowed");
        }
        wait_until("it is cut", PATIENCE, || scene.closed("stalled") > before);
        client.until_over();
        assert_eq!(client.streams[&stream].body.len(), window as usize);
        scene.content.assert_is(0, &client.streams[&stream].body);
    }
    // As is one whose socket takes nothing.
    let mut client = scene.connect(0x7fff_ffff);
    client.ask("/film.mp4", &[]);
    for _ in 0..40 {
        client.ask("/film.mp4", &[]);
    }
    wait_until("it is cut", PATIENCE, || scene.closed("stalled") == 3.0);
}

#[test]
fn waiting_for_an_origin_is_no_fault_of_the_client() {
    let (authority, origin) = (Authority::new(), Origin::start());
    let content = origin.publish_new("/film.mp4", 1, 900_000);
    origin.fail("/film.mp4", crate::support::Fault::Trickle(4000), 1);
    let issued = authority.issue("a", &["a.test"], (KeyKind::Ecdsa, 2040));
    let appliance = Setup::new(&origin)
        .serve(
            "stall_timeout = \"1 s\"\nidle_timeout = \"1 s\"\nsend_rate_min = \"200 Mbps\"\nsend_rate_window = \"1 s\"",
        )
        .tls(&issued, &[], "")
        .start();
    let scene = Scene { authority, appliance, content, _origin: origin };
    let mut client = scene.connect(1 << 20);
    let stream = client.ask("/film.mp4", &[]);
    let stream = client.finish(stream);
    assert_eq!(stream.body.len(), 900_000);
    content.assert_is(0, &stream.body);
}

#[test]
fn an_idle_connection_is_closed_and_a_drain_finishes_what_is_begun() {
    let scene = scene(1000, "idle_timeout = \"300 ms\"", "");
    let mut client = scene.connect(1 << 20);
    let stream = client.ask("/film.mp4", &[]);
    scene.content.assert_is(0, &client.finish(stream).body);
    // Talk between the two ends is no use of the connection.
    client.client.send(&frame(PING, 0, 0, &[7; 8]));
    client.until_over();
    assert_eq!(scene.closed("idle_timeout"), 1.0);

    let mut scene = self::scene(16 << 20, "", "");
    let mut client = scene.connect(1 << 20);
    let stream = client.ask("/film.mp4", &[]);
    while client.streams[&stream].body.is_empty() {
        client.step().expect("it begins");
    }
    scene.appliance.signal(Signal::TERM);
    let mut told = false;
    while !client.streams[&stream].ended {
        let frame = client.step().expect("what was begun is finished");
        told |= frame.kind == GOAWAY;
        if frame.kind == DATA && frame.stream == stream {
            client.allow(stream, frame.payload.len() as u32);
        }
    }
    scene.content.assert_is(0, &client.streams[&stream].body);
    assert_eq!(client.streams[&stream].body.len(), 16 << 20);
    assert!(client.until_over().is_some() || told, "GOAWAY says that no more is taken");
    assert!(scene.appliance.wait_for_exit(PATIENCE).success());
}

#[test]
fn a_large_stream_does_not_hold_up_other_connections() {
    const LARGE: u64 = 192 << 20;
    let scene = scene(LARGE, ONE_WORKER, "");
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut client = scene.connect(0x7fff_ffff);
        let stream = client.ask("/film.mp4", &[]);
        while client.streams[&stream].body.is_empty() {
            client.step().expect("it begins");
        }
        let over_now = &over;
        let large = scope.spawn(move || {
            let mut client = client;
            let body = client.finish(stream).body.len() as u64;
            over_now.store(true, Ordering::SeqCst);
            body
        });
        let mut small = scene.connect(1 << 20);
        let mut answered = 0;
        while !over.load(Ordering::SeqCst) {
            let stream = small.ask("/film.mp4", &[("range", "bytes=5000-5099")]);
            scene.content.assert_is(5000, &small.finish(stream).body);
            answered += 1;
        }
        assert_eq!(large.join().expect("it is whole"), LARGE);
        eprintln!("{answered} small responses during a large one");
        assert!(answered > 5, "{answered}");
    });
}

#[test]
fn heads_that_are_too_much_are_refused() {
    let scene = scene(1000, "header_count_max = 20", "");
    let mut client = scene.connect(1 << 20);
    let many: Vec<(String, &str)> = (0..30).map(|n| (format!("x-{n}"), "y")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let stream = client.ask("/film.mp4", &many);
    client.finish(stream);
    assert_eq!(scene.appliance.metric("oca_responses_total", "status=\"431\""), 1.0);
    // A thousand times the same long field: small on the wire, large when it is unpacked.
    let mut block = head("/film.mp4", &[]);
    block.extend([0x40, 1, b'x', 100]);
    block.extend([b'y'; 100]);
    block.extend([0xbe; 1000]);
    client.client.send(&frame(HEADERS, END_STREAM | END_HEADERS, client.next, &block));
    client.streams.insert(client.next, Stream::default());
    let bomb = client.next;
    client.next += 2;
    while !client.streams[&bomb].ended {
        if client.step().is_none() {
            break;
        }
    }
    assert!(!matches!(client.streams[&bomb].status, Some(OK | PARTIAL)), "it is not answered as if nothing were");
    // Viewers are served.
    let mut client = scene.connect(1 << 20);
    let stream = client.ask("/film.mp4", &[]);
    scene.content.assert_is(0, &client.finish(stream).body);
}

#[test]
fn a_client_that_resets_what_it_asks_is_sent_away() {
    let scene = scene(1000, "", "");
    let mut client = scene.connect(1 << 20);
    let mut flood = Vec::new();
    for n in 0..1000_u32 {
        let stream = 2 * n + 1;
        flood.extend(frame(HEADERS, END_STREAM | END_HEADERS, stream, &head("/film.mp4", &[])));
        flood.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
    }
    // It may be sent away before it has said all.
    drop(client.client.try_send(&flood));
    let code = client.until_over();
    assert!(matches!(code, None | Some(11)), "ENHANCE_YOUR_CALM, not {code:?}");
    wait_until("it is an error", PATIENCE, || scene.appliance.metric("oca_connection_errors_total", "") > 0.0);
    let answered = scene.appliance.metric("oca_responses_total", "");
    assert!(answered < 500.0, "{answered} of 1000");
    let mut client = scene.connect(1 << 20);
    let stream = client.ask("/film.mp4", &[]);
    scene.content.assert_is(0, &client.finish(stream).body);
}
