//! What a user names: the URL of an origin and how to reach it.
//!
//! The spec is stored by the master and travels to every reader, so it never holds a secret: credentials come from
//! the environment, the profile files or the metadata service of the process that reads, or the spec names some that the
//! master keeps. Its location decides the identity of blocks, so everything that can point a read at other data (URL and endpoint) is in the spec and is
//! never taken from a reader's environment; [`OriginSpec::with_environment`] puts it there once, for the user who
//! makes the dataset.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use url::Url;
use weir_core::dataset::nearest;
use weir_core::{CredentialName, OriginId};

use crate::error::OriginError;
use crate::s3::configuration::{Configuration, Service};
use crate::transport::environment::Environment;

mod hadoop;
pub(crate) mod hdfs;
mod secret_url;
pub(crate) mod source;
pub(crate) mod stores;
mod wire;

pub use hdfs::HdfsOptions;
use hdfs::NameNodes;
use stores::{Dialect, WebPlace};
pub use weir_core::dataset::Addressing;

/// Longest bucket name that is accepted, in bytes; S3 allows 63, old buckets had up to 255.
const MAX_BUCKET: usize = 255;

/// What URLs begin with.
const SCHEMES: [&str; 11] = [
    "s3", "gs", "az", "azure", "abfs", "abfss", "oss", "hdfs", "http", "https", "file",
];

/// What other programs' URLs begin with, for data that is read by one of [`SCHEMES`].
const OTHERS: [(&str, &str); 8] = [
    ("webhdfs", "hdfs"),
    ("swebhdfs", "hdfs"),
    ("viewfs", "hdfs"),
    ("s3a", "s3"),
    ("s3n", "s3"),
    ("gcs", "gs"),
    ("wasb", "abfss"),
    ("wasbs", "abfss"),
];

/// A service that stands for all of AWS's S3.
const AWS: &str = "https://s3.amazonaws.com";

/// Longest patience, in seconds.
const MAX_PATIENCE: u32 = 24 * 60 * 60;

/// Where a dataset's data lives. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OriginSpec {
    /// `s3://bucket/prefix`, `oss://…`, `gs://…`, `az://container/prefix`, `hdfs://namenode:port/dir` or `file:///dir`, taken
    /// literally: nothing in it is percent-decoded. Or `https://host/dir/`, which is decoded as web servers do.
    pub url: String,
    /// URL of an S3-compatible service; AWS when absent.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// Region of the bucket; `us-east-1` when nothing names one, corrected from the service's answer.
    #[serde(default)]
    pub region: Option<String>,
    /// How the bucket is put into a request's address.
    #[serde(default)]
    pub addressing: Addressing,
    /// Requests are not signed.
    #[serde(default)]
    pub anonymous: bool,
    /// Profile of the shared AWS configuration files.
    #[serde(default)]
    pub profile: Option<String>,
    /// Seconds for which a read waits for an origin that fails or is silent. When absent 30, and 600 for HDFS: a
    /// NameNode that is started again, or leaves SafeMode, takes minutes.
    #[serde(default)]
    pub patience_seconds: Option<u32>,
    /// How an HDFS cluster is reached.
    #[serde(default, skip_serializing_if = "HdfsOptions::is_empty")]
    pub hdfs: HdfsOptions,
    /// Name of credentials that the master keeps. Then no other ones are used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<String>,
}

/// The URL, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place<'a> {
    /// A bucket of a service that speaks S3's protocol, and the rest of the URL behind its slash.
    S3 {
        dialect: Dialect,
        bucket: &'a str,
        rest: &'a str,
    },
    /// A bucket of Google Cloud Storage.
    Gcs { bucket: &'a str, rest: &'a str },
    /// A container of Azure, and the account's host if the URL has it.
    Azure {
        container: &'a str,
        host: Option<&'a str>,
        rest: &'a str,
    },
    /// A directory of a web server.
    Web(WebPlace),
    /// An absolute directory without a trailing slash, but `/` itself.
    File { dir: String },
    /// A cluster, and the directory as the beginning of keys.
    Hdfs {
        namenodes: NameNodes,
        prefix: String,
    },
}

