//! The demand board: where the delivery plane says what viewers wait for, and the fill plane takes it from.
//!
//! The planes never call each other. Whoever asks first for an asset, or a part of one, puts a demand on the board; whoever
//! asks for the same while it is on its way waits for the same answer (request coalescing). A demand that is dropped
//! unanswered answers itself, so that nobody waits for a fetch that died.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};

use super::{Asker, Meta, Refusal, entry::Entry, negative::Negative};
use crate::{
    asset::{AssetId, AssetKey, ByteRange},
    telemetry::metrics::Counter,
};

/// Which part of an unknown asset is wanted; its length is not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Only what it is: length, type, validators.
    Metadata,
    /// From byte `start` on, to `end` (exclusive) where the viewer named one.
    Range {
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: Option<u64>,
    },
    /// The last so many bytes.
    Suffix(u64),
}

/// What became of the question for an unknown asset.
#[derive(Clone, Debug)]
pub enum Discovered {
    /// It is in the catalog now.
    Entry(Arc<Entry>),
    /// It exists but may not be stored: each request asks for its own pass.
    PassThrough,
}

/// A response on its way from a source to one viewer, not stored.
#[derive(Debug)]
pub struct PassThrough {
    /// What the source said. `meta.length` is the length of the whole asset where it is known, else that of nothing.
    pub head: PassHead,
    /// The body as it arrives, in a bounded queue. It ends with an error where the source broke off.
    pub body: mpsc::Receiver<Result<Bytes, Refusal>>,
}

/// Head of a response that passes through.
#[derive(Clone, Debug)]
pub struct PassHead {
    /// Type, validators and so on.
    pub meta: Meta,
    /// Bytes of the whole asset; `None` where the source does not say.
    pub length: Option<u64>,
    /// The part that follows; `None` for the whole.
    pub part: Option<ByteRange>,
    /// Nothing follows: no byte of what was wanted exists in an asset of `length` bytes.
    pub unsatisfiable: bool,
}

/// Something fill should do.
#[derive(Debug)]
pub enum Demand {
    /// Find out about an asset, and begin with the part that is wanted.
    Discover(Discovery),
    /// Fetch these blocks. They are marked as wanted and must be written or abandoned.
    Blocks {
        /// The asset.
        entry: Arc<Entry>,
        /// A run of missing blocks.
        blocks: Range<u32>,
        /// Who was the first to want them.
        asker: Asker,
    },
    /// Ask whether a stale version is still good.
    Revalidate(Revalidation),
    /// Stream a response to one viewer.
    PassThrough(PassThroughDemand),
}

/// Fill's end of the board.
#[derive(Debug)]
pub struct Demands(mpsc::Receiver<Demand>);

impl Demands {
    /// The next demand; `None` when the catalog is closed.
    pub async fn next(&mut self) -> Option<Demand> {
        self.0.recv().await
    }
}

/// One question under way, and who waits for its answer.
#[derive(Debug)]
struct Pending<A> {
    answer: OnceLock<Result<A, Refusal>>,
    answered: Notify,
}

impl<A: Clone> Pending<A> {
    fn new() -> Arc<Self> {
        Arc::new(Self { answer: OnceLock::new(), answered: Notify::new() })
    }

    async fn wait(&self) -> Result<A, Refusal> {
        loop {
            // Made before the look, so that an answer in between is not missed.
            let answered = self.answered.notified();
            if let Some(answer) = self.answer.get() {
                return answer.clone();
            }
            answered.await;
        }
    }

    fn give(&self, answer: Result<A, Refusal>) {
        if self.answer.set(answer).is_ok() {
            self.answered.notify_waiters();
        }
    }
}

/// The questions under way; a purge lets go of those that were asked before it.
#[derive(Debug)]
struct Questions<A>(Mutex<HashMap<AssetId, Question<A>>>);

type Question<A> = (AssetKey, Arc<Pending<A>>);

