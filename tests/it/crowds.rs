//! A crowd of one client: viewers are served beside it, and it gets no more than its part.
//!
//! A request for `/busy` keeps its worker for 10 ms, however fast the machine is.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use rustls::version::TLS13;

use crate::{
    clients::connect_from,
    support::{
        Appliance, Authority, Client, KeyKind, Origin, Over, Setup,
        http2::{self, Http2},
        wait_until,
    },
};

const PATIENCE: Duration = Duration::from_secs(60);
const BUSY: &str = "/busy";
const CROWD: &str = "127.0.0.66";
/// What the hit path leaves to the handler, which is where a request takes its time.
const REQUEST: &str = "GET /busy HTTP/1.1\r\nHost: a\r\nIf-None-Match: \"another\"\r\nRange: bytes=0-9\r\n\r\n";

fn waited(appliance: &Appliance, why: &str) -> f64 {
    appliance.metric("oca_turns_waited_total", &format!("why=\"{why}\""))
}

/// Turns of those who get nothing for them.
fn waited_for_nothing(appliance: &Appliance) -> f64 {
    waited(appliance, "newcomer") + waited(appliance, "costly")
}

/// A connection of the crowd that has sent ahead what keeps the worker for some seconds.
fn one_of_the_crowd(appliance: &Appliance) -> Option<TcpStream> {
    let mut stream = connect_from(CROWD, appliance.http());
    stream.write_all(REQUEST.repeat(200).as_bytes()).ok()?;
    Some(stream)
}

#[test]
fn a_crowd_that_costs_much_does_not_keep_viewers_and_newcomers_from_their_turn() {
    let origin = Origin::start();
    let (film, busy) = (origin.publish_new("/film.mp4", 1, 100_000), origin.publish_new(BUSY, 2, 50_000));
    let appliance = Setup::new(&origin)
        .workers(1)
        .serve("connections_max = 400\ncostly_permille = 1000")
        .environment("OCA_BUSY_AT", BUSY)
        .start();
    film.assert_is(0, &appliance.get("/film.mp4").body);
    busy.assert_is(0, &appliance.get(BUSY).body);
    let mut viewer = appliance.connect();
    film.assert_is(0, &viewer.get("/film.mp4").body);

    // Of 40 connections each turn takes 10 ms, and there are thousands of them: were turns had in order, a viewer would wait for
    // 40 of them for each request, and a newcomer too.
    let over = AtomicBool::new(false);
    let crowd: Vec<TcpStream> = (0..40).filter_map(|_| one_of_the_crowd(&appliance)).collect();
    wait_until("the crowd waits", PATIENCE, || waited_for_nothing(&appliance) > 100.0);
    let (mut viewers, mut newcomers) = (0, 0);
    thread::scope(|scope| {
        // How often the crowd had its turn meanwhile is what the count of others is compared with: no clock decides.
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                film.assert_is(0, &appliance.get("/film.mp4").body);
                newcomers += 1;
            }
        });
        let ended = Over(&over);
        let before = waited_for_nothing(&appliance);
        while waited_for_nothing(&appliance) < before + 200.0 {
            film.assert_is(0, &viewer.get("/film.mp4").body);
            viewers += 1;
        }
        drop(ended);
    });
    // A turn of the crowd for each of theirs, or some; by turns in order there would be forty, and five requests.
    assert!(viewers >= 15, "{viewers} requests of a viewer beside 200 turns of a crowd");
    assert!(newcomers >= 15, "{newcomers} newcomers beside 200 turns of a crowd");
    drop(crowd);
}

