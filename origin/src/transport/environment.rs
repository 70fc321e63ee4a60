//! The variables of a process that configure origins, as a value, so that tests need not change the real ones.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weir_core::read_settings;

use crate::error::OriginError;

/// Variables whose names start with these are read, and some others.
const PREFIXES: [&str; 6] = [
    "AWS_",
    "OSS_",
    "ALIBABA_CLOUD_",
    "GOOGLE_",
    "AZURE_",
    "WEIR_SSE_C_",
];
const OTHERS: [&str; 19] = [
    "WEIR_CA_BUNDLE",
    "HADOOP_CONF_DIR",
    "HADOOP_HOME",
    "HADOOP_USER_NAME",
    "HOME",
    "STORAGE_EMULATOR_HOST",
    "GCE_METADATA_HOST",
    "CLOUDSDK_CONFIG",
    "IDENTITY_ENDPOINT",
    "IDENTITY_HEADER",
    "ALL_PROXY",
    "all_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "NO_PROXY",
    "no_proxy",
    "REQUEST_METHOD",
];

/// Names and values. Deliberately without Debug: some are secrets.
pub(crate) struct Environment(HashMap<String, String>);

impl Environment {
    pub(crate) fn of_process() -> Self {
        let text = |value: std::ffi::OsString| value.to_string_lossy().into_owned();
        let mut variables: HashMap<_, _> = std::env::vars_os()
            .map(|(name, value)| (text(name), text(value)))
            .filter(|(name, _)| {
                PREFIXES.iter().any(|prefix| name.starts_with(prefix))
                    || OTHERS.contains(&name.as_str())
            })
            .collect();
        // Services are started without one, and the user has one all the same.
        if variables.get("HOME").is_none_or(String::is_empty)
            && let Some(home) = std::env::home_dir()
        {
            variables.insert("HOME".to_owned(), home.to_string_lossy().into_owned());
        }
        Self(variables)
    }

    #[cfg(test)]
    pub(crate) fn of<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Self(variables.into_iter().map(owned).collect())
    }

    /// The value of a variable that is set and not empty, without white space around it: a secret that was made with
    /// `echo` ends in a line break.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(|value| value.trim())
            .filter(|value| !value.is_empty())
    }

    /// The value of the first of these variables that is set and not empty.
    pub(crate) fn first(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.get(name))
    }

    /// Whether a variable is `true`, in any case.
    pub(crate) fn is_true(&self, name: &str) -> bool {
        self.get(name).is_some_and(is_true)
    }

    /// The path that a variable names.
    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(|path| self.expand(path))
    }

    /// A path as people write it: `~` is the user's home.
    pub(crate) fn expand(&self, path: &str) -> PathBuf {
        match (path.strip_prefix('~'), self.get("HOME")) {
            (Some(""), Some(home)) => PathBuf::from(home),
            (Some(rest), Some(home)) if rest.starts_with('/') => {
                Path::new(home).join(rest.trim_start_matches('/'))
            }
            _ => PathBuf::from(path),
        }
    }

    /// A path below the user's home.
    pub(crate) fn at_home(&self, path: &str) -> Option<PathBuf> {
        Some(Path::new(self.get("HOME")?).join(path))
    }
}

/// Whether a setting is `true`, in any case.
pub(crate) fn is_true(value: &str) -> bool {
    value.trim().eq_ignore_ascii_case("true")
}

/// The error of a file that a variable or a setting names.
pub(crate) fn unreadable(
    origin: &Arc<str>,
    name: &str,
    path: &Path,
    error: &io::Error,
) -> OriginError {
    OriginError::config(
        origin.clone(),
        format!(
            "{name} names {}, which cannot be read: {error}",
            path.display()
        ),
        format!("check the path and its permissions, or unset {name}"),
    )
}

/// The token in the file that a variable or a setting names, without white space around it.
pub(crate) fn token_in_file(
    origin: &Arc<str>,
    name: &str,
    path: &Path,
) -> Result<String, OriginError> {
    let content = read_settings(path).map_err(|error| unreadable(origin, name, path, &error))?;
    let token = String::from_utf8_lossy(&content).trim().to_owned();
    if token.is_empty() {
        let problem = format!("{name} names {}, which is empty", path.display());
        return Err(OriginError::config(
            origin.clone(),
            problem,
            "write the token into it",
        ));
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_variables_are_unset_and_white_space_around_values_is_taken_off() {
        let environment = Environment::of([
            ("AWS_PROFILE", ""),
            ("AWS_REGION", " \n"),
            ("AWS_DEFAULT_REGION", "eu-west-1\n"),
            ("AWS_EC2_METADATA_DISABLED", " TRUE\n"),
        ]);
        assert_eq!(environment.get("AWS_PROFILE"), None);
        let region = environment.first(&["AWS_REGION", "AWS_DEFAULT_REGION"]);
        assert_eq!(region, Some("eu-west-1"));
        assert!(environment.is_true("AWS_EC2_METADATA_DISABLED"));
        assert!(!environment.is_true("AWS_PROFILE"));
    }

    #[test]
    fn a_tilde_is_the_home_of_the_user_and_nothing_else() {
        let environment = Environment::of([
            ("HOME", "/home/u"),
            ("AWS_CONFIG_FILE", "~/my/config"),
            ("AWS_CA_BUNDLE", "~"),
        ]);
        let path = |name| environment.path(name).unwrap();
        assert_eq!(path("AWS_CONFIG_FILE"), Path::new("/home/u/my/config"));
        assert_eq!(path("AWS_CA_BUNDLE"), Path::new("/home/u"));
        for literal in ["~other/x", "/a/~/b", "a~"] {
            assert_eq!(environment.expand(literal), Path::new(literal));
        }
        let homeless = Environment::of([("AWS_CONFIG_FILE", "~/x")]);
        assert_eq!(homeless.path("AWS_CONFIG_FILE").unwrap(), Path::new("~/x"));
    }
}
