//! What goes wrong in the operator, by what is to be done.

use std::time::Duration;

use crate::master::MasterError;

/// Why an object could not be made true.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The apiserver refused, or did not answer.
    #[error("the apiserver: {0}")]
    Kube(#[from] kube::Error),
    /// The configuration of the connection to the apiserver.
    #[error(
        "the apiserver is not known: {0}; run in a pod with a service account, or set KUBECONFIG"
    )]
    Config(String),
    /// The master refused, or did not answer.
    #[error("the master: {0}")]
    Master(#[from] MasterError),
    /// A look at an object took too long.
    #[error("a look took longer than {} s", .0.as_secs())]
    Deadline(Duration),
    /// The certificate of the webhook.
    #[error("the webhook's certificate: {0}; delete the Secret weir-webhook, and it is made anew")]
    Certificate(String),
    /// The webhook cannot be served.
    #[error("the webhook cannot be served on {0}: {1}; choose another address with --webhook")]
    Webhook(std::net::SocketAddr, String),
    /// Something puts back what was let go.
    #[error(
        "some objects or pods are still held after {} s; scale the Deployment weir-operator to 0, and run this again",
        .0.as_secs()
    )]
    StillHeld(Duration),
    /// Certificates cannot be signed.
    #[error("certificates cannot be signed on {0}: {1}; choose another address with --sign")]
    Signing(std::net::SocketAddr, String),
    /// The authority cannot be read.
    #[error("the authority: {0}; give its directory with --authority")]
    Authority(String),
    /// Another operator leads now.
    #[error("another operator has the Lease {0}; this one ends, and is started anew")]
    Deposed(String),
}
