//! Ranges that cost more than they bring.

use crate::support::{Appliance, Content, Origin, Setup};

const BLOCK: u64 = 1 << 20;

fn victim(length: u64, warm: bool) -> (Origin, Appliance, Content) {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, length);
    let appliance = Setup::new(&origin).start();
    if warm {
        content.assert_is(0, &appliance.get("/film.mp4").body);
    }
    (origin, appliance, content)
}

/// CVE-2011-3192, "Apache Killer": hundreds of overlapping ranges, each of which made a copy of nearly the whole. A request with more
/// ranges than are allowed must get none of them, held or not, and one whose ranges come to more than the asset no more than the asset.
#[test]
fn overlapping_range_flood() {
    let (origin, appliance, content) = victim(200_000, true);
    let header = |ranges: Vec<String>| format!("bytes={}", ranges.join(","));
    let many = header((5..1300).map(|n| format!("5-{n}")).collect());
    let seventeen = header((0..17).map(|n| format!("{n}-")).collect());
    let missing = origin.publish_new("/other.mp4", 1, 3 * BLOCK);
    for ranges in [&many, &seventeen] {
        for (path, length) in [("/film.mp4", 200_000), ("/other.mp4", 3 * BLOCK)] {
            let response = appliance.range(path, ranges);
            assert_eq!(response.status(), 416);
            assert_eq!(response.field("content-range"), Some(&*format!("bytes */{length}")));
            assert!(response.body.len() < 100, "{} bytes", response.body.len());
        }
    }
    let sent = origin.sent("/other.mp4");
    assert!(sent <= BLOCK, "{sent} bytes were sent to say how long it is");
    let sixteen = header((0..16).map(|n| format!("{n}-")).collect());
    let response = appliance.range("/film.mp4", &sixteen);
    assert_eq!((response.status(), response.field("content-range")), (206, Some("bytes 0-199999/200000")));
    content.assert_is(0, &response.body);
    // A range that counts for another version does not count, however many there are (RFC 9110, 13.1.5).
    let mut viewer = appliance.connect();
    let whole = viewer.ask("GET", "/film.mp4", &[("Range", &many), ("If-Range", "\"another\"")]);
    assert_eq!(whole.status(), 200);
    content.assert_is(0, &whole.body);
    missing.assert_is(0, &appliance.get("/other.mp4").body);
}

/// CVE-2017-7529: lengths of ranges that overflow when they are added up, after which nginx sent what lay before the cached body. Nothing
/// but bytes of the asset, or a refusal, must come.
#[test]
fn range_overflow() {
    let (_origin, appliance, content) = victim(1000, true);
    let (max, huge) = (i64::MAX as u64, u64::MAX);
    for range in [
        format!("-{max}"),
        format!("-{huge}"),
        format!("-{}, -{}", 1600, max - 1600 + 1),
        format!("0-{huge}"),
        format!("{max}-{huge}"),
        format!("{huge}-"),
        format!("5-{huge}0"),
        format!("-{huge}0"),
        "18446744073709551615-18446744073709551616".into(),
    ] {
        let response = appliance.range("/film.mp4", &format!("bytes={range}"));
        match response.status() {
            200 => content.assert_is(0, &response.body),
            206 if response.field("content-type") == Some("video/mp4") => {
                content
                    .assert_is(start_of(response.field("content-range").expect("a part says which")), &response.body);
            }
            206 => {
                response.parts().iter().for_each(|part| content.assert_is(start_of(&part.content_range), &part.body));
            }
            status => assert_eq!(status, 416, "{range}"),
        }
        assert!(response.body.len() < 4000, "{range}: {}", response.body.len());
    }
}

/// RangeAmp, small byte ranges ("CDN Backfired", DSN 2020): asks for one byte, and the cache asks its origin for all. What is fetched must
/// be bounded by what a viewer could need next, not by the asset.
#[test]
fn range_amplification_by_small_ranges() {
    let (origin, appliance, content) = victim(64 * BLOCK, false);
    let response = appliance.range("/film.mp4", "bytes=20000000-20000000");
    assert_eq!(response.status(), 206);
    content.assert_is(20_000_000, &response.body);
    let asked: u64 = origin.seen("/film.mp4").iter().filter_map(|seen| span(seen.field("range")?)).sum();
    assert!(asked <= 16 * BLOCK, "{asked} bytes were asked for");
    // Changing the query must not begin it anew: that is how caches are got round.
    let before = origin.seen("/film.mp4").len();
    for n in 0..50 {
        let response = appliance.range(&format!("/film.mp4?bust={n}"), "bytes=20000000-20000000");
        content.assert_is(20_000_000, &response.body);
    }
    assert_eq!(origin.seen("/film.mp4").len(), before);
}

/// RangeAmp, overlapping byte ranges: many ranges are passed on, and the origin answers with many times the asset. What is asked of an
/// origin must be at most one range, whatever a viewer asks.
#[test]
fn range_amplification_by_overlapping_ranges() {
    let (origin, appliance, content) = victim(3 * BLOCK, false);
    let rejected = appliance.range("/film.mp4", &format!("bytes={}", ["0-"; 200].join(",")));
    assert_eq!(rejected.status(), 416);
    let response = appliance.range("/film.mp4", &format!("bytes={}", ["0-"; 16].join(",")));
    assert_eq!(response.status(), 206);
    content.assert_is(0, &response.body);
    let seen = origin.seen("/film.mp4");
    assert!(seen.iter().all(|seen| seen.field("range").is_none_or(|range| !range.contains(','))), "{seen:?}");
    assert!(origin.sent("/film.mp4") <= 4 * BLOCK, "{}", origin.sent("/film.mp4"));
    content.assert_is(0, &appliance.get("/film.mp4").body);
}

/// Bytes that a `Range` of one part asks for.
fn span(range: &str) -> Option<u64> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    Some(last.parse::<u64>().ok()? + 1 - first.parse::<u64>().ok()?)
}

/// Where a `Content-Range` begins.
fn start_of(described: &str) -> u64 {
    let start = described.trim_start_matches("bytes ").split('-').next().expect("a start");
    start.parse().expect("a number")
}
