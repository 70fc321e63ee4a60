//! Making one CachePool true, and telling how it is.
//!
//! The pool's workers are a DaemonSet, or a StatefulSet if it has a size, which belongs to the pool: what deletes the pool deletes
//! them, without a finalizer. A pool never becomes smaller than its workers can be emptied. What is wrong with a pool is a condition of
//! it, and holds up nothing else.

mod check;
mod leaving;
mod scaling;
mod schedule;
mod status;
mod workload;

#[cfg(test)]
mod testing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{DaemonSet, StatefulSet};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::controller::Action;
use kube::{Client, Resource, ResourceExt};
use serde_json::Value;
use weir_proto::v1;

use self::leaving::Left;
use self::workload::Kind;
use crate::context::Context;
use crate::error::OperatorError;
use crate::fleet::{NodeFacts, PodFacts};
use crate::objects::{
    CachePool, CachePoolStatus, Conditions, Is, Leaving, LeavingReason, MANAGED_BY,
};

pub(crate) use self::check::check;

/// The pool that the chart makes.
const MAIN_POOL: &str = "default";
/// Conditions of a pool.
const READY: &str = "Ready";
const ACCEPTED: &str = "Accepted";
const NODES_FIT: &str = "NodesFit";
const DRAINED: &str = "Drained";

/// When a pool is looked at again though nothing was heard of it: for its figures, and for a size that follows from the time or from
/// what is read.
const RESYNC: Duration = Duration::from_mins(1);
const RESYNC_SIZES: Duration = Duration::from_secs(15);
/// When one is looked at again that is not as it is to be.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// When the cluster was not listed yet.
const SOON: Duration = Duration::from_secs(1);
/// Least time for which it is counted where reads came from.
const READS: SignedDuration = SignedDuration::from_mins(1);

/// The workload of a pool as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Current {
    generation: i64,
    /// Workers that it is to have, of one that has a size.
    replicas: Option<i32>,
    /// Pods that there are to be, that there are, and that are ready.
    wanted: i32,
    pods: i32,
    ready: i32,
}

/// One look at a pool: what is found, and what follows from it.
struct Look<'a> {
    context: &'a Context,
    object: &'a CachePool,
    now: Timestamp,
    status: CachePoolStatus,
    conditions: Conditions,
    leaving: Vec<Leaving>,
    workers: Result<Arc<Vec<v1::WorkerStatus>>, String>,
    nodes: Arc<BTreeMap<String, NodeFacts>>,
    /// Pods of the pool.
    pods: BTreeMap<String, PodFacts>,
    /// The pool is to have no workers at all.
    wants_none: bool,
    /// When to look again.
    again: Duration,
}

/// Looks at a pool once.
pub(crate) async fn look(object: &CachePool, context: &Context) -> Result<Action, OperatorError> {
    look_at(object, context, Timestamp::now()).await
}

async fn look_at(
    object: &CachePool,
    context: &Context,
    now: Timestamp,
) -> Result<Action, OperatorError> {
    if object.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let name = object.name_any();
    let fleet = &context.pools.fleet;
    let (Some(nodes), Some(pods)) = (fleet.nodes(), fleet.pods()) else {
        return Ok(Action::requeue(SOON));
    };
    let generation = object.metadata.generation;
    let before = object.status.clone().unwrap_or_default();
    let of_pool = pods.iter().filter(|(_, pod)| pod.pool == name);
    let leaving = {
        let remembered = context.pools.remembered.lock();
        remembered.get(&name).and_then(|of| of.leaving.clone())
    };
    let mut look = Look {
        context,
        object,
        now,
        conditions: Conditions::new(&before.conditions, generation, now),
        leaving: leaving.unwrap_or_else(|| before.leaving.clone()),
        workers: context.view.workers(),
        nodes,
        pods: of_pool
            .map(|(name, pod)| (name.clone(), pod.clone()))
            .collect(),
        wants_none: false,
        status: CachePoolStatus {
            observed_generation: generation,
            conditions: Vec::new(),
            leaving: Vec::new(),
            message: None,
            ..before
        },
        again: RESYNC,
    };
    let outcome = look.all().await;
    {
        let mut remembered = context.pools.remembered.lock();
        remembered.entry(name).or_default().leaving = Some(look.leaving.clone());
    }
    outcome?;
    look.finish().await
}

