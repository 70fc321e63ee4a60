//! Keys of single sign-on: `aws sso login` leaves a token in the user's home, for which the portal gives out keys.
//!
//! A token that is about to expire is renewed where the sign-on allows it, and put back for the other tools.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use ring::digest;
use serde_json::{Map, Value};
use weir_core::read_settings;

use super::signature::{Keys, Temporary};
use crate::error::OriginError;
use crate::transport::calls::{Calls, Limits, Refused, Reply, plain};
use crate::transport::encode::encode_query;
use crate::transport::encode::hex;
use crate::transport::time;

const TOKEN: HeaderName = HeaderName::from_static("x-amz-sso_bearer_token");
const ERROR_TYPE: &str = "x-amzn-errortype";
const LIMITS: Limits = Limits {
    connect: Duration::from_secs(3),
    whole: Duration::from_secs(8),
};
/// A token is renewed so long before it expires.
const RENEW_BEFORE: Duration = Duration::from_mins(5);
const LOG_IN: &str = "run `aws sso login` for this profile, or `aws configure export-credentials`";

/// An account's role that a sign-on gives keys of.
pub(super) struct SignOn {
    pub(super) profile: String,
    pub(super) account: String,
    pub(super) role: String,
    pub(super) portal: Uri,
    pub(super) tokens: Uri,
    pub(super) cache: Cache,
}

/// The file that `aws sso login` has left.
pub(super) struct Cache {
    path: PathBuf,
    content: Map<String, Value>,
}

impl Cache {
    /// Reads the token of a session, or of a start URL, below the user's home.
    pub(super) fn read(
        origin: &Arc<str>,
        home: Option<PathBuf>,
        profile: &str,
        session: &str,
    ) -> Result<Self, OriginError> {
        let denied = |what: String| OriginError::AccessDenied {
            target: origin.clone(),
            detail: format!("the profile {profile:?} uses single sign-on, {what}"),
            remedy: LOG_IN,
        };
        let home = home.ok_or_else(|| denied("and HOME is not set".to_owned()))?;
        let name = hex(digest::digest(
            &digest::SHA1_FOR_LEGACY_USE_ONLY,
            session.as_bytes(),
        ));
        let path = home.join(".aws/sso/cache").join(format!("{name}.json"));
        let content = read_settings(&path).map_err(|error| {
            denied(format!(
                "whose token {} cannot be read: {error}",
                path.display()
            ))
        })?;
        let content = serde_json::from_slice(&content)
            .map_err(|_| denied(format!("whose token {} is no JSON", path.display())))?;
        Ok(Self { path, content })
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.content.get(name)?.as_str()
    }

    /// How long the token is good for.
    fn life(&self, name: &str) -> Duration {
        let expires = self.text(name);
        expires.and_then(time::left).unwrap_or(Duration::ZERO)
    }
}

impl SignOn {
    /// Asks for the role's keys.
    pub(super) async fn load(&self, calls: &Calls) -> Result<Temporary, Refused> {
        let token = self.token(calls).await?;
        let mut query = String::from("role_name=");
        encode_query(&self.role, &mut query);
        query.push_str("&account_id=");
        encode_query(&self.account, &mut query);
        let base = self.portal.to_string();
        let base = base.trim_end_matches('/');
        let uri = format!("{base}/federation/credentials?{query}");
        let uri = uri.parse().map_err(|_| {
            Refused::Denied(
                format!("no request can be made to {base}"),
                "check AWS_ENDPOINT_URL_SSO",
            )
        })?;
        let mut headers = HeaderMap::new();
        let mut value = HeaderValue::from_str(&token).map_err(|_| {
            let path = self.cache.path.display();
            Refused::Denied(format!("the token in {path} makes no sense"), LOG_IN)
        })?;
        value.set_sensitive(true);
        headers.insert(TOKEN, value);
        let reply = calls.ask(Method::GET, &uri, headers, "", LIMITS).await;
        let reply = reply.map_err(|error| error.of_service(&self.what()))?;
        if reply.status.is_success() {
            return keys(&reply.body).ok_or_else(|| {
                let detail = format!("{} did not answer with keys", self.what());
                Refused::Denied(detail, "check AWS_ENDPOINT_URL_SSO and sso_region")
            });
        }
        Err(self.refused(&reply))
    }

    fn what(&self) -> String {
        format!(
            "the single sign-on at {} of profile {:?}",
            self.portal, self.profile
        )
    }

    fn refused(&self, reply: &Reply) -> Refused {
        let status = reply.status;
        let kind = reply.headers.get(ERROR_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).map(plain);
        let detail = format!(
            "{}: {} {}",
            self.what(),
            status.as_u16(),
            kind.unwrap_or_default()
        );
        let detail = detail.trim_end().to_owned();
        match status {
            StatusCode::TOO_MANY_REQUESTS => Refused::Unavailable(detail),
            _ if status.is_server_error() => Refused::Unavailable(detail),
            StatusCode::UNAUTHORIZED => Refused::Denied(detail, LOG_IN),
            _ => Refused::Denied(detail, "check sso_account_id, sso_role_name and sso_region"),
        }
    }

