//! Generated messages and services of `weir.v1`. The `.proto` files in `weir/v1/` are the documentation.

#![forbid(unsafe_code)]

/// Version 1 of the protocol.
#[allow(missing_docs, unreachable_pub, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("weir.v1");
}

/// Tells what is not secret.
impl std::fmt::Debug for v1::OpenStreamReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenStreamReply")
            .field("mode", &self.mode())
            .field("key_id", &self.key_id)
            .field("valid_seconds", &self.valid_seconds)
            .finish_non_exhaustive()
    }
}
