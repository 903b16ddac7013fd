//! Configurations as people write them, right and wrong.

use std::collections::BTreeSet;

use super::*;
use crate::net::tls::PairFiles;

const MACHINE: Machine = Machine { descriptors: 1 << 20, maps: 1 << 20, backlog: 1 << 20, now: None };
const REFERENCE: &str = include_str!("../../config/appliance.toml");

/// The smallest configuration that works, with further lines for its tables.
fn smallest(serve: &str, rest: &str) -> String {
    format!(
        "[serve]\nhttp = [\"127.0.0.1:8080\"]\n{serve}\n[[storage.volume]]\npath = \"/oca-test/disk0\"\ncapacity = \"64 MiB\"\n\
         [[fill.source]]\nkind = \"origin\"\nurl = \"http://127.0.0.1:9000/\"\n{rest}\n"
    )
}

fn faults(text: &str) -> String {
    match Config::parse("oca.toml", text, MACHINE) {
        Ok(config) => panic!("no fault is found in\n{text}\n{config:?}"),
        Err(faults) => faults.to_string(),
    }
}

#[test]
fn the_smallest_configuration_is_enough() {
    let config = Config::parse("oca.toml", &smallest("", ""), MACHINE).expect("valid");
    let mut expected = Config::default();
    expected.serve.http = vec![([127, 0, 0, 1], 8080).into()];
    expected.storage.volumes =
        vec![storage::VolumeConfig { path: "/oca-test/disk0".into(), capacity: crate::asset::ByteCount(64 << 20) }];
    let location = fill::SourceLocation::Http("http://127.0.0.1:9000/".parse().expect("valid"));
    expected.fill.sources = vec![fill::SourceConfig::new("origin-0", fill::SourceKind::Origin, location)];
    assert_eq!(config, expected);
}

#[test]
fn the_reference_shows_the_defaults() {
    let mut config = Config::parse("appliance.toml", REFERENCE, MACHINE).expect("valid");
    // What has no default.
    assert_eq!(config.serve.http, [([0, 0, 0, 0], 8080).into()]);
    assert_eq!(config.telemetry.access.path.take(), Some("/var/log/oca/access.log".into()));
    let location = fill::SourceLocation::Http("https://origin.example/".parse().expect("valid"));
    let origin = |name: &str| Some(format!("/etc/oca/origin/{name}").into());
    let source = &mut config.fill.sources[0];
    let files = crate::net::client::ClientFiles {
        certificate: origin("edge.pem"),
        key: origin("edge.key"),
        authorities: origin("authorities.pem"),
        headers: origin("headers"),
    };
    assert_eq!(std::mem::take(&mut source.files), files);
    assert_eq!(source.store.credentials.take(), origin("credentials"));
    assert_eq!(source.store.endpoint.take(), "https://s3.example/".parse().ok());
    let of_control = |name: &str| Some(format!("/etc/oca/control/{name}").into());
    let files = crate::net::client::ClientFiles {
        certificate: of_control("edge.pem"),
        key: of_control("edge.key"),
        authorities: of_control("authorities.pem"),
        headers: of_control("headers"),
    };
    let control = &mut config.control;
    assert_eq!(std::mem::take(&mut control.files), files);
    assert_eq!(control.store.credentials.take(), of_control("credentials"));
    assert_eq!(control.store.endpoint.take(), "https://s3.example/".parse().ok());
    assert_eq!(config.fill.sources, [fill::SourceConfig::new("origin-0", fill::SourceKind::Origin, location)]);
    assert_eq!(config.serve.https, [([0, 0, 0, 0], 8443).into()]);
    let pairs = ["edge", "other"].map(|name| PairFiles {
        certificate: format!("/etc/oca/tls/{name}.pem").into(),
        key: format!("/etc/oca/tls/{name}.key").into(),
    });
    assert_eq!(std::mem::take(&mut config.serve.tls.pairs), pairs);
    let signing = &mut config.serve.signing;
    let rule = serve::signing::Rule { prefix: "/films/".into(), policy: serve::signing::Policy::Required };
    assert_eq!(std::mem::take(&mut signing.rules), [rule]);
    let (path, form) = ("/etc/oca/keys/signing.json".into(), serve::signing::Form::UriSigning);
    assert_eq!(std::mem::take(&mut signing.key_sets), [serve::signing::KeySet { path, form, issuers: Vec::new() }]);
    assert_eq!(config.serve.clients.allow_file.take(), Some("/etc/oca/networks".into()));
    assert_eq!(config.admin.token_file.take(), Some("/etc/oca/admin.token".into()));
    let files = config.admin.tls.take().expect("named");
    assert_eq!(files.client_ca, Some("/etc/oca/tls/operators.pem".into()));
    assert_eq!(files.pair.certificate.to_str(), Some("/etc/oca/tls/admin.pem"));
    assert_eq!(config.fill.nightly.log.take(), Some("/var/log/oca/fill.log".into()));
    assert_eq!(config.steering.prefixes_file.take(), Some("/var/lib/oca/clients.txt".into()));
    let file = |name: &str| std::path::PathBuf::from(format!("/etc/oca/steering/{name}"));
    let service = crate::steering::ServiceConfig {
        name: "steering-0".into(),
        url: "https://steering.example/v1/report".parse().expect("valid"),
        token_file: Some(file("token")),
        identity: Some(PairFiles { certificate: file("edge.pem"), key: file("edge.key") }),
        authorities: Some(file("authorities.pem")),
    };
    assert_eq!(std::mem::take(&mut config.steering.services), [service]);
    config.serve.http.clear();
    config.serve.https.clear();
    config.storage.volumes.clear();
    config.fill.sources.clear();
    assert_eq!(config, Config::default());
}

