//! Random operations from a printed seed - requests, new versions, faults, evictions, crashes - against a reference that
//! is as simple as can be: whatever is sent is a version that was published, all of it and nothing else.
//!
//! `OCA_SEED` repeats a run, `OCA_MODEL_STEPS` makes it longer.

use std::{collections::BTreeMap, time::Duration};

use crate::support::{Appliance, Client, Content, Cut, Fault, Origin, Published, Random, Response, Setup, wait_until};

const ASSETS: u64 = 24;
const CAPACITY_BYTES: u64 = 24 << 20;

struct Model {
    random: Random,
    origin: Origin,
    appliance: Appliance,
    client: Option<Client>,
    /// All versions published under each path, the current one last.
    versions: BTreeMap<String, Vec<Content>>,
    /// Whether something was broken since the last recovery, so that errors are excused.
    trouble: bool,
    next_seed: u64,
    served: u64,
    refused: u64,
}

/// What one request asks for.
enum Asked {
    Whole,
    Head,
    Part(u64, u64),
    Suffix(u64),
    Parts(Vec<(u64, u64)>),
    /// With the ETag of this version.
    Unless(Content),
    Beyond,
}

fn etag(content: &Content) -> String {
    format!("\"{:x}-{:x}\"", content.seed, content.length)
}

impl Model {
    fn new() -> Self {
        let origin = Origin::start();
        let appliance = Setup::new(&origin)
            .capacity("24 MiB")
            .storage("sync_interval = \"20 ms\"")
            .catalog("failure_ttl = \"20 ms\"")
            .source(
                "response_timeout = \"300 ms\"\nstall_timeout = \"300 ms\"\nfailures_max = 1000\n\
                 retry_after = \"50 ms\"",
            )
            .start();
        let mut model = Self {
            random: Random::new(),
            origin,
            appliance,
            client: None,
            versions: BTreeMap::new(),
            trouble: false,
            next_seed: 1,
            served: 0,
            refused: 0,
        };
        for n in 0..ASSETS {
            // Every third is a playlist, which must always be the current version.
            let path = if n % 3 == 0 { format!("/list{n}.m3u8") } else { format!("/film{n}.mp4") };
            model.publish(&path);
        }
        model
    }

    fn publish(&mut self, path: &str) {
        let length = if path.ends_with(".mp4") { self.random.number(1, 4 << 20) } else { self.random.number(1, 9000) };
        let content = Content::new(self.next_seed, length);
        self.next_seed += 1;
        let cache_control = if path.ends_with(".mp4") { "max-age=86400" } else { "max-age=0, must-revalidate" };
        self.origin.publish(path, Published::new(content.seed, length).field("Cache-Control", cache_control));
        self.versions.entry(path.into()).or_default().push(content);
    }

    fn path(&mut self) -> String {
        let index = self.random.number(0, ASSETS) as usize;
        self.versions.keys().nth(index).expect("there are as many").clone()
    }

    fn step(&mut self) -> Result<(), String> {
        match self.random.number(0, 200) {
            0..=1 => {
                self.appliance.kill();
                self.client = None;
                self.appliance.start_again();
            }
            2 => {
                self.appliance.stop();
                self.client = None;
                self.appliance.start_again();
            }
            3..=9 => {
                let path = self.path();
                self.publish(&path);
                // A fetch that is under way may see it change.
                self.trouble = true;
            }
            10..=17 => {
                let (path, fault) = (self.path(), self.fault());
                let times = self.random.number(1, 4) as usize;
                self.origin.fail(&path, fault, times);
                self.trouble = true;
            }
            18..=24 => self.recover()?,
            _ => self.request()?,
        }
        Ok(())
    }

    fn fault(&mut self) -> Fault {
        let at = self.random.number(0, 2 << 20);
        match self.random.number(0, 11) {
            0 => Fault::Status(503),
            1 => Fault::Hangup,
            2 => Fault::Short(at),
            3 => Fault::Reset(at),
            4 => Fault::Stall(at),
            5 => Fault::Understated(1 + at),
            6 => Fault::Overlong(1 + at),
            7 => Fault::Whole,
            8 => Fault::Shifted(1),
            9 => Fault::Chunked,
            _ => Fault::ChunkedCut(at),
        }
    }

