//! Requests to one service, and their failures in its origin's name.

use std::sync::Arc;

use http::{HeaderMap, Method, Uri};

use super::connect::Connector;
use super::contact::Contact;
use super::environment::Environment;
use super::exchange::{Answer, Http};
use super::failure::HttpError;
use super::proxy::Proxies;
use super::trust::{Trust, bundle_of};
use crate::error::{OriginError, address_said_by};
use crate::sources::Reach;

/// The connections of one origin, and whether its service has ever answered.
pub(crate) struct Service {
    http: Arc<Http>,
    /// The origin in messages.
    name: Arc<str>,
    /// Where requests may go, and which of them may carry keys.
    reach: Reach,
    /// What is known of the service.
    contact: Contact,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Service({})", self.name)
    }
}

impl Service {
    /// Connections for the origin of this name, with TLS to this host or without. No connection is made yet.
    pub(crate) fn new(
        name: Arc<str>,
        tls_to: Option<&str>,
        environment: &Environment,
        reach: Reach,
    ) -> Result<Self, OriginError> {
        let trust = tls_to.map(|host| Trust::of(&name, bundle_of(environment, host)));
        let proxies = Arc::new(Proxies::of(environment));
        let connector = Connector::new(trust.as_ref(), proxies, reach.clone())?;
        Ok(Self {
            http: Arc::new(Http::new(connector)),
            name,
            reach,
            contact: Contact::default(),
        })
    }

    /// The origin in messages.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// An object as it is named in messages.
    pub(crate) fn object_url(&self, key: &str) -> Arc<str> {
        format!("{}/{}", self.name, key.escape_debug()).into()
    }

    /// What a request is about in messages: an object, or the origin itself.
    pub(crate) fn target(&self, key: Option<&str>) -> Arc<str> {
        key.map_or_else(|| self.name.clone(), |key| self.object_url(key))
    }

    /// What is known of the service.
    pub(crate) fn contact(&self) -> &Contact {
        &self.contact
    }

    /// Refuses to send keys to where this process may not.
    pub(crate) fn check_signature(&self, uri: &Uri) -> Result<(), OriginError> {
        let meant = self.reach.check_signature(uri);
        meant.map_err(|forbidden| forbidden.of(self.name.clone()))
    }

    /// Sends a request about an object, or the origin itself, and waits for the head of its answer, whatever it is.
    pub(crate) async fn send(
        &self,
        method: &Method,
        uri: &Uri,
        headers: HeaderMap,
        key: Option<&str>,
    ) -> Result<Answer, OriginError> {
        match self.http.send(method, uri, headers).await {
            Ok(answer) => {
                if answer.status.is_success() {
                    self.contact.set_answered();
                }
                Ok(answer)
            }
            Err(error) => {
                if key.is_none() && error.may_be_another_scheme() {
                    self.check_scheme(uri).await?;
                }
                Err(self.explain(error, key))
            }
        }
    }

    /// The error of an exchange that failed.
    pub(crate) fn explain(&self, error: HttpError, key: Option<&str>) -> OriginError {
        error.explain(self.target(key))
    }

    /// Refuses an address whose scheme is not the service's, as long as nothing has shown that it is right.
    async fn check_scheme(&self, uri: &Uri) -> Result<(), OriginError> {
        if self.contact.has_answered() || !self.http.speaks_otherwise(uri).await {
            return Ok(());
        }
        Err(other_scheme(&self.name, uri))
    }

    pub(crate) fn close_idle(&self) {
        self.http.close_idle();
    }
}

/// The error of an address with `http://` where there is TLS, or with `https://` where there is none.
pub(crate) fn other_scheme(origin: &Arc<str>, uri: &Uri) -> OriginError {
    let host = uri.authority().map_or("", |authority| authority.as_str());
    let (is, right) = match uri.scheme_str() {
        Some("https") => ("does not speak TLS", "http"),
        _ => ("speaks TLS", "https"),
    };
    OriginError::Refused {
        target: origin.clone(),
        problem: format!("the service at {host} {is}"),
        remedy: format!(
            "give its address as {} {right}://…",
            address_said_by(origin)
        ),
    }
}
