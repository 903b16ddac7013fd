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
mod attacks;
mod cli;
mod conformance;
mod crash;
mod delivery;
mod demo;
mod faults;
mod fill;
mod hit;
mod http2;
mod metrics;
mod model;
mod players;
mod signed;
mod slow;
mod smuggling;
mod support;
mod tls;
mod wire;
