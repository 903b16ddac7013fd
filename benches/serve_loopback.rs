//! Hot delivery over loopback: bytes per second, and what a gigabyte costs in CPU time, beside nginx where it is installed.
//!
//! `cargo bench --bench serve_loopback`; options: `--seconds=5` (each row), `--connections=16`, `--test` (a short run).
//!
//! Clients drop bodies in the kernel and share the machine with the server all the same: compare rows of one run, not runs of
//! different machines. CPU time is the server's alone. nginx sends the same file from its folder by sendfile: the best it can do,
//! without a cache's work.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a bench speaks on the terminal")]

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "benches share one support module, and none uses all of it")]
mod support;

use std::{
    error::Error,
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use support::{Appliance, Client, Scratch, cpu_seconds_of, is_smoke, option};

const MIB: u64 = 1 << 20;

type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Clone, Copy)]
struct Plan {
    asset_bytes: u64,
    connections: u64,
    time: Duration,
}

struct Measured {
    bytes: u64,
    requests: u64,
    seconds: f64,
    cpu_seconds: f64,
}

fn main() -> Fallible<()> {
    let smoke = is_smoke();
    let plan = Plan {
        asset_bytes: if smoke { 8 * MIB } else { 256 * MIB },
        connections: option("connections").unwrap_or(16),
        time: if smoke { Duration::from_millis(200) } else { Duration::from_secs(option("seconds").unwrap_or(5)) },
    };
    let ranges: &[u64] = if smoke { &[256 << 10] } else { &[16 << 10, 64 << 10, 256 << 10, MIB, 16 * MIB] };
    let scratch = Scratch::new("serve_loopback")?;
    let source = scratch.path().join("source");
    fs::create_dir_all(&source)?;
    let mut noise = vec![0_u8; usize::try_from(plan.asset_bytes)?];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    fs::write(source.join("0.mp4"), &noise)?;

    let appliance = Appliance::start(scratch.path(), &format!("{} MiB", 2 * plan.asset_bytes / MIB), "")?;
    let nginx = Nginx::start(scratch.path(), &source)?;
    let oca = (appliance.http, vec![appliance.id()]);
    let peer = nginx.as_ref().map(|nginx| (nginx.http, nginx.ids()));
    for (address, _) in [Some(&oca), peer.as_ref()].into_iter().flatten() {
        // Fills the appliance, and brings the file into memory for both.
        Client::connect(*address)?.fetch("/0.mp4", None)?;
    }
    println!(
        "{} connections, random ranges of a film of {} MiB, {:?} each\n",
        plan.connections,
        plan.asset_bytes / MIB,
        plan.time
    );
    println!("| range | server | GB/s | requests/s | CPU-s/GB |\n|---|---|---|---|---|");
    for range in ranges {
        // In turns, so that a change of the machine's mood meets both.
        report(*range, "oca", &measure(&oca, plan, *range)?);
        if let Some(peer) = &peer {
            report(*range, "nginx", &measure(peer, plan, *range)?);
        }
    }
    if nginx.is_none() {
        println!("\nnginx is not installed: no comparison");
    }
    appliance.stop()?;
    Ok(())
}

fn measure((address, ids): &(SocketAddr, Vec<u32>), plan: Plan, range: u64) -> Fallible<Measured> {
    let (bytes, requests) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let cpu = || ids.iter().map(|id| cpu_seconds_of(*id)).sum::<f64>();
    let (address, before, begun) = (*address, cpu(), Instant::now());
    let readers: Vec<_> = (0..plan.connections)
        .map(|number| {
            let (bytes, requests) = (Arc::clone(&bytes), Arc::clone(&requests));
            std::thread::spawn(move || -> Fallible<()> {
                let mut client = Client::connect(address)?;
                let mut random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(number + 1) | 1;
                while begun.elapsed() < plan.time {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let start = random % ((plan.asset_bytes - range) / 4096 + 1) * 4096;
                    bytes.fetch_add(client.fetch("/0.mp4", Some((start, start + range)))?, Ordering::Relaxed);
                    requests.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        })
        .collect();
    for reader in readers {
        reader.join().map_err(|_| "a client panicked")??;
    }
    Ok(Measured {
        bytes: bytes.load(Ordering::Relaxed),
        requests: requests.load(Ordering::Relaxed),
        seconds: begun.elapsed().as_secs_f64(),
        cpu_seconds: cpu() - before,
    })
}

fn report(range: u64, server: &str, row: &Measured) {
    let gigabytes = row.bytes as f64 / 1e9;
    println!(
        "| {} KiB | {server} | {:.2} | {:.0} | {:.3} |",
        range >> 10,
        gigabytes / row.seconds,
        row.requests as f64 / row.seconds,
        row.cpu_seconds / gigabytes
    );
}

/// nginx on the files of a folder, with a worker for each core; ended when dropped.
struct Nginx {
    child: Child,
    http: SocketAddr,
}

impl Nginx {
    /// `None` where it is not installed.
    fn start(home: &Path, root: &Path) -> Fallible<Option<Self>> {
        let home = home.join("nginx");
        fs::create_dir_all(&home)?;
        // It cannot tell which port it was given: one that was free a moment ago.
        let http = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let config = format!(
            "daemon off; pid {home}/pid; error_log {home}/log; worker_processes auto; worker_cpu_affinity auto; {user}\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; sendfile on; tcp_nopush on; sendfile_max_chunk 512k; keepalive_requests 1000000000;\n\
             client_body_temp_path {home}/b; proxy_temp_path {home}/p; fastcgi_temp_path {home}/f; uwsgi_temp_path {home}/u;\n\
             scgi_temp_path {home}/s; open_file_cache max=100; server {{ listen {http} reuseport; root {root}; }} }}\n",
            home = home.display(),
            root = root.display(),
            // Its workers give up root where it is begun as root, and could not read the scratch folder.
            user = if rustix::process::geteuid().is_root() { "user root;" } else { "" },
        );
        fs::write(home.join("nginx.conf"), config)?;
        let mut command = Command::new("nginx");
        command.arg("-c").arg(home.join("nginx.conf")).arg("-p").arg(&home);
        let begun = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let Ok(child) = begun else { return Ok(None) };
        let mut nginx = Self { child, http };
        let begun = Instant::now();
        while TcpStream::connect(http).is_err() {
            if nginx.child.try_wait()?.is_some() || begun.elapsed() > Duration::from_secs(10) {
                return Err(fs::read_to_string(home.join("log")).unwrap_or_default().into());
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Ok(Some(nginx))
    }

    /// Its processes.
    fn ids(&self) -> Vec<u32> {
        let id = self.child.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        children.split_whitespace().filter_map(|id| id.parse().ok()).chain([id]).collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // SIGTERM, so that its workers end with it.
        if let Err(err) = kill_process(Pid::from_child(&self.child), Signal::TERM) {
            eprintln!("nginx has ended already: {err}");
        }
        drop(self.child.wait());
    }
}
