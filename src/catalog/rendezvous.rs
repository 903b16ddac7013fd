//! Which volume an asset belongs on: rendezvous hashing weighted by capacity (Thaler and Ravishankar, 1998; weights as in
//! Schindelhauer and Schomaker, 2005), so that a volume that comes or goes moves only its own share. Pure.

use crate::asset::AssetId;

/// How strongly a volume of `capacity` bytes claims an asset; the highest claim gets it.
pub(super) fn score(id: &AssetId, volume: &str, capacity: u64) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(id.as_bytes()).update(volume.as_bytes());
    let mut hash = [0_u8; 8];
    hasher.finalize_xof().fill(&mut hash);
    // Uniform in (0, 1); -capacity / ln u is largest with a probability proportional to the capacity.
    let uniform = (u64::from_le_bytes(hash) >> 11) as f64 / (1_u64 << 53) as f64 + f64::EPSILON;
    -(capacity as f64) / uniform.min(1.0 - f64::EPSILON).ln()
}
