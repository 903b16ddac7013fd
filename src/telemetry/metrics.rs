//! Everything that is counted, and how it is read; `table.rs` has each metric's name, meaning and stability.
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
    AdminDenial, CacheOutcome, CertificateMetrics, ClientDenial, CloseReason, Counter, Denial, Handshake, Refused,
    SendPath, Shed, SourceMetrics, VolumeMetrics, Waits, WorkerMetrics,
};
use super::counters::{Cell, FIRST_BYTE_BOUNDS, STATUSES};
pub use super::manifests::ManifestMetrics;
pub use super::steering::SteeringMetrics;
pub use super::table::{Description, Kind, TABLE};

/// A number of the fill by manifest: name, label and value.
pub type Planned = (&'static str, Option<(&'static str, &'static str)>, u64);
type Observer = Box<dyn Fn(&Metrics) + Send + Sync>;

/// A gauge that is set by its name.
struct Gauge {
    name: &'static str,
    label: Option<(&'static str, String)>,
    value: f64,
}

/// Everything that is counted.
#[derive(Default)]
pub struct Metrics {
    workers: Vec<Arc<WorkerMetrics>>,
    volumes: Mutex<Vec<(String, Arc<VolumeMetrics>)>>,
    sources: Mutex<Vec<(String, Arc<SourceMetrics>)>>,
    certificates: Mutex<Vec<(String, Arc<CertificateMetrics>)>>,
    steering: Mutex<Vec<(String, Arc<SteeringMetrics>)>>,
    observers: Mutex<Vec<Observer>>,
    gauges: Mutex<Vec<Gauge>>,
    planned: Mutex<Vec<Planned>>,
    /// Of the control plane's manifests.
    pub manifest: ManifestMetrics,
    /// See `oca_tls_renewals_total`.
    pub certificates_renewed: Counter,
    /// See `oca_tls_renewals_total`.
    pub certificates_refused: Counter,
    /// See `oca_signing_key_reloads_total`.
    pub keys_reloaded: Counter,
    /// See `oca_signing_key_reloads_total`.
    pub keys_refused: Counter,
    /// See `oca_network_reloads_total`.
    pub networks_reloaded: Counter,
    /// See `oca_network_reloads_total`.
    pub networks_refused: Counter,
    admin_denials: [Counter; AdminDenial::ALL.len()],
    /// See `oca_admin_reloads_total`.
    pub admin_files_reloaded: Counter,
    /// See `oca_admin_reloads_total`.
    pub admin_files_refused: Counter,
    /// See `oca_touches_dropped_total`.
    pub touches_dropped: Counter,
    /// See `oca_purges_total`.
    pub purges: Counter,
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
    /// See `oca_clients_remembered`.
    pub clients_remembered: Counter,
    /// See `oca_assets`.
    pub assets: Counter,
    /// See `oca_mappings`.
    pub mappings: Counter,
    /// See `oca_demands_queued`.
    pub demands_queued: Counter,
    /// See `oca_assets_held`. Set when a report is made.
    pub assets_held: Counter,
    /// See `oca_client_prefixes`. Set when a report is made.
    pub client_prefixes: Counter,
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

    /// A certificate is in use no longer.
    pub fn forget_certificate(&self, name: &str) {
        self.certificates.lock().retain(|(known, _)| known != name);
    }

    /// A request to the admin listener was refused.
    pub fn admin_denied(&self, why: AdminDenial) {
        self.admin_denials[why as usize].inc();
    }

    /// The counters of a steering service, made when they are first asked for.
    pub fn steering(&self, name: &str) -> Arc<SteeringMetrics> {
        named(&self.steering, name)
    }

    /// Has `observer` called before each scrape, to set what is not counted as it happens.
    pub fn before_scrape(&self, observer: impl Fn(&Self) + Send + Sync + 'static) {
        self.observers.lock().push(Box::new(observer));
    }

    /// Sets a gauge of the table, with its label where it has one; for what is worked out now and then, not counted.
    pub fn gauge(&self, name: &'static str, label: Option<(&'static str, &str)>, value: f64) {
        let mut gauges = self.gauges.lock();
        let is_it = |known: &Gauge| {
            known.name == name && known.label.as_ref().map(|(key, text)| (*key, text.as_str())) == label
        };
        match gauges.iter_mut().find(|known| is_it(known)) {
            Some(known) => known.value = value,
            None => gauges.push(Gauge { name, label: label.map(|(key, text)| (key, text.into())), value }),
        }
    }

    /// The cells of every worker.
    pub(super) fn workers(&self) -> &[Arc<WorkerMetrics>] {
        &self.workers
    }

    /// When each certificate in use is no longer good, in seconds since 1970, by its file.
    pub fn certificate_expiries(&self) -> Vec<(String, u64)> {
        let certificates = self.certificates.lock();
        certificates.iter().map(|(name, certificate)| (name.clone(), certificate.expiry.value())).collect()
    }

    /// Sets what is told of the fill by manifest.
    pub fn set_planned(&self, numbers: Vec<Planned>) {
        *self.planned.lock() = numbers;
    }

    /// Bytes sent to viewers so far.
    pub fn sent_bytes(&self) -> u64 {
        self.workers.iter().map(|worker| worker.sent_bytes()).sum()
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
        self.add_steering(&mut families);
        for (name, source) in self.sources.lock().iter() {
            let label = [("source", name.as_str())];
            families.add("oca_fill_fetches_total", &label, source.fetches.value() as f64);
            families.add("oca_fill_bytes_total", &label, source.bytes.value() as f64);
            families.add("oca_source_set_aside", &label, source.set_aside.value() as f64);
            families.add("oca_source_escalations_total", &label, source.escalations.value() as f64);
            families.add("oca_source_not_held_total", &label, source.not_held.value() as f64);
            families.add("oca_source_stood_in_total", &label, source.stood_in.value() as f64);
            for (reason, count) in source.errors() {
                families.add("oca_fill_errors_total", &[("source", name), ("reason", reason)], count as f64);
            }
        }
        for (name, label, value) in self.planned.lock().iter() {
            families.add(name, label.as_slice(), *value as f64);
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
        for (outcome, counter) in [("used", &self.networks_reloaded), ("refused", &self.networks_refused)] {
            families.add("oca_network_reloads_total", &[("outcome", outcome)], counter.value() as f64);
        }
        for why in AdminDenial::ALL {
            let count = self.admin_denials[why as usize].value() as f64;
            families.add("oca_admin_denials_total", &[("reason", why.label())], count);
        }
        for (outcome, counter) in [("used", &self.admin_files_reloaded), ("refused", &self.admin_files_refused)] {
            families.add("oca_admin_reloads_total", &[("outcome", outcome)], counter.value() as f64);
        }
        let manifest = &self.manifest;
        for (outcome, counter) in [("used", &manifest.keys_reloaded), ("refused", &manifest.keys_refused)] {
            families.add("oca_manifest_key_reloads_total", &[("outcome", outcome)], counter.value() as f64);
        }
        for (reason, count) in manifest.refusals() {
            families.add("oca_manifests_refused_total", &[("reason", reason)], count as f64);
        }
        let plain = [
            ("oca_clients_remembered", &self.clients_remembered),
            ("oca_manifests_accepted_total", &manifest.accepted),
            ("oca_manifest_sequence", &manifest.sequence),
            ("oca_manifest_assets", &manifest.assets),
            ("oca_manifest_age_seconds", &manifest.age_seconds),
            ("oca_manifest_expiry_seconds", &manifest.expiry),
            ("oca_manifest_stale", &manifest.stale),
            ("oca_touches_dropped_total", &self.touches_dropped),
            ("oca_purges_total", &self.purges),
            ("oca_negative_hits_total", &self.negative_hits),
            ("oca_demands_collapsed_total", &self.collapsed_demands),
            ("oca_pass_throughs_total", &self.pass_throughs),
            ("oca_access_log_dropped_total", &self.access_log_dropped),
            ("oca_cold_waits_total", &self.cold_waits),
            ("oca_prefetches_total", &self.prefetches),
            ("oca_assets", &self.assets),
            ("oca_mappings", &self.mappings),
            ("oca_demands_queued", &self.demands_queued),
            ("oca_assets_held", &self.assets_held),
            ("oca_client_prefixes", &self.client_prefixes),
            ("oca_uptime_seconds", &self.uptime_seconds),
        ];
        plain.iter().for_each(|(name, counter)| families.add(name, &[], counter.value() as f64));
        families.add("oca_cold_wait_seconds_total", &[], self.cold_wait_micros.value() as f64 / 1e6);
        families.add("oca_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
        for gauge in self.gauges.lock().iter() {
            let label = gauge.label.as_ref().map(|(key, text)| (*key, text.as_str()));
            families.add(gauge.name, label.as_slice(), gauge.value);
        }
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
        for why in ClientDenial::ALL {
            let count = sum(&|worker| &worker.client_denials[why as usize]);
            families.add("oca_client_denials_total", &[("reason", why.label())], count);
        }
        for whose in Shed::ALL {
            let count = sum(&|worker| &worker.shed[whose as usize]);
            families.add("oca_overload_refusals_total", &[("whose", whose.label())], count);
        }
        for why in Waits::ALL {
            let count = sum(&|worker| &worker.waits[why as usize]);
            families.add("oca_turns_waited_total", &[("why", why.label())], count);
            let count = sum(&|worker| &worker.given_up[why as usize]);
            families.add("oca_turns_given_up_total", &[("why", why.label())], count);
        }
        families.add("oca_signing_verifications_total", &[], sum(&|worker| &worker.verifications));
        families.add("oca_responses_cut_total", &[], sum(&|worker| &worker.cuts));
        families.add("oca_hits_at_once_total", &[], sum(&|worker| &worker.hits_at_once));
        families.add("oca_requests_abandoned_total", &[], sum(&|worker| &worker.abandoned));
        families.add("oca_connections", &[], self.connections() as f64);
        families.add("oca_connections_accepted_total", &[], sum(&|worker| &worker.accepted));
        for why in Refused::ALL {
            let count = sum(&|worker| &worker.refused[why as usize]);
            families.add("oca_connections_refused_total", &[("reason", why.label())], count);
        }
        families.add("oca_connection_errors_total", &[], sum(&|worker| &worker.connection_errors));
        families.add("oca_accept_failures_total", &[], sum(&|worker| &worker.accept_failures));
        families.add("oca_panics_total", &[], sum(&|worker| &worker.panics));
        for (number, worker) in self.workers.iter().enumerate() {
            let faults = worker.major_faults.load(std::sync::atomic::Ordering::Relaxed);
            families.add("oca_worker_major_faults_total", &[("worker", &number.to_string())], faults as f64);
            let blocks = worker.blocks_read.load(std::sync::atomic::Ordering::Relaxed);
            families.add("oca_worker_block_reads_total", &[("worker", &number.to_string())], blocks as f64);
            let cpu = worker.cpu_micros.load(std::sync::atomic::Ordering::Relaxed);
            families.add("oca_worker_cpu_seconds_total", &[("worker", &number.to_string())], cpu as f64 / 1e6);
            let delay = worker.queue_delay_micros.load(std::sync::atomic::Ordering::Relaxed);
            families.add("oca_worker_queue_delay_seconds", &[("worker", &number.to_string())], delay as f64 / 1e6);
            let refused = worker.shed_permille.load(std::sync::atomic::Ordering::Relaxed);
            let called = worker.called_delay_micros.load(std::sync::atomic::Ordering::Relaxed);
            families.add("oca_worker_called_delay_seconds", &[("worker", &number.to_string())], called as f64 / 1e6);
            families.add("oca_worker_refused_ratio", &[("worker", &number.to_string())], refused as f64 / 1e3);
        }
        let mut histogram = Histogram::default();
        let mut cumulative = 0;
        let mut buckets = Vec::with_capacity(FIRST_BYTE_BOUNDS.len());
        for (at, bound) in FIRST_BYTE_BOUNDS.iter().enumerate() {
            cumulative += self
                .workers
                .iter()
                .map(|worker| worker.first_byte.iter().map(|half| half[at].value()).sum::<u64>())
                .sum::<u64>();
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound as f64 / 1e6);
            bucket.set_cumulative_count(cumulative);
            buckets.push(bucket);
        }
        let last = FIRST_BYTE_BOUNDS.len();
        let beyond =
            self.workers.iter().flat_map(|worker| &worker.first_byte).map(|half| half[last].value()).sum::<u64>();
        histogram.set_bucket(buckets);
        histogram.set_sample_count(cumulative + beyond);
        histogram.set_sample_sum(sum(&|worker| &worker.first_byte_micros) / 1e6);
        families.add_histogram("oca_first_byte_seconds", histogram);
    }

    fn add_steering(&self, families: &mut Families) {
        for (name, service) in self.steering.lock().iter() {
            for (outcome, count) in service.reports() {
                let labels = [("service", name.as_str()), ("outcome", outcome)];
                families.add("oca_steering_reports_total", &labels, count as f64);
            }
            for (metric, counter) in [
                ("oca_steering_report_bytes_total", &service.bytes),
                ("oca_steering_full_summaries_total", &service.full),
                ("oca_steering_delivered_seconds", &service.delivered_unix),
            ] {
                families.add(metric, &[("service", name)], counter.value() as f64);
            }
        }
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
