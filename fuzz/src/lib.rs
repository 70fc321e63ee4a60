//! Mutated inputs for parsers, as ordinary tests of the crate that a parser is in.
//!
//! Inputs come from a corpus of good ones. One whose outcome is new joins the corpus, so that what follows goes deeper.
//! No input may panic, hang, or take more memory than the target allows. All is decided by a seed: the same seed gives
//! the same inputs in the same order.
//!
//! | variable | default | meaning |
//! |---|---|---|
//! | `WEIR_FUZZ_SECONDS` | 1 | how long each target runs |
//! | `WEIR_FUZZ_SEED` | 1 | where the inputs begin |
//! | `WEIR_FUZZ_INPUT` | | a file with the one input to try, such as a failed run has left |
//!
//! This crate must not know what the inputs mean, nor any parser.
//!
//! A test crate that uses this counts its memory with `#[global_allocator] static COUNTING: weir_fuzz::Counting`.

mod memory;
mod mutate;
mod watch;

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::SmallRng;

pub use memory::Counting;

use mutate::Mutator;
use watch::Watch;

/// Inputs that are kept to make others of.
const MAX_CORPUS: usize = 512;
/// Longest input, unless a target has longer seeds.
const MAX_INPUT: usize = 64 << 10;
/// Longest time for one input. Generous: other tests run on the same cores.
const INPUT_DEADLINE: Duration = Duration::from_secs(20);
/// Bytes of a failed input that its message shows.
const EXCERPT: usize = 256;
/// Memory that a target may take beside a multiple of its input, in bytes, unless it says otherwise.
const MEMORY: usize = 8 << 20;
const MEMORY_PER_BYTE: usize = 64;

/// A parser under test.
pub struct Target {
    name: &'static str,
    seeds: Vec<Vec<u8>>,
    mutator: Mutator,
    memory: usize,
}

impl Target {
    /// A target without seeds.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            seeds: Vec::new(),
            mutator: Mutator::default(),
            memory: MEMORY,
        }
    }

    /// Adds a good input.
    pub fn seed(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.seeds.push(input.into());
        self
    }

    /// Words that mean something to the parser.
    pub fn words(mut self, words: &[&'static str]) -> Self {
        self.mutator
            .words
            .extend(words.iter().map(|word| word.as_bytes()));
        self
    }

    /// Repairs what a mutation breaks, such as a checksum, so that inputs come past it. Every second input is left as
    /// it is.
    pub fn repair(mut self, repair: fn(&mut [u8])) -> Self {
        self.mutator.repair = Some(repair);
        self
    }

    /// Most memory that an input may take beside a multiple of its length, in bytes.
    pub fn memory(self, memory: usize) -> Self {
        Self { memory, ..self }
    }

    /// Runs `parse` with inputs until the time is up. What it returns tells outcomes apart, such as the kind of an error
    /// or the number of things found; it panics where an outcome is wrong.
    ///
    /// # Panics
    /// When an input fails, after the input was kept in a file that the message names.
    pub fn run<O: Hash>(self, mut parse: impl FnMut(&[u8]) -> O) {
        let watch = Watch::start(self.name, INPUT_DEADLINE);
        if let Some(path) = std::env::var_os("WEIR_FUZZ_INPUT").map(PathBuf::from) {
            let input =
                std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            self.try_input(&input, &watch, &mut parse);
            return;
        }
        let time = Duration::from_secs(number("WEIR_FUZZ_SECONDS", 1));
        let seed = number("WEIR_FUZZ_SEED", 1);
        let mut random = SmallRng::seed_from_u64(seed);
        let mut outcomes = HashSet::new();
        let mut corpus = self.seeds.clone();
        corpus.push(Vec::new());
        for input in &corpus {
            outcomes.insert(self.try_input(input, &watch, &mut parse));
        }
        let longest = corpus
            .iter()
            .map(Vec::len)
            .max()
            .unwrap_or(0)
            .max(MAX_INPUT);
        let (started, mut tried) = (Instant::now(), 0_u64);
        while started.elapsed() < time {
            let mut input = self.mutator.mutated(&corpus, &mut random);
            input.truncate(longest);
            if outcomes.insert(self.try_input(&input, &watch, &mut parse)) {
                let full = corpus.len() >= MAX_CORPUS;
                if full {
                    corpus.swap_remove(self.seeds.len()); // the seeds stay
                }
                corpus.push(input);
            }
            tried += 1;
        }
        let (name, found) = (self.name, outcomes.len());
        println!("{name}: {tried} inputs of seed {seed}, {found} different outcomes");
    }

    fn try_input<O: Hash>(
        &self,
        input: &[u8],
        watch: &Watch,
        parse: &mut impl FnMut(&[u8]) -> O,
    ) -> u64 {
        watch.begin(input);
        memory::start();
        let outcome = catch_unwind(AssertUnwindSafe(|| parse(input)));
        let peak = memory::peak();
        watch.end();
        let most = self.memory + MEMORY_PER_BYTE * input.len();
        match outcome {
            Ok(outcome) if peak <= most => {
                let mut hasher = DefaultHasher::new();
                outcome.hash(&mut hasher);
                hasher.finish()
            }
            Ok(_) => self.failed(
                input,
                &format!("took {peak} bytes of memory, {most} are allowed"),
            ),
            Err(_) => self.failed(input, "panicked"),
        }
    }

    fn failed(&self, input: &[u8], what: &str) -> ! {
        let kept = keep(self.name, input);
        let seed = number("WEIR_FUZZ_SEED", 1);
        panic!(
            "{}: an input of {} bytes {what} (seed {seed}); try it again with WEIR_FUZZ_INPUT={}\n{}",
            self.name,
            input.len(),
            kept.display(),
            input[..input.len().min(EXCERPT)].escape_ascii(),
        )
    }
}

