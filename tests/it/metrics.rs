//! Metrics that nothing moves are worse than none: each metric of `docs/metrics.md` is moved here, or says why it is not.

use std::{collections::BTreeSet, fs, thread, time::Duration};

use rustix::process::{Resource, Rlimit, Signal, prlimit};

use crate::support::{
    Authority, Client, Fault, KeyKind, Origin, Published, Setup,
    http2::{Http2, PING, frame},
    replace, request, wait_until,
};

const PATIENCE: Duration = Duration::from_secs(30);

mod looks;

pub(crate) use looks::Looks;

/// Metrics that nothing from outside moves, and what holds them instead.
const NOT_MOVED: &[(&str, &str)] = &[
    ("tls_kernel_connections_total", "it takes a kernel with TLS; `tests/guest/run` boots one"),
    ("build_info", "it is always 1; `constants_say_what_they_should` looks at it"),
    ("volume_capacity_bytes", "it never changes; `constants_say_what_they_should` looks at it"),
    ("egress_capacity_bits_per_second", "as the volume's"),
    ("volume_sync_failures_total", "it takes a broken disk; the catalog's tests have one"),
    ("manifests_accepted_total", "tests/it/manifests.rs has a control plane"),
    ("manifests_refused_total", "tests/it/manifests.rs has a control plane"),
    ("manifest_key_reloads_total", "tests/it/manifests.rs has a control plane"),
    ("manifest_sequence", "tests/it/manifests.rs has a control plane"),
    ("manifest_assets", "tests/it/manifests.rs has a control plane"),
    ("manifest_age_seconds", "control's tests hold the clock"),
    ("manifest_expiry_seconds", "tests/it/manifests.rs has a control plane"),
    ("manifest_stale", "control's tests hold the clock"),
    ("panics_total", "nothing that can be sent makes a request panic; `process` has one that was told to"),
    ("worker_major_faults_total", "that workers never wait for the disk is the point of residency"),
    ("worker_block_reads_total", "as major faults"),
];

/// Metrics that have no series before there is something to tell.
const ABSENT_AT_FIRST: &[&str] = &[
    "fill_errors_total",
    "manifests_refused_total",
    "tls_certificate_expiry_seconds",
    "headroom_bits_per_second",
    "disk_busy_ratio",
];

/// The page's rows: name without `oca_`, kind, names of labels.
fn page() -> Vec<(&'static str, &'static str, Vec<&'static str>)> {
    let rows = include_str!("../../docs/metrics.md").lines().filter_map(|line| line.strip_prefix("| `oca_"));
    let rows = rows.map(|row| {
        let mut cells = row.split('|').map(str::trim);
        let name = cells.next().expect("a name").trim_end_matches('`');
        let kind = cells.next().expect("a kind");
        let labels = cells.next().expect("labels").split(',').filter(|label| !label.is_empty()).collect();
        (name, kind, labels)
    });
    rows.collect()
}

