//! What becomes known of connections that were not admitted: a counter, and a line in the log once in a while.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use weir_wire::OpeningError;

use crate::metrics::{ReasonLabel, WorkerMetrics};

/// Least time between two lines of the log: strangers must not fill the disk.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Why a connection was not admitted.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotAdmitted {
    #[error("{0}")]
    Opening(#[from] OpeningError),
    #[error("too many connections are open")]
    Crowded,
}

impl NotAdmitted {
    /// As the metric's label has it.
    fn reason(&self) -> &'static str {
        match self {
            Self::Crowded => "crowded",
            Self::Opening(OpeningError::UnknownKey) => "unknown_key",
            Self::Opening(OpeningError::Late) => "late",
            Self::Opening(OpeningError::Refused(_) | OpeningError::Proof) => "refused",
            Self::Opening(OpeningError::Frame(_) | OpeningError::Closed | OpeningError::Random) => {
                "broken"
            }
        }
    }
}

/// The refusals of a listener.
#[derive(Default)]
pub(super) struct Refusals {
    logged: Mutex<Option<Instant>>,
}

impl Refusals {
    pub(super) fn note(&self, why: &NotAdmitted, metrics: &WorkerMetrics) {
        let reason = why.reason();
        metrics
            .stream_refusals
            .get_or_create(&ReasonLabel { reason })
            .inc();
        // Keys are forgotten, and clients ask for others; probes of all kinds connect and close.
        let matters = matches!(reason, "refused" | "crowded");
        if matters && self.is_due() {
            tracing::warn!("a connection of the block stream was refused: {why}");
        } else {
            tracing::debug!("a connection of the block stream was refused: {why}");
        }
    }

    fn is_due(&self) -> bool {
        let (now, mut logged) = (Instant::now(), self.logged.lock());
        let due = logged.is_none_or(|last| now.duration_since(last) >= LOG_INTERVAL);
        if due {
            *logged = Some(now);
        }
        due
    }
}
