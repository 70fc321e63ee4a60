//! Where datasets are: chosen when one is declared, listed or the cluster changes, and kept with its record.
//!
//! A choice is stored before anybody is told of it, and its version grows with each, also from a dataset to the next of the
//! same name: first versions are the time. A dataset has none until the first worker is there: one copy over all workers.
//!
//! A domain that was chosen for a dataset, and not named, is waited for some minutes when all of its workers are gone: a worker that
//! is started anew finds its datasets where they were. Meanwhile all workers share their blocks.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prost::Message;
use tokio::time::Instant;
use weir_core::placement::choice::{Wanted, choose};
use weir_core::placement::domains::{Placement, Spread};
use weir_core::placement::readers::Readers;
use weir_core::placement::reason::reason;
use weir_core::placement::room::Domains;
use weir_core::{ClusterMap, DatasetName, DatasetSpec, Location};
use weir_proto::v1;

use super::spec::dataset_spec;
use super::{DATASET_KEY, Datasets};
use crate::error::MasterError;
use crate::placements::{of_message, to_message};
use crate::readers::ReaderTable;
use crate::records::now_ns;
use crate::store::Change;

/// Placements before the one in use that are remembered, and how long workers are told of each.
const MAX_FORMER: usize = 2;
const TOLD_FOR: Duration = Duration::from_hours(24);
/// How long a domain without a worker is waited for that was chosen and not asked for.
const AWAY_FOR: Duration = Duration::from_mins(10);

/// Datasets of which a domain has no worker, and since when that is known.
#[derive(Debug, Default)]
pub(super) struct Away(Mutex<HashMap<String, Instant>>);

impl Away {
    /// Whether a dataset stays where it is, of which a domain is away now or none is.
    fn stays(&self, dataset: &str, is_away: bool, now: Instant) -> bool {
        let mut since = self.0.lock();
        if !is_away {
            since.remove(dataset);
            return false;
        }
        let since = since.entry(dataset.to_owned()).or_insert(now);
        now.saturating_duration_since(*since) < AWAY_FOR
    }

    /// Forgets a dataset.
    pub(super) fn forget(&self, dataset: &str) {
        self.0.lock().remove(dataset);
    }

    fn names(&self) -> Vec<String> {
        self.0.lock().keys().cloned().collect()
    }
}

impl Datasets {
    /// The cluster as it is now.
    pub(super) fn cluster(&self) -> Arc<ClusterMap> {
        self.cluster.borrow().clone()
    }

    /// The domains of the cluster as it is now, with what the datasets take of them; of all but the one of a name.
    pub(super) fn domains(&self, except: Option<&str>) -> Domains {
        let mut domains = Domains::new(self.cluster());
        let known = self.known.lock();
        let others = known.values().filter(|of| Some(of.name.as_str()) != except);
        for dataset in others {
            if let Some(placement) = &dataset.placement {
                domains.put(&of_message(placement), size(dataset));
            }
        }
        domains
    }

    /// Chooses anew for all datasets, since the cluster has changed. Datasets whose choice cannot be stored stay where they are
    /// until it changes again.
    pub(crate) async fn place_all(&self) {
        let mut names: Vec<DatasetName> = self.known.lock().keys().cloned().collect();
        // In one order, so that one master chooses as the next does.
        names.sort();
        self.place_these(names).await;
    }

    /// Chooses anew for datasets whose choice may be another one though the cluster has not changed: their domains are away, they
    /// are read, or have copies for readers.
    pub(crate) async fn place_some(&self) {
        let mut names: BTreeSet<String> = self.away.names().into_iter().collect();
        names.extend(self.readers.datasets());
        {
            let known = self.known.lock();
            let has_copies = |dataset: &&v1::Dataset| {
                let placement = dataset.placement.as_ref();
                placement.is_some_and(|placement| placement.domains.len() > 1)
            };
            names.extend(known.values().filter(has_copies).map(|of| of.name.clone()));
        }
        let names = names.iter().filter_map(|name| name.parse().ok());
        self.place_these(names.collect()).await;
    }

    /// Notes what a mount says of its reads.
    pub(crate) fn note_reader(&self, asked: &v1::GetClusterMapRequest) {
        if asked.read_bytes == 0 || !self.contains(&asked.dataset) {
            return;
        }
        // A name that is none comes from no mount of ours.
        let at = Location::of_names(&asked.zone, &asked.group);
        if let (Ok(node), Ok(at)) = (asked.node.parse(), at) {
            self.readers.note(&asked.dataset, node, at);
        }
    }

    async fn place_these(&self, names: Vec<DatasetName>) {
        let mut domains = Domains::default();
        let mut moved = Vec::new();
        for name in names {
            match self.place_again(&name, &mut domains).await {
                Ok(false) => {}
                Ok(true) => moved.push(name),
                Err(error) => tracing::error!(dataset = %name, "it stays where it is: {error}"),
            }
        }
        if let Some(first) = moved.first() {
            let datasets = moved.len();
            tracing::info!(datasets, %first, "datasets have another placement than before");
        }
    }

