//! Streams from a seed. The same seed gives the same stream everywhere: the generator is part of this file.

use super::{Request, Stream};

/// Time between two requests: a hundred in a second.
const MILLIS_PER_REQUEST: u64 = 10;
/// Objects of the streams that know no titles.
const OBJECTS: usize = 20_000;
/// Video: titles at first, segments of four seconds in each, kbit/s of each rung and how many of a hundred viewers take it.
const TITLES: usize = 150;
const SEGMENTS: u32 = 200;
const LADDER: [(u32, u64); 3] = [(1_200, 15), (3_000, 35), (6_000, 50)];
const VIEWERS: usize = 300;

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `0..n`. What the remainder favours is far below what the tables show.
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// In `[0, 1)`.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Ranks `0..n`, each as likely as `1 / (rank + 1)^alpha`.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(n: usize, alpha: f64) -> Self {
        let mut sum = 0.0;
        let sums = (1..=n).map(|rank| {
            sum += (rank as f64).powf(-alpha);
            sum
        });
        Self(sums.collect())
    }

    fn draw(&self, random: &mut Random) -> usize {
        let at = random.unit() * self.0.last().copied().unwrap_or(0.0);
        self.0.partition_point(|sum| *sum <= at).min(self.0.len() - 1)
    }
}

/// KiB of a segment of four seconds at `kbps`, which codecs miss by up to 40 % either way.
fn segment_kib(random: &mut Random, kbps: u32) -> u32 {
    let factor = 600 + u32::try_from(random.below(801)).unwrap_or(0);
    (kbps * 4 / 8 * factor / 1000).max(1)
}

/// A rung of the ladder, as viewers take them.
fn rung(random: &mut Random) -> usize {
    let mut at = random.below(100);
    for (number, (_, share)) in LADDER.iter().enumerate() {
        if at < *share {
            return number;
        }
        at -= share;
    }
    LADDER.len() - 1
}

/// Objects with a size each, made as they are first needed.
#[derive(Default)]
struct Objects {
    sizes: Vec<u32>,
}

impl Objects {
    fn make(&mut self, size: u32) -> u32 {
        self.sizes.push(size);
        u32::try_from(self.sizes.len() - 1).unwrap_or(u32::MAX)
    }

    /// As large as segments of video are.
    fn make_segment(&mut self, random: &mut Random) -> u32 {
        let (kbps, _) = LADDER[rung(random)];
        let size = segment_kib(random, kbps);
        self.make(size)
    }

    fn stream(&self, name: String, keys: &[u32]) -> Stream {
        let request = |(at, key): (u64, &u32)| Request {
            at_millis: at * MILLIS_PER_REQUEST,
            key: *key,
            size: self.sizes[*key as usize],
        };
        Stream { name, requests: (0..).zip(keys).map(request).collect(), keys: self.sizes.len() }
    }
}

/// Objects asked for independently of each other and of time.
pub(crate) fn zipf(seed: u64, alpha: f64, requests: usize) -> Stream {
    let (mut random, mut objects) = (Random(seed), Objects::default());
    let held: Vec<u32> = (0..OBJECTS).map(|_| objects.make_segment(&mut random)).collect();
    let zipf = Zipf::new(OBJECTS, alpha);
    let keys: Vec<u32> = (0..requests).map(|_| held[zipf.draw(&mut random)]).collect();
    objects.stream(format!("Zipf {alpha}"), &keys)
}

/// As Zipf 0.9, but one request in four belongs to a walk of 500 through objects that nobody asks for again: a crawler, or viewers
/// of what is hardly watched.
pub(crate) fn scans(seed: u64, requests: usize) -> Stream {
    const WALK: usize = 500;
    let (mut random, mut objects) = (Random(seed), Objects::default());
    let held: Vec<u32> = (0..OBJECTS).map(|_| objects.make_segment(&mut random)).collect();
    let zipf = Zipf::new(OBJECTS, 0.9);
    let mut keys = Vec::with_capacity(requests);
    while keys.len() < requests {
        keys.extend((0..3 * WALK).map(|_| held[zipf.draw(&mut random)]));
        keys.extend((0..WALK).map(|_| objects.make_segment(&mut random)));
    }
    keys.truncate(requests);
    objects.stream("Zipf 0.9 with scans".into(), &keys)
}

/// As Zipf 0.9, but twenty times in the stream 200 new objects become the most popular ones.
pub(crate) fn releases(seed: u64, requests: usize) -> Stream {
    const RELEASES: usize = 20;
    const NEW: usize = 200;
    let (mut random, mut objects) = (Random(seed), Objects::default());
    // The most popular at the end, where new ones are put.
    let mut held: Vec<u32> = (0..OBJECTS).map(|_| objects.make_segment(&mut random)).collect();
    let zipf = Zipf::new(OBJECTS, 0.9);
    let mut keys = Vec::with_capacity(requests);
    for at in 0..requests {
        if at > 0 && at % (requests / (RELEASES + 1)).max(1) == 0 {
            held.extend((0..NEW).map(|_| objects.make_segment(&mut random)));
        }
        keys.push(held[held.len() - 1 - zipf.draw(&mut random)]);
    }
    objects.stream("Zipf 0.9 with releases".into(), &keys)
}

/// Viewers at their players: each takes a title (Zipf 0.9) on a rung of its own, and segment after segment of it; a third leaves within the first
/// ten, the rest somewhere later. With `releases`, ten times in the stream a new title becomes the most popular one.
pub(crate) fn video(seed: u64, requests: usize, releases: bool) -> Stream {
    let (mut random, mut objects) = (Random(seed), Objects::default());
    let mut titles: Vec<Vec<u32>> = (0..TITLES).map(|_| make_title(&mut random, &mut objects)).collect();
    let zipf = Zipf::new(TITLES, 0.9);
    // Title, rung, next segment, end.
    let sit_down = |random: &mut Random, titles: &[Vec<u32>]| {
        let title = titles.len() - 1 - zipf.draw(random);
        let end = match random.below(3) {
            0 => 1 + random.below(10),
            _ => 10 + random.below(u64::from(SEGMENTS) - 9),
        };
        (title, rung(random), 0, usize::try_from(end).unwrap_or(1))
    };
    let mut viewers: Vec<_> = (0..VIEWERS).map(|_| sit_down(&mut random, &titles)).collect();
    // Not all at the first segment when the stream begins.
    for viewer in &mut viewers {
        viewer.2 = usize::try_from(random.below(viewer.3 as u64)).unwrap_or(0);
    }
    let mut keys = Vec::with_capacity(requests);
    for at in 0..requests {
        if releases && at > 0 && at % (requests / 11).max(1) == 0 {
            titles.push(make_title(&mut random, &mut objects));
        }
        // In turns with some disorder, as players with buffers ask.
        let number = usize::try_from(random.below(VIEWERS as u64)).unwrap_or(0);
        let (title, rung, segment, end) = &mut viewers[number];
        keys.push(titles[*title][*segment * LADDER.len() + *rung]);
        *segment += 1;
        if segment == end {
            viewers[number] = sit_down(&mut random, &titles);
        }
    }
    objects.stream(if releases { "video with releases" } else { "video" }.into(), &keys)
}

/// The segments of a title, rung beside rung.
fn make_title(random: &mut Random, objects: &mut Objects) -> Vec<u32> {
    let segments = (0..SEGMENTS).flat_map(|_| LADDER);
    segments.map(|(kbps, _)| objects.make(segment_kib(random, kbps))).collect()
}