#[test]
fn a_client_that_costs_much_has_a_small_part_of_the_time_while_others_want_some() {
    let origin = Origin::start();
    let (film, busy) = (origin.publish_new("/film.mp4", 1, 100_000), origin.publish_new(BUSY, 2, 50_000));
    // A build for development costs so much that the viewer's client might look as the crowd does.
    let appliance = Setup::new(&origin)
        .workers(1)
        .serve("costly_permille = 5")
        .tables("[serve.clients]\nunlimited = [\"127.0.0.1/32\"]")
        .environment("OCA_BUSY_AT", BUSY)
        .start();
    film.assert_is(0, &appliance.get("/film.mp4").body);
    busy.assert_is(0, &appliance.get(BUSY).body);
    let mut viewer = appliance.connect();
    film.assert_is(0, &viewer.get("/film.mp4").body);
    let crowd: Vec<TcpStream> = (0..4).filter_map(|_| one_of_the_crowd(&appliance)).collect();
    wait_until("it is seen what the crowd costs", PATIENCE, || {
        film.assert_is(0, &viewer.get("/film.mp4").body);
        waited(&appliance, "costly") > 4.0
    });
    let (mut requests, before) = (0, waited(&appliance, "costly"));
    while waited(&appliance, "costly") < before + 8.0 {
        for _ in 0..5 {
            film.assert_is(0, &viewer.get("/film.mp4").body);
            requests += 1;
        }
    }
    // Five thousandths of the time are a second for each turn of theirs, of which no more than 2 ms are held against them. Without the bound one of the viewer's has one of the crowd's behind it.
    assert!(requests >= 80, "{requests} requests of a viewer beside 8 turns of a crowd");
    drop(crowd);
}

#[test]
fn a_client_of_whom_too_many_wait_gets_no_more_connections_and_others_do() {
    let origin = Origin::start();
    let (film, busy) = (origin.publish_new("/film.mp4", 1, 100_000), origin.publish_new(BUSY, 2, 50_000));
    let appliance =
        Setup::new(&origin).workers(1).serve("connections_max = 400").environment("OCA_BUSY_AT", BUSY).start();
    film.assert_is(0, &appliance.get("/film.mp4").body);
    busy.assert_is(0, &appliance.get(BUSY).body);
    let refused = || appliance.metric("oca_connections_refused_total", "");
    let mut crowd = Vec::new();
    wait_until("more than a quarter of all wait", PATIENCE, || {
        crowd.extend(one_of_the_crowd(&appliance));
        refused() > 0.0
    });
    assert!(crowd.len() > 64, "{} connections", crowd.len());
    for _ in 0..5 {
        film.assert_is(0, &appliance.get("/film.mp4").body);
    }
    assert!(appliance.metric("oca_connections", "") < 200.0, "there is room for others");
}

/// Whose client has left while it waits needs no turn to find that out: it takes the worker more than to forget it, and would be long in coming.
#[test]
fn those_of_a_crowd_who_leave_make_room_at_once() {
    a_crowd_that_leaves(&mut |_| {});
}

pub(crate) fn a_crowd_that_leaves(look: &mut dyn FnMut(&Appliance)) {
    assert_who_leave_make_room(Appliance::http, b"GET /film", look);
}

/// As above, with the beginning of a ClientHello (RFC 8446, 4.1.2).
#[test]
fn those_of_a_crowd_who_leave_their_handshakes_make_room_at_once() {
    assert_who_leave_make_room(Appliance::https, &[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3], &mut |_| {});
}

