//! A certificate and its key: read from files, and checked to belong together before anybody is shown them.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use rustls::{
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::asset::UnixTime;

/// Longest file that is read; a chain with its key has some KiB.
const FILE_MAX: u64 = 1 << 20;

/// Where a certificate and its key lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairFiles {
    /// The certificate, in PEM, and after it those of the authorities that link it to one that clients know.
    pub certificate: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
}

/// A certificate and its key, which belong together.
#[derive(Debug)]
pub struct Pair {
    pub(super) certified: Arc<CertifiedKey>,
    /// Host names it is for, in lower case; `*.` stands for any one label.
    pub(super) names: Vec<String>,
    /// First second in which it is no longer good.
    expiry: UnixTime,
}

/// Why a pair cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// A file cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// What lies in a file is not what should.
    #[error("{} holds {what}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The certificate is of another key.
    #[error("{} is not the key of the first certificate in {}", key.display(), certificate.display())]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The certificate's time is over, or has not come.
    #[error("{} holds a certificate that {}", path.display(), when(*not_before, *not_after, *now))]
    Date {
        /// The certificate's file.
        path: PathBuf,
        /// First second in which it is good.
        not_before: UnixTime,
        /// First second in which it is no longer good.
        not_after: UnixTime,
        /// What the clock says.
        now: UnixTime,
    },
}

impl PairError {
    /// Whether the key is to blame rather than the certificate.
    pub fn is_of_key(&self, files: &PairFiles) -> bool {
        match self {
            Self::Unreadable { path, .. } | Self::Content { path, .. } => *path == files.key,
            Self::Mismatch { .. } => true,
            Self::Date { .. } => false,
        }
    }
}

fn when(not_before: UnixTime, not_after: UnixTime, now: UnixTime) -> String {
    let date = |time: UnixTime| httpdate::fmt_http_date(SystemTime::from(time));
    if now < not_before {
        format!("is not good before {} (it is {})", date(not_before), date(now))
    } else {
        format!("expired on {} (it is {})", date(not_after), date(now))
    }
}

impl Pair {
    /// Reads and checks a pair. Blocks.
    ///
    /// # Errors
    /// What is wrong with it, and with which file.
    pub fn load(files: &PairFiles, now: UnixTime) -> Result<Self, PairError> {
        let content = |path: &Path, what: String| PairError::Content { path: path.into(), what };
        let of_certificate = |what: String| content(&files.certificate, what);
        let (certificate, key) = (read(&files.certificate)?, read(&files.key)?);
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&certificate)
            .collect::<Result<_, _>>()
            .map_err(|err| of_certificate(no_pem(&err)))?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|err| content(&files.key, no_key(&err, &key)))?;
        let first = chain.first().ok_or_else(|| of_certificate("no certificate in PEM".into()))?;
        for (number, authority) in chain.iter().enumerate().skip(1) {
            parse(authority).map_err(|err| of_certificate(format!("a broken certificate (number {number}): {err}")))?;
        }
        let parsed = parse(first).map_err(|err| of_certificate(format!("a broken certificate: {err}")))?;
        let names = names(&parsed).map_err(|err| of_certificate(format!("a certificate with broken names: {err}")))?;
        let seconds = |time: i64| UnixTime(u64::try_from(time).unwrap_or(0));
        let not_before = seconds(parsed.validity().not_before.timestamp());
        // The last second stands in the certificate.
        let not_after = seconds(parsed.validity().not_after.timestamp().saturating_add(1));
        if now < not_before || now >= not_after {
            return Err(PairError::Date { path: files.certificate.clone(), not_before, not_after, now });
        }
        let certified =
            CertifiedKey::from_der(chain.clone(), key, &aws_lc_rs::default_provider()).map_err(|err| match err {
                rustls::Error::InconsistentKeys(_) => {
                    PairError::Mismatch { certificate: files.certificate.clone(), key: files.key.clone() }
                }
                rustls::Error::InvalidCertificate(_) => of_certificate(format!("a certificate of no use: {err}")),
                err => content(&files.key, format!("a key of no use: {err}")),
            })?;
        Ok(Self { certified: Arc::new(certified), names, expiry: not_after })
    }

    /// First second in which it is no longer good.
    pub fn expiry(&self) -> UnixTime {
        self.expiry
    }

    /// Host names it is for.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether `other` shows clients the same.
    pub fn is_same(&self, other: &Self) -> bool {
        // Which key belongs to a certificate stands in it.
        self.certified.cert == other.certified.cert
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, PairError> {
    let unreadable = |source| PairError::Unreadable { path: path.into(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_MAX { Err(unreadable(io::ErrorKind::FileTooLarge.into())) } else { Ok(bytes) }
}

fn no_key(err: &pem::Error, bytes: &[u8]) -> String {
    let is_encrypted = bytes.windows(9).any(|text| text == b"ENCRYPTED");
    match err {
        pem::Error::NoItemsFound if is_encrypted => "a key that needs a password, which nobody could type".into(),
        pem::Error::NoItemsFound => "no private key in PEM".into(),
        err => no_pem(err),
    }
}

/// What is wrong with a file in PEM, without what stands in it: of a key that has lost the ends of its lines all is in the first.
pub(super) fn no_pem(err: &pem::Error) -> String {
    let is_label =
        |bytes: &[u8]| bytes.len() < 64 && bytes.iter().all(|byte| b"ABCDEFGHIJKLMNOPQRSTUVWXYZ -\r\n".contains(byte));
    match err {
        pem::Error::MissingSectionEnd { end_marker } if is_label(end_marker) => {
            let end = String::from_utf8_lossy(end_marker);
            format!("no valid PEM: it ends before the line \"-----END {}-----\"", end.trim_end())
        }
        pem::Error::MissingSectionEnd { .. } | pem::Error::IllegalSectionStart { .. } => {
            "no valid PEM: a line that begins with \"-----BEGIN\" goes on after that (have line ends been lost?)".into()
        }
        err => format!("no valid PEM: {err}"),
    }
}

pub(super) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err("something follows it".into()),
        Err(err) => Err(err.to_string()),
    }
}

/// Whom a certificate was issued to, as text.
pub(super) fn subject(der: &CertificateDer<'_>) -> Option<String> {
    parse(der).ok().map(|certificate| certificate.subject().to_string())
}

fn names(certificate: &X509Certificate<'_>) -> Result<Vec<String>, String> {
    let alternatives = certificate.subject_alternative_name().map_err(|err| err.to_string())?;
    let names = alternatives.iter().flat_map(|names| &names.value.general_names);
    let host = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    };
    Ok(names.filter_map(host).collect())
}
