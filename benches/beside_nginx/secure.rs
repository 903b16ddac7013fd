//! The same inside of TLS 1.3: HTTP/1.1 as players speak it here, and HTTP/2. The client offers one suite (AES-128-GCM, which
//! browsers prefer), so that both servers encrypt alike.

use std::{fs, path::Path};

use super::{
    Plan,
    measure::Shape,
    support::{
        Fallible,
        load::{Ask, Protocol},
        nginx::{Role, Tuning},
        random::Random,
        records,
        scratch::{Scratch, content, make_assets},
    },
    table,
    workloads::{Bench, KIB, MIB, Row, appliances, folder_source, peers, settle, somewhere, stop, warm},
};

pub(crate) fn tls(plan: &Plan) -> Fallible<Vec<Row>> {
    run(plan, "tls", &[(64, 64), (1024, 64), (64, 1000)])
}

pub(crate) fn http2(plan: &Plan) -> Fallible<Vec<Row>> {
    run(plan, "http2", &[(64, 64), (1024, 64)])
}

/// Random ranges of one film in memory: KiB, connections.
fn run(plan: &Plan, section: &'static str, kinds: &[(u64, usize)]) -> Fallible<Vec<Row>> {
    let length = if plan.smoke { 8 * MIB } else { 256 * MIB };
    let scratch = Scratch::new(&format!("beside_nginx-{section}"))?;
    let home = scratch.path();
    make_assets(&home.join("source"), 1, length)?;
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let (certificate, key) = (home.join("certificate.pem"), home.join("key.pem"));
    fs::write(&certificate, certified.cert.pem())?;
    fs::write(&key, certified.signing_key.serialize_pem())?;

    let alpn = if section == "http2" { "h2" } else { "http/1.1" };
    let root = certified.cert.der().clone();
    let offer = records::offer(root, alpn)?;
    let protocol = if section == "http2" { Protocol::Http2(offer) } else { Protocol::Https(offer) };
    let tables = format!("[serve.tls]\ncertificate = {certificate:?}\nkey = {key:?}\n");
    let appliances = appliances(plan, home, "1 GiB", ("https = [\"127.0.0.1:0\"]\n", &tables), &folder_source(home))?;
    let peers = secure_peers(plan, home, section == "http2")?;
    for server in &appliances {
        warm(server.server.http(), 1, length)?;
    }
    settle(&appliances)?;
    let bench = Bench { plan, section, appliances: &appliances, peers: &peers, others: &[], logging: &[], held: None };
    let mut rows = Vec::new();
    for (kib, connections) in if plan.smoke { &kinds[..1] } else { kinds } {
        let len = kib * KIB;
        let name = format!("{section} {} x {connections}", table::size(len));
        if plan.row.as_ref().is_some_and(|row| !name.contains(row.as_str())) {
            continue;
        }
        let next = |random: &mut Random| {
            let start = somewhere(random, length, len);
            Ask { path: "/0.mp4".into(), start, len, whole: false }
        };
        let content = |ask: &Ask, offset: u64, into: &mut [u8]| content(0, ask.start + offset, into);
        let shape = Shape { protocol: protocol.clone(), ..Shape::new(*connections, &next, &content) };
        rows.push(bench.row(&name, &shape)?);
    }
    stop(appliances)?;
    Ok(rows)
}

fn secure_peers(plan: &Plan, home: &Path, is_http2: bool) -> Fallible<Vec<super::measure::Named>> {
    let server = format!(
        "ssl_certificate {0}/certificate.pem; ssl_certificate_key {0}/key.pem; ssl_protocols TLSv1.3;\n\
         ssl_session_cache shared:S:16m; ssl_session_timeout 1h; {1}",
        home.display(),
        // Larger pieces than its 8 KiB take less work.
        if is_http2 { "http2_chunk_size 128k;" } else { "" },
    );
    let listen = if is_http2 { "ssl http2" } else { "ssl" };
    peers(plan, home, &Tuning::secure(), &Role { listen, server: &server, ..Role::default() })
}
