//! Randomness from a printed seed, waiting for another process, programs the tests call.

use std::{
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant, SystemTime},
};

use rand::{Rng, SeedableRng, rngs::StdRng};

/// Random choices that a run can repeat: prints its seed, takes it from `OCA_SEED` where set.
pub(crate) struct Random(StdRng);

impl Random {
    pub(crate) fn new() -> Self {
        let seed = std::env::var("OCA_SEED").ok().map_or_else(
            || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970").as_nanos() as u64,
            |seed| seed.parse().expect("OCA_SEED is a number"),
        );
        eprintln!("repeat with OCA_SEED={seed}");
        Self(StdRng::seed_from_u64(seed))
    }

    /// Another source of choices, for another thread.
    pub(crate) fn fork(&mut self) -> Self {
        Self(StdRng::seed_from_u64(self.0.random()))
    }

    /// One of `from..to`.
    pub(crate) fn number(&mut self, from: u64, to: u64) -> u64 {
        self.0.random_range(from..to)
    }
}

/// Tells threads that it is over when it is dropped: also where a test fails, whose scope would else wait for them for ever.
pub(crate) struct Over<'a>(pub(crate) &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits for something that happens in another process or thread and sends no word; panics after `limit`.
#[expect(clippy::disallowed_methods, reason = "what is waited for lies in another process, which sends no word")]
pub(crate) fn wait_until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Says so, and is true, when `program` is not there. Where the tests must be complete (`OCA_TESTS_COMPLETE=1`, as
/// `.ci/run` sets it) that is a failure.
pub(crate) fn missing_tool(program: &str) -> bool {
    let there = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()));
    if !there {
        assert!(std::env::var_os("OCA_TESTS_COMPLETE").is_none(), "{program} is not installed");
        eprintln!("SKIPPED: {program} is not installed");
    }
    !there
}

/// Says so, and is false, where a process cannot have mounts of its own, which takes root. Where the tests must be complete that is a
/// failure.
pub(crate) fn may_mount() -> bool {
    let mounted = Command::new("unshare").args(["-m", "sh", "-c", "mount -t tmpfs none /mnt"]).output();
    let may = mounted.is_ok_and(|output| output.status.success());
    if !may {
        assert!(std::env::var_os("OCA_TESTS_COMPLETE").is_none(), "mounting takes root");
        eprintln!("SKIPPED: mounting takes root");
    }
    may
}

/// Runs a program to its end and hands back what it wrote to its standard output; panics if it fails.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().expect("the program starts");
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}
