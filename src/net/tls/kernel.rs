//! What of TLS the kernel can take over, and the form in which it takes keys.

use std::{
    io,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::AsFd,
};

use rustls::ConnectionTrafficSecrets;

use super::Version;
use crate::sys::kernel_tls::{self, Direction};

/// The kinds of keys, as linux/tls.h numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cipher {
    Aes128Gcm = 51,
    Aes256Gcm = 52,
    ChaCha20Poly1305 = 54,
}

impl Cipher {
    const ALL: [Self; 3] = [Self::Aes128Gcm, Self::Aes256Gcm, Self::ChaCha20Poly1305];

    fn key_bytes(self) -> usize {
        if self == Self::Aes128Gcm { 16 } else { 32 }
    }

    /// What a record is longer than its plaintext.
    fn overhead(self, version: Version) -> u64 {
        const HEADER_AND_TAG: u64 = 5 + 16;
        match (version, self) {
            // The type of what is inside (RFC 8446, 5.2).
            (Version::Tls13, _) => HEADER_AND_TAG + 1,
            // The explicit part of the nonce (RFC 5288, 3).
            (Version::Tls12, Self::Aes128Gcm | Self::Aes256Gcm) => HEADER_AND_TAG + 8,
            (Version::Tls12, Self::ChaCha20Poly1305) => HEADER_AND_TAG,
        }
    }
}

/// What the running kernel takes over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    ciphers: [[bool; 3]; 2],
}

impl Offload {
    /// Versions with ciphers that there are.
    pub const CIPHERS: usize = 2 * Cipher::ALL.len();

    /// Asks the kernel, by a pair of sockets for each version and cipher.
    pub fn probe() -> Self {
        let mut offload = Self::default();
        for (version, row) in [Version::Tls12, Version::Tls13].into_iter().zip(&mut offload.ciphers) {
            for (cipher, can) in Cipher::ALL.into_iter().zip(row) {
                let tried = try_out(version, cipher);
                tracing::debug!(?version, ?cipher, ?tried, "asked the kernel for TLS");
                *can = tried.is_ok();
            }
        }
        offload
    }

    /// Versions with ciphers that it takes, of six.
    pub fn count(self) -> usize {
        self.ciphers.iter().flatten().filter(|can| **can).count()
    }

    pub(super) fn takes(self, version: Version, cipher: Cipher) -> bool {
        let row = if version == Version::Tls12 { self.ciphers[0] } else { self.ciphers[1] };
        Cipher::ALL.into_iter().zip(row).any(|(known, can)| known == cipher && can)
    }
}

fn try_out(version: Version, cipher: Cipher) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let keys = layout(version, cipher, &[0; 32][..cipher.key_bytes()], [0; 12], 0);
    kernel_tls::attach(&client)?;
    kernel_tls::set_keys(&client, Direction::Send, &keys)?;
    kernel_tls::set_keys(&client, Direction::Receive, &keys)
}

/// `version, cipher, iv, key, salt, number of the next record`, as linux/tls.h has it for each cipher.
fn layout(version: Version, cipher: Cipher, key: &[u8], iv: [u8; 12], sequence: u64) -> Vec<u8> {
    let number: u16 = if version == Version::Tls12 { 0x0303 } else { 0x0304 };
    let mut info = Vec::with_capacity(64);
    info.extend_from_slice(&number.to_ne_bytes());
    info.extend_from_slice(&(cipher as u16).to_ne_bytes());
    let (salt, rest) = if cipher == Cipher::ChaCha20Poly1305 { iv.split_at(0) } else { iv.split_at(4) };
    info.extend_from_slice(rest);
    info.extend_from_slice(key);
    info.extend_from_slice(salt);
    info.extend_from_slice(&sequence.to_be_bytes());
    info
}

/// Keys of both directions of one connection, on their way to the kernel.
pub struct Keys {
    version: Version,
    cipher: Cipher,
    send: Vec<u8>,
    receive: Vec<u8>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("version", &self.version).field("cipher", &self.cipher).finish_non_exhaustive()
    }
}

impl Keys {
    pub(super) fn new(version: Version, secrets: &rustls::ExtractedSecrets) -> Option<Self> {
        let (cipher, send) = described(version, &secrets.tx.1, secrets.tx.0, true)?;
        let (_, receive) = described(version, &secrets.rx.1, secrets.rx.0, false)?;
        Some(Self { version, cipher, send, receive })
    }

    /// Hands them over. The socket has been [`kernel_tls::attach`]ed; where this fails, nobody can go on with the connection.
    ///
    /// # Errors
    /// As of the kernel.
    pub fn install(self, socket: impl AsFd) -> io::Result<Sending> {
        let base = kernel_tls::tcp_bytes(&socket)?.ok_or(io::ErrorKind::ResourceBusy)?;
        kernel_tls::set_keys(&socket, Direction::Send, &self.send)?;
        kernel_tls::set_keys(&socket, Direction::Receive, &self.receive)?;
        let overhead = self.cipher.overhead(self.version);
        Ok(Sending {
            first: next_record(&self.send),
            base,
            overhead,
            size: self.send.len(),
            head: [self.send[0], self.send[1], self.send[2], self.send[3]],
        })
    }
}

