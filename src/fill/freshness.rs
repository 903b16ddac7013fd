//! Whether an answer may be stored, and until when it is good (RFC 9111). Pure.

use std::time::Duration;

use super::{
    Freshness,
    source::{Caching, Expires},
};
use crate::{
    asset::{UnixTime, is_segment_type},
    catalog::Lifetime,
};

/// Whether an answer may be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Storing {
    /// For so long.
    Store(Lifetime),
    /// Not at all: each request asks the source.
    PassThrough,
}

/// The directives of a `Cache-Control` that matter to a shared cache (RFC 9111, 5.2.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Directives {
    no_store: bool,
    no_cache: bool,
    must_revalidate: bool,
    immutable: bool,
    lifetime: Option<u64>,
    stale_if_error: Option<u64>,
}

impl Directives {
    fn parse(text: &str) -> Self {
        let mut found = Self::default();
        let (mut max_age, mut shared_max_age) = (None, None);
        for directive in text.split(',') {
            let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
            // A number that cannot be read means that it is over (RFC 9111, 4.2.1); one too large, that it never is.
            let seconds = || {
                let digits = value.trim().trim_matches('"');
                let all_digits = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
                if all_digits { digits.parse().unwrap_or(u64::from(u32::MAX)) } else { 0 }
            };
            match name.trim().to_ascii_lowercase().as_str() {
                "no-store" => found.no_store = true,
                // For one user alone; we serve many. Qualified forms are treated as unqualified (RFC 9111, 5.2.2.4 allows it).
                "private" => found.no_store = true,
                "no-cache" => found.no_cache = true,
                "must-revalidate" | "proxy-revalidate" => found.must_revalidate = true,
                "immutable" => found.immutable = true,
                "max-age" => max_age = max_age.or_else(|| Some(seconds())),
                "s-maxage" => shared_max_age = shared_max_age.or_else(|| Some(seconds())),
                "stale-if-error" => found.stale_if_error = Some(seconds()),
                _ => {}
            }
        }
        found.lifetime = shared_max_age.or(max_age);
        // RFC 9111, 5.2.2.10: s-maxage implies proxy-revalidate.
        found.must_revalidate |= shared_max_age.is_some();
        found
    }
}

/// Whether an answer received at `now` may be stored, and until when it is good. `media_type` as it will be served.
pub(super) fn storing(caching: &Caching, media_type: &str, now: UnixTime, rules: &Freshness) -> Storing {
    let directives = caching.cache_control.as_deref().map(Directives::parse).unwrap_or_default();
    if directives.no_store || caching.varies_by_all {
        return Storing::PassThrough;
    }
    // RFC 9111, 4.2.3, without the time on the wire: seconds, where lifetimes are minutes.
    let apparent = caching.date.map_or(0, |date| now.since(date));
    let age = apparent.max(caching.age_seconds);
    let born = UnixTime(now.0.saturating_sub(age));
    let no_cache = directives.no_cache || (caching.cache_control.is_none() && caching.pragma_no_cache);
    if is_immutable(media_type, rules) && !no_cache {
        return Storing::Store(Lifetime::immutable(born));
    }
    let lifetime = match (no_cache, directives.lifetime, caching.expires) {
        (true, ..) => 0,
        (_, Some(seconds), _) => seconds,
        (_, None, Expires::Invalid) => 0,
        (_, None, Expires::At(expires)) => expires.since(caching.date.unwrap_or(now)),
        (_, None, Expires::Unsaid) if directives.immutable => rules.ttl_max.as_secs(),
        // Counted from now: an old asset is not stale for being old.
        (_, None, Expires::Unsaid) => rules.default_ttl.as_secs().saturating_add(age),
    };
    let lifetime = Duration::from_secs(lifetime.min(rules.ttl_max.as_secs().saturating_add(age)));
    let fresh_until = born.plus(lifetime);
    let stale_for = match directives {
        _ if no_cache || directives.must_revalidate => Duration::ZERO,
        Directives { stale_if_error: Some(seconds), .. } => Duration::from_secs(seconds),
        _ => rules.stale_if_error,
    };
    Storing::Store(Lifetime { born, fresh_until, stale_until: fresh_until.plus(stale_for) })
}

