//! A whole night: two sites of three boxes each, a tier and an origin that misbehave, a manifest that is more than a box has room for, a
//! box that dies in the middle, a window that closes and opens again. By a clock that the test moves, faults from a printed seed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use oca::{
    asset::{BlockSize, ByteCount},
    catalog::CatalogView,
    control::{
        Accepted,
        manifest::{BlockDigests, Builder, Details, Head, Manifest, ManifestAsset},
    },
    fill::plan,
    sys::Clock,
};

use crate::{
    nightly::{HOUR, Night, ONE, key, sha256},
    support::{Content, Door, Fault, Origin, Published, Random, Seen},
};

/// Assets of the manifest.
const FILMS: u64 = 200;
/// One of so many lies with the tier too; the others are the origin's alone.
const AT_TIER: usize = 3;
/// One of so many goes wrong.
const FAULTY: usize = 5;
/// What a box may hold. Four fifths of it are for the manifest.
const CAPACITY: &str = "48 MiB";
/// Longest time that the whole night may take.
const PATIENCE: Duration = Duration::from_secs(200);
/// The box that dies.
const DYING: usize = 1;

struct Film {
    path: String,
    bytes: Vec<u8>,
    /// Copies that may be needed beyond the first, for what goes wrong with it.
    spare: u64,
}

struct Site {
    names: [String; 3],
    doors: Vec<Door>,
    boxes: Vec<Night>,
}

fn films(random: &mut Random) -> Vec<Film> {
    (0..FILMS)
        .map(|n| {
            // The last block of most is short, and some end with a block.
            let length = if n % 10 == 0 { random.number(1, 8) << 16 } else { random.number(64 << 10, 448 << 10) };
            let bytes = Content::new(random.number(0, u64::MAX), length).whole();
            Film { path: format!("/films/{n}.mp4"), bytes, spare: 0 }
        })
        .collect()
}

/// Digests of the whole, or of blocks, or of both.
fn listed(number: usize, film: &Film) -> ManifestAsset {
    let size = BlockSize::new(64 << 10).expect("valid");
    let blocks = BlockDigests { size, sha256: film.bytes.chunks(64 << 10).map(sha256).collect() };
    let details = Details { blocks: Some(blocks), ..Details::default() };
    ManifestAsset {
        sha256: (number % 4 != 1).then(|| sha256(&film.bytes)),
        details: (number % 2 == 1).then(|| Box::new(details)),
        ..ManifestAsset::new(key(&film.path), ByteCount(film.bytes.len() as u64))
    }
}

fn manifest(films: &[Film]) -> Manifest {
    let mut builder = Builder::default();
    films.iter().enumerate().for_each(|(number, film)| builder.add(listed(number, film)).expect("once"));
    builder.finish(Head { sequence: 1, expires: oca::asset::UnixTime(u64::MAX), ..Head::default() })
}

/// Publishes, and lets things go wrong. What is said of an asset with a byte does not meet a fault that bytes show: so each comes twice.
fn publish(films: &mut [Film], tier: &Origin, origin: &Origin, random: &mut Random) {
    for (number, film) in films.iter_mut().enumerate() {
        let published = Published::bytes(film.bytes.clone());
        origin.publish(&film.path, published.clone());
        let at_tier = number % AT_TIER == 0;
        if at_tier {
            tier.publish(&film.path, published.clone());
        }
        if number % FAULTY != 0 {
            continue;
        }
        let from = if at_tier { tier } else { origin };
        let at = random.number(0, film.bytes.len() as u64);
        let times = random.number(2, 4) as usize;
        let fault = match number / FAULTY % 8 {
            0 => Fault::Reset(at),
            1 => Fault::Short(at),
            2 => Fault::Stall(at),
            3 => Fault::Hangup,
            4 => Fault::Status(500),
            5 => Fault::ChunkedCut(at),
            6 => {
                film.spare = times as u64;
                Fault::Flipped(at)
            }
            _ => {
                // Another version at first, of the same length or not.
                film.spare = 2;
                let other = Content::new(at, film.bytes.len() as u64 + at % 2).whole();
                from.publish(&film.path, Published::bytes(other));
                from.publish_after(&film.path, times, published);
                continue;
            }
        };
        from.fail(&film.path, fault, times);
    }
    // Both say once that they have enough to do.
    for (source, number) in [(tier, AT_TIER), (origin, 1)] {
        source.fail(&films[number].path, Fault::Later(503, 1), 1);
    }
}

