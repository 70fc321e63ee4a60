//! What is done, what came of it, and the page that tells it.

use std::path::Path;
use std::time::Duration;

use weir_tests::ReadersReport;

use super::world::Effort;

/// Where a page holds the table.
const BEGIN: &str = "<!-- chaos -->\n";
const END: &str = "<!-- /chaos -->";

/// Something bad that is done.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    /// The test's name.
    pub(crate) name: &'static str,
    /// What is done, for people.
    pub(crate) what: &'static str,
    /// What may come of it.
    pub(crate) allowed: Allowed,
    /// Does it.
    pub(crate) run: fn(Effort) -> Outcome,
}

/// What readers may see. Wrong bytes are never among it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Allowed {
    /// Reads that take this long, and no errors.
    Longest(Duration),
    /// Errors, for nothing right can be had.
    Errors,
}

/// What came of it.
#[derive(Default)]
pub(crate) struct Outcome {
    /// How often it was done.
    pub(crate) times: usize,
    /// What the readers saw.
    pub(crate) readers: ReadersReport,
    /// Why it cannot be done here.
    pub(crate) skipped: Option<String>,
}

impl Outcome {
    /// Nothing was done.
    pub(crate) fn skipped(reason: impl Into<String>) -> Self {
        Self {
            skipped: Some(reason.into()),
            ..Self::default()
        }
    }

    fn wrong(&self) -> usize {
        let errors = self.readers.errors.iter();
        errors.filter(|error| error.contains("wrong bytes")).count()
    }

    fn errors(&self) -> usize {
        self.readers.errors.len() - self.wrong()
    }

    /// The row of the table.
    pub(crate) fn line(&self, row: &Row) -> String {
        if let Some(reason) = &self.skipped {
            return format!("| {} | cannot be done here: {reason} | | | | |", row.what);
        }
        format!(
            "| {} | {} | {} | {} | {} | {:.2} s |",
            row.what,
            self.times,
            self.readers.reads,
            self.errors(),
            self.wrong(),
            self.readers.longest.as_secs_f64(),
        )
    }

    /// What is wrong with it, if something is.
    pub(crate) fn judge(&self, row: &Row) -> Result<(), String> {
        if self.skipped.is_some() {
            return Ok(());
        }
        let ReadersReport {
            reads,
            longest,
            errors,
        } = &self.readers;
        if self.times == 0 || *reads == 0 {
            return Err(format!("done {} times in {reads} reads", self.times));
        }
        if self.wrong() > 0 {
            return Err(format!("wrong bytes: {errors:?}"));
        }
        let Allowed::Longest(most) = row.allowed else {
            return Ok(());
        };
        if self.errors() > 0 {
            return Err(format!("errors: {errors:?}"));
        }
        if *longest > most {
            return Err(format!("a read took {longest:?}; {most:?} are allowed"));
        }
        Ok(())
    }
}

/// The rows so far.
#[derive(Default)]
pub(crate) struct Table(Vec<String>);

impl Table {
    pub(crate) fn add(&mut self, row: &Row, outcome: &Outcome) {
        self.0.push(outcome.line(row));
    }

    /// Puts the table into a page, between two marks.
    pub(crate) fn write_into(&self, page: &Path) -> std::io::Result<()> {
        let text = std::fs::read_to_string(page)?;
        let marks = text.split_once(BEGIN).and_then(|(before, rest)| {
            let (_, after) = rest.split_once(END)?;
            Some((before, after))
        });
        let (before, after) =
            marks.ok_or_else(|| std::io::Error::other("the page has no marks"))?;
        let head = "| what was done | times | reads | errors | wrong bytes | longest read |\n|---|---|---|---|---|---|\n";
        let rows = self.0.join("\n");
        std::fs::write(page, format!("{before}{BEGIN}{head}{rows}\n{END}{after}"))
    }
}
