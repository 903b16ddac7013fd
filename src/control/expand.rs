//! Expands gzip (RFC 1952) and zstd (RFC 8878), told by their first bytes, and no further than is allowed.

use std::{
    cell::Cell,
    fmt,
    io::{self, BufRead, BufReader, Read},
    rc::Rc,
};

use super::{config::Limits, refusal::Reason};

/// Memory of a zstd window, as a power of two: what `zstd -19` asks for.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// Expanded bytes from which on the ratio counts: what is small does no harm.
const RATIO_FREE: u64 = 1 << 20;

/// It has grown beyond what is allowed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Overgrown {
    pub(super) reason: Reason,
    bound: u64,
    is_ratio: bool,
}

impl fmt::Display for Overgrown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.is_ratio, self.reason) {
            (true, _) => write!(f, "it expands to more than {} times its size", self.bound),
            (false, Reason::Bomb) => write!(f, "it expands to more than {} bytes", self.bound),
            (false, _) => write!(f, "it has more than {} bytes", self.bound),
        }
    }
}

impl std::error::Error for Overgrown {}

/// The plain bytes of `input`, which may be compressed.
///
/// # Errors
/// It cannot be read.
pub(super) fn expand<'r>(input: impl Read + 'r, limits: &Limits) -> io::Result<Box<dyn Read + 'r>> {
    let taken = Rc::new(Cell::new(0));
    let mut input = BufReader::with_capacity(64 << 10, Counted { inner: input, count: Rc::clone(&taken) });
    let magic = input.fill_buf()?;
    let bounds = (limits.expanded_max.0, Some(limits.ratio_max));
    let (inner, (size_max, ratio_max)): (Box<dyn Read + 'r>, _) = if magic.starts_with(&[0x1f, 0x8b]) {
        (Box::new(flate2::bufread::MultiGzDecoder::new(input)), bounds)
    } else if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
        (Box::new(decoder), bounds)
    } else {
        (Box::new(input), (limits.expanded_max.0, None))
    };
    Ok(Box::new(Bounded { inner, taken, given: 0, size_max, ratio_max }))
}

struct Counted<R> {
    inner: R,
    count: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(into)?;
        self.count.set(self.count.get() + count as u64);
        Ok(count)
    }
}

struct Bounded<R> {
    inner: R,
    taken: Rc<Cell<u64>>,
    given: u64,
    size_max: u64,
    ratio_max: Option<u32>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(into)?;
        self.given += count as u64;
        let reason = if self.ratio_max.is_some() { Reason::Bomb } else { Reason::TooLarge };
        if self.given > self.size_max {
            return Err(io::Error::other(Overgrown { reason, bound: self.size_max, is_ratio: false }));
        }
        if let Some(ratio) = self.ratio_max
            && self.given > RATIO_FREE
            && self.given > self.taken.get().saturating_mul(ratio.into())
        {
            return Err(io::Error::other(Overgrown { reason, bound: ratio.into(), is_ratio: true }));
        }
        Ok(count)
    }
}
