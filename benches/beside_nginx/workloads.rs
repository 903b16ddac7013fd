//! The workloads, one function each: files, servers, load.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Plan, cold, fill,
    measure::{Measured, Named, Server, Shape, best, in_turns},
    secure,
    support::{
        Fallible,
        appliance::{Appliance, Setup},
        load::{Ask, Load, Protocol},
        nginx::{Nginx, Role, Tuning},
        random::{Random, Zipf},
        responder::Responder,
        scratch::{Scratch, content, make_assets},
    },
    table,
};

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;

/// What one workload came to.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// The table it belongs to.
    pub(crate) section: &'static str,
    pub(crate) workload: String,
    pub(crate) oca: Vec<Measured>,
    /// The best of nginx: fastest first, then the one with least CPU time where that is another.
    pub(crate) nginx: Vec<Measured>,
    /// Others: the ceiling, nginx with its log on, fio.
    pub(crate) others: Vec<Measured>,
}

type Workload = fn(&Plan) -> Fallible<Vec<Row>>;

const WORKLOADS: [(&str, Workload); 6] = [
    ("hot", hot),
    ("small", small),
    ("tls", secure::tls),
    ("http2", secure::http2),
    ("cold", cold::cold),
    ("fill", fill::fill),
];

/// Runs what the plan asks for, and prints each row when it is there.
pub(crate) fn run(plan: &Plan) -> Fallible<Vec<Row>> {
    let mut rows = Vec::new();
    for (name, workload) in WORKLOADS {
        if plan.only.is_empty() || plan.only.iter().any(|only| only == name) {
            rows.extend(workload(plan)?);
        }
    }
    if rows.is_empty() {
        return Err(
            format!("--only names no workload; there are {}", WORKLOADS.map(|(name, _)| name).join(", ")).into()
        );
    }
    Ok(rows)
}

/// The builds of oca that are to be measured, by name; `None`: the one that was just made.
pub(crate) fn builds(plan: &Plan) -> Vec<(String, Option<PathBuf>)> {
    match &plan.binaries[..] {
        [] => vec![("oca".to_owned(), None)],
        [one] => vec![("oca".to_owned(), Some(one.clone()))],
        // Whole: builds of two commits differ in their folders, not in their names.
        several => several.iter().map(|path| (path.display().to_string(), Some(path.clone()))).collect(),
    }
}

/// Each build of oca, with a volume of its own and the same source.
pub(crate) fn appliances(
    plan: &Plan,
    home: &Path,
    capacity: &str,
    (serve, tables): (&str, &str),
    source: &str,
) -> Fallible<Vec<Named>> {
    let mut made = Vec::new();
    let lines = if super::values("serve").is_empty() { vec![String::new()] } else { super::values("serve") };
    let variants = builds(plan).into_iter().flat_map(|(name, binary)| {
        lines.iter().map(move |line| (format!("{name} {line}").trim().to_owned(), binary.clone(), line))
    });
    for (number, (name, binary, line)) in variants.enumerate() {
        let own = home.join(format!("oca-{number}"));
        fs::create_dir_all(&own)?;
        let mut setup = Setup::new(&own, capacity);
        source.clone_into(&mut setup.source);
        // A thousand who ask again at once are more than a core can do, which it would say to some of them (503).
        let serve = format!("workers = 1\nqueue_delay_max = \"0 s\"\n{line}\n{serve}");
        (setup.serve, setup.tables, setup.binary, setup.pinned, setup.log) = (&serve, tables, binary, true, true);
        made.push(Named { name, server: Server::Oca(setup.start()?) });
    }
    Ok(made)
}

/// The folder `source` of `home`, as a source.
pub(crate) fn folder_source(home: &Path) -> String {
    format!("file://{}", home.join("source").display())
}

pub(crate) fn peers(plan: &Plan, home: &Path, tunings: &[Tuning], role: &Role<'_>) -> Fallible<Vec<Named>> {
    if !Nginx::is_there() {
        return Ok(Vec::new());
    }
    let tunings = if plan.smoke { &tunings[..1] } else { tunings };
    let start = |tuning: &Tuning| {
        let nginx = Nginx::start(home, &home.join("source"), *tuning, role)?;
        Ok(Named { name: format!("nginx ({tuning})"), server: Server::Nginx(nginx) })
    };
    tunings.iter().map(start).collect()
}

