//! How a request wants to be answered when it comes from another cache: whom it has come through (`CDN-Loop`, RFC 8586), and
//! whether it wants only what is held (`only-if-cached`, RFC 9111, 5.2.1.7).

use std::sync::Arc;

use http::{HeaderMap, HeaderName, header::CACHE_CONTROL};

use crate::catalog::{Asker, Refusal};

/// Not in the `http` crate.
const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");

/// Bytes of `CDN-Loop` that are looked at; a request with more has come too far.
const THROUGH_BYTES_MAX: usize = 1024;
/// Caches that a request may have come through: a box, its peer, a tier, that one's peer, and as many again.
const THROUGH_MAX: usize = 8;

/// How a request wants to be answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Manner {
    pub(super) asker: Asker,
    /// 504 for what is not held, at once and without asking anybody.
    pub(super) only_held: bool,
}

impl Manner {
    /// What `headers` say to the cache that is called `me`.
    ///
    /// # Errors
    /// The request has been here before, or has come through too many caches.
    pub(super) fn of(headers: &HeaderMap, me: &str) -> Result<Self, Refusal> {
        let only_held = headers
            .get_all(CACHE_CONTROL)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|directive| directive.trim().eq_ignore_ascii_case("only-if-cached"));
        let mut fields = headers.get_all(CDN_LOOP).iter();
        let Some(first) = fields.next() else { return Ok(Self { asker: Asker::Viewer, only_held }) };
        let mut through = first.to_str().map_err(|_| Refusal::Loop)?.to_owned();
        for more in fields {
            through.push_str(", ");
            through.push_str(more.to_str().map_err(|_| Refusal::Loop)?);
        }
        if through.len() > THROUGH_BYTES_MAX || through.split(',').count() > THROUGH_MAX {
            return Err(Refusal::Loop);
        }
        let mut peer = false;
        for cache in through.split(',') {
            let mut words = cache.split(';').map(str::trim);
            if words.next().is_some_and(|name| name.eq_ignore_ascii_case(me)) {
                return Err(Refusal::Loop);
            }
            // Of the last one only: who asked it is another site's matter.
            peer = words.any(|word| word.eq_ignore_ascii_case("peer=1"));
        }
        Ok(Self { asker: Asker::Cache { through: Arc::from(through), peer }, only_held })
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn manner(fields: &[(HeaderName, &str)]) -> Result<Manner, Refusal> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, HeaderValue::from_str(value).expect("valid"));
        }
        Manner::of(&headers, "box-a")
    }

    #[test]
    fn a_viewer_says_nothing_and_a_cache_whom_it_came_through() {
        assert_eq!(manner(&[]), Ok(Manner::default()));
        assert_eq!(manner(&[(CACHE_CONTROL, "no-cache, max-age=0")]), Ok(Manner::default()));
        let held = manner(&[(CACHE_CONTROL, "max-stale, Only-If-Cached")]).expect("no loop");
        assert!(held.only_held && held.asker == Asker::Viewer);
        let peer = |text: &str| manner(&[(CDN_LOOP, text)]).map(|manner| manner.asker.is_peer());
        assert_eq!(peer("box-b; peer=1"), Ok(true));
        assert_eq!(peer("box-b;peer=1, tier-1"), Ok(false), "the tier's own peers may still be asked");
        assert_eq!(peer("box-b"), Ok(false));
        let two = manner(&[(CDN_LOOP, "box-b"), (CDN_LOOP, "box-c; peer=1")]).expect("no loop");
        assert_eq!(two.asker, Asker::Cache { through: "box-b, box-c; peer=1".into(), peer: true });
    }

    #[test]
    fn what_has_been_here_or_came_too_far_is_a_loop() {
        assert_eq!(manner(&[(CDN_LOOP, "box-b, BOX-A;peer=1, box-c")]), Err(Refusal::Loop));
        assert_eq!(manner(&[(CDN_LOOP, "box-b"), (CDN_LOOP, "box-a")]), Err(Refusal::Loop));
        assert!(manner(&[(CDN_LOOP, &["b"; 8].join(","))]).is_ok());
        assert_eq!(manner(&[(CDN_LOOP, &["b"; 9].join(","))]), Err(Refusal::Loop));
        assert_eq!(manner(&[(CDN_LOOP, &"b".repeat(2000))]), Err(Refusal::Loop));
        assert!(manner(&[(CDN_LOOP, "box-ab, xbox-a")]).is_ok(), "other names that look like ours");
    }
}
