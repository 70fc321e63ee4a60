//! An apiserver and a master in memory, for tests.

mod api;
mod master;

use std::sync::Arc;

use kube::Client;
use kube::runtime::events::Recorder;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;

pub(crate) use self::api::FakeApi;
pub(crate) use self::master::FakeMaster;
use crate::context::Context;
use crate::listings::Listings;
use crate::metrics::OperatorMetrics;
use crate::noted::Noted;
use crate::placing::Placing;
use crate::pools::Pools;
use crate::view::View;

/// What looks at objects share, with a view that knows nothing yet.
pub(crate) fn context(client: Client, master: &Arc<FakeMaster>) -> Context {
    let view = Arc::new(View::default());
    let metrics = OperatorMetrics::register(&mut Registry::default());
    let (ended, _) = mpsc::channel(1);
    let (placing, _) = Placing::new(master.clone(), view.clone());
    Context {
        client: client.clone(),
        master: master.clone(),
        view: view.clone(),
        placing: Arc::new(placing),
        listings: Listings::new(master.clone(), view, metrics.clone(), ended),
        recorder: Recorder::new(client, "weir-operator".into()),
        metrics,
        pools: Pools::default(),
        noted: Noted::default(),
    }
}
