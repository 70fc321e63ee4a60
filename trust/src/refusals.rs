//! Who was refused, in the log.

use weir_core::LogLimit;

/// Tells those who look after the cluster of callers who were refused.
#[derive(Debug, Default)]
pub struct Refusals(LogLimit);

impl Refusals {
    /// Writes why somebody was refused into the log, unless there were many such lines in the last 10 s.
    pub fn tell(&self, why: &str) {
        match self.0.line() {
            Some(0) => tracing::warn!("refused: {why}"),
            Some(left_out) => tracing::warn!(left_out, "refused: {why}"),
            None => {}
        }
    }
}
