//! Reads JSON (RFC 8259) piece by piece, for readers that know what may come: strict, from a stream, in bounded memory.
//!
//! Knows no number but whole ones, and skips nothing: what its reader does not expect is refused with its place.

use std::io::{self, Read};

use super::{
    expand::Overgrown,
    refusal::{Place, Reason, Refused},
};

/// Lists and objects within each other at most.
pub(super) const DEPTH_MAX: usize = 8;
/// Bytes of a text at most, decoded.
pub(super) const TEXT_MAX: usize = 4096;
/// How far it is looked into a value that is refused anyway, to say whether it is too deep. In bytes.
const LOOK_MAX: usize = 64 << 10;

pub(super) type Result<T> = std::result::Result<T, Refused>;

/// A JSON text being read.
pub(super) struct Json<R> {
    input: R,
    buffer: Box<[u8]>,
    at: usize,
    end: usize,
    /// Bytes in front of the buffer.
    before: u64,
    line: u64,
    /// Offset of the line's first byte.
    line_start: u64,
    bytes: Vec<u8>,
}

impl<R: Read> Json<R> {
    pub(super) fn new(input: R) -> Self {
        let buffer = vec![0; 64 << 10].into_boxed_slice();
        Self { input, buffer, at: 0, end: 0, before: 0, line: 1, line_start: 0, bytes: Vec::new() }
    }

    pub(super) fn place(&self) -> Place {
        Place { line: self.line, column: self.before + self.at as u64 - self.line_start + 1 }
    }

    pub(super) fn fault(&self, reason: Reason, what: impl Into<String>) -> Refused {
        Refused::new(reason, what).at(self.place())
    }

