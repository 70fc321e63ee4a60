//! Plain web servers: files that an index names, or that the server's own pages of its directories show.
//!
//! A file's version is what its server tells of it by HEAD, its ETag or the time of its last change, and the digest that an
//! index gives. Each answer to a read must be of that version, and bytes that a digest covers are checked against it.

mod autoindex;
mod crawl;
mod index;
mod redirect;
mod secret_header;
#[cfg(test)]
mod tests;
mod version;
mod window;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use futures::stream::BoxStream;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use weir_core::{ObjectRef, OriginId};

use crate::checksum::{ObjectChecksum, PartSum};
use crate::digest::Digest;
use crate::error::OriginError;
use crate::origin::{Fetched, Listed, Origin};
use crate::policy::FetchPolicy;
use crate::sources::SourcePolicy;
use crate::spec::stores::WebPlace;
use crate::spec::{OriginSpec, Place};
use crate::transport::body;
use crate::transport::contact::Contact;
use crate::transport::encode::encode_path;
use crate::transport::environment::Environment;
use crate::transport::exchange::Answer;
use crate::transport::head::{Head, Witness};
use crate::transport::refusal::{Asked, Refusal};
use crate::transport::service::Service;

use secret_header::{OfRequest, REMEDY, SecretHeader};
use version::Version;

/// Longest file whose parts are taken out of answers that have all of it, in bytes: a server that knows no ranges sends a
/// file once for each of its blocks.
const MAX_WHOLE: u64 = 64 << 20;
/// Redirects that are followed in a row.
const MAX_REDIRECTS: u32 = 5;

/// A web server.
#[derive(Debug)]
pub(crate) struct WebOrigin {
    id: OriginId,
    service: Service,
    /// Of credentials that the source names.
    secret: Option<SecretHeader>,
    place: WebPlace,
    /// Of listings.
    policy: FetchPolicy,
    /// That changes can go unseen, and that ranges are ignored, was reported.
    unwitnessed: AtomicBool,
    rangeless: AtomicBool,
}

impl WebOrigin {
    pub(crate) fn open(spec: &OriginSpec, sources: &SourcePolicy) -> Result<Self, OriginError> {
        let Place::Web(place) = spec.place()? else {
            return Err(OriginError::config(
                spec.url.as_str(),
                "it is no web server",
                "write https://host/dir/",
            ));
        };
        let with_tls = place.server.scheme() == "https";
        let tls_to = place.server.host_str().filter(|_| with_tls);
        let environment = Environment::of_process();
        let name: Arc<str> = spec.place_of_location().into();
        let reach = sources.reach(spec)?;
        let named = sources.named(spec, &name)?;
        let secret = named.map(|named| SecretHeader::find(&place.server, named));
        Ok(Self {
            id: spec.id(),
            secret: secret.transpose()?,
            service: Service::new(name, tls_to, &environment, reach)?,
            place,
            policy: FetchPolicy::of_listings(spec),
            unwitnessed: AtomicBool::new(false),
            rangeless: AtomicBool::new(false),
        })
    }

    /// The address of a file or directory, by its decoded path.
    fn address(&self, key: &str) -> Result<Uri, OriginError> {
        let mut address = self.service.name().to_string();
        address.push('/');
        encode_path(key, &mut address);
        let parsed = address.parse::<Uri>();
        parsed.map_err(|error| OriginError::Unsupported {
            target: self.service.object_url(key),
            problem: format!("a request for it cannot be made: {error}"),
        })
    }

    /// Asks for a file, where redirects lead, and gives the answer if it is a success.
    async fn ask(
        &self,
        method: &Method,
        key: &str,
        mut headers: HeaderMap,
    ) -> Result<Answer, OriginError> {
        // The bytes wanted are those that are stored.
        headers.insert(
            header::ACCEPT_ENCODING,
            HeaderValue::from_static("identity"),
        );
        let mut address = self.address(key)?;
        let mut redirects = 0;
        let mut secret = OfRequest::new(self.secret.as_ref());
        loop {
            let headers = secret.add(&address, &headers).await?;
            let asked = self.service.send(method, &address, headers, Some(key));
            let answer = asked.await?;
            if answer.status.is_success() {
                return Ok(answer);
            }
            let refusal = Refusal::read(answer).await;
            if redirects < MAX_REDIRECTS
                && let Some(next) = redirect::follow(&address, &refusal)
            {
                redirects += 1;
                address = next;
                continue;
            }
            if secret.renew(refusal.status).await? {
                continue;
            }
            return Err(self.refused(&refusal, Some(key)));
        }
    }

