//! Delivery beside nginx: the same files, in turns within one run, each server alone on one core and the load on another.
//!
//!     cargo bench --bench beside_nginx                          every workload
//!     cargo bench --bench beside_nginx -- --only=hot,small      some
//!     cargo bench --bench beside_nginx -- --row="64 KiB x 64"   some of their rows
//!     cargo bench --bench beside_nginx -- --oca=PATH --oca=PATH builds of oca beside each other, as a commit and the one before
//!     cargo bench --bench beside_nginx -- --write               puts tables and plots into README.md and docs/
//!
//! `--serve='near_send_buffer = "1 MiB"'` adds a line to `[serve]` of oca's configuration; several stand beside each other, as builds do.
//! Others: `--seconds=2` (each round; `--tenths=5` for half a second), `--rounds=5`, `--cold-gib=12`, `--wrk` (a second opinion from wrk), `--verify` (bodies are
//! compared, not measured), `--test` (a short run that shows that all of it works).
//!
//! Needs nginx and fio (Debian's are meant), wrk where that is asked for, and 14 GiB of disk for what is cold.
//!
//! oca runs as it comes, with its metrics and its access log, but refuses nobody (`serve.queue_delay_max`), as nginx does not; nginx with its log off, and with the best of several configurations,
//! found anew for each workload: the one with the highest throughput, and the one with the least CPU time, are both measured, and
//! each ratio is against the better. Figures are medians over the rounds. Load and servers share a machine, so that only ratios of
//! one run mean something. The load does not sleep: on one machine a server pays for waking it, which one whose viewers are elsewhere does not.
//! "busy" is the part of its core that a server used, "load busy" the part of the time in which the load had something to do: where the latter is near
//! all, the load was the limit, and CPU time per gigabyte is the figure that counts. "read/sent" is what
//! came from the disk for each byte that was sent.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a bench speaks on the terminal, and computes with sizes that fit"
)]

mod cold;
mod fill;
mod measure;
mod plot;
mod secure;
mod table;
mod workloads;

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "benches share one support module, and none uses all of it")]
mod support;

use std::{
    path::Path,
    process::{Command, Stdio},
};

use support::{Fallible, cores, flag, is_smoke, nginx::Nginx, option, report, responder, values};

/// What may stand on the command line; `--bench` is put there by cargo.
const OPTIONS: [&str; 14] = [
    "--oca=",
    "--only=",
    "--serve=",
    "--row=",
    "--seconds=",
    "--tenths=",
    "--rounds=",
    "--cold-gib=",
    "--wrk",
    "--verify",
    "--write",
    "--test",
    "--smoke",
    "--bench",
];

/// What the command line says.
#[derive(Clone, Debug)]
struct Plan {
    smoke: bool,
    verify: bool,
    wrk: bool,
    seconds: f64,
    rounds: usize,
    cold_gib: u64,
    binaries: Vec<std::path::PathBuf>,
    only: Vec<String>,
    /// Rows whose name holds this.
    row: Option<String>,
}

/// Says at the start what is missing. Tables without the others would take the place of those with them, and where nothing may be skipped nothing is.
fn tools_are_there(plan: &Plan) -> Fallible<()> {
    let has = |tool: &str, version: &str| {
        Command::new(tool).arg(version).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    };
    let tools = [
        ("nginx", Nginx::is_there(), "no row has a comparison"),
        ("fio", has("fio", "--version"), "cold rows do not say what the disk gives"),
        ("wrk", !plan.wrk || has("wrk", "-v"), "--wrk asks for it"),
    ];
    let missing: Vec<String> = tools
        .iter()
        .filter(|(_, is_there, _)| !is_there)
        .map(|(tool, _, so)| format!("{tool} is not installed: {so} (Debian: apt install {tool})"))
        .collect();
    if !missing.is_empty()
        && (flag("write") || plan.wrk || std::env::var_os("OCA_TESTS_COMPLETE").is_some_and(|complete| complete == "1"))
    {
        return Err(missing.join("; ").into());
    }
    missing.iter().for_each(|tool| eprintln!("{tool}"));
    Ok(())
}

fn main() -> Fallible<()> {
    if let (Some(at), Some(with)) = (values("respond-at").first(), values("respond-with").first()) {
        let send_buffer = option("respond-send-buffer").map(|bytes| bytes as usize);
        return Ok(responder::respond(at.parse()?, Path::new(with), send_buffer)?);
    }
    if flag("help") {
        let help = include_str!("main.rs").lines().map_while(|line| line.strip_prefix("//!"));
        help.for_each(|line| println!("{}", line.strip_prefix(' ').unwrap_or(line)));
        return Ok(());
    }
    let known = |option: &String| OPTIONS.contains(&option.split_inclusive('=').next().unwrap_or_default());
    if let Some(option) = std::env::args().skip(1).find(|option| !known(option)) {
        return Err(format!("{option} is no option; --help tells what is").into());
    }
    let smoke = is_smoke();
    let plan = Plan {
        smoke,
        verify: flag("verify"),
        wrk: flag("wrk"),
        seconds: match (smoke, option("tenths"), option("seconds")) {
            (true, ..) => 0.1,
            (_, Some(tenths), _) => tenths.max(1) as f64 / 10.0,
            (_, _, seconds) => seconds.unwrap_or(2) as f64,
        },
        rounds: if smoke { 1 } else { option("rounds").unwrap_or(5).max(1) as usize },
        cold_gib: option("cold-gib").unwrap_or(12).max(1),
        binaries: values("oca").into_iter().map(Into::into).collect(),
        row: values("row").pop(),
        only: values("only").iter().flat_map(|list| list.split(',')).map(str::to_owned).collect(),
    };
    if flag("write") && (smoke || cfg!(debug_assertions)) {
        return Err("a short run, or one of a debug build, makes no figures to write down".into());
    }
    // A table of some rows would take the place of the whole one, and one of another build would look like this one's.
    if flag("write")
        && !(values("row").is_empty()
            && values("only").is_empty()
            && values("oca").is_empty()
            && values("serve").is_empty())
    {
        return Err(
            "--write is for a whole run of this build as it comes: without --only, --row, --oca and --serve".into()
        );
    }
    tools_are_there(&plan)?;
    rlimit::increase_nofile_limit(u64::MAX)?;
    cores::pin_to_load()?;
    println!("{}\n", report::machine());
    let rows = workloads::run(&plan)?;
    if flag("write") {
        table::write(&rows)?;
        plot::write(&rows)?;
    }
    Ok(())
}
