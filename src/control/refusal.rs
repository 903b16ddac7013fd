//! Why something from the control plane is refused, and where in it.

use std::fmt;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $label:literal,)*) => {
        /// Why a manifest is refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])* $name,)*
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name in metrics, answers and logs.
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)*
                }
            }
        }
    };
}

reasons! {
    /// There is no signature of a trusted key, or fewer than the threshold asks for.
    Unsigned = "unsigned",
    /// A signature names a key that is not trusted.
    UnknownKey = "unknown-key",
    /// A signature names a key that was revoked.
    RevokedKey = "revoked-key",
    /// One key signed twice.
    KeyTwice = "key-twice",
    /// A signature does not belong to these bytes.
    Tampered = "tampered",
    /// It ends in the middle.
    Truncated = "truncated",
    /// Its sequence is not above that of one that was accepted.
    Rollback = "rollback",
    /// Its time is over.
    Expired = "expired",
    /// Its time has not come.
    NotYet = "not-yet",
    /// It is for others.
    NotForUs = "not-for-us",
    /// It is of a version that is not known here.
    Version = "version",
    /// It is no JSON.
    Syntax = "syntax",
    /// A field that version 1 does not have.
    UnknownField = "unknown-field",
    /// A field that has to be there is not.
    MissingField = "missing-field",
    /// A field stands twice in one object.
    DuplicateField = "duplicate-field",
    /// An asset is in the list twice.
    DuplicateAsset = "duplicate-asset",
    /// A value that its field cannot have.
    Value = "value",
    /// More bytes, assets, or bytes in a text, than are allowed.
    TooLarge = "too-large",
    /// Lists in lists, or objects in objects.
    TooDeep = "too-deep",
    /// It expands to more than is allowed.
    Bomb = "bomb",
    /// It cannot be expanded.
    Encoding = "encoding",
    /// A path that leaves its folder, or is none.
    Path = "path",
    /// A source that this appliance does not have, or an address that it may not fetch from.
    Source = "source",
    /// What came is not what the pointer says, or the pointer is none.
    Pointer = "pointer",
    /// It could not be fetched.
    Fetch = "fetch",
    /// It could not be kept on disk.
    State = "state",
}

impl Reason {
    /// Whether the same bytes may be taken another time.
    pub(super) fn may_pass(self) -> bool {
        let of_keys = matches!(self, Self::Unsigned | Self::UnknownKey | Self::RevokedKey | Self::Tampered);
        of_keys || matches!(self, Self::NotYet | Self::State)
    }
}

/// A place in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Line, from 1.
    pub line: u64,
    /// Byte within the line, from 1.
    pub column: u64,
}

/// Why something is refused, and where in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The kind of fault.
    pub reason: Reason,
    /// The field, such as `assets[17].length`; empty where it is no field's fault.
    pub field: String,
    /// Where it was noticed.
    pub place: Option<Place>,
    /// What is wrong, in words.
    pub what: String,
}

impl Refused {
    /// A fault of no field.
    pub fn new(reason: Reason, what: impl Into<String>) -> Self {
        Self { reason, field: String::new(), place: None, what: what.into() }
    }

    /// Says that it lies within a field.
    #[must_use]
    pub fn within(mut self, field: &str) -> Self {
        let joint = if self.field.is_empty() || self.field.starts_with('[') { "" } else { "." };
        self.field = format!("{field}{joint}{}", self.field);
        self
    }

    /// Says where it is.
    #[must_use]
    pub fn at(mut self, place: Place) -> Self {
        self.place = Some(place);
        self
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason.label())?;
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        if let Some(Place { line, column }) = self.place {
            write!(f, " (line {line}, column {column})")?;
        }
        write!(f, ": {}", self.what)
    }
}

impl std::error::Error for Refused {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_field_and_its_place() {
        let refused = Refused::new(Reason::Value, "a whole number is expected").within("length").within("[17]");
        let refused = refused.within("assets").at(Place { line: 3, column: 14 });
        assert_eq!(refused.to_string(), "value: assets[17].length (line 3, column 14): a whole number is expected");
    }

    #[test]
    fn every_reason_has_a_label_of_its_own() {
        let labels: std::collections::HashSet<_> = Reason::ALL.iter().map(|reason| reason.label()).collect();
        assert_eq!(labels.len(), Reason::ALL.len());
    }
}
