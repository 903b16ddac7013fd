//! Nights: what a manifest lists is fetched in the fill window, compared, and served only then. In this process, by a clock that the
//! tests move.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use oca::{
    appliance::Appliance,
    asset::{AssetKey, BlockSize, ByteCount, Sha256, UnixTime},
    config::{Config, Machine},
    control::{
        Accepted, InForce,
        manifest::{BlockDigests, Builder, Details, Head, ManifestAsset, Purge},
    },
    sys::{Clock, sandbox::Reach},
};
use serde_json::Value;

use crate::support::{Client, Content, Fault, Origin, Published, Response};

const MIB: u64 = 1 << 20;
/// A Thursday, 01:00 UTC.
pub(crate) const ONE: UnixTime = UnixTime(1_768_438_800);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
/// Longest time that anything may take that is not waited for by the clock.
const PATIENCE: Duration = Duration::from_secs(60);

/// An appliance in this process.
pub(crate) struct Night {
    runtime: tokio::runtime::Runtime,
    appliance: Option<Appliance>,
    clock: Clock,
    in_force: InForce,
    home: tempfile::TempDir,
    config: String,
}

pub(crate) fn sha256(bytes: &[u8]) -> Sha256 {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    Sha256::new(digest.as_ref().try_into().expect("32 bytes"))
}

pub(crate) fn key(path: &str) -> AssetKey {
    AssetKey::parse(path, None).expect("valid")
}

pub(crate) fn listed(path: &str, content: Content) -> ManifestAsset {
    ManifestAsset { sha256: Some(sha256(&content.whole())), ..ManifestAsset::new(key(path), ByteCount(content.length)) }
}

/// With digests of its blocks, of 64 KiB each.
fn listed_in_blocks(path: &str, content: Content) -> ManifestAsset {
    let size = BlockSize::new(64 << 10).expect("valid");
    let blocks = BlockDigests { size, sha256: content.whole().chunks(64 << 10).map(sha256).collect() };
    let details = Details { blocks: Some(blocks), ..Details::default() };
    ManifestAsset { sha256: None, details: Some(Box::new(details)), ..listed(path, content) }
}

impl Night {
    /// `fill`: lines for the inside of `[fill.nightly]` and tables after it. The window is that of Open Connect, in UTC, unless it says
    /// otherwise.
    fn start(origins: &[&Origin], nightly: &str) -> Self {
        let sources: String = (0..)
            .zip(origins)
            .map(|(number, origin)| {
                let url = origin.url();
                format!(
                    "[[fill.source]]\nkind = \"origin\"\nname = \"o{number}\"\nurl = \"{url}\"\ncost = {}\nstall_timeout = \"2 s\"\n",
                    number + 1
                )
            })
            .collect();
        Self::start_on(Clock::manual(ONE), "256 MiB", &sources, nightly)
    }

    /// With tables that name its sources.
    pub(crate) fn start_on(clock: Clock, capacity: &str, sources: &str, nightly: &str) -> Self {
        let home = tempfile::Builder::new().prefix("oca-test-").tempdir().expect("a scratch folder");
        let (volume, log) = (home.path().join("volume"), home.path().join("fill.log"));
        let config = format!(
            "[serve]\nhttp = [\"127.0.0.1:0\"]\nworkers = 1\n[storage]\nblock_size = \"64 KiB\"\n[[storage.volume]]\npath = {volume:?}\n\
             capacity = \"{capacity}\"\n[fill]\nfetch_max = \"256 KiB\"\nretry_delay = \"10 ms\"\nretry_delay_max = \"50 ms\"\n{sources}\
             [process]\nsandbox = \"off\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[fill.nightly]\ngives_way = false\ntime_zone = \"UTC\"\nlog = {log:?}\n{nightly}\n"
        );
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let mut night = Self { runtime, appliance: None, clock, in_force: InForce::default(), home, config };
        night.start_again();
        night
    }

    pub(crate) fn config(&self) -> Config {
        Config::parse("oca.toml", &self.config, Machine::here()).expect("valid")
    }

