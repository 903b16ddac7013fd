//! Where a manifest may have a box fetch from: addresses that its operator allows, in the order and with the waits that it says.

use std::{process::Command, time::Duration};

use serde_json::Value;

use crate::{
    manifests::{Plane, manifest_of, wait_for},
    nightly::sha256,
    support::{Appliance, Content, Origin, Setup, wait_until},
};

const PATIENCE: Duration = Duration::from_secs(60);

fn asset(key: &str, content: Content, sources: &str) -> String {
    let (length, digest) = (content.length, sha256(&content.whole()));
    format!("{{\"key\": \"{key}\", \"length\": {length}, \"sha256\": \"{digest}\", \"sources\": [{sources}]}}")
}

/// Fills by order until all is held.
fn fill(appliance: &Appliance, assets: u64) {
    let told =
        Command::new(env!("CARGO_BIN_EXE_oca")).args(["fill", "--now", "--admin", &appliance.admin_url()]).output();
    let told = told.expect("it runs");
    assert!(told.status.success(), "{}\n{}", String::from_utf8_lossy(&told.stdout), appliance.log());
    wait_until("held", PATIENCE, || appliance.metric("oca_fill_held_assets", "") == assets as f64);
}

fn is_hit(appliance: &Appliance, path: &str, content: Content) -> bool {
    let response = appliance.get(path);
    assert_eq!(response.status(), 200, "{path}: {}", appliance.log());
    assert!(response.body == content.whole(), "{path}: as it was published");
    response.field("cache-status").is_some_and(|told| told.contains("hit"))
}

#[test]
fn an_address_of_a_manifest_is_asked_where_the_operator_allows_it_and_nowhere_else() {
    let plane = Plane::new();
    let (ours, lent, stranger) = (Origin::start(), Origin::start(), Origin::start());
    // The same names everywhere: only an order tells who is asked.
    let publish = |origin: &Origin, path: &str, seed| origin.publish_new(path, seed, 300_000 + seed);
    let old = publish(&ours, "/films/old/a.mp4", 1);
    let far = publish(&lent, "/cdn/tonight/b%20c.mp4", 2);
    publish(&ours, "/films/b%20c.mp4", 3);
    let setup = Setup::from_url(&format!("{}films/", ours.url()));
    let allowed = format!("source_urls = [\"{}cdn/\"]", lent.url());
    let appliance = setup.tables(&plane.control(&plane.by_file(), &allowed)).start();
    // Below a source, and below what is lent; the first named is the cheapest of equal ones.
    let below = |origin: &Origin, folder: &str| format!("{{\"url\": \"{}{folder}/{{path}}\"}}", origin.url());
    let assets = [
        asset("a.mp4", old, &below(&ours, "films/old")),
        asset("b c.mp4", far, &format!("{}, {{\"name\": \"origin\"}}", below(&lent, "cdn/tonight"))),
    ];
    plane.publish(&plane.write(1, &assets.join(",\n")));
    wait_for(&appliance, 1);
    wait_until("planned", PATIENCE, || appliance.metric("oca_fill_wanted_assets", "") == 2.0);
    assert!(!is_hit(&appliance, "/b%20c.mp4", far), "a viewer's request passes through, to where the manifest says");
    assert!(!is_hit(&appliance, "/a.mp4", old));
    fill(&appliance, 2);
    let asked = lent.targets().len();
    assert!(is_hit(&appliance, "/a.mp4", old) && is_hit(&appliance, "/b%20c.mp4", far));
    assert_eq!(lent.targets().len(), asked, "from here");
    assert!(lent.targets().iter().all(|target| target == "/cdn/tonight/b%20c.mp4"), "{:?}", lent.targets());
    assert!(ours.targets().iter().all(|target| target == "/films/old/a.mp4"), "{:?}", ours.targets());
    let status: Value = serde_json::from_slice(&appliance.admin("/status").body).expect("JSON");
    let source = status["sources"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|source| source["name"] == format!("{}cdn/", lent.url()));
    assert!(source.expect("it is told of")["bytes"].as_u64() >= Some(far.length), "{source:?}");

    // Another host, another port, and another folder of a host that is allowed: refused as a whole, and nobody is asked.
    let places = [
        below(&stranger, "films"),
        below(&ours, "secret"),
        below(&lent, "cdn/../films"),
        "{\"url\": \"http://169.254.169.254/latest/{path}\"}".to_owned(),
        "{\"name\": \"nowhere\"}".to_owned(),
    ];
    for (number, place) in (2..).zip(places) {
        plane.publish(&plane.write(number, &asset("a.mp4", old, &place)));
        let refused = || appliance.metric("oca_manifests_refused_total", "reason=\"source\"");
        wait_until("refused", PATIENCE, || refused() == (number - 1) as f64);
        let told = manifest_of(&appliance)["last_refusal"]["message"].to_string();
        let field = if place.contains("url") { "url" } else { "name" };
        assert!(told.contains(&format!("assets[0].sources[0].{field} (line 2, column")), "{told}");
        assert_eq!(manifest_of(&appliance)["sequence"], 1);
    }
    assert_eq!(stranger.targets(), Vec::<String>::new());
    assert!(ours.targets().iter().all(|target| target == "/films/old/a.mp4"), "{:?}", ours.targets());
    assert!(lent.targets().iter().all(|target| target == "/cdn/tonight/b%20c.mp4"), "{:?}", lent.targets());
}

