//! One signed request to a bucket.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use parking_lot::{Mutex, RwLock};

use super::credentials::{self, Credentials, Settings};
use super::extras::Extras;
use super::owned::Owned;
use super::redirect;
use super::refusal::Refusal;
use super::signature::{Keys, Signer};
use crate::error::OriginError;
use crate::sources::{Reach, SourcePolicy};
use crate::spec::stores::{Dialect, oss_s3_host};
use crate::spec::{Addressing, OriginSpec, Place};
use crate::transport::connect::Connector;
use crate::transport::contact::Contact;
use crate::transport::encode::encode_path;
use crate::transport::environment::Environment;
use crate::transport::exchange::{Answer, Http};
use crate::transport::failure::HttpError;
use crate::transport::proxy::Proxies;
use crate::transport::renewed::RequestKeys;
use crate::transport::service::other_scheme;
use crate::transport::trust::{Trust, bundle_of, host_of};

/// Region of requests when nobody names one; the service corrects it.
const DEFAULT_REGION: &str = "us-east-1";
/// Stands for the region in the address of a bucket of AWS.
const REGION: &str = "{region}";
/// How often one request is sent on.
const MAX_REDIRECTS: u32 = 3;
/// How long it counts what was found out about a service's scheme.
const SCHEME_CHECKED_FOR: Duration = Duration::from_secs(1);

/// The connection pool, credentials and address of one bucket.
pub(super) struct Client {
    http: Arc<Http>,
    /// URL of the bucket without a slash at the end; `{region}` stands for the region where AWS wants it.
    base: String,
    /// The bucket in messages.
    name: Arc<str>,
    bucket: String,
    dialect: Dialect,
    extras: Extras,
    region: RwLock<String>,
    /// `None` when requests are not signed.
    credentials: Option<Credentials>,
    /// Set when they are those that the source names.
    named: Option<Arc<Owned>>,
    /// Where requests may go, and which of them may be signed.
    reach: Reach,
    /// What is known of the service.
    contact: Contact,
    /// When it was last found out whether the service speaks otherwise than its address says, and what was found.
    scheme_checked: Mutex<Option<(Instant, bool)>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({})", self.base)
    }
}

impl Client {
    pub(super) fn new(
        spec: &OriginSpec,
        sources: &SourcePolicy,
        environment: &Environment,
    ) -> Result<Self, OriginError> {
        let Place::S3 {
            dialect, bucket, ..
        } = spec.place()?
        else {
            return Err(OriginError::config(
                spec.url.as_str(),
                "it is no bucket",
                "write s3://bucket/prefix",
            ));
        };
        let name: Arc<str> = format!("{}://{bucket}", dialect.scheme()).into();
        let reach = sources.reach(spec)?;
        let (base, named_region) = match dialect {
            Dialect::S3 => (base_url(spec, bucket)?, None),
            Dialect::Oss => oss_base_url(spec, bucket)?,
        };
        let named = sources.named(spec, &name)?.map(|named| {
            Arc::new(Owned {
                named,
                home: base.parse().ok().filter(|_| !base.contains(REGION)),
            })
        });
        let (bundle, extras) = match dialect {
            Dialect::S3 => {
                let configuration = spec.configuration(&name, environment)?;
                let extras = Extras::of(&name, &configuration)?;
                (configuration.ca_bundle(), extras)
            }
            Dialect::Oss => (None, Extras::default()),
        };
        let with_tls = base.starts_with("https:");
        let own = || {
            bundle_of(
                environment,
                &host_of(&base.replace(REGION, DEFAULT_REGION))?,
            )
        };
        let trust = with_tls.then(|| Trust::of(&name, own().or(bundle)));
        let proxies = Arc::new(Proxies::of(environment));
        let connector = Connector::new(trust.as_ref(), proxies, reach.clone())?;
        let said = spec.region.clone().or_else(|| named_region.clone());
        let region = said.clone().unwrap_or_else(|| DEFAULT_REGION.to_owned());
        let credentials = if spec.anonymous {
            None
        } else {
            Some(credentials::find(Settings {
                profile: spec.profile.clone(),
                region: said,
                name: name.clone(),
                dialect,
                named: named.clone(),
            })?)
        };
        Ok(Self {
            http: Arc::new(Http::new(connector)),
            base,
            name,
            bucket: bucket.to_owned(),
            dialect,
            extras,
            region: RwLock::new(region),
            credentials,
            named,
            reach,
            contact: Contact::default(),
            scheme_checked: Mutex::default(),
        })
    }

