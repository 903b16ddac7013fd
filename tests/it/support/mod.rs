//! What the tests stand on: the real binary in a process of its own, an origin that can be told to misbehave, a client
//! that controls every byte, content that can be computed, randomness that can be repeated.

mod appliance;
mod browser;
mod client;
mod content;
mod door;
pub(crate) mod http2;
mod origin;
mod tls;
mod tools;

pub(crate) use appliance::{Appliance, Setup};
pub(crate) use browser::Browser;
pub(crate) use client::{Client, Cut, Response, request};
pub(crate) use content::Content;
pub(crate) use door::Door;
pub(crate) use origin::{Fault, Origin, Published, Seen};
pub(crate) use tls::{Authority, Issued, KeyKind, replace};
pub(crate) use tools::{Over, Random, may_mount, missing_tool, run, wait_until};
