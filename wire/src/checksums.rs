//! Checksums of bytes on their way from a worker to a client.
//!
//! They are those of the tiers, for each chunk of 64 KiB of a block: what a tier holds already need not be computed again,
//! and what happened to the bytes since they were put there is found, too. Only a part of a chunk has one of its own.

use std::collections::VecDeque;

use bytes::Bytes;

use weir_segment::{CHUNK_SIZE, Checksums, chunk_sum, chunk_sum_of, page_sums};

/// The checksums of bytes that begin at `offset` of a block of `block` bytes, of which some may be `held`.
pub fn checksums(pieces: &[Bytes], offset: u32, block: u32, held: Option<&Checksums>) -> Vec<u32> {
    let mut rest: VecDeque<&[u8]> = pieces.iter().map(|piece| &piece[..]).collect();
    let length: usize = pieces.iter().map(Bytes::len).sum();
    let (mut start, end) = (offset, offset + length as u32);
    let mut sums = Vec::with_capacity(length.div_ceil(CHUNK_SIZE as usize) + 1);
    while start < end {
        let stop = next_chunk(start).min(end);
        let bytes = take(&mut rest, (stop - start) as usize);
        let is_chunk = start.is_multiple_of(CHUNK_SIZE) && stop == next_chunk(start).min(block);
        let held = held.filter(|_| is_chunk);
        let held = held.and_then(|held| held.get((start / CHUNK_SIZE) as usize));
        sums.push(held.map_or_else(|| chunk_sum(&page_sums(&bytes)), |sum| *sum));
        start = stop;
    }
    sums
}

/// Whether bytes that begin at `offset` of a block have these checksums.
pub fn have_checksums(data: &[u8], offset: u32, sums: &[u32]) -> bool {
    let first = (next_chunk(offset) - offset) as usize;
    let (first, chunks) = data.split_at(first.min(data.len()));
    let chunks = chunks.chunks(CHUNK_SIZE as usize);
    let pieces = Some(first).filter(|first| !first.is_empty()).into_iter();
    pieces
        .chain(chunks)
        .map(chunk_sum_of)
        .eq(sums.iter().copied())
}

/// Where the chunk behind the one of `at` begins.
fn next_chunk(at: u32) -> u32 {
    (at / CHUNK_SIZE + 1) * CHUNK_SIZE
}

/// The next `length` bytes.
fn take<'a>(rest: &mut VecDeque<&'a [u8]>, mut length: usize) -> Vec<&'a [u8]> {
    let mut taken = Vec::with_capacity(1);
    while length > 0
        && let Some(piece) = rest.pop_front()
    {
        let (now, later) = piece.split_at(length.min(piece.len()));
        if !later.is_empty() {
            rest.push_front(later);
        }
        length -= now.len();
        taken.push(now);
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at % 251) as u8).collect()
    }

    #[test]
    fn any_part_of_a_block_in_any_pieces_is_told_from_a_damaged_one() {
        let block = data(200_000);
        let held = Checksums::of_data(&block);
        for (start, end) in [
            (0, 200_000),
            (0, 65_536),
            (65_536, 200_000),
            (5, 9),
            (4096, 70_000),
            (131_071, 131_073),
            (196_608, 200_000),
        ] {
            let bytes = Bytes::copy_from_slice(&block[start..end]);
            let cut = bytes.len() / 3;
            let pieces = [bytes.slice(..cut), bytes.slice(cut..)];
            let sums = checksums(&pieces, start as u32, 200_000, None);
            let reused = checksums(&pieces, start as u32, 200_000, Some(&held));
            assert_eq!(sums, reused, "{start}..{end}");
            assert!(
                have_checksums(&bytes, start as u32, &sums),
                "{start}..{end}"
            );
            let mut damaged = bytes.to_vec();
            *damaged.last_mut().unwrap() ^= 4;
            assert!(!have_checksums(&damaged, start as u32, &sums));
            assert!(!have_checksums(&bytes[1..], start as u32 + 1, &sums));
        }
    }

    #[test]
    fn what_was_damaged_in_a_tier_does_not_have_the_checksum_that_is_held() {
        let mut block = data(100_000);
        let held = Checksums::of_data(&block);
        block[70_000] ^= 1;
        let bytes = Bytes::from(block);
        let sums = checksums(std::slice::from_ref(&bytes), 0, 100_000, Some(&held));
        assert!(!have_checksums(&bytes, 0, &sums));
    }
}
