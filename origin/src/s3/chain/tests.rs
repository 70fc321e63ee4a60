//! Profiles, variables and files of all kinds, and the services that they lead to, each byte of which a test decides.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::transport::trust::Trust;

/// A home with the shared files, and the variables of a process.
struct World {
    home: TempDir,
    variables: Vec<(String, String)>,
}

impl World {
    fn new(config: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        std::fs::write(home.path().join(".aws/config"), config).unwrap();
        let world = Self {
            home,
            variables: Vec::new(),
        };
        let home = world.home.path().to_str().unwrap().to_owned();
        world.set("HOME", &home)
    }

    fn set(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    fn file(&self, path: &str, content: &str) -> String {
        let path = self.home.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn environment(&self) -> Environment {
        let variables = self.variables.iter();
        Environment::of(variables.map(|(name, value)| (name.as_str(), value.as_str())))
    }

    fn find(&self, named: Option<&str>) -> Result<Source, OriginError> {
        let origin = origin();
        let environment = self.environment();
        let configuration = Configuration::load(&origin, named, &environment)?;
        find(&origin, named, Some("eu-test-1"), &configuration)
    }

    /// The access key that the whole chain ends with.
    async fn key(&self, named: Option<&str>) -> Result<String, String> {
        let source = self.find(named).map_err(|error| error.to_string())?;
        let calls = Calls::new(Trust::of_system(), &self.environment());
        match source.load(&calls, &origin()).await {
            Ok(found) => Ok(found.keys.access_key.clone()),
            Err(Refused::Error(error)) => Err(error.to_string()),
            Err(Refused::Denied(what, remedy)) => Err(format!("denied: {what}; {remedy}")),
            Err(Refused::Absent(what)) => Err(format!("absent: {what}")),
            Err(Refused::Unavailable(what)) => Err(format!("unavailable: {what}")),
        }
    }

    /// The message of settings that make no sense.
    #[track_caller]
    fn wrong(&self, named: Option<&str>) -> String {
        let error = self.find(named).err().unwrap();
        assert_eq!(error.kind(), "config", "{error}");
        error.to_string()
    }
}

fn origin() -> Arc<str> {
    "s3://b".into()
}

/// A service that notes its requests. It ends with the test's runtime.
struct Service {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Service {
    /// Answers a request, head and body, with a status and a body.
    async fn start(reply: impl Fn(&str) -> (u16, String) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (reply, noted) = (Arc::new(reply), asked.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (reply, noted) = (reply.clone(), noted.clone());
                tokio::spawn(async move {
                    let request = request(&mut stream).await?;
                    let (status, body) = reply(&request);
                    noted.lock().push(request);
                    let length = body.len();
                    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n");
                    stream.write_all((head + &body).as_bytes()).await
                });
            }
        });
        Self { address, asked }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
    }
}

async fn request(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&request).to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1);
    let length = length.and_then(|rest| rest.split("\r\n").next()?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await?;
    request.extend(body);
    Ok(String::from_utf8_lossy(&request).into_owned())
}

/// The answer of an STS that gives the keys of whatever role it is asked for: the access key is its name.
fn role_keys(request: &str) -> (u16, String) {
    let name = request.split("RoleArn=").nth(1).unwrap();
    let name = name
        .split('&')
        .next()
        .unwrap()
        .rsplit("%2F")
        .next()
        .unwrap();
    let document = format!(
        "<R><AssumeRoleResult><Credentials><AccessKeyId>{name}</AccessKeyId><SecretAccessKey>S</SecretAccessKey>\
         <SessionToken>T</SessionToken><Expiration>2199-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></R>"
    );
    (200, document)
}

fn platform_keys(key: &str) -> String {
    format!(
        r#"{{"Code":"Success","AccessKeyId":"{key}","SecretAccessKey":"S","Token":"T","Expiration":"2199-01-01T00:00:00Z"}}"#
    )
}

const KEYS: &str = "aws_access_key_id = OF-PROFILE\naws_secret_access_key = S\n";

