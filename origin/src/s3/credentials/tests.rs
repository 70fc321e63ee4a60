//! Keys of programs and services that fail, hang or expire.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::TcpListener;
use tokio::time::Instant;

use super::super::chain::trimmed;
use super::super::helper::Helper;
use super::*;

fn settings() -> Settings {
    Settings {
        profile: None,
        region: None,
        name: "s3://b".into(),
        dialect: Dialect::S3,
        named: None,
    }
}

fn found(source: Source) -> Credentials {
    let calls = Calls::new(Trust::of_system(), &Environment::of([]));
    let found = Found { source, calls };
    let find = Box::new(move |_: &Settings| Ok(found.clone()));
    let settings = settings();
    Credentials::find(Finder { settings, find }).unwrap()
}

/// Keys of a profile whose program is `command`.
fn helped(command: &str) -> Credentials {
    let helper = Helper::new("work", command, Duration::from_mins(1));
    found(Source::Helper(Arc::new(helper)))
}

/// A program that notes each of its runs in `log`, and prints keys that live for so many seconds.
fn prints(log: &Path, seconds: i64) -> String {
    let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
    let json = format!(r#"{{"AccessKeyId":"A","SecretAccessKey":"S","Expiration":"{expires}"}}"#);
    format!("echo run >> {}; echo '{json}'", log.display())
}

fn runs(log: &Path) -> usize {
    std::fs::read_to_string(log)
        .unwrap_or_default()
        .lines()
        .count()
}

#[tokio::test]
async fn many_who_need_keys_at_once_run_the_program_once() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let credentials = helped(&prints(&log, 3600));
    let all = futures::future::join_all((0..100).map(|_| credentials.get())).await;
    for found in all {
        assert_eq!(found.unwrap().access_key, "A");
    }
    assert_eq!(runs(&log), 1);
    // Who was refused with keys that others have renewed since then has nothing to wait for.
    let refused = trimmed(Keys {
        access_key: "OLD".to_owned(),
        secret_key: "S".to_owned(),
        token: None,
    });
    assert!(credentials.renew(&refused).await.unwrap());
    assert_eq!(runs(&log), 1);
}

#[tokio::test]
async fn keys_are_renewed_while_the_old_ones_are_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let credentials = helped(&prints(&log, 3600));
    credentials.get().await.unwrap();
    {
        let now = Instant::now();
        credentials.set_lasts(now, now + Duration::from_mins(10));
    }
    let old = credentials.get().await.unwrap();
    let new = credentials.loading().await.unwrap();
    assert!(!Arc::ptr_eq(&old, &new));
    assert!(Arc::ptr_eq(&credentials.get().await.unwrap(), &new));
    assert_eq!(runs(&log), 2);
}

#[tokio::test]
async fn keys_that_have_expired_are_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let credentials = helped(&prints(&log, -1));
    for _ in 0..2 {
        let error = credentials.get().await.unwrap_err();
        assert!(error.to_string().contains("expired"), "{error}");
    }
    assert_eq!(runs(&log), 1, "the failure counts for a moment");
    let log = dir.path().join("short");
    let credentials = helped(&prints(&log, 3600));
    credentials.get().await.unwrap();
    let now = Instant::now();
    credentials.set_lasts(now, now);
    credentials.get().await.unwrap();
    assert_eq!(runs(&log), 2);
}

#[tokio::test]
async fn refused_keys_are_loaded_again_but_not_at_each_request_if_there_are_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let (log, key) = (dir.path().join("log"), dir.path().join("key"));
    std::fs::write(&key, "A").unwrap();
    let json = format!(
        r#"{{\"AccessKeyId\":\"$(cat {})\",\"SecretAccessKey\":\"S\"}}"#,
        key.display()
    );
    let credentials = helped(&format!("echo run >> {}; echo \"{json}\"", log.display()));
    let old = credentials.get().await.unwrap();
    for _ in 0..10 {
        assert!(!credentials.renew(&old).await.unwrap());
    }
    assert_eq!(runs(&log), 2);
    std::fs::write(&key, "B").unwrap();
    credentials.forget_failures();
    let all = futures::future::join_all((0..10).map(|_| credentials.renew(&old))).await;
    assert!(all.into_iter().all(|renewed| renewed.unwrap()));
    assert_eq!(runs(&log), 3);
    assert_eq!(credentials.get().await.unwrap().access_key, "B");
}

#[tokio::test]
async fn a_failure_counts_for_a_moment_and_the_program_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let credentials = helped(&format!("echo run >> {}; exit 3", log.display()));
    let error = credentials.get().await.unwrap_err().to_string();
    assert!(
        error.contains("\"work\"") && error.contains("exit status: 3"),
        "{error}"
    );
    assert!(credentials.get().await.is_err());
    assert_eq!(runs(&log), 1);
}

