//! Whose turn it is on a worker.
//!
//! woken -> has been served, and takes no more than others  -> polled at once
//!       -> new, or costs more than it gets, or takes too much -> waits among those of its client -> called, client by client -> polled
//!
//! Who is called comes behind all who go first and are ready: one turn for all the others before the kernel is asked again who is ready, and more only
//! where these would else get less than `serve.newcomers_percent` of the worker's time. So a crowd that costs much and gets little delays each viewer by
//! one turn of its own, whatever its size.
//!
//! Clients take turns one after the other, one turn each: what turns may cost is bounded where they are made. Who takes little goes before who always has
//! more to do, as in FQ-CoDel (RFC 8290, 4.2). Of a client whose connections take more than `serve.client_percent` together none goes first, as long
//! as anybody else wants anything.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    future::poll_fn,
    pin::pin,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use tokio::task::yield_now;

use super::{
    account::{HIT, Taken},
    connection::Connection,
};
use crate::telemetry::metrics::Waits;

/// What the worker's time is divided into to see who takes how much of it: windows of 2^7 ms, of which two are looked at.
const WINDOW_BITS: u32 = 7;
/// Nanoseconds of two windows.
const WINDOWS: u64 = 2_000_000 << WINDOW_BITS;
/// Part of them that anybody may take: a twentieth.
const ANYBODY: u64 = WINDOWS / 20;
/// How many times the mean of all who are at work somebody may take.
const SHARES: u64 = 2;
/// How many of a client may wait, however long.
const CROWD: usize = 64;
const NANOS: u64 = 1_000_000_000;
/// What a turn of who is called is taken to last before that is known, and at least; in nanoseconds.
const TURN: i64 = 100_000;
const TURN_MIN: i64 = 2_000;
/// Most that those who waited can be owed for time in which nobody did, in nanoseconds.
const OWED_MAX: i64 = 1_000_000;
/// Most who are called at once.
const CALLS_MAX: i64 = 1000;

/// The turns of one worker.
#[derive(Debug, Default)]
pub(super) struct Turns {
    waiting: RefCell<Waiting>,
    /// Of the task that calls, while nobody waits.
    caller: RefCell<Option<Waker>>,
    /// Nanoseconds that those who were called have taken since the caller last looked, and in how many turns.
    taken: Cell<(i64, i64)>,
    /// Whether somebody had a turn who goes first, since that was last asked.
    first: Cell<bool>,
    /// The client that was called last, and whether it was another before, since that was last asked.
    client: Cell<(u128, bool)>,
    load: Cell<Load>,
    /// Turns that were had.
    had: Cell<u64>,
    /// What each client that is here has taken.
    clients: RefCell<HashMap<u128, Weak<Taken>>>,
    /// Nanoseconds of two windows above which a client takes too much.
    client_most: Cell<u64>,
    /// Nanoseconds that a hit pays for, however few bytes it has.
    worth: Cell<u64>,
    /// The shortest wait of somebody who was called, since that was last asked.
    least: Cell<Option<Duration>>,
}

/// What a window has seen, and the one before.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    window: u64,
    nanos: [u64; 2],
    connections: [u64; 2],
    turns: u64,
}

/// Who waits, by client.
#[derive(Debug, Default)]
struct Waiting {
    clients: HashMap<u128, VecDeque<Rc<Ticket>>>,
    /// Clients who wait, in the order in which they are called.
    ring: VecDeque<u128>,
}

/// One who waits.
#[derive(Debug)]
struct Ticket {
    waker: Waker,
    since: Instant,
    /// How long it has waited, once it is called.
    waited: Cell<Option<Duration>>,
}

impl Load {
    /// Nanoseconds in this window and in the one before.
    fn of(&self, window: u64) -> u64 {
        match window.saturating_sub(self.window) {
            0 => self.nanos[0] + self.nanos[1],
            1 => self.nanos[0],
            _ => 0,
        }
    }
}

fn window(connection: &Connection) -> u64 {
    connection.now() >> WINDOW_BITS
}

impl Turns {
    pub(super) fn new() -> Self {
        Self { client_most: Cell::new(u64::MAX), worth: Cell::new(HIT), ..Self::default() }
    }

    /// Whether a connection is polled whenever it is ready.
    fn goes_first(&self, connection: &Connection) -> bool {
        if !connection.account.is_served() {
            return false;
        }
        let window = window(connection);
        let taken = connection.account.taken(window);
        (taken <= ANYBODY || taken <= self.most()) && !self.is_too_much_together(connection, window)
    }

