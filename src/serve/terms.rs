//! What viewers are served by, and how it changes while they are.
//!
//! [`Terms`] (configuration, who is served, who may have what) -> each worker makes a handler of them -> connections take it up with
//! their next request
//!
//! A request costs one comparison for it: whether its connection's handler is still the worker's.

use std::{
    cell::Cell,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

use super::{
    Clients, Config, Signing, handler::Handler, hit::Recall, http1::Desk, overload::Shedding, response::Templates,
    signing::Gate,
};
use crate::{
    catalog::Catalog,
    storage::Residency,
    sys::Clock,
    telemetry::{access_log::Lines, metrics::WorkerMetrics},
};

/// What may change while viewers are served.
#[derive(Clone, Debug)]
pub struct Terms {
    /// What the operator has decided.
    pub config: Arc<Config>,
    /// Who is served, and how much; `None`: everybody, as much as they like.
    pub clients: Option<Arc<Clients>>,
    /// Who may have what; `None`: everybody everything.
    pub signing: Option<Arc<Signing>>,
    /// `storage.window`, in bytes.
    pub window: u64,
    /// `fill.read_ahead`, in bytes.
    pub read_ahead: u64,
}

/// Terms, and how often they have changed before.
#[derive(Clone, Debug)]
pub(super) struct Numbered {
    pub(super) number: u64,
    pub(super) terms: Terms,
}

/// Longest wait for all workers to take up new terms: one that stands still is the watchdog's business.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often they are looked at meanwhile.
const LOOK: Duration = Duration::from_millis(2);

/// Tells workers of new terms.
#[derive(Debug)]
pub struct Offering {
    terms: watch::Sender<Numbered>,
    /// The number that each worker has taken up.
    taken: Vec<Arc<AtomicU64>>,
}

impl Offering {
    pub(super) fn new(terms: Terms) -> Self {
        Self { terms: watch::Sender::new(Numbered { number: 0, terms }), taken: Vec::new() }
    }

    /// For one more worker.
    pub(super) fn worker(&mut self) -> Offered {
        let taken = Arc::<AtomicU64>::default();
        self.taken.push(Arc::clone(&taken));
        Offered { terms: self.terms.subscribe(), taken }
    }

    /// The present terms.
    pub fn now(&self) -> Terms {
        self.terms.borrow().terms.clone()
    }

    /// Has every worker serve by `terms` from the next request on; returns when they do.
    pub async fn offer(&self, terms: Terms) {
        let mut number = 0;
        self.terms.send_modify(|now| {
            number = now.number + 1;
            *now = Numbered { number, terms };
        });
        let all = async {
            while self.taken.iter().any(|taken| taken.load(Ordering::Acquire) < number) {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(PATIENCE, all).await.is_err() {
            tracing::error!("a worker has not taken up the new configuration yet");
        }
    }
}

/// One worker's end of it.
#[derive(Debug)]
pub(super) struct Offered {
    terms: watch::Receiver<Numbered>,
    taken: Arc<AtomicU64>,
}

impl Offered {
    /// The present terms.
    pub(super) fn now(&mut self) -> Numbered {
        self.terms.borrow_and_update().clone()
    }

    /// Waits for others; never comes back where nobody can offer any more.
    pub(super) async fn next(&mut self) -> Numbered {
        if self.terms.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.now()
    }

    /// They are in use.
    pub(super) fn take_up(&self, number: u64) {
        self.taken.store(number, Ordering::Release);
    }
}

/// Makes one worker's handlers.
#[derive(Debug)]
pub(super) struct Maker {
    pub(super) catalog: Arc<Catalog>,
    pub(super) residency: Arc<Residency>,
    pub(super) clock: Clock,
    pub(super) lines: Option<Arc<Lines>>,
    pub(super) identity: Arc<str>,
    pub(super) metrics: Arc<WorkerMetrics>,
    /// Goes on from handler to handler.
    pub(super) request_ids: Rc<Cell<u64>>,
}

impl Maker {
    /// One by these terms. What it recalls it has to learn anew: it was made by others.
    pub(super) fn handler(&self, Numbered { number, terms }: &Numbered) -> Rc<Handler> {
        let config = &terms.config;
        Rc::new(Handler {
            number: *number,
            templates: Templates::new(config),
            recall: Recall::new(config.recall_max),
            shedding: Shedding::new(config),
            gate: terms.signing.as_ref().map(|signing| Gate::new(signing, &self.metrics)),
            config: Arc::clone(config),
            clients: terms.clients.clone(),
            catalog: Arc::clone(&self.catalog),
            residency: Arc::clone(&self.residency),
            clock: self.clock.clone(),
            lines: self.lines.clone(),
            window: terms.window,
            read_ahead: terms.read_ahead.max(terms.window),
            identity: Arc::clone(&self.identity),
            request_ids: Rc::clone(&self.request_ids),
        })
    }
}

/// Takes up whatever is offered, for as long as the worker runs.
pub(super) async fn follow(mut offered: Offered, maker: Maker, desk: Rc<Desk>) {
    loop {
        let terms = offered.next().await;
        let handler = maker.handler(&terms);
        // Who is overloaded is so by any terms.
        handler.shedding.set(desk.handler().shedding.parts());
        desk.set_handler(handler);
        offered.take_up(terms.number);
    }
}
