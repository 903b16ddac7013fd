//! The appliance's own rules: not a copy of them, but `oca::catalog` itself on a disk that keeps nothing.
//!
//! Each request takes the way of a viewer's: `lookup` notes the use; on a miss `discover` asks admission, an admitted asset is
//! written, space is reserved for it block by block, and room is made by eviction. After each request the catalog does the round
//! (`Catalog::tend`) that its own thread does every 100 ms: at a real box's pace no more than a few requests lie between two.
//! Nobody reads while another is evicted, so that "what is read is not evicted" does not show.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use oca::{
    asset::{AssetKey, BitRate, BlockSize, ByteCount, EntityTag, UnixTime, Validators},
    catalog::{self, Admission, Catalog, Demand, Demands, Discovered, Entry, Lifetime, Lookup, Meta, Want},
    storage::{self, Disk, VolumeConfig},
    sys::Clock,
    telemetry::metrics::Metrics,
};
use rustix::fs::MemfdFlags;

use super::{Policy, Request};

/// The stream begins at this time.
const BEGIN: UnixTime = UnixTime(1_000_000);

#[derive(Debug)]
pub(crate) struct Appliance {
    catalog: Arc<Catalog>,
    demands: Demands,
    clock: Clock,
    at_millis: u64,
    content: Vec<u8>,
    /// Away while it runs what borrows the rest.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Appliance {
    /// A catalog with the defaults of the configuration, except what `admission` says, on a new volume at `home`.
    pub(crate) fn new(home: PathBuf, capacity: u64, admission: Admission) -> io::Result<Self> {
        let storage = storage::Config {
            block_size: BlockSize::new(64 << 10).ok_or(io::ErrorKind::InvalidInput)?,
            volumes: vec![VolumeConfig { path: home, capacity: ByteCount(capacity) }],
            // There are no bytes to compare, and no disk to probe.
            scrub_rate: BitRate(0),
            probe_interval: Duration::from_secs(86_400),
            ..storage::Config::default()
        };
        let config = catalog::Config { admission, ..catalog::Config::default() };
        let (disk, clock): (Arc<dyn Disk>, _) = (Arc::new(NoDisk), Clock::manual(BEGIN));
        let opened = Catalog::open(&config, &storage, &disk, clock.clone(), Arc::new(Metrics::new(1)));
        let (catalog, demands) = opened.map_err(io::Error::other)?;
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        Ok(Self { catalog, demands, clock, at_millis: 0, content: Vec::new(), runtime: Some(runtime) })
    }

    /// Asks as a miss does; answers what reaches fill as fill does. Gives the new entry, or nothing where admission says no.
    async fn discover(&mut self, key: &AssetKey, size: u32) -> Option<Arc<Entry>> {
        let answer = self.catalog.discover(key, Want::Range { start: 0, end: None });
        tokio::pin!(answer);
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => match answer.expect("nothing is refused here") {
                    Discovered::Entry(entry) => return Some(entry),
                    Discovered::PassThrough => return None,
                },
                demand = self.demands.next() => {
                    let Some(Demand::Discover(discovery)) = demand else { panic!("{demand:?} for a new asset") };
                    match self.catalog.admit(key, meta(size), Lifetime::immutable(BEGIN)) {
                        Ok(entry) => discovery.admitted(entry),
                        // As fill does with what is larger than a volume.
                        Err(_) => discovery.pass_through(),
                    }
                }
            }
        }
    }

    fn fill(&mut self, entry: &Arc<Entry>, size: u32) {
        let size = size as usize;
        if self.content.len() < size {
            self.content.resize(size, 0);
        }
        entry.writer(0).write_blocking(&self.content[..size]).expect("there is room for what was admitted");
        assert!(entry.is_sealed(), "every byte was written");
    }
}

impl Policy for Appliance {
    fn request(&mut self, Request { at_millis, key, size }: Request) -> bool {
        self.clock.advance(Duration::from_millis(at_millis.saturating_sub(self.at_millis)));
        self.at_millis = self.at_millis.max(at_millis);
        let key = AssetKey::parse(&format!("/{key}"), None).expect("a number is a key");
        let hit = match self.catalog.lookup(&key) {
            Lookup::Hit(_) => true,
            Lookup::Miss => {
                let runtime = self.runtime.take().expect("it comes back below");
                let entry = runtime.block_on(self.discover(&key, size));
                self.runtime = Some(runtime);
                if let Some(entry) = entry {
                    self.fill(&entry, size);
                }
                false
            }
            other => panic!("{other:?} of an asset that never changes"),
        };
        self.catalog.tend();
        hit
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        self.catalog.close();
    }
}

fn meta(size: u32) -> Meta {
    Meta {
        length: u64::from(size),
        validators: Validators { etag: EntityTag::parse("\"1\""), ..Validators::default() },
        content_type: None,
        content_encoding: None,
        cache_control: None,
        ranged: true,
    }
}

/// A disk that takes everything and keeps nothing but the lengths of files.
#[derive(Debug)]
struct NoDisk;

impl Disk for NoDisk {
    fn create(&self, _: &Path, length: u64) -> io::Result<File> {
        let file = File::from(rustix::fs::memfd_create("asset", MemfdFlags::CLOEXEC)?);
        file.set_len(length)?;
        Ok(file)
    }

    fn open_write(&self, _: &Path) -> io::Result<File> {
        // Every asset is written once, through the file that `create` gave.
        Err(io::ErrorKind::NotFound.into())
    }

    fn open_read(&self, _: &Path) -> io::Result<File> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn reserve(&self, _: &File, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_at(&self, _: &File, _: &[&[u8]], _: u64) -> io::Result<()> {
        Ok(())
    }

    fn read_at(&self, file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        file.read_exact_at(buffer, offset)
    }

    fn open_direct(&self, path: &Path) -> io::Result<File> {
        self.open_read(path)
    }

    fn read_some(&self, file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        file.read_at(buffer, offset)
    }

    fn sync_data(&self, _: &File) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn unlink(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}
