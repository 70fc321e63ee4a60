//! What is known of the bytes of big objects: the checksums of their blocks, as they were fetched, against the origin's.
//!
//! An object's checksum tells that bytes are wrong, not which. So all blocks of a part that does not fit are dropped and
//! fetched again, and what each fetch has brought is remembered: as soon as one of the combinations fits, it is known
//! which bytes of each block are right. That the same bytes came twice proves nothing.
//!
//! Invariant: a piece of a block counts as right only as a member of a combination that has the origin's checksum.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use weir_core::{BLOCK_SIZE, BlockKey};
use weir_origin::{CrcKind, ObjectChecksum, Shift};

/// Objects and pieces of their blocks at most; those that were used least recently are forgotten, some at a time. A block of
/// one piece takes some 150 bytes.
const MAX_OBJECTS: usize = 16 << 10;
const MAX_PIECES: usize = 64 << 10;
/// What is kept of a full table.
const KEEP: (usize, usize) = (7, 8);
/// How often a part may be wrong before its object is given up.
const MAX_ROUNDS: u32 = 10;
/// Fetches of a block that are remembered, and combinations that are tried. So many are few enough that 32 bits hardly ever
/// fit by chance.
const MAX_SEEN: usize = 4;
const MAX_COMBINATIONS: usize = 1024;
/// Pieces of all combinations together: some 10 ms.
const MAX_JOINED: usize = 64 << 10;

/// The checksums of a block's pieces: a block is cut where parts of its object begin.
pub(crate) type Sums = Box<[u64]>;

/// The checksums of a block of an object whose bytes are these pieces, wherever they are cut.
pub(crate) fn sums_of(checksum: &ObjectChecksum, block: Range<u64>, data: &[bytes::Bytes]) -> Sums {
    let mut rest = data.iter().map(|piece| &piece[..]).collect::<Vec<_>>();
    rest.reverse();
    let sums = checksum.cut(block).map(|piece| {
        let mut missing = (piece.end - piece.start) as usize;
        let mut taken = Vec::with_capacity(1);
        while missing > 0
            && let Some(next) = rest.pop()
        {
            let (now, later) = next.split_at(missing.min(next.len()));
            if !later.is_empty() {
                rest.push(later);
            }
            missing -= now.len();
            taken.push(now);
        }
        checksum.kind().of(taken)
    });
    sums.collect()
}

/// What follows from the checksums of a block.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Blocks whose bytes are wrong, or may be.
    pub(crate) drop: Vec<u32>,
    /// Checksums that did not fit.
    pub(crate) mismatches: u64,
    /// All of the object is verified, by this block.
    pub(crate) complete: bool,
    /// It was wrong too often.
    pub(crate) give_up: bool,
    /// What the kernel holds of the object may be wrong.
    pub(crate) stale_pages: bool,
}

/// All objects.
#[derive(Debug, Default)]
pub(crate) struct Table {
    objects: HashMap<BlockKey, Known>,
    /// Those of all objects.
    pieces: usize,
    clock: u64,
}

#[derive(Debug)]
struct Known {
    checksum: Arc<ObjectChecksum>,
    size: u64,
    blocks: BTreeMap<u32, Fetched>,
    /// Of all these blocks.
    pieces: usize,
    /// Parts that are not verified yet.
    open: usize,
    /// How often a part was wrong, since it was right.
    rounds: BTreeMap<usize, u32>,
    /// Readers may have got bytes that were wrong or not looked at.
    doubtful: bool,
    used: u64,
}

#[derive(Debug)]
struct Fetched {
    /// Of what was fetched last and not dropped.
    held: Option<Sums>,
    /// Of what was ever fetched, while it is not known to be right.
    seen: Vec<Sums>,
    /// Of the pieces that are verified.
    right: Box<[Option<u64>]>,
}

impl Table {
    /// Adds the checksums of a block of the object `id` that was just fetched.
    pub(crate) fn add(
        &mut self,
        id: BlockKey,
        checksum: &Arc<ObjectChecksum>,
        size: u64,
        index: u32,
        sums: Sums,
    ) -> Verdict {
        self.clock += 1;
        let known = self.objects.entry(id).or_insert_with(|| Known {
            checksum: checksum.clone(),
            size,
            blocks: BTreeMap::new(),
            pieces: 0,
            open: checksum.parts().len(),
            rounds: BTreeMap::new(),
            doubtful: false,
            used: 0,
        });
        known.used = self.clock;
        let before = known.pieces;
        let verdict = known.add(index, sums);
        self.pieces += known.pieces - before;
        self.make_room();
        verdict
    }

