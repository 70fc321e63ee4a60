//! The variables of a process that configure S3, as a value, so that tests need not change the real ones.

use std::collections::HashMap;

/// Names and values that start with `AWS_`, and `HOME`. Deliberately without Debug: some are secrets.
pub(crate) struct Environment(HashMap<String, String>);

impl Environment {
    pub(crate) fn of_process() -> Self {
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Self(
            variables
                .filter(|(name, _)| name.starts_with("AWS_") || name == "HOME")
                .collect(),
        )
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
}
