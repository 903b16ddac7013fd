//! A short hash of an asset's key, by which a list of a million assets stays small.

use std::fmt;

use sha2::{Digest as _, Sha256};

use super::AssetKey;

/// The first 30 bits of the SHA-256 of an asset's key (its UTF-8 bytes: decoded path without leading slash, then `?` and the query
/// where that is part of the key).
///
/// SHA-256 and not the digest that names files, because those who read such lists have it in every language's standard library.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(u32);

impl Fingerprint {
    /// Bits that count. Among a million assets, one in a thousand others shares the fingerprint of one of them.
    pub const BITS: u32 = 30;

    /// The fingerprint of a key.
    pub fn of(key: &AssetKey) -> Self {
        let digest = Sha256::digest(key.as_str().as_bytes());
        let first = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
        Self(first >> (u32::BITS - Self::BITS))
    }

    /// A fingerprint that was read; `None` above its bits.
    pub fn from_bits(bits: u32) -> Option<Self> {
        (bits >> Self::BITS == 0).then_some(Self(bits))
    }

    /// As a number below 2^30.
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_other_languages_compute() {
        let of = |path, query| Fingerprint::of(&AssetKey::parse(path, query).expect("valid")).bits();
        // printf 'films/a b.mp4' | sha256sum, the first four bytes, shifted right by two.
        assert_eq!(of("/films/a%20b.mp4", None), 0x0994_0078 >> 2);
        assert_eq!(of("/a", Some("x=1")), 0xd86d_52aa >> 2);
        assert_eq!(Fingerprint::from_bits(1 << 30), None);
        assert_eq!(Fingerprint::from_bits(5).map(Fingerprint::bits), Some(5));
    }
}
