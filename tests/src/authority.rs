//! An authority for certificates of the test's own.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use weir_s3_server::Identity;

/// An authority that nobody trusts who was not told of it.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new one.
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self {
            certificate: params.self_signed(&key).unwrap().pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// Writes its certificate to a file.
    pub fn save(&self, path: &Path) {
        std::fs::write(path, &self.certificate).unwrap();
    }

    /// A certificate for a host, valid until the end of the last century or for as long as any test runs.
    pub fn identity(&self, host: &str, expired: bool) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([host.to_owned()]).unwrap();
        if expired {
            params.not_after = rcgen::date_time_ymd(1999, 12, 31);
        }
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity {
            certificate: certificate.der().to_vec(),
            key: key.serialize_der(),
        }
    }
}

/// A certificate that signs itself and says that it is an authority's, as `openssl req -x509` makes them, and the same in
/// PEM.
pub fn self_signed(host: &str, expired: bool) -> (Identity, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([host.to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    if expired {
        params.not_after = rcgen::date_time_ymd(1999, 12, 31);
    }
    let certificate = params.self_signed(&key).unwrap();
    let identity = Identity {
        certificate: certificate.der().to_vec(),
        key: key.serialize_der(),
    };
    (identity, certificate.pem())
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}
