//! The frames of an HTTP/2 connection as they pass, and what they may cost.
//!
//! h2 bounds what one frame or one stream does; what many cheap ones do together it leaves to whoever serves. Here each connection has
//! two budgets. A request takes one from the first, and a response that comes to its end gives two back: who resets more than every
//! other request (CVE-2023-44487), or has it reset (CVE-2025-8671), runs out. A frame that asks for nothing takes one from the second,
//! and what is sent gives it back: floods of PING, SETTINGS, PRIORITY, empty DATA or tiny windows (CVE-2019-9511 to 9518) run out.
//! No clock is asked: a client that is served may talk as much as that needs.

use super::config::Http2;

const HEAD_BYTES: usize = 9;
/// What a client says before its first frame (RFC 9113, 3.4).
const PREFACE_BYTES: usize = 24;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const END_STREAM: u8 = 1;

/// Requests that one response pays for: itself, and one that came to nothing.
const REQUESTS_BACK: u64 = 2;
/// Bytes sent that pay for one request which is broken off: players seek.
const BYTES_PER_REQUEST: u64 = 1 << 20;
/// Frames that go with a request: windows for stream and connection, a priority, a PING to measure by.
const FRAMES_BACK: u64 = 4;
/// Bytes sent that pay for one frame; clients allow out several KiB at a time.
const BYTES_PER_FRAME: u64 = 1 << 10;

/// What one side sends, cut into frames.
#[derive(Debug)]
struct Cut {
    /// Bytes that belong to no head.
    skip: usize,
    head: [u8; HEAD_BYTES],
    have: usize,
}

/// A frame's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    length: usize,
}

impl Cut {
    fn after(skip: usize) -> Self {
        Self { skip, head: [0; HEAD_BYTES], have: 0 }
    }

    fn is_between(&self) -> bool {
        self.skip == 0 && self.have == 0
    }

    /// The next head in `bytes`, which shrink to what lies behind it; `None` where they end first.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<Frame> {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        *bytes = &bytes[skipped..];
        let taken = (HEAD_BYTES - self.have).min(bytes.len());
        self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
        self.have += taken;
        *bytes = &bytes[taken..];
        if self.have < HEAD_BYTES {
            return None;
        }
        let [a, b, c, kind, flags, d, e, f, g] = self.head;
        self.have = 0;
        self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
        Some(Frame { kind, flags, stream: u32::from_be_bytes([d & 0x7f, e, f, g]), length: self.skip })
    }
}

/// Something that runs out. Invariant: `left <= max`.
#[derive(Debug)]
struct Budget {
    left: u64,
    max: u64,
}

impl Budget {
    fn take(&mut self) -> Result<(), Flood> {
        self.left = self.left.checked_sub(1).ok_or(Flood)?;
        Ok(())
    }

    fn give(&mut self, count: u64) {
        self.left = self.left.saturating_add(count).min(self.max);
    }
}

/// More frames came than the connection's responses account for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more frames than its responses account for")]
pub(super) struct Flood;

/// What the frames of one connection have cost.
#[derive(Debug)]
pub(super) struct Frames {
    came: Cut,
    went: Cut,
    requests: Budget,
    others: Budget,
    /// Bytes of bodies that have not paid for anything yet.
    request_bytes: u64,
    frame_bytes: u64,
    last_stream: u32,
}

impl Frames {
    pub(super) fn new(limits: &Http2) -> Self {
        let budget = |max| Budget { left: max, max };
        Self {
            came: Cut::after(PREFACE_BYTES),
            went: Cut::after(0),
            requests: budget(u64::from(limits.streams_max).saturating_add(u64::from(limits.abandoned_max))),
            others: budget(u64::from(limits.control_frames_max)),
            request_bytes: 0,
            frame_bytes: 0,
            last_stream: 0,
        }
    }

    /// The client sent `bytes`.
    ///
    /// # Errors
    /// It has sent too much for what it got.
    pub(super) fn came(&mut self, mut bytes: &[u8]) -> Result<(), Flood> {
        while let Some(frame) = self.came.next(&mut bytes) {
            if frame.kind == HEADERS {
                self.last_stream = self.last_stream.max(frame.stream);
                self.requests.take()?;
            } else {
                self.others.take()?;
            }
        }
        Ok(())
    }

