//! The whole of what is spoken at the port of HTTPS, as a scanner sees it: Mozilla's intermediate profile, and the attacks that sslyze knows.

use std::process::Command;

use crate::support::{Authority, KeyKind, Origin, Setup, missing_tool};

#[test]
fn sslyze_finds_nothing_above_the_intermediate_profile() {
    if missing_tool("sslyze") {
        return;
    }
    let (authority, origin) = (Authority::new(), Origin::start());
    let ecdsa = authority.issue_for("ecdsa", &["a.test"], (KeyKind::Ecdsa, 90));
    let rsa = authority.issue_for("rsa", &["a.test"], (KeyKind::Rsa, 90));
    let appliance = Setup::new(&origin).tls(&ecdsa, &[&rsa], "").start();
    let address = appliance.https().to_string();
    let output = Command::new("sslyze").args(["--mozilla_config=intermediate", "--sni", "a.test", &address]).output();
    let said = String::from_utf8_lossy(&output.expect("it runs").stdout).into_owned();
    let (scans, profile) = said.split_once("COMPLIANCE AGAINST TLS CONFIGURATION").expect("both parts");
    for good in [
        "OK - Compression disabled",
        "OK - Not vulnerable to OpenSSL CCS injection",
        "OK - Supported",
        "OK - Not vulnerable to Heartbleed",
        "OK - Not vulnerable, RSA cipher suites not supported.",
        "Client Renegotiation DoS Attack:   OK - Not vulnerable",
        "Number of cert chains detected:    2",
    ] {
        assert!(scans.contains(good), "'{good}' is not in\n{said}");
    }
    assert!(!scans.contains("VULNERABLE -"), "{said}");
    assert!(profile.contains("Checking results against Mozilla's \"intermediate\" configuration"), "{said}");
    // That no browser trusts the tests' authority is all that it may find.
    let findings = profile.lines().filter_map(|line| line.trim().strip_prefix("* "));
    let others: Vec<&str> = findings.filter(|finding| !finding.starts_with("certificate_path_validation:")).collect();
    assert!(others.is_empty() && profile.contains(&address), "{others:?}\n{said}");
}
