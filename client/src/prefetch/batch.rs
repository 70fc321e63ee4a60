//! Small files that are read together, before anybody asks for them.

use std::mem::take;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use weir_core::Block;
use weir_worker::FillWork;

use super::target::Placed;
use crate::blocks::Blocks;
use crate::error::BatchError;
use crate::source::BlockSource;

/// Files of a batch that wait for a network at once.
const AT_ONCE: usize = 24;

/// A file that was not cached.
struct Absent<'m> {
    placed: Placed,
    /// A small file is one block.
    block: Block,
    place: &'m mut [u8],
}

/// Copies files to `memory`, one behind the other, as many of them as it has room for. Those that cannot be read leave a gap.
/// Fills that this started and that are still under way are pushed to `unfinished`.
pub(crate) async fn read_batch<S: BlockSource>(
    blocks: &Blocks<S>,
    files: &[u32],
    memory: &mut [u8],
    unfinished: &mut Vec<FillWork>,
) -> Vec<Placed> {
    let block_of = |&file| Some((file, blocks.manifest().blocks(file).next()?));
    let files: Vec<(u32, Block)> = files.iter().filter_map(block_of).collect();
    let cached = blocks.read_cached_whole(&files.iter().map(|(_, b)| b).collect::<Vec<_>>());
    let mut read = Vec::with_capacity(files.len());
    let mut absent = Vec::new();
    let (mut rest, mut offset) = (memory, 0);
    for ((file, block), cached) in files.into_iter().zip(cached) {
        let length = block.len() as usize;
        if length > rest.len() {
            break;
        }
        let (place, others) = take(&mut rest).split_at_mut(length);
        rest = others;
        let placed = Placed {
            file,
            offset,
            length,
        };
        offset += length;
        if let Some(pieces) = cached {
            copy(&pieces, place);
            read.push(placed);
        } else {
            absent.push(Absent {
                placed,
                block,
                place,
            });
        }
    }
    let alone = read_together(blocks, absent, &mut read).await;
    read_alone(blocks, alone, &mut read, unfinished).await;
    read
}

/// Reads what can be had together. Gives what is to be read file by file.
async fn read_together<'m, S: BlockSource>(
    blocks: &Blocks<S>,
    mut absent: Vec<Absent<'m>>,
    read: &mut Vec<Placed>,
) -> Vec<Absent<'m>> {
    let places = absent
        .iter_mut()
        .map(|file| (&file.block, &mut *file.place));
    let outcomes = blocks.read_together(places.collect()).await;
    let mut alone = Vec::new();
    for (file, outcome) in absent.into_iter().zip(outcomes) {
        match outcome {
            Ok(()) => read.push(file.placed),
            Err(BatchError::Unreadable) => {}
            Err(BatchError::NotTogether) => alone.push(file),
        }
    }
    alone
}

/// Reads files one by one, some of them at a time.
async fn read_alone<S: BlockSource>(
    blocks: &Blocks<S>,
    alone: Vec<Absent<'_>>,
    read: &mut Vec<Placed>,
    unfinished: &mut Vec<FillWork>,
) {
    let mut alone = alone.into_iter().map(|file| async move {
        let mut fills = Vec::new();
        let whole = 0..file.block.len();
        let outcome = blocks
            .read(file.placed.file, &file.block, whole, &mut fills)
            .await;
        let outcome = outcome.map(|pieces| copy(&pieces, file.place));
        (outcome.map(|()| file.placed), fills)
    });
    let mut reads: FuturesUnordered<_> = alone.by_ref().take(AT_ONCE).collect();
    while let Some((outcome, fills)) = reads.next().await {
        unfinished.extend(fills);
        match outcome {
            Ok(placed) => read.push(placed),
            // Whoever reads the file is told.
            Err(error) => tracing::debug!(%error, "not prefetched"),
        }
        reads.extend(alone.next());
    }
}

/// Puts the pieces of a file behind one another.
fn copy(pieces: &[Bytes], mut place: &mut [u8]) {
    for piece in pieces {
        let (here, rest) = place.split_at_mut(piece.len());
        here.copy_from_slice(piece);
        place = rest;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prometheus_client::registry::Registry;

    use super::super::directories::test_manifest;
    use super::*;
    use crate::metrics::ClientMetrics;
    use crate::source::fake::FakeSource;

    /// Reads files by their names; gives the names of those that were read, each with its first byte.
    async fn read(source: &FakeSource, names: &[&str], memory: usize) -> Vec<(String, u8)> {
        let manifest = Arc::new(test_manifest());
        let metrics = ClientMetrics::register(&mut Registry::default());
        let blocks = Blocks::new(manifest.clone(), source.clone(), &metrics);
        let files: Vec<_> = names
            .iter()
            .map(|name| manifest.resolve(name).unwrap())
            .collect();
        let mut memory = vec![0; memory];
        let read = read_batch(&blocks, &files, &mut memory, &mut Vec::new()).await;
        let read = read.into_iter().map(|placed| {
            assert_eq!(placed.length, 100);
            let bytes = &memory[placed.offset..][..placed.length];
            assert!(bytes.iter().all(|byte| *byte == bytes[0]));
            (manifest.path(placed.file), bytes[0])
        });
        let mut read: Vec<_> = read.collect();
        read.sort();
        read
    }

    #[tokio::test]
    async fn each_file_comes_from_the_cheapest_place_that_has_it() {
        let source = FakeSource::default();
        source.cached.lock().extend(["f0", "f3"]);
        source.together.lock().extend(["f1"]);
        source.unreadable.lock().extend(["f2"]);
        let names = ["f0", "f1", "f2", "f3", "f4"];
        let expected = [("f0", 1), ("f1", 2), ("f3", 1), ("f4", 3)];
        let expected = expected.map(|(name, byte)| (name.to_owned(), byte));
        assert_eq!(read(&source, &names, 1000).await, expected);
        assert_eq!(*source.read_alone.lock(), ["f4"]);
    }

    #[tokio::test]
    async fn a_file_that_fails_leaves_the_others() {
        let source = FakeSource::default();
        source.failing.lock().extend(["f1"]);
        let read = read(&source, &["f0", "f1", "f2"], 1000).await;
        let expected = [("f0", 3), ("f2", 3)];
        assert_eq!(read, expected.map(|(name, byte)| (name.to_owned(), byte)));
    }

    #[tokio::test]
    async fn no_file_is_cut_off_where_the_memory_ends() {
        let source = FakeSource::default();
        let read = read(&source, &["f0", "f1", "f2"], 299).await;
        assert_eq!(read.len(), 2);
        assert_eq!(source.read_alone.lock().len(), 2);
    }
}
