//! What is seen of metrics while something goes on.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::Appliance;

/// What was seen of each series: lowest and highest value.
#[derive(Default)]
pub(crate) struct Looks {
    pub(super) seen: BTreeMap<String, (f64, f64)>,
}

impl Looks {
    pub(crate) fn look(&mut self, appliance: &Appliance) {
        self.note(&String::from_utf8(appliance.admin("/metrics").body).expect("text"));
    }

    pub(crate) fn note(&mut self, text: &str) {
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            let value: f64 = value.parse().expect("a number");
            let (low, high) = self.seen.entry(series.into()).or_insert((value, value));
            (*low, *high) = (low.min(value), high.max(value));
        }
    }

    pub(crate) fn merge(&mut self, other: Self) {
        for (series, (low, high)) in other.seen {
            let known = self.seen.entry(series).or_insert((low, high));
            *known = (known.0.min(low), known.1.max(high));
        }
    }

    /// Whether a series of a metric changed; counters begin at zero.
    pub(crate) fn moved(&self, name: &str, kind: &str) -> bool {
        let is_series = |series: &str| match series.strip_prefix("oca_").and_then(|series| series.strip_prefix(name)) {
            Some(rest) if kind == "histogram" => rest.starts_with("_count"),
            Some(rest) => rest.is_empty() || rest.starts_with('{'),
            None => false,
        };
        let mut series = self.seen.iter().filter(|(series, _)| is_series(series));
        series.any(|(_, (low, high))| if kind == "gauge" { low != high } else { *high > 0.0 })
    }

    /// Values of `label` of the series of `name` that are not zero.
    pub(crate) fn labels(&self, name: &str, label: &str) -> BTreeSet<&str> {
        let begin = format!("oca_{name}{{");
        let label = format!("{label}=\"");
        let moved = self.seen.iter().filter(|(series, (_, high))| series.starts_with(&begin) && *high > 0.0);
        moved.filter_map(|(series, _)| series.split_once(&label)?.1.split('"').next()).collect()
    }
}
