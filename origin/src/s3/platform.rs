//! Keys that the platform gives: the metadata service of an instance, and the agent beside a container.
//!
//! Both are on this machine or next to it. They are asked without a proxy, and the instance's, which most machines do not
//! have, for a second.

use std::net::IpAddr;
use std::time::Duration;

use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use serde::de::DeserializeOwned;

use super::signature::{Keys, Temporary};
use crate::transport::calls::{CallError, Calls, Limits, Refused, Reply, plain};
use crate::transport::time;

/// The address of a container's agent on ECS.
const ECS: &str = "http://169.254.170.2";
/// Hosts of agents that may be asked without TLS, beside those of this machine.
const AGENTS: [&str; 3] = ["169.254.170.2", "169.254.170.23", "fd00:ec2::23"];

const OF_AGENT: Limits = Limits {
    connect: Duration::from_secs(2),
    whole: Duration::from_secs(5),
};
const OF_INSTANCE: Limits = Limits {
    connect: Duration::from_millis(900),
    whole: Duration::from_millis(900),
};

/// How the metadata service of a cloud is asked for the keys of an instance's role.
pub(super) struct Metadata {
    /// Names the role, or holds its keys below that name.
    roles: &'static str,
    token: HeaderName,
    token_life: HeaderName,
}

pub(super) static AWS: Metadata = Metadata {
    roles: "/latest/meta-data/iam/security-credentials/",
    token: HeaderName::from_static("x-aws-ec2-metadata-token"),
    token_life: HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds"),
};

pub(super) static ALIBABA: Metadata = Metadata {
    roles: "/latest/meta-data/ram/security-credentials/",
    token: HeaderName::from_static("x-aliyun-ecs-metadata-token"),
    token_life: HeaderName::from_static("x-aliyun-ecs-metadata-token-ttl-seconds"),
};

/// The agent beside a container.
pub(super) struct Container {
    uri: Uri,
    token: Option<HeaderValue>,
}

impl Container {
    /// The agent at a path of ECS's address.
    pub(super) fn relative(path: &str, token: Option<HeaderValue>) -> Option<Self> {
        let uri = format!("{ECS}/{}", path.trim_start_matches('/'))
            .parse()
            .ok()?;
        Some(Self { uri, token })
    }

    /// The agent at an address, if that is one that a token may be sent to: with TLS, or on this machine.
    pub(super) fn at(address: &str, token: Option<HeaderValue>) -> Option<Self> {
        let uri: Uri = address.parse().ok()?;
        let host = uri.host()?.trim_matches(['[', ']']);
        let is_near = host == "localhost"
            || AGENTS.contains(&host)
            || host.parse().is_ok_and(|host: IpAddr| host.is_loopback());
        let fits = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => is_near,
            _ => false,
        };
        fits.then_some(Self { uri, token })
    }

    pub(super) async fn load(&self, calls: &Calls) -> Result<Temporary, Refused> {
        let what = || {
            format!(
                "the agent that AWS_CONTAINER_CREDENTIALS_… names, {}",
                plain_uri(&self.uri)
            )
        };
        let mut headers = HeaderMap::new();
        if let Some(token) = &self.token {
            headers.insert(header::AUTHORIZATION, token.clone());
        }
        let asked = calls.direct();
        let asked = asked.ask(Method::GET, &self.uri, headers, "", OF_AGENT);
        let reply = asked.await.map_err(|error| error.of_platform(&what()))?;
        let remedy = "check AWS_CONTAINER_AUTHORIZATION_TOKEN, AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE, and the role of this container";
        keys(&reply, &what, remedy)
    }
}

/// An instance's metadata service.
pub(super) struct Instance {
    pub(super) service: &'static Metadata,
    /// Its role, if that is known.
    pub(super) role: Option<String>,
    /// Its address, without a path.
    pub(super) endpoint: Uri,
    /// It may be asked without a token, as its first version was.
    pub(super) without_token: bool,
}

impl Instance {
    /// Nobody has asked for this service by name. One that refuses is none: other clouds have others at its address.
    pub(super) async fn load(&self, calls: &Calls) -> Result<Temporary, Refused> {
        self.ask(calls).await.map_err(|refused| match refused {
            Refused::Denied(detail, _) => Refused::Absent(detail),
            other => other,
        })
    }

    async fn ask(&self, calls: &Calls) -> Result<Temporary, Refused> {
        let calls = calls.direct();
        let what = || format!("the metadata service of the instance, {}", self.endpoint);
        let mut headers = HeaderMap::new();
        if let Some(token) = self.token(&calls, &what).await? {
            headers.insert(&self.service.token, token);
        }
        let roles = self.service.roles;
        let role = if let Some(role) = &self.role {
            role.clone()
        } else {
            let reply = self.get(&calls, roles, headers.clone(), &what).await?;
            if reply.status == StatusCode::NOT_FOUND {
                let detail = format!("{} knows no role of it", what());
                return Err(Refused::Absent(detail));
            }
            check(&reply, &what, "check the role of this instance")?;
            let role = String::from_utf8_lossy(&reply.body).into_owned();
            role.lines().next().unwrap_or_default().trim().to_owned()
        };
        let path = format!("{roles}{role}");
        let reply = self.get(&calls, &path, headers, &what).await?;
        keys(&reply, &what, "check the role of this instance")
    }

