//! `oca fill`: how far a fill by manifest is, and fills now.

use std::{
    collections::BTreeSet,
    io::{IsTerminal as _, Write, stdout},
    process::ExitCode,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::operator::{Reach, with_operator};

/// What `oca fill` is given.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Fill what the manifest lists now, whatever the window, and show how far it is until it has ended
    #[arg(long)]
    now: bool,
    /// Show how far it is until it has ended
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    reach: Reach,
}

/// How often it is looked, and the bar drawn.
const LOOK: Duration = Duration::from_millis(250);
/// How often a line is written where there is no terminal.
const LINE: Duration = Duration::from_secs(5);
/// Failed assets that are named.
const NAMED_MAX: usize = 20;

/// Exit code 1 where something could not be had.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    with_operator(&arguments.reach, async |operator| {
        let mut fill = if arguments.now {
            operator.post("v1/fill", &json!({})).await?
        } else {
            operator.status().await?["fill"].take()
        };
        if !arguments.now && !arguments.follow {
            writeln!(stdout(), "{}", line(&fill))?;
            return ended(&fill, &BTreeSet::new());
        }
        let rounds = fill["rounds"].as_u64();
        let mut shown = Shown::new(stdout().is_terminal());
        loop {
            shown.show(&fill)?;
            let is_over = fill["rounds"].as_u64() != rounds || is_complete(&fill);
            if is_over && fill["now"] == false {
                break;
            }
            tokio::time::sleep(LOOK).await;
            fill = operator.status().await?["fill"].take();
        }
        let told = shown.finish();
        writeln!(stdout(), "{}", line(&fill))?;
        ended(&fill, &told)
    })
}

fn number(fill: &Value, part: &str, what: &str) -> u64 {
    fill[part][what].as_u64().unwrap_or(0)
}

/// Bytes of the wanted that are here, of assets in work too.
fn here(fill: &Value) -> u64 {
    fill["here_bytes"].as_u64().unwrap_or(0)
}

fn is_complete(fill: &Value) -> bool {
    number(fill, "held", "assets") >= number(fill, "wanted", "assets") && fill["in_work"] == 0
}

fn failures(fill: &Value) -> usize {
    fill["failed"].as_object().map_or(0, serde_json::Map::len)
}

/// Names what could not be had, as far as it has not been `told`.
fn ended(fill: &Value, told: &BTreeSet<String>) -> anyhow::Result<ExitCode> {
    let Some(failed) = fill["failed"].as_object().filter(|failed| !failed.is_empty()) else {
        return Ok(ExitCode::SUCCESS);
    };
    let untold = failed.iter().filter(|(path, _)| !told.contains(*path));
    for (path, reason) in untold.take(NAMED_MAX.saturating_sub(told.len())) {
        writeln!(stdout(), "{}", failed_line(path, reason))?;
    }
    if failed.len() > NAMED_MAX {
        writeln!(stdout(), "failed: and {} more", failed.len() - NAMED_MAX)?;
    }
    Ok(ExitCode::FAILURE)
}

/// All of it in one line.
fn line(fill: &Value) -> String {
    if fill["sequence"].as_u64().is_none() {
        return "there is no manifest to fill for".into();
    }
    let [assets, failed, window] = outline(fill);
    format!("{assets}, {}{failed}, {window}", amounts(fill))
}

/// Bytes, rate and time left.
fn amounts(fill: &Value) -> String {
    let percent = (here(fill) * 100).checked_div(number(fill, "wanted", "bytes")).unwrap_or(100);
    let amounts = format!(
        "{}/{} ({percent} %), {}/s",
        indicatif::BinaryBytes(here(fill)),
        indicatif::BinaryBytes(number(fill, "wanted", "bytes")),
        indicatif::BinaryBytes(fill["bytes_per_second"].as_u64().unwrap_or(0)),
    );
    match fill["seconds_left"].as_u64().filter(|left| *left > 0) {
        Some(left) => format!("{amounts}, {} left", indicatif::HumanDuration(Duration::from_secs(left))),
        None => amounts,
    }
}

/// Assets, failures and the window.
fn outline(fill: &Value) -> [String; 3] {
    let (held, wanted) = (number(fill, "held", "assets"), number(fill, "wanted", "assets"));
    let assets = format!("manifest {}: {held}/{wanted} assets", fill["sequence"]);
    let failed = match failures(fill) {
        0 => String::new(),
        failed => format!(", {failed} failed"),
    };
    let window = match fill["window"]["state"].as_str() {
        Some("open") => "window open",
        _ if fill["now"] == true => "by order",
        _ => "window closed",
    };
    [assets, failed, window.into()]
}

/// A bar on a terminal, and above it what has failed so far; lines elsewhere.
struct Shown {
    bar: Option<ProgressBar>,
    /// What stands above the bar already.
    told: BTreeSet<String>,
    /// When the last line was written.
    written: Option<Instant>,
}

impl Shown {
    fn new(terminal: bool) -> Self {
        let bar = terminal.then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stdout());
            // In lines that 80 columns hold.
            let style =
                ProgressStyle::with_template("[{wide_bar}] {prefix}\n{msg}").map(|style| style.progress_chars("=> "));
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar, told: BTreeSet::new(), written: None }
    }

    fn show(&mut self, fill: &Value) -> anyhow::Result<()> {
        let Some(bar) = &self.bar else {
            if self.written.is_none_or(|then| then.elapsed() >= LINE) {
                writeln!(stdout(), "{}", line(fill))?;
                self.written = Some(Instant::now());
            }
            return Ok(());
        };
        for (path, reason) in fill["failed"].as_object().into_iter().flatten() {
            if self.told.len() < NAMED_MAX && self.told.insert(path.clone()) {
                bar.println(failed_line(path, reason));
            }
        }
        let [assets, failed, window] = outline(fill);
        bar.set_length(number(fill, "wanted", "bytes"));
        bar.set_position(here(fill));
        bar.set_prefix(amounts(fill));
        bar.set_message(format!("{assets}, {} in work{failed}, {window}", fill["in_work"]));
        Ok(())
    }

    /// The bar goes; gives what has been told of failures.
    fn finish(self) -> BTreeSet<String> {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.told
    }
}

fn failed_line(path: &str, reason: &Value) -> String {
    format!("failed: {path}: {}", reason.as_str().unwrap_or("unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_says_all() {
        let fill = json!({
            "sequence": 7, "wanted": { "assets": 10, "bytes": 4096 }, "held": { "assets": 4, "bytes": 512 }, "here_bytes": 1024,
            "bytes_per_second": 1024, "seconds_left": 3, "failed": { "a": "not_found" }, "window": { "state": "open" },
            "now": false, "in_work": 2,
        });
        assert_eq!(
            line(&fill),
            "manifest 7: 4/10 assets, 1.00 KiB/4.00 KiB (25 %), 1.00 KiB/s, 3 seconds left, 1 failed, window open"
        );
        assert!(!is_complete(&fill));
        assert_eq!(line(&json!({})), "there is no manifest to fill for");
    }
}
