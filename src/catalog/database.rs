//! The catalog's record on its volume: a SQLite database in WAL mode, so that it survives crashes and operators can open it.
//!
//! `asset` has a row per version, `block` a row per durable block with its BLAKE3 digest, `volume` whether the last stop was
//! clean, `purge` what was purged lately. A row says only what is durable: a block's data is synced before its row is committed.

use std::{path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

/// What SQLite says when it cannot.
pub(super) use rusqlite::Error as DatabaseError;

use super::{Lifetime, Meta, SharedText, entry::Entry, purge::PurgeRow};
use crate::asset::{AssetKey, Digest, EntityTag, Sha256, UnixTime, Validators};

/// Version of the schema. Older ones are brought up to it, others are refused.
const SCHEMA: i64 = 2;

/// What version 1 lacked.
const FROM_1: &str = "
ALTER TABLE asset ADD COLUMN sha256 BLOB;
ALTER TABLE asset ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;
";

/// Purges kept on record, so that a volume that was away can catch up.
const PURGES_MAX: u32 = 4096;

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS volume (clean INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS asset (
    serial INTEGER PRIMARY KEY,             -- number of this version, part of its file's name
    path TEXT NOT NULL,                     -- the asset's key, decoded
    query TEXT,                             -- where the query is part of the key
    length INTEGER NOT NULL,                -- bytes
    etag TEXT,
    last_modified INTEGER,                  -- seconds since 1970
    last_modified_strong INTEGER NOT NULL,
    content_type TEXT,
    content_encoding TEXT,
    cache_control TEXT,
    ranged INTEGER NOT NULL,                -- whether blocks may be fetched one by one
    born INTEGER NOT NULL,                  -- seconds since 1970; Age counts from here
    fresh_until INTEGER NOT NULL,           -- seconds since 1970; -1: for ever
    stale_until INTEGER NOT NULL,
    sealed INTEGER NOT NULL,                -- whether every block is there
    used INTEGER NOT NULL,                  -- last use, seconds since 1970
    sha256 BLOB,                            -- digest of the whole, where it was compared with a manifest's
    pinned INTEGER NOT NULL DEFAULT 0       -- whether it is kept whatever the order of eviction says
);
CREATE TABLE IF NOT EXISTS block (
    serial INTEGER NOT NULL,
    number INTEGER NOT NULL,
    digest BLOB NOT NULL,                   -- BLAKE3 of the block's bytes
    PRIMARY KEY (serial, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS purge (
    id INTEGER PRIMARY KEY,                 -- the same on every volume
    path TEXT NOT NULL,                     -- decoded
    is_prefix INTEGER NOT NULL,             -- whether all that begins so is meant
    ordered INTEGER NOT NULL,               -- seconds since 1970
    serial INTEGER NOT NULL                 -- versions up to this one are yet to go; 0: all have gone
);
";

/// One volume's database.
#[derive(Debug)]
pub(super) struct Database {
    connection: Connection,
}

/// An asset as the database has it.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) serial: u64,
    pub(super) key: AssetKey,
    pub(super) meta: Meta,
    pub(super) lifetime: Lifetime,
    pub(super) sealed: bool,
    pub(super) used: UnixTime,
    /// SHA-256 of the whole, where it was compared.
    pub(super) whole: Option<Sha256>,
    pub(super) pinned: bool,
    /// The blocks that are there, for an asset that is not sealed.
    pub(super) blocks: Vec<u32>,
}

/// A block as the database has it, and whose it is.
#[derive(Debug)]
pub(super) struct StoredBlock {
    pub(super) serial: u64,
    pub(super) number: u32,
    pub(super) digest: Digest,
    pub(super) key: AssetKey,
}

impl Database {
    /// Opens or makes the database, and tells whether the last stop was clean. Marks it as not clean from now on.
    pub(super) fn open(path: &Path) -> rusqlite::Result<(Self, bool)> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        // In WAL mode FULL syncs the log at each commit: what is committed survives a power cut.
        connection
            .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY;")?;
        let schema: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if !(0..=SCHEMA).contains(&schema) {
            return Err(rusqlite::Error::InvalidParameterName(format!(
                "the catalog has schema {schema}, this version reads {SCHEMA}"
            )));
        }
        connection.execute_batch("BEGIN IMMEDIATE")?;
        if schema == 1 {
            connection.execute_batch(FROM_1)?;
        }
        connection.execute_batch(TABLES)?;
        // What lacks a block is not whole any more: a crash may have come between the two records.
        connection.execute_batch("UPDATE asset SET sha256 = NULL WHERE sealed = 0 AND sha256 IS NOT NULL")?;
        connection.execute_batch(&format!("PRAGMA user_version = {SCHEMA}; COMMIT"))?;
        let clean: Option<bool> = connection.query_row("SELECT clean FROM volume", [], |row| row.get(0)).optional()?;
        if clean.is_none() {
            connection.execute("INSERT INTO volume (clean) VALUES (0)", [])?;
        }
        connection.execute("UPDATE volume SET clean = 0", [])?;
        Ok((Self { connection }, clean.unwrap_or(true)))
    }

    /// A second connection, for reading digests beside the writer.
    pub(super) fn open_reader(path: &Path) -> rusqlite::Result<Self> {
        let connection =
            Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        Ok(Self { connection })
    }

    /// How many assets are recorded, and the largest serial number among them.
    pub(super) fn extent(&self) -> rusqlite::Result<(usize, u64)> {
        self.connection.query_row("SELECT count(*), max(serial) FROM asset", [], |row| {
            let max: Option<i64> = row.get(1)?;
            let rows: u32 = row.get(0)?;
            Ok((rows as usize, max.map_or(0, i64::cast_unsigned)))
        })
    }

    /// Gives everything that is held to `take`, in the order of serials, which is that of the table: one pass, no sorting. The
    /// serials of rows that cannot be read back come as errors.
    pub(super) fn load(&self, mut take: impl FnMut(Result<Stored, u64>)) -> rusqlite::Result<()> {
        let mut statement = self.connection.prepare(
            "SELECT serial, path, query, length, etag, last_modified, last_modified_strong, content_type, content_encoding,
                    cache_control, ranged, born, fresh_until, stale_until, sealed, used, sha256, pinned FROM asset ORDER BY serial",
        )?;
        let mut blocks = self.connection.prepare("SELECT number FROM block WHERE serial = ?1 ORDER BY number")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let Some(mut asset) = read_asset(row)? else {
                take(Err(row.get::<_, i64>(0)?.cast_unsigned()));
                continue;
            };
            if !asset.sealed {
                let numbers = blocks.query_map([asset.serial.cast_signed()], |row| row.get(0))?;
                asset.blocks = numbers.collect::<rusqlite::Result<_>>()?;
            }
            take(Ok(asset));
        }
        Ok(())
    }

    /// The purges on record.
    pub(super) fn purges(&self) -> rusqlite::Result<Vec<PurgeRow>> {
        let mut statement = self.connection.prepare("SELECT id, path, is_prefix, ordered, serial FROM purge")?;
        let rows = statement.query_map([], |row| {
            Ok(PurgeRow {
                id: row.get(0)?,
                path: row.get(1)?,
                is_prefix: row.get(2)?,
                ordered: UnixTime(row.get::<_, i64>(3)?.cast_unsigned()),
                serial: row.get::<_, i64>(4)?.cast_unsigned(),
            })
        })?;
        rows.collect()
    }

    /// Begins a batch.
    pub(super) fn transaction(&mut self) -> rusqlite::Result<Batch<'_>> {
        Ok(Batch { transaction: self.connection.transaction()? })
    }

    /// Notes that everything is durable and no more will be written.
    pub(super) fn mark_clean(&mut self) -> rusqlite::Result<()> {
        self.connection.execute("UPDATE volume SET clean = 1", [])?;
        self.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
    }

    /// Digest of one block; `None` where it is not recorded.
    pub(super) fn digest(&self, serial: u64, number: u32) -> rusqlite::Result<Option<Digest>> {
        let mut statement =
            self.connection.prepare_cached("SELECT digest FROM block WHERE serial = ?1 AND number = ?2")?;
        statement.query_row(params![serial.cast_signed(), number], |row| Ok(Digest::new(row.get(0)?))).optional()
    }

    /// Up to `limit` blocks after block `number` of version `serial`, in the order of serials and numbers.
    pub(super) fn blocks_after(
        &self,
        serial: u64,
        number: Option<u32>,
        limit: u32,
    ) -> rusqlite::Result<Vec<StoredBlock>> {
        let mut statement = self.connection.prepare_cached(
            "SELECT b.serial, b.number, b.digest, a.path, a.query FROM block b JOIN asset a ON a.serial = b.serial
             WHERE (b.serial, b.number) > (?1, ?2) ORDER BY b.serial, b.number LIMIT ?3",
        )?;
        let after = number.map_or(-1, i64::from);
        let rows = statement.query_map(params![serial.cast_signed(), after, limit], |row| {
            let (path, query): (String, Option<String>) = (row.get(3)?, row.get(4)?);
            let Ok(key) = AssetKey::from_record(&path, query.as_deref()) else { return Ok(None) };
            let serial: i64 = row.get(0)?;
            Ok(Some(StoredBlock {
                serial: serial.cast_unsigned(),
                number: row.get(1)?,
                digest: Digest::new(row.get(2)?),
                key,
            }))
        })?;
        rows.filter_map(Result::transpose).collect()
    }
}