impl<A> Default for Questions<A> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<A> Questions<A> {
    /// Ends a question; tells `then` only if it was not let go of, before another can be asked.
    fn end(&self, id: &AssetId, pending: &Arc<Pending<A>>, then: impl FnOnce()) {
        let mut questions = self.0.lock();
        if questions.get(id).is_some_and(|(_, known)| Arc::ptr_eq(known, pending)) {
            questions.remove(id);
            then();
        }
    }

    /// Whoever asks one of these from now on asks anew.
    fn let_go(&self, purged: impl Fn(&AssetKey) -> bool) {
        self.0.lock().retain(|_, (key, _)| !purged(key));
    }
}

/// The board itself; the catalog owns it.
#[derive(Debug)]
pub(super) struct Board {
    demands: mpsc::Sender<Demand>,
    discoveries: Questions<Discovered>,
    revalidations: Questions<Arc<Entry>>,
    negative: Arc<Negative>,
}

impl Board {
    pub(super) fn new(queue_max: usize, negative: Arc<Negative>) -> (Arc<Self>, Demands) {
        let (demands, taken) = mpsc::channel(queue_max.max(1));
        let board = Self { demands, discoveries: Questions::default(), revalidations: Questions::default(), negative };
        (Arc::new(board), Demands(taken))
    }

    /// Demands that wait for fill.
    pub(super) fn queued(&self) -> usize {
        self.demands.max_capacity() - self.demands.capacity()
    }

    fn post(&self, demand: Demand) -> Result<(), Refusal> {
        // The demand that comes back in the error answers itself when it is dropped.
        self.demands.try_send(demand).map_err(|err| match err {
            mpsc::error::TrySendError::Full(_) => Refusal::Busy,
            mpsc::error::TrySendError::Closed(_) => Refusal::Stopping,
        })
    }

    /// Asks for blocks that the caller has marked as wanted.
    pub(super) fn fetch(&self, entry: &Arc<Entry>, blocks: Range<u32>, asker: Asker) -> Result<(), Refusal> {
        self.post(Demand::Blocks { entry: Arc::clone(entry), blocks, asker })
    }

    /// Asks about an unknown asset. `known` is looked up once more under the lock: an answer that came in between counts.
    pub(super) async fn discover(
        self: &Arc<Self>,
        (key, want, asker): (&AssetKey, Want, Asker),
        known: impl FnOnce() -> Option<Result<Discovered, Refusal>>,
        collapsed: &Counter,
    ) -> Result<Discovered, Refusal> {
        let id = key.id();
        let (first, pending) = {
            let mut discoveries = self.discoveries.0.lock();
            if let Some((_, pending)) = discoveries.get(&id) {
                collapsed.inc();
                (false, Arc::clone(pending))
            } else if let Some(answer) = known() {
                return answer;
            } else {
                let pending = Pending::new();
                discoveries.insert(id, (key.clone(), Arc::clone(&pending)));
                (true, pending)
            }
        };
        if first {
            let board = Arc::clone(self);
            let (key, pending) = (key.clone(), Arc::clone(&pending));
            self.post(Demand::Discover(Discovery { key, want, asker, pending, board, answered: false }))?;
        }
        pending.wait().await
    }

    /// Asks whether a stale version is still good.
    pub(super) async fn revalidate(self: &Arc<Self>, entry: &Arc<Entry>, asker: Asker) -> Result<Arc<Entry>, Refusal> {
        let (first, pending) = {
            let mut revalidations = self.revalidations.0.lock();
            match revalidations.get(&entry.id()) {
                Some((_, pending)) => (false, Arc::clone(pending)),
                None => {
                    let pending = Pending::new();
                    revalidations.insert(entry.id(), (entry.key().clone(), Arc::clone(&pending)));
                    (true, pending)
                }
            }
        };
        if first {
            let board = Arc::clone(self);
            let (entry, pending) = (Arc::clone(entry), Arc::clone(&pending));
            self.post(Demand::Revalidate(Revalidation { entry, asker, pending, board, answered: false }))?;
        }
        pending.wait().await
    }

    /// Nobody joins a question about these that was asked before now, and what comes of it is not remembered.
    pub(super) fn let_go(&self, purged: impl Fn(&AssetKey) -> bool) {
        self.discoveries.let_go(&purged);
        self.revalidations.let_go(&purged);
    }

