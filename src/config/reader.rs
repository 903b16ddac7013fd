//! Reads values out of a TOML tree that knows where each of them stands. Never stops at a fault.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    ops::Range,
    path::PathBuf,
    time::Duration,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::faults::Gathering;
use crate::{
    asset::{BitRate, BlockSize, ByteCount, parse_duration},
    catalog::Admission,
    control::Publication,
    fill::{SourceKind, SourceLocation},
    net::{redirects::RedirectHost, tls::Protocol},
    serve::{
        KernelTls,
        clients::Network,
        signing::{Form, Policy},
    },
    storage::EngineChoice,
    sys::sandbox::Sandbox,
    telemetry::{AccessFormat, LogFormat},
};

/// A type that stands in the file.
pub(super) trait Value: Sized + std::fmt::Debug {
    /// Reads it.
    ///
    /// # Errors
    /// What should stand there instead.
    fn read(value: &DeValue<'_>) -> Result<Self, String>;
}

/// What has been gathered so far.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) faults: RefCell<Gathering>,
    /// Where each value that was set stands, by its path ("serve.http").
    spans: RefCell<BTreeMap<String, Range<usize>>>,
    /// The values that were set and could not be read.
    unreadable: RefCell<BTreeSet<String>>,
    /// Every key that has been asked for.
    known: RefCell<Vec<String>>,
    /// What each key came to, set or not, as text to be compared.
    values: RefCell<BTreeMap<String, String>>,
}

/// A table of the file, or the lack of one.
#[derive(Debug)]
pub(super) struct Section<'a, 'i> {
    reading: &'a Reading,
    path: String,
    table: Option<&'a DeTable<'i>>,
    span: Option<Range<usize>>,
    asked: Vec<&'static str>,
}

impl Reading {
    pub(super) fn new(faults: Gathering) -> Self {
        Self {
            faults: RefCell::new(faults),
            spans: RefCell::default(),
            unreadable: RefCell::default(),
            known: RefCell::default(),
            values: RefCell::default(),
        }
    }

    pub(super) fn root<'a, 'i>(&'a self, table: &'a DeTable<'i>) -> Section<'a, 'i> {
        Section { reading: self, path: String::new(), table: Some(table), span: None, asked: Vec::new() }
    }

    /// Where a value stands; `None` where the default holds.
    pub(super) fn span(&self, path: &str) -> Option<Range<usize>> {
        self.spans.borrow().get(path).cloned()
    }

    /// Whether a value was set and could not be read: a fault of its own, from which no other should be concluded.
    pub(super) fn is_unreadable(&self, path: &str) -> bool {
        self.unreadable.borrow().contains(path)
    }

    pub(super) fn add(&self, span: Option<Range<usize>>, message: impl Into<String>, help: impl Into<String>) {
        self.faults.borrow_mut().add(span, message, help);
    }

    /// What each key came to: set, or by default.
    pub(super) fn values(&self) -> BTreeMap<String, String> {
        self.values.borrow().clone()
    }

    #[cfg(test)]
    pub(super) fn known(&self) -> Vec<String> {
        self.known.borrow().clone()
    }
}

