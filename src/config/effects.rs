//! Which keys take effect while the appliance runs, when the file is read again (`SIGHUP`), and which at the next start.
//!
//! docs/reload.md is made from the table here; a test holds the table against config/appliance.toml.

use std::collections::{BTreeMap, BTreeSet};

use Effect::{AtOnce, NewConnections, NextRequest, Restart};

/// When a changed key takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// As soon as the file was read again.
    AtOnce,
    /// With the next request, of connections that exist too.
    NextRequest,
    /// With the next connection; those that exist go on as they began.
    NewConnections,
    /// With the next start, for this reason.
    Restart(&'static str),
}

/// What each key came to, set or by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings(BTreeMap<String, String>);

/// What differs between the configuration that runs and the file as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Keys that can be taken over. In order.
    pub live: Vec<String>,
    /// Keys that need a restart, and why. In order.
    pub restart: Vec<(String, &'static str)>,
}

impl Settings {
    pub(super) fn new(values: BTreeMap<String, String>) -> Self {
        Self(values)
    }

    /// What has to change to get from these, which run, to `new`.
    pub fn changes(&self, new: &Self) -> Changes {
        let mut changes = Changes::default();
        let keys: BTreeSet<&String> = self.0.keys().chain(new.0.keys()).collect();
        for key in keys.into_iter().filter(|key| self.0.get(*key) != new.0.get(*key)) {
            match effect_of(key) {
                Some(Restart(why)) => changes.restart.push((key.clone(), why)),
                Some(_) => changes.live.push(key.clone()),
                None => changes.restart.push((key.clone(), "nothing is known of it")),
            }
        }
        changes
    }

    /// Takes over from `new` what takes effect without a restart.
    pub fn take_over(&mut self, new: Self) {
        let is_live = |key: &String| !matches!(effect_of(key), Some(Restart(_)) | None);
        self.0.retain(|key, _| !is_live(key));
        self.0.extend(new.0.into_iter().filter(|(key, _)| is_live(key)));
    }
}

/// The effect of a key as the reader names it (`fill.source[2].url`).
pub(super) fn effect_of(key: &str) -> Option<Effect> {
    let plain = without_numbers(key);
    let (table, name) = plain.rsplit_once('.').unwrap_or(("", &plain));
    let group = TABLE.iter().find(|(of, _, names)| *of == table && names.contains(&name))?;
    Some(group.1)
}

fn without_numbers(key: &str) -> String {
    let mut plain = String::with_capacity(key.len());
    for part in key.split('[') {
        plain.push_str(part.split_once(']').map_or(part, |(_, rest)| rest));
    }
    plain
}

const ADDRESSES: Effect = Restart("addresses are bound before the process gives up the right to");
const THREADS: Effect = Restart("threads, and what each of them owns, are made at the start");
const ROOM: Effect = Restart("room for it is made at the start");
const DISK: Effect = Restart("volumes are opened at the start, before anything is served from them");
const FILES: Effect = Restart("the files that may be opened are settled at the start");
const NAME: Effect = Restart("others know this box by it for as long as it runs");
const CONTROL: Effect =
    Restart("what a manifest was taken by stays the same while it is in force; key files are read again by themselves");
const SHOWN: Effect = Restart("how messages are written is settled at the start");

