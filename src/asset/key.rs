//! What an asset is called.

use std::fmt;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

/// Longest key in bytes after decoding; URLs of video services stay far below.
pub const KEY_BYTES_MAX: usize = 1024;

/// Everything in a path that has to be escaped when a source is asked for it (RFC 3986, 3.3).
const PATH_ESCAPES: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// Name of an asset: the request's path without its leading slash, decoded, and the query where that is part of the key.
///
/// Invariant: 1 to [`KEY_BYTES_MAX`] bytes; no control character, no backslash, no empty, `.` or `..` segment in the path (one
/// trailing slash is allowed): joined to a folder it cannot leave it, written to a log it cannot forge a line.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AssetKey {
    text: Box<str>,
    path_len: u16,
}

/// Why a request's target is no key. The text is for the client: it names the rule, never a path of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Nothing after the slash.
    #[error("the path names no asset")]
    Empty,
    /// Longer than [`KEY_BYTES_MAX`].
    #[error("the path is longer than {KEY_BYTES_MAX} bytes")]
    TooLong,
    /// Percent-encoding that is cut short, not hexadecimal, not UTF-8, or an encoded slash.
    #[error("the path's percent-encoding is not valid")]
    Encoding,
    /// A control character or a backslash.
    #[error("the path holds a character that is not allowed")]
    Character,
    /// An empty, `.` or `..` segment.
    #[error("the path holds an empty, '.' or '..' segment")]
    Segment,
}

impl AssetKey {
    /// Key of a request's path as it stands on the wire (percent-encoded, with its leading slash), and of its query where
    /// the configuration makes that part of the key.
    pub fn parse(path: &str, query: Option<&str>) -> Result<Self, KeyError> {
        let encoded = path.strip_prefix('/').unwrap_or(path);
        if encoded.is_empty() {
            return Err(KeyError::Empty);
        }
        // Escaping makes at most three bytes of one.
        if encoded.len() > 3 * KEY_BYTES_MAX {
            return Err(KeyError::TooLong);
        }
        if encoded.contains('%') { Self::checked(&decode(encoded)?, query) } else { Self::checked(encoded, query) }
    }

    /// Key read back from the catalog's own record, checked again in full.
    pub fn from_record(path: &str, query: Option<&str>) -> Result<Self, KeyError> {
        Self::checked(path, query)
    }

    fn checked(plain: &str, query: Option<&str>) -> Result<Self, KeyError> {
        if plain.is_empty() {
            return Err(KeyError::Empty);
        }
        if plain.len() + query.map_or(0, |q| q.len() + 1) > KEY_BYTES_MAX {
            return Err(KeyError::TooLong);
        }
        check_path(plain)?;
        let path_len = u16::try_from(plain.len()).map_err(|_| KeyError::TooLong)?;
        let Some(query) = query else { return Ok(Self { text: plain.into(), path_len }) };
        if query.bytes().any(|b| !(0x21..=0x7e).contains(&b) || b == b'\\') {
            return Err(KeyError::Character);
        }
        Ok(Self { text: format!("{plain}?{query}").into(), path_len })
    }

    /// The whole key: decoded path, then `?query` where that is part of it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The decoded path, without leading slash.
    pub fn path(&self) -> &str {
        &self.text[..usize::from(self.path_len)]
    }

    /// The query as it was sent, where it is part of the key.
    pub fn query(&self) -> Option<&str> {
        self.text.get(usize::from(self.path_len) + 1..)
    }

    /// Path and query as they stand in a URL below a source's address: percent-encoded, without leading slash.
    pub fn to_url_path(&self) -> String {
        let mut url = utf8_percent_encode(self.path(), PATH_ESCAPES).to_string();
        if let Some(query) = self.query() {
            url.push('?');
            url.push_str(query);
        }
        url
    }

    /// The identity under which the catalog and the volumes know it.
    pub fn id(&self) -> AssetId {
        // The length first, so that no path with a question mark in it equals a path with a query.
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.path_len.to_le_bytes());
        hasher.update(self.text.as_bytes());
        AssetId(*hasher.finalize().as_bytes())
    }
}

