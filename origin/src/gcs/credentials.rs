//! Tokens for Google Cloud Storage, found as Google's tools find them (Application Default Credentials): the file that
//! `GOOGLE_APPLICATION_CREDENTIALS` names, that of `gcloud auth application-default login`, the metadata service of the machine.
//! A file is the key of a service account, a person's login, or an identity of another provider ([`federated`]).

mod federated;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use url::form_urlencoded;
use weir_core::read_settings;

use crate::credential::{CredentialKind, Named, given_life};
use crate::error::OriginError;
use crate::transport::calls::{Calls, Limits, Refused, Reply, bearer, plain, token_service};
use crate::transport::environment::{Environment, unreadable};
use crate::transport::renewed::Issuer;
use crate::transport::trust::Trust;
use federated::Federated;

const VARIABLE: &str = "GOOGLE_APPLICATION_CREDENTIALS";
/// What tokens are for: reading.
const SCOPE: &str = "https://www.googleapis.com/auth/devstorage.read_only";
/// Who gives tokens to people.
const TOKEN_SERVICE: &str = "https://oauth2.googleapis.com/token";
/// Life of a service account's assertion, in seconds: the longest that is allowed.
const ASSERTED_FOR: i64 = 3600;
const METADATA: &str = "169.254.169.254";
const METADATA_PATH: &str = "/computeMetadata/v1/instance/service-accounts/default/token";
const FLAVOR: HeaderName = HeaderName::from_static("metadata-flavor");

const OF_SERVICE: Limits = Limits {
    connect: Duration::from_secs(3),
    whole: Duration::from_secs(8),
};
const OF_MACHINE: Limits = Limits {
    connect: Duration::from_millis(900),
    whole: Duration::from_secs(3),
};

/// A token, as requests carry it.
#[derive(PartialEq)]
pub(super) struct Token {
    pub(super) header: HeaderValue,
    /// The project that pays and whose quota counts.
    pub(super) project: Option<HeaderValue>,
}

/// Where tokens come from.
#[derive(Clone)]
pub(super) enum Source {
    /// The key of a service account.
    Account(Arc<Account>),
    /// What a person's login left.
    Person(Arc<Person>),
    /// An identity of another provider.
    Federated(Arc<Federated>),
    /// The metadata service of the machine.
    Machine(Uri),
}

pub(super) struct Account {
    email: String,
    key: RsaKeyPair,
    key_id: Option<String>,
    service: Uri,
}

pub(super) struct Person {
    client_id: String,
    client_secret: String,
    refresh_token: String,
    service: Uri,
}

#[derive(Deserialize)]
struct File {
    #[serde(rename = "type")]
    kind: String,
    client_email: Option<String>,
    private_key: Option<String>,
    private_key_id: Option<String>,
    token_uri: Option<String>,
    client_id: Option<String>,
    client_secret: Option<String>,
    refresh_token: Option<String>,
    quota_project_id: Option<String>,
}

/// Where tokens come from, and which project they are used for.
#[derive(Clone)]
pub(super) struct Login {
    source: Source,
    project: Option<HeaderValue>,
}

#[derive(Clone)]
enum Whose {
    /// Of this process or machine.
    Own(Login),
    /// Of the credentials that the bucket's source names.
    Named(Named),
}

/// Whose login it is, and how its tokens are asked for.
#[derive(Clone)]
pub(super) struct Found {
    whose: Whose,
    calls: Calls,
}

/// Finds the tokens of one bucket.
pub(super) struct Finder {
    origin: Arc<str>,
    environment: Box<dyn Fn() -> Environment + Send + Sync>,
    /// Credentials that the bucket's source names.
    named: Option<Named>,
}

impl Finder {
    pub(super) fn new(
        origin: Arc<str>,
        environment: impl Fn() -> Environment + Send + Sync + 'static,
        named: Option<Named>,
    ) -> Self {
        Self {
            origin,
            environment: Box::new(environment),
            named,
        }
    }

    /// The file that the source's credentials are.
    async fn login_of(&self, named: &Named) -> Result<Login, OriginError> {
        let credential = named.get().await?;
        let CredentialKind::Google(file) = &credential.kind else {
            return Err(named.refused("they are no file of Google's tools", "name such ones"));
        };
        let wrong = |_| {
            let remedy = "give another file with `weir credentials rotate`";
            named.refused("they are no usable file of Google's tools", remedy)
        };
        let found = self.source_of(Path::new(named.name.as_str()), file.expose());
        let (source, project) = found.map_err(wrong)?;
        let project = project.and_then(|project| HeaderValue::from_str(&project).ok());
        Ok(Login { source, project })
    }

