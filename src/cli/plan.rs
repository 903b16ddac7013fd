//! `oca plan`: what an appliance would keep, fetch and evict for a manifest. Changes nothing.

use std::{
    fs::File,
    io::{Write, stderr, stdout},
    path::PathBuf,
    process::ExitCode,
    time::SystemTime,
};

use anyhow::Context as _;
use serde_json::json;

use crate::{
    asset::UnixTime,
    catalog::CatalogView,
    config::{Config, Machine},
    control::{
        Limits,
        manifest::{Manifest, SourceRules, parse},
    },
    fill::{FillPlan, plan},
};

/// What `oca plan` is given.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The manifest; its signatures are not looked at (see `oca manifest verify`)
    #[arg(long, value_name = "FILE")]
    manifest: PathBuf,
    /// The appliance's configuration, which names its volumes. The appliance may run or not
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Lines of each list at most; 0: all
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    lines: usize,
    /// As JSON, with every line
    #[arg(long)]
    json: bool,
}

/// Writes the plan to standard output.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let config = match Config::load_on(&arguments.config, Machine { now: None, ..Machine::here() }) {
        Ok(config) => config,
        Err(faults) => {
            writeln!(stderr(), "{faults}")?;
            return Ok(ExitCode::from(super::FAULTY));
        }
    };
    let path = arguments.manifest.display();
    let file = File::open(&arguments.manifest).with_context(|| format!("open {path}"))?;
    let manifest = match parse(file, &Limits::default(), &SourceRules::default()) {
        Ok(manifest) => manifest,
        Err(refused) => {
            writeln!(stderr(), "{path}: {refused}")?;
            return Ok(ExitCode::from(super::FAULTY));
        }
    };
    let view = CatalogView::read(&config.storage, &config.catalog).context("read what is held")?;
    let now: UnixTime = SystemTime::now().into();
    let plan = plan(&manifest, &view, &config.fill.nightly.rules, now);
    let shown = Shown { manifest: &manifest, view: &view, plan: &plan };
    let text = if arguments.json { format!("{:#}\n", shown.json()) } else { shown.table(arguments.lines) };
    stdout().lock().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

struct Shown<'a> {
    manifest: &'a Manifest,
    view: &'a CatalogView,
    plan: &'a FillPlan,
}

/// An amount as people read it, rounded.
fn amount(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

impl Shown<'_> {
    fn asset(&self, rank: u32) -> (&str, u64) {
        let asset = &self.manifest.assets()[rank as usize];
        (asset.key.path(), asset.length.0)
    }

    fn table(&self, lines: usize) -> String {
        let lines = if lines == 0 { usize::MAX } else { lines };
        let plan = self.plan;
        let sum = |ranks: &mut dyn Iterator<Item = u32>| ranks.map(|rank| self.asset(rank).1).sum::<u64>();
        let mut out = format!(
            "manifest {}: {} assets, {}\n\n{:<12}{:>9}{:>13}\n",
            self.manifest.head.sequence,
            self.manifest.assets().len(),
            amount(self.manifest.bytes().0),
            "",
            "assets",
            "size"
        );
        let evicted = plan.evict.iter().map(|gone| gone.bytes).sum();
        for (what, count, bytes) in [
            ("keep", plan.keep.len(), sum(&mut plan.keep.iter().copied())),
            ("fetch", plan.fetch.len(), plan.bytes_to_fetch()),
            ("evict", plan.evict.len(), evicted),
            ("pass over", plan.passed_over.len(), sum(&mut plan.passed_over.iter().map(|(rank, _)| *rank))),
            ("pin", plan.pinned.len(), sum(&mut plan.pinned.iter().copied())),
        ] {
            out += &format!("{what:<12}{count:>9}{:>13}\n", amount(bytes));
        }
        let fetch = plan.fetch.iter().map(|fetch| {
            let (path, length) = self.asset(fetch.rank);
            let what = if fetch.bytes == 0 {
                "compare".into()
            } else if fetch.bytes < length {
                format!("{} more", amount(fetch.bytes))
            } else {
                String::new()
            };
            format!("{:>9}  {:>11}  {path}  {what}", fetch.rank, amount(length)).trim_end().to_owned()
        });
        list(&mut out, "fetch", "rank", fetch, lines);
        let evict = plan.evict.iter().map(|gone| {
            let held = &self.view.held[gone.held as usize];
            format!("{:>9}  {:>11}  {}  {}", held.serial, amount(gone.bytes), held.key.path(), gone.why.label())
        });
        list(&mut out, "evict", "serial", evict, lines);
        let passed = plan.passed_over.iter().map(|(rank, why)| {
            let (path, length) = self.asset(*rank);
            format!("{rank:>9}  {:>11}  {path}  {}", amount(length), why.label())
        });
        list(&mut out, "pass over", "rank", passed, lines);
        out
    }

    fn json(&self) -> serde_json::Value {
        let named = |rank: u32| {
            let (path, length) = self.asset(rank);
            json!({ "rank": rank, "asset": path, "length": length })
        };
        let with = |mut value: serde_json::Value, key: &str, more: serde_json::Value| {
            value[key] = more;
            value
        };
        let plan = self.plan;
        json!({
            "sequence": self.manifest.head.sequence,
            "keep": plan.keep.iter().map(|rank| named(*rank)).collect::<Vec<_>>(),
            "fetch": plan.fetch.iter().map(|fetch| with(named(fetch.rank), "bytes", fetch.bytes.into())).collect::<Vec<_>>(),
            "evict": plan.evict.iter().map(|gone| {
                let held = &self.view.held[gone.held as usize];
                json!({ "asset": held.key.path(), "serial": held.serial, "bytes": gone.bytes, "reason": gone.why.label() })
            }).collect::<Vec<_>>(),
            "passed_over": plan.passed_over.iter().map(|(rank, why)| with(named(*rank), "reason", why.label().into())).collect::<Vec<_>>(),
            "pinned": plan.pinned,
        })
    }
}

fn list(out: &mut String, what: &str, number: &str, rows: impl ExactSizeIterator<Item = String>, max: usize) {
    let count = rows.len();
    if count == 0 {
        return;
    }
    *out += &format!("\n{what}\n{number:>9}  {:>11}  asset\n", "size");
    for row in rows.take(max) {
        *out += &row;
        out.push('\n');
    }
    if count > max {
        *out += &format!("{:>9}  and {} more; --lines 0 shows all\n", "...", count - max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_rounded_for_people() {
        let texts = [0, 1023, 1024, 1_500_000, 5 << 40].map(amount);
        assert_eq!(texts, ["0 B", "1023 B", "1.0 KiB", "1.4 MiB", "5.0 TiB"]);
    }
}
