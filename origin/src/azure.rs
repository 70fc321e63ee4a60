//! Azure's blobs, by the REST API of the Blob service.
//!
//! The version of a blob is its ETag, which each request demands (`If-Match`). Accounts with directories (hierarchical
//! namespace, Data Lake) are read by the same API; their directories are listed as such.

mod credentials;
mod listing;
mod signature;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use jiff::Timestamp;
use weir_core::ObjectRef;

use crate::credential::Named;
use crate::error::OriginError;
use crate::sources::SourcePolicy;
use crate::spec::{OriginSpec, Place};
use crate::store::{Page, Store, StoreOrigin, incomplete};
use crate::transport::encode::{encode_path, encode_query};
use crate::transport::environment::Environment;
use crate::transport::exchange::Answer;
use crate::transport::head::text;
use crate::transport::refusal::{Asked, Refusal};
use crate::transport::renewed::{Renewed, RequestKeys};
use crate::transport::service::Service;

use credentials::{Authority, Finder};
pub(crate) use signature::SharedKey;

/// The version of the API: the first with encoded names in listings and tokens of Entra ID for all that is used here.
const API: HeaderValue = HeaderValue::from_static("2021-12-02");
const API_VERSION: HeaderName = HeaderName::from_static("x-ms-version");
const DATE: HeaderName = HeaderName::from_static("x-ms-date");
const ERROR_CODE: &str = "x-ms-error-code";
/// Longest page, in bytes: five thousand blobs.
const MAX_PAGE: usize = 32 << 20;
const KEYS: &str = "check AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN or the identity, and that it may list and read the container (Storage Blob Data Reader), or use --anonymous for a public container";

/// A container.
#[derive(Debug)]
pub(crate) struct Azure {
    service: Service,
    /// URL of the container, without a slash at the end.
    base: String,
    /// What is sent is seen by the service alone: it goes with TLS, or to this machine.
    is_private: bool,
    /// `None` when requests are not authorised.
    credentials: Option<Renewed<Finder>>,
    /// What they are if the source names them.
    named: Option<Named>,
}

