//! `weir operator`: Weir's objects in Kubernetes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use weir_operator::{
    GrpcMaster, Operator, OperatorConfig, OperatorMetrics, OwnCertificate, SigningConfig,
};

use crate::args::{OperatorArgs, OperatorCommand};
use crate::connect;
use crate::exit::{Failure, Reason};
use crate::http::{self, Exposed};
use crate::output;
use crate::process::{
    SHUTDOWN_DEADLINE, init_logging, node_name, runtime, serving_runtime, stop_on_signal,
};
use crate::renewal;
use crate::trust::Trust;

pub(crate) fn run(args: &OperatorArgs) -> Result<(), Failure> {
    if let Some(OperatorCommand::Retire { namespace }) = &args.command {
        return retire(namespace);
    }
    init_logging();
    let runtime = serving_runtime()?;
    let outcome = runtime.block_on(operate(args));
    runtime.shutdown_timeout(SHUTDOWN_DEADLINE);
    outcome
}

/// `weir operator retire`.
fn retire(namespace: &str) -> Result<(), Failure> {
    let retired = runtime()?.block_on(weir_operator::retire(namespace));
    let retired = retired.map_err(anyhow::Error::from)?;
    output::line(format_args!(
        "let go of {} objects and {} pods; `helm uninstall` or `kubectl delete` may take the operator away now",
        retired.objects, retired.pods
    ))
}

async fn operate(args: &OperatorArgs) -> Result<(), Failure> {
    let Some(master) = &args.master else {
        return Err(Failure::new(
            Reason::Usage,
            "an operator needs its master; give --master HOST:PORT, or WEIR_MASTER",
        ));
    };
    let stop = stop_on_signal()?;
    let trust = trust(args, &stop).await?;
    let mut registry = Registry::default();
    let metrics = OperatorMetrics::register(&mut registry);
    trust.register_certificate(&mut registry);
    let exposed = Exposed {
        registry,
        refresh: Box::new(|| {}),
        mounts: false,
    };
    let http = http::serve(args.http, Duration::ZERO, exposed, stop.clone()).await?;
    let config = OperatorConfig {
        namespace: args.namespace.clone(),
        // A pod's host has its name.
        pod: node_name()?.to_string(),
        webhook: args.webhook,
        signing: signing(args, &trust),
        worker_template: args.worker_template.clone(),
    };
    let client = Arc::new(GrpcMaster::new(connect::lazy(master, &trust.dial())?));
    let operator = Operator::connect(client, metrics, config).await;
    let operator = operator.map_err(anyhow::Error::from)?;
    tracing::info!(%master, %http, namespace = %args.namespace, "operator started");
    let ran = tokio::select! {
        ran = operator.run(stop) => ran,
        never = trust.watch() => match never {},
    };
    ran.map_err(|error| Failure::from(anyhow::Error::from(error)))
}

/// The directory of the authority; a variable that is set to nothing names none.
fn authority(args: &OperatorArgs) -> Option<&Path> {
    let authority = args.authority.as_deref();
    authority.filter(|dir| !dir.as_os_str().is_empty())
}

/// Who the operator is: by a certificate that it makes itself with the authority, or by the one that is there.
async fn trust(args: &OperatorArgs, stop: &CancellationToken) -> Result<Trust, Failure> {
    let renewal = match authority(args) {
        Some(dir) => {
            let signer = Arc::new(OwnCertificate::new(dir.to_owned()));
            renewal::with(&args.certs, "--authority", signer, stop).await?
        }
        None => None,
    };
    Trust::of_client(&args.certs, renewal)
}

fn signing(args: &OperatorArgs, trust: &Trust) -> Option<SigningConfig> {
    Some(SigningConfig {
        listen: args.sign,
        authority: authority(args)?.to_owned(),
        identity: trust.identity()?.clone(),
    })
}
