//! Who may ask the admin listener for what: credentials, web pages, and the files by which operators are known.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use rustix::process::Signal;
use rustls::{ClientConfig, RootCertStore, pki_types::pem::PemObject};

use crate::{
    metrics::Looks,
    support::{Appliance, Authority, Client, Issued, KeyKind, Origin, Published, Response, Setup, request, wait_until},
};

const PATIENCE: Duration = Duration::from_secs(20);
const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const SOON: &str = "check_interval = \"50 ms\"\n";

fn write_token(path: &Path, text: &str) {
    let aside = path.with_extension("new");
    fs::write(&aside, text).expect("written");
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o600)).expect("it is ours");
    fs::rename(aside, path).expect("renamed");
}

fn token_file(folder: &tempfile::TempDir) -> (PathBuf, String) {
    let path = folder.path().join("token");
    write_token(&path, TOKEN);
    let line = format!("token_file = {path:?}\n");
    (path, line)
}

fn ask(appliance: &Appliance, method: &str, path: &str, fields: &[(&str, &str)]) -> Response {
    let mut client = Client::connect(appliance.admin_address());
    client.send(&request(method, path, fields));
    client.read_response(method).expect("the response is whole")
}

fn with_token(appliance: &Appliance, token: &str, path: &str) -> u16 {
    ask(appliance, "GET", path, &[("Authorization", &format!("Bearer {token}"))]).status()
}

const JSON: (&str, &str) = ("Content-Type", "application/json");

#[test]
fn a_token_opens_what_is_closed_without_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, line) = token_file(&folder);
    let appliance = Setup::new(&Origin::start()).operators(&line).start();
    for path in ["/", "/status", "/metrics", "/nothing", "/v1/drain"] {
        let closed = ask(&appliance, "GET", path, &[]);
        assert_eq!(closed.status(), 401, "{path}");
        assert_eq!(closed.field("www-authenticate"), Some("Bearer realm=\"oca\""), "{path}");
        assert_eq!(closed.field("connection"), Some("close"), "who is unknown keeps no place");
        assert!(with_token(&appliance, TOKEN, path) != 401, "{path}");
    }
    assert_eq!(ask(&appliance, "POST", "/v1/drain", &[JSON]).status(), 401);
    assert_eq!(with_token(&appliance, &TOKEN.replace('f', "e"), "/status"), 401);
    let in_url = ask(&appliance, "GET", &format!("/status?token={TOKEN}&access_token={TOKEN}"), &[]);
    assert_eq!(in_url.status(), 401);

    // What probes need is open, and tells nothing but a status.
    assert_eq!(ask(&appliance, "GET", "/live", &[]).status(), 200);
    assert_eq!(ask(&appliance, "GET", "/ready", &[]).status(), 200);
    let bearer = format!("Bearer {TOKEN}");
    let credentials = ("Authorization", bearer.as_str());
    assert_eq!(ask(&appliance, "POST", "/v1/drain", &[JSON, credentials]).status(), 200);
    let (stranger, operator) =
        (ask(&appliance, "GET", "/ready", &[]), ask(&appliance, "GET", "/ready", &[credentials]));
    assert_eq!((stranger.status(), operator.status()), (503, 503));
    let said = |response: &Response| String::from_utf8_lossy(&response.body).into_owned();
    assert_eq!(said(&stranger), "{\"ready\":false}");
    assert!(said(&operator).contains("draining"), "{}", said(&operator));

    let log = appliance.log();
    assert!(log.contains("an operator's order") && log.contains("Token"), "{log}");
    assert!(!log.contains(TOKEN) && !log.contains(&TOKEN.replace('f', "e")), "no token is logged:\n{log}");
}

#[test]
fn probes_are_closed_too_where_that_is_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, line) = token_file(&folder);
    let appliance = Setup::new(&Origin::start()).operators(&line).operators("probes_open = false").start();
    assert_eq!(ask(&appliance, "GET", "/live", &[]).status(), 401);
    assert_eq!(with_token(&appliance, TOKEN, "/live"), 200);
}

