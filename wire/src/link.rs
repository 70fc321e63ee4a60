//! A connection of the block stream: frames of a length, a protobuf header, and possibly bytes and a descriptor.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use tokio::io::Interest;
use tokio::time::{Instant, timeout, timeout_at};

use super::activity::Activity;
use super::pacer::Pacer;
use super::socket::{MAX_DESCRIPTORS, Paced, Socket, Stalled, read_some, write_all};

/// Longest header, in bytes: a key of 1,024 bytes and its version fit many times.
const MAX_HEADER: usize = 64 << 10;
/// Longest time that a peer may take for a frame's header once it has begun; or that the sender of frames that are sent
/// together may wait for it to take them in.
const FRAME_DEADLINE: Duration = Duration::from_secs(30);
/// Longest pause between two pieces of a frame's bytes.
const PROGRESS_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of a frame's length.
const LENGTH: usize = size_of::<u32>();
/// Bytes that are read at once where frames are headers alone, and where most of a frame are bytes: what is read of
/// these with the header has to be copied once more.
const REQUESTS: usize = 16 << 10;
const REPLIES: usize = 512;
/// Room for the next frame's header behind the bytes of this one.
const NEXT_HEADER: usize = 64;

/// Why a frame could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The header is longer than any is.
    #[error("a header of {0} bytes is too long")]
    TooLong(usize),
    /// The header is not what it should be.
    #[error("a header is not readable: {0}")]
    Malformed(#[from] prost::DecodeError),
}

/// A frame to be sent.
pub struct Frame {
    header: Vec<u8>,
    payload: Vec<Bytes>,
    descriptor: Option<Arc<File>>,
}

impl Frame {
    /// A header and the bytes that belong to it.
    pub fn new(header: &impl Message, payload: Vec<Bytes>) -> Self {
        let mut frame = (header.encoded_len() as u32).to_le_bytes().to_vec();
        // A Vec grows as needed, so encoding into it does not fail.
        let _ = header.encode(&mut frame);
        Self {
            header: frame,
            payload,
            descriptor: None,
        }
    }

    /// Bytes of what belongs to its header.
    pub fn payload_bytes(&self) -> u64 {
        self.payload.iter().map(|piece| piece.len() as u64).sum()
    }

    /// A header with a descriptor beside it.
    pub fn with_descriptor(header: &impl Message, file: Arc<File>) -> Self {
        Self {
            descriptor: Some(file),
            ..Self::new(header, Vec::new())
        }
    }
}

/// A connection.
pub struct Link<S> {
    socket: S,
    inbox: Inbox,
}

/// The sending end of a connection.
pub struct Outgoing<'a, S> {
    socket: &'a S,
    pacer: Option<&'a Pacer>,
    stalled: Stalled,
}

/// The receiving end of a connection.
pub struct Incoming<'a, S> {
    socket: &'a S,
    inbox: &'a mut Inbox,
    activity: Option<&'a Activity>,
    longest: usize,
}

/// What was received and not used yet.
struct Inbox {
    buffer: Vec<u8>,
    filled: Range<usize>,
    descriptors: VecDeque<OwnedFd>,
}

impl<S: Socket> Link<S> {
    /// The end of a connection that receives requests.
    pub fn of_server(socket: S) -> Self {
        Self::new(socket, REQUESTS)
    }

    /// The end of a connection that receives replies.
    pub fn of_client(socket: S) -> Self {
        Self::new(socket, REPLIES)
    }

    fn new(socket: S, space: usize) -> Self {
        let inbox = Inbox {
            buffer: vec![0; space],
            filled: 0..0,
            descriptors: VecDeque::new(),
        };
        Self { socket, inbox }
    }

    /// Both directions, to be used side by side.
    pub fn split(&mut self) -> (Outgoing<'_, S>, Incoming<'_, S>) {
        let incoming = Incoming {
            socket: &self.socket,
            inbox: &mut self.inbox,
            activity: None,
            longest: MAX_HEADER,
        };
        let outgoing = Outgoing {
            socket: &self.socket,
            pacer: None,
            stalled: Stalled::default(),
        };
        (outgoing, incoming)
    }
}

