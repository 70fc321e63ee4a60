//! Which authorities' certificates are trusted: those of a file that was named, else the system's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::ConfigVerifierExt;

use super::configuration::Configuration;
use super::environment::read;
use super::profile::unreadable;
use crate::error::OriginError;

/// Where the trusted authorities are, and what names the file (`AWS_CA_BUNDLE`).
#[derive(Clone)]
pub(super) struct Trust {
    origin: Arc<str>,
    bundle: Option<(&'static str, PathBuf)>,
}

impl Trust {
    /// What the environment and the profile say.
    pub(super) fn of(origin: &Arc<str>, configuration: &Configuration) -> Self {
        Self {
            origin: origin.clone(),
            bundle: configuration.ca_bundle(),
        }
    }

    /// Trust in the system's authorities.
    #[cfg(test)]
    pub(super) fn of_system() -> Self {
        Self {
            origin: "s3://b".into(),
            bundle: None,
        }
    }

    /// What connections with TLS are made with. Reads files, which takes milliseconds.
    ///
    /// # Errors
    /// When a file that was named has no authority, or the system's cannot be read.
    pub(super) fn tls(&self) -> Result<ClientConfig, OriginError> {
        let Some((name, path)) = &self.bundle else {
            return ClientConfig::with_platform_verifier().map_err(|error| {
                let remedy = "check the system's certificates, or name others in AWS_CA_BUNDLE";
                OriginError::config(self.origin.clone(), error.to_string(), remedy)
            });
        };
        let content = read(path).map_err(|error| unreadable(&self.origin, name, path, &error))?;
        let roots = authorities(&content).ok_or_else(|| self.useless(name, path))?;
        Ok(ClientConfig::builder()
            .with_root_certificates(roots)
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

/// The authorities of a file in PEM, if there are any.
fn authorities(content: &[u8]) -> Option<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_slice_iter(content).filter_map(Result::ok);
    let (added, _) = roots.add_parsable_certificates(certificates);
    (added > 0).then_some(roots)
}

#[cfg(test)]
mod tests {
    use super::super::environment::Environment;
    use super::*;

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
            let variables = [("AWS_CA_BUNDLE", &*file), ("HOME", "/nonexistent")];
            let environment = Environment::of(variables);
            let configuration = Configuration::load(&origin, None, &environment).unwrap();
            let error = Trust::of(&origin, &configuration).tls().unwrap_err();
            assert_eq!(error.kind(), "config");
            let error = error.to_string();
            for said in [said, &file, "AWS_CA_BUNDLE"] {
                assert!(error.contains(said), "{said} is not in {error}");
            }
        }
    }
}