#[test]
fn tokens_are_replaced_while_in_use() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, line) = token_file(&folder);
    let appliance = Setup::new(&Origin::start()).operators(&line).operators(SOON).start();
    let next = "fedcba9876543210fedcba9876543210";
    write_token(&path, &format!("# both, until everybody has the new one\n{TOKEN}\n{next}\n"));
    wait_until("the new one is known", PATIENCE, || with_token(&appliance, next, "/status") == 200);
    assert_eq!(with_token(&appliance, TOKEN, "/status"), 200, "so is the old one");
    write_token(&path, next);
    wait_until("the old one is not", PATIENCE, || with_token(&appliance, TOKEN, "/status") == 401);

    // What is no good changes nothing but the log and a count.
    for broken in ["", "short", &format!("{next} {TOKEN}")] {
        write_token(&path, broken);
        appliance.signal(Signal::HUP);
    }
    wait_until("it is refused", PATIENCE, || appliance.log().contains("changed files are refused"));
    fs::remove_file(&path).expect("it is there");
    appliance.signal(Signal::HUP);
    wait_until("its lack is told", PATIENCE, || appliance.log().contains("No such file"));
    assert_eq!(with_token(&appliance, next, "/status"), 200);
    assert_eq!(with_token(&appliance, "", "/status"), 401);
}

/// A TLS client of `trusted` that shows `shown`.
fn client(trusted: &Authority, shown: Option<&Issued>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let root = rustls::pki_types::CertificateDer::from_pem_file(trusted.root()).expect("a root");
    roots.add(root).expect("a root");
    let builder = ClientConfig::builder().with_root_certificates(roots);
    Arc::new(match shown {
        None => builder.with_no_client_auth(),
        Some(issued) => {
            let chain = rustls::pki_types::CertificateDer::pem_file_iter(&issued.certificate).expect("it is there");
            let chain = chain.collect::<Result<Vec<_>, _>>().expect("certificates");
            let key = rustls::pki_types::PrivateKeyDer::from_pem_file(&issued.key).expect("a key");
            builder.with_client_auth_cert(chain, key).expect("they belong together")
        }
    })
}

fn tls_lines(server: &Issued, operators: Option<&Authority>) -> String {
    let authority = operators.map_or(String::new(), |operators| format!("client_ca = {:?}\n", operators.root()));
    format!("[admin.tls]\n{}{authority}", server.lines())
}

/// The status of `METHOD path` by TLS; `None` where the handshake or the connection comes to nothing.
fn ask_by_tls(appliance: &Appliance, config: &Arc<ClientConfig>, line: &str, fields: &[(&str, &str)]) -> Option<u16> {
    let (method, path) = line.split_once(' ').expect("a method and a path");
    let mut client = Client::connect_tls(appliance.admin_address(), "box.test", config).ok()?;
    client.try_ask(method, path, fields).ok().map(|response| response.status())
}

