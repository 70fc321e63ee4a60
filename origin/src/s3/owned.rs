//! Keys of credentials that a source names: written down, or those of a role.
//!
//! Nothing of this process's own stands in for them. Whoever keeps them is asked again every half a minute while they are in
//! use, and at once when the service has refused them, so that new ones are used soon and nobody need be told.

use std::path::Path;
use std::sync::Arc;

use http::Uri;
use weir_core::read_settings;

use super::signature::Temporary;
use super::sts::{Role, Sts, Terms, session};
use crate::credential::{CredentialKind, Named, S3_KINDS, given_life};
use crate::error::OriginError;
use crate::sources::is_aws_s3;
use crate::transport::calls::{Calls, Refused};

/// Longest token of a web identity, in bytes.
const MAX_TOKEN: usize = 16 << 10;

/// The credentials that a bucket's source names.
pub(super) struct Owned {
    pub(super) named: Named,
    /// The bucket's address; none for one of AWS, where it changes with the region.
    pub(super) home: Option<Uri>,
}

impl Owned {
    /// Gets the keys, of a role from the service at `sts`.
    pub(super) async fn load(
        &self,
        sts: &Sts,
        calls: &Calls,
        origin: &Arc<str>,
    ) -> Result<Temporary, Refused> {
        let credential = self.named.get().await.map_err(Refused::Error)?;
        let role = |arn: &String| Role {
            arn: arn.clone(),
            session: session(None),
            service: sts.clone(),
        };
        let keys = match &credential.kind {
            CredentialKind::Keys(keys) => {
                return Ok(Temporary {
                    keys: keys.clone(),
                    life: None,
                });
            }
            CredentialKind::Role {
                arn,
                external_id,
                keys,
            } => {
                let terms = Terms {
                    external_id: external_id.clone(),
                    duration: None,
                };
                let role = role(arn);
                role.load_with_keys(keys, &terms, calls, origin).await?
            }
            CredentialKind::WebIdentity { arn, token_file } => {
                let token = self.token(token_file).await.map_err(Refused::Error)?;
                role(arn).load_with_token(&token, calls, origin).await?
            }
            _ => {
                let unfit = self.named.unfit(&credential, "S3", S3_KINDS);
                return Err(Refused::Error(unfit));
            }
        };
        Ok(Temporary {
            life: Some(given_life(keys.life)),
            ..keys
        })
    }

    /// The token in a file of this machine. What is no token is not sent to anybody: the file was named by somebody who may
    /// not be able to read it.
    async fn token(&self, file: &str) -> Result<String, OriginError> {
        let path = file.to_owned();
        let content = tokio::task::spawn_blocking(move || read_settings(Path::new(&path)));
        let remedy = format!("check the file {file} on this machine, and `weir credentials list`");
        let content = match content.await {
            Ok(Ok(content)) => content,
            Ok(Err(error)) => {
                let problem = format!("the token's file {file} cannot be read: {error}");
                return Err(self.named.refused(problem, remedy));
            }
            Err(_) => return Err(self.named.refused("this process is ending", "try again")),
        };
        let token = String::from_utf8(content).unwrap_or_default();
        let token = token.trim();
        let is_part = |part: &str| {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            !part.is_empty() && part.bytes().all(fits)
        };
        let parts = token.split('.');
        if token.len() > MAX_TOKEN || parts.clone().count() != 3 || !parts.clone().all(is_part) {
            let problem = format!("the file {file} holds no token of a web identity (a JWT)");
            return Err(self.named.refused(problem, remedy));
        }
        Ok(token.to_owned())
    }