/// The beginning of assets' paths, decoded: up to a slash, or in the middle of a name. The empty one begins all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPrefix(Box<str>);

impl PathPrefix {
    /// A prefix as it stands in a URL: percent-encoded, with its leading slash.
    ///
    /// # Errors
    /// No path that a key can have begins so.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let encoded = text.strip_prefix('/').ok_or(KeyError::Segment)?;
        if encoded.len() > 3 * KEY_BYTES_MAX {
            return Err(KeyError::TooLong);
        }
        Self::decoded(&decode(encoded)?)
    }

    /// A prefix as it is written where nothing is percent-encoded: decoded, without leading slash.
    ///
    /// # Errors
    /// No path that a key can have begins so.
    pub fn decoded(plain: &str) -> Result<Self, KeyError> {
        // What it would be with one more character.
        check_path(&format!("{plain}x"))?;
        if plain.len() > KEY_BYTES_MAX { Err(KeyError::TooLong) } else { Ok(Self(plain.into())) }
    }

    /// Without the leading slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// In one pass over the bytes, since every request comes through here.
fn check_path(plain: &str) -> Result<(), KeyError> {
    // Beyond ASCII, the bytes of a control character do not tell it from others.
    if !plain.is_ascii() && plain.chars().any(char::is_control) {
        return Err(KeyError::Character);
    }
    let bytes = plain.as_bytes();
    let (mut start, mut dotted) = (0, false);
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'/' => {
                dotted |= is_no_name(&bytes[start..at]);
                start = at + 1;
            }
            0..0x20 | 0x7f | b'\\' => return Err(KeyError::Character),
            _ => {}
        }
    }
    // Nothing after the last slash is the one trailing slash that is allowed, unless there is nothing before it.
    dotted |= is_no_name(&bytes[start..]) && (start != bytes.len() || start <= 1);
    if dotted { Err(KeyError::Segment) } else { Ok(()) }
}

fn is_no_name(segment: &[u8]) -> bool {
    matches!(segment, b"" | b"." | b"..")
}

/// Decodes percent-encoding strictly: `%2F` is refused, since it would make two names of one asset.
fn decode(encoded: &str) -> Result<String, KeyError> {
    let bytes = encoded.as_bytes();
    for (at, _) in bytes.iter().enumerate().filter(|(_, b)| **b == b'%') {
        let hex = bytes.get(at + 1..at + 3).ok_or(KeyError::Encoding)?;
        if !hex.iter().all(u8::is_ascii_hexdigit) || hex.eq_ignore_ascii_case(b"2f") {
            return Err(KeyError::Encoding);
        }
    }
    Ok(percent_decode_str(encoded).decode_utf8().map_err(|_| KeyError::Encoding)?.into_owned())
}

impl fmt::Display for AssetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// BLAKE3 of an asset's key: the name of its file and its place in the catalog.
///
/// The digest is as wide as it is so that nobody who chooses keys can make two of them meet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AssetId([u8; 32]);

