//! HTTP/2 as the load speaks it (RFC 9113): one request at a time, windows so large that no server waits for them.

use std::{io, net::TcpStream};

use super::{
    load::{Ask, Check},
    records::Records,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length, type, flags, stream.
const HEADER: usize = 9;
const WINDOW_MAX: u32 = (1 << 31) - 1;
/// The window of a connection with which it begins.
const WINDOW_AT_FIRST: u32 = (1 << 16) - 1;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// One connection.
pub(crate) struct Session {
    records: Records,
    /// What came and does not yet make a frame.
    buffer: Vec<u8>,
    /// The stream of the request under way.
    stream: u32,
    /// Bytes of its body so far.
    come: u64,
    has_head: bool,
    /// Bytes that the server may still send before the window of the connection is renewed.
    window: u32,
}

impl Session {
    /// Says how the connection is to be.
    pub(crate) fn begin(socket: &TcpStream, mut records: Records) -> io::Result<Self> {
        // HEADER_TABLE_SIZE 0, so that a status is one byte; ENABLE_PUSH 0; INITIAL_WINDOW_SIZE.
        let settings = [(1_u16, 0_u32), (2, 0), (4, WINDOW_MAX)];
        let settings: Vec<u8> =
            settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
        let mut text = PREFACE.to_vec();
        text.extend(frame(SETTINGS, 0, 0, &settings));
        text.extend(frame(WINDOW_UPDATE, 0, 0, &(WINDOW_MAX - WINDOW_AT_FIRST).to_be_bytes()));
        records.send(socket, &text)?;
        Ok(Self {
            records,
            buffer: Vec::new(),
            // Clients have the odd ones.
            stream: u32::MAX,
            come: 0,
            has_head: false,
            window: WINDOW_MAX,
        })
    }

    /// Asks on a stream of its own.
    pub(crate) fn ask(&mut self, socket: &TcpStream, ask: &Ask) -> io::Result<()> {
        self.stream = self.stream.wrapping_add(2);
        (self.come, self.has_head) = (0, false);
        // RFC 7541, appendix A: ":method GET", ":scheme https"; then names from the table with values of our own.
        let mut block = vec![0x82, 0x87];
        literal(&mut block, 1, b"localhost");
        literal(&mut block, 4, ask.path.as_bytes());
        if !ask.whole {
            literal(&mut block, 50, format!("bytes={}-{}", ask.start, ask.start + ask.len - 1).as_bytes());
        }
        let mut text = frame(HEADERS, END_STREAM | END_HEADERS, self.stream, &block);
        if self.window < WINDOW_MAX / 2 {
            text.extend(frame(WINDOW_UPDATE, 0, 0, &(WINDOW_MAX - self.window).to_be_bytes()));
            self.window = WINDOW_MAX;
        }
        self.records.send(socket, &text)
    }

    /// Takes what has come; tells whether the response is whole.
    pub(crate) fn read(&mut self, socket: &TcpStream, ask: &Ask, verify: Option<&Check<'_>>) -> io::Result<bool> {
        while self.records.open(socket, &mut self.buffer)?.is_some() {
            let mut at = 0;
            let mut whole = false;
            while let Some(came) = Frame::first_of(&self.buffer[at..]) {
                at += HEADER + came.payload.len();
                match came.kind {
                    DATA => {
                        if verify.is_some_and(|verify| !verify(ask, self.come, came.payload)) {
                            return Err(io::Error::other("a byte is wrong"));
                        }
                        self.come += came.payload.len() as u64;
                        self.window = self.window.saturating_sub(came.payload.len() as u32);
                    }
                    HEADERS => {
                        check_status(came.payload, ask.whole)?;
                        self.has_head = true;
                    }
                    SETTINGS | PING if came.flags & ACK == 0 => {
                        let payload = if came.kind == PING { came.payload } else { &[] };
                        self.records.send(socket, &frame(came.kind, ACK, 0, payload))?;
                    }
                    SETTINGS | PING | WINDOW_UPDATE => {}
                    kind => return Err(io::Error::other(format!("a frame of type {kind}"))),
                }
                if matches!(came.kind, DATA | HEADERS) && came.flags & END_STREAM != 0 {
                    if came.stream != self.stream || !self.has_head || self.come != ask.len {
                        return Err(io::Error::other(format!("another length than asked for: {}", self.come)));
                    }
                    whole = true;
                }
            }
            self.buffer.drain(..at);
            if whole {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

struct Frame<'a> {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The first one in `bytes`, if it is all there.
    fn first_of(bytes: &'a [u8]) -> Option<Self> {
        let header = bytes.get(..HEADER)?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        let payload = bytes.get(HEADER..HEADER + length)?;
        let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
        Some(Self { kind: header[3], flags: header[4], stream, payload })
    }
}

/// Writes a frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A header field that is not to be remembered, its name by number in the static table (RFC 7541, 6.2.2).
fn literal(block: &mut Vec<u8>, name: u8, value: &[u8]) {
    // Numbers of 4 bits; larger ones go on in the next byte. Values are shorter than 127 bytes here.
    if name < 15 {
        block.push(name);
    } else {
        block.extend([15, name - 15]);
    }
    block.push(value.len() as u8);
    block.extend(value);
}

/// Servers write the status first, as a number of the static table.
fn check_status(block: &[u8], whole: bool) -> io::Result<()> {
    // An update of the table's size, to the 0 that was asked for, may stand before it.
    let status = block.iter().find(|byte| **byte & 0xe0 != 0x20);
    let expected = if whole { 0x88 } else { 0x8a };
    if status == Some(&expected) { Ok(()) } else { Err(io::Error::other("another status than expected")) }
}
