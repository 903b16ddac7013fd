//! Whom to ask for an asset, in which order, and for what. Pure.
//!
//! cheapest first: peers that hold it or fetch it for the site, then the tier, then the origin
//!
//! In a site one box fetches an asset from outside and the others take it from there. Which one is decided without a word
//! between them, by rendezvous hashing (Thaler and Ravishankar, 1998) of the asset over the names of all boxes: each ranks all of
//! them for the asset, asks those above itself to fetch it, and fetches it from outside where no box above it answers. Requests
//! climb the ranking only, so they cannot go in a circle, and the share of a dead box moves to the next in each asset's own
//! ranking. It is decided for the asset and not for a group of its blocks, so that what one box reads ahead is what the next
//! request of the same viewer wants, and a film has one connection to the origin and not one for each box.

use std::{cmp::Reverse, time::Duration};

use url::Url;

use super::{SourceConfig, SourceKind, hints::Hints};
use crate::{asset::AssetId, catalog::Asker};

/// What a source is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// To give it if it holds it, and nothing else (`only-if-cached`).
    IfHeld,
    /// To fetch it for the site, if it does not hold it.
    Fetch,
    /// To give it: the source is outside of the site.
    Outside,
}

/// For whom a fetch is, and what is known besides the configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route<'a> {
    /// Who asks.
    pub(super) asker: &'a Asker,
    /// What a manifest says. Nobody else is asked. `None`: a viewer wants it, who is given what the manifest in force says and the rest.
    pub(super) hints: Option<&'a Hints>,
}

impl<'a> Route<'a> {
    /// Somebody asks, and waits.
    pub(super) fn of(asker: &'a Asker) -> Self {
        Self { asker, hints: None }
    }
}

/// One source of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    /// Its number in the configuration.
    pub(super) source: usize,
    /// The folder there, in place of the source's own.
    pub(super) below: Option<Url>,
    pub(super) how: How,
    /// Longest wait for its answer before the next one is asked.
    pub(super) escalate_after: Duration,
    /// How long it is waited for others to have the asset before it is asked.
    pub(super) wait: Duration,
}

/// How the boxes of a site know each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Boxes<'a> {
    /// Name of this one; empty: nobody fetches for anybody.
    pub(super) me: &'a str,
    /// Peers that one fetch asks at most.
    pub(super) asked_max: usize,
}

