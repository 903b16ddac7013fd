//! A conformance client for HTTP/2: wrong frames by hand, section by section of RFC 9113, and what the server has to say to each.
//!
//! Covered: 3.4 preface, 4.1 to 4.3 frames and heads, 5.1 states and stream identifiers, 5.4 errors, 6.1 to 6.10 each kind of frame, 8.1 to
//! 8.5 malformed requests. As h2spec does, a connection that is closed counts as told where a connection error is due, and the end
//! of the connection counts where only a stream had to end.

use rustls::version::TLS13;

use crate::support::{
    Appliance, Authority, Client, KeyKind, Origin, Setup,
    http2::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Http2, PING, PRIORITY, RST_STREAM, SETTINGS,
        WINDOW_UPDATE, frame, head, literal,
    },
};

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const COMPRESSION_ERROR: u32 = 9;

/// h2 calls some heads that cannot be unpacked an error of the protocol, where RFC 9113 has a code of its own; the connection ends either way.
const COMPRESSION: &[u32] = &[COMPRESSION_ERROR, PROTOCOL_ERROR];

const PUSH_PROMISE: u8 = 5;
const PADDED: u8 = 8;
const WITH_PRIORITY: u8 = 0x20;

/// What is due.
enum Due {
    /// The connection ends with one of these codes.
    Connection(&'static [u32]),
    /// The stream ends with one of these codes, or in a refusal (RFC 9113, 8.1.1 allows an answer of 4xx).
    Stream(u32, &'static [u32]),
    /// Nothing: the connection goes on.
    Nothing,
}
use Due::{Connection, Nothing, Stream};

struct Scene {
    authority: Authority,
    appliance: Appliance,
    _origin: Origin,
}

fn scene() -> Scene {
    let (authority, origin) = (Authority::new(), Origin::start());
    origin.publish_new("/film.mp4", 1, 1000);
    let issued = authority.issue("a", &["a.test"], (KeyKind::Ecdsa, 2040));
    let appliance = Setup::new(&origin).tls(&issued, &[], "protocols = [\"h2\"]").start();
    assert_eq!(appliance.get("/film.mp4").status(), 200);
    Scene { authority, appliance, _origin: origin }
}

/// A whole request, and one that goes on.
fn whole(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &head("/film.mp4", &[]))
}

fn open(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &head("/film.mp4", &[]))
}

/// A request whose head is this block.
fn block(block: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, 1, block)
}

fn with(fields: &[(&str, &str)]) -> Vec<u8> {
    block(&head("/film.mp4", fields))
}

impl Scene {
    fn connect(&self) -> Client {
        let config = self.authority.client(&[&TLS13], &["h2"]);
        Client::connect_tls(self.appliance.https(), "a.test", &config).expect("a session")
    }

    fn check(&self, section: &str, bytes: &[u8], due: &Due) {
        let mut client = Http2::begin(self.connect(), 65_535);
        client.streams.insert(1, crate::support::http2::Stream::default());
        // It may be told and closed before it has said all.
        drop(client.client.try_send(bytes));
        // Its answer says that all before it has been seen.
        drop(client.client.try_send(&frame(PING, 0, 0, b"the last")));
        let (mut goaway, mut reset, mut over) = (None, None, false);
        loop {
            let Some(seen) = client.step() else {
                over = true;
                break;
            };
            let code = |at: usize| u32::from_be_bytes(seen.payload[at..at + 4].try_into().expect("four bytes"));
            match seen.kind {
                GOAWAY => goaway = Some(code(4)),
                RST_STREAM => reset = Some((seen.stream, code(0))),
                PING if seen.flags & ACK != 0 && seen.payload == b"the last" => break,
                _ => {}
            }
        }
        let told = format!("{section}: GOAWAY {goaway:?}, RST_STREAM {reset:?}, over: {over}");
        match due {
            Connection(codes) => {
                assert!(over || goaway.is_some(), "{told}");
                assert!(goaway.is_none_or(|code| codes.contains(&code)), "{told}");
            }
            Stream(stream, codes) => match (reset, goaway) {
                (Some((on, code)), _) => assert!(on == *stream && codes.contains(&code), "{told}"),
                (None, Some(code)) => assert!(codes.contains(&code), "{told}"),
                // The answer may come behind that to the PING.
                (None, None) if over => {}
                (None, None) => {
                    let mut refused = client.streams[stream].status;
                    while refused.is_none() && client.step().is_some() {
                        refused = client.streams[stream].status.filter(|_| !client.streams[stream].reset);
                        if client.streams[stream].reset {
                            return;
                        }
                    }
                    assert!(!matches!(refused, Some(0x88 | 0x8a)), "{told}: answered {refused:?}");
                }
            },
            Nothing => assert!(goaway.is_none() && !over, "{told}"),
        }
    }
}

