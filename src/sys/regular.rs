//! Files that are what they seem to be.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// Opens a file for reading that an operator has named: whoever put a FIFO or a device in its place is not waited for.
///
/// # Errors
/// As of `open(2)`; it is no regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_is_refused_and_not_waited_for() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .expect("made");
        assert!(open_regular(&path).expect_err("a FIFO").to_string().contains("regular"));
        assert!(open_regular(dir.path()).is_err());
        assert!(open_regular(&dir.path().join("none")).is_err());
        std::fs::write(dir.path().join("file"), "text").expect("written");
        assert_eq!(io::read_to_string(open_regular(&dir.path().join("file")).expect("a file")).expect("read"), "text");
    }
}
