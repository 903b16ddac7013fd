//! How far a fill is, for those who watch.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::super::{FillPlan, SourceKind};
use crate::{asset::UnixTime, telemetry::metrics::Planned};

/// How far the fill for the manifest in force is.
#[derive(Debug, Default)]
pub struct Progress {
    came: [AtomicU64; 3],
    fetched: AtomicU64,
    evicted: AtomicU64,
    discarded: AtomicU64,
    failures: Mutex<BTreeMap<&'static str, u64>>,
    state: Mutex<State>,
}

/// How much of a manifest is here: held, and wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HowFar {
    /// Of the manifest.
    pub sequence: u64,
    /// Assets held, and wanted.
    pub assets: (u64, u64),
    /// Their bytes.
    pub bytes: (u64, u64),
}

/// What changes with each plan and each asset.
#[derive(Clone, Debug, Default)]
struct State {
    sequence: Option<u64>,
    wanted: Count,
    held: Count,
    /// Bytes that were missing when it was planned, and how many had come by then.
    missing: u64,
    came_before: u64,
    passed_over: BTreeMap<&'static str, u64>,
    /// What could not be had in the present round, by path; bounded.
    failed: BTreeMap<String, &'static str>,
    in_work: usize,
    window: Value,
    rate_bps: u64,
    rounds: u64,
    forced: bool,
    /// Bytes that have come, and when: for the speed.
    marks: std::collections::VecDeque<(u64, u64)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    assets: u64,
    bytes: u64,
}

/// An asset in work.
#[derive(Debug)]
pub(super) struct InWork<'p>(&'p Progress);

impl Drop for InWork<'_> {
    fn drop(&mut self) {
        self.0.state.lock().in_work -= 1;
    }
}

/// Reasons that assets fail for, which metrics show from the start.
const REASONS: [&str; 8] =
    ["not_found", "gone", "forbidden", "source_failed", "source_timed_out", "busy", "no_room", "wrong_digest"];
/// Failed assets that are told by name.
const FAILED_MAX: usize = 100;
/// Seconds over which the speed is taken.
const SPEED_SECONDS: usize = 30;

impl Progress {
    pub(super) fn came(&self, kind: SourceKind, bytes: u64) {
        self.came[kind as usize].fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that have come from sources of a kind, since the start.
    pub fn bytes_from(&self, kind: SourceKind) -> u64 {
        self.came[kind as usize].load(Ordering::Relaxed)
    }

    fn bytes(&self) -> u64 {
        self.came.iter().map(|came| came.load(Ordering::Relaxed)).sum()
    }

    pub(super) fn planned(&self, sequence: u64, plan: &FillPlan, lengths: &dyn Fn(u32) -> u64) {
        let sum = |ranks: &mut dyn Iterator<Item = u32>| {
            ranks.fold(Count::default(), |sum, rank| Count {
                assets: sum.assets + 1,
                bytes: sum.bytes.saturating_add(lengths(rank)),
            })
        };
        let held = sum(&mut plan.keep.iter().copied());
        let to_fetch = sum(&mut plan.fetch.iter().map(|fetch| fetch.rank));
        let came = self.bytes();
        let mut state = self.state.lock();
        state.sequence = Some(sequence);
        state.held = held;
        state.wanted =
            Count { assets: held.assets + to_fetch.assets, bytes: held.bytes.saturating_add(to_fetch.bytes) };
        (state.missing, state.came_before) = (plan.bytes_to_fetch(), came);
        state.passed_over.clear();
        for (_, why) in &plan.passed_over {
            *state.passed_over.entry(why.label()).or_default() += 1;
        }
        state.failed.clear();
    }

    /// An asset is in work until what this gives is dropped.
    pub(super) fn begin(&self) -> InWork<'_> {
        self.state.lock().in_work += 1;
        InWork(self)
    }

    pub(super) fn held(&self, length: u64) {
        self.fetched.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state.lock();
        state.held.assets += 1;
        state.held.bytes = state.held.bytes.saturating_add(length);
    }

    pub(super) fn failed(&self, path: &str, why: &'static str) {
        *self.failures.lock().entry(why).or_default() += 1;
        let mut state = self.state.lock();
        if state.failed.len() < FAILED_MAX {
            state.failed.insert(path.into(), why);
        }
    }

