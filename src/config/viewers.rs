//! Whether what a configuration says of clients goes together, and with the file of networks that is there.

use super::reader::Reading;
use crate::serve::clients::{self, Config};

/// `files_are_here`: whether the files that are named can be looked at.
pub(super) fn check(of: &Config, reading: &Reading, files_are_here: bool) {
    let at = |key: &str| reading.span(&format!("serve.clients.{key}"));
    let fault = |wrong: bool, key: &str, message: String, help: &str| {
        if wrong {
            reading.add(at(key), message, help);
        }
    };
    // Shorter ones would make a client of whole countries.
    let (v4, v6) = (of.ipv4_prefix, of.ipv6_prefix);
    fault(!(8..=32).contains(&v4), "ipv4_prefix", format!("{v4} bits of an IPv4 address"), "8 to 32");
    fault(
        !(16..=128).contains(&v6),
        "ipv6_prefix",
        format!("{v6} bits of an IPv6 address"),
        "16 to 128; 64 is a household",
    );
    let (rate, burst) = (of.request_rate, of.request_burst);
    // The workers' time moves in steps of 100 ms.
    let least = (rate / 5).max(1);
    let message = format!("a burst of {burst} is less than a client at {rate} requests a second needs within 200 ms");
    let help = format!("at least {least}; ten times request_rate bears what players do at their start");
    fault(burst < least, "request_burst", message, &help);
    fault(rate > 1_000_000, "request_rate", format!("{rate} requests a second"), "at most 1000000; 0 for no limit");
    fault(
        of.table_max == 0,
        "table_max",
        "no client could be remembered".into(),
        "at least 1; 65536 costs about 10 MiB",
    );
    if files_are_here && let Err(err) = clients::check(of) {
        let help = "one network per line: 192.0.2.0/24, 2001:db8::/32";
        reading.add(at("allow_file"), err.to_string(), help);
    }
}
