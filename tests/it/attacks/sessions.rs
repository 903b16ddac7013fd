//! TLS: what is agreed on, and what is taken up again.

use std::{
    io::Write as _,
    net::TcpStream,
    process::{Command, Stdio},
};

use super::PATIENCE;
use crate::support::{Appliance, Authority, KeyKind, Origin, Setup, missing_tool, wait_until};

fn victim() -> (Authority, Appliance, Origin) {
    let (authority, origin) = (Authority::new(), Origin::start());
    let issued = authority.issue("a", &["a.test"], (KeyKind::Rsa, 2040));
    let appliance = Setup::new(&origin).tls(&issued, &[], "").start();
    (authority, appliance, origin)
}

fn s_client(appliance: &Appliance, arguments: &[&str], say: &[u8]) -> (bool, String) {
    let address = appliance.https().to_string();
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &address, "-servername", "a.test"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl starts");
    // It may have given up already.
    drop(child.stdin.take().expect("piped").write_all(say));
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.success(), said)
}

/// Downgrades (POODLE CVE-2014-3566, BEAST CVE-2011-3389, FREAK CVE-2015-0204, Logjam CVE-2015-4000, SWEET32 CVE-2016-2183, ROBOT
/// CVE-2017-13099): an old version or suite that is still spoken. None is: TLS 1.2 with an ephemeral key and AEAD is the least.
#[test]
fn downgrades_to_old_versions_and_suites() {
    if missing_tool("openssl") {
        return;
    }
    let (_authority, appliance, _origin) = victim();
    assert!(s_client(&appliance, &["-tls1_2"], b"").0, "the least that is spoken");
    for offer in [
        &["-tls1", "-cipher", "ALL:@SECLEVEL=0"][..],
        &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "AES128-GCM-SHA256:AES256-SHA:@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "ECDHE-RSA-AES128-SHA:ECDHE-RSA-AES128-SHA256:@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "DHE-RSA-AES128-GCM-SHA256:@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "NULL:aNULL:@SECLEVEL=0"],
    ] {
        let (agreed, said) = s_client(&appliance, offer, b"");
        assert!(!agreed, "{offer:?}: {said}");
    }
}

/// Renegotiation (CVE-2009-3555, and floods of it, CVE-2011-1473): a second handshake inside of the first lets a man in the middle say the
/// first words, or costs the server its CPU. It must be refused.
#[test]
fn renegotiation() {
    if missing_tool("openssl") {
        return;
    }
    let (_authority, appliance, _origin) = victim();
    // "R" on a line of its own makes openssl ask for it.
    let (_, said) = s_client(&appliance, &["-tls1_2"], b"R\nGET /x HTTP/1.1\r\nHost: a.test\r\n\r\n");
    assert!(said.contains("RENEGOTIATING"), "{said}");
    assert!(!said.contains("HTTP/1.1 "), "{said}");
    assert_eq!(appliance.admin("/live").status(), 200);
}

/// Bytes that announce a record or a message of the handshake far larger than any is: memory kept for what never comes (CVE-2004-0079 and
/// many after it). Each must be refused or bounded, and the client cut.
#[test]
fn oversized_handshakes() {
    let (authority, appliance, _origin) = victim();
    let before = appliance.resident_bytes();
    let mut held = Vec::new();
    for _ in 0..50 {
        for begin in [&[0x16, 3, 1, 0xff, 0xff, 1, 0xff, 0xff, 0xff][..], &[0x16, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff]] {
            let mut stream = TcpStream::connect(appliance.https()).expect("it listens");
            // It may be cut while it speaks.
            drop(stream.write_all(begin));
            drop(stream.write_all(&[0; 16 << 10]));
            held.push(stream);
        }
    }
    let failed = || appliance.metric("oca_tls_handshakes_total", "outcome=\"failed\"");
    wait_until("they are refused", PATIENCE, || failed() >= 50.0);
    let each = appliance.resident_bytes().saturating_sub(before) / held.len() as u64;
    assert!(each < 256 << 10, "{each} bytes each");
    assert_eq!(authority.connect(appliance.https(), "a.test").get("/none").status(), 404);
}
