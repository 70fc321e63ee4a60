//! What becomes known of connections that were not admitted: a counter, and a line in the log once in a while.

use std::time::Duration;

use weir_core::LogLimit;
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
pub(super) struct Refusals(LogLimit);

impl Default for Refusals {
    fn default() -> Self {
        Self(LogLimit::new(1, LOG_INTERVAL))
    }
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
        if matters && self.0.line().is_some() {
            tracing::warn!("a connection of the block stream was refused: {why}");
        } else {
            tracing::debug!("a connection of the block stream was refused: {why}");
        }
    }
}
