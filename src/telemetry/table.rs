//! The metrics table: every metric's name, kind, labels, stability and meaning.

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
    metric(
        "oca_client_denials_total",
        Kind::Counter,
        "reason",
        "Viewers' connections and requests refused for who they are from: serve.clients, by what it said.",
    ),
    metric(
        "oca_overload_refusals_total",
        Kind::Counter,
        "whose",
        "Requests answered by 503, and connections closed before a handshake, since a worker had more to do than it could.",
    ),
    metric(
        "oca_clients_remembered",
        Kind::Gauge,
        "",
        "Prefixes of viewers whose connections and requests are counted just now.",
    ),
    metric(
        "oca_network_reloads_total",
        Kind::Counter,
        "outcome",
        "Times that serve.clients.allow_file changed on disk: taken into use, or refused.",
    ),
    metric(
        "oca_admin_denials_total",
        Kind::Counter,
        "reason",
        "Requests to the admin listener that were refused, and handshakes that failed, by reason.",
    ),
    metric(
        "oca_admin_reloads_total",
        Kind::Counter,
        "outcome",
        "Times that the admin listener's tokens and certificates changed on disk: taken into use, or refused.",
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
    metric("oca_worker_cpu_seconds_total", Kind::Counter, "worker", "Time that a worker and its helper have computed."),
    metric(
        "oca_worker_queue_delay_seconds",
        Kind::Gauge,
        "worker",
        "How long what is ready waits for its turn on a worker.",
    ),
    metric(
        "oca_worker_called_delay_seconds",
        Kind::Gauge,
        "worker",
        "How long those who do not go first wait until they are called: the client that waits least.",
    ),
    metric(
        "oca_turns_waited_total",
        Kind::Counter,
        "why",
        "Times that a connection had to wait for its turn, since it was not served yet or costs more than it gets (newcomer), takes more than others (heavy), or is of a client that costs much more than all of its connections get (costly).",
    ),
    metric(
        "oca_worker_refused_ratio",
        Kind::Gauge,
        "worker",
        "Part of the requests of newcomers that a worker refuses just now, 0 to 1.",
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
    metric("oca_purges_total", Kind::Counter, "", "Paths and prefixes that were purged by order."),
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
    metric("oca_fill_wanted_assets", Kind::Gauge, "", "Assets that the manifest in force lists and that have room."),
    metric("oca_fill_wanted_bytes", Kind::Gauge, "", "Bytes of these."),
    metric("oca_fill_held_assets", Kind::Gauge, "", "Those of them that are held, whole and as the manifest says."),
    metric("oca_fill_held_bytes", Kind::Gauge, "", "Bytes of these."),
    metric("oca_fill_in_work", Kind::Gauge, "", "Assets being fetched ahead of demand."),
    metric("oca_fill_window_open", Kind::Gauge, "", "1 while a fill window is open."),
    metric(
        "oca_fill_rate_bits_per_second",
        Kind::Gauge,
        "",
        "What may come in ahead of demand now; 0 while nothing may.",
    ),
    metric(
        "oca_fill_fetched_assets_total",
        Kind::Counter,
        "",
        "Assets fetched ahead of demand, or compared with their digest.",
    ),
    metric("oca_fill_evicted_assets_total", Kind::Counter, "", "Assets evicted for what a manifest lists."),
    metric(
        "oca_fill_discarded_assets_total",
        Kind::Counter,
        "",
        "Assets fetched ahead of demand and dropped: not what the manifest says.",
    ),
    metric("oca_fill_planned_bytes_total", Kind::Counter, "kind", "Bytes fetched ahead of demand, by kind of source."),
    metric(
        "oca_fill_failed_total",
        Kind::Counter,
        "reason",
        "Assets that could not be fetched ahead of demand, by reason; each try counts.",
    ),
    metric(
        "oca_source_set_aside",
        Kind::Gauge,
        "source",
        "1 from when a source is set aside for its failures until it delivers again.",
    ),
    metric("oca_manifests_accepted_total", Kind::Counter, "", "Manifests that were put in force."),
    metric(
        "oca_manifests_refused_total",
        Kind::Counter,
        "reason",
        "Manifests refused, by reason; what was in force stays.",
    ),
    metric(
        "oca_manifest_key_reloads_total",
        Kind::Counter,
        "outcome",
        "Times that the keys of manifests changed on disk: taken into use, or refused.",
    ),
    metric("oca_manifest_sequence", Kind::Gauge, "", "Sequence of the manifest in force; 0 before the first."),
    metric("oca_manifest_assets", Kind::Gauge, "", "Assets that the manifest in force lists."),
    metric("oca_manifest_age_seconds", Kind::Gauge, "", "Seconds since the manifest in force was accepted."),
    metric(
        "oca_manifest_expiry_seconds",
        Kind::Gauge,
        "",
        "When the manifest in force expires, in seconds since 1970.",
    ),
    metric(
        "oca_manifest_stale",
        Kind::Gauge,
        "",
        "1 when no manifest has been accepted for longer than control.stale_after.",
    ),
    metric(
        "oca_source_escalations_total",
        Kind::Counter,
        "source",
        "Fetches that went past a source to the next one, because it failed or was too slow.",
    ),
    metric(
        "oca_source_not_held_total",
        Kind::Counter,
        "source",
        "Requests for what a peer holds that it answered with no: it does not hold it.",
    ),
    metric(
        "oca_source_stood_in_total",
        Kind::Counter,
        "source",
        "Fetches for the site that were up to a peer, and that another box did because the peer is set aside.",
    ),
    metric(
        "oca_steering_reports_total",
        Kind::Counter,
        "service,outcome",
        "Reports to a steering service, by what became of them: delivered, refused (a status), failed (no answer), garbage.",
    ),
    metric("oca_steering_report_bytes_total", Kind::Counter, "service", "Bytes of the reports that were delivered."),
    metric(
        "oca_steering_full_summaries_total",
        Kind::Counter,
        "service",
        "Delivered reports that told everything that is held, as the service had asked.",
    ),
    metric(
        "oca_steering_delivered_seconds",
        Kind::Gauge,
        "service",
        "When a report was last delivered, in seconds since 1970; 0 before the first.",
    ),
    metric("oca_assets_held", Kind::Gauge, "", "Assets of which every block is here, as last reported."),
    metric("oca_client_prefixes", Kind::Gauge, "", "Networks of clients that are served, as last reported."),
    metric(
        "oca_access_log_dropped_total",
        Kind::Counter,
        "",
        "Access log lines lost: the writer was behind, or the file could not be written.",
    ),
    metric(
        "oca_health_state",
        Kind::Gauge,
        "state",
        "1 for the state of health that the appliance is in, 0 for the others.",
    ),
    metric(
        "oca_health_reasons",
        Kind::Gauge,
        "code",
        "Reasons for that state, by code (docs/health.md); of volumes, sources and certificates there can be several.",
    ),
    metric("oca_egress_bits_per_second", Kind::Gauge, "", "What leaves for viewers, over about 10 s."),
    metric(
        "oca_egress_capacity_bits_per_second",
        Kind::Gauge,
        "",
        "What can leave: health.egress_capacity, or what the interfaces say; 0: not known.",
    ),
    metric(
        "oca_headroom_bits_per_second",
        Kind::Gauge,
        "",
        "How much more can leave before viewers suffer; absent until something was served.",
    ),
    metric("oca_disk_busy_ratio", Kind::Gauge, "volume", "Part of the time in which the disk of a volume is busy."),
    metric("oca_resident_bytes", Kind::Gauge, "", "Memory of the process, without the page cache."),
    metric("oca_open_descriptors", Kind::Gauge, "", "File descriptors open."),
];
