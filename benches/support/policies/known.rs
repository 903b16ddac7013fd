//! Small traces whose hits were counted by hand: what every rule has to make of them. Checked before every run, since figures of
//! rules that are not what they are called would be worse than none.

use std::{io, path::Path};

use oca::catalog::Admission;

use super::{
    Policy, Request,
    appliance::Appliance,
    belady::{Belady, bound, next_uses},
    lru::Lru,
    s3_fifo::S3Fifo,
    sieve::Sieve,
};

/// Hits in a trace of `(key, size)`, as a string of one letter for each request: `h`it or `m`iss.
fn outcomes(policy: &mut dyn Policy, stream: &[Request]) -> String {
    stream.iter().map(|request| if policy.request(*request) { 'h' } else { 'm' }).collect()
}

fn stream(trace: &[(u32, u32)]) -> Vec<Request> {
    // Two in a second, so that the appliance's clock of seconds moves on.
    trace.iter().zip(0..).map(|((key, size), at)| Request { at_millis: 500 * at, key: *key, size: *size }).collect()
}

/// A trace, its capacity, and what each rule makes of it.
struct Known {
    what: &'static str,
    trace: &'static [(u32, u32)],
    capacity: u64,
    lru: &'static str,
    sieve: &'static str,
    s3_fifo: &'static str,
    belady: &'static str,
    /// Most hits, and most bytes from hits.
    bound: (u64, u64),
}

const KNOWN: &[Known] = &[
    Known {
        what: "a loop that is one object too long",
        trace: &[(0, 1), (1, 1), (2, 1), (0, 1), (1, 1), (2, 1)],
        capacity: 2,
        lru: "mmmmmm",
        sieve: "mmmmmm",
        s3_fifo: "mmmmmm",
        // 2 would be used last of the three, and is not taken in.
        belady: "mmmhhm",
        // Three hits of a byte for three steps each: nine of twelve.
        bound: (3, 3),
    },
    Known {
        what: "the same with room for one object",
        trace: &[(0, 1), (1, 1), (2, 1), (0, 1), (1, 1), (2, 1)],
        capacity: 1,
        lru: "mmmmmm",
        sieve: "mmmmmm",
        s3_fifo: "mmmmmm",
        belady: "mmmhmm",
        // Three steps each, six in all.
        bound: (2, 2),
    },
    Known {
        what: "a scan past an object that was used again",
        trace: &[(0, 1), (0, 1), (1, 1), (2, 1), (3, 1), (0, 1)],
        capacity: 3,
        lru: "mhmmmm",
        // The hand spares 0 and takes 1.
        sieve: "mhmmmh",
        // Once again is not enough for the main queue.
        s3_fifo: "mhmmmm",
        belady: "mhmmmh",
        bound: (2, 2),
    },
    Known {
        what: "a scan past an object that was used twice again",
        trace: &[(0, 1), (0, 1), (0, 1), (1, 1), (2, 1), (3, 1), (0, 1)],
        capacity: 3,
        lru: "mhhmmmm",
        sieve: "mhhmmmh",
        // 0 moves on to the main queue, 1 leaves.
        s3_fifo: "mhhmmmh",
        belady: "mhhmmmh",
        bound: (3, 3),
    },
    Known {
        what: "objects of several sizes",
        trace: &[(0, 6), (1, 3), (2, 4), (0, 6), (1, 3)],
        capacity: 10,
        // 2 puts out 0, 0 puts out 1, 1 puts out 2.
        lru: "mmmmm",
        sieve: "mmmmm",
        s3_fifo: "mmmmm",
        // 2 is not used again and not taken in.
        belady: "mmmhh",
        bound: (2, 9),
    },
    Known {
        what: "one large object for several small ones",
        trace: &[(0, 3), (1, 3), (2, 3), (3, 9), (3, 9), (0, 3)],
        capacity: 10,
        lru: "mmmmhm",
        sieve: "mmmmhm",
        s3_fifo: "mmmmhm",
        // 3 is used again before 0 is: 0 gives way.
        belady: "mmmmhm",
        // 9 for one step and 3 for five are less than 60.
        bound: (2, 12),
    },
    Known {
        what: "an object that fits nowhere",
        trace: &[(0, 11), (1, 1), (0, 11), (1, 1)],
        capacity: 10,
        lru: "mmmh",
        sieve: "mmmh",
        s3_fifo: "mmmh",
        belady: "mmmh",
        bound: (1, 1),
    },
    Known {
        what: "what returns soon after it left",
        // 0 leaves the small queue for 3, returns as a ghost and goes to the main queue, where a scan does not reach it.
        trace: &[(0, 1), (1, 1), (2, 1), (3, 1), (0, 1), (4, 1), (5, 1), (6, 1), (0, 1)],
        capacity: 3,
        lru: "mmmmmmmmm",
        sieve: "mmmmmmmmm",
        s3_fifo: "mmmmmmmmh",
        belady: "mmmmhmmmh",
        bound: (2, 2),
    },
];

