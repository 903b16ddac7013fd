//! The access log as an operator and logrotate meet it.

use std::{fs, path::PathBuf, time::Duration};

use rustix::process::Signal;

use crate::support::{Appliance, Origin, Setup, request, wait_until};

const PATIENCE: Duration = Duration::from_secs(20);

struct Logged {
    appliance: Appliance,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

fn logging(origin: &Origin, format: &str) -> Logged {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let path = folder.path().join("access.log");
    let appliance = Setup::new(origin).tables(&format!("[log.access]\npath = {path:?}\nformat = \"{format}\"")).start();
    Logged { appliance, path, _folder: folder }
}

impl Logged {
    /// The lines, once there are so many.
    fn lines(&self, count: usize) -> Vec<String> {
        let mut lines = Vec::new();
        wait_until("the lines are written", PATIENCE, || {
            let text = fs::read_to_string(&self.path).unwrap_or_default();
            lines = text.lines().map(Into::into).collect();
            lines.len() >= count && text.ends_with('\n')
        });
        assert_eq!(lines.len(), count, "{lines:?}");
        lines
    }
}

#[test]
fn each_response_is_one_line_that_says_what_happened() {
    let origin = Origin::start();
    origin.publish_new("/film.mp4", 1, 5000);
    let logged = logging(&origin, "json");
    let mut client = logged.appliance.connect();
    client.get("/film.mp4?session=5");
    client.ask(
        "GET",
        "/film.mp4",
        &[("Range", "bytes=10-19"), ("User-Agent", "a \"player\""), ("Referer", "http://x/")],
    );
    client.ask("HEAD", "/film.mp4", &[]);
    client.get("/none.mp4");
    let lines = logged.lines(4);
    let lines: Vec<serde_json::Value> =
        lines.iter().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    let told = |n: usize| {
        let line = &lines[n];
        (
            line["method"].as_str(),
            line["target"].as_str(),
            line["status"].as_u64(),
            line["bytes"].as_u64(),
            line["cache"].as_str(),
        )
    };
    assert_eq!(told(0), (Some("GET"), Some("/film.mp4?session=5"), Some(200), Some(5000), Some("miss")));
    assert_eq!(told(1), (Some("GET"), Some("/film.mp4"), Some(206), Some(10), Some("hit")));
    assert_eq!(told(2), (Some("HEAD"), Some("/film.mp4"), Some(200), Some(0), Some("hit")));
    assert_eq!((lines[3]["status"].as_u64(), lines[3]["cache"].as_str()), (Some(404), Some("miss")));
    assert_eq!(lines[1]["range"], "bytes=10-19");
    assert_eq!(lines[1]["user_agent"], "a \"player\"");
    assert_eq!(lines[1]["referer"], "http://x/");
    assert_eq!(lines[0]["client"], "127.0.0.1");
    assert!(lines[0].get("range").is_none() && lines[0].get("user_agent").is_none());
    for line in &lines {
        assert!(line["first_byte_us"].as_u64() <= line["duration_us"].as_u64(), "{line}");
        assert!(line["time_ms"].as_u64().is_some_and(|time| time > 1_700_000_000_000), "{line}");
    }
    let mut ids: Vec<&str> = lines.iter().map(|line| line["request_id"].as_str().expect("an id")).collect();
    ids.dedup();
    assert_eq!(ids.len(), 4, "each request has its own");
}

#[test]
fn nobody_can_forge_a_line() {
    let origin = Origin::start();
    origin.publish_new("/film.mp4", 1, 5000);
    for format in ["json", "combined"] {
        let logged = logging(&origin, format);
        let mut client = logged.appliance.connect();
        let hostile = "x\" 200 5 \"-\" \"\\\t\u{e9}{\"status\":200}";
        client.ask("GET", "/film.mp4?a='b'", &[("User-Agent", hostile), ("Referer", hostile)]);
        // Cut within a character of several bytes.
        let long = format!("{}\u{1f3ac}\u{1f3ac}", "x".repeat(510));
        client.ask("GET", "/film.mp4", &[("User-Agent", &long)]);
        let lines = logged.lines(2);
        if format == "json" {
            let line: serde_json::Value = serde_json::from_str(&lines[0]).expect("an object");
            assert_eq!(line["user_agent"], hostile);
            let line: serde_json::Value = serde_json::from_str(&lines[1]).expect("an object");
            assert_eq!(line["user_agent"], "x".repeat(510), "cut, not left out");
        } else {
            assert_eq!(lines[0].matches('"').count(), 6, "three fields in quotes: {}", lines[0]);
            assert!(lines[0].is_ascii() && lines[0].bytes().all(|byte| byte >= b' '), "{}", lines[0]);
            assert!(lines[1].ends_with(&format!("\"{}\"", "x".repeat(510))), "{}", lines[1]);
        }
    }
}

#[test]
fn who_leaves_before_the_response_begins_is_logged_as_such() {
    let origin = Origin::start();
    origin.publish_new("/film.mp4", 1, 5000);
    let logged = logging(&origin, "json");
    let gate = origin.gate("/film.mp4");
    let mut client = logged.appliance.connect();
    client.send(&request("GET", "/film.mp4", &[]));
    gate.wait_for(1);
    drop(client);
    let line: serde_json::Value = serde_json::from_str(&logged.lines(1)[0]).expect("an object");
    assert_eq!((line["status"].as_u64(), line["bytes"].as_u64()), (Some(499), Some(0)));
    assert_eq!(logged.appliance.metric("oca_requests_abandoned_total", ""), 1.0);
    assert_eq!(logged.appliance.metric("oca_responses_total", ""), 0.0);
}

#[test]
fn logrotate_loses_nothing() {
    let origin = Origin::start();
    origin.publish_new("/film.mp4", 1, 5000);
    let mut logged = logging(&origin, "combined");
    let rotated = logged.path.with_extension("1");
    assert_eq!(logged.appliance.get("/film.mp4?before").status(), 200);
    logged.lines(1);
    fs::rename(&logged.path, &rotated).expect("it is ours");
    logged.appliance.signal(Signal::HUP);
    wait_until("it is opened anew", PATIENCE, || logged.path.exists());
    for n in 0..100 {
        assert_eq!(logged.appliance.get(&format!("/film.mp4?after{n}")).status(), 200);
    }
    // What is still waiting is written before the end.
    logged.appliance.stop();
    let (before, after) =
        (fs::read_to_string(rotated).expect("kept"), fs::read_to_string(&logged.path).expect("written"));
    assert!(before.lines().count() == 1 && before.contains("?before"), "{before}");
    assert_eq!(after.lines().filter(|line| line.contains("?after")).count(), 100);
}
