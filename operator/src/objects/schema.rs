//! Definitions as the apiserver takes them: structural, with rules for what may not change.
//!
//! The types are those of `weir apply`, whose schema says more than a structural one may: unknown fields need no prohibition
//! here, since the apiserver drops them (and `kubectl` refuses them), and a number or a word is a type of its own.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};

/// Rules about a whole Dataset. That the place of a source stays is judged by the webhook and by the master: a rule would have to
/// compare each source with each, which the apiserver refuses as too costly.
const DATASET_RULES: &[(&str, &str)] = &[
    (
        "self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        "the name of a Dataset has 1 to 63 lower-case letters, digits or '-', and starts and ends with a letter or digit; choose another name",
    ),
    (
        "size(self.spec.sources) >= size(oldSelf.spec.sources)",
        "a source of a Dataset cannot be taken away, since mounts read by it; make another Dataset, or delete this one first",
    ),
];

/// Rules about a whole Warmup.
const WARMUP_RULES: &[(&str, &str)] = &[(
    "self.spec == oldSelf.spec",
    "a Warmup cannot be changed, since it is done once; make another one",
)];

/// Rules about a whole CachePool.
const POOL_RULES: &[(&str, &str)] = &[
    (
        "self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        "the name of a CachePool has 1 to 40 lower-case letters, digits or '-', and starts and ends with a letter or digit; choose another name",
    ),
    (
        "has(self.spec.replicas) == has(oldSelf.spec.replicas)",
        "a CachePool has a number of workers or one on every node, and neither becomes the other; make another CachePool",
    ),
    (
        "has(self.spec.replicas) || (!has(self.spec.autoscaling) && (!has(self.spec.schedule) || size(self.spec.schedule) == 0))",
        "a CachePool with a worker on every node has no size; write spec.replicas beside spec.schedule or spec.autoscaling",
    ),
    (
        "!has(self.spec.autoscaling) || self.spec.autoscaling.minReplicas <= self.spec.autoscaling.maxReplicas",
        "spec.autoscaling.minReplicas is larger than maxReplicas; write the smaller one first",
    ),
];

/// The definition with a schema that the apiserver takes.
pub(super) fn structural(definition: CustomResourceDefinition) -> CustomResourceDefinition {
    let rules = match definition.spec.names.kind.as_str() {
        "Dataset" => DATASET_RULES,
        "Warmup" => WARMUP_RULES,
        "CachePool" => POOL_RULES,
        _ => &[],
    };
    let Ok(mut value) = serde_json::to_value(&definition) else {
        return definition;
    };
    let versions = value
        .pointer_mut("/spec/versions")
        .and_then(Value::as_array_mut);
    for version in versions.into_iter().flatten() {
        let Some(schema) = version.pointer_mut("/schema/openAPIV3Schema") else {
            continue;
        };
        fix(schema);
        if !rules.is_empty() {
            let rules: Vec<Value> = rules
                .iter()
                .map(|(rule, message)| json!({ "rule": rule, "message": message }))
                .collect();
            schema["x-kubernetes-validations"] = Value::Array(rules);
        }
    }
    serde_json::from_value(value).unwrap_or(definition)
}

/// Makes a schema structural, and all below it.
fn fix(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    if object.get("properties").is_some() {
        object.remove("additionalProperties");
        object.remove("unevaluatedProperties");
    }
    // What documentation has as lines is one paragraph.
    if let Some(Value::String(text)) = object.get_mut("description") {
        *text = text.replace('\n', " ");
    }
    let branches = object.get("anyOf").and_then(Value::as_array);
    let is_number_or_word = branches.is_some_and(|any| {
        let has = |key: &str| any.iter().any(|one| one.get(key).is_some());
        has("minimum") && has("enum")
    });
    if is_number_or_word {
        object.remove("anyOf");
        object.remove("type");
        object.insert("x-kubernetes-int-or-string".to_owned(), json!(true));
        object.insert(
            "x-kubernetes-validations".to_owned(),
            json!([{
                "rule": "type(self) == int ? self >= 1 : self == 'all'",
                "message": "write a number from 1 on, or all",
            }]),
        );
    }
    for value in object.values_mut() {
        match value {
            Value::Object(_) => fix(value),
            Value::Array(values) => values.iter_mut().for_each(fix),
            _ => {}
        }
    }
}