    /// The object as it is named in messages.
    pub(super) fn object_url(&self, key: &str) -> Arc<str> {
        format!("{}/{}", self.name, key.escape_debug()).into()
    }

    /// The bucket as it is named in messages.
    pub(super) fn bucket_url(&self) -> &str {
        &self.name
    }

    /// Which service it is.
    pub(super) fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// What is known of the service.
    pub(super) fn contact(&self) -> &Contact {
        &self.contact
    }

    /// GETs an object (or the bucket itself) and gives the answer if it is a success. Corrects the region once,
    /// loads credentials again that have expired, and follows redirects, for each of which the request is signed anew.
    pub(super) async fn get(
        &self,
        key: Option<&str>,
        query: &str,
        headers: &HeaderMap,
    ) -> Result<Answer, OriginError> {
        self.ask(&Method::GET, key, query, headers).await
    }

    /// As [`Self::get`], but asks for the head alone.
    pub(super) async fn head(&self, key: &str, headers: &HeaderMap) -> Result<Answer, OriginError> {
        self.ask(&Method::HEAD, Some(key), "", headers).await
    }

    async fn ask(
        &self,
        method: &Method,
        key: Option<&str>,
        query: &str,
        headers: &HeaderMap,
    ) -> Result<Answer, OriginError> {
        let target = || key.map_or_else(|| self.name.clone(), |key| self.object_url(key));
        let mut corrected = false;
        let mut keys = RequestKeys::of(self.credentials.as_ref());
        let mut redirects = 0;
        let mut elsewhere = None;
        let mut shows_key = key.is_some();
        loop {
            let uri = match elsewhere.clone() {
                Some(uri) => uri,
                None => self.address(key, query, &target)?,
            };
            if self.credentials.is_some() && elsewhere.is_some() {
                // That the endpoint may have them was found when this client was made.
                self.check_signature(&uri, &target)?;
            }
            let credential = keys.get().await?;
            let mut headers = headers.clone();
            if credential.is_some() {
                self.extras.add_payer(&mut headers);
            }
            let may_see_key =
                || self.extras.has_key_for(&uri) && self.reach.check_signature(&uri).is_ok();
            shows_key = shows_key && may_see_key();
            if shows_key {
                self.extras.add_key(&mut headers);
            }
            let signer = credential.as_deref();
            let response = match self
                .send(method, uri.clone(), headers, signer, &target)
                .await?
            {
                Ok(response) => response,
                Err(error) => {
                    if error.may_be_another_scheme() {
                        self.check_scheme(&uri).await?;
                    }
                    return Err(error.explain(target()));
                }
            };
            if response.status.is_success() {
                self.contact.set_answered();
                return Ok(response);
            }
            let refusal = Refusal::read(response).await;
            if refusal.status == StatusCode::BAD_REQUEST && !refusal.has_code() {
                self.check_scheme(&uri).await?;
            }
            // Services refuse a key for an object that has none, and say no more than that.
            if shows_key && refusal.status == StatusCode::BAD_REQUEST {
                shows_key = false;
                continue;
            }
            if let Some(region) = refusal.region()
                && !corrected
                && *self.region.read() != region
                && refusal.may_be_another_region()
            {
                corrected = true;
                tracing::info!(bucket = %self.bucket, %region, "the bucket's region was corrected; give it with --region");
                region.clone_into(&mut self.region.write());
                elsewhere = None;
                continue;
            }
            if let Some(location) = refusal.redirect()
                && redirects < MAX_REDIRECTS
                && let Some(next) = redirect::follow(&uri, location)
            {
                redirects += 1;
                elsewhere = Some(next);
                continue;
            }
            // Of credentials that were replaced the secret alone may be another, or what they may read.
            let is_denied = self.named.is_some()
                && matches!(
                    refusal.status,
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
                );
            if (is_denied || refusal.may_be_of_old_keys()) && keys.renew().await? {
                continue;
            }
            let error = refusal.explain(&self.name, target(), key);
            return Err(match &self.named {
                Some(owned) => owned.named.explain(error),
                None if self.credentials.is_none() => error.of_anonymous(),
                None => error,
            });
        }
    }