    /// A block of the object was given out without its checksum. Gives whether it is to be taken from the kernel now, or
    /// else once its object is verified.
    pub(crate) fn missed(&mut self, id: &BlockKey) -> bool {
        let known = self.objects.get_mut(id);
        known.is_some_and(|known| {
            known.doubtful = known.open > 0;
            known.open == 0
        })
    }

    /// The same of all objects that are not verified yet.
    pub(crate) fn missed_some(&mut self) {
        let known = self.objects.values_mut();
        known.for_each(|known| known.doubtful |= known.open > 0);
    }

    fn make_room(&mut self) {
        if self.objects.len() <= MAX_OBJECTS && self.pieces <= MAX_PIECES {
            return;
        }
        let mut by_use: Vec<_> = self.objects.iter().map(|(id, k)| (k.used, *id)).collect();
        by_use.sort_unstable();
        let (part, of) = KEEP;
        // The one that was used last stays.
        for (_, id) in &by_use[..by_use.len() - 1] {
            let few = self.objects.len() <= MAX_OBJECTS / of * part;
            if few && self.pieces <= MAX_PIECES / of * part {
                return;
            }
            if let Some(known) = self.objects.remove(id) {
                self.pieces -= known.pieces;
            }
        }
    }
}

/// Whether so big an object can be verified.
pub(crate) fn is_small_enough(size: u64) -> bool {
    size.div_ceil(BLOCK_SIZE) <= MAX_PIECES as u64 / 2
}

impl Known {
    fn range(&self, index: u32) -> Range<u64> {
        let start = u64::from(index) * BLOCK_SIZE;
        start..(start + BLOCK_SIZE).min(self.size)
    }

    /// The blocks of a part.
    fn blocks_of(&self, part: usize) -> Range<u32> {
        let range = self.checksum.range(part);
        (range.start / BLOCK_SIZE) as u32..range.end.div_ceil(BLOCK_SIZE) as u32
    }

    fn add(&mut self, index: u32, sums: Sums) -> Verdict {
        let range = self.range(index);
        let parts = self.checksum.parts_of(&range);
        let mut verdict = Verdict::default();
        if range.is_empty() || sums.len() != parts.len() {
            return verdict; // of another object, or of another version of Weir
        }
        let block = self.blocks.entry(index).or_insert_with(|| {
            self.pieces += parts.len();
            Fetched {
                held: None,
                seen: Vec::new(),
                right: vec![None; parts.len()].into(),
            }
        });
        let differs = |(right, sum): (&Option<u64>, &u64)| right.is_some_and(|right| right != *sum);
        if let Some(wrong) = block.right.iter().zip(&sums).position(differs) {
            block.held = None;
            verdict.drop.push(index);
            self.wrong(parts.start + wrong, &mut verdict);
            return verdict;
        }
        if block.right.iter().all(Option::is_some) {
            parts.for_each(|part| {
                self.rounds.remove(&part);
            });
            return verdict;
        }
        if !block.seen.contains(&sums) {
            if block.seen.len() == MAX_SEEN {
                block.seen.remove(0);
            }
            block.seen.push(sums.clone());
        }
        block.held = Some(sums);
        for part in parts {
            self.check(part, &mut verdict);
        }
        verdict.drop.sort_unstable();
        verdict.drop.dedup();
        verdict
    }