impl OriginSpec {
    /// A spec of `url` alone, with default options.
    pub fn parse(url: &str) -> Result<Self, OriginError> {
        let spec = Self {
            url: url.to_owned(),
            endpoint: None,
            region: None,
            addressing: Addressing::Auto,
            anonymous: false,
            profile: None,
            patience_seconds: None,
            hdfs: HdfsOptions::default(),
            credentials: None,
        };
        spec.validate()?;
        Ok(spec)
    }

    /// The same options for another place. Not checked.
    #[must_use]
    pub fn with_url(self, url: &str) -> Self {
        Self {
            url: url.to_owned(),
            ..self
        }
    }

    /// Checks the URL and the options; asks nobody.
    pub fn validate(&self) -> Result<(), OriginError> {
        self.check_no_secret()?;
        if let Some((problem, remedy)) = self.hdfs.problem() {
            return Err(self.wrong(problem, &remedy));
        }
        let place = self.place()?;
        if !matches!(place, Place::Hdfs { .. }) && !self.hdfs.is_empty() {
            return Err(self.wrong(
                "it has options of HDFS, but is none",
                "leave them out, or write hdfs://NAMENODE:PORT/dir",
            ));
        }
        self.check_credentials_name(&place)?;
        if let Some(endpoint) = &self.endpoint {
            self.check_fits(&place, "endpoint")?;
            self.endpoint_url(endpoint)?;
        }
        if self
            .patience_seconds
            .is_some_and(|seconds| !(1..=MAX_PATIENCE).contains(&seconds))
        {
            return Err(self.wrong(
                "the patience is not between one second and a day",
                "write for instance --patience 10m",
            ));
        }
        if let Some(region) = &self.region {
            let valid = !region.is_empty()
                && region
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
            if !valid {
                return Err(self.wrong(
                    format!("the region {region:?} is not valid"),
                    "write a name such as eu-central-1",
                ));
            }
        }
        Ok(())
    }

    /// [`Self::validate`], for who declares the origin: options that say nothing of its place were meant for another one.
    pub(crate) fn validate_declared(&self) -> Result<(), OriginError> {
        self.validate()?;
        if let Some((problem, remedy)) = self.hdfs.value_problem() {
            return Err(self.wrong(problem, &remedy));
        }
        let place = self.place()?;
        for (option, is_given) in [
            ("region", self.region.is_some()),
            ("addressing", self.addressing != Addressing::Auto),
            ("profile", self.profile.is_some()),
            ("anonymous", self.anonymous),
        ] {
            if is_given {
                self.check_fits(&place, option)?;
            }
        }
        Ok(())
    }

    /// Refuses an option that a place has no use for.
    fn check_fits(&self, place: &Place<'_>, option: &str) -> Result<(), OriginError> {
        let (what, fitting, instead): (_, &[&str], _) = match place {
            Place::S3 { .. } => return Ok(()),
            Place::Gcs { .. } => (
                "Google Cloud Storage",
                &["endpoint", "anonymous"],
                "name a bucket as s3://bucket",
            ),
            Place::Azure { .. } => (
                "Azure",
                &["endpoint", "anonymous"],
                "name a bucket as s3://bucket",
            ),
            Place::Web(_) => (
                "a web server",
                &["anonymous"],
                "write all of its address as https://host/dir/",
            ),
            Place::Hdfs { .. } => ("HDFS", &[], "write hdfs://NAMENODE:PORT/dir"),
            Place::File { .. } => ("a directory", &[], "name a bucket as s3://bucket"),
        };
        if fitting.contains(&option) {
            return Ok(());
        }
        Err(self.wrong(
            format!("{what} has no use for --{option}"),
            &format!("leave it out, or {instead}"),
        ))
    }

