//! What benches share.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "sizes and times of a bench fit, and it runs on 64 bits"
)]

pub(crate) mod appliance;
pub(crate) mod arrival;
pub(crate) mod client;
pub(crate) mod cores;
pub(crate) mod events;
pub(crate) mod http2;
pub(crate) mod load;
pub(crate) mod nginx;
pub(crate) mod random;
pub(crate) mod records;
pub(crate) mod report;
pub(crate) mod responder;
pub(crate) mod scratch;
pub(crate) mod stolen;

/// What a bench gives back.
pub(crate) type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The values of `--name=VALUE` on the command line.
pub(crate) fn values(name: &str) -> Vec<String> {
    let begin = format!("--{name}=");
    std::env::args().filter_map(|argument| argument.strip_prefix(&begin).map(str::to_owned)).collect()
}

/// The number of `--name=N` on the command line.
pub(crate) fn option(name: &str) -> Option<u64> {
    values(name).first()?.parse().ok()
}

/// Whether `--name` stands on the command line.
pub(crate) fn flag(name: &str) -> bool {
    std::env::args().any(|argument| argument == format!("--{name}"))
}

/// Whether this is a short run that only shows that the bench works.
pub(crate) fn is_smoke() -> bool {
    flag("test") || flag("smoke")
}
