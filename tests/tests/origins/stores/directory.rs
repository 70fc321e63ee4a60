//! A directory of this machine.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::origins::shared::{Mistake, UnderTest};

/// A directory with files.
pub(crate) struct Directory(TempDir);

impl Directory {
    fn path(&self, key: &str) -> PathBuf {
        self.0.path().join("files").join(key)
    }
}

impl UnderTest for Directory {
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("store-").tempdir().unwrap();
        std::fs::create_dir(dir.path().join("files")).unwrap();
        Self(dir)
    }

    fn address(&self) -> Option<SocketAddr> {
        None
    }

    fn put(&self, key: &str, content: &[u8]) {
        publish(&self.path(key), &self.0.path().join("part"), content);
    }

    fn delete(&self, key: &str) {
        std::fs::remove_file(self.path(key)).unwrap();
    }

    fn url(&self, _at: SocketAddr) -> String {
        format!("file://{}", self.path("").display())
    }

    fn mistakes(&self, at: SocketAddr) -> Vec<Mistake> {
        let url = self.url(at);
        [
            (format!("{url}missing"), "does not exist"),
            (format!("{url}large"), "it is not a directory"),
            ("file://relative/path".to_owned(), "file:///"),
        ]
        .map(|(url, said)| Mistake::new(url, Vec::new(), said))
        .into()
    }
}

/// Puts another file in the place of one, as who publishes one should. `part` is where it is written first.
pub(super) fn publish(path: &Path, part: &Path, content: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(part, content).unwrap();
    std::fs::rename(part, path).unwrap();
}
