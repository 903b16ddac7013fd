//! A client of HTTP/2 that writes every frame itself (RFC 9113), right ones and wrong ones.

use std::collections::BTreeMap;

use super::Client;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// First byte of a head's block whose status is this one (RFC 7541, appendix A).
pub(crate) const OK: u8 = 0x88;
pub(crate) const PARTIAL: u8 = 0x8a;

/// A connection, and what has come on its streams.
pub(crate) struct Http2 {
    pub(crate) client: Client,
    pub(crate) streams: BTreeMap<u32, Stream>,
    pub(crate) next: u32,
}

#[derive(Default)]
pub(crate) struct Stream {
    /// First byte of the head's block.
    pub(crate) status: Option<u8>,
    pub(crate) body: Vec<u8>,
    pub(crate) ended: bool,
    pub(crate) reset: bool,
}

pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u32;
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A literal that is not indexed; names below 15 stand in the static table.
pub(crate) fn literal(block: &mut Vec<u8>, name: Result<u8, &str>, value: &str) {
    match name {
        Ok(index) => block.push(index),
        Err(name) => {
            block.extend([0, name.len() as u8]);
            block.extend(name.as_bytes());
        }
    }
    // Seven bits, and seven in each byte after that (RFC 7541, 5.1).
    block.push(value.len().min(127) as u8);
    if let Some(mut more) = value.len().checked_sub(127) {
        while more >= 128 {
            block.push(more as u8 | 128);
            more >>= 7;
        }
        block.push(more as u8);
    }
    block.extend(value.as_bytes());
}

pub(crate) fn head(path: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    // GET, https.
    let mut block = vec![0x82, 0x87];
    literal(&mut block, Ok(4), path);
    literal(&mut block, Ok(1), "a.test");
    fields.iter().for_each(|(name, value)| literal(&mut block, Err(name), value));
    block
}

impl Http2 {
    /// `window`: bytes of each response that may come before more is allowed.
    pub(crate) fn begin(mut client: Client, window: u32) -> Self {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let setting = [&[0, 4][..], &window.to_be_bytes()].concat();
        bytes.extend(frame(SETTINGS, 0, 0, &setting));
        if window > 0 {
            // The connection as a whole is allowed all there is.
            bytes.extend(frame(WINDOW_UPDATE, 0, 0, &(0x7fff_ffff - 65_535_u32).to_be_bytes()));
        }
        client.send(&bytes);
        Self { client, streams: BTreeMap::new(), next: 1 }
    }

    pub(crate) fn ask(&mut self, path: &str, fields: &[(&str, &str)]) -> u32 {
        let stream = self.next;
        self.next += 2;
        self.client.send(&frame(HEADERS, END_STREAM | END_HEADERS, stream, &head(path, fields)));
        self.streams.insert(stream, Stream::default());
        stream
    }

    pub(crate) fn try_read(&mut self) -> Option<Frame> {
        let head = self.client.take(9).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload: self.client.take(length as usize).ok()? })
    }

    /// Reads a frame and does what it says; `None` when the connection is over.
    pub(crate) fn step(&mut self) -> Option<Frame> {
        let frame = self.try_read()?;
        let stream = self.streams.get_mut(&frame.stream);
        match (frame.kind, stream) {
            (HEADERS, Some(stream)) => {
                // A table may change size first.
                stream.status = frame.payload.iter().copied().find(|byte| byte & 0xe0 != 0x20);
                stream.ended |= frame.flags & END_STREAM != 0;
            }
            (DATA, Some(stream)) => {
                stream.body.extend(&frame.payload);
                stream.ended |= frame.flags & END_STREAM != 0;
            }
            (RST_STREAM, Some(stream)) => (stream.ended, stream.reset) = (true, true),
            // Who is being sent away need not be heard.
            (SETTINGS, _) if frame.flags & ACK == 0 => drop(self.client.try_send(&self::frame(SETTINGS, ACK, 0, &[]))),
            (PING, _) if frame.flags & ACK == 0 => {
                drop(self.client.try_send(&self::frame(PING, ACK, 0, &frame.payload)));
            }
            _ => {}
        }
        Some(frame)
    }

    pub(crate) fn finish(&mut self, stream: u32) -> &Stream {
        while !self.streams[&stream].ended {
            self.step().expect("the connection goes on");
        }
        &self.streams[&stream]
    }

    pub(crate) fn allow(&mut self, stream: u32, bytes: u32) {
        self.client.send(&frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes()));
    }

    /// Reads until the connection is over; the code of the last GOAWAY.
    pub(crate) fn until_over(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some(frame) = self.step() {
            if frame.kind == GOAWAY {
                code = Some(u32::from_be_bytes(frame.payload[4..8].try_into().expect("four bytes")));
            }
        }
        code
    }
}