/// A crowd comes, of which half says so much, and leaves.
fn assert_who_leave_make_room(to: fn(&Appliance) -> SocketAddr, begins: &[u8], look: &mut dyn FnMut(&Appliance)) {
    let (origin, authority) = (Origin::start(), Authority::new());
    let (film, busy) = (origin.publish_new("/film.mp4", 1, 100_000), origin.publish_new(BUSY, 2, 50_000));
    let issued = authority.issue("a", &["a.test"], (KeyKind::Ecdsa, 2040));
    let appliance = Setup::new(&origin)
        .workers(1)
        .serve("connections_max = 800\ncostly_permille = 1")
        .tls(&issued, &[], "")
        .tables("[serve.clients]\nunlimited = [\"127.0.0.1/32\"]")
        .environment("OCA_BUSY_AT", BUSY)
        .start();
    film.assert_is(0, &appliance.get("/film.mp4").body);
    busy.assert_is(0, &appliance.get(BUSY).body);
    look(&appliance);
    let mut viewer = appliance.connect();
    let flood: Vec<TcpStream> = (0..4).filter_map(|_| one_of_the_crowd(&appliance)).collect();
    wait_until("it is seen what the flood costs", PATIENCE, || {
        film.assert_is(0, &viewer.get("/film.mp4").body);
        waited(&appliance, "costly") > 0.0
    });
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                film.assert_is(0, &viewer.get("/film.mp4").body);
            }
        });
        let ended = Over(&over);
        let refused = || appliance.metric("oca_connections_refused_total", "");
        let (mut crowd, before) = (Vec::new(), refused());
        wait_until("a quarter of all wait", PATIENCE, || {
            for number in 0..20 {
                let mut stream = connect_from(CROWD, to(&appliance));
                if number % 2 == 0 {
                    // It has begun, and resets its connection.
                    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("set");
                    stream.write_all(begins).ok();
                }
                crowd.push(stream);
            }
            refused() > before
        });
        assert!(crowd.len() >= 190, "{} connections", crowd.len());
        let given_up = || appliance.metric("oca_turns_given_up_total", "");
        let before = given_up();
        drop(crowd);
        wait_until("they are gone", PATIENCE, || appliance.metric("oca_connections", "") < 40.0);
        let left = given_up() - before;
        assert!(left > 20.0, "{left} of two hundred were gone before they were called");
        let refused_before = refused();
        drop(connect_from(CROWD, to(&appliance)));
        film.assert_is(0, &appliance.get("/film.mp4").body);
        look(&appliance);
        assert!((refused() - refused_before).abs() < 0.5, "there is room");
        drop(ended);
    });
    drop(flood);
}

/// Handshakes cost more than the first responses bring: a household, a school or a whole town behind one address comes back after a restart, and is no flood for that.
#[test]
fn many_who_come_at_once_behind_one_address_and_are_served_cost_nobody_much() {
    let (origin, authority) = (Origin::start(), Authority::new());
    let film = origin.publish_new("/film.mp4", 1, 100_000);
    let issued = authority.issue("a", &["a.test"], (KeyKind::Ecdsa, 2040));
    let appliance = Setup::new(&origin).workers(1).tls(&issued, &[], "").start();
    film.assert_is(0, &appliance.get("/film.mp4").body);
    let config = authority.client(&[&TLS13], &["http/1.1"]);
    let served = |from: &str| {
        let mut client = Client::over_tls(connect_from(from, appliance.https()), "a.test", &config).expect("a session");
        film.assert_is(7, &client.range("/film.mp4", "bytes=7-1006").body);
    };
    let mut number = 100;
    // Where the machine does something else in the middle of a response, that costs its client; not forty of them from each address.
    wait_until("those of one address cost nobody much", PATIENCE, || {
        number += 1;
        let before = waited(&appliance, "costly");
        for _ in 0..40 {
            served(&format!("127.0.0.{number}"));
        }
        waited(&appliance, "costly") - before < 0.5
    });
    // Those who come for nothing are another matter.
    wait_until("it is seen what they cost", PATIENCE, || {
        let socket = connect_from(CROWD, appliance.https());
        drop(Client::over_tls(socket, "a.test", &config));
        waited(&appliance, "costly") > 0.0
    });
}

#[test]
fn a_network_without_limits_is_no_crowd() {
    const MANY: usize = 300;
    let origin = Origin::start();
    let busy = origin.publish_new(BUSY, 2, 50_000);
    let serve = format!("connections_max = 400\n[serve.clients]\nunlimited = [\"{CROWD}/32\"]");
    let appliance = Setup::new(&origin).workers(1).serve(&serve).environment("OCA_BUSY_AT", BUSY).start();
    busy.assert_is(0, &appliance.get(BUSY).body);
    let crowd: Vec<TcpStream> = (0..MANY).filter_map(|_| one_of_the_crowd(&appliance)).collect();
    assert_eq!(crowd.len(), MANY);
    // A quarter of all is 100, and half is 200: of another network some would have been refused.
    let (open, refused) = ("oca_connections", "oca_connections_refused_total");
    let seen = || appliance.metric(open, "") + appliance.metric(refused, "");
    wait_until("all are seen", PATIENCE, || seen() >= MANY as f64);
    assert_eq!(appliance.metric(refused, ""), 0.0);
}

