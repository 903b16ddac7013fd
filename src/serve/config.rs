//! What the operator decides about viewers.

use std::{net::SocketAddr, time::Duration};

use super::{clients, signing};
use crate::{
    asset::{BitRate, ByteCount},
    net::tls::{PairFiles, Protocol},
    sys::sandbox::Reach,
};

/// How viewers are served.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Addresses for plain HTTP.
    pub http: Vec<SocketAddr>,
    /// Addresses for HTTPS.
    pub https: Vec<SocketAddr>,
    /// TLS on the addresses for HTTPS.
    pub tls: Tls,
    /// HTTP/2.
    pub http2: Http2,
    /// Worker threads; 0 stands for one per core.
    pub workers: usize,
    /// Open connections, over all workers; further ones get a fast 503 and are closed.
    pub connections_max: usize,
    /// File descriptors kept free for disks, sources and the admin listener.
    pub descriptors_reserved: usize,
    /// Connections that may wait to be accepted, per listener.
    pub backlog: u32,
    /// Bytes that a client may send ahead of what is read of it, as the kernel keeps them (`SO_RCVBUF`); zero leaves it to the kernel.
    pub receive_buffer: ByteCount,
    /// From a request's first byte (or the connection's begin) to the end of its head.
    pub header_timeout: Duration,
    /// Bytes of a request's head.
    pub header_size_max: ByteCount,
    /// Header fields of a request.
    pub header_count_max: usize,
    /// Between two requests of one connection.
    pub idle_timeout: Duration,
    /// The same while requests are refused.
    pub idle_timeout_overloaded: Duration,
    /// Percent of `connections_max` above which those are closed that have been idle for longest, or on which a head has not come for as long.
    pub connections_percent: u8,
    /// Time that what is ready waits for its turn on a worker, above which requests are refused; zero: none are.
    pub queue_delay_max: Duration,
    /// Percent of a worker's time that those who were not served yet, or who cost more than they get, have at least.
    pub newcomers_percent: u8,
    /// Thousandths of a worker's time that clients have together, at most, who cost much more than they get, while others want something; 1000: no bound.
    pub costly_permille: u16,
    /// Percent of a worker's time above which no connection of a client goes first while others want something; 100: no bound.
    pub client_percent: u8,
    /// Longest time for which a connection is not listened to after a request on it was refused so.
    pub refuse_delay: Duration,
    /// Longest time in which a client takes not one byte of a response.
    pub stall_timeout: Duration,
    /// Slowest average rate, over `send_rate_window`, at which a client may take a response that is ready for it.
    pub send_rate_min: BitRate,
    /// Time over which that rate is measured.
    pub send_rate_window: Duration,
    /// How long, after a refused request, what the client still sends is read and dropped, so that it gets to read why.
    pub linger_timeout: Duration,
    /// Bytes that are read and dropped so.
    pub linger_max: ByteCount,
    /// Longest wait for a missing asset's first byte before 504.
    pub miss_timeout: Duration,
    /// Longest wait for a source's word on a stale asset that may be served meanwhile.
    pub revalidate_timeout: Duration,
    /// `Retry-After` of a 503; up to twice as much where requests are refused, so that not all come back at once.
    pub retry_after: Duration,
    /// Ranges in one request; one with more is rejected with 416 (RFC 9110, 14.2 and 15.5.17).
    pub ranges_max: usize,
    /// Bytes in flight per connection in the kernel; zero leaves it to the kernel's autotuning.
    pub send_buffer: ByteCount,
    /// Targets whose assets each worker recalls without a look into the catalog; zero turns that off.
    pub recall_max: usize,
    /// Round trip up to which a client counts as near; zero: none does.
    pub near_rtt: Duration,
    /// Bytes in flight per connection in the kernel for near clients, where `send_buffer` leaves it to autotuning; zero: autotuning too.
    pub near_send_buffer: ByteCount,
    /// Unsent bytes per connection beyond which no more are handed to the kernel (`TCP_NOTSENT_LOWAT`).
    pub unsent_max: ByteCount,
    /// Whether the query string is part of the asset's key.
    pub query_in_key: bool,
    /// Which pages may read responses by script.
    pub cors: Cors,
    /// Who is served, and how much one client may take.
    pub clients: clients::Config,
    /// Signed URLs.
    pub signing: signing::Config,
    /// Name in `Cache-Status` (RFC 9211).
    pub server_name: String,
    /// How long it serves on after it was told to stop, so that viewers can be sent elsewhere.
    pub drain_delay: Duration,
    /// How long begun responses may go on when draining.
    pub drain_timeout: Duration,
}

