//! The services that give keys, played by this machine.

use parking_lot::Mutex;

use super::*;
use crate::transport::testing::{service, service_of_forms, with_head};
use crate::transport::trust::Trust;

/// As the services write them.
const KEYS: &str = r#"{"AccessKeyId":"STS.A","AccessKeySecret":"S","SecurityToken":"T","Expiration":"2199-01-01T00:00:00Z","LastUpdated":"2026-01-01T00:00:00Z","Code":"Success"}"#;

fn calls() -> Calls {
    Calls::new(Trust::of_system(), &Environment::of([]))
}

fn origin() -> Arc<str> {
    "oss://b".into()
}

fn is_given(given: &Temporary) {
    let keys = &given.keys;
    assert_eq!(
        (&*keys.access_key, &*keys.secret_key, keys.token.as_deref()),
        ("STS.A", "S", Some("T"))
    );
    assert!(given.life.unwrap() > Duration::from_hours(24));
}

/// What went wrong: its kind and text.
fn problem(given: Result<Temporary, Refused>) -> (&'static str, String) {
    match given {
        Ok(_) => ("given", String::new()),
        Err(Refused::Denied(detail, remedy)) => ("denied", format!("{detail}; {remedy}")),
        Err(Refused::Absent(detail)) => ("absent", detail),
        Err(Refused::Unavailable(detail)) => ("unavailable", detail),
        Err(Refused::Error(error)) => ("error", error.to_string()),
    }
}

/// An ECS instance of the role `trainer` that notes what it is asked, and wants a token if it is `strict`.
async fn metadata(strict: bool) -> (Uri, Arc<Mutex<Vec<String>>>) {
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = asked.clone();
    let address = service(move |head| {
        let line = head.lines().next().unwrap_or_default().to_owned();
        let head = head.to_ascii_lowercase();
        seen.lock().push(line.clone());
        let has_token = head.contains("x-aliyun-ecs-metadata-token: tok");
        match line.split(' ').collect::<Vec<_>>()[..2] {
            ["PUT", "/latest/api/token"] if strict => {
                assert!(head.contains("x-aliyun-ecs-metadata-token-ttl-seconds: "));
                with_head("200 OK", &[], b"tok")
            }
            ["PUT", _] => with_head("404 Not Found", &[], b""),
            _ if strict && !has_token => with_head("403 Forbidden", &[], b""),
            ["GET", "/latest/meta-data/ram/security-credentials/"] => {
                with_head("200 OK", &[], b"trainer\n")
            }
            ["GET", "/latest/meta-data/ram/security-credentials/trainer"] => {
                with_head("200 OK", &[], KEYS.as_bytes())
            }
            _ => with_head("404 Not Found", &[], b""),
        }
    })
    .await;
    (format!("http://{address}").parse().unwrap(), asked)
}

#[tokio::test]
async fn an_instance_gives_the_keys_of_its_role_with_a_token_or_without() {
    for strict in [true, false] {
        let (endpoint, asked) = metadata(strict).await;
        let named = instance(
            endpoint.clone(),
            &Environment::of([("ALIBABA_CLOUD_ECS_METADATA", "trainer")]),
        );
        is_given(&named.load(&calls()).await.ok().unwrap());
        // Its role is known, and is not asked for.
        assert_eq!(asked.lock().len(), 2);
        let unnamed = instance(endpoint.clone(), &Environment::of([]));
        is_given(&unnamed.load(&calls()).await.ok().unwrap());
        assert_eq!(asked.lock().len(), 5);
        let other = [("ALIBABA_CLOUD_ECS_METADATA", "another")];
        let other = instance(endpoint.clone(), &Environment::of(other));
        assert_eq!(problem(other.load(&calls()).await).0, "absent");
        // Where the first version is not to be used, a service that knows no tokens gives nothing.
        let only_new = [("ALIBABA_CLOUD_IMDSV1_DISABLED", "true")];
        let only_new = instance(endpoint, &Environment::of(only_new));
        let given = problem(only_new.load(&calls()).await).0;
        assert_eq!(given, if strict { "given" } else { "absent" });
    }
}