    /// Ends every fault; then each asset must be had again.
    fn recover(&mut self) -> Result<(), String> {
        self.origin.recover();
        self.trouble = true;
        for path in self.versions.keys().cloned().collect::<Vec<_>>() {
            let mut outcome = Ok(false);
            wait_until("everything heals", Duration::from_secs(20), || {
                outcome = self.ask(&path, &Asked::Part(0, 1));
                !matches!(outcome, Ok(false))
            });
            outcome?;
        }
        self.trouble = false;
        Ok(())
    }

    fn request(&mut self) -> Result<(), String> {
        let path = self.path();
        let history = &self.versions[&path];
        let current = history[history.len() - 1];
        let length = current.length;
        let start = self.random.number(0, length);
        let end = self.random.number(start + 1, length + 1);
        let asked = match self.random.number(0, 10) {
            0..=2 => Asked::Whole,
            3 => Asked::Head,
            4 => Asked::Suffix(end),
            5 => Asked::Unless(history[self.random.number(0, history.len() as u64) as usize]),
            6 => Asked::Beyond,
            7 if length > 100 => {
                let middle = length / 2;
                Asked::Parts(vec![(0, self.random.number(1, middle)), (self.random.number(middle, length - 1), length)])
            }
            _ => Asked::Part(start, end),
        };
        let replaced = self.versions[&path].len() > 1;
        if !self.ask(&path, &asked)? && !self.trouble && !replaced {
            return Err(format!("{path} was refused though nothing is wrong:\n{}", self.appliance.log()));
        }
        Ok(())
    }

    /// Asks and checks: whether it was served, or what is wrong with the answer.
    fn ask(&mut self, path: &str, asked: &Asked) -> Result<bool, String> {
        let mut client = self.client.take().unwrap_or_else(|| self.appliance.connect());
        let range = match asked {
            Asked::Part(start, end) => Some(format!("bytes={start}-{}", end - 1)),
            Asked::Suffix(length) => Some(format!("bytes=-{length}")),
            Asked::Parts(parts) => {
                let parts: Vec<_> = parts.iter().map(|(start, end)| format!("{start}-{}", end - 1)).collect();
                Some(format!("bytes={}", parts.join(",")))
            }
            Asked::Beyond => Some("bytes=99999999-".into()),
            _ => None,
        };
        let unless = if let Asked::Unless(version) = asked { Some(etag(version)) } else { None };
        let fields: Vec<(&str, &str)> = [("Range", range.as_deref()), ("If-None-Match", unless.as_deref())]
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect();
        let method = if matches!(asked, Asked::Head) { "HEAD" } else { "GET" };
        let verdict = match client.try_ask(method, path, &fields) {
            Ok(response) => {
                let verdict = self.check(path, asked, &response);
                self.client = Some(client);
                verdict
            }
            Err(cut) => self.check_cut(path, asked, &cut),
        };
        match &verdict {
            Ok(true) => self.served += 1,
            Ok(false) => self.refused += 1,
            Err(_) => {}
        }
        verdict.map_err(|fault| format!("{path} {range:?} {unless:?}: {fault}"))
    }

    fn check(&self, path: &str, asked: &Asked, response: &Response) -> Result<bool, String> {
        if matches!(response.status(), 502..=504) {
            eprintln!("{path}: {} {}", response.status(), String::from_utf8_lossy(&response.body).trim());
            return Ok(false);
        }
        let history = &self.versions[path];
        if response.status() == 416 {
            // A suffix or part may lie beyond an older version's end.
            let excused = matches!(asked, Asked::Beyond) || history.len() > 1;
            return if excused { Ok(true) } else { Err("416 for a range that lies inside".into()) };
        }
        let named = response.field("etag").ok_or("no ETag")?;
        let version =
            history.iter().find(|version| etag(version) == named).ok_or(format!("{named} was never published"))?;
        let current = history[history.len() - 1];
        if path.ends_with(".m3u8") && *version != current {
            return Err("an old version of what must be revalidated".into());
        }
        match (response.status(), asked) {
            (304, Asked::Unless(known)) if known == version => Ok(true),
            (200, Asked::Head) => (response.field("content-length") == Some(version.length.to_string().as_str()))
                .then_some(true)
                .ok_or("wrong length".into()),
            (200, Asked::Unless(known)) if known == version => Err("200 for what the client has".into()),
            (200, _) => whole(version, &response.body),
            (206, Asked::Parts(_)) if response.field("content-range").is_none() => {
                for part in response.parts() {
                    same_part(version, &part.content_range, &part.body)?;
                }
                Ok(true)
            }
            (206, _) => same_part(version, response.field("content-range").ok_or("no Content-Range")?, &response.body),
            (status, _) => Err(format!("unexpected status {status}")),
        }
    }

