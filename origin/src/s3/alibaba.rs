//! Keys of OSS, found as Alibaba Cloud's tools find them: variables, the role of a pod's service account (RRSA), the role of
//! an ECS instance.
//!
//! AWS's variables and files are not looked at: its keys are of no use there, and are not to be shown.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Uri, header};
use url::form_urlencoded;

use super::platform::{self, Given, Instance, address, given};
use super::signature::{Keys, Temporary};
use super::sts::session;
use crate::error::OriginError;
use crate::transport::calls::{Calls, Limits, Refused, token_service};
use crate::transport::environment::{Environment, token_in_file};

/// Where an instance's metadata service is.
const METADATA: &str = "http://100.100.100.200";
/// The version of the service that gives keys for tokens.
const STS_VERSION: &str = "2015-04-01";
const STS: Limits = Limits {
    connect: Duration::from_secs(3),
    whole: Duration::from_secs(8),
};
const TOKEN_FILE: &str = "ALIBABA_CLOUD_OIDC_TOKEN_FILE";

/// Where keys come from.
pub(super) enum Found {
    /// They are written down.
    Keys(Keys),
    PodRole(PodRole),
    /// An instance's metadata service may have them.
    Instance(Instance),
    /// Nowhere, and why.
    Nothing(String),
}

/// Finds out where keys come from. Reads variables and files, and asks nobody.
pub(super) fn find(
    origin: &Arc<str>,
    region: Option<&str>,
    environment: &Environment,
) -> Result<Found, OriginError> {
    if let Some(keys) = variables(origin, environment)? {
        return Ok(Found::Keys(keys));
    }
    if let Some(role) = PodRole::find(origin, region, environment)? {
        return Ok(Found::PodRole(role));
    }
    let name = "ALIBABA_CLOUD_ECS_METADATA_DISABLED";
    if is_set(environment, name) {
        return Ok(Found::Nothing(format!(
            "no variable has keys of OSS, and {name} is true"
        )));
    }
    let endpoint = Uri::from_static(METADATA);
    Ok(Found::Instance(instance(endpoint, environment)))
}

/// The metadata service at an address.
fn instance(endpoint: Uri, environment: &Environment) -> Instance {
    Instance {
        service: &platform::ALIBABA,
        role: environment
            .get("ALIBABA_CLOUD_ECS_METADATA")
            .map(str::to_owned),
        endpoint,
        without_token: !is_set(environment, "ALIBABA_CLOUD_IMDSV1_DISABLED"),
    }
}

/// Whether a variable is what Alibaba Cloud's tools take for true.
fn is_set(environment: &Environment, name: &str) -> bool {
    environment.is_true(name) || environment.get(name) == Some("1")
}

/// The keys that OSS's variables, or those of Alibaba Cloud's tools, have.
fn variables(origin: &Arc<str>, environment: &Environment) -> Result<Option<Keys>, OriginError> {
    for (id, secret, tokens) in [
        (
            "OSS_ACCESS_KEY_ID",
            "OSS_ACCESS_KEY_SECRET",
            &["OSS_SESSION_TOKEN", "OSS_SECURITY_TOKEN"][..],
        ),
        (
            "ALIBABA_CLOUD_ACCESS_KEY_ID",
            "ALIBABA_CLOUD_ACCESS_KEY_SECRET",
            &["ALIBABA_CLOUD_SECURITY_TOKEN"],
        ),
    ] {
        let Some(access_key) = environment.get(id) else {
            continue;
        };
        let Some(secret_key) = environment.get(secret) else {
            return Err(OriginError::config(
                origin.clone(),
                format!("{id} is set, and {secret} is not, or is empty"),
                "set both",
            ));
        };
        return Ok(Some(Keys {
            access_key: access_key.to_owned(),
            secret_key: secret_key.to_owned(),
            token: environment.first(tokens).map(str::to_owned),
        }));
    }
    Ok(None)
}

/// A role that is assumed with the token of a pod's service account.
pub(super) struct PodRole {
    arn: String,
    provider: String,
    session: String,
    /// The content of its file, which was read when this was found.
    token: String,
    service: Uri,
}

