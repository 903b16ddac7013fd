//! Digests of a manifest's assets, computed as the bytes come by.

use std::{io, sync::Arc};

use aws_lc_rs::digest::{Context, SHA256};

use crate::{
    asset::{ByteRange, Sha256},
    catalog::Entry,
    control::manifest::{BlockDigests, ManifestAsset},
};

/// The one digest that says what an asset is: that of the whole, or else one of the list of those of its blocks.
pub(in crate::fill) fn digest_of(asset: &ManifestAsset) -> Option<Sha256> {
    asset.sha256.or_else(|| {
        let mut context = Context::new(&SHA256);
        asset.blocks()?.sha256.iter().for_each(|block| context.update(block.as_bytes()));
        Some(finish(context))
    })
}

fn finish(context: Context) -> Sha256 {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    Sha256::new(bytes)
}

/// A part of an asset is not what the manifest says: the part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wrong(pub(super) ByteRange);

/// Follows an asset from its first byte to its last.
pub(super) struct Following<'m> {
    asset: &'m ManifestAsset,
    position: u64,
    whole: Option<Context>,
    block: Option<Context>,
}

/// Bytes read back at once.
const READ_BACK: u64 = 1 << 20;

impl<'m> Following<'m> {
    pub(super) fn new(asset: &'m ManifestAsset) -> Self {
        let whole = asset.sha256.map(|_| Context::new(&SHA256));
        let block = asset.blocks().map(|_| Context::new(&SHA256));
        Self { asset, position: 0, whole, block }
    }

    fn is_idle(&self) -> bool {
        self.whole.is_none() && self.block.is_none()
    }

    /// The next bytes. They are to be kept only if this does not fail.
    pub(super) fn next(&mut self, mut bytes: &[u8]) -> Result<(), Wrong> {
        if let Some(whole) = self.whole.as_mut() {
            whole.update(bytes);
        }
        let Some(digests) = self.asset.blocks() else {
            self.position += bytes.len() as u64;
            return Ok(());
        };
        while !bytes.is_empty() {
            let number = digests.size.block_of(self.position);
            let Some(range) = digests.size.range_of(number, self.asset.length.0) else { return Ok(()) };
            let room = usize::try_from(range.end() - self.position).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            if let Some(block) = self.block.as_mut() {
                block.update(now);
            }
            self.position += now.len() as u64;
            if self.position == range.end() {
                self.end_block(digests, number, range)?;
            }
            bytes = later;
        }
        Ok(())
    }

    fn end_block(&mut self, digests: &BlockDigests, number: u32, range: ByteRange) -> Result<(), Wrong> {
        let Some(block) = self.block.replace(Context::new(&SHA256)) else { return Ok(()) };
        let is_right = digests.sha256.get(number as usize) == Some(&finish(block));
        if is_right { Ok(()) } else { Err(Wrong(range)) }
    }

    /// Reads what is here already, up to `end`.
    ///
    /// # Errors
    /// As of the disk; `Ok(Err(_))` where it is not what the manifest says.
    pub(super) async fn catch_up(&mut self, entry: &Arc<Entry>, end: u64) -> io::Result<Result<(), Wrong>> {
        if self.is_idle() {
            self.position = end;
        }
        while self.position < end {
            let (entry, from) = (Arc::clone(entry), self.position);
            let count = usize::try_from((end - from).min(READ_BACK)).unwrap_or(0);
            let read = tokio::task::spawn_blocking(move || {
                let mut bytes = vec![0; count];
                entry.read_back(from, &mut bytes).map(|()| bytes)
            });
            let bytes = read.await.map_err(io::Error::other)??;
            if let Err(wrong) = self.next(&bytes) {
                return Ok(Err(wrong));
            }
        }
        Ok(Ok(()))
    }

    /// Whether all of it is what the manifest says, at its end.
    pub(super) fn end(self) -> Result<(), Wrong> {
        let length = self.asset.length.0;
        let whole_is_right = match (self.asset.sha256, self.whole) {
            (Some(wanted), Some(whole)) => finish(whole) == wanted,
            _ => true,
        };
        if whole_is_right && self.position == length {
            return Ok(());
        }
        // Nothing is wrong with an asset without bytes but its digest.
        Err(Wrong(ByteRange::new(0, length.max(1)).expect("at least one")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        asset::{AssetKey, BlockSize, ByteCount},
        control::manifest::Details,
    };

    fn sha256(bytes: &[u8]) -> Sha256 {
        let mut context = Context::new(&SHA256);
        context.update(bytes);
        finish(context)
    }

    fn asset(bytes: &[u8], whole: bool, block_size: u64) -> ManifestAsset {
        let size = BlockSize::new(block_size).expect("valid");
        let chunk = usize::try_from(block_size).expect("small");
        let digests = BlockDigests { size, sha256: bytes.chunks(chunk).map(sha256).collect() };
        let details = Details { blocks: Some(digests), ..Details::default() };
        ManifestAsset {
            sha256: whole.then(|| sha256(bytes)),
            details: Some(Box::new(details)),
            ..ManifestAsset::new(AssetKey::parse("/a", None).expect("valid"), ByteCount(bytes.len() as u64))
        }
    }

    #[test]
    fn a_wrong_byte_is_found_at_the_end_of_its_block_however_the_bytes_come() {
        let bytes: Vec<u8> = (0..200_000_u32).map(|n| u8::try_from(n % 251).expect("small")).collect();
        for piece in [1_000, 65_536, 100_000, 200_000] {
            let asset = asset(&bytes, true, 1 << 16);
            let mut right = Following::new(&asset);
            assert!(bytes.chunks(piece).all(|piece| right.next(piece).is_ok()));
            assert_eq!(right.end(), Ok(()));
            let mut bad = bytes.clone();
            bad[70_000] ^= 1;
            let mut following = Following::new(&asset);
            let found = bad.chunks(piece).find_map(|piece| following.next(piece).err());
            assert_eq!(found, Some(Wrong(ByteRange::new(65_536, 131_072).expect("range"))));
        }
    }

    #[test]
    fn the_whole_is_compared_at_its_end_and_has_to_be_whole() {
        let asset = ManifestAsset { details: None, ..asset(b"hello", true, 1 << 16) };
        let told = |bytes: &[u8]| {
            let mut following = Following::new(&asset);
            following.next(bytes).expect("no blocks to compare");
            following.end().is_ok()
        };
        assert!(told(b"hello") && !told(b"hellO") && !told(b"hell"));
    }

    #[test]
    fn a_list_of_digests_says_what_an_asset_is() {
        let (a, b) = (asset(b"a", false, 1 << 16), asset(b"b", false, 1 << 16));
        assert!(digest_of(&a).is_some() && digest_of(&a) != digest_of(&b));
        assert_eq!(digest_of(&asset(b"a", true, 1 << 16)), Some(sha256(b"a")));
        assert_eq!(digest_of(&ManifestAsset::new(a.key.clone(), ByteCount(1))), None);
    }
}
