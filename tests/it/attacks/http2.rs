//! Floods and bombs that HTTP/2 made possible. Each client here breaks no rule of RFC 9113, or just one, but often.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::version::TLS13;

use super::PATIENCE;
use crate::clients::connect_from;
use crate::support::{
    Appliance, Authority, Client, Content, Cut, KeyKind, Origin, Setup,
    http2::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Http2, PING, PRIORITY, RST_STREAM, SETTINGS,
        WINDOW_UPDATE, frame, head, literal,
    },
    wait_until,
};

/// RFC 9113, 7: told to who floods.
const ENHANCE_YOUR_CALM: u32 = 11;
/// What a hostile connection may cost in memory, whatever it asks for: see `docs/attacks.md`.
const MEMORY_MAX: u64 = 4 << 20;
/// Clients of a bomb, and streams of each: as many as are allowed.
const CLIENTS: u64 = 8;
const STREAMS: u64 = 100;

struct Victim {
    authority: Authority,
    appliance: Appliance,
    content: Content,
    _origin: Origin,
}

fn victim(length: u64, serve: &str) -> Victim {
    let (authority, origin) = (Authority::new(), Origin::start());
    let content = origin.publish_new("/film.mp4", 1, length);
    let issued = authority.issue("a", &["a.test"], (KeyKind::Ecdsa, 2040));
    let appliance = Setup::new(&origin).serve(serve).tls(&issued, &[], "protocols = [\"h2\", \"http/1.1\"]").start();
    content.assert_is(0, &appliance.get("/film.mp4").body);
    Victim { authority, appliance, content, _origin: origin }
}

impl Victim {
    fn connect(&self, window: u32) -> Http2 {
        let config = self.authority.client(&[&TLS13], &["h2"]);
        Http2::begin(Client::connect_tls(self.appliance.https(), "a.test", &config).expect("a session"), window)
    }

    fn closed(&self, reason: &str) -> f64 {
        self.appliance.metric("oca_connections_closed_total", &format!("reason=\"{reason}\""))
    }

    /// A viewer on a connection of its own gets what it asks for.
    fn assert_serves(&self) {
        let mut client = self.connect(1 << 20);
        let stream = client.ask("/film.mp4", &[("range", "bytes=7-406")]);
        let body = &client.finish(stream).body;
        assert_eq!(body.len(), 400);
        self.content.assert_is(7, body);
    }

    /// Sends `prologue`, then `frame` over and over; who does that is told to be calm, and sent away.
    fn assert_ends(&self, prologue: &[u8], frame: &[u8]) {
        const TIMES: usize = 20_000;
        let mut client = self.connect(1 << 20);
        // It may be sent away before it has said all.
        if client.client.try_send(prologue).is_ok() {
            drop(client.client.try_send(&frame.repeat(TIMES)));
        }
        let code = client.until_over();
        assert!(matches!(code, None | Some(ENHANCE_YOUR_CALM)), "{code:?}");
        wait_until("it is gone", PATIENCE, || self.appliance.metric("oca_connection_errors_total", "") > 0.0);
        self.assert_serves();
    }

    /// As `assert_ends`, by the bound on frames that ask for nothing.
    fn assert_is_a_flood(&self, prologue: &[u8], frame: &[u8]) {
        self.assert_ends(prologue, frame);
        assert_eq!(self.closed("flood"), 1.0);
    }
}

/// A request that goes on.
fn open(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &head("/film.mp4", &[]))
}

/// Asks over and over for what is not allowed out, and has each stream reset by `reset`; how many requests it took to be sent away.
fn reset_after_it_was_accepted(victim: &Victim, reset: impl Fn(u32) -> Vec<u8>) -> usize {
    let mut client = victim.connect(0);
    let mut asked = 0;
    while asked < 2000 {
        let stream = client.ask("/film.mp4", &[]);
        asked += 1;
        // The head of the response says that the stream was accepted.
        while client.streams[&stream].status.is_none() {
            if client.step().is_none() {
                return asked;
            }
        }
        if client.client.try_send(&reset(stream)).is_err() {
            return asked;
        }
    }
    asked
}

