//! Pods that wait until their data is cached.
//!
//! The webhook [closes] a scheduling gate when such a pod is made. The operator that leads has the master [warm](warming) what the
//! pods need, one job for each dataset, and takes the gate away when that is done, or when the pod has waited for as long as it
//! asks for at most. Only then is it known where the data is, so the [terms](crate::placing) are written together with that. Pods
//! [of one job](crate::holder) wait and go together.
//!
//! A gate that nobody takes away would hold its pod for ever. So nothing here waits for the master: time passes for a pod also
//! while the master is away, and for an operator that was. Terms that the apiserver refuses are left out.
//!
//! [closes]: close

mod lifting;
mod table;
mod wait;
mod warming;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::lifting::Lifting;
use self::table::Table;
pub(crate) use self::wait::close;
use self::warming::Warming;
use crate::context::Context;
use crate::objects::GATED_LABEL;

/// How often the gates are looked at, and how long after a pod has come or gone at the earliest: others of its job come with it.
const LOOK: Duration = Duration::from_secs(1);
const SETTLE: Duration = Duration::from_millis(200);
/// How often the master is asked for what is being warmed.
const ASK: Duration = Duration::from_secs(2);

/// Warms and lets go what waits, until `stop`.
pub(crate) async fn keep(context: &Arc<Context>, stop: &CancellationToken) {
    let table = Arc::new(Mutex::new(Table::default()));
    let changed = Notify::new();
    let warming = Warming::default();
    let watching = watch(context, &table, &changed);
    let asking = async {
        loop {
            let wanted = table.lock().wanted();
            warming.look(context, &wanted).await;
            tokio::time::sleep(ASK).await;
        }
    };
    let lifting = async {
        let mut lifting = Lifting::new(context);
        loop {
            lifting.look(&table, &warming).await;
            let _ = tokio::time::timeout(LOOK, changed.notified()).await;
            tokio::time::sleep(SETTLE).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = watching => {}
        () = asking => {}
        () = lifting => {}
    }
    context.metrics.gated.set(0);
}

/// Has the table know which pods have the gate: they alone have the label.
async fn watch(context: &Context, table: &Mutex<Table>, changed: &Notify) {
    let pods = Api::<Pod>::all(context.client.clone());
    let gated = watcher::Config::default().labels(GATED_LABEL);
    let mut events = std::pin::pin!(watcher(pods, gated).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                let mut table = table.lock();
                table.see(event);
                context.metrics.gated.set(table.len());
                changed.notify_one();
            }
            Err(error) => tracing::debug!(%error, "the pods that wait are asked for again"),
        }
    }
}
