//! A steering service as docs/report.md says, and as it should not be.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use serde_json::Value;

use super::{assert_valid, wait_until};
use crate::{asset::Fingerprint, steering::Summary};

/// How a service behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    Well,
    /// Takes reports and hangs up before it answers.
    LosesReplies,
    Silent,
    Endless,
    Nonsense,
    Status(u16),
}

/// What a service knows of the only box it hears of.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) boot_id: String,
    pub(super) revision: Option<u64>,
    pub(super) held: Vec<Fingerprint>,
    pub(super) clients: Option<(u64, Value)>,
}

#[derive(Debug)]
pub(super) struct Inside {
    pub(super) mood: Mood,
    pub(super) known: Heard,
    pub(super) reports: Vec<Value>,
    /// Whether it says that it reads gzip, and how many of the reports came in it.
    pub(super) reads_gzip: bool,
    pub(super) compressed: usize,
    /// Further members of a reply.
    pub(super) asks: Value,
}

/// A steering service on a socket.
pub(super) struct Fake {
    address: SocketAddr,
    pub(super) inside: Arc<Mutex<Inside>>,
    gone: Arc<AtomicBool>,
}

impl Fake {
    pub(super) fn start(address: &str) -> Self {
        let listener = TcpListener::bind(address).expect("a port");
        let address = listener.local_addr().expect("bound");
        let inside = Inside {
            mood: Mood::Well,
            known: Heard::default(),
            reports: Vec::new(),
            reads_gzip: false,
            compressed: 0,
            asks: Value::Null,
        };
        let fake = Self { address, inside: Arc::new(Mutex::new(inside)), gone: Arc::default() };
        let (inside, gone) = (Arc::clone(&fake.inside), Arc::clone(&fake.gone));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if gone.load(Ordering::Acquire) {
                    return;
                }
                let (inside, gone) = (Arc::clone(&inside), Arc::clone(&gone));
                // Ends by an error when the other side hangs up.
                std::thread::spawn(move || drop(stream.and_then(|stream| serve(stream, &inside, &gone))));
            }
        });
        fake
    }

    pub(super) fn url(&self) -> url::Url {
        format!("http://{}/v1/report", self.address).parse().expect("valid")
    }

    pub(super) fn set(&self, mood: Mood) {
        self.inside.lock().mood = mood;
    }

    pub(super) fn count(&self) -> usize {
        self.inside.lock().reports.len()
    }

    /// Whether a report after number `first` told everything that is held.
    pub(super) fn was_told_everything_after(&self, first: usize) -> bool {
        self.inside.lock().reports.iter().skip(first + 1).any(|report| report["availability"]["full"].is_object())
    }

    pub(super) fn last(&self) -> Value {
        self.inside.lock().reports.last().cloned().expect("a report")
    }

    /// Nobody listens any more, and nothing is remembered.
    pub(super) fn end(self) -> SocketAddr {
        self.gone.store(true, Ordering::Release);
        drop(TcpStream::connect(self.address));
        // Until the port is free: the thread above lets go of it.
        wait_until("the port is free", || TcpListener::bind(self.address).is_ok());
        self.address
    }
}

/// Answers the requests of one connection.
fn serve(stream: TcpStream, inside: &Mutex<Inside>, gone: &AtomicBool) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let (mut length, mut compressed, mut line) = (0, false, String::new());
        while reader.read_line(&mut line)? > 2 {
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().map_err(std::io::Error::other)?;
            }
            compressed |= line.to_ascii_lowercase().starts_with("content-encoding: gzip");
            line.clear();
        }
        if line.is_empty() || gone.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        if compressed {
            let small = std::mem::take(&mut body);
            flate2::read::GzDecoder::new(&small[..]).read_to_end(&mut body)?;
        }
        let report: Value = serde_json::from_slice(&body).map_err(std::io::Error::other)?;
        assert_valid(&report);
        let (mood, reads_gzip, reply) = {
            let mut inside = inside.lock();
            inside.compressed += usize::from(compressed);
            let reply = heard(&mut inside, report);
            (inside.mood, inside.reads_gzip, reply)
        };
        let says = if reads_gzip { "Accept-Encoding: gzip\r\n" } else { "" };
        let head = |status: &str, length: usize| format!("HTTP/1.1 {status}\r\n{says}Content-Length: {length}\r\n\r\n");
        match mood {
            Mood::Well => stream.write_all(format!("{}{reply}", head("200 OK", reply.len())).as_bytes())?,
            Mood::LosesReplies => return Ok(()),
            Mood::Silent => drop(reader.read_line(&mut line)?),
            Mood::Nonsense => stream.write_all(format!("{}hello", head("200 OK", 5)).as_bytes())?,
            Mood::Status(302) => {
                stream.write_all(b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n")?;
            }
            Mood::Status(status) => {
                stream.write_all(
                    format!("HTTP/1.1 {status} No\r\nRetry-After: 30\r\nContent-Length: 0\r\n\r\n").as_bytes(),
                )?;
            }
            Mood::Endless => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
                loop {
                    stream.write_all(format!("1000\r\n{}\r\n", " ".repeat(0x1000)).as_bytes())?;
                }
            }
        }
    }
}

/// What docs/report.md says that a service does.
fn heard(inside: &mut Inside, report: Value) -> String {
    let boot_id = report["appliance"]["boot_id"].as_str().expect("text").to_owned();
    let known = &mut inside.known;
    if known.boot_id != boot_id {
        *known = Heard { boot_id, ..Heard::default() };
    }
    let availability = &report["availability"];
    let list = |value: &Value| {
        let summary: Summary = serde_json::from_value(value.clone()).expect("a summary");
        summary.read().expect("well written")
    };
    if availability["full"].is_object() {
        known.held = list(&availability["full"]);
        known.revision = availability["revision"].as_u64();
    } else if known.revision.is_some() && availability["delta"]["since"].as_u64() == known.revision {
        for gone in list(&availability["delta"]["removed"]) {
            let at = known.held.binary_search(&gone).expect("only what is held is removed");
            known.held.remove(at);
        }
        known.held.extend(list(&availability["delta"]["added"]));
        known.held.sort_unstable();
        known.revision = availability["revision"].as_u64();
    }
    let is_current = known.revision == availability["revision"].as_u64();
    if is_current {
        assert_eq!(availability["held"], known.held.len());
    }
    let clients = &report["clients"];
    if clients["prefixes"].is_array() {
        known.clients = Some((clients["revision"].as_u64().expect("a number"), clients["prefixes"].clone()));
    }
    let mut reply = serde_json::json!({
        "version": 1,
        "acknowledged": { "availability": known.revision, "clients": known.clients.as_ref().map(|(revision, _)| revision) },
        "full": !is_current,
    });
    if let (Value::Object(reply), Value::Object(asks)) = (&mut reply, &inside.asks) {
        reply.extend(asks.clone());
    }
    inside.reports.push(report);
    reply.to_string()
}