/// TLS towards viewers.
#[derive(Clone, Debug, PartialEq)]
pub struct Tls {
    /// Certificates with their keys; the first is for clients that name no host, or one that no other is for.
    pub pairs: Vec<PairFiles>,
    /// What is spoken inside, the preferred first.
    pub protocols: Vec<Protocol>,
    /// How often their files are looked at for changes.
    pub check_interval: Duration,
    /// Longest time from the connection to the end of the handshake.
    pub handshake_timeout: Duration,
    /// Handshakes under way, over all workers; the oldest gives way to one more.
    pub handshakes_max: usize,
    /// Bytes encrypted for one connection that the kernel has not taken yet.
    pub write_buffer: ByteCount,
    /// Whether the kernel encrypts where it can.
    pub kernel: KernelTls,
}

/// Who encrypts after the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelTls {
    /// The process.
    Off,
    /// The kernel, where it says that it can.
    Auto,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            pairs: Vec::new(),
            protocols: vec![Protocol::Http1, Protocol::Http2],
            check_interval: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            handshakes_max: 4096,
            write_buffer: ByteCount(256 << 10),
            kernel: KernelTls::Off,
        }
    }
}

/// Limits of an HTTP/2 connection.
#[derive(Clone, Debug, PartialEq)]
pub struct Http2 {
    /// Requests under way at once.
    pub streams_max: u32,
    /// Streams that the client has reset before they were looked at.
    pub pending_resets_max: usize,
    /// Streams that had to be reset since the client broke the protocol.
    pub local_resets_max: usize,
    /// Requests that came to no end, beyond those that did.
    pub abandoned_max: u32,
    /// Frames that ask for nothing, beyond those that responses account for.
    pub control_frames_max: u32,
    /// Bytes of a stream's response that wait to be allowed out.
    pub send_buffer: ByteCount,
}

impl Default for Http2 {
    fn default() -> Self {
        Self {
            streams_max: 100,
            pending_resets_max: 20,
            local_resets_max: 128,
            abandoned_max: 100,
            control_frames_max: 1000,
            send_buffer: ByteCount(256 << 10),
        }
    }
}

/// Cross-origin resource sharing, as the Fetch standard has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Cors {
    /// Origins that may read; `*` stands for all. Empty turns CORS off.
    pub origins: Vec<String>,
    /// How long a browser may remember a preflight's answer.
    pub max_age: Duration,
}

impl Config {
    /// The files that are used after the start: certificates, key sets and the networks that are served, which are renewed.
    pub fn reach(&self, reach: &mut Reach) {
        for pair in &self.tls.pairs {
            reach.read_file(&pair.certificate);
            reach.read_file(&pair.key);
        }
        for set in &self.signing.key_sets {
            reach.read_file(&set.path);
        }
        self.clients.allow_file.iter().for_each(|file| reach.read_file(file));
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            http: Vec::new(),
            https: Vec::new(),
            tls: Tls::default(),
            http2: Http2::default(),
            workers: 0,
            connections_max: 16_384,
            descriptors_reserved: 512,
            backlog: 4096,
            receive_buffer: ByteCount(64 << 10),
            header_timeout: Duration::from_secs(10),
            header_size_max: ByteCount(16 << 10),
            header_count_max: 64,
            idle_timeout: Duration::from_secs(60),
            idle_timeout_overloaded: Duration::from_secs(5),
            connections_percent: 90,
            queue_delay_max: Duration::from_millis(20),
            newcomers_percent: 20,
            costly_permille: 1,
            client_percent: 80,
            refuse_delay: Duration::from_millis(40),
            stall_timeout: Duration::from_secs(30),
            send_rate_min: BitRate(64_000),
            send_rate_window: Duration::from_secs(60),
            linger_timeout: Duration::from_secs(2),
            linger_max: ByteCount(256 << 10),
            miss_timeout: Duration::from_secs(30),
            revalidate_timeout: Duration::from_secs(1),
            retry_after: Duration::from_secs(5),
            ranges_max: 16,
            send_buffer: ByteCount(0),
            near_rtt: Duration::from_millis(1),
            near_send_buffer: ByteCount(256 << 10),
            recall_max: 4096,
            unsent_max: ByteCount(256 << 10),
            query_in_key: false,
            cors: Cors { origins: vec!["*".into()], max_age: Duration::from_secs(86_400) },
            clients: clients::Config::default(),
            signing: signing::Config::default(),
            server_name: "oca".into(),
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(30),
        }
    }
}
