//! S3 and what speaks its protocol: listing and conditional ranged reads.
//!
//! object_store signs requests and finds credentials. The two requests are made here, because its listing gives up
//! a whole page over one key that is not a clean path, and its reads hide the headers with checksums.

mod body;
mod checksums;
mod connect;
mod credentials;
pub(crate) mod environment;
mod exchange;
mod failure;
mod head;
mod helper;
mod listing;
mod low_water;
mod names;
pub(crate) mod profile;
mod redirect;
mod refusal;
mod request;
mod scheme;
#[cfg(test)]
mod tests;
mod time;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use futures::stream::BoxStream;
use http::{HeaderMap, HeaderValue, header};
use weir_core::{ObjectRef, OriginId};

use crate::checksum::ObjectChecksum;
use crate::digest::Digest;
use crate::error::OriginError;
use crate::origin::{Fetched, Listed, Origin};
use crate::policy::FetchPolicy;
use crate::spec::OriginSpec;

use head::{Head, Witness, text};
use request::Client;
use time::TIME_VERSION;

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
    pub(crate) fn open(spec: &OriginSpec) -> Result<Self, OriginError> {
        let usual = FetchPolicy::default();
        let patient = usual.with_patience(spec);
        Ok(Self {
            id: spec.id(),
            client: Arc::new(Client::new(spec)?),
            policy: FetchPolicy {
                // Somebody waits at the command line.
                budget: patient.budget.min(usual.budget),
                ..usual
            },
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
        "s3"
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

    fn close_idle(&self) {
        self.client.close_idle();
    }

    async fn get(&self, object: &ObjectRef, range: Range<u64>) -> Result<Fetched, OriginError> {
        let whole = range == (0..object.size);
        let mut headers = HeaderMap::new();
        let mut put = |name: header::HeaderName, value: String| {
            // Versions come from listings and can hold anything; one that is no header value matches nothing.
            let value = HeaderValue::from_str(&value).unwrap_or(HeaderValue::from_static("\"\""));
            headers.insert(name, value);
        };
        if !object.version.starts_with(TIME_VERSION) {
            put(header::IF_MATCH, format!("\"{}\"", object.version));
        }
        if whole {
            // Services give the checksum of a whole object only when it is not asked for as a range.
            put(
                header::HeaderName::from_static("x-amz-checksum-mode"),
                "ENABLED".to_owned(),
            );
        } else {
            put(
                header::RANGE,
                format!("bytes={}-{}", range.start, range.end - 1),
            );
        }
        let response = self.client.get(Some(&object.key), "", &headers).await?;
        let head = Head {
            target: self.client.object_url(&object.key),
            origin: self.client.bucket_url().into(),
            object,
            status: response.status,
            headers: &response.headers,
        };
        let witness = head.witness()?;
        if witness == Witness::None {
            self.warn_of_no_witness(&object.key);
        }
        let sent = head.part(witness, &range)?;
        let digest = (whole && sent.range == range)
            .then(|| digest(head.headers))
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

/// The checksum of the whole object, where the service gives one.
fn digest(headers: &HeaderMap) -> Option<Digest> {
    Digest::HEADERS
        .iter()
        .find_map(|name| Digest::from_header(name, text(headers, name)?))
}
