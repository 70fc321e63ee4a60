//! Requests for certificates, as whoever signs reads them.

use rcgen::{
    CertificateSigningRequestParams, DistinguishedName, IsCa, PKCS_ECDSA_P256_SHA256, PublicKey,
    PublicKeyData,
};
use rustls::pki_types::CertificateSigningRequestDer;

use crate::error::TrustError;

/// Longest request, in bytes: ours have 150.
const MAX_REQUEST: usize = 4 << 10;
/// Length of a public key of ours.
const KEY_LENGTH: usize = 65;

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
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair,
        PKCS_ED25519, SanType,
    };

    use super::*;

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
        let der = request(&KeyPair::generate().unwrap(), |_| ());
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
