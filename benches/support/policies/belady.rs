//! What could be reached by who knows the future: Belady's rule, and a bound that no rule can exceed.

use std::collections::BTreeSet;

use super::{Held, Policy, Request};

/// Not asked for again.
const NEVER: usize = usize::MAX;

/// For each request, the place of the next one for the same object.
pub(crate) fn next_uses(stream: &[Request], keys: usize) -> Vec<usize> {
    let mut last = vec![NEVER; keys];
    let mut next = vec![NEVER; stream.len()];
    for (at, request) in stream.iter().enumerate().rev() {
        next[at] = std::mem::replace(&mut last[request.key as usize], at);
    }
    next
}

/// Belady (1966): evicts what is used again last of all, and does not take in what would be that itself. Optimal where all
/// objects are of one size. With sizes the optimum is NP-hard; the distance to the next use alone, sizes disregarded, is near
/// it for bytes (what is saved per byte and time does not depend on the size) and below it for objects.
#[derive(Debug)]
pub(crate) struct Belady<'a> {
    held: Held,
    next_uses: &'a [usize],
    /// By next use, then by key.
    order: BTreeSet<(usize, u32)>,
    at: usize,
}

impl<'a> Belady<'a> {
    pub(crate) fn new(keys: usize, capacity: u64, next_uses: &'a [usize]) -> Self {
        Self { held: Held::new(keys, capacity), next_uses, order: BTreeSet::new(), at: 0 }
    }
}

impl Policy for Belady<'_> {
    fn request(&mut self, Request { key, size, .. }: Request) -> bool {
        let (now, next) = (self.at, self.next_uses[self.at]);
        self.at += 1;
        if self.held.has(key) {
            // It was filed under the next use that is now.
            let filed = self.order.remove(&(now, key));
            assert!(filed, "what is held is filed under its next use");
            self.order.insert((next, key));
            return true;
        }
        if next == NEVER || !self.held.could_fit(size) {
            return false;
        }
        // Only what is used later gives way; if that is not enough, the newcomer does.
        let later = self.order.iter().rev().take_while(|(its_next, _)| *its_next > next);
        let mut room = self.held.capacity - self.held.used;
        let mut victims = Vec::new();
        for (its_next, victim) in later {
            if room >= u64::from(size) {
                break;
            }
            room += u64::from(self.held.sizes[*victim as usize].expect("what is filed is held"));
            victims.push((*its_next, *victim));
        }
        if room < u64::from(size) {
            return false;
        }
        for victim in victims {
            self.order.remove(&victim);
            self.held.drop_out(victim.1);
        }
        self.held.take_in(key, size);
        self.order.insert((next, key));
        false
    }
}

/// The most hits, and separately the most bytes from hits, that any rule can reach: PFOO-L (Berger, Beckmann and Harchol-Balter,
/// "Practical Bounds on Optimal Caching with Variable Object Sizes", 2018). Every hit takes its object's bytes for the time since the
/// object's last use, and there are no more than `capacity` bytes for as long as the stream lasts; the cheapest hits are
/// counted until that product is used up.
pub(crate) fn bound(stream: &[Request], next_uses: &[usize], capacity: u64) -> (u64, u64) {
    let room = u128::from(capacity) * stream.len() as u128;
    let mut hits: Vec<(u64, u64)> = stream
        .iter()
        .zip(next_uses)
        .enumerate()
        .filter(|(_, (request, next))| **next != NEVER && u64::from(request.size) <= capacity)
        .map(|(at, (request, next))| ((*next - at) as u64, u64::from(request.size)))
        .collect();
    let mut most = |weight: fn(u64) -> u64, price: fn(&(u64, u64)) -> u64| {
        hits.sort_unstable_by_key(price);
        let (mut taken, mut sum) = (0_u128, 0_u64);
        for (time, size) in &hits {
            let cost = u128::from(*time) * u128::from(*size);
            if taken + cost > room {
                // The last one counts for the part of it that there is room for.
                let part = u128::from(weight(*size)) * (room - taken) / cost;
                return sum + u64::try_from(part).unwrap_or(u64::MAX);
            }
            taken += cost;
            sum += weight(*size);
        }
        sum
    };
    (most(|_| 1, |(time, size)| time * size), most(|size| size, |(time, _)| *time))
}
