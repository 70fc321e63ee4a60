//! A store that tests put files into, change and delete, beside Weir.

use std::net::SocketAddr;

/// A running store with an empty place for files.
pub(crate) trait UnderTest: Sized + 'static {
    /// Whether it tells when a file was changed in whole seconds, and nothing else of its version.
    const TELLS_SECONDS: bool = false;

    /// Starts it. It ends when this is dropped.
    fn start() -> Self;

    /// Where it listens.
    fn address(&self) -> SocketAddr;

    /// Puts a file, or another version of it.
    fn put(&self, key: &str, content: &[u8]);

    /// Deletes a file.
    fn delete(&self, key: &str);

    /// What Weir mounts, if the store is reached at this address.
    fn url(&self, at: SocketAddr) -> String;

    /// And with which flags.
    fn flags(&self, at: SocketAddr) -> Vec<String>;

    /// Whether it can hold a file of this name.
    fn takes(_key: &str) -> bool {
        true
    }

    /// What a user gets wrong, and what must be said then: URLs with flags.
    fn mistakes(&self, at: SocketAddr) -> Vec<(String, Vec<String>, &'static str)>;
}
