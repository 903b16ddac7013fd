//! Faults put into a running appliance: each shows with its reason in `/status`, `/ready`, metrics and log, and goes when it is mended.

use std::{fs, process::Command, time::Duration};

use rustix::process::{Resource, Rlimit, prlimit};

use crate::{
    life::oca,
    support::{Appliance, Authority, Fault, KeyKind, Origin, Setup, may_mount, missing_tool, wait_until},
};

const PATIENCE: Duration = Duration::from_secs(30);
/// Looked at often, and soon forgotten.
pub(crate) const SOON: &str = "[health]\ninterval = \"50 ms\"\nwindow = \"2 s\"\n";

/// How it is, as `/status` has it.
fn health(appliance: &Appliance) -> serde_json::Value {
    let status: serde_json::Value = serde_json::from_slice(&appliance.admin("/status").body).expect("JSON");
    status["health"].clone()
}

fn has(appliance: &Appliance, code: &str) -> bool {
    health(appliance)["reasons"].as_array().expect("a list").iter().any(|reason| reason["code"] == code)
}

/// Waits for `code`, and looks that all who tell of health tell the same.
pub(crate) fn comes(appliance: &Appliance, code: &str, (state, ready): (&str, bool)) {
    wait_until(code, PATIENCE, || has(appliance, code));
    let labels = format!("code=\"{code}\"");
    wait_until("metrics say it too", PATIENCE, || appliance.metric("oca_health_reasons", &labels) >= 1.0);
    let found = health(appliance);
    assert_eq!(found["state"], state, "{found:#}");
    assert_eq!(appliance.metric("oca_health_state", &format!("state=\"{state}\"")), 1.0, "{found:#}");
    let answer = appliance.admin("/ready");
    assert_eq!(answer.status(), if ready { 200 } else { 503 }, "{found:#}");
    let told: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!((&told["ready"], &told["state"]), (&ready.into(), &state.into()));
    let reasons = told["reasons"].as_array().expect("a list");
    assert!(reasons.iter().any(|reason| reason["code"] == code && reason["words"].is_string()), "{told:#}");
    let report: serde_json::Value = serde_json::from_slice(&appliance.admin("/v1/report").body).expect("JSON");
    let reported = report["health"]["reasons"].as_array().expect("a list");
    assert!(reported.iter().any(|reason| reason["code"] == code), "{report:#}");
    assert!(appliance.log().contains(&format!("code=\"{code}\"")), "{}", appliance.log());
    let shown = appliance.page();
    assert!(shown.contains(&format!("<code>{code}</code>")), "{shown}");
    assert!(shown.contains(&format!("<h1>{state}</h1>")), "{shown}");
}

/// Waits until `code` has gone, and all is well.
pub(crate) fn goes(appliance: &Appliance, code: &str) {
    wait_until("it goes", PATIENCE, || !has(appliance, code));
    wait_until("all is well", PATIENCE, || health(appliance)["state"] == "serving");
    let labels = format!("code=\"{code}\"");
    wait_until("metrics say it too", PATIENCE, || appliance.metric("oca_health_reasons", &labels) == 0.0);
    assert_eq!(appliance.admin("/ready").status(), 200);
    wait_until("the page says it too", PATIENCE, || appliance.page().contains("all is well"));
}

#[test]
fn a_well_appliance_is_serving_and_says_how_loaded_it_is() {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 8_000_000);
    let appliance = Setup::new(&origin).tables(&format!("{SOON}egress_capacity = \"1 Gbps\"")).start();
    content.assert_is(0, &appliance.get("/film.mp4").body);
    goes(&appliance, "starting");
    let mut client = appliance.connect();
    wait_until("it is known what it can take", PATIENCE, || {
        content.assert_is(0, &client.get("/film.mp4").body);
        appliance.metric("oca_headroom_bits_per_second", "") > 0.0
    });
    let status: serde_json::Value = serde_json::from_slice(&appliance.admin("/status").body).expect("JSON");
    let load = &status["load"];
    assert!(load["egress"]["bits_per_second"]["short"].as_f64() > Some(1e6), "{load:#}");
    assert_eq!(load["egress"]["capacity"]["bits_per_second"], 1_000_000_000, "{load:#}");
    assert_eq!(load["egress"]["capacity"]["source"], "configured", "{load:#}");
    assert!(load["egress"]["interfaces"].as_array().is_some_and(|all| all.iter().any(|one| one["name"] == "lo")));
    assert_eq!(load["connections"]["open"], 1, "{load:#}");
    assert_eq!(load["cpu"]["workers"].as_array().map(Vec::len), Some(2), "{load:#}");
    assert!(load["requests"]["long"].as_f64() > Some(0.0), "{load:#}");
    assert!(load["headroom"]["limited_by"].is_string(), "{load:#}");
}

