//! `POST /v1/manifest`: a manifest in the body, as published, and its signatures in a field of the head.
//!
//! Written to disk piece by piece: a body costs no memory. The field keeps pages of other sites away: a browser asks before it sends one.

use std::{future::poll_fn, pin::pin, sync::Arc};

use axum::{
    Json,
    body::{Body, HttpBody as _},
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use serde_json::json;

use super::{Subject, command};
use crate::control::{Arrived, Control, Incoming, Place, Reason, Receipt, Refused};

/// Name of the field with the text of the file of signatures, its line ends left out or as spaces.
const SIGNATURES: &str = "oca-signatures";
/// Bytes that are gathered before they are written.
const PIECE: usize = 1 << 20;

pub(super) async fn receive(State(subject): State<Arc<dyn Subject>>, head: HeaderMap, body: Body) -> Response {
    let Some(control) = subject.control() else {
        return command::error(StatusCode::NOT_FOUND, "no_manifests", "no manifest is taken here");
    };
    let Some(signatures) = head.get(SIGNATURES).map(|field| field.as_bytes().to_vec()) else {
        let words = "send the file of signatures in the field Oca-Signatures, on one line";
        control.refuse("push", &Refused::new(Reason::Unsigned, words));
        return command::error(StatusCode::BAD_REQUEST, "unsigned", words);
    };
    let arrived = match gather(&control, body).await {
        Ok(arrived) => arrived,
        Err(refused) => {
            control.refuse("push", &refused);
            return refusal(&refused);
        }
    };
    let offered = tokio::task::spawn_blocking(move || control.offer(arrived, &signatures, "push")).await;
    match offered {
        Ok(Ok(Receipt::InForce { sequence, assets })) => {
            Json(json!({ "in_force": true, "sequence": sequence, "assets": assets })).into_response()
        }
        Ok(Ok(Receipt::Unchanged { sequence })) => {
            Json(json!({ "in_force": true, "sequence": sequence, "unchanged": true })).into_response()
        }
        Ok(Ok(Receipt::Waiting { sequence, not_before })) => {
            let told = json!({ "in_force": false, "sequence": sequence, "not_before": not_before.0 });
            (StatusCode::ACCEPTED, Json(told)).into_response()
        }
        Ok(Err(refused)) => refusal(&refused),
        Err(_) => command::error(StatusCode::INTERNAL_SERVER_ERROR, "panicked", "reading the manifest panicked"),
    }
}

async fn gather(control: &Arc<Control>, body: Body) -> Result<Arrived, Refused> {
    let size_max = control.size_max();
    let too_large = || Refused::new(Reason::TooLarge, format!("a manifest has at most {size_max} bytes"));
    if body.size_hint().lower() > size_max {
        return Err(too_large());
    }
    let making = Arc::clone(control);
    let mut incoming = blocking(move || making.incoming()).await?;
    let (mut body, mut piece, mut length) = (pin!(body), Vec::with_capacity(PIECE), 0);
    while let Some(frame) = poll_fn(|context| body.as_mut().poll_frame(context)).await {
        let frame = frame.map_err(|err| Refused::new(Reason::Truncated, format!("the body broke off: {err}")))?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len() as u64;
        if length > size_max {
            return Err(too_large());
        }
        piece.extend_from_slice(&data);
        if piece.len() >= PIECE {
            incoming = write(incoming, std::mem::replace(&mut piece, Vec::with_capacity(PIECE))).await?;
        }
    }
    Ok(write(incoming, piece).await?.finish())
}

async fn write(mut incoming: Incoming, piece: Vec<u8>) -> Result<Incoming, Refused> {
    blocking(move || match incoming.write(&piece) {
        Ok(_) => Ok(incoming),
        Err(err) => Err(Refused::new(Reason::State, format!("it cannot be kept on disk: {err}"))),
    })
    .await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Refused> + Send + 'static) -> Result<T, Refused> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(Refused::new(Reason::State, "writing it panicked")))
}

fn refusal(refused: &Refused) -> Response {
    let status = match refused.reason {
        Reason::Unsigned | Reason::UnknownKey | Reason::RevokedKey | Reason::KeyTwice | Reason::Tampered => {
            StatusCode::FORBIDDEN
        }
        Reason::Rollback => StatusCode::CONFLICT,
        Reason::TooLarge | Reason::Bomb => StatusCode::PAYLOAD_TOO_LARGE,
        Reason::State => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_REQUEST,
    };
    let (line, column) = refused.place.map(|Place { line, column }| (line, column)).unzip();
    let error = json!({
        "code": refused.reason.label(),
        "message": refused.to_string(),
        "field": refused.field,
        "line": line,
        "column": column,
    });
    (status, Json(json!({ "error": error }))).into_response()
}
