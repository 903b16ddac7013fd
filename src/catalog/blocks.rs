//! Which blocks of an asset are held, and how far the others are. Pure; the entry locks it.

use std::{collections::BTreeMap, ops::Range};

use crate::asset::BlockSize;

/// How far one block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockState {
    /// Not held.
    Missing,
    /// Not held, but its space is reserved: a fill broke off, or what was there was found worthless.
    Torn,
    /// Asked of fill. `reserved` as for `Torn`.
    Wanted { reserved: bool },
    /// Being written by one writer; the first `written` bytes may be served.
    Filling { writer: u64, written: u32 },
    /// On disk since before an unclean stop: not served before its digest was compared.
    Unverified,
    /// Its digest is being compared.
    Verifying,
    /// Held.
    Present,
}

impl BlockState {
    pub(super) fn is_reserved(self) -> bool {
        !matches!(self, Self::Missing | Self::Wanted { reserved: false })
    }
}

/// The blocks of one asset. Costs memory for those that differ from the rest, so that a byte of a huge asset is cheap.
#[derive(Debug)]
pub(super) struct Blocks {
    count: u32,
    rest: BlockState,
    differing: BTreeMap<u32, BlockState>,
    present: u32,
}

/// How many blocks `available` looks ahead at most; a bound on its time, far more than is sent at once.
const LOOK_AHEAD: u32 = 64;

impl Blocks {
    /// `count` blocks, all in state `rest`.
    pub(super) fn new(count: u32, rest: BlockState) -> Self {
        let present = if rest == BlockState::Present { count } else { 0 };
        Self { count, rest, differing: BTreeMap::new(), present }
    }

    pub(super) fn state(&self, block: u32) -> BlockState {
        self.differing.get(&block).copied().unwrap_or(self.rest)
    }

    pub(super) fn set(&mut self, block: u32, state: BlockState) {
        debug_assert!(block < self.count);
        let before = self.state(block);
        self.present -= u32::from(before == BlockState::Present);
        self.present += u32::from(state == BlockState::Present);
        if state == self.rest {
            self.differing.remove(&block);
        } else {
            self.differing.insert(block, state);
        }
    }

    pub(super) fn all_present(&self) -> bool {
        self.present == self.count
    }

    /// Whether the bytes of every block are on disk, compared with their digest or not yet.
    pub(super) fn all_here(&self) -> bool {
        let is_here =
            |state: &BlockState| matches!(state, BlockState::Present | BlockState::Unverified | BlockState::Verifying);
        // The rest counts only where not every block differs from it.
        (is_here(&self.rest) || self.differing.len() == self.count as usize) && self.differing.values().all(is_here)
    }

    /// Whether somebody has asked for a block that is not here yet.
    pub(super) fn any_on_its_way(&self) -> bool {
        self.differing.values().any(|state| {
            matches!(state, BlockState::Wanted { .. } | BlockState::Filling { .. } | BlockState::Verifying)
        })
    }

    /// Bytes that may be served from `offset` on without a gap; a large number may be understated.
    pub(super) fn available(&self, offset: u64, length: u64, size: BlockSize) -> u64 {
        if offset >= length {
            return 0;
        }
        let first = size.block_of(offset);
        let mut end = offset;
        for block in first..self.count.min(first.saturating_add(LOOK_AHEAD)) {
            match self.state(block) {
                BlockState::Present => end = size.start_of(block) + size.bytes(),
                BlockState::Filling { written, .. } => {
                    end = end.max(size.start_of(block) + u64::from(written));
                    break;
                }
                _ => break,
            }
        }
        end.min(length).saturating_sub(offset)
    }

    /// Marks what is missing in `blocks` as wanted and gives it back as runs; likewise what has to be verified.
    pub(super) fn want(&mut self, blocks: Range<u32>) -> Wanted {
        let mut wanted = Wanted::default();
        for block in blocks.start..blocks.end.min(self.count) {
            match self.state(block) {
                BlockState::Missing | BlockState::Torn => {}
                BlockState::Unverified => {
                    self.set(block, BlockState::Verifying);
                    wanted.verify.push(block);
                }
                state => wanted.waiting |= state != BlockState::Present,
            }
        }
        wanted.fetch = self.claim(blocks);
        wanted
    }

