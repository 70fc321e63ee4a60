//! Keys of a role, from AWS's Security Token Service or one that speaks its protocol.
//!
//! A role is assumed with the keys of somebody (signed), or with a token of a web identity (unsigned).

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use url::form_urlencoded;

use super::signature::{Keys, Signer, Temporary};
use crate::error::OriginError;
use crate::transport::calls::{Calls, Limits, Refused, Reply, plain};
use crate::transport::time;

/// The version of the protocol.
const VERSION: &str = "2011-06-15";
const LIMITS: Limits = Limits {
    connect: Duration::from_secs(3),
    whole: Duration::from_secs(8),
};

/// A role to be assumed.
pub(super) struct Role {
    pub(super) arn: String,
    pub(super) session: String,
    pub(super) service: Sts,
}

/// What is said of a role that is assumed with keys.
#[derive(Default)]
pub(super) struct Terms {
    pub(super) external_id: Option<String>,
    /// How long the role's keys are to last, in seconds.
    pub(super) duration: Option<String>,
}

/// A role's session: what the account's logs show.
pub(super) fn session(name: Option<&str>) -> String {
    let unnamed = || format!("weir-{}", jiff::Timestamp::now().as_millisecond());
    name.map_or_else(unnamed, str::to_owned)
}

/// Who assumes a role.
enum By<'a> {
    /// Whoever has these keys.
    Keys(&'a Keys, &'a Terms),
    /// Whoever has this token.
    Token(&'a str),
}

/// Where the service is.
#[derive(Clone)]
pub(super) struct Sts {
    pub(super) endpoint: Uri,
    pub(super) region: String,
}

impl Role {
    /// Asks for the role's keys, as whoever has `keys`.
    pub(super) async fn load_with_keys(
        &self,
        keys: &Keys,
        terms: &Terms,
        calls: &Calls,
        origin: &Arc<str>,
    ) -> Result<Temporary, Refused> {
        self.load(By::Keys(keys, terms), calls, origin).await
    }

    /// Asks for the role's keys, as whoever has the token of a web identity.
    pub(super) async fn load_with_token(
        &self,
        token: &str,
        calls: &Calls,
        origin: &Arc<str>,
    ) -> Result<Temporary, Refused> {
        self.load(By::Token(token), calls, origin).await
    }

    async fn load(
        &self,
        by: By<'_>,
        calls: &Calls,
        origin: &Arc<str>,
    ) -> Result<Temporary, Refused> {
        let mut headers = HeaderMap::new();
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        headers.insert(header::CONTENT_TYPE, kind);
        let uri = &self.service.endpoint;
        let body = self.question(&by);
        if let By::Keys(keys, _) = by {
            let signer = Signer {
                keys,
                service: "sts",
                region: &self.service.region,
            };
            let signed = signer.sign(&Method::POST, uri, &mut headers, body.as_bytes());
            signed.map_err(|_| Refused::Error(self.unsignable(origin)))?;
        }
        let reply = calls.ask(Method::POST, uri, headers, body, LIMITS).await;
        let reply = reply.map_err(|error| error.of_service(&self.what()))?;
        if reply.status.is_success() {
            return keys(&reply.body).ok_or_else(|| {
                let detail = format!("{} did not answer with keys", self.what());
                Refused::Denied(detail, "check AWS_ENDPOINT_URL_STS and AWS_ENDPOINT_URL")
            });
        }
        Err(self.refused(&reply))
    }

    /// The form that is sent.
    fn question(&self, by: &By<'_>) -> String {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("Version", VERSION)
            .append_pair("RoleArn", &self.arn)
            .append_pair("RoleSessionName", &self.session);
        match by {
            By::Token(token) => {
                form.append_pair("Action", "AssumeRoleWithWebIdentity")
                    .append_pair("WebIdentityToken", token);
            }
            By::Keys(_, terms) => {
                form.append_pair("Action", "AssumeRole");
                for (name, value) in [
                    ("ExternalId", &terms.external_id),
                    ("DurationSeconds", &terms.duration),
                ] {
                    if let Some(value) = value {
                        form.append_pair(name, value);
                    }
                }
            }
        }
        form.finish()
    }

    fn what(&self) -> String {
        format!("the STS at {} for role {}", self.service.endpoint, self.arn)
    }

    fn unsignable(&self, origin: &Arc<str>) -> OriginError {
        OriginError::config(
            origin.clone(),
            format!(
                "the keys that role {} is assumed with, or the region, have a line break or another character that they do not have",
                self.arn
            ),
            "check the keys of the source profile, and AWS_REGION",
        )
    }

