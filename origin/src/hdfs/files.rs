//! Files that are open, and the bodies that are read from them.
//!
//! A big file is read in many ranges: its reader, which knows where all its blocks are, is kept for a while. That a reader
//! is kept is no promise that the file is still there: whoever reads from one that was not looked at within a moment looks
//! again before the last byte.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use hdfs_native::HdfsError;
use hdfs_native::client::EntryKind;
use hdfs_native::file::FileReader;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use weir_core::{BLOCK_SIZE, ObjectRef};

use super::calls::{Calls, Missing};
use super::failure::Failed;
use super::version;
use crate::error::OriginError;
use crate::origin::Fetched;

/// A version that was looked at so lately is taken to be there still. Within this time no file can be cut, which takes a
/// recovery of its lease, and be written to again.
const FRESH: Duration = Duration::from_secs(1);
/// How long a reader is kept, so that DataNodes that come and go are seen.
const KEPT: Duration = Duration::from_secs(30);
/// Readers that are kept.
const MAX_KEPT: usize = 64;
/// Longest silence in a body. The client has tried another DataNode before.
const SILENCE: Duration = Duration::from_secs(20);

/// The files of one origin.
#[derive(Clone)]
pub(super) struct Files(Arc<State>);

struct State {
    calls: Arc<Calls>,
    /// By path.
    kept: Mutex<HashMap<String, Arc<Open>>>,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Files").finish_non_exhaustive()
    }
}

/// A file that was opened.
struct Open {
    path: String,
    object: ObjectRef,
    reader: FileReader,
    opened: Instant,
    /// When its version was there.
    seen: Mutex<Instant>,
}

impl Files {
    pub(super) fn new(calls: Arc<Calls>) -> Self {
        Self(Arc::new(State {
            calls,
            kept: Mutex::default(),
        }))
    }

    /// Reads a range of exactly this version.
    pub(super) async fn read(
        &self,
        object: &ObjectRef,
        range: Range<u64>,
    ) -> Result<Fetched, OriginError> {
        let open = match self.kept(object) {
            Some(open) => open,
            None => self.open(object).await?,
        };
        if range.end > open.reader.file_length() as u64 {
            return Err(self.changed(object));
        }
        let length = (range.end - range.start) as usize;
        let stream = open.reader.read_range_stream(range.start as usize, length);
        Ok(Fetched {
            range: range.clone(),
            body: self
                .clone()
                .body(open, stream.boxed(), range.end - range.start),
            digest: None,
        })
    }

    fn kept(&self, object: &ObjectRef) -> Option<Arc<Open>> {
        let kept = self.0.kept.lock();
        kept.values()
            .find(|open| open.object == *object && open.opened.elapsed() < KEPT)
            .cloned()
    }

    async fn open(&self, object: &ObjectRef) -> Result<Arc<Open>, OriginError> {
        let path = format!("/{}", object.key);
        let asked = Instant::now();
        let (entry, reader) = match self.0.calls.open(&path).await {
            Ok(opened) => opened,
            Err(Missing::Path) => return Err(self.changed(object)),
            Err(Missing::Error(error)) => return Err(error),
        };
        let reader = reader
            .filter(|reader| entry.kind == EntryKind::File && !reader.is_under_construction())
            .filter(|reader| reader.file_length() as u64 == entry.length)
            .filter(|_| version(&entry) == *object.version && entry.length == object.size)
            .ok_or_else(|| self.changed(object))?;
        let open = Arc::new(Open {
            path,
            object: object.clone(),
            reader,
            opened: asked,
            seen: Mutex::new(asked),
        });
        if object.size > BLOCK_SIZE {
            self.keep(open.clone());
        }
        Ok(open)
    }

    fn keep(&self, open: Arc<Open>) {
        let mut kept = self.0.kept.lock();
        if kept.len() >= MAX_KEPT {
            kept.retain(|_, open| open.opened.elapsed() < KEPT);
        }
        if kept.len() >= MAX_KEPT
            && let Some(oldest) = kept.values().min_by_key(|open| open.opened)
        {
            let path = oldest.path.clone();
            kept.remove(&path);
        }
        kept.insert(open.path.clone(), open);
    }

    /// The next read opens the file again, and learns which DataNodes have it now.
    fn forget(&self, open: &Arc<Open>) {
        let mut kept = self.0.kept.lock();
        if kept
            .get(&open.path)
            .is_some_and(|kept| Arc::ptr_eq(kept, open))
        {
            kept.remove(&open.path);
        }
    }

    fn changed(&self, object: &ObjectRef) -> OriginError {
        OriginError::Changed {
            origin: self.0.calls.describe.clone(),
            key: object.key.clone(),
        }
    }

    /// The bytes of a stream that must be so long. The last are held back until it is known whose they are.
    fn body(
        self,
        open: Arc<Open>,
        stream: BoxStream<'static, Result<Bytes, HdfsError>>,
        missing: u64,
    ) -> BoxStream<'static, Result<Bytes, OriginError>> {
        let state = (self, open, stream, missing);
        stream::try_unfold(state, |(files, open, mut stream, missing)| async move {
            if missing == 0 {
                return Ok(None);
            }
            match files.next(&open, &mut stream, missing).await {
                Ok(bytes) => {
                    let missing = missing - bytes.len() as u64;
                    Ok(Some((bytes, (files, open, stream, missing))))
                }
                Err(error) => {
                    files.forget(&open);
                    Err(error)
                }
            }
        })
        .boxed()
    }

    async fn next(
        &self,
        open: &Open,
        stream: &mut BoxStream<'static, Result<Bytes, HdfsError>>,
        missing: u64,
    ) -> Result<Bytes, OriginError> {
        let calls = &self.0.calls;
        let bytes = match timeout(SILENCE, stream.next()).await {
            Ok(Some(Ok(bytes))) => bytes,
            Ok(Some(Err(error))) => return Err(calls.explain(Failed::Client(error), &open.path)),
            Ok(None) => {
                return Err(OriginError::Unavailable {
                    target: calls.target(&open.path),
                    detail: format!("the body ended {missing} bytes early"),
                });
            }
            Err(_) => return Err(calls.explain(Failed::Silent(SILENCE), &open.path)),
        };
        if bytes.len() as u64 > missing {
            return Err(OriginError::Malformed {
                target: calls.target(&open.path),
                detail: "it is longer than was asked for".to_owned(),
            });
        }
        if bytes.len() as u64 == missing {
            self.look_again(open).await?;
        }
        Ok(bytes)
    }

    /// Makes sure that the version was there until now, or nearly.
    async fn look_again(&self, open: &Open) -> Result<(), OriginError> {
        let now = Instant::now();
        if now - *open.seen.lock() < FRESH {
            return Ok(());
        }
        match self.0.calls.look(&open.path).await {
            Ok(entry)
                if entry.kind == EntryKind::File && version(&entry) == *open.object.version =>
            {
                *open.seen.lock() = now;
                Ok(())
            }
            Ok(_) | Err(Missing::Path) => Err(self.changed(&open.object)),
            Err(Missing::Error(error)) => Err(error),
        }
    }
}
