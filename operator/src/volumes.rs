//! The volume and the claim of a Dataset, in each namespace whose pods may use it.
//!
//! A volume is the cluster's, so its name has the Dataset's namespace in it; a dot cannot be part of either name. What is there
//! under such a name and was not made by the operator is never touched.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, ObjectReference, PersistentVolume, PersistentVolumeClaim,
    PersistentVolumeClaimSpec, PersistentVolumeSpec, Pod, Volume, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, Preconditions};
use kube::{Client, ResourceExt};
use weir_core::{DatasetName, DatasetRef};

use crate::error::OperatorError;
use crate::objects::{DATASET_LABEL, Dataset, MANAGED_BY, MANAGED_LABEL, NAMESPACE_LABEL};

/// Name of the CSI driver.
pub(crate) const DRIVER: &str = "csi.weir.io";
/// Attribute of a volume that the driver reads. Who may use it the driver asks the master.
pub(crate) const DATASET_ATTRIBUTE: &str = "dataset";
/// Annotations that tools for training show of a claim.
const SHOWN: [&str; 2] = ["description", "owner"];
/// Pods that a message names.
const MAX_NAMED: usize = 5;
/// Objects of one answer of the apiserver.
const PAGE: u32 = 500;

/// A volume and its claim in one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The Dataset's namespace and name.
    pub(crate) owner: String,
    pub(crate) dataset: String,
    /// The claim's namespace.
    pub(crate) namespace: String,
}

impl Place {
    /// The volume's name.
    fn volume(&self) -> String {
        let Self {
            owner,
            dataset,
            namespace,
        } = self;
        if owner == namespace {
            format!("weir.{owner}.{dataset}")
        } else {
            format!("weir.{owner}.{dataset}.{namespace}")
        }
    }

    /// What kubelet knows the volume by. Two volumes of one name would be one to it.
    fn handle(&self) -> String {
        let Self {
            owner,
            dataset,
            namespace,
        } = self;
        if owner == namespace {
            format!("{owner}/{dataset}")
        } else {
            format!("{owner}/{dataset}#{namespace}")
        }
    }

    /// As a user finds the claim.
    pub(crate) fn claim(&self) -> String {
        format!("{}/{}", self.namespace, self.dataset)
    }

    fn labels(&self) -> BTreeMap<String, String> {
        [
            (MANAGED_LABEL, MANAGED_BY),
            (DATASET_LABEL, self.dataset.as_str()),
            (NAMESPACE_LABEL, self.owner.as_str()),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
    }
}

/// Where a Dataset is to have volumes: its own namespace first.
pub(crate) fn wanted(dataset: &Dataset) -> Vec<Place> {
    let access = dataset.spec.dataset.access.as_ref();
    places(dataset, access.map_or(&[], |access| &access.namespaces))
}

/// The places of a Dataset in its own namespace, which is the first, and in these.
pub(crate) fn places(dataset: &Dataset, beside: &[String]) -> Vec<Place> {
    let owner = dataset.namespace().unwrap_or_default();
    let mut namespaces = vec![owner.clone()];
    for namespace in beside {
        if !namespaces.contains(namespace) {
            namespaces.push(namespace.clone());
        }
    }
    let place = |namespace| Place {
        owner: owner.clone(),
        dataset: dataset.name_any(),
        namespace,
    };
    namespaces.into_iter().map(place).collect()
}

/// Selects what the operator has made.
pub(crate) fn made_by_us() -> String {
    format!("{MANAGED_LABEL}={MANAGED_BY}")
}

/// The Dataset that a volume or claim was made for, by its labels.
pub(crate) fn dataset_of(meta: &ObjectMeta) -> Option<(String, String)> {
    let labels = meta.labels.as_ref()?;
    let name = labels.get(DATASET_LABEL)?;
    let namespace = labels.get(NAMESPACE_LABEL)?;
    Some((namespace.clone(), name.clone()))
}

fn is_ours(meta: &ObjectMeta, place: &Place) -> bool {
    let managed = meta
        .labels
        .as_ref()
        .and_then(|labels| labels.get(MANAGED_LABEL));
    managed.is_some_and(|by| by == MANAGED_BY)
        && dataset_of(meta) == Some((place.owner.clone(), place.dataset.clone()))
}

/// How a place is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Made {
    /// Pods can use it.
    Bound,
    /// The claim is not bound to its volume yet.
    Unbound,
    /// Something else has the name.
    Clash(String),
    /// The namespace is not there.
    NoNamespace,
    /// What was made for a Dataset of before goes first.
    Leaving,
}

