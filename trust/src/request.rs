//! Asking for a certificate: the key is made here, and stays here.
//!
//! A request (PKCS #10) holds the public key, and is signed with the private one, which shows that whoever asks has it. It names
//! nobody: whoever signs knows by other means who asks, and decides what the certificate says.

use std::path::Path;

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, IsCa, KeyPair,
    PKCS_ECDSA_P256_SHA256, PublicKey, PublicKeyData,
};
use rustls::pki_types::CertificateSigningRequestDer;

use crate::authority::Issued;
use crate::error::TrustError;
use crate::identity::check;
use crate::subject::Peer;

/// Longest request, in bytes: ours have 150.
const MAX_REQUEST: usize = 4 << 10;
/// Length of a public key of ours.
const KEY_LENGTH: usize = 65;

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

/// The public key of a request, whose maker has shown to have the private one.
pub struct RequestedKey(pub(crate) PublicKey);

impl RequestedKey {
    /// Reads a request.
    ///
    /// # Errors
    /// When it is none, is not signed with its own key, has a key of another kind, or asks for names or rights.
    pub fn read(der: &[u8]) -> Result<Self, TrustError> {
        let wrong = |why: String| Err(TrustError::Request(why));
        if der.len() > MAX_REQUEST {
            return wrong(format!("has {} bytes, of {MAX_REQUEST} at most", der.len()));
        }
        let der = CertificateSigningRequestDer::from(der);
        let request = match CertificateSigningRequestParams::from_der(&der) {
            Ok(request) => request,
            Err(error) => return wrong(format!("cannot be read: {error}")),
        };
        let key = request.public_key;
        if *PublicKeyData::algorithm(&key) != PKCS_ECDSA_P256_SHA256
            || key.der_bytes().len() != KEY_LENGTH
        {
            return wrong("has a key of another kind: make one of ECDSA on P-256".to_owned());
        }
        let params = request.params;
        let asks = !params.subject_alt_names.is_empty()
            || params.is_ca != IsCa::NoCa
            || !params.key_usages.is_empty()
            || !params.extended_key_usages.is_empty()
            || params.distinguished_name != DistinguishedName::new();
        if asks {
            return wrong(
                "asks for names or rights: leave them out, whoever signs decides them".to_owned(),
            );
        }
        Ok(Self(key))
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, DnType, ExtendedKeyUsagePurpose, PKCS_ED25519, SanType};

    use super::*;
    use crate::authority::{Authority, Validity};
    use crate::identity::Identity;
    use crate::subject::{Role, Subject};

    fn refused(der: &[u8]) -> String {
        RequestedKey::read(der).err().unwrap().to_string()
    }

    fn request(key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        change(&mut params);
        params.serialize_request(key).unwrap().der().to_vec()
    }

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

    #[test]
    fn what_asks_for_names_or_rights_is_refused() {
        let key = KeyPair::generate().unwrap();
        RequestedKey::read(&request(&key, |_| ())).unwrap();
        let asks: [fn(&mut CertificateParams); 4] = [
            |params| {
                let name = "weir:master:m".try_into().unwrap();
                params.subject_alt_names.push(SanType::URI(name));
            },
            |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
            |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
            |params| params.distinguished_name.push(DnType::CommonName, "admin"),
        ];
        for change in asks {
            let why = refused(&request(&key, change));
            assert!(why.contains("asks for names or rights"), "{why}");
        }
    }

    #[test]
    fn what_is_no_request_or_of_a_key_that_its_maker_does_not_have_is_refused() {
        let der = Request::new().unwrap().der;
        let own = RequestedKey::read(&der).unwrap();
        for length in 0..der.len() {
            refused(&der[..length]);
        }
        for at in 0..der.len() {
            let mut changed = der.clone();
            changed[at] ^= 1;
            // What is not signed may be written in another way.
            if let Ok(key) = RequestedKey::read(&changed) {
                assert_eq!(key.0, own.0, "byte {at}");
            }
        }
        let why = refused(&vec![0x30; MAX_REQUEST + 1]);
        assert!(why.contains("4096 at most"), "{why}");
        let other = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let why = refused(&request(&other, |_| ()));
        assert!(why.contains("ECDSA on P-256"), "{why}");
    }
}
