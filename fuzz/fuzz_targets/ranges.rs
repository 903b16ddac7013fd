//! `Range` headers: what is resolved lies inside the asset, once.
#![cfg_attr(fuzzing, no_main)]

use oca::serve::ranges::{RangeOutcome, RangeSet};

fn target(data: &[u8]) {
    let (length, header) = data.split_at(data.len().min(2));
    let length = length.iter().fold(0, |length, byte| length << 8 | u64::from(*byte));
    let Some(set) = RangeSet::parse(header, 16) else { return };
    let parts = match set.resolve(length) {
        RangeOutcome::Part(part) => vec![part],
        RangeOutcome::Parts(parts) => parts.to_vec(),
        RangeOutcome::Whole | RangeOutcome::Unsatisfiable | RangeOutcome::TooMany => return,
    };
    assert!(parts.iter().all(|part| part.end() <= length), "beyond the end");
    assert!(parts.iter().map(|part| part.len()).sum::<u64>() <= length, "more than the asset");
}

oca_fuzz::target!(
    target,
    corpus: &["zzbytes=0-499", "aabytes=-5", "  bytes=5-", "xxbytes=0-0,5-9, -3"],
    dictionary: &["bytes=", "-", ",", "0-", "-0", "18446744073709551615", "99999999999999999999", "=", " "]
);
