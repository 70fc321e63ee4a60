//! Where keys come from, in the order of AWS's tools, and how one profile's keys are made with another's.
//!
//! Finding that out reads variables and files and asks nobody. A setting that makes no sense is an error here and not a
//! reason to look elsewhere: a half-understood profile would read with the wrong identity.

use std::sync::Arc;

use http::{HeaderValue, Uri};

use super::alibaba::{self, PodRole};
use super::configuration::{Configuration, Service};
use super::helper::{DEADLINE, Helper};
use super::owned::Owned;
use super::platform::{self, Container, Instance, address};
use super::profile::Section;
use super::signature::{Keys, Temporary};
use super::sso::{Cache, SignOn};
use super::sts::{Role, Sts, Terms, session};
use crate::error::OriginError;
use crate::transport::calls::{Calls, Refused};
use crate::transport::environment::{Environment, token_in_file};

/// Profiles that one may lead to another through.
const MAX_CHAIN: usize = 10;
const DEFAULT_REGION: &str = "us-east-1";
/// Where an instance's metadata service is.
const INSTANCE: &str = "http://169.254.169.254";
const INSTANCE_V6: &str = "http://[fd00:ec2::254]";
const EXPORT: &str = "export keys with `aws configure export-credentials --format env`";

/// Where keys come from.
#[derive(Clone)]
pub(super) enum Source {
    /// They are written down.
    Fixed(Arc<Keys>),
    /// A program prints them.
    Helper(Arc<Helper>),
    /// A role is assumed with keys.
    Role(Arc<Assumed>),
    /// A role is assumed with a token.
    WebIdentity(Arc<WebIdentity>),
    /// A single sign-on gives them.
    SignOn(Arc<SignOn>),
    /// Alibaba Cloud's service gives them for the token of a pod.
    PodRole(Arc<PodRole>),
    /// The agent beside a container has them.
    Container(Arc<Container>),
    /// An instance's metadata service may have them.
    Instance(Arc<Instance>),
    /// Credentials that the source names.
    Owned {
        owned: Arc<Owned>,
        /// Where roles are assumed.
        sts: Sts,
    },
    /// Nowhere, and why.
    Nothing(Arc<str>),
    #[cfg(test)]
    Fragile(Arc<super::credentials::tests::Fragile>),
}

/// A role that is assumed with keys.
pub(super) struct Assumed {
    role: Role,
    terms: Terms,
    /// Of its keys.
    source: Source,
}

/// A role that is assumed with a token.
pub(super) struct WebIdentity {
    role: Role,
    token: String,
}

impl From<alibaba::Found> for Source {
    fn from(found: alibaba::Found) -> Self {
        match found {
            alibaba::Found::Keys(keys) => Self::Fixed(Arc::new(keys)),
            alibaba::Found::PodRole(role) => Self::PodRole(Arc::new(role)),
            alibaba::Found::Instance(instance) => Self::Instance(Arc::new(instance)),
            alibaba::Found::Nothing(why) => Self::Nothing(why.into()),
        }
    }
}

impl Source {
    /// Gets the keys.
    pub(super) async fn load(
        &self,
        calls: &Calls,
        origin: &Arc<str>,
    ) -> Result<Temporary, Refused> {
        match self {
            Self::Fixed(keys) => Ok(Temporary {
                keys: Keys::clone(keys),
                life: None,
            }),
            Self::Helper(helper) => {
                let (keys, life) = helper.run(origin).await.map_err(Refused::Error)?;
                let keys = trimmed(keys);
                Ok(Temporary { keys, life })
            }
            Self::Role(assumed) => {
                let Assumed {
                    role,
                    terms,
                    source,
                } = &**assumed;
                // A chain of roles is as long as the profiles are.
                let keys = Box::pin(source.load(calls, origin)).await?.keys;
                role.load_with_keys(&keys, terms, calls, origin).await
            }
            Self::WebIdentity(identity) => {
                let WebIdentity { role, token } = &**identity;
                role.load_with_token(token, calls, origin).await
            }
            Self::SignOn(sign_on) => sign_on.load(calls).await,
            Self::PodRole(role) => role.load(calls).await,
            Self::Container(container) => container.load(calls).await,
            Self::Instance(instance) => instance.load(calls).await,
            Self::Owned { owned, sts } => owned.load(sts, calls, origin).await,
            Self::Nothing(why) => Err(Refused::Absent(why.to_string())),
            #[cfg(test)]
            Self::Fragile(fragile) => Ok(fragile.load()),
        }
    }

