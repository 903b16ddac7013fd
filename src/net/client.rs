//! The HTTP client towards sources.

use std::time::Duration;

use reqwest::{
    Client,
    header::{ACCEPT_ENCODING, HeaderMap, HeaderValue},
    redirect::{Attempt, Policy},
};

/// Redirects followed at most, and those only within one origin.
const REDIRECTS_MAX: usize = 3;

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

/// Makes a client that asks for bytes as they are (no content coding), takes no proxy from the environment, and follows
/// redirects only within the origin that it asked.
///
/// # Errors
/// The system's trusted certificates cannot be read.
pub fn client(limits: ClientLimits) -> reqwest::Result<Client> {
    super::tls::install_provider();
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let builder = Client::builder()
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
    if limits.secure { builder } else { builder.tls_certs_only([]) }.build()
}

/// Leaving the origin would let a redirect name any host: it stays a redirect, which is a source's fault.
fn follow(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let same = attempt.previous().last().is_some_and(|from| from.origin() == attempt.url().origin());
    if same && attempt.previous().len() <= REDIRECTS_MAX { attempt.follow() } else { attempt.stop() }
}
