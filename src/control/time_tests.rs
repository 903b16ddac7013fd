//! What changes with time: manifests that come before theirs, and keys whose files change.

use std::{fs, path::Path, sync::Arc, time::Duration};

use super::{manifest::SourceRules, *};
use crate::{asset::UnixTime, sys::Clock, telemetry::metrics::Metrics};

const NOW: UnixTime = UnixTime(2_000_000_000);
const HOUR: u64 = 3600;

/// A folder with keys, and a box whose state lies there.
struct Desk {
    home: tempfile::TempDir,
    clock: Clock,
    config: Config,
    metrics: Arc<Metrics>,
}

/// What signs, and its public half as a JSON Web Key.
struct Signer(SigningKey, serde_json::Value);

impl Signer {
    /// One of the keys of `fixtures/manifests/make.py`: a seed of one byte, again and again, and its public half.
    fn new(kid: &str, (seed, x): (u8, &str)) -> Self {
        let public = serde_json::json!({ "kty": "OKP", "crv": "Ed25519", "kid": kid, "x": x });
        let mut secret = public.clone();
        secret["d"] = base64url::encode([seed; 32]).into();
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), serde_json::json!({ "keys": [secret] }).to_string()).expect("written");
        Self(SigningKey::load(file.path()).expect("a key"), public)
    }

    fn a() -> Self {
        Self::new("a", (1, "iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w"))
    }

    fn b() -> Self {
        Self::new("b", (2, "gTl3Dqh9F19Wo1Rmw0x-zMuNipG07jeiXfYPW4_Js5Q"))
    }
}

impl Desk {
    fn new() -> Self {
        let home = tempfile::tempdir().expect("a folder");
        let identity = Identity { appliance: "box-1".into(), ..Identity::default() };
        let keys = vec![home.path().join("keys.json")];
        let config = Config { keys, state: home.path().join("state"), identity, ..Config::default() };
        let desk = Self { home, clock: Clock::manual(NOW), config, metrics: Arc::new(Metrics::new(1)) };
        desk.trust(&[&Signer::a()]);
        desk
    }

    /// As tools do it that replace files: written aside and renamed.
    fn trust(&self, signers: &[&Signer]) {
        let keys: Vec<_> = signers.iter().map(|signer| &signer.1).collect();
        self.write_keys(&serde_json::json!({ "keys": keys }).to_string());
    }

    fn write_keys(&self, text: &str) {
        let (aside, path) = (self.home.path().join("aside"), self.home.path().join("keys.json"));
        fs::write(&aside, text).expect("written");
        fs::rename(&aside, &path).expect("renamed");
    }

    fn start(&self) -> Arc<Control> {
        let rules = SourceRules { names: Some(Vec::new()), below: Some(Vec::new()) };
        let with = (self.clock.clone(), InForce::default());
        Control::start(&self.config, rules, with, Arc::clone(&self.metrics)).expect("keys")
    }

