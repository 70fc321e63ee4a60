//! What an HDFS URL names, and what a client must know of the cluster.
//!
//! `hdfs://nn:8020/dir` names a NameNode, `hdfs://cluster/dir` a name service whose NameNodes the options give. Readers
//! have no Hadoop configuration of their own: what they need is in the options, which the user who makes the dataset has
//! from [`with_environment`](super::OriginSpec::with_environment).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The port of a NameNode that is named without one.
pub(crate) const DEFAULT_PORT: u16 = 8020;
/// Most options, and the longest value.
const MAX_OPTIONS: usize = 64;
const MAX_VALUE: usize = 1024;

/// Which NameNodes a name service has: `dfs.ha.namenodes.SERVICE`.
pub(crate) const NAMENODES: &str = "dfs.ha.namenodes.";
/// Where one of them is: `dfs.namenode.rpc-address.SERVICE.ID`.
pub(crate) const RPC_ADDRESS: &str = "dfs.namenode.rpc-address.";
/// `simple` or `kerberos`.
pub(crate) const AUTHENTICATION: &str = "hadoop.security.authentication";

/// Longest wait for the answer of a NameNode, in milliseconds.
pub(crate) const RPC_TIMEOUT: &str = "ipc.client.rpc-timeout.ms";
/// Longest silence of a DataNode, in milliseconds.
pub(crate) const SOCKET_TIMEOUT: &str = "dfs.client.socket-timeout";
const PROTECTION: &str = "dfs.data.transfer.protection";
const USE_HOSTNAME: &str = "dfs.client.use.datanode.hostname";

/// Options of a client that are taken. Others are of no use to a reader, or could hold a secret.
const OPTIONS: [&str; 6] = [
    AUTHENTICATION,
    PROTECTION,
    USE_HOSTNAME,
    SOCKET_TIMEOUT,
    RPC_TIMEOUT,
    "dfs.user.home.dir.prefix",
];
/// The same with a name service behind them.
const OPTIONS_OF_SERVICE: [&str; 4] = [
    NAMENODES,
    RPC_ADDRESS,
    "dfs.client.failover.proxy.provider.",
    "dfs.client.failover.random.order.",
];

/// How a cluster is reached. Holds no secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HdfsOptions {
    /// Who reads, where the cluster believes what a client says. The user of the reading process when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Options of Hadoop's client, by their names in `hdfs-site.xml` and `core-site.xml`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, String>,
}

impl HdfsOptions {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self.user.is_none() && self.config.is_empty()
    }

    /// Whether an option of this name is taken.
    pub(crate) fn takes(name: &str) -> bool {
        OPTIONS.contains(&name)
            || OPTIONS_OF_SERVICE
                .iter()
                .any(|prefix| name.len() > prefix.len() && name.starts_with(prefix))
    }

    /// What is wrong with the options, and what to do.
    pub(crate) fn problem(&self) -> Option<(String, String)> {
        if let Some(user) = &self.user
            && (user.is_empty() || user.len() > MAX_VALUE || user.contains(char::is_control))
        {
            let remedy = "write a user's name, or leave it out".to_owned();
            return Some((format!("the user {user:?} is not valid"), remedy));
        }
        if self.config.len() > MAX_OPTIONS {
            return Some((
                format!("there are more than {MAX_OPTIONS} options"),
                "leave out those that a reader does not need".to_owned(),
            ));
        }
        for (name, value) in &self.config {
            if !Self::takes(name) {
                return Some((
                    format!("the option {name:?} is not one that Weir knows"),
                    format!(
                        "leave it out; known are {} and, with a name service behind them, {}",
                        OPTIONS.join(", "),
                        OPTIONS_OF_SERVICE.join(", ")
                    ),
                ));
            }
            if value.is_empty() || value.len() > MAX_VALUE || value.contains("${") {
                return Some((
                    format!("the value {value:?} of the option {name:?} is not valid"),
                    "write the value itself: variables are not replaced".to_owned(),
                ));
            }
        }
        None
    }

    /// What is wrong with a value, and what to write, for who declares it: the client takes what it does not know for
    /// something else, and says nothing.
    pub(crate) fn value_problem(&self) -> Option<(String, String)> {
        let words: [(&str, &[&str]); 3] = [
            (AUTHENTICATION, &["simple", "kerberos"]),
            (PROTECTION, &["authentication", "integrity", "privacy"]),
            (USE_HOSTNAME, &["true", "false"]),
        ];
        let wrong = |name: &str, value: &str, remedy: String| {
            let problem = format!("the value {value:?} of the option {name:?} is not valid");
            Some((problem, remedy))
        };
        for (name, known) in words {
            let Some(value) = self.config.get(name) else {
                continue;
            };
            let is_known = |word: &str| known.iter().any(|k| k.eq_ignore_ascii_case(word.trim()));
            let is_right = match name {
                PROTECTION => value.split(',').all(is_known),
                _ => is_known(value),
            };
            if !is_right {
                return wrong(name, value, format!("write {}", known.join(" or ")));
            }
        }
        for name in [RPC_TIMEOUT, SOCKET_TIMEOUT] {
            if let Some(value) = self
                .config
                .get(name)
                .filter(|value| milliseconds(value).is_none())
            {
                return wrong(name, value, "write milliseconds, as in 5000".to_owned());
            }
        }
        None
    }

    /// A deadline among the options; `None` if they say nothing, or none at all.
    pub(crate) fn deadline(&self, name: &str) -> Option<Duration> {
        self.config.get(name).and_then(|value| milliseconds(value))
    }

    /// Whether the cluster asks for Kerberos.
    pub(crate) fn is_secure(&self) -> bool {
        let set = self.config.get(AUTHENTICATION);
        set.is_some_and(|value| !value.eq_ignore_ascii_case("simple"))
    }

    /// The NameNodes of a name service, in the order of its ids; `None` when it is not one that the options know.
    pub(crate) fn namenodes(&self, service: &str) -> Option<Vec<String>> {
        let ids = self.config.get(&format!("{NAMENODES}{service}"))?;
        let address = |id: &str| {
            let name = format!("{RPC_ADDRESS}{service}.{}", id.trim());
            self.config.get(&name).cloned()
        };
        Some(ids.split(',').filter_map(address).collect())
    }
}

