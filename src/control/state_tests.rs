//! A power cut at each moment of keeping a manifest leaves the one before or this one, whole.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::Arc,
};

use parking_lot::Mutex;

use super::{
    digest_of,
    judge::Highest,
    state::{Durability, State},
};
use crate::asset::{Sha256, UnixTime};

type Inode = u64;

/// A disk whose power goes at one of its syncs, and what is on its platters by then.
#[derive(Debug, Default)]
struct Cut {
    state: Mutex<Platters>,
}

#[derive(Debug, Default)]
struct Platters {
    syncs: usize,
    /// The first sync that is not carried out.
    at: usize,
    content: BTreeMap<Inode, Vec<u8>>,
    names: BTreeMap<String, Inode>,
}

/// What the kernel had written by itself when the power went.
#[derive(Clone, Copy, Debug)]
enum Besides {
    /// Nothing.
    Nothing,
    /// New names, but not what is in the files.
    Names,
    /// What is in the files, but no new name.
    Contents,
    /// Everything.
    Everything,
}

impl Cut {
    fn step(&self) -> io::Result<parking_lot::MutexGuard<'_, Platters>> {
        let mut state = self.state.lock();
        state.syncs += 1;
        if state.syncs > state.at { Err(io::Error::other("the power is gone")) } else { Ok(state) }
    }

    /// The folder as it is found when the power is back.
    fn restore(&self, from: &Path, to: &Path, besides: Besides) {
        let state = self.state.lock();
        let (mut names, mut contents) = (state.names.clone(), state.content.clone());
        let now = listing(from);
        if matches!(besides, Besides::Names | Besides::Everything) {
            names = now.iter().map(|(name, (inode, _))| (name.clone(), *inode)).collect();
        }
        if matches!(besides, Besides::Contents | Besides::Everything) {
            contents.extend(now.into_values());
        }
        fs::create_dir(to).expect("new");
        for (name, inode) in names {
            fs::write(to.join(name), contents.get(&inode).map_or(&[][..], Vec::as_slice)).expect("written");
        }
    }
}

impl Durability for Cut {
    fn sync_file(&self, file: &File) -> io::Result<()> {
        let mut bytes = Vec::new();
        // Whatever has a name or not.
        File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file)))?.read_to_end(&mut bytes)?;
        let inode = file.metadata()?.ino();
        self.step()?.content.insert(inode, bytes);
        Ok(())
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let names = listing(folder).into_iter().map(|(name, (inode, _))| (name, inode)).collect();
        self.step()?.names = names;
        Ok(())
    }
}

fn listing(folder: &Path) -> BTreeMap<String, (Inode, Vec<u8>)> {
    let entries = fs::read_dir(folder).expect("it is there").map(|entry| entry.expect("listed"));
    let of = |entry: fs::DirEntry| {
        let inode = entry.metadata().expect("there").ino();
        (entry.file_name().into_string().expect("text"), (inode, fs::read(entry.path()).expect("readable")))
    };
    entries.map(of).collect()
}

fn manifest(number: u8) -> Vec<u8> {
    vec![number; 200_000 + usize::from(number)]
}

fn keep(state: &State, number: u8) -> io::Result<Sha256> {
    let mut incoming = state.incoming()?;
    manifest(number).chunks(70_000).try_for_each(|piece| incoming.write(piece).map(drop))?;
    let arrived = incoming.finish();
    let highest = Highest { sequence: number.into(), digest: arrived.digest, received: UnixTime(7) };
    state.keep(arrived.file, &[number; 100], &highest)?;
    Ok(highest.digest)
}

/// The sequence of the manifest that is in force after a start, all of which has to be there.
fn in_force(folder: &Path) -> Option<u64> {
    let (state, highest) = State::open(folder).expect("nothing is torn");
    let highest = highest?;
    let (mut file, signatures) = state.kept(&highest.digest).expect("the record names what is there");
    assert_eq!(digest_of(&mut file).expect("readable"), highest.digest);
    assert_eq!(signatures, [u8::try_from(highest.sequence).expect("small"); 100]);
    Some(highest.sequence)
}

#[test]
fn a_power_cut_at_each_sync_leaves_the_manifest_before_or_this_one_whole() {
    let mut syncs = 0;
    for at in 0.. {
        let home = tempfile::tempdir().expect("a folder");
        let (cut, folder) = (Arc::new(Cut::default()), home.path().join("state"));
        cut.state.lock().at = at;
        let (state, _) = State::open_on(Arc::clone(&cut) as _, &folder).expect("opened");
        let kept = (1..=3).take_while(|number| keep(&state, *number).is_ok()).count() as u64;
        for (number, besides) in
            [Besides::Nothing, Besides::Names, Besides::Contents, Besides::Everything].into_iter().enumerate()
        {
            let found = home.path().join(number.to_string());
            cut.restore(&folder, &found, besides);
            let sequence = in_force(&found).unwrap_or(0);
            assert!(sequence == kept || sequence == kept + 1, "{at} {besides:?}: {sequence} after {kept} were kept");
            // And it goes on from there.
            let (state, _) = State::open(&found).expect("opened");
            keep(&state, 4).expect("kept");
            assert_eq!(in_force(&found), Some(4));
        }
        if kept == 3 {
            break;
        }
        syncs += 1;
    }
    assert!(syncs >= 15, "{syncs} syncs for three manifests");
}
