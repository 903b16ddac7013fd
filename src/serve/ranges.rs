//! `Range` (RFC 9110, 14): what a client asks for, and what that is of an asset of known length. Pure.

use smallvec::SmallVec;

use crate::asset::ByteRange;

/// One range as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeSpec {
    /// `first-last` or `first-`; inclusive.
    From {
        /// First byte.
        first: u64,
        /// Last byte, where named.
        last: Option<u64>,
    },
    /// `-n`: the last `n` bytes.
    Suffix(u64),
}

/// The ranges of one request. Invariant: grammatical, and at most as many as were allowed; none: there were more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet(SmallVec<[RangeSpec; 2]>);

/// What the ranges are of an asset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RangeOutcome {
    /// The whole asset: no range, or one that is to be ignored.
    Whole,
    /// One part.
    Part(ByteRange),
    /// Several parts that do not touch each other, in the order asked for where that is possible.
    Parts(SmallVec<[ByteRange; 4]>),
    /// Nothing of what was asked for exists.
    Unsatisfiable,
    /// More ranges than are answered: the set is rejected (RFC 9110, 14.2 and 15.5.17).
    TooMany,
}

impl RangeSet {
    /// Reads a `Range` header. `None` where it is to be ignored: another unit, or not grammatical (RFC 9110, 14.2 allows to ignore it in each case). Of more than
    /// `ranges_max` ranges nothing is read but that they are too many.
    pub fn parse(header: &[u8], ranges_max: usize) -> Option<Self> {
        let text = std::str::from_utf8(header).ok()?;
        let (unit, list) = text.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        let mut specs = SmallVec::new();
        // Empty elements of a list are allowed and mean nothing (RFC 9110, 5.6.1.2).
        for element in
            list.split(',').map(|element| element.trim_matches([' ', '\t'])).filter(|element| !element.is_empty())
        {
            let spec = parse_spec(element)?;
            if specs.len() == ranges_max {
                return Some(Self(SmallVec::new()));
            }
            specs.push(spec);
        }
        (!specs.is_empty()).then_some(Self(specs))
    }

    /// Whether there were more than are answered.
    pub fn is_too_many(&self) -> bool {
        self.0.is_empty()
    }

    /// The ranges as they were written; none where there were too many.
    pub fn specs(&self) -> &[RangeSpec] {
        &self.0
    }

    /// What the ranges are of an asset of `length` bytes. Overlapping and touching ranges are joined (RFC 9110, 15.3.7.2), so
    /// that what is sent is never more than the asset.
    pub fn resolve(&self, length: u64) -> RangeOutcome {
        if self.is_too_many() {
            return RangeOutcome::TooMany;
        }
        let mut parts: SmallVec<[ByteRange; 4]> = self.0.iter().filter_map(|spec| spec.resolve(length)).collect();
        join(&mut parts);
        match parts.as_slice() {
            [] => RangeOutcome::Unsatisfiable,
            [one] => RangeOutcome::Part(*one),
            _ => RangeOutcome::Parts(parts),
        }
    }
}

impl RangeSpec {
    /// The bytes that are meant; `None` where there are none.
    fn resolve(self, length: u64) -> Option<ByteRange> {
        match self {
            Self::From { first, last } => {
                ByteRange::new(first, last.map_or(length, |last| last.saturating_add(1).min(length)))
            }
            Self::Suffix(count) => ByteRange::new(length.saturating_sub(count), length),
        }
    }
}

/// The part that a `Range` in the form of nearly all, `bytes=first-last` with both named, asks for of an asset of `length` bytes;
/// `None` where it has another form or asks for what does not exist. What it gives, [`RangeSet`] gives too.
pub fn one_range(header: &[u8], length: u64) -> Option<ByteRange> {
    let (first, rest) = digits(header.strip_prefix(b"bytes=")?)?;
    let (last, rest) = digits(rest.strip_prefix(b"-")?)?;
    if !rest.is_empty() || first > last {
        return None;
    }
    ByteRange::new(first, (last + 1).min(length))
}

