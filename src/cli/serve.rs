//! `oca serve`: an appliance as a configuration says, until it is told to stop.

mod manager;

use std::{
    io::{Write, stderr},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use manager::Watchdog;

use crate::{
    appliance::{Appliance, StartError},
    config::{Config, Settings},
    sys::sandbox::Reach,
    telemetry::logging,
};

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
    // Where it is started does not matter when it is read again.
    let file = std::path::absolute(&arguments.config).context("find the configuration")?;
    let (config, settings) = match Config::load_with_settings(&arguments.config) {
        Ok(loaded) => loaded,
        Err(faults) => {
            writeln!(stderr(), "{faults}")?;
            return Ok(ExitCode::from(super::FAULTY));
        }
    };
    logging::init(&config.telemetry)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    let reloading = Reloading { file, settings };
    let ended = runtime.block_on(serve(config, reloading, arguments.announce.as_deref()));
    match ended {
        // As with any other fault of the configuration, another start would end in the same way.
        Err(err) if matches!(err.downcast_ref(), Some(StartError::Inherited(_))) => {
            writeln!(stderr(), "oca: {err:#}")?;
            Ok(ExitCode::from(super::FAULTY))
        }
        ended => ended.map(|()| ExitCode::SUCCESS),
    }
}

async fn serve(config: Config, mut reloading: Reloading, announce: Option<&Path>) -> anyhow::Result<()> {
    let mut terminated = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
    let mut interrupted = signal(SignalKind::interrupt()).context("wait for SIGINT")?;
    let mut hung_up = signal(SignalKind::hangup()).context("wait for SIGHUP")?;
    let mut reach = Reach::default();
    reach.read_file(&reloading.file);
    if let Some(file) = announce {
        reach.write_file(file);
    }
    let mut drain_delay = config.serve.drain_delay;
    let appliance = Appliance::start(config, reach)?;
    if let Some(file) = announce {
        write_announcement(file, &appliance).with_context(|| format!("write {}", file.display()))?;
    }
    let mut watchdog = Watchdog::new(appliance.pulses());
    manager::ready();
    loop {
        tokio::select! {
            _ = terminated.recv() => break,
            _ = interrupted.recv() => break,
            () = watchdog.keep() => {}
            _ = hung_up.recv() => {
                manager::reloading();
                if let Some(config) = reloading.reload(&appliance).await {
                    drain_delay = config.serve.drain_delay;
                }
                manager::ready();
            }
        }
    }
    let stop = async {
        if !drain_delay.is_zero() {
            appliance.leave();
            manager::stopping("draining: viewers are to be sent elsewhere");
            tokio::time::sleep(drain_delay).await;
        }
        manager::stopping("stopping: responses that have begun are finished");
        appliance.shutdown().await;
    };
    tokio::select! {
        () = stop => Ok(()),
        // Draining may take longer than the service manager waits for a process that stands still.
        () = watchdog.keep_quiet() => Ok(()),
        _ = terminated.recv() => anyhow::bail!("ended by a second signal before draining was over"),
        _ = interrupted.recv() => anyhow::bail!("ended by a second signal before draining was over"),
    }
}

/// The configuration's file, and what it came to so far.
struct Reloading {
    file: PathBuf,
    settings: Settings,
}

impl Reloading {
    /// Has everything read anew, the configuration too; gives it where it was taken over.
    async fn reload(&mut self, appliance: &Appliance) -> Option<Config> {
        tracing::info!(file = %self.file.display(), "reload: logs, certificates, keys, tokens and the configuration are read anew");
        let file = self.file.clone();
        let loaded = tokio::task::spawn_blocking(move || Config::load_with_settings(&file)).await;
        let (config, settings) = match loaded {
            Ok(Ok((config, settings))) => (Some(config), settings),
            Ok(Err(faults)) => {
                // As at the start. Nothing can be done where not even that can be written.
                drop(writeln!(stderr(), "{faults}"));
                let faults = faults.count();
                tracing::error!(faults, "reload: the configuration has faults, and nothing of it is taken over");
                (None, self.settings.clone())
            }
            Err(err) => {
                tracing::error!(error = %err, "reload: reading the configuration panicked");
                (None, self.settings.clone())
            }
        };
        if let Err(err) = appliance.reload(config.clone()).await {
            tracing::error!(error = %err, "reload: nothing of the configuration is taken over");
            return None;
        }
        let config = config?;
        let changes = self.settings.changes(&settings);
        for (key, why) in &changes.restart {
            tracing::warn!(%key, why, "reload: this key needs a restart");
        }
        tracing::info!(changed = changes.live.join(" "), needing_restart = changes.restart.len(), "reload: done");
        self.settings.take_over(settings);
        Some(config)
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