#[test]
fn every_metric_is_moved_by_what_it_counts() {
    let scenarios: &[fn(&mut Looks)] = &[
        ordinary_days,
        origins_that_fail,
        waiting_for_an_origin,
        room_is_needed,
        clients_that_are_slow,
        clients_that_are_too_slow,
        clients_that_see_a_drain,
        clients_that_are_too_many,
        after_an_unclean_stop,
        disks_that_go,
        crate::crash::databases_that_cannot_be_written,
        handshakes_of_every_kind,
        signatures_good_and_bad,
        crate::steering::reports_of_every_kind,
        crate::operators::strangers_and_renewals,
        |looks| crate::nightly::nights_good_and_bad(&mut |text| looks.note(text)),
        |looks| crate::peers::a_site_whose_box_goes(|appliance| looks.look(appliance)),
        crate::clients::clients_of_every_kind,
        |looks| crate::crowds::a_crowd_that_leaves(&mut |appliance| looks.look(appliance)),
        crate::overload::too_much_and_enough,
        crate::overload::room_for_connections,
    ];
    let mut all = Looks::default();
    thread::scope(|scope| {
        let run = |scenario: fn(&mut Looks)| {
            scope.spawn(move || {
                let mut looks = Looks::default();
                scenario(&mut looks);
                looks
            })
        };
        for running in scenarios.iter().copied().map(run).collect::<Vec<_>>() {
            all.merge(running.join().expect("the scenario holds"));
        }
    });

    let unmoved: BTreeSet<&str> =
        page().into_iter().filter(|(name, kind, _)| !all.moved(name, kind)).map(|(name, ..)| name).collect();
    let excused: BTreeSet<&str> = NOT_MOVED.iter().map(|(name, _)| *name).collect();
    let mut may_move = BTreeSet::from(["worker_major_faults_total", "worker_block_reads_total"]);
    if scratch_is_memory() {
        eprintln!("SKIPPED: cold reads, since the scratch folder lies in memory");
        may_move.extend(["cold_waits_total", "cold_wait_seconds_total", "disk_busy_ratio"]);
    }
    if !has_io_uring() {
        eprintln!("SKIPPED: prefetches, which need io_uring");
        may_move.insert("prefetches_total");
    }
    // What is excused may move all the same on a slow machine; what is not has to.
    let unexplained: Vec<_> =
        unmoved.iter().filter(|name| !excused.contains(*name) && !may_move.contains(*name)).collect();
    assert!(unexplained.is_empty(), "nothing moves {unexplained:?}");

    assert_eq!(
        all.labels("cache_outcomes_total", "outcome"),
        BTreeSet::from(["hit", "miss", "partial", "stale", "revalidated", "pass", "negative", "none"])
    );
    assert_eq!(
        all.labels("connections_closed_total", "reason"),
        BTreeSet::from([
            "header_timeout",
            "idle_timeout",
            "stalled",
            "too_slow",
            "drain",
            "handshake_timeout",
            "handshakes_max",
            "flood",
            "overload",
            "connections_full"
        ])
    );
    assert_eq!(all.labels("sent_bytes_total", "path"), BTreeSet::from(["sendfile", "copied", "encrypted"]));
    assert_eq!(
        all.labels("tls_handshakes_total", "outcome"),
        BTreeSet::from(["full", "resumed", "failed", "left", "cut", "plaintext"])
    );
    assert_eq!(all.labels("tls_handshakes_total", "version"), BTreeSet::from(["1.2", "1.3", "none"]));
    assert_eq!(all.labels("tls_renewals_total", "outcome"), BTreeSet::from(["used", "refused"]));
    // 431 is hyper's own answer, before there is a request to count; 500 would be a fault of ours.
    let statuses = [
        "200", "204", "206", "304", "400", "401", "403", "404", "405", "410", "412", "414", "416", "502", "503", "504",
    ];
    let counted = all.labels("responses_total", "status");
    assert!(statuses.iter().all(|status| counted.contains(status)), "{counted:?}");
    assert!(!counted.contains("500"));
    assert_eq!(all.labels("signing_key_reloads_total", "outcome"), BTreeSet::from(["used", "refused"]));
    // At least two ways to fail, each with its own name.
    assert!(all.labels("fill_errors_total", "reason").len() >= 2);
}

fn signatures_good_and_bad(looks: &mut Looks) {
    crate::signed::good_and_bad(|appliance| looks.look(appliance));
}

/// Whether scratch folders lie on a file system that has no disk to read from.
fn scratch_is_memory() -> bool {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    let status = rustix::fs::statfs(std::env::temp_dir()).expect("it is there");
    u64::try_from(status.f_type) == Ok(TMPFS_MAGIC)
}

fn has_io_uring() -> bool {
    let appliance = Setup::new(&Origin::start()).start();
    let status: serde_json::Value = serde_json::from_slice(&appliance.admin("/status").body).expect("JSON");
    status["cold_reads_by"] == "io_uring"
}

