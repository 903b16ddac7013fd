//! The commands' way to the admin listener of an appliance that runs.
//!
//! `--admin` or the configuration -> address -> request, with a token where one is given -> JSON, or a clear error
//!
//! [`Reach`] is what every such command is given; [`with_operator`] carries one out and turns what goes wrong into an exit code.

use std::{
    io::{Write, stderr},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use reqwest::{Client, Method, StatusCode, Url};
use serde_json::Value;

use crate::{
    config::{Config, Machine},
    net::{
        client::{ClientFiles, ClientLimits, client},
        tls::{TlsFault, tls_fault},
    },
};

/// Exit code where nobody answers for the appliance.
const UNREACHABLE: u8 = 3;
/// Where the configuration lies on an installed box.
const INSTALLED: &str = "/etc/oca/oca.toml";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for an answer. A purge of everything takes seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of an answer.
const ANSWER_MAX: usize = 64 << 20;

/// Which appliance a command is for.
#[derive(Debug, clap::Args)]
pub(super) struct Reach {
    /// Address of the appliance's admin listener, for example http://127.0.0.1:9090 or https://box.example:9090
    #[arg(long, value_name = "URL", env = "OCA_ADMIN", value_parser = admin_url)]
    admin: Option<Url>,
    /// The appliance's configuration, which names its admin listener [default: /etc/oca/oca.toml where it is there]
    #[arg(long, value_name = "FILE", conflicts_with = "admin")]
    config: Option<PathBuf>,
    /// File whose first line is the token that the admin listener asks for; comments (#) and empty lines do not count
    #[arg(long, value_name = "FILE", env = "OCA_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// File with the authority, in PEM, that vouches for the appliance's certificate [default: those of the system]
    #[arg(long, value_name = "FILE", env = "OCA_CA")]
    ca: Option<PathBuf>,
    /// File with the certificate, in PEM, by which the appliance knows who asks, followed by those that link it to its authority
    #[arg(long, value_name = "FILE", env = "OCA_CERTIFICATE", requires = "key")]
    certificate: Option<PathBuf>,
    /// File with that certificate's private key, in PEM
    #[arg(long, value_name = "FILE", env = "OCA_KEY", requires = "certificate")]
    key: Option<PathBuf>,
}

/// What is said to an appliance and back. Answers are JSON; anything else is an error.
#[derive(Debug)]
pub(super) struct Operator {
    client: Client,
    base: Url,
    token: Option<String>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum OperatorError {
    /// Nobody listens, or something else does.
    #[error(
        "no appliance answers at {base}: {why}\nIs it running? Its configuration says where it listens (admin.listen); --admin URL names another address"
    )]
    Unreachable {
        /// Where it was looked for.
        base: Url,
        /// What the system said.
        why: String,
    },
    /// What is there does not prove to be the appliance.
    #[error(
        "what answers at {base} does not prove to be the appliance: {why}\n--ca FILE names the authority that vouches for it; the address has to name it as its certificate does"
    )]
    Untrusted {
        /// Where it was looked for.
        base: Url,
        /// What is wrong with its certificate.
        why: String,
    },
    /// Its TLS asks for a certificate, and gets none that it trusts.
    #[error(
        "the appliance at {base} knows who asks by their certificate ({why}); --certificate FILE and --key FILE name yours"
    )]
    NoCertificate {
        /// Where it is.
        base: Url,
        /// What it said.
        why: String,
    },
    /// It wants to know who asks.
    #[error(
        "the appliance at {base} does not know who asks ({status}); --token-file FILE gives it the token that it expects, --certificate and --key show it who you are"
    )]
    Unknown {
        /// Where it is.
        base: Url,
        /// What it said.
        status: StatusCode,
    },
    /// It says no.
    #[error("the appliance refuses: {words} ({code})")]
    Refused {
        /// For programs.
        code: String,
        /// For people.
        words: String,
    },
}

