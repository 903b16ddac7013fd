//! Sources that want to know who asks: buckets with signatures, servers with certificates of both sides.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader, Write as _},
    net::TcpListener,
    sync::Arc,
    thread,
};

use aws_lc_rs::{digest, hmac};
use rustls::{
    RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

use crate::support::{Appliance, Authority, Content, Fault, KeyKind, Origin, Setup};

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    })
}

/// What a store computes of a presigned GET (AWS Signature Version 4, query parameters), to compare it with what is presented.
fn signature_of(target: &str, host: &str) -> (String, String) {
    let (path, query) = target.split_once('?').expect("a signed address");
    let mut fields: Vec<&str> = query.split('&').filter(|field| !field.starts_with("X-Amz-Signature=")).collect();
    fields.sort_unstable();
    let value = |name: &str| {
        let field = query.split('&').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
        field.unwrap_or_else(|| panic!("{name} in {query}")).replace("%2F", "/")
    };
    assert_eq!(
        (value("X-Amz-Algorithm").as_str(), value("X-Amz-SignedHeaders").as_str()),
        ("AWS4-HMAC-SHA256", "host")
    );
    let (date, credential) = (value("X-Amz-Date"), value("X-Amz-Credential"));
    let scope = credential.strip_prefix("AKIDEXAMPLE/").expect("our key");
    let request = format!("GET\n{path}\n{}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD", fields.join("&"));
    let hash = hexadecimal(digest::digest(&digest::SHA256, request.as_bytes()).as_ref());
    let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{hash}");
    let sign =
        |key: &[u8], text: &str| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec();
    let key = scope.split('/').fold(format!("AWS4{SECRET}").into_bytes(), |key, part| sign(&key, part));
    (hexadecimal(&sign(&key, &text)), value("X-Amz-Signature"))
}

/// The bucket is an origin that looks at the signatures of what it was asked.
#[test]
fn a_bucket_is_read_by_signed_requests_for_ranges_of_one_version() {
    let origin = Origin::start();
    let content = origin.publish_new("/films/tonight/a%20b.mp4", 1, 9 << 20);
    let folder = tempfile::tempdir().expect("a folder");
    let credentials = folder.path().join("credentials");
    fs::write(&credentials, format!("[default]\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = {SECRET}\n"))
        .expect("written");
    let lines = format!("endpoint = \"{}\"\nregion = \"eu-north-1\"\ncredentials = {credentials:?}", origin.url());
    let appliance = Setup::from_url("s3://films/tonight").source(&lines).start();
    origin.fail("/films/tonight/a%20b.mp4", Fault::Reset(1 << 20), 1);
    let whole = appliance.get("/a%20b.mp4");
    assert_eq!(whole.status(), 200, "{}", appliance.log());
    content.assert_is(0, &whole.body);
    assert_eq!(whole.body.len() as u64, content.length);
    let seen = origin.seen("/films/tonight/a%20b.mp4");
    for one in &seen {
        let (right, presented) = signature_of(&one.target, one.field("host").expect("a host"));
        assert_eq!(right, presented, "{}", one.target);
        assert!(one.field("range").is_some_and(|range| range.starts_with("bytes=")), "{one:?}");
    }
    assert!(seen[1..].iter().all(|one| one.field("if-range").is_some()), "what follows is of the same version");
    assert_eq!(appliance.get("/none.mp4").status(), 404);
    for secret in [SECRET, "X-Amz-Signature"] {
        assert!(!appliance.log().contains(secret), "the log holds nothing to sign with");
    }
}

/// Answers one request after the other over TLS, to who shows a certificate of `authority`.
fn mutual(authority: &Authority) -> (u16, Arc<parking_lot::Mutex<Vec<String>>>) {
    let issued = authority.issue("origin", &["localhost"], (KeyKind::Ecdsa, 2040));
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(authority.root()).expect("a file") {
        roots.add(root.expect("PEM")).expect("a root");
    }
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().expect("a verifier");
    let chain = CertificateDer::pem_file_iter(&issued.certificate).expect("a file");
    let chain = chain.collect::<Result<Vec<_>, _>>().expect("PEM");
    let key = PrivateKeyDer::from_pem_file(&issued.key).expect("PEM");
    let config = ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain, key);
    let config = Arc::new(config.expect("a pair"));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    let heads = Arc::<parking_lot::Mutex<Vec<String>>>::default();
    let told = Arc::clone(&heads);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let session = ServerConnection::new(Arc::clone(&config)).expect("a session");
            let mut stream = BufReader::new(StreamOwned::new(session, stream));
            loop {
                let mut head = String::new();
                // A client without a certificate ends here.
                while matches!(stream.read_line(&mut head), Ok(count) if count > 2) {}
                if !head.ends_with("\r\n\r\n") {
                    break;
                }
                told.lock().push(head);
                let answer = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: \"1\"\r\n\r\nhello";
                if stream.get_mut().write_all(answer.as_bytes()).is_err() {
                    break;
                }
            }
        }
    });
    (port, heads)
}

