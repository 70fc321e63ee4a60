//! `weir master`: the master of a cluster.

use std::time::Duration;

use anyhow::Context;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use weir_master::{Master, MasterConfig, MasterMetrics};
use weir_origin::OriginMetrics;

use crate::args::MasterArgs;
use crate::exit::Failure;
use crate::http::{self, Exposed};
use crate::process::{SHUTDOWN_DEADLINE, init_logging, serving_runtime, stop_on_signal};

pub(crate) fn run(args: MasterArgs) -> Result<(), Failure> {
    init_logging();
    let runtime = serving_runtime()?;
    let outcome = runtime.block_on(serve(args));
    runtime.shutdown_timeout(SHUTDOWN_DEADLINE);
    outcome
}

async fn serve(args: MasterArgs) -> Result<(), Failure> {
    let stop = stop_on_signal()?;
    let mut registry = Registry::default();
    let metrics = MasterMetrics::register(&mut registry);
    let origin_metrics = OriginMetrics::register(&mut registry);
    let config = MasterConfig {
        dir: args.dir,
        ..MasterConfig::default()
    };
    let master = Master::open(config, metrics, origin_metrics)
        .await
        .map_err(anyhow::Error::from)?;
    let listener = TcpListener::bind(args.listen).await.with_context(|| {
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
    tracing::info!(%control, %http, "master started");
    weir_master::serve(master, listener, stop)
        .await
        .map_err(|error| Failure::from(anyhow::Error::from(error)))
}
