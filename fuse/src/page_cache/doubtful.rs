//! Files of which the kernel may hold wrong bytes are taken from it, so that they are read again.
//!
//! Dropping pages waits for reads of them, as storing does, so the process of its own does it, too.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use weir_core::{BLOCK_SIZE, EntryKind, Manifest};
use weir_worker::Doubtful;

use super::PageCacheWriter;

/// How often and for how long a process is looked for.
const PROCESS_POLL: Duration = Duration::from_millis(200);
const ATTEMPTS: u32 = 300;

impl PageCacheWriter {
    /// Starts a thread that takes from the kernel what it has of the objects that come. It ends with their source.
    pub fn drop_doubtful(
        self: &Arc<Self>,
        manifest: Arc<Manifest>,
        mut doubtful: Receiver<Arc<Doubtful>>,
    ) -> io::Result<()> {
        let writer = self.clone();
        let work = move || {
            loop {
                match doubtful.blocking_recv().as_deref() {
                    Ok(Doubtful::Object { origin, object }) => {
                        for file in manifest.files_of(*origin, object) {
                            writer.drop_pages(&manifest, file);
                        }
                    }
                    Ok(Doubtful::All) | Err(RecvError::Lagged(_)) => writer.drop_all(&manifest),
                    Err(RecvError::Closed) => return,
                }
            }
        };
        let thread = std::thread::Builder::new().name("drop-pages".to_owned());
        thread.spawn(work).map(drop)
    }

    /// Takes all files from the kernel that have several blocks.
    fn drop_all(&self, manifest: &Manifest) {
        for file in 0..manifest.len() {
            let entry = manifest.entry(file);
            if entry.kind == EntryKind::File && entry.size > BLOCK_SIZE {
                self.drop_pages(manifest, file);
            }
        }
    }

    fn drop_pages(&self, manifest: &Manifest, file: u32) {
        for _ in 0..ATTEMPTS {
            let child = self.child();
            if child.is_some_and(|child| child.drop_pages(manifest.inode(file)).is_ok()) {
                return;
            }
            std::thread::sleep(PROCESS_POLL);
        }
        tracing::error!(
            file = manifest.path(file),
            "the kernel may hold wrong bytes of a file and could not be told; unmount and mount again"
        );
    }
}
