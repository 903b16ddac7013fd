//! Certificates made for each test, and handshakes in memory.

use std::{fs, path::Path, sync::Arc};

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, ServerName},
    version::{TLS12, TLS13},
};
use tempfile::TempDir;

use super::*;
use crate::asset::UnixTime;

/// 2026-01-01.
const NOW: UnixTime = UnixTime(1_767_225_600);

/// A self-signed pair in a folder.
fn write_pair(folder: &Path, name: &str, hosts: &[&str], key: &KeyPair) -> (PairFiles, CertificateDer<'static>) {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).into()).collect();
    let mut params = CertificateParams::new(hosts).expect("names");
    params.not_before = date_time_ymd(2025, 1, 1);
    params.not_after = date_time_ymd(2030, 1, 1);
    let certificate = params.self_signed(key).expect("signed");
    let files = PairFiles { certificate: folder.join(format!("{name}.pem")), key: folder.join(format!("{name}.key")) };
    fs::write(&files.certificate, certificate.pem()).expect("written");
    fs::write(&files.key, key.serialize_pem()).expect("written");
    (files, certificate.der().clone())
}

fn ecdsa() -> KeyPair {
    KeyPair::generate().expect("a key")
}

fn rsa() -> KeyPair {
    KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).expect("a key")
}

struct Shop {
    folder: TempDir,
    server: Arc<Server>,
    certificates: Arc<Certificates>,
    ders: Vec<CertificateDer<'static>>,
}

/// A server with a pair for each of `hosts`, the key of the `rsa`-th of them RSA.
fn shop(hosts: &[&[&str]], rsa_at: usize) -> Shop {
    install_provider();
    let folder = TempDir::new().expect("a folder");
    let (mut pairs, mut ders) = (Vec::new(), Vec::new());
    for (number, hosts) in hosts.iter().enumerate() {
        let key = if number == rsa_at { rsa() } else { ecdsa() };
        let (files, der) = write_pair(folder.path(), &number.to_string(), hosts, &key);
        pairs.push(Pair::load(&files, NOW).expect("a good pair"));
        ders.push(der);
    }
    let certificates = Arc::new(Certificates::new(pairs));
    let server = Server::new(Arc::clone(&certificates), &[Protocol::Http1, Protocol::Http2]).expect("a server");
    Shop { folder, server: Arc::new(server), certificates, ders }
}

fn client(shop: &Shop, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    shop.ders.iter().for_each(|der| roots.add(der.clone()).expect("a root"));
    ClientConfig::builder_with_protocol_versions(versions).with_root_certificates(roots).with_no_client_auth()
}

/// The client's end and the server's after a handshake, and some bytes each way.
fn shake(shop: &Shop, config: &Arc<ClientConfig>, host: &str) -> Result<(ClientConnection, Established), String> {
    let name = ServerName::try_from(host.to_owned()).expect("a name");
    let mut client = ClientConnection::new(Arc::clone(config), name).map_err(|err| err.to_string())?;
    let mut session = Session::new(Arc::clone(&shop.server));
    let mut answered = false;
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).expect("memory");
        }
        let mut wire = &wire[..];
        while !wire.is_empty() {
            session.receive(&mut wire).map_err(|err| err.to_string())?;
            while let Some(work) = session.answer() {
                // As a helper does it.
                let answer = std::thread::spawn(work).join().expect("it ends");
                session.answered(answer).map_err(|err| err.to_string())?;
            }
        }
        if !session.is_handshaking() && !answered {
            answered = true;
            assert_eq!(session.encrypt(&[io_slice(b"he"), io_slice(b"llo")]).expect("open"), 5);
        }
        let mut wire = Vec::new();
        while session.has_output() {
            session.write_to(&mut wire).expect("memory");
        }
        let mut wire = &wire[..];
        while !wire.is_empty() {
            client.read_tls(&mut wire).expect("memory");
            client.process_new_packets().map_err(|err| err.to_string())?;
        }
        if answered {
            let mut said = [0; 5];
            std::io::Read::read_exact(&mut client.reader(), &mut said).expect("it came");
            assert_eq!(&said, b"hello");
            return Ok((client, session.established().expect("the handshake is over")));
        }
    }
    panic!("the handshake does not end");
}

