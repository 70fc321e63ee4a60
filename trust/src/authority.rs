//! The cluster's own authority: a directory with a key that signs the certificates of its processes.
//!
//! | file | holds |
//! |---|---|
//! | `ca.crt` | the certificates of authorities that are trusted, the newest first |
//! | `ca.key` | the key of the newest |
//!
//! A directory that it issues to holds `ca.crt`, `tls.crt` and `tls.key`, named as in a Kubernetes secret of type
//! `kubernetes.io/tls`. Keys are written with mode 0600, and each file whole or not at all.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;
use weir_core::read_settings;

use crate::error::TrustError;
use crate::requested::RequestedKey;
use crate::subject::{Peer, Subject, is_key_of, name_and_end};

pub(crate) const CA_CERT: &str = "ca.crt";
pub(crate) const CERT: &str = "tls.crt";
pub(crate) const KEY: &str = "tls.key";
const CA_KEY: &str = "ca.key";
/// Clocks of the machines may differ by so much.
const CLOCK_SKEW: Duration = Duration::from_hours(1);
/// Authorities that are trusted at once, at most: the newest, and those before it whose certificates may still be in use.
const MAX_AUTHORITIES: usize = 4;

/// How long certificates are valid.
#[derive(Clone, Copy, Debug)]
pub struct Validity {
    /// An authority's own.
    pub authority: Duration,
    /// Those that it issues.
    pub issued: Duration,
}

impl Default for Validity {
    /// Ten years for an authority, one year for what it issues.
    fn default() -> Self {
        const YEAR: Duration = Duration::from_hours(24 * 365);
        Self {
            authority: YEAR * 10,
            issued: YEAR,
        }
    }
}

/// A certificate that was issued, and which authorities whoever has it is to trust. Both in PEM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// The certificates of the authorities, the newest first.
    pub authorities: String,
}

/// An authority that can issue certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The certificates of all authorities that are trusted, in PEM.
    trusted: String,
    validity: Validity,
}

impl Authority {
    /// Makes an authority in a directory that has none.
    ///
    /// # Errors
    /// When there is one, or the files cannot be written.
    pub fn init(dir: &Path, validity: Validity) -> Result<Self, TrustError> {
        if dir.join(CA_KEY).exists() {
            return Err(TrustError::Exists(dir.to_owned()));
        }
        make_dir(dir)?;
        Self::make(dir, "", validity)
    }

    /// The authority in a directory: the one among those that are trusted whose key is there. It need not be the newest, so that
    /// a new one can be made known everywhere before it is used.
    ///
    /// # Errors
    /// When its files cannot be read, or are not those of an authority.
    pub fn open(dir: &Path, validity: Validity) -> Result<Self, TrustError> {
        let (key, trusted) = (read(&dir.join(CA_KEY))?, read(&dir.join(CA_CERT))?);
        let unusable = |file: &str, error: rcgen::Error| TrustError::Unusable {
            path: dir.join(file),
            reason: error.to_string(),
        };
        let key = KeyPair::from_pem(&key).map_err(|error| unusable(CA_KEY, error))?;
        // Of files that are being replaced one may be new and the other old.
        let own = certificates(&trusted).find(|certificate| is_key_of(&key, certificate));
        let own = own.ok_or_else(|| TrustError::Unusable {
            path: dir.join(CA_KEY),
            reason: format!("it is the key of no authority in {CA_CERT}"),
        })?;
        let issuer = Issuer::from_ca_cert_pem(&own, key);
        Ok(Self {
            issuer: issuer.map_err(|error| unusable(CA_CERT, error))?,
            trusted,
            validity,
        })
    }

    /// Makes a new key for the authority in a directory. The authorities before stay trusted, so certificates that they
    /// have issued stay valid; `ca.crt` must be everywhere before a new one is used.
    ///
    /// # Errors
    /// As [`open`](Self::open), and when the files cannot be written.
    pub fn rotate(dir: &Path, validity: Validity) -> Result<Self, TrustError> {
        let before = Self::open(dir, validity)?.trusted;
        Self::make(dir, &before, validity)
    }

    /// Whether a directory holds an authority, and not what one has issued.
    pub fn is_in(dir: &Path) -> bool {
        dir.join(CA_KEY).exists()
    }