#[test]
fn an_origin_that_wants_a_certificate_and_a_secret_gets_both() {
    let authority = Authority::new();
    let (port, heads) = mutual(&authority);
    let ours = authority.issue("edge", &["edge.test"], (KeyKind::Ecdsa, 2040));
    let headers = authority.folder().join("headers");
    fs::write(&headers, "# of this box\nAuthorization: Bearer 0123456789\n\nX-Site: 7\n").expect("written");
    let trusting = format!("tls_authorities = {:?}\nheaders = {headers:?}\n", authority.root());
    let shown = format!("tls_certificate = {:?}\ntls_key = {:?}\n", ours.certificate, ours.key);
    let url = format!("https://localhost:{port}/");
    let appliance = Setup::from_url(&url).source(&trusting).source(&shown).start();
    let response = appliance.get("/a.mp4");
    assert_eq!((response.status(), response.body.as_slice()), (200, &b"hello"[..]), "{}", appliance.log());
    let head = heads.lock()[0].to_ascii_lowercase();
    assert!(head.contains("\r\nauthorization: bearer 0123456789\r\n") && head.contains("\r\nx-site: 7\r\n"), "{head}");
    assert!(!appliance.log().contains("0123456789"));

    // Without the certificate the origin does not let us in; without its authority we do not talk to it.
    for lines in [trusting.as_str(), shown.as_str()] {
        let stranger = Setup::from_url(&url).source(lines).start();
        assert_eq!(stranger.get("/a.mp4").status(), 502);
    }
    assert_eq!(heads.lock().len(), 1);
}

/// An appliance whose source, named by a name, sends for the film elsewhere; and the origins that it was sent from and to.
fn led_elsewhere(host: &str, lines: &str) -> (Origin, Origin, Content, Appliance) {
    let (source, elsewhere) = (Origin::start(), Origin::start());
    let content = elsewhere.publish_new("/real.mp4", 5, 3 << 20);
    source.publish_new("/film.mp4", 6, 3 << 20);
    let to = elsewhere.url().replace("127.0.0.1", host);
    source.fail(
        "/film.mp4",
        Fault::Redirect(format!("{}/real.mp4?token=secret", to.trim_end_matches('/'))),
        usize::MAX,
    );
    let lines = lines.replace("PORT", to.trim_end_matches('/').rsplit_once(':').expect("a port").1);
    let by_name = source.url().replace("127.0.0.1", "localhost");
    let appliance = Setup::from_url(&by_name).source(&lines).start();
    (source, elsewhere, content, appliance)
}

#[test]
fn redirects_lead_to_hosts_that_are_named_and_take_no_secrets_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let headers = folder.path().join("headers");
    fs::write(&headers, "X-Api-Key: of-the-source-alone\nAuthorization: Bearer of-the-source-alone\n")
        .expect("written");
    let lines = format!("headers = {headers:?}\nallow_redirects_to = [\"localhost:PORT\"]\nallow_private = true\n");
    let (source, elsewhere, content, appliance) = led_elsewhere("localhost", &lines);
    let part = appliance.range("/film.mp4", "bytes=1000000-1099999");
    assert_eq!(part.status(), 206, "{}", appliance.log());
    content.assert_is(1_000_000, &part.body);
    content.assert_is(0, &appliance.get("/film.mp4").body);
    assert!(source.seen("/film.mp4").iter().all(|one| one.field("x-api-key").is_some()));
    let seen = elsewhere.seen("/real.mp4");
    assert!(!seen.is_empty() && seen.iter().all(|one| one.field("range").is_some()), "what is wanted, and no more");
    for one in seen {
        assert!(one.field("x-api-key").is_none() && one.field("authorization").is_none(), "{one:?}");
        assert!(one.target.ends_with("?token=secret"), "{one:?}");
    }
    assert!(!appliance.log().contains("token=secret"));
}

#[test]
fn redirects_lead_nowhere_else() {
    for (host, lines, reason) in [
        // Nobody is named, or somebody else, or another port.
        ("127.0.0.1", "", ""),
        ("127.0.0.1", "allow_redirects_to = [\"cdn.example\"]\nallow_private = true", "does not name its host"),
        ("127.0.0.1", "allow_redirects_to = [\"127.0.0.1\"]\nallow_private = true", "does not name its host"),
        // It is named, and within: as an address in each of its forms, and as a name.
        ("127.0.0.1", "allow_redirects_to = [\"127.0.0.1:PORT\"]", "private network"),
        ("2130706433", "allow_redirects_to = [\"127.0.0.1:PORT\"]", "private network"),
        ("0177.0.0.1", "allow_redirects_to = [\"127.0.0.1:PORT\"]", "private network"),
        ("[::ffff:127.0.0.1]", "allow_redirects_to = [\"[::ffff:127.0.0.1]:PORT\"]", "private network"),
        ("localhost", "allow_redirects_to = [\"localhost:PORT\"]", "only addresses of private networks"),
    ] {
        let (source, elsewhere, _, appliance) = led_elsewhere(host, lines);
        assert_eq!(appliance.get("/film.mp4").status(), 502, "{host}, {lines}: {}", appliance.log());
        assert!(!source.seen("/film.mp4").is_empty() && elsewhere.seen("/real.mp4").is_empty(), "{host}, {lines}");
        assert!(appliance.log().contains(reason), "{host}, {lines}: {}", appliance.log());
    }
}

/// Who writes an address of a private network as the source means that network.
#[test]
fn a_source_within_may_lead_to_others_within() {
    let (source, elsewhere) = (Origin::start(), Origin::start());
    let content = elsewhere.publish_new("/real.mp4", 5, 1 << 20);
    source.publish_new("/film.mp4", 6, 1 << 20);
    source.fail(
        "/film.mp4",
        Fault::Redirect(format!("{}/real.mp4", elsewhere.url().trim_end_matches('/'))),
        usize::MAX,
    );
    let host = elsewhere.url().trim_end_matches('/').replace("http://", "");
    let appliance = Setup::new(&source).source(&format!("allow_redirects_to = [{host:?}]")).start();
    content.assert_is(0, &appliance.get("/film.mp4").body);
}
