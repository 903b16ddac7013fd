//! `oca status`: how an appliance is, on one screen.
//!
//! `/status` of the admin listener -> `screen` (lines, cut to the terminal) -> standard output, once or again and again

mod screen;

use std::{
    io::{IsTerminal as _, Write, stdout},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use super::operator::{Operator, OperatorError, Reach, with_operator};
use crate::asset::parse_duration;
use screen::Screen;

/// What `oca status` is given.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Show it again and again, until Ctrl-C; where there is no terminal, one screen below the other
    #[arg(long)]
    watch: bool,
    /// How often
    #[arg(long, value_name = "TIME", default_value = "1 s", value_parser = parse_duration, requires = "watch")]
    every: Duration,
    /// Write the whole document instead, as JSON; with --watch one a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: Reach,
}

/// Columns where there is no terminal to ask.
const COLUMNS: usize = 100;
/// Shortest time between two looks: a look costs the appliance a millisecond.
const EVERY_LEAST: Duration = Duration::from_millis(100);
/// Cursor home, and what is left of the screen cleared after it was drawn: no flicker.
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_REST: &str = "\x1b[J";

/// Exit code 0 where it serves well or not so well, 1 where viewers should go elsewhere (starting, draining, down).
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    with_operator(&arguments.reach, async |operator| {
        if arguments.watch {
            return watch(arguments, operator).await;
        }
        let status = operator.status().await?;
        let mut out = stdout().lock();
        if arguments.json {
            writeln!(out, "{status:#}")?;
        } else {
            let screen = Screen::new(columns(), out.is_terminal());
            screen.lines(&status).iter().try_for_each(|line| writeln!(out, "{line}"))?;
        }
        Ok(code(&status))
    })
}

fn code(status: &Value) -> ExitCode {
    if status["ready"] == true { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn columns() -> usize {
    terminal_size::terminal_size().map_or(COLUMNS, |(width, _)| usize::from(width.0))
}

fn rows() -> usize {
    terminal_size::terminal_size().map_or(usize::MAX, |(_, height)| usize::from(height.0))
}

async fn watch(arguments: &Arguments, operator: &Operator) -> anyhow::Result<ExitCode> {
    let mut interrupted = signal(SignalKind::interrupt()).context("wait for Ctrl-C")?;
    let mut terminated = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
    let is_terminal = stdout().is_terminal();
    // The first look has to succeed: later ones may find it restarting.
    let mut status = Ok(operator.status().await?);
    if is_terminal && !arguments.json {
        write!(stdout(), "\x1b[2J")?;
    }
    let mut last = ExitCode::SUCCESS;
    loop {
        show(arguments, is_terminal, &status)?;
        if let Ok(status) = &status {
            last = code(status);
        }
        tokio::select! {
            () = tokio::time::sleep(arguments.every.max(EVERY_LEAST)) => {}
            _ = interrupted.recv() => return Ok(last),
            _ = terminated.recv() => return Ok(last),
        }
        status = operator.status().await;
    }
}

fn show(arguments: &Arguments, is_terminal: bool, status: &Result<Value, OperatorError>) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    let lines = match status {
        Ok(status) if arguments.json => vec![status.to_string()],
        Ok(status) => Screen::new(columns(), is_terminal).lines(status),
        Err(err) if arguments.json => vec![serde_json::json!({ "error": err.to_string() }).to_string()],
        Err(err) => err.to_string().lines().map(str::to_owned).collect(),
    };
    if is_terminal && !arguments.json {
        write!(out, "{HOME}")?;
        // One less than there are: a line feed in the last would scroll.
        for line in lines.iter().take(rows().saturating_sub(1)) {
            writeln!(out, "{line}{CLEAR_LINE}")?;
        }
        write!(out, "{CLEAR_REST}")?;
    } else {
        lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
        if !arguments.json {
            writeln!(out)?;
        }
    }
    out.flush()?;
    Ok(())
}
