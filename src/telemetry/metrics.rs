//! The metrics table: every metric's name, meaning and stability, and how they are read.
//!
//! Hot counters are cells of one worker each (`counters.rs`), added up when somebody scrapes.

use std::{fmt::Write as _, sync::Arc};

use parking_lot::Mutex;
use prometheus::{
    Encoder, TextEncoder,
    proto::{
        Bucket, Counter as ProtoCounter, Gauge as ProtoGauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
    },
};

pub use super::counters::{
    CacheOutcome, CertificateMetrics, CloseReason, Counter, Denial, Handshake, SendPath, SourceMetrics, VolumeMetrics,
    WorkerMetrics,
};
use super::counters::{Cell, FIRST_BYTE_BOUNDS, STATUSES};

/// What kind of number it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size.
    Histogram,
}

/// One metric of the table.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// Name, with its unit.
    pub name: &'static str,
    /// What kind of number.
    pub kind: Kind,
    /// Names of its labels, comma-separated.
    pub labels: &'static str,
    /// Whether dashboards may rely on it: `stable`, or `draft`.
    pub stability: &'static str,
    /// What it means.
    pub help: &'static str,
}

const fn metric(name: &'static str, kind: Kind, labels: &'static str, help: &'static str) -> Description {
    Description { name, kind, labels, stability: "stable", help }
}

