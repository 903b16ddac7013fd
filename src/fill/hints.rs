//! What a manifest says of where an asset comes from, in terms of the sources that are configured. Pure.
//!
//! A manifest names sources, kinds of them, or addresses. An address is one of the source below whose own it lies: that source's
//! client, credentials, limits and health, and another folder. What is neither configured nor allowed is none (`control.source_urls`).

use std::time::Duration;

use url::Url;

use super::{SourceConfig, SourceKind};
use crate::control::manifest::{SourceChoice, SourceRef, UrlTemplate};

/// What a manifest says of the sources of one asset, in the order of its list. Nothing stands in it twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Hints(pub(super) Vec<Hint>);

/// Of one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hint {
    /// Its number in the configuration.
    pub(super) source: usize,
    /// The folder there, in place of the source's own.
    pub(super) below: Option<Url>,
    /// In place of the source's own.
    pub(super) cost: u32,
    /// Place of the entry that names it.
    pub(super) place: usize,
    /// How long it is waited for others to have the asset before it is asked.
    pub(super) wait: Duration,
}

impl Hints {
    /// What `choices` mean here.
    pub(super) fn of<'s>(choices: &[SourceChoice], sources: impl Iterator<Item = &'s SourceConfig> + Clone) -> Self {
        let mut hints = Self::default();
        for (place, choice) in choices.iter().enumerate() {
            let SourceChoice { cost, wait, .. } = *choice;
            let mut add = |source: usize, below: Option<Url>| {
                if !hints.0.iter().any(|hint| hint.source == source && hint.below == below) {
                    hints.0.push(Hint { source, below, cost, place, wait });
                }
            };
            match &choice.source {
                SourceRef::Name(name) => {
                    let is_named = |source: &SourceConfig| *source.name == **name || source.kind.label() == &**name;
                    let named =
                        sources.clone().enumerate().filter(|(_, source)| !source.by_manifest && is_named(source));
                    named.for_each(|(number, _)| add(number, None));
                }
                SourceRef::Url(template) => {
                    if let Some(number) = lender(template, sources.clone()) {
                        add(number, Some(template.base().clone()));
                    }
                }
            }
        }
        hints
    }

    /// For the box that fetches an asset for its site: there is no point in its waiting for what only the site's other boxes could have,
    /// since they wait for it.
    pub(super) fn for_who_fetches<'s>(mut self, sources: impl Iterator<Item = &'s SourceConfig> + Clone) -> Self {
        let is_outside =
            |hint: &Hint| sources.clone().nth(hint.source).is_some_and(|source| source.kind != SourceKind::Peer);
        let nearest = self.0.iter().filter(|hint| is_outside(hint)).map(|hint| hint.place).min();
        for hint in self.0.iter_mut().filter(|hint| Some(hint.place) == nearest) {
            hint.wait = Duration::ZERO;
        }
        self
    }
}

/// The source that an address belongs to: the one with the longest address above it, and of equal ones the first.
fn lender<'s>(template: &UrlTemplate, sources: impl Iterator<Item = &'s SourceConfig>) -> Option<usize> {
    let above = sources.enumerate().filter_map(|(number, source)| {
        let base = source.base().filter(|base| template.is_below(base))?;
        Some((base.path().len(), number))
    });
    above.max_by_key(|(length, number)| (*length, std::cmp::Reverse(*number))).map(|(_, number)| number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fill::SourceLocation;

    fn at(name: &str, kind: SourceKind, url: &str) -> SourceConfig {
        SourceConfig::new(name, kind, SourceLocation::Http(url.parse().expect("an address")))
    }

    fn sources() -> Vec<SourceConfig> {
        vec![
            at("a", SourceKind::Peer, "http://10.0.0.2/"),
            at("b", SourceKind::Peer, "http://10.0.0.3/"),
            at("tier", SourceKind::Tier, "https://cdn.example/"),
            at("origin-0", SourceKind::Origin, "https://cdn.example/video/"),
            SourceConfig::by_manifest(&"https://other.example/x/".parse().expect("an address")),
        ]
    }

    fn url(template: &str, cost: u32) -> SourceChoice {
        let source = SourceRef::Url(UrlTemplate::parse(template).expect("an address"));
        SourceChoice { source, cost, wait: Duration::ZERO }
    }

    fn named(name: &str, wait: u64) -> SourceChoice {
        SourceChoice { wait: Duration::from_secs(wait), ..SourceChoice::named(name) }
    }

    #[test]
    fn a_kind_is_all_of_it_and_an_address_is_one_of_the_source_that_it_lies_below() {
        let (sources, choices) = (
            sources(),
            [
                named("peer", 0),
                named("a", 7),
                url("https://cdn.example/video/old/{path}", 5),
                url("https://cdn.example/audio/{path}", 5),
                url("https://other.example/x/y/{path}", 6),
                url("https://other.example/z/{path}", 6),
                url("http://10.0.0.2/{path}", 6),
                named("https://other.example/x/", 0),
            ],
        );
        let hints = Hints::of(&choices, sources.iter());
        let told: Vec<_> =
            hints.0.iter().map(|hint| (hint.source, hint.place, hint.below.as_ref().map(Url::as_str))).collect();
        assert_eq!(
            told,
            [
                (0, 0, None),
                (1, 0, None),
                (3, 2, Some("https://cdn.example/video/old/")),
                (2, 3, Some("https://cdn.example/audio/")),
                (4, 4, Some("https://other.example/x/y/")),
            ],
            "what is allowed nowhere leads nowhere, and peers go by their names"
        );
    }

    #[test]
    fn who_fetches_for_the_site_waits_for_what_is_outside_of_it_only() {
        let (sources, choices) = (sources(), [named("peer", 0), named("tier", 60), named("origin", 600)]);
        let hints = Hints::of(&choices, sources.iter());
        let waits = |hints: &Hints| hints.0.iter().map(|hint| hint.wait.as_secs()).collect::<Vec<_>>();
        assert_eq!(waits(&hints), [0, 0, 60, 600]);
        let master = hints.for_who_fetches(sources.iter());
        assert_eq!(waits(&master), [0, 0, 0, 600]);
    }
}
