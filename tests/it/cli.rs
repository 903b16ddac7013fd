//! The commands as a person types them.

use std::{
    fs,
    net::TcpListener,
    process::{Command, Output},
};

fn oca(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_oca")).args(arguments).output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A configuration in a folder of its own.
struct File(tempfile::TempDir);

impl File {
    fn new(serve: &str, rest: &str) -> Self {
        let home = tempfile::tempdir().expect("a folder");
        let volume = home.path().join("volume");
        let config = format!(
            "[serve]\n{serve}\n[[storage.volume]]\npath = {volume:?}\ncapacity = \"64 MiB\"\n[[fill.source]]\nkind = \"origin\"\n\
             url = \"http://127.0.0.1:9/\"\n[admin]\nlisten = \"127.0.0.1:0\"\n{rest}"
        );
        fs::write(home.path().join("oca.toml"), config).expect("written");
        Self(home)
    }

    fn path(&self) -> String {
        self.0.path().join("oca.toml").display().to_string()
    }
}

#[test]
fn a_good_configuration_is_summed_up() {
    let file = File::new("http = [\"127.0.0.1:0\"]", "");
    let output = oca(&["check-config", &file.path()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("1 listener, 1 volume of 64 MiB, 1 source"), "{}", text(&output.stdout));
    assert!(!file.0.path().join("volume").exists(), "checking changes nothing");
}

#[test]
fn every_fault_is_named_and_the_exit_code_is_2() {
    let file = File::new("http = [\"127.0.0.1:80x\"]\nwrokers = 2", "[log]\nfilter = \"a=b=c\"\n");
    for command in [vec!["check-config", &file.path()], vec!["serve", "--config", &file.path()]] {
        let output = oca(&command);
        assert_eq!(output.status.code(), Some(2), "{command:?}");
        let shown = text(&output.stderr);
        for expected in
            ["oca.toml:2:", "oca.toml:3:", "did you mean 'workers'?", "log.filter", "3 faults in the configuration"]
        {
            assert!(shown.contains(expected), "'{expected}' is not in\n{shown}");
        }
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let output = oca(&["check-config", "/nowhere/oca.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("/nowhere/oca.toml"), "{}", text(&output.stderr));
}

#[test]
fn a_port_that_somebody_has_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = taken.local_addr().expect("bound").to_string();
    let file = File::new(&format!("http = [\"{address}\"]"), "");
    let output = oca(&["serve", "--config", &file.path()]);
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output.stderr);
    assert!(shown.contains(&address) && shown.contains("in use"), "{shown}");
    assert!(!file.0.path().join("volume").exists(), "a port that is taken costs nothing");
}

#[test]
fn a_folder_that_is_no_volume_is_refused_and_left_alone() {
    let file = File::new("http = [\"127.0.0.1:0\"]", "");
    let volume = file.0.path().join("volume");
    fs::create_dir(&volume).expect("made");
    fs::write(volume.join("holiday.jpg"), b"mine").expect("written");
    let output = oca(&["serve", "--config", &file.path()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("holiday.jpg"), "{}", text(&output.stderr));
    assert_eq!(fs::read(volume.join("holiday.jpg")).expect("there"), b"mine");
}

#[test]
fn it_tells_its_version() {
    let output = oca(&["--version"]);
    assert_eq!(text(&output.stdout).trim(), format!("oca {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_plan_is_shown_without_an_appliance_and_changes_nothing() {
    let file = File::new("http = [\"127.0.0.1:0\"]", "");
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/manifests/valid/all.json");
    let output = oca(&["plan", "--manifest", manifest, "--config", &file.path()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    for expected in ["manifest 101: 2 assets, 2.0 MiB", "fetch               2      2.0 MiB", "films/2.mp4"] {
        assert!(shown.contains(expected), "'{expected}' is not in\n{shown}");
    }
    let output = oca(&["plan", "--manifest", manifest, "--config", &file.path(), "--json"]);
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(plan["fetch"][1]["asset"], "films/2.mp4");
    assert_eq!(plan["fetch"][1]["bytes"], 1_048_577);
    assert!(!file.0.path().join("volume").exists());
    let output = oca(&["plan", "--manifest", &file.path(), "--config", &file.path()]);
    assert_eq!(output.status.code(), Some(2), "a manifest that is none");
}
