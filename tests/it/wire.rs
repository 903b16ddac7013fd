//! How bytes leave, system call by system call, and connections at the edges of their lives.

use std::{
    collections::HashMap,
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Appliance, Client, Content, Origin, Random, Setup, missing_tool, request, wait_until};

const PATIENCE: Duration = Duration::from_secs(20);
const LENGTH: u64 = 3_000_000;

/// An appliance that holds `/film.mp4`, `length` bytes.
fn hot_film(length: u64) -> (Origin, Appliance, Content) {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 42, length);
    let appliance = Setup::new(&origin).start();
    content.assert_is(0, &appliance.get("/film.mp4").body);
    (origin, appliance, content)
}

/// The system calls of a running process that move bytes.
struct Trace {
    strace: Child,
    file: PathBuf,
    _home: tempfile::TempDir,
}

impl Trace {
    /// `None` where nobody may trace.
    fn begin(appliance: &Appliance) -> Option<Self> {
        if missing_tool("strace") {
            return None;
        }
        let home = tempfile::tempdir().expect("a scratch folder");
        let file = home.path().join("calls");
        let pid = appliance.pid().as_raw_nonzero().to_string();
        let calls =
            "setsockopt,sendfile,sendmsg,sendto,splice,write,writev,read,readv,pread64,preadv,preadv2,recvfrom,recvmsg";
        let mut strace = Command::new("strace")
            .args(["-f", "-y", "-s", "64", "-e", calls, "-p", &pid, "-o"])
            .arg(&file)
            .stderr(Stdio::null())
            .spawn()
            .expect("strace starts");
        let mut allowed = true;
        wait_until("every thread is traced", PATIENCE, || {
            allowed = strace.try_wait().expect("it is our child").is_none();
            !allowed || is_traced(&pid)
        });
        if !allowed {
            eprintln!("SKIPPED: processes may not be traced here");
            return None;
        }
        Some(Self { strace, file, _home: home })
    }

    /// The calls that were made, one a line, once they are `all`: who has what was sent may be ahead of the line that says so.
    fn end(mut self, all: impl Fn(&[String]) -> bool) -> Vec<String> {
        let begun = Instant::now();
        while !all(&self.read()) && begun.elapsed() < PATIENCE {
            thread::park_timeout(Duration::from_millis(10));
        }
        kill_process(Pid::from_child(&self.strace), Signal::INT).expect("it runs");
        self.strace.wait().expect("it is our child");
        self.read()
    }

    fn read(&self) -> Vec<String> {
        joined(&fs::read_to_string(&self.file).expect("what it wrote"))
    }
}

/// The lines of a trace with each call on one: where another thread's call came between, strace writes its beginning
/// (`PID sendfile(3, … <unfinished ...>`) and its end (`PID <... sendfile resumed> …) = 5`) on two.
fn joined(trace: &str) -> Vec<String> {
    let mut calls: Vec<String> = Vec::new();
    let mut open: HashMap<&str, usize> = HashMap::new();
    for line in trace.lines() {
        let thread = line.split(' ').next().unwrap_or_default();
        if let Some((_, end)) = line.split_once(" resumed>")
            && let Some(at) = open.remove(thread)
        {
            calls[at].push_str(end);
        } else if let Some(begin) = line.strip_suffix("<unfinished ...>") {
            open.insert(thread, calls.len());
            calls.push(begin.to_owned());
        } else {
            calls.push(line.to_owned());
        }
    }
    calls
}

#[test]
fn a_call_that_another_came_between_is_one_call() {
    let trace = "7  sendfile(3, 4, [5], 9 <unfinished ...>\n8  write(2, \"x\", 1) = 1\n7  <... sendfile resumed> => [14], 9) = 9\n";
    assert_eq!(joined(trace), ["7  sendfile(3, 4, [5], 9  => [14], 9) = 9", "8  write(2, \"x\", 1) = 1"]);
}

fn is_traced(pid: &str) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    tasks.filter_map(Result::ok).all(|task| {
        // A thread may end between being listed and being looked at.
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        !status.contains("TracerPid:\t0\n")
    })
}

/// What a call gave back.
fn result(call: &str) -> u64 {
    call.rsplit_once(" = ").and_then(|(_, result)| result.split(' ').next()?.parse().ok()).unwrap_or(0)
}

/// Whether a call asks how long a file is, now and then: somebody may have cut it short.
fn is_look(call: &str) -> bool {
    call.contains(" statx(") || call.contains(" fstat(")
}

