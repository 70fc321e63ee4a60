//! Which files of a source are part of a dataset.
//!
//! Globs are matched against the whole path of a file inside its source, without a leading slash. Each part of a filter is
//! bounded, since whoever makes datasets writes it and the master matches it against every key.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::SpecError;
use crate::keypath::LeftOut;

/// Most globs of each kind in one source.
pub const MAX_GLOBS: usize = 100;
/// Longest glob, in bytes.
const MAX_GLOB: usize = 1024;

/// The globs of one source.
#[derive(Debug)]
pub struct SourceFilter {
    /// `None` takes every file.
    include: Option<GlobSet>,
    exclude: GlobSet,
}

impl SourceFilter {
    /// Reads the globs of a source. The error's field is `include` or `exclude`.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self, SpecError> {
        let included = set("include", include)?;
        Ok(Self {
            include: (!include.is_empty()).then_some(included),
            exclude: set("exclude", exclude)?,
        })
    }

    /// Whether every file is taken.
    pub fn takes_all(&self) -> bool {
        self.include.is_none() && self.exclude.is_empty()
    }

    /// Why the file at `path`, which is relative to the source, is left out, if it is. A directory is matched without the
    /// slash behind it.
    pub fn leaves_out(&self, path: &[u8]) -> Option<LeftOut> {
        if self.takes_all() {
            return None;
        }
        let path = path.strip_suffix(b"/").unwrap_or(path);
        let path = path_of(path);
        if self.include.as_ref().is_some_and(|set| !set.is_match(path)) {
            return Some(LeftOut::NotIncluded);
        }
        self.exclude.is_match(path).then_some(LeftOut::Excluded)
    }
}

fn path_of(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

fn set(field: &str, globs: &[String]) -> Result<GlobSet, SpecError> {
    if globs.len() > MAX_GLOBS {
        return Err(SpecError::new(
            field,
            format!("there are {} globs", globs.len()),
            format!("write at most {MAX_GLOBS}"),
        ));
    }
    let mut set = GlobSetBuilder::new();
    for (index, glob) in globs.iter().enumerate() {
        let wrong = |problem: String, remedy: String| {
            SpecError::new(format!("{field}[{index}]"), problem, remedy)
        };
        let shown: String = glob.chars().take(100).collect();
        if glob.len() > MAX_GLOB {
            let problem = format!("the glob {shown:?}… is {} bytes long", glob.len());
            return Err(wrong(problem, format!("write at most {MAX_GLOB}")));
        }
        if glob.is_empty() {
            return Err(wrong(
                "the glob is empty".to_owned(),
                "leave it out".to_owned(),
            ));
        }
        if glob.starts_with('/') {
            let remedy = format!(
                "paths begin below the source: write {:?}",
                glob.trim_start_matches('/')
            );
            return Err(wrong(
                format!("the glob {shown:?} begins with a slash"),
                remedy,
            ));
        }
        if glob.ends_with('/') {
            let remedy = format!(
                "for all that is in a directory write {:?}",
                format!("{glob}**")
            );
            return Err(wrong(format!("the glob {shown:?} ends in a slash"), remedy));
        }
        let read = GlobBuilder::new(glob)
            .literal_separator(true)
            .backslash_escape(true)
            .build();
        let read = read.map_err(|error| {
            wrong(
                format!("the glob {shown:?} cannot be read: {}", error.kind()),
                "write for instance \"**/*.jpg\", and a backslash before a character that means itself".to_owned(),
            )
        })?;
        set.add(read);
    }
    set.build().map_err(|error| {
        SpecError::new(
            field,
            format!("the globs are too complex together: {}", error.kind()),
            "write fewer or simpler ones",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(include: &[&str], exclude: &[&str]) -> Result<SourceFilter, SpecError> {
        let owned =
            |globs: &[&str]| -> Vec<String> { globs.iter().map(|g| (*g).to_owned()).collect() };
        SourceFilter::new(&owned(include), &owned(exclude))
    }

    #[test]
    fn a_file_is_taken_if_a_glob_includes_it_and_none_excludes_it() {
        let (no, out) = (Some(LeftOut::NotIncluded), Some(LeftOut::Excluded));
        let images = filter(&["**/*.jpg", "labels/*"], &["**/tmp/**", "train/bad-?.jpg"]).unwrap();
        for (path, left_out) in [
            ("a.jpg", None),
            ("train/x/a.jpg", None),
            ("labels/a.txt", None),
            ("labels/x/a.txt", no),
            ("a.png", no),
            ("a.jpg.bak", no),
            ("tmp/a.jpg", out),
            ("train/tmp/x/a.jpg", out),
            ("train/bad-1.jpg", out),
            ("train/bad-12.jpg", None),
            ("labels/", no),
            ("labels/x/", None),
        ] {
            assert_eq!(images.leaves_out(path.as_bytes()), left_out, "{path}");
        }
        let all = filter(&[], &[]).unwrap();
        assert!(all.takes_all());
        assert_eq!(all.leaves_out(b"any\xffthing"), None);
        let some = filter(&[], &["*.tmp"]).unwrap();
        assert_eq!(some.leaves_out(b"a.tmp"), out);
        assert_eq!(some.leaves_out(b"x/a.tmp"), None);
        assert_eq!(some.leaves_out("é 日本.tmp".as_bytes()), out);
        // A key need not be text.
        assert_eq!(some.leaves_out(b"\xff\xfe.tmp"), out);
    }

    #[test]
    fn globs_know_classes_alternatives_and_literal_characters() {
        let filter = filter(&["{train,val}/[0-9]*", "a\\*b"], &[]).unwrap();
        for (path, taken) in [
            ("train/0001", true),
            ("val/9", true),
            ("test/1", false),
            ("train/x1", false),
            ("a*b", true),
            ("axb", false),
        ] {
            assert_eq!(
                filter.leaves_out(path.as_bytes()).is_none(),
                taken,
                "{path}"
            );
        }
    }

    #[test]
    fn a_bad_glob_is_refused_with_its_place_and_a_remedy() {
        for (glob, said) in [
            ("", "is empty"),
            ("/train/*", "write \"train/*\""),
            ("train/", "write \"train/**\""),
            ("a[", "cannot be read"),
            ("a{b", "cannot be read"),
            ("[z-a]", "cannot be read"),
            (&"x".repeat(1025), "at most 1024"),
        ] {
            let error = filter(&[], &["ok", glob]).unwrap_err();
            assert_eq!(error.field, "exclude[1]");
            assert!(error.to_string().contains(said), "{error}");
        }
        let many = vec!["x"; MAX_GLOBS + 1];
        assert_eq!(filter(&many, &[]).unwrap_err().field, "include");
    }

    #[test]
    fn the_worst_globs_that_fit_are_read_or_refused_in_bounded_time() {
        let started = std::time::Instant::now();
        let nested = format!("{}a{}", "{".repeat(500), "}".repeat(500));
        let stars = "*a".repeat(512);
        let classes = "[a-z]".repeat(200);
        for glob in [nested, stars, classes] {
            if let Ok(filter) = SourceFilter::new(&vec![glob; MAX_GLOBS], &[]) {
                let path = "a".repeat(1000);
                filter.leaves_out(path.as_bytes());
            }
        }
        assert!(started.elapsed() < std::time::Duration::from_mins(1));
    }
}