    /// The services that credentials of this origin are sent to.
    pub(crate) fn services_of_credentials(&self) -> Result<Vec<String>, OriginError> {
        let service = match self.place()? {
            Place::S3 {
                dialect: Dialect::S3,
                ..
            } => self.endpoint.clone().unwrap_or_else(|| AWS.to_owned()),
            Place::S3 { .. } => self.oss_endpoint()?.into(),
            Place::Web(web) => web.server.into(),
            Place::Gcs { .. } => {
                let endpoint = self.endpoint.clone();
                endpoint.unwrap_or_else(|| stores::GOOGLE.to_owned())
            }
            Place::Azure { .. } => self.azure_endpoint()?.into(),
            Place::Hdfs { namenodes, .. } => {
                let namenodes = namenodes.addresses.iter();
                return Ok(namenodes
                    .map(|address| format!("hdfs://{address}"))
                    .collect());
            }
            Place::File { .. } => return Ok(Vec::new()),
        };
        Ok(vec![service])
    }

    /// Which credentials the master is asked for, if it is.
    pub(crate) fn credentials_name(&self) -> Result<Option<CredentialName>, OriginError> {
        let name = self.credentials.as_deref().map(str::parse).transpose();
        name.map_err(|error: weir_core::id::NameError| {
            self.wrong(error.to_string(), "`weir credentials list` shows all")
        })
    }

    fn check_credentials_name(&self, place: &Place<'_>) -> Result<(), OriginError> {
        if self.credentials_name()?.is_none() {
            return Ok(());
        }
        match place {
            Place::S3 { .. } | Place::Gcs { .. } | Place::Azure { .. } | Place::Web(_) => {}
            Place::Hdfs { .. } if self.hdfs.is_secure() => {}
            Place::Hdfs { .. } => {
                return Err(self.wrong(
                    "credentials are a keytab, and the source's options do not ask for Kerberos",
                    "set hadoop.security.authentication to kerberos (HADOOP_CONF_DIR, or the source's options), or name the user alone, without credentials",
                ));
            }
            Place::File { .. } => {
                return Err(self.wrong("a directory is read without credentials", "leave them out"));
            }
        }
        if self.anonymous {
            return Err(self.wrong(
                "requests are to be anonymous, and made with credentials",
                "leave out --anonymous or --credentials",
            ));
        }
        if self.profile.is_some() {
            return Err(self.wrong(
                "it has both a profile and credentials",
                "leave out --profile or --credentials",
            ));
        }
        Ok(())
    }

    /// Adds what the environment of this process and its AWS profile say about the endpoint and the region, where
    /// the spec leaves them open, and checks the result. Credentials are not touched.
    ///
    /// Precedence: the spec, `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, the profile; the spec, `AWS_REGION`,
    /// `AWS_DEFAULT_REGION`, the profile.
    pub fn with_environment(self) -> Result<Self, OriginError> {
        self.completed_by(&Environment::of_process())
    }

