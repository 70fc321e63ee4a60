//! Telling the master about objects that changed under a snapshot.

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use weir_core::SnapshotId;
use weir_proto::v1;
use weir_proto::v1::master_client::MasterClient;

/// Between two reports: reads of one changed directory are told together.
const INTERVAL: Duration = Duration::from_secs(1);
/// Longest wait for the master.
const CALL_DEADLINE: Duration = Duration::from_secs(5);

/// Stale reads that the master has not been told of.
#[derive(Debug, Default)]
pub struct StaleReads {
    pending: Mutex<Pending>,
    happened: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    count: u64,
    /// The last file that was found changed.
    path: String,
}

impl StaleReads {
    pub(crate) fn add(&self, path: &str) {
        let mut pending = self.pending.lock();
        pending.count += 1;
        path.clone_into(&mut pending.path);
        drop(pending);
        self.happened.notify_one();
    }

    /// Reports to the master until `stop`. What cannot be told is told later.
    pub fn report(
        &self,
        snapshot: SnapshotId,
        mut master: MasterClient<Channel>,
        stop: CancellationToken,
    ) -> BoxFuture<'_, ()> {
        async move {
            let reporting = async {
                loop {
                    self.happened.notified().await;
                    tokio::time::sleep(INTERVAL).await;
                    let (count, path) = {
                        let mut pending = self.pending.lock();
                        (std::mem::take(&mut pending.count), pending.path.clone())
                    };
                    let mut request = tonic::Request::new(v1::ReportStaleRequest {
                        dataset: snapshot.dataset.to_string(),
                        version: snapshot.version,
                        path,
                        count,
                    });
                    request.set_timeout(CALL_DEADLINE);
                    if let Err(status) = master.report_stale(request).await {
                        tracing::debug!(%status, count, "stale reads could not be reported yet");
                        self.pending.lock().count += count;
                        self.happened.notify_one();
                    }
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = reporting => {}
            }
        }
        .boxed()
    }
}
