//! Whether the values of a configuration go together, and with this machine.

use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, SystemTime},
};

use super::{Config, manifests, operators, reader::Reading, signing, steering, viewers};
use crate::{
    asset::{ByteCount, UnixTime},
    fill,
    net::tls::{Pair, PairFiles},
    serve, storage,
    telemetry::logging,
};

/// What this machine allows.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// File descriptors of a process (`RLIMIT_NOFILE`, hard limit).
    pub descriptors: u64,
    /// Memory maps of a process (`vm.max_map_count`).
    pub maps: u64,
    /// Connections that may wait to be accepted, per listener (`net.core.somaxconn`).
    pub backlog: u64,
    /// What its clock says, where the files that a configuration names lie on it and can be looked at.
    pub now: Option<UnixTime>,
}

impl Machine {
    /// What the system says of itself.
    pub fn here() -> Self {
        let descriptors = rlimit::getrlimit(rlimit::Resource::NOFILE).map_or(1024, |(_, hard)| hard);
        let number = |path: &str| std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
        let maps = number("/proc/sys/vm/max_map_count").unwrap_or(65_530);
        let backlog = number("/proc/sys/net/core/somaxconn").unwrap_or(u64::MAX);
        Self { descriptors, maps, backlog, now: Some(SystemTime::now().into()) }
    }
}

pub(super) fn check(config: &mut Config, reading: &Reading, machine: Machine) {
    check_required(config, reading);
    check_listeners(config, reading);
    check_certificates(config, reading, machine);
    signing::check(&config.serve.signing, reading, machine.now.is_some());
    viewers::check(&config.serve.clients, reading, machine.now.is_some());
    operators::check(&config.admin, reading, machine.now);
    steering::check(&config.steering, reading, machine.now.is_some());
    check_volumes(config, reading);
    check_sources(config, reading);
    manifests::check(&config.control, reading, machine.now.is_some());
    check_bounds(config, reading);
    super::nightly::check(config, reading);
    check_health(config, reading);
    fit_delays(config, reading);
    fit_to_machine(config, reading, machine);
    if let Err(why) = logging::check_filter(&config.telemetry.filter) {
        reading.add(
            reading.span("log.filter"),
            format!("log.filter is no filter: {why}"),
            "write for example \"info\" or \"oca::fill=debug,warn\"",
        );
    }
}

fn check_required(config: &Config, reading: &Reading) {
    let unreadable = ["serve.http", "serve.https"].into_iter().any(|key| reading.is_unreadable(key));
    if config.serve.http.is_empty() && config.serve.https.is_empty() && !unreadable {
        let help = "add to [serve]: http = [\"0.0.0.0:8080\"], or https";
        reading.add(reading.span("serve.http").or_else(|| reading.span("serve")), "serve.http names no address", help);
    }
    if config.storage.volumes.is_empty() && reading.span("storage.volume").is_none() {
        let help = "add [[storage.volume]] with path = \"/var/lib/oca/disk0\" and capacity = \"10 GiB\"";
        reading.add(None, "there is no volume to store on", help);
    }
    if config.fill.sources.is_empty() && reading.span("fill.source").is_none() {
        reading.add(
            None,
            "there is no source to fill from",
            "add [[fill.source]] with kind = \"origin\" and url = \"https://origin.example/\"",
        );
    }
}

fn check_listeners(config: &Config, reading: &Reading) {
    let mut seen: Vec<(&str, SocketAddr)> = Vec::new();
    let viewers = config.serve.http.iter().map(|address| ("serve.http", *address));
    let viewers = viewers.chain(config.serve.https.iter().map(|address| ("serve.https", *address)));
    for (key, address) in viewers.chain([("admin.listen", config.admin.listen)]) {
        if let Some((other_key, other)) = seen.iter().find(|(_, other)| overlap(*other, address)) {
            let span = reading.span(key).or_else(|| reading.span(other_key));
            let message = format!("{key} {address} and {other_key} {other} take the same port of the same address");
            reading.add(span, message, "give each listener a port of its own");
        }
        seen.push((key, address));
    }
}

