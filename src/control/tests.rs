use std::{collections::BTreeMap, fs, path::PathBuf, time::Instant};

use super::{
    manifest::{KINDS, Manifest, SourceRules, parse},
    *,
};
use crate::asset::{AssetKey, ByteCount, Sha256, UnixTime};

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/manifests").join(name)
}

/// As `fixtures/manifests/make.py` and `box.toml` have it.
fn judged(manifest: &[u8], signatures: Option<&[u8]>) -> Result<Manifest, Refused> {
    let mut keys = TrustedKeys::new(1, &["2032-lost".into()]);
    keys.add_file(&folder("keys.json")).expect("keys");
    let signatures = signatures.map(Signatures::parse).transpose()?.unwrap_or_default();
    let mut hasher = Hasher::default();
    hasher.update(manifest);
    keys.verify(&hasher.finish(), &signatures)?;
    let limits = Limits { assets_max: 100, expanded_max: ByteCount(256 << 10), ..Limits::default() };
    let below = vec!["https://origin.example/video/".parse().expect("an address")];
    let rules = SourceRules { names: Some(vec!["origin-0".into()]), below: Some(below) };
    let manifest = parse(manifest, &limits, &rules)?;
    let identity =
        Identity { appliance: "box-1".into(), site: "ams1".into(), groups: vec!["video".into(), "europe".into()] };
    let highest = Highest { sequence: 100, digest: Sha256::new([0; 32]), received: UnixTime(0) };
    judge(&manifest, &identity, Some(&highest), UnixTime(2_000_000_000))?;
    Ok(manifest)
}

/// Every manifest of a folder with its signatures, by name.
fn fixtures(name: &str) -> BTreeMap<String, (Vec<u8>, Option<Vec<u8>>)> {
    let files = fs::read_dir(folder(name)).expect("a folder").map(|entry| entry.expect("listed").path());
    let manifests = files.filter(|path| path.extension().is_some_and(|extension| extension != "sig"));
    let read = |path: PathBuf| {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let signatures = fs::read(path.with_file_name(format!("{name}.sig"))).ok();
        (name, (fs::read(path).expect("readable"), signatures))
    };
    manifests.map(read).collect()
}

