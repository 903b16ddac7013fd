//! How much each client has taken: connections, and requests by a token bucket (GCRA).
//!
//! Looked up once for each connection, under one of many locks that is held for some hundred nanoseconds. A request costs one
//! exchange on a cell that the connection holds on to.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

use super::Config;

/// Parts of the table, each with a lock of its own.
const SHARDS: usize = 64;
const NANOS: u64 = 1_000_000_000;

/// What a client is allowed.
#[derive(Clone, Copy, Debug)]
struct Limits {
    connections_max: u32,
    /// Time that a request is worth; 0: no limit.
    request_nanos: u64,
    /// Time that a client may be ahead.
    burst_nanos: u64,
}

/// What a client has taken.
#[derive(Debug)]
pub(in crate::serve) struct Client {
    limits: Limits,
    /// Changed under the lock of its shard only.
    connections: AtomicU32,
    /// When it will have paid for all it has taken (the "theoretical arrival time").
    paid_nanos: AtomicU64,
}

/// Why a client gets no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Excess {
    Connections,
    /// And in how many seconds it may ask again.
    Requests(u64),
}

impl Client {
    /// Takes a request, if it is due; time is the workers' coarse one. Costs one exchange on a cell.
    ///
    /// # Errors
    /// In how many seconds it may ask again, at least 1.
    pub(in crate::serve) fn take(&self, now_millis: u64) -> Result<(), u64> {
        let Limits { request_nanos, burst_nanos, .. } = self.limits;
        if request_nanos == 0 {
            return Ok(());
        }
        let now = now_millis.saturating_mul(1_000_000);
        let mut paid = self.paid_nanos.load(Ordering::Relaxed);
        loop {
            let next = paid.max(now).saturating_add(request_nanos);
            let most = now.saturating_add(burst_nanos);
            if next > most {
                return Err((next - most).div_ceil(NANOS).max(1));
            }
            match self.paid_nanos.compare_exchange_weak(paid, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(other) => paid = other,
            }
        }
    }

    /// Whether it would be the same if it were forgotten.
    fn is_forgettable(&self, now_millis: u64) -> bool {
        self.connections.load(Ordering::Relaxed) == 0
            && self.paid_nanos.load(Ordering::Relaxed) <= now_millis.saturating_mul(1_000_000)
    }
}

/// Clients by their prefix.
type Shard = Mutex<HashMap<u128, Arc<Client>>>;

/// The clients that are known.
#[derive(Debug)]
pub(super) struct Table {
    limits: Limits,
    shard_max: usize,
    shards: Box<[Shard]>,
    /// Seeded by the system, so that nobody can choose prefixes that share a shard.
    hasher: RandomState,
}

impl Table {
    pub(super) fn new(config: &Config) -> Self {
        let request_nanos = NANOS.checked_div(config.request_rate.into()).map_or(0, |nanos| nanos.max(1));
        Self {
            limits: Limits {
                connections_max: if config.connections_max == 0 { u32::MAX } else { config.connections_max },
                request_nanos,
                burst_nanos: request_nanos.saturating_mul(config.request_burst.max(1).into()),
            },
            shard_max: config.table_max.div_ceil(SHARDS).max(1),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
        }
    }

    fn shard(&self, key: u128) -> &Shard {
        let count = self.shards.len() as u64;
        // Less than `count`, which is a small number.
        &self.shards[usize::try_from(self.hasher.hash_one(key) % count).unwrap_or(0)]
    }

    /// Takes in a connection of a client, which counts as a request too. `Ok(None)`: the table is full of clients that are connected,
    /// and this one is not counted.
    pub(super) fn enter(&self, key: u128, now_millis: u64) -> Result<Option<Arc<Client>>, Excess> {
        let mut shard = self.shard(key).lock();
        if let Some(client) = shard.get(&key) {
            if client.connections.load(Ordering::Relaxed) >= self.limits.connections_max {
                return Err(Excess::Connections);
            }
            client.take(now_millis).map_err(Excess::Requests)?;
            client.connections.fetch_add(1, Ordering::Relaxed);
            return Ok(Some(Arc::clone(client)));
        }
        if shard.len() >= self.shard_max {
            shard.retain(|_, client| !client.is_forgettable(now_millis));
        }
        if shard.len() >= self.shard_max {
            // Of those that are not here, the one that is nearest to being forgettable.
            let absent = shard.iter().filter(|(_, client)| client.connections.load(Ordering::Relaxed) == 0);
            let nearest = absent.min_by_key(|(_, client)| client.paid_nanos.load(Ordering::Relaxed));
            let Some(nearest) = nearest.map(|(key, _)| *key) else { return Ok(None) };
            shard.remove(&nearest);
        }
        let client =
            Arc::new(Client { limits: self.limits, connections: AtomicU32::new(1), paid_nanos: AtomicU64::new(0) });
        client.take(now_millis).map_err(Excess::Requests)?;
        shard.insert(key, Arc::clone(&client));
        Ok(Some(client))
    }