    /// Checks that what a request is sent on to may have its signature.
    fn check_signature(
        &self,
        uri: &Uri,
        target: &impl Fn() -> Arc<str>,
    ) -> Result<(), OriginError> {
        if let Some(named) = &self.named {
            return named.check_redirect(uri);
        }
        let meant = self.reach.check_signature(uri);
        meant.map_err(|forbidden| forbidden.of(target()))
    }

    pub(super) fn close_idle(&self) {
        self.http.close_idle();
    }

    /// The address of an object, or of the bucket itself.
    fn address(
        &self,
        key: Option<&str>,
        query: &str,
        target: &impl Fn() -> Arc<str>,
    ) -> Result<Uri, OriginError> {
        let mut url = self.current_base();
        url.push('/');
        if let Some(key) = key {
            encode_path(key, &mut url);
        }
        if !query.is_empty() {
            url.push('?');
            url.push_str(query);
        }
        url.parse().map_err(|error| invalid(target(), &error))
    }

    async fn send(
        &self,
        method: &Method,
        uri: Uri,
        mut headers: HeaderMap,
        credential: Option<&Keys>,
        target: &impl Fn() -> Arc<str>,
    ) -> Result<Result<Answer, HttpError>, OriginError> {
        if let Some(keys) = credential {
            let region = self.region.read().clone();
            check_signable(keys, &region, &self.name)?;
            let signer = Signer {
                keys,
                service: "s3",
                region: &region,
            };
            let signed = signer.sign(method, &uri, &mut headers, b"");
            signed.map_err(|error| invalid(target(), &error))?;
        }
        // Not signed, since there are services and proxies that change it. The bytes wanted are those that are stored.
        let identity = HeaderValue::from_static("identity");
        headers.insert(header::ACCEPT_ENCODING, identity);
        Ok(self.http.send(method, &uri, headers).await)
    }

    /// Refuses an address whose scheme is not the service's, as long as nothing has shown that it is right.
    /// Of requests that fail at the same time one finds out, and the others are sent again.
    async fn check_scheme(&self, uri: &Uri) -> Result<(), OriginError> {
        if self.contact.has_answered() {
            return Ok(());
        }
        let known = {
            let mut checked = self.scheme_checked.lock();
            let last = checked.filter(|(at, _)| at.elapsed() < SCHEME_CHECKED_FOR);
            if last.is_none() {
                *checked = Some((Instant::now(), false));
            }
            last.map(|(_, found)| found)
        };
        let speaks_otherwise = match known {
            Some(found) => found,
            None => self.http.speaks_otherwise(uri).await,
        };
        if !speaks_otherwise {
            return Ok(());
        }
        *self.scheme_checked.lock() = Some((Instant::now(), true));
        Err(other_scheme(&self.name, uri))
    }

    /// AWS names the region in the host, so a corrected region changes the address.
    fn current_base(&self) -> String {
        match self.base.split_once(REGION) {
            None => self.base.clone(),
            Some((before, after)) => format!("{before}{}{after}", self.region.read()),
        }
    }
}

fn invalid(target: Arc<str>, error: &dyn std::fmt::Display) -> OriginError {
    OriginError::Unsupported {
        target,
        problem: format!("a request for it cannot be made: {error}"),
    }
}

/// URL of the bucket; see [`Client::base`].
fn base_url(spec: &OriginSpec, bucket: &str) -> Result<String, OriginError> {
    let Some(endpoint) = &spec.endpoint else {
        // Dots in a bucket's name break the certificate of a virtual host.
        let path = spec.addressing == Addressing::Path || bucket.contains('.');
        return Ok(if path {
            format!("https://s3.{{region}}.amazonaws.com/{bucket}")
        } else {
            format!("https://{bucket}.s3.{{region}}.amazonaws.com")
        });
    };
    let url = spec.endpoint_url(endpoint)?;
    let endpoint = url.as_str().trim_end_matches('/');
    Ok(match endpoint.split_once("://") {
        Some((scheme, rest)) if spec.addressing == Addressing::Virtual => {
            format!("{scheme}://{bucket}.{rest}")
        }
        _ => format!("{endpoint}/{bucket}"),
    })
}

