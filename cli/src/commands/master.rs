//! `weir master`: the master of a cluster.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use prometheus_client::registry::Registry;
use weir_master::{CredentialKeys, CredentialsForMounts, Master, MasterConfig, MasterMetrics};
use weir_origin::OriginMetrics;
use weir_trust::{Limits, Role};

use crate::args::MasterArgs;
use crate::exit::{Failure, Reason};
use crate::http::{self, Exposed};
use crate::process::{
    SHUTDOWN_DEADLINE, end_with, init_logging, listen, serving_runtime, stop_on_signal,
};
use crate::trust::Trust;

/// Holds the key that credentials are encrypted with, if no file does.
const KEY_VARIABLE: &str = "WEIR_CREDENTIALS_KEY";

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
    let trust = Trust::of_server(&args.admit, Role::Master, &stop).await?;
    let access = trust.access(args.listen)?;
    let credentials_key = credentials_key(args.credentials_key.as_deref())?;
    let mut registry = Registry::default();
    let metrics = MasterMetrics::register(&mut registry);
    let origin_metrics = OriginMetrics::register(&mut registry);
    trust.register(&mut registry);
    let config = MasterConfig {
        dir: args.dir,
        dial: trust.dial(),
        callers: access.describe(),
        sources: args.sources.policy("weir master"),
        credentials_key,
        forget_credentials: args.forget_credentials,
        credentials_for_mounts: if args.no_origin_fallback {
            CredentialsForMounts::None
        } else if args.credentials_by_pods {
            CredentialsForMounts::OfPods
        } else {
            CredentialsForMounts::All
        },
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
        mounts: false,
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

/// What credentials are encrypted with: the key of the file, else that of the variable.
fn credentials_key(file: Option<&Path>) -> Result<Option<CredentialKeys>, Failure> {
    let variable = || std::env::var(KEY_VARIABLE).ok();
    let key = match (file, variable()) {
        (Some(file), _) => CredentialKeys::read(file).map(Some),
        (None, Some(value)) => CredentialKeys::of_variable(KEY_VARIABLE, &value).map(Some),
        (None, None) => Ok(None),
    };
    key.map_err(|error| Failure::new(Reason::Usage, error))
}
