//! The cells that are counted in. Named and described in `metrics.rs`.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

pub use super::sent_away::{CloseReason, Refused, Shed, Waits};

/// A count that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn inc(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Raises it to what somebody else has counted.
    pub fn set(&self, count: u64) {
        self.0.store(count, Ordering::Relaxed);
    }

    /// The count.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A cell that only its own worker writes: no locked instruction.
#[derive(Debug, Default)]
pub(super) struct Cell(AtomicU64);

impl Cell {
    fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    pub(super) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the cache did for a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheOutcome {
    /// Served from what is held.
    Hit,
    /// The asset was unknown.
    Miss,
    /// The asset was held, but not the bytes asked for.
    Partial,
    /// Served although stale, since no source answered.
    Stale,
    /// Its source said that it is still good.
    Revalidated,
    /// Passed through without being stored.
    Pass,
    /// A remembered "no".
    Negative,
    /// The catalog was not asked.
    None,
}

impl CacheOutcome {
    /// Every outcome.
    pub const ALL: [Self; 8] =
        [Self::Hit, Self::Miss, Self::Partial, Self::Stale, Self::Revalidated, Self::Pass, Self::Negative, Self::None];

    /// Label in metrics and the access log.
    pub fn label(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Partial => "partial",
            Self::Stale => "stale",
            Self::Revalidated => "revalidated",
            Self::Pass => "pass",
            Self::Negative => "negative",
            Self::None => "none",
        }
    }
}

/// How bytes left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendPath {
    /// From the page cache, without a copy in user space.
    Sendfile,
    /// From memory of ours.
    Copied,
    /// By TLS.
    Encrypted,
}

/// How a handshake of TLS ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// TLS 1.2, from the beginning.
    Full12,
    /// TLS 1.2, with an earlier session taken up again.
    Resumed12,
    /// TLS 1.3, from the beginning.
    Full13,
    /// TLS 1.3, with an earlier session taken up again.
    Resumed13,
    /// The client asked for what is not served, or broke the protocol.
    Failed,
    /// The client left before its end.
    Left,
    /// The appliance ended it: see `CloseReason`.
    Cut,
    /// The client spoke HTTP without TLS.
    Plaintext,
}

impl Handshake {
    pub(super) const ALL: [Self; 8] = [
        Self::Full12,
        Self::Resumed12,
        Self::Full13,
        Self::Resumed13,
        Self::Failed,
        Self::Left,
        Self::Cut,
        Self::Plaintext,
    ];

    /// Version and outcome.
    pub(super) fn labels(self) -> (&'static str, &'static str) {
        match self {
            Self::Full12 => ("1.2", "full"),
            Self::Resumed12 => ("1.2", "resumed"),
            Self::Full13 => ("1.3", "full"),
            Self::Resumed13 => ("1.3", "resumed"),
            Self::Failed => ("none", "failed"),
            Self::Left => ("none", "left"),
            Self::Cut => ("none", "cut"),
            Self::Plaintext => ("none", "plaintext"),
        }
    }
}

/// Why a request was not allowed what it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// It carries no signature.
    Missing,
    /// What it carries is no token, or no whole one.
    Malformed,
    /// Its token is longer than is allowed.
    TooLong,
    /// It carries more than one signature.
    Ambiguous,
    /// No key has that name.
    UnknownKey,
    /// The key is not for that algorithm.
    Algorithm,
    /// The signature is not the key's.
    Signature,
    /// Its time is over.
    Expired,
    /// Its time has not come.
    NotYet,
    /// The key does not sign for that issuer.
    Issuer,
    /// It is for another audience.
    Audience,
    /// It is of a version that is not known.
    Version,
    /// It has to be understood in a way that is not known.
    Critical,
    /// What it says of URIs cannot be read, or costs too much.
    Container,
    /// It is for other URIs.
    Uri,
    /// It is for other clients.
    Client,
    /// Whether it was used before cannot be known.
    Nonce,
    /// It was used before.
    Replayed,
}

