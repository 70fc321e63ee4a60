//! Asking for a certificate: the key is made here, and stays here.
//!
//! A request (PKCS #10) holds the public key, and is signed with the private one, which shows that whoever asks has it. It names
//! nobody: whoever signs knows by other means who asks, and decides what the certificate says.

use std::path::Path;

use rcgen::{CertificateParams, DistinguishedName, KeyPair};

use crate::authority::Issued;
use crate::error::TrustError;
use crate::identity::check;
use crate::subject::Peer;

/// A new key, and the request for a certificate of it.
pub struct Request {
    key: KeyPair,
    der: Vec<u8>,
}

impl Request {
    /// Makes both.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn new() -> Result<Self, TrustError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let der = params.serialize_request(&key)?.der().to_vec();
        Ok(Self { key, der })
    }

    /// The request, as it is sent.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Writes what was signed into a directory, with the key, and gives whom it names.
    ///
    /// # Errors
    /// When it is not of this key or not of the authorities that came with it, and when the files cannot be written.
    pub fn keep(&self, issued: &Issued, dir: &Path) -> Result<Peer, TrustError> {
        let Issued {
            certificate,
            authorities,
        } = issued;
        let peer = check(dir, authorities, certificate, &self.key.serialize_pem())?;
        issued.write(&self.key, dir)?;
        Ok(peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::{Authority, Validity};
    use crate::identity::Identity;
    use crate::requested::RequestedKey;
    use crate::subject::{Role, Subject};

    #[test]
    fn a_certificate_is_signed_for_a_key_that_stays_with_its_maker() {
        let dir = tempfile::tempdir().unwrap();
        let (ca, out) = (dir.path().join("ca"), dir.path().join("w"));
        let authority = Authority::init(&ca, Validity::default()).unwrap();
        let request = Request::new().unwrap();
        let key = RequestedKey::read(request.der()).unwrap();
        let subject = Subject::new(Role::Worker, "w".parse().unwrap());
        let addresses = ["10.0.0.7".to_owned()];
        let issued = authority.sign(&key, &subject, &addresses).unwrap();
        let peer = request.keep(&issued, &out).unwrap();
        assert_eq!(
            (&peer.subject, &peer.addresses[..]),
            (&subject, &addresses[..])
        );
        assert_eq!(Identity::load(&out).unwrap().peer(), peer);
        // What is of another key, or of an authority that does not come with it, is not kept.
        let other = Request::new().unwrap();
        other.keep(&issued, &dir.path().join("o")).unwrap_err();
        let stranger = Authority::init(&dir.path().join("cb"), Validity::default()).unwrap();
        let theirs = stranger.sign(&key, &subject, &[]).unwrap();
        let mixed = Issued {
            authorities: issued.authorities.clone(),
            ..theirs
        };
        request.keep(&mixed, &out).unwrap_err();
        assert_eq!(
            Identity::load(&out).unwrap().peer(),
            peer,
            "it is as it was"
        );
    }
}
