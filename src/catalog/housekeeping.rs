//! Keeps the catalog while nobody asks: recency, watermarks, failed volumes, what was left behind, and an orderly end.

use std::{
    io,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::{Builder, JoinHandle},
    time::Duration,
};

use super::{
    Catalog, Config, Entry, Leaving, Shelf,
    persist::{Persister, Record},
    verify::Verifier,
};
use crate::{
    asset::UnixTime,
    storage::{self, FileName, Volume, VolumeFailure, VolumeState},
    sys::Clock,
};

/// How often touches are sorted in and watermarks looked at.
const TICK: Duration = Duration::from_millis(100);
/// How often last uses go to the database: a crash makes eviction's order that much older.
const USED_INTERVAL: Duration = Duration::from_secs(30);
/// Two workers may note uses in the other order than their clocks said: so much is recorded a second time.
const USED_SLACK: Duration = Duration::from_secs(2);

/// The threads of the catalog, and how to end them.
#[derive(Debug, Default)]
pub(super) struct Threads {
    volumes: Vec<VolumeThreads>,
    keeper: Option<JoinHandle<()>>,
    /// Dropped to tell the keeper and the probes to end.
    stop: Vec<SyncSender<()>>,
}

impl Threads {
    pub(super) fn add(&mut self, threads: VolumeThreads) {
        self.volumes.push(threads);
    }
}

/// The threads of one volume.
#[derive(Debug)]
pub(super) struct VolumeThreads {
    persister: JoinHandle<()>,
    verifier: JoinHandle<()>,
    pulse: Arc<Pulse>,
    stop_probe: SyncSender<()>,
}

/// When a volume's probe last came back, and whether one is out.
#[derive(Debug)]
struct Pulse {
    clock: Clock,
    probing_since_millis: AtomicU64,
    probing: AtomicBool,
}

impl VolumeThreads {
    pub(super) fn start(
        persister: Persister,
        verifier: Verifier,
        volume: Arc<Volume>,
        config: &storage::Config,
    ) -> io::Result<Self> {
        let name = |what: &str| format!("oca-{what}-{}", volume.index());
        let persister = Builder::new().name(name("persist")).spawn(move || persister.run())?;
        let verifier = Builder::new().name(name("verify")).spawn(move || verifier.run())?;
        let pulse = Arc::new(Pulse {
            clock: Clock::system(),
            probing_since_millis: AtomicU64::new(0),
            probing: AtomicBool::new(false),
        });
        let (stop_probe, stopped) = sync_channel::<()>(0);
        let interval = config.probe_interval;
        // Not joined at the end: a dead disk may hold it for ever.
        Builder::new().name(name("probe")).spawn({
            let (pulse, volume) = (Arc::clone(&pulse), Arc::downgrade(&volume));
            move || {
                while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                    let Some(volume) = volume.upgrade().filter(|volume| volume.state() == VolumeState::Serving) else {
                        return;
                    };
                    pulse.begin();
                    if let Err(failure) = volume.probe() {
                        volume.fail(failure);
                    }
                    pulse.end();
                }
            }
        })?;
        Ok(Self { persister, verifier, pulse, stop_probe })
    }
}

impl Pulse {
    fn millis(&self) -> u64 {
        u64::try_from(self.clock.monotonic().as_millis()).unwrap_or(u64::MAX)
    }

    fn begin(&self) {
        self.probing_since_millis.store(self.millis(), Ordering::Relaxed);
        self.probing.store(true, Ordering::Release);
    }

    fn end(&self) {
        self.probing.store(false, Ordering::Release);
    }

    /// How long the present probe has been out.
    fn silent_for(&self) -> Duration {
        if !self.probing.load(Ordering::Acquire) {
            return Duration::ZERO;
        }
        Duration::from_millis(self.millis().saturating_sub(self.probing_since_millis.load(Ordering::Relaxed)))
    }
}

