//! What of an object makes no sense, in one sentence that says what to change.
//!
//! All that can be told without the master is refused here, before it is stored. A change that leaves the specification as it is,
//! the removal of a finalizer for instance, is never refused.

use std::collections::{BTreeSet, HashSet};

use serde_json::Value;
use weir_core::keypath::parse_path;
use weir_core::placement::places::Place;
use weir_core::{CredentialName, DatasetName, DatasetSpec, SourceSpec};
use weir_origin::{OriginSpec, check_dataset};

use crate::objects::{CachePoolSpec, KubernetesSpec, WarmupSpec};
use crate::pool::check;

/// A Secret that a Dataset names and did not name before: whoever names it must be allowed to read it.
pub(crate) type NewSecrets = Vec<String>;

/// Judges a Dataset that is made or changed. Gives the Secrets that are new in it.
pub(crate) fn dataset(
    namespace: &str,
    name: &str,
    object: &Value,
    old: &Value,
) -> Result<NewSecrets, String> {
    if object["spec"] == old["spec"] {
        return Ok(Vec::new());
    }
    let full = DatasetName::in_namespace(namespace, name).map_err(|error| error.to_string())?;
    full.check_new().map_err(|error| error.to_string())?;
    let spec = read(&object["spec"], &full)?;
    for (index, source) in spec.sources.iter().enumerate() {
        let Some(credentials) = &source.credentials else {
            continue;
        };
        let named = CredentialName::of_source(&full, credentials);
        let named = named.map_err(|error| format!("spec.sources[{index}].credentials: {error}"))?;
        if named.namespace() != namespace {
            return Err(format!(
                "spec.sources[{index}].credentials: {credentials} is of another namespace; name a Secret of {namespace}"
            ));
        }
    }
    // What was stored before these rules is compared as far as it is understood.
    let before = read(&old["spec"], &full).unwrap_or_default();
    check_places(&full, &before, &spec)?;
    // Who may not read a Secret must not have it read elsewhere either: only a source that stays as it is needs no right again.
    let changed = spec
        .sources
        .iter()
        .filter(|source| !before.sources.contains(source));
    let named: BTreeSet<String> = changed
        .filter_map(|source| source.credentials.clone())
        .collect();
    Ok(named.into_iter().collect())
}

fn read(spec: &Value, name: &DatasetName) -> Result<DatasetSpec, String> {
    let spec = serde_json::from_value::<KubernetesSpec>(spec.clone());
    let mut spec = spec.map_err(|error| format!("spec: {error}"))?.dataset;
    spec.shorten_credentials(name);
    check_dataset(&mut spec).map_err(|error| error.to_string())?;
    Ok(spec)
}

/// Refuses to take away or move a source, as the master does: mounts read by it.
fn check_places(
    name: &DatasetName,
    before: &DatasetSpec,
    after: &DatasetSpec,
) -> Result<(), String> {
    let place = |source: &SourceSpec| {
        let origin = OriginSpec::of_source(source);
        let prefix = origin.prefix().into_owned();
        (origin.location(), prefix, source.path.clone())
    };
    let new: HashSet<_> = after.sources.iter().map(place).collect();
    let gone = before
        .sources
        .iter()
        .enumerate()
        .find(|(_, source)| !new.contains(&place(source)));
    let Some((index, source)) = gone else {
        return Ok(());
    };
    Err(format!(
        "spec.sources[{index}]: the source {} of Dataset {} cannot be moved or taken away, since mounts read by it; make another Dataset, or delete this one first",
        source.url,
        name.name()
    ))
}

/// Judges a CachePool that is made or changed.
pub(crate) fn pool(name: &str, object: &Value, old: &Value) -> Result<(), String> {
    if object["spec"] == old["spec"] {
        return Ok(());
    }
    let spec = serde_json::from_value::<CachePoolSpec>(object["spec"].clone());
    check(name, &spec.map_err(|error| format!("spec: {error}"))?)
}

