//! What is wrong with a device, for who looks at it later: a trouble is told for a while after it was last seen.

use std::time::{Duration, Instant};

use weir_segment::SegmentStats;

/// How long a trouble is told.
const TOLD: Duration = Duration::from_mins(10);
/// A device that has taken up no read for so long, and has some, hangs.
const HANGS_AFTER: Duration = Duration::from_secs(5);

/// Something that is wrong with a device, the worst first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Trouble {
    /// Reads do not end.
    Hangs,
    /// The device could not read blocks.
    ReadsFail,
    /// The device could not write blocks.
    WritesFail,
    /// Blocks or files were not what had been written.
    Damaged,
    /// Blocks found no room.
    Full,
}

impl Trouble {
    /// In the order in which they are told.
    const ALL: [Self; 5] = [
        Self::Hangs,
        Self::ReadsFail,
        Self::WritesFail,
        Self::Damaged,
        Self::Full,
    ];

    /// As `weir status` shows it.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Hangs => "hangs",
            Self::ReadsFail => "reads fail",
            Self::WritesFail => "writes fail",
            Self::Damaged => "damaged",
            Self::Full => "full",
        }
    }

    /// How often it was seen since the store was opened.
    fn count(self, stats: &SegmentStats) -> u64 {
        match self {
            Self::Hangs => 0,
            Self::ReadsFail => stats.unreadable_blocks,
            Self::WritesFail => stats.failed_writes,
            Self::Damaged => stats.corrupt_blocks + stats.lost_segments,
            Self::Full => stats.refused_blocks,
        }
    }
}

/// What was seen of one device.
#[derive(Debug, Default)]
pub(crate) struct Health {
    counts: [u64; Trouble::ALL.len()],
    seen: [Option<Instant>; Trouble::ALL.len()],
    /// Reads that had been taken up at the last look, and since when no other was, while some are under way.
    taken: u64,
    still: Option<Instant>,
}

impl Health {
    /// Looks at a device: its counters, and how many of its reads are under way and were taken up. Gives the worst that was seen.
    pub(crate) fn look(
        &mut self,
        stats: &SegmentStats,
        (under_way, taken): (usize, u64),
        now: Instant,
    ) -> Option<Trouble> {
        if under_way == 0 || taken != self.taken {
            self.still = None;
        }
        self.taken = taken;
        if under_way > 0 {
            let still = *self.still.get_or_insert(now);
            if now.duration_since(still) >= HANGS_AFTER {
                self.seen[0] = Some(now);
            }
        }
        for (place, trouble) in Trouble::ALL.into_iter().enumerate() {
            let count = trouble.count(stats);
            if count > self.counts[place] {
                self.seen[place] = Some(now);
            }
            self.counts[place] = count;
        }
        let is_told = |seen: &Option<Instant>| seen.is_some_and(|at| now.duration_since(at) < TOLD);
        let worst = self.seen.iter().position(is_told)?;
        Some(Trouble::ALL[worst])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_is_told_for_a_while() {
        let mut health = Health::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut stats = SegmentStats::default();
        assert_eq!(health.look(&stats, (0, 0), at(0)), None);
        stats.refused_blocks = 3;
        assert_eq!(health.look(&stats, (0, 0), at(1)), Some(Trouble::Full));
        stats.unreadable_blocks = 1;
        assert_eq!(
            health.look(&stats, (0, 0), at(300)),
            Some(Trouble::ReadsFail)
        );
        stats.refused_blocks = 4;
        assert_eq!(
            health.look(&stats, (0, 0), at(800)),
            Some(Trouble::ReadsFail)
        );
        assert_eq!(health.look(&stats, (0, 0), at(950)), Some(Trouble::Full));
        assert_eq!(health.look(&stats, (0, 0), at(1400)), None);
    }

    #[test]
    fn a_device_hangs_that_ends_none_of_its_reads() {
        let mut health = Health::default();
        let start = Instant::now();
        let mut look = |seconds, reads| {
            let stats = SegmentStats::default();
            health.look(&stats, reads, start + Duration::from_secs(seconds))
        };
        // A busy one ends some.
        for second in 0..20 {
            assert_eq!(look(second, (8, second)), None);
        }
        assert_eq!(look(21, (8, 19)), None);
        assert_eq!(look(27, (8, 19)), Some(Trouble::Hangs));
        assert_eq!(
            look(30, (0, 27)),
            Some(Trouble::Hangs),
            "it has just been seen"
        );
        assert_eq!(look(700, (0, 27)), None);
    }
}
