//! What floods do to viewers: the p99 of honest requests at half of capacity, while one hostile process does its worst.
//!
//! `cargo bench --bench floods`; options: `--only=NAME` (floods whose name holds this), `--seconds=1.5` in tenths (`--tenths=15`), `--rounds=3`,
//! `--tls` (viewers by TLS), `--detail` (the p99 of each tenth of a second, too), `--write` (puts the table into docs/performance.md), `--test` (a short run).
//!
//! The appliance has one core; honest load and hostile process share the other. The kernel runs the hostile process there whenever the load has
//! nothing to do, and at no other time (SCHED_IDLE against a nice value of -20), so that what is measured is what the appliance suffers and not what the
//! load does.
//! In a quiet round the same process floods another appliance, which runs where it does and whenever it does, and in each a neighbour works there: that keeps the core, its caches and the kernel as busy, at
//! nobody's cost. A core that rests while a flood waits wakes up later than one that never does, which is a fifth of the p99. A first row has no flood at all: what it grows by is what all the others may be wrong by.
//!
//! Viewers are there before the flood is: one that comes while nobody else wants anything has whatever is free, and that is no matter here.
//!
//! Viewers ask for ranges of 64 KiB at random moments (open loop), so often that the core that serves them is busy for half of the time. In the clear:
//! that costs them little of the core that they share with the flood, which has the rest. By TLS (`--tls`) they take nearly all of it.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a bench speaks on the terminal")]
#![expect(clippy::cast_possible_truncation, reason = "rates and sizes of a bench fit")]

mod hostile;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "benches share one support module, and none uses all of it")]
mod support;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use hostile::{FLOODS, Flood, NEIGHBOUR, Target};
use support::{
    Fallible,
    appliance::{Appliance, Setup},
    cores, flag, is_smoke,
    load::{Ask, Load, Outcome, Protocol},
    option,
    random::Random,
    records, report,
    scratch::{Scratch, make_assets},
    values,
};

const RANGE: u64 = 64 << 10;
const CONNECTIONS: usize = 64;
/// How much the p99 of viewers may grow.
const GROWTH_MAX: f64 = 1.1;

struct Plan {
    time: Duration,
    rounds: usize,
    length: u64,
    only: Option<String>,
}

struct Bench<'a> {
    plan: &'a Plan,
    appliance: &'a Appliance,
    /// What is flooded while the other one is not.
    decoy: &'a Appliance,
    protocol: Protocol,
    root: &'a Path,
}

/// What viewers got in one round, and what it cost.
struct Round {
    p50: u64,
    p99: u64,
    /// Of each tenth of a second.
    p99s: Vec<u64>,
    /// Share of the time of which nothing is in these.
    left_out: f64,
    busy: f64,
    /// Acts of the flood a second.
    acts: f64,
    connections: f64,
    /// Bytes that the appliance's memory has grown by at most.
    memory: u64,
}

struct Row {
    flood: &'static Flood,
    quiet: Vec<Round>,
    flooded: Vec<Round>,
    errors: Vec<String>,
}

/// Where the hostile process finds the certificate that it trusts.
fn root_file() -> Option<PathBuf> {
    values("root").first().map(Into::into)
}