    pub(crate) fn start_again(&mut self) {
        let config = self.config();
        let begun = Instant::now();
        // The threads of one that was stopped let go of the volume a moment later.
        self.appliance = Some(loop {
            let (clock, in_force) = (self.clock.clone(), self.in_force.clone());
            match Appliance::start_by(config.clone(), Reach::default(), clock, in_force) {
                Ok(appliance) => break appliance,
                Err(err) => assert!(begun.elapsed() < PATIENCE, "{err:?}"),
            }
            std::thread::park_timeout(Duration::from_millis(20));
        });
    }

    pub(crate) fn stop(&mut self) {
        let appliance = self.appliance.take().expect("it runs");
        self.runtime.block_on(appliance.shutdown());
    }

    pub(crate) fn put(&self, sequence: u64, assets: impl IntoIterator<Item = ManifestAsset>) {
        self.put_head(Head { sequence, expires: UnixTime(u64::MAX), ..Head::default() }, assets);
    }

    fn put_head(&self, head: Head, assets: impl IntoIterator<Item = ManifestAsset>) {
        let mut builder = Builder::default();
        assets.into_iter().for_each(|asset| builder.add(asset).expect("once"));
        let (digest, received) = (Sha256::new([0; 32]), self.clock.unix());
        self.in_force.put(Accepted { manifest: builder.finish(head), digest, received, keys: Vec::new() });
    }

    pub(crate) fn in_force(&self) -> &InForce {
        &self.in_force
    }

    pub(crate) fn runs(&self) -> bool {
        self.appliance.is_some()
    }

    pub(crate) fn http(&self) -> SocketAddr {
        self.appliance.as_ref().expect("it runs").http_addresses()[0]
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        Client::connect(self.http()).get(path)
    }

    pub(crate) fn admin(&self, method: &str, path: &str, body: &str) -> Response {
        let address = self.appliance.as_ref().expect("it runs").admin_address();
        let mut client = Client::connect(address);
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        client.send(request.as_bytes());
        client.read_response(method).expect("the response is whole")
    }

    pub(crate) fn fill_status(&self) -> Value {
        let status: Value = serde_json::from_slice(&self.admin("GET", "/status", "").body).expect("JSON");
        status["fill"].clone()
    }

    fn why(&self, path: &str) -> Value {
        let told = self.admin("POST", "/v1/why", &format!("{{\"path\": {path:?}}}"));
        serde_json::from_slice(&told.body).expect("JSON")
    }

    /// Waits, and lets seconds of the clock pass meanwhile, a quarter of one each time.
    fn until(&self, what: &str, reached: impl Fn() -> bool) {
        let begun = Instant::now();
        while !reached() {
            assert!(begun.elapsed() < PATIENCE, "{what}: not in time; {:#}", self.fill_status());
            std::thread::park_timeout(Duration::from_millis(20));
            self.clock.advance(Duration::from_millis(250));
        }
    }

    fn held(&self) -> u64 {
        self.fill_status()["held"]["assets"].as_u64().expect("a number")
    }

    fn until_held(&self, count: u64) {
        self.until(&format!("{count} held"), || self.held() == count);
    }

    fn is_hit(&self, path: &str, content: Content) -> bool {
        let response = self.get(path);
        assert_eq!(response.status(), 200, "{path}");
        assert!(response.body == content.whole(), "{path}: served as it was published");
        let cache = response.field("cache-status").expect("it says").to_owned();
        assert!(cache.contains("hit") || cache.contains("fwd"), "{cache}");
        cache.contains("hit")
    }
}

impl Drop for Night {
    fn drop(&mut self) {
        if self.appliance.is_some() {
            self.stop();
        }
        drop(std::fs::remove_dir_all(self.home.path()));
    }
}

fn publish(origin: &Origin, count: u64, length: u64) -> Vec<(String, Content)> {
    (0..count)
        .map(|n| format!("/film{n}.mp4"))
        .map(|path| {
            let seed = path.bytes().map(u64::from).sum::<u64>() + length;
            let content = origin.publish_new(&path, seed, length);
            (path, content)
        })
        .collect()
}