    fn wrong(&self, path: &Path, problem: &str) -> OriginError {
        OriginError::config(
            self.origin.clone(),
            format!("the credentials in {} {problem}", path.display()),
            format!("check {VARIABLE}, or log in with `gcloud auth application-default login`"),
        )
    }

    fn source_of(
        &self,
        path: &Path,
        content: &[u8],
    ) -> Result<(Source, Option<String>), OriginError> {
        // serde's own words can repeat what is in the file.
        let file: File = serde_json::from_slice(content).map_err(|_| {
            self.wrong(path, "are not what Google's tools write (JSON with a type)")
        })?;
        let has = |value: Option<String>, name: &str| {
            let value = value.filter(|value| !value.is_empty());
            value.ok_or_else(|| self.wrong(path, &format!("have no {name}")))
        };
        let service = file.token_uri.as_deref().unwrap_or(TOKEN_SERVICE);
        let service = token_service(service)
            .ok_or_else(|| self.wrong(path, "have a token_uri that is no https:// address"))?;
        let source = match file.kind.as_str() {
            "service_account" => {
                let pem = has(file.private_key, "private_key")?;
                let key = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes())
                    .ok()
                    .and_then(|key| RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()).ok())
                    .ok_or_else(|| {
                        self.wrong(path, "have a private_key that is no RSA key in PKCS #8")
                    })?;
                Source::Account(Arc::new(Account {
                    email: has(file.client_email, "client_email")?,
                    key,
                    key_id: file.private_key_id,
                    service,
                }))
            }
            "external_account" if self.named.is_some() => {
                return Err(self.wrong(path, "name files and addresses of who reads them"));
            }
            "external_account" => {
                let settings = serde_json::from_slice(content)
                    .map_err(|_| self.wrong(path, "have a field that is not of its type"))?;
                let environment = (self.environment)();
                let found = Federated::find(settings, |path| environment.expand(path));
                let found = found.map_err(|problem| self.wrong(path, &problem))?;
                Source::Federated(Arc::new(found))
            }
            "authorized_user" => Source::Person(Arc::new(Person {
                client_id: has(file.client_id, "client_id")?,
                client_secret: has(file.client_secret, "client_secret")?,
                refresh_token: has(file.refresh_token, "refresh_token")?,
                service,
            })),
            other => {
                let kind = plain(other);
                let problem = format!(
                    "are of the type {kind:?}, which Weir does not support: it takes service_account, authorized_user and external_account"
                );
                return Err(self.wrong(path, &problem));
            }
        };
        Ok((source, file.quota_project_id))
    }
}

impl Issuer for Finder {
    type Key = Token;
    type Source = Found;

    fn find(&self) -> Result<Found, OriginError> {
        let environment = (self.environment)();
        let calls = Calls::new(Trust::of(&self.origin, None), &environment);
        if let Some(named) = &self.named {
            let whose = Whose::Named(named.clone());
            return Ok(Found { whose, calls });
        }
        let named = environment.path(VARIABLE);
        let is_named = named.is_some();
        let path = named.or_else(|| {
            const FILE: &str = "application_default_credentials.json";
            let configured = environment.path("CLOUDSDK_CONFIG");
            let configured = configured.or_else(|| environment.at_home(".config/gcloud"));
            configured.map(|dir| dir.join(FILE))
        });
        let content = path.as_deref().map(read_settings);
        let (source, project) = match (path, content) {
            (Some(path), Some(Ok(content))) => self.source_of(&path, &content)?,
            (Some(path), Some(Err(error))) if is_named => {
                return Err(unreadable(&self.origin, VARIABLE, &path, &error));
            }
            _ => {
                let host = environment.get("GCE_METADATA_HOST").unwrap_or(METADATA);
                let uri = format!("http://{host}{METADATA_PATH}").parse();
                let uri = uri.map_err(|_| {
                    OriginError::config(
                        self.origin.clone(),
                        "GCE_METADATA_HOST is no host",
                        "write HOST or HOST:PORT, or unset it",
                    )
                })?;
                (Source::Machine(uri), None)
            }
        };
        let project = environment
            .get("GOOGLE_CLOUD_QUOTA_PROJECT")
            .map(str::to_owned)
            .or(project);
        let project = project.and_then(|project| HeaderValue::from_str(&project).ok());
        let whose = Whose::Own(Login { source, project });
        Ok(Found { whose, calls })
    }

    fn fixed(_: &Found) -> Option<&Arc<Token>> {
        None
    }

