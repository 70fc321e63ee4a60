//! What looks at objects share.

use std::sync::Arc;

use kube::Client;
use kube::runtime::events::Recorder;

use crate::listings::Listings;
use crate::master::Master;
use crate::metrics::OperatorMetrics;
use crate::noted::Noted;
use crate::placing::Placing;
use crate::pools::Pools;
use crate::view::View;

/// What looks at objects share.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) master: Arc<dyn Master>,
    pub(crate) view: Arc<View>,
    pub(crate) placing: Arc<Placing>,
    pub(crate) listings: Listings,
    pub(crate) recorder: Recorder,
    pub(crate) metrics: Arc<OperatorMetrics>,
    pub(crate) pools: Pools,
    pub(crate) noted: Noted,
}