#[test]
fn what_is_listed_comes_in_the_window_and_is_a_hit_from_then_on() {
    let origin = Origin::start();
    let films = publish(&origin, 5, 700_001);
    let night = Night::start(&[&origin], "");
    night.put(1, films.iter().map(|(path, content)| listed(path, *content)));
    night.until("planned", || night.fill_status()["wanted"]["assets"] == 5);
    let (path, content) = &films[0];
    assert!(!night.is_hit(path, *content), "before it was compared it passes through");
    assert!(!night.is_hit(path, *content), "and is not taken in by that");
    assert_eq!(night.fill_status()["window"]["opens"], ONE.0 + 3600);
    assert_eq!(night.fill_status()["held"]["assets"], 0);
    night.clock.advance(HOUR);
    night.until_held(5);
    let sent = origin.targets().len();
    assert!(films.iter().all(|(path, content)| night.is_hit(path, *content)));
    assert_eq!(origin.targets().len(), sent, "nobody is asked for what is held");
    let why = night.why(path);
    assert_eq!((&why["manifest"]["rank"], &why["held"]["digest_compared"]), (&Value::from(0), &Value::from(true)));
    assert_eq!(why["events"][0]["event"], "held");
    let metrics = String::from_utf8(night.admin("GET", "/metrics", "").body).expect("text");
    for line in ["oca_fill_held_assets 5", "oca_fill_window_open 1", "oca_fill_fetched_assets_total 5"] {
        assert!(metrics.lines().any(|told| told == line), "{line}");
    }
}

#[test]
fn a_window_that_closes_pauses_and_the_next_one_goes_on_from_there() {
    let origin = Origin::start();
    let content = origin.publish_new("/long.mp4", 7, 8 * MIB);
    // 64 KiB in a sixteenth of a second.
    let window = "[[fill.window]]\nfrom = \"02:00\"\nto = \"03:00\"\nrate = \"8 Mbps\"";
    let mut night = Night::start(&[&origin], window);
    night.put(1, [listed("/long.mp4", content)]);
    night.clock.advance(HOUR);
    let came = |night: &Night| night.fill_status()["fetched_bytes"]["origin"].as_u64().expect("a number");
    night.until("a part", || came(&night) > MIB);
    night.clock.advance(HOUR);
    night.until("closed", || night.fill_status()["window"]["state"] == "closed" && night.fill_status()["in_work"] == 0);
    let before = came(&night);
    assert!(before < 8 * MIB, "{before}");
    night.clock.advance(HOUR);
    std::thread::park_timeout(Duration::from_millis(300));
    assert_eq!(came(&night), before, "nothing comes while it is closed");
    night.stop();
    night.start_again();
    night.clock.advance(22 * HOUR);
    night.until_held(1);
    assert!(night.is_hit("/long.mp4", content));
    let sent = origin.sent("/long.mp4");
    // A block that had begun is fetched again, and a byte tells what the asset is.
    assert!(sent <= 8 * MIB + 512 * 1024, "{sent} bytes for {}", 8 * MIB);
}

#[test]
fn what_is_held_is_compared_at_once_and_dropped_where_it_is_another_asset() {
    let origin = Origin::start();
    let films = publish(&origin, 2, 500_000);
    let night = Night::start(&[&origin], "");
    for (path, content) in &films {
        night.is_hit(path, *content);
        night.until("held", || night.is_hit(path, *content));
    }
    let other = ManifestAsset { sha256: Some(sha256(b"another")), ..listed(&films[1].0, films[1].1) };
    night.put(1, [listed(&films[0].0, films[0].1), other]);
    night.until_held(1);
    assert_eq!(night.fill_status()["window"]["state"], "closed");
    assert!(night.is_hit(&films[0].0, films[0].1));
    night.until("dropped", || night.why(&films[1].0)["held"].is_null());
    assert!(!night.is_hit(&films[1].0, films[1].1), "it passes through");
}

#[test]
fn by_order_it_fills_whatever_the_window() {
    let origin = Origin::start();
    let films = publish(&origin, 3, 300_000);
    let night = Night::start(&[&origin], "");
    assert_eq!(night.admin("POST", "/v1/fill", "{}").status(), 409, "there is no manifest");
    night.put(1, films.iter().map(|(path, content)| listed(path, *content)));
    night.until("planned", || night.fill_status()["wanted"]["assets"] == 3);
    assert_eq!(night.admin("POST", "/v1/fill", "{}").status(), 200);
    night.until_held(3);
    night.until("the order is carried out", || night.fill_status()["now"] == false);
    assert_eq!(night.fill_status()["window"]["state"], "closed");
}

