//! `oca keys`: keys for signed URLs.

use std::{
    io::{Write, stdout},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use crate::serve::signing::keys::{Algorithm, generate};

/// What `oca keys` is given.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a key and write it, secret half included, as a JWK Set
    New {
        /// Its name (kid): tell one from the next, for example by the month
        #[arg(long)]
        kid: String,
        /// ES256 and EdDSA have a public half, which is all that an appliance needs; HS256 is a shared secret
        #[arg(long, value_parser = algorithm, default_value = "ES256")]
        algorithm: Algorithm,
    },
    /// Write a JWK Set without its secrets
    Public {
        /// The JWK Set
        file: PathBuf,
    },
}

fn algorithm(name: &str) -> Result<Algorithm, String> {
    let known = Algorithm::ALL.into_iter().find(|algorithm| algorithm.name().eq_ignore_ascii_case(name));
    known.ok_or_else(|| format!("it is one of {}", Algorithm::ALL.map(Algorithm::name).join(", ")))
}

/// Writes a JWK Set to standard output.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let keys = match &arguments.command {
        Command::New { kid, algorithm } => vec![generate(kid, *algorithm).context("the system has no randomness")?],
        Command::Public { file } => {
            let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
            let set: Value = serde_json::from_str(&text)
                .map_err(|err| anyhow::anyhow!("{} is no JSON at line {}", file.display(), err.line()))?;
            let keys = set["keys"].as_array().with_context(|| format!("{} has no list of keys", file.display()))?;
            let public: Vec<Value> = keys.iter().filter_map(public_half).collect();
            if public.is_empty() {
                bail!("{} has no key with a public half", file.display());
            }
            public
        }
    };
    writeln!(stdout(), "{:#}", json!({ "keys": keys }))?;
    Ok(ExitCode::SUCCESS)
}

/// What may be known of a key by everybody: named one by one, so that no secret is among it.
fn public_half(key: &Value) -> Option<Value> {
    let is_public = matches!(key["kty"].as_str(), Some("EC" | "OKP"));
    let names = ["kty", "crv", "x", "y", "kid", "alg", "use"];
    let members = key.as_object().filter(|_| is_public)?.iter().filter(|(name, _)| names.contains(&name.as_str()));
    Some(Value::Object(members.map(|(name, value)| (name.clone(), value.clone())).collect()))
}
