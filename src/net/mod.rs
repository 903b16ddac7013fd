//! Sockets in, connections out.

pub mod bucket;
pub mod client;
pub mod download;
pub mod gzip;
pub mod listener;
pub mod redirects;
pub mod tls;
