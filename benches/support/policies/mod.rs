//! Rules of caching, each fed the same requests: the appliance's own and those it is compared with.
//!
//! Capacity is in bytes; what does not fit as a whole is never held. [`known`] holds small traces with hits counted by hand.

pub(crate) mod appliance;
pub(crate) mod belady;
pub(crate) mod known;
pub(crate) mod lru;
mod queue;
pub(crate) mod s3_fifo;
pub(crate) mod sieve;

/// One request of a stream. Keys are dense: `0..keys`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// Milliseconds since the stream began.
    pub(crate) at_millis: u64,
    /// Which object.
    pub(crate) key: u32,
    /// Its bytes; the same in every request for it.
    pub(crate) size: u32,
}

/// What decides which objects are held.
pub(crate) trait Policy {
    /// Asks for an object; tells whether it was held. What is not held is fetched, and taken in or not.
    fn request(&mut self, request: Request) -> bool;
}

/// Bytes held, by key; what the rules have in common.
#[derive(Debug)]
struct Held {
    sizes: Vec<Option<u32>>,
    used: u64,
    capacity: u64,
}

impl Held {
    fn new(keys: usize, capacity: u64) -> Self {
        Self { sizes: vec![None; keys], used: 0, capacity }
    }

    fn has(&self, key: u32) -> bool {
        self.sizes[key as usize].is_some()
    }

    /// Whether `size` more bytes fit now.
    fn fits(&self, size: u32) -> bool {
        self.used + u64::from(size) <= self.capacity
    }

    /// Whether `size` bytes fit when nothing else is held.
    fn could_fit(&self, size: u32) -> bool {
        u64::from(size) <= self.capacity
    }

    fn take_in(&mut self, key: u32, size: u32) {
        let before = self.sizes[key as usize].replace(size);
        assert!(before.is_none() && self.fits(size), "a rule takes in what is held, or more than fits");
        self.used += u64::from(size);
    }

    fn drop_out(&mut self, key: u32) -> u32 {
        let size = self.sizes[key as usize].take().expect("a rule drops only what is held");
        self.used -= u64::from(size);
        size
    }
}
