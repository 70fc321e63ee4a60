//! A proxy before a store that breaks some of its answers.
//!
//! It passes one request on per connection, as bytes, and knows no more of HTTP than where a head ends and what its first line is.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// Longest wait for bytes of either side.
const SILENCE: Duration = Duration::from_mins(1);

/// What becomes of an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// This status, with these lines in its head, instead of it.
    Status(&'static str, &'static str),
    /// The connection is closed at once.
    Reset,
    /// The connection is closed behind so many bytes of the body.
    Cut(usize),
    /// So many bytes of the body come, and the rest after a while.
    Stall(usize, Duration),
}

#[derive(Default)]
struct State {
    /// What happens to each so many-th request, and how often at most.
    fault: Mutex<Option<(Fault, usize, usize)>>,
    requests: AtomicUsize,
    happened: AtomicUsize,
}

/// A proxy that runs as long as the tests do.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

impl Proxy {
    pub(crate) fn start(store: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let shared = state.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let shared = shared.clone();
                let Ok(client) = client else { return };
                std::thread::spawn(move || serve(client, store, &shared));
            }
        });
        Self { address, state }
    }

    /// Breaks each so many-th answer from now on.
    pub(crate) fn set(&self, fault: Fault, each: usize) {
        *self.state.fault.lock() = Some((fault, each, usize::MAX));
    }

    /// Breaks the next answer.
    pub(crate) fn set_once(&self, fault: Fault) {
        *self.state.fault.lock() = Some((fault, 1, 1));
    }

    /// How many requests there were.
    pub(crate) fn requests(&self) -> usize {
        self.state.requests.load(Ordering::Relaxed)
    }

    /// How many answers were broken.
    pub(crate) fn happened(&self) -> usize {
        self.state.happened.load(Ordering::Relaxed)
    }
}

/// Answers one request. Whatever fails here is a broken answer like others.
fn serve(mut client: TcpStream, store: SocketAddr, state: &State) -> Option<()> {
    client.set_read_timeout(Some(SILENCE)).ok()?;
    let request = head(&mut client)?;
    let number = state.requests.fetch_add(1, Ordering::Relaxed);
    let fault = {
        let mut fault = state.fault.lock();
        match &mut *fault {
            Some((fault, each, left)) if number.is_multiple_of(*each) && *left > 0 => {
                *left -= 1;
                state.happened.fetch_add(1, Ordering::Relaxed);
                Some(*fault)
            }
            _ => None,
        }
    };
    match fault {
        Some(Fault::Reset) => return None,
        Some(Fault::Status(status, lines)) => {
            let answer = format!(
                "HTTP/1.1 {status}\r\n{lines}Content-Length: 0\r\nConnection: close\r\n\r\n"
            );
            client.write_all(answer.as_bytes()).ok()?;
            client.shutdown(Shutdown::Write).ok()?;
            return Some(());
        }
        _ => {}
    }
    let mut store = TcpStream::connect(store).ok()?;
    store.set_read_timeout(Some(SILENCE)).ok()?;
    let request = in_origin_form(&request);
    let cut = request.len() - 2;
    store.write_all(&request[..cut]).ok()?;
    store.write_all(b"Connection: close\r\n\r\n").ok()?;
    let answer = head(&mut store)?;
    client.write_all(&answer).ok()?;
    let (before, pause) = match fault {
        Some(Fault::Cut(bytes)) => (bytes, None),
        Some(Fault::Stall(bytes, pause)) => (bytes, Some(pause)),
        _ => (usize::MAX, None),
    };
    copy(&mut store, &mut client, before)?;
    if let Some(pause) = pause {
        std::thread::sleep(pause);
        copy(&mut store, &mut client, usize::MAX)?;
    }
    client.shutdown(Shutdown::Write).ok()
}

/// A head as a server wants it. Who takes this for a proxy by name sends the whole URL, `GET http://host/path`.
fn in_origin_form(head: &[u8]) -> Vec<u8> {
    let mut words = head.splitn(2, |byte| *byte == b' ');
    let (method, rest) = (words.next().unwrap(), words.next().unwrap());
    let Some(rest) = rest.strip_prefix(b"http://") else {
        return head.to_vec();
    };
    let path = rest.iter().position(|byte| *byte == b'/').unwrap();
    [method, b" ", &rest[path..]].concat()
}

/// The bytes up to the end of a head.
fn head(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    Some(head)
}

/// Passes so many bytes on, or all that come.
fn copy(from: &mut TcpStream, to: &mut TcpStream, most: usize) -> Option<()> {
    let mut from = from.take(most as u64);
    std::io::copy(&mut from, to).ok().map(drop)
}
