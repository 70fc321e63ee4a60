//! Whom a certificate names.
//!
//! The name is in the certificate's alternative names, as URIs: `weir:ROLE:NAME`, and for a worker `weir:max-weight:BYTES`
//! if it may not claim more, and `weir:node:NAME` if it may claim no other node; likewise `weir:zone:NAME`, `weir:group:NAME`
//! and `weir:pool:NAME`. Host names and IP addresses beside them are those that a worker may claim.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use weir_core::{ByteSize, NodeName, PlaceName};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::error::{TrustError, refused};

const SCHEME: &str = "weir:";
const MAX_WEIGHT: &str = "weir:max-weight:";
const NODE: &str = "weir:node:";
const ZONE: &str = "weir:zone:";
const GROUP: &str = "weir:group:";
const POOL: &str = "weir:pool:";

/// What a process is in its cluster.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// The master.
    Master,
    /// A worker.
    Worker,
    /// The server of a mount.
    Mount,
    /// A person's command.
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Master, Self::Worker, Self::Mount, Self::Admin];

    /// As it is written on the command line and in a certificate.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Worker => "worker",
            Self::Mount => "mount",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = TrustError;

    fn from_str(text: &str) -> Result<Self, TrustError> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| {
            TrustError::Name(format!(
                "{text:?} is no role: write master, worker, mount or admin"
            ))
        })
    }
}

/// Whom a certificate names, and what that one may claim.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subject {
    /// What it is.
    pub role: Role,
    /// Its name among those of its role. A worker's is its id.
    pub name: NodeName,
    /// The largest weight that it may have in the cluster map, in bytes; any without.
    pub max_weight: Option<ByteSize>,
    /// The only node that it may claim to be on; any without.
    pub node: Option<NodeName>,
    /// The only place that it may claim.
    pub place: Place,
}

/// The only zone, group and pool that a worker may claim; any without.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Place {
    /// Its zone.
    pub zone: Option<PlaceName>,
    /// Its group.
    pub group: Option<PlaceName>,
    /// Its pool.
    pub pool: Option<PlaceName>,
}

impl Subject {
    /// Without limits.
    pub fn new(role: Role, name: NodeName) -> Self {
        Self {
            role,
            name,
            max_weight: None,
            node: None,
            place: Place::default(),
        }
    }

    pub(crate) fn to_uris(&self) -> Vec<String> {
        let mut uris = vec![format!("{SCHEME}{}:{}", self.role, self.name)];
        uris.extend(
            self.max_weight
                .map(|most| format!("{MAX_WEIGHT}{}", most.0)),
        );
        uris.extend(self.node.as_ref().map(|node| format!("{NODE}{node}")));
        let Place { zone, group, pool } = &self.place;
        for (scheme, name) in [(ZONE, zone), (GROUP, group), (POOL, pool)] {
            uris.extend(name.as_ref().map(|name| format!("{scheme}{name}")));
        }
        uris
    }

    fn of_uris<'a>(uris: impl Iterator<Item = &'a str> + Clone) -> Option<Self> {
        let (mut max_weight, mut node) = (None, None);
        let mut place = Place::default();
        for uri in uris.clone() {
            // A limit that cannot be read must not mean none.
            if let Some(bytes) = uri.strip_prefix(MAX_WEIGHT) {
                max_weight = Some(ByteSize(bytes.parse().ok()?));
            } else if let Some(name) = uri.strip_prefix(NODE) {
                node = Some(name.parse().ok()?);
            } else if let Some(name) = uri.strip_prefix(ZONE) {
                place.zone = Some(name.parse().ok()?);
            } else if let Some(name) = uri.strip_prefix(GROUP) {
                place.group = Some(name.parse().ok()?);
            } else if let Some(name) = uri.strip_prefix(POOL) {
                place.pool = Some(name.parse().ok()?);
            }
        }
        let mut named = uris.filter_map(|uri| {
            let (role, name) = uri.strip_prefix(SCHEME)?.split_once(':')?;
            Some((role.parse().ok()?, name.parse().ok()?))
        });
        let (role, name) = named.next()?;
        if named.next().is_some() {
            return None; // which of them?
        }
        Some(Self {
            role,
            name,
            max_weight,
            node,
            place,
        })
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.name)
    }
}

/// What a valid certificate says of whoever shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Who it is.
    pub subject: Subject,
    /// Host names and IP addresses that it may claim to be reached at.
    pub addresses: Vec<String>,
    /// When its certificate began to be valid.
    pub begins: SystemTime,
    /// When it ends.
    pub expires: SystemTime,
}

