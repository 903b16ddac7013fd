//! Power cuts in a fill night, at each sync in turn: nothing wrong is served, what was finished stays, and the night completes.

use std::{fs, path::Path, time::Duration};

use super::{
    fault_tests::{FaultDisk, assert_right, on},
    tests::{BLOCK, Held, content, key, meta},
    *,
};
use crate::asset::{Sha256, UnixTime};

const CAPACITY: u64 = 1000 * BLOCK;
const PATIENCE: Duration = Duration::from_secs(30);
fn films() -> Vec<(String, u64)> {
    (0..6_u64).map(|number| (format!("/{number}"), 1 + number * 7919 % 4 * BLOCK + number * 1000)).collect()
}

fn digest(name: &str) -> Sha256 {
    Sha256::new(*blake3::hash(name.as_bytes()).as_bytes())
}

fn expect(held: &Held) {
    held.catalog.expect(films().iter().map(|(name, _)| (key(name).id(), digest(name))).collect());
}

/// Brings in what is missing of an asset, as a night does: what is here counts only if it is right.
fn bring(held: &Held, name: &str, length: u64) -> Option<()> {
    let asked = held.catalog.purge_mark();
    let work = match held.catalog.held_or_withheld(&key(name)) {
        Some(entry) if held.catalog.whole_digest(&entry).is_some() => return Some(()),
        Some(entry) => held.catalog.resume_planned(&entry).ok()?,
        None => {
            let planned = PlannedAsset { meta: meta(length), lifetime: Lifetime::immutable(UnixTime(1)), asked };
            held.catalog.admit_planned(&key(name), planned).ok()?
        }
    };
    let (entry, bytes) = (work.entry(), content(length));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for block in 0..entry.block_size().count(length) {
        if runtime.block_on(entry.has_block(block)).ok()? {
            continue;
        }
        let run = entry.claim_run(block, 2);
        let span = entry.block_size().start_of(run.start)..entry.block_size().start_of(run.end).min(length);
        let span = usize::try_from(span.start).expect("small")..usize::try_from(span.end).expect("small");
        entry.writer(run.start).write_blocking(&bytes[span]).ok()?;
    }
    let mut back = vec![0; bytes.len()];
    entry.read_back(0, &mut back).ok()?;
    assert!(back == bytes, "{name}: what is here was compared block by block");
    held.catalog.publish(entry, digest(name));
    Some(())
}

/// A night until the power goes; gives what was finished by then, for good.
fn night(held: &Held, disk: &FaultDisk) -> Vec<String> {
    let mut finished = Vec::new();
    for (number, (name, length)) in films().into_iter().enumerate() {
        if bring(held, &name, length).is_none() {
            break;
        }
        // Not after each: so that one sync is of several.
        if number % 2 == 1 && held.catalog.flush(PATIENCE) && !disk.has_no_power() {
            finished = films().into_iter().take(number + 1).map(|(name, _)| name).collect();
        }
    }
    finished
}

/// The database of a volume, and its log; its index of that is made anew where it is missing.
const DATABASE: [&str; 2] = ["catalog.sqlite", "catalog.sqlite-wal"];

fn copy_database(from: &Path, to: &Path) {
    for name in DATABASE.into_iter().filter(|name| from.join(name).exists()) {
        fs::copy(from.join(name), to.join(name)).expect("copied");
    }
}

/// The volume as it is found when the power is back, elsewhere: who had it open before may close its database late.
fn found(volume: &Path, database: &Path) -> tempfile::TempDir {
    let found = tempfile::tempdir().expect("tempdir");
    for entry in walkdir::WalkDir::new(volume).min_depth(1).into_iter().map(|entry| entry.expect("listed")) {
        let to = found.path().join(entry.path().strip_prefix(volume).expect("below"));
        if entry.file_type().is_dir() {
            fs::create_dir(to).expect("made");
        } else if !entry.file_name().to_string_lossy().starts_with(DATABASE[0]) {
            fs::copy(entry.path(), to).expect("copied");
        }
    }
    copy_database(database, found.path());
    found
}

#[test]
fn a_power_cut_at_each_sync_of_a_night_shows_nothing_wrong_and_the_night_completes() {
    let (mut cuts, mut undone, mut stayed) = (0, 0, 0);
    for at in 0_u64.. {
        // Half of them after the sync, and before the catalog's database hears of it.
        let (dir, platter) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
        let disk = FaultDisk::new();
        let held = on(&disk, dir.path(), CAPACITY);
        assert!(held.catalog.flush(PATIENCE));
        expect(&held);
        let (from, to) = (dir.path().to_owned(), platter.path().to_owned());
        disk.cut_power_at(at / 2, at % 2 == 1, move || copy_database(&from, &to));
        let finished = night(&held, &disk);
        held.crash();
        if !disk.has_no_power() {
            break;
        }
        (cuts, undone) = (cuts + 1, undone + disk.cut_power());

        let found = found(dir.path(), platter.path());
        let held = on(&FaultDisk::new(), found.path(), CAPACITY);
        expect(&held);
        for (name, _) in films() {
            assert_right(&held, &name, finished.contains(&name));
        }
        stayed += finished.len();
        for (name, length) in films() {
            bring(&held, &name, length).expect("the night completes");
            assert!(held.hit(&name).is_some(), "{name} at {at}");
            assert_right(&held, &name, true);
        }
    }
    assert!(cuts >= 20 && undone > 0 && stayed > 0, "{cuts} cuts, {undone} writes undone, {stayed} assets stayed");
}