    async fn load(&self, found: &Found) -> Result<(Token, Option<Duration>), Refused> {
        let Found { whose, calls } = found;
        let (login, is_named) = match whose {
            Whose::Own(login) => (login.clone(), false),
            Whose::Named(named) => {
                let login = self.login_of(named).await.map_err(Refused::Error)?;
                (login, true)
            }
        };
        let (header, life) = match &login.source {
            Source::Account(account) => account.load(calls).await?,
            Source::Person(person) => person.load(calls).await?,
            Source::Federated(identity) => identity.load(calls).await?,
            Source::Machine(uri) => of_machine(uri, calls).await?,
        };
        let project = login.project;
        let life = if is_named {
            Some(given_life(life))
        } else {
            life
        };
        Ok((Token { header, project }, life))
    }

    fn changes(_: &Found) -> bool {
        true
    }

    fn target(&self) -> &Arc<str> {
        &self.origin
    }

    fn remedy(&self) -> &'static str {
        "name a file in GOOGLE_APPLICATION_CREDENTIALS, log in with `gcloud auth application-default login`, or use --anonymous for a public bucket"
    }
}

impl Account {
    async fn load(&self, calls: &Calls) -> Result<(HeaderValue, Option<Duration>), Refused> {
        let assertion = self.assertion(jiff::Timestamp::now().as_second());
        let assertion = assertion.ok_or_else(|| {
            let detail = format!("the key of {} signs nothing", self.email);
            Refused::Denied(detail, "make another key of the service account")
        })?;
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer")
            .append_pair("assertion", &assertion)
            .finish();
        let what = || {
            format!(
                "{} for the service account {}",
                host(&self.service),
                self.email
            )
        };
        let reply = ask(calls, &self.service, form, &what).await?;
        bearer(
            &reply,
            &what,
            "check the key of the service account, and this machine's clock",
        )
    }

    /// A signed statement that this is the account (RFC 7523).
    fn assertion(&self, now: i64) -> Option<String> {
        let mut head = serde_json::json!({"alg": "RS256", "typ": "JWT"});
        if let Some(id) = &self.key_id {
            head["kid"] = id.as_str().into();
        }
        let claims = serde_json::json!({
            "iss": self.email,
            "scope": SCOPE,
            "aud": self.service.to_string(),
            "iat": now,
            "exp": now + ASSERTED_FOR,
        });
        let part = |json: &serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let signed = format!("{}.{}", part(&head), part(&claims));
        let mut signature = vec![0; self.key.public().modulus_len()];
        let random = SystemRandom::new();
        let made = self.key.sign(
            &RSA_PKCS1_SHA256,
            &random,
            signed.as_bytes(),
            &mut signature,
        );
        made.ok()?;
        Some(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

impl Person {
    async fn load(&self, calls: &Calls) -> Result<(HeaderValue, Option<Duration>), Refused> {
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "refresh_token")
            .append_pair("client_id", &self.client_id)
            .append_pair("client_secret", &self.client_secret)
            .append_pair("refresh_token", &self.refresh_token)
            .finish();
        let what = || format!("{} for the user who has logged in", host(&self.service));
        let reply = ask(calls, &self.service, form, &what).await?;
        bearer(
            &reply,
            &what,
            "log in again with `gcloud auth application-default login`",
        )
    }
}

async fn ask(
    calls: &Calls,
    service: &Uri,
    form: String,
    what: &impl Fn() -> String,
) -> Result<Reply, Refused> {
    let mut headers = HeaderMap::new();
    let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
    headers.insert(header::CONTENT_TYPE, kind);
    let asked = calls.ask(Method::POST, service, headers, form, OF_SERVICE);
    asked.await.map_err(|error| error.of_service(&what()))
}

async fn of_machine(uri: &Uri, calls: &Calls) -> Result<(HeaderValue, Option<Duration>), Refused> {
    let what = || format!("the metadata service of the machine at {}", host(uri));
    let mut headers = HeaderMap::new();
    headers.insert(FLAVOR, HeaderValue::from_static("Google"));
    let calls = calls.direct();
    let asked = calls.ask(Method::GET, uri, headers, "", OF_MACHINE);
    let reply = asked.await.map_err(|error| error.of_platform(&what()))?;
    // Other clouds have others at this address.
    let is_google = reply
        .headers
        .get(&FLAVOR)
        .is_some_and(|flavor| flavor == "Google");
    if !is_google || reply.status == StatusCode::NOT_FOUND {
        let detail = format!("{} is not Google's, or knows no service account", what());
        return Err(Refused::Absent(detail));
    }
    bearer(
        &reply,
        &what,
        "check the service account of this machine and its scopes",
    )
}

fn host(uri: &Uri) -> String {
    uri.host().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