/// Whether each certificate can be shown to viewers.
fn check_certificates(config: &Config, reading: &Reading, machine: Machine) {
    let (tls, at) = (&config.serve.tls, |key: String| reading.span(&key));
    let first_is_there = at("serve.tls.certificate".into()).or_else(|| at("serve.tls.key".into())).is_some();
    if !config.serve.https.is_empty() && !first_is_there && at("serve.tls.pair".into()).is_none() {
        let help = "add [serve.tls] with certificate = \"/etc/oca/tls/edge.pem\" and key = \"/etc/oca/tls/edge.key\"";
        reading.add(reading.span("serve.https"), "serve.https has no certificate to show", help);
    }
    let Some(now) = machine.now else { return };
    let mut pairs = tls.pairs.iter();
    let tables = (0..).map(|number| format!("serve.tls.pair[{number}]"));
    for (number, table) in ["serve.tls".into()].into_iter().chain(tables).enumerate() {
        let keys = ["certificate", "key"].map(|key| format!("{table}.{key}"));
        if number > 0 && keys.iter().all(|key| reading.span(key).is_none()) {
            return;
        }
        // Only what could be read became a pair.
        if !keys.iter().all(|key| reading.span(key).is_some() && !reading.is_unreadable(key)) {
            continue;
        }
        let Some(files) = pairs.next() else { return };
        if let Some((fault, help, of_key)) = fault_of(files, number > 0, now) {
            reading.add(reading.span(&keys[usize::from(of_key)]), fault, help);
        }
    }
}

fn fault_of(files: &PairFiles, is_further: bool, now: UnixTime) -> Option<(String, &'static str, bool)> {
    match Pair::load(files, now) {
        Ok(pair) if is_further && pair.names().is_empty() => {
            let fault =
                format!("{} names no host (subjectAltName), so that nobody is shown it", files.certificate.display());
            Some((fault, "have it issued for the host names that players use", false))
        }
        Ok(_) => None,
        Err(err) => {
            let help =
                "name a certificate in PEM, followed by those that link it to its authority, and its own private key";
            Some((err.to_string(), help, err.is_of_key(files)))
        }
    }
}

/// Whether two listeners cannot both be had. Port 0 is a free one each time.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let same_family = a.is_ipv4() == b.is_ipv4();
    a.port() != 0
        && a.port() == b.port()
        && same_family
        && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

fn check_volumes(config: &Config, reading: &Reading) {
    let volumes = &config.storage.volumes;
    for (number, volume) in volumes.iter().enumerate() {
        let key = |name: &str| format!("storage.volume[{number}].{name}");
        if let Some((other, _)) = volumes[..number].iter().zip(0..).find(|(other, _)| nested(&other.path, &volume.path))
        {
            let message = format!(
                "{} and {} are the same directory or one inside the other",
                other.path.display(),
                volume.path.display()
            );
            reading.add(
                reading.span(&key("path")),
                message,
                "give each volume a directory of its own, best on a disk of its own",
            );
        }
        let least = ByteCount(config.storage.block_size.bytes() * 4);
        if volume.capacity < least {
            reading.add(
                reading.span(&key("capacity")),
                format!("a capacity of {} holds less than four blocks", volume.capacity),
                format!("at least {least}"),
            );
        }
        if let Some(size) = file_system_size(&volume.path)
            && volume.capacity.0 > size
        {
            let size = ByteCount(size / (1 << 20) * (1 << 20));
            let message = format!("a capacity of {} is more than the file system has ({size})", volume.capacity);
            reading.add(reading.span(&key("capacity")), message, "leave about 2 % for the catalog and the file system");
        }
    }
}

fn nested(a: &Path, b: &Path) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

/// Bytes of the file system that a path lies on, or will.
fn file_system_size(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|ancestor| ancestor.exists())?;
    let stat = rustix::fs::statvfs(existing).ok()?;
    stat.f_blocks.checked_mul(stat.f_frsize)
}

