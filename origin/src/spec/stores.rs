//! The URLs and endpoints of object stores that are no S3, and of web servers.

use std::borrow::Cow;

use url::Url;

use super::{OriginSpec, Place};
use crate::error::OriginError;
use crate::transport::encode::decode;
use crate::transport::environment::Environment;
use crate::transport::shown::plain;

/// The domain that OSS's own endpoints are in.
const OSS_DOMAIN: &str = ".aliyuncs.com";
/// Azure's domains for blobs, and for the same data by its file interface.
const AZURE_DOMAINS: [&str; 3] = [
    ".core.windows.net",
    ".core.chinacloudapi.cn",
    ".core.usgovcloudapi.net",
];
/// Where Google Cloud Storage is.
pub(crate) const GOOGLE: &str = "https://storage.googleapis.com";
/// Where Azurite listens, and the account that it has.
const EMULATOR: &str = "http://127.0.0.1:10000/devstoreaccount1";

/// Which service speaks S3's protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dialect {
    /// AWS, or what has its endpoint named.
    S3,
    /// Alibaba Cloud's Object Storage Service.
    Oss,
}

impl Dialect {
    /// What URLs begin with, which is also the kind of origin.
    pub(crate) fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Oss => "oss",
        }
    }
}

/// A directory of a web server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct WebPlace {
    /// Scheme, host and port.
    pub(crate) server: Url,
    /// The directory's path, decoded: empty, or ending in `/`.
    pub(crate) dir: String,
    /// The file that lists what there is, relative to the directory; without one the server's own page does.
    pub(crate) index: Option<String>,
}

/// Takes `az://container/prefix` or `abfss://container@host/prefix` apart.
pub(super) fn azure<'a>(spec: &OriginSpec, rest: &'a str) -> Result<Place<'a>, OriginError> {
    let (authority, rest) = rest.split_once('/').unwrap_or((rest, ""));
    let (container, host) = match authority.split_once('@') {
        Some((container, host)) => (container, Some(host)),
        None => (authority, None),
    };
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '$');
    let is_name = !container.is_empty() && container.len() <= 63 && container.chars().all(fits);
    let is_host = host.is_none_or(|host| {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
        host.contains('.') && host.chars().all(fits)
    });
    if !is_name || !is_host {
        return Err(spec.wrong(
            format!("{authority:?} is no name of a container"),
            "write az://container/prefix or abfss://container@account.dfs.core.windows.net/prefix",
        ));
    }
    Ok(Place::Azure {
        container,
        host,
        rest,
    })
}

/// Takes the URL of a web server's directory apart.
pub(super) fn web(spec: &OriginSpec) -> Result<WebPlace, OriginError> {
    // A user, a password and a query can be secrets.
    let wrong = |problem: &str| {
        let origin = if spec.url.contains('@') {
            format!("{}://…", spec.scheme())
        } else {
            plain(&spec.url)
        };
        OriginError::config(
            origin,
            problem,
            "write https://host/dir/, or https://host/dir/?index=FILE",
        )
    };
    let url = Url::parse(&spec.url).ok().filter(Url::has_host);
    let url = url.ok_or_else(|| wrong("it is no address of a web server"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong(
            "it holds a user name or password, which would be stored with the dataset",
        ));
    }
    if url.fragment().is_some() {
        return Err(wrong("it has a fragment"));
    }
    let mut index = None;
    for (name, value) in url.query_pairs() {
        if name != "index" || value.is_empty() || index.is_some() {
            return Err(wrong(
                "it has a query that is not ?index=FILE; addresses that are signed cannot be used",
            ));
        }
        index = Some(value.into_owned());
    }
    let path = decode(url.path().as_bytes());
    let path =
        String::from_utf8(path).map_err(|_| wrong("its path is not UTF-8 when it is decoded"))?;
    let mut dir = path.trim_start_matches('/').to_owned();
    if !dir.is_empty() && !dir.ends_with('/') {
        dir.push('/');
    }
    let mut server = url;
    server.set_path("");
    server.set_query(None);
    Ok(WebPlace { server, dir, index })
}

