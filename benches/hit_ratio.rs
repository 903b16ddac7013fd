//! How much of what is asked for is held: the appliance's rules of admission and eviction beside others.
//!
//! `cargo bench --bench hit_ratio`; options: `--requests=N` (of each generated stream, 200,000), `--seed=N`, `--trace=FILE` (a
//! published trace in place of the generated streams: `support/streams/trace.rs` says which formats), `--write` (into
//! `docs/performance.md`), `--test` (a short run that only shows that the bench works).
//!
//! The appliance's columns are no simulation of its rules: `support/policies/appliance.rs` drives a whole `oca::catalog` with its
//! defaults - lookup, admission, reservation, watermarks, eviction - on a disk that keeps no bytes. The others are exact: LRU, SIEVE
//! and S3-FIFO by bytes; Belady by the distance to the next use, sizes disregarded, which is optimal for objects of one size and near it for
//! bytes otherwise; and a bound that no rule can exceed (PFOO-L). Every rule begins empty and sees the same stream, so first requests count as
//! misses for all of them. Before anything is measured, each rule has to make of small traces what was counted by hand
//! (`support/policies/known.rs`).
//!
//! Sizes are taken in KiB: the catalog is given a byte for each, which changes no decision and spares writing terabytes.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a bench speaks on the terminal")]

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "benches share one support module, and none uses all of it")]
mod support;

#[path = "support/policies/mod.rs"]
mod policies;
#[path = "support/streams/mod.rs"]
mod streams;

use std::{error::Error, fmt::Write as _, path::Path, time::Instant};

use oca::catalog::Admission;
use policies::{
    Policy,
    appliance::Appliance,
    belady::{Belady, bound, next_uses},
    known,
    lru::Lru,
    s3_fifo::S3Fifo,
    sieve::Sieve,
};
use streams::{Stream, generated, trace};
use support::{is_smoke, option, report, scratch::Scratch};

type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Cache sizes, in percent of the sizes of all objects that are asked for.
const SIZES_PERCENT: [u64; 4] = [1, 5, 10, 20];
const RULES: [&str; 7] = ["oca", "oca, second-request", "LRU", "SIEVE", "S3-FIFO", "Belady", "bound"];

/// Hits of one rule on one stream.
#[derive(Clone, Copy, Default)]
struct Hits {
    objects: u64,
    kib: u64,
}

/// One stream and one cache size: what each of [`RULES`] made of it.
struct Row {
    percent: u64,
    hits: [Hits; RULES.len()],
}

fn main() -> Fallible<()> {
    let scratch = Scratch::new("hit_ratio")?;
    known::check(scratch.path())?;
    trace::check()?;
    let streams = match std::env::args().find_map(|argument| Some(argument.strip_prefix("--trace=")?.to_owned())) {
        Some(file) => {
            let (stream, remarks) = trace::read(Path::new(&file))?;
            println!("{remarks:?} in {file}");
            vec![stream]
        }
        None => generate(),
    };
    let mut tables = Tables::default();
    for stream in &streams {
        let (begun, next) = (Instant::now(), next_uses(&stream.requests, stream.keys));
        for percent in SIZES_PERCENT {
            let row = Row { percent, hits: replay(stream, &next, percent, &scratch)? };
            plausible(stream, &row)?;
            tables.add(stream, &row)?;
        }
        eprintln!("{}: {:?}", stream.name, begun.elapsed());
    }
    let markdown = tables.show();
    println!("{markdown}");
    if std::env::args().any(|argument| argument == "--write") {
        report::update("docs/performance.md", "hit_ratio", &markdown)?;
    }
    Ok(())
}

fn generate() -> Vec<Stream> {
    let requests = if is_smoke() { 3_000 } else { option("requests").unwrap_or(200_000) };
    let (requests, seed) = (usize::try_from(requests).unwrap_or(usize::MAX), option("seed").unwrap_or(1));
    let mut streams: Vec<_> = [0.7, 0.9, 1.1].map(|alpha| generated::zipf(seed, alpha, requests)).into();
    streams.push(generated::scans(seed, requests));
    streams.push(generated::releases(seed, requests));
    streams.push(generated::video(seed, requests, false));
    streams.push(generated::video(seed, requests, true));
    streams
}

