//! Where a pod should run: which datasets it reads, and where those are cached.
//!
//! The webhook asks it when a pod is made, and whoever lifts a gate when the pod may run.

mod affinity;
mod keys;
mod located;

use std::fmt::Debug;
use std::sync::Arc;

use futures::{FutureExt, StreamExt};
use kube::api::{Api, PartialObjectMeta};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::Value;
use weir_core::DatasetName;

use self::affinity::{Mode, Warm, patch, uses};
use self::keys::Keys;
use self::located::Located;
use crate::json_patch::JsonPatch;
use crate::master::Master;
use crate::objects::{AFFINITY_ANNOTATION, CachePool, Dataset, PLACED_ANNOTATION};
use crate::view::View;
use crate::volumes::named_in;

/// Datasets of one pod that are looked for.
const MAX_DATASETS: usize = 64;

/// What becomes of a pod.
#[derive(Debug)]
pub(crate) enum Placed {
    /// Its changes; none if there is nothing to be said.
    Changes(JsonPatch),
    /// The master has not said in time where its data is.
    Unknown,
}

/// Knows where pods should run.
pub(crate) struct Placing {
    master: Arc<dyn Master>,
    view: Arc<View>,
    located: Located,
    /// What Datasets say of themselves.
    datasets: Store<PartialObjectMeta<Dataset>>,
    /// Whose workers have their zones and groups from labels of nodes.
    pools: Store<CachePool>,
}

/// What a [`Placing`] knows of the apiserver's objects is written to these.
pub(crate) struct Writers {
    pub(crate) datasets: Writer<PartialObjectMeta<Dataset>>,
    pub(crate) pools: Writer<CachePool>,
}

impl Placing {
    /// One that knows no Dataset and no CachePool yet: whatever is written to the writers.
    pub(crate) fn new(master: Arc<dyn Master>, view: Arc<View>) -> (Self, Writers) {
        let (datasets, of_datasets) = reflector::store();
        let (pools, of_pools) = reflector::store();
        let placing = Self {
            master,
            view,
            located: Located::default(),
            datasets,
            pools,
        };
        let writers = Writers {
            datasets: of_datasets,
            pools: of_pools,
        };
        (placing, writers)
    }

    /// The changes by which a pod runs where its data is. A pod that says it was placed, or that has a node, is left as it is.
    pub(crate) async fn place(&self, pod: &Value, namespace: &str) -> Placed {
        let annotations = &pod["metadata"]["annotations"];
        let said = |key: &str| annotations[key].as_str();
        let is_placed = said(PLACED_ANNOTATION).is_some() || pod["spec"]["nodeName"].is_string();
        let own_mode = said(AFFINITY_ANNOTATION).and_then(Mode::read);
        if is_placed || own_mode == Some(Mode::Off) {
            return Placed::Changes(JsonPatch::default());
        }
        let mut mode = own_mode.unwrap_or_default();
        let mut located = Vec::new();
        let mut names = Vec::new();
        let mut is_missed = false;
        for name in self.datasets_of(pod, namespace) {
            if own_mode.is_none() {
                match self.mode_of(&name) {
                    Some(Mode::Off) => continue,
                    Some(Mode::Required) => mode = Mode::Required,
                    _ => {}
                }
            }
            match self.located.get(&*self.master, &name).await {
                Some(reply) => {
                    located.push(reply);
                    names.push(name.to_string());
                }
                None => is_missed = true,
            }
        }
        if is_missed && located.is_empty() {
            return Placed::Unknown;
        }
        let pools = self.pools.state();
        let keys = Keys::of(pools.iter().map(|pool| &pool.spec));
        let mut changes = patch(pod, &Warm::of(&located), &keys, mode);
        if !changes.is_empty() {
            // A second call writes no more terms.
            changes.set(pod, "annotations", PLACED_ANNOTATION, &names.join(","));
        }
        Placed::Changes(changes)
    }

    /// Whether what a pod uses can be told: all Datasets, and those of the master, have been seen once.
    pub(crate) fn is_ready(&self) -> bool {
        let seen = self.datasets.wait_until_ready().now_or_never();
        self.view.age().is_some() && seen.is_some()
    }

    /// The datasets that a pod of a namespace uses, as far as they are known, in order.
    pub(crate) fn datasets_of(&self, pod: &Value, namespace: &str) -> Vec<DatasetName> {
        let uses = uses(pod);
        let claims = uses
            .claims
            .iter()
            .filter_map(|claim| self.of_claim(namespace, claim));
        let inline = uses.inline.iter();
        let inline = inline.filter_map(|named| named_in(named, namespace));
        let mut names: Vec<DatasetName> = claims.chain(inline).collect();
        names.sort_unstable();
        names.dedup();
        names.truncate(MAX_DATASETS);
        names
    }

    /// The dataset of a claim: one of the master, or a Dataset that it has not listed yet.
    fn of_claim(&self, namespace: &str, claim: &str) -> Option<DatasetName> {
        let known = self.view.of_claim(namespace, claim);
        known.or_else(|| {
            let object = ObjectRef::new(claim).within(namespace);
            self.datasets.get(&object)?;
            DatasetName::in_namespace(namespace, claim).ok()
        })
    }

    /// What a Dataset says of pods that use it.
    fn mode_of(&self, name: &DatasetName) -> Option<Mode> {
        let object = ObjectRef::new(name.name()).within(name.namespace());
        let object = self.datasets.get(&object)?;
        Mode::read(object.annotations().get(AFFINITY_ANNOTATION)?)
    }
}

/// Has the writers know Datasets and CachePools, for as long as this is polled. All operators do, also those that do not lead.
pub(crate) async fn watch(client: Client, writers: Writers) {
    tokio::join!(
        keep(Api::all(client.clone()), writers.datasets),
        keep(Api::all(client), writers.pools),
    );
}

async fn keep<K>(objects: Api<K>, writer: Writer<K>)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let watched = watcher(objects, watcher::Config::default());
    reflector(writer, watched)
        .default_backoff()
        .touched_objects()
        .for_each(|_| std::future::ready(()))
        .await;
}
