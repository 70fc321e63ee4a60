//! Numbers of snapshots, which are never used again.

use crate::error::MasterError;
use crate::master::Master;
use crate::store::{Change, MetaStore, StoreError};
use weir_core::DatasetName;

/// Holds the highest snapshot number that a dataset's name has had.
pub(crate) const VERSION_KEY: &str = "version/";
/// Holds a number that no dataset without such a record has had a higher one of.
const FLOOR_KEY: &str = "version-floor";
/// Names of deleted datasets whose last snapshot number is remembered one by one.
const MAX_DELETED: usize = 10_000;

impl Master {
    /// The highest snapshot number that a dataset of this name has had.
    pub(crate) async fn last_version(&self, name: &DatasetName) -> Result<u64, MasterError> {
        let (store, key) = (self.store.clone(), format!("{VERSION_KEY}{name}"));
        let read = move || {
            let of_name = store.get(&key)?.map(|bytes| number(&key, &bytes));
            match of_name {
                Some(version) => version,
                None => floor(&*store),
            }
        };
        Ok(tokio::task::spawn_blocking(read).await??)
    }

    /// What is to be changed so that the numbers of no more than [`MAX_DELETED`] deleted datasets are remembered: of more,
    /// only the highest is, and new names begin above it.
    pub(crate) async fn merged_versions(&self) -> Result<Vec<Change>, MasterError> {
        let store = self.store.clone();
        let records = tokio::task::spawn_blocking(move || store.scan(VERSION_KEY)).await??;
        let deleted: Vec<(String, Vec<u8>)> = {
            let datasets = self.datasets.lock();
            let is_live = |key: &str| datasets.contains_key(&key[VERSION_KEY.len()..]);
            records
                .into_iter()
                .filter(|(key, _)| !is_live(key))
                .collect()
        };
        if deleted.len() < MAX_DELETED {
            return Ok(Vec::new());
        }
        let store = self.store.clone();
        let mut highest = tokio::task::spawn_blocking(move || floor(&*store)).await??;
        for (key, bytes) in &deleted {
            highest = highest.max(number(key, bytes)?);
        }
        let floor = Change::Put(FLOOR_KEY.to_owned(), highest.to_le_bytes().to_vec());
        let deleted = deleted.into_iter().map(|(key, _)| Change::Delete(key));
        Ok(deleted.chain([floor]).collect())
    }
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

    use prometheus_client::registry::Registry;
    use weir_origin::OriginMetrics;

    use super::*;
    use crate::store::RocksStore;
    use crate::{MasterConfig, MasterMetrics};

    fn version(name: &str, number: u64) -> Change {
        let key = format!("{VERSION_KEY}{name}");
        Change::Put(key, number.to_le_bytes().to_vec())
    }

    /// A master with nothing in its store, and its directory.
    fn master() -> (Arc<Master>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(RocksStore::open(&dir.path().join("store")).unwrap());
        let config = MasterConfig {
            dir: dir.path().to_owned(),
            ..MasterConfig::default()
        };
        let mut registry = Registry::default();
        let metrics = MasterMetrics::register(&mut registry);
        let origin = OriginMetrics::register(&mut registry);
        let master = Master::with_store(config, store, metrics, origin).unwrap();
        (master, dir)
    }

    #[tokio::test]
    async fn the_numbers_of_deleted_datasets_are_bounded_and_never_come_back() {
        let (master, _dir) = master();
        let store = &master.store;
        let last = async |name: &str| master.last_version(&name.parse().unwrap()).await.unwrap();
        assert_eq!(last("new").await, 0);
        let deleted = |number: usize| version(&format!("gone-{number}"), number as u64);
        let changes: Vec<Change> = (0..MAX_DELETED - 1).map(deleted).collect();
        store.write(&changes).unwrap();
        assert_eq!(master.merged_versions().await.unwrap(), []);
        assert_eq!(last("gone-17").await, 17);

        // One more, and all of them become one number; that of a dataset which lives is kept.
        store
            .write(&[version("gone-again", 3), version("live", 5)])
            .unwrap();
        let live = weir_proto::v1::Dataset::default();
        master.datasets.lock().insert("live".parse().unwrap(), live);
        let merged = master.merged_versions().await.unwrap();
        master.write(merged).await.unwrap();
        let left = store.scan(VERSION_KEY).unwrap();
        assert_eq!(left.len(), 1);
        let highest = MAX_DELETED as u64 - 2;
        assert_eq!(last("live").await, 5);
        assert_eq!(last("gone-17").await, highest);
        assert_eq!(last("new").await, highest);
    }

    #[tokio::test]
    async fn names_that_callers_make_up_leave_nothing_behind() {
        let (master, dir) = master();
        for number in 0..100 {
            let missing = weir_proto::v1::OriginSpec {
                url: format!("file://{}/none", dir.path().display()),
                ..Default::default()
            };
            let create = weir_proto::v1::CreateDatasetRequest {
                name: format!("name-{number}"),
                mounts: vec![weir_proto::v1::MountSpec {
                    origin: Some(missing),
                    path: String::new(),
                }],
            };
            assert!(master.create_dataset(create).await.is_err());
            assert!(
                master
                    .refresh_dataset(&format!("x-{number}"))
                    .await
                    .is_err()
            );
        }
        assert!(master.listings.lock().is_empty());
        // Also not when a caller gives up while another one lists.
        let name: DatasetName = "busy".parse().unwrap();
        let held = master.listing(&name).await;
        {
            let mut waiting = std::pin::pin!(master.listing(&name));
            assert!(futures::poll!(waiting.as_mut()).is_pending());
        }
        drop(held);
        assert!(master.listings.lock().is_empty());
    }
}