#[tokio::test]
async fn keys_come_from_the_first_of_the_places_that_have_them() {
    let agent = Service::start(|_| (200, platform_keys("OF-AGENT"))).await;
    let sts = Service::start(role_keys).await;
    let all = |config: &str| {
        let world = World::new(config);
        let token = world.file("token", "t\n");
        world
            .set("AWS_CONTAINER_CREDENTIALS_FULL_URI", &agent.url())
            .set("AWS_ENDPOINT_URL_STS", &sts.url())
            .set("AWS_WEB_IDENTITY_TOKEN_FILE", &token)
            .set("AWS_ROLE_ARN", "arn:aws:iam::1:role/OF-POD")
    };
    let profile = format!(
        "[default]\n{KEYS}[profile other]\n{}",
        KEYS.replace("OF-PROFILE", "OTHER")
    );
    let with_variables = || {
        all(&profile)
            .set("AWS_ACCESS_KEY_ID", "OF-VARIABLES\n")
            .set("AWS_SECRET_ACCESS_KEY", "S")
    };
    assert_eq!(with_variables().key(None).await.unwrap(), "OF-VARIABLES");
    // A flag is nearer than a variable, and a variable with keys than one with a profile.
    assert_eq!(with_variables().key(Some("other")).await.unwrap(), "OTHER");
    let named = with_variables().set("AWS_PROFILE", "other");
    assert_eq!(named.key(None).await.unwrap(), "OF-VARIABLES");
    assert_eq!(all(&profile).key(None).await.unwrap(), "OF-PROFILE");
    let named = all(&profile).set("AWS_PROFILE", "other");
    assert_eq!(named.key(None).await.unwrap(), "OTHER");
    let empty = all(&profile)
        .set("AWS_ACCESS_KEY_ID", "")
        .set("AWS_SECRET_ACCESS_KEY", "");
    assert_eq!(empty.key(None).await.unwrap(), "OF-PROFILE");
    assert_eq!(
        all("[default]\nregion = r\n").key(None).await.unwrap(),
        "OF-POD"
    );
    let without = all("").set("AWS_WEB_IDENTITY_TOKEN_FILE", "");
    assert_eq!(without.key(None).await.unwrap(), "OF-AGENT");
}

#[test]
fn half_a_pair_of_keys_is_an_error_and_shows_none_of_it() {
    let world = World::new("")
        .set("AWS_ACCESS_KEY_ID", "hidden")
        .set("AWS_SECRET_ACCESS_KEY", "");
    let message = world.wrong(None);
    assert!(
        message.contains("AWS_SECRET_ACCESS_KEY") && !message.contains("hidden"),
        "{message}"
    );
    let message = World::new("[profile p]\naws_access_key_id = hidden\n").wrong(Some("p"));
    assert!(
        message.contains("aws_secret_access_key") && !message.contains("hidden"),
        "{message}"
    );
    let message = World::new("[profile p]\n").wrong(Some("p"));
    assert!(message.contains("\"p\" has no keys"), "{message}");
}