impl Denial {
    /// Every reason.
    pub const ALL: [Self; 18] = [
        Self::Missing,
        Self::Malformed,
        Self::TooLong,
        Self::Ambiguous,
        Self::UnknownKey,
        Self::Algorithm,
        Self::Signature,
        Self::Expired,
        Self::NotYet,
        Self::Issuer,
        Self::Audience,
        Self::Version,
        Self::Critical,
        Self::Container,
        Self::Uri,
        Self::Client,
        Self::Nonce,
        Self::Replayed,
    ];

    /// Label in metrics and the access log.
    pub fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::TooLong => "too_long",
            Self::Ambiguous => "ambiguous",
            Self::UnknownKey => "unknown_key",
            Self::Algorithm => "algorithm",
            Self::Signature => "signature",
            Self::Expired => "expired",
            Self::NotYet => "not_yet",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::Version => "version",
            Self::Critical => "critical",
            Self::Container => "container",
            Self::Uri => "uri",
            Self::Client => "client",
            Self::Nonce => "nonce",
            Self::Replayed => "replayed",
        }
    }
}

/// Why a request to the admin listener was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminDenial {
    /// It had no credential.
    Missing,
    /// Its credential was wrong.
    Wrong,
    /// It named a host that the listener does not go by.
    Host,
    /// A page of another site had made a browser send it.
    CrossSite,
    /// Its handshake of TLS failed.
    Handshake,
}

impl AdminDenial {
    pub(super) const ALL: [Self; 5] = [Self::Missing, Self::Wrong, Self::Host, Self::CrossSite, Self::Handshake];

    /// Label in metrics and the log.
    pub fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Wrong => "wrong",
            Self::Host => "host",
            Self::CrossSite => "cross_site",
            Self::Handshake => "handshake",
        }
    }
}

/// Why a viewer's connection or request was not taken in, by who it is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientDenial {
    /// Its network is not served.
    Network,
    /// Its client has as many connections as are allowed.
    Connections,
    /// Its client asks for more than is allowed.
    Requests,
}

impl ClientDenial {
    pub(super) const ALL: [Self; 3] = [Self::Network, Self::Connections, Self::Requests];

    /// Label in metrics and the access log.
    pub fn label(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Connections => "connections",
            Self::Requests => "requests",
        }
    }
}

/// Statuses that are counted one by one; the others as "other".
pub(super) const STATUSES: [u16; 19] =
    [200, 204, 206, 304, 400, 401, 403, 404, 405, 410, 412, 414, 416, 429, 431, 500, 502, 503, 504];

/// Upper bounds of the first-byte histogram, in microseconds.
pub(super) const FIRST_BYTE_BOUNDS: [u64; 14] =
    [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 250_000, 1_000_000, 5_000_000, 30_000_000];

/// What one worker counts. Aligned, so that no two workers write to one cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerMetrics {
    pub(super) statuses: [Cell; STATUSES.len() + 1],
    pub(super) outcomes: [Cell; CacheOutcome::ALL.len()],
    /// Of what had to be fetched, and of hits.
    pub(super) first_byte: [[Cell; FIRST_BYTE_BOUNDS.len() + 1]; 2],
    pub(super) first_byte_micros: Cell,
    pub(super) sendfile_bytes: Cell,
    pub(super) copied_bytes: Cell,
    pub(super) encrypted_bytes: Cell,
    pub(super) handshakes: [Cell; Handshake::ALL.len()],
    pub(super) kernel_tls: Cell,
    pub(super) accepted: Cell,
    pub(super) ended: Cell,
    pub(super) refused: [Cell; Refused::ALL.len()],
    pub(super) closed: [Cell; CloseReason::ALL.len()],
    pub(super) denials: [Cell; Denial::ALL.len()],
    pub(super) verifications: Cell,
    pub(super) client_denials: [Cell; ClientDenial::ALL.len()],
    pub(super) panics: Cell,
    pub(super) cuts: Cell,
    pub(super) abandoned: Cell,
    pub(super) hits_at_once: Cell,
    pub(super) accept_failures: Cell,
    pub(super) connection_errors: Cell,
    pub(super) shed: [Cell; Shed::ALL.len()],
    pub(super) waits: [Cell; Waits::ALL.len()],
    pub(super) given_up: [Cell; Waits::ALL.len()],
    pub(super) called_delay_micros: AtomicU64,
    pub(super) cpu_micros: AtomicU64,
    pub(super) queue_delay_micros: AtomicU64,
    pub(super) shed_permille: AtomicU64,
    pub(super) major_faults: AtomicU64,
    pub(super) blocks_read: AtomicU64,
}

