//! One signed request, and what the service's answer means.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode, Uri};
use object_store::aws::{AmazonS3Builder, AwsAuthorizer, AwsCredential, AwsCredentialProvider};
use object_store::client::{HttpRequest, HttpRequestBody};
use parking_lot::RwLock;
use reqwest::Response;

use super::profile::{self, Profile};
use crate::error::OriginError;
use crate::spec::{Addressing, OriginSpec};

/// Region of requests when nobody names one; the service corrects it.
const DEFAULT_REGION: &str = "us-east-1";
/// Longest wait for a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Idle connections kept to one service, and for how long: shorter than the usual keep-alive of 20 s.
const MAX_IDLE: usize = 128;
const IDLE_FOR: Duration = Duration::from_secs(15);
/// Longest error document that is read.
const MAX_ERROR: usize = 64 << 10;

/// The connection pool, credentials and address of one bucket.
pub(super) struct Client {
    http: reqwest::Client,
    /// URL of the bucket, without a slash at the end.
    base: String,
    bucket: String,
    region: RwLock<String>,
    profile: Option<String>,
    credentials: RwLock<Option<AwsCredentialProvider>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({})", self.base)
    }
}

impl Client {
    pub(super) fn new(spec: &OriginSpec, bucket: &str) -> Result<Self, OriginError> {
        let config = |message: String| OriginError::Config {
            subject: format!("s3://{bucket}"),
            message,
        };
        // A second installation is refused, which is fine: the first is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_DEADLINE)
            .pool_max_idle_per_host(MAX_IDLE)
            .pool_idle_timeout(IDLE_FOR)
            .tcp_nodelay(true)
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| config(error.to_string()))?;
        let region = spec.region.clone().unwrap_or_else(|| DEFAULT_REGION.to_owned());
        let credentials = if spec.anonymous {
            None
        } else {
            Some(credentials(spec.profile.as_deref(), &region, bucket)?)
        };
        Ok(Self {
            http,
            base: base_url(spec, bucket, &region).map_err(config)?,
            bucket: bucket.to_owned(),
            region: RwLock::new(region),
            profile: spec.profile.clone(),
            credentials: RwLock::new(credentials),
        })
    }

    /// The object as it is named in messages.
    pub(super) fn object_url(&self, key: &str) -> String {
        format!("s3://{}/{}", self.bucket, key.escape_debug())
    }

    /// The bucket as it is named in messages.
    pub(super) fn bucket_url(&self) -> String {
        format!("s3://{}", self.bucket)
    }

    /// GETs an object (or the bucket itself) and gives the answer if it is a success. Corrects the region and loads expired
    /// credentials again, once each.
    pub(super) async fn get(
        &self,
        key: Option<&str>,
        query: &str,
        headers: HeaderMap,
        subject: &str,
    ) -> Result<Response, OriginError> {
        let mut corrected = false;
        let mut renewed = false;
        loop {
            let response = self.send(key, query, headers.clone(), subject).await?;
            if response.status().is_success() {
                return Ok(response);
            }
            let region = response.headers().get("x-amz-bucket-region");
            let region = region.and_then(|v| v.to_str().ok()).map(str::to_owned);
            let refusal = Refusal::read(response).await;
            if let Some(region) = region
                && !corrected
                && *self.region.read() != region
                && matches!(refusal.status, StatusCode::MOVED_PERMANENTLY | StatusCode::TEMPORARY_REDIRECT | StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN)
            {
                corrected = true;
                tracing::info!(bucket = %self.bucket, %region, "the bucket's region was corrected; give it with --region");
                *self.region.write() = region;
                continue;
            }
            if refusal.is_expired() && !renewed && self.credentials.read().is_some() {
                renewed = true;
                let region = self.region.read().clone();
                let fresh = credentials(self.profile.as_deref(), &region, &self.bucket)?;
                *self.credentials.write() = Some(fresh);
                continue;
            }
            return Err(refusal.explain(subject));
        }
    }

    async fn send(
        &self,
        key: Option<&str>,
        query: &str,
        headers: HeaderMap,
        subject: &str,
    ) -> Result<Response, OriginError> {
        let invalid = |error: &dyn std::fmt::Display| OriginError::Config {
            subject: subject.to_owned(),
            message: format!("the request cannot be made: {error}"),
        };
        let mut url = self.current_base();
        url.push('/');
        if let Some(key) = key {
            encode_path(key, &mut url);
        }
        if !query.is_empty() {
            url.push('?');
            url.push_str(query);
        }
        let uri: Uri = url.parse().map_err(|error| invalid(&error))?;
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        let provider = self.credentials.read().clone();
        if let Some(provider) = provider {
            let credential: Arc<AwsCredential> =
                provider
                    .get_credential()
                    .await
                    .map_err(|error| OriginError::AccessDenied {
                        subject: subject.to_owned(),
                        status: 0,
                        detail: format!(", no credentials: {error}"),
                    })?;
            let region = self.region.read().clone();
            AwsAuthorizer::new(&credential, "s3", &region)
                .try_authorize(&mut request, None)
                .map_err(|error| invalid(&error))?;
        }
        let mut sent = self.http.get(&url);
        sent = sent.headers(request.headers().clone());
        sent.send().await.map_err(|error| OriginError::Unavailable {
            subject: subject.to_owned(),
            detail: root_cause(&error),
        })
    }

    /// AWS names the region in the host, so a corrected region changes the address.
    fn current_base(&self) -> String {
        match self.base.split_once("{region}") {
            None => self.base.clone(),
            Some((before, after)) => format!("{before}{}{after}", self.region.read()),
        }
    }
}

