//! A life from start to stop: drained and undrained by order, and what commands say where nobody answers.

use std::{
    process::{Command, Output},
    time::Duration,
};

use crate::support::{Appliance, Origin, Setup};

/// `oca` with these arguments, for the appliance.
pub(crate) fn oca(appliance: &Appliance, arguments: &[&str]) -> Output {
    let admin = appliance.admin_url();
    Command::new(env!("CARGO_BIN_EXE_oca")).args(arguments).args(["--admin", &admin]).output().expect("it runs")
}

pub(crate) fn said(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn phase(appliance: &Appliance) -> String {
    let status: serde_json::Value = serde_json::from_slice(&appliance.admin("/status").body).expect("JSON");
    status["phase"].as_str().expect("a phase").to_owned()
}

#[test]
fn a_drained_appliance_says_so_and_serves_on() {
    let origin = Origin::start();
    let content = origin.publish_new("/a.mp4", 1, 100_000);
    let appliance = Setup::new(&origin).start();
    assert_eq!(appliance.admin("/ready").head.status, 200);

    let drained = oca(&appliance, &["drain"]);
    assert!(drained.status.success(), "{}", said(&drained.stderr));
    assert!(said(&drained.stdout).starts_with("draining: "), "{}", said(&drained.stdout));
    assert_eq!(phase(&appliance), "draining");
    let ready = appliance.admin("/ready");
    assert_eq!(ready.head.status, 503);
    assert!(said(&ready.body).contains("the appliance is draining"), "{}", said(&ready.body));
    // Who has not heard of it yet is served, also by a new connection.
    assert_eq!(appliance.get("/a.mp4").body, content.whole());

    // A viewer who stays is waited for, and no longer than is said.
    let viewer = appliance.connect();
    let waited = oca(&appliance, &["drain", "--wait", "300 ms"]);
    assert_eq!(waited.status.code(), Some(1), "{}", said(&waited.stdout));
    assert!(said(&waited.stdout).ends_with("open: 1\n"), "{}", said(&waited.stdout));
    drop(viewer);
    assert!(oca(&appliance, &["drain", "--wait", "20 s"]).status.success());

    let undone = oca(&appliance, &["drain", "--undo"]);
    assert!(said(&undone.stdout).starts_with("serving: "), "{}", said(&undone.stdout));
    assert_eq!(appliance.admin("/ready").head.status, 200);
    let log = appliance.log();
    assert!(log.contains("drained by order") && log.contains("the drain is taken back"), "{log}");
}

#[test]
fn a_drained_appliance_stops_as_any_other() {
    let mut appliance = Setup::new(&Origin::start()).start();
    assert!(oca(&appliance, &["drain"]).status.success());
    appliance.stop();
}

#[test]
fn where_nobody_answers_the_command_says_where_it_looked_and_what_to_do() {
    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("bound");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("oca.toml");
    // The certificate is not there: no business of a command.
    let text = format!(
        "[serve]\nhttps = [\"127.0.0.1:0\"]\n[serve.tls]\ncertificate = \"/nowhere/a.pem\"\nkey = \"/nowhere/a.key\"\n\
         [[storage.volume]]\npath = \"/nowhere/disk\"\ncapacity = \"1 GiB\"\n[[fill.source]]\nkind = \"origin\"\n\
         url = \"http://127.0.0.1:9/\"\n[admin]\nlisten = \"{free}\"\n"
    );
    std::fs::write(&file, text).expect("written");
    let run = |arguments: &[&str]| Command::new(env!("CARGO_BIN_EXE_oca")).args(arguments).output().expect("it runs");
    let by_file = run(&["drain", "--config", &file.display().to_string()]);
    let by_url = run(&["drain", "--admin", &format!("http://{free}")]);
    for output in [by_file, by_url] {
        let words = said(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{words}");
        for expected in [&format!("no appliance answers at http://{free}/"), "refused", "Is it running?", "--admin URL"]
        {
            assert!(words.contains(expected), "'{expected}' is not in {words}");
        }
    }
    std::fs::write(&file, "[admin]\nlitsen = 1\n").expect("written");
    let faulty = run(&["drain", "--config", &file.display().to_string()]);
    assert_eq!(faulty.status.code(), Some(2));
    assert!(said(&faulty.stderr).contains("did you mean 'listen'?"), "{}", said(&faulty.stderr));
}

#[test]
fn what_is_no_appliance_is_told_from_one() {
    let origin = Origin::start();
    let output =
        Command::new(env!("CARGO_BIN_EXE_oca")).args(["drain", "--admin", &origin.url()]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(3));
    assert!(said(&output.stderr).contains("there is none, or one of another version"), "{}", said(&output.stderr));
}

#[test]
fn an_order_that_is_waited_for_ends() {
    // A listener that takes connections and says nothing.
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = deaf.local_addr().expect("bound");
    let begun = std::time::Instant::now();
    let asked = std::thread::spawn(move || {
        Command::new(env!("CARGO_BIN_EXE_oca"))
            .args(["drain", "--admin", &format!("http://{address}")])
            .output()
            .expect("it runs")
    });
    let (stream, _) = deaf.accept().expect("it comes");
    drop(stream);
    assert_eq!(asked.join().expect("no panic").status.code(), Some(3));
    assert!(begun.elapsed() < Duration::from_secs(30));
}
