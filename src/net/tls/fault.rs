//! What went wrong with TLS towards a server, found below the errors of whoever spoke to it.

use std::{error::Error, io};

use rustls::{AlertDescription, Error as Tls};

/// Why a connection to a server has failed, where it was for its TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsFault {
    /// The server's certificate is not to be trusted, or not its own.
    Certificate(String),
    /// The server wants a certificate of ours, or another than it got.
    AsksForCertificate(String),
    /// The server does not speak TLS.
    Plain,
}

/// What of TLS lies below `err`; `None`: nothing that is told apart here.
pub fn tls_fault(err: &(dyn Error + 'static)) -> Option<TlsFault> {
    let mut next = Some(err);
    while let Some(err) = next {
        if let Some(fault) = err.downcast_ref::<Tls>().and_then(judge) {
            return Some(fault);
        }
        // What an `io::Error` was made of is not among its sources.
        let inner = err.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let inner = inner.map(|inner| -> &(dyn Error + 'static) { inner });
        next = inner.or_else(|| err.source());
    }
    None
}

fn judge(err: &Tls) -> Option<TlsFault> {
    match err {
        Tls::InvalidCertificate(why) => Some(TlsFault::Certificate(why.to_string())),
        Tls::AlertReceived(
            alert @ (AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            // Of an authority that has the name of the one that is expected, and another key.
            | AlertDescription::DecryptError
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied),
        ) => Some(TlsFault::AsksForCertificate(format!("{alert:?}"))),
        Tls::InvalidMessage(_) => Some(TlsFault::Plain),
        _ => None,
    }
}
