//! Instructions of a hot hit, counted by callgrind: the gate against slow growth.
//!
//! `cargo bench --profile instructions --bench instructions`; options: `--check` (fail where a figure has grown, as CI does),
//! `--record` (write `benches/recorded/instructions.toml`), `--profile` (the functions in which the instructions are, per
//! hit; `--profile=N` for the first N), `--test` (a short run that only shows that the bench works). Needs valgrind.
//!
//! The real binary serves one sealed asset from memory over plain HTTP/1.1 with one worker, access log and metrics on. It is
//! run three times: with a warm-up alone, and with so many hits of each range beside it; what a run executes more than the first,
//! by hit, is what a hit costs. Only the worker's thread counts: which one that is, the functions of `oca::serve` tell.
//! Nothing here knows how the binary parses or sends. The kernel's part is not seen: `beside_nginx` measures that.
//!
//! The profile `instructions` is a release without link-time optimisation: its figures are not a release's, but what makes
//! one grow makes the other grow, and it is built in less time.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a bench speaks on the terminal")]

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "benches share one support module, and none uses all of it")]
mod support;

#[path = "support/callgrind.rs"]
mod callgrind;

use std::{
    collections::BTreeMap,
    error::Error,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use callgrind::{Counted, Counts, read_counts};
use support::{appliance::Setup, client::Client, is_smoke, scratch::Scratch};

type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

const KIB: u64 = 1 << 10;
const ASSET_BYTES: u64 = 4 << 20;
const RANGES: [u64; 2] = [16 * KIB, 64 * KIB];
/// Growth beyond which the gate closes, and shrinking beyond which the record should be made anew.
const TOLERANCE_PERCENT: f64 = 5.0;

/// How many requests of each range come before, and how many are counted.
#[derive(Clone, Copy)]
struct Plan {
    warm_up: u64,
    hits: u64,
}

/// Instructions of the worker for each hit, by range in bytes.
type Figures = BTreeMap<u64, f64>;

fn main() -> Fallible<ExitCode> {
    self_test()?;
    let plan = if is_smoke() { Plan { warm_up: 5, hits: 20 } } else { Plan { warm_up: 500, hits: 4_000 } };
    let scratch = Scratch::new("instructions")?;
    let home = scratch.path();
    let config = prepare(home)?;
    let base = worker_of(&count(home, &config, plan, None)?)?;
    let mut figures = Figures::new();
    for range in RANGES {
        let counts = worker_of(&count(home, &config, plan, Some(range))?)?;
        let per_hit = |with: u64, without: u64| (with as f64 - without as f64) / plan.hits as f64;
        let figure = per_hit(counts.values().sum(), base.values().sum());
        println!("{} KiB: {figure:.0} instructions in user space per hit", range / KIB);
        if let Some(rows) = profile_rows() {
            print_profile(
                rows,
                figure,
                counts.iter().map(|(name, with)| (name.as_str(), per_hit(*with, base.get(name).copied().unwrap_or(0)))),
            );
        }
        figures.insert(range, figure);
    }
    if is_smoke() {
        // A debug build under a short run says nothing of speed; that a hit costs something, and far less than filling, it does.
        let plausible = figures.values().all(|figure| (1_000.0..10_000_000.0).contains(figure));
        return if plausible { Ok(ExitCode::SUCCESS) } else { Err(format!("not plausible: {figures:?}").into()) };
    }
    let has = |name: &str| std::env::args().any(|argument| argument == name);
    if profile_rows().is_some() {
        return Ok(ExitCode::SUCCESS);
    }
    if has("--record") {
        fs::write(record_path(), show_record(&figures)?)?;
        println!("written to {}", record_path().display());
        return Ok(ExitCode::SUCCESS);
    }
    let text = fs::read_to_string(record_path()).map_err(|err| format!("{}: {err}", record_path().display()))?;
    let record: Record = toml::from_str(&text)?;
    if record.toolchain != toolchain()? {
        println!("the record was made with {}, this is {}", record.toolchain, toolchain()?);
    }
    let verdicts: Vec<_> =
        figures.iter().map(|(range, figure)| judge(*range, record.figure(*range), *figure)).collect();
    verdicts.iter().for_each(|verdict| println!("{}", verdict.text()));
    let grown = verdicts.iter().any(|verdict| matches!(verdict, Verdict::Grown(_)));
    Ok(if grown && has("--check") { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Fills a volume with the asset, and writes the configuration under which its hits are counted.
fn prepare(home: &Path) -> Fallible<PathBuf> {
    let source = home.join("source");
    fs::create_dir_all(&source)?;
    let mut noise = vec![0_u8; usize::try_from(ASSET_BYTES)?];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    fs::write(source.join("0.mp4"), &noise)?;
    let mut setup = Setup::new(home, "64 MiB");
    setup.serve = "workers = 1";
    let appliance = setup.start()?;
    let bytes = Client::connect(appliance.http)?.fetch("/0.mp4", None)?;
    if bytes != ASSET_BYTES {
        return Err(format!("the asset has {bytes} bytes").into());
    }
    appliance.stop()?;
    let config = home.join("counted.toml");
    // What works on its own time is turned off or put off: it would be counted by the second, not by the hit.
    let text = format!(
        "[serve]\nhttp = [\"127.0.0.1:0\"]\nworkers = 1\nqueue_delay_max = \"0 s\"\n[storage]\nengine = \"threads\"\nscrub_rate = \"0 bps\"\n\
         probe_interval = \"1 h\"\n[[storage.volume]]\npath = {:?}\ncapacity = \"64 MiB\"\n[[fill.source]]\nkind = \"origin\"\n\
         url = \"file://{}\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[log]\nfilter = \"warn\"\n[log.access]\npath = {:?}\n",
        home.join("volume"),
        source.display(),
        home.join("access.log"),
    );
    fs::write(&config, text)?;
    Ok(config)
}

/// One run: the warm-up, and hits of `range` where one is given.
fn count(home: &Path, config: &Path, plan: Plan, range: Option<u64>) -> Fallible<Vec<Counts>> {
    let counted = Counted::start(home, config)?;
    let mut client = Client::connect(counted.http)?;
    // Every run asks for the same offsets: the digits of a range are instructions too.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut hit = |range: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let start = random % ((ASSET_BYTES - range) / 4096 + 1) * 4096;
        client.fetch("/0.mp4", Some((start, start + range)))
    };
    for range in RANGES {
        for _ in 0..plan.warm_up {
            hit(range)?;
        }
    }
    if let Some(range) = range {
        for _ in 0..plan.hits {
            hit(range)?;
        }
    }
    drop(client);
    Ok(counted.stop()?)
}

/// The thread that serves: the one that has done most in functions of `oca::serve`.
fn worker_of(threads: &[Counts]) -> Fallible<Counts> {
    let served = |counts: &Counts| -> u64 {
        counts.iter().filter(|(name, _)| name.contains("oca::serve::")).map(|(_, count)| count).sum()
    };
    let worker = threads.iter().max_by_key(|counts| served(counts)).filter(|counts| served(counts) > 0);
    worker.map(by_plain_name).ok_or_else(|| "no thread has executed a function of oca::serve".into())
}

/// Sums up by name without the hash that the compiler puts behind each, and without callgrind's mark of recursion.
fn by_plain_name(counts: &Counts) -> Counts {
    let mut plain = Counts::new();
    for (name, count) in counts {
        let name = name.split_once('\'').map_or(name.as_str(), |(name, _)| name);
        let is_hash = |hash: &str| hash.len() == 17 && hash.starts_with('h');
        let name = name.rsplit_once("::").filter(|(_, hash)| is_hash(hash)).map_or(name, |(name, _)| name);
        *plain.entry(name.to_owned()).or_insert(0) += count;
    }
    plain
}

/// How many functions `--profile` shows.
fn profile_rows() -> Option<usize> {
    std::env::args().find_map(|argument| match argument.strip_prefix("--profile")? {
        "" => Some(40),
        rows => rows.strip_prefix('=')?.parse().ok(),
    })
}

fn print_profile<'a>(rows: usize, whole: f64, functions: impl Iterator<Item = (&'a str, f64)>) {
    let mut functions: Vec<_> = functions.collect();
    functions.sort_by(|a, b| b.1.total_cmp(&a.1));
    println!("\n| instructions per hit | % | function |\n|---|---|---|");
    for (name, count) in functions.iter().take(rows) {
        println!("| {count:.0} | {:.1} | `{name}` |", count / whole * 100.0);
    }
    println!();
}

/// The committed figures.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    toolchain: String,
    /// By range in KiB.
    instructions_per_hit: BTreeMap<String, u64>,
}

