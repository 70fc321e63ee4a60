//! The file that lists a web server's files: one a line, as fields between tabs or as JSON.
//!
//! `path⇥size⇥digest`, of which the path alone is needed, or `{"path": …, "size": …, "digest": …}`. The format is described
//! in docs/origins.md.

use serde::Deserialize;
use url::Url;

use super::version::parse_digest;
use crate::digest::Digest;
use crate::spec::stores::WebPlace;
use crate::transport::encode::decode;

/// Longest line, in bytes.
const MAX_LINE: usize = 64 << 10;

/// A file that an index names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    /// Its path, decoded.
    pub(super) key: String,
    pub(super) size: Option<u64>,
    pub(super) digest: Option<Digest>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(alias = "url")]
    path: String,
    size: Option<u64>,
    digest: Option<String>,
}

/// The files of an index, in its order, or what is wrong with which line.
pub(super) fn parse(document: &[u8], place: &WebPlace, dir: &str) -> Result<Vec<Entry>, String> {
    let text = std::str::from_utf8(document).map_err(|_| "it is not UTF-8".to_owned())?;
    let mut entries = Vec::new();
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let at = |problem: String| format!("line {}: {problem}", number + 1);
        if line.len() > MAX_LINE {
            return Err(at(format!("it is longer than {MAX_LINE} bytes")));
        }
        entries.push(entry(line, place, dir).map_err(at)?);
    }
    Ok(entries)
}

fn entry(line: &str, place: &WebPlace, dir: &str) -> Result<Entry, String> {
    let line = if line.starts_with('{') {
        serde_json::from_str(line).map_err(|error| error.to_string())?
    } else {
        fields(line)?
    };
    let digest = line.digest.as_deref().map(parse_digest).transpose()?;
    Ok(Entry {
        key: key(&line.path, place, dir)?,
        size: line.size,
        digest,
    })
}

fn fields(line: &str) -> Result<Line, String> {
    let mut fields = line.split('\t');
    let path = fields.next().unwrap_or_default().to_owned();
    let mut given = || fields.next().filter(|field| !matches!(*field, "" | "-"));
    let (size, digest) = (given(), given());
    if given().is_some() {
        return Err("it has more than a path, a size and a digest".to_owned());
    }
    let size = size.map(|size| {
        let wrong = |_| format!("the size {size:?} is no number of bytes");
        size.parse().map_err(wrong)
    });
    Ok(Line {
        path,
        size: size.transpose()?,
        digest: digest.map(str::to_owned),
    })
}

/// The decoded path of a file that is named by its path below the directory, or by its address.
fn key(path: &str, place: &WebPlace, dir: &str) -> Result<String, String> {
    if !path.starts_with("http://") && !path.starts_with("https://") {
        if path.is_empty() || path.starts_with('/') || leads_elsewhere(path) {
            return Err(format!("{path:?} is no path below the directory"));
        }
        return Ok(format!("{dir}{path}"));
    }
    // The query may be a secret.
    let shown = path.split(['?', '#']).next().unwrap_or_default();
    let url = Url::parse(path).map_err(|error| format!("{shown:?}: {error}"))?;
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
        return Err(format!(
            "{shown:?} has a query, a fragment or a user, which cannot be kept"
        ));
    }
    let key = String::from_utf8(decode(url.path().as_bytes()))
        .map_err(|_| format!("{shown:?} is not UTF-8 when it is decoded"))?;
    let key = key.strip_prefix('/').unwrap_or(&key);
    let is_below = key.len() > dir.len() && key.starts_with(dir) && !leads_elsewhere(key);
    if url.origin() != place.server.origin() || !is_below {
        return Err(format!(
            "{shown:?} is not below {}/{dir}; make a source of its own for other servers and directories",
            place.server.origin().ascii_serialization()
        ));
    }
    Ok(key.to_owned())
}

/// Whether a server may take the path for another one.
fn leads_elsewhere(path: &str) -> bool {
    path.split('/').any(|name| matches!(name, "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{OriginSpec, Place};

    fn read(text: &str) -> Result<Vec<Entry>, String> {
        let spec = OriginSpec::parse("https://h/d/?index=list").unwrap();
        let Place::Web(place) = spec.place().unwrap() else {
            panic!("{spec:?}");
        };
        parse(text.as_bytes(), &place, "d/")
    }

    const SHA: &str = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    #[test]
    fn lines_are_paths_or_addresses_with_what_is_known() {
        let text = format!(
            "# files\n\na b%.txt\nc/é\t5\t{SHA}\r\n-\t-\tcrc32c:0000000a\nhttps://h/d/x%20y\t7\n\
             {{\"path\":\"j\\n\",\"size\":9}}\n{{\"url\":\"https://h/d/z\",\"digest\":\"{SHA}\"}}\n"
        );
        let entries = read(&text).unwrap();
        let known: Vec<_> = entries
            .iter()
            .map(|entry| (&*entry.key, entry.size, entry.digest.is_some()))
            .collect();
        assert_eq!(
            known,
            [
                ("d/a b%.txt", None, false),
                ("d/c/é", Some(5), true),
                ("d/-", None, true),
                ("d/x y", Some(7), false),
                ("d/j\n", Some(9), false),
                ("d/z", None, true),
            ]
        );
        assert_eq!(read("").unwrap(), []);
    }

    #[test]
    fn a_line_that_makes_no_sense_is_named() {
        for (line, said) in [
            ("a\t5k", "5k"),
            ("a\t5\tmd5:00", "md5"),
            ("a\t5\t-\tx", "more than"),
            ("/a", "below"),
            ("../a\t5", "below"),
            ("b/../../a", "below"),
            ("https://h/d/b%2F..%2F..%2Fa", "below"),
            ("https://other/d/a", "below"),
            ("https://h/e/a", "below"),
            ("https://h/d/", "below"),
            ("{\"path\":\"a\",\"length\":5}", "length"),
            ("{\"size\":5}", "path"),
        ] {
            let problem = read(&format!("ok\n{line}\n")).unwrap_err();
            assert!(
                problem.starts_with("line 2: ") && problem.contains(said),
                "{problem}"
            );
        }
        let problem = read("https://h/d/a?sig=hunter2").unwrap_err();
        assert!(!problem.contains("hunter2"), "{problem}");
    }

    #[test]
    fn fuzz_indexes_of_any_bytes() {
        let spec = OriginSpec::parse("https://h/d/?index=list").unwrap();
        let Place::Web(place) = spec.place().unwrap() else {
            panic!("{spec:?}");
        };
        weir_fuzz::Target::new("web-index")
            .seed("a\t5\tcrc32c:0000000a\n{\"path\":\"j\",\"size\":9}\nhttps://h/d/x%20y\t7\n")
            .words(&["\t", "\n", "{\"path\":", "https://h/d/", "%2F", "sha256:"])
            .run(|document| {
                let entries = parse(document, &place, "d/").ok();
                if let Some(entries) = &entries {
                    assert!(entries.iter().all(|entry| entry.key.starts_with("d/")));
                }
                entries.map(|entries| entries.len().min(3))
            });
    }
}
