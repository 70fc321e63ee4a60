//! Tables as Markdown and JSON, put into files that hold more than this run.
//!
//! A suite's section stands between two marks. Writing it again replaces what is between them and touches nothing
//! else, so that explanations around the sections stay.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;
use serde_json::Value;

use crate::table::{Cell, Measure, Row, Table, Target, Unit, is_weir};

/// The order of columns; systems that are not named here stand behind them.
const COLUMNS: [&str; 5] = ["native", "raw client", "sendfile", "plain write", "Weir"];

/// What one suite has measured.
#[derive(Clone, Debug, Serialize)]
pub struct Section {
    /// The suite's name on the command line.
    pub suite: String,
    /// What it is about, for a heading.
    pub title: String,
    /// How it was measured: machine, server, runs.
    pub conditions: String,
    /// What is to be known beside the table.
    pub notes: Vec<String>,
    /// The figures.
    pub table: Table,
}

impl Section {
    /// As Markdown, with a line at its end.
    pub fn markdown(&self) -> String {
        let systems = self.systems();
        let mut text = format!("## {}\n\n{}\n\n", self.title, self.conditions);
        let heads = systems.iter().map(|system| format!(" {system} |"));
        let weir: Vec<&str> = systems.iter().copied().filter(|s| is_weir(s)).collect();
        let _ = writeln!(
            text,
            "| row |{} target | CPU s/GiB | peak MiB |",
            heads.collect::<String>()
        );
        let _ = writeln!(text, "|---|{}---|---|---|", "---|".repeat(systems.len()));
        for row in &self.table.rows {
            let cells = systems.iter().map(|system| {
                let cell = row.cells.iter().find(|cell| cell.system == *system);
                format!(" {} |", cell.map_or("-".to_owned(), |cell| show(row, cell)))
            });
            let _ = writeln!(
                text,
                "| {}, {} |{} {} | {} | {} |",
                row.goal.name,
                row.goal.unit.symbol(),
                cells.collect::<String>(),
                target(row),
                join(row, &weir, |cell| {
                    let cpu = crate::stats::median(&cell.cpu_seconds_per_gib);
                    (!cell.cpu_seconds_per_gib.is_empty()).then(|| format!("{cpu:.2}"))
                }),
                join(row, &weir, |cell| {
                    let peak = cell.peak_bytes as f64 / f64::from(1 << 20);
                    (cell.peak_bytes > 0).then(|| format!("{peak:.0}"))
                }),
            );
        }
        let _ = writeln!(
            text,
            "\nCPU and peak memory are those of {} in this order.",
            weir.join(" / ")
        );
        for note in &self.notes {
            let _ = writeln!(text, "{note}");
        }
        text
    }

    /// The systems that were measured, in the order of the columns.
    fn systems(&self) -> Vec<&str> {
        let mut systems: Vec<&str> = Vec::new();
        for cell in self.table.rows.iter().flat_map(|row| &row.cells) {
            if !systems.contains(&cell.system.as_str()) {
                systems.push(&cell.system);
            }
        }
        let rank = |system: &&str| {
            let known = COLUMNS.iter().position(|column| column == system);
            known.unwrap_or(COLUMNS.len()) + usize::from(known.is_none() && !is_weir(system))
        };
        systems.sort_by_key(rank);
        systems
    }
}

/// A value, and behind it the ratio with what it means for the target.
fn show(row: &Row, cell: &Cell) -> String {
    let value = number(cell.value(), row.goal.unit);
    let ratio = cell.ratio().map(|ratio| format!("{ratio:.2}x"));
    let met = row
        .is_met(cell)
        .map(|met| if met { "met" } else { "**not met**" });
    let inside: Vec<&str> = ratio.as_deref().into_iter().chain(met).collect();
    if inside.is_empty() {
        value
    } else {
        format!("{value} ({})", inside.join(", "))
    }
}

