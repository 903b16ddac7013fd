//! Bounds how many files are mapped at once.
//!
//! Least recently used, by the clock algorithm (second chance): use sets a mark without a lock; the hand clears marks and
//! unmaps the first file it finds without one.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;

use super::{
    asset_file::{HasFile, OpenCount},
    mapping::Mapping,
};

type Clock = VecDeque<Weak<dyn HasFile>>;

/// The files that are mapped, and the hand that goes round them.
#[derive(Debug)]
pub struct Mappings {
    max: usize,
    open: Arc<AtomicUsize>,
    clock: Mutex<Clock>,
}

/// Places of files that are no longer mapped which the round may hold before it is swept.
const ROUND_SLACK: usize = 64;

/// More files are being read at once than may be mapped.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("all mappings that storage.mappings_max allows are in use")]
pub struct MappingsFull;

impl Mappings {
    /// At most `max` mappings, those held only by leases included.
    pub fn new(max: usize) -> Self {
        Self { max, open: Arc::default(), clock: Mutex::default() }
    }

    /// Files mapped just now.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Places in the round, those of files that are no longer mapped included.
    pub fn round(&self) -> usize {
        self.clock.lock().len()
    }

    /// Maps the file of `owner`, unmapping others where there are too many. Blocks.
    ///
    /// # Errors
    /// As of `open(2)` and `mmap(2)`; [`MappingsFull`] inside an `io::Error` when every mapping is leased.
    pub fn map<T: HasFile>(&self, owner: &Arc<T>) -> io::Result<Arc<Mapping>> {
        let (mapping, new) = owner.file().map(|| owner.id(), || self.take_place())?;
        if new {
            let owner: Weak<T> = Arc::downgrade(owner);
            let mut clock = self.clock.lock();
            clock.push_back(owner);
            // Evicted files leave their place in the round behind: it is swept when most of the round may be such places.
            if clock.len() > 2 * self.open() + ROUND_SLACK {
                clock.retain(|owner| owner.upgrade().is_some_and(|owner| owner.file().is_mapped()));
            }
        }
        Ok(mapping)
    }

    fn take_place(&self) -> io::Result<OpenCount> {
        // Two rounds: the first clears every mark, the second finds them cleared. Leased mappings free nothing at once,
        // so that the hand may have to go on.
        let mut steps = 2 * self.clock.lock().len() + 1;
        loop {
            if let Some(place) = OpenCount::take(&self.open, self.max) {
                return Ok(place);
            }
            let next = self.clock.lock().pop_front();
            let Some(next) = next.filter(|_| steps > 0) else { return Err(io::Error::other(MappingsFull)) };
            steps -= 1;
            let Some(owner) = next.upgrade().filter(|owner| owner.file().is_mapped()) else { continue };
            let file = owner.file();
            if file.take_used_lately() {
                self.clock.lock().push_back(next);
            } else {
                file.unmap();
            }
        }
    }
}
