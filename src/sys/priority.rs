//! How a thread stands with the kernel's scheduler.

#![expect(unsafe_code, reason = "sched_setscheduler has no safe interface in a crate we use")]

use std::{
    cell::Cell,
    io,
    time::{Duration, Instant},
};

/// Has the calling thread run only while no thread of ordinary priority wants its core, whatever process that is of (`SCHED_IDLE`, `sched(7)`):
/// one that wakes takes the core at once, where a mere `nice` would let this one end its slice.
///
/// # Errors
/// As of `sched_setscheduler(2)`: something around the process forbids it.
pub fn give_way() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters live across the call, which reads them and nothing else of ours; 0 is the calling thread.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) } {
        0 => {
            COURTESY.set(Some(Courtesy::default()));
            Ok(())
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// A thread that has waited for so long to have its core back shares it with others that never sleep.
const FULL_CORE: Duration = Duration::from_millis(20);
/// How much longer than such a wait it does not ask again, and the longest that may be: a machine can stand still for hours.
const PATIENCE: u32 = 10;
const PATIENCE_MAX: Duration = Duration::from_secs(10);

thread_local! {
    /// Of a thread that gives way.
    static COURTESY: Cell<Option<Courtesy>> = const { Cell::new(None) };
}

/// When a thread lets others go first.
#[derive(Clone, Copy, Debug, Default)]
struct Courtesy {
    not_before: Option<Instant>,
}

impl Courtesy {
    fn is_due(self, now: Instant) -> bool {
        self.not_before.is_none_or(|then| now >= then)
    }

    /// It has let others go first at `then`, and has the core again `now`.
    fn after(then: Instant, now: Instant) -> Self {
        let waited = now.saturating_duration_since(then);
        Self { not_before: (waited >= FULL_CORE).then(|| now + waited.saturating_mul(PATIENCE).min(PATIENCE_MAX)) }
    }
}

/// Gives whoever waits for the calling thread's core the chance to have it; goes on at once if nobody does, or if the thread does not give way.
///
/// To be called every few tens of microseconds by a thread that gives way: the kernel's fair scheduler goes by what each has had of the core, also among threads
/// that give way and others. When several of them wake at the same time as one that does not, as by a timer, those go first that have had less than their share
/// (`pick_eevdf` in the kernel's `sched/fair.c`), and it is not asked again before they sleep, or a tick ends. Who yields loses what it is owed, which is
/// nothing on a core that is idle at times, and most of its share on one that never is: there it is not done.
pub fn let_others_go_first() {
    let Some(courtesy) = COURTESY.get() else { return };
    let then = Instant::now();
    if courtesy.is_due(then) {
        std::thread::yield_now();
        COURTESY.set(Some(Courtesy::after(then, Instant::now())));
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
            assert!(COURTESY.get().is_none(), "no thread is polite unasked");
            give_way().expect("nobody forbids it");
            let_others_go_first();
            assert!(COURTESY.get().is_some());
            policy()
        });
        assert_eq!(inside.join().expect("it ends"), libc::SCHED_IDLE.to_string());
        assert_eq!(policy(), before);
    }

    #[test]
    fn a_core_that_is_never_idle_is_not_given_up_again_and_again() {
        let then = Instant::now();
        let soon = then + FULL_CORE / 2;
        assert!(Courtesy::default().is_due(then) && Courtesy::after(then, soon).is_due(soon));
        let late = then + FULL_CORE * 3;
        let hurt = Courtesy::after(then, late);
        assert!(!hurt.is_due(late) && !hurt.is_due(late + FULL_CORE * 29));
        assert!(hurt.is_due(late + FULL_CORE * 30));
        let ages = then + Duration::from_secs(86_400);
        assert!(Courtesy::after(then, ages).is_due(ages + PATIENCE_MAX));
    }
}