/// Hits, misses and what else a day brings.
fn ordinary_days(looks: &mut Looks) {
    let mut origin = Origin::start();
    let log = tempfile::tempdir().expect("a scratch folder");
    let path = log.path().join("access.log");
    let appliance = Setup::new(&origin)
        .catalog("touch_queue_max = 1\nnegative_ttl = \"1 min\"")
        .fill("fetch_max = \"1 MiB\"\nread_ahead = \"1 MiB\"")
        .tables(&format!("[log.access]\npath = {path:?}\nqueue_max = 1"))
        .start();
    looks.look(&appliance);
    for n in 0..8 {
        origin.publish_new(&format!("/film{n}.mp4"), n, 300_000);
        assert_eq!(appliance.get(&format!("/film{n}.mp4")).status(), 200);
    }
    // Several assets, used at the same moment: not all uses can be noted.
    wait_until("uses are dropped", PATIENCE, || {
        let mut client = appliance.connect();
        for n in 0..8 {
            assert_eq!(client.get(&format!("/film{n}.mp4")).status(), 200);
        }
        appliance.metric("oca_touches_dropped_total", "") > 0.0
    });
    // Lines are as long as their targets, and the shortest queue has room for the longest of all.
    let heads = format!("HEAD /film0.mp4?{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(400)).repeat(100);
    wait_until("lines of the log are dropped", PATIENCE, || {
        drop(appliance.connect().try_send(heads.as_bytes()));
        appliance.metric("oca_access_log_dropped_total", "") > 0.0
    });
    let etag = appliance.get("/film0.mp4").field("etag").expect("the origin gives one").to_owned();
    let mut client = appliance.connect();
    assert_eq!(client.range("/film0.mp4", "bytes=5-9").status(), 206);
    assert_eq!(client.range("/film0.mp4", "bytes=300000-").status(), 416);
    assert_eq!(client.ask("GET", "/film0.mp4", &[("If-None-Match", &etag)]).status(), 304);
    assert_eq!(client.ask("GET", "/film0.mp4", &[("If-Match", "\"other\"")]).status(), 412);
    assert_eq!(client.ask("OPTIONS", "/film0.mp4", &[]).status(), 204);
    assert_eq!(appliance.connect().ask("DELETE", "/film0.mp4", &[]).status(), 405);
    assert_eq!(appliance.get("/a/../b").status(), 400);
    assert_eq!(appliance.get(&format!("/{}", "x".repeat(2000))).status(), 414);
    for (path, status) in [("/absent.mp4", 404), ("/gone.mp4", 410), ("/forbidden.mp4", 403)] {
        origin.fail(path, Fault::Status(status), usize::MAX);
        assert_eq!(appliance.get(path).status(), status);
        assert_eq!(appliance.get(path).status(), status, "it is remembered");
    }

    origin.publish_new("/long.mp4", 9, 20 << 20);
    assert_eq!(appliance.range("/long.mp4", "bytes=0-9").status(), 206);
    assert_eq!(appliance.range("/long.mp4", "bytes=20000000-20000009").status(), 206, "the first of its block");
    origin.publish("/secret.mp4", Published::new(10, 5000).field("Cache-Control", "no-store"));
    assert_eq!(appliance.get("/secret.mp4").status(), 200);
    let list = |seed| Published::new(seed, 5000).field("Cache-Control", "max-age=0");
    for seed in [11, 11, 12] {
        // Made, found to be still good, found to have changed.
        origin.publish("/list.m3u8", list(seed));
        assert_eq!(appliance.get("/list.m3u8").status(), 200);
    }
    looks.look(&appliance);
    origin.go_down();
    assert_eq!(appliance.get("/list.m3u8").status(), 200, "stale is better than nothing");
    wait_until("blocks are durable", PATIENCE, || appliance.metric("oca_blocks_durable_total", "") > 0.0);
    wait_until("a second has passed", PATIENCE, || appliance.metric("oca_uptime_seconds", "") >= 1.0);
    drop(appliance.connect().try_send(b"GET /film0.mp4 HTTP/1.1\r\nHo"));
    wait_until("who hung up is noticed", PATIENCE, || appliance.metric("oca_connection_errors_total", "") > 0.0);
    assert!(crate::life::oca(&appliance, &["purge", "/film0.mp4"]).status.success());
    looks.look(&appliance);
}

fn origins_that_fail(looks: &mut Looks) {
    let origin = Origin::start();
    let appliance = Setup::new(&origin)
        .catalog("failure_ttl = \"20 ms\"")
        .source("response_timeout = \"500 ms\"\nstall_timeout = \"500 ms\"\nretry_after = \"50 ms\"")
        .start();
    looks.look(&appliance);
    // The first block comes, what is behind it never does: not piece by piece either, as it would from an origin that only cuts.
    origin.publish_new("/cut.mp4", 1, 20 << 20);
    origin.fail("/cut.mp4", Fault::Short(1_500_000), 1);
    origin.fail("/cut.mp4", Fault::Status(500), usize::MAX);
    assert!(appliance.connect().try_ask("GET", "/cut.mp4", &[]).is_err(), "it is cut");
    origin.fail("/broken.mp4", Fault::Status(500), usize::MAX);
    wait_until("the source is set aside", PATIENCE, || {
        assert!(matches!(appliance.get("/broken.mp4").status(), 502 | 503));
        appliance.metric("oca_source_set_aside", "") == 1.0
    });
    looks.look(&appliance);
    origin.recover();
    origin.publish_new("/whole.mp4", 2, 5000);
    wait_until("it is used again", PATIENCE, || appliance.get("/whole.mp4").status() == 200);
    assert_eq!(appliance.metric("oca_source_set_aside", ""), 0.0);
    looks.look(&appliance);
}

fn waiting_for_an_origin(looks: &mut Looks) {
    let origin = Origin::start();
    let appliance = Setup::new(&origin)
        .serve("miss_timeout = \"2 s\"")
        .fill("fetches_max = 1")
        .catalog("demand_queue_max = 2")
        .start();
    looks.look(&appliance);
    let gate = origin.gate("/film.mp4");
    origin.publish_new("/film.mp4", 1, 5000);
    let mut clients: Vec<Client> = (0..2).map(|_| appliance.connect()).collect();
    for client in &mut clients {
        client.send(&request("GET", "/film.mp4", &[]));
    }
    gate.wait_for(1);
    wait_until("the second joins the first", PATIENCE, || appliance.metric("oca_demands_collapsed_total", "") >= 1.0);
    let mut leaving = appliance.connect();
    leaving.send(&request("GET", "/film.mp4", &[]));
    wait_until("so does the third", PATIENCE, || appliance.metric("oca_demands_collapsed_total", "") >= 2.0);
    drop(leaving);
    wait_until("it has left", PATIENCE, || appliance.metric("oca_requests_abandoned_total", "") == 1.0);

    let mut queued: Vec<Client> = (0..2).map(|_| appliance.connect()).collect();
    for (n, client) in queued.iter_mut().enumerate() {
        client.send(&request("GET", &format!("/other{n}.mp4"), &[]));
    }
    wait_until("they queue", PATIENCE, || appliance.metric("oca_demands_queued", "") == 2.0);
    looks.look(&appliance);
    assert_eq!(appliance.get("/one-too-many.mp4").status(), 503);
    for client in &mut clients {
        assert_eq!(client.read_response("GET").expect("an answer").status(), 504);
    }
    drop(gate);
    wait_until("nothing waits", PATIENCE, || appliance.metric("oca_demands_queued", "") == 0.0);
    looks.look(&appliance);
}

fn room_is_needed(looks: &mut Looks) {
    let origin = Origin::start();
    let appliance = Setup::new(&origin).capacity("16 MiB").start();
    looks.look(&appliance);
    for n in 0..8 {
        let path = format!("/film{n}.mp4");
        let content = origin.publish_new(&path, n, 4_000_000);
        content.assert_is(0, &appliance.get(&path).body);
    }
    wait_until("something is evicted", PATIENCE, || appliance.metric("oca_evicted_bytes_total", "") > 0.0);
    looks.look(&appliance);
}

fn clients_that_are_slow(looks: &mut Looks) {
    let origin = Origin::start();
    origin.publish_new("/film.mp4", 1, 64 << 20);
    let mut appliance = Setup::new(&origin)
        .serve("header_timeout = \"400 ms\"\nidle_timeout = \"2 s\"\nstall_timeout = \"1 s\"")
        .start();
    looks.look(&appliance);
    let closed = |reason: &str| appliance.metric("oca_connections_closed_total", &format!("reason=\"{reason}\""));
    let mut idle = appliance.connect();
    assert_eq!(idle.range("/film.mp4", "bytes=0-0").status(), 206);
    let silent = appliance.connect();
    let mut stalled = appliance.connect();
    stalled.send(&request("GET", "/film.mp4", &[]));
    for reason in ["header_timeout", "idle_timeout", "stalled"] {
        wait_until(reason, PATIENCE, || closed(reason) > 0.0);
    }
    looks.look(&appliance);
    drop((idle, silent, stalled));
    appliance.stop();
}

fn clients_that_are_too_slow(looks: &mut Looks) {
    let origin = Origin::start();
    origin.publish_new("/film.mp4", 1, 64 << 20);
    // No client takes so much: whoever has to be waited for at all is too slow, and nobody stalls.
    let mut appliance = Setup::new(&origin).serve("send_rate_min = \"1 Tbps\"\nsend_rate_window = \"500 ms\"").start();
    looks.look(&appliance);
    let mut slow = appliance.connect();
    slow.send(&request("GET", "/film.mp4", &[]));
    wait_until("the slow one is cut", PATIENCE, || {
        appliance.metric("oca_connections_closed_total", "reason=\"too_slow\"") > 0.0
    });
    looks.look(&appliance);
    drop(slow);
    appliance.stop();
}

fn handshakes_of_every_kind(looks: &mut Looks) {
    let (authority, origin) = (Authority::new(), Origin::start());
    origin.publish_new("/film.mp4", 1, 5000);
    let issued = authority.issue("a", &["a.test"], (KeyKind::Ecdsa, 2040));
    let appliance = Setup::new(&origin).tls(&issued, &[], "handshake_timeout = \"5 s\"\nhandshakes_max = 2").start();
    looks.look(&appliance);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = authority.client(&[version], &[]);
        for _ in 0..2 {
            let mut client = Client::connect_tls(appliance.https(), "a.test", &config).expect("a session");
            assert_eq!(client.get("/film.mp4").status(), 200);
        }
    }
    let config = authority.client(&[&rustls::version::TLS13], &["h2"]);
    let mut flooding =
        Http2::begin(Client::connect_tls(appliance.https(), "a.test", &config).expect("a session"), 1 << 20);
    // It may be sent away before it has said all.
    drop(flooding.client.try_send(&frame(PING, 0, 0, &[0; 8]).repeat(2000)));
    flooding.until_over();
    assert_eq!(Client::connect(appliance.https()).get("/film.mp4").status(), 400);
    Client::connect(appliance.https()).send(&[0; 64]);
    let ended = |outcome: &str| appliance.metric("oca_tls_handshakes_total", &format!("outcome=\"{outcome}\""));
    wait_until("it has failed", PATIENCE, || ended("failed") > 0.0);
    drop(Client::connect(appliance.https()));
    wait_until("it has left", PATIENCE, || ended("left") > 0.0);
    let silent: Vec<Client> = (0..8).map(|_| Client::connect(appliance.https())).collect();
    wait_until("all are cut", PATIENCE, || ended("cut") >= silent.len() as f64);
    let renewed = |outcome: &str| appliance.metric("oca_tls_renewals_total", &format!("outcome=\"{outcome}\""));
    authority.issue("a", &["a.test"], (KeyKind::Ecdsa, 2041));
    wait_until("another one is used", PATIENCE, || renewed("used") > 0.0);
    replace(&issued.certificate, "nonsense");
    wait_until("nonsense is not", PATIENCE, || renewed("refused") > 0.0);
    looks.look(&appliance);
}

