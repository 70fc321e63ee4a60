//! One line in the log for each file whose reads fail, however many pages of it the kernel asks for.

use std::fmt::Display;
use std::time::Duration;

use weir_core::LogLimitByKey;

/// A file is not named again for so long.
const INTERVAL: Duration = Duration::from_secs(10);
/// Files that are named within that time, at most; the errors of others are counted.
const MAX_NAMED: usize = 100;

/// The files that were named last.
#[derive(Debug)]
pub(crate) struct Logged(LogLimitByKey<u32>);

impl Default for Logged {
    fn default() -> Self {
        Self(LogLimitByKey::new(MAX_NAMED, INTERVAL))
    }
}

impl Logged {
    /// Tells of a read that has failed.
    pub(crate) fn error(&self, file: u32, error: &impl Display) {
        match self.0.line(file) {
            None => {}
            Some(0) => tracing::error!("read failed: {error}"),
            Some(others) => {
                tracing::error!(
                    "read failed: {error}; {others} errors of other files were not logged"
                );
            }
        }
    }
}