/// The direction in which the kernel encrypts.
#[derive(Clone, Copy, Debug)]
pub struct Sending {
    /// Number of the first record that the kernel made, and what TCP had been given before it.
    first: u64,
    base: u64,
    overhead: u64,
    size: usize,
    head: [u8; 4],
}

impl Sending {
    /// Records sent with these keys, those before the kernel had them included.
    ///
    /// # Errors
    /// As of the kernel.
    pub fn records(&self, socket: impl AsFd) -> io::Result<u64> {
        let mut keys = vec![0; self.size];
        keys[..4].copy_from_slice(&self.head);
        kernel_tls::sending_keys(socket, &mut keys)?;
        Ok(next_record(&keys))
    }

    /// Whether TCP has been given the records of all `plaintext` bytes: the kernel keeps some back where TCP has no room for them,
    /// and what it still keeps when the connection is shut down is lost.
    ///
    /// # Errors
    /// As of the kernel.
    pub fn is_drained(&self, socket: impl AsFd, plaintext: u64) -> io::Result<bool> {
        let made = self.records(&socket)?.saturating_sub(self.first);
        let expected = self.base + plaintext + made * self.overhead;
        Ok(kernel_tls::tcp_bytes(&socket)?.is_some_and(|given| given >= expected))
    }
}

fn next_record(keys: &[u8]) -> u64 {
    keys.last_chunk::<8>().map_or(0, |last| u64::from_be_bytes(*last))
}

fn described(
    version: Version,
    secrets: &ConnectionTrafficSecrets,
    sequence: u64,
    sends: bool,
) -> Option<(Cipher, Vec<u8>)> {
    let (cipher, key, iv) = match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Cipher::Aes128Gcm, key, iv),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Cipher::Aes256Gcm, key, iv),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (Cipher::ChaCha20Poly1305, key, iv),
        _ => return None,
    };
    let mut iv: [u8; 12] = iv.as_ref().try_into().ok()?;
    if sends && version == Version::Tls12 && cipher != Cipher::ChaCha20Poly1305 {
        // The explicit nonce is the sender's choice. rustls has used this one, xor the number, for the records so far; the kernel
        // counts up from what it is given. Half of all nonces away, the two never meet: a nonce used twice gives the key away.
        iv[4] ^= 0x80;
    }
    Some((cipher, layout(version, cipher, key.as_ref(), iv, sequence)))
}

#[cfg(test)]
mod tests {
    use rustls::crypto::cipher::{AeadKey, Iv};

    use super::*;

    const IV: [u8; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

    fn key() -> AeadKey {
        AeadKey::from([7; 32])
    }

    #[test]
    fn aes_256_has_its_salt_behind_the_key() {
        let secrets = ConnectionTrafficSecrets::Aes256Gcm { key: key(), iv: Iv::new(IV) };
        let (cipher, info) = described(Version::Tls13, &secrets, 258, true).expect("known");
        let mut expected = vec![4, 3, 52, 0, 5, 6, 7, 8, 9, 10, 11, 12];
        expected.extend([7; 32]);
        expected.extend([1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!((cipher, info), (Cipher::Aes256Gcm, expected));
    }

    #[test]
    fn aes_128_is_56_bytes_shorter_by_half_a_key() {
        let info = layout(Version::Tls13, Cipher::Aes128Gcm, &[7; 16], IV, 1);
        let mut expected = vec![4, 3, 51, 0, 5, 6, 7, 8, 9, 10, 11, 12];
        expected.extend([7; 16]);
        expected.extend([1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(info, expected);
    }

    #[test]
    fn chacha_has_no_salt() {
        let secrets = ConnectionTrafficSecrets::Chacha20Poly1305 { key: key(), iv: Iv::new(IV) };
        for (version, number) in [(Version::Tls12, 3), (Version::Tls13, 4)] {
            let (cipher, info) = described(version, &secrets, 1, true).expect("known");
            let mut expected = vec![number, 3, 54, 0];
            expected.extend(IV);
            expected.extend([7; 32]);
            expected.extend([0, 0, 0, 0, 0, 0, 0, 1]);
            assert_eq!((cipher, info), (Cipher::ChaCha20Poly1305, expected));
        }
    }

    #[test]
    fn explicit_nonces_of_the_kernel_are_none_that_were_used() {
        let secrets = ConnectionTrafficSecrets::Aes256Gcm { key: key(), iv: Iv::new(IV) };
        let nonce = |sends| {
            let (_, info) = described(Version::Tls12, &secrets, 1, sends).expect("known");
            u64::from_be_bytes(info[4..12].try_into().expect("8 bytes"))
        };
        let used = u64::from_be_bytes(IV[4..].try_into().expect("8 bytes"));
        assert_eq!(nonce(true), used ^ (1 << 63));
        assert_eq!(nonce(false), used, "the peer's nonces come with its records");
    }
}
