//! The endpoints that an operator names, and AWS's own.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use url::Host;

use super::address::{self, Network};
use super::parse_host;

/// Domains in which AWS alone gives names.
const AWS_DOMAINS: [&str; 3] = [".amazonaws.com", ".amazonaws.com.cn", ".amazonaws.eu"];

/// What `--allow-endpoint` names: `HOST`, `HOST:PORT`, an address or a network in CIDR notation, `*.domain`, or `any`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AllowedEndpoint(Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// A host by this very name, whatever addresses it has.
    Host { name: String, port: Option<u16> },
    /// Hosts below a domain, which is kept with its dot. Not at special addresses.
    Domain(String),
    /// An address.
    Address { ip: IpAddr, port: Option<u16> },
    /// Addresses.
    Network(Network),
    /// All.
    Any,
}

impl FromStr for AllowedEndpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is no endpoint: write HOST, HOST:PORT, 10.0.0.0/8, *.example.com or any"
            )
        };
        let name = |host: &str| match parse_host(host.trim_end_matches('.')) {
            Some(Host::Domain(name)) => Some(name),
            _ => None,
        };
        if text == "any" {
            return Ok(Self(Kind::Any));
        }
        if let Some(domain) = text.strip_prefix("*.") {
            let domain = name(domain)
                .filter(|name| !name.contains('*'))
                .ok_or_else(wrong)?;
            return Ok(Self(Kind::Domain(format!(".{domain}"))));
        }
        if text.contains('/') {
            let network = Network::parse(text).ok_or_else(wrong)?;
            return Ok(Self(Kind::Network(network)));
        }
        let bare = text.parse::<IpAddr>().ok();
        let (host, port) = match (bare, text.rsplit_once(':')) {
            (None, Some((host, port))) if !text.ends_with(']') => {
                let port = port.parse().ok().filter(|port| *port != 0);
                (host, Some(port.ok_or_else(wrong)?))
            }
            _ => (text, None),
        };
        let host = host
            .strip_prefix('[')
            .map_or(host, |host| host.trim_end_matches(']'));
        if let Ok(ip) = host.parse::<IpAddr>() {
            let ip = address::plain(ip);
            return Ok(Self(Kind::Address { ip, port }));
        }
        match parse_host(host.trim_end_matches('.')) {
            Some(Host::Ipv4(ip)) => Ok(Self(Kind::Address {
                ip: ip.into(),
                port,
            })),
            Some(Host::Domain(name)) if !name.contains('*') => Ok(Self(Kind::Host { name, port })),
            _ => Err(wrong()),
        }
    }
}

impl TryFrom<String> for AllowedEndpoint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<AllowedEndpoint> for String {
    fn from(endpoint: AllowedEndpoint) -> Self {
        endpoint.to_string()
    }
}

impl fmt::Display for AllowedEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Host { name, port: None } => f.write_str(name),
            Kind::Host {
                name,
                port: Some(port),
            } => write!(f, "{name}:{port}"),
            Kind::Domain(domain) => write!(f, "*{domain}"),
            Kind::Address { ip, port: None } => write!(f, "{ip}"),
            Kind::Address {
                ip,
                port: Some(port),
            } => write!(f, "{}", std::net::SocketAddr::new(*ip, *port)),
            Kind::Network(network) => write!(f, "{network}"),
            Kind::Any => f.write_str("any"),
        }
    }
}

impl AllowedEndpoint {
    /// Whether it says of names nothing, but of their addresses.
    pub(super) fn is_address(&self) -> bool {
        matches!(self.0, Kind::Address { .. } | Kind::Network(_))
    }

    /// Whether it names this host.
    pub(super) fn names_host(&self, host: &str, to: u16) -> bool {
        match &self.0 {
            Kind::Host { name, port } => name == host && port.is_none_or(|port| port == to),
            Kind::Any => true,
            _ => false,
        }
    }

    /// Whether it names a domain that this host is in.
    pub(super) fn names_domain_of(&self, host: &str) -> bool {
        matches!(&self.0, Kind::Domain(domain) if host.ends_with(domain.as_str()))
    }

    /// Whether it names this address.
    pub(super) fn names_address(&self, address: IpAddr, to: u16) -> bool {
        match &self.0 {
            Kind::Address { ip, port } => *ip == address && port.is_none_or(|port| port == to),
            Kind::Network(network) => network.contains(address),
            Kind::Any => true,
            _ => false,
        }
    }
}

/// Whether a host is S3 itself. Not all of amazonaws.com is: customers have names for their load balancers, gateways and
/// machines there, whose owners see the requests.
pub(crate) fn is_aws_s3(host: &str) -> bool {
    let Some(name) = AWS_DOMAINS
        .iter()
        .find_map(|domain| host.strip_suffix(domain))
    else {
        return false;
    };
    // An endpoint of S3 inside a private network: ID.s3.REGION.vpce
    let name = name.strip_suffix(".vpce").unwrap_or(name);
    let mut labels = name.rsplit('.');
    let (last, before) = (labels.next().unwrap_or_default(), labels.next());
    match before {
        // REGION behind the service.
        Some("dualstack") => labels.next().is_some_and(is_service),
        Some(before) if is_service(before) => !is_service(last) || is_alone(last),
        _ => is_alone(last),
    }
}

