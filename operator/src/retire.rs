//! Taking the operator's hold off everything, before the operator is removed for good.
//!
//! Objects that it holds by a finalizer could never be deleted without it, and pods that it gates would never run. First nobody acts
//! any more and nothing new is gated, then what is held is let go, again and again until nothing is held. What was made of Datasets
//! stays: pods go on using it, and an operator that is installed later finds it.

use std::fmt::Debug;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{Pod, PodSchedulingGate};
use kube::api::{Api, DeleteParams, ListParams, PartialObjectMeta, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::error::OperatorError;
use crate::leader;
use crate::objects::{Dataset, FINALIZER, GATE, GATED_LABEL, WARMUP_FINALIZER, Warmup, let_go};
use crate::operator;
use crate::webhook;

/// Longest time that it takes.
const DEADLINE: Duration = Duration::from_mins(3);
/// Between two passes.
const PAUSE: Duration = Duration::from_secs(1);
/// Objects of one answer of the apiserver, and how many are changed at once.
const PAGE: u32 = 500;
const AT_ONCE: usize = 16;

/// What was let go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retired {
    /// Datasets and Warmups that were held.
    pub objects: usize,
    /// Pods that were gated.
    pub pods: usize,
}

/// Lets go of all that operators of an installation hold, for the apiserver of this pod, or of KUBECONFIG.
///
/// Operators that still run wait for a minute before one acts again, and gate no pods until the webhook is installed anew.
pub async fn retire(namespace: &str) -> Result<Retired, OperatorError> {
    let client = Client::try_from(operator::connection().await?)?;
    in_time(let_all_go(&client, namespace)).await
}

async fn in_time(
    retiring: impl Future<Output = Result<Retired, OperatorError>>,
) -> Result<Retired, OperatorError> {
    let retired = timeout(DEADLINE, retiring).await;
    retired.unwrap_or(Err(OperatorError::StillHeld(DEADLINE)))
}

async fn let_all_go(client: &Client, namespace: &str) -> Result<Retired, OperatorError> {
    let webhooks: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    gone_is_fine(
        webhooks
            .delete(webhook::CONFIGURATION, &DeleteParams::default())
            .await,
    )?;
    leader::set_aside(client, namespace, operator::LEASE).await?;
    // Until then the one that has led so far may act.
    sleep(leader::LEASE).await;
    let mut all = Retired::default();
    loop {
        leader::set_aside(client, namespace, operator::LEASE).await?;
        let objects = objects::<Dataset>(client, FINALIZER).await?
            + objects::<Warmup>(client, WARMUP_FINALIZER).await?;
        let pods = pods(client).await?;
        all.objects += objects;
        all.pods += pods;
        if objects + pods == 0 {
            return Ok(all);
        }
        sleep(PAUSE).await;
    }
}

/// Lets objects of a kind go. Gives how many were held.
async fn objects<K>(client: &Client, finalizer: &str) -> Result<usize, OperatorError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned,
{
    let all = Api::<PartialObjectMeta<K>>::all(client.clone());
    let is_held = |object: &PartialObjectMeta<K>| object.finalizers().contains(&finalizer.into());
    let held = found(&all, ListParams::default(), is_held).await?;
    let count = held.len();
    let letting = held.into_iter().map(|object| async move {
        let namespace = object.namespace().unwrap_or_default();
        let api = Api::<PartialObjectMeta<K>>::namespaced(client.clone(), &namespace);
        next_time(let_go(&api, &object, finalizer).await)
    });
    at_once(letting).await?;
    Ok(count)
}

/// Takes our gate off pods. Gives how many had it.
async fn pods(client: &Client) -> Result<usize, OperatorError> {
    let all = Api::<Pod>::all(client.clone());
    let pending = ListParams::default().fields("status.phase=Pending");
    let gated = found(&all, pending, |pod| {
        gates(pod).iter().any(|gate| gate.name == GATE)
    });
    let gated = gated.await?;
    let count = gated.len();
    let opening = gated.into_iter().map(|pod| async move {
        let others: Vec<_> = gates(&pod)
            .iter()
            .filter(|gate| gate.name != GATE)
            .collect();
        let patch = json!({
            "metadata": {
                "resourceVersion": pod.resource_version(),
                "labels": { GATED_LABEL: null },
            },
            "spec": { "schedulingGates": others },
        });
        let namespace = pod.namespace().unwrap_or_default();
        let api = Api::<Pod>::namespaced(client.clone(), &namespace);
        let params = PatchParams::default();
        let patched = api
            .patch(&pod.name_any(), &params, &Patch::Merge(&patch))
            .await;
        next_time(patched.map(drop).map_err(OperatorError::from))
    });
    at_once(opening).await?;
    Ok(count)
}

