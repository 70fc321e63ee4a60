//! The status of a Dataset: figures of the master, and all conditions in one word.

use weir_core::ByteSize;

use super::{ACCEPTED, CREDENTIALS, LISTED, Look, READY, VOLUME};
use crate::master::Known;
use crate::objects::{Is, Phase};
use crate::view::{percent_cached, percent_hit};

impl Look<'_> {
    /// Tells what the master knows.
    pub(super) fn tell(&mut self, known: &Known) {
        let Some(newest) = known.dataset.snapshots.last() else {
            return;
        };
        let number = |value: u64| Some(i64::try_from(value).unwrap_or(i64::MAX));
        let as_percent = |percent: Option<u64>| percent.map(|percent| format!("{percent}%"));
        let status = &mut self.status;
        status.snapshot = number(newest.version);
        status.files = number(newest.files);
        status.bytes = number(newest.bytes);
        status.size = Some(ByteSize(newest.bytes).to_string());
        let left_out: u64 = newest.left_out.values().sum();
        status.left_out = number(left_out).filter(|count| *count > 0);
        status.cached = as_percent(percent_cached(&known.status));
        status.hit_ratio = as_percent(percent_hit(&known.status));
    }

    /// What all conditions come to.
    pub(super) fn sum_up(&mut self) {
        if self.status.phase == Some(Phase::Deleting) {
            return;
        }
        let is = |type_: &str, status: &str| {
            let condition = self.conditions.get(type_);
            condition
                .filter(|condition| condition.status == status)
                .cloned()
        };
        let trouble = [ACCEPTED, CREDENTIALS, LISTED, VOLUME]
            .iter()
            .find_map(|type_| is(type_, "False").or_else(|| is(type_, "Unknown")));
        if self.can_be_mounted() {
            let message = trouble.as_ref().map(|trouble| trouble.message.clone());
            let reason = if trouble.is_some() {
                "AsItWas"
            } else {
                "Ready"
            };
            let text = message.clone().unwrap_or_default();
            self.conditions.set(READY, Is::True, reason, text);
            self.status.phase = Some(match &trouble {
                Some(trouble) if trouble.reason != "Listing" && trouble.reason != "Queued" => {
                    Phase::Degraded
                }
                _ => Phase::Ready,
            });
            self.status.message = message;
            return;
        }
        let Some(trouble) = trouble else {
            self.conditions
                .set(READY, Is::False, "Pending", "it is being made");
            self.status.phase = Some(Phase::Pending);
            self.status.message = None;
            return;
        };
        self.status.phase = Some(match trouble.reason.as_str() {
            "Listing" | "Queued" | "WaitsForOrigin" => Phase::Listing,
            "Binding" | "Leaving" => Phase::Pending,
            _ if trouble.status == "Unknown" || self.is_claim_coming() => Phase::Pending,
            _ => Phase::Failed,
        });
        self.status.message = Some(trouble.message.clone());
        self.conditions
            .set(READY, Is::False, &trouble.reason, trouble.message);
    }

    /// Whether its claim is being made, of what was listed before.
    fn is_claim_coming(&self) -> bool {
        let volume = self.conditions.get(VOLUME);
        volume.is_some_and(|volume| matches!(volume.reason.as_str(), "Binding" | "Leaving"))
    }

    /// Whether pods of its namespace can use it: by the claim as this look has seen it, or the last one that did.
    fn can_be_mounted(&self) -> bool {
        let mut before = self
            .object
            .status
            .iter()
            .flat_map(|status| &status.conditions);
        let was_ready = || before.any(|before| before.type_ == READY && before.status == "True");
        self.status.snapshot.is_some() && self.is_bound.unwrap_or_else(was_ready)
    }
}
