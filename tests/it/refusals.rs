//! Every manifest of `fixtures/manifests/refused`, pushed to an appliance whose clock, keys and names are those that the fixtures are made for.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use oca::{
    appliance::Appliance,
    asset::UnixTime,
    config::{Config, Machine},
    control::InForce,
    sys::{Clock, sandbox::Reach},
};
use serde_json::Value;

use crate::{
    manifests::files_below,
    nightly::sha256,
    support::{Client, Response, wait_until},
};

const NOW: UnixTime = UnixTime(2_000_000_000);
/// What is said of a manifest and not of one of its fields.
const OF_NO_FIELD: [&str; 12] = [
    "unsigned",
    "unknown-key",
    "revoked-key",
    "key-twice",
    "tampered",
    "truncated",
    "encoding",
    "bomb",
    "too-large",
    "version",
    "syntax",
    "too-deep",
];

struct Told {
    runtime: tokio::runtime::Runtime,
    appliance: Option<Appliance>,
    _home: tempfile::TempDir,
}

/// A manifest that is refused, and the reason in its name.
struct Refused {
    name: String,
    reason: String,
    manifest: Vec<u8>,
    signatures: Option<Vec<u8>>,
}

fn refused(fixtures: &Path) -> Vec<Refused> {
    let files = files_below(&fixtures.join("refused"));
    let manifests = files.iter().filter(|path| path.extension().is_some_and(|extension| extension != "sig"));
    let read = |path: &PathBuf| {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let reason = name.split('.').next().expect("a name").split("--").next().expect("a reason").to_owned();
        let signatures = fs::read(path.with_file_name(format!("{name}.sig"))).ok();
        Refused { name, reason, manifest: fs::read(path).expect("readable"), signatures }
    };
    manifests.map(read).collect()
}

impl Told {
    /// With more of `[control]`.
    fn start(fixtures: &Path, control: &str) -> Self {
        let home = tempfile::Builder::new().prefix("oca-test-").tempdir().expect("a scratch folder");
        let (volume, state, keys) = (home.path().join("volume"), home.path().join("state"), fixtures.join("keys.json"));
        // It has accepted a manifest with sequence 100 before.
        fs::create_dir(&state).expect("made");
        let record =
            format!("{{\"version\": 1, \"sequence\": 100, \"sha256\": \"{}\", \"received\": 1}}", "0".repeat(64));
        fs::write(state.join("state.json"), record).expect("written");
        let config = format!(
            "[serve]\nhttp = [\"127.0.0.1:0\"]\nworkers = 1\n[[storage.volume]]\npath = {volume:?}\ncapacity = \"64 MiB\"\n[[fill.source]]\n\
             kind = \"origin\"\nurl = \"http://127.0.0.1:9/\"\n[process]\nsandbox = \"off\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[control]\n\
             keys = [{keys:?}]\nrevoked = [\"2032-lost\"]\nappliance = \"box-1\"\nsite = \"ams1\"\ngroups = [\"europe\"]\nassets_max = 100\n\
             expanded_max = \"256 KiB\"\nsource_urls = [\"https://origin.example/video/\"]\nwaiting_max = 0\nstate = {state:?}\n{control}"
        );
        let config = Config::parse("oca.toml", &config, Machine::here()).expect("valid");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let appliance = Appliance::start_by(config, Reach::default(), Clock::manual(NOW), InForce::default());
        Self { runtime, appliance: Some(appliance.expect("it starts")), _home: home }
    }

    fn ask(&self, method: &str, path: &str, fields: &[(&str, &str)], body: &[u8]) -> Response {
        let address = self.appliance.as_ref().expect("it runs").admin_address();
        let mut client = Client::connect(address);
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n",
            body.len()
        );
        fields.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        client.send(format!("{head}\r\n").as_bytes());
        client.send(body);
        client.read_response(method).expect("the response is whole")
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if let Some(appliance) = self.appliance.take() {
            self.runtime.block_on(appliance.shutdown());
        }
    }
}

