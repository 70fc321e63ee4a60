//! The master's records, for callers that must not wait for a disk on their thread.

use std::sync::Arc;
use std::time::SystemTime;

use prost::Message;
use weir_core::wall_clock;

use crate::error::MasterError;
use crate::store::{Change, MetaStore, StoreError};

/// The store, shared by the parts of a master.
#[derive(Clone, Debug)]
pub(crate) struct Records(Arc<dyn MetaStore>);

impl Records {
    pub(crate) fn new(store: Arc<dyn MetaStore>) -> Self {
        Self(store)
    }

    /// The store itself, whose calls block.
    pub(crate) fn store(&self) -> &dyn MetaStore {
        &*self.0
    }

    /// Reads, on a thread that may block.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn MetaStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, MasterError> {
        let store = self.0.clone();
        Ok(tokio::task::spawn_blocking(move || read(&*store)).await??)
    }

    /// Makes changes durable, all of them or none.
    pub(crate) async fn write(&self, changes: Vec<Change>) -> Result<(), MasterError> {
        self.read(move |store| store.write(&changes)).await
    }
}

/// Reads a record.
pub(crate) fn decode<T: Message + Default>(key: &str, bytes: &[u8]) -> Result<T, StoreError> {
    T::decode(bytes).map_err(|error| StoreError::Damaged {
        key: key.to_owned(),
        reason: error.to_string(),
    })
}

/// Nanoseconds since 1970.
pub(crate) fn now_ns() -> i64 {
    wall_clock::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
        })
}
