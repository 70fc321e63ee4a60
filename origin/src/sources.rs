//! Which sources a process may read, and where its credentials may go.
//!
//! A master and its workers read what a dataset names, and whoever may make a dataset names it: without a limit they
//! would read any file and any address that they can reach, with their own keys. So a process of a cluster has a
//! [`SourcePolicy`]. Directories are read only below those that it allows; endpoints only where neither their name nor
//! the addresses that a connection is made to are refused; and requests are signed only for endpoints that the keys are
//! meant for. Each process checks for itself, whatever another one has allowed.
//!
//! Credentials that a source names come from elsewhere ([`SourcePolicy::with_credentials`]), and say themselves which
//! services they are for.
//!
//! A mount with its own cache reads what its user names, and has no limits ([`SourcePolicy::unlimited`]).

use std::net::{IpAddr, SocketAddr};
use std::path::{Component, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use serde::{Deserialize, Serialize};
use url::{Host, Url};
use weir_core::LogLimitByKey;

use crate::credential::{CredentialSource, Named};
use crate::error::OriginError;
use crate::file::Root;
use crate::origin::Origin;
use crate::spec::hdfs::NameNodes;
use crate::spec::stores::{Dialect, is_azure, is_gcs, is_oss};
use crate::spec::{Addressing, OriginSpec, Place};

pub(crate) mod address;
mod endpoint;

use address::Special;
pub use endpoint::AllowedEndpoint;
pub(crate) use endpoint::is_aws_s3;

/// The same refusal is logged once in so long.
const LOG_AGAIN: Duration = Duration::from_mins(1);
/// Refusals that are remembered for that: callers may name any source.
const MAX_LOGGED: usize = 256;

/// Which sources a process may read. The default is that of a process that was told of none: AWS, and endpoints that
/// are elsewhere on the network, without a signature.
#[derive(Clone, Debug)]
pub struct SourcePolicy {
    limits: Option<Arc<Limits>>,
    /// Who is asked for credentials that sources name.
    credentials: Option<Arc<dyn CredentialSource>>,
    /// What stands for all sources in a simulation.
    simulation: Option<Simulation>,
}

/// Gives the origin that stands for a source.
#[derive(Clone)]
struct Simulation(Arc<dyn Fn(&OriginSpec) -> Arc<dyn Origin> + Send + Sync>);

impl std::fmt::Debug for Simulation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Simulation")
    }
}

/// A directory below which sources may lie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AllowedDir(PathBuf);

impl TryFrom<String> for AllowedDir {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<AllowedDir> for String {
    fn from(dir: AllowedDir) -> Self {
        dir.0.to_string_lossy().into_owned() // it was made from text
    }
}

impl FromStr for AllowedDir {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = PathBuf::from(text.strip_prefix("file://").unwrap_or(text));
        let is_plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
        if !path.is_absolute() || !path.components().all(is_plain) {
            return Err("write an absolute directory without `..`, for example /data".to_owned());
        }
        Ok(Self(path))
    }
}

#[derive(Debug)]
struct Limits {
    /// The command that runs, in messages: `weir worker`.
    process: &'static str,
    /// The widest first.
    dirs: Arc<[PathBuf]>,
    endpoints: Vec<AllowedEndpoint>,
    /// By what was said.
    logged: LogLimitByKey<String>,
}

impl Default for SourcePolicy {
    fn default() -> Self {
        Self::of("this process", Vec::new(), Vec::new())
    }
}

impl SourcePolicy {
    /// The policy of a process whose own user names what it reads.
    pub fn unlimited() -> Self {
        Self {
            limits: None,
            credentials: None,
            simulation: None,
        }
    }

    /// For simulations: `open` gives what stands for a source, whatever that is.
    pub fn simulated(
        open: impl Fn(&OriginSpec) -> Arc<dyn Origin> + Send + Sync + 'static,
    ) -> Self {
        Self {
            simulation: Some(Simulation(Arc::new(open))),
            ..Self::unlimited()
        }
    }

    /// What stands for a source in a simulation; `None` where there is none.
    pub(crate) fn open_simulated(&self, spec: &OriginSpec) -> Option<Arc<dyn Origin>> {
        let Simulation(open) = self.simulation.as_ref()?;
        Some(open(spec))
    }

    /// The same, with somebody who is asked for the credentials that sources name.
    #[must_use]
    pub fn with_credentials(self, source: Arc<dyn CredentialSource>) -> Self {
        Self {
            credentials: Some(source),
            ..self
        }
    }

