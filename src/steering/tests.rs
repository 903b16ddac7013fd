//! Reports over real sockets, to services of every kind, by a clock that stands until it is moved.

mod fake;

use std::{collections::BTreeSet, net::SocketAddr, path::Path, time::Duration};

use serde_json::Value;

use fake::{Fake, Heard, Mood};

use super::{sender::spread, *};
use crate::{
    asset::{AssetKey, BitRate, BlockSize, ByteCount, EntityTag, UnixTime, Validators},
    catalog::{self, Lifetime, Lookup, Meta},
    storage::{self, Disk, RealDisk, VolumeConfig},
    sys::PhaseCell,
};

const INTERVAL: Duration = Duration::from_secs(10);
/// A fifth of an interval.
const JITTER: Duration = Duration::from_secs(2);

/// The schema lets later versions add members; of ours, each has to stand in it.
fn close(schema: &mut Value) {
    if let Value::Object(members) = schema {
        if members.contains_key("properties") {
            members.insert("additionalProperties".into(), false.into());
        }
        members.values_mut().for_each(close);
    }
}

fn assert_valid(report: &Value) {
    static SCHEMA: std::sync::LazyLock<jsonschema::Validator> = std::sync::LazyLock::new(|| {
        let mut schema = serde_json::from_str(include_str!("../../docs/report.schema.json")).expect("JSON");
        close(&mut schema);
        jsonschema::draft202012::new(&schema).expect("a schema")
    });
    let faults: Vec<_> =
        SCHEMA.iter_errors(report).map(|fault| format!("{}: {fault}", fault.instance_path())).collect();
    assert!(faults.is_empty(), "{faults:?} in {report:#}");
}

