//! What happens on a miss: one fetch for all, only what is needed, shown as it arrives, kept no longer than it is fresh.

use std::{collections::HashSet, time::Duration};

use crate::support::{Appliance, Client, Content, Origin, Published, Response, Setup, request, wait_until};

const BLOCK: u64 = 1 << 20;

/// Bytes of the asset that the origin was asked for more than once.
fn asked_twice(origin: &Origin, path: &str) -> u64 {
    let mut blocks = HashSet::new();
    let mut twice = 0;
    for seen in origin.seen(path) {
        let range = seen.field("range").expect("fill asks by range").strip_prefix("bytes=").expect("bytes").to_owned();
        let (first, last) = range.split_once('-').expect("a range");
        let (first, last): (u64, u64) = (first.parse().expect("a start"), last.parse().expect("an end"));
        for block in first / BLOCK..=last / BLOCK {
            if !blocks.insert(block) {
                twice += BLOCK;
            }
        }
    }
    twice
}

fn assert_part(response: &Response, content: &Content, start: u64, end: u64) {
    assert_eq!(response.status(), 206, "{:?}", response.head);
    assert_eq!(response.body.len() as u64, end - start);
    content.assert_is(start, &response.body);
}

/// An asset of one block and a thousand clients who all want it before the origin has said a word.
#[test]
fn a_thousand_clients_missing_one_block_cost_one_origin_request() {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 900_000);
    let appliance = Setup::new(&origin).start();
    let gate = origin.gate("/film.mp4");
    let mut clients: Vec<Client> = (0..1000).map(|_| appliance.connect()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        let range = format!("bytes={}-{}", n, n + 999);
        client.send(&request("GET", "/film.mp4", &[("Range", &range)]));
    }
    gate.wait_for(1);
    wait_until("all requests are in", Duration::from_secs(20), || appliance.has_read_everything(1000));
    drop(gate);
    for (n, client) in clients.iter_mut().enumerate() {
        let response = client.read_response("GET").expect("whole");
        assert_part(&response, &content, n as u64, n as u64 + 1000);
    }
    assert_eq!(origin.seen("/film.mp4").len(), 1);
    assert_eq!(origin.sent("/film.mp4"), 900_000);
    eprintln!("{} requests waited for the answer to another's", appliance.metric("oca_demands_collapsed_total", ""));
}

#[test]
fn clients_reading_all_over_a_film_cost_each_block_once() {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 12 << 20);
    let appliance = Setup::new(&origin).start();
    let mut clients: Vec<Client> = (0..60).map(|_| appliance.connect()).collect();
    let start = |n: usize| (n as u64 * 777_777) % (11 << 20);
    for (n, client) in clients.iter_mut().enumerate() {
        let range = format!("bytes={}-{}", start(n), start(n) + 99_999);
        client.send(&request("GET", "/film.mp4", &[("Range", &range)]));
    }
    for (n, client) in clients.iter_mut().enumerate() {
        let response = client.read_response("GET").expect("whole");
        assert_part(&response, &content, start(n), start(n) + 100_000);
    }
    // Those who came before anything was known may each have brought one block of their own.
    assert!(asked_twice(&origin, "/film.mp4") <= 2 * BLOCK, "{} bytes", asked_twice(&origin, "/film.mp4"));
}

#[test]
fn one_byte_of_four_gibibytes_costs_at_most_two_blocks() {
    let origin = Origin::start();
    let length = 4 << 30;
    for (n, range, start) in
        [(1, "bytes=3000000000-3000000000", 3_000_000_000), (2, "bytes=-1", length - 1), (3, "bytes=0-0", 0)]
    {
        let path = format!("/film{n}.mp4");
        let content = origin.publish_new(&path, n, length);
        let mut appliance = Setup::new(&origin).capacity("100 MiB").start();
        assert_part(&appliance.range(&path, range), &content, start, start + 1);
        appliance.stop();
        assert!(origin.sent(&path) <= 2 * BLOCK, "{range}: {} bytes", origin.sent(&path));
    }
}

#[test]
fn bytes_are_served_as_they_arrive() {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 900_000);
    origin.fail("/film.mp4", crate::support::Fault::Stall(600_000), 1);
    let appliance = Setup::new(&origin).start();
    let mut client = appliance.connect();
    client.send(&request("GET", "/film.mp4", &[]));
    let head = client.read_head().expect("a head before the body is there");
    assert_eq!((head.status, head.field("content-length")), (200, Some("900000")));
    let mut body = client.take(500_000).expect("what has arrived is served");
    origin.release();
    body.extend(client.take(400_000).expect("and then the rest"));
    content.assert_is(0, &body);
}

