//! Whose connections are taken in, and how much one client may ask for.

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::Signal;
use socket2::{Domain, Socket, Type};

use crate::{
    metrics::Looks,
    support::{
        Appliance, Authority, Client, KeyKind, Origin, Response, Setup,
        http2::{Http2, OK},
        replace, request, wait_until,
    },
};

const PATIENCE: Duration = Duration::from_secs(20);

/// A socket from `from`, which has to be an address of this machine.
pub(crate) fn connect_from(from: &str, to: SocketAddr) -> TcpStream {
    let from: IpAddr = from.parse().expect("an address");
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::new(from, 0).into()).expect("every 127.x.x.x is this machine's");
    socket.connect(&to.into()).expect("the server accepts connections");
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

fn client_from(from: &str, appliance: &Appliance) -> Client {
    Client::over(connect_from(from, appliance.http()))
}

/// What who connects from there is told, before or after asking.
fn get_from(from: &str, appliance: &Appliance) -> Response {
    let mut client = client_from(from, appliance);
    // Refused connections may be closed before the request is sent.
    drop(client.try_send(&request("GET", "/film.mp4", &[])));
    client.read_response("GET").expect("the response is whole")
}

fn scene(clients: &str) -> (Origin, Appliance) {
    let origin = Origin::start();
    origin.publish_new("/film.mp4", 1, 5000);
    let appliance = Setup::new(&origin).tables(&format!("[serve.clients]\n{clients}")).start();
    (origin, appliance)
}

fn denials(appliance: &Appliance, reason: &str) -> f64 {
    appliance.metric("oca_client_denials_total", &format!("reason=\"{reason}\""))
}

#[test]
fn only_the_networks_on_the_list_are_served() {
    let (_origin, appliance) = scene("allow = [\"127.1.0.0/16\", \"127.0.0.9\"]");
    for inside in ["127.1.0.1", "127.1.255.254", "127.0.0.9"] {
        assert_eq!(get_from(inside, &appliance).status(), 200, "{inside}");
    }
    for outside in ["127.0.0.1", "127.2.0.1", "127.0.0.8"] {
        let refused = get_from(outside, &appliance);
        assert_eq!(refused.status(), 403, "{outside}");
        assert_eq!(refused.field("connection"), Some("close"));
        assert_eq!(refused.field("retry-after"), None, "it need not come again");
    }
    assert_eq!(denials(&appliance, "network"), 3.0);
    assert_eq!(appliance.metric("oca_connections_accepted_total", ""), 3.0);
    wait_until("none is left open", PATIENCE, || appliance.metric("oca_connections", "") == 0.0);
    assert_eq!(appliance.admin("/ready").status(), 200, "the list is for viewers");
}

#[test]
fn a_stranger_is_sent_away_before_the_handshake() {
    let (origin, authority) = (Origin::start(), Authority::new());
    origin.publish_new("/film.mp4", 1, 5000);
    let issued = authority.issue("a", &["a.test"], (KeyKind::Ecdsa, 2040));
    let setup = Setup::new(&origin).tls(&issued, &[], "");
    let appliance = setup.tables("[serve.clients]\nallow = [\"127.1.0.0/16\"]").start();
    let config = authority.client(&[&rustls::version::TLS13], &["http/1.1"]);
    assert!(Client::connect_tls(appliance.https(), "a.test", &config).is_err());
    assert_eq!(denials(&appliance, "network"), 1.0);
    assert_eq!(appliance.metric("oca_tls_handshakes_total", ""), 0.0, "nothing was computed for it");
    let mut inside = Client::over_tls(connect_from("127.1.0.1", appliance.https()), "a.test", &config).expect("TLS");
    assert_eq!(inside.get("/film.mp4").status(), 200);
}

#[test]
fn the_list_is_replaced_while_in_use() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("networks");
    fs::write(&file, "127.1.0.0/16\n").expect("written");
    let (_origin, appliance) = scene(&format!("allow_file = {file:?}\ncheck_interval = \"50 ms\""));
    let status = |from: &str| get_from(from, &appliance).status();
    assert_eq!((status("127.1.0.1"), status("127.2.0.1")), (200, 403));
    let mut staying = client_from("127.1.0.1", &appliance);
    assert_eq!(staying.get("/film.mp4").status(), 200);
    replace(&file, "127.2.0.0/16 # moved\n");
    wait_until("the new one is served", PATIENCE, || status("127.2.0.1") == 200);
    assert_eq!(status("127.1.0.1"), 403);
    assert_eq!(staying.get("/film.mp4").status(), 200, "connections that exist are not touched");
    // What is no good changes nothing but the log and a count.
    for broken in ["", "# nobody\n", "127.2.0.0/99\n", "127.0.0.1/8\n"] {
        replace(&file, broken);
        let before = appliance.metric("oca_network_reloads_total", "outcome=\"refused\"");
        appliance.signal(Signal::HUP);
        wait_until("it is refused", PATIENCE, || {
            appliance.metric("oca_network_reloads_total", "outcome=\"refused\"") > before
        });
        assert_eq!((status("127.1.0.1"), status("127.2.0.1")), (403, 200), "{broken:?}");
    }
}

