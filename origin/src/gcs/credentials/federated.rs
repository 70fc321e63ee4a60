//! Workload identity federation: a token of another provider is exchanged for one of Google's (RFC 8693), with which a
//! service account may be impersonated.
//!
//! The file says where the other provider's token is: in a file, or at an address. Both are the reading process's own, so
//! only a file of its own environment may say so, and none that a source names.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use serde::Deserialize;
use url::form_urlencoded;
use weir_core::read_settings;

use super::{OF_MACHINE, OF_SERVICE, SCOPE, host};
use crate::transport::calls::{Calls, Refused, bearer, plain, token_service};
use crate::transport::time;

/// What the exchanged token is for if an account is impersonated with it.
const PLATFORM: &str = "https://www.googleapis.com/auth/cloud-platform";
/// Life of an impersonated account's token, in seconds, unless the file says another.
const LIFE: u32 = 3600;
const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";

/// What a file of the type `external_account` says.
#[derive(Deserialize)]
pub(super) struct Settings {
    audience: Option<String>,
    subject_token_type: Option<String>,
    token_url: Option<String>,
    service_account_impersonation_url: Option<String>,
    #[serde(default)]
    service_account_impersonation: Impersonation,
    credential_source: Option<CredentialSource>,
    client_id: Option<String>,
    client_secret: Option<String>,
    workforce_pool_user_project: Option<String>,
}

#[derive(Deserialize, Default)]
struct Impersonation {
    token_lifetime_seconds: Option<u32>,
}

#[derive(Deserialize)]
struct CredentialSource {
    file: Option<String>,
    url: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    format: Format,
    /// Of AWS's instances.
    environment_id: Option<String>,
    /// A program that prints the token.
    executable: Option<serde_json::Value>,
}

/// How the token is written.
#[derive(Deserialize, Default)]
struct Format {
    #[serde(rename = "type")]
    kind: Option<String>,
    subject_token_field_name: Option<String>,
}

/// An identity of another provider.
pub(in crate::gcs) struct Federated {
    audience: String,
    token_type: String,
    subject: Subject,
    service: Uri,
    impersonated: Option<Impersonated>,
    /// What the service is to know of who asks.
    authorization: Option<HeaderValue>,
    /// The project of a workforce pool's user.
    user_project: Option<String>,
}

/// The account whose tokens are asked for with the exchanged one.
struct Impersonated {
    service: Uri,
    seconds: u32,
}

/// Where the other provider's token is.
enum Subject {
    /// It was in a file, which was read when this was found.
    Token(String),
    At {
        uri: Uri,
        headers: HeaderMap,
        field: Option<String>,
    },
}

impl Federated {
    /// Reads what a file says, and the token in the file that it names. The error is what is wrong with it.
    pub(super) fn find(
        settings: Settings,
        expand: impl Fn(&str) -> std::path::PathBuf,
    ) -> Result<Self, String> {
        let has = |value: Option<String>, name: &str| {
            let value = value.filter(|value| !value.trim().is_empty());
            value.ok_or_else(|| format!("have no {name}"))
        };
        let address = |text: &str, name: &str| {
            token_service(text).ok_or_else(|| format!("have a {name} that is no https:// address"))
        };
        let token_url = has(settings.token_url, "token_url")?;
        let impersonated = match settings.service_account_impersonation_url {
            None => None,
            Some(url) => Some(Impersonated {
                service: address(&url, "service_account_impersonation_url")?,
                seconds: settings
                    .service_account_impersonation
                    .token_lifetime_seconds
                    .unwrap_or(LIFE),
            }),
        };
        let authorization = match (&settings.client_id, &settings.client_secret) {
            (Some(id), Some(secret)) => {
                let basic = format!("Basic {}", STANDARD.encode(format!("{id}:{secret}")));
                let value = HeaderValue::from_str(&basic);
                let mut value = value.map_err(|_| "have no usable client_id".to_owned())?;
                value.set_sensitive(true);
                Some(value)
            }
            _ => None,
        };
        let source = settings.credential_source;
        let source = source.ok_or("have no credential_source")?;
        Ok(Self {
            audience: has(settings.audience, "audience")?,
            token_type: has(settings.subject_token_type, "subject_token_type")?,
            subject: source.find(expand)?,
            service: address(&token_url, "token_url")?,
            impersonated,
            user_project: settings
                .workforce_pool_user_project
                .filter(|_| authorization.is_none()),
            authorization,
        })
    }