fn check_sources(config: &Config, reading: &Reading) {
    let sources = &config.fill.sources;
    for (number, source) in sources.iter().enumerate() {
        if sources[..number].iter().any(|other| other.name == source.name) {
            let message = format!("two sources have the name '{}'", source.name);
            reading.add(
                reading.span("fill.source"),
                message,
                "give each a name of its own: logs and metrics tell them apart by it",
            );
        }
    }
    for source in sources.iter().filter(|source| source.files.certificate.is_some() != source.files.key.is_some()) {
        let message = format!("the source '{}' has one of tls_certificate and tls_key", source.name);
        reading.add(reading.span("fill.source"), message, "a certificate is shown with its key: name both, or neither");
    }
    check_site(config, reading);
}

/// Whether the boxes of a site can tell each other apart.
fn check_site(config: &Config, reading: &Reading) {
    let (site, at) = (&config.fill.site, |key: &str| reading.span(key));
    if site.peers_asked_max == 0 {
        let message = "fill.site.peers_asked_max is 0, so that no peer would ever be asked";
        reading.add(at("fill.site.peers_asked_max"), message, "at least 1; leave out the sources of kind \"peer\"");
    }
    if site.name.is_empty() {
        return;
    }
    // It stands in a field of HTTP, among others (RFC 8586).
    let is_name = |name: &str| {
        name.len() <= 64 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
    };
    if !is_name(&site.name) {
        let message = format!("fill.site.self \"{}\" cannot be sent as a name", site.name);
        reading.add(at("fill.site.self"), message, "up to 64 letters, digits, '-', '.' and '_'");
    }
    if config.fill.sources.iter().any(|source| source.kind == fill::SourceKind::Peer && source.name == site.name) {
        let message = format!("fill.site.self is \"{}\", and so is the name of a peer", site.name);
        reading.add(
            at("fill.site.self"),
            message,
            "name this box as its peers do, and leave it out of its own sources",
        );
    }
}

