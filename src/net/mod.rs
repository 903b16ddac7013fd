//! Sockets in, connections out.

pub mod client;
pub mod listener;
pub mod tls;
