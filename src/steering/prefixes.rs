//! Networks of clients that this appliance serves: from the configuration, and from a file that a routing daemon keeps.

use std::{
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use ipnet::IpNet;

use super::Config;
use crate::sys::open_regular;

/// Bytes of a line of the file, on average, that are read at most for each network that may be in it: routing daemons print routes.
const LINE_BYTES: u64 = 256;
/// How long a file that is written in place has to stay as it is before it is read: half of it is a list too.
const SETTLED: Duration = Duration::from_secs(1);

/// The networks, and whether they are still those that were told.
#[derive(Debug)]
pub(super) struct Prefixes {
    all: Vec<IpNet>,
    revision: u64,
    seen: Option<Stamp>,
    /// What of the configuration they come from.
    named: (Vec<IpNet>, Option<PathBuf>, usize),
}

/// By what a change of a file is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
    inode: u64,
}

impl Stamp {
    /// Of the file as it is now; `None` where it is not there.
    pub(super) fn of(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt as _;
        let data = std::fs::metadata(path).ok()?;
        Some(Self { modified: data.modified().ok(), bytes: data.len(), inode: data.ino() })
    }

    /// Whether it may be half written. What has taken the place of another by its name is whole.
    fn is_settling(&self, before: &Self) -> bool {
        let is_another = before.inode != self.inode && *before != MISSING;
        // A time in the future is no reason to wait for it.
        let is_fresh = self.modified.and_then(|time| time.elapsed().ok()).is_some_and(|age| age < SETTLED);
        !is_another && is_fresh
    }
}

impl Prefixes {
    pub(super) fn new(config: &Config) -> Self {
        Self { all: together(config.prefixes.clone()), revision: 1, seen: None, named: named(config) }
    }

    /// Grows by one with each change.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// Sorted, each once.
    pub(super) fn all(&self) -> &[IpNet] {
        &self.all
    }

    /// Reads the file where it has changed. One that is no good changes nothing. Blocks.
    pub(super) fn look(&mut self, config: &Config) {
        let named = named(config);
        if named != self.named {
            (self.named, self.seen) = (named, None);
            let all = together(config.prefixes.clone());
            if config.prefixes_file.is_none() && all != self.all {
                self.all = all;
                self.revision += 1;
            }
        }
        let Some(path) = &config.prefixes_file else { return };
        let stamp = Stamp::of(path);
        if self.seen.is_some() && self.seen == stamp {
            return;
        }
        if let (Some(before), Some(now)) = (&self.seen, &stamp)
            && now.is_settling(before)
        {
            return;
        }
        let known_missing = self.seen.as_ref() == Some(&MISSING);
        self.seen = stamp;
        match read(path, config) {
            Ok(all) if all == self.all => {}
            Ok(all) => {
                tracing::info!(file = %path.display(), prefixes = all.len(), "networks of clients were read");
                self.all = all;
                self.revision += 1;
            }
            // A file that is not there is not looked for in vain without a word, nor with one for every report.
            Err(err) => {
                if stamp.is_some() || !known_missing {
                    tracing::error!(file = %path.display(), error = %err, "networks of clients cannot be read; the last ones stay");
                }
                self.seen = stamp.or(Some(MISSING));
            }
        }
    }
}

/// Of a file that is not there.
const MISSING: Stamp = Stamp { modified: None, bytes: 0, inode: 0 };

fn named(config: &Config) -> (Vec<IpNet>, Option<PathBuf>, usize) {
    (config.prefixes.clone(), config.prefixes_file.clone(), config.prefixes_max)
}

fn read(path: &Path, config: &Config) -> io::Result<Vec<IpNet>> {
    let (max, mut text) = (config.prefixes_max, Vec::new());
    let bytes_max = LINE_BYTES.saturating_mul(max as u64 + 1);
    open_regular(path)?.take(bytes_max).read_to_end(&mut text)?;
    if text.len() as u64 == bytes_max {
        return Err(io::Error::other(format!("it is longer than {bytes_max} bytes")));
    }
    let from_file = parse(&String::from_utf8_lossy(&text));
    // An empty one is what a program leaves that is about to write it.
    if from_file.is_empty() && !text.starts_with(b"#") {
        return Err(io::Error::other("no line of it begins with a network; one without any begins with #"));
    }
    let all = together([config.prefixes.clone(), from_file].concat());
    if all.len() > max {
        return Err(io::Error::other(format!("{} networks, of which at most {max} are told", all.len())));
    }
    Ok(all)
}