fn check_bounds(config: &Config, reading: &Reading) {
    let at = |key: &str| reading.span(key);
    let (serve, storage, catalog, fill) = (&config.serve, &config.storage, &config.catalog, &config.fill);
    let fault = |wrong: bool, key: &str, message: String, help: &str| {
        if wrong {
            reading.add(at(key), message, help);
        }
    };
    let (high, low) = (catalog.watermark_high_percent, catalog.watermark_low_percent);
    fault(
        high > 100 || high == 0,
        "catalog.watermark_high_percent",
        format!("{high} percent of the capacity"),
        "1 to 100",
    );
    fault(
        low >= high,
        "catalog.watermark_low_percent",
        format!("eviction ends at {low} percent, which is not below {high} percent, where it begins"),
        "set catalog.watermark_low_percent below catalog.watermark_high_percent",
    );
    let block = ByteCount(storage.block_size.bytes());
    fault(
        fill.fetch_max < block,
        "fill.fetch_max",
        format!("{} is less than a block of {block}", fill.fetch_max),
        "at least one block",
    );
    let (size, kib) = (serve.header_size_max.0, 1 << 10);
    fault(
        !(8 * kib..=kib * kib).contains(&size),
        "serve.header_size_max",
        format!("{} for a request's head", serve.header_size_max),
        "8 KiB to 1 MiB",
    );
    fault(
        !(16 * kib..=4 * kib * kib).contains(&serve.tls.write_buffer.0),
        "serve.tls.write_buffer",
        format!("{} encrypted at once", serve.tls.write_buffer),
        "16 KiB to 4 MiB",
    );
    let protocols = &serve.tls.protocols;
    fault(
        protocols.is_empty() || protocols.iter().enumerate().any(|(at, one)| protocols[..at].contains(one)),
        "serve.tls.protocols",
        "serve.tls.protocols names none, or one twice".into(),
        "[\"http/1.1\", \"h2\"], [\"h2\", \"http/1.1\"], or one of them",
    );
    fault(
        serve.receive_buffer.0 > 0 && !(16 * kib..=16 * kib * kib).contains(&serve.receive_buffer.0),
        "serve.receive_buffer",
        format!("{} that a client may send ahead", serve.receive_buffer),
        "16 KiB to 16 MiB, or \"0 B\" to leave it to the kernel",
    );
    fault(
        !(16 * kib..=4 * kib * kib).contains(&serve.http2.send_buffer.0),
        "serve.http2.send_buffer",
        format!("{} waiting for one stream", serve.http2.send_buffer),
        "16 KiB to 4 MiB",
    );
    fault(
        serve.http2.control_frames_max < 50,
        "serve.http2.control_frames_max",
        format!("{} frames that ask for nothing", serve.http2.control_frames_max),
        "at least 50: browsers open with a dozen",
    );
    fault(
        storage.window.0 < 64 * kib,
        "storage.window",
        format!("a window of {}", storage.window),
        "at least 64 KiB; 1 MiB to 4 MiB serve well",
    );
    fault(
        storage.sync_batch_max > storage.sync_queue_max,
        "storage.sync_batch_max",
        format!("a batch of {} cannot come from a queue of {}", storage.sync_batch_max, storage.sync_queue_max),
        "set storage.sync_batch_max to at most storage.sync_queue_max",
    );
    fault(
        fill.retry_delay > fill.retry_delay_max,
        "fill.retry_delay",
        "the first wait is longer than the longest".into(),
        "set fill.retry_delay to at most fill.retry_delay_max",
    );
    fault(
        !is_token(&serve.server_name),
        "serve.server_name",
        format!("{:?} cannot stand in Cache-Status (RFC 8941, 3.3.4)", serve.server_name),
        "letters, digits and -._, of which the first is a letter",
    );
    for origin in serve.cors.origins.iter().filter(|origin| !is_origin(origin)) {
        reading.add(
            reading.span("serve.cors.origins"),
            format!("{origin:?} is no origin of a web page (RFC 6454, 6.2)"),
            "\"https://www.example.com\", with a port where it has another; \"*\" for all",
        );
    }
    let streams = serve.http2.streams_max;
    fault(streams > 10_000, "serve.http2.streams_max", format!("{streams} streams of one connection"), "1 to 10000");
    for (key, count) in [
        ("serve.connections_max", serve.connections_max),
        ("serve.backlog", usize::try_from(serve.backlog).unwrap_or(usize::MAX)),
        ("serve.header_count_max", serve.header_count_max),
        ("serve.ranges_max", serve.ranges_max),
        ("serve.tls.handshakes_max", serve.tls.handshakes_max),
        ("serve.http2.streams_max", usize::try_from(serve.http2.streams_max).unwrap_or(usize::MAX)),
        ("storage.cold_reads_max", storage.cold_reads_max),
        ("storage.sync_batch_max", storage.sync_batch_max),
        ("catalog.assets_max", catalog.assets_max),
        ("catalog.touch_queue_max", catalog.touch_queue_max),
        ("catalog.demand_queue_max", catalog.demand_queue_max),
        ("fill.fetches_max", fill.fetches_max),
        ("admin.connections_max", config.admin.connections_max),
        ("admin.streams_max", config.admin.streams_max),
        ("log.access.queue_max", config.telemetry.access.queue_max),
    ] {
        fault(count == 0, key, format!("{key} is 0, so that nothing would ever work"), "at least 1");
    }
    fault(
        storage.cold_reads_max > crate::sys::uring::IN_FLIGHT_MOST,
        "storage.cold_reads_max",
        "no ring of the kernel's has room for so many reads at once".into(),
        "at most 4096",
    );
    for (key, time) in [
        ("serve.header_timeout", serve.header_timeout),
        ("serve.idle_timeout", serve.idle_timeout),
        ("serve.idle_timeout_overloaded", serve.idle_timeout_overloaded),
        ("serve.stall_timeout", serve.stall_timeout),
        ("serve.send_rate_window", serve.send_rate_window),
        ("serve.miss_timeout", serve.miss_timeout),
        ("serve.tls.check_interval", serve.tls.check_interval),
        ("serve.signing.check_interval", serve.signing.check_interval),
        ("serve.clients.check_interval", serve.clients.check_interval),
        ("admin.check_interval", config.admin.check_interval),
        ("control.check_interval", config.control.check_interval),
        ("serve.tls.handshake_timeout", serve.tls.handshake_timeout),
        ("storage.probe_interval", storage.probe_interval),
        ("storage.probe_timeout", storage.probe_timeout),
    ] {
        fault(time < Duration::from_millis(10), key, format!("{key} leaves no time at all"), "at least 10 ms");
    }
}