#[tokio::test]
async fn what_answers_at_the_address_of_another_cloud_is_no_instance() {
    for answer in [
        with_head("404 Not Found", &[], b""),
        with_head("200 OK", &[], b"<html>hello</html>"),
        with_head("200 OK", &[], b"../../a b\r\nInjected: 1"),
        Vec::new(),
    ] {
        let address = service(move |_| answer.clone()).await;
        let endpoint = format!("http://{address}").parse().unwrap();
        let found = instance(endpoint, &Environment::of([]));
        let (kind, detail) = problem(found.load(&calls()).await);
        assert_eq!(kind, "absent", "{detail}");
    }
}

/// The variables of a pod with a role, whose token is in a file of this directory.
fn pod<'a>(file: &'a str, endpoint: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        ("ALIBABA_CLOUD_ROLE_ARN", "acs:ram::1:role/train"),
        (
            "ALIBABA_CLOUD_OIDC_PROVIDER_ARN",
            "acs:ram::1:oidc-provider/ack",
        ),
        (TOKEN_FILE, file),
        ("ALIBABA_CLOUD_STS_ENDPOINT", endpoint),
    ]
}

#[tokio::test]
async fn a_pod_shows_its_token_and_is_given_the_keys_of_its_role() {
    let asked: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
    let seen = asked.clone();
    let address = service_of_forms(move |head, body| {
        let line = head.lines().next().unwrap_or_default().to_owned();
        seen.lock().push((line, body.to_owned()));
        let answer = format!(r#"{{"RequestId":"r","Credentials":{KEYS}}}"#);
        with_head("200 OK", &[], answer.as_bytes())
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    let endpoint = format!("http://{address}");
    let load = async || {
        let environment = Environment::of(pod(file.to_str().unwrap(), &endpoint));
        let Found::PodRole(role) = find(&origin(), None, &environment).unwrap() else {
            panic!("another source");
        };
        role.load(&calls()).await
    };
    // The token is replaced by the kubelet before it expires, so it is read each time.
    for token in ["to+ken/1=", "token2"] {
        std::fs::write(&file, format!("{token}\n")).unwrap();
        is_given(&load().await.ok().unwrap());
        let (line, form) = asked.lock().pop().unwrap();
        for part in [
            "POST /?",
            "Action=AssumeRoleWithOIDC",
            "Version=2015-04-01",
            "Format=JSON",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        assert!(!line.contains("token"), "{line}");
        let fields: Vec<(String, String)> = form_urlencoded::parse(form.as_bytes())
            .into_owned()
            .collect();
        let field = |name: &str| {
            let found = fields.iter().find(|(field, _)| field == name);
            found.map(|(_, value)| value.as_str())
        };
        assert_eq!(field("OIDCToken"), Some(token));
        assert_eq!(field("RoleArn"), Some("acs:ram::1:role/train"));
        let provider = "acs:ram::1:oidc-provider/ack";
        assert_eq!(field("OIDCProviderArn"), Some(provider));
        assert!(field("RoleSessionName").unwrap().starts_with("weir-"));
    }
}

#[tokio::test]
async fn a_refusal_says_what_to_check_and_repeats_no_token() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "secret-token").unwrap();
    for (status, body, kind) in [
        (
            "400 Bad Request",
            r#"{"Code":"AuthenticationFail.OIDCToken.Expired","Message":"secret-token is old"}"#,
            "denied",
        ),
        ("403 Forbidden", r#"{"Code":"NoPermission"}"#, "denied"),
        (
            "400 Bad Request",
            r#"{"Code":"Throttling.User"}"#,
            "unavailable",
        ),
        ("503 Service Unavailable", "", "unavailable"),
        ("200 OK", "secret-token", "denied"),
        (
            "200 OK",
            r#"{"Credentials":{"AccessKeyId":"secret-token"}}"#,
            "denied",
        ),
    ] {
        let address = service(move |_| with_head(status, &[], body.as_bytes())).await;
        let endpoint = format!("http://{address}");
        let environment = Environment::of(pod(file.to_str().unwrap(), &endpoint));
        let Found::PodRole(role) = find(&origin(), None, &environment).unwrap() else {
            panic!("another source");
        };
        let (is, text) = problem(role.load(&calls()).await);
        assert_eq!(is, kind, "{status} {body}: {text}");
        assert!(!text.contains("secret-token"), "{text}");
        assert!(text.contains("acs:ram::1:role/train"), "{text}");
    }
    // One that takes the question and does not answer is given up after some seconds, with the others of `Renewed`.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let environment = Environment::of(pod(file.to_str().unwrap(), &endpoint));
    let Found::PodRole(role) = find(&origin(), None, &environment).unwrap() else {
        panic!("another source");
    };
    assert_eq!(problem(role.load(&calls()).await).0, "unavailable");
}

#[test]
fn variables_that_are_half_set_are_wrong_and_empty_ones_are_unset() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "t").unwrap();
    let file = file.to_str().unwrap();
    let found = |variables: &[(&str, &str)]| {
        find(&origin(), None, &Environment::of(variables.iter().copied()))
    };
    let full = pod(file, "sts.example.com");
    let refused = |variables: &[(&str, &str)], said: &str| {
        let error = found(variables).err().unwrap().to_string();
        assert!(error.contains(said), "{error}");
    };
    refused(&full[2..], "ALIBABA_CLOUD_ROLE_ARN");
    refused(
        &[full[0], ("ALIBABA_CLOUD_OIDC_PROVIDER_ARN", ""), full[2]],
        "OIDC_PROVIDER_ARN",
    );
    let missing = [full[0], full[1], (TOKEN_FILE, "/nonexistent/token")];
    refused(&missing, "/nonexistent/token");
    let plain = [
        full[0],
        full[1],
        full[2],
        ("ALIBABA_CLOUD_STS_ENDPOINT", "http://sts.example.com"),
    ];
    refused(&plain, "ALIBABA_CLOUD_STS_ENDPOINT");
    let with_password = ("ALIBABA_CLOUD_STS_ENDPOINT", "https://u:p@h");
    refused(
        &[full[0], full[1], full[2], with_password],
        "ALIBABA_CLOUD_STS_ENDPOINT",
    );
    assert!(matches!(found(&full), Ok(Found::PodRole(_))));
    // Keys come before the role of the pod, and that before the one of the machine.
    let keys = [("OSS_ACCESS_KEY_ID", "O"), ("OSS_ACCESS_KEY_SECRET", "T")];
    let both: Vec<_> = full.iter().copied().chain(keys).collect();
    assert!(matches!(found(&both), Ok(Found::Keys(_))));
    let empty = [
        full[0],
        full[1],
        (TOKEN_FILE, "  "),
        ("OSS_ACCESS_KEY_ID", ""),
    ];
    assert!(matches!(found(&empty), Ok(Found::Instance(_))));
    let disabled = [("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "TRUE")];
    assert!(matches!(found(&disabled), Ok(Found::Nothing(_))));
}

#[test]
fn the_service_is_that_of_the_region_or_the_network_that_variables_name() {
    let sts = |region: Option<&str>, variables: &[(&str, &str)]| {
        let environment = Environment::of(variables.iter().copied());
        sts(region, &environment).map(|uri| uri.to_string())
    };
    let is = |uri: &str| Some(format!("{uri}/"));
    let vpc = ("ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED", "true");
    let region = ("ALIBABA_CLOUD_STS_REGION", "cn-beijing");
    assert_eq!(sts(None, &[]), is("https://sts.aliyuncs.com"));
    assert_eq!(sts(None, &[vpc]), is("https://sts.aliyuncs.com"));
    let hangzhou = Some("cn-hangzhou");
    assert_eq!(
        sts(hangzhou, &[]),
        is("https://sts.cn-hangzhou.aliyuncs.com")
    );
    assert_eq!(
        sts(hangzhou, &[vpc]),
        is("https://sts-vpc.cn-hangzhou.aliyuncs.com")
    );
    assert_eq!(
        sts(hangzhou, &[region]),
        is("https://sts.cn-beijing.aliyuncs.com")
    );
    assert_eq!(sts(Some("evil.example/"), &[]), None);
}
