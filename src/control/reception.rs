//! Takes manifests in: signatures -> parse -> judge -> disk -> in force. One at a time, whoever brings it.

use std::{fs::File, io, sync::Arc};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::{
    Accepted, Config, Highest, InForce, KeysError, Reason, Refused, Signatures, judge,
    manifest::{Manifest, SourceRules, parse},
    state::{Arrived, Incoming, State, Waiting},
    trust::Trust,
};
use crate::{
    asset::{Sha256, UnixTime},
    sys::Clock,
    telemetry::metrics::Metrics,
};

/// Why nothing can be received.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A trusted key is no good.
    #[error("control.keys: {0}")]
    Keys(#[from] KeysError),
}

/// What the control plane tells, as it comes in.
#[derive(Debug)]
pub struct Control {
    pub(super) config: Config,
    trust: Trust,
    rules: ArcSwap<SourceRules>,
    in_force: InForce,
    pub(super) clock: Clock,
    metrics: Arc<Metrics>,
    started: UnixTime,
    /// Why nothing is received though keys are trusted.
    failure: Option<String>,
    kept: Mutex<Kept>,
    news: Mutex<News>,
}

/// What is on disk.
#[derive(Debug)]
enum Kept {
    /// Nothing is received.
    Off(String),
    On(Store),
}

#[derive(Debug)]
struct Store {
    state: State,
    highest: Option<Highest>,
    /// Those whose time has not come, the lowest sequence first.
    waiting: Vec<Waiting>,
}

#[derive(Debug, Default)]
struct News {
    contact: Option<UnixTime>,
    /// As in the store, which is held for as long as a manifest is read.
    waiting: Vec<Waiting>,
    refused: Option<(UnixTime, String, Refused)>,
}

/// What became of a manifest that was not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// It is in force.
    InForce {
        /// Its sequence.
        sequence: u64,
        /// Assets that it lists.
        assets: usize,
    },
    /// It has been for a while.
    Unchanged {
        /// Its sequence.
        sequence: u64,
    },
    /// It is kept, and comes in force when its time comes.
    Waiting {
        /// Its sequence.
        sequence: u64,
        /// When that is.
        not_before: UnixTime,
    },
}

/// How it stands with what the control plane tells.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Whether any key is trusted, so that a manifest can come at all.
    pub is_expected: bool,
    /// Why none can come all the same.
    pub failure: Option<String>,
    /// Sequence of the manifest in force.
    pub sequence: Option<u64>,
    /// Assets that it lists.
    pub assets: usize,
    /// Seconds since it was accepted.
    pub age_seconds: Option<u64>,
    /// Seconds since it was accepted; before the first, since the start.
    pub waited_seconds: u64,
    /// When it expires.
    pub expires: Option<UnixTime>,
    /// Whether it has.
    pub has_expired: bool,
    /// Whether none has come for longer than `control.stale_after`.
    pub is_stale: bool,
    /// When a publication was last read without fault.
    pub last_contact: Option<UnixTime>,
    /// Manifests that are kept until their time comes, the lowest sequence first.
    pub waiting: Vec<Waiting>,
    /// What was refused last, when, and where it came from; until the next one is accepted.
    pub last_refusal: Option<(UnixTime, String, Refused)>,
}