#[test]
fn a_client_of_many_busy_connections_comes_after_others() {
    let origin = Origin::start();
    let film = origin.publish_new("/film.mp4", 1, 100_000);
    let appliance = Setup::new(&origin).workers(1).serve("client_percent = 10").start();
    film.assert_is(0, &appliance.get("/film.mp4").body);
    let heads = "HEAD /film.mp4 HTTP/1.1\r\nHost: a\r\n\r\n".repeat(200);
    let over = AtomicBool::new(false);
    let ask = || {
        let mut stream = connect_from(CROWD, appliance.http());
        let (mut buffer, mut last) = (vec![0; 1 << 16], [0; 4]);
        while !over.load(Ordering::Relaxed) {
            let (mut left, mut written) = (200, stream.write_all(heads.as_bytes()).is_ok());
            while left > 0 && written {
                let read = stream.read(&mut buffer).unwrap_or(0);
                for byte in &buffer[..read] {
                    last = [last[1], last[2], last[3], *byte];
                    left -= u32::from(last == *b"\r\n\r\n");
                }
                written = read > 0;
            }
        }
    };
    thread::scope(|scope| {
        let _ended = Over(&over);
        // Each is a client like others, that asks for what is in memory; together they take the worker.
        let crowd: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        let served = || appliance.metric("oca_responses_total", "status=\"200\"");
        wait_until("they are served", PATIENCE, || {
            served() > 2000.0 || crowd.iter().all(thread::ScopedJoinHandle::is_finished)
        });
        let heavy = waited(&appliance, "heavy");
        let mut viewer = appliance.connect();
        wait_until("they come after a viewer", PATIENCE, || {
            film.assert_is(0, &viewer.get("/film.mp4").body);
            waited(&appliance, "heavy") > heavy + 20.0
        });
    });
}

/// By HTTP/2, after a response that pays for all that the connection has cost: what ends it costs the next one its place.
#[test]
fn a_client_whose_connections_end_by_what_they_break_costs_much() {
    let (origin, authority) = (Origin::start(), Authority::new());
    origin.publish_new("/film.mp4", 1, 100_000);
    let issued = authority.issue("a", &["a.test"], (KeyKind::Ecdsa, 2040));
    let appliance = Setup::new(&origin).workers(1).tls(&issued, &[], "protocols = [\"h2\"]").start();
    assert_eq!(appliance.get("/film.mp4").head.status, 200);
    let config = authority.client(&[&TLS13], &["h2"]);
    let costly_turns = |from: &str, breaks: bool| {
        let before = waited(&appliance, "costly");
        for _ in 0..20 {
            let client = Client::over_tls(connect_from(from, appliance.https()), "a.test", &config).expect("a session");
            let mut client = Http2::begin(client, 1 << 20);
            let stream = client.ask("/film.mp4", &[]);
            assert_eq!(client.finish(stream).body.len(), 100_000);
            if breaks {
                // A stream of an even number is no client's to begin (RFC 9113, 5.1.1).
                client.client.send(&http2::frame(http2::HEADERS, 5, 2, &http2::head("/film.mp4", &[])));
                assert_eq!(client.until_over(), Some(1), "PROTOCOL_ERROR");
            }
        }
        waited(&appliance, "costly") - before
    };
    let mut number = 100;
    // A machine that does something else for a while makes turns look as if they cost much; not those of each address.
    wait_until("those who break nothing cost nobody much", PATIENCE, || {
        number += 1;
        costly_turns(&format!("127.0.0.{number}"), false) < 0.5
    });
    assert!(costly_turns(&format!("127.0.0.{}", number + 1), true) > 0.0);
}