/// Starts the thread that keeps the catalog.
pub(super) fn start(catalog: &Arc<Catalog>, config: &storage::Config) -> io::Result<()> {
    let (stop, stopped) = sync_channel::<()>(0);
    let probe_timeout = config.probe_timeout;
    let (me, used_until) = (Arc::downgrade(catalog), catalog.clock.unix());
    let keeper = Builder::new().name("oca-catalog".into()).spawn(move || {
        let mut keeper = Keeper { me, probe_timeout, since_used: Duration::ZERO, used_until };
        keeper.remove_leftovers(&|| stopped.try_recv().is_err_and(|err| err == std::sync::mpsc::TryRecvError::Empty));
        while stopped.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) && keeper.tick() {}
        keeper.end();
    })?;
    let mut threads = catalog.threads.lock();
    threads.keeper = Some(keeper);
    threads.stop.push(stop);
    Ok(())
}

/// Blocks evicted at once when the disk is full before the capacity is.
const ROOM_BLOCKS: u64 = 16;

struct Keeper {
    me: Weak<Catalog>,
    probe_timeout: Duration,
    since_used: Duration,
    /// Uses up to here are recorded.
    used_until: UnixTime,
}

impl Keeper {
    /// One round; `false` when the catalog is gone.
    fn tick(&mut self) -> bool {
        let Some(catalog) = self.me.upgrade() else { return false };
        for (at, shelf) in catalog.shelves.iter().enumerate() {
            self.watch(&catalog, at, shelf);
        }
        catalog.tend();
        self.since_used += TICK;
        if self.since_used >= USED_INTERVAL {
            self.since_used = Duration::ZERO;
            self.record_used(&catalog);
        }
        true
    }

    fn end(&mut self) {
        if let Some(catalog) = self.me.upgrade() {
            catalog.sort_in_touches();
            self.record_used(&catalog);
        }
    }

    fn record_used(&mut self, catalog: &Catalog) {
        let since = std::mem::replace(&mut self.used_until, catalog.clock.unix());
        let since = UnixTime(since.0.saturating_sub(USED_SLACK.as_secs()));
        for shelf in &catalog.shelves {
            let used = shelf.recency.lock().used_since(since);
            // Only the order of eviction hangs on it: a full queue is no reason to wait.
            if !used.is_empty() && shelf.records.try_send(Record::Used(used)).is_err() {
                tracing::debug!("last uses were not recorded: the disk is behind");
            }
        }
    }

    /// Takes a failed volume's assets out, once, and finds out whether a silent one has failed.
    fn watch(&self, catalog: &Catalog, at: usize, shelf: &Shelf) {
        let silent =
            catalog.threads.lock().volumes.get(at).map_or(Duration::ZERO, |threads| threads.pulse.silent_for());
        if silent > self.probe_timeout {
            shelf.volume.fail(VolumeFailure::Silent(silent.as_secs()));
        }
        if shelf.volume.state() == VolumeState::Failed {
            let lost = shelf.recency.lock().drain();
            lost.iter().for_each(|entry| catalog.leave(entry, Leaving::Lost));
        }
    }

    /// Removes files that the catalog does not know: left by a crash between writing and recording, or between forgetting and
    /// unlinking.
    fn remove_leftovers(&self, go_on: &dyn Fn() -> bool) {
        let Some(catalog) = self.me.upgrade() else { return };
        for shelf in &catalog.shelves {
            match catalog.remove_leftovers_of(shelf, go_on) {
                Ok(0) => {}
                Ok(files) => {
                    tracing::info!(volume = %shelf.volume.root().display(), files, "removed files that no record knows");
                }
                Err(err) => {
                    tracing::warn!(volume = %shelf.volume.root().display(), error = %err, "volume cannot be tidied up");
                }
            }
        }
    }
}

impl Catalog {
    /// One round of keeping: recency, watermarks, the number of assets. The catalog's own thread does it every 100 ms; whoever
    /// replays requests faster than time (`benches/hit_ratio.rs`) calls it in between. Blocks.
    pub fn tend(&self) {
        self.sort_in_touches();
        self.shelves.iter().for_each(|shelf| self.keep_watermarks(shelf));
        self.keep_count();
    }

    /// Puts the assets that were used since the last call at the far end of eviction.
    pub(super) fn sort_in_touches(&self) {
        // At most as many as may wait: viewers who touch faster than this sorts cannot hold it here.
        for _ in 0..self.touches.capacity() {
            let Some(entry) = self.touches.pop() else { return };
            self.shelf(&entry).recency.lock().touch(&entry);
        }
    }

