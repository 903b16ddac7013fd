//! `oca manifest verify`: what an appliance would say of a manifest.

use std::{
    fs::File,
    io::{Write, stderr, stdout},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};

use super::{digest, read_signatures, signatures_of};
use crate::{
    asset::{Sha256, UnixTime, show_duration},
    config::Config,
    control::{
        Highest, Limits, Reason, Refused, Signatures, TrustedKeys, judge,
        manifest::{Audience, Manifest, SourceRef, SourceRules, parse},
    },
};

/// What `oca manifest verify` is given.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The manifest
    file: PathBuf,
    /// File of signatures [default: the manifest's name and .sig]
    #[arg(long, value_name = "FILE")]
    signatures: Option<PathBuf>,
    /// JWK Set with keys that are trusted; more than one may be given
    #[arg(long, value_name = "FILE", required_unless_present = "config", conflicts_with = "config")]
    keys: Vec<PathBuf>,
    /// Keys that have to sign
    #[arg(long, value_name = "COUNT", default_value = "1", conflicts_with = "config")]
    threshold: usize,
    /// An appliance's configuration: its keys, its bounds, its sources, and what it is called
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sequence of the manifest that was accepted last
    #[arg(long, value_name = "SEQUENCE")]
    after: Option<u64>,
    /// In place of the clock, in seconds since 1970
    #[arg(long, value_name = "SECONDS")]
    now: Option<u64>,
}

/// Tells; the exit code is 1 where it is refused.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let digest = digest(&arguments.file)?;
    match judged(arguments, &digest)? {
        Ok((manifest, keys)) => {
            tell(&mut stdout(), &manifest, &keys, &digest).context("write")?;
            Ok(ExitCode::SUCCESS)
        }
        Err(refused) => {
            writeln!(stderr(), "refused: {refused}").context("write")?;
            Ok(ExitCode::FAILURE)
        }
    }
}

type Judged = Result<(Manifest, Vec<Box<str>>), Refused>;

fn judged(arguments: &Arguments, digest: &Sha256) -> anyhow::Result<Judged> {
    let config = match &arguments.config {
        // Every fault of it, as it is shown by `oca check-config`.
        Some(path) => Some(Config::load(path).map_err(|faults| anyhow::anyhow!("{faults}"))?),
        None => None,
    };
    let (keys, limits, rules) = match &config {
        Some(config) => (config.control.trusted_keys()?, config.control.limits.clone(), config.source_rules()),
        None => {
            let mut keys = TrustedKeys::new(arguments.threshold, &[]);
            arguments.keys.iter().try_for_each(|file| keys.add_file(file))?;
            (keys, Limits::default(), SourceRules::default())
        }
    };
    if keys.count() == 0 {
        bail!("no key is trusted");
    }
    let path = signatures_of(&arguments.file, arguments.signatures.as_ref());
    if arguments.signatures.is_none() && !path.exists() {
        let what = format!("there is no file of signatures: {}", path.display());
        return Ok(Err(Refused::new(Reason::Unsigned, what)));
    }
    let file = File::open(&arguments.file).with_context(|| format!("read {}", arguments.file.display()))?;
    let size = file.metadata().context("read the manifest")?.len();
    let text = std::fs::metadata(&path).is_ok_and(|found| found.len() <= crate::control::SIGNATURES_SIZE_MAX as u64);
    if !text {
        return Ok(Err(Refused::new(Reason::TooLarge, "the file of signatures is too large or not there")));
    }
    let signatures = read_signatures(&path)?;
    let judging = || -> Judged {
        if size > limits.size_max.0 {
            return Err(Refused::new(Reason::TooLarge, format!("it has {size} bytes, at most {}", limits.size_max)));
        }
        let kids = keys.verify(digest, &Signatures::parse(&signatures)?)?;
        let manifest = parse(file, &limits, &rules)?;
        let now = arguments.now.map_or_else(|| SystemTime::now().into(), UnixTime);
        let other = Sha256::new([0; 32]);
        let highest = arguments.after.map(|sequence| Highest { sequence, digest: other, received: UnixTime(0) });
        // Without a configuration it is nobody's in particular.
        match &config {
            Some(config) => judge(&manifest, &config.control.identity, highest.as_ref(), now)?,
            None => judge(&manifest, &anybody(&manifest.head.audience), highest.as_ref(), now)?,
        }
        Ok((manifest, kids))
    };
    Ok(judging())
}

