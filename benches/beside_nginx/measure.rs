//! One server under one load, and several servers in turns.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{
    Plan,
    support::{
        Fallible,
        appliance::Appliance,
        cores,
        load::{Ask, Check, Load, Protocol},
        nginx::Nginx,
        random::Random,
        responder::Responder,
    },
};

/// Who is measured.
pub(crate) enum Server {
    Oca(Appliance),
    Nginx(Nginx),
    Ceiling(Responder),
}

/// A server and what it is called.
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) server: Server,
}

/// What the load is of.
pub(crate) struct Shape<'a> {
    pub(crate) protocol: Protocol,
    pub(crate) connections: usize,
    /// A round ends after so many requests, however long they take.
    pub(crate) requests_max: u64,
    /// Gives the next request.
    pub(crate) next: &'a dyn Fn(&mut Random) -> Ask,
    /// The bytes that a body has to have: request, offset, where to put them.
    pub(crate) content: &'a dyn Fn(&Ask, u64, &mut [u8]),
    /// Before each round of each server.
    pub(crate) before: Option<&'a dyn Fn() -> Fallible<()>>,
    /// The load looks for what has come instead of sleeping.
    pub(crate) polls: bool,
    /// `--wrk`: a file for the same load by wrk.
    pub(crate) script: Option<PathBuf>,
}

impl<'a> Shape<'a> {
    /// Plain HTTP/1.1, measured by time.
    pub(crate) fn new(
        connections: usize,
        next: &'a dyn Fn(&mut Random) -> Ask,
        content: &'a dyn Fn(&Ask, u64, &mut [u8]),
    ) -> Self {
        Self {
            protocol: Protocol::Http1,
            connections,
            requests_max: u64::MAX,
            next,
            content,
            before: None,
            polls: true,
            script: None,
        }
    }
}

/// The medians of several rounds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    pub(crate) name: String,
    pub(crate) requests_per_second: f64,
    pub(crate) gigabytes_per_second: f64,
    pub(crate) cpu_per_gigabyte: f64,
    pub(crate) p50: u64,
    pub(crate) p99: u64,
    pub(crate) p999: u64,
    /// How busy the server's core was with it, and the load's core with the load, as a part of the time.
    pub(crate) server_busy: f64,
    pub(crate) load_busy: f64,
    /// Bytes read from the disk for each one sent.
    pub(crate) read_per_byte: f64,
    /// Between the slowest and the fastest round, as a part of the median.
    pub(crate) spread: f64,
    /// Gigabytes a second in the fastest round: what else a machine does only slows.
    pub(crate) fastest: f64,
}

impl Server {
    pub(crate) fn http(&self) -> SocketAddr {
        match self {
            Self::Oca(oca) => oca.http,
            Self::Nginx(nginx) => nginx.http,
            Self::Ceiling(responder) => responder.http,
        }
    }

    /// Where a protocol is spoken.
    fn address(&self, protocol: &Protocol) -> Fallible<SocketAddr> {
        match (self, protocol) {
            (Self::Oca(oca), Protocol::Https(_) | Protocol::Http2(_)) => {
                Ok(oca.https.ok_or("oca says no address for HTTPS")?)
            }
            _ => Ok(self.http()),
        }
    }

    fn ids(&self) -> Vec<u32> {
        match self {
            Self::Oca(oca) => vec![oca.id()],
            Self::Nginx(nginx) => nginx.ids(),
            Self::Ceiling(responder) => responder.ids(),
        }
    }
}

/// One round of one server.
pub(crate) fn once(server: &Named, shape: &Shape<'_>, seconds: f64, verify: bool) -> Fallible<Measured> {
    let ids = server.server.ids();
    if let Some(before) = shape.before {
        before()?;
    }
    if let Some(script) = &shape.script {
        return by_wrk(server, script, shape.connections, seconds);
    }
    let compare = |ask: &Ask, offset: u64, bytes: &[u8]| {
        let mut expected = vec![0; bytes.len()];
        (shape.content)(ask, offset, &mut expected);
        expected == bytes
    };
    let mut load = Load {
        address: server.server.address(&shape.protocol)?,
        protocol: shape.protocol.clone(),
        connections: shape.connections,
        time: Duration::from_secs_f64(seconds),
        next: Box::new(shape.next),
        verify: verify.then(|| Box::new(compare) as Box<Check<'_>>),
        requests_max: shape.requests_max,
        polls: shape.polls,
        servers: ids,
    };
    let outcome = load.run().map_err(|err| format!("{}: {err}", server.name))?;
    let gigabytes = outcome.bytes as f64 / 1e9;
    Ok(Measured {
        name: server.name.clone(),
        requests_per_second: outcome.requests as f64 / outcome.seconds,
        gigabytes_per_second: gigabytes / outcome.seconds,
        cpu_per_gigabyte: outcome.cpu_seconds / gigabytes,
        p50: outcome.latency.value_at_quantile(0.5),
        p99: outcome.latency.value_at_quantile(0.99),
        p999: outcome.latency.value_at_quantile(0.999),
        server_busy: outcome.cpu_seconds / outcome.seconds,
        load_busy: outcome.load_busy_seconds / outcome.seconds,
        read_per_byte: outcome.disk_bytes as f64 / outcome.bytes as f64,
        spread: 0.0,
        fastest: 0.0,
    })
}

/// Rounds in turns, so that a change of the machine's mood meets all; the medians of each server.
pub(crate) fn in_turns(servers: &[&Named], shape: &Shape<'_>, plan: &Plan) -> Fallible<Vec<Measured>> {
    turns(servers, shape, (plan.rounds, plan.seconds), plan.verify)
}

fn turns(
    servers: &[&Named],
    shape: &Shape<'_>,
    (rounds, seconds): (usize, f64),
    verify: bool,
) -> Fallible<Vec<Measured>> {
    let mut measured: Vec<Vec<Measured>> = servers.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (server, measured) in servers.iter().zip(&mut measured) {
            measured.push(once(server, shape, seconds, verify)?);
        }
    }
    Ok(measured.into_iter().map(|rounds| medians(&rounds)).collect())
}