impl Azure {
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
        let Place::Azure { container, .. } = spec.place()? else {
            return Err(OriginError::config(
                spec.url.as_str(),
                "it is no container of Azure",
                "write az://container/prefix",
            ));
        };
        let name: Arc<str> = format!("az://{container}").into();
        let endpoint = spec.azure_endpoint()?;
        let reach = sources.reach(spec)?;
        let named = sources.named(spec, &name)?;
        let with_tls = endpoint.scheme() == "https";
        let base = format!("{}/{container}", endpoint.as_str().trim_end_matches('/'));
        let tls_to = endpoint.host_str().filter(|_| with_tls);
        let service = Service::new(name.clone(), tls_to, &environment(), reach)?;
        let credentials = if spec.anonymous {
            None
        } else {
            let finder = Finder::new(name, &endpoint, environment, named.clone());
            Some(Renewed::find(finder)?)
        };
        Ok(Self {
            service,
            base,
            is_private: with_tls || credentials::is_local(&endpoint),
            credentials,
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
        let mut keys = RequestKeys::of(self.credentials.as_ref());
        loop {
            let mut headers = headers.clone();
            headers.insert(API_VERSION, API);
            headers.insert(
                header::ACCEPT_ENCODING,
                HeaderValue::from_static("identity"),
            );
            let now = Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT");
            let now = HeaderValue::from_str(&now.to_string());
            headers.insert(DATE, now.map_err(|error| self.invalid(key, &error))?);
            let authority = keys.get().await?;
            let mut address = uri.to_owned();
            if let Some(Authority::Sas(query)) = authority.as_deref() {
                address.push(if address.contains('?') { '&' } else { '?' });
                address.push_str(query);
            }
            // The error's own words could repeat a signature.
            let address = address
                .parse::<Uri>()
                .map_err(|_| self.invalid(key, &"its address is not valid"))?;
            if let Some(authority) = &authority {
                if self.named.is_none() {
                    self.service.check_signature(&address)?;
                }
                if !self.is_private && !matches!(**authority, Authority::Key(_)) {
                    return Err(OriginError::config(
                        self.service.name().clone(),
                        "a token or a shared access signature would be sent without TLS",
                        "write https:// in --endpoint, or use the account's key",
                    ));
                }
                match &**authority {
                    Authority::Sas(_) => {}
                    Authority::Bearer(token) => {
                        headers.insert(header::AUTHORIZATION, token.clone());
                    }
                    Authority::Key(shared) => {
                        let signed = shared.sign(&Method::GET, &address, &mut headers, 0);
                        signed.map_err(|error| self.invalid(key, &error))?;
                    }
                }
            }
            let answer = self
                .service
                .send(&Method::GET, &address, headers, key)
                .await?;
            if answer.status.is_success() {
                return Ok(answer);
            }
            let refusal = Refusal::read(answer).await;
            let code = text(&refusal.headers, ERROR_CODE).map(str::to_owned);
            let code = code.unwrap_or_else(|| listing::code(&refusal.document));
            let refusal = refusal.with_code(code);
            let may_be_of_old_keys = refusal.status == StatusCode::UNAUTHORIZED
                || (self.named.is_some() && refusal.status == StatusCode::FORBIDDEN)
                || matches!(
                    &*refusal.code,
                    "AuthenticationFailed" | "ExpiredToken" | "InvalidAuthenticationInfo"
                );
            if may_be_of_old_keys && keys.renew().await? {
                continue;
            }
            let error = self.refused(&refusal, key);
            return Err(match &self.named {
                Some(named) => named.explain(error),
                None if self.credentials.is_none() => error.of_anonymous(),
                None => error,
            });
        }
    }

    fn invalid(&self, key: Option<&str>, error: &dyn std::fmt::Display) -> OriginError {
        OriginError::Unsupported {
            target: self.service.target(key),
            problem: format!("a request for it cannot be made: {error}"),
        }
    }

    fn refused(&self, refusal: &Refusal, key: Option<&str>) -> OriginError {
        let origin = self.service.name();
        let target = self.service.target(key);
        let detail = refusal.detail();
        match &*refusal.code {
            "ContainerNotFound" | "ContainerBeingDeleted" => OriginError::BucketMissing {
                origin: origin.clone(),
            },
            "ServerBusy" => OriginError::Throttled {
                target,
                detail,
                after: crate::transport::refusal::retry_after(&refusal.headers),
            },
            "BlobArchived" | "BlobBeingRehydrated" => OriginError::Refused {
                target,
                problem: format!("the blob is archived ({detail})"),
                remedy: "move it to another tier (`az storage blob set-tier`)".into(),
            },
            // Also what is said to those without keys of what is not theirs to see.
            "ResourceNotFound" | "PublicAccessNotPermitted" | "NoAuthenticationInformation" => {
                OriginError::AccessDenied {
                    target,
                    detail,
                    remedy: KEYS,
                }
            }
            _ => refusal.explain(Asked {
                origin,
                target,
                key,
                keys: KEYS,
                service: "the Blob service of Azure, or --endpoint one that speaks its API",
            }),
        }
    }
}

impl Store for Azure {
    const KIND: &'static str = "az";

    fn service(&self) -> &Service {
        &self.service
    }

    async fn page(&self, prefix: &str, token: Option<&str>) -> Result<Page, OriginError> {
        let mut uri = format!("{}?restype=container&comp=list&prefix=", self.base);
        encode_query(prefix, &mut uri);
        if let Some(token) = token {
            uri.push_str("&marker=");
            encode_query(token, &mut uri);
        }
        let answer = self.get(&uri, &HeaderMap::new(), None).await?;
        let document = answer.document(MAX_PAGE).await;
        let document = document.map_err(|error| self.service.explain(error, None))?;
        listing::parse(&document, prefix).map_err(|problem| incomplete(&self.service, &problem))
    }

    async fn read(
        &self,
        object: &ObjectRef,
        range: Option<&Range<u64>>,
    ) -> Result<Answer, OriginError> {
        let mut uri = format!("{}/", self.base);
        encode_path(&object.key, &mut uri);
        let mut headers = HeaderMap::new();
        let value = |text: String| {
            HeaderValue::from_str(&text).map_err(|error| self.invalid(Some(&object.key), &error))
        };
        headers.insert(header::IF_MATCH, value(format!("\"{}\"", object.version))?);
        if let Some(range) = range {
            let bytes = format!("bytes={}-{}", range.start, range.end - 1);
            headers.insert(header::RANGE, value(bytes)?);
        }
        self.get(&uri, &headers, Some(&object.key)).await
    }
}
