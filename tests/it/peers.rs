//! Several boxes of one site: one fetches from outside, the others take it from there.

use std::{thread, time::Duration};

use crate::support::{Appliance, Content, Door, Origin, Setup, wait_until};

const MIB: u64 = 1 << 20;
const NAMES: [&str; 3] = ["box-a", "box-b", "box-c"];

/// A site of three boxes, and the doors through which they know each other.
struct Site {
    boxes: Vec<Appliance>,
    doors: Vec<Door>,
}

impl Site {
    fn start(origin: &Origin, fill: &str, source: &str) -> Self {
        let doors: Vec<Door> = NAMES.iter().map(|_| Door::new()).collect();
        let boxes: Vec<Appliance> = NAMES
            .iter()
            .map(|me| {
                let mut tables = format!("[fill.site]\nself = \"{me}\"\n");
                for (name, door) in NAMES.iter().zip(&doors).filter(|(name, _)| *name != me) {
                    let url = door.url();
                    tables += &format!(
                        "[[fill.source]]\nkind = \"peer\"\nname = \"{name}\"\nurl = \"{url}\"\n\
                         failures_max = 2\n{source}\n"
                    );
                }
                Setup::new(origin).fill(fill).tables(&tables).start()
            })
            .collect();
        for (door, appliance) in doors.iter().zip(&boxes) {
            door.open(appliance.http());
        }
        Self { boxes, doors }
    }

    /// Every box is asked for everything at the same time.
    fn ask_all(&self, assets: &[(String, Content)]) {
        thread::scope(|scope| {
            for appliance in &self.boxes {
                for part in assets.chunks(assets.len().div_ceil(4)) {
                    scope.spawn(move || {
                        for (path, content) in part {
                            let response = appliance.get(path);
                            assert_eq!(response.status(), 200, "{path}: {:?}", response.head);
                            content.assert_is(0, &response.body);
                        }
                    });
                }
            }
        });
    }
}

fn publish(origin: &Origin, prefix: &str, count: u64) -> Vec<(String, Content)> {
    (0..count)
        .map(|n| {
            let path = format!("/{prefix}-{n}.mp4");
            // From less than a block to more than one fetch.
            let content = origin.publish_new(&path, n + 1, 300_000 + n % 5 * 2_300_000);
            (path, content)
        })
        .collect()
}

/// Bytes that the origin has sent beyond one copy of each asset.
fn sent_too_much(origin: &Origin, assets: &[(String, Content)]) -> u64 {
    assets.iter().map(|(path, content)| origin.sent(path).saturating_sub(content.length)).sum()
}

#[test]
fn the_origin_sends_each_asset_once_to_a_site_of_three() {
    let origin = Origin::start();
    let site = Site::start(&origin, "", "");
    let assets = publish(&origin, "film", 24);
    site.ask_all(&assets);
    assert_eq!(sent_too_much(&origin, &assets), 0, "bytes beyond one copy");
    for (path, content) in &assets {
        assert_eq!(origin.sent(path), content.length, "{path}");
    }
    // The work is shared: each box has fetched from outside, and taken from the others.
    for appliance in &site.boxes {
        let (outside, peers) = (
            appliance.metric("oca_fill_bytes_total", "source=\"origin-0\""),
            appliance.metric("oca_fill_bytes_total", "source=\"box-"),
        );
        assert!(outside > 0.0 && peers > 0.0, "{outside} and {peers}");
        let text = String::from_utf8(appliance.admin("/metrics").body).expect("text");
        let errors: Vec<_> = text.lines().filter(|line| line.starts_with("oca_fill_errors_total{")).collect();
        assert!(errors.is_empty(), "{errors:?}");
    }
}

