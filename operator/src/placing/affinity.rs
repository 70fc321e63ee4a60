//! Preferred terms that bring a pod to where its data is cached.
//!
//! At most three are written: for nodes, for groups and for zones, each with a weight that follows from the share of the bytes
//! which the best of them holds. What a pod asks for itself stays as it is. A pod that asks for `required` gets its term into every
//! one that it has, since those are alternatives.

use std::collections::HashMap;

use serde_json::{Value, json};
use weir_proto::v1;

use crate::json_patch::JsonPatch;

/// Most nodes that a term names.
pub(crate) const MAX_NODES: usize = 32;
/// Most groups or zones that a term names.
const MAX_PLACES: usize = 8;
/// Weights of a place that holds all bytes. A pod on the best node gets all three.
const NODE_WEIGHT: u64 = 50;
const GROUP_WEIGHT: u64 = 30;
const ZONE_WEIGHT: u64 = 20;
/// A place is named that holds at least this part of what the best one holds.
const NAMED_FROM: (u64, u64) = (1, 2);
/// Labels of a node.
const NODE_LABEL: &str = "kubernetes.io/hostname";
const GROUP_LABEL: &str = "weir.io/group";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// What a pod or a Dataset says of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The scheduler prefers where the data is.
    #[default]
    Preferred,
    /// The pod runs only there, if it is anywhere.
    Required,
    /// Nothing is written.
    Off,
}

impl Mode {
    /// Reads an annotation; what is not understood is as if it were not there.
    pub(crate) fn read(text: &str) -> Option<Self> {
        match text.trim() {
            "preferred" => Some(Self::Preferred),
            "required" => Some(Self::Required),
            "off" => Some(Self::Off),
            _ => None,
        }
    }
}

/// Places that hold about as much as the best one, and its share of all bytes in percent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Best {
    names: Vec<String>,
    percent: u64,
}

/// Where the bytes of a pod's datasets are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Warm {
    nodes: Best,
    groups: Best,
    zones: Best,
}

impl Warm {
    /// Puts together where datasets are cached: each counts by its bytes.
    pub(crate) fn of(located: &[std::sync::Arc<v1::LocateDatasetReply>]) -> Self {
        let total: u64 = located.iter().map(|one| one.bytes).sum();
        let all = |of: fn(&v1::LocateDatasetReply) -> &[v1::CachedAt]| {
            let mut sums: HashMap<&str, u64> = HashMap::new();
            for place in located.iter().flat_map(|one| of(one)) {
                let sum = sums.entry(&place.name).or_default();
                *sum = sum.saturating_add(place.cached_bytes);
            }
            sums
        };
        Self {
            nodes: best(all(|one| &one.nodes), total, MAX_NODES),
            groups: best(labelled(all(|one| &one.groups)), total, MAX_PLACES),
            zones: best(all(|one| &one.zones), total, MAX_PLACES),
        }
    }

    /// The preferred terms, the narrowest first; none that would weigh nothing.
    fn preferred(&self) -> Vec<Value> {
        let mut terms = Vec::new();
        let mut add = |best: &Best, weight: u64, expressions: Vec<Value>| {
            let weight = weight * best.percent / 100;
            if weight > 0 && !expressions.is_empty() {
                terms.push(json!({
                    "weight": weight,
                    "preference": { "matchExpressions": expressions },
                }));
            }
        };
        add(
            &self.nodes,
            NODE_WEIGHT,
            among(NODE_LABEL, &self.nodes.names),
        );
        add(&self.groups, GROUP_WEIGHT, of_groups(&self.groups.names));
        add(
            &self.zones,
            ZONE_WEIGHT,
            among(ZONE_LABEL, &self.zones.names),
        );
        terms
    }

    /// What a node must be for a pod that runs only where its data is: the narrowest place of which one holds half of it.
    fn required(&self) -> Vec<Value> {
        [
            (&self.nodes, among(NODE_LABEL, &self.nodes.names)),
            (&self.groups, of_groups(&self.groups.names)),
            (&self.zones, among(ZONE_LABEL, &self.zones.names)),
        ]
        .into_iter()
        .find(|(best, expressions)| best.percent >= 50 && !expressions.is_empty())
        .map(|(_, expressions)| expressions)
        .unwrap_or_default()
    }
}

/// Groups that are a label of their nodes, and not made up for nodes without one: `a/~7`.
fn labelled(mut groups: HashMap<&str, u64>) -> HashMap<&str, u64> {
    groups.retain(|group, _| !in_zone(group).1.starts_with('~'));
    groups
}

