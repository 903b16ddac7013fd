use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

struct Fake(Result<(), Vec<String>>);

impl Subject for Fake {
    fn ready(&self) -> Result<(), Vec<String>> {
        self.0.clone()
    }

    fn status(&self) -> Value {
        json!({ "phase": "serving" })
    }

    fn metrics(&self) -> String {
        // More than the kernel's buffers hold, so that it takes a reader to send it.
        "oca_uptime_seconds 1\n".repeat(1 << 20)
    }
}

/// An admin listener of its own, until it is dropped.
struct Served {
    address: std::net::SocketAddr,
    serving: tokio::task::JoinHandle<io::Result<()>>,
}

impl Served {
    fn start(subject: Fake, connections_max: usize, patience: Patience) -> Self {
        let config = Config { listen: ([127, 0, 0, 1], 0).into(), connections_max };
        let listener = bind(&config).expect("bound");
        let address = listener.local_addr().expect("bound");
        let serving = tokio::spawn(async move {
            serve_with(patience, listener, (&config, Arc::new(subject)), std::future::pending()).await
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

fn serving() -> Served {
    Served::start(Fake(Ok(())), 64, PATIENCE)
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
    format!("{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n")
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
    let served = Served::start(Fake(Err(vec!["no volume is in use".into()])), 64, PATIENCE);
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
async fn who_comes_when_all_places_are_taken_waits_for_one() {
    let served = Served::start(Fake(Ok(())), 1, PATIENCE);
    let mut first = served.connect().await;
    first.write_all(b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("sent");
    let mut answer = [0; 12];
    first.read_exact(&mut answer).await.expect("it has the only place");
    let live = get("/live");
    let second = served.ask(&live);
    let mut second = std::pin::pin!(second);
    let early = tokio::time::timeout(Duration::from_millis(50), second.as_mut()).await;
    assert!(early.is_err(), "there is no place");
    drop(first);
    assert!(second.await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn who_sends_nothing_loses_the_place() {
    let patience = Patience { head: Duration::from_millis(100), ..PATIENCE };
    let served = Served::start(Fake(Ok(())), 1, patience);
    for begin in ["", "GET /li", "GET /live HTTP/1.1\r\nHost: a\r\n"] {
        let answer = served.ask(begin).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408 "), "{answer}");
    }
    let answer = served.ask("GET /live HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "closed after it, though it was to be kept: {answer}");
}

#[tokio::test]
async fn who_reads_nothing_loses_the_place() {
    let (connection, last_answer) = (Duration::from_millis(100), Duration::from_millis(100));
    let served = Served::start(Fake(Ok(())), 1, Patience { connection, last_answer, ..PATIENCE });
    let mut first = served.connect().await;
    first.write_all(get("/metrics").as_bytes()).await.expect("sent");
    assert!(served.ask(&get("/live")).await.starts_with("HTTP/1.1 200 "), "the place is free again");
    assert!(rest(&mut first).await.len() < 21 << 20, "what it had not read is cut");
}

#[tokio::test]
async fn a_kept_connection_ends_between_answers_and_not_within_one() {
    let served = Served::start(Fake(Ok(())), 1, Patience { connection: Duration::from_millis(100), ..PATIENCE });
    let mut stream = served.connect().await;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("sent");
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
    let listener = bind(&config).expect("bound");
    let address = listener.local_addr().expect("bound");
    assert!(bind(&Config { listen: address, ..config.clone() }).is_err(), "an address that is taken is said at once");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stopped = async { drop(stopped.await) };
    let subject: Arc<dyn Subject> = Arc::new(Fake(Ok(())));
    let serving = tokio::spawn(async move { serve(listener, &config, subject, stopped).await });
    drop(stop);
    assert!(serving.await.expect("no panic").is_ok());
    assert!(TcpStream::connect(address).await.is_err());
}
