//! Who waits for a turn: client by client, those of its connections that have got much apart from the others, and the others of those that cost much apart from all.

use std::{
    cell::Cell,
    collections::{HashMap, VecDeque},
    rc::Rc,
    task::Waker,
    time::{Duration, Instant},
};

use crate::serve::{account::Together, connection::Connection};

/// A client, by what tells it from others; those of its connections that nothing bounds (`serve.clients.unlimited`) are another.
pub(super) type Key = (u128, bool);

/// Those of a client that have got much, or the others.
type Lane = (Key, bool);

fn lane(connection: &Connection) -> Lane {
    ((connection.prefix, connection.together.is_some()), connection.is_known())
}

/// Who waits, by client.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    lanes: HashMap<Lane, Queue>,
    /// Clients who wait, in the order in which they are called.
    ring: VecDeque<Lane>,
    /// The same of those that cost much. One may have ceased to, or have begun to in the other.
    costly: VecDeque<Lane>,
}

/// Connections of a client that wait.
#[derive(Debug)]
struct Queue {
    tickets: VecDeque<Rc<Ticket>>,
    /// What its client costs; nothing that these ones pay for.
    together: Option<Rc<Together>>,
}

impl Queue {
    fn costs_much(&self, now_millis: u64) -> bool {
        self.together.as_ref().is_some_and(|together| together.costs_much(now_millis))
    }
}

/// One who waits.
#[derive(Debug)]
pub(super) struct Ticket {
    waker: Waker,
    since: Instant,
    /// How long it has waited, once it is called, and whether among those who cost much.
    called: Cell<Option<(Duration, bool)>>,
}

impl Ticket {
    pub(super) fn new(waker: Waker, since: Instant) -> Self {
        Self { waker, since, called: Cell::new(None) }
    }

    /// How long it has waited, once it is called, and whether among those who cost much.
    pub(super) fn called(&self) -> Option<(Duration, bool)> {
        self.called.get()
    }
}

impl Waiting {
    /// Whether nobody waits who does not cost much.
    pub(super) fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// The first of the clients that wait and cost much.
    pub(super) fn costly_first(&self) -> Option<Key> {
        self.costly.front().map(|(client, _)| *client)
    }

    pub(super) fn add(&mut self, connection: &Connection, ticket: &Rc<Ticket>) {
        let Self { lanes, ring, costly } = self;
        let lane = lane(connection);
        let queue = lanes.entry(lane).or_insert_with(|| {
            let ring = if connection.comes_last() { costly } else { ring };
            ring.push_back(lane);
            Queue { tickets: VecDeque::new(), together: connection.together.clone().filter(|_| !lane.1) }
        });
        queue.tickets.push_back(Rc::clone(ticket));
    }

    /// How many of a client wait, since when the first of them, and whether it costs much.
    pub(super) fn of(&self, client: Key, now_millis: u64) -> Option<(usize, Instant, bool)> {
        let lanes = [true, false].map(|known| self.lanes.get(&(client, known)));
        let of =
            |queue: &Queue| Some((queue.tickets.len(), queue.tickets.front()?.since, queue.costs_much(now_millis)));
        let lanes = lanes.into_iter().flatten().filter_map(of);
        lanes.reduce(|one, other| (one.0 + other.0, one.1.min(other.1), one.2 || other.2))
    }

    /// Calls whoever is next, of those who cost much or of all others; tells the client, and how long it has waited.
    pub(super) fn call(&mut self, costly: bool, now: Instant, now_millis: u64) -> Option<(Key, Duration)> {
        loop {
            let ring = if costly { &mut self.costly } else { &mut self.ring };
            let lane = ring.pop_front()?;
            let Some(queue) = self.lanes.get_mut(&lane) else { continue };
            let costs_much = queue.costs_much(now_millis);
            if costs_much && !costly {
                self.costly.push_back(lane);
                continue;
            }
            // Tasks that have ended meanwhile have left their tickets behind.
            let next = std::iter::from_fn(|| queue.tickets.pop_front()).find(|ticket| Rc::strong_count(ticket) > 1);
            if queue.tickets.is_empty() {
                self.lanes.remove(&lane);
            } else if costs_much {
                self.costly.push_back(lane);
            } else {
                self.ring.push_back(lane);
            }
            if let Some(ticket) = next {
                let waited = now.saturating_duration_since(ticket.since);
                ticket.called.set(Some((waited, costly)));
                ticket.waker.wake_by_ref();
                return Some((lane.0, waited));
            }
        }
    }
}
