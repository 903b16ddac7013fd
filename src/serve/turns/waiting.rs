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

/// Clients that cost much that are looked at at once, ten times a second, for whether they still do: some ten microseconds.
const LOOKED_AT: usize = 128;

/// Who waits, by client.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    lanes: HashMap<Lane, Queue>,
    /// Clients who wait, in the order in which they are called.
    ring: VecDeque<Lane>,
    /// The same of those that cost much. One may have ceased to a moment ago, or have begun to in the other.
    costly: VecDeque<Lane>,
    /// Which of these is next to be looked at for that.
    looked: usize,
    /// To be woken since their client has left.
    left: VecDeque<Waker>,
}

/// Connections of a client that wait.
#[derive(Debug)]
struct Queue {
    places: VecDeque<Rc<Place>>,
    /// How many of them wait still.
    count: Rc<Cell<usize>>,
    /// What its client costs; nothing that these ones pay for.
    together: Option<Rc<Together>>,
}

impl Queue {
    fn costs_much(&self, now_millis: u64) -> bool {
        self.together.as_ref().is_some_and(|together| together.costs_much(now_millis))
    }
}

/// Where one stands who waits.
#[derive(Debug)]
struct Place {
    waker: Waker,
    since: Instant,
    /// How long it has waited, once it is called, and whether among those who cost much.
    called: Cell<Option<(Duration, bool)>>,
}

/// What one has who waits, and whose place nobody takes; dropped by who waits no more.
#[derive(Debug)]
pub(super) struct Ticket {
    place: Rc<Place>,
    /// How many wait with it.
    count: Rc<Cell<usize>>,
}

impl Ticket {
    /// How long it has waited, once it is called, and whether among those who cost much.
    pub(super) fn called(&self) -> Option<(Duration, bool)> {
        self.place.called.get()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.called().is_none() {
            self.count.set(self.count.get() - 1);
        }
    }
}

/// Whether somebody waits there.
fn is_taken(place: &Rc<Place>) -> bool {
    Rc::strong_count(place) > 1
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

    /// How many are to be woken since their client has left.
    pub(super) fn left(&self) -> usize {
        self.left.len()
    }

    /// These are to be.
    pub(super) fn add_left(&mut self, left: Vec<Waker>) {
        self.left.extend(left);
    }

    /// Wakes so many of them.
    pub(super) fn wake_left(&mut self, count: usize) {
        let count = count.min(self.left.len());
        self.left.drain(..count).for_each(Waker::wake);
    }

    /// One more waits, to be woken by `waker`, since when that says.
    pub(super) fn add(&mut self, connection: &Connection, (waker, since): (Waker, Instant)) -> Ticket {
        let Self { lanes, ring, costly, .. } = self;
        let lane = lane(connection);
        let queue = lanes.entry(lane).or_insert_with(|| {
            let ring = if connection.comes_last() { costly } else { ring };
            ring.push_back(lane);
            let together = connection.together.clone().filter(|_| !lane.1);
            Queue { places: VecDeque::new(), count: Rc::default(), together }
        });
        // Those who have left make room before there would be more.
        if queue.places.len() == queue.places.capacity() {
            queue.places.retain(is_taken);
            // And do so seldom.
            queue.places.reserve(queue.places.len() + 1);
        }
        let place = Rc::new(Place { waker, since, called: Cell::new(None) });
        queue.places.push_back(Rc::clone(&place));
        queue.count.set(queue.count.get() + 1);
        Ticket { place, count: Rc::clone(&queue.count) }
    }

    /// How many of a client wait, since when the first of them, and whether it costs much.
    pub(super) fn of(&mut self, client: Key, now_millis: u64) -> Option<(usize, Instant, bool)> {
        let mut of = |known: bool| {
            let queue = self.lanes.get_mut(&(client, known))?;
            while queue.places.front().is_some_and(|first| !is_taken(first)) {
                queue.places.pop_front();
            }
            Some((queue.count.get(), queue.places.front()?.since, queue.costs_much(now_millis)))
        };
        let lanes = [of(true), of(false)];
        lanes.into_iter().flatten().reduce(|one, other| (one.0 + other.0, one.1.min(other.1), one.2 || other.2))
    }

    /// Looks at some of the clients that cost much, the next ones each time: who has ceased to waits among all others from now on, and not until it would have been
    /// called, which of a thousand that flood may take as many times as long. Tells whether there was one.
    pub(super) fn forgive(&mut self, now_millis: u64) -> bool {
        let mut found = false;
        for _ in 0..LOOKED_AT.min(self.costly.len()) {
            if self.looked >= self.costly.len() {
                self.looked = 0;
            }
            let Some(lane) = self.costly.get(self.looked).copied() else { break };
            if self.lanes.get(&lane).is_some_and(|queue| queue.costs_much(now_millis)) {
                self.looked += 1;
                continue;
            }
            // The last comes in its place, since moving all that follow would take as long as there are many.
            self.costly.swap_remove_back(self.looked);
            self.ring.push_back(lane);
            found = true;
        }
        found
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
            let next = std::iter::from_fn(|| queue.places.pop_front()).find(is_taken);
            if next.is_some() {
                queue.count.set(queue.count.get() - 1);
            }
            if queue.places.is_empty() {
                self.lanes.remove(&lane);
            } else if costs_much {
                self.costly.push_back(lane);
            } else {
                self.ring.push_back(lane);
            }
            if let Some(place) = next {
                let waited = now.saturating_duration_since(place.since);
                place.called.set(Some((waited, costly)));
                place.waker.wake_by_ref();
                return Some((lane.0, waited));
            }
        }
    }
}