/// Each key of the file, by the table that it stands in. In the order of the reference.
pub(super) const TABLE: &[(&str, Effect, &[&str])] = &[
    ("serve", ADDRESSES, &["http", "https", "backlog", "receive_buffer"]),
    ("serve", THREADS, &["workers", "descriptors_reserved"]),
    (
        "serve",
        AtOnce,
        &[
            "connections_max",
            "header_timeout",
            "idle_timeout",
            "idle_timeout_overloaded",
            "connections_percent",
            "queue_delay_max",
            "newcomers_percent",
            "costly_permille",
            "client_percent",
            "stall_timeout",
            "send_rate_min",
            "send_rate_window",
            "drain_delay",
            "drain_timeout",
        ],
    ),
    (
        "serve",
        NextRequest,
        &[
            "header_size_max",
            "header_count_max",
            "refuse_delay",
            "linger_timeout",
            "linger_max",
            "miss_timeout",
            "revalidate_timeout",
            "retry_after",
            "ranges_max",
            "recall_max",
            "query_in_key",
            "server_name",
        ],
    ),
    ("serve", NewConnections, &["send_buffer", "near_rtt", "near_send_buffer", "unsent_max"]),
    ("serve.cors", NextRequest, &["origins", "max_age"]),
    ("serve.tls", NewConnections, &["certificate", "key", "handshake_timeout", "handshakes_max", "write_buffer"]),
    ("serve.tls", Restart("the kernel is asked, and keys of tickets are made, at the start"), &["protocols", "kernel"]),
    ("serve.tls", AtOnce, &["check_interval"]),
    ("serve.tls.pair", NewConnections, &["certificate", "key"]),
    (
        "serve.clients",
        NewConnections,
        &[
            "allow",
            "allow_file",
            "connections_max",
            "request_rate",
            "request_burst",
            "ipv4_prefix",
            "ipv6_prefix",
            "table_max",
            "unlimited",
        ],
    ),
    ("serve.clients", AtOnce, &["check_interval"]),
    (
        "serve.signing",
        NextRequest,
        &[
            "default",
            "audience",
            "leeway",
            "token_size_max",
            "regex_size_max",
            "verified_max",
            "nonces_max",
            "renewal_key",
            "issuer",
        ],
    ),
    ("serve.signing", AtOnce, &["check_interval"]),
    ("serve.signing.rule", NextRequest, &["prefix", "policy"]),
    ("serve.signing.key_set", NextRequest, &["path", "form", "issuers"]),
    (
        "serve.http2",
        NewConnections,
        &[
            "streams_max",
            "pending_resets_max",
            "local_resets_max",
            "abandoned_max",
            "control_frames_max",
            "send_buffer",
        ],
    ),
    ("storage", DISK, &["block_size", "sync_interval", "sync_batch_max", "sync_queue_max", "scrub_rate"]),
    ("storage", DISK, &["read_errors_max", "probe_interval", "probe_timeout"]),
    ("storage", ROOM, &["mappings_max", "engine", "cold_reads_max", "residency_trust"]),
    ("storage", NextRequest, &["window"]),
    ("storage.volume", DISK, &["path"]),
    ("storage.volume", AtOnce, &["capacity"]),
    ("catalog", AtOnce, &["watermark_high_percent", "watermark_low_percent", "assets_max"]),
    ("catalog", NextRequest, &["admission", "negative_ttl", "failure_ttl"]),
    ("catalog", ROOM, &["touch_queue_max", "demand_queue_max", "negative_max"]),
    (
        "fill",
        NextRequest,
        &["read_ahead", "fetch_max", "whole_asset_max", "attempts_max", "retry_delay", "retry_delay_max"],
    ),
    ("fill", ROOM, &["fetches_max", "pass_through_max"]),
    ("fill.freshness", NextRequest, &["immutable", "default_ttl", "ttl_max", "stale_if_error"]),
    ("fill.site", NAME, &["self"]),
    ("fill.site", NextRequest, &["peers_asked_max"]),
    (
        "fill.source",
        NextRequest,
        &[
            "kind",
            "url",
            "name",
            "connections_max",
            "connect_timeout",
            "response_timeout",
            "stall_timeout",
            "failures_max",
            "retry_after",
            "set_aside_max",
            "cost",
            "escalate_after",
            "rate_max",
            "tls_certificate",
            "tls_key",
            "tls_authorities",
            "headers",
            "allow_redirects_to",
            "allow_private",
            "endpoint",
            "region",
            "credentials",
            "bucket_in_host",
        ],
    ),
    ("fill.window", AtOnce, &["days", "from", "to", "rate"]),
    (
        "fill.nightly",
        AtOnce,
        &[
            "time_zone",
            "rate_outside",
            "assets_at_once",
            "link",
            "cold_wait_max",
            "site_wait",
            "retry_after",
            "plan_interval",
            "capacity_percent",
            "pinned_percent",
            "stability_percent",
            "watched_within",
        ],
    ),
    ("fill.nightly", THREADS, &["gives_way"]),
    ("fill.nightly", FILES, &["log", "log_size_max"]),
    ("control", CONTROL, &["pull", "keys", "revoked", "threshold", "appliance", "site", "groups", "state"]),
    ("control", CONTROL, &["interval", "retry_delay", "connect_timeout", "response_timeout", "stall_timeout"]),
    ("control", CONTROL, &["stale_after", "source_urls", "size_max", "expanded_max", "ratio_max", "assets_max"]),
    ("control", CONTROL, &["blocks_max", "purges_max", "waiting_max", "check_interval"]),
    ("control", CONTROL, &["tls_certificate", "tls_key", "tls_authorities", "headers"]),
    ("control.store", CONTROL, &["endpoint", "region", "credentials", "bucket_in_host"]),
    ("steering", NAME, &["id"]),
    ("steering", ROOM, &["changes_max"]),
    (
        "steering",
        AtOnce,
        &[
            "site",
            "urls",
            "interval",
            "interval_min",
            "interval_max",
            "jitter_percent",
            "timeout",
            "reply_size_max",
            "prefixes",
            "prefixes_file",
            "prefixes_max",
        ],
    ),
    ("steering.service", AtOnce, &["url", "name", "token_file", "certificate", "key", "authorities"]),
    ("admin", ADDRESSES, &["listen"]),
    ("admin", ROOM, &["connections_max", "history", "streams_max"]),
    ("admin", NextRequest, &["token_file", "hosts", "probes_open"]),
    ("admin", AtOnce, &["check_interval"]),
    ("admin.tls", NewConnections, &["certificate", "key", "client_ca"]),
    (
        "health",
        AtOnce,
        &[
            "interval",
            "window",
            "calm_percent",
            "egress_capacity",
            "comfort_percent",
            "errors_percent",
            "first_byte_max",
            "cold_wait_max",
            "probe_max",
            "disk_free_percent",
            "fill_failures_percent",
            "fill_queue_percent",
            "manifest_age_max",
            "memory_free_percent",
            "descriptors_percent",
            "clock_jump_max",
            "clock_jump_memory",
            "certificate_notice",
            "egress_percent",
            "connections_percent",
            "queue_delay_max",
        ],
    ),
    ("log", AtOnce, &["filter"]),
    ("log", SHOWN, &["format"]),
    ("log.access", FILES, &["path", "format"]),
    ("log.access", ROOM, &["queue_max"]),
    ("process", Restart("what a process has given up it does not get back"), &["sandbox"]),
];

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::config::{Config, Machine};

    const REFERENCE: &str = include_str!("../../config/appliance.toml");
    const MACHINE: Machine = Machine { descriptors: 1 << 20, maps: 1 << 20, backlog: 1 << 20, now: None };

    fn settings(text: &str) -> Settings {
        Config::parse_with_settings("oca.toml", text, MACHINE).expect("valid").1
    }

    #[test]
    fn every_key_of_the_reference_has_one_effect_and_no_other_key_has() {
        let known: BTreeSet<String> = settings(REFERENCE).0.keys().map(|key| without_numbers(key)).collect();
        let keys = TABLE.iter().flat_map(|(table, _, names)| names.iter().map(move |name| format!("{table}.{name}")));
        let listed: Vec<String> = keys.collect();
        let once: BTreeSet<String> = listed.iter().cloned().collect();
        assert_eq!(once.len(), listed.len(), "a key has two effects");
        let missing: Vec<_> = known.difference(&once).collect();
        let unknown: Vec<_> = once.difference(&known).collect();
        assert!(missing.is_empty(), "say in src/config/effects.rs when a change of {missing:?} takes effect");
        assert!(unknown.is_empty(), "no such keys: {unknown:?}");
    }

    #[test]
    fn what_differs_is_told_apart_by_what_it_takes() {
        let smallest = "[serve]\nhttp = [\"127.0.0.1:8080\"]\n[[storage.volume]]\npath = \"/oca-test/disk0\"\n\
                        capacity = \"64 MiB\"\n[[fill.source]]\nkind = \"origin\"\nurl = \"http://127.0.0.1:9000/\"\n";
        let mut running = settings(smallest);
        assert_eq!(
            running.changes(&settings(
                &format!("# words\n{smallest}idle_timeout = \"60 s\"")
                    .replace("idle_timeout = \"60 s\"", "stall_timeout = \"10 s\"")
            )),
            Changes::default(),
            "a default that is written out"
        );
        let file = smallest.replace(":8080", ":8081").replace("64 MiB", "32 MiB")
            + "[health]\nwindow = \"20 s\"\n\
                   [[storage.volume]]\npath = \"/oca-test/disk1\"\ncapacity = \"64 MiB\"\n";
        let new = settings(&file);
        let changes = running.changes(&new);
        assert_eq!(changes.live, ["health.window", "storage.volume[0].capacity", "storage.volume[1].capacity"]);
        let restart: Vec<&str> = changes.restart.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(restart, ["serve.http", "storage.volume[1].path"]);
        running.take_over(new.clone());
        let left = running.changes(&new);
        assert_eq!((left.live, left.restart), (Vec::new(), changes.restart), "until it is restarted");
        running.take_over(settings(smallest));
        assert_eq!(running, settings(smallest), "and back");
    }

    #[test]
    fn the_page_of_reloads_is_made_from_the_table() {
        let mut page = String::from(
            "# What a reload changes\n\n\
             `SIGHUP` (`systemctl reload oca`) has the configuration read again. What can change takes effect as said here; of every other key \
             that differs a WARN says that it needs a restart. A file with faults changes nothing. [operating.md](operating.md) says more.\n\n\
             This page is made from the table in `src/config/effects.rs`.\n\n| key | a change takes effect |\n|---|---|\n",
        );
        for (table, effect, names) in TABLE {
            let when = match effect {
                AtOnce => "at once".to_owned(),
                NextRequest => "with the next request".to_owned(),
                NewConnections => "for new connections".to_owned(),
                Restart(why) => format!("**with a restart**: {why}"),
            };
            let keys: Vec<String> = names.iter().map(|name| format!("`{table}.{name}`")).collect();
            writeln!(page, "| {} | {when} |", keys.join(" ")).expect("a string grows");
        }
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reload.md");
        if std::env::var_os("OCA_UPDATE").is_some() {
            std::fs::write(file, &page).expect("written");
        }
        assert_eq!(std::fs::read_to_string(file).unwrap_or_default(), page, "run this test with OCA_UPDATE=1");
    }
}
