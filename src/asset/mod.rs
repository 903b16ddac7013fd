//! The words everyone uses: what an asset is called, which part of it is meant, how much, how fast, which version.
//!
//! Pure values, no I/O, no clock. A value of these types is already checked; nobody below the edge checks it again.

mod block;
mod digest;
mod fingerprint;
mod key;
mod media_type;
mod range;
mod sha256;
mod time;
mod units;
mod validators;

pub use block::BlockSize;
pub use digest::Digest;
pub use fingerprint::Fingerprint;
pub use key::{AssetId, AssetKey, KEY_BYTES_MAX, KeyError, PathPrefix};
pub use media_type::{is_segment_type, media_type_of};
pub use range::ByteRange;
pub use sha256::Sha256;
pub use time::UnixTime;
pub use units::{BitRate, ByteCount, UnitError, parse_duration, show_duration};
pub use validators::{EntityTag, Validators};