/// Makes volume and claim of a place be as they are to be.
pub(crate) async fn make(
    client: &Client,
    dataset: &Dataset,
    place: &Place,
    bytes: u64,
) -> Result<Made, OperatorError> {
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &place.namespace);
    let claim = claims.get_opt(&place.dataset).await?;
    if let Some(claim) = &claim {
        if !is_ours(&claim.metadata, place) {
            return Ok(Made::Clash(format!(
                "there is a claim {} that is not of this Dataset; delete it, or give the Dataset another name",
                place.claim()
            )));
        }
        if claim.metadata.deletion_timestamp.is_some() {
            return Ok(Made::Leaving);
        }
    }
    let volume = volumes.get_opt(&place.volume()).await?;
    if let Some(volume) = &volume {
        if !is_ours(&volume.metadata, place) {
            return Ok(Made::Clash(format!(
                "there is a volume {} that is not of this Dataset; have the cluster's administrator delete it",
                place.volume()
            )));
        }
        if volume.metadata.deletion_timestamp.is_some() {
            return Ok(Made::Leaving);
        }
        let bound_to = volume
            .spec
            .as_ref()
            .and_then(|spec| spec.claim_ref.as_ref());
        let bound_to = bound_to.and_then(|claim| claim.uid.as_ref());
        let claim_uid = claim.as_ref().and_then(|claim| claim.metadata.uid.as_ref());
        if bound_to.is_some() && bound_to != claim_uid {
            // Its claim was deleted by hand; a volume that was released is never bound again.
            delete(&volumes, &volume.metadata).await?;
            return Ok(Made::Leaving);
        }
    }
    let annotations = shown(dataset);
    let wanted = volume_of(place, annotations.clone(), bytes);
    let capacity = |volume: &PersistentVolume| volume.spec.as_ref()?.capacity.clone();
    let is_same = volume.as_ref().is_some_and(|now| {
        capacity(now) == capacity(&wanted) && shows(&now.metadata, &annotations)
    });
    let apply = PatchParams::apply(MANAGED_BY).force();
    if !is_same {
        volumes
            .patch(&place.volume(), &apply, &Patch::Apply(&wanted))
            .await?;
    }
    let is_same = claim
        .as_ref()
        .is_some_and(|claim| shows(&claim.metadata, &annotations));
    let claim = if is_same {
        claim
    } else {
        let wanted = claim_of(place, annotations);
        let made = claims
            .patch(&place.dataset, &apply, &Patch::Apply(&wanted))
            .await;
        match made {
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Made::NoNamespace),
            made => Some(made?),
        }
    };
    let phase = claim
        .and_then(|claim| claim.status)
        .and_then(|status| status.phase);
    Ok(if phase.as_deref() == Some("Bound") {
        Made::Bound
    } else {
        Made::Unbound
    })
}

/// What a Dataset says of itself for its claims.
fn shown(dataset: &Dataset) -> BTreeMap<String, String> {
    let said = SHOWN.iter().filter_map(|key| {
        let value = dataset.annotations().get(*key)?;
        Some(((*key).to_owned(), value.clone()))
    });
    let mut shown: BTreeMap<String, String> = said.collect();
    let first = dataset.spec.dataset.sources.first();
    if let Some(first) = first {
        let more = dataset.spec.dataset.sources.len() - 1;
        let more = if more == 0 {
            String::new()
        } else {
            format!(" and {more} more")
        };
        shown
            .entry(SHOWN[0].to_owned())
            .or_insert_with(|| format!("{}{more}", first.url));
    }
    shown
}

/// Whether an object has these annotations, and none that the operator gave it and that is not among them any more. What others
/// wrote there is theirs.
fn shows(meta: &ObjectMeta, wanted: &BTreeMap<String, String>) -> bool {
    let there = meta.annotations.as_ref();
    let has_all = wanted
        .iter()
        .all(|(key, value)| there.and_then(|there| there.get(key)) == Some(value));
    let is_left = |key: &str| !wanted.contains_key(key) && was_given(meta, key);
    has_all && !SHOWN.iter().any(|key| is_left(key))
}