    /// `bytes` went to the client; how many bodies have gone to their end with them.
    pub(super) fn went(&mut self, mut bytes: &[u8]) -> u64 {
        let mut ended = 0;
        while let Some(frame) = self.went.next(&mut bytes) {
            if !matches!(frame.kind, DATA | HEADERS) {
                continue;
            }
            if frame.flags & END_STREAM != 0 {
                self.requests.give(REQUESTS_BACK);
                self.others.give(FRAMES_BACK);
            }
            if frame.kind == DATA {
                ended += u64::from(frame.flags & END_STREAM != 0);
                self.requests.give(paid(&mut self.request_bytes, frame.length, BYTES_PER_REQUEST));
                self.others.give(paid(&mut self.frame_bytes, frame.length, BYTES_PER_FRAME));
            }
        }
        ended
    }

    /// The last word to a client that floods: GOAWAY with ENHANCE_YOUR_CALM (RFC 9113, 6.8); `None` inside of another frame.
    pub(super) fn farewell(&self) -> Option<[u8; 17]> {
        const GOAWAY: u8 = 7;
        const ENHANCE_YOUR_CALM: u8 = 11;
        let [a, b, c, d] = self.last_stream.to_be_bytes();
        let frame = [0, 0, 8, GOAWAY, 0, 0, 0, 0, 0, a, b, c, d, 0, 0, 0, ENHANCE_YOUR_CALM];
        self.went.is_between().then_some(frame)
    }
}

/// Adds `length` to what has gathered, and takes whole `price`s off it.
fn paid(gathered: &mut u64, length: usize, price: u64) -> u64 {
    *gathered += length as u64;
    let count = *gathered / price;
    *gathered %= price;
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: u8 = 6;

    fn frames() -> Frames {
        let limits = Http2 { streams_max: 2, abandoned_max: 3, control_frames_max: 4, ..Http2::default() };
        let mut frames = Frames::new(&limits);
        frames.came(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("the preface is no frame");
        frames
    }

    fn frame(kind: u8, flags: u8, length: u32) -> Vec<u8> {
        let mut bytes = length.to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags, 0, 0, 0, 1]);
        bytes.resize(HEAD_BYTES + length as usize, 1);
        bytes
    }

    #[test]
    fn frames_are_the_same_however_they_are_cut() {
        let bytes = [frame(PING, 0, 8), frame(HEADERS, END_STREAM, 40), frame(DATA, 0, 0), frame(PING, 0, 8)].concat();
        for size in 1..bytes.len() {
            let mut cut = Cut::after(0);
            let mut seen = Vec::new();
            for mut piece in bytes.chunks(size) {
                seen.extend(std::iter::from_fn(|| cut.next(&mut piece)).map(|frame| (frame.kind, frame.length)));
            }
            assert_eq!(seen, [(PING, 8), (HEADERS, 40), (DATA, 0), (PING, 8)], "in pieces of {size}");
            assert!(cut.is_between());
        }
    }

    #[test]
    fn requests_that_come_to_nothing_run_out_and_answers_pay_for_as_many() {
        let mut client = frames();
        for _ in 0..5 {
            client.came(&frame(HEADERS, END_STREAM, 10)).expect("within the bounds");
        }
        assert_eq!(client.came(&frame(HEADERS, END_STREAM, 10)), Err(Flood));
        let mut client = frames();
        for _ in 0..1000 {
            for _ in 0..2 {
                client.came(&frame(HEADERS, END_STREAM, 10)).expect("every other one is answered");
            }
            assert_eq!(client.went(&frame(DATA, END_STREAM, 10)), 1, "a body has gone to its end");
        }
        assert_eq!(client.went(&[frame(DATA, 0, 10), frame(HEADERS, END_STREAM, 10)].concat()), 0, "no body has");
    }

    #[test]
    fn talk_runs_out_unless_bytes_flow() {
        let mut client = frames();
        for _ in 0..4 {
            client.came(&frame(PING, 0, 8)).expect("within the bounds");
            // An answer to talk is talk.
            client.went(&frame(PING, 1, 8));
        }
        assert_eq!(client.came(&frame(PING, 0, 8)), Err(Flood));
        let mut client = frames();
        for _ in 0..1000 {
            client.came(&frame(8, 0, 4)).expect("it is paid for");
            client.came(&frame(8, 0, 4)).expect("it is paid for");
            client.went(&frame(DATA, 0, 2048));
        }
        let mut client = frames();
        let dribble = (0..1000).take_while(|_| {
            client.went(&frame(DATA, 0, 1));
            client.came(&frame(8, 0, 4)).is_ok()
        });
        assert_eq!(dribble.count(), 4, "a byte at a time pays for nothing");
    }

    #[test]
    fn no_frame_is_broken_into_by_the_last_word() {
        let mut client = frames();
        assert!(client.farewell().is_some());
        let bytes = frame(DATA, 0, 100);
        client.went(&bytes[..50]);
        assert_eq!(client.farewell(), None);
        client.went(&bytes[50..]);
        assert!(client.farewell().is_some());
    }
}
