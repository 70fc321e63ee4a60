//! What the tiers are and have done, as metrics.

use std::sync::atomic::Ordering;

use super::Worker;
use crate::metrics::{EvictionLabels, TierLabels};
use crate::ssd::Trouble;

/// Use of a tier.
pub(crate) struct TierUse {
    pub(crate) labels: TierLabels,
    pub(crate) capacity: u64,
    /// What of it may be used now.
    pub(crate) limit: u64,
    pub(crate) used: u64,
    pub(crate) blocks: u64,
    pub(crate) trouble: Option<Trouble>,
}

impl TierUse {
    /// A device that is full does its work.
    fn is_degraded(&self) -> bool {
        self.trouble.is_some_and(|trouble| trouble != Trouble::Full)
    }
}

impl Worker {
    /// Use of each tier now.
    pub(crate) fn tiers(&self) -> Vec<TierUse> {
        let memory = TierUse {
            labels: TierLabels {
                tier: "memory",
                path: String::new(),
            },
            capacity: self.memory.capacity(),
            limit: self.memory.capacity(),
            used: self.memory.used(),
            blocks: self.memory.blocks(),
            trouble: None,
        };
        let ssd = self.ssd.usage().into_iter().map(|device| {
            let labels = TierLabels {
                tier: "ssd",
                path: device.path.display().to_string(),
            };
            TierUse {
                labels,
                capacity: device.stats.capacity,
                limit: device.stats.limit,
                used: device.stats.used_bytes,
                blocks: device.stats.blocks,
                trouble: device.trouble,
            }
        });
        std::iter::once(memory).chain(ssd).collect()
    }

    /// Brings the metrics that are not counted as they happen up to date; called before a scrape.
    pub fn update_gauges(&self) {
        for tier in self.tiers() {
            let (metrics, labels) = (&self.metrics, &tier.labels);
            for (gauge, value) in [
                (&metrics.tier_capacity, tier.capacity),
                (&metrics.tier_limit, tier.limit),
                (&metrics.tier_used, tier.used),
                (&metrics.tier_blocks, tier.blocks),
                (&metrics.tier_degraded, u64::from(tier.is_degraded())),
            ] {
                gauge.get_or_create(labels).set(value as i64);
            }
        }
        self.metrics.kept_copies.set(self.copying.bytes() as i64);
        self.metrics.kept_for_node.set(self.keeping.bytes() as i64);
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
                (
                    "disk_short",
                    now.shrunk_blocks - before.shrunk_blocks,
                    now.shrunk_bytes - before.shrunk_bytes,
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
