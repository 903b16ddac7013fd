//! The status page: `/` for browsers, kept up to date by server-sent events.
//!
//! status document -> `render` (HTML, everything escaped) -> page, and each second over `/events` what of it has changed
//! history (numbers) -> `/events` -> plots that page.js draws
//!
//! It needs nothing from elsewhere, and runs no script but its own (Content-Security-Policy). Without scripts it is the same page, which
//! the browser asks for again now and then. How many may watch at once is bounded (`admin.streams_max`).

mod render;
mod words;

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::State,
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{
            ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, RETRY_AFTER, VARY, X_CONTENT_TYPE_OPTIONS,
        },
    },
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt as _, stream};
use serde_json::json;
use tokio::sync::{Semaphore, watch};
pub use words::{bits, bytes, duration, number};

use super::{
    Subject,
    command::error,
    history::{SAMPLED_EVERY, Sample},
    routes::Shared,
};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// Its own style and script, its own events, and nothing else from anywhere.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";
/// Samples after which a stream ends, so that the connection has its place for no longer than any other: the browser comes back by itself.
const STREAM_SAMPLES: usize = 45;
/// After how long it does.
const COMES_BACK: Duration = Duration::from_millis(500);
/// Seconds after which somebody for whom there is no place may ask again.
const NO_PLACE_RETRY: &str = "5";

const REFERRER_POLICY: HeaderName = HeaderName::from_static("referrer-policy");

/// Places for those who watch.
#[derive(Clone)]
pub(super) struct Places(Arc<Semaphore>);

impl Places {
    pub(super) fn new(most: usize) -> Self {
        Self(Arc::new(Semaphore::new(most)))
    }
}

/// Whether a page is wanted rather than a text.
pub(super) fn is_wanted(headers: &HeaderMap) -> bool {
    headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).any(|value| value.contains("text/html"))
}

pub(super) fn page(subject: &dyn Subject) -> Response {
    let mut response = with_type("text/html; charset=utf-8", render::page(&subject.status()).into());
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(VARY, HeaderValue::from_name(ACCEPT));
    response
}

pub(super) async fn style() -> Response {
    with_type("text/css; charset=utf-8", STYLE.into())
}

pub(super) async fn script() -> Response {
    with_type("text/javascript; charset=utf-8", SCRIPT.into())
}

fn with_type(kind: &'static str, body: Body) -> Response {
    let nosniff = (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    ([(CONTENT_TYPE, HeaderValue::from_static(kind)), nosniff], body).into_response()
}

/// The past at once, then each second what is new.
pub(super) async fn events(State(subject): Shared, Extension(Places(places)): Extension<Places>) -> Response {
    let Ok(place) = places.try_acquire_owned() else {
        let words = "as many watch the page as may (admin.streams_max)";
        let mut response = error(StatusCode::SERVICE_UNAVAILABLE, "no_place", words);
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(NO_PLACE_RETRY));
        return response;
    };
    let history = subject.history();
    let (past, next) = history.follow();
    let samples: Vec<_> = past.iter().map(|sample| sample.to_json()).collect();
    let seconds = SAMPLED_EVERY.as_secs();
    let begin =
        event("past", &json!({ "seconds": seconds, "kept": history.kept_max(), "samples": samples }).to_string());
    let begin = format!("retry: {}\n{begin}{}", COMES_BACK.as_millis(), now(&*subject, None));
    let rest = stream::unfold((subject, next, place), |(subject, mut next, place)| async move {
        let sample = sample_of(&mut next).await?;
        let told = now(&*subject, Some(&sample));
        Some((told, (subject, next, place)))
    });
    let all = stream::once(std::future::ready(begin)).chain(rest.take(STREAM_SAMPLES));
    let body = Body::from_stream(all.map(|text| Ok::<_, Infallible>(Bytes::from(text))));
    let mut response = with_type("text/event-stream", body);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn sample_of(next: &mut watch::Receiver<Arc<Sample>>) -> Option<Arc<Sample>> {
    next.changed().await.ok()?;
    Some(Arc::clone(&next.borrow_and_update()))
}

fn now(subject: &dyn Subject, sample: Option<&Sample>) -> String {
    let html = render::parts(&subject.status());
    event("now", &json!({ "sample": sample.map(Sample::to_json), "html": html }).to_string())
}

/// JSON has no line feeds of its own.
fn event(name: &str, data: &str) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}
