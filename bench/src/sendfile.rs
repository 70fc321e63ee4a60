//! What the kernel can do over loopback TCP: sendfile(2) of files in the page cache, and plain writes from memory.
//!
//! sendfile(2) is what the targets name, but over loopback plain writes turned out faster, so neither alone is taken
//! for the limit.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::readers::Pass;

/// Bytes that are sent, and read, at once.
const PIECE: usize = 1 << 20;
/// Longest wait for bytes.
const DEADLINE: Duration = Duration::from_mins(1);

/// What is sent.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// Files, with sendfile(2).
    Files(&'a [PathBuf]),
    /// So many files of these bytes, with write(2).
    Memory(&'a [u8], usize),
}

/// Sends all files over `streams` connections at the same time, each one file after the other, and reads them.
pub fn transfer(source: Source<'_>, streams: usize) -> anyhow::Result<Pass> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let started = Instant::now();
    let mut bytes = 0;
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for number in 0..streams {
            let stream = TcpStream::connect(address)?;
            let (peer, _) = listener.accept()?;
            threads.push(scope.spawn(move || send(source, number, streams, &peer)));
            threads.push(scope.spawn(move || receive(stream)));
        }
        for thread in threads {
            match thread.join() {
                Ok(moved) => bytes += moved?,
                Err(_) => bail!("a thread of sendfile panicked"),
            }
        }
        anyhow::Ok(())
    })?;
    Ok(Pass {
        files: source.files() as u64,
        bytes: bytes / 2, // both ends count
        seconds: started.elapsed().as_secs_f64(),
    })
}

impl Source<'_> {
    fn files(self) -> usize {
        match self {
            Self::Files(files) => files.len(),
            Self::Memory(_, files) => files,
        }
    }
}

/// Sends every file whose number is that of the stream, modulo their count.
fn send(
    source: Source<'_>,
    stream: usize,
    streams: usize,
    mut socket: &TcpStream,
) -> anyhow::Result<u64> {
    socket.set_write_timeout(Some(DEADLINE))?;
    let mut total = 0;
    for number in (stream..source.files()).step_by(streams) {
        total += match source {
            Source::Files(files) => send_file(&files[number], socket)?,
            Source::Memory(bytes, _) => {
                for piece in bytes.chunks(PIECE) {
                    socket.write_all(piece)?;
                }
                bytes.len() as u64
            }
        };
    }
    socket.shutdown(std::net::Shutdown::Write)?;
    Ok(total)
}

fn send_file(path: &Path, socket: &TcpStream) -> anyhow::Result<u64> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let length = file.metadata()?.len();
    let mut sent = 0;
    while sent < length {
        let most = (length - sent).min(PIECE as u64) as usize;
        let moved = rustix::fs::sendfile(socket.as_fd(), file.as_fd(), None, most)?;
        ensure!(moved > 0, "{} became shorter", path.display());
        sent += moved as u64;
    }
    Ok(sent)
}

fn receive(mut stream: TcpStream) -> anyhow::Result<u64> {
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut buffer = vec![0; PIECE];
    let mut received = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(received),
            read => received += read as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_files_arrive_whole() {
        let path = std::env::temp_dir().join(format!("weir-sendfile-{}", std::process::id()));
        std::fs::write(&path, vec![7; PIECE + 5]).unwrap();
        let files = vec![path.clone(); 3];
        for streams in [1, 2, 3] {
            let memory = vec![7; PIECE + 5];
            for source in [Source::Files(&files), Source::Memory(&memory, 3)] {
                let pass = transfer(source, streams).unwrap();
                assert_eq!(pass.bytes, 3 * (PIECE as u64 + 5));
            }
        }
        std::fs::remove_file(&path).unwrap();
    }
}
