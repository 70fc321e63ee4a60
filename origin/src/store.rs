//! Object stores with an API of their own: what their origins have in common.
//!
//! A [`Store`] knows how its service is asked; here is what makes an [`Origin`] of it. Listings go from token to token until
//! the last, and end if those lead in a circle. A body is that of the listed version, as its head shows, or an error.

use std::fmt::Debug;
use std::ops::Range;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use weir_core::{ObjectRef, OriginId};

use crate::checksum::ObjectChecksum;
use crate::digest::Digest;
use crate::error::OriginError;
use crate::origin::{Fetched, Listed, Origin};
use crate::policy::FetchPolicy;
use crate::s3::listing::cursor::{Cursor, Next};
use crate::spec::OriginSpec;
use crate::transport::body;
use crate::transport::contact::Contact;
use crate::transport::exchange::Answer;
use crate::transport::head::{Head, Witness};
use crate::transport::patience::Patience;
use crate::transport::service::Service;

/// One page of a listing, and the token of the next.
pub(crate) struct Page {
    pub(crate) objects: Vec<Listed>,
    pub(crate) next: Option<String>,
}

/// How the service of an object store is asked. Each call is one attempt.
pub(crate) trait Store: Send + Sync + Debug + 'static {
    /// The kind of origin, as a label.
    const KIND: &'static str;

    /// Its connections.
    fn service(&self) -> &Service;

    /// One page of the objects whose names start with `prefix`.
    fn page(
        &self,
        prefix: &str,
        token: Option<&str>,
    ) -> impl Future<Output = Result<Page, OriginError>> + Send;

    /// The answer to a read of an object of exactly the listed version: of these bytes, or of all. It is a success.
    fn read(
        &self,
        object: &ObjectRef,
        range: Option<&Range<u64>>,
    ) -> impl Future<Output = Result<Answer, OriginError>> + Send;

    /// What in an answer shows that it is of the listed version; an error if it is of another.
    fn witness(&self, head: &Head<'_>) -> Result<Witness, OriginError> {
        head.witness()
    }

    /// What the service says of the bytes of exactly the listed version. `None` if nothing that can be put together from
    /// blocks.
    fn checksum(
        &self,
        _object: &ObjectRef,
    ) -> impl Future<Output = Result<Option<ObjectChecksum>, OriginError>> + Send {
        std::future::ready(Ok(None))
    }

    /// The checksum that came with all bytes of an object.
    fn digest(&self, _head: &Head<'_>) -> Option<Digest> {
        None
    }
}

/// The origin of a store.
#[derive(Debug)]
pub(crate) struct StoreOrigin<S> {
    id: OriginId,
    store: S,
    /// Of listings.
    policy: FetchPolicy,
}

impl<S: Store> StoreOrigin<S> {
    pub(crate) fn new(spec: &OriginSpec, store: S) -> Self {
        Self {
            id: spec.id(),
            store,
            policy: FetchPolicy::of_listings(spec),
        }
    }
}

#[async_trait]
impl<S: Store> Origin for StoreOrigin<S> {
    fn id(&self) -> OriginId {
        self.id
    }

    fn kind(&self) -> &'static str {
        S::KIND
    }

    fn describe(&self) -> &str {
        self.store.service().name()
    }

    fn list(&self, prefix: &str) -> BoxStream<'_, Result<Vec<Listed>, OriginError>> {
        let walk = Walk {
            store: &self.store,
            prefix: prefix.to_owned(),
            policy: &self.policy,
            cursor: Cursor::new(),
        };
        stream::try_unfold(walk, |mut walk| async move {
            Ok(walk.next().await?.map(|page| (page, walk)))
        })
        .boxed()
    }

    async fn get(&self, object: &ObjectRef, range: Range<u64>) -> Result<Fetched, OriginError> {
        let whole = range == (0..object.size);
        let answer = self.store.read(object, (!whole).then_some(&range)).await?;
        let service = self.store.service();
        let head = Head {
            target: service.object_url(&object.key),
            origin: service.name().clone(),
            object,
            status: answer.status,
            headers: &answer.headers,
        };
        let witness = self.store.witness(&head)?;
        let sent = head.part(witness, &range)?;
        let is_whole = whole && sent.range == range;
        let digest = is_whole.then(|| self.store.digest(&head)).flatten();
        let target = head.target;
        let kept = range.start..sent.range.end.min(range.end);
        Ok(Fetched {
            body: body::exactly(answer, sent, kept.clone(), target),
            range: kept,
            digest,
        })
    }

    async fn checksum(&self, object: &ObjectRef) -> Result<Option<ObjectChecksum>, OriginError> {
        self.store.checksum(object).await
    }

    fn contact(&self) -> Option<&Contact> {
        Some(self.store.service().contact())
    }

    fn close_idle(&self) {
        self.store.service().close_idle();
    }
}

/// A listing under way.
struct Walk<'a, S> {
    store: &'a S,
    prefix: String,
    policy: &'a FetchPolicy,
    cursor: Cursor,
}

impl<S: Store> Walk<'_, S> {
    async fn next(&mut self) -> Result<Option<Vec<Listed>>, OriginError> {
        if self.cursor.has_ended() {
            return Ok(None);
        }
        let token = self.cursor.token();
        let service = self.store.service();
        let mut patience = Patience::new(self.policy, service.name(), service.contact());
        let Page { objects, next } = loop {
            let page = self.store.page(&self.prefix, token.as_deref());
            match patience.ask(page).await {
                Ok(page) => break page,
                Err(error) => patience.pause(error).await?,
            }
        };
        match next {
            None => self.cursor.end(),
            Some(token) => {
                let keys = objects.iter().map(|object| &*object.key);
                let next = Next {
                    token: Some(token),
                    marker: None,
                };
                let advanced = self.cursor.advance(keys, next);
                advanced.map_err(|problem| incomplete(service, problem))?;
            }
        }
        Ok(Some(objects))
    }
}

/// The error of a listing that may not have all objects.
pub(crate) fn incomplete(service: &Service, problem: &str) -> OriginError {
    OriginError::Unsupported {
        target: service.name().clone(),
        problem: format!(
            "its listing is of no use, since not all objects may be in it: {problem}; check --endpoint, and that no proxy answers for the service"
        ),
    }
}
