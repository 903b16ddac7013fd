//! The small file that is published under one name and says which manifest is the newest:
//! `{"version": 1, "manifest": "manifests/….json.zst", "sha256": "…", "length": 123, "signatures": "manifests/….json.zst.sig"}`.

use super::{
    json::{Json, Result},
    refusal::{Reason, Refused},
};
use crate::asset::{AssetKey, Sha256};

/// Bytes of a pointer.
pub(super) const POINTER_SIZE_MAX: u64 = 4096;

/// Which manifest is the newest. What it says is signed by nobody: it is believed only as far as the manifest bears it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// Path of the manifest, from the folder that the pointer lies in.
    pub manifest: AssetKey,
    /// Path of its signatures.
    pub signatures: AssetKey,
    /// Digest of the manifest as published.
    pub sha256: Sha256,
    /// Its length in bytes.
    pub length: u64,
}

impl Pointer {
    /// Reads a pointer.
    ///
    /// # Errors
    /// It is none, or its paths leave its folder.
    pub fn parse(text: &[u8]) -> Result<Self> {
        const FIELDS: [&str; 5] = ["version", "manifest", "signatures", "sha256", "length"];
        let mut json = Json::new(text);
        let (mut paths, mut sha256, mut length) = ([None, None], None, 0);
        let seen = json.object(&FIELDS, |json, field| {
            match FIELDS[field] {
                "version" => {
                    if json.integer(0, u64::MAX)? != 1 {
                        return Err(json.fault(Reason::Version, "version 1 is known here"));
                    }
                }
                "sha256" => {
                    let digest = Sha256::from_hex(&json.text(64)?);
                    let none = || json.fault(Reason::Value, "64 lower-case hexadecimal digits are expected");
                    sha256 = Some(digest.ok_or_else(none)?);
                }
                "length" => length = json.integer(1, u64::MAX)?,
                _ => {
                    let path = AssetKey::from_record(&json.text(1024)?, None);
                    let path = path.map_err(|err| json.fault(Reason::Path, err.to_string()))?;
                    paths[usize::from(FIELDS[field] == "signatures")] = Some(path);
                }
            }
            Ok(())
        });
        seen.and_then(|seen| seen.require(&FIELDS, &[0, 1, 2, 3, 4]))
            .and_then(|()| json.finish())
            .map_err(|err| err.within("pointer"))?;
        match (paths, sha256) {
            ([Some(manifest), Some(signatures)], Some(sha256)) => Ok(Self { manifest, signatures, sha256, length }),
            _ => Err(Refused::new(Reason::Pointer, "it is not whole")),
        }
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        let Self { manifest, signatures, sha256, length } = self;
        let fields = serde_json::json!({
            "version": 1,
            "manifest": manifest.as_str(),
            "signatures": signatures.as_str(),
            "sha256": sha256.to_string(),
            "length": length,
        });
        format!("{fields:#}\n")
    }
}