impl OriginSpec {
    /// Adds the endpoint and the region that the environment has for a store that is none of AWS's.
    pub(super) fn completed_by_store(
        mut self,
        environment: &Environment,
    ) -> Result<Self, OriginError> {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let place = self.place()?;
        let is_oss = matches!(place, Place::S3 { .. });
        let is_gcs = matches!(place, Place::Gcs { .. });
        let needs_account = matches!(place, Place::Azure { host: None, .. });
        if is_oss {
            self.region = self.region.or_else(|| owned(environment.get("OSS_REGION")));
            let named = owned(environment.get("OSS_ENDPOINT")).map(with_scheme);
            self.endpoint = self.endpoint.or(named);
            let region = self.region.as_deref().map(oss_region);
            let of_region = region.map(|region| format!("https://oss-{region}{OSS_DOMAIN}"));
            self.endpoint = self.endpoint.or(of_region);
            if self.endpoint.is_none() {
                return Err(no_oss_endpoint(&self));
            }
        }
        if is_gcs {
            let emulator = environment.get("STORAGE_EMULATOR_HOST");
            let emulator = emulator.map(|host| match host.split_once("://") {
                Some(_) => host.to_owned(),
                None => format!("http://{host}"),
            });
            self.endpoint = self.endpoint.or(emulator);
        }
        if needs_account {
            self.endpoint = self.endpoint.or_else(|| azure_endpoint(environment));
            self.azure_endpoint()?;
        }
        self.validate()?;
        Ok(self)
    }

    /// Where the blobs of an Azure account are.
    pub(crate) fn azure_endpoint(&self) -> Result<Url, OriginError> {
        if let Some(endpoint) = &self.endpoint {
            return self.endpoint_url(endpoint);
        }
        match self.place()? {
            Place::Azure {
                host: Some(host), ..
            } => self.endpoint_url(&format!("https://{}", host.replacen(".dfs.", ".blob.", 1))),
            _ => Err(self.wrong(
                "it does not say which storage account the container is in",
                "set AZURE_STORAGE_ACCOUNT_NAME, write abfss://container@account.dfs.core.windows.net/prefix, or give --endpoint https://ACCOUNT.blob.core.windows.net",
            )),
        }
    }

    /// Where the service of a bucket of OSS is.
    pub(crate) fn oss_endpoint(&self) -> Result<Url, OriginError> {
        match (&self.endpoint, &self.region) {
            (Some(endpoint), _) => self.endpoint_url(endpoint),
            (None, Some(region)) => {
                let region = oss_region(region);
                self.endpoint_url(&format!("https://oss-{region}{OSS_DOMAIN}"))
            }
            (None, None) => Err(no_oss_endpoint(self)),
        }
    }
}

fn no_oss_endpoint(spec: &OriginSpec) -> OriginError {
    spec.wrong(
        "it does not say which region of OSS the bucket is in",
        "set OSS_REGION or OSS_ENDPOINT, or give --region cn-hangzhou or --endpoint https://oss-cn-hangzhou-internal.aliyuncs.com",
    )
}

/// People write OSS's endpoints without a scheme.
fn with_scheme(endpoint: String) -> String {
    if endpoint.contains("://") {
        endpoint
    } else {
        format!("https://{endpoint}")
    }
}

/// OSS's tools take `cn-hangzhou` and `oss-cn-hangzhou` for the same.
fn oss_region(region: &str) -> &str {
    region.strip_prefix("oss-").unwrap_or(region)
}

/// The endpoint that the variables of Azure's tools name.
fn azure_endpoint(environment: &Environment) -> Option<String> {
    if environment.is_true("AZURE_STORAGE_USE_EMULATOR") {
        return Some(EMULATOR.to_owned());
    }
    if let Some(text) = environment.get("AZURE_STORAGE_CONNECTION_STRING") {
        let field = |name| connection_field(text, name);
        if let Some(endpoint) = field("BlobEndpoint") {
            return Some(endpoint.to_owned());
        }
        if field("UseDevelopmentStorage") == Some("true") {
            return Some(EMULATOR.to_owned());
        }
        if let Some(account) = field("AccountName") {
            let suffix = field("EndpointSuffix").unwrap_or("core.windows.net");
            return Some(format!("https://{account}.blob.{suffix}"));
        }
    }
    if let Some(endpoint) = environment.get("AZURE_STORAGE_ENDPOINT") {
        return Some(endpoint.to_owned());
    }
    let account = environment.first(&["AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"])?;
    Some(format!("https://{account}.blob.core.windows.net"))
}

/// A field of a connection string: `AccountName=a;AccountKey=k`.
pub(crate) fn connection_field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let fields = text.split(';').filter_map(|field| field.split_once('='));
    fields
        .map(|(name, value)| (name.trim(), value.trim()))
        .find_map(|(other, value)| (other.eq_ignore_ascii_case(name)).then_some(value))
        .filter(|value| !value.is_empty())
}