fn replay(stream: &Stream, next: &[usize], percent: u64, scratch: &Scratch) -> Fallible<[Hits; RULES.len()]> {
    let (keys, capacity) = (stream.keys, stream.footprint() * percent / 100);
    let volume = |admission: Admission| {
        let home = scratch.path().join("volume");
        if home.exists() {
            std::fs::remove_dir_all(&home)?;
        }
        Appliance::new(home, capacity, admission)
    };
    // One catalog at a time: each has its threads and its volume.
    let always = run(stream, &mut volume(Admission::Always)?);
    let second = run(stream, &mut volume(Admission::SecondRequest)?);
    let (objects, kib) = bound(&stream.requests, next, capacity);
    Ok([
        always,
        second,
        run(stream, &mut Lru::new(keys, capacity)),
        run(stream, &mut Sieve::new(keys, capacity)),
        run(stream, &mut S3Fifo::new(keys, capacity)),
        run(stream, &mut Belady::new(keys, capacity, next)),
        Hits { objects, kib },
    ])
}

fn run(stream: &Stream, policy: &mut dyn Policy) -> Hits {
    let mut hits = Hits::default();
    for request in &stream.requests {
        if policy.request(*request) {
            hits.objects += 1;
            hits.kib += u64::from(request.size);
        }
    }
    hits
}

/// What holds of every stream, whatever the rules: nobody exceeds the bound.
fn plausible(stream: &Stream, row: &Row) -> Fallible<()> {
    let most = row.hits[RULES.len() - 1];
    for (rule, hits) in RULES.iter().zip(row.hits) {
        if hits.objects > most.objects || hits.kib > most.kib {
            return Err(format!("{rule} exceeds the bound on {} at {} %", stream.name, row.percent).into());
        }
    }
    Ok(())
}

/// The three tables, as they grow.
#[derive(Default)]
struct Tables {
    streams: String,
    objects: String,
    bytes: String,
    origin: String,
}

impl Tables {
    fn add(&mut self, stream: &Stream, row: &Row) -> Fallible<()> {
        let (requests, asked) = (stream.requests.len(), stream.asked());
        let gigabytes = |kib: u64| kib as f64 * 1024.0 / 1e9;
        if row.percent == SIZES_PERCENT[0] {
            let footprint = gigabytes(stream.footprint());
            writeln!(self.streams, "| {} | {requests} | {footprint:.1} | {:.1} |", stream.name, gigabytes(asked))?;
        }
        let cells = |cell: &dyn Fn(&Hits) -> String| row.hits.iter().map(cell).collect::<Vec<_>>().join(" | ");
        let head = format!("| {} | {} %", stream.name, row.percent);
        let of_objects = cells(&|hits| format!("{:.1}", hits.objects as f64 / requests as f64 * 100.0));
        let of_bytes = cells(&|hits| format!("{:.1}", hits.kib as f64 / asked as f64 * 100.0));
        let from_origin = cells(&|hits| format!("{:.1}", gigabytes(asked - hits.kib)));
        writeln!(self.objects, "{head} | {of_objects} |")?;
        writeln!(self.bytes, "{head} | {of_bytes} |")?;
        writeln!(self.origin, "{head} | {from_origin} |")?;
        Ok(())
    }

    fn show(&self) -> String {
        let table = |rows: &str| {
            format!("| stream | cache | {} |\n|---|---|{}\n{rows}", RULES.join(" | "), "---|".repeat(RULES.len()))
        };
        format!(
            "| stream | requests | GB of objects | GB asked for |\n|---|---|---|---|\n{}\nHits in percent of requests:\n\n{}\n\
             Hits in percent of bytes:\n\n{}\nGB from the origin:\n\n{}",
            self.streams,
            table(&self.objects),
            table(&self.bytes),
            table(&self.origin)
        )
    }
}
