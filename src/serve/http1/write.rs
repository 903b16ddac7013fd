//! Heads of responses, from fields to bytes (RFC 9112, 4 and 5).

use http::{HeaderMap, HeaderName, StatusCode, Version};

/// What follows a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// Nothing, whatever the head says of a length.
    NoBody,
    /// So many bytes.
    Length(u64),
    /// Chunks (RFC 9112, 7.1).
    Chunked,
    /// Everything up to the connection's end: HTTP/1.0 knows no chunks.
    UntilClose,
}

/// What the connection adds to a head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ending<'a> {
    /// The time of the response, as `Date` has it.
    pub(super) date: &'a str,
    pub(super) version: Version,
    pub(super) persists: bool,
    pub(super) framing: Framing,
}

/// Writes a status line. Always of HTTP/1.1: the version is the server's own (RFC 9110, 6.2).
pub(in crate::serve) fn status_line(out: &mut Vec<u8>, status: StatusCode) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Writes one field.
pub(in crate::serve) fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Writes fields, with their names as people write them.
pub(in crate::serve) fn fields(out: &mut Vec<u8>, headers: &HeaderMap) {
    for (name, value) in headers {
        write_name(out, name);
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

fn write_name(out: &mut Vec<u8>, name: &HeaderName) {
    if *name == http::header::ETAG {
        return out.extend_from_slice(b"ETag");
    }
    let mut begins = true;
    for byte in name.as_str().bytes() {
        out.push(if begins { byte.to_ascii_uppercase() } else { byte });
        begins = byte == b'-';
    }
}

/// Writes what the connection adds, and the end of the head.
pub(super) fn ending(out: &mut Vec<u8>, ending: &Ending<'_>) {
    if ending.framing == Framing::Chunked {
        field(out, "Transfer-Encoding", b"chunked");
    }
    field(out, "Date", ending.date.as_bytes());
    match (ending.persists, ending.version) {
        (true, Version::HTTP_10) => field(out, "Connection", b"keep-alive"),
        (false, version) if version != Version::HTTP_10 => field(out, "Connection", b"close"),
        _ => {}
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes a number in decimal digits.
pub(in crate::serve) fn number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, header};

    use super::*;

    #[test]
    fn a_head_reads_as_people_write_it() {
        let mut headers = HeaderMap::new();
        headers.insert(header::ETAG, HeaderValue::from_static("\"a\""));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("video/mp4"));
        let mut out = Vec::new();
        status_line(&mut out, StatusCode::PARTIAL_CONTENT);
        fields(&mut out, &headers);
        let framing = Framing::Chunked;
        ending(&mut out, &Ending { date: "now", version: Version::HTTP_11, persists: false, framing });
        assert_eq!(
            String::from_utf8(out).expect("text"),
            "HTTP/1.1 206 Partial Content\r\nETag: \"a\"\r\nContent-Type: video/mp4\r\nTransfer-Encoding: chunked\r\nDate: now\r\n\
             Connection: close\r\n\r\n"
        );
    }

    #[test]
    fn persistence_is_said_where_it_is_not_the_rule() {
        let said = |version, persists| {
            let mut out = Vec::new();
            ending(&mut out, &Ending { date: "d", version, persists, framing: Framing::NoBody });
            String::from_utf8(out).expect("text")
        };
        assert_eq!(said(Version::HTTP_11, true), "Date: d\r\n\r\n");
        assert_eq!(said(Version::HTTP_11, false), "Date: d\r\nConnection: close\r\n\r\n");
        assert_eq!(said(Version::HTTP_10, true), "Date: d\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(said(Version::HTTP_10, false), "Date: d\r\n\r\n");
    }
}
