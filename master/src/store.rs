//! Where the master keeps what must outlive it: small records under text keys, changed together or not at all.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{RwLock, RwLockReadGuard};
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
///
/// After a write that failed, as on a full disk, the engine takes no more. It is opened again for the next one, so that
/// the store works as soon as there is room.
#[derive(Debug)]
pub struct RocksStore {
    dir: PathBuf,
    /// `None` while it could not be opened again.
    db: RwLock<Option<DB>>,
    failed: AtomicBool,
}

impl RocksStore {
    /// Opens or makes the store. A directory has one user at a time.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let db = open(dir).map_err(|error| StoreError::Open {
            dir: dir.display().to_string(),
            reason: error.to_string(),
        })?;
        Ok(Self {
            dir: dir.to_owned(),
            db: RwLock::new(Some(db)),
            failed: AtomicBool::new(false),
        })
    }

    /// Does something with the engine, which takes writes unless one fails again.
    fn with<T>(
        &self,
        work: impl FnOnce(&DB) -> Result<T, rocksdb::Error>,
    ) -> Result<T, StoreError> {
        if self.failed.load(Ordering::Acquire) {
            let mut db = self.db.write();
            if self.failed.load(Ordering::Acquire) {
                *db = None; // gives the directory up
                *db = Some(open(&self.dir).map_err(engine)?);
                self.failed.store(false, Ordering::Release);
                tracing::info!("the master's store was opened again after a failed write");
            }
        }
        let db = RwLockReadGuard::try_map(self.db.read(), Option::as_ref);
        let db = db.map_err(|_| StoreError::Engine("it is closed".to_owned()))?;
        work(&db).map_err(engine)
    }
}

fn open(dir: &Path) -> Result<DB, rocksdb::Error> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_keep_log_file_num(ENGINE_LOGS);
    options.set_max_log_file_size(ENGINE_LOG_SIZE);
    options.set_write_buffer_size(WRITE_BUFFER);
    options.set_max_total_wal_size(MAX_WAL);
    DB::open(&options, dir)
}

fn engine(error: rocksdb::Error) -> StoreError {
    StoreError::Engine(error.to_string())
}

impl MetaStore for RocksStore {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.with(|db| db.get(key))
    }

    fn scan(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let records = self.with(|db| {
            let start = IteratorMode::From(prefix.as_bytes(), Direction::Forward);
            let mut records = Vec::new();
            for record in db.iterator(start) {
                let (key, value) = record?;
                if !key.starts_with(prefix.as_bytes()) {
                    break;
                }
                records.push((key, value));
            }
            Ok(records)
        })?;
        let text = |(key, value): (Box<[u8]>, Box<[u8]>)| {
            let key = String::from_utf8(key.into_vec()).map_err(|error| StoreError::Damaged {
                key: error.to_string(),
                reason: "its key is not text".to_owned(),
            })?;
            Ok((key, value.into_vec()))
        };
        records.into_iter().map(text).collect()
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
        let written = self.with(|db| db.write_opt(batch, &durable));
        if written.is_err() {
            self.failed.store(true, Ordering::Release);
        }
        written
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

    /// A file system of its own with so many bytes, while it lives.
    struct SmallDisk(tempfile::TempDir);

    impl SmallDisk {
        /// `None` for those who may not mount.
        fn new(bytes: u64) -> Option<Self> {
            let dir = tempfile::tempdir().unwrap();
            let size = std::ffi::CString::new(format!("size={bytes}")).unwrap();
            let flags = rustix::mount::MountFlags::empty();
            let mounted = rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, &*size);
            mounted.ok().map(|()| Self(dir))
        }
    }

    impl Drop for SmallDisk {
        fn drop(&mut self) {
            let detach = rustix::mount::UnmountFlags::DETACH;
            rustix::mount::unmount(self.0.path(), detach).unwrap();
        }
    }

    #[test]
    fn a_full_disk_is_an_error_and_nothing_is_lost_once_there_is_room() {
        let Some(disk) = SmallDisk::new(64 << 20) else {
            eprintln!("skipped: this user may not mount");
            return;
        };
        let dir = disk.0.path().join("store");
        let put = |key: &str| Change::Put(key.to_owned(), vec![7; 10_000]);
        let zeros = vec![0; 1 << 16];
        let mut stored = Vec::new();
        {
            let store = RocksStore::open(&dir).unwrap();
            for round in 0..3 {
                let filler = disk.0.path().join("filler");
                let mut file = std::fs::File::create(&filler).unwrap();
                // There is some room in what the engine has allocated.
                let mut refused = 0;
                for number in 0..2000 {
                    while std::io::Write::write(&mut file, &zeros).is_ok_and(|n| n > 0) {}
                    let key = format!("{round}/{number}");
                    let Err(error) = store.write(&[put(&key)]) else {
                        stored.push(key);
                        continue;
                    };
                    assert!(error.to_string().contains("free space"), "{error}");
                    refused += 1;
                    if refused == 3 {
                        break;
                    }
                }
                assert_eq!(refused, 3, "the disk was never full");
                drop(file);
                std::fs::remove_file(&filler).unwrap();
                let key = format!("{round}/after");
                store.write(&[put(&key)]).unwrap();
                stored.push(key);
                for key in &stored {
                    assert_eq!(store.get(key).unwrap().map(|v| v.len()), Some(10_000));
                }
            }
        }
        let store = RocksStore::open(&dir).unwrap();
        for key in &stored {
            assert!(store.get(key).unwrap().is_some(), "{key} is lost");
        }
    }
}
