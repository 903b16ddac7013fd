//! Where a signature stands in a request, and what the request is without it.
//!
//! target -> token (RFC 9246: the first after a reserved character) or expiry and HMAC (in the query) -> the rest, which is what is
//! asked for. Everything that carries a signature is taken off here, so that none gets into a key, a log or a request to a source.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use crate::telemetry::metrics::Denial;

/// Name of the parameter and of the cookie that carry a token (RFC 9246, 4 and 6.1).
pub const ATTRIBUTE: &str = "URISigningPackage";
/// The parameters of the plain form.
const PLAIN: [&str; 4] = ["expires", "key", "client", "signature"];
/// What stands in a log in place of a secret.
const REDACTED: &str = "-";

/// A request's target, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presented<'t> {
    /// Path and query without what was presented.
    pub target: Cow<'t, str>,
    /// What was presented.
    pub credential: Credential<'t>,
}

/// What a target carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential<'t> {
    /// Nothing.
    None,
    /// A token of RFC 9246.
    Token(Cow<'t, str>),
    /// An expiry and an HMAC.
    Plain(Plain<'t>),
}

/// The plain form, as it stands in the query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plain<'t> {
    /// Seconds since 1970.
    pub expires: Cow<'t, str>,
    /// The key's `kid`.
    pub key: Cow<'t, str>,
    /// Addresses that it is for; empty: all.
    pub client: Cow<'t, str>,
    /// HMAC-SHA256 in hexadecimal.
    pub signature: Cow<'t, str>,
}

impl Credential<'_> {
    /// The same, on its own.
    pub fn into_owned(self) -> Credential<'static> {
        let owned = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        match self {
            Self::None => Credential::None,
            Self::Token(token) => Credential::Token(owned(token)),
            Self::Plain(Plain { expires, key, client, signature }) => Credential::Plain(Plain {
                expires: owned(expires),
                key: owned(key),
                client: owned(client),
                signature: owned(signature),
            }),
        }
    }
}

/// RFC 3986, 2.2.
fn is_reserved(byte: u8) -> bool {
    b":/?#[]@".contains(&byte) || is_sub_delimiter(byte)
}

fn is_sub_delimiter(byte: u8) -> bool {
    b"!$&'()*+,;=".contains(&byte)
}

/// Where the first token's name and value begin, and where it ends.
fn find(target: &str) -> Option<(usize, usize, usize)> {
    let bytes = target.as_bytes();
    let mut from = 0;
    loop {
        let at = from + target.get(from..)?.find(ATTRIBUTE)?;
        let value = at + ATTRIBUTE.len() + 1;
        let begins = at > 0 && is_reserved(bytes[at - 1]);
        if begins && bytes.get(value - 1) == Some(&b'=') {
            let length = bytes[value..].iter().position(|byte| is_reserved(*byte));
            return Some((at, value, length.map_or(bytes.len(), |length| value + length)));
        }
        from = at + ATTRIBUTE.len();
    }
}

impl<'t> Presented<'t> {
    /// Takes a target apart. `plain`: whether the plain form is spoken here; otherwise its parameters are nobody's business.
    ///
    /// # Errors
    /// More than one signature: which of them counts would be anybody's guess, and the other one would be passed on.
    pub fn of(target: &'t str, plain: bool) -> Result<Self, Denial> {
        let Some((at, value, end)) = find(target) else {
            let taken = if plain { take_plain(target)? } else { None };
            return Ok(taken.unwrap_or(Self { target: Cow::Borrowed(target), credential: Credential::None }));
        };
        // RFC 9246, 2.1.15: a sub-delimiter after the token goes with it, or else the character before its name.
        let terminated = target.as_bytes().get(end).is_some_and(|byte| is_sub_delimiter(*byte));
        let (from, to) = if terminated { (at, end + 1) } else { (at - 1, end) };
        let rest = match (&target[..from], &target[to..]) {
            ("", rest) if !rest.starts_with('/') => format!("/{rest}"),
            (before, after) => [before, after].concat(),
        };
        if find(&rest).is_some() || (plain && take_plain(&rest)?.is_some()) {
            return Err(Denial::Ambiguous);
        }
        Ok(Self { target: Cow::Owned(rest), credential: Credential::Token(target[value..end].into()) })
    }
}

