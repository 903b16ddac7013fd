//! The listener for operators and their monitoring: `/live`, `/ready`, `/status`, `/metrics`.
//!
//! accept (bounded) -> hyper -> routes -> what the appliance says of itself ([`Subject`])
//!
//! On the small runtime, so that nobody who looks can slow a viewer. Keep it off the viewers' network: it has no password yet.

mod config;

use std::{future::Future, io, net::TcpListener as StdListener, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
pub use config::Config;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Semaphore};

use crate::net::listener;

/// Longest wait for the head of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest an answer may take to be read; then its connection is closed.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Rest after the system has run out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What can be asked of an appliance.
pub trait Subject: Send + Sync + 'static {
    /// Whether it would serve well.
    ///
    /// # Errors
    /// Why not, in words.
    fn ready(&self) -> Result<(), Vec<String>>;

    /// Everything of note, as JSON.
    fn status(&self) -> Value;

    /// Metrics in Prometheus' text format.
    fn metrics(&self) -> String;
}

/// Binds the operators' address.
///
/// # Errors
/// The address cannot be had.
pub fn bind(config: &Config) -> io::Result<StdListener> {
    listener::bind(config.listen, 128, false)
        .map_err(|err| io::Error::new(err.kind(), format!("admin.listen {}: {err}", config.listen)))
}

/// Answers operators until `stop`.
///
/// # Errors
/// The listener cannot be taken over by the runtime.
pub async fn serve(
    listener: StdListener,
    config: &Config,
    subject: Arc<dyn Subject>,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let slots = Arc::new(Semaphore::new(config.connections_max.max(1)));
    let routes = routes(subject);
    let mut stop = std::pin::pin!(stop);
    loop {
        // Who comes when all places are taken waits in the listener's backlog.
        let slot = tokio::select! {
            slot = Arc::clone(&slots).acquire_owned() => slot,
            () = &mut stop => return Ok(()),
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => return Ok(()),
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(err) => {
                tracing::warn!(error = %err, "operators' connections cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(routes.clone());
        tokio::spawn(async move {
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_headers(64).max_buf_size(16 << 10);
            let served =
                tokio::time::timeout(CONNECTION_TIMEOUT, builder.serve_connection(TokioIo::new(stream), service)).await;
            if let Ok(Err(err)) = served {
                tracing::debug!(error = %err, "operator's connection ended");
            }
            drop(slot);
        });
    }
}

type Shared = State<Arc<dyn Subject>>;

fn routes(subject: Arc<dyn Subject>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .with_state(subject)
}

async fn index() -> &'static str {
    "oca admin\n\n/live     is the process alive\n/ready    would it serve well\n/status   everything of note, as JSON\n/metrics  for Prometheus\n"
}

async fn ready(State(subject): Shared) -> impl IntoResponse {
    match subject.ready() {
        Ok(()) => (StatusCode::OK, Json(json!({ "ready": true }))),
        Err(reasons) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "ready": false, "reasons": reasons }))),
    }
}

async fn status(State(subject): Shared) -> impl IntoResponse {
    Json(subject.status())
}

async fn metrics(State(subject): Shared) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], subject.metrics())
}

#[cfg(test)]
mod tests {
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
            "oca_uptime_seconds 1\n".into()
        }
    }

    async fn ask(subject: Fake, request: &str) -> String {
        let config = Config { listen: ([127, 0, 0, 1], 0).into(), ..Config::default() };
        let listener = bind(&config).expect("bound");
        let address = listener.local_addr().expect("bound");
        let serving =
            tokio::spawn(async move { serve(listener, &config, Arc::new(subject), std::future::pending()).await });
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("connected");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        serving.abort();
        answer
    }

    fn get(path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    }

    #[tokio::test]
    async fn what_operators_ask_is_answered() {
        assert!(ask(Fake(Ok(())), &get("/live")).await.starts_with("HTTP/1.1 200 "));
        assert!(ask(Fake(Ok(())), &get("/ready")).await.starts_with("HTTP/1.1 200 "));
        assert!(ask(Fake(Ok(())), &get("/status")).await.contains("\"serving\""));
        assert!(ask(Fake(Ok(())), &get("/metrics")).await.contains("version=0.0.4"));
        assert!(ask(Fake(Ok(())), &get("/etc/passwd")).await.starts_with("HTTP/1.1 404 "));
    }

    #[tokio::test]
    async fn what_is_not_ready_says_why() {
        let answer = ask(Fake(Err(vec!["no volume is in use".into()])), &get("/ready")).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("no volume is in use"), "{answer}");
    }

    #[tokio::test]
    async fn other_methods_are_refused() {
        let answer =
            ask(Fake(Ok(())), "POST /status HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                .await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    }
}
