//! Generated messages and services of `weir.v1`. The `.proto` files in `weir/v1/` are the documentation.
//!
//! There is no code by hand: this crate must not know what is done with a message. What a message means to a part of Weir is
//! that part's to say, beside the types that it is turned into.

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

/// Tells nothing of what may be secret.
macro_rules! debug_without_fields {
    ($($message:ty),* $(,)?) => {$(
        impl std::fmt::Debug for $message {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($message), "(…)"))
            }
        }
    )*};
}

debug_without_fields!(
    v1::Credential,
    v1::credential::Kind,
    v1::StaticKeys,
    v1::AssumedRole,
    v1::Keytab,
    v1::HttpHeader,
    v1::GoogleFile,
    v1::AzureKey,
    v1::AzureSas,
    v1::SignRequest,
);
