//! Preferred terms that bring a pod to where its data is cached.
//!
//! At most three are written: for nodes, for groups and for zones, each with a weight that follows from the share of the bytes
//! which the best of them holds. Where CachePools name different labels there is one for each label. What a pod asks for itself stays
//! as it is. A pod that asks for `required` gets its term into every one that it has, since those are alternatives.

use std::collections::HashMap;

use serde_json::{Value, json};
use weir_proto::v1;

use super::keys::{Keys, is_value};
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
/// Label of a node with its name.
const NODE_LABEL: &str = "kubernetes.io/hostname";

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

/// What a node must have all of.
type Requirements = Vec<Value>;

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
            nodes: best(all(|one| &one.nodes), total, MAX_NODES, is_value),
            // Some nodes have no group of their own: `a/~7` is what they were hashed into, and no label's value.
            groups: best(all(|one| &one.groups), total, MAX_PLACES, |name| {
                is_value(in_zone(name).1)
            }),
            zones: best(all(|one| &one.zones), total, MAX_PLACES, is_value),
        }
    }

    /// What nodes of the best places have, the narrowest first; what one place has under different labels is alternatives.
    fn places(&self, keys: &Keys) -> [(&Best, Vec<Requirements>); 3] {
        let zones = &self.zones.names;
        let zones = keys.zones.iter().filter_map(|key| among(key, zones));
        let nodes = among(NODE_LABEL, &self.nodes.names);
        [
            (
                &self.nodes,
                nodes.map(|one| vec![one]).into_iter().collect(),
            ),
            (&self.groups, of_groups(&self.groups.names, keys)),
            (&self.zones, zones.map(|one| vec![one]).collect()),
        ]
    }

    /// The preferred terms, the narrowest first; none that would weigh nothing.
    fn preferred(&self, keys: &Keys) -> Vec<Value> {
        let weights = [NODE_WEIGHT, GROUP_WEIGHT, ZONE_WEIGHT];
        let places = self.places(keys).into_iter().zip(weights);
        let terms = places.flat_map(|((best, alternatives), weight)| {
            let weight = weight * best.percent / 100;
            let term = move |requirements| {
                json!({
                    "weight": weight,
                    "preference": { "matchExpressions": requirements },
                })
            };
            let alternatives = alternatives.into_iter().filter(move |_| weight > 0);
            alternatives.map(term)
        });
        terms.collect()
    }

    /// What a node must be for a pod that runs only where its data is, as alternatives: the narrowest place of which one holds half of
    /// it. Places that nodes may have no label for are passed over, and those with more alternatives than there can be.
    fn required(&self, keys: &Keys, most: usize) -> Vec<Requirements> {
        let is_sure = [true, !keys.are_groups_guessed, !keys.are_zones_guessed];
        let places = self.places(keys).into_iter().zip(is_sure);
        let mut fit = places.filter_map(|((best, alternatives), is_sure)| {
            let is_some = (1..=most).contains(&alternatives.len());
            (is_sure && is_some && best.percent >= 50).then_some(alternatives)
        });
        fit.next().unwrap_or_default()
    }
}

fn best(
    mut sums: HashMap<&str, u64>,
    total: u64,
    most: usize,
    is_label: impl Fn(&str) -> bool,
) -> Best {
    sums.retain(|name, _| is_label(name));
    let highest = sums.values().copied().max().unwrap_or_default();
    let percent = crate::view::percent(highest, total).unwrap_or_default();
    if percent == 0 {
        return Best::default();
    }
    let (part, whole) = NAMED_FROM;
    let least = u128::from(highest) * u128::from(part) / u128::from(whole);
    let mut named: Vec<(&str, u64)> = sums
        .into_iter()
        .filter(|(_, bytes)| u128::from(*bytes) >= least)
        .collect();
    // The same for the same input, whatever the order of the map is.
    named.sort_unstable_by(|one, other| other.1.cmp(&one.1).then(one.0.cmp(other.0)));
    named.truncate(most);
    let names = named.into_iter().map(|(name, _)| name.to_owned()).collect();
    Best { names, percent }
}

fn among(label: &str, names: &[impl AsRef<str>]) -> Option<Value> {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    (!names.is_empty()).then(|| json!({ "key": label, "operator": "In", "values": names }))
}

