//! Block reads from a worker on this machine, over its Unix socket.
//!
//! A block on SSD comes as a descriptor of its segment file: this process reads the disk and checks the checksums
//! itself, so the bytes never cross a socket, and the next parts of the block are read without asking again. A block
//! in memory comes as bytes.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use parking_lot::Mutex;
use weir_core::BlockKey;
use weir_proto::v1::{BlockReply, BlockRequest};
use weir_segment::{Background, BlockLocation, BufferPool, CHUNK_SIZE, Checksums, read_together};
use weir_wire::{Activity, Answer, ConnectionError, Connections, LOCATION_FORMAT, NearWorkers};

/// Bytes of read buffers kept for the next reads.
const POOL_BYTES: usize = 16 << 20;
/// How long a block's place is remembered. The worker may give the file up meanwhile, and this keeps its space taken.
const KNOWN_FOR: Duration = Duration::from_secs(1);
/// Places that are remembered at once, each with a descriptor.
const MAX_KNOWN: usize = 1024;

/// Reads from workers on this machine, by the paths of their sockets.
pub(crate) struct LocalWorkers {
    connections: Connections<NearWorkers>,
    pool: Arc<BufferPool>,
    devices: Devices,
    known: Arc<Mutex<Known>>,
    untold: Untold,
}

/// The devices that the segment files lie on.
#[derive(Default)]
struct Devices {
    by_number: Mutex<HashMap<u64, Arc<Background>>>,
}

/// Reads through known places that no worker was told of.
#[derive(Default)]
struct Untold {
    reads: AtomicU64,
    bytes: AtomicU64,
}

/// Places of blocks of which parts were read a moment ago: the next parts need no worker.
#[derive(Default)]
struct Known {
    places: HashMap<BlockKey, (BlockLocation, Instant)>,
    has_sweeper: bool,
}

impl LocalWorkers {
    pub(crate) fn new() -> Self {
        Self {
            connections: Connections::new(NearWorkers),
            pool: BufferPool::new(POOL_BYTES),
            devices: Devices::default(),
            known: Arc::default(),
            untold: Untold::default(),
        }
    }

    /// Reads from a block whose place is known, without a word to its worker. Blocks on the disk.
    pub(crate) fn read_known(
        &self,
        key: impl FnOnce() -> BlockKey,
        range: &Range<u32>,
    ) -> Option<Bytes> {
        if self.known.lock().places.is_empty() {
            return None;
        }
        let key = key();
        let location = self.known.lock().places.get(&key)?.0.clone();
        let Ok(bytes) = location.read(range.clone(), &self.pool) else {
            // The worker is asked next, and then found out about.
            self.known.lock().places.remove(&key);
            return None;
        };
        self.untold.add(1, bytes.len() as u64);
        Some(bytes)
    }

    /// Sends a request; the bytes come back whether the worker sent them or this process read them.
    pub(crate) async fn request(
        &self,
        socket: &str,
        key: BlockKey,
        mut request: BlockRequest,
        activity: &Activity,
    ) -> Result<(BlockReply, Bytes), ConnectionError> {
        request.location_format = LOCATION_FORMAT;
        (request.reads_before, request.bytes_before) = self.untold.take();
        let answer = self.connections.request(socket, &request, activity).await;
        let (mut answer, payload) = answer.inspect_err(|_| {
            self.untold.add(request.reads_before, request.bytes_before);
        })?;
        if answer.reply.location.is_none() {
            return Ok((answer.reply, payload));
        }
        (request.reads_before, request.bytes_before) = (0, 0);
        request.location_format = 0;
        let range = request.offset..request.offset + request.length;
        let location = location(&mut answer).filter(|location| range.end <= location.len);
        if let Some(location) = location {
            let (pool, here) = (self.pool.clone(), location.clone());
            let part = range.clone();
            let device = self.devices.of(&location.file);
            activity.pause(); // it is this process that reads
            let read = device.run(move || here.read(part, &pool)).await;
            activity.resume();
            match read {
                Some(Ok(bytes)) => {
                    if range.len() < location.len as usize {
                        self.remember(key, location);
                    }
                    return Ok((answer.reply, bytes));
                }
                Some(Err(error)) => {
                    tracing::warn!(
                        key = %request.key, block = request.block_index, %error,
                        "a cached block is damaged; it is fetched again"
                    );
                    request.report_damaged = true;
                }
                None => {}
            }
        }
        let asked = self.connections.request(socket, &request, activity);
        let (answer, payload) = asked.await?;
        Ok((answer.reply, payload))
    }

