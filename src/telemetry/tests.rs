//! What is rendered for whoever scrapes.

use std::time::Duration;

use super::{counters::FIRST_BYTE_BOUNDS, metrics::*};

fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("{series} is not in\n{text}"))
}

/// Those that are set by their name, once each.
fn set_gauges(metrics: &Metrics) {
    let labels = [("oca_health_state", "state"), ("oca_health_reasons", "code"), ("oca_disk_busy_ratio", "volume")];
    labels.iter().for_each(|(name, label)| metrics.gauge(name, Some((label, "a")), 1.0));
    for name in ["oca_egress_bits_per_second", "oca_egress_capacity_bits_per_second", "oca_headroom_bits_per_second"] {
        metrics.gauge(name, None, 1.0);
    }
    metrics.set_planned(PLANNED.to_vec());
    metrics.manifest.refused("expired");
}

/// What fill by manifest tells of itself.
const PLANNED: [Planned; 12] = [
    ("oca_fill_wanted_assets", None, 1),
    ("oca_fill_wanted_bytes", None, 1),
    ("oca_fill_held_assets", None, 1),
    ("oca_fill_held_bytes", None, 1),
    ("oca_fill_in_work", None, 1),
    ("oca_fill_window_open", None, 1),
    ("oca_fill_rate_bits_per_second", None, 1),
    ("oca_fill_fetched_assets_total", None, 1),
    ("oca_fill_evicted_assets_total", None, 1),
    ("oca_fill_discarded_assets_total", None, 1),
    ("oca_fill_planned_bytes_total", Some(("kind", "peer")), 1),
    ("oca_fill_failed_total", Some(("reason", "gone")), 1),
];

#[test]
fn a_gauge_is_its_last_value() {
    let metrics = Metrics::new(1);
    for (state, value) in [("serving", 1.0), ("down", 0.0), ("serving", 0.0)] {
        metrics.gauge("oca_health_state", Some(("state", state)), value);
    }
    let text = metrics.render();
    assert_eq!(value(&text, "oca_health_state{state=\"serving\"}"), 0.0);
    assert_eq!(value(&text, "oca_health_state{state=\"down\"}"), 0.0);
}

#[test]
fn workers_are_added_up() {
    let metrics = Metrics::new(2);
    for number in [0, 1, 1] {
        metrics.worker(number).record_response(206, CacheOutcome::Hit, Duration::from_micros(80));
    }
    metrics.worker(1).record_response(418, CacheOutcome::None, Duration::from_secs(60));
    metrics.worker(0).sent(SendPath::Sendfile, 1000);
    let text = metrics.render();
    assert_eq!(value(&text, "oca_responses_total{status=\"206\"}"), 3.0);
    assert_eq!(value(&text, "oca_responses_total{status=\"other\"}"), 1.0);
    assert_eq!(value(&text, "oca_cache_outcomes_total{outcome=\"hit\"}"), 3.0);
    assert_eq!(value(&text, "oca_first_byte_seconds_bucket{le=\"0.0001\"}"), 3.0);
    assert_eq!(value(&text, "oca_first_byte_seconds_count"), 4.0);
    assert_eq!(value(&text, "oca_sent_bytes_total{path=\"sendfile\"}"), 1000.0);
}

#[test]
fn every_metric_of_the_table_is_rendered() {
    let metrics = Metrics::new(1);
    metrics.volume("/v").evicted_assets.inc();
    metrics.source("origin-0").error("stalled");
    metrics.certificate("/edge.pem").expiry.set(1);
    set_gauges(&metrics);
    metrics.steering("steering-0").report("delivered");
    let text = metrics.render();
    for metric in TABLE {
        assert!(text.contains(&format!("# TYPE {} ", metric.name)), "{} is missing", metric.name);
        assert_eq!(metric.kind == Kind::Counter, metric.name.ends_with("_total"), "{}", metric.name);
    }
    assert_eq!(value(&text, "oca_fill_errors_total{source=\"origin-0\",reason=\"stalled\"}"), 1.0);
}

