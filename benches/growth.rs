//! What it costs when there is more: assets held, connections open, workers.
//!
//! `cargo bench --bench growth`; options: `--assets=100000` (most), `--seconds=3` (each row of requests), `--write` (puts the tables
//! into docs/performance.md), `--test` (a short run), `--lookups=N` (only that many lookups, for counting instructions), `--purge=1000000`
//! (only what purges cost where so many assets are held).
//!
//! Assets of 1 to 4,096 bytes are written through the catalog as fill does it (admit, write, seal, record), except that nothing is
//! synced: 100,000 syncs would take the disk several minutes, and what they are for is not measured here.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a bench speaks on the terminal")]

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "benches share one support module, and none uses all of it")]
mod support;

use std::{
    error::Error,
    fmt::Write as _,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use oca::{
    asset::{AssetKey, ByteCount, EntityTag, PathPrefix, UnixTime, Validators},
    catalog::{self, Catalog, Lifetime, Lookup, Meta, Target},
    storage::{self, Disk, RealDisk, VolumeConfig},
    sys::Clock,
    telemetry::metrics::Metrics,
};
use support::{
    appliance::{Appliance, Setup},
    flag, is_smoke,
    load::{Ask, Load, Protocol},
    option,
    random::Random,
    report,
    scratch::Scratch,
};

type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

const CAPACITY: &str = "8 GiB";
/// Clients that ask for every asset once.
const READERS: u64 = 4;

fn main() -> Fallible<()> {
    rlimit::increase_nofile_limit(u64::MAX)?;
    if let Some(count) = option("lookups") {
        return only_lookups(count);
    }
    if let Some(count) = option("purge") {
        println!("{}\n\n{}", report::machine(), purges(count)?);
        return Ok(());
    }
    let (smoke, most) = (is_smoke(), option("assets").unwrap_or(100_000));
    let counts: Vec<u64> = if smoke { vec![10, 50] } else { [10, 1_000, 10_000, most].into() };
    let mut text = format!("{}\n\n{}", report::machine(), assets(&counts)?);
    text += &connections(if smoke { &[4, 16] } else { &[1_000, 10_000] })?;
    let time = if smoke { Duration::from_millis(100) } else { Duration::from_secs(option("seconds").unwrap_or(3)) };
    text += &requests(if smoke { &[1, 8] } else { &[1, 10, 100, 1_000, 10_000] }, time)?;
    if smoke {
        text += &purges(3_000)?;
    }
    println!("{text}");
    if flag("write") {
        report::update("docs/performance.md", "growth", &text)?;
    }
    Ok(())
}

/// A disk that makes nothing durable.
#[derive(Debug)]
struct Unsynced(RealDisk);

impl Disk for Unsynced {
    fn create(&self, path: &Path, length: u64) -> io::Result<File> {
        self.0.create(path, length)
    }
    fn open_write(&self, path: &Path) -> io::Result<File> {
        self.0.open_write(path)
    }
    fn open_read(&self, path: &Path) -> io::Result<File> {
        self.0.open_read(path)
    }
    fn reserve(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        self.0.reserve(file, offset, len)
    }
    fn write_at(&self, file: &File, pieces: &[&[u8]], offset: u64) -> io::Result<()> {
        self.0.write_at(file, pieces, offset)
    }
    fn read_at(&self, file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(file, buffer, offset)
    }
    fn open_direct(&self, path: &Path) -> io::Result<File> {
        self.0.open_direct(path)
    }
    fn read_some(&self, file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_some(file, buffer, offset)
    }
    fn sync_data(&self, _: &File) -> io::Result<()> {
        Ok(())
    }
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.0.unlink(path)
    }
}

fn path_of(number: u64) -> String {
    format!("/show/{:04}/segment-{number:08}.m4s", number / 1000)
}

fn length_of(number: u64) -> u64 {
    1 + number * 37 % 4096
}

fn open_catalog(home: &Path) -> Fallible<Arc<Catalog>> {
    let volume = VolumeConfig { path: home.join("volume"), capacity: ByteCount(8 << 30) };
    let storage = storage::Config { volumes: vec![volume], ..storage::Config::default() };
    let disk: Arc<dyn Disk> = Arc::new(Unsynced(RealDisk));
    let metrics = Arc::new(Metrics::new(1));
    Ok(Catalog::open(&catalog::Config::default(), &storage, &disk, Clock::system(), metrics)?.0)
}

