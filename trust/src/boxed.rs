//! Futures without their type, at the borders of crates.
//!
//! The code of an `async fn` is made in each crate that awaits it, with all that it awaits itself: here HTTP/2 and TLS.
//! Behind this type it is made once. Only for what is rare, such as a new connection: it costs an allocation.

use std::pin::Pin;

/// A future of some type.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