#[tokio::test]
async fn a_role_is_assumed_with_the_keys_of_another_profile_and_so_on() {
    let sts = Service::start(role_keys).await;
    let world = World::new(&format!(
        "[profile outer]\nROLE_ARN = arn:aws:iam::1:role/OUTER\nsource_profile = in ner\nexternal_id = a b\nduration_seconds = 900\n\
         [profile \"in ner\"]\nrole_arn = arn:aws:iam::1:role/INNER\nsource_profile = base\nrole_session_name = me\n\
         [profile base]\n{KEYS}region = never-1\n\
         [profile self]\nrole_arn = arn:aws:iam::1:role/SELF\nsource_profile = self\n{KEYS}\
         [profile variables]\nrole_arn = arn:aws:iam::1:role/VARIABLES\ncredential_source = Environment\n\
         [profile program]\nrole_arn = arn:aws:iam::1:role/PROGRAM\nsource_profile = helper\n\
         [profile helper]\ncredential_process = echo '{{\"AccessKeyId\":\"OF-HELPER\",\"SecretAccessKey\":\"S\"}}'\n"
    ))
    .set("AWS_ENDPOINT_URL_STS", &sts.url())
    .set("AWS_ACCESS_KEY_ID", "OF-VARIABLES")
    .set("AWS_SECRET_ACCESS_KEY", "S");
    assert_eq!(world.key(Some("outer")).await.unwrap(), "OUTER");
    let asked = sts.asked();
    let [inner, outer] = asked.as_slice() else {
        panic!("{asked:?}");
    };
    assert!(
        inner.contains("Credential=OF-PROFILE/") && inner.contains("/eu-test-1/sts/"),
        "{inner}"
    );
    assert!(inner.contains("RoleSessionName=me&"), "{inner}");
    assert!(
        outer.contains("Credential=INNER/") && outer.contains("x-amz-security-token: T"),
        "{outer}"
    );
    for said in [
        "ExternalId=a+b",
        "DurationSeconds=900",
        "RoleSessionName=weir-",
        "Action=AssumeRole&ExternalId",
    ] {
        assert!(outer.contains(said), "{said} is not in {outer}");
    }
    for (profile, signer) in [
        ("self", "OF-PROFILE"),
        ("variables", "OF-VARIABLES"),
        ("program", "OF-HELPER"),
    ] {
        assert_eq!(
            world.key(Some(profile)).await.unwrap(),
            profile.to_ascii_uppercase()
        );
        let last = sts.asked().pop().unwrap();
        assert!(last.contains(&format!("Credential={signer}/")), "{last}");
    }
}

#[test]
fn chains_of_profiles_that_make_no_sense_are_errors() {
    let role = "role_arn = arn:aws:iam::1:role/R\n";
    let chain: String = (0..20)
        .map(|n| format!("[profile p{n}]\n{role}source_profile = p{}\n", n + 1))
        .collect();
    for (config, said) in [
        (
            format!("[profile p]\n{role}source_profile = gone\n"),
            "\"gone\"",
        ),
        (format!("[profile p]\n{role}"), "neither source_profile nor"),
        (
            format!("[profile p]\n{role}source_profile = p\n"),
            "has none",
        ),
        (
            format!("[profile p]\n{role}source_profile = q\n[profile q]\nregion = r\n"),
            "\"q\"",
        ),
        (
            format!(
                "[profile p]\n{role}source_profile = q\n[profile q]\n{role}source_profile = p\n"
            ),
            "lead back",
        ),
        (chain.replace("[profile p0]", "[profile p]"), "for ever"),
        (
            format!("[profile p]\n{role}source_profile = p\ncredential_source = Environment\n"),
            "both",
        ),
        (
            format!("[profile p]\n{role}credential_source = Elsewhere\n"),
            "Elsewhere",
        ),
        (
            format!("[profile p]\n{role}credential_source = Environment\n"),
            "none here",
        ),
        (
            format!("[profile p]\n{role}credential_source = EcsContainer\n"),
            "none here",
        ),
        (
            format!("[profile p]\n{role}credential_source = Ec2InstanceMetadata\n"),
            "none here",
        ),
        (
            format!("[profile p]\n{role}source_profile = p\nmfa_serial = m\n{KEYS}"),
            "mfa_serial",
        ),
        (
            format!("[profile p]\n{role}source_profile = p\nduration_seconds = x\n{KEYS}"),
            "number",
        ),
        (
            "[profile p]\nweb_identity_token_file = /x\n".to_owned(),
            "role_arn",
        ),
        (
            "[profile p]\nsso_session = s\n".to_owned(),
            "sso-session \"s\"",
        ),
        ("[profile p]\nsso_start_url = u\n".to_owned(), "sso_region"),
        (
            "[profile p]\nlogin_session = arn\n".to_owned(),
            "login_session",
        ),
    ] {
        let world = World::new(&config).set("AWS_EC2_METADATA_DISABLED", "tRuE");
        let message = world.wrong(Some("p"));
        assert!(message.contains(said), "{said} is not in {message}");
    }
}