    /// The credentials that a source names, if it does. `target` is the origin in messages.
    pub(crate) fn named(
        &self,
        spec: &OriginSpec,
        target: &Arc<str>,
    ) -> Result<Option<Named>, OriginError> {
        let Some(name) = spec.credentials_name()? else {
            return Ok(None);
        };
        let Some(source) = &self.credentials else {
            return Err(OriginError::NotAllowed {
                target: target.clone(),
                problem: format!("it names the credentials {name}, and this process is given none"),
                remedy: "read it through the workers of its cluster".to_owned(),
            });
        };
        let (source, target) = (source.clone(), target.clone());
        Ok(Some(Named::new(name, spec, source, target)))
    }

    /// The policy of a process that reads what others name. `process` is its command in messages: `weir worker`. With
    /// any `endpoints`, others than those are refused, except for AWS's own and that of the process's environment.
    pub fn of(
        process: &'static str,
        dirs: Vec<AllowedDir>,
        endpoints: Vec<AllowedEndpoint>,
    ) -> Self {
        let mut dirs: Vec<PathBuf> = dirs.into_iter().map(|dir| dir.0).collect();
        dirs.sort_by_key(|dir| dir.components().count());
        Self {
            limits: Some(Arc::new(Limits {
                process,
                dirs: dirs.into(),
                endpoints,
                logged: LogLimitByKey::new(MAX_LOGGED, LOG_AGAIN),
            })),
            credentials: None,
            simulation: None,
        }
    }

    /// Checks what can be told of a source without asking anybody: its directory's name, or its endpoint's.
    pub fn check(&self, spec: &OriginSpec) -> Result<(), OriginError> {
        match spec.place()? {
            Place::S3 { .. }
            | Place::Hdfs { .. }
            | Place::Gcs { .. }
            | Place::Azure { .. }
            | Place::Web(_) => self.reach(spec).map(drop),
            Place::File { .. } => Ok(()), // a name tells nothing, links may lead anywhere
        }
    }

    /// Where the files of a directory may be opened.
    pub(crate) fn root(&self, dir: PathBuf) -> Root {
        match &self.limits {
            None => Root::anywhere(dir),
            Some(limits) => Root::below(limits.dirs.clone(), dir),
        }
    }

    /// The error for a directory that is not below an allowed one.
    pub(crate) fn refuse_dir(&self, describe: &Arc<str>) -> OriginError {
        let process = self
            .limits
            .as_ref()
            .map_or("this process", |limits| limits.process);
        let refused = Forbidden {
            problem: format!("this directory is not below one that `{process}` allows"),
            remedy: format!(
                "start `{process}` with --allow-file DIR if datasets may show the files below DIR"
            ),
        };
        if let Some(limits) = &self.limits {
            limits.log(describe, &refused);
        }
        refused.of(describe.clone())
    }

    /// What requests to a bucket may do. Refused here is what an address cannot make right any more.
    pub(crate) fn reach(&self, spec: &OriginSpec) -> Result<Reach, OriginError> {
        self.reach_with(spec, || own_endpoint(spec))
    }

    fn reach_with(
        &self,
        spec: &OriginSpec,
        own: impl FnOnce() -> Option<Url>,
    ) -> Result<Reach, OriginError> {
        let Some(limits) = &self.limits else {
            return Ok(Reach(None));
        };
        let named = || spec.endpoint.as_deref().map(|url| spec.endpoint_url(url));
        let mut bucket_behind = None;
        let (origin, endpoint, is_service): (_, _, IsService) = match spec.place()? {
            Place::File { .. } => return Ok(Reach(None)),
            Place::Hdfs { namenodes, .. } => return reach_of_hdfs(spec, limits, &namenodes),
            Place::S3 {
                dialect: Dialect::S3,
                bucket,
                ..
            } => {
                let is_virtual = spec.addressing == Addressing::Virtual;
                bucket_behind = is_virtual.then_some(bucket);
                (format!("s3://{bucket}"), named().transpose()?, is_aws_s3)
            }
            Place::S3 { bucket, .. } => {
                let is_virtual = spec.addressing != Addressing::Path;
                bucket_behind = is_virtual.then_some(bucket);
                let endpoint = spec.oss_endpoint()?;
                (format!("oss://{bucket}"), Some(endpoint), is_oss)
            }
            Place::Gcs { bucket, .. } => (format!("gs://{bucket}"), named().transpose()?, is_gcs),
            Place::Azure { container, .. } => {
                let endpoint = spec.azure_endpoint()?;
                (format!("az://{container}"), Some(endpoint), is_azure)
            }
            Place::Web(web) => (spec.place_of_location(), Some(web.server), |_| false),
        };
        let bucket_host = bucket_behind.and_then(|bucket| {
            let host = endpoint.as_ref()?.host_str()?;
            let behind = format!("{bucket}.{host}").to_ascii_lowercase();
            Some((behind, host.to_owned()))
        });
        // Nothing that could be signed is asked of a web server.
        let is_signed = !spec.anonymous && !matches!(spec.place()?, Place::Web(_));
        let own = endpoint
            .as_ref()
            .and_then(|endpoint| own().filter(|own| own == endpoint));
        let reach = Bounds {
            limits: limits.clone(),
            origin: origin.into(),
            bucket_host,
            own,
            is_service,
        };
        if let Some(endpoint) = &endpoint {
            let uri = endpoint.as_str().parse::<Uri>().map_err(|_| {
                OriginError::config(spec.url.as_str(), "the endpoint is no address", "check it")
            })?;
            // Which addresses the name has is seen when a connection is made.
            reach
                .check_name(&uri, false)
                .map_err(|e| e.of(reach.origin.clone()))?;
            // Those that it names are not this process's.
            if is_signed && spec.credentials.is_none() {
                reach
                    .check_signature(&uri)
                    .map_err(|e| e.of(reach.origin.clone()))?;
            }
        }
        Ok(Reach(Some(Arc::new(reach))))
    }
}

