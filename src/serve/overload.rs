//! Which requests are refused while more is asked for than one worker can serve.
//!
//! how long what is ready waits (looked at every few milliseconds) -> [`Governor`]: what part is refused -> [`Shedding`]: this one?
//!
//! Requests are refused, not connections: who has been served lately is served on as long as refusing newcomers is enough. What has
//! begun is never broken off. A refusal costs a few microseconds, and who was refused is not heard again for a moment, so that those
//! who come back at once do not keep the worker from those it serves.
//!
//! The rule is that of RFC 8033 (PIE), with delays measured rather than estimated: the part grows with the delay above its bound and
//! with its growth, and shrinks with it again.

use std::{
    cell::Cell,
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use super::{Config, connection::Connection};
use crate::telemetry::metrics::Shed;

/// A delay above its bound for less than this is a burst (RFC 8033, 4.2, allows 150 ms).
const BURST: Duration = Duration::from_millis(100);
/// What the refused part grows by in a second while the delay is twice its bound.
const GROWTH: f64 = 1.0;
/// What it grows by when the delay has grown by as much as its bound.
const FORESIGHT: f64 = 0.1;
/// Bounds above its bound beyond which a delay counts no more: one long turn is no reason to refuse everybody.
const EXCESS_MAX: f64 = 5.0;
/// Part of the time for which a worker is at work that has no rest.
const BUSY: f64 = 0.9;
/// Longest time that one look counts for.
const LOOK_MAX: Duration = Duration::from_millis(200);
/// Whole of what parts are of.
const WHOLE: u32 = 1000;
/// How long somebody who was refused counts as a newcomer.
const REFUSED_MEMORY: u64 = 10_000;
/// How many times the bound somebody may wait for a turn that comes behind those who go first, whatever the others wait.
pub(super) const PATIENCE: u32 = 10;

/// What of a delay comes of what is asked of the worker, if it was at work for `worked` of the last `elapsed`. One that has rested could have
/// done more: whatever was late then, it is the machine that is busy with something else.
pub(super) fn own_delay(late: Duration, elapsed: Duration, worked: Duration) -> Duration {
    if worked < elapsed.mul_f64(BUSY) { Duration::ZERO } else { late }
}

/// What part of requests is refused, of [`WHOLE`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Parts {
    /// Of those who were not served lately.
    pub(super) newcomers: u32,
    /// Of those who were.
    pub(super) viewers: u32,
}

impl Parts {
    const ALL: Self = Self { newcomers: WHOLE, viewers: WHOLE };
}

/// Finds the part to refuse. No clock: a table of cases tests it.
#[derive(Debug)]
pub(super) struct Governor {
    bound: Duration,
    /// How long the delay has been above its bound.
    above: Duration,
    before: f64,
    /// 0 to 1: nobody, all newcomers and nobody else in the middle, everybody.
    part: f64,
}

impl Governor {
    /// Holds the delay to `bound`; zero: refuses nothing.
    pub(super) fn new(bound: Duration) -> Self {
        Self { bound, above: Duration::ZERO, before: 0.0, part: 0.0 }
    }

    /// For the last `elapsed`, what was ready waited `delay`.
    pub(super) fn look(&mut self, delay: Duration, elapsed: Duration) -> Parts {
        if self.bound.is_zero() {
            return Parts::default();
        }
        let elapsed = elapsed.min(LOOK_MAX);
        self.above = if delay > self.bound { self.above + elapsed } else { Duration::ZERO };
        let excess = (delay.as_secs_f64() / self.bound.as_secs_f64() - 1.0).min(EXCESS_MAX);
        let growth = excess - self.before;
        self.before = excess;
        if self.part > 0.0 || self.above >= BURST {
            let more = excess * GROWTH * elapsed.as_secs_f64() + growth * FORESIGHT;
            self.part = (self.part + more).clamp(0.0, 1.0);
        }
        self.parts()
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 1, times the whole")]
    fn parts(&self) -> Parts {
        let of = |part: f64| (part.clamp(0.0, 1.0) * f64::from(WHOLE)).round() as u32;
        Parts { newcomers: of(2.0 * self.part), viewers: of(2.0 * self.part - 1.0) }
    }
}

/// What the connections of one worker ask before each request.
#[derive(Debug)]
pub(super) struct Shedding {
    parts: Cell<Parts>,
    /// The same of those who wait until they are called, and have done so for longer than they should.
    late: Cell<Parts>,
    delay_bound: Duration,
    /// Refusals that are due, of newcomers and of viewers: refused is evenly, not by the dice.
    due: [Cell<u32>; 2],
    random: Cell<u32>,
    retry_after: u64,
    delay_max: Duration,
}

/// A request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// For whom it is.
    pub(super) why: Shed,
    /// Seconds after which it may be asked again: not the same for all, so that they do not come back at once.
    pub(super) retry_after: u64,
}

