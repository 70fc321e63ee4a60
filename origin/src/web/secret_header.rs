//! The header that a web server wants to see, of the credentials that its source names.
//!
//! It is sent to that server alone, and not where the server sends requests on to.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use url::Url;

use crate::credential::{Credential, CredentialKind, Named};
use crate::error::OriginError;
use crate::spec::OriginSpec;
use crate::transport::calls::Refused;
use crate::transport::renewed::{Issuer, Renewed, RequestKeys};

/// What to do when the server refuses it.
pub(super) const REMEDY: &str =
    "check what the source's credentials may read, or give new ones with `weir credentials rotate`";

/// The header of one server.
pub(super) struct SecretHeader {
    kept: Renewed<Finder>,
    server: Url,
}

impl std::fmt::Debug for SecretHeader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretHeader(…)")
    }
}

/// Asks for the credentials.
pub(super) struct Finder {
    spec: OriginSpec,
    named: Named,
}

impl SecretHeader {
    pub(super) fn find(spec: &OriginSpec, server: &Url, named: Named) -> Result<Self, OriginError> {
        let spec = spec.clone();
        Ok(Self {
            kept: Renewed::find(Finder { spec, named })?,
            server: server.clone(),
        })
    }

    /// The header of one request, which is made again with another one if it is refused.
    pub(super) fn of_request(&self) -> OfRequest<'_> {
        OfRequest {
            keys: RequestKeys::of(Some(&self.kept)),
            server: &self.server,
        }
    }
}

/// The header of one request.
pub(super) struct OfRequest<'a> {
    keys: RequestKeys<'a, Finder>,
    server: &'a Url,
}

impl OfRequest<'_> {
    /// Adds it to a request for `address`, if that is the server's. Gives whether it did.
    pub(super) async fn add(
        &mut self,
        address: &Uri,
        headers: &mut HeaderMap,
    ) -> Result<bool, OriginError> {
        let is_own = Url::parse(&address.to_string())
            .is_ok_and(|address| address.origin() == self.server.origin());
        if !is_own {
            return Ok(false);
        }
        // It was checked that it is a header when it was set.
        if let Some(credential) = self.keys.get().await?
            && let CredentialKind::Header { name, value } = &credential.kind
            && let Ok(name) = name.parse::<HeaderName>()
            && let Ok(mut value) = HeaderValue::from_str(value.expose())
        {
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        Ok(true)
    }

    /// Whether there is another one, after the server has refused this.
    pub(super) async fn renew(&mut self) -> Result<bool, OriginError> {
        self.keys.renew().await
    }
}

impl Issuer for Finder {
    type Key = Credential;
    type Source = ();

    fn find(&self) -> Result<(), OriginError> {
        Ok(())
    }

    fn fixed((): &()) -> Option<&Arc<Credential>> {
        None
    }

    async fn load(&self, (): &()) -> Result<(Credential, Option<Duration>), Refused> {
        let credential = self.named.get().await.map_err(Refused::Error)?;
        self.spec
            .check_credential(&credential)
            .map_err(Refused::Error)?;
        Ok((Credential::clone(&credential), None))
    }

    fn changes((): &()) -> bool {
        true
    }

    fn target(&self) -> &Arc<str> {
        &self.named.target
    }

    fn remedy(&self) -> &'static str {
        REMEDY
    }
}
