//! The body of an answer, cut to what was asked for and held to its announced length.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use super::exchange::Answer;
use crate::error::OriginError;

/// The bytes `kept` of a body that holds the bytes `sent`: exactly those, or an error.
pub(super) fn exactly(
    answer: Answer,
    sent: Range<u64>,
    kept: Range<u64>,
    target: Arc<str>,
) -> BoxStream<'static, Result<Bytes, OriginError>> {
    let state = State {
        answer,
        position: sent.start,
        kept,
        target,
    };
    stream::unfold(Some(state), |state| async {
        let mut state = state?;
        match state.next().await {
            Ok(None) => None,
            Ok(Some(bytes)) => Some((Ok(bytes), Some(state))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

struct State {
    answer: Answer,
    /// Offset in the object of the next byte of the body.
    position: u64,
    kept: Range<u64>,
    target: Arc<str>,
}

impl State {
    async fn next(&mut self) -> Result<Option<Bytes>, OriginError> {
        while self.position < self.kept.end {
            let mut chunk = match self.answer.chunk().await {
                Some(Ok(chunk)) => chunk,
                Some(Err(error)) => return Err(self.broken(error.to_string())),
                None => return Err(self.broken("the body ended early".to_owned())),
            };
            let start = self.position;
            self.position += chunk.len() as u64;
            let end = (chunk.len() as u64).min(self.kept.end - start);
            chunk.truncate(end as usize);
            let skip = self
                .kept
                .start
                .saturating_sub(start)
                .min(chunk.len() as u64);
            let wanted = chunk.split_off(skip as usize);
            if !wanted.is_empty() {
                return Ok(Some(wanted));
            }
        }
        Ok(None)
    }

    fn broken(&self, detail: String) -> OriginError {
        OriginError::Unavailable {
            target: self.target.clone(),
            detail,
        }
    }
}
