//! `/metrics` and `/healthz` of every process.

mod mounts;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::process::listen;

/// Media type of the text that prometheus-client writes.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What a scrape and a health check see.
pub(crate) struct Exposed {
    pub(crate) registry: Registry,
    /// Brings gauges up to date before a scrape.
    pub(crate) refresh: Box<dyn Fn() + Send + Sync>,
    /// Whether mounts that are served here are shown, too.
    pub(crate) mounts: bool,
}

/// Binds `address` and serves until `stop`. Gives the address that was bound. It may be taken for as long as `patience`, by
/// a process that is ending.
pub(crate) async fn serve(
    address: SocketAddr,
    patience: Duration,
    exposed: Exposed,
    stop: CancellationToken,
) -> anyhow::Result<SocketAddr> {
    let listener = listen(address, patience).await.with_context(|| {
        format!("cannot serve metrics on {address}; choose another with --http")
    })?;
    let bound = listener.local_addr()?;
    let exposed = Arc::new(exposed);
    let metrics = move || {
        let exposed = exposed.clone();
        async move {
            (exposed.refresh)();
            let mut text = String::new();
            match prometheus_client::encoding::text::encode(&mut text, &exposed.registry) {
                Ok(()) => {
                    if exposed.mounts {
                        text = mounts::beside(&text).await;
                    }
                    ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response()
                }
                Err(error) => {
                    (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()
                }
            }
        }
    };
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }));
    tokio::spawn(async move {
        let server = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
        if let Err(error) = server.await {
            tracing::error!(%error, "the metrics endpoint ended");
        }
    });
    Ok(bound)
}
