use tokio::io::{AsyncReadExt, AsyncWriteExt};

use serde_json::json;

use super::*;
use crate::{sys::Clock, telemetry::metrics::Metrics};

struct Fake(bool);

static HISTORY: std::sync::LazyLock<Arc<History>> =
    std::sync::LazyLock::new(|| Arc::new(History::new(Duration::from_secs(60))));

impl Subject for Fake {
    fn ready(&self) -> (bool, Value) {
        (self.0, json!({ "reasons": if self.0 { vec![] } else { vec!["no volume is in use"] } }))
    }

    fn status(&self) -> Value {
        json!({ "phase": "serving" })
    }

    fn history(&self) -> Arc<History> {
        Arc::clone(&HISTORY)
    }

    fn metrics(&self) -> String {
        // More than the kernel's buffers hold, so that it takes a reader to send it.
        "oca_uptime_seconds 1\n".repeat(1 << 20)
    }

    fn report(&self, wanted: &ReportWanted) -> Vec<u8> {
        json!({ "version": 1, "full": wanted.full }).to_string().into_bytes()
    }

    fn drain(&self) -> Result<Value, Refused> {
        Ok(json!({ "phase": "draining" }))
    }

    fn undrain(&self) -> Result<Value, Refused> {
        Err(Refused::new(Why::Conflict, "stopping", "it is about to stop"))
    }

    fn purge(&self, order: PurgeOrder) -> Answering {
        Box::pin(std::future::ready(Ok(json!({ "assets": order.targets.len() }))))
    }

    fn fill_now(&self) -> Result<Value, Refused> {
        Err(Refused::new(Why::Conflict, "no_manifest", "there is no manifest to fill for"))
    }

    fn why(&self, path: &str) -> Result<Value, Refused> {
        Ok(json!({ "asset": path }))
    }
}

/// An admin listener of its own, until it is dropped.
struct Served {
    address: SocketAddr,
    serving: tokio::task::JoinHandle<io::Result<()>>,
}

impl Served {
    fn start(subject: Fake, connections_max: usize, patience: Patience) -> Self {
        let config = Config { listen: ([127, 0, 0, 1], 0).into(), connections_max, ..Config::default() };
        let listener = bind(&config, &mut Inherited::default()).expect("bound");
        let address = listener.local_addr().expect("bound");
        let guard = guard(&config);
        let serving = tokio::spawn(async move {
            serve_with(patience, listener, (guard, Arc::new(subject)), std::future::pending()).await
        });
        Self { address, serving }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("connected")
    }

