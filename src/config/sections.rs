//! Which key of the file is which field of which module's configuration.

use super::{Config, nightly, reader::Section, steering};
use crate::{
    admin, control,
    fill::{self, SourceConfig, SourceKind, SourceLocation},
    health,
    net::{
        bucket::StoreConfig,
        client::ClientFiles,
        tls::{OperatorFiles, PairFiles},
    },
    serve::{self, clients, signing},
    storage, telemetry,
};

/// Reads the whole file.
pub(super) fn read(mut root: Section<'_, '_>, config: &mut Config) {
    read_serve(root.section("serve"), &mut config.serve);
    read_storage(root.section("storage"), &mut config.storage);
    let mut catalog = root.section("catalog");
    let into = &mut config.catalog;
    catalog.read("watermark_high_percent", &mut into.watermark_high_percent);
    catalog.read("watermark_low_percent", &mut into.watermark_low_percent);
    catalog.read("admission", &mut into.admission);
    catalog.read("assets_max", &mut into.assets_max);
    catalog.read("touch_queue_max", &mut into.touch_queue_max);
    catalog.read("demand_queue_max", &mut into.demand_queue_max);
    catalog.read("negative_max", &mut into.negative_max);
    catalog.read("negative_ttl", &mut into.negative_ttl);
    catalog.read("failure_ttl", &mut into.failure_ttl);
    catalog.finish();
    read_fill(root.section("fill"), &mut config.fill);
    read_control(root.section("control"), &mut config.control);
    config.fill.by_manifest = config.control.source_urls.iter().map(SourceConfig::by_manifest).collect();
    read_admin(root.section("admin"), &mut config.admin);
    read_health(root.section("health"), &mut config.health);
    steering::read(root.section("steering"), &mut config.steering);
    read_log(root.section("log"), &mut config.telemetry);
    let mut process = root.section("process");
    process.read("sandbox", &mut config.process.sandbox);
    process.finish();
    root.finish();
}

fn read_serve(mut section: Section<'_, '_>, into: &mut serve::Config) {
    section.read("http", &mut into.http);
    section.read("https", &mut into.https);
    section.read("workers", &mut into.workers);
    section.read("connections_max", &mut into.connections_max);
    section.read("descriptors_reserved", &mut into.descriptors_reserved);
    section.read("backlog", &mut into.backlog);
    section.read("receive_buffer", &mut into.receive_buffer);
    section.read("header_timeout", &mut into.header_timeout);
    section.read("header_size_max", &mut into.header_size_max);
    section.read("header_count_max", &mut into.header_count_max);
    section.read("idle_timeout", &mut into.idle_timeout);
    section.read("idle_timeout_overloaded", &mut into.idle_timeout_overloaded);
    section.read("connections_percent", &mut into.connections_percent);
    section.read("queue_delay_max", &mut into.queue_delay_max);
    section.read("newcomers_percent", &mut into.newcomers_percent);
    section.read("costly_permille", &mut into.costly_permille);
    section.read("client_percent", &mut into.client_percent);
    section.read("refuse_delay", &mut into.refuse_delay);
    section.read("stall_timeout", &mut into.stall_timeout);
    section.read("send_rate_min", &mut into.send_rate_min);
    section.read("send_rate_window", &mut into.send_rate_window);
    section.read("linger_timeout", &mut into.linger_timeout);
    section.read("linger_max", &mut into.linger_max);
    section.read("miss_timeout", &mut into.miss_timeout);
    section.read("revalidate_timeout", &mut into.revalidate_timeout);
    section.read("retry_after", &mut into.retry_after);
    section.read("ranges_max", &mut into.ranges_max);
    section.read("send_buffer", &mut into.send_buffer);
    section.read("near_rtt", &mut into.near_rtt);
    section.read("near_send_buffer", &mut into.near_send_buffer);
    section.read("recall_max", &mut into.recall_max);
    section.read("unsent_max", &mut into.unsent_max);
    section.read("query_in_key", &mut into.query_in_key);
    section.read("server_name", &mut into.server_name);
    section.read("drain_delay", &mut into.drain_delay);
    section.read("drain_timeout", &mut into.drain_timeout);
    let mut cors = section.section("cors");
    cors.read("origins", &mut into.cors.origins);
    cors.read("max_age", &mut into.cors.max_age);
    cors.finish();
    read_tls(section.section("tls"), &mut into.tls);
    read_clients(section.section("clients"), &mut into.clients);
    read_signing(section.section("signing"), &mut into.signing);
    let mut http2 = section.section("http2");
    http2.read("streams_max", &mut into.http2.streams_max);
    http2.read("pending_resets_max", &mut into.http2.pending_resets_max);
    http2.read("local_resets_max", &mut into.http2.local_resets_max);
    http2.read("abandoned_max", &mut into.http2.abandoned_max);
    http2.read("control_frames_max", &mut into.http2.control_frames_max);
    http2.read("send_buffer", &mut into.http2.send_buffer);
    http2.finish();
    section.finish();
}

