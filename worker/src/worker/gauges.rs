//! What the tiers are and have done, as metrics.

use std::sync::atomic::Ordering;

use super::Worker;
use crate::metrics::{EvictionLabels, TierLabels};

impl Worker {
    /// Use of each tier now: labels, capacity, used bytes and blocks.
    pub fn tiers(&self) -> Vec<(TierLabels, u64, u64, u64)> {
        let memory = (
            TierLabels {
                tier: "memory",
                path: String::new(),
            },
            self.memory.capacity(),
            self.memory.used(),
            self.memory.blocks(),
        );
        let ssd = self.ssd.usage().into_iter().map(|device| {
            let labels = TierLabels {
                tier: "ssd",
                path: device.path.display().to_string(),
            };
            let stats = device.stats;
            (labels, stats.capacity, stats.used_bytes, stats.blocks)
        });
        std::iter::once(memory).chain(ssd).collect()
    }

    /// Brings the metrics that are not counted as they happen up to date; called before a scrape.
    pub fn update_gauges(&self) {
        for (labels, capacity, used, blocks) in self.tiers() {
            let metrics = &self.metrics;
            metrics
                .tier_capacity
                .get_or_create(&labels)
                .set(capacity as i64);
            metrics.tier_used.get_or_create(&labels).set(used as i64);
            metrics
                .tier_blocks
                .get_or_create(&labels)
                .set(blocks as i64);
        }
        self.metrics.fills_in_flight.set(self.fills.len() as i64);
        self.count_store_events();
    }

    /// Counts blocks that were found damaged in memory and dropped.
    pub(super) fn count_damaged(&self, blocks: u64) {
        if blocks > 0 {
            let labels = EvictionLabels {
                tier: "memory",
                reason: "damaged",
            };
            let evicted = &self.metrics.evicted_blocks;
            evicted.get_or_create(&labels).inc_by(blocks);
            self.metrics.damaged.inc_by(blocks);
            self.generation.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Adds what the stores have counted since the last look to the metrics.
    fn count_store_events(&self) {
        let mut seen = self.seen_stats.lock();
        for device in self.ssd.usage() {
            let now = device.stats;
            let before = seen.insert(device.path, now).unwrap_or_default();
            let evicted = [
                (
                    "idle",
                    now.evicted_blocks - before.evicted_blocks,
                    now.evicted_bytes - before.evicted_bytes,
                ),
                ("damaged", now.corrupt_blocks - before.corrupt_blocks, 0),
                (
                    "unreadable",
                    now.unreadable_blocks - before.unreadable_blocks,
                    0,
                ),
                ("lost_file", now.lost_blocks - before.lost_blocks, 0),
            ];
            for (reason, blocks, bytes) in evicted {
                let labels = EvictionLabels {
                    tier: "ssd",
                    reason,
                };
                self.metrics
                    .evicted_blocks
                    .get_or_create(&labels)
                    .inc_by(blocks);
                self.metrics
                    .evicted_bytes
                    .get_or_create(&labels)
                    .inc_by(bytes);
            }
            let damaged = now.corrupt_blocks - before.corrupt_blocks;
            let lost = now.lost_segments - before.lost_segments;
            self.metrics.damaged.inc_by(damaged);
            self.metrics.lost_segments.inc_by(lost);
            if damaged + lost > 0 {
                self.generation.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}
