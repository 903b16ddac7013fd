//! `POST /v1/purge`: which assets are to go.

use serde::Deserialize;

use super::{Refused, Why};
use crate::{
    asset::{AssetKey, PathPrefix},
    catalog::Target,
};

/// Paths and prefixes of one order. More are several orders.
const TARGETS_MAX: usize = 1000;

/// The body of the command.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    #[serde(default)]
    paths: Vec<String>,
    #[serde(default)]
    prefixes: Vec<String>,
    #[serde(default)]
    dry_run: bool,
}

/// Which assets are to go; at least one path or prefix.
#[derive(Debug, PartialEq, Eq)]
pub struct PurgeOrder {
    /// What is meant.
    pub targets: Vec<Target>,
    /// Only to tell what it would come to.
    pub dry_run: bool,
}

impl TryFrom<Body> for PurgeOrder {
    type Error = Refused;

    fn try_from(body: Body) -> Result<Self, Refused> {
        let refused = |code, words: String| Err(Refused::new(Why::Faulty, code, words));
        let count = body.paths.len() + body.prefixes.len();
        if count == 0 {
            return refused("nothing_named", "name at least one of \"paths\" or \"prefixes\"".into());
        }
        if count > TARGETS_MAX {
            return refused("too_many", format!("{count} paths and prefixes in one order; at most {TARGETS_MAX}"));
        }
        let mut targets = Vec::with_capacity(count);
        for (at, path) in body.paths.iter().enumerate() {
            // A query is no part of what is named: all of a path's assets go, whatever theirs.
            match (path.starts_with('/') && !path.contains(['?', '#'])).then(|| AssetKey::parse(path, None)) {
                Some(Ok(key)) => targets.push(Target::Path(key)),
                Some(Err(why)) => return refused("no_path", format!("paths[{at}] {path:?}: {why}")),
                None => {
                    let words = "write the path of the asset's URL, from its slash on and without a query";
                    return refused("no_path", format!("paths[{at}] {path:?}: {words}"));
                }
            }
        }
        for (at, prefix) in body.prefixes.iter().enumerate() {
            match PathPrefix::parse(prefix) {
                Ok(parsed) => targets.push(Target::Prefix(parsed)),
                Err(why) => return refused("no_prefix", format!("prefixes[{at}] {prefix:?}: {why}")),
            }
        }
        Ok(Self { targets, dry_run: body.dry_run })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(text: &str) -> Result<PurgeOrder, Refused> {
        serde_json::from_str::<Body>(text).expect("the form is right").try_into()
    }

    #[test]
    fn an_order_is_checked_as_a_whole() {
        let good = order(r#"{"paths": ["/a%20b.mp4"], "prefixes": ["/films/"], "dry_run": true}"#).expect("good");
        assert!(good.dry_run);
        assert_eq!(good.targets.iter().map(Target::text).collect::<Vec<_>>(), ["a b.mp4", "films/"]);
        let many = serde_json::json!({ "paths": vec!["/a"; TARGETS_MAX + 1] }).to_string();
        for (text, code, words) in [
            ("{}", "nothing_named", "paths"),
            (r#"{"paths": ["/a", "b"]}"#, "no_path", "paths[1] \"b\""),
            (r#"{"paths": ["/a?v=1"]}"#, "no_path", "without a query"),
            (r#"{"paths": ["/../a"]}"#, "no_path", "'..' segment"),
            (r#"{"prefixes": ["films/"]}"#, "no_prefix", "prefixes[0] \"films/\""),
            (&many, "too_many", "1001"),
        ] {
            let refused = order(text).expect_err(text);
            assert!(refused.code == code && refused.words.contains(words), "{refused:?}");
        }
    }
}
