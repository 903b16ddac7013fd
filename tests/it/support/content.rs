//! Bytes that can be computed anywhere from a seed and an offset, so that assets of any length cost no memory.

/// The content of one version of an asset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) seed: u64,
    pub(crate) length: u64,
}

impl Content {
    pub(crate) fn new(seed: u64, length: u64) -> Self {
        Self { seed, length }
    }

    /// Writes the bytes from `offset` on into `into`, which must end within the asset.
    pub(crate) fn fill(&self, offset: u64, into: &mut [u8]) {
        assert!(offset + into.len() as u64 <= self.length, "read past the end of the content");
        let mut word_at = offset / 8;
        let mut skip = (offset % 8) as usize;
        let mut rest = into;
        while !rest.is_empty() {
            let word = mix(self.seed ^ word_at.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes();
            let taken = rest.len().min(8 - skip);
            rest[..taken].copy_from_slice(&word[skip..skip + taken]);
            rest = &mut rest[taken..];
            skip = 0;
            word_at += 1;
        }
    }

    /// The bytes `start..end`.
    pub(crate) fn bytes(&self, start: u64, end: u64) -> Vec<u8> {
        let mut bytes = vec![0; (end - start) as usize];
        self.fill(start, &mut bytes);
        bytes
    }

    /// All bytes.
    pub(crate) fn whole(&self) -> Vec<u8> {
        self.bytes(0, self.length)
    }

    /// Panics at the first of `bytes`, which were served from `offset` on, that is not the source's.
    pub(crate) fn assert_is(&self, offset: u64, bytes: &[u8]) {
        if let Some(fault) = self.first_difference(offset, bytes) {
            panic!("{fault}");
        }
    }

    /// Where `bytes` first differ from the source's, in words.
    pub(crate) fn first_difference(&self, offset: u64, bytes: &[u8]) -> Option<String> {
        if offset + bytes.len() as u64 > self.length {
            return Some(format!("{} bytes from {offset} run past the asset's end {}", bytes.len(), self.length));
        }
        let mut expected = vec![0; 64 << 10];
        for (index, chunk) in bytes.chunks(expected.len()).enumerate() {
            let at = offset + (index * (64 << 10)) as u64;
            let expected = &mut expected[..chunk.len()];
            self.fill(at, expected);
            if expected != chunk {
                let first = expected.iter().zip(chunk).position(|(a, b)| a != b).expect("they differ");
                return Some(format!(
                    "byte {} is {:#04x}, the source has {:#04x}",
                    at + first as u64,
                    chunk[first],
                    expected[first]
                ));
            }
        }
        None
    }
}

/// The finalizer of SplitMix64: every bit of the input moves every bit of the output.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[test]
fn content_is_the_same_however_it_is_cut() {
    let content = Content::new(7, 100);
    let whole = content.whole();
    for start in 0..30 {
        assert_eq!(content.bytes(start, 70), whole[start as usize..70]);
    }
    assert_ne!(Content::new(8, 100).whole(), whole);
}

#[test]
fn a_wrong_byte_is_found_where_it_is() {
    let content = Content::new(7, 200_000);
    let mut bytes = content.bytes(10, 150_000);
    assert_eq!(content.first_difference(10, &bytes), None);
    bytes[70_000] ^= 1;
    assert!(content.first_difference(10, &bytes).expect("it differs").starts_with("byte 70010 is"));
}
