//! Which URIs a token is for: `cdniuc` (RFC 9246, 2.1.11 and 2.1.15).

use aws_lc_rs::digest::{SHA256, digest};
use regex::bytes::{Regex, RegexBuilder};

use super::base64url;

/// The URIs of a token.
#[derive(Clone, Debug)]
pub enum Container {
    /// The one with this SHA-256.
    Hash([u8; 32]),
    /// All that match, from their first to their last character.
    Regex(Regex),
}

/// Bytes of a URI that are matched: with the size of an expression, this bounds the time on a worker. An asset's path has 1024 at most.
const MATCHED_MAX: usize = 4096;
/// Brackets within brackets that an expression may have.
const NESTING_MAX: u32 = 32;

impl Container {
    /// Reads the claim's value. An expression may take `regex_size_max` bytes when it is compiled; it is matched in linear time.
    pub fn parse(text: &str, regex_size_max: usize) -> Option<Self> {
        if let Some(hash) = text.strip_prefix("hash:") {
            // RFC 6920, 5: the algorithm, then the whole digest.
            let digest = base64url::decode(hash.strip_prefix("sha-256;")?)?;
            return digest.try_into().ok().map(Self::Hash);
        }
        let expression = text.strip_prefix("regex:")?;
        let compile = |expression: &str| {
            // POSIX extended expressions in the POSIX locale are about bytes (RFC 9246, 2.1.15.2). There is no backtracking.
            let mut builder = RegexBuilder::new(expression);
            builder.unicode(false).size_limit(regex_size_max).nest_limit(NESTING_MAX).build().ok()
        };
        // Alone first: what is none by itself shall not become one by what is put around it.
        compile(expression)?;
        // The whole URI: found somewhere in it, an expression for one host would also fit another host's query.
        compile(&format!(r"\A(?:{expression})\z")).map(Self::Regex)
    }

    /// Whether the token is for a URI, given as [`normalized`] has it.
    pub fn holds(&self, uri: &str) -> bool {
        match self {
            Self::Hash(expected) => digest(&SHA256, uri.as_bytes()).as_ref() == expected,
            Self::Regex(regex) => uri.len() <= MATCHED_MAX && regex.is_match(uri.as_bytes()),
        }
    }
}

/// `hash:` for a URI.
pub fn hash_of(uri: &str) -> String {
    format!("hash:sha-256;{}", base64url::encode(digest(&SHA256, uri.as_bytes())))
}

/// A request's URI in the form in which it is compared (RFC 9246, 2.1.15; RFC 9110, 4.2.3; RFC 3986, 6.2.2 and 6.2.3). Dot segments
/// stay: no asset's path has any.
pub fn normalized(secure: bool, authority: &str, target: &str) -> String {
    let (scheme, port) = if secure { ("https://", ":443") } else { ("http://", ":80") };
    let mut uri = String::with_capacity(scheme.len() + authority.len() + target.len());
    uri.push_str(scheme);
    let authority = authority.strip_suffix(port).unwrap_or(authority);
    uri.push_str(&authority.strip_suffix(':').unwrap_or(authority).to_ascii_lowercase());
    push_normalized(&mut uri, target);
    uri
}

