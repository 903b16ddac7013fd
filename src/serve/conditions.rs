//! Preconditions (RFC 9110, 13): whether a request is to be carried out for this version of an asset. Pure.

use http::{
    HeaderMap,
    header::{HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE},
};

use crate::asset::{EntityTag, UnixTime, Validators};

/// What the preconditions say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// Go on.
    Holds,
    /// 304: the client has this version.
    NotModified,
    /// 412: the client means another version.
    Failed,
}

/// Evaluates the preconditions of a GET or HEAD in the order of RFC 9110, 13.2.2.
pub fn evaluate(headers: &HeaderMap, validators: &Validators) -> Precondition {
    if headers.contains_key(IF_MATCH) {
        if !list_matches(headers, &IF_MATCH, validators, EntityTag::strong_eq) {
            return Precondition::Failed;
        }
    } else if let (Some(date), Some(modified)) = (date_of(headers, &IF_UNMODIFIED_SINCE), validators.last_modified)
        && modified > date
    {
        return Precondition::Failed;
    }
    if headers.contains_key(IF_NONE_MATCH) {
        if list_matches(headers, &IF_NONE_MATCH, validators, EntityTag::weak_eq) {
            return Precondition::NotModified;
        }
    } else if let (Some(date), Some(modified)) = (date_of(headers, &IF_MODIFIED_SINCE), validators.last_modified)
        && modified <= date
    {
        return Precondition::NotModified;
    }
    Precondition::Holds
}

/// Whether `Range` counts (RFC 9110, 13.1.5): there is no `If-Range`, or it names this very version by a strong validator.
pub fn range_counts(headers: &HeaderMap, validators: &Validators) -> bool {
    let mut all = headers.get_all(IF_RANGE).iter();
    let (Some(value), None) = (all.next(), all.next()) else { return !headers.contains_key(IF_RANGE) };
    let Ok(text) = value.to_str() else { return false };
    if let Some(tag) = EntityTag::parse(text.trim()) {
        return validators.etag.as_ref().is_some_and(|ours| ours.strong_eq(&tag));
    }
    // A date has to be exactly ours, and ours has to be strong.
    let date = httpdate::parse_http_date(text).ok().map(UnixTime::from);
    date.is_some() && date == validators.last_modified && validators.last_modified_is_strong
}

/// Whether `*` or one of the listed tags matches. A list that is not grammatical matches up to where it stops being so.
fn list_matches(
    headers: &HeaderMap,
    name: &HeaderName,
    validators: &Validators,
    eq: fn(&EntityTag, &EntityTag) -> bool,
) -> bool {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).any(|text| {
        // An asset that exists matches "*" (RFC 9110, 13.1.1).
        text.trim() == "*" || validators.etag.as_ref().is_some_and(|ours| tags(text).any(|tag| eq(ours, &tag)))
    })
}

/// The entity tags of a list. Commas inside the quotes belong to the tag.
fn tags(list: &str) -> impl Iterator<Item = EntityTag> {
    let mut rest = list;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let quote = if rest.starts_with("W/") { 2 } else { 0 };
        let end = rest.get(quote..)?.strip_prefix('"')?.find('"')? + quote + 2;
        let (tag, after) = rest.split_at(end);
        rest = after;
        EntityTag::parse(tag)
    })
}