#[test]
fn frames_and_connections_rfc_9113_sections_4_to_6() {
    let scene = scene();
    let flow: &[u32] = &[FLOW_CONTROL_ERROR];
    let protocol: &[u32] = &[PROTOCOL_ERROR];
    // h2 says the one for DATA and SETTINGS, the other for most.
    let size: &[u32] = &[FRAME_SIZE_ERROR, PROTOCOL_ERROR];
    let setting = |id: u8, value: u32| frame(SETTINGS, 0, 0, &[&[0, id][..], &value.to_be_bytes()].concat());
    let cases: Vec<(&str, Vec<u8>, Due)> = vec![
        ("4.1 an unknown frame is ignored", frame(0xfe, 0xff, 0, b"anything"), Nothing),
        ("4.1 unknown flags are ignored", frame(PING, 0xfe, 0, &[0; 8]), Nothing),
        ("4.2 DATA beyond the size", [open(1), frame(DATA, 0, 1, &[0; 16_385])].concat(), Connection(size)),
        ("4.2 HEADERS beyond the size", frame(HEADERS, 5, 1, &[0; 16_385]), Connection(size)),
        ("4.3 a head that cannot be unpacked", block(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), Connection(COMPRESSION)),
        ("4.3 an index that is not there", block(&[0x82, 0x87, 0xfe]), Connection(COMPRESSION)),
        (
            "4.3 a head that is broken into",
            [frame(HEADERS, 1, 1, &head("/film.mp4", &[])), frame(PING, 0, 0, &[0; 8])].concat(),
            Connection(protocol),
        ),
        (
            "4.3 a head that is broken into by another",
            [frame(HEADERS, 1, 1, &head("/film.mp4", &[])), whole(3)].concat(),
            Connection(protocol),
        ),
        ("5.1 DATA on an idle stream", frame(DATA, 0, 1, b"x"), Connection(protocol)),
        ("5.1 RST_STREAM on an idle stream", frame(RST_STREAM, 0, 1, &[0; 4]), Connection(protocol)),
        ("5.1 WINDOW_UPDATE on an idle stream", frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 9]), Connection(protocol)),
        (
            "5.1 CONTINUATION on an idle stream",
            frame(CONTINUATION, 4, 1, &head("/film.mp4", &[])),
            Connection(protocol),
        ),
        (
            "5.1 DATA behind the end",
            [whole(1), frame(DATA, END_STREAM, 1, b"x")].concat(),
            Stream(1, &[STREAM_CLOSED, PROTOCOL_ERROR]),
        ),
        ("5.1.1 an even stream", whole(2), Connection(protocol)),
        ("5.1.1 a stream below the last", [whole(5), whole(3)].concat(), Connection(&[PROTOCOL_ERROR, STREAM_CLOSED])),
        ("5.5 PRIORITY on an idle stream", frame(PRIORITY, 0, 7, &[0, 0, 0, 0, 1]), Nothing),
        ("6.1 DATA on the connection", frame(DATA, 0, 0, b"x"), Connection(protocol)),
        ("6.1 more padding than frame", [open(1), frame(DATA, PADDED, 1, &[9, 0])].concat(), Connection(protocol)),
        ("6.2 HEADERS on the connection", frame(HEADERS, 5, 0, &head("/film.mp4", &[])), Connection(protocol)),
        ("6.2 more padding than head", frame(HEADERS, 5 | PADDED, 1, &[200, 0x82]), Connection(protocol)),
        (
            "6.2 a stream that depends on itself",
            frame(HEADERS, 5 | WITH_PRIORITY, 1, &[&[0, 0, 0, 1, 9][..], &head("/film.mp4", &[])].concat()),
            Stream(1, protocol),
        ),
        ("6.3 PRIORITY on the connection", frame(PRIORITY, 0, 0, &[0; 5]), Connection(protocol)),
        ("6.3 PRIORITY of another size", [open(1), frame(PRIORITY, 0, 1, &[0; 4])].concat(), Stream(1, size)),
        ("6.4 RST_STREAM on the connection", frame(RST_STREAM, 0, 0, &[0; 4]), Connection(protocol)),
        ("6.4 RST_STREAM of another size", [open(1), frame(RST_STREAM, 0, 1, &[0; 3])].concat(), Connection(size)),
        ("6.5 SETTINGS on a stream", frame(SETTINGS, 0, 1, &[]), Connection(protocol)),
        ("6.5 SETTINGS of another size", frame(SETTINGS, 0, 0, &[0; 5]), Connection(size)),
        ("6.5 an acknowledgement that says something", frame(SETTINGS, ACK, 0, &[0; 6]), Connection(size)),
        ("6.5.2 ENABLE_PUSH is neither 0 nor 1", setting(2, 2), Connection(protocol)),
        (
            "6.5.2 a window beyond the largest",
            setting(4, 0x8000_0000),
            Connection(&[FLOW_CONTROL_ERROR, PROTOCOL_ERROR]),
        ),
        ("6.5.2 frames below the least", setting(5, 16_383), Connection(protocol)),
        ("6.5.2 frames beyond the largest", setting(5, 1 << 24), Connection(protocol)),
        ("6.5.2 an unknown setting is ignored", setting(0x99, 1), Nothing),
        ("6.6 PUSH_PROMISE of a client", frame(PUSH_PROMISE, 4, 1, &[0, 0, 0, 2, 0x82]), Connection(protocol)),
        ("6.7 PING on a stream", frame(PING, 0, 1, &[0; 8]), Connection(protocol)),
        ("6.7 PING of another size", frame(PING, 0, 0, &[0; 7]), Connection(size)),
        ("6.8 GOAWAY on a stream", frame(GOAWAY, 0, 1, &[0; 8]), Connection(protocol)),
        ("6.9 an increment of nothing", frame(WINDOW_UPDATE, 0, 0, &[0; 4]), Connection(protocol)),
        (
            "6.9 an increment of nothing on a stream",
            [open(1), frame(WINDOW_UPDATE, 0, 1, &[0; 4])].concat(),
            Stream(1, protocol),
        ),
        ("6.9 WINDOW_UPDATE of another size", frame(WINDOW_UPDATE, 0, 0, &[0; 3]), Connection(size)),
        (
            "6.9.1 a window beyond the largest",
            frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes()),
            Connection(flow),
        ),
        (
            "6.9.1 a stream's window beyond the largest",
            [open(1), frame(WINDOW_UPDATE, 0, 1, &0x7fff_ffff_u32.to_be_bytes())].concat(),
            Stream(1, flow),
        ),
        (
            "6.10 CONTINUATION behind a head's end",
            [open(1), frame(CONTINUATION, 4, 1, &[0x82])].concat(),
            Connection(protocol),
        ),
    ];
    for (section, bytes, due) in cases {
        scene.check(section, &bytes, &due);
    }
}

