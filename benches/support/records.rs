//! TLS 1.3 as a client that does not decrypt what it need not (RFC 8446, 5.2): the load must be cheaper than the servers.
//!
//! rustls makes the handshake and hands out the keys. From then on records are walked by their headers: those that begin a
//! response are opened, the others dropped in the kernel. A record's length tells how much it held, as neither server pads.

use std::{
    io::{self, Read as _},
    net::TcpStream,
    sync::Arc,
};

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};
use rustls::{
    ClientConfig, ClientConnection, ConnectionTrafficSecrets, RootCertStore,
    crypto::aws_lc_rs::{cipher_suite::TLS13_AES_128_GCM_SHA256, default_provider},
    pki_types::{CertificateDer, ServerName},
};

/// A record's type, version and length.
const HEADER: usize = 5;
/// The true type of a record's content, and the seal's tag.
const OVERHEAD: usize = 1 + 16;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// A connection after its handshake.
pub(crate) struct Records {
    sealing: Direction,
    opening: Direction,
    header: Vec<u8>,
    body: Vec<u8>,
    /// Bytes of the record still to be dropped.
    left: usize,
}

struct Direction {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

/// What is offered to servers: one suite, so that all do the same work, and `protocol` (ALPN).
pub(crate) fn offer(root: CertificateDer<'static>, protocol: &str) -> io::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(root).map_err(io::Error::other)?;
    let mut provider = default_provider();
    provider.cipher_suites = vec![TLS13_AES_128_GCM_SHA256];
    let config =
        ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(&[&rustls::version::TLS13]);
    let mut config = config.map_err(io::Error::other)?.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.into()];
    config.enable_secret_extraction = true;
    Ok(Arc::new(config))
}

impl Records {
    /// Makes the handshake on a socket that blocks.
    pub(crate) fn connect(mut socket: &TcpStream, offer: &Arc<ClientConfig>) -> io::Result<Self> {
        let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
        let mut connection = ClientConnection::new(Arc::clone(offer), name).map_err(io::Error::other)?;
        loop {
            while connection.wants_write() {
                connection.write_tls(&mut socket)?;
            }
            if !connection.is_handshaking() {
                break;
            }
            // One record at a time: what rustls had read beyond the handshake would be lost with it.
            let mut record = vec![0; HEADER];
            socket.read_exact(&mut record)?;
            record.resize(HEADER + length_of(&record), 0);
            socket.read_exact(&mut record[HEADER..])?;
            let mut rest = &record[..];
            while !rest.is_empty() {
                connection.read_tls(&mut rest)?;
            }
            connection.process_new_packets().map_err(io::Error::other)?;
        }
        if connection.alpn_protocol() != offer.alpn_protocols.first().map(Vec::as_slice) {
            return Err(io::Error::other("the server did not take the protocol that was offered"));
        }
        let secrets = connection.dangerous_extract_secrets().map_err(io::Error::other)?;
        let (header, body) = (Vec::with_capacity(HEADER), Vec::new());
        Ok(Self { sealing: Direction::new(&secrets.tx)?, opening: Direction::new(&secrets.rx)?, header, body, left: 0 })
    }