/// How many pieces of work for others a handshake makes that comes in pieces of so many bytes.
fn pieces_of_work(shop: &Shop, version: &'static SupportedProtocolVersion, bytes: usize, costly: bool) -> usize {
    let config = Arc::new(client(shop, &[version]));
    let name = ServerName::try_from("a.test").expect("a name");
    let mut client = ClientConnection::new(config, name).expect("a client");
    let mut session = Session::new(Arc::clone(&shop.server));
    session.set_costly(costly);
    let mut pieces = 0;
    while session.is_handshaking() || client.is_handshaking() {
        let (mut sent, mut answer) = (Vec::new(), Vec::new());
        while client.wants_write() {
            client.write_tls(&mut sent).expect("memory");
        }
        for mut piece in sent.chunks(bytes) {
            session.receive(&mut piece).expect("a good handshake");
            while let Some(work) = session.answer() {
                pieces += 1;
                session.answered(work()).expect("they come to terms");
            }
        }
        while session.has_output() {
            session.write_to(&mut answer).expect("memory");
        }
        let mut answer = &answer[..];
        while !answer.is_empty() {
            client.read_tls(&mut answer).expect("memory");
            client.process_new_packets().expect("a good server");
        }
    }
    pieces
}

fn io_slice(bytes: &[u8]) -> std::io::IoSlice<'_> {
    std::io::IoSlice::new(bytes)
}

#[test]
fn the_certificate_is_the_one_for_the_name() {
    let shop = shop(&[&["default.test"], &["a.test", "*.a.test"], &["b.a.test"]], 1);
    let config = Arc::new(client(&shop, &[&TLS13, &TLS12]));
    for (host, at) in [("default.test", 0), ("a.test", 1), ("x.a.test", 1), ("b.a.test", 2), ("B.A.test", 2)] {
        let (client, established) = shake(&shop, &config, host).unwrap_or_else(|err| panic!("{host}: {err}"));
        assert_eq!(client.peer_certificates().expect("shown")[0], shop.ders[at], "{host}");
        assert_eq!(established.version, Version::Tls13);
    }
    for host in ["x.b.a.test", "unknown.test", "test"] {
        let err = shake(&shop, &config, host).expect_err("the client does not accept the first one");
        assert!(err.contains("certificate not valid for name"), "{host}: {err}");
    }
}

#[test]
fn a_client_is_shown_the_kind_of_key_that_it_can_check() {
    let shop = shop(&[&["a.test"], &["a.test"]], 1);
    for (suite, at) in [
        (aws_lc_rs::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, 0),
        (aws_lc_rs::cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, 1),
    ] {
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites = vec![suite];
        let mut roots = RootCertStore::empty();
        shop.ders.iter().for_each(|der| roots.add(der.clone()).expect("a root"));
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&TLS12])
            .expect("valid")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (client, established) = shake(&shop, &Arc::new(config), "a.test").expect("agreed");
        assert_eq!(client.peer_certificates().expect("shown")[0], shop.ders[at]);
        assert_eq!(established.version, Version::Tls12);
    }
}

#[test]
fn a_client_that_can_check_no_key_is_told_so() {
    let shop = shop(&[&["a.test"]], usize::MAX);
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256];
    let mut roots = RootCertStore::empty();
    roots.add(shop.ders[0].clone()).expect("a root");
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&TLS12])
        .expect("valid")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let err = shake(&shop, &Arc::new(config), "a.test").expect_err("nothing in common");
    assert!(
        err.contains("NoCipherSuitesInCommon") || err.contains("no signature schemes") || err.contains("ciphersuites"),
        "{err}"
    );
}

