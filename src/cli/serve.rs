//! `oca serve`: an appliance as a configuration says, until it is told to stop.

use std::{
    io::{Write, stderr},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::{appliance::Appliance, config::Config, telemetry::logging};

/// What `oca serve` is given.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Write the addresses that are listened on to this file, as JSON, once viewers are served
    #[arg(long, value_name = "FILE")]
    announce: Option<PathBuf>,
}

/// Serves until SIGTERM or SIGINT; a second one ends it at once.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(faults) => {
            writeln!(stderr(), "{faults}")?;
            return Ok(ExitCode::from(super::FAULTY));
        }
    };
    logging::init(&config.telemetry)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    runtime.block_on(serve(config, arguments.announce.as_deref()))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(config: Config, announce: Option<&Path>) -> anyhow::Result<()> {
    let mut terminated = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
    let mut interrupted = signal(SignalKind::interrupt()).context("wait for SIGINT")?;
    let mut hung_up = signal(SignalKind::hangup()).context("wait for SIGHUP")?;
    let appliance = Appliance::start(config)?;
    if let Some(file) = announce {
        write_announcement(file, &appliance).with_context(|| format!("write {}", file.display()))?;
    }
    tell_systemd(&[sd_notify::NotifyState::Ready]);
    loop {
        tokio::select! {
            _ = terminated.recv() => break,
            _ = interrupted.recv() => break,
            _ = hung_up.recv() => {
                tracing::info!("access log, certificates and keys are read anew; other changes of the configuration need a restart");
                appliance.reload();
            }
        }
    }
    tell_systemd(&[sd_notify::NotifyState::Stopping]);
    tokio::select! {
        () = appliance.shutdown() => Ok(()),
        _ = terminated.recv() => anyhow::bail!("ended by a second signal before draining was over"),
        _ = interrupted.recv() => anyhow::bail!("ended by a second signal before draining was over"),
    }
}

/// Written aside and renamed, so that nobody reads half of it.
fn write_announcement(file: &Path, appliance: &Appliance) -> std::io::Result<()> {
    let announcement = json!({
        "http": appliance.http_addresses().iter().map(ToString::to_string).collect::<Vec<_>>(),
        "https": appliance.https_addresses().iter().map(ToString::to_string).collect::<Vec<_>>(),
        "admin": appliance.admin_address().to_string(),
        "pid": std::process::id(),
    });
    let aside = file.with_extension("new");
    std::fs::write(&aside, announcement.to_string())?;
    std::fs::rename(aside, file)
}

fn tell_systemd(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(err) = sd_notify::notify(states) {
        tracing::debug!(error = %err, "systemd was not told");
    }
}
