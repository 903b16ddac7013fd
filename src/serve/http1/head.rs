//! Heads of requests, from bytes to fields.
//!
//! [`Scan`] finds where a head ends while it arrives; `httparse` takes it apart; [`Head::to_request`] gives the general path what
//! it works on. Stricter than RFC 9112 obliges: a line ends with CR LF and nothing else (2.2 lets a server take a bare LF, and
//! two servers that differ in it can be made to disagree on where a request ends).

use std::mem::MaybeUninit;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};

/// Fields that are parsed without an allocation.
const FIELDS_INLINE: usize = 64;

/// Where a head that arrives piece by piece has been searched for its end.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scan {
    /// First byte not looked at.
    at: usize,
    /// First byte of the line that is being looked at.
    line: usize,
    /// Whether a line with something on it has ended.
    begun: bool,
}

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::serve) enum BadHead {
    /// Not the grammar of RFC 9112.
    Malformed,
    /// A version that is not served here.
    Version,
    /// More fields than are allowed.
    TooManyFields,
    /// More bytes than are allowed, before the request line had ended.
    LineTooLong,
    /// More bytes than are allowed.
    TooLong,
}

/// A head, in the buffer it arrived in.
#[derive(Debug)]
pub(in crate::serve) struct Head<'b> {
    pub(in crate::serve) method: &'b str,
    /// As it stands on the request line.
    pub(in crate::serve) target: &'b str,
    pub(in crate::serve) version: Version,
    /// What this appliance looks at.
    pub(in crate::serve) fields: Fields<'b>,
}

/// The fields that decide how a request is answered, or that are logged.
#[derive(Debug, Default)]
pub(in crate::serve) struct Fields<'b> {
    pub(in crate::serve) host: Once<'b>,
    pub(in crate::serve) range: Once<'b>,
    pub(in crate::serve) user_agent: Option<&'b [u8]>,
    pub(in crate::serve) referer: Option<&'b [u8]>,
    pub(in crate::serve) cookie: Once<'b>,
    /// `Origin` is there.
    pub(in crate::serve) origin: bool,
    /// Something is there that only the general path weighs: a precondition, or what announces a body.
    pub(in crate::serve) special: bool,
    /// `Connection: close`.
    close: bool,
    /// `Connection: keep-alive`.
    keep_alive: bool,
    /// A body may follow.
    pub(in crate::serve) body: bool,
}

/// A field that counts only where it stands once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::serve) enum Once<'b> {
    #[default]
    None,
    One(&'b [u8]),
    Several,
}

impl Scan {
    /// Looks at what has come since it was last asked; the length of the head once it is whole.
    ///
    /// # Errors
    /// The bytes cannot be the beginning of a head.
    pub(super) fn find_end(&mut self, bytes: &[u8]) -> Result<Option<usize>, BadHead> {
        if self.at == 0 && bytes.first().is_some_and(|first| !first.is_ascii_uppercase() && *first != b'\r') {
            // What is no HTTP, as a TLS handshake, hears so at once. Methods are upper-case (RFC 9110, 16.1.1).
            return Err(BadHead::Malformed);
        }
        while let Some(found) = memchr::memchr(b'\n', &bytes[self.at..]) {
            let end = self.at + found;
            if end == 0 || bytes[end - 1] != b'\r' {
                return Err(BadHead::Malformed);
            }
            let empty = end - self.line == 1;
            (self.at, self.line) = (end + 1, end + 1);
            // Empty lines before the request are let pass (RFC 9112, 2.2).
            if empty && self.begun {
                return Ok(Some(end + 1));
            }
            self.begun |= !empty;
        }
        self.at = bytes.len();
        Ok(None)
    }

    /// Why a head that is too long already is refused.
    pub(super) fn too_long(&self) -> BadHead {
        if self.begun { BadHead::TooLong } else { BadHead::LineTooLong }
    }
}