fn gates(pod: &Pod) -> &[PodSchedulingGate] {
    let spec = pod.spec.as_ref();
    spec.and_then(|spec| spec.scheduling_gates.as_deref())
        .unwrap_or_default()
}

/// All objects of a list that are so; none of a kind that is not defined.
async fn found<K>(
    api: &Api<K>,
    params: ListParams,
    is: impl Fn(&K) -> bool,
) -> Result<Vec<K>, OperatorError>
where
    K: Clone + Debug + DeserializeOwned,
{
    let mut params = params.limit(PAGE);
    let mut found = Vec::new();
    loop {
        let page = match api.list(&params).await {
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(found),
            page => page?,
        };
        params.continue_token.clone_from(&page.metadata.continue_);
        found.extend(page.items.into_iter().filter(|object| is(object)));
        if params.continue_token.as_ref().is_none_or(String::is_empty) {
            return Ok(found);
        }
    }
}

async fn at_once<W>(all: impl Iterator<Item = W>) -> Result<(), OperatorError>
where
    W: Future<Output = Result<(), OperatorError>>,
{
    stream::iter(all)
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

/// What has changed or gone meanwhile, the next pass finds as it is then.
fn next_time(outcome: Result<(), OperatorError>) -> Result<(), OperatorError> {
    match outcome {
        Err(OperatorError::Kube(kube::Error::Api(status)))
            if matches!(status.code, 404 | 409 | 422) =>
        {
            Ok(())
        }
        outcome => outcome,
    }
}

fn gone_is_fine<T>(outcome: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match outcome {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        outcome => outcome.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::leader::Candidate;
    use crate::testing::FakeApi;

    const DATASET: &str = "/apis/weir.io/v1alpha1/namespaces/team-a/datasets/images";
    const WARMUP: &str = "/apis/weir.io/v1alpha1/namespaces/team-b/warmups/early";
    const POD: &str = "/api/v1/namespaces/team-a/pods/train";
    const WEBHOOK: &str =
        "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/weir";

    fn everything(api: &FakeApi) {
        api.put(WEBHOOK, json!({ "metadata": { "name": "weir" } }));
        let images = json!({ "metadata": {
            "name": "images", "namespace": "team-a", "finalizers": ["other", FINALIZER],
        } });
        api.put(DATASET, images);
        let early = json!({ "metadata": {
            "name": "early", "namespace": "team-b", "finalizers": [WARMUP_FINALIZER],
        } });
        api.put(WARMUP, early);
        let train = json!({
            "metadata": { "name": "train", "namespace": "team-a" },
            "spec": { "containers": [], "schedulingGates": [{ "name": GATE }, { "name": "kueue" }] },
        });
        api.put(POD, train);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_held_and_no_pod_is_gated_any_more() {
        let (client, api) = FakeApi::start();
        everything(&api);
        let stop = CancellationToken::new();
        let candidate = |name: &str| {
            Candidate::new(client.clone(), "weir-system", operator::LEASE, name.into())
        };
        let leading = candidate("a").acquire(&stop).await.unwrap();
        let retired = let_all_go(&client, "weir-system").await.unwrap();
        assert_eq!((retired.objects, retired.pods), (2, 1));
        let finalizers = |path: &str| api.get(path).unwrap()["metadata"]["finalizers"].clone();
        assert_eq!(finalizers(DATASET), json!(["other"]));
        assert_eq!(finalizers(WARMUP), json!([]));
        let gates = &api.get(POD).unwrap()["spec"]["schedulingGates"];
        assert_eq!(*gates, json!([{ "name": "kueue" }]));
        assert!(api.get(WEBHOOK).is_none(), "no pod is gated anew");
        assert!(leading.lost.is_cancelled(), "nobody acts");
        // One that was not removed acts again later.
        let began = Instant::now();
        candidate("b").acquire(&stop).await.unwrap();
        assert!(
            began.elapsed() >= leader::SET_ASIDE,
            "{:?}",
            began.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_let_go_is_an_error_in_the_end() {
        let (client, api) = FakeApi::start();
        everything(&api);
        // As if something changed it each time before.
        api.refuse(DATASET, 409);
        let outcome = in_time(let_all_go(&client, "weir-system")).await;
        let still_held = matches!(outcome, Err(OperatorError::StillHeld(_)));
        assert!(still_held, "{outcome:?}");
    }
}