#[test]
fn every_refused_manifest_is_refused_for_the_reason_in_its_name() {
    let (mut told, mut faults) = (std::collections::BTreeSet::new(), Vec::new());
    for (name, (manifest, signatures)) in fixtures("refused") {
        let wanted = name.split('.').next().expect("a name").split("--").next().expect("a reason");
        let begin = Instant::now();
        let reason = judged(&manifest, signatures.as_deref()).map_or_else(|refused| refused.reason.label(), |_| "none");
        if reason != wanted || begin.elapsed().as_secs_f64() > 1.0 {
            faults.push(format!("{name}: {reason} in {:?}", begin.elapsed()));
        }
        told.insert(reason);
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    // What is told of a publication and of our own disk, not of a manifest.
    let elsewhere = [Reason::Pointer, Reason::Fetch, Reason::State].map(Reason::label);
    let untold: Vec<_> =
        Reason::ALL.iter().map(|reason| reason.label()).filter(|label| !told.contains(label)).collect();
    assert_eq!(untold, elsewhere, "each reason has an example");
}

#[test]
fn every_valid_manifest_is_accepted() {
    let fixtures = fixtures("valid");
    assert!(fixtures.len() >= 10);
    for (name, (manifest, signatures)) in fixtures {
        if let Err(refused) = judged(&manifest, signatures.as_deref()) {
            panic!("{name}: {refused}");
        }
    }
}

#[test]
fn everything_that_a_manifest_says_is_understood() {
    let (plain, signatures) = &fixtures("valid")["everything.json"];
    let manifest = judged(plain, signatures.as_deref()).expect("valid");
    let key = |path: &str, query| AssetKey::from_record(path, query).expect("a key");
    let head = &manifest.head;
    assert_eq!((head.sequence, head.not_before, head.expires), (101, UnixTime(1_999_996_400), UnixTime(2_000_086_400)));
    assert_eq!(manifest.assets().len(), 3);
    let [first, second, third] = [0, 1, 2].map(|rank| &manifest.assets()[rank]);
    assert_eq!(
        (&first.key, first.length, first.popularity),
        (&key("films/1.mp4", None), ByteCount(1_048_577), Some(90_000))
    );
    let validators = first.validators().expect("it has some");
    assert_eq!(validators.etag.as_ref().map(crate::asset::EntityTag::as_str), Some("\"v7\""));
    assert_eq!(validators.last_modified, Some(UnixTime(1_999_913_600)));
    let blocks = first.blocks().expect("it has some");
    assert_eq!((blocks.size.bytes(), blocks.sha256.len()), (1 << 20, 2));
    assert_eq!([first, second, third].map(|asset| manifest.is_pinned(asset)), [true, false, false]);
    let types = [first, second, third].map(|asset| manifest.content_type(asset));
    assert_eq!(types, [Some("video/mp4"), Some("video/webm"), Some("video/mp4")]);
    let names = |asset| manifest.sources(asset).iter().map(|choice| format!("{:?}", choice.source)).collect::<Vec<_>>();
    assert_eq!(names(first), KINDS.map(|kind| format!("Name(\"{kind}\")")));
    assert_eq!(manifest.sources(first)[1].wait.as_secs(), 600);
    assert_eq!(second.key, key("films/été/a b.webm", None));
    assert!(names(second)[0].contains("Url") && manifest.sources(second)[0].cost == 50);
    assert_eq!((&third.key, third.sha256), (&key("play", Some("v=2")), None));
    for (path, query, purged) in [
        ("films/0.mp4", None, true),
        ("play", Some("v=1"), true),
        ("play", None, false),
        ("trailers/2032-12/x", None, true),
    ] {
        assert_eq!(manifest.purges(&key(path, query)), purged, "{path}");
    }
    for form in ["everything.json.gz", "everything.json.zst"] {
        let (packed, signatures) = &fixtures("valid")[form];
        let unpacked = judged(packed, signatures.as_deref()).expect("valid");
        assert_eq!((unpacked.assets(), &unpacked.head), (manifest.assets(), head), "{form}");
    }
}

#[test]
fn a_refusal_says_where_it_is() {
    let said = |name: &str| {
        let (manifest, signatures) = &fixtures("refused")[name];
        judged(manifest, signatures.as_deref()).expect_err("refused").to_string()
    };
    assert!(
        said("value--null.json").starts_with("value: assets[0].pin (line 1, column "),
        "{}",
        said("value--null.json")
    );
    assert!(said("unknown-field--of-an-asset.json").starts_with("unknown-field: assets[0].sha512 (line 15, column "));
    let duplicate = said("duplicate-asset.json");
    assert!(
        duplicate.starts_with("duplicate-asset: assets[2].key (line 25, ") && duplicate.contains("assets[0]"),
        "{duplicate}"
    );
    assert!(said("source--twice.json").starts_with("source: assets[0].sources[1] (line"));
    assert!(said("not-for-us.json").contains("appliance 'box-1'"));
}

#[test]
fn a_threshold_counts_each_key_once() {
    let (_, signatures) = &fixtures("valid")["two-keys.json"];
    let mut hasher = Hasher::default();
    hasher.update(&fixtures("valid")["two-keys.json"].0);
    let digest = hasher.finish();
    let signatures = Signatures::parse(signatures.as_deref().expect("signed")).expect("valid");
    let keys = |threshold, revoked: &[&str]| {
        let revoked: Vec<_> = revoked.iter().map(|kid| (*kid).to_owned()).collect();
        let mut keys = TrustedKeys::new(threshold, &revoked);
        keys.add_file(&folder("keys.json")).expect("keys");
        keys
    };
    assert_eq!(keys(2, &[]).verify(&digest, &signatures).map(|kids| kids.len()), Ok(2));
    let reason = |keys: TrustedKeys| keys.verify(&digest, &signatures).map_err(|refused| refused.reason);
    assert_eq!(reason(keys(3, &[])), Err(Reason::Unsigned));
    assert_eq!(reason(keys(2, &["2033-b"])), Err(Reason::RevokedKey));
    assert_eq!(reason(keys(1, &["2033-b"])).map(|kids| kids.len()), Ok(1), "the other one is enough");
    let mut twice = keys(1, &[]);
    assert!(twice.add_file(&folder("keys.json")).is_err(), "no key may count twice");
    let x = "iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w";
    assert!(
        twice.add_inline("2033-a under another name", x).expect_err("the same key").to_string().contains("same key")
    );
}

#[test]
fn what_expands_too_far_is_cut_off_by_size_and_by_ratio() {
    let (bomb, _) = &fixtures("refused")["bomb.json.gz"];
    let said = |limits: &Limits| parse(&**bomb, limits, &SourceRules::default()).expect_err("refused");
    let by_ratio = said(&Limits::default());
    assert!(by_ratio.reason == Reason::Bomb && by_ratio.what.contains("100 times"), "{by_ratio}");
    let by_size = said(&Limits { ratio_max: 100_000, expanded_max: ByteCount(2 << 20), ..Limits::default() });
    assert!(by_size.reason == Reason::Bomb && by_size.what.contains("2097152 bytes"), "{by_size}");
}

#[test]
fn the_schema_accepts_what_is_valid_and_refuses_what_no_manifest_may_be() {
    let schema = fs::read_to_string(folder("../../docs/manifest.schema.json")).expect("readable");
    let schema = jsonschema::draft202012::new(&serde_json::from_str(&schema).expect("JSON")).expect("a schema");
    let mut count = 0;
    for (name, (manifest, _)) in fixtures("valid").iter().filter(|(name, _)| name.ends_with(".json")) {
        let value = serde_json::from_slice(manifest).expect("JSON");
        if let Err(err) = schema.validate(&value) {
            panic!("{name}: {err}");
        }
    }
    // A schema knows of one manifest and its fields: nothing of keys, clocks, other manifests or what an appliance is called.
    let of_one = [
        "unknown-field--of-a",
        "unknown-field.",
        "missing-field",
        "value--",
        "path--",
        "version.",
        "too-deep--",
        "too-large--text",
    ];
    let by_other_means = ["exponent", "over-before", "too-few-blocks"];
    for (name, (manifest, _)) in fixtures("refused") {
        let Ok(value) = serde_json::from_slice(&manifest) else { continue };
        if of_one.iter().any(|of| name.starts_with(of)) && !by_other_means.iter().any(|other| name.contains(other)) {
            assert!(!schema.is_valid(&value), "{name}");
            count += 1;
        }
    }
    assert!(count > 25, "{count}");
}

mod reception {
    use std::time::Duration;

    use super::*;
    use crate::{sys::Clock, telemetry::metrics::Metrics};

    const NOW: UnixTime = UnixTime(2_000_000_000);

    fn config(state: &std::path::Path) -> Config {
        let identity = Identity { appliance: "box-1".into(), ..Identity::default() };
        Config { keys: vec![folder("keys.json")], state: state.into(), identity, ..Config::default() }
    }

    fn started(config: &Config, clock: &Clock) -> (std::sync::Arc<Control>, std::sync::Arc<Metrics>) {
        let metrics = std::sync::Arc::new(Metrics::new(1));
        let rules = SourceRules { names: Some(vec!["origin-0".into()]), below: Some(Vec::new()) };
        (
            Control::start(config, rules, (clock.clone(), InForce::default()), std::sync::Arc::clone(&metrics))
                .expect("keys"),
            metrics,
        )
    }

    fn offer(control: &Control, name: &str) -> Result<Receipt, Refused> {
        let path = folder(name);
        let mut incoming = control.incoming()?;
        incoming.write(&fs::read(&path).expect("readable")).expect("written");
        let signatures = fs::read(format!("{}.sig", path.display())).expect("signed");
        control.offer(incoming.finish(), &signatures, "test")
    }

    #[test]
    fn what_was_accepted_last_is_in_force_after_a_restart_and_nothing_older_is_taken() {
        let home = tempfile::tempdir().expect("a folder");
        let (config, clock) = (config(&home.path().join("deep/state")), Clock::manual(NOW));
        let (control, _) = started(&config, &clock);
        assert!(control.in_force().now().is_none() && !control.standing().is_stale);
        assert_eq!(offer(&control, "valid/small.json"), Ok(Receipt::InForce { sequence: 101, assets: 2 }));
        assert_eq!(offer(&control, "valid/small.json"), Ok(Receipt::Unchanged { sequence: 101 }));
        let rolled = |control: &Control| offer(control, "refused/rollback.json").map_err(|refused| refused.reason);
        assert_eq!(rolled(&control), Err(Reason::Rollback));
        assert_eq!(
            offer(&control, "valid/all.json").map_err(|refused| refused.reason),
            Err(Reason::Rollback),
            "another 101"
        );
        drop(control);
        // Past its expiry it is in force as before: what it wants held stays.
        clock.advance(Duration::from_secs(40 * 3600));
        let (control, metrics) = started(&config, &clock);
        let standing = control.standing();
        assert_eq!((standing.sequence, standing.assets, standing.age_seconds), (Some(101), 2, Some(40 * 3600)));
        assert!(standing.has_expired && standing.is_stale, "and says so");
        assert_eq!(rolled(&control), Err(Reason::Rollback), "not even after a restart");
        let shown = metrics.render();
        for line in ["oca_manifest_sequence 101", "oca_manifest_age_seconds 144000", "oca_manifest_stale 1"] {
            assert!(shown.contains(line), "{line}");
        }
        assert!(shown.contains("oca_manifests_refused_total{reason=\"rollback\"} 1"), "{shown}");
    }

    #[test]
    fn none_at_all_is_stale_too() {
        let home = tempfile::tempdir().expect("a folder");
        let clock = Clock::manual(NOW);
        let (control, _) = started(&config(home.path()), &clock);
        clock.advance(Duration::from_secs(36 * 3600 + 1));
        assert!(control.standing().is_stale);
        let (off, _) = started(&Config { keys: Vec::new(), ..config(home.path()) }, &clock);
        clock.advance(Duration::from_secs(36 * 3600 + 1));
        assert!(!off.standing().is_stale && !off.standing().is_expected, "where none is expected, none is missed");
        assert_eq!(off.incoming().map(drop).map_err(|refused| refused.reason), Err(Reason::State));
    }

    #[test]
    fn what_is_damaged_on_disk_is_not_in_force_and_what_is_older_is_still_not_taken() {
        let home = tempfile::tempdir().expect("a folder");
        let (config, clock) = (config(home.path()), Clock::manual(NOW));
        offer(&started(&config, &clock).0, "valid/small.json").expect("valid");
        let files = || fs::read_dir(home.path()).expect("there").map(|entry| entry.expect("listed").path());
        let manifest = files().find(|path| path.to_string_lossy().contains("manifest-")).expect("kept");
        let whole = fs::read(&manifest).expect("readable");
        fs::write(&manifest, &whole[..whole.len() / 2]).expect("written");
        let (control, _) = started(&config, &clock);
        assert!(control.in_force().now().is_none());
        let (_, from, refused) = control.standing().last_refusal.expect("told");
        assert_eq!((&*from, refused.reason), ("disk", Reason::Tampered));
        assert_eq!(offer(&control, "refused/rollback.json").map_err(|refused| refused.reason), Err(Reason::Rollback));
        assert!(offer(&control, "valid/small.json").is_ok(), "the same one heals it");
        // Without its memory it takes nothing: an old manifest would pass for a new one.
        fs::write(home.path().join("state.json"), "{").expect("written");
        let (control, _) = started(&config, &clock);
        let refused = control.incoming().map(drop).expect_err("off");
        assert!(refused.reason == Reason::State && refused.what.contains("state.json"), "{refused}");
    }

    #[test]
    fn a_key_that_is_revoked_takes_its_manifest_out_of_force() {
        let home = tempfile::tempdir().expect("a folder");
        let (mut config, clock) = (config(home.path()), Clock::manual(NOW));
        offer(&started(&config, &clock).0, "valid/small.json").expect("valid");
        config.revoked = vec!["2033-a".into()];
        let (control, _) = started(&config, &clock);
        assert!(control.in_force().now().is_none());
        assert_eq!(control.standing().last_refusal.map(|(_, _, refused)| refused.reason), Some(Reason::RevokedKey));
    }
}