#[test]
fn a_session_is_resumed_and_never_under_another_name() {
    for version in [&TLS13, &TLS12] {
        // One certificate for both names, so that nothing but the name stands between them.
        let shop = shop(&[&["a.test", "b.test"]], usize::MAX);
        let config = Arc::new(client(&shop, &[version]));
        assert!(!shake(&shop, &config, "a.test").expect("agreed").1.resumed);
        let (client, established) = shake(&shop, &config, "a.test").expect("agreed");
        assert!(established.resumed, "{version:?}");
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Resumed));

        // A client that offers the ticket of one name for another: its store does not look at the name.
        let mut stranger = self::client(&shop, &[version]);
        stranger.resumption = rustls::client::Resumption::store(Arc::new(OneForAll::default()));
        let stranger = Arc::new(stranger);
        for (host, resumed) in [("a.test", false), ("a.test", true), ("b.test", false), ("b.test", true)] {
            let (_, established) = shake(&shop, &stranger, host).expect("agreed");
            assert_eq!(established.resumed, resumed, "{version:?} {host}");
        }
    }
}

/// Offers what it got last to whatever server.
#[derive(Debug, Default)]
struct OneForAll {
    tls12: parking_lot::Mutex<Option<rustls::client::Tls12ClientSessionValue>>,
    tls13: parking_lot::Mutex<Option<rustls::client::Tls13ClientSessionValue>>,
}