/// A volume below `home` with so many assets. Blocks.
fn make(home: &Path, count: u64) -> Fallible<()> {
    fs::create_dir_all(home.join("source"))?;
    let catalog = open_catalog(home)?;
    let content = vec![7_u8; 4096];
    let now = Clock::system().unix();
    for number in 0..count {
        let length = length_of(number);
        let meta = Meta {
            length,
            validators: Validators {
                etag: EntityTag::parse(&format!("\"{number:024x}\"")),
                last_modified: Some(UnixTime(now.0 - number)),
                last_modified_is_strong: true,
            },
            content_type: Some("video/iso.segment".into()),
            content_encoding: None,
            cache_control: Some("public, max-age=31536000, immutable".into()),
            ranged: true,
        };
        let entry = catalog.admit(&AssetKey::parse(&path_of(number), None)?, meta, Lifetime::immutable(now))?;
        entry.writer(0).write_blocking(&content[..usize::try_from(length)?])?;
    }
    catalog.close();
    Ok(())
}

/// Nanoseconds of a lookup of a random asset among so many.
fn lookup_nanos(home: &Path, count: u64, lookups: u64) -> Fallible<f64> {
    let catalog = open_catalog(home)?;
    let keys: Vec<_> = (0..count).map(|number| AssetKey::parse(&path_of(number), None)).collect::<Result<_, _>>()?;
    let mut random = Random::new(1);
    let begun = Instant::now();
    for _ in 0..lookups {
        let key = &keys[usize::try_from(random.below(count))?];
        if !matches!(catalog.lookup(key), Lookup::Hit(_)) {
            return Err(format!("{key} is not held").into());
        }
    }
    let nanos = begun.elapsed().as_nanos() as f64 / lookups as f64;
    catalog.close();
    Ok(nanos)
}

fn only_lookups(count: u64) -> Fallible<()> {
    let scratch = Scratch::new("growth")?;
    make(scratch.path(), 1000)?;
    println!("{:.0} ns", lookup_nanos(scratch.path(), 1000, count)?);
    Ok(())
}

/// How long orders take where so many assets are held, from the order to its answer.
fn purges(count: u64) -> Fallible<String> {
    let scratch = Scratch::new("growth-purge")?;
    make(scratch.path(), count)?;
    let catalog = open_catalog(scratch.path())?;
    // Files are removed behind the answer, as in the appliance.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build()?;
    let inside = runtime.enter();
    let path = |number| Ok::<_, Box<dyn Error + Send + Sync>>(Target::Path(AssetKey::parse(&path_of(number), None)?));
    let prefix = |text: &str| Ok::<_, Box<dyn Error + Send + Sync>>(Target::Prefix(PathPrefix::parse(text)?));
    let orders = [
        ("one path", vec![path(0)?]),
        ("a path that nobody holds", vec![path(count)?]),
        ("1,000 paths", (1000..2000).map(path).collect::<Result<_, _>>()?),
        ("a prefix of 1,000 assets", vec![prefix("/show/0002/")?]),
        (
            "1,000 prefixes that nobody holds",
            (0..1000).map(|n| prefix(&format!("/film/{n}/"))).collect::<Result<_, _>>()?,
        ),
        ("all", vec![prefix("/")?]),
    ];
    let mut report = format!(
        "| an order for, of {count} held | assets | looked at (dry run) ms | answered ms |\n|---|---|---|---|\n"
    );
    for (name, targets) in orders {
        let begun = Instant::now();
        let would = catalog.would_purge(&targets);
        let looked = begun.elapsed().as_secs_f64() * 1e3;
        let begun = Instant::now();
        let purged = catalog.purge(&targets, Duration::from_secs(60))?;
        let answered = begun.elapsed().as_secs_f64() * 1e3;
        if (would.assets, would.bytes) != (purged.assets, purged.bytes) {
            return Err(format!("{name}: {would:?} before, {purged:?} then").into());
        }
        writeln!(report, "| {name} | {} | {looked:.1} | {answered:.1} |", purged.assets)?;
    }
    drop(inside);
    drop(runtime);
    catalog.close();
    Ok(report)
}

