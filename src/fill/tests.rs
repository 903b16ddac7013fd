//! Fill as the catalog uses it, with origins that are short, slow, silent, lying or changing.

mod escalation;
mod origin;
mod site;

use std::{sync::Arc, time::Duration};

use super::*;
use crate::{asset::ByteRange, catalog::Want};
use origin::{Film, Origin, Reply, Request, Then, right};
use site::{Site, config, drain, http, source};

const BLOCK: u64 = 64 << 10;
const BLOCK_USIZE: usize = 64 << 10;
const LENGTH: u64 = 5 * BLOCK + 1234;

fn film() -> Film {
    Film::new(1, LENGTH)
}

/// An origin that does `wrong` on its `at`th request and is right otherwise.
async fn wrong_once(at: usize, wrong: impl Fn(Reply) -> Reply + Send + Sync + 'static) -> Origin {
    Origin::start(move |n, request| {
        let reply = right(&film(), request);
        if n == at { wrong(reply) } else { reply }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_byte_costs_one_block_and_a_viewer_of_all_the_read_ahead() {
    let origin = Origin::start(|_, request| right(&film(), request)).await;
    let site = Site::of(&origin);
    assert_eq!(site.view("/a", 3 * BLOCK + 7, 3 * BLOCK + 8).await, Ok(film().part(3 * BLOCK + 7, 3 * BLOCK + 8)));
    assert_eq!(origin.ranges(), [Some((3 * BLOCK, Some(4 * BLOCK)))]);
    let entry = site.find("/b", Want::Range { start: 0, end: None }).await.expect("found").expect("stored");
    assert_eq!(entry.meta().length, LENGTH);
    assert_eq!(origin.ranges()[1..], [Some((0, Some(2 * BLOCK)))]);
    assert_eq!(site.view("/b", 0, LENGTH).await, Ok(film().part(0, LENGTH)));
    assert_eq!(site.metrics.source("origin").bytes.value(), BLOCK + LENGTH, "each byte came once");
    let asked = origin.requests();
    assert!(asked.iter().all(|request| request.field("accept-encoding") == Some("identity")), "{asked:?}");
    assert!(asked.iter().all(|request| request.field("user-agent").is_some_and(|agent| agent.starts_with("oca/"))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_an_unknown_asset_costs_a_probe_and_its_last_block() {
    let origin = Origin::start(|_, request| right(&film(), request)).await;
    let site = Site::of(&origin);
    let entry = site.find("/a", Want::Suffix(10)).await.expect("found").expect("stored");
    assert_eq!(entry.meta().length, LENGTH);
    assert_eq!(site.view("/a", LENGTH - 10, LENGTH).await, Ok(film().part(LENGTH - 10, LENGTH)));
    assert_eq!(origin.ranges(), [Some((0, Some(1))), Some((5 * BLOCK, Some(LENGTH)))]);
    let beyond = site.find("/b", Want::Range { start: 1 << 40, end: None }).await.expect("found").expect("stored");
    assert_eq!(beyond.meta().length, LENGTH, "a start beyond the end finds the asset all the same");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_who_wait_share_one_fetch() {
    let origin = Origin::start(|_, request| right(&film(), request)).await;
    let site = Arc::new(Site::of(&origin));
    let views: Vec<_> = (0..100_u64)
        .map(|n| {
            let site = Arc::clone(&site);
            tokio::spawn(async move { site.view("/a", n, BLOCK - n).await })
        })
        .collect();
    for (n, view) in views.into_iter().enumerate() {
        let n = n as u64;
        assert_eq!(view.await.expect("joined"), Ok(film().part(n, BLOCK - n)));
    }
    assert_eq!(origin.ranges(), [Some((0, Some(BLOCK)))]);
}

/// What may go wrong once, on the first request or on the second, without a viewer noticing more than a wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_that_passes_costs_only_time() {
    type Wrong = fn(Reply) -> Reply;
    let faults: [(&str, Wrong, &str); 12] = [
        ("short", |reply| reply.cut(1000, Then::Close), "broken"),
        ("shorter than a head", |reply| Reply { bytes: reply.bytes[..5].to_vec(), then: Then::Close }, "broken"),
        ("reset", |reply| reply.cut(30_000, Then::Reset), "broken"),
        ("stall", |reply| reply.cut(30_000, Then::Stall), "stalled"),
        ("silence", |_| Reply { bytes: Vec::new(), then: Then::Stall }, "timeout"),
        ("no HTTP", |_| Reply::new("\x16\x03\x01 nonsense\r\n\r\n", &[]), "broken"),
        ("500", |_| Reply::status(500), "status"),
        ("503", |_| Reply::status(503), "status"),
        ("shifted", |reply| reply.field("content-range", "bytes 7-65542/328914"), "wrong_range"),
        ("no range named", |reply| reply.field("content-range", ""), "wrong_range"),
        (
            "several parts",
            |reply| reply.field("content-range", "").field("content-type", "multipart/byteranges"),
            "wrong_range",
        ),
        (
            "elsewhere",
            |_| Reply::new("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/a\r\ncontent-length: 0\r\n\r\n", &[]),
            "redirect",
        ),
    ];
    for (name, wrong, reason) in faults {
        for at in [0, 1] {
            let origin = wrong_once(at, wrong).await;
            let site = Site::of(&origin);
            for (start, end) in [(BLOCK + 5, BLOCK + 10), (0, LENGTH)] {
                assert_eq!(site.view("/a", start, end).await, Ok(film().part(start, end)), "{name} at {at}");
            }
            let errors = site.errors("origin");
            // A connection that ends may look broken, or its body short.
            let expected = |error: &&str| *error == reason || (reason == "broken" && *error == "short");
            assert!(errors.iter().all(expected) && errors.len() == 1, "{name} at {at}: {errors:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tries_are_bounded_and_the_refusal_tells_time_from_failure() {
    for (reply, expected) in [
        (Reply::status(500), Refusal::SourceFailed),
        (Reply { bytes: Vec::new(), then: Then::Stall }, Refusal::SourceTimedOut),
    ] {
        let origin = Origin::start(move |_, _| reply.clone()).await;
        let site = Site::of(&origin);
        assert_eq!(site.view("/a", 0, 1).await, Err(expected));
        assert_eq!(origin.requests().len(), 4);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_goes_on_where_it_broke_off() {
    let origin = wrong_once(0, |reply| reply.cut(BLOCK_USIZE + 100, Then::Reset)).await;
    let site = Site::of(&origin);
    assert_eq!(site.view("/a", 0, 2 * BLOCK).await, Ok(film().part(0, 2 * BLOCK)));
    let again = origin.requests()[1].clone();
    let (start, end) = again.range.expect("a part");
    assert!((BLOCK..=BLOCK + 100).contains(&start) && end == Some(2 * BLOCK), "{start}-{end:?}");
    assert_eq!(again.field("if-range"), Some("\"1\""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_in_place_of_a_part_is_taken_for_what_it_is() {
    let origin = Origin::start(|n, request| {
        let asked = Request { range: request.range.filter(|_| n != 1), ..request.clone() };
        right(&film(), &asked)
    })
    .await;
    let site = Site::of(&origin);
    for (start, end) in [(0, 10), (3 * BLOCK, 3 * BLOCK + 10), (0, LENGTH)] {
        assert_eq!(site.view("/a", start, end).await, Ok(film().part(start, end)), "{start}");
    }
    assert_eq!(site.errors("origin"), [] as [&str; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_without_ranges_is_asked_once_for_all() {
    let origin = Origin::start(|_, request| right(&film(), &Request { range: None, ..request.clone() })).await;
    let site = Site::of(&origin);
    for (start, end) in [(3 * BLOCK, 3 * BLOCK + 10), (0, 10), (0, LENGTH)] {
        assert_eq!(site.view("/a", start, end).await, Ok(film().part(start, end)));
    }
    assert_eq!(origin.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_without_ranges_that_breaks_off_is_asked_again_from_the_start() {
    let origin = Origin::start(|n, request| {
        let reply = right(&film(), &Request { range: None, ..request.clone() });
        if n == 0 { reply.cut(2 * BLOCK_USIZE + 5, Then::Reset) } else { reply }
    })
    .await;
    let site = Site::of(&origin);
    assert_eq!(site.view("/a", 4 * BLOCK, LENGTH).await, Ok(film().part(4 * BLOCK, LENGTH)));
    assert_eq!(site.view("/a", 0, LENGTH).await, Ok(film().part(0, LENGTH)));
    assert_eq!(origin.requests().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_strong_validator_nothing_is_pieced_together() {
    for etag in [None, Some("W/\"1\"")] {
        // Each answer is of another version: only one of them may be seen.
        let origin = Origin::start(move |n, request| {
            let film = Film { etag, modified: None, ..Film::new(n as u64, LENGTH) };
            let reply = right(&film, request);
            if n == 1 { reply.cut(2 * BLOCK_USIZE, Then::Reset) } else { reply }
        })
        .await;
        let site = Site::of(&origin);
        let mut versions = Vec::new();
        for (start, end) in [(BLOCK, BLOCK + 100), (0, LENGTH)] {
            let bytes = site.view_again("/a", start, end).await.expect("in the end");
            versions.push((0..10).find(|n| Film::new(*n, LENGTH).part(start, end) == bytes));
        }
        assert!(versions[1].is_some(), "{etag:?}: a mixture of versions");
        assert!(versions[0].is_some(), "{etag:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_asset_without_a_strong_validator_costs_one_request() {
    let film = || Film { etag: Some("W/\"1\""), modified: None, ..Film::new(1, 5000) };
    let origin = Origin::start(move |_, request| right(&film(), request)).await;
    let site = Site::of(&origin);
    assert_eq!(site.view("/a.m3u8", 0, 5000).await, Ok(film().part(0, 5000)));
    assert_eq!(origin.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_are_never_mixed() {
    let later = [
        Film::new(2, LENGTH),
        Film::new(2, LENGTH + 1),
        Film::new(2, 2 * BLOCK),
        Film { etag: None, ..Film::new(2, LENGTH) },
    ];
    for new in later {
        for heeds in [true, false] {
            let old = Film { modified: Some("Thu, 01 Jan 2026 00:00:00 GMT"), ..film() };
            let (first, second) = (old.clone(), new.clone());
            let origin = Origin::start(move |n, request| {
                // An origin that takes no notice of If-Range answers with the part of the other version.
                let fields = request.fields.iter().filter(|(name, _)| heeds || name != "if-range").cloned().collect();
                right(if n == 0 { &first } else { &second }, &Request { fields, ..request.clone() })
            })
            .await;
            let site = Site::of(&origin);
            assert_eq!(site.view("/a", 0, 10).await, Ok(old.part(0, 10)));
            assert_eq!(site.view("/a", BLOCK, BLOCK + 10).await, Err(Refusal::Withdrawn), "{new:?}, heeds: {heeds}");
            let end = new.length;
            assert_eq!(site.view_again("/a", 0, end).await, Ok(new.part(0, end)), "{new:?}, heeds: {heeds}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_total_that_differs_withdraws_what_is_held() {
    let origin = wrong_once(0, |reply| reply.field("content-range", &format!("bytes 0-65535/{}", LENGTH + 9))).await;
    let site = Site::of(&origin);
    assert_eq!(site.view("/a", 0, 10).await, Ok(film().part(0, 10)));
    assert_eq!(site.view("/a", BLOCK, BLOCK + 1).await, Err(Refusal::Withdrawn), "one of the two is wrong");
    assert_eq!(site.view_again("/a", 0, LENGTH).await, Ok(film().part(0, LENGTH)));
}

/// A source may give less than was asked for. What it gave of a block in part must not leave the block to nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_gives_less_than_asked_is_asked_for_the_rest() {
    let origin = Origin::start(|_, request| {
        let range = request.range.map(|(start, end)| (start, end.map(|end| end.min(start + BLOCK + 1000))));
        right(&film(), &Request { range, ..request.clone() })
    })
    .await;
    let site = Site::of(&origin);
    site.find("/a", Want::Range { start: 0, end: None }).await.expect("found").expect("stored");
    for (start, end) in [(0, BLOCK), (BLOCK, 2 * BLOCK), (0, LENGTH)] {
        assert_eq!(site.view("/a", start, end).await, Ok(film().part(start, end)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_are_counted_like_lengths() {
    let origin = Origin::start(|_, request| right(&film(), request).chunked(0)).await;
    let site = Site::of(&origin);
    assert_eq!(site.view("/a", 0, LENGTH).await, Ok(film().part(0, LENGTH)), "206 names its part");

    let longer = Origin::start(|n, request| right(&film(), request).chunked(if n < 2 { 3 } else { 0 })).await;
    let site = Site::of(&longer);
    assert_eq!(site.view("/a", 0, LENGTH).await, Ok(film().part(0, LENGTH)));
    assert_eq!(site.errors("origin"), ["long"]);

    let cut = Origin::start(|n, request| {
        let reply = right(&film(), request).chunked(0);
        if n < 2 { reply.cut(40_000, Then::Close) } else { reply }
    })
    .await;
    let site = Site::of(&cut);
    assert_eq!(site.view("/a", 0, LENGTH).await, Ok(film().part(0, LENGTH)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_length_that_nobody_knows_is_passed_through_and_a_cut_is_told() {
    let whole = |request: &Request| right(&film(), &Request { range: None, ..request.clone() }).chunked(0);
    let origin = Origin::start(move |n, request| {
        let reply = whole(request);
        if n == 2 { reply.cut(100_000, Then::Close) } else { reply }
    })
    .await;
    let site = Site::of(&origin);
    let want = Want::Range { start: 0, end: None };
    assert!(site.find("/a", want).await.expect("found").is_none(), "it is not stored");
    let pass = site.pass("/a", want).await.expect("passed");
    assert_eq!((pass.head.length, pass.head.part), (None, None));
    assert_eq!(drain(pass).await, (film().part(0, LENGTH), None));
    let (bytes, refusal) = drain(site.pass("/a", want).await.expect("passed")).await;
    assert!(refusal.is_some() && film().part(0, LENGTH).starts_with(&bytes), "a cut body does not look whole");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_whose_end_cannot_be_told_from_a_cut_is_refused() {
    let origin = Origin::start(|_, request| {
        let reply = right(&film(), &Request { range: None, ..request.clone() }).field("content-length", "");
        Reply { then: Then::Close, ..reply }
    })
    .await;
    let site = Site::of(&origin);
    let want = Want::Range { start: 0, end: None };
    assert_eq!(site.find("/a", want).await.err(), Some(Refusal::SourceFailed));
    assert_eq!(site.pass("/a", want).await.err(), Some(Refusal::SourceFailed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_not_be_stored_is_passed_through() {
    let film = || Film { cache_control: Some("no-store"), ..film() };
    let origin = Origin::start(move |n, request| {
        let reply = right(&film(), request);
        if n == 5 { reply.cut(1000, Then::Reset) } else { reply }
    })
    .await;
    let site = Site::of(&origin);
    let part = |start, end| ByteRange::new(start, end);
    let whole = Want::Range { start: 0, end: None };
    assert!(site.find("/a", whole).await.expect("found").is_none());
    let cases = [
        (whole, None, 0, LENGTH),
        (Want::Range { start: 100, end: Some(200) }, part(100, 200), 100, 200),
        (Want::Range { start: LENGTH - 5, end: None }, part(LENGTH - 5, LENGTH), LENGTH - 5, LENGTH),
        (Want::Suffix(7), part(LENGTH - 7, LENGTH), LENGTH - 7, LENGTH),
    ];
    for (want, expected, start, end) in cases {
        let pass = site.pass("/a", want).await.expect("passed");
        assert_eq!(
            (pass.head.length, pass.head.part, pass.head.unsatisfiable),
            (Some(LENGTH), expected, false),
            "{want:?}"
        );
        assert_eq!(drain(pass).await, (film().part(start, end), None), "{want:?}");
    }
    let (bytes, refusal) = drain(site.pass("/a", whole).await.expect("passed")).await;
    assert!(refusal.is_some() && film().part(0, LENGTH).starts_with(&bytes), "cut");
    let beyond = site.pass("/a", Want::Range { start: 1 << 40, end: None }).await.expect("an answer");
    assert!(beyond.head.unsatisfiable && beyond.head.length == Some(LENGTH));
    assert!(site.catalog.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_asset_is_an_asset() {
    for range_heeded in [true, false] {
        let origin = Origin::start(move |_, request| {
            right(&Film::new(1, 0), &Request { range: request.range.filter(|_| range_heeded), ..request.clone() })
        })
        .await;
        let site = Site::of(&origin);
        for want in [Want::Range { start: 0, end: None }, Want::Metadata, Want::Range { start: 5, end: None }] {
            let entry = site.find("/a", want).await.expect("found").expect("stored");
            assert!(entry.meta().length == 0 && entry.is_sealed());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_about_the_asset_is_passed_on_and_not_asked_again() {
    for (status, refusal) in
        [(404, Refusal::NotFound), (410, Refusal::Gone), (403, Refusal::Forbidden), (401, Refusal::Forbidden)]
    {
        let origin = Origin::start(move |_, _| Reply::status(status)).await;
        let site = Site::of(&origin);
        assert_eq!(site.view("/a", 0, 1).await, Err(refusal));
        assert_eq!(origin.requests().len(), 1);
    }
    let origin = Origin::start(|n, request| if n == 0 { right(&film(), request) } else { Reply::status(404) }).await;
    let site = Site::of(&origin);
    assert_eq!(site.view("/a", 0, 1).await, Ok(film().part(0, 1)));
    let gone = site.view_again("/a", BLOCK, BLOCK + 1).await;
    assert_eq!(gone, Err(Refusal::NotFound), "an asset that is gone in the middle is gone");
    assert!(site.catalog.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_source_is_asked_when_the_first_fails_or_lacks_it() {
    for (first, errors) in [(404, 0), (500, 1)] {
        let (peer, origin) = tokio::join!(
            Origin::start(move |_, _| Reply::status(first)),
            Origin::start(|_, request| right(&film(), request)),
        );
        let site = Site::with(&config(vec![http("peer", &peer), http("origin", &origin)]));
        assert_eq!(site.view("/a", 0, 10).await, Ok(film().part(0, 10)));
        assert_eq!((peer.requests().len(), origin.requests().len()), (1, 1), "{first}");
        assert_eq!(site.errors("peer").len(), errors);
    }
    let (lacks, fails) =
        tokio::join!(Origin::start(|_, _| Reply::status(404)), Origin::start(|_, _| Reply::status(500)));
    let site = Site::with(&config(vec![http("peer", &lacks), http("origin", &fails)]));
    assert_eq!(site.view("/a", 0, 10).await, Err(Refusal::SourceFailed), "the one that failed might have had it");
    assert_eq!(lacks.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_fails_again_and_again_is_left_alone() {
    let (ill, well) =
        tokio::join!(Origin::start(|_, _| Reply::status(500)), Origin::start(|_, request| right(&film(), request)));
    let sick = SourceConfig { failures_max: 3, retry_after: Duration::from_secs(600), ..http("ill", &ill) };
    let site = Site::with(&config(vec![sick.clone(), http("well", &well)]));
    for n in 0..10 {
        assert_eq!(site.view(&format!("/{n}"), 0, 1).await, Ok(film().part(0, 1)));
    }
    assert_eq!(ill.requests().len(), 3);
    assert_eq!(site.metrics.source("ill").set_aside.value(), 1);

    let alone = Site::with(&config(vec![sick]));
    assert_eq!(alone.view("/a", 0, 1).await, Err(Refusal::SourceFailed));
    let before = ill.requests().len();
    assert_eq!(alone.view("/b", 0, 1).await, Err(Refusal::SourceFailed));
    assert_eq!(ill.requests().len(), before + 1, "with no other it is asked, but once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_stay_within_their_origin_and_end() {
    let to =
        |place: &str| Reply::new(&format!("HTTP/1.1 302 Found\r\nlocation: {place}\r\ncontent-length: 0\r\n\r\n"), &[]);
    let origin = Origin::start(move |_, request| match request.path.as_str() {
        "/sub/a" => to("/sub/there"),
        "/sub/loop" => to("/sub/loop"),
        "/sub/dangling" => to("/sub/none"),
        "/sub/there" => right(&film(), request),
        _ => Reply::status(404),
    })
    .await;
    let site = Site::of(&origin);
    assert_eq!(site.view("/a", 0, 10).await, Ok(film().part(0, 10)));
    assert_eq!(site.view("/loop", 0, 10).await, Err(Refusal::SourceFailed));
    assert_eq!(site.view("/dangling", 0, 10).await, Err(Refusal::SourceFailed), "the redirect is wrong");
    assert_eq!(site.errors("origin"), ["redirect"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_version_is_revalidated_kept_or_replaced() {
    let film = |seed| Film { cache_control: Some("max-age=10"), ..Film::new(seed, 5000) };
    let origin = Origin::start(move |n, request| right(&film(if n < 3 { 1 } else { 2 }), request)).await;
    let site = Site::of(&origin);
    let want = Want::Range { start: 0, end: None };
    let first = site.find("/a.m3u8", want).await.expect("found").expect("stored");
    site.view("/a.m3u8", 0, 5000).await.expect("whole");
    for _ in 0..2 {
        site.clock.advance(Duration::from_secs(11));
        let again = site.find("/a.m3u8", want).await.expect("asked").expect("stored");
        assert!(Arc::ptr_eq(&first, &again), "it is still good");
    }
    assert_eq!(origin.requests()[1].field("if-none-match"), Some("\"1\""));
    assert_eq!(site.metrics.source("origin").bytes.value(), 5000, "304 carries nothing");
    assert_eq!(site.view("/a.m3u8", 0, 5000).await, Ok(film(1).part(0, 5000)), "fresh again without a question");
    assert_eq!(origin.requests().len(), 3);
    site.clock.advance(Duration::from_secs(11));
    assert_eq!(site.view("/a.m3u8", 0, 5000).await, Ok(film(2).part(0, 5000)));
    assert!(first.is_withdrawn());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revalidation_tells_a_failing_source_from_an_asset_that_is_gone() {
    for (status, refusal, kept) in
        [(500, Refusal::SourceFailed, true), (404, Refusal::NotFound, false), (410, Refusal::Gone, false)]
    {
        let film = || Film { cache_control: Some("max-age=10"), ..Film::new(1, 5000) };
        let origin =
            Origin::start(move |n, request| if n == 0 { right(&film(), request) } else { Reply::status(status) }).await;
        let site = Site::of(&origin);
        site.view("/a.m3u8", 0, 5000).await.expect("whole");
        site.clock.advance(Duration::from_secs(11));
        assert_eq!(site.view("/a.m3u8", 0, 10).await, Err(refusal));
        assert_eq!(!site.catalog.is_empty(), kept, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_is_a_source_too() {
    let dir = tempfile::tempdir().expect("tempdir");
    std::fs::create_dir(dir.path().join("sub")).expect("made");
    std::fs::write(dir.path().join("sub/a b.mp4"), film().part(0, LENGTH)).expect("written");
    std::fs::write(dir.path().join("empty"), b"").expect("written");
    let site = Site::with(&config(vec![source("local", SourceLocation::Directory(dir.path().into()))]));
    for (start, end) in [(3 * BLOCK, 3 * BLOCK + 1), (0, LENGTH)] {
        assert_eq!(site.view("/sub/a%20b.mp4", start, end).await, Ok(film().part(start, end)));
    }
    assert_eq!(site.metrics.source("local").bytes.value(), LENGTH, "each byte once");
    assert_eq!(site.view("/empty", 0, 1).await, Ok(Vec::new()));
    assert_eq!(site.view("/none", 0, 1).await, Err(Refusal::NotFound));
}
