//! Whether what a configuration says of signed URLs goes together, and with the keys that are there.

use std::time::Duration;

use super::reader::Reading;
use crate::serve::signing::{self, Config, Policy};

/// Clocks that are further apart are wrong.
const LEEWAY_MAX: Duration = Duration::from_secs(60);

/// `files_are_here`: whether the files that are named can be looked at.
pub(super) fn check(signing: &Config, reading: &Reading, files_are_here: bool) {
    let at = |key: &str| reading.span(&format!("serve.signing.{key}"));
    let fault = |wrong: bool, key: &str, message: String, help: &str| {
        if wrong {
            reading.add(at(key), message, help);
        }
    };
    let rules = &signing.rules;
    let asks = signing.default != Policy::Off || rules.iter().any(|rule| rule.policy != Policy::Off);
    let has_sets = !signing.key_sets.is_empty() || at("key_set").is_some();
    let where_asked = if signing.default == Policy::Off { "rule" } else { "default" };
    fault(
        asks && !has_sets,
        where_asked,
        "signatures are asked for, and there is no key set to verify them with".into(),
        "add [[serve.signing.key_set]] with path = \"/etc/oca/keys/signing.json\" and form = \"uri-signing\"",
    );
    fault(
        signing.leeway > LEEWAY_MAX,
        "leeway",
        "clocks that far apart are wrong".into(),
        "at most 1 min; RFC 9246 allows 0 s",
    );
    let (token, regex) = (signing.token_size_max, signing.regex_size_max);
    fault(
        !(256..=8 << 10).contains(&token.0),
        "token_size_max",
        format!("{token} for a token"),
        "256 B to 8 KiB, which a request's head has room for",
    );
    fault(
        !(1 << 10..=256 << 10).contains(&regex.0),
        "regex_size_max",
        format!("{regex} for a regular expression"),
        "1 KiB to 256 KiB",
    );
    for (number, rule) in rules.iter().enumerate() {
        let key = format!("rule[{number}].prefix");
        let message = format!("'{}' is no beginning of a path", rule.prefix);
        fault(!rule.prefix.starts_with('/'), &key, message, "one begins with a slash: \"/films/\"");
        let again = rules[..number].iter().any(|other| other.prefix == rule.prefix);
        fault(again, &key, format!("two rules are for '{}'", rule.prefix), "one is enough");
    }
    if files_are_here && let Err(err) = signing::load(signing) {
        let path = match &err {
            signing::SigningError::RenewalKey(_) => None,
            signing::SigningError::Keys(err) => Some(err.path()),
        };
        let set = path.and_then(|path| signing.key_sets.iter().position(|set| set.path == *path));
        let key = set.map_or("renewal_key".into(), |number| format!("key_set[{number}].path"));
        let help = "name JWK Sets (RFC 7517); `oca keys new` makes one";
        reading.add(at(&key), err.to_string(), help);
    }
}