#[test]
fn hot_bytes_are_never_read_only_sent_from_the_file() {
    let (_origin, appliance, content) = hot_film(LENGTH);
    let mut client = appliance.connect();
    content.assert_is(0, &client.range("/film.mp4", "bytes=0-9").body);
    let Some(trace) = Trace::begin(&appliance) else { return };
    content.assert_is(5000, &client.range("/film.mp4", "bytes=5000-1004999").body);
    content.assert_is(0, &client.get("/film.mp4").body);
    let bytes = |calls: &[String], name: &str| -> u64 {
        calls.iter().filter(|call| call.contains(name)).map(|call| result(call)).sum()
    };
    let handed_on = |calls: &[String]| bytes(calls, " sendfile(") + bytes(calls, " sendmsg(");
    let calls = trace.end(|calls| handed_on(calls) > 1_000_000 + LENGTH);
    let volume = appliance.volume().display().to_string();
    let of_assets: Vec<&String> = calls
        .iter()
        .filter(|call| call.contains(&volume) && !call.contains("catalog.sqlite") && !is_look(call))
        .collect();
    // Where a full socket has left a small rest of a turn, that goes by one call without a file, as small ranges do.
    let copied = (1_000_000 + LENGTH).checked_sub(bytes(&calls, " sendfile("));
    assert!(copied.is_some_and(|copied| copied < 256 << 10), "{copied:?}: {calls:#?}");
    assert!(of_assets.iter().all(|call| call.contains(" sendfile(")), "asset files are read: {of_assets:#?}");
}

/// What goes out in several turns does so in whole packets, and its end waits for nothing.
#[test]
fn a_long_body_is_corked_until_its_end_has_been_handed_on() {
    let (_origin, appliance, content) = hot_film(LENGTH);
    let mut client = appliance.connect();
    content.assert_is(0, &client.range("/film.mp4", "bytes=0-9").body);
    let Some(trace) = Trace::begin(&appliance) else { return };
    // In one turn, then in several.
    content.assert_is(0, &client.range("/film.mp4", "bytes=0-49999").body);
    content.assert_is(0, &client.get("/film.mp4").body);
    let is_off = |call: &String| call.contains("TCP_CORK, [0]");
    let is_sent = |call: &String| call.contains(" sendfile(");
    let calls = trace.end(|calls| {
        let ended = calls.iter().rposition(is_off);
        ended.is_some()
            && ended > calls.iter().rposition(is_sent)
            && calls.iter().filter(|call| call.contains("200 OK")).count() == 1
    });
    let corks: Vec<(usize, &String)> = calls.iter().enumerate().filter(|(_, call)| call.contains("TCP_CORK")).collect();
    let is_on = |call: &String| call.contains("TCP_CORK, [1]");
    assert!(corks.len() >= 2 && corks.len().is_multiple_of(2), "{calls:#?}");
    assert!(corks.chunks(2).all(|pair| is_on(pair[0].1) && !is_on(pair[1].1)), "{calls:#?}");
    let first = calls.iter().position(|call| call.contains(" sendfile(")).expect("bytes are sent");
    assert!(first < corks[0].0, "a body that goes in one turn is not: {calls:#?}");
    let last = calls.iter().rposition(|call| call.contains(" sendfile(")).expect("bytes are sent");
    assert!(last < corks[corks.len() - 1].0, "nothing ends it: {calls:#?}");
}

#[test]
fn a_small_range_leaves_with_its_head_in_one_call() {
    let (_origin, appliance, content) = hot_film(LENGTH);
    let mut client = appliance.connect();
    content.assert_is(0, &client.range("/film.mp4", "bytes=0-9").body);
    let Some(trace) = Trace::begin(&appliance) else { return };
    for n in 0..10 {
        content.assert_is(n, &client.range("/film.mp4", &format!("bytes={n}-{}", n + 3999)).body);
    }
    let calls =
        trace.end(|calls| calls.iter().filter(|call| call.contains("206 Partial") && result(call) > 0).count() == 10);
    let sends: Vec<&String> = calls
        .iter()
        .filter(|call| call.contains("send") && call.contains("TCP") || call.contains("206 Partial"))
        .collect();
    assert_eq!(sends.len(), 10, "{calls:#?}");
    assert!(sends.iter().all(|call| call.contains(" sendmsg(") && result(call) > 4000), "{sends:#?}");
    // One more would be asked in vain.
    let receives = calls.iter().filter(|call| call.contains(" recv")).count();
    assert!(receives <= 11, "{receives} reads for 10 requests: {calls:#?}");
}

/// A client whose window is small, so that most of a response stays with the server until it reads.
fn narrow(appliance: &Appliance) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a descriptor");
    socket.set_recv_buffer_size(8 << 10).expect("a small buffer");
    socket.connect(&appliance.http().into()).expect("it listens");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    stream
}

fn body_of(stream: &mut TcpStream) -> Vec<u8> {
    let mut received = Vec::new();
    stream.read_to_end(&mut received).expect("whole");
    let end = received.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    received.split_off(end + 4)
}