#[test]
fn a_certificate_of_the_operators_authority_opens_and_no_other_does() {
    let (servers, operators, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let server = servers.issue("box", &["box.test"], (KeyKind::Ecdsa, 2040));
    let ada = operators.issue("ada", &["ada.test"], (KeyKind::Ecdsa, 2040));
    let old = operators.issue("old", &["old.test"], (KeyKind::Ecdsa, 2025));
    let eve = strangers.issue("ada", &["ada.test"], (KeyKind::Ecdsa, 2040));
    let appliance = Setup::new(&Origin::start()).tables(&tls_lines(&server, Some(&operators))).start();
    let asked = |shown: Option<&Issued>, line: &str| ask_by_tls(&appliance, &client(&servers, shown), line, &[JSON]);
    assert_eq!(asked(Some(&ada), "GET /status"), Some(200));
    assert_eq!(asked(None, "GET /status"), Some(401));
    assert_eq!(asked(None, "POST /v1/drain"), Some(401));
    assert_eq!(asked(None, "GET /ready"), Some(200), "probes have no certificate");
    for (who, shown) in [("another authority's", &eve), ("an expired one", &old), ("the server's own", &server)] {
        assert_eq!(asked(Some(shown), "GET /live"), None, "{who}: what is shown has to be good");
    }
    assert_eq!(asked(Some(&ada), "POST /v1/drain"), Some(200));
    let log = appliance.log();
    assert!(log.contains("an operator's order") && log.contains("CN=ada"), "{log}");
    // A browser shows a certificate also for a page that means ill.
    for field in [("Origin", "https://evil.example"), ("Sec-Fetch-Site", "cross-site"), ("Origin", "null")] {
        let refused = ask_by_tls(&appliance, &client(&servers, Some(&ada)), "POST /v1/undrain", &[JSON, field]);
        assert_eq!(refused, Some(403), "{field:?}");
    }
    // Who does not speak TLS is not answered.
    let mut plain = Client::connect(appliance.admin_address());
    plain.send(&request("GET", "/live", &[]));
    assert!(!plain.until_closed().starts_with(b"HTTP/1.1 200"));
}

#[test]
fn without_probes_the_handshake_itself_takes_a_certificate() {
    let (servers, operators) = (Authority::new(), Authority::new());
    let server = servers.issue("box", &["box.test"], (KeyKind::Rsa, 2040));
    let ada = operators.issue("ada", &["ada.test"], (KeyKind::Rsa, 2040));
    let setup = Setup::new(&Origin::start()).operators("probes_open = false");
    let appliance = setup.tables(&tls_lines(&server, Some(&operators))).start();
    assert_eq!(ask_by_tls(&appliance, &client(&servers, None), "GET /live", &[]), None);
    assert_eq!(ask_by_tls(&appliance, &client(&servers, Some(&ada)), "GET /live", &[]), Some(200));
}

#[test]
fn the_listeners_certificate_and_authorities_are_replaced_while_in_use() {
    let (servers, operators, next) = (Authority::new(), Authority::new(), Authority::new());
    let server = servers.issue("box", &["box.test"], (KeyKind::Ecdsa, 2040));
    let ada = operators.issue("ada", &["ada.test"], (KeyKind::Ecdsa, 2040));
    let bob = next.issue("bob", &["bob.test"], (KeyKind::Ecdsa, 2040));
    let setup = Setup::new(&Origin::start()).operators(SOON);
    let appliance = setup.tables(&tls_lines(&server, Some(&operators))).start();
    let status = |who: &Issued| ask_by_tls(&appliance, &client(&servers, Some(who)), "GET /status", &[]);
    assert_eq!((status(&ada), status(&bob)), (Some(200), None));
    // In use only when it is good.
    crate::support::replace(&operators.root(), "no certificate");
    appliance.signal(Signal::HUP);
    wait_until("it is refused", PATIENCE, || appliance.log().contains("changed files are refused"));
    assert_eq!(status(&ada), Some(200));
    crate::support::replace(&operators.root(), &fs::read_to_string(next.root()).expect("readable"));
    wait_until("another authority's clients are operators", PATIENCE, || status(&bob) == Some(200));
    assert_eq!(status(&ada), None, "and the old one's are not");
}

/// Exit code and what is said of `oca why` at an address.
fn why(admin: &str, options: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oca"));
    let output = command.args(["why", "/a.mp4", "--admin", admin]).args(options).output().expect("it runs");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (output.status.code(), said.concat())
}

#[test]
fn commands_go_by_tls_and_say_what_is_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (token, line) = token_file(&folder);
    // The first is what a command presents; the appliance takes any.
    write_token(&token, &format!("# both, until everybody has the new one\n\n{TOKEN}\n{}\n", TOKEN.replace('0', "9")));
    let (servers, operators, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let server = servers.issue("box", &["localhost"], (KeyKind::Ecdsa, 2040));
    let ada = operators.issue("ada", &["ada.test"], (KeyKind::Ecdsa, 2040));
    let eve = strangers.issue("eve", &["eve.test"], (KeyKind::Ecdsa, 2040));
    let setup = Setup::new(&Origin::start()).operators(&line);
    let appliance = setup.tables(&tls_lines(&server, Some(&operators))).start();
    let port = appliance.admin_address().port();
    let (base, by_address) = (format!("https://localhost:{port}/"), format!("https://127.0.0.1:{port}/"));
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let (ca, token) = (text(&servers.root()), text(&token));
    let of = |who: &Issued| [text(&who.certificate), text(&who.key)];
    let ([certificate, key], [wrong, wrong_key]) = (of(&ada), of(&eve));

    let (code, said) = why(&base, &["--ca", &ca, "--token-file", &token]);
    assert!(code == Some(1) && said.contains("held      no"), "{said}");
    let (code, said) = why(&base, &["--ca", &ca, "--certificate", &certificate, "--key", &key]);
    assert!(code == Some(1) && said.contains("held      no"), "{said}");
    for (admin, options, expected) in [
        (&base, vec!["--ca", &ca], "--token-file FILE"),
        (&base, vec!["--token-file", &token], "--ca FILE names the authority"),
        (&by_address, vec!["--ca", &ca, "--token-file", &token], "the address has to name it as its certificate does"),
        (&base, vec!["--ca", &ca, "--certificate", &wrong, "--key", &wrong_key], "--certificate FILE and --key FILE"),
    ] {
        let (code, said) = why(admin, &options);
        assert!(code == Some(1) && said.contains(expected), "{options:?}: {said}");
        assert!(!said.contains(TOKEN), "{said}");
    }
    let (code, said) = why(&base, &["--certificate", &certificate]);
    assert!(code == Some(2) && said.contains("--key"), "{said}");
    let (_, said) = why(&base.replace("https", "http"), &["--ca", &ca]);
    assert!(said.contains("https://"), "{said}");
    let (code, said) = why("http://192.0.2.1:9090/", &["--token-file", &token]);
    assert!(code == Some(1) && said.contains("could read the token"), "never sent: {said}");

    let plain = Setup::new(&Origin::start()).start();
    let admin = format!("https://localhost:{}/", plain.admin_address().port());
    let (code, said) = why(&admin, &["--ca", &ca]);
    assert!(code == Some(3) && said.contains("does not speak TLS"), "{said}");

    // Some other program's address.
    let other = Origin::start();
    other.publish("/status", Published::bytes(b"{\"version\":1}".to_vec()));
    let mut command = Command::new(env!("CARGO_BIN_EXE_oca"));
    let output = command.args(["status", "--admin", &other.url()]).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(3) && said.contains("no appliance"), "{said}");
}

