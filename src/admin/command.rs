//! How commands come in and go out: a bounded JSON object in, JSON out, and what is wrong as JSON too.
//!
//! `{"error": {"code": "no_such_path", "message": "words for people"}}` is the form of everything that is refused.

use axum::{
    Json,
    body::Bytes,
    extract::{DefaultBodyLimit, FromRequest, Request},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Bytes of a command. The longest are lists of paths.
const BODY_MAX: usize = 1 << 20;

/// Why a command is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Who has to do what about it.
    pub why: Why,
    /// For programs: stays the same for ever.
    pub code: &'static str,
    /// For people.
    pub words: String,
}

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The command is wrong; sending it again does not help.
    Faulty,
    /// It does not go with the state the appliance is in.
    Conflict,
    /// The appliance cannot do it now.
    Failed,
}

impl Refused {
    /// With its code and words.
    pub fn new(why: Why, code: &'static str, words: impl Into<String>) -> Self {
        Self { why, code, words: words.into() }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match self.why {
            Why::Faulty => StatusCode::BAD_REQUEST,
            Why::Conflict => StatusCode::CONFLICT,
            Why::Failed => StatusCode::SERVICE_UNAVAILABLE,
        };
        error(status, self.code, &self.words)
    }
}

pub(super) fn error(status: StatusCode, code: &str, words: &str) -> Response {
    (status, Json(json!({ "error": { "code": code, "message": words } }))).into_response()
}

/// What a command came to.
pub(super) fn answer(result: Result<Value, Refused>) -> Response {
    match result {
        Ok(value) => Json(value).into_response(),
        Err(refused) => refused.into_response(),
    }
}

/// To lay around the routes of commands.
pub(super) fn body_limit() -> DefaultBodyLimit {
    DefaultBodyLimit::max(BODY_MAX)
}

/// A command's order, read from its body.
pub(super) struct Order<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Order<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        // A page of another site can have a browser send text and forms, but not this without asking first (CORS).
        let json = request.headers().get(CONTENT_TYPE).is_some_and(|kind| {
            let kind = kind.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
            kind.trim_ascii().eq_ignore_ascii_case(b"application/json")
        });
        if !json {
            let words = "send Content-Type: application/json";
            return Err(error(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", words));
        }
        let body = match Bytes::from_request(request, state).await {
            Ok(body) => body,
            Err(refused) if refused.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                let words = format!("a command has at most {BODY_MAX} bytes");
                return Err(error(StatusCode::PAYLOAD_TOO_LARGE, "too_large", &words));
            }
            Err(refused) => return Err(error(refused.status(), "cut_short", &refused.body_text())),
        };
        let text: &[u8] = if body.is_empty() { b"{}" } else { &body };
        match serde_json::from_slice(text) {
            Ok(order) => Ok(Self(order)),
            Err(err) => Err(Refused::new(Why::Faulty, "malformed", err.to_string()).into_response()),
        }
    }
}

/// The order of a command that needs no words.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// As [`Order`], for commands that take nothing.
pub(super) struct Empty;

impl<S: Send + Sync> FromRequest<S> for Empty {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let Order(Nothing {}) = Order::from_request(request, state).await?;
        Ok(Self)
    }
}