fn wait_until(what: &str, reached: impl Fn() -> bool) {
    for _ in 0..4_000 {
        if reached() {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    panic!("{what}: not in time");
}

#[derive(Default)]
struct Condition {
    phase: PhaseCell,
    drains: Mutex<Vec<bool>>,
}

impl Subject for Condition {
    fn phase(&self) -> Phase {
        self.phase.now()
    }

    fn condition(&self) -> (Health, Load) {
        (Health::of(Vec::new()), Load::default())
    }

    fn manifest(&self) -> Option<ManifestProgress> {
        Some(ManifestProgress { sequence: 4, assets: 2, assets_held: 1, bytes: 20, bytes_held: 10 })
    }

    fn drain(&self, services: &BTreeSet<String>) {
        self.drains.lock().push(!services.is_empty());
    }
}

/// A box that reports.
struct Reporting {
    catalog: Arc<Catalog>,
    reporter: Arc<Reporter>,
    condition: Arc<Condition>,
    clock: Clock,
    metrics: Arc<Metrics>,
    runtime: tokio::runtime::Runtime,
    /// Names of what is held.
    names: BTreeSet<String>,
    next: u64,
}

impl Reporting {
    fn start(root: &Path, services: &[url::Url], change: impl FnOnce(&mut Config)) -> Self {
        let clock = Clock::manual(UnixTime(1_000_000));
        let metrics = Arc::new(Metrics::new(1));
        let storage = storage::Config {
            block_size: BlockSize::new(64 << 10).expect("valid"),
            volumes: vec![VolumeConfig { path: root.into(), capacity: ByteCount(1 << 30) }],
            scrub_rate: BitRate(0),
            ..storage::Config::default()
        };
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let opened = Catalog::open(&catalog::Config::default(), &storage, &disk, clock.clone(), Arc::clone(&metrics));
        let (catalog, _) = opened.expect("opened");
        let mut config = Config { interval: INTERVAL, timeout: Duration::from_secs(2), ..Config::default() };
        let named = services.iter().enumerate().map(|(number, url)| ServiceConfig {
            name: format!("steering-{number}"),
            url: url.clone(),
            token_file: None,
            identity: None,
            authorities: None,
        });
        config.services = named.collect();
        change(&mut config);
        let condition = Arc::new(Condition::default());
        let subject: Arc<dyn Subject> = Arc::<Condition>::clone(&condition);
        let listeners = vec![Listener { scheme: "http", address: SocketAddr::from(([127, 0, 0, 1], 80)) }];
        let below = (clock.clone(), Arc::clone(&metrics));
        let reporter = Arc::new(Reporter::new(config, listeners, (subject, Arc::clone(&catalog)), below));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads");
        {
            let _inside = runtime.enter();
            start(&reporter, prepare(&reporter.config.load()).expect("good files"), &condition.phase.watch());
        }
        Self { catalog, reporter, condition, clock, metrics, runtime, names: BTreeSet::new(), next: 0 }
    }

    /// Some assets come, some go, one is replaced.
    fn churn(&mut self, count: u64) {
        for _ in 0..count {
            self.fill(&format!("/film-{}.mp4", self.next));
            self.next += 1;
        }
        let (gone, replaced) = (self.names.first().cloned(), self.names.last().cloned());
        if let (Some(gone), Some(replaced)) = (gone, replaced.filter(|_| count > 1)) {
            self.fill(&replaced);
            if let Lookup::Hit(entry) = self.catalog.lookup(&AssetKey::parse(&gone, None).expect("valid")) {
                self.catalog.forget(&entry);
            }
            self.names.remove(&gone);
        }
    }

    fn fill(&mut self, name: &str) {
        let meta = Meta {
            length: 100,
            validators: Validators { etag: EntityTag::parse("\"v1\""), ..Validators::default() },
            content_type: None,
            content_encoding: None,
            cache_control: None,
            ranged: true,
        };
        let lifetime = Lifetime::immutable(UnixTime(1_000_000));
        let key = AssetKey::parse(name, None).expect("valid");
        let entry = self.catalog.admit(&key, meta, lifetime).expect("room");
        entry.writer(0).write_blocking(&[7; 100]).expect("written");
        self.names.insert(name.into());
    }

    /// What a service should know.
    fn truth(&self) -> Vec<Fingerprint> {
        let key = |name: &String| AssetKey::parse(name, None).expect("valid");
        let mut all: Vec<_> = self.names.iter().map(|name| Fingerprint::of(&key(name))).collect();
        all.sort_unstable();
        all
    }

    fn outcomes(&self, service: &str) -> u64 {
        self.metrics.steering(service).reports().map(|(_, count)| count).sum()
    }

    fn outcome(&self, service: &str, outcome: &str) -> u64 {
        self.metrics.steering(service).reports().find(|(label, _)| *label == outcome).map_or(0, |(_, count)| count)
    }

    fn some_reports(&self, count: usize) {
        for _ in 0..count {
            self.until_next("steering-0");
        }
    }

    /// The next report comes after `least` and not later than after `most`. What is counted last has settled when the next one is
    /// due, so that neither depends on how fast this machine is.
    fn comes_within(&self, service: &str, least: Duration, most: Duration) {
        let before = self.outcomes(service);
        let early = least.saturating_sub(Duration::from_millis(1));
        self.clock.advance(early);
        std::thread::park_timeout(Duration::from_millis(20));
        assert_eq!(self.outcomes(service), before, "it comes before {least:?} are over");
        self.clock.advance(most - early);
        wait_until("it comes in time", || self.outcomes(service) > before);
    }

    /// Moves the clock until the service has taken, or failed to take, one more report.
    fn until_next(&self, service: &str) {
        let before = self.outcomes(service);
        wait_until("the next report", || {
            self.clock.advance(Duration::from_millis(500));
            std::thread::park_timeout(Duration::from_millis(20));
            self.outcomes(service) > before
        });
    }
}

fn open_service() -> (tempfile::TempDir, Fake) {
    (tempfile::tempdir().expect("tempdir"), Fake::start("127.0.0.1:0"))
}

#[test]
fn reports_come_on_time_and_deltas_lead_to_exactly_what_is_held() {
    let (dir, fake) = open_service();
    let mut this = Reporting::start(dir.path(), &[fake.url()], |config| {
        config.prefixes = vec!["192.0.2.0/24".parse().expect("a network")];
    });
    this.churn(10);
    this.until_next("steering-0");
    assert!(fake.last()["availability"]["full"].is_null(), "nobody has asked for it yet");
    this.comes_within("steering-0", Duration::ZERO, JITTER);
    assert_eq!(fake.inside.lock().known.held, this.truth());
    for round in 0..20 {
        this.churn(round % 4);
        this.comes_within("steering-0", INTERVAL - JITTER, INTERVAL);
        let last = fake.last();
        assert!(last["availability"]["full"].is_null() && last["availability"]["delta"].is_object(), "{last:#}");
        assert!(last["clients"]["prefixes"].is_null(), "they have not changed");
        assert_eq!(fake.inside.lock().known.held, this.truth(), "round {round}");
    }
    let sequences: Vec<_> = fake.inside.lock().reports.iter().map(|report| report["sequence"].as_u64()).collect();
    assert!(sequences.is_sorted_by(|a, b| a < b), "{sequences:?}");
    assert_eq!(
        fake.inside.lock().known.clients.as_ref().map(|(_, nets)| nets.to_string()),
        Some("[\"192.0.2.0/24\"]".into())
    );
    assert_eq!(this.outcome("steering-0", "delivered"), 22);
}

#[test]
fn a_lost_reply_and_a_service_that_has_forgotten_lead_to_everything_anew() {
    let (dir, fake) = open_service();
    let mut this = Reporting::start(dir.path(), &[fake.url()], |_| {});
    this.churn(10);
    this.some_reports(2);
    assert_eq!(fake.inside.lock().known.held, this.truth());

    fake.set(Mood::LosesReplies);
    this.churn(3);
    this.until_next("steering-0");
    assert_eq!(this.outcome("steering-0", "failed"), 1);
    fake.set(Mood::Well);
    this.churn(3);
    let begun = fake.count();
    this.until_next("steering-0");
    // The box does not know that its report came, and tells what has changed since the one before: the service asks.
    assert!(fake.inside.lock().reports[begun]["availability"]["full"].is_null());
    this.until_next("steering-0");
    assert!(fake.was_told_everything_after(begun));
    assert_eq!(fake.inside.lock().known.held, this.truth());

    fake.inside.lock().known = Heard::default();
    this.churn(3);
    let begun = fake.count();
    this.until_next("steering-0");
    this.until_next("steering-0");
    assert!(fake.was_told_everything_after(begun));
    assert_eq!(fake.inside.lock().known.held, this.truth());
    assert!(fake.inside.lock().known.clients.is_some(), "it is told those again too");
}

#[test]
fn a_service_that_was_away_for_an_hour_is_up_to_date_one_interval_later_and_memory_stays_flat() {
    let (dir, fake) = open_service();
    let url = fake.url();
    let mut this = Reporting::start(dir.path(), &[url], |config| config.changes_max = 64);
    this.churn(50);
    this.some_reports(2);
    assert_eq!(fake.inside.lock().known.held, this.truth());
    let address = fake.end();

    let (mut away, mut resident_early) = (Duration::ZERO, 0);
    while away < Duration::from_secs(3600) {
        this.churn(2);
        // One attempt falls into each interval, wherever in it.
        let before = this.outcomes("steering-0");
        this.clock.advance(INTERVAL);
        away += INTERVAL;
        wait_until("it is tried", || this.outcomes("steering-0") > before);
        if resident_early == 0 && away > Duration::from_secs(900) {
            resident_early = resident_bytes();
        }
    }
    let resident = resident_bytes();
    println!("resident: {resident_early} bytes after a quarter of an hour, {resident} after an hour");
    // The catalog itself has grown by some hundred assets.
    assert!(resident < resident_early + (2 << 20), "{resident_early} bytes have become {resident}");
    let attempts = this.outcome("steering-0", "failed");
    assert_eq!(attempts, 360, "one for each interval");

    let fake = Fake::start(&address.to_string());
    // One interval until it is heard of and asks for everything, and the jitter until that is told.
    this.comes_within("steering-0", INTERVAL - JITTER, INTERVAL);
    this.comes_within("steering-0", Duration::ZERO, JITTER);
    assert_eq!(fake.inside.lock().known.held, this.truth());
}

/// Memory of this process, which runs this test alone.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the kernel tells");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("there");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

#[test]
fn a_service_that_misbehaves_costs_only_itself() {
    let (dir, bad) = open_service();
    let good = Fake::start("127.0.0.1:0");
    let mut this = Reporting::start(dir.path(), &[bad.url(), good.url()], |config| {
        config.timeout = Duration::from_millis(300);
    });
    for (mood, outcome) in [
        (Mood::Silent, "failed"),
        (Mood::Endless, "garbage"),
        (Mood::Nonsense, "garbage"),
        (Mood::LosesReplies, "failed"),
        (Mood::Status(500), "refused"),
        (Mood::Status(302), "refused"),
    ] {
        bad.set(mood);
        this.churn(2);
        let (before, reports) = (this.outcome("steering-0", outcome), good.count());
        wait_until("the last report has ended", || {
            this.clock.advance(Duration::from_secs(1));
            std::thread::park_timeout(Duration::from_millis(5));
            this.outcome("steering-0", outcome) > before && good.count() > reports + 2
        });
        assert_eq!(this.outcome("steering-1", "delivered"), this.outcomes("steering-1"), "{mood:?}");
    }
    bad.set(Mood::Status(503));
    this.until_next("steering-0");
    bad.set(Mood::Well);
    // It has asked for that much rest.
    let rest = Duration::from_secs(30);
    this.comes_within("steering-0", rest, rest + JITTER);
    this.until_next("steering-0");
    this.until_next("steering-1");
    this.until_next("steering-1");
    assert_eq!(bad.inside.lock().known.held, this.truth());
    assert_eq!(good.inside.lock().known.held, this.truth());
}

#[test]
fn a_service_sets_the_interval_within_bounds_and_drains_as_long_as_one_wants_it() {
    let (dir, fake) = open_service();
    let other = Fake::start("127.0.0.1:0");
    let this = Reporting::start(dir.path(), &[fake.url(), other.url()], |_| {});
    let ask = |fake: &Fake, asks: Value| fake.inside.lock().asks = asks;
    ask(&fake, serde_json::json!({ "interval_ms": 20_000, "drain": true }));
    ask(&other, serde_json::json!({ "drain": true }));
    for service in ["steering-0", "steering-1"] {
        this.until_next(service);
        this.until_next(service);
    }
    let drains = || this.condition.drains.lock().clone();
    assert!(
        drains().len() >= 4 && drains().iter().all(|drain| *drain),
        "each time: an operator may have taken it back"
    );
    this.until_next("steering-0");
    this.comes_within("steering-0", Duration::from_secs(16), Duration::from_secs(20));
    ask(&fake, serde_json::json!({ "drain": false }));
    this.until_next("steering-0");
    this.until_next("steering-0");
    assert!(!drains().contains(&false), "the other one still wants it");
    ask(&other, serde_json::json!({ "drain": false }));
    this.until_next("steering-1");
    this.until_next("steering-1");
    assert_eq!(drains().iter().filter(|drain| !**drain).count(), 1);
    assert_eq!(drains().last(), Some(&false));
}

#[test]
fn a_service_that_reads_gzip_gets_it_for_as_long_as_it_says_so() {
    let (dir, fake) = open_service();
    let mut this = Reporting::start(dir.path(), &[fake.url()], |_| {});
    let compressed = || fake.inside.lock().compressed;
    this.churn(20);
    this.some_reports(2);
    assert_eq!(compressed(), 0, "it has not said so");
    fake.inside.lock().reads_gzip = true;
    this.some_reports(3);
    assert!(compressed() >= 2);
    this.churn(3);
    this.some_reports(2);
    assert_eq!(fake.inside.lock().known.held, this.truth());
    fake.inside.lock().reads_gzip = false;
    this.some_reports(1);
    let until_then = compressed();
    this.some_reports(2);
    assert_eq!(compressed(), until_then, "another service, perhaps");
}

#[test]
fn a_change_of_phase_is_told_at_once() {
    let (dir, fake) = open_service();
    let this = Reporting::start(dir.path(), &[fake.url()], |_| {});
    this.some_reports(3);
    let before = fake.count();
    this.condition.phase.enter(Phase::Leaving);
    wait_until("it is told", || fake.count() > before);
    assert_eq!(fake.last()["phase"], "draining");
}

#[test]
fn whoever_asks_is_told_what_it_wants() {
    let (dir, fake) = open_service();
    let mut this = Reporting::start(dir.path(), &[], |_| {});
    drop(fake);
    this.churn(3);
    let ask = |this: &Reporting, known| -> Value {
        let report = serde_json::from_slice(&this.reporter.write(known).body).expect("JSON");
        assert_valid(&report);
        report
    };
    let plain = ask(&this, Known::default());
    assert_eq!(
        (&plain["availability"]["revision"], &plain["availability"]["held"]),
        (&Value::from(1), &Value::from(2))
    );
    assert!(plain["availability"]["full"].is_null() && plain["availability"]["delta"].is_null());
    this.churn(2);
    let since = ask(&this, Known { availability: Some(1), ..Known::default() });
    assert_eq!(since["availability"]["delta"]["added"]["count"], 2, "{since:#}");
    let full = ask(&this, Known { availability: Some(1), wants_full: true, ..Known::default() });
    let summary: Summary = serde_json::from_value(full["availability"]["full"].clone()).expect("a summary");
    assert_eq!(summary.read(), Some(this.truth()));
    let ahead = ask(&this, Known { availability: Some(99), ..Known::default() });
    assert!(ahead["availability"]["delta"].is_null(), "there is no such revision");
    assert_eq!(this.reporter.boot_id().len(), 32);
    this.runtime.shutdown_background();
}

#[test]
fn boxes_that_lost_their_service_together_come_back_apart() {
    let config = Config::default();
    // After some intervals, each box is at a place of its own.
    let at = |_| (0..60).map(|_| sender::paced(&config, config.interval)).sum::<Duration>().as_secs_f64();
    let mut places = [0_u32; 10];
    for time in (0..2000).map(at) {
        let place = time.rem_euclid(config.interval.as_secs_f64()) / config.interval.as_secs_f64();
        // The last tenth that begins before it.
        if let Some((_, boxes)) = (0..10_u32).zip(&mut places).rfind(|(tenth, _)| f64::from(*tenth) / 10.0 <= place) {
            *boxes += 1;
        }
    }
    assert!(places.iter().all(|boxes| (100..320).contains(boxes)), "{places:?} of 2000");
    assert!((0..1000).all(|_| spread(&config, INTERVAL) < JITTER));
}

#[test]
fn a_service_that_never_has_enough_is_told_no_more_often_than_others() {
    let (dir, fake) = open_service();
    let this = Reporting::start(dir.path(), &[fake.url()], |config| config.jitter_percent = 0);
    this.some_reports(2);
    fake.inside.lock().asks = serde_json::json!({ "full": true });
    this.comes_within("steering-0", INTERVAL, INTERVAL);
    // Once soon, though not at once, since it may have lost what it was told.
    this.comes_within("steering-0", Duration::from_secs(1), Duration::from_secs(1));
    for _ in 0..3 {
        this.comes_within("steering-0", INTERVAL, INTERVAL);
    }
}

#[test]
fn a_drain_that_comes_and_goes_is_told_no_more_often_than_reports_may_come() {
    let (dir, fake) = open_service();
    let this = Reporting::start(dir.path(), &[fake.url()], |_| {});
    let phase = &this.condition.phase;
    phase.enter(Phase::Serving);
    this.some_reports(2);
    this.clock.advance(Duration::from_secs(1));
    let before = this.outcomes("steering-0");
    phase.enter(Phase::Drained);
    wait_until("the first is told at once", || this.outcomes("steering-0") > before);
    let told = this.outcomes("steering-0");
    for _ in 0..20 {
        phase.undrain();
        phase.enter(Phase::Drained);
        std::thread::park_timeout(Duration::from_millis(5));
    }
    phase.undrain();
    std::thread::park_timeout(Duration::from_millis(20));
    assert_eq!(this.outcomes("steering-0"), told, "within the same second");
    this.clock.advance(Duration::from_secs(1));
    wait_until("what it came to is told", || this.outcomes("steering-0") > told);
    assert_eq!(fake.last()["phase"], "serving");
}

#[test]
fn the_end_is_told_before_it_comes_and_not_waited_for_where_nobody_listens() {
    let (dir, fake) = open_service();
    let this = Reporting::start(dir.path(), &[fake.url()], |_| {});
    this.some_reports(2);
    this.condition.phase.enter(Phase::Stopping);
    this.runtime.block_on(this.reporter.say_goodbye(Duration::from_secs(20)));
    assert_eq!(fake.last()["phase"], "stopping");
    let (dir, fake) = open_service();
    let this = Reporting::start(dir.path(), &[fake.url()], |_| {});
    fake.set(Mood::Status(500));
    this.some_reports(2);
    this.condition.phase.enter(Phase::Stopping);
    // Would fail the test by its time limit.
    this.runtime.block_on(this.reporter.say_goodbye(Duration::from_secs(3600)));
}

#[test]
fn an_interval_that_a_service_has_set_stays_within_bounds_that_come_later() {
    let (dir, fake) = open_service();
    let this = Reporting::start(dir.path(), &[fake.url()], |config| config.jitter_percent = 0);
    fake.inside.lock().asks = serde_json::json!({ "interval_ms": 60_000 });
    this.some_reports(2);
    fake.inside.lock().asks = serde_json::json!({});
    let mut config = Config::clone(&this.reporter.config.load());
    config.interval_max = Duration::from_secs(15);
    {
        let _inside = this.runtime.enter();
        start(&this.reporter, prepare(&config).expect("good files"), &this.condition.phase.watch());
    }
    std::thread::park_timeout(Duration::from_millis(20));
    this.comes_within("steering-0", Duration::from_secs(14), Duration::from_secs(15));
}