/// Start-up, memory and lookups as the number of assets grows.
fn assets(counts: &[u64]) -> Fallible<String> {
    let mut report = String::from(
        "Assets of 1 to 4,096 bytes with keys of 31 bytes. *Ready*: from the start of the process to 200 from `/ready`, seen at most 20 ms \
         late. *Bytes an asset*: resident memory above that of an appliance without assets, as it comes, where mimalloc takes pages of 2 MiB; *in pages \
         of 4 KiB* (`MIMALLOC_ALLOW_THP=0`), where memory that is not used does not count; and there when each was *asked for* by a HEAD. *First byte*: the \
         first response after SIGKILL, whose block has to be compared with its digest before.\n\n\
         | assets | made in s | ready ms | ready after SIGKILL ms | first byte after it ms | bytes an asset | in pages of 4 KiB | asked for | lookup ns |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    let empty = Scratch::new("growth-0")?;
    make(empty.path(), 0)?;
    let (empty_large, empty_small) = (memory_of(empty.path(), &[])?, memory_of(empty.path(), SMALL_PAGES)?);
    for count in counts {
        let scratch = Scratch::new(&format!("growth-{count}"))?;
        let begun = Instant::now();
        make(scratch.path(), *count)?;
        let made = begun.elapsed().as_secs_f64();
        let lookups = lookup_nanos(scratch.path(), *count, if is_smoke() { 1000 } else { 1_000_000 })?;
        let (appliance, ready) = start(scratch.path(), "", &[])?;
        let large = resident(&appliance)? - empty_large;
        appliance.stop()?;
        let (appliance, _) = start(scratch.path(), "", SMALL_PAGES)?;
        let held = resident(&appliance)? - empty_small;
        ask_for_each(appliance.http, *count)?;
        let asked = resident(&appliance)? - empty_small;
        // Killed without a word.
        drop(appliance);
        let (appliance, unclean) = start(scratch.path(), "", &[])?;
        let begun = Instant::now();
        Keep::connect(appliance.http)?.get(&path_of(count / 2))?;
        let first = begun.elapsed().as_secs_f64() * 1e3;
        appliance.stop()?;
        let each = |bytes: f64| {
            // Below this, pages of the allocator are what is seen.
            if *count < 10_000 { "-".to_owned() } else { format!("{:.0}", bytes / *count as f64) }
        };
        writeln!(
            report,
            "| {count} | {made:.1} | {ready:.0} | {unclean:.0} | {first:.1} | {} | {} | {} | {lookups:.0} |",
            each(large),
            each(held),
            each(asked)
        )?;
        eprintln!("{count} assets done");
    }
    Ok(report)
}

/// Has mimalloc take small pages.
const SMALL_PAGES: &[(&str, &str)] = &[("MIMALLOC_ALLOW_THP", "0")];

fn memory_of(home: &Path, environment: &[(&str, &str)]) -> Fallible<f64> {
    let (appliance, _) = start(home, "", environment)?;
    let bytes = resident(&appliance)?;
    appliance.stop()?;
    Ok(bytes)
}

/// Memory of connections that wait for their next request.
fn connections(counts: &[usize]) -> Fallible<String> {
    let mut report = String::from("\n| idle connections | memory MB | KiB each |\n|---|---|---|\n");
    for count in counts {
        let scratch = Scratch::new("growth-idle")?;
        make(scratch.path(), 1)?;
        let (appliance, _) = start(scratch.path(), &room(*count), &[])?;
        Keep::connect(appliance.http)?.get(&path_of(0))?;
        let before = resident(&appliance)?;
        let mut kept = Vec::with_capacity(*count);
        for _ in 0..*count {
            let mut connection = Keep::connect(appliance.http)?;
            connection.get(&path_of(0))?;
            kept.push(connection);
        }
        let bytes = resident(&appliance)? - before;
        writeln!(report, "| {count} | {:.1} | {:.1} |", bytes / 1e6, bytes / *count as f64 / 1024.0)?;
        drop(kept);
        appliance.stop()?;
    }
    Ok(report)
}

/// Requests a second for an asset of 4 KiB, with one worker and with two.
fn requests(counts: &[usize], time: Duration) -> Fallible<String> {
    let mut report = format!(
        "\nGET of an asset of about 2 KiB, one request under way on each connection, {time:?} a row; the one thread of the \
         load shares the machine with the server. CPU time is the server's.\n\n\
         | connections | 1 worker: requests/s | CPU us a request | 2 workers: requests/s | CPU us a request |\n|---|---|---|---|---|\n",
    );
    let scratch = Scratch::new("growth-requests")?;
    make(scratch.path(), 100)?;
    for count in counts {
        write!(report, "| {count} |")?;
        for workers in [1, 2] {
            let (appliance, _) = start(scratch.path(), &format!("workers = {workers}\n{}", room(*count)), &[])?;
            let (rate, cpu) = load(&appliance, *count, time)?;
            write!(report, " {rate:.0} | {cpu:.1} |")?;
            appliance.stop()?;
        }
        report.push('\n');
    }
    Ok(report)
}

/// Room for so many connections, however few descriptors there are for defaults.
fn room(connections: usize) -> String {
    // Thousands that ask again at once are more than a worker can do, as is meant here.
    format!("connections_max = {}\nconnections_percent = 100\nqueue_delay_max = \"0 s\"", connections + 100)
}

fn load(appliance: &Appliance, connections: usize, time: Duration) -> Fallible<(f64, f64)> {
    let ask = Ask { path: path_of(50), start: 0, len: length_of(50), whole: true };
    let next = Box::new(move |_: &mut Random| ask.clone());
    let mut load = Load {
        address: appliance.http,
        protocol: Protocol::default(),
        connections,
        time,
        next,
        verify: None,
        requests_max: u64::MAX,
        polls: false,
        servers: vec![appliance.id()],
    };
    let outcome = load.run()?;
    let requests = outcome.requests as f64;
    Ok((requests / outcome.seconds, outcome.cpu_seconds / requests * 1e6))
}

/// Starts an appliance and tells in how many milliseconds it was ready.
fn start(home: &Path, serve: &str, environment: &[(&str, &str)]) -> Fallible<(Appliance, f64)> {
    let begun = Instant::now();
    let mut setup = Setup::new(home, CAPACITY);
    (setup.serve, setup.environment) = (serve, environment);
    // All of the load is from one address, of which else only a quarter of all connections may wait at the same time.
    setup.tables = "[serve.clients]\nunlimited = [\"127.0.0.0/8\"]\n";
    let appliance = setup.start()?;
    Keep::connect(appliance.admin)?.get("/ready")?;
    Ok((appliance, begun.elapsed().as_secs_f64() * 1e3))
}

/// Resident memory that is not a file's, in bytes, once the work after the start is done.
fn resident(appliance: &Appliance) -> Fallible<f64> {
    let path = format!("/proc/{}/status", appliance.id());
    let now = || -> Fallible<f64> {
        let status = fs::read_to_string(&path)?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).ok_or("no RssAnon")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? * 1024.0)
    };
    let mut last = now()?;
    // It goes on tidying up for a moment.
    for _ in 0..20 {
        std::thread::park_timeout(Duration::from_millis(if is_smoke() { 1 } else { 100 }));
        let present = now()?;
        if present >= last && present - last < 65_536.0 {
            return Ok(present);
        }
        last = present;
    }
    Ok(last)
}

