//! The HTTP clients towards those who command us and whom we report to, and the files that say who we are. For sources see [`download`](super::download).

use std::{io, path::PathBuf, time::Duration};

use reqwest::{
    Certificate, Client, Identity,
    header::{ACCEPT_ENCODING, HeaderMap, HeaderName, HeaderValue},
    redirect::{Attempt, Policy},
};

use super::tls::{Outward, OutwardConfig, OutwardError, outward};

/// Redirects followed at most.
pub(super) const REDIRECTS_MAX: usize = 3;

/// Bytes of a file that says who a client is or whom it trusts.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// What files of [`ClientFiles`] should be.
const FITTING: &str = "a certificate in PEM that fits its key";
const AUTHORITIES: &str = "a list of certificates in PEM";

/// Files that say who a client is, and whom it trusts. They are read when it is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientFiles {
    /// Certificate that it shows, in PEM, followed by those that link it to its authority.
    pub certificate: Option<PathBuf>,
    /// Its private key, in PEM.
    pub key: Option<PathBuf>,
    /// Authorities that are trusted in place of the system's, in PEM.
    pub authorities: Option<PathBuf>,
    /// Fields that it sends with every request, one a line.
    pub headers: Option<PathBuf>,
}

/// Why a client cannot be made. Never shows what a file says.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A file cannot be read.
    #[error("read {0}")]
    File(PathBuf, #[source] io::Error),
    /// A file is not what it should be.
    #[error("{0} is not {1}")]
    Content(PathBuf, &'static str),
    /// The TLS of the system is of no use.
    #[error("set up TLS")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<reqwest::Error> for ClientError {
    fn from(err: reqwest::Error) -> Self {
        Self::Tls(err.into())
    }
}

impl ClientFiles {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.certificate, &self.key, &self.authorities, &self.headers].into_iter().flatten()
    }

    fn identity(&self) -> Result<Option<Identity>, ClientError> {
        let (Some(certificate), Some(key)) = (&self.certificate, &self.key) else { return Ok(None) };
        let both = [read(key)?, vec![b'\n'], read(certificate)?].concat();
        let identity = Identity::from_pem(&both);
        let wrong = || ClientError::Content(certificate.clone(), FITTING);
        identity.map(Some).map_err(|_| wrong())
    }

    fn trusted(&self) -> Result<Option<Vec<Certificate>>, ClientError> {
        let Some(file) = &self.authorities else { return Ok(None) };
        let found = Certificate::from_pem_bundle(&read(file)?).ok().filter(|found| !found.is_empty());
        found.map(Some).ok_or_else(|| ClientError::Content(file.clone(), AUTHORITIES))
    }

    /// What a client of TLS goes by that shows this certificate and trusts these authorities: where there are none, the system's if
    /// `secure`, and nobody's if not.
    pub(super) fn outward(&self, secure: bool) -> Result<OutwardConfig, ClientError> {
        let identity = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            _ => None,
        };
        let authorities = self.authorities.as_ref().map(read).transpose()?;
        let parts = Outward {
            identity: identity.as_ref().map(|(certificate, key)| (certificate.as_slice(), key.as_slice())),
            authorities: authorities.as_deref(),
            system: secure,
        };
        outward(parts).map_err(|err| match (err, &self.certificate, &self.authorities) {
            (OutwardError::Identity, Some(file), _) => ClientError::Content(file.clone(), FITTING),
            (OutwardError::Authorities, _, Some(file)) => ClientError::Content(file.clone(), AUTHORITIES),
            (err, ..) => ClientError::Tls(err.into()),
        })
    }

    /// The fields, whose values are shown to nobody else.
    pub(super) fn headers(&self) -> Result<HeaderMap, ClientError> {
        let mut headers = HeaderMap::new();
        let Some(file) = &self.headers else { return Ok(headers) };
        let wrong = || ClientError::Content(file.clone(), "a list of lines as 'Authorization: Bearer 0123'");
        let text = String::from_utf8(read(file)?).map_err(|_| wrong())?;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (name, value) = line.split_once(':').ok_or_else(wrong)?;
            let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| wrong())?;
            let mut value = HeaderValue::from_str(value.trim()).map_err(|_| wrong())?;
            value.set_sensitive(true);
            headers.append(name, value);
        }
        Ok(headers)
    }
}