/// Whether an annotation of an object is one that the operator has applied.
fn was_given(meta: &ObjectMeta, annotation: &str) -> bool {
    let path = format!("/f:metadata/f:annotations/f:{annotation}");
    let managed = meta.managed_fields.iter().flatten();
    let mut applied = managed.filter(|by| {
        by.manager.as_deref() == Some(MANAGED_BY) && by.operation.as_deref() == Some("Apply")
    });
    applied.any(|by| {
        let fields = by.fields_v1.as_ref();
        fields.is_some_and(|fields| fields.0.pointer(&path).is_some())
    })
}

fn bytes_quantity(bytes: u64) -> BTreeMap<String, Quantity> {
    [("storage".to_owned(), Quantity(bytes.max(1).to_string()))].into()
}

fn volume_of(place: &Place, annotations: BTreeMap<String, String>, bytes: u64) -> PersistentVolume {
    let dataset = format!("{}/{}", place.owner, place.dataset);
    let attributes = [(DATASET_ATTRIBUTE.to_owned(), dataset)];
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(place.volume()),
            labels: Some(place.labels()),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: Some(vec!["ReadOnlyMany".to_owned()]),
            capacity: Some(bytes_quantity(bytes)),
            claim_ref: Some(ObjectReference {
                kind: Some("PersistentVolumeClaim".to_owned()),
                api_version: Some("v1".to_owned()),
                namespace: Some(place.namespace.clone()),
                name: Some(place.dataset.clone()),
                ..ObjectReference::default()
            }),
            csi: Some(CSIPersistentVolumeSource {
                driver: DRIVER.to_owned(),
                volume_handle: place.handle(),
                read_only: Some(true),
                volume_attributes: Some(attributes.into()),
                ..CSIPersistentVolumeSource::default()
            }),
            // The operator deletes it when the claim is gone.
            persistent_volume_reclaim_policy: Some("Retain".to_owned()),
            storage_class_name: Some(String::new()),
            volume_mode: Some("Filesystem".to_owned()),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    }
}

fn claim_of(place: &Place, annotations: BTreeMap<String, String>) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(place.dataset.clone()),
            namespace: Some(place.namespace.clone()),
            labels: Some(place.labels()),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadOnlyMany".to_owned()]),
            // What is asked for can never be less again, and a snapshot can be.
            resources: Some(VolumeResourceRequirements {
                requests: Some(bytes_quantity(1)),
                ..VolumeResourceRequirements::default()
            }),
            // An empty class: no provisioner takes the claim for its own.
            storage_class_name: Some(String::new()),
            volume_name: Some(place.volume()),
            volume_mode: Some("Filesystem".to_owned()),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

/// How far the removal of what was made is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Removed {
    Gone,
    /// Pods use it, which are named.
    Used(String),
    /// It is on its way.
    Leaving,
}

/// Removes claims and volumes of a Dataset that are not in `keep`, in this order, and none that a pod uses.
pub(crate) async fn remove(
    client: &Client,
    dataset: &Dataset,
    keep: &[Place],
) -> Result<Removed, OperatorError> {
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let owner = dataset.namespace().unwrap_or_default();
    let labels = format!(
        "{},{DATASET_LABEL}={},{NAMESPACE_LABEL}={owner}",
        made_by_us(),
        dataset.name_any()
    );
    let mut outcome = Removed::Gone;
    for volume in volumes.list(&ListParams::default().labels(&labels)).await? {
        let claim = volume
            .spec
            .as_ref()
            .and_then(|spec| spec.claim_ref.as_ref());
        let Some(namespace) = claim.and_then(|claim| claim.namespace.clone()) else {
            continue;
        };
        let place = Place {
            owner: owner.clone(),
            dataset: dataset.name_any(),
            namespace,
        };
        if keep.contains(&place) {
            continue;
        }
        match remove_place(client, &place, &volume).await? {
            used @ Removed::Used(_) => outcome = used,
            Removed::Leaving if outcome == Removed::Gone => outcome = Removed::Leaving,
            Removed::Gone | Removed::Leaving => {}
        }
    }
    Ok(outcome)
}

