//! The status page in a real browser, and `oca status` beside it: what they show is what is, and moves with it.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::{
    life::{oca, said},
    support::{Browser, Origin, Over, Setup, missing_tool, wait_until},
};

const SOON: &str =
    "[health]\ninterval = \"50 ms\"\nwindow = \"2 s\"\negress_capacity = \"10 Gbps\"\nqueue_delay_max = \"1 min\"\n";
const PATIENCE: Duration = Duration::from_secs(30);
const TEXT_OF: &str = "const of = (what) => document.querySelector(what).textContent;";

#[test]
fn a_browser_sees_load_and_trouble_come_and_go() {
    if missing_tool("chromedriver") {
        return;
    }
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 4_000_000);
    let appliance = Setup::new(&origin).tables(SOON).start();
    content.assert_is(0, &appliance.get("/film.mp4").body);
    let browser = Browser::start();
    browser.open(&appliance.admin_url());
    browser.wait_for(
        "it is connected",
        &format!("{TEXT_OF} done(of('#link') === 'live' && of('#head h1') === 'serving' && of('#reasons') === 'all is well');"),
    );
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        // Also where something is amiss: nobody asks for ever.
        let over = Over(&over);
        let (asked, appliance) = (over.0, &appliance);
        scope.spawn(move || {
            let mut viewer = appliance.connect();
            while !asked.load(Ordering::Relaxed) {
                content.assert_is(0, &viewer.get("/film.mp4").body);
                // A load that any machine bears.
                thread::park_timeout(Duration::from_millis(10));
            }
        });
        let shown = |plot: &str| format!("of('figure[data-plot={plot}] output')");
        // More than a few requests of the page itself could be.
        browser.wait_for("throughput and hits move", &format!(
            "{TEXT_OF} done(/[MG]b.s$/.test({}) && /^(100|9.*) %$/.test({}) && /s$/.test({}) && samples.length > 3);",
            shown("egress"), shown("hits"), shown("first_byte"),
        ));
        browser.wait_for(
            "and so do the figures",
            &format!("{TEXT_OF} done(/egress[\\d.]+ [MG]b.s/.test(of('#figures')));"),
        );
        assert!(oca(appliance, &["drain"]).status.success());
        browser.wait_for("a drain is seen", &format!(
            "{TEXT_OF} done(of('#head h1') === 'draining' && of('#reasons li:first-child').includes('wants viewers sent elsewhere'));"
        ));
        browser.save("status-draining.png");
        assert!(oca(appliance, &["drain", "--undo"]).status.success());
        browser.wait_for(
            "and its end",
            &format!("{TEXT_OF} done(of('#head h1') === 'serving' && of('#reasons') === 'all is well');"),
        );
        // Enough of a past to look at.
        browser.wait_for("there is a past", "done(samples.length >= 8);");
        browser.save("status-desktop.png");
        // Who comes later sees the past at once.
        browser.open(&appliance.admin_url());
        browser.wait_for("the past is there", "done(samples.length >= 8);");
        // On a phone, in the dark.
        browser.emulate(
            "Emulation.setDeviceMetricsOverride",
            &json!({"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": true}),
        );
        browser.emulate(
            "Emulation.setEmulatedMedia",
            &json!({"features": [{"name": "prefers-color-scheme", "value": "dark"}]}),
        );
        browser.open(&appliance.admin_url());
        browser.wait_for("it is drawn", &format!("{TEXT_OF} done(/[MG]b.s$/.test({}));", shown("egress")));
        let wide = browser.script("done(document.documentElement.scrollWidth - window.innerWidth);");
        assert_eq!(wide, 0, "nothing stands out of the screen");
        let ground = browser.script("done(getComputedStyle(document.body).backgroundColor);");
        assert_eq!(ground, "rgb(15, 19, 24)", "it is dark");
        browser.save("status-phone.png");
    });
    browser.wait_for("it calms down", &format!("{TEXT_OF} done(of('figure[data-plot=egress] output') === '0 b/s');"));
    let foreign =
        "done(performance.getEntriesByType('resource').filter((one) => !one.name.startsWith(location.origin)).length);";
    assert_eq!(browser.script(foreign), 0, "nothing comes from elsewhere");
    // What is shown when nobody answers is said to be old.
    drop(appliance);
    browser.wait_for("it is said to be gone", &format!("{TEXT_OF} done(of('#link').includes('no answer'));"));
}

