//! Datasets as YAML documents, read and written.
//!
//! What comes in is bounded: its length, its depth, its aliases. Of a file all documents are understood, or none is used.

use std::collections::HashSet;
use std::fmt::Display;
use std::io::Read;
use std::path::Path;

use serde_saphyr::{Error, Options};
use weir_core::dataset::{ApiVersion, DatasetDocument, did_you_mean};
use weir_core::{DatasetName, DatasetSpec};
use weir_origin::check_dataset;

use crate::exit::{Failure, Reason};

/// Longest file, in bytes, and most datasets in it.
const MAX_FILE: u64 = 16 << 20;
const MAX_DOCUMENTS: usize = 10_000;

/// What a file declares.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Declared {
    pub(crate) name: DatasetName,
    /// As it was checked: in its one form.
    pub(crate) spec: DatasetSpec,
}

/// Reads all documents of a file; `-` is standard input.
pub(crate) fn read(file: &Path) -> Result<Vec<Declared>, Failure> {
    let is_stdin = file.as_os_str() == "-";
    let name = if is_stdin {
        "standard input".to_owned()
    } else {
        file.display().to_string()
    };
    let mut bytes = Vec::new();
    let read = if is_stdin {
        let stdin = std::io::stdin().lock();
        stdin.take(MAX_FILE + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
    };
    let wrong = |problem: &dyn Display| Failure::new(Reason::Usage, format!("{name}: {problem}"));
    read.map_err(|error| wrong(&error))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(wrong(&format!(
            "it is longer than {MAX_FILE} bytes; apply several files one by one"
        )));
    }
    parse(&bytes).map_err(|problem| wrong(&in_fields(&problem)))
}

/// A message of what is wrong with a source, which names the field of a file where it names the flag of a command. Commands,
/// which are in backquotes, stay as they are.
pub(crate) fn in_fields(message: &str) -> String {
    /// Flags that have the names of a source's fields.
    const FLAGS: [&str; 7] = [
        "endpoint",
        "region",
        "addressing",
        "anonymous",
        "profile",
        "credentials",
        "patience",
    ];
    let reword = |(index, part): (usize, &str)| {
        let mut part = part.to_owned();
        for flag in FLAGS.iter().filter(|_| index % 2 == 0) {
            part = part.replace(&format!("--{flag}"), flag);
        }
        part
    };
    let parts: Vec<String> = message.split('`').enumerate().map(reword).collect();
    parts.join("`")
}

/// The datasets that a text declares, or what is wrong with it.
fn parse(text: &[u8]) -> Result<Vec<Declared>, String> {
    let options = serde_saphyr::options! {
        strict_booleans: true,
        with_snippet: false,
        reject_unsupported_tags: true,
    };
    let too_many =
        || format!("it has more than {MAX_DOCUMENTS} datasets; apply several files one by one");
    // Empty documents are passed over, and each takes time.
    let markers = text.split(|byte| *byte == b'\n');
    if markers.filter(|line| line.starts_with(b"---")).count() > 2 * MAX_DOCUMENTS {
        return Err(too_many());
    }
    let mut reader = text;
    let mut declared = Vec::new();
    let mut names = HashSet::new();
    for (index, document) in documents(&mut reader, options).enumerate() {
        let number = index + 1;
        if number > MAX_DOCUMENTS {
            return Err(too_many());
        }
        let at = |problem: &dyn Display| format!("document {number}: {problem}");
        let document = document.map_err(|error| format!("document {number}{}", explain(&error)))?;
        let name = document.name().map_err(|error| at(&error))?;
        let mut spec = document.spec;
        spec.shorten_credentials(&name);
        check_dataset(&mut spec).map_err(|error| at(&format!("dataset {name}: {error}")))?;
        if !names.insert(name.clone()) {
            return Err(at(&format!("dataset {name} is declared a second time")));
        }
        declared.push(Declared { name, spec });
    }
    if declared.is_empty() {
        return Err("it declares nothing; docs/datasets.md has examples".to_owned());
    }
    Ok(declared)
}

fn documents<'a>(
    reader: &'a mut &'a [u8],
    options: Options,
) -> impl Iterator<Item = Result<DatasetDocument, Error>> + 'a {
    serde_saphyr::read_with_options(reader, options)
}

/// Where and what is wrong, in the words of who writes a file: the parser's are for programmers.
fn explain(error: &Error) -> String {
    let error = error.without_snippet();
    let line = error
        .location()
        .map(|at| at.line())
        .filter(|line| *line > 0);
    let line = line.map_or(String::new(), |line| format!(", line {line}"));
    let plain = |text: &str| text.to_owned();
    let problem = match error {
        Error::SerdeUnknownField {
            field, expected, ..
        } => {
            let meant = did_you_mean(field, expected.iter().copied());
            format!("unknown field `{field}`{meant}")
        }
        Error::SerdeUnknownVariant {
            variant, expected, ..
        } if expected.contains(&ApiVersion::NEWEST) => {
            let newest = ApiVersion::NEWEST;
            format!("unknown apiVersion `{variant}`; write `apiVersion: {newest}`")
        }
        Error::SerdeUnknownVariant {
            variant, expected, ..
        } => {
            let meant = did_you_mean(variant, expected.iter().copied());
            format!("unknown value `{variant}`{meant}")
        }
        Error::SerdeMissingField { field, .. } => {
            format!("the field `{field}` is missing; docs/datasets.md has examples")
        }
        Error::Unexpected { expected, .. } if expected.starts_with("mapping") => {
            plain("fields are expected here, each as `name: value`, and this is something else")
        }
        Error::Unexpected { expected, .. } if expected.starts_with("sequence") => {
            plain("a list is expected here; write `[A, B]`, or `- A` on lines of their own")
        }
        Error::Unexpected { expected, .. } if expected.starts_with("string") => {
            plain("a text is expected here, and this is a list or has fields")
        }
        Error::NullIntoString { .. } => {
            plain("there is no value; write one, or leave the field out")
        }
        Error::InvalidBooleanStrict { .. } => plain("write true or false"),
        Error::DuplicateMappingKey { key, .. } => match key {
            Some(key) => format!("`{key}` is written twice; leave one out"),
            None => plain("a field is written twice; leave one out"),
        },
        // All of it is in memory: what cannot be read of it is no text.
        Error::IOError { .. } => plain("this is no text in UTF-8"),
        Error::UnknownAnchor { .. } => {
            plain("`*` stands for what has the same name behind `&` before it, and nothing has")
        }
        other => {
            let text = other.to_string();
            // Where, it says once more.
            let end = text.rfind(" at line ").unwrap_or(text.len());
            text[..end].to_owned()
        }
    };
    format!("{line}: {problem}")
}

/// The document of a dataset, as it is applied.
pub(crate) fn yaml(name: &DatasetName, spec: DatasetSpec) -> Result<String, Failure> {
    let document = DatasetDocument::new(name, spec);
    // Long texts stay on their line, where comparing finds them.
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    let yaml = serde_saphyr::to_string_with_options(&document, options);
    yaml.map_err(|error| Failure::from(anyhow::Error::from(error)))
}

#[cfg(test)]
mod tests;
