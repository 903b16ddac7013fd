//! Manifests and their signatures: any bytes are read or refused with a reason, and what is read holds what it promises.
#![cfg_attr(fuzzing, no_main)]

use oca::{
    asset::AssetKey,
    control::{
        Limits, Refused, Signatures,
        manifest::{SourceRef, SourceRules, parse},
    },
};

fn target(data: &[u8]) {
    let limits = Limits { assets_max: 100, blocks_max: 100, purges_max: 100, ..Limits::default() };
    match parse(data, &limits, &SourceRules::default()) {
        Ok(manifest) => {
            let head = &manifest.head;
            assert!(head.not_before < head.expires && head.sequence > 0);
            for (rank, asset) in manifest.assets().iter().enumerate() {
                assert_eq!(manifest.find(&asset.key).map(|(found, _)| found), Some(rank));
                assert_eq!(AssetKey::from_record(asset.key.path(), asset.key.query()).as_ref(), Ok(&asset.key));
                if let Some(blocks) = asset.blocks() {
                    assert_eq!(blocks.sha256.len(), blocks.size.count(asset.length.0) as usize);
                }
                for choice in manifest.sources(asset) {
                    if let SourceRef::Url(template) = &choice.source {
                        let (url, base) = (template.url(&asset.key), template.base());
                        assert!(url.origin() == base.origin() && url.path().starts_with(base.path()), "{url}");
                    }
                }
            }
        }
        Err(refused) => told(&refused),
    }
    match Signatures::parse(data) {
        Ok(signatures) => assert_eq!(Signatures::parse(signatures.to_text().as_bytes()).as_ref(), Ok(&signatures)),
        Err(refused) => told(&refused),
    }
}

fn told(refused: &Refused) {
    assert!(!refused.what.is_empty() && refused.to_string().starts_with(refused.reason.label()));
}

oca_fuzz::target!(
    target,
    corpus: &[
        include_str!("../../fixtures/manifests/valid/small.json"),
        include_str!("../../fixtures/manifests/valid/everything.json"),
        include_str!("../../fixtures/manifests/valid/two-keys.json.sig"),
    ],
    dictionary: &[
        "{", "}", "[", "]", ",", ":", "\"", "\\u0061", "\\ud83d\\ude00", "18446744073709551616", "-1", "1e9", "null", "true", "../",
        "{path}", "\"key\"", "\"query\":\"a\",", "\"prefix\"", "\"sources\":[{\"name\":\"peer\"}],", "\u{1f}\u{8b}", "\u{feff}",
    ]
);
