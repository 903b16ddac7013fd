//! One connection's TLS: what comes from the wire goes in, what is to go out comes out. Knows no socket and never waits.
//!
//! [`Session::receive`] -> hello -> [`Session::answer`]: server's configuration, keys, signature -> [`Session::answered`] -> handshake -> [`Session::take`] plaintext
//! [`Session::encrypt`] plaintext -> records -> [`Session::write_to`]

use std::{
    io::{self, IoSlice, Read, Write},
    sync::Arc,
};

use rustls::{
    CipherSuite, HandshakeKind, ProtocolVersion, ServerConnection,
    server::{Accepted, AcceptedAlert, Acceptor},
};

use super::{Keys, Protocol, Server, kernel::Cipher, sealing::PLAINTEXT_MAX};

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// RFC 5246.
    Tls12,
    /// RFC 8446.
    Tls13,
}

/// What a handshake has agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Established {
    /// The version.
    pub version: Version,
    /// Whether an earlier session was taken up again.
    pub resumed: bool,
    /// What is spoken inside; HTTP/1.1 where the client has not said.
    pub protocol: Protocol,
}

/// TLS of one connection.
pub struct Session {
    server: Arc<Server>,
    state: State,
    /// Whether whatever belongs to the handshake is work to be done elsewhere, and not only what takes a public key.
    is_costly: bool,
    records: Records,
}

/// Follows the records of a handshake (RFC 8446, 5.1), to know when there is something to work on.
#[derive(Debug, Default)]
struct Records {
    header: [u8; HEADER],
    have: usize,
    left: usize,
    /// Whether one has ended, and something has come behind it.
    first_ended: bool,
    more: bool,
}

impl Records {
    /// Whether a record ends in these bytes, or is longer than any may be.
    fn end_in(&mut self, mut bytes: &[u8]) -> bool {
        let mut ended = false;
        while let Some((first, rest)) = bytes.split_first() {
            self.more |= self.first_ended;
            if self.left > 0 {
                let passed = self.left.min(bytes.len());
                self.left -= passed;
                bytes = &bytes[passed..];
                ended |= self.left == 0;
                self.first_ended |= ended;
                continue;
            }
            self.header[self.have] = *first;
            self.have += 1;
            bytes = rest;
            if self.have == HEADER {
                self.have = 0;
                self.left = usize::from(u16::from_be_bytes([self.header[3], self.header[4]]));
                ended |= self.left == 0 || self.left > RECORD_MAX;
            }
        }
        ended
    }
}

/// What is read, and whether a record has ended in it.
struct Followed<'a> {
    wire: &'a mut dyn Read,
    records: &'a mut Records,
    ended: bool,
}

impl Read for Followed<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.wire.read(into)?;
        self.ended |= self.records.end_in(&into[..count]);
        Ok(count)
    }
}

enum State {
    /// The client's first message is on its way.
    Hello(Box<Acceptor>),
    /// It has come, and waits to be answered.
    Greeted(Box<Accepted>),
    /// Something else has come whose answer costs as much.
    Asked(Box<ServerConnection>),
    /// Somebody works on the answer.
    Away,
    /// It is answered.
    Open(Box<ServerConnection>),
    /// It was wrong; this is what to tell the client.
    Refused(AcceptedAlert),
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = match &self.state {
            State::Hello(_) => "Hello",
            State::Greeted(_) => "Greeted",
            State::Asked(_) => "Asked",
            State::Away => "Away",
            State::Open(_) => "Open",
            State::Refused(_) => "Refused",
        };
        f.debug_struct("Session").field("state", &state).finish_non_exhaustive()
    }
}

/// An answer, as the work on it has left it.
pub struct Answer(Answered);

enum Answered {
    /// To the client's first message.
    Hello(Result<Box<ServerConnection>, (rustls::Error, AcceptedAlert)>),
    /// To a later one.
    Later(Box<ServerConnection>, Result<(), rustls::Error>),
}

/// Whether what comes next may take a public key to answer: the second hello of a client that was asked for another share (RFC 8446, 4.1.4), and the shares of TLS 1.2.
fn takes_a_key(connection: &ServerConnection) -> bool {
    connection.negotiated_key_exchange_group().is_none()
        && (connection.protocol_version() == Some(ProtocolVersion::TLSv1_2)
            || connection.handshake_kind() == Some(HandshakeKind::FullWithHelloRetryRequest))
}