    /// Asks for a token of Google's.
    pub(super) async fn load(
        &self,
        calls: &Calls,
    ) -> Result<(HeaderValue, Option<Duration>), Refused> {
        let subject = self.subject.load(calls).await?;
        let mut headers = HeaderMap::new();
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        headers.insert(header::CONTENT_TYPE, kind);
        if let Some(authorization) = &self.authorization {
            headers.insert(header::AUTHORIZATION, authorization.clone());
        }
        let what = || {
            format!(
                "{} for the identity of another provider",
                host(&self.service)
            )
        };
        let form = self.question(&subject);
        let asked = calls.ask(Method::POST, &self.service, headers, form, OF_SERVICE);
        let reply = asked.await.map_err(|error| error.of_service(&what()))?;
        let remedy = "check the audience and the credential_source of the file that GOOGLE_APPLICATION_CREDENTIALS names, and the provider's pool";
        let (token, life) = bearer(&reply, &what, remedy)?;
        match &self.impersonated {
            None => Ok((token, life)),
            Some(account) => account.load(token, calls).await,
        }
    }
}

impl Federated {
    /// The form that is sent.
    fn question(&self, subject: &str) -> String {
        let scope = match &self.impersonated {
            Some(_) => PLATFORM,
            None => SCOPE,
        };
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", EXCHANGE)
            .append_pair("audience", &self.audience)
            .append_pair("scope", scope)
            .append_pair("requested_token_type", ACCESS_TOKEN)
            .append_pair("subject_token_type", &self.token_type)
            .append_pair("subject_token", subject);
        if let Some(project) = &self.user_project {
            let options = serde_json::json!({ "userProject": project });
            form.append_pair("options", &options.to_string());
        }
        form.finish()
    }
}

impl CredentialSource {
    fn find(self, expand: impl Fn(&str) -> std::path::PathBuf) -> Result<Subject, String> {
        let unsupported = |what: &str| {
            format!(
                "have a credential_source of {what}, which Weir does not support: it takes file and url"
            )
        };
        if self.environment_id.is_some() {
            return Err(unsupported("AWS (environment_id)"));
        }
        if self.executable.is_some() {
            return Err(unsupported("a program (executable)"));
        }
        let field = self.format.field()?;
        match (self.file, self.url) {
            (Some(file), None) => {
                let path = expand(&file);
                let content = read_settings(&path).map_err(|error| {
                    format!("name {}, which cannot be read: {error}", path.display())
                })?;
                let token = token_in(&content, field.as_deref());
                let token = token.ok_or_else(|| no_token(&path))?;
                Ok(Subject::Token(token))
            }
            (None, Some(url)) => {
                let uri: Option<Uri> = url.parse().ok();
                let uri = uri.filter(|uri| {
                    matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()
                });
                let uri = uri.ok_or("have a credential_source whose url is no address")?;
                let mut headers = HeaderMap::new();
                for (name, value) in &self.headers {
                    let header = name.parse::<HeaderName>().ok();
                    let header = header.zip(HeaderValue::from_str(value).ok());
                    let (name, value) =
                        header.ok_or("have a credential_source with a header that is none")?;
                    headers.insert(name, value);
                }
                Ok(Subject::At {
                    uri,
                    headers,
                    field,
                })
            }
            _ => Err("have a credential_source with neither a file nor a url, or with both".into()),
        }
    }
}

fn no_token(path: &Path) -> String {
    format!("name {}, in which no token is", path.display())
}

