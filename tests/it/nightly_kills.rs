//! `kill -9` at any moment of a night of the real binary: nothing wrong is served, what was finished stays and is not fetched again, no
//! manifest is lost or taken back, and the night completes.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    manifests::Plane,
    support::{Appliance, Client, Content, Origin, Random, wait_until},
};

/// Kills of one run, unless `OCA_KILLS` says how many; `docs/operating.md` tells of 200.
const KILLS: u64 = 22;
const FILMS: u64 = 24;
/// Films that only one of the two manifests lists.
const CHANGED: u64 = 4;
/// Longest life of a process that serves, in milliseconds.
const LIFE_MAX: u64 = 250;
const PATIENCE: Duration = Duration::from_secs(120);

fn film(n: u64) -> (String, Content) {
    (format!("/film{n}.mp4"), Content::new(n + 1, 1_200_000 + n * 65_537))
}

/// Of the first manifest, or of the second one.
fn listed(sequence: u64) -> std::ops::Range<u64> {
    if sequence == 1 { 0..FILMS - CHANGED } else { CHANGED..FILMS }
}

/// Signs a manifest of its films and publishes it.
fn publish(plane: &Plane, sequence: u64) {
    let paths: String = listed(sequence).map(|n| film(n).0.replace('/', "") + "\n").collect();
    plane.publish(&plane.manifest_of(sequence, &paths));
}

fn status(appliance: &Appliance) -> Value {
    serde_json::from_slice(&appliance.admin("/status").body).expect("JSON")
}

/// The paths whose digest is on record as compared.
fn finished(appliance: &Appliance) -> Vec<String> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let Ok(database) = rusqlite::Connection::open_with_flags(appliance.volume().join("catalog.sqlite"), flags) else {
        // It was killed before it had one.
        return Vec::new();
    };
    database.busy_timeout(Duration::from_secs(5)).expect("set");
    let Ok(mut rows) = database.prepare("SELECT path FROM asset WHERE sealed AND sha256 IS NOT NULL") else {
        return Vec::new();
    };
    let rows = rows.query_map([], |row| row.get::<_, String>(0)).expect("rows");
    rows.map(|path| format!("/{}", path.expect("readable"))).collect()
}