#[test]
fn the_reference_has_every_key_and_a_reason_for_each() {
    let (table, errors) = DeTable::parse_recoverable(REFERENCE);
    assert!(errors.is_empty());
    let reading = Reading::new(Gathering::new("appliance.toml", REFERENCE));
    sections::read(reading.root(table.get_ref()), &mut Config::default());
    let known: BTreeSet<String> = reading.known().into_iter().collect();
    let missing: Vec<_> = known.iter().filter(|key| reading.span(key).is_none()).collect();
    assert!(missing.is_empty(), "config/appliance.toml lacks {missing:?}");
    let lines: Vec<&str> = REFERENCE.lines().collect();
    for (number, line) in lines.iter().enumerate().filter(|(_, line)| line.contains(" = ") && !line.starts_with('#')) {
        assert!(lines[number - 1].starts_with("# "), "line {}: no reason stands before '{line}'", number + 1);
    }
}

#[test]
fn every_fault_is_shown_at_once_with_its_line() {
    let text = smallest(
        "conections_max = 5\nheader_timeout = \"5 parsecs\"\nworkers = \"two\"\nsend_rate_min = 7",
        "[admin]\nlisten = \"0.0.0.0:8080\"\n[catalog]\nwatermark_low_percent = 99\nadmission = \"sometimes\"\n[logs]\nfilter = \"x\"",
    );
    let shown = faults(&text);
    for (line, expected) in [
        (3, "serve.conections_max is not a known key"),
        (3, "did you mean 'connections_max'?"),
        (4, "'parsecs' is not a known unit"),
        (5, "serve.workers cannot be read"),
        (6, "serve.send_rate_min cannot be read"),
        (14, "take the same port of the same address"),
        (14, "can be reached from other machines"),
        (16, "not below 95 percent"),
        (17, "\"sometimes\" is none of \"always\", \"second-request\""),
        (18, "logs is not a known key"),
    ] {
        assert!(shown.contains(expected), "'{expected}' is not in\n{shown}");
        assert!(shown.contains(&format!("oca.toml:{line}:")), "line {line} is not named in\n{shown}");
    }
    assert!(shown.ends_with("9 faults in the configuration"), "{shown}");
}

#[test]
fn what_is_missing_is_named_with_what_to_write() {
    let shown = faults("");
    for expected in ["serve.http names no address", "there is no volume", "there is no source", "[[fill.source]]"] {
        assert!(shown.contains(expected), "'{expected}' is not in\n{shown}");
    }
    let shown = faults(
        "[serve]\nhttp = [\"127.0.0.1:1\"]\n[[storage.volume]]\npath = \"/v\"\n[[fill.source]]\nurl = \"http://a/\"\n",
    );
    assert!(shown.contains("capacity is missing") && shown.contains("kind is missing"), "{shown}");
}

#[test]
fn sources_that_cannot_be_are_refused() {
    for (url, expected) in [
        ("s3://user@bucket/prefix", "write s3://bucket/name"),
        ("ftp://a/", "not a known scheme"),
        ("not an address", "no address"),
        ("file://host/dir", "file:///"),
    ] {
        let shown = faults(&smallest("", "").replace("http://127.0.0.1:9000/", url));
        assert!(shown.contains(expected), "{url}: {shown}");
    }
}