    fn state(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&self.config.state)
            .expect("there")
            .map(|entry| entry.expect("listed").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    fn waiting_file(&self) -> std::path::PathBuf {
        let name = self.state().into_iter().find(|name| name.starts_with("waiting-") && !name.ends_with(".sig"));
        Path::new(&self.config.state).join(name.expect("one waits"))
    }

    fn shows(&self, line: &str) -> bool {
        self.metrics.render().lines().any(|told| told == line)
    }
}

fn offer(control: &Control, signer: &Signer, sequence: u64, not_before: u64) -> Result<Receipt, Refused> {
    let text = format!(
        "{{\"version\": 1, \"sequence\": {sequence}, \"audience\": {{\"all\": true}}, \"not_before\": {}, \"expires\": {}, \
         \"assets\": []}}",
        NOW.0 + not_before,
        NOW.0 + 100 * HOUR
    );
    let mut incoming = control.incoming()?;
    incoming.write(text.as_bytes()).expect("written");
    let arrived = incoming.finish();
    let mut signatures = Signatures::default();
    signatures.add(&signer.0.kid, signer.0.sign(&arrived.digest))?;
    control.offer(arrived, signatures.to_text().as_bytes(), "test")
}

fn sequence(control: &Control) -> Option<u64> {
    control.in_force().now().map(|now| now.manifest.head.sequence)
}

fn waiting(control: &Control) -> Vec<u64> {
    control.standing().waiting.iter().map(|waiting| waiting.sequence).collect()
}

#[test]
fn what_comes_before_its_time_is_kept_over_a_restart_and_in_force_then() {
    let (desk, signer) = (Desk::new(), Signer::a());
    let control = desk.start();
    let kept = Ok(Receipt::Waiting { sequence: 5, not_before: NOW.plus(Duration::from_secs(HOUR)) });
    assert_eq!(offer(&control, &signer, 5, HOUR), kept);
    assert_eq!(offer(&control, &signer, 5, HOUR), kept, "once");
    assert_eq!((sequence(&control), waiting(&control)), (None, vec![5]));
    assert!(control.standing().last_refusal.is_none());
    drop(control);
    let control = desk.start();
    assert_eq!(waiting(&control), [5]);
    desk.clock.advance(Duration::from_secs(HOUR - 1));
    control.look();
    assert_eq!(sequence(&control), None);
    desk.clock.advance(Duration::from_secs(1));
    control.look();
    assert_eq!((sequence(&control), waiting(&control)), (Some(5), Vec::new()));
    assert_eq!(desk.state().len(), 3, "one manifest, its signatures and the record: {:?}", desk.state());
    assert_eq!(offer(&control, &signer, 5, HOUR), Ok(Receipt::Unchanged { sequence: 5 }));
    drop(control);
    assert_eq!(sequence(&desk.start()), Some(5));
}

#[test]
fn what_waits_gives_way_to_what_stands_above_it_and_is_bounded() {
    let (mut desk, signer) = (Desk::new(), Signer::a());
    desk.config.waiting_max = 2;
    let control = desk.start();
    for number in [10, 12, 11] {
        assert!(matches!(offer(&control, &signer, number, HOUR), Ok(Receipt::Waiting { .. })));
    }
    assert_eq!(waiting(&control), [11, 12], "the highest ones");
    assert_eq!(desk.state().len(), 4, "and no others lie there: {:?}", desk.state());
    assert!(matches!(offer(&control, &signer, 11, 0), Ok(Receipt::InForce { sequence: 11, .. })), "another 11, now");
    assert_eq!(waiting(&control), [12]);
    assert_eq!(offer(&control, &signer, 9, HOUR).map_err(|refused| refused.reason), Err(Reason::Rollback));
    desk.clock.advance(Duration::from_secs(HOUR));
    control.look();
    assert_eq!(sequence(&control), Some(12));
    desk.config.waiting_max = 0;
    assert_eq!(offer(&desk.start(), &signer, 13, 2 * HOUR).map_err(|refused| refused.reason), Err(Reason::NotYet));
}

#[test]
fn what_waits_is_judged_once_more_when_its_time_comes() {
    let (desk, signer) = (Desk::new(), Signer::a());
    let control = desk.start();
    offer(&control, &signer, 5, HOUR).expect("kept");
    // A disk that forgets a byte.
    let file = desk.waiting_file();
    let damaged = fs::read_to_string(&file).expect("readable").replace("\"all\"", "\"All\"");
    fs::write(&file, damaged).expect("written");
    desk.clock.advance(Duration::from_secs(HOUR));
    control.look();
    assert_eq!((sequence(&control), waiting(&control)), (None, Vec::new()));
    assert_eq!(control.standing().last_refusal.map(|(.., refused)| refused.reason), Some(Reason::Tampered));
    assert!(desk.state().is_empty(), "{:?}", desk.state());
    // A key that is trusted no longer.
    offer(&control, &signer, 6, 2 * HOUR).expect("kept");
    desk.trust(&[&Signer::b()]);
    control.reload();
    desk.clock.advance(Duration::from_secs(HOUR));
    control.look();
    assert_eq!(control.standing().last_refusal.map(|(.., refused)| refused.reason), Some(Reason::UnknownKey));
    assert_eq!((sequence(&control), waiting(&control)), (None, Vec::new()));
    // One of two files of it, after a crash.
    fs::write(desk.config.state.join("waiting-9-9-9.sig"), b"").expect("written");
    assert!(waiting(&desk.start()).is_empty() && desk.state().is_empty());
}

#[test]
fn keys_are_taken_over_as_their_files_change_and_bad_ones_change_nothing() {
    let (desk, a, b) = (Desk::new(), Signer::a(), Signer::b());
    let control = desk.start();
    offer(&control, &a, 1, 0).expect("trusted");
    let unknown = |signer, sequence| offer(&control, signer, sequence, 0).map_err(|refused| refused.reason);
    assert_eq!(unknown(&b, 2), Err(Reason::UnknownKey));
    desk.trust(&[&a, &b]);
    control.look();
    assert_eq!(unknown(&b, 2), Err(Reason::UnknownKey), "it may still be changing");
    control.look();
    offer(&control, &b, 2, 0).expect("trusted");
    for bad in ["", "{\"keys\": []}", "{\"keys\": [{\"kid\": \"c\"}]}"] {
        desk.write_keys(bad);
        control.look();
        control.look();
    }
    assert!(desk.shows("oca_manifest_key_reloads_total{outcome=\"refused\"} 3"));
    assert!(desk.shows("oca_manifest_key_reloads_total{outcome=\"used\"} 1"));
    offer(&control, &a, 3, 0).expect("still trusted");
    desk.trust(&[&b]);
    control.reload();
    assert_eq!(unknown(&a, 4), Err(Reason::UnknownKey));
    assert_eq!(sequence(&control), Some(3), "what is in force stays until the next one");
    offer(&control, &b, 4, 0).expect("trusted");
    assert_eq!(sequence(&control), Some(4));
}

#[test]
fn fewer_keys_than_have_to_sign_are_not_taken_over() {
    let (mut desk, a, b) = (Desk::new(), Signer::a(), Signer::b());
    desk.trust(&[&a, &b]);
    desk.config.threshold = 2;
    let control = desk.start();
    desk.trust(&[&a]);
    control.reload();
    assert!(desk.shows("oca_manifest_key_reloads_total{outcome=\"refused\"} 1"));
    assert_eq!(offer(&control, &a, 1, 0).map_err(|refused| refused.reason), Err(Reason::Unsigned), "one of two");
    let rules = SourceRules::default();
    let with = (desk.clock.clone(), InForce::default());
    assert!(Control::start(&desk.config, rules, with, Arc::clone(&desk.metrics)).is_err(), "nor at the start");
}
