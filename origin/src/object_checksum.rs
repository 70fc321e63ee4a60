//! Asking an origin for the checksum of an object, with as much patience as something has that no reader waits for.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::{sleep, timeout};
use weir_core::ObjectRef;

use crate::checksum::ObjectChecksum;
use crate::error::OriginError;
use crate::metrics::{Operation, OriginMetrics};
use crate::origin::Origin;
use crate::policy::{Backoff, FetchPolicy};

/// Longest wait for one answer, and how often an origin is asked that fails.
const DEADLINE: Duration = Duration::from_secs(10);
const ATTEMPTS: u32 = 5;

/// Asks an origin for the checksum of an object of this very version, a few times if it fails. `None` if it has none that
/// can be combined. Nobody's read may wait for this.
pub fn object_checksum<'a>(
    origin: &'a Arc<dyn Origin>,
    object: &'a ObjectRef,
    metrics: &'a OriginMetrics,
) -> BoxFuture<'a, Result<Option<ObjectChecksum>, OriginError>> {
    async move {
        let policy = FetchPolicy::default();
        let mut backoff = Backoff::new(&policy);
        let mut attempt = 1;
        loop {
            let request = metrics.request(origin.kind(), Operation::Head);
            let asked = timeout(DEADLINE, origin.checksum(object)).await;
            let answer = asked.unwrap_or_else(|_| {
                Err(OriginError::Timeout {
                    target: format!("{}/{}", origin.describe(), object.key.escape_debug()).into(),
                    after: DEADLINE,
                })
            });
            request.finish(answer.as_ref().err());
            match answer {
                Err(error) if error.is_retryable() && attempt < ATTEMPTS => {
                    metrics.retried(&error);
                    sleep(backoff.wait_after(&error, &policy)).await;
                    attempt += 1;
                }
                answer => return answer,
            }
        }
    }
    .boxed()
}