#[test]
fn a_source_that_gives_another_asset_is_left_alone_and_the_next_one_asked() {
    let (liar, honest) = (Origin::start(), Origin::start());
    let films = publish(&honest, 2, 500_000);
    for (path, _) in &films {
        // The right length and a tag of its own, and other bytes.
        liar.publish_new(path, 99, 500_000);
    }
    let night = Night::start(&[&liar, &honest], "");
    let (whole, blocks) = (&films[0], &films[1]);
    night.put(1, [listed(&whole.0, whole.1), listed_in_blocks(&blocks.0, blocks.1)]);
    night.clock.advance(HOUR);
    night.until_held(2);
    assert!(films.iter().all(|(path, content)| night.is_hit(path, *content)));
    let status: Value = serde_json::from_slice(&night.admin("GET", "/status", "").body).expect("JSON");
    let source = status["sources"].as_array().expect("a list").iter().find(|source| source["name"] == "o0");
    assert!(source.expect("it is there")["errors"]["wrong_digest"].as_u64() >= Some(1), "{source:?}");
    assert!(liar.sent(&blocks.0) < 300_000, "the first wrong block is enough: {}", liar.sent(&blocks.0));
}

#[test]
fn what_nobody_has_right_is_never_kept_and_says_why() {
    let origin = Origin::start();
    origin.publish_new("/wrong.mp4", 99, 400_000);
    let (right, gone) = (Content::new(1, 400_000), Content::new(2, 100));
    let night = Night::start(&[&origin], "");
    night.put(1, [listed("/wrong.mp4", right), listed("/gone.mp4", gone)]);
    night.clock.advance(HOUR);
    night.until("failed", || night.fill_status()["failed"].as_object().is_some_and(|failed| failed.len() == 2));
    assert_eq!(night.fill_status()["failed"]["gone.mp4"], "not_found");
    let why = night.why("/wrong.mp4");
    assert_eq!(why["held"], Value::Null, "{why:#}");
    assert!(why["events"].as_array().expect("a list").iter().any(|event| event["event"] == "failed"), "{why:#}");
    let response = night.get("/wrong.mp4");
    assert!(!response.field("cache-status").expect("it says").contains("hit"));
    // Once it is mended, it comes.
    origin.publish("/wrong.mp4", Published::new(1, 400_000));
    origin.publish("/gone.mp4", Published::new(2, 100));
    night.until_held(2);
    assert!(night.is_hit("/wrong.mp4", right) && night.is_hit("/gone.mp4", gone));
}

#[test]
fn a_source_that_cuts_stalls_and_errs_is_asked_for_the_rest() {
    let origin = Origin::start();
    let content = origin.publish_new("/a.mp4", 3, 2 * MIB);
    for fault in [Fault::Reset(100_000), Fault::Status(500), Fault::Short(70_000), Fault::Shifted(1), Fault::Hangup] {
        origin.fail("/a.mp4", fault, 1);
    }
    let night = Night::start(&[&origin], "");
    night.put(1, [listed("/a.mp4", content)]);
    night.clock.advance(HOUR);
    night.until_held(1);
    assert!(night.is_hit("/a.mp4", content));
}

#[test]
fn a_new_manifest_replaces_what_changed_and_evicts_what_it_does_not_list_for_room() {
    let origin = Origin::start();
    let night = Night::start(&[&origin], "watched_within = \"0 s\"");
    let first: Vec<_> =
        (0..6).map(|n| (format!("/a{n}"), origin.publish_new(&format!("/a{n}"), n, 32 * MIB))).collect();
    night.put(1, first.iter().map(|(path, content)| listed(path, *content)));
    night.clock.advance(HOUR);
    night.until_held(6);
    let changed = origin.publish_new("/a0", 77, 32 * MIB);
    let second: Vec<_> =
        (0..5).map(|n| (format!("/b{n}"), origin.publish_new(&format!("/b{n}"), 50 + n, 32 * MIB))).collect();
    night.put(
        2,
        [listed("/a0", changed)].into_iter().chain(second.iter().map(|(path, content)| listed(path, *content))),
    );
    night.until("planned", || night.fill_status()["sequence"] == 2);
    night.until_held(6);
    assert!(night.is_hit("/a0", changed));
    assert!(second.iter().all(|(path, content)| night.is_hit(path, *content)));
    assert!(first[1..].iter().any(|(path, _)| night.why(path)["held"].is_null()), "256 MiB do not hold both");
}

