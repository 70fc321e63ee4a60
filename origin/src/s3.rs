//! S3 and what speaks its protocol: listing and conditional ranged reads.
//!
//! object_store signs requests and finds credentials. The two requests are made here, because its listing gives up
//! a whole page over one key that is not a clean path, and its reads hide the headers with checksums.

mod body;
mod connect;
pub(crate) mod environment;
mod exchange;
mod listing;
mod low_water;
pub(crate) mod profile;
mod refusal;
mod request;
mod time;

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use weir_core::{ObjectRef, OriginId};

use crate::digest::Digest;
use crate::error::OriginError;
use crate::origin::{Fetched, Listed, Origin};
use crate::policy::FetchPolicy;
use crate::spec::OriginSpec;

use request::Client;
use time::TIME_VERSION;

/// A bucket.
#[derive(Debug)]
pub(crate) struct S3Origin {
    id: OriginId,
    client: Arc<Client>,
    policy: FetchPolicy,
}

impl S3Origin {
    pub(crate) fn open(spec: &OriginSpec) -> Result<Self, OriginError> {
        Ok(Self {
            id: spec.id(),
            client: Arc::new(Client::new(spec)?),
            policy: FetchPolicy::default(),
        })
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
        head.check_version()?;
        let sent = head.range()?;
        if sent.start > range.start || sent.end <= range.start {
            return Err(head.unavailable("it sent another part than was asked for"));
        }
        let digest = (whole && sent == range)
            .then(|| digest(head.headers))
            .flatten();
        let target = head.target;
        let kept = range.start..sent.end.min(range.end);
        Ok(Fetched {
            body: body::exactly(response, sent, kept.clone(), target),
            range: kept,
            digest,
        })
    }
}

/// The head of an answer to a read.
struct Head<'a> {
    target: Arc<str>,
    origin: Arc<str>,
    object: &'a ObjectRef,
    status: StatusCode,
    headers: &'a HeaderMap,
}

impl Head<'_> {
    /// A service may ignore If-Match, so its answer is compared.
    fn check_version(&self) -> Result<(), OriginError> {
        let same = if self.object.version.starts_with(TIME_VERSION) {
            text(self.headers, header::LAST_MODIFIED.as_str())
                .and_then(|sent| time::agrees(&self.object.version, sent))
                .unwrap_or(true)
        } else {
            text(self.headers, header::ETAG.as_str())
                .is_none_or(|etag| listing::plain_etag(etag) == &*self.object.version)
        };
        if same { Ok(()) } else { Err(self.changed()) }
    }

    /// The part of the object that the body holds.
    fn range(&self) -> Result<Range<u64>, OriginError> {
        if self.status == StatusCode::PARTIAL_CONTENT {
            let (sent, total) = text(self.headers, header::CONTENT_RANGE.as_str())
                .and_then(parse_content_range)
                .ok_or_else(|| self.unavailable("it sent a part without saying which"))?;
            if total.is_some_and(|total| total != self.object.size) || sent.end > self.object.size {
                return Err(self.changed());
            }
            return Ok(sent);
        }
        // A service that does not know ranges sends the whole object.
        let length =
            text(self.headers, header::CONTENT_LENGTH.as_str()).and_then(|v| v.parse::<u64>().ok());
        if length.is_some_and(|length| length != self.object.size) {
            return Err(self.changed());
        }
        Ok(0..self.object.size)
    }

    fn changed(&self) -> OriginError {
        OriginError::Changed {
            origin: self.origin.clone(),
            key: self.object.key.clone(),
        }
    }

    fn unavailable(&self, detail: &str) -> OriginError {
        OriginError::Unavailable {
            target: self.target.clone(),
            detail: detail.to_owned(),
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The checksum of the whole object, where the service gives one.
fn digest(headers: &HeaderMap) -> Option<Digest> {
    Digest::HEADERS
        .iter()
        .find_map(|name| Digest::from_header(name, text(headers, name)?))
}

/// `bytes 0-9/100` as the range and the whole length.
fn parse_content_range(value: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let first = first.parse().ok()?;
    let end = last.parse::<u64>().ok()?.checked_add(1)?;
    let total = match total {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    (first < end).then_some((first..end, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_that_make_no_sense_are_refused() {
        assert_eq!(
            parse_content_range("bytes 0-9/100"),
            Some((0..10, Some(100)))
        );
        assert_eq!(parse_content_range("bytes 5-5/*"), Some((5..6, None)));
        for bad in [
            "bytes 9-0/100",
            "0-9/100",
            "bytes */100",
            "bytes 0-18446744073709551615/1",
        ] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }
}