/// Where something stands in an order: the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place<'n> {
    /// The site comes before what lies outside of it, unless a manifest says more.
    Peer(u32, Reverse<Weight<'n>>),
    /// A manifest names it: cost, place in its list, and among the peers that one name stands for, their own order.
    Listed(u32, usize, Reverse<Weight<'n>>),
    /// As it is configured.
    Configured(u32, SourceKind, Reverse<Weight<'n>>),
}

/// The order in which `sources` are asked for an asset. `hints`: what a manifest says of it; `only`: nobody else is asked.
pub(super) fn order(
    id: &AssetId,
    boxes: Boxes<'_>,
    sources: &[&SourceConfig],
    (asker, hints, only): (&Asker, Option<&Hints>, bool),
) -> Vec<Turn> {
    let mine = weight(id, boxes.me);
    let turn = |number: usize, below: Option<&Url>, wait| {
        let source = sources[number];
        let weight =
            if source.kind == SourceKind::Peer && !boxes.me.is_empty() { weight(id, &source.name) } else { (0, "") };
        let how = match source.kind {
            SourceKind::Peer if boxes.me.is_empty() || asker.is_peer() || weight < mine => How::IfHeld,
            SourceKind::Peer => How::Fetch,
            SourceKind::Tier | SourceKind::Origin => How::Outside,
        };
        let turn = Turn { source: number, below: below.cloned(), how, escalate_after: source.escalate_after, wait };
        (Reverse(weight), turn)
    };
    let listed = hints.map_or(&[][..], |hints| &hints.0);
    let mut turns: Vec<(Place<'_>, Turn)> = listed
        .iter()
        .map(|hint| {
            let (rank, turn) = turn(hint.source, hint.below.as_ref(), hint.wait);
            (Place::Listed(hint.cost, hint.place, rank), turn)
        })
        .collect();
    let is_listed = |number: usize| listed.iter().any(|hint| hint.source == number && hint.below.is_none());
    let others =
        sources.iter().enumerate().filter(|(number, source)| !only && !source.by_manifest && !is_listed(*number));
    turns.extend(others.map(|(number, source)| {
        let (rank, turn) = turn(number, None, Duration::ZERO);
        let place = match source.kind {
            SourceKind::Peer if !listed.is_empty() => Place::Peer(source.cost, rank),
            kind => Place::Configured(source.cost, kind, rank),
        };
        (place, turn)
    }));
    // A peer that asks does not hold it.
    turns.retain(|(_, turn)| {
        let source = sources[turn.source];
        source.kind != SourceKind::Peer || !asker.came_through(&source.name)
    });
    // A stable sort: what nothing else tells apart stays as it is configured.
    turns.sort_by_key(|(place, _)| *place);
    let mut peers = 0;
    turns.retain(|(_, turn)| {
        let is_peer = sources[turn.source].kind == SourceKind::Peer;
        peers += usize::from(is_peer);
        !is_peer || peers <= boxes.asked_max
    });
    turns.into_iter().map(|(_, turn)| turn).collect()
}

/// Whether an asset falls to the box called `me`: whether no peer of these stands above it. Without a name, every one does.
pub(super) fn falls_to<'s>(id: &AssetId, me: &str, mut sources: impl Iterator<Item = &'s SourceConfig>) -> bool {
    me.is_empty() || !sources.any(|source| source.kind == SourceKind::Peer && weight(id, &source.name) > weight(id, me))
}

/// A hash, and the name it is of.
type Weight<'n> = (u64, &'n str);

/// Where a box stands for an asset: the heaviest fetches it. The name decides between equals.
fn weight<'n>(id: &AssetId, name: &'n str) -> Weight<'n> {
    let mut hash = [0_u8; 8];
    blake3::Hasher::new().update(id.as_bytes()).update(name.as_bytes()).finalize_xof().fill(&mut hash);
    (u64::from_le_bytes(hash), name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        asset::AssetKey,
        fill::{SourceLocation, hints::Hint},
    };

    const VIEWER: Asker = Asker::Viewer;

    fn source(name: &str, kind: SourceKind) -> SourceConfig {
        SourceConfig::new(name, kind, SourceLocation::Directory("/".into()))
    }

    fn id(number: usize) -> AssetId {
        AssetKey::parse(&format!("/{number}"), None).expect("valid").id()
    }

    /// The order as names and what they are asked to do, at the box called `me`.
    fn named(me: &str, number: usize, sources: &[SourceConfig], asker: &Asker) -> Vec<(String, How)> {
        let all: Vec<&SourceConfig> = sources.iter().collect();
        let turns = order(&id(number), Boxes { me, asked_max: 8 }, &all, (asker, None, false));
        turns.into_iter().map(|turn| (all[turn.source].name.clone(), turn.how)).collect()
    }

    /// What the box called `me` knows of the boxes a, b and c.
    fn site(me: &str) -> Vec<SourceConfig> {
        let peers = ["a", "b", "c"].into_iter().filter(|name| *name != me).map(|name| source(name, SourceKind::Peer));
        peers.chain([source("tier", SourceKind::Tier), source("origin", SourceKind::Origin)]).collect()
    }

    #[test]
    fn each_asset_has_one_box_that_asks_no_peer_to_fetch_and_the_others_ask_it_first() {
        let mut owned = std::collections::BTreeMap::new();
        for number in 0..300 {
            let orders = ["a", "b", "c"].map(|me| (me, named(me, number, &site(me), &VIEWER)));
            let owners: Vec<_> =
                orders.iter().filter(|(_, order)| order.iter().all(|(_, how)| *how != How::Fetch)).collect();
            assert_eq!(owners.len(), 1, "{number}: {orders:?}");
            let owner = owners[0].0;
            for (me, order) in orders.iter().filter(|(me, _)| *me != owner) {
                assert_eq!(order[0], (owner.to_owned(), How::Fetch), "{number} at {me}");
                assert_eq!(order[2..].iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["tier", "origin"]);
            }
            *owned.entry(owner).or_insert(0) += 1;
        }
        assert!(owned.len() == 3 && owned.values().all(|count| *count > 70), "{owned:?}");
    }

    /// Who is asked to fetch stands above who asks: nothing comes back to where it began, whoever is dead.
    #[test]
    fn requests_to_fetch_climb_one_ranking() {
        for number in 0..100 {
            let mut asks = Vec::new();
            for me in ["a", "b", "c"] {
                let order = named(me, number, &site(me), &VIEWER);
                asks.extend(order.into_iter().filter(|(_, how)| *how == How::Fetch).map(|(name, _)| (me, name)));
            }
            assert_eq!(asks.len(), 3, "each pair of boxes in one direction: {asks:?}");
            assert!(!asks.iter().any(|(from, to)| asks.iter().any(|(back, on)| back == to && on == from)), "{asks:?}");
        }
    }

    #[test]
    fn a_box_that_is_gone_moves_its_own_share_only() {
        let owner = |number, names: &[&str]| {
            let heaviest = names.iter().max_by_key(|name| weight(&id(number), name)).expect("some");
            (*heaviest).to_owned()
        };
        for number in 0..300 {
            let (before, after) = (owner(number, &["a", "b", "c"]), owner(number, &["a", "c"]));
            assert!(before == "b" || before == after, "{number}");
        }
    }

    #[test]
    fn for_a_peer_no_peer_is_asked_to_fetch_and_without_a_name_nobody_is() {
        let peer = Asker::Cache { through: "b; peer=1".into(), peer: true };
        for number in 0..50 {
            let order = named("a", number, &site("a"), &peer);
            assert!(order.iter().all(|(name, how)| *how != How::Fetch && name != "b"), "{order:?}");
            assert_eq!(order.len(), 3, "c may hold it");
            assert!(named("", number, &site("a"), &VIEWER).iter().all(|(_, how)| *how != How::Fetch));
        }
    }

    #[test]
    fn cost_decides_and_the_site_comes_first() {
        let cheap_origin = SourceConfig { cost: 5, ..source("near", SourceKind::Origin) };
        let mut sources = vec![source("tier", SourceKind::Tier), source("peer", SourceKind::Peer), cheap_origin];
        let names = |sources: &[SourceConfig]| {
            named("", 1, sources, &VIEWER).into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        assert_eq!(names(&sources), ["near", "peer", "tier"]);
        sources.extend((0..20).map(|number| source(&format!("p{number}"), SourceKind::Peer)));
        assert_eq!(names(&sources).len(), 2 + 8, "so many peers are asked and no more");
    }

    #[test]
    fn what_a_manifest_lists_goes_by_its_costs_and_a_viewer_gets_the_others_after_it() {
        let mut sources = site("a");
        sources.push(SourceConfig { by_manifest: true, ..source("https://cdn.example/", SourceKind::Origin) });
        let all: Vec<&SourceConfig> = sources.iter().collect();
        let below: Url = "https://cdn.example/films/".parse().expect("an address");
        let hint = |source, cost, place, below: Option<&Url>, wait| Hint {
            source,
            below: below.cloned(),
            cost,
            place,
            wait: Duration::from_secs(wait),
        };
        // b, c, tier, origin, by address.
        let hints = Hints(vec![hint(4, 1, 0, Some(&below), 0), hint(3, 1, 1, None, 0), hint(2, 9, 2, None, 60)]);
        let told = |only| {
            let turns = order(&id(1), Boxes { me: "a", asked_max: 8 }, &all, (&VIEWER, Some(&hints), only));
            turns
                .iter()
                .map(|turn| (all[turn.source].name.clone(), turn.below.clone(), turn.wait.as_secs()))
                .collect::<Vec<_>>()
        };
        let listed = [
            ("https://cdn.example/".to_owned(), Some(below.clone()), 0),
            ("origin".into(), None, 0),
            ("tier".into(), None, 60),
        ];
        assert_eq!(told(true), listed, "nobody else is asked for a fill");
        let all_of_them = told(false);
        assert_eq!(all_of_them.len(), 5, "{all_of_them:?}");
        assert!(
            all_of_them[..2].iter().all(|(name, ..)| name == "b" || name == "c"),
            "the site first: {all_of_them:?}"
        );
        assert_eq!(all_of_them[2..], listed);
        let turns = order(&id(1), Boxes { me: "a", asked_max: 8 }, &all, (&VIEWER, None, false));
        assert!(turns.iter().all(|turn| turn.source != 4), "an address of a manifest is for what the manifest lists");
    }
}