/// What the appliance makes of a trace of its own: it evicts more than is needed at once, and by watermarks.
struct Own {
    what: &'static str,
    trace: &'static [(u32, u32)],
    always: &'static str,
    second_request: &'static str,
}

/// In a volume of 100 bytes: eviction begins above 95 and ends at 90; room for a newcomer that does not fit is made twice.
const OWN: &[Own] = &[
    Own {
        what: "the least recently used goes",
        // 90 bytes are held; the 30 of 3 do not fit, and 60 are made room for: 1 and 2 go, 0 was used since.
        trace: &[(0, 30), (1, 30), (2, 30), (0, 30), (3, 30), (0, 30), (3, 30), (1, 30)],
        always: "mmmhmhhm",
        // Only 0 and 3 are asked for twice before the end: 0 is taken in with its second request.
        second_request: "mmmmmhmm",
    },
    Own {
        what: "above the high watermark",
        // 96 bytes fit, and are too many all the same: 0 goes.
        trace: &[(0, 32), (1, 32), (2, 32), (1, 32), (2, 32), (0, 32)],
        always: "mmmhhm",
        second_request: "mmmmmm",
    },
    Own {
        what: "larger than the high watermark",
        trace: &[(0, 96), (0, 96), (0, 96)],
        always: "mmm",
        second_request: "mmm",
    },
];

/// Whether every rule makes of every trace what it should; else what it made. `home` takes the appliance's volumes.
///
/// # Errors
/// What differs, or why a volume cannot be made.
pub(crate) fn check(home: &Path) -> io::Result<()> {
    let differs = |what: &str, who: &str, said: &str, expected: &str| match said == expected {
        true => Ok(()),
        false => Err(io::Error::other(format!("{what}: {who} made {said} of it, not {expected}"))),
    };
    for known in KNOWN {
        let stream = stream(known.trace);
        let (next, keys) = (next_uses(&stream, 8), 8);
        let said = |who: &str, policy: &mut dyn Policy, expected: &str| {
            differs(known.what, who, &outcomes(policy, &stream), expected)
        };
        said("LRU", &mut Lru::new(keys, known.capacity), known.lru)?;
        said("SIEVE", &mut Sieve::new(keys, known.capacity), known.sieve)?;
        said("S3-FIFO", &mut S3Fifo::new(keys, known.capacity), known.s3_fifo)?;
        said("Belady", &mut Belady::new(keys, known.capacity, &next), known.belady)?;
        let found = format!("{:?}", bound(&stream, &next, known.capacity));
        differs(known.what, "the bound", &found, &format!("{:?}", known.bound))?;
    }
    for (number, own) in OWN.iter().enumerate() {
        for (admission, expected) in [(Admission::Always, own.always), (Admission::SecondRequest, own.second_request)] {
            let home = home.join(format!("known-{number}-{admission:?}"));
            let mut appliance = Appliance::new(home, 100, admission)?;
            differs(own.what, "the appliance", &outcomes(&mut appliance, &stream(own.trace)), expected)?;
        }
    }
    Ok(())
}