    /// Checks that a request may be sent on to `uri` with these keys: to the same service alone.
    pub(super) fn check_redirect(&self, uri: &Uri) -> Result<(), OriginError> {
        let is_same = match &self.home {
            None => uri.scheme_str() == Some("https") && uri.host().is_some_and(is_aws_s3),
            Some(home) => {
                home.scheme() == uri.scheme()
                    && home.host() == uri.host()
                    && home.port_u16() == uri.port_u16()
            }
        };
        if is_same {
            return Ok(());
        }
        let host = uri.host().unwrap_or_default();
        let problem = format!("the service sends requests on to {host}, which they are not for");
        let remedy = "name that service as the source's endpoint, if it is meant";
        Err(self.named.refused(problem, remedy))
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use weir_core::CredentialName;

    use super::super::credentials::{Settings, find};
    use super::*;
    use crate::credential::{Credential, CredentialError, CredentialSource, Secret};
    use crate::s3::signature::Keys;
    use crate::spec::OriginSpec;
    use crate::spec::stores::Dialect;

    /// Has what the test gives it.
    #[derive(Debug)]
    struct Given(Mutex<Result<Credential, CredentialError>>);

    #[async_trait::async_trait]
    impl CredentialSource for Given {
        async fn credential(&self, _: &CredentialName) -> Result<Arc<Credential>, CredentialError> {
            self.0.lock().clone().map(Arc::new)
        }
    }

    const ENDPOINT: &str = "http://minio.lab:9000";

    fn of(kind: CredentialKind) -> Credential {
        Credential {
            kind,
            endpoints: vec![ENDPOINT.to_owned()],
        }
    }

    fn keys(secret: &str) -> Keys {
        Keys {
            access_key: "AK".to_owned(),
            secret_key: secret.to_owned(),
            token: None,
        }
    }

    fn owned(given: &Arc<Given>, endpoint: Option<&str>) -> Arc<Owned> {
        let name = "team".parse().unwrap();
        let spec = OriginSpec {
            endpoint: endpoint.map(str::to_owned),
            credentials: Some("team".to_owned()),
            ..OriginSpec::parse("s3://b").unwrap()
        };
        Arc::new(Owned {
            named: Named::new(name, &spec, given.clone(), "s3://b".into()),
            home: endpoint.map(|endpoint| format!("{endpoint}/b").parse().unwrap()),
        })
    }

    fn settings(owned: Arc<Owned>) -> Settings {
        Settings {
            profile: None,
            region: Some("us-east-1".to_owned()),
            name: "s3://b".into(),
            named: Some(owned),
            dialect: Dialect::S3,
        }
    }

    #[tokio::test]
    async fn refused_keys_are_asked_for_again() {
        let given = Arc::new(Given(Mutex::new(Ok(of(CredentialKind::Keys(keys("one")))))));
        let credentials = find(settings(owned(&given, Some(ENDPOINT)))).unwrap();
        let first = credentials.get().await.unwrap();
        assert_eq!(*first, keys("one"));
        *given.0.lock() = Ok(of(CredentialKind::Keys(keys("two"))));
        assert_eq!(
            *credentials.get().await.unwrap(),
            keys("one"),
            "they are in use"
        );
        assert!(credentials.renew(&first).await.unwrap());
        assert_eq!(*credentials.get().await.unwrap(), keys("two"));
    }

    #[tokio::test]
    async fn what_cannot_be_used_is_told_and_nothing_stands_in_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let identity = |token_file: String| CredentialKind::WebIdentity {
            arn: "arn:aws:iam::1:role/r".to_owned(),
            token_file,
        };
        let header = CredentialKind::Header {
            name: "X-Token".to_owned(),
            value: Secret::new("hunter2".to_owned()),
        };
        let missing = dir.path().join("missing").to_str().unwrap().to_owned();
        let own = Some(ENDPOINT);
        for (kind, endpoint, said) in [
            (header, own, "of the kind header"),
            (
                CredentialKind::Keys(keys("hunter2")),
                None,
                "not for https://s3.amazonaws.com",
            ),
            (
                CredentialKind::Keys(keys("hunter2")),
                Some("http://evil:9000"),
                "not for http://evil:9000",
            ),
            (identity(missing), own, "cannot be read"),
            (identity("/dev/zero".to_owned()), own, "no regular file"),
            (
                identity(file("shadow", "root:hunter2:1:::::")),
                own,
                "holds no token",
            ),
            (
                identity(file("key", "-----BEGIN KEY-----\nhunter2.a.b\n")),
                own,
                "holds no token",
            ),
            (identity(file("empty", "")), own, "holds no token"),
        ] {
            let given = Arc::new(Given(Mutex::new(Ok(of(kind)))));
            let credentials = find(settings(owned(&given, endpoint))).unwrap();
            let error = credentials.get().await.unwrap_err();
            assert!(matches!(error.kind(), "not_allowed" | "config"), "{error}");
            let error = error.to_string();
            assert!(
                error.contains("credentials team") && error.contains(said),
                "{error}"
            );
            assert!(!error.contains("hunter2"), "{error}");
        }
        let away = CredentialError::Unavailable("the master is away".to_owned());
        let given = Arc::new(Given(Mutex::new(Err(away))));
        let error = find(settings(owned(&given, own)))
            .unwrap()
            .get()
            .await
            .unwrap_err();
        assert!(
            error.is_retryable() && error.to_string().contains("away"),
            "{error}"
        );
    }

    #[test]
    fn a_redirect_is_followed_to_the_same_service_alone() {
        let given = Arc::new(Given(Mutex::new(Ok(of(CredentialKind::Keys(keys("s")))))));
        let check = |endpoint, uri: &'static str| {
            owned(&given, endpoint)
                .check_redirect(&Uri::from_static(uri))
                .is_ok()
        };
        assert!(check(Some(ENDPOINT), "http://minio.lab:9000/other"));
        for uri in [
            "https://minio.lab:9000/",
            "http://minio.lab/",
            "http://evil:9000/",
            "https://s3.amazonaws.com/",
        ] {
            assert!(!check(Some(ENDPOINT), uri), "{uri}");
        }
        assert!(check(None, "https://b.s3.eu-west-1.amazonaws.com/k"));
        assert!(!check(None, "http://b.s3.eu-west-1.amazonaws.com/k"));
        assert!(!check(None, "https://b.evil.example/k"));
    }
}
