//! A store that tests put files into, change and delete, beside Weir.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// A running store with an empty place for files.
pub(crate) trait UnderTest: Sized + Sync + 'static {
    /// A change that comes sooner than this after a read may go unseen for so long.
    const BLIND_FOR: Duration = Duration::ZERO;

    /// How many files are more than a page of its listings, where that can be.
    const MANY: usize = 2300;

    /// How many files can be put at a time.
    const PUT_AT_A_TIME: usize = 1;

    /// Starts it. It ends when this is dropped.
    fn start() -> Self;

    /// Where it listens, if it speaks HTTP: a proxy can stand before it then.
    fn address(&self) -> Option<SocketAddr>;

    /// Puts a file, or another version of it.
    fn put(&self, key: &str, content: &[u8]);

    /// Puts many files.
    fn put_all(&self, files: &BTreeMap<String, Vec<u8>>) {
        let files: Vec<_> = files.iter().collect();
        std::thread::scope(|threads| {
            for part in files.chunks(files.len().div_ceil(Self::PUT_AT_A_TIME).max(1)) {
                threads.spawn(move || {
                    for (key, content) in part {
                        self.put(key, content);
                    }
                });
            }
        });
    }

    /// Deletes a file.
    fn delete(&self, key: &str);

    /// What Weir mounts, if the store is reached at this address.
    fn url(&self, at: SocketAddr) -> String;

    /// And with which flags.
    fn flags(&self, _at: SocketAddr) -> Vec<String> {
        Vec::new()
    }

    /// And with which variables.
    fn environment(&self, _at: SocketAddr) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Whether it can hold a file of this name.
    fn takes(_key: &str) -> bool {
        true
    }

    /// What a user gets wrong, and what must be said then.
    fn mistakes(&self, at: SocketAddr) -> Vec<Mistake>;
}

/// Something that a user gets wrong.
pub(crate) struct Mistake {
    pub(crate) url: String,
    pub(crate) flags: Vec<String>,
    /// A variable that is not as it should be.
    pub(crate) variable: Option<(&'static str, &'static str)>,
    /// What must be said then.
    pub(crate) said: &'static str,
}

impl Mistake {
    pub(crate) fn new(url: impl Into<String>, flags: Vec<String>, said: &'static str) -> Self {
        Self {
            url: url.into(),
            flags,
            variable: None,
            said,
        }
    }

    /// With another value of a variable.
    pub(crate) fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.variable = Some((name, value));
        self
    }
}