#[tokio::test]
async fn a_web_identity_gets_its_role_from_the_service_that_is_named() {
    let sts = Service::start(role_keys).await;
    for variable in ["AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL"] {
        let world = World::new("");
        world.file("token", "the token\n");
        let world = world
            .set(variable, &sts.url())
            .set("AWS_WEB_IDENTITY_TOKEN_FILE", "~/token")
            .set("AWS_ROLE_SESSION_NAME", "pod")
            .set("AWS_ROLE_ARN", "arn:aws:iam::1:role/OF-POD");
        assert_eq!(world.key(None).await.unwrap(), "OF-POD");
        let asked = sts.asked().pop().unwrap();
        assert!(asked.starts_with("POST / HTTP/1.1"), "{asked}");
        assert!(
            !asked.to_ascii_lowercase().contains("authorization"),
            "{asked}"
        );
        for said in [
            "Action=AssumeRoleWithWebIdentity",
            "WebIdentityToken=the+token",
            "RoleSessionName=pod",
        ] {
            assert!(asked.contains(said), "{said} is not in {asked}");
        }
    }
    let world = World::new(
        "[profile p]\nrole_arn = arn:aws:iam::1:role/OF-PROFILE\nweb_identity_token_file = ~/token\nendpoint_url = URL\n",
    );
    world.file("token", "t");
    let config = std::fs::read_to_string(world.home.path().join(".aws/config")).unwrap();
    world.file(".aws/config", &config.replace("URL", &sts.url()));
    assert_eq!(world.key(Some("p")).await.unwrap(), "OF-PROFILE");
}

