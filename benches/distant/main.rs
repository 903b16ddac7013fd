//! Does what bounds the bytes in flight per connection slow down a viewer who is far away?
//!
//!     cargo bench --bench distant                 every server, line and congestion control
//!     cargo bench --bench distant -- --write      puts the tables into docs/performance.md
//!
//! One viewer, one connection, a film that is in memory: whole, again and again, and as consecutive 4 MiB ranges. Between the viewer's
//! network namespace and the server's lies a line that holds each packet for half of the round trip (`line.rs`). What is measured begins a
//! second after the connection, so that it is the pace that is held and not the slow start. `ss` is asked meanwhile what the
//! kernel holds for the connection.
//!
//! Others: `--rate=400` (megabits per second that the line carries), `--mtu=1500`, `--seconds=3` (each figure), `--rounds=1` (the median of
//! several), `--seed=1` (of losses), `--rtt=50` (only these milliseconds), `--control=bbr`, `--oca=PATH` (another build), `--test` (a
//! short run that shows that all of it works). Needs root, `ip` and `ss`; nginx is left out where it is not installed.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "a bench speaks on the terminal, and computes with sizes that fit"
)]

mod line;
mod table;

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "benches share one support module, and none uses all of it")]
mod support;

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use line::Line;
use support::{
    Fallible,
    appliance::{Appliance, Setup},
    client::Client,
    flag, is_smoke,
    nginx::{Nginx, Role, Tuning},
    option, report, scratch, values,
};

const FILM: &str = "/0.mp4";
const RANGE: u64 = 4 << 20;
/// What is set differently from the defaults of `oca`.
const VARIANTS: [(&str, &str); 5] = [
    ("oca", ""),
    ("oca, unsent_max 64 KiB", "unsent_max = \"64 KiB\""),
    ("oca, unsent_max off", "unsent_max = \"0 B\""),
    ("oca, send_buffer 256 KiB", "send_buffer = \"256 KiB\""),
    ("oca, send_buffer 1 MiB", "send_buffer = \"1 MiB\""),
];

/// What the command line says.
#[derive(Debug)]
struct Plan {
    smoke: bool,
    film: u64,
    rate: u64,
    mtu: usize,
    seed: u64,
    rounds: u64,
    time: Duration,
    /// Before it counts.
    ramp: Duration,
    far: Vec<Distance>,
    controls: Vec<String>,
    binary: Option<PathBuf>,
}

/// How far away the viewer is.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Distance {
    round_trip: Duration,
    lost_per_million: u64,
}

/// One server under one of its settings.
struct Server {
    name: String,
    http: SocketAddr,
    _running: Running,
}

#[expect(dead_code, reason = "held so that they run")]
enum Running {
    Oca(Appliance),
    Nginx(Nginx),
}

/// One viewer of one server.
#[derive(Clone, Debug, Default)]
struct Pace {
    /// Megabits per second.
    whole: f64,
    ranges: f64,
    /// Most bytes that the kernel held for the connection, and most of these that had not been sent yet.
    held: u64,
    unsent: u64,
    control: String,
}

fn main() -> Fallible<()> {
    let plan = plan();
    let line = match Line::new(plan.rate, plan.mtu, plan.seed) {
        Err(err) if is_refused(&*err) => {
            println!("SKIPPED: no network namespaces or TUN devices may be made here: {err}");
            return Ok(());
        }
        line => line?,
    };
    let folder = scratch::Scratch::new("distant")?;
    scratch::make_assets(&folder.path().join("source"), 1, plan.film)?;
    let servers = line.server.within(|| start(&plan, folder.path()))?;
    println!("{}", report::machine());
    let mut results = Vec::new();
    for control in controls(&plan, &line)? {
        for distance in &plan.far {
            for server in &servers {
                results.push(table::Row {
                    control: control.clone(),
                    distance: *distance,
                    server: server.name.clone(),
                    paces: Vec::new(),
                });
            }
        }
    }
    for _ in 0..plan.rounds {
        for row in &mut results {
            let server = servers.iter().find(|server| server.name == row.server).ok_or("a row of no server")?;
            line.control(&row.control)?;
            line.set(row.distance.round_trip, row.distance.lost_per_million);
            let pace = watch(&plan, &line, server.http)?;
            println!("{} {:?} {}: {pace:?}", row.control, row.distance, row.server);
            if pace.control != row.control {
                return Err(format!("{} was to run with {}, not {}", row.server, row.control, pace.control).into());
            }
            row.paces.push(pace);
        }
    }
    drop(servers);
    let kept = line.end()?;
    let text = table::render(&plan, &results, &kept);
    println!("\n{text}");
    if flag("write") {
        report::update("docs/performance.md", "distant", &text)?;
    }
    Ok(())
}

fn plan() -> Plan {
    let smoke = is_smoke();
    let distance =
        |(micros, lost_per_million)| Distance { round_trip: Duration::from_micros(micros), lost_per_million };
    let far: &[(u64, u64)] =
        if smoke { &[(10_000, 1000)] } else { &[(200, 0), (10_000, 0), (50_000, 0), (100_000, 0), (50_000, 1000)] };
    let mut far: Vec<Distance> = far.iter().copied().map(distance).collect();
    if let Some(millis) = option("rtt") {
        far.retain(|distance| distance.round_trip.as_millis() as u64 == millis);
    }
    Plan {
        smoke,
        film: if smoke { 8 << 20 } else { 64 << 20 },
        rate: option("rate").unwrap_or(400).clamp(1, 100_000),
        mtu: option("mtu").unwrap_or(1500).clamp(576, 65_000) as usize,
        seed: option("seed").unwrap_or(1),
        rounds: if smoke { 1 } else { option("rounds").unwrap_or(1).max(1) },
        time: if smoke { Duration::from_millis(300) } else { Duration::from_secs(option("seconds").unwrap_or(3)) },
        ramp: if smoke { Duration::from_millis(100) } else { Duration::from_secs(1) },
        far,
        controls: values("control"),
        binary: values("oca").pop().map(Into::into),
    }
}