    /// A token, without which the service's second version answers nothing. The first knows none, and behind one hop too
    /// many the answer gets lost.
    async fn token(
        &self,
        calls: &Calls,
        what: &impl Fn() -> String,
    ) -> Result<Option<HeaderValue>, Refused> {
        let mut headers = HeaderMap::new();
        headers.insert(&self.service.token_life, HeaderValue::from_static("300"));
        let uri = self.at("/latest/api/token", what)?;
        let asked = calls.ask(Method::PUT, &uri, headers, "", OF_INSTANCE);
        let reply = match asked.await {
            Ok(reply) => reply,
            Err(CallError::Broken(_)) if self.without_token => return Ok(None),
            Err(error) => return Err(error.of_platform(&what())),
        };
        let knows_none = matches!(reply.status.as_u16(), 403..=405);
        if knows_none && self.without_token {
            return Ok(None);
        }
        check(&reply, what, "check the metadata options of this instance")?;
        let token = HeaderValue::from_bytes(reply.body.trim_ascii());
        token
            .map(Some)
            .map_err(|_| Refused::Absent(format!("{} did not answer with a token", what())))
    }

    async fn get(
        &self,
        calls: &Calls,
        path: &str,
        headers: HeaderMap,
        what: &impl Fn() -> String,
    ) -> Result<Reply, Refused> {
        let uri = self.at(path, what)?;
        let asked = calls.ask(Method::GET, &uri, headers, "", OF_INSTANCE);
        asked.await.map_err(|error| error.of_platform(&what()))
    }

    fn at(&self, path: &str, what: &impl Fn() -> String) -> Result<Uri, Refused> {
        let base = self.endpoint.to_string();
        let uri = format!("{}{path}", base.trim_end_matches('/')).parse();
        uri.map_err(|_| {
            Refused::Absent(format!("{} names a role that no request can name", what()))
        })
    }
}

/// A service's URL. Messages repeat it, so it has no password.
pub(super) fn address(text: &str) -> Option<Uri> {
    let uri: Uri = text.parse().ok()?;
    let is_plain = |authority: &Authority| !authority.as_str().contains('@');
    let fits = matches!(uri.scheme_str(), Some("http" | "https"))
        && uri.authority().is_some_and(is_plain)
        && uri.host().is_some_and(|host| !host.is_empty());
    fits.then_some(uri)
}

/// An address without its path and query, which can be secret.
fn plain_uri(uri: &Uri) -> String {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{}://{host}", uri.scheme_str().unwrap_or_default())
}

fn check(reply: &Reply, what: &impl Fn() -> String, remedy: &'static str) -> Result<(), Refused> {
    let status = reply.status;
    if status.is_success() {
        return Ok(());
    }
    let code: Code = serde_json::from_slice(&reply.body).unwrap_or_default();
    let detail = format!("{}: {} {}", what(), status.as_u16(), plain(&code.code));
    let detail = detail.trim_end().to_owned();
    let passes = status.is_server_error()
        || status == StatusCode::TOO_MANY_REQUESTS
        || code.code.starts_with("Throttling");
    if passes {
        return Err(Refused::Unavailable(detail));
    }
    Err(Refused::Denied(detail, remedy))
}

#[derive(serde::Deserialize, Default)]
#[serde(default)]
struct Code {
    #[serde(alias = "Code")]
    code: String,
}

/// What an answer with keys says.
pub(super) fn given<T: DeserializeOwned>(
    reply: &Reply,
    what: &impl Fn() -> String,
    remedy: &'static str,
) -> Result<T, Refused> {
    check(reply, what, remedy)?;
    serde_json::from_slice(&reply.body).map_err(|_| {
        let code: Code = serde_json::from_slice(&reply.body).unwrap_or_default();
        let detail = format!("{} did not answer with keys {}", what(), plain(&code.code));
        Refused::Denied(detail.trim_end().to_owned(), remedy)
    })
}

/// The keys of an answer.
fn keys(
    reply: &Reply,
    what: &impl Fn() -> String,
    remedy: &'static str,
) -> Result<Temporary, Refused> {
    Ok(given::<Given>(reply, what, remedy)?.into())
}

/// Keys as services write them in JSON.
#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Given {
    access_key_id: String,
    #[serde(alias = "AccessKeySecret")]
    secret_access_key: String,
    #[serde(alias = "SecurityToken")]
    token: Option<String>,
    expiration: Option<String>,
}

impl From<Given> for Temporary {
    fn from(given: Given) -> Self {
        Self {
            life: given.expiration.as_deref().and_then(time::left),
            keys: Keys {
                access_key: given.access_key_id,
                secret_key: given.secret_access_key,
                token: given.token,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_sent_to_this_machine_or_with_tls_alone() {
        for near in [
            "http://127.0.0.1:1234/v1",
            "http://[::1]/v1",
            "http://localhost:80/",
            "http://169.254.170.2/x",
            "http://169.254.170.23/v1/credentials",
            "http://[fd00:ec2::23]/v1/credentials",
            "https://example.com/keys",
        ] {
            assert!(Container::at(near, None).is_some(), "{near}");
        }
        for far in [
            "http://example.com/",
            "http://169.254.169.254/",
            "ftp://localhost/",
            "/v1",
            "",
        ] {
            assert!(Container::at(far, None).is_none(), "{far}");
        }
        let relative = Container::relative("/v2/credentials/1", None).unwrap();
        assert_eq!(
            relative.uri.to_string(),
            "http://169.254.170.2/v2/credentials/1"
        );
        assert!(Container::relative("a b", None).is_none());
        let secret: Uri = "http://user:pass@h:1/secret?x".parse().unwrap();
        assert_eq!(plain_uri(&secret), "http://h:1");
    }
}
