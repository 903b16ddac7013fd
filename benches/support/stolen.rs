//! Latencies, without those of moments in which the machine was not ours.
//!
//! A virtual machine whose host lends it so much of each tenth of a second (CFS bandwidth control, `cpu.max` in cgroups), or whose neighbours are busy,
//! stands still for milliseconds at a time; the tail of what is measured then is the host's. Most hosts tell so (`steal` in `proc_stat(5)`, to a
//! hundredth of a second). What is shorter a thread on each core sees that goes before all others there and wants to do nothing, once a millisecond.

use std::{
    fs,
    process::{Command, Stdio},
    sync::{
        Arc, Once,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

use super::{cores, is_smoke};

/// What is kept or left out as one.
const SLICE: Duration = Duration::from_millis(20);
/// How often a core is looked after, and how much later than that it is found to have stood still. A kernel that is built without preemption ends what
/// it does for others first: with what is measured here, that is a third of it.
const LOOK: Duration = Duration::from_millis(1);
/// What has a p99 of its own, and how many it has to be of.
const TENTH: Duration = Duration::from_millis(100);
const TENTH_MIN: usize = 100;

/// Keeps what lies in slices of time in which no core stood still, nor in those before and after.
#[derive(Debug)]
pub(crate) struct Undisturbed {
    /// Microseconds; and all, kept or not.
    kept: Histogram<u64>,
    all: Histogram<u64>,
    /// The slice that runs, and the one before it.
    present: Vec<u64>,
    before: (Vec<u64>, Duration),
    /// Whether the machine was ours in the slice before, and in the one before that.
    ours: [bool; 2],
    begun: Instant,
    /// What was stolen, and how often a core was seen to stand still.
    stolen: u64,
    stood: u64,
    watch: Watch,
    time: Duration,
    left_out: Duration,
    /// When all began.
    whole: Instant,
    /// What was kept of the tenth of a second that runs, and when it has begun; and those that are over.
    tenth: (Vec<u64>, Instant),
    tenths: Vec<Tenth>,
}

/// What was not left out.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Microseconds.
    pub(crate) latency: Histogram<u64>,
    /// Share of the time that was left out. Where nothing could be kept, that is all of it, and the latencies are of everything; a short run keeps everything too.
    pub(crate) left_out: f64,
    /// A host that makes a core slow for some hundredths of a second, without stopping it, is seen by nobody here; it makes the p99 of the whole, and that of few of these.
    pub(crate) tenths: Vec<Tenth>,
}

/// What was kept of a tenth of a second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tenth {
    /// When it began and ended, since the whole did.
    pub(crate) from: Duration,
    pub(crate) to: Duration,
    /// Microseconds.
    pub(crate) p50: u64,
    pub(crate) p99: u64,
}

/// How often a core was seen to stand still.
#[derive(Debug)]
struct Watch {
    stood: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

impl Watch {
    fn start() -> Self {
        let (stood, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (server, load) = cores::cores();
        let (ready, begun) = mpsc::channel();
        for core in [server, load] {
            let (stood, over, ready) = (Arc::clone(&stood), Arc::clone(&over), ready.clone());
            thread::spawn(move || {
                // Without both, it is not the core that would be looked at.
                let sees = cores::pin(&[core]).is_ok() && goes_before_all();
                if ready.send(sees).is_err() || !sees {
                    return;
                }
                while !over.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    thread::park_timeout(LOOK);
                    if begun.elapsed() > 2 * LOOK {
                        stood.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        static TOLD: Once = Once::new();
        // Nothing is measured before both look.
        if begun.iter().take(2).filter(|sees| *sees).count() < 2 {
            TOLD.call_once(|| {
                eprintln!("pauses of the host below a hundredth of a second are not seen: SCHED_FIFO is not allowed");
            });
        }
        Self { stood, over }
    }
}

/// Has the kernel run this thread whenever it has something to do (SCHED_FIFO); whether it does.
fn goes_before_all() -> bool {
    let own = rustix::thread::gettid().as_raw_nonzero().to_string();
    let done = Command::new("chrt").args(["--fifo", "--pid", "1", &own]).stderr(Stdio::null()).status();
    done.is_ok_and(|status| status.success())
}

impl Undisturbed {
    pub(crate) fn begin() -> Result<Self, hdrhistogram::CreationError> {
        Ok(Self {
            kept: Histogram::new_with_bounds(1, 60_000_000, 3)?,
            all: Histogram::new_with_bounds(1, 60_000_000, 3)?,
            present: Vec::new(),
            before: (Vec::new(), Duration::ZERO),
            ours: [true; 2],
            watch: Watch::start(),
            begun: Instant::now(),
            stolen: stolen(),
            stood: 0,
            time: Duration::ZERO,
            left_out: Duration::ZERO,
            whole: Instant::now(),
            tenth: (Vec::new(), Instant::now()),
            tenths: Vec::new(),
        })
    }

    /// Something took so long and is over `now`.
    pub(crate) fn record(&mut self, took: Duration, now: Instant) {
        if now - self.begun >= SLICE {
            self.next_slice(now);
        }
        let micros = (took.as_micros() as u64).max(1);
        self.all.saturating_record(micros);
        self.present.push(micros);
    }

    fn next_slice(&mut self, now: Instant) {
        let (stolen, stood) = (stolen(), self.watch.stood.load(Ordering::Relaxed));
        let is_ours = stolen == self.stolen && stood == self.stood;
        let (before, lasted) = &mut self.before;
        if self.ours == [true; 2] && is_ours {
            before.iter().for_each(|micros| self.kept.saturating_record(*micros));
            self.tenth.0.extend_from_slice(before);
        } else {
            self.left_out += *lasted;
        }
        self.time += *lasted;
        before.clear();
        // What is in a tenth has come before this slice, and the one that it was in before.
        let ended = self.begun;
        if ended.saturating_duration_since(self.tenth.1) >= TENTH {
            let (tenth, begun) = &mut self.tenth;
            tenth.sort_unstable();
            if tenth.len() >= TENTH_MIN {
                let (p50, p99) = (tenth[tenth.len() / 2], tenth[tenth.len() * 99 / 100]);
                self.tenths.push(Tenth { from: *begun - self.whole, to: ended - self.whole, p50, p99 });
            }
            tenth.clear();
            *begun = ended;
        }
        std::mem::swap(before, &mut self.present);
        *lasted = now - self.begun;
        self.ours = [is_ours, self.ours[0]];
        (self.stolen, self.stood, self.begun) = (stolen, stood, now);
    }

    /// What was kept.
    pub(crate) fn end(mut self) -> Kept {
        self.next_slice(Instant::now());
        self.next_slice(Instant::now());
        let tenths = std::mem::take(&mut self.tenths);
        if is_smoke() || self.kept.is_empty() {
            return Kept { latency: self.all.clone(), left_out: if is_smoke() { 0.0 } else { 1.0 }, tenths };
        }
        let left_out = self.left_out.as_secs_f64() / self.time.as_secs_f64();
        Kept { latency: self.kept.clone(), left_out, tenths }
    }
}

/// Hundredths of a second that the machine has been without its cores so far, all of them together; 0 where the host does not say.
fn stolen() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    text.lines().next().and_then(|all| all.split_whitespace().nth(8)?.parse().ok()).unwrap_or(0)
}
