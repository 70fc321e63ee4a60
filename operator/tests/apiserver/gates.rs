//! Pods that wait for their data, on a real apiserver, which has rules of its own for pods with gates.

use serde_json::{Value, json};

use crate::cluster::{Cluster, MemoryMaster, until};
use crate::{PODS, kinds, pod};

const GATE: &str = "weir.io/data";
const LABEL: &str = "weir.io/waits-for-data";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/team-a/events?limit=2000";

fn has_gate(pod: &Value) -> bool {
    let gates = pod["spec"]["schedulingGates"].as_array();
    gates.is_some_and(|gates| gates.iter().any(|gate| gate["name"] == GATE))
}

async fn is_gated(cluster: &Cluster, name: &str) -> bool {
    let pod = cluster.get(&format!("{PODS}/{name}")).await.unwrap();
    let has_label = pod["metadata"]["labels"][LABEL].is_string();
    assert_eq!(has_gate(&pod), has_label, "{pod}");
    has_label
}

/// Waits for an event of a pod. Gives what it says.
async fn event(cluster: &Cluster, name: &str, reason: &str) -> String {
    let find = async || {
        let events = cluster.get(EVENTS).await.unwrap();
        let events = events["items"].as_array().unwrap().clone();
        let is_it =
            |event: &&Value| event["reason"] == reason && event["regarding"]["name"] == name;
        let found = events.iter().find(is_it)?;
        Some(found["note"].as_str().unwrap_or_default().to_owned())
    };
    until(&format!("an event {reason} of pod {name}"), || async {
        find().await.is_some()
    })
    .await;
    find().await.unwrap()
}

/// A pod's specification without what Weir may write.
fn own_part(pod: &Value) -> Value {
    let mut spec = pod["spec"].clone();
    let preferred =
        &mut spec["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"];
    let terms = preferred.as_array().unwrap().clone();
    *preferred = json!(terms[..1]);
    let gates = spec["schedulingGates"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let gates: Vec<Value> = gates
        .into_iter()
        .filter(|gate| gate["name"] != GATE)
        .collect();
    spec["schedulingGates"] = json!(gates);
    spec
}

/// Whether everything of `wanted` is in `object`.
fn has_all(object: &Value, wanted: &Value) -> bool {
    match (object, wanted) {
        (Value::Object(object), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, value)| object.get(key).is_some_and(|there| has_all(there, value))),
        (Value::Array(object), Value::Array(wanted)) => wanted
            .iter()
            .all(|value| object.iter().any(|there| has_all(there, value))),
        _ => object == wanted,
    }
}

pub(crate) async fn pods_of_all_kinds_wait_and_go_together(
    cluster: &Cluster,
    master: &MemoryMaster,
) {
    master.warm(Some(94));
    let before = master.jobs();
    let mut made = Vec::new();
    for kind in kinds::all() {
        let mut uids = Vec::new();
        for (collection, object) in &kind.objects {
            let object = cluster.post(collection, object).await.unwrap();
            uids.push((
                object["metadata"]["name"].clone(),
                object["metadata"]["uid"].clone(),
            ));
        }
        for mut pod in kind.pods {
            if let Some(owner) = pod.pointer_mut("/metadata/ownerReferences/0")
                && let Some((_, uid)) = uids.iter().find(|(name, _)| *name == owner["name"])
            {
                owner["uid"] = uid.clone();
            }
            let stored = cluster.post(PODS, &pod).await.unwrap();
            assert!(has_gate(&stored), "{}: {stored}", kind.name);
            assert_eq!(stored["metadata"]["labels"][LABEL], "true", "{}", kind.name);
            // Annotations, labels and gates of others, GPUs, affinity, tolerations and the scheduler's name.
            assert!(has_all(&stored, &pod), "{}: {stored}\n{pod}", kind.name);
            assert!(stored["metadata"]["annotations"]["weir.io/placed-by"].is_null());
            made.push((kind.name, stored));
        }
        until(&format!("a choice for {}", kind.name), || async {
            let chosen = master.chosen.lock().unwrap();
            chosen
                .iter()
                .any(|chosen| *chosen == format!("team-a/images {}", kind.job))
        })
        .await;
    }
    let name = |pod: &Value| pod["metadata"]["name"].as_str().unwrap().to_owned();
    let note = event(cluster, "bert-master-0", "WaitsForData").await;
    assert_eq!(
        note,
        "it waits until 95% of team-a/images is cached, and for 30m at most"
    );
    until("a job of the master", || async { master.jobs() > before }).await;
    for (_, pod) in &made {
        assert!(is_gated(cluster, &name(pod)).await);
    }
    master.warm(Some(95));
    for (kind, stored) in &made {
        let name = name(stored);
        until(&format!("{kind}: no gate of {name}"), || async {
            !is_gated(cluster, &name).await
        })
        .await;
        let pod = cluster.get(&format!("{PODS}/{name}")).await.unwrap();
        assert_eq!(own_part(&pod), own_part(stored), "{kind}");
        let affinity = &pod["spec"]["affinity"]["nodeAffinity"];
        let terms = &affinity["preferredDuringSchedulingIgnoredDuringExecution"];
        let nodes = &terms[1]["preference"]["matchExpressions"][0];
        assert_eq!(nodes["values"], json!(["node-1"]), "{kind}");
        assert_eq!(
            pod["metadata"]["annotations"]["weir.io/placed-by"],
            "team-a/images"
        );
        cluster
            .delete(&format!("{PODS}/{name}?gracePeriodSeconds=0"))
            .await
            .unwrap();
    }
    assert_eq!(master.jobs(), before + 1, "one job for all of them");
    let note = event(cluster, "bert-master-0", "DataReady").await;
    assert_eq!(note, "95% of team-a/images is cached");
}