#[test]
fn a_disk_that_is_gone() {
    let origin = Origin::start();
    let other = tempfile::tempdir().expect("a scratch folder");
    let table = format!("[[storage.volume]]\npath = {:?}\ncapacity = \"1 GiB\"\n", other.path());
    let mut appliance =
        Setup::new(&origin).storage("probe_interval = \"50 ms\"").tables(&format!("{table}{SOON}")).start();
    let aside = appliance.volume().with_extension("unplugged");
    fs::rename(appliance.volume(), &aside).expect("it is ours");
    comes(&appliance, "volume_failed", ("degraded", true));
    assert!(!has(&appliance, "no_volume"), "there is another one");
    // Mended, it comes back with a restart.
    appliance.stop();
    fs::rename(&aside, appliance.volume()).expect("it is ours");
    appliance.start_again();
    goes(&appliance, "volume_failed");
}

#[test]
fn the_last_disk_that_is_gone() {
    let appliance = Setup::new(&Origin::start()).storage("probe_interval = \"50 ms\"").tables(SOON).start();
    fs::rename(appliance.volume(), appliance.volume().with_extension("unplugged")).expect("it is ours");
    comes(&appliance, "no_volume", ("down", false));
    assert!(has(&appliance, "volume_failed"), "and which");
}

#[test]
fn a_disk_that_is_full() {
    if !may_mount() {
        return;
    }
    let appliance = Setup::new(&Origin::start())
        .capacity("32 MiB")
        .storage("probe_interval = \"50 ms\"")
        .tables(&format!("{SOON}disk_free_percent = 10"))
        .mounts("mount -t tmpfs -o size=64m none \"$VOLUME\"")
        .start();
    goes(&appliance, "starting");
    // As the appliance sees it.
    let filler = appliance.seen(&appliance.volume()).join("filler");
    fs::write(&filler, vec![1; 60 << 20]).expect("there is room");
    comes(&appliance, "disk_full", ("degraded", true));
    fs::remove_file(&filler).expect("it is ours");
    goes(&appliance, "disk_full");
}

#[test]
fn a_disk_that_is_slow() {
    if missing_tool("strace") {
        return;
    }
    let appliance = Setup::new(&Origin::start())
        .storage("probe_interval = \"50 ms\"")
        .tables(&format!("{SOON}probe_max = \"400 ms\""))
        .start();
    goes(&appliance, "starting");
    let pid = appliance.pid().as_raw_nonzero().to_string();
    let mut slowing = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=900000"])
        .args(["-p", &pid])
        .spawn()
        .expect("it runs");
    comes(&appliance, "disk_slow", ("degraded", true));
    rustix::process::kill_process(rustix::process::Pid::from_child(&slowing), rustix::process::Signal::INT)
        .expect("it runs");
    slowing.wait().expect("it is our child");
    goes(&appliance, "disk_slow");
}

#[test]
fn a_certificate_that_is_about_to_expire() {
    let authority = Authority::new();
    let issued = authority.issue("a", &["a.test"], (KeyKind::Ecdsa, 2031));
    let appliance = Setup::new(&Origin::start())
        .tls(&issued, &[], "")
        .tables(&format!("{SOON}certificate_notice = \"3650 d\""))
        .start();
    comes(&appliance, "certificate_expiring", ("degraded", true));
    authority.issue("a", &["a.test"], (KeyKind::Ecdsa, 2045));
    goes(&appliance, "certificate_expiring");
}

#[test]
fn a_clock_that_is_moved() {
    let home = tempfile::tempdir().expect("a scratch folder");
    let (source, shim, ahead) = (home.path().join("c.c"), home.path().join("c.so"), home.path().join("ahead"));
    // Every program that reads the wall clock through the C library sees it moved by what the file says.
    let text = r#"
        #define _GNU_SOURCE
        #include <fcntl.h>
        #include <stdlib.h>
        #include <sys/syscall.h>
        #include <time.h>
        #include <unistd.h>
        int clock_gettime(clockid_t id, struct timespec *now) {
            long result = syscall(SYS_clock_gettime, id, now);
            if (result == 0 && id == CLOCK_REALTIME) {
                char text[16] = {0};
                int file = open(getenv("CLOCK_AHEAD"), O_RDONLY | O_CLOEXEC);
                if (file >= 0) {
                    if (read(file, text, sizeof text - 1) > 0) now->tv_sec += atol(text);
                    close(file);
                }
            }
            return (int)result;
        }"#;
    fs::write(&source, text).expect("written");
    fs::write(&ahead, "0").expect("written");
    let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&shim).arg(&source).status();
    assert!(made.expect("cc links every Rust program").success());
    let appliance = Setup::new(&Origin::start())
        .tables(&format!("{SOON}clock_jump_memory = \"3 s\"\n[process]\nsandbox = \"off\""))
        .environment("LD_PRELOAD", shim)
        .environment("CLOCK_AHEAD", ahead.clone())
        .start();
    goes(&appliance, "starting");
    fs::write(&ahead, "3600").expect("written");
    comes(&appliance, "clock_jumped", ("degraded", true));
    let reasons = health(&appliance).to_string();
    assert!(reasons.contains("forward by 3600 s"), "{reasons}");
    goes(&appliance, "clock_jumped");
}