/// Asks for everything once, so that it is held, and in memory.
pub(crate) fn warm(address: SocketAddr, count: u64, length: u64) -> Fallible<()> {
    let number = std::cell::Cell::new(0);
    let next = |_: &mut Random| {
        let ask = Ask { path: format!("/{}.mp4", number.get() % count), start: 0, len: length, whole: true };
        number.set(number.get() + 1);
        ask
    };
    let time = Duration::from_secs(600);
    let (protocol, servers, requests_max) = (Protocol::Http1, Vec::new(), count.max(4));
    Load {
        address,
        protocol,
        connections: 4,
        time,
        next: Box::new(next),
        verify: None,
        requests_max,
        servers,
        polls: false,
    }
    .run()?;
    Ok(())
}

/// Waits until what was filled is durable, so that no write goes on beside what is measured.
pub(crate) fn settle(servers: &[Named]) -> Fallible<()> {
    for server in servers {
        let Server::Oca(oca) = &server.server else { continue };
        let mut before = -1.0;
        for _ in 0..120 {
            std::thread::park_timeout(Duration::from_millis(700));
            let durable = oca.metric("oca_blocks_durable_total")?;
            if durable == before {
                break;
            }
            before = durable;
        }
    }
    Ok(())
}

pub(crate) struct Bench<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) section: &'static str,
    pub(crate) appliances: &'a [Named],
    pub(crate) peers: &'a [Named],
    pub(crate) others: &'a [Named],
    /// The peers with their logs on, in the same order, where those are measured.
    pub(crate) logging: &'a [Named],
    /// How many assets of which length each server is asked for once before the rounds, where all should come from memory: kernels
    /// that reclaim ahead of need (DAMON) take what nobody has used for some seconds, as while the peers are tried.
    pub(crate) held: Option<(u64, u64)>,
}

impl Bench<'_> {
    pub(crate) fn row(&self, workload: &str, shape: &Shape<'_>) -> Fallible<Row> {
        let best = best(self.peers, shape, self.plan)?;
        if let Some((count, length)) = self.held {
            for server in self.appliances.iter().chain(best.iter().copied()) {
                warm(server.server.http(), count, length)?;
            }
        }
        let fastest = best.first().and_then(|best| self.peers.iter().position(|peer| std::ptr::eq(peer, *best)));
        let logging = fastest.and_then(|at| self.logging.get(at));
        let all: Vec<&Named> =
            self.appliances.iter().chain(best.iter().copied()).chain(logging).chain(self.others).collect();
        let mut measured = in_turns(&all, shape, self.plan)?;
        let others = measured.split_off(self.appliances.len() + best.len());
        let nginx = measured.split_off(self.appliances.len());
        let row = Row { section: self.section, workload: workload.to_owned(), oca: measured, nginx, others };
        table::print(&row);
        Ok(row)
    }
}

/// `start` of a part of `len` bytes somewhere in `length`, at a multiple of a page as players' segments are not, but disks like.
pub(crate) fn somewhere(random: &mut Random, length: u64, len: u64) -> u64 {
    random.below((length - len) / 4096 + 1) * 4096
}

/// Ranges of one film in memory, of several sizes, over several numbers of connections; the ceiling beside them.
fn hot(plan: &Plan) -> Fallible<Vec<Row>> {
    let length = if plan.smoke { 8 * MIB } else { 256 * MIB };
    let scratch = Scratch::new("beside_nginx-hot")?;
    make_assets(&scratch.path().join("source"), 1, length)?;
    let appliances = appliances(plan, scratch.path(), "1 GiB", ("", ""), &folder_source(scratch.path()))?;
    let peers = peers(plan, scratch.path(), &Tuning::hot(), &Role::default())?;
    let mut others = Vec::new();
    for (name, send_buffer) in [("ceiling", None), ("ceiling (sndbuf 256k)", Some(256 << 10))] {
        let responder = Responder::start(&scratch.path().join("source/0.mp4"), send_buffer)?;
        others.push(Named { name: name.into(), server: Server::Ceiling(responder) });
    }
    let tunings: Vec<Tuning> = Tuning::hot().into_iter().map(|tuning| Tuning { log: true, ..tuning }).collect();
    let logging = if plan.smoke { Vec::new() } else { self::peers(plan, scratch.path(), &tunings, &Role::default())? };
    for server in appliances.iter().chain(&peers).chain(&logging) {
        warm(server.server.http(), 1, length)?;
    }
    settle(&appliances)?;
    let bench = Bench {
        plan,
        section: "hot",
        appliances: &appliances,
        peers: &peers,
        others: &others,
        logging: &logging,
        held: None,
    };
    let kinds = [(16, 64), (64, 64), (256, 64), (1024, 64), (4096, 64), (64, 1), (64, 1000), (1024, 1), (1024, 1000)];
    let mut rows = Vec::new();
    for (kib, connections) in if plan.smoke { &kinds[1..2] } else { &kinds[..] } {
        let len = kib * KIB;
        let name = format!("{} x {connections}", table::size(len));
        if plan.row.as_ref().is_some_and(|row| !name.contains(row.as_str())) {
            continue;
        }
        let next = |random: &mut Random| Ask {
            path: "/0.mp4".into(),
            start: somewhere(random, length, len),
            len,
            whole: false,
        };
        let script = if plan.wrk { Some(wrk_script(scratch.path(), length, len)?) } else { None };
        let content = |ask: &Ask, offset: u64, into: &mut [u8]| content(0, ask.start + offset, into);
        let shape = Shape { script, ..Shape::new(*connections, &next, &content) };
        rows.push(bench.row(&name, &shape)?);
    }
    stop(appliances)?;
    Ok(rows)
}

