//! Requests to Azure's blobs, whose every byte a test decides.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::TryStreamExt;

use super::*;
use weir_core::CredentialName;

use crate::credential::{Credential, CredentialError, CredentialKind, CredentialSource, Secret};
use crate::origin::Origin;
use crate::transport::testing::{service, with_head};

fn origin(
    address: SocketAddr,
    variables: &[(&'static str, &'static str)],
) -> Result<StoreOrigin<Azure>, OriginError> {
    let spec = OriginSpec {
        endpoint: Some(format!("http://{address}/acc")),
        ..OriginSpec::parse("az://con").unwrap()
    };
    let variables = variables.to_vec();
    let environment = move || Environment::of(variables.iter().copied());
    let store = Azure::new(&spec, &crate::SourcePolicy::unlimited(), environment)?;
    Ok(StoreOrigin::new(&spec, store))
}

const KEY: [(&str, &str); 1] = [("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")];

fn object() -> ObjectRef {
    ObjectRef {
        key: "a b/c".into(),
        size: 5,
        version: "0x1".into(),
        modified_ns: 0,
    }
}

async fn read(origin: &dyn Origin) -> Result<Vec<u8>, OriginError> {
    let fetched = origin.get(&object(), 0..5).await?;
    let pieces: Vec<_> = fetched.body.try_collect().await?;
    Ok(pieces.concat())
}

#[tokio::test]
async fn a_request_is_conditional_and_authorised() {
    let address = service(|head| {
        let line = head.lines().next().unwrap();
        assert!(head.contains("if-match: \"0x1\""), "{head}");
        assert!(head.contains("accept-encoding: identity"), "{head}");
        let is_signed = head.contains("authorization: SharedKey acc:");
        let has_sas = line == "GET /acc/con/a%20b/c?sv=1&sig=s%2Bx HTTP/1.1";
        assert!(
            is_signed != has_sas && (has_sas || line == "GET /acc/con/a%20b/c HTTP/1.1"),
            "{head}"
        );
        with_head("200 OK", &["Content-Length: 5", "ETag: \"0x1\""], b"hello")
    })
    .await;
    let by_key = origin(address, &KEY).unwrap();
    assert_eq!(read(&by_key).await.unwrap(), b"hello");
    let by_sas = origin(address, &[("AZURE_STORAGE_SAS_TOKEN", "?sv=1&sig=s%2Bx")]).unwrap();
    assert_eq!(read(&by_sas).await.unwrap(), b"hello");
}

#[tokio::test]
async fn refusals_are_told_apart_and_hold_no_secret() {
    for (status, code, kind) in [
        ("412 Precondition", "ConditionNotMet", "changed"),
        ("404 Not Found", "BlobNotFound", "changed"),
        ("404 Not Found", "ContainerNotFound", "bucket_missing"),
        ("404 Not Found", "ResourceNotFound", "access_denied"),
        ("403 Forbidden", "AuthenticationFailed", "access_denied"),
        ("503 Busy", "ServerBusy", "throttled"),
        ("409 Conflict", "BlobArchived", "refused"),
    ] {
        let address = service(move |_| {
            let code = format!("x-ms-error-code: {code}");
            with_head(status, &[&code, "Content-Length: 0"], b"")
        })
        .await;
        let origin = origin(address, &[("AZURE_STORAGE_SAS_TOKEN", "sv=1&sig=hunter2")]).unwrap();
        let error = read(&origin).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{status} {code}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
        assert!(!format!("{origin:?}").contains("hunter2"));
    }
    let etag = "ETag: \"0x2\"";
    let address =
        service(move |_| with_head("200 OK", &["Content-Length: 5", etag], b"hello")).await;
    assert_eq!(
        read(&origin(address, &KEY).unwrap())
            .await
            .unwrap_err()
            .kind(),
        "changed"
    );
}

