//! What a configuration says of steering services, and whether it goes together.

use std::time::Duration;

use ipnet::IpNet;
use toml::de::DeValue;
use url::Url;

use super::{
    reader::{Reading, Section, Value, text},
    sections::read_pair,
};
use crate::{
    asset::{ByteCount, show_duration},
    steering::{self, Config, ServiceConfig},
};

/// More often would be noise.
const INTERVAL_LEAST: Duration = Duration::from_millis(100);

impl Value for IpNet {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let example = "\"192.0.2.0/24\" or \"2001:db8::/32\"";
        text(value, example)?.parse().map_err(|_| format!("write a network, for example {example}"))
    }
}

pub(super) fn read(mut section: Section<'_, '_>, into: &mut Config) {
    section.read("id", &mut into.id);
    section.read("site", &mut into.site);
    section.read("urls", &mut into.urls);
    section.read("interval", &mut into.interval);
    section.read("interval_min", &mut into.interval_min);
    section.read("interval_max", &mut into.interval_max);
    section.read("jitter_percent", &mut into.jitter_percent);
    section.read("timeout", &mut into.timeout);
    section.read("reply_size_max", &mut into.reply_size_max);
    section.read("changes_max", &mut into.changes_max);
    section.read("prefixes", &mut into.prefixes);
    section.read("prefixes_file", &mut into.prefixes_file);
    section.read("prefixes_max", &mut into.prefixes_max);
    for mut service in section.sections("service") {
        let url: Option<Url> = service.require("url", "\"https://steering.example/v1/report\"");
        let mut name = format!("steering-{}", into.services.len());
        service.read("name", &mut name);
        let (mut token_file, mut authorities) = (None, None);
        service.read("token_file", &mut token_file);
        service.read("authorities", &mut authorities);
        let identity = read_pair(&mut service, false);
        into.services.extend(url.map(|url| ServiceConfig { name, url, token_file, identity, authorities }));
        service.finish();
    }
    section.finish();
}

/// `files_are_here`: whether the files that are named can be looked at.
pub(super) fn check(config: &Config, reading: &Reading, files_are_here: bool) {
    let at = |key: &str| reading.span(&format!("steering.{key}"));
    let fault = |wrong: bool, key: &str, message: String, help: &str| {
        if wrong {
            reading.add(at(key), message, help);
        }
    };
    let (least, most) = (config.interval_min, config.interval_max);
    fault(
        least < INTERVAL_LEAST,
        "interval_min",
        format!("an interval of {}", show_duration(least)),
        "at least 100 ms",
    );
    fault(
        config.interval < least || config.interval > most,
        "interval",
        format!("{} is not from {} to {}", show_duration(config.interval), show_duration(least), show_duration(most)),
        "set steering.interval from steering.interval_min to steering.interval_max",
    );
    fault(
        config.jitter_percent > 90,
        "jitter_percent",
        format!("{} percent of an interval", config.jitter_percent),
        "0 to 90; 20 keeps boxes apart",
    );
    fault(
        config.timeout < Duration::from_millis(10),
        "timeout",
        "steering.timeout leaves no time at all".into(),
        "at least 10 ms",
    );
    fault(
        !(1 << 10..=16 << 20).contains(&config.reply_size_max.0),
        "reply_size_max",
        format!("{} for a reply", ByteCount(config.reply_size_max.0)),
        "1 KiB to 16 MiB",
    );
    fault(config.changes_max == 0, "changes_max", "no change would ever be told".into(), "at least 1");
    fault(
        config.prefixes.len() > config.prefixes_max,
        "prefixes",
        format!("{} networks, of which at most {} are told", config.prefixes.len(), config.prefixes_max),
        "name larger networks, or raise steering.prefixes_max",
    );
    for (number, service) in config.services.iter().enumerate() {
        check_service(service, number, (config, reading), files_are_here);
    }
}

fn check_service(service: &ServiceConfig, number: usize, (config, reading): (&Config, &Reading), files_are_here: bool) {
    let key = |name: &str| reading.span(&format!("steering.service[{number}].{name}"));
    if config.services[..number].iter().any(|other| other.name == service.name) {
        let message = format!("two steering services have the name '{}'", service.name);
        let help = "give each a name of its own: logs and metrics tell them apart by it";
        reading.add(key("name").or_else(|| key("url")), message, help);
    }
    if !service.url.username().is_empty() || service.url.password().is_some() || service.url.query().is_some() {
        let help = "logs and /status show addresses: name a token_file, or a certificate";
        reading.add(key("url"), "the address of a steering service has a user, a password or a query", help);
    }
    if service.url.scheme() == "http" {
        let is_near = match service.url.host() {
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            Some(url::Host::Domain(name)) => name == "localhost",
            None => false,
        };
        if service.identity.is_some() {
            let help = "write https://";
            reading.add(key("certificate"), "a certificate is shown over TLS alone, and the address is http://", help);
        }
        if service.token_file.is_some() && !is_near {
            let help = "write https://; http:// is for services on this machine";
            reading.add(key("token_file"), "the token would cross the network for everybody to read", help);
        }
    }
    if files_are_here && let Err(err) = steering::check(service) {
        let help = "name files that the appliance may read: a token of one line, certificates and key in PEM";
        reading.add(
            key("token_file").or_else(|| key("certificate")).or_else(|| key("authorities")),
            err.to_string(),
            help,
        );
    }
}
