//! A real S3-compatible store, SeaweedFS, as origin and as what manifests are published in: its signatures, its ETags, its ranges.
//!
//! `./test` installs it from PyPI, whose package has the program in it. What our own origin sees of signed requests, and how it is when a
//! store misbehaves, is `sources.rs`.

use std::{
    fs,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use object_store::{ObjectStoreExt as _, aws::AmazonS3Builder, path::Path};

use crate::{
    manifests::{Plane, files_below, manifest_of, wait_for, wait_for_refusal},
    nightly::sha256,
    support::{Content, Setup, missing_tool, wait_until},
};

const PATIENCE: Duration = Duration::from_secs(60);
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// One process of all its parts, with memory of its own.
struct Store {
    child: Child,
    home: tempfile::TempDir,
    port: u16,
}

impl Store {
    fn start() -> Self {
        let home = tempfile::tempdir().expect("a folder");
        let right = |name: &str, key: &str, actions: &str| {
            format!(
                "{{\"name\": \"{name}\", \"credentials\": [{{\"accessKey\": \"{key}\", \"secretKey\": \"{SECRET}\"}}], \"actions\": [{actions}]}}"
            )
        };
        // The box may read one bucket, and no more.
        let [plane, edge] = [
            right("plane", "PLANE", "\"Admin\", \"Read\", \"Write\", \"List\""),
            right("edge", "EDGE", "\"Read:fleet\", \"List:fleet\""),
        ];
        fs::write(home.path().join("s3.json"), format!("{{\"identities\": [{plane}, {edge}]}}")).expect("written");
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < PATIENCE, "the store starts");
            let mut store = Self::launch(&home);
            // Somebody may have taken one of its ports meanwhile: then it ends.
            loop {
                let ended = store.0.try_wait().expect("it is our child").is_some();
                let created = !ended
                    && run(builder(store.1, "PLANE")
                        .build()
                        .expect("described rightly")
                        .put(&"probe".into(), "x".into()))
                    .is_ok();
                if created {
                    return Self { child: store.0, home, port: store.1 };
                }
                if ended || begun.elapsed() > PATIENCE {
                    drop(store.0.kill());
                    drop(store.0.wait());
                    break;
                }
                std::thread::park_timeout(Duration::from_millis(100));
            }
        }
    }

    /// The process and its port.
    fn launch(home: &tempfile::TempDir) -> (Child, u16) {
        let free: Vec<TcpListener> = (0..8).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        let ports: Vec<u16> = free.iter().map(|listener| listener.local_addr().expect("bound").port()).collect();
        drop(free);
        let data = tempfile::tempdir_in(home).expect("a folder").keep();
        let named = [
            "master.port",
            "master.port.grpc",
            "volume.port",
            "volume.port.grpc",
            "filer.port",
            "filer.port.grpc",
            "s3.port",
            "s3.port.grpc",
        ];
        let ports_named = named.iter().zip(&ports).map(|(name, port)| format!("-{name}={port}"));
        let log = fs::File::options().create(true).append(true).open(home.path().join("log")).expect("a log");
        let child = Command::new("weed")
            .args([
                "-logtostderr",
                "server",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                "-s3",
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
            ])
            .args([
                "-s3.iam=false",
                "-s3.autoCreateBucket",
                "-master.volumeSizeLimitMB=64",
                "-volume.max=4",
                "-master.telemetry=false",
            ])
            .args(["-master.electionTimeout=1s", &format!("-s3.config={}", home.path().join("s3.json").display())])
            .arg(format!("-dir={}", data.display()))
            .args(ports_named)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .expect("it runs");
        (child, ports[6])
    }

    fn put(&self, name: &str, bytes: Vec<u8>) {
        let store = builder(self.port, "PLANE").build().expect("described rightly");
        // As it is called: the library's other way would escape it.
        let name = Path::parse(name).expect("a name");
        run(store.put(&name, bytes.into())).expect("stored");
    }

    /// Lines of a table that names this store, as `who`.
    fn lines(&self, who: &str) -> String {
        let file = self.home.path().join(who);
        fs::write(&file, format!("aws_access_key_id = {who}\naws_secret_access_key = {SECRET}\n")).expect("written");
        format!("endpoint = \"http://127.0.0.1:{}/\"\nregion = \"us-east-1\"\ncredentials = {file:?}\n", self.port)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            let log = fs::read_to_string(self.home.path().join("log")).unwrap_or_default();
            eprintln!("--- the store\n{}", log.lines().rev().take(40).collect::<Vec<_>>().join("\n"));
        }
    }
}