    /// A connection of a client has ended.
    pub(super) fn leave(&self, key: u128, client: &Client, now_millis: u64) {
        let mut shard = self.shard(key).lock();
        client.connections.fetch_sub(1, Ordering::Relaxed);
        if client.is_forgettable(now_millis) {
            shard.remove(&key);
        }
    }

    /// Clients that are remembered.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(connections_max: u32, request_rate: u32, request_burst: u32, table_max: usize) -> Table {
        Table::new(&Config { connections_max, request_rate, request_burst, table_max, ..Config::default() })
    }

    #[test]
    fn a_client_has_so_many_connections_and_another_is_none_of_its_business() {
        let table = table(2, 0, 1, 1000);
        let first = table.enter(7, 0).expect("room").expect("counted");
        table.enter(7, 0).expect("room").expect("counted");
        assert_eq!(table.enter(7, 0).expect_err("full"), Excess::Connections);
        assert!(table.enter(8, 0).is_ok());
        table.leave(7, &first, 0);
        assert!(table.enter(7, 0).is_ok());
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn requests_come_at_their_rate_and_in_bursts() {
        let table = table(0, 10, 5, 1000);
        let client = table.enter(7, 1000).expect("room").expect("counted");
        // The connection was the first of five.
        let taken = |now, most: u32| (0..most).take_while(|_| client.take(now).is_ok()).count();
        assert_eq!(taken(1000, 100), 4);
        assert_eq!(client.take(1000), Err(1));
        assert_eq!(taken(1100, 100), 1, "one in a tenth of a second");
        assert_eq!(taken(1600, 100), 5);
        assert_eq!(taken(1500, 100), 0, "a worker whose clock is a tick behind gives nothing away");
        assert_eq!(taken(1_000_000, 100), 5, "no more is saved up than a burst");
        // Over a long time it is the rate, to the request.
        let total: usize = (0..100).map(|tick| taken(1_000_100 + tick * 100, 100)).sum();
        assert_eq!(total, 100);
        assert_eq!(table.enter(7, 1_010_000).expect_err("spent"), Excess::Requests(1));
    }

    #[test]
    fn one_request_in_many_seconds_says_when_to_come_back() {
        let table = table(0, 1, 1, 10);
        let client = table.enter(7, 0).expect("room").expect("counted");
        assert_eq!(client.take(0), Err(1));
        let many = Table::new(&Config { request_rate: 1, request_burst: 30, ..Config::default() });
        let client = many.enter(7, 0).expect("room").expect("counted");
        assert!((0..29).all(|_| client.take(0).is_ok()));
        assert_eq!(client.take(0), Err(1));
        assert!(client.take(1000).is_ok());
    }

    #[test]
    fn the_table_has_a_bound_and_forgets_who_would_be_the_same() {
        let small = table(10, 1, 100, SHARDS * 4);
        // Each is here once and gone: a whole subnet of prefixes.
        for key in 0..100_000_u128 {
            if let Some(client) = small.enter(key << 64, 5).expect("room") {
                small.leave(key << 64, &client, 5);
            }
            assert!(small.len() <= SHARDS * 4);
        }
        // Who is connected is not forgotten, and who comes to a full table is served uncounted.
        let full = table(10, 1, 100, 1);
        let all: Vec<_> = (0..2000_u128).map(|key| full.enter(key, 0).expect("served")).collect();
        assert_eq!(full.len(), SHARDS);
        assert_eq!(all.iter().flatten().count(), SHARDS);
        // Nothing is left of who has paid for everything.
        let idle = table(10, 0, 1, 1000);
        let client = idle.enter(7, 0).expect("room").expect("counted");
        idle.leave(7, &client, 0);
        assert_eq!(idle.len(), 0);
    }
}