    pub(crate) fn completed_by(mut self, environment: &Environment) -> Result<Self, OriginError> {
        if self.scheme() == "hdfs" {
            return self.completed_by_hadoop(environment);
        }
        self.validate_declared()?;
        if matches!(self.place()?, Place::File { .. }) {
            return Ok(self);
        }
        let is_aws = |place: &Place<'_>| {
            matches!(
                place,
                Place::S3 {
                    dialect: Dialect::S3,
                    ..
                }
            )
        };
        if !is_aws(&self.place()?) {
            return self.completed_by_store(environment);
        }
        let location = self.location().into();
        let configuration = self.configuration(&location, environment)?;
        let owned = |text: Option<&str>| text.map(str::to_owned);
        self.endpoint = self
            .endpoint
            .or_else(|| owned(configuration.endpoint(Service::S3)));
        self.region = self.region.or_else(|| owned(configuration.region()));
        self.validate()?;
        Ok(self)
    }

    /// What the process says of AWS's services. An origin with credentials of its own needs no profile, so one that `AWS_PROFILE`
    /// names need not exist.
    pub(crate) fn configuration<'a>(
        &self,
        origin: &Arc<str>,
        environment: &'a Environment,
    ) -> Result<Configuration<'a>, OriginError> {
        let named = self.profile.as_deref();
        if self.credentials.is_some() {
            Configuration::read(origin, named, environment)
        } else {
            Configuration::load(origin, named, environment)
        }
    }

    /// Adds what Hadoop's configuration files and `HADOOP_USER_NAME` say, where the spec leaves it open. A URL without a
    /// NameNode is one of the default file system.
    fn completed_by_hadoop(mut self, environment: &Environment) -> Result<Self, OriginError> {
        let variable = |name: &str| environment.get(name).map(str::to_owned);
        let configuration = hadoop::Configuration::of_environment(variable).map_err(|error| {
            self.wrong(error.to_string(), "check HADOOP_CONF_DIR and HADOOP_HOME")
        })?;
        if let Some(path) = self.url.strip_prefix("hdfs:///") {
            if let Some(authority) = configuration.default_authority() {
                self.url = format!("hdfs://{authority}/{path}");
            } else if let Some((name, dir)) = ["HADOOP_CONF_DIR", "HADOOP_HOME"]
                .into_iter()
                .find_map(|name| Some((name, variable(name)?)))
            {
                return Err(self.wrong(
                    format!(
                        "it names no NameNode, and neither does fs.defaultFS in the core-site.xml of {name}, {dir:?}"
                    ),
                    &format!("check {name}, or write hdfs://NAMENODE:PORT/dir"),
                ));
            }
        }
        let authority = authority(&self.url).to_owned();
        configuration.complete(&mut self.hdfs, &authority);
        self.hdfs.user = self.hdfs.user.or_else(|| variable("HADOOP_USER_NAME"));
        self.validate_declared()?;
        Ok(self)
    }

    /// The canonical location without the prefix: `s3://bucket`, `s3://bucket?endpoint=http://127.0.0.1:9000` or
    /// `file:///dir`, behind the name of its credentials if it has one: `team@s3://bucket`. The raw URL when it is not valid.
    pub fn location(&self) -> String {
        let place = self.place_of_location();
        match &self.credentials {
            // No location begins so: there is no `@` in a scheme.
            Some(name) => format!("{name}@{place}"),
            None => place,
        }
    }

    pub(crate) fn place_of_location(&self) -> String {
        match self.place() {
            Err(_) => self.url.clone(),
            Ok(Place::File { dir }) => format!("file://{dir}"),
            Ok(Place::Hdfs { namenodes, .. }) => namenodes.location(self.hdfs.user.as_deref()),
            Ok(Place::S3 {
                dialect: Dialect::Oss,
                bucket,
                ..
            }) => {
                // A name is one bucket's in all regions, and each region has several endpoints.
                let is_own = |url: &Url| url.host_str().is_some_and(stores::is_oss);
                match self.oss_endpoint() {
                    Ok(url) if !is_own(&url) => at_endpoint("oss", bucket, Some(plain(&url))),
                    _ => at_endpoint("oss", bucket, None),
                }
            }
            Ok(Place::S3 { bucket, .. }) => at_endpoint("s3", bucket, self.plain_endpoint()),
            Ok(Place::Gcs { bucket, .. }) => at_endpoint("gs", bucket, self.plain_endpoint()),
            Ok(Place::Azure { container, .. }) => {
                let endpoint = self.azure_endpoint().ok().map(|url| plain(&url));
                at_endpoint("az", container, endpoint)
            }
            Ok(Place::Web(web)) => plain(&web.server),
        }
    }

    /// Identifies the origin: a hash of the location. What was read with other credentials is another origin's, so that
    /// nobody gets a block whose object their own credentials do not show. A version of Weir that does not know named
    /// credentials gives another id, and so never reads such an origin with its own.
    pub fn id(&self) -> OriginId {
        OriginId::of_location(&self.location())
    }

    /// What every key of the dataset starts with: empty, or a prefix that ends in `/`, so that `s3://b/train` does
    /// not take in `training/`.
    pub fn prefix(&self) -> Cow<'_, str> {
        match self.place() {
            Ok(Place::Hdfs { prefix, .. }) => prefix.into(),
            Ok(Place::S3 { rest, .. } | Place::Gcs { rest, .. } | Place::Azure { rest, .. }) => {
                match rest {
                    "" => rest.into(),
                    rest if rest.ends_with('/') => rest.into(),
                    rest => format!("{rest}/").into(),
                }
            }
            Ok(Place::Web(web)) => web.dir.into(),
            _ => "".into(),
        }
    }

    /// `?index=FILE`, if a web server's URL names the file that says which files its directory has, else nothing: another one is
    /// other files of the same place.
    pub fn index_query(&self) -> String {
        match self.place() {
            Ok(Place::Web(web)) => web
                .index
                .map_or(String::new(), |index| format!("?index={index}")),
            _ => String::new(),
        }
    }

    /// What the URL has before `://`; empty when it has none.
    pub fn scheme(&self) -> &str {
        self.url.split_once("://").map_or("", |(scheme, _)| scheme)
    }

    /// Takes the URL apart.
    pub(crate) fn place(&self) -> Result<Place<'_>, OriginError> {
        match self.url.split_once("://") {
            Some((scheme @ ("s3" | "oss" | "gs"), rest)) => {
                let (bucket, rest) = rest.split_once('/').unwrap_or((rest, ""));
                let valid = !bucket.is_empty()
                    && bucket.len() <= MAX_BUCKET
                    && bucket.starts_with(|c: char| c.is_ascii_alphanumeric())
                    && bucket
                        .chars()
                        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
                    && !bucket.contains("..");
                if !valid {
                    return Err(self.wrong(
                        format!("the bucket name {bucket:?} is not valid"),
                        &format!("write {scheme}://bucket/prefix"),
                    ));
                }
                let dialect = match scheme {
                    "gs" => return Ok(Place::Gcs { bucket, rest }),
                    "oss" => Dialect::Oss,
                    _ => Dialect::S3,
                };
                Ok(Place::S3 {
                    dialect,
                    bucket,
                    rest,
                })
            }
            Some(("az" | "azure" | "abfs" | "abfss", rest)) => stores::azure(self, rest),
            Some(("http" | "https", _)) => stores::web(self).map(Place::Web),
            Some(("file", path)) if path.starts_with('/') && !path.contains('\0') => {
                let parts: Vec<&str> = path
                    .split('/')
                    .filter(|part| !matches!(*part, "" | "."))
                    .collect();
                if parts.contains(&"..") {
                    return Err(self.wrong(
                        "the path has a component `..`",
                        "write the directory's real path",
                    ));
                }
                Ok(Place::File {
                    dir: format!("/{}", parts.join("/")),
                })
            }
            Some(("file", _)) => Err(self.wrong(
                "the directory is not absolute",
                "write file:///dir, with three slashes",
            )),
            Some(("hdfs", rest)) => {
                let remedy = "write hdfs://NAMENODE:PORT/dir, or hdfs://SERVICE/dir with HADOOP_CONF_DIR set";
                let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
                if authority.is_empty() {
                    return Err(self.wrong("it names no NameNode", remedy));
                }
                let namenodes = NameNodes::of(authority, &self.hdfs)
                    .map_err(|problem| self.wrong(problem, remedy))?;
                let prefix =
                    hdfs::directory(path).map_err(|problem| self.wrong(problem, remedy))?;
                Ok(Place::Hdfs { namenodes, prefix })
            }
            _ => {
                let other = OTHERS.iter().find(|(other, _)| *other == self.scheme());
                let meant = other
                    .map(|(_, scheme)| *scheme)
                    .or_else(|| nearest(self.scheme(), SCHEMES));
                let meant = match meant {
                    Some(scheme) => format!(" (did you mean {scheme}://?)"),
                    None => String::new(),
                };
                Err(self.wrong(
                    format!("this kind of URL is not supported{meant}"),
                    "write s3://bucket/prefix, gs://…, az://…, oss://…, hdfs://namenode:port/dir, https://host/dir/ or file:///dir",
                ))
            }
        }
    }

    /// The endpoint as a URL with a host, and without what could hold a secret.
    pub(crate) fn endpoint_url(&self, text: &str) -> Result<Url, OriginError> {
        let remedy = "write --endpoint http://HOST:PORT or https://HOST";
        let url = Url::parse(text)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| self.wrong("the endpoint is not an http or https URL", remedy))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(self.wrong(
                "the endpoint holds a user name or password",
                "leave it out; give credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            ));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(self.wrong("the endpoint has a query or a fragment", remedy));
        }
        Ok(url)
    }

    /// The endpoint in its canonical form.
    fn plain_endpoint(&self) -> Option<String> {
        let text = self.endpoint.as_deref()?;
        let url = self.endpoint_url(text);
        Some(url.map_or_else(|_| text.to_owned(), |url| plain(&url)))
    }

    fn wrong(&self, problem: impl Into<String>, remedy: &str) -> OriginError {
        OriginError::config(secret_url::shown(&self.url), problem, remedy)
    }
}