fn number(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Share => format!("{value:.3}"),
        Unit::Count => format!("{value:.0}"),
        _ if value.abs() >= 100.0 => format!("{value:.0}"),
        _ if value.abs() >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn target(row: &Row) -> String {
    let (sign, limit) = match row.goal.target {
        None => return "-".to_owned(),
        Some(Target::AtLeast(limit)) => (">=", limit),
        Some(Target::AtMost(limit)) => ("<=", limit),
    };
    match row.goal.reference {
        Some((system, Measure::Speed | Measure::Cost)) => format!("{sign} {limit:.2}x {system}"),
        None => format!("{sign} {limit}"),
    }
}

/// One figure of each of Weir's systems.
fn join(row: &Row, systems: &[&str], figure: impl Fn(&Cell) -> Option<String>) -> String {
    let figures: Vec<String> = systems
        .iter()
        .map(|system| {
            let cell = row.cells.iter().find(|cell| cell.system == *system);
            cell.and_then(&figure).unwrap_or_else(|| "-".to_owned())
        })
        .collect();
    figures.join(" / ")
}

/// `page` with the suite's section in its place: where it was, else behind the last section, else at the end.
pub fn merge_markdown(page: &str, suite: &str, section: &str) -> String {
    let (begin, end) = (
        format!("<!-- measured: {suite} -->"),
        format!("<!-- end: {suite} -->"),
    );
    let block = format!("{begin}\n{section}\n{end}");
    if let Some((head, rest)) = page.split_once(&begin)
        && let Some((_, tail)) = rest.split_once(&end)
    {
        return format!("{head}{block}{tail}");
    }
    let last = page.rfind("<!-- end: ").and_then(|start| {
        let length = page[start..].find("-->")? + "-->".len();
        Some(start + length)
    });
    if let Some(at) = last {
        return format!("{}\n\n{block}{}", &page[..at], &page[at..]);
    }
    let head = if page.is_empty() {
        "# Results\n"
    } else {
        page.trim_end()
    };
    format!("{}\n\n{block}\n", head.trim_end())
}

/// `json` (an object of suites, or nothing) with this section in its place.
pub fn merge_json(json: &str, section: &Section) -> anyhow::Result<String> {
    let mut suites: BTreeMap<String, Value> = if json.trim().is_empty() {
        BTreeMap::new()
    } else {
        serde_json::from_str(json)?
    };
    suites.insert(section.suite.clone(), serde_json::to_value(section)?);
    Ok(serde_json::to_string_pretty(&suites)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Goal;

    fn section() -> Section {
        let mut table = Table::default();
        let goal = Goal::new("warm", Unit::MegabytesPerSecond).as_fast("native", 0.95);
        let row = table.row(&goal);
        row.note("s3fs", 10.0, Some(100.0));
        row.note("Weir, 2 workers", 90.0, Some(100.0));
        row.note("Weir", 98.0, Some(100.0));
        row.note("native", 100.0, None);
        Section {
            suite: "small".into(),
            title: "Small files".into(),
            conditions: "On a machine.".into(),
            notes: Vec::new(),
            table,
        }
    }

    #[test]
    fn columns_are_in_order_and_cells_tell_whether_the_target_is_met() {
        let text = section().markdown();
        let head = "| row | native | Weir | Weir, 2 workers | s3fs | target |";
        assert!(text.contains(head), "{text}");
        let row = "| warm, MB/s | 100 | 98.0 (0.98x, met) | 90.0 (0.90x, **not met**) | 10.0 (0.10x) | >= 0.95x native |";
        assert!(text.contains(row), "{text}");
    }

    #[test]
    fn a_section_is_replaced_and_all_else_stays() {
        let page = "# R\n\n<!-- measured: a -->\nold\n<!-- end: a -->\n\nprose\n";
        let page = merge_markdown(page, "a", "new");
        assert_eq!(
            page,
            "# R\n\n<!-- measured: a -->\nnew\n<!-- end: a -->\n\nprose\n"
        );
    }

    #[test]
    fn a_missing_section_stands_behind_the_last_one_before_the_prose() {
        let page = "# R\n\n<!-- measured: a -->\nx\n<!-- end: a -->\n\nprose\n";
        let page = merge_markdown(page, "b", "y");
        let expected = "<!-- end: a -->\n\n<!-- measured: b -->\ny\n<!-- end: b -->\n\nprose\n";
        assert!(page.ends_with(expected), "{page}");
        assert!(merge_markdown("", "b", "y").starts_with("# Results\n\n<!-- measured: b"));
        let without = merge_markdown("# R\n\nprose\n", "b", "y");
        assert!(
            without.starts_with("# R\n\nprose\n\n<!-- measured: b"),
            "{without}"
        );
    }

    #[test]
    fn json_keeps_the_other_suites() {
        let json = merge_json("{\"big\": 1}", &section()).unwrap();
        let suites: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(suites["big"], 1);
        assert_eq!(
            suites["small"]["table"]["rows"][0]["cells"][0]["system"],
            "s3fs"
        );
    }
}