    /// Goes by other limits from now on, and gives volumes, by their directories, other capacities: what is too much is evicted soon.
    pub fn go_by(&self, config: &Config, volumes: &[storage::VolumeConfig]) {
        self.negative.set_ttls(config);
        self.config.store(Arc::new(config.clone()));
        for shelf in &self.shelves {
            let root = shelf.volume.root();
            let is_here = |one: &&storage::VolumeConfig| {
                one.path == root || one.path.canonicalize().is_ok_and(|path| path == root)
            };
            if let Some(one) = volumes.iter().find(is_here) {
                shelf.volume.set_capacity(one.capacity.0);
            }
        }
    }

    fn keep_watermarks(&self, shelf: &Shelf) {
        let percent = |percent: u8| {
            u64::try_from(u128::from(shelf.volume.capacity()) * u128::from(percent) / 100).unwrap_or(u64::MAX)
        };
        let config = self.config.load();
        if shelf.volume.kept() > percent(config.watermark_high_percent) {
            self.evict_until(shelf, percent(config.watermark_low_percent));
        }
        if shelf.volume.take_room_request() {
            self.make_room(&shelf.volume, shelf.volume.block_size().bytes() * ROOM_BLOCKS);
        }
    }

    /// Evicts the least recently used of the fullest shelves while more assets are held than memory is meant for.
    fn keep_count(&self) {
        while self.index.len() > self.config.load().assets_max {
            let Some(shelf) = self.shelves.iter().max_by_key(|shelf| shelf.recency.lock().len()) else { return };
            let Some(victim) = shelf.recency.lock().pop_victim() else { return };
            self.leave(&victim, Leaving::Evicted);
        }
    }

    fn remove_leftovers_of(&self, shelf: &Shelf, go_on: &dyn Fn() -> bool) -> io::Result<usize> {
        let known = shelf.recency.lock().by_serial();
        let mut unknown = Vec::new();
        for folder in std::fs::read_dir(shelf.volume.root().join("assets"))? {
            let folder = folder?.path();
            if !go_on() {
                break;
            }
            for file in std::fs::read_dir(&folder)? {
                let file = file?;
                // What is none of ours is none of our business.
                let name = file.file_name().to_str().and_then(FileName::parse);
                unknown.extend(name.filter(|name| !is_of(&known, name)));
            }
        }
        let Some(serial) = unknown.iter().map(|name| name.serial).max() else { return Ok(0) };
        let known = {
            // Who has a number already is in the order of eviction too: it may be that of one of them, lost by a crash and given again.
            let _nobody_names = shelf.naming.write();
            // From here on no version takes the name of one of them.
            shelf.serial.fetch_max(serial, Ordering::Relaxed);
            shelf.recency.lock().by_serial()
        };
        unknown.retain(|name| !is_of(&known, name));
        let mut removed = 0;
        for name in &unknown {
            match shelf.volume.disk().unlink(&name.path(shelf.volume.root())) {
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                other => removed += other.map(|()| 1)?,
            }
        }
        Ok(removed)
    }

    /// Ends the catalog's threads after everything whole is durable, and marks the volumes as cleanly stopped. Viewers and fill
    /// have to have ended before.
    pub fn close(&self) {
        let mut threads = std::mem::take(&mut *self.threads.lock());
        threads.stop.clear();
        let mut ended = vec![threads.keeper.take()];
        for shelf in &self.shelves {
            drop(shelf.verify.lock().take());
            if shelf.records.send(Record::Stop).is_err() {
                tracing::error!(volume = %shelf.volume.root().display(), "the volume's writer ended early");
            }
        }
        for volume in threads.volumes {
            drop(volume.stop_probe);
            ended.push(Some(volume.verifier));
            ended.push(Some(volume.persister));
        }
        for thread in ended.into_iter().flatten() {
            if thread.join().is_err() {
                tracing::error!("a thread of the catalog panicked");
            }
        }
        self.index.clear();
        self.shelves.iter().for_each(|shelf| drop(shelf.recency.lock().drain()));
    }
}

/// Whether a file is that of one of `entries`, which come in the order of serials.
fn is_of(entries: &[(u64, Arc<Entry>)], name: &FileName) -> bool {
    let at = entries.binary_search_by_key(&name.serial, |(serial, _)| *serial);
    at.is_ok_and(|at| entries[at].1.id() == name.id)
}
