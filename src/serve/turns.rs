//! Whose turn it is on a worker.
//!
//! woken -> has been served, and takes no more than others  -> polled at once
//!       -> new, or costs more than it gets, or takes too much -> waits among those of its client -> called, client by client -> polled
//!
//! Who costs much and gets next to nothing is called apart from all others: as long as anybody else wants anything such clients have `serve.costly_permille` of the worker's time together,
//! and no more, whatever is free: each turn of theirs may be one that a viewer comes behind.
//!
//! Who is called comes behind all who go first and are ready: one turn for all the others before the kernel is asked again who is ready, and more only
//! where these would else get less than `serve.newcomers_percent` of the worker's time. So a crowd that costs much and gets little delays each viewer by
//! one turn of its own, whatever its size.
//!
//! Clients take turns one after the other, one turn each: what turns may cost is bounded where they are made. Who takes little goes before who always has
//! more to do, as in FQ-CoDel (RFC 8290, 4.2). Of a client whose connections take more than `serve.client_percent` together none goes first, as long
//! as anybody else wants anything.

mod waiting;

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    future::poll_fn,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use futures_util::future::select;
use tokio::{task::yield_now, time::sleep};

use self::waiting::{Key, Ticket, Waiting};
use super::{
    account::{HIT, TURN_MAX, Together},
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
/// How many of a client may wait, however long; and how many times longer some of one that costs much may than of others, since it is by its own rule.
const CROWD: usize = 64;
const CROWD_COSTLY: u32 = 10;
const NANOS: u64 = 1_000_000_000;
/// Most nanoseconds of a turn that say what one takes here. With more, turns that cost much would make hits worth so much that they pay for themselves.
const USUAL_MAX: u64 = 250_000;
/// What a turn of who is called is taken to last before that is known, and at least; in nanoseconds.
const TURN: i64 = 100_000;
const TURN_MIN: i64 = 2_000;
/// Most that those who waited can be owed for time in which nobody did, in nanoseconds.
const OWED_MAX: i64 = 1_000_000;
/// Most that those can be owed who cost much, in nanoseconds: a turn or two, so that they never come in a row.
const OWED_COSTLY_MAX: i64 = 50_000;
/// Most that is held against them.
const TAKEN_COSTLY_MAX: i64 = 5_000_000;
/// Longest rest of theirs before it is looked at again whether it is over.
const REST_MAX: i64 = 10_000_000;
/// Time without a turn of anybody else after which they have whatever is free.
const QUIET: Duration = Duration::from_millis(100);
/// Clients that have left of whom is remembered what they took.
const REMEMBERED_MAX: usize = 4096;
/// Clients that have flooded of whom that is remembered when they leave; of more, the last.
const FLOODS_MAX: usize = 256;
/// Percent of its time that a worker has something to do below which turns are short.
const SHORT_BELOW: u32 = 80;
/// So many whose clients have left are let go at once, so often: each takes some microseconds, and between them the core is for others, the helper too.
const LEFT_AT_ONCE: usize = 4;
const LEFT_EVERY: Duration = Duration::from_millis(1);
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
    /// Nanoseconds that those of them have taken who cost much.
    taken_costly: Cell<i64>,
    others: Others,
    /// Whether somebody had a turn who goes first, since that was last asked.
    first: Cell<bool>,
    /// The client that was called last, and whether it was another before, since that was last asked.
    client: Cell<(Key, bool)>,
    load: Cell<Load>,
    /// Turns that were had.
    had: Cell<u64>,
    /// Whether turns had better be short.
    short: Cell<bool>,
    /// What each client has taken that is here, or of whom something is remembered.
    clients: RefCell<HashMap<u128, Rc<Together>>>,
    /// Of clients that have flooded, whether they are here or not.
    floods: RefCell<VecDeque<Rc<Together>>>,
    /// Nanoseconds of two windows above which a client takes too much.
    client_most: Cell<u64>,
    /// Nanoseconds that a hit pays for, however few bytes it has.
    worth: Cell<u64>,
    /// The shortest wait of somebody who was called, since that was last asked.
    least: Cell<Option<Duration>>,
}

/// The last client that had a turn otherwise than among those who cost much, and the last other one; and when.
#[derive(Debug)]
struct Others {
    last: Cell<Option<u128>>,
    at: Cell<Instant>,
    before: Cell<Option<(u128, Instant)>>,
}

impl Default for Others {
    fn default() -> Self {
        Self { last: Cell::default(), at: Cell::new(Instant::now()), before: Cell::default() }
    }
}

