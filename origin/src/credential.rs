//! What a source is read with that names credentials of its own: keys, a role, a keytab, a header.
//!
//! This crate does not know who keeps them: it asks a [`CredentialSource`] for them by their name, each time that it wants
//! to know whether they are still the same. No `Debug` shows a secret, and the memory that held one is overwritten when it
//! is dropped.
//!
//! Credentials are for certain services, and are sent to no other. Otherwise whoever may make a dataset could have them sent
//! to a service of their own, and read there what nobody else tells them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{HeaderName, HeaderValue};
use url::Url;
use weir_core::CredentialName;
use zeroize::{Zeroize, Zeroizing};

use crate::error::OriginError;
use crate::s3::signature::Keys;
use crate::sources::is_aws_s3;
use crate::spec::OriginSpec;

mod wire;

/// Longest time that a [`CredentialSource`] may take.
pub const CREDENTIAL_DEADLINE: Duration = Duration::from_secs(15);
/// Longest secret, in bytes.
pub const MAX_SECRET: usize = 64 << 10;
/// Longest text that is no secret (a role, a file's name), in bytes, and most services of one record.
const MAX_TEXT: usize = 2048;
const MAX_ENDPOINTS: usize = 64;

/// A secret: `Debug` does not show it, and its memory is overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<T: Zeroize = String>(Zeroizing<T>);

impl<T: Zeroize> Secret<T> {
    /// Keeps a secret.
    pub fn new(secret: T) -> Self {
        Self(Zeroizing::new(secret))
    }

    /// The secret itself, for where it is used.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What a source is read with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// What it is.
    pub kind: CredentialKind,
    /// The services that it is for, as in `https://minio.lab:9000`. None stands for the one that the kind belongs to: S3
    /// itself for keys and roles, any cluster of its realm for a keytab.
    pub endpoints: Vec<String>,
}

/// The kinds of credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialKind {
    /// Keys of S3.
    Keys(Keys),
    /// A role that is assumed with keys.
    Role {
        /// Its ARN.
        arn: String,
        /// What its owner wants to hear.
        external_id: Option<String>,
        /// Whose keys it is assumed with.
        keys: Keys,
    },
    /// A role that is assumed with a token, which the reading process finds in a file.
    WebIdentity {
        /// The role's ARN.
        arn: String,
        /// The file, where the process reads.
        token_file: String,
    },
    /// A Kerberos keytab.
    Keytab {
        /// Whose it is: `user@REALM`.
        principal: String,
        /// The file's content.
        keytab: Secret<Vec<u8>>,
    },
    /// A header of HTTP requests.
    Header {
        /// Its name.
        name: String,
        /// Its value.
        value: Secret,
    },
}

/// Why no credentials were given.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CredentialError {
    /// There are none of this name for this process, or they are of no use.
    #[error("{problem}; {remedy}")]
    Denied {
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// Who keeps them does not answer. Passes.
    #[error("{0}")]
    Unavailable(String),
}

/// Who is asked for credentials.
#[async_trait]
pub trait CredentialSource: Send + Sync + fmt::Debug {
    /// The credentials of this name as they are now, within [`CREDENTIAL_DEADLINE`].
    async fn credential(&self, name: &CredentialName) -> Result<Arc<Credential>, CredentialError>;
}

