//! What the operator decides about what the control plane may tell.

use std::{path::PathBuf, time::Duration};

use url::Url;

use super::{Identity, KeysError, Publication, TrustedKeys};
use crate::{
    asset::ByteCount,
    net::{bucket::StoreConfig, client::ClientFiles},
    sys::sandbox::Reach,
};

/// What the control plane may tell, and where it is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where pointers are published, in the order in which they are asked.
    pub pull: Vec<Publication>,
    /// Who we are to those addresses, and whom we trust.
    pub files: ClientFiles,
    /// The store that the buckets among them lie in.
    pub store: StoreConfig,
    /// JWK Sets of trusted keys.
    pub keys: Vec<PathBuf>,
    /// Names of keys that count no longer.
    pub revoked: Vec<String>,
    /// Keys that have to sign.
    pub threshold: usize,
    /// What this appliance is called.
    pub identity: Identity,
    /// Where the last good manifest is kept.
    pub state: PathBuf,
    /// Time between two questions.
    pub interval: Duration,
    /// Time after which a question is asked again that failed; doubles up to the interval.
    pub retry_delay: Duration,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for the head of an answer.
    pub response_timeout: Duration,
    /// Longest silence within an answer.
    pub stall_timeout: Duration,
    /// Age from which on the manifest in force is stale.
    pub stale_after: Duration,
    /// Manifests that are kept until their time comes.
    pub waiting_max: usize,
    /// How often the files of keys are looked at, and whether a manifest's time has come.
    pub check_interval: Duration,
    /// Addresses below which a manifest may have assets fetched.
    pub source_urls: Vec<Url>,
    /// How large a manifest may be.
    pub limits: Limits,
}

/// How large a manifest may be.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Bytes as published, compressed where it is.
    pub size_max: ByteCount,
    /// Bytes after it is expanded.
    pub expanded_max: ByteCount,
    /// Times by which it may grow when it is expanded, beyond the first MiB.
    pub ratio_max: u32,
    /// Assets.
    pub assets_max: usize,
    /// Digests of blocks of one asset.
    pub blocks_max: usize,
    /// Assets and prefixes to purge.
    pub purges_max: usize,
}

impl Config {
    /// Names what is used of the file system.
    pub fn reach(&self, reach: &mut Reach) {
        if self.keys.is_empty() {
            return;
        }
        reach.write_below(&self.state);
        let used = self.keys.iter().chain(self.files.iter()).chain(&self.store.credentials);
        used.for_each(|file| reach.read_file(file));
        for place in &self.pull {
            if let Publication::File(path) = place
                && let Some(folder) = path.parent()
            {
                reach.read_below(folder);
            }
        }
    }

    /// Reads the keys. Blocks.
    ///
    /// # Errors
    /// One is no good.
    pub fn trusted_keys(&self) -> Result<TrustedKeys, KeysError> {
        let mut keys = TrustedKeys::new(self.threshold, &self.revoked);
        self.keys.iter().try_for_each(|file| keys.add_file(file))?;
        Ok(keys)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            pull: Vec::new(),
            files: ClientFiles::default(),
            store: StoreConfig::default(),
            keys: Vec::new(),
            revoked: Vec::new(),
            threshold: 1,
            identity: Identity::default(),
            state: "/var/lib/oca/control".into(),
            interval: Duration::from_secs(300),
            retry_delay: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            stale_after: Duration::from_secs(36 * 3600),
            waiting_max: 4,
            check_interval: Duration::from_secs(1),
            source_urls: Vec::new(),
            limits: Limits::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            size_max: ByteCount(256 << 20),
            expanded_max: ByteCount(1 << 30),
            ratio_max: 100,
            assets_max: 2_000_000,
            blocks_max: 1 << 20,
            purges_max: 100_000,
        }
    }
}