/// A group has a name inside its zone: `a/r1`, or `-/r1` outside of all zones.
fn in_zone(group: &str) -> (&str, &str) {
    match group.split_once('/') {
        Some(("-", name)) => ("", name),
        Some(parts) => parts,
        None => ("", group),
    }
}

fn best(sums: HashMap<&str, u64>, total: u64, most: usize) -> Best {
    let highest = sums.values().copied().max().unwrap_or_default();
    let percent = crate::view::percent(highest, total).unwrap_or_default();
    if percent == 0 {
        return Best::default();
    }
    let (part, whole) = NAMED_FROM;
    let least = u128::from(highest) * u128::from(part) / u128::from(whole);
    let mut named: Vec<(&str, u64)> = sums
        .into_iter()
        .filter(|(name, bytes)| !name.is_empty() && u128::from(*bytes) >= least)
        .collect();
    // The same for the same input, whatever the order of the map is.
    named.sort_unstable_by(|one, other| other.1.cmp(&one.1).then(one.0.cmp(other.0)));
    named.truncate(most);
    let names = named.into_iter().map(|(name, _)| name.to_owned()).collect();
    Best { names, percent }
}

fn among(label: &str, names: &[String]) -> Vec<Value> {
    if names.is_empty() {
        return Vec::new();
    }
    vec![json!({ "key": label, "operator": "In", "values": names })]
}

/// Groups of the best one's zone are named.
fn of_groups(groups: &[String]) -> Vec<Value> {
    let Some((zone, _)) = groups.first().map(|group| in_zone(group)) else {
        return Vec::new();
    };
    let names = groups.iter().map(|group| in_zone(group));
    let names = names.filter(|(of, _)| *of == zone);
    let names: Vec<String> = names.map(|(_, name)| name.to_owned()).collect();
    let mut expressions = among(GROUP_LABEL, &names);
    if !zone.is_empty() {
        expressions.extend(among(ZONE_LABEL, &[zone.to_owned()]));
    }
    expressions
}

/// What the pods of a review use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Uses {
    /// Names of claims.
    pub(crate) claims: Vec<String>,
    /// Datasets of inline volumes, as they are named there.
    pub(crate) inline: Vec<String>,
}

/// The claims and inline volumes of a pod.
pub(crate) fn uses(pod: &Value) -> Uses {
    let mut uses = Uses::default();
    for volume in pod["spec"]["volumes"].as_array().into_iter().flatten() {
        if let Some(claim) = volume["persistentVolumeClaim"]["claimName"].as_str() {
            uses.claims.push(claim.to_owned());
        }
        let csi = &volume["csi"];
        if csi["driver"] == crate::volumes::DRIVER
            && let Some(dataset) = csi["volumeAttributes"]["dataset"].as_str()
        {
            uses.inline.push(dataset.to_owned());
        }
    }
    uses
}

/// The changes of a pod; none if there is nothing to be said.
pub(crate) fn patch(pod: &Value, warm: &Warm, mode: Mode) -> JsonPatch {
    let affinity = &pod["spec"]["affinity"];
    let of_nodes = &affinity["nodeAffinity"];
    let mut patch = JsonPatch::default();
    match mode {
        Mode::Off => {}
        Mode::Preferred => {
            let terms = warm.preferred();
            if terms.is_empty() {
                return patch;
            }
            reach(&mut patch, affinity, of_nodes);
            let kept = &of_nodes["preferredDuringSchedulingIgnoredDuringExecution"];
            let path =
                "/spec/affinity/nodeAffinity/preferredDuringSchedulingIgnoredDuringExecution";
            if kept.is_array() {
                for term in terms {
                    patch.add(&format!("{path}/-"), term);
                }
            } else {
                patch.add(path, Value::Array(terms));
            }
        }
        Mode::Required => {
            let expressions = warm.required();
            if expressions.is_empty() {
                return patch;
            }
            reach(&mut patch, affinity, of_nodes);
            let field = "requiredDuringSchedulingIgnoredDuringExecution";
            let path = format!("/spec/affinity/nodeAffinity/{field}");
            let terms = of_nodes[field]["nodeSelectorTerms"].as_array();
            match terms.filter(|terms| !terms.is_empty()) {
                None => {
                    let term = json!({ "matchExpressions": expressions });
                    patch.add(&path, json!({ "nodeSelectorTerms": [term] }));
                }
                Some(terms) => {
                    // An empty one selects no node, and would select some with anything in it.
                    let has = |term: &Value, field: &str| {
                        term[field].as_array().is_some_and(|list| !list.is_empty())
                    };
                    let selects = |(_, term): &(usize, &Value)| {
                        has(term, "matchExpressions") || has(term, "matchFields")
                    };
                    for (index, term) in terms.iter().enumerate().filter(selects) {
                        let path = format!("{path}/nodeSelectorTerms/{index}/matchExpressions");
                        if term["matchExpressions"].is_array() {
                            for expression in &expressions {
                                patch.add(&format!("{path}/-"), expression.clone());
                            }
                        } else {
                            patch.add(&path, json!(expressions));
                        }
                    }
                }
            }
        }
    }
    patch
}