    fn make(dir: &Path, before: &str, validity: Validity) -> Result<Self, TrustError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        // Told from those before by its number, so that a chain is looked for at the right one.
        let name = format!(
            "Weir cluster authority {}",
            OffsetDateTime::now_utc().unix_timestamp_nanos()
        );
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, validity.authority);
        let mut trusted = vec![params.self_signed(&key)?.pem()];
        trusted.extend(certificates(before).take(MAX_AUTHORITIES - 1));
        let trusted = trusted.concat();
        // The certificates first: a key without its certificate could sign nothing that is trusted.
        write(&dir.join(CA_CERT), trusted.as_bytes(), 0o644)?;
        write(&dir.join(CA_KEY), key.serialize_pem().as_bytes(), 0o600)?;
        Ok(Self {
            issuer: Issuer::new(params, key),
            trusted,
            validity,
        })
    }

    /// Issues a certificate into a directory, which is made if it is missing; one that is there is replaced. `addresses`
    /// are host names and IP addresses that a worker may claim.
    ///
    /// # Errors
    /// When an address is none, or the files cannot be written.
    pub fn issue(
        &self,
        subject: &Subject,
        addresses: &[String],
        dir: &Path,
    ) -> Result<(), TrustError> {
        let key = KeyPair::generate()?;
        self.issued(&key, subject, addresses)?.write(&key, dir)
    }

    /// Issues a certificate for a key that somebody else has, who has shown that.
    ///
    /// # Errors
    /// When an address is none.
    pub fn sign(
        &self,
        key: &RequestedKey,
        subject: &Subject,
        addresses: &[String],
    ) -> Result<Issued, TrustError> {
        self.issued(&key.0, subject, addresses)
    }

    fn issued(
        &self,
        key: &impl PublicKeyData,
        subject: &Subject,
        addresses: &[String],
    ) -> Result<Issued, TrustError> {
        let mut params = CertificateParams::new(addresses)?;
        for uri in subject.to_uris() {
            let uri = Ia5String::try_from(uri)?;
            params.subject_alt_names.push(SanType::URI(uri));
        }
        params
            .distinguished_name
            .push(DnType::CommonName, subject.to_string());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, self.validity.issued);
        Ok(Issued {
            certificate: params.signed_by(key, &self.issuer)?.pem(),
            authorities: self.trusted.clone(),
        })
    }

    /// Has whom this directory is of trust all that this authority trusts, beside a certificate that stays as it is.
    ///
    /// # Errors
    /// When there is no certificate of a process, or the file cannot be written.
    pub fn make_trusted(&self, dir: &Path) -> Result<Peer, TrustError> {
        let peer = named_in(dir)?;
        write_authorities(dir, &self.trusted)?;
        Ok(peer)
    }

    /// Issues a new certificate and key for whom the one in this directory names.
    ///
    /// # Errors
    /// When there is no certificate of a process, or the files cannot be written.
    pub fn renew(&self, dir: &Path) -> Result<Peer, TrustError> {
        let peer = named_in(dir)?;
        self.issue(&peer.subject, &peer.addresses, dir)?;
        named_in(dir)
    }
}

impl Issued {
    /// Writes it and its key into a directory, which is made if it is missing.
    pub(crate) fn write(&self, key: &KeyPair, dir: &Path) -> Result<(), TrustError> {
        make_dir(dir)?;
        write_authorities(dir, &self.authorities)?;
        write(&dir.join(KEY), key.serialize_pem().as_bytes(), 0o600)?;
        write(&dir.join(CERT), self.certificate.as_bytes(), 0o644)
    }
}

/// Writes which authorities a directory trusts.
pub(crate) fn write_authorities(dir: &Path, authorities: &str) -> Result<(), TrustError> {
    write(&dir.join(CA_CERT), authorities.as_bytes(), 0o644)
}

/// An authority that a directory trusts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trusted {
    /// Its name.
    pub name: String,
    /// When its certificate ends, and with it all that it has issued.
    pub expires: SystemTime,
}

/// The authorities that a directory trusts, the newest first.
///
/// # Errors
/// When its `ca.crt` cannot be read, or is none.
pub fn trusted_in(dir: &Path) -> Result<Vec<Trusted>, TrustError> {
    let path = dir.join(CA_CERT);
    let pem = read(&path)?;
    let unusable = |reason: String| TrustError::Unusable {
        path: path.clone(),
        reason,
    };
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .map(|certificate| {
            let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
            let (name, expires) = name_and_end(&certificate).map_err(unusable)?;
            Ok(Trusted { name, expires })
        })
        .collect()
}

/// Whom the certificate in a directory names.
pub(crate) fn named_in(dir: &Path) -> Result<Peer, TrustError> {
    let path = dir.join(CERT);
    let pem = read(&path)?;
    let unusable = |reason: String| TrustError::Unusable {
        path: path.clone(),
        reason,
    };
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes());
    let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
    Peer::of(&certificate).map_err(unusable)
}

fn set_validity(params: &mut CertificateParams, valid: Duration) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + valid;
}

/// The certificates in a file, each with its marks.
fn certificates(pem: &str) -> impl Iterator<Item = String> + '_ {
    const END: &str = "-----END CERTIFICATE-----";
    pem.split_inclusive(END)
        .filter(|part| part.ends_with(END))
        .map(|part| format!("{}\n", part.trim_start()))
}

fn make_dir(dir: &Path) -> Result<(), TrustError> {
    let made = DirBuilder::new().mode(0o700).recursive(true).create(dir);
    made.map_err(|source| failed("write", dir, source))
}

pub(crate) fn read(path: &Path) -> Result<String, TrustError> {
    let content = read_settings(path).and_then(|content| {
        String::from_utf8(content)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    });
    content.map_err(|source| failed("read", path, source))
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), TrustError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let written = || -> io::Result<()> {
        // One that was left over may have another mode.
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(mode)
            .open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    written().map_err(|source| failed("write", path, source))
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> TrustError {
    TrustError::File {
        what,
        path: path.to_owned(),
        source,
    }
}
