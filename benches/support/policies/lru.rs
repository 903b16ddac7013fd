//! Least recently used, exactly: no watermarks, no batches.

use super::{Held, Policy, Request, queue::Queue};

#[derive(Debug)]
pub(crate) struct Lru {
    held: Held,
    order: Queue,
}

impl Lru {
    pub(crate) fn new(keys: usize, capacity: u64) -> Self {
        Self { held: Held::new(keys, capacity), order: Queue::new(keys) }
    }
}

impl Policy for Lru {
    fn request(&mut self, Request { key, size, .. }: Request) -> bool {
        let hit = self.held.has(key);
        if hit {
            self.order.remove(key);
        } else if self.held.could_fit(size) {
            while !self.held.fits(size) {
                let victim = self.order.back().expect("something is held when something does not fit");
                self.order.remove(victim);
                self.held.drop_out(victim);
            }
            self.held.take_in(key, size);
        } else {
            return false;
        }
        self.order.push_front(key);
        hit
    }
}
