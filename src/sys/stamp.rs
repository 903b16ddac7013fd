//! What tells one state of a file from another, without reading it.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

/// Inode, length and time of the last change; `None` where there is no such file.
pub type Stamp = Option<(u64, u64, i64, i64)>;

/// The state of a file. Blocks.
pub fn stamp(path: &Path) -> Stamp {
    let data = fs::metadata(path).ok()?;
    Some((data.ino(), data.len(), data.mtime(), data.mtime_nsec()))
}

/// Files that are read again once they have changed and then stayed as they were for one look: what belongs together is not
/// replaced at one moment.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// What they looked like when they were last read, good or not.
    tried: Vec<Stamp>,
    /// What they looked like at the last look.
    seen: Vec<Stamp>,
}

impl Watch {
    /// Files in this state have been read, or are about to be.
    pub fn new(now: Vec<Stamp>) -> Self {
        Self { tried: now.clone(), seen: now }
    }

    /// Takes a look; whether they are to be read.
    pub fn is_due(&mut self, now: Vec<Stamp>) -> bool {
        let due = now == self.seen && now != self.tried;
        if due {
            self.tried.clone_from(&now);
        }
        self.seen = now;
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_due_once_it_has_settled() {
        let state = |time| vec![Some((1, 1, time, 0))];
        let mut watch = Watch::new(state(1));
        assert!(!watch.is_due(state(1)), "nothing has changed");
        assert!(!watch.is_due(state(2)), "it may still be changing");
        assert!(!watch.is_due(state(3)));
        assert!(watch.is_due(state(3)));
        assert!(!watch.is_due(state(3)), "it was read, good or not");
        assert!(!watch.is_due(vec![None]) && watch.is_due(vec![None]), "that it has gone is a change");
    }
}
