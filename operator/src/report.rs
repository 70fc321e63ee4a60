//! Reporting what a look has found: in the status of its object, and in events of the conditions that have changed.

use std::fmt::Debug;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Api, Patch, PatchParams};
use kube::core::object::HasStatus;
use kube::runtime::events::{Event, EventType};
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::context::Context;
use crate::error::OperatorError;
use crate::objects::MANAGED_BY;

/// Writes a status, if it is not what the object has already.
pub(crate) async fn status<K>(
    context: &Context,
    api: &Api<K>,
    object: &K,
    status: &K::Status,
) -> Result<(), OperatorError>
where
    K: Resource<DynamicType = ()> + HasStatus + Clone + Debug + DeserializeOwned,
    K::Status: PartialEq + Serialize,
{
    if object.status() == Some(status) {
        return Ok(());
    }
    let patch = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "status": status,
    });
    let params = PatchParams::apply(MANAGED_BY).force();
    api.patch_status(&object.name_any(), &params, &Patch::Apply(&patch))
        .await?;
    context.metrics.status_writes.inc();
    Ok(())
}

/// Publishes events of an object. Nothing depends on them.
pub(crate) async fn events<K>(context: &Context, object: &K, events: Vec<Event>)
where
    K: Resource<DynamicType = ()>,
{
    let object = object.object_ref(&());
    for event in events {
        if let Err(error) = context.recorder.publish(&event, &object).await {
            tracing::debug!(%error, "an event was not taken");
        }
    }
}

/// The event of a condition that has changed.
pub(crate) fn event_of(condition: &Condition) -> Event {
    let is_trouble = condition.status == "False"
        && !matches!(
            condition.reason.as_str(),
            "Listing"
                | "Queued"
                | "Binding"
                | "Leaving"
                | "Deleting"
                | "Draining"
                | "Scaling"
                | "Starting"
                | "NotReady"
        );
    let note = if condition.message.is_empty() {
        format!("{} is {}", condition.type_, condition.status)
    } else {
        condition.message.clone()
    };
    Event {
        type_: if is_trouble {
            EventType::Warning
        } else {
            EventType::Normal
        },
        reason: condition.reason.clone(),
        note: Some(note),
        action: condition.type_.clone(),
        secondary: None,
    }
}