impl rustls::client::ClientSessionStore for OneForAll {
    fn set_kx_hint(&self, _: ServerName<'static>, _: rustls::NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<rustls::NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: rustls::client::Tls12ClientSessionValue) {
        *self.tls12.lock() = Some(value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<rustls::client::Tls12ClientSessionValue> {
        self.tls12.lock().clone()
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        *self.tls12.lock() = None;
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: rustls::client::Tls13ClientSessionValue) {
        *self.tls13.lock() = Some(value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<rustls::client::Tls13ClientSessionValue> {
        self.tls13.lock().take()
    }
}

#[test]
fn a_replaced_certificate_is_shown_from_then_on() {
    let shop = shop(&[&["a.test"], &["b.test"]], usize::MAX);
    let (files, der) = write_pair(shop.folder.path(), "new", &["b.test"], &ecdsa());
    let load = || Pair::load(&files, NOW).expect("a good pair");
    assert!(shop.certificates.replace(1, load()));
    assert!(!shop.certificates.replace(1, load()), "it is there already");
    let mut roots = RootCertStore::empty();
    roots.add(der.clone()).expect("a root");
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let (client, _) = shake(&shop, &Arc::new(config), "b.test").expect("agreed");
    assert_eq!(client.peer_certificates().expect("shown")[0], der);
}

#[test]
fn the_protocol_is_the_one_we_prefer_of_those_offered() {
    let shop = shop(&[&["a.test"]], usize::MAX);
    for (offered, expected) in [
        (&["h2", "http/1.1"][..], Protocol::Http1),
        (&["h2"], Protocol::Http2),
        (&["http/1.1"], Protocol::Http1),
        (&[], Protocol::Http1),
    ] {
        let mut config = client(&shop, &[&TLS13]);
        config.alpn_protocols = offered.iter().map(|name| (*name).into()).collect();
        assert_eq!(shake(&shop, &Arc::new(config), "a.test").expect("agreed").1.protocol, expected, "{offered:?}");
    }
    let mut config = client(&shop, &[&TLS13]);
    config.alpn_protocols = vec![b"spdy/3".to_vec()];
    let err = shake(&shop, &Arc::new(config), "a.test").expect_err("nothing in common");
    assert!(err.contains("known protocol"), "{err}");
}

#[test]
fn suites_are_ours_unless_the_client_is_slow_at_aes() {
    let shop = shop(&[&["a.test"]], usize::MAX);
    use rustls::crypto::aws_lc_rs::cipher_suite::{
        TLS13_AES_128_GCM_SHA256 as AES128, TLS13_AES_256_GCM_SHA384 as AES256,
        TLS13_CHACHA20_POLY1305_SHA256 as CHACHA,
    };
    for (offered, expected) in [(vec![AES256, CHACHA, AES128], AES128), (vec![CHACHA, AES128, AES256], CHACHA)] {
        let provider = rustls::crypto::CryptoProvider { cipher_suites: offered, ..aws_lc_rs::default_provider() };
        let mut roots = RootCertStore::empty();
        roots.add(shop.ders[0].clone()).expect("a root");
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&TLS13])
            .expect("valid")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (client, _) = shake(&shop, &Arc::new(config), "a.test").expect("agreed");
        assert_eq!(client.negotiated_cipher_suite(), Some(expected));
    }
}

#[test]
fn all_of_a_costly_handshake_is_work_for_others_and_single_bytes_make_no_more_of_it() {
    let shop = shop(&[&["a.test"]], 1);
    for (version, honest, costly) in [(&TLS13, 1, 2), (&TLS12, 2, 2)] {
        assert_eq!(pieces_of_work(&shop, version, 1 << 14, false), honest, "{version:?}");
        assert_eq!(pieces_of_work(&shop, version, 1 << 14, true), costly, "{version:?}");
        // The client says two or three more things, each a record of its own.
        let single = pieces_of_work(&shop, version, 1, true);
        assert!((costly..=4).contains(&single), "{version:?}: {single}");
    }
}

#[test]
fn a_bad_pair_says_what_is_wrong_with_which_file() {
    install_provider();
    let folder = TempDir::new().expect("a folder");
    let (good, _) = write_pair(folder.path(), "good", &["a.test"], &ecdsa());
    let (other, _) = write_pair(folder.path(), "other", &["a.test"], &ecdsa());
    let text = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("written");
        path
    };
    let with_key = |key| PairFiles { key, ..good.clone() };
    let with_certificate = |certificate| PairFiles { certificate, ..good.clone() };
    let [whole, key] = [&good.certificate, &good.key].map(|file| fs::read_to_string(file).expect("there"));
    let secret: String = key.lines().nth(1).expect("base64").chars().take(20).collect();
    let body: String = whole.lines().nth(1).expect("base64").into();
    for (files, expected, of_key) in [
        (with_key(other.key), "is not the key of the first certificate in", true),
        (with_key(folder.path().join("nowhere")), "nowhere cannot be read", true),
        (with_key(text("empty", "")), "no private key in PEM", true),
        (with_key(good.certificate.clone()), "no private key in PEM", true),
        (
            with_key(text(
                "locked",
                "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
            )),
            "needs a password",
            true,
        ),
        (
            with_key(text("odd", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")),
            "a key of no use",
            true,
        ),
        (with_certificate(folder.path().into()), "cannot be read", false),
        (with_certificate(text("key", &fs::read_to_string(&good.key).expect("there"))), "no certificate in PEM", false),
        (
            with_certificate(text("half", &whole[..whole.len() / 2])),
            "no valid PEM: it ends before the line \"-----END CERTIFICATE-----\"",
            false,
        ),
        (with_key(text("line", &key.replace('\n', ""))), "have line ends been lost?", true),
        (with_key(text("half line", &key.replace('\n', "")[..100])), "have line ends been lost?", true),
        (with_certificate(text("cut", &whole.replace(&body, "AAAA"))), "a broken certificate", false),
        (with_certificate(text("big", &" ".repeat(2 << 20))), "cannot be read", false),
    ] {
        let err = Pair::load(&files, NOW).expect_err("it is no good");
        assert!(err.to_string().contains(expected), "{err}");
        assert!(!err.to_string().contains(&secret) && !err.to_string().contains('['), "{err}");
        assert_eq!(err.is_of_key(&files), of_key, "{err}");
    }
    for (now, expected) in [
        (UnixTime(1_735_689_599), "is not good before Wed, 01 Jan 2025 00:00:00 GMT"),
        (UnixTime(1_893_456_001), "expired on Tue, 01 Jan 2030 00:00:01 GMT"),
    ] {
        let err = Pair::load(&good, now).expect_err("it is not its time").to_string();
        assert!(err.contains(expected), "{err}");
    }
    let pair = Pair::load(&good, UnixTime(1_893_456_000)).expect("its last second");
    assert_eq!((pair.expiry(), pair.names()), (UnixTime(1_893_456_001), &["a.test".to_owned()][..]));
}
