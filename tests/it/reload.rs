//! The configuration, read again while the appliance serves: what can change does, what cannot is named, and a file with faults changes
//! nothing.

use std::{fs, io::Read as _, net::TcpListener, path::PathBuf, time::Duration};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Appliance, Authority, Client, KeyKind, Origin, Response, Setup, replace, wait_until};

const PATIENCE: Duration = Duration::from_secs(30);

fn file(appliance: &Appliance) -> PathBuf {
    appliance.volume().with_file_name("oca.toml")
}

/// Has it read its configuration again, and waits until it has; gives what it said meanwhile.
fn reload(appliance: &Appliance) -> String {
    let ends = ["reload: done", "reload: nothing of the configuration is taken over"];
    let ended = |log: &str| {
        ends.iter().map(|end| log.matches(end).count()).sum::<usize>()
            + log.matches("reload: the configuration has faults").count()
    };
    let before = appliance.whole_log();
    appliance.signal(Signal::HUP);
    wait_until("it was read again", PATIENCE, || ended(&appliance.whole_log()) > ended(&before));
    appliance.whole_log()[before.len()..].to_owned()
}

/// Changes `from`, which stands in the configuration, to `to`, as somebody who replaces the file; what is said to that.
fn change(appliance: &Appliance, from: &str, to: &str) -> String {
    let text = fs::read_to_string(file(appliance)).expect("it is there");
    assert!(text.contains(from), "'{from}' is not in\n{text}");
    replace(&file(appliance), &text.replacen(from, to, 1));
    reload(appliance)
}

/// As `change`, where all of it takes effect.
fn take(appliance: &Appliance, from: &str, to: &str) {
    let said = change(appliance, from, to);
    assert!(said.contains("reload: done") && !said.contains("needs a restart") && !said.contains("ERROR"), "{said}");
}

fn status(appliance: &Appliance) -> Value {
    serde_json::from_slice(&appliance.admin("/status").body).expect("JSON")
}

fn field<'r>(response: &'r Response, name: &str) -> Option<&'r str> {
    response.head.field(name)
}

#[test]
fn what_viewers_get_changes_with_their_next_request() {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 100_000);
    let appliance = Setup::new(&origin)
        .serve("ranges_max = 4\nserver_name = \"one\"\nheader_count_max = 20\nquery_in_key = false")
        .tables("[serve.cors]\norigins = [\"https://a.test\"]")
        .start();
    content.assert_is(0, &appliance.get("/film.mp4").body);
    // One connection over all of it: nobody has to come anew.
    let mut viewer = appliance.connect();
    let mut ask = |fields: &[(&str, &str)]| viewer.ask("GET", "/film.mp4", fields);
    let hit = ask(&[]);
    assert!(field(&hit, "cache-status").is_some_and(|said| said.starts_with("one;")));
    let from_b = [("Origin", "https://b.test")];
    assert_eq!(field(&ask(&from_b), "access-control-allow-origin"), None);
    take(&appliance, "https://a.test", "https://b.test");
    assert_eq!(field(&ask(&from_b), "access-control-allow-origin"), Some("https://b.test"));
    take(&appliance, "\"one\"", "\"other\"");
    assert!(field(&ask(&[]), "cache-status").is_some_and(|said| said.starts_with("other;")));
    let two = [("Range", "bytes=0-0,5-5")];
    assert_eq!(ask(&two).status(), 206);
    take(&appliance, "ranges_max = 4", "ranges_max = 1");
    assert_eq!(ask(&two).status(), 416);
    let asked = origin.targets().len();
    assert_eq!(viewer.get("/film.mp4?a=1").status(), 200);
    assert_eq!(origin.targets().len(), asked, "the query is nothing to it");
    take(&appliance, "query_in_key = false", "query_in_key = true");
    assert_eq!(viewer.get("/film.mp4?a=1").status(), 200);
    assert!(origin.targets().len() > asked, "another asset");
    take(&appliance, "header_count_max = 20", "header_count_max = 2");
    assert_eq!(viewer.ask("GET", "/film.mp4", &[("A", "1"), ("B", "2"), ("C", "3")]).status(), 431);
}

