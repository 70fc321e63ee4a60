//! Files of all kinds, and services that give tokens for them.

use std::path::PathBuf;

use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use tempfile::TempDir;

use super::*;
use weir_core::CredentialName;

use crate::credential::{Credential, CredentialError, CredentialSource, Secret};
use crate::spec::OriginSpec;
use crate::transport::renewed::Renewed;
use crate::transport::testing::{service, service_of_forms, with_head};

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
        (serde_json::json!({"type": "gdch"}), "external_account"),
        (serde_json::json!({"type": "external_account"}), "token_url"),
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

/// What a pod or a machine elsewhere has, whose token comes from `source`.
fn federated(address: std::net::SocketAddr, source: &serde_json::Value) -> serde_json::Value {
    serde_json::json!({
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/o",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": format!("http://{address}/v1/token"),
        "credential_source": source,
    })
}

fn field(form: &str, name: &str) -> Option<String> {
    let mut fields = form_urlencoded::parse(form.as_bytes());
    let found = fields.find(|(field, _)| field == name);
    found.map(|(_, value)| value.into_owned())
}

/// Plays the provider of the subject token, Google's exchange and the impersonation of an account.
async fn exchange() -> std::net::SocketAddr {
    service_of_forms(|head, body| {
        let json = |text: &str| with_head("200 OK", &[], text.as_bytes());
        let line = head.lines().next().unwrap_or_default();
        if line.starts_with("GET /subject ") {
            assert!(
                head.to_ascii_lowercase().contains("metadata: true"),
                "{head}"
            );
            return json(r#"{"access_token":" subject\n"}"#);
        }
        if line.starts_with("POST /v1/token ") {
            let is_known = field(body, "subject_token").as_deref() == Some("subject")
                && field(body, "grant_type").as_deref()
                    == Some("urn:ietf:params:oauth:grant-type:token-exchange")
                && field(body, "audience")
                    .unwrap()
                    .starts_with("//iam.googleapis.com/")
                && field(body, "subject_token_type").unwrap().ends_with(":jwt");
            if !is_known {
                return with_head("400 Bad Request", &[], br#"{"error":"invalid_grant"}"#);
            }
            let scope = field(body, "scope").unwrap();
            let token = scope.rsplit('/').next().unwrap();
            return json(&format!(
                r#"{{"access_token":"{token}","expires_in":3600}}"#
            ));
        }
        let token = "authorization: bearer cloud-platform";
        let may = head.to_ascii_lowercase().contains(token);
        assert!(body.contains("devstorage.read_only"), "{body}");
        match line {
            "POST /sa:generateAccessToken HTTP/1.1" if may => {
                json(r#"{"accessToken":"of-account","expireTime":"2199-01-01T00:00:00Z"}"#)
            }
            _ => with_head(
                "403 Forbidden",
                &[],
                br#"{"error":{"status":"PERMISSION_DENIED"}}"#,
            ),
        }
    })
    .await
}

#[tokio::test]
async fn a_token_of_another_provider_is_exchanged_for_one_of_google() {
    let address = exchange().await;
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let plain = write("plain", "subject\n");
    let fields = write("fields", r#"{"token":"subject"}"#);
    let json = |field: &str| serde_json::json!({"type": "json", "subject_token_field_name": field});
    for source in [
        serde_json::json!({"file": plain}),
        serde_json::json!({"file": fields, "format": json("token")}),
        serde_json::json!({
            "url": format!("http://{address}/subject"),
            "headers": {"Metadata": "True"},
            "format": json("access_token"),
        }),
    ] {
        let mut content = federated(address, &source);
        let found = Renewed::find(finder(&file(&dir, &content))).unwrap();
        let token = found.get().await.unwrap();
        assert_eq!(token.header, "Bearer devstorage.read_only", "{source}");
        assert!(token.header.is_sensitive());
        // The same, which may act as an account.
        let impersonation = format!("http://{address}/sa:generateAccessToken");
        content["service_account_impersonation_url"] = impersonation.into();
        content["quota_project_id"] = "pay".into();
        let found = Renewed::find(finder(&file(&dir, &content))).unwrap();
        let token = found.get().await.unwrap();
        assert_eq!(token.header, "Bearer of-account", "{source}");
        assert_eq!(token.project.as_ref().unwrap(), "pay");
    }
    // The file is read anew for each token.
    let content = federated(address, &serde_json::json!({"file": plain}));
    let found = Renewed::find(finder(&file(&dir, &content))).unwrap();
    write("plain", "hunter2");
    let error = found.get().await.err().unwrap().to_string();
    assert!(
        error.contains("invalid_grant") && !error.contains("hunter2"),
        "{error}"
    );
    write("plain", "subject");
    let mut content = federated(address, &serde_json::json!({"file": plain}));
    let other = format!("http://{address}/other:generateAccessToken");
    content["service_account_impersonation_url"] = other.into();
    let found = Renewed::find(finder(&file(&dir, &content))).unwrap();
    let error = found.get().await.err().unwrap().to_string();
    assert!(error.contains("PERMISSION_DENIED"), "{error}");
    assert!(error.contains("workloadIdentityUser"), "{error}");
}

#[test]
fn a_federated_identity_that_makes_no_sense_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let address = "127.0.0.1:1".parse().unwrap();
    let empty = dir.path().join("empty");
    std::fs::write(&empty, " \n").unwrap();
    let json = serde_json::json!({"type": "json"});
    for (source, said) in [
        (serde_json::json!({}), "neither a file nor a url"),
        (
            serde_json::json!({"environment_id": "aws1", "url": "http://h"}),
            "environment_id",
        ),
        (
            serde_json::json!({"executable": {"command": "hunter2"}}),
            "executable",
        ),
        (
            serde_json::json!({"file": "/nonexistent/token"}),
            "/nonexistent/token",
        ),
        (serde_json::json!({"file": empty}), "in which no token is"),
        (serde_json::json!({"url": "ftp://h/x"}), "no address"),
        (
            serde_json::json!({"url": "http://h/x", "format": json}),
            "subject_token_field_name",
        ),
        (
            serde_json::json!({"url": "http://h/x", "headers": {"a b": "c"}}),
            "header",
        ),
    ] {
        let content = federated(address, &source);
        let error = finder(&file(&dir, &content)).find().err().unwrap();
        let error = error.to_string();
        assert!(
            error.contains(said) && error.contains("key.json"),
            "{error}"
        );
        assert!(!error.contains("hunter2"), "{error}");
    }
    let source = serde_json::json!({"url": "http://127.0.0.1:1/x"});
    for name in ["token_url", "service_account_impersonation_url"] {
        let mut content = federated(address, &source);
        content[name] = "http://evil.example/token".into();
        let error = finder(&file(&dir, &content)).find().err().unwrap();
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[tokio::test]
async fn a_source_names_no_identity_that_reads_files_or_addresses_of_the_reader() {
    let address = exchange().await;
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "subject").unwrap();
    let content = federated(address, &serde_json::json!({"file": secret})).to_string();
    let credential = Credential {
        kind: CredentialKind::Google(Secret::new(content.clone().into_bytes())),
        endpoints: Vec::new(),
    };
    let error = credential.check().unwrap_err();
    assert!(error.contains("GOOGLE_APPLICATION_CREDENTIALS"), "{error}");
    // Nor if a master of another version keeps it.
    let spec = OriginSpec {
        credentials: Some("team".to_owned()),
        ..OriginSpec::parse("gs://b").unwrap()
    };
    let given = Arc::new(Given(content.into_bytes()));
    let named = Named::new("team".parse().unwrap(), &spec, given, "gs://b".into());
    let finder = Finder::new("gs://b".into(), || Environment::of([]), Some(named));
    let error = Renewed::find(finder).unwrap().get().await.err().unwrap();
    assert!(error.to_string().contains("credentials team"), "{error}");
}
