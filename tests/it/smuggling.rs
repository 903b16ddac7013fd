//! Requests that two servers could read differently are refused or drained, never reinterpreted (RFC 9112, 6.3 and 11.2).

use crate::support::{Appliance, Client, Origin, Setup};

/// An asset that only a smuggled request would ask for.
const BAIT: &str = "GET /bait.mp4 HTTP/1.1\r\nHost: t\r\n\r\n";

fn box_with_bait() -> (Origin, Appliance) {
    let origin = Origin::start();
    origin.publish_new("/film.mp4", 1, 1000);
    origin.publish_new("/bait.mp4", 2, 1000);
    let appliance = Setup::new(&origin).start();
    assert_eq!(appliance.get("/film.mp4").status(), 200);
    (origin, appliance)
}

/// Sends `text`, then nothing more; the statuses that came back until the server closed.
fn statuses(appliance: &Appliance, text: &str) -> Vec<u16> {
    let mut client = appliance.connect();
    // It may close before it has read everything.
    drop(client.try_send(text.as_bytes()));
    client.finish();
    let mut statuses = Vec::new();
    while let Some(status) = next_status(&mut client) {
        statuses.push(status);
    }
    statuses
}

fn next_status(client: &mut Client) -> Option<u16> {
    let head = client.read_head().ok()?;
    client.read_body(&head, "GET").ok()?;
    Some(head.status)
}

#[test]
fn ambiguous_framing_is_refused_and_what_follows_is_not_read_as_a_request() {
    let (origin, appliance) = box_with_bait();
    let ambiguous = [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "Content-Length: 0\r\nContent-Length: 41\r\n\r\n",
        "Content-Length: 0, 41\r\n\r\n",
        "Content-Length: -1\r\n\r\n",
        "Content-Length: +41\r\n\r\n",
        "Content-Length: 0x29\r\n\r\n",
        "Content-Length: 99999999999999999999999\r\n\r\n",
        "Content-Length: 4 1\r\n\r\n",
        "Content-Length:\r\n\r\n",
        "Transfer-Encoding: identity\r\n\r\n",
        "Transfer-Encoding: xchunked\r\n\r\n",
        "Transfer-Encoding: chunked, identity\r\n\r\n",
        "Transfer-Encoding: gzip\r\n\r\n",
        "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "Content-Length : 41\r\n\r\n",
        "X: y\nContent-Length: 41\r\n\r\n\r\n",
        " Content-Length: 41\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\nZZ\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n\r\n",
    ];
    for method in ["GET", "POST"] {
        for framing in ambiguous {
            let text = format!("{method} /film.mp4 HTTP/1.1\r\nHost: t\r\n{framing}{BAIT}");
            let got = statuses(&appliance, &text);
            assert!(got.len() <= 1, "{method} {framing:?}: {got:?}");
            let allowed: &[u16] = if method == "GET" { &[200, 400, 413, 501] } else { &[400, 405, 413, 501] };
            assert!(got.iter().all(|status| allowed.contains(status)), "{method} {framing:?}: {got:?}");
        }
    }
    assert!(origin.seen("/bait.mp4").is_empty(), "{:?}", origin.seen("/bait.mp4"));
}

#[test]
fn transfer_encoding_in_http_1_0_is_refused() {
    let (origin, appliance) = box_with_bait();
    let text = format!(
        "GET /film.mp4 HTTP/1.0\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n0\r\n\r\n{BAIT}"
    );
    let got = statuses(&appliance, &text);
    assert!(got.len() <= 1, "{got:?}");
    assert!(origin.seen("/bait.mp4").is_empty());
}

#[test]
fn a_body_on_get_is_drained_or_ends_the_connection() {
    let (origin, appliance) = box_with_bait();
    for framing in [
        format!("Content-Length: {}\r\n\r\n{BAIT}", BAIT.len()),
        format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{BAIT}\r\n0\r\n\r\n", BAIT.len()),
    ] {
        let then = "GET /film.mp4 HTTP/1.1\r\nHost: t\r\n\r\n";
        let got = statuses(&appliance, &format!("GET /film.mp4 HTTP/1.1\r\nHost: t\r\n{framing}{then}"));
        assert!(matches!(got[..], [200 | 400 | 413] | [200, 200]), "{got:?}");
    }
    assert!(origin.seen("/bait.mp4").is_empty(), "the body was read as a request");
}

#[test]
fn a_large_body_is_not_read_for_ever() {
    let (_origin, appliance) = box_with_bait();
    let mut client = appliance.connect();
    client.send(b"GET /film.mp4 HTTP/1.1\r\nHost: t\r\nContent-Length: 10000000000\r\n\r\n");
    let chunk = vec![b'x'; 1 << 20];
    let taken = (0..1000).take_while(|_| client.try_send(&chunk).is_ok()).count();
    assert!(taken < 1000, "a gigabyte of body was taken on a GET");
}

#[test]
fn heads_that_are_no_http_are_refused() {
    let (_origin, appliance) = box_with_bait();
    let heads = [
        "GET /film.mp4\r\n\r\n",
        "GET  /film.mp4 HTTP/1.1\r\nHost: t\r\n\r\n",
        "GET /film.mp4 HTTP/9.9\r\nHost: t\r\n\r\n",
        "GET /film.mp4 HTTP/1.1\r\nHost t\r\n\r\n",
        "GET /film.mp4 HTTP/1.1\r\nHost: t\r\nBad Name: x\r\n\r\n",
        "GET /film.mp4 HTTP/1.1\r\nHost: t\r\nX: a\0b\r\n\r\n",
        "GET /fi lm.mp4 HTTP/1.1\r\nHost: t\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET /film.mp4 HTTP/1.1\r\n\r\n",
        "GET /film.mp4 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    ];
    for head in heads {
        let got = statuses(&appliance, head);
        assert!(got.iter().all(|status| matches!(status, 400 | 404 | 405 | 505)), "{head:?}: {got:?}");
    }
}

#[test]
fn heads_that_are_too_large_are_refused() {
    let (_origin, appliance) = box_with_bait();
    let long_target = format!("GET /{} HTTP/1.1\r\nHost: t\r\n\r\n", "a".repeat(100_000));
    let long_field = format!("GET /film.mp4 HTTP/1.1\r\nHost: t\r\nX: {}\r\n\r\n", "a".repeat(100_000));
    let many: String = (0..1000).map(|n| format!("X{n}: y\r\n")).collect();
    let many = format!("GET /film.mp4 HTTP/1.1\r\nHost: t\r\n{many}\r\n");
    for (text, allowed) in [(long_target, [414, 431, 400]), (long_field, [431, 431, 400]), (many, [431, 431, 400])] {
        let got = statuses(&appliance, &text);
        assert!(got.iter().all(|status| allowed.contains(status)), "{got:?}");
        assert!(got.len() <= 1);
    }
    assert_eq!(appliance.get("/film.mp4").status(), 200, "others are served on");
}