    fn refused(&self, reply: &Reply) -> Refused {
        let code = code(&reply.body);
        let status = reply.status;
        let detail = format!("{}: {} {code}", self.what(), status.as_u16());
        let detail = detail.trim_end().to_owned();
        let passes = status.is_server_error()
            || status == StatusCode::TOO_MANY_REQUESTS
            || matches!(
                code.as_str(),
                "Throttling"
                    | "ThrottlingException"
                    | "RequestLimitExceeded"
                    | "IDPCommunicationError"
            );
        if passes {
            return Refused::Unavailable(detail);
        }
        let remedy = match code.as_str() {
            "AccessDenied" | "AccessDeniedException" => {
                "let these credentials assume the role (sts:AssumeRole, and the role's trust policy)"
            }
            "ExpiredToken" | "ExpiredTokenException" => {
                "renew the token or the keys that the role is assumed with"
            }
            "InvalidIdentityToken" => {
                "check AWS_WEB_IDENTITY_TOKEN_FILE, and the identity provider of the account"
            }
            "InvalidClientTokenId" | "SignatureDoesNotMatch" | "InvalidAccessKeyId" => {
                "check the keys of the source profile, and AWS_REGION"
            }
            _ => "check the role's ARN, AWS_ENDPOINT_URL_STS and AWS_ENDPOINT_URL",
        };
        Refused::Denied(detail, remedy)
    }
}

/// The keys of an answer.
fn keys(document: &[u8]) -> Option<Temporary> {
    #[derive(serde::Deserialize)]
    struct Response {
        #[serde(rename = "AssumeRoleResult", alias = "AssumeRoleWithWebIdentityResult")]
        result: Outcome,
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Outcome {
        credentials: Credentials,
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Credentials {
        access_key_id: String,
        secret_access_key: String,
        session_token: Option<String>,
        expiration: Option<String>,
    }
    let text = std::str::from_utf8(document).ok()?;
    let response: Response = quick_xml::de::from_str(text).ok()?;
    let found = response.result.credentials;
    Some(Temporary {
        life: found.expiration.as_deref().and_then(time::left),
        keys: Keys {
            access_key: found.access_key_id,
            secret_key: found.secret_access_key,
            token: found.session_token,
        },
    })
}

/// The code of an error document; empty when it has none. Its message can repeat what was sent.
fn code(document: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Response {
        error: Error,
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Error {
        code: String,
    }
    let text = String::from_utf8_lossy(document);
    let response: Option<Response> = quick_xml::de::from_str(&text).ok();
    plain(&response.map_or_else(String::new, |response| response.error.code))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = r#"<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>
        <AssumedRoleUser><Arn>arn</Arn></AssumedRoleUser><Credentials><AccessKeyId>A</AccessKeyId>
        <SecretAccessKey>S</SecretAccessKey><SessionToken>T</SessionToken><Expiration>2199-01-01T00:00:00Z</Expiration>
        </Credentials></AssumeRoleResult><ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></AssumeRoleResponse>"#;

    #[test]
    fn answers_of_both_kinds_are_understood() {
        let other = ANSWER.replace("AssumeRole", "AssumeRoleWithWebIdentity");
        for document in [ANSWER, &other] {
            let found = keys(document.as_bytes()).unwrap();
            assert_eq!(
                (&*found.keys.access_key, &*found.keys.secret_key),
                ("A", "S")
            );
            assert_eq!(found.keys.token.as_deref(), Some("T"));
            assert!(found.life.unwrap() > Duration::from_hours(24));
        }
        assert!(keys(b"<html/>").is_none() && keys(b"\xff").is_none());
        let refusal = b"<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>secret</Message></Error></ErrorResponse>";
        assert_eq!(code(refusal), "AccessDenied");
        assert_eq!(
            code(b"<ErrorResponse><Error><Code>a\nb</Code></Error></ErrorResponse>"),
            "a"
        );
        assert_eq!(code(b"no"), "");
    }

    #[test]
    fn fuzz_answers_of_any_bytes() {
        weir_fuzz::Target::new("sts-answer")
            .seed(ANSWER)
            .seed("<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>")
            .words(&[
                "<Credentials>",
                "</Credentials>",
                "<Expiration>",
                "<![CDATA[",
                "&lt;",
            ])
            .run(|document| {
                let found = keys(document).map(|found| found.life.is_some());
                (found, code(document).len().min(3))
            });
    }
}
