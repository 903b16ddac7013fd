//! Signed URLs over sockets: what a signature opens, what nothing opens, and that both ways to a hit hold to it.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
    time::Duration,
};

use rustix::process::Signal;

use crate::support::{
    Appliance, Authority, Client, Content, KeyKind, Origin, Response, Setup, missing_tool, replace, request, run,
    wait_until,
};

const PATIENCE: Duration = Duration::from_secs(20);
const LENGTH: u64 = 400_000;
/// Makes a request one for the handler, and changes nothing else.
const FOR_THE_HANDLER: (&str, &str) = ("If-None-Match", "\"no such tag\"");
/// The secret of the documentation's examples, 32 bytes of 'a'.
const EXAMPLES: &str =
    r#"{"keys":[{"kty":"oct","alg":"HS256","kid":"2026-11","k":"YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE"}]}"#;

fn oca(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_oca")).args(arguments).output().expect("it runs")
}

fn said(arguments: &[&str]) -> String {
    let output = oca(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

struct Scene {
    appliance: Appliance,
    authority: Authority,
    origin: Origin,
    content: Content,
    folder: tempfile::TempDir,
}

fn scene(signing: &str, serve: &str) -> Scene {
    let (authority, origin) = (Authority::new(), Origin::start());
    let content = origin.publish_new("/films/1.mp4", 1, LENGTH);
    for path in ["/films/2.mp4", "/free/1.mp4", "/maybe/1.mp4"] {
        origin.publish_new(path, 1, LENGTH);
    }
    let folder = tempfile::tempdir().expect("a folder");
    let [tokens, hmac, log] = ["tokens.json", "hmac.json", "access.log"].map(|name| folder.path().join(name));
    fs::write(&tokens, said(&["keys", "new", "--kid", "token"])).expect("written");
    fs::write(&hmac, said(&["keys", "new", "--kid", "plain", "--algorithm", "hs256"])).expect("written");
    let issued = authority.issue("a", &["a.test"], (KeyKind::Ecdsa, 2040));
    let tables = format!(
        "[serve.signing]\ncheck_interval = \"50 ms\"\nrenewal_key = \"token\"\n{signing}\n\
         [[serve.signing.rule]]\nprefix = \"/films/\"\npolicy = \"required\"\n\
         [[serve.signing.rule]]\nprefix = \"/maybe/\"\npolicy = \"optional\"\n\
         [[serve.signing.key_set]]\npath = {tokens:?}\nform = \"uri-signing\"\nissuers = [\"cms\"]\n\
         [[serve.signing.key_set]]\npath = {hmac:?}\nform = \"hmac\"\n[log.access]\npath = {log:?}\n"
    );
    let setup = Setup::new(&origin).workers(1).serve(serve).tls(&issued, &[], "protocols = [\"h2\", \"http/1.1\"]");
    Scene { appliance: setup.tables(&tables).start(), authority, origin, content, folder }
}

impl Scene {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A signed target; `url` is without scheme and host.
    fn token(&self, target: &str, more: &[&str]) -> String {
        let keys = self.file("tokens.json");
        let url = format!("http://test{target}");
        let url = said(&[&["sign", "--keys", keys.to_str().expect("text"), &url], more].concat());
        url.strip_prefix("http://test").expect("the same host").to_owned()
    }

    fn hmac(&self, target: &str, more: &[&str]) -> String {
        let keys = self.file("hmac.json");
        let url = format!("http://test{target}");
        let url = said(&[&["sign", "--hmac", "--keys", keys.to_str().expect("text"), &url], more].concat());
        url.strip_prefix("http://test").expect("the same host").to_owned()
    }

    fn get(&self, target: &str) -> Response {
        self.appliance.get(target)
    }

    fn lines(&self, count: usize) -> Vec<serde_json::Value> {
        let mut lines = Vec::new();
        wait_until("the lines are written", PATIENCE, || {
            let text = fs::read_to_string(self.file("access.log")).unwrap_or_default();
            lines = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
            lines.len() >= count
        });
        lines
    }

    fn at_once(&self) -> f64 {
        self.appliance.metric("oca_hits_at_once_total", "")
    }

    fn denials(&self, reason: &str) -> f64 {
        self.appliance.metric("oca_signing_denials_total", &format!("reason=\"{reason}\""))
    }
}

/// For the test of all metrics: requests with signatures good and bad, and keys that change for better and worse.
pub(crate) fn good_and_bad(mut look: impl FnMut(&Appliance)) {
    let scene = scene("", "");
    look(&scene.appliance);
    assert_eq!(scene.get(&scene.token("/films/1.mp4", &[])).status(), 200);
    assert_eq!(scene.get("/films/1.mp4").status(), 401);
    let reloads =
        |outcome: &str| scene.appliance.metric("oca_signing_key_reloads_total", &format!("outcome=\"{outcome}\""));
    replace(&scene.file("hmac.json"), EXAMPLES);
    wait_until("the keys are used", PATIENCE, || reloads("used") > 0.0);
    replace(&scene.file("hmac.json"), "nonsense");
    wait_until("nonsense is not", PATIENCE, || reloads("refused") > 0.0);
    look(&scene.appliance);
}

#[test]
fn a_good_signature_of_either_form_opens_the_way() {
    let scene = scene("", "");
    let signed = [
        scene.token("/films/1.mp4", &["--issuer", "cms"]),
        scene.token("/films/1.mp4", &["--path-style"]),
        scene.token("/films/1.mp4?session=1", &["--regex", r"http://test/films/[0-9]+\.mp4(\?.*)?"]),
        scene.hmac("/films/1.mp4", &[]),
        scene.hmac("/films/1.mp4", &["--client", "127.0.0.0/8"]),
    ];
    for target in &signed {
        let response = scene.get(target);
        assert_eq!(response.status(), 200, "{target}");
        scene.content.assert_is(0, &response.body);
        assert_eq!(scene.appliance.range(target, "bytes=5-9").status(), 206, "{target}");
        assert!(response.field("set-cookie").is_none());
    }
    assert_eq!(scene.origin.targets(), ["/films/1.mp4"; 1], "one asset, and no signature reaches its source");
    for (target, status) in [("/free/1.mp4", 200), ("/maybe/1.mp4", 200), ("/maybe/1.mp4?URISigningPackage=x", 401)] {
        assert_eq!(scene.get(target).status(), status, "{target}");
    }
    // Where nothing is asked for, a signature is taken off all the same.
    assert_eq!(scene.get("/free/1.mp4;URISigningPackage=a.b.c").status(), 200);
    assert!(scene.origin.targets().iter().all(|target| !target.contains("URISigning")));
}

#[test]
fn nothing_else_does_and_all_that_is_told_is_a_status() {
    let scene = scene("", "");
    let (good, plain) = (scene.token("/films/1.mp4", &[]), scene.hmac("/films/1.mp4", &[]));
    let token = good.split_once('=').expect("a parameter").1;
    let huge = format!("/films/1.mp4?URISigningPackage={}", "x".repeat(4000));
    let cases = [
        ("/films/1.mp4".to_owned(), 401, "missing"),
        ("/%66ilms/1.mp4".into(), 401, "missing"),
        (format!("/films/1.mp4?urisigningpackage={token}"), 401, "missing"),
        (format!("/films/1.mp4?%55RISigningPackage={token}"), 401, "missing"),
        (good[..good.len() - 1].to_owned(), 401, "malformed"),
        (format!("/films/1.mp4?URISigningPackage={}", token.replace('.', "%2e")), 401, "malformed"),
        (huge, 401, "too_long"),
        (format!("{good}&URISigningPackage={token}"), 401, "ambiguous"),
        (format!("{good}&{}", plain.split_once('?').expect("a query").1), 401, "ambiguous"),
        (good.replace("/films/1", "/films/2"), 403, "uri"),
        (format!("{good}&more=1"), 403, "uri"),
        (scene.token("/films/1.mp4", &["--issuer", "somebody"]), 403, "issuer"),
        (scene.token("/films/1.mp4", &["--audience", "somebody"]), 403, "audience"),
        (scene.token("/films/1.mp4", &["--nonce", "x"]), 403, "nonce"),
        (scene.token("/films/1.mp4", &["--expires", "1000000000"]), 401, "expired"),
        (scene.token("/films/1.mp4", &["--not-before", "4000000000"]), 401, "not_yet"),
        (scene.hmac("/films/1.mp4", &["--expires", "1000000000"]), 401, "expired"),
        (scene.hmac("/films/1.mp4", &["--client", "192.0.2.0/24"]), 403, "client"),
        (plain.replace("/films/1", "/films/2"), 401, "signature"),
        (plain.replace("key=plain", "key=token"), 401, "unknown_key"),
    ];
    let mut bodies = std::collections::BTreeSet::new();
    for (number, (target, status, reason)) in cases.iter().enumerate() {
        let before = scene.denials(reason);
        let response = scene.get(target);
        assert_eq!(response.status(), *status, "{reason}: {target}");
        assert_eq!(scene.denials(reason), before + 1.0, "{target}");
        assert_eq!(response.field("www-authenticate").is_some(), *status == 401);
        assert_eq!(response.field("cache-control"), Some("no-store"));
        bodies.insert((*status, response.body.clone()));
        // The reason is the operator's, by the number that the client was told.
        let line = &scene.lines(number + 1)[number];
        assert_eq!(line["denied"], *reason, "{line}");
        assert_eq!(line["request_id"].as_str(), response.field("x-request-id"));
    }
    assert_eq!(bodies.len(), 2, "a client is told nothing that it could learn from: {bodies:?}");
    assert!(scene.origin.targets().is_empty(), "nobody is asked for what is not allowed");
    // Another host's URL.
    let mut client = scene.appliance.connect();
    client.send(format!("GET {good} HTTP/1.1\r\nHost: other\r\n\r\n").as_bytes());
    assert_eq!(client.read_response("GET").expect("whole").status(), 403);
    client.send(format!("GET http://other{good} HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes());
    assert_eq!(client.read_response("GET").expect("whole").status(), 403);
}

#[test]
fn the_log_lets_nobody_in() {
    let scene = scene("", "");
    let (good, plain) = (scene.token("/films/1.mp4", &[]), scene.hmac("/films/1.mp4", &[]));
    let (page, cookie) = (format!("http://test{good}"), good.split_once('?').expect("a query").1.to_owned());
    for fields in
        [&[("Referer", page.as_str()), ("Cookie", &cookie)][..], &[("Referer", page.as_str()), FOR_THE_HANDLER]]
    {
        for target in [&good, &plain, &format!("{good}x"), "/films/1.mp4"] {
            scene.appliance.connect().ask("GET", target, fields);
        }
    }
    for line in scene.lines(8) {
        let text = line.to_string();
        let target = line["target"].as_str().expect("text");
        assert!(!text.contains("eyJ"), "no token, not a part of one: {text}");
        assert!(target.ends_with("URISigningPackage=-") || target.ends_with("signature=-") || target == "/films/1.mp4");
    }
    assert!(!scene.appliance.log().contains("eyJ"));
}

#[test]
fn both_ways_to_a_hit_ask_for_the_same() {
    let scene = scene("", "");
    let good = [scene.token("/films/1.mp4", &[]), scene.hmac("/films/1.mp4", &[]), "/free/1.mp4".into()];
    let bad = [
        "/films/1.mp4".into(),
        good[0].replace("/films/1", "/films/2"),
        good[1].replace("expires=", "expires=1"),
        format!("{}&q", good[0]),
        good[0].replace('?', "#"),
        scene.token("/films/1.mp4", &["--expires", "1000000000"]),
    ];
    let mut client = scene.appliance.connect();
    let mut ask = |target: &str, fields: &[(&str, &str)]| {
        client.send(&request("GET", target, fields));
        client.read_response("GET").expect("whole")
    };
    for target in &good {
        // Filled, and then verified on the handler's way where that is not yet done.
        (0..2).for_each(|_| assert_eq!(ask(target, &[]).status(), 200, "{target}"));
    }
    for _ in 0..3 {
        for target in &good {
            let before = scene.at_once();
            let quick = ask(target, &[]);
            assert_eq!(scene.at_once(), before + 1.0, "{target}");
            let handled = ask(target, &[FOR_THE_HANDLER]);
            assert_eq!(scene.at_once(), before + 1.0);
            assert_eq!((quick.status(), handled.status()), (200, 200));
            assert_eq!(quick.body, handled.body);
            for target in &bad {
                // What is hot for one who may is not for one who may not.
                let (quick, handled) = (ask(target, &[]), ask(target, &[FOR_THE_HANDLER]));
                assert!(matches!(quick.status(), 401 | 403), "{target}");
                assert_eq!((quick.status(), quick.body), (handled.status(), handled.body), "{target}");
            }
            assert_eq!(scene.at_once(), before + 1.0, "nothing is refused at once, and nothing of it let through");
        }
    }
}

#[test]
fn where_the_query_names_the_asset_it_is_signed_too() {
    let scene = scene("", "query_in_key = true");
    let (token, plain) = (scene.token("/films/1.mp4?v=1", &[]), scene.hmac("/films/1.mp4", &[]));
    for _ in 0..2 {
        assert_eq!(scene.get(&token).status(), 200);
        assert_eq!(scene.get(&token.replace("?v=1&", "?v=2&")).status(), 403);
        assert_eq!(scene.get(&plain).status(), 200);
        assert_eq!(scene.get(&format!("{plain}&v=1")).status(), 401);
        let with_query = scene.hmac("/films/1.mp4?v=1", &["--query"]);
        assert_eq!(scene.get(&with_query).status(), 200);
        assert_eq!(scene.get(&with_query.replace("?v=1&", "?v=2&")).status(), 401);
    }
    assert_eq!(scene.origin.targets(), ["/films/1.mp4?v=1", "/films/1.mp4"]);
}

#[test]
fn keys_are_rotated_while_they_are_in_use() {
    let scene = scene("", "");
    let (old, file) = (scene.token("/films/1.mp4", &[]), scene.file("tokens.json"));
    (0..2).for_each(|_| assert_eq!(scene.get(&old).status(), 200));
    let text = fs::read_to_string(&file).expect("there");
    // The old key goes, a new one of the same name comes: what it had verified goes too.
    replace(&file, &said(&["keys", "new", "--kid", "token", "--algorithm", "eddsa"]));
    scene.appliance.signal(Signal::HUP);
    wait_until("the old key is forgotten", PATIENCE, || scene.get(&old).status() == 401);
    let new = scene.token("/films/1.mp4", &[]);
    assert_eq!(scene.get(&new).status(), 200);
    // Without a signal too; and with a file that is no good, nothing changes.
    replace(&file, "{\"keys\": [{\"kty\": \"oct\", \"kid\": \"k\", \"k\": \"c2VjcmV0\"}]}");
    wait_until("it is refused", PATIENCE, || scene.appliance.log().contains("keys for signed URLs are refused"));
    assert_eq!(scene.get(&new).status(), 200);
    assert!(scene.appliance.log().contains("key 'k': a shared secret has to say its alg"), "{}", scene.appliance.log());
    assert!(!scene.appliance.log().contains("c2VjcmV0"));
    replace(&file, &text);
    wait_until("the first key is back", PATIENCE, || scene.get(&old).status() == 200);
    assert_eq!(scene.get(&new).status(), 401);
}

#[test]
fn a_nonce_is_good_for_one_request() {
    let scene = scene("nonces_max = 2", "");
    let once = |nonce: &str| scene.token("/films/1.mp4", &["--nonce", nonce]);
    let first = once("a");
    assert_eq!((scene.get(&first).status(), scene.get(&first).status()), (200, 403));
    assert_eq!(scene.denials("replayed"), 1.0);
    assert_eq!(scene.get(&once("b")).status(), 200);
    assert_eq!(scene.get(&once("c")).status(), 403, "nothing is forgotten to make room");
    assert_eq!(scene.denials("nonce"), 1.0);
}

#[test]
fn a_player_goes_on_by_cookie() {
    let scene = scene("issuer = \"cms\"", "");
    let series = &["--regex", r"https?://[^/]+/films/[0-9]\.mp4", "--issuer", "cms", "--renew", "1 h", "--depth", "1"];
    let first = scene.token("/films/1.mp4", series);
    let cookie_of = |response: &Response| {
        let cookie = response.field("set-cookie").expect("a cookie").to_owned();
        assert_eq!(response.field("cache-control"), Some("private"), "for nobody between us and the player");
        let (pair, attributes) = cookie.split_once("; ").expect("attributes");
        (pair.to_owned(), attributes.to_owned())
    };
    let response = scene.get(&first);
    let (pair, attributes) = cookie_of(&response);
    assert_eq!(attributes, "Path=/films; Max-Age=3600; HttpOnly");
    scene.content.assert_is(0, &response.body);
    let mut client = scene.appliance.connect();
    let fields = [("Cookie", pair.as_str())];
    for target in ["/films/1.mp4", "/films/2.mp4", "/films/2.mp4"] {
        let response = client.ask("GET", target, &fields);
        assert_eq!((response.status(), response.field("set-cookie")), (200, None), "{target}");
    }
    assert!(scene.at_once() > 0.0, "its hits go at once");
    assert_eq!(client.ask("GET", "/films/x.mp4", &fields).status(), 403);
    assert_eq!(client.ask("GET", "/films/2.mp4", &[("Cookie", "URISigningPackage=x")]).status(), 401);
    assert_eq!(client.ask("GET", "/maybe/1.mp4", &fields).status(), 200, "another folder's cookie does no harm");
    // By TLS, players on other sites' pages may send it; it is for TLS only.
    let mut secure = scene.authority.connect(scene.appliance.https(), "a.test");
    let (_, attributes) = cookie_of(&secure.get(&first));
    assert_eq!(attributes, "Path=/films; Max-Age=3600; HttpOnly; Secure; SameSite=None");
    // In the second half of its life it is renewed.
    let aging = scene.token("/films/1.mp4", &[series.as_slice(), &["--expires-in", "20 min"]].concat());
    let aging = aging.split_once("URISigningPackage").expect("a token").1;
    let response = client.ask("GET", "/films/1.mp4", &[("Cookie", &format!("a=b; URISigningPackage{aging}"))]);
    assert_eq!(response.status(), 200);
    assert_ne!(cookie_of(&response).0, pair);
    assert!(!fs::read_to_string(scene.file("access.log")).expect("written").contains("eyJ"));
}

#[test]
fn http2_asks_for_the_same() {
    if missing_tool("curl") {
        return;
    }
    let scene = scene("", "");
    let port = scene.appliance.https().port();
    let (root, resolve) = (scene.authority.root(), format!("a.test:{port}:127.0.0.1"));
    let base = format!("https://a.test:{port}/films/1.mp4");
    let keys = scene.file("tokens.json");
    let keys = keys.to_str().expect("text");
    let good = said(&["sign", "--keys", keys, &base]);
    let renewed =
        said(&["sign", "--keys", keys, "--renew", "1 h", "--regex", "https://a\\.test:[0-9]+/films/.*", &base]);
    let cookie = format!("Cookie: {}", renewed.split_once('?').expect("a query").1);
    let body = scene.file("body");
    let body = body.to_str().expect("text");
    for version in ["--http2", "--http1.1"] {
        for (more, url, status) in [
            (&[][..], &good, "200"),
            (&[], &base, "401"),
            (&[], &good.replace("films/1", "films/2"), "403"),
            (&["-H", cookie.as_str()], &base, "200"),
            (&["-H", "Cookie: a=b", "-H", cookie.as_str()], &base, "200"),
            (&["-H", "Host: other.test"], &good, "403"),
            (&["-r", "7-9"], &good, "206"),
        ] {
            let common = ["-sS", version, "--cacert", root.to_str().expect("text"), "--resolve", &resolve, "-o", body];
            let said = run("curl", &[&common[..], &["-w", "%{response_code} %{http_version}"], more, &[url]].concat());
            let expected = format!("{status} {}", if version == "--http2" { "2" } else { "1.1" });
            assert_eq!(String::from_utf8_lossy(&said), expected, "{version} {more:?} {url}");
        }
    }
    assert!(scene.origin.targets().iter().all(|target| target == "/films/1.mp4"));
}

#[test]
fn the_examples_of_the_documentation_are_good() {
    let scene = scene("", "");
    let page = include_str!("../../docs/signed-urls.md");
    let example = |language: &str| {
        let begin = page.split_once(&format!("```{language}\n")).expect("an example").1;
        begin.split_once("```").expect("its end").0
    };
    let own = fs::read_to_string(scene.file("tokens.json")).expect("there");
    for (language, program, status) in [("sh", "sh", 401), ("python", "python3", 403)] {
        if missing_tool(if language == "sh" { "openssl" } else { program }) {
            continue;
        }
        // No two keys have the same name: each form has the examples' in its turn.
        if language == "sh" {
            replace(&scene.file("hmac.json"), EXAMPLES);
        } else {
            replace(&scene.file("hmac.json"), &said(&["keys", "new", "--kid", "plain", "--algorithm", "hs256"]));
            let [mut both, own]: [serde_json::Value; 2] =
                [EXAMPLES, &own].map(|text| serde_json::from_str(text).expect("JSON"));
            both["keys"].as_array_mut().expect("a list").extend(own["keys"].as_array().expect("a list").clone());
            replace(&scene.file("tokens.json"), &both.to_string());
        }
        let said = String::from_utf8(run(program, &["-c", example(language)])).expect("text");
        let target = said.trim();
        assert!(target.starts_with("/films/1.mp4?"), "{target}");
        wait_until("the appliance knows the example's key", PATIENCE, || scene.get(target).status() == 200);
        assert_eq!(scene.get(&target.replace("films/1", "films/2")).status(), status);
    }
}

#[test]
fn what_cannot_be_signed_says_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("good"), said(&["keys", "new", "--kid", "a"])).expect("written");
    fs::write(path("public"), said(&["keys", "public", &path("good")])).expect("written");
    fs::write(path("bad"), "secret-key-material").expect("written");
    fs::write(path("hmac"), EXAMPLES).expect("written");
    assert!(!fs::read_to_string(path("public")).expect("there").contains("\"d\""));
    let url = "http://edge.example/a.mp4";
    for (arguments, expected) in [
        (vec!["--keys", "/nowhere.json", url], "/nowhere.json"),
        (vec!["--keys", &path("bad"), url], "is no JWK Set"),
        (vec!["--keys", &path("public"), url], "has no secret half"),
        (vec!["--keys", &path("good"), "--kid", "b", url], "has no key 'b'"),
        (vec!["--keys", &path("good"), "--hmac", url], "no key that is of use here"),
        (vec!["--keys", &path("good"), "--regex", "(", url], "no regular expression"),
        (vec!["--keys", &path("good"), "--regex", "http://other/.*", url], "does not match http://edge.example/a.mp4"),
        (vec!["--keys", &path("good"), "--client", "192.0.2.0/24", url], "--client-key"),
        (vec!["--keys", &path("good"), "--client", "somebody", url], "192.0.2.0/24"),
        (vec!["--keys", &path("good"), "--expires-in", "soon", url], "soon"),
        (vec!["--keys", &path("good"), "ftp://edge.example/a"], "http://"),
    ] {
        let output = oca(&[&["sign"][..], &arguments].concat());
        let shown = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && shown.contains(expected), "'{expected}' is not in\n{shown}");
        assert!(!shown.contains("secret-key-material") && output.stdout.is_empty());
    }
    assert_eq!(oca(&["keys", "public", &path("hmac")]).status.code(), Some(1));
    let output = oca(&["keys", "new", "--kid", "a", "--algorithm", "none"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("ES256, EdDSA, HS256"));
}

#[test]
fn a_connection_that_is_refused_goes_on() {
    let scene = scene("", "");
    let good = scene.token("/films/1.mp4", &[]);
    let mut client: Client = scene.appliance.connect();
    // Pipelined, so that what is refused and what is not come in one read.
    client
        .send(&[request("GET", "/films/1.mp4", &[]), request("HEAD", &good, &[]), request("GET", &good, &[])].concat());
    for (method, status) in [("GET", 401), ("HEAD", 200), ("GET", 200)] {
        assert_eq!(client.read_response(method).expect("whole").status(), status);
    }
    let preflight = client.ask("OPTIONS", "/films/1.mp4", &[("Access-Control-Request-Method", "GET")]);
    assert_eq!(preflight.status(), 204, "a browser asks without credentials (Fetch, 4.8)");
}
