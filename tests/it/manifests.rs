//! Manifests from build to force: the commands of the control plane's side, the box's pull and push, and what a box refuses.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    health::{SOON, comes, goes},
    support::{Appliance, Client, Fault, Origin, Published, Setup, request, wait_until},
};

const PATIENCE: Duration = Duration::from_secs(20);

fn oca(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_oca")).args(arguments).output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn done(arguments: &[&str]) -> String {
    let output = oca(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// A control plane in a folder: keys, films, and what it publishes.
pub(crate) struct Plane(tempfile::TempDir);

impl Plane {
    pub(crate) fn new() -> Self {
        let plane = Self(tempfile::tempdir().expect("a folder"));
        for kid in ["one", "two", "stranger"] {
            let secret = done(&["keys", "new", "--kid", kid, "--algorithm", "EdDSA"]);
            fs::write(plane.path(&format!("{kid}.secret")), secret).expect("written");
            let public = done(&["keys", "public", &plane.named(&format!("{kid}.secret"))]);
            fs::write(plane.path(&format!("{kid}.json")), public).expect("written");
        }
        fs::create_dir_all(plane.path("films/old")).expect("made");
        fs::write(plane.path("films/a b.mp4"), vec![7; 300_000]).expect("written");
        fs::write(plane.path("films/old/1.webm"), b"film").expect("written");
        fs::write(plane.path("films/empty"), b"").expect("written");
        plane
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn named(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Builds and signs a manifest of the films; gives its name.
    pub(crate) fn manifest(&self, sequence: u64, keys: &[&str]) -> String {
        let (file, sequence) = (self.named(&format!("{sequence}.json")), sequence.to_string());
        let films = self.named("films");
        done(&[
            "manifest",
            "build",
            &films,
            "--sequence",
            &sequence,
            "--site",
            "ams1",
            "--blocks",
            "65536",
            "--output",
            &file,
        ]);
        for key in keys {
            done(&["manifest", "sign", &file, "--key", &self.named(&format!("{key}.secret"))]);
        }
        file
    }

    /// Writes a manifest of these assets, in JSON, and signs it with key one; gives its name.
    pub(crate) fn write(&self, sequence: u64, assets: &str) -> String {
        self.write_with(sequence, "", assets)
    }

    /// As [`Self::write`], with further fields of its head.
    pub(crate) fn write_with(&self, sequence: u64, head: &str, assets: &str) -> String {
        let file = self.named(&format!("{sequence}.json"));
        let text = format!(
            "{{\"version\": 1, \"sequence\": {sequence}, \"audience\": {{\"sites\": [\"ams1\"]}}, \"expires\": 4000000000, {head}\n\
             \"assets\": [{assets}]}}\n"
        );
        fs::write(&file, text).expect("written");
        done(&["manifest", "sign", &file, "--key", &self.named("one.secret")]);
        file
    }

    /// Adds a film that is named in lists.
    pub(crate) fn add_film(&self, name: &str, bytes: &[u8]) {
        fs::create_dir_all(self.path("listed")).expect("made");
        fs::write(self.path(&format!("listed{name}")), bytes).expect("written");
    }

    /// Builds and signs a manifest of films that were added; gives its name.
    pub(crate) fn manifest_of(&self, sequence: u64, names: &str) -> String {
        let (file, list, root) = (self.named(&format!("{sequence}.json")), self.named("list"), self.named("listed"));
        fs::write(&list, names).expect("written");
        let sequence = sequence.to_string();
        done(&[
            "manifest",
            "build",
            &list,
            "--root",
            &root,
            "--sequence",
            &sequence,
            "--site",
            "ams1",
            "--output",
            &file,
        ]);
        done(&["manifest", "sign", &file, "--key", &self.named("one.secret")]);
        file
    }

    pub(crate) fn publish(&self, file: &str) {
        done(&["manifest", "publish", file, "--to", &self.named("public")]);
    }

    /// The table of a box that trusts key one.
    pub(crate) fn control(&self, pull: &str, further: &str) -> String {
        let (keys, state) = (self.path("one.json"), self.path("state"));
        format!(
            "[control]\npull = [{pull}]\nkeys = [{keys:?}]\nstate = {state:?}\nsite = \"ams1\"\ninterval = \"1 s\"\n\
             retry_delay = \"100 ms\"\n{further}\n"
        )
    }

    fn setup(&self, pull: &str) -> Setup {
        self.setup_from("http://127.0.0.1:9/", pull)
    }

    pub(crate) fn setup_from(&self, source: &str, pull: &str) -> Setup {
        fs::create_dir_all(self.path("public")).expect("made");
        Setup::from_url(source).tables(&self.control(pull, ""))
    }

    pub(crate) fn by_file(&self) -> String {
        format!("\"file://{}\"", self.named("public/latest.json"))
    }
}

pub(crate) fn manifest_of(appliance: &Appliance) -> Value {
    let status: Value = serde_json::from_slice(&appliance.admin("/status").body).expect("JSON");
    status["manifest"].clone()
}

pub(crate) fn wait_for(appliance: &Appliance, sequence: u64) {
    wait_until("manifest in force", PATIENCE, || manifest_of(appliance)["sequence"] == sequence);
}

pub(crate) fn wait_for_refusal(appliance: &Appliance, reason: &str) {
    wait_until(reason, PATIENCE, || manifest_of(appliance)["last_refusal"]["reason"] == reason);
}

/// Sends a manifest to the admin listener; gives the status and the answer.
fn push(appliance: &Appliance, file: &str, signatures: Option<&str>) -> (u16, Value) {
    let body = fs::read(file).expect("readable");
    let mut client = Client::connect(appliance.admin_address());
    let signatures = signatures.map(|text| text.replace('\n', " "));
    let length = body.len().to_string();
    let mut fields = vec![("Content-Length", &*length), ("Connection", "close")];
    fields.extend(signatures.as_deref().map(|text| ("Oca-Signatures", text)));
    // The admin listener answers to its own names only.
    let head = String::from_utf8(request("POST", "/v1/manifest", &fields)).expect("text");
    client.send(head.replace("Host: test\r\n", "Host: localhost\r\n").as_bytes());
    client.send(&body);
    let response = client.read_response("POST").expect("an answer");
    (response.status(), serde_json::from_slice(&response.body).expect("JSON"))
}

fn signatures(file: &str) -> String {
    fs::read_to_string(format!("{file}.sig")).expect("signed")
}

#[test]
fn what_is_built_signed_and_published_is_in_force_and_stays() {
    let plane = Plane::new();
    let first = plane.manifest(5, &["one"]);
    let told = done(&["manifest", "verify", &first, "--keys", &plane.named("one.json")]);
    for part in [
        "accepted",
        "sequence    5",
        "sites ams1",
        "assets      2, 300004 bytes",
        "2 of the whole, 2 of blocks",
        "a b.mp4",
    ] {
        assert!(told.contains(part), "'{part}' is not in\n{told}");
    }
    plane.publish(&first);
    let mut appliance = plane.setup(&plane.by_file()).start();
    wait_for(&appliance, 5);
    let status = manifest_of(&appliance);
    assert_eq!((&status["assets"], &status["stale"], &status["expired"]), (&2.into(), &false.into(), &false.into()));
    assert_eq!(
        (appliance.metric("oca_manifest_sequence", ""), appliance.metric("oca_manifest_assets", "")),
        (5.0, 2.0)
    );
    assert!(appliance.metric("oca_manifest_expiry_seconds", "") > 1e9);
    assert_eq!(appliance.metric("oca_manifests_accepted_total", ""), 1.0);

    // An older one, signed as well, is not taken, and the next one is.
    plane.publish(&plane.manifest(4, &["one"]));
    wait_for_refusal(&appliance, "rollback");
    assert_eq!(manifest_of(&appliance)["sequence"], 5);
    assert!(appliance.metric("oca_manifests_refused_total", "reason=\"rollback\"") >= 1.0);
    assert!(appliance.log().contains("it is 4, and 5 was accepted before"), "{}", appliance.log());
    plane.publish(&plane.manifest(6, &["one", "two"]));
    wait_for(&appliance, 6);

    // With the control plane away, and after a crash, what was in force still is, and what is older still is not.
    fs::remove_dir_all(plane.path("public/manifests")).expect("removed");
    fs::remove_file(plane.path("public/latest.json")).expect("removed");
    appliance.kill();
    fs::write(plane.path("state/.incoming-half"), b"half a manifest").expect("written");
    appliance.start_again();
    assert_eq!(manifest_of(&appliance)["sequence"], 6, "at once");
    assert!(!plane.path("state/.incoming-half").exists());
    wait_for_refusal(&appliance, "fetch");
    let (status, answer) = push(&appliance, &first, Some(&signatures(&first)));
    assert_eq!((status, &answer["error"]["code"]), (409, &"rollback".into()), "{answer}");
    let kept = fs::read_dir(plane.path("state")).expect("there").count();
    assert_eq!(kept, 3, "one manifest, its signatures and the record");
    appliance.stop();
}

#[test]
fn a_control_plane_that_says_nothing_makes_the_manifest_stale_until_it_does() {
    let plane = Plane::new();
    plane.publish(&plane.manifest(1, &["one"]));
    // Heard of each second, a quarter more at most: 4 s without a word are several that did not come, and 3.2 s are calm.
    let appliance = Setup::from_url(&format!("file://{}", plane.named("films")))
        .tables(&plane.control(&plane.by_file(), ""))
        .tables(&format!("{SOON}manifest_age_max = \"4 s\""))
        .start();
    wait_for(&appliance, 1);
    goes(&appliance, "manifest_stale");
    let (pointer, aside) = (plane.path("public/latest.json"), plane.path("public/aside.json"));
    fs::rename(&pointer, &aside).expect("it is ours");
    comes(&appliance, "manifest_stale", ("degraded", true));
    assert_eq!(manifest_of(&appliance)["sequence"], 1, "it is in force all the same");
    fs::rename(&aside, &pointer).expect("it is ours");
    goes(&appliance, "manifest_stale");
}

#[test]
fn a_folder_for_manifests_that_cannot_be_made_is_told_and_viewers_are_served() {
    let plane = Plane::new();
    fs::write(plane.path("state"), "somebody's file").expect("written");
    let appliance = plane.setup_from(&format!("file://{}", plane.named("films")), &plane.by_file()).start();
    comes(&appliance, "manifests_off", ("degraded", true));
    let failure = manifest_of(&appliance)["failure"].as_str().expect("it says why").to_owned();
    assert!(failure.contains("control.state") && failure.contains("state"), "{failure}");
    assert_eq!(fs::read(plane.path("state")).expect("it is there"), b"somebody's file");
}

#[test]
fn a_manifest_can_be_pushed_and_an_answer_says_what_is_wrong_with_it() {
    let plane = Plane::new();
    let appliance = plane.setup("").start();
    let file = plane.manifest(1, &["one"]);
    let (status, answer) = push(&appliance, &file, None);
    assert_eq!((status, &answer["error"]["code"]), (400, &"unsigned".into()), "{answer}");
    let stranger = plane.manifest(2, &["stranger"]);
    let (status, answer) = push(&appliance, &stranger, Some(&signatures(&stranger)));
    assert_eq!((status, &answer["error"]["code"]), (403, &"unknown-key".into()), "{answer}");
    let faulty = plane.named("faulty.json");
    let plain = fs::read_to_string(&file).expect("readable").replace("\"length\":4", "\"length\":-4");
    fs::write(&faulty, plain).expect("written");
    done(&["manifest", "sign", &faulty, "--key", &plane.named("one.secret")]);
    let (status, answer) = push(&appliance, &faulty, Some(&signatures(&faulty)));
    assert_eq!((status, &answer["error"]["field"]), (400, &"assets[1].length".into()), "{answer}");
    assert!(answer["error"]["line"].as_u64() > Some(1), "{answer}");
    assert_eq!(manifest_of(&appliance)["sequence"], Value::Null, "what is refused changes nothing");
    let (status, answer) = push(&appliance, &file, Some(&signatures(&file)));
    assert_eq!((status, &answer["sequence"], &answer["assets"]), (200, &1.into(), &2.into()), "{answer}");
    let (status, answer) = push(&appliance, &file, Some(&signatures(&file)));
    assert_eq!((status, &answer["unchanged"]), (200, &true.into()), "{answer}");
}

#[test]
fn a_publication_by_http_is_asked_with_conditions_and_believed_as_far_as_it_is_signed() {
    let plane = Plane::new();
    let origin = Origin::start();
    let publish = |sequence| {
        plane.publish(&plane.manifest(sequence, &["one"]));
        let public = plane.path("public");
        for path in files_below(&public) {
            let name = path.strip_prefix(&public).expect("below").display().to_string();
            let tag = format!("\"{sequence}\"");
            origin.publish(
                &format!("/fleet/{name}"),
                Published::bytes(fs::read(&path).expect("readable")).etag(Some(&tag)),
            );
        }
    };
    publish(1);
    let url = format!("\"http://127.0.0.1:9/none.json\", \"{}fleet/latest.json\"", origin.url());
    let appliance = plane.setup(&url).start();
    wait_for(&appliance, 1);
    // The first address never answers: it is told, and the second serves.
    assert!(appliance.metric("oca_manifests_refused_total", "reason=\"fetch\"") >= 1.0);
    wait_until("three questions", PATIENCE, || origin.seen("/fleet/latest.json").len() >= 3);
    let seen = origin.seen("/fleet/latest.json");
    assert_eq!(seen[1].field("if-none-match"), Some("\"1\""), "asked whether it has changed");
    let pointer: Value =
        serde_json::from_slice(&fs::read(plane.path("public/latest.json")).expect("there")).expect("JSON");
    let manifest = format!("/fleet/{}", pointer["manifest"].as_str().expect("a path"));
    assert_eq!(origin.seen(&manifest).len(), 1, "what is in force is not fetched again");

    // A manifest that breaks off is not taken, and is once it comes whole.
    publish(2);
    let pointer: Value =
        serde_json::from_slice(&fs::read(plane.path("public/latest.json")).expect("there")).expect("JSON");
    let manifest = format!("/fleet/{}", pointer["manifest"].as_str().expect("a path"));
    origin.fail(&manifest, Fault::Short(100), 1);
    wait_for(&appliance, 2);
    assert!(origin.seen(&manifest).len() >= 2);
}

/// Publishes a manifest at `origin` below `/fleet/`, with tags of its sequence; gives the path of the manifest itself.
fn publish_at(origin: &Origin, plane: &Plane, file: &str, tag: u64) -> String {
    plane.publish(file);
    let public = plane.path("public");
    for path in files_below(&public) {
        let name = path.strip_prefix(&public).expect("below").display().to_string();
        let published = Published::bytes(fs::read(&path).expect("readable")).etag(Some(&format!("\"{tag}\"")));
        origin.publish(&format!("/fleet/{name}"), published);
    }
    let pointer: Value =
        serde_json::from_slice(&fs::read(plane.path("public/latest.json")).expect("there")).expect("JSON");
    format!("/fleet/{}", pointer["manifest"].as_str().expect("a path"))
}

#[test]
fn what_is_published_before_its_time_is_fetched_once() {
    let (plane, origin) = (Plane::new(), Origin::start());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let early = |sequence, seconds| plane.write_with(sequence, &format!("\"not_before\": {},", now + seconds), "");
    let far = publish_at(&origin, &plane, &early(5, 500_000), 5);
    let appliance = plane.setup(&format!("\"{}fleet/latest.json\"", origin.url())).start();
    let waiting = || manifest_of(&appliance)["waiting"].as_array().expect("a list").len();
    wait_until("kept", PATIENCE, || waiting() == 1);
    let asked = origin.seen("/fleet/latest.json").len();
    wait_until("asked again", PATIENCE, || origin.seen("/fleet/latest.json").len() >= asked + 2);
    assert_eq!(origin.seen(&far).len(), 1, "what is kept is not fetched again");
    assert!(manifest_of(&appliance)["last_refusal"].is_null() && manifest_of(&appliance)["sequence"].is_null());
    // One whose time comes soon, by a push; and it is there when it has come.
    let soon = early(4, 2);
    let (status, answer) = push(&appliance, &soon, Some(&signatures(&soon)));
    assert!(matches!(status, 200 | 202) && answer["sequence"] == 4, "{status} {answer}");
    wait_for(&appliance, 4);
    assert_eq!(waiting(), 1, "the other one waits on");
}

/// What a store computes of these requests is `sources.rs`' matter, and a real one is asked in `stores.rs`.
#[test]
fn a_bucket_is_asked_by_signed_requests_and_only_whether_the_pointer_has_changed() {
    let (plane, origin) = (Plane::new(), Origin::start());
    let manifest = publish_at(&origin, &plane, &plane.manifest(1, &["one"]), 1);
    let credentials = plane.path("credentials");
    fs::write(&credentials, "aws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = s3cret\n").expect("written");
    let store = format!("[control.store]\nendpoint = \"{}\"\ncredentials = {credentials:?}\n", origin.url());
    let control = plane.control("\"s3://fleet/latest.json\"", &store);
    let appliance = Setup::from_url("http://127.0.0.1:9/").tables(&control).start();
    wait_for(&appliance, 1);
    wait_until("three questions", PATIENCE, || origin.seen("/fleet/latest.json").len() >= 3);
    let seen = origin.seen("/fleet/latest.json");
    assert!(seen.iter().all(|one| one.target.contains("X-Amz-Signature=")), "{seen:?}");
    assert_eq!((seen[0].field("if-none-match"), seen[1].field("if-none-match")), (None, Some("\"1\"")));
    assert_eq!((origin.seen(&manifest).len(), origin.seen(&format!("{manifest}.sig")).len()), (1, 1));
    assert!(!appliance.log().contains("s3cret") && !appliance.log().contains("X-Amz"), "{}", appliance.log());
}

#[test]
fn keys_are_changed_while_it_runs() {
    let plane = Plane::new();
    let appliance = plane.setup(&plane.by_file()).start();
    plane.publish(&plane.manifest(1, &["one"]));
    wait_for(&appliance, 1);
    plane.publish(&plane.manifest(2, &["two"]));
    wait_for_refusal(&appliance, "unknown-key");
    let keys = plane.path("one.json");
    let both = |names: &[&str]| {
        let sets =
            names.iter().map(|name| fs::read_to_string(plane.path(&format!("{name}.public"))).expect("readable"));
        let keys: Vec<Value> =
            sets.map(|set| serde_json::from_str::<Value>(&set).expect("JSON")["keys"][0].clone()).collect();
        serde_json::json!({ "keys": keys }).to_string()
    };
    fs::copy(&keys, plane.path("one.public")).expect("copied");
    fs::copy(plane.path("two.json"), plane.path("two.public")).expect("copied");
    crate::support::replace(&keys, &both(&["one", "two"]));
    wait_for(&appliance, 2);
    crate::support::replace(&keys, "{\"keys\": 1}");
    appliance.signal(rustix::process::Signal::HUP);
    let outcome = |outcome: &str| appliance.metric("oca_manifest_key_reloads_total", &format!("outcome=\"{outcome}\""));
    wait_until("refused", PATIENCE, || outcome("refused") >= 1.0);
    assert!(appliance.log().contains("changed keys of manifests are refused"), "{}", appliance.log());
    plane.publish(&plane.manifest(3, &["one"]));
    wait_for(&appliance, 3);
    let used = outcome("used");
    crate::support::replace(&keys, &both(&["two"]));
    appliance.signal(rustix::process::Signal::HUP);
    wait_until("used", PATIENCE, || outcome("used") > used);
    plane.publish(&plane.manifest(4, &["one"]));
    wait_for_refusal(&appliance, "unknown-key");
    assert_eq!(manifest_of(&appliance)["sequence"], 3);
}

pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = walkdir::WalkDir::new(folder).into_iter().map(|entry| entry.expect("listed").into_path());
    entries.filter(|path| path.is_file()).collect()
}

#[test]
fn a_threshold_takes_as_many_keys() {
    let plane = Plane::new();
    let file = plane.manifest(1, &["one"]);
    let (one, two) = (plane.named("one.json"), plane.named("two.json"));
    let verify = || oca(&["manifest", "verify", &file, "--keys", &one, "--keys", &two, "--threshold", "2"]);
    let output = verify();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("unsigned: 1 of 2 signatures"), "{}", text(&output.stderr));
    done(&["manifest", "sign", &file, "--key", &plane.named("one.secret")]);
    assert_eq!(verify().status.code(), Some(1), "one key counts once");
    done(&["manifest", "sign", &file, "--key", &plane.named("two.secret")]);
    assert_eq!(verify().status.code(), Some(0));
}

/// Each of the files of `fixtures/manifests/refused`, through the real binary with little memory to have.
#[test]
fn refused_manifests_cost_little_memory_and_time() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/manifests");
    let home = tempfile::tempdir().expect("a folder");
    let config = home.path().join("oca.toml");
    let keys = fixtures.join("keys.json");
    let table = format!(
        "[serve]\nhttp = [\"127.0.0.1:0\"]\n[[storage.volume]]\npath = \"/oca-test\"\ncapacity = \"64 MiB\"\n[[fill.source]]\n\
         kind = \"origin\"\nurl = \"http://127.0.0.1:9/\"\n[control]\nkeys = [{keys:?}]\nrevoked = [\"2032-lost\"]\nappliance = \"box-1\"\n\
         site = \"ams1\"\ngroups = [\"europe\"]\nassets_max = 100\nexpanded_max = \"256 KiB\"\n\
         source_urls = [\"https://origin.example/video/\"]\n"
    );
    fs::write(&config, table).expect("written");
    let mut count = 0;
    for folder in ["refused", "valid"] {
        for path in files_below(&fixtures.join(folder)) {
            if path.extension().is_some_and(|extension| extension == "sig") {
                continue;
            }
            let begin = Instant::now();
            // Private memory, in KiB.
            let output = Command::new("sh")
                .args([
                    "-c",
                    "ulimit -d 65536; exec \"$0\" manifest verify \"$1\" --config \"$2\" --after 100 --now 2000000000",
                ])
                .arg(env!("CARGO_BIN_EXE_oca"))
                .args([&path, &config])
                .output()
                .expect("it runs");
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            let told = text(&output.stderr);
            assert!(
                begin.elapsed() < Duration::from_secs(5),
                "{name}: {:?} with the start of a process",
                begin.elapsed()
            );
            if folder == "valid" {
                assert!(output.status.success(), "{name}: {told}");
                continue;
            }
            let reason = name.split('.').next().expect("a name").split("--").next().expect("a reason");
            assert_eq!(output.status.code(), Some(1), "{name}: {told}");
            assert!(
                told.starts_with(&format!("refused: {reason}: ")) || told.starts_with(&format!("refused: {reason} (")),
                "{name}: {told}"
            );
            count += 1;
        }
    }
    assert!(count > 80, "{count}");
}