fn read_tls(mut section: Section<'_, '_>, into: &mut serve::Tls) {
    section.read("protocols", &mut into.protocols);
    section.read("check_interval", &mut into.check_interval);
    section.read("handshake_timeout", &mut into.handshake_timeout);
    section.read("handshakes_max", &mut into.handshakes_max);
    section.read("write_buffer", &mut into.write_buffer);
    section.read("kernel", &mut into.kernel);
    // Nobody needs TLS; who has any of it needs the first pair.
    let first = read_pair(&mut section, false);
    let mut further = section.sections("pair");
    if !further.is_empty() && !section.has("certificate") && !section.has("key") {
        section.missing("certificate", CERTIFICATE);
    }
    into.pairs.extend(first);
    into.pairs.extend(further.iter_mut().filter_map(|pair| read_pair(pair, true)));
    further.into_iter().for_each(Section::finish);
    section.finish();
}

fn read_clients(mut section: Section<'_, '_>, into: &mut clients::Config) {
    section.read("allow", &mut into.allow);
    section.read("allow_file", &mut into.allow_file);
    section.read("check_interval", &mut into.check_interval);
    section.read("connections_max", &mut into.connections_max);
    section.read("request_rate", &mut into.request_rate);
    section.read("request_burst", &mut into.request_burst);
    section.read("ipv4_prefix", &mut into.ipv4_prefix);
    section.read("ipv6_prefix", &mut into.ipv6_prefix);
    section.read("table_max", &mut into.table_max);
    section.read("unlimited", &mut into.unlimited);
    section.finish();
}

fn read_signing(mut section: Section<'_, '_>, into: &mut signing::Config) {
    section.read("default", &mut into.default);
    section.read("check_interval", &mut into.check_interval);
    section.read("audience", &mut into.audience);
    section.read("leeway", &mut into.leeway);
    section.read("token_size_max", &mut into.token_size_max);
    section.read("regex_size_max", &mut into.regex_size_max);
    section.read("verified_max", &mut into.verified_max);
    section.read("nonces_max", &mut into.nonces_max);
    section.read("renewal_key", &mut into.renewal_key);
    section.read("issuer", &mut into.issuer);
    for mut rule in section.sections("rule") {
        let prefix = rule.require("prefix", "\"/films/\"");
        let policy = rule.require("policy", "\"required\"");
        into.rules.extend(prefix.zip(policy).map(|(prefix, policy)| signing::Rule { prefix, policy }));
        rule.finish();
    }
    for mut set in section.sections("key_set") {
        let path = set.require("path", "\"/etc/oca/keys/signing.json\"");
        let form = set.require("form", "\"uri-signing\"");
        let mut issuers = Vec::new();
        set.read("issuers", &mut issuers);
        into.key_sets.extend(path.zip(form).map(|(path, form)| signing::KeySet { path, form, issuers }));
        set.finish();
    }
    section.finish();
}

const CERTIFICATE: &str = "\"/etc/oca/tls/edge.pem\"";
const KEY: &str = "\"/etc/oca/tls/edge.key\"";

pub(super) fn read_pair(section: &mut Section<'_, '_>, required: bool) -> Option<PairFiles> {
    let (mut certificate, mut key) = (None, None);
    match (section.read("certificate", &mut certificate), section.read("key", &mut key)) {
        (true, true) => {}
        (true, false) => section.missing("key", KEY),
        (false, true) => section.missing("certificate", CERTIFICATE),
        (false, false) if required => {
            section.missing("certificate", CERTIFICATE);
            section.missing("key", KEY);
        }
        (false, false) => {}
    }
    Some(PairFiles { certificate: certificate?, key: key? })
}

