//! The process: what it gives up before it serves, what it never says, what a fault of ours costs.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use rustix::process::Signal;
use rustls::version::TLS13;

use crate::support::{
    Appliance, Authority, Client, Fault, KeyKind, Origin, Over, Setup, http2::Http2, replace, request, wait_until,
};

const PATIENCE: Duration = Duration::from_secs(20);
const GOOD: (KeyKind, i32) = (KeyKind::Ecdsa, 2040);

/// Whether this kernel can confine a process; says so where it cannot.
fn is_confined(appliance: &Appliance) -> bool {
    let log = appliance.whole_log();
    let confined = log.contains("sandbox: Landlock and no new privileges");
    if !confined {
        assert!(log.contains("sandbox: no new privileges, but every file can be opened: "), "{log}");
        eprintln!("SKIPPED in part: this kernel has no Landlock");
    }
    confined
}

#[test]
fn every_thread_has_given_up_new_privileges() {
    let origin = Origin::start();
    let appliance = Setup::new(&origin).start();
    origin.publish_new("/film.mp4", 1, 5_000_000);
    appliance.get("/film.mp4");
    is_confined(&appliance);
    assert!(!appliance.whole_log().contains("threads that are there before the sandbox"), "{}", appliance.log());
    let threads = fs::read_dir(format!("/proc/{}/task", appliance.pid().as_raw_nonzero())).expect("it runs");
    let given_up = threads.filter_map(|thread| {
        let status = thread.expect("listed").path().join("status");
        // It may have ended.
        Some(fs::read_to_string(status).ok()?.contains("NoNewPrivs:\t1"))
    });
    let given_up: Vec<bool> = given_up.collect();
    assert!(given_up.len() > 4 && !given_up.contains(&false), "{given_up:?}");
}

/// A table that grows while viewers come holds up the worker that accepts one of them.
#[test]
fn descriptors_have_room_before_viewers_come() {
    let origin = Origin::start();
    let appliance = Setup::new(&origin).serve("connections_max = 3000").start();
    let status = fs::read_to_string(format!("/proc/{}/status", appliance.pid().as_raw_nonzero())).expect("it runs");
    let slots = status.lines().find_map(|line| line.strip_prefix("FDSize:")).expect("there").trim();
    assert!(slots.parse::<u32>().expect("a number") >= 3000, "{slots}");
}

/// A certificate that is renewed by turning a link to `elsewhere`: whether it was taken.
fn renews_from(elsewhere: &Path, process: &str) -> (Appliance, bool) {
    let (authority, origin) = (Authority::new(), Origin::start());
    let issued = authority.issue("a", &["a.test"], GOOD);
    let appliance = Setup::new(&origin).tls(&issued, &[], "").tables(process).start();
    let [certificate, key] = ["b.pem", "b.key"].map(|name| elsewhere.join(name));
    let renewed = authority.issue("b", &["a.test"], GOOD);
    fs::copy(&renewed.certificate, &certificate).expect("copied");
    fs::copy(&renewed.key, &key).expect("copied");
    for (link, target) in [(&issued.certificate, &certificate), (&issued.key, &key)] {
        fs::remove_file(link).expect("removed");
        symlink(target, link).expect("linked");
    }
    appliance.signal(Signal::HUP);
    let count = |outcome: &str| appliance.metric("oca_tls_renewals_total", &format!("outcome=\"{outcome}\"")) as u64;
    wait_until("it is looked at", PATIENCE, || count("used") + count("refused") > 0);
    let used = count("used") > 0;
    (appliance, used)
}

#[test]
fn files_that_the_configuration_does_not_name_cannot_be_opened() {
    let elsewhere = tempfile::tempdir().expect("a folder");
    let (appliance, used) = renews_from(elsewhere.path(), "");
    if is_confined(&appliance) {
        assert!(!used, "a file out of reach was read");
        assert!(appliance.log().contains("Permission denied"), "{}", appliance.log());
    }
    let (appliance, used) = renews_from(elsewhere.path(), "[process]\nsandbox = \"off\"");
    assert!(used, "{}", appliance.log());
    assert!(appliance.whole_log().contains("no sandbox: process.sandbox is off"));
}

