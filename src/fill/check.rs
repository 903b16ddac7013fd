//! What the head of an answer means, given what was asked. Pure; every byte that is stored has passed here.

use super::source::{Ask, AskRange, Head, SourceFault};
use crate::{
    asset::ByteRange,
    catalog::{Meta, Refusal},
};

/// A head that makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// 206 with (the beginning of) the part that was asked for.
    Part {
        /// What follows.
        part: ByteRange,
        /// Length of the whole.
        total: u64,
    },
    /// 200 with everything; `None` where the length is not said.
    Whole(Option<u64>),
    /// 304.
    NotModified,
    /// 416 with the length, where it is said.
    Unsatisfiable(Option<u64>),
    /// The source does not have it, or does not give it.
    Absent(Refusal),
}

/// Judges a head.
pub(super) fn check(head: &Head, ask: &Ask<'_>) -> Result<Reply, SourceFault> {
    match head.status {
        200 if head.ends_with_connection => Err(SourceFault::Endless),
        200 => Ok(Reply::Whole(head.content_length)),
        206 => check_part(head, ask),
        304 if ask.unless.is_some() => Ok(Reply::NotModified),
        404 => Ok(Reply::Absent(Refusal::NotFound)),
        410 => Ok(Reply::Absent(Refusal::Gone)),
        401 | 403 => Ok(Reply::Absent(Refusal::Forbidden)),
        416 if ask.range != AskRange::Whole => {
            Ok(Reply::Unsatisfiable(head.content_range.and_then(|range| range.total)))
        }
        429 | 503 if head.retry_after.is_some() => {
            Err(SourceFault::Later(head.status, head.retry_after.unwrap_or_default()))
        }
        300..=399 => Err(SourceFault::Redirect),
        status => Err(SourceFault::Status(status)),
    }
}

fn check_part(head: &Head, ask: &Ask<'_>) -> Result<Reply, SourceFault> {
    // A multipart answer has no Content-Range of its own: we never ask for several.
    let range = head.content_range.ok_or(SourceFault::WrongRange)?;
    let (Some(part), Some(total)) = (range.part, range.total) else { return Err(SourceFault::WrongRange) };
    let as_asked = match ask.range {
        AskRange::Whole => false,
        AskRange::Part { start, end } => part.start() == start && part.end() <= end.unwrap_or(u64::MAX),
        AskRange::Suffix(count) => part.end() == total && part.len() == count.min(total),
    };
    let consistent = part.end() <= total && head.content_length.is_none_or(|length| length == part.len());
    if as_asked && consistent { Ok(Reply::Part { part, total }) } else { Err(SourceFault::WrongRange) }
}

