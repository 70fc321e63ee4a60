//! Credentials over restarts, with other keys, and while they are used.

use weir_origin::{CredentialKind, Keys};

use super::*;
use crate::store::{MetaStore, RocksStore};

const ONE: &str = "1111111111111111111111111111111111111111111111111111111111111111";
const TWO: &str = "2222222222222222222222222222222222222222222222222222222222222222";

fn key(text: &str) -> CredentialKeys {
    CredentialKeys::of_variable("KEY", text).unwrap()
}

fn name(name: &str) -> CredentialName {
    name.parse().unwrap()
}

fn secret(secret: &str) -> Credential {
    Credential {
        kind: CredentialKind::Keys(Keys {
            access_key: "AKIA".to_owned(),
            secret_key: secret.to_owned(),
            token: None,
        }),
        endpoints: Vec::new(),
    }
}

struct Lab {
    store: Arc<dyn MetaStore>,
    _dir: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            store: Arc::new(RocksStore::open(&dir.path().join("store")).unwrap()),
            _dir: dir,
        }
    }

    fn load(&self, keys: impl Into<Option<CredentialKeys>>) -> Result<Credentials, String> {
        let records = Records::new(self.store.clone());
        Credentials::load(records, keys.into(), false).map_err(|error| error.to_string())
    }
}

fn spec(credentials: Option<&str>) -> OriginSpec {
    OriginSpec {
        credentials: credentials.map(str::to_owned),
        ..OriginSpec::parse("s3://bucket").unwrap()
    }
}

#[tokio::test]
async fn credentials_survive_a_restart_and_a_new_key_but_not_another() {
    let lab = Lab::new();
    {
        let credentials = lab.load(key(ONE)).unwrap();
        credentials
            .set(&name("a"), secret("hunter2"), false)
            .await
            .unwrap();
        credentials
            .set(&name("b"), secret("hunter3"), false)
            .await
            .unwrap();
        credentials.give(&name("a"), 0).await.unwrap();
    }
    for (key, value) in lab.store.scan("").unwrap() {
        let hidden = !value.windows(6).any(|bytes| bytes == b"hunter");
        assert!(hidden && !key.contains("hunter"), "{key}");
    }
    let error = lab.load(None).unwrap_err();
    assert!(
        error.contains("2 credentials") && error.contains("--credentials-key"),
        "{error}"
    );
    let error = lab.load(key(TWO)).unwrap_err();
    assert!(error.contains("not the one"), "{error}");

    // A newer key in front: all is encrypted with it, and the older one may go.
    let used = lab.load(key(&format!("{TWO}\n{ONE}"))).unwrap().list();
    assert!(used[0].used_ns > 0 && used[1].used_ns == 0, "{used:?}");
    let credentials = lab.load(key(TWO)).unwrap();
    assert_eq!(credentials.open(&name("a")).unwrap(), secret("hunter2"));
    let error = lab.load(key(ONE)).unwrap_err();
    assert!(error.contains("not the one"), "{error}");

    // A record under another's name opens with no key.
    let record = lab.store.get("credential/a").unwrap().unwrap();
    lab.store
        .write(&[Change::Put("credential/b".to_owned(), record)])
        .unwrap();
    let error = lab.load(key(TWO)).unwrap_err();
    assert!(error.contains("credentials b"), "{error}");
    // What no key opens may be forgotten, and nothing else.
    let records = Records::new(lab.store.clone());
    let left = Credentials::load(records, Some(key(TWO)), true).unwrap();
    assert_eq!(left.open(&name("a")).unwrap(), secret("hunter2"));
    assert_eq!(lab.load(key(TWO)).unwrap().list().len(), 1);
}

#[tokio::test]
async fn new_ones_are_made_once_and_replaced_by_their_own_kind() {
    let lab = Lab::new();
    let without_key = lab.load(None).unwrap();
    let error = without_key
        .set(&name("a"), secret("s"), false)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("--credentials-key"), "{error}");
    let credentials = lab.load(key(ONE)).unwrap();
    let set = async |new: Credential, replace| {
        let outcome = credentials.set(&name("a"), new, replace).await;
        outcome.map_err(|error| error.to_string())
    };
    let error = set(secret("s"), true).await.unwrap_err();
    assert!(error.contains("weir credentials set a"), "{error}");
    set(secret("s"), false).await.unwrap();
    let error = set(secret("t"), false).await.unwrap_err();
    assert!(error.contains("rotate a"), "{error}");
    assert!(
        set(secret(""), true)
            .await
            .unwrap_err()
            .contains("secret key")
    );
    let (first, revision) = credentials.give(&name("a"), 0).await.unwrap();
    assert_eq!(first, Some(secret("s")));
    let none = credentials.give(&name("a"), revision).await.unwrap();
    assert_eq!(none, (None, revision));
    set(secret("t"), true).await.unwrap();
    let (second, next) = credentials.give(&name("a"), revision).await.unwrap();
    assert_eq!((second, next), (Some(secret("t")), revision + 1));
    let other = Credential {
        kind: CredentialKind::WebIdentity {
            arn: "arn:x".to_owned(),
            token_file: "/token".to_owned(),
        },
        endpoints: Vec::new(),
    };
    assert!(set(other, true).await.unwrap_err().contains("web identity"));
}

