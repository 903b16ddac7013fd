//! Which page or command stands where.

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::json;

use super::{
    Caller, PurgeOrder, Subject,
    command::{self, Order},
    manifest, page, purge,
    report::report,
};

pub(super) type Shared = State<Arc<dyn Subject>>;

/// `watching_max`: how many may watch the page at once.
pub(super) fn routes(subject: Arc<dyn Subject>, watching_max: usize) -> Router {
    // Commands change something: each takes a JSON object, bounded, which no page of another site can have a browser send.
    let commands = Router::new()
        .route("/v1/drain", post(async |State(subject): Shared, command::Empty| command::answer(subject.drain())))
        .route("/v1/undrain", post(async |State(subject): Shared, command::Empty| command::answer(subject.undrain())))
        .route("/v1/purge", post(order_purge))
        .route("/v1/fill", post(async |State(subject): Shared, command::Empty| command::answer(subject.fill_now())))
        .route("/v1/why", post(why))
        .layer(command::body_limit());
    Router::new()
        .route("/", get(index))
        .route("/page.css", get(page::style))
        .route("/page.js", get(page::script))
        .route("/events", get(page::events))
        .layer(Extension(page::Places::new(watching_max)))
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/v1/report", get(report))
        .merge(commands)
        .route("/v1/manifest", post(manifest::receive))
        .with_state(subject)
}

const INDEX: &str = r#"oca admin

/            for browsers: how it is, with plots that move
/live        is the process alive
/ready       would it serve well
/status      everything of note, as JSON
/metrics     for Prometheus
/events      what the page shows, as it changes (server-sent events)
/v1/report   what steering services are told; ?availability=full for everything held

Commands, by POST of a JSON object:

/v1/drain    have viewers sent elsewhere
/v1/undrain  take that back
/v1/purge    take assets out of service: "paths", "prefixes", "dry_run"
/v1/fill     fill what the manifest lists now, whatever the window
/v1/why      why an asset is here or not, of {"path": "/films/1.mp4"}
/v1/manifest takes a manifest, with its signatures in the field Oca-Signatures
"#;

/// Which asset is asked about.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    path: String,
}

/// Reads a log: not on a thread that others wait for.
async fn why(State(subject): Shared, Order(asked): Order<Asked>) -> Response {
    match tokio::task::spawn_blocking(move || subject.why(&asked.path)).await {
        Ok(told) => command::answer(told),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// A page for browsers, a list for all others.
async fn index(State(subject): Shared, headers: HeaderMap) -> Response {
    if page::is_wanted(&headers) { page::page(&*subject) } else { INDEX.into_response() }
}

/// How it is, and why, is told to operators only.
async fn ready(State(subject): Shared, Extension(caller): Extension<Caller>) -> impl IntoResponse {
    let (ready, health) = subject.ready();
    let told = if caller == Caller::Probe { json!({ "ready": ready }) } else { health };
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(told))
}

async fn status(State(subject): Shared) -> impl IntoResponse {
    Json(subject.status())
}

async fn order_purge(State(subject): Shared, Order(body): Order<purge::Body>) -> Response {
    match PurgeOrder::try_from(body) {
        Ok(order) => command::answer(subject.purge(order).await),
        Err(refused) => refused.into_response(),
    }
}

async fn metrics(State(subject): Shared) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], subject.metrics())
}