/// Somebody whom it is for.
fn anybody(audience: &Audience) -> crate::control::Identity {
    let first = |names: &[Box<str>]| names.first().map(ToString::to_string).unwrap_or_default();
    crate::control::Identity {
        appliance: first(&audience.appliances),
        site: first(&audience.sites),
        groups: vec![first(&audience.groups)],
    }
}

fn tell(to: &mut impl Write, manifest: &Manifest, keys: &[Box<str>], digest: &Sha256) -> std::io::Result<()> {
    let (head, now) = (&manifest.head, UnixTime::from(SystemTime::now()));
    let left = |time: UnixTime| show_duration(Duration::from_secs(time.since(now) / 60 * 60));
    let date = |time: UnixTime| httpdate::fmt_http_date(time.into());
    let count = |with: fn(&crate::control::manifest::ManifestAsset) -> bool| {
        manifest.assets().iter().filter(|asset| with(asset)).count()
    };
    writeln!(to, "accepted")?;
    writeln!(to, "  sha256      {digest}")?;
    writeln!(to, "  signed by   {}", keys.join(", "))?;
    writeln!(to, "  sequence    {}", head.sequence)?;
    writeln!(to, "  for         {}", audience(&head.audience))?;
    let begins = if head.not_before <= now { "in force at once".into() } else { date(head.not_before) };
    writeln!(to, "  not before  {begins}")?;
    writeln!(to, "  expires     {} (in {})", date(head.expires), left(head.expires))?;
    let (sizes, digests) = (manifest.bytes(), count(|asset| asset.sha256.is_some()));
    let blocks = count(|asset| asset.blocks().is_some());
    writeln!(to, "  assets      {}, {} bytes in all", manifest.assets().len(), sizes.0)?;
    writeln!(to, "  digests     {digests} of the whole, {blocks} of blocks")?;
    writeln!(to, "  pinned      {}", manifest.assets().iter().filter(|asset| manifest.is_pinned(asset)).count())?;
    writeln!(to, "  purges      {}", head.purge.len())?;
    writeln!(to, "  sources     {}", sources(manifest))?;
    for (rank, asset) in manifest.assets().iter().take(3).enumerate() {
        writeln!(to, "  rank {rank:<6} {} ({})", asset.key, asset.length)?;
    }
    Ok(())
}

/// Where most assets are fetched from, and how many have a list of their own.
fn sources(manifest: &Manifest) -> String {
    let shown = manifest.head.defaults.sources.iter().map(|choice| {
        let wait = match choice.wait.as_secs() {
            0 => String::new(),
            seconds => format!(", after {seconds} s"),
        };
        match &choice.source {
            SourceRef::Name(name) => format!("{name} (cost {}{wait})", choice.cost),
            SourceRef::Url(template) => format!("{template} (cost {}{wait})", choice.cost),
        }
    });
    let defaults = shown.collect::<Vec<_>>().join(", ");
    let of_all = if defaults.is_empty() { "each box's own".into() } else { defaults };
    let has_own = |asset: &&crate::control::manifest::ManifestAsset| {
        asset.details.as_deref().is_some_and(|details| details.sources.is_some())
    };
    match manifest.assets().iter().filter(has_own).count() {
        0 => of_all,
        own => format!("{of_all}; {own} assets have a list of their own"),
    }
}

fn audience(audience: &Audience) -> String {
    if audience.all {
        return "all appliances".into();
    }
    let lists = [("appliances", &audience.appliances), ("sites", &audience.sites), ("groups", &audience.groups)];
    let shown = lists.into_iter().filter(|(_, names)| !names.is_empty()).map(|(kind, names)| {
        let more = names.len().saturating_sub(5);
        let first = names.iter().take(5).map(|name| &**name).collect::<Vec<_>>().join(", ");
        if more == 0 { format!("{kind} {first}") } else { format!("{kind} {first} and {more} more") }
    });
    shown.collect::<Vec<_>>().join("; ")
}
