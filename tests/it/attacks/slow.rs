//! Whoever gives as little as possible for as long as possible; `slow` and `tls` beside this folder hold what takes as little.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use super::PATIENCE;
use crate::support::{Appliance, Authority, Client, KeyKind, Origin, Setup, request, wait_until};

/// Slow POST (R-U-Dead-Yet, 2010): a body is announced and comes byte by byte, and a worker waits for it. No body is waited for: the
/// refusal comes before it, and the connection ends though bytes go on coming.
#[test]
fn slow_post() {
    let origin = Origin::start();
    let appliance = Setup::new(&origin).serve("linger_timeout = \"300 ms\"").start();
    let mut client = appliance.connect();
    client.send(b"POST /film.mp4 HTTP/1.1\r\nHost: t\r\nContent-Length: 1000000\r\n\r\n");
    let head = client.read_head().expect("an answer before the body");
    assert!(matches!(head.status, 400 | 405), "{}", head.status);
    wait_until("it is cut though bytes come", PATIENCE, || client.try_send(b"x").is_err());
    wait_until("it is forgotten", PATIENCE, || appliance.metric("oca_connections", "") == 0.0);
}

/// Slowloris (2009) by a crowd: every connection that is allowed has half a head. They must give way in time, and viewers get in.
#[test]
fn slowloris_with_every_connection() {
    let origin = Origin::start();
    origin.publish_new("/film.mp4", 1, 1000);
    let appliance = Setup::new(&origin).serve("header_timeout = \"600 ms\"\nconnections_max = 40").start();
    let mut crowd: Vec<Client> = (0..60)
        .map(|_| {
            let mut client = appliance.connect();
            // It may be one too many.
            drop(client.try_send(b"GET /film.mp4 HTTP/1.1\r\nX-a: "));
            client
        })
        .collect();
    wait_until("there is no room", PATIENCE, || appliance.metric("oca_connections", "") >= 40.0);
    wait_until("viewers get in", PATIENCE, || {
        for client in &mut crowd {
            drop(client.try_send(b"b"));
        }
        let mut viewer = appliance.connect();
        drop(viewer.try_send(&request("GET", "/film.mp4", &[])));
        viewer.read_response("GET").is_ok_and(|response| response.status() == 200)
    });
    assert!(appliance.metric("oca_connections_closed_total", "reason=\"header_timeout\"") > 0.0);
}

/// Slowloris, again: a byte is a packet, and a packet a turn of the worker, of which a crowd can send tens of thousands a second. A head that comes so is looked at
/// once a second whatever comes of it, and answered when it is whole, by TLS too; what follows on its connection is read as it comes.
#[test]
fn slowloris_wakes_nobody_by_each_byte() {
    const BYTES: usize = 500;
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 1000);
    let authority = Authority::new();
    let issued = authority.issue("a", &["a.test"], (KeyKind::Ecdsa, 2040));
    let appliance = Setup::new(&origin).workers(1).tls(&issued, &[], "").start();
    let clients = [appliance.connect(), authority.connect(appliance.https(), "a.test")];
    for mut client in clients {
        content.assert_is(0, &client.get("/film.mp4").body);
        let padding = "x".repeat(BYTES);
        let head = format!("GET /film.mp4 HTTP/1.1\r\nHost: a.test\r\nX-a: {padding}\r\n\r\n");
        let (begun, before) = (Instant::now(), sleeps_of_worker(&appliance));
        for byte in head.bytes() {
            client.send(&[byte]);
            // So that the worker would sleep between two.
            thread::park_timeout(Duration::from_millis(2));
        }
        let (sleeps, ticks) = (sleeps_of_worker(&appliance) - before, begun.elapsed().as_millis() / 10);
        content.assert_is(0, &client.read_response("GET").expect("a response").body);
        assert!(sleeps < BYTES as u128 / 2 + ticks, "{sleeps} sleeps and {ticks} ticks for {} bytes", head.len());
        for _ in 0..3 {
            content.assert_is(0, &client.get("/film.mp4").body);
        }
    }
}

/// Slow handshake, again: the same of a handshake whose bytes come one by one. It goes on when it is whole.
#[test]
fn a_slow_handshake_wakes_nobody_by_each_byte() {
    const BYTES: usize = 400;
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 1000);
    let authority = Authority::new();
    let issued = authority.issue("a", &["a.test"], (KeyKind::Ecdsa, 2040));
    let appliance = Setup::new(&origin).workers(1).tls(&issued, &[], "handshake_timeout = \"60 s\"").start();
    let name = "a.test".try_into().expect("a name");
    let mut session =
        rustls::ClientConnection::new(authority.client(rustls::ALL_VERSIONS, &[]), name).expect("a session");
    let mut hello = Vec::new();
    while session.wants_write() {
        session.write_tls(&mut hello).expect("into memory");
    }
    let mut stream = TcpStream::connect(appliance.https()).expect("it listens");
    stream.set_nodelay(true).expect("no delay");
    let (slow, rest) = hello.split_at(hello.len().min(BYTES) - 1);
    let (begun, before) = (Instant::now(), sleeps_of_worker(&appliance));
    for byte in slow {
        stream.write_all(&[*byte]).expect("it is read");
        // So that the worker would sleep between two.
        thread::park_timeout(Duration::from_millis(2));
    }
    let (sleeps, ticks) = (sleeps_of_worker(&appliance) - before, begun.elapsed().as_millis() / 10);
    assert!(sleeps < slow.len() as u128 / 2 + ticks, "{sleeps} sleeps and {ticks} ticks for {} bytes", slow.len());
    stream.write_all(rest).expect("it is read");
    let mut tls = rustls::StreamOwned::new(session, stream);
    tls.write_all(b"GET /film.mp4 HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").expect("a session");
    let mut response = Vec::new();
    drop(tls.read_to_end(&mut response));
    content.assert_is(0, &response[response.len() - 1000..]);
}

/// How often the worker had nothing to do.
fn sleeps_of_worker(appliance: &Appliance) -> u128 {
    let tasks = fs::read_dir(format!("/proc/{}/task", appliance.pid().as_raw_nonzero())).expect("it runs");
    let text = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
    let worker = tasks
        .filter_map(Result::ok)
        .find(|task| text(task.path().join("comm")).trim() == "oca-worker-0")
        .expect("there is one");
    let status = text(worker.path().join("status"));
    let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).expect("it is told");
    count.trim().parse().expect("a number")
}