#[test]
fn a_token_that_is_missing_or_empty_is_told_with_the_name_of_its_variable() {
    let world = |file: &str| {
        World::new("")
            .set("AWS_WEB_IDENTITY_TOKEN_FILE", file)
            .set("AWS_ROLE_ARN", "arn")
    };
    let message = world("/nonexistent/token").wrong(None);
    assert!(
        message.contains("AWS_WEB_IDENTITY_TOKEN_FILE names /nonexistent/token"),
        "{message}"
    );
    let message = world("/dev/null").wrong(None);
    assert!(message.contains("empty"), "{message}");
    let message = world("/dev/null").set("AWS_ROLE_ARN", " ").wrong(None);
    assert!(message.contains("AWS_ROLE_ARN"), "{message}");
    let message = World::new("")
        .set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2")
        .set(
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
            "/nonexistent/token",
        )
        .wrong(None);
    assert!(
        message.contains("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
        "{message}"
    );
}

#[tokio::test]
async fn what_the_service_of_roles_refuses_is_told_apart_from_what_passes() {
    let error =
        |code: &str| format!("<E><Error><Code>{code}</Code><Message>secret</Message></Error></E>");
    for (status, body, said) in [
        (403, error("AccessDenied"), "denied: the STS at"),
        (403, error("AccessDenied"), "sts:AssumeRole"),
        (400, error("ExpiredTokenException"), "renew the token"),
        (400, error("InvalidIdentityToken"), "identity provider"),
        (
            405,
            "<html>".to_owned(),
            "405; check the role's ARN, AWS_ENDPOINT_URL_STS",
        ),
        (200, "<html>".to_owned(), "did not answer with keys"),
        (503, error("ServiceUnavailable"), "unavailable:"),
        (400, error("Throttling"), "unavailable:"),
    ] {
        let sts = Service::start(move |_| (status, body.clone())).await;
        let world = World::new(&format!(
            "[profile p]\nrole_arn = arn:aws:iam::1:role/R\nsource_profile = p\n{}",
            KEYS.replace("= S", "= the-secret")
        ))
        .set("AWS_ENDPOINT_URL_STS", &sts.url());
        let message = world.key(Some("p")).await.unwrap_err();
        assert!(message.contains(said), "{said} is not in {message}");
        assert!(
            message.contains("role/R") && !message.contains("secret"),
            "{message}"
        );
    }
    let nobody = World::new("")
        .set("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        .set("AWS_ROLE_ARN", "arn");
    let token = nobody.file("token", "t");
    let nobody = nobody.set("AWS_WEB_IDENTITY_TOKEN_FILE", &token);
    let message = nobody.key(None).await.unwrap_err();
    assert!(
        message.starts_with("unavailable: the STS at http://127.0.0.1:1/"),
        "{message}"
    );
    for wrong in ["localhost", "http://user:hunter2@host", "ftp://host"] {
        let message = World::new("")
            .set("AWS_ENDPOINT_URL_STS", wrong)
            .set("AWS_ROLE_ARN", "arn")
            .set("AWS_WEB_IDENTITY_TOKEN_FILE", &token)
            .wrong(None);
        assert!(!message.contains("hunter2"), "{message}");
        assert!(message.contains("AWS_ENDPOINT_URL_STS"), "{message}");
    }
}

#[tokio::test]
async fn the_token_of_a_container_comes_in_a_variable_or_in_a_file_with_a_line_break() {
    let agent = Service::start(|request| {
        let trusted = request.contains("\r\nauthorization: pod\r\n");
        if trusted {
            (200, platform_keys("OF-AGENT"))
        } else {
            (401, "{\"code\":\"Unknown\"}".to_owned())
        }
    })
    .await;
    let world = || World::new("").set("AWS_CONTAINER_CREDENTIALS_FULL_URI", &agent.url());
    for token in ["pod", "pod\n", " pod\r\n"] {
        let found = world().set("AWS_CONTAINER_AUTHORIZATION_TOKEN", token);
        assert_eq!(found.key(None).await.unwrap(), "OF-AGENT");
        let found = world();
        found.file("token", token);
        // A file counts more than a variable.
        let found = found
            .set("AWS_CONTAINER_AUTHORIZATION_TOKEN", "other")
            .set("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "~/token");
        assert_eq!(found.key(None).await.unwrap(), "OF-AGENT");
    }
    let message = world().key(None).await.unwrap_err();
    assert!(
        message.contains("401 Unknown") && message.contains("AWS_CONTAINER"),
        "{message}"
    );
    let message = world()
        .set("AWS_CONTAINER_AUTHORIZATION_TOKEN", "secret\nsecret")
        .wrong(None);
    assert!(
        message.contains("AWS_CONTAINER_AUTHORIZATION_TOKEN"),
        "{message}"
    );
    assert!(!message.contains("secret"), "{message}");
    let message = World::new("")
        .set(
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            "http://example.com/keys",
        )
        .wrong(None);
    assert!(
        message.contains("AWS_CONTAINER_CREDENTIALS_FULL_URI"),
        "{message}"
    );
    // It is beside the container, and no proxy is.
    let found = world()
        .set("AWS_CONTAINER_AUTHORIZATION_TOKEN", "pod")
        .set("HTTP_PROXY", "http://127.0.0.1:1");
    assert_eq!(found.key(None).await.unwrap(), "OF-AGENT");
}

/// A metadata service of the second version, or of the first.
async fn metadata(with_tokens: bool) -> Service {
    Service::start(move |request| {
        let has_token = request.contains("\r\nx-aws-ec2-metadata-token: token\r\n");
        if request.starts_with("PUT /latest/api/token ") {
            let known = with_tokens && request.contains("x-aws-ec2-metadata-token-ttl-seconds: ");
            return if known {
                (200, "token".to_owned())
            } else {
                (404, String::new())
            };
        }
        if with_tokens != has_token {
            return (401, String::new());
        }
        let roles = "/latest/meta-data/iam/security-credentials/";
        if request.starts_with(&format!("GET {roles} ")) {
            (200, "my-role\n".to_owned())
        } else if request.starts_with(&format!("GET {roles}my-role ")) {
            (200, platform_keys("OF-INSTANCE"))
        } else {
            (500, String::new())
        }
    })
    .await
}

#[tokio::test]
async fn an_instance_is_asked_for_the_keys_of_its_role_unless_that_is_turned_off() {
    for with_tokens in [true, false] {
        let service = metadata(with_tokens).await;
        for variable in ["AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_METADATA_ENDPOINT"] {
            let world = World::new("").set(variable, &service.url());
            assert_eq!(world.key(None).await.unwrap(), "OF-INSTANCE");
            let world = world.set("AWS_EC2_METADATA_V1_DISABLED", "true");
            assert_eq!(world.key(None).await.is_ok(), with_tokens);
        }
        for off in ["true", "TRUE", " True\n"] {
            let world = World::new("")
                .set("AWS_EC2_METADATA_SERVICE_ENDPOINT", &service.url())
                .set("AWS_EC2_METADATA_DISABLED", off);
            let before = service.asked().len();
            let message = world.key(None).await.unwrap_err();
            assert!(message.contains("AWS_EC2_METADATA_DISABLED"), "{message}");
            assert_eq!(service.asked().len(), before);
        }
        let world = World::new("")
            .set("AWS_EC2_METADATA_SERVICE_ENDPOINT", &service.url())
            .set("AWS_EC2_METADATA_DISABLED", "false");
        assert_eq!(world.key(None).await.unwrap(), "OF-INSTANCE");
    }
}

#[tokio::test]
async fn a_metadata_service_that_is_not_there_or_is_silent_costs_two_seconds_at_most_and_is_named()
{
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = format!("http://{}", silent.local_addr().unwrap());
    let without_role = Service::start(|request| {
        let is_token = request.starts_with("PUT ");
        (if is_token { 200 } else { 404 }, "t".to_owned())
    })
    .await;
    let of_another_cloud = Service::start(|_| (403, "no".to_owned())).await;
    for endpoint in [
        silent.as_str(),
        "http://127.0.0.1:1",
        &without_role.url(),
        &of_another_cloud.url(),
    ] {
        let world = World::new("").set("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint);
        let started = Instant::now();
        let message = world.key(None).await.unwrap_err();
        assert!(started.elapsed() < Duration::from_millis(2500), "{message}");
        assert!(
            message.starts_with("absent: ") && message.contains(endpoint),
            "{message}"
        );
    }
}

/// A world with a sign-on whose token is good for so many seconds, and the portal.
async fn signed_on(seconds: i64, more: &str) -> (World, Service) {
    let portal = Service::start(|request| {
        if request.starts_with("POST /token ") {
            let good = request.contains("\"refreshToken\":\"refresh\"") && request.contains("\"refresh_token\"");
            let answer = r#"{"accessToken":"new token","expiresIn":3600,"refreshToken":"next"}"#;
            return if good { (200, answer.to_owned()) } else { (400, "{}".to_owned()) };
        }
        let query = "GET /federation/credentials?role_name=Reader&account_id=123 ";
        let token = ["token", "new token"]
            .into_iter()
            .find(|token| request.contains(&format!("x-amz-sso_bearer_token: {token}\r\n")));
        match token {
            Some(_) if request.starts_with(query) => {
                let keys = r#"{"roleCredentials":{"accessKeyId":"OF-PORTAL","secretAccessKey":"S","sessionToken":"T","expiration":7226582400000}}"#;
                (200, keys.to_owned())
            }
            _ => (401, r#"{"message":"secret"}"#.to_owned()),
        }
    })
    .await;
    let world = World::new(
        "[profile session]\nsso_session = corp\nsso_account_id = 123\nsso_role_name = Reader\n\
         [sso-session corp]\nsso_region = us-east-1\nsso_start_url = https://corp/start\n\
         [profile legacy]\nsso_start_url = https://corp/start\nsso_region = us-east-1\nsso_account_id = 123\nsso_role_name = Reader\n\
         [profile role]\nrole_arn = arn:aws:iam::1:role/R\nsource_profile = session\n",
    )
    .set("AWS_ENDPOINT_URL_SSO", &portal.url())
    .set("AWS_ENDPOINT_URL_SSO_OIDC", &portal.url());
    let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
    let token = format!(r#"{{"accessToken":"token","expiresAt":"{expires}"{more}}}"#);
    // The names are SHA-1 of `corp` and of the start URL, as `aws sso login` makes them.
    for session in ["corp", "https://corp/start"] {
        world.file(&cached(session), &token);
    }
    (world, portal)
}

fn cached(session: &str) -> String {
    let name = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, session.as_bytes());
    format!(
        ".aws/sso/cache/{}.json",
        crate::transport::encode::hex(name)
    )
}

#[tokio::test]
async fn the_token_that_a_sign_on_has_left_is_used() {
    assert_eq!(
        cached("abc"),
        ".aws/sso/cache/a9993e364706816aba3e25717850c26c9cd0d89d.json"
    );
    let (world, _portal) = signed_on(3600, "").await;
    for profile in ["session", "legacy"] {
        assert_eq!(world.key(Some(profile)).await.unwrap(), "OF-PORTAL");
    }
    let sts = Service::start(role_keys).await;
    let world = world.set("AWS_ENDPOINT_URL_STS", &sts.url());
    assert_eq!(world.key(Some("role")).await.unwrap(), "R");
    assert!(sts.asked()[0].contains("Credential=OF-PORTAL/"));
}

#[tokio::test]
async fn a_sign_on_that_is_over_is_told_with_the_command_that_renews_it() {
    let (world, portal) = signed_on(-1, "").await;
    let message = world.key(Some("session")).await.unwrap_err();
    assert!(
        message.contains("has expired") && message.contains("aws sso login"),
        "{message}"
    );
    assert!(portal.asked().is_empty());
    let path = world.home.path().join(cached("corp"));
    for (content, said) in [
        (
            r#"{"accessToken":"revoked","expiresAt":"2199-01-01T00:00:00Z"}"#,
            "401",
        ),
        ("no JSON", "no JSON"),
        (
            r#"{"accessToken":"a\nb","expiresAt":"2199-01-01T00:00:00Z"}"#,
            "makes no sense",
        ),
    ] {
        std::fs::write(&path, content).unwrap();
        let message = world.key(Some("session")).await.unwrap_err();
        for said in [said, "aws sso login"] {
            assert!(message.contains(said), "{said} is not in {message}");
        }
        assert!(
            !message.contains("revoked") && !message.contains("secret"),
            "{message}"
        );
    }
    std::fs::remove_file(path).unwrap();
    let message = world.key(Some("session")).await.unwrap_err();
    assert!(
        message.contains("\"session\"") && message.contains("aws sso login"),
        "{message}"
    );
}

#[tokio::test]
async fn a_token_of_a_sign_on_that_is_about_to_expire_is_renewed_and_put_back() {
    let more = r#","clientId":"c","clientSecret":"cs","refreshToken":"refresh","registrationExpiresAt":"2199-01-01T00:00:00Z","startUrl":"u""#;
    for seconds in [-10, 60] {
        let (world, portal) = signed_on(seconds, more).await;
        assert_eq!(world.key(Some("session")).await.unwrap(), "OF-PORTAL");
        let path = world.home.path().join(cached("corp"));
        let saved: serde_json::Value = serde_json::from_str(&read_text(&path)).unwrap();
        assert_eq!(
            (&saved["accessToken"], &saved["refreshToken"]),
            (&"new token".into(), &"next".into())
        );
        assert_eq!(
            (&saved["clientSecret"], &saved["startUrl"]),
            (&"cs".into(), &"u".into())
        );
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        // The next one has nothing to renew.
        assert_eq!(world.key(Some("session")).await.unwrap(), "OF-PORTAL");
        let renewals = portal
            .asked()
            .iter()
            .filter(|asked| asked.starts_with("POST "))
            .count();
        assert_eq!(renewals, 1);
    }
    // Where nobody answers, signing in again is no remedy.
    let (world, _portal) = signed_on(-10, more).await;
    let world = world.set("AWS_ENDPOINT_URL_SSO_OIDC", "http://127.0.0.1:1");
    let message = world.key(Some("session")).await.unwrap_err();
    assert!(
        message.contains("127.0.0.1:1/token") && !message.contains("aws sso login"),
        "{message}"
    );
    // What cannot be renewed is used as long as it lasts.
    let (world, _portal) = signed_on(60, &more.replace("refresh\"", "revoked\"")).await;
    assert_eq!(world.key(Some("session")).await.unwrap(), "OF-PORTAL");
}

fn read_text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}