/// The number at the beginning, of at most 18 digits, and what follows it.
fn digits(text: &[u8]) -> Option<(u64, &[u8])> {
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    if end == 0 || end > 18 {
        return None;
    }
    let (digits, rest) = text.split_at(end);
    Some((digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')), rest))
}

fn parse_spec(text: &str) -> Option<RangeSpec> {
    let (first, last) = text.split_once('-')?;
    match (first, last) {
        ("", last) => Some(RangeSpec::Suffix(parse_number(last)?)),
        (first, "") => Some(RangeSpec::From { first: parse_number(first)?, last: None }),
        (first, last) => {
            let (first, last) = (parse_number(first)?, parse_number(last)?);
            (first <= last).then_some(RangeSpec::From { first, last: Some(last) })
        }
    }
}

/// Digits only. A number too large for 64 bits lies beyond every asset and is as good as the largest.
fn parse_number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

/// Joins parts that overlap or touch. Where there are none, the order asked for stays (RFC 9110, 15.3.7.2).
fn join(parts: &mut SmallVec<[ByteRange; 4]>) {
    let mut sorted = parts.clone();
    sorted.sort_unstable_by_key(|part| part.start());
    if sorted.windows(2).all(|pair| pair[0].end() < pair[1].start()) {
        return;
    }
    parts.clear();
    for part in sorted {
        match parts.last_mut() {
            Some(before) if part.start() <= before.end() => {
                let end = before.end().max(part.end());
                *before = ByteRange::new(before.start(), end).unwrap_or(part);
            }
            _ => parts.push(part),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn outcome(header: &str, length: u64) -> RangeOutcome {
        RangeSet::parse(header.as_bytes(), 16).map_or(RangeOutcome::Whole, |set| set.resolve(length))
    }

    fn part(start: u64, end: u64) -> ByteRange {
        ByteRange::new(start, end).expect("not empty")
    }

    #[test]
    fn the_forms_of_rfc_9110_mean_what_it_says() {
        assert_eq!(outcome("bytes=0-499", 1000), RangeOutcome::Part(part(0, 500)));
        assert_eq!(outcome("bytes=500-", 1000), RangeOutcome::Part(part(500, 1000)));
        assert_eq!(outcome("bytes=-300", 1000), RangeOutcome::Part(part(700, 1000)));
        assert_eq!(outcome("bytes=0-0", 1000), RangeOutcome::Part(part(0, 1)));
        assert_eq!(
            outcome("BYTES= 0-1 , ,3-4,", 1000),
            RangeOutcome::Parts([part(0, 2), part(3, 5)].into_iter().collect())
        );
        assert_eq!(outcome("bytes=900-2000", 1000), RangeOutcome::Part(part(900, 1000)));
    }

    #[test]
    fn a_suffix_longer_than_the_asset_selects_all_of_it() {
        assert_eq!(outcome("bytes=-2000", 1000), RangeOutcome::Part(part(0, 1000)));
    }

    #[test]
    fn what_is_not_grammatical_is_ignored() {
        for bad in [
            "bytes",
            "bytes=",
            "bytes=a-b",
            "bytes=5-4",
            "bytes=--5",
            "bytes=1-2-3",
            "bytes=+1-2",
            "items=0-1",
            "bytes=0x1-2",
            "bytes=,",
            "bytes=1 -2",
        ] {
            assert_eq!(outcome(bad, 1000), RangeOutcome::Whole, "{bad}");
        }
    }

    #[test]
    fn what_does_not_exist_is_unsatisfiable() {
        for none in ["bytes=1000-", "bytes=1000-1001", "bytes=-0", "bytes=99999999999999999999999-"] {
            assert_eq!(outcome(none, 1000), RangeOutcome::Unsatisfiable, "{none}");
        }
        assert_eq!(outcome("bytes=0-", 0), RangeOutcome::Unsatisfiable);
        assert_eq!(outcome("bytes=-5", 0), RangeOutcome::Unsatisfiable);
        assert_eq!(outcome("bytes=1000-,5-5", 1000), RangeOutcome::Part(part(5, 6)), "the others are sent");
    }

    #[test]
    fn numbers_beyond_64_bits_do_not_wrap() {
        assert_eq!(outcome("bytes=0-18446744073709551615", 10), RangeOutcome::Part(part(0, 10)));
        assert_eq!(outcome("bytes=5-99999999999999999999", 10), RangeOutcome::Part(part(5, 10)));
        assert_eq!(outcome("bytes=-99999999999999999999", 10), RangeOutcome::Part(part(0, 10)));
    }

    #[test]
    fn more_ranges_than_allowed_are_too_many() {
        let ranges = |count| (0..count).map(|n| format!("{}-{}", n * 10, n * 10)).collect::<Vec<_>>().join(",");
        assert_eq!(outcome(&format!("bytes={}", ranges(17)), 1000), RangeOutcome::TooMany);
        assert!(
            matches!(outcome(&format!("bytes={},,", ranges(16)), 1000), RangeOutcome::Parts(parts) if parts.len() == 16)
        );
        assert_eq!(outcome(&format!("bytes={},x", ranges(16)), 1000), RangeOutcome::Whole, "not grammatical");
    }

    #[test]
    fn parts_keep_the_order_asked_for_unless_they_have_to_be_joined() {
        assert_eq!(
            outcome("bytes=500-509,0-9", 1000),
            RangeOutcome::Parts([part(500, 510), part(0, 10)].into_iter().collect())
        );
        assert_eq!(
            outcome("bytes=5-14,0-9,100-", 1000),
            RangeOutcome::Parts([part(0, 15), part(100, 1000)].into_iter().collect())
        );
        assert_eq!(outcome("bytes=0-4,5-9", 1000), RangeOutcome::Part(part(0, 10)));
    }

    proptest! {
        /// A bitmap of the wanted bytes is the reference.
        #[test]
        fn the_parts_are_exactly_the_bytes_asked_for(
            specs in prop::collection::vec((0_u8..3, 0_u64..80, 0_u64..80), 1..10),
            length in 0_u64..64,
        ) {
            let mut wanted = vec![false; 64];
            let mut texts = Vec::new();
            for (kind, a, b) in specs {
                let (low, high) = (a.min(b), a.max(b));
                let (text, from, to) = match kind {
                    0 => (format!("{low}-{high}"), low, high.saturating_add(1).min(length)),
                    1 => (format!("{low}-"), low, length),
                    _ => (format!("-{low}"), length.saturating_sub(low), length),
                };
                (from..to).for_each(|at| wanted[usize::try_from(at).expect("small")] = true);
                texts.push(text);
            }
            let mut got = vec![false; 64];
            let parts: Vec<ByteRange> = match outcome(&format!("bytes={}", texts.join(", ")), length) {
                RangeOutcome::Part(one) => vec![one],
                RangeOutcome::Parts(parts) => { prop_assert!(parts.len() > 1); parts.to_vec() }
                RangeOutcome::Unsatisfiable => vec![],
                RangeOutcome::Whole | RangeOutcome::TooMany => {
                    return Err(TestCaseError::fail("grammatical ranges are not ignored"));
                }
            };
            prop_assert!(parts.iter().map(|part| part.len()).sum::<u64>() <= length, "more than the asset");
            for part in parts {
                for at in part.start()..part.end() {
                    let at = usize::try_from(at).expect("small");
                    prop_assert!(!got[at], "sent twice");
                    got[at] = true;
                }
            }
            prop_assert_eq!(got, wanted);
        }

        #[test]
        fn the_short_way_finds_what_the_long_way_finds(header in "bytes=[0-9]{0,20}-?[0-9]{0,3}[-, x]?", length: u64) {
            let long = RangeSet::parse(header.as_bytes(), 16).map(|set| set.resolve(length));
            if let Some(part) = one_range(header.as_bytes(), length) {
                prop_assert_eq!(long, Some(RangeOutcome::Part(part)));
            }
        }

        #[test]
        fn both_ends_named_is_the_short_way(first in 0_u64..1000, more in 0_u64..1000, length in 0_u64..2000) {
            let header = format!("bytes={first}-{}", first + more);
            prop_assert_eq!(one_range(header.as_bytes(), length).is_some(), first < length);
        }

        #[test]
        fn nothing_makes_the_parser_panic(header in prop::collection::vec(any::<u8>(), 0..64), length: u64) {
            if let Some(set) = RangeSet::parse(&header, 16) {
                drop(set.resolve(length));
            }
        }
    }
}
