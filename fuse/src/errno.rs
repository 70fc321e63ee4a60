//! The one place where an error of the read path becomes an error number.

use fuser::Errno;
use weir_client::ReadError;

/// The number that a program sees: `ESTALE` when the object changed at the origin, `EIO` when nobody could give
/// the bytes.
pub fn errno(error: &ReadError) -> Errno {
    match error {
        ReadError::Stale { .. } => Errno::ESTALE,
        ReadError::Unavailable { .. } => Errno::EIO,
    }
}
