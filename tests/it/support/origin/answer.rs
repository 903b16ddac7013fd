//! What the origin answers.

use super::{Answer, Fault, Published, Seen};

/// What a correct origin says, bent by the fault.
pub(super) fn answer(seen: &Seen, published: Published, fault: Option<Fault>) -> Answer {
    let total = published.length();
    let mut fields = published.fields.clone();
    let mut add = |name: &str, value: String| fields.push((name.into(), value));
    add("Date", httpdate::fmt_http_date(std::time::SystemTime::now()));
    if let Some(etag) = &published.etag {
        add("ETag", etag.clone());
    }
    if let Some(date) = &published.last_modified {
        add("Last-Modified", date.clone());
    }
    if matches!(fault, Some(Fault::Gzip)) {
        add("Content-Encoding", "gzip".into());
    }
    if not_modified(seen, &published) {
        return Answer { status: 304, fields, published, start: 0, length: 0, fault };
    }
    let range = seen.field("range").filter(|_| published.ranges && !matches!(fault, Some(Fault::Whole)));
    let range = range.filter(|_| {
        seen.field("if-range").is_none_or(|asked| {
            Some(asked) == published.etag.as_deref() || Some(asked) == published.last_modified.as_deref()
        })
    });
    let range = range.and_then(|range| parse_range(range, total));
    if published.ranges {
        add("Accept-Ranges", "bytes".into());
    }
    let (status, start, end) = match range {
        None => (200, 0, total),
        Some((start, end)) if start < end => (206, start, end),
        Some(_) => {
            add("Content-Range", format!("bytes */{total}"));
            add("Content-Length", "0".into());
            return Answer { status: 416, fields, published, start: 0, length: 0, fault };
        }
    };
    let mut length = end - start;
    match fault {
        Some(Fault::Understated(by)) => length = length.saturating_sub(by),
        Some(Fault::Overlong(by)) => length += by,
        _ => {}
    }
    if status == 206 && !matches!(fault, Some(Fault::NoContentRange)) {
        let shift = if let Some(Fault::Shifted(by)) = fault { by } else { 0 };
        let total = if let Some(Fault::Total(total)) = fault { total } else { total };
        add("Content-Range", format!("bytes {}-{}/{total}", start + shift, end - 1 + shift));
    }
    match fault {
        Some(Fault::Chunked | Fault::ChunkedCut(_)) => add("Transfer-Encoding", "chunked".into()),
        Some(Fault::UntilClose) => add("Connection", "close".into()),
        _ => add("Content-Length", length.to_string()),
    }
    Answer { status, fields, published, start, length, fault }
}

fn not_modified(seen: &Seen, published: &Published) -> bool {
    match (seen.field("if-none-match"), seen.field("if-modified-since")) {
        (Some(asked), _) => published.etag.as_deref().is_some_and(|etag| asked.split(", ").any(|one| one == etag)),
        (None, Some(asked)) => published.last_modified.as_deref() == Some(asked),
        (None, None) => false,
    }
}

/// One range as `start..end`; `start == end` where it cannot be satisfied.
fn parse_range(range: &str, total: u64) -> Option<(u64, u64)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let (start, end) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) => (first, (last + 1).min(total)),
        (Ok(first), Err(_)) => (first, total),
        (Err(_), Ok(suffix)) => (total.saturating_sub(suffix), total),
        (Err(_), Err(_)) => return None,
    };
    Some(if start < total { (start, end) } else { (0, 0) })
}
