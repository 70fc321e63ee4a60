//! The blocks of one snapshot's files: read from a source, counted, and their failures remembered and explained.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;
use tracing::field::Empty;
use tracing::{Instrument, Span, trace_span};
use weir_core::{Block, Manifest};
use weir_worker::FillWork;

use crate::error::{BatchError, BlockError, ReadError};
use crate::failures::Failures;
use crate::metrics::{ClientMetrics, DatasetCounters, ReadSource};
use crate::source::BlockSource;
use crate::stale::StaleReads;

/// Reads blocks of one snapshot.
pub(crate) struct Blocks<S> {
    manifest: Arc<Manifest>,
    source: S,
    counters: DatasetCounters,
    stale: Arc<StaleReads>,
    failures: Failures,
}

impl<S: BlockSource> Blocks<S> {
    /// The blocks of a snapshot, from `source`.
    pub(crate) fn new(manifest: Arc<Manifest>, source: S, metrics: &ClientMetrics) -> Self {
        Self {
            counters: metrics.dataset(&manifest.summary().snapshot.dataset),
            manifest,
            source,
            stale: Arc::default(),
            failures: Failures::default(),
        }
    }

    pub(crate) fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    pub(crate) fn stale(&self) -> &Arc<StaleReads> {
        &self.stale
    }

    /// Appends the bytes of `range` of a block to `bytes`, if they can be had without waiting for a network.
    pub(crate) fn read_cached(
        &self,
        block: &Block,
        range: &Range<u32>,
        bytes: &mut Vec<Bytes>,
    ) -> Option<()> {
        let span = span(block, range).entered();
        let source = self.source.read_cached(block, range, bytes)?;
        span.record("source", source.label());
        self.count(source, range.len() as u64);
        Some(())
    }

    /// As [`Self::read_cached`] of whole blocks, with few reads of the disk.
    pub(crate) fn read_cached_whole(&self, blocks: &[&Block]) -> Vec<Option<Vec<Bytes>>> {
        let found = self.source.read_cached_whole(blocks);
        let found = found.into_iter().zip(blocks).map(|(found, block)| {
            let (bytes, source) = found?;
            self.count(source, u64::from(block.len()));
            Some(bytes)
        });
        found.collect()
    }

    /// The bytes of `range` of a block of `file`, from wherever they are. Fills that are still under way then are pushed to
    /// `unfinished`.
    pub(crate) fn read(
        &self,
        file: u32,
        block: &Block,
        range: Range<u32>,
        unfinished: &mut Vec<FillWork>,
    ) -> impl Future<Output = Result<Vec<Bytes>, ReadError>> {
        let span = span(block, &range);
        let inside = span.clone();
        let read = async move {
            let (bytes, source) = self.read_or_explain(file, block, range, unfinished).await?;
            inside.record("source", source.label());
            Ok(bytes)
        };
        read.instrument(span)
    }

    async fn read_or_explain(
        &self,
        file: u32,
        block: &Block,
        range: Range<u32>,
        unfinished: &mut Vec<FillWork>,
    ) -> Result<(Vec<Bytes>, ReadSource), ReadError> {
        let key = (file, block.index);
        if let Some(error) = self.failures.get(key) {
            return Err(self.explain(file, error));
        }
        let length = range.len() as u64;
        let started = Instant::now();
        let mount = self.manifest.mount(file);
        let read = self.source.read(mount, block, range, unfinished).await;
        let (bytes, source) = read.map_err(|error| {
            self.failures.add(key, &error, started);
            self.explain(file, error)
        })?;
        self.count(source, length);
        Ok((bytes, source))
    }

    /// Reads whole blocks to their places, many with one exchange.
    pub(crate) async fn read_together(
        &self,
        blocks: Vec<(&Block, &mut [u8])>,
    ) -> Vec<Result<(), BatchError>> {
        let lengths: Vec<_> = blocks.iter().map(|(block, _)| block.len()).collect();
        let outcomes = self.source.read_together(blocks).await;
        let outcomes = outcomes.into_iter().zip(lengths);
        outcomes
            .map(|(outcome, length)| outcome.map(|source| self.count(source, u64::from(length))))
            .collect()
    }

    fn count(&self, source: ReadSource, bytes: u64) {
        self.counters.count(source, bytes);
        self.source.count(source, bytes);
    }

    fn explain(&self, file: u32, error: BlockError) -> ReadError {
        let path = self.manifest.path(file);
        match error {
            BlockError::Changed(message) => {
                self.counters.stale.inc();
                self.stale.add(&path);
                ReadError::Stale {
                    path,
                    snapshot: self.manifest.summary().snapshot.to_string(),
                    message,
                }
            }
            BlockError::Failed(message) => ReadError::Unavailable { path, message },
        }
    }
}

/// What a log may say of the read of a block. Costs nothing unless that is turned on.
fn span(block: &Block, range: &Range<u32>) -> Span {
    trace_span!(target: "weir::read", "block", block = block.index, ?range, source = Empty)
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::sync::Mutex;

    use prometheus_client::registry::Registry;
    use tracing::field::{Field, Visit};
    use tracing::level_filters::LevelFilter;
    use tracing::span::{Attributes, Id, Record};
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

    use super::*;
    use crate::prefetch::test_manifest;
    use crate::source::fake::FakeSource;

    /// Notes spans and what is recorded in them.
    #[derive(Clone, Default)]
    struct Noting(Arc<Mutex<Vec<String>>>);

    impl Visit for Noting {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            let text = format!("{}={value:?}", field.name());
            self.0.lock().unwrap().push(text);
        }
    }

    impl<S: tracing::Subscriber> Layer<S> for Noting {
        fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
            attributes.record(&mut self.clone());
        }

        fn on_record(&self, _: &Id, values: &Record<'_>, _: Context<'_, S>) {
            values.record(&mut self.clone());
        }
    }

    /// Reads a file that is cached and one that is not; gives the spans of that.
    async fn spans_of_reads(level: LevelFilter) -> Vec<String> {
        let noting = Noting::default();
        let subscriber = tracing_subscriber::registry().with(noting.clone().with_filter(level));
        let _on = tracing::subscriber::set_default(subscriber);
        let manifest = Arc::new(test_manifest());
        let source = FakeSource::default();
        source.cached.lock().extend(["f0"]);
        let metrics = ClientMetrics::register(&mut Registry::default());
        let blocks = Blocks::new(manifest.clone(), source, &metrics);
        let block_of = |name: &str| {
            let file = manifest.resolve(name).unwrap();
            (file, manifest.blocks(file).next().unwrap())
        };
        let (_, block) = block_of("f0");
        let cached = blocks.read_cached(&block, &(0..100), &mut Vec::new());
        assert!(cached.is_some());
        let (file, block) = block_of("f1");
        let read = blocks.read(file, &block, 10..100, &mut Vec::new()).await;
        assert_eq!(read.unwrap().concat().len(), 90);
        let noted = noting.0.lock().unwrap();
        noted.clone()
    }

    #[tokio::test]
    async fn each_block_of_a_read_has_a_span_when_that_is_turned_on() {
        let spans = spans_of_reads(LevelFilter::TRACE).await.join("; ");
        for part in [
            "block=0",
            "range=0..100",
            "memory",
            "range=10..100",
            "origin",
        ] {
            assert!(spans.contains(part), "{part} is not in {spans}");
        }
        assert_eq!(spans_of_reads(LevelFilter::DEBUG).await, [""; 0]);
    }
}