/// URL of the bucket; `{region}` stands for the region where AWS wants it.
fn base_url(spec: &OriginSpec, bucket: &str, _region: &str) -> Result<String, String> {
    let Some(endpoint) = &spec.endpoint else {
        // Dots in a bucket's name break the certificate of a virtual host.
        let path = spec.addressing == Addressing::Path || bucket.contains('.');
        return Ok(if path {
            format!("https://s3.{{region}}.amazonaws.com/{bucket}")
        } else {
            format!("https://{bucket}.s3.{{region}}.amazonaws.com")
        });
    };
    let endpoint = endpoint.trim_end_matches('/');
    if spec.addressing != Addressing::Virtual {
        return Ok(format!("{endpoint}/{bucket}"));
    }
    let (scheme, host) = endpoint
        .split_once("://")
        .ok_or_else(|| format!("endpoint {endpoint:?} is not a URL"))?;
    Ok(format!("{scheme}://{bucket}.{host}"))
}

/// Static keys of the environment, then the profile's, then what object_store finds: web identity, container, instance.
fn credentials(
    profile: Option<&str>,
    region: &str,
    bucket: &str,
) -> Result<AwsCredentialProvider, OriginError> {
    let environment = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
        .iter()
        .all(|name| std::env::var(name).is_ok_and(|value| !value.is_empty()));
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_region(region);
    if !environment || profile.is_some() {
        if let Some(keys) = Profile::load(profile)?.keys()? {
            builder = builder
                .with_access_key_id(keys.access_key)
                .with_secret_access_key(keys.secret_key);
            builder = match keys.token {
                Some(token) => builder.with_token(token),
                None => builder,
            };
        } else if let Some(name) = profile {
            return Err(profile::without_keys(name));
        }
    }
    let store = builder.build().map_err(|error| OriginError::Config {
        subject: format!("s3://{bucket}"),
        message: error.to_string(),
    })?;
    Ok(store.credentials().clone())
}

/// Percent-encodes a key as SigV4 wants it: all but unreserved characters and `/`.
fn encode_path(key: &str, out: &mut String) {
    encode(key.as_bytes(), |byte| byte == b'/', out);
}

/// Percent-encodes a value of the query.
pub(super) fn encode_query(value: &str, out: &mut String) {
    encode(value.as_bytes(), |_| false, out);
}

fn encode(bytes: &[u8], also: impl Fn(u8) -> bool, out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in bytes {
        let plain = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
        if plain || also(byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

/// The innermost cause of an error: reqwest's own message does not tell it.
pub(super) fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// An answer that is no success.
struct Refusal {
    status: StatusCode,
    code: String,
    message: String,
}

impl Refusal {
    async fn read(response: Response) -> Self {
        #[derive(serde::Deserialize, Default)]
        #[serde(rename_all = "PascalCase", default)]
        struct Document {
            code: String,
            message: String,
        }
        let status = response.status();
        let small = response
            .content_length()
            .is_none_or(|length| length <= MAX_ERROR as u64);
        let body = if small {
            let read = tokio::time::timeout(CONNECT_DEADLINE, response.text());
            read.await.ok().and_then(Result::ok).unwrap_or_default()
        } else {
            String::new()
        };
        let document: Document = quick_xml::de::from_str(&body).unwrap_or_default();
        Self {
            status,
            code: document.code,
            message: document.message,
        }
    }

    fn is_expired(&self) -> bool {
        matches!(self.code.as_str(), "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired")
    }

    fn explain(self, subject: &str) -> OriginError {
        let subject = subject.to_owned();
        let status = self.status.as_u16();
        let detail = match (self.code.as_str(), self.message.as_str()) {
            ("", _) => String::new(),
            (code, "") => format!(" {code}"),
            (code, message) => format!(" {code}: {message}"),
        };
        if self.is_expired() {
            let detail = detail.trim_start().to_owned();
            return OriginError::CredentialsExpired { subject, detail };
        }
        match (status, self.code.as_str()) {
            (_, "NoSuchBucket") => OriginError::BucketMissing { subject },
            (404, _) => OriginError::Changed {
                subject,
                detail: "it is gone".to_owned(),
            },
            (412, _) => OriginError::Changed {
                subject,
                detail: "its ETag is another".to_owned(),
            },
            (416, _) => OriginError::Changed {
                subject,
                detail: "it became shorter".to_owned(),
            },
            (_, "RequestTimeout" | "SlowDown" | "RequestTimeTooSkewed") | (408 | 429 | 500.., _) => {
                OriginError::Unavailable {
                    subject,
                    detail: format!("it answered {status}{detail}"),
                }
            }
            (401 | 403, _) => OriginError::AccessDenied {
                subject,
                status,
                detail,
            },
            _ => OriginError::Config {
                subject,
                message: format!("it answered {status}{detail}; check --endpoint and --region"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_encoded_as_signatures_want_them() {
        let mut out = String::new();
        encode_path("a b/é+~\n", &mut out);
        assert_eq!(out, "a%20b/%C3%A9%2B~%0A");
        let mut out = String::new();
        encode_query("a/b=c", &mut out);
        assert_eq!(out, "a%2Fb%3Dc");
    }

    #[test]
    fn addresses_follow_endpoint_and_addressing() {
        let mut spec = OriginSpec::default();
        let base = |spec: &OriginSpec, bucket| base_url(spec, bucket, "r").unwrap();
        assert_eq!(base(&spec, "bucket"), "https://bucket.s3.{region}.amazonaws.com");
        assert_eq!(base(&spec, "a.b"), "https://s3.{region}.amazonaws.com/a.b");
        spec.endpoint = Some("http://host:9000/".into());
        assert_eq!(base(&spec, "bucket"), "http://host:9000/bucket");
        spec.addressing = Addressing::Virtual;
        assert_eq!(base(&spec, "bucket"), "http://bucket.host:9000");
    }
}
