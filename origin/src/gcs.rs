//! Google Cloud Storage, by its JSON API.
//!
//! The version of an object is its generation, which each request demands (`ifGenerationMatch`) and each answer names. An
//! object that is stored compressed (`Content-Encoding: gzip`) would be unpacked on the way if it were asked for as others are;
//! its version says so, and it is asked for as it is stored.

mod credentials;
mod listing;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use weir_core::ObjectRef;

use crate::checksum::{CrcKind, ObjectChecksum, PartSum};
use crate::credential::Named;
use crate::digest::Digest;
use crate::error::OriginError;
use crate::sources::SourcePolicy;
use crate::spec::stores::GOOGLE;
use crate::spec::{OriginSpec, Place};
use crate::store::{Page, Store, StoreOrigin, incomplete};
use crate::transport::encode::encode_query;
use crate::transport::environment::Environment;
use crate::transport::exchange::Answer;
use crate::transport::head::{Head, Witness, text};
use crate::transport::refusal::{Asked, Refusal};
use crate::transport::renewed::{Renewed, RequestKeys};
use crate::transport::service::Service;
use crate::transport::trust::host_of;

use credentials::Finder;

/// Behind the generation of an object that is stored compressed.
const GZIP: &str = "-gzip";
/// Longest page, in bytes: a thousand objects with names of 1 KiB, escaped.
const MAX_PAGE: usize = 16 << 20;
const KEYS: &str = "check GOOGLE_APPLICATION_CREDENTIALS and that they may list and read the bucket (roles/storage.objectViewer), or use --anonymous for a public bucket";

const GENERATION: &str = "x-goog-generation";
const HASH: &str = "x-goog-hash";
const PROJECT: HeaderName = HeaderName::from_static("x-goog-user-project");

/// A bucket.
#[derive(Debug)]
pub(crate) struct Gcs {
    service: Service,
    /// URL of the bucket's objects, without a slash at the end.
    base: String,
    /// `None` when requests are not authorised.
    credentials: Option<Renewed<Finder>>,
    /// Whether the source says so.
    is_anonymous: bool,
    /// What they are if the source names them.
    named: Option<Named>,
}

impl Gcs {
    pub(crate) fn open(
        spec: &OriginSpec,
        sources: &SourcePolicy,
    ) -> Result<StoreOrigin<Self>, OriginError> {
        let store = Self::new(spec, sources, Environment::of_process)?;
        Ok(StoreOrigin::new(spec, store))
    }

    fn new(
        spec: &OriginSpec,
        sources: &SourcePolicy,
        environment: impl Fn() -> Environment + Send + Sync + 'static,
    ) -> Result<Self, OriginError> {
        let Place::Gcs { bucket, .. } = spec.place()? else {
            return Err(OriginError::config(
                spec.url.as_str(),
                "it is no bucket of Google Cloud Storage",
                "write gs://bucket/prefix",
            ));
        };
        let name: Arc<str> = format!("gs://{bucket}").into();
        let endpoint = match &spec.endpoint {
            Some(endpoint) => spec.endpoint_url(endpoint)?.to_string(),
            None => GOOGLE.to_owned(),
        };
        let endpoint = endpoint.trim_end_matches('/');
        let with_tls = endpoint.starts_with("https:");
        // An emulator knows no keys, and is not to be shown any; one that does is named with TLS.
        let has_no_keys = spec.anonymous || !with_tls;
        let reach = sources.reach(spec)?;
        let named = sources.named(spec, &name)?;
        if let Some(named) = named.as_ref().filter(|_| !with_tls) {
            let remedy = "name an endpoint with https://";
            return Err(named.refused("they are sent with TLS alone", remedy));
        }
        let tls_to = host_of(endpoint).filter(|_| with_tls);
        let service = Service::new(name.clone(), tls_to.as_deref(), &environment(), reach)?;
        let credentials = if has_no_keys {
            None
        } else {
            let finder = Finder::new(name, environment, named.clone());
            Some(Renewed::find(finder)?)
        };
        Ok(Self {
            service,
            base: format!("{endpoint}/storage/v1/b/{bucket}/o"),
            credentials,
            is_anonymous: spec.anonymous,
            named,
        })
    }

    /// GETs what is at `uri` and gives the answer if it is a success; with other keys if these were refused.
    async fn get(
        &self,
        uri: &str,
        headers: &HeaderMap,
        key: Option<&str>,
    ) -> Result<Answer, OriginError> {
        let uri = uri
            .parse::<Uri>()
            .map_err(|error| OriginError::Unsupported {
                target: self.service.target(key),
                problem: format!("a request for it cannot be made: {error}"),
            })?;
        let mut keys = RequestKeys::of(self.credentials.as_ref());
        loop {
            let mut headers = headers.clone();
            if let Some(token) = keys.get().await? {
                if self.named.is_none() {
                    self.service.check_signature(&uri)?;
                }
                headers.insert(header::AUTHORIZATION, token.header.clone());
                if let Some(project) = &token.project {
                    headers.insert(PROJECT, project.clone());
                }
            }
            let answer = self.service.send(&Method::GET, &uri, headers, key).await?;
            if answer.status.is_success() {
                return Ok(answer);
            }
            let refusal = Refusal::read(answer).await;
            // Of credentials that were replaced it may be another that may read it.
            let may_be_of_old_keys = refusal.status == StatusCode::UNAUTHORIZED
                || (self.named.is_some() && refusal.status == StatusCode::FORBIDDEN);
            if may_be_of_old_keys && keys.renew().await? {
                continue;
            }
            let error = self.refused(refusal, key);
            return Err(match &self.named {
                Some(named) => named.explain(error),
                None if self.is_anonymous => error.of_anonymous(),
                None => error,
            });
        }
    }

