//! Files of all kinds, and services that give tokens for them.

use std::path::PathBuf;

use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use tempfile::TempDir;

use super::*;
use weir_core::CredentialName;

use crate::credential::{Credential, CredentialError, CredentialSource, Secret};
use crate::spec::OriginSpec;
use crate::transport::renewed::Renewed;
use crate::transport::testing::{service, with_head};

/// A key that was made for this test.
fn private_key() -> String {
    let key = include_str!("testkey.txt");
    format!("-----BEGIN PRIVATE KEY-----\n{key}-----END PRIVATE KEY-----\n")
}

fn file(dir: &TempDir, content: &serde_json::Value) -> PathBuf {
    let path = dir.path().join("key.json");
    std::fs::write(&path, content.to_string()).unwrap();
    path
}

fn finder(path: &std::path::Path) -> Finder {
    let path = path.to_str().unwrap().to_owned();
    Finder::new(
        "gs://b".into(),
        move || Environment::of([(VARIABLE, &*path), ("HOME", "/nonexistent")]),
        None,
    )
}

#[tokio::test]
async fn a_service_account_signs_for_itself_and_is_given_a_token() {
    let address = service(|_| {
        with_head(
            "200 OK",
            &[],
            br#"{"access_token":"tok","expires_in":3599,"token_type":"Bearer"}"#,
        )
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let account = serde_json::json!({
        "type": "service_account", "client_email": "sa@p.iam", "private_key": private_key(),
        "private_key_id": "k1", "token_uri": format!("http://{address}/token"), "quota_project_id": "pay",
    });
    let finder = finder(&file(&dir, &account));
    let found = finder.find().unwrap();
    let Whose::Own(Login {
        source: Source::Account(account),
        ..
    }) = &found.whose
    else {
        panic!("another source");
    };
    let assertion = account.assertion(1_000_000).unwrap();
    let (signed, signature) = assertion.rsplit_once('.').unwrap();
    let public = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, account.key.public());
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    public.verify(signed.as_bytes(), &signature).unwrap();
    let claims = URL_SAFE_NO_PAD
        .decode(signed.split('.').nth(1).unwrap())
        .unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!(
        (&claims["iss"], &claims["exp"]),
        (&"sa@p.iam".into(), &1_003_600.into())
    );
    let token = Renewed::find(finder).unwrap().get().await.unwrap();
    assert_eq!(token.header, "Bearer tok");
    assert_eq!(token.project.as_ref().unwrap(), "pay");
    assert!(!format!("{:?}", token.header).contains("tok"));
}

#[tokio::test]
async fn a_person_who_logged_in_is_given_a_token_or_told_to_log_in_again() {
    for (status, body, said) in [
        (
            "200 OK",
            r#"{"access_token":"tok","expires_in":3599}"#,
            None,
        ),
        (
            "400 Bad Request",
            r#"{"error":"invalid_grant"}"#,
            Some("invalid_grant"),
        ),
        ("200 OK", "{}", Some("did not answer with a token")),
        (
            "200 OK",
            r#"{"access_token":"a\nb"}"#,
            Some("did not answer with a token"),
        ),
    ] {
        let address = service(move |_| with_head(status, &[], body.as_bytes())).await;
        let dir = tempfile::tempdir().unwrap();
        let login = serde_json::json!({
            "type": "authorized_user", "client_id": "c", "client_secret": "hunter2",
            "refresh_token": "hunter2", "token_uri": format!("http://{address}/token"),
        });
        let tokens = Renewed::find(finder(&file(&dir, &login))).unwrap();
        match (tokens.get().await, said) {
            (Ok(token), None) => assert_eq!(token.header, "Bearer tok"),
            (Err(error), Some(said)) => {
                let error = error.to_string();
                assert!(
                    error.contains(said) && error.contains("log in again"),
                    "{error}"
                );
                assert!(!error.contains("hunter2"), "{error}");
            }
            (outcome, _) => panic!("{body}: {:?}", outcome.map(|_| ())),
        }
    }
}

#[tokio::test]
async fn the_metadata_service_is_asked_where_nothing_is_named_and_must_be_googles() {
    for (flavor, is_google) in [("Metadata-Flavor: Google", true), ("Server: other", false)] {
        let address = service(move |head| {
            assert!(head.contains("metadata-flavor: Google"), "{head}");
            with_head(
                "200 OK",
                &[flavor],
                br#"{"access_token":"tok","expires_in":60}"#,
            )
        })
        .await;
        let host = address.to_string();
        let finder = Finder::new(
            "gs://b".into(),
            move || Environment::of([("GCE_METADATA_HOST", &*host), ("HOME", "/nonexistent")]),
            None,
        );
        let got = Renewed::find(finder).unwrap().get().await;
        assert_eq!(got.is_ok(), is_google);
        if let Err(error) = got {
            let error = error.to_string();
            assert!(error.contains("GOOGLE_APPLICATION_CREDENTIALS"), "{error}");
        }
    }
}

#[test]
fn a_file_that_makes_no_sense_is_named_and_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let account = |key: &str, uri: &str| serde_json::json!({"type": "service_account", "client_email": "e", "private_key": key, "token_uri": uri});
    for (content, said) in [
        (serde_json::json!("hunter2"), "JSON"),
        (
            serde_json::json!({"type": "external_account"}),
            "external_account",
        ),
        (
            serde_json::json!({"type": "authorized_user", "client_id": "c"}),
            "client_secret",
        ),
        (account("hunter2", TOKEN_SERVICE), "private_key"),
        (
            account(&private_key(), "http://evil.example/token"),
            "token_uri",
        ),
    ] {
        let path = file(&dir, &content);
        let error = finder(&path).find().err().unwrap().to_string();
        assert!(
            error.contains(said) && error.contains("key.json"),
            "{error}"
        );
        assert!(!error.contains("hunter2"), "{error}");
    }
    let error = finder(&dir.path().join("gone")).find().err().unwrap();
    assert!(error.to_string().contains(VARIABLE), "{error}");
}