/// Everything that is counted of a fill moves: for `tests/it/metrics.rs`.
pub(crate) fn nights_good_and_bad(look: &mut dyn FnMut(&str)) {
    let (liar, honest) = (Origin::start(), Origin::start());
    let fill = "watched_within = \"0 s\"\n[[fill.window]]\nfrom = \"02:00\"\nto = \"14:00\"\nrate = \"80 Mbps\"";
    let night = Night::start(&[&liar, &honest], fill);
    let mut look = |night: &Night| look(&String::from_utf8(night.admin("GET", "/metrics", "").body).expect("text"));
    look(&night);
    let first: Vec<_> =
        (0..6).map(|n| (format!("/a{n}"), honest.publish_new(&format!("/a{n}"), n, 32 * MIB))).collect();
    liar.publish_new("/a0", 99, 32 * MIB);
    night.put(
        1,
        first.iter().map(|(path, content)| listed(path, *content)).chain([listed("/gone", Content::new(1, 5))]),
    );
    night.clock.advance(HOUR);
    night.until("in work", || night.fill_status()["in_work"].as_u64() > Some(0) && night.held() > 0);
    look(&night);
    night.until_held(6);
    let second: Vec<_> =
        (0..6).map(|n| (format!("/b{n}"), honest.publish_new(&format!("/b{n}"), 50 + n, 32 * MIB))).collect();
    night.put(2, second.iter().map(|(path, content)| listed(path, *content)));
    night.until("planned", || night.fill_status()["sequence"] == 2);
    night.until_held(6);
    look(&night);
}

#[test]
fn the_commands_fill_plan_and_say_why() {
    let origin = Origin::start();
    let films = publish(&origin, 3, 400_000);
    let night = Night::start(&[&origin], "");
    let admin = format!("http://{}", night.appliance.as_ref().expect("it runs").admin_address());
    let oca = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_oca")).args(arguments).output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    assert_eq!(oca(&["fill", "--admin", &admin]), (Some(0), "there is no manifest to fill for\n".into()));
    assert_eq!(oca(&["why", "/film0.mp4", "--admin", &admin]).0, Some(1), "it is not held");
    let gone = listed("/gone.mp4", Content::new(9, 50));
    night.put(4, films.iter().map(|(path, content)| listed(path, *content)).chain([gone]));
    night.until("planned", || night.fill_status()["wanted"]["assets"] == 4);
    // The clock has to move while it fills.
    let done = std::sync::atomic::AtomicBool::new(false);
    let told = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                std::thread::park_timeout(Duration::from_millis(20));
                night.clock.advance(Duration::from_millis(100));
            }
        });
        let told = oca(&["fill", "--now", "--admin", &admin]);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        told
    });
    assert_eq!(told.0, Some(1), "{}", told.1);
    for expected in ["manifest 4: 3/4 assets", "1 failed", "failed: gone.mp4: not_found"] {
        assert!(told.1.contains(expected), "'{expected}' is not in\n{}", told.1);
    }
    let (code, why) = oca(&["why", "/film0.mp4", "--admin", &admin]);
    assert_eq!(code, Some(0), "{why}");
    assert!(why.contains("4 lists it with rank 0") && why.contains("held"), "{why}");
    let (code, why) = oca(&["why", "/gone.mp4", "--admin", &admin]);
    assert!(code == Some(1) && why.contains("failed: not_found"), "{why}");
}

