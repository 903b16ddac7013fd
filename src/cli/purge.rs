//! `oca purge`: assets that are to go at once, by path or by prefix.

use std::{
    io::{Write, stdout},
    process::ExitCode,
};

use serde_json::json;

use super::operator::{Reach, with_operator};
use crate::asset::ByteCount;

/// What `oca purge` is given.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Paths as in the assets' URLs: /films/1.mp4. Whatever their query
    #[arg(value_name = "PATH", required_unless_present = "prefix")]
    paths: Vec<String>,
    /// All assets whose path begins so: /films/. May be given several times
    #[arg(long, value_name = "PREFIX")]
    prefix: Vec<String>,
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    reach: Reach,
}

/// Purges, and says how much that was.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    with_operator(&arguments.reach, async |operator| {
        let order = json!({ "paths": arguments.paths, "prefixes": arguments.prefix, "dry_run": arguments.dry_run });
        let done = operator.post("v1/purge", &order).await?;
        let number = |name: &str| done[name].as_u64().unwrap_or(0);
        let (assets, bytes) = (number("assets"), ByteCount(number("bytes")));
        let done = if arguments.dry_run { "would purge" } else { "purged" };
        writeln!(stdout(), "{done}: {assets} asset{}, {bytes}", if assets == 1 { "" } else { "s" })?;
        Ok(ExitCode::SUCCESS)
    })
}
