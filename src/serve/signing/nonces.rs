//! Nonces that were used (`jti`; RFC 9246, 2.1.7), until the tokens that have them expire.

use std::{
    collections::{BTreeSet, HashSet},
    sync::atomic::{AtomicUsize, Ordering},
};

use parking_lot::Mutex;

use crate::{asset::UnixTime, telemetry::metrics::Denial};

/// Expired ones forgotten for each new one: more than come in, and never many at once.
const FORGOTTEN_AT_ONCE: usize = 4;

type Digest = [u8; 32];

/// Of all workers: a client may come back to another one.
#[derive(Debug)]
pub(super) struct Nonces {
    most: AtomicUsize,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    digests: HashSet<Digest>,
    by_expiry: BTreeSet<(UnixTime, Digest)>,
}

impl Nonces {
    pub(super) fn new(most: usize) -> Self {
        Self { most: AtomicUsize::new(most), used: Mutex::default() }
    }

    /// How many are remembered from now on; none is forgotten for it.
    pub(super) fn set_most(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// Uses a nonce for an asset; it can be used for each once.
    ///
    /// # Errors
    /// It was used, or there is no room to remember that it is.
    pub(super) fn spend(&self, nonce: &str, path: &str, expiry: UnixTime, now: UnixTime) -> Result<(), Denial> {
        let digest = *blake3::hash(format!("{nonce}\n{path}").as_bytes()).as_bytes();
        let mut used = self.used.lock();
        for _ in 0..FORGOTTEN_AT_ONCE {
            match used.by_expiry.first().copied().filter(|(expiry, _)| *expiry < now) {
                Some(first) => {
                    used.by_expiry.remove(&first);
                    used.digests.remove(&first.1);
                }
                None => break,
            }
        }
        if used.digests.contains(&digest) {
            return Err(Denial::Replayed);
        }
        // To forget one that is still good would let it be used again.
        if used.digests.len() >= self.most.load(Ordering::Relaxed) {
            return Err(Denial::Nonce);
        }
        used.digests.insert(digest);
        used.by_expiry.insert((expiry, digest));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_good_once_for_each_asset_and_room_is_bounded() {
        let nonces = Nonces::new(2);
        let spend = |nonce: &str, path: &str, now| nonces.spend(nonce, path, UnixTime(10), UnixTime(now));
        assert_eq!(spend("iss\na", "x", 5), Ok(()));
        assert_eq!(spend("iss\na", "x", 6), Err(Denial::Replayed));
        assert_eq!(spend("iss\na", "y", 6), Ok(()));
        assert_eq!(spend("iss\nb", "x", 10), Err(Denial::Nonce), "nothing that is still good is forgotten");
        assert_eq!(spend("iss\nb", "x", 11), Ok(()));
    }
}