#[test]
fn it_needs_no_root() {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 5_000_000);
    let mut appliance = Setup::new(&origin).unprivileged().start();
    for _ in 0..2 {
        content.assert_is(0, &appliance.get("/film.mp4").body);
    }
    let status = fs::read_to_string(format!("/proc/{}/status", appliance.pid().as_raw_nonzero())).expect("it runs");
    assert!(!status.contains("Uid:\t0\t"), "{status}");
    for set in ["CapPrm", "CapEff"] {
        assert!(status.contains(&format!("{set}:\t0000000000000000")), "{status}");
    }
    assert!(!appliance.whole_log().contains("runs as root"));
    assert_eq!(appliance.admin("/ready").status(), 200);
    appliance.stop();
}

#[test]
fn what_this_machine_is_short_of_is_raised_or_said_at_start() {
    let origin = Origin::start();
    let limits = |appliance: &Appliance| {
        let limits = fs::read_to_string(format!("/proc/{}/limits", appliance.pid().as_raw_nonzero())).expect("it runs");
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("the kernel says so");
        let (soft, rest) = line.trim().split_once(' ').expect("two numbers");
        (soft.to_owned(), rest.trim().split(' ').next().expect("a number").to_owned())
    };
    let appliance = Setup::new(&origin).before("ulimit -S -n 300").start();
    let (soft, hard) = limits(&appliance);
    assert_eq!(soft, hard, "raised as far as it goes");
    let appliance = Setup::new(&origin).before("ulimit -n 4000").start();
    assert_eq!(limits(&appliance), ("4000".into(), "4000".into()));
    let log = appliance.whole_log();
    let said = log.lines().find(|line| line.contains("4000 file descriptors and")).expect("said");
    assert!(said.contains("WARN") && said.contains("LimitNOFILE= in the unit") && said.contains("to 49664"), "{said}");
    assert_eq!(appliance.get("/none").status(), 404, "it serves all the same");
}

#[test]
fn a_receive_buffer_that_the_kernel_cuts_is_said_at_start() {
    const KERNEL: &str = "/proc/sys/net/core/rmem_max";
    let Ok(most) = fs::read_to_string(KERNEL) else {
        eprintln!("SKIPPED: this network namespace does not say what the kernel gives");
        return;
    };
    let most: u64 = most.trim().parse().expect("a number");
    let origin = Origin::start();
    let start = |bytes: u64| Setup::new(&origin).serve(&format!("receive_buffer = \"{bytes} B\"")).start().whole_log();
    let cut = "to serve.receive_buffer: raise net.core.rmem_max";
    assert!(!start(most.clamp(16 << 10, 64 << 10)).contains(cut));
    if most < 16 << 20 {
        assert!(start(most + 4096).contains(cut), "{most} bytes are what the kernel gives");
    } else {
        eprintln!("SKIPPED: the kernel gives as much as can be asked for");
    }
}