#[test]
fn a_viewer_who_leaves_does_not_break_the_others() {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 3_000_000);
    origin.fail("/film.mp4", crate::support::Fault::Stall(300_000), 1);
    let appliance = Setup::new(&origin).start();
    let mut first = appliance.connect();
    first.send(&request("GET", "/film.mp4", &[]));
    first.read_head().expect("it has begun");
    let mut second = appliance.connect();
    second.send(&request("GET", "/film.mp4", &[]));
    let head = second.read_head().expect("it waits for the same fetch");
    drop(first);
    origin.release();
    content.assert_is(0, &second.read_body(&head, "GET").expect("whole"));
}

#[test]
fn a_viewer_who_stays_away_does_not_stop_the_fill_for_the_next() {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 900_000);
    let gate = origin.gate("/film.mp4");
    let appliance = Setup::new(&origin).start();
    let mut first = appliance.connect();
    first.send(&request("GET", "/film.mp4", &[]));
    gate.wait_for(1);
    drop(first);
    drop(gate);
    let response = appliance.get("/film.mp4");
    assert_eq!(response.status(), 200);
    content.assert_is(0, &response.body);
    assert!(origin.seen("/film.mp4").len() <= 2);
}

#[test]
fn what_may_not_be_stored_passes_through_each_time() {
    let origin = Origin::start();
    let content = Content::new(1, 2_500_000);
    for (n, says) in ["no-store", "private", "max-age=60, no-store"].into_iter().enumerate() {
        let path = format!("/film{n}.mp4");
        origin.publish(&path, Published::new(1, 2_500_000).field("Cache-Control", says));
        let appliance = Setup::new(&origin).start();
        for _ in 0..2 {
            let response = appliance.get(&path);
            assert_eq!(response.status(), 200);
            assert!(!response.head.cache_status().contains("hit"), "{}", response.head.cache_status());
            content.assert_is(0, &response.body);
            assert_part(&appliance.range(&path, "bytes=1000-1999"), &content, 1000, 2000);
            // RFC 9110 14.2 lets a server ignore a range, and the origin's 416 may lack the length that ours would need.
            assert!(matches!(appliance.range(&path, "bytes=9999999-").status(), 200 | 416));
            let many = appliance.range(&path, &format!("bytes=0-0{}", ",5-5".repeat(16)));
            assert_eq!((many.status(), many.field("content-range")), (416, Some("bytes */2500000")), "not the whole");
            let head = appliance.connect().ask("HEAD", &path, &[]);
            assert_eq!((head.status(), head.field("content-length")), (200, Some("2500000")));
        }
        assert!(origin.seen(&path).len() >= 6, "{says}: each request asked the origin");
    }
}

#[test]
fn a_fresh_playlist_is_a_hit_and_a_stale_one_is_revalidated() {
    let origin = Origin::start();
    let version = |seed, says: &str| Published::new(seed, 5000).field("Cache-Control", says);
    origin.publish("/fresh.m3u8", version(1, "max-age=1000"));
    origin.publish("/stale.m3u8", version(1, "max-age=0"));
    let appliance = Setup::new(&origin).start();
    for _ in 0..3 {
        Content::new(1, 5000).assert_is(0, &appliance.get("/fresh.m3u8").body);
        Content::new(1, 5000).assert_is(0, &appliance.get("/stale.m3u8").body);
    }
    assert_eq!(origin.seen("/fresh.m3u8").len(), 1);
    let asked = origin.seen("/stale.m3u8");
    assert_eq!(asked.len(), 3);
    assert!(asked[1..].iter().all(|seen| seen.field("if-none-match").is_some()), "{asked:?}");
    assert_eq!(origin.sent("/stale.m3u8"), 5000, "304 carries nothing");

    origin.publish("/stale.m3u8", version(2, "max-age=0"));
    let changed = appliance.get("/stale.m3u8");
    Content::new(2, 5000).assert_is(0, &changed.body);
    assert_eq!(changed.field("etag"), Some("\"2-1388\""));
    Content::new(1, 5000).assert_is(0, &appliance.get("/fresh.m3u8").body);
}

