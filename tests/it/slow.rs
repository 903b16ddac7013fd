//! Clients that are slow or rude, and many of them.

use std::{
    io::Write,
    net::TcpStream,
    time::{Duration, Instant},
};

use crate::support::{Appliance, Client, Origin, Setup, request, wait_until};

const PATIENCE: Duration = Duration::from_secs(20);

fn open_connections(appliance: &Appliance) -> f64 {
    appliance.metric("oca_connections", "")
}

#[test]
fn a_head_that_does_not_end_is_cut_however_it_trickles() {
    let origin = Origin::start();
    let appliance = Setup::new(&origin).serve("header_timeout = \"400 ms\"").start();
    for begin in ["", "GET /film.mp4 HT", "GET /film.mp4 HTTP/1.1\r\nHost: t\r\n"] {
        let began = Instant::now();
        let mut client = appliance.connect();
        client.send(begin.as_bytes());
        let last = client.until_closed();
        assert!(last.is_empty() || last.starts_with(b"HTTP/1.1 408"), "{:?}", String::from_utf8_lossy(&last));
        assert!(began.elapsed() < Duration::from_secs(5), "{begin:?}: {:?}", began.elapsed());
    }
    let mut client = appliance.connect();
    client.send(b"GET /film.mp4 HTTP/1.1\r\n");
    wait_until("it is cut though bytes come", Duration::from_secs(5), || client.try_send(b"X: y\r\n").is_err());
}

#[test]
fn an_idle_connection_is_closed() {
    let origin = Origin::start();
    origin.publish_new("/film.mp4", 1, 1000);
    let appliance = Setup::new(&origin).serve("idle_timeout = \"300 ms\"").start();
    let mut client = appliance.connect();
    assert_eq!(client.get("/film.mp4").status(), 200);
    let began = Instant::now();
    assert!(client.until_closed().is_empty());
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_client_that_takes_nothing_is_cut() {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 64 << 20);
    let appliance = Setup::new(&origin).serve("stall_timeout = \"500 ms\"").start();
    let mut client = appliance.connect();
    client.send(&request("GET", "/film.mp4", &[]));
    let head = client.read_head().expect("it begins");
    wait_until("it is cut", PATIENCE, || open_connections(&appliance) == 0.0);
    let cut = client.read_body(&head, "GET").expect_err("what was not taken is lost");
    content.assert_is(0, &cut.received);
}

#[test]
fn a_client_that_takes_too_little_is_cut() {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 64 << 20);
    let appliance = Setup::new(&origin)
        .serve("send_rate_min = \"200 Mbps\"\nsend_rate_window = \"1 s\"\nstall_timeout = \"1 s\"")
        .start();
    let mut client = appliance.connect();
    client.send(&request("GET", "/film.mp4", &[]));
    client.read_head().expect("it begins");
    let mut received = Vec::new();
    wait_until("it is cut", PATIENCE, || match client.take(2000) {
        Ok(bytes) => {
            received.extend(bytes);
            open_connections(&appliance) == 0.0
        }
        Err(cut) => {
            received.extend(cut.received);
            true
        }
    });
    content.assert_is(0, &received);
}

#[test]
fn a_client_that_waits_for_a_slow_origin_is_not_taken_for_a_slow_client() {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 900_000);
    origin.fail("/film.mp4", crate::support::Fault::Trickle(4000), 1);
    let appliance = Setup::new(&origin)
        .serve("send_rate_min = \"200 Mbps\"\nsend_rate_window = \"1 s\"\nstall_timeout = \"1 s\"")
        .start();
    let response = appliance.get("/film.mp4");
    content.assert_is(0, &response.body);
    assert_eq!(response.body.len(), 900_000);
}

#[test]
fn one_connection_too_many_gets_a_fast_503() {
    let origin = Origin::start();
    origin.publish_new("/film.mp4", 1, 1000);
    let appliance = Setup::new(&origin).serve("connections_max = 10\nconnections_percent = 100").start();
    let mut held: Vec<Client> = (0..10).map(|_| appliance.connect()).collect();
    for client in &mut held {
        assert_eq!(client.get("/film.mp4").status(), 200);
    }
    for _ in 0..5 {
        let mut refused = appliance.connect();
        // It may be closed before it is read.
        drop(refused.try_send(&request("GET", "/film.mp4", &[])));
        match refused.read_response("GET") {
            Ok(response) => {
                assert_eq!(response.status(), 503);
                assert!(response.field("retry-after").is_some_and(|after| after.parse::<u32>().is_ok()));
            }
            Err(cut) => assert!(cut.reset, "closed without a word"),
        }
    }
    assert_eq!(held[0].get("/film.mp4").status(), 200, "who was there stays");
    assert_eq!(appliance.admin("/live").status(), 200, "operators get in");
    held.clear();
    wait_until("there is room again", PATIENCE, || {
        appliance.connect().try_ask("GET", "/film.mp4", &[]).is_ok_and(|response| response.status() == 200)
    });
}

