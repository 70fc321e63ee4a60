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
use http::{HeaderName, HeaderValue, header};
use url::Url;
use weir_core::CredentialName;
use zeroize::{Zeroize, Zeroizing};

use crate::azure::SharedKey;
use crate::error::OriginError;
use crate::s3::signature::Keys;
use crate::sources::is_aws_s3;
use crate::spec::hdfs::DEFAULT_PORT;
use crate::spec::stores::{Dialect, is_azure, is_gcs};
use crate::spec::{OriginSpec, Place};

mod wire;

/// Longest time that a [`CredentialSource`] may take.
pub const CREDENTIAL_DEADLINE: Duration = Duration::from_secs(15);
/// Longest secret, in bytes.
pub const MAX_SECRET: usize = 64 << 10;
/// Longest text that is no secret (a role, a file's name), in bytes, and most services of one record.
const MAX_TEXT: usize = 2048;
const MAX_ENDPOINTS: usize = 64;
/// Headers that are no credentials, and that would change what a request means. Those of conditions (`If-…`) are others.
const OWN_HEADERS: [HeaderName; 10] = [
    header::HOST,
    header::RANGE,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::TE,
    header::UPGRADE,
    header::EXPECT,
    header::ACCEPT_ENCODING,
    header::PROXY_AUTHORIZATION,
];

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
    /// The services that it is for, as in `https://minio.lab:9000` or `hdfs://namenode:8020`. None stands for the one that
    /// the kind belongs to: S3 itself for keys and roles. A keytab and a header belong to none.
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
    /// What Google's tools write: the key of a service account, or a person's login.
    Google(Secret<Vec<u8>>),
    /// The key of a storage account of Azure.
    AzureKey {
        /// The account.
        account: String,
        /// The key, in base64 as Azure shows it.
        key: Secret,
    },
    /// A shared access signature of Azure: `sv=…&sig=…`.
    AzureSas(Secret),
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
            CredentialKind::Google(_) => "google",
            CredentialKind::AzureKey { .. } => "azure key",
            CredentialKind::AzureSas(_) => "azure sas",
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
            (CredentialKind::Keys(_), CredentialKind::Keys(_))
            | (CredentialKind::Google(_), CredentialKind::Google(_))
            | (CredentialKind::AzureSas(_), CredentialKind::AzureSas(_)) => {}
            (
                CredentialKind::AzureKey { account, .. },
                CredentialKind::AzureKey { account: old, .. },
            ) => or(account, old),
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
                    "they are of the kind {}, and the new ones of the kind {}; set those under another name",
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
                if self.endpoints.is_empty() {
                    return Err("a keytab is for one cluster; name its NameNodes with --endpoint hdfs://HOST:PORT, each once".into());
                }
            }
            CredentialKind::Google(file) => {
                check_length(file.expose().len())?;
                let file: Result<GoogleFile, _> = serde_json::from_slice(file.expose());
                if file
                    .as_ref()
                    .is_ok_and(|file| file.kind == "external_account")
                {
                    return Err("an external_account names files and addresses of the process that reads, and is not kept; name it in GOOGLE_APPLICATION_CREDENTIALS of masters and workers, for sources without credentials".into());
                }
                let file = file.ok().filter(GoogleFile::is_known).ok_or("this is no JSON of a service account's key or of a person's login; give the file that Google's tools wrote")?;
                // Whoever reads the source asks there for a token.
                if file
                    .token_uri
                    .is_some_and(|uri| !self.may_give_tokens(&uri))
                {
                    return Err("the file's token_uri is no service of Google; if it is meant, name it with --endpoint".into());
                }
            }
            CredentialKind::AzureKey { account, key } => {
                check_length(key.expose().len())?;
                let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
                if account.is_empty() || account.len() > 24 || !account.chars().all(fits) {
                    return Err(
                        "the account is no name of a storage account; write its letters and digits"
                            .into(),
                    );
                }
                if SharedKey::new(account, key.expose()).is_none() || key.expose().is_empty() {
                    return Err("the account's key is not base64; copy it as Azure shows it".into());
                }
            }
            CredentialKind::AzureSas(query) => {
                check_length(query.expose().len())?;
                let fits = |c: char| c.is_ascii_graphic() && c != '#' && c != '?';
                if !query.expose().contains("sig=") || !query.expose().chars().all(fits) {
                    return Err("this is no shared access signature; write it as Azure gives it: sv=…&sig=…".into());
                }
            }
            CredentialKind::Header { name, value } => {
                let Ok(header) = name.parse::<HeaderName>() else {
                    // Somebody may have written the value behind it.
                    return Err("this is no name of a header; write for instance Authorization, and give its value by standard input, or by --from FILE".into());
                };
                if OWN_HEADERS.contains(&header) || header.as_str().starts_with("if-") {
                    return Err(format!(
                        "the header {header} is one that Weir sets itself; write for instance Authorization"
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
        let length: usize = self.endpoints.iter().map(String::len).sum();
        if self.endpoints.len() > MAX_ENDPOINTS || length > MAX_TEXT {
            return Err(format!(
                "these are more than {MAX_ENDPOINTS} endpoints, or longer than {MAX_TEXT} bytes together"
            ));
        }
        let is_of_hdfs = matches!(self.kind, CredentialKind::Keytab { .. });
        for endpoint in &self.endpoints {
            let fits = |service: Service| (service.scheme == "hdfs") == is_of_hdfs;
            if !service(endpoint).is_some_and(fits) {
                let form = if is_of_hdfs {
                    "hdfs://HOST:PORT"
                } else {
                    "http://HOST:PORT or https://HOST"
                };
                // What has a password is not repeated.
                let shown = if endpoint.contains('@') {
                    "…"
                } else {
                    endpoint
                };
                return Err(format!("{shown:?} is no service of theirs; write {form}"));
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
        let (whose, is_own) = self.own_service();
        let is_own = |wanted: &Service| wanted.scheme == "https" && is_own(&wanted.host);
        let fits = match (&wanted, self.endpoints.as_slice()) {
            (None, _) => false,
            (Some(wanted), []) => is_own(wanted),
            (_, endpoints) => endpoints.iter().any(is_for),
        };
        if fits {
            return Ok(());
        }
        let shown = wanted.map_or_else(|| "this service".to_owned(), |wanted| wanted.to_string());
        let meant = if self.endpoints.is_empty() {
            whose.to_owned()
        } else {
            self.endpoints.join(", ")
        };
        Err((
            format!("they are for {meant}, not for {shown}"),
            format!("if that is meant, set some with `weir credentials set --endpoint {shown}`"),
        ))
    }
}

impl Credential {
    /// Whose services it is for if none are named, and which hosts those are.
    fn own_service(&self) -> (&'static str, fn(&str) -> bool) {
        match self.kind {
            CredentialKind::Keys(_)
            | CredentialKind::Role { .. }
            | CredentialKind::WebIdentity { .. } => ("AWS", is_aws_s3),
            CredentialKind::Google(_) => ("Google", is_gcs),
            CredentialKind::AzureKey { .. } | CredentialKind::AzureSas(_) => ("Azure", is_azure),
            CredentialKind::Keytab { .. } | CredentialKind::Header { .. } => ("none", |_| false),
        }
    }

    /// Whether Google's tokens may be asked for at this address.
    fn may_give_tokens(&self, address: &str) -> bool {
        let Some(wanted) = service(address) else {
            return false;
        };
        let is_google = wanted.scheme == "https" && wanted.host.ends_with(".googleapis.com");
        let mut endpoints = self.endpoints.iter();
        is_google || endpoints.any(|endpoint| service(endpoint).as_ref() == Some(&wanted))
    }
}

/// What is looked at of a file of Google's tools, whose words are not repeated.
#[derive(serde::Deserialize)]
struct GoogleFile {
    #[serde(rename = "type")]
    kind: String,
    token_uri: Option<String>,
}

impl GoogleFile {
    fn is_known(&self) -> bool {
        matches!(self.kind.as_str(), "service_account" | "authorized_user")
    }
}

/// How long what others give for the credentials that a source names is used at most, so that new credentials are used soon.
const GIVEN_LIFE: Duration = Duration::from_mins(15);

/// How long keys or tokens are used that others gave for the credentials that a source names.
pub(crate) fn given_life(life: Option<Duration>) -> Duration {
    life.map_or(GIVEN_LIFE, |life| life.min(GIVEN_LIFE))
}

/// Credentials that a source names, and who has them.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) name: CredentialName,
    spec: Arc<OriginSpec>,
    source: Arc<dyn CredentialSource>,
    /// The origin in messages.
    pub(crate) target: Arc<str>,
}

impl Named {
    pub(crate) fn new(
        name: CredentialName,
        spec: &OriginSpec,
        source: Arc<dyn CredentialSource>,
        target: Arc<str>,
    ) -> Self {
        Self {
            name,
            spec: Arc::new(spec.clone()),
            source,
            target,
        }
    }

    /// The credentials as they are now, which this source may be read with.
    pub(crate) async fn get(&self) -> Result<Arc<Credential>, OriginError> {
        let asked = tokio::time::timeout(CREDENTIAL_DEADLINE, self.source.credential(&self.name));
        let answer = asked.await.unwrap_or_else(|_| {
            Err(CredentialError::Unavailable(format!(
                "no answer within {CREDENTIAL_DEADLINE:?}"
            )))
        });
        let credential = answer.map_err(|error| match error {
            CredentialError::Denied { problem, remedy } => self.refused(problem, remedy),
            CredentialError::Unavailable(detail) => OriginError::Unavailable {
                target: self.target.clone(),
                detail: format!(
                    "its credentials {:?} are not to be had: {detail}",
                    self.name.as_str()
                ),
            },
        })?;
        self.spec.check_credential(&credential)?;
        Ok(credential)
    }

    /// What a service's refusal means for who has set the keys.
    pub(crate) fn explain(&self, error: OriginError) -> OriginError {
        let name = &self.name;
        match error {
            OriginError::AccessDenied { target, detail, .. } => OriginError::AccessDenied {
                target,
                detail: format!("{detail}, with credentials {name}"),
                remedy: "check what they may read, or give new ones with `weir credentials rotate`",
            },
            OriginError::CredentialsExpired { target, detail } => OriginError::CredentialsExpired {
                target,
                detail: format!("{detail}; `weir credentials rotate {name}` takes new ones"),
            },
            other => other,
        }
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
        let wrong = |problem: String, remedy: &str| {
            OriginError::config(
                self.url.as_str(),
                format!("credentials {name}: {problem}"),
                remedy,
            )
        };
        let scheme = self.scheme();
        let kind = &credential.kind;
        let (fits, takes) = match self.place()? {
            Place::S3 {
                dialect: Dialect::S3,
                ..
            } => (
                matches!(
                    kind,
                    CredentialKind::Keys(_)
                        | CredentialKind::Role { .. }
                        | CredentialKind::WebIdentity { .. }
                ),
                S3_KINDS,
            ),
            Place::S3 { .. } => (matches!(kind, CredentialKind::Keys(_)), "keys"),
            Place::Gcs { .. } => (matches!(kind, CredentialKind::Google(_)), "a google file"),
            Place::Azure { .. } => (
                matches!(
                    kind,
                    CredentialKind::AzureKey { .. } | CredentialKind::AzureSas(_)
                ),
                "an azure key or an azure sas",
            ),
            Place::Web(_) => (matches!(kind, CredentialKind::Header { .. }), "a header"),
            Place::Hdfs { .. } => (matches!(kind, CredentialKind::Keytab { .. }), "a keytab"),
            Place::File { .. } => (false, "none"),
        };
        if !fits {
            let kind = credential.kind_name();
            return Err(wrong(
                format!("{scheme}:// takes {takes}, and they are of the kind {kind}"),
                "name others",
            ));
        }
        for service in self.services_of_credentials()? {
            let meant = credential.check_service(&service);
            meant.map_err(|(problem, remedy)| wrong(problem, &remedy))?;
        }
        Ok(())
    }
}

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
        write!(f, "{}://{}", self.scheme, self.host)?;
        if Some(self.port) != usual_port(&self.scheme) {
            write!(f, ":{}", self.port)?;
        }
        Ok(())
    }
}

/// The service at an address. None if it is none, or has a password.
fn service(address: &str) -> Option<Service> {
    let url = Url::parse(address).ok()?;
    let is_plain = url.username().is_empty() && url.password().is_none();
    let usual = usual_port(url.scheme()).filter(|_| is_plain)?;
    Some(Service {
        scheme: url.scheme().to_owned(),
        host: url.host_str()?.trim_end_matches('.').to_ascii_lowercase(),
        port: url.port().unwrap_or(usual),
    })
}

/// The port of a service that is named without one. `None` for what is no service that takes credentials.
fn usual_port(scheme: &str) -> Option<u16> {
    match scheme {
        "https" => Some(443),
        "http" => Some(80),
        "hdfs" => Some(DEFAULT_PORT),
        _ => None,
    }
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
