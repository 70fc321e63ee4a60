//! Requests that a dead server has left, where the kernel does not send them again: this server answers them from what all servers of the
//! mount [have entered](crate::in_flight).
//!
//! A read gives the same bytes whoever answers it. What is no read takes a server microseconds, so hardly any is ever left;
//! it fails with EIO, and so does what a server had read and had no time to enter. Nothing waits for ever.
#![forbid(unsafe_code)]

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use fuser::Errno;
use tokio::runtime::Handle;
use weir_client::Reader;
use weir_worker::FillWork;

use crate::duty::Duty;
use crate::errno::errno;
use crate::in_flight::{InFlight, Left, Read};

/// The header of an answer: `fuse_out_header` of `linux/fuse.h`.
const HEADER: usize = 16;

/// Answers what was left. Made before the file system is given away.
#[derive(Clone)]
pub struct Again {
    pub(crate) reader: Arc<Reader>,
    pub(crate) runtime: Handle,
    pub(crate) duty: Arc<Duty>,
    pub(crate) in_flight: Arc<InFlight>,
}

impl std::fmt::Debug for Again {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Again").finish_non_exhaustive()
    }
}

impl Again {
    /// Answers all that is left, in the background. Call before this server reads a request, and when no other one does.
    ///
    /// # Errors
    /// When the connection's descriptor cannot be kept.
    pub fn answer_all(&self, fuse: impl AsFd) -> io::Result<()> {
        let fuse = Arc::new(fuse.as_fd().try_clone_to_owned()?);
        let (reads, others): (Vec<Left>, Vec<Left>) = self
            .in_flight
            .left()
            .into_iter()
            .partition(|left| left.read.is_some());
        let kept: std::collections::HashSet<u64> = reads.iter().map(|left| left.unique).collect();
        for unique in self
            .in_flight
            .around()
            .filter(|unique| !kept.contains(unique))
        {
            fail(&fuse, unique, Errno::EIO);
        }
        for left in others {
            fail(&fuse, left.unique, Errno::EIO);
            self.in_flight.settled(left);
        }
        if !reads.is_empty() {
            tracing::info!(
                reads = reads.len(),
                "reads of the server before are answered again"
            );
        }
        for left in reads {
            let (again, fuse) = (self.clone(), fuse.clone());
            self.runtime
                .spawn(async move { again.answer(left, &fuse).await });
        }
        Ok(())
    }

    /// Answers as soon as the bytes are there, and then finishes the fills that the read has started.
    async fn answer(&self, left: Left, fuse: &OwnedFd) {
        let Some(read) = left.read else {
            return;
        };
        let mut unfinished = Vec::new();
        let outcome = self.read(read, &mut unfinished).await;
        // What fails when this server has ended, the next one finds.
        if outcome.is_ok() || !self.duty.is_over() {
            match outcome {
                Ok(pieces) => answer(fuse, left.unique, 0, &pieces),
                Err(error) => fail(fuse, left.unique, error),
            }
            self.in_flight.settled(left);
        }
        for fill in unfinished {
            fill.await;
        }
    }

    async fn read(&self, read: Read, unfinished: &mut Vec<FillWork>) -> Result<Vec<Bytes>, Errno> {
        let (file, end) = read.extent(self.reader.manifest())?;
        let mut bytes = Vec::new();
        if read.offset < end {
            let done = self
                .reader
                .read(file, read.offset, end, &mut bytes, unfinished);
            done.await.map_err(|error| errno(&error))?;
        }
        Ok(bytes)
    }
}

fn fail(fuse: &OwnedFd, unique: u64, error: Errno) {
    answer(fuse, unique, -error.code(), &[]);
}

/// Writes an answer. The kernel refuses one to what it has an answer to, or does not wait for.
fn answer(fuse: &OwnedFd, unique: u64, error: i32, pieces: &[Bytes]) {
    let length = HEADER + pieces.iter().map(Bytes::len).sum::<usize>();
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&(length as u32).to_ne_bytes());
    header[4..8].copy_from_slice(&error.to_ne_bytes());
    header[8..].copy_from_slice(&unique.to_ne_bytes());
    let mut parts = vec![IoSlice::new(&header)];
    parts.extend(pieces.iter().map(|piece| IoSlice::new(piece)));
    let _ = rustix::io::retry_on_intr(|| rustix::io::writev(fuse, &parts));
}
