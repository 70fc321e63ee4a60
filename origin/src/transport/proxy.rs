//! Which requests go through a proxy: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, in capitals or not.

use std::net::IpAddr;

use http::Uri;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};

use super::environment::Environment;

/// The proxies of a process.
pub(crate) struct Proxies {
    matcher: Matcher,
    exempt: Vec<Exempt>,
}

/// An entry of `NO_PROXY`: hosts, and perhaps one port of theirs.
struct Exempt {
    hosts: Hosts,
    port: Option<u16>,
}

enum Hosts {
    All,
    /// An address, and how many of its bits count.
    Network(IpAddr, u8),
    /// A name in lower case, and whether it stands for itself beside all below it.
    Domain(String, bool),
}

impl Proxies {
    /// The proxies that variables name. Where both spellings of one are set, the capitals count.
    pub(crate) fn of(environment: &Environment) -> Self {
        let variable = |upper, lower| {
            let value = environment.first(&[upper, lower]);
            value.unwrap_or_default().to_owned()
        };
        // A web server sets this one, and HTTP_PROXY is what somebody has sent as a header `Proxy` then.
        if environment.get("REQUEST_METHOD").is_some() {
            return Self::none();
        }
        let matcher = Matcher::builder()
            .all(variable("ALL_PROXY", "all_proxy"))
            .http(variable("HTTP_PROXY", "http_proxy"))
            .https(variable("HTTPS_PROXY", "https_proxy"))
            .build();
        let exempt = variable("NO_PROXY", "no_proxy")
            .split(|c: char| c == ',' || c.is_whitespace())
            .filter_map(Exempt::parse)
            .collect();
        Self { matcher, exempt }
    }

    /// No proxy at all.
    pub(crate) fn none() -> Self {
        Self {
            matcher: Matcher::builder().build(),
            exempt: Vec::new(),
        }
    }

    /// The proxy for a request to `uri`.
    pub(crate) fn intercept(&self, uri: &Uri) -> Option<Intercept> {
        let proxy = self.matcher.intercept(uri)?;
        let host = uri.host().unwrap_or_default();
        let port = uri.port_u16().or_else(|| match uri.scheme_str() {
            Some("https") => Some(443),
            Some("http") => Some(80),
            _ => None,
        });
        let is_exempt = self.exempt.iter().any(|entry| entry.holds(host, port));
        (!is_exempt).then_some(proxy)
    }
}

impl Exempt {
    fn parse(entry: &str) -> Option<Self> {
        if entry.is_empty() {
            return None;
        }
        // An IPv6 address without brackets has colons, and no port.
        if let Some(hosts) = network(entry) {
            return Some(Self { hosts, port: None });
        }
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (entry, None),
        };
        let hosts = match host {
            "*" => Hosts::All,
            host => network(host).or_else(|| domain(host))?,
        };
        Some(Self { hosts, port })
    }

    fn holds(&self, host: &str, port: Option<u16>) -> bool {
        if self.port.is_some() && self.port != port {
            return false;
        }
        match &self.hosts {
            Hosts::All => true,
            Hosts::Network(network, bits) => {
                address(host).is_some_and(|host| is_within(host, *network, *bits))
            }
            Hosts::Domain(domain, with_itself) => {
                let host = host.trim_end_matches('.').to_ascii_lowercase();
                match host.strip_suffix(domain.as_str()) {
                    Some("") => *with_itself,
                    Some(rest) => rest.ends_with('.'),
                    None => false,
                }
            }
        }
    }
}

/// `NAME`, `.NAME`, or `*.NAME` for what is below it alone.
fn domain(text: &str) -> Option<Hosts> {
    let name = text.trim_start_matches('*');
    let with_itself = name == text;
    let name = name.trim_start_matches('.').trim_end_matches('.');
    (!name.is_empty()).then(|| Hosts::Domain(name.to_ascii_lowercase(), with_itself))
}

/// An address, in brackets or not.
fn address(text: &str) -> Option<IpAddr> {
    let inner = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let address: IpAddr = inner.unwrap_or(text).parse().ok()?;
    Some(address.to_canonical())
}

/// `ADDRESS` or `ADDRESS/BITS`.
fn network(text: &str) -> Option<Hosts> {
    let (host, bits) = match text.split_once('/') {
        Some((host, bits)) => (host, Some(bits.parse().ok()?)),
        None => (text, None),
    };
    let address = address(host)?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.unwrap_or(most);
    (bits <= most).then_some(Hosts::Network(address, bits))
}

