//! Request streams: made from a seed, or read from a published trace.

pub(crate) mod generated;
pub(crate) mod trace;

use super::policies::Request;

/// Requests for objects `0..keys`. Sizes are in KiB.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) name: String,
    pub(crate) requests: Vec<Request>,
    pub(crate) keys: usize,
}

impl Stream {
    /// Sizes of all objects together.
    pub(crate) fn footprint(&self) -> u64 {
        let mut seen = vec![false; self.keys];
        let new = |request: &&Request| !std::mem::replace(&mut seen[request.key as usize], true);
        self.requests.iter().filter(new).map(|request| u64::from(request.size)).sum()
    }

    /// Sizes of all requests together.
    pub(crate) fn asked(&self) -> u64 {
        self.requests.iter().map(|request| u64::from(request.size)).sum()
    }
}
