//! Requests under way for the same bytes, and the body that the read goes on with.
//!
//! A runner delivers once: the first bytes of its answer, or the next bytes of a body. Who brings bytes that are missing
//! wins, and the others are dropped. A hedge against a slow body may begin behind the read's position, since that body goes
//! on meanwhile.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{FutureExt, StreamExt};
use tracing::{Instrument, trace_span};
use weir_core::ObjectRef;

use crate::digest::Digest;
use crate::error::OriginError;
use crate::metrics::{Operation, OriginMetrics};
use crate::origin::Origin;
use crate::pace::Asked;

/// Bytes that arrived, never none.
pub(super) struct Delivery {
    /// What the whole answer covers.
    pub(super) range: Range<u64>,
    /// The digest of `range`, with the first bytes of an answer only.
    pub(super) digest: Option<Digest>,
    /// Where the bytes begin in the object.
    pub(super) start: u64,
    pub(super) bytes: Bytes,
    /// The rest of the answer; `None` behind its last byte.
    pub(super) body: Option<Body>,
}

/// An answer's body, from its next byte on.
pub(super) struct Body {
    target: Arc<str>,
    range: Range<u64>,
    next: u64,
    stream: BoxStream<'static, Result<Bytes, OriginError>>,
}

impl Body {
    /// The next bytes. A body that ends before its range does is an error that passes.
    async fn deliver(mut self, digest: Option<Digest>) -> Result<Delivery, OriginError> {
        loop {
            let bytes = match self.stream.next().await {
                Some(bytes) => bytes?,
                None => {
                    return Err(OriginError::Unavailable {
                        detail: format!(
                            "the body ended {} bytes early",
                            self.range.end - self.next
                        ),
                        target: self.target,
                    });
                }
            };
            if bytes.is_empty() {
                continue;
            }
            if bytes.len() as u64 > self.range.end - self.next {
                return Err(OriginError::Malformed {
                    detail: "it is longer than it said".to_owned(),
                    target: self.target,
                });
            }
            let start = self.next;
            self.next += bytes.len() as u64;
            let range = self.range.clone();
            let body = if self.next < range.end {
                Some(self)
            } else {
                // The end of the body gives its connection back.
                let _ = self.stream.next().now_or_never();
                None
            };
            return Ok(Delivery {
                range,
                digest,
                start,
                bytes,
                body,
            });
        }
    }
}

type Runner = BoxFuture<'static, (bool, Result<Delivery, OriginError>)>;

/// The runners, at most one plus the hedges of one wait.
#[derive(Default)]
pub(super) struct Race {
    runners: FuturesUnordered<Runner>,
    /// How many of the runners are hedges.
    hedges: usize,
}

impl Race {
    pub(super) fn is_empty(&self) -> bool {
        self.runners.is_empty()
    }

    /// Sends a new request into the race.
    pub(super) fn request(
        &mut self,
        origin: Arc<dyn Origin>,
        object: ObjectRef,
        wanted: Range<u64>,
        is_hedge: bool,
        asked: Asked,
        metrics: &OriginMetrics,
    ) {
        let timer = metrics.request(origin.kind(), Operation::Get);
        self.hedges += usize::from(is_hedge);
        let span = trace_span!(
            target: "weir::read", "origin_request",
            origin = origin.describe(), object = &*object.key, range = ?wanted, is_hedge,
        );
        let run = async move {
            let answer = origin.get(&object, wanted.clone()).await;
            timer.finish(answer.as_ref().err());
            let answer = answer?;
            let target: Arc<str> = format!("{}/{}", origin.describe(), object.key).into();
            let range = answer.range;
            if range.start != wanted.start || range.is_empty() || range.end > wanted.end {
                return Err(OriginError::Malformed {
                    target,
                    detail: format!("{range:?} was sent for {wanted:?}"),
                });
            }
            let body = Body {
                target,
                next: range.start,
                range,
                stream: answer.body,
            };
            let delivery = body.deliver(answer.digest).await?;
            asked.answered();
            Ok(delivery)
        };
        self.runners.push(
            run.instrument(span)
                .map(move |outcome| (is_hedge, outcome))
                .boxed(),
        );
    }

    /// Lets a body that has won run on.
    pub(super) fn go_on(&mut self, body: Body) {
        self.run_on(body, false);
    }

    /// Lets the body of a hedge that is behind run on.
    pub(super) fn catch_up(&mut self, body: Body) {
        self.hedges += 1;
        self.run_on(body, true);
    }

    fn run_on(&mut self, body: Body, is_hedge: bool) {
        let run = body.deliver(None);
        self.runners
            .push(run.map(move |outcome| (is_hedge, outcome)).boxed());
    }

    /// The next outcome, and whether it is a hedge's. Never ends while the race is empty.
    pub(super) async fn next(&mut self) -> (bool, Result<Delivery, OriginError>) {
        let Some((is_hedge, outcome)) = self.runners.next().await else {
            return std::future::pending().await;
        };
        self.hedges -= usize::from(is_hedge);
        (is_hedge, outcome)
    }

    /// Drops all runners; gives the number of hedges among them.
    pub(super) fn clear(&mut self) -> usize {
        self.runners.clear();
        std::mem::take(&mut self.hedges)
    }
}
