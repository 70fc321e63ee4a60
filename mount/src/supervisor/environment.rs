//! The environment variables that a mount's processes heed. A take-over brings its own, as it brings its flags: keys that
//! were replaced, another proxy, another level of the log.

use std::collections::BTreeMap;
use std::fmt;
use std::process::Command;

use serde::{Deserialize, Serialize};
use weir_process::descriptor::HANDOVER_VARIABLE;

/// Starts of names.
const PREFIXES: [&str; 2] = ["AWS_", "WEIR_"];
/// Whole names, in capitals; those of proxies are heeded in small letters, too. `HOME` has profiles and credentials.
const NAMES: [&str; 7] = [
    "HOME",
    "ALL_PROXY",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
];

/// Variables with their values. Never printed: there are keys among them.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Environment(BTreeMap<String, String>);

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

fn is_heeded(name: &str) -> bool {
    let known = PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || NAMES.contains(&name.to_ascii_uppercase().as_str());
    known && name != HANDOVER_VARIABLE
}

impl Environment {
    /// That of this process.
    pub(super) fn current() -> Self {
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Self(variables.filter(|(name, _)| is_heeded(name)).collect())
    }

    /// Has `command` run in this environment instead of the one of this process.
    pub(super) fn give(&self, command: &mut Command) {
        for name in Self::current().0.keys() {
            command.env_remove(name);
        }
        command.envs(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_proxies_are_heeded_and_the_line_to_a_process_is_not() {
        for name in ["AWS_PROFILE", "WEIR_LOG", "https_proxy", "NO_PROXY", "HOME"] {
            assert!(is_heeded(name), "{name}");
        }
        for name in [HANDOVER_VARIABLE, "PATH", "AWS", "MY_AWS_KEY"] {
            assert!(!is_heeded(name), "{name}");
        }
    }

    #[test]
    fn a_command_gets_the_new_variables_in_place_of_the_old_ones() {
        let wanted = Environment([("AWS_PROFILE".to_owned(), "new".to_owned())].into());
        let mut command = Command::new("true");
        wanted.give(&mut command);
        let given: BTreeMap<_, _> = command.get_envs().collect();
        let of = |name: &str| given.get(std::ffi::OsStr::new(name)).copied();
        assert_eq!(of("AWS_PROFILE"), Some(Some("new".as_ref())));
        let removed = std::env::var("HOME").is_ok().then_some(None);
        assert_eq!(of("HOME"), removed);
        assert_eq!(format!("{wanted:?}"), r#"{"AWS_PROFILE"}"#);
    }
}
