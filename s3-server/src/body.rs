//! Bodies that stop, crawl or break off.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use tokio::time::sleep;

use crate::fault::Fault;

/// Pieces of a slow body per second.
const SLOW_PIECES: u64 = 10;

/// `body` with the fault, if it is one of bodies.
pub(crate) fn faulty<S, E>(
    body: S,
    fault: &Fault,
) -> impl Stream<Item = io::Result<Bytes>> + Send + use<S, E>
where
    S: Stream<Item = Result<Bytes, E>> + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let body = body.map(|piece| piece.map_err(io::Error::other));
    match *fault {
        Fault::Truncate(after) => interrupted(body, after, None).boxed(),
        Fault::StallBody(after, time) => interrupted(body, after, Some(time)).boxed(),
        Fault::SlowBody(rate) => slow(body, rate).boxed(),
        Fault::Unpacked(more) | Fault::WrongLength(more) => body
            .chain(stream::iter([Ok(Bytes::from(vec![b'+'; more]))]))
            .boxed(),
        _ => body.boxed(),
    }
}

/// The body up to `after`; then an error, which closes the connection, or the rest after a pause.
fn interrupted<S>(
    body: S,
    after: u64,
    pause: Option<Duration>,
) -> impl Stream<Item = io::Result<Bytes>> + Send
where
    S: Stream<Item = io::Result<Bytes>> + Send + 'static,
{
    let mut left = Some(after);
    body.flat_map(move |piece| {
        let pieces = match (piece, left) {
            (Ok(piece), Some(before)) if before < piece.len() as u64 => {
                left = None;
                let first = piece.slice(..before as usize);
                let second = match pause {
                    Some(_) => Ok(piece.slice(before as usize..)),
                    None => Err(io::Error::other("broken off on request")),
                };
                vec![(None, Ok(first)), (pause, second)]
            }
            (Ok(piece), before) => {
                left = before.map(|before| before - piece.len() as u64);
                vec![(None, Ok(piece))]
            }
            (Err(error), _) => vec![(None, Err(error))],
        };
        stream::iter(pieces).then(|(pause, piece)| async move {
            if let Some(pause) = pause {
                sleep(pause).await;
            }
            piece
        })
    })
}

/// The body in small pieces with pauses between them.
fn slow<S>(body: S, rate: u64) -> impl Stream<Item = io::Result<Bytes>> + Send
where
    S: Stream<Item = io::Result<Bytes>> + Send + 'static,
{
    let step = (rate / SLOW_PIECES).max(1) as usize;
    body.flat_map(move |piece| {
        let pieces: Vec<io::Result<Bytes>> = match piece {
            Ok(piece) => (0..piece.len())
                .step_by(step)
                .map(|at| Ok(piece.slice(at..piece.len().min(at + step))))
                .collect(),
            Err(error) => vec![Err(error)],
        };
        stream::iter(pieces).then(|piece| async move {
            sleep(Duration::from_secs(1) / SLOW_PIECES as u32).await;
            piece
        })
    })
}
