//! What one connection, and one client with all of its connections, has cost its worker, in time, and what was got for that: whether it is one that is served, and
//! whether it costs much.

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
/// Nanoseconds that a client's connections may together have got nothing for before it costs much, and most that is held against it.
const DEBT: u64 = 5_000_000;
const DEBT_MAX: u64 = 2 * DEBT;
/// Nanoseconds that connections of a client may together have taken on trust: what one takes until it has asked for something is held against its client only if it ends
/// without having got any. As many as a network behind one address takes that makes hundreds of handshakes at once.
const TRUSTED_MAX: u64 = 100_000_000;
/// Nanoseconds of that which are forgotten for having been right, at once and with each millisecond: what a town takes that comes back, and a hundredth of the time. Who makes a session for each
/// request, and nothing else, is as one that makes sessions for nothing.
const RIGHT_MAX: u64 = 500_000_000;
const RIGHT: u64 = 10_000;
/// The same of one connection: more than any handshake takes.
const TRUSTED_EACH: u64 = 4_000_000;
/// Most nanoseconds of a turn that are held against anybody: none takes longer by what the client asked for, and what it took beyond that the machine did something else. One alone makes
/// nobody a client that costs much.
pub(super) const TURN_MAX: u64 = 2_000_000;
/// Nanoseconds of that which are forgotten with each millisecond: a thousandth of the time costs nobody much, and twenty clients that have it are as one that costs much.
const FORGOTTEN: u64 = 1_000;
/// Milliseconds for which a client costs much of which a connection was closed for flooding, whatever else it gets.
const FLOODED: u64 = 5_000;
/// Nanoseconds that are held against a client for each connection that ends since it has broken the protocol: what it had the worker do up to that it may have paid for, and comes again.
pub(super) const BROKEN: u64 = 1_000_000;
/// What a byte of a response pays for, in nanoseconds: 0.26 ms for 64 KiB, of which a hit takes a tenth.
const NANOS_PER_BYTE: u64 = 4;
/// Least that a hit pays for, in nanoseconds: small ones take a third of that.
pub(super) const HIT: u64 = 20_000;
/// Bytes of responses that make a newcomer one who is served.
const SERVED: u64 = 4 << 10;

/// What all connections of a client have cost a worker together.
#[derive(Debug, Default)]
pub(super) struct Together {
    taken: Taken,
    /// Nanoseconds that nothing has been got for, and when that was looked at last, in milliseconds.
    debt: Cell<u64>,
    since: Cell<u64>,
    /// Nanoseconds that connections have taken on trust, of which a thousandth of the time is forgotten like debt, and when that was looked at last, in milliseconds.
    trusted: Cell<u64>,
    trusted_since: Cell<u64>,
    /// Nanoseconds that were forgotten for having been right of late, and when that was looked at last, in milliseconds.
    right: Cell<u64>,
    right_since: Cell<u64>,
    /// Until when it costs much since one of them was closed for flooding, in milliseconds.
    flooded_until: Cell<u64>,
}

impl Together {
    /// Nanoseconds that they have taken in this window and in the one before.
    pub(super) fn taken(&self, window: u64) -> u64 {
        self.taken.of(window)
    }

    /// They have taken `nanos`, of which hits have paid for so much.
    pub(super) fn take(&self, window: u64, (nanos, paid): (u64, u64), now_millis: u64) {
        self.taken.add(window, nanos);
        let debt = self.debt(now_millis);
        self.debt.set((debt + nanos).saturating_sub(paid).min(DEBT_MAX));
        self.since.set(now_millis);
    }

    /// One that has asked for nothing yet has taken `nanos`; how many of them it has on trust, the rest counting as what others take.
    pub(super) fn trust(&self, window: u64, nanos: u64, now_millis: u64) -> u64 {
        let trusted = left(self.trusted.get(), self.trusted_since.replace(now_millis), (FORGOTTEN, now_millis));
        let fits = nanos.min(TRUSTED_MAX.saturating_sub(trusted));
        self.trusted.set(trusted + fits);
        self.taken.add(window, fits);
        fits
    }