/// A group's zone and its name there: `a` and `r1` for `a/r1`. `-/r1` is in no zone.
fn in_zone(group: &str) -> (Option<&str>, &str) {
    let (zone, name) = group.split_once('/').unwrap_or(("", group));
    (Some(zone).filter(|zone| is_value(zone)), name)
}

/// Groups of the best one's zone are named, under each of their labels.
fn of_groups(groups: &[String], keys: &Keys) -> Vec<Requirements> {
    let groups: Vec<(Option<&str>, &str)> = groups.iter().map(|group| in_zone(group)).collect();
    let Some((zone, _)) = groups.first().copied() else {
        return Vec::new();
    };
    let names = groups.iter().filter(|(of, _)| *of == zone);
    let names: Vec<&str> = names.map(|(_, name)| *name).collect();
    let alternatives = keys.groups.iter().map(|(group, of)| {
        let zone = of.as_deref().zip(zone);
        let zone = zone.and_then(|(key, zone)| among(key, &[zone]));
        among(group, &names).into_iter().chain(zone).collect()
    });
    let mut alternatives: Vec<Requirements> = alternatives.collect();
    // Without a zone they differ in the group's label alone, by which they are in order.
    alternatives.dedup();
    alternatives
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
pub(crate) fn patch(pod: &Value, warm: &Warm, keys: &Keys, mode: Mode) -> JsonPatch {
    let affinity = &pod["spec"]["affinity"];
    let of_nodes = &affinity["nodeAffinity"];
    let mut patch = JsonPatch::default();
    match mode {
        Mode::Off => {}
        Mode::Preferred => {
            let terms = warm.preferred(keys);
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
            let field = "requiredDuringSchedulingIgnoredDuringExecution";
            let path = format!("/spec/affinity/nodeAffinity/{field}");
            let terms = of_nodes[field]["nodeSelectorTerms"].as_array();
            let terms = terms.filter(|terms| !terms.is_empty());
            // Own terms of a pod that has a gate can be narrowed, and not become more.
            let most = if terms.is_some() { 1 } else { usize::MAX };
            let alternatives = warm.required(keys, most);
            let Some(expressions) = alternatives.first() else {
                return patch;
            };
            reach(&mut patch, affinity, of_nodes);
            match terms {
                None => {
                    let term = |requirements| json!({ "matchExpressions": requirements });
                    let terms: Vec<Value> = alternatives.iter().map(term).collect();
                    patch.add(&path, json!({ "nodeSelectorTerms": terms }));
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
                            for expression in expressions {
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

    use super::super::keys::GROUP_LABEL;
    use super::*;
    use crate::objects::{CachePoolSpec, ZONE_LABEL};

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
            patch(
                &json!({ "spec": {} }),
                &warm,
                &Keys::of(&[]),
                Mode::Preferred,
            ),
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

    /// Those of pools with these specifications.
    fn keys(pools: Value) -> Keys {
        let pools: Vec<CachePoolSpec> = serde_json::from_value(pools).unwrap();
        Keys::of(&pools)
    }

    /// The keys and values of the terms that a pod without any gets.
    fn written(warm: &Warm, keys: &Keys, mode: Mode) -> Vec<Vec<String>> {
        let pod = json!({ "spec": {} });
        let pod = applied(&pod, patch(&pod, warm, keys, mode));
        let affinity = &pod["spec"]["affinity"]["nodeAffinity"];
        let field = "requiredDuringSchedulingIgnoredDuringExecution";
        let required = affinity[field]["nodeSelectorTerms"].as_array();
        let field = "preferredDuringSchedulingIgnoredDuringExecution";
        let preferred = affinity[field].as_array().into_iter().flatten();
        let terms = preferred.map(|term| &term["preference"]);
        let terms = terms.chain(required.into_iter().flatten());
        let requirement = |one: &Value| {
            let key = one["key"].as_str().unwrap();
            format!("{key}={}", one["values"])
        };
        let requirements = |term: &Value| {
            let all = term["matchExpressions"].as_array().unwrap().iter();
            all.map(requirement).collect()
        };
        terms.map(requirements).collect()
    }

    fn of(term: &[(&str, &str)]) -> Vec<String> {
        let requirement = |(key, value): &(&str, &str)| format!("{key}=[\"{value}\"]");
        term.iter().map(requirement).collect()
    }

    #[test]
    fn a_group_without_a_zone_is_known_by_its_own_label_alone() {
        let keys = keys(json!([{ "groupLabel": "rack" }]));
        let warm = Warm::of(&[located(
            10,
            &[],
            &[("-/r1", 10), ("a/r2", 9)],
            &[("-", 10), ("", 10)],
        )]);
        for mode in [Mode::Preferred, Mode::Required] {
            assert_eq!(written(&warm, &keys, mode), [of(&[("rack", "r1")])]);
        }
    }

    #[test]
    fn terms_have_the_labels_that_pools_name() {
        let warm = located(10, &[], &[("a/r1", 10)], &[("a", 10)]);
        let warm = Warm::of(&[warm]);
        let pools =
            json!([{ "groupLabel": "rack" }, { "zoneLabel": "room", "groupLabel": "rack" }, {}]);
        let groups = [
            of(&[("rack", "r1"), ("room", "a")]),
            of(&[("rack", "r1"), (ZONE_LABEL, "a")]),
        ];
        let zones = [of(&[("room", "a")]), of(&[(ZONE_LABEL, "a")])];
        let keys = keys(pools);
        assert_eq!(written(&warm, &keys, Mode::Required), groups);
        let all = [groups, zones].concat();
        assert_eq!(written(&warm, &keys, Mode::Preferred), all);

        // The pod's own term cannot become two.
        let own = json!({ "matchExpressions": [{ "key": "gpu", "operator": "Exists" }] });
        let field = "requiredDuringSchedulingIgnoredDuringExecution";
        let pod = json!({ "spec": { "affinity": { "nodeAffinity": { field: { "nodeSelectorTerms": [own] } } } } });
        assert!(patch(&pod, &warm, &keys, Mode::Required).is_empty());
    }

    #[test]
    fn what_no_node_can_have_is_not_written() {
        let keys = keys(json!([{ "groupLabel": "rack" }]));
        let long = "x".repeat(64);
        let hashed = located(
            10,
            &[("node.", 10), (&long, 10)],
            &[("a/~7", 10), ("a/r1.", 10), ("a/r2", 6)],
            &[("a", 10)],
        );
        let warm = Warm::of(&[hashed]);
        let group = of(&[("rack", "r2"), (ZONE_LABEL, "a")]);
        let terms = written(&warm, &keys, Mode::Preferred);
        assert_eq!(terms, [group, of(&[(ZONE_LABEL, "a")])]);
        let hashed = located(10, &[], &[("a/~7", 10), ("-/~7", 10)], &[("a", 10)]);
        let terms = written(&Warm::of(&[hashed]), &keys, Mode::Required);
        assert_eq!(terms, [of(&[(ZONE_LABEL, "a")])], "the next wider place");
    }

    #[test]
    fn a_pod_requires_no_label_that_nodes_may_lack() {
        let warm = located(10, &[], &[("a/r1", 10)], &[("a", 10)]);
        let warm = Warm::of(&[warm]);
        let none: [Vec<String>; 0] = [];
        let said = json!({ "args": ["--zone=a", "--group=r1"] });
        let both = keys(json!([{ "groupLabel": "rack" }, said]));
        for keys in [&both, &Keys::of(&[])] {
            assert_eq!(written(&warm, keys, Mode::Required), none);
            let terms = written(&warm, keys, Mode::Preferred);
            assert!(terms.contains(&of(&[(ZONE_LABEL, "a")])), "{terms:?}");
        }
        let group = keys(json!([{ "args": ["--group=r1"] }]));
        let terms = written(&warm, &group, Mode::Required);
        assert_eq!(terms, [of(&[(ZONE_LABEL, "a")])]);
        let hashed = Warm::of(&[located(10, &[], &[("-/~7", 10)], &[])]);
        assert_eq!(written(&hashed, &both, Mode::Required), none);
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
                patch(&pod, &warm, &Keys::of(&[]), mode),
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
        let mut soft = applied(&pod, patch(&pod, &warm, &Keys::of(&[]), Mode::Preferred));
        assert_eq!(preferred(&soft).len(), 2);
        assert_eq!(preferred(&soft)[0], preferred(&pod)[0]);
        let list = "/spec/affinity/nodeAffinity/preferredDuringSchedulingIgnoredDuringExecution";
        soft.pointer_mut(list)
            .unwrap()
            .as_array_mut()
            .unwrap()
            .pop();
        assert_eq!(soft, pod, "nothing else is changed");
        let hard = applied(&pod, patch(&pod, &warm, &Keys::of(&[]), Mode::Required));
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