fn main() -> Fallible<()> {
    if let (Some(name), Some(http), Some(https)) =
        (values("flood").first(), values("http").first(), values("https").first())
    {
        thread::park_timeout(Duration::from_millis(option("after").unwrap_or(0)));
        return hostile::run(name, Target { http: http.parse()?, https: https.parse()? });
    }
    let smoke = is_smoke();
    if flag("write") && (smoke || cfg!(debug_assertions)) {
        return Err("a short run, or one of a debug build, makes no figures to write down".into());
    }
    let plan = Plan {
        time: Duration::from_millis(100 * option("tenths").unwrap_or(if smoke { 2 } else { 15 })),
        rounds: option("rounds").unwrap_or(if smoke { 1 } else { 3 }).max(1) as usize,
        length: if smoke { 4 << 20 } else { 64 << 20 },
        only: values("only").pop(),
    };
    cores::pin_to_load()?;
    // Requests leave when they are due, not up to 50 us later.
    rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1))?;
    println!("{}\n", report::machine());
    let scratch = Scratch::new("floods")?;
    let home = scratch.path();
    make_assets(&home.join("source"), 1, plan.length)?;
    fs::write(home.join("source/small.mp4"), vec![7; 100_000])?;
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let [certificate, key, root] = ["certificate.pem", "key.pem", "root.der"].map(|name| home.join(name));
    fs::write(&certificate, certified.cert.pem())?;
    fs::write(&key, certified.signing_key.serialize_pem())?;
    fs::write(&root, certified.cert.der())?;
    let tables = format!("[serve.tls]\ncertificate = {certificate:?}\nkey = {key:?}\n");
    let mut setup = Setup::new(home, "1 GiB");
    // A build for development is behind by itself, and would refuse viewers in a run that only shows that all of it works.
    let serve =
        format!("https = [\"127.0.0.1:0\"]\nworkers = 1\n{}", if smoke { "queue_delay_max = \"0 s\"\n" } else { "" });
    (setup.serve, setup.tables, setup.pinned) = (&serve, &tables, true);
    let appliance = setup.start()?;
    let (source, decoy) = (setup.source.clone(), home.join("decoy"));
    fs::create_dir(&decoy)?;
    let mut other = Setup::new(&decoy, "1 GiB");
    (other.source, other.serve, other.tables) = (source, &serve, &tables);
    let decoy = other.start()?;
    go_last(decoy.id());
    let mut client = support::client::Client::connect(appliance.http)?;
    let mut other = support::client::Client::connect(decoy.http)?;
    for path in ["/0.mp4", "/small.mp4", "/0.mp4"] {
        client.fetch(path, None)?;
        other.fetch(path, None)?;
    }
    drop(other);
    let protocol = if flag("tls") {
        Protocol::Https(records::offer(certified.cert.der().clone(), "http/1.1")?)
    } else {
        Protocol::Http1
    };
    go_first();
    let bench = Bench { plan: &plan, appliance: &appliance, decoy: &decoy, protocol, root: &root };
    let (text, failed) = bench.run()?;
    println!("\n{text}");
    if flag("write") {
        report::update("docs/performance.md", "floods", &text)?;
    }
    decoy.stop()?;
    appliance.stop()?;
    if failed { Err("viewers had errors".into()) } else { Ok(()) }
}

/// Has the kernel run this thread, which plays the viewers, whenever it has something to do. Not by SCHED_FIFO: to threads that share a core
/// with that, kernels give a twentieth of each second in one go.
fn go_first() {
    let own = rustix::thread::gettid().as_raw_nonzero().to_string();
    let done = Command::new("renice").args(["-n", "-20", "-p", &own]).stdout(Stdio::null()).status();
    if !done.is_ok_and(|status| status.success()) {
        eprintln!("viewers cannot be put first: what they measure holds some of what the flood does to their own core");
    }
}

/// Has the kernel run this process only where nobody else wants the core, as it does the one that floods.
fn go_last(process: u32) {
    let mut command = Command::new("chrt");
    command.args(["--idle", "--all-tasks", "--pid", "0", &process.to_string()]);
    if !command.stdout(Stdio::null()).status().is_ok_and(|status| status.success()) {
        eprintln!("what is flooded in quiet rounds takes time from the viewers there");
    }
}