/// Carries out `work` against the appliance that `reach` names; gives the process's exit code: 1 where the appliance refuses, 2 where the
/// configuration has faults, 3 where nobody answers.
///
/// # Errors
/// What goes wrong on this side.
pub(super) fn with_operator(
    reach: &Reach,
    work: impl AsyncFnOnce(&Operator) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    let base = match reach.base() {
        Ok(base) => base,
        Err(faults) => {
            writeln!(stderr(), "{faults}")?;
            return Ok(ExitCode::from(super::FAULTY));
        }
    };
    let token = reach.token_file.as_deref().map(read_token).transpose()?;
    let secure = base.scheme() == "https";
    anyhow::ensure!(
        secure || (reach.ca.is_none() && reach.certificate.is_none()),
        "{base} is asked without TLS, where nobody proves who they are: --ca and --certificate are for an https:// address"
    );
    anyhow::ensure!(
        secure || token.is_none() || is_here(&base),
        "{base} is another machine, and without TLS everybody between here and there could read the token: ask by https://"
    );
    let limits = ClientLimits { connect_timeout: CONNECT_TIMEOUT, idle_max: 1, secure };
    let files = ClientFiles {
        certificate: reach.certificate.clone(),
        key: reach.key.clone(),
        authorities: reach.ca.clone(),
        headers: None,
    };
    let operator = Operator { client: client(limits, &files).context("set up a client")?, base, token };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    match runtime.block_on(work(&operator)) {
        Err(err) if matches!(err.downcast_ref(), Some(OperatorError::Unreachable { .. })) => {
            writeln!(stderr(), "oca: {err:#}")?;
            Ok(ExitCode::from(UNREACHABLE))
        }
        done => done,
    }
}

impl Reach {
    /// The address, or the faults of the configuration that should name it.
    fn base(&self) -> Result<Url, crate::config::ConfigFaults> {
        if let Some(admin) = &self.admin {
            return Ok(admin.clone());
        }
        let installed = || Some(PathBuf::from(INSTALLED)).filter(|file| file.exists());
        let config = match self.config.clone().or_else(installed) {
            // Keys and disks that it names are the appliance's business; who commands it may not be allowed to look at them.
            Some(file) => Config::load_on(&file, Machine { now: None, ..Machine::here() })?,
            None => Config::default(),
        };
        Ok(url_of(config.admin.listen, config.admin.tls.is_some()))
    }
}