    /// Sends `request` and reads until the connection is closed.
    async fn ask(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.expect("sent");
        rest(&mut stream).await
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn guard(config: &Config) -> Arc<Guard> {
    Guard::start(config, &Arc::new(Metrics::new(1)), &Clock::system()).expect("no files are needed")
}

fn serving() -> Served {
    Served::start(Fake(true), 64, PATIENCE)
}

/// What comes until the connection is closed or reset.
async fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    if let Err(err) = stream.read_to_end(&mut answer).await {
        assert_eq!(err.kind(), io::ErrorKind::ConnectionReset);
    }
    String::from_utf8(answer).expect("text")
}

fn request(method: &str, path: &str, fields: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{fields}\r\n")
}

fn get(path: &str) -> String {
    request("GET", path, "")
}

#[tokio::test]
async fn what_operators_ask_is_answered() {
    let served = serving();
    assert!(served.ask(&get("/live")).await.starts_with("HTTP/1.1 200 "));
    assert!(served.ask(&get("/ready")).await.starts_with("HTTP/1.1 200 "));
    assert!(served.ask(&get("/")).await.contains("/metrics"), "the index names the pages");
    assert!(served.ask(&get("/etc/passwd")).await.starts_with("HTTP/1.1 404 "));
    let status = served.ask(&get("/status")).await;
    assert!(status.contains("content-type: application/json") && status.contains("\"serving\""), "{status}");
    let metrics = served.ask(&get("/metrics")).await;
    assert!(metrics.contains("content-type: text/plain; version=0.0.4"));
    let (_, body) = metrics.split_once("\r\n\r\n").expect("a head");
    assert_eq!(body.len(), 21 << 20, "all of it");
}

#[tokio::test]
async fn what_is_not_ready_says_why_and_still_lives() {
    let served = Served::start(Fake(false), 64, PATIENCE);
    let answer = served.ask(&get("/ready")).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("no volume is in use"), "{answer}");
    assert!(served.ask(&get("/live")).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn other_methods_are_refused() {
    let served = serving();
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        let answer = served.ask(&request(method, "/status", "Content-Length: 0\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
        assert!(answer.contains("allow: GET,HEAD"), "{answer}");
    }
}

const BROWSER: &str = "Accept: text/html,application/xhtml+xml,*/*;q=0.8\r\n";

#[tokio::test]
async fn browsers_get_a_page_that_runs_nothing_from_elsewhere() {
    let served = serving();
    let page = served.ask(&request("GET", "/", BROWSER)).await;
    let (head, body) = page.split_once("\r\n\r\n").expect("a head");
    assert!(
        head.contains("content-type: text/html") && head.contains("content-security-policy: default-src 'none'"),
        "{head}"
    );
    assert!(!head.contains("unsafe-inline") && !body.contains(" style=") && !body.contains("http://"), "{body}");
    for file in ["page.css", "page.js"] {
        assert!(body.contains(&format!("=\"{file}\"")), "{body}");
        assert!(served.ask(&get(&format!("/{file}"))).await.starts_with("HTTP/1.1 200 "));
    }
    assert!(served.ask(&get("/")).await.contains("content-type: text/plain"), "others get a list");
}

#[tokio::test]
async fn who_watches_is_told_the_past_and_then_what_comes_and_many_more_are_not() {
    let served = Served::start(Fake(true), 4, PATIENCE);
    HISTORY.add(Sample { time_unix: 41, ..Sample::default() });
    let mut watching = Vec::new();
    for _ in 0..2 {
        let mut stream = served.connect().await;
        stream.write_all(get("/events").as_bytes()).await.expect("sent");
        read_until(&mut stream, "event: now").await;
        watching.push(stream);
    }
    let refused = served.ask(&get("/events")).await;
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("admin.streams_max"), "{refused}");
    HISTORY.add(Sample { time_unix: 4242, ..Sample::default() });
    for stream in &mut watching {
        let told = read_until(stream, "[4242,").await;
        assert!(told.contains("event: now"), "{told}");
    }
    // A place that is given up is another's.
    drop(watching.pop());
    loop {
        HISTORY.add(Sample { time_unix: 4243, ..Sample::default() });
        let mut stream = served.connect().await;
        stream.write_all(get("/events").as_bytes()).await.expect("sent");
        if read_until(&mut stream, "\r\n").await.starts_with("HTTP/1.1 200 ") {
            break;
        }
    }
}

async fn read_until(stream: &mut TcpStream, wanted: &str) -> String {
    let mut all = Vec::new();
    while !String::from_utf8_lossy(&all).contains(wanted) {
        assert!(stream.read_buf(&mut all).await.expect("it comes") > 0, "{}", String::from_utf8_lossy(&all));
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// A command, with a body and the fields that go with it.
fn post(path: &str, body: &str, fields: &str) -> String {
    request("POST", path, &format!("Content-Length: {}\r\n{fields}", body.len())) + body
}

const JSON: &str = "Content-Type: application/json; charset=utf-8\r\n";

#[tokio::test]
async fn commands_are_answered_with_json() {
    let served = serving();
    for body in ["", "{}"] {
        let answer = served.ask(&post("/v1/drain", body, JSON)).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(r#"{"phase":"draining"}"#), "{answer}");
    }
    let answer = served.ask(&post("/v1/undrain", "{}", JSON)).await;
    let expected = r#"{"error":{"code":"stopping","message":"it is about to stop"}}"#;
    assert!(answer.starts_with("HTTP/1.1 409 ") && answer.ends_with(expected), "{answer}");
}

#[tokio::test]
async fn a_purge_is_ordered_by_paths_and_prefixes() {
    let served = serving();
    let answer = served.ask(&post("/v1/purge", r#"{"paths": ["/a"], "prefixes": ["/b/"]}"#, JSON)).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(r#"{"assets":2}"#), "{answer}");
    let answer = served.ask(&post("/v1/purge", r#"{"paths": ["a"]}"#, JSON)).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains(r#""code":"no_path""#), "{answer}");
}

#[tokio::test]
async fn what_is_no_command_is_told_why() {
    let served = serving();
    let long = format!("{{\"x\":\"{}\"}}", "x".repeat(1 << 20));
    for (body, fields, status, code) in [
        ("{}", "", "415 ", "not_json"),
        ("{}", "Content-Type: text/plain\r\n", "415 ", "not_json"),
        ("{", JSON, "400 ", "malformed"),
        ("{\"all\": true}", JSON, "400 ", "malformed"),
        (&long, JSON, "413 ", "too_large"),
    ] {
        let answer = served.ask(&post("/v1/drain", body, fields)).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert!(answer.contains(&format!("{{\"error\":{{\"code\":\"{code}\"")), "{answer}");
    }
    let answer = served.ask(&get("/v1/drain")).await;
    assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: POST"), "{answer}");
}

#[tokio::test]
async fn head_gives_the_head_of_get() {
    let served = serving();
    for path in ["/live", "/ready", "/status", "/metrics"] {
        let answer = served.ask(&request("HEAD", path, "")).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n"), "{path}: {answer}");
        assert!(answer.contains("content-length: "), "{path}: {answer}");
    }
}

#[tokio::test]
async fn a_body_is_not_waited_for() {
    let served = serving();
    for fields in ["Content-Length: 1000000000000\r\n", "Transfer-Encoding: chunked\r\n"] {
        let answer = served.ask(&request("GET", "/live", fields)).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}

#[tokio::test]
async fn heads_are_bounded() {
    let served = serving();
    let long = served.ask(&request("GET", "/live", &format!("X: {}\r\n", "x".repeat(64 << 10)))).await;
    assert!(long.is_empty() || long.starts_with("HTTP/1.1 431 "), "{long}");
    let many = served.ask(&request("GET", "/live", &"X: y\r\n".repeat(200))).await;
    assert!(many.is_empty() || many.starts_with("HTTP/1.1 431 "), "{many}");
    let garbage = served.ask("\u{0}\u{1}\u{2}\r\n\r\n").await;
    assert!(garbage.starts_with("HTTP/1.1 400 "), "{garbage}");
}

#[tokio::test]
async fn strangers_who_only_hold_on_give_way() {
    let served = Served::start(Fake(true), 4, PATIENCE);
    let mut strangers = Vec::new();
    for _ in 0..4 {
        strangers.push(served.connect().await);
    }
    assert!(served.ask(&get("/live")).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(rest(&mut strangers[0]).await, "", "the oldest is closed");
    strangers[1].write_all(get("/live").as_bytes()).await.expect("sent");
    assert!(rest(&mut strangers[1]).await.starts_with("HTTP/1.1 200 "), "one made room, and no more");
}

#[tokio::test]
async fn who_comes_when_all_are_at_work_waits() {
    let served = Served::start(Fake(true), 1, PATIENCE);
    let mut first = served.connect().await;
    first.write_all(get("/metrics").as_bytes()).await.expect("sent");
    first.read_exact(&mut [0; 12]).await.expect("its answer has begun");
    let live = get("/live");
    let mut second = std::pin::pin!(served.ask(&live));
    let early = tokio::time::timeout(Duration::from_millis(50), second.as_mut()).await;
    assert!(early.is_err(), "there is no place");
    assert!(rest(&mut first).await.len() > 21 << 20, "all of it");
    assert!(second.await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn who_sends_nothing_loses_the_place() {
    let patience = Patience { head: Duration::from_millis(100), ..PATIENCE };
    let served = Served::start(Fake(true), 1, patience);
    for begin in ["", "GET /li", "GET /live HTTP/1.1\r\nHost: 127.0.0.1\r\n"] {
        let answer = served.ask(begin).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408 "), "{answer}");
    }
    let answer = served.ask("GET /live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "closed after it, though it was to be kept: {answer}");
}

#[tokio::test]
async fn who_reads_nothing_loses_the_place() {
    let (connection, last_answer) = (Duration::from_millis(100), Duration::from_millis(100));
    let served = Served::start(Fake(true), 1, Patience { connection, last_answer, ..PATIENCE });
    let mut first = served.connect().await;
    first.write_all(get("/metrics").as_bytes()).await.expect("sent");
    first.read_exact(&mut [0; 12]).await.expect("its answer has begun");
    assert!(served.ask(&get("/live")).await.starts_with("HTTP/1.1 200 "), "the place is free again");
    assert!(rest(&mut first).await.len() < 21 << 20, "what it had not read is cut");
}

#[tokio::test]
async fn a_kept_connection_ends_between_answers_and_not_within_one() {
    let served = Served::start(Fake(true), 1, Patience { connection: Duration::from_millis(100), ..PATIENCE });
    let mut stream = served.connect().await;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").await.expect("sent");
    stream.read_exact(&mut [0; 12]).await.expect("its answer has begun");
    // It is read only when the connection's time is over, which shows by the next in line being kept waiting past it.
    let live = get("/live");
    let second = served.ask(&live);
    let mut second = std::pin::pin!(second);
    assert!(tokio::time::timeout(Duration::from_millis(300), second.as_mut()).await.is_err());
    let answer = rest(&mut stream).await;
    let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert_eq!(body.len(), 21 << 20, "all of it");
    assert!(second.await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn stopping_ends_the_listener() {
    let config = Config { listen: ([127, 0, 0, 1], 0).into(), ..Config::default() };
    let listener = bind(&config, &mut Inherited::default()).expect("bound");
    let address = listener.local_addr().expect("bound");
    assert!(
        bind(&Config { listen: address, ..config.clone() }, &mut Inherited::default()).is_err(),
        "an address that is taken is said at once"
    );
    let guard = guard(&config);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stopped = async { drop(stopped.await) };
    let subject: Arc<dyn Subject> = Arc::new(Fake(true));
    let serving = tokio::spawn(async move { serve(listener, guard, subject, stopped).await });
    drop(stop);
    assert!(serving.await.expect("no panic").is_ok());
    assert!(TcpStream::connect(address).await.is_err());
}