impl Bench<'_> {
    fn run(&self) -> Fallible<(String, bool)> {
        let capacity = self.load().run()?;
        let capacity = capacity.requests as f64 / capacity.seconds;
        // Requests that come one by one cost more than those that come together, as they do without a pause.
        let busy: Fallible<Vec<f64>> =
            (0..3).map(|_| Ok(self.round((NEIGHBOUR, self.decoy), capacity / 3.0)?.busy)).collect();
        let rate = (capacity / 3.0 / median(busy?) / 2.0).min(capacity * 0.6);
        println!("capacity: {capacity:.0} requests/s without a pause; viewers ask {rate:.0} times a second");
        let chosen = |flood: &&'static Flood| self.plan.only.as_ref().is_none_or(|only| flood.name.contains(only));
        let (mut rows, mut random) = (Vec::new(), Random::new(1));
        for flood in FLOODS.iter().filter(chosen) {
            let mut row = Row { flood, quiet: Vec::new(), flooded: Vec::new(), errors: Vec::new() };
            for number in 0..self.plan.rounds {
                // In turns, so that a machine that slows down slows both, and neither always when something comes round.
                let mut both = [(self.decoy, &mut row.quiet), (self.appliance, &mut row.flooded)];
                if number % 2 == 1 {
                    both.reverse();
                }
                for (target, into) in both {
                    thread::park_timeout(Duration::from_millis(random.below(500)));
                    match self.round((flood.name, target), rate) {
                        Ok(round) => {
                            if flag("detail") {
                                let whose = if std::ptr::eq(target, self.decoy) { "quiet" } else { "flooded" };
                                println!("{}, {whose}: {:?}, core {:.2} busy", flood.name, round.p99s, round.busy);
                            }
                            into.push(round);
                        }
                        Err(err) => row.errors.push(format!("{}: {err}", flood.name)),
                    }
                }
            }
            println!("{}", row.line());
            row.errors.iter().for_each(|err| eprintln!("  {err}"));
            rows.push(row);
        }
        let failed = rows.iter().any(|row| !row.errors.is_empty());
        Ok((self.show((capacity, rate), &rows), failed))
    }

    fn load(&self) -> Load<'_> {
        let pieces = self.plan.length / RANGE;
        let next = move |random: &mut Random| Ask {
            path: "/0.mp4".into(),
            start: random.below(pieces) * RANGE,
            len: RANGE,
            whole: false,
        };
        Load {
            address: match self.protocol {
                Protocol::Http1 => self.appliance.http,
                _ => self.appliance.https.unwrap_or(self.appliance.http),
            },
            protocol: self.protocol.clone(),
            connections: CONNECTIONS,
            time: self.plan.time,
            next: Box::new(next),
            verify: None,
            requests_max: u64::MAX,
            polls: false,
            servers: vec![self.appliance.id()],
        }
    }

    /// Viewers ask, one process begins to flood who is to be flooded, and then it is measured.
    fn round(&self, flood: (&str, &Appliance), rate: f64) -> Fallible<Round> {
        self.settle()?;
        let before = resident(self.appliance.id());
        let hostile = Hostile::start(flood, self.root)?;
        let neighbour = Hostile::start((NEIGHBOUR, self.decoy), self.root)?;
        let watch = Watch::start(self.appliance.id());
        let (mut begun, mut acts) = (Instant::now(), 0);
        let mut begin = || (begun, acts) = (Instant::now(), hostile.acts());
        let outcome: Outcome = self.load().run_open(rate, self.plan.time / 2, &mut begin)?;
        let acts = (hostile.acts() - acts) as f64 / begun.elapsed().as_secs_f64();
        let connections = self.appliance.metric("oca_connections")? - CONNECTIONS as f64;
        let memory = watch.peak().saturating_sub(before);
        drop((hostile, neighbour));
        Ok(Round {
            p50: outcome.latency.value_at_quantile(0.5),
            p99: outcome.latency.value_at_quantile(0.99),
            p99s: outcome.tenths,
            left_out: outcome.left_out,
            busy: outcome.cpu_seconds / outcome.seconds,
            acts,
            connections: connections.max(0.0),
            memory,
        })
    }

    /// Until the connections of the last round are gone.
    fn settle(&self) -> Fallible<()> {
        let begun = Instant::now();
        while self.appliance.metric("oca_connections")? > 4.0 {
            if begun.elapsed() > Duration::from_secs(60) {
                return Err("connections of the round before do not go".into());
            }
            thread::park_timeout(Duration::from_millis(50));
        }
        Ok(())
    }

    fn show(&self, (capacity, rate): (f64, f64), rows: &[Row]) -> String {
        let mut text = format!(
            "{CONNECTIONS} viewers ask for ranges of {} KiB by {}, {rate:.0} a second in all, which keeps the one core that serves \
             them busy for half of the time (it serves {capacity:.0} to who asks without a pause). One hostile process floods it, or in quiet rounds another appliance beside itself; it and the viewers share the other core. {} rounds of {:.1} s, each beside a quiet one; medians. The p99 is that of a tenth \
             of a second, of which there are as many as a round has; growth is that, {GROWTH_MAX} the goal; {}\n\n\
             | flood | a second | p50 us quiet | flooded | p99 us quiet | flooded | growth | p99 us of a whole round, quiet | flooded | errors | core busy quiet | flooded | connections | KiB each | left out quiet | flooded |\n\
             |---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
            RANGE >> 10,
            if matches!(self.protocol, Protocol::Http1) { "plain HTTP/1.1" } else { "TLS 1.3 and HTTP/1.1" },
            self.plan.rounds,
            self.plan.time.as_secs_f64(),
            report::machine()
        );
        for row in rows {
            text += &row.line();
            text.push('\n');
        }
        text
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Row {
    fn line(&self) -> String {
        let of = |rounds: &[Round], what: fn(&Round) -> f64| median(rounds.iter().map(what).collect());
        let (quiet, flooded) = (&self.quiet, &self.flooded);
        let [p99_quiet, p99_flooded] = [quiet, flooded].map(|rounds| {
            // A short run has no whole tenth.
            let whole = |round: &Round| if round.p99s.is_empty() { vec![round.p99] } else { round.p99s.clone() };
            median(rounds.iter().flat_map(whole).map(|micros| micros as f64).collect())
        });
        let connections = of(flooded, |round| round.connections);
        let each = if self.flood.holds && connections >= 1.0 {
            format!("{:.0}", of(flooded, |round| round.memory as f64) / connections / 1024.0)
        } else {
            String::new()
        };
        format!(
            "| {} | {:.0} {} | {:.0} | {:.0} | {p99_quiet:.0} | {p99_flooded:.0} | {:.2} | {:.0} | {:.0} | {} | {:.0} % | {:.0} % | {connections:.0} | {each} | {:.0} % | {:.0} % |",
            self.flood.name,
            of(flooded, |round| round.acts),
            self.flood.unit,
            of(quiet, |round| round.p50 as f64),
            of(flooded, |round| round.p50 as f64),
            p99_flooded / p99_quiet,
            of(quiet, |round| round.p99 as f64),
            of(flooded, |round| round.p99 as f64),
            self.errors.len(),
            of(quiet, |round| round.busy) * 100.0,
            of(flooded, |round| round.busy) * 100.0,
            of(quiet, |round| round.left_out) * 100.0,
            of(flooded, |round| round.left_out) * 100.0,
        )
    }
}

/// The hostile process; ended when dropped.
struct Hostile {
    child: Child,
    acts: Arc<AtomicU64>,
}

impl Hostile {
    fn start((name, target): (&str, &Appliance), root: &Path) -> Fallible<Self> {
        let own = std::env::current_exe()?;
        let https = target.https.ok_or("it listens by TLS")?;
        let mut command = Command::new("chrt");
        command.args(["--idle", "0"]).arg(own).arg(format!("--flood={name}"));
        command.arg(format!("--http={}", target.http)).arg(format!("--https={https}"));
        command.arg(format!("--root={}", root.display()));
        // Viewers are there before it is.
        command.arg("--after=100");
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let acts = Arc::new(AtomicU64::new(0));
        let (lines, counted) = (BufReader::new(child.stdout.take().ok_or("piped")?), Arc::clone(&acts));
        thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                counted.store(line.trim().parse().unwrap_or(0), Ordering::Relaxed);
            }
        });
        Ok(Self { child, acts })
    }

    fn acts(&self) -> u64 {
        self.acts.load(Ordering::Relaxed)
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Bytes of memory that are a process's own.
fn resident(id: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) << 10
}

/// The most memory that a process has had.
struct Watch {
    over: Arc<AtomicBool>,
    watching: JoinHandle<u64>,
}

impl Watch {
    fn start(id: u32) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let done = Arc::clone(&over);
        let watching = thread::spawn(move || {
            let mut peak = 0;
            while !done.load(Ordering::Relaxed) {
                peak = peak.max(resident(id));
                thread::park_timeout(Duration::from_millis(50));
            }
            peak.max(resident(id))
        });
        Self { over, watching }
    }

    fn peak(self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        self.watching.join().unwrap_or(0)
    }
}