#[test]
fn a_box_that_dies_in_the_middle_costs_nobody_a_byte() {
    let origin = Origin::start();
    let mut site = Site::start(&origin, "", "retry_after = \"10 min\"\n");
    let before = publish(&origin, "before", 9);
    site.ask_all(&before);
    assert_eq!(sent_too_much(&origin, &before), 0);
    let assets = publish(&origin, "film", 24);
    let mut dying = site.boxes.pop().expect("three");
    thread::scope(|scope| {
        let killer = scope.spawn(|| {
            // In the middle: it has fetched some of them for the others by then.
            wait_until("it fetches", Duration::from_secs(30), || {
                assets.iter().filter(|(path, _)| origin.sent(path) > 0).count() > 6
            });
            site.doors[2].close();
            dying.kill();
        });
        site.ask_all(&assets);
        killer.join().expect("killed");
    });
    // Only what it had begun or done, and could not hand on any more, came twice.
    let twice = sent_too_much(&origin, &assets);
    let all: u64 = assets.iter().map(|(_, content)| content.length).sum();
    assert!(twice < all / 2, "{twice} of {all}");
    // From now on its share is others' from the start.
    let after = publish(&origin, "after", 24);
    site.ask_all(&after);
    assert_eq!(sent_too_much(&origin, &after), 0, "the two that are left share what is new");
    let stood_in: f64 = site.boxes.iter().map(|one| one.metric("oca_source_stood_in_total", "source=\"box-c\"")).sum();
    assert!(stood_in > 0.0, "and they say so");
}

#[test]
fn what_is_not_held_is_refused_at_once_and_costs_nothing() {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 3 * MIB);
    let appliance = Setup::new(&origin).start();
    let held = |range: &str| {
        let fields = [("Cache-Control", "only-if-cached"), ("Range", range)];
        appliance.connect().ask("GET", "/film.mp4", &fields)
    };
    let absent = held("bytes=0-9");
    assert_eq!(absent.status(), 504);
    assert_eq!(absent.field("cache-control"), Some("no-store"));
    assert!(origin.targets().is_empty(), "it has asked nobody");
    assert_eq!(appliance.range("/film.mp4", &format!("bytes={MIB}-{MIB}")).status(), 206);
    wait_until("the block is whole", Duration::from_secs(10), || {
        held(&format!("bytes={MIB}-{}", 2 * MIB - 1)).body.len() == 1 << 20
    });
    let asked = origin.targets().len();
    // A part may be shorter than it was asked for; the whole may not.
    let part = held(&format!("bytes={}-{}", MIB + 5, 3 * MIB - 1));
    assert_eq!(part.field("content-range"), Some(format!("bytes {}-{}/{}", MIB + 5, 2 * MIB - 1, 3 * MIB)).as_deref());
    content.assert_is(MIB + 5, &part.body);
    assert_eq!(held("bytes=0-9").status(), 504);
    assert_eq!(held(&format!("bytes=0-1,{MIB}-{}", MIB + 1)).status(), 504);
    assert_eq!(appliance.connect().ask("GET", "/film.mp4", &[("Cache-Control", "only-if-cached")]).status(), 504);
    assert_eq!(origin.targets().len(), asked, "none of these has asked anybody");
    assert_eq!(appliance.metric("oca_demands_queued", ""), 0.0);
}

/// Two boxes that each take the other for their origin, and one that takes itself for it.
#[test]
fn a_request_that_goes_round_in_a_circle_ends() {
    let doors = [Door::new(), Door::new()];
    let boxes: Vec<Appliance> = [0, 1]
        .map(|n| {
            let tables = format!("[fill.site]\nself = \"box-{n}\"\n");
            Setup::from_url(&doors[1 - n].url()).source("failures_max = 1000").tables(&tables).start()
        })
        .into();
    doors.iter().zip(&boxes).for_each(|(door, one)| door.open(one.http()));
    let begun = std::time::Instant::now();
    assert_eq!(boxes[0].get("/film.mp4").status(), 502);
    assert!(begun.elapsed() < Duration::from_secs(10), "no timeout was waited for: {:?}", begun.elapsed());

    let door = Door::new();
    let itself = Setup::from_url(&door.url()).source("failures_max = 1000").start();
    door.open(itself.http());
    let begun = std::time::Instant::now();
    assert_eq!(itself.get("/film.mp4").status(), 502);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let looped = itself.connect().ask("GET", "/film.mp4", &[("CDN-Loop", &["x"; 20].join(","))]);
    assert_eq!(looped.status(), 508);
}

/// Moves what is counted of peers: for `metrics`.
pub(crate) fn a_site_whose_box_goes(mut look: impl FnMut(&Appliance)) {
    let origin = Origin::start();
    let site = Site::start(&origin, "", "retry_after = \"10 min\"\n");
    let look_all = |look: &mut dyn FnMut(&Appliance)| site.boxes.iter().for_each(look);
    look_all(&mut look);
    let before = publish(&origin, "before", 12);
    site.ask_all(&before);
    site.doors.iter().for_each(Door::close);
    let after = publish(&origin, "after", 24);
    site.ask_all(&after);
    look_all(&mut look);
}
