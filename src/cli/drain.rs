//! `oca drain`: has viewers sent elsewhere, while those that come are served.

use std::{
    io::{Write, stdout},
    process::ExitCode,
    time::{Duration, Instant},
};

use super::operator::{Reach, with_operator};
use crate::asset::parse_duration;

/// How often it is looked whether viewers have left.
const LOOK: Duration = Duration::from_millis(250);

/// What `oca drain` is given.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Take a drain back: viewers may be sent here again
    #[arg(long, conflicts_with = "wait")]
    undo: bool,
    /// Wait until no viewer is connected, at most so long; exit code 1 where some still are
    #[arg(long, value_name = "TIME", value_parser = duration, num_args = 0..=1, default_missing_value = "10 min")]
    wait: Option<Duration>,
    #[command(flatten)]
    reach: Reach,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|err| err.to_string())
}

/// Drains, or takes it back, and says what has come of it.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    with_operator(&arguments.reach, async |operator| {
        let order = if arguments.undo { "v1/undrain" } else { "v1/drain" };
        let standing = operator.post(order, &serde_json::json!({})).await?;
        let phase = standing["phase"].as_str().unwrap_or("unknown").to_owned();
        let mut connections = standing["connections"].as_u64().unwrap_or(0);
        if let Some(most) = arguments.wait {
            let (begun, mut looks) = (Instant::now(), tokio::time::interval(LOOK));
            while connections > 0 && begun.elapsed() < most {
                looks.tick().await;
                connections = operator.status().await?["connections"].as_u64().unwrap_or(0);
            }
        }
        writeln!(stdout(), "{phase}: connections of viewers open: {connections}")?;
        Ok(if arguments.wait.is_some() && connections > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    })
}