/// Whether it can name a cache as it is written (RFC 8941, 3.3.4).
fn is_token(name: &str) -> bool {
    let may_stand = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte);
    name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '*') && name.bytes().all(may_stand)
}

/// Whether a browser may send it as the `Origin` of a page.
fn is_origin(origin: &str) -> bool {
    let is_one = |(scheme, host): (&str, &str)| {
        !scheme.is_empty()
            && !host.is_empty()
            && !host.contains('/')
            && origin.bytes().all(|byte| byte.is_ascii_graphic())
    };
    origin == "*" || origin == "null" || origin.split_once("://").is_some_and(is_one)
}

fn check_health(config: &Config, reading: &Reading) {
    let health = &config.health;
    for (key, percent, least, most) in [
        ("calm_percent", health.calm_percent, 1, 100),
        ("comfort_percent", health.comfort_percent, 1, 100),
        ("errors_percent", health.errors_percent, 0, 100),
        ("disk_free_percent", health.disk_free_percent, 0, 50),
        ("fill_failures_percent", health.fill_failures_percent, 0, 100),
        ("fill_queue_percent", health.fill_queue_percent, 1, 100),
        ("memory_free_percent", health.memory_free_percent, 0, 50),
        ("descriptors_percent", health.descriptors_percent, 1, 100),
        ("egress_percent", health.egress_percent, 1, 100),
        ("connections_percent", health.connections_percent, 1, 100),
    ] {
        if !(least..=most).contains(&percent) {
            let key = format!("health.{key}");
            reading.add(reading.span(&key), format!("{percent} percent"), format!("{least} to {most}"));
        }
    }
    for (key, time) in [("health.interval", health.interval), ("health.queue_delay_max", health.queue_delay_max)] {
        if !(Duration::from_millis(10)..=Duration::from_secs(60)).contains(&time) {
            reading.add(reading.span(key), format!("{key} is no time to judge by"), "10 ms to 1 min");
        }
    }
    let refuses = config.serve.queue_delay_max;
    if reading.span("serve.queue_delay_max").is_some()
        && reading.span("health.queue_delay_max").is_some()
        && !refuses.is_zero()
        && refuses < health.queue_delay_max
    {
        let message = "requests would be refused before steering is asked for less: serve.queue_delay_max is below health.queue_delay_max";
        reading.add(
            reading.span("serve.queue_delay_max"),
            message,
            "at least health.queue_delay_max, or \"0 s\": none are refused",
        );
    }
    let percent = config.serve.connections_percent;
    if !(1..=100).contains(&percent) {
        reading.add(reading.span("serve.connections_percent"), format!("{percent} percent"), "1 to 100");
    }
    let percent = config.serve.newcomers_percent;
    if !(1..=90).contains(&percent) {
        reading.add(reading.span("serve.newcomers_percent"), format!("{percent} percent"), "1 to 90");
    }
    let permille = config.serve.costly_permille;
    if !(1..=1000).contains(&permille) {
        reading.add(reading.span("serve.costly_permille"), format!("{permille} thousandths"), "1 to 1000");
    }
    let percent = config.serve.client_percent;
    if !(1..=100).contains(&percent) {
        reading.add(reading.span("serve.client_percent"), format!("{percent} percent"), "1 to 100");
    }
    if !(health.interval..=Duration::from_secs(3600)).contains(&health.window) {
        let message = "health.window is not longer than health.interval, or longer than an hour";
        reading.add(reading.span("health.window"), message, "10 s to 1 min serve well");
    }
}

/// Steering is asked for less before requests are refused: where the operator has set one of the delays, the other one's default gives
/// way.
fn fit_delays(config: &mut Config, reading: &Reading) {
    let (refused, told) = (config.serve.queue_delay_max, config.health.queue_delay_max);
    if refused.is_zero() || refused >= told {
        return;
    }
    if reading.span("serve.queue_delay_max").is_none() {
        config.serve.queue_delay_max = told;
    } else if reading.span("health.queue_delay_max").is_none() {
        config.health.queue_delay_max = refused;
    }
}