/// Makes what terms are put into.
fn reach(patch: &mut JsonPatch, affinity: &Value, of_nodes: &Value) {
    if !affinity.is_object() {
        patch.add("/spec/affinity", json!({}));
    }
    if !of_nodes.is_object() {
        patch.add("/spec/affinity/nodeAffinity", json!({}));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn at(places: &[(&str, u64)]) -> Vec<v1::CachedAt> {
        let place = |(name, cached_bytes): &(&str, u64)| v1::CachedAt {
            name: (*name).to_owned(),
            cached_bytes: *cached_bytes,
        };
        places.iter().map(place).collect()
    }

    fn located(
        bytes: u64,
        nodes: &[(&str, u64)],
        groups: &[(&str, u64)],
        zones: &[(&str, u64)],
    ) -> Arc<v1::LocateDatasetReply> {
        Arc::new(v1::LocateDatasetReply {
            bytes,
            nodes: at(nodes),
            groups: at(groups),
            zones: at(zones),
            ..v1::LocateDatasetReply::default()
        })
    }

    fn applied(pod: &Value, patch: JsonPatch) -> Value {
        crate::json_patch::applied(pod, &patch.into_value()).unwrap()
    }

    fn preferred(pod: &Value) -> &Vec<Value> {
        let path = "/spec/affinity/nodeAffinity/preferredDuringSchedulingIgnoredDuringExecution";
        pod.pointer(path).unwrap().as_array().unwrap()
    }

    #[test]
    fn only_groups_that_nodes_have_are_named() {
        let of = |groups: &[(&str, u64)]| Warm::of(&[located(100, &[], groups, &[("a", 100)])]);
        let zone = json!([{ "key": ZONE_LABEL, "operator": "In", "values": ["a"] }]);
        // Nodes without a group are hashed into some, and the apiserver takes no such label.
        let hashed = of(&[("a/~7", 100), ("-/~3", 90)]);
        assert_eq!(json!(hashed.required()), zone);
        assert_eq!(hashed.preferred().len(), 1);
        // No node has the zone of those that have none.
        let outside = of(&[("-/r1", 100), ("a/~7", 100), ("-/r2", 60), ("a/r3", 60)]);
        let group = json!([{ "key": GROUP_LABEL, "operator": "In", "values": ["r1", "r2"] }]);
        assert_eq!(json!(outside.required()), group);
        let term = &outside.preferred()[0]["preference"]["matchExpressions"];
        assert_eq!(*term, group);
    }

    #[test]
    fn terms_are_graded_by_cached_bytes_and_datasets_by_their_size() {
        let small = located(100, &[("n1", 100)], &[], &[("a", 100)]);
        let large = located(
            900,
            &[("n2", 450), ("n3", 440), ("n4", 10)],
            &[("b/r1", 900), ("a/r9", 600)],
            &[("b", 900)],
        );
        let warm = Warm::of(&[small, large]);
        let pod = applied(
            &json!({ "spec": {} }),
            patch(&json!({ "spec": {} }), &warm, Mode::Preferred),
        );
        let terms = preferred(&pod);
        assert_eq!(terms.len(), 3);
        // The small one's node holds too little of what is read.
        let expressions = |term: &Value| term["preference"]["matchExpressions"].clone();
        assert_eq!(
            expressions(&terms[0]),
            json!([{ "key": NODE_LABEL, "operator": "In", "values": ["n2", "n3"] }])
        );
        assert_eq!(terms[0]["weight"], NODE_WEIGHT * 45 / 100);
        assert_eq!(
            expressions(&terms[1]),
            json!([
                { "key": GROUP_LABEL, "operator": "In", "values": ["r1"] },
                { "key": ZONE_LABEL, "operator": "In", "values": ["b"] },
            ])
        );
        assert_eq!(terms[2]["weight"], ZONE_WEIGHT * 90 / 100);
    }

    #[test]
    fn at_most_so_many_nodes_are_named_and_those_with_the_most() {
        let names: Vec<String> = (0..5000).map(|n| format!("n{n:04}")).collect();
        let nodes: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 1000)).collect();
        let warm = Warm::of(&[located(1000, &nodes, &[], &[])]);
        assert_eq!(warm.nodes.names.len(), MAX_NODES);
        assert_eq!(warm.nodes.names[0], "n0000");
    }

    #[test]
    fn nothing_is_written_where_nothing_is_cached_or_wanted() {
        let pod = json!({ "spec": {} });
        for (warm, mode) in [
            (Warm::of(&[]), Mode::Preferred),
            (Warm::of(&[located(1000, &[], &[], &[])]), Mode::Required),
            (
                Warm::of(&[located(0, &[("n1", 0)], &[], &[])]),
                Mode::Preferred,
            ),
            (
                Warm::of(&[located(1000, &[("n1", 5)], &[], &[])]),
                Mode::Preferred,
            ),
            (
                Warm::of(&[located(1000, &[("n1", 400)], &[], &[])]),
                Mode::Required,
            ),
            (Warm::of(&[located(10, &[("n1", 10)], &[], &[])]), Mode::Off),
        ] {
            assert_eq!(
                patch(&pod, &warm, mode),
                JsonPatch::default(),
                "{warm:?} {mode:?}"
            );
        }
    }

    #[test]
    fn what_a_pod_asks_for_itself_stays() {
        let own = json!({ "key": "gpu", "operator": "In", "values": ["a100"] });
        let pod = json!({ "metadata": { "annotations": { "x": "y" } }, "spec": {
            "schedulingGates": [{ "name": "kueue.x-k8s.io/admission" }],
            "containers": [{ "resources": { "limits": { "nvidia.com/gpu": 8 } } }],
            "affinity": {
                "podAntiAffinity": { "p": 1 },
                "nodeAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        { "weight": 7, "preference": { "matchExpressions": [own] } },
                    ],
                    "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
                        { "matchExpressions": [own] },
                        { "matchFields": [{ "key": "metadata.name" }] },
                        {},
                    ] },
                },
            },
        } });
        let warm = Warm::of(&[located(10, &[("n1", 10)], &[], &[])]);
        let mut soft = applied(&pod, patch(&pod, &warm, Mode::Preferred));
        assert_eq!(preferred(&soft).len(), 2);
        assert_eq!(preferred(&soft)[0], preferred(&pod)[0]);
        let list = "/spec/affinity/nodeAffinity/preferredDuringSchedulingIgnoredDuringExecution";
        soft.pointer_mut(list)
            .unwrap()
            .as_array_mut()
            .unwrap()
            .pop();
        assert_eq!(soft, pod, "nothing else is changed");
        let hard = applied(&pod, patch(&pod, &warm, Mode::Required));
        let terms = hard
            .pointer("/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms")
            .unwrap();
        let ours = json!({ "key": NODE_LABEL, "operator": "In", "values": ["n1"] });
        assert_eq!(terms[0]["matchExpressions"], json!([own, ours]));
        assert_eq!(
            terms[1]["matchExpressions"],
            json!([ours]),
            "each alternative is restricted"
        );
        assert_eq!(terms[1]["matchFields"], json!([{ "key": "metadata.name" }]));
        assert_eq!(terms[2], json!({}), "it selects no node");
    }

    #[test]
    fn a_pod_names_datasets_by_claim_and_inline() {
        let pod = json!({ "spec": { "volumes": [
            { "name": "a", "persistentVolumeClaim": { "claimName": "images" } },
            { "name": "b", "csi": { "driver": "csi.weir.io", "volumeAttributes": { "dataset": "x@3" } } },
            { "name": "c", "csi": { "driver": "other", "volumeAttributes": { "dataset": "y" } } },
            { "name": "d", "emptyDir": {} },
        ] } });
        assert_eq!(
            uses(&pod),
            Uses {
                claims: vec!["images".to_owned()],
                inline: vec!["x@3".to_owned()]
            }
        );
        assert_eq!(uses(&json!({ "spec": {} })), Uses::default());
        assert_eq!(uses(&Value::Null), Uses::default());
    }
}