/// Takes a whole head apart, and hands it to `then`.
///
/// # Errors
/// It is not the head of a request, or has more than `fields_max` fields.
pub(super) fn parse<'b, T>(
    bytes: &'b [u8],
    fields_max: usize,
    then: impl FnOnce(&Head<'b>, &[httparse::Header<'b>]) -> T,
) -> Result<T, BadHead> {
    let mut inline = [const { MaybeUninit::uninit() }; FIELDS_INLINE];
    let mut many = Vec::new();
    let room = match inline.get_mut(..fields_max) {
        Some(room) => room,
        None => {
            many.resize_with(fields_max, MaybeUninit::uninit);
            many.as_mut_slice()
        }
    };
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(bytes, room) {
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => return Err(BadHead::TooManyFields),
        Err(httparse::Error::Version) if names_a_version(bytes) => return Err(BadHead::Version),
        Ok(httparse::Status::Partial) | Err(_) => return Err(BadHead::Malformed),
    }
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(BadHead::Malformed);
    };
    let version = if version == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    let head = Head { method, target, version, fields: Fields::of(request.headers) };
    Ok(then(&head, request.headers))
}

/// Whether a request line is one, but for the version it ends with.
fn names_a_version(bytes: &[u8]) -> bool {
    let line = bytes.trim_ascii_start().split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    matches!((words.nth(2), words.next()), (Some(version), None) if version.starts_with(b"HTTP/"))
}

impl<'b> Fields<'b> {
    fn of(fields: &[httparse::Header<'b>]) -> Self {
        let mut of = Self::default();
        for field in fields {
            let value = field.value;
            let is = |name: &str| field.name.eq_ignore_ascii_case(name);
            // By length first: most fields of most requests are none of these.
            match field.name.len() {
                2 if is("te") => {}
                4 if is("host") => of.host.add(value),
                5 if is("range") => of.range.add(value),
                6 if is("origin") => of.origin = true,
                6 if is("cookie") => of.cookie.add(value),
                7 if is("referer") => of.referer = of.referer.or(Some(value)),
                8 if is("if-match") || is("if-range") => of.special = true,
                10 if is("user-agent") => of.user_agent = of.user_agent.or(Some(value)),
                10 if is("connection") => of.add_connection(value),
                13 if is("if-none-match") => of.special = true,
                14 if is("content-length") => (of.special, of.body) = (true, of.body || value != b"0"),
                17 if is("transfer-encoding") => (of.special, of.body) = (true, true),
                17 if is("if-modified-since") => of.special = true,
                19 if is("if-unmodified-since") => of.special = true,
                _ => {}
            }
        }
        of
    }

    fn add_connection(&mut self, value: &[u8]) {
        for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }
}

impl<'b> Once<'b> {
    fn add(&mut self, value: &'b [u8]) {
        *self = if *self == Self::None { Self::One(value) } else { Self::Several };
    }
}

impl Head<'_> {
    /// Whether the client wants to go on with the connection (RFC 9112, 9.3).
    pub(super) fn persists(&self) -> bool {
        !self.fields.close && (self.version == Version::HTTP_11 || self.fields.keep_alive)
    }