#[tokio::test]
async fn keys_of_another_account_are_not_used_and_wrong_ones_are_named() {
    let address = service(|_| with_head("500 Oops", &[], b"")).await;
    for (variables, said) in [
        (&[("AZURE_STORAGE_ACCOUNT_KEY", "no base64!")][..], "base64"),
        (
            &[("AZURE_STORAGE_SAS_TOKEN", "hunter2")],
            "AZURE_STORAGE_SAS_TOKEN",
        ),
        (
            &[
                ("AZURE_FEDERATED_TOKEN_FILE", "/nonexistent"),
                ("AZURE_CLIENT_ID", "c"),
                ("AZURE_TENANT_ID", "t"),
            ],
            "/nonexistent",
        ),
    ] {
        let error = origin(address, variables).err().unwrap().to_string();
        assert!(
            error.contains(said) && !error.contains("hunter2"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn an_identity_shows_its_token_and_is_asked_once() {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let address = service(|head| {
        if head.starts_with("POST /ten/oauth2/v2.0/token") {
            ASKED.fetch_add(1, Ordering::Relaxed);
            let token = br#"{"access_token":"tok","expires_in":3600}"#;
            return with_head("200 OK", &[], token);
        }
        assert!(head.contains("authorization: Bearer tok"), "{head}");
        with_head("200 OK", &["Content-Length: 5", "ETag: \"0x1\""], b"hello")
    })
    .await;
    let spec = OriginSpec {
        endpoint: Some(format!("http://{address}/acc")),
        ..OriginSpec::parse("az://con").unwrap()
    };
    let authority = format!("http://{address}");
    let environment = move || {
        Environment::of([
            ("AZURE_CLIENT_ID", "app"),
            ("AZURE_TENANT_ID", "ten"),
            ("AZURE_CLIENT_SECRET", "s"),
            ("AZURE_AUTHORITY_HOST", &*authority),
        ])
    };
    let store = Azure::new(&spec, &crate::SourcePolicy::unlimited(), environment).unwrap();
    let origin = StoreOrigin::new(&spec, store);
    let all = futures::future::join_all((0..20).map(|_| read(&origin))).await;
    assert!(all.into_iter().all(|read| read.unwrap() == b"hello"));
    assert_eq!(ASKED.load(Ordering::Relaxed), 1);
}

/// Has what the test gives it.
#[derive(Debug)]
struct Given(parking_lot::Mutex<CredentialKind>);

#[async_trait::async_trait]
impl CredentialSource for Given {
    async fn credential(&self, _: &CredentialName) -> Result<Arc<Credential>, CredentialError> {
        Ok(Arc::new(Credential {
            kind: self.0.lock().clone(),
            endpoints: vec!["http://127.0.0.1:1".to_owned()],
        }))
    }
}

#[tokio::test]
async fn keys_that_the_source_names_are_used_and_no_others() {
    let key = |account: &str| CredentialKind::AzureKey {
        account: account.to_owned(),
        key: Secret::new("a2V5".to_owned()),
    };
    let sas = CredentialKind::AzureSas(Secret::new("sv=1&sig=hunter2".to_owned()));
    let header = CredentialKind::Header {
        name: "X".to_owned(),
        value: Secret::new("hunter2".to_owned()),
    };
    for (kind, endpoint, said) in [
        (key("acc"), "http://127.0.0.1:1/acc", None),
        (sas, "http://127.0.0.1:1/acc", None),
        (
            key("other"),
            "http://127.0.0.1:1/acc",
            Some("of the account other"),
        ),
        (
            key("acc"),
            "http://127.0.0.1:2/acc",
            Some("not for http://127.0.0.1:2"),
        ),
        (header, "http://127.0.0.1:1/acc", Some("takes an azure key")),
    ] {
        let spec = OriginSpec {
            endpoint: Some(endpoint.to_owned()),
            credentials: Some("team".to_owned()),
            ..OriginSpec::parse("az://con").unwrap()
        };
        let given = Arc::new(Given(parking_lot::Mutex::new(kind)));
        let sources = crate::SourcePolicy::unlimited().with_credentials(given);
        let environment = || Environment::of([("AZURE_STORAGE_ACCOUNT_KEY", "b3RoZXI=")]);
        let azure = Azure::new(&spec, &sources, environment).unwrap();
        let keys = azure.credentials.as_ref().unwrap();
        match (keys.get().await, said) {
            (Ok(authority), None) => {
                let fits = match &*authority {
                    Authority::Key(of) => SharedKey::new("acc", "a2V5").as_ref() == Some(of),
                    Authority::Sas(query) => query == "sv=1&sig=hunter2",
                    Authority::Bearer(_) => false,
                };
                assert!(fits, "another key");
            }
            (Err(error), Some(said)) => {
                let error = error.to_string();
                assert!(
                    error.contains(said) && !error.contains("hunter2"),
                    "{error}"
                );
            }
            (found, _) => panic!("{said:?}: {}", found.is_ok()),
        }
    }
}