/// Whether a host is OSS itself, where bucket's names are of one kind in all regions.
pub(crate) fn is_oss(host: &str) -> bool {
    host.strip_suffix(OSS_DOMAIN).is_some_and(|name| {
        let label = name.rsplit('.').next().unwrap_or_default();
        label.strip_prefix("oss-").is_some_and(|r| !r.is_empty()) || label == "oss"
    })
}

/// The host that answers S3's protocol for an endpoint of OSS, and the region that it names.
pub(crate) fn oss_s3_host(host: &str) -> (Cow<'_, str>, Option<&str>) {
    let Some(name) = host.strip_suffix(OSS_DOMAIN).filter(|_| is_oss(host)) else {
        return (host.into(), None);
    };
    let native = name.strip_prefix("s3.").unwrap_or(name);
    let region = native
        .strip_prefix("oss-")
        .filter(|r| !r.starts_with("accelerate"));
    let region = region.map(|region| region.strip_suffix("-internal").unwrap_or(region));
    if native.contains('.') {
        return (host.into(), None);
    }
    (format!("s3.{native}{OSS_DOMAIN}").into(), region)
}

/// Whether a host is Google Cloud Storage itself.
pub(crate) fn is_gcs(host: &str) -> bool {
    host == "storage.googleapis.com"
}

/// Whether a host is Azure's own for blobs.
pub(crate) fn is_azure(host: &str) -> bool {
    azure_account(host).is_some()
}