/// Writes an input to a file and gives its path.
fn keep(name: &str, input: &[u8]) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    let file = format!("weir-fuzz-{name}-{:016x}", hasher.finish());
    let path = std::env::temp_dir().join(file);
    // Without it the message has the input's beginning.
    let _ = std::fs::write(&path, input);
    path
}

fn number(variable: &str, default: u64) -> u64 {
    let value = std::env::var(variable).ok();
    value.and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static COUNTING: Counting = Counting;

    fn message(outcome: std::thread::Result<()>) -> String {
        let panic = outcome.unwrap_err();
        panic.downcast_ref::<String>().cloned().unwrap_or_default()
    }

    #[test]
    fn a_panic_deep_in_a_parser_is_found_and_its_input_kept() {
        let target = Target::new("test-panic")
            .seed(*b"key=1;")
            .words(&["key", "=", "deep"]);
        let outcome = catch_unwind(|| {
            target.run(|input| {
                let equals = input.split(|byte| *byte == b'=').count() - 1;
                assert!(equals < 4 || !input.windows(4).any(|word| word == b"deep"));
                equals
            });
        });
        let message = message(outcome);
        assert!(
            message.contains("panicked") && message.contains("deep"),
            "{message}"
        );
        let path = message.split("WEIR_FUZZ_INPUT=").nth(1).unwrap();
        let path = path.lines().next().unwrap();
        let input = std::fs::read(path).unwrap();
        assert!(input.windows(4).any(|word| word == b"deep"));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn an_input_that_takes_too_much_memory_is_found() {
        let target = Target::new("test-memory").seed(*b"1").memory(1 << 20);
        let outcome = catch_unwind(|| {
            target.run(|input| {
                let claimed = usize::from(input.first().copied().unwrap_or(0) == b'9');
                std::hint::black_box(vec![1_u8; claimed * (64 << 20)]).len()
            });
        });
        let message = message(outcome);
        assert!(message.contains("bytes of memory"), "{message}");
        let path = message.split("WEIR_FUZZ_INPUT=").nth(1).unwrap();
        std::fs::remove_file(path.lines().next().unwrap()).unwrap();
    }
}