/// Every metric there is.
pub const TABLE: &[Description] = &[
    metric("oca_build_info", Kind::Gauge, "version", "Always 1; the label tells the version."),
    metric("oca_uptime_seconds", Kind::Gauge, "", "Seconds since the appliance was started."),
    metric("oca_responses_total", Kind::Counter, "status", "Responses begun, by status."),
    metric("oca_cache_outcomes_total", Kind::Counter, "outcome", "Responses begun, by what the cache did for them."),
    metric(
        "oca_sent_bytes_total",
        Kind::Counter,
        "path",
        "Bytes for viewers: handed to the kernel by sendfile or copied, or encrypted (counted before).",
    ),
    metric("oca_first_byte_seconds", Kind::Histogram, "", "Time from a request's head to its response's head."),
    metric(
        "oca_responses_cut_total",
        Kind::Counter,
        "",
        "Responses that broke off because their bytes were not to be had.",
    ),
    metric(
        "oca_hits_at_once_total",
        Kind::Counter,
        "",
        "Hits answered at once, since all they took was in memory; the other responses had to be put together or waited for.",
    ),
    metric(
        "oca_requests_abandoned_total",
        Kind::Counter,
        "",
        "Requests whose client left before the response had begun.",
    ),
    metric("oca_connections", Kind::Gauge, "", "Viewers' connections open."),
    metric("oca_connections_accepted_total", Kind::Counter, "", "Viewers' connections taken in."),
    metric(
        "oca_connections_refused_total",
        Kind::Counter,
        "",
        "Viewers' connections refused above serve.connections_max.",
    ),
    metric(
        "oca_connections_closed_total",
        Kind::Counter,
        "reason",
        "Viewers' connections ended by the appliance, by reason.",
    ),
    metric(
        "oca_connection_errors_total",
        Kind::Counter,
        "",
        "Connections that ended by an error: hung up, or no HTTP.",
    ),
    metric(
        "oca_tls_handshakes_total",
        Kind::Counter,
        "version,outcome",
        "Handshakes of TLS that ended, by what they came to.",
    ),
    metric(
        "oca_tls_kernel_connections_total",
        Kind::Counter,
        "",
        "Connections whose TLS the kernel has taken over; their bytes count as those of plain ones.",
    ),
    metric(
        "oca_tls_certificate_expiry_seconds",
        Kind::Gauge,
        "certificate",
        "When a certificate in use is no longer good, in seconds since 1970.",
    ),
    metric(
        "oca_tls_renewals_total",
        Kind::Counter,
        "outcome",
        "Certificates that changed on disk: taken into use, or refused.",
    ),
    metric(
        "oca_signing_denials_total",
        Kind::Counter,
        "reason",
        "Requests refused for want of a good signature, by reason.",
    ),
    metric(
        "oca_signing_verifications_total",
        Kind::Counter,
        "",
        "Tokens whose signature was computed; the others were known from requests before.",
    ),
    metric(
        "oca_signing_key_reloads_total",
        Kind::Counter,
        "outcome",
        "Key sets that changed on disk: taken into use, or refused.",
    ),
    metric("oca_accept_failures_total", Kind::Counter, "", "Times that the system had no descriptor for a connection."),
    metric("oca_panics_total", Kind::Counter, "", "Requests that panicked; each cost its connection."),
    metric(
        "oca_worker_major_faults_total",
        Kind::Counter,
        "worker",
        "Page faults of a worker that waited for the disk; stays near zero.",
    ),
    metric(
        "oca_worker_block_reads_total",
        Kind::Counter,
        "worker",
        "Blocks of 512 bytes that a worker had the disk read and waited for; grows where storage.residency_trust is too long.",
    ),
    metric(
        "oca_cold_waits_total",
        Kind::Counter,
        "",
        "Windows of an asset that a viewer waited for because they were not in memory.",
    ),
    metric("oca_cold_wait_seconds_total", Kind::Counter, "", "Time waited for them."),
    metric("oca_prefetches_total", Kind::Counter, "", "Windows read ahead of their viewer."),
    metric("oca_assets", Kind::Gauge, "", "Assets held."),
    metric("oca_mappings", Kind::Gauge, "", "Files of assets mapped."),
    metric("oca_demands_queued", Kind::Gauge, "", "Demands that wait for fill."),
    metric(
        "oca_demands_collapsed_total",
        Kind::Counter,
        "",
        "Requests for an unknown asset that joined a question under way.",
    ),
    metric("oca_negative_hits_total", Kind::Counter, "", "Requests answered by a remembered no."),
    metric("oca_pass_throughs_total", Kind::Counter, "", "Requests passed to a source without storing."),
    metric(
        "oca_touches_dropped_total",
        Kind::Counter,
        "",
        "Uses not noted for eviction because too many were waiting.",
    ),
    metric("oca_volume_used_bytes", Kind::Gauge, "volume", "Bytes reserved on a volume."),
    metric("oca_volume_capacity_bytes", Kind::Gauge, "volume", "Bytes that a volume may hold."),
    metric("oca_volume_failed", Kind::Gauge, "volume", "1 when a volume was taken out."),
    metric("oca_volume_read_errors_total", Kind::Counter, "volume", "Reads of a volume that failed."),
    metric("oca_volume_sync_failures_total", Kind::Counter, "volume", "Syncs of a volume that failed."),
    metric("oca_volume_database_batches_total", Kind::Counter, "volume", "Batches committed to a volume's catalog."),
    metric("oca_volume_database_failures_total", Kind::Counter, "volume", "Commits to a volume's catalog that failed."),
    metric("oca_blocks_durable_total", Kind::Counter, "volume", "Blocks made durable."),
    metric("oca_blocks_verified_total", Kind::Counter, "volume", "Blocks compared with their digest and found right."),
    metric(
        "oca_blocks_corrupt_total",
        Kind::Counter,
        "volume",
        "Blocks that differed from their digest and were dropped.",
    ),
    metric("oca_scrubbed_bytes_total", Kind::Counter, "volume", "Bytes re-read by the scrubber."),
    metric("oca_evicted_assets_total", Kind::Counter, "volume", "Assets evicted for room."),
    metric("oca_evicted_bytes_total", Kind::Counter, "volume", "Bytes evicted for room."),
    metric(
        "oca_purged_assets_total",
        Kind::Counter,
        "volume",
        "Assets that changed or were gone at their source, or were purged.",
    ),
    metric("oca_lost_assets_total", Kind::Counter, "volume", "Assets lost to a failing disk."),
    metric("oca_fill_fetches_total", Kind::Counter, "source", "Requests made to a source."),
    metric("oca_fill_bytes_total", Kind::Counter, "source", "Bytes of bodies that came from a source."),
    metric("oca_fill_errors_total", Kind::Counter, "source,reason", "Fetches that failed, by reason."),
    metric(
        "oca_source_set_aside",
        Kind::Gauge,
        "source",
        "1 from when a source is set aside for its failures until it delivers again.",
    ),
    metric(
        "oca_access_log_dropped_total",
        Kind::Counter,
        "",
        "Access log lines lost: the writer was behind, or the file could not be written.",
    ),
    metric("oca_resident_bytes", Kind::Gauge, "", "Memory of the process, without the page cache."),
    metric("oca_open_descriptors", Kind::Gauge, "", "File descriptors open."),
];

