//! Where datasets are: chosen when one is declared, listed or the cluster changes, and kept with its record.
//!
//! A choice is stored before anybody is told of it, and its version grows with each, also from a dataset to the next of the
//! same name: first versions are the time. A dataset that nothing was ever asked for has none: one copy over all workers.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use weir_core::placement::choice::{Domains, Wanted, choose};
use weir_core::placement::domains::Placement;
use weir_core::{ClusterMap, DatasetName, DatasetSpec};
use weir_proto::v1;

use super::spec::dataset_spec;
use super::{DATASET_KEY, Datasets};
use crate::error::MasterError;
use crate::placements::{of_message, to_message};
use crate::records::now_ns;
use crate::store::Change;

/// Placements before the one in use that are remembered, and how long workers are told of each.
const MAX_FORMER: usize = 2;
const TOLD_FOR: Duration = Duration::from_hours(24);

impl Datasets {
    /// The cluster as it is now.
    pub(super) fn cluster(&self) -> Arc<ClusterMap> {
        self.cluster.borrow().clone()
    }

    /// Chooses anew for all datasets, since the cluster has changed. Datasets whose choice cannot be stored stay where they are
    /// until it changes again.
    pub(crate) async fn place_all(&self) {
        let placed = |dataset: &&v1::Dataset| dataset.placement.is_some();
        let names: Vec<DatasetName> = {
            let known = self.known.lock();
            let names = known.values().filter(placed).map(|d| d.name.parse());
            names.filter_map(Result::ok).collect()
        };
        let mut domains = Domains::default();
        for name in names {
            if let Err(error) = self.place_again(&name, &mut domains).await {
                tracing::error!(dataset = %name, "it stays where it is: {error}");
            }
        }
    }

    /// Chooses anew for a dataset, by the cluster as it is now, whose domains are kept for the next one.
    pub(crate) async fn place_again(
        &self,
        name: &DatasetName,
        domains: &mut Domains,
    ) -> Result<(), MasterError> {
        let _one_at_a_time = self.saving.lock().await;
        domains.renew(self.cluster());
        let Some(mut dataset) = self.known.lock().get(name).cloned() else {
            return Ok(());
        };
        let before = dataset.clone();
        place(&mut dataset, Some(&before), domains)?;
        if dataset.placement == before.placement {
            return Ok(());
        }
        let key = format!("{DATASET_KEY}{name}");
        let record = Change::Put(key, dataset.encode_to_vec());
        self.records.write(vec![record]).await?;
        if let Some(known) = self.known.lock().get_mut(name) {
            known.placement = dataset.placement;
            known.former_placements = dataset.former_placements;
        }
        self.changed();
        Ok(())
    }

    /// The placement of a dataset, if anything was ever asked for.
    pub(crate) fn placement(&self, name: &str) -> Option<v1::Placement> {
        self.known.lock().get(name)?.placement.clone()
    }
}

/// Chooses the domains of a dataset that was `before`, and notes where it was if it goes elsewhere.
pub(super) fn place(
    dataset: &mut v1::Dataset,
    before: Option<&v1::Dataset>,
    domains: &mut Domains,
) -> Result<(), MasterError> {
    let wanted = dataset_spec(dataset)?.placement;
    let previous = before.and_then(|before| before.placement.as_ref());
    let previous = previous.map(of_message);
    dataset.placement = chosen(wanted.as_ref(), dataset, previous.as_ref(), domains);
    remember(dataset, before);
    Ok(())
}

/// Notes the placement that a dataset had before, if it has another one now and there was something to be held.
fn remember(dataset: &mut v1::Dataset, before: Option<&v1::Dataset>) {
    let Some(before) = before else {
        dataset.former_placements = Vec::new();
        return;
    };
    let mut former = before.former_placements.clone();
    if dataset.placement != before.placement && !before.snapshots.is_empty() {
        let replaced = v1::FormerPlacement {
            // Without one it was spread over the cluster.
            placement: Some(before.placement.clone().unwrap_or_default()),
            replaced_ns: now_ns(),
        };
        former.insert(0, replaced);
        former.truncate(MAX_FORMER);
    }
    dataset.former_placements = former;
}

/// Those that were replaced a while ago at most.
pub(super) fn recent(former: &[v1::FormerPlacement], now_ns: i64) -> Vec<v1::FormerPlacement> {
    let told_for = i64::try_from(TOLD_FOR.as_nanos()).unwrap_or(i64::MAX);
    let recent = former.iter();
    let recent = recent.filter(|former| now_ns.saturating_sub(former.replaced_ns) < told_for);
    recent.cloned().collect()
}

fn chosen(
    wanted: Option<&Wanted>,
    dataset: &v1::Dataset,
    previous: Option<&Placement>,
    domains: &mut Domains,
) -> Option<v1::Placement> {
    let is_usual = |placement: &Placement| {
        let usual = Placement::default();
        (placement.spread, &placement.pool) == (usual.spread, &usual.pool)
    };
    let mut placement = match (wanted, previous) {
        (None, None) => return None,
        // What was asked for once is not asked for any more.
        (None, Some(previous)) if is_usual(previous) => previous.clone(),
        (None, Some(previous)) => Placement {
            version: previous.version + 1,
            ..Placement::default()
        },
        (Some(wanted), previous) => {
            let bytes = dataset.snapshots.last().map_or(0, |newest| newest.bytes);
            choose(wanted, &dataset.name, bytes, domains, previous)
        }
    };
    if previous.is_none() {
        // In milliseconds, which readers of JSON can hold.
        placement.version = now_ns().unsigned_abs() / 1_000_000;
    }
    Some(to_message(placement))
}

/// Refuses a placement that the cluster cannot have.
pub(super) fn check(spec: &DatasetSpec, cluster: &ClusterMap) -> Result<(), MasterError> {
    let Some(wanted) = &spec.placement else {
        return Ok(());
    };
    wanted
        .check(cluster)
        .map_err(|error| MasterError::Invalid(format!("spec.placement: {error}")))
}

#[cfg(test)]
mod tests;
