//! What a viewer gets: ranges, preconditions, methods, fields. RFC 9110, 9111, 9112, 9211 and the Fetch standard.

use crate::support::{Appliance, Client, Content, Origin, Published, Random, Response, Setup, request};

const LENGTH: u64 = 3_000_000;
const BLOCK: u64 = 1 << 20;
const ETAG: &str = "\"2a-2dc6c0\"";
const DATE: &str = "Sun, 01 Nov 2026 00:00:00 GMT";
const EARLIER: &str = "Sat, 31 Oct 2026 00:00:00 GMT";
const LATER: &str = "Mon, 02 Nov 2026 00:00:00 GMT";

/// An appliance that can fill `/film.mp4`, 3,000,000 bytes.
fn film() -> (Origin, Appliance, Content) {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 42, LENGTH);
    let appliance = Setup::new(&origin).start();
    (origin, appliance, content)
}

fn assert_part(response: &Response, content: &Content, start: u64, end: u64) {
    assert_eq!(response.status(), 206);
    assert_eq!(response.field("content-range"), Some(format!("bytes {start}-{}/{}", end - 1, content.length).as_str()));
    assert_eq!(response.field("content-length"), Some((end - start).to_string().as_str()));
    assert_eq!(response.body.len() as u64, end - start);
    content.assert_is(start, &response.body);
}

fn assert_whole(response: &Response, content: &Content) {
    assert_eq!(response.status(), 200);
    assert_eq!(response.field("content-range"), None);
    assert_eq!(response.field("content-length"), Some(content.length.to_string().as_str()));
    assert_eq!(response.body.len() as u64, content.length);
    content.assert_is(0, &response.body);
}

#[test]
fn a_whole_asset_is_what_the_origin_has_on_a_miss_and_on_a_hit() {
    let (origin, appliance, content) = film();
    let mut client = appliance.connect();
    let miss = client.get("/film.mp4");
    assert_whole(&miss, &content);
    assert!(miss.head.cache_status().starts_with("oca; fwd="), "{miss:?}", miss = miss.head);
    let hit = client.get("/film.mp4");
    assert_whole(&hit, &content);
    assert!(hit.head.cache_status().starts_with("oca; hit"), "{hit:?}", hit = hit.head);
    for response in [miss, hit] {
        assert_eq!(response.field("etag"), Some(ETAG));
        assert_eq!(response.field("last-modified"), Some(DATE));
        assert_eq!(response.field("accept-ranges"), Some("bytes"));
        assert_eq!(response.field("content-type"), Some("video/mp4"));
        assert!(response.field("date").is_some());
        assert!(response.field("age").is_none_or(|age| age.parse::<u64>().is_ok_and(|age| age < 60)));
    }
    assert_eq!(origin.sent("/film.mp4"), LENGTH, "each byte was fetched once");
}

#[test]
fn single_ranges_are_exact() {
    let (_origin, appliance, content) = film();
    let mut client = appliance.connect();
    let cases = [
        ("bytes=0-0", 0, 1),
        ("bytes=0-99", 0, 100),
        ("bytes=1000000-1999999", 1_000_000, 2_000_000),
        ("bytes=1048575-1048576", BLOCK - 1, BLOCK + 1),
        ("bytes=1048576-2097151", BLOCK, 2 * BLOCK),
        ("bytes=2999999-2999999", LENGTH - 1, LENGTH),
        ("bytes=2999999-", LENGTH - 1, LENGTH),
        ("bytes=5-", 5, LENGTH),
        ("bytes=-1", LENGTH - 1, LENGTH),
        ("bytes=-1500000", LENGTH - 1_500_000, LENGTH),
        ("bytes=-3000001", 0, LENGTH),
        ("bytes=-99999999999999999", 0, LENGTH),
        ("bytes=2999000-99999999999999", 2_999_000, LENGTH),
        ("bytes=0-2999999", 0, LENGTH),
        ("BYTES=7-8", 7, 9),
        ("bytes= 7-8", 7, 9),
    ];
    for (range, start, end) in cases {
        eprintln!("{range}");
        assert_part(&client.range("/film.mp4", range), &content, start, end);
    }
}

#[test]
fn random_ranges_agree_with_the_content_cold_and_hot() {
    let (_origin, appliance, content) = film();
    let mut random = Random::new();
    let mut client = appliance.connect();
    for _ in 0..400 {
        let start = random.number(0, LENGTH);
        let end = if random.number(0, 4) == 0 {
            random.number(start + 1, LENGTH + 1)
        } else {
            (start + random.number(1, 20_000)).min(LENGTH)
        };
        assert_part(&client.range("/film.mp4", &format!("bytes={start}-{}", end - 1)), &content, start, end);
    }
}

