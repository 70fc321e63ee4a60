//! S3 and what speaks its protocol: listing and conditional ranged reads.
//!
//! The two requests are made here, over connections that their readers drive ([`transport`](crate::transport)). Credentials and settings are
//! found as AWS's tools find them ([`configuration`], [`chain`]); its SDK does not take quoted names of profiles, tokens
//! that end in a line break, or files that are missing for errors.

mod alibaba;
mod chain;
mod checksums;
pub(crate) mod configuration;
mod credentials;
mod extras;
mod helper;
pub(crate) mod listing;
mod owned;
mod platform;
mod profile;
mod redirect;
mod refusal;
mod request;
pub(crate) mod signature;
mod sso;
mod sts;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use futures::stream::BoxStream;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use weir_core::{ObjectRef, OriginId};

use crate::checksum::ObjectChecksum;
use crate::digest::Digest;
use crate::error::OriginError;
use crate::origin::{Fetched, Listed, Origin};
use crate::policy::FetchPolicy;
use crate::sources::SourcePolicy;
use crate::spec::OriginSpec;
use crate::transport::body;
use crate::transport::contact::Contact;
use crate::transport::environment::Environment;
use crate::transport::exchange::Answer;
use crate::transport::head::{Head, Witness, text};
use crate::transport::time::TIME_VERSION;

use request::Client;

/// Asks for the checksum of the whole object.
const CHECKSUM_MODE: HeaderName = HeaderName::from_static("x-amz-checksum-mode");
const ENABLED: HeaderValue = HeaderValue::from_static("ENABLED");

/// A bucket.
#[derive(Debug)]
pub(crate) struct S3Origin {
    id: OriginId,
    client: Arc<Client>,
    /// Of listings.
    policy: FetchPolicy,
    /// An answer without any witness of its version was reported.
    unwitnessed: AtomicBool,
}

impl S3Origin {
    pub(crate) fn open(spec: &OriginSpec, sources: &SourcePolicy) -> Result<Self, OriginError> {
        Self::open_in(spec, sources, &Environment::of_process())
    }

    fn open_in(
        spec: &OriginSpec,
        sources: &SourcePolicy,
        environment: &Environment,
    ) -> Result<Self, OriginError> {
        Ok(Self {
            id: spec.id(),
            client: Arc::new(Client::new(spec, sources, environment)?),
            policy: FetchPolicy::of_listings(spec),
            unwitnessed: AtomicBool::new(false),
        })
    }

    /// Says once that changes can go unseen.
    fn warn_of_no_witness(&self, key: &str) {
        if !self.unwitnessed.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                origin = self.client.bucket_url(),
                object = key,
                "answers of this origin have neither ETag nor Last-Modified: that an object was replaced by another of the same length goes unseen"
            );
        }
    }
}

#[async_trait]
impl Origin for S3Origin {
    fn id(&self) -> OriginId {
        self.id
    }

    fn kind(&self) -> &'static str {
        self.client.dialect().scheme()
    }

    fn describe(&self) -> &str {
        self.client.bucket_url()
    }

    fn list(&self, prefix: &str) -> BoxStream<'_, Result<Vec<Listed>, OriginError>> {
        listing::pages(&self.client, prefix.to_owned(), &self.policy)
    }

    async fn checksum(&self, object: &ObjectRef) -> Result<Option<ObjectChecksum>, OriginError> {
        self.ask_for_checksum(object).await
    }

    fn contact(&self) -> Option<&Contact> {
        Some(self.client.contact())
    }

    fn close_idle(&self) {
        self.client.close_idle();
    }

    async fn get(&self, object: &ObjectRef, range: Range<u64>) -> Result<Fetched, OriginError> {
        let whole = range == (0..object.size);
        let mut headers = conditions(object);
        if whole {
            // Services give the checksum of a whole object only when it is not asked for as a range.
            headers.insert(CHECKSUM_MODE, ENABLED);
        } else {
            let bytes = format!("bytes={}-{}", range.start, range.end - 1);
            headers.insert(header::RANGE, header_value(&bytes));
        }
        let response = self.client.get(Some(&object.key), "", &headers).await?;
        let head = self.head_of(object, &response);
        let witness = head.witness()?;
        if witness == Witness::None {
            self.warn_of_no_witness(&object.key);
        }
        let sent = head.part(witness, &range)?;
        let digest = (whole && sent.range == range)
            .then(|| Digest::of(|name| text(head.headers, name)))
            .flatten();
        let target = head.target;
        let kept = range.start..sent.range.end.min(range.end);
        Ok(Fetched {
            body: body::exactly(response, sent, kept.clone(), target),
            range: kept,
            digest,
        })
    }
}

impl S3Origin {
    /// The head of an answer about an object.
    fn head_of<'a>(&self, object: &'a ObjectRef, answer: &'a Answer) -> Head<'a> {
        Head {
            target: self.client.object_url(&object.key),
            origin: self.client.bucket_url().into(),
            object,
            status: answer.status,
            headers: &answer.headers,
        }
    }
}

/// Headers of a request for an object of this very version.
fn conditions(object: &ObjectRef) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if !object.version.starts_with(TIME_VERSION) {
        let etag = format!("\"{}\"", object.version);
        headers.insert(header::IF_MATCH, header_value(&etag));
    }
    headers
}

/// Versions come from listings and can hold anything; one that is no header value matches nothing.
fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("\"\""))
}