    fn remember(&self, key: BlockKey, location: BlockLocation) {
        let mut known = self.known.lock();
        if known.places.len() < MAX_KNOWN {
            known.places.insert(key, (location, Instant::now()));
        }
        if !std::mem::replace(&mut known.has_sweeper, true) {
            tokio::spawn(sweep(self.known.clone()));
        }
    }

    /// Sends requests for whole blocks together, each with the place for its bytes. A reply has the length of what is
    /// at its place; with none, it is one to be sent alone.
    pub(crate) async fn request_together(
        &self,
        socket: &str,
        mut requests: Vec<BlockRequest>,
        places: &mut [&mut [u8]],
        activity: &Activity,
    ) -> Result<Vec<BlockReply>, ConnectionError> {
        for request in &mut requests {
            request.location_format = LOCATION_FORMAT;
        }
        let answers = self
            .connections
            .request_together(socket, &requests, places, activity);
        let mut replies = Vec::with_capacity(requests.len());
        let mut located: HashMap<u64, (Vec<usize>, Vec<BlockLocation>)> = HashMap::new();
        for (at, mut answer) in answers.await?.into_iter().enumerate() {
            let location = location(&mut answer);
            if let Some(whole) = location.filter(|location| location.len == requests[at].length) {
                let (ats, locations) = located.entry(device_of(&whole.file)).or_default();
                ats.push(at);
                locations.push(whole);
            }
            replies.push(answer.reply);
        }
        let reads = located.into_iter().map(async |(device, (ats, locations))| {
            let pool = self.pool.clone();
            let device = self.devices.numbered(device);
            let read = device.run(move || read_together(&locations, &pool));
            (ats, read.await.unwrap_or_default())
        });
        activity.pause();
        for (ats, read) in join_all(reads).await {
            for (at, bytes) in ats.into_iter().zip(read) {
                if let Some(bytes) = bytes {
                    places[at].copy_from_slice(&bytes);
                    replies[at].length = bytes.len() as u32;
                }
            }
        }
        Ok(replies)
    }

    /// Forgets the connections to a worker.
    pub(crate) fn forget(&self, socket: &str) {
        self.connections.forget(socket);
    }

    /// Forgets the connections to workers whose sockets `keep` does not name.
    pub(crate) fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.connections.retain(keep);
    }
}

impl Devices {
    fn of(&self, file: &File) -> Arc<Background> {
        self.numbered(device_of(file))
    }

    fn numbered(&self, device: u64) -> Arc<Background> {
        self.by_number.lock().entry(device).or_default().clone()
    }
}

/// The number of a file's device; 0 if the system does not tell.
fn device_of(file: &File) -> u64 {
    rustix::fs::fstat(file).map_or(0, |file| file.st_dev)
}

impl Untold {
    fn add(&self, reads: u64, bytes: u64) {
        self.reads.fetch_add(reads, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }

    fn take(&self) -> (u64, u64) {
        (self.reads.swap(0, Relaxed), self.bytes.swap(0, Relaxed))
    }
}

/// Forgets places in time, until none is left.
async fn sweep(known: Arc<Mutex<Known>>) {
    loop {
        tokio::time::sleep(KNOWN_FOR / 4).await;
        let mut known = known.lock();
        known
            .places
            .retain(|_, (_, since)| since.elapsed() < KNOWN_FOR);
        if known.places.is_empty() {
            known.has_sweeper = false;
            return;
        }
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
        page_checksums_at: Some(place.page_checksums_offset).filter(|at| *at > 0),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use rustix::process::{Uid, geteuid};
    use rustix::thread::set_thread_res_uid;

    use super::*;
    use weir_wire::Connect;

    #[tokio::test]
    async fn a_socket_of_another_user_is_not_spoken_to() {
        let dir = tempfile::tempdir().unwrap();
        let everybody = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(dir.path(), everybody).unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let (own, others) = (path("own"), path("others"));
        let activity = Activity::default();
        let _own = UnixListener::bind(&own).unwrap();
        assert!(NearWorkers.connect(&own, &activity).await.is_ok());
        if !geteuid().is_root() {
            return; // who alone can be somebody else
        }
        let nobody = Uid::from_raw(65534);
        let bind = std::thread::spawn({
            let others = others.clone();
            move || {
                // Of this thread alone.
                set_thread_res_uid(nobody, nobody, nobody).unwrap();
                UnixListener::bind(others).unwrap()
            }
        });
        let listener = bind.join().unwrap();
        let refused = NearWorkers.connect(&others, &activity).await.err().unwrap();
        let refused = refused.to_string();
        assert!(refused.contains("user 65534 is another user"), "{refused}");
        // Nothing was said to it.
        let (mut end, _) = listener.accept().unwrap();
        let mut said = Vec::new();
        std::io::Read::read_to_end(&mut end, &mut said).unwrap();
        assert!(said.is_empty());
    }
}
