//! Whoever gives as little as possible for as long as possible; `slow` and `tls` beside this folder hold what takes as little.

use super::PATIENCE;
use crate::support::{Client, Origin, Setup, request, wait_until};

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
