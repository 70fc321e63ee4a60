//! Profiles of the shared AWS configuration files.
//!
//! Static keys, session tokens, `credential_process`, region and endpoint are taken; single sign-on and assumed roles are
//! refused with a message, since a half-understood profile would read with the wrong identity.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::environment::Environment;
use super::helper::{DEADLINE, Helper};
use crate::error::OriginError;

/// Settings of one profile. Deliberately without Debug: some are secrets.
pub(crate) struct Profile {
    name: String,
    settings: HashMap<String, String>,
}

/// Keys of a profile. Deliberately without Debug.
pub(crate) struct Keys {
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
    pub(crate) token: Option<String>,
}

/// What a profile says of keys.
pub(crate) enum Found {
    /// It has them.
    Keys(Keys),
    /// It names a program that prints them.
    Helper(Helper),
}

/// Reads the profile that `named` or `AWS_PROFILE` names, which must exist, or the default one, which need not.
pub(crate) fn load(
    origin: &Arc<str>,
    named: Option<&str>,
    environment: &Environment,
) -> Result<Option<Profile>, OriginError> {
    let named = named.or_else(|| environment.get("AWS_PROFILE"));
    let home = Path::new(environment.get("HOME").unwrap_or_default());
    let file = |variable: &str, default: &str| {
        let path = environment
            .get(variable)
            .map_or_else(|| home.join(default), PathBuf::from);
        std::fs::read_to_string(path).unwrap_or_default()
    };
    let credentials = file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials");
    let settings = file("AWS_CONFIG_FILE", ".aws/config");
    let profile = Profile::parse(named.unwrap_or("default"), &credentials, &settings);
    match (named, profile) {
        (Some(name), None) => Err(OriginError::config(
            origin.clone(),
            format!("the profile {name:?} is in neither ~/.aws/credentials nor ~/.aws/config"),
            "check --profile and AWS_PROFILE",
        )),
        (_, profile) => Ok(profile),
    }
}

impl Profile {
    /// Puts a profile together from both files; `None` when neither has it.
    fn parse(name: &str, credentials: &str, settings: &str) -> Option<Self> {
        let mut found = HashMap::new();
        // Keys of the credentials file win over those of the configuration file.
        for (text, header) in [
            (settings, format!("profile {name}")),
            (settings, name.to_owned()),
            (credentials, name.to_owned()),
        ] {
            found.extend(section(text, &header));
        }
        (!found.is_empty()).then(|| Self {
            name: name.to_owned(),
            settings: found,
        })
    }

    /// A setting that is not empty.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.settings
            .get(key)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// The profile's keys, or the program that prints them, which is not run; `None` when it has neither.
    pub(crate) fn keys(&self, origin: &Arc<str>) -> Result<Option<Found>, OriginError> {
        if let (Some(access_key), Some(secret_key)) = (
            self.get("aws_access_key_id"),
            self.get("aws_secret_access_key"),
        ) {
            return Ok(Some(Found::Keys(Keys {
                access_key: access_key.to_owned(),
                secret_key: secret_key.to_owned(),
                token: self.get("aws_session_token").map(str::to_owned),
            })));
        }
        if let Some(command) = self.get("credential_process") {
            let helper = Helper::new(&self.name, command, DEADLINE);
            return Ok(Some(Found::Helper(helper)));
        }
        let unsupported = |key: &&String| key.starts_with("sso_") || *key == "role_arn";
        if let Some(key) = self.settings.keys().find(unsupported) {
            return Err(OriginError::config(
                origin.clone(),
                format!(
                    "the profile {:?} uses {key}, which Weir does not support",
                    self.name
                ),
                "export keys with `aws configure export-credentials --format env`",
            ));
        }
        Ok(None)
    }
}

/// The settings below `[header]`.
fn section(text: &str, header: &str) -> HashMap<String, String> {
    let mut inside = false;
    let mut settings = HashMap::new();
    for line in text.lines() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.split(']').next()) {
            inside = name.split_whitespace().eq(header.split_whitespace());
        } else if inside
            && !line.starts_with(['#', ';'])
            && let Some((key, value)) = line.split_once('=')
        {
            settings.insert(key.trim().to_owned(), value.trim().to_owned());
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIALS: &str = "[default]\naws_access_key_id = A\naws_secret_access_key=B\n\n[other]\n# comment\naws_access_key_id=C\naws_secret_access_key=D\naws_session_token=E\n";
    const CONFIG: &str = "[default]\nregion=eu-west-1\n[profile other]\nregion = us-west-2\nendpoint_url = http://h:1\n[profile work]\nsso_start_url=https://x\n[profile tool]\ncredential_process = echo '{\"AccessKeyId\":\"F\",\"SecretAccessKey\":\"G\"}'\n";

    fn profile(name: &str) -> Option<Profile> {
        Profile::parse(name, CREDENTIALS, CONFIG)
    }

    #[test]
    fn a_profile_is_put_together_from_both_files() {
        let other = profile("other").unwrap();
        assert_eq!(other.get("region"), Some("us-west-2"));
        assert_eq!(other.get("endpoint_url"), Some("http://h:1"));
        let Some(Found::Keys(keys)) = other.keys(&"s3://b".into()).unwrap() else {
            panic!("it has keys");
        };
        assert_eq!(
            (keys.access_key, keys.secret_key, keys.token),
            ("C".into(), "D".into(), Some("E".into()))
        );
        assert_eq!(profile("default").unwrap().get("region"), Some("eu-west-1"));
        assert!(profile("absent").is_none());
    }

    #[test]
    fn a_credential_process_is_found_and_single_sign_on_is_refused() {
        let origin = "s3://b".into();
        let found = profile("tool").unwrap().keys(&origin).unwrap();
        assert!(matches!(found, Some(Found::Helper(_))));
        let error = profile("work")
            .unwrap()
            .keys(&origin)
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("work") && error.contains("sso_start_url"),
            "{error}"
        );
    }

    #[test]
    fn a_profile_that_was_asked_for_must_exist() {
        let environment = Environment::of([("HOME", "/nonexistent")]);
        assert!(
            load(&"s3://b".into(), None, &environment)
                .unwrap()
                .is_none()
        );
        let error = load(&"s3://b".into(), Some("gone"), &environment)
            .err()
            .unwrap();
        assert!(error.to_string().contains("\"gone\""), "{error}");
    }

    #[test]
    fn fuzz_profiles_of_any_bytes() {
        weir_fuzz::Target::new("profile")
            .seed(CREDENTIALS)
            .seed(CONFIG)
            .words(&[
                "[",
                "]",
                "[default]",
                "[profile other]",
                "=",
                "#",
                ";",
                "\r\n",
                "region",
            ])
            .run(|text| {
                let text = String::from_utf8_lossy(text);
                let (first, second) = text.split_at(text.floor_char_boundary(text.len() / 2));
                let found = ["default", "other", ""].map(|name| {
                    let profile = Profile::parse(name, first, second);
                    profile.map(|profile| profile.settings.len())
                });
                (found, text.lines().count().min(3))
            });
    }
}
