//! What is on disk and not in memory, beside what fio reads from the same files.
//!
//! All read the very same files: those of the volume that oca has filled, which nginx gets by links. Before each round the kernel drops them
//! from memory; oca, which maps them, is started anew for that.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{
    Plan,
    measure::{Measured, Named, Server, Shape, best, medians, once},
    support::{
        Fallible,
        appliance::Setup,
        cores,
        load::Ask,
        nginx::{Nginx, Role, Tuning},
        random::Random,
        scratch::{Scratch, content, forget_pages},
    },
    table,
    workloads::{KIB, MIB, Row, builds, settle, warm},
};

const CONNECTIONS: usize = 64;

/// The set, and how it is asked for.
struct Set {
    home: PathBuf,
    assets: u64,
    asset_bytes: u64,
}

pub(crate) fn cold(plan: &Plan) -> Fallible<Vec<Row>> {
    let asset_bytes = if plan.smoke { 4 * MIB } else { 64 * MIB };
    let total = if plan.smoke { 32 * MIB } else { plan.cold_gib << 30 };
    let scratch = Scratch::new("beside_nginx-cold")?;
    let set = Set { home: scratch.path().to_owned(), assets: total / asset_bytes, asset_bytes };
    let free = rustix::fs::statvfs(scratch.path())?;
    if free.f_bavail * free.f_frsize < total + total / 8 {
        return Err(format!("{} MiB do not fit on this disk: give a smaller --cold-gib", total / MIB).into());
    }
    set.fill(plan)?;
    let tunings = if plan.smoke { Tuning::cold()[..1].to_vec() } else { Tuning::cold() };
    let start = |tuning: &Tuning| {
        let nginx = Nginx::start(&set.home, &set.home.join("root"), *tuning, &Role::default())?;
        Ok(Named { name: format!("nginx ({tuning})"), server: Server::Nginx(nginx) })
    };
    let peers: Vec<Named> =
        if Nginx::is_there() { tunings.iter().map(start).collect::<Fallible<_>>()? } else { Vec::new() };
    let mut rows = Vec::new();
    for kib in if plan.smoke { &[64][..] } else { &[64, 1024] } {
        let name = format!("cold {} x {CONNECTIONS}", table::size(kib * KIB));
        if plan.row.as_ref().is_some_and(|row| !name.contains(row.as_str())) {
            continue;
        }
        let row = set.row(plan, &name, kib * KIB, &peers)?;
        table::print(&row);
        rows.push(row);
    }
    Ok(rows)
}

impl Set {
    fn setup<'a>(&'a self, capacity: &'a str, binary: Option<PathBuf>) -> Setup<'a> {
        let mut setup = Setup::new(&self.home, capacity);
        (setup.serve, setup.binary, setup.pinned, setup.log) =
            ("workers = 1\nqueue_delay_max = \"0 s\"\n", binary, true, true);
        setup
    }

    fn capacity(&self) -> String {
        format!("{} MiB", self.assets * self.asset_bytes * 5 / 4 / MIB)
    }

    /// Fills the volume, from one file under as many names as there are assets, and links its files for nginx.
    fn fill(&self, plan: &Plan) -> Fallible<()> {
        let (source, root) = (self.home.join("source"), self.home.join("root"));
        fs::create_dir_all(&source)?;
        fs::create_dir_all(&root)?;
        let mut bytes = vec![0; usize::try_from(self.asset_bytes)?];
        content(0, 0, &mut bytes);
        fs::write(source.join("content"), &bytes)?;
        for number in 0..self.assets {
            std::os::unix::fs::symlink("content", source.join(format!("{number}.mp4")))?;
        }
        let (_, binary) = builds(plan).swap_remove(0);
        let oca = self.setup(&self.capacity(), binary).start()?;
        warm(oca.http, self.assets, self.asset_bytes)?;
        let filled = [Named { name: "oca".into(), server: Server::Oca(oca) }];
        settle(&filled)?;
        let [Named { server: Server::Oca(oca), .. }] = filled else { return Ok(()) };
        oca.stop()?;
        let mut files = Vec::new();
        for fan in fs::read_dir(self.assets_folder())? {
            for file in fs::read_dir(fan?.path())? {
                files.push(file?.path());
            }
        }
        if files.len() as u64 != self.assets {
            return Err(format!("the volume has {} files for {} assets", files.len(), self.assets).into());
        }
        for (number, file) in files.iter().enumerate() {
            std::os::unix::fs::symlink(file, root.join(format!("{number}.mp4")))?;
        }
        Ok(())
    }

    fn assets_folder(&self) -> PathBuf {
        self.home.join("volume/assets")
    }