/// A service of S3, in whose domains AWS alone answers. Object Lambda is none: it hands requests to a customer's program.
fn is_service(label: &str) -> bool {
    matches!(
        label,
        "s3" | "s3-fips"
            | "s3-accesspoint"
            | "s3-accesspoint-fips"
            | "s3-outposts"
            | "s3-accelerate"
    ) || label
        .strip_prefix("s3express-")
        .is_some_and(|zone| !zone.is_empty())
}

/// A service that is named without a region behind it: `s3`, `s3-accelerate`, or with it inside, `s3-eu-west-1`.
fn is_alone(label: &str) -> bool {
    let is_region = |text: &str| {
        let parts: Vec<&str> = text.split('-').collect();
        let ends_in_number = parts.last().is_some_and(|last| last.parse::<u8>().is_ok());
        parts.len() >= 3 && parts[0].len() == 2 && ends_in_number
    };
    matches!(label, "s3" | "s3-accelerate" | "s3-external-1")
        || label.strip_prefix("s3-fips-").is_some_and(is_region)
        || label.strip_prefix("s3-").is_some_and(is_region)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> AllowedEndpoint {
        text.parse().unwrap()
    }

    #[test]
    fn endpoints_are_hosts_addresses_networks_and_domains() {
        assert!(parse("Minio.").names_host("minio", 9000));
        assert!(parse("minio:9000").names_host("minio", 9000));
        assert!(!parse("minio:9000").names_host("minio", 9001));
        assert!(!parse("minio").names_host("my.minio", 9000));
        assert!(parse("*.example.com").names_domain_of("a.b.example.com"));
        assert!(!parse("*.example.com").names_domain_of("example.com"));
        assert!(!parse("*.example.com").names_domain_of("evilexample.com"));
        let ip = |text: &str| text.parse().unwrap();
        for same in [
            "127.0.0.1",
            "2130706433",
            "0x7f.1",
            "::ffff:127.0.0.1",
            "[::ffff:7f00:1]:80",
        ] {
            assert!(parse(same).names_address(ip("127.0.0.1"), 80), "{same}");
        }
        assert!(parse("[::1]:9000").names_address(ip("::1"), 9000));
        assert!(!parse("[::1]:9000").names_address(ip("::1"), 80));
        assert!(parse("::1").names_address(ip("::1"), 80));
        assert!(parse("10.0.0.0/8").names_address(ip("10.1.1.1"), 1));
        assert!(parse("any").names_address(ip("::1"), 1) && parse("any").names_host("x", 1));
        for bad in [
            "",
            "*",
            "*.",
            "http://minio:9000",
            "minio:",
            "minio:0",
            "minio:70000",
            "a b",
            "*.*.com",
            "10.0.0.0/40",
            "user@host",
        ] {
            assert!(bad.parse::<AllowedEndpoint>().is_err(), "{bad:?}");
        }
        for text in [
            "minio",
            "minio:9000",
            "*.example.com",
            "10.0.0.0/8",
            "127.0.0.1:80",
            "[::1]:80",
            "any",
        ] {
            assert_eq!(parse(text).to_string(), text);
        }
    }

    #[test]
    fn only_s3_itself_is_aws() {
        for host in [
            "s3.amazonaws.com",
            "b.s3.amazonaws.com",
            "b.s3.eu-west-1.amazonaws.com",
            "s3.dualstack.us-east-1.amazonaws.com",
            "b.s3-fips.dualstack.us-gov-west-1.amazonaws.com",
            "s3-us-west-2.amazonaws.com",
            "b.s3-accelerate.amazonaws.com",
            "b.s3-accelerate.dualstack.amazonaws.com",
            "ap-123.s3-accesspoint.us-east-1.amazonaws.com",
            "b--use1-az4--x-s3.s3express-use1-az4.us-east-1.amazonaws.com",
            "b.s3.cn-north-1.amazonaws.com.cn",
            "bucket.vpce-1a2b-3c.s3.us-east-1.vpce.amazonaws.com",
        ] {
            assert!(is_aws_s3(host), "{host}");
        }
        for host in [
            "amazonaws.com",
            "evilamazonaws.com",
            "s3.amazonaws.com.evil.com",
            "id.execute-api.us-east-1.amazonaws.com",
            "s3.x.execute-api.us-east-1.amazonaws.com",
            "ec2-1-2-3-4.compute-1.amazonaws.com",
            "ec2-1-2-3-4.eu-west-1.compute.amazonaws.com",
            "s3-1.us-east-1.elb.amazonaws.com",
            "s3.elb.us-east-1.amazonaws.com",
            "lambda-1.s3-object-lambda.us-east-1.amazonaws.com",
            "vpce-1.vpce-svc-2.us-east-1.vpce.amazonaws.com",
            "s3-evil.amazonaws.com",
            "s3-website-us-east-1.amazonaws.com",
            "",
        ] {
            assert!(!is_aws_s3(host), "{host}");
        }
    }
}
