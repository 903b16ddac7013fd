//! Records of TLS 1.3 that are encrypted straight from where their plaintext lies.
//!
//! rustls copies what it encrypts into the record first, and encrypts it there. A body that comes from a mapping is then read from memory, written, read and written
//! again; here it is read once. What is sent is the same, byte for byte.

use std::sync::LazyLock;

use aws_lc_rs::{
    aead::{
        AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, TlsProtocolId,
        TlsRecordSealingKey, UnboundKey,
    },
    error::Unspecified,
};
use rustls::{
    CipherSuite, CipherSuiteCommon, ConnectionTrafficSecrets, ContentType, Error, ProtocolVersion,
    SupportedCipherSuite, Tls13CipherSuite,
    crypto::{
        aws_lc_rs::cipher_suite,
        cipher::{
            self, AeadKey, Iv, MessageDecrypter, MessageEncrypter, OutboundChunks, OutboundOpaqueMessage,
            OutboundPlainMessage, PrefixedPayload, Tls13AeadAlgorithm, UnsupportedOperationError, make_tls13_aad,
        },
    },
};

/// Most plaintext of a record (RFC 8446, 5.1).
pub(super) const PLAINTEXT_MAX: usize = 1 << 14;
/// What follows the ciphertext of a record's plaintext: its inner type and the tag (RFC 8446, 5.2), of all suites there are.
const BEHIND: usize = 1 + 16;
/// What a record holds before it is written to, since safe code has no memory without contents.
static ZEROS: [u8; PLAINTEXT_MAX + BEHIND] = [0; PLAINTEXT_MAX + BEHIND];

/// The suites of TLS 1.3, in the order in which rustls prefers AES to be short.
pub(super) fn suites() -> [SupportedCipherSuite; 3] {
    static SUITES: LazyLock<[SupportedCipherSuite; 3]> = LazyLock::new(|| {
        [
            (cipher_suite::TLS13_AES_128_GCM_SHA256, &AES_128_GCM),
            (cipher_suite::TLS13_AES_256_GCM_SHA384, &AES_256_GCM),
            (cipher_suite::TLS13_CHACHA20_POLY1305_SHA256, &CHACHA20_POLY1305),
        ]
        .map(|(suite, algorithm)| suite.tls13().map_or(suite, |of| sealing_from_where_it_lies(of, algorithm)))
    });
    *SUITES
}

/// Once for a process: rustls wants suites that live for ever.
fn sealing_from_where_it_lies(of: &'static Tls13CipherSuite, algorithm: &'static Algorithm) -> SupportedCipherSuite {
    let Tls13CipherSuite { common, hkdf_provider, aead_alg, quic } = of;
    SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite {
        common: CipherSuiteCommon {
            suite: common.suite,
            hash_provider: common.hash_provider,
            confidentiality_limit: common.confidentiality_limit,
        },
        hkdf_provider: *hkdf_provider,
        aead_alg: Box::leak(Box::new(Sealing { of: *aead_alg, algorithm, suite: common.suite })),
        quic: *quic,
    })))
}

/// All but encrypting is rustls's own.
struct Sealing {
    of: &'static dyn Tls13AeadAlgorithm,
    algorithm: &'static Algorithm,
    suite: CipherSuite,
}

impl Tls13AeadAlgorithm for Sealing {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        match Key::new(self.algorithm, key.as_ref()) {
            Ok(key) => Box::new(Encrypter { key, iv }),
            Err(Unspecified) => {
                tracing::debug!(suite = ?self.suite, "a key that cannot seal from elsewhere");
                self.of.encrypter(key, iv)
            }
        }
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        self.of.decrypter(key, iv)
    }

    fn key_len(&self) -> usize {
        self.of.key_len()
    }

    fn extract_keys(&self, key: AeadKey, iv: Iv) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        self.of.extract_keys(key, iv)
    }

    fn fips(&self) -> bool {
        self.of.fips()
    }
}

/// A key that seals.
enum Key {
    /// One that sees to it that no nonce comes twice: there is none for ChaCha20.
    Record(TlsRecordSealingKey),
    Plain(LessSafeKey),
}

impl Key {
    fn new(algorithm: &'static Algorithm, key: &[u8]) -> Result<Self, Unspecified> {
        if algorithm == &CHACHA20_POLY1305 {
            return Ok(Self::Plain(LessSafeKey::new(UnboundKey::new(algorithm, key)?)));
        }
        TlsRecordSealingKey::new(algorithm, TlsProtocolId::TLS13, key).map(Self::Record)
    }
}

struct Encrypter {
    key: Key,
    iv: Iv,
}

impl MessageEncrypter for Encrypter {
    fn encrypt(&mut self, message: OutboundPlainMessage<'_>, sequence: u64) -> Result<OutboundOpaqueMessage, Error> {
        let total = self.encrypted_payload_len(message.payload.len());
        let kind = [u8::from(message.typ)];
        let nonce = Nonce::assume_unique_for_key(cipher::Nonce::new(&self.iv, sequence).0);
        let aad = Aad::from(make_tls13_aad(total));
        let mut payload = PrefixedPayload::with_capacity(total);
        let sealed = match (in_one_piece(&message.payload), ZEROS.get(..total)) {
            (Some(piece), Some(room)) => {
                payload.extend_from_slice(room);
                let (sealed, behind) = payload.as_mut().split_at_mut(piece.len());
                match &mut self.key {
                    Key::Record(key) => key.seal_out_of_place_scatter(nonce, aad, piece, sealed, &kind, behind),
                    Key::Plain(key) => key.seal_out_of_place_scatter(nonce, aad, piece, sealed, &kind, behind),
                }
            }
            _ => {
                payload.extend_from_chunks(&message.payload);
                payload.extend_from_slice(&kind);
                match &mut self.key {
                    Key::Record(key) => key.seal_in_place_append_tag(nonce, aad, &mut payload),
                    Key::Plain(key) => key.seal_in_place_append_tag(nonce, aad, &mut payload),
                }
            }
        };
        sealed.map_err(|Unspecified| Error::EncryptError)?;
        // The version that all records after the handshake's first have (RFC 8446, 5.2).
        Ok(OutboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, payload))
    }

    fn encrypted_payload_len(&self, payload_len: usize) -> usize {
        payload_len + BEHIND
    }
}