    /// Whether keys that do not tell how long they last must be asked for again soon.
    pub(super) fn changes(&self) -> bool {
        !matches!(self, Self::Fixed(_) | Self::Helper(_))
    }
}

/// Keys as requests are signed with: files and secrets of Kubernetes like to end in a line break.
pub(super) fn trimmed(keys: Keys) -> Keys {
    let trim = |value: &String| value.trim().to_owned();
    Keys {
        access_key: trim(&keys.access_key),
        secret_key: trim(&keys.secret_key),
        token: keys
            .token
            .as_ref()
            .map(trim)
            .filter(|token| !token.is_empty()),
    }
}

/// Finds out where the keys of an origin come from: a profile that was asked for; else the variables, the profile that they
/// name or the default one, a web identity, a container's agent, an instance's metadata service. `region` is the bucket's,
/// for services whose region nothing names.
pub(super) fn find(
    origin: &Arc<str>,
    named: Option<&str>,
    region: Option<&str>,
    configuration: &Configuration<'_>,
) -> Result<Source, OriginError> {
    let finder = Finder {
        origin,
        region,
        configuration,
    };
    if named.is_none()
        && let Some(keys) = finder.variables()?
    {
        return Ok(keys);
    }
    let chosen = configuration.chosen.as_str();
    if configuration.profile().is_some() {
        match finder.profile(chosen, &mut Vec::new())? {
            Some(source) => return Ok(source),
            None if named.is_some() => {
                return Err(finder.wrong(
                    format!("the profile {chosen:?} has no keys"),
                    "add aws_access_key_id and aws_secret_access_key, or use the environment",
                ));
            }
            None => {}
        }
    }
    if let Some(role) = finder.web_identity()? {
        return Ok(role);
    }
    if let Some(container) = finder.container()? {
        return Ok(container);
    }
    finder.instance()
}

/// Where roles are assumed.
pub(super) fn sts(
    origin: &Arc<str>,
    region: Option<&str>,
    configuration: &Configuration<'_>,
) -> Result<Sts, OriginError> {
    let finder = Finder {
        origin,
        region,
        configuration,
    };
    finder.sts()
}

struct Finder<'a> {
    origin: &'a Arc<str>,
    region: Option<&'a str>,
    configuration: &'a Configuration<'a>,
}