    fn refused(&self, refusal: &Refusal, key: Option<&str>) -> OriginError {
        refusal.explain(Asked {
            origin: self.service.name(),
            target: self.service.target(key),
            key,
            keys: match self.secret {
                Some(_) => REMEDY,
                None => {
                    "let this machine read it without credentials, or name a header's (`weir credentials set --header`) for the source of a cluster's dataset"
                }
            },
            service: "a web server that serves these files",
        })
    }

    fn warn_once(&self, told: &AtomicBool, key: &str, problem: &str) {
        if !told.swap(true, Ordering::Relaxed) {
            tracing::warn!(origin = %self.service.name(), file = key, "{problem}");
        }
    }
}

#[async_trait]
impl Origin for WebOrigin {
    fn id(&self) -> OriginId {
        self.id
    }

    fn kind(&self) -> &'static str {
        "http"
    }

    fn describe(&self) -> &str {
        self.service.name()
    }

    fn list(&self, prefix: &str) -> BoxStream<'_, Result<Vec<Listed>, OriginError>> {
        crawl::pages(self, prefix.to_owned())
    }

    async fn get(&self, object: &ObjectRef, range: Range<u64>) -> Result<Fetched, OriginError> {
        let whole = range == (0..object.size);
        let version = Version::parse(&object.version);
        let mut headers = version.conditions();
        if !whole {
            let bytes = format!("bytes={}-{}", range.start, range.end - 1);
            let bytes = HeaderValue::from_str(&bytes).unwrap_or(HeaderValue::from_static(""));
            headers.insert(header::RANGE, bytes);
        }
        let answer = self.ask(&Method::GET, &object.key, headers).await?;
        let head = Head {
            target: self.service.object_url(&object.key),
            origin: self.service.name().clone(),
            object,
            status: answer.status,
            headers: &answer.headers,
        };
        let witness = version.witness(&head)?;
        let digest = version.digest.filter(|_| whole);
        if witness == Witness::None && digest.is_none() {
            self.warn_once(
                &self.unwitnessed,
                &object.key,
                "its server tells neither a strong ETag nor Last-Modified: that a file was replaced by another of the same length goes unseen",
            );
        }
        let sent = head.part(witness, &range)?;
        if !whole && answer.status == StatusCode::OK {
            if object.size > MAX_WHOLE {
                return Err(OriginError::Refused {
                    target: head.target,
                    problem: format!(
                        "its server ignores ranges, so that each block of its {} bytes would cost all of them",
                        object.size
                    ),
                    remedy: "serve it by a server that knows Range, such as nginx, or copy it to an object store".into(),
                });
            }
            self.warn_once(
                &self.rangeless,
                &object.key,
                "its server ignores ranges: files longer than a block are sent once for each of their blocks",
            );
        }
        let digest = digest.filter(|_| sent.range == range);
        let target = head.target;
        let kept = range.start..sent.range.end.min(range.end);
        Ok(Fetched {
            body: body::exactly(answer, sent, kept.clone(), target),
            range: kept,
            digest,
        })
    }

    /// A CRC of an index can be put together from those of blocks.
    async fn checksum(&self, object: &ObjectRef) -> Result<Option<ObjectChecksum>, OriginError> {
        let Some(Digest::Crc(kind, value)) = Version::parse(&object.version).digest else {
            return Ok(None);
        };
        let length = object.size;
        Ok(ObjectChecksum::new(
            kind,
            vec![PartSum { length, value }],
            length,
        ))
    }

    fn contact(&self) -> Option<&Contact> {
        Some(self.service.contact())
    }

    fn close_idle(&self) {
        self.service.close_idle();
    }
}
