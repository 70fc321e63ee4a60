//! The median of some ratios, and how sure it is.

use crate::stats::median;

/// How often an interval may miss the true median.
const ERROR: f64 = 0.05;

/// The median of a sample, and the interval in which the true one lies, by the order of the values alone: it needs
/// no assumption on how they are spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    /// There are too few values for an interval; it is the whole of their range.
    pub(super) too_few: bool,
}

/// What a ratio of speeds says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Faster,
    Slower,
    Same,
    Unknown,
}

impl Spread {
    /// Of some values; `None` when there are none.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let cut = outside(sorted.len());
        Some(Self {
            median: median(values),
            low: *sorted.get(cut)?,
            high: *sorted.get(sorted.len().checked_sub(1 + cut)?)?,
            too_few: 2.0 / 2_f64.powi(sorted.len() as i32) > ERROR,
        })
    }

    pub(super) fn verdict(self) -> Verdict {
        if self.too_few {
            Verdict::Unknown
        } else if self.high < 1.0 {
            Verdict::Slower
        } else if self.low > 1.0 {
            Verdict::Faster
        } else {
            Verdict::Same
        }
    }
}

/// How many of `count` values lie outside of the interval on either side: as many as leave the chance that the true
/// median is there too at most [`ERROR`]. Few values give the whole of their range.
fn outside(count: usize) -> usize {
    // Each value is above or below the true median as a coin falls.
    let mut ways = 1.0;
    let mut tail = 0.0;
    let all = 2_f64.powi(count as i32);
    for below in 0..count / 2 {
        tail += ways;
        if 2.0 * tail / all > ERROR {
            return below.saturating_sub(1);
        }
        ways = ways * (count - below) as f64 / (below + 1) as f64;
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_15_values_is_from_the_4th_to_the_12th() {
        let values: Vec<f64> = (1..=15).map(f64::from).collect();
        let spread = Spread::of(&values).unwrap();
        assert_eq!(
            spread,
            Spread {
                median: 8.0,
                low: 4.0,
                high: 12.0,
                too_few: false,
            }
        );
        assert_eq!(
            (outside(1), outside(5), outside(6), outside(20)),
            (0, 0, 0, 5)
        );
        assert_eq!(Spread::of(&[]), None);
        assert!((Spread::of(&[2.0]).unwrap().high - 2.0).abs() < 1e-9);
    }

    #[test]
    fn only_an_interval_on_one_side_of_1_says_something() {
        let of = |low, high, too_few| {
            let spread = Spread {
                median: 1.0,
                low,
                high,
                too_few,
            };
            spread.verdict()
        };
        assert_eq!(of(0.9, 0.99, false), Verdict::Slower);
        assert_eq!(of(0.9, 1.01, false), Verdict::Same);
        assert_eq!(of(1.01, 1.2, false), Verdict::Faster);
        assert_eq!(of(1.01, 1.2, true), Verdict::Unknown);
        let few = |count: usize| Spread::of(&vec![1.0; count]).unwrap().too_few;
        assert_eq!([5, 6].map(few), [true, false]);
    }
}