    fn fill(&mut self) -> Result<bool> {
        self.before += self.end as u64;
        (self.at, self.end) = (0, 0);
        loop {
            match self.input.read(&mut self.buffer) {
                Ok(count) => {
                    self.end = count;
                    return Ok(count > 0);
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(self.unreadable(&err)),
            }
        }
    }

    fn unreadable(&self, err: &io::Error) -> Refused {
        if let Some(overgrown) = err.get_ref().and_then(|inner| inner.downcast_ref::<Overgrown>()) {
            return self.fault(overgrown.reason, overgrown.to_string());
        }
        match err.kind() {
            io::ErrorKind::UnexpectedEof => self.fault(Reason::Truncated, "its compressed form ends in the middle"),
            _ => self.fault(Reason::Encoding, format!("it cannot be expanded: {err}")),
        }
    }

    /// The next byte, which stays.
    #[inline]
    fn peek(&mut self) -> Result<Option<u8>> {
        if self.at == self.end && !self.fill()? {
            return Ok(None);
        }
        Ok(Some(self.buffer[self.at]))
    }

    #[inline]
    fn must_peek(&mut self) -> Result<u8> {
        match self.peek()? {
            Some(byte) => Ok(byte),
            None => Err(self.fault(Reason::Truncated, "it ends in the middle")),
        }
    }

    #[inline]
    fn next(&mut self) -> Result<u8> {
        let byte = self.must_peek()?;
        self.at += 1;
        Ok(byte)
    }

    /// The next byte that is no white space, which stays.
    fn peek_token(&mut self) -> Result<u8> {
        loop {
            match self.must_peek()? {
                b'\n' => {
                    self.at += 1;
                    self.line += 1;
                    self.line_start = self.before + self.at as u64;
                }
                b' ' | b'\t' | b'\r' => self.at += 1,
                byte => return Ok(byte),
            }
        }
    }

    fn expect(&mut self, wanted: u8, what: &str) -> Result<()> {
        if self.peek_token()? == wanted {
            self.at += 1;
            return Ok(());
        }
        Err(self.mismatch(what))
    }

    /// What is said of a value that is not what is expected.
    pub(super) fn mismatch(&mut self, expected: &str) -> Refused {
        let place = self.place();
        let found = match self.peek_token() {
            Err(err) => return err,
            Ok(b'{' | b'[') if self.is_too_deep() => {
                let what = format!("more than {DEPTH_MAX} lists or objects within each other");
                return Refused::new(Reason::TooDeep, what).at(place);
            }
            Ok(b'{') => "an object",
            Ok(b'[') => "a list",
            Ok(b'"') => "a text",
            Ok(b't' | b'f') => "true or false",
            Ok(b'n') => "null",
            Ok(b'-' | b'0'..=b'9') => "a number",
            Ok(_) => return Refused::new(Reason::Syntax, format!("{expected} is expected")).at(place),
        };
        Refused::new(Reason::Value, format!("{expected} is expected, not {found}")).at(place)
    }

    /// Whether what begins here goes deeper than is allowed. Consumes it, since it is refused anyway.
    fn is_too_deep(&mut self) -> bool {
        let (mut depth, mut in_text) = (0, false);
        for _ in 0..LOOK_MAX {
            match (self.next(), in_text) {
                (Ok(b'\\'), true) => drop(self.next()),
                (Ok(b'"'), _) => in_text = !in_text,
                (Ok(b'{' | b'['), false) => depth += 1,
                (Ok(b'}' | b']'), false) => depth -= 1,
                (Ok(_), _) => {}
                (Err(_), _) => return false,
            }
            if depth == 0 || depth > DEPTH_MAX {
                return depth > 0;
            }
        }
        false
    }

    /// Reads an object: `field` is called at each value with the place of its name among `names`.
    pub(super) fn object(
        &mut self,
        names: &[&'static str],
        mut field: impl FnMut(&mut Self, usize) -> Result<()>,
    ) -> Result<Seen> {
        let mut seen = Seen { fields: 0, place: self.place() };
        self.expect(b'{', "an object")?;
        if self.peek_token()? == b'}' {
            self.at += 1;
            return Ok(seen);
        }
        loop {
            if self.peek_token()? != b'"' {
                return Err(self.fault(Reason::Syntax, "the name of a field is expected"));
            }
            let place = self.place();
            let name = self.text(TEXT_MAX)?;
            let Some(number) = names.iter().position(|known| *known == name) else {
                let shown: String = name.chars().take(64).collect();
                self.expect(b':', "a colon")?;
                if matches!(self.peek_token()?, b'{' | b'[') && self.is_too_deep() {
                    let what = format!("more than {DEPTH_MAX} lists or objects within each other");
                    return Err(Refused::new(Reason::TooDeep, what).at(place).within(&shown));
                }
                let what = format!("there is no such field; known here: {}", names.join(", "));
                return Err(Refused::new(Reason::UnknownField, what).at(place).within(&shown));
            };
            if seen.fields & 1 << number != 0 {
                let what = "it stands here a second time";
                return Err(Refused::new(Reason::DuplicateField, what).at(place).within(names[number]));
            }
            seen.fields |= 1 << number;
            self.expect(b':', "a colon")?;
            self.peek_token()?;
            field(self, number).map_err(|err| err.within(names[number]))?;
            match self.peek_token()? {
                b',' => self.at += 1,
                b'}' => {
                    self.at += 1;
                    return Ok(seen);
                }
                _ => return Err(self.fault(Reason::Syntax, "a comma or '}' is expected")),
            }
        }
    }

    /// Reads a list of at most `count_max` items: `item` is called at each.
    pub(super) fn list(
        &mut self,
        count_max: usize,
        mut item: impl FnMut(&mut Self, usize) -> Result<()>,
    ) -> Result<()> {
        self.expect(b'[', "a list")?;
        if self.peek_token()? == b']' {
            self.at += 1;
            return Ok(());
        }
        for number in 0.. {
            if number >= count_max {
                return Err(self.fault(Reason::TooLarge, format!("there are more than {count_max}")));
            }
            self.peek_token()?;
            item(self, number).map_err(|err| err.within(&format!("[{number}]")))?;
            match self.peek_token()? {
                b',' => self.at += 1,
                b']' => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err(self.fault(Reason::Syntax, "a comma or ']' is expected")),
            }
        }
        Ok(())
    }

    /// A whole number, `least..=most`.
    pub(super) fn integer(&mut self, least: u64, most: u64) -> Result<u64> {
        let place = self.place();
        if !self.peek_token()?.is_ascii_digit() {
            return Err(self.mismatch("a whole number"));
        }
        let (mut value, mut digits) = (Some(0_u64), 0);
        let first = self.must_peek()?;
        while let Some(digit @ b'0'..=b'9') = self.peek()? {
            self.at += 1;
            digits += 1;
            value = value.and_then(|value| value.checked_mul(10)?.checked_add(u64::from(digit - b'0')));
            if digits > 32 {
                break;
            }
        }
        if matches!(self.peek()?, Some(b'.' | b'e' | b'E')) {
            return Err(Refused::new(Reason::Value, "a whole number is expected, without point or exponent").at(place));
        }
        if first == b'0' && digits > 1 {
            return Err(Refused::new(Reason::Syntax, "a number begins with a zero").at(place));
        }
        let in_bounds = |value: &u64| (least..=most).contains(value);
        value.filter(in_bounds).ok_or_else(|| {
            Refused::new(Reason::Value, format!("a whole number from {least} to {most} is expected")).at(place)
        })
    }

    pub(super) fn boolean(&mut self) -> Result<bool> {
        let (value, rest) = match self.peek_token()? {
            b't' => (true, "true"),
            b'f' => (false, "false"),
            _ => return Err(self.mismatch("true or false")),
        };
        for wanted in rest.bytes() {
            if self.next()? != wanted {
                return Err(self.fault(Reason::Syntax, "true or false is expected"));
            }
        }
        Ok(value)
    }

    /// A text of at most `bytes_max` bytes.
    pub(super) fn text(&mut self, bytes_max: usize) -> Result<String> {
        let place = self.place();
        self.expect(b'"', "a text")?;
        self.bytes.clear();
        loop {
            if self.bytes.len() > bytes_max {
                return Err(Refused::new(Reason::TooLarge, format!("a text has at most {bytes_max} bytes")).at(place));
            }
            match self.next()? {
                b'"' => break,
                b'\\' => {
                    let character = self.escape()?;
                    self.bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                }
                0..0x20 => return Err(self.fault(Reason::Syntax, "a control character within a text")),
                byte => self.bytes.push(byte),
            }
        }
        let text = std::str::from_utf8(&self.bytes).map(Into::into);
        text.map_err(|_| Refused::new(Reason::Syntax, "a text is not UTF-8").at(place))
    }

    fn escape(&mut self) -> Result<char> {
        Ok(match self.next()? {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let mut code = self.hex()?;
                if (0xd800..0xdc00).contains(&code) {
                    if self.next()? != b'\\' || self.next()? != b'u' {
                        return Err(self.fault(Reason::Syntax, "half of a surrogate pair"));
                    }
                    let low = self.hex()?;
                    let Some(low @ 0..0x400) = low.checked_sub(0xdc00) else {
                        return Err(self.fault(Reason::Syntax, "half of a surrogate pair"));
                    };
                    code = 0x10000 + ((code - 0xd800) << 10) + low;
                }
                char::from_u32(code).ok_or_else(|| self.fault(Reason::Syntax, "half of a surrogate pair"))?
            }
            _ => return Err(self.fault(Reason::Syntax, "an escape that JSON does not have")),
        })
    }

    fn hex(&mut self) -> Result<u32> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = char::from(self.next()?).to_digit(16);
            code =
                code << 4 | digit.ok_or_else(|| self.fault(Reason::Syntax, "four hexadecimal digits are expected"))?;
        }
        Ok(code)
    }

    /// Nothing but white space may follow.
    pub(super) fn finish(&mut self) -> Result<()> {
        loop {
            match self.peek()? {
                None => return Ok(()),
                Some(b' ' | b'\t' | b'\r' | b'\n') => self.at += 1,
                Some(_) => return Err(self.fault(Reason::Syntax, "something follows the end")),
            }
        }
    }
}