/// The parameters of the plain form, where there is a `signature`.
fn take_plain(target: &str) -> Result<Option<Presented<'_>>, Denial> {
    let Some((path, query)) = target.split_once('?') else { return Ok(None) };
    let mut values: [Option<&str>; 4] = [None; 4];
    let mut rest = String::new();
    for parameter in query.split('&') {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match PLAIN.iter().position(|known| *known == name) {
            Some(at) if values[at].replace(value).is_some() => return Err(Denial::Ambiguous),
            Some(_) => {}
            None => {
                rest.push(if rest.is_empty() { '?' } else { '&' });
                rest.push_str(parameter);
            }
        }
    }
    let [expires, key, client, signature] = values;
    let Some(signature) = signature else { return Ok(None) };
    let decoded =
        |value: Option<&'_ str>| percent_decode_str(value.unwrap_or("")).decode_utf8().ok().map(Cow::into_owned);
    let (Some(key), Some(client)) = (decoded(key), decoded(client)) else { return Err(Denial::Malformed) };
    let expires = expires.unwrap_or("").into();
    let plain = Plain { expires, key: key.into(), client: client.into(), signature: signature.into() };
    rest.insert_str(0, path);
    Ok(Some(Presented { target: rest.into(), credential: Credential::Plain(plain) }))
}

/// A target, or an address in a field, as it may be logged: without the values that let others in.
pub fn redacted(text: &str) -> Cow<'_, str> {
    let mut out = Cow::Borrowed(text);
    for name in [ATTRIBUTE, "signature"] {
        let mut from = 0;
        while let Some(at) = out.get(from..).and_then(|rest| rest.find(name)).map(|found| from + found) {
            from = at + name.len();
            let bytes = out.as_bytes();
            let begins = |byte: &u8| if name == ATTRIBUTE { is_reserved(*byte) } else { b"?&".contains(byte) };
            if !bytes[..at].last().is_some_and(begins) || bytes.get(from) != Some(&b'=') {
                continue;
            }
            from += 1;
            // As each form reads its own: what is left of a value would be a part of it.
            let ends = |byte: &u8| if name == ATTRIBUTE { is_reserved(*byte) } else { *byte == b'&' };
            let length = bytes[from..].iter().position(ends).unwrap_or(bytes.len() - from);
            out.to_mut().replace_range(from..from + length, REDACTED);
        }
    }
    out
}