/// CVE-2023-44487, rapid reset: a stream that is reset counts no longer towards the streams that may be open, and its work is thrown
/// away. Where libraries count those that nobody has looked at yet, the attacker waits until somebody has. Who resets more than it
/// lets come to an end must be sent away.
#[test]
fn rapid_reset_of_streams_that_were_accepted() {
    let victim = victim(1 << 20, "");
    let asked = reset_after_it_was_accepted(&victim, |stream| frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
    assert!((100..=250).contains(&asked), "{asked}: not at once, and not for ever");
    wait_until("it is counted", PATIENCE, || victim.closed("flood") == 1.0);
    victim.assert_serves();
}

/// The other side of the same bound: players break off what they no longer need, and are not taken for attackers.
#[test]
fn viewers_who_seek_are_no_rapid_reset() {
    let victim = victim(1 << 20, "");
    let mut client = victim.connect(1000);
    for _ in 0..500 {
        let seek = client.ask("/film.mp4", &[]);
        while client.streams[&seek].status.is_none() {
            client.step().expect("the connection goes on");
        }
        client.client.send(&frame(RST_STREAM, 0, seek, &8_u32.to_be_bytes()));
        let piece = client.ask("/film.mp4", &[("range", "bytes=9-99")]);
        victim.content.assert_is(9, &client.finish(piece).body);
    }
    assert_eq!(victim.closed("flood"), 0.0);
}

/// CVE-2025-8671, MadeYouReset: the client makes the server reset the stream, by a fault that ends the stream and not the connection.
/// What the server resets must count as what the client resets.
#[test]
fn made_you_reset() {
    let victim = victim(1 << 20, "");
    let faults: [fn(u32) -> Vec<u8>; 3] = [
        // No increment at all; one beyond what a window can be; bytes on a stream that was closed by the client.
        |stream| frame(WINDOW_UPDATE, 0, stream, &0_u32.to_be_bytes()),
        |stream| frame(WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes()).repeat(2),
        |stream| frame(DATA, 0, stream, b"x"),
    ];
    for (n, fault) in faults.iter().enumerate() {
        let asked = reset_after_it_was_accepted(&victim, fault);
        assert!(asked <= 250, "fault {n}: {asked}");
        victim.assert_serves();
    }
}

/// CVE-2024-27316, CVE-2024-24549, VU#421644: a head that goes on in CONTINUATION frames and never ends. It must be bounded as any head is.
#[test]
fn continuation_flood() {
    let begin = frame(HEADERS, END_STREAM, 1, &head("/film.mp4", &[]));
    let mut field = Vec::new();
    literal(&mut field, Err("x-more"), "and more");
    victim(1000, "").assert_ends(&begin, &frame(CONTINUATION, 0, 1, &field));
}

/// As above with nothing in the frames, so that no bound on bytes is ever reached (CVE-2019-9518).
#[test]
fn continuation_flood_of_empty_frames() {
    let begin = frame(HEADERS, END_STREAM, 1, &head("/film.mp4", &[]));
    victim(1000, "").assert_ends(&begin, &frame(CONTINUATION, 0, 1, &[]));
}

/// CVE-2019-9518: frames of DATA without a byte cost work and no window.
#[test]
fn empty_data_flood() {
    victim(1000, "").assert_ends(&open(1), &frame(DATA, 0, 1, &[]));
}

/// As above with padding, which is no payload either but takes up the window.
#[test]
fn padded_data_flood() {
    const PADDED: u8 = 8;
    victim(1000, "").assert_ends(&open(1), &frame(DATA, PADDED, 1, &[3, 0, 0, 0]));
}

/// CVE-2019-9512: each PING has to be answered; answers that are not read gather.
#[test]
fn ping_flood() {
    victim(1000, "").assert_is_a_flood(&[], &frame(PING, 0, 0, &[7; 8]));
}

/// Answers to questions that nobody asked cost as much to read.
#[test]
fn ping_acknowledgement_flood() {
    victim(1000, "").assert_is_a_flood(&[], &frame(PING, ACK, 0, &[7; 8]));
}

/// Who was sent away for a flood and comes back to flood again reads nothing: a last word, the wait for what still comes and what the kernel keeps of the connection would be for nobody.
#[test]
fn who_floods_again_is_reset_without_a_word() {
    const FRAMES: usize = 50;
    let victim = victim(1000, "http2.control_frames_max = 50");
    let config = victim.authority.client(&[&TLS13], &["h2"]);
    // The code of the last word, and whether the connection was reset. All that it sends is read, so that the kernel resets nothing by itself.
    let flood = || {
        let socket = connect_from("127.0.0.66", victim.appliance.https());
        let watched = socket.try_clone().expect("a descriptor");
        let mut client = Client::over_tls(socket, "a.test", &config).expect("a session");
        let mut text = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        text.extend(frame(SETTINGS, 0, 0, &[]));
        text.extend(frame(PING, 0, 0, &[7; 8]).repeat(FRAMES));
        client.send(&text);
        let mut code = None;
        let mut next = || -> Result<(), Cut> {
            let head = client.take(9)?;
            let payload = client.take(u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize)?;
            if head[3] == GOAWAY {
                code = Some(u32::from(payload[7]));
            }
            Ok(())
        };
        while next().is_ok() {}
        // Of a connection that is reset both directions are over (`poll(2)`).
        let mut watched = [PollFd::new(&watched, PollFlags::empty())];
        poll(&mut watched, Some(&Timespec::default())).expect("polled");
        (code, watched[0].revents().contains(PollFlags::HUP))
    };
    // The first is told to be calm, unless its handshake alone takes a machine so long that it counts; seconds later it would be forgotten.
    let mut floods = 0.0;
    wait_until("it is known again", PATIENCE, || {
        floods += 1.0;
        match flood() {
            (None, true) => true,
            told => {
                assert_eq!(told, (Some(ENHANCE_YOUR_CALM), false));
                false
            }
        }
    });
    wait_until("all are counted", PATIENCE, || victim.closed("flood") == floods);
    victim.assert_serves();
}

/// CVE-2019-9515: each SETTINGS has to be answered, and may change what all streams are allowed.
#[test]
fn settings_flood() {
    victim(1000, "").assert_is_a_flood(&[], &frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]));
}

