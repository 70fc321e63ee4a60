//! Who was refused, in the log.

use std::time::Duration;

use weir_core::LogLimit;

/// Lines that are written in one window, and how long that is.
const BURST: u64 = 10;
const WINDOW: Duration = Duration::from_secs(10);

/// Tells those who look after the cluster of callers who were refused.
#[derive(Debug)]
pub struct Refusals(LogLimit);

impl Default for Refusals {
    fn default() -> Self {
        Self(LogLimit::new(BURST, WINDOW))
    }
}

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
