//! Memory that goes past the page cache, to a disk and from it.

/// Memory for direct reads and writes: begins at a page, holds a whole number of them.
#[derive(Debug)]
pub struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

/// What addresses, offsets and lengths of direct reads and writes are a multiple of: no less than any disk's sector (`open(2)`, `O_DIRECT`).
pub const DIRECT_UNIT: usize = 4096;

impl AlignedBuffer {
    /// Room for `bytes`, of zeros.
    pub fn new(bytes: usize) -> Self {
        let len = bytes.next_multiple_of(DIRECT_UNIT);
        let memory = vec![0; len + DIRECT_UNIT];
        let start = memory.as_ptr().align_offset(DIRECT_UNIT);
        Self { memory, start, len }
    }

    /// All of it.
    pub fn whole(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    /// All of it, to be written.
    pub fn whole_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}
