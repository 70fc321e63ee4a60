//! Numbers of snapshots, which are never used again.

use weir_core::DatasetName;

use crate::error::MasterError;
use crate::records::Records;
use crate::store::{Change, MetaStore, StoreError};

/// Holds the highest snapshot number that a dataset's name has had.
const VERSION_KEY: &str = "version/";
/// Holds a number that no dataset without such a record has had a higher one of.
const FLOOR_KEY: &str = "version-floor";
/// Names of deleted datasets whose last snapshot number is remembered one by one.
const MAX_DELETED: usize = 10_000;

/// The highest snapshot number that a dataset of this name has had.
pub(crate) async fn last(records: &Records, name: &DatasetName) -> Result<u64, MasterError> {
    let key = key(name);
    records
        .read(move |store| match store.get(&key)? {
            Some(bytes) => number(&key, &bytes),
            None => floor(store),
        })
        .await
}

/// What is to be changed so that `version` is the highest number of this name.
pub(crate) fn put(name: &DatasetName, version: u64) -> Change {
    Change::Put(key(name), version.to_le_bytes().to_vec())
}

/// What is to be changed so that the numbers of no more than [`MAX_DELETED`] deleted datasets are remembered: of more,
/// only the highest is, and new names begin above it.
pub(crate) async fn merged(
    records: &Records,
    is_live: impl Fn(&str) -> bool,
) -> Result<Vec<Change>, MasterError> {
    let known = records.read(|store| store.scan(VERSION_KEY)).await?;
    let deleted: Vec<(String, Vec<u8>)> = known
        .into_iter()
        .filter(|(key, _)| !is_live(&key[VERSION_KEY.len()..]))
        .collect();
    if deleted.len() < MAX_DELETED {
        return Ok(Vec::new());
    }
    let mut highest = records.read(floor).await?;
    for (key, bytes) in &deleted {
        highest = highest.max(number(key, bytes)?);
    }
    let floor = Change::Put(FLOOR_KEY.to_owned(), highest.to_le_bytes().to_vec());
    let deleted = deleted.into_iter().map(|(key, _)| Change::Delete(key));
    Ok(deleted.chain([floor]).collect())
}

fn key(name: &DatasetName) -> String {
    format!("{VERSION_KEY}{name}")
}

fn floor(store: &dyn MetaStore) -> Result<u64, StoreError> {
    let floor = store.get(FLOOR_KEY)?;
    floor.map_or(Ok(0), |bytes| number(FLOOR_KEY, &bytes))
}

fn number(key: &str, bytes: &[u8]) -> Result<u64, StoreError> {
    let number = bytes.try_into().map_err(|_| StoreError::Damaged {
        key: key.to_owned(),
        reason: "it is no number".to_owned(),
    })?;
    Ok(u64::from_le_bytes(number))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::RocksStore;

    fn version(name: &str, number: u64) -> Change {
        put(&name.parse().unwrap(), number)
    }

    #[tokio::test]
    async fn the_numbers_of_deleted_datasets_are_bounded_and_never_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = RocksStore::open(&dir.path().join("store")).unwrap();
        let records = Records::new(Arc::new(store));
        let last = async |name: &str| last(&records, &name.parse().unwrap()).await.unwrap();
        let merged = async || merged(&records, |name| name == "live").await.unwrap();
        assert_eq!(last("new").await, 0);
        let deleted = |number: usize| version(&format!("gone-{number}"), number as u64);
        let changes: Vec<Change> = (0..MAX_DELETED - 1).map(deleted).collect();
        records.write(changes).await.unwrap();
        assert_eq!(merged().await, []);
        assert_eq!(last("gone-17").await, 17);

        // One more, and all of them become one number; that of a dataset which lives is kept.
        let more = vec![version("gone-again", 3), version("live", 5)];
        records.write(more).await.unwrap();
        let changes = merged().await;
        records.write(changes).await.unwrap();
        assert_eq!(records.store().scan(VERSION_KEY).unwrap().len(), 1);
        let highest = MAX_DELETED as u64 - 2;
        assert_eq!(last("live").await, 5);
        assert_eq!(last("gone-17").await, highest);
        assert_eq!(last("new").await, highest);
    }
}