fn clients_that_see_a_drain(looks: &mut Looks) {
    let origin = Origin::start();
    origin.publish_new("/film.mp4", 1, 64 << 20);
    let mut appliance = Setup::new(&origin).start();
    looks.look(&appliance);
    let closed = |reason: &str| appliance.metric("oca_connections_closed_total", &format!("reason=\"{reason}\""));
    // One request is under way, so that the process lives on while it drains.
    let mut idle = appliance.connect();
    assert_eq!(idle.range("/film.mp4", "bytes=0-0").status(), 206);
    origin.publish_new("/later.mp4", 2, 5000);
    let gate = origin.gate("/later.mp4");
    let mut last = appliance.connect();
    last.send(&request("GET", "/later.mp4", &[]));
    gate.wait_for(1);
    appliance.signal(Signal::TERM);
    wait_until("idle connections are closed", PATIENCE, || closed("drain") > 0.0);
    looks.look(&appliance);
    drop(gate);
    assert_eq!(last.read_response("GET").expect("what was begun is finished").status(), 200);
    assert!(appliance.wait_for_exit(PATIENCE).success());
}

fn clients_that_are_too_many(looks: &mut Looks) {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 3_000_000);
    let later = origin.publish_new("/later.mp4", 2, 3_000_000);
    let appliance = Setup::new(&origin)
        .serve("connections_max = 4\nconnections_percent = 100")
        .storage("probe_interval = \"50 ms\"\nscrub_rate = \"0 bps\"")
        .start();
    content.assert_is(0, &appliance.get("/film.mp4").body);
    wait_until("it is durable", PATIENCE, || appliance.is_durable("/film.mp4"));
    let mut held: Vec<Client> = (0..4).map(|_| appliance.connect()).collect();
    assert!(held.iter_mut().all(|client| client.range("/film.mp4", "bytes=0-0").status() == 206));
    drop(appliance.connect().try_ask("GET", "/film.mp4", &[]));
    wait_until("one is refused", PATIENCE, || appliance.metric("oca_connections_refused_total", "") > 0.0);
    looks.look(&appliance);
    held.pop();

    // No descriptor is to be had, for clients, probes or anything.
    let (_, most) = rlimit::Resource::NOFILE.get().expect("the kernel says so, and our child has the same");
    let none = Rlimit { current: Some(3), maximum: Some(most).filter(|most| *most != rlimit::INFINITY) };
    let before = prlimit(Some(appliance.pid()), Resource::Nofile, none).expect("it is our child");
    let mut waiting = appliance.connect();
    waiting.send(&request("GET", "/later.mp4", &[]));
    wait_until("it is noticed", PATIENCE, || appliance.log().contains("connections cannot be accepted"));
    content.assert_is(0, &held[0].get("/film.mp4").body);
    // It cannot be fetched, since that takes a descriptor too; what it gets is a status all the same.
    let missing = held[1].get("/later.mp4").status();
    assert!(matches!(missing, 502..=504), "{missing}");
    prlimit(Some(appliance.pid()), Resource::Nofile, before).expect("it is our child");

    assert!(matches!(waiting.read_response("GET").expect("an answer").status(), 200 | 502..=504));
    assert_eq!(appliance.metric("oca_volume_failed", ""), 0.0, "that was no fault of the disk:\n{}", appliance.log());
    wait_until("all is well again", PATIENCE, || held[1].get("/later.mp4").body.len() as u64 == later.length);
    looks.look(&appliance);
}

