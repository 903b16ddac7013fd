//! Do cold reads stall hot ones? Latency of hot requests alone, and beside clients that read a working set from the disk.
//!
//! One worker serves both, so that a stall of the worker would show in full. `cargo bench --bench cold_beside_hot`; options:
//! `--gib=12` (working set), `--seconds=20` (each phase), `--cold=8` (cold clients), `--oca=PATH` (another binary), `--write` (puts the table into
//! docs/performance.md), `--test` (a short run on 64 MiB).

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a bench speaks on the terminal")]

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "benches share one support module, and none uses all of it")]
mod support;

use std::{
    error::Error,
    fs,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use support::{
    appliance::{Appliance, Setup},
    client::Client,
    flag, is_smoke, option, report,
    scratch::Scratch,
    stolen::{Kept, Undisturbed},
    values,
};

const MIB: u64 = 1 << 20;
const HOT_RANGE: u64 = 64 << 10;
const COLD_RANGES: [u64; 3] = [64 << 10, 256 << 10, 1 << 20];

type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

struct Plan {
    assets: u64,
    asset_bytes: u64,
    seconds: u64,
    cold_clients: u64,
}

fn main() -> Fallible<()> {
    let smoke = is_smoke();
    if flag("write") && (smoke || cfg!(debug_assertions)) {
        return Err("a short run, or one of a debug build, makes no figures to write down".into());
    }
    let asset_bytes = if smoke { 8 * MIB } else { 64 * MIB };
    let total = if smoke { 64 * MIB } else { option("gib").unwrap_or(12) << 30 };
    let plan = Plan {
        assets: total / asset_bytes,
        asset_bytes,
        seconds: option("seconds").unwrap_or(if smoke { 1 } else { 20 }),
        cold_clients: option("cold").unwrap_or(8),
    };
    let scratch = Scratch::new("cold_beside_hot")?;
    make_source(scratch.path(), &plan)?;
    let capacity = format!("{} MiB", (total + total / 4) / MIB);
    let mut setup = Setup::new(scratch.path(), &capacity);
    // A build for development is behind by itself, and a machine that its host pauses for tenths of a second looks overloaded.
    setup.serve = "workers = 1\nqueue_delay_max = \"0 s\"";
    setup.binary = values("oca").pop().map(Into::into);

    let filling = setup.start()?;
    let begun = Instant::now();
    fill(filling.http, &plan)?;
    println!("filled {:.1} GiB in {:.0} s", total as f64 / (1 << 30) as f64, begun.elapsed().as_secs_f64());
    // What is mapped cannot be dropped from the page cache: it is let go of first.
    filling.stop()?;
    let cached = drop_caches(&scratch.path().join("volume/assets"))?;
    println!("dropped the page cache of {cached} files");

    let appliance = setup.start()?;
    warm(appliance.http)?;
    let mut rows = vec![("hot alone".to_owned(), measure(&appliance, &plan, 0, 1)?)];
    for range in COLD_RANGES {
        // What is sent from its file is not mapped: it can be dropped while it is served.
        drop_caches(&scratch.path().join("volume/assets"))?;
        warm(appliance.http)?;
        rows.push((
            format!("hot beside cold {} KiB", range >> 10),
            measure(&appliance, &plan, plan.cold_clients, range)?,
        ));
    }
    let text = show(&plan, &rows);
    println!("\n{text}");
    if flag("write") {
        report::update("docs/performance.md", "cold_beside_hot", &text)?;
    }
    appliance.stop()?;
    Ok(())
}

struct Measured {
    hot: Histogram<u64>,
    /// Share of the time that `hot` holds nothing of.
    left_out: f64,
    requests: u64,
    cold: Histogram<u64>,
    cold_bytes: u64,
    seconds: f64,
    major_faults: f64,
    cold_waits: f64,
}

/// One file of noise under as many names as there are assets.
fn make_source(home: &Path, plan: &Plan) -> Fallible<()> {
    let source = home.join("source");
    fs::create_dir_all(&source)?;
    let mut noise = vec![0_u8; usize::try_from(plan.asset_bytes)?];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    fs::write(source.join("noise"), &noise)?;
    for number in 0..plan.assets {
        std::os::unix::fs::symlink("noise", source.join(format!("{number}.mp4")))?;
    }
    Ok(())
}

fn fill(address: SocketAddr, plan: &Plan) -> Fallible<()> {
    let mut client = Client::connect(address)?;
    for number in 0..plan.assets {
        client.fetch(&format!("/{number}.mp4"), None)?;
    }
    Ok(())
}

/// Writes back and drops what the page cache holds of the files below `folder`; needs no privilege.
fn drop_caches(folder: &Path) -> Fallible<usize> {
    let mut files = 0;
    for fan in fs::read_dir(folder)? {
        for file in fs::read_dir(fan?.path())? {
            let file = fs::File::open(file?.path())?;
            file.sync_all()?;
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
            files += 1;
        }
    }
    Ok(files)
}

/// The first asset is the hot one.
fn warm(address: SocketAddr) -> Fallible<()> {
    let mut client = Client::connect(address)?;
    Ok((0..3).try_for_each(|_| client.fetch("/0.mp4", None).map(drop))?)
}

/// Ends early when half of the set was read: it would not be cold any more.
fn measure(appliance: &Appliance, plan: &Plan, cold_clients: u64, cold_range: u64) -> Fallible<Measured> {
    let (faults, waits) =
        (appliance.metric("oca_worker_major_faults_total")?, appliance.metric("oca_cold_waits_total")?);
    let stop = Arc::new(AtomicBool::new(false));
    let bytes = Arc::new(AtomicU64::new(0));
    let (address, assets, asset_bytes) = (appliance.http, plan.assets, plan.asset_bytes);
    let readers: Vec<_> = (0..cold_clients)
        .map(|number| {
            let (stop, bytes) = (Arc::clone(&stop), Arc::clone(&bytes));
            std::thread::spawn(move || -> Fallible<Histogram<u64>> {
                oca::sys::priority::give_way()?;
                let mut client = Client::connect(address)?;
                let mut latency = Histogram::new(3)?;
                let mut random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(number + 1) | 1;
                while !stop.load(Ordering::Relaxed) {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let asset = 1 + random % (assets - 1);
                    let start = (random >> 20) % (asset_bytes / cold_range) * cold_range;
                    let begun = Instant::now();
                    bytes.fetch_add(
                        client.fetch(&format!("/{asset}.mp4"), Some((start, start + cold_range)))?,
                        Ordering::Relaxed,
                    );
                    latency.record(u64::try_from(begun.elapsed().as_micros())?)?;
                }
                Ok(latency)
            })
        })
        .collect();
    let mut hot = Undisturbed::begin()?;
    let mut client = Client::connect(address)?;
    let begun = Instant::now();
    let (mut at, mut requests) = (0, 0_u64);
    let enough = assets * asset_bytes / 2;
    while begun.elapsed() < Duration::from_secs(plan.seconds) && bytes.load(Ordering::Relaxed) < enough {
        let sent = Instant::now();
        client.fetch("/0.mp4", Some((at, at + HOT_RANGE)))?;
        let now = Instant::now();
        hot.record(now - sent, now);
        requests += 1;
        at = (at + HOT_RANGE) % asset_bytes;
    }
    let seconds = begun.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    let mut cold = Histogram::<u64>::new(3)?;
    for reader in readers {
        cold.add(reader.join().map_err(|_| "a cold client panicked")??)?;
    }
    let Kept { latency: hot, left_out, .. } = hot.end();
    Ok(Measured {
        hot,
        left_out,
        requests,
        cold,
        cold_bytes: bytes.load(Ordering::Relaxed),
        seconds,
        major_faults: appliance.metric("oca_worker_major_faults_total")? - faults,
        cold_waits: appliance.metric("oca_cold_waits_total")? - waits,
    })
}

/// The table, and what it is of.
fn show(plan: &Plan, rows: &[(String, Measured)]) -> String {
    let mut text = format!(
        "{} assets of {} MiB, one worker, {} KiB hot ranges on one connection, {} cold clients, {} s each or until half of all was read; {}\n\n",
        plan.assets,
        plan.asset_bytes / MIB,
        HOT_RANGE >> 10,
        plan.cold_clients,
        plan.seconds,
        report::machine()
    );
    text += "| | hot requests/s | p50 us | p99 us | p99.9 us | max us | cold MB/s | cold p50 us | cold p99 us | cold waits | worker major faults | left out |\n\
             |---|---|---|---|---|---|---|---|---|---|---|---|\n";
    for (name, row) in rows {
        let (hot, cold) = (&row.hot, &row.cold);
        text += &format!(
            "| {name} | {:.0} | {} | {} | {} | {} | {:.0} | {} | {} | {:.0} | {:.0} | {:.0} % |\n",
            row.requests as f64 / row.seconds,
            hot.value_at_quantile(0.5),
            hot.value_at_quantile(0.99),
            hot.value_at_quantile(0.999),
            hot.max(),
            row.cold_bytes as f64 / row.seconds / 1e6,
            cold.value_at_quantile(0.5),
            cold.value_at_quantile(0.99),
            row.cold_waits,
            row.major_faults,
            row.left_out * 100.0,
        );
    }
    text
}