#[test]
fn memory_that_is_low() {
    if !may_mount() {
        return;
    }
    let home = tempfile::tempdir().expect("a scratch folder");
    let table = home.path().join("meminfo");
    let says = |available: u64| {
        fs::write(&table, format!("MemTotal: 1000000 kB\nMemFree: 0 kB\nMemAvailable: {available} kB\n"))
            .expect("written");
    };
    says(500_000);
    let appliance = Setup::new(&Origin::start())
        .tables(SOON)
        .mounts(&format!("mount --bind {} /proc/meminfo", table.display()))
        .start();
    goes(&appliance, "starting");
    says(29_000);
    comes(&appliance, "memory_low", ("overloaded", true));
    says(36_000);
    assert!(has(&appliance, "memory_low"), "3.6 % of at least 3 is not calm yet");
    says(40_000);
    goes(&appliance, "memory_low");
}

#[test]
fn descriptors_that_run_out() {
    // What is open moves by a few: far below the limit of which it is counted.
    let tables = format!("{SOON}descriptors_percent = 75\n");
    let appliance = Setup::new(&Origin::start()).tables(&tables).start();
    goes(&appliance, "starting");
    let open = fs::read_dir(format!("/proc/{}/fd", appliance.pid().as_raw_nonzero())).expect("it runs").count() as u64;
    let tight = Rlimit { current: Some(open + 2), maximum: None };
    let (_, most) = rlimit::Resource::NOFILE.get().expect("the kernel says so");
    let tight = Rlimit { maximum: Some(most).filter(|most| *most != rlimit::INFINITY), ..tight };
    let before = prlimit(Some(appliance.pid()), Resource::Nofile, tight).expect("it is our child");
    comes(&appliance, "descriptors_low", ("overloaded", true));
    prlimit(Some(appliance.pid()), Resource::Nofile, before).expect("it is our child");
    goes(&appliance, "descriptors_low");
}

#[test]
fn fill_that_fails() {
    let origin = Origin::start();
    let appliance =
        Setup::new(&origin).catalog("failure_ttl = \"10 ms\"").source("failures_max = 1000").tables(SOON).start();
    let held = origin.publish_new("/held.mp4", 1, 10_000);
    held.assert_is(0, &appliance.get("/held.mp4").body);
    origin.fail("/film.mp4", Fault::Status(500), usize::MAX);
    wait_until("fetches fail", PATIENCE, || {
        assert_eq!(appliance.get("/film.mp4").status(), 502);
        has(&appliance, "fill_failing") && has(&appliance, "errors")
    });
    comes(&appliance, "fill_failing", ("degraded", true));
    held.assert_is(0, &appliance.get("/held.mp4").body);
    origin.recover();
    goes(&appliance, "fill_failing");
}

#[test]
fn a_source_that_is_down() {
    let origin = Origin::start();
    let held = origin.publish_new("/held.mp4", 1, 10_000);
    let appliance = Setup::new(&origin)
        .catalog("failure_ttl = \"10 ms\"")
        .source("failures_max = 2\nretry_after = \"200 ms\"")
        .tables(SOON)
        .start();
    held.assert_is(0, &appliance.get("/held.mp4").body);
    origin.fail("/film.mp4", Fault::Hangup, usize::MAX);
    wait_until("it is set aside", PATIENCE, || {
        assert!(matches!(appliance.get("/film.mp4").status(), 502..=504));
        has(&appliance, "source_down")
    });
    comes(&appliance, "no_source", ("degraded", true));
    held.assert_is(0, &appliance.get("/held.mp4").body);
    origin.recover();
    let film = origin.publish_new("/film.mp4", 2, 10_000);
    wait_until("it delivers again", PATIENCE, || {
        let response = appliance.get("/film.mp4");
        response.status() == 200 && film.first_difference(0, &response.body).is_none()
    });
    goes(&appliance, "no_source");
    assert!(!has(&appliance, "source_down"));
}

#[test]
fn a_drain() {
    let appliance = Setup::new(&Origin::start()).tables(SOON).start();
    assert!(oca(&appliance, &["drain"]).status.success());
    comes(&appliance, "draining", ("draining", false));
    assert!(oca(&appliance, &["drain", "--undo"]).status.success());
    goes(&appliance, "draining");
}

#[test]
fn a_change_is_told_once() {
    let appliance = Setup::new(&Origin::start()).tables(SOON).start();
    assert!(oca(&appliance, &["drain"]).status.success());
    comes(&appliance, "draining", ("draining", false));
    let looks = appliance.metric("oca_uptime_seconds", "");
    wait_until("it is looked at twenty times more", PATIENCE, || {
        appliance.metric("oca_uptime_seconds", "") >= looks + 2.0
    });
    assert_eq!(appliance.log().matches("code=\"draining\"").count(), 1, "{}", appliance.log());
}
