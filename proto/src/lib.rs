//! Generated messages and services of `weir.v1`. The `.proto` files in `weir/v1/` are the documentation.

#![forbid(unsafe_code)]

/// Version 1 of the protocol.
#[allow(missing_docs, unreachable_pub, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("weir.v1");
}
