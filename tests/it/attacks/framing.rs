//! What two readers of the same bytes of HTTP/1.1 could take for different requests, and more requests than anyone needs.

use crate::support::{Appliance, Client, Origin, Setup};

/// An asset that only a smuggled request would ask for.
const BAIT: &str = "GET /bait.mp4 HTTP/1.1\r\nHost: t\r\n\r\n";

fn victim() -> (Origin, Appliance) {
    let origin = Origin::start();
    origin.publish_new("/film.mp4", 1, 1000);
    origin.publish_new("/bait.mp4", 2, 1000);
    let appliance = Setup::new(&origin).start();
    assert_eq!(appliance.get("/film.mp4").status(), 200);
    (origin, appliance)
}

/// Sends `text`, then nothing more; the statuses that came back.
fn statuses(appliance: &Appliance, text: &str) -> Vec<u16> {
    let mut client = appliance.connect();
    // It may close before it has read everything.
    drop(client.try_send(text.as_bytes()));
    client.finish();
    std::iter::from_fn(|| next(&mut client)).collect()
}

fn next(client: &mut Client) -> Option<u16> {
    let head = client.read_head().ok()?;
    // Nothing follows an agreement to change the protocol, so that it would be read as one.
    client.read_body(&head, "GET").ok()?;
    Some(head.status)
}

/// Chunk extensions and line ends (CVE-2025-55315, CVE-2023-30589, "Funky chunks"): two readers that do not agree on where a chunk ends do
/// not agree on where the next request begins. No chunked request is accepted, so nobody has to agree.
#[test]
fn chunk_extensions_and_line_ends() {
    let (origin, appliance) = victim();
    for body in [
        "2;\nxx\r\n4c\r\n0\r\n\r\n",
        "0;x=\"\r\n\r\n\"\r\n\r\n",
        "1;a\rX\r\nx\r\n0\r\n\r\n",
        "5\nhello\n0\n\n",
        "0\r\nX: y\nContent-Length: 5\r\n\r\n",
        "0 \r\n\r\n",
        "+0\r\n\r\n",
        "0_0\r\n\r\n",
    ] {
        let text = format!("GET /film.mp4 HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n{body}{BAIT}");
        let got = statuses(&appliance, &text);
        assert!(matches!(got[..], [400 | 501]), "{body:?}: {got:?}");
    }
    assert!(origin.seen("/bait.mp4").is_empty());
}

/// Bare LF and bare CR (CVE-2025-49826, CVE-2024-27982): one reader ends the line there, the other does not. What stands behind must never be
/// a request, and a field behind a bare CR never a field.
#[test]
fn bare_line_feeds_and_carriage_returns() {
    let (origin, appliance) = victim();
    for text in [
        "GET /film.mp4 HTTP/1.1\r\nHost: t\r\nX: y\rContent-Length: 41\r\n\r\n",
        "GET /film.mp4 HTTP/1.1\r\nHost: t\r\nX: y\n\n",
        "GET /film.mp4\nHTTP/1.1\r\nHost: t\r\n\r\n",
        "GET /film.mp4 HTTP/1.1\r\nHost: t\r\nX\0: y\r\n\r\n",
        "GET /film.mp4 HTTP/1.1\r\nHost: t\r\nX: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /film.mp4 HTTP/1.1\r\nHost: t\rX: y\r\n\r\n",
    ] {
        let got = statuses(&appliance, &format!("{text}{BAIT}"));
        assert!(matches!(got[..], [] | [400]), "{text:?}: {got:?}");
    }
    assert!(origin.seen("/bait.mp4").is_empty());
}

/// Upgrades that a front lets through ("h2c smuggling", Bishop Fox 2020; websocket smuggling, 2019): once a front believes in another
/// protocol, what follows passes unseen. No upgrade is agreed to, and what follows is read as HTTP/1.1 or not at all.
#[test]
fn upgrades_to_h2c_and_websocket() {
    let (_origin, appliance) = victim();
    for fields in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n",
    ] {
        let mut client = appliance.connect();
        client.send(format!("GET /film.mp4 HTTP/1.1\r\nHost: t\r\n{fields}\r\n").as_bytes());
        let response = client.read_response("GET").expect("an answer");
        assert_eq!(response.status(), 200, "{fields}");
        assert_eq!(response.field("upgrade"), None);
        // The connection is what it was.
        assert_eq!(client.get("/film.mp4").status(), 200, "{fields}");
    }
    let mut client = appliance.connect();
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    let said = client.until_closed();
    assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 4") || said.starts_with(b"HTTP/1.1 505"), "{said:?}");
    let got = statuses(&appliance, "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n");
    assert!(matches!(got[..], [400 | 405]), "{got:?}");
}

/// Pipelining floods: thousands of requests in one go, whose answers nobody reads. They must be answered one after the other, with no more
/// memory than one takes, and others be served meanwhile.
#[test]
fn pipelining_flood() {
    let (_origin, appliance) = victim();
    // What an appliance allocates for the first who comes is not the flood's.
    for _ in 0..20 {
        assert_eq!(appliance.get("/film.mp4").status(), 200);
    }
    let before = appliance.resident_bytes();
    let mut clients: Vec<Client> = (0..8).map(|_| appliance.connect()).collect();
    let flood = b"GET /film.mp4 HTTP/1.1\r\nHost: t\r\n\r\n".repeat(1000);
    for client in &mut clients {
        client.send(&flood);
    }
    for _ in 0..20 {
        assert_eq!(appliance.get("/film.mp4").status(), 200);
    }
    // All the answers of one client are 1.4 MB. The allocator may take a page or two of 2 MiB for anything at all.
    let each = appliance.resident_bytes().saturating_sub(before) / 8;
    assert!(each < 768 << 10, "{each} bytes each");
    for client in &mut clients {
        for _ in 0..1000 {
            assert_eq!(client.read_response("GET").expect("in order").body.len(), 1000);
        }
    }
}
