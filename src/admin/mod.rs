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
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use crate::net::listener;

/// How long clients may take.
#[derive(Clone, Copy)]
struct Patience {
    /// Longest wait for the head of a request, and between two of a connection.
    head: Duration,
    /// After this a connection takes no further request.
    connection: Duration,
    /// Longest that its last answer may then take to be read.
    last_answer: Duration,
}

const PATIENCE: Patience = Patience {
    head: Duration::from_secs(10),
    connection: Duration::from_secs(60),
    last_answer: Duration::from_secs(10),
};
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
    serve_with(PATIENCE, listener, (config, subject), stop).await
}

async fn serve_with(
    patience: Patience,
    listener: StdListener,
    (config, subject): (&Config, Arc<dyn Subject>),
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
        let routes = routes.clone();
        tokio::spawn(async move {
            serve_connection(stream, routes, patience).await;
            drop(slot);
        });
    }
}

async fn serve_connection(stream: TcpStream, routes: Router, patience: Patience) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(patience.head).max_headers(64).max_buf_size(16 << 10);
    let serving = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    let mut serving = std::pin::pin!(serving);
    let served = match tokio::time::timeout(patience.connection, serving.as_mut()).await {
        Ok(served) => Ok(served),
        Err(_) => {
            // A monitor that keeps its connection loses it between two answers, not in the middle of one.
            serving.as_mut().graceful_shutdown();
            tokio::time::timeout(patience.last_answer, serving).await
        }
    };
    match served {
        Ok(Ok(())) => {}
        Ok(Err(err)) => tracing::debug!(error = %err, "operator's connection ended"),
        Err(_) => tracing::debug!("operator's connection was cut: its answer was not read"),
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
mod tests;
