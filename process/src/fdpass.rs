//! Messages between the processes of a mount: one JSON value and the descriptors that go with it, in one packet of
//! a `SOCK_SEQPACKET` socket.
//!
//! A packet arrives whole or not at all, so a process that dies while it writes leaves no half message behind.
#![forbid(unsafe_code)]

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest message, in bytes. The largest one carries the arguments of the server; the kernel's default socket
/// buffer holds it, so it can be sent before anybody reads.
pub const MAX_MESSAGE: usize = 128 << 10;
/// Most descriptors in one message.
const MAX_DESCRIPTORS: usize = 8;

/// What a passed descriptor is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Slot {
    /// The connection to the kernel's side of the mount.
    Fuse,
    /// The held lock of the runtime directory.
    Lock,
    /// The socket between supervisor and server.
    Link,
    /// The server's process.
    Server,
    /// The supervisor's process.
    Supervisor,
    /// The line to the mount's third holder.
    Holder,
    /// The line to the mount's holder in another pod.
    Peer,
    /// A control client that waits for an answer.
    Client,
    /// Memory that two processes share.
    Memory,
    /// What a process counts with while it runs.
    Counter,
}

#[derive(Serialize)]
struct Sent<'a, T> {
    slots: Vec<Slot>,
    body: &'a T,
}

#[derive(Deserialize)]
struct Received<T> {
    slots: Vec<Slot>,
    body: T,
}

/// The descriptors of one message.
pub struct Descriptors(Vec<(Slot, OwnedFd)>);

impl Descriptors {
    /// Takes the descriptor in `slot`, if the message had one.
    pub fn take(&mut self, slot: Slot) -> Option<OwnedFd> {
        let at = self.0.iter().position(|(s, _)| *s == slot)?;
        Some(self.0.swap_remove(at).1)
    }

    /// Takes the descriptor in `slot`; without one the message is not valid.
    pub fn need(&mut self, slot: Slot) -> io::Result<OwnedFd> {
        self.take(slot)
            .ok_or_else(|| invalid(format!("a message without its {slot:?} descriptor")))
    }
}

/// Two connected sockets for messages, both closed on exec.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Sends a message without waiting. Fails with `WouldBlock` when the peer has too many unread ones, with
/// `BrokenPipe` when it is gone.
pub fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    body: &T,
    descriptors: &[(Slot, BorrowedFd<'_>)],
) -> io::Result<()> {
    let slots = descriptors.iter().map(|(slot, _)| *slot).collect();
    let json = serde_json::to_vec(&Sent { slots, body })?;
    if json.len() > MAX_MESSAGE {
        let message = format!(
            "a message of {} bytes is longer than {MAX_MESSAGE}",
            json.len()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let raw: Vec<BorrowedFd<'_>> = descriptors.iter().map(|(_, fd)| *fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !raw.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&raw)) {
        return Err(invalid("too many descriptors for one message".to_owned()));
    }
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(
            socket,
            &[IoSlice::new(&json)],
            &mut control,
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        )
    })?;
    Ok(())
}

/// Waits for the next message; `None` when the peer is gone.
pub fn receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> io::Result<Option<(T, Descriptors)>> {
    receive_with(socket, RecvFlags::empty())
}

/// The next message that has come; fails with `WouldBlock` when there is none. `None` when the peer is gone.
pub fn try_receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> io::Result<Option<(T, Descriptors)>> {
    receive_with(socket, RecvFlags::DONTWAIT)
}

fn receive_with<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
    flags: RecvFlags,
) -> io::Result<Option<(T, Descriptors)>> {
    let mut buffer = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        match rustix::net::recvmsg(
            socket,
            &mut parts,
            &mut control,
            flags | RecvFlags::CMSG_CLOEXEC,
        ) {
            // The peer died with messages of ours unread. The kernel says so once, before it gives what the peer
            // had sent.
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNRESET) => {}
            other => break other?,
        }
    };
    let mut owned = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            owned.extend(descriptors);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    if received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(invalid(
            "a message that is longer than the protocol allows".to_owned(),
        ));
    }
    let message: Received<T> = serde_json::from_slice(&buffer[..received.bytes])?;
    if message.slots.len() != owned.len() {
        return Err(invalid(format!(
            "a message with {} descriptors instead of {}",
            owned.len(),
            message.slots.len()
        )));
    }
    let descriptors = Descriptors(message.slots.into_iter().zip(owned).collect());
    Ok(Some((message.body, descriptors)))
}

/// Whether something can be read from `descriptor` within `timeout`; an end of file counts.
pub fn readable(descriptor: impl AsFd, timeout: std::time::Duration) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let deadline = std::time::Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_carries_its_descriptors_by_name() {
        let (here, there) = pair().unwrap();
        let (one, _peer) = pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        send(
            here.as_fd(),
            &"hello",
            &[(Slot::Lock, file.as_fd()), (Slot::Link, one.as_fd())],
        )
        .unwrap();
        let (body, mut descriptors) = try_receive::<String>(there.as_fd()).unwrap().unwrap();
        assert_eq!(body, "hello");
        let same = rustix::fs::fstat(descriptors.need(Slot::Lock).unwrap()).unwrap();
        assert_eq!(same.st_ino, rustix::fs::fstat(&file).unwrap().st_ino);
        assert!(descriptors.take(Slot::Link).is_some());
        assert!(descriptors.need(Slot::Link).is_err());
    }

    #[test]
    fn what_was_sent_before_the_peer_died_is_read_before_its_end() {
        let (here, there) = pair().unwrap();
        send(here.as_fd(), &1, &[]).unwrap();
        send(there.as_fd(), &2, &[]).unwrap();
        drop(here);
        let mut seen = Vec::new();
        while let Some((number, _)) = try_receive::<i32>(there.as_fd()).unwrap() {
            seen.push(number);
        }
        assert_eq!(seen, [1]);
    }

    #[test]
    fn a_message_past_the_limit_is_refused_before_it_is_sent() {
        let (here, there) = pair().unwrap();
        send(here.as_fd(), &"x".repeat(MAX_MESSAGE - 64), &[]).unwrap();
        assert!(try_receive::<String>(there.as_fd()).unwrap().is_some());
        let error = send(here.as_fd(), &"x".repeat(MAX_MESSAGE), &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
