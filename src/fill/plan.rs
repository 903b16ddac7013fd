//! What to keep, fetch and evict for a manifest: a pure function of what is wanted, what is held and what there is room for.
//!
//! by rank, held ones a little ahead -> accepted while they fit their volume -> held: keep, else: fetch -> evict what is in their way
//!
//! Each asset has one volume (rendezvous hashing), so that volumes fill side by side. What is watched is not evicted for something
//! less popular, and what is held is not given up for something hardly more so: a small change of ranks does not reshuffle the disk.

use std::{collections::HashMap, time::Duration};

use super::nightly::digest_of;
use crate::{
    asset::UnixTime,
    catalog::{CatalogView, HeldAsset},
    control::manifest::{Manifest, ManifestAsset},
};

/// What an operator decides about plans.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Percent of a volume's capacity that a manifest may fill; the rest is for what viewers ask for besides.
    pub capacity_percent: u8,
    /// Percent of a volume's capacity that may be pinned.
    pub pinned_percent: u8,
    /// An asset that is held gives way only to one whose rank is better by so many percent.
    pub stability_percent: u8,
    /// An asset that was used so lately counts as being watched.
    pub watched_within: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            capacity_percent: 80,
            pinned_percent: 50,
            stability_percent: 5,
            watched_within: Duration::from_secs(600),
        }
    }
}

/// What is to be done. Ranks are places in the manifest's list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FillPlan {
    /// Ranks of what is held as wanted.
    pub keep: Vec<u32>,
    /// What is to be fetched, the most wanted first.
    pub fetch: Vec<Fetch>,
    /// What has to go for it, in this order.
    pub evict: Vec<Eviction>,
    /// What is wanted and will not be held.
    pub passed_over: Vec<(u32, PassedOver)>,
    /// Ranks of what is kept or fetched and may not be evicted.
    pub pinned: Vec<u32>,
}

/// An asset to be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Which.
    pub rank: u32,
    /// Its volume, by its place in the view.
    pub volume: u32,
    /// Bytes that are not here yet; zero where only its digest has to be compared.
    pub bytes: u64,
}

/// A version to be evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// Its place in the view.
    pub held: u32,
    /// Bytes that come back.
    pub bytes: u64,
    /// Why.
    pub why: EvictedFor,
}

/// Why a version has to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvictedFor {
    /// It is not the asset that the manifest means.
    Changed,
    /// For room; no manifest wants it.
    Unlisted,
    /// For room; it is wanted less than what takes its place.
    Outranked,
}

/// Why something that is wanted is not going to be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PassedOver {
    /// No volume is large enough.
    TooLarge,
    /// What is wanted more has taken the room.
    NoRoom,
    /// Its place is held by something that is being watched and wanted more.
    Watched,
    /// The manifest itself purges it.
    Purged,
}

impl EvictedFor {
    /// Label in tables and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Unlisted => "unlisted",
            Self::Outranked => "outranked",
        }
    }
}

impl PassedOver {
    /// Label in tables and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::NoRoom => "no_room",
            Self::Watched => "watched",
            Self::Purged => "purged",
        }
    }
}

impl FillPlan {
    /// Bytes still to be fetched.
    pub fn bytes_to_fetch(&self) -> u64 {
        self.fetch.iter().fold(0, |sum, fetch| sum.saturating_add(fetch.bytes))
    }
}

/// A wanted asset while it is being decided.
struct Candidate<'m> {
    rank: u32,
    asset: &'m ManifestAsset,
    /// Its place in the view, where the version that is meant is held, whole or in part.
    held: Option<usize>,
    volume: usize,
    /// Order of decision: hundredths of a rank, what is here as a whole a little ahead.
    order: u64,
}

/// What a volume has room for.
struct Room {
    budget: u64,
    pins: u64,
    /// What it would hold if the plan were carried out without an eviction.
    after: u64,
    /// A watched asset was passed over: nothing that is wanted less may be fetched in its place.
    closed: bool,
}

/// Decides.
pub fn plan(manifest: &Manifest, view: &CatalogView, rules: &Rules, now: UnixTime) -> FillPlan {
    let watched = |held: &HeldAsset| held.leased || now.since(held.used) < rules.watched_within.as_secs();
    let mut by_key: HashMap<_, usize> = HashMap::with_capacity(view.held.len());
    for (at, held) in view.held.iter().enumerate() {
        let latest = by_key.entry(&held.key).or_insert(at);
        if view.held[*latest].serial < held.serial {
            *latest = at;
        }
    }
    let mut plan = FillPlan::default();
    // What stands for what: whether a version is accepted, or has to go whatever the room.
    let mut stays = vec![false; view.held.len()];
    let mut changed = vec![false; view.held.len()];
    let mut candidates = Vec::with_capacity(manifest.assets().len());
    for (rank, asset) in (0_u32..).zip(manifest.assets()) {
        if manifest.purges(&asset.key) {
            plan.passed_over.push((rank, PassedOver::Purged));
            continue;
        }
        let mut held = by_key.get(&asset.key).copied();
        if let Some(at) = held.filter(|at| !may_become(&view.held[*at], asset)) {
            changed[at] = true;
            held = None;
        }
        let volume = held.map(|at| view.held[at].volume).or_else(|| view.volume_of(&asset.key, asset.length.0));
        let Some(volume) = volume else {
            plan.passed_over.push((rank, PassedOver::TooLarge));
            continue;
        };
        let ahead = held.is_some_and(|at| view.held[at].sealed);
        candidates.push(Candidate { rank, asset, held, volume, order: order_of(rank, ahead, rules) });
    }
    candidates.sort_by_key(|candidate| (candidate.order, candidate.rank));

    let mut rooms = rooms_of(view, rules, |at, held| {
        watched(held) && !changed[at] && by_key.get(&held.key) == Some(&at) && manifest.find(&held.key).is_none()
    });
    for candidate in &candidates {
        decide(candidate, view, &mut rooms[candidate.volume], (&mut plan, &mut stays), (manifest, &watched));
    }
    plan.keep.sort_unstable();
    plan.fetch.sort_unstable_by_key(|fetch| fetch.rank);
    plan.evict = evictions(manifest, view, &mut rooms, (&stays, &changed), &watched);
    plan
}