#[test]
fn who_is_served_changes_for_new_connections() {
    let origin = Origin::start();
    origin.publish_new("/film.mp4", 1, 5000);
    let appliance = Setup::new(&origin).serve("connections_max = 100").tables("[serve.clients]\nallow = []\n").start();
    let mut old = appliance.connect();
    assert_eq!(old.get("/film.mp4").status(), 200);
    take(&appliance, "allow = []", "allow = [\"192.0.2.0/24\"]");
    assert_eq!(appliance.get("/film.mp4").status(), 403);
    assert_eq!(old.get("/film.mp4").status(), 200, "who is here stays");
    take(&appliance, "allow = [\"192.0.2.0/24\"]", "connections_max = 1");
    let mut first = appliance.connect();
    assert_eq!(first.get("/film.mp4").status(), 200);
    assert_eq!(appliance.get("/film.mp4").status(), 429);
    take(&appliance, "[serve.clients]\nconnections_max = 1", "[serve.clients]\nrequest_rate = 0");
    assert_eq!(appliance.get("/film.mp4").status(), 200);
    // The bound of all connections: two are open already.
    take(&appliance, "connections_max = 100", "connections_max = 2");
    assert_eq!(appliance.get("/film.mp4").status(), 503);
    take(&appliance, "connections_max = 2", "connections_max = 100");
    assert_eq!(appliance.get("/film.mp4").status(), 200);
}

#[test]
fn deadlines_change_at_once() {
    let origin = Origin::start();
    origin.publish_new("/film.mp4", 1, 5000);
    let appliance = Setup::new(&origin).serve("idle_timeout = \"1 h\"").start();
    let mut idle = appliance.connect();
    assert_eq!(idle.get("/film.mp4").status(), 200);
    take(&appliance, "idle_timeout = \"1 h\"", "idle_timeout = \"10 ms\"");
    wait_until("it is closed", PATIENCE, || {
        appliance.metric("oca_connections_closed_total", "reason=\"idle_timeout\"") > 0.0
    });
}

#[test]
fn rules_of_signed_urls_change() {
    let origin = Origin::start();
    origin.publish_new("/film.mp4", 1, 5000);
    let appliance = Setup::new(&origin).tables("[serve.signing]\ndefault = \"off\"\n").start();
    let set = appliance.volume().with_file_name("keys.json");
    let made = std::process::Command::new(env!("CARGO_BIN_EXE_oca"))
        .args(["keys", "new", "--kid", "one", "--algorithm", "es256"])
        .output()
        .expect("it runs");
    fs::write(&set, made.stdout).expect("written");
    let mut viewer = appliance.connect();
    assert_eq!(viewer.get("/film.mp4").status(), 200);
    let with_keys =
        format!("default = \"required\"\n[[serve.signing.key_set]]\npath = {set:?}\nform = \"uri-signing\"\n");
    take(&appliance, "default = \"off\"\n", &with_keys);
    assert_eq!(viewer.get("/film.mp4").status(), 401);
    take(&appliance, &with_keys, "default = \"off\"\n");
    assert_eq!(viewer.get("/film.mp4").status(), 200);
}

#[test]
fn a_certificate_for_another_host_is_shown() {
    let authority = Authority::new();
    let [a, b] = ["a", "b"].map(|name| authority.issue(name, &[&format!("{name}.test")], (KeyKind::Ecdsa, 2040)));
    let appliance = Setup::new(&Origin::start()).tls(&a, &[], "").start();
    let config = authority.client(&[&rustls::version::TLS13], &["http/1.1"]);
    let shown = |host: &str| Client::connect_tls(appliance.https(), host, &config).is_ok();
    assert!(shown("a.test") && !shown("b.test"));
    let text = fs::read_to_string(file(&appliance)).expect("it is there");
    replace(&file(&appliance), &format!("{text}\n[[serve.tls.pair]]\n{}", b.lines()));
    let said = reload(&appliance);
    assert!(said.contains("reload: done") && !said.contains("needs a restart"), "{said}");
    assert!(shown("a.test") && shown("b.test"));
    assert_eq!(appliance.metric("oca_tls_certificate_expiry_seconds", "b.pem").min(1.0), 1.0);
    replace(&file(&appliance), &text);
    reload(&appliance);
    assert!(shown("a.test") && !shown("b.test"));
    assert_eq!(appliance.metric("oca_tls_certificate_expiry_seconds", "b.pem"), 0.0, "nobody is warned of it later");
}

#[test]
fn a_volume_shrinks_and_grows() {
    let origin = Origin::start();
    let appliance = Setup::new(&origin).capacity("64 MiB").start();
    let films: Vec<String> = (0..20).map(|number| format!("/{number}.mp4")).collect();
    let contents: Vec<_> = (1..).zip(&films).map(|(seed, film)| origin.publish_new(film, seed, 2 << 20)).collect();
    for (film, content) in films.iter().zip(&contents) {
        content.assert_is(0, &appliance.get(film).body);
    }
    let used = || status(&appliance)["volumes"][0]["used_bytes"].as_u64().expect("a number");
    assert!(used() >= 40 << 20, "{}", used());
    take(&appliance, "64 MiB", "16 MiB");
    wait_until("what is too much is evicted", PATIENCE, || used() <= 16 << 20);
    assert_eq!(status(&appliance)["volumes"][0]["capacity_bytes"], 16 << 20);
    for (film, content) in films.iter().zip(&contents) {
        content.assert_is(0, &appliance.get(film).body);
    }
    take(&appliance, "16 MiB", "64 MiB");
    for (film, content) in films.iter().zip(&contents) {
        content.assert_is(0, &appliance.get(film).body);
    }
    wait_until("all are held", PATIENCE, || used() >= 40 << 20);
}

