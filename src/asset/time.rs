//! Wall-clock time in whole seconds.

use std::time::{Duration, SystemTime};

/// Seconds since 1970-01-01T00:00:00Z, without leap seconds; the resolution of HTTP dates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixTime(pub u64);

impl UnixTime {
    /// Later by `duration`, rounded down to whole seconds; saturates.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_secs()))
    }

    /// Seconds from `earlier` to `self`; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl From<SystemTime> for UnixTime {
    fn from(time: SystemTime) -> Self {
        Self(time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    }
}

impl From<UnixTime> for SystemTime {
    /// Times past the year 9999 are brought back to its end, the last an HTTP date can write.
    fn from(time: UnixTime) -> Self {
        SystemTime::UNIX_EPOCH + Duration::from_secs(time.0.min(253_402_300_799))
    }
}
