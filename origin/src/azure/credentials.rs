//! What requests to Azure are authorised with, found as Azure's tools find it: a shared access signature, the key of the
//! account, an identity of a workload or an application, the identity of the machine.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use url::{Url, form_urlencoded};

use super::signature::SharedKey;
use crate::credential::{CredentialKind, Named};
use crate::error::OriginError;
use crate::spec::stores::{azure_account, connection_field};
use crate::transport::calls::{Calls, Limits, Refused, bearer, token_service};
use crate::transport::environment::{Environment, token_in_file};
use crate::transport::renewed::Issuer;
use crate::transport::trust::Trust;

/// What tokens are for.
const RESOURCE: &str = "https://storage.azure.com/";
const ENTRA: &str = "https://login.microsoftonline.com";
const METADATA: &str =
    "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01";
/// The account and the key of every Azurite, which are no secret.
const EMULATED: &str = "devstoreaccount1";
const EMULATED_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

const OF_SERVICE: Limits = Limits {
    connect: Duration::from_secs(3),
    whole: Duration::from_secs(8),
};
const OF_MACHINE: Limits = Limits {
    connect: Duration::from_millis(900),
    whole: Duration::from_secs(5),
};

/// What a request is authorised with.
#[derive(PartialEq)]
pub(super) enum Authority {
    /// A signature with the account's key.
    Key(SharedKey),
    /// A shared access signature: parameters of the query.
    Sas(String),
    /// A token of an identity.
    Bearer(HeaderValue),
}

#[derive(Clone)]
pub(super) enum Source {
    Fixed(Arc<Authority>),
    /// An identity of Entra ID.
    Identity(Arc<Identity>),
    /// The identity of the machine, or of the app.
    Machine(Arc<Machine>),
    /// Credentials that the container's source names.
    Named(Named),
}

/// An application that shows a token or a secret.
pub(super) struct Identity {
    client: String,
    service: Uri,
    proof: Proof,
}

enum Proof {
    /// The content of the file of a token, which was read when this was found.
    Assertion(String),
    Secret(String),
}

pub(super) struct Machine {
    uri: Uri,
    headers: HeaderMap,
    what: &'static str,
}

#[derive(Clone)]
pub(super) struct Found {
    source: Source,
    calls: Calls,
}

/// Finds the keys of one container.
pub(super) struct Finder {
    origin: Arc<str>,
    /// The account that the container's address names.
    account: Option<String>,
    /// The address is one of this machine.
    is_local: bool,
    environment: Box<dyn Fn() -> Environment + Send + Sync>,
    /// Credentials that the container's source names.
    named: Option<Named>,
}

