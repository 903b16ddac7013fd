//! What is not held: fetched from an origin, kept on disk, and shown to viewers meanwhile. nginx does it by `proxy_cache` and `slice`.
//!
//! The origin is one for all: another nginx, beside the load, that has one film under every name. Viewers are as many as there are
//! films under way; each reads its own from the start, and nothing is asked for twice. nginx never waits for the disk; oca makes all that it
//! fills durable, twice a second, and digests it.

use std::cell::Cell;

use super::{
    Plan,
    measure::Shape,
    support::{
        Fallible,
        load::Ask,
        nginx::{Nginx, Role, Tuning},
        random::Random,
        scratch::{Scratch, content, make_assets},
    },
    workloads::{Bench, MIB, Row, appliances, peers, stop},
};

/// Films under way at once, and parts of each.
const FILMS: u64 = 64;
const PARTS: u64 = 8;

pub(crate) fn fill(plan: &Plan) -> Fallible<Vec<Row>> {
    let scratch = Scratch::new("beside_nginx-fill")?;
    let home = scratch.path();
    if !Nginx::is_there() {
        eprintln!("nginx is not installed: no origin to fill from");
        return Ok(Vec::new());
    }
    make_assets(&home.join("origin"), 1, PARTS * MIB)?;
    let role = Role { server: "location / { try_files /0.mp4 =404; }", is_origin: true, ..Role::default() };
    let origin = Nginx::start(home, &home.join("origin"), Tuning::hot()[0], &role)?;
    let appliances = appliances(plan, home, "16 GiB", ("", ""), &format!("http://{}/", origin.http))?;
    let http = format!(
        "proxy_cache_path HOME/cache keys_zone=z:64m max_size=16g use_temp_path=off; upstream origin {{ server {}; keepalive 256; }}",
        origin.http
    );
    let server = "location / { slice 1m; proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
        proxy_cache z; proxy_cache_key $uri$slice_range; proxy_set_header Range $slice_range; proxy_cache_valid 200 206 1h;\n\
        proxy_cache_lock on; }";
    let role = Role { server, http: &http, ..Role::default() };
    let peers = peers(plan, home, &Tuning::filling(), &role)?;

    let number = Cell::new(0_u64);
    let next = |_: &mut Random| {
        let (group, within) = (number.get() / (FILMS * PARTS), number.get() % (FILMS * PARTS));
        number.set(number.get() + 1);
        let film = group * FILMS + within % FILMS;
        Ask { path: format!("/{film}.mp4"), start: within / FILMS * MIB, len: MIB, whole: false }
    };
    let content = |ask: &Ask, offset: u64, into: &mut [u8]| content(0, ask.start + offset, into);
    // Whole films only, and none of the writes of who came before.
    let before = || {
        number.set(number.get().next_multiple_of(FILMS * PARTS));
        rustix::fs::sync();
        Ok(())
    };
    let mut shape = Shape::new(usize::try_from(FILMS)?, &next, &content);
    shape.requests_max = if plan.smoke { FILMS } else { FILMS * PARTS };
    shape.before = Some(&before);
    // The origin has the load's core when the load waits.
    shape.polls = false;
    let plan = Plan { seconds: 600.0, ..plan.clone() };
    let bench = Bench {
        plan: &plan,
        section: "fill",
        appliances: &appliances,
        peers: &peers,
        others: &[],
        logging: &[],
        held: None,
    };
    let row = bench.row("miss, 1 MiB x 64", &shape)?;
    stop(appliances)?;
    Ok(vec![row])
}