    fn row(&self, plan: &Plan, name: &str, len: u64, peers: &[Named]) -> Fallible<Row> {
        let next = |random: &mut Random| {
            let path = format!("/{}.mp4", random.below(self.assets));
            // As fio does: at multiples of the length.
            Ask { path, start: random.below(self.asset_bytes / len) * len, len, whole: false }
        };
        let content = |ask: &Ask, offset: u64, into: &mut [u8]| content(0, ask.start + offset, into);
        let forget = || Ok(forget_pages(&self.assets_folder())?);
        let mut shape = Shape::new(CONNECTIONS, &next, &content);
        shape.before = Some(&forget);
        let best = best(peers, &shape, plan)?;
        let (builds, capacity) = (builds(plan), self.capacity());
        let mut oca: Vec<Vec<Measured>> = builds.iter().map(|_| Vec::new()).collect();
        let mut nginx: Vec<Vec<Measured>> = best.iter().map(|_| Vec::new()).collect();
        let mut fio = [Vec::new(), Vec::new()];
        for _ in 0..plan.rounds {
            for ((name, binary), measured) in builds.iter().zip(&mut oca) {
                // What is mapped cannot be dropped: it is let go of by starting anew.
                forget()?;
                let server = Server::Oca(self.setup(&capacity, binary.clone()).start()?);
                let named = Named { name: name.clone(), server };
                measured.push(once(&named, &shape, plan.seconds, plan.verify)?);
                if let Server::Oca(oca) = named.server {
                    oca.stop()?;
                }
            }
            for (server, measured) in best.iter().zip(&mut nginx) {
                measured.push(once(server, &shape, plan.seconds, plan.verify)?);
            }
            for (measured, way) in fio.iter_mut().zip(FIO) {
                forget()?;
                measured.extend(read_by_fio(&self.assets_folder(), len, plan.seconds, way)?);
            }
        }
        Ok(Row {
            section: "cold",
            workload: name.to_owned(),
            oca: oca.iter().map(|rounds| medians(rounds)).collect(),
            nginx: nginx.iter().map(|rounds| medians(rounds)).collect(),
            others: fio.iter().filter(|rounds| !rounds.is_empty()).map(|rounds| medians(rounds)).collect(),
        })
    }
}

/// Past the kernel's cache, and by way of it, which asks the disk for more than one piece of a large range at a time.
const FIO: [(&str, &str); 2] = [("fio, direct", "--direct=1"), ("fio, cached", "--direct=0")];

/// What the disk gives to who only reads, as deep in the queue as there are connections.
fn read_by_fio(folder: &Path, len: u64, seconds: f64, (name, way): (&str, &str)) -> Fallible<Option<Measured>> {
    let millis = Duration::from_secs_f64(seconds).as_millis();
    let mut command = Command::new("fio");
    command.args(["--name=cold", "--readonly", "--rw=randread", "--norandommap", "--randrepeat=0", way]);
    command.args(["--ioengine=io_uring", "--file_service_type=random", "--time_based", "--output-format=json"]);
    command.args([
        format!("--bs={len}"),
        format!("--iodepth={CONNECTIONS}"),
        format!("--runtime={millis}ms"),
        format!("--opendir={}", folder.display()),
    ]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let Ok(child) = cores::spawn_server(&mut command) else {
        return Ok(None);
    };
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(format!("fio: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    // Notes may stand before the figures.
    let text = String::from_utf8_lossy(&output.stdout);
    let said: serde_json::Value = serde_json::from_str(&text[text.find('{').ok_or("fio says nothing")?..])?;
    let job = &said["jobs"][0];
    let figure = |value: &serde_json::Value| value.as_f64().ok_or("fio says other figures");
    let percentile = |rank: &str| figure(&job["read"]["clat_ns"]["percentile"][rank]).map(|nanos| (nanos / 1e3) as u64);
    let gigabytes_per_second = figure(&job["read"]["bw_bytes"])? / 1e9;
    Ok(Some(Measured {
        name: name.to_owned(),
        requests_per_second: figure(&job["read"]["iops"])?,
        gigabytes_per_second,
        cpu_per_gigabyte: (figure(&job["usr_cpu"])? + figure(&job["sys_cpu"])?) / 100.0 / gigabytes_per_second,
        p50: percentile("50.000000")?,
        p99: percentile("99.000000")?,
        p999: percentile("99.900000")?,
        server_busy: (figure(&job["usr_cpu"])? + figure(&job["sys_cpu"])?) / 100.0,
        read_per_byte: 1.0,
        ..Measured::default()
    }))
}
