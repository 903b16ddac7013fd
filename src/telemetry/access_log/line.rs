//! One line of the access log: what it says of a response, and how.

use std::{
    io::{self, Write as _},
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use super::AccessFormat;

/// Room for the longest line there is: each byte of five words as an escape, and what stands around them.
pub(super) const LINE_MAX: usize = 6 * 5 * WORD_MAX + 1024;

/// What is logged of one response.
#[derive(Clone, Debug)]
pub struct Record {
    /// When it ended.
    pub unix_millis: u64,
    /// Who asked.
    pub client: SocketAddr,
    /// What the request said.
    pub words: Words,
    /// In which protocol.
    pub protocol: &'static str,
    /// With what result.
    pub status: u16,
    /// Bytes of the body handed out.
    pub bytes: u64,
    /// From the request's head to the end of the body, in microseconds.
    pub duration_us: u64,
    /// From the request's head to the response's, in microseconds.
    pub first_byte_us: u64,
    /// What the cache did.
    pub outcome: &'static str,
    /// Why it was not allowed.
    pub denied: Option<&'static str>,
    /// Number of the request, unique while the process runs.
    pub request_id: u64,
}

/// Longest method, target, range, user agent or referer in the log, in bytes.
pub(super) const WORD_MAX: usize = 512;

/// What is logged of a request's own words, as it was sent, each cut to [`WORD_MAX`] bytes. In one allocation: a worker makes
/// one for every request.
#[derive(Clone, Debug)]
pub struct Words {
    text: Vec<u8>,
    /// Where each word ends; `None` for what was not said.
    ends: [Option<u16>; 5],
}

impl Words {
    /// Takes down method and target, `Range`, `User-Agent` and `Referer`.
    pub fn new((method, target): (&str, &str), fields: [Option<&[u8]>; 3]) -> Self {
        let words = [Some(method.as_bytes()), Some(target.as_bytes()), fields[0], fields[1], fields[2]];
        let mut text =
            Vec::with_capacity(words.iter().flatten().map(|word| word.len()).sum::<usize>().min(5 * WORD_MAX));
        let mut ends = [None; 5];
        for (end, word) in ends.iter_mut().zip(words) {
            if let Some(word) = word {
                text.extend_from_slice(cut(word));
                *end = u16::try_from(text.len()).ok();
            }
        }
        Self { text, ends }
    }

    fn word(&self, at: usize) -> Option<&[u8]> {
        let end = usize::from(self.ends[at]?);
        let start = self.ends[..at].iter().rev().find_map(|end| *end).map_or(0, usize::from);
        Some(&self.text[start..end])
    }
}

/// At most [`WORD_MAX`] bytes; no character of UTF-8 is cut in two.
fn cut(word: &[u8]) -> &[u8] {
    if word.len() <= WORD_MAX {
        return word;
    }
    let is_within = |at: usize| word.get(at).is_some_and(|byte| byte & 0xc0 == 0x80);
    let end = (WORD_MAX - 3..=WORD_MAX).rev().find(|at| !is_within(*at)).unwrap_or(WORD_MAX);
    &word[..end]
}

/// Adds a line to `text`.
pub(super) fn write_line(text: &mut Vec<u8>, record: &Record, format: AccessFormat) {
    let written = match format {
        AccessFormat::Json => write_json(text, record),
        AccessFormat::Combined => write_combined(text, record),
    };
    debug_assert!(written.is_ok(), "writing to memory cannot fail");
    text.push(b'\n');
}

/// By hand: a serializer that knows no names takes three times as long, and this is done for every response.
fn write_json(text: &mut Vec<u8>, record: &Record) -> io::Result<()> {
    let words = &record.words;
    text.reserve(512);
    number(text, b"{\"time_ms\":", record.unix_millis);
    text.extend_from_slice(b",\"client\":\"");
    address(text, record.client.ip())?;
    text.push(b'"');
    string(text, b",\"method\":", words.word(0));
    string(text, b",\"target\":", words.word(1));
    string(text, b",\"protocol\":", Some(record.protocol.as_bytes()));
    number(text, b",\"status\":", record.status.into());
    number(text, b",\"bytes\":", record.bytes);
    number(text, b",\"duration_us\":", record.duration_us);
    number(text, b",\"first_byte_us\":", record.first_byte_us);
    string(text, b",\"cache\":", Some(record.outcome.as_bytes()));
    string(text, b",\"denied\":", record.denied.map(str::as_bytes));
    string(text, b",\"range\":", words.word(2));
    string(text, b",\"user_agent\":", words.word(3));
    string(text, b",\"referer\":", words.word(4));
    text.extend_from_slice(b",\"request_id\":\"");
    text.extend_from_slice(&hexadecimal(record.request_id));
    text.extend_from_slice(b"\"}");
    Ok(())
}

/// `label`: what stands before the value.
fn number(text: &mut Vec<u8>, label: &[u8], value: u64) {
    text.extend_from_slice(label);
    text.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// As `Display` has it, which takes five times as long.
fn address(text: &mut Vec<u8>, address: IpAddr) -> io::Result<()> {
    let IpAddr::V4(address) = address else { return write!(text, "{address}") };
    for (at, octet) in address.octets().into_iter().enumerate() {
        if at > 0 {
            text.push(b'.');
        }
        text.extend_from_slice(itoa::Buffer::new().format(octet).as_bytes());
    }
    Ok(())
}

/// Nothing, where there is none.
fn string(text: &mut Vec<u8>, label: &[u8], value: Option<&[u8]>) {
    let Some(value) = value else { return };
    text.extend_from_slice(label);
    // All are looked at, which the processor does many at a time.
    let is_plain = |plain, byte: &u8| plain & (0x20..0x7f).contains(byte) & (*byte != b'"') & (*byte != b'\\');
    if value.iter().fold(true, is_plain) {
        text.push(b'"');
        text.extend_from_slice(value);
        text.push(b'"');
    } else {
        quote(text, &String::from_utf8_lossy(value));
    }
}

/// A string of JSON in printable ASCII: who looks at the log in a terminal sees neither escapes of one byte (C1) nor text that runs
/// backwards, which JSON would let through.
fn quote(text: &mut Vec<u8>, value: &str) {
    text.push(b'"');
    for unit in value.encode_utf16() {
        match u8::try_from(unit) {
            Ok(byte @ (b'"' | b'\\')) => text.extend_from_slice(&[b'\\', byte]),
            Ok(byte @ 0x20..0x7f) => text.push(byte),
            _ => {
                let [high, low] = unit.to_be_bytes().map(|byte| hex(byte, b"0123456789abcdef"));
                text.extend_from_slice(&[b'\\', b'u', high[0], high[1], low[0], low[1]]);
            }
        }
    }
    text.push(b'"');
}

/// By a table: whoever sends nothing but what has to be escaped costs no more than others.
fn hex(byte: u8, digits: &[u8; 16]) -> [u8; 2] {
    [digits[usize::from(byte >> 4)], digits[usize::from(byte & 0xf)]]
}

/// A request's number as it stands in the log.
pub fn hexadecimal(number: u64) -> [u8; 16] {
    let mut text = [0; 16];
    // By hand: how well the ways of arrays are inlined changes with the rest of the crate.
    for (digits, byte) in text.chunks_exact_mut(2).zip(number.to_be_bytes()) {
        digits.copy_from_slice(&hex(byte, b"0123456789abcdef"));
    }
    text
}

fn write_combined(text: &mut Vec<u8>, record: &Record) -> io::Result<()> {
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(record.unix_millis);
    // "Sun, 06 Nov 1994 08:49:37 GMT" holds what the combined format wants in another order; always UTC.
    let date = httpdate::fmt_http_date(time);
    let time = match (date.get(5..7), date.get(8..11), date.get(12..16), date.get(17..25)) {
        (Some(day), Some(month), Some(year), Some(clock)) => [day, "/", month, "/", year, ":", clock, " +0000"],
        _ => ["-", "", "", "", "", "", "", ""],
    };
    let words = &record.words;
    text.reserve(512);
    address(text, record.client.ip())?;
    text.extend_from_slice(b" - - [");
    time.iter().for_each(|part| text.extend_from_slice(part.as_bytes()));
    text.extend_from_slice(b"] \"");
    for word in [words.word(0), words.word(1)] {
        escaped(text, &String::from_utf8_lossy(word.unwrap_or_default()));
        text.push(b' ');
    }
    text.extend_from_slice(record.protocol.as_bytes());
    number(text, b"\" ", record.status.into());
    number(text, b" ", record.bytes);
    for word in [words.word(4), words.word(3)] {
        text.extend_from_slice(b" \"");
        escaped(text, &String::from_utf8_lossy(word.unwrap_or(b"-")));
        text.push(b'"');
    }
    Ok(())
}

/// Quotes, backslashes and everything that is not printable ASCII as `\xHH`: nobody can end the field or forge a line.
fn escaped(text: &mut Vec<u8>, value: &str) {
    for byte in value.bytes() {
        match byte {
            b'"' | b'\\' | 0..=0x1f | 0x7f.. => {
                let [high, low] = hex(byte, b"0123456789ABCDEF");
                text.extend_from_slice(&[b'\\', b'x', high, low]);
            }
            _ => text.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_kept_apart_and_cut() {
        let long = "x".repeat(WORD_MAX + 1);
        let words = Words::new(("GET", &long), [None, Some(b"a\xff"), Some(b"")]);
        assert_eq!((words.word(0), words.word(1).map(<[u8]>::len)), (Some(&b"GET"[..]), Some(WORD_MAX)));
        assert_eq!((words.word(2), words.word(3), words.word(4)), (None, Some(&b"a\xff"[..]), Some(&b""[..])));
        let split = format!("{}\u{20ac}", "x".repeat(WORD_MAX - 2));
        assert_eq!(Words::new(("GET", &split), [None; 3]).word(1), Some("x".repeat(WORD_MAX - 2).as_bytes()));
        assert_eq!(hexadecimal(0x1f), *b"000000000000001f");
    }

    #[test]
    fn what_is_not_printable_is_escaped_by_its_number() {
        let value = "a\u{1}\u{7f}\u{20ac}\u{1f600}\"\\";
        let (mut json, mut combined) = (Vec::new(), Vec::new());
        quote(&mut json, value);
        assert_eq!(String::from_utf8_lossy(&json), r#""a\u0001\u007f\u20ac\ud83d\ude00\"\\""#);
        escaped(&mut combined, value);
        assert_eq!(String::from_utf8_lossy(&combined), r"a\x01\x7F\xE2\x82\xAC\xF0\x9F\x98\x80\x22\x5C");
    }

    #[test]
    fn addresses_are_written_as_everywhere() {
        for client in ["0.0.0.0", "255.10.9.100", "2001:db8::1", "::ffff:192.0.2.1"] {
            let mut text = Vec::new();
            address(&mut text, client.parse().expect("an address")).expect("written");
            assert_eq!(text, client.as_bytes());
        }
    }
}
