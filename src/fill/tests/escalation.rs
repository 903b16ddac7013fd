//! Whom fill asks when there are peers, a tier and an origin, and what it does when they are slow, full or gone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    super::*,
    BLOCK, LENGTH,
    origin::{Origin, Reply, Request, Then, right},
    site::{Site, config, http},
};
use crate::asset::BitRate;

fn film() -> super::Film {
    super::film()
}

fn of_kind(name: &str, kind: SourceKind, origin: &Origin) -> SourceConfig {
    SourceConfig { kind, cost: kind.cost(), ..http(name, origin) }
}

fn in_site(me: &str, sources: Vec<SourceConfig>) -> Config {
    Config { site: SiteConfig { name: me.into(), ..SiteConfig::default() }, ..config(sources) }
}

fn wants_held(request: &Request) -> bool {
    request.field("cache-control") == Some("only-if-cached")
}

/// A path that stands first, among the boxes a and b, with `owner`.
fn path_of(owner: &str) -> String {
    let site = |me: &str| {
        let peer = if me == "a" { "b" } else { "a" };
        SourceConfig::new(peer, SourceKind::Peer, SourceLocation::Directory("/".into()))
    };
    let other = if owner == "a" { "b" } else { "a" };
    let boxes = ranking::Boxes { me: other, asked_max: 8 };
    let owned = |path: &str| {
        let id = AssetKey::parse(path, None).expect("valid").id();
        let order = ranking::order(&id, boxes, &[&site(other)], (&crate::catalog::Asker::Viewer, None, false));
        order[0].how == ranking::How::Fetch
    };
    (0..).map(|n| format!("/{n}")).find(|path| owned(path)).expect("half of them")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_is_asked_for_what_it_holds_and_then_the_tier_and_never_the_origin() {
    let holds = |request: &Request| request.path.ends_with("/held");
    let (peer, tier, origin) = tokio::join!(
        Origin::start(move |_, request| if holds(request) { right(&film(), request) } else { Reply::status(504) }),
        Origin::start(|_, request| right(&film(), request)),
        Origin::start(|_, _| Reply::status(500)),
    );
    let site = Site::with(&config(vec![
        of_kind("origin", SourceKind::Origin, &origin),
        of_kind("tier", SourceKind::Tier, &tier),
        of_kind("peer", SourceKind::Peer, &peer),
    ]));
    for path in ["/held", "/far"] {
        assert_eq!(site.view(path, 0, LENGTH).await, Ok(film().part(0, LENGTH)), "{path}");
    }
    assert!(peer.requests().iter().all(wants_held), "without a name of our own nobody fetches for us");
    assert!(tier.requests().iter().all(|request| request.path.ends_with("/far") && !wants_held(request)));
    assert!(origin.requests().is_empty());
    let peer = site.metrics.source("peer");
    assert_eq!((peer.bytes.value(), peer.errors().len()), (LENGTH, 0), "that it lacks something is no fault");
    assert!(peer.not_held.value() >= 1 && peer.escalations.value() == 0);
}

/// A peer may hold the beginning of what is wanted; the rest comes from further away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_peer_holds_in_part_is_completed_from_outside() {
    let held = 2 * BLOCK + 777;
    let (peer, origin) = tokio::join!(
        Origin::start(move |_, request| match request.range {
            Some((start, end)) if start < held => {
                right(&film(), &Request { range: Some((start, end.map(|end| end.min(held)))), ..request.clone() })
            }
            _ => Reply::status(504),
        }),
        Origin::start(|_, request| right(&film(), request)),
    );
    let site = Site::with(&config(vec![
        of_kind("peer", SourceKind::Peer, &peer),
        of_kind("origin", SourceKind::Origin, &origin),
    ]));
    assert_eq!(site.view("/a", 0, LENGTH).await, Ok(film().part(0, LENGTH)));
    let (near, far) = (site.metrics.source("peer").bytes.value(), site.metrics.source("origin").bytes.value());
    assert!(near >= 2 * BLOCK && far <= LENGTH - 2 * BLOCK, "{near} and {far} of {LENGTH}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_box_that_an_asset_falls_to_fetches_it_for_the_others() {
    let (peer, origin) = tokio::join!(
        Origin::start(|_, request| right(&film(), request)),
        Origin::start(|_, request| right(&film(), request)),
    );
    let sources = || vec![of_kind("b", SourceKind::Peer, &peer), of_kind("origin", SourceKind::Origin, &origin)];
    let site = Site::with(&in_site("a", sources()));
    assert_eq!(site.view(&path_of("b"), 0, 10).await, Ok(film().part(0, 10)));
    assert!(origin.requests().is_empty());
    let asked = peer.requests()[0].clone();
    assert_eq!((wants_held(&asked), asked.field("cdn-loop")), (false, Some("a; peer=1")));
    // What falls to us we fetch, after a look at whether somebody holds it from before.
    assert_eq!(site.view(&path_of("a"), 0, 10).await, Ok(film().part(0, 10)));
    assert!(wants_held(&peer.requests()[1]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_share_of_a_dead_peer_moves_on_and_comes_back() {
    let dead = Arc::new(AtomicBool::new(true));
    let is_dead = Arc::clone(&dead);
    let (peer, origin) = tokio::join!(
        Origin::start(move |_, request| match is_dead.load(Ordering::SeqCst) {
            true => Reply { bytes: Vec::new(), then: Then::Reset },
            false => right(&film(), request),
        }),
        Origin::start(|_, request| right(&film(), request)),
    );
    let retry_after = Duration::from_millis(300);
    let b = SourceConfig { failures_max: 2, retry_after, ..of_kind("b", SourceKind::Peer, &peer) };
    let site = Site::with(&in_site("a", vec![b, of_kind("origin", SourceKind::Origin, &origin)]));
    let path = path_of("b");
    for n in 0..4_u64 {
        assert_eq!(site.view(&path, n * BLOCK, n * BLOCK + 1).await, Ok(film().part(n * BLOCK, n * BLOCK + 1)));
    }
    let metrics = site.metrics.source("b");
    assert_eq!(peer.requests().len(), 2, "then it is left alone");
    assert_eq!((metrics.escalations.value(), metrics.stood_in.value(), metrics.set_aside.value()), (2, 2, 1));
    dead.store(false, Ordering::SeqCst);
    // At most a quarter longer than it says.
    tokio::time::sleep(retry_after * 5 / 4).await;
    let before = origin.requests().len();
    assert_eq!(site.view(&path, 4 * BLOCK, LENGTH).await, Ok(film().part(4 * BLOCK, LENGTH)));
    assert_eq!((peer.requests().len(), origin.requests().len()), (3, before));
    // It counts as well once the whole body has come, which the viewer need not have waited for.
    let well = async {
        while metrics.set_aside.value() == 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), well).await.expect("it has delivered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_slow_is_waited_for_no_longer_than_is_said() {
    let (peer, origin) = tokio::join!(
        Origin::start(|_, _| Reply { bytes: Vec::new(), then: Then::Stall }),
        Origin::start(|_, request| right(&film(), request)),
    );
    let slow = SourceConfig {
        escalate_after: Duration::from_millis(50),
        response_timeout: Duration::from_secs(60),
        failures_max: 1,
        ..of_kind("b", SourceKind::Peer, &peer)
    };
    let site = Site::with(&in_site("a", vec![slow, of_kind("origin", SourceKind::Origin, &origin)]));
    let begun = Instant::now();
    assert_eq!(site.view(&path_of("b"), 0, 10).await, Ok(film().part(0, 10)));
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let metrics = site.metrics.source("b");
    assert_eq!(metrics.errors(), [("slow", 1)]);
    assert_eq!(metrics.set_aside.value(), 0, "it may wait for an origin that is slow: that is no illness");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_behind_a_peer_does_not_take_the_peer_away() {
    for (said, aside) in [(502, 0), (504, 0), (508, 0), (500, 1)] {
        let (peer, origin) =
            tokio::join!(Origin::start(move |_, _| Reply::status(said)), Origin::start(|_, _| Reply::status(404)),);
        let b = SourceConfig { failures_max: 1, ..of_kind("b", SourceKind::Peer, &peer) };
        let site = Site::with(&in_site("a", vec![b, of_kind("origin", SourceKind::Origin, &origin)]));
        assert_eq!(site.view(&path_of("b"), 0, 1).await, Err(Refusal::NotFound), "{said}: the origin has the say");
        assert_eq!(site.metrics.source("b").set_aside.value(), aside, "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_asks_for_a_rest_gets_it() {
    for status in [429, 503] {
        let busy = Origin::start(move |_, _| {
            Reply::new(&format!("HTTP/1.1 {status} Later\r\nretry-after: 600\r\ncontent-length: 0\r\n\r\n"), &[])
        })
        .await;
        let site = Site::with(&config(vec![http("origin", &busy)]));
        for path in ["/a", "/b", "/c"] {
            assert_eq!(site.view(path, 0, 1).await, Err(Refusal::Busy), "{status}");
        }
        assert_eq!(busy.requests().len(), 1, "{status}: not even for want of another");
        assert_eq!(site.metrics.source("origin").set_aside.value(), 1);
    }
}

/// When the rest is over, whoever wants something would go there at once: one finds out for all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_finds_out_whether_a_source_has_recovered() {
    let origin = Origin::start(|n, request| match n {
        0 => Reply::status(500),
        1 => Reply { bytes: Vec::new(), then: Then::Stall },
        _ => right(&film(), request),
    })
    .await;
    let ill = SourceConfig { failures_max: 1, retry_after: Duration::from_millis(20), ..http("origin", &origin) };
    let site = Arc::new(Site::with(&config(vec![ill])));
    assert_eq!(site.view("/first", 0, 1).await, Err(Refusal::SourceFailed));
    tokio::time::sleep(Duration::from_millis(40)).await;
    let views: Vec<_> = (0..50)
        .map(|n| {
            let site = Arc::clone(&site);
            tokio::spawn(async move { site.view(&format!("/{n}"), 0, 1).await })
        })
        .collect();
    for view in views {
        assert!(view.await.expect("joined").is_err(), "it stalls, and all of them hear of it");
    }
    assert_eq!(origin.requests().len(), 2, "the first failure, and one probe for fifty");
    tokio::time::sleep(Duration::from_millis(40)).await;
    assert_eq!(site.view("/later", 0, 1).await, Ok(film().part(0, 1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_is_read_no_faster_than_its_rate() {
    let origin = Origin::start(|_, request| right(&film(), request)).await;
    // Five blocks and a bit take a quarter of a second and more.
    let slow = SourceConfig { rate_max: BitRate(8 * LENGTH * 4), ..http("origin", &origin) };
    let site = Site::with(&config(vec![slow]));
    let begun = Instant::now();
    assert_eq!(site.view("/a", 0, LENGTH).await, Ok(film().part(0, LENGTH)));
    // A tenth may come ahead, and what comes last need not be waited for.
    assert!(begun.elapsed() > Duration::from_millis(70), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_cache_asks_for_says_whom_it_has_come_through() {
    let origin = Origin::start(|_, request| right(&film(), request)).await;
    let site = Site::with(&in_site("a", vec![http("origin", &origin)]));
    let key = AssetKey::parse("/x", None).expect("valid");
    let asker = crate::catalog::Asker::Cache { through: "edge-1".into(), peer: false };
    let want = crate::catalog::Want::Range { start: 0, end: Some(1) };
    site.catalog.discover_for(&key, want, asker).await.expect("found");
    assert_eq!(origin.requests()[0].field("cdn-loop"), Some("edge-1, a"));
}