    /// Asks for a response that is not stored.
    pub(super) async fn pass_through(&self, key: &AssetKey, want: Want, asker: Asker) -> Result<PassThrough, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.post(Demand::PassThrough(PassThroughDemand { key: key.clone(), want, asker, reply }))?;
        answer.await.unwrap_or(Err(Refusal::SourceFailed))
    }
}

/// A question for an unknown asset.
#[derive(Debug)]
pub struct Discovery {
    key: AssetKey,
    want: Want,
    asker: Asker,
    pending: Arc<Pending<Discovered>>,
    board: Arc<Board>,
    answered: bool,
}

impl Discovery {
    /// The asset.
    pub fn key(&self) -> &AssetKey {
        &self.key
    }

    /// Who asked first.
    pub fn asker(&self) -> &Asker {
        &self.asker
    }

    /// The part that the first who asked wants.
    pub fn want(&self) -> Want {
        self.want
    }

    /// It is admitted.
    pub fn admitted(self, entry: Arc<Entry>) {
        self.answer(Ok(Discovered::Entry(entry)));
    }

    /// It may not be stored.
    pub fn pass_through(self) {
        self.answer(Ok(Discovered::PassThrough));
    }

    /// It is not to be had. The catalog remembers for a while what says something of the asset.
    pub fn refused(self, why: Refusal) {
        self.answer(Err(why));
    }

    fn answer(mut self, answer: Result<Discovered, Refusal>) {
        self.answered = true;
        self.give(answer);
    }

    fn give(&self, answer: Result<Discovered, Refusal>) {
        let id = self.key.id();
        self.board.discoveries.end(&id, &self.pending, || match &answer {
            Err(why) => self.board.negative.remember(id, *why),
            Ok(_) => self.board.negative.forget(&id),
        });
        self.pending.give(answer);
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        if !self.answered {
            self.give(Err(Refusal::Busy));
        }
    }
}

/// A question whether a stale version is still good.
#[derive(Debug)]
pub struct Revalidation {
    entry: Arc<Entry>,
    asker: Asker,
    pending: Arc<Pending<Arc<Entry>>>,
    board: Arc<Board>,
    answered: bool,
}

impl Revalidation {
    /// Who asked first.
    pub fn asker(&self) -> &Asker {
        &self.asker
    }

    /// The stale version.
    pub fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    /// The version that is good now: the same, refreshed, or its successor.
    pub fn valid(mut self, entry: Arc<Entry>) {
        self.answered = true;
        self.give(Ok(entry));
    }

    /// No answer, or the asset is no more.
    pub fn refused(mut self, why: Refusal) {
        self.answered = true;
        self.give(Err(why));
    }

    fn give(&self, answer: Result<Arc<Entry>, Refusal>) {
        let id = self.entry.id();
        self.board.revalidations.end(&id, &self.pending, || {
            if let Err(why) = &answer {
                self.board.negative.remember(id, *why);
            }
        });
        self.pending.give(answer);
    }
}

impl Drop for Revalidation {
    fn drop(&mut self) {
        if !self.answered {
            self.give(Err(Refusal::Busy));
        }
    }
}

/// A viewer's wish for a response that is not stored.
#[derive(Debug)]
pub struct PassThroughDemand {
    key: AssetKey,
    want: Want,
    asker: Asker,
    reply: oneshot::Sender<Result<PassThrough, Refusal>>,
}

impl PassThroughDemand {
    /// The asset.
    pub fn key(&self) -> &AssetKey {
        &self.key
    }

    /// Who asks.
    pub fn asker(&self) -> &Asker {
        &self.asker
    }

    /// The part that is wanted.
    pub fn want(&self) -> Want {
        self.want
    }

    /// Whether the viewer has left.
    pub fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    /// Gives the response, or why there is none. A viewer who has left in the meantime drops it, and with it the body.
    pub fn answer(self, answer: Result<PassThrough, Refusal>) {
        drop(self.reply.send(answer));
    }
}
