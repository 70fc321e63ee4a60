//! Which certificates are trusted: those of the authorities of a file that was named, for a host or for all, else of the
//! system's. The file is named by who runs the process and never by a dataset: whoever may make one could have requests with
//! a secret answered by a service of their own.
//!
//! A certificate that is in the file itself is trusted, too, for the names that it has. Many services sign their own, which
//! the usual tools make as an authority's: OpenSSL, and with it the tools of AWS, takes such a one for a server's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use rustls_platform_verifier::ConfigVerifierExt;
use weir_core::read_settings;

use super::environment::{Environment, unreadable};
use crate::error::OriginError;

/// Files of authorities, for all kinds of stores: `/path` for all services, or `HOST=/path` for those of a host and of the
/// names below it, several of them between commas.
const VARIABLE: &str = "WEIR_CA_BUNDLE";

/// The file of authorities that the environment names for a host, and the variable that names it. Of several the one with the
/// longest name counts.
pub(crate) fn bundle_of(environment: &Environment, host: &str) -> Option<(&'static str, PathBuf)> {
    let host = host.trim_matches(['[', ']']).trim_end_matches('.');
    let host = host.to_ascii_lowercase();
    let found = |entry: &str| {
        let (name, path) = match entry.split_once('=') {
            Some((name, path)) => (name.trim(), path.trim()),
            None => ("", entry.trim()),
        };
        let name = name.trim_matches(['[', ']']).to_ascii_lowercase();
        let below = || {
            host.strip_suffix(&*name)
                .is_some_and(|above| above.ends_with('.'))
        };
        let counts = !path.is_empty() && (name.is_empty() || host == name || below());
        counts.then(|| (name.len(), environment.expand(path)))
    };
    let entries = environment.get(VARIABLE)?.split(',').filter_map(found);
    let (_, path) = entries.max_by_key(|(length, _)| *length)?;
    Some((VARIABLE, path))
}

/// The host of an address, if it has one.
pub(crate) fn host_of(address: &str) -> Option<String> {
    let (_, rest) = address.split_once("://")?;
    let authority = rest.split('/').next()?;
    let authority = authority.parse::<http::uri::Authority>().ok()?;
    Some(authority.host().to_owned())
}

/// Where the trusted authorities are, and what names the file (`AWS_CA_BUNDLE`).
#[derive(Clone)]
pub(crate) struct Trust {
    origin: Arc<str>,
    bundle: Option<(&'static str, PathBuf)>,
}

impl Trust {
    /// Trust in the authorities of a file, which comes with the name of the setting that names it, or in the system's.
    pub(crate) fn of(origin: &Arc<str>, bundle: Option<(&'static str, PathBuf)>) -> Self {
        Self {
            origin: origin.clone(),
            bundle,
        }
    }

    /// Trust in the system's authorities.
    #[cfg(test)]
    pub(crate) fn of_system() -> Self {
        Self {
            origin: "s3://b".into(),
            bundle: None,
        }
    }

    /// What connections with TLS are made with. Reads files, which takes milliseconds.
    ///
    /// # Errors
    /// When a file that was named has no authority, or the system's cannot be read.
    pub(crate) fn tls(&self) -> Result<ClientConfig, OriginError> {
        let Some((name, path)) = &self.bundle else {
            return ClientConfig::with_platform_verifier().map_err(|error| {
                let remedy = "check the system's certificates, or name others in WEIR_CA_BUNDLE";
                OriginError::config(self.origin.clone(), error.to_string(), remedy)
            });
        };
        let content =
            read_settings(path).map_err(|error| unreadable(&self.origin, name, path, &error))?;
        let bundle = Bundle::of(&content).ok_or_else(|| self.useless(name, path))?;
        Ok(ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(bundle))
            .with_no_client_auth())
    }

    fn useless(&self, name: &str, path: &Path) -> OriginError {
        OriginError::config(
            self.origin.clone(),
            format!("{name} names {}, which has no certificate", path.display()),
            format!("write certificates of authorities in PEM into it, or unset {name}"),
        )
    }
}

/// The certificates of a file.
#[derive(Debug)]
struct Bundle {
    members: Vec<CertificateDer<'static>>,
    /// What they vouch for.
    below: Arc<WebPkiServerVerifier>,
}

impl Bundle {
    /// The certificates of a file in PEM, if there are any.
    fn of(content: &[u8]) -> Option<Self> {
        let members: Vec<_> = CertificateDer::pem_slice_iter(content)
            .filter_map(Result::ok)
            .collect();
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(members.iter().cloned());
        if added == 0 {
            return None;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let below = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let below = below.build().ok()?;
        Some(Self { members, below })
    }
}

impl ServerCertVerifier for Bundle {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let usual = self
            .below
            .verify_server_cert(certificate, between, name, ocsp, now);
        match usual {
            // That it is an authority's is found after its dates were checked, and before its name.
            Err(Error::InvalidCertificate(CertificateError::Other(_)))
                if self.members.contains(certificate) =>
            {
                verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            usual => usual,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.below
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.below
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.below.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_the_bundle_that_is_named_for_it() {
        let found = |value: &str, host: &str| {
            let environment = Environment::of([("WEIR_CA_BUNDLE", value), ("HOME", "/home/u")]);
            bundle_of(&environment, host).map(|(_, path)| path.to_str().unwrap().to_owned())
        };
        let some = |path: &str| Some(path.to_owned());
        let two = "minio.lab=/a.pem, /all.pem,Data.minio.lab = ~/b.pem,[::1]=/v6.pem";
        for (host, path) in [
            ("minio.lab", "/a.pem"),
            ("MINIO.lab.", "/a.pem"),
            ("bucket.minio.lab", "/a.pem"),
            ("bucket.data.minio.lab", "/home/u/b.pem"),
            ("xminio.lab", "/all.pem"),
            ("minio.lab.evil", "/all.pem"),
            ("[::1]", "/v6.pem"),
        ] {
            assert_eq!(found(two, host), some(path), "{host}");
        }
        assert_eq!(found("minio.lab=/a.pem", "other"), None);
        assert_eq!(found("minio.lab=", "minio.lab"), None);
        assert_eq!(found(",", "minio.lab"), None);
        assert_eq!(bundle_of(&Environment::of([]), "minio.lab"), None);
    }

    #[test]
    fn a_bundle_that_is_missing_or_has_no_certificate_is_named() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("empty"), "").unwrap();
        std::fs::write(path("text"), "-----BEGIN CERTIFICATE-----\nnone\n").unwrap();
        let origin: Arc<str> = "s3://b".into();
        for (file, said) in [
            ("gone", "No such file"),
            ("empty", "no certificate"),
            ("text", "no certificate"),
            ("", "cannot be read"),
        ] {
            let file = path(file);
            let bundle = Some(("AWS_CA_BUNDLE", PathBuf::from(&file)));
            let error = Trust::of(&origin, bundle).tls().unwrap_err();
            assert_eq!(error.kind(), "config");
            let error = error.to_string();
            for said in [said, &file, "AWS_CA_BUNDLE"] {
                assert!(error.contains(said), "{said} is not in {error}");
            }
        }
    }
}