/// Whether an address is one of this machine, so that nobody listens in between.
fn is_here(base: &Url) -> bool {
    let host = base.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// Where a listener of this machine is reached.
fn url_of(listen: SocketAddr, secure: bool) -> Url {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let scheme = if secure { "https" } else { "http" };
    let text = format!("{scheme}://{}/", SocketAddr::new(ip, listen.port()));
    text.parse().expect("an address and a port make a URL")
}

fn admin_url(text: &str) -> Result<Url, String> {
    let example = "write for example http://127.0.0.1:9090";
    let url: Url = text.parse().map_err(|err| format!("it is no address ({err}); {example}"))?;
    match url.scheme() {
        "http" | "https" if url.host_str().is_some() => Ok(url),
        _ => Err(format!("it is no http:// or https:// address; {example}")),
    }
}

fn read_token(file: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read the token {}", file.display()))?;
    // As the appliance reads it, which takes several while one replaces another: any of them will do.
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let token = lines.next().with_context(|| format!("{} holds no token", file.display()))?;
    anyhow::ensure!(
        token.bytes().all(|byte| byte.is_ascii_graphic()),
        "{} is no token: one word of printable characters",
        file.display()
    );
    Ok(token.to_owned())
}

impl Operator {
    /// What the appliance says at `path` ("status").
    ///
    /// # Errors
    /// See [`OperatorError`].
    pub(super) async fn get(&self, path: &str) -> Result<Value, OperatorError> {
        self.ask(Method::GET, path, None).await
    }

    /// How the appliance is.
    ///
    /// # Errors
    /// See [`OperatorError`]. What does not say whether it is ready is no appliance, whatever else it says.
    pub(super) async fn status(&self) -> Result<Value, OperatorError> {
        let status = self.get("status").await?;
        if status["ready"].is_boolean() {
            return Ok(status);
        }
        let why = "what answers there is no appliance: it does not say whether it is ready".into();
        Err(OperatorError::Unreachable { base: self.base.clone(), why })
    }

    /// What the appliance says to an order at `path` ("v1/purge").
    ///
    /// # Errors
    /// See [`OperatorError`].
    pub(super) async fn post(&self, path: &str, order: &Value) -> Result<Value, OperatorError> {
        self.ask(Method::POST, path, Some(order)).await
    }

    async fn ask(&self, method: Method, path: &str, order: Option<&Value>) -> Result<Value, OperatorError> {
        let unreachable = |why: String| OperatorError::Unreachable { base: self.base.clone(), why };
        let url = self.base.join(path).map_err(|err| unreachable(err.to_string()))?;
        let mut request = self.client.request(method, url).timeout(ANSWER_TIMEOUT);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(order) = order {
            request = request.json(order);
        }
        let mut response = request.send().await.map_err(|err| self.no_answer(&err))?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|err| self.no_answer(&err))? {
            if body.len() + chunk.len() > ANSWER_MAX {
                return Err(unreachable(format!("it answers with more than {ANSWER_MAX} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        let value: Option<Value> = serde_json::from_slice(&body).ok();
        match value {
            _ if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                Err(OperatorError::Unknown { base: self.base.clone(), status })
            }
            Some(value) if status.is_success() => Ok(value),
            Some(value) if value["error"]["message"].is_string() => Err(OperatorError::Refused {
                code: value["error"]["code"].as_str().unwrap_or("unknown").to_owned(),
                words: value["error"]["message"].as_str().unwrap_or_default().to_owned(),
            }),
            _ => Err(unreachable(format!("what answers {status} there is none, or one of another version"))),
        }
    }
}

impl Operator {
    /// Why a request came to nothing.
    fn no_answer(&self, err: &reqwest::Error) -> OperatorError {
        let base = self.base.clone();
        match tls_fault(err) {
            Some(TlsFault::Certificate(why)) => OperatorError::Untrusted { base, why },
            Some(TlsFault::AsksForCertificate(why)) => OperatorError::NoCertificate { base, why },
            Some(TlsFault::Plain) => {
                OperatorError::Unreachable { base, why: "it does not speak TLS; http:// is without".into() }
            }
            None => OperatorError::Unreachable { base, why: innermost(err) },
        }
    }
}

/// What lies at the bottom of an error: "connection refused" rather than "error sending request".
fn innermost(err: &(dyn std::error::Error + 'static)) -> String {
    let mut deepest = err;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_all_addresses_is_reached_by_the_loopback() {
        for (listen, url) in [
            ("127.0.0.1:9090", "http://127.0.0.1:9090/"),
            ("0.0.0.0:9090", "http://127.0.0.1:9090/"),
            ("[::]:1", "http://[::1]:1/"),
            ("192.0.2.1:80", "http://192.0.2.1/"),
        ] {
            assert_eq!(url_of(listen.parse().expect("an address"), false).as_str(), url, "{listen}");
        }
        let secure = url_of("0.0.0.0:9090".parse().expect("an address"), true);
        assert_eq!(secure.as_str(), "https://127.0.0.1:9090/");
    }

    #[test]
    fn only_this_machine_is_told_a_token_in_the_clear() {
        for (base, here) in [
            ("http://127.0.0.1:9090/", true),
            ("http://localhost/", true),
            ("http://[::1]:1/", true),
            ("http://[::ffff:127.0.0.1]:1/", true),
            ("http://192.0.2.1/", false),
            ("http://localhost.example/", false),
        ] {
            assert_eq!(is_here(&base.parse().expect("an address")), here, "{base}");
        }
    }

    #[test]
    fn of_several_tokens_the_first_is_taken() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("token");
        let read = |text: &str| {
            std::fs::write(&file, text).expect("written");
            read_token(&file).map_err(|err| err.to_string())
        };
        assert_eq!(read("# who\n\n one\r\ntwo\n").as_deref(), Ok("one"));
        for none in ["", "\n#\n", "two words\n"] {
            assert!(read(none).is_err_and(|why| why.contains("token")), "{none:?}");
        }
    }

    #[test]
    fn an_admin_address_is_checked() {
        assert!(admin_url("http://127.0.0.1:9090").is_ok());
        for wrong in ["127.0.0.1:9090", "ftp://a/", "x", ""] {
            assert!(admin_url(wrong).is_err_and(|why| why.contains("http://127.0.0.1:9090")), "{wrong}");
        }
    }
}
