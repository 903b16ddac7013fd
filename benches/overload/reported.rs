//! What the appliance says of its load, beside what was seen from outside.
//!
//! Once a second `/status` is asked. What was seen since the last time is averaged as the appliance averages what it counts (`health::Meter`),
//! so that both say the same where both are right.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use oca::health::Meter;
use serde_json::Value;

use super::{crowd::Seen, support::Fallible};

/// How often it is asked.
const INTERVAL: Duration = Duration::from_secs(1);

/// What was said at the end of a step, and what was seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reported {
    state: String,
    reasons: Vec<String>,
    gbps: f64,
    requests: f64,
    connections: f64,
    headroom_gbps: Option<f64>,
    refused_percent: f64,
    queue_delay_ms: f64,
    /// Averaged as the appliance does.
    meant_gbps: f64,
    meant_requests: f64,
    open: f64,
    /// Over the last interval.
    pub(crate) seen_gbps: f64,
    /// Longest wait for an answer of the admin listener, in milliseconds.
    answered_ms: f64,
}

impl Reported {
    pub(crate) const HEAD: &'static str = "| offered | state | reasons | egress Gb/s: said | seen | requests/s: said | seen | connections: said | seen | egress and headroom, of what was \
                                           the most | refused | queue delay ms | `/status` within ms |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|";

    /// `peak`: bits per second that the appliance was seen to send at most.
    pub(crate) fn line(&self, factor: f64, peak: f64) -> String {
        let room = self
            .headroom_gbps
            .map_or_else(|| "not known".into(), |room| format!("{:.0} %", (self.gbps + room) * 1e11 / peak));
        format!(
            "| {factor}x | {} | {} | {:.2} | {:.2} | {:.0} | {:.0} | {:.0} | {:.0} | {room} | {:.0} % | {:.1} | {:.0} |",
            self.state,
            self.reasons.join(", "),
            self.gbps,
            self.meant_gbps,
            self.requests,
            self.meant_requests,
            self.connections,
            self.open,
            self.refused_percent,
            self.queue_delay_ms,
            self.answered_ms,
        )
    }
}

/// Asks on a thread of its own.
pub(crate) struct Watching {
    seen: Arc<Seen>,
    last: Arc<Mutex<Reported>>,
    stop: Arc<AtomicBool>,
    asking: JoinHandle<Fallible<()>>,
}

impl Watching {
    pub(crate) fn start(admin: SocketAddr, _range: u64) -> Self {
        let (seen, last, stop) = (Arc::<Seen>::default(), Arc::<Mutex<Reported>>::default(), Arc::default());
        let asking = {
            let (seen, last, stop) = (Arc::clone(&seen), Arc::clone(&last), Arc::clone(&stop));
            thread::spawn(move || ask_for_ever(admin, (&seen, &last, &stop)))
        };
        Self { seen, last, stop, asking }
    }

    pub(crate) fn seen(&self) -> &Arc<Seen> {
        &self.seen
    }

    pub(crate) fn begin_step(&self) {
        self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner).answered_ms = 0.0;
    }

    pub(crate) fn end_step(&self) -> Fallible<Reported> {
        if self.asking.is_finished() {
            return Err("the admin listener does not answer".into());
        }
        Ok(self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone())
    }

    pub(crate) fn stop(self) -> Fallible<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.asking.join().map_err(|_| "the watch panicked")?
    }
}

fn ask_for_ever(admin: SocketAddr, (seen, last, stop): (&Seen, &Mutex<Reported>, &AtomicBool)) -> Fallible<()> {
    let (mut egress, mut requests) = (Meter::default(), Meter::default());
    let (mut bytes, mut answers, mut at) = (0, 0, Instant::now());
    while !stop.load(Ordering::Relaxed) {
        thread::park_timeout(INTERVAL.saturating_sub(at.elapsed()));
        let elapsed = at.elapsed();
        if elapsed < INTERVAL {
            continue;
        }
        at += elapsed;
        let since = |now: u64, before: &mut u64| (now - std::mem::replace(before, now)) as f64 / elapsed.as_secs_f64();
        let bits = since(seen.bytes.load(Ordering::Relaxed), &mut bytes) * 8.0;
        egress.add(bits, elapsed);
        requests.add(since(seen.answers.load(Ordering::Relaxed), &mut answers), elapsed);
        let open = seen.open.load(Ordering::Relaxed) as f64;
        let asked = Instant::now();
        let status = status(admin)?;
        let answered_ms = asked.elapsed().as_secs_f64() * 1000.0;
        let load = &status["load"];
        let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
        let reasons = status["health"]["reasons"].as_array().into_iter().flatten();
        let mut last = last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *last = Reported {
            state: status["health"]["state"].as_str().unwrap_or("?").into(),
            reasons: reasons.filter_map(|reason| Some(format!("`{}`", reason["code"].as_str()?))).collect(),
            gbps: number(&load["egress"]["bits_per_second"]["short"]) / 1e9,
            requests: number(&load["requests"]["short"]),
            connections: number(&load["connections"]["open"]),
            headroom_gbps: load["headroom"]["bits_per_second"].as_f64().map(|bits| bits / 1e9),
            refused_percent: number(&load["refused_percent"]["short"]),
            queue_delay_ms: number(&load["queue_delay_seconds"]["short"]) * 1000.0,
            meant_gbps: egress.averages().short / 1e9,
            meant_requests: requests.averages().short,
            open,
            seen_gbps: bits / 1e9,
            answered_ms: last.answered_ms.max(answered_ms),
        };
    }
    Ok(())
}

fn status(admin: SocketAddr) -> io::Result<Value> {
    let mut stream = TcpStream::connect(admin)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str(body).map_err(io::Error::other)
}