#[tokio::test]
async fn a_damaged_record_is_told_at_each_start_and_nothing_is_lost_by_that() {
    let lab = Lab::new();
    let credentials = lab.load(key(ONE)).unwrap();
    for of in ["a", "b"] {
        credentials
            .set(&name(of), secret("s"), false)
            .await
            .unwrap();
    }
    drop(credentials);
    let whole = lab.store.scan("").unwrap();
    let record = lab.store.get("credential/b").unwrap().unwrap();
    let mut torn = record.clone();
    torn.truncate(record.len() - 1);
    let mut turned = record.clone();
    *turned.last_mut().unwrap() ^= 1;
    for damaged in [torn, turned, b"damaged".to_vec(), Vec::new()] {
        let change = Change::Put("credential/b".to_owned(), damaged);
        lab.store.write(&[change]).unwrap();
        let before = lab.store.scan("").unwrap();
        for _ in 0..3 {
            let error = lab.load(key(ONE)).unwrap_err();
            assert!(error.contains('b') && !error.contains('\n'), "{error}");
        }
        assert_eq!(lab.store.scan("").unwrap(), before);
        let change = Change::Put("credential/b".to_owned(), record.clone());
        lab.store.write(&[change]).unwrap();
        assert_eq!(lab.store.scan("").unwrap(), whole);
        assert_eq!(lab.load(key(ONE)).unwrap().list().len(), 2);
    }
    // With --forget-credentials the damaged one goes, however it is damaged. A key that is missing is no damage.
    let change = Change::Put("credential/b".to_owned(), b"damaged".to_vec());
    lab.store.write(&[change]).unwrap();
    let before = lab.store.scan("").unwrap();
    let forgetting = |keys| Credentials::load(Records::new(lab.store.clone()), keys, true);
    let error = forgetting(None).unwrap_err().to_string();
    assert!(
        error.contains("2 credentials") && error.contains("or a new one"),
        "{error}"
    );
    assert_eq!(lab.store.scan("").unwrap(), before);
    let left = forgetting(Some(key(ONE))).unwrap();
    assert_eq!(left.list().len(), 1);
}

#[tokio::test]
async fn ten_thousand_fit_and_the_longest_names() {
    let lab = Lab::new();
    let credentials = lab.load(key(ONE)).unwrap();
    let longest = format!("{}/{}", "n".repeat(63), "c".repeat(63));
    credentials
        .set(&name(&longest), secret("s"), false)
        .await
        .unwrap();
    for number in 1..MAX_CREDENTIALS {
        let name = name(&format!("c{number}"));
        credentials.set(&name, secret("s"), false).await.unwrap();
    }
    let error = credentials.set(&name("Bad_Name"), secret("s"), false).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("lower-case"), "{error}");
    let error = credentials.set(&name("more"), secret("s"), false).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("10000 credentials"), "{error}");
    // Those that are there can be replaced, listed and opened all the same, also after a restart with a newer key.
    credentials
        .set(&name("c9"), secret("t"), true)
        .await
        .unwrap();
    drop(credentials);
    let credentials = lab.load(key(&format!("{TWO}\n{ONE}"))).unwrap();
    assert_eq!(credentials.list().len(), MAX_CREDENTIALS);
    assert_eq!(credentials.open(&name("c9")).unwrap(), secret("t"));
    credentials.open(&name(&longest)).unwrap();
    for wrong in [
        "",
        "a b",
        "a/",
        "/a",
        "a/b/c",
        "-a",
        "é",
        "a@b",
        &"a".repeat(1000),
    ] {
        assert!(wrong.parse::<CredentialName>().is_err(), "{wrong:?}");
    }
}

#[tokio::test]
async fn what_is_used_is_not_deleted() {
    let lab = Lab::new();
    let credentials = lab.load(key(ONE)).unwrap();
    let error = credentials
        .hold(&[spec(Some("a"))])
        .unwrap_err()
        .to_string();
    assert!(error.contains("set a"), "{error}");
    assert!(credentials.held.lock().is_empty());
    credentials
        .set(&name("a"), secret("s"), false)
        .await
        .unwrap();
    let delete = async |users: &[&str]| {
        let users = users.iter().map(|&user| user.to_owned()).collect();
        let outcome = credentials.delete(&name("a"), || users).await;
        outcome.map_err(|error| error.to_string())
    };
    let held = credentials
        .hold(&[spec(None), spec(Some("a")), spec(Some("a"))])
        .unwrap();
    assert!(delete(&[]).await.unwrap_err().contains("being made"));
    drop(held);
    let error = delete(&["one", "two"]).await.unwrap_err();
    assert!(
        error.contains("one, two") && error.contains("rotate a"),
        "{error}"
    );
    delete(&[]).await.unwrap();
    assert!(delete(&[]).await.unwrap_err().contains("no credentials a"));
    assert_eq!(lab.store.scan("credential").unwrap(), []);
    assert!(credentials.list().is_empty());
    // The same name again has no revision that anybody has seen.
    credentials
        .set(&name("a"), secret("s"), false)
        .await
        .unwrap();
    let (_, first) = credentials.give(&name("a"), 0).await.unwrap();
    credentials.delete(&name("a"), Vec::new).await.unwrap();
    credentials
        .set(&name("a"), secret("t"), false)
        .await
        .unwrap();
    assert_eq!(
        credentials.give(&name("a"), first).await.unwrap().0,
        Some(secret("t"))
    );
}