fn is_refused(err: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    let kind = err.downcast_ref::<io::Error>().map(io::Error::kind);
    !rustix::process::geteuid().is_root()
        || kind == Some(io::ErrorKind::PermissionDenied)
        || !Path::new("/dev/net/tun").exists()
}

/// The congestion controls to measure with, of those that this kernel has.
fn controls(plan: &Plan, line: &Line) -> Fallible<Vec<String>> {
    let read = |what: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/tcp_{what}"));
    let (own, all) = line.server.within(|| Ok((read("congestion_control")?, read("available_congestion_control")?)))?;
    let wanted = if !plan.controls.is_empty() {
        plan.controls.clone()
    } else if plan.smoke {
        vec![own.trim().to_owned()]
    } else {
        vec!["bbr".to_owned(), "cubic".to_owned()]
    };
    let is_there = |control: &String| {
        let is_there = all.split_whitespace().any(|name| name == control);
        if !is_there {
            eprintln!("this kernel has no {control}");
        }
        is_there
    };
    Ok(wanted.into_iter().filter(is_there).collect())
}

/// All servers, each with the film in memory. Those that nobody watches cost nothing.
fn start(plan: &Plan, home: &Path) -> Fallible<Vec<Server>> {
    let mut servers = Vec::new();
    for (number, (name, serve)) in VARIANTS.into_iter().enumerate() {
        let own = home.join(format!("oca-{number}"));
        fs::create_dir_all(&own)?;
        let mut setup = Setup::new(&own, "1 GiB");
        setup.source = format!("file://{}", home.join("source").display());
        (setup.address, setup.serve, setup.binary) = (line::SERVER, serve, plan.binary.clone());
        let appliance = setup.start()?;
        servers.push(Server { name: name.into(), http: appliance.http, _running: Running::Oca(appliance) });
    }
    if Nginx::is_there() {
        for (name, sndbuf) in [("nginx", None), ("nginx, sndbuf=256k", Some("256k"))] {
            let role = Role { address: Some(line::SERVER), is_origin: true, ..Role::default() };
            let nginx = Nginx::start(home, &home.join("source"), Tuning { sndbuf, ..Tuning::PLAIN }, &role)?;
            servers.push(Server { name: name.into(), http: nginx.http, _running: Running::Nginx(nginx) });
        }
    }
    for server in &servers {
        let mut client = Client::connect(server.http)?;
        for _ in 0..2 {
            client.fetch(FILM, None)?;
        }
    }
    Ok(servers)
}

fn watch(plan: &Plan, line: &Line, http: SocketAddr) -> Fallible<Pace> {
    let ended = AtomicBool::new(false);
    let (whole, (ranges, seen)) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let whole = line.viewer.within(|| view(plan, http, None));
            let ranges = line.viewer.within(|| view(plan, http, Some(RANGE)));
            ended.store(true, Ordering::Relaxed);
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>((whole?, ranges?))
        });
        let seen = line.server.within(|| {
            let mut seen = Pace::default();
            while !ended.load(Ordering::Relaxed) {
                look(http.port(), &mut seen)?;
                std::thread::park_timeout(Duration::from_millis(100));
            }
            Ok(seen)
        });
        let (whole, ranges) = watcher.join().map_err(|_| "a viewer panicked")??;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>((whole, (ranges, seen?)))
    })?;
    Ok(Pace { whole, ranges, ..seen })
}

/// Megabits per second that a viewer gets, once it is under way.
fn view(plan: &Plan, http: SocketAddr, step: Option<u64>) -> Fallible<f64> {
    let mut client = Client::connect(http)?;
    let (begun, mut counted, mut bytes) = (Instant::now(), None, 0);
    let mut at = 0;
    loop {
        let range = step.map(|step| (at, (at + step).min(plan.film)));
        at = range.map_or(0, |(_, end)| end % plan.film);
        let mut left = client.ask(FILM, range)?;
        while left > 0 {
            let taken = client.take(left)?;
            left -= taken;
            bytes += taken;
            if counted.is_none() && begun.elapsed() >= plan.ramp {
                counted = Some(Instant::now());
                bytes = 0;
            }
            if let Some(since) = counted.filter(|since| since.elapsed() >= plan.time) {
                return Ok(bytes as f64 * 8.0 / 1e6 / since.elapsed().as_secs_f64());
            }
        }
    }
}

/// What the kernel holds for the connection of `port`.
fn look(port: u16, seen: &mut Pace) -> Fallible<()> {
    let filter = format!("( sport = :{port} )");
    let told = Command::new("ss").args(["-tinH", "state", "established", &filter]).output()?;
    let text = String::from_utf8_lossy(&told.stdout);
    let mut lines = text.lines();
    while let (Some(queues), Some(info)) = (lines.next(), lines.next()) {
        let held = queues.split_whitespace().nth(1).and_then(|held| held.parse::<u64>().ok()).unwrap_or(0);
        let unsent = info.split_whitespace().find_map(|word| word.strip_prefix("notsent:")?.parse().ok()).unwrap_or(0);
        (seen.held, seen.unsent) = (seen.held.max(held), seen.unsent.max(unsent));
        seen.control = info.split_whitespace().next().unwrap_or_default().to_owned();
    }
    Ok(())
}
