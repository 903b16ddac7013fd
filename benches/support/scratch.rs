//! Folders of a bench, and what lies in them.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// A folder that goes with the bench.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// A new folder where the build writes.
    pub(crate) fn new(name: &str) -> io::Result<Self> {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(err) = fs::remove_dir_all(&self.0) {
            eprintln!("{} is left: {err}", self.0.display());
        }
    }
}

/// The bytes of asset number `number` from `offset` on: nobody's compression or guess makes them cheaper.
pub(crate) fn content(number: u64, offset: u64, into: &mut [u8]) {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&number.to_le_bytes());
    let mut reader = hasher.finalize_xof();
    reader.set_position(offset);
    reader.fill(into);
}

/// Writes `count` assets of `length` bytes each into `folder`, named by their numbers.
pub(crate) fn make_assets(folder: &Path, count: u64, length: u64) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    for number in 0..count {
        content(number, 0, &mut bytes);
        fs::write(folder.join(format!("{number}.mp4")), &bytes)?;
    }
    Ok(())
}

/// Has the kernel drop the files below `folder` from memory. What a process has mapped and read stays: ask before it starts.
pub(crate) fn forget_pages(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            forget_pages(&entry.path())?;
        } else if entry.file_type()?.is_file() {
            let file = File::open(entry.path())?;
            // Only clean pages can be dropped.
            file.sync_all()?;
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        }
    }
    Ok(())
}
