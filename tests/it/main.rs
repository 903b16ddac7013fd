//! Black-box tests: the real binary, over real sockets, against an origin that misbehaves to order.
//!
//! One binary for all, so that it is linked once.

#![expect(
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "tests say what they saw, and compute with lengths that fit"
)]

mod access_log;
mod addresses;
mod attacks;
mod cli;
mod clients;
mod conformance;
mod crash;
mod crowds;
mod delivery;
mod demo;
mod faults;
mod fill;
mod health;
mod hit;
mod http2;
mod life;
mod manifests;
mod metrics;
mod model;
mod monitoring;
mod night;
mod nightly;
mod nightly_kills;
mod operators;
mod overload;
mod page;
mod peers;
mod players;
mod process;
mod progress;
mod purge;
mod refusals;
mod reload;
mod restart;
mod signed;
mod slow;
mod smuggling;
mod sources;
mod steering;
mod stores;
mod support;
mod tls;
mod tls_profile;
mod wire;