fn read_storage(mut section: Section<'_, '_>, into: &mut storage::Config) {
    section.read("block_size", &mut into.block_size);
    section.read("mappings_max", &mut into.mappings_max);
    section.read("window", &mut into.window);
    section.read("engine", &mut into.engine);
    section.read("cold_reads_max", &mut into.cold_reads_max);
    section.read("residency_trust", &mut into.residency_trust);
    section.read("sync_interval", &mut into.sync_interval);
    section.read("sync_batch_max", &mut into.sync_batch_max);
    section.read("sync_queue_max", &mut into.sync_queue_max);
    section.read("scrub_rate", &mut into.scrub_rate);
    section.read("read_errors_max", &mut into.read_errors_max);
    section.read("probe_interval", &mut into.probe_interval);
    section.read("probe_timeout", &mut into.probe_timeout);
    for mut volume in section.sections("volume") {
        let path = volume.require("path", "\"/var/lib/oca/disk0\"");
        let capacity = volume.require("capacity", "\"10 GiB\"");
        if let (Some(path), Some(capacity)) = (path, capacity) {
            into.volumes.push(storage::VolumeConfig { path, capacity });
        }
        volume.finish();
    }
    section.finish();
}

fn read_fill(mut section: Section<'_, '_>, into: &mut fill::Config) {
    section.read("read_ahead", &mut into.read_ahead);
    section.read("fetch_max", &mut into.fetch_max);
    section.read("whole_asset_max", &mut into.whole_asset_max);
    section.read("fetches_max", &mut into.fetches_max);
    section.read("attempts_max", &mut into.attempts_max);
    section.read("retry_delay", &mut into.retry_delay);
    section.read("retry_delay_max", &mut into.retry_delay_max);
    section.read("pass_through_max", &mut into.pass_through_max);
    let mut freshness = section.section("freshness");
    freshness.read("immutable", &mut into.freshness.immutable);
    freshness.read("default_ttl", &mut into.freshness.default_ttl);
    freshness.read("ttl_max", &mut into.freshness.ttl_max);
    freshness.read("stale_if_error", &mut into.freshness.stale_if_error);
    freshness.finish();
    let mut site = section.section("site");
    site.read("self", &mut into.site.name);
    site.read("peers_asked_max", &mut into.site.peers_asked_max);
    site.finish();
    nightly::read_windows(section.sections("window"), &mut into.nightly);
    nightly::read(section.section("nightly"), &mut into.nightly);
    for mut source in section.sections("source") {
        let kind: Option<SourceKind> = source.require("kind", "\"origin\"");
        let location: Option<SourceLocation> = source.require("url", "\"https://origin.example/\"");
        let known = kind.zip(location.clone());
        let (kind, location) = known.clone().unwrap_or((SourceKind::Origin, SourceLocation::Directory("/".into())));
        let label = kind.label();
        let number = into.sources.iter().filter(|other| other.kind == kind).count();
        let mut made = SourceConfig::new(format!("{label}-{number}"), kind, location);
        source.read("name", &mut made.name);
        source.read("connections_max", &mut made.connections_max);
        source.read("connect_timeout", &mut made.connect_timeout);
        source.read("response_timeout", &mut made.response_timeout);
        source.read("stall_timeout", &mut made.stall_timeout);
        source.read("failures_max", &mut made.failures_max);
        source.read("retry_after", &mut made.retry_after);
        source.read("set_aside_max", &mut made.set_aside_max);
        source.read("cost", &mut made.cost);
        source.read("escalate_after", &mut made.escalate_after);
        source.read("rate_max", &mut made.rate_max);
        read_client_files(&mut source, &mut made.files);
        read_store(&mut source, &mut made.store);
        source.read("allow_redirects_to", &mut made.redirects.hosts);
        source.read("allow_private", &mut made.redirects.allow_private);
        into.sources.extend(known.map(|_| made));
        source.finish();
    }
    // Nearest first, whatever the order in the file; within a kind, that order.
    into.sources.sort_by_key(|source| source.kind);
    section.finish();
}

fn read_client_files(section: &mut Section<'_, '_>, into: &mut ClientFiles) {
    section.read("tls_certificate", &mut into.certificate);
    section.read("tls_key", &mut into.key);
    section.read("tls_authorities", &mut into.authorities);
    section.read("headers", &mut into.headers);
}