    /// Chooses anew for a dataset, by the cluster as it is now, whose domains are kept for the next one. Gives whether another
    /// placement was chosen.
    pub(crate) async fn place_again(
        &self,
        name: &DatasetName,
        domains: &mut Domains,
    ) -> Result<bool, MasterError> {
        let _one_at_a_time = self.saving.lock().await;
        if !Arc::ptr_eq(domains.map(), &self.cluster()) {
            *domains = self.domains(None);
        }
        let Some(before) = self.known.lock().get(name).cloned() else {
            return Ok(false);
        };
        let place_in = |domains: &mut Domains| {
            let mut dataset = before.clone();
            let (away, readers) = (&self.away, &self.readers);
            place(&mut dataset, Some(&before), domains, away, readers)?;
            Ok::<_, MasterError>(dataset)
        };
        if place_in(domains)?.placement == before.placement {
            return Ok(false);
        }
        // It is in its own way no more.
        let bytes = size(&before);
        if let Some(placement) = &before.placement {
            domains.remove(&of_message(placement), bytes);
        }
        let dataset = place_in(domains)?;
        if let Some(placement) = &dataset.placement {
            domains.put(&of_message(placement), bytes);
        }
        let key = format!("{DATASET_KEY}{name}");
        let record = Change::Put(key, dataset.encode_to_vec());
        self.records.write(vec![record]).await?;
        if let Some(known) = self.known.lock().get_mut(name) {
            known.placement = dataset.placement;
            known.former_placements = dataset.former_placements;
        }
        self.changed();
        Ok(true)
    }

    /// A dataset that says why it is where it is.
    pub(crate) fn explained(&self, mut dataset: v1::Dataset) -> v1::Dataset {
        self.explain_all(std::slice::from_mut(&mut dataset));
        dataset
    }

    /// Has datasets say why they are where they are.
    pub(crate) fn explain_all(&self, datasets: &mut [v1::Dataset]) {
        let mut domains = self.domains(None);
        for dataset in datasets {
            // One of another version's specification is as it is.
            let wanted = dataset_spec(dataset).map(|spec| spec.placement.unwrap_or_default());
            let Ok(wanted) = wanted else { continue };
            let placement = dataset.placement.as_ref().map(of_message);
            dataset.placement_reason =
                reason(&wanted, size(dataset), &mut domains, placement.as_ref());
        }
    }

    /// Why the datasets of a namespace are where they are, or all of them when it is empty, by name.
    pub(crate) fn reasons(&self, namespace: &str) -> HashMap<String, String> {
        let mut datasets = self.all(namespace);
        self.explain_all(&mut datasets);
        let said = datasets.into_iter();
        said.map(|dataset| (dataset.name, dataset.placement_reason))
            .collect()
    }

    /// The placement of a dataset, if one was chosen.
    pub(crate) fn placement(&self, name: &str) -> Option<v1::Placement> {
        self.known.lock().get(name)?.placement.clone()
    }
}

/// Bytes of the newest snapshot.
fn size(dataset: &v1::Dataset) -> u64 {
    dataset.snapshots.last().map_or(0, |newest| newest.bytes)
}

/// Chooses the domains of a dataset that was `before`, and notes where it was if it goes elsewhere.
pub(super) fn place(
    dataset: &mut v1::Dataset,
    before: Option<&v1::Dataset>,
    domains: &mut Domains,
    away: &Away,
    readers: &ReaderTable,
) -> Result<(), MasterError> {
    let wanted = dataset_spec(dataset)?.placement.unwrap_or_default();
    let previous = before.and_then(|before| before.placement.as_ref());
    let previous = previous.map(of_message);
    dataset.placement = chosen(&wanted, dataset, previous, domains, (away, readers));
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
    if dataset.placement != before.placement
        && !before.snapshots.is_empty()
        && !is_told_by(before.placement.as_ref(), dataset.placement.as_ref())
    {
        let replaced = v1::FormerPlacement {
            // Without one it was spread over the cluster.
            placement: Some(before.placement.clone().unwrap_or_default()),
            replaced_ns: now_ns(),
            ..v1::FormerPlacement::default()
        };
        former.insert(0, replaced);
        former.truncate(MAX_FORMER);
    }
    dataset.former_placements = former;
}

/// Whether a placement differs from the one before by copies alone that came or went, all of which were made of the first one: the one
/// before tells nothing more of where the dataset may be, and remembering it would have one forgotten that does.
fn is_told_by(before: Option<&v1::Placement>, after: Option<&v1::Placement>) -> bool {
    let (Some(before), Some(after)) = (before, after) else {
        return false;
    };
    (before.spread, &before.pool) == (after.spread, &after.pool)
        && before.domains.first() == after.domains.first()
}

/// Those that were replaced a while ago at most, and how long ago that was.
pub(super) fn recent(former: &[v1::FormerPlacement], now_ns: i64) -> Vec<v1::FormerPlacement> {
    let told_for = i64::try_from(TOLD_FOR.as_nanos()).unwrap_or(i64::MAX);
    let told = former.iter().map(|former| v1::FormerPlacement {
        replaced_ago_ns: now_ns.saturating_sub(former.replaced_ns).max(1),
        ..former.clone()
    });
    told.filter(|former| former.replaced_ago_ns < told_for)
        .collect()
}

fn chosen(
    wanted: &Wanted,
    dataset: &v1::Dataset,
    previous: Option<Placement>,
    domains: &mut Domains,
    (away, readers): (&Away, &ReaderTable),
) -> Option<v1::Placement> {
    let (name, bytes) = (dataset.name.as_str(), size(dataset));
    let readers = if wanted.may_have_more() {
        readers.of(name, domains.map())
    } else {
        Readers::default()
    };
    let Some(previous) = previous else {
        if wanted.is_automatic() && domains.is_empty() {
            return None; // what suits is not known
        }
        return Some(to_message(Placement {
            // In milliseconds, which readers of JSON can hold.
            version: now_ns().unsigned_abs() / 1_000_000,
            ..choose(wanted, name, bytes, domains, None, &readers)
        }));
    };
    let is_away = wanted.is_automatic()
        && wanted.may_be(&previous)
        && previous.spread != Spread::Cluster
        && !domains.is_empty()
        && !domains.has_all_of(&previous);
    if away.stays(name, is_away, Instant::now()) {
        return Some(to_message(previous));
    }
    let next = choose(wanted, name, bytes, domains, Some(&previous), &readers);
    Some(to_message(next))
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