    /// Compares a part with the origin's checksum, if all of it is known and it is not verified.
    fn check(&mut self, part: usize, verdict: &mut Verdict) {
        let all = self.blocks_of(part);
        // Mostly blocks come in order: what is missing is found soonest from the end.
        let is_held = |index| self.blocks.get(&index).is_some_and(|b| b.held.is_some());
        if !all.clone().rev().all(is_held) {
            return;
        }
        let mut pieces: Vec<Piece> = Vec::with_capacity(all.len());
        let kind = self.checksum.kind();
        for index in all.clone() {
            let range = self.range(index);
            let place = part - self.checksum.parts_of(&range).start;
            let Some(block) = self.blocks.get(&index) else {
                return;
            };
            let Some(held) = &block.held else { return };
            if block.right[place].is_some() {
                return; // it was verified already
            }
            let others = block.seen.iter().rev().map(|seen| seen[place]);
            let mut values = vec![held[place]];
            others.for_each(|value| {
                if !values.contains(&value) {
                    values.push(value);
                }
            });
            let own = self.checksum.range(part);
            let length = range.end.min(own.end) - range.start.max(own.start);
            // Nearly all have the same length.
            let alike = pieces.last().filter(|piece| piece.length == length);
            let shift = alike.map_or_else(|| kind.shift(length), |piece| piece.shift);
            pieces.push(Piece {
                place,
                length,
                shift,
                values,
            });
        }
        let value = self.checksum.parts()[part].value;
        let Some(right) = solve(kind, &pieces, value) else {
            for index in all {
                if let Some(block) = self.blocks.get_mut(&index) {
                    block.held = None;
                    verdict.drop.push(index);
                }
            }
            return self.wrong(part, verdict);
        };
        let mut is_wrong = false;
        for ((index, piece), right) in all.zip(&pieces).zip(right) {
            let Some(block) = self.blocks.get_mut(&index) else {
                continue;
            };
            block.right[piece.place] = Some(right);
            if piece.values[0] != right {
                block.held = None;
                verdict.drop.push(index);
                is_wrong = true;
            }
            block.seen.retain(|seen| seen[piece.place] == right);
            if block.right.iter().all(Option::is_some) {
                block.seen = Vec::new();
            }
        }
        self.rounds.remove(&part);
        if is_wrong {
            self.wrong(part, verdict);
        }
        self.open -= 1;
        verdict.complete = self.open == 0;
        verdict.stale_pages |= self.doubtful;
        self.doubtful &= self.open > 0;
    }

    fn wrong(&mut self, part: usize, verdict: &mut Verdict) {
        verdict.mismatches += 1;
        verdict.stale_pages = true;
        self.doubtful = self.open > 0;
        let rounds = self.rounds.entry(part).or_default();
        *rounds += 1;
        if *rounds >= MAX_ROUNDS {
            // When it is tried again later, a single mismatch is enough.
            *rounds -= 1;
            verdict.give_up = true;
        }
    }
}

/// A piece of a part, with what it may be: first what is held.
struct Piece {
    /// Its number in its block.
    place: usize,
    length: u64,
    shift: Shift,
    values: Vec<u64>,
}

/// Which of its values each piece must have, so that all have `wanted`. What is held is tried first; of several others
/// that fit, none is taken.
fn solve(kind: CrcKind, pieces: &[Piece], wanted: u64) -> Option<Vec<u64>> {
    let join = |first: Option<u64>, piece: &Piece, value: u64| match first {
        None => value,
        Some(first) => kind.combine(first, piece.shift, value),
    };
    let of_held = pieces.iter().fold(None, |first, piece| {
        Some(join(first, piece, piece.values[0]))
    });
    if of_held == Some(wanted) {
        return Some(pieces.iter().map(|piece| piece.values[0]).collect());
    }
    let combinations = pieces
        .iter()
        .try_fold(1_usize, |all, piece| all.checked_mul(piece.values.len()));
    let combinations = combinations.filter(|all| (2..=MAX_COMBINATIONS).contains(all))?;
    if combinations * pieces.len() > MAX_JOINED {
        return None;
    }
    let mut choices = (1..combinations).filter_map(|number| {
        let mut number = number;
        let choice: Vec<u64> = pieces
            .iter()
            .map(|piece| {
                let value = piece.values[number % piece.values.len()];
                number /= piece.values.len();
                value
            })
            .collect();
        let joined = pieces
            .iter()
            .zip(&choice)
            .fold(None, |first, (piece, value)| {
                Some(join(first, piece, *value))
            });
        (joined == Some(wanted)).then_some(choice)
    });
    let found = choices.next()?;
    choices.next().is_none().then_some(found)
}

#[cfg(test)]
#[path = "table/tests.rs"]
mod tests;
