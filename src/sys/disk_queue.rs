//! What a disk's queue holds. A thread that hands over one request more than that sleeps until another has ended.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// How many reads of `bytes` each the queue of the disk below `path`, or below the nearest folder above it that exists, holds (`nr_requests` of requests of
/// `max_sectors_kb`; Documentation/ABI/stable/sysfs-block). `None` where nothing says so: a file system of several disks, or in memory.
pub fn room(path: &Path, bytes: u64) -> Option<usize> {
    let device = path.ancestors().find_map(|path| fs::metadata(path).ok())?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let block = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    // A partition has none of its own.
    let queue = ["queue", "../queue"].map(|queue| block.join(queue)).into_iter().find(|queue| queue.exists())?;
    of_queue(&queue, bytes)
}

fn of_queue(queue: &Path, bytes: u64) -> Option<usize> {
    let number = |name| fs::read_to_string(queue.join(name)).ok()?.trim().parse::<u64>().ok();
    let (requests, most) = (number("nr_requests")?, number("max_sectors_kb")?.checked_mul(1024)?);
    usize::try_from(requests.checked_div(bytes.div_ceil(most.max(1)))?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_that_is_several_requests_takes_the_room_of_several() {
        let dir = tempfile::tempdir().expect("a scratch folder");
        let queue = |requests: &str, most: &str| {
            fs::write(dir.path().join("nr_requests"), requests).expect("written");
            fs::write(dir.path().join("max_sectors_kb"), most).expect("written");
            of_queue(dir.path(), 256 << 10)
        };
        assert_eq!(queue("256\n", "4096\n"), Some(256));
        assert_eq!(queue("64\n", "128\n"), Some(32));
        assert_eq!(queue("64\n", "100\n"), Some(21));
        assert_eq!(queue("", "128\n"), None);
        assert_eq!(of_queue(&dir.path().join("none"), 1), None);
        assert_eq!(room(Path::new("/proc/self"), 1), None, "no disk's");
        let own = room(dir.path(), 4096);
        assert_eq!(room(&dir.path().join("is/not/there"), 4096), own, "that of what there is");
    }
}
