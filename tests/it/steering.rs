//! Reports of the real binary: to the example service of docs/, by bearer token and by certificate, and to whoever polls.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned, server::WebPkiClientVerifier};
use serde_json::Value;

use crate::{
    metrics::Looks,
    support::{Appliance, Authority, Client, KeyKind, Origin, Setup, missing_tool, replace, wait_until},
};

const PATIENCE: Duration = Duration::from_secs(20);
const OFTEN: &str = "interval = \"200 ms\"\ninterval_min = \"100 ms\"\ntimeout = \"1 s\"\n";

/// docs/steering_service.py, running.
struct Example {
    child: Child,
    port: u16,
}

impl Example {
    fn start(port: u16, token: &Path) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/steering_service.py");
        let mut child = Command::new("python3")
            .args([script, &port.to_string()])
            .arg(token)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3 starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("it says where it listens");
        let port = line.trim().rsplit(' ').next().and_then(|port| port.parse().ok()).expect("a port");
        Self { child, port }
    }

    fn get(&self, path: &str) -> crate::support::Response {
        Client::connect(([127, 0, 0, 1], self.port).into()).ask("GET", path, &[("Connection", "close")])
    }

    /// What it knows of the only box.
    fn knows(&self, id: &str) -> Value {
        serde_json::from_slice::<Value>(&self.get("/v1/boxes").body).expect("JSON")[id].take()
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn report(appliance: &Appliance, query: &str) -> Value {
    let response = appliance.admin(&format!("/v1/report{query}"));
    let text = String::from_utf8_lossy(&response.body);
    assert_eq!(response.status(), 200, "{text}");
    let report: Value = serde_json::from_slice(&response.body).expect("JSON");
    let schema = serde_json::from_str(include_str!("../../docs/report.schema.json")).expect("JSON");
    let schema = jsonschema::draft202012::new(&schema).expect("a schema");
    let faults: Vec<_> =
        schema.iter_errors(&report).map(|fault| format!("{}: {fault}", fault.instance_path())).collect();
    assert!(faults.is_empty(), "{faults:?} in {report:#}");
    report
}

fn fetch(appliance: &Appliance, origin: &Origin, names: &[&str]) {
    for (seed, name) in (1..).zip(names) {
        let content = origin.publish_new(name, seed, 5000);
        content.assert_is(0, &appliance.get(name).body);
    }
}

#[test]
fn the_example_service_knows_what_a_box_holds_and_sends_players_there() {
    if missing_tool("python3") {
        return;
    }
    assert!(include_str!("../../docs/steering_service.py").lines().count() < 100, "docs/report.md promises that");
    let (origin, folder) = (Origin::start(), tempfile::tempdir().expect("a folder"));
    let [token, theirs, clients] = ["token", "theirs", "clients"].map(|name| folder.path().join(name));
    fs::write(&token, "not-yet-the-right-one\n").expect("written");
    fs::write(&theirs, "s3cret\n").expect("written");
    fs::write(&clients, "192.0.2.0/24 unicast [isp]\n").expect("written");
    let example = Example::start(0, &theirs);
    let port = example.port;
    let appliance = Setup::new(&origin)
        .tables(&format!(
            "[steering]\nid = \"edge1\"\nsite = \"here\"\nurls = [\"https://edge1.example/\"]\nprefixes_file = {clients:?}\n{OFTEN}\
             [[steering.service]]\nurl = \"http://127.0.0.1:{port}/v1/report\"\ntoken_file = {token:?}\n"
        ))
        .start();
    let outcome = |label: &str| appliance.metric("oca_steering_reports_total", &format!("outcome=\"{label}\""));
    wait_until("the wrong token is refused", PATIENCE, || outcome("refused") > 0.0);
    assert!(example.knows("edge1").is_null());
    replace(&token, "s3cret\n");
    fetch(&appliance, &origin, &["/film%201.mp4", "/film-2.mp4", "/film-3.mp4"]);
    wait_until("all three are known", PATIENCE, || example.knows("edge1")["held"].as_array().map(Vec::len) == Some(3));
    assert_eq!(example.knows("edge1")["clients"]["prefixes"], serde_json::json!(["192.0.2.0/24"]));
    replace(&clients, "192.0.2.0/24\n2001:db8::/32\n");
    wait_until("the other network is known", PATIENCE, || {
        example.knows("edge1")["clients"]["prefixes"].as_array().map(Vec::len) == Some(2)
    });
    wait_until("the box is well", PATIENCE, || example.get("/v1/steer/film%201.mp4").status() == 302);
    let sent = example.get("/v1/steer/film%201.mp4");
    assert_eq!(sent.head.field("location"), Some("https://edge1.example/film%201.mp4"));

    // A delta tells what came since; the restarted one has forgotten all and asks for everything.
    fetch(&appliance, &origin, &["/film-4.mp4"]);
    wait_until("four are known", PATIENCE, || example.knows("edge1")["held"].as_array().map(Vec::len) == Some(4));
    // All three came by deltas or with the one that the service asked for first.
    wait_until("that is counted", PATIENCE, || appliance.metric("oca_steering_full_summaries_total", "") > 0.0);
    let full = appliance.metric("oca_steering_full_summaries_total", "");
    drop(example);
    wait_until("its absence is counted", PATIENCE, || outcome("failed") > 0.0);
    fetch(&appliance, &origin, &["/film-5.mp4"]);
    let example = Example::start(port, &theirs);
    wait_until("five are known", PATIENCE, || example.knows("edge1")["held"].as_array().map(Vec::len) == Some(5));
    let told_in_full = || appliance.metric("oca_steering_full_summaries_total", "");
    wait_until("the full one is counted", PATIENCE, || told_in_full() > full);
    assert_eq!(told_in_full(), full + 1.0, "deltas did the rest");
}

#[test]
fn whoever_polls_is_told_the_same() {
    let origin = Origin::start();
    let appliance = Setup::new(&origin).start();
    fetch(&appliance, &origin, &["/a.mp4", "/b.mp4"]);
    let full = report(&appliance, "?availability=full");
    assert_eq!((&full["availability"]["held"], &full["availability"]["full"]["count"]), (&2.into(), &2.into()));
    fetch(&appliance, &origin, &["/c.mp4"]);
    let boot = full["appliance"]["boot_id"].as_str().expect("text");
    let revision = &full["availability"]["revision"];
    let since = report(&appliance, &format!("?boot_id={boot}&since={revision}&clients=1"));
    assert_eq!(
        (&since["availability"]["held"], &since["availability"]["delta"]["added"]["count"]),
        (&3.into(), &1.into())
    );
    assert!(since["clients"]["prefixes"].is_null() && full["clients"]["prefixes"].is_array());
    let other = report(&appliance, &format!("?boot_id=other&since={revision}"));
    assert!(other["availability"]["delta"].is_null(), "revisions of another boot mean nothing");
    assert_eq!(appliance.admin("/v1/report?since=1").status(), 400);
}

/// Takes one report from a client that `authority` vouches for, and hands it back.
fn one_report_by_certificate(
    authority: &Authority,
    names: &crate::support::Issued,
) -> (u16, thread::JoinHandle<Value>) {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority.root()).expect("PEM")).expect("a root");
    let clients = WebPkiClientVerifier::builder(Arc::new(roots)).build().expect("a verifier");
    let chain = vec![CertificateDer::from_pem_file(&names.certificate).expect("PEM")];
    let key = PrivateKeyDer::from_pem_file(&names.key).expect("PEM");
    let config = ServerConfig::builder().with_client_cert_verifier(clients).with_single_cert(chain, key);
    let config = Arc::new(config.expect("a pair"));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let serving = thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a client");
        let session = ServerConnection::new(config).expect("a session");
        let mut stream = BufReader::new(StreamOwned::new(session, stream));
        let (mut line, mut length) = (String::new(), 0);
        while stream.read_line(&mut line).expect("it has shown its certificate") > 2 {
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a number");
            }
            line.clear();
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).expect("a report");
        stream.get_mut().write_all(b"HTTP/1.1 204 No Content\r\n\r\n").expect("answered");
        stream.get_mut().flush().expect("answered");
        serde_json::from_slice(&body).expect("JSON")
    });
    (port, serving)
}