#[test]
fn web_pages_reach_nothing_on_this_machine() {
    let appliance = Setup::new(&Origin::start()).operators("hosts = [\"edge7.example\"]").start();
    let address = appliance.admin_address();
    let asked = |line: &str, host: &str, fields: &str| {
        let mut client = Client::connect(address);
        let json = "Content-Type: application/json\r\nContent-Length: 2\r\n";
        client.send(format!("{line} HTTP/1.1\r\nHost: {host}\r\n{json}{fields}\r\n{{}}").as_bytes());
        client.read_response("POST").expect("the response is whole").status()
    };
    let own = address.to_string();
    assert_eq!(asked("POST /v1/undrain", &own, ""), 200, "a command line");
    assert_eq!(asked("POST /v1/undrain", "edge7.example", ""), 200, "a name that the operator has given");
    assert_eq!(
        asked("POST /v1/undrain", &own, &format!("Origin: http://{own}\r\nSec-Fetch-Site: same-origin\r\n")),
        200
    );
    // A page whose own name leads to 127.0.0.1 once it is shown (DNS rebinding).
    for line in ["POST /v1/drain", "GET /status", "GET /metrics"] {
        assert_eq!(asked(line, "rebound.evil.example", ""), 421, "{line}");
        assert_eq!(asked(line, &format!("rebound.evil.example:{}", address.port()), ""), 421, "{line}");
    }
    // A page that sends a form to the address itself.
    for fields in [
        "Origin: http://evil.example\r\n",
        "Origin: null\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
        "Sec-Fetch-Site: same-site\r\n",
    ] {
        assert_eq!(asked("POST /v1/drain", &own, fields), 403, "{fields}");
    }
    assert_eq!(appliance.admin("/ready").status(), 200, "nothing has drained it");
    let preflight = format!(
        "OPTIONS /v1/drain HTTP/1.1\r\nHost: {own}\r\nOrigin: http://evil.example\r\nAccess-Control-Request-Method: POST\r\n\r\n"
    );
    let mut client = Client::connect(address);
    client.send(preflight.as_bytes());
    let answer = client.read_response("OPTIONS").expect("the response is whole");
    assert!(answer.status() == 403 && answer.field("access-control-allow-origin").is_none(), "{answer:?}");
}