/// What a URL has between its scheme and its path.
fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}

/// The location of a bucket.
fn at_endpoint(scheme: &str, bucket: &str, endpoint: Option<String>) -> String {
    match endpoint {
        None => format!("{scheme}://{bucket}"),
        Some(endpoint) => format!("{scheme}://{bucket}?endpoint={endpoint}"),
    }
}

/// A URL without its trailing slash; `Url` has already dropped a default port and lower-cased the host.
fn plain(url: &Url) -> String {
    url.as_str().trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_endpoint(endpoint: &str) -> OriginSpec {
        OriginSpec {
            endpoint: Some(endpoint.to_owned()),
            ..OriginSpec::parse("s3://bucket/train").unwrap()
        }
    }

    #[test]
    fn a_prefix_is_a_directory_and_not_part_of_the_identity() {
        let spec = OriginSpec::parse("s3://bucket/train").unwrap();
        assert_eq!(spec.prefix(), "train/");
        assert_eq!(spec.location(), "s3://bucket");
        for other in ["s3://bucket", "s3://bucket/", "s3://bucket/other/"] {
            assert_eq!(OriginSpec::parse(other).unwrap().id(), spec.id(), "{other}");
        }
        assert_eq!(OriginSpec::parse("s3://bucket/").unwrap().prefix(), "");
        assert_eq!(
            OriginSpec::parse("s3://bucket/a b%20/").unwrap().prefix(),
            "a b%20/"
        );
        assert_ne!(OriginSpec::parse("s3://bucket2").unwrap().id(), spec.id());
    }

    #[test]
    fn the_endpoint_is_part_of_the_identity_in_one_canonical_form() {
        let spec = with_endpoint("http://127.0.0.1:9000");
        assert_eq!(
            spec.location(),
            "s3://bucket?endpoint=http://127.0.0.1:9000"
        );
        assert_eq!(with_endpoint("http://127.0.0.1:9000/").id(), spec.id());
        assert_eq!(
            with_endpoint("HTTPS://Host:443").id(),
            with_endpoint("https://host").id()
        );
        assert_ne!(
            with_endpoint("https://host").id(),
            with_endpoint("http://host").id()
        );
    }

    #[test]
    fn a_directory_has_one_location_however_it_is_written() {
        for url in [
            "file:///data/set",
            "file:///data//set/",
            "file:///./data/set",
        ] {
            assert_eq!(
                OriginSpec::parse(url).unwrap().location(),
                "file:///data/set",
                "{url}"
            );
        }
        assert_eq!(
            OriginSpec::parse("file:///").unwrap().location(),
            "file:///"
        );
        assert_eq!(OriginSpec::parse("file:///data").unwrap().prefix(), "");
    }

    #[test]
    fn who_has_credentials_of_its_own_needs_no_profile() {
        let environment = Environment::of([("HOME", "/nonexistent"), ("AWS_PROFILE", "nope")]);
        let spec = OriginSpec::parse("s3://bucket/p").unwrap();
        let error = spec.clone().completed_by(&environment).unwrap_err();
        assert!(error.to_string().contains("nope"), "{error}");
        let own = OriginSpec {
            credentials: Some("team".to_owned()),
            ..spec
        };
        own.completed_by(&environment).unwrap();
    }

    #[test]
    fn options_that_were_meant_for_another_place_are_refused_when_it_is_declared() {
        let region = |spec: OriginSpec| OriginSpec {
            region: Some("eu".to_owned()),
            ..spec
        };
        let addressing = |spec: OriginSpec| OriginSpec {
            addressing: Addressing::Path,
            ..spec
        };
        let profile = |spec: OriginSpec| OriginSpec {
            profile: Some("dev".to_owned()),
            ..spec
        };
        let anonymous = |spec: OriginSpec| OriginSpec {
            anonymous: true,
            ..spec
        };
        let options: [(&str, &dyn Fn(OriginSpec) -> OriginSpec); 4] = [
            ("region", &region),
            ("addressing", &addressing),
            ("profile", &profile),
            ("anonymous", &anonymous),
        ];
        for (url, fitting) in [
            (
                "s3://b",
                &["region", "addressing", "profile", "anonymous"][..],
            ),
            ("gs://b", &["anonymous"]),
            ("abfss://c@a.dfs.core.windows.net/p", &["anonymous"]),
            ("https://h/d/", &["anonymous"]),
            ("hdfs://nn:8020/d", &[]),
            ("file:///d", &[]),
        ] {
            for (option, with) in options {
                let spec = with(OriginSpec::parse(url).unwrap());
                // Who declared it with an earlier version still reads it.
                spec.validate().unwrap();
                let environment = Environment::of([]);
                let Err(error) = spec.completed_by(&environment) else {
                    assert!(fitting.contains(&option), "{url} {option}");
                    continue;
                };
                let error = error.to_string();
                let refused = error.contains(&format!("no use for --{option}; leave it out"));
                assert_ne!(
                    refused,
                    fitting.contains(&option),
                    "{url} {option}: {error}"
                );
            }
        }
    }

    #[test]
    fn wrong_urls_and_endpoints_are_refused_with_a_remedy() {
        for url in [
            "bucket",
            "s3://",
            "s3:///x",
            "s3://a b/",
            "s3://a..b",
            "file://host/x",
            "file://x",
            "file:///a/../b",
        ] {
            let error = OriginSpec::parse(url).unwrap_err();
            assert!(error.to_string().contains("; write"), "{url}: {error}");
        }
        for endpoint in ["127.0.0.1:9000", "ftp://host", "http://h/?a=b", ""] {
            let error = with_endpoint(endpoint).validate().unwrap_err();
            assert!(
                error.to_string().contains("--endpoint"),
                "{endpoint}: {error}"
            );
        }
    }

    #[test]
    fn the_nearest_scheme_is_named() {
        for (url, meant) in [
            ("s4://b", Some("s3")),
            ("S3://b", Some("s3")),
            ("fil:///d", Some("file")),
            ("webhdfs://nn:9870/d", Some("hdfs")),
            ("wasbs://c@a.blob.core.windows.net/d", Some("abfss")),
            ("foo://b", None),
        ] {
            let error = OriginSpec::parse(url).unwrap_err().to_string();
            let said =
                meant.is_some_and(|scheme| error.contains(&format!("did you mean {scheme}://?")));
            assert_eq!(said, meant.is_some(), "{error}");
        }
    }

    #[test]
    fn without_a_namenode_it_is_said_where_one_was_looked_for() {
        let url = OriginSpec {
            url: "hdfs:///data".to_owned(),
            ..OriginSpec::parse("s3://bucket").unwrap()
        };
        let environment = Environment::of([("HADOOP_CONF_DIR", "/nowhere")]);
        let error = url.completed_by(&environment).unwrap_err().to_string();
        for said in ["HADOOP_CONF_DIR, \"/nowhere\"", "fs.defaultFS"] {
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_patience_is_no_more_than_a_day_and_no_part_of_the_identity() {
        let patient = |seconds| OriginSpec {
            patience_seconds: Some(seconds),
            ..OriginSpec::parse("s3://bucket").unwrap()
        };
        patient(600).validate().unwrap();
        for wrong in [0, MAX_PATIENCE + 1] {
            let error = patient(wrong).validate().unwrap_err();
            assert!(error.to_string().contains("--patience"), "{error}");
        }
        assert_eq!(patient(600).id(), patient(1).id());
    }

    #[test]
    fn named_credentials_are_part_of_the_identity_and_exclude_others() {
        let named = |name: &str| OriginSpec {
            credentials: Some(name.to_owned()),
            ..with_endpoint("http://host")
        };
        assert_eq!(
            named("team").location(),
            "team@s3://bucket?endpoint=http://host"
        );
        assert_ne!(named("team").id(), named("other").id());
        assert_ne!(named("team").id(), with_endpoint("http://host").id());
        // Nobody's endpoint looks like a name.
        let odd = with_endpoint("http://host/&credentials=team@x");
        assert_ne!(odd.id(), named("team").id());
        named("team").validate().unwrap();
        let wrong = [
            named(""),
            named("a/b/c"),
            named("a@b"),
            OriginSpec {
                anonymous: true,
                ..named("team")
            },
            OriginSpec {
                profile: Some("work".to_owned()),
                ..named("team")
            },
            OriginSpec {
                credentials: Some("team".to_owned()),
                ..OriginSpec::parse("file:///data").unwrap()
            },
        ];
        for spec in wrong {
            let error = spec.validate().unwrap_err().to_string();
            assert!(error.contains("credentials"), "{error}");
        }
    }

    #[test]
    fn a_password_in_the_endpoint_is_refused_and_not_repeated() {
        let error = with_endpoint("http://user:hunter2@host")
            .validate()
            .unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn the_spec_comes_before_the_environment_and_that_before_the_profile() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        std::fs::write(
            home.path().join(".aws/config"),
            "[default]\nregion = from-profile\nendpoint_url = http://profile:1\n",
        )
        .unwrap();
        let home = home.path().to_str().unwrap();
        let bare = || OriginSpec::parse("s3://bucket").unwrap();
        let complete = |spec: OriginSpec, variables: &[(&str, &str)]| {
            let variables = variables.iter().copied().chain([("HOME", home)]);
            let spec = spec.completed_by(&Environment::of(variables)).unwrap();
            (spec.endpoint.unwrap(), spec.region.unwrap())
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            complete(bare(), &[]),
            pair("http://profile:1", "from-profile")
        );
        let variables = [
            ("AWS_ENDPOINT_URL", "http://any:2"),
            ("AWS_ENDPOINT_URL_S3", "http://s3:2"),
            ("AWS_DEFAULT_REGION", "default"),
            ("AWS_REGION", "region"),
        ];
        assert_eq!(complete(bare(), &variables), pair("http://s3:2", "region"));
        let explicit = OriginSpec {
            region: Some("mine".to_owned()),
            ..with_endpoint("http://mine:3")
        };
        assert_eq!(
            complete(explicit, &variables),
            pair("http://mine:3", "mine")
        );
    }
}
