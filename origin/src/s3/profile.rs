//! Profiles of the shared AWS configuration files.
//!
//! Static keys, session tokens, `credential_process`, region and endpoint are taken; single sign-on and assumed roles are
//! refused with a message, since a half-understood profile would read with the wrong identity.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command;

use crate::error::OriginError;

/// Settings of one profile.
#[derive(Default)]
pub(crate) struct Profile {
    name: String,
    settings: HashMap<String, String>,
    pub(crate) region: Option<String>,
    pub(crate) endpoint: Option<String>,
}

/// Keys of a profile. Deliberately without Debug.
pub(crate) struct Keys {
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
    pub(crate) token: Option<String>,
}

/// The message for a profile that was asked for by name but has no keys.
pub(crate) fn without_keys(name: &str) -> OriginError {
    config(name, "has no keys; add aws_access_key_id and aws_secret_access_key, or use the environment")
}

fn config(profile: &str, message: &str) -> OriginError {
    OriginError::Config {
        subject: format!("profile {profile}"),
        message: message.to_owned(),
    }
}

impl Profile {
    /// Reads the profile `name` (or AWS_PROFILE, or `default`). One that was named must exist.
    pub(crate) fn load(name: Option<&str>) -> Result<Self, OriginError> {
        let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let named = name.map(str::to_owned).or_else(|| variable("AWS_PROFILE"));
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        let file = |variable_name: &str, default: &str| {
            let path = variable(variable_name).map_or_else(|| home.join(default), PathBuf::from);
            std::fs::read_to_string(path).unwrap_or_default()
        };
        let credentials = file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials");
        let settings = file("AWS_CONFIG_FILE", ".aws/config");
        let name = named.clone().unwrap_or_else(|| "default".to_owned());
        let profile = Self::parse(&name, &credentials, &settings);
        if named.is_some() && profile.settings.is_empty() {
            return Err(config(
                &name,
                "is in neither ~/.aws/credentials nor ~/.aws/config; check --profile and AWS_PROFILE",
            ));
        }
        Ok(profile)
    }

    fn parse(name: &str, credentials: &str, settings: &str) -> Self {
        let mut found = HashMap::new();
        // Keys of the credentials file win over those of the configuration file.
        for (text, header) in [
            (settings, format!("profile {name}")),
            (settings, name.to_owned()),
            (credentials, name.to_owned()),
        ] {
            found.extend(section(text, &header));
        }
        Self {
            name: name.to_owned(),
            region: found.get("region").cloned(),
            endpoint: found.get("endpoint_url").cloned(),
            settings: found,
        }
    }

    /// The profile's keys; `None` when it has none.
    pub(crate) fn keys(&self) -> Result<Option<Keys>, OriginError> {
        let get = |key: &str| self.settings.get(key).cloned();
        if let (Some(access_key), Some(secret_key)) =
            (get("aws_access_key_id"), get("aws_secret_access_key"))
        {
            return Ok(Some(Keys {
                access_key,
                secret_key,
                token: get("aws_session_token"),
            }));
        }
        if let Some(command) = get("credential_process") {
            return self.run(&command).map(Some);
        }
        let unsupported = |key: &&String| key.starts_with("sso_") || *key == "role_arn";
        if let Some(key) = self.settings.keys().find(unsupported) {
            return Err(config(
                &self.name,
                &format!("uses {key}, which Weir does not support; export keys with `aws configure export-credentials --format env`"),
            ));
        }
        Ok(None)
    }

    /// Runs a `credential_process` and reads its JSON.
    fn run(&self, command: &str) -> Result<Keys, OriginError> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Output {
            access_key_id: String,
            secret_access_key: String,
            session_token: Option<String>,
        }
        let failed = |message: &str| config(&self.name, &format!("its credential_process {message}"));
        let output = Command::new("sh")
            .args(["-c", command])
            .output()
            .map_err(|error| failed(&format!("cannot be started: {error}")))?;
        if !output.status.success() {
            return Err(failed(&format!("failed: {}", output.status)));
        }
        let output: Output = serde_json::from_slice(&output.stdout)
            .map_err(|_| failed("did not print the JSON that AWS documents"))?;
        Ok(Keys {
            access_key: output.access_key_id,
            secret_key: output.secret_access_key,
            token: output.session_token,
        })
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

    fn profile(name: &str) -> Profile {
        Profile::parse(name, CREDENTIALS, CONFIG)
    }

    #[test]
    fn a_profile_is_put_together_from_both_files() {
        let other = profile("other");
        assert_eq!(other.region.as_deref(), Some("us-west-2"));
        assert_eq!(other.endpoint.as_deref(), Some("http://h:1"));
        let keys = other.keys().unwrap().unwrap();
        assert_eq!((keys.access_key, keys.secret_key, keys.token), ("C".into(), "D".into(), Some("E".into())));
        assert_eq!(profile("default").region.as_deref(), Some("eu-west-1"));
    }

    #[test]
    fn a_credential_process_is_run_and_single_sign_on_is_refused() {
        let keys = profile("tool").keys().unwrap().unwrap();
        assert_eq!((keys.access_key.as_str(), keys.secret_key.as_str()), ("F", "G"));
        let error = profile("work").keys().err().unwrap().to_string();
        assert!(error.contains("work") && error.contains("sso_start_url"), "{error}");
        assert!(profile("absent").keys().unwrap().is_none());
    }
}
