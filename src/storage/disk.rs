//! The seam to the file system: what storage asks of a disk, so that tests can put a failing one in its place.

use std::{
    fs::{File, OpenOptions},
    io::{self, IoSlice},
    num::NonZeroU64,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use rustix::fs::FallocateFlags;

/// Largest folio of the page cache: what one entry of a page middle directory maps.
const FOLIO_BYTES_MAX: u64 = 2 << 20;

/// Pieces that `pwritev(2)` takes at once (`IOV_MAX`).
const PIECES_MAX: usize = 1024;

/// What storage asks of a disk. Every call may block; none is made on a worker.
pub trait Disk: Send + Sync + std::fmt::Debug {
    /// Makes a file of `length` bytes, all holes; it must not exist.
    ///
    /// # Errors
    /// As of `open(2)` and `ftruncate(2)`.
    fn create(&self, path: &Path, length: u64) -> io::Result<File>;

    /// Opens a file for writing blocks.
    ///
    /// # Errors
    /// As of `open(2)`.
    fn open_write(&self, path: &Path) -> io::Result<File>;

    /// Opens a file for reading and mapping.
    ///
    /// # Errors
    /// As of `open(2)`.
    fn open_read(&self, path: &Path) -> io::Result<File>;

    /// Reserves disk space for a part of a file without changing its length.
    ///
    /// # Errors
    /// As of `fallocate(2)`; `ENOSPC` where the disk is full. A file system without `fallocate` is no error.
    fn reserve(&self, file: &File, offset: u64, len: u64) -> io::Result<()>;

    /// Writes all of `pieces`, one behind the other.
    ///
    /// # Errors
    /// As of `pwritev(2)`.
    fn write_at(&self, file: &File, pieces: &[&[u8]], offset: u64) -> io::Result<()>;

    /// Fills `buffer` from the page cache or the disk.
    ///
    /// # Errors
    /// As of `pread(2)`; `UnexpectedEof` where the file is shorter.
    fn read_at(&self, file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Opens a file for writing past the page cache: memory, offset and length of what is written in whole [`super::DIRECT_UNIT`]s. `None` where
    /// that cannot be.
    ///
    /// # Errors
    /// As of `open(2)`.
    fn open_write_direct(&self, path: &Path) -> io::Result<Option<File>> {
        let _ = path;
        Ok(None)
    }

    /// Opens a file for reading past the page cache, so that what is read is what the disk has. Where the file system cannot,
    /// as [`Disk::open_read`].
    ///
    /// # Errors
    /// As of `open(2)`.
    fn open_direct(&self, path: &Path) -> io::Result<File>;

    /// Reads some bytes; for files opened past the page cache, address, offset and size in whole pages.
    ///
    /// # Errors
    /// As of `pread(2)`.
    fn read_some(&self, file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Makes a file's data durable.
    ///
    /// # Errors
    /// As of `fdatasync(2)`. After an error the state of what was written is unknown.
    fn sync_data(&self, file: &File) -> io::Result<()>;

    /// Lets go of the pages of a durable part of a file, so that they push nothing else out of memory. A file system that keeps
    /// them does no harm.
    fn drop_pages(&self, file: &File, offset: u64, len: u64) {
        // The kernel keeps a folio of which it is told only a part (invalidate_mapping_pages): the one that reaches into what came before goes
        // now that its rest is durable too.
        let before = offset.min(FOLIO_BYTES_MAX);
        let len = NonZeroU64::new(len + before);
        if let Err(err) = rustix::fs::fadvise(file, offset - before, len, rustix::fs::Advice::DontNeed) {
            tracing::debug!(error = %err, "pages of a file are kept in memory");
        }
    }

    /// Makes a directory's entries durable.
    ///
    /// # Errors
    /// As of `fsync(2)`.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Removes a file's name.
    ///
    /// # Errors
    /// As of `unlink(2)`.
    fn unlink(&self, path: &Path) -> io::Result<()>;
}

/// Whether an error says that the process or the machine is short of descriptors or memory: no word about the disk.
pub fn is_shortage(err: &io::Error) -> bool {
    matches!(err.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

/// The disk as it is.
#[derive(Debug, Default)]
pub struct RealDisk;

/// Opens a file, and nothing else that may have come into its place: a link leads out of the volume, and a FIFO would be waited for.
fn open_file(options: &mut OpenOptions, flags: libc::c_int, path: &Path) -> io::Result<File> {
    let file = options.custom_flags(flags | libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    // Only opening was not to wait.
    let flags = rustix::fs::fcntl_getfl(&file)?;
    rustix::fs::fcntl_setfl(&file, flags - rustix::fs::OFlags::NONBLOCK)?;
    Ok(file)
}

impl Disk for RealDisk {
    fn create(&self, path: &Path, length: u64) -> io::Result<File> {
        let options = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true).mode(0o640);
            options
        };
        let file = match options().open(path) {
            // The fan-out directories are made when they are first needed.
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                let folder = path.parent().ok_or(err)?;
                std::fs::create_dir_all(folder)?;
                options().open(path)?
            }
            other => other?,
        };
        file.set_len(length)?;
        Ok(file)
    }

    fn open_write(&self, path: &Path) -> io::Result<File> {
        open_file(OpenOptions::new().read(true).write(true), 0, path)
    }

    fn open_read(&self, path: &Path) -> io::Result<File> {
        open_file(OpenOptions::new().read(true), 0, path)
    }

    fn open_write_direct(&self, path: &Path) -> io::Result<Option<File>> {
        match open_file(OpenOptions::new().write(true), libc::O_DIRECT, path) {
            Err(err) if err.kind() == io::ErrorKind::InvalidInput => Ok(None),
            other => other.map(Some),
        }
    }

    fn reserve(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, offset, len) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            other => Ok(other?),
        }
    }

    fn write_at(&self, file: &File, pieces: &[&[u8]], mut offset: u64) -> io::Result<()> {
        // In one call where they can: the kernel keeps what it is given at once in folios as large as that allows, and what lies in large
        // folios is sent for a tenth to a fifth less.
        let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut left = &mut slices[..];
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match rustix::io::pwritev(file, &left[..left.len().min(PIECES_MAX)], offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut left, written);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(err) => return Err(err.into()),
            }
        }
        Ok(())
    }

    fn read_at(&self, file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        file.read_exact_at(buffer, offset)
    }

    fn open_direct(&self, path: &Path) -> io::Result<File> {
        match open_file(OpenOptions::new().read(true), libc::O_DIRECT, path) {
            Err(err) if err.kind() == io::ErrorKind::InvalidInput => self.open_read(path),
            other => other,
        }
    }

    fn read_some(&self, file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        file.read_at(buffer, offset)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }
}