impl Finder<'_> {
    fn wrong(&self, problem: impl Into<String>, remedy: &str) -> OriginError {
        OriginError::config(self.origin.clone(), problem, remedy)
    }

    fn environment(&self) -> &Environment {
        self.configuration.environment
    }

    /// The keys of the variables.
    fn variables(&self) -> Result<Option<Source>, OriginError> {
        let get = |name| self.environment().get(name).map(str::to_owned);
        let Some(access_key) = get("AWS_ACCESS_KEY_ID") else {
            return Ok(None);
        };
        let Some(secret_key) = get("AWS_SECRET_ACCESS_KEY") else {
            return Err(self.wrong(
                "AWS_ACCESS_KEY_ID is set, and AWS_SECRET_ACCESS_KEY is not, or is empty",
                "set both, or unset both to use a profile or a role",
            ));
        };
        Ok(Some(Source::Fixed(Arc::new(Keys {
            access_key,
            secret_key,
            token: get("AWS_SESSION_TOKEN"),
        }))))
    }

    /// What a profile says of keys. `before` are the profiles that led to it.
    fn profile(&self, name: &str, before: &mut Vec<String>) -> Result<Option<Source>, OriginError> {
        let profiles = &self.configuration.profiles;
        let section = profiles.get(name);
        let section = section.ok_or_else(|| profiles.missing(self.origin, name))?;
        if before.iter().any(|other| other == name) || before.len() >= MAX_CHAIN {
            return Err(self.wrong(
                format!("the profiles {before:?} lead back to {name:?}, or on for ever"),
                "check their source_profile",
            ));
        }
        if !before.is_empty()
            && let Some(keys) = static_keys(section)
        {
            return Ok(Some(keys));
        }
        let role = section.get("role_arn");
        match (role, section.get("web_identity_token_file")) {
            (Some(role), None) => {
                before.push(name.to_owned());
                let source = self.source_of_role(name, section, before)?;
                return self.assumed(name, section, role, source).map(Some);
            }
            (Some(role), Some(file)) => {
                let role = self.with_token(
                    "web_identity_token_file",
                    file,
                    role,
                    section.get("role_session_name"),
                )?;
                return Ok(Some(role));
            }
            (None, Some(_)) => {
                return Err(self.wrong(
                    format!("the profile {name:?} has web_identity_token_file and no role_arn"),
                    "add role_arn",
                ));
            }
            (None, None) => {}
        }
        self.base(name, section)
    }

    /// The keys that a profile has by itself.
    fn base(&self, name: &str, section: &Section) -> Result<Option<Source>, OriginError> {
        if section.get("sso_session").is_some() || section.get("sso_start_url").is_some() {
            return self.sign_on(name, section).map(Some);
        }
        if let Some(keys) = static_keys(section) {
            return Ok(Some(keys));
        }
        if section.get("aws_access_key_id").is_some() {
            return Err(self.wrong(
                format!("the profile {name:?} has aws_access_key_id and no aws_secret_access_key"),
                "add it",
            ));
        }
        if let Some(command) = section.get("credential_process") {
            let helper = Helper::new(name, command, DEADLINE);
            return Ok(Some(Source::Helper(Arc::new(helper))));
        }
        if section.get("login_session").is_some() {
            return Err(self.wrong(
                format!("the profile {name:?} uses login_session, which Weir does not support"),
                EXPORT,
            ));
        }
        Ok(None)
    }

    /// Whose keys the role of a profile is assumed with.
    fn source_of_role(
        &self,
        name: &str,
        section: &Section,
        before: &mut Vec<String>,
    ) -> Result<Source, OriginError> {
        if section.get("mfa_serial").is_some() {
            return Err(self.wrong(
                format!(
                    "the profile {name:?} wants a code (mfa_serial), for which nobody can be asked"
                ),
                EXPORT,
            ));
        }
        let no_keys = |name: &str| {
            self.wrong(
                format!("the profile {name:?}, with whose keys a role is assumed, has none"),
                "add keys to it, or name another source_profile",
            )
        };
        match (section.get("source_profile"), section.get("credential_source")) {
            // Its own keys.
            (Some(source), None) if source == name => {
                self.base(name, section)?.ok_or_else(|| no_keys(name))
            }
            (Some(source), None) => {
                let found = self.profile(source, before)?;
                found.ok_or_else(|| no_keys(source))
            }
            (None, Some(source)) => self.named_source(name, source),
            (None, None) => Err(self.wrong(
                format!("the profile {name:?} has role_arn, and neither source_profile nor credential_source"),
                "say with whose keys the role is assumed",
            )),
            (Some(_), Some(_)) => Err(self.wrong(
                format!("the profile {name:?} has both source_profile and credential_source"),
                "leave one of them out",
            )),
        }
    }

    fn named_source(&self, name: &str, source: &str) -> Result<Source, OriginError> {
        let found = match source.to_ascii_lowercase().as_str() {
            "environment" => self.variables()?,
            "ecscontainer" => self.container()?,
            "ec2instancemetadata" => match self.instance()? {
                Source::Nothing(_) => None,
                instance => Some(instance),
            },
            _ => {
                return Err(self.wrong(
                    format!("the profile {name:?} has the credential_source {source:?}, which does not exist"),
                    "write Environment, Ec2InstanceMetadata or EcsContainer",
                ));
            }
        };
        found.ok_or_else(|| {
            self.wrong(
                format!("the profile {name:?} takes keys from {source}, which has none here"),
                "check the AWS_* variables",
            )
        })
    }

    fn assumed(
        &self,
        name: &str,
        section: &Section,
        role: &str,
        source: Source,
    ) -> Result<Source, OriginError> {
        let duration = section.get("duration_seconds");
        if duration.is_some_and(|seconds| seconds.parse::<u32>().is_err()) {
            return Err(self.wrong(
                format!("the duration_seconds of the profile {name:?} is no number"),
                "write a number from 900 to 43200",
            ));
        }
        let role = Role {
            arn: role.to_owned(),
            session: session(section.get("role_session_name")),
            service: self.sts()?,
        };
        let terms = Terms {
            external_id: section.get("external_id").map(str::to_owned),
            duration: duration.map(str::to_owned),
        };
        Ok(Source::Role(Arc::new(Assumed {
            role,
            terms,
            source,
        })))
    }

    /// The role that the variables of a pod name.
    fn web_identity(&self) -> Result<Option<Source>, OriginError> {
        const FILE: &str = "AWS_WEB_IDENTITY_TOKEN_FILE";
        let Some(file) = self.environment().get(FILE) else {
            return Ok(None);
        };
        let role = self.environment().get("AWS_ROLE_ARN").ok_or_else(|| {
            self.wrong(
                format!("{FILE} is set, and AWS_ROLE_ARN is not"),
                "set AWS_ROLE_ARN to the role, or unset both",
            )
        })?;
        let session = self.environment().get("AWS_ROLE_SESSION_NAME");
        self.with_token(FILE, file, role, session).map(Some)
    }

    fn with_token(
        &self,
        setting: &str,
        file: &str,
        role: &str,
        name: Option<&str>,
    ) -> Result<Source, OriginError> {
        let token = self.token(setting, file)?;
        let role = Role {
            arn: role.to_owned(),
            session: session(name),
            service: self.sts()?,
        };
        Ok(Source::WebIdentity(Arc::new(WebIdentity { role, token })))
    }

    /// The token in the file that a setting names, without white space around it.
    fn token(&self, setting: &str, file: &str) -> Result<String, OriginError> {
        let path = self.environment().expand(file);
        token_in_file(self.origin, setting, &path)
    }

    fn sts(&self) -> Result<Sts, OriginError> {
        let region = self.configuration.region().or(self.region);
        let region = region.unwrap_or(DEFAULT_REGION);
        let aws = || format!("https://sts.{region}.{}", domain(region));
        Ok(Sts {
            endpoint: self.endpoint(Service::Sts, aws)?,
            region: region.to_owned(),
        })
    }

    /// Where a service is.
    fn endpoint(&self, service: Service, aws: impl Fn() -> String) -> Result<Uri, OriginError> {
        let configured = self.configuration.endpoint(service);
        let endpoint = configured.map_or_else(aws, str::to_owned);
        address(&endpoint).ok_or_else(|| {
            self.wrong(
                "the address of the service that gives keys is not an http or https URL without a password, or the region is none",
                "check AWS_ENDPOINT_URL_STS, AWS_ENDPOINT_URL, the profile's endpoint_url, and AWS_REGION",
            )
        })
    }

    fn sign_on(&self, name: &str, section: &Section) -> Result<Source, OriginError> {
        let session = match section.get("sso_session") {
            Some(session) => {
                let found = self.configuration.profiles.session(session);
                let found = found.ok_or_else(|| {
                    self.wrong(
                        format!("the profile {name:?} uses the sso-session {session:?}, which is not there"),
                        "run `aws configure sso`",
                    )
                })?;
                Some((session, found))
            }
            None => None,
        };
        let get = |setting: &str| {
            let shared = session.and_then(|(_, shared)| shared.get(setting));
            shared.or_else(|| section.get(setting)).ok_or_else(|| {
                self.wrong(
                    format!("the profile {name:?} uses single sign-on and has no {setting}"),
                    "run `aws configure sso`",
                )
            })
        };
        let (region, start) = (get("sso_region")?, get("sso_start_url")?);
        let domain = domain(region);
        let home = self.environment().at_home("");
        Ok(Source::SignOn(Arc::new(SignOn {
            profile: name.to_owned(),
            account: get("sso_account_id")?.to_owned(),
            role: get("sso_role_name")?.to_owned(),
            portal: self.endpoint(Service::Sso, || {
                format!("https://portal.sso.{region}.{domain}")
            })?,
            tokens: self.endpoint(Service::SsoOidc, || {
                format!("https://oidc.{region}.{domain}")
            })?,
            cache: Cache::read(
                self.origin,
                home,
                name,
                session.map_or(start, |(session, _)| session),
            )?,
        })))
    }

    fn container(&self) -> Result<Option<Source>, OriginError> {
        const RELATIVE: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
        const FULL: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
        let environment = self.environment();
        let (name, container) = match (environment.get(RELATIVE), environment.get(FULL)) {
            (Some(path), _) => (RELATIVE, Container::relative(path, self.agents_token()?)),
            (None, Some(address)) => (FULL, Container::at(address, self.agents_token()?)),
            (None, None) => return Ok(None),
        };
        let container = container.ok_or_else(|| {
            self.wrong(
                format!("{name} is no address that a token may be sent to"),
                "write https://…, or http:// and an address of this machine or of the container's agent",
            )
        })?;
        Ok(Some(Source::Container(Arc::new(container))))
    }

    /// What a container's agent wants to see.
    fn agents_token(&self) -> Result<Option<HeaderValue>, OriginError> {
        const FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
        const TOKEN: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN";
        let environment = self.environment();
        let (name, token) = match (environment.get(FILE), environment.get(TOKEN)) {
            (Some(file), _) => (FILE, self.token(FILE, file)?),
            (None, Some(token)) => (TOKEN, token.to_owned()),
            (None, None) => return Ok(None),
        };
        let mut value = HeaderValue::from_str(&token).map_err(|_| {
            self.wrong(
                format!("the token of {name} has a line break in it or another character that no token has"),
                "write the token alone",
            )
        })?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    fn instance(&self) -> Result<Source, OriginError> {
        let environment = self.environment();
        let unreadable = self.configuration.profiles.unreadable.as_deref();
        if environment.is_true("AWS_EC2_METADATA_DISABLED") {
            let why = "AWS_EC2_METADATA_DISABLED is true";
            let why = unreadable.map_or_else(|| why.to_owned(), |file| format!("{why}; {file}"));
            return Ok(Source::Nothing(why.into()));
        }
        let setting = |name: &str| self.configuration.profile()?.get(name);
        let is_v6 = environment
            .get("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE")
            .or_else(|| setting("ec2_metadata_service_endpoint_mode"))
            .is_some_and(|mode| mode.eq_ignore_ascii_case("ipv6"));
        let endpoint = environment
            .first(&["AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_METADATA_ENDPOINT"])
            .or_else(|| setting("ec2_metadata_service_endpoint"))
            .unwrap_or(if is_v6 { INSTANCE_V6 } else { INSTANCE });
        let endpoint = address(endpoint).ok_or_else(|| {
            self.wrong(
                "AWS_EC2_METADATA_SERVICE_ENDPOINT is no URL, or has a password",
                "write http://HOST, or unset it",
            )
        })?;
        Ok(Source::Instance(Arc::new(Instance {
            service: &platform::AWS,
            role: None,
            endpoint,
            without_token: !environment.is_true("AWS_EC2_METADATA_V1_DISABLED"),
        })))
    }
}

/// The keys that are written down in a profile.
fn static_keys(section: &Section) -> Option<Source> {
    let keys = Keys {
        access_key: section.get("aws_access_key_id")?.to_owned(),
        secret_key: section.get("aws_secret_access_key")?.to_owned(),
        token: section.get("aws_session_token").map(str::to_owned),
    };
    Some(Source::Fixed(Arc::new(trimmed(keys))))
}

/// The domain of AWS's services in a region.
fn domain(region: &str) -> &'static str {
    if region.starts_with("cn-") {
        "amazonaws.com.cn"
    } else {
        "amazonaws.com"
    }
}

#[cfg(test)]
mod tests;
