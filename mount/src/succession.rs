//! How a mount gets a supervisor again when it has lost its own.
//!
//! Its server and its holder both stand by, each at the end of a line that is closed when those at the other end are
//! gone. The server's line ends at the supervisor. The holder's ends at the supervisor and the server, so one of the two
//! acts, never both.

use std::io;
use std::time::{Duration, Instant};

/// A supervisor that lived shorter than this is followed by the next one only after as long.
const SHORT_LIFE: Duration = Duration::from_millis(500);

/// A process that brings the supervisor back.
pub(crate) trait Successor {
    /// Listens to its line until that ends. `false` when it was told to leave.
    fn follow(&mut self) -> io::Result<bool>;

    /// Whether the mount is still there, and nobody else brings the supervisor back.
    fn is_needed(&self) -> bool;

    /// Starts a supervisor, with a new line to it.
    fn start_supervisor(&mut self) -> io::Result<()>;

    /// Waits before what has failed is tried again.
    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// Brings the mount's supervisor back as often as it is lost; returns when this process is not needed any more.
pub(crate) fn stand_by(successor: &mut impl Successor) -> io::Result<()> {
    loop {
        let since = Instant::now();
        if !successor.follow()? || !successor.is_needed() {
            return Ok(());
        }
        if since.elapsed() < SHORT_LIFE {
            successor.pause(SHORT_LIFE);
        }
        while let Err(error) = successor.start_supervisor() {
            tracing::error!("no supervisor could be started: {error}");
            successor.pause(SHORT_LIFE);
        }
    }
}
