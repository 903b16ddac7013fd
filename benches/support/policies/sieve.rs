//! SIEVE (Zhang, Yang, Yue, Vigfusson and Rashmi, "SIEVE is Simpler than LRU", NSDI 2024): a queue that hits do not reorder; a
//! hand goes from the oldest to the newest, spares what was used since it last came by, and evicts the rest.

use super::{Held, Policy, Request, queue::Queue};

#[derive(Debug)]
pub(crate) struct Sieve {
    held: Held,
    order: Queue,
    used: Vec<bool>,
    hand: Option<u32>,
}

impl Sieve {
    pub(crate) fn new(keys: usize, capacity: u64) -> Self {
        Self { held: Held::new(keys, capacity), order: Queue::new(keys), used: vec![false; keys], hand: None }
    }

    fn evict(&mut self) {
        let oldest = || self.order.back().expect("something is held when something does not fit");
        let mut at = self.hand.unwrap_or_else(oldest);
        while std::mem::take(&mut self.used[at as usize]) {
            at = self.order.newer(at).unwrap_or_else(oldest);
        }
        self.hand = self.order.newer(at);
        self.order.remove(at);
        self.held.drop_out(at);
    }
}

impl Policy for Sieve {
    fn request(&mut self, Request { key, size, .. }: Request) -> bool {
        if self.held.has(key) {
            self.used[key as usize] = true;
            return true;
        }
        if self.held.could_fit(size) {
            while !self.held.fits(size) {
                self.evict();
            }
            self.held.take_in(key, size);
            self.order.push_front(key);
        }
        false
    }
}