#[test]
fn sigterm_finishes_what_is_begun_and_takes_nothing_new() {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 32 << 20);
    let mut appliance = Setup::new(&origin).start();
    content.assert_is(0, &appliance.get("/film.mp4").body);
    let mut client = appliance.connect();
    client.send(&request("GET", "/film.mp4", &[]));
    let head = client.read_head().expect("it begins");
    appliance.signal(rustix::process::Signal::TERM);
    wait_until("nothing new is taken", PATIENCE, || {
        Client::try_connect(appliance.http()).is_err()
            || Client::try_connect(appliance.http())
                .is_ok_and(|mut client| client.try_ask("GET", "/film.mp4", &[]).is_err())
    });
    content.assert_is(0, &client.read_body(&head, "GET").expect("what was begun is finished"));
    let status = appliance.wait_for_exit(PATIENCE);
    assert!(status.success(), "{status}");
}

/// 10,000 idle and 1,000 slow connections: what they cost in memory, and that others are served meanwhile.
#[test]
fn eleven_thousand_connections_cost_bounded_memory() {
    const IDLE: usize = 10_000;
    const SLOW: usize = 1000;
    // Each costs at most this much of our memory; the kernel's buffers come on top and are the kernel's to bound.
    const COST_MAX: u64 = 48 << 10;

    let (_, hard) = rlimit::Resource::NOFILE.get().expect("the kernel says so");
    rlimit::Resource::NOFILE.set(hard, hard).expect("up to the hard limit is ours");
    if hard < (IDLE + SLOW + 1000) as u64 {
        eprintln!("SKIPPED: {hard} open files are allowed, {} are needed", IDLE + SLOW + 1000);
        return;
    }
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 8 << 20);
    // Set, so that room for mappings gives way where there are few descriptors.
    let appliance = Setup::new(&origin)
        .serve(&format!("connections_max = {}\nconnections_percent = 100", IDLE + SLOW + 100))
        .start();
    content.assert_is(0, &appliance.get("/film.mp4").body);
    let before = appliance.resident_bytes();

    let mut idle: Vec<Client> = Vec::with_capacity(IDLE);
    for n in 0..IDLE {
        let mut client = appliance.connect();
        let at = n as u64;
        let response = client.range("/film.mp4", &format!("bytes={at}-{at}"));
        content.assert_is(at, &response.body);
        idle.push(client);
    }
    let with_idle = appliance.resident_bytes();
    let slow: Vec<TcpStream> = (0..SLOW).map(|_| slow_reader(&appliance)).collect();
    wait_until("all have begun", PATIENCE, || appliance.has_read_everything(IDLE + SLOW));
    let with_slow = appliance.resident_bytes();

    let began = Instant::now();
    content.assert_is(0, &appliance.get("/film.mp4").body);
    let served_in = began.elapsed();
    content.assert_is(7, &idle[IDLE / 2].range("/film.mp4", "bytes=7-9").body);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    eprintln!(
        "memory: {:.1} MiB alone, {:.1} MiB with {IDLE} idle, {:.1} MiB with {SLOW} slow ones more; 8 MiB served in {served_in:?}",
        mib(before),
        mib(with_idle),
        mib(with_slow)
    );
    assert!(with_slow - before.min(with_slow) < (IDLE + SLOW) as u64 * COST_MAX);
    assert!(served_in < Duration::from_secs(5));
    drop((idle, slow));
    wait_until("they are forgotten", PATIENCE, || open_connections(&appliance) == 0.0);
}

/// Asks for everything and reads nothing, with a small window, so that the kernel holds little.
fn slow_reader(appliance: &Appliance) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a descriptor");
    socket.set_recv_buffer_size(16 << 10).expect("a small buffer");
    socket.connect(&appliance.http().into()).expect("it listens");
    let mut stream = TcpStream::from(socket);
    stream.write_all(&request("GET", "/film.mp4", &[])).expect("it is taken");
    stream
}