#[test]
fn an_open_listener_and_wrong_files_are_faults_of_the_configuration() {
    let folder = tempfile::tempdir().expect("a folder");
    let (token, line) = token_file(&folder);
    let check = |admin: &str| {
        let file = folder.path().join("oca.toml");
        let text = format!(
            "[serve]\nhttp = [\"127.0.0.1:0\"]\n[[storage.volume]]\npath = {:?}\ncapacity = \"64 MiB\"\n[[fill.source]]\n\
             kind = \"origin\"\nurl = \"http://127.0.0.1:9/\"\n[admin]\n{admin}",
            folder.path().join("volume")
        );
        fs::write(&file, text).expect("written");
        let output = Command::new(env!("CARGO_BIN_EXE_oca")).arg("check-config").arg(&file).output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let open = "listen = \"0.0.0.0:0\"\n";
    let (code, shown) = check(open);
    assert_eq!(code, Some(2));
    for expected in ["oca.toml:10:", "can be reached from other machines", "token_file", "client_ca"] {
        assert!(shown.contains(expected), "'{expected}' is not in\n{shown}");
    }
    assert_eq!(check(&format!("{open}{line}")), (Some(0), String::new()));
    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).expect("it is ours");
    let (code, shown) = check(&format!("{open}{line}"));
    assert!(code == Some(2) && shown.contains("open to every user") && shown.contains("oca.toml:11:"), "{shown}");
    write_token(&token, "password");
    let (code, shown) = check(&line);
    assert!(code == Some(2) && shown.contains("a token of 8 characters") && !shown.contains("password"), "{shown}");

    let (servers, operators) = (Authority::new(), Authority::new());
    let server = servers.issue("box", &["box.test"], (KeyKind::Ecdsa, 2040));
    let old = servers.issue("old", &["old.test"], (KeyKind::Ecdsa, 2025));
    assert_eq!(check(&format!("{open}{}", tls_lines(&server, Some(&operators)))).0, Some(0));
    assert_eq!(check(&format!("{open}{}", tls_lines(&server, None))).0, Some(2), "TLS alone knows no operator");
    for (tls, line, expected) in [
        (tls_lines(&old, Some(&operators)), 11, "expired on"),
        (tls_lines(&Issued { key: old.key.clone(), ..server.clone() }, Some(&operators)), 12, "is not the key"),
        (format!("{}client_ca = {:?}\n", tls_lines(&server, None), server.key), 13, "no certificate in PEM"),
        (format!("{}client_ca = \"/nowhere\"\n", tls_lines(&server, None)), 13, "/nowhere cannot be read"),
    ] {
        let (code, shown) = check(&tls);
        assert!(code == Some(2) && shown.contains(expected), "'{expected}' is not in\n{shown}");
        assert!(shown.contains(&format!("oca.toml:{line}:")), "line {line} is not in\n{shown}");
    }
}

/// Moves what is counted of the admin listener.
pub(crate) fn strangers_and_renewals(looks: &mut Looks) {
    let appliance = Setup::new(&Origin::start()).start();
    looks.look(&appliance);
    assert_eq!(ask(&appliance, "GET", "/status", &[]).status(), 421, "tests go by a name of their own");
    looks.look(&appliance);
    let servers = Authority::new();
    let server = servers.issue("box", &["box.test"], (KeyKind::Ecdsa, 2040));
    // On loopback TLS alone is as good as none: its files are read anew all the same.
    let appliance = Setup::new(&Origin::start()).tables(&tls_lines(&server, None)).start();
    let text = |path: &str| {
        let mut client =
            Client::connect_tls(appliance.admin_address(), "box.test", &client(&servers, None)).expect("TLS");
        client.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
        String::from_utf8(client.read_response("GET").expect("whole").body).expect("text")
    };
    looks.note(&text("/metrics"));
    appliance.signal(Signal::HUP);
    wait_until("they are", PATIENCE, || text("/metrics").contains("oca_admin_reloads_total{outcome=\"used\"} 1"));
    looks.note(&text("/metrics"));
}
