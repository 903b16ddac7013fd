//! What is said of an appliance's health: a state, and the reasons for it.

use serde::Serialize;

/// How an appliance is, from well to worst. The worst of its reasons decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// All is well.
    Serving,
    /// Viewers are served, and something needs a person or will hurt them.
    Degraded,
    /// More is asked for than can be served well: send fewer viewers.
    Overloaded,
    /// It does not serve yet.
    #[default]
    Starting,
    /// It finishes what is begun: send no more viewers.
    Draining,
    /// It cannot serve.
    Down,
}

impl State {
    /// Every state, from well to worst.
    pub const ALL: [Self; 6] =
        [Self::Serving, Self::Degraded, Self::Overloaded, Self::Starting, Self::Draining, Self::Down];

    /// Label in reports, metrics, logs and status.
    pub fn label(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Degraded => "degraded",
            Self::Overloaded => "overloaded",
            Self::Starting => "starting",
            Self::Draining => "draining",
            Self::Down => "down",
        }
    }
}

/// What a reason is about; docs/health.md says of each what it means and what to do. In the order in which reasons of one state are
/// ranked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// No volume is in use.
    NoVolume,
    /// Every certificate that viewers are shown is past its days, and they are served by HTTPS alone.
    NoCertificate,
    /// It drains.
    Draining,
    /// It starts.
    Starting,
    /// New requests are refused.
    Refusing,
    /// Workers are behind.
    WorkersBehind,
    /// The links are full.
    EgressFull,
    /// Nearly all connections that are allowed are open.
    ConnectionsFull,
    /// File descriptors run out.
    DescriptorsLow,
    /// Memory runs out.
    MemoryLow,
    /// A volume was taken out.
    VolumeFailed,
    /// A disk is full before its volume is.
    DiskFull,
    /// A disk takes long.
    DiskSlow,
    /// Viewers get errors.
    Errors,
    /// Viewers wait for the first byte of what is held.
    FirstByteSlow,
    /// A certificate is past its days.
    CertificateExpired,
    /// A certificate soon is.
    CertificateExpiring,
    /// No source answers.
    NoSource,
    /// A source is set aside.
    SourceDown,
    /// Fetches fail.
    FillFailing,
    /// Demands wait for fill.
    FillBehind,
    /// No manifest can be received.
    ManifestsOff,
    /// The manifest is old, or past its days.
    ManifestStale,
    /// The wall clock was moved.
    ClockJumped,
}

impl Code {
    /// Every code.
    pub const ALL: [Self; 24] = [
        Self::NoVolume,
        Self::NoCertificate,
        Self::Draining,
        Self::Starting,
        Self::Refusing,
        Self::WorkersBehind,
        Self::EgressFull,
        Self::ConnectionsFull,
        Self::DescriptorsLow,
        Self::MemoryLow,
        Self::VolumeFailed,
        Self::DiskFull,
        Self::DiskSlow,
        Self::Errors,
        Self::FirstByteSlow,
        Self::CertificateExpired,
        Self::CertificateExpiring,
        Self::NoSource,
        Self::SourceDown,
        Self::FillFailing,
        Self::FillBehind,
        Self::ManifestsOff,
        Self::ManifestStale,
        Self::ClockJumped,
    ];

    /// Label in reports, metrics, logs and status.
    pub fn label(self) -> &'static str {
        match self {
            Self::NoVolume => "no_volume",
            Self::NoCertificate => "no_certificate",
            Self::Draining => "draining",
            Self::Starting => "starting",
            Self::Refusing => "refusing",
            Self::WorkersBehind => "workers_behind",
            Self::EgressFull => "egress_full",
            Self::ConnectionsFull => "connections_full",
            Self::DescriptorsLow => "descriptors_low",
            Self::MemoryLow => "memory_low",
            Self::VolumeFailed => "volume_failed",
            Self::DiskFull => "disk_full",
            Self::DiskSlow => "disk_slow",
            Self::Errors => "errors",
            Self::FirstByteSlow => "first_byte_slow",
            Self::CertificateExpired => "certificate_expired",
            Self::CertificateExpiring => "certificate_expiring",
            Self::NoSource => "no_source",
            Self::SourceDown => "source_down",
            Self::FillFailing => "fill_failing",
            Self::FillBehind => "fill_behind",
            Self::ManifestsOff => "manifests_off",
            Self::ManifestStale => "manifest_stale",
            Self::ClockJumped => "clock_jumped",
        }
    }

    /// What an appliance is for this reason alone.
    pub fn state(self) -> State {
        match self {
            Self::NoVolume | Self::NoCertificate => State::Down,
            Self::Draining => State::Draining,
            Self::Starting => State::Starting,
            Self::Refusing
            | Self::WorkersBehind
            | Self::EgressFull
            | Self::ConnectionsFull
            | Self::DescriptorsLow
            | Self::MemoryLow => State::Overloaded,
            Self::VolumeFailed
            | Self::DiskFull
            | Self::DiskSlow
            | Self::Errors
            | Self::FirstByteSlow
            | Self::CertificateExpired
            | Self::CertificateExpiring
            | Self::NoSource
            | Self::SourceDown
            | Self::FillFailing
            | Self::FillBehind
            | Self::ManifestsOff
            | Self::ManifestStale
            | Self::ClockJumped => State::Degraded,
        }
    }
}

/// One reason for a state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// For machines.
    pub code: Code,
    /// Which of several it is about: a volume, a source, a certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What an appliance is for this reason alone.
    pub severity: State,
    /// For people.
    pub words: String,
}

impl Reason {
    /// A reason of the whole appliance.
    pub fn new(code: Code, words: impl Into<String>) -> Self {
        Self { code, subject: None, severity: code.state(), words: words.into() }
    }

    /// A reason that is about one of several.
    pub fn about(code: Code, subject: &str, words: impl Into<String>) -> Self {
        Self { subject: Some(subject.into()), ..Self::new(code, words) }
    }
}

/// How an appliance is, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Health {
    /// That of the worst reason; [`State::Serving`] where there is none.
    pub state: State,
    /// The worst first.
    pub reasons: Vec<Reason>,
}

impl Health {
    /// Ranks `reasons`; the worst decides.
    pub fn of(mut reasons: Vec<Reason>) -> Self {
        reasons.sort_by(|a, b| {
            let rank = |reason: &Reason| (std::cmp::Reverse(reason.severity), reason.code);
            rank(a).cmp(&rank(b)).then_with(|| a.subject.cmp(&b.subject))
        });
        let state = reasons.first().map_or(State::Serving, |worst| worst.severity);
        Self { state, reasons }
    }

    /// Whether a viewer who comes now is served: what `/ready` says. An overloaded appliance is, until it refuses.
    pub fn is_ready(&self) -> bool {
        match self.state {
            State::Serving | State::Degraded => true,
            State::Overloaded => !self.has(Code::Refusing, None),
            State::Starting | State::Draining | State::Down => false,
        }
    }

    /// Whether there is this reason; with `subject`, about this one.
    pub fn has(&self, code: Code, subject: Option<&str>) -> bool {
        self.reasons
            .iter()
            .any(|reason| reason.code == code && (subject.is_none() || reason.subject.as_deref() == subject))
    }

    /// Whether both say the same, but for the words: those have figures that change all the time.
    pub fn is_like(&self, other: &Self) -> bool {
        let key = |reason: &Reason| (reason.code, reason.subject.clone());
        self.state == other.state && self.reasons.iter().map(key).eq(other.reasons.iter().map(key))
    }
}