impl Control {
    /// Reads keys and what was accepted before, and puts that in force, for all who hold `in_force`. `rules`: where a manifest may have
    /// assets fetched from. Blocks.
    ///
    /// # Errors
    /// See [`StartError`]. What is wrong with the folder on disk is told in the log and the standing: what is held is served all the same.
    pub fn start(
        config: &Config,
        rules: SourceRules,
        (clock, in_force): (Clock, InForce),
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, StartError> {
        let trust = Trust::start(config)?;
        let off = "no key is trusted: control.keys names none";
        let kept = if config.keys.is_empty() { Kept::Off(off.into()) } else { open(config) };
        let failure = match &kept {
            Kept::Off(why) if !config.keys.is_empty() => Some(why.clone()),
            _ => None,
        };
        let (started, config) = (clock.unix(), config.clone());
        let control = Arc::new(Self {
            config,
            trust,
            rules: ArcSwap::from_pointee(rules),
            in_force,
            clock,
            metrics,
            started,
            failure,
            kept: Mutex::new(kept),
            news: Mutex::default(),
        });
        control.resume();
        let weak = Arc::downgrade(&control);
        control.metrics.before_scrape(move |metrics| {
            let Some(control) = weak.upgrade() else { return };
            let standing = control.standing();
            let manifest = &metrics.manifest;
            manifest.sequence.set(standing.sequence.unwrap_or(0));
            manifest.assets.set(standing.assets as u64);
            manifest.age_seconds.set(standing.age_seconds.unwrap_or(0));
            manifest.expiry.set(standing.expires.unwrap_or_default().0);
            manifest.stale.set(standing.is_stale.into());
        });
        Ok(control)
    }

    /// Where manifests may have assets fetched from, from the next one on.
    pub fn set_rules(&self, rules: SourceRules) {
        self.rules.store(Arc::new(rules));
    }

    /// The manifest in force, for those who act on it.
    pub fn in_force(&self) -> &InForce {
        &self.in_force
    }

    /// Bytes of a manifest as published, at most.
    pub fn size_max(&self) -> u64 {
        self.config.limits.size_max.0
    }

    /// A place for a manifest that comes in. Blocks.
    ///
    /// # Errors
    /// Nothing is received, or the disk does not take it.
    pub fn incoming(&self) -> Result<Incoming, Refused> {
        match &*self.kept.lock() {
            Kept::Off(why) => Err(Refused::new(Reason::State, why.clone())),
            Kept::On(store) => store.state.incoming().map_err(|err| disk(&err)),
        }
    }

    /// Takes a manifest in that came from `from`. Blocks.
    ///
    /// # Errors
    /// It is refused, and the last good one stays in force. Counted and logged.
    pub fn offer(&self, arrived: Arrived, signatures: &[u8], from: &str) -> Result<Receipt, Refused> {
        let taken = Signatures::parse(signatures).and_then(|read| self.take(arrived, &read, signatures));
        match &taken {
            Err(refused) => self.refuse(from, refused),
            Ok(Receipt::InForce { sequence, assets }) => {
                self.metrics.manifest.accepted.add(1);
                self.news.lock().refused = None;
                tracing::info!(sequence, assets, from, "manifest in force");
            }
            Ok(Receipt::Unchanged { .. }) => self.news.lock().refused = None,
            Ok(Receipt::Waiting { sequence, not_before }) => {
                self.news.lock().refused = None;
                let seconds = not_before.since(self.clock.unix());
                tracing::info!(sequence, seconds, from, "manifest is kept until its time comes");
            }
        }
        taken
    }

    fn take(&self, arrived: Arrived, read: &Signatures, signatures: &[u8]) -> Result<Receipt, Refused> {
        let mut kept = self.kept.lock();
        let Kept::On(store) = &mut *kept else {
            return Err(Refused::new(Reason::State, "nothing is received"));
        };
        let keys = self.trust.now().verify(&arrived.digest, read)?;
        let digest = arrived.digest;
        if let Some(now) = self.in_force.now().filter(|now| now.digest == digest) {
            return Ok(Receipt::Unchanged { sequence: now.manifest.head.sequence });
        }
        if let Some(Waiting { sequence, not_before, .. }) = store.waiting.iter().find(|kept| kept.digest == digest) {
            return Ok(Receipt::Waiting { sequence: *sequence, not_before: *not_before });
        }
        let manifest = self.parse(&arrived.file.reopen().map_err(|err| disk(&err))?)?;
        let received = self.clock.unix();
        // What was accepted once and lost from disk may come again.
        let others = store.highest.as_ref().filter(|highest| highest.digest != digest);
        let (sequence, assets, not_before) =
            (manifest.head.sequence, manifest.assets().len(), manifest.head.not_before);
        match judge(&manifest, &self.config.identity, others, received) {
            Ok(()) => {}
            // All else is well with it.
            Err(refused) if refused.reason == Reason::NotYet && self.config.waiting_max > 0 => {
                store.set_aside(
                    arrived.file,
                    signatures,
                    Waiting { sequence, not_before, digest },
                    self.config.waiting_max,
                )?;
                self.tell_waiting(store);
                return Ok(Receipt::Waiting { sequence, not_before });
            }
            Err(refused) => return Err(refused),
        }
        let new = Highest { sequence, digest, received };
        store.state.keep(arrived.file, signatures, &new).map_err(|err| disk(&err))?;
        store.highest = Some(new);
        store.drop_waiting(|kept| kept.sequence <= sequence);
        self.tell_waiting(store);
        self.in_force.put(Accepted { manifest, digest, received, keys });
        Ok(Receipt::InForce { sequence, assets })
    }

    /// Whether a manifest of this digest would be taken for its signatures.
    ///
    /// # Errors
    /// See [`super::TrustedKeys::verify`].
    pub(super) fn check_signatures(&self, digest: &Sha256, signatures: &[u8]) -> Result<(), Refused> {
        self.trust.now().verify(digest, &Signatures::parse(signatures)?).map(drop)
    }

    /// Whether a manifest of this digest is kept until its time comes.
    pub(super) fn is_waiting(&self, digest: &Sha256) -> bool {
        self.news.lock().waiting.iter().any(|kept| kept.digest == *digest)
    }

    /// Takes over keys that have changed, and puts in force what has waited for this moment. Blocks.
    pub fn look(&self) {
        if self.trust.look(&self.config, &self.metrics) {
            self.other_keys();
        }
        while let Some((waiting, come)) = self.next_due() {
            tracing::info!(sequence = waiting.sequence, "the time of a manifest has come");
            let offered = match come {
                Ok((arrived, signatures)) => self.offer(arrived, &signatures, "disk"),
                Err(err) => {
                    self.refuse("disk", &disk(&err));
                    continue;
                }
            };
            // Where the disk is at fault, the next start tries again.
            let again = offered.is_err_and(|refused| refused.reason == Reason::State);
            if !again && let Kept::On(store) = &*self.kept.lock() {
                store.remove(&waiting);
            }
        }
    }

    /// Reads the keys anew. Blocks.
    pub fn reload(&self) {
        if self.trust.reload(&self.config, &self.metrics) {
            self.other_keys();
        }
    }

    /// The next manifest whose time has come, which waits no longer.
    #[expect(clippy::type_complexity, reason = "used once, below")]
    fn next_due(&self) -> Option<(Waiting, io::Result<(Arrived, Vec<u8>)>)> {
        let now = self.clock.unix();
        let mut kept = self.kept.lock();
        let Kept::On(store) = &mut *kept else { return None };
        let at = store.waiting.iter().position(|waiting| waiting.not_before <= now)?;
        let waiting = store.waiting.remove(at);
        self.tell_waiting(store);
        Some((waiting, store.state.come_in(&waiting)))
    }

    fn tell_waiting(&self, store: &Store) {
        self.news.lock().waiting.clone_from(&store.waiting);
    }

    /// Other keys are trusted: what is in force stays until the next one, but would not come back after a restart.
    fn other_keys(&self) {
        let Some(now) = self.in_force.now() else { return };
        let keys = self.trust.now();
        let counted = now.keys.iter().filter(|kid| keys.counts(kid)).count();
        if counted < keys.threshold() {
            tracing::warn!(
                sequence = now.manifest.head.sequence,
                "the manifest in force is not signed by keys that are trusted now: it stays until the next one comes, or a restart"
            );
        }
    }

    fn parse(&self, file: &File) -> Result<Manifest, Refused> {
        parse(file, &self.config.limits, &self.rules.load())
    }

    /// Puts what was accepted before in force again, if its signatures are still good: a key may have been revoked.
    fn resume(&self) {
        let kept = self.kept.lock();
        let Kept::On(store) = &*kept else { return };
        self.tell_waiting(store);
        let Store { state, highest: Some(highest), .. } = store else { return };
        match self.resumed(state, highest) {
            Ok(accepted) => {
                tracing::info!(sequence = highest.sequence, "the last good manifest is in force");
                self.in_force.put(accepted);
            }
            Err(refused) => self.refuse("disk", &refused),
        }
    }

    fn resumed(&self, state: &State, highest: &Highest) -> Result<Accepted, Refused> {
        let (mut file, signatures) = state.kept(&highest.digest).map_err(|err| disk(&err))?;
        let digest = digest_of(&mut file).map_err(|err| disk(&err))?;
        let keys = self.trust.now().verify(&digest, &Signatures::parse(&signatures)?)?;
        io::Seek::rewind(&mut file).map_err(|err| disk(&err))?;
        let manifest = self.parse(&file)?;
        // Its time is not looked at: what it wants held stays, and whoever fetches for it looks.
        judge(&manifest, &self.config.identity, None, manifest.head.not_before)?;
        Ok(Accepted { manifest, digest, received: highest.received, keys })
    }

    /// Something was refused: counted, logged and remembered.
    pub fn refuse(&self, from: &str, refused: &Refused) {
        self.metrics.manifest.refused(refused.reason.label());
        tracing::warn!(from, reason = refused.reason.label(), %refused, "manifest refused; what was in force stays");
        self.news.lock().refused = Some((self.clock.unix(), from.into(), refused.clone()));
    }

    /// A publication was read without fault.
    pub(super) fn heard(&self) {
        self.news.lock().contact = Some(self.clock.unix());
    }

    /// How it stands.
    pub fn standing(&self) -> Standing {
        let (now, accepted) = (self.clock.unix(), self.in_force.now());
        let since = accepted.as_ref().map_or(self.started, |accepted| accepted.received);
        let is_expected = self.trust.now().count() > 0;
        let news = self.news.lock();
        let head = accepted.as_ref().map(|accepted| &accepted.manifest.head);
        Standing {
            is_expected,
            failure: self.failure.clone(),
            sequence: head.map(|head| head.sequence),
            assets: accepted.as_ref().map_or(0, |accepted| accepted.manifest.assets().len()),
            age_seconds: accepted.as_ref().map(|accepted| now.since(accepted.received)),
            waited_seconds: now.since(since),
            expires: head.map(|head| head.expires),
            has_expired: head.is_some_and(|head| now >= head.expires),
            is_stale: is_expected && now.since(since) > self.config.stale_after.as_secs(),
            last_contact: news.contact,
            waiting: news.waiting.clone(),
            last_refusal: news.refused.clone(),
        }
    }
}

impl Store {
    fn set_aside(
        &mut self,
        file: tempfile::NamedTempFile,
        signatures: &[u8],
        waiting: Waiting,
        max: usize,
    ) -> Result<(), Refused> {
        self.state.set_aside(file, signatures, &waiting).map_err(|err| disk(&err))?;
        self.waiting.push(waiting);
        self.waiting.sort_by_key(|kept| kept.sequence);
        let least = self.waiting.len().saturating_sub(max);
        let bound = self.waiting.get(least).map_or(0, |kept| kept.sequence);
        self.drop_waiting(|kept| kept.sequence < bound);
        Ok(())
    }

