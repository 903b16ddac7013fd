//! Preconditions: any header value, against a known version.
#![cfg_attr(fuzzing, no_main)]

use http::{HeaderMap, HeaderValue, header};
use oca::{
    asset::{EntityTag, UnixTime, Validators},
    serve::conditions::{Precondition, evaluate, range_counts},
};

fn target(data: &[u8]) {
    let validators = Validators {
        etag: EntityTag::parse("\"a\""),
        last_modified: Some(UnixTime(784_111_777)),
        last_modified_is_strong: true,
    };
    let names = [
        header::IF_MATCH,
        header::IF_NONE_MATCH,
        header::IF_MODIFIED_SINCE,
        header::IF_UNMODIFIED_SINCE,
        header::IF_RANGE,
    ];
    let mut headers = HeaderMap::new();
    for (line, name) in data.split(|byte| *byte == b'\n').zip(names) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(name, value);
        }
    }
    let outcome = evaluate(&headers, &validators);
    if headers.get(header::IF_MATCH).is_some_and(|value| value == "\"a\"") {
        assert_ne!(outcome, Precondition::Failed, "the very tag matches");
    }
    range_counts(&headers, &validators);
    if let Some(tag) = std::str::from_utf8(data).ok().and_then(EntityTag::parse) {
        assert!(tag.weak_eq(&tag) && tag.strong_eq(&tag) != tag.is_weak());
    }
}

oca_fuzz::target!(
    target,
    corpus: &["\"a\"\nW/\"a\"\nSun, 06 Nov 1994 08:49:37 GMT", "*\n*", "\n\"a\", \"b,c\"", "\n\n\n\n\"a\""],
    dictionary: &["\"", "W/", ",", "*", "Sun, 06 Nov 1994 08:49:37 GMT", "\n", "GMT"]
);