    /// The request in the form that is the same for every protocol.
    ///
    /// # Errors
    /// The target is no URI, or a name or value is none that a field can have.
    pub(super) fn to_request(&self, fields: &[httparse::Header<'_>]) -> Result<Request<()>, BadHead> {
        let mut headers = HeaderMap::with_capacity(fields.len());
        for field in fields {
            let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| BadHead::Malformed)?;
            let value = HeaderValue::from_bytes(field.value).map_err(|_| BadHead::Malformed)?;
            headers.append(name, value);
        }
        let mut request = Request::new(());
        *request.method_mut() = Method::from_bytes(self.method.as_bytes()).map_err(|_| BadHead::Malformed)?;
        *request.uri_mut() = self.target.parse::<Uri>().map_err(|_| BadHead::Malformed)?;
        *request.version_mut() = self.version;
        *request.headers_mut() = headers;
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEAD: &[u8] = b"GET /a HTTP/1.1\r\nHost: t\r\n\r\n";

    fn end_of(bytes: &[u8]) -> Result<Option<usize>, BadHead> {
        Scan::default().find_end(bytes)
    }

    #[test]
    fn a_head_ends_with_an_empty_line_wherever_it_is_cut() {
        for cut in 0..HEAD.len() {
            let mut scan = Scan::default();
            assert_eq!(scan.find_end(&HEAD[..cut]), Ok(None), "{cut}");
            assert_eq!(scan.find_end(HEAD), Ok(Some(HEAD.len())), "{cut}");
        }
        let two = [HEAD, HEAD].concat();
        assert_eq!(end_of(&two), Ok(Some(HEAD.len())));
    }

    #[test]
    fn empty_lines_before_a_request_are_passed_over() {
        let led = [b"\r\n\r\n", HEAD].concat();
        assert_eq!(end_of(&led), Ok(Some(led.len())));
        assert!(parse(&led, 8, |head, _| head.target == "/a").expect("a head"));
    }

    #[test]
    fn what_cannot_be_a_head_is_refused_before_it_ends() {
        for bad in
            [&b"\x16\x03\x01"[..], b"\n", b"GET / HTTP/1.1\nHost: t\r\n\r\n", b"GET / HTTP/1.1\r\nX: y\n", b" GET"]
        {
            assert_eq!(end_of(bad), Err(BadHead::Malformed), "{bad:?}");
        }
    }

    #[test]
    fn a_connection_persists_by_version_and_by_wish() {
        let persists = |version: &str, field: &str| {
            let text = format!("GET / {version}\r\nHost: t\r\n{field}\r\n");
            parse(text.as_bytes(), 8, |head, _| head.persists()).expect("a head")
        };
        assert!(persists("HTTP/1.1", "") && !persists("HTTP/1.0", ""));
        assert!(!persists("HTTP/1.1", "Connection: x, Close\r\n"));
        assert!(persists("HTTP/1.0", "connection: Keep-Alive\r\n"));
        assert!(!persists("HTTP/1.0", "Connection: keep-alive\r\nConnection: close\r\n"));
    }

    #[test]
    fn faults_have_their_names() {
        let parsed = |text: &str| parse(text.as_bytes(), 2, |head, fields| head.to_request(fields).map(drop)).flatten();
        assert_eq!(parsed("GET / HTTP/2.0\r\n\r\n"), Err(BadHead::Version));
        assert_eq!(parsed("GET / HTTP/1.1\r\nA: 1\r\nB: 2\r\nC: 3\r\n\r\n"), Err(BadHead::TooManyFields));
        assert_eq!(parsed("GET / HTTP/1.1\r\nA : 1\r\n\r\n"), Err(BadHead::Malformed));
        assert_eq!(parsed("GET / HTTP/1.1\r\nA: 1\r\n folded\r\n\r\n"), Err(BadHead::Malformed));
        assert_eq!(parsed("GET /a b HTTP/1.1\r\n\r\n"), Err(BadHead::Malformed));
        assert_eq!(parsed("GET / HTTP/1.1\r\nA: 1\r\n\r\n"), Ok(()));
    }

    proptest! {
        #[test]
        fn nothing_makes_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0_usize..200) {
            let mut scan = Scan::default();
            let first = scan.find_end(&bytes[..cut.min(bytes.len())]);
            if first == Ok(None) && let Ok(Some(end)) = scan.find_end(&bytes) {
                prop_assert!(end <= bytes.len());
                let parsed = parse(&bytes[..end], 8, |head, fields| head.to_request(fields).map(drop));
                prop_assert!(parsed.is_ok() || parsed.is_err());
            }
        }

        /// Where a head is cut while it arrives makes no difference.
        #[test]
        fn scanning_in_pieces_finds_what_scanning_at_once_finds(
            text in "[A-Z]{1,3}( |\r\n|\r|\n|a){0,40}", cuts in prop::collection::vec(0_usize..60, 0..6),
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.sort_unstable();
            cuts.push(bytes.len());
            let mut scan = Scan::default();
            let mut found = Ok(None);
            for cut in cuts {
                found = scan.find_end(&bytes[..cut]);
                if found != Ok(None) {
                    break;
                }
            }
            prop_assert_eq!(found, end_of(bytes));
        }
    }
}