    fn drop_waiting(&mut self, is_over: impl Fn(&Waiting) -> bool) {
        let (over, waiting): (Vec<_>, Vec<_>) = self.waiting.drain(..).partition(|waiting| is_over(waiting));
        self.waiting = waiting;
        over.iter().for_each(|waiting| self.remove(waiting));
    }

    fn remove(&self, waiting: &Waiting) {
        if let Err(err) = self.state.drop_waiting(waiting) {
            tracing::warn!(sequence = waiting.sequence, error = %err, "a manifest that waits no longer cannot be removed");
        }
    }
}

fn open(config: &Config) -> Kept {
    let opened = State::open(&config.state).and_then(|(state, highest)| {
        let waiting = state.waiting()?;
        Ok(Store { state, highest, waiting })
    });
    match opened {
        Ok(store) => Kept::On(store),
        Err(err) => {
            // Going on without its memory would let an old manifest in.
            let why = format!("control.state {}: {err}", config.state.display());
            tracing::error!("{why}; no manifest is received until that is mended and the appliance restarted");
            Kept::Off(why)
        }
    }
}

fn disk(err: &io::Error) -> Refused {
    Refused::new(Reason::State, format!("it cannot be kept on disk: {err}"))
}

/// Digest of a file as it is.
///
/// # Errors
/// It cannot be read.
pub fn digest_of(file: &mut impl io::Read) -> io::Result<Sha256> {
    let (mut hasher, mut buffer) = (super::Hasher::default(), vec![0; 64 << 10]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(count) => hasher.update(&buffer[..count]),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
}
