//! Whether what a configuration says of manifests goes together, and with the keys that are there.

use std::time::Duration;

use super::reader::Reading;
use crate::control::Config;

/// `files_are_here`: whether the files that are named can be looked at.
pub(super) fn check(control: &Config, reading: &Reading, files_are_here: bool) {
    let at = |key: &str| reading.span(&format!("control.{key}"));
    let fault = |wrong: bool, key: &str, message: &str, help: &str| {
        if wrong {
            reading.add(at(key), message, help);
        }
    };
    let has_keys = !control.keys.is_empty() || reading.is_unreadable("control.keys");
    fault(
        !control.pull.is_empty() && !has_keys,
        "pull",
        "manifests are asked for, and there is no key to verify them with",
        "add to [control]: keys = [\"/etc/oca/keys/manifests.json\"]",
    );
    fault(
        control.files.certificate.is_some() != control.files.key.is_some(),
        "pull",
        "[control] has one of tls_certificate and tls_key",
        "a certificate is shown with its key: name both, or neither",
    );
    fault(control.threshold == 0, "threshold", "a manifest that nobody signed would do", "1 or more");
    let is_folder = |url: &url::Url| {
        url.query().is_none() && url.fragment().is_none() && url.username().is_empty() && url.path().ends_with('/')
    };
    fault(
        !control.source_urls.iter().all(is_folder),
        "source_urls",
        "an address below which assets may lie ends with a slash",
        "for example [\"https://origin.example/video/\"], without user, query or fragment",
    );
    let second = Duration::from_secs(1);
    fault(control.interval < second, "interval", "control planes are not asked that often", "1 s or more");
    fault(
        control.retry_delay < Duration::from_millis(100),
        "retry_delay",
        "it would ask without rest",
        "100 ms or more",
    );
    fault(
        control.retry_delay > control.interval,
        "retry_delay",
        "what failed would be asked for later than what did not",
        "no more than control.interval",
    );
    fault(control.limits.ratio_max == 0, "ratio_max", "nothing expands to nothing", "100 is room enough for lists");
    fault(
        u32::try_from(control.limits.assets_max).is_err(),
        "assets_max",
        "assets are counted in 32 bits",
        "2000000 is the default",
    );
    if !files_are_here || !has_keys {
        return;
    }
    match control.trusted_keys() {
        Err(err) => reading.add(
            at("keys"),
            err.to_string(),
            "`oca keys new --algorithm EdDSA` makes one, `oca keys public` leaves its secret out",
        ),
        Ok(keys) => fault(
            keys.count() < control.threshold,
            "threshold",
            &format!("{} keys have to sign, and only {} are trusted", control.threshold, keys.count()),
            "name more keys, or ask for fewer signatures",
        ),
    }
}
