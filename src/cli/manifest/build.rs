//! `oca manifest build`: files on a disk, digested, as a manifest.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, BufWriter, Read as _, Write, stdout},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use serde_json::{Map, Value, json};

use crate::{
    asset::{AssetKey, BlockSize, UnixTime, media_type_of, parse_duration},
    control::Hasher,
};

/// Folders within each other at most.
const DEPTH_MAX: usize = 64;

/// What `oca manifest build` is given.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("audience").required(true).multiple(true))]
pub(super) struct Arguments {
    /// A folder, all of whose files are listed by name; or a list of paths, the most wanted first, one on each line
    files: PathBuf,
    /// Folder that the paths of a list are relative to [default: the list's own]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Its place in the line of manifests: above that of the last one
    #[arg(long)]
    sequence: u64,
    /// How long it may be acted on
    #[arg(long, value_name = "TIME", default_value = "2 d", value_parser = duration)]
    expires_in: Duration,
    /// From when on it may be in force, in seconds since 1970
    #[arg(long, value_name = "SECONDS")]
    not_before: Option<u64>,
    /// It is for this appliance
    #[arg(long, value_name = "NAME", group = "audience")]
    appliance: Vec<String>,
    /// It is for appliances of this site
    #[arg(long, value_name = "NAME", group = "audience")]
    site: Vec<String>,
    /// It is for appliances of this group
    #[arg(long, value_name = "NAME", group = "audience")]
    group: Vec<String>,
    /// It is for all
    #[arg(long, group = "audience")]
    all: bool,
    /// Fetch from this source: a name of the appliances' configuration, or peer, tier, origin; the first is the cheapest
    #[arg(long, value_name = "NAME")]
    source: Vec<String>,
    /// Digest each block of so many bytes too
    #[arg(long, value_name = "BYTES", value_parser = block_size)]
    blocks: Option<BlockSize>,
    /// File to write [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|err| err.to_string())
}

fn block_size(text: &str) -> Result<BlockSize, String> {
    let known = text.parse().ok().and_then(BlockSize::new);
    known.ok_or_else(|| "write a power of two from 65536 to 67108864".into())
}

/// Writes a manifest.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let (root, keys) = listed(arguments)?;
    let into: Box<dyn Write> = match &arguments.output {
        Some(path) => Box::new(File::create(path).with_context(|| format!("write {}", path.display()))?),
        None => Box::new(stdout()),
    };
    let mut into = BufWriter::new(into);
    let now = UnixTime::from(SystemTime::now());
    // Written piece by piece: a million assets need no memory.
    let mut head = Map::from_iter([
        ("sequence".into(), json!(arguments.sequence)),
        ("audience".into(), audience(arguments)),
        ("expires".into(), json!(now.plus(arguments.expires_in).0)),
    ]);
    if let Some(time) = arguments.not_before {
        head.insert("not_before".into(), json!(time));
    }
    if !arguments.source.is_empty() {
        let sources = arguments.source.iter().enumerate().map(|(cost, name)| json!({ "name": name, "cost": cost }));
        head.insert("defaults".into(), json!({ "sources": sources.collect::<Vec<_>>() }));
    }
    write!(into, "{{\n \"version\": 1,\n")?;
    for (name, value) in &head {
        writeln!(into, " {}: {value},", json!(name))?;
    }
    write!(into, " \"assets\": [")?;
    for (rank, key) in keys.iter().enumerate() {
        let asset = asset(&root, key, arguments.blocks)?;
        write!(into, "{}\n  {asset}", if rank == 0 { "" } else { "," })?;
    }
    write!(into, "\n ]\n}}\n")?;
    into.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn audience(arguments: &Arguments) -> Value {
    if arguments.all {
        return json!({ "all": true });
    }
    let lists = [("appliances", &arguments.appliance), ("sites", &arguments.site), ("groups", &arguments.group)];
    let given = lists.into_iter().filter(|(_, names)| !names.is_empty());
    Value::Object(given.map(|(name, names)| (name.into(), json!(names))).collect())
}

/// The folder of the files, and their keys in the order of the list.
fn listed(arguments: &Arguments) -> anyhow::Result<(PathBuf, Vec<AssetKey>)> {
    let path = &arguments.files;
    let mut keys = Vec::new();
    if fs::metadata(path).with_context(|| format!("read {}", path.display()))?.is_dir() {
        walk(path, "", 0, &mut keys)?;
        return Ok((path.clone(), keys));
    }
    let list = File::open(path).with_context(|| format!("read {}", path.display()))?;
    for (number, line) in BufReader::new(list).lines().enumerate() {
        let line = line.with_context(|| format!("read {}", path.display()))?;
        let name = line.trim();
        if name.is_empty() || name.starts_with('#') {
            continue;
        }
        let key = AssetKey::from_record(name, None);
        keys.push(key.with_context(|| format!("{}, line {}: '{name}'", path.display(), number + 1))?);
    }
    let beside = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((arguments.root.clone().unwrap_or_else(|| beside.into()), keys))
}

/// Links are not followed: what they name may lie anywhere. Empty files are passed over: there is nothing to hold.
fn walk(folder: &Path, prefix: &str, depth: usize, keys: &mut Vec<AssetKey>) -> anyhow::Result<()> {
    if depth > DEPTH_MAX {
        bail!("{}: more than {DEPTH_MAX} folders within each other", folder.display());
    }
    let mut entries = fs::read_dir(folder)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("read {}", folder.display()))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name().into_string().ok().with_context(|| format!("{:?} is not UTF-8", entry.path()))?;
        let (path, kind) = (format!("{prefix}{name}"), entry.metadata()?);
        if kind.is_dir() {
            walk(&entry.path(), &format!("{path}/"), depth + 1, keys)?;
        } else if kind.is_file() && kind.len() > 0 {
            keys.push(AssetKey::from_record(&path, None).with_context(|| entry.path().display().to_string())?);
        }
    }
    Ok(())
}

/// A file as a manifest lists it.
fn asset(root: &Path, key: &AssetKey, blocks: Option<BlockSize>) -> anyhow::Result<Value> {
    let path = root.join(key.path());
    let read = || format!("read {}", path.display());
    let mut file = File::open(&path).with_context(read)?;
    let (mut whole, mut digests, mut length) = (Hasher::default(), Vec::new(), 0_u64);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let (mut block, mut left) = (Hasher::default(), blocks.map_or(u64::MAX, BlockSize::bytes));
        let before = length;
        while left > 0 {
            let most = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
            let count = file.read(&mut buffer[..most]).with_context(read)?;
            if count == 0 {
                break;
            }
            whole.update(&buffer[..count]);
            block.update(&buffer[..count]);
            length += count as u64;
            left = left.saturating_sub(count as u64);
        }
        if length > before {
            digests.push(block.finish().to_string());
        }
        if left > 0 {
            break;
        }
    }
    if length == 0 {
        bail!("{} is empty: there is nothing to hold", path.display());
    }
    let mut asset = json!({
        "key": key.as_str(),
        "length": length,
        "sha256": whole.finish().to_string(),
        "content_type": media_type_of(key.path()),
    });
    if let Some(size) = blocks {
        asset["blocks"] = json!({ "size": size.bytes(), "sha256": digests });
    }
    Ok(asset)
}