fn builder(port: u16, who: &str) -> AmazonS3Builder {
    let retry = object_store::RetryConfig { max_retries: 0, ..object_store::RetryConfig::default() };
    AmazonS3Builder::new()
        .with_bucket_name("fleet")
        .with_endpoint(format!("http://127.0.0.1:{port}"))
        .with_allow_http(true)
        .with_region("us-east-1")
        .with_access_key_id(who)
        .with_secret_access_key(SECRET)
        .with_retry(retry)
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(work)
}

/// Copies what is published into the bucket, the pointer last.
fn upload(store: &Store, plane: &Plane) {
    let public = plane.path("public");
    let mut files: Vec<PathBuf> = files_below(&public);
    files.sort_by_key(|path| path.ends_with("latest.json"));
    for path in files {
        let name = path.strip_prefix(&public).expect("below").display().to_string();
        store.put(&format!("control/{name}"), fs::read(&path).expect("readable"));
    }
}

#[test]
fn a_real_store_is_origin_and_holds_the_manifests() {
    if missing_tool("weed") {
        return;
    }
    oca::net::tls::install_provider();
    let (store, plane) = (Store::start(), Plane::new());
    // More than one of the store's own pieces, and a name that has to be escaped.
    let (film, other) = (Content::new(1, (9 << 20) + 1), Content::new(2, 70_000));
    store.put("films/a b~é.mp4", film.whole());
    store.put("films/new/c.mp4", other.whole());
    let asset = |key: &str, content: Content| {
        let (length, digest) = (content.length, sha256(&content.whole()));
        format!("{{\"key\": \"{key}\", \"length\": {length}, \"sha256\": \"{digest}\"}}")
    };
    plane.publish(&plane.write(1, &asset("a b~é.mp4", film)));
    upload(&store, &plane);
    let control =
        plane.control("\"s3://fleet/control/latest.json\"", &format!("[control.store]\n{}", store.lines("EDGE")));
    let appliance = Setup::from_url("s3://fleet/films").source(&store.lines("EDGE")).tables(&control).start();
    wait_for(&appliance, 1);
    let filled = |count: f64| {
        let order =
            Command::new(env!("CARGO_BIN_EXE_oca")).args(["fill", "--now", "--admin", &appliance.admin_url()]).output();
        let order = order.expect("it runs");
        assert!(order.status.success(), "{}\n{}", String::from_utf8_lossy(&order.stdout), appliance.log());
        wait_until("held", PATIENCE, || appliance.metric("oca_fill_held_assets", "") == count);
    };
    filled(1.0);
    let response = appliance.get("/a%20b~%C3%A9.mp4");
    assert!(response.field("cache-status").is_some_and(|told| told.contains("hit")), "{}", appliance.log());
    film.assert_is(0, &response.body);
    assert_eq!(response.body.len() as u64, film.length);
    // On demand: a part, from a version whose ETag is the store's.
    let part = appliance.range("/new/c.mp4", "bytes=10-19");
    assert_eq!((part.status(), part.field("content-range")), (206, Some("bytes 10-19/70000")));
    other.assert_is(10, &part.body);
    assert_eq!(appliance.get("/none.mp4").status(), 404);

    // Nothing has changed for a while: each question was answered by a word, and the manifest came once.
    let contact = || manifest_of(&appliance)["last_contact_unix_seconds"].as_u64();
    let (before, accepted) = (contact(), appliance.metric("oca_manifests_accepted_total", ""));
    wait_until("asked again", PATIENCE, || contact() > before);
    assert_eq!(appliance.metric("oca_manifests_accepted_total", ""), accepted);
    assert!(manifest_of(&appliance)["last_refusal"].is_null(), "{}", manifest_of(&appliance));

    // The next one, and one of a stranger, are judged as from anywhere.
    plane.publish(&plane.write(2, &[asset("a b~é.mp4", film), asset("new/c.mp4", other)].join(",")));
    upload(&store, &plane);
    wait_for(&appliance, 2);
    filled(2.0);
    plane.publish(&plane.manifest(3, &["stranger"]));
    upload(&store, &plane);
    wait_for_refusal(&appliance, "unknown-key");
    assert_eq!(manifest_of(&appliance)["sequence"], 2);
    assert!(!appliance.log().contains(SECRET), "the log holds nothing to sign with");

    // Who has no right to the bucket hears so, in words.
    let of_nobody = store.lines("NOBODY");
    let control = plane.control("\"s3://fleet/control/latest.json\"", &format!("[control.store]\n{of_nobody}"));
    let control = control.replace("/state\"", "/other-state\"");
    let stranger = Setup::from_url("s3://fleet/films").source(&of_nobody).tables(&control).start();
    wait_for_refusal(&stranger, "fetch");
    let told = manifest_of(&stranger)["last_refusal"]["message"].to_string();
    assert!(told.contains("403") && told.contains("latest.json"), "{told}");
}