#[test]
fn volumes_that_cannot_be_are_refused() {
    let volume =
        |path: &str, capacity: &str| format!("[[storage.volume]]\npath = \"{path}\"\ncapacity = \"{capacity}\"");
    for (rest, expected) in [
        (volume("/oca-test/disk0/inner", "64 MiB"), "one inside the other"),
        (volume("/oca-test/disk0", "64 MiB"), "the same directory"),
        (volume("relative", "64 MiB"), "absolute path"),
        (volume("/oca-test/disk1", "1 PiB"), "more than the file system has"),
        (volume("/oca-test/disk1", "1 MiB"), "less than four blocks"),
    ] {
        let shown = faults(&smallest("", &rest));
        assert!(shown.contains(expected), "{rest}: {shown}");
    }
}

#[test]
fn limits_that_need_the_same_descriptors_are_compared() {
    let tight = Machine { descriptors: 2_000, maps: 65_530, ..MACHINE };
    let config = Config::parse("oca.toml", &smallest("", ""), tight).expect("defaults give way");
    let (serve, storage) = (&config.serve, &config.storage);
    assert!(serve.connections_max + storage.mappings_max + serve.descriptors_reserved <= 2_000, "{config:?}");
    let [said] = config.shortages.as_slice() else { panic!("{:?}", config.shortages) };
    assert!(said.contains("2000 file descriptors") && said.contains("LimitNOFILE= in the unit"), "{said}");
    let (left, defaults) = (2_000 - serve.descriptors_reserved, Config::default());
    let all = defaults.serve.connections_max + defaults.storage.mappings_max;
    assert_eq!(serve.connections_max, left * defaults.serve.connections_max / all, "both give way alike");
    assert_eq!(storage.mappings_max, left * defaults.storage.mappings_max / all);
    let config = Config::parse("oca.toml", &smallest("connections_max = 900", ""), tight).expect("mappings give way");
    assert_eq!((config.serve.connections_max, config.storage.mappings_max), (900, left - 900));
    let config =
        Config::parse("oca.toml", &smallest("", "[storage]\nmappings_max = 900"), tight).expect("connections give way");
    assert_eq!((config.serve.connections_max, config.storage.mappings_max), (left - 900, 900));
    let shown = Config::parse("oca.toml", &smallest("connections_max = 1900", ""), tight)
        .expect_err("what is set is not changed");
    assert!(shown.to_string().contains("file descriptors"), "{shown}");
    let few_maps = Machine { maps: 1_000, ..MACHINE };
    let config = Config::parse("oca.toml", &smallest("", ""), few_maps).expect("defaults give way");
    assert_eq!(config.storage.mappings_max, 800);
    let set = smallest("", "[storage]\nmappings_max = 900");
    assert!(Config::parse("oca.toml", &set.replace("[[storage", "\n[[storage"), few_maps).is_err());
}

#[test]
fn a_queue_that_the_kernel_cuts_is_said() {
    let short = Machine { backlog: 128, ..MACHINE };
    let config = Config::parse("oca.toml", &smallest("", ""), short).expect("no fault");
    assert!(
        config.shortages[0].contains("serve.backlog asks for 4096: set net.core.somaxconn"),
        "{:?}",
        config.shortages
    );
    let config = Config::parse("oca.toml", &smallest("backlog = 128", ""), short).expect("no fault");
    assert!(config.shortages.is_empty(), "{:?}", config.shortages);
}

#[test]
fn everything_that_is_used_after_the_start_is_in_reach() {
    let home = tempfile::tempdir().expect("a folder");
    let folder = |name: &str| {
        let folder = home.path().join(name);
        std::fs::create_dir(&folder).expect("made");
        folder
    };
    let [tls, other, keys, admin, networks, log, fill, source, disks] =
        ["tls", "other", "keys", "admin", "networks", "log", "fill", "source", "disks"].map(folder);
    let text = format!(
        "[serve]\nhttps = [\"127.0.0.1:8443\"]\n[serve.tls]\ncertificate = {:?}\nkey = {:?}\n[[serve.signing.key_set]]\npath = {:?}\n\
         form = \"hmac\"\n[log.access]\npath = {:?}\n[[fill.source]]\nkind = \"origin\"\nurl = \"file://{}\"\n\
         [admin]\ntoken_file = {:?}\n[serve.clients]\nallow_file = {:?}\n[fill.nightly]\nlog = {:?}\n[[storage.volume]]\npath = {:?}\n\
         capacity = \"64 MiB\"\n",
        tls.join("a.pem"),
        other.join("a.key"),
        keys.join("set.json"),
        log.join("access.log"),
        source.display(),
        admin.join("tokens"),
        networks.join("list"),
        fill.join("fill.log"),
        disks.join("0")
    );
    let config = Config::parse("oca.toml", &text, MACHINE).expect("valid");
    let mut expected = Reach::default();
    for read in [tls, other, keys, admin, networks] {
        expected.read_file(&read.join("x"));
    }
    expected.read_below(&source);
    expected.write_below(&disks.join("0"));
    expected.write_file(&log.join("access.log"));
    expected.write_file(&fill.join("fill.log"));
    assert_eq!(config.reach(), expected);
    assert!(disks.join("0").is_dir(), "a volume's folder is made while it still can be");
}

