//! Configuration files: any text is read or refused with faults that can be shown.
#![cfg_attr(fuzzing, no_main)]

use oca::config::{Config, Machine};

fn target(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(faults) =
        Config::parse("fuzz.toml", text, Machine { descriptors: 20_000, maps: 65_530, backlog: 4096, now: None })
    {
        assert!(faults.count() > 0);
        assert!(!faults.to_string().is_empty());
    }
}

oca_fuzz::target!(
    target,
    corpus: &[
        "[serve]\nhttp = [\"127.0.0.1:1\"]\n[[storage.volume]]\npath = \"/v\"\ncapacity = \"1 GiB\"\n[[fill.source]]\nkind = \"origin\"\nurl = \"http://a/\"",
        "[serve]\nheader_timeout = \"5 s\"\n[catalog]\nadmission = \"always\"",
        include_str!("../../config/appliance.toml"),
    ],
    dictionary: &["[", "]", "[[", "=", "\"", "\n", "serve", "storage.volume", "1.5 TiB", "99999999999999999999 GiB", "0x10", "nan", "'''", "#", "\u{feff}"]
);