/// What connections to NameNodes may do. Their DataNodes are checked as they are named.
fn reach_of_hdfs(
    spec: &OriginSpec,
    limits: &Arc<Limits>,
    namenodes: &NameNodes,
) -> Result<Reach, OriginError> {
    let reach = Bounds {
        limits: limits.clone(),
        origin: format!("hdfs://{}", namenodes.authority).into(),
        bucket_host: None,
        own: None,
        is_service: |_| false,
    };
    let refused = |error: Forbidden| error.of(reach.origin.clone());
    for address in &namenodes.addresses {
        let uri = hdfs_uri(address).ok_or_else(|| {
            OriginError::config(spec.url.as_str(), "the NameNode is no address", "check it")
        })?;
        reach.check_name(&uri, false).map_err(refused)?;
        // Those that it names are not this process's.
        if spec.hdfs.is_secure() && spec.credentials.is_none() {
            reach.check_kerberos(&uri).map_err(refused)?;
        }
    }
    Ok(Reach(Some(Arc::new(reach))))
}

/// The address of a NameNode or DataNode, `HOST:PORT`, as what is checked.
pub(crate) fn hdfs_uri(address: &str) -> Option<Uri> {
    format!("hdfs://{address}").parse().ok()
}

/// The endpoint that this process's own environment, or the profile that the spec names, has for S3.
fn own_endpoint(spec: &OriginSpec) -> Option<Url> {
    let bare = OriginSpec {
        endpoint: None,
        ..spec.clone()
    };
    let own = bare.with_environment().ok()?.endpoint?;
    spec.endpoint_url(&own).ok()
}

/// Why a source may not be read.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{problem}")]
pub(crate) struct Forbidden {
    problem: String,
    remedy: String,
}

impl Forbidden {
    /// The error for the caller.
    pub(crate) fn of(self, target: Arc<str>) -> OriginError {
        OriginError::NotAllowed {
            target,
            problem: self.problem,
            remedy: self.remedy,
        }
    }
}

impl Limits {
    /// Tells the operator, but not each time that a reader tries again.
    fn log(&self, origin: &str, refused: &Forbidden) {
        let message = format!("{origin}: {}", refused.problem);
        let Some(left_out) = self.logged.line(message) else {
            return;
        };
        tracing::warn!(
            origin,
            left_out,
            "a source was refused: {}; {}",
            refused.problem,
            refused.remedy
        );
    }
}

/// What the requests of one origin may do; without a limit where the process's own user names the origin.
#[derive(Clone, Debug)]
pub(crate) struct Reach(Option<Arc<Bounds>>);

#[derive(Debug)]
struct Bounds {
    limits: Arc<Limits>,
    /// In messages.
    origin: Arc<str>,
    /// The endpoint's host behind the bucket's name, which counts as the endpoint's, and that.
    bucket_host: Option<(String, String)>,
    /// The endpoint, if the process's own environment names it.
    own: Option<Url>,
    /// Whether a host is that of the service itself.
    is_service: IsService,
}

/// Tells the hosts in which a service alone answers.
type IsService = fn(&str) -> bool;

/// What is known of a host by its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Standing {
    /// The operator names it: it may have any address.
    Named,
    /// It is the store's own, or below a domain that the operator names: its addresses must not be special ones.
    Known,
    /// Nobody names it.
    Other,
}