impl Peer {
    /// Reads a certificate, whose signature somebody else has checked. The error says what is wrong with it.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, certificate) = X509Certificate::from_der(certificate)
            .map_err(|error| format!("not a certificate: {error}"))?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|error| format!("unreadable names: {error}"))?;
        let names = names.map_or(&[][..], |names| &names.value.general_names);
        let uris = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        let addresses = names.iter().filter_map(|name| match name {
            GeneralName::DNSName(host) => Some((*host).to_owned()),
            GeneralName::IPAddress(bytes) => ip(bytes).map(|ip| ip.to_string()),
            _ => None,
        });
        Ok(Self {
            subject: Subject::of_uris(uris).ok_or("it names no process of a cluster")?,
            addresses: addresses.collect(),
            begins: moment(certificate.validity().not_before.timestamp()),
            expires: end(&certificate),
        })
    }

    /// Whom the certificates name that the other end of a connection has shown; `None` if it has shown none.
    pub(crate) fn shown(chain: Option<&[CertificateDer<'_>]>) -> io::Result<Option<Self>> {
        let first = chain.and_then(<[_]>::first);
        first.map(Self::of).transpose().map_err(refused)
    }

    /// How long its certificate is still valid.
    pub fn time_left(&self) -> Duration {
        let left = self.expires.duration_since(SystemTime::now());
        left.unwrap_or_default()
    }

    /// Whether its certificate ends within two weeks or a quarter of its life, whichever is less: somebody should have renewed it.
    pub fn ends_soon(&self) -> bool {
        const WEEKS: Duration = Duration::from_hours(14 * 24);
        self.time_left() < WEEKS.min(self.life() / 4)
    }

    /// How long its certificate is valid from its first to its last moment.
    pub(crate) fn life(&self) -> Duration {
        let life = self.expires.duration_since(self.begins);
        life.unwrap_or_default()
    }

    /// Whether it may claim to be reached at this host: it is named, or `connected` from there.
    pub fn may_claim(&self, host: &str, connected: Option<IpAddr>) -> bool {
        let ip = host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
        self.addresses.iter().any(|named| {
            named.eq_ignore_ascii_case(host) || ip.is_some_and(|ip| named.parse() == Ok(ip))
        }) || ip.is_some() && ip == connected.map(|ip| ip.to_canonical())
    }
}

/// The name that an authority's certificate gives it, and when it ends.
pub(crate) fn name_and_end(
    certificate: &CertificateDer<'_>,
) -> Result<(String, SystemTime), String> {
    let (_, certificate) = X509Certificate::from_der(certificate)
        .map_err(|error| format!("not a certificate: {error}"))?;
    let mut names = certificate.subject().iter_common_name();
    let name = names.next().and_then(|name| name.as_str().ok());
    Ok((name.unwrap_or_default().to_owned(), end(&certificate)))
}

fn end(certificate: &X509Certificate<'_>) -> SystemTime {
    moment(certificate.validity().not_after.timestamp())
}

fn moment(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// Whether a key is that of a certificate in PEM.
pub(crate) fn is_key_of(key: &KeyPair, certificate: &str) -> bool {
    let Ok(certificate) = CertificateDer::from_pem_slice(certificate.as_bytes()) else {
        return false;
    };
    X509Certificate::from_der(&certificate).is_ok_and(|(_, certificate)| {
        let public = &certificate.public_key().subject_public_key;
        *public.data == *key.public_key_raw()
    })
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(uris: &[&str]) -> Option<Subject> {
        Subject::of_uris(uris.iter().copied())
    }

    #[test]
    fn a_subject_is_read_back_from_its_uris() {
        let mut subject = Subject::new(Role::Worker, "gpu-7".parse().unwrap());
        for limited in [false, true] {
            subject.max_weight = limited.then_some(ByteSize(5));
            subject.node = limited.then(|| "rack-1".parse().unwrap());
            let name = |name: &str| limited.then(|| name.parse().unwrap());
            subject.place = Place {
                zone: name("a"),
                group: name("r1"),
                pool: name("gpu"),
            };
            let uris = subject.to_uris();
            let uris: Vec<&str> = uris.iter().map(String::as_str).collect();
            assert_eq!(of(&uris).as_ref(), Some(&subject));
        }
    }

    #[test]
    fn names_that_are_unclear_are_nobodys() {
        assert_eq!(of(&[]), None);
        assert_eq!(of(&["https://example.org"]), None);
        assert_eq!(of(&["weir:king:a"]), None);
        assert_eq!(of(&["weir:worker:"]), None);
        assert_eq!(of(&["weir:worker:a", "weir:admin:b"]), None);
        assert_eq!(of(&["weir:worker:a", "weir:max-weight:many"]), None);
        assert_eq!(of(&["weir:worker:a", "weir:node:no node"]), None);
        for limit in ["weir:zone:a/b", "weir:group:", "weir:pool:no pool"] {
            assert_eq!(of(&["weir:worker:a", limit]), None);
        }
    }

    #[test]
    fn a_certificate_ends_soon_in_the_last_quarter_of_its_life_and_in_its_last_weeks() {
        let ends_soon = |life: u64, left: u64| {
            let hour = Duration::from_hours(1);
            let expires = SystemTime::now() + hour * left as u32;
            let peer = Peer {
                subject: Subject::new(Role::Worker, "a".parse().unwrap()),
                addresses: Vec::new(),
                begins: expires - hour * life as u32,
                expires,
            };
            peer.ends_soon()
        };
        assert!(!ends_soon(24, 7) && ends_soon(24, 5) && ends_soon(24, 0));
        assert!(!ends_soon(24 * 365, 24 * 15) && ends_soon(24 * 365, 24 * 13));
    }

    #[test]
    fn an_address_may_be_claimed_that_is_named_or_connected_from() {
        let peer = Peer {
            subject: Subject::new(Role::Worker, "a".parse().unwrap()),
            addresses: vec!["gpu-7.lab".to_owned(), "10.0.0.7".to_owned()],
            begins: SystemTime::UNIX_EPOCH,
            expires: SystemTime::UNIX_EPOCH,
        };
        let from = Some("::ffff:10.0.0.8".parse().unwrap());
        for (host, may) in [
            ("GPU-7.lab", true),
            ("10.0.0.7", true),
            ("::ffff:10.0.0.7", true),
            ("10.0.0.8", true),
            ("10.0.0.9", false),
            ("gpu-8.lab", false),
        ] {
            assert_eq!(peer.may_claim(host, from), may, "{host}");
        }
        assert!(!peer.may_claim("10.0.0.8", None));
    }
}
