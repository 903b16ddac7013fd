//! More is asked for than can be done: who is refused, who is not, who says so, and that it goes again.
//!
//! A request for `/busy` keeps its worker for 10 ms, however fast the machine is: two viewers at a time are what it can do within 20 ms.

use std::{
    io::Write as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rustls::version::TLS13;
use serde_json::Value;

use crate::{
    clients::connect_from,
    metrics::Looks,
    support::{Appliance, Authority, Client, Content, KeyKind, Origin, Setup, http2::Http2, wait_until},
};

const PATIENCE: Duration = Duration::from_secs(30);
const BUSY: &str = "/busy";
/// What the hit path leaves to the handler, which is where a request takes its time.
const ASKED: &[(&str, &str)] = &[("If-None-Match", "\"another\"")];
/// Looked at often, and soon forgotten. Delays as by default.
const SOON: &str = "[health]\ninterval = \"50 ms\"\nwindow = \"2 s\"\negress_capacity = \"100 Gbps\"\n";

/// Viewers who ask again as soon as they are answered.
struct Viewers {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
    asking: Vec<JoinHandle<()>>,
}

impl Viewers {
    fn start(count: usize, address: SocketAddr, content: Content) -> Self {
        let (stop, served, refused) =
            (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let ask = || {
            let (stop, served, refused) = (Arc::clone(&stop), Arc::clone(&served), Arc::clone(&refused));
            thread::spawn(move || {
                let mut client = Client::connect(address);
                while !stop.load(Ordering::Relaxed) {
                    let response = match client.try_ask("GET", BUSY, ASKED) {
                        Ok(response) => response,
                        // It was idle for too long, on a machine that had other things to do.
                        Err(cut) if cut.received.is_empty() => {
                            client = Client::connect(address);
                            continue;
                        }
                        Err(cut) => panic!("cut: {cut:?}"),
                    };
                    if response.status() == 200 {
                        content.assert_is(0, &response.body);
                        served.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    assert_eq!(response.status(), 503);
                    let after = response.field("retry-after").and_then(|after| after.parse::<u64>().ok());
                    assert!(after.is_some_and(|after| (5..=10).contains(&after)), "{after:?}");
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let asking = (0..count).map(|_| ask()).collect();
        Self { stop, served, refused, asking }
    }

    fn counts(&self) -> (usize, usize) {
        (self.served.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
    }

    /// They leave; each was answered, to the last byte.
    fn leave(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.asking.into_iter().for_each(|viewer| viewer.join().expect("every answer was whole"));
    }
}

struct Scene {
    appliance: Appliance,
    authority: Authority,
    content: Content,
    _origin: Origin,
}

fn scene(serve: &str) -> Scene {
    let (origin, authority) = (Origin::start(), Authority::new());
    let issued = authority.issue("a", &["a.test"], (KeyKind::Ecdsa, 2045));
    let content = origin.publish_new(BUSY, 1, 50_000);
    let appliance = Setup::new(&origin)
        .workers(1)
        .sheds()
        .serve(serve)
        .tls(&issued, &[], "protocols = [\"http/1.1\", \"h2\"]")
        .tables(SOON)
        .environment("OCA_BUSY_AT", BUSY)
        .start();
    content.assert_is(0, &appliance.get(BUSY).body);
    Scene { appliance, authority, content, _origin: origin }
}

fn has(health: &Value, code: &str) -> bool {
    health["reasons"].as_array().is_some_and(|reasons| reasons.iter().any(|reason| reason["code"] == code))
}

/// Health, as `what` on the admin listener has it; `/ready` is nothing else.
fn health(appliance: &Appliance, what: &str) -> Value {
    let mut told: Value = serde_json::from_slice(&appliance.admin(what).body).expect("JSON");
    if what == "/ready" { told } else { told["health"].take() }
}

/// Whether all who tell of health say that requests are refused.
fn all_say_so(appliance: &Appliance) -> bool {
    let told = ["/status", "/v1/report", "/ready"].map(|what| health(appliance, what));
    told.iter().all(|health| health["state"] == "overloaded" && has(health, "refusing"))
        && appliance.admin("/ready").status() == 503
        && appliance.metric("oca_health_reasons", "code=\"refusing\"") == 1.0
        && appliance.metric("oca_health_state", "state=\"overloaded\"") == 1.0
}

fn closed(appliance: &Appliance, reason: &str) -> f64 {
    appliance.metric("oca_connections_closed_total", &format!("reason=\"{reason}\""))
}

/// Moves what is counted of overload.
pub(crate) fn too_much_and_enough(looks: &mut Looks) {
    let scene = scene("idle_timeout_overloaded = \"1 s\"");
    let Scene { appliance, authority, content, .. } = &scene;
    wait_until("all is well", PATIENCE, || health(appliance, "/status")["state"] == "serving");
    looks.look(appliance);
    let mut idle = appliance.connect();
    assert_eq!(idle.get("/none").status(), 404);

    let viewers = Viewers::start(12, appliance.http(), *content);
    wait_until("all who tell of it say so", PATIENCE, || {
        looks.look(appliance);
        all_say_so(appliance)
    });
    let refused = |whose: &str| appliance.metric("oca_overload_refusals_total", &format!("whose=\"{whose}\""));
    wait_until("the part that is refused is told", PATIENCE, || {
        looks.look(appliance);
        looks.moved("worker_refused_ratio", "gauge")
    });
    wait_until("both kinds are refused", PATIENCE, || refused("newcomer") > 0.0 && refused("viewer") > 0.0);
    wait_until("who says nothing is sent away sooner", PATIENCE, || closed(appliance, "overload") >= 1.0);
    assert!(idle.until_closed().is_empty());
    // A handshake costs more than it is worth just now.
    let config = authority.client(&[&TLS13], &["http/1.1"]);
    wait_until("newcomers by TLS are closed before it", PATIENCE, || {
        drop(Client::connect_tls(appliance.https(), "a.test", &config));
        refused("handshake") > 0.0
    });
    let before = viewers.counts();
    wait_until("some are served all the time", PATIENCE, || {
        let now = viewers.counts();
        now.0 >= before.0 + 100 && now.1 >= before.1 + 20
    });
    looks.look(appliance);
    assert!(appliance.log().contains("code=\"refusing\""), "{}", appliance.log());
    viewers.leave();
    assert_eq!(appliance.metric("oca_responses_cut_total", ""), 0.0);

    wait_until("it is over", PATIENCE, || health(appliance, "/status")["state"] == "serving");
    wait_until("metrics say it too", PATIENCE, || appliance.metric("oca_health_reasons", "code=\"refusing\"") == 0.0);
    assert_eq!(appliance.admin("/ready").status(), 200);
    let mut client = appliance.connect();
    for _ in 0..20 {
        content.assert_is(0, &client.ask("GET", BUSY, ASKED).body);
    }
    Client::connect_tls(appliance.https(), "a.test", &config).expect("and by TLS");
    looks.look(appliance);
}

#[test]
fn what_is_too_much_is_refused_and_told_until_it_is_enough() {
    too_much_and_enough(&mut Looks::default());
}

#[test]
fn a_refusal_is_the_same_by_either_path_and_by_http_2() {
    let scene = scene("");
    // While requests are refused, nobody gets in by TLS anew.
    let config = scene.authority.client(&[&TLS13], &["h2"]);
    let mut multiplexed =
        Http2::begin(Client::connect_tls(scene.appliance.https(), "a.test", &config).expect("a session"), 1 << 30);
    let stream = multiplexed.ask(BUSY, &[]);
    scene.content.assert_is(0, &multiplexed.finish(stream).body);
    let viewers = Viewers::start(12, scene.appliance.http(), scene.content);
    let refused = |fields: &[(&str, &str)]| {
        let mut response = None;
        wait_until("somebody is refused", PATIENCE, || {
            // Anew each time: a newcomer.
            let told = scene.appliance.connect().ask("GET", BUSY, fields);
            let is_it = told.status() == 503;
            response = Some(told);
            is_it
        });
        response.expect("it was refused")
    };
    let (at_once, by_the_handler) = (refused(&[]), refused(ASKED));
    wait_until("and by HTTP/2", PATIENCE, || {
        let stream = multiplexed.ask(BUSY, &[]);
        multiplexed.finish(stream).body == at_once.body
    });
    viewers.leave();
    assert_eq!(at_once.body, by_the_handler.body);
    let fields = |response: &crate::support::Response| {
        let mut fields = response.head.fields.clone();
        fields.retain(|(name, _)| !matches!(name.to_ascii_lowercase().as_str(), "date" | "retry-after"));
        fields.sort();
        fields
    };
    assert_eq!(fields(&at_once), fields(&by_the_handler));
    assert!(
        at_once.head.is("cache-control", "no-store") && at_once.head.is("access-control-allow-origin", "*"),
        "for players"
    );
}

#[test]
fn the_longest_idle_make_room_when_nearly_all_connections_are_open() {
    room_for_connections(&mut Looks::default());
}

/// Many clients who each hold a few, say nothing or half of a head, and would not be told to go before an hour is over.
#[test]
fn those_who_hold_connections_and_ask_for_nothing_make_room_for_who_does() {
    let origin = Origin::start();
    origin.publish_new("/film.mp4", 1, 5000);
    let serve =
        "connections_max = 20\nconnections_percent = 50\nheader_timeout = \"60 min\"\nidle_timeout = \"60 min\"";
    let appliance = Setup::new(&origin).workers(1).serve(serve).start();
    assert_eq!(appliance.get("/film.mp4").head.status, 200);
    for said in ["", "GET /film.mp4 HTTP/1.1\r\nHost"] {
        let full = || appliance.metric("oca_connections_refused_total", "reason=\"full\"");
        let before = full();
        let mut held = Vec::new();
        wait_until("all are taken", PATIENCE, || {
            let mut one = connect_from(&format!("127.0.0.{}", 100 + held.len() % 20), appliance.http());
            one.write_all(said.as_bytes()).expect("sent");
            held.push(one);
            full() > before
        });
        wait_until("a viewer finds room", PATIENCE, || {
            let asked = appliance.connect().try_ask("GET", "/film.mp4", &[]);
            asked.is_ok_and(|response| response.head.status == 200)
        });
    }
}

/// Moves what is counted of connections that make room.
pub(crate) fn room_for_connections(looks: &mut Looks) {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 5000);
    let appliance = Setup::new(&origin).workers(1).serve("connections_max = 20\nconnections_percent = 50").start();
    let connected = |count: usize| -> Vec<Client> {
        let get = |_| {
            let mut client = appliance.connect();
            content.assert_is(0, &client.get("/film.mp4").body);
            client
        };
        (0..count).map(get).collect()
    };
    let old = connected(5);
    let uptime = || appliance.metric("oca_uptime_seconds", "");
    let then = uptime();
    wait_until("they are older than the others", PATIENCE, || uptime() > then + 1.0);
    let mut young = connected(10);
    wait_until("there is room", PATIENCE, || closed(&appliance, "connections_full") >= 5.0);
    for mut client in old {
        assert!(client.until_closed().is_empty());
    }
    for client in &mut young {
        content.assert_is(0, &client.get("/film.mp4").body);
    }
    assert_eq!(closed(&appliance, "connections_full"), 5.0);
    looks.look(&appliance);
}