/// Many small assets, asked for whole, some much more often than others; and a mix of ranges of a thousand films.
fn small(plan: &Plan) -> Fallible<Vec<Row>> {
    let mut rows = Vec::new();
    let (few, many) = if plan.smoke { (10, 20) } else { (1_000, 10_000) };
    for (workload, count, length) in [("small assets, Zipf", many, 200 * KIB), ("mixed ranges, Zipf", few, 2 * MIB)] {
        if plan.row.as_ref().is_some_and(|row| !workload.contains(row.as_str())) {
            continue;
        }
        let scratch = Scratch::new("beside_nginx-small")?;
        make_assets(&scratch.path().join("source"), count, length)?;
        let appliances = appliances(plan, scratch.path(), "8 GiB", ("", ""), &folder_source(scratch.path()))?;
        let peers = peers(plan, scratch.path(), &Tuning::hot(), &Role::default())?;
        let responder = Responder::start(&scratch.path().join("source"), None)?;
        let ceiling = [Named { name: "ceiling".into(), server: Server::Ceiling(responder) }];
        for server in appliances.iter().chain(&peers[..peers.len().min(1)]) {
            warm(server.server.http(), count, length)?;
        }
        settle(&appliances)?;
        let zipf = Zipf::new(count as usize, 0.9);
        let next = |random: &mut Random| {
            let path = format!("/{}.mp4", zipf.rank(random));
            if workload.starts_with("small") {
                return Ask { path, start: 0, len: length, whole: true };
            }
            let len = [16, 64, 64, 256, 1024][random.below(5) as usize] * KIB;
            Ask { path, start: somewhere(random, length, len), len, whole: false }
        };
        let content = |ask: &Ask, offset: u64, into: &mut [u8]| {
            let number = ask.path[1..].trim_end_matches(".mp4").parse().unwrap_or(u64::MAX);
            content(number, ask.start + offset, into);
        };
        let shape = Shape::new(64, &next, &content);
        let bench = Bench {
            plan,
            section: "small",
            appliances: &appliances,
            peers: &peers,
            others: &ceiling,
            logging: &[],
            held: Some((count, length)),
        };
        rows.push(bench.row(workload, &shape)?);
        stop(appliances)?;
    }
    Ok(rows)
}

pub(crate) fn stop(appliances: Vec<Named>) -> Fallible<()> {
    for appliance in appliances {
        if let Server::Oca(oca) = appliance.server {
            Appliance::stop(oca)?;
        }
    }
    Ok(())
}

/// wrk asks for random ranges, and says its figures in a line that can be read.
fn wrk_script(home: &Path, length: u64, len: u64) -> Fallible<PathBuf> {
    let path = home.join(format!("ranges-{len}.lua"));
    let places = (length - len) / 4096;
    fs::write(
        &path,
        format!(
            "request = function()\n  local s = math.random(0, {places}) * 4096\n\
             \x20 wrk.headers['Range'] = 'bytes=' .. s .. '-' .. (s + {len} - 1)\n  return wrk.format('GET', '/0.mp4')\nend\n\
             done = function(summary, latency, requests)\n\
             \x20 io.write(string.format('figures %d %d %d %d %d %d\\n', summary.requests, summary.requests * {len}, summary.duration,\n\
             \x20   latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))\nend\n"
        ),
    )?;
    Ok(path)
}
