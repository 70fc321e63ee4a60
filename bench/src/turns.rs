//! Reads of two directories with the same files in turns, so that a ratio compares neighbours in time.
//!
//! One pass over a warm kernel cache takes a fraction of a second, and whose pages came first into an empty cache is
//! copied from up to a fifth more slowly, native or not. So passes alternate, and both orders of filling the cache
//! are measured and averaged.

use std::path::{Path, PathBuf};

use crate::kernel::drop_caches;
use crate::readers::{Pass, read_files, read_files_at};
use crate::stats::median;
use crate::usage::{Meter, Usage};

/// Where the bytes of a reader's buffer lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffers {
    /// As malloc gives them.
    Malloc,
    /// At a page's start, where the kernel copies faster to.
    Aligned,
}

/// A directory, and the processes behind it.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    /// The directory.
    pub root: &'a Path,
    /// Its processes; none for the native file system.
    pub pids: &'a [u32],
}

/// What is read.
pub struct Turns<'a> {
    /// Files below either directory.
    pub files: &'a [PathBuf],
    /// Readers of the warm passes, one kind of pass for each number. Cold ones are read with the last number in
    /// both orders, and with the others in one.
    pub threads: &'a [usize],
    /// Passes over the warm cache of each kind and order.
    pub pairs: u64,
    /// Whether page-aligned buffers are measured too.
    pub aligned: bool,
    /// Decides the order of reads.
    pub seed: u64,
    /// Gives a count that is looked at before and after the warm passes.
    pub counter: &'a dyn Fn() -> anyhow::Result<f64>,
}

/// What one of the sides took.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Median of its passes.
    pub seconds: f64,
    /// What its processes cost in all passes.
    pub usage: Usage,
    /// Bytes of all passes.
    pub bytes: u64,
}

/// A kind of pass, and what it took on either side.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// Readers.
    pub threads: usize,
    /// Their buffers.
    pub buffers: Buffers,
    /// Whether the kernel's caches were dropped before.
    pub cold: bool,
    /// The two sides.
    pub sides: [Timing; 2],
}

/// The passes of one side in one kind.
#[derive(Default)]
struct Series {
    /// By the order in which the cache was filled.
    seconds: [Vec<f64>; 2],
    usage: Usage,
    bytes: u64,
}

impl Series {
    fn add(&mut self, order: usize, pass: Pass, usage: Usage) {
        self.seconds[order].push(pass.seconds);
        self.usage = self.usage.and(usage);
        self.bytes += pass.bytes;
    }

    /// The average of both orders' medians.
    fn timing(&self) -> Timing {
        let orders = self.seconds.iter().filter(|seconds| !seconds.is_empty());
        let medians: Vec<f64> = orders.map(|seconds| median(seconds)).collect();
        Timing {
            seconds: medians.iter().sum::<f64>() / medians.len().max(1) as f64,
            usage: self.usage,
            bytes: self.bytes,
        }
    }
}

impl Turns<'_> {
    /// Reads both sides, cold and warm. Gives also what the counter counted meanwhile, while warm.
    pub fn run(&self, sides: [Side<'_>; 2]) -> anyhow::Result<(Vec<Taken>, f64)> {
        let mut counted = 0.0;
        let mut kinds = Vec::new();
        for &threads in self.threads {
            kinds.push((threads, Buffers::Malloc, true));
            kinds.push((threads, Buffers::Malloc, false));
            if self.aligned {
                kinds.push((threads, Buffers::Aligned, false));
            }
        }
        let mut series: Vec<[Series; 2]> = kinds.iter().map(|_| Default::default()).collect();
        let most = self.threads.last().copied().unwrap_or(1);
        for (number, &(threads, buffers, cold)) in kinds.iter().enumerate() {
            if cold && threads != most {
                drop_caches()?;
                self.both(sides, 0, threads, buffers, 0, &mut series[number])?;
            }
        }
        for order in [0, 1] {
            drop_caches()?;
            for (number, &(threads, buffers, cold)) in kinds.iter().enumerate() {
                if cold && threads == most {
                    self.both(sides, order, threads, buffers, 1, &mut series[number])?;
                }
            }
            let before = (self.counter)()?;
            for pair in 0..self.pairs {
                for (number, &(threads, buffers, cold)) in kinds.iter().enumerate() {
                    if !cold {
                        self.both(
                            sides,
                            order,
                            threads,
                            buffers,
                            2 + pair,
                            &mut series[number],
                        )?;
                    }
                }
            }
            counted += (self.counter)()? - before;
        }
        let taken = kinds.into_iter().zip(series);
        let taken = taken.map(|((threads, buffers, cold), sides)| Taken {
            threads,
            buffers,
            cold,
            sides: sides.map(|side| side.timing()),
        });
        Ok((taken.collect(), counted))
    }

    /// One pass over each side: the first one first, or last in the other order.
    fn both(
        &self,
        sides: [Side<'_>; 2],
        order: usize,
        threads: usize,
        buffers: Buffers,
        seed: u64,
        series: &mut [Series; 2],
    ) -> anyhow::Result<()> {
        let seed = self.seed + 16 * order as u64 + seed;
        for number in [order, 1 - order] {
            let side = sides[number];
            let meter = Meter::start(side.pids);
            let pass = match buffers {
                Buffers::Malloc => read_files(side.root, self.files, seed, threads),
                Buffers::Aligned => read_files_at(side.root, self.files, seed, threads, 0),
            }?;
            series[number].add(order, pass, meter.stop());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_orders_count_the_same_however_many_passes_they_have() {
        let mut series = Series::default();
        for (order, seconds) in [(0, 1.0), (0, 1.0), (0, 1.0), (1, 3.0)] {
            let pass = Pass {
                files: 1,
                bytes: 10,
                seconds,
            };
            series.add(order, pass, Usage::default());
        }
        let timing = series.timing();
        assert!((timing.seconds - 2.0).abs() < 1e-9);
        assert_eq!(timing.bytes, 40);
    }
}