    /// Whether its client takes too much by all of its connections, while others want something.
    fn is_too_much_together(&self, connection: &Connection, window: u64) -> bool {
        let Some(together) = &connection.together else { return false };
        let taken = together.of(window);
        taken > self.client_most.get() && taken < self.load.get().of(window)
    }

    /// What all connections of a client take together, for one more of them.
    pub(super) fn together(&self, prefix: u128) -> Rc<Taken> {
        let mut clients = self.clients.borrow_mut();
        if let Some(known) = clients.get(&prefix).and_then(Weak::upgrade) {
            return known;
        }
        // Those who have left make room before the table would grow: it holds no more than twice as many as are here.
        if clients.len() == clients.capacity() {
            clients.retain(|_, taken| taken.strong_count() > 0);
        }
        let new = Rc::new(Taken::default());
        clients.insert(prefix, Rc::downgrade(&new));
        new
    }

    /// No client takes more than this of the worker's time from others.
    pub(super) fn set_client_percent(&self, percent: u8) {
        let most = if percent >= 100 { u64::MAX } else { WINDOWS * u64::from(percent) / 100 };
        self.client_most.set(most);
    }

    /// Nanoseconds in two windows above which a connection takes too much.
    fn most(&self) -> u64 {
        let Load { nanos, connections, .. } = self.load.get();
        // Most who were at work in one are so in the other.
        SHARES * (nanos[0] + nanos[1]) / connections[0].max(connections[1]).max(1)
    }

    fn wait(&self, connection: &Connection, waker: &Waker) -> Rc<Ticket> {
        connection.metrics.waits(if connection.account.is_served() { Waits::Heavy } else { Waits::Newcomer });
        let ticket = Rc::new(Ticket { waker: waker.clone(), since: connection.looked(), waited: Cell::new(None) });
        let mut waiting = self.waiting.borrow_mut();
        let Waiting { clients, ring } = &mut *waiting;
        let queue = clients.entry(connection.prefix).or_insert_with(|| {
            ring.push_back(connection.prefix);
            VecDeque::new()
        });
        queue.push_back(Rc::clone(&ticket));
        if let Some(caller) = self.caller.borrow_mut().take() {
            caller.wake();
        }
        ticket
    }

    /// Whether so many of a client wait already, or for so long (zero: however long), that one more would only take room.
    pub(super) fn is_crowd(&self, prefix: u128, most: usize, longest: Duration) -> bool {
        let waiting = self.waiting.borrow();
        let Some(queue) = waiting.clients.get(&prefix) else { return false };
        // The clock is looked at for few.
        queue.len() > most.max(CROWD)
            || (queue.len() > CROWD
                && !longest.is_zero()
                && queue.front().is_some_and(|first| first.since.elapsed() > longest))
    }

    /// Calls whoever is next.
    fn call(&self, now: Instant) {
        let mut waiting = self.waiting.borrow_mut();
        let Waiting { clients, ring } = &mut *waiting;
        while let Some(client) = ring.pop_front() {
            let Some(queue) = clients.get_mut(&client) else { continue };
            // Tasks that have ended meanwhile have left their tickets behind.
            let next = std::iter::from_fn(|| queue.pop_front()).find(|ticket| Rc::strong_count(ticket) > 1);
            if queue.is_empty() {
                clients.remove(&client);
            } else {
                ring.push_back(client);
            }
            if let Some(ticket) = next {
                let (last, several) = self.client.get();
                self.client.set((client, several || last != client));
                let waited = now.saturating_duration_since(ticket.since);
                self.least.set(Some(self.least.get().map_or(waited, |least| least.min(waited))));
                ticket.waited.set(Some(waited));
                ticket.waker.wake_by_ref();
                return;
            }
        }
    }

    /// A turn of somebody who was called took `nanos`.
    fn called_took(&self, nanos: u64) {
        let (taken, turns) = self.taken.get();
        self.taken.set((taken.saturating_add(i64::try_from(nanos).unwrap_or(i64::MAX)), turns + 1));
    }

    /// A turn took `nanos`.
    fn took(&self, connection: &Connection, nanos: u64) {
        let window = window(connection);
        let first = connection.account.take(window, nanos, self.worth.get());
        if let Some(together) = &connection.together {
            together.add(window, nanos);
        }
        let mut load = self.load.get();
        match window.saturating_sub(load.window) {
            0 => {}
            1 => {
                load.nanos = [0, load.nanos[0]];
                load.connections = [0, load.connections[0]];
            }
            _ => (load.nanos, load.connections) = ([0; 2], [0; 2]),
        }
        load.nanos[0] += nanos;
        load.turns += 1;
        load.connections[0] += u64::from(first);
        if load.window != window {
            load.window = window;
            // On a slow machine more.
            self.worth.set(HIT.max(2 * load.nanos[1] / load.turns));
            load.turns = 0;
        }
        self.load.set(load);
    }