type Observer = Box<dyn Fn(&Metrics) + Send + Sync>;

/// Everything that is counted.
#[derive(Default)]
pub struct Metrics {
    workers: Vec<Arc<WorkerMetrics>>,
    volumes: Mutex<Vec<(String, Arc<VolumeMetrics>)>>,
    sources: Mutex<Vec<(String, Arc<SourceMetrics>)>>,
    certificates: Mutex<Vec<(String, Arc<CertificateMetrics>)>>,
    observers: Mutex<Vec<Observer>>,
    /// See `oca_tls_renewals_total`.
    pub certificates_renewed: Counter,
    /// See `oca_tls_renewals_total`.
    pub certificates_refused: Counter,
    /// See `oca_signing_key_reloads_total`.
    pub keys_reloaded: Counter,
    /// See `oca_signing_key_reloads_total`.
    pub keys_refused: Counter,
    /// See `oca_touches_dropped_total`.
    pub touches_dropped: Counter,
    /// See `oca_negative_hits_total`.
    pub negative_hits: Counter,
    /// See `oca_demands_collapsed_total`.
    pub collapsed_demands: Counter,
    /// See `oca_pass_throughs_total`.
    pub pass_throughs: Counter,
    /// See `oca_access_log_dropped_total`.
    pub access_log_dropped: Counter,
    /// See `oca_cold_waits_total`. Set at scrape, as all below.
    pub cold_waits: Counter,
    /// In microseconds; see `oca_cold_wait_seconds_total`.
    pub cold_wait_micros: Counter,
    /// See `oca_prefetches_total`.
    pub prefetches: Counter,
    /// See `oca_assets`.
    pub assets: Counter,
    /// See `oca_mappings`.
    pub mappings: Counter,
    /// See `oca_demands_queued`.
    pub demands_queued: Counter,
    /// See `oca_uptime_seconds`.
    pub uptime_seconds: Counter,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").field("workers", &self.workers.len()).finish_non_exhaustive()
    }
}

impl Metrics {
    /// Cells for so many workers.
    pub fn new(workers: usize) -> Self {
        Self { workers: (0..workers.max(1)).map(|_| Arc::default()).collect(), ..Self::default() }
    }

    /// The cells of one worker, which has to be the only one to write to them.
    ///
    /// # Panics
    /// There is no such worker.
    pub fn worker(&self, number: usize) -> Arc<WorkerMetrics> {
        Arc::clone(&self.workers[number])
    }

    /// Workers that count.
    pub fn worker_count(&self) -> usize {
        self.workers.len()
    }

    /// The counters of a volume, made when they are first asked for.
    pub fn volume(&self, name: &str) -> Arc<VolumeMetrics> {
        named(&self.volumes, name)
    }

    /// The counters of a source, made when they are first asked for.
    pub fn source(&self, name: &str) -> Arc<SourceMetrics> {
        named(&self.sources, name)
    }

    /// The gauges of a certificate, made when they are first asked for.
    pub fn certificate(&self, name: &str) -> Arc<CertificateMetrics> {
        named(&self.certificates, name)
    }