impl Credential {
    /// What it is, for people and metrics.
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            CredentialKind::Keys(_) => "keys",
            CredentialKind::Role { .. } => "role",
            CredentialKind::WebIdentity { .. } => "web identity",
            CredentialKind::Keytab { .. } => "keytab",
            CredentialKind::Header { .. } => "header",
        }
    }

    /// What takes the place of `old`: texts that are no secrets, and the endpoints, are those of the old where the new
    /// leaves them out.
    ///
    /// # Errors
    /// When it is of another kind.
    pub fn in_place_of(mut self, old: &Self) -> Result<Self, String> {
        let or = |new: &mut String, old: &String| {
            if new.is_empty() {
                new.clone_from(old);
            }
        };
        match (&mut self.kind, &old.kind) {
            (CredentialKind::Keys(_), CredentialKind::Keys(_)) => {}
            (
                CredentialKind::Role {
                    arn, external_id, ..
                },
                CredentialKind::Role {
                    arn: old_arn,
                    external_id: old_id,
                    ..
                },
            ) => {
                or(arn, old_arn);
                if external_id.is_none() {
                    external_id.clone_from(old_id);
                }
            }
            (
                CredentialKind::WebIdentity { arn, token_file },
                CredentialKind::WebIdentity {
                    arn: old_arn,
                    token_file: old_file,
                },
            ) => {
                or(arn, old_arn);
                or(token_file, old_file);
            }
            (
                CredentialKind::Keytab { principal, .. },
                CredentialKind::Keytab { principal: old, .. },
            ) => or(principal, old),
            (CredentialKind::Header { name, .. }, CredentialKind::Header { name: old, .. }) => {
                or(name, old);
            }
            _ => {
                return Err(format!(
                    "they are a {}, and the new ones a {}; set new ones under another name",
                    old.kind_name(),
                    self.kind_name()
                ));
            }
        }
        if self.endpoints.is_empty() {
            self.endpoints.clone_from(&old.endpoints);
        }
        Ok(self)
    }

    /// Checks what can be told of it alone. The message repeats nothing secret.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub fn check(&self) -> Result<(), String> {
        match &self.kind {
            CredentialKind::Keys(keys) => check_keys(keys)?,
            CredentialKind::Role {
                arn,
                external_id,
                keys,
            } => {
                check_arn(arn)?;
                check_text(
                    "the external id",
                    external_id.as_deref().unwrap_or_default(),
                )?;
                check_keys(keys)?;
            }
            CredentialKind::WebIdentity { arn, token_file } => {
                check_arn(arn)?;
                check_text("the token's file", token_file)?;
                if !token_file.starts_with('/') {
                    return Err("the token's file is not absolute; write /path/to/token".into());
                }
            }
            CredentialKind::Keytab { principal, keytab } => {
                check_text("the principal", principal)?;
                if !principal.contains('@') {
                    return Err("the principal has no realm; write user@REALM".into());
                }
                // The version of the format, in all files that MIT's and Heimdal's tools make.
                if keytab.expose().first() != Some(&5) {
                    return Err(
                        "this is no keytab; give the file that `ktutil` or `kadmin ktadd` wrote"
                            .into(),
                    );
                }
                check_length(keytab.expose().len())?;
            }
            CredentialKind::Header { name, value } => {
                if name.parse::<HeaderName>().is_err() {
                    return Err(format!(
                        "{name:?} is no name of a header; write for instance Authorization"
                    ));
                }
                check_length(value.expose().len())?;
                let is_value = HeaderValue::from_str(value.expose()).is_ok();
                if value.expose().is_empty() || !is_value {
                    return Err("the header's value is empty, or has a line break or another character that no header has".into());
                }
                if self.endpoints.is_empty() {
                    return Err(
                        "a header is for one service; name it with --endpoint https://HOST".into(),
                    );
                }
            }
        }
        if self.endpoints.len() > MAX_ENDPOINTS {
            return Err(format!("these are more than {MAX_ENDPOINTS} endpoints"));
        }
        for endpoint in &self.endpoints {
            if service(endpoint).is_none() {
                return Err(format!(
                    "{endpoint:?} is no service; write http://HOST:PORT or https://HOST"
                ));
            }
        }
        Ok(())
    }

    /// Checks that it may be sent to the service at this address.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub fn check_service(&self, address: &str) -> Result<(), (String, String)> {
        let wanted = service(address);
        let is_for = |endpoint: &String| service(endpoint) == wanted;
        let of_aws = |wanted: &Service| wanted.scheme == "https" && is_aws_s3(&wanted.host);
        let fits = match (&wanted, self.endpoints.as_slice()) {
            (None, _) => false,
            (Some(wanted), []) => of_aws(wanted),
            (_, endpoints) => endpoints.iter().any(is_for),
        };
        if fits {
            return Ok(());
        }
        let shown = wanted.map_or_else(|| "this service".to_owned(), |wanted| wanted.to_string());
        let meant = if self.endpoints.is_empty() {
            "AWS".to_owned()
        } else {
            self.endpoints.join(", ")
        };
        Err((
            format!("they are for {meant}, not for {shown}"),
            format!("if that is meant, set them with --endpoint {shown}"),
        ))
    }
}

/// Credentials that a source names, and who has them.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) name: CredentialName,
    source: Arc<dyn CredentialSource>,
    /// The origin in messages.
    pub(crate) target: Arc<str>,
}

impl Named {
    pub(crate) fn new(
        name: CredentialName,
        source: Arc<dyn CredentialSource>,
        target: Arc<str>,
    ) -> Self {
        Self {
            name,
            source,
            target,
        }
    }

    /// The credentials as they are now.
    pub(crate) async fn get(&self) -> Result<Arc<Credential>, OriginError> {
        let asked = tokio::time::timeout(CREDENTIAL_DEADLINE, self.source.credential(&self.name));
        let answer = asked.await.unwrap_or_else(|_| {
            Err(CredentialError::Unavailable(format!(
                "no answer within {CREDENTIAL_DEADLINE:?}"
            )))
        });
        answer.map_err(|error| match error {
            CredentialError::Denied { problem, remedy } => self.refused(problem, remedy),
            CredentialError::Unavailable(detail) => OriginError::Unavailable {
                target: self.target.clone(),
                detail: format!(
                    "its credentials {:?} are not to be had: {detail}",
                    self.name.as_str()
                ),
            },
        })
    }