#[test]
fn a_client_has_only_so_many_connections() {
    let (_origin, appliance) = scene("connections_max = 3\nunlimited = [\"127.3.0.0/16\"]");
    let mut own: Vec<Client> = (0..3).map(|_| client_from("127.1.0.1", &appliance)).collect();
    for client in &mut own {
        assert_eq!(client.get("/film.mp4").status(), 200, "over both workers together");
    }
    let refused = get_from("127.1.0.1", &appliance);
    assert_eq!((refused.status(), refused.field("retry-after")), (429, Some("5")));
    assert_eq!(denials(&appliance, "connections"), 1.0);
    assert_eq!(get_from("127.1.0.2", &appliance).status(), 200, "a neighbour is another client");
    let many: Vec<Client> = (0..10).map(|_| client_from("127.3.0.1", &appliance)).collect();
    for mut client in many {
        assert_eq!(client.get("/film.mp4").status(), 200, "who has no limits");
    }
    for client in &mut own {
        assert_eq!(client.get("/film.mp4").status(), 200, "who is in stays in");
    }
    own.pop();
    wait_until("a place is free again", PATIENCE, || get_from("127.1.0.1", &appliance).status() == 200);
}

#[test]
fn a_client_may_ask_only_so_often() {
    let log = tempfile::tempdir().expect("a folder");
    let path = log.path().join("access.log");
    let (_origin, appliance) = scene(&format!("request_rate = 1\nrequest_burst = 20\n[log.access]\npath = {path:?}\n"));
    let mut client = client_from("127.1.0.1", &appliance);
    let first: Vec<u16> = (0..19).map(|_| client.get("/film.mp4").status()).collect();
    assert_eq!(first, [200; 19], "with its connection, that is its burst");
    let refused: Vec<Response> = (0..20).map(|_| client.get("/film.mp4")).collect();
    let (late, granted): (Vec<_>, Vec<_>) = refused.iter().partition(|response| response.status() == 429);
    assert!(granted.len() <= 3 && late.len() >= 17, "{} of 20 were refused", late.len());
    for response in &late {
        assert_eq!(response.field("retry-after"), Some("1"));
        assert_eq!(response.field("cache-control"), Some("no-store"));
        assert_eq!(response.field("connection"), None, "to connect again would cost more");
    }
    assert_eq!(denials(&appliance, "requests"), late.len() as f64);
    assert_eq!(appliance.metric("oca_responses_total", "status=\"429\""), late.len() as f64);
    // By whatever connection, and before it costs more than that.
    assert_eq!(get_from("127.1.0.1", &appliance).status(), 429);
    assert_eq!(get_from("127.1.0.2", &appliance).status(), 200, "a neighbour is another client");
    wait_until("it may ask again", PATIENCE, || client.get("/film.mp4").status() == 200);
    wait_until("it is in the log", PATIENCE, || {
        let text = fs::read_to_string(&path).unwrap_or_default();
        text.lines().any(|line| line.contains("\"status\":429") && line.contains("\"requests\""))
    });
}

#[test]
fn a_body_is_not_taken_for_a_request_by_who_asks_too_often() {
    let (_origin, appliance) = scene("request_rate = 1\nrequest_burst = 2");
    let mut client = client_from("127.1.0.1", &appliance);
    client.get("/film.mp4");
    let smuggled = b"GET /film.mp4 HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut bytes = request("GET", "/film.mp4", &[("Content-Length", &smuggled.len().to_string())]);
    bytes.extend_from_slice(smuggled);
    client.send(&bytes);
    let said = String::from_utf8_lossy(&client.until_closed()).into_owned();
    assert_eq!(said.matches("HTTP/1.1 ").count(), 1, "{said}");
    assert!(said.starts_with("HTTP/1.1 400 "), "{said}");
}

#[test]
fn streams_are_requests_of_their_client() {
    let (origin, authority) = (Origin::start(), Authority::new());
    origin.publish_new("/film.mp4", 1, 5000);
    let issued = authority.issue("a", &["a.test"], (KeyKind::Ecdsa, 2040));
    let setup = Setup::new(&origin).tls(&issued, &[], "");
    let appliance = setup.tables("[serve.clients]\nrequest_rate = 1\nrequest_burst = 6").start();
    let config = authority.client(&[&rustls::version::TLS13], &["h2"]);
    let client = Client::connect_tls(appliance.https(), "a.test", &config).expect("a session");
    let mut http2 = Http2::begin(client, 1 << 20);
    let served: Vec<bool> = (0..12)
        .map(|_| {
            let stream = http2.ask("/film.mp4", &[]);
            http2.finish(stream).status == Some(OK)
        })
        .collect();
    assert_eq!(served[..5], [true; 5], "with its connection, that is its burst");
    assert!(served[5..].iter().filter(|served| !**served).count() >= 5, "{served:?}");
    assert_eq!(
        appliance.metric("oca_responses_total", "status=\"429\"") + served.iter().filter(|s| **s).count() as f64,
        12.0
    );
}

