//! `oca demo`: real video through an appliance on this machine, from an origin inside this program.
//!
//! scratch volume -> origin on a loopback port -> appliance -> what to open and what to type -> Ctrl-C -> nothing left
//!
//! Needs no root, writes nothing outside one temporary folder, and removes that.

mod origin;

use std::{
    io::{self, Write as _},
    net::{SocketAddr, TcpListener},
    process::ExitCode,
};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use self::origin::Origin;
use crate::{
    appliance::Appliance,
    asset::ByteCount,
    config::Config,
    fill::{SourceConfig, SourceKind, SourceLocation},
    storage::VolumeConfig,
    sys::sandbox::{Reach, Sandbox},
};

/// Where the demo listens when the port is free.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);

/// Enough for everything the demo's origin has, many times over.
const CAPACITY: ByteCount = ByteCount(64 << 20);

/// What `oca demo` is given.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Address to listen on [default: 127.0.0.1:8080, or a free port if that is taken]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Keep the scratch volume, to look at it
    #[arg(long)]
    keep: bool,
}

/// Plays until Ctrl-C or SIGTERM.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the demo's runtime")?;
    runtime.block_on(play(arguments))?;
    Ok(ExitCode::SUCCESS)
}

async fn play(arguments: &Arguments) -> anyhow::Result<()> {
    // Before anything is made, so that no signal finds something that nobody removes.
    let mut interrupted = signal(SignalKind::interrupt()).context("wait for Ctrl-C")?;
    let mut terminated = signal(SignalKind::terminate()).context("wait for SIGTERM")?;

    let mut scratch = tempfile::Builder::new().prefix("oca-demo-").tempdir().context("make a scratch folder")?;
    scratch.disable_cleanup(arguments.keep);
    let origin = Origin::start().await?;
    let config = config(arguments.listen.unwrap_or_else(free_address), &origin, scratch.path());
    let appliance = Appliance::start(config, Reach::default()).context("start the demo's appliance")?;

    let address = *appliance.http_addresses().first().context("the appliance listens nowhere")?;
    say(&introduction(address, appliance.admin_address(), origin.address))?;
    tokio::select! {
        _ = interrupted.recv() => {}
        _ = terminated.recv() => {}
    }
    let (requests, bytes) = origin.asked();
    appliance.shutdown().await;
    say(&format!("\nstopped. The origin was asked {requests} times and sent {} kB in all.\n", bytes / 1000))?;
    if arguments.keep {
        say(&format!("The volume lies in {}\n", scratch.path().display()))?;
    }
    scratch.close().context("remove the scratch folder")
}

/// The usual port, or any free one where somebody has it. Between this look and the appliance's own bind another may take
/// it; the appliance then says so.
fn free_address() -> SocketAddr {
    match TcpListener::bind(LISTEN) {
        Ok(_) => LISTEN,
        Err(_) => SocketAddr::new(LISTEN.ip(), 0),
    }
}

fn config(listen: SocketAddr, origin: &Origin, scratch: &std::path::Path) -> Config {
    let mut config = Config::default();
    config.serve.http = vec![listen];
    // It removes its scratch folder at the end, and its origin is the same process.
    config.process.sandbox = Sandbox::Off;
    config.admin.listen = SocketAddr::new(LISTEN.ip(), 0);
    config.storage.volumes = vec![VolumeConfig { path: scratch.join("volume"), capacity: CAPACITY }];
    let url = format!("http://{}/", origin.address).parse().expect("an address and a slash make a URL");
    config.fill.sources = vec![SourceConfig::new("demo", SourceKind::Origin, SourceLocation::Http(url))];
    config
}

fn introduction(address: SocketAddr, admin: SocketAddr, origin: SocketAddr) -> String {
    format!(
        "oca demo: real video, from an origin ({origin}) through an appliance, all on this machine.

  open     http://{address}/index.html

  or type  curl -sS -o /dev/null -D - -r 0-1023 http://{address}/progressive.mp4
           ffplay http://{address}/cmaf/master.m3u8
           ffplay -ss 12 http://{address}/clip.webm
           curl http://{admin}/status

  see      http://{admin}/                         how the appliance is, in a browser

  also     http://{address}/progressive.mp4       http://{address}/index-last.mp4
           http://{address}/cmaf/manifest.mpd     http://{address}/captions.vtt
           http://{admin}/metrics

Ctrl-C stops it and leaves nothing behind.
"
    )
}

fn say(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("write to standard output")
}