/// The fields that an object had.
pub(super) struct Seen {
    fields: u32,
    /// Where it began.
    pub(super) place: Place,
}

impl Seen {
    pub(super) fn has(&self, number: usize) -> bool {
        self.fields & 1 << number != 0
    }

    /// Refuses an object without one of its fields.
    pub(super) fn require(&self, names: &[&str], required: &[usize]) -> Result<()> {
        match required.iter().find(|number| !self.has(**number)) {
            None => Ok(()),
            Some(number) => {
                Err(Refused::new(Reason::MissingField, "it has to be there").at(self.place).within(names[*number]))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Json<&[u8]> {
        Json::new(text.as_bytes())
    }

    #[test]
    fn texts_are_read_as_rfc_8259_has_them() {
        for (text, read) in
            [(r#""""#, ""), (r#""a\"\\\/\b\f\n\r\t""#, "a\"\\/\u{8}\u{c}\n\r\t"), (r#""\u00e9é\ud83d\ude00""#, "éé😀")]
        {
            assert_eq!(json(text).text(99).as_deref(), Ok(read), "{text}");
        }
        for bad in [r#""\x""#, r#""\ud83d""#, r#""\ude00""#, r#""\ud83d\u0041""#, "\"\n\"", r#""\u12g4""#] {
            assert_eq!(json(bad).text(99).map_err(|err| err.reason), Err(Reason::Syntax), "{bad}");
        }
        assert_eq!(Json::new(&b"\"\xff\""[..]).text(99).map_err(|err| err.reason), Err(Reason::Syntax));
        assert_eq!(json(r#""abc""#).text(2).map_err(|err| err.reason), Err(Reason::TooLarge));
        assert_eq!(json(r#""abc"#).text(9).map_err(|err| err.reason), Err(Reason::Truncated));
    }

    #[test]
    fn numbers_are_whole_and_in_bounds() {
        assert_eq!(json(" 18446744073709551615").integer(0, u64::MAX), Ok(u64::MAX));
        for (bad, reason) in [
            ("18446744073709551616", Reason::Value),
            ("-1", Reason::Value),
            ("1.0", Reason::Value),
            ("1e3", Reason::Value),
            ("11", Reason::Value),
            ("01", Reason::Syntax),
            ("\"1\"", Reason::Value),
            ("null", Reason::Value),
            ("", Reason::Truncated),
            ("[[[[[[[[[1]]]]]]]]]", Reason::TooDeep),
        ] {
            assert_eq!(json(bad).integer(0, 10).map_err(|err| err.reason), Err(reason), "{bad}");
        }
    }

    #[test]
    fn a_place_is_a_line_and_a_byte_of_it() {
        let mut text = json("[\n  1,\n  x]");
        let err = text.list(9, |json, _| json.integer(0, 9).map(drop)).expect_err("x is no number");
        assert_eq!((err.place, err.field.as_str()), (Some(Place { line: 3, column: 3 }), "[1]"));
    }
}
