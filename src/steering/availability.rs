//! A list of fingerprints as text: about twelve bits an asset and a third more for base64, 1.94 MB for a million.
//!
//! sorted -> the gap from each to the next -> Golomb-Rice code (Rice, 1979) -> base64 (RFC 4648, 4)
//!
//! It is exact: what is read is what was written, repeats included. docs/report.md has the format for readers in any language.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use crate::asset::Fingerprint;

/// A list of fingerprints, as it stands in a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// How many it has.
    pub count: usize,
    /// Bits of a gap that are written as they are, the lowest; what is above them is written in ones.
    pub rice: u32,
    /// The gaps.
    pub data: String,
}

impl Summary {
    /// Writes a list, which has to be sorted.
    pub fn of(sorted: &[Fingerprint]) -> Self {
        let rice = rice_of(sorted.len());
        let mut bits = Bits::default();
        let mut before = 0;
        for fingerprint in sorted {
            let gap = fingerprint.bits().wrapping_sub(before);
            before = fingerprint.bits();
            bits.ones(gap >> rice);
            bits.push(u64::from(gap & ((1 << rice) - 1)), rice + 1);
        }
        Self { count: sorted.len(), rice, data: STANDARD.encode(bits.finish()) }
    }

    /// Reads a list back; `None` where it is none.
    pub fn read(&self) -> Option<Vec<Fingerprint>> {
        let bytes = STANDARD.decode(&self.data).ok()?;
        let bit = |at: usize| Some(bytes.get(at / 8)? >> (7 - at % 8) & 1);
        let (mut at, mut before, mut all) = (0, 0_u32, Vec::new());
        for _ in 0..self.count {
            let mut gap = 0_u32;
            while bit(at)? == 1 {
                (gap, at) = (gap.checked_add(1)?, at + 1);
            }
            at += 1;
            for _ in 0..self.rice {
                gap = gap.checked_mul(2)? | u32::from(bit(at)?);
                at += 1;
            }
            before = before.checked_add(gap)?;
            all.push(Fingerprint::from_bits(before)?);
        }
        Some(all)
    }
}

/// The whole bits of the mean gap: within half a percent of the best there is for random numbers.
fn rice_of(count: usize) -> u32 {
    let mean = (1_u64 << Fingerprint::BITS) / (count as u64).max(1);
    mean.max(1).ilog2().min(Fingerprint::BITS - 1)
}

/// Bits put one after the other, the first in the highest place of a byte.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    /// Not yet a whole byte: the lowest `filled` bits.
    last: u64,
    filled: u32,
}

impl Bits {
    /// The lowest `count` bits of `value`, at most 32.
    fn push(&mut self, value: u64, count: u32) {
        self.last = self.last << count | value;
        self.filled += count;
        while self.filled >= 8 {
            self.filled -= 8;
            self.bytes.push((self.last >> self.filled & 0xff) as u8);
        }
        self.last &= (1 << self.filled) - 1;
    }

    fn ones(&mut self, mut count: u32) {
        while count > 0 {
            let some = count.min(32);
            self.push((1 << some) - 1, some);
            count -= some;
        }
    }

    fn finish(mut self) -> Vec<u8> {
        if self.filled > 0 {
            let missing = 8 - self.filled;
            self.push(0, missing);
        }
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::asset::AssetKey;

    fn sorted(bits: impl IntoIterator<Item = u32>) -> Vec<Fingerprint> {
        let mut all: Vec<_> = bits.into_iter().filter_map(Fingerprint::from_bits).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn the_example_of_the_page_is_what_is_written() {
        let summary = Summary::of(&sorted([3, 3, 1 << 29]));
        assert_eq!((summary.count, summary.rice), (3, 28));
        // 0 and 28 bits of 3; 0 and 28 bits of 0; 1, 0 and 28 bits of 2^29 - 3 - 2^28.
        assert_eq!(summary.data, "AAAAGAAAAC////0=");
        assert!(include_str!("../../docs/report.md").contains(&summary.data), "the page shows it");
    }

    #[test]
    fn a_million_assets_take_less_than_two_megabytes_and_one_in_a_thousand_others_is_mistaken() {
        let of = |name: String| Fingerprint::of(&AssetKey::parse(&name, None).expect("valid"));
        let mut held: Vec<_> = (0..1_000_000).map(|n| of(format!("/films/{n}/video-1080p.mp4"))).collect();
        held.sort_unstable();
        let summary = Summary::of(&held);
        let text = serde_json::to_string(&summary).expect("JSON");
        println!("{} bytes for {} assets", text.len(), held.len());
        assert!(text.len() < 2_000_000, "{} bytes", text.len());
        assert_eq!(summary.read().as_ref(), Some(&held));
        let mistaken = (0..200_000).filter(|n| held.binary_search(&of(format!("/other/{n}.mp4"))).is_ok()).count();
        let rate = mistaken as f64 / 200_000.0;
        println!("{rate} of others are mistaken for held");
        assert!((0.0005..0.0014).contains(&rate), "{rate}, stated are 1,000,000 / 2^30 = 0.00093");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(bits in prop::collection::vec(0_u32..1 << 30, 0..300), narrow in 0_u32..31) {
            let all = sorted(bits.into_iter().map(|bits| bits >> narrow.min(29)));
            prop_assert_eq!(Summary::of(&all).read(), Some(all));
        }

        #[test]
        fn nonsense_is_no_list_and_no_panic(count in 0_usize..1000, rice in 0_u32..64, data in "[A-Za-z0-9+/]{0,64}") {
            let summary = Summary { count, rice, data };
            prop_assert!(summary.read().is_none_or(|all| all.len() == count));
        }
    }
}