    /// Sends `text` as one record.
    pub(crate) fn send(&mut self, socket: &TcpStream, text: &[u8]) -> io::Result<()> {
        let length = u16::try_from(text.len() + OVERHEAD).map_err(io::Error::other)?.to_be_bytes();
        let header = [APPLICATION_DATA, 3, 3, length[0], length[1]];
        let mut inner = [text, &[APPLICATION_DATA]].concat();
        let nonce = self.sealing.nonce();
        self.sealing.key.seal_in_place_append_tag(nonce, Aad::from(header), &mut inner).map_err(io::Error::other)?;
        let mut record = header.to_vec();
        record.extend_from_slice(&inner);
        // A request is smaller than any socket's buffer.
        if send(socket, &record, SendFlags::NOSIGNAL)? == record.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    /// Opens the next record of the application onto the end of `into`; gives its length, or `None` if it has not all come.
    pub(crate) fn open(&mut self, socket: &TcpStream, into: &mut Vec<u8>) -> io::Result<Option<usize>> {
        loop {
            if self.begin(socket)?.is_none() {
                return Ok(None);
            }
            while self.left > 0 {
                let at = self.body.len() - self.left;
                match receive(socket, &mut self.body[at..], RecvFlags::empty())? {
                    Some(count) => self.left -= count,
                    None => return Ok(None),
                }
            }
            let header: [u8; HEADER] = self.header[..].try_into().map_err(io::Error::other)?;
            self.header.clear();
            let nonce = self.opening.nonce();
            let opened = self.opening.key.open_in_place(nonce, Aad::from(header), &mut self.body);
            match opened.map_err(|_| io::Error::other("a record's seal is broken"))?.split_last() {
                Some((&APPLICATION_DATA, text)) => {
                    into.extend_from_slice(text);
                    return Ok(Some(text.len()));
                }
                // Tickets for later sessions.
                Some((&HANDSHAKE, _)) => {}
                _ => return Err(io::Error::other("neither data nor a ticket: an alert, or padding")),
            }
        }
    }

    /// Drops the next record, unopened; gives the length of what it held, or `None` if it has not all come.
    pub(crate) fn skip(&mut self, socket: &TcpStream) -> io::Result<Option<usize>> {
        if self.begin(socket)?.is_none() {
            return Ok(None);
        }
        while self.left > 0 {
            match receive(socket, &mut self.body[..self.left], RecvFlags::TRUNC)? {
                Some(count) => self.left -= count,
                None => return Ok(None),
            }
        }
        self.opening.sequence += 1;
        self.header.clear();
        self.body
            .len()
            .checked_sub(OVERHEAD)
            .map(Some)
            .ok_or_else(|| io::Error::other("a record too short for its seal"))
    }

    /// Reads a record's header, and makes room for its body.
    fn begin(&mut self, socket: &TcpStream) -> io::Result<Option<()>> {
        while self.header.len() < HEADER {
            let mut piece = [0; HEADER];
            let room = HEADER - self.header.len();
            let Some(count) = receive(socket, &mut piece[..room], RecvFlags::empty())? else { return Ok(None) };
            self.header.extend_from_slice(&piece[..count]);
            if self.header.len() == HEADER {
                if self.header[0] != APPLICATION_DATA {
                    return Err(io::Error::other("a record that is not encrypted"));
                }
                self.left = length_of(&self.header);
                self.body.resize(self.left, 0);
            }
        }
        Ok(Some(()))
    }
}

impl Direction {
    fn new((sequence, secrets): &(u64, ConnectionTrafficSecrets)) -> io::Result<Self> {
        let ConnectionTrafficSecrets::Aes128Gcm { key, iv } = secrets else {
            return Err(io::Error::other("another suite than was offered"));
        };
        let key = UnboundKey::new(&AES_128_GCM, key.as_ref()).map_err(io::Error::other)?;
        let iv = iv.as_ref().try_into().map_err(io::Error::other)?;
        Ok(Self { key: LessSafeKey::new(key), iv, sequence: *sequence })
    }

    /// The nonce of the next record (RFC 8446, 5.3).
    fn nonce(&mut self) -> Nonce {
        let mut nonce = self.iv;
        for (byte, of) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= of;
        }
        self.sequence += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

fn length_of(header: &[u8]) -> usize {
    usize::from(u16::from_be_bytes([header[3], header[4]]))
}

/// Takes what has come, or drops it (`MSG_TRUNC`); `None` if nothing has. The end of the connection is an error.
pub(crate) fn receive(socket: &TcpStream, into: &mut [u8], flags: RecvFlags) -> io::Result<Option<usize>> {
    match recv(socket, into, flags) {
        Err(Errno::AGAIN) => Ok(None),
        Err(err) => Err(err.into()),
        // What is dropped is the second of the two.
        Ok((kept, dropped)) => match kept.max(dropped) {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended before the response")),
            count => Ok(Some(count)),
        },
    }
}
