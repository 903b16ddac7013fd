//! `oca`: see `oca --help`, and the crate's map in `lib.rs`.

use std::{
    io::{Write, stderr},
    process::ExitCode,
};

/// Many small allocations from many threads: what mimalloc is made for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match oca::cli::run() {
        Ok(code) => code,
        // Whoever read what was written has seen enough, as `head` has.
        Err(err) if is_broken_pipe(&err) => ExitCode::SUCCESS,
        Err(err) => {
            // The chain of causes on one line: what was done, and what the system said. Nothing more can be done if not even
            // that can be written.
            drop(writeln!(stderr(), "oca: {err:#}"));
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(err: &anyhow::Error) -> bool {
    err.downcast_ref::<std::io::Error>().is_some_and(|err| err.kind() == std::io::ErrorKind::BrokenPipe)
}
