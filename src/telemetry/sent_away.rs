//! Whom the appliance sends away, and why.

/// Why the appliance ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The request's head was not there in time.
    HeaderTimeout,
    /// No further request came.
    IdleTimeout,
    /// The client took nothing.
    Stalled,
    /// The client took too little.
    TooSlow,
    /// The appliance is draining.
    Drain,
    /// The handshake of TLS was not over in time.
    HandshakeTimeout,
    /// More handshakes were under way than are allowed, and this was the oldest.
    HandshakesMax,
    /// A client of HTTP/2 sent more frames than its responses account for.
    Flood,
    /// No further request came, for as long as is allowed while requests are refused.
    Overload,
    /// No further request came for longest, while nearly all connections allowed were open.
    ConnectionsFull,
}

impl CloseReason {
    pub(super) const ALL: [Self; 10] = [
        Self::HeaderTimeout,
        Self::IdleTimeout,
        Self::Stalled,
        Self::TooSlow,
        Self::Drain,
        Self::HandshakeTimeout,
        Self::HandshakesMax,
        Self::Flood,
        Self::Overload,
        Self::ConnectionsFull,
    ];

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::HeaderTimeout => "header_timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::Stalled => "stalled",
            Self::TooSlow => "too_slow",
            Self::Drain => "drain",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::HandshakesMax => "handshakes_max",
            Self::Flood => "flood",
            Self::Overload => "overload",
            Self::ConnectionsFull => "connections_full",
        }
    }
}

/// Whom a worker refuses that has more to do than it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shed {
    /// A request of who was not served lately.
    Newcomer,
    /// A request of who was.
    Viewer,
    /// A connection that would cost a handshake of TLS before it could be told.
    Handshake,
}

impl Shed {
    /// Everybody.
    pub const ALL: [Self; 3] = [Self::Newcomer, Self::Viewer, Self::Handshake];

    /// Label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Newcomer => "newcomer",
            Self::Viewer => "viewer",
            Self::Handshake => "handshake",
        }
    }
}

/// Why a connection is not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// As many are open as may be (`serve.connections_max`).
    Full,
    /// Too many of its client wait for their turn already.
    Crowd,
}

impl Refused {
    /// Every reason.
    pub const ALL: [Self; 2] = [Self::Full, Self::Crowd];

    /// Label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Crowd => "crowd",
        }
    }
}

/// Who waits until those who go first have had their turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// Who was not served yet, or costs more than it gets.
    Newcomer,
    /// Who takes much more of a worker's time than others do.
    Heavy,
    /// Whose client costs much more than all of its connections get.
    Costly,
}

impl Waits {
    /// Everybody.
    pub const ALL: [Self; 3] = [Self::Newcomer, Self::Heavy, Self::Costly];

    /// Label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Newcomer => "newcomer",
            Self::Heavy => "heavy",
            Self::Costly => "costly",
        }
    }
}
