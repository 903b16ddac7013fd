//! Request paths: a key can be joined to a folder, written to a log and asked of a source, and reads back the same.
#![cfg_attr(fuzzing, no_main)]

use oca::asset::{AssetKey, KEY_BYTES_MAX};

fn target(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (path, query) = text.split_once('?').map_or((text, None), |(path, query)| (path, Some(query)));
    let Ok(key) = AssetKey::parse(path, query) else { return };
    assert!(key.as_str().len() <= KEY_BYTES_MAX && !key.as_str().is_empty());
    assert!(!key.as_str().contains(|c: char| c.is_control() || c == '\\'));
    assert!(!key.path().starts_with('/'));
    let segments = key.path().strip_suffix('/').unwrap_or(key.path()).split('/');
    assert!(segments.into_iter().all(|segment| !matches!(segment, "" | "." | "..")));
    if let Ok(again) = AssetKey::from_record(key.path(), key.query()) {
        assert_eq!(again.id(), key.id());
    }
    let url = key.to_url_path();
    assert!(url.is_ascii() || key.query().is_some(), "{url}");
}

oca_fuzz::target!(
    target,
    corpus: &["/a/b.mp4", "/a%20b?x=1", "/%e4%bd%a0/", "/../a"],
    dictionary: &["%2e", "%2f", "%00", "..", "/", "//", "?", "%", "\\", "%c2%85", "#"]
);
