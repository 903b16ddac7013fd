//! The last good manifest on disk: the file as published, its signatures, and which it is. The record is renamed into place last, so that
//! a crash at any moment leaves the one before or this one.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use tempfile::{NamedTempFile, TempPath};

use super::{json::Json, judge::Highest, keys::Hasher, reception::digest_of};
use crate::asset::{Sha256, UnixTime};

const RECORD: &str = "state.json";
const INCOMING: &str = ".incoming-";
const MANIFEST: &str = "manifest-";
const SIGNATURES: &str = "signatures-";
/// Of a manifest whose time has not come; its sequence, its time and its digest follow, and `.sig` for its signatures.
const WAITING: &str = "waiting-";
/// Bytes of the record.
const RECORD_MAX: u64 = 4096;

/// What makes files and names durable, so that a test can take the power away in its place.
pub(super) trait Durability: std::fmt::Debug + Send + Sync {
    /// What was written to a file stays.
    fn sync_file(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    /// The names in a folder stay as they are.
    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }
}

#[derive(Debug)]
struct Disk;

impl Durability for Disk {}

/// The folder of what the control plane has told.
#[derive(Debug)]
pub(super) struct State {
    folder: PathBuf,
    disk: Arc<dyn Durability>,
}

/// A manifest on its way in, on disk.
#[derive(Debug)]
pub struct Incoming {
    file: NamedTempFile,
    hasher: Hasher,
    length: u64,
}

/// A manifest whose time has not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its sequence.
    pub sequence: u64,
    /// When it may come in force.
    pub not_before: UnixTime,
    /// Its digest.
    pub digest: Sha256,
}

/// A manifest that has come in whole.
#[derive(Debug)]
pub struct Arrived {
    pub(super) file: NamedTempFile,
    /// Its digest.
    pub digest: Sha256,
}

impl State {
    /// Opens the folder, which is made where it is missing; tells what was accepted last.
    pub(super) fn open(folder: &Path) -> io::Result<(Self, Option<Highest>)> {
        Self::open_on(Arc::new(Disk), folder)
    }

    /// As `open`, on a disk that may fail.
    pub(super) fn open_on(disk: Arc<dyn Durability>, folder: &Path) -> io::Result<(Self, Option<Highest>)> {
        fs::create_dir_all(folder)?;
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            // Half a manifest, of a process that was killed.
            if entry.file_name().to_string_lossy().starts_with(INCOMING) {
                fs::remove_file(entry.path())?;
            }
        }
        let path = folder.join(RECORD);
        let mut text = Vec::new();
        let highest = match File::open(&path) {
            Ok(file) => {
                file.take(RECORD_MAX).read_to_end(&mut text)?;
                let bad = |why| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", path.display()));
                Some(read_record(&text).map_err(bad)?)
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => None,
            Err(err) => return Err(err),
        };
        Ok((Self { folder: folder.into(), disk }, highest))
    }

    pub(super) fn incoming(&self) -> io::Result<Incoming> {
        let file = tempfile::Builder::new().prefix(INCOMING).tempfile_in(&self.folder)?;
        Ok(Incoming { file, hasher: Hasher::default(), length: 0 })
    }

    /// The file that was accepted, and its signatures.
    pub(super) fn kept(&self, digest: &Sha256) -> io::Result<(File, Vec<u8>)> {
        let mut signatures = Vec::new();
        let limit = super::SIGNATURES_SIZE_MAX as u64 + 1;
        File::open(self.folder.join(format!("{SIGNATURES}{digest}")))?.take(limit).read_to_end(&mut signatures)?;
        Ok((File::open(self.folder.join(format!("{MANIFEST}{digest}")))?, signatures))
    }