fn read_asset(row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<Stored>> {
    let unsigned = |at: usize| row.get::<_, i64>(at).map(i64::cast_unsigned);
    let (path, query): (String, Option<String>) = (row.get(1)?, row.get(2)?);
    let etag: Option<String> = row.get(4)?;
    let etag = etag.as_deref().map(EntityTag::parse);
    let (Ok(key), false) = (AssetKey::from_record(&path, query.as_deref()), etag == Some(None)) else {
        return Ok(None);
    };
    let boxed = |at: usize| row.get::<_, Option<String>>(at).map(|text| text.map(SharedText::from));
    Ok(Some(Stored {
        serial: unsigned(0)?,
        key,
        meta: Meta {
            length: unsigned(3)?,
            validators: Validators {
                etag: etag.flatten(),
                last_modified: row.get::<_, Option<i64>>(5)?.map(|time| UnixTime(time.cast_unsigned())),
                last_modified_is_strong: row.get(6)?,
            },
            content_type: boxed(7)?,
            content_encoding: boxed(8)?,
            cache_control: boxed(9)?,
            ranged: row.get(10)?,
        },
        lifetime: Lifetime {
            born: UnixTime(unsigned(11)?),
            fresh_until: UnixTime(unsigned(12)?),
            stale_until: UnixTime(unsigned(13)?),
        },
        sealed: row.get(14)?,
        used: UnixTime(unsigned(15)?),
        whole: row.get::<_, Option<[u8; 32]>>(16)?.map(Sha256::new),
        pinned: row.get(17)?,
        blocks: Vec::new(),
    }))
}

/// Changes that become durable together or not at all.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    transaction: rusqlite::Transaction<'a>,
}