#[test]
fn what_is_rendered_is_well_formed_whatever_the_names() {
    let metrics = Metrics::new(3);
    metrics.volume("/srv/\"odd\"\\\nname").used_bytes.set(u64::MAX);
    metrics.source("quelle-\u{fc}").error("stalled");
    metrics.certificate("/edge.pem").expiry.set(1);
    metrics.steering("steering-0").report("delivered");
    metrics.worker(2).record_response(200, CacheOutcome::Hit, Duration::from_nanos(1));
    set_gauges(&metrics);
    let text = metrics.render();
    let (mut families, mut series) = (Vec::new(), Vec::new());
    for line in text.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            families.push(family.split(' ').next().expect("a name"));
        } else if !line.starts_with("# HELP ") {
            let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
            assert!(value.parse::<f64>().is_ok(), "{line}");
            let family = families.last().expect("a type comes first");
            assert!(name.starts_with(family), "{line} stands under {family}");
            series.push(name);
        }
    }
    let table: Vec<&str> = TABLE.iter().map(|metric| metric.name).collect();
    assert_eq!(families, table, "each once, in the order of the table");
    let count = series.len();
    series.sort_unstable();
    series.dedup();
    assert_eq!(series.len(), count, "no series twice");
    assert!(text.contains(r#"{volume="/srv/\"odd\"\\\nname"}"#), "{text}");
}

#[test]
fn the_histogram_is_cumulative_and_a_bound_belongs_to_its_bucket() {
    let metrics = Metrics::new(2);
    for (at, bound) in FIRST_BYTE_BOUNDS.iter().enumerate() {
        let worker = metrics.worker(at % 2);
        worker.record_response(200, CacheOutcome::Hit, Duration::from_micros(*bound));
    }
    metrics.worker(0).record_response(200, CacheOutcome::Hit, Duration::MAX);
    let text = metrics.render();
    let buckets: Vec<f64> = text
        .lines()
        .filter(|line| line.starts_with("oca_first_byte_seconds_bucket"))
        .map(|line| line.rsplit(' ').next().expect("a value").parse().expect("a number"))
        .collect();
    let expected: Vec<f64> = (1..=FIRST_BYTE_BOUNDS.len() + 1).map(|count| count as f64).collect();
    assert_eq!(buckets, expected, "one more in each, +Inf last\n{text}");
}

#[test]
fn observers_run_before_each_scrape() {
    let metrics = Metrics::new(1);
    metrics.before_scrape(|metrics| metrics.assets.inc());
    assert_eq!(value(&metrics.render(), "oca_assets"), 1.0);
    assert_eq!(value(&metrics.render(), "oca_assets"), 2.0);
}

#[test]
fn connections_open_are_those_begun_less_those_ended() {
    let metrics = Metrics::new(2);
    metrics.worker(0).accepted();
    metrics.worker(0).refused(Refused::Full);
    metrics.worker(1).accepted();
    metrics.worker(1).ended();
    assert_eq!(metrics.connections(), 2);
}

/// `OCA_UPDATE=1` writes the page anew.
#[test]
fn the_page_of_metrics_is_that_of_the_table() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let page = std::fs::read_to_string(&path).expect("the page");
    let table = table_as_markdown();
    if page.contains(&table) {
        return;
    }
    assert!(std::env::var_os("OCA_UPDATE").is_some(), "docs/metrics.md has drifted; OCA_UPDATE=1 writes it anew");
    let is_row = |line: &&str| line.starts_with('|');
    let before: Vec<&str> = page.lines().take_while(|line| !is_row(line)).collect();
    let after: Vec<&str> = page.lines().skip(before.len()).skip_while(is_row).collect();
    let written = format!("{}\n{table}{}\n", before.join("\n"), after.join("\n"));
    std::fs::write(path, written.trim_end().to_owned() + "\n").expect("written");
}