fn after_an_unclean_stop(looks: &mut Looks) {
    let origin = Origin::start();
    let mut appliance = Setup::new(&origin).storage("sync_interval = \"20 ms\"\nscrub_rate = \"10 Gbps\"").start();
    for (path, seed) in [("/damaged.mp4", 1), ("/removed.mp4", 2), ("/whole.mp4", 3)] {
        // Lengths by which their files are told apart.
        let content = origin.publish_new(path, seed, 20_000_000 + seed);
        content.assert_is(0, &appliance.get(path).body);
        wait_until("it is durable", PATIENCE, || appliance.is_durable(path));
    }
    looks.look(&appliance);
    appliance.kill();
    for file in walkdir::WalkDir::new(appliance.volume()).into_iter().filter_map(Result::ok) {
        match file.metadata().expect("it is there").len() {
            20_000_001 => {
                use std::os::unix::fs::FileExt;
                let file = fs::File::options().write(true).open(file.path()).expect("it is ours");
                file.write_all_at(&[0; 4096], 10_000_000).expect("damaged");
                forget_pages(&file);
            }
            20_000_002 => fs::remove_file(file.path()).expect("removed"),
            20_000_003 => forget_pages(&fs::File::open(file.path()).expect("it is ours")),
            _ => {}
        }
    }
    appliance.start_again();
    looks.look(&appliance);
    for (path, seed) in [("/whole.mp4", 3), ("/damaged.mp4", 1), ("/removed.mp4", 2)] {
        let outcome = appliance.connect().try_ask("GET", path, &[]);
        let content = crate::support::Content::new(seed, 20_000_000 + seed);
        content.assert_is(0, &outcome.map_or_else(|cut| cut.received, |response| response.body));
    }
    wait_until("what was damaged is found", PATIENCE, || appliance.metric("oca_blocks_corrupt_total", "") > 0.0);
    wait_until("what was removed is missed", PATIENCE, || appliance.metric("oca_lost_assets_total", "") > 0.0);
    wait_until("the scrubber reads", PATIENCE, || appliance.metric("oca_scrubbed_bytes_total", "") > 0.0);
    looks.look(&appliance);

    // A clean stop, so that nothing has to be verified, which would make it resident.
    wait_until("it is durable", PATIENCE, || appliance.is_durable("/whole.mp4"));
    appliance.stop();
    let files = walkdir::WalkDir::new(appliance.volume()).into_iter().filter_map(Result::ok);
    for file in files.filter(|file| file.metadata().is_ok_and(|data| data.len() > 20_000_000)) {
        forget_pages(&fs::File::open(file.path()).expect("it is ours"));
    }
    appliance.start_again();
    // At once and from the start: any read before it could bring in megabytes around itself, as the kernel reads ahead.
    assert_eq!(appliance.get("/whole.mp4").status(), 200);
    let cold = appliance.metric("oca_cold_waits_total", "");
    assert!(cold > 0.0 || scratch_is_memory(), "what is not in memory is waited for");
    looks.look(&appliance);
}