impl Record {
    fn figure(&self, range: u64) -> Option<u64> {
        self.instructions_per_hit.get(&format!("{}KiB", range / KIB)).copied()
    }
}

fn record_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/recorded/instructions.toml")
}

fn show_record(figures: &Figures) -> Fallible<String> {
    let mut text = format!(
        "# Instructions that a worker executes in user space for one hot hit (benches/instructions.rs). CI fails when a figure has grown by\n\
         # more than {TOLERANCE_PERCENT} % and is not changed here in the same commit. Written by:\n\
         #     cargo bench --profile instructions --bench instructions -- --record\n\
         toolchain = \"{}\"\n\n[instructions_per_hit]\n",
        toolchain()?
    );
    for (range, figure) in figures {
        writeln!(text, "{}KiB = {figure:.0}", range / KIB)?;
    }
    Ok(text)
}

/// The compiler, as it names itself.
fn toolchain() -> Fallible<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let said = Command::new(rustc).arg("--version").output()?;
    Ok(String::from_utf8(said.stdout)?.trim().to_owned())
}

/// What a figure is against the recorded one. The text says what to do.
enum Verdict {
    Grown(String),
    Shrunk(String),
    Same(String),
}

impl Verdict {
    fn text(&self) -> &str {
        let (Self::Grown(text) | Self::Shrunk(text) | Self::Same(text)) = self;
        text
    }
}

