//! How it stands with manifests, as JSON for operators.

use serde_json::{Value, json};

use super::Standing;

/// The part of `/status`.
pub fn status(standing: &Standing) -> Value {
    let refusal = standing.last_refusal.as_ref().map(|(when, from, refused)| {
        json!({
            "at_unix_seconds": when.0,
            "from": from,
            "reason": refused.reason.label(),
            "message": refused.to_string(),
        })
    });
    json!({
        "expected": standing.is_expected,
        "failure": standing.failure,
        "sequence": standing.sequence,
        "assets": standing.assets,
        "age_seconds": standing.age_seconds,
        "expires_unix_seconds": standing.expires.map(|expires| expires.0),
        "expired": standing.has_expired,
        "stale": standing.is_stale,
        "waiting": standing.waiting.iter().map(|waiting| {
            json!({ "sequence": waiting.sequence, "not_before_unix_seconds": waiting.not_before.0 })
        }).collect::<Vec<_>>(),
        "last_contact_unix_seconds": standing.last_contact.map(|contact| contact.0),
        "last_refusal": refusal,
    })
}