/// Has the kernel drop a file from memory.
fn forget_pages(file: &fs::File) {
    file.sync_all().expect("only clean pages can be dropped");
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).expect("the kernel takes advice");
}

fn disks_that_go(looks: &mut Looks) {
    let origin = Origin::start();
    let appliance = Setup::new(&origin).storage("probe_interval = \"50 ms\"").start();
    let content = origin.publish_new("/film.mp4", 1, 3_000_000);
    content.assert_is(0, &appliance.get("/film.mp4").body);
    looks.look(&appliance);
    fs::rename(appliance.volume(), appliance.volume().with_extension("unplugged")).expect("it is ours");
    wait_until("its loss is noticed", PATIENCE, || appliance.metric("oca_volume_failed", "") == 1.0);
    assert_eq!(appliance.admin("/ready").status(), 503);
    assert_eq!(appliance.admin("/live").status(), 200);
    looks.look(&appliance);
}

#[test]
fn constants_say_what_they_should() {
    let origin = Origin::start();
    let appliance = Setup::new(&origin).capacity("2 GiB").tables("[health]\negress_capacity = \"5 Gbps\"").start();
    let text = String::from_utf8(appliance.admin("/metrics").body).expect("text");
    assert!(text.contains(&format!("oca_build_info{{version=\"{}\"}} 1\n", env!("CARGO_PKG_VERSION"))));
    assert_eq!(appliance.metric("oca_volume_capacity_bytes", ""), 2_147_483_648.0);
    assert_eq!(appliance.metric("oca_egress_capacity_bits_per_second", ""), 5e9);
    assert_eq!(appliance.metric("oca_worker_major_faults_total", "worker=\"1\""), 0.0);
}