impl WorkerMetrics {
    /// A response's head was made after `first_byte`.
    pub fn record_response(&self, status: u16, outcome: CacheOutcome, first_byte: Duration) {
        let at = STATUSES.iter().position(|known| *known == status).unwrap_or(STATUSES.len());
        self.statuses[at].add(1);
        self.outcomes[outcome as usize].add(1);
        let micros = u64::try_from(first_byte.as_micros()).unwrap_or(u64::MAX);
        let bucket = FIRST_BYTE_BOUNDS.iter().position(|bound| micros <= *bound).unwrap_or(FIRST_BYTE_BOUNDS.len());
        self.first_byte[usize::from(outcome == CacheOutcome::Hit)][bucket].add(1);
        self.first_byte_micros.add(micros);
    }

    /// All bytes handed to the kernel.
    pub(super) fn sent_bytes(&self) -> u64 {
        self.sendfile_bytes.value() + self.copied_bytes.value() + self.encrypted_bytes.value()
    }

    /// Bytes were handed to the kernel.
    pub fn sent(&self, path: SendPath, bytes: u64) {
        match path {
            SendPath::Sendfile => self.sendfile_bytes.add(bytes),
            SendPath::Copied => self.copied_bytes.add(bytes),
            SendPath::Encrypted => self.encrypted_bytes.add(bytes),
        }
    }

    /// A handshake of TLS ended.
    pub fn handshake(&self, how: Handshake) {
        self.handshakes[how as usize].add(1);
    }

    /// The kernel goes on with the TLS of a connection.
    pub fn kernel_tls(&self) {
        self.kernel_tls.add(1);
    }

    /// A connection was taken in.
    pub fn accepted(&self) {
        self.accepted.add(1);
    }

    /// A connection, taken in or refused, is over.
    pub fn ended(&self) {
        self.ended.add(1);
    }

    /// A connection was one too many.
    pub fn refused(&self, why: Refused) {
        self.refused[why as usize].add(1);
    }

    /// The sweeper ended a connection.
    pub fn closed(&self, reason: CloseReason) {
        self.closed[reason as usize].add(1);
    }

    /// A request was not allowed what it asked for.
    pub fn denied(&self, why: Denial) {
        self.denials[why as usize].add(1);
    }

    /// A connection or a request was refused for who it is from.
    pub fn client_denied(&self, why: ClientDenial) {
        self.client_denials[why as usize].add(1);
    }

    /// The signature of a token was computed.
    pub fn verification(&self) {
        self.verifications.add(1);
    }

    /// A request panicked.
    pub fn panicked(&self) {
        self.panics.add(1);
    }

    /// A response broke off.
    pub fn cut(&self) {
        self.cuts.add(1);
    }

    /// A hit was answered without waiting for anything.
    pub fn hit_at_once(&self) {
        self.hits_at_once.add(1);
    }

    /// A client left before its response had begun.
    pub fn abandoned(&self) {
        self.abandoned.add(1);
    }

    /// The system had no descriptor for a connection.
    pub fn accept_failed(&self) {
        self.accept_failures.add(1);
    }

    /// A connection ended by an error: the client hung up, or wrote no HTTP.
    pub fn connection_error(&self) {
        self.connection_errors.add(1);
    }

    /// A request, or a connection, was refused by the rules of overload.
    pub fn shed(&self, whose: Shed) {
        self.shed[whose as usize].add(1);
    }

