//! What an asset is called, and who has a say in it.

use std::os::unix::fs::symlink;

use crate::support::{Appliance, Content, Origin, Setup};

fn victim() -> (Origin, Appliance, Content) {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 1000);
    let appliance = Setup::new(&origin).start();
    (origin, appliance, content)
}

/// Web cache poisoning by unkeyed input (Kettle, 2018 and 2020): a field changes the origin's answer and not the key, and everybody gets
/// it. Nothing of a request but its path (and its query, where configured) may reach an origin.
#[test]
fn cache_poisoning_by_unkeyed_fields() {
    const POISON: &str = "poison.example";
    let (origin, appliance, content) = victim();
    let fields = [
        ("X-Forwarded-Host", POISON),
        ("X-Forwarded-Scheme", POISON),
        ("X-Forwarded-For", POISON),
        ("Forwarded", "host=poison.example"),
        ("X-Original-URL", "/poison.example"),
        ("X-Rewrite-URL", "/poison.example"),
        ("X-HTTP-Method-Override", "POST"),
        ("X-Method-Override", "DELETE"),
        ("Cookie", POISON),
        ("Origin", "https://poison.example"),
        ("Referer", POISON),
        ("User-Agent", POISON),
        ("Accept-Encoding", "gzip, poison.example"),
        ("Authorization", POISON),
    ];
    content.assert_is(0, &appliance.connect().ask("GET", "/film.mp4?utm=poison.example", &fields).body);
    for seen in origin.seen("/film.mp4") {
        let told = format!("{} {} {:?}", seen.method, seen.target, seen.fields);
        assert!(!told.contains("poison") && seen.method != "POST" && seen.method != "DELETE", "{told}");
    }
    // The next viewer sees no trace.
    let response = appliance.get("/film.mp4");
    assert!(!format!("{:?}", response.head).contains("poison"), "{:?}", response.head);
    content.assert_is(0, &response.body);
}

/// Fat GET: the body of a GET decides what the origin answers, and is not part of the key. None is accepted.
#[test]
fn fat_get() {
    let (origin, appliance, _) = victim();
    let mut client = appliance.connect();
    client.send(b"GET /film.mp4 HTTP/1.1\r\nHost: t\r\nContent-Length: 8\r\n\r\nq=poison");
    assert_eq!(client.read_response("GET").expect("an answer").status(), 400);
    assert!(origin.seen("/film.mp4").is_empty());
}

/// Keys without host and scheme (Akamai, Fastly and others, 2020): with several tenants the one would get the other's asset. This server
/// has one name space, whatever host is named: `Host` and the authority of an absolute target can lead neither to another asset nor
/// to another origin.
#[test]
fn hosts_and_schemes_lead_nowhere_else() {
    let (origin, appliance, content) = victim();
    for (target, host) in [
        ("/film.mp4", "a.example"),
        ("/film.mp4", "169.254.169.254"),
        ("/film.mp4", "localhost:9090"),
        ("http://169.254.169.254/film.mp4", "169.254.169.254"),
        ("https://b.example/film.mp4", "b.example"),
    ] {
        let mut client = appliance.connect();
        client.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes());
        let response = client.read_response("GET").expect("an answer");
        if response.status() == 200 {
            content.assert_is(0, &response.body);
        } else {
            assert_eq!(response.status(), 400, "{target}");
        }
    }
    let seen = origin.seen("/film.mp4");
    assert!(seen.len() <= 2, "one asset: {seen:?}");
    assert!(seen.iter().all(|seen| seen.field("host").is_some_and(|host| host.starts_with("127.0.0.1:"))), "{seen:?}");
}

/// Web cache deception (Gil, 2017) and its delimiters (2024): `/account/x.css`, `/account;x.css` and the like, which an origin reads as
/// `/account` and a cache as something to keep. What the cache asks for must be what was asked of it, to the byte.
#[test]
fn cache_deception_by_delimiters_and_suffixes() {
    let (origin, appliance, _) = victim();
    let account = origin.publish_new("/account", 7, 500);
    for path in ["/account/x.css", "/account;x.css", "/account%3bx.css", "/account%23x.css", "/account%3Fx.css"] {
        let response = appliance.get(path);
        assert!(matches!(response.status(), 400 | 404), "{path}: {}", response.status());
        assert!(account.first_difference(0, &response.body).is_some() || response.body.is_empty());
    }
    for path in ["/account%00x.css", "/account%0ax.css", "/account%2fx.css", "/x/..%2faccount", "/account\\x.css"] {
        assert_eq!(appliance.get(path).status(), 400, "{path}");
    }
    assert!(origin.seen("/account").is_empty(), "nobody asked for it");
}