impl Site {
    fn start(name: &str, clock: &Clock, tier: &Origin, origin: &Origin) -> Self {
        let names = ["1", "2", "3"].map(|number| format!("{name}{number}"));
        let doors: Vec<Door> = names.iter().map(|_| Door::new()).collect();
        let boxes: Vec<Night> = names
            .iter()
            .map(|me| {
                let mut sources = format!("[fill.site]\nself = \"{me}\"\n");
                for (peer, door) in names.iter().zip(&doors).filter(|(peer, _)| *peer != me) {
                    // A live one is slow on a loaded machine, and not dead: a dead one does not let anybody in.
                    sources += &format!(
                        "[[fill.source]]\nkind = \"peer\"\nname = \"{peer}\"\nurl = \"{}\"\nfailures_max = 3\nretry_after = \"300 ms\"\n\
                         connect_timeout = \"60 s\"\nresponse_timeout = \"60 s\"\nstall_timeout = \"60 s\"\nescalate_after = \"2 min\"\n",
                        door.url()
                    );
                }
                for (kind, source) in [("tier", tier), ("origin", origin)] {
                    sources += &format!(
                        "[[fill.source]]\nkind = \"{kind}\"\nname = \"{kind}\"\nurl = \"{}\"\nstall_timeout = \"1 s\"\nretry_after = \"300 ms\"\n",
                        source.url()
                    );
                }
                // 500 kB at each step of the clock.
                let nightly = "retry_after = \"2 s\"\nsite_wait = \"1 h\"\nplan_interval = \"10 s\"\n[[fill.window]]\nfrom = \"02:00\"\n\
                               to = \"03:00\"\nrate = \"16 Mbps\"";
                Night::start_on(clock.clone(), CAPACITY, &sources, nightly)
            })
            .collect();
        doors.iter().zip(&boxes).for_each(|(door, one)| door.open(one.http()));
        Self { names, doors, boxes }
    }

    fn dies(&mut self, number: usize) {
        self.doors[number].close();
        self.boxes[number].stop();
    }

    fn comes_back(&mut self, number: usize) {
        self.boxes[number].start_again();
        self.doors[number].open(self.boxes[number].http());
    }

    fn live(&self) -> impl Iterator<Item = &Night> {
        self.boxes.iter().filter(|one| one.runs())
    }
}

struct Run<'a> {
    clock: &'a Clock,
    begun: Instant,
}

impl Run<'_> {
    /// Lets a quarter of a second of the clock pass, again and again, until something is so.
    fn until(&self, what: &str, sites: &[Site], reached: impl Fn() -> bool) {
        while !reached() {
            if self.begun.elapsed() > PATIENCE {
                let all: Vec<_> = sites.iter().flat_map(Site::live).map(Night::fill_status).collect();
                panic!("{what}: not in time; {all:#?}");
            }
            std::thread::park_timeout(Duration::from_millis(20));
            self.clock.advance(Duration::from_millis(250));
        }
    }
}

fn held(one: &Night) -> u64 {
    one.fill_status()["held"]["assets"].as_u64().expect("a number")
}

fn is_closed(one: &Night) -> bool {
    let status = one.fill_status();
    status["window"]["state"] == "closed" && status["in_work"] == 0
}

