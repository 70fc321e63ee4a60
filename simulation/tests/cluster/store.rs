//! What the master keeps over its crashes.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use weir_master::store::{Change, MetaStore, StoreError};

/// Records in memory: a write is there when it returns, and outlives the master.
#[derive(Debug, Default)]
pub(crate) struct Store(Mutex<BTreeMap<String, Vec<u8>>>);

impl MetaStore for Store {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.lock().get(key).cloned())
    }

    fn scan(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let records = self.0.lock();
        let matching = records.iter().filter(|(key, _)| key.starts_with(prefix));
        let matching = matching.map(|(key, value)| (key.clone(), value.clone()));
        Ok(matching.collect())
    }

    fn write(&self, changes: &[Change]) -> Result<(), StoreError> {
        let mut records = self.0.lock();
        for change in changes.iter().cloned() {
            match change {
                Change::Put(key, value) => records.insert(key, value),
                Change::Delete(key) => records.remove(&key),
            };
        }
        Ok(())
    }
}