#[test]
fn a_range_that_is_not_one_is_ignored() {
    let (_origin, appliance, content) = film();
    let mut client = appliance.connect();
    for range in ["bytes=abc", "bytes=", "bytes=-", "bytes=5-2", "frames=0-1", "bytes=1-2-3", "bytes=0-1,x", "0-1"] {
        eprintln!("{range}");
        assert_whole(&client.range("/film.mp4", range), &content);
    }
}

#[test]
fn a_range_beyond_the_end_is_refused_with_the_length() {
    let (_origin, appliance, _) = film();
    let mut client = appliance.connect();
    for range in ["bytes=3000000-", "bytes=3000000-3000001", "bytes=99999999999-", "bytes=-0", "bytes=3000000-,-0"] {
        eprintln!("{range}");
        let response = client.range("/film.mp4", range);
        assert_eq!(response.status(), 416);
        assert_eq!(response.field("content-range"), Some("bytes */3000000"));
    }
    assert_eq!(client.range("/film.mp4", "bytes=0-0").status(), 206, "the connection goes on");
}

#[test]
fn several_ranges_come_as_parts() {
    let (_origin, appliance, content) = film();
    let mut client = appliance.connect();
    for _ in 0..2 {
        let response = client.range("/film.mp4", "bytes=0-9,1048570-1048580,-5");
        assert_eq!(response.status(), 206);
        assert_eq!(response.field("content-range"), None, "the parts have it");
        assert_eq!(response.field("content-length"), Some(response.body.len().to_string().as_str()));
        let parts = response.parts();
        let expected = [(0, 10), (1_048_570, 1_048_581), (LENGTH - 5, LENGTH)];
        assert_eq!(parts.len(), expected.len());
        for (part, (start, end)) in parts.iter().zip(expected) {
            assert_eq!(part.content_range, format!("bytes {start}-{}/{LENGTH}", end - 1));
            assert_eq!(part.content_type.as_deref(), Some("video/mp4"));
            assert_eq!(part.body.len() as u64, end - start);
            content.assert_is(start, &part.body);
        }
    }
    // What cannot be satisfied is left out; one that is left may come as a plain 206.
    let response = client.range("/film.mp4", "bytes=3000000-,10-19");
    assert_eq!(response.status(), 206);
}

#[test]
fn many_ranges_never_cost_more_than_the_asset() {
    let (_origin, appliance, content) = film();
    let mut client = appliance.connect();
    let everything = ["0-"; 5].join(",");
    let nested: Vec<String> = (0..15).map(|n| format!("{n}-")).collect();
    for ranges in [everything, nested.join(",")] {
        let response = client.range("/film.mp4", &format!("bytes={ranges}"));
        assert_eq!(response.status(), 206);
        content.assert_is(0, &response.body);
    }
    let many: Vec<String> = (0..200).map(|n| format!("{}-{}", n * 10, n * 10)).collect();
    let rejected = client.range("/film.mp4", &format!("bytes={}", many.join(",")));
    assert_eq!((rejected.status(), rejected.field("content-range")), (416, Some(&*format!("bytes */{LENGTH}"))));
    assert!(String::from_utf8_lossy(&rejected.body).contains("more ranges"));
}

#[test]
fn head_says_what_get_would_and_ignores_range() {
    let (origin, appliance, _) = film();
    let mut client = appliance.connect();
    for _ in 0..2 {
        let response = client.ask("HEAD", "/film.mp4", &[("Range", "bytes=0-9")]);
        assert_eq!(response.status(), 200);
        assert_eq!(response.field("content-length"), Some("3000000"));
        assert_eq!(response.field("etag"), Some(ETAG));
        assert_eq!(response.field("content-type"), Some("video/mp4"));
    }
    assert!(origin.sent("/film.mp4") <= BLOCK, "a question about an asset does not fetch it");
    assert_eq!(client.range("/film.mp4", "bytes=0-9").body.len(), 10, "no body stood in between");
}

#[test]
fn other_methods_are_refused_with_those_allowed() {
    let (origin, appliance, _) = film();
    for method in ["POST", "PUT", "DELETE", "PATCH", "TRACE", "BREW"] {
        let response = appliance.connect().ask(method, "/film.mp4", &[("Content-Length", "0")]);
        assert_eq!(response.status(), 405, "{method}");
        let allow = response.field("allow").expect("RFC 9110 15.5.6 wants it");
        assert!(allow.contains("GET") && allow.contains("HEAD"), "{allow}");
    }
    assert!(origin.seen("/film.mp4").is_empty(), "nothing of it reached the origin");
}

