//! What operators watch with: the alerts and the dashboard of config/.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::{missing_tool, run};

const RULES: &str = include_str!("../../config/prometheus-rules.yml");
const RULES_TEST: &str = include_str!("../../config/prometheus-rules.test.yml");
const DASHBOARD: &str = include_str!("../../config/grafana-dashboard.json");
const PAGE: &str = include_str!("../../docs/metrics.md");

/// Names of metrics in a text.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let words = text.split(|c: char| !is_part(c)).filter(|word| word.starts_with("oca_"));
    // The series of a histogram are called after it.
    words.map(|word| word.strip_suffix("_bucket").unwrap_or(word)).collect()
}

fn file(name: &str) -> String {
    format!("{}/config/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_there_are() {
    let known = metrics_in(PAGE);
    for (name, text) in [("rules", RULES), ("tests of rules", RULES_TEST), ("dashboard", DASHBOARD)] {
        let asked = metrics_in(text);
        let unknown: Vec<_> = asked.difference(&known).collect();
        assert!(asked.len() > 10 && unknown.is_empty(), "{name}: {unknown:?}");
    }
}

#[test]
fn every_alert_fires_when_it_should_and_not_before() {
    let alerts: Vec<&str> = RULES.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let untested: Vec<_> =
        alerts.iter().filter(|alert| !RULES_TEST.contains(&format!("alertname=\"{alert}\""))).collect();
    assert!(alerts.len() > 10 && untested.is_empty(), "{untested:?}");
    if missing_tool("promtool") {
        return;
    }
    run("promtool", &["check", "rules", &file("prometheus-rules.yml")]);
    run("promtool", &["test", "rules", &file("prometheus-rules.test.yml")]);
}

#[test]
fn the_dashboard_is_one() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut places = BTreeSet::new();
    for panel in panels {
        let title = panel["title"].as_str().expect("a title");
        let targets = panel["targets"].as_array().expect("questions");
        assert!(!targets.is_empty(), "{title}");
        let asks = |target: &Value| target["expr"].as_str().is_some_and(|expr| expr.contains("oca_"));
        assert!(targets.iter().all(asks), "{title}");
        let place = &panel["gridPos"];
        let within = place["x"].as_u64().zip(place["w"].as_u64()).is_some_and(|(x, w)| x + w <= 24);
        assert!(within && places.insert((place["y"].as_u64(), place["x"].as_u64())), "{title} has no place");
    }
}

/// As Prometheus asks: each question of the dashboard is one.
#[test]
fn the_dashboards_questions_are_well_formed() {
    if missing_tool("promtool") {
        return;
    }
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let targets = dashboard["panels"].as_array().expect("panels").iter().flat_map(|panel| panel["targets"].as_array());
    // promtool has no check for a question alone; rules are questions with a name.
    let rules = targets.flatten().enumerate().map(|(number, target)| {
        let expr = target["expr"].as_str().expect("text").replace("$__rate_interval", "5m").replace("$instance", ".*");
        serde_json::json!({ "record": format!("dashboard:question:{number}"), "expr": expr })
    });
    let rules = serde_json::json!({ "groups": [{ "name": "dashboard", "rules": rules.collect::<Vec<_>>() }] });
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("rules.json");
    std::fs::write(&path, rules.to_string()).expect("written");
    run("promtool", &["check", "rules", &path.display().to_string()]);
}
