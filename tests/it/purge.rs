//! Purge by order: nobody gets the old bytes after the answer, whoever reads them finishes, and `kill -9` brings nothing back.

use std::{fmt::Debug, time::Duration};

use crate::{
    life::{oca, said},
    support::{Appliance, Content, Fault, Origin, Published, Setup, wait_until},
};

const LENGTH: u64 = 200_000;

fn purge(appliance: &Appliance, arguments: &[&str]) -> String {
    let output = oca(appliance, &[&["purge"], arguments].concat());
    assert!(output.status.success(), "{}", said(&output.stderr));
    said(&output.stdout)
}

/// So many connections that each worker has some.
fn from_everywhere(appliance: &Appliance, path: &str) -> Vec<Vec<u8>> {
    (0..24).map(|_| appliance.get(path).body).collect()
}

fn all_are(bodies: &[Vec<u8>], content: &Content, when: impl Debug) {
    assert!(bodies.iter().all(|body| *body == content.whole()), "{when:?}");
}

#[test]
fn after_the_answer_nobody_gets_the_old_bytes() {
    let origin = Origin::start();
    let old = origin.publish_new("/film/a.mp4", 1, LENGTH);
    let other = origin.publish_new("/film/b.mp4", 2, LENGTH);
    let mut appliance = Setup::new(&origin).start();
    // Twice, so that every worker recalls it.
    (0..2).for_each(|_| all_are(&from_everywhere(&appliance, "/film/a.mp4"), &old, "before"));
    all_are(&from_everywhere(&appliance, "/film/b.mp4"), &other, "before");
    assert!(appliance.metric("oca_hits_at_once_total", "") > 0.0);
    wait_until("on record", Duration::from_secs(10), || appliance.is_durable("/film/a.mp4"));

    let new = origin.publish_new("/film/a.mp4", 3, LENGTH);
    all_are(&from_everywhere(&appliance, "/film/a.mp4"), &old, "it never changes under one name, as far as is known");
    assert_eq!(purge(&appliance, &["/film/a.mp4", "--dry-run"]), "would purge: 1 asset, 200000 B\n");
    all_are(&from_everywhere(&appliance, "/film/a.mp4"), &old, "nothing was done");
    assert_eq!(purge(&appliance, &["/film/a.mp4"]), "purged: 1 asset, 200000 B\n");
    all_are(&from_everywhere(&appliance, "/film/a.mp4"), &new, "purged");
    assert_eq!(origin.seen("/film/b.mp4").len(), 1, "others are not touched");

    // The answer says that it is durable: also a crash at once brings nothing back.
    let newest = origin.publish_new("/film/a.mp4", 4, LENGTH);
    wait_until("on record", Duration::from_secs(10), || appliance.is_durable("/film/a.mp4"));
    assert_eq!(purge(&appliance, &["--prefix", "/film/"]), "purged: 2 assets, 400000 B\n");
    appliance.kill();
    appliance.start_again();
    all_are(&from_everywhere(&appliance, "/film/a.mp4"), &newest, "after a crash");
    assert!(appliance.log().contains("purged"), "{}", appliance.log());
}

#[test]
fn who_reads_the_old_bytes_finishes() {
    let origin = Origin::start();
    let old = origin.publish_new("/film.mp4", 1, 30 << 20);
    let appliance = Setup::new(&origin).start();
    assert_eq!(appliance.get("/film.mp4").body.len(), 30 << 20);
    let mut viewer = appliance.connect();
    viewer.send(&crate::support::request("GET", "/film.mp4", &[]));
    assert_eq!(viewer.read_head().expect("a head").status, 200);
    let mut body = viewer.take(1000).expect("its begin");
    let new = origin.publish_new("/film.mp4", 2, LENGTH);
    purge(&appliance, &["/film.mp4"]);
    assert_eq!(appliance.get("/film.mp4").body, new.whole());
    body.extend(viewer.take((30 << 20) - 1000).expect("all of it"));
    old.assert_is(0, &body);
}

#[test]
fn what_is_held_in_part_or_on_its_way_goes_too() {
    let origin = Origin::start();
    origin.publish_new("/part.mp4", 1, 20 << 20);
    origin.publish_new("/way.mp4", 1, 900_000);
    let appliance = Setup::new(&origin).fill("read_ahead = \"1 MiB\"").start();
    assert_eq!(appliance.range("/part.mp4", "bytes=0-9").status(), 206);
    // Its source falls silent in the middle.
    origin.fail("/way.mp4", Fault::Stall(500_000), 1);
    let mut waiting = appliance.connect();
    waiting.send(&crate::support::request("GET", "/way.mp4", &[]));
    assert_eq!(waiting.read_head().expect("a head").status, 200);

    let part = origin.publish_new("/part.mp4", 2, LENGTH);
    let way = origin.publish_new("/way.mp4", 2, LENGTH);
    assert!(purge(&appliance, &["/part.mp4", "/way.mp4"]).starts_with("purged: 2 assets"));
    assert_eq!(appliance.get("/part.mp4").body, part.whole());
    assert_eq!(appliance.get("/way.mp4").body, way.whole());
    origin.release();
    // Whoever waits for the old version gets the rest of it, where that comes in time, or is cut: never a mixture.
    let old = waiting.take(900_000).unwrap_or_else(|cut| cut.received);
    Content::new(1, 900_000).assert_is(0, &old);
    assert_eq!(appliance.get("/way.mp4").body, way.whole());
}

#[test]
fn a_no_is_purged_as_a_yes_is() {
    let origin = Origin::start();
    let appliance = Setup::new(&origin).catalog("negative_ttl = \"10 min\"").start();
    for (path, order) in [("/a/new.mp4", ["/a/new.mp4"].as_slice()), ("/b/new.mp4", &["--prefix", "/b"])] {
        assert_eq!(appliance.get(path).status(), 404);
        let content = origin.publish_new(path, 1, LENGTH);
        assert_eq!(appliance.get(path).status(), 404, "it is remembered");
        assert_eq!(purge(&appliance, order), "purged: 0 assets, 0 B\n");
        assert_eq!(appliance.get(path).body, content.whole());
    }
}

#[test]
fn an_order_with_a_fault_is_refused_whole() {
    let origin = Origin::start();
    origin.publish("/a.mp4", Published::new(1, LENGTH));
    let appliance = Setup::new(&origin).start();
    appliance.get("/a.mp4");
    let output = oca(&appliance, &["purge", "/a.mp4", "b.mp4"]);
    assert_eq!(output.status.code(), Some(1));
    let words = said(&output.stderr);
    assert!(words.contains("the appliance refuses: paths[1] \"b.mp4\"") && words.contains("(no_path)"), "{words}");
    appliance.get("/a.mp4");
    assert_eq!(origin.seen("/a.mp4").len(), 1, "nothing was purged");
    assert_eq!(oca(&appliance, &["purge"]).status.code(), Some(2), "nothing was named");
}