/// Whether an address is one of this machine.
pub(super) fn is_local(endpoint: &Url) -> bool {
    let host = endpoint.host_str().unwrap_or_default();
    let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

impl Finder {
    pub(super) fn new(
        origin: Arc<str>,
        endpoint: &Url,
        environment: impl Fn() -> Environment + Send + Sync + 'static,
        named: Option<Named>,
    ) -> Self {
        let host = endpoint.host_str().unwrap_or_default();
        let in_path = || {
            let mut parts = endpoint.path_segments()?;
            parts.next().filter(|first| !first.is_empty())
        };
        let account = azure_account(host).or_else(in_path).map(str::to_owned);
        Self {
            origin,
            account,
            is_local: is_local(endpoint),
            environment: Box::new(environment),
            named,
        }
    }

    /// The key or signature that the source's credentials are.
    async fn of_source(&self, named: &Named) -> Result<Authority, OriginError> {
        let credential = named.get().await?;
        let remedy = "give others with `weir credentials rotate`";
        match &credential.kind {
            CredentialKind::AzureSas(query) => Ok(Authority::Sas(query.expose().clone())),
            CredentialKind::AzureKey { account, .. }
                if self.account.as_deref().is_some_and(|own| own != account) =>
            {
                Err(named.refused(format!("they are of the account {account}"), remedy))
            }
            CredentialKind::AzureKey { account, key } => {
                let key = SharedKey::new(account, key.expose());
                let key = key.ok_or_else(|| named.refused("the key is not base64", remedy));
                key.map(Authority::Key)
            }
            _ => Err(named.refused("they are not of Azure", remedy)),
        }
    }

    fn wrong(&self, problem: impl Into<String>, remedy: &str) -> OriginError {
        OriginError::config(self.origin.clone(), problem, remedy)
    }

    /// What the variables say, which must be of the container's account.
    fn written_down(&self, environment: &Environment) -> Result<Option<Authority>, OriginError> {
        let connection = environment.get("AZURE_STORAGE_CONNECTION_STRING");
        let field = |name| connection_field(connection?, name);
        let named = environment
            .first(&["AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"])
            .or_else(|| field("AccountName"));
        let is_other = matches!((&self.account, named), (Some(own), Some(named)) if own != named);
        if is_other {
            // They are of another account: an identity may still do.
            return Ok(None);
        }
        let sas = environment.first(&["AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY"]);
        if let Some(sas) = sas.or_else(|| field("SharedAccessSignature")) {
            let sas = sas.trim_start_matches('?');
            let fits = |c: char| c.is_ascii_graphic() && c != '#';
            if !sas.contains("sig=") || !sas.chars().all(fits) {
                return Err(self.wrong(
                    "AZURE_STORAGE_SAS_TOKEN is no shared access signature",
                    "write it as Azure gives it: sv=…&sig=…",
                ));
            }
            return Ok(Some(Authority::Sas(sas.to_owned())));
        }
        let key = environment.first(&["AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY"]);
        let account = self.account.as_deref().or(named);
        let key = key.or_else(|| field("AccountKey"));
        let is_emulated = self.is_local && account == Some(EMULATED);
        let key = key.or_else(|| is_emulated.then_some(EMULATED_KEY));
        match (key, account) {
            (None, _) => Ok(None),
            (Some(_), None) => Err(self.wrong(
                "AZURE_STORAGE_ACCOUNT_KEY is set, and which account it is of is not known",
                "set AZURE_STORAGE_ACCOUNT_NAME",
            )),
            (Some(key), Some(account)) => {
                let shared = SharedKey::new(account, key).ok_or_else(|| {
                    self.wrong("AZURE_STORAGE_ACCOUNT_KEY is not base64", "copy it again")
                })?;
                Ok(Some(Authority::Key(shared)))
            }
        }
    }

    fn identity(&self, environment: &Environment) -> Result<Option<Identity>, OriginError> {
        const FILE: &str = "AZURE_FEDERATED_TOKEN_FILE";
        let (Some(client), Some(tenant)) = (
            environment.get("AZURE_CLIENT_ID"),
            environment.get("AZURE_TENANT_ID"),
        ) else {
            return Ok(None);
        };
        let proof = if let Some(path) = environment.path(FILE) {
            Proof::Assertion(token_in_file(&self.origin, FILE, &path)?)
        } else if let Some(secret) = environment.get("AZURE_CLIENT_SECRET") {
            Proof::Secret(secret.to_owned())
        } else {
            return Ok(None);
        };
        let authority = environment.get("AZURE_AUTHORITY_HOST").unwrap_or(ENTRA);
        let authority = match authority.split_once("://") {
            Some(_) => authority.to_owned(),
            None => format!("https://{authority}"),
        };
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
        let service = format!(
            "{}/{tenant}/oauth2/v2.0/token",
            authority.trim_end_matches('/')
        );
        let service = token_service(&service).filter(|_| tenant.chars().all(fits));
        let service = service.ok_or_else(|| {
            self.wrong(
                "the service that gives tokens has no https:// address, or the tenant is none",
                "check AZURE_AUTHORITY_HOST and AZURE_TENANT_ID",
            )
        })?;
        Ok(Some(Identity {
            client: client.to_owned(),
            service,
            proof,
        }))
    }

    fn machine(&self, environment: &Environment) -> Result<Machine, OriginError> {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("resource", RESOURCE);
        if let Some(client) = environment.get("AZURE_CLIENT_ID") {
            query.append_pair("client_id", client);
        }
        let query = query.finish();
        let mut headers = HeaderMap::new();
        let app = environment
            .get("IDENTITY_ENDPOINT")
            .zip(environment.get("IDENTITY_HEADER"));
        let (uri, what) = if let Some((endpoint, secret)) = app {
            let secret = HeaderValue::from_str(secret)
                .map_err(|_| self.wrong("IDENTITY_HEADER is no header", "check it"))?;
            headers.insert(HeaderName::from_static("x-identity-header"), secret);
            let uri = format!("{endpoint}?api-version=2019-08-01&{query}");
            (uri, "the identity service of this app (IDENTITY_ENDPOINT)")
        } else {
            headers.insert("metadata", HeaderValue::from_static("true"));
            let what = "the metadata service of the machine, 169.254.169.254";
            (format!("{METADATA}&{query}"), what)
        };
        let uri = uri
            .parse()
            .map_err(|_| self.wrong("IDENTITY_ENDPOINT is no address", "check it"))?;
        Ok(Machine { uri, headers, what })
    }
}

impl Issuer for Finder {
    type Key = Authority;
    type Source = Found;

    fn find(&self) -> Result<Found, OriginError> {
        let environment = (self.environment)();
        let source = if let Some(named) = &self.named {
            Source::Named(named.clone())
        } else if let Some(fixed) = self.written_down(&environment)? {
            Source::Fixed(Arc::new(fixed))
        } else if let Some(identity) = self.identity(&environment)? {
            Source::Identity(Arc::new(identity))
        } else {
            Source::Machine(Arc::new(self.machine(&environment)?))
        };
        Ok(Found {
            source,
            calls: Calls::new(Trust::of(&self.origin, None), &environment),
        })
    }

    fn fixed(found: &Found) -> Option<&Arc<Authority>> {
        match &found.source {
            Source::Fixed(authority) => Some(authority),
            _ => None,
        }
    }

    async fn load(&self, found: &Found) -> Result<(Authority, Option<Duration>), Refused> {
        let (token, life) = match &found.source {
            Source::Named(named) => {
                let authority = self.of_source(named).await.map_err(Refused::Error)?;
                return Ok((authority, None));
            }
            Source::Identity(identity) => identity.load(&found.calls).await?,
            Source::Machine(machine) => machine.load(&found.calls).await?,
            // Nobody asks for what is there already.
            Source::Fixed(_) => return Err(Refused::Absent("the key is written down".to_owned())),
        };
        Ok((Authority::Bearer(token), life))
    }

    fn changes(found: &Found) -> bool {
        !matches!(found.source, Source::Fixed(_))
    }

    fn target(&self) -> &Arc<str> {
        &self.origin
    }

    fn remedy(&self) -> &'static str {
        "set AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN (of AZURE_STORAGE_ACCOUNT_NAME), give this workload or machine an identity, or use --anonymous for a public container"
    }
}

