//! What floods do to viewers: the p99 of honest requests at half of capacity, while one hostile process does its worst.
//!
//! `cargo bench --bench floods`; options: `--only=NAME` (floods whose name holds this), `--pairs=10` (of phases), `--tls` (viewers by TLS), `--serve=LINE` (one more of the
//! configuration's `[serve]`), `--detail` (the p99 of each phase, too), `--write` (puts the table into docs/performance.md), `--test` (a short run).
//!
//! The appliance has one core; honest load and hostile process share the other. The kernel runs the hostile process there whenever the load has
//! nothing to do, and at no other time (SCHED_IDLE against a nice value of -20), so that what is measured is what the appliance suffers and not what the
//! load does.
//! The appliance's core never sleeps: another process of that kind is on it. A host can take a sleeping core of a virtual machine from it and be late to give it back, by 0.1 ms and more for one request of a hundred.
//! Viewers ask without a pause, while quiet and flooded phases follow each other, so fast that a machine that slows down slows both. In all phases two such processes flood, and a neighbour works on their core; in a quiet phase
//! both flood another appliance, which runs where they do and whenever they do, in a flooded one of the two floods the one that serves the viewers instead. That is all that phases differ by: cores that share
//! what is inside of one, as two of a virtual machine may, slow each other down by what they do (a fifth and more), and one that rests wakes up late. A first row has no flood at all: what it grows by is what all the others may be wrong by.
//! Which of a pair of phases comes first is left to chance, so that what comes and goes by a clock of its own, as a host's other work does, falls on both alike.
//!
//! How a flood begins is told apart: the first half of a second of each phase that floods another one than the phase before, while connections are made, or the first four and a half where these are held and are thousands.
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
    hash::{BuildHasher as _, RandomState},
    io::{self, BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
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
    cores::{self, cpu_seconds},
    flag, is_smoke,
    load::{Ask, Load, Outcome, Protocol},
    option,
    random::Random,
    records, report,
    scratch::{Scratch, make_assets},
    values,
};

const RANGE: u64 = 64 << 10;
const CONNECTIONS: usize = 64;
/// Of its one asset and a few more: so that connections are bounded as by default, where a process may have no more than 20,000 descriptors for both.
const STORAGE: &str = "mappings_max = 2000";
const TENTH: Duration = Duration::from_millis(100);
/// Viewers ask for so long before anything is told.
const WARM: Duration = Duration::from_millis(500);
/// Time without any in which an appliance that has refused some is over that.
const AFTER_ERROR: Duration = Duration::from_secs(5);
/// How often pairs are drawn to find out what a growth may be wrong by.
const DRAWN: usize = 400;
/// How much the p99 of viewers may grow.
const GROWTH_MAX: f64 = 1.1;

struct Plan {
    pairs: u32,
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

/// How long quiet and flooded phases are, in tenths of a second, and what of that is a flood's beginning. Two are no whole second, so that what comes once a second comes at each moment of them in its turn.
#[derive(Clone, Copy)]
struct Phases {
    tenths: u32,
    beginning: u32,
    pairs: u32,
}

impl Phases {
    const SHORT: Self = Self { tenths: 21, beginning: 5, pairs: 10 };
    /// Where thousands of connections are made first.
    const LONG: Self = Self { tenths: 81, beginning: 45, pairs: 4 };

    fn length(self) -> Duration {
        TENTH * self.tenths
    }

