//! How a thread stands with the kernel's scheduler.

#![expect(unsafe_code, reason = "sched_setscheduler has no safe interface in a crate we use")]

use std::io;

/// Has the calling thread run only while no thread of ordinary priority wants its core, whatever process that is of (`SCHED_IDLE`, `sched(7)`):
/// one that wakes takes the core at once, where a mere `nice` would let this one end its slice.
///
/// # Errors
/// As of `sched_setscheduler(2)`: something around the process forbids it.
pub fn give_way() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters live across the call, which reads them and nothing else of ours; 0 is the calling thread.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gives_way_alone() {
        // Field 41, behind the name: the policy.
        let policy = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("readable");
            let fields: Vec<String> = stat.rsplit(") ").next().expect("fields").split(' ').map(Into::into).collect();
            fields[38].clone()
        };
        let before = policy();
        let inside = std::thread::spawn(move || {
            give_way().expect("nobody forbids it");
            policy()
        });
        assert_eq!(inside.join().expect("it ends"), libc::SCHED_IDLE.to_string());
        assert_eq!(policy(), before);
    }
}