#[test]
fn segments_never_change_under_one_name_unless_configured() {
    let origin = Origin::start();
    origin.publish_new("/a.m4s", 1, 5000);
    let appliance = Setup::new(&origin).fill("[fill.freshness]\ndefault_ttl = \"0 s\"").start();
    for _ in 0..3 {
        assert_eq!(appliance.get("/a.m4s").status(), 200);
    }
    assert_eq!(origin.seen("/a.m4s").len(), 1);
    let strict = Setup::new(&origin).fill("[fill.freshness]\ndefault_ttl = \"0 s\"\nimmutable = []").start();
    for _ in 0..3 {
        assert_eq!(strict.get("/a.m4s").status(), 200);
    }
    assert_eq!(origin.seen("/a.m4s").len(), 4);
}

#[test]
fn with_the_origin_away_what_is_held_is_served_and_what_is_not_is_refused() {
    let mut origin = Origin::start();
    let content = origin.publish_new("/held.mp4", 1, 2_000_000);
    origin.publish("/stale.m3u8", Published::new(2, 5000).field("Cache-Control", "max-age=0"));
    origin.publish("/strict.m3u8", Published::new(3, 5000).field("Cache-Control", "max-age=0, must-revalidate"));
    let later = origin.publish_new("/later.mp4", 4, 5000);
    let appliance = Setup::new(&origin).catalog("failure_ttl = \"20 ms\"").source("retry_after = \"50 ms\"").start();
    for path in ["/held.mp4", "/stale.m3u8", "/strict.m3u8"] {
        assert_eq!(appliance.get(path).status(), 200);
    }
    origin.go_down();
    content.assert_is(0, &appliance.get("/held.mp4").body);
    let stale = appliance.get("/stale.m3u8");
    assert_eq!(stale.status(), 200);
    Content::new(2, 5000).assert_is(0, &stale.body);
    assert!(matches!(appliance.get("/strict.m3u8").status(), 502 | 504), "RFC 9111 5.2.2.2");
    assert!(matches!(appliance.get("/later.mp4").status(), 502..=504));
    origin.come_up();
    wait_until("the origin is used again", Duration::from_secs(20), || {
        let response = appliance.get("/later.mp4");
        response.status() == 200 && later.first_difference(0, &response.body).is_none()
    });
}

#[test]
fn what_the_origin_lacks_is_remembered_briefly() {
    let origin = Origin::start();
    let appliance = Setup::new(&origin).start();
    for _ in 0..5 {
        assert_eq!(appliance.get("/none.mp4").status(), 404);
        assert_eq!(appliance.range("/none.mp4", "bytes=0-9").status(), 404);
    }
    assert_eq!(origin.seen("/none.mp4").len(), 1);

    let forgetful = Setup::new(&origin).catalog("negative_ttl = \"30 ms\"").start();
    assert_eq!(forgetful.get("/soon.mp4").status(), 404);
    origin.publish_new("/soon.mp4", 1, 1000);
    wait_until("it is found", Duration::from_secs(10), || forgetful.get("/soon.mp4").status() == 200);
}

#[test]
fn gone_and_forbidden_reach_the_viewer_and_are_no_failures() {
    let origin = Origin::start();
    let appliance = Setup::new(&origin).start();
    for (path, said) in [("/gone.mp4", 410), ("/forbidden.mp4", 403)] {
        origin.fail(path, crate::support::Fault::Status(said), 100);
        let status = appliance.get(path).status();
        assert!(status == said || status == 404, "{path}: {status}");
        assert_eq!(origin.seen(path).len(), 1, "asking again would not help");
    }
}

#[test]
fn capacity_is_kept_by_evicting_what_was_not_used() {
    let origin = Origin::start();
    let mut appliance = Setup::new(&origin).capacity("64 MiB").start();
    let mut client = appliance.connect();
    let keep = origin.publish_new("/keep.mp4", 999, 5 << 20);
    for n in 0..40 {
        let path = format!("/film{n}.mp4");
        let content = origin.publish_new(&path, n, 5 << 20);
        content.assert_is(0, &client.get(&path).body);
        keep.assert_is(0, &client.get("/keep.mp4").body);
    }
    assert_eq!(origin.sent("/keep.mp4"), 5 << 20, "what is asked for all the time is never evicted");
    let used = appliance.disk_bytes();
    assert!(used <= 70 << 20, "{} MiB on disk", used >> 20);
    assert!(used >= 40 << 20, "{} MiB on disk: what fits is kept", used >> 20);
    appliance.stop();
}

