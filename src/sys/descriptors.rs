//! The table of this process's file descriptors.

use std::io;

use rustix::{
    event::{EventfdFlags, eventfd},
    io::fcntl_dupfd_cloexec,
};

/// Has the kernel make room for `count` descriptors at once. It doubles the table as they come otherwise, and whoever is given the descriptor that does not fit, a worker
/// that accepts a connection, waits in `accept4(2)` until no processor looks at the old table any more (`expand_fdtable`, `synchronize_rcu`): 4 to 22 ms each
/// time, measured. Best called while there is one thread only, which waits for nobody.
///
/// # Errors
/// The process may not have so many (`EINVAL`), or there is no memory.
pub fn make_room(count: usize) -> io::Result<()> {
    let any = eventfd(0, EventfdFlags::CLOEXEC)?;
    let last = i32::try_from(count.saturating_sub(1)).map_err(|_| io::ErrorKind::InvalidInput)?;
    // The table stays as large as it has been.
    drop(fcntl_dupfd_cloexec(&any, last)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// `FDSize` of proc_pid_status(5): slots that the table has.
    fn slots() -> usize {
        let status = fs::read_to_string("/proc/self/status").expect("readable");
        let line = status.lines().find_map(|line| line.strip_prefix("FDSize:")).expect("there");
        line.trim().parse().expect("a number")
    }

    #[test]
    fn the_table_grows_at_once_and_stays() {
        let before = slots();
        make_room(before + 1).expect("room");
        assert!(slots() > before);
        assert!(make_room(usize::MAX).is_err());
        assert!(make_room(i32::MAX as usize).is_err(), "more than any limit");
    }
}