pub(crate) fn medians(rounds: &[Measured]) -> Measured {
    let median = |of: &dyn Fn(&Measured) -> f64| {
        let mut all: Vec<f64> = rounds.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let rates = rounds.iter().map(|round| round.gigabytes_per_second);
    let (slowest, fastest) = (rates.clone().fold(f64::MAX, f64::min), rates.fold(0.0, f64::max));
    let rate = median(&|round| round.gigabytes_per_second);
    Measured {
        name: rounds[0].name.clone(),
        requests_per_second: median(&|round| round.requests_per_second),
        gigabytes_per_second: rate,
        cpu_per_gigabyte: median(&|round| round.cpu_per_gigabyte),
        p50: median(&|round| round.p50 as f64) as u64,
        p99: median(&|round| round.p99 as f64) as u64,
        p999: median(&|round| round.p999 as f64) as u64,
        server_busy: median(&|round| round.server_busy),
        load_busy: median(&|round| round.load_busy),
        read_per_byte: median(&|round| round.read_per_byte),
        spread: (fastest - slowest) / rate,
        fastest,
    }
}

/// Rounds in which nginx's configurations are tried, each time.
const TRIES: usize = 3;
/// How many of them, by each of two figures, are tried for longer.
const FINALISTS: usize = 3;

/// The two of `servers` that are worth measuring: the fastest, and the one that takes least CPU time, which may be the same. All are tried for a short
/// time, the first of them for longer, both in turns: of eight that are alike the luckiest of short tries is not the best.
pub(crate) fn best<'s>(servers: &'s [Named], shape: &Shape<'_>, plan: &Plan) -> Fallible<Vec<&'s Named>> {
    if plan.smoke || servers.len() < 2 {
        return Ok(servers.iter().take(1).collect());
    }
    let mut left: Vec<&Named> = servers.iter().collect();
    for (part, keep) in [(4.0, FINALISTS), (2.0, 1)] {
        let tried = turns(&left, shape, (TRIES, plan.seconds / part), false)?;
        let mut order: Vec<usize> = (0..left.len()).collect();
        let (mut first, by) = (Vec::new(), |at: usize| &tried[at]);
        order.sort_by(|a, b| by(*b).gigabytes_per_second.total_cmp(&by(*a).gigabytes_per_second));
        first.extend(order.iter().take(keep).copied());
        order.sort_by(|a, b| by(*a).cpu_per_gigabyte.total_cmp(&by(*b).cpu_per_gigabyte));
        for at in order.into_iter().take(keep) {
            if !first.contains(&at) {
                first.push(at);
            }
        }
        left = first.into_iter().map(|at| left[at]).collect();
    }
    Ok(left)
}

/// The same by wrk: it copies bodies in pieces of 8 KiB, and so becomes the bottleneck with large ranges.
fn by_wrk(server: &Named, script: &Path, connections: usize, seconds: f64) -> Fallible<Measured> {
    let ids = server.server.ids();
    let before = cores::cpu_seconds(&ids);
    let output = Command::new("wrk")
        .args(["-t1", &format!("-c{connections}"), &format!("-d{}s", seconds.max(1.0).ceil()), "--latency", "-s"])
        .arg(script)
        .arg(format!("http://{}", server.server.http()))
        .output()
        .map_err(|err| format!("wrk: {err}"))?;
    let cpu = cores::cpu_seconds(&ids) - before;
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        return Err(format!("{}: wrk says {text}", server.name).into());
    }
    // The script prints: requests, bytes, microseconds, and three percentiles.
    let line = text.lines().find_map(|line| line.strip_prefix("figures ")).ok_or("wrk ended without figures")?;
    let figures: Vec<f64> = line.split(' ').filter_map(|figure| figure.parse().ok()).collect();
    let [requests, bytes, micros, p50, p99, p999] = figures[..] else { return Err("wrk: other figures".into()) };
    Ok(Measured {
        name: server.name.clone(),
        requests_per_second: requests / micros * 1e6,
        gigabytes_per_second: bytes / micros / 1e3,
        cpu_per_gigabyte: cpu / bytes * 1e9,
        p50: p50 as u64,
        p99: p99 as u64,
        p999: p999 as u64,
        server_busy: cpu / micros * 1e6,
        ..Measured::default()
    })
}