    /// The error for credentials that cannot be used.
    pub(crate) fn refused(
        &self,
        problem: impl fmt::Display,
        remedy: impl Into<String>,
    ) -> OriginError {
        OriginError::NotAllowed {
            target: self.target.clone(),
            problem: format!("credentials {}: {problem}", self.name),
            remedy: remedy.into(),
        }
    }

    /// The error for credentials of a kind that `what` does not use.
    pub(crate) fn unfit(&self, credential: &Credential, what: &str, wants: &str) -> OriginError {
        self.refused(
            format!("{what} is not read with a {}", credential.kind_name()),
            format!("name credentials that are {wants}"),
        )
    }
}

impl OriginSpec {
    /// Checks that this origin can be read with credentials: of a kind that it takes, for its service.
    ///
    /// # Errors
    /// When it cannot, with what to change.
    pub fn check_credential(&self, credential: &Credential) -> Result<(), OriginError> {
        let Some(name) = &self.credentials else {
            return Ok(());
        };
        let wrong = |problem: &str, remedy: &str| {
            OriginError::config(
                self.url.as_str(),
                format!("credentials {name}: {problem}"),
                remedy,
            )
        };
        let kind = credential.kind_name();
        let unfit = |what: &str, wants: &str| {
            Err(wrong(
                &format!("{what} is not read with a {kind}"),
                &format!("name credentials that are {wants}"),
            ))
        };
        match (self.scheme(), &credential.kind) {
            (
                "s3",
                CredentialKind::Keys(_)
                | CredentialKind::Role { .. }
                | CredentialKind::WebIdentity { .. },
            ) => {
                let endpoint = self.endpoint.as_deref().unwrap_or(AWS);
                let fits = credential.check_service(endpoint);
                fits.map_err(|(problem, remedy)| wrong(&problem, &remedy))
            }
            ("s3", _) => unfit("S3", S3_KINDS),
            (scheme, _) => unfit(&format!("{scheme}://"), "of its kind"),
        }
    }
}

/// A service that stands for all of AWS's S3.
const AWS: &str = "https://s3.amazonaws.com";
/// Credentials that S3 is read with.
pub(crate) const S3_KINDS: &str = "keys, a role or a web identity";

/// What connections are made to.
#[derive(PartialEq, Eq)]
struct Service {
    scheme: String,
    host: String,
    port: u16,
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usual = if self.scheme == "https" { 443 } else { 80 };
        write!(f, "{}://{}", self.scheme, self.host)?;
        if self.port != usual {
            write!(f, ":{}", self.port)?;
        }
        Ok(())
    }
}

/// The service at an address. None if it is none, or has a password.
fn service(address: &str) -> Option<Service> {
    let url = Url::parse(address).ok()?;
    let is_plain = url.username().is_empty() && url.password().is_none();
    let fits = matches!(url.scheme(), "http" | "https") && is_plain;
    fits.then_some(())?;
    Some(Service {
        scheme: url.scheme().to_owned(),
        host: url.host_str()?.trim_end_matches('.').to_owned(),
        port: url.port_or_known_default()?,
    })
}

fn check_keys(keys: &Keys) -> Result<(), String> {
    let Keys {
        access_key,
        secret_key,
        token,
    } = keys;
    for (value, what) in [
        (access_key.as_str(), "the access key"),
        (secret_key.as_str(), "the secret key"),
        (token.as_deref().unwrap_or("-"), "the session token"),
    ] {
        check_length(value.len())?;
        if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "{what} is empty, or has a space, a line break or another character that keys do not have"
            ));
        }
    }
    Ok(())
}

fn check_arn(arn: &str) -> Result<(), String> {
    check_text("the role", arn)?;
    if arn.starts_with("arn:") && arn.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    Err("the role is no ARN; write arn:aws:iam::ACCOUNT:role/NAME".into())
}

fn check_text(what: &str, text: &str) -> Result<(), String> {
    if text.len() > MAX_TEXT || text.chars().any(char::is_control) {
        return Err(format!(
            "{what} is longer than {MAX_TEXT} bytes, or has a line break"
        ));
    }
    Ok(())
}

fn check_length(bytes: usize) -> Result<(), String> {
    if bytes > MAX_SECRET {
        return Err(format!(
            "a secret has at most {MAX_SECRET} bytes, and this one {bytes}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
