//! The tasks of one connection that wait for their turns: of HTTP/1.1 the only one, of HTTP/2 that of the connection and those of its streams.

use std::{
    cell::{Cell, RefCell},
    task::Waker,
};

/// Those of a connection.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    /// Who came first before the others.
    all: RefCell<Vec<Waiter>>,
    /// Number of the next of them.
    next: Cell<u64>,
    /// Whether they wait for nothing, since the client has left or was cut.
    left: Cell<bool>,
}

#[derive(Debug)]
struct Waiter {
    number: u64,
    /// Since when, in milliseconds.
    since: u64,
    /// Whom to wake where the client leaves meanwhile.
    waker: Waker,
}

impl Waiters {
    /// One waits from now on. Tells what [ends](Self::end) that.
    pub(super) fn begin(&self, waker: &Waker, now_millis: u64) -> u64 {
        let number = self.next.get();
        self.next.set(number + 1);
        let mut all = self.all.borrow_mut();
        // Nearly always there is one.
        all.reserve_exact(1);
        all.push(Waiter { number, since: now_millis, waker: waker.clone() });
        number
    }

    /// That one waits no more.
    pub(super) fn end(&self, number: u64) {
        let mut all = self.all.borrow_mut();
        all.retain(|one| one.number != number);
        if all.is_empty() {
            *all = Vec::new();
        }
    }

    /// Since when the first of them waits, in milliseconds; none: nobody does.
    pub(super) fn since(&self) -> Option<u64> {
        self.all.borrow().first().map(|first| first.since)
    }

    /// They wait for nothing from now on. Tells whom to wake, the first time that it is asked.
    pub(super) fn leave(&self) -> Vec<Waker> {
        if self.left.replace(true) {
            return Vec::new();
        }
        self.all.borrow().iter().map(|waiter| waiter.waker.clone()).collect()
    }

    /// Whether they wait for nothing.
    pub(super) fn have_left(&self) -> bool {
        self.left.get()
    }
}