impl PodRole {
    /// The role that the variables of a pod name.
    fn find(
        origin: &Arc<str>,
        region: Option<&str>,
        environment: &Environment,
    ) -> Result<Option<Self>, OriginError> {
        let wrong =
            |problem: String, remedy: &str| OriginError::config(origin.clone(), problem, remedy);
        let Some(path) = environment.path(TOKEN_FILE) else {
            return Ok(None);
        };
        let needed = |name: &str| {
            let value = environment.get(name).map(str::to_owned);
            value.ok_or_else(|| {
                let problem = format!("{TOKEN_FILE} is set, and {name} is not, or is empty");
                wrong(problem, "set both, or neither")
            })
        };
        let (arn, provider) = (
            needed("ALIBABA_CLOUD_ROLE_ARN")?,
            needed("ALIBABA_CLOUD_OIDC_PROVIDER_ARN")?,
        );
        let token = token_in_file(origin, TOKEN_FILE, &path)?;
        let service = sts(region, environment).ok_or_else(|| {
            wrong(
                "the address of the service that gives keys is not a host or an https:// URL, or the region is none".to_owned(),
                "check ALIBABA_CLOUD_STS_ENDPOINT, ALIBABA_CLOUD_STS_REGION and OSS_REGION",
            )
        })?;
        Ok(Some(Self {
            arn,
            provider,
            session: session(environment.get("ALIBABA_CLOUD_ROLE_SESSION_NAME")),
            token,
            service,
        }))
    }

    /// Asks for the role's keys.
    pub(super) async fn load(&self, calls: &Calls) -> Result<Temporary, Refused> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            credentials: Given,
        }
        let what = || {
            let host = self.service.host().unwrap_or_default();
            format!("the STS at {host} for role {}", self.arn)
        };
        let remedy = "check ALIBABA_CLOUD_ROLE_ARN and its trust policy, ALIBABA_CLOUD_OIDC_PROVIDER_ARN and ALIBABA_CLOUD_OIDC_TOKEN_FILE";
        let unfit = || Refused::Denied(format!("{} cannot be asked", what()), remedy);
        let base = self.service.to_string();
        let uri = format!("{}/?{}", base.trim_end_matches('/'), action());
        let uri: Uri = uri.parse().map_err(|_| unfit())?;
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("RoleArn", &self.arn)
            .append_pair("OIDCProviderArn", &self.provider)
            .append_pair("OIDCToken", &self.token)
            .append_pair("RoleSessionName", &self.session)
            .finish();
        let mut headers = HeaderMap::new();
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        headers.insert(header::CONTENT_TYPE, kind);
        let asked = calls.ask(Method::POST, &uri, headers, form, STS);
        let reply = asked.await.map_err(|error| error.of_service(&what()))?;
        let answer: Answer = given(&reply, &what, remedy)?;
        Ok(answer.credentials.into())
    }
}

/// What is asked of the service. Nothing is signed: the token says who asks.
fn action() -> String {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
    form_urlencoded::Serializer::new(String::new())
        .append_pair("Action", "AssumeRoleWithOIDC")
        .append_pair("Format", "JSON")
        .append_pair("Version", STS_VERSION)
        .append_pair("Timestamp", &now.to_string())
        .finish()
}

/// Where keys are given for tokens: with TLS, but on this machine.
fn sts(region: Option<&str>, environment: &Environment) -> Option<Uri> {
    if let Some(endpoint) = environment.get("ALIBABA_CLOUD_STS_ENDPOINT") {
        let url = match endpoint.split_once("://") {
            Some(_) => endpoint.to_owned(),
            None => format!("https://{endpoint}"),
        };
        return address(&url).and_then(|_| token_service(&url));
    }
    let region = environment.get("ALIBABA_CLOUD_STS_REGION").or(region);
    let Some(region) = region else {
        return Some(Uri::from_static("https://sts.aliyuncs.com"));
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let host = if is_set(environment, "ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED") {
        "sts-vpc"
    } else {
        "sts"
    };
    let uri = format!("https://{host}.{region}.aliyuncs.com");
    uri.parse().ok().filter(|_| region.chars().all(fits))
}

#[cfg(test)]
mod tests;
