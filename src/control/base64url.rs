//! Base64 as JOSE has it (RFC 7515, 2): the alphabet of URLs, no padding, one text for one value.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

pub(super) fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}