#[test]
fn sources_come_and_go() {
    let [first, second] = [Origin::start(), Origin::start()];
    let one = first.publish_new("/one.mp4", 1, 5000);
    second.publish_new("/two.mp4", 2, 5000);
    let appliance = Setup::new(&first).catalog("negative_ttl = \"1 d\"").start();
    one.assert_is(0, &appliance.get("/one.mp4").body);
    assert_eq!(appliance.get("/two.mp4").status(), 404);
    let more = format!("[admin]\n[[fill.source]]\nkind = \"origin\"\nurl = \"{}\"\n", second.url());
    let (table, source) = more.split_once('\n').expect("two lines");
    // What was remembered is so for as long as it was to be; what is asked for the first time is not.
    take(&appliance, table, &format!("{source}{table}"));
    let three = second.publish_new("/three.mp4", 3, 5000);
    three.assert_is(0, &appliance.get("/three.mp4").body);
    let names = |of: Value| -> Vec<String> {
        of["sources"].as_array().expect("a list").iter().map(|one| one["name"].as_str().expect("text").into()).collect()
    };
    assert_eq!(names(status(&appliance)), ["origin-0", "origin-1"]);
    take(&appliance, &first.url(), &second.url());
    let said = change(&appliance, source, "");
    assert!(said.contains("reload: done"), "{said}");
    assert_eq!(names(status(&appliance)), ["origin-0"]);
    let asked = first.targets().len();
    let four = second.publish_new("/four.mp4", 4, 5000);
    four.assert_is(0, &appliance.get("/four.mp4").body);
    assert_eq!(first.targets().len(), asked, "it is no source any more");
    one.assert_is(0, &appliance.get("/one.mp4").body);
}

#[test]
fn windows_and_rates_of_fill_change() {
    let window =
        |days: &str| format!("[[fill.window]]\ndays = [{days}]\nfrom = \"00:00\"\nto = \"24:00\"\nrate = \"1 Gbps\"\n");
    let every = "\"mon\", \"tue\", \"wed\", \"thu\", \"fri\", \"sat\", \"sun\"";
    let appliance = Setup::new(&Origin::start()).tables(&window(every)).start();
    let state = || status(&appliance)["fill"]["window"]["state"].clone();
    wait_until("it is open", PATIENCE, || state() == "open");
    // A day of its own, which is neither today nor about to be.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("later").as_secs() / 86_400;
    let other = ["\"thu\"", "\"fri\"", "\"sat\"", "\"sun\"", "\"mon\"", "\"tue\"", "\"wed\""][((now + 3) % 7) as usize];
    take(&appliance, every, other);
    wait_until("it is closed", PATIENCE, || state() == "closed");
}

#[test]
fn steering_services_come_and_go() {
    let appliance = Setup::new(&Origin::start()).tables("[steering]\ninterval = \"1 s\"\n").start();
    let service = TcpListener::bind("127.0.0.1:0").expect("bound");
    let url = format!("http://{}/report", service.local_addr().expect("bound"));
    let table = format!("[[steering.service]]\nurl = \"{url}\"\n");
    let with = format!("interval = \"1 s\"\n{table}");
    take(&appliance, "interval = \"1 s\"\n", &with);
    let (mut reporting, _) = service.accept().expect("a report comes");
    let mut head = [0; 13];
    reporting.read_exact(&mut head).expect("a request");
    assert_eq!(&head, b"POST /report ");
    drop(reporting);
    take(&appliance, &table, "");
    let reports = || appliance.metric("oca_steering_reports_total", "");
    let then = reports();
    let uptime = appliance.metric("oca_uptime_seconds", "");
    wait_until("three intervals have passed", PATIENCE, || appliance.metric("oca_uptime_seconds", "") >= uptime + 3.0);
    assert_eq!(reports(), then, "nobody is reported to");
}