    /// How long who was called since this was last asked has waited: who has done so for the shortest time, so that one client that
    /// crowds in does not look like many. Nothing where there is only one, while others go first: it waits for nobody but itself.
    pub(super) fn wait_of_late(&self) -> Duration {
        let (client, several) = self.client.get();
        self.client.set((client, false));
        let (least, first) = (self.least.take().unwrap_or_default(), self.first.take());
        if first && !several { Duration::ZERO } else { least }
    }
}

/// How many are called before the kernel is asked again who is ready: one, or as many as there is time for that is owed to them, where a
/// turn takes `mean`.
fn calls(owed: i64, mean: i64) -> i64 {
    (owed / mean.max(TURN_MIN)).clamp(1, CALLS_MAX)
}

/// Calls those who wait, for as long as the worker runs; `percent` of its time is theirs at least.
pub(super) async fn call(turns: Rc<Turns>, percent: impl Fn() -> u8) {
    let (mut last, mut owed, mut mean) = (Instant::now(), 0_i64, TURN);
    loop {
        poll_fn(|cx| {
            if turns.waiting.borrow().ring.is_empty() {
                *turns.caller.borrow_mut() = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
        // First those who go first and of whom the kernel has news.
        yield_now().await;
        let now = Instant::now();
        let elapsed = i64::try_from((now - last).as_nanos()).unwrap_or(i64::MAX).min(100 * OWED_MAX);
        let (taken, count) = turns.taken.take();
        if let Some(one) = taken.checked_div(count) {
            mean = (3 * mean + one) / 4;
        }
        let due = elapsed * i64::from(percent()) / 100;
        owed = (owed + due - taken).clamp(-OWED_MAX, due.max(OWED_MAX));
        last = now;
        for _ in 0..calls(owed, mean) {
            turns.call(now);
        }
    }
}

/// Polls a task of a connection when it is its turn; `connection.waited` says how long it has waited for that.
pub(super) async fn in_turn<F: Future>(turns: Rc<Turns>, connection: Rc<Connection>, task: F) -> F::Output {
    let mut task = pin!(task);
    let mut ticket: Option<Rc<Ticket>> = None;
    poll_fn(|cx: &mut Context<'_>| {
        let begun = Instant::now();
        connection.look(begun);
        if !turns.goes_first(&connection) {
            match &ticket {
                None => {
                    ticket = Some(turns.wait(&connection, cx.waker()));
                    connection.begin_wait();
                    return Poll::Pending;
                }
                Some(ticket) if ticket.waited.get().is_none() => return Poll::Pending,
                Some(_) => {}
            }
        }
        let waited = ticket.take().and_then(|ticket| ticket.waited.get());
        connection.end_wait(waited.unwrap_or_default());
        connection.begin_turn(turns.had.replace(turns.had.get() + 1));
        let polled = task.as_mut().poll(cx);
        // The end of a response has looked at the clock already.
        let ended = if connection.looked() == begun { Instant::now() } else { connection.looked() };
        let took = ended.saturating_duration_since(begun);
        let nanos = took.as_secs() * NANOS + u64::from(took.subsec_nanos());
        turns.took(&connection, nanos);
        match waited {
            Some(_) => turns.called_took(nanos),
            None => turns.first.set(true),
        }
        polled
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::telemetry::metrics::Metrics;

    struct Scene {
        turns: Rc<Turns>,
        now: Rc<Cell<u64>>,
        /// Who had a turn, in order.
        had: Rc<RefCell<Vec<u32>>>,
    }

    impl Scene {
        fn new() -> Self {
            Self { turns: Rc::new(Turns::new()), now: Rc::new(Cell::new(1_000_000)), had: Rc::default() }
        }

        fn connection(&self, prefix: u128) -> Rc<Connection> {
            let peer = SocketAddr::from(([127, 0, 0, 1], 1));
            let together = Some(self.turns.together(prefix));
            Connection::new((peer, prefix, together), None, Metrics::new(1).worker(0), Rc::clone(&self.now))
        }

        fn viewer(&self) -> Rc<Connection> {
            let viewer = self.connection(1);
            viewer.account.got(1 << 20);
            viewer
        }

        /// A task of `connection` that takes `cost` in each of `turns` turns, and is ready again at once.
        fn busy(&self, name: u32, connection: Rc<Connection>, cost: Duration, turns: u32) {
            let (had, served) = (Rc::clone(&self.had), connection.account.is_served().then(|| Rc::clone(&connection)));
            let task = async move {
                for _ in 0..turns {
                    had.borrow_mut().push(name);
                    let begun = Instant::now();
                    while begun.elapsed() < cost {
                        std::hint::spin_loop();
                    }
                    if let Some(served) = &served {
                        served.account.got(64 << 20);
                    }
                    yield_now().await;
                }
            };
            tokio::task::spawn_local(in_turn(Rc::clone(&self.turns), connection, task));
        }

        /// Runs until so many turns were had, with no more for those who wait than one in each round: time is no matter then.
        async fn until(&self, turns: usize) -> Vec<u32> {
            let caller = tokio::task::spawn_local(call(Rc::clone(&self.turns), || 0));
            while self.had.borrow().len() < turns {
                yield_now().await;
            }
            caller.abort();
            self.had.borrow().clone()
        }
    }

    fn run<F: Future>(task: F) -> F::Output {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build_local(tokio::runtime::LocalOptions::default()).expect("a runtime").block_on(task)
    }

    const LITTLE: Duration = Duration::from_micros(20);

    fn count(had: &[u32], name: u32) -> usize {
        had.iter().filter(|had| **had == name).count()
    }

    #[test]
    fn a_client_that_comes_with_many_is_called_no_more_often_than_one_that_comes_with_one() {
        run(async {
            let scene = Scene::new();
            for _ in 0..200 {
                scene.busy(1, scene.connection(1), LITTLE, 1);
            }
            scene.busy(2, scene.connection(2), LITTLE, 5);
            let had = scene.until(100).await;
            let last = had.iter().rposition(|name| *name == 2).expect("it was called");
            assert_eq!(count(&had, 2), 5);
            assert!(last < 20, "{had:?}");
        });
    }

    #[test]
    fn who_is_served_waits_for_no_more_than_a_few_of_a_crowd() {
        run(async {
            let scene = Scene::new();
            for _ in 0..500 {
                scene.busy(1, scene.connection(1), LITTLE, 100);
            }
            for _ in 0..4 {
                scene.busy(2, scene.viewer(), LITTLE, 100);
            }
            let had = scene.until(1000).await;
            // By turns in order they would have one in a hundred. A machine that stops for long makes them look as if they cost much.
            assert!(count(&had[..600], 2) > 200, "one of the crowd for each round of all four, and not {had:?}");
        });
    }

    #[test]
    fn as_many_are_called_as_there_is_time_for() {
        let (turn, viewers) = (30_000, 300);
        // Rounds of 300 viewers with 30 us each: 9 ms, of which a fifth of all is owed to others.
        let round = viewers * turn;
        let (mut owed, mut called) = (0, 0);
        for _ in 0..1000 {
            let count = calls(owed, turn);
            called += count;
            let elapsed = round + count * turn;
            owed = (owed + elapsed / 5 - count * turn).clamp(-OWED_MAX, (elapsed / 5).max(OWED_MAX));
        }
        let share = 100 * called * turn / (called * turn + 1000 * round);
        assert!((19..=20).contains(&share), "{share} percent");
        assert_eq!(calls(-5_000_000, 30_000), 1, "one in each round, whatever is owed");
        assert_eq!(calls(1_000_000, 0), 500, "a clock that stands still is no reason to call everybody");
    }

    #[test]
    fn a_crowd_of_one_client_is_no_overload_while_others_are_served() {
        let scene = Scene::new();
        let viewer = scene.viewer();
        let crowd: Vec<_> = (0..3).map(|_| scene.connection(7)).collect();
        let late = |others_too: bool, viewers_too: bool| {
            let tickets: Vec<_> = crowd.iter().map(|one| scene.turns.wait(one, Waker::noop())).collect();
            let other = others_too.then(|| scene.turns.wait(&scene.connection(8), Waker::noop()));
            scene.turns.first.set(viewers_too);
            for _ in 0..4 {
                scene.turns.call(Instant::now() + Duration::from_secs(1));
            }
            drop((tickets, other));
            scene.turns.wait_of_late() >= Duration::from_secs(1)
        };
        scene.turns.took(&viewer, 1000);
        assert!(late(false, false), "nobody else is there");
        assert!(!late(false, true), "viewers are served, and the crowd waits for itself");
        assert!(late(true, true), "others wait as long");
    }

    #[test]
    fn who_takes_far_more_than_others_waits_and_who_is_alone_does_not() {
        let scene = Scene::new();
        let viewers: Vec<_> = (0..50).map(|_| scene.viewer()).collect();
        let heavy = scene.viewer();
        let window = 1 << WINDOW_BITS;
        let at_work = |light: u64, much: u64| {
            for _ in 0..3 {
                scene.now.set(scene.now.get() + window);
                for viewer in &viewers {
                    scene.turns.took(viewer, light);
                    viewer.account.got(1 << 20);
                }
                scene.turns.took(&heavy, much);
                heavy.account.got(64 << 20);
            }
        };
        at_work(1_000_000, 50_000_000);
        assert!(!scene.turns.goes_first(&heavy), "half of the worker, beside fifty");
        assert!(viewers.iter().all(|viewer| scene.turns.goes_first(viewer)));
        at_work(1_000_000, 4_000_000);
        assert!(scene.turns.goes_first(&heavy), "little, though more than others");
        let alone = Scene::new();
        let viewer = alone.viewer();
        for _ in 0..3 {
            alone.now.set(alone.now.get() + window);
            alone.turns.took(&viewer, 120_000_000);
            viewer.account.got(64 << 20);
        }
        assert!(alone.turns.goes_first(&viewer), "nobody else wants anything");
        alone.now.set(alone.now.get() + 10 * window);
        assert!(alone.turns.goes_first(&viewer));
    }

    #[test]
    fn a_client_that_takes_more_than_its_part_by_many_connections_comes_after_all_others() {
        let scene = Scene::new();
        scene.turns.set_client_percent(50);
        let crowd: Vec<_> = (0..50).map(|_| scene.connection(7)).collect();
        let viewer = scene.viewer();
        let at_work = |each: u64, others: u64| {
            for _ in 0..3 {
                scene.now.set(scene.now.get() + (1 << WINDOW_BITS));
                if others > 0 {
                    scene.turns.took(&viewer, others);
                    viewer.account.got(1 << 20);
                }
                for one in &crowd {
                    scene.turns.took(one, each);
                    one.account.got(1 << 20);
                }
            }
        };
        let first = || crowd.iter().filter(|one| scene.turns.goes_first(one)).count();
        at_work(2_000_000, 1_000);
        assert_eq!(first(), 0, "100 of 128 ms, none of them more than 2");
        assert!(scene.turns.goes_first(&viewer));
        at_work(1_000_000, 1_000);
        assert_eq!(first(), 50, "50 of 128 ms");
        at_work(2_000_000, 0);
        assert_eq!(first(), 50, "nobody else wants anything");
        at_work(2_000_000, 1_000);
        scene.turns.set_client_percent(100);
        assert_eq!(first(), 50, "no bound");
        drop(crowd);
        for prefix in 10..1000 {
            drop(scene.connection(prefix));
        }
        assert!(scene.turns.clients.borrow().len() < 10, "who has left is forgotten");
    }

    #[test]
    fn tasks_that_have_ended_keep_nobody_waiting() {
        run(async {
            let scene = Scene::new();
            let ended: Vec<_> = (0..100)
                .map(|_| {
                    let task = in_turn(Rc::clone(&scene.turns), scene.connection(1), std::future::pending::<()>());
                    tokio::task::spawn_local(task)
                })
                .collect();
            yield_now().await;
            ended.iter().for_each(tokio::task::JoinHandle::abort);
            yield_now().await;
            scene.busy(2, scene.connection(1), LITTLE, 1);
            assert_eq!(scene.until(1).await, [2]);
            assert!(scene.turns.wait_of_late() > Duration::ZERO);
            assert_eq!(scene.turns.wait_of_late(), Duration::ZERO, "asked already");
        });
    }

    #[test]
    fn a_client_of_whom_many_wait_for_long_is_a_crowd_and_no_other_is() {
        run(async {
            let scene = Scene::new();
            for _ in 0..CROWD + 1 {
                scene.busy(1, scene.connection(1), LITTLE, 1);
            }
            scene.busy(2, scene.connection(2), LITTLE, 1);
            assert!(!scene.turns.is_crowd(1, 1000, LITTLE), "nobody has had a look yet");
            for _ in 0..5 {
                yield_now().await;
            }
            let begun = Instant::now();
            while begun.elapsed() < 2 * LITTLE {
                std::hint::spin_loop();
            }
            assert!(scene.turns.is_crowd(1, 1000, LITTLE));
            assert!(!scene.turns.is_crowd(1, 1000, Duration::from_secs(1000)), "not for that long");
            assert!(!scene.turns.is_crowd(1, 1000, Duration::ZERO), "as long as they like");
            assert!(scene.turns.is_crowd(1, CROWD, Duration::ZERO), "too many");
            assert!(!scene.turns.is_crowd(2, 1000, LITTLE) && !scene.turns.is_crowd(3, 1000, LITTLE));
        });
    }
}
