//! Why a viewer does not get what it asked for.

/// Why an asset, or the rest of one, is not to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// No source has it (404).
    NotFound,
    /// The source says it is gone for good (410).
    Gone,
    /// The source forbids it (401, 403).
    Forbidden,
    /// No source gave a usable answer: errors, short or contradictory responses.
    SourceFailed,
    /// No source answered in time.
    SourceTimedOut,
    /// Too much is waiting already.
    Busy,
    /// There is no space to fill, and it cannot be passed through.
    NoRoom,
    /// This version was evicted, purged or replaced while it was wanted; asking again finds the present one.
    Withdrawn,
    /// Only what is held was wanted, and this is not (504).
    NotHeld,
    /// The request has come through this appliance before, or through too many caches (508).
    Loop,
    /// The appliance is stopping.
    Stopping,
}

impl Refusal {
    /// Label in metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Gone => "gone",
            Self::Forbidden => "forbidden",
            Self::SourceFailed => "source_failed",
            Self::SourceTimedOut => "source_timed_out",
            Self::Busy => "busy",
            Self::NoRoom => "no_room",
            Self::Withdrawn => "withdrawn",
            Self::NotHeld => "not_held",
            Self::Loop => "loop",
            Self::Stopping => "stopping",
        }
    }

    /// Whether it is the source's word about the asset, and not a failure.
    pub fn is_answer(self) -> bool {
        matches!(self, Self::NotFound | Self::Gone | Self::Forbidden)
    }

    /// Whether it is worth remembering for a while.
    pub fn is_source_fault(self) -> bool {
        matches!(self, Self::SourceFailed | Self::SourceTimedOut)
    }
}