    /// A response that was cut shows a beginning of some version, and only where something is wrong.
    fn check_cut(&self, path: &str, asked: &Asked, cut: &Cut) -> Result<bool, String> {
        // What is held of a version that has been replaced is cut where a missing block would have to be fetched.
        if !self.trouble && self.versions[path].len() == 1 {
            return Err(format!("cut after {} bytes though nothing is wrong", cut.received.len()));
        }
        let history = &self.versions[path];
        let right = |version: &Content| match asked {
            Asked::Whole | Asked::Unless(_) => version.first_difference(0, &cut.received).is_none(),
            Asked::Part(start, _) => {
                version.first_difference(*start, &cut.received).is_none()
                    || version.first_difference(0, &cut.received).is_none()
            }
            Asked::Suffix(length) => {
                version.first_difference(version.length.saturating_sub(*length), &cut.received).is_none()
            }
            Asked::Parts(_) | Asked::Head | Asked::Beyond => true,
        };
        if cut.received.is_empty() || history.iter().any(right) {
            Ok(false)
        } else {
            Err("cut after wrong bytes".into())
        }
    }
}

fn whole(version: &Content, body: &[u8]) -> Result<bool, String> {
    if body.len() as u64 != version.length {
        return Err(format!("{} bytes of {}", body.len(), version.length));
    }
    version.first_difference(0, body).map_or(Ok(true), Err)
}

fn same_part(version: &Content, content_range: &str, body: &[u8]) -> Result<bool, String> {
    let numbers: Vec<u64> =
        content_range.trim_start_matches("bytes ").split(['-', '/']).filter_map(|number| number.parse().ok()).collect();
    let [first, last, total] = numbers[..] else { return Err(format!("Content-Range {content_range:?}")) };
    if total != version.length || last + 1 - first != body.len() as u64 {
        return Err(format!("{} bytes as {content_range:?} of {}", body.len(), version.length));
    }
    version.first_difference(first, body).map_or(Ok(true), Err)
}

#[test]
fn random_operations_agree_with_the_model() {
    let steps = std::env::var("OCA_MODEL_STEPS").map_or(2000, |steps| steps.parse().expect("a number"));
    let mut model = Model::new();
    for step in 0..steps {
        if let Err(fault) = model.step() {
            panic!("step {step}: {fault}");
        }
        if step % 200 == 199 {
            let used = model.appliance.disk_bytes();
            assert!(used <= CAPACITY_BYTES + (4 << 20), "step {step}: {used} bytes on disk");
        }
    }
    eprintln!("{steps} steps: {} served, {} refused", model.served, model.refused);
    assert!(model.served > steps / 2, "nothing was tested");
}

/// Writes into sealed files behind the appliance's back: the one thing that never happens. The model must see it.
#[test]
fn the_model_catches_a_broken_invariant() {
    let mut model = Model::new();
    model.recover().expect("all is well at first");
    for path in model.versions.keys().cloned().collect::<Vec<_>>() {
        assert_eq!(model.ask(&path, &Asked::Whole), Ok(true));
    }
    for entry in walkdir::WalkDir::new(model.appliance.volume()).into_iter().filter_map(Result::ok) {
        let is_database = entry.file_name().to_string_lossy().contains(".db")
            || entry.file_name().to_string_lossy().contains("sqlite");
        if entry.file_type().is_file() && !is_database {
            let file = std::fs::File::options().write(true).open(entry.path()).expect("it is ours");
            let length = file.metadata().expect("it is open").len().min(9000) as usize;
            std::os::unix::fs::FileExt::write_all_at(&file, &vec![0; length], 0).expect("it is written");
        }
    }
    let caught = (0..500).any(|_| model.request().is_err());
    assert!(caught, "wrong bytes were served and nothing was said");
}
