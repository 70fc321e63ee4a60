//! Running gRPC servers. Not generic, so that the code of HTTP/2 and of connections is made once, and not again in each crate
//! that serves.

use std::time::Duration;

use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::{Error, Server};

use crate::incoming::Incoming;

/// A connection whose other end does not answer for this long is closed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves `routes` to those who come in by `incoming`, until `stop` and until what is under way then has ended.
pub fn serve(
    routes: Routes,
    incoming: Incoming,
    stop: CancellationToken,
) -> BoxFuture<'static, Result<(), Error>> {
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT));
    let served = server.add_routes(routes);
    Box::pin(served.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()))
}
