//! `oca sign`: signed URLs, to try an appliance with or to compare an issuer's own with.

use std::{
    io::{Write, stdout},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use serde_json::{Map, Value, json};
use url::Url;

use crate::{
    asset::{UnixTime, parse_duration},
    serve::signing::{
        Form, KeySet,
        container::{Container, hash_of, normalized},
        keys::Keys,
        package::ATTRIBUTE,
        plain, token,
    },
};

/// What `oca sign` is given.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// What is to be signed, as players ask for it: http://edge.example/films/1.mp4
    url: Url,
    /// The JWK Set with the key (see `oca keys new`)
    #[arg(long, value_name = "FILE")]
    keys: PathBuf,
    /// The key's name; may be left out where there is one
    #[arg(long)]
    kid: Option<String>,
    /// The plain form, an expiry and an HMAC, in place of a token of RFC 9246
    #[arg(long)]
    hmac: bool,
    /// With --hmac: sign the query too, as an appliance expects it where the query is part of the asset's key (serve.query_in_key)
    #[arg(long, requires = "hmac")]
    query: bool,
    /// How long it is good
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "1 h")]
    expires_in: Duration,
    /// When it expires, in seconds since 1970, in place of --expires-in
    #[arg(long, value_name = "SECONDS")]
    expires: Option<u64>,
    /// Address or prefix of the clients that it is for. In a token it is encrypted with the A128GCM or A256GCM key --client-key
    #[arg(long, value_name = "PREFIX", value_parser = prefix)]
    client: Option<String>,
    /// Name of the key that encrypts --client
    #[arg(long, value_name = "KID", conflicts_with = "hmac")]
    client_key: Option<String>,
    /// Sign all URIs that match this from begin to end, in place of the one that is given
    #[arg(long, conflicts_with = "hmac")]
    regex: Option<String>,
    /// iss: who signs
    #[arg(long, conflicts_with = "hmac")]
    issuer: Option<String>,
    /// aud: for whom
    #[arg(long, conflicts_with = "hmac")]
    audience: Option<String>,
    /// nbf: from when on, in seconds since 1970
    #[arg(long, value_name = "SECONDS", conflicts_with = "hmac")]
    not_before: Option<u64>,
    /// jti: good for one request
    #[arg(long, conflicts_with = "hmac")]
    nonce: Option<String>,
    /// cdnistt and cdniets: have it renewed by cookie, each time for so long
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with = "hmac")]
    renew: Option<Duration>,
    /// cdnistd: segments of the path that the cookie is for
    #[arg(long, value_name = "COUNT", requires = "renew")]
    depth: Option<u32>,
    /// The token as a parameter of the path, not of the query
    #[arg(long, conflicts_with = "hmac")]
    path_style: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|err| err.to_string())
}

fn prefix(text: &str) -> Result<String, String> {
    token::addresses(text).map(|_| text.into()).ok_or_else(|| "write an address or a prefix: 192.0.2.0/24".into())
}

/// Writes the signed URL to standard output.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let url = &arguments.url;
    if !matches!(url.scheme(), "http" | "https") || url.fragment().is_some() {
        bail!("{url} is none that players ask for: it begins with http:// or https:// and has no fragment");
    }
    let form = if arguments.hmac { Form::Hmac } else { Form::UriSigning };
    let keys = Keys::load(&[KeySet { path: arguments.keys.clone(), form, issuers: Vec::new() }])?;
    let key = match &arguments.kid {
        Some(kid) => keys.key(kid, form).with_context(|| format!("{} has no key '{kid}'", arguments.keys.display()))?,
        None => keys.only().with_context(|| format!("name one key of {} by --kid", arguments.keys.display()))?,
    };
    let now: UnixTime = SystemTime::now().into();
    let expires = UnixTime(arguments.expires.unwrap_or(now.0.saturating_add(arguments.expires_in.as_secs())));
    let cannot = || format!("key '{}' has no secret half, or is for other things than signing", key.kid);
    let signed = if arguments.hmac {
        let target = if arguments.query { &url[url::Position::BeforePath..] } else { url.path() };
        let parameters = plain::sign(key, target, expires, arguments.client.as_deref()).with_context(cannot)?;
        with_parameter(url, &parameters)
    } else {
        let claims = claims(arguments, expires, &keys)?;
        let token = token::sign(key, &claims).with_context(cannot)?;
        let parameter = format!("{ATTRIBUTE}={token}");
        if arguments.path_style { in_path(url, &parameter) } else { with_parameter(url, &parameter) }
    };
    writeln!(stdout(), "{signed}")?;
    Ok(ExitCode::SUCCESS)
}

/// The claims, in the order of RFC 9246, 2.1.
fn claims(arguments: &Arguments, expires: UnixTime, keys: &Keys) -> anyhow::Result<Map<String, Value>> {
    let url = &arguments.url;
    let uri = normalized(url.scheme() == "https", url.authority(), &url[url::Position::BeforePath..]);
    let uris = match &arguments.regex {
        Some(regex) => format!("regex:{regex}"),
        None => hash_of(&uri),
    };
    let container = Container::parse(&uris, usize::MAX).context("--regex is no regular expression")?;
    if !container.holds(&uri) {
        bail!("--regex does not match {uri} from begin to end");
    }
    let clients = match (&arguments.client, &arguments.client_key) {
        (Some(client), Some(kid)) => {
            let key = keys.key(kid, Form::UriSigning).with_context(|| format!("there is no key '{kid}'"))?;
            Some(token::seal(key, client).with_context(|| format!("key '{kid}' is none for A128GCM or A256GCM"))?)
        }
        (Some(_), None) => bail!("--client is encrypted in a token (RFC 9246, 2.1.10): name a key by --client-key"),
        (None, _) => None,
    };
    let renew = arguments.renew.map(|time| time.as_secs());
    let all = [
        ("iss", json!(arguments.issuer)),
        ("aud", json!(arguments.audience)),
        ("exp", json!(expires.0)),
        ("nbf", json!(arguments.not_before)),
        ("jti", json!(arguments.nonce)),
        ("cdniip", json!(clients)),
        ("cdniuc", json!(uris)),
        ("cdniets", json!(renew)),
        ("cdnistt", json!(renew.map(|_| 1))),
        ("cdnistd", json!(arguments.depth)),
    ];
    Ok(all.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| (name.into(), value)).collect())
}

fn with_parameter(url: &Url, parameter: &str) -> String {
    let separator = if url.query().is_some() { '&' } else { '?' };
    format!("{url}{separator}{parameter}")
}

fn in_path(url: &Url, parameter: &str) -> String {
    let (before, after) = (&url[..url::Position::AfterPath], &url[url::Position::AfterPath..]);
    format!("{before};{parameter}{after}")
}
