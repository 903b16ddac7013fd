//! What the operator decides about signed URLs.

use std::{path::PathBuf, time::Duration};

use crate::asset::ByteCount;

/// Which requests need a signature, and whose.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// For assets that no rule is for.
    pub default: Policy,
    /// By the beginning of the asset's path; the longest that fits decides.
    pub rules: Vec<Rule>,
    /// Files with the keys of those who sign.
    pub key_sets: Vec<KeySet>,
    /// How often these files are looked at for changes.
    pub check_interval: Duration,
    /// Names that this appliance goes by in `aud`.
    pub audience: Vec<String>,
    /// How far clocks may differ. RFC 9246 allows nothing.
    pub leeway: Duration,
    /// Bytes of a token.
    pub token_size_max: ByteCount,
    /// Memory that a token's regular expression may take.
    pub regex_size_max: ByteCount,
    /// Tokens that each worker has verified and need not verify again.
    pub verified_max: usize,
    /// Nonces (`jti`) remembered, over all workers; zero: tokens that have one are refused.
    pub nonces_max: usize,
    /// `kid` of the key that signs renewed tokens; empty: none is renewed.
    pub renewal_key: String,
    /// `iss` of renewed tokens, where the token that is renewed has one.
    pub issuer: String,
}

/// What an asset asks of who wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Nothing; a signature is taken off and not looked at.
    Off,
    /// A signature that is there has to be good.
    Optional,
    /// A good signature.
    Required,
}

/// What assets whose path begins so ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Beginning of the decoded path, with its leading slash.
    pub prefix: String,
    /// What they ask for.
    pub policy: Policy,
}

/// How a URL is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// RFC 9246: a JSON Web Token.
    UriSigning,
    /// An expiry and an HMAC over the path.
    Hmac,
}

/// A file of keys: a JWK Set (RFC 7517).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySet {
    /// The file.
    pub path: PathBuf,
    /// What its keys sign.
    pub form: Form,
    /// Values of `iss` that its keys may sign for.
    pub issuers: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            default: Policy::Off,
            rules: Vec::new(),
            key_sets: Vec::new(),
            check_interval: Duration::from_secs(10),
            audience: Vec::new(),
            leeway: Duration::ZERO,
            token_size_max: ByteCount(2 << 10),
            regex_size_max: ByteCount(16 << 10),
            verified_max: 1024,
            nonces_max: 0,
            renewal_key: String::new(),
            issuer: String::new(),
        }
    }
}

impl Config {
    /// Whether URLs may carry signatures at all.
    pub fn is_on(&self) -> bool {
        self.default != Policy::Off || !self.rules.is_empty() || !self.key_sets.is_empty()
    }

    /// What the asset of a decoded path, without its leading slash, asks for.
    pub fn policy(&self, path: &str) -> Policy {
        let fits = |rule: &&Rule| rule.prefix.strip_prefix('/').is_some_and(|prefix| path.starts_with(prefix));
        let rule = self.rules.iter().filter(fits).max_by_key(|rule| rule.prefix.len());
        rule.map_or(self.default, |rule| rule.policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_decides() {
        let rule = |prefix: &str, policy| Rule { prefix: prefix.into(), policy };
        let rules =
            vec![rule("/films/", Policy::Required), rule("/films/trailers/", Policy::Off), rule("/", Policy::Optional)];
        let config = Config { rules, ..Config::default() };
        assert!(config.is_on() && !Config::default().is_on());
        for (path, expected) in [
            ("films/1.mp4", Policy::Required),
            ("films/trailers/1.mp4", Policy::Off),
            ("films", Policy::Optional),
            ("filmstar.mp4", Policy::Optional),
        ] {
            assert_eq!(config.policy(path), expected, "{path}");
        }
    }
}