/// Cache-poisoned denial of service (CPDoS, CCS 2019): a head that the cache passes on and the origin refuses - too large, with a control
/// character, with another method - and the refusal is cached for all. No such head may reach the origin, and what is refused here must
/// not be remembered.
#[test]
fn cache_poisoned_denial_of_service() {
    let (origin, appliance, content) = victim();
    let large = "x".repeat(15_000);
    let many: String = (0..60).map(|n| format!("X-{n}: y\r\n")).collect();
    for fields in [
        format!("X-Oversized: {large}\r\n"),
        many,
        "X-Metachar: a\x07b\r\n".into(),
        "X-Metachar: a\0b\r\n".into(),
        "X-HTTP-Method-Override: POST\r\n".into(),
        "Expect: 100-continue\r\n".into(),
        "Transfer-Encoding: chunked\r\n".into(),
        "If-Match: \"poison\"\r\n".into(),
        "Range: bytes=cow\r\n".into(),
    ] {
        let mut client = appliance.connect();
        client.send(format!("GET /film.mp4 HTTP/1.1\r\nHost: t\r\n{fields}\r\n").as_bytes());
        client.finish();
        client.until_closed();
        let next = appliance.get("/film.mp4");
        assert_eq!(next.status(), 200, "{fields:.60}");
        content.assert_is(0, &next.body);
    }
    let passed = |name: &str| name.starts_with("x-") || matches!(name, "expect" | "if-match");
    for seen in origin.seen("/film.mp4") {
        assert!(!seen.fields.iter().any(|(name, _)| passed(name)), "{seen:?}");
    }
}

/// Path traversal (CVE-2021-41773 and -42013, and every year since), with a folder as the origin, where it would read any file. No spelling
/// of `..`, no encoded slash or NUL, no double encoding and no absolute path may lead out of the folder; nor may what it holds.
#[test]
fn path_traversal_nul_and_encoded_slashes() {
    let folder = tempfile::tempdir().expect("a folder");
    let inside = folder.path().join("srv");
    std::fs::create_dir_all(inside.join("a")).expect("a folder");
    std::fs::write(folder.path().join("secret"), "the secret").expect("a file");
    std::fs::write(inside.join("film.mp4"), "a film").expect("a file");
    symlink(folder.path().join("secret"), inside.join("link")).expect("a link");
    let appliance = Setup::from_url(&format!("file://{}/", inside.display())).start();
    assert_eq!(appliance.get("/film.mp4").body, b"a film");
    for path in [
        "/../secret",
        "/a/../../secret",
        "/%2e%2e/secret",
        "/.%2e/secret",
        "/%2e%2e%2fsecret",
        "/..%2fsecret",
        "/..%5csecret",
        "/..\\secret",
        "/%252e%252e/secret",
        "/%252e%252e%252fsecret",
        "/%c0%ae%c0%ae/secret",
        "/%uff0e%uff0e/secret",
        "/..;/secret",
        "/a/..;/..;/secret",
        "//etc/passwd",
        "/%2fetc/passwd",
        "/film.mp4%00.css",
        "/film.mp4%00",
        "/./film.mp4",
        "/a//film.mp4",
        "/%",
        "/%2",
        "/%zz",
    ] {
        let response = appliance.get(path);
        assert!(matches!(response.status(), 400 | 403 | 404), "{path}: {}", response.status());
        let said = String::from_utf8_lossy(&response.body).into_owned();
        assert!(!said.contains("secret") && !said.contains("root:"), "{path}: {said}");
        assert!(!said.contains(&*folder.path().to_string_lossy()), "{path} tells where files lie: {said}");
    }
}

/// Hash flooding (CVE-2011-4885, oCERT-2011-003): names that fall into one slot of a table make each look-up as slow as all together. The
/// catalog is keyed by BLAKE3, and the tables above it are seeded, so that names which are much alike - in every letter but one, or
/// which collide under unseeded multiply-and-add hashes - cost what others do: counted in CPU time of the server, not by a clock.
#[test]
fn hash_flooding_of_the_catalog() {
    const NAMES: usize = 2000;
    let (_origin, appliance, _) = victim();
    // "Aa" and "BB" collide under Java's and PHP's hash, and so does every string made of them.
    let colliding = |n: usize| (0..14).map(|bit| if n >> bit & 1 == 0 { "Aa" } else { "BB" }).collect::<String>();
    let ordinary = |n: usize| format!("segment-{n:020}");
    let cost = |name: &dyn Fn(usize) -> String| {
        let before = appliance.cpu_time();
        let mut client = appliance.connect();
        for n in 0..NAMES {
            assert_eq!(client.get(&format!("/{}", name(n))).status(), 404);
        }
        appliance.cpu_time().saturating_sub(before)
    };
    let (usual, hostile) = (cost(&ordinary), cost(&colliding));
    eprintln!("{NAMES} ordinary names: {usual:?}; {NAMES} that collide elsewhere: {hostile:?}");
    assert!(hostile < usual * 3, "{hostile:?} against {usual:?}");
}
