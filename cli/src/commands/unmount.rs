//! `weir unmount`.

use std::time::Duration;

use crate::args::UnmountArgs;
use crate::exit::Failure;

/// Longest wait for a mount to end.
const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn run(args: &UnmountArgs) -> Result<(), Failure> {
    weir_mount::supervisor::unmount(&args.dir, args.lazy, DEADLINE)
        .map_err(|error| super::mount::explain(&error))
}
