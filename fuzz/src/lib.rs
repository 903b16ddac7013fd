//! A driver for fuzz targets that needs nothing but a stable compiler: random mutations of a corpus, from a printed seed.
//!
//! `cargo run -p oca-fuzz --bin ranges -- -runs=1000000` ; options as of libFuzzer: `-runs=N -max_len=N -seed=N`.
//! With cargo-fuzz (`cargo fuzz run ranges`) the same targets are guided by coverage instead.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

/// Pseudo-random numbers: xorshift64 (Marsaglia, 2003).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

fn option(name: &str) -> Option<u64> {
    std::env::args().find_map(|argument| argument.strip_prefix(&format!("-{name}="))?.parse().ok())
}

/// Runs `target` on mutations of `corpus` with words of `dictionary` mixed in. An input that makes it panic is written to the
/// current folder and named; then the process fails.
pub fn drive(target: fn(&[u8]), corpus: &[&str], dictionary: &[&str]) -> ExitCode {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64);
    let seed = option("seed").unwrap_or(clock) | 1;
    let (runs, max_len) = (option("runs").unwrap_or(100_000), option("max_len").unwrap_or(4096) as usize);
    println!("-seed={seed} -runs={runs} -max_len={max_len}");
    let mut random = Random(seed);
    for run in 0..runs {
        let mut input = corpus[random.below(corpus.len())].as_bytes().to_vec();
        for _ in 0..random.below(8) {
            mutate(&mut input, &mut random, dictionary);
        }
        input.truncate(max_len);
        if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
            let file = format!("crash-{seed}-{run}");
            println!("run {run} panicked on {:?}; written to {file}", String::from_utf8_lossy(&input));
            if let Err(err) = std::fs::write(&file, &input) {
                println!("{file} cannot be written: {err}");
            }
            return ExitCode::FAILURE;
        }
    }
    println!("{runs} runs, no panic");
    ExitCode::SUCCESS
}

fn mutate(input: &mut Vec<u8>, random: &mut Random, dictionary: &[&str]) {
    let at = random.below(input.len() + 1);
    match random.below(6) {
        0 if !input.is_empty() => {
            let at = random.below(input.len());
            input[at] ^= 1 << random.below(8);
        }
        1 => input.insert(at, random.next() as u8),
        2 if !input.is_empty() => drop(input.remove(random.below(input.len()))),
        3 => {
            let word = dictionary[random.below(dictionary.len())].bytes();
            drop(input.splice(at..at, word).collect::<Vec<_>>());
        }
        4 => {
            let end = at + random.below(input.len() - at + 1);
            let copy = input[at..end].to_vec();
            input.extend(copy);
        }
        _ => input.truncate(at),
    }
}

/// A target that cargo-fuzz and the driver both run.
#[macro_export]
macro_rules! target {
    ($target:path, corpus: $corpus:expr, dictionary: $dictionary:expr) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|data: &[u8]| $target(data));

        #[cfg(not(fuzzing))]
        fn main() -> std::process::ExitCode {
            $crate::drive($target, $corpus, $dictionary)
        }
    };
}