#[test]
fn preconditions_hold_in_their_order() {
    let (_origin, appliance, content) = film();
    let mut client = appliance.connect();
    assert_whole(&client.get("/film.mp4"), &content);
    let cases: &[(u16, &[(&str, &str)])] = &[
        (304, &[("If-None-Match", ETAG)]),
        (304, &[("If-None-Match", "\"other\", \"2a-2dc6c0\"")]),
        (304, &[("If-None-Match", "W/\"2a-2dc6c0\"")]),
        (304, &[("If-None-Match", "*")]),
        (200, &[("If-None-Match", "\"other\"")]),
        (304, &[("If-Modified-Since", DATE)]),
        (304, &[("If-Modified-Since", LATER)]),
        (200, &[("If-Modified-Since", EARLIER)]),
        (200, &[("If-Modified-Since", "yesterday")]),
        (200, &[("If-None-Match", "\"other\""), ("If-Modified-Since", DATE)]),
        (304, &[("If-None-Match", ETAG), ("If-Modified-Since", EARLIER)]),
        (200, &[("If-Match", ETAG)]),
        (200, &[("If-Match", "*")]),
        (412, &[("If-Match", "\"other\"")]),
        (412, &[("If-Match", "W/\"2a-2dc6c0\"")]),
        (412, &[("If-Unmodified-Since", EARLIER)]),
        (200, &[("If-Unmodified-Since", DATE)]),
        (200, &[("If-Match", ETAG), ("If-Unmodified-Since", EARLIER)]),
        (412, &[("If-Match", "\"other\""), ("If-None-Match", ETAG)]),
        (304, &[("If-None-Match", ETAG), ("Range", "bytes=0-9")]),
        (412, &[("If-Match", "\"other\""), ("Range", "bytes=0-9")]),
        (304, &[("If-None-Match", ETAG), ("Range", "bytes=9999999-")]),
        (206, &[("If-Range", ETAG), ("Range", "bytes=0-9")]),
        (200, &[("If-Range", "\"other\""), ("Range", "bytes=0-9")]),
        (200, &[("If-Range", "W/\"2a-2dc6c0\""), ("Range", "bytes=0-9")]),
        (206, &[("If-Range", DATE), ("Range", "bytes=0-9")]),
        (200, &[("If-Range", EARLIER), ("Range", "bytes=0-9")]),
        (200, &[("If-Range", LATER), ("Range", "bytes=0-9")]),
        (200, &[("If-Range", ETAG)]),
        (200, &[("If-Range", "\"other\""), ("Range", "bytes=9999999-")]),
    ];
    for (status, fields) in cases {
        let response = client.ask("GET", "/film.mp4", fields);
        assert_eq!(response.status(), *status, "{fields:?}");
        match status {
            304 => assert_eq!((response.field("etag"), response.body.len()), (Some(ETAG), 0)),
            206 => assert_part(&response, &content, 0, 10),
            200 => assert_whole(&response, &content),
            _ => assert!(response.body.len() < 4096),
        }
        if !fields.iter().any(|(name, _)| *name == "Range") {
            let head = client.ask("HEAD", "/film.mp4", fields);
            assert_eq!(head.status(), *status, "HEAD {fields:?}");
        }
    }
}

#[test]
fn preconditions_hold_for_an_asset_that_is_not_held_yet() {
    let (_origin, appliance, _) = film();
    assert_eq!(appliance.connect().ask("GET", "/film.mp4", &[("If-None-Match", ETAG)]).status(), 304);
    assert_eq!(appliance.connect().ask("GET", "/film.mp4", &[("If-Match", "\"other\"")]).status(), 412);
}

#[test]
fn a_page_in_a_browser_may_read_ranges() {
    let (_origin, appliance, _) = film();
    let mut client = appliance.connect();
    let origin = ("Origin", "https://player.example");
    for (status, fields) in [(200, vec![origin]), (206, vec![origin, ("Range", "bytes=0-9")])] {
        let response = client.ask("GET", "/film.mp4", &fields);
        assert_eq!(response.status(), status);
        assert_eq!(response.field("access-control-allow-origin"), Some("*"));
        let exposed = response.field("access-control-expose-headers").expect("a script reads ranges").to_lowercase();
        for name in ["content-range", "content-length", "cache-status", "etag"] {
            assert!(exposed.contains(name), "{name} in {exposed}");
        }
    }
    let asked = [origin, ("Access-Control-Request-Method", "GET"), ("Access-Control-Request-Headers", "range")];
    let preflight = client.ask("OPTIONS", "/film.mp4", &asked);
    assert_eq!(preflight.status(), 204);
    assert_eq!(preflight.field("access-control-allow-origin"), Some("*"));
    assert!(preflight.field("access-control-allow-methods").is_some_and(|methods| methods.contains("GET")));
    let allowed = preflight.field("access-control-allow-headers").map(str::to_lowercase);
    assert!(allowed.is_some_and(|fields| fields.contains("range")));
    assert!(preflight.field("access-control-max-age").is_some());
}