#[test]
fn each_pushed_manifest_is_refused_for_the_reason_in_its_name_with_its_field_and_counted() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/manifests");
    let home = Told::start(&fixtures, "");
    let (mut counts, mut faults) = (BTreeMap::<String, u64>::new(), Vec::new());
    for Refused { name, reason, manifest, signatures } in refused(&fixtures) {
        // Spaces, which do not count around a field of HTTP.
        if name == "too-large--signatures.json" {
            continue;
        }
        let signatures = signatures.map(|text| String::from_utf8_lossy(&text).replace(['\r', '\n'], " "));
        let fields: Vec<_> = signatures.as_deref().map(|text| ("Oca-Signatures", text)).into_iter().collect();
        let response = home.ask("POST", "/v1/manifest", &fields, &manifest);
        let told: Value = serde_json::from_slice(&response.body).unwrap_or_default();
        let error = &told["error"];
        // That there is no object at all is no field's fault, but has a place.
        let has_field = error["field"].as_str().is_some_and(|field| !field.is_empty()) || error["line"].is_number();
        let is_readable = error["message"].as_str().is_some_and(|words| words.len() > reason.len() + 10);
        if !(400..500).contains(&response.status())
            || error["code"] != *reason
            || !is_readable
            || !(has_field || OF_NO_FIELD.contains(&&*reason))
        {
            faults.push(format!("{name}: {} {told}", response.status()));
        }
        *counts.entry(reason).or_default() += 1;
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(counts.len() > 20, "{counts:?}");
    let metrics = String::from_utf8(home.ask("GET", "/metrics", &[], b"").body).expect("text");
    for (reason, count) in counts {
        let line = format!("oca_manifests_refused_total{{reason=\"{reason}\"}} {count}");
        assert!(metrics.lines().any(|told| told == line), "{line} is not in\n{metrics}");
    }
    let status: Value = serde_json::from_slice(&home.ask("GET", "/status", &[], b"").body).expect("JSON");
    assert_eq!(status["manifest"]["sequence"], Value::Null, "what is refused changes nothing");
}

/// The same, published: each at an address of its own, all of which are asked one after the other, since none has anything good.
#[test]
fn each_pulled_manifest_is_refused_for_the_reason_in_its_name_and_counted() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/manifests");
    let fleet = tempfile::Builder::new().prefix("oca-test-").tempdir().expect("a scratch folder");
    let (mut counts, mut pull) = (BTreeMap::<String, u64>::new(), Vec::new());
    for (number, Refused { name, reason, manifest, signatures }) in refused(&fixtures).into_iter().enumerate() {
        let folder = fleet.path().join(number.to_string());
        fs::create_dir(&folder).expect("made");
        let manifest_is_empty = manifest.is_empty();
        let pointer = format!(
            "{{\"version\": 1, \"manifest\": \"manifest\", \"signatures\": \"signatures\", \"sha256\": \"{}\", \"length\": {}}}",
            sha256(&manifest),
            manifest.len()
        );
        let unsigned = || b"{\"version\": 1, \"signatures\": []}".to_vec();
        fs::write(folder.join("signatures"), signatures.unwrap_or_else(unsigned)).expect("written");
        fs::write(folder.join("manifest"), manifest).expect("written");
        fs::write(folder.join("latest.json"), pointer).expect("written");
        pull.push(format!("file://{}", folder.join("latest.json").display()));
        let reason = match &*name {
            // No more of it is read than signatures have, and a pointer knows of no manifest without a byte.
            "too-large--signatures.json" => "fetch".into(),
            _ if manifest_is_empty => "value".into(),
            _ => reason,
        };
        *counts.entry(reason).or_default() += 1;
    }
    // Where it starts, what its record tells of is not there.
    *counts.entry("state".into()).or_default() += 1;
    let home = Told::start(&fixtures, &format!("pull = {pull:?}\ninterval = \"1 h\"\nretry_delay = \"1 h\"\n"));
    let counted = || -> BTreeMap<String, u64> {
        let metrics = String::from_utf8(home.ask("GET", "/metrics", &[], b"").body).expect("text");
        let counted = metrics.lines().filter_map(|line| {
            let (reason, count) =
                line.strip_prefix("oca_manifests_refused_total{reason=\"")?.split_once("\"} ").expect("a count");
            Some((reason.to_owned(), count.parse().expect("a number")))
        });
        counted.filter(|(_, count)| *count > 0).collect()
    };
    wait_until("all were looked at", Duration::from_secs(30), || counted().values().sum::<u64>() > pull.len() as u64);
    assert_eq!(counted(), counts);
    let status: Value = serde_json::from_slice(&home.ask("GET", "/status", &[], b"").body).expect("JSON");
    assert_eq!(status["manifest"]["sequence"], Value::Null, "what is refused changes nothing");
    let last = &status["manifest"]["last_refusal"];
    assert_eq!(last["from"], *pull.last().expect("there are some"), "{last}");
}