#[test]
fn an_asset_larger_than_the_volume_is_served_right_or_refused() {
    let origin = Origin::start();
    let content = origin.publish_new("/huge.mp4", 1, 48 << 20);
    let appliance = Setup::new(&origin).capacity("16 MiB").start();
    match appliance.connect().try_ask("GET", "/huge.mp4", &[]) {
        Ok(response) if response.status() == 200 => {
            assert_eq!(response.body.len(), 48 << 20);
            content.assert_is(0, &response.body);
        }
        Ok(response) => assert!(matches!(response.status(), 502 | 503 | 507), "{:?}", response.head),
        Err(cut) => content.assert_is(0, &cut.received),
    }
    assert_part(&appliance.range("/huge.mp4", "bytes=40000000-40000009"), &content, 40_000_000, 40_000_010);
}

#[test]
fn an_origin_without_ranges_is_fetched_whole_and_served_by_range() {
    let origin = Origin::start();
    origin.publish("/film.mp4", Published::new(1, 3_000_000).without_ranges());
    let content = Content::new(1, 3_000_000);
    let appliance = Setup::new(&origin).start();
    for (start, end) in [(2_000_000, 2_000_100), (0, 10), (2_999_000, 3_000_000)] {
        let response = appliance.range("/film.mp4", &format!("bytes={start}-{}", end - 1));
        assert_part(&response, &content, start, end);
    }
    assert!(origin.sent("/film.mp4") <= 6_000_000, "{}", origin.sent("/film.mp4"));
}

#[test]
fn an_asset_without_a_strong_validator_is_never_pieced_together() {
    let origin = Origin::start();
    let cases = [
        ("/none.mp4", Published::new(1, 3_000_000).etag(None).last_modified(None)),
        ("/weak.mp4", Published::new(1, 3_000_000).etag(Some("W/\"1\"")).last_modified(None)),
    ];
    for (path, published) in cases {
        origin.publish(path, published);
        let content = Content::new(1, 3_000_000);
        let appliance = Setup::new(&origin).start();
        for (start, end) in [(2_000_000, 2_000_100), (0, 10), (2_999_000, 3_000_000)] {
            let response = appliance.range(path, &format!("bytes={start}-{}", end - 1));
            assert_part(&response, &content, start, end);
        }
        // The version changes; nothing says so but the bytes. What is sent next is all of one version.
        origin.publish(path, Published::new(2, 3_000_000).etag(None).last_modified(None));
        let response = appliance.get(path);
        assert_eq!(response.status(), 200);
        let first = content.first_difference(0, &response.body);
        let second = Content::new(2, 3_000_000).first_difference(0, &response.body);
        assert!(first.is_none() || second.is_none(), "a mixture: {first:?} {second:?}");
    }
}

#[test]
fn an_asset_is_admitted_on_its_second_request_where_so_configured() {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 1_500_000);
    let appliance = Setup::new(&origin).catalog("admission = \"second-request\"").start();
    for _ in 0..3 {
        let response = appliance.get("/film.mp4");
        assert_eq!(response.status(), 200);
        content.assert_is(0, &response.body);
    }
    assert!(appliance.get("/film.mp4").head.cache_status().contains("hit"));
    assert_eq!(origin.sent("/film.mp4"), 3_000_000, "passed through once, fetched once");
}

#[test]
fn the_origin_sees_nothing_of_who_asks() {
    let origin = Origin::start();
    origin.publish_new("/film.mp4", 1, 5000);
    let appliance = Setup::new(&origin).start();
    let fields = [
        ("Cookie", "session=secret"),
        ("Authorization", "Basic c2VjcmV0"),
        ("Referer", "https://page.example/"),
        ("X-Forwarded-For", "192.0.2.1"),
        ("Accept-Encoding", "gzip, br"),
        ("User-Agent", "player"),
    ];
    assert_eq!(appliance.connect().ask("GET", "/film.mp4?secret", &fields).status(), 200);
    for seen in origin.seen("/film.mp4") {
        assert!(!format!("{seen:?}").contains("secret"), "{seen:?}");
        assert!(!format!("{seen:?}").contains("192.0.2.1"), "{seen:?}");
        assert!(seen.field("accept-encoding").is_none_or(|value| value == "identity"), "{seen:?}");
        assert!(seen.field("host").is_some_and(|host| origin.url().contains(host)), "{seen:?}");
    }
}

#[test]
fn an_asset_held_survives_a_restart() {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 5_000_000);
    let mut appliance: Appliance = Setup::new(&origin).start();
    content.assert_is(0, &appliance.get("/film.mp4").body);
    appliance.stop();
    let before = origin.seen("/film.mp4").len();
    appliance.start_again();
    let response = appliance.get("/film.mp4");
    assert!(response.head.cache_status().contains("hit"), "{}", response.head.cache_status());
    content.assert_is(0, &response.body);
    assert_eq!(origin.seen("/film.mp4").len(), before, "a clean stop loses nothing");
}
