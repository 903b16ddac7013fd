//! What sources send: heads of any shape are judged without a panic, and no part that was not asked for is taken.
#![cfg_attr(fuzzing, no_main)]

use http::{HeaderMap, HeaderName, HeaderValue};

fn target(data: &[u8]) {
    let (first, rest) = data.split_at(data.len().min(2));
    let status = first.iter().fold(0_u16, |status, byte| status.wrapping_mul(17).wrapping_add(u16::from(*byte)));
    let status = [200, 206, 304, 404, 416, 503, status][usize::from(status) % 7];
    let mut headers = HeaderMap::new();
    for line in rest.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(&line[colon + 1..]));
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let asked = 1000..2000;
    if let Some(part) = oca::fill::judge_untrusted(status, &headers, asked.clone()) {
        assert!(part.start() == asked.start && part.end() <= asked.end, "{part:?} was not asked for");
    }
}

oca_fuzz::target!(
    target,
    corpus: &[
        "\0\x01content-range:bytes 1000-1999/5000\ncontent-length:1000\netag:\"a\"\ncache-control:max-age=5",
        "\0\0content-length:5\nlast-modified:Sun, 06 Nov 1994 08:49:37 GMT\nexpires:0\nvary:*",
        "\0\x04content-range:bytes */5000",
    ],
    dictionary: &["content-range:", "bytes ", "/", "*", "-", "18446744073709551615", "max-age=", "s-maxage=", "no-store", ",", "\n", "age:", "\""]
);