    /// Keeps a manifest, in place of the one before.
    pub(super) fn keep(&self, manifest: NamedTempFile, signatures: &[u8], highest: &Highest) -> io::Result<()> {
        let digest = highest.digest;
        self.place(manifest, &format!("{MANIFEST}{digest}"))?;
        self.write(signatures, &format!("{SIGNATURES}{digest}"))?;
        self.sync()?;
        let Highest { sequence, received, .. } = highest;
        let record = format!(
            "{{\"version\": 1, \"sequence\": {sequence}, \"sha256\": \"{digest}\", \"received\": {}}}\n",
            received.0
        );
        self.write(record.as_bytes(), RECORD)?;
        self.sync()?;
        let ours = digest.to_string();
        for entry in fs::read_dir(&self.folder)? {
            let (path, name) = entry.map(|entry| (entry.path(), entry.file_name().to_string_lossy().into_owned()))?;
            if [MANIFEST, SIGNATURES].iter().any(|kind| name.strip_prefix(kind).is_some_and(|of| of != ours)) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Keeps a manifest for its time.
    pub(super) fn set_aside(&self, manifest: NamedTempFile, signatures: &[u8], waiting: &Waiting) -> io::Result<()> {
        let name = waiting.name();
        self.write(signatures, &format!("{name}.sig"))?;
        self.place(manifest, &name)?;
        self.sync()
    }

    /// What is kept for its time, the lowest sequence first. What is not whole is removed.
    pub(super) fn waiting(&self) -> io::Result<Vec<Waiting>> {
        let mut waiting = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let Some(rest) = name.strip_prefix(WAITING) else { continue };
            let has = |name: &str| self.folder.join(name).exists();
            match Waiting::parse(rest) {
                Some(found) if has(&format!("{name}.sig")) => waiting.push(found),
                // Signatures whose manifest is there.
                None if rest.strip_suffix(".sig").and_then(Waiting::parse).is_some_and(|of| has(&of.name())) => {}
                _ => fs::remove_file(self.folder.join(name))?,
            }
        }
        waiting.sort_by_key(|waiting| waiting.sequence);
        Ok(waiting)
    }

    /// What was kept for its time, and its signatures, as if it came in now. It stays as it is.
    pub(super) fn come_in(&self, waiting: &Waiting) -> io::Result<(Arrived, Vec<u8>)> {
        let path = self.folder.join(waiting.name());
        let mut signatures = Vec::new();
        let limit = super::SIGNATURES_SIZE_MAX as u64 + 1;
        File::open(self.folder.join(format!("{}.sig", waiting.name())))?.take(limit).read_to_end(&mut signatures)?;
        let copy = self.folder.join(format!("{INCOMING}{}", waiting.digest));
        // One file by two names, where the file system can.
        fs::hard_link(&path, &copy).or_else(|_| fs::copy(&path, &copy).map(drop))?;
        let mut file = NamedTempFile::from_parts(File::open(&copy)?, TempPath::try_from_path(copy)?);
        // What lies on a disk for days is compared with its signatures as if it had come just now.
        let digest = digest_of(file.as_file_mut())?;
        Ok((Arrived { file, digest }, signatures))
    }

    /// Its time will not come.
    pub(super) fn drop_waiting(&self, waiting: &Waiting) -> io::Result<()> {
        fs::remove_file(self.folder.join(waiting.name()))?;
        fs::remove_file(self.folder.join(format!("{}.sig", waiting.name())))
    }

    fn write(&self, bytes: &[u8], name: &str) -> io::Result<()> {
        let mut file = tempfile::Builder::new().prefix(INCOMING).tempfile_in(&self.folder)?;
        file.write_all(bytes)?;
        self.place(file, name)
    }

    fn place(&self, file: NamedTempFile, name: &str) -> io::Result<()> {
        self.disk.sync_file(file.as_file())?;
        file.persist(self.folder.join(name)).map(drop).map_err(|err| err.error)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.sync_folder(&self.folder)
    }
}

impl Incoming {
    /// Takes the next piece; tells how many bytes there are. Blocks.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<u64> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(self.length)
    }

    /// It has come in whole.
    pub fn finish(self) -> Arrived {
        Arrived { file: self.file, digest: self.hasher.finish() }
    }
}

impl Waiting {
    fn name(&self) -> String {
        format!("{WAITING}{}-{}-{}", self.sequence, self.not_before.0, self.digest)
    }

    /// Of a name, what follows its first word.
    fn parse(rest: &str) -> Option<Self> {
        let mut parts = rest.splitn(3, '-');
        let mut number = || parts.next()?.parse().ok();
        let (sequence, not_before) = (number()?, UnixTime(number()?));
        Some(Self { sequence, not_before, digest: Sha256::from_hex(parts.next()?)? })
    }
}

fn read_record(text: &[u8]) -> Result<Highest, String> {
    const FIELDS: [&str; 4] = ["version", "sequence", "sha256", "received"];
    let mut json = Json::new(text);
    let (mut numbers, mut digest) = ([0; 4], None);
    let seen = json.object(&FIELDS, |json, field| {
        match FIELDS[field] {
            "sha256" => digest = Sha256::from_hex(&json.text(64)?),
            "version" => numbers[field] = json.integer(1, 1)?,
            _ => numbers[field] = json.integer(0, u64::MAX)?,
        }
        Ok(())
    });
    let read = seen.and_then(|seen| seen.require(&FIELDS, &[0, 1, 2, 3])).and_then(|()| json.finish());
    read.map_err(|err| err.to_string())?;
    let digest = digest.ok_or("its sha256 is no digest")?;
    Ok(Highest { sequence: numbers[1], digest, received: UnixTime(numbers[3]) })
}