/// Length of a record's header, behind which TLS 1.2 has its plaintext copied into a buffer that begins with a page (RFC 5246, 6.2.1).
const HEADER: usize = 5;
/// Longest payload of a record (RFC 5246, 6.2.3; less by RFC 8446, 5.2).
const RECORD_MAX: usize = (16 << 10) + 2048;
/// Bytes that go into a record of their own, so that the rest is copied from elsewhere in its pages.
const ASIDE: usize = 64;

/// Whether records of `body`, behind so many bytes, would be copied at a quarter of the speed: `rep movsb`, by which the C library copies them, takes a processor
/// of AMD (Zen 3 and 4) that long where the target lies up to 32 bytes further in its page than what is copied does in its own (glibc bug 30994; measured: 3.0 and 11 GB/s). All
/// records of one call lie alike, and what is asked for from the first byte on begins with a page.
fn is_copied_slowly(before: usize, body: &[u8]) -> bool {
    const PAGE: usize = 4096;
    let further = (HEADER + before).wrapping_sub(body.as_ptr().addr()) % PAGE;
    (1..=32).contains(&further) && body.len() >= PAGE
}

/// Whether `body` is encrypted from where it lies by records of its own, which are no more than it takes together with so many bytes before it.
fn goes_alone(before: usize, body: usize) -> bool {
    let records = |bytes: usize| bytes.div_ceil(PLAINTEXT_MAX);
    before > 0 && records(before) + records(body) == records(before + body)
}

fn refused(err: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, err)
}

impl Session {
    /// Waits for the client's first message.
    pub fn new(server: Arc<Server>) -> Self {
        Self { server, state: State::Hello(Box::default()), is_costly: false, records: Records::default() }
    }

    /// Whether all of what belongs to the handshake becomes work for whoever has time, since its client costs much; else only what takes a public key does.
    pub fn set_costly(&mut self, is_costly: bool) {
        self.is_costly = is_costly;
    }

    /// Reads once from `wire`, and works on what came; 0 where nothing more will come. All plaintext has to be taken before, and all [work](Session::answer) done.
    ///
    /// # Errors
    /// As of `wire`, or the client breaks the protocol. What it is to be told of that waits for [`Session::write_to`].
    pub fn receive(&mut self, wire: &mut dyn Read) -> io::Result<usize> {
        let mut followed = Followed { wire, records: &mut self.records, ended: false };
        let mut nothing_whole = false;
        let count = match &mut self.state {
            State::Hello(acceptor) => acceptor.read_tls(&mut followed)?,
            State::Open(connection) if connection.is_handshaking() => {
                let count = connection.read_tls(&mut followed)?;
                nothing_whole = !followed.ended && count > 0;
                count
            }
            State::Open(connection) => connection.read_tls(wire)?,
            State::Greeted(_) | State::Asked(_) | State::Away | State::Refused(_) => {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        };
        if let State::Hello(acceptor) = &mut self.state {
            match acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => self.state = State::Greeted(Box::new(accepted)),
                Err((err, alert)) => {
                    self.state = State::Refused(alert);
                    return Err(refused(err));
                }
            }
        }
        if nothing_whole {
            // There is nothing to work on: who sends a handshake by single bytes makes no more work than one.
            return Ok(count);
        }
        let costs_much =
            |connection: &ServerConnection| connection.is_handshaking() && (self.is_costly || takes_a_key(connection));
        if matches!(&self.state, State::Open(connection) if count > 0 && costs_much(connection)) {
            self.state = match std::mem::replace(&mut self.state, State::Away) {
                State::Open(connection) => State::Asked(connection),
                other => other,
            };
        } else {
            self.work()?;
        }
        Ok(count)
    }

    fn work(&mut self) -> io::Result<()> {
        if let State::Open(connection) = &mut self.state {
            connection.process_new_packets().map_err(refused)?;
        }
        Ok(())
    }

    /// Whether there is work on an answer.
    pub fn waits_for_answer(&self) -> bool {
        matches!(self.state, State::Greeted(_) | State::Asked(_))
    }