#[test]
fn a_panic_costs_its_connection_and_is_counted() {
    let (authority, origin) = (Authority::new(), Origin::start());
    let content = origin.publish_new("/film.mp4", 1, 3_000_000);
    let issued = authority.issue("a", &["a.test"], GOOD);
    let setup = Setup::new(&origin).workers(1).tls(&issued, &[], "protocols = [\"h2\", \"http/1.1\"]");
    let appliance = setup.environment("OCA_PANIC_AT", "/panic").start();
    let panics = || appliance.metric("oca_panics_total", "");
    content.assert_is(0, &appliance.get("/film.mp4").body);
    assert_eq!(panics(), 0.0);

    // Others of the same worker, in the middle of a response.
    let mut other = appliance.connect();
    other.send(&request("GET", "/film.mp4", &[]));
    let head = other.read_head().expect("it begins");
    let mut client = appliance.connect();
    client.send(&request("GET", "/panic", &[]));
    assert!(client.until_closed().is_empty(), "no half of an answer");
    let config = authority.client(&[&TLS13], &["http/1.1"]);
    let mut client = Client::connect_tls(appliance.https(), "a.test", &config).expect("a session");
    client.send(&request("GET", "/panic", &[]));
    client.read_head().expect_err("no half of an answer");
    wait_until("they are counted", PATIENCE, || panics() == 2.0);

    let mut streams = http2(&authority, &appliance);
    let stream = streams.ask("/panic", &[]);
    assert!(streams.finish(stream).reset);
    let stream = streams.ask("/film.mp4", &[]);
    content.assert_is(0, &streams.finish(stream).body);
    wait_until("it is counted", PATIENCE, || panics() == 3.0);

    content.assert_is(0, &other.read_body(&head, "GET").expect("whole"));
    content.assert_is(0, &appliance.get("/film.mp4").body);
    wait_until("none is left", PATIENCE, || appliance.metric("oca_connections", "") <= 2.0);
    assert!(appliance.whole_log().contains("a request panicked; its connection is closed"), "{}", appliance.log());
}

fn http2(authority: &Authority, appliance: &Appliance) -> Http2 {
    let config = authority.client(&[&TLS13], &["h2"]);
    Http2::begin(Client::connect_tls(appliance.https(), "a.test", &config).expect("a session"), 1 << 30)
}

/// Logs are rotated, certificates and keys renewed, and the appliance told so, a hundred times under load by each protocol: no handshake and no
/// request fails, and no line of the access log is lost.
#[test]
fn a_hundred_reloads_under_load_fail_nothing() {
    /// One request, on the connection that is kept or on a new one.
    type Ask<'a> = dyn Fn(&mut Option<Client>) + Sync + 'a;
    const RELOADS: u32 = 100;
    let (authority, origin, folder) = (Authority::new(), Origin::start(), tempfile::tempdir().expect("a folder"));
    let content = origin.publish_new("/film.mp4", 1, 300_000);
    let issued = authority.issue("a", &["a.test"], GOOD);
    let [keys, log] = ["keys.json", "access.log"].map(|name| folder.path().join(name));
    let set = || said(&["keys", "new", "--kid", "plain", "--algorithm", "hs256"]);
    fs::write(&keys, set()).expect("written");
    let tables = format!(
        "[[serve.signing.key_set]]\npath = {keys:?}\nform = \"hmac\"\n[log.access]\npath = {log:?}\n[serve.signing]\n\
         check_interval = \"50 ms\"\n"
    );
    let setup = Setup::new(&origin).tls(&issued, &[], "protocols = [\"h2\", \"http/1.1\"]").tables(&tables);
    let setup = setup.serve("ranges_max = 2");
    let appliance = setup.start();
    content.assert_is(0, &appliance.get("/film.mp4").body);
    let (over, requests) = (AtomicBool::new(false), AtomicU64::new(1));
    let load = |ask: &Ask<'_>| {
        let mut kept = None;
        while !over.load(Ordering::Relaxed) {
            ask(&mut kept);
            requests.fetch_add(1, Ordering::Relaxed);
        }
    };
    let keeps = |kept: &mut Option<Client>| {
        let client = kept.get_or_insert_with(|| appliance.connect());
        content.assert_is(1000, &client.range("/film.mp4", "bytes=1000-200000").body);
    };
    let begins = |_: &mut Option<Client>| {
        let mut client = authority.connect(appliance.https(), "a.test");
        content.assert_is(0, &client.get("/film.mp4").body);
    };
    let streams = |_: &mut Option<Client>| {
        let mut client = http2(&authority, &appliance);
        let stream = client.ask("/film.mp4", &[("range", "bytes=7-70000")]);
        content.assert_is(7, &client.finish(stream).body);
    };
    let asks: [&Ask<'_>; 3] = [&keeps, &begins, &streams];
    thread::scope(|scope| {
        let (load, ended) = (&load, Over(&over));
        let running = asks.map(|ask| scope.spawn(move || load(ask)));
        let count = |name: &str| appliance.metric(name, "outcome=\"used\"") as u32;
        let file = appliance.volume().with_file_name("oca.toml");
        for reload in 1..=RELOADS {
            authority.issue("a", &["a.test"], GOOD);
            if reload % 10 == 0 {
                replace(&keys, &set());
            }
            fs::rename(&log, folder.path().join(format!("access.log.{reload}"))).expect("rotated");
            // Another configuration each time, which every worker takes up.
            let text = fs::read_to_string(&file).expect("it is there");
            let (now, next) = (reload + 1, reload + 2);
            replace(&file, &text.replace(&format!("ranges_max = {now}\n"), &format!("ranges_max = {next}\n")));
            appliance.signal(Signal::HUP);
            wait_until("the log is opened anew", PATIENCE, || log.exists());
            wait_until("the certificate is used", PATIENCE, || count("oca_tls_renewals_total") >= reload);
            assert!(running.iter().all(|running| !running.is_finished()), "a request has failed");
        }
        let taken = || appliance.whole_log().matches("changed=\"serve.ranges_max\"").count();
        wait_until("each configuration was taken over", PATIENCE, || taken() == RELOADS as usize);
        wait_until("the keys are used", PATIENCE, || count("oca_signing_key_reloads_total") >= RELOADS / 10);
        drop(ended);
        for running in running {
            running.join().expect("every request was answered");
        }
    });
    let handshakes = |outcome: &str| appliance.metric("oca_tls_handshakes_total", &format!("outcome=\"{outcome}\""));
    assert_eq!(handshakes("failed") + handshakes("cut"), 0.0);
    let requests = requests.into_inner();
    eprintln!("{RELOADS} reloads, {requests} requests");
    let lines = || -> u64 {
        let files = fs::read_dir(folder.path()).expect("a folder").map(|entry| entry.expect("listed").path());
        let logs =
            files.filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"access")));
        logs.map(|path| fs::read_to_string(path).expect("a log").lines().count() as u64).sum()
    };
    wait_until("each has its line", PATIENCE, || lines() >= requests);
    assert_eq!(lines(), requests);
}

