//! The body of an answer, cut to what was asked for and held to its length.
//!
//! Where the head has told the length, the exchange holds the body to it, and bytes are passed on as they come. Where it
//! has not, the body shows at its end alone whether it is the listed object or something else (an unpacked one, for
//! instance), so nothing is passed on before.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use super::exchange::Answer;
use super::head::Part;
use crate::error::OriginError;

/// The bytes `kept` of a body that holds the part `sent`: exactly those, or an error.
pub(crate) fn exactly(
    answer: Answer,
    sent: Part,
    kept: Range<u64>,
    target: Arc<str>,
) -> BoxStream<'static, Result<Bytes, OriginError>> {
    let body = Body {
        answer,
        position: sent.range.start,
        kept,
        target,
    };
    if !sent.declared {
        return stream::once(body.whole(sent.range.end))
            .map(|pieces| match pieces {
                Ok(pieces) => pieces.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            })
            .flat_map(stream::iter)
            .boxed();
    }
    stream::unfold(Some(body), |body| async {
        let mut body = body?;
        match body.next().await {
            Ok(None) => None,
            Ok(Some(bytes)) => Some((Ok(bytes), Some(body))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

struct Body {
    answer: Answer,
    /// Offset in the object of the next byte of the body.
    position: u64,
    kept: Range<u64>,
    target: Arc<str>,
}

impl Body {
    async fn next(&mut self) -> Result<Option<Bytes>, OriginError> {
        while self.position < self.kept.end {
            let chunk = match self.answer.chunk().await {
                Some(Ok(chunk)) => chunk,
                Some(Err(error)) => return Err(self.broken(error.to_string())),
                None => return Err(self.broken("the body ended early".to_owned())),
            };
            let wanted = self.take(chunk);
            if !wanted.is_empty() {
                return Ok(Some(wanted));
            }
        }
        Ok(None)
    }

    /// All that is kept, once the body has ended at `end`.
    async fn whole(mut self, end: u64) -> Result<Vec<Bytes>, OriginError> {
        let mut pieces = Vec::new();
        while let Some(chunk) = self.answer.chunk().await {
            let chunk = chunk.map_err(|error| self.broken(error.to_string()))?;
            if chunk.len() as u64 > end - self.position {
                return Err(self.malformed("it is longer than what was asked for"));
            }
            let wanted = self.take(chunk);
            if !wanted.is_empty() {
                pieces.push(wanted);
            }
        }
        if self.position < end {
            return Err(self.malformed("it is shorter than what was asked for"));
        }
        Ok(pieces)
    }

    /// What is kept of the body's next bytes.
    fn take(&mut self, mut chunk: Bytes) -> Bytes {
        let length = chunk.len() as u64;
        let start = self.position;
        self.position += length;
        chunk.truncate(self.kept.end.saturating_sub(start).min(length) as usize);
        let skip = self.kept.start.saturating_sub(start);
        chunk.split_off(skip.min(chunk.len() as u64) as usize)
    }

    fn broken(&self, detail: String) -> OriginError {
        OriginError::Unavailable {
            target: self.target.clone(),
            detail,
        }
    }

    fn malformed(&self, detail: &str) -> OriginError {
        OriginError::Malformed {
            target: self.target.clone(),
            detail: detail.to_owned(),
        }
    }
}
