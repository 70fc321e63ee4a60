//! New inputs from known ones.

use rand::Rng;
use rand::rngs::SmallRng;

/// Numbers at which parsers fail: ends of ranges, signs, and lengths that are not there.
const NUMBERS: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_ffff,
];
/// Most changes of one input.
const MAX_CHANGES: u32 = 4;
/// Longest piece that is moved, copied or cut out.
const MAX_PIECE: usize = 256;

#[derive(Default)]
pub(crate) struct Mutator {
    pub(crate) words: Vec<&'static [u8]>,
    pub(crate) repair: Option<fn(&mut [u8])>,
}

impl Mutator {
    /// One of `corpus` with some changes.
    pub(crate) fn mutated(&self, corpus: &[Vec<u8>], random: &mut SmallRng) -> Vec<u8> {
        let mut input = corpus[random.random_range(0..corpus.len())].clone();
        for _ in 0..1 << random.random_range(0..=MAX_CHANGES.ilog2()) {
            self.change(&mut input, corpus, random);
        }
        if let Some(repair) = self.repair
            && random.random_bool(0.5)
        {
            repair(&mut input);
        }
        input
    }

    fn change(&self, input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut SmallRng) {
        let at = random.random_range(0..=input.len());
        let length = random.random_range(1..=MAX_PIECE);
        let end = (at + length).min(input.len());
        match random.random_range(0..10) {
            0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
            1 if at < input.len() => input[at] = random.random(),
            2 => drop(input.drain(at..end)),
            3 => {
                let piece = input[at..end].to_vec();
                let to = random.random_range(0..=input.len());
                input.splice(to..to, piece);
            }
            4 => input.truncate(at),
            5 | 6 if !self.words.is_empty() => {
                let word = self.words[random.random_range(0..self.words.len())];
                let over = if random.random() { word.len() } else { 0 };
                let end = (at + over).min(input.len());
                input.splice(at..end, word.iter().copied());
            }
            7 => {
                let width = [1, 2, 4, 8][random.random_range(0..4)];
                let near = random.random_range(0..3_u64);
                let number = NUMBERS[random.random_range(0..NUMBERS.len())];
                let number = number.wrapping_add(near).wrapping_sub(1);
                let end = (at + width).min(input.len());
                input.splice(at..end, number.to_le_bytes()[..width].iter().copied());
            }
            8 => {
                // The other input's bytes from there on.
                let other = &corpus[random.random_range(0..corpus.len())];
                input.truncate(at);
                input.extend_from_slice(&other[at.min(other.len())..]);
            }
            _ => {
                let bytes = (0..random.random_range(1..8)).map(|_| random.random::<u8>());
                let bytes: Vec<u8> = bytes.collect();
                input.splice(at..at, bytes);
            }
        }
    }
}