impl Format {
    /// The field that holds the token, if it is JSON.
    fn field(self) -> Result<Option<String>, String> {
        match (self.kind.as_deref(), self.subject_token_field_name) {
            (None | Some("text"), _) => Ok(None),
            (Some("json"), Some(field)) => Ok(Some(field)),
            (Some("json"), None) => {
                Err("have a credential_source of JSON and no subject_token_field_name".into())
            }
            (Some(other), _) => Err(format!(
                "have a credential_source of the format {:?}; write text or json",
                plain(other)
            )),
        }
    }
}

/// The token in a text, or in a field of JSON.
fn token_in(content: &[u8], field: Option<&str>) -> Option<String> {
    let token = match field {
        None => std::str::from_utf8(content).ok()?.to_owned(),
        Some(field) => {
            let json: serde_json::Value = serde_json::from_slice(content).ok()?;
            json.get(field)?.as_str()?.to_owned()
        }
    };
    let token = token.trim();
    (!token.is_empty()).then(|| token.to_owned())
}

impl Subject {
    async fn load(&self, calls: &Calls) -> Result<String, Refused> {
        let (uri, headers, field) = match self {
            Self::Token(token) => return Ok(token.clone()),
            Self::At {
                uri,
                headers,
                field,
            } => (uri, headers, field),
        };
        let what = || format!("the provider of the subject token at {}", host(uri));
        // Without TLS it is the machine itself that is asked.
        let (calls, limits) = match uri.scheme_str() {
            Some("https") => (calls.clone(), OF_SERVICE),
            _ => (calls.direct(), OF_MACHINE),
        };
        let asked = calls.ask(Method::GET, uri, headers.clone(), "", limits);
        let reply = asked.await.map_err(|error| error.of_service(&what()))?;
        let remedy =
            "check the credential_source of the file that GOOGLE_APPLICATION_CREDENTIALS names";
        let status = reply.status;
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Err(Refused::Unavailable(format!("{}: {status}", what())));
        }
        let token = token_in(&reply.body, field.as_deref()).filter(|_| status.is_success());
        token.ok_or_else(|| {
            let detail = format!("{} answered {} without a token", what(), status.as_u16());
            Refused::Denied(detail, remedy)
        })
    }
}

impl Impersonated {
    /// Asks for a token of the account, with the exchanged one.
    async fn load(
        &self,
        token: HeaderValue,
        calls: &Calls,
    ) -> Result<(HeaderValue, Option<Duration>), Refused> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Answer {
            access_token: String,
            expire_time: String,
        }
        #[derive(Deserialize)]
        struct Problem {
            error: Status,
        }
        #[derive(Deserialize)]
        struct Status {
            #[serde(default)]
            status: String,
        }
        let mut headers = HeaderMap::new();
        let kind = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, kind);
        headers.insert(header::AUTHORIZATION, token);
        let question = serde_json::json!({
            "scope": [SCOPE],
            "lifetime": format!("{}s", self.seconds),
        });
        let question = question.to_string();
        let what = || format!("{} for a service account's token", host(&self.service));
        let asked = calls.ask(Method::POST, &self.service, headers, question, OF_SERVICE);
        let reply = asked.await.map_err(|error| error.of_service(&what()))?;
        let remedy = "let the federated identity impersonate the account (roles/iam.workloadIdentityUser), and check service_account_impersonation_url";
        if !reply.status.is_success() {
            let problem: Option<Problem> = serde_json::from_slice(&reply.body).ok();
            let word = problem.map(|problem| problem.error.status);
            return Err(reply.refused(&what(), &word.unwrap_or_default(), remedy));
        }
        let no_token =
            || Refused::Denied(format!("{} did not answer with a token", what()), remedy);
        let answer: Answer = serde_json::from_slice(&reply.body).map_err(|_| no_token())?;
        let header = HeaderValue::from_str(&format!("Bearer {}", answer.access_token.trim()));
        let mut header = header.map_err(|_| no_token())?;
        header.set_sensitive(true);
        Ok((header, time::left(&answer.expire_time)))
    }
}
