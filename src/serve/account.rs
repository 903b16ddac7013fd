//! What one connection has cost its worker, in time, and what it has got for that: whether it is one that is served.

use std::cell::Cell;

/// What one connection has cost, and what it has got.
#[derive(Debug)]
pub(super) struct Account {
    /// Nanoseconds that nothing has been got for.
    unpaid: Cell<u64>,
    /// Hits since that was last looked at.
    hits: Cell<u64>,
    taken: Taken,
}

/// Nanoseconds of the worker that were taken in a window of time, and in the one before.
#[derive(Debug, Default)]
pub(super) struct Taken {
    window: Cell<u64>,
    nanos: Cell<[u64; 2]>,
}

impl Taken {
    /// In this window and in the one before.
    pub(super) fn of(&self, window: u64) -> u64 {
        let [now, before] = self.nanos.get();
        match window.saturating_sub(self.window.get()) {
            0 => now + before,
            1 => now,
            _ => 0,
        }
    }

    /// `nanos` more; whether they are the first of this window.
    pub(super) fn add(&self, window: u64, nanos: u64) -> bool {
        let [now, before] = self.nanos.get();
        match window.saturating_sub(self.window.replace(window)) {
            0 => {
                self.nanos.set([now + nanos, before]);
                return false;
            }
            1 => self.nanos.set([nanos, now]),
            _ => self.nanos.set([nanos, 0]),
        }
        true
    }
}

/// Nanoseconds for which a connection may get nothing and still counts as one that is served.
const CREDIT: u64 = 1_000_000;
/// What a byte of a response pays for, in nanoseconds: 0.26 ms for 64 KiB, of which a hit takes a tenth.
const NANOS_PER_BYTE: u64 = 4;
/// Least that a hit pays for, in nanoseconds: small ones take a third of that.
pub(super) const HIT: u64 = 20_000;
/// Bytes of responses that make a newcomer one who is served.
const SERVED: u64 = 4 << 10;

impl Default for Account {
    fn default() -> Self {
        Self { unpaid: Cell::new(CREDIT + SERVED * NANOS_PER_BYTE), hits: Cell::new(0), taken: Taken::default() }
    }
}

impl Account {
    /// Bytes of a response have gone.
    pub(super) fn got(&self, bytes: u64) {
        self.unpaid.set(self.unpaid.get().saturating_sub(bytes.saturating_mul(NANOS_PER_BYTE)));
    }

    /// A request was answered from memory, which takes so many turns.
    pub(super) fn hit(&self, turns: u64) {
        self.hits.set(self.hits.get() + turns);
    }

    /// Whether it gets what it costs.
    pub(super) fn is_served(&self) -> bool {
        self.unpaid.get() <= CREDIT
    }

    /// Nanoseconds that it has taken in this window and in the one before.
    pub(super) fn taken(&self, window: u64) -> u64 {
        self.taken.of(window)
    }

    /// It has taken `nanos`, and a hit pays for `worth`; whether that is the first in this window.
    pub(super) fn take(&self, window: u64, nanos: u64, worth: u64) -> bool {
        let paid = self.hits.replace(0) * worth;
        // No more than makes up for a few responses: who was costly for long is not so for ever.
        self.unpaid.set((self.unpaid.get() + nanos).saturating_sub(paid).min(2 * CREDIT));
        self.taken.add(window, nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_costs_more_than_it_gets_does_not_go_first() {
        let account = Account::default();
        assert!(!account.is_served(), "nothing was got yet");
        account.got(SERVED);
        assert!(account.is_served());
        // Hits of 64 KiB, each for 30 us, all the time.
        for _ in 0..10_000 {
            account.take(1, 30_000, HIT);
            account.got(64 << 10);
        }
        assert!(account.is_served());
        // Small ones.
        for _ in 0..10_000 {
            account.take(1, 10_000, HIT);
            account.got(300);
            account.hit(1);
        }
        assert!(account.is_served());
        // Requests that cost 170 us and bring 100 bytes.
        let costly = (0..1000).find(|_| {
            account.take(1, 170_000, HIT);
            account.got(100);
            !account.is_served()
        });
        assert_eq!(costly, Some(6), "a millisecond's worth, and what the last hit pays for");
        for _ in 0..1000 {
            account.take(1, 170_000, HIT);
        }
        account.got(256 << 10);
        assert!(account.is_served(), "what it was like before is forgotten with a quarter of a megabyte");
    }
}