/// Compares limits that draw on the same resource. What the operator has set is kept or refused; defaults give way.
fn fit_to_machine(config: &mut Config, reading: &Reading, machine: Machine) {
    let wanted = (config.serve.connections_max, config.storage.mappings_max);
    fit_limits(config, reading, machine);
    let (serve, storage) = (&config.serve, &config.storage);
    if wanted != (serve.connections_max, storage.mappings_max) {
        let all = wanted.0.saturating_add(wanted.1).saturating_add(serve.descriptors_reserved);
        config.shortages.push(format!(
            "{} file descriptors and {} memory maps are too few for {} connections and {} mapped assets: it goes on with {} and {}; raise \
             the hard limit of open files (LimitNOFILE= in the unit, ulimit -Hn) to {all} and vm.max_map_count to {}, or set \
             serve.connections_max and storage.mappings_max",
            machine.descriptors,
            machine.maps,
            wanted.0,
            wanted.1,
            serve.connections_max,
            storage.mappings_max,
            wanted.1.saturating_mul(2)
        ));
    }
    if u64::from(serve.backlog) > machine.backlog {
        config.shortages.push(format!(
            "the kernel lets {} connections wait to be accepted, serve.backlog asks for {}: set net.core.somaxconn to that",
            machine.backlog, serve.backlog
        ));
    }
}

fn fit_limits(config: &mut Config, reading: &Reading, machine: Machine) {
    let (serve, storage) = (&mut config.serve, &mut config.storage);
    // Who writes out a default has not chosen another value: it gives way all the same.
    let set = |key: &str, is_default: bool| reading.span(key).filter(|_| !is_default);
    let set_connections =
        set("serve.connections_max", serve.connections_max == serve::Config::default().connections_max);
    let set_mappings = set("storage.mappings_max", storage.mappings_max == storage::Config::default().mappings_max);
    let limit = usize::try_from(machine.descriptors).unwrap_or(usize::MAX);
    // A process has other maps than those of assets.
    let maps = usize::try_from(machine.maps / 5 * 4).unwrap_or(usize::MAX);
    if storage.mappings_max > maps {
        match set_mappings.clone() {
            Some(span) => reading.add(
                Some(span),
                format!(
                    "{} mappings are more than vm.max_map_count ({}) leaves room for",
                    storage.mappings_max, machine.maps
                ),
                format!("at most {maps}, or raise vm.max_map_count"),
            ),
            None => storage.mappings_max = maps,
        }
    }
    let needed = |connections: usize, mappings: usize| {
        connections.saturating_add(mappings).saturating_add(serve.descriptors_reserved)
    };
    if needed(serve.connections_max, storage.mappings_max) <= limit {
        return;
    }
    let left = limit.saturating_sub(serve.descriptors_reserved);
    let share = |of: usize, other: usize| left.saturating_mul(of) / of.saturating_add(other).max(1);
    match (&set_connections, &set_mappings) {
        // Both give way alike.
        (None, None) => {
            let (connections, mappings) = (serve.connections_max, storage.mappings_max);
            serve.connections_max = share(connections, mappings).max(CONNECTIONS_LEAST);
            storage.mappings_max = share(mappings, connections).max(MAPPINGS_LEAST);
        }
        (Some(_), None) => storage.mappings_max = left.saturating_sub(serve.connections_max).max(MAPPINGS_LEAST),
        (None, Some(_)) => serve.connections_max = left.saturating_sub(storage.mappings_max).max(CONNECTIONS_LEAST),
        (Some(_), Some(_)) => {}
    }
    let needed = serve.connections_max.saturating_add(storage.mappings_max).saturating_add(serve.descriptors_reserved);
    if needed > limit {
        reading.add(
            set_connections.or(set_mappings).or_else(|| reading.span("serve.descriptors_reserved")),
            format!(
                "connections ({}), mappings ({}) and the reserve ({}) need {needed} file descriptors, a process may have {limit}",
                serve.connections_max, storage.mappings_max, serve.descriptors_reserved
            ),
            "lower serve.connections_max or storage.mappings_max, or raise the limit (LimitNOFILE= in the unit)",
        );
    }
}

/// Below this, defaults do not give way any more.
const MAPPINGS_LEAST: usize = 128;
const CONNECTIONS_LEAST: usize = 128;
