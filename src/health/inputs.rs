//! What is measured of an appliance, as [`super::judge`] takes it: values, no clock, no file.

use std::time::Duration;

use crate::sys::Phase;

/// Everything that health is judged by. What cannot be measured is `None`, and speaks for nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Inputs {
    /// What it is about.
    pub phase: Phase,
    /// Names of the steering services that have it drained; none: an operator has, or nobody.
    pub drained_by: Vec<String>,
    /// Every volume that is configured and could be opened.
    pub volumes: Vec<Volume>,
    /// What viewers got of late.
    pub served: Served,
    /// Time for a window that was not in memory, on average of late; `None`: there was none.
    pub cold_wait: Option<Duration>,
    /// Fill of late.
    pub fill: Fill,
    /// Every source.
    pub sources: Vec<Source>,
    /// Why no manifest can come, where one should.
    pub manifest_failure: Option<String>,
    /// The manifest in force; `None`: none is expected, or none has come yet.
    pub manifest: Option<Manifest>,
    /// Memory of the machine, or of the group that the process is confined to.
    pub memory: Option<Memory>,
    /// File descriptors.
    pub descriptors: Option<Descriptors>,
    /// How far the wall clock was moved against the monotonic one, the largest move of late, in seconds; forward is positive.
    pub clock_jump_seconds: f64,
    /// Every certificate that viewers are shown.
    pub certificates: Vec<Certificate>,
    /// Whether viewers are served by HTTPS alone.
    pub https_only: bool,
    /// What tells that more is asked for than can be served.
    pub overload: Overload,
}

/// One volume.
#[derive(Clone, Debug, PartialEq)]
pub struct Volume {
    /// Its directory.
    pub name: String,
    /// Why it was taken out, where it was.
    pub failure: Option<String>,
    /// Percent of its file system that is free.
    pub free_percent: Option<f64>,
    /// How long its disk took, or has been taking, for the last probe: a small write, sync and read.
    pub probe: Option<Duration>,
}

/// What viewers got of late.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Served {
    /// Responses begun in the window.
    pub responses: u64,
    /// Those of them that were errors of ours or of a source (500, 502, 503, 504), refusals by rule not counted, and those cut.
    pub errors: u64,
    /// Responses from what is held begun in the window.
    pub hits: u64,
    /// The 95th percentile of their time to the first byte.
    pub first_byte: Option<Duration>,
}

/// Fill of late.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Fill {
    /// Fetches begun in the window.
    pub fetches: u64,
    /// Fetches that failed in the window.
    pub failures: u64,
    /// Demands that wait.
    pub queued: u64,
    /// Demands that may.
    pub queued_max: u64,
}

/// One source.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// Whether it is set aside for its failures.
    pub set_aside: bool,
}

/// The manifest in force.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Manifest {
    /// Whether there is one at all, and not only the wait for it.
    pub has_come: bool,
    /// Time since it, or word that it is still the newest, came; where none ever has, since the start.
    pub age: Duration,
    /// Time until it expires; `None`: it has.
    pub expires_in: Option<Duration>,
}

/// Memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Memory {
    /// What could be had without swapping.
    pub available: u64,
    /// All of it.
    pub total: u64,
}

/// File descriptors of the process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Descriptors {
    /// Open.
    pub open: u64,
    /// Allowed.
    pub max: u64,
}

/// One certificate.
#[derive(Clone, Debug, PartialEq)]
pub struct Certificate {
    /// Its file.
    pub name: String,
    /// Time until it is no longer good; `None`: it is not.
    pub expires_in: Option<Duration>,
}

/// What tells that more is asked for than can be served.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Overload {
    /// How long what is ready has to wait for its turn on the worker that is most behind.
    pub queue_delay: Duration,
    /// Percent of new requests that are refused, on the worker that refuses most.
    pub refused_percent: f64,
    /// Percent of the capacity to the outside that is used; `None`: the capacity is not known.
    pub egress_percent: Option<f64>,
    /// Percent of the connections allowed that are open.
    pub connections_percent: f64,
}