    /// Has `observer` called before each scrape, to set what is not counted as it happens.
    pub fn before_scrape(&self, observer: impl Fn(&Self) + Send + Sync + 'static) {
        self.observers.lock().push(Box::new(observer));
    }

    /// Viewers' connections open just now.
    pub fn connections(&self) -> u64 {
        self.workers.iter().map(|worker| worker.open()).sum()
    }

    /// Everything in Prometheus' text format, version 0.0.4.
    pub fn render(&self) -> String {
        self.observers.lock().iter().for_each(|observe| observe(self));
        let mut out = Vec::new();
        if let Err(err) = TextEncoder::new().encode(&self.families(), &mut out) {
            tracing::error!(error = %err, "metrics cannot be written");
        }
        String::from_utf8(out).unwrap_or_default()
    }

    fn families(&self) -> Vec<MetricFamily> {
        let mut families = Families::default();
        self.add_workers(&mut families);
        self.add_volumes(&mut families);
        for (name, source) in self.sources.lock().iter() {
            let label = [("source", name.as_str())];
            families.add("oca_fill_fetches_total", &label, source.fetches.value() as f64);
            families.add("oca_fill_bytes_total", &label, source.bytes.value() as f64);
            families.add("oca_source_set_aside", &label, source.set_aside.value() as f64);
            for (reason, count) in source.errors() {
                families.add("oca_fill_errors_total", &[("source", name), ("reason", reason)], count as f64);
            }
        }
        for (name, certificate) in self.certificates.lock().iter() {
            let expiry = certificate.expiry.value() as f64;
            families.add("oca_tls_certificate_expiry_seconds", &[("certificate", name)], expiry);
        }
        for (outcome, counter) in [("used", &self.certificates_renewed), ("refused", &self.certificates_refused)] {
            families.add("oca_tls_renewals_total", &[("outcome", outcome)], counter.value() as f64);
        }
        for (outcome, counter) in [("used", &self.keys_reloaded), ("refused", &self.keys_refused)] {
            families.add("oca_signing_key_reloads_total", &[("outcome", outcome)], counter.value() as f64);
        }
        let plain = [
            ("oca_touches_dropped_total", &self.touches_dropped),
            ("oca_negative_hits_total", &self.negative_hits),
            ("oca_demands_collapsed_total", &self.collapsed_demands),
            ("oca_pass_throughs_total", &self.pass_throughs),
            ("oca_access_log_dropped_total", &self.access_log_dropped),
            ("oca_cold_waits_total", &self.cold_waits),
            ("oca_prefetches_total", &self.prefetches),
            ("oca_assets", &self.assets),
            ("oca_mappings", &self.mappings),
            ("oca_demands_queued", &self.demands_queued),
            ("oca_uptime_seconds", &self.uptime_seconds),
        ];
        plain.iter().for_each(|(name, counter)| families.add(name, &[], counter.value() as f64));
        families.add("oca_cold_wait_seconds_total", &[], self.cold_wait_micros.value() as f64 / 1e6);
        families.add("oca_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
        let (resident, descriptors) = process();
        families.add("oca_resident_bytes", &[], resident as f64);
        families.add("oca_open_descriptors", &[], descriptors as f64);
        families.finish()
    }

    fn add_workers(&self, families: &mut Families) {
        let sum = |cell: &dyn Fn(&WorkerMetrics) -> &Cell| {
            self.workers.iter().map(|worker| cell(worker).value()).sum::<u64>() as f64
        };
        for (at, status) in STATUSES.iter().map(u16::to_string).chain(["other".into()]).enumerate() {
            families.add("oca_responses_total", &[("status", &status)], sum(&|worker| &worker.statuses[at]));
        }
        for outcome in CacheOutcome::ALL {
            families.add(
                "oca_cache_outcomes_total",
                &[("outcome", outcome.label())],
                sum(&|worker| &worker.outcomes[outcome as usize]),
            );
        }
        for reason in CloseReason::ALL {
            families.add(
                "oca_connections_closed_total",
                &[("reason", reason.label())],
                sum(&|worker| &worker.closed[reason as usize]),
            );
        }
        families.add("oca_sent_bytes_total", &[("path", "sendfile")], sum(&|worker| &worker.sendfile_bytes));
        families.add("oca_sent_bytes_total", &[("path", "copied")], sum(&|worker| &worker.copied_bytes));
        families.add("oca_sent_bytes_total", &[("path", "encrypted")], sum(&|worker| &worker.encrypted_bytes));
        for how in Handshake::ALL {
            let (version, outcome) = how.labels();
            families.add(
                "oca_tls_handshakes_total",
                &[("version", version), ("outcome", outcome)],
                sum(&|worker| &worker.handshakes[how as usize]),
            );
        }
        families.add("oca_tls_kernel_connections_total", &[], sum(&|worker| &worker.kernel_tls));
        for why in Denial::ALL {
            let count = sum(&|worker| &worker.denials[why as usize]);
            families.add("oca_signing_denials_total", &[("reason", why.label())], count);
        }
        families.add("oca_signing_verifications_total", &[], sum(&|worker| &worker.verifications));
        families.add("oca_responses_cut_total", &[], sum(&|worker| &worker.cuts));
        families.add("oca_hits_at_once_total", &[], sum(&|worker| &worker.hits_at_once));
        families.add("oca_requests_abandoned_total", &[], sum(&|worker| &worker.abandoned));
        families.add("oca_connections", &[], self.connections() as f64);
        families.add("oca_connections_accepted_total", &[], sum(&|worker| &worker.accepted));
        families.add("oca_connections_refused_total", &[], sum(&|worker| &worker.refused));
        families.add("oca_connection_errors_total", &[], sum(&|worker| &worker.connection_errors));
        families.add("oca_accept_failures_total", &[], sum(&|worker| &worker.accept_failures));
        families.add("oca_panics_total", &[], sum(&|worker| &worker.panics));
        for (number, worker) in self.workers.iter().enumerate() {
            let faults = worker.major_faults.load(std::sync::atomic::Ordering::Relaxed);
            families.add("oca_worker_major_faults_total", &[("worker", &number.to_string())], faults as f64);
            let blocks = worker.blocks_read.load(std::sync::atomic::Ordering::Relaxed);
            families.add("oca_worker_block_reads_total", &[("worker", &number.to_string())], blocks as f64);
        }
        let mut histogram = Histogram::default();
        let mut cumulative = 0;
        let mut buckets = Vec::with_capacity(FIRST_BYTE_BOUNDS.len());
        for (at, bound) in FIRST_BYTE_BOUNDS.iter().enumerate() {
            cumulative += self.workers.iter().map(|worker| worker.first_byte[at].value()).sum::<u64>();
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound as f64 / 1e6);
            bucket.set_cumulative_count(cumulative);
            buckets.push(bucket);
        }
        let beyond = self.workers.iter().map(|worker| worker.first_byte[FIRST_BYTE_BOUNDS.len()].value()).sum::<u64>();
        histogram.set_bucket(buckets);
        histogram.set_sample_count(cumulative + beyond);
        histogram.set_sample_sum(sum(&|worker| &worker.first_byte_micros) / 1e6);
        families.add_histogram("oca_first_byte_seconds", histogram);
    }