fn read_store(section: &mut Section<'_, '_>, into: &mut StoreConfig) {
    section.read("endpoint", &mut into.endpoint);
    section.read("region", &mut into.region);
    section.read("credentials", &mut into.credentials);
    section.read("bucket_in_host", &mut into.bucket_in_host);
}

fn read_health(mut section: Section<'_, '_>, into: &mut health::Config) {
    section.read("interval", &mut into.interval);
    section.read("window", &mut into.window);
    section.read("calm_percent", &mut into.calm_percent);
    section.read("egress_capacity", &mut into.egress_capacity);
    section.read("comfort_percent", &mut into.comfort_percent);
    section.read("errors_percent", &mut into.errors_percent);
    section.read("first_byte_max", &mut into.first_byte_max);
    section.read("cold_wait_max", &mut into.cold_wait_max);
    section.read("probe_max", &mut into.probe_max);
    section.read("disk_free_percent", &mut into.disk_free_percent);
    section.read("fill_failures_percent", &mut into.fill_failures_percent);
    section.read("fill_queue_percent", &mut into.fill_queue_percent);
    section.read("manifest_age_max", &mut into.manifest_age_max);
    section.read("memory_free_percent", &mut into.memory_free_percent);
    section.read("descriptors_percent", &mut into.descriptors_percent);
    section.read("clock_jump_max", &mut into.clock_jump_max);
    section.read("clock_jump_memory", &mut into.clock_jump_memory);
    section.read("certificate_notice", &mut into.certificate_notice);
    section.read("egress_percent", &mut into.egress_percent);
    section.read("connections_percent", &mut into.connections_percent);
    section.read("queue_delay_max", &mut into.queue_delay_max);
    section.finish();
}

fn read_control(mut section: Section<'_, '_>, into: &mut control::Config) {
    section.read("pull", &mut into.pull);
    read_client_files(&mut section, &mut into.files);
    let mut store = section.section("store");
    read_store(&mut store, &mut into.store);
    store.finish();
    section.read("keys", &mut into.keys);
    section.read("revoked", &mut into.revoked);
    section.read("threshold", &mut into.threshold);
    section.read("appliance", &mut into.identity.appliance);
    section.read("site", &mut into.identity.site);
    section.read("groups", &mut into.identity.groups);
    section.read("state", &mut into.state);
    section.read("interval", &mut into.interval);
    section.read("retry_delay", &mut into.retry_delay);
    section.read("connect_timeout", &mut into.connect_timeout);
    section.read("response_timeout", &mut into.response_timeout);
    section.read("stall_timeout", &mut into.stall_timeout);
    section.read("stale_after", &mut into.stale_after);
    section.read("waiting_max", &mut into.waiting_max);
    section.read("check_interval", &mut into.check_interval);
    section.read("source_urls", &mut into.source_urls);
    section.read("size_max", &mut into.limits.size_max);
    section.read("expanded_max", &mut into.limits.expanded_max);
    section.read("ratio_max", &mut into.limits.ratio_max);
    section.read("assets_max", &mut into.limits.assets_max);
    section.read("blocks_max", &mut into.limits.blocks_max);
    section.read("purges_max", &mut into.limits.purges_max);
    section.finish();
}

fn read_admin(mut section: Section<'_, '_>, into: &mut admin::Config) {
    section.read("listen", &mut into.listen);
    section.read("connections_max", &mut into.connections_max);
    section.read("token_file", &mut into.token_file);
    section.read("hosts", &mut into.hosts);
    section.read("probes_open", &mut into.probes_open);
    section.read("check_interval", &mut into.check_interval);
    section.read("history", &mut into.history);
    section.read("streams_max", &mut into.streams_max);
    let is_there = section.has("tls");
    let mut tls = section.section("tls");
    let pair = read_pair(&mut tls, is_there);
    let mut client_ca = None;
    tls.read("client_ca", &mut client_ca);
    into.tls = pair.map(|pair| OperatorFiles { pair, client_ca });
    tls.finish();
    section.finish();
}

fn read_log(mut section: Section<'_, '_>, into: &mut telemetry::Config) {
    section.read("filter", &mut into.filter);
    section.read("format", &mut into.format);
    let mut access = section.section("access");
    access.read("path", &mut into.access.path);
    access.read("format", &mut into.access.format);
    access.read("queue_max", &mut into.access.queue_max);
    access.finish();
    section.finish();
}