/// A pod that waits for a time. It asks for more than any before was given, which is remembered for two seconds.
fn waits(name: &str, timeout: &str, more: Value) -> Value {
    let mut pod = pod(name, more);
    pod["metadata"]["annotations"] = json!({
        "weir.io/wait-for": "96%", "weir.io/wait-timeout": timeout,
    });
    pod
}

pub(crate) async fn a_pod_that_has_waited_long_enough_runs_with_what_is_there(
    cluster: &Cluster,
    master: &MemoryMaster,
) {
    master.warm(Some(41));
    let own = json!({ "key": "gpu", "operator": "In", "values": ["a100"] });
    let affinity = json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{ "matchExpressions": [own] }],
    } } });
    let mut late = waits("late", "5s", json!({ "affinity": affinity }));
    // The apiserver lets terms that are required only be narrowed.
    late["metadata"]["annotations"]["weir.io/affinity"] = json!("required");
    assert!(has_gate(&cluster.post(PODS, &late).await.unwrap()));
    until("the end of a wait", || async {
        !is_gated(cluster, "late").await
    })
    .await;
    let note = event(cluster, "late", "DataWaitTimedOut").await;
    assert!(
        note.starts_with("41% of team-a/images was cached after "),
        "{note}"
    );
    let pod = cluster.get(&format!("{PODS}/late")).await.unwrap();
    let terms = pod.pointer("/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms");
    let ours = json!({ "key": "kubernetes.io/hostname", "operator": "In", "values": ["node-1"] });
    assert_eq!(
        terms.unwrap(),
        &json!([{ "matchExpressions": [own, ours] }])
    );
}

pub(crate) async fn what_makes_no_sense_is_refused(cluster: &Cluster) {
    let mut wrong = waits("wrong", "5s", json!({}));
    wrong["metadata"]["annotations"]["weir.io/wait-for"] = json!("0.95");
    let refused = cluster.post(PODS, &wrong).await.unwrap_err();
    assert!(
        refused.contains("write a whole percentage from 1% to 100%"),
        "{refused}"
    );
}

/// Also leaves a pod that was given a gate before.
pub(crate) async fn nothing_closes_gates_without_it(cluster: &Cluster) {
    let free = waits("free", "5s", json!({}));
    assert!(!has_gate(&cluster.post(PODS, &free).await.unwrap()));
    let mut held = waits(
        "held",
        "1s",
        json!({ "schedulingGates": [{ "name": GATE }] }),
    );
    held["metadata"]["labels"] = json!({ LABEL: "true" });
    cluster.post(PODS, &held).await.unwrap();
}

pub(crate) async fn an_operator_that_was_away_lets_go_what_has_waited(cluster: &Cluster) {
    until("no gate of a pod that has waited", || async {
        !is_gated(cluster, "held").await
    })
    .await;
}