async fn remove_place(
    client: &Client,
    place: &Place,
    volume: &PersistentVolume,
) -> Result<Removed, OperatorError> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &place.namespace);
    let claim = claims.get_opt(&place.dataset).await?;
    if let Some(claim) = claim.filter(|claim| is_ours(&claim.metadata, place)) {
        if claim.metadata.deletion_timestamp.is_none() {
            // Kubernetes keeps it as long as a pod uses it, and lets no new pod use it.
            delete(&claims, &claim.metadata).await?;
        }
        if claims.get_opt(&place.dataset).await?.is_some() {
            let users = users(client, place, By::Claim).await?;
            return Ok(users.map_or(Removed::Leaving, Removed::Used));
        }
    }
    if let Some(users) = users(client, place, By::Inline).await? {
        return Ok(Removed::Used(users));
    }
    if volume.metadata.deletion_timestamp.is_none() {
        let volumes: Api<PersistentVolume> = Api::all(client.clone());
        delete(&volumes, &volume.metadata).await?;
    }
    Ok(Removed::Gone)
}

/// Deletes one object, and none that has come in its place.
async fn delete<K>(api: &Api<K>, meta: &ObjectMeta) -> Result<(), OperatorError>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let only = Preconditions {
        uid: meta.uid.clone(),
        resource_version: None,
    };
    let params = DeleteParams {
        preconditions: Some(only),
        ..DeleteParams::default()
    };
    match api
        .delete(meta.name.as_deref().unwrap_or_default(), &params)
        .await
    {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        outcome => {
            outcome?;
            Ok(())
        }
    }
}

/// How a pod names what it uses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Claim,
    /// A volume of the driver without a claim.
    Inline,
}

/// The pods that use the dataset in a namespace, as a message names them; none if there are none.
async fn users(client: &Client, place: &Place, by: By) -> Result<Option<String>, OperatorError> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &place.namespace);
    let mut names = Vec::new();
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let list = pods.list(&page).await?;
        let more = list
            .metadata
            .continue_
            .clone()
            .filter(|more| !more.is_empty());
        let using = list.items.iter().filter(|pod| uses(pod, place, by));
        names.extend(using.map(name_with_node));
        match more {
            Some(token) => page = ListParams::default().limit(PAGE).continue_token(&token),
            None => break,
        }
    }
    if names.is_empty() {
        return Ok(None);
    }
    let more = names.len().saturating_sub(MAX_NAMED);
    let named = names[..names.len().min(MAX_NAMED)].join(", ");
    let more = if more == 0 {
        String::new()
    } else {
        format!(" and {more} more")
    };
    Ok(Some(format!(
        "pods of namespace {} use it: {named}{more}",
        place.namespace
    )))
}

/// A pod as a message names it.
fn name_with_node(pod: &Pod) -> String {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
    match node {
        Some(node) => format!("{} on {node}", pod.name_any()),
        None => pod.name_any(),
    }
}

/// Whether a pod that has not ended uses the dataset.
fn uses(pod: &Pod, place: &Place, by: By) -> bool {
    if has_ended(pod) {
        return false;
    }
    match by {
        By::Claim => volumes_of(pod).any(|volume| {
            let claim = volume.persistent_volume_claim.as_ref();
            claim.is_some_and(|claim| claim.claim_name == place.dataset)
        }),
        By::Inline => inline_datasets(pod, &place.namespace)
            .any(|named| named.namespace() == place.owner && named.name() == place.dataset),
    }
}

/// Whether a pod has ended for ever.
pub(crate) fn has_ended(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn volumes_of(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let specs = pod.spec.iter();
    specs.flat_map(|spec| spec.volumes.iter().flatten())
}

/// The datasets of a pod's inline volumes.
pub(crate) fn inline_datasets(pod: &Pod, namespace: &str) -> impl Iterator<Item = DatasetName> {
    let inline = volumes_of(pod).filter_map(|volume| volume.csi.as_ref());
    let attributes = inline
        .filter(|csi| csi.driver == DRIVER)
        .filter_map(|csi| csi.volume_attributes.as_ref());
    let named = attributes.filter_map(|of| of.get(DATASET_ATTRIBUTE));
    named.filter_map(move |named| named_in(named, namespace))
}

/// The dataset that a volume of a pod's namespace names: `NAME`, `NAMESPACE/NAME`, either with `@SNAPSHOT`.
pub(crate) fn named_in(named: &str, namespace: &str) -> Option<DatasetName> {
    let named = named.trim();
    let full = match named.split_once('/') {
        Some(_) => named.to_owned(),
        None => format!("{namespace}/{named}"),
    };
    Some(full.parse::<DatasetRef>().ok()?.dataset)
}
