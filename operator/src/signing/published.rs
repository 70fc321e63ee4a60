//! Which authorities are to be trusted, for pods that have no certificate yet: a ConfigMap, which is no secret.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::error::OperatorError;
use crate::objects::MANAGED_BY;

/// Name of the ConfigMap, and of what it holds.
pub(crate) const NAME: &str = "weir-authority";
const KEY: &str = "ca.crt";
/// How often it is compared with the authority's directory, and how soon again when that fails.
const LOOK: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_secs(3);

/// Keeps the ConfigMap as the authority's directory is. Does so for ever.
pub(super) async fn keep(client: &Client, namespace: &str, authority: &Path) -> Infallible {
    loop {
        let wait = match publish(client, namespace, authority).await {
            Ok(()) => LOOK,
            Err(error) => {
                tracing::warn!(%error, "ConfigMap {NAME} may not say which authorities are to be trusted");
                LOOK_AGAIN
            }
        };
        tokio::time::sleep(wait).await;
    }
}

pub(super) async fn publish(
    client: &Client,
    namespace: &str,
    authority: &Path,
) -> Result<(), OperatorError> {
    let path = authority.join(KEY);
    let authorities = std::fs::read_to_string(&path)
        .map_err(|error| OperatorError::Authority(format!("{}: {error}", path.display())))?;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let there = maps.get_opt(NAME).await?;
    let data = there.as_ref().and_then(|there| there.data.as_ref());
    if data.and_then(|data| data.get(KEY)) == Some(&authorities) {
        return Ok(());
    }
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": NAME }, "data": { KEY: authorities },
    });
    let params = PatchParams::apply(MANAGED_BY).force();
    maps.patch(NAME, &params, &Patch::Apply(&object)).await?;
    Ok(())
}
