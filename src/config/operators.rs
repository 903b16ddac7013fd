//! Whether only operators can ask the admin listener, and whether the files by which they are known are good.

use std::time::Duration;

use super::reader::Reading;
use crate::{
    admin::{Config, Tokens},
    asset::{UnixTime, show_duration},
    net::tls::{Operators, PairError},
};

/// `now` is there where the files that are named can be looked at.
pub(super) fn check(admin: &Config, reading: &Reading, now: Option<UnixTime>) {
    let at = |key: &str| reading.span(&format!("admin.{key}"));
    let unreadable = ["token_file", "tls.client_ca", "tls.certificate", "tls.key", "listen"]
        .into_iter()
        .any(|key| reading.is_unreadable(&format!("admin.{key}")));
    // What cannot be read is a fault already, and may have been the credential.
    if !admin.is_loopback() && !admin.asks_for_credentials() && !unreadable {
        let message = format!(
            "admin.listen {} can be reached from other machines, and whoever reaches it would be an operator",
            admin.listen
        );
        let help = "listen on 127.0.0.1, or add token_file = \"/etc/oca/admin.token\", or [admin.tls] with certificate, key and client_ca";
        reading.add(at("listen"), message, help);
    }
    for host in &admin.hosts {
        let is_name = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        if host.is_empty() || !is_name {
            let help = "names as they stand in a URL, without scheme and port: [\"edge7.example\"]";
            reading.add(at("hosts"), format!("'{host}' is no host's name"), help);
        }
    }
    let (least, most) = (Duration::from_secs(10), Duration::from_secs(24 * 3600));
    if !(least..=most).contains(&admin.history) {
        let message = format!("plots of the last {}", show_duration(admin.history));
        reading.add(at("history"), message, "10 s to 1 d; each minute takes 10 KiB, and as much to send");
    }
    let Some(now) = now else { return };
    if let Some(Err(err)) = admin.token_file.as_deref().map(Tokens::load) {
        let help =
            "one token per line, at least 32 characters (openssl rand -hex 32), for the appliance alone (chmod 640)";
        reading.add(at("token_file"), err.to_string(), help);
    }
    let Some(files) = &admin.tls else { return };
    if let Err(err) = Operators::load(files, admin.client_certificate(), now) {
        let of_ca = match &err {
            PairError::Unreadable { path, .. } | PairError::Content { path, .. } => {
                Some(path) == files.client_ca.as_ref()
            }
            PairError::Mismatch { .. } | PairError::Date { .. } => false,
        };
        let (key, help) = match (of_ca, err.is_of_key(&files.pair)) {
            (true, _) => {
                ("tls.client_ca", "name the certificates, in PEM, of the authorities that issue those of operators")
            }
            (false, true) => ("tls.key", "name the private key of the certificate, in PEM"),
            (false, false) => ("tls.certificate", "name a certificate in PEM, followed by those of its authorities"),
        };
        reading.add(at(key), err.to_string(), help);
    }
}