/// A time that is waited for; to wait without end is none.
pub(crate) fn milliseconds(value: &str) -> Option<Duration> {
    let value = value.trim().parse().ok().filter(|value| *value > 0)?;
    Some(Duration::from_millis(value))
}

/// Who is asked: a name service or a single NameNode, and the addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NameNodes {
    /// `cluster` or `nn:8020`.
    pub(crate) authority: String,
    /// `HOST:PORT` each.
    pub(crate) addresses: Vec<String>,
    pub(crate) is_service: bool,
}

impl NameNodes {
    /// Those that the authority of a URL means.
    pub(crate) fn of(authority: &str, options: &HdfsOptions) -> Result<Self, String> {
        if let Some(addresses) = options.namenodes(authority) {
            if addresses.is_empty() || !addresses.iter().all(|address| is_address(address)) {
                return Err(format!(
                    "the options give no addresses HOST:PORT ({RPC_ADDRESS}{authority}.ID) for the NameNodes of {authority:?}"
                ));
            }
            return Ok(Self {
                authority: authority.to_owned(),
                addresses,
                is_service: true,
            });
        }
        let address = authority.to_ascii_lowercase();
        let address = if has_port(&address) {
            address
        } else {
            format!("{address}:{DEFAULT_PORT}")
        };
        if !is_address(&address) {
            return Err(format!("{authority:?} is no address of a NameNode"));
        }
        Ok(Self {
            authority: address.clone(),
            addresses: vec![address],
            is_service: false,
        })
    }

    /// The same however it is written, and different for clusters that have the same name.
    pub(crate) fn location(&self, user: Option<&str>) -> String {
        let mut location = format!("hdfs://{}", self.authority);
        let mut mark = '?';
        if self.is_service {
            let mut addresses = self.addresses.clone();
            addresses.sort();
            location.push(mark);
            location += "namenodes=";
            location += &addresses.join(",");
            mark = '&';
        }
        if let Some(user) = user {
            location.push(mark);
            location += "user=";
            location += user;
        }
        location
    }
}

/// Splits `HOST:PORT`; the brackets of an IPv6 address stay.
pub(crate) fn split_address(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    Some((host, port))
}

fn has_port(authority: &str) -> bool {
    authority
        .rsplit_once(':')
        .is_some_and(|(_, port)| !port.ends_with(']'))
}

fn is_address(address: &str) -> bool {
    let Some((host, _)) = split_address(address) else {
        return false;
    };
    let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let is_v6 = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok());
    is_v6 || (!host.is_empty() && host.len() <= 255 && host.chars().all(is_host))
}

