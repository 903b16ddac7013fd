//! `oca manifest`: the control plane's side of a manifest, so that one in any language can be checked against ours.

mod build;
mod verify;

use std::{
    fs::{self, File},
    io::{Write as _, stdout},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};

use crate::{
    asset::{AssetKey, Sha256},
    control::{Pointer, SIGNATURES_SIZE_MAX, Signatures, SigningKey, digest_of},
};

/// What `oca manifest` is given.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the files of a folder, or those that a list names, as a manifest
    Build(Box<build::Arguments>),
    /// Sign a manifest as it is published: compress it first
    Sign(SignArguments),
    /// Tell what an appliance would say of a manifest
    Verify(Box<verify::Arguments>),
    /// Put a manifest where appliances look for it, under its digest, and point to it
    Publish(PublishArguments),
}

#[derive(Debug, clap::Args)]
struct SignArguments {
    /// The manifest
    file: PathBuf,
    /// JWK Set with the one key that signs: `oca keys new --algorithm EdDSA` makes it
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// File of signatures; those of other keys in it are kept [default: the manifest's name and .sig]
    #[arg(long, value_name = "FILE")]
    signatures: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct PublishArguments {
    /// The manifest
    file: PathBuf,
    /// Folder that a web server or a copy to an object store takes it from
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Name of the pointer in that folder, which appliances are given the address of (control.pull)
    #[arg(long, value_name = "NAME", default_value = "latest.json")]
    pointer: String,
    /// File of signatures [default: the manifest's name and .sig]
    #[arg(long, value_name = "FILE")]
    signatures: Option<PathBuf>,
}

/// Carries out what is asked for.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    match &arguments.command {
        Command::Build(arguments) => build::run(arguments),
        Command::Sign(arguments) => sign(arguments),
        Command::Verify(arguments) => verify::run(arguments),
        Command::Publish(arguments) => publish(arguments),
    }
}

fn signatures_of(manifest: &Path, given: Option<&PathBuf>) -> PathBuf {
    given.cloned().unwrap_or_else(|| {
        let mut name = manifest.as_os_str().to_owned();
        name.push(".sig");
        name.into()
    })
}

fn digest(path: &Path) -> anyhow::Result<Sha256> {
    let read = || format!("read {}", path.display());
    digest_of(&mut File::open(path).with_context(read)?).with_context(read)
}

/// The text of a file of signatures.
fn read_signatures(path: &Path) -> anyhow::Result<Vec<u8>> {
    let size = fs::metadata(path).with_context(|| format!("read {}", path.display()))?.len();
    if size > SIGNATURES_SIZE_MAX as u64 {
        bail!("{} has more than {SIGNATURES_SIZE_MAX} bytes", path.display());
    }
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

fn sign(arguments: &SignArguments) -> anyhow::Result<ExitCode> {
    let (key, digest) = (SigningKey::load(&arguments.key)?, digest(&arguments.file)?);
    let path = signatures_of(&arguments.file, arguments.signatures.as_ref());
    let mut signatures = Signatures::default();
    if path.exists() {
        for (kid, signature) in Signatures::parse(&read_signatures(&path)?)?.iter().filter(|(kid, _)| **kid != *key.kid)
        {
            signatures.add(kid, signature.to_vec())?;
        }
    }
    signatures.add(&key.kid, key.sign(&digest))?;
    replace(&path, signatures.to_text().as_bytes())?;
    writeln!(stdout(), "{}: signed by key '{}' (sha256 {digest})", path.display(), key.kid)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a file aside and renames it, so that nobody reads half of one.
fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    place(path, |file| file.write_all(bytes))
}

fn place(path: &Path, write: impl FnOnce(&mut File) -> std::io::Result<()>) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().with_context(|| format!("{} names no file", path.display()))?;
    let aside = folder.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let mut made = File::create(&aside).with_context(|| format!("write {}", aside.display()))?;
    let done = write(&mut made).and_then(|()| made.sync_all()).and_then(|()| fs::rename(&aside, path));
    if done.is_err() {
        // What went wrong is told; that nothing could be cleared away as well would add nothing.
        drop(fs::remove_file(&aside));
    }
    done.with_context(|| format!("write {}", path.display()))
}

fn publish(arguments: &PublishArguments) -> anyhow::Result<ExitCode> {
    let digest = digest(&arguments.file)?;
    let signatures = read_signatures(&signatures_of(&arguments.file, arguments.signatures.as_ref()))?;
    if Signatures::parse(&signatures)?.iter().next().is_none() {
        bail!("{} has no signatures", arguments.file.display());
    }
    let mut magic = [0; 4];
    let mut file = File::open(&arguments.file).context("read the manifest")?;
    let length = file.metadata().context("read the manifest")?.len();
    let extension = match std::io::Read::read_exact(&mut file, &mut magic) {
        Ok(()) if magic.starts_with(&[0x1f, 0x8b]) => ".gz",
        Ok(()) if magic == [0x28, 0xb5, 0x2f, 0xfd] => ".zst",
        _ => "",
    };
    let name = format!("manifests/{digest}.json{extension}");
    let key = |text: &str| AssetKey::from_record(text, None).context("a name that appliances take");
    let pointer = Pointer { manifest: key(&name)?, signatures: key(&format!("{name}.sig"))?, sha256: digest, length };
    fs::create_dir_all(arguments.to.join("manifests")).with_context(|| format!("make {}", arguments.to.display()))?;
    std::io::Seek::rewind(&mut file)?;
    place(&arguments.to.join(&name), |into| std::io::copy(&mut file, into).map(drop))?;
    replace(&arguments.to.join(format!("{name}.sig")), &signatures)?;
    // Last: what it points to is there.
    let path = arguments.to.join(&arguments.pointer);
    replace(&path, pointer.to_text().as_bytes())?;
    writeln!(stdout(), "{} points to {name} ({length} bytes)", path.display())?;
    Ok(ExitCode::SUCCESS)
}
