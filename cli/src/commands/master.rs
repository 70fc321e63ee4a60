//! `weir master`: the master of a cluster.

use std::time::Duration;

use anyhow::Context;
use prometheus_client::registry::Registry;
use weir_master::{Master, MasterConfig, MasterMetrics};
use weir_origin::OriginMetrics;
use weir_trust::{Limits, Role};

use crate::args::MasterArgs;
use crate::exit::Failure;
use crate::http::{self, Exposed};
use crate::process::{
    SHUTDOWN_DEADLINE, end_with, init_logging, listen, serving_runtime, stop_on_signal,
};
use crate::trust::Trust;

pub(crate) fn run(args: MasterArgs) -> Result<(), Failure> {
    init_logging();
    end_with(&args.parent)?;
    let runtime = serving_runtime()?;
    let outcome = runtime.block_on(serve(args));
    runtime.shutdown_timeout(SHUTDOWN_DEADLINE);
    outcome
}

async fn serve(args: MasterArgs) -> Result<(), Failure> {
    let stop = stop_on_signal()?;
    let trust = Trust::of_server(&args.admit, Role::Master)?;
    let access = trust.access(args.listen)?;
    let mut registry = Registry::default();
    let metrics = MasterMetrics::register(&mut registry);
    let origin_metrics = OriginMetrics::register(&mut registry);
    trust.register(&mut registry);
    let config = MasterConfig {
        dir: args.dir,
        dial: trust.dial(),
        callers: access.describe(),
        sources: args.sources.policy("weir master"),
        ..MasterConfig::default()
    };
    let master = Master::open(config, metrics, origin_metrics)
        .await
        .map_err(anyhow::Error::from)?;
    let listener = listen(args.listen, Duration::ZERO).await.with_context(|| {
        format!(
            "cannot listen on {}; is another master running?",
            args.listen
        )
    })?;
    let exposed = Exposed {
        registry,
        refresh: Box::new(|| {}),
    };
    let http = http::serve(args.http, Duration::ZERO, exposed, stop.clone()).await?;
    let control = listener.local_addr()?;
    tracing::info!(%control, %http, callers = access.describe(), "master started");
    let incoming = weir_trust::incoming(listener, access, Limits::default(), stop.clone());
    let served = tokio::select! {
        served = weir_master::serve(master, incoming, stop) => served,
        never = trust.watch() => match never {},
    };
    served.map_err(|error| Failure::from(anyhow::Error::from(error)))
}
