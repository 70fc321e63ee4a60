//! The header that a web server wants to see, of the credentials that its source names.
//!
//! It is sent to that server alone, and not where the server sends requests on to.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use url::Url;

use crate::credential::{Credential, CredentialKind, Named};
use crate::error::OriginError;
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
    named: Named,
}

impl SecretHeader {
    pub(super) fn find(server: &Url, named: Named) -> Result<Self, OriginError> {
        Ok(Self {
            kept: Renewed::find(Finder { named })?,
            server: server.clone(),
        })
    }
}

/// The header of one request, which is made again with another one if it is refused. Of a server that needs none it is none.
pub(super) struct OfRequest<'a> {
    of: Option<(RequestKeys<'a, Finder>, &'a Url)>,
    /// The last attempt had it.
    is_shown: bool,
}

impl<'a> OfRequest<'a> {
    pub(super) fn new(secret: Option<&'a SecretHeader>) -> Self {
        let keys = |secret: &'a SecretHeader| {
            let keys = RequestKeys::of(Some(&secret.kept));
            (keys, &secret.server)
        };
        Self {
            of: secret.map(keys),
            is_shown: false,
        }
    }

    /// The headers of an attempt at this address, with it if that is the server's.
    pub(super) async fn add(
        &mut self,
        address: &Uri,
        headers: &HeaderMap,
    ) -> Result<HeaderMap, OriginError> {
        let mut headers = headers.clone();
        self.is_shown = false;
        let Some((keys, server)) = &mut self.of else {
            return Ok(headers);
        };
        let is_own = Url::parse(&address.to_string())
            .is_ok_and(|address| address.origin() == server.origin());
        if !is_own {
            return Ok(headers);
        }
        // It was checked that it is a header when it was set.
        if let Some(credential) = keys.get().await?
            && let CredentialKind::Header { name, value } = &credential.kind
            && let Ok(name) = name.parse::<HeaderName>()
            && let Ok(mut value) = HeaderValue::from_str(value.expose())
        {
            value.set_sensitive(true);
            headers.insert(name, value);
            self.is_shown = true;
        }
        Ok(headers)
    }

    /// Whether there is another one, after the server has answered so.
    pub(super) async fn renew(&mut self, status: StatusCode) -> Result<bool, OriginError> {
        let is_denied = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        match &mut self.of {
            Some((keys, _)) if self.is_shown && is_denied => keys.renew().await,
            _ => Ok(false),
        }
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
