//! How a volume's directory looks.
//!
//! ```text
//! oca-volume.json          identity: format, id, block size
//! lock                     held while an appliance uses the volume
//! probe                    written, synced and read back to see whether the disk lives
//! catalog.sqlite           what is held (catalog/database.rs)
//! assets/3f/3fa9….1c       one file per version of an asset: hash of its key, then its serial number
//! ```

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::asset::AssetId;

/// Version of this layout. A volume of another version is refused, never converted in passing.
const FORMAT: u32 = 1;
const IDENTITY_FILE: &str = "oca-volume.json";

/// What a volume says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Version of the layout.
    pub format: u32,
    /// Random name, 32 hexadecimal digits, made with the volume.
    pub id: String,
    /// Block size in bytes; blocks on disk are digested in this unit.
    pub block_size: u64,
}

/// Name of the file of one version of an asset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileName {
    /// Hash of the key.
    pub id: AssetId,
    /// Number of this version on its volume, never used twice.
    pub serial: u64,
}

impl FileName {
    /// Path below the volume's root.
    pub fn path(&self, root: &Path) -> PathBuf {
        let name = format!("{}.{:x}", self.id, self.serial);
        let mut path = assets_dir(root);
        path.push(&name[..2]);
        path.push(name);
        path
    }

    /// Reads a file's name back; `None` for names that are none of ours.
    pub fn parse(name: &str) -> Option<Self> {
        let (id, serial) = name.split_once('.')?;
        Some(Self { id: AssetId::from_hex(id)?, serial: u64::from_str_radix(serial, 16).ok()? })
    }
}

/// Where the files of assets lie.
pub(super) fn assets_dir(root: &Path) -> PathBuf {
    root.join("assets")
}

/// Reads the identity of the volume at `root`, of which nothing is changed.
///
/// # Errors
/// It cannot be read, is none, or of another format.
pub fn read_identity(root: &Path) -> io::Result<Identity> {
    let text = fs::read(root.join(IDENTITY_FILE))?;
    let identity: Identity = serde_json::from_slice(&text)
        .map_err(|err| io::Error::new(io::ErrorKind::InvalidData, format!("{IDENTITY_FILE} cannot be read: {err}")))?;
    if identity.format != FORMAT {
        let what = format!("{IDENTITY_FILE} says format {}, this version reads {FORMAT}", identity.format);
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(identity)
}

/// Reads the identity of the volume at `root`, or makes a volume there.
///
/// # Errors
/// The directory cannot be read or written, or holds a volume of another format.
pub(super) fn open_or_create(root: &Path, block_size: u64) -> io::Result<Identity> {
    match read_identity(root) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => create(root, &root.join(IDENTITY_FILE), block_size),
        read => read,
    }
}

fn create(root: &Path, path: &Path, block_size: u64) -> io::Result<Identity> {
    // A directory with something else in it is more likely a typing error than a volume to be.
    let foreign = fs::read_dir(root)?.filter_map(Result::ok).map(|entry| entry.file_name()).find(|name| {
        !matches!(name.to_str(), Some("lock" | "lost+found" | "probe")) && !name.to_string_lossy().starts_with('.')
    });
    if let Some(name) = foreign {
        let what = format!(
            "the directory is no volume and not empty (it holds {}); name an empty one",
            name.to_string_lossy()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    let mut random = [0_u8; 16];
    let filled = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    debug_assert_eq!(filled, random.len(), "getrandom gives up to 256 bytes whole");
    let id = random.iter().fold(String::new(), |id, byte| id + &format!("{byte:02x}"));
    let identity = Identity { format: FORMAT, id, block_size };
    fs::create_dir_all(assets_dir(root))?;
    // Written aside and renamed, so that a power cut leaves no half identity.
    let aside = root.join(".oca-volume.new");
    let mut file = File::create(&aside)?;
    file.write_all(&serde_json::to_vec_pretty(&identity)?)?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    File::open(root)?.sync_all()?;
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_keeps_its_identity() {
        let dir = tempfile::tempdir().expect("tempdir");
        let made = open_or_create(dir.path(), 1 << 20).expect("made");
        assert_eq!(open_or_create(dir.path(), 1 << 16).expect("read"), made);
    }

    #[test]
    fn a_directory_with_other_things_in_it_is_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::write(dir.path().join("holiday.jpg"), b"x").expect("write");
        let err = open_or_create(dir.path(), 1 << 20).expect_err("refused");
        assert!(err.to_string().contains("holiday.jpg"), "{err}");
    }

    #[test]
    fn a_file_name_reads_back() {
        let name = FileName { id: AssetId::from_bytes([0x3f; 32]), serial: 0x1c };
        let path = name.path(Path::new("/v"));
        let file = path.file_name().and_then(|f| f.to_str()).expect("utf-8");
        assert_eq!(FileName::parse(file), Some(name));
        assert_eq!(FileName::parse("README"), None);
    }
}