/// URL of a bucket of OSS, which takes no other style than the virtual-hosted one, and the region that its host names.
fn oss_base_url(spec: &OriginSpec, bucket: &str) -> Result<(String, Option<String>), OriginError> {
    let url = spec.oss_endpoint()?;
    let host = url.host_str().unwrap_or_default();
    let (s3_host, region) = oss_s3_host(host);
    let endpoint = url.as_str().trim_end_matches('/');
    let endpoint = endpoint.replacen(host, &s3_host, 1);
    let base = match endpoint.split_once("://") {
        Some((scheme, rest)) if spec.addressing != Addressing::Path => {
            format!("{scheme}://{bucket}.{rest}")
        }
        _ => format!("{endpoint}/{bucket}"),
    };
    Ok((base, region.map(str::to_owned)))
}

/// Refuses what cannot be put into the headers of a signed request, which whoever signs it takes for granted.
fn check_signable(credential: &Keys, region: &str, origin: &Arc<str>) -> Result<(), OriginError> {
    let token = credential.token.as_deref().unwrap_or_default();
    for (value, what, remedy) in [
        (
            credential.access_key.as_str(),
            "the access key",
            "check AWS_ACCESS_KEY_ID, or the profile's aws_access_key_id",
        ),
        (
            token,
            "the session token",
            "check AWS_SESSION_TOKEN, or the profile's aws_session_token",
        ),
        (
            region,
            "the region",
            "check --region and AWS_REGION, or the profile's region",
        ),
    ] {
        if !value.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(OriginError::config(
                origin.clone(),
                format!(
                    "{what} has a line break, a space or another character that keys and regions do not have"
                ),
                remedy,
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_follow_endpoint_and_addressing() {
        let mut spec = OriginSpec::parse("s3://bucket").unwrap();
        let base = |spec: &OriginSpec, bucket| base_url(spec, bucket).unwrap();
        assert_eq!(
            base(&spec, "bucket"),
            "https://bucket.s3.{region}.amazonaws.com"
        );
        assert_eq!(base(&spec, "a.b"), "https://s3.{region}.amazonaws.com/a.b");
        spec.endpoint = Some("http://host:9000/".into());
        assert_eq!(base(&spec, "bucket"), "http://host:9000/bucket");
        spec.addressing = Addressing::Virtual;
        assert_eq!(base(&spec, "bucket"), "http://bucket.host:9000");
    }

    #[test]
    fn a_bucket_of_oss_is_a_host_of_the_endpoint_that_speaks_s3() {
        let base = |endpoint: &str, addressing| {
            let spec = OriginSpec {
                endpoint: Some(endpoint.to_owned()),
                addressing,
                ..OriginSpec::parse("oss://bucket").unwrap()
            };
            oss_base_url(&spec, "bucket").unwrap()
        };
        let internal = "https://oss-cn-hangzhou-internal.aliyuncs.com";
        assert_eq!(
            base(internal, Addressing::Auto),
            (
                "https://bucket.s3.oss-cn-hangzhou-internal.aliyuncs.com".to_owned(),
                Some("cn-hangzhou".to_owned())
            )
        );
        assert_eq!(
            base("http://127.0.0.1:9000/", Addressing::Path),
            ("http://127.0.0.1:9000/bucket".to_owned(), None)
        );
    }

    #[test]
    fn keys_that_no_header_can_carry_are_refused_by_name_and_never_shown() {
        let refused = |key: &str, token: Option<&str>, region: &str| {
            let credential = Keys {
                access_key: key.to_owned(),
                secret_key: "secret".to_owned(),
                token: token.map(str::to_owned),
            };
            check_signable(&credential, region, &"s3://b".into()).map_err(|e| e.to_string())
        };
        refused("AKIA", Some("abc/+=="), "us-east-1").unwrap();
        for (outcome, variable) in [
            (refused("AK\nIA", None, "r"), "AWS_ACCESS_KEY_ID"),
            (refused("AKIA", Some("to\nken"), "r"), "AWS_SESSION_TOKEN"),
            (refused("AKIA", Some("t\u{e9}"), "r"), "AWS_SESSION_TOKEN"),
            (refused("AKIA", None, "eu\r\nx: y"), "AWS_REGION"),
        ] {
            let message = outcome.unwrap_err();
            assert!(message.contains(variable), "{message}");
            assert!(
                !message.contains("\nken") && !message.contains("AK"),
                "{message}"
            );
        }
    }
}
