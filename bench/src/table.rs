//! What was measured: rows, a cell for each system, and what the row is to reach.

use serde::Serialize;

use crate::stats::median;
use crate::usage::Usage;

/// What a row's values count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// 10^6 bytes per second.
    MegabytesPerSecond,
    /// Files per second.
    FilesPerSecond,
    /// Seconds.
    Seconds,
    /// Thousandths of a second.
    Milliseconds,
    /// Millionths of a second.
    Microseconds,
    /// 2^20 bytes.
    Mebibytes,
    /// Bytes.
    Bytes,
    /// Bytes of memory for each file.
    BytesPerFile,
    /// Seconds of CPU time for each 2^30 bytes.
    CpuSecondsPerGib,
    /// A part of all.
    Share,
    /// How much of something else; less is better.
    Ratio,
    /// How many there were.
    Count,
    /// How many times another ratio.
    Times,
}

impl Unit {
    /// How it is written behind a row's name.
    pub fn symbol(self) -> &'static str {
        match self {
            Self::MegabytesPerSecond => "MB/s",
            Self::FilesPerSecond => "files/s",
            Self::Seconds => "s",
            Self::Milliseconds => "ms",
            Self::Microseconds => "µs",
            Self::Mebibytes => "MiB",
            Self::Bytes => "B",
            Self::BytesPerFile => "B/file",
            Self::CpuSecondsPerGib => "CPU s/GiB",
            Self::Share => "share",
            Self::Ratio => "ratio",
            Self::Count => "number",
            Self::Times => "times",
        }
    }

    fn more_is_better(self) -> bool {
        matches!(
            self,
            Self::MegabytesPerSecond | Self::FilesPerSecond | Self::Share | Self::Times
        )
    }
}

/// How a value is compared with the reference's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// How many times as fast.
    Speed,
    /// How many times as much.
    Cost,
}

/// What a ratio, or a value where the row has no reference, is to reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// No less than this.
    AtLeast(f64),
    /// No more than this.
    AtMost(f64),
}

impl Target {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(limit) => value >= limit,
            Self::AtMost(limit) => value <= limit,
        }
    }
}

/// What a row is about.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Goal {
    /// What was measured.
    pub name: String,
    /// What its values count.
    pub unit: Unit,
    /// The system that the others are compared with, and how.
    pub reference: Option<(&'static str, Measure)>,
    /// What Weir is to reach.
    pub target: Option<Target>,
}

impl Goal {
    /// A row that states something.
    pub fn new(name: impl Into<String>, unit: Unit) -> Self {
        Self {
            name: name.into(),
            unit,
            reference: None,
            target: None,
        }
    }

    /// As fast as `system` times something that is not promised.
    pub fn beside(mut self, system: &'static str) -> Self {
        self.reference = Some((system, Measure::Speed));
        self
    }

    /// At least `ratio` times as fast as `system`.
    pub fn as_fast(mut self, system: &'static str, ratio: f64) -> Self {
        self.reference = Some((system, Measure::Speed));
        self.target = Some(Target::AtLeast(ratio));
        self
    }

    /// At most `ratio` times what `system` takes.
    pub fn as_cheap(mut self, system: &'static str, ratio: f64) -> Self {
        self.reference = Some((system, Measure::Cost));
        self.target = Some(Target::AtMost(ratio));
        self
    }

    /// No value above `limit`.
    pub fn at_most(mut self, limit: f64) -> Self {
        self.target = Some(Target::AtMost(limit));
        self
    }

    /// No value below `limit`.
    pub fn at_least(mut self, limit: f64) -> Self {
        self.target = Some(Target::AtLeast(limit));
        self
    }
}

/// What one system did in a row.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// The system, as in the table's head.
    pub system: String,
    /// A value for each run.
    pub values: Vec<f64>,
    /// Ratios to the reference, each measured right beside the value.
    pub ratios: Vec<f64>,
    /// CPU time of the system's processes for each 2^30 bytes that were read.
    pub cpu_seconds_per_gib: Vec<f64>,
    /// Most memory that the system's processes took, in bytes.
    pub peak_bytes: u64,
}

impl Cell {
    /// The median of the values.
    pub fn value(&self) -> f64 {
        median(&self.values)
    }

    /// The median of the ratios.
    pub fn ratio(&self) -> Option<f64> {
        (!self.ratios.is_empty()).then(|| median(&self.ratios))
    }
}

/// One thing that was measured of several systems.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What it is about.
    pub goal: Goal,
    /// The systems, in the order in which they came.
    pub cells: Vec<Cell>,
}