/// What is to be sent, if it lies together.
fn in_one_piece<'a>(chunks: &OutboundChunks<'a>) -> Option<&'a [u8]> {
    match *chunks {
        OutboundChunks::Single(chunk) => Some(chunk),
        OutboundChunks::Multiple { chunks, start, end } => {
            let mut before = 0;
            for chunk in chunks {
                if start < before + chunk.len() {
                    return chunk.get(start - before..end - before);
                }
                before += chunk.len();
            }
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use rustls::crypto::aws_lc_rs;

    use super::*;

    const LENGTHS: [usize; 8] = [0, 1, 15, 16, 17, 1000, PLAINTEXT_MAX - 1, PLAINTEXT_MAX];
    const IV: [u8; 12] = [9; 12];

    /// The record of RFC 8446, 5.2, encrypted where it was copied to.
    fn record(key: &LessSafeKey, plaintext: &[u8], sequence: u64) -> Vec<u8> {
        let mut sealed = [plaintext, &[23]].concat();
        let length = u16::try_from(sealed.len() + 16).expect("a record's");
        let header = [23, 3, 3, length.to_be_bytes()[0], length.to_be_bytes()[1]];
        let mut nonce = IV;
        nonce[4..].iter_mut().zip(sequence.to_be_bytes()).for_each(|(byte, of)| *byte ^= of);
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(header), &mut sealed)
            .expect("sealed");
        [&header[..], &sealed].concat()
    }

    #[test]
    fn what_is_sent_is_the_same_wherever_it_lies() {
        let plaintext: Vec<u8> = (0..PLAINTEXT_MAX).map(|at| u8::try_from(at * 31 % 251).expect("a byte")).collect();
        let mut messages: Vec<Vec<&[u8]>> = vec![vec![]];
        for text in LENGTHS.map(|length| &plaintext[..length]) {
            messages.push(vec![text]);
            for at in [0, 1, text.len() / 2, text.len().saturating_sub(1), text.len()] {
                let (first, second) = text.split_at(at.min(text.len()));
                messages.extend([vec![first, second], vec![&[], first, &[], second, &[]]]);
            }
        }
        for algorithm in [&AES_128_GCM, &AES_256_GCM, &CHACHA20_POLY1305] {
            let secret = vec![7; algorithm.key_len()];
            let plain = LessSafeKey::new(UnboundKey::new(algorithm, &secret).expect("a key"));
            let key = Key::new(algorithm, &secret).expect("a key");
            let mut encrypter = Encrypter { key, iv: Iv::from(IV) };
            for (chunks, sequence) in messages.iter().zip(0..) {
                let (typ, version) = (ContentType::ApplicationData, ProtocolVersion::TLSv1_3);
                let message = OutboundPlainMessage { typ, version, payload: OutboundChunks::new(chunks) };
                let sent = encrypter.encrypt(message, sequence).expect("encrypted").encode();
                let lengths = || chunks.iter().map(|chunk| chunk.len()).collect::<Vec<_>>();
                assert!(sent == record(&plain, &chunks.concat(), sequence), "{algorithm:?}: {:?}", lengths());
            }
        }
    }

    #[test]
    fn suites_are_those_of_rustls_but_for_sealing() {
        let all = aws_lc_rs::default_provider().cipher_suites;
        let theirs: Vec<_> = all.iter().filter_map(SupportedCipherSuite::tls13).collect();
        assert_eq!(theirs.len(), suites().len());
        for suite in suites() {
            let suite = suite.tls13().expect("of TLS 1.3");
            let of = theirs.iter().find(|of| of.common.suite == suite.common.suite).expect("one of them");
            assert_eq!(of.common.confidentiality_limit, suite.common.confidentiality_limit);
            assert_eq!((of.aead_alg.key_len(), of.aead_alg.fips()), (suite.aead_alg.key_len(), suite.aead_alg.fips()));
            assert!(of.can_resume_from(suite).is_some() && suite.can_resume_from(of).is_some());
        }
    }

    #[test]
    fn what_lies_together_is_found_in_parts_of_several() {
        let chunks: [&[u8]; 4] = [b"ab", b"", b"cdef", b"g"];
        for (start, end, piece) in [
            (0, 2, Some(&b"ab"[..])),
            (0, 1, Some(b"a")),
            (2, 6, Some(b"cdef")),
            (3, 5, Some(b"de")),
            (6, 7, Some(b"g")),
            (3, 3, Some(b"")),
            (1, 3, None),
            (5, 7, None),
            (0, 7, None),
            (7, 7, None),
        ] {
            assert_eq!(
                in_one_piece(&OutboundChunks::Multiple { chunks: &chunks, start, end }),
                piece,
                "{start}..{end}"
            );
        }
        assert_eq!(in_one_piece(&OutboundChunks::Multiple { chunks: &[], start: 0, end: 0 }), None);
    }
}