/// The directory of a URL as the beginning of keys: empty, or with a slash at its end.
pub(crate) fn directory(path: &str) -> Result<String, &'static str> {
    let mut directory = String::with_capacity(path.len() + 1);
    for part in path.split('/').filter(|part| !part.is_empty()) {
        if matches!(part, "." | "..") {
            return Err("the path has a component `.` or `..`");
        }
        if part.contains(['\0', ':']) {
            return Err("HDFS has no names with a colon or a zero byte");
        }
        directory += part;
        directory.push('/');
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use crate::spec::OriginSpec;

    use super::*;

    fn service(addresses: &[&str]) -> HdfsOptions {
        let ids: Vec<String> = (0..addresses.len()).map(|n| format!("nn{n}")).collect();
        let mut config = BTreeMap::from([(format!("{NAMENODES}ns"), ids.join(","))]);
        for (id, address) in ids.iter().zip(addresses) {
            config.insert(format!("{RPC_ADDRESS}ns.{id}"), (*address).to_owned());
        }
        HdfsOptions { user: None, config }
    }

    fn spec(url: &str, hdfs: HdfsOptions) -> OriginSpec {
        OriginSpec {
            hdfs,
            ..OriginSpec::parse("s3://bucket").unwrap()
        }
        .with_url(url)
    }

    #[test]
    fn a_namenode_has_one_location_however_it_is_written() {
        for url in [
            "hdfs://nn/data",
            "hdfs://NN:8020//data/",
            "hdfs://nn:8020/x",
        ] {
            let spec = OriginSpec::parse(url).unwrap();
            assert_eq!(spec.location(), "hdfs://nn:8020", "{url}");
        }
        let spec = OriginSpec::parse("hdfs://nn/data//a b%20/é").unwrap();
        assert_eq!(spec.prefix(), "data/a b%20/é/");
        assert_eq!(OriginSpec::parse("hdfs://nn").unwrap().prefix(), "");
        let v6 = OriginSpec::parse("hdfs://[::1]/x").unwrap();
        assert_eq!(v6.location(), "hdfs://[::1]:8020");
    }

    #[test]
    fn clusters_of_one_name_and_users_are_told_apart() {
        let one = spec("hdfs://ns/data", service(&["b:8020", "a:8020"]));
        one.validate().unwrap();
        assert_eq!(one.location(), "hdfs://ns?namenodes=a:8020,b:8020");
        let turned = spec("hdfs://ns/data", service(&["a:8020", "b:8020"]));
        assert_eq!(turned.id(), one.id());
        let other = spec("hdfs://ns/data", service(&["c:8020", "d:8020"]));
        assert_ne!(other.id(), one.id());
        let mut alice = one.clone();
        alice.hdfs.user = Some("alice".to_owned());
        assert_ne!(alice.id(), one.id());
    }

    #[test]
    fn values_that_a_client_would_take_for_others_are_not_declared() {
        let of = |name: &str, value: &str| {
            let mut hdfs = HdfsOptions::default();
            hdfs.config.insert(name.to_owned(), value.to_owned());
            spec("hdfs://nn/", hdfs)
        };
        for (name, right, wrong) in [
            (AUTHENTICATION, "Kerberos", "kerberoz"),
            (PROTECTION, "privacy, integrity", "private"),
            (USE_HOSTNAME, "true", "yes"),
            (SOCKET_TIMEOUT, "60000", "60s"),
            (RPC_TIMEOUT, "1", "0"),
            (RPC_TIMEOUT, "5000", "-1"),
        ] {
            of(name, right).validate_declared().unwrap();
            let error = of(name, wrong).validate_declared().unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(wrong), "{error}");
            assert!(error.contains("; write "), "{error}");
            // A dataset that has it already stays readable.
            of(name, wrong).validate().unwrap();
        }
    }

    #[test]
    fn wrong_urls_and_options_are_refused_with_a_remedy() {
        for url in [
            "hdfs://",
            "hdfs:///data",
            "hdfs://a b/",
            "hdfs://user@nn/x",
            "hdfs://nn:0/x",
            "hdfs://nn:x/x",
            "hdfs://nn/a/../b",
            "hdfs://nn/a:b",
        ] {
            let error = OriginSpec::parse(url).unwrap_err().to_string();
            assert!(error.contains("; "), "{url}: {error}");
        }
        let mut options = HdfsOptions::default();
        let secret = "hadoop.http.authentication.signature.secret";
        options.config.insert(secret.to_owned(), "x".to_owned());
        let error = spec("hdfs://nn/", options).validate().unwrap_err();
        assert!(error.to_string().contains(secret), "{error}");
        let unset = spec("hdfs://ns/", service(&["${host}:8020"]));
        assert!(
            unset
                .validate()
                .unwrap_err()
                .to_string()
                .contains("${host}")
        );
        let empty = spec("hdfs://ns/", service(&[]));
        assert!(empty.validate().is_err());
        let elsewhere = spec("s3://bucket", service(&["a:1"])).validate();
        assert!(elsewhere.unwrap_err().to_string().contains("hdfs://"));
    }
}