fn is_immutable(media_type: &str, rules: &Freshness) -> bool {
    let essence = media_type.split(';').next().unwrap_or(media_type).trim();
    rules.immutable.iter().any(|rule| match rule.as_str() {
        "segments" => is_segment_type(essence),
        rule => rule.eq_ignore_ascii_case(essence),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime(1_000_000);
    const PLAYLIST: &str = "application/vnd.apple.mpegurl";

    fn stored(control: &str, expires: Expires, age_seconds: u64) -> Storing {
        let cache_control = (!control.is_empty()).then(|| control.into());
        let caching = Caching { cache_control, expires, date: Some(NOW), age_seconds, ..Caching::default() };
        storing(&caching, PLAYLIST, NOW, &Freshness::default())
    }

    fn fresh_for(control: &str) -> u64 {
        match stored(control, Expires::Unsaid, 0) {
            Storing::Store(lifetime) => lifetime.fresh_until.since(NOW),
            Storing::PassThrough => panic!("{control} is not stored"),
        }
    }

    fn stale_for(control: &str) -> u64 {
        match stored(control, Expires::Unsaid, 0) {
            Storing::Store(lifetime) => lifetime.stale_until.since(lifetime.fresh_until),
            Storing::PassThrough => panic!("{control} is not stored"),
        }
    }

    #[test]
    fn what_may_not_be_stored_is_not() {
        for control in ["no-store", "private", "max-age=60, NO-STORE", "private=\"set-cookie\", max-age=5"] {
            assert_eq!(stored(control, Expires::Unsaid, 0), Storing::PassThrough, "{control}");
        }
        let caching = Caching { varies_by_all: true, ..Caching::default() };
        assert_eq!(storing(&caching, "video/mp4", NOW, &Freshness::default()), Storing::PassThrough);
    }

    #[test]
    fn lifetimes_follow_the_order_of_rfc_9111() {
        assert_eq!(fresh_for("max-age=100"), 100);
        assert_eq!(fresh_for("max-age=100, s-maxage=7"), 7);
        assert_eq!(fresh_for("max-age=\"100\""), 100);
        assert_eq!(fresh_for("max-age=abc"), 0);
        assert_eq!(fresh_for("max-age=5, max-age=500"), 5);
        assert_eq!(fresh_for("no-cache, max-age=100"), 0);
        assert_eq!(fresh_for("public"), 60);
        assert_eq!(fresh_for("max-age=99999999999999999999"), 30 * 86_400);
        let expires = |at| match stored("", at, 0) {
            Storing::Store(lifetime) => lifetime.fresh_until.since(NOW),
            Storing::PassThrough => panic!("stored"),
        };
        assert_eq!(expires(Expires::At(UnixTime(NOW.0 + 50))), 50);
        assert_eq!(expires(Expires::At(UnixTime(NOW.0 - 50))), 0);
        assert_eq!(expires(Expires::Invalid), 0);
    }

    #[test]
    fn age_on_the_way_counts() {
        let Storing::Store(lifetime) = stored("max-age=100", Expires::Unsaid, 30) else { panic!("stored") };
        assert_eq!((lifetime.born, lifetime.fresh_until), (UnixTime(NOW.0 - 30), UnixTime(NOW.0 + 70)));
    }

    #[test]
    fn stale_is_served_only_where_the_source_lets() {
        assert_eq!(stale_for("max-age=10"), 7 * 86_400);
        assert_eq!(stale_for("max-age=10, stale-if-error=5"), 5);
        for control in ["max-age=10, must-revalidate", "max-age=10, proxy-revalidate", "s-maxage=10", "no-cache"] {
            assert_eq!(stale_for(control), 0, "{control}");
        }
    }

    #[test]
    fn segments_never_change() {
        let store = |media_type: &str, control: Option<&str>| {
            let caching = Caching { cache_control: control.map(Into::into), date: Some(NOW), ..Caching::default() };
            storing(&caching, media_type, NOW, &Freshness::default())
        };
        assert_eq!(store("video/mp4", Some("max-age=1")), Storing::Store(Lifetime::immutable(NOW)));
        assert_eq!(store("video/mp4", Some("no-store")), Storing::PassThrough);
        assert_ne!(store("video/mp4", Some("no-cache")), Storing::Store(Lifetime::immutable(NOW)));
        assert_ne!(store(PLAYLIST, None), Storing::Store(Lifetime::immutable(NOW)));
    }
}
