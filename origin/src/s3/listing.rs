//! Listings that are complete, or refused.
//!
//! ListObjectsV2 is asked for; where a service answers in the first version of the API, its markers are followed.
//! Invariant: the pages of a listing that ends without an error hold all that the service has below the prefix, as far
//! as the service itself can be believed.

mod archived;
pub(crate) mod cursor;
mod document;
mod encoding;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use http::HeaderMap;

use super::refusal::Refusal;
use super::request::Client;
use crate::error::OriginError;
use crate::origin::{Hindrance, Listed};
use crate::policy::FetchPolicy;
use crate::transport::encode::encode_query;
use crate::transport::head::plain_etag;
use crate::transport::patience::Patience;
use crate::transport::time;

use cursor::{Cursor, Next};
use document::{Document, Entry, NotAPage};
use encoding::Encodings;

/// Longest page, in bytes: a thousand keys of 1 KiB, encoded, with room to spare.
const MAX_PAGE: usize = 16 << 20;
/// How often a page is asked for that is no XML or ends in the middle.
const MAX_BROKEN: u32 = 3;

/// The objects whose keys start with `prefix`, page by page. The first error is the last item.
pub(super) fn pages<'a>(
    client: &'a Client,
    prefix: String,
    policy: &'a FetchPolicy,
) -> BoxStream<'a, Result<Vec<Listed>, OriginError>> {
    let walk = Walk {
        client,
        prefix,
        policy,
        cursor: Cursor::new(),
        encodings: None,
    };
    stream::try_unfold(walk, |mut walk| async move {
        Ok(walk.next().await?.map(|page| (page, walk)))
    })
    .boxed()
}

/// A listing under way.
struct Walk<'a> {
    client: &'a Client,
    prefix: String,
    policy: &'a FetchPolicy,
    cursor: Cursor,
    /// How keys are written, once there was a page.
    encodings: Option<Encodings>,
}

impl Walk<'_> {
    async fn next(&mut self) -> Result<Option<Vec<Listed>>, OriginError> {
        let Some(query) = self.cursor.query(&self.prefix) else {
            return Ok(None);
        };
        let document = self.patient_page(&query).await?;
        let mut encodings = match self.encodings.take() {
            Some(encodings) => encodings,
            None => Encodings::new(document.encoded),
        };
        self.settle(&mut encodings, &document.entries).await;
        let encoding = encodings.likeliest();
        self.encodings = Some(encodings);
        let Document {
            entries,
            truncated,
            token,
            next_marker,
            first_version,
            ..
        } = document;
        let objects = entries.into_iter().map(|entry| Listed {
            key: encoding.decode(&entry.key),
            version: version(&entry),
            size: entry.size,
            mtime_ns: entry.modified_ns.unwrap_or(0),
            hindrance: entry.archive.map(Hindrance::Archived),
        });
        let objects: Vec<Listed> = objects.collect();
        if truncated {
            // Without a NextMarker the last key is the marker.
            let last = || objects.last().map(|object| object.key.clone());
            let marker = next_marker
                .map(|marker| encoding.decode(&marker))
                .or_else(|| first_version.then(last).flatten());
            let keys = objects.iter().map(|object| &*object.key);
            self.cursor
                .advance(keys, Next { token, marker })
                .map_err(|problem| {
                    refused(
                        self.client,
                        problem,
                        "update the service, or report this to whoever runs it",
                    )
                })?;
        } else {
            self.cursor.end();
        }
        Ok(Some(objects))
    }

    /// Asks the service which of its readings a doubtful key is.
    async fn settle(&self, encodings: &mut Encodings, entries: &[Entry]) {
        while let Some((key, readings)) = encodings.doubt(entries.iter().map(|e| &*e.key)) {
            // The longest first: a name that lost an escape can be the beginning of one that has it.
            let mut names: Vec<&[u8]> = readings.iter().map(|(_, name)| &**name).collect();
            names.sort_unstable_by_key(|name| (Reverse(name.len()), *name));
            names.dedup();
            let mut right = None;
            for name in names {
                if self.lists(name, key).await {
                    right = Some(name);
                    break;
                }
            }
            if let Some(name) = right {
                encodings.settle(&readings, name);
            } else {
                tracing::warn!(origin = self.client.bucket_url(), key = %key.escape_ascii(), "it is not known whether the service encodes its keys");
                encodings.give_up();
            }
        }
    }

    /// Whether the first object below `name` is listed as `text`. One that cannot be asked for is not.
    async fn lists(&self, name: &[u8], text: &[u8]) -> bool {
        let mut query = "encoding-type=url&list-type=2&max-keys=1&prefix=".to_owned();
        encode_query(name, &mut query);
        let page = self.patient_page(&query).await;
        page.is_ok_and(|page| page.entries.first().is_some_and(|entry| entry.key == text))
    }

    /// A page, asked for again within the policy's budget while the service cannot answer.
    async fn patient_page(&self, query: &str) -> Result<Document, OriginError> {
        let client = self.client;
        let mut patience = Patience::new(self.policy, client.bucket_url(), client.contact());
        let mut broken = 0;
        loop {
            let error = match patience.ask(page(client, query)).await {
                Ok(Ok(page)) => return Ok(page),
                Ok(Err(not)) => {
                    broken += u32::from(matches!(not, NotAPage::Broken(_)));
                    explain(client, not, broken >= MAX_BROKEN)
                }
                Err(error) => error,
            };
            patience.pause(error).await?;
        }
    }
}

/// Asks once for a page.
async fn page(client: &Client, query: &str) -> Result<Result<Document, NotAPage>, OriginError> {
    let answer = client.get(None, query, &HeaderMap::new()).await?;
    let text = answer.document(MAX_PAGE).await;
    let text = text.map_err(|error| unreadable(client, &error))?;
    Ok(document::parse(&text))
}

fn unreadable(client: &Client, problem: &dyn std::fmt::Display) -> OriginError {
    OriginError::Unavailable {
        target: client.bucket_url().into(),
        detail: format!("its listing is not readable: {problem}"),
    }
}

/// The error of an answer that is no page of a listing; one that is broken may pass, unless `persists`.
fn explain(client: &Client, not: NotAPage, persists: bool) -> OriginError {
    let origin: Arc<str> = client.bucket_url().into();
    match not {
        NotAPage::Broken(problem) if !persists => unreadable(client, &problem),
        NotAPage::Error(code) => Refusal::of_code(code).explain(&origin, origin.clone(), None),
        not @ (NotAPage::Broken(_) | NotAPage::Other(_)) => refused(
            client,
            &not.to_string(),
            "check that --endpoint is the address of an S3 service and that no proxy answers for it",
        ),
        NotAPage::Incomplete(problem) => refused(
            client,
            &problem,
            "check that --endpoint is the address of an S3 service, and update the service",
        ),
    }
}

fn refused(client: &Client, problem: &str, remedy: &str) -> OriginError {
    OriginError::Unsupported {
        target: client.bucket_url().into(),
        problem: format!(
            "its listing is of no use, since not all objects may be in it: {problem}; {remedy}"
        ),
    }
}

fn version(entry: &Entry) -> String {
    match plain_etag(&entry.etag) {
        "" => time::version(entry.modified_ns, entry.size),
        etag => etag.to_owned(),
    }
}
