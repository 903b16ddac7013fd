//! Origins that are short, long, silent, lying or changing: nothing wrong is ever stored or sent.

use std::time::{Duration, Instant};

use crate::support::{Appliance, Content, Cut, Fault, Origin, Published, Response, Setup, request, wait_until};

const LENGTH: u64 = 2_500_000;

/// An appliance that forgets failures soon and gives up on silence soon.
fn impatient(origin: &Origin) -> Setup {
    Setup::new(origin).catalog("failure_ttl = \"20 ms\"\nnegative_ttl = \"20 ms\"").source(
        "response_timeout = \"500 ms\"\nstall_timeout = \"500 ms\"\nfailures_max = 1000\nretry_after = \"50 ms\"",
    )
}

fn every_fault() -> Vec<Fault> {
    vec![
        Fault::Status(500),
        Fault::Status(503),
        Fault::Status(429),
        Fault::Hangup,
        Fault::Garbage,
        Fault::Short(0),
        Fault::Short(1_200_000),
        Fault::Reset(0),
        Fault::Reset(700_000),
        Fault::Stall(0),
        Fault::Stall(700_000),
        Fault::Understated(1000),
        Fault::Overlong(1000),
        Fault::Whole,
        Fault::Shifted(7),
        Fault::Total(LENGTH + 1),
        Fault::Total(10),
        Fault::NoContentRange,
        Fault::Chunked,
        Fault::ChunkedCut(0),
        Fault::ChunkedCut(700_000),
        Fault::Redirect("/elsewhere.mp4".into()),
        Fault::Redirect("http://127.0.0.1:1/elsewhere.mp4".into()),
        Fault::Trickle(30_000),
    ]
}

/// Whether the response is whole and right; panics if it is whole and wrong, or cut after a wrong byte.
fn is_right(outcome: &Result<Response, Cut>, content: &Content, start: u64, end: u64) -> bool {
    match outcome {
        Ok(response) if matches!(response.status(), 200 | 206) => {
            let (start, end) = if response.status() == 200 { (0, content.length) } else { (start, end) };
            content.assert_is(start, &response.body);
            assert_eq!(response.body.len() as u64, end - start, "a short body that looks whole");
            true
        }
        Ok(response) => {
            // 404 is what stands where one of the redirects points to.
            assert!(matches!(response.status(), 404 | 502..=504), "{:?}", response.head);
            false
        }
        Err(cut) => {
            content.assert_is(start, &cut.received);
            false
        }
    }
}

/// Asks for a range and for everything, while the fault lasts `times` requests; then the fault ends.
fn try_fault(appliance: &Appliance, origin: &Origin, path: &str, fault: &Fault, times: usize) -> bool {
    let content = origin.publish_new(path, 77, LENGTH);
    origin.fail(path, fault.clone(), times);
    let (start, end) = (1_000_000, 1_100_000);
    let range = format!("bytes={start}-{}", end - 1);
    let part = appliance.connect().try_ask("GET", path, &[("Range", &range)]);
    let whole = appliance.connect().try_ask("GET", path, &[]);
    let right = is_right(&part, &content, start, end) & is_right(&whole, &content, 0, LENGTH);
    origin.recover();
    wait_until("recovery", Duration::from_secs(20), || {
        let whole = appliance.connect().try_ask("GET", path, &[]);
        let part = appliance.connect().try_ask("GET", path, &[("Range", &range)]);
        is_right(&whole, &content, 0, LENGTH) && is_right(&part, &content, start, end)
    });
    right
}

#[test]
fn a_fault_that_passes_is_not_seen_by_the_viewer_or_only_as_an_error() {
    let origin = Origin::start();
    let appliance = impatient(&origin).start();
    for (n, fault) in every_fault().iter().enumerate() {
        let begin = Instant::now();
        let right = try_fault(&appliance, &origin, &format!("/once{n}.mp4"), fault, 1);
        eprintln!("{fault:?} once: {} in {:?}", if right { "served" } else { "refused" }, begin.elapsed());
    }
}

#[test]
fn a_fault_that_stays_never_makes_a_wrong_byte_and_heals_after() {
    let origin = Origin::start();
    let appliance = impatient(&origin).start();
    for (n, fault) in every_fault().iter().enumerate() {
        let begin = Instant::now();
        let path = format!("/always{n}.mp4");
        let right = try_fault(&appliance, &origin, &path, fault, usize::MAX);
        eprintln!("{fault:?} always: {} in {:?}", if right { "served" } else { "refused" }, begin.elapsed());
    }
}

#[test]
fn passing_trouble_costs_the_viewer_nothing_but_time() {
    let origin = Origin::start();
    let appliance = impatient(&origin).start();
    let faults = [Fault::Status(503), Fault::Hangup, Fault::Reset(0), Fault::Short(600_000), Fault::Stall(600_000)];
    for (n, fault) in faults.into_iter().enumerate() {
        let path = format!("/film{n}.mp4");
        let content = origin.publish_new(&path, 5, LENGTH);
        origin.fail(&path, fault.clone(), 2);
        let response = appliance.connect().try_ask("GET", &path, &[]);
        assert!(is_right(&response, &content, 0, LENGTH), "{fault:?}");
    }
}