#[test]
fn draining_waits_for_the_last_byte_to_be_taken() {
    // Less than a window: the body has been handed out whole, and waits for the socket.
    let length = (2 << 20) - 5;
    let (_origin, mut appliance, content) = hot_film(length);
    let mut client = narrow(&appliance);
    client.write_all(&request("GET", "/film.mp4", &[])).expect("it is taken");
    client.read_exact(&mut [0; 12]).expect("it begins");
    appliance.signal(Signal::TERM);
    wait_until("nothing new is taken", PATIENCE, || Client::try_connect(appliance.http()).is_err());
    let mut rest = body_of(&mut client);
    assert_eq!(rest.len() as u64, length, "cut");
    content.assert_is(0, &std::mem::take(&mut rest));
    assert!(appliance.wait_for_exit(PATIENCE).success());
}

#[test]
fn a_client_that_has_said_its_last_word_gets_its_answer() {
    for length in [1000, 1 << 20, 16 << 20] {
        let (_origin, appliance, content) = hot_film(length);
        let mut client = narrow(&appliance);
        client.write_all(&request("GET", "/film.mp4", &[])).expect("it is taken");
        client.shutdown(Shutdown::Write).expect("open");
        let body = body_of(&mut client);
        assert_eq!(body.len() as u64, length, "cut");
        content.assert_is(0, &body);
        wait_until("the connection ends", PATIENCE, || appliance.metric("oca_connections", "") == 0.0);
    }
}

#[test]
fn a_client_that_hangs_up_is_forgotten_at_once() {
    let (_origin, appliance, content) = hot_film(16 << 20);
    for _ in 0..20 {
        let mut client = narrow(&appliance);
        client.write_all(&request("GET", "/film.mp4", &[])).expect("it is taken");
        client.read_exact(&mut [0; 100]).expect("it begins");
    }
    wait_until("they are forgotten", PATIENCE, || appliance.metric("oca_connections", "") == 0.0);
    content.assert_is(0, &appliance.get("/film.mp4").body);
}

#[test]
fn a_viewer_who_leaves_while_its_asset_is_fetched_is_forgotten() {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 1000);
    let gate = origin.gate("/film.mp4");
    let appliance = Setup::new(&origin).start();
    let mut client = appliance.connect();
    client.send(&request("GET", "/film.mp4", &[]));
    gate.wait_for(1);
    drop(client);
    wait_until("it is forgotten", PATIENCE, || appliance.metric("oca_connections", "") == 0.0);
    drop(gate);
    content.assert_is(0, &appliance.get("/film.mp4").body);
}

#[test]
fn what_is_sent_ahead_is_answered_in_order_whatever_it_is() {
    let (_origin, appliance, content) = hot_film(LENGTH);
    let mut random = Random::new();
    let mut client = appliance.connect();
    let (mut bytes, mut expected) = (Vec::new(), Vec::new());
    for _ in 0..300 {
        let start = random.number(0, LENGTH - 50_000);
        let end = start + random.number(1, 50_000);
        let range = format!("bytes={start}-{}", end - 1);
        let (method, path, fields, status) = match random.number(0, 8) {
            0 => ("HEAD", "/film.mp4", vec![], 200),
            1 => ("GET", "/none.mp4", vec![], 404),
            2 => ("GET", "/film.mp4", vec![("Range", "bytes=9999999-".to_owned())], 416),
            3 => ("GET", "/film.mp4", vec![("If-None-Match", "*".to_owned())], 304),
            4 => ("OPTIONS", "/film.mp4", vec![], 204),
            5 => ("DELETE", "/film.mp4", vec![], 405),
            _ => ("GET", "/film.mp4", vec![("Range", range)], 206),
        };
        let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        bytes.extend(request(method, path, &fields));
        expected.push((method, status, start, end));
    }
    // In pieces that end anywhere, all of them before the first answer is read.
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let (now, later) = rest.split_at(rest.len().min(random.number(1, 3000) as usize));
        client.send(now);
        rest = later;
    }
    for (method, status, start, end) in expected {
        let response = client.read_response(method).expect("whole");
        assert_eq!(response.status(), status);
        if status == 206 {
            assert_eq!(response.body.len() as u64, end - start);
            content.assert_is(start, &response.body);
        }
    }
}

#[test]
fn a_head_that_comes_byte_by_byte_is_one_request() {
    let (_origin, appliance, content) = hot_film(LENGTH);
    let mut client = appliance.connect();
    for _ in 0..3 {
        for byte in request("GET", "/film.mp4", &[("Range", "bytes=7-1006")]) {
            client.send(&[byte]);
        }
        let response = client.read_response("GET").expect("whole");
        assert_eq!(response.status(), 206);
        content.assert_is(7, &response.body);
    }
}

#[test]
fn a_body_that_nobody_reads_ends_the_connection_after_the_answer() {
    let (_origin, appliance, _) = hot_film(1000);
    let mut client = appliance.connect();
    client.send(
        b"POST /film.mp4 HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\n\r\nabcGET /film.mp4 HTTP/1.1\r\nHost: t\r\n\r\n",
    );
    let response = client.read_response("POST").expect("whole");
    assert_eq!((response.status(), response.field("connection")), (405, Some("close")));
    assert!(response.field("allow").is_some());
    assert!(client.until_closed().is_empty());
}