/// Bytes that a site has had of an asset from outside: of an answer that another one took over, up to where that begins.
fn taken(mut asks: Vec<&Seen>) -> u64 {
    asks.sort_by_key(|seen| seen.at);
    let range = |seen: &Seen| {
        let (first, last) = seen.field("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?))
    };
    // A byte tells what an asset is, and is no part of what is taken.
    asks.retain(|seen| range(seen).is_none_or(|range| range != (0, 0)));
    let of = |(at, seen): (usize, &&Seen)| {
        let start = range(seen).map_or(0, |(first, _)| first);
        let next = asks.get(at + 1).and_then(|next| range(next)).map(|(first, _)| first);
        let cut = next.filter(|next| (start..=start + seen.sent).contains(next));
        cut.map_or(seen.sent, |next| next - start)
    };
    asks.iter().enumerate().map(of).sum()
}

/// Who has asked for a path, as `CDN-Loop` tells, and what it asked.
fn by_box(sources: &[&Origin]) -> HashMap<(String, String), Vec<Seen>> {
    let mut asks: HashMap<_, Vec<Seen>> = HashMap::new();
    for seen in sources.iter().flat_map(|source| source.all_seen()) {
        let name = seen.field("cdn-loop").expect("a box says who it is").to_owned();
        asks.entry((seen.target.clone(), name)).or_default().push(seen);
    }
    asks
}

/// What a box should hold when the night is over: the plan of an empty one.
fn wanted(manifest: &Manifest, one: &Night) -> (BTreeSet<u32>, CatalogView) {
    let config = one.config();
    let view = CatalogView::read(&config.storage, &config.catalog).expect("readable");
    let volumes = view.volumes.iter().map(|volume| oca::catalog::VolumeView { kept: 0, ..volume.clone() }).collect();
    let empty = CatalogView { volumes, held: Vec::new() };
    let fetch = plan(manifest, &empty, &config.fill.nightly.rules, ONE).fetch;
    (fetch.iter().map(|fetch| fetch.rank).collect(), view)
}

#[test]
fn a_night_of_two_sites_ends_with_every_plan_carried_out_and_one_copy_of_each_asset_a_site() {
    let mut random = Random::new();
    let (tier, origin, clock) = (Origin::start(), Origin::start(), Clock::manual(ONE));
    let mut films = films(&mut random);
    publish(&mut films, &tier, &origin, &mut random);
    let listed = manifest(&films);
    let mut sites = ["a", "b"].map(|name| Site::start(name, &clock, &tier, &origin));
    let run = Run { clock: &clock, begun: Instant::now() };
    for one in sites.iter().flat_map(Site::live) {
        let (digest, received) = (sha256(b""), clock.unix());
        one.in_force().put(Accepted { manifest: manifest(&films), digest, received, keys: Vec::new() });
    }
    run.until("planned", &sites, || sites.iter().flat_map(Site::live).all(|one| one.fill_status()["sequence"] == 1));
    assert!(tier.all_seen().is_empty() && origin.all_seen().is_empty(), "nothing comes before the window opens");
    clock.advance(HOUR);

    // A quarter of it has come: a box dies, and its share moves on.
    let (all, share) = (FILMS, wanted(&listed, &sites[0].boxes[0]).0);
    let wanted_count = share.len() as u64;
    assert!(wanted_count < all && wanted_count > all / 2, "{wanted_count} of {all} fit");
    run.until("a quarter", &sites, || held(&sites[0].boxes[DYING]) >= wanted_count / 4);
    sites[0].dies(DYING);
    run.until("a half", &sites, || sites.iter().flat_map(Site::live).all(|one| held(one) >= wanted_count / 2));

    // The window closes, and nothing more comes until the next one opens.
    assert!(sites.iter().flat_map(Site::live).any(|one| held(one) < wanted_count), "it closes in the middle");
    clock.advance(HOUR);
    run.until("closed", &sites, || sites.iter().flat_map(Site::live).all(is_closed));
    let asked = (tier.all_seen().len(), origin.all_seen().len());
    for _ in 0..10 {
        clock.advance(HOUR);
        assert!(sites.iter().flat_map(Site::live).all(is_closed));
    }
    sites[0].comes_back(DYING);
    assert_eq!((tier.all_seen().len(), origin.all_seen().len()), asked, "nobody asks while it is closed");
    clock.advance(HOUR * 13);
    run.until("complete", &sites, || sites.iter().flat_map(Site::live).all(|one| held(one) == wanted_count));
    eprintln!("the night took {:?}", run.begun.elapsed());

    // Every byte, from every box.
    for one in sites.iter().flat_map(Site::live) {
        let mut client = crate::support::Client::connect(one.http());
        for rank in &share {
            let film = &films[*rank as usize];
            let response = client.get(&film.path);
            assert!(response.field("cache-status").expect("it says").contains("hit"), "{}", film.path);
            assert!(response.body == film.bytes, "{}: served as it was published", film.path);
        }
    }
    // What each holds is its plan, and nothing else.
    for one in sites.iter_mut().flat_map(|site| &mut site.boxes) {
        one.stop();
        let (wanted, view) = wanted(&listed, one);
        assert_eq!(wanted, share);
        let rank = |held: &oca::catalog::HeldAsset| {
            let (rank, asset) = listed.find(&held.key).expect("it is listed");
            assert!(held.sealed && held.length == asset.length.0 && held.whole.is_some(), "{:?}", held.key);
            rank as u32
        };
        assert_eq!(view.held.iter().map(rank).collect::<BTreeSet<_>>(), wanted);
        let now = plan(&listed, &view, &one.config().fill.nightly.rules, ONE);
        assert!(now.fetch.is_empty() && now.evict.is_empty() && now.keep.len() == wanted.len(), "{now:?}");
    }
    count(&sites, &films, &share, &by_box(&[&tier, &origin]));
}

/// Each asset has come to a site once, and once more only for what went wrong with it or with the box that it fell to.
fn count(sites: &[Site], films: &[Film], share: &BTreeSet<u32>, asks: &HashMap<(String, String), Vec<Seen>>) {
    let mut more: BTreeMap<&str, u64> = BTreeMap::new();
    for (at, site) in sites.iter().enumerate() {
        for (rank, film) in films.iter().enumerate() {
            let of = |name: &String| asks.get(&(film.path.clone(), name.clone()));
            let came = |name: &String| taken(of(name).into_iter().flatten().collect());
            let bytes: u64 = site.names.iter().map(came).sum();
            if !share.contains(&(rank as u32)) {
                assert!(site.names.iter().all(|name| of(name).is_none()), "{}: nobody has room for it", film.path);
                continue;
            }
            let died = u64::from(at == 0 && of(&site.names[DYING]).is_some());
            let length = film.bytes.len() as u64;
            let most = length * (1 + film.spare + died);
            assert!(
                (length..=most).contains(&bytes),
                "{} at {}: {bytes} bytes of {length}, {most} at most",
                film.path,
                site.names[0]
            );
            *more.entry(if bytes == length { "once" } else { "more than once" }).or_default() += 1;
        }
        let fetchers = site.names.iter().filter(|name| asks.keys().any(|(_, by)| by == *name)).count();
        assert_eq!(fetchers, 3, "the boxes share what is fetched from outside");
    }
    eprintln!("assets that came {more:?}");
}
