//! Bodies in gzip (RFC 1952), for who says that it reads them (RFC 9110, 12.5.3).

use std::io::Write as _;

use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, header::ACCEPT_ENCODING};

/// Bytes below which it is not worth it.
const WORTH_IT: usize = 512;

/// Whether `headers` ask for it: in a request, of its response; in a response, of later requests (RFC 9110, 15.5.16).
pub fn is_accepted(headers: &HeaderMap) -> bool {
    let fields = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    fields.flat_map(|field| field.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        // A weight of zero says no.
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        named && weight.is_none_or(|weight| weight.trim().parse::<f32>().is_ok_and(|weight| weight > 0.0))
    })
}

/// `bytes` compressed; `None` where that gains nothing. Blocks for some 20 ms per megabyte.
pub fn compressed(bytes: &[u8]) -> Option<Vec<u8>> {
    if bytes.len() < WORTH_IT {
        return None;
    }
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 2), Compression::fast());
    encoder.write_all(bytes).ok()?;
    encoder.finish().ok().filter(|compressed| compressed.len() < bytes.len())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use http::HeaderValue;

    use super::*;

    #[test]
    fn who_reads_it_says_so() {
        for (says, accepted) in [
            ("gzip", true),
            ("br, GZIP;q=0.5", true),
            ("gzip; q=1.0", true),
            ("gzip;q=0", false),
            ("gzip;q=0.000, zstd", false),
            ("identity", false),
            ("*", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(says))]);
            assert_eq!(is_accepted(&headers), accepted, "{says}");
        }
        assert!(!is_accepted(&HeaderMap::new()));
    }

    #[test]
    fn what_is_compressed_is_smaller_and_the_same() {
        let bytes = b"{\"member\": 17}, ".repeat(100);
        let small = compressed(&bytes).expect("worth it");
        assert!(small.len() * 4 < bytes.len());
        let mut read = Vec::new();
        flate2::read::GzDecoder::new(&small[..]).read_to_end(&mut read).expect("whole");
        assert_eq!(read, bytes);
        assert_eq!(compressed(&bytes[..500]), None);
    }
}
