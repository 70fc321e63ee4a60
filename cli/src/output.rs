//! All that commands print: tables and lines for people, JSON for programs.
//!
//! Whoever reads standard output may stop (`weir status | head -1`): then the rest is dropped, and the command ends as it
//! would have. Output that cannot be written is an error, and never a panic. Names and paths may hold any character: what
//! would move the cursor, break a line or turn the direction of writing is shown escaped.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use weir_core::ByteSize;

use crate::exit::{Failure, Reason};

/// Prints one line, escaped.
pub(crate) fn line(text: impl Display) -> Result<(), Failure> {
    document(&format!("{}\n", escaped(&text.to_string())))
}

/// Prints a value as indented JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(anyhow::Error::from)?;
    document(&format!("{text}\n"))
}

/// Prints a text as it is.
pub(crate) fn document(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// What became of writing to standard output.
pub(crate) fn written(outcome: io::Result<()>) -> Result<(), Failure> {
    match outcome {
        Ok(()) => Ok(()),
        // Nobody reads any more, and that is not the command's failure.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::new(
            Reason::Other,
            format!(
                "cannot write to standard output: {error}; what the command changed is changed"
            ),
        )),
    }
}

/// Prints one line to standard error, escaped. There is nobody to tell if that fails.
pub(crate) fn note(text: impl Display) {
    let text = text.to_string();
    let _ = writeln!(io::stderr(), "{}", escaped(&text));
}

/// Prints a failure's message to standard error and gives its code.
pub(crate) fn report(failure: &Failure) -> ExitCode {
    if !failure.message().is_empty() {
        note(format_args!("weir: {}", failure.message()));
    }
    ExitCode::from(failure.code())
}

/// A table with a header and without lines. Cells are escaped.
pub(crate) struct Rows(Table);

impl Rows {
    pub(crate) fn new(header: &[&str]) -> Self {
        let mut table = Table::new();
        table
            .load_preset(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(header);
        Self(table)
    }

    /// Adds a row below the others.
    pub(crate) fn add(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells = cells.into_iter();
        self.0
            .add_row(cells.map(|cell| escaped(&cell).into_owned()));
    }

    /// Prints the table.
    pub(crate) fn print(&self) -> Result<(), Failure> {
        document(&format!("{}\n", self.0))
    }
}

/// The text without characters that act on a terminal: `\n`, `\u{1b}`, `\u{202e}`…
fn escaped(text: &str) -> Cow<'_, str> {
    let acts = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if acts(c) {
            plain.extend(c.escape_default());
        } else {
            plain.push(c);
        }
    }
    Cow::Owned(plain)
}

/// A number of bytes for a person.
pub(crate) fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

/// `part` of `whole` as a percentage; a dash when there is nothing to compare with.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    format!("{:.1}%", part as f64 * 100.0 / whole as f64)
}

/// `part / whole`, or `None` when there is nothing to compare with.
pub(crate) fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// Seconds since 1970 as `2026-03-01 12:00:00`, in UTC.
pub(crate) fn time(nanoseconds: i64) -> String {
    let timestamp = jiff::Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or_default();
    timestamp.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_is_escaped_and_the_rest_is_shown() {
        for (text, shown) in [
            ("/data/é 日本 \\n", "/data/é 日本 \\n"),
            ("a\nb\tc\r", "a\\nb\\tc\\r"),
            ("\u{1b}[2J\u{7f}\u{85}", "\\u{1b}[2J\\u{7f}\\u{85}"),
            ("gpj\u{202e}.exe\u{2028}", "gpj\\u{202e}.exe\\u{2028}"),
        ] {
            assert_eq!(escaped(text), shown);
        }
    }

    #[test]
    fn a_row_is_one_line_whatever_its_cells_hold() {
        let mut rows = Rows::new(&["mount", "source"]);
        rows.add(["/a\nb".to_owned(), "\u{1b}]0;x\u{7}".to_owned()]);
        let text = rows.0.to_string();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("/a\\nb"), "{text}");
    }

    #[test]
    fn a_closed_pipe_is_no_failure_and_a_full_device_is_one() {
        let outcome = |kind: io::ErrorKind| written(Err(kind.into())).map_err(|f| f.code());
        assert_eq!(outcome(io::ErrorKind::BrokenPipe), Ok(()));
        assert_eq!(outcome(io::ErrorKind::StorageFull), Err(1));
    }
}
