//! Sockets in, connections out.

pub mod listener;
