//! Published traces: `oracleGeneral` of libCacheSim, not compressed, and CSV of `time,key,size`.
//!
//! `oracleGeneral` (libCacheSim, `traceReader/customizedReader/oracle/oracleGeneralBin.h`): 24 bytes a request, little-endian: time in
//! seconds (4), object (8), size (4), place of the object's next request (8, not used here). CSV: time in seconds, any text
//! without a comma, bytes; the header `time,key,size` may stand in the first row.
//!
//! Requests of size zero are passed over, as libCacheSim does. An object keeps the size of its first request. Sizes are rounded up
//! to KiB.

use std::{collections::HashMap, path::Path};

use super::{Request, Stream};

/// Why a trace is not taken.
type Fault = String;

/// Bytes of a request in `oracleGeneral`.
const RECORD: usize = 24;
/// First bytes of what zstd made.
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// What was remarkable about a trace, beside its requests.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Remarks {
    pub(crate) empty: usize,
    pub(crate) resized: usize,
}

/// Reads the trace in a file: CSV where its name ends so, else `oracleGeneral`.
///
/// # Errors
/// It cannot be read, or a row of it is none; the row's number, from 1, is in the text.
pub(crate) fn read(path: &Path) -> Result<(Stream, Remarks), Fault> {
    let bytes = std::fs::read(path).map_err(|err| format!("{}: {err}", path.display()))?;
    let is_csv = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
    let read = if is_csv { read_csv(&bytes) } else { read_oracle_general(&bytes) };
    let (mut stream, remarks) = read.map_err(|fault| format!("{}: {fault}", path.display()))?;
    stream.name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    Ok((stream, remarks))
}

/// Takes rows one after the other.
struct Rows<K> {
    keys: HashMap<K, (u32, u32)>,
    requests: Vec<Request>,
    begin: Option<u64>,
    last: u64,
    remarks: Remarks,
}

impl<K: std::hash::Hash + Eq> Rows<K> {
    fn new() -> Self {
        Self { keys: HashMap::new(), requests: Vec::new(), begin: None, last: 0, remarks: Remarks::default() }
    }

    fn add(&mut self, seconds: u64, key: K, bytes: u64) -> Result<(), Fault> {
        if seconds < self.last {
            return Err(format!("time goes back from {} to {seconds}", self.last));
        }
        self.last = seconds;
        if bytes == 0 {
            self.remarks.empty += 1;
            return Ok(());
        }
        let kib = u32::try_from(bytes.div_ceil(1024)).map_err(|_| format!("{bytes} bytes are too many"))?;
        let new = u32::try_from(self.keys.len()).map_err(|_| "too many objects".to_owned())?;
        let (key, size) = *self.keys.entry(key).or_insert((new, kib));
        self.remarks.resized += usize::from(size != kib);
        let at_millis = (seconds - *self.begin.get_or_insert(seconds)).saturating_mul(1000);
        self.requests.push(Request { at_millis, key, size });
        Ok(())
    }

    fn end(self) -> Result<(Stream, Remarks), Fault> {
        if self.requests.is_empty() {
            return Err("no request in it".into());
        }
        Ok((Stream { name: String::new(), requests: self.requests, keys: self.keys.len() }, self.remarks))
    }
}

fn read_oracle_general(bytes: &[u8]) -> Result<(Stream, Remarks), Fault> {
    if bytes.starts_with(&ZSTD) {
        return Err("compressed; decompress it first (zstd -d)".into());
    }
    let (records, rest) = bytes.as_chunks::<RECORD>();
    let mut rows = Rows::new();
    for (record, number) in records.iter().zip(1..) {
        let part = |start: usize, len: usize| -> u64 {
            record[start..start + len].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
        };
        rows.add(part(0, 4), part(4, 8), part(12, 4)).map_err(|fault| format!("row {number}: {fault}"))?;
    }
    if !rest.is_empty() {
        return Err(format!("row {}: {} bytes, not {RECORD}", records.len() + 1, rest.len()));
    }
    rows.end()
}

fn read_csv(bytes: &[u8]) -> Result<(Stream, Remarks), Fault> {
    let mut rows = Rows::new();
    for (line, number) in bytes.split(|byte| *byte == b'\n').zip(1_usize..) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let is_last = line.is_empty() && number > 1;
        if is_last || (number == 1 && line == b"time,key,size") {
            continue;
        }
        let row = || -> Result<(u64, String, u64), Fault> {
            let text = std::str::from_utf8(line).map_err(|_| "not UTF-8".to_owned())?;
            let [time, key, size] = text.split(',').collect::<Vec<_>>()[..] else {
                return Err(format!("'{text}' is not time,key,size"));
            };
            let count =
                |what: &str, text: &str| text.trim().parse().map_err(|_| format!("{what} '{text}' is no whole number"));
            Ok((count("time", time)?, key.to_owned(), count("size", size)?))
        };
        let added = row().and_then(|(time, key, size)| rows.add(time, key, size));
        added.map_err(|fault| format!("row {number}: {fault}"))?;
    }
    rows.end()
}

/// The readers on known bytes.
///
/// # Errors
/// What was read differently.
pub(crate) fn check() -> Result<(), Fault> {
    let record = |time: u32, key: u64, size: u32| {
        let mut bytes = time.to_le_bytes().to_vec();
        bytes.extend(key.to_le_bytes());
        bytes.extend(size.to_le_bytes());
        bytes.extend((-1_i64).to_le_bytes());
        bytes
    };
    let binary = [record(7, 1 << 40, 1024), record(7, 5, 0), record(9, 6, 1025), record(9, 1 << 40, 4096)].concat();
    let csv = b"time,key,size\n7,/a b,1024\r\n7,x,0\n9,/c,1025\n9,/a b,4096\n";
    let expected = [(0, 0, 1), (2000, 1, 2), (2000, 0, 1)];
    for (what, read) in [("oracleGeneral", read_oracle_general(&binary)), ("CSV", read_csv(csv))] {
        let (stream, remarks) = read.map_err(|fault| format!("{what}: {fault}"))?;
        let said: Vec<_> =
            stream.requests.iter().map(|request| (request.at_millis, request.key, request.size)).collect();
        if said != expected || stream.keys != 2 || remarks != (Remarks { empty: 1, resized: 1 }) {
            return Err(format!("{what} was read as {stream:?}, {remarks:?}"));
        }
    }
    let refused: [(Result<_, Fault>, &str); 7] = [
        (read_oracle_general(&binary[..60]), "row 3"),
        (read_oracle_general(&[record(9, 1, 1), record(8, 1, 1)].concat()), "row 2"),
        (read_oracle_general(&ZSTD), "zstd -d"),
        (read_csv(b"1,a,1\n2,b\n"), "row 2"),
        (read_csv(b"1,a,1\n\n2,b,x\n"), "row 3"),
        (read_csv(b"key,time,size\n1,a,1\n"), "row 1"),
        (read_csv(b"time,key,size\n"), "no request"),
    ];
    for (read, expected) in refused {
        match read {
            Err(fault) if fault.contains(expected) => {}
            other => return Err(format!("expected a fault with '{expected}', found {other:?}")),
        }
    }
    Ok(())
}