    /// The work on the answer to what the client has said, where that is most of what a handshake costs (0.2 ms by ECDSA, 1 ms by RSA). May be done by any
    /// thread; what it comes to is for [`Session::answered`]. Nothing else goes on before.
    pub fn answer(&mut self) -> Option<Box<dyn FnOnce() -> Answer + Send>> {
        match std::mem::replace(&mut self.state, State::Away) {
            State::Greeted(accepted) => {
                let config = self.server.config_for(&accepted.client_hello());
                Some(Box::new(move || Answer(Answered::Hello(accepted.into_connection(config).map(Box::new)))))
            }
            State::Asked(mut connection) => Some(Box::new(move || {
                let result = connection.process_new_packets().map(drop);
                Answer(Answered::Later(connection, result))
            })),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// Goes on from there.
    ///
    /// # Errors
    /// They do not come to terms. What the client is to be told of that waits for [`Session::write_to`].
    pub fn answered(&mut self, Answer(answer): Answer) -> io::Result<()> {
        match answer {
            Answered::Hello(Ok(mut connection)) => {
                // The caller bounds what it has encrypted at once.
                connection.set_buffer_limit(None);
                // What belongs to the rest of the handshake may have come with the first hello.
                let is_retried = connection.handshake_kind() == Some(HandshakeKind::FullWithHelloRetryRequest);
                if is_retried || (self.records.more && (self.is_costly || takes_a_key(&connection))) {
                    self.state = State::Asked(connection);
                    return Ok(());
                }
                self.state = State::Open(connection);
                self.work()
            }
            Answered::Hello(Err((err, alert))) => {
                self.state = State::Refused(alert);
                Err(refused(err))
            }
            Answered::Later(connection, result) => {
                self.state = State::Open(connection);
                result.map_err(refused)
            }
        }
    }

    /// Whether the handshake is not over.
    pub fn is_handshaking(&self) -> bool {
        if let State::Open(connection) = &self.state { connection.is_handshaking() } else { true }
    }

    /// What the handshake has agreed on, once it is over.
    pub fn established(&self) -> Option<Established> {
        let State::Open(connection) = &self.state else { return None };
        let version = match connection.protocol_version()? {
            ProtocolVersion::TLSv1_2 => Version::Tls12,
            _ => Version::Tls13,
        };
        let resumed = connection.handshake_kind()? == HandshakeKind::Resumed;
        let is_http2 = connection.alpn_protocol() == Some(Protocol::Http2.name().as_bytes());
        let protocol = if is_http2 { Protocol::Http2 } else { Protocol::Http1 };
        (!connection.is_handshaking()).then_some(Established { version, resumed, protocol })
    }

    /// Takes plaintext that has come; 0 where the client has said that no more will come, `None` where more has to be received.
    ///
    /// # Errors
    /// None that has not been told before.
    pub fn take(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        let State::Open(connection) = &mut self.state else { return Ok(None) };
        match connection.reader().read(into) {
            Ok(count) => Ok(Some(count)),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => Ok(None),
            // The client has closed its half without saying so inside of TLS. Nothing that a client sends here can be cut short
            // unnoticed: requests say themselves where they end.
            Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => Ok(Some(0)),
            Err(err) => Err(err),
        }
    }

    /// Encrypts `parts` into as few records as they fit, straight from where they lie; bytes taken.
    ///
    /// # Errors
    /// The session has ended.
    pub fn encrypt(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let State::Open(connection) = &mut self.state else { return Err(io::ErrorKind::NotConnected.into()) };
        let copies = connection.protocol_version() == Some(ProtocolVersion::TLSv1_2);
        let mut writer = connection.writer();
        let Some((body, before)) = parts.split_last() else { return Ok(0) };
        let length: usize = before.iter().map(|part| part.len()).sum();
        if copies && is_copied_slowly(length, body) {
            let (first, rest) = body.split_at(ASIDE);
            let mut begun = before.to_vec();
            begun.push(IoSlice::new(first));
            let taken = writer.write_vectored(&begun)?;
            return Ok(if taken < length + ASIDE { taken } else { taken + writer.write(rest)? });
        }
        if !copies && goes_alone(length, body.len()) {
            let first = writer.write_vectored(before)?;
            // Less is taken of a session that is over.
            return Ok(if first < length { first } else { first + writer.write(body)? });
        }
        writer.write_vectored(parts)
    }

    /// Whether something waits to go out.
    pub fn has_output(&self) -> bool {
        match &self.state {
            State::Open(connection) => connection.wants_write(),
            State::Hello(_) | State::Greeted(_) | State::Asked(_) | State::Away => false,
            State::Refused(_) => true,
        }
    }

    /// Writes once to `wire`; bytes that it took.
    ///
    /// # Errors
    /// As of `wire`.
    pub fn write_to(&mut self, wire: &mut dyn Write) -> io::Result<usize> {
        match &mut self.state {
            State::Open(connection) => connection.write_tls(wire),
            State::Hello(_) | State::Greeted(_) | State::Asked(_) | State::Away => Ok(0),
            State::Refused(alert) => alert.write(wire),
        }
    }

    /// Whether the kernel may be given this session at the end of its handshake.
    pub fn may_be_handed_over(&self) -> bool {
        self.server.offload().count() > 0
    }

    /// Whether the kernel can go on from here. The caller has to have read no byte behind the handshake.
    pub fn can_be_handed_over(&self) -> bool {
        let State::Open(connection) = &self.state else { return false };
        let Some(Established { version, protocol: Protocol::Http1, .. }) = self.established() else { return false };
        let cipher = connection.negotiated_cipher_suite().and_then(|suite| cipher_of(suite.suite()));
        !connection.wants_write() && cipher.is_some_and(|cipher| self.server.offload().takes(version, cipher))
    }

    /// Gives the keys away, and with them the session.
    ///
    /// # Errors
    /// [`Session::can_be_handed_over`] would have said so.
    pub fn into_keys(self) -> io::Result<Keys> {
        let version = self.established().ok_or(io::ErrorKind::NotConnected)?.version;
        let State::Open(connection) = self.state else { return Err(io::ErrorKind::NotConnected.into()) };
        let secrets = connection.dangerous_extract_secrets().map_err(refused)?;
        Keys::new(version, &secrets).ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// Says inside of TLS that nothing more will be sent.
    pub fn close(&mut self) {
        if let State::Open(connection) = &mut self.state {
            connection.send_close_notify();
        }
    }
}

fn cipher_of(suite: CipherSuite) -> Option<Cipher> {
    use CipherSuite as Suite;
    match suite {
        Suite::TLS13_AES_128_GCM_SHA256
        | Suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | Suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => Some(Cipher::Aes128Gcm),
        Suite::TLS13_AES_256_GCM_SHA384
        | Suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
        | Suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => Some(Cipher::Aes256Gcm),
        Suite::TLS13_CHACHA20_POLY1305_SHA256
        | Suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        | Suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => Some(Cipher::ChaCha20Poly1305),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_with_a_page_is_not_copied_as_it_lies() {
        let memory = vec![0; 16 << 10];
        let page = memory.as_ptr().align_offset(4096);
        let from = |at: usize| &memory[page + at..];
        assert!(is_copied_slowly(0, from(0)) && is_copied_slowly(0, from(4)) && is_copied_slowly(0, from(4096 - 27)));
        // Aside, the rest lies well; and so does what follows a head.
        assert!(!is_copied_slowly(0, from(ASIDE)) && !is_copied_slowly(300, from(0)));
        assert!(
            !is_copied_slowly(0, from(5)) && !is_copied_slowly(0, from(4096 - 28)) && is_copied_slowly(4096, from(0))
        );
        assert!(!is_copied_slowly(0, &from(0)[..4095]), "no loss, and two records for one");
    }

    #[test]
    fn a_body_goes_alone_where_that_takes_no_more_records() {
        assert!(
            goes_alone(500, PLAINTEXT_MAX) && goes_alone(500, 4 * PLAINTEXT_MAX) && goes_alone(1, 2 * PLAINTEXT_MAX)
        );
        assert!(!goes_alone(500, 100) && !goes_alone(500, PLAINTEXT_MAX - 500) && !goes_alone(500, PLAINTEXT_MAX + 1));
        assert!(goes_alone(500, PLAINTEXT_MAX - 499) && !goes_alone(0, PLAINTEXT_MAX));
    }
}