fn read(file: &PathBuf) -> Result<Vec<u8>, ClientError> {
    use io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(file)
        .and_then(|opened| opened.take(FILE_BYTES_MAX).read_to_end(&mut bytes))
        .map_err(|err| ClientError::File(file.clone(), err))?;
    Ok(bytes)
}

/// What a client is to keep to.
#[derive(Clone, Copy, Debug)]
pub struct ClientLimits {
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Connections kept open without a request.
    pub idle_max: usize,
    /// Whether it goes to `https://`. Where not, it needs none of the system's certificates, which a bare box may lack.
    pub secure: bool,
}

/// Why a client cannot be made.
pub type Fault = reqwest::Error;

/// Makes a client that asks for bytes as they are (no content coding), takes no proxy from the environment, and follows
/// redirects only within the origin that it asked.
///
/// # Errors
/// The system's trusted certificates, or a file, cannot be read. Blocks while files are.
pub fn client(limits: ClientLimits, files: &ClientFiles) -> Result<Client, ClientError> {
    super::tls::install_provider();
    let mut headers = files.headers()?;
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let mut builder = Client::builder()
        .user_agent(concat!("oca/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers)
        .connect_timeout(limits.connect_timeout)
        .pool_max_idle_per_host(limits.idle_max)
        .pool_idle_timeout(Duration::from_secs(30))
        .tcp_nodelay(true)
        .no_proxy()
        .referer(false)
        .redirect(Policy::custom(follow));
    // Redirects do not leave the origin, and with it the scheme.
    if let Some(identity) = files.identity()? {
        builder = builder.identity(identity);
    }
    let trusted = files.trusted()?.or_else(|| (!limits.secure).then(Vec::new));
    if let Some(trusted) = trusted {
        builder = builder.tls_certs_only(trusted);
    }
    Ok(builder.build()?)
}

/// Who we are to a server, and whom it has to be vouched for by.
#[derive(Clone, Debug, Default)]
pub struct Credentials<'a> {
    /// A certificate, those that link it to its authority, and its private key, in PEM.
    pub identity: Option<&'a [u8]>,
    /// Certificates in PEM of the authorities that are trusted; the system's where there are none.
    pub authorities: Option<Vec<u8>>,
    /// As in [`ClientLimits`].
    pub secure: bool,
}

/// Makes a client that posts to one server: it keeps one connection, follows no redirect (a token would go with it), and takes no
/// proxy from the environment.
///
/// # Errors
/// A certificate or key is none, or the system's trusted certificates cannot be read.
pub fn reporting_client(connect_timeout: Duration, credentials: &Credentials<'_>) -> reqwest::Result<Client> {
    super::tls::install_provider();
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let mut builder = Client::builder()
        .user_agent(concat!("oca/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers)
        .connect_timeout(connect_timeout)
        .pool_max_idle_per_host(1)
        .pool_idle_timeout(Duration::from_secs(90))
        .tcp_nodelay(true)
        .no_proxy()
        .referer(false)
        .redirect(Policy::none());
    if let Some(pem) = credentials.identity {
        builder = builder.identity(Identity::from_pem(pem)?);
    }
    builder = match &credentials.authorities {
        Some(pem) => builder.tls_certs_only(Certificate::from_pem_bundle(pem)?),
        None if credentials.secure => builder,
        None => builder.tls_certs_only([]),
    };
    builder.build()
}

/// Leaving the origin would let a redirect name any host: it stays a redirect, which is a source's fault.
fn follow(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let same = attempt.previous().last().is_some_and(|from| from.origin() == attempt.url().origin());
    if same && attempt.previous().len() <= REDIRECTS_MAX { attempt.follow() } else { attempt.stop() }
}