    /// Which of the phases are flooded: one of each pair, the first or the second by chance. The last one is, so that connections can be counted at its end.
    fn order(self) -> Vec<bool> {
        let mut random = Random::new(RandomState::new().hash_one(()));
        let mut order: Vec<bool> = (1..self.pairs)
            .flat_map(|_| {
                let first = random.below(2) == 1;
                [first, !first]
            })
            .collect();
        order.extend([false, true]);
        order
    }
}

/// What viewers got in a phase: p50 and p99 of tenths of a second, in microseconds, in its beginning and after that; and the share of the core that was busy.
#[derive(Clone, Default)]
struct Phase {
    flooded: bool,
    beginning: Vec<f64>,
    p50s: Vec<f64>,
    p99s: Vec<f64>,
    busy: f64,
}

/// What became of one flood.
struct Row {
    flood: &'static Flood,
    /// Quiet and flooded ones, as many of each.
    phases: Vec<Phase>,
    /// Share of the time of which nothing is in these.
    left_out: f64,
    /// Acts of the flood a second, and connections in the end.
    acts: f64,
    connections: f64,
    /// Bytes that the appliance's memory has grown by at most.
    memory: u64,
    errors: Vec<String>,
}

/// Where the hostile process finds the certificate that it trusts.
fn root_file() -> Option<PathBuf> {
    values("root").first().map(Into::into)
}

fn main() -> Fallible<()> {
    if flag("awake") {
        return stay_awake();
    }
    if let Some(name) = values("flood").first() {
        let target = |text: &String| -> Fallible<Target> {
            let (http, https) = text.split_once(',').ok_or("two addresses")?;
            Ok(Target { http: http.parse()?, https: https.parse()? })
        };
        return hostile::run(name, &values("target").iter().map(target).collect::<Fallible<Vec<_>>>()?);
    }
    let smoke = is_smoke();
    if flag("write") && (smoke || cfg!(debug_assertions)) {
        return Err("a short run, or one of a debug build, makes no figures to write down".into());
    }
    let plan = Plan {
        pairs: option("pairs").map_or(if smoke { 1 } else { Phases::SHORT.pairs }, |pairs| pairs.clamp(1, 1000) as u32),
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
    let mut serve =
        format!("https = [\"127.0.0.1:0\"]\nworkers = 1\n{}", if smoke { "queue_delay_max = \"0 s\"\n" } else { "" });
    serve.extend(values("serve").iter().map(|line| format!("{line}\n")));
    (setup.serve, setup.storage, setup.tables, setup.pinned) = (&serve, STORAGE, &tables, true);
    let appliance = setup.start()?;
    let (source, decoy) = (setup.source.clone(), home.join("decoy"));
    fs::create_dir(&decoy)?;
    let mut other = Setup::new(&decoy, "1 GiB");
    (other.source, other.serve, other.storage, other.tables) = (source, &serve, STORAGE, &tables);
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
    let _awake = Awake::start()?;
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
        let shortly = if is_smoke() { TENTH } else { 10 * TENTH };
        let capacity = self.load(shortly).run()?;
        let capacity = capacity.requests as f64 / capacity.seconds;
        // Requests that come one by one cost more than those that come together, as they do without a pause.
        let mut busy = Vec::new();
        for _ in 0..3 {
            let neighbour = Hostile::start(NEIGHBOUR, [self.decoy; 2], self.root)?;
            let outcome = self.load(shortly).run_open(capacity / 3.0, shortly / 2, (shortly, &mut |_| {}))?;
            drop(neighbour);
            busy.push(outcome.cpu_seconds / outcome.seconds);
        }
        let rate = (capacity / 3.0 / median(busy) / 2.0).min(capacity * 0.6);
        println!("capacity: {capacity:.0} requests/s without a pause; viewers ask {rate:.0} times a second");
        let chosen = |flood: &&'static Flood| self.plan.only.as_ref().is_none_or(|only| flood.name.contains(only));
        let mut rows = Vec::new();
        for flood in FLOODS.iter().filter(chosen) {
            let row = self.row(flood, rate);
            if flag("detail") {
                for phase in &row.phases {
                    println!(
                        "{} {}: {:?} {:?}, core {:.2} busy",
                        flood.name,
                        if phase.flooded { "flooded" } else { "quiet" },
                        phase.beginning,
                        phase.p99s,
                        phase.busy
                    );
                }
            }
            println!("{}", row.line());
            row.errors.iter().for_each(|err| eprintln!("  {err}"));
            rows.push(row);
        }
        let failed = rows.iter().any(|row| !row.errors.is_empty());
        Ok((self.show((capacity, rate), &rows), failed))
    }

    fn load(&self, time: Duration) -> Load<'_> {
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
            time,
            next: Box::new(next),
            verify: None,
            requests_max: u64::MAX,
            polls: false,
            servers: vec![self.appliance.id()],
        }
    }

    fn row(&self, flood: &'static Flood, rate: f64) -> Row {
        let usual = if flood.holds { Phases::LONG } else { Phases::SHORT };
        let phases = if is_smoke() {
            Phases { tenths: 2, beginning: 0, pairs: 1 }
        } else {
            Phases { pairs: (usual.pairs * self.plan.pairs / Phases::SHORT.pairs).max(1), ..usual }
        };
        let none = Row {
            flood,
            phases: Vec::new(),
            left_out: 0.0,
            acts: 0.0,
            connections: 0.0,
            memory: 0,
            errors: Vec::new(),
        };
        let mut errors = Vec::new();
        // Once more after an error, which counts all the same: a host that stops for a moment makes one in a row that has none by itself.
        for _ in 0..2 {
            match self.measure(flood, phases, rate) {
                Ok(row) => return Row { errors, ..row },
                Err(err) => errors.push(format!("{}: {err}", flood.name)),
            }
            thread::park_timeout(AFTER_ERROR);
        }
        Row { errors, ..none }
    }

    /// Viewers ask, and who is flooded changes from phase to phase.
    fn measure(&self, flood: &'static Flood, phases: Phases, rate: f64) -> Fallible<Row> {
        self.settle()?;
        let before = resident(self.appliance.id());
        let mut hostile = Hostile::start(flood.name, [self.decoy, self.appliance], self.root)?;
        let other = Hostile::start(flood.name, [self.decoy; 2], self.root)?;
        let neighbour = Hostile::start(NEIGHBOUR, [self.decoy; 2], self.root)?;
        let watch = Watch::start(self.appliance.id());
        let flooded = phases.order();
        let begins =
            |number: usize| flooded.get(number) != number.checked_sub(1).map_or(Some(&false), |n| flooded.get(n));
        let mut cpu = Vec::new();
        let mut mark = |number: u32| {
            cpu.push((Instant::now(), cpu_seconds(&[self.appliance.id()])));
            if begins(number as usize) {
                hostile.switch();
            }
        };
        let time = phases.length() * 2 * phases.pairs;
        let outcome: Outcome = self.load(time).run_open(rate, WARM, (phases.length(), &mut mark))?;
        cpu.push((Instant::now(), cpu_seconds(&[self.appliance.id()])));
        let connections = self.appliance.metric("oca_connections")? - CONNECTIONS as f64;
        let acts = hostile.acts() as f64 / (time / 2).as_secs_f64();
        let memory = watch.peak().saturating_sub(before);
        drop((hostile, other, neighbour));
        let mut of: Vec<Phase> = flooded.iter().map(|&flooded| Phase { flooded, ..Phase::default() }).collect();
        for (phase, pair) in of.iter_mut().zip(cpu.windows(2)) {
            phase.busy = (pair[1].1 - pair[0].1) / (pair[1].0 - pair[0].0).as_secs_f64();
        }
        for tenth in &outcome.tenths {
            let number = tenth.from.as_nanos() / phases.length().as_nanos();
            let Some(phase) = of.get_mut(number as usize) else { continue };
            let from = phases.length() * number as u32;
            if tenth.to > from + phases.length() {
                continue;
            }
            if begins(number as usize) && tenth.from < from + TENTH * phases.beginning {
                phase.beginning.push(tenth.p99 as f64);
            } else {
                phase.p50s.push(tenth.p50 as f64);
                phase.p99s.push(tenth.p99 as f64);
            }
        }
        Ok(Row {
            flood,
            phases: of,
            left_out: outcome.left_out,
            acts,
            connections: connections.max(0.0),
            memory,
            errors: Vec::new(),
        })
    }

    /// Until the connections of the last row are gone.
    fn settle(&self) -> Fallible<()> {
        let begun = Instant::now();
        while self.appliance.metric("oca_connections")? > 4.0 {
            if begun.elapsed() > Duration::from_secs(60) {
                return Err("connections of the flood before do not go".into());
            }
            thread::park_timeout(Duration::from_millis(50));
        }
        Ok(())
    }

    fn show(&self, (capacity, rate): (f64, f64), rows: &[Row]) -> String {
        let seconds = |tenths: u32| f64::from(tenths) / 10.0;
        let mut text = format!(
            "{CONNECTIONS} viewers ask for ranges of {} KiB by {}, {rate:.0} a second in all, which keeps the one core that serves \
             them busy for half of the time (it serves {capacity:.0} to who asks without a pause). One hostile process floods it, or in quiet phases another appliance beside itself, which a second one always does; these and the viewers share the other core. \
             {} pairs of phases of {:.1} s in one run ({} of {:.1} s where connections are held). The p99 is that of a tenth of a second, the median of all; growth is that of the p99, {GROWTH_MAX} the goal, and what it may be wrong by (standard error); \
             which of a pair comes first is left to chance; beginnings are the first {:.1} s ({:.1} s) of flooded phases after quiet ones, which, as those of quiet ones after flooded ones, are in nothing else; {}\n\n\
             | flood | a second | p50 us quiet | flooded | p99 us quiet | flooded | growth | may be wrong by | p99 us of beginnings | errors | core busy quiet | flooded | connections | KiB each | left out |\n\
             |---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
            RANGE >> 10,
            if matches!(self.protocol, Protocol::Http1) { "plain HTTP/1.1" } else { "TLS 1.3 and HTTP/1.1" },
            self.plan.pairs,
            seconds(Phases::SHORT.tenths),
            Phases::LONG.pairs * self.plan.pairs / Phases::SHORT.pairs,
            seconds(Phases::LONG.tenths),
            seconds(Phases::SHORT.beginning),
            seconds(Phases::LONG.beginning),
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
    /// The phases that are flooded, or those that are quiet.
    fn those(&self, flooded: bool) -> impl Iterator<Item = &Phase> {
        self.phases.iter().filter(move |phase| phase.flooded == flooded)
    }

    /// How much the p99 of a tenth of a second has grown, by the median of all, and what that may be wrong by: its standard error, by what comes of pairs of phases that are drawn from these by chance
    /// (bootstrap; Efron, 1979). That of tenths would be too small, since those of a phase are alike.
    fn growth(&self) -> (f64, f64) {
        let pairs: Vec<&[Phase]> = self.phases.chunks(2).collect();
        let growth = |pairs: &[&[Phase]]| {
            let median_of = |flooded: bool| {
                let those = pairs.iter().flat_map(|pair| pair.iter()).filter(|phase| phase.flooded == flooded);
                median(those.flat_map(|phase| phase.p99s.iter().copied()).collect())
            };
            median_of(true) / median_of(false)
        };
        let mut random = Random::new(1);
        let mut drawn = || -> f64 {
            let drawn: Vec<_> =
                pairs.iter().filter_map(|_| pairs.get(random.below(pairs.len() as u64) as usize).copied()).collect();
            growth(&drawn)
        };
        let drawn: Vec<f64> = (0..DRAWN).map(|_| drawn()).collect();
        let mean = drawn.iter().sum::<f64>() / DRAWN as f64;
        let squares: f64 = drawn.iter().map(|growth| (growth - mean).powi(2)).sum();
        (growth(&pairs), (squares / (DRAWN - 1) as f64).sqrt())
    }

    fn line(&self) -> String {
        let of =
            |flooded: bool, what: fn(&Phase) -> &[f64]| median(self.those(flooded).flat_map(what).copied().collect());
        let busy = |flooded: bool| median(self.those(flooded).map(|phase| phase.busy).collect());
        let connections = self.connections;
        let each = if self.flood.holds && connections >= 1.0 {
            format!("{:.0}", self.memory as f64 / connections / 1024.0)
        } else {
            String::new()
        };
        let (growth, error) = self.growth();
        format!(
            "| {} | {:.0} {} | {:.0} | {:.0} | {:.0} | {:.0} | {growth:.2} | {error:.2} | {:.0} | {} | {:.0} % | {:.0} % | {connections:.0} | {each} | {:.0} % |",
            self.flood.name,
            self.acts,
            self.flood.unit,
            of(false, |phase| &phase.p50s),
            of(true, |phase| &phase.p50s),
            of(false, |phase| &phase.p99s),
            of(true, |phase| &phase.p99s),
            of(true, |phase| &phase.beginning),
            self.errors.len(),
            busy(false) * 100.0,
            busy(true) * 100.0,
            self.left_out * 100.0,
        )
    }
}

/// A hostile process, which floods one of two; ended when dropped.
struct Hostile {
    child: Child,
    says: Option<ChildStdin>,
    acts: Arc<AtomicU64>,
}

impl Hostile {
    /// One that floods the first; what is told of its acts are those against the second.
    fn start(name: &str, targets: [&Appliance; 2], root: &Path) -> Fallible<Self> {
        let mut command = Command::new("chrt");
        command.args(["--idle", "0"]).arg(std::env::current_exe()?).arg(format!("--flood={name}"));
        for target in targets {
            command.arg(format!("--target={},{}", target.http, target.https.ok_or("it listens by TLS")?));
        }
        command.arg(format!("--root={}", root.display()));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let acts = Arc::new(AtomicU64::new(0));
        let (lines, counted) = (BufReader::new(child.stdout.take().ok_or("piped")?), Arc::clone(&acts));
        let second = targets[1].http.to_string();
        thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                if let Some((target, count)) = line.split_once(' ')
                    && target == second
                    && let Ok(count) = count.trim().parse::<u64>()
                {
                    counted.store(count, Ordering::Relaxed);
                }
            }
        });
        let says = child.stdin.take();
        Ok(Self { child, says, acts })
    }

    /// Has it flood the other one.
    fn switch(&mut self) {
        if let Some(says) = &mut self.says {
            // One that has ended floods nobody, which the row shows.
            drop(says.write_all(b"\n"));
        }
    }

    fn acts(&self) -> u64 {
        self.acts.load(Ordering::Relaxed)
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        drop(self.says.take());
        drop(self.child.wait());
    }
}

/// A process that has the appliance's core whenever nobody else wants it, so that this never sleeps; ended when dropped.
struct Awake(Child);

impl Awake {
    fn start() -> Fallible<Self> {
        let mut command = Command::new("chrt");
        command.args(["--idle", "0"]).arg(std::env::current_exe()?).arg("--awake").stdin(Stdio::piped());
        Ok(Self(cores::spawn_server(&mut command)?))
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        drop(self.0.wait());
    }
}

/// Gives way to whoever wants its core, again and again, until nobody is there any more who has started it.
fn stay_awake() -> Fallible<()> {
    thread::spawn(|| {
        loop {
            thread::yield_now();
        }
    });
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    Ok(())
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
