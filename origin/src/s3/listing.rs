//! ListObjectsV2 with percent-encoded keys, so that no key can break the document.

use std::time::Duration;

use http::HeaderMap;
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout};

use super::TIME_VERSION;
use super::request::{Client, encode_query};
use crate::error::OriginError;
use crate::origin::Listed;
use crate::policy::{Backoff, FetchPolicy};

/// Longest page, in bytes: a thousand keys of 1 KiB, encoded, with room to spare.
const MAX_PAGE: usize = 16 << 20;
/// Longest wait for one page; services take up to some seconds for a thousand keys.
const PAGE_DEADLINE: Duration = Duration::from_secs(20);

/// A page of a listing.
pub(super) struct Page {
    pub(super) objects: Vec<Listed>,
    /// Token of the next page.
    pub(super) next: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    #[serde(default)]
    contents: Vec<Contents>,
    #[serde(default)]
    is_truncated: bool,
    next_continuation_token: Option<String>,
    encoding_type: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Contents {
    key: String,
    size: u64,
    last_modified: String,
    #[serde(rename = "ETag", default)]
    etag: String,
}

/// A page, asked for again within the policy's budget while the service cannot answer.
pub(super) async fn patient_page(
    client: &Client,
    prefix: &str,
    token: &str,
    policy: &FetchPolicy,
) -> Result<Page, OriginError> {
    let start = Instant::now();
    let mut backoff = Backoff::new(policy);
    let mut attempts = 0;
    loop {
        let outcome = timeout(PAGE_DEADLINE, page(client, prefix, token)).await;
        let error = match outcome {
            Ok(Ok(page)) => return Ok(page),
            Ok(Err(error)) if !error.is_retryable() => return Err(error),
            Ok(Err(error)) => error,
            Err(_) => OriginError::Timeout {
                target: client.bucket_url().into(),
                after: PAGE_DEADLINE,
            },
        };
        attempts += 1;
        let wait = backoff.wait(policy);
        if attempts >= policy.max_attempts || start.elapsed() + wait >= policy.budget {
            return Err(OriginError::GaveUp {
                last: error.into(),
                attempts,
                after: start.elapsed(),
            });
        }
        tracing::debug!(%error, attempts, "a page of the listing is asked for again");
        sleep(wait).await;
    }
}

/// Asks once for the page behind `token` (the first when it is empty).
async fn page(client: &Client, prefix: &str, token: &str) -> Result<Page, OriginError> {
    // Sorted, as signatures want it.
    let mut query = String::new();
    if !token.is_empty() {
        query.push_str("continuation-token=");
        encode_query(token, &mut query);
        query.push('&');
    }
    query.push_str("encoding-type=url&list-type=2&prefix=");
    encode_query(prefix, &mut query);
    let answer = client.get(None, &query, &HeaderMap::new()).await?;
    let unreadable = |detail: String| OriginError::Unavailable {
        target: client.bucket_url().into(),
        detail: format!("its listing is not readable: {detail}"),
    };
    let text = answer
        .document(MAX_PAGE)
        .await
        .map_err(|error| unreadable(error.to_string()))?;
    let document: Document = quick_xml::de::from_str(&String::from_utf8_lossy(&text))
        .map_err(|error| unreadable(error.to_string()))?;
    let encoded = document.encoding_type.as_deref() == Some("url");
    let objects = document
        .contents
        .into_iter()
        .map(|object| {
            let mtime_ns = parse_time(&object.last_modified);
            let version = match plain_etag(&object.etag) {
                "" => format!("{TIME_VERSION}{}", mtime_ns.div_euclid(1_000_000_000)),
                etag => etag.to_owned(),
            };
            Listed {
                key: if encoded {
                    decode(&object.key)
                } else {
                    object.key.into_bytes()
                },
                size: object.size,
                mtime_ns,
                version,
            }
        })
        .collect();
    let next = document
        .next_continuation_token
        .filter(|token| document.is_truncated && !token.is_empty());
    Ok(Page { objects, next })
}

/// An ETag without its quotes and its mark for weakness.
pub(super) fn plain_etag(etag: &str) -> &str {
    etag.trim().trim_start_matches("W/").trim_matches('"')
}

/// Percent-decodes a key; `+` is a space, as in forms, which is what S3 sends.
fn decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = |at: usize| (*bytes.get(at)? as char).to_digit(16);
        match (byte, hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
                continue;
            }
            (b'+', ..) => out.push(b' '),
            _ => out.push(byte),
        }
        at += 1;
    }
    out
}

/// `2026-03-01T12:00:00.000Z` as nanoseconds since 1970; 0 for what is not a time.
fn parse_time(text: &str) -> i64 {
    text.parse::<jiff::Timestamp>().map_or(0, |time| {
        i64::try_from(time.as_nanosecond()).unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_decoded_to_raw_bytes() {
        assert_eq!(decode("a%20b%2Fc+d%FF%0a"), b"a b/c d\xff\n");
        assert_eq!(decode("100%"), b"100%");
        assert_eq!(decode("%zz"), b"%zz");
    }

    #[test]
    fn times_keep_their_fractions() {
        assert_eq!(parse_time("1970-01-01T00:00:01.500Z"), 1_500_000_000);
        assert_eq!(parse_time("yesterday"), 0);
    }
}