impl<'a, 'i> Section<'a, 'i> {
    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.into() } else { format!("{}.{key}", self.path) }
    }

    fn ask(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'i>>> {
        self.asked.push(key);
        self.reading.known.borrow_mut().push(self.path_of(key));
        let value = self.table?.get(key)?;
        self.reading.spans.borrow_mut().insert(self.path_of(key), value.span());
        Some(value)
    }

    /// Reads `key` into `into`, which keeps its default where the key is missing or wrong. Tells whether it was set.
    pub(super) fn read<T: Value>(&mut self, key: &'static str, into: &mut T) -> bool {
        let value = self.ask(key);
        match value.map(|value| (value.span(), T::read(value.get_ref()))) {
            Some((_, Ok(read))) => *into = read,
            Some((span, Err(wanted))) => {
                let path = self.path_of(key);
                self.reading.add(Some(span), format!("{path} cannot be read: {wanted}"), "");
                self.reading.unreadable.borrow_mut().insert(path);
            }
            None => {}
        }
        self.reading.values.borrow_mut().insert(self.path_of(key), format!("{into:?}"));
        value.is_some()
    }

    /// Reads a key that has no default.
    pub(super) fn require<T: Value>(&mut self, key: &'static str, example: &str) -> Option<T> {
        let mut read = None;
        if !self.read(key, &mut read) {
            self.missing(key, example);
        }
        read
    }

    /// Says that a key has to be there.
    pub(super) fn missing(&self, key: &str, example: &str) {
        let path = self.path_of(key);
        self.reading.add(self.span.clone(), format!("{path} is missing"), format!("add {key} = {example}"));
    }

    /// Whether a key is there.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// The table under `key`.
    pub(super) fn section(&mut self, key: &'static str) -> Self {
        let path = self.path_of(key);
        let value = self.ask(key);
        let table = value.and_then(|value| match value.get_ref() {
            DeValue::Table(table) => Some(table),
            other => {
                self.reading.add(
                    Some(value.span()),
                    format!("{path} is {}", kind(other)),
                    format!("write it as a table: [{path}]"),
                );
                None
            }
        });
        Self { reading: self.reading, path, table, span: value.map(Spanned::span), asked: Vec::new() }
    }

    /// The tables under `key`, written as `[[key]]`.
    pub(super) fn sections(&mut self, key: &'static str) -> Vec<Self> {
        let path = self.path_of(key);
        let Some(value) = self.ask(key) else { return Vec::new() };
        let mut sections = Vec::new();
        let items = match value.get_ref() {
            DeValue::Array(items) => items.iter().collect::<Vec<_>>(),
            _ => vec![value],
        };
        for (number, item) in items.into_iter().enumerate() {
            if let DeValue::Table(table) = item.get_ref()
                && matches!(value.get_ref(), DeValue::Array(_))
            {
                let path = format!("{path}[{number}]");
                sections.push(Self {
                    reading: self.reading,
                    path,
                    table: Some(table),
                    span: Some(item.span()),
                    asked: Vec::new(),
                });
            } else {
                self.reading.add(
                    Some(item.span()),
                    format!("{path} is not a list of tables"),
                    format!("write each as [[{path}]]"),
                );
            }
        }
        sections
    }

    /// Refuses what nobody has asked for: a key that is ignored is a mistake that nobody sees.
    pub(super) fn finish(self) {
        let Some(table) = self.table else { return };
        for (key, _) in table.iter().filter(|(key, _)| !self.asked.iter().any(|asked| *asked == key.get_ref().as_ref()))
        {
            let name = key.get_ref();
            let nearest = self.asked.iter().map(|asked| (distance(asked, name), asked)).min();
            let help = match nearest {
                Some((far, near)) if far <= 2.max(name.len() / 3) => format!("did you mean '{near}'?"),
                _ => format!("known here: {}", self.asked.join(", ")),
            };
            self.reading.add(Some(key.span()), format!("{} is not a known key", self.path_of(name)), help);
        }
    }
}

/// Edits that turn one word into the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let change = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// What a value is, in words.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

pub(super) fn text<'v>(value: &'v DeValue<'_>, example: &str) -> Result<&'v str, String> {
    match value {
        DeValue::String(text) => Ok(text),
        other => Err(format!("it is {}; write a text in quotes, for example {example}", kind(other))),
    }
}

pub(super) fn one_of<T: Copy>(value: &DeValue<'_>, choices: &[(&str, T)]) -> Result<T, String> {
    let names = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    let found = text(value, &names)?;
    choices
        .iter()
        .find(|(name, _)| *name == found)
        .map(|(_, choice)| *choice)
        .ok_or(format!("\"{found}\" is none of {names}"))
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl Value for $type {
            fn read(value: &DeValue<'_>) -> Result<Self, String> {
                let DeValue::Integer(number) = value else {
                    return Err(format!("it is {}; write a whole number", kind(value)));
                };
                <$type>::from_str_radix(number.as_str(), number.radix())
                    .map_err(|_| format!("write a whole number from {} to {}", <$type>::MIN, <$type>::MAX))
            }
        }
    )*};
}
integers!(u8, u16, u32, usize);

impl Value for bool {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        value.as_bool().ok_or_else(|| format!("it is {}; write true or false", kind(value)))
    }
}

impl Value for String {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        text(value, "\"name\"").map(Into::into)
    }
}

impl Value for ByteCount {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        text(value, "\"10 GiB\"")?.parse().map_err(|err: crate::asset::UnitError| err.to_string())
    }
}

impl Value for BitRate {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        text(value, "\"40 Gbps\"")?.parse().map_err(|err: crate::asset::UnitError| err.to_string())
    }
}

impl Value for Duration {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        parse_duration(text(value, "\"30 s\"")?).map_err(|err| err.to_string())
    }
}

impl Value for BlockSize {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let bytes = ByteCount::read(value)?;
        Self::new(bytes.0).ok_or_else(|| "a block is a power of two from 64 KiB to 64 MiB".into())
    }
}

impl Value for PathBuf {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let path = Self::from(text(value, "\"/var/lib/oca/disk0\"")?);
        if path.is_absolute() {
            Ok(path)
        } else {
            Err("write an absolute path: where the appliance is started should not matter".into())
        }
    }
}

impl Value for SocketAddr {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let example = "\"0.0.0.0:8080\" or \"[::]:8080\"";
        text(value, example)?.parse().map_err(|_| format!("write an address and port, for example {example}"))
    }
}

impl Value for Network {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        text(value, "\"192.0.2.0/24\"")?.parse()
    }
}

impl Value for RedirectHost {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        text(value, "\"cdn.example\"")?.parse()
    }
}

