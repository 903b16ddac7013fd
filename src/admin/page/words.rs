//! Numbers as people read them at a glance.

/// Bits per second.
pub fn bits(per_second: f64) -> String {
    scaled(per_second, 1000.0, &["b/s", "kb/s", "Mb/s", "Gb/s", "Tb/s"])
}

/// Bytes on a disk.
pub fn bytes(count: u64) -> String {
    scaled(count as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"])
}

fn scaled(mut value: f64, step: f64, units: &[&str]) -> String {
    let mut at = 0;
    // What would be shown as a whole step is shown as one of the next unit.
    while value >= step - 0.5 && at + 1 < units.len() {
        value /= step;
        at += 1;
    }
    let places = usize::from(value < 99.95 && at > 0);
    format!("{value:.places$} {}", units[at])
}

/// A count, in groups of three digits.
pub fn number(count: u64) -> String {
    let digits = count.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Seconds, in their two largest units.
pub fn duration(seconds: u64) -> String {
    let units = [("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)];
    let first = units.iter().position(|(_, long)| seconds >= *long).unwrap_or(units.len() - 1);
    let (unit, long) = units[first];
    let rest = units.get(first + 1).map(|(unit, shorter)| (seconds % long / shorter, unit));
    match rest {
        Some((count, other)) if count > 0 => format!("{} {unit} {count} {other}", seconds / long),
        _ => format!("{} {unit}", seconds / long),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, expected) in [(0.0, "0 b/s"), (999.0, "999 b/s"), (999.6, "1.0 kb/s"), (12_345_678.0, "12.3 Mb/s")]
        {
            assert_eq!(bits(value), expected);
        }
        assert_eq!(bits(2.5e15), "2500 Tb/s");
        for (value, expected) in [(0, "0 B"), (1023, "1023 B"), (10 << 30, "10.0 GiB"), (150 << 20, "150 MiB")] {
            assert_eq!(bytes(value), expected);
        }
        assert_eq!([0, 999, 1000, 1_234_567].map(number), ["0", "999", "1,000", "1,234,567"]);
        for (seconds, expected) in [(0, "0 s"), (61, "1 min 1 s"), (3600, "1 h"), (90_061, "1 d 1 h")] {
            assert_eq!(duration(seconds), expected);
        }
    }
}
