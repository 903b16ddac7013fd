//! Amounts and rates as people write them.

use std::{fmt, str::FromStr, time::Duration};

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteCount(pub u64);

/// A number of bits per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BitRate(pub u64);

/// Why a text is no amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// The number in front cannot be read.
    #[error("'{0}' does not begin with a number; write for example {1}")]
    Number(String, &'static str),
    /// There is only a number.
    #[error("'{0}' says no unit; add one of {1}")]
    NoUnit(String, &'static str),
    /// The unit is not known.
    #[error("'{0}' is not a known unit; use one of {1}")]
    Unit(String, &'static str),
    /// The amount does not fit in 64 bits.
    #[error("'{0}' is too large")]
    TooLarge(String),
}

const BYTE_UNITS: &[(&str, u64)] = &[
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("PiB", 1 << 50),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("PB", 1_000_000_000_000_000),
];

/// Rates are of bits where the unit says `bps` or `bit/s`, of bytes where it says `B/s`.
const RATE_UNITS: &[(&str, u64)] = &[
    ("bps", 1),
    ("kbps", 1_000),
    ("Mbps", 1_000_000),
    ("Gbps", 1_000_000_000),
    ("Tbps", 1_000_000_000_000),
    ("bit/s", 1),
    ("kbit/s", 1_000),
    ("Mbit/s", 1_000_000),
    ("Gbit/s", 1_000_000_000),
    ("kb/s", 1_000),
    ("Mb/s", 1_000_000),
    ("Gb/s", 1_000_000_000),
    ("B/s", 8),
    ("KiB/s", 8 << 10),
    ("MiB/s", 8 << 20),
    ("GiB/s", 8 << 30),
    ("kB/s", 8_000),
    ("MB/s", 8_000_000),
    ("GB/s", 8_000_000_000),
];

const TIME_UNITS: &[(&str, u64)] = &[("ms", 1), ("s", 1_000), ("min", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Reads a length of time: "500 ms", "30 s", "2 min", "1.5 h", "7 d".
///
/// # Errors
/// See [`UnitError`].
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    parse(text, TIME_UNITS, "ms, s, min, h, d", "\"30 s\"").map(Duration::from_millis)
}

/// Writes a length of time so that it reads back.
pub fn show_duration(time: Duration) -> String {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let unit = TIME_UNITS
        .iter()
        .rev()
        .find(|(_, scale)| millis >= *scale && millis.is_multiple_of(*scale))
        .unwrap_or(&TIME_UNITS[0]);
    format!("{} {}", millis / unit.1, unit.0)
}

fn parse(text: &str, units: &[(&str, u64)], names: &'static str, example: &'static str) -> Result<u64, UnitError> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(text.len());
    let (number, unit) = (text[..split].replace('_', ""), text[split..].trim());
    let scale = units.iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale);
    if number.is_empty() {
        return Err(UnitError::Number(text.into(), example));
    }
    if unit.is_empty() {
        return Err(UnitError::NoUnit(text.into(), names));
    }
    let scale = scale.ok_or_else(|| UnitError::Unit(unit.into(), names))?;
    let too_large = || UnitError::TooLarge(text.into());
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(scale).ok_or_else(too_large);
    }
    // Fractions ("1.5 TiB") are computed in integers, so that what is shown is what was written.
    let (whole, fraction) = number.split_once('.').ok_or_else(too_large)?;
    let digits = u32::try_from(fraction.len())
        .ok()
        .filter(|digits| *digits <= 9)
        .ok_or_else(|| UnitError::Number(text.into(), example))?;
    let parsed = |part: &str| part.parse::<u64>().map_err(|_| UnitError::Number(text.into(), example));
    let (whole, fraction) = (parsed(whole)?, parsed(fraction)?);
    let part = u128::from(fraction) * u128::from(scale) / 10_u128.pow(digits);
    u64::try_from(u128::from(whole) * u128::from(scale) + part).map_err(|_| too_large())
}

/// Largest unit that leaves no fraction, so that what is shown reads back as the same value.
fn show(value: u64, units: &[(&str, u64)], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (name, scale) =
        units.iter().rev().find(|(_, scale)| value >= *scale && value.is_multiple_of(*scale)).unwrap_or(&units[0]);
    write!(f, "{} {name}", value / scale)
}

impl FromStr for ByteCount {
    type Err = UnitError;

    /// "10 GiB", "1.5TB", "4096 B". A bare number is refused: what it counts would be a guess.
    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text, BYTE_UNITS, "B, KiB, MiB, GiB, TiB, PiB, kB, MB, GB, TB, PB", "\"10 GiB\"").map(Self)
    }
}

impl FromStr for BitRate {
    type Err = UnitError;

    /// "40 Gbps", "20 MB/s" (bytes), "500 kbit/s".
    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(
            text,
            RATE_UNITS,
            "bps, kbps, Mbps, Gbps, Tbps, kbit/s, Mbit/s, Gbit/s, B/s, KiB/s, MiB/s, GiB/s, kB/s, MB/s, GB/s",
            "\"40 Gbps\"",
        )
        .map(Self)
    }
}

impl BitRate {
    /// Whole bytes per second.
    pub fn bytes_per_second(self) -> u64 {
        self.0 / 8
    }
}

impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(self.0, &BYTE_UNITS[..6], f)
    }
}

impl fmt::Display for BitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(self.0, &RATE_UNITS[..5], f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_as_people_write_them() {
        assert_eq!("10 GiB".parse(), Ok(ByteCount(10 << 30)));
        assert_eq!("1.5TB".parse(), Ok(ByteCount(1_500_000_000_000)));
        assert_eq!("1_000 B".parse(), Ok(ByteCount(1_000)));
        assert_eq!("40 Gbps".parse(), Ok(BitRate(40_000_000_000)));
        assert_eq!("20 MB/s".parse(), Ok(BitRate(160_000_000)));
    }

    #[test]
    fn a_guess_is_refused_with_what_to_write() {
        for bad in ["", "GiB", "10", "10 gib", "-1 B", "1..2 B", "1.2.3 GiB", "99999999999 GiB", "1e3 B"] {
            assert!(bad.parse::<ByteCount>().is_err(), "{bad}");
        }
        let message = "10 gib".parse::<ByteCount>().expect_err("unknown unit").to_string();
        assert!(message.contains("gib") && message.contains("GiB"), "{message}");
    }

    #[test]
    fn times_read_as_people_write_them() {
        assert_eq!(parse_duration("1.5 h"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert!(parse_duration("5 m").is_err(), "minutes or metres");
        for millis in [0, 1, 999, 1_000, 60_000, 90_000, 86_400_000] {
            let time = Duration::from_millis(millis);
            assert_eq!(parse_duration(&show_duration(time)), Ok(time));
        }
    }

    #[test]
    fn what_is_shown_reads_back() {
        for count in [0, 1, 1023, 1024, 1 << 20, 10 << 30, 1_500_000_000_000, u64::MAX] {
            assert_eq!(ByteCount(count).to_string().parse(), Ok(ByteCount(count)));
            assert_eq!(BitRate(count).to_string().parse(), Ok(BitRate(count)));
        }
    }
}