impl Row {
    /// Notes a value of `system`. Its ratio is taken to `beside`, which was measured right before or after it.
    pub fn note(&mut self, system: &str, value: f64, beside: Option<f64>) -> &mut Cell {
        let ratio = beside
            .zip(self.goal.reference)
            .map(|(other, (_, measure))| {
                if measure == Measure::Cost || self.goal.unit.more_is_better() {
                    value / other
                } else {
                    other / value
                }
            });
        let known = self.cells.iter().position(|cell| cell.system == system);
        let number = known.unwrap_or_else(|| {
            self.cells.push(Cell {
                system: system.to_owned(),
                values: Vec::new(),
                ratios: Vec::new(),
                cpu_seconds_per_gib: Vec::new(),
                peak_bytes: 0,
            });
            self.cells.len() - 1
        });
        let cell = &mut self.cells[number];
        cell.values.push(value);
        cell.ratios.extend(ratio);
        cell
    }

    /// Whether Weir reaches the target in a cell; `None` for other systems and where nothing is promised.
    pub fn is_met(&self, cell: &Cell) -> Option<bool> {
        let target = self.goal.target.filter(|_| is_weir(&cell.system))?;
        let value = match self.goal.reference {
            Some(_) => cell.ratio()?,
            None => cell.value(),
        };
        Some(target.is_met(value))
    }
}

impl Cell {
    /// Adds what the system's processes cost while they gave `bytes`.
    pub fn cost(&mut self, usage: Usage, bytes: u64) {
        let gib = bytes as f64 / f64::from(1 << 30);
        if gib > 0.0 {
            self.cpu_seconds_per_gib.push(usage.cpu_seconds / gib);
        }
        self.peak_bytes = self.peak_bytes.max(usage.peak_bytes);
    }
}

/// Whether a system's name is one of Weir's.
pub fn is_weir(system: &str) -> bool {
    system.starts_with("Weir")
}

/// The rows of a suite.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Table {
    /// In the order in which they were first measured.
    pub rows: Vec<Row>,
}

impl Table {
    /// The row of a goal, which is made when it is new.
    pub fn row(&mut self, goal: &Goal) -> &mut Row {
        let known = self.rows.iter().position(|row| row.goal.name == goal.name);
        let number = known.unwrap_or_else(|| {
            self.rows.push(Row {
                goal: goal.clone(),
                cells: Vec::new(),
            });
            self.rows.len() - 1
        });
        &mut self.rows[number]
    }

    /// Notes one value of a system; a share is to reach `limit`, anything else not to go beyond it.
    pub fn state(&mut self, system: &str, what: &str, unit: Unit, value: f64, limit: Option<f64>) {
        let goal = Goal::new(what, unit);
        let goal = match limit {
            None => goal,
            Some(limit) if unit == Unit::Share => goal.at_least(limit),
            Some(limit) => goal.at_most(limit),
        };
        self.row(&goal).note(system, value, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_is_a_ratio_of_rates_or_an_inverse_ratio_of_times() {
        let mut table = Table::default();
        let rate = Goal::new("rate", Unit::MegabytesPerSecond).as_fast("native", 0.9);
        let cell = table.row(&rate).note("Weir", 80.0, Some(100.0)).clone();
        assert_eq!(cell.ratio(), Some(0.8));
        assert_eq!(table.row(&rate).is_met(&cell), Some(false));
        let time = Goal::new("time", Unit::Seconds).as_fast("native", 0.9);
        let cell = table.row(&time).note("Weir", 4.0, Some(5.0)).clone();
        assert_eq!(cell.ratio(), Some(1.25));
        assert_eq!(table.row(&time).is_met(&cell), Some(true));
        let cost = Goal::new("first byte", Unit::Milliseconds).as_cheap("raw client", 1.5);
        let cell = table.row(&cost).note("Weir", 4.0, Some(2.0)).clone();
        assert_eq!(table.row(&cost).is_met(&cell), Some(false));
    }

    #[test]
    fn only_weir_has_targets_and_medians_decide() {
        let mut table = Table::default();
        let goal = Goal::new("memory", Unit::Mebibytes).at_most(150.0);
        let row = table.row(&goal);
        row.note("rclone", 1.0, None);
        for value in [100.0, 140.0, 900.0] {
            row.note("Weir", value, None);
        }
        assert_eq!(row.is_met(&row.cells[0]), None);
        assert_eq!(row.is_met(&row.cells[1]), Some(true));
    }
}