impl Look<'_> {
    fn name(&self) -> String {
        self.object.name_any()
    }

    fn namespace(&self) -> &str {
        &self.context.pools.namespace
    }

    /// Makes the pool true, as far as it can be now.
    async fn all(&mut self) -> Result<(), OperatorError> {
        let spec = &self.object.spec;
        let template = match self.understood().await {
            Ok(template) => template,
            Err((reason, message)) => {
                self.conditions.set(ACCEPTED, Is::False, reason, message);
                return Ok(());
            }
        };
        let current = self.current().await?;
        let usage = self.usage();
        self.look_at_nodes();
        let kind = match spec.replicas {
            None => Kind::EveryNode,
            Some(replicas) => {
                let before = self.status.scaling.as_ref();
                let usage = usage.as_ref();
                let (wanted, scaling) = scaling::size(spec, replicas, before, usage, self.now);
                self.status.scaling = scaling;
                self.status.wanted = Some(wanted);
                self.wants_none = wanted == 0;
                if !spec.schedule.is_empty() || spec.autoscaling.is_some() {
                    self.again = RESYNC_SIZES;
                }
                Kind::Some(wanted)
            }
        };
        let kind = self.without_loss(kind, current.as_ref()).await;
        let objects = workload::objects(self.object, self.namespace(), &template, kind);
        let objects = match objects {
            Ok(objects) => objects,
            Err(problem) => {
                self.conditions
                    .set(ACCEPTED, Is::False, "NoTemplate", no_template(&problem));
                return Ok(());
            }
        };
        match self.write(&objects, current.as_ref()).await {
            Ok(()) => self.conditions.set(ACCEPTED, Is::True, "Accepted", ""),
            Err(OperatorError::Kube(kube::Error::Api(status)))
                if (400..500).contains(&status.code) && !matches!(status.code, 409 | 429) =>
            {
                let message = format!("the apiserver refuses its workers: {}", status.message);
                self.conditions.set(ACCEPTED, Is::False, "Refused", message);
                self.again = LOOK_AGAIN;
            }
            Err(error) => return Err(error),
        }
        let current = self.current().await?.unwrap_or_default();
        self.tell(&current, usage.as_ref());
        Ok(())
    }

    /// The template of a worker's pod, if the specification makes sense.
    async fn understood(&self) -> Result<Value, (&'static str, String)> {
        check(&self.name(), &self.object.spec).map_err(|message| ("InvalidSpec", message))?;
        let Some(path) = &self.context.pools.template else {
            let message = "the operator was started without --worker-template, and so cannot make workers; the chart does it";
            return Err(("NoTemplate", message.to_owned()));
        };
        let read = tokio::fs::read(path).await;
        let read = read.map_err(|error| error.to_string());
        let template = read.and_then(|text| {
            serde_json::from_slice(&text).map_err(|error| format!("it is no JSON: {error}"))
        });
        template.map_err(|problem| ("NoTemplate", no_template(&problem)))
    }

    /// The workload as it is.
    async fn current(&self) -> Result<Option<Current>, OperatorError> {
        let (client, namespace) = (self.context.client.clone(), self.namespace());
        let name = workload::name(&self.name());
        if self.object.spec.replicas.is_some() {
            let sets: Api<StatefulSet> = Api::namespaced(client, namespace);
            let found = sets.get_opt(&name).await?;
            return Ok(found.map(|set| {
                let (spec, status) = (set.spec.unwrap_or_default(), set.status.unwrap_or_default());
                let replicas = spec.replicas.unwrap_or(1);
                Current {
                    generation: set.metadata.generation.unwrap_or_default(),
                    replicas: Some(replicas),
                    wanted: replicas,
                    pods: status.replicas,
                    ready: status.ready_replicas.unwrap_or_default(),
                }
            }));
        }
        let sets: Api<DaemonSet> = Api::namespaced(client, namespace);
        let found = sets.get_opt(&name).await?;
        Ok(found.map(|set| {
            let status = set.status.unwrap_or_default();
            Current {
                generation: set.metadata.generation.unwrap_or_default(),
                replicas: None,
                wanted: status.desired_number_scheduled,
                pods: status.current_number_scheduled,
                ready: status.number_ready,
            }
        }))
    }

    /// What can be made of the pool now without a block being lost: of two workers that are to go the second stays for longer.
    async fn without_loss(&mut self, kind: Kind, current: Option<&Current>) -> Kind {
        let mut leaving: BTreeMap<String, LeavingReason> = BTreeMap::new();
        let on_cordoned = self.pods.values().filter_map(|pod| {
            let node = pod.node.as_ref()?;
            let is_cordoned = self.nodes.get(node).is_some_and(|node| node.is_cordoned);
            (is_cordoned && !pod.is_leaving).then(|| node.clone())
        });
        leaving.extend(on_cordoned.map(|node| (node, LeavingReason::NodeCordoned)));
        let now = current.and_then(|current| current.replicas);
        let mut kind = kind;
        let mut last = None;
        if let (Kind::Some(wanted), Some(now)) = (kind, now)
            && wanted < now
        {
            // A StatefulSet takes away its last pod.
            let pod = format!("{}-{}", workload::name(&self.name()), now - 1);
            last = self.pods.get(&pod).and_then(|pod| pod.node.clone());
            match &last {
                Some(node) => {
                    leaving.insert(node.clone(), LeavingReason::ScaleIn);
                    kind = Kind::Some(now);
                }
                None => kind = Kind::Some(now - 1),
            }
        }
        let (mut waits, mut failed) = (None, None);
        for (worker, why) in &leaving {
            match self.leave(worker, *why).await {
                Left::Done if Some(worker) == last.as_ref() => {
                    kind = Kind::Some(now.unwrap_or(1) - 1);
                }
                Left::Done => {}
                Left::Waits(message) => waits = waits.or(Some(message)),
                Left::Away(why) => {
                    waits = Some(format!("the master does not answer: {why}"));
                    break;
                }
                Left::Failed(message) => failed = failed.or(Some(message)),
            }
        }
        let leaving: Vec<String> = leaving.into_keys().collect();
        self.keep_others(&leaving).await;
        self.tell_of_drains(waits, failed);
        kind
    }

    /// Writes the objects of the pool, unless they are as they were written last, and deletes what they are in place of.
    async fn write(
        &self,
        objects: &[Value],
        current: Option<&Current>,
    ) -> Result<(), OperatorError> {
        let (client, namespace) = (&self.context.client, self.namespace());
        let wanted = workload::fingerprint(objects);
        let generation = current.map(|current| current.generation);
        let written = {
            let remembered = self.context.pools.remembered.lock();
            remembered
                .get(&self.name())
                .and_then(|remembered| remembered.written)
        };
        // Whoever changes the workload gives it another generation.
        if generation.is_some_and(|generation| written == Some((wanted, generation))) {
            return Ok(());
        }
        let name = workload::name(&self.name());
        let params = PatchParams::apply(MANAGED_BY).force();
        let mut generation = 0;
        for object in objects.iter().rev() {
            let resource = resource_of(object);
            let api: Api<DynamicObject> =
                Api::namespaced_with(client.clone(), namespace, &resource);
            let made = api.patch(&name, &params, &Patch::Apply(object)).await?;
            generation = made.metadata.generation.unwrap_or_default();
        }
        if self.object.spec.replicas.is_some() {
            gone::<DaemonSet>(client, namespace, &name, self.object).await?;
        } else {
            gone::<StatefulSet>(client, namespace, &name, self.object).await?;
            gone::<PodDisruptionBudget>(client, namespace, &name, self.object).await?;
        }
        let mut remembered = self.context.pools.remembered.lock();
        remembered.entry(self.name()).or_default().written = Some((wanted, generation));
        Ok(())
    }
}

fn no_template(problem: &str) -> String {
    format!(
        "the template of a worker's pod cannot be used: {problem}; is the chart that of this operator?"
    )
}

/// The kind of an object.
fn resource_of(object: &Value) -> ApiResource {
    let text = |key: &str| object[key].as_str().unwrap_or_default();
    let (group, version) = text("apiVersion").split_once('/').unwrap_or_default();
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, text("kind")))
}

/// Deletes an object of the pool, if it is there: one that the pool had when it had no size, or had one.
async fn gone<K>(
    client: &Client,
    namespace: &str,
    name: &str,
    pool: &CachePool,
) -> Result<(), OperatorError>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let found = api.get_opt(name).await?;
    let is_ours = found.is_some_and(|found| {
        let owners = found.owner_references().iter();
        let mut owners = owners.map(|owner| &owner.uid);
        owners.any(|uid| Some(uid) == pool.metadata.uid.as_ref())
    });
    if !is_ours {
        return Ok(());
    }
    match api.delete(name, &DeleteParams::background()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        outcome => {
            outcome?;
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests;