#[test]
fn what_a_manifest_purges_goes_once_when_it_comes() {
    let origin = Origin::start();
    let mut night = Night::start(&[&origin], "");
    let names = ["/old/a.mp4", "/old/b.mp4", "/new.mp4"];
    let films: Vec<_> = names.iter().map(|path| origin.publish_new(path, 1, 200_000)).collect();
    let hold = |night: &Night, path: &str, content| {
        night.is_hit(path, content);
        night.until("held", || night.is_hit(path, content));
    };
    names.iter().zip(&films).for_each(|(path, content)| hold(&night, path, *content));
    // Its source has another version of one of them now.
    let changed = origin.publish_new(names[0], 2, 300_000);
    night.clock.advance(HOUR);
    let purge = vec![Purge::Prefix("old/".into()), Purge::Key(key("/none.mp4"))];
    night.put_head(Head { sequence: 1, expires: UnixTime(u64::MAX), purge, ..Head::default() }, []);
    night.until("purged", || names[..2].iter().all(|path| night.why(path)["held"].is_null()));
    assert!(night.is_hit(names[2], films[2]), "what it does not name stays");
    hold(&night, names[0], changed);
    // In force again after a restart it drops nothing that came since.
    night.stop();
    night.start_again();
    assert!(night.is_hit(names[0], changed) && night.is_hit(names[2], films[2]));
    assert!(!night.is_hit(names[1], films[1]), "it passes through, and is taken in");
}

/// Sources that are asked one after the other, for assets that take a while altogether.
fn two_sources(first: &Origin, second: &Origin) -> (Night, Vec<(String, Content)>) {
    let films = publish(first, 30, 200_000);
    for (path, content) in &films {
        second.publish(path, Published::new(content.seed, content.length));
    }
    // 50 kB at each step of the clock.
    let nightly = "assets_at_once = 1\n[[fill.window]]\nfrom = \"02:00\"\nto = \"14:00\"\nrate = \"1.6 Mbps\"";
    let night = Night::start(&[first, second], nightly);
    night.put(1, films.iter().map(|(path, content)| listed(path, *content)));
    (night, films)
}

#[test]
fn a_source_that_asks_for_time_gets_it_others_are_asked_meanwhile_and_it_is_asked_again() {
    let (first, second) = (Origin::start(), Origin::start());
    let (night, films) = two_sources(&first, &second);
    first.fail(&films[2].0, Fault::Later(429, 1), 1);
    night.clock.advance(HOUR);
    let said = || first.all_seen().iter().position(|seen| seen.target == films[2].0);
    night.until("it has said so", || said().is_some());
    night.until("another is asked", || !second.all_seen().is_empty());
    night.until("it is asked again", || said().is_some_and(|at| first.all_seen().len() > at + 1));
    let (seen, at) = (first.all_seen(), said().expect("it has"));
    let pause = seen[at + 1].at - seen[at].at;
    assert!(pause >= Duration::from_secs(1), "{pause:?}: a second was asked for");
    night.until_held(30);
    assert_eq!(night.fill_status()["failed"], serde_json::json!({}), "nothing has failed");
    let last = first.all_seen().last().expect("it was asked").target.clone();
    assert_eq!(last, films[29].0, "the cheapest one serves to the end");
}

#[test]
fn an_only_source_that_asks_for_time_is_waited_for_and_nothing_fails() {
    let origin = Origin::start();
    let films = publish(&origin, 30, 100_000);
    let night = Night::start(&[&origin], "assets_at_once = 1");
    origin.fail(&films[3].0, Fault::Later(503, 1), 1);
    night.put(1, films.iter().map(|(path, content)| listed(path, *content)));
    night.clock.advance(HOUR);
    night.until_held(30);
    let (seen, why) = (origin.all_seen(), night.why(&films[3].0));
    let at = seen.iter().position(|seen| seen.target == films[3].0).expect("it was asked for");
    assert!(seen[at + 1].at - seen[at].at >= Duration::from_secs(1), "it is left alone for as long as it said");
    let events = why["events"].as_array().expect("a list");
    assert!(events.iter().all(|event| event["event"] != "failed"), "{why:#}");
    assert!(night.fill_status()["rounds"].as_u64() <= Some(1), "all in one round");
}

#[test]
fn a_source_that_stalls_is_left_and_the_next_one_goes_on_where_it_stopped() {
    let (first, second) = (Origin::start(), Origin::start());
    let (night, films) = two_sources(&first, &second);
    // The first request for it is for a byte.
    first.fail(&films[2].0, Fault::Stall(100_000), 2);
    night.clock.advance(HOUR);
    night.until_held(30);
    assert!(films.iter().all(|(path, content)| night.is_hit(path, *content)));
    let rest = second.seen(&films[2].0);
    assert_eq!(rest[0].field("range"), Some("bytes=100000-199999"), "{rest:?}");
    assert_eq!(first.all_seen().last().expect("it was asked").target, films[29].0, "it serves to the end");
}
