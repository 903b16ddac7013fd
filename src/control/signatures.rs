//! The file of detached signatures: `{"version": 1, "signatures": [{"kid": "2026-11", "sig": "…"}]}`.

use super::{
    base64url,
    json::{Json, Result},
    refusal::{Reason, Refused},
};

/// Bytes of a file of signatures.
pub const SIGNATURES_SIZE_MAX: usize = 8 << 10;
/// Signatures of one manifest.
const COUNT_MAX: usize = 16;

/// Detached signatures, each with the name of its key. Invariant: no two have one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signatures(Vec<(Box<str>, Vec<u8>)>);

impl Signatures {
    /// Reads a file of signatures.
    ///
    /// # Errors
    /// It is none, or one key signed twice.
    pub fn parse(text: &[u8]) -> Result<Self> {
        const FILE: [&str; 2] = ["version", "signatures"];
        const SIGNATURE: [&str; 2] = ["kid", "sig"];
        if text.len() > SIGNATURES_SIZE_MAX {
            let what = format!("the file of signatures has more than {SIGNATURES_SIZE_MAX} bytes");
            return Err(Refused::new(Reason::TooLarge, what));
        }
        let (mut json, mut signatures) = (Json::new(text), Self::default());
        let seen = json.object(&FILE, |json, field| {
            if field == 0 {
                return match json.integer(0, u64::MAX)? {
                    1 => Ok(()),
                    _ => Err(json.fault(Reason::Version, "version 1 is known here")),
                };
            }
            json.list(COUNT_MAX, |json, _| {
                let (mut kid, mut signature) = (String::new(), Vec::new());
                let seen = json.object(&SIGNATURE, |json, field| {
                    if field == 0 {
                        kid = json.text(128)?;
                        return Ok(());
                    }
                    let bytes = base64url::decode(&json.text(128)?).filter(|bytes| bytes.len() == 64);
                    signature =
                        bytes.ok_or_else(|| json.fault(Reason::Tampered, "64 bytes in base64url are expected"))?;
                    Ok(())
                })?;
                seen.require(&SIGNATURE, &[0, 1])?;
                signatures.add(&kid, signature).map_err(|err| err.at(seen.place))
            })
        });
        seen.and_then(|seen| seen.require(&FILE, &[0, 1]))
            .and_then(|()| json.finish())
            .map_err(|err| err.within("signatures file"))?;
        Ok(signatures)
    }

    /// Adds a signature.
    ///
    /// # Errors
    /// One of this key is there.
    pub fn add(&mut self, kid: &str, signature: Vec<u8>) -> Result<()> {
        if self.0.iter().any(|(known, _)| **known == *kid) {
            return Err(Refused::new(Reason::KeyTwice, format!("key '{kid}' signed twice")));
        }
        self.0.push((kid.into(), signature));
        Ok(())
    }

    /// Each signature with its key's name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(kid, signature)| (&**kid, &**signature))
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        let signatures: Vec<_> = self
            .iter()
            .map(|(kid, signature)| serde_json::json!({ "kid": kid, "sig": base64url::encode(signature) }))
            .collect();
        format!("{:#}\n", serde_json::json!({ "version": 1, "signatures": signatures }))
    }
}