impl<'a, S: Socket> Outgoing<'a, S> {
    /// The same end, whose frames with bytes take turns with those of others.
    pub fn paced(self, pacer: Option<&'a Pacer>) -> Self {
        Self { pacer, ..self }
    }

    /// For how long the peer has not taken what is being sent.
    pub fn stalled(&self) -> Duration {
        self.stalled.time()
    }

    /// Sends frames with as few writes as the system allows.
    pub async fn send(&self, frames: &[Frame]) -> io::Result<()> {
        self.send_in_turns(frames, 1).await
    }

    /// As [`Self::send`], so many times as fast as others where all are paced.
    pub async fn send_in_turns(&self, frames: &[Frame], turns: usize) -> io::Result<()> {
        self.stalled.begin();
        for group in frames.chunks(MAX_DESCRIPTORS) {
            let descriptors = group.iter().filter_map(|frame| frame.descriptor.as_ref());
            let descriptors: Vec<_> = descriptors.map(AsFd::as_fd).collect();
            let pieces = group.iter().flat_map(|frame| {
                let payload = frame.payload.iter().map(|piece| IoSlice::new(piece));
                std::iter::once(IoSlice::new(&frame.header)).chain(payload)
            });
            let mut pieces: Vec<_> = pieces.filter(|piece| !piece.is_empty()).collect();
            let has_bytes = group.iter().any(|frame| !frame.payload.is_empty());
            let pacer = self.pacer.filter(|_| has_bytes);
            let paced = pacer.map(|pacer| Paced { pacer, turns });
            let stalled = (&self.stalled, FRAME_DEADLINE);
            write_all(self.socket, &mut pieces, &descriptors, paced, stalled).await?;
        }
        Ok(())
    }
}

impl<'a, S: Socket> Incoming<'a, S> {
    /// The same end, which tells `activity` of all that arrives.
    pub fn noted_in(self, activity: &'a Activity) -> Self {
        Self {
            activity: Some(activity),
            ..self
        }
    }

    /// The same end, which refuses headers of more than `longest` bytes.
    pub(super) fn up_to(self, longest: usize) -> Self {
        Self { longest, ..self }
    }

    fn note(&self) {
        if let Some(activity) = self.activity {
            activity.note();
        }
    }

    /// Tells `activity` that the peer waits for the origin, or for something else.
    pub(crate) fn note_wait(&self, for_the_origin: bool) {
        if let Some(activity) = self.activity {
            activity.waits(for_the_origin);
        }
    }

