//! Sources that are a local directory.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::PathBuf,
    sync::Arc,
};

use bytes::Bytes;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use super::source::{Ask, AskRange, ContentRange, Head, SourceFault};
use crate::asset::{AssetKey, ByteRange, EntityTag, UnixTime, Validators};

/// Bytes read at once.
const PIECE_BYTES: u64 = 256 << 10;

/// A local directory.
#[derive(Debug)]
pub(super) struct Directory {
    root: Arc<PathBuf>,
}

/// A part of a file on its way in.
#[derive(Debug)]
pub(super) struct DirectoryBody {
    file: Option<Arc<File>>,
    version: Version,
    position: u64,
    end: u64,
}

/// What tells one version of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    modified_seconds: i64,
    modified_nanos: i64,
    inode: u64,
    length: u64,
}

impl Version {
    fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Self {
            modified_seconds: meta.mtime(),
            modified_nanos: meta.mtime_nsec(),
            inode: meta.ino(),
            length: meta.len(),
        })
    }

    fn validators(&self) -> Validators {
        let tag = format!("\"{:x}-{:x}-{:x}\"", self.modified_seconds, self.modified_nanos, self.length);
        let modified = u64::try_from(self.modified_seconds).ok().map(UnixTime);
        Validators { etag: EntityTag::parse(&tag), last_modified: modified, last_modified_is_strong: false }
    }
}

impl Directory {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root: Arc::new(root) }
    }

    pub(super) async fn open(&self, key: &AssetKey, ask: &Ask<'_>) -> Result<(Head, DirectoryBody), SourceFault> {
        let (root, path) = (Arc::clone(&self.root), key.path().to_owned());
        let opened =
            tokio::task::spawn_blocking(move || open_below(&root, &path)).await.map_err(|_| SourceFault::File)?;
        let (file, version) = match opened {
            Ok((file, version)) => (Arc::new(file), version),
            Err(err) => return refused(&err),
        };
        let validators = version.validators();
        let changed = |wanted: &Validators| wanted.etag != validators.etag;
        let mut head = Head { status: 200, validators: validators.clone(), ..Head::default() };
        let body = |position, end| DirectoryBody { file: Some(file), version, position, end };
        if ask.unless.is_some_and(|known| !changed(known)) {
            head.status = 304;
            return Ok((head, body(0, 0)));
        }
        let range = if ask.if_range.is_some_and(changed) { AskRange::Whole } else { ask.range };
        let part = match range {
            AskRange::Whole => {
                head.content_length = Some(version.length);
                return Ok((head, body(0, version.length)));
            }
            AskRange::Part { start, end } => ByteRange::new(start, end.unwrap_or(u64::MAX).min(version.length)),
            AskRange::Suffix(count) => ByteRange::new(version.length.saturating_sub(count), version.length),
        };
        head.content_range = Some(ContentRange { part, total: Some(version.length) });
        let Some(part) = part else {
            head.status = 416;
            return Ok((head, body(0, 0)));
        };
        head.status = 206;
        head.content_length = Some(part.len());
        Ok((head, body(part.start(), part.end())))
    }
}

/// Opens strictly below the root: no `..`, no symbolic link that leaves it (`openat2(2)`).
fn open_below(root: &PathBuf, path: &str) -> io::Result<(File, Version)> {
    let folder = rustix::fs::openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file: File =
        openat2(&folder, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS)?.into();
    let version = Version::of(&file)?;
    Ok((file, version))
}

/// What a web server would say.
fn refused(err: &io::Error) -> Result<(Head, DirectoryBody), SourceFault> {
    let status = match err.kind() {
        io::ErrorKind::NotFound
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory
        | io::ErrorKind::InvalidFilename => 404,
        io::ErrorKind::PermissionDenied | io::ErrorKind::CrossesDevices => 403,
        _ if err.raw_os_error() == Some(libc::ELOOP) => 403,
        _ => return Err(SourceFault::File),
    };
    let version = Version { modified_seconds: 0, modified_nanos: 0, inode: 0, length: 0 };
    Ok((Head { status, ..Head::default() }, DirectoryBody { file: None, version, position: 0, end: 0 }))
}

impl DirectoryBody {
    /// The next bytes; `None` at the end. A file that changed while it was read is a fault: its parts do not belong together.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, SourceFault> {
        let Some(file) = self.file.as_ref().filter(|_| self.position < self.end).map(Arc::clone) else {
            return Ok(None);
        };
        let (position, version) = (self.position, self.version);
        let len = usize::try_from((self.end - position).min(PIECE_BYTES)).map_err(|_| SourceFault::File)?;
        let read = tokio::task::spawn_blocking(move || -> io::Result<Option<Vec<u8>>> {
            let mut buffer = vec![0; len];
            file.read_exact_at(&mut buffer, position)?;
            Ok((Version::of(&file)? == version).then_some(buffer))
        });
        match read.await {
            Ok(Ok(Some(buffer))) => {
                self.position += buffer.len() as u64;
                Ok(Some(buffer.into()))
            }
            Ok(Ok(None)) => Err(SourceFault::Changed),
            Ok(Err(err)) if err.kind() == io::ErrorKind::UnexpectedEof => Err(SourceFault::Short),
            Ok(Err(_)) | Err(_) => Err(SourceFault::File),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn status(root: &std::path::Path, path: &str) -> u16 {
        let key = AssetKey::parse(path, None).expect("valid");
        Directory::new(root.into()).open(&key, &Ask::of(AskRange::Whole)).await.expect("an answer").0.status
    }

    #[tokio::test]
    async fn nothing_outside_the_directory_is_opened() {
        let dir = tempfile::tempdir().expect("tempdir");
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("sub")).expect("made");
        std::fs::write(dir.path().join("secret"), b"x").expect("written");
        std::fs::write(root.join("sub/a"), b"hello").expect("written");
        std::os::unix::fs::symlink(dir.path().join("secret"), root.join("out")).expect("linked");
        std::os::unix::fs::symlink("sub/a", root.join("in")).expect("linked");
        assert_eq!(status(&root, "/sub/a").await, 200);
        assert_eq!(status(&root, "/in").await, 200);
        assert_eq!(status(&root, "/out").await, 403);
        assert_eq!(status(&root, "/sub").await, 404);
        assert_eq!(status(&root, "/none").await, 404);
        assert_eq!(status(&root, "/sub/a/b").await, 404);
    }

    #[tokio::test]
    async fn a_file_that_changes_while_it_is_read_is_a_fault() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("a");
        std::fs::write(&path, vec![1; 600 << 10]).expect("written");
        let key = AssetKey::parse("/a", None).expect("valid");
        let opened = Directory::new(dir.path().into()).open(&key, &Ask::of(AskRange::Whole)).await;
        let (_, mut body) = opened.expect("opened");
        assert_eq!(body.next().await.expect("read").map(|bytes| bytes.len()), Some(256 << 10));
        std::fs::write(&path, vec![2; 700 << 10]).expect("written");
        assert_eq!(body.next().await, Err(SourceFault::Changed));
    }
}