#[test]
fn the_page_needs_no_script() {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 100_000);
    let appliance = Setup::new(&origin).tables(SOON).start();
    content.assert_is(0, &appliance.get("/film.mp4").body);
    wait_until("it is seen to serve", PATIENCE, || appliance.page().contains("<h1>serving</h1>"));
    let page = appliance.page();
    for expected in ["1 assets", "origin-0", "of 1.0 GiB", "href=\"status\"", "http-equiv=\"refresh\""] {
        assert!(page.contains(expected), "'{expected}' is not in {page}");
    }
}

#[test]
fn a_browser_is_asked_for_the_token() {
    let home = tempfile::tempdir().expect("a folder");
    let token = home.path().join("token");
    std::fs::write(&token, "0123456789abcdef0123456789abcdef\n").expect("written");
    std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("ours");
    let appliance = Setup::new(&Origin::start()).operators(&format!("token_file = {token:?}")).start();
    let ask = |authorization: &str| appliance.admin_with("/", &format!("Accept: text/html\r\n{authorization}"));
    let refused = ask("");
    assert_eq!(refused.status(), 401);
    let challenges = format!("{:?}", refused.head.fields);
    assert!(challenges.contains("Basic realm=") && challenges.contains("Bearer realm="), "{challenges}");
    // operator:0123456789abcdef0123456789abcdef
    let basic = "Authorization: Basic b3BlcmF0b3I6MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\r\n";
    assert_eq!(ask(basic).status(), 200);
    assert_eq!(ask("Authorization: Basic b3BlcmF0b3I6d3Jvbmc=\r\n").status(), 401);
}

#[test]
fn one_screen_tells_how_it_is() {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 100_000);
    let appliance = Setup::new(&origin).tables(&format!("{SOON}[steering]\nid = \"edge7\"\nsite = \"fra\"\n")).start();
    content.assert_is(0, &appliance.get("/film.mp4").body);
    let status = |more: &[&str]| oca(&appliance, &[&["status"][..], more].concat());
    wait_until("it serves and knows its load", PATIENCE, || {
        let shown = said(&status(&[]).stdout);
        shown.starts_with("serving\nedge7 · fra · oca ") && shown.contains("of 10.0 Gb/s")
    });
    let screen = status(&[]);
    let shown = said(&screen.stdout);
    assert!(screen.status.success() && !shown.contains('\u{1b}'), "plain where there is no terminal: {shown}");
    for expected in
        ["load\n", "egress", "of 10.0 Gb/s", "headroom", "cache: 1 assets", "of 1.0 GiB", "fill: window", "origin-0"]
    {
        assert!(shown.contains(expected), "'{expected}' is not in\n{shown}");
    }
    assert!(shown.lines().count() <= 24, "{shown}");
    let document: serde_json::Value = serde_json::from_slice(&status(&["--json"]).stdout).expect("JSON");
    assert_eq!(document["health"]["state"], "serving");
    assert!(oca(&appliance, &["drain"]).status.success());
    let drained = status(&[]);
    assert_eq!(drained.status.code(), Some(1), "viewers are to go elsewhere");
    assert!(said(&drained.stdout).starts_with("draining\n"), "{}", said(&drained.stdout));
}

#[test]
fn a_screen_is_watched_until_somebody_has_seen_enough() {
    let appliance = Setup::new(&Origin::start()).tables(SOON).start();
    let mut watching = Command::new(env!("CARGO_BIN_EXE_oca"))
        .args(["status", "--watch", "--every", "100 ms", "--json", "--admin", &appliance.admin_url()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut lines = BufReader::new(watching.stdout.take().expect("piped")).lines();
    let mut look = || -> serde_json::Value {
        serde_json::from_str(&lines.next().expect("one more").expect("text")).expect("JSON")
    };
    while look()["health"]["state"] != "serving" {}
    assert!(oca(&appliance, &["drain"]).status.success());
    while look()["health"]["state"] != "draining" {}
    // It is away for a moment, and said to be.
    drop(appliance);
    while !look()["error"].as_str().is_some_and(|error| error.contains("no appliance answers")) {}
    kill_process(Pid::from_child(&watching), Signal::INT).expect("it runs");
    assert_eq!(watching.wait().expect("ours").code(), Some(1), "it was draining");
}
