//! Where the master keeps what must outlive it: small records under text keys, changed together or not at all.

use std::path::Path;

use rocksdb::{DB, Direction, IteratorMode, Options, WriteBatch, WriteOptions};

/// Most log files of the engine itself that are kept, and the size of each, in bytes.
const ENGINE_LOGS: usize = 2;
const ENGINE_LOG_SIZE: usize = 1 << 20;
/// Memory for writes that are not yet in a table, in bytes: records are few and small.
const WRITE_BUFFER: usize = 4 << 20;
/// Bytes of write-ahead log before tables are written.
const MAX_WAL: u64 = 16 << 20;

/// What went wrong with the store.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// It could not be opened.
    #[error(
        "the master's store in {dir} cannot be opened: {reason}; if another master uses it, stop that one first"
    )]
    Open {
        /// The directory.
        dir: String,
        /// What the engine said.
        reason: String,
    },
    /// A read or write failed.
    #[error("the master's store failed: {0}; check the disk and its free space")]
    Engine(String),
    /// A record cannot be understood.
    #[error("the master's store has a damaged record {key:?}: {reason}")]
    Damaged {
        /// Its key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// One change of a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Sets a record.
    Put(String, Vec<u8>),
    /// Removes a record; one that is not there is fine.
    Delete(String),
}

/// A store of records. A write is durable when it returns.
pub trait MetaStore: Send + Sync + std::fmt::Debug {
    /// The record under `key`.
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError>;

    /// All records whose key starts with `prefix`, in the order of their keys.
    fn scan(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError>;

    /// Makes all changes or none.
    fn write(&self, changes: &[Change]) -> Result<(), StoreError>;
}

/// The embedded default: RocksDB in a directory of its own.
#[derive(Debug)]
pub struct RocksStore {
    db: DB,
}

impl RocksStore {
    /// Opens or makes the store. A directory has one user at a time.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_keep_log_file_num(ENGINE_LOGS);
        options.set_max_log_file_size(ENGINE_LOG_SIZE);
        options.set_write_buffer_size(WRITE_BUFFER);
        options.set_max_total_wal_size(MAX_WAL);
        let db = DB::open(&options, dir).map_err(|error| StoreError::Open {
            dir: dir.display().to_string(),
            reason: error.to_string(),
        })?;
        Ok(Self { db })
    }
}

fn engine(error: rocksdb::Error) -> StoreError {
    StoreError::Engine(error.to_string())
}

impl MetaStore for RocksStore {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.db.get(key).map_err(engine)
    }

    fn scan(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let start = IteratorMode::From(prefix.as_bytes(), Direction::Forward);
        let mut records = Vec::new();
        for record in self.db.iterator(start) {
            let (key, value) = record.map_err(engine)?;
            if !key.starts_with(prefix.as_bytes()) {
                break;
            }
            let key = String::from_utf8(key.into_vec()).map_err(|error| StoreError::Damaged {
                key: error.to_string(),
                reason: "its key is not text".to_owned(),
            })?;
            records.push((key, value.into_vec()));
        }
        Ok(records)
    }

    fn write(&self, changes: &[Change]) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        for change in changes {
            match change {
                Change::Put(key, value) => batch.put(key, value),
                Change::Delete(key) => batch.delete(key),
            }
        }
        let mut durable = WriteOptions::default();
        durable.set_sync(true);
        self.db.write_opt(batch, &durable).map_err(engine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_a_reopen_and_a_scan_takes_only_its_prefix() {
        let dir = tempfile::tempdir().unwrap();
        let put = |key: &str| Change::Put(key.to_owned(), key.as_bytes().to_vec());
        {
            let store = RocksStore::open(dir.path()).unwrap();
            store
                .write(&[put("a/2"), put("a/1"), put("b/1"), put("a")])
                .unwrap();
            store
                .write(&[Change::Delete("a/2".to_owned()), put("a/3")])
                .unwrap();
        }
        let store = RocksStore::open(dir.path()).unwrap();
        let keys: Vec<String> = store
            .scan("a/")
            .unwrap()
            .into_iter()
            .map(|(key, _)| key)
            .collect();
        assert_eq!(keys, ["a/1", "a/3"]);
        assert_eq!(store.get("b/1").unwrap().as_deref(), Some(&b"b/1"[..]));
        assert_eq!(store.get("a/2").unwrap(), None);
    }

    #[test]
    fn a_store_in_use_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let _first = RocksStore::open(dir.path()).unwrap();
        let error = RocksStore::open(dir.path()).unwrap_err();
        assert!(error.to_string().contains("another master"), "{error}");
    }
}
