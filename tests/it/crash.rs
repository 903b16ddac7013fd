//! `kill -9` at any moment: what is served afterwards is right, what was durable is still there.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    metrics::Looks,
    support::{Appliance, Client, Content, Origin, Random, Setup, wait_until},
};

/// Kills in each of the two tests; 200 together.
const KILLS_WITH_EVICTION: u64 = 140;
const KILLS_WITH_DURABLE: u64 = 60;
/// From start to ready, on whatever the kill left behind.
const RESTART_MAX: Duration = Duration::from_secs(2);

fn path(n: u64) -> String {
    format!("/film{n}.mp4")
}

fn publish(origin: &Origin, count: u64) -> Vec<Content> {
    (0..count).map(|n| origin.publish_new(&path(n), n + 1, 300_000 + n * 150_001)).collect()
}

/// Reads random ranges and checks each byte until the appliance is gone; how many responses were whole.
fn read_until_cut(address: SocketAddr, assets: &[Content], mut random: Random) -> usize {
    let mut whole = 0;
    let Ok(mut client) = Client::try_connect(address) else { return 0 };
    loop {
        let n = random.number(0, assets.len() as u64);
        let content = assets[n as usize];
        let start = random.number(0, content.length);
        let end = (start + random.number(1, 1 << 20)).min(content.length);
        let range = format!("bytes={start}-{}", end - 1);
        match client.try_ask("GET", &path(n), &[("Range", &range)]) {
            Ok(response) if response.status() == 206 => {
                content.assert_is(start, &response.body);
                assert_eq!(response.body.len() as u64, end - start);
                whole += 1;
            }
            // A volume that is full of what is being read may refuse for a moment.
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

fn assert_restarts_quickly(appliance: &Appliance, round: u64) {
    assert!(appliance.ready_after < RESTART_MAX, "round {round}: ready after {:?}", appliance.ready_after);
}

#[expect(clippy::disallowed_methods, reason = "the moment of the kill is a point in time")]
fn live_for(millis: u64) {
    thread::sleep(Duration::from_millis(millis));
}

#[test]
fn random_kills_during_fill_and_eviction_never_make_a_wrong_byte() {
    let mut random = Random::new();
    let origin = Origin::start();
    let assets = publish(&origin, 40);
    // About 130 MiB are published, so that everything read evicts something.
    let mut appliance = Setup::new(&origin).capacity("48 MiB").storage("sync_interval = \"20 ms\"").start();
    let (begin, whole, mut slowest) = (Instant::now(), AtomicUsize::new(0), Duration::ZERO);
    for round in 0..KILLS_WITH_EVICTION {
        let address = appliance.http();
        let readers: Vec<Random> = (0..4).map(|_| random.fork()).collect();
        let lifetime = random.number(20, 400);
        thread::scope(|scope| {
            for reader in readers {
                scope.spawn(|| whole.fetch_add(read_until_cut(address, &assets, reader), Ordering::Relaxed));
            }
            live_for(lifetime);
            appliance.kill();
        });
        appliance.start_again();
        assert_restarts_quickly(&appliance, round);
        slowest = slowest.max(appliance.ready_after);
    }
    for (n, content) in assets.iter().enumerate() {
        let response = appliance.get(&path(n as u64));
        assert_eq!(response.status(), 200);
        content.assert_is(0, &response.body);
    }
    let (whole, took) = (whole.into_inner(), begin.elapsed());
    eprintln!("{KILLS_WITH_EVICTION} kills in {took:?}, {whole} whole responses, slowest restart {slowest:?}");
    assert!(whole > 500, "only {whole} responses: nothing was tested");
}

#[test]
fn what_was_durable_before_a_kill_is_a_hit_after_it() {
    let mut random = Random::new();
    let origin = Origin::start();
    let mut appliance = Setup::new(&origin).capacity("4 GiB").storage("sync_interval = \"20 ms\"").start();
    let mut durable: Vec<(String, Content)> = Vec::new();
    for round in 0..KILLS_WITH_DURABLE {
        for n in 0..2 {
            let path = format!("/round{round}-{n}.mp4");
            let content = origin.publish_new(&path, round * 2 + n + 1, random.number(1, 4_000_000));
            content.assert_is(0, &appliance.get(&path).body);
            durable.push((path, content));
        }
        for (path, _) in &durable[durable.len() - 2..] {
            wait_until("it is durable", Duration::from_secs(10), || appliance.is_durable(path));
        }
        // Another fill is under way when the kill comes.
        let unfinished = origin.publish_new(&format!("/cut{round}.mp4"), round + 1000, 8_000_000);
        let mut client = appliance.connect();
        client.send(&crate::support::request("GET", &format!("/cut{round}.mp4"), &[]));
        live_for(random.number(0, 60));
        appliance.kill();
        drop(client);
        appliance.start_again();
        assert_restarts_quickly(&appliance, round);

        // The newest and a few of the others; at the end, all.
        let checked: Vec<usize> = if round + 1 == KILLS_WITH_DURABLE {
            (0..durable.len()).collect()
        } else {
            let last = durable.len() as u64;
            vec![last as usize - 1, last as usize - 2, random.number(0, last) as usize]
        };
        for index in checked {
            let (path, content) = &durable[index];
            let before = origin.seen(path).len();
            let response = appliance.get(path);
            assert_eq!(response.status(), 200, "{path}");
            content.assert_is(0, &response.body);
            assert_eq!(origin.seen(path).len(), before, "round {round}: {path} was durable and is asked for again");
        }
        let response = appliance.get(&format!("/cut{round}.mp4"));
        assert_eq!(response.status(), 200);
        unfinished.assert_is(0, &response.body);
    }
}

#[test]
fn a_damaged_block_is_never_served_after_an_unclean_stop() {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 1, 5_000_000);
    let mut appliance = Setup::new(&origin).storage("sync_interval = \"20 ms\"").start();
    content.assert_is(0, &appliance.get("/film.mp4").body);
    wait_until("it is durable", Duration::from_secs(10), || appliance.is_durable("/film.mp4"));
    appliance.kill();
    let damaged = damage_largest_file(&appliance, 3_000_000);
    assert!(damaged, "the asset lies in one file of the volume");
    appliance.start_again();
    let response = appliance.get("/film.mp4");
    assert_eq!(response.status(), 200);
    content.assert_is(0, &response.body);
}

/// Flips a bit at `offset` of the volume's largest file.
fn damage_largest_file(appliance: &Appliance, offset: u64) -> bool {
    use std::os::unix::fs::FileExt;
    let largest = walkdir::WalkDir::new(appliance.volume())
        .into_iter()
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_file())
        .max_by_key(|entry| entry.metadata().map_or(0, |metadata| metadata.len()))
        .expect("a file");
    let file = std::fs::File::options().read(true).write(true).open(largest.path()).expect("it is ours");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).is_ok() && file.write_all_at(&[byte[0] ^ 1], offset).is_ok()
}

/// Moves what is counted of a volume's database.
pub(crate) fn databases_that_cannot_be_written(looks: &mut Looks) {
    let origin = Origin::start();
    let appliance = Setup::new(&origin).start();
    looks.look(&appliance);
    let other = rusqlite::Connection::open(appliance.volume().join("catalog.sqlite")).expect("it is there");
    other.execute_batch("BEGIN IMMEDIATE").expect("nobody else is writing");
    let content = origin.publish_new("/film.mp4", 1, 3_000_000);
    content.assert_is(0, &appliance.get("/film.mp4").body);
    wait_until("it is noticed", Duration::from_secs(30), || {
        appliance.metric("oca_volume_database_failures_total", "") > 0.0
    });
    looks.look(&appliance);
}