/// CVE-2019-9513, resource loop: priorities that are shuffled all the time. RFC 9113 has done away with the tree; reading them costs.
#[test]
fn priority_flood() {
    victim(1000, "").assert_is_a_flood(&[], &frame(PRIORITY, 0, 3, &[0, 0, 0, 1, 77]));
}

/// Frames of kinds that nobody knows have to be ignored (RFC 9113, 5.5), but not for ever.
#[test]
fn unknown_frame_flood() {
    victim(1000, "").assert_is_a_flood(&[], &frame(0xba, 0, 0, b"grease"));
}

/// Windows that grow by next to nothing, on a connection that asks for nothing.
#[test]
fn window_update_flood() {
    victim(1000, "").assert_is_a_flood(&open(1), &frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes()));
}

/// CVE-2019-9511, data dribble: a response that is allowed out byte by byte costs a frame, a record and a packet for each.
#[test]
fn data_dribble() {
    let victim = victim(1 << 20, "");
    let mut client = victim.connect(1);
    let stream = client.ask("/film.mp4", &[]);
    while client.step().is_some() {
        if client.client.try_send(&frame(WINDOW_UPDATE, 0, stream, &1_u32.to_be_bytes())).is_err() {
            break;
        }
    }
    let body = &client.streams[&stream].body;
    assert!(body.len() < 2000, "{}", body.len());
    victim.content.assert_is(0, body);
    wait_until("it is counted", PATIENCE, || victim.closed("flood") == 1.0);
    victim.assert_serves();
}

/// CVE-2019-9516: fields without a name and without a value, kept by servers until the connection ends. None is accepted here, and who
/// keeps sending them is sent away.
#[test]
fn zero_length_header_leak() {
    let victim = victim(1000, "");
    let mut client = victim.connect(1 << 20);
    let mut block = head("/film.mp4", &[]);
    block.extend([0, 0, 0].repeat(50));
    let flood: Vec<u8> =
        (0..2000_u32).flat_map(|n| frame(HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, &block)).collect();
    drop(client.client.try_send(&flood));
    client.until_over();
    wait_until("it is gone", PATIENCE, || victim.appliance.metric("oca_connection_errors_total", "") > 0.0);
    assert_eq!(victim.appliance.metric("oca_responses_total", ""), 1.0, "only that which warmed it");
    victim.assert_serves();
}

/// CVE-2019-9517, internal data buffering: the windows of HTTP/2 are wide open, that of TCP is shut. What is made ahead must be bounded, and
/// the client cut in time.
#[test]
fn internal_data_buffering_behind_a_closed_tcp_window() {
    assert_memory_is_bounded(0x7fff_ffff, &[]);
}

/// As above with the windows of HTTP/2 shut and heads as large as they may be: what is kept of a request must be as little.
#[test]
fn header_bomb_with_a_zero_window() {
    let value = "x".repeat(126);
    let names: Vec<String> = (0..40).map(|n| format!("x-field-{n}")).collect();
    let fields: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), value.as_str())).collect();
    let victim = assert_memory_is_bounded(0, &fields);
    // Each stream is answered from memory and nobody takes that: it pays for nothing, and viewers go first.
    let waited = |why: &str| victim.appliance.metric("oca_turns_waited_total", &format!("why=\"{why}\""));
    let waited = waited("newcomer") + waited("costly");
    assert!(waited >= (CLIENTS * STREAMS) as f64, "{waited} turns of {CLIENTS} clients came after those of viewers");
}

fn assert_memory_is_bounded(window: u32, fields: &[(&str, &str)]) -> Victim {
    let victim = victim(8 << 20, "stall_timeout = \"2 s\"");
    victim.assert_serves();
    let before = victim.appliance.resident_bytes();
    let mut clients: Vec<Http2> = (0..CLIENTS).map(|_| victim.connect(window)).collect();
    for client in &mut clients {
        for _ in 0..STREAMS {
            let stream = client.next;
            client.next += 2;
            let ask = frame(HEADERS, END_STREAM | END_HEADERS, stream, &head("/film.mp4", fields));
            client.client.send(&ask);
        }
    }
    let mut peak = 0;
    wait_until("they are cut", PATIENCE, || {
        peak = peak.max(victim.appliance.resident_bytes());
        victim.closed("stalled") >= CLIENTS as f64
    });
    let each = peak.saturating_sub(before) / CLIENTS;
    eprintln!("{each} bytes for a client with {STREAMS} streams");
    assert!(each < MEMORY_MAX, "{each} bytes each");
    victim.assert_serves();
    victim
}