#[test]
fn a_certificate_proves_who_reports() {
    let (origin, authority) = (Origin::start(), Authority::new());
    let [theirs, ours] = ["localhost", "edge1.test"].map(|name| authority.issue(name, &[name], (KeyKind::Ecdsa, 2040)));
    let (port, serving) = one_report_by_certificate(&authority, &theirs);
    let appliance = Setup::new(&origin)
        .tables(&format!(
            "[steering]\n{OFTEN}[[steering.service]]\nurl = \"https://localhost:{port}/\"\n{}authorities = {:?}\n",
            ours.lines(),
            authority.root()
        ))
        .start();
    let report = serving.join().expect("a report has come");
    assert_eq!(report["version"], 1);
    wait_until("it is counted", PATIENCE, || {
        appliance.metric("oca_steering_reports_total", "outcome=\"delivered\"") == 1.0
    });
}

/// For the metrics.
pub(crate) fn reports_of_every_kind(looks: &mut Looks) {
    let (origin, folder) = (Origin::start(), tempfile::tempdir().expect("a folder"));
    let clients = folder.path().join("clients");
    fs::write(&clients, "").expect("written");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    // Each in turn: taken and asked for everything, told nonsense, refused, hung up on.
    thread::spawn(move || {
        let full = "{\"version\":1,\"full\":true,\"acknowledged\":{\"availability\":1}}";
        let answers = [("200 OK", full), ("200 OK", "nonsense"), ("500 No", ""), ("", "")];
        for (stream, (status, body)) in listener.incoming().zip(answers.into_iter().cycle()) {
            let Ok(mut stream) = stream else { return };
            let mut bytes = vec![0; 1 << 16];
            // Less than a report may come at once; what is answered does not depend on it.
            if stream.read(&mut bytes).is_ok() && !status.is_empty() {
                let length = body.len();
                let answer =
                    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
                drop(stream.write_all(answer.as_bytes()));
            }
        }
    });
    let appliance = Setup::new(&origin)
        .tables(&format!(
            "[steering]\nprefixes_file = {clients:?}\n{OFTEN}[[steering.service]]\nurl = \"http://{address}/\"\n"
        ))
        .start();
    looks.look(&appliance);
    let delivered = || appliance.metric("oca_steering_delivered_seconds", "");
    let at_first = delivered();
    fetch(&appliance, &origin, &["/a.mp4"]);
    replace(&clients, "192.0.2.0/24\n");
    for outcome in ["delivered", "garbage", "refused", "failed"] {
        let labels = format!("outcome=\"{outcome}\"");
        wait_until(outcome, PATIENCE, || appliance.metric("oca_steering_reports_total", &labels) > 0.0);
    }
    wait_until("all is told", PATIENCE, || {
        ["oca_steering_full_summaries_total", "oca_assets_held", "oca_client_prefixes"]
            .iter()
            .all(|name| appliance.metric(name, "") > 0.0)
    });
    wait_until("one is delivered in another second", PATIENCE, || delivered() > at_first);
    looks.look(&appliance);
}