/// Judges a Warmup that is made.
pub(crate) fn warmup(namespace: &str, object: &Value, old: &Value) -> Result<(), String> {
    if object["spec"] == old["spec"] {
        return Ok(());
    }
    let spec = serde_json::from_value::<WarmupSpec>(object["spec"].clone());
    let spec = spec.map_err(|error| format!("spec: {error}"))?;
    if spec.dataset.contains('/') {
        return Err(format!(
            "spec.dataset: {:?} has a namespace; name a Dataset of {namespace}, and nothing else",
            spec.dataset
        ));
    }
    let name = DatasetName::in_namespace(namespace, &spec.dataset);
    name.map_err(|error| format!("spec.dataset: {error}"))?;
    for (index, path) in spec.paths.iter().enumerate() {
        parse_path(path).map_err(|reason| {
            format!("spec.paths[{index}]: {path:?} is not a path ({reason}); write names separated by `/`")
        })?;
    }
    for (index, place) in spec.places.iter().enumerate() {
        place
            .parse::<Place>()
            .map_err(|error| format!("spec.in[{index}]: {error}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn judge(spec: Value, old: Value) -> Result<NewSecrets, String> {
        dataset(
            "team-a",
            "images",
            &json!({ "spec": spec }),
            &json!({ "spec": old }),
        )
    }

    #[test]
    fn bad_datasets_are_refused_with_one_sentence_that_says_what_to_change() {
        let source = |source: Value| json!({ "sources": [source] });
        let fine = source(json!({ "url": "s3://b/p" }));
        assert_eq!(judge(fine.clone(), Value::Null), Ok(Vec::new()));
        for (spec, old, part) in [
            (json!({ "sources": [] }), Value::Null, "needs a source"),
            (json!({}), Value::Null, "sources"),
            (
                source(json!({ "url": "gopher://b" })),
                Value::Null,
                "spec.sources[0]: origin gopher",
            ),
            (
                source(json!({ "url": "s3://b", "patience": "soon" })),
                Value::Null,
                "spec: ",
            ),
            (
                source(json!({ "url": "s3://b", "credentials": "other/keys" })),
                Value::Null,
                "another namespace",
            ),
            (
                source(json!({ "url": "s3://b/q" })),
                fine.clone(),
                "cannot be moved",
            ),
            (
                source(json!({ "url": "s3://b/p", "path": "/x" })),
                fine.clone(),
                "cannot be moved",
            ),
            (
                source(json!({ "url": "s3://b/p", "credentials": "k" })),
                fine.clone(),
                "cannot be moved",
            ),
            (
                json!({ "sources": [{ "url": "s3://b/p" }], "access": { "namespaces": ["A"] } }),
                Value::Null,
                "spec.access.namespaces[0]",
            ),
        ] {
            let error = judge(spec.clone(), old).expect_err(&spec.to_string());
            assert!(error.contains(part), "{spec}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
        assert!(dataset("team-a", "A.b", &json!({ "spec": fine }), &Value::Null).is_err());
    }

    #[test]
    fn changes_that_can_be_made_are_let_through() {
        let fine = json!({ "sources": [{ "url": "s3://b/p" }] });
        let more = json!({ "sources": [{ "url": "s3://b/q", "path": "/q" }, { "url": "s3://b/p", "region": "eu-west-1" }] });
        assert_eq!(judge(more, fine.clone()), Ok(Vec::new()));
        // A broken one of before can be deleted.
        let broken = json!({ "sources": [] });
        assert_eq!(judge(broken.clone(), broken.clone()), Ok(Vec::new()));
        assert_eq!(judge(fine, broken), Ok(Vec::new()));
    }

    #[test]
    fn secrets_that_are_new_are_named() {
        let with = |names: &[&str]| {
            let sources: Vec<Value> = names
                .iter()
                .map(|name| json!({ "url": format!("s3://{name}"), "path": format!("/{name}"), "credentials": name }))
                .collect();
            json!({ "sources": sources })
        };
        assert_eq!(
            judge(with(&["b", "a"]), Value::Null),
            Ok(vec!["a".to_owned(), "b".to_owned()])
        );
        assert_eq!(
            judge(with(&["a", "c"]), with(&["a"])),
            Ok(vec!["c".to_owned()])
        );
        assert_eq!(judge(with(&["a"]), with(&["a"])), Ok(Vec::new()));
        // Nor may it be used for what it was not: another bucket, or files that were left out.
        let mut more = with(&["a"]);
        let other = json!({ "url": "s3://other", "path": "/other", "credentials": "a" });
        more["sources"].as_array_mut().unwrap().push(other);
        assert_eq!(judge(more, with(&["a"])), Ok(vec!["a".to_owned()]));
        let mut some = with(&["a"]);
        some["sources"][0]["exclude"] = json!(["secret/**"]);
        assert_eq!(judge(with(&["a"]), some), Ok(vec!["a".to_owned()]));
    }

    #[test]
    fn bad_pools_are_refused_and_those_of_before_can_be_deleted() {
        let bad = json!({ "spec": { "tiers": { "memory": "much" } } });
        let error = pool("gpu", &bad, &Value::Null).unwrap_err();
        assert!(error.contains("spec.tiers.memory"), "{error}");
        assert_eq!(pool("gpu", &bad, &bad), Ok(()));
        assert_eq!(pool("gpu", &json!({ "spec": {} }), &bad), Ok(()));
    }

    #[test]
    fn bad_warmups_are_refused() {
        let judge = |spec: Value| warmup("team-a", &json!({ "spec": spec }), &Value::Null);
        assert_eq!(
            judge(json!({ "dataset": "images", "paths": ["/train"], "in": ["zone=b"] })),
            Ok(())
        );
        for (spec, part) in [
            (json!({ "dataset": "team-b/images" }), "spec.dataset"),
            (json!({ "dataset": "../x" }), "spec.dataset"),
            (json!({}), "dataset"),
            (
                json!({ "dataset": "images", "paths": ["a/../b"] }),
                "spec.paths[0]",
            ),
            (
                json!({ "dataset": "images", "in": ["rack=1"] }),
                "spec.in[0]",
            ),
        ] {
            let error = judge(spec.clone()).expect_err(&spec.to_string());
            assert!(error.contains(part), "{spec}: {error}");
        }
    }
}