#[test]
fn requests_rfc_9113_section_8() {
    let scene = scene();
    let protocol: &[u32] = &[PROTOCOL_ERROR];
    let mut late = head("/film.mp4", &[("x", "y")]);
    late.push(0x82);
    let mut twice = head("/film.mp4", &[]);
    twice.push(0x82);
    let mut unknown = head("/film.mp4", &[]);
    literal(&mut unknown, Err(":unknown"), "x");
    let mut status = head("/film.mp4", &[]);
    literal(&mut status, Err(":status"), "200");
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("8.2.1 a name in capitals", with(&[("X-Test", "y")])),
        ("8.2.1 a name with a blank", with(&[("x test", "y")])),
        ("8.2.1 a value with a line break", with(&[("x", "a\r\nb: c")])),
        ("8.2.1 a value with NUL", with(&[("x", "a\0b")])),
        ("8.2.2 Connection", with(&[("connection", "keep-alive")])),
        ("8.2.2 Transfer-Encoding", with(&[("transfer-encoding", "chunked")])),
        ("8.2.2 Upgrade", with(&[("upgrade", "h2c")])),
        ("8.2.2 TE of another kind", with(&[("te", "trailers, deflate")])),
        ("8.3 a pseudo-field behind a field", block(&late)),
        ("8.3 a pseudo-field twice", block(&twice)),
        ("8.3 an unknown pseudo-field", block(&unknown)),
        ("8.3 a pseudo-field of responses", block(&status)),
        ("8.3.1 no path", block(&[0x82, 0x87, 0x01, 1, b'a'])),
        ("8.3.1 no method", block(&[0x87, 0x84, 0x01, 1, b'a'])),
        ("8.3.1 no scheme", block(&[0x82, 0x84, 0x01, 1, b'a'])),
        ("8.3.1 an empty path", block(&head("", &[]))),
        (
            "8.1.1 a length that is not that of the body",
            [
                frame(HEADERS, END_HEADERS, 1, &head("/film.mp4", &[("content-length", "1")])),
                frame(DATA, END_STREAM, 1, b"body"),
            ]
            .concat(),
        ),
        ("8.1 trailers that end nothing", [open(1), frame(HEADERS, END_HEADERS, 1, &[0, 1, b'x', 1, b'y'])].concat()),
    ];
    for (section, bytes) in cases {
        scene.check(section, &bytes, &Stream(1, protocol));
    }
}

/// RFC 9113, 3.4: who begins otherwise speaks another protocol.
#[test]
fn the_preface_rfc_9113_section_3_4() {
    let scene = scene();
    for preface in
        [&b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n\0\0\0\x04\0\0\0\0\0"]
    {
        let mut client = scene.connect();
        client.send(preface);
        client.until_closed();
    }
    let mut client = scene.connect();
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    client.send(&frame(PING, 0, 0, &[0; 8]));
    client.until_closed();
}