    /// A task of a connection has to wait until it is called.
    pub fn waits(&self, why: Waits) {
        self.waits[why as usize].add(1);
    }

    /// The client of a connection has left while that waited until it is called.
    pub fn gave_up(&self, why: Waits) {
        self.given_up[why as usize].add(1);
    }

    /// How long who does not go first has been waiting of late until it was called.
    pub fn set_called_delay(&self, delay: Duration) {
        let micros = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        self.called_delay_micros.store(micros, Ordering::Relaxed);
    }

    /// What the worker has computed so far.
    pub fn set_cpu_time(&self, time: Duration) {
        self.cpu_micros.store(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How long what is ready waits for its turn just now, and what part of newcomers' requests (of 1000) is refused for it.
    pub fn set_pressure(&self, queue_delay: Duration, shed_permille: u32) {
        let micros = u64::try_from(queue_delay.as_micros()).unwrap_or(u64::MAX);
        self.queue_delay_micros.store(micros, Ordering::Relaxed);
        self.shed_permille.store(shed_permille.into(), Ordering::Relaxed);
    }

    /// What the kernel counts of the worker's thread: major faults, and blocks of 512 bytes read for it.
    pub fn set_disk_waits(&self, faults: u64, blocks: u64) {
        self.major_faults.store(faults, Ordering::Relaxed);
        self.blocks_read.store(blocks, Ordering::Relaxed);
    }

    /// Connections open just now, refused ones that are being told so included.
    pub fn open(&self) -> u64 {
        let refused: u64 = self.refused.iter().map(Cell::value).sum();
        (self.accepted.value() + refused).saturating_sub(self.ended.value())
    }
}

/// What is counted of one volume.
#[derive(Debug, Default)]
pub struct VolumeMetrics {
    /// Batches committed to its database.
    pub database_batches: Counter,
    /// Commits that failed.
    pub database_failures: Counter,
    /// Blocks made durable.
    pub blocks_durable: Counter,
    /// Syncs that failed.
    pub sync_failures: Counter,
    /// Bytes the scrubber has compared.
    pub scrubbed_bytes: Counter,
    /// Blocks found right.
    pub blocks_verified: Counter,
    /// Blocks found wrong.
    pub blocks_corrupt: Counter,
    /// Assets evicted.
    pub evicted_assets: Counter,
    /// Their bytes.
    pub evicted_bytes: Counter,
    /// Assets that changed or were gone at their source.
    pub purged_assets: Counter,
    /// Assets lost to the disk.
    pub lost_assets: Counter,
    /// Reads that failed.
    pub read_errors: Counter,
    /// Bytes reserved. Set at scrape.
    pub used_bytes: Counter,
    /// Bytes it may hold. Set at scrape.
    pub capacity_bytes: Counter,
    /// 1 when it was taken out. Set at scrape.
    pub failed: Counter,
}

/// What is known of one certificate.
#[derive(Debug, Default)]
pub struct CertificateMetrics {
    /// First second, since 1970, in which it is no longer good.
    pub expiry: Counter,
}

/// What is counted of one source.
#[derive(Debug, Default)]
pub struct SourceMetrics {
    /// Requests made to it.
    pub fetches: Counter,
    /// Bytes of bodies that came from it.
    pub bytes: Counter,
    /// 1 while it is set aside.
    pub set_aside: Counter,
    /// Fetches that went past it to another source, because it failed or was slow.
    pub escalations: Counter,
    /// Requests for what a peer holds that it did not hold.
    pub not_held: Counter,
    /// Fetches for the site that were its, and that another box did because it is set aside.
    pub stood_in: Counter,
    errors: parking_lot::Mutex<Vec<(&'static str, u64)>>,
}

impl SourceMetrics {
    /// It failed, for this reason.
    pub fn error(&self, reason: &'static str) {
        let mut errors = self.errors.lock();
        match errors.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, count)) => *count += 1,
            None => errors.push((reason, 1)),
        }
    }

    /// Failures by reason.
    pub fn errors(&self) -> Vec<(&'static str, u64)> {
        self.errors.lock().clone()
    }
}