impl Shedding {
    pub(super) fn new(config: &Config) -> Self {
        let seed = RandomState::new().hash_one(0);
        Self {
            parts: Cell::default(),
            late: Cell::default(),
            delay_bound: config.queue_delay_max,
            due: Default::default(),
            random: Cell::new(u32::try_from(seed >> 32).unwrap_or_default() | 1),
            retry_after: config.retry_after.as_secs().max(1),
            delay_max: config.refuse_delay,
        }
    }

    /// What part is refused, of all, and of those who were called late.
    pub(super) fn parts(&self) -> (Parts, Parts) {
        (self.parts.get(), self.late.get())
    }

    pub(super) fn set(&self, (parts, late): (Parts, Parts)) {
        self.parts.set(parts);
        self.late.set(late);
    }

    /// Whether anybody is refused.
    pub(super) fn is_on(&self) -> bool {
        self.parts.get().newcomers > 0 || self.late.get().newcomers > 0
    }

    /// What part is refused of those who waited for this turn as `connection` did. Who was called in time does not suffer for a crowd of
    /// others that was not.
    fn parts_of(&self, connection: &Connection) -> Parts {
        let (parts, late, waited) = (self.parts.get(), self.late.get(), connection.waited.get());
        if self.delay_bound.is_zero() || waited <= self.delay_bound {
            return parts;
        }
        // A worker that has time to spare refuses nobody: then it was the machine that was busy with something else.
        if waited > self.delay_bound * PATIENCE && late.newcomers > 0 {
            return Parts::ALL;
        }
        Parts { newcomers: parts.newcomers.max(late.newcomers), viewers: parts.viewers.max(late.viewers) }
    }

    /// Whether the next request of `connection` is refused.
    pub(super) fn refuses(&self, connection: &Connection) -> Option<Refused> {
        if !self.is_on() && connection.waited.get().is_zero() {
            return None;
        }
        let (parts, now) = (self.parts_of(connection), connection.now());
        let refused_lately = match connection.refused_millis.get() {
            0 => false,
            then => now.saturating_sub(then) < REFUSED_MEMORY,
        };
        let is_viewer = connection.sent() > 0 && !refused_lately;
        let (why, part) = if is_viewer { (Shed::Viewer, parts.viewers) } else { (Shed::Newcomer, parts.newcomers) };
        let refused = self.is_due(&self.due[usize::from(is_viewer)], part);
        connection.refused_millis.set(if refused { now } else { 0 });
        refused.then(|| Refused { why, retry_after: self.retry_after + self.below(self.retry_after + 1) })
    }

    /// Whether a connection that costs a handshake before it can ask anything is closed instead.
    pub(super) fn refuses_handshake(&self, connection: &Connection) -> bool {
        self.is_due(&self.due[0], self.parts_of(connection).newcomers)
    }