impl Reach {
    /// Requests that may go anywhere: to services that give this process its credentials.
    pub(crate) fn anywhere() -> Self {
        Self(None)
    }

    /// Checks where a request goes, by name; a host that is an address is checked as one. Behind a proxy nobody here
    /// sees the addresses, so that the name must do.
    pub(crate) fn check_name(&self, uri: &Uri, behind_proxy: bool) -> Result<(), Forbidden> {
        match &self.0 {
            None => Ok(()),
            Some(bounds) => bounds.check_name(uri, behind_proxy),
        }
    }

    /// Those of a host's addresses that a connection for `uri` may be made to; an error when none is.
    pub(crate) fn admit(
        &self,
        uri: &Uri,
        addresses: Vec<SocketAddr>,
    ) -> Result<Vec<SocketAddr>, Forbidden> {
        self.those_that(addresses, |bounds, address| {
            bounds.check_address(uri, address)
        })
    }

    /// Whether the operator names `uri`'s host, or one of its addresses: then where it leads is meant, too.
    pub(crate) fn vouches_for(&self, uri: &Uri, addresses: &[SocketAddr]) -> bool {
        let Some(bounds) = &self.0 else {
            return true;
        };
        let named = |address: &SocketAddr| {
            let ip = address::plain(address.ip());
            let endpoints = &bounds.limits.endpoints;
            endpoints.iter().any(|e| e.names_address(ip, port(uri)))
        };
        bounds.standing(uri, &Bounds::host(uri)) == Standing::Named || addresses.iter().any(named)
    }

    /// Those of a host's addresses that may be connected to because a service named the host, one that nobody vouches
    /// for; an error when none is.
    pub(crate) fn admit_named_by_other(
        &self,
        uri: &Uri,
        addresses: Vec<SocketAddr>,
    ) -> Result<Vec<SocketAddr>, Forbidden> {
        self.those_that(addresses, |bounds, address| {
            let ip = address::plain(address);
            let endpoints = &bounds.limits.endpoints;
            let is_named = endpoints.iter().any(|e| e.names_address(ip, port(uri)));
            match address::special(ip).filter(|_| !is_named) {
                None => Ok(()),
                Some(special) => Err(bounds.special(uri, ip, special)),
            }
        })
    }

    /// Those of a host's addresses that `check` admits; its last error when that is none.
    fn those_that(
        &self,
        mut addresses: Vec<SocketAddr>,
        check: impl Fn(&Bounds, IpAddr) -> Result<(), Forbidden>,
    ) -> Result<Vec<SocketAddr>, Forbidden> {
        let Some(bounds) = &self.0 else {
            return Ok(addresses);
        };
        let mut refused = None;
        addresses.retain(|address| match check(bounds, address.ip()) {
            Ok(()) => true,
            Err(error) => {
                refused = Some(error);
                false
            }
        });
        match refused {
            Some(refused) if addresses.is_empty() => Err(bounds.forbid(refused)),
            _ => Ok(addresses),
        }
    }

    /// Whether a request to `uri` may carry a signature, and with it a session token.
    pub(crate) fn check_signature(&self, uri: &Uri) -> Result<(), Forbidden> {
        match &self.0 {
            None => Ok(()),
            Some(bounds) => bounds.check_signature(uri),
        }
    }
}

impl Bounds {
    fn check_name(&self, uri: &Uri, behind_proxy: bool) -> Result<(), Forbidden> {
        let host = Self::host(uri);
        if let Ok(ip) = host.parse::<IpAddr>() {
            return self.check_address(uri, ip).map_err(|e| self.forbid(e));
        }
        let is_local = host == "localhost" || host.ends_with(".localhost");
        if behind_proxy && is_local {
            let loopback = IpAddr::from([127, 0, 0, 1]);
            return self
                .check_address(uri, loopback)
                .map_err(|e| self.forbid(e));
        }
        let by_address = self
            .limits
            .endpoints
            .iter()
            .any(AllowedEndpoint::is_address);
        let is_open = self.limits.endpoints.is_empty() || (by_address && !behind_proxy);
        if self.standing(uri, &host) == Standing::Other && !is_open {
            return Err(self.forbid(self.not_named(uri)));
        }
        Ok(())
    }