    fn refused(&self, refusal: Refusal, key: Option<&str>) -> OriginError {
        let reason = listing::reason(&refusal.document);
        let refusal = refusal.with_code(reason);
        let origin = self.service.name();
        // A read has no word for it but that of its message.
        let names_bucket = |text: &[u8]| {
            let text = String::from_utf8_lossy(text);
            text.contains("bucket does not exist")
        };
        if refusal.status == StatusCode::NOT_FOUND && names_bucket(&refusal.document) {
            return OriginError::BucketMissing {
                origin: origin.clone(),
            };
        }
        let detail = refusal.detail();
        if refusal.code == "userProjectMissing" {
            return OriginError::AccessDenied {
                target: self.service.target(key),
                detail,
                remedy: "the bucket's readers pay: name the project that does in GOOGLE_CLOUD_QUOTA_PROJECT",
            };
        }
        if matches!(
            &*refusal.code,
            "rateLimitExceeded" | "userRateLimitExceeded"
        ) {
            let after = crate::transport::refusal::retry_after(&refusal.headers);
            return OriginError::Throttled {
                target: self.service.target(key),
                detail,
                after,
            };
        }
        refusal.explain(Asked {
            origin,
            target: self.service.target(key),
            key,
            keys: KEYS,
            service: "Google Cloud Storage, or --endpoint a service that speaks its JSON API",
        })
    }
}

impl Store for Gcs {
    const KIND: &'static str = "gs";

    fn service(&self) -> &Service {
        &self.service
    }

    async fn page(&self, prefix: &str, token: Option<&str>) -> Result<Page, OriginError> {
        let mut uri = format!("{}?{}&prefix=", self.base, listing::QUERY);
        encode_query(prefix, &mut uri);
        if let Some(token) = token {
            uri.push_str("&pageToken=");
            encode_query(token, &mut uri);
        }
        let mut headers = HeaderMap::new();
        headers.insert(
            header::ACCEPT_ENCODING,
            HeaderValue::from_static("identity"),
        );
        let answer = self.get(&uri, &headers, None).await?;
        let document = answer.document(MAX_PAGE).await;
        let document = document.map_err(|error| self.service.explain(error, None))?;
        listing::parse(&document, prefix).map_err(|problem| incomplete(&self.service, &problem))
    }

    async fn read(
        &self,
        object: &ObjectRef,
        range: Option<&Range<u64>>,
    ) -> Result<Answer, OriginError> {
        let (generation, is_gzip) = generation(object);
        let mut uri = format!("{}/", self.base);
        encode_query(&*object.key, &mut uri);
        uri.push_str("?alt=media&ifGenerationMatch=");
        encode_query(generation, &mut uri);
        let mut headers = HeaderMap::new();
        let stored = if is_gzip { "gzip" } else { "identity" };
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(stored));
        if let Some(range) = range {
            let bytes = format!("bytes={}-{}", range.start, range.end - 1);
            let bytes = HeaderValue::from_str(&bytes).unwrap_or(HeaderValue::from_static(""));
            headers.insert(header::RANGE, bytes);
        }
        self.get(&uri, &headers, Some(&object.key)).await
    }

    async fn checksum(&self, object: &ObjectRef) -> Result<Option<ObjectChecksum>, OriginError> {
        let (generation, _) = generation(object);
        let mut uri = format!("{}/", self.base);
        encode_query(&*object.key, &mut uri);
        uri.push_str("?fields=crc32c%2Cgeneration&ifGenerationMatch=");
        encode_query(generation, &mut uri);
        let answer = self.get(&uri, &HeaderMap::new(), Some(&object.key)).await?;
        let document = answer.document(MAX_PAGE).await;
        let document = document.map_err(|error| self.service.explain(error, Some(&object.key)))?;
        let length = object.size;
        let value = listing::crc32c(&document, generation);
        let value = value.and_then(|text| CrcKind::Crc32c.parse(&text));
        Ok(value.and_then(|value| {
            ObjectChecksum::new(CrcKind::Crc32c, vec![PartSum { length, value }], length)
        }))
    }

    /// A service may not know `ifGenerationMatch`, but each names the generation that it sends.
    fn witness(&self, head: &Head<'_>) -> Result<Witness, OriginError> {
        match text(head.headers, GENERATION) {
            Some(sent) if sent.trim() == generation(head.object).0 => Ok(Witness::Etag),
            Some(_) => Err(head.changed()),
            None => Err(OriginError::Malformed {
                target: head.target.clone(),
                detail: format!("it does not name its generation ({GENERATION})"),
            }),
        }
    }

    fn digest(&self, head: &Head<'_>) -> Option<Digest> {
        let values = head.headers.get_all(HASH).iter();
        let mut hashes = values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|hash| hash.trim().split_once('='));
        let crc = hashes.find_map(|(name, value)| (name == "crc32c").then_some(value))?;
        Some(Digest::Crc(CrcKind::Crc32c, CrcKind::Crc32c.parse(crc)?))
    }
}

/// The generation of an object's listed version, and whether it is stored compressed.
fn generation(object: &ObjectRef) -> (&str, bool) {
    match object.version.strip_suffix(GZIP) {
        Some(generation) => (generation, true),
        None => (&object.version, false),
    }
}