    /// Marks what is missing in `blocks` as wanted and gives it back as runs. What has to be verified is left as it is: whoever marks it has to
    /// ask the verifier.
    pub(super) fn claim(&mut self, blocks: Range<u32>) -> Vec<Range<u32>> {
        let mut runs: Vec<Range<u32>> = Vec::new();
        for block in blocks.start..blocks.end.min(self.count) {
            let state = self.state(block);
            if matches!(state, BlockState::Missing | BlockState::Torn) {
                self.set(block, BlockState::Wanted { reserved: state.is_reserved() });
                match runs.last_mut() {
                    Some(run) if run.end == block => run.end = block + 1,
                    _ => runs.push(block..block + 1),
                }
            }
        }
        runs
    }

    /// Takes back what nobody will fetch: wanted blocks, and those that `writer` had begun.
    pub(super) fn give_up(&mut self, blocks: Range<u32>) {
        for block in blocks.start..blocks.end.min(self.count) {
            if let BlockState::Wanted { reserved } = self.state(block) {
                self.set(block, if reserved { BlockState::Torn } else { BlockState::Missing });
            }
        }
    }
}

/// What a range still needs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Runs that nobody had asked fill for.
    pub(super) fetch: Vec<Range<u32>>,
    /// Blocks whose digest has to be compared first.
    pub(super) verify: Vec<u32>,
    /// Whether something in the range is on its way already.
    pub(super) waiting: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: BlockSize = BlockSize::DEFAULT;
    const MIB: u64 = 1 << 20;

    #[test]
    fn bytes_are_available_as_they_arrive_and_never_beyond_a_gap() {
        let mut blocks = Blocks::new(4, BlockState::Missing);
        let length = 3 * MIB + 5;
        assert_eq!(blocks.available(0, length, SIZE), 0);
        blocks.set(0, BlockState::Present);
        blocks.set(1, BlockState::Filling { writer: 1, written: 100 });
        blocks.set(2, BlockState::Present);
        assert_eq!(blocks.available(0, length, SIZE), MIB + 100);
        assert_eq!(blocks.available(MIB + 100, length, SIZE), 0);
        assert_eq!(blocks.available(MIB + 200, length, SIZE), 0, "past what was written");
        blocks.set(1, BlockState::Present);
        blocks.set(3, BlockState::Present);
        assert_eq!(blocks.available(1, length, SIZE), length - 1);
        assert!(blocks.all_present());
    }

    #[test]
    fn only_the_first_who_wants_a_block_asks_for_it() {
        let mut blocks = Blocks::new(6, BlockState::Missing);
        blocks.set(2, BlockState::Present);
        assert_eq!(blocks.want(0..5).fetch, [0..2, 3..5]);
        let second = blocks.want(0..6);
        assert_eq!(second.fetch, vec![5..6]);
        assert!(second.waiting);
        blocks.give_up(0..6);
        assert_eq!(blocks.want(0..1).fetch, vec![0..1]);
    }

    #[test]
    fn a_torn_block_keeps_its_space() {
        let mut blocks = Blocks::new(1, BlockState::Torn);
        assert_eq!(blocks.want(0..1).fetch, vec![0..1]);
        assert!(blocks.state(0).is_reserved());
        blocks.give_up(0..1);
        assert_eq!(blocks.state(0), BlockState::Torn);
    }

    #[test]
    fn what_an_unclean_stop_left_is_verified_first() {
        let mut blocks = Blocks::new(3, BlockState::Unverified);
        assert_eq!(blocks.available(0, 3 * MIB, SIZE), 0);
        assert!(blocks.claim(0..3).is_empty(), "a fetch takes nothing of it");
        assert_eq!(blocks.want(1..2).verify, [1]);
        assert_eq!(blocks.want(1..2).verify, [] as [u32; 0]);
        blocks.set(1, BlockState::Present);
        assert_eq!(blocks.available(MIB, 3 * MIB, SIZE), MIB);
        assert!(!blocks.all_present());
    }
}