/// Has one file.
#[derive(Debug)]
struct Given(Vec<u8>);

#[async_trait::async_trait]
impl CredentialSource for Given {
    async fn credential(&self, _: &CredentialName) -> Result<Arc<Credential>, CredentialError> {
        Ok(Arc::new(Credential {
            kind: CredentialKind::Google(Secret::new(self.0.clone())),
            endpoints: Vec::new(),
        }))
    }
}

#[tokio::test]
async fn a_file_that_the_source_names_takes_the_place_of_the_environment() {
    let address = service(|_| {
        with_head(
            "200 OK",
            &[],
            br#"{"access_token":"tok","expires_in":3599}"#,
        )
    })
    .await;
    let found = async |key: &str| {
        let file = serde_json::json!({
            "type": "service_account", "client_email": "sa@p.iam", "private_key": key,
            "token_uri": format!("http://{address}/token"), "quota_project_id": "pay",
        });
        let given = Arc::new(Given(file.to_string().into_bytes()));
        let spec = OriginSpec {
            credentials: Some("team".to_owned()),
            ..OriginSpec::parse("gs://b").unwrap()
        };
        let named = Named::new("team".parse().unwrap(), &spec, given, "gs://b".into());
        let environment =
            || Environment::of([(VARIABLE, "/nonexistent"), ("HOME", "/nonexistent")]);
        let finder = Finder::new("gs://b".into(), environment, Some(named));
        Renewed::find(finder).unwrap().get().await
    };
    let token = found(&private_key()).await.unwrap();
    assert_eq!(token.header, "Bearer tok");
    assert_eq!(token.project.as_ref().unwrap(), "pay");
    let Err(error) = found("hunter2").await else {
        panic!("a key that is none");
    };
    let error = error.to_string();
    assert!(
        error.contains("credentials team") && !error.contains("hunter2"),
        "{error}"
    );
}