#[test]
fn cors_can_be_limited_to_one_page() {
    let origin = Origin::start();
    origin.publish_new("/film.mp4", 1, 1000);
    let appliance = Setup::new(&origin).tables("[serve.cors]\norigins = [\"https://player.example\"]\n").start();
    let allowed = |page: &str| {
        let response = appliance.connect().ask("GET", "/film.mp4", &[("Origin", page)]);
        assert_eq!(response.status(), 200);
        response.field("access-control-allow-origin").map(str::to_owned)
    };
    assert_eq!(allowed("https://player.example").as_deref(), Some("https://player.example"));
    assert_eq!(allowed("https://elsewhere.example"), None);
}

#[test]
fn media_types_go_by_the_name_where_the_origin_is_silent() {
    let origin = Origin::start();
    let appliance = Setup::new(&origin).start();
    let types = [
        ("mp4", "video/mp4"),
        ("m4s", "video/iso.segment"),
        ("m4a", "audio/mp4"),
        ("m4v", "video/mp4"),
        ("cmfv", "video/mp4"),
        ("cmfa", "audio/mp4"),
        ("ts", "video/mp2t"),
        ("mpd", "application/dash+xml"),
        ("m3u8", "application/vnd.apple.mpegurl"),
        ("webm", "video/webm"),
        ("mkv", "video/matroska"),
        ("vtt", "text/vtt"),
        ("webp", "image/webp"),
        ("jpg", "image/jpeg"),
        ("unknown", "application/octet-stream"),
    ];
    for (extension, media_type) in types {
        let path = format!("/a.{extension}");
        origin.publish_new(&path, 1, 100);
        assert_eq!(appliance.get(&path).field("content-type"), Some(media_type));
    }
    origin.publish("/b.mp4", Published::new(1, 100).field("Content-Type", "video/mp4; codecs=\"avc1.4d401f\""));
    assert_eq!(appliance.get("/b.mp4").field("content-type"), Some("video/mp4; codecs=\"avc1.4d401f\""));
}

#[test]
fn requests_sent_ahead_are_answered_in_order() {
    let (_origin, appliance, content) = film();
    let mut client = appliance.connect();
    let ranges = [(10, 20), (2_000_000, 2_000_100), (0, 1), (1_048_000, 1_050_000)];
    let mut bytes = Vec::new();
    for (start, end) in ranges {
        bytes.extend(request("GET", "/film.mp4", &[("Range", &format!("bytes={start}-{}", end - 1))]));
    }
    client.send(&bytes);
    for (start, end) in ranges {
        assert_part(&client.read_response("GET").expect("whole"), &content, start, end);
    }
}

#[test]
fn http_1_0_and_connection_close_end_the_connection() {
    let (_origin, appliance, content) = film();
    for text in ["GET /film.mp4 HTTP/1.0\r\n\r\n", "GET /film.mp4 HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"] {
        let mut client = appliance.connect();
        client.send(text.as_bytes());
        let response = client.read_response("GET").expect("whole");
        assert_whole(&response, &content);
        assert!(client.until_closed().is_empty());
    }
}

#[test]
fn the_query_is_no_part_of_the_key_unless_configured() {
    let (origin, appliance, content) = film();
    assert_whole(&appliance.get("/film.mp4?token=1"), &content);
    let hit = appliance.get("/film.mp4?token=2");
    assert!(hit.head.cache_status().contains("hit"));
    assert_eq!(origin.sent("/film.mp4"), LENGTH);

    let appliance = Setup::new(&origin).serve("query_in_key = true").start();
    for query in ["?v=1", "?v=2"] {
        let response = appliance.range(&format!("/film.mp4{query}"), "bytes=0-9");
        assert!(response.head.cache_status().contains("fwd="), "{}", response.head.cache_status());
    }
}

