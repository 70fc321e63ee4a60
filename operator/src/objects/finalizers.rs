//! Holding an object until what was made of it is gone.
//!
//! A list of finalizers is replaced as a whole, and only if the object is the one that was looked at: nobody else's is undone.

use std::fmt::Debug;

use kube::api::{Api, Patch, PatchParams};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::error::OperatorError;

/// Has an object stay when it is deleted.
pub(crate) async fn hold<K>(api: &Api<K>, object: &K, finalizer: &str) -> Result<(), OperatorError>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let held = object.finalizers();
    if held.iter().any(|held| held == finalizer) {
        return Ok(());
    }
    let mut held = held.to_vec();
    held.push(finalizer.to_owned());
    replace(api, object, &held).await
}

/// Lets an object go.
pub(crate) async fn let_go<K>(
    api: &Api<K>,
    object: &K,
    finalizer: &str,
) -> Result<(), OperatorError>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let held = object.finalizers();
    if !held.iter().any(|held| held == finalizer) {
        return Ok(());
    }
    let held: Vec<String> = held
        .iter()
        .filter(|held| *held != finalizer)
        .cloned()
        .collect();
    replace(api, object, &held).await
}

async fn replace<K>(api: &Api<K>, object: &K, held: &[String]) -> Result<(), OperatorError>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let patch = json!({ "metadata": {
        "finalizers": held,
        "resourceVersion": object.resource_version(),
    } });
    let patch = Patch::Merge(&patch);
    let name = object.name_any();
    api.patch_metadata(&name, &PatchParams::default(), &patch)
        .await?;
    Ok(())
}