/// The date of a field that stands once; several, or none that is a date, are ignored (RFC 9110, 13.1.3 and 13.1.4).
fn date_of(headers: &HeaderMap, name: &HeaderName) -> Option<UnixTime> {
    let mut all = headers.get_all(name).iter();
    let (value, None) = (all.next()?, all.next()) else { return None };
    httpdate::parse_http_date(value.to_str().ok()?).ok().map(UnixTime::from)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const DATE: &str = "Tue, 15 Nov 1994 12:45:26 GMT";
    const BEFORE: &str = "Tue, 15 Nov 1994 12:45:25 GMT";
    const AFTER: &str = "Tue, 15 Nov 1994 12:45:27 GMT";

    fn ours() -> Validators {
        let last_modified = httpdate::parse_http_date(DATE).ok().map(UnixTime::from);
        Validators { etag: EntityTag::parse("\"a\""), last_modified, last_modified_is_strong: true }
    }

    fn headers(fields: &[(HeaderName, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).expect("valid"))).collect()
    }

    fn check(fields: &[(HeaderName, &str)]) -> Precondition {
        evaluate(&headers(fields), &ours())
    }

    #[test]
    fn each_precondition_alone() {
        use Precondition::{Failed, Holds, NotModified};
        let cases = [
            (IF_MATCH, "*", Holds),
            (IF_MATCH, "\"a\"", Holds),
            (IF_MATCH, "\"b\", \"a\"", Holds),
            (IF_MATCH, "W/\"a\"", Failed),
            (IF_MATCH, "\"b\"", Failed),
            (IF_MATCH, "garbage", Failed),
            (IF_NONE_MATCH, "*", NotModified),
            (IF_NONE_MATCH, "\"a\"", NotModified),
            (IF_NONE_MATCH, "W/\"a\"", NotModified),
            (IF_NONE_MATCH, "\"x,y\", \"a\"", NotModified),
            (IF_NONE_MATCH, "\"b\"", Holds),
            (IF_NONE_MATCH, "garbage", Holds),
            (IF_MODIFIED_SINCE, DATE, NotModified),
            (IF_MODIFIED_SINCE, AFTER, NotModified),
            (IF_MODIFIED_SINCE, BEFORE, Holds),
            (IF_MODIFIED_SINCE, "yesterday", Holds),
            (IF_UNMODIFIED_SINCE, DATE, Holds),
            (IF_UNMODIFIED_SINCE, BEFORE, Failed),
            (IF_UNMODIFIED_SINCE, AFTER, Holds),
            (IF_UNMODIFIED_SINCE, "yesterday", Holds),
        ];
        for (name, value, expected) in cases {
            assert_eq!(check(&[(name.clone(), value)]), expected, "{name}: {value}");
        }
    }

    #[test]
    fn tags_outrank_dates_and_match_outranks_none_match() {
        assert_eq!(check(&[(IF_MATCH, "\"a\""), (IF_UNMODIFIED_SINCE, BEFORE)]), Precondition::Holds);
        assert_eq!(check(&[(IF_NONE_MATCH, "\"b\""), (IF_MODIFIED_SINCE, DATE)]), Precondition::Holds);
        assert_eq!(check(&[(IF_MATCH, "\"b\""), (IF_NONE_MATCH, "\"a\"")]), Precondition::Failed);
        assert_eq!(check(&[(IF_MATCH, "\"a\""), (IF_NONE_MATCH, "\"a\"")]), Precondition::NotModified);
    }

    #[test]
    fn if_range_needs_the_very_same_version() {
        let counts = |value: &str| range_counts(&headers(&[(IF_RANGE, value)]), &ours());
        assert!(counts("\"a\"") && counts(DATE));
        assert!(
            !counts("W/\"a\"")
                && !counts("\"b\"")
                && !counts(BEFORE)
                && !counts(AFTER)
                && !counts("*")
                && !counts("garbage")
        );
        assert!(range_counts(&HeaderMap::new(), &ours()));
        let weak = Validators { last_modified_is_strong: false, ..ours() };
        assert!(!range_counts(&headers(&[(IF_RANGE, DATE)]), &weak));
        assert!(!range_counts(&headers(&[(IF_RANGE, DATE)]), &Validators::default()));
        let mut twice = headers(&[(IF_RANGE, "\"a\"")]);
        twice.append(IF_RANGE, HeaderValue::from_static("\"a\""));
        assert!(!range_counts(&twice, &ours()));
    }

    /// Straight from the steps of RFC 9110, 13.2.2, over an abstract request.
    fn reference(
        if_match: Option<bool>,
        unmodified: Option<bool>,
        none_match: Option<bool>,
        modified: Option<bool>,
    ) -> Precondition {
        match (if_match, unmodified) {
            (Some(false), _) | (None, Some(false)) => return Precondition::Failed,
            _ => {}
        }
        match (none_match, modified) {
            (Some(false), _) | (None, Some(false)) => Precondition::NotModified,
            _ => Precondition::Holds,
        }
    }

    proptest! {
        #[test]
        fn every_combination_follows_the_steps_of_the_rfc(
            if_match: Option<bool>, unmodified: Option<bool>, none_match: Option<bool>, modified: Option<bool>,
        ) {
            let mut fields = Vec::new();
            fields.extend(if_match.map(|holds| (IF_MATCH, if holds { "\"z\", \"a\"" } else { "\"z\"" })));
            fields.extend(unmodified.map(|holds| (IF_UNMODIFIED_SINCE, if holds { DATE } else { BEFORE })));
            fields.extend(none_match.map(|holds| (IF_NONE_MATCH, if holds { "\"z\"" } else { "W/\"a\"" })));
            fields.extend(modified.map(|holds| (IF_MODIFIED_SINCE, if holds { BEFORE } else { AFTER })));
            prop_assert_eq!(check(&fields), reference(if_match, unmodified, none_match, modified));
        }

        #[test]
        fn nothing_makes_the_parser_panic(text in "[ -~]{0,40}") {
            for name in [IF_MATCH, IF_NONE_MATCH, IF_RANGE, IF_MODIFIED_SINCE] {
                let map = headers(&[(name, &text)]);
                evaluate(&map, &ours());
                range_counts(&map, &ours());
            }
        }
    }
}
