//! What the kernel tells of the machine: memory, descriptors, interfaces, disks, time. Small reads of `/proc` and `/sys`, none of which
//! touches a disk.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use super::inputs::{Descriptors, Memory};

/// What an interface has sent, and what it can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) sent_bytes: u64,
    /// Bits per second, where it says so.
    pub(super) speed: Option<u64>,
}

/// What a disk has done so far (`/sys/block/*/stat`, Documentation/block/stat.rst).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DiskTime {
    /// With something to do.
    pub(super) busy: Duration,
    /// Of all requests, added up.
    pub(super) queued: Duration,
}

/// The tighter of what the machine has and what the group that the process is in may have.
pub(super) fn memory() -> Option<Memory> {
    let machine = memory_of_machine(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let group = memory_of_group(Path::new("/sys/fs/cgroup"), &fs::read_to_string("/proc/self/cgroup").ok()?);
    let share = |memory: &Memory| memory.available as f64 / memory.total.max(1) as f64;
    Some(group.filter(|group| share(group) < share(&machine)).unwrap_or(machine))
}

fn memory_of_machine(meminfo: &str) -> Option<Memory> {
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(Memory { available: field("MemAvailable")?, total: field("MemTotal")? })
}

/// Of a group of version 2 that has a limit. Its page cache can be had.
fn memory_of_group(root: &Path, own: &str) -> Option<Memory> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let group = root.join(path);
    let number = |file: &str| fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok();
    let (total, used) = (number("memory.max")?, number("memory.current")?);
    let stat = fs::read_to_string(group.join("memory.stat")).ok()?;
    let of_files = |name: &str| stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    let cache = of_files("active_file ")?.saturating_add(of_files("inactive_file ")?);
    Some(Memory { available: total.saturating_sub(used.saturating_sub(cache)).min(total), total })
}

/// Descriptors of the process.
pub(super) fn descriptors() -> Option<Descriptors> {
    let (max, _) = rlimit::getrlimit(rlimit::Resource::NOFILE).ok()?;
    // Linux 6.2 and later say how many there are; others have them counted.
    let open = match fs::metadata("/proc/self/fd").map(|folder| folder.len()) {
        Ok(0) | Err(_) => fs::read_dir("/proc/self/fd").ok()?.count() as u64,
        Ok(open) => open,
    };
    Some(Descriptors { open, max })
}

/// Every interface that is up.
pub(super) fn interfaces() -> Vec<Interface> {
    let table = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let of = |name: &str| {
        let up = fs::read_to_string(format!("/sys/class/net/{name}/operstate"));
        let speed = fs::read_to_string(format!("/sys/class/net/{name}/speed"));
        (up.is_ok_and(|state| state.trim() != "down"), speed.ok())
    };
    sent_bytes(&table)
        .filter_map(|(name, sent_bytes)| {
            let (up, speed) = of(name);
            // In Mb/s; -1 and 0 where there is no such thing.
            let speed = speed.and_then(|speed| speed.trim().parse::<u64>().ok()).filter(|speed| *speed > 0);
            let speed = speed.map(|speed| speed.saturating_mul(1_000_000));
            up.then(|| Interface { name: name.into(), sent_bytes, speed })
        })
        .collect()
}

/// Names and bytes sent, of the table of interfaces (`/proc/net/dev`).
fn sent_bytes(table: &str) -> impl Iterator<Item = (&str, u64)> {
    table.lines().filter_map(|line| {
        let (name, counts) = line.split_once(':')?;
        Some((name.trim(), counts.split_whitespace().nth(8)?.parse().ok()?))
    })
}

/// What can leave for viewers through what is up, where anything says so. Of interfaces that make up another one (a bond, a bridge, a
/// VLAN), those that lie on a device count.
pub(super) fn capacity(interfaces: &[Interface]) -> Option<u64> {
    let is_device = |name: &str| Path::new(&format!("/sys/class/net/{name}/device")).exists();
    let speeds = interfaces.iter().filter(|interface| is_device(&interface.name)).filter_map(|known| known.speed);
    speeds.reduce(u64::saturating_add)
}

/// What the disk of a device has done; `None` where the device is none of a disk's (a file system in memory, for one).
pub(super) fn disk(device: u64) -> Option<DiskTime> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    disk_time(&fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?)
}

fn disk_time(stat: &str) -> Option<DiskTime> {
    let mut millis = stat.split_whitespace().skip(9).map(|field| field.parse().ok().map(Duration::from_millis));
    Some(DiskTime { busy: millis.next()??, queued: millis.next()?? })
}

/// Time computed by the process.
pub(super) fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// What the wall clock says, from 1970.
pub(super) fn wall() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_what_the_kernel_writes() {
        let meminfo = "MemTotal:        8149916 kB\nMemFree:          224808 kB\nMemAvailable:    5021452 kB\n";
        let expected = Memory { available: 5_021_452 * 1024, total: 8_149_916 * 1024 };
        assert_eq!(memory_of_machine(meminfo), Some(expected));
        assert_eq!(memory_of_machine("MemTotal: 1 kB\n"), None);
        assert!(memory().is_some_and(|memory| memory.available <= memory.total && memory.total > 0));
    }

    #[test]
    fn the_cache_of_a_group_can_be_had() {
        let root = tempfile::tempdir().expect("a folder");
        let group = root.path().join("system.slice/oca.service");
        fs::create_dir_all(&group).expect("made");
        let write = |name: &str, text: &str| fs::write(group.join(name), text).expect("written");
        write("memory.max", "1000\n");
        write("memory.current", "900\n");
        write("memory.stat", "anon 200\nfile 700\ninactive_file 400\nactive_file 300\n");
        let own = "0::/system.slice/oca.service\n";
        assert_eq!(memory_of_group(root.path(), own), Some(Memory { available: 800, total: 1000 }));
        write("memory.max", "max\n");
        assert_eq!(memory_of_group(root.path(), own), None, "no limit");
        assert_eq!(memory_of_group(root.path(), "2:cpu:/x\n"), None, "version 1");
    }

    #[test]
    fn what_interfaces_sent_is_the_ninth_count() {
        let table = "Inter-|   Receive                                                |  Transmit\n face |bytes    packets errs drop fifo frame \
                     compressed multicast|bytes    packets\n    lo: 1 2 3 4 5 6 7 8 900 10 11 12 13 14 15 16\n  eth0:11 2 3 4 5 6 7 8 77 1 0 0 0 0 0 0\n";
        assert_eq!(sent_bytes(table).collect::<Vec<_>>(), [("lo", 900), ("eth0", 77)]);
    }

    #[test]
    fn a_disk_tells_its_time() {
        let stat = " 4103 1 251212 1240 7212 8 812312 9120 2 3456 10360 0 0 0 0\n";
        let expected = DiskTime { busy: Duration::from_millis(3456), queued: Duration::from_millis(10_360) };
        assert_eq!(disk_time(stat), Some(expected));
        assert_eq!(disk_time("1 2 3"), None);
    }

    #[test]
    fn descriptors_are_counted() {
        let before = descriptors().expect("the kernel says so");
        let files: Vec<_> = (0..50).map(|_| fs::File::open("/dev/null").expect("there")).collect();
        let with = descriptors().expect("the kernel says so");
        // Other tests open and close theirs meanwhile.
        assert!(with.open + 25 > before.open + 50 && with.max == before.max, "{before:?} {with:?}");
        drop(files);
    }
}