/// Whether a head speaks of the version that is stored. What both name must be equal, and something must be named by both
/// besides the length, unless the stored version has no validator at all.
pub(super) fn is_same_version(head: &Head, total: Option<u64>, meta: &Meta) -> bool {
    let (ours, theirs) = (&meta.validators, &head.validators);
    if total.is_some_and(|total| total != meta.length)
        || head.content_encoding.as_deref() != meta.content_encoding.as_deref()
    {
        return false;
    }
    let same_date = ours.last_modified.is_some() && ours.last_modified == theirs.last_modified;
    match (&ours.etag, &theirs.etag) {
        (Some(ours), Some(theirs)) => ours == theirs,
        (None, Some(_)) => false,
        // In place of a tag, a date counts only if no two versions can share it.
        (Some(_), None) => same_date && ours.last_modified_is_strong && theirs.last_modified_is_strong,
        (None, None) => same_date,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        asset::{EntityTag, UnixTime, Validators},
        fill::source::ContentRange,
    };

    fn part_head(start: u64, end: u64, total: Option<u64>, content_length: Option<u64>) -> Head {
        let content_range = Some(ContentRange { part: ByteRange::new(start, end), total });
        Head { status: 206, content_range, content_length, ..Head::default() }
    }

    fn asked(start: u64, end: u64) -> Ask<'static> {
        Ask::of(AskRange::Part { start, end: Some(end) })
    }

    #[test]
    fn only_the_range_that_was_asked_for_is_one() {
        let part = |start, end, total| Ok(Reply::Part { part: ByteRange::new(start, end).expect("range"), total });
        let wrong = Err(SourceFault::WrongRange);
        let cases = [
            (part_head(0, 100, Some(1000), Some(100)), asked(0, 100), part(0, 100, 1000)),
            (part_head(0, 50, Some(50), None), asked(0, 100), part(0, 50, 50)),
            (part_head(0, 50, Some(1000), None), asked(0, 100), part(0, 50, 1000)),
            (part_head(1, 100, Some(1000), None), asked(0, 100), wrong.clone()),
            (part_head(0, 101, Some(1000), None), asked(0, 100), wrong.clone()),
            (part_head(0, 100, None, None), asked(0, 100), wrong.clone()),
            (part_head(0, 100, Some(1000), Some(99)), asked(0, 100), wrong.clone()),
            (part_head(0, 100, Some(1000), None), Ask::of(AskRange::Whole), wrong.clone()),
            (part_head(900, 1000, Some(1000), None), Ask::of(AskRange::Suffix(100)), part(900, 1000, 1000)),
            (part_head(800, 900, Some(1000), None), Ask::of(AskRange::Suffix(100)), wrong.clone()),
            (Head { status: 206, ..Head::default() }, asked(0, 100), wrong),
        ];
        for (head, ask, expected) in cases {
            assert_eq!(check(&head, &ask), expected, "{head:?} to {ask:?}");
        }
    }

    #[test]
    fn statuses_mean_what_they_mean() {
        let reply = |status| check(&Head { status, content_length: Some(5), ..Head::default() }, &asked(0, 1));
        assert_eq!(reply(200), Ok(Reply::Whole(Some(5))));
        let endless = Head { status: 200, ends_with_connection: true, ..Head::default() };
        assert_eq!(check(&endless, &asked(0, 1)), Err(SourceFault::Endless));
        assert_eq!(reply(404), Ok(Reply::Absent(Refusal::NotFound)));
        assert_eq!(reply(410), Ok(Reply::Absent(Refusal::Gone)));
        assert_eq!(reply(403), Ok(Reply::Absent(Refusal::Forbidden)));
        assert_eq!(reply(416), Ok(Reply::Unsatisfiable(None)));
        assert_eq!(reply(302), Err(SourceFault::Redirect));
        assert_eq!(reply(304), Err(SourceFault::Redirect), "nobody asked on a condition");
        for status in [100, 201, 204, 400, 429, 500, 503] {
            assert_eq!(reply(status), Err(SourceFault::Status(status)));
        }
    }

    #[test]
    fn another_validator_or_length_is_another_version() {
        let validators = |tag: Option<&str>, modified: Option<u64>| Validators {
            etag: tag.and_then(EntityTag::parse),
            last_modified: modified.map(UnixTime),
            last_modified_is_strong: true,
        };
        let meta = |validators| Meta {
            length: 10,
            validators,
            content_type: None,
            content_encoding: None,
            cache_control: None,
            ranged: true,
        };
        let same = |ours, theirs, total| {
            is_same_version(&Head { validators: theirs, ..Head::default() }, Some(total), &meta(ours))
        };
        let (a, b, dated) =
            (validators(Some("\"a\""), Some(1)), validators(Some("\"b\""), Some(1)), validators(None, Some(1)));
        assert!(same(a.clone(), a.clone(), 10));
        assert!(!same(a.clone(), a.clone(), 11), "another length");
        assert!(!same(a.clone(), b, 10), "another tag");
        assert!(same(a.clone(), dated.clone(), 10), "no tag, but the same date");
        assert!(!same(a, validators(None, None), 10), "nothing to compare");
        assert!(same(dated.clone(), dated.clone(), 10) && !same(dated, validators(None, Some(2)), 10));
    }
}