    /// Checks an address that a connection for `uri` is made to.
    fn check_address(&self, uri: &Uri, ip: IpAddr) -> Result<(), Forbidden> {
        let ip = address::plain(ip);
        let port = port(uri);
        let names_it = |endpoint: &AllowedEndpoint| endpoint.names_address(ip, port);
        if self.limits.endpoints.iter().any(names_it) {
            return Ok(());
        }
        let standing = self.standing(uri, &Self::host(uri));
        match (standing, address::special(ip)) {
            (Standing::Named, _) | (Standing::Known, None) => Ok(()),
            (_, Some(special)) => Err(self.special(uri, ip, special)),
            (Standing::Other, None) if self.limits.endpoints.is_empty() => Ok(()),
            (Standing::Other, None) => Err(self.not_named(uri)),
        }
    }

    fn check_signature(&self, uri: &Uri) -> Result<(), Forbidden> {
        // With any endpoint named, connections are made to named ones alone.
        let is_meant = !self.limits.endpoints.is_empty()
            || self.standing(uri, &Self::host(uri)) != Standing::Other;
        if is_meant {
            return Ok(());
        }
        let process = self.limits.process;
        let (shown, name) = (shown(uri), shown_host(uri));
        Err(self.forbid(Forbidden {
            problem: format!("the credentials of `{process}` are not meant for the endpoint {shown}"),
            remedy: format!(
                "start `{process}` with --allow-endpoint {name} or AWS_ENDPOINT_URL={shown}, or make the dataset with --anonymous"
            ),
        }))
    }

    /// Whether the process's Kerberos credentials may be shown to a NameNode.
    fn check_kerberos(&self, uri: &Uri) -> Result<(), Forbidden> {
        let is_meant = !self.limits.endpoints.is_empty()
            || self.standing(uri, &Self::host(uri)) != Standing::Other;
        if is_meant {
            return Ok(());
        }
        let (process, host) = (self.limits.process, shown_host(uri));
        Err(self.forbid(Forbidden {
            problem: format!("the Kerberos credentials of `{process}` are not meant for {host}"),
            remedy: format!("start `{process}` with --allow-endpoint {host} if they are"),
        }))
    }

    /// The host of a request, as names are compared.
    fn host(uri: &Uri) -> String {
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host.trim_end_matches('.').to_ascii_lowercase()
    }

    fn standing(&self, uri: &Uri, host: &str) -> Standing {
        let is_service = uri.scheme_str() == Some("https") && (self.is_service)(host);
        let host = match &self.bucket_host {
            Some((behind, endpoint)) if behind == host => endpoint,
            _ => host,
        };
        let is_own = |own: &Url| {
            own.host_str()
                .is_some_and(|own| own.trim_matches(['[', ']']) == host)
                && uri.scheme_str() == Some(own.scheme())
                && own.port_or_known_default() == Some(port(uri))
        };
        let endpoints = &self.limits.endpoints;
        let is_named = |endpoint: &AllowedEndpoint| endpoint.names_host(host, port(uri));
        if self.own.as_ref().is_some_and(is_own) || endpoints.iter().any(is_named) {
            Standing::Named
        } else if is_service
            || endpoints
                .iter()
                .any(|endpoint| endpoint.names_domain_of(host))
        {
            Standing::Known
        } else {
            Standing::Other
        }
    }

    fn special(&self, uri: &Uri, ip: IpAddr, special: Special) -> Forbidden {
        let (process, host) = (self.limits.process, shown_host(uri));
        Forbidden {
            problem: format!(
                "the endpoint {host} is at {ip}, {special}, from which `{process}` does not read unless that is allowed"
            ),
            remedy: format!("start `{process}` with --allow-endpoint {host} if it is meant"),
        }
    }

    fn not_named(&self, uri: &Uri) -> Forbidden {
        let (process, host) = (self.limits.process, shown_host(uri));
        Forbidden {
            problem: format!(
                "the endpoint {host} is neither a known store's own nor one that `{process}` allows"
            ),
            remedy: format!("start `{process}` with --allow-endpoint {host} too if it is meant"),
        }
    }

    fn forbid(&self, refused: Forbidden) -> Forbidden {
        self.limits.log(&self.origin, &refused);
        refused
    }
}

/// The port of a request.
fn port(uri: &Uri) -> u16 {
    let usual = if uri.scheme_str() == Some("https") {
        443
    } else {
        80
    };
    uri.port_u16().unwrap_or(usual)
}

/// An endpoint in messages: never its user, path or query.
fn shown(uri: &Uri) -> String {
    format!(
        "{}://{}",
        uri.scheme_str().unwrap_or("http"),
        shown_host(uri)
    )
}

fn shown_host(uri: &Uri) -> String {
    let host = uri.host().unwrap_or_default();
    match uri.port_u16() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Reads a host as URLs do: `0x7f.1` is an address.
fn parse_host(text: &str) -> Option<Host> {
    Host::parse(text).ok()
}

#[cfg(test)]
mod tests;