impl Batch<'_> {
    /// Records a version, if it is not recorded yet.
    pub(super) fn asset(&self, entry: &Entry) -> rusqlite::Result<()> {
        let (meta, life) = (entry.meta(), entry.lifetime());
        let sealed = meta.length == 0;
        self.transaction
            .prepare_cached(
                "INSERT OR IGNORE INTO asset (serial, path, query, length, etag, last_modified, last_modified_strong, content_type,
                     content_encoding, cache_control, ranged, born, fresh_until, stale_until, sealed, used)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
            )?
            .execute(params![
                entry.serial().cast_signed(),
                entry.key().path(),
                entry.key().query(),
                meta.length.cast_signed(),
                meta.validators.etag.as_ref().map(EntityTag::as_str),
                meta.validators.last_modified.map(|time| time.0.cast_signed()),
                meta.validators.last_modified_is_strong,
                meta.content_type.as_deref(),
                meta.content_encoding.as_deref(),
                meta.cache_control.as_deref(),
                meta.ranged,
                life.born.0.cast_signed(),
                life.fresh_until.0.cast_signed(),
                life.stale_until.0.cast_signed(),
                sealed,
                entry.used().0.cast_signed(),
            ])
            .map(drop)
    }

    /// Records a durable block; its asset's row is there.
    pub(super) fn block(&self, serial: u64, number: u32, digest: &Digest) -> rusqlite::Result<()> {
        self.transaction
            .prepare_cached("INSERT OR REPLACE INTO block (serial, number, digest) VALUES (?1, ?2, ?3)")?
            .execute(params![serial.cast_signed(), number, digest.as_bytes()])
            .map(drop)
    }

    /// Marks a version as sealed if all its blocks are recorded.
    pub(super) fn seal_if_whole(&self, serial: u64, blocks: u32) -> rusqlite::Result<()> {
        self.transaction
            .prepare_cached(
                "UPDATE asset SET sealed = 1 WHERE serial = ?1 AND (SELECT count(*) FROM block WHERE serial = ?1) = ?2",
            )?
            .execute(params![serial.cast_signed(), blocks])
            .map(drop)
    }

    /// Forgets a block that turned out worthless.
    pub(super) fn forget_block(&self, serial: u64, number: u32) -> rusqlite::Result<()> {
        let serial = serial.cast_signed();
        self.transaction
            .prepare_cached("DELETE FROM block WHERE serial = ?1 AND number = ?2")?
            .execute(params![serial, number])?;
        self.transaction
            .prepare_cached("UPDATE asset SET sealed = 0, sha256 = NULL WHERE serial = ?1")?
            .execute([serial])
            .map(drop)
    }

    /// Forgets a version.
    pub(super) fn forget(&self, serial: u64) -> rusqlite::Result<()> {
        let serial = serial.cast_signed();
        self.transaction.prepare_cached("DELETE FROM block WHERE serial = ?1")?.execute([serial])?;
        self.transaction.prepare_cached("DELETE FROM asset WHERE serial = ?1")?.execute([serial]).map(drop)
    }

    /// Records the digest of the whole, once it was compared.
    pub(super) fn whole(&self, serial: u64, digest: Option<&[u8; 32]>) -> rusqlite::Result<()> {
        self.transaction
            .prepare_cached("UPDATE asset SET sha256 = ?2 WHERE serial = ?1")?
            .execute(params![serial.cast_signed(), digest])
            .map(drop)
    }

    /// Records whether it is pinned.
    pub(super) fn pinned(&self, serial: u64, pinned: bool) -> rusqlite::Result<()> {
        self.transaction
            .prepare_cached("UPDATE asset SET pinned = ?2 WHERE serial = ?1")?
            .execute(params![serial.cast_signed(), pinned])
            .map(drop)
    }

    /// Records a purge.
    pub(super) fn purge(&self, row: &PurgeRow) -> rusqlite::Result<()> {
        self.transaction
            .prepare_cached(
                "INSERT OR REPLACE INTO purge (id, path, is_prefix, ordered, serial) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![row.id, row.path, row.is_prefix, row.ordered.0.cast_signed(), row.serial.cast_signed()])
            .map(drop)
    }

    /// Drops the oldest purges of those that are done.
    pub(super) fn keep_latest_purges(&self) -> rusqlite::Result<()> {
        self.transaction
            .prepare_cached(
                "DELETE FROM purge WHERE serial = 0 AND id IN (SELECT id FROM purge ORDER BY ordered DESC LIMIT -1 OFFSET ?1)",
            )?
            .execute([PURGES_MAX])
            .map(drop)
    }

    /// Nothing that a purge means is left.
    pub(super) fn purge_done(&self, id: i64) -> rusqlite::Result<()> {
        self.transaction.prepare_cached("UPDATE purge SET serial = 0 WHERE id = ?1")?.execute([id]).map(drop)
    }

    /// Records a prolonged life.
    pub(super) fn lifetime(&self, serial: u64, life: Lifetime) -> rusqlite::Result<()> {
        self.transaction
            .prepare_cached("UPDATE asset SET born = ?2, fresh_until = ?3, stale_until = ?4 WHERE serial = ?1")?
            .execute(params![
                serial.cast_signed(),
                life.born.0.cast_signed(),
                life.fresh_until.0.cast_signed(),
                life.stale_until.0.cast_signed()
            ])
            .map(drop)
    }

    /// Records when a version was last used.
    pub(super) fn used(&self, serial: u64, used: UnixTime) -> rusqlite::Result<()> {
        self.transaction
            .prepare_cached("UPDATE asset SET used = ?2 WHERE serial = ?1")?
            .execute(params![serial.cast_signed(), used.0.cast_signed()])
            .map(drop)
    }

    /// Makes the batch durable.
    pub(super) fn commit(self) -> rusqlite::Result<()> {
        self.transaction.commit()
    }
}

/// Whether the error says only that the disk is full.
pub(super) fn is_full(err: &rusqlite::Error) -> bool {
    err.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalog_of_the_version_before_is_brought_up_and_a_later_one_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("catalog.sqlite");
        drop(Database::open(&path).expect("made"));
        let old = Connection::open(&path).expect("open");
        let back =
            "ALTER TABLE asset DROP COLUMN sha256; ALTER TABLE asset DROP COLUMN pinned; PRAGMA user_version = 1;
            INSERT INTO asset VALUES (7, 'a', NULL, 5, NULL, NULL, 0, NULL, NULL, NULL, 1, 0, -1, -1, 1, 9);";
        old.execute_batch(back).expect("as version 1 had it");
        drop(old);
        let (database, _) = Database::open(&path).expect("brought up");
        let mut rows = Vec::new();
        database
            .load(|row| rows.extend(row.ok().map(|row| (row.serial, row.whole, row.pinned, row.used))))
            .expect("read");
        assert_eq!(rows, [(7, None, false, UnixTime(9))]);
        database.connection.execute_batch("PRAGMA user_version = 3").expect("set");
        drop(database);
        assert!(Database::open(&path).is_err());
    }
}