impl<T: Value> Value for Vec<T> {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let DeValue::Array(items) = value else {
            return Err(format!("it is {}; write a list in brackets", kind(value)));
        };
        items.iter().map(|item| T::read(item.get_ref())).collect()
    }
}

impl<T: Value> Value for Option<T> {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        T::read(value).map(Some)
    }
}

impl Value for EngineChoice {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        one_of(value, &[("auto", Self::Auto), ("io_uring", Self::Uring), ("threads", Self::Threads)])
    }
}

impl Value for Admission {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        one_of(value, &[("always", Self::Always), ("second-request", Self::SecondRequest)])
    }
}

impl Value for Protocol {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        one_of(value, &[Self::Http1, Self::Http2].map(|protocol| (protocol.name(), protocol)))
    }
}

impl Value for KernelTls {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        one_of(value, &[("off", Self::Off), ("auto", Self::Auto)])
    }
}

impl Value for Policy {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        one_of(value, &[("off", Self::Off), ("optional", Self::Optional), ("required", Self::Required)])
    }
}

impl Value for Form {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        one_of(value, &[("uri-signing", Self::UriSigning), ("hmac", Self::Hmac)])
    }
}

impl Value for Sandbox {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        one_of(value, &[("auto", Self::Auto), ("off", Self::Off)])
    }
}

impl Value for SourceKind {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        one_of(value, &[("peer", Self::Peer), ("tier", Self::Tier), ("origin", Self::Origin)])
    }
}

impl Value for LogFormat {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        one_of(value, &[("text", Self::Text), ("json", Self::Json)])
    }
}

impl Value for AccessFormat {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        one_of(value, &[("json", Self::Json), ("combined", Self::Combined)])
    }
}

/// The bucket of `s3://bucket/name`, and the name without slashes at its ends.
fn in_bucket(url: &url::Url) -> Result<(String, String), String> {
    let bucket = url.host_str().filter(|bucket| !bucket.is_empty()).ok_or("the address names no bucket")?;
    if url.port().is_some() || url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
        return Err("write s3://bucket/name; the store's own address is endpoint".into());
    }
    let name = percent_encoding::percent_decode_str(url.path().trim_matches('/')).decode_utf8();
    Ok((bucket.into(), name.map_err(|_| "the name is not UTF-8")?.into_owned()))
}

impl Value for Publication {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let example = "\"https://control.example/latest.json\" or \"file:///srv/manifests/latest.json\"";
        let url: url::Url = text(value, example)?
            .parse()
            .map_err(|err| format!("it is no address ({err}); write for example {example}"))?;
        match url.scheme() {
            "http" | "https" if url.fragment().is_none() && url.host_str().is_some_and(|host| !host.is_empty()) => {
                Ok(Self::Http(url))
            }
            "file" => url.to_file_path().map(Self::File).map_err(|()| "write file:/// and an absolute path".into()),
            "s3" => match in_bucket(&url)? {
                (_, name) if name.is_empty() => {
                    Err("write s3://bucket/folder/latest.json, the pointer's own name".into())
                }
                (bucket, name) => Ok(Self::Bucket { bucket, name }),
            },
            _ => Err(format!("write an address by https, http, s3 or file, without fragment, for example {example}")),
        }
    }
}

impl Value for url::Url {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let example = "\"https://edge1.isp.example/\"";
        let url: Self = text(value, example)?
            .parse()
            .map_err(|err| format!("it is no address ({err}); write for example {example}"))?;
        match url.scheme() {
            "http" | "https" if url.host_str().is_none_or(str::is_empty) => Err("the address names no host".into()),
            "http" | "https" => Ok(url),
            other => Err(format!("'{other}' is not a known scheme; use https or http")),
        }
    }
}

impl Value for SourceLocation {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let example = "\"https://origin.example/\" or \"file:///srv/video\"";
        let mut url: url::Url = text(value, example)?
            .parse()
            .map_err(|err| format!("it is no address ({err}); write for example {example}"))?;
        match url.scheme() {
            "http" | "https" if url.host_str().is_none_or(str::is_empty) => Err("the address names no host".into()),
            "http" | "https" if url.fragment().is_some() => Err("the address of a source has no fragment ('#')".into()),
            "http" | "https" => {
                // Assets lie below it.
                if !url.path().ends_with('/') {
                    url.set_path(&format!("{}/", url.path()));
                }
                Ok(Self::Http(url))
            }
            "file" => {
                url.to_file_path().map(Self::Directory).map_err(|()| "write file:/// and an absolute path".into())
            }
            "s3" => in_bucket(&url).map(|(bucket, prefix)| Self::Bucket { bucket, prefix }),
            other => Err(format!("'{other}' is not a known scheme; use http, https, s3 or file")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_word_is_near_to_the_right_one() {
        assert_eq!(distance("capacity", "capcity"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("listen", "silent"), 4);
    }
}