#[test]
fn listeners_overlap_only_where_they_do() {
    let good = smallest("", "[admin]\nlisten = \"127.0.0.1:8081\"");
    assert!(Config::parse("oca.toml", &good, MACHINE).is_ok());
    let free = smallest("", "[admin]\nlisten = \"127.0.0.1:0\"").replace("127.0.0.1:8080", "127.0.0.1:0");
    assert!(Config::parse("oca.toml", &free, MACHINE).is_ok(), "port 0 is a free one each time");
    let families = smallest("", "[admin]\nlisten = \"[::1]:8080\"");
    assert!(Config::parse("oca.toml", &families, MACHINE).is_ok());
}

#[test]
fn what_cannot_stand_in_a_response_is_a_fault() {
    for (line, expected) in [
        (r#"server_name = "a b""#, r#""a b" cannot stand in Cache-Status"#),
        (r#"server_name = "a\r\nX: y""#, "cannot stand in Cache-Status"),
        (r#"server_name = """#, "cannot stand in Cache-Status"),
        (
            r#"cors.origins = ["https://a.example", "https://b.example/path"]"#,
            r#""https://b.example/path" is no origin"#,
        ),
        (r#"cors.origins = ["a\r\nX: y"]"#, "is no origin"),
        ("send_rate_window = \"0 s\"", "serve.send_rate_window leaves no time"),
        ("backlog = 0", "serve.backlog is 0"),
        ("http2.streams_max = 4000000000", "4000000000 streams of one connection"),
    ] {
        let shown = faults(&smallest(line, ""));
        assert!(shown.contains(expected) && shown.ends_with("1 fault in the configuration"), "{line}: {shown}");
    }
    for line in [r#"server_name = "box-7.isp.example""#, r#"cors.origins = ["http://a.example:8080", "null", "*"]"#] {
        assert!(Config::parse("oca.toml", &smallest(line, ""), MACHINE).is_ok(), "{line}");
    }
}

#[test]
fn certificates_stand_with_their_keys() {
    let pair = "certificate = \"/a.pem\"\nkey = \"/a.key\"";
    let https = "https = [\"127.0.0.1:8443\"]";
    for (rest, expected) in [
        (String::new(), "serve.https has no certificate"),
        ("[serve.tls]\ncertificate = \"/a.pem\"".into(), "serve.tls.key is missing"),
        ("[serve.tls]\nkey = \"/a.key\"".into(), "serve.tls.certificate is missing"),
        (format!("[[serve.tls.pair]]\n{pair}"), "serve.tls.certificate is missing"),
        (
            format!("[serve.tls]\n{pair}\n[[serve.tls.pair]]\nkey = \"/b.key\""),
            "serve.tls.pair[0].certificate is missing",
        ),
        (format!("[serve.tls]\n{pair}\nwrite_buffer = \"1 KiB\""), "16 KiB to 4 MiB"),
        (format!("[serve.tls]\n{pair}\nhandshakes_max = 0"), "serve.tls.handshakes_max is 0"),
    ] {
        let shown = faults(&smallest(https, &rest));
        assert!(shown.contains(expected) && shown.ends_with("1 fault in the configuration"), "{rest}: {shown}");
    }
    let only = smallest(https, &format!("[serve.tls]\n{pair}")).replace("http = [\"127.0.0.1:8080\"]\n", "");
    assert!(Config::parse("oca.toml", &only, MACHINE).is_ok(), "HTTPS alone is enough");
    let twice = smallest("https = [\"127.0.0.1:8080\"]", &format!("[serve.tls]\n{pair}"));
    assert!(faults(&twice).contains("take the same port"));
}

#[test]
fn a_pair_that_is_no_good_is_a_fault_where_it_is_named() {
    let machine = Machine { now: Some(crate::asset::UnixTime(1_767_225_600)), ..MACHINE };
    let tls = "[serve.tls]\ncertificate = \"/nowhere/a.pem\"\nkey = \"/nowhere/a.key\"\n\
               [[serve.tls.pair]]\ncertificate = 5\nkey = \"/nowhere/b.key\"\n\
               [[serve.tls.pair]]\ncertificate = \"/nowhere/c.pem\"\nkey = \"/nowhere/c.key\"";
    let text = smallest("https = [\"127.0.0.1:8443\"]", tls);
    let shown = Config::parse("oca.toml", &text, machine).expect_err("nothing is there").to_string();
    for (line, expected) in [
        (11, "/nowhere/a.pem cannot be read"),
        (14, "cannot be read: it is a whole number"),
        (17, "/nowhere/c.pem cannot be read"),
    ] {
        assert!(shown.contains(expected), "'{expected}' is not in\n{shown}");
        assert!(shown.contains(&format!("oca.toml:{line}:")), "line {line} is not named in\n{shown}");
    }
    assert!(shown.ends_with("3 faults in the configuration"), "{shown}");
}

#[test]
fn signing_that_cannot_be_is_refused() {
    let set = "[[serve.signing.key_set]]\npath = \"/nowhere/keys.json\"\nform = \"uri-signing\"";
    for (rest, expected) in [
        ("[serve.signing]\ndefault = \"required\"".into(), "no key set"),
        (format!("{set}\n[serve.signing]\nleeway = \"2 min\""), "at most 1 min"),
        (format!("{set}\n[serve.signing]\ntoken_size_max = \"1 MiB\""), "256 B to 8 KiB"),
        (format!("{set}\n[serve.signing]\nregex_size_max = \"1 MiB\""), "1 KiB to 256 KiB"),
        (format!("{set}\n[[serve.signing.rule]]\nprefix = \"films/\"\npolicy = \"off\""), "begins with a slash"),
        (format!("{set}\n{}", "[[serve.signing.rule]]\nprefix = \"/a\"\npolicy = \"off\"\n".repeat(2)), "two rules"),
        (set.replace("uri-signing", "jwt"), "\"jwt\" is none of \"uri-signing\", \"hmac\""),
        ("[[serve.signing.key_set]]\nform = \"hmac\"".into(), "path is missing"),
    ] {
        let shown = faults(&smallest("", &rest));
        assert!(shown.contains(expected) && shown.ends_with("1 fault in the configuration"), "{rest}: {shown}");
    }
    assert!(Config::parse("oca.toml", &smallest("", set), MACHINE).is_ok());
    let machine = Machine { now: Some(crate::asset::UnixTime(1_767_225_600)), ..MACHINE };
    let shown = Config::parse("oca.toml", &smallest("", set), machine).expect_err("nothing is there").to_string();
    assert!(shown.contains("read /nowhere/keys.json") && shown.contains("oca.toml:11:"), "{shown}");
}

#[test]
fn more_cold_reads_than_a_ring_has_room_for_are_refused() {
    let with = |count: u32| smallest("", &format!("[storage]\ncold_reads_max = {count}"));
    assert!(faults(&with(4097)).contains("at most 4096"));
    assert!(Config::parse("oca.toml", &with(4096), MACHINE).is_ok());
}

#[test]
fn limits_of_health_that_cannot_be_are_refused() {
    for (line, expected) in [
        ("calm_percent = 0", "1 to 100"),
        ("memory_free_percent = 51", "0 to 50"),
        ("interval = \"1 ms\"", "health.interval"),
        ("interval = \"20 s\"\nwindow = \"10 s\"", "health.window"),
        ("queue_delay_max = \"0 s\"", "health.queue_delay_max"),
    ] {
        let shown = faults(&smallest("", &format!("[health]\n{line}")));
        assert!(shown.contains(expected) && shown.ends_with("1 fault in the configuration"), "{line}: {shown}");
    }
}

#[test]
fn an_admin_listener_that_others_reach_needs_credentials() {
    let open = "[admin]\nlisten = \"0.0.0.0:9090\"";
    let token = "token_file = \"/nowhere/token\"";
    let tls = "[admin.tls]\ncertificate = \"/nowhere/a.pem\"\nkey = \"/nowhere/a.key\"";
    let ca = "client_ca = \"/nowhere/ca.pem\"";
    for (rest, expected) in [
        (open.into(), "can be reached from other machines"),
        (open.replace("0.0.0.0", "[::]"), "can be reached from other machines"),
        (open.replace("0.0.0.0", "192.0.2.1"), "can be reached from other machines"),
        (format!("{open}\n{tls}"), "can be reached from other machines"),
        (format!("{open}\n{token}\n[admin.tls]\n{ca}\nkey = \"/a.key\""), "admin.tls.certificate is missing"),
        (format!("{open}\ntoken_file = \"token\""), "write an absolute path"),
        (format!("{open}\n{token}\nhosts = [\"http://a\"]"), "'http://a' is no host's name"),
        (format!("{open}\n{token}\ncheck_interval = \"0 s\""), "leaves no time"),
    ] {
        let shown = faults(&smallest("", &rest));
        assert!(shown.contains(expected), "{rest}: {shown}");
    }
    for rest in [
        format!("{open}\n{token}"),
        format!("{open}\n{tls}\n{ca}"),
        open.replace("0.0.0.0", "127.5.5.5"),
        open.replace("0.0.0.0", "[::1]"),
        open.replace("0.0.0.0", "[::ffff:127.0.0.1]"),
    ] {
        assert!(Config::parse("oca.toml", &smallest("", &rest), MACHINE).is_ok(), "{rest}");
    }
    let machine = Machine { now: Some(crate::asset::UnixTime(1_767_225_600)), ..MACHINE };
    let text = smallest("", &format!("{open}\n{token}\n{tls}\n{ca}"));
    let shown = Config::parse("oca.toml", &text, machine).expect_err("nothing is there").to_string();
    for expected in ["read /nowhere/token", "/nowhere/a.pem cannot be read", "oca.toml:12:", "oca.toml:14:"] {
        assert!(shown.contains(expected), "'{expected}' is not in\n{shown}");
    }
}

#[test]
fn a_broken_file_says_where_it_breaks() {
    let shown = faults("[serve]\nhttp = [\"127.0.0.1:1\"\nworkers = = 2\n");
    assert!(shown.contains("oca.toml:3:") || shown.contains("oca.toml:2:"), "{shown}");
}

#[test]
fn steering_that_cannot_be_is_refused() {
    let service = "[[steering.service]]\nurl = \"https://steering.example/\"\n";
    for (rest, expected) in [
        ("[steering]\ninterval = \"2 min\"".into(), "2 min is not from 1 s to 1 min"),
        ("[steering]\ninterval_min = \"1 ms\"".into(), "at least 100 ms"),
        ("[steering]\njitter_percent = 91".into(), "91 percent"),
        ("[steering]\nreply_size_max = \"1 GiB\"".into(), "1 KiB to 16 MiB"),
        ("[steering]\nchanges_max = 0".into(), "no change would ever be told"),
        ("[steering]\nprefixes = [\"10.0.0.1\"]".into(), "write a network"),
        ("[steering]\nprefixes = [\"10.0.0.0/8\", \"11.0.0.0/8\"]\nprefixes_max = 1".into(), "2 networks"),
        ("[steering]\nurls = [\"edge1.example\"]".into(), "no address"),
        (service.replace("https://", "ftp://"), "use https or http"),
        ("[[steering.service]]\ntoken_file = \"/t\"".into(), "url is missing"),
        (service.repeat(2).replace("example/\"\n", "example/\"\nname = \"a\"\n"), "the name 'a'"),
        (format!("{service}certificate = \"/a.pem\""), "steering.service[0].key is missing"),
        (format!("{service}token_file = \"/t\"").replace("https://", "http://"), "for everybody to read"),
    ] {
        let shown = faults(&smallest("", &rest));
        assert!(shown.contains(expected) && shown.ends_with("1 fault in the configuration"), "{rest}: {shown}");
    }
    let near = format!("{service}token_file = \"/t\"").replace("https://steering.example", "http://127.0.0.1:1");
    assert!(Config::parse("oca.toml", &smallest("", &near), MACHINE).is_ok());
    let machine = Machine { now: Some(crate::asset::UnixTime(1_767_225_600)), ..MACHINE };
    let text = smallest("", &format!("{service}token_file = \"/nowhere/token\""));
    let shown = Config::parse("oca.toml", &text, machine).expect_err("nothing is there").to_string();
    assert!(shown.contains("read /nowhere/token") && shown.contains("oca.toml:12:"), "{shown}");
}