    /// How long who was refused is not listened to.
    pub(super) fn pause(&self) -> Duration {
        let micros = u64::try_from(self.delay_max.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(micros / 2 + self.below(micros / 2 + 1))
    }

    fn is_due(&self, due: &Cell<u32>, part: u32) -> bool {
        let sum = due.get() + part;
        due.set(sum % WHOLE);
        sum >= WHOLE
    }

    /// xorshift32 (Marsaglia, 2003): nobody gains by foreseeing it.
    fn below(&self, bound: u64) -> u64 {
        let mut random = self.random.get();
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        self.random.set(random);
        u64::from(random) % bound.max(1)
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, rc::Rc};

    use super::*;
    use crate::telemetry::metrics::Metrics;

    const MS: fn(u64) -> Duration = Duration::from_millis;
    const BOUND: Duration = Duration::from_millis(20);

    /// What a refusal costs of what it refuses.
    const REFUSAL: f64 = 0.05;

    /// A worker and its queue, in steps of a tenth of a millisecond. Who is refused is found when it is their turn.
    struct Modelled {
        governor: Governor,
        parts: Parts,
        /// Milliseconds of work, were nobody refused.
        queue: f64,
        /// What is ahead of the probe, where it is in the queue.
        ahead: Option<f64>,
        now: f64,
        /// When the probe came back, and when it went in.
        looked: f64,
        due: f64,
        worked: f64,
    }

    impl Modelled {
        fn new() -> Self {
            let (governor, parts) = (Governor::new(BOUND), Parts::default());
            Self { governor, parts, queue: 0.0, ahead: None, now: 0.0, looked: 0.0, due: 10.0, worked: 0.0 }
        }

        /// For so many milliseconds viewers and newcomers ask for so much (1: all that the worker can); gives the parts that are refused of
        /// both, and the longest wait.
        fn run(&mut self, millis: u32, viewers: f64, newcomers: f64) -> (f64, f64, f64) {
            const STEP: f64 = 0.1;
            let (mut refused, mut steps, mut longest) = ([0.0; 2], 0.0, 0.0_f64);
            for _ in 0..millis * 10 {
                self.now += STEP;
                let part = |part: u32| f64::from(part) / f64::from(WHOLE);
                let (of_viewers, of_newcomers) = (part(self.parts.viewers), part(self.parts.newcomers));
                let mean = (viewers * of_viewers + newcomers * of_newcomers) / (viewers + newcomers);
                self.queue += (viewers + newcomers) * STEP;
                let done = (STEP / (1.0 - mean + REFUSAL * mean)).min(self.queue);
                self.queue -= done;
                self.worked += if self.queue > 0.0 { STEP } else { done * (1.0 - mean + REFUSAL * mean) };
                refused = [refused[0] + of_viewers, refused[1] + of_newcomers];
                steps += 1.0;
                match self.ahead {
                    None if self.now >= self.due => self.ahead = Some(self.queue),
                    Some(ahead) if ahead > done => self.ahead = Some(ahead - done),
                    Some(_) => self.look(&mut longest),
                    None => {}
                }
            }
            (refused[0] / steps, refused[1] / steps, longest)
        }

        fn look(&mut self, longest: &mut f64) {
            let wait = self.now - self.due;
            *longest = longest.max(wait);
            let millis = |time: f64| Duration::from_secs_f64(time.max(0.0) / 1000.0);
            let elapsed = millis(self.now - self.looked);
            let delay = own_delay(millis(wait), elapsed, millis(self.worked));
            self.parts = self.governor.look(delay, elapsed);
            (self.looked, self.due, self.ahead, self.worked) = (self.now, self.now + 10.0, None, 0.0);
        }
    }

    #[test]
    fn three_times_too_much_is_cut_to_what_can_be_done_and_the_queue_stays_at_its_bound() {
        for (viewers, newcomers) in [(3.0, 0.0), (0.0, 3.0), (1.5, 1.5), (0.5, 2.5)] {
            let mut worker = Modelled::new();
            let (_, _, worst) = worker.run(1000, viewers, newcomers);
            assert!(worst < 400.0, "{viewers} and {newcomers}: {worst} ms at the onset");
            worker.run(1000, viewers, newcomers);
            let (of_viewers, of_newcomers, longest) = worker.run(5000, viewers, newcomers);
            let refused = (of_viewers * viewers + of_newcomers * newcomers) / 3.0;
            // (3 - 1) / 0.95 of 3.
            assert!((0.68..0.73).contains(&refused), "{viewers} and {newcomers}: {refused} refused");
            assert!(longest < 30.0, "{viewers} and {newcomers}: {longest} ms");
        }
    }

    #[test]
    fn newcomers_give_way_before_viewers() {
        let mut worker = Modelled::new();
        worker.run(2000, 0.8, 1.5);
        let (viewers, newcomers, _) = worker.run(5000, 0.8, 1.5);
        assert!(viewers < 0.01 && (0.85..0.97).contains(&newcomers), "{viewers} of viewers, {newcomers} of newcomers");
    }

    #[test]
    fn when_it_is_over_nobody_is_refused() {
        let mut worker = Modelled::new();
        worker.run(3000, 0.0, 3.0);
        worker.run(2000, 0.0, 0.7);
        assert_eq!(worker.parts, Parts::default());
        let (viewers, newcomers, _) = worker.run(5000, 0.2, 0.5);
        assert_eq!((viewers, newcomers), (0.0, 0.0));
    }

    #[test]
    fn a_burst_and_a_machine_that_is_busy_with_others_are_no_overload() {
        let mut governor = Governor::new(BOUND);
        for _ in 0..50 {
            // 90 ms behind, and caught up.
            assert_eq!(governor.look(MS(90), MS(90)), Parts::default());
            assert_eq!(governor.look(MS(5), MS(10)), Parts::default());
        }
        assert_eq!(own_delay(MS(500), MS(510), MS(400)), MS(0), "it had rest");
        assert_eq!(own_delay(MS(500), MS(510), MS(500)), MS(500));
        let mut off = Governor::new(Duration::ZERO);
        for _ in 0..50 {
            assert_eq!(off.look(MS(5000), MS(100)), Parts::default());
        }
    }

    fn connection() -> (Rc<Connection>, Rc<Cell<u64>>) {
        let now = Rc::new(Cell::new(1_000_000));
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        (Connection::new((peer, 0, None), None, Metrics::new(1).worker(0), Rc::clone(&now)), now)
    }

    fn shedding(newcomers: u32, viewers: u32) -> Shedding {
        let shedding = Shedding::new(&Config::default());
        shedding.set((Parts { newcomers, viewers }, Parts::default()));
        shedding
    }

    #[test]
    fn the_part_that_is_asked_for_is_refused_evenly() {
        let (newcomer, _) = connection();
        let shedding = shedding(250, 0);
        let refused: Vec<bool> = (0..12).map(|_| shedding.refuses(&newcomer).is_some()).collect();
        assert_eq!(refused, [false, false, false, true].repeat(3));
    }

    #[test]
    fn who_was_refused_is_a_newcomer_again_for_a_while() {
        let (viewer, now) = connection();
        viewer.add_sent(1000);
        let shedding = shedding(1000, 0);
        assert_eq!(shedding.refuses(&viewer), None);
        shedding.set((Parts::ALL, Parts::default()));
        assert_eq!(shedding.refuses(&viewer).map(|refused| refused.why), Some(Shed::Viewer));
        shedding.set((Parts { newcomers: 1000, viewers: 0 }, Parts::default()));
        assert_eq!(shedding.refuses(&viewer).map(|refused| refused.why), Some(Shed::Newcomer));
        now.set(now.get() + REFUSED_MEMORY);
        assert_eq!(shedding.refuses(&viewer), None);
    }

    #[test]
    fn not_all_who_are_refused_come_back_at_once() {
        let (newcomer, _) = connection();
        let shedding = shedding(1000, 1000);
        let after: std::collections::BTreeSet<u64> =
            (0..1000).filter_map(|_| Some(shedding.refuses(&newcomer)?.retry_after)).collect();
        assert_eq!(after, (5..=10).collect(), "serve.retry_after to twice as much");
        let pauses: Vec<Duration> = (0..1000).map(|_| shedding.pause()).collect();
        assert!(pauses.iter().all(|pause| (MS(20)..=MS(40)).contains(pause)), "{pauses:?}");
        assert!(pauses.iter().min() < Some(&MS(22)) && pauses.iter().max() > Some(&MS(38)));
    }

    #[test]
    fn who_was_called_in_time_does_not_suffer_for_those_who_were_not() {
        let shedding = Shedding::new(&Config::default());
        shedding.set((Parts::default(), Parts { newcomers: 1000, viewers: 0 }));
        let ((crowd, _), (other, _), (viewer, _)) = (connection(), connection(), connection());
        viewer.add_sent(1000);
        for connection in [&crowd, &viewer] {
            connection.waited.set(MS(21));
        }
        other.waited.set(MS(20));
        assert_eq!(shedding.refuses(&crowd).map(|refused| refused.why), Some(Shed::Newcomer));
        assert_eq!(shedding.refuses(&other), None);
        assert_eq!(shedding.refuses(&viewer), None, "viewers come after newcomers here too");
        assert!(shedding.refuses_handshake(&crowd) && !shedding.refuses_handshake(&other));
    }

    #[test]
    fn nobody_is_served_who_has_waited_for_far_too_long() {
        let shedding = Shedding::new(&Config::default());
        let (viewer, _) = connection();
        viewer.add_sent(1000);
        viewer.waited.set(MS(201));
        assert_eq!(shedding.refuses(&viewer), None, "the worker itself is not behind");
        shedding.set((Parts::default(), Parts { newcomers: 1, viewers: 0 }));
        viewer.waited.set(MS(200));
        assert_eq!(shedding.refuses(&viewer), None);
        viewer.waited.set(MS(201));
        assert!(shedding.refuses(&viewer).is_some());
        let never = Shedding::new(&Config { queue_delay_max: Duration::ZERO, ..Config::default() });
        assert_eq!(never.refuses(&viewer), None);
    }
}