/// A service that fails the first time, as badly as can be.
#[derive(Default)]
pub(in super::super) struct Fragile(AtomicBool);

impl Fragile {
    pub(in super::super) fn load(&self) -> Temporary {
        assert!(self.0.swap(true, Ordering::Relaxed), "the first time");
        Temporary {
            keys: Keys {
                access_key: "A".to_owned(),
                secret_key: "S".to_owned(),
                token: None,
            },
            life: None,
        }
    }
}

#[tokio::test]
async fn loading_that_panics_is_tried_again() {
    let fragile = Source::Fragile(Arc::default());
    let credentials = found(fragile);
    assert!(credentials.get().await.is_err());
    credentials.forget_failures();
    assert_eq!(credentials.get().await.unwrap().access_key, "A");
}

#[test]
fn line_breaks_around_keys_are_taken_off_and_an_empty_token_is_none() {
    let keys = Keys {
        access_key: "key\r\n".to_owned(),
        secret_key: " secret\n".to_owned(),
        token: Some("\n".to_owned()),
    };
    let keys = trimmed(keys);
    assert_eq!((&*keys.access_key, &*keys.secret_key), ("key", "secret"));
    assert_eq!(keys.token, None);
}

/// The longest time for one attempt.
const DEADLINE: Duration = Duration::from_secs(20);

/// Keys of a role, from a service that accepts connections and never answers, and the service's address.
async fn of_a_silent_service(token: &Path) -> (Credentials, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    std::fs::write(token, "token").unwrap();
    let environment = Environment::of([
        ("HOME", "/nonexistent"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap()),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/reader"),
        ("AWS_ENDPOINT_URL_STS", &format!("http://{address}")),
    ]);
    let find = move |settings: &Settings| Found::in_environment(settings, &environment);
    let (settings, find) = (settings(), Box::new(find));
    (
        Credentials::find(Finder { settings, find }).unwrap(),
        address,
    )
}

#[tokio::test(start_paused = true)]
async fn a_service_that_never_answers_is_waited_for_some_seconds_and_named() {
    let token = tempfile::NamedTempFile::new().unwrap();
    let (credentials, address) = of_a_silent_service(token.path()).await;
    let began = Instant::now();
    let error = credentials.get().await.unwrap_err();
    assert!(began.elapsed() <= DEADLINE, "{:?}", began.elapsed());
    assert_eq!(error.kind(), "unavailable", "a read may try again");
    let error = error.to_string();
    assert!(
        error.contains(&address) && error.contains("role/reader"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_still_good_are_used_while_the_service_is_silent() {
    let token = tempfile::NamedTempFile::new().unwrap();
    let (credentials, _) = of_a_silent_service(token.path()).await;
    let old = Arc::new(Keys {
        access_key: "OLD".to_owned(),
        secret_key: "S".to_owned(),
        token: None,
    });
    let began = Instant::now();
    let stale = began + Duration::from_mins(2);
    credentials.set_keys(old.clone(), began, stale);
    while Instant::now() < stale {
        let asked = Instant::now();
        assert!(Arc::ptr_eq(&credentials.get().await.unwrap(), &old));
        assert_eq!(asked.elapsed(), Duration::ZERO, "nobody waits");
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    let asked = Instant::now();
    let error = credentials.get().await.unwrap_err();
    assert_eq!(error.kind(), "unavailable");
    assert!(asked.elapsed() <= DEADLINE);
}

#[tokio::test]
async fn oss_has_keys_of_its_own_and_never_those_of_aws() {
    let of_oss = |variables: &[(&str, &str)]| {
        let settings = Settings {
            dialect: Dialect::Oss,
            name: "oss://b".into(),
            ..settings()
        };
        let lone = [
            ("HOME", "/nonexistent"),
            ("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "true"),
        ];
        let all = variables.iter().copied().chain(lone);
        let environment = Environment::of(all);
        let find =
            Box::new(move |settings: &Settings| Found::in_environment(settings, &environment));
        Credentials::find(Finder { settings, find })
    };
    let aws = [("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "S")];
    let error = of_oss(&aws).unwrap().get().await.unwrap_err().to_string();
    assert!(
        error.contains("OSS_ACCESS_KEY_ID") && !error.contains("AWS"),
        "{error}"
    );
    let both = [
        aws[0],
        aws[1],
        ("OSS_ACCESS_KEY_ID", "O"),
        ("OSS_ACCESS_KEY_SECRET", "T"),
        ("OSS_SESSION_TOKEN", "U"),
    ];
    let keys = of_oss(&both).unwrap().get().await.unwrap();
    assert_eq!((&*keys.access_key, keys.token.as_deref()), ("O", Some("U")));
    let error = of_oss(&both[2..3]).err().unwrap().to_string();
    assert!(error.contains("OSS_ACCESS_KEY_SECRET"), "{error}");
}