#[test]
fn labels_are_those_of_the_page() {
    let origin = Origin::start();
    let appliance = Setup::new(&origin).start();
    origin.publish_new("/film.mp4", 1, 5000);
    assert_eq!(appliance.get("/film.mp4").status(), 200);
    let text = String::from_utf8(appliance.admin("/metrics").body).expect("text");
    for (name, kind, labels) in page() {
        let begin = format!("oca_{name}");
        let mut series =
            text.lines().filter_map(|line| line.strip_prefix(&begin)).filter(|rest| rest.starts_with(['{', ' ']));
        match series.next() {
            Some(rest) => {
                let inside =
                    rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(inside, _)| inside);
                let named: Vec<&str> = inside
                    .split(',')
                    .filter_map(|pair| pair.split('=').next())
                    .filter(|name| !name.is_empty())
                    .collect();
                assert_eq!(named, labels, "{name}");
            }
            // A histogram has buckets only; errors have no series before the first, headroom none before it is known.
            None => assert!(
                kind == "histogram" || name.starts_with("steering_") || ABSENT_AT_FIRST.contains(&name),
                "{name} is not there"
            ),
        }
    }
}

#[test]
fn counters_agree_with_what_was_sent() {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 5_000_000);
    let appliance = Setup::new(&origin).start();
    content.assert_is(0, &appliance.get("/film.mp4").body);
    let sent = |path: &str| appliance.metric("oca_sent_bytes_total", &format!("path=\"{path}\""));
    let copied_before = sent("copied");
    let mut client = appliance.connect();
    for _ in 0..10 {
        content.assert_is(1_000_000, &client.range("/film.mp4", "bytes=1000000-2999999").body);
    }
    // The client may be ahead of the counters by what was handed on last. A head has some 300 bytes.
    let heads = || sent("sendfile") + sent("copied") - 25_000_000.0;
    wait_until("the last bytes are counted", PATIENCE, || heads() >= 1_100.0);
    assert!(heads() < 11_000.0, "{}", heads());
    // A slice that lies in a mapping leaves by sendfile. Heads are copied, and so are small rests that a full socket has left.
    let copied = sent("copied") - copied_before;
    assert!((1_000.0..1_000_000.0).contains(&copied), "{copied}");
    assert_eq!(appliance.metric("oca_responses_total", "status=\"206\""), 10.0);
    assert_eq!(appliance.metric("oca_cache_outcomes_total", "outcome=\"hit\""), 10.0);
    assert_eq!(appliance.metric("oca_first_byte_seconds_count", ""), 11.0);
    assert_eq!(appliance.metric("oca_connections_accepted_total", ""), 2.0);
    assert_eq!(appliance.metric("oca_fill_bytes_total", ""), 5_000_000.0);
    assert_eq!(appliance.metric("oca_assets", ""), 1.0);
    assert_eq!(appliance.metric("oca_volume_used_bytes", ""), 5_000_000.0);
}