fn ask_for_each(address: SocketAddr, count: u64) -> Fallible<()> {
    let readers: Vec<_> = (0..READERS)
        .map(|first| {
            std::thread::spawn(move || -> Fallible<()> {
                let mut connection = Keep::connect(address)?;
                for number in (first..count).step_by(usize::try_from(READERS)?) {
                    connection.ask("HEAD", &path_of(number))?;
                    connection.take(false)?;
                }
                Ok(())
            })
        })
        .collect();
    for reader in readers {
        reader.join().map_err(|_| "a client panicked")??;
    }
    Ok(())
}

/// A connection that is kept.
struct Keep(BufReader<TcpStream>);

impl Keep {
    fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self(BufReader::with_capacity(4096, stream)))
    }

    fn get(&mut self, path: &str) -> Fallible<()> {
        self.ask("GET", path)?;
        self.take(true)
    }

    fn ask(&mut self, method: &str, path: &str) -> Fallible<()> {
        Ok(self.0.get_mut().write_all(format!("{method} {path} HTTP/1.1\r\nHost: bench\r\n\r\n").as_bytes())?)
    }

    fn take(&mut self, body: bool) -> Fallible<()> {
        let (mut line, mut length) = (String::new(), 0);
        self.0.read_line(&mut line)?;
        if !line.starts_with("HTTP/1.1 200 ") {
            return Err(format!("answered with {line:?}").into());
        }
        while line != "\r\n" {
            line.clear();
            if self.0.read_line(&mut line)? == 0 {
                return Err("cut".into());
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse()?;
            }
        }
        let taken = io::copy(&mut self.0.by_ref().take(if body { length } else { 0 }), &mut io::sink())?;
        if body && taken != length { Err("cut".into()) } else { Ok(()) }
    }
}