/// What a window has seen, and the one before.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    window: u64,
    nanos: [u64; 2],
    connections: [u64; 2],
    /// Turns of the present one, and nanoseconds that these took, of none more than so many.
    turns: u64,
    usual: u64,
    /// The same of those who go first alone.
    first: (u64, u64),
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
        if !connection.account.is_served() || connection.comes_last() {
            return false;
        }
        let window = window(connection);
        let taken = connection.account.taken(window);
        (taken <= ANYBODY || taken <= self.most()) && !self.is_too_much_together(connection, window)
    }

    /// Whether its client takes too much by all of its connections, while others want something.
    fn is_too_much_together(&self, connection: &Connection, window: u64) -> bool {
        let Some(together) = &connection.together else { return false };
        let taken = together.taken(window);
        taken > self.client_most.get() && taken < self.load.get().of(window)
    }

    /// What all connections of a client take together, for one more of them.
    pub(super) fn together(&self, prefix: u128, now_millis: u64) -> Rc<Together> {
        let mut clients = self.clients.borrow_mut();
        if let Some(known) = clients.get(&prefix) {
            return Rc::clone(known);
        }
        // Those who have left make room before the table would grow: it holds no more than twice as many as are here, and those of whom something is remembered, as long as these are few. What one takes
        // that comes again and again, and is away between, would else be forgotten each time.
        if clients.len() == clients.capacity() {
            let mut remembered = 0;
            clients.retain(|_, taken| {
                let stays =
                    Rc::strong_count(taken) == 1 && remembered < REMEMBERED_MAX && taken.is_remembered(now_millis);
                remembered += usize::from(stays);
                stays || Rc::strong_count(taken) > 1
            });
        }
        let new = Rc::new(Together::default());
        clients.insert(prefix, Rc::clone(&new));
        new
    }

    /// No client takes more than this of the worker's time from others.
    pub(super) fn set_client_percent(&self, percent: u8) {
        let most = if percent >= 100 { u64::MAX } else { WINDOWS * u64::from(percent) / 100 };
        self.client_most.set(most);
    }

    /// The worker has `worked` for so much of the time that has `elapsed`: with some to spare it has more and shorter turns.
    pub(super) fn set_worked(&self, worked: Duration, elapsed: Duration) {
        self.short.set(worked * 100 < elapsed * SHORT_BELOW);
    }

    /// Nanoseconds in two windows above which a connection takes too much.
    fn most(&self) -> u64 {
        let Load { nanos, connections, .. } = self.load.get();
        // Most who were at work in one are so in the other.
        SHARES * (nanos[0] + nanos[1]) / connections[0].max(connections[1]).max(1)
    }

    fn wait(&self, connection: &Connection, waker: &Waker) -> Ticket {
        connection.metrics.waits(why(connection));
        let ticket = self.waiting.borrow_mut().add(connection, (waker.clone(), connection.looked()));
        if let Some(caller) = self.caller.borrow_mut().take() {
            caller.wake();
        }
        ticket
    }

    /// Whether so many of a client wait already, or for so long (zero: however long), that one more would only take room. Of a client that costs much those may wait for as long as they like
    /// where there is `plenty` of that: who is refused comes again at once, and accepting it costs more than to have it wait.
    pub(super) fn is_crowd(
        &self,
        prefix: u128,
        (most, longest, plenty): (usize, Duration, bool),
        now_millis: u64,
    ) -> bool {
        let Some((count, since, costly)) = self.waiting.borrow_mut().of((prefix, true), now_millis) else {
            return false;
        };
        let longest = match (costly, plenty) {
            (false, _) => longest,
            (true, false) => longest * CROWD_COSTLY,
            (true, true) => Duration::ZERO,
        };
        // The clock is looked at for few.
        count > most.max(CROWD) || (count > CROWD && !longest.is_zero() && since.elapsed() > longest)
    }

    /// Calls whoever is next, of those who cost much or of all others.
    fn call(&self, costly: bool, (now, now_millis): (Instant, u64)) {
        let Some((client, waited)) = self.waiting.borrow_mut().call(costly, now, now_millis) else { return };
        if costly && !self.is_quiet(client.0, now) {
            // It is not that there is no time.
            return;
        }
        let (last, several) = self.client.get();
        self.client.set((client, several || last != client));
        self.least.set(Some(self.least.get().map_or(waited, |least| least.min(waited))));
    }

    /// Who is to be woken since its client has left is so one after the other: giving back what a connection has takes some microseconds, and there may be thousands.
    pub(super) fn let_go(&self, left: Vec<Waker>) {
        if left.is_empty() {
            return;
        }
        self.waiting.borrow_mut().add_left(left);
        if let Some(caller) = self.caller.borrow_mut().take() {
            caller.wake();
        }
    }

    /// To be called ten times a second: clients that cost much no more are not called as if they did.
    pub(super) fn forgive(&self, now_millis: u64) {
        if self.waiting.borrow_mut().forgive(now_millis)
            && let Some(caller) = self.caller.borrow_mut().take()
        {
            caller.wake();
        }
    }

    /// Waits until somebody waits of whom `is` tells that it is who is wanted.
    async fn somebody(&self, is: impl Fn(&Waiting) -> bool) {
        poll_fn(|cx| {
            if is(&self.waiting.borrow()) {
                return Poll::Ready(());
            }
            *self.caller.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// A connection is closed for flooding. What its client has to wait for that is not forgotten when it leaves.
    pub(super) fn flooded(&self, connection: &Connection) {
        connection.flooded();
        let Some(together) = &connection.together else { return };
        together.flooded(connection.now());
        let mut floods = self.floods.borrow_mut();
        floods.retain(|one| one.has_flooded(connection.now()) && !Rc::ptr_eq(one, together));
        if floods.len() >= FLOODS_MAX {
            floods.pop_front();
        }
        floods.push_back(Rc::clone(together));
    }

    /// A client has had a turn other than among those who cost much.
    fn served(&self, client: u128, now: Instant) {
        let Others { last, at, before } = &self.others;
        if last.get() != Some(client) {
            before.set(last.replace(Some(client)).map(|last| (last, at.get())));
        }
        at.set(now);
    }

    /// Whether no other client than this one has had such a turn of late.
    fn is_quiet(&self, client: u128, now: Instant) -> bool {
        let Others { last, at, before } = &self.others;
        let last = if last.get() == Some(client) { before.get() } else { last.get().map(|last| (last, at.get())) };
        last.is_none_or(|(_, last)| now.saturating_duration_since(last) > QUIET)
    }

    /// A turn of somebody who was called took `nanos`.
    fn called_took(&self, nanos: u64, costly: bool) {
        let nanos = i64::try_from(nanos).unwrap_or(i64::MAX);
        if costly {
            self.taken_costly.set(self.taken_costly.get().saturating_add(nanos));
            return;
        }
        let (taken, turns) = self.taken.get();
        self.taken.set((taken.saturating_add(nanos), turns + 1));
    }

    /// A turn took `nanos`.
    fn took(&self, connection: &Connection, nanos: u64) {
        let window = window(connection);
        let (first, paid) = connection.account.take(window, nanos, self.worth.get());
        connection.take(window, (nanos, paid));
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
        load.connections[0] += u64::from(first);
        if load.window != window {
            load.window = window;
            // On a slow machine more: by those who go first, where there are any, since a flood that costs much is none of them.
            let (turns, usual) = if load.first.0 > 0 { load.first } else { (load.turns, load.usual) };
            self.worth.set(HIT.max((2 * usual).checked_div(turns).unwrap_or_default()));
            (load.turns, load.usual, load.first) = (0, 0, (0, 0));
        }
        let usual = nanos.min(USUAL_MAX);
        load.turns += 1;
        load.usual += usual;
        if connection.waited.get().is_zero() {
            load.first = (load.first.0 + 1, load.first.1 + usual);
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

/// Why a connection does not go first.
fn why(connection: &Connection) -> Waits {
    match (connection.comes_last(), connection.account.is_served()) {
        (true, _) => Waits::Costly,
        (false, true) => Waits::Heavy,
        (false, false) => Waits::Newcomer,
    }
}

/// How many are called before the kernel is asked again who is ready: one, or as many as there is time for that is owed to them, where a
/// turn takes `mean`.
fn calls(owed: i64, mean: i64) -> i64 {
    (owed / mean.max(TURN_MIN)).clamp(1, CALLS_MAX)
}

/// Parts of a worker's time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shares {
    /// Percent of it that those have who are called, at least.
    pub(super) called: u8,
    /// Thousandths of it that those have who cost much, at most, while others want something; 1000: no bound.
    pub(super) costly: u16,
}

/// Calls those who wait, for as long as the worker runs; `now_millis` is its coarse clock.
pub(super) async fn call(turns: Rc<Turns>, now_millis: Rc<Cell<u64>>, shares: impl Fn() -> Shares) {
    let (mut last, mut owed, mut mean) = (Instant::now(), 0_i64, TURN);
    let (mut owed_costly, mut let_go) = (0_i64, last);
    loop {
        turns.somebody(|waiting| !waiting.is_empty() || waiting.costly_first().is_some() || waiting.left() > 0).await;
        // First those who go first and of whom the kernel has news.
        yield_now().await;
        let now = Instant::now();
        let since = i64::try_from((now - last).as_nanos()).unwrap_or(i64::MAX).min(1000 * REST_MAX);
        let elapsed = since.min(100 * OWED_MAX);
        let (taken, count) = turns.taken.take();
        if let Some(one) = taken.checked_div(count) {
            mean = (3 * mean + one) / 4;
        }
        let Shares { called, costly } = shares();
        let due = elapsed * i64::from(called) / 100;
        owed = (owed + due - taken).clamp(-OWED_MAX, due.max(OWED_MAX));
        let due = since * i64::from(costly) / 1000;
        owed_costly = (owed_costly + due - turns.taken_costly.take()).clamp(-TAKEN_COSTLY_MAX, OWED_COSTLY_MAX);
        last = now;
        let (others, costly_first) = {
            let waiting = turns.waiting.borrow();
            (!waiting.is_empty(), waiting.costly_first())
        };
        let clock = (now, now_millis.get());
        if now.saturating_duration_since(let_go) >= LEFT_EVERY && turns.waiting.borrow().left() > 0 {
            let_go = now;
            turns.waiting.borrow_mut().wake_left(LEFT_AT_ONCE);
        }
        let has_left = turns.waiting.borrow().left() > 0;
        if others {
            for _ in 0..calls(owed, mean) {
                turns.call(false, clock);
            }
        }
        let Some((client, _)) = costly_first else {
            if has_left && !others {
                let somebody = pin!(turns.somebody(|waiting| !waiting.is_empty() || waiting.costly_first().is_some()));
                select(pin!(sleep(LEFT_EVERY)), somebody).await;
            }
            continue;
        };
        if costly >= 1000 || owed_costly > 0 || turns.is_quiet(client, now) {
            turns.call(true, clock);
        } else if !others {
            let rest = (-owed_costly * 1000 / i64::from(costly.max(1))).clamp(0, REST_MAX);
            let rest = Duration::from_nanos(rest.unsigned_abs());
            let over = pin!(sleep(if has_left { rest.min(LEFT_EVERY) } else { rest }));
            select(over, pin!(turns.somebody(|waiting| !waiting.is_empty()))).await;
        }
    }
}

/// Polls a task of a connection when it is its turn; `connection.waited` says how long it has waited for that. Nothing where its client leaves meanwhile.
pub(super) async fn in_turn<F: Future>(turns: Rc<Turns>, connection: Rc<Connection>, task: F) -> Option<F::Output> {
    let mut task = pin!(task);
    let mut ticket: Option<(Ticket, u64)> = None;
    poll_fn(|cx: &mut Context<'_>| {
        let begun = Instant::now();
        connection.look(begun);
        if !turns.goes_first(&connection) {
            match &ticket {
                None => {
                    ticket = Some((turns.wait(&connection, cx.waker()), connection.begin_wait(cx.waker())));
                    if connection.waiters.have_left() {
                        // It was a part of what has ended.
                        turns.let_go(vec![cx.waker().clone()]);
                    }
                    connection.hold(cx);
                    return Poll::Pending;
                }
                Some((ticket, waiter)) if connection.waiters.have_left() => {
                    connection.waiters.end(*waiter);
                    if ticket.called().is_none() {
                        connection.metrics.gave_up(why(&connection));
                    }
                    return Poll::Ready(None);
                }
                Some((ticket, _)) if ticket.called().is_none() => {
                    connection.hold(cx);
                    return Poll::Pending;
                }
                Some(_) => {}
            }
        }
        let called = ticket.take().and_then(|(ticket, waiter)| {
            connection.waiters.end(waiter);
            ticket.called()
        });
        connection.has_waited(called.unwrap_or_default());
        connection.begin_turn(turns.had.replace(turns.had.get() + 1), turns.short.get());
        let polled = task.as_mut().poll(cx);
        // The end of a response has looked at the clock already.
        let ended = connection.look_at_end();
        let took = ended.saturating_duration_since(begun);
        let nanos = (took.as_secs() * NANOS + u64::from(took.subsec_nanos())).min(TURN_MAX);
        turns.took(&connection, nanos);
        match called {
            Some((_, costly)) => turns.called_took(nanos, costly),
            None => turns.first.set(true),
        }
        if called.is_none_or(|(_, costly)| !costly) {
            turns.served(connection.prefix, ended);
        }
        polled.map(Some)
    })
    .await
}

#[cfg(test)]
mod tests;