#[test]
fn a_flood_of_one_client_does_not_refuse_another() {
    let (_origin, appliance) = scene("connections_max = 10");
    // More than are told why at once, of whom none reads it.
    let flood: Vec<TcpStream> = (0..300).map(|_| connect_from("127.1.0.1", appliance.http())).collect();
    for n in 1..=20 {
        assert_eq!(get_from(&format!("127.2.0.{n}"), &appliance).status(), 200);
    }
    assert!(appliance.metric("oca_connections", "") <= 11.0, "they take no place from others");
    wait_until("all are counted", PATIENCE, || denials(&appliance, "connections") == 290.0);
    drop(flood);
    wait_until("nothing is left of it", PATIENCE, || appliance.metric("oca_clients_remembered", "") == 0.0);
}

#[test]
fn prefixes_make_clients_and_the_table_has_a_bound() {
    let (_origin, appliance) = scene("connections_max = 2\nrequest_rate = 100\nipv4_prefix = 24\ntable_max = 64");
    let _two = [1, 2].map(|n| client_from(&format!("127.1.0.{n}"), &appliance));
    wait_until("both are in", PATIENCE, || appliance.metric("oca_connections", "") == 2.0);
    assert_eq!(get_from("127.1.0.3", &appliance).status(), 429, "of the same 24 bits");
    assert_eq!(get_from("127.1.1.1", &appliance).status(), 200);
    for n in 0..500 {
        assert_eq!(get_from(&format!("127.9.{}.1", n % 250), &appliance).status(), 200);
    }
    let remembered = appliance.metric("oca_clients_remembered", "");
    assert!((1.0..=64.0).contains(&remembered), "{remembered}");
    assert_eq!(get_from("127.1.0.3", &appliance).status(), 429, "who is connected is not forgotten");
}

#[test]
fn what_cannot_be_is_a_fault_of_the_configuration() {
    let folder = tempfile::tempdir().expect("a folder");
    let networks = folder.path().join("networks");
    fs::write(&networks, "10.0.0.0/8\n10.0.0.0/64\n").expect("written");
    let empty: PathBuf = folder.path().join("empty");
    fs::write(&empty, "").expect("written");
    let check = |folder: &Path, clients: &str| {
        let file = folder.join("oca.toml");
        let volume = folder.join("volume");
        let text = format!(
            "[serve]\nhttp = [\"127.0.0.1:0\"]\n[[storage.volume]]\npath = {volume:?}\ncapacity = \"64 MiB\"\n[[fill.source]]\n\
             kind = \"origin\"\nurl = \"http://127.0.0.1:9/\"\n[serve.clients]\n{clients}"
        );
        fs::write(&file, text).expect("written");
        let output = Command::new(env!("CARGO_BIN_EXE_oca")).arg("check-config").arg(&file).output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (clients, expected) in [
        ("allow = [\"10.0.0.1/8\"]".into(), "did you mean 10.0.0.0/8?"),
        ("allow = [\"example.com\"]".into(), "'example.com' is no network"),
        ("unlimited = [\"10.0.0.0/33\"]".into(), "'10.0.0.0/33' is no network"),
        (format!("allow_file = {networks:?}"), "line 2: '10.0.0.0/64' is no network"),
        (format!("allow_file = {empty:?}"), "names no network"),
        ("allow_file = \"/nowhere/networks\"".into(), "read /nowhere/networks"),
        ("ipv4_prefix = 33".into(), "33 bits of an IPv4 address"),
        ("ipv6_prefix = 0".into(), "0 bits of an IPv6 address"),
        ("request_rate = 100\nrequest_burst = 10".into(), "a burst of 10"),
        ("table_max = 0".into(), "no client could be remembered"),
        ("request_rate = -1".into(), "write a whole number"),
    ] {
        let (code, shown) = check(folder.path(), &clients);
        let line = format!("oca.toml:{}:", 9 + clients.lines().count());
        assert!(code == Some(2) && shown.contains(expected) && shown.contains(&line), "{clients}: {shown}");
    }
    let good = "allow = [\"10.0.0.0/8\", \"2001:db8::/32\", \"192.0.2.1\"]\nconnections_max = 100\nrequest_rate = 500";
    assert_eq!(check(folder.path(), good), (Some(0), String::new()));
}

/// Moves what is counted of clients.
pub(crate) fn clients_of_every_kind(looks: &mut Looks) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("networks");
    fs::write(&file, "127.1.0.0/16\n").expect("written");
    let (_origin, appliance) = scene(&format!("allow_file = {file:?}\nconnections_max = 1"));
    looks.look(&appliance);
    assert_eq!(get_from("127.2.0.1", &appliance).status(), 403);
    let mut client = client_from("127.1.0.1", &appliance);
    assert_eq!(client.get("/film.mp4").status(), 200);
    assert_eq!(get_from("127.1.0.1", &appliance).status(), 429);
    appliance.signal(Signal::HUP);
    wait_until("it is read", PATIENCE, || appliance.metric("oca_network_reloads_total", "outcome=\"used\"") > 0.0);
    looks.look(&appliance);
}
