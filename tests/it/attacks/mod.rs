//! The field's history: a named test for each attack that servers and caches of this kind are known to have fallen to.
//!
//! Each tells what the attack is and where it was described, and shows what this server does about it. By family:
//!
//! - `http2`: floods of frames and streams, bombs, and windows that stay shut
//! - `ranges`: overlapping, overflowing and amplifying ranges
//! - `identity`: what is and is not part of an asset's name; paths that lead elsewhere; poisoned caches
//! - `framing`: upgrades, chunks, bare line feeds, pipelines
//! - `disk`: files that change under the server
//! - `slow`: whoever gives as little as possible
//! - `sessions`: TLS
//! - `log`: requests that write the log
//!
//! What other files had already: smuggling by CL and TE and in HTTP/1.0, undrained bodies on a hit (CVE-2025-4366) and heads that are too
//! large in `smuggling`; HPACK bombs and resets before a stream is looked at in `http2`; slowloris, slow readers and idle crowds in
//! `slow` and `tls`; stalled handshakes, sessions resumed under another name in `tls`.

mod disk;
mod framing;
mod http2;
mod identity;
mod log;
mod ranges;
mod sessions;
mod slow;

use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);