/// The wait is an hour: what comes before it comes from the one that is waited for.
#[test]
fn a_source_is_not_asked_before_its_wait_is_over() {
    let plane = Plane::new();
    let (tier, origin) = (Origin::start(), Origin::start());
    let content = origin.publish_new("/a.mp4", 1, 400_000);
    let other = origin.publish_new("/b.mp4", 2, 100_000);
    let source = format!("[[fill.source]]\nkind = \"tier\"\nname = \"near\"\nurl = \"{}\"", tier.url());
    let appliance = Setup::new(&origin).source(&source).tables(&plane.control(&plane.by_file(), "")).start();
    let defaults = "\"defaults\": {\"sources\": [{\"name\": \"origin\", \"cost\": 9, \"wait_s\": 3600}, {\"name\": \"near\", \"cost\": 5}]},";
    let without = |key: &str, content| asset(key, content, "").replace(", \"sources\": []", "");
    let assets = format!("{}, {}", without("a.mp4", content), asset("b.mp4", other, "{\"name\": \"origin\"}"));
    plane.publish(&plane.write_with(1, defaults, &assets));
    wait_for(&appliance, 1);
    wait_until("planned", PATIENCE, || appliance.metric("oca_fill_wanted_assets", "") == 2.0);
    let mut fill = Command::new(env!("CARGO_BIN_EXE_oca"));
    let mut fill = fill
        .args(["fill", "--now", "--admin", &appliance.admin_url()])
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("it runs");
    wait_until("asked again and again", PATIENCE, || tier.seen("/a.mp4").len() >= 3);
    wait_until("what says otherwise", PATIENCE, || appliance.metric("oca_fill_held_assets", "") == 1.0);
    assert!(origin.seen("/a.mp4").is_empty(), "it is waited for the tier");
    assert_eq!(appliance.metric("oca_fill_failed_total", ""), 0.0, "what is waited for has not failed");
    let told =
        Command::new(env!("CARGO_BIN_EXE_oca")).args(["why", "/a.mp4", "--admin", &appliance.admin_url()]).output();
    let told = String::from_utf8(told.expect("it runs").stdout).expect("text");
    assert!(told.contains("once others have been waited for (") && told.contains(" s so far)"), "{told}");
    // A viewer is not kept waiting.
    assert!(!is_hit(&appliance, "/a.mp4", content));
    let asked = origin.seen("/a.mp4").len();
    tier.publish_new("/a.mp4", 1, 400_000);
    let ended = fill.wait().expect("it ends");
    assert!(ended.success() && is_hit(&appliance, "/a.mp4", content), "{}", appliance.log());
    assert_eq!(origin.seen("/a.mp4").len(), asked, "it came from the tier");
    assert!(appliance.metric("oca_fill_planned_bytes_total", "kind=\"tier\"") >= 400_000.0);
}