    /// The token, renewed if it is about to expire and that is possible.
    async fn token(&self, calls: &Calls) -> Result<String, Refused> {
        let life = self.cache.life("expiresAt");
        let token = self.cache.text("accessToken").unwrap_or_default();
        if life > RENEW_BEFORE {
            return Ok(token.to_owned());
        }
        let missed = match self.renew(calls).await {
            Ok(Some(renewed)) => return Ok(renewed),
            Ok(None) => None,
            Err(unavailable) => Some(unavailable),
        };
        if life.is_zero() {
            // Whoever signs in again would be told the same by a service that is down.
            if let Some(unavailable) = missed {
                return Err(unavailable);
            }
            let when = self.cache.text("expiresAt").unwrap_or("an unknown time");
            let profile = &self.profile;
            let detail = format!("the sign-on of profile {profile:?} has expired, at {when}");
            return Err(Refused::Denied(detail, LOG_IN));
        }
        Ok(token.to_owned())
    }

    /// Asks for a new token, if the old one was given out with what that needs. An error if nobody answers.
    async fn renew(&self, calls: &Calls) -> Result<Option<String>, Refused> {
        let Some((uri, question)) = self.renewal() else {
            return Ok(None);
        };
        let mut headers = HeaderMap::new();
        let kind = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, kind);
        let asked = calls.ask(Method::POST, &uri, headers, question, LIMITS);
        let what = format!("the single sign-on at {uri} of profile {:?}", self.profile);
        let reply = asked.await.map_err(|error| error.of_service(&what))?;
        if reply.status.is_server_error() {
            let status = reply.status.as_u16();
            return Err(Refused::Unavailable(format!("{what}: {status}")));
        }
        let answer = Some(reply).filter(|reply| reply.status.is_success());
        let answer = answer.and_then(|reply| serde_json::from_slice::<Answer>(&reply.body).ok());
        let renewed = answer.and_then(|answer| {
            let token = answer.access_token.clone();
            Some((token, self.renewed(answer)?))
        });
        let Some((token, content)) = renewed else {
            tracing::debug!(
                profile = self.profile,
                "the token of the sign-on was not renewed"
            );
            return Ok(None);
        };
        let path = self.cache.path.clone();
        let saved = tokio::task::spawn_blocking(move || save(&path, &content)).await;
        if let Ok(Err(error)) = saved {
            let path = self.cache.path.display();
            tracing::warn!(%path, %error, "a renewed token was not saved, and its old one may be of no use any more");
        }
        Ok(Some(token))
    }

    /// Where a new token is asked for, and with what; none if the old one was not given out with that.
    fn renewal(&self) -> Option<(Uri, String)> {
        if self.cache.life("registrationExpiresAt").is_zero() {
            return None;
        }
        let field = |name: &str| Some(Value::from(self.cache.text(name)?));
        let question = serde_json::json!({
            "grantType": "refresh_token",
            "clientId": field("clientId")?,
            "clientSecret": field("clientSecret")?,
            "refreshToken": field("refreshToken")?,
        });
        let base = self.tokens.to_string();
        let uri = format!("{}/token", base.trim_end_matches('/'));
        Some((uri.parse().ok()?, question.to_string()))
    }

    /// The file with a renewed token.
    fn renewed(&self, answer: Answer) -> Option<String> {
        let life = jiff::SignedDuration::from_secs(answer.expires_in);
        let expires = jiff::Timestamp::now().checked_add(life).ok()?;
        let mut content = self.cache.content.clone();
        let mut set = |name: &str, value: String| content.insert(name.to_owned(), value.into());
        set("accessToken", answer.access_token);
        set(
            "expiresAt",
            expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        );
        if let Some(token) = answer.refresh_token {
            set("refreshToken", token);
        }
        serde_json::to_string(&content).ok()
    }
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    access_token: String,
    expires_in: i64,
    refresh_token: Option<String>,
}

/// Replaces a file at once, readable by its user alone.
fn save(path: &Path, content: &str) -> std::io::Result<()> {
    let now = jiff::Timestamp::now().as_nanosecond();
    let new = path.with_extension(format!("weir-{}-{now}", std::process::id()));
    let written = (|| {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(content.as_bytes())?;
        std::fs::rename(&new, path)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(new);
    }
    written
}

/// The keys of an answer.
fn keys(document: &[u8]) -> Option<Temporary> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Response {
        role_credentials: Credentials,
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Credentials {
        access_key_id: String,
        secret_access_key: String,
        session_token: Option<String>,
        /// In milliseconds since 1970.
        expiration: Option<i64>,
    }
    let response: Response = serde_json::from_slice(document).ok()?;
    let found = response.role_credentials;
    let life = found.expiration.and_then(|at| at.checked_mul(1_000_000));
    Some(Temporary {
        life: life.map(time::until),
        keys: Keys {
            access_key: found.access_key_id,
            secret_key: found.secret_access_key,
            token: found.session_token,
        },
    })
}
