//! Who is behind a demand: what fill may do for it depends on whom the request has come through already.

use std::sync::Arc;

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Asker {
    /// A viewer, or this appliance itself.
    #[default]
    Viewer,
    /// Another cache. The text is its request's `CDN-Loop` (RFC 8586): the caches that it has come through, the last one last.
    Cache {
        /// As it came.
        through: Arc<str>,
        /// A peer of the same site asks: no other peer is asked to fetch for it.
        peer: bool,
    },
}

impl Asker {
    /// Whether a peer of the same site asks.
    pub fn is_peer(&self) -> bool {
        matches!(self, Self::Cache { peer: true, .. })
    }

    /// Whether the request has come through the cache of that name.
    pub fn came_through(&self, name: &str) -> bool {
        let names = |through: &str| {
            let mut caches = through.split(',').filter_map(|cache| cache.split(';').next());
            caches.any(|cache| cache.trim().eq_ignore_ascii_case(name))
        };
        self.through().is_some_and(names)
    }

    /// The caches that the request has come through.
    pub fn through(&self) -> Option<&str> {
        match self {
            Self::Viewer => None,
            Self::Cache { through, .. } => Some(through),
        }
    }
}