/// The tokens in a `Cookie` field (RFC 6265, 4.2.1), the first `most` of them.
pub fn in_cookies(field: &[u8], most: usize) -> impl Iterator<Item = &str> {
    let pairs = field.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let tokens = pairs.filter_map(|pair| pair.strip_prefix(ATTRIBUTE.as_bytes())?.strip_prefix(b"="));
    tokens.filter_map(|token| std::str::from_utf8(token).ok()).take(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presented(target: &str) -> (String, String) {
        let presented = Presented::of(target, true).expect("one at most");
        let credential = match presented.credential {
            Credential::None => "none".into(),
            Credential::Token(token) => token.into_owned(),
            Credential::Plain(plain) => format!("{}|{}|{}|{}", plain.expires, plain.key, plain.client, plain.signature),
        };
        (presented.target.into_owned(), credential)
    }

    #[test]
    fn a_token_is_taken_off_as_the_rfc_says() {
        for (target, rest, token) in [
            ("/a.mp4?URISigningPackage=x.y.z", "/a.mp4", "x.y.z"),
            ("/a.mp4?q=1&URISigningPackage=x.y.z", "/a.mp4?q=1", "x.y.z"),
            ("/a.mp4?URISigningPackage=x.y.z&q=1", "/a.mp4?q=1", "x.y.z"),
            ("/a.mp4?p=0&URISigningPackage=x.y.z&q=1", "/a.mp4?p=0&q=1", "x.y.z"),
            ("/a.mp4;URISigningPackage=x.y.z", "/a.mp4", "x.y.z"),
            ("/a.mp4;URISigningPackage=x.y.z?q=1", "/a.mp4?q=1", "x.y.z"),
            ("/a;URISigningPackage=x.y.z/b.mp4", "/a/b.mp4", "x.y.z"),
            ("/a;URISigningPackage=x;n=1/b.mp4", "/a;n=1/b.mp4", "x"),
            ("/URISigningPackage=x.y.z/b.mp4", "/b.mp4", "x.y.z"),
            ("/URISigningPackage=x.y.z", "/", "x.y.z"),
            ("/a.mp4?URISigningPackage=", "/a.mp4", ""),
            ("/a.mp4?URISigningPackage=%2e%2e", "/a.mp4", "%2e%2e"),
            ("/a.mp4?q=1", "/a.mp4?q=1", "none"),
            ("/aURISigningPackage=1", "/aURISigningPackage=1", "none"),
            ("/a?URISigningPackages=1", "/a?URISigningPackages=1", "none"),
            ("/a?uRISigningPackage=1", "/a?uRISigningPackage=1", "none"),
        ] {
            assert_eq!(presented(target), (rest.into(), token.into()), "{target}");
        }
    }

    #[test]
    fn the_plain_form_is_taken_off_whatever_its_order() {
        for (target, rest, plain) in [
            ("/a.mp4?expires=5&key=k&signature=00", "/a.mp4", "5|k||00"),
            ("/a.mp4?signature=00&q=1&key=k&expires=5&r", "/a.mp4?q=1&r", "5|k||00"),
            ("/a.mp4?expires=5&key=k&client=192.0.2.0%2F24&signature=00", "/a.mp4", "5|k|192.0.2.0/24|00"),
            ("/a.mp4?signature=00", "/a.mp4", "|||00"),
            ("/a.mp4?expires=5&key=k", "/a.mp4?expires=5&key=k", "none"),
            ("/a.mp4?signature", "/a.mp4", "|||"),
        ] {
            assert_eq!(presented(target), (rest.into(), plain.into()), "{target}");
        }
        let other = Presented::of("/a?expires=5&signature=0", false).expect("nobody's business");
        assert_eq!((&*other.target, other.credential), ("/a?expires=5&signature=0", Credential::None));
    }

    #[test]
    fn two_signatures_are_refused() {
        for target in [
            "/a?URISigningPackage=x&URISigningPackage=y",
            "/a;URISigningPackage=x?URISigningPackage=y",
            "/a?URISigningPackage=URISigningPackage=y&URISigningPackage=z",
            "/a?URISigningPackage=x&signature=00",
            "/a?signature=00&signature=01",
            "/a?expires=1&expires=2&signature=01",
        ] {
            assert_eq!(Presented::of(target, true), Err(Denial::Ambiguous), "{target}");
        }
        assert_eq!(Presented::of("/a?key=%ff&signature=0", true), Err(Denial::Malformed));
    }

    #[test]
    fn what_is_logged_lets_nobody_in() {
        for (text, expected) in [
            ("/a?b=c", "/a?b=c"),
            ("/a?URISigningPackage=x.y.z&b=c", "/a?URISigningPackage=-&b=c"),
            ("/a;URISigningPackage=x.y?URISigningPackage=z", "/a;URISigningPackage=-?URISigningPackage=-"),
            ("https://h/a?expires=1&signature=abc", "https://h/a?expires=1&signature=-"),
            ("/signature/a?my_signature=1", "/signature/a?my_signature=1"),
            ("/a?URISigningPackage=&signature=", "/a?URISigningPackage=-&signature=-"),
            ("/a?signature=a=b/c&d", "/a?signature=-&d"),
            ("/signature=a?b;signature=c", "/signature=a?b;signature=c"),
        ] {
            assert_eq!(redacted(text), expected, "{text}");
        }
    }

    #[test]
    fn cookies_are_found_among_others() {
        let found = |field: &str| in_cookies(field.as_bytes(), 2).map(String::from).collect::<Vec<_>>();
        assert_eq!(found("a=b; URISigningPackage=x.y.z; c"), ["x.y.z"]);
        assert_eq!(found("URISigningPackage=1;URISigningPackage=2;URISigningPackage=3"), ["1", "2"]);
        assert!(found("XURISigningPackage=1; URISigningPackagE=2; URISigningPackage").is_empty());
    }
}