/// What `oca sign` and `oca keys` write.
fn said(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_oca")).args(arguments).output().expect("it runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

/// The secret members of a JWK Set.
fn secrets_of(set: &str) -> Vec<String> {
    let set: serde_json::Value = serde_json::from_str(set).expect("JSON");
    let keys = set["keys"].as_array().expect("keys");
    let members = keys.iter().flat_map(|key| ["d", "k"].map(|name| key[name].as_str()));
    members.flatten().map(Into::into).collect()
}

#[test]
fn secrets_are_in_no_log() {
    const BEARER: &str = "bearer-4f1d6a0c9b7e";
    const PASSWORD: &str = "password-81c2e7d5";
    let (authority, origin, folder) = (Authority::new(), Origin::start(), tempfile::tempdir().expect("a folder"));
    origin.publish_new("/films/1.mp4", 1, 100_000);
    origin.publish_new("/films/cut.mp4", 1, 3_000_000);
    origin.fail("/films/cut.mp4", Fault::Short(1_000_000), 2);
    let [tokens, hmac, log] = ["tokens.json", "hmac.json", "access.log"].map(|name| folder.path().join(name));
    let sets =
        [said(&["keys", "new", "--kid", "token"]), said(&["keys", "new", "--kid", "plain", "--algorithm", "hs256"])];
    fs::write(&tokens, &sets[0]).expect("written");
    fs::write(&hmac, &sets[1]).expect("written");
    let issued = authority.issue("a", &["a.test"], GOOD);
    let tables = format!(
        "[log]\nfilter = \"trace,rustls=trace,h2=trace\"\n[serve.signing]\ncheck_interval = \"50 ms\"\ndefault = \"required\"\nrenewal_key = \"token\"\n\
         [[serve.signing.key_set]]\npath = {tokens:?}\nform = \"uri-signing\"\nissuers = [\"cms\"]\n\
         [[serve.signing.key_set]]\npath = {hmac:?}\nform = \"hmac\"\n[log.access]\npath = {log:?}\n"
    );
    let url = origin.url().replace("http://", &format!("http://user:{PASSWORD}@"));
    let appliance =
        Setup::from_url(&url).tls(&issued, &[], "protocols = [\"h2\", \"http/1.1\"]").tables(&tables).start();

    let sign = |path: &str, more: &[&str]| {
        let url = format!("http://test{path}");
        let arguments = [&["sign"], more, &[url.as_str()]].concat();
        said(&arguments).strip_prefix("http://test").expect("the same host").to_owned()
    };
    let (tokens, hmac) = (tokens.to_str().expect("text"), hmac.to_str().expect("text"));
    let mut targets = vec![
        sign("/films/1.mp4", &["--keys", tokens]),
        sign("/films/cut.mp4", &["--keys", tokens]),
        sign("/films/1.mp4", &["--hmac", "--keys", hmac]),
        sign("/films/1.mp4", &["--keys", tokens, "--issuer", "stranger"]),
    ];
    let forged = format!("{}x", targets[0]);
    targets.push(forged);
    let config = authority.client(&[&TLS13], &["http/1.1"]);
    let bearer = format!("Bearer {BEARER}");
    for target in &targets {
        for fields in [
            &[("Authorization", bearer.as_str())][..],
            &[("Cookie", &target[target.find('?').expect("a query") + 1..])],
        ] {
            appliance.connect().send(&request("GET", target, fields));
            drop(appliance.connect().ask("HEAD", target, fields));
            drop(
                Client::connect_tls(appliance.https(), "a.test", &config)
                    .expect("a session")
                    .ask("HEAD", target, fields),
            );
        }
        let mut streams = http2(&authority, &appliance);
        let stream = streams.ask(target, &[("authorization", bearer.as_str())]);
        streams.finish(stream);
        appliance.connect().send(&request("GET", target, &[]));
    }
    // New keys, and nonsense, are read under way.
    let reloads = |outcome: &str| appliance.metric("oca_signing_key_reloads_total", &format!("outcome=\"{outcome}\""));
    replace(Path::new(tokens), &sets[0].replacen("\"kty\"", "\"kty", 1));
    wait_until("nonsense is refused", PATIENCE, || reloads("refused") > 0.0);
    replace(Path::new(tokens), &sets[0]);
    replace(Path::new(hmac), &sets[1].replacen("plain", "other", 1));
    wait_until("a new one is used", PATIENCE, || reloads("used") > 0.0);
    appliance.signal(Signal::HUP);
    let status = String::from_utf8(appliance.admin("/status").body).expect("text");
    let metrics = String::from_utf8(appliance.admin("/metrics").body).expect("text");

    let mut secrets: Vec<String> = sets.iter().flat_map(|set| secrets_of(set)).collect();
    assert_eq!(secrets.len(), 2);
    for target in &targets {
        // What lets others in: the value of the last parameter of the query.
        let (_, value) = target.rsplit_once('=').expect("a value");
        secrets.push(value.into());
    }
    let key = fs::read_to_string(&issued.key).expect("there");
    secrets.extend(key.lines().filter(|line| !line.starts_with('-')).map(Into::into));
    secrets.extend([BEARER.into(), PASSWORD.into()]);
    let mut access = String::new();
    wait_until("the log is written", PATIENCE, || {
        access = fs::read_to_string(&log).unwrap_or_default();
        access.lines().count() >= targets.len()
    });
    let messages = appliance.whole_log();
    assert!(messages.contains("TRACE") && messages.contains("DEBUG"), "it is told to say everything");
    assert!(access.contains("/films/1.mp4") && messages.contains("tokens.json is no JWK Set"), "and it does");
    for (place, text) in
        [("the log", &messages), ("the access log", &access), ("/status", &status), ("/metrics", &metrics)]
    {
        for secret in &secrets {
            let at = text.find(secret.as_str());
            let line = at.map(|at| &text[text[..at].rfind('\n').unwrap_or(0)..at + secret.len()]);
            assert_eq!(line, None, "{place} tells {secret}");
        }
    }
}