    pub(super) fn evicted(&self) {
        self.evicted.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn discarded(&self) {
        self.discarded.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn round_ended(&self) {
        self.state.lock().rounds += 1;
    }

    pub(super) fn window(&self, now: UnixTime, window: Value, rate_bps: u64, forced: bool) {
        let bytes = self.bytes();
        let mut state = self.state.lock();
        (state.window, state.rate_bps, state.forced) = (window, rate_bps, forced);
        if state.marks.back().is_none_or(|(at, _)| *at != now.0) {
            state.marks.push_back((now.0, bytes));
            if state.marks.len() > SPEED_SECONDS {
                state.marks.pop_front();
            }
        }
    }

    /// How much of what the manifest in force wants, and has room, is held; `None` before the first plan.
    pub fn how_far(&self) -> Option<HowFar> {
        let state = self.state.lock();
        let (wanted, held) = (state.wanted, state.held);
        let (assets, bytes) = ((held.assets, wanted.assets), (held.bytes, wanted.bytes));
        Some(HowFar { sequence: state.sequence?, assets, bytes })
    }

    /// Each number of the metrics: name, label and value.
    pub fn numbers(&self) -> Vec<Planned> {
        let state = self.state.lock().clone();
        let mut numbers = vec![
            ("oca_fill_wanted_assets", None, state.wanted.assets),
            ("oca_fill_wanted_bytes", None, state.wanted.bytes),
            ("oca_fill_held_assets", None, state.held.assets),
            ("oca_fill_held_bytes", None, state.held.bytes),
            ("oca_fill_in_work", None, state.in_work as u64),
            ("oca_fill_window_open", None, u64::from(state.window["state"] == "open")),
            ("oca_fill_rate_bits_per_second", None, state.rate_bps),
            ("oca_fill_fetched_assets_total", None, self.fetched.load(Ordering::Relaxed)),
            ("oca_fill_evicted_assets_total", None, self.evicted.load(Ordering::Relaxed)),
            ("oca_fill_discarded_assets_total", None, self.discarded.load(Ordering::Relaxed)),
        ];
        for kind in [SourceKind::Peer, SourceKind::Tier, SourceKind::Origin] {
            numbers.push(("oca_fill_planned_bytes_total", Some(("kind", kind.label())), self.bytes_from(kind)));
        }
        let failures = self.failures.lock();
        let known = REASONS.iter().filter(|reason| !failures.contains_key(*reason)).map(|reason| (reason, &0));
        numbers.extend(
            failures.iter().chain(known).map(|(why, count)| ("oca_fill_failed_total", Some(("reason", *why)), *count)),
        );
        numbers
    }

    /// All of it, as JSON.
    pub fn status(&self) -> Value {
        let state = self.state.lock().clone();
        // What is asked for twice is counted twice: never more than was missing.
        let came_since = (self.bytes() - state.came_before).min(state.missing);
        let here = state.wanted.bytes.saturating_sub(state.missing - came_since).max(state.held.bytes);
        let left = state.wanted.bytes.saturating_sub(here);
        let speed = match (state.marks.front(), state.marks.back()) {
            (Some((then, before)), Some((now, after))) if now > then => (after - before) / (now - then),
            _ => 0,
        };
        let kinds = [SourceKind::Peer, SourceKind::Tier, SourceKind::Origin];
        let came: BTreeMap<_, _> = kinds.iter().map(|kind| (kind.label(), self.bytes_from(*kind))).collect();
        json!({
            "sequence": state.sequence,
            "wanted": { "assets": state.wanted.assets, "bytes": state.wanted.bytes },
            "held": { "assets": state.held.assets, "bytes": state.held.bytes },
            "here_bytes": here,
            "passed_over": state.passed_over,
            "in_work": state.in_work,
            "fetched_bytes": came,
            "failed": state.failed,
            "window": state.window,
            "now": state.forced,
            "rate_bits_per_second": state.rate_bps,
            "bytes_per_second": speed,
            "seconds_left": left.checked_div(speed),
            "rounds": state.rounds,
        })
    }
}
