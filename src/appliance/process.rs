//! What this process takes at the start, and what it gives up.

use super::StartError;
use crate::{
    config::Config,
    sys::{
        descriptors,
        sandbox::{self, Confined, Reach, Sandbox},
    },
};

/// Raises what may be raised, and says what is short.
pub(super) fn raise_limits(config: &Config) {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => {
            tracing::debug!(limit, "file descriptors");
            let (serve, storage) = (&config.serve, &config.storage);
            let needed = serve.connections_max + storage.mappings_max + serve.descriptors_reserved;
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            if let Err(err) = descriptors::make_room(needed.min(limit)) {
                tracing::debug!(error = %err, "descriptors get room as they come");
            }
            if limit < needed {
                tracing::warn!(
                    "of {needed} file descriptors this process has {limit}: raise the limit (LimitNOFILE= in the unit, ulimit -n)"
                );
            }
        }
        Err(err) => tracing::warn!(error = %err, "the limit of file descriptors cannot be raised"),
    }
    for shortage in &config.shortages {
        tracing::warn!("{shortage}");
    }
}

/// Gives up what is not needed from here on.
pub(super) fn confine(config: &Config, also: Reach) -> Result<(), StartError> {
    if rustix::process::geteuid().is_root() {
        tracing::warn!("runs as root, which it does not need: give it a user of its own (systemd/oca.service)");
    }
    if config.process.sandbox == Sandbox::Off {
        tracing::info!("no sandbox: process.sandbox is off");
        return Ok(());
    }
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads > 1 {
        tracing::warn!(threads, "threads that are there before the sandbox are outside of it");
    }
    match sandbox::confine(config.reach().and(also))? {
        Confined::By(abi) => tracing::info!(
            abi,
            "sandbox: Landlock and no new privileges; only the files that the configuration names can be opened from now on"
        ),
        Confined::PrivilegesOnly(why) => {
            tracing::warn!("sandbox: no new privileges, but every file can be opened: {why}");
        }
    }
    Ok(())
}