/// Escapes in upper case, and none for what needs none.
pub(super) fn push_normalized(out: &mut String, target: &str) {
    let mut rest = target;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let escaped = rest.get(at + 1..at + 3).and_then(|digits| {
            let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            u8::from_str_radix(digits, 16).ok().filter(|_| is_hex)
        });
        let Some(byte) = escaped else {
            // One that escapes nothing: left as it is, it could make an escape with what comes after it.
            out.push_str("%25");
            rest = &rest[at + 1..];
            continue;
        };
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&rest[at..at + 3].to_ascii_uppercase());
        }
        rest = &rest[at + 3..];
    }
    out.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 16 << 10;

    fn holds(container: &str, uri: &str) -> bool {
        Container::parse(container, SIZE).expect("a container").holds(uri)
    }

    #[test]
    fn the_hash_of_the_rfc_is_ours() {
        // RFC 9246, A.1.
        let container = "hash:sha-256;2tderfWPa86Ku7YnzW51YUp7dGUjBS_3SW3ELx4hmWY";
        assert_eq!(hash_of("http://cdni.example/foo/bar"), container);
        assert!(holds(container, "http://cdni.example/foo/bar"));
        assert!(!holds(container, "http://cdni.example/foo/bar/") && !holds(container, "https://cdni.example/foo/bar"));
    }

    #[test]
    fn the_expressions_of_the_rfc_mean_what_they_say() {
        let a2 = r"regex:http://cdni\.example/foo/bar/[0-9]{3}\.png";
        assert!(holds(a2, "http://cdni.example/foo/bar/123.png"));
        assert!(
            !holds(a2, "http://cdni.example/foo/bar/1234.png") && !holds(a2, "http://cdniXexample/foo/bar/123.png")
        );
        let section_2 = r"regex:[^:]*\:\/\/[^/]*/folder/content/quality_[^/]*/segment.{3}\.mp4(\?.*)?";
        assert!(holds(section_2, "https://h:8/folder/content/quality_hd/segment001.mp4?q=1"));
        assert!(!holds(section_2, "https://h/folder/content/quality_hd/x/segment001.mp4"));
        assert!(holds("regex:http://h/[[:alpha:]]+", "http://h/abc"));
    }

    #[test]
    fn an_expression_is_for_the_whole_uri() {
        let container = r"regex:http://h/a\.mp4";
        for uri in ["http://h/a.mp4?x", "http://evil/?http://h/a.mp4", "http://h/a.mp4\n", "xhttp://h/a.mp4"] {
            assert!(!holds(container, uri), "{uri}");
        }
        assert!(!holds("regex:http://h/a|b", "http://h/ax") && holds("regex:http://h/a|b", "b"));
    }

    #[test]
    fn what_is_no_container_is_refused() {
        for text in [
            "",
            "hash:",
            "hash:sha-256;",
            "hash:sha-256;AAAA",
            "hash:sha-1;2tderfWPa86Ku7YnzW51YUp7dGU",
            "regex:(",
            "regex:a)|(b",
            "regex:*",
            "Regex:a",
            "http://h/a",
            "regex:(?x)a#",
            r"regex:(a)\1",
        ] {
            assert!(Container::parse(text, SIZE).is_none(), "{text}");
        }
    }

    #[test]
    fn an_expression_that_grows_beyond_its_bound_is_refused() {
        let nested = format!("regex:{}a{}", "(".repeat(200), ")".repeat(200));
        for bomb in ["regex:a{1000}{1000}", "regex:(a{500}){500}", r"regex:(.{1,300}x){1,100}", &nested] {
            assert!(Container::parse(bomb, SIZE).is_none(), "{bomb}");
        }
        assert!(holds("regex:a*", &"a".repeat(4096)) && !holds("regex:a*", &"a".repeat(4097)));
        // What blows up a backtracking matcher takes one pass here; were it otherwise, this would never end.
        assert!(!holds("regex:(a*)*(a*)*b", &"a".repeat(4000)));
    }

    #[test]
    fn one_resource_has_one_uri() {
        for (authority, target, expected) in [
            ("CDNI.example:80", "/a%7eb%2fc%C3%a9", "http://cdni.example/a~b%2Fc%C3%A9"),
            ("h:443", "/%41?x=%2D", "http://h:443/A?x=-"),
            ("h:", "/%zz%4", "http://h/%25zz%254"),
            ("h", "/%4%41", "http://h/%254A"),
            ("[2001:DB8::1]:8080", "/", "http://[2001:db8::1]:8080/"),
        ] {
            assert_eq!(normalized(false, authority, target), expected);
        }
        assert_eq!(normalized(true, "h:443", "/a"), "https://h/a");
    }
}
