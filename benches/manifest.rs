//! What it costs to read a manifest: time, memory that stays, and memory above that while it is read.
//!
//! `cargo bench --bench manifest`; options: `--assets=N` (1,000,000), `--write` (into `docs/performance.md`), `--test` (a short run that
//! only shows that the bench works).
//!
//! Memory is what is asked of the allocator, counted: no page that the system has not taken back yet, and nothing of the text itself, which
//! lies ready before. The text comes by `Read`, as it does from disk. What the library of zstd takes by itself is not counted: its window, at
//! most 8 MiB. `tests/manifest_memory.rs` holds bounds.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a bench speaks on the terminal")]

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "benches share one support module, and none uses all of it")]
mod support;

use std::{fmt::Write as _, io::Write as _, time::Instant};

use oca::{
    asset::{AssetKey, ByteCount},
    control::{
        Limits,
        manifest::{Manifest, SourceRules, parse},
    },
};
use peak_alloc::PeakAlloc;
use support::{Fallible, flag, is_smoke, option, random::Random, report};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// What an asset says of itself.
#[derive(Clone, Copy)]
enum Kind {
    /// Key, length, and a digest of the whole.
    Plain,
    /// Also validators, a media type of few, and a digest of each of four blocks.
    Full,
}

struct Reading {
    kind: Kind,
    form: &'static str,
    size: usize,
    seconds: f64,
    kept: usize,
    above: usize,
}

fn main() -> Fallible<()> {
    let assets = option("assets").unwrap_or(if is_smoke() { 20_000 } else { 1_000_000 });
    let mut readings = Vec::new();
    for kind in [Kind::Plain, Kind::Full] {
        let plain = manifest(kind, assets);
        readings.push(read(kind, "as it is", &plain, assets)?);
        readings.push(read(kind, "gzip", &gzipped(&plain)?, assets)?);
        readings.push(read(kind, "zstd", &zstd::encode_all(&*plain, 3)?, assets)?);
    }
    let markdown = table(&readings, assets);
    println!("{markdown}");
    if flag("write") {
        report::update("docs/performance.md", "manifest", &format!("{}\n\n{markdown}", report::machine()))?;
    }
    Ok(())
}

/// A manifest of which no two assets look alike, so that it shrinks as a real one does.
fn manifest(kind: Kind, assets: u64) -> Vec<u8> {
    let mut random = Random::new(7);
    let mut text = String::with_capacity(usize::try_from(assets).unwrap_or(0) * 200);
    let mut write = |text: &mut String| -> std::fmt::Result {
        text.push_str(
            "{\"version\": 1, \"sequence\": 7, \"audience\": {\"all\": true}, \"expires\": 2000000000,\n\"assets\": [",
        );
        for number in 0..assets {
            let (title, part, length) = (number / 40, number % 40, 1 + random.below(64 << 20));
            let joint = if number == 0 { "" } else { "," };
            write!(
                text,
                "{joint}\n{{\"key\": \"titles/{title:08}/video-2160p-{part:03}.mp4\", \"length\": {length}, \"sha256\": \""
            )?;
            digest(text, &mut random)?;
            text.push('"');
            if matches!(kind, Kind::Full) {
                let (etag, modified) = (random.next(), 1_900_000_000 + random.below(1 << 24));
                let size = (length.div_ceil(4).next_power_of_two()).clamp(64 << 10, 64 << 20);
                write!(
                    text,
                    ", \"etag\": \"\\\"{etag:016x}\\\"\", \"last_modified\": {modified}, \"content_type\": \"video/mp4\""
                )?;
                write!(text, ", \"blocks\": {{\"size\": {size}, \"sha256\": [")?;
                for block in 0..length.div_ceil(size) {
                    text.push_str(if block == 0 { "\"" } else { ", \"" });
                    digest(text, &mut random)?;
                    text.push('"');
                }
                text.push_str("]}");
            }
            text.push('}');
        }
        text.push_str("\n]}\n");
        Ok(())
    };
    write(&mut text).expect("a string takes everything");
    text.into_bytes()
}

fn digest(text: &mut String, random: &mut Random) -> std::fmt::Result {
    (0..4).try_for_each(|_| write!(text, "{:016x}", random.next()))
}

fn gzipped(plain: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(plain)?;
    encoder.finish()
}

fn read(kind: Kind, form: &'static str, text: &[u8], assets: u64) -> Fallible<Reading> {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let begun = Instant::now();
    let read = parse(text, &Limits::default(), &SourceRules::default())?;
    let seconds = begun.elapsed().as_secs_f64();
    let (peak, after) = (MEMORY.peak_usage(), MEMORY.current_usage());
    check(&read, assets)?;
    Ok(Reading { kind, form, size: text.len(), seconds, kept: after - before, above: peak - after })
}

/// That it was read, and not only gone through.
fn check(read: &Manifest, assets: u64) -> Fallible<()> {
    let last = format!("titles/{:08}/video-2160p-{:03}.mp4", (assets - 1) / 40, (assets - 1) % 40);
    let found = read.find(&AssetKey::from_record(&last, None)?).map(|(rank, _)| rank as u64);
    if read.assets().len() as u64 == assets && found == Some(assets - 1) && read.bytes() > ByteCount(assets) {
        return Ok(());
    }
    Err(format!("{} assets were read of {assets}", read.assets().len()).into())
}

fn table(readings: &[Reading], assets: u64) -> String {
    let mut table = format!(
        "{assets} assets | published | bytes | read in | stays in memory | above that while it is read\n-|-|-|-|-|-\n"
    );
    for Reading { kind, form, size, seconds, kept, above } in readings {
        let kind = match kind {
            Kind::Plain => "key, length, digest",
            Kind::Full => "and validators, type, digests of blocks",
        };
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        let each = *kept as f64 / assets as f64;
        let row = format!(
            "{kind} | {form} | {:.0} MiB | {seconds:.2} s | {:.0} MiB, {each:.0} bytes each | {:.1} MiB\n",
            mib(*size),
            mib(*kept),
            mib(*above)
        );
        table.push_str(&row);
    }
    table
}