fn judge(range: u64, recorded: Option<u64>, figure: f64) -> Verdict {
    let what = format!("{} KiB: {figure:.0} instructions per hit", range / KIB);
    let Some(recorded) = recorded else {
        return Verdict::Grown(format!("{what}, none recorded: record it with --record"));
    };
    let percent = (figure / recorded as f64 - 1.0) * 100.0;
    let what = format!("{what}, recorded {recorded} ({percent:+.2} %)");
    if percent > TOLERANCE_PERCENT {
        Verdict::Grown(format!("{what}: GROWN; find out where with --profile, or record it with --record and say why"))
    } else if percent < -TOLERANCE_PERCENT {
        Verdict::Shrunk(format!("{what}: shrunk; record it with --record, so that it stays so"))
    } else {
        Verdict::Same(what)
    }
}

/// The bench's own parts on known input; before every run, since a gate that cannot close is worse than none.
fn self_test() -> Fallible<()> {
    let file = "version: 1\nevents: Ir\nfl=a.rs\nfn=a::f::h0123456789abcdef\n10 7\n12 3\ncalls=2 20\n13 100\n14 1\n\
                fn=b'2\n5 4\nfi=c.rs\n6 2\ntotals: 17\n";
    let counts = by_plain_name(&read_counts(file)?);
    if counts != Counts::from([("a::f".to_owned(), 11), ("b".to_owned(), 6)]) {
        return Err(format!("callgrind's file was read as {counts:?}").into());
    }
    if read_counts(&file.replace("totals: 17", "totals: 18")).is_ok() || read_counts("fn=a\n1 x\n").is_ok() {
        return Err("a file that contradicts itself was read".into());
    }
    let verdicts = [1_051.0, 1_049.0, 951.0, 949.0].map(|figure| match judge(KIB, Some(1_000), figure) {
        Verdict::Grown(_) => 'g',
        Verdict::Same(_) => '=',
        Verdict::Shrunk(_) => 's',
    });
    if verdicts != ['g', '=', '=', 's'] || !matches!(judge(KIB, None, 1.0), Verdict::Grown(_)) {
        return Err(format!("verdicts are {verdicts:?}").into());
    }
    Ok(())
}