impl AssetId {
    /// Wraps an id read back from a record or a file name.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Parses 64 lower-case hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 64 || digits.iter().any(|d| !matches!(d, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for AssetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for AssetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_cannot_leave_its_folder() {
        for path in ["/../a", "/a/../b", "/%2e%2e/a", "/a/./b", "//a", "/a//b", "/..", "/.", "/a/.."] {
            assert_eq!(AssetKey::parse(path, None), Err(KeyError::Segment), "{path}");
        }
        for path in ["/a%2fb", "/a%2Fb", "/a%", "/a%4", "/a%zz", "/%ff"] {
            assert_eq!(AssetKey::parse(path, None), Err(KeyError::Encoding), "{path}");
        }
        for path in ["/a%00b", "/a%0ab", "/a\\b", "/a%5cb", "/a%7f", "/a%c2%85"] {
            assert_eq!(AssetKey::parse(path, None), Err(KeyError::Character), "{path}");
        }
        assert_eq!(AssetKey::parse("/", None), Err(KeyError::Empty));
        assert_eq!(AssetKey::parse(&format!("/{}", "a".repeat(KEY_BYTES_MAX + 1)), None), Err(KeyError::TooLong));
    }

    #[test]
    fn the_one_pass_says_what_the_rules_say() {
        let pieces = ["/", ".", "..", "a", "é", "\\", "\u{1}", "\u{7f}", "\u{85}", "b.c", "//"];
        for number in 0..pieces.len().pow(4) {
            let digits = (0..4_u32).map(|place| number / pieces.len().pow(place) % pieces.len());
            let path: String = digits.map(|digit| pieces[digit]).collect();
            let segments: Vec<_> = path.strip_suffix('/').unwrap_or(&path).split('/').collect();
            let expected = if path.chars().any(|c| c.is_control() || c == '\\') {
                Err(KeyError::Character)
            } else if segments.iter().any(|segment| matches!(*segment, "" | "." | "..")) {
                Err(KeyError::Segment)
            } else {
                Ok(path.as_str())
            };
            let key = AssetKey::from_record(&path, None);
            assert_eq!(key.as_ref().map(AssetKey::as_str).map_err(|err| *err), expected, "{path:?}");
        }
    }

    #[test]
    fn a_prefix_begins_keys_and_nothing_else() {
        for (text, plain) in [("/", ""), ("/a", "a"), ("/a/", "a/"), ("/a%20b/%C3%A9", "a b/é")] {
            assert_eq!(PathPrefix::parse(text).as_ref().map(PathPrefix::as_str), Ok(plain), "{text}");
        }
        for (text, why) in [
            ("", KeyError::Segment),
            ("a/", KeyError::Segment),
            ("//", KeyError::Segment),
            ("/a/../b", KeyError::Segment),
            ("/a%2fb", KeyError::Encoding),
            ("/a%0a", KeyError::Character),
        ] {
            assert_eq!(PathPrefix::parse(text), Err(why), "{text}");
        }
        assert_eq!(PathPrefix::parse(&format!("/{}", "a".repeat(KEY_BYTES_MAX + 1))), Err(KeyError::TooLong));
    }

    #[test]
    fn every_way_to_write_one_path_is_one_key() {
        let key = AssetKey::parse("/a%20%62.mp4", None).expect("valid");
        assert_eq!(key.as_str(), "a b.mp4");
        assert_eq!(key, AssetKey::parse("/%61 b.mp4", None).expect("valid"));
        assert_eq!(key.to_url_path(), "a%20b.mp4");
        assert_eq!(AssetKey::from_record(key.path(), None), Ok(key));
    }

    #[test]
    fn a_question_mark_in_a_path_is_not_a_query() {
        let path = AssetKey::parse("/a%3Fb", None).expect("valid");
        let query = AssetKey::parse("/a", Some("b")).expect("valid");
        assert_eq!(path.as_str(), query.as_str());
        assert_ne!(path, query);
        assert_ne!(path.id(), query.id());
        assert_eq!(path.to_url_path(), "a%3Fb");
        assert_eq!(query.to_url_path(), "a?b");
    }

    #[test]
    fn a_key_of_any_characters_reads_back_from_its_record() {
        for path in [format!("/{}", "é".repeat(500)), "/a{b}|c\"d.mp4".into(), format!("/{}", "%C3%A9".repeat(500))] {
            let key = AssetKey::parse(&path, None).expect("valid");
            assert_eq!(AssetKey::from_record(key.path(), key.query()), Ok(key));
        }
    }

    #[test]
    fn an_id_reads_back_from_its_file_name() {
        let id = AssetKey::parse("/a", None).expect("valid").id();
        assert_eq!(AssetId::from_hex(&id.to_string()), Some(id));
        assert_eq!(AssetId::from_hex("00"), None);
        assert_eq!(AssetId::from_hex(&id.to_string().to_uppercase()), None);
    }
}