#[test]
fn no_path_leaves_the_source() {
    let folder = tempfile::tempdir().expect("a folder");
    let inside = folder.path().join("inside");
    std::fs::create_dir(&inside).expect("a folder");
    std::fs::write(folder.path().join("secret.mp4"), b"secret").expect("a file");
    std::fs::write(inside.join("open.mp4"), b"open").expect("a file");
    let appliance = Setup::from_url(&format!("file://{}/", inside.display())).start();
    assert_eq!(appliance.get("/open.mp4").body, b"open");
    for path in [
        "/../secret.mp4",
        "/%2e%2e/secret.mp4",
        "/..%2fsecret.mp4",
        "/a/../../secret.mp4",
        "/%2e%2e%2fsecret.mp4",
        "/./%2e./secret.mp4",
        "//../secret.mp4",
        "/open.mp4%00",
        "/..\\secret.mp4",
    ] {
        let response = appliance.get(path);
        assert!(matches!(response.status(), 400 | 403 | 404), "{path}: {}", response.status());
        assert_ne!(response.body, b"secret", "{path}");
    }
}

#[test]
fn an_empty_asset_is_served_empty() {
    let origin = Origin::start();
    origin.publish_new("/empty.mp4", 1, 0);
    let appliance = Setup::new(&origin).start();
    for _ in 0..2 {
        let response = appliance.get("/empty.mp4");
        assert_eq!((response.status(), response.field("content-length")), (200, Some("0")));
        assert_eq!(appliance.range("/empty.mp4", "bytes=0-").status(), 416);
    }
}

#[test]
fn a_directory_source_serves_the_same_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let content = Content::new(3, 2_500_000);
    std::fs::create_dir(folder.path().join("deep")).expect("a folder");
    std::fs::write(folder.path().join("deep/film.mp4"), content.whole()).expect("a file");
    let appliance = Setup::from_url(&format!("file://{}/", folder.path().display())).start();
    assert_part(&appliance.range("/deep/film.mp4", "bytes=1048000-1049000"), &content, 1_048_000, 1_049_001);
    for _ in 0..2 {
        let response = appliance.get("/deep/film.mp4");
        assert_whole(&response, &content);
        assert!(response.field("last-modified").is_some());
    }
    assert_eq!(appliance.get("/deep").status(), 404);
    assert_eq!(appliance.get("/deep/none.mp4").status(), 404);
}

#[test]
fn hot_bytes_leave_by_sendfile() {
    let (_origin, appliance, content) = film();
    assert_whole(&appliance.get("/film.mp4"), &content);
    let before = appliance.metric("oca_sent_bytes_total", "path=\"sendfile\"");
    assert_whole(&appliance.get("/film.mp4"), &content);
    let by_sendfile = appliance.metric("oca_sent_bytes_total", "path=\"sendfile\"") - before;
    assert!(by_sendfile as u64 >= LENGTH * 9 / 10, "{by_sendfile} of {LENGTH} bytes left by sendfile");
}

#[test]
fn operators_see_what_happens() {
    let (_origin, appliance, _) = film();
    assert_eq!(appliance.admin("/live").status(), 200);
    assert_eq!(appliance.admin("/ready").status(), 200);
    assert_eq!(appliance.range("/film.mp4", "bytes=0-99").status(), 206);
    let status: serde_json::Value = serde_json::from_slice(&appliance.admin("/status").body).expect("JSON");
    assert!(status.is_object());
    let metrics = appliance.admin("/metrics");
    assert!(metrics.field("content-type").is_some_and(|kind| kind.starts_with("text/plain")));
    assert!(String::from_utf8_lossy(&metrics.body).contains("oca_"));
    assert_eq!(appliance.get("/metrics").status(), 404, "viewers see none of it");
    assert_eq!(appliance.admin("/film.mp4").status(), 404, "operators' listener serves no video");
}

#[test]
fn the_client_and_the_origin_of_these_tests_agree() {
    let origin = Origin::start();
    let content = origin.publish_new("/a.mp4", 5, 300_000);
    let address = origin.url()["http://".len()..].trim_end_matches('/').parse().expect("an address");
    let mut client = Client::connect(address);
    assert_whole(&client.get("/a.mp4"), &content);
    assert_part(&client.range("/a.mp4", "bytes=100000-"), &content, 100_000, 300_000);
    assert_eq!(client.get("/none").status(), 404);
    origin.fail("/a.mp4", crate::support::Fault::Chunked, 1);
    assert_eq!(client.get("/a.mp4").body, content.whole());
    origin.fail("/a.mp4", crate::support::Fault::Short(1000), 1);
    let cut = client.try_ask("GET", "/a.mp4", &[]).expect_err("it is cut");
    assert_eq!(cut.received, content.bytes(0, 1000));
}
