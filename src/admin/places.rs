//! Places for operators' connections: few, and none that a stranger can keep by doing nothing.
//!
//! A connection that comes when all places are taken gets that of the one on which nothing has been asked for the longest; that one is
//! closed. Only where each has a request under way does it wait.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The places of one listener.
#[derive(Debug)]
pub(super) struct Places {
    max: usize,
    /// The connections that have one; the one whose last request is the longest ago first.
    held: Mutex<VecDeque<Arc<Holder>>>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Holder {
    /// Requests under way.
    requests: AtomicUsize,
    gives_way: Notify,
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    holder: Arc<Holder>,
}

/// A request under way: its connection keeps its place.
#[derive(Debug)]
pub(super) struct Busy {
    places: Arc<Places>,
    holder: Arc<Holder>,
}

impl Places {
    /// So many, at least one.
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max: max.max(1), held: Mutex::default(), changed: Notify::new() })
    }

    /// A place for a connection that has come.
    pub(super) async fn take(self: &Arc<Self>) -> Place {
        loop {
            // Asked to be told before it is looked: what changes in between is not missed.
            let changed = self.changed.notified();
            if let Some(place) = self.take_now() {
                return place;
            }
            changed.await;
        }
    }

    fn take_now(self: &Arc<Self>) -> Option<Place> {
        let mut held = self.held.lock();
        if held.len() >= self.max {
            let idle = held.iter().position(|holder| holder.requests.load(Ordering::Acquire) == 0)?;
            held.remove(idle)?.gives_way.notify_one();
        }
        let holder = Arc::<Holder>::default();
        held.push_back(Arc::clone(&holder));
        Some(Place { places: Arc::clone(self), holder })
    }
}

impl Place {
    /// Ends when the place is another's.
    pub(super) async fn given_away(&self) {
        self.holder.gives_way.notified().await;
    }

    /// A request begins.
    pub(super) fn busy(&self) -> Busy {
        let (places, holder) = (Arc::clone(&self.places), Arc::clone(&self.holder));
        // Under the lock: who is about to be served does not give way in between.
        let held = places.held.lock();
        holder.requests.fetch_add(1, Ordering::AcqRel);
        drop(held);
        Busy { places, holder }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.held.lock().retain(|holder| !Arc::ptr_eq(holder, &self.holder));
        self.places.changed.notify_one();
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut held = self.places.held.lock();
        self.holder.requests.fetch_sub(1, Ordering::AcqRel);
        // The last to have been served is the last to give way.
        if let Some(at) = held.iter().position(|holder| Arc::ptr_eq(holder, &self.holder)) {
            let holder = held.remove(at);
            held.extend(holder);
        }
        drop(held);
        self.places.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn the_one_that_was_idle_for_the_longest_gives_way() {
        let places = Places::new(3);
        let take = || places.take().now_or_never();
        let held: Vec<Place> = (0..3).map(|_| take().expect("there is room")).collect();
        drop(held[0].busy());
        let fourth = take().expect("one gives way");
        let gone: Vec<bool> = held.iter().map(|place| place.given_away().now_or_never().is_some()).collect();
        assert_eq!(gone, [false, true, false], "the first was served since");
        drop(fourth);
        assert!(take().is_some());
        assert!(held[2].given_away().now_or_never().is_none());
    }

    #[test]
    fn nobody_gives_way_in_the_middle_of_a_request() {
        let places = Places::new(2);
        let held: Vec<Place> = (0..2).map(|_| places.take().now_or_never().expect("room")).collect();
        let busy: Vec<Busy> = held.iter().map(Place::busy).collect();
        let mut third = Box::pin(places.take());
        assert!((&mut third).now_or_never().is_none(), "all are at work");
        drop(busy);
        assert!(third.now_or_never().is_some());
        assert!(held[0].given_away().now_or_never().is_some());
        assert!(held[1].given_away().now_or_never().is_none());
    }
}