    fn add_volumes(&self, families: &mut Families) {
        for (name, volume) in self.volumes.lock().iter() {
            let label = [("volume", name.as_str())];
            let values = [
                ("oca_volume_used_bytes", &volume.used_bytes),
                ("oca_volume_capacity_bytes", &volume.capacity_bytes),
                ("oca_volume_failed", &volume.failed),
                ("oca_volume_read_errors_total", &volume.read_errors),
                ("oca_volume_sync_failures_total", &volume.sync_failures),
                ("oca_volume_database_batches_total", &volume.database_batches),
                ("oca_volume_database_failures_total", &volume.database_failures),
                ("oca_blocks_durable_total", &volume.blocks_durable),
                ("oca_blocks_verified_total", &volume.blocks_verified),
                ("oca_blocks_corrupt_total", &volume.blocks_corrupt),
                ("oca_scrubbed_bytes_total", &volume.scrubbed_bytes),
                ("oca_evicted_assets_total", &volume.evicted_assets),
                ("oca_evicted_bytes_total", &volume.evicted_bytes),
                ("oca_purged_assets_total", &volume.purged_assets),
                ("oca_lost_assets_total", &volume.lost_assets),
            ];
            values.iter().for_each(|(metric, counter)| families.add(metric, &label, counter.value() as f64));
        }
    }
}