/// Hundredths of a rank. What is here as a whole stands ahead by a share of its rank.
fn order_of(rank: u32, here: bool, rules: &Rules) -> u64 {
    let ahead = if here { u64::from(rules.stability_percent.min(100)) } else { 0 };
    u64::from(rank) * (100 - ahead)
}

/// Whether a version is the one that the manifest means, or may turn out to be.
fn may_become(held: &HeldAsset, asset: &ManifestAsset) -> bool {
    held.length == asset.length.0
        && match (digest_of(asset), held.whole) {
            (Some(wanted), Some(whole)) => wanted == whole,
            _ => true,
        }
}

fn percent(of: u64, percent: u8) -> u64 {
    u64::try_from(u128::from(of) * u128::from(percent) / 100).unwrap_or(u64::MAX)
}

fn rooms_of(view: &CatalogView, rules: &Rules, stands_apart: impl Fn(usize, &HeldAsset) -> bool) -> Vec<Room> {
    let mut rooms: Vec<_> = view
        .volumes
        .iter()
        .map(|volume| Room {
            budget: percent(volume.capacity, rules.capacity_percent).min(volume.high),
            pins: percent(volume.capacity, rules.pinned_percent),
            after: volume.kept,
            closed: false,
        })
        .collect();
    for (at, held) in view.held.iter().enumerate() {
        // What is watched and in no list stays: its room is not to be had.
        if stands_apart(at, held) {
            let room = &mut rooms[held.volume];
            room.budget = room.budget.saturating_sub(held.reserved);
        }
    }
    rooms
}

fn decide(
    candidate: &Candidate<'_>,
    view: &CatalogView,
    room: &mut Room,
    (plan, stays): (&mut FillPlan, &mut [bool]),
    (manifest, watched): (&Manifest, &impl Fn(&HeldAsset) -> bool),
) {
    let (rank, length) = (candidate.rank, candidate.asset.length.0);
    let held = candidate.held.map(|at| &view.held[at]);
    let is_here =
        held.is_some_and(|held| held.sealed && (held.whole.is_some() || digest_of(candidate.asset).is_none()));
    let takes_room = held.is_none_or(|held| held.reserved < length);
    if length > room.budget || (room.closed && takes_room) {
        let why = if room.closed && length <= room.budget { PassedOver::Watched } else { PassedOver::NoRoom };
        plan.passed_over.push((rank, why));
        room.closed |= held.is_some_and(watched);
        return;
    }
    room.budget -= length;
    if let Some(at) = candidate.held {
        stays[at] = true;
    }
    let bytes = match held {
        Some(held) if held.sealed => 0,
        Some(held) => length.saturating_sub(held.reserved),
        None => length,
    };
    room.after = room.after.saturating_add(bytes);
    if is_here {
        plan.keep.push(rank);
    } else {
        plan.fetch.push(Fetch { rank, volume: u32::try_from(candidate.volume).unwrap_or(u32::MAX), bytes });
    }
    if manifest.is_pinned(candidate.asset) && length <= room.pins {
        room.pins -= length;
        plan.pinned.push(rank);
    }
}

/// What has to go: versions that are wrong, and then, as far as room is wanted, first what no list has, the longest unused first, and
/// then what is wanted least.
fn evictions(
    manifest: &Manifest,
    view: &CatalogView,
    rooms: &mut [Room],
    (stays, changed): (&[bool], &[bool]),
    watched: &impl Fn(&HeldAsset) -> bool,
) -> Vec<Eviction> {
    let mut evict = Vec::new();
    let mut victims = Vec::new();
    for (at, held) in view.held.iter().enumerate() {
        let eviction = |why| Eviction { held: u32::try_from(at).unwrap_or(u32::MAX), bytes: held.reserved, why };
        if changed[at] {
            let room = &mut rooms[held.volume];
            room.after = room.after.saturating_sub(held.reserved);
            evict.push(eviction(EvictedFor::Changed));
        } else if !stays[at] {
            match manifest.find(&held.key).filter(|_| !manifest.purges(&held.key)) {
                Some((rank, _)) => {
                    let least_first = u64::MAX - rank as u64;
                    victims.push(((1, least_first, held.serial), eviction(EvictedFor::Outranked)));
                }
                None if watched(held) => {}
                None => victims.push(((0, held.used.0, held.serial), eviction(EvictedFor::Unlisted))),
            }
        }
    }
    victims.sort_unstable_by_key(|(order, _)| *order);
    for (_, eviction) in victims {
        let volume = view.held[eviction.held as usize].volume;
        let room = &mut rooms[volume];
        if room.after > view.volumes[volume].high {
            room.after = room.after.saturating_sub(eviction.bytes);
            evict.push(eviction);
        }
    }
    evict
}
