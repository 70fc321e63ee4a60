//! The table of a comparison.

use std::fmt::Write as _;

use super::spread::{Spread, Verdict};
use super::{EARLIER, NOW};
use crate::report::Section;
use crate::stats::median;
use crate::table::Row;

/// A section as Markdown, with the spread of each ratio.
pub fn markdown(section: &Section) -> String {
    let mut text = format!("## {}\n\n{}\n\n", section.title, section.conditions);
    text += "| row | earlier | now | now / earlier | its 95 % interval | lowest and highest | CPU s/GiB | verdict |\n";
    text += "|---|---|---|---|---|---|---|---|\n";
    for row in &section.table.rows {
        if let Some(line) = line(row) {
            let _ = writeln!(text, "{line}");
        }
    }
    text += "\nValues are medians. The interval is that of the true median of the pairs' ratios, by their order alone; a row is slower or faster if it lies on one side of 1.\n";
    for note in &section.notes {
        let _ = writeln!(text, "{note}");
    }
    text
}

fn line(row: &Row) -> Option<String> {
    let cell = |system: &str| row.cells.iter().find(|cell| cell.system == system);
    let (earlier, now) = (cell(EARLIER)?, cell(NOW)?);
    let spread = Spread::of(&now.ratios)?;
    let lowest = now.ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = now.ratios.iter().copied().fold(0.0, f64::max);
    let verdict = match spread.verdict() {
        Verdict::Faster => "faster",
        Verdict::Slower => "**slower**",
        Verdict::Same => "the same",
        Verdict::Unknown => "too few pairs",
    };
    let cpu = |cell: &crate::table::Cell| median(&cell.cpu_seconds_per_gib);
    Some(format!(
        "| {}, {} | {:.0} | {:.0} | {:.3} | {:.3} to {:.3} | {:.2} to {:.2} | {:.2} -> {:.2} | {verdict} |",
        row.goal.name,
        row.goal.unit.symbol(),
        earlier.value(),
        now.value(),
        spread.median,
        spread.low,
        spread.high,
        lowest,
        highest,
        cpu(earlier),
        cpu(now),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Goal, Table, Unit};

    #[test]
    fn a_row_has_the_ratio_its_spread_and_what_that_means() {
        let mut table = Table::default();
        let goal = Goal::new("first epoch", Unit::MegabytesPerSecond).beside(EARLIER);
        for pair in 0..15 {
            let rate = 100.0 + f64::from(pair);
            table.row(&goal).note(EARLIER, rate, None);
            let value = rate * (0.9 + 0.001 * f64::from(pair));
            table.row(&goal).note(NOW, value, Some(rate));
        }
        let section = Section {
            suite: "pairs-small".into(),
            title: "t".into(),
            conditions: "c".into(),
            notes: vec!["n".into()],
            table,
        };
        let text = markdown(&section);
        let line = "| first epoch, MB/s | 107 | 97 | 0.907 | 0.903 to 0.911 | 0.90 to 0.91 | 0.00 -> 0.00 | **slower** |";
        assert!(text.contains(line), "{text}");
    }
}
