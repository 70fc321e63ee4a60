//! Calls over the CSI socket: each with a deadline, and counted.
//!
//! A call that kubelet gives up goes on: its work is a task of its own, so that nothing is left half done. The next call for the
//! same volume waits for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tonic::{Response, Status};

use crate::error::CsiError;
use crate::metrics::CsiMetrics;

/// Longest call; kubelet itself waits two minutes.
const CALL_DEADLINE: Duration = Duration::from_secs(110);
/// Calls under way; a node has some hundred pods at most.
const MAX_CALLS: usize = 512;

/// The calls of all services of the socket.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    metrics: Arc<CsiMetrics>,
    under_way: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl Calls {
    pub(crate) fn new(metrics: Arc<CsiMetrics>, tasks: TaskTracker) -> Self {
        Self {
            metrics,
            under_way: Arc::new(Semaphore::new(MAX_CALLS)),
            tasks,
        }
    }

    /// Does the work of a call, and counts how it ended.
    pub(crate) async fn make<T: Send + 'static>(
        &self,
        name: &'static str,
        volume: &str,
        work: impl Future<Output = Result<T, CsiError>> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let outcome = self.run(name, work).await;
        let code = outcome
            .as_ref()
            .map_or_else(CsiError::code, |_| tonic::Code::Ok);
        self.metrics.called(name, code);
        outcome.map(Response::new).map_err(|error| {
            let volume: String = volume.escape_default().take(256).collect();
            tracing::warn!(volume, "{name} failed: {error}");
            Status::from(error)
        })
    }

    async fn run<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl Future<Output = Result<T, CsiError>> + Send + 'static,
    ) -> Result<T, CsiError> {
        let permit = self.under_way.clone().try_acquire_owned();
        let permit = permit.map_err(|_| CsiError::Busy(format!("{MAX_CALLS} volumes")))?;
        let task = self.tasks.spawn(async move {
            let _permit = permit;
            work.await
        });
        let late = || CsiError::Deadline {
            what: name.to_owned(),
            seconds: CALL_DEADLINE.as_secs(),
        };
        let done = tokio::time::timeout(CALL_DEADLINE, task).await;
        done.map_err(|_| late())?.unwrap_or_else(|_| Err(late()))
    }
}
