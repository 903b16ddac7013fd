//! Holds the memory that reading a manifest takes: a list is read from a stream, and what is not kept is not held either.
//!
//! A binary of its own, since its allocator counts. `cargo bench --bench manifest` has the figures of a million assets.

use std::{fmt::Write as _, io::Write as _};

use oca::{
    asset::AssetKey,
    control::{
        Limits, Reason,
        manifest::{SourceRules, parse},
    },
};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const ASSETS: usize = 100_000;
/// Bytes that an asset with a key of 40 may keep, with its place in the index.
const KEPT_MAX: usize = 200;
/// Bytes that may be held beside that while a manifest is read, whatever its length.
const BESIDE_MAX: usize = 2 << 20;

fn manifest(end: &str) -> Vec<u8> {
    let mut text = String::from(
        "{\"version\": 1, \"sequence\": 7, \"audience\": {\"all\": true}, \"expires\": 2000000000, \"assets\": [",
    );
    for number in 0..ASSETS {
        let joint = if number == 0 { "" } else { ",\n" };
        // No two digests look alike, so that it shrinks as a real one does.
        let digest = oca::asset::Sha256::new(*blake3::hash(&number.to_le_bytes()).as_bytes());
        let asset = format!(
            "{{\"key\": \"titles/{number:08}/video-2160p-00000.mp4\", \"length\": {}, \"sha256\": \"{digest}\"}}",
            number + 1
        );
        write!(text, "{joint}{asset}").expect("a string takes everything");
    }
    text.push_str(end);
    text.into_bytes()
}

fn gzipped(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).expect("written");
    encoder.finish().expect("whole")
}

#[test]
fn what_a_manifest_takes_is_what_it_keeps() {
    let plain = manifest("]}");
    let bad = manifest(", {}]}");
    for (form, text) in
        [("as it is", plain.clone()), ("gzip", gzipped(&plain)), ("zstd", zstd::encode_all(&*plain, 1).expect("whole"))]
    {
        let before = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        let read = parse(&*text, &Limits::default(), &SourceRules::default()).expect("valid");
        let (after, peak) = (MEMORY.current_usage(), MEMORY.peak_usage());
        let (kept, beside) = ((after - before) / ASSETS, peak - after);
        assert_eq!(read.assets().len(), ASSETS);
        assert!(
            kept <= KEPT_MAX && beside <= BESIDE_MAX,
            "{form}: {kept} bytes are kept of each asset, and {beside} were held beside"
        );
        let key = AssetKey::from_record("titles/00099999/video-2160p-00000.mp4", None).expect("a key");
        assert_eq!(read.find(&key).map(|(rank, _)| rank), Some(ASSETS - 1));
    }
    // What is refused at its end leaves nothing behind.
    let before = MEMORY.current_usage();
    let refused =
        parse(&*bad, &Limits::default(), &SourceRules::default()).map(drop).expect_err("the last is no asset");
    assert_eq!((refused.reason, &*refused.field), (Reason::MissingField, "assets[100000].key"));
    drop(refused);
    assert!(MEMORY.current_usage() <= before + 4096, "{} bytes stay", MEMORY.current_usage() - before);
}

/// Small files that would be large: what they take is bounded by what is allowed, not by what they say.
#[test]
fn what_is_refused_takes_no_more() {
    let limits = Limits { expanded_max: oca::asset::ByteCount(8 << 20), ..Limits::default() };
    let spaces = vec![b' '; 64 << 20];
    let deep = "[".repeat(1 << 20).into_bytes();
    let long = [b"{\"version\": 1, \"audience\": {\"sites\": [\"".to_vec(), vec![b'a'; 16 << 20]].concat();
    let bombs = [
        (gzipped(&spaces), Reason::Bomb),
        (zstd::encode_all(&*spaces, 1).expect("whole"), Reason::Bomb),
        (spaces.clone(), Reason::TooLarge),
        (deep, Reason::TooDeep),
        (long, Reason::TooLarge),
    ];
    for (number, (text, reason)) in bombs.into_iter().enumerate() {
        let before = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        let refused = parse(&*text, &limits, &SourceRules::default()).map(drop).expect_err("a bomb");
        let beside = MEMORY.peak_usage() - before;
        assert!(refused.reason == reason && beside <= BESIDE_MAX, "{number}: {refused}, {beside} bytes");
    }
}
