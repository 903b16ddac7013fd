//! S3-FIFO (Yang, Zhang, Qiu, Yue and Rashmi, "FIFO queues are all you need for cache eviction", SOSP 2023): a small queue of a
//! tenth of the capacity through which newcomers pass, a main queue for those used again, and a ghost queue of keys that
//! left the small one, as many bytes of them as the main queue has. Queues are measured in bytes.

use super::{Held, Policy, Request, queue::Queue};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Nowhere,
    Small,
    Main,
    Ghost,
}

#[derive(Debug)]
pub(crate) struct S3Fifo {
    held: Held,
    small: Queue,
    main: Queue,
    ghost: Queue,
    small_bytes: u64,
    ghost_bytes: u64,
    /// Size of a ghost, which is not held any more.
    ghost_sizes: Vec<u32>,
    places: Vec<Place>,
    uses: Vec<u8>,
}

/// Uses are counted in two bits.
const USES_MAX: u8 = 3;

impl S3Fifo {
    pub(crate) fn new(keys: usize, capacity: u64) -> Self {
        Self {
            held: Held::new(keys, capacity),
            small: Queue::new(keys),
            main: Queue::new(keys),
            ghost: Queue::new(keys),
            small_bytes: 0,
            ghost_bytes: 0,
            ghost_sizes: vec![0; keys],
            places: vec![Place::Nowhere; keys],
            uses: vec![0; keys],
        }
    }

    fn main_max(&self) -> u64 {
        self.held.capacity - self.held.capacity / 10
    }

    fn main_bytes(&self) -> u64 {
        self.held.used - self.small_bytes
    }

    fn evict(&mut self) {
        if self.main_bytes() == 0 || (self.small_bytes > 0 && self.small_bytes >= self.held.capacity / 10) {
            self.evict_from_small();
        } else {
            self.evict_from_main();
        }
    }

    fn evict_from_small(&mut self) {
        while let Some(oldest) = self.small.back() {
            self.small.remove(oldest);
            let size = self.held.sizes[oldest as usize].expect("what is queued is held");
            self.small_bytes -= u64::from(size);
            // Used more than once since it came in.
            if std::mem::take(&mut self.uses[oldest as usize]) > 1 {
                self.main.push_front(oldest);
                self.places[oldest as usize] = Place::Main;
                if self.main_bytes() > self.main_max() {
                    self.evict_from_main();
                }
            } else {
                self.held.drop_out(oldest);
                self.remember(oldest, size);
                return;
            }
        }
    }

    fn evict_from_main(&mut self) {
        while let Some(oldest) = self.main.back() {
            self.main.remove(oldest);
            if self.uses[oldest as usize] == 0 {
                self.held.drop_out(oldest);
                self.places[oldest as usize] = Place::Nowhere;
                return;
            }
            self.uses[oldest as usize] -= 1;
            self.main.push_front(oldest);
        }
    }

    fn remember(&mut self, key: u32, size: u32) {
        self.ghost.push_front(key);
        self.ghost_bytes += u64::from(size);
        self.ghost_sizes[key as usize] = size;
        self.places[key as usize] = Place::Ghost;
        while self.ghost_bytes > self.main_max() {
            let oldest = self.ghost.back().expect("it has bytes");
            self.forget(oldest);
        }
    }

    fn forget(&mut self, key: u32) {
        self.ghost.remove(key);
        self.ghost_bytes -= u64::from(self.ghost_sizes[key as usize]);
        self.places[key as usize] = Place::Nowhere;
    }
}

impl Policy for S3Fifo {
    fn request(&mut self, Request { key, size, .. }: Request) -> bool {
        if self.held.has(key) {
            let uses = &mut self.uses[key as usize];
            *uses = USES_MAX.min(*uses + 1);
            return true;
        }
        if !self.held.could_fit(size) {
            return false;
        }
        // Looked at before room is made, which may push it out of the ghosts.
        let returns = self.places[key as usize] == Place::Ghost;
        if returns {
            self.forget(key);
        }
        while !self.held.fits(size) {
            self.evict();
        }
        self.held.take_in(key, size);
        self.uses[key as usize] = 0;
        if returns {
            self.main.push_front(key);
            self.places[key as usize] = Place::Main;
        } else {
            self.small.push_front(key);
            self.small_bytes += u64::from(size);
            self.places[key as usize] = Place::Small;
        }
        false
    }
}