#[test]
fn operators_are_asked_for_a_token() {
    let appliance = Setup::new(&Origin::start()).operators("probes_open = true").start();
    let token = appliance.volume().with_file_name("token");
    fs::write(&token, "0123456789abcdef0123456789abcdef\n").expect("written");
    fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("ours");
    assert_eq!(appliance.admin("/status").status(), 200);
    take(&appliance, "probes_open = true", &format!("token_file = {token:?}\nprobes_open = true"));
    assert_eq!((appliance.admin("/status").status(), appliance.admin("/live").status()), (401, 200));
    take(&appliance, "probes_open = true", "probes_open = false");
    assert_eq!(appliance.admin("/live").status(), 401);
    take(&appliance, &format!("token_file = {token:?}\n"), "");
    assert_eq!(appliance.admin("/status").status(), 200);
}

#[test]
fn what_is_well_and_what_is_shown_changes() {
    let appliance =
        Setup::new(&Origin::start()).tables("[health]\ninterval = \"1 s\"\n[log]\nfilter = \"info\"\n").start();
    let capacity = || status(&appliance)["load"]["egress"]["capacity"]["bits_per_second"].clone();
    take(
        &appliance,
        "interval = \"1 s\"",
        "interval = \"50 ms\"\negress_capacity = \"7 Gbps\"\ndescriptors_percent = 1",
    );
    wait_until("it goes by the new capacity", PATIENCE, || capacity() == 7_000_000_000_u64);
    assert!(!appliance.whole_log().contains("DEBUG"));
    take(&appliance, "\"info\"", "\"info,oca=debug\"");
    appliance.admin("/nowhere");
    appliance.connect().send(b"no request\r\n\r\n");
    wait_until("more is shown", PATIENCE, || appliance.whole_log().contains("DEBUG"));
}

#[test]
fn a_key_that_needs_a_restart_is_named_each_time() {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 5000);
    let appliance = Setup::new(&origin).serve("miss_timeout = \"20 s\"").start();
    let said = change(&appliance, "workers = 2\n", "workers = 1\nbacklog = 100\n");
    for key in ["key=serve.workers", "key=serve.backlog"] {
        assert!(said.contains(key) && said.contains("this key needs a restart"), "'{key}' is not in\n{said}");
    }
    let said = change(&appliance, "miss_timeout = \"20 s\"", "miss_timeout = \"21 s\"");
    assert!(said.contains("key=serve.workers") && said.contains("changed=\"serve.miss_timeout\""), "{said}");
    content.assert_is(0, &appliance.get("/film.mp4").body);
    let said = change(&appliance, "workers = 1\nbacklog = 100\n", "workers = 2\n");
    assert!(!said.contains("needs a restart"), "it is as it runs: {said}");
}

#[test]
fn a_file_with_faults_changes_nothing_and_shows_them_all() {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 5000);
    let appliance = Setup::new(&origin).serve("server_name = \"old\"").start();
    let told = |appliance: &Appliance| appliance.get("/film.mp4").head.field("cache-status").expect("told").to_owned();
    content.assert_is(0, &appliance.get("/film.mp4").body);
    let said =
        change(&appliance, "server_name = \"old\"", "server_name = \"new\"\nidel_timeout = \"1 s\"\nretry_after = 5\n");
    for expected in [
        "did you mean 'idle_timeout'?",
        "serve.retry_after cannot be read",
        "2 faults in the configuration",
        "nothing of it is taken over",
    ] {
        assert!(said.contains(expected), "'{expected}' is not in\n{said}");
    }
    assert!(told(&appliance).starts_with("old;"));
    // Not there at all, and then mended.
    let aside = file(&appliance).with_extension("aside");
    fs::rename(file(&appliance), &aside).expect("it is ours");
    let said = reload(&appliance);
    assert!(said.contains("cannot be read") && said.contains("nothing of it is taken over"), "{said}");
    assert!(told(&appliance).starts_with("old;"));
    fs::rename(&aside, file(&appliance)).expect("it is ours");
    take(&appliance, "idel_timeout = \"1 s\"\nretry_after = 5\n", "");
    assert!(told(&appliance).starts_with("new;"));
}

#[test]
fn a_folder_out_of_reach_is_said_to_be_so() {
    let origin = Origin::start();
    let appliance = Setup::new(&origin).serve("server_name = \"old\"").start();
    if !appliance.whole_log().contains("sandbox: Landlock") {
        return;
    }
    let elsewhere = tempfile::tempdir().expect("a folder");
    let source =
        format!("[[fill.source]]\nkind = \"origin\"\nurl = \"file://{}\"\n[admin]", elsewhere.path().display());
    let said = change(&appliance, "[admin]", &source);
    assert!(said.contains("cannot be read by this process") && said.contains("restart it"), "{said}");
    assert!(said.contains("nothing of the configuration is taken over"), "{said}");
}