fn named<T: Default>(all: &Mutex<Vec<(String, Arc<T>)>>, name: &str) -> Arc<T> {
    let mut all = all.lock();
    if let Some((_, one)) = all.iter().find(|(known, _)| known == name) {
        return Arc::clone(one);
    }
    let one = Arc::<T>::default();
    all.push((name.into(), Arc::clone(&one)));
    one
}

/// Resident bytes and open descriptors; zero where `/proc` does not tell.
fn process() -> (u64, u64) {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let field = |at| statm.split(' ').nth(at).and_then(|pages: &str| pages.parse::<u64>().ok()).unwrap_or(0);
    // The second field counts what is resident, the third the part of it that is files: mapped assets.
    let pages = field(1).saturating_sub(field(2));
    // One of them is the folder being read.
    let descriptors = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count).saturating_sub(1) as u64;
    (pages * rustix::param::page_size() as u64, descriptors)
}

/// Families in the order of the table.
#[derive(Default)]
struct Families(Vec<MetricFamily>);

impl Families {
    fn family(&mut self, name: &str) -> Option<&mut MetricFamily> {
        let description = TABLE.iter().find(|known| known.name == name);
        debug_assert!(description.is_some(), "{name} does not stand in the table");
        let description = description?;
        if let Some(at) = self.0.iter().position(|family| family.name() == name) {
            return self.0.get_mut(at);
        }
        let mut family = MetricFamily::default();
        family.set_name(name.into());
        family.set_help(description.help.into());
        family.set_field_type(match description.kind {
            Kind::Counter => MetricType::COUNTER,
            Kind::Gauge => MetricType::GAUGE,
            Kind::Histogram => MetricType::HISTOGRAM,
        });
        self.0.push(family);
        self.0.last_mut()
    }

    fn add(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let Some(family) = self.family(name) else { return };
        let pairs = labels.iter().map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).into());
            pair.set_value((*value).into());
            pair
        });
        let mut metric = Metric::default();
        metric.set_label(pairs.collect());
        if family.get_field_type() == MetricType::GAUGE {
            let mut gauge = ProtoGauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        } else {
            let mut counter = ProtoCounter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        }
        family.mut_metric().push(metric);
    }

    fn add_histogram(&mut self, name: &str, histogram: Histogram) {
        let Some(family) = self.family(name) else { return };
        let mut metric = Metric::default();
        metric.set_histogram(histogram);
        family.mut_metric().push(metric);
    }

    fn finish(mut self) -> Vec<MetricFamily> {
        let place = |family: &MetricFamily| TABLE.iter().position(|known| known.name == family.name());
        self.0.sort_by_key(place);
        self.0
    }
}

/// The table as a page of documentation.
pub fn table_as_markdown() -> String {
    let mut page = String::from("| metric | kind | labels | meaning | stability |\n|---|---|---|---|---|\n");
    for metric in TABLE {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // Writing to a string cannot fail.
        let written = writeln!(
            page,
            "| `{}` | {kind} | {} | {} | {} |",
            metric.name, metric.labels, metric.help, metric.stability
        );
        debug_assert!(written.is_ok());
    }
    page
}
