//! The operator's own certificate.

use std::path::PathBuf;

use futures::future::BoxFuture;
use weir_trust::{
    Authority, Issued, RequestedKey, Role, SIGNER, SignError, Signer, Subject, TrustError, Validity,
};

use super::LIFE;

/// Signs the operator's own certificate with the authority in a directory. All replicas have the same name in it.
#[derive(Clone, Debug)]
pub struct OwnCertificate(PathBuf);

impl OwnCertificate {
    /// The directory holds `ca.crt` and `ca.key`.
    pub fn new(authority: PathBuf) -> Self {
        Self(authority)
    }

    fn issue(&self, request: &[u8]) -> Result<Issued, TrustError> {
        let name = SIGNER.parse();
        let name = name.map_err(|_| TrustError::Name(format!("{SIGNER} is no name")))?;
        let validity = Validity {
            issued: LIFE,
            ..Validity::default()
        };
        let authority = Authority::open(&self.0, validity)?;
        authority.sign(
            &RequestedKey::read(request)?,
            &Subject::new(Role::Admin, name),
            &[],
        )
    }
}

impl Signer for OwnCertificate {
    fn sign<'a>(&'a self, request: &'a [u8]) -> BoxFuture<'a, Result<Issued, SignError>> {
        // Files of a Secret are there before the container is.
        let issued = self
            .issue(request)
            .map_err(|error| SignError::Refused(error.to_string()));
        Box::pin(std::future::ready(issued))
    }

    fn authorities(&self) -> Option<String> {
        std::fs::read_to_string(self.0.join("ca.crt")).ok()
    }
}