fn is_within(host: IpAddr, network: IpAddr, bits: u8) -> bool {
    let (host, network, width) = match (host, network) {
        (IpAddr::V4(host), IpAddr::V4(network)) => (
            u128::from(host.to_bits()),
            u128::from(network.to_bits()),
            32,
        ),
        (IpAddr::V6(host), IpAddr::V6(network)) => (host.to_bits(), network.to_bits(), 128),
        _ => return false,
    };
    (host ^ network)
        .checked_shr(u32::from(width - bits))
        .unwrap_or(0)
        == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn goes_through_proxy(no_proxy: &str, uri: &str) -> bool {
        let environment = Environment::of([
            ("HTTPS_PROXY", "http://proxy:3128"),
            ("http_proxy", "proxy:3128"),
            ("NO_PROXY", no_proxy),
        ]);
        let uri = uri.parse().unwrap();
        Proxies::of(&environment).intercept(&uri).is_some()
    }

    #[test]
    fn an_entry_exempts_the_hosts_that_it_names_and_no_others() {
        for (entry, exempt, others) in [
            (
                "*",
                &["http://a", "https://1.2.3.4:5", "http://[::1]:9"][..],
                &[][..],
            ),
            (
                "example.com",
                &["http://example.com", "https://b.s3.Example.com.:444"],
                &["http://badexample.com", "http://example.com.org"],
            ),
            (
                ".example.com",
                &["http://a.example.com", "http://example.com"],
                &["http://badexample.com"],
            ),
            (
                "*.example.com",
                &["http://a.example.com"],
                &["http://example.com"],
            ),
            (
                "10.0.0.0/8, 127.0.0.1",
                &["http://10.255.0.1:9000", "http://127.0.0.1:9"],
                &["http://11.0.0.1", "http://127.0.0.2", "http://ten"],
            ),
            (
                "minio:9000 [fd00::1]:8080",
                &["http://minio:9000", "http://[fd00::1]:8080"],
                &["http://minio:9001", "http://minio", "http://[fd00::1]"],
            ),
            ("host:443", &["https://host"], &["http://host"]),
            ("*:9000", &["http://any:9000"], &["http://any:9001"]),
            (
                "fd00::/8,::1",
                &["http://[fd12::7]", "https://[::1]:9"],
                &["http://[fe80::1]"],
            ),
            (
                "0.0.0.0/0",
                &["http://1.2.3.4"],
                &["http://a", "http://[::1]"],
            ),
            (
                ",, .,*x, a:b, 1.2.3.4/99, localhost",
                &["http://localhost:1"],
                &["http://a", "http://1.2.3.4"],
            ),
            ("", &[], &["http://127.0.0.1", "https://a"]),
        ] {
            for uri in exempt {
                assert!(!goes_through_proxy(entry, uri), "{entry:?} {uri}");
            }
            for uri in others {
                assert!(goes_through_proxy(entry, uri), "{entry:?} {uri}");
            }
        }
    }

    #[test]
    fn an_empty_variable_does_not_hide_the_other_spelling() {
        let uri = Uri::from_static("http://host/");
        let proxy = |variables: &[(&str, &str)]| {
            let environment = Environment::of(variables.iter().copied());
            let proxy = Proxies::of(&environment).intercept(&uri)?;
            Some(proxy.uri().to_string())
        };
        let both = [("HTTP_PROXY", ""), ("http_proxy", "http://p:1")];
        assert_eq!(proxy(&both).as_deref(), Some("http://p:1/"));
        let all = [("ALL_PROXY", "http://p:2"), ("HTTP_PROXY", " ")];
        assert_eq!(proxy(&all).as_deref(), Some("http://p:2/"));
        assert_eq!(proxy(&[("HTTP_PROXY", "")]), None);
        let web = [("HTTP_PROXY", "http://p:1"), ("REQUEST_METHOD", "GET")];
        assert_eq!(proxy(&web), None);
        let none = [
            ("http_proxy", "http://p:1"),
            ("NO_PROXY", ""),
            ("no_proxy", "*"),
        ];
        assert_eq!(proxy(&none), None);
    }
}
