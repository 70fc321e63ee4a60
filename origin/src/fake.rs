//! An origin in memory that misbehaves by script: the counterpart of the tests of [`fetch`](crate::fetch()).

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep};
use weir_core::{ObjectRef, OriginId};

use crate::checksum::CrcKind;
use crate::digest::Digest;
use crate::error::OriginError;
use crate::origin::{Fetched, Listed, Origin};

/// How one request is answered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    /// This error instead of an answer.
    pub(crate) error: Option<OriginError>,
    /// Waits before the head.
    pub(crate) head_delay: Duration,
    /// Waits before the body's byte with this offset in the body.
    pub(crate) stall: Option<(u64, Duration)>,
    /// Waits before each piece of the body.
    pub(crate) piece_delay: Duration,
    /// Ends the body after so many bytes, without an error.
    pub(crate) truncated: Option<u64>,
    /// Honestly answers with so many bytes at most.
    pub(crate) short: Option<u64>,
    /// Flips a bit of this byte of the body.
    pub(crate) flipped: Option<u64>,
    /// Sends a digest of the right bytes.
    pub(crate) digest: bool,
}

/// Length of the pieces that a body comes in.
pub(crate) const PIECE: u64 = 64 << 10;

#[derive(Debug)]
pub(crate) struct Fake {
    content: Bytes,
    script: Mutex<VecDeque<Answer>>,
    otherwise: Answer,
    failing: f64,
    rng: Mutex<StdRng>,
    requests: Mutex<Vec<(Instant, Range<u64>)>>,
}

impl Fake {
    /// An origin with one object of `len` bytes that answers by `script`, and then by `otherwise`.
    pub(crate) fn new(
        len: u64,
        script: impl IntoIterator<Item = Answer>,
        otherwise: Answer,
    ) -> Self {
        let mut content = vec![0; len as usize];
        let mut rng = StdRng::seed_from_u64(len);
        rng.fill(&mut content[..]);
        Self {
            content: content.into(),
            script: Mutex::new(script.into_iter().collect()),
            otherwise,
            failing: 0.0,
            rng: Mutex::new(rng),
            requests: Mutex::default(),
        }
    }

    /// Fails this part of all requests, from a seeded generator.
    pub(crate) fn failing(self, part: f64, seed: u64) -> Self {
        Self {
            failing: part,
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            ..self
        }
    }

    pub(crate) fn object(&self) -> ObjectRef {
        ObjectRef {
            key: "key".into(),
            size: self.content.len() as u64,
            version: "v1".into(),
            modified_ns: 0,
        }
    }

    pub(crate) fn content(&self) -> &Bytes {
        &self.content
    }

    /// The ranges asked for so far.
    pub(crate) fn requests(&self) -> Vec<Range<u64>> {
        self.requests
            .lock()
            .iter()
            .map(|(_, range)| range.clone())
            .collect()
    }

    /// When each request came.
    pub(crate) fn times(&self) -> Vec<Instant> {
        self.requests.lock().iter().map(|(time, _)| *time).collect()
    }
}

pub(crate) fn unavailable() -> OriginError {
    OriginError::Unavailable {
        target: "fake://f/key".into(),
        detail: "503".to_owned(),
    }
}

#[async_trait]
impl Origin for Fake {
    fn id(&self) -> OriginId {
        OriginId(1)
    }

    fn kind(&self) -> &'static str {
        "fake"
    }

    fn describe(&self) -> &'static str {
        "fake://f"
    }

    fn list(&self, _prefix: &str) -> BoxStream<'_, Result<Vec<Listed>, OriginError>> {
        stream::empty().boxed()
    }

    async fn get(&self, object: &ObjectRef, range: Range<u64>) -> Result<Fetched, OriginError> {
        assert!(!range.is_empty() && range.end <= object.size, "{range:?}");
        self.requests.lock().push((Instant::now(), range.clone()));
        let scripted = self.script.lock().pop_front();
        let answer = scripted.unwrap_or_else(|| self.otherwise.clone());
        sleep(answer.head_delay).await;
        if let Some(error) = answer.error {
            return Err(error);
        }
        if self.rng.lock().random_bool(self.failing) {
            return Err(unavailable());
        }
        let end = answer
            .short
            .map_or(range.end, |short| range.end.min(range.start + short));
        let range = range.start..end;
        let right = self.content.slice(range.start as usize..range.end as usize);
        let digest = answer
            .digest
            .then(|| Digest::Crc(CrcKind::Crc32c, crc_fast::crc32_iscsi(&right).into()));
        let mut sent = right.to_vec();
        if let Some(flipped) = answer.flipped {
            sent[flipped as usize] ^= 1;
        }
        sent.truncate(answer.truncated.unwrap_or(u64::MAX) as usize);
        let sent = Bytes::from(sent);
        let mut cuts: Vec<u64> = (0..sent.len() as u64).step_by(PIECE as usize).collect();
        if let Some((at, _)) = answer.stall
            && !cuts.contains(&at)
        {
            cuts.push(at);
            cuts.sort_unstable();
        }
        cuts.push(sent.len() as u64);
        let pieces: Vec<Range<u64>> = cuts.windows(2).map(|pair| pair[0]..pair[1]).collect();
        let body = stream::iter(pieces.into_iter().map(Ok)).and_then(move |piece: Range<u64>| {
            let bytes = sent.slice(piece.start as usize..piece.end as usize);
            let stall = answer.stall.filter(|(at, _)| *at == piece.start);
            let wait = answer.piece_delay + stall.map_or(Duration::ZERO, |(_, time)| time);
            async move {
                sleep(wait).await;
                Ok(bytes)
            }
        });
        Ok(Fetched {
            range,
            body: body.boxed(),
            digest,
        })
    }
}
