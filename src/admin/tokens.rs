//! The tokens by which operators are known: read from a file, kept as digests only.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// Longest file that is read, in bytes.
const FILE_MAX: u64 = 64 << 10;
/// Shortest token, in characters: 128 bits in hexadecimal.
const TOKEN_MIN: usize = 32;
/// Longest token, in characters.
const TOKEN_MAX: usize = 1024;

/// Why tokens cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// The file cannot be read.
    #[error("read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// What lies in it is no list of tokens. Never says what does.
    #[error("{} {what}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

/// Tokens, as digests: what is not in memory cannot be logged, and digests are compared in constant time.
#[derive(Debug, PartialEq, Eq)]
pub struct Tokens(Vec<blake3::Hash>);

impl Tokens {
    /// Reads a file: one token per line, so that a new one can be handed out before the old one goes; empty lines and those that
    /// begin with `#` are none. Blocks.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn load(path: &Path) -> Result<Self, TokensError> {
        let unreadable = |source| TokensError::Unreadable { path: path.into(), source };
        let content = |what: String| TokensError::Content { path: path.into(), what };
        let data = fs::metadata(path).map_err(unreadable)?;
        if !data.is_file() {
            return Err(content("is no regular file".into()));
        }
        if data.permissions().mode() & 0o007 != 0 {
            return Err(content("is open to every user of this machine".into()));
        }
        let mut text = String::new();
        fs::File::open(path).and_then(|file| file.take(FILE_MAX + 1).read_to_string(&mut text)).map_err(unreadable)?;
        if text.len() as u64 > FILE_MAX {
            return Err(content(format!("is longer than {FILE_MAX} bytes")));
        }
        Self::parse(&text).map_err(content)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let lines = text.lines().zip(1..).map(|(line, number)| (line.trim(), number));
        let mut tokens = Vec::new();
        for (token, line) in lines.filter(|(line, _)| !line.is_empty() && !line.starts_with('#')) {
            if token.len() < TOKEN_MIN || token.len() > TOKEN_MAX {
                return Err(format!("holds a token of {} characters in line {line}", token.len()));
            }
            // RFC 6750, 2.1.
            let can_be_sent = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
            if !token.bytes().all(can_be_sent) {
                return Err(format!("holds a character in line {line} that no token may have"));
            }
            tokens.push(blake3::hash(token.as_bytes()));
        }
        if tokens.is_empty() { Err("holds no token".into()) } else { Ok(Self(tokens)) }
    }

    /// Whether it is one of them. Takes as long for each that is not.
    pub fn knows(&self, token: &[u8]) -> bool {
        if token.len() > TOKEN_MAX {
            return false;
        }
        let asked = blake3::hash(token);
        self.0.iter().fold(false, |known, token| known | (*token == asked))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never, once loaded.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn tokens_stand_one_per_line() {
        let tokens = Tokens::parse(&format!("# old\n{TOKEN}\r\n\n  {TOKEN}-2==\n")).expect("valid");
        assert_eq!(tokens.len(), 2);
        assert!(tokens.knows(TOKEN.as_bytes()) && tokens.knows(format!("{TOKEN}-2==").as_bytes()));
        let half = &TOKEN[..16];
        for wrong in ["", half, "# old", &format!("{TOKEN} "), &TOKEN.to_uppercase(), &"0".repeat(100_000)] {
            assert!(!tokens.knows(wrong.as_bytes()), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_no_token_is_refused_and_not_repeated() {
        for (text, expected) in [
            ("".into(), "holds no token"),
            ("# only a comment\n".into(), "holds no token"),
            ("secret\n".into(), "a token of 6 characters in line 1"),
            (format!("\n{TOKEN} secret"), "a character in line 2"),
            (format!("{TOKEN}\u{e4}"), "a character in line 1"),
            ("s".repeat(1025), "a token of 1025 characters"),
        ] {
            let told = Tokens::parse(&text).expect_err("no good");
            assert!(told.contains(expected) && !told.contains("secret"), "{text:?}: {told}");
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        fs::write(&path, TOKEN).expect("written");
        let mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("it is ours");
        mode(0o644);
        assert!(Tokens::load(&path).expect_err("open").to_string().contains("open to every user"));
        mode(0o640);
        assert_eq!(Tokens::load(&path).expect("good").len(), 1);
        assert!(Tokens::load(folder.path()).expect_err("a folder").to_string().contains("no regular file"));
        assert!(Tokens::load(&folder.path().join("none")).is_err());
    }
}