/// Reads ranges until the appliance is gone, and checks each byte.
fn read_until_cut(address: SocketAddr, mut random: Random) -> u64 {
    let mut whole = 0;
    let Ok(mut client) = Client::try_connect(address) else { return 0 };
    loop {
        let (path, content) = film(random.number(0, FILMS));
        let start = random.number(0, content.length);
        let last = (start + random.number(1, 300_000)).min(content.length) - 1;
        match client.try_ask("GET", &path, &[("Range", &format!("bytes={start}-{last}"))]) {
            Ok(response) if response.status() == 206 => {
                assert_eq!(response.body.len() as u64, last + 1 - start);
                content.assert_is(start, &response.body);
                whole += 1;
            }
            Ok(response) => assert!(matches!(response.status(), 502..=504), "{:?}", response.head),
            Err(cut) => {
                if let Some(fault) = content.first_difference(start, &cut.received) {
                    assert!(cut.received.starts_with(b"HTTP/1.1"), "{fault}");
                }
                return whole;
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the moment of the kill is a point in time")]
fn live_for(life: Duration) {
    std::thread::sleep(life);
}

/// What has to be so after each kill.
#[derive(Default)]
struct Ledger {
    /// What was finished, and how often its source had been asked for it by then.
    finished: BTreeMap<String, usize>,
    sequence: u64,
}

impl Ledger {
    /// Nobody asks any more: the appliance was killed.
    fn note(&mut self, appliance: &Appliance, origin: &Origin, round: u64) {
        wait_until("the origin has seen the last request", PATIENCE, || origin.connections() == 0);
        let now = finished(appliance);
        for path in self.finished.keys() {
            assert!(now.contains(path), "round {round}: {path} was finished and is not any more");
        }
        for path in now {
            let asked = origin.seen(&path).len();
            let before = *self.finished.entry(path.clone()).or_insert(asked);
            assert_eq!(before, asked, "round {round}: {path} was finished and was asked for again");
        }
    }

    /// It has just started again.
    fn look(&mut self, appliance: &Appliance, round: u64) {
        let sequence = status(appliance)["manifest"]["sequence"].as_u64().unwrap_or(0);
        assert!(
            sequence >= self.sequence,
            "round {round}: manifest {} was in force, and now {sequence} is",
            self.sequence
        );
        self.sequence = sequence;
    }
}

#[test]
fn killed_at_any_moment_a_night_serves_nothing_wrong_loses_nothing_finished_and_completes() {
    let kills = std::env::var("OCA_KILLS").map_or(KILLS, |kills| kills.parse().expect("a number"));
    let (mut random, origin, plane) = (Random::new(), Origin::start(), Plane::new());
    let bytes: u64 = (0..FILMS)
        .map(film)
        .map(|(path, content)| {
            assert_eq!(origin.publish_new(&path, content.seed, content.length), content);
            plane.add_film(&path, &content.whole());
            content.length
        })
        .sum();
    publish(&plane, 1);
    // So fast that the night takes about as long as all of these lives together.
    let rate = bytes * 8 * 1000 / (kills * LIFE_MAX / 2);
    // The machine of a test is busy with others, to whom it would give way.
    let window = format!(
        "[fill.nightly]\ngives_way = false\n[[fill.window]]\nfrom = \"00:00\"\nto = \"24:00\"\nrate = \"{rate} bps\"\n"
    );
    let setup = plane.setup_from(&origin.url(), &plane.by_file()).tables(&window);
    let mut appliance =
        setup.storage("block_size = \"64 KiB\"\nsync_interval = \"20 ms\"").fill("fetch_max = \"256 KiB\"").start();
    let (mut ledger, mut whole, mut early, mut grew) = (Ledger::default(), 0, 0, 0);
    let begun = Instant::now();
    let mut round = 0;
    // On a busy machine some lives come to nothing.
    while round < kills || (grew < 3 && begun.elapsed() < PATIENCE) {
        if round == kills / 2 {
            publish(&plane, 2);
        }
        // Some are killed while they start.
        let life = Duration::from_millis(random.number(1, LIFE_MAX));
        if round % 5 == 4 && !appliance.start_again_until(Instant::now() + life) {
            early += 1;
        } else {
            if round > 0 && round % 5 != 4 {
                appliance.start_again();
            }
            ledger.look(&appliance, round);
            let (address, reader) = (appliance.http(), random.fork());
            whole += std::thread::scope(|scope| {
                let reading = scope.spawn(|| read_until_cut(address, reader));
                live_for(life);
                appliance.kill();
                reading.join().expect("nothing wrong was served")
            });
        }
        let before = ledger.finished.len();
        ledger.note(&appliance, &origin, round);
        grew += u64::from(ledger.finished.len() > before);
        round += 1;
    }
    eprintln!(
        "{round} kills in {:?}: {early} before it served, {whole} whole responses, {} of {FILMS} films finished, in {grew} lives",
        begun.elapsed(),
        ledger.finished.len()
    );
    assert!(whole > 0 && grew > 2, "nothing was tested");
    appliance.start_again();
    ledger.look(&appliance, round);
    wait_until("the second manifest is carried out", PATIENCE, || {
        let fill = &status(&appliance)["fill"];
        fill["sequence"] == 2 && fill["held"]["assets"] == FILMS - CHANGED
    });
    let mut client = appliance.connect();
    for (path, content) in listed(2).map(film) {
        // What was finished before the last kill is compared once more now: perhaps no hit at once, but nobody is asked for it.
        let asked = origin.seen(&path).len();
        assert!(client.get(&path).body == content.whole(), "{path}");
        assert_eq!(origin.seen(&path).len(), asked, "{path} is served from here");
    }
    for (path, asked) in &ledger.finished {
        assert_eq!(origin.seen(path).len(), *asked, "{path} was finished and was asked for again");
    }
}