    /// One that had `nanos` on trust has got what it asked for: there is room for as much again, and they are forgotten, unless too many were of late.
    pub(super) fn trust_was_right(&self, nanos: u64, now_millis: u64) {
        self.trusted.set(self.trusted.get().saturating_sub(nanos));
        let right = left(self.right.get(), self.right_since.replace(now_millis), (RIGHT, now_millis));
        let fits = nanos.min(RIGHT_MAX.saturating_sub(right));
        self.right.set(right + fits);
        if fits < nanos {
            self.trust_was_wrong(nanos - fits, now_millis);
        }
    }

    /// Whether something of what it took is held against it still.
    pub(super) fn is_remembered(&self, now_millis: u64) -> bool {
        self.has_flooded(now_millis)
            || self.debt(now_millis) > 0
            || left(self.trusted.get(), self.trusted_since.get(), (FORGOTTEN, now_millis)) > 0
            || left(self.right.get(), self.right_since.get(), (RIGHT, now_millis)) > 0
    }

    /// One that had `nanos` on trust has ended without anything: they are held against all of them. Nor is there room for as much again before it is forgotten: else a client that
    /// has many end at once had all of that time for what one of them costs it.
    pub(super) fn trust_was_wrong(&self, nanos: u64, now_millis: u64) {
        let debt = self.debt(now_millis);
        self.debt.set(debt.saturating_add(nanos).min(DEBT_MAX));
        self.since.set(now_millis);
    }

    /// Bytes of a response have gone.
    pub(super) fn got(&self, bytes: u64) {
        self.debt.set(self.debt.get().saturating_sub(bytes.saturating_mul(NANOS_PER_BYTE)));
    }

    /// Whether the client costs much more than what it gets, and has for a while.
    pub(super) fn costs_much(&self, now_millis: u64) -> bool {
        self.has_flooded(now_millis) || self.debt.get() > DEBT && self.debt(now_millis) > DEBT
    }

    /// A connection of it is closed for flooding: whatever else it gets, it costs much for the next seconds.
    pub(super) fn flooded(&self, now_millis: u64) {
        self.flooded_until.set(now_millis + FLOODED);
    }

    /// Whether that is so still.
    pub(super) fn has_flooded(&self, now_millis: u64) -> bool {
        now_millis < self.flooded_until.get()
    }

    fn debt(&self, now_millis: u64) -> u64 {
        left(self.debt.get(), self.since.get(), (FORGOTTEN, now_millis))
    }
}

/// What is left of `nanos` that were held against somebody then, if so many are forgotten with each millisecond.
fn left(nanos: u64, since_millis: u64, (forgotten, now_millis): (u64, u64)) -> u64 {
    nanos.saturating_sub(now_millis.saturating_sub(since_millis).saturating_mul(forgotten))
}

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

    /// It has taken `nanos`, and a hit pays for `worth`; whether that is the first in this window, and what hits have paid for.
    pub(super) fn take(&self, window: u64, nanos: u64, worth: u64) -> (bool, u64) {
        let paid = self.hits.replace(0) * worth;
        // Of one turn no more than its credit, since the machine may have done something else meanwhile; and in all no more than makes up for a few responses: who was costly for long is not so for ever.
        self.unpaid.set((self.unpaid.get() + nanos.min(CREDIT)).saturating_sub(paid).min(2 * CREDIT));
        (self.taken.add(window, nanos), paid)
    }
}

/// What one connection has on trust: what it takes up to the turn in which it first asks for something.
#[derive(Debug)]
pub(super) struct Trust {
    nanos: Cell<u64>,
    /// Whether it has asked for something, and got it.
    asked: Cell<bool>,
    got: Cell<bool>,
    stage: Cell<Stage>,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// It has it for what it takes.
    Open,
    /// It has asked for something, and got nothing yet.
    Asked,
    /// It has got something, or has ended.
    Over,
}

impl Default for Trust {
    fn default() -> Self {
        Self { nanos: Cell::new(0), asked: Cell::new(false), got: Cell::new(false), stage: Cell::new(Stage::Open) }
    }
}

impl Trust {
    /// Something is asked for.
    pub(super) fn asked(&self) {
        self.asked.set(true);
    }

    /// Something is got: at the end of this turn all is forgotten that was on trust.
    pub(super) fn got(&self) {
        self.got.set(true);
    }