    /// The next header; `None` when the peer closed the connection between two frames, before which an idle
    /// connection waits without limit.
    pub async fn message<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        let mut deadline = None;
        loop {
            if let Some(message) = self.arrived()? {
                return Ok(Some(message));
            }
            let begun = !self.inbox.filled.is_empty();
            let Inbox {
                buffer,
                filled,
                descriptors,
            } = &mut *self.inbox;
            let mut space = [IoSliceMut::new(&mut buffer[filled.end..])];
            let read = read_some(self.socket, &mut space, descriptors);
            let read = if begun {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + FRAME_DEADLINE);
                timeout_at(deadline, read).await.map_err(|_| late())??
            } else {
                read.await?
            };
            if read == 0 {
                return if begun { Err(ended().into()) } else { Ok(None) };
            }
            filled.end += read;
            self.note();
        }
    }

    /// The next header, if all of it is here. Whoever gets none finds room for more of it in the buffer.
    pub fn arrived<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        let inbox = &mut *self.inbox;
        let here = &inbox.buffer[inbox.filled.clone()];
        let mut whole = LENGTH;
        if let Some((length, rest)) = here.split_first_chunk::<LENGTH>() {
            let length = u32::from_le_bytes(*length) as usize;
            if length > self.longest {
                return Err(FrameError::TooLong(length));
            }
            whole += length;
            if let Some(header) = rest.get(..length) {
                let message = M::decode(header)?;
                inbox.filled.start += whole;
                return Ok(Some(message));
            }
        }
        inbox.make_room(whole);
        Ok(None)
    }

    /// The descriptor of the next frame that came with one.
    pub fn descriptor(&mut self) -> Option<OwnedFd> {
        self.inbox.descriptors.pop_front()
    }

    /// The `length` bytes behind a header.
    pub async fn payload(&mut self, length: usize) -> io::Result<Bytes> {
        let mut payload = BytesMut::with_capacity(length);
        payload.extend_from_slice(self.inbox.take(length));
        while payload.len() < length {
            let missing = length - payload.len();
            match self.socket.try_read(&mut (&mut payload).limit(missing)) {
                Ok(0) => return Err(ended()),
                Ok(_) => self.note(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let more = self.socket.ready(Interest::READABLE);
                    timeout(PROGRESS_DEADLINE, more)
                        .await
                        .map_err(|_| late())??;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(payload.freeze())
    }

    /// As [`Self::payload`], to a place of the caller's.
    pub async fn payload_to(&mut self, mut place: &mut [u8]) -> io::Result<()> {
        let here = self.inbox.take(place.len());
        let (begin, rest) = place.split_at_mut(here.len());
        begin.copy_from_slice(here);
        place = rest;
        while !place.is_empty() {
            // All that was here is used, so the buffer is free.
            let inbox = &mut *self.inbox;
            let missing = place.len();
            let mut space = [
                IoSliceMut::new(place),
                IoSliceMut::new(&mut inbox.buffer[..NEXT_HEADER]),
            ];
            let read = read_some(self.socket, &mut space, &mut inbox.descriptors);
            let read = timeout(PROGRESS_DEADLINE, read).await;
            let read = read.map_err(|_| late())??;
            if read == 0 {
                return Err(ended());
            }
            inbox.filled = 0..read.saturating_sub(missing);
            place = &mut place[read.min(missing)..];
            self.note();
        }
        Ok(())
    }
}

impl Inbox {
    /// Up to `most` bytes, which are used up by this.
    fn take(&mut self, most: usize) -> &[u8] {
        let start = self.filled.start;
        let taken = self.filled.len().min(most);
        self.filled.start += taken;
        &self.buffer[start..start + taken]
    }

    /// Makes room behind what is here, for `whole` bytes with it.
    fn make_room(&mut self, whole: usize) {
        self.buffer.copy_within(self.filled.clone(), 0);
        self.filled = 0..self.filled.len();
        if self.buffer.len() < whole {
            self.buffer.resize(whole, 0);
        }
    }
}

fn late() -> io::Error {
    io::ErrorKind::TimedOut.into()
}

fn ended() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the peer closed the connection",
    )
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::fd::OwnedFd;

    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;
    use weir_proto::v1::BlockReply;

    use super::*;

    fn pair() -> (UnixStream, Link<UnixStream>) {
        let (here, there) = UnixStream::pair().unwrap();
        (here, Link::of_client(there))
    }

    fn reply(message: &str, length: usize) -> BlockReply {
        BlockReply {
            message: message.to_owned(),
            length: length as u32,
            ..BlockReply::default()
        }
    }

    fn file(content: &str) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content.as_bytes()).unwrap();
        Arc::new(file)
    }

    fn content(file: OwnedFd) -> String {
        let (mut file, mut content) = (File::from(file), String::new());
        file.rewind().unwrap();
        file.read_to_string(&mut content).unwrap();
        content
    }

    /// Lengths around the buffers' sizes, and more than a socket holds.
    const LENGTHS: [usize; 10] = [0, 1, 63, 64, 65, 500, 512, 100_000, 3, 1 << 20];

    #[tokio::test]
    async fn frames_sent_together_arrive_in_order_with_their_bytes_and_descriptors() {
        let (here, mut link) = pair();
        let mut here = Link::of_server(here);
        let payload = |at: usize| Bytes::from(vec![at as u8; LENGTHS[at]]);
        let frames = (0..LENGTHS.len()).map(|at| {
            let header = reply(&format!("frame {at}"), LENGTHS[at]);
            if LENGTHS[at] == 0 || at == 8 {
                Frame::with_descriptor(&header, file(&format!("file {at}")))
            } else {
                let all = payload(at);
                let cut = all.len() / 3;
                Frame::new(&header, vec![all.slice(..cut), all.slice(cut..)])
            }
        });
        // More frames than descriptors fit beside one write.
        let many = (0..2 * MAX_DESCRIPTORS)
            .map(|at| Frame::with_descriptor(&reply("one of many", 0), file(&format!("{at}"))));
        let frames: Vec<Frame> = frames.chain(many).collect();
        let (outgoing, _) = here.split();
        let (_, mut incoming) = link.split();
        let receive = async {
            for (at, &length) in LENGTHS.iter().enumerate() {
                let header: BlockReply = incoming.message().await.unwrap().unwrap();
                assert_eq!(header, reply(&format!("frame {at}"), length));
                if length == 0 || at == 8 {
                    let descriptor = incoming.descriptor().unwrap();
                    assert_eq!(content(descriptor), format!("file {at}"));
                } else if at % 2 == 0 {
                    assert_eq!(incoming.payload(length).await.unwrap(), payload(at));
                } else {
                    let mut place = vec![0; length];
                    incoming.payload_to(&mut place).await.unwrap();
                    assert_eq!(place, payload(at));
                }
            }
            for at in 0..2 * MAX_DESCRIPTORS {
                let header: Option<BlockReply> = incoming.message().await.unwrap();
                assert_eq!(header, Some(reply("one of many", 0)));
                assert_eq!(content(incoming.descriptor().unwrap()), at.to_string());
            }
            assert!(incoming.descriptor().is_none());
        };
        let (sent, ()) = tokio::join!(outgoing.send(&frames), receive);
        sent.unwrap();
    }

    #[tokio::test]
    async fn headers_that_are_there_are_told_from_those_that_are_not() {
        let (mut here, mut link) = pair();
        let frame = Frame::new(&reply("whole", 0), Vec::new()).header;
        let cut = frame.len() - 1;
        here.write_all(&frame).await.unwrap();
        here.write_all(&frame[..cut]).await.unwrap();
        let (_, mut incoming) = link.split();
        assert!(incoming.arrived::<BlockReply>().unwrap().is_none());
        let first: Option<BlockReply> = incoming.message().await.unwrap();
        assert_eq!(first, Some(reply("whole", 0)));
        assert!(incoming.arrived::<BlockReply>().unwrap().is_none());
        here.write_all(&frame[cut..]).await.unwrap();
        let second: Option<BlockReply> = incoming.message().await.unwrap();
        assert_eq!(second, Some(reply("whole", 0)));
    }

    #[tokio::test]
    async fn a_connection_ends_between_frames_and_breaks_inside_of_one() {
        let (here, mut link) = pair();
        drop(here);
        let end = link.split().1.message::<BlockReply>().await;
        assert!(matches!(end, Ok(None)));

        let (mut here, mut link) = pair();
        let frame = Frame::new(&reply("cut off", 0), Vec::new()).header;
        here.write_all(&frame[..6]).await.unwrap();
        drop(here);
        let cut = link.split().1.message::<BlockReply>().await;
        assert!(matches!(cut, Err(FrameError::Io(_))));

        let (mut here, mut link) = pair();
        here.write_all(b"half").await.unwrap();
        drop(here);
        let (_, mut incoming) = link.split();
        let short = incoming.payload_to(&mut [0; 8]).await.unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn headers_that_cannot_be_are_refused() {
        let (mut here, mut link) = pair();
        here.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
        let long = link.split().1.message::<BlockReply>().await;
        assert!(matches!(long, Err(FrameError::TooLong(_))));

        let (mut here, mut link) = pair();
        here.write_all(&[3, 0, 0, 0, 0xff, 0xff, 0xff])
            .await
            .unwrap();
        let garbage = link.split().1.message::<BlockReply>().await;
        assert!(matches!(garbage, Err(FrameError::Malformed(_))));
    }
}
