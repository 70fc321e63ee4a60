//! Block reads from a worker on this machine, over its Unix socket.
//!
//! A block on SSD comes as a descriptor of its segment file: this process reads the disk and checks the checksums
//! itself, so the bytes never cross a socket. A block in memory comes as bytes.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use tokio::net::UnixStream;
use weir_proto::v1::{BlockReply, BlockRequest};
use weir_worker::segment::{BlockLocation, BufferPool, CHUNK_SIZE, Checksums, read_together};

use crate::connection::{Answer, ConnectionError, Connections};

/// Bytes of read buffers kept for the next reads.
const POOL_BYTES: usize = 16 << 20;

/// Reads from workers on this machine, by the paths of their sockets.
pub(crate) struct LocalWorkers {
    connections: Connections<UnixStream>,
    pool: Arc<BufferPool>,
}

impl LocalWorkers {
    pub(crate) fn new() -> Self {
        Self {
            connections: Connections::default(),
            pool: BufferPool::new(POOL_BYTES),
        }
    }

    /// Sends a request; the bytes come back whether the worker sent them or this process read them.
    pub(crate) async fn request(
        &self,
        socket: &str,
        mut request: BlockRequest,
    ) -> Result<(BlockReply, Bytes), ConnectionError> {
        request.accept_descriptor = true;
        let (mut answer, payload) = self.connections.request(socket, &request).await?;
        if answer.reply.location.is_none() {
            return Ok((answer.reply, payload));
        }
        let range = request.offset..request.offset + request.length;
        let location = location(&mut answer);
        let pool = self.pool.clone();
        let read = tokio::task::spawn_blocking(move || {
            let location = location.filter(|location| range.end <= location.len)?;
            let read = location.read(range, &pool);
            read.inspect_err(|error| tracing::debug!(%error, "a descriptor could not be read"))
                .ok()
        });
        if let Ok(Some(bytes)) = read.await {
            return Ok((answer.reply, bytes));
        }
        tracing::warn!(key = %request.key, block = request.block_index, "a cached block is damaged; it is fetched again");
        request.report_damaged = true;
        let (answer, payload) = self.connections.request(socket, &request).await?;
        Ok((answer.reply, payload))
    }

    /// Sends requests for whole blocks together, each with the place for its bytes. A reply has the length of what is
    /// at its place; with none, it is one to be sent alone.
    pub(crate) async fn request_together(
        &self,
        socket: &str,
        mut requests: Vec<BlockRequest>,
        places: &mut [&mut [u8]],
    ) -> Result<Vec<BlockReply>, ConnectionError> {
        for request in &mut requests {
            request.accept_descriptor = true;
        }
        let answers = self.connections.request_together(socket, &requests, places);
        let mut replies = Vec::with_capacity(requests.len());
        let mut located = Vec::new();
        for (at, mut answer) in answers.await?.into_iter().enumerate() {
            let location = location(&mut answer);
            let whole = location.filter(|location| location.len == requests[at].length);
            located.extend(whole.map(|location| (at, location)));
            replies.push(answer.reply);
        }
        let (ats, locations): (Vec<usize>, Vec<_>) = located.into_iter().unzip();
        if locations.is_empty() {
            return Ok(replies);
        }
        let pool = self.pool.clone();
        let read = tokio::task::spawn_blocking(move || read_together(&locations, &pool));
        for (at, bytes) in ats.into_iter().zip(read.await.unwrap_or_default()) {
            if let Some(bytes) = bytes {
                places[at].copy_from_slice(&bytes);
                replies[at].length = bytes.len() as u32;
            }
        }
        Ok(replies)
    }

    /// Forgets the connections to workers whose sockets `keep` does not name.
    pub(crate) fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.connections.retain(keep);
    }
}

/// The place in a file that an answer tells, if it makes sense.
fn location(answer: &mut Answer) -> Option<BlockLocation> {
    let place = answer.reply.location.take()?;
    let fits = place.chunk_size == CHUNK_SIZE
        && place.checksums.len() as u32 == place.block_length.div_ceil(CHUNK_SIZE);
    let descriptor = answer.descriptor.take()?;
    fits.then(|| BlockLocation {
        file: Arc::new(File::from(descriptor)),
        direct: place.direct,
        offset: place.file_offset,
        len: place.block_length,
        checksums: Checksums::from(place.checksums.as_slice()),
    })
}