/// The network with which a line begins, of each line that does: a list, or what `birdc show route` prints.
pub(super) fn parse(text: &str) -> Vec<IpNet> {
    let first = |line: &str| line.split_ascii_whitespace().next().and_then(|word| word.parse().ok());
    text.lines().filter(|line| !line.starts_with([' ', '\t'])).filter_map(first).collect()
}

fn together(mut all: Vec<IpNet>) -> Vec<IpNet> {
    all.iter_mut().for_each(|net| *net = net.trunc());
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const BIRD: &str = "BIRD 2.0.12 ready.\nTable master4:\n192.0.2.0/24         unicast [isp 21:47:33.1] * (100) [AS64500i]\n\
                        \tvia 198.51.100.1 on eth0\n198.51.100.7/24      unicast [isp] * (100)\nTable master6:\n2001:db8::/32        unicast\n";

    fn nets(of: &[&str]) -> Vec<IpNet> {
        of.iter().map(|net| net.parse().expect("a network")).collect()
    }

    #[test]
    fn lists_and_what_a_routing_daemon_prints_are_read() {
        assert_eq!(parse(BIRD), nets(&["192.0.2.0/24", "198.51.100.7/24", "2001:db8::/32"]));
        assert_eq!(parse("# ours\n10.0.0.0/8\n\n10.0.0.1\nfe80::/10 # all\n"), nets(&["10.0.0.0/8", "fe80::/10"]));
    }

    #[test]
    fn a_file_that_changes_is_read_again_and_one_that_is_no_good_changes_nothing() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("routes");
        let config = Config {
            prefixes: nets(&["10.1.0.0/16"]),
            prefixes_file: Some(file.clone()),
            prefixes_max: 3,
            ..Config::default()
        };
        let mut prefixes = Prefixes::new(&config);
        let mut look = || {
            prefixes.look(&config);
            (prefixes.revision(), prefixes.all().to_vec())
        };
        assert_eq!(look(), (1, nets(&["10.1.0.0/16"])), "it is not there yet");
        let write = |text: &str| {
            // As a daemon should: aside and renamed, so that each is another file.
            std::fs::write(file.with_extension("new"), text).expect("written");
            std::fs::rename(file.with_extension("new"), &file).expect("renamed");
        };
        let in_place = |text: &str, age: u64| {
            std::fs::write(&file, text).expect("written");
            let then = SystemTime::now() - Duration::from_secs(age);
            std::fs::File::options().write(true).open(&file).and_then(|file| file.set_modified(then)).expect("a time");
        };
        in_place("192.0.2.77/24\n", 0);
        assert_eq!(look(), (1, nets(&["10.1.0.0/16"])), "it may be half of what is to come");
        in_place("192.0.2.77/24\n10.1.0.0/16\n", 2);
        let good = (2, nets(&["10.1.0.0/16", "192.0.2.0/24"]));
        assert_eq!((look(), look()), (good.clone(), good.clone()), "each network once, without its host's bits");
        for bad in ["", "nonsense", "11.0.0.0/8\n12.0.0.0/8\n13.0.0.0/8\n", &"x".repeat(2000)] {
            write(bad);
            assert_eq!(look(), good, "{bad}");
        }
        std::fs::remove_file(&file).expect("removed");
        assert_eq!((look(), look()), (good.clone(), good.clone()));
        write("# none\n");
        assert_eq!(look(), good, "nor is that the end");
        in_place("# none\n", 2);
        assert_eq!(look(), (3, nets(&["10.1.0.0/16"])), "a daemon without routes says so");
        in_place("11.0.0.0/8\n", 0);
        assert_eq!(look(), (3, nets(&["10.1.0.0/16"])));
        write("12.0.0.0/8\n");
        assert_eq!(look(), (4, nets(&["10.1.0.0/16", "12.0.0.0/8"])), "what comes whole is taken at once");
    }
}
