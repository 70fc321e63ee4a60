//! Manifests that the worker needs for warming, evicting and its inventory, fetched from the master.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::Mutex;
use tonic::Code;
use tonic::transport::Channel;
use weir_core::{Manifest, SnapshotId};
use weir_proto::v1;
use weir_proto::v1::master_client::MasterClient;

/// Manifests kept in memory; the least recently used goes first.
const KEPT: usize = 4;
/// Longest manifest that is taken from a master, in bytes.
const MAX_MANIFEST: usize = 8 << 30;
/// Longest wait for the next piece of a manifest.
const CHUNK_DEADLINE: Duration = Duration::from_secs(30);

/// Why a manifest could not be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The master did not give it.
    #[error("snapshot {snapshot} cannot be had from the master: {message}")]
    Master {
        /// The snapshot.
        snapshot: String,
        /// What the master or the network said.
        message: String,
        /// The kind of failure.
        code: Code,
    },
    /// What came is not a whole manifest.
    #[error("snapshot {snapshot}: {error}; refresh the dataset with `weir dataset refresh`")]
    Damaged {
        /// The snapshot.
        snapshot: String,
        /// What is wrong with it.
        error: weir_core::manifest::DamagedManifest,
    },
}

/// Fetches a manifest from a master; `version` 0 is the newest.
pub async fn fetch_manifest(
    master: &mut MasterClient<Channel>,
    dataset: &str,
    version: u64,
) -> Result<Manifest, SnapshotError> {
    let name = match version {
        0 => dataset.to_owned(),
        version => format!("{dataset}@{version}"),
    };
    let failed = |code: Code, message: String| SnapshotError::Master {
        snapshot: name.clone(),
        message,
        code,
    };
    let request = v1::GetManifestRequest {
        dataset: dataset.to_owned(),
        version,
    };
    let late = |_| {
        failed(
            Code::DeadlineExceeded,
            format!("no answer within {CHUNK_DEADLINE:?}"),
        )
    };
    let mut chunks = tokio::time::timeout(CHUNK_DEADLINE, master.get_manifest(request))
        .await
        .map_err(late)?
        .map_err(|status| failed(status.code(), status.message().to_owned()))?
        .into_inner();
    let mut bytes = BytesMut::new();
    while let Some(chunk) = tokio::time::timeout(CHUNK_DEADLINE, chunks.message())
        .await
        .map_err(late)?
        .map_err(|status| failed(status.code(), status.message().to_owned()))?
    {
        if bytes.len() + chunk.data.len() > MAX_MANIFEST {
            return Err(failed(
                Code::OutOfRange,
                format!("it is longer than {MAX_MANIFEST} bytes"),
            ));
        }
        bytes.extend_from_slice(&chunk.data);
    }
    Manifest::from_bytes(bytes.freeze()).map_err(|error| SnapshotError::Damaged {
        snapshot: name,
        error,
    })
}

/// The manifests that this worker used last.
#[derive(Debug)]
pub struct Snapshots {
    master: MasterClient<Channel>,
    kept: Mutex<VecDeque<Arc<Manifest>>>,
}

impl Snapshots {
    /// An empty set that asks `master` for what it lacks.
    pub fn new(master: MasterClient<Channel>) -> Self {
        Self {
            master,
            kept: Mutex::default(),
        }
    }

    /// The manifest of a snapshot.
    pub async fn get(&self, snapshot: &SnapshotId) -> Result<Arc<Manifest>, SnapshotError> {
        {
            let mut kept = self.kept.lock();
            if let Some(at) = kept.iter().position(|m| m.summary().snapshot == *snapshot)
                && let Some(manifest) = kept.remove(at)
            {
                kept.push_back(manifest.clone());
                return Ok(manifest);
            }
        }
        let mut master = self.master.clone();
        let fetched =
            fetch_manifest(&mut master, snapshot.dataset.as_str(), snapshot.version).await?;
        let manifest = Arc::new(fetched);
        let mut kept = self.kept.lock();
        kept.push_back(manifest.clone());
        if kept.len() > KEPT {
            kept.pop_front();
        }
        Ok(manifest)
    }
}