/// The account that a host of Azure's is of.
pub(crate) fn azure_account(host: &str) -> Option<&str> {
    let name = AZURE_DOMAINS
        .iter()
        .find_map(|domain| host.strip_suffix(domain))?;
    let account = name
        .strip_suffix(".blob")
        .or_else(|| name.strip_suffix(".dfs"))?;
    // The second copy of an account is read under another name, and zones add a label.
    let account = account.split('.').next().unwrap_or_default();
    let account = account.strip_suffix("-secondary").unwrap_or(account);
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (!account.is_empty() && account.chars().all(fits)).then_some(account)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(url: &str) -> OriginSpec {
        OriginSpec::parse(url).unwrap()
    }

    fn complete(url: &str, variables: &[(&str, &str)]) -> Result<OriginSpec, String> {
        let environment = Environment::of(variables.iter().copied());
        let completed = spec(url).completed_by(&environment);
        completed.map_err(|error| error.to_string())
    }

    #[test]
    fn each_store_has_its_location_and_prefix() {
        for (url, location, prefix) in [
            ("oss://b/p", "oss://b", "p/"),
            ("gs://my_b.c/p/q/", "gs://my_b.c", "p/q/"),
            ("gs://b", "gs://b", ""),
            ("https://Host/a%20b", "https://host", "a b/"),
            ("http://h:8080/", "http://h:8080", ""),
            ("https://h:443/d/?index=list.tsv", "https://h", "d/"),
        ] {
            let spec = spec(url);
            assert_eq!(
                (&*spec.location(), &*spec.prefix()),
                (location, prefix),
                "{url}"
            );
        }
        let by_name = complete("az://con-t/p", &[("AZURE_STORAGE_ACCOUNT_NAME", "acc")]).unwrap();
        let location = "az://con-t?endpoint=https://acc.blob.core.windows.net";
        assert_eq!(by_name.location(), location);
        let by_url = spec("abfss://con-t@acc.dfs.core.windows.net/p");
        assert_eq!(
            (by_url.location(), by_url.id()),
            (location.to_owned(), by_name.id())
        );
        assert_eq!(by_url.prefix(), "p/");
    }

    #[test]
    fn an_endpoint_of_oss_may_be_any_of_a_region_and_is_one_place() {
        let with = |variables: &[_]| complete("oss://b", variables).unwrap();
        let internal = with(&[("OSS_ENDPOINT", "oss-cn-hangzhou-internal.aliyuncs.com")]);
        let public = with(&[("OSS_REGION", "oss-cn-hangzhou")]);
        assert_eq!(
            public.endpoint.as_deref(),
            Some("https://oss-cn-hangzhou.aliyuncs.com")
        );
        assert_eq!(internal.id(), public.id());
        let own = with(&[("OSS_ENDPOINT", "http://oss.example:9000")]);
        assert_eq!(own.location(), "oss://b?endpoint=http://oss.example:9000");
        let error = complete("oss://b", &[]).unwrap_err();
        assert!(error.contains("OSS_REGION"), "{error}");
        for (host, s3, region) in [
            (
                "oss-cn-hangzhou.aliyuncs.com",
                "s3.oss-cn-hangzhou.aliyuncs.com",
                Some("cn-hangzhou"),
            ),
            (
                "oss-cn-hangzhou-internal.aliyuncs.com",
                "s3.oss-cn-hangzhou-internal.aliyuncs.com",
                Some("cn-hangzhou"),
            ),
            (
                "s3.oss-us-west-1.aliyuncs.com",
                "s3.oss-us-west-1.aliyuncs.com",
                Some("us-west-1"),
            ),
            (
                "oss-accelerate.aliyuncs.com",
                "s3.oss-accelerate.aliyuncs.com",
                None,
            ),
            ("oss.example", "oss.example", None),
        ] {
            assert_eq!(oss_s3_host(host), (s3.into(), region), "{host}");
        }
    }

    #[test]
    fn the_environment_says_where_a_store_is_and_the_spec_comes_first() {
        let endpoint = |url, variables: &[_]| complete(url, variables).unwrap().endpoint;
        let emulator = [("STORAGE_EMULATOR_HOST", "127.0.0.1:4443")];
        assert_eq!(
            endpoint("gs://b", &emulator).as_deref(),
            Some("http://127.0.0.1:4443")
        );
        assert_eq!(endpoint("gs://b", &[]), None);
        let azure = |variables: &[_]| endpoint("az://con", variables).unwrap();
        assert_eq!(azure(&[("AZURE_STORAGE_USE_EMULATOR", "true")]), EMULATOR);
        let connection = "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=c2VjcmV0==;EndpointSuffix=core.chinacloudapi.cn";
        assert_eq!(
            azure(&[("AZURE_STORAGE_CONNECTION_STRING", connection)]),
            "https://a.blob.core.chinacloudapi.cn"
        );
        assert_eq!(
            connection_field(connection, "AccountKey"),
            Some("c2VjcmV0==")
        );
        let error = complete("az://con", &[]).unwrap_err();
        assert!(error.contains("AZURE_STORAGE_ACCOUNT_NAME"), "{error}");
        // Not AWS's.
        let aws = [
            ("AWS_ENDPOINT_URL", "http://minio:9000"),
            ("OSS_REGION", "cn-hangzhou"),
        ];
        assert_eq!(endpoint("gs://b", &aws), None);
        assert!(!endpoint("oss://b", &aws).unwrap().contains("minio"));
    }

    #[test]
    fn wrong_places_are_refused_and_secrets_are_not_repeated() {
        for url in [
            "oss://",
            "gs://a b",
            "gs://",
            "az://",
            "az://Con",
            "az://c@host",
            "az://c_d/x",
            "abfss://c@ho:st.x/p",
            "https://",
            "https://h/#f",
            "https://h/%ff/",
        ] {
            let error = OriginSpec::parse(url).unwrap_err().to_string();
            assert!(error.contains("; write"), "{url}: {error}");
        }
        for url in [
            "https://u:hunter2@h/d",
            "https://h/d?sig=hunter2",
            "https://hunter2@h/",
        ] {
            let error = OriginSpec::parse(url).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn only_the_services_themselves_are_known() {
        for host in [
            "oss-cn-beijing.aliyuncs.com",
            "b.s3.oss-cn-beijing-internal.aliyuncs.com",
            "cn-beijing.oss.aliyuncs.com",
        ] {
            assert!(is_oss(host), "{host}");
        }
        for host in [
            "aliyuncs.com",
            "b.fc.aliyuncs.com",
            "oss-cn.aliyuncs.com.evil.com",
            "oss-.aliyuncs.com",
            "eviloss-x.aliyun.com",
        ] {
            assert!(!is_oss(host), "{host}");
        }
        assert_eq!(azure_account("acc.blob.core.windows.net"), Some("acc"));
        assert_eq!(
            azure_account("acc-secondary.blob.core.windows.net"),
            Some("acc")
        );
        for host in [
            "acc.file.core.windows.net",
            "blob.core.windows.net",
            "acc.blob.core.windows.net.evil.com",
            "evilcore.windows.net",
        ] {
            assert_eq!(azure_account(host), None, "{host}");
        }
        assert!(is_gcs("storage.googleapis.com") && !is_gcs("evil.storage.googleapis.com.x"));
    }
}
