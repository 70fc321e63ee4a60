//! Versions of the block stream; see `proto/weir/v1/worker.proto`.

/// The newest version of the stream that is spoken here.
pub const STREAM_VERSION: u32 = 4;
/// The version from which on workers heed that they are asked for what they hold, and not to fetch.
pub(crate) const HELD_ONLY_VERSION: u32 = 3;
/// That from which on they heed that they are asked for a copy.
pub(crate) const COPY_VERSION: u32 = 4;