impl Identity {
    /// The form that is sent.
    fn question(&self) -> String {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials")
            .append_pair("client_id", &self.client)
            .append_pair("scope", &format!("{RESOURCE}.default"));
        match &self.proof {
            Proof::Secret(secret) => form.append_pair("client_secret", secret),
            Proof::Assertion(token) => form
                .append_pair(
                    "client_assertion_type",
                    "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
                )
                .append_pair("client_assertion", token),
        };
        form.finish()
    }

    async fn load(&self, calls: &Calls) -> Result<(HeaderValue, Option<Duration>), Refused> {
        let mut headers = HeaderMap::new();
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        headers.insert(header::CONTENT_TYPE, kind);
        let host = self.service.host().unwrap_or_default();
        let what = || format!("{host} for the application {}", self.client);
        let question = self.question();
        let asked = calls.ask(Method::POST, &self.service, headers, question, OF_SERVICE);
        let reply = asked.await.map_err(|error| error.of_service(&what()))?;
        let remedy = "check AZURE_CLIENT_ID, AZURE_TENANT_ID, and AZURE_FEDERATED_TOKEN_FILE or AZURE_CLIENT_SECRET";
        bearer(&reply, &what, remedy)
    }
}

impl Machine {
    async fn load(&self, calls: &Calls) -> Result<(HeaderValue, Option<Duration>), Refused> {
        let calls = calls.direct();
        let what = || self.what.to_owned();
        let asked = calls.ask(Method::GET, &self.uri, self.headers.clone(), "", OF_MACHINE);
        let reply = asked.await.map_err(|error| error.of_platform(self.what))?;
        // It has no identity (400), or is another cloud's, which may answer anything.
        if reply.status.is_client_error() && reply.status != StatusCode::TOO_MANY_REQUESTS {
            let status = reply.status.as_u16();
            let detail = format!("{} answers {status}: there is no identity", self.what);
            return Err(Refused::Absent(detail));
        }
        bearer(
            &reply,
            &what,
            "check the identity of this machine, and AZURE_CLIENT_ID if it has several",
        )
    }
}