    /// A turn has taken `nanos`; how many of them on trust.
    pub(super) fn take(&self, together: &Together, window: u64, nanos: u64, now_millis: u64) -> u64 {
        let more = match self.stage.get() {
            Stage::Over => return 0,
            Stage::Asked => 0,
            Stage::Open => {
                let room = TRUSTED_EACH.saturating_sub(self.nanos.get());
                together.trust(window, nanos.min(room), now_millis)
            }
        };
        self.nanos.set(self.nanos.get() + more);
        if self.got.get() {
            self.stage.set(Stage::Over);
            together.trust_was_right(self.nanos.get(), now_millis);
        } else if self.asked.get() {
            self.stage.set(Stage::Asked);
        }
        more
    }

    /// It ends.
    pub(super) fn was_wrong(&self, together: &Together, now_millis: u64) {
        if !matches!(self.stage.replace(Stage::Over), Stage::Over) {
            together.trust_was_wrong(self.nanos.get(), now_millis);
        }
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

    #[test]
    fn what_is_taken_before_anything_is_asked_for_is_held_against_a_client_only_where_that_is_all() {
        let client = Together::default();
        let shakes = |count: u64| (0..count).map(|_| client.trust(0, DEBT / 10, 1000)).sum::<u64>();
        // A network that comes back all at once, and is served.
        let trusted = shakes(50);
        assert_eq!(trusted, 5 * DEBT);
        assert!(!client.costs_much(1000));
        assert_eq!(client.taken(0), trusted, "others see it all the same");
        client.trust_was_right(trusted, 1000);
        assert!(!client.costs_much(1000));
        // One that leaves after each.
        for _ in 0..10 {
            assert!(!client.costs_much(1000));
            client.trust_was_wrong(shakes(1), 1000);
        }
        client.trust_was_wrong(shakes(1), 1000);
        assert!(client.costs_much(1000));
        // No more than so much at once, of which what was wrong is a part.
        assert_eq!(shakes(1000), TRUSTED_MAX - 11 * DEBT / 10);
        assert_eq!(client.trust(0, 1, 1000), 0);
        client.trust_was_right(TRUSTED_MAX, 1000);
        assert_eq!(client.trust(0, 1, 1000), 1);
        assert_eq!(shakes(1000), TRUSTED_MAX - 1);
        assert_eq!(client.trust(0, DEBT, 2000), 1_000_000, "a thousandth of the time is forgotten");
    }

    #[test]
    fn a_client_costs_much_that_makes_a_session_for_each_request_all_the_time() {
        let client = Together::default();
        let sessions = |count: u64, now: u64| {
            for _ in 0..count {
                client.trust_was_right(client.trust(0, 400_000, now), now);
            }
            client.costs_much(now)
        };
        assert!(!sessions(1200, 1000), "a town");
        assert!((0..60).all(|second| !sessions(25, 1000 + second * 1000)), "and those who come all the time");
        assert!(sessions(2000, 70_000) && client.is_remembered(100_000));
        assert!(!client.costs_much(80_000) && !client.is_remembered(130_000));
    }

    #[test]
    fn a_client_costs_much_whose_connections_get_nothing_for_more_than_a_thousandth_of_the_time() {
        let (client, now) = (Together::default(), Cell::new(1000));
        let for_a_second = |nanos: u64, bytes: u64| {
            for _ in 0..100 {
                now.set(now.get() + 10);
                client.take(0, (nanos, 0), now.get());
                client.got(bytes);
            }
            client.costs_much(now.get())
        };
        assert!((0..20).all(|_| !for_a_second(9_000, 0)), "0.9 of a thousand");
        assert!(for_a_second(1_000_000, 0), "a tenth of the time, and not a byte");
        assert!(!for_a_second(1_000_000, 1 << 20), "a tenth of the time for 100 MiB");
        assert!(for_a_second(1_000_000, 0));
        client.take(0, (1_000_000, 20_000_000), now.get());
        assert!(!client.costs_much(now.get()), "hits have paid for it");
        assert!(for_a_second(1_000_000, 0));
        let later = |millis: u64| client.costs_much(now.get() + millis);
        assert!(later(1000) && !later(6000), "half of the most that is held against it is forgotten in five seconds");
    }
}
