//! The unit in which an asset is filled.

use super::ByteRange;

/// Size of a block in bytes. Invariant: a power of two, 64 KiB to 64 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize(u32);

impl BlockSize {
    /// 1 MiB: large enough that a block costs one origin request in a few hundred, small enough that a one-byte request for a
    /// film costs little.
    pub const DEFAULT: Self = Self(1 << 20);

    /// `None` unless `bytes` is a power of two from 64 KiB to 64 MiB.
    pub fn new(bytes: u64) -> Option<Self> {
        let size = u32::try_from(bytes).ok()?;
        (size.is_power_of_two() && (1 << 16..=1 << 26).contains(&size)).then_some(Self(size))
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// Number of blocks of an asset of `length` bytes; the last one may be short.
    pub fn count(self, length: u64) -> u32 {
        u32::try_from(length.div_ceil(self.bytes()))
            .expect("asset lengths are bounded so that block numbers fit in 32 bits")
    }

    /// The longest asset whose block numbers fit in 32 bits.
    pub fn length_max(self) -> u64 {
        u64::from(u32::MAX) * self.bytes()
    }

    /// The block that holds byte `offset`.
    pub fn block_of(self, offset: u64) -> u32 {
        u32::try_from(offset / self.bytes()).expect("offsets lie inside an asset, whose block numbers fit in 32 bits")
    }

    /// First byte of `block`.
    pub fn start_of(self, block: u32) -> u64 {
        u64::from(block) * self.bytes()
    }

    /// The bytes of `block` in an asset of `length` bytes; `None` past its end.
    pub fn range_of(self, block: u32, length: u64) -> Option<ByteRange> {
        let start = self.start_of(block);
        ByteRange::new(start, (start + self.bytes()).min(length))
    }

    /// The blocks that a range touches.
    pub fn blocks_of(self, range: ByteRange) -> std::ops::Range<u32> {
        self.block_of(range.start())..self.block_of(range.end() - 1) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_block_of_an_asset_may_be_short() {
        let size = BlockSize::DEFAULT;
        assert_eq!(size.count(0), 0);
        assert_eq!(size.count(1), 1);
        assert_eq!(size.count((1 << 20) + 1), 2);
        assert_eq!(size.range_of(1, (1 << 20) + 1), ByteRange::new(1 << 20, (1 << 20) + 1));
        assert_eq!(size.range_of(2, (1 << 20) + 1), None);
    }

    #[test]
    fn a_range_that_ends_at_a_block_border_does_not_touch_the_next_block() {
        let range = ByteRange::new(0, 1 << 20).expect("not empty");
        assert_eq!(BlockSize::DEFAULT.blocks_of(range), 0..1);
    }
}
