//! Certificates that `weir operator` signs for the pods of a cluster.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request};
use weir_proto::v1::SignRequest;
use weir_proto::v1::certificates_client::CertificatesClient;
use weir_trust::{Dial, Identity, Issued, Renewal, Role, SIGNER, SignError, Signer};

use crate::args::{CertsArgs, SignedArgs};
use crate::exit::{Failure, Reason, causes};

/// Longest wait for a first certificate: kubelet starts the container again.
const PATIENCE: Duration = Duration::from_secs(100);
/// Longest wait for the connection, and for an answer.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
const CALL_DEADLINE: Duration = Duration::from_secs(12);
/// Longest answer: two certificates, and some authorities.
const MAX_ANSWER: usize = 256 << 10;
/// What is in the directory of proofs.
const TOKEN: &str = "token";
const AUTHORITIES: &str = "ca.crt";

/// Sees to it that there is a certificate of this role in `--certs`, if the flags say who signs it.
pub(crate) async fn start(
    certs: &CertsArgs,
    signed: &SignedArgs,
    role: Role,
    stop: &CancellationToken,
) -> Result<Option<Renewal>, Failure> {
    let Some(address) = signed.from() else {
        return Ok(None);
    };
    let operator = Operator {
        address: address.to_owned(),
        proof: signed.certs_proof.clone(),
        role,
    };
    with(certs, "--certs-from", Arc::new(operator), stop).await
}

/// The same with another signer, which a flag has named.
pub(crate) async fn with(
    certs: &CertsArgs,
    flag: &str,
    signer: Arc<dyn Signer>,
    stop: &CancellationToken,
) -> Result<Option<Renewal>, Failure> {
    let dir = certs.dir().ok_or_else(|| {
        Failure::new(
            Reason::Usage,
            format!("a certificate by {flag} is kept in a directory; name it with --certs DIR"),
        )
    })?;
    tokio::select! {
        started = Renewal::start(dir, signer, PATIENCE) => Ok(Some(started?)),
        () = stop.cancelled() => Err(Failure::new(
            Reason::Unavailable,
            "stopped before there was a certificate",
        )),
    }
}

/// Asks `weir operator`, with the token of this pod.
struct Operator {
    address: String,
    proof: PathBuf,
    role: Role,
}

impl Operator {
    async fn ask(&self, request: &[u8]) -> Result<Issued, SignError> {
        // Kubelet replaces both files while the pod lives.
        let token = read(&self.proof.join(TOKEN))?;
        let authorities = self.proof.join(AUTHORITIES);
        let away = |error: String| SignError::Away(error);
        let identity = Identity::trusting(&authorities).map_err(|error| away(error.to_string()))?;
        let dial = Dial::new(Some(identity)).expecting(SIGNER);
        let channel = dial.channel(&self.address, Role::Admin, CONNECT_DEADLINE);
        // Asking again does not make it an address.
        let channel = channel.map_err(|error| SignError::Refused(error.to_string()))?;
        let mut client = CertificatesClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        let mut asked = Request::new(SignRequest {
            request: request.to_vec(),
            role: self.role.as_str().to_owned(),
            token: token.trim().to_owned(),
        });
        asked.set_timeout(CALL_DEADLINE);
        match client.sign(asked).await {
            Ok(reply) => {
                let reply = reply.into_inner();
                Ok(Issued {
                    certificate: reply.certificate,
                    authorities: reply.authorities,
                })
            }
            Err(status) => {
                let why = format!("the operator at {}: {}", self.address, causes(&status));
                Err(match status.code() {
                    Code::PermissionDenied | Code::InvalidArgument => SignError::Refused(why),
                    _ => SignError::Away(why),
                })
            }
        }
    }
}

impl Signer for Operator {
    fn sign<'a>(&'a self, request: &'a [u8]) -> BoxFuture<'a, Result<Issued, SignError>> {
        Box::pin(self.ask(request))
    }

    fn authorities(&self) -> Option<String> {
        read(&self.proof.join(AUTHORITIES)).ok()
    }
}

fn read(path: &Path) -> Result<String, SignError> {
    let content = weir_core::read_settings(path).map_err(|error| {
        let path = path.display();
        SignError::Away(format!(
            "cannot read {path}: {error}; project it into the pod, or name its directory with --certs-proof"
        ))
    })?;
    String::from_utf8(content)
        .map_err(|_| SignError::Away(format!("{} is not text", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_missing_or_not_there_yet_is_named_and_asked_for_again() {
        let proof = tempfile::tempdir().unwrap();
        let operator = |address: &str| Operator {
            address: address.to_owned(),
            proof: proof.path().to_owned(),
            role: Role::Worker,
        };
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        let asked = || async { operator(&address).ask(b"request").await.unwrap_err() };
        let why = asked().await.to_string();
        assert!(
            why.contains("/token") && why.contains("--certs-proof"),
            "{why}"
        );
        std::fs::write(proof.path().join(TOKEN), "t\n").unwrap();
        let why = asked().await.to_string();
        assert!(why.contains("/ca.crt"), "{why}");
        let ca =
            weir_trust::Authority::init(&proof.path().join("ca"), weir_trust::Validity::default());
        ca.unwrap();
        std::fs::copy(
            proof.path().join("ca/ca.crt"),
            proof.path().join(AUTHORITIES),
        )
        .unwrap();
        let away = asked().await;
        let why = format!("the operator at {address}: ");
        assert!(
            matches!(&away, SignError::Away(said) if said.starts_with(&why)),
            "{away}"
        );
        let wrong = operator("nowhere").ask(b"request").await.unwrap_err();
        assert!(matches!(wrong, SignError::Refused(_)), "{wrong}");
    }
}