#[test]
fn tries_are_bounded() {
    let origin = Origin::start();
    let appliance = Setup::new(&origin).start();
    origin.publish_new("/film.mp4", 1, LENGTH);
    origin.fail("/film.mp4", Fault::Status(500), usize::MAX);
    assert!(matches!(appliance.get("/film.mp4").status(), 502 | 503));
    assert!(origin.seen("/film.mp4").len() <= 4, "{}", origin.seen("/film.mp4").len());
    let before = origin.seen("/film.mp4").len();
    for _ in 0..20 {
        assert!(matches!(appliance.get("/film.mp4").status(), 502 | 503));
    }
    assert!(origin.seen("/film.mp4").len() <= before + 8, "a failure is remembered for a moment");
}

#[test]
fn silence_ends_in_504_not_in_waiting() {
    let origin = Origin::start();
    let appliance = Setup::new(&origin).serve("miss_timeout = \"300 ms\"").start();
    origin.publish_new("/film.mp4", 1, LENGTH);
    let gate = origin.gate("/film.mp4");
    let begin = Instant::now();
    assert_eq!(appliance.get("/film.mp4").status(), 504);
    assert!(begin.elapsed() < Duration::from_secs(5));
    drop(gate);
}

#[test]
fn a_compressed_answer_is_marked_as_such() {
    let origin = Origin::start();
    let appliance = Setup::new(&origin).start();
    let content = origin.publish_new("/page.html", 1, 5000);
    origin.fail("/page.html", Fault::Gzip, usize::MAX);
    for _ in 0..2 {
        let response = appliance.get("/page.html");
        if response.status() == 200 {
            assert_eq!(response.field("content-encoding"), Some("gzip"));
            content.assert_is(0, &response.body);
        } else {
            assert_eq!(response.status(), 502);
        }
    }
}

#[test]
fn a_body_that_ends_with_its_connection_is_never_taken_for_whole() {
    let origin = Origin::start();
    let appliance = Setup::new(&origin).start();
    let content = origin.publish_new("/film.mp4", 1, LENGTH);
    origin.fail("/film.mp4", Fault::UntilClose, usize::MAX);
    let outcome = appliance.connect().try_ask("GET", "/film.mp4", &[]);
    is_right(&outcome, &content, 0, LENGTH);
}

/// The version is named by the ETag of the response; every byte must be of that version.
fn assert_one_version(outcome: Result<Response, Cut>, versions: &[Content], start: u64) {
    match outcome {
        Ok(response) if matches!(response.status(), 200 | 206) => {
            let etag = response.field("etag").expect("the origin gives one").to_owned();
            let version = versions
                .iter()
                .find(|version| etag == format!("\"{:x}-{:x}\"", version.seed, version.length))
                .unwrap_or_else(|| panic!("{etag} is no version of the origin's"));
            version.assert_is(if response.status() == 200 { 0 } else { start }, &response.body);
        }
        Ok(response) => assert!(matches!(response.status(), 416 | 502..=504), "{:?}", response.head),
        Err(cut) => {
            let right = versions.iter().any(|version| version.first_difference(start, &cut.received).is_none());
            assert!(right, "cut after a mixture of versions");
        }
    }
}

#[test]
fn an_asset_that_changes_between_blocks_is_never_mixed() {
    let origin = Origin::start();
    let (old_length, cases) = (8 << 20, [(2, 8 << 20), (3, 5 << 20), (4, 9_999_999)]);
    for (seed, new_length) in cases {
        let path = format!("/film{seed}.mp4");
        let old = origin.publish_new(&path, 1, old_length);
        let new = Content::new(seed, new_length);
        let appliance = impatient(&origin).start();
        let ask = |range: &str| appliance.connect().try_ask("GET", &path, &[("Range", range)]);
        assert_one_version(ask("bytes=0-99"), &[old], 0);
        origin.publish(&path, Published::new(seed, new_length));
        for start in [0, 2_000_000, 4_500_000] {
            assert_one_version(ask(&format!("bytes={start}-{}", start + 1_999_999)), &[old, new], start);
        }
        assert_one_version(appliance.connect().try_ask("GET", &path, &[]), &[old, new], 0);
        wait_until("the new version is served", Duration::from_secs(20), || {
            let response = appliance.connect().try_ask("GET", &path, &[]);
            response.is_ok_and(|response| response.status() == 200 && new.first_difference(0, &response.body).is_none())
        });
    }
}

#[test]
fn a_response_that_has_begun_is_of_one_version_or_cut() {
    let origin = Origin::start();
    let old = origin.publish_new("/film.mp4", 1, 20 << 20);
    origin.publish_after("/film.mp4", 1, Published::new(2, 20 << 20));
    let appliance = impatient(&origin).start();
    let mut client = appliance.connect();
    client.send(&request("GET", "/film.mp4", &[]));
    let head = client.read_head().expect("the first fetch goes well");
    assert_eq!((head.status, head.field("etag")), (200, Some("\"1-1400000\"")));
    match client.read_body(&head, "GET") {
        Ok(body) => old.assert_is(0, &body),
        Err(cut) => {
            assert!(cut.received.len() < 20 << 20);
            old.assert_is(0, &cut.received);
        }
    }
}
