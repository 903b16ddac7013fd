//! A catalog with fill behind it, and the way of a viewer through both.

use std::{sync::Arc, time::Duration};

use super::{super::*, BLOCK, origin::Origin};
use crate::{
    asset::{AssetKey, ByteCount, ByteRange, UnixTime},
    catalog::{self, Discovered, Entry, Lookup, PassThrough, Want},
    storage::{self, Disk, RealDisk, Residency, VolumeConfig},
};

/// A catalog, fill, and the way of a viewer through both.
pub(super) struct Site {
    pub(super) catalog: Arc<Catalog>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) clock: Clock,
    residency: Residency,
    _fill: Fill,
    _dir: tempfile::TempDir,
}

pub(super) fn config(sources: Vec<SourceConfig>) -> Config {
    Config {
        sources,
        read_ahead: ByteCount(2 * BLOCK),
        fetch_max: ByteCount(4 * BLOCK),
        whole_asset_max: ByteCount(32 * BLOCK),
        retry_delay: Duration::from_millis(1),
        retry_delay_max: Duration::from_millis(4),
        ..Config::default()
    }
}

pub(super) fn source(name: &str, location: SourceLocation) -> SourceConfig {
    SourceConfig {
        response_timeout: Duration::from_millis(400),
        connect_timeout: Duration::from_millis(400),
        stall_timeout: Duration::from_millis(400),
        failures_max: 1000,
        ..SourceConfig::new(name, SourceKind::Origin, location)
    }
}

pub(super) fn http(name: &str, origin: &Origin) -> SourceConfig {
    source(name, SourceLocation::Http(origin.url()))
}

impl Site {
    pub(super) fn of(origin: &Origin) -> Self {
        Self::with(&config(vec![http("origin", origin)]))
    }

    pub(super) fn with(config: &Config) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let storage = storage::Config {
            block_size: BlockSize::new(BLOCK).expect("valid"),
            volumes: vec![VolumeConfig { path: dir.path().into(), capacity: ByteCount(64 * BLOCK) }],
            ..storage::Config::default()
        };
        let catalog_config = catalog::Config { failure_ttl: Duration::ZERO, ..catalog::Config::default() };
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let (clock, metrics) = (Clock::manual(UnixTime(1_800_000_000)), Arc::new(Metrics::new(1)));
        let opened = Catalog::open(&catalog_config, &storage, &disk, clock.clone(), Arc::clone(&metrics));
        let (catalog, demands) = opened.expect("a new volume opens");
        let on = (&*metrics, clock.clone(), storage.block_size);
        let manifest = (InForce::default(), Arc::new(nightly::Load::default) as _);
        let fill = start(config, Arc::clone(&catalog), demands, on, manifest).expect("the sources can be set up");
        let residency = Residency::new(&storage).expect("an engine");
        Self { catalog, metrics, clock, residency, _fill: fill, _dir: dir }
    }

    /// The entry for `path`, found as a viewer finds it who wants `want`.
    pub(super) async fn find(&self, path: &str, want: Want) -> Result<Option<Arc<Entry>>, Refusal> {
        let key = AssetKey::parse(path, None).expect("valid");
        match self.catalog.lookup(&key) {
            Lookup::Hit(entry) => Ok(Some(entry)),
            Lookup::Stale(entry) => self.catalog.revalidate(&entry).await.map(Some),
            Lookup::Negative(refusal) => Err(refusal),
            Lookup::Miss => match self.catalog.discover(&key, want).await? {
                Discovered::Entry(entry) => Ok(Some(entry)),
                Discovered::PassThrough => Ok(None),
            },
        }
    }

    /// Bytes of an asset that is stored, cut at its end.
    pub(super) async fn view(&self, path: &str, start: u64, end: u64) -> Result<Vec<u8>, Refusal> {
        let viewed = tokio::time::timeout(Duration::from_secs(20), self.read(path, start, end));
        viewed.await.unwrap_or_else(|_| panic!("{path} {start}..{end}: nobody brings it and nobody says so"))
    }

    async fn read(&self, path: &str, start: u64, end: u64) -> Result<Vec<u8>, Refusal> {
        let entry = self.find(path, Want::Range { start, end: Some(end) }).await?;
        let entry = entry.unwrap_or_else(|| panic!("{path} is not stored"));
        let end = end.min(entry.meta().length);
        let mut bytes = Vec::new();
        while let Some(rest) = ByteRange::new(start + bytes.len() as u64, end) {
            entry.demand(rest)?;
            let here = entry.grown(rest.start()).await?.min(rest.len());
            let part = ByteRange::new(rest.start(), rest.start() + here).expect("something has grown");
            let lease = match entry.lease().await {
                Ok(lease) => lease,
                Err(_) if entry.is_withdrawn() => return Err(Refusal::Withdrawn),
                Err(err) => panic!("{path} cannot be mapped: {err}"),
            };
            let slice = lease.slice(part).expect("inside");
            bytes.extend_from_slice(&self.residency.resident(slice, None).await.expect("readable"));
        }
        Ok(bytes)
    }

    /// As `view`, asked again when the version was withdrawn, as serve does.
    pub(super) async fn view_again(&self, path: &str, start: u64, end: u64) -> Result<Vec<u8>, Refusal> {
        for _ in 0..8 {
            match self.view(path, start, end).await {
                Err(Refusal::Withdrawn) => {}
                viewed => return viewed,
            }
        }
        Err(Refusal::Withdrawn)
    }

    pub(super) async fn pass(&self, path: &str, want: Want) -> Result<PassThrough, Refusal> {
        let key = AssetKey::parse(path, None).expect("valid");
        let passed = tokio::time::timeout(Duration::from_secs(20), self.catalog.pass_through(&key, want));
        passed.await.expect("an answer in time")
    }

    pub(super) fn errors(&self, source: &str) -> Vec<&'static str> {
        self.metrics.source(source).errors().iter().map(|(reason, _)| *reason).collect()
    }
}

pub(super) async fn drain(mut pass: PassThrough) -> (Vec<u8>, Option<Refusal>) {
    let mut bytes = Vec::new();
    while let Some(piece) = pass.body.recv().await {
        match piece {
            Ok(piece) => bytes.extend_from_slice(&piece),
            Err(refusal) => return (bytes, Some(refusal)),
        }
    }
    (bytes, None)
}
