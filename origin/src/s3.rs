//! S3 and what speaks its protocol: listing and conditional ranged reads.
//!
//! object_store signs requests and finds credentials. The two requests are made here, because its listing gives up a whole page
//! over one key that is not a clean path, and its reads hide the headers with checksums.

mod listing;
pub(crate) mod profile;
mod request;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use http::{HeaderMap, StatusCode, header};
use weir_core::{ObjectRef, OriginId};

use crate::digest::Digest;
use crate::error::OriginError;
use crate::fetch::{FetchPolicy, retry};
use crate::spec::OriginSpec;
use crate::{Fetched, ListPage, Origin};

use request::Client;

/// A bucket.
#[derive(Debug)]
pub(crate) struct S3 {
    id: OriginId,
    client: Arc<Client>,
    policy: FetchPolicy,
}

impl S3 {
    pub(crate) async fn open(spec: &OriginSpec, bucket: &str) -> Result<Self, OriginError> {
        Ok(Self {
            id: spec.id(),
            client: Arc::new(Client::new(spec, bucket)?),
            policy: FetchPolicy::default(),
        })
    }
}

#[async_trait]
impl Origin for S3 {
    fn id(&self) -> OriginId {
        self.id
    }

    fn kind(&self) -> &'static str {
        "s3"
    }

    fn list(&self, prefix: &str) -> BoxStream<'_, ListPage> {
        let prefix = prefix.to_owned();
        // The state is the token of the next page; `None` when there is none.
        futures::stream::unfold(Some(String::new()), move |token| {
            let prefix = prefix.clone();
            async move {
                let token = token?;
                let page = retry(&self.policy, || listing::page(&self.client, &prefix, &token));
                Some(match page.await {
                    Ok(page) => (Ok(page.objects), page.next),
                    Err(error) => (Err(error), None),
                })
            }
        })
        .boxed()
    }

    async fn get(&self, object: &ObjectRef, range: Range<u64>) -> Result<Fetched, OriginError> {
        let whole = range == (0..object.size);
        let mut headers = HeaderMap::new();
        let mut put = |name: &'static str, value: String| {
            if let Ok(value) = value.parse() {
                headers.insert(name, value);
            }
        };
        put("range", format!("bytes={}-{}", range.start, range.end - 1));
        put("if-match", format!("\"{}\"", object.version));
        if whole {
            put("x-amz-checksum-mode", "ENABLED".to_owned());
        }
        let subject = self.client.object_url(&object.key);
        let response = self.client.get(Some(&object.key), "", headers, &subject).await?;
        let (status, headers) = (response.status(), response.headers());
        let changed = |detail: String| OriginError::Changed {
            subject: subject.clone(),
            detail,
        };
        if let Some(etag) = text(headers, header::ETAG.as_str())
            && etag.trim_start_matches("W/").trim_matches('"') != &*object.version
        {
            return Err(changed(format!("ETag {etag} instead of {}", object.version)));
        }
        let sent = if status == StatusCode::PARTIAL_CONTENT {
            let (sent, total) = text(headers, "content-range")
                .and_then(parse_content_range)
                .ok_or_else(|| OriginError::Unavailable {
                    subject: subject.clone(),
                    detail: "it sent a part without saying which".to_owned(),
                })?;
            if total.is_some_and(|total| total != object.size) {
                return Err(changed(format!("{total:?} bytes instead of {}", object.size)));
            }
            sent
        } else {
            let length = text(headers, "content-length").and_then(|v| v.parse::<u64>().ok());
            if length.is_some_and(|length| length != object.size) {
                return Err(changed(format!("{length:?} bytes instead of {}", object.size)));
            }
            0..object.size
        };
        let covers_all = sent == (0..object.size);
        let digest = (whole && covers_all).then(|| digest(headers)).flatten();
        let failed = subject.clone();
        let body = response.bytes_stream().map(move |chunk| {
            chunk.map_err(|error| OriginError::Unavailable {
                subject: failed.clone(),
                detail: format!("the body broke: {}", request::root_cause(&error)),
            })
        });
        // A server that ignores the range sends the object from its beginning.
        let skip = range.start.saturating_sub(sent.start);
        let body = futures::stream::unfold((body.boxed(), skip), |(mut body, mut skip)| async move {
            loop {
                let mut chunk = match body.next().await? {
                    Ok(chunk) => chunk,
                    Err(error) => return Some((Err(error), (body, skip))),
                };
                let cut = skip.min(chunk.len() as u64);
                skip -= cut;
                let kept = chunk.split_off(cut as usize);
                if !kept.is_empty() {
                    return Some((Ok(kept), (body, skip)));
                }
            }
        });
        Ok(Fetched {
            range: sent.start.max(range.start)..sent.end.min(range.end),
            body: body.boxed(),
            digest,
        })
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The checksum of the whole object, where the service gives one.
fn digest(headers: &HeaderMap) -> Option<Digest> {
    ["crc32c", "crc64nvme", "crc32"]
        .iter()
        .find_map(|name| Digest::from_header(name, text(headers, &format!("x-amz-checksum-{name}"))?))
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

/// Nanoseconds since 1970 of a time.
fn nanoseconds(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_nanos() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_that_make_no_sense_are_refused() {
        assert_eq!(parse_content_range("bytes 0-9/100"), Some((0..10, Some(100))));
        assert_eq!(parse_content_range("bytes 5-5/*"), Some((5..6, None)));
        for bad in ["bytes 9-0/100", "0-9/100", "bytes */100", "bytes 0-18446744073709551615/1"] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }
}
