//! Small files that are read together, before anybody asks for them.

use std::mem::take;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use weir_worker::Drive;

use crate::cluster::Whole;
use crate::reader::{Backend, Reader};

use super::target::{Batch, Placed};

/// Files of a batch that wait for a network at once.
const AT_ONCE: usize = 24;

impl Reader {
    /// Copies the files of a batch to `memory`, those that nobody has asked for meanwhile and that can be read.
    /// Fills that this started and that are still under way are pushed to `unfinished`: the caller uses the bytes,
    /// and then awaits them. [`Self::ahead_ended`] must be told what became of the batch.
    pub async fn gather(
        &self,
        batch: &Batch,
        memory: &mut [u8],
        unfinished: &mut Vec<Drive>,
    ) -> Vec<Placed> {
        let wanted = self.still_wanted(batch);
        let mut placed = Vec::with_capacity(wanted.len());
        let mut absent = Vec::new();
        let (mut rest, mut offset) = (memory, 0);
        for (&file, cached) in wanted.iter().zip(self.read_cached_files(&wanted)) {
            let length = self.manifest().entry(file).size as usize;
            if length > rest.len() {
                break;
            }
            let (place, others) = take(&mut rest).split_at_mut(length);
            rest = others;
            let spot = Placed {
                file,
                offset,
                length,
            };
            offset += length;
            match cached {
                Some(pieces) => {
                    copy(&pieces, place);
                    placed.push(spot);
                }
                None => absent.push((spot, place)),
            }
        }
        let absent = self.read_from_owners(absent, &mut placed).await;
        let mut absent = absent.into_iter().map(|(spot, place)| async move {
            let mut drives = Vec::new();
            let outcome = self
                .read(spot.file, 0, spot.length as u64, &mut drives)
                .await;
            let outcome = outcome.map(|pieces| copy(&pieces, place));
            (outcome.map(|()| spot), drives)
        });
        let mut reads: FuturesUnordered<_> = absent.by_ref().take(AT_ONCE).collect();
        while let Some((outcome, drives)) = reads.next().await {
            unfinished.extend(drives);
            match outcome {
                Ok(spot) => placed.push(spot),
                // Whoever reads the file is told.
                Err(error) => tracing::debug!(%error, "not read ahead"),
            }
            reads.extend(absent.next());
        }
        placed
    }

    /// Reads what the workers of a cluster give together. Gives back what is to be read file by file.
    async fn read_from_owners<'m>(
        &self,
        mut absent: Vec<(Placed, &'m mut [u8])>,
        placed: &mut Vec<Placed>,
    ) -> Vec<(Placed, &'m mut [u8])> {
        let Backend::Cluster(cluster) = self.backend() else {
            return absent;
        };
        let dataset = self.manifest().summary().snapshot.dataset.as_str();
        // A small file is one block.
        let blocks = absent.iter_mut().filter_map(|(spot, place)| {
            let block = self.manifest().blocks(spot.file).next();
            block.map(|block| (block, &mut **place))
        });
        let outcomes = cluster.read_whole(dataset, blocks).await;
        let mut left = Vec::new();
        for (file, outcome) in absent.into_iter().zip(outcomes) {
            match outcome {
                Whole::Read(source) => {
                    self.count(source, file.0.length as u64);
                    placed.push(file.0);
                }
                Whole::Refused => {}
                Whole::Alone => left.push(file),
            }
        }
        left
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
