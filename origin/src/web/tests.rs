//! Listings and reads of web servers of all kinds, each byte of which a test decides.

use std::net::SocketAddr;

use futures::TryStreamExt;

use super::*;
use parking_lot::Mutex;
use weir_core::CredentialName;

use crate::credential::{Credential, CredentialError, CredentialKind, CredentialSource, Secret};
use crate::transport::testing::{service, with_head};

fn origin(address: SocketAddr, path: &str) -> WebOrigin {
    let spec = OriginSpec::parse(&format!("http://{address}{path}")).unwrap();
    WebOrigin::open(&spec, &SourcePolicy::unlimited()).unwrap()
}

/// The method and the path of a request.
fn asked(head: &str) -> (&str, &str) {
    let mut words = head.split(' ');
    (words.next().unwrap(), words.next().unwrap())
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    let mut found = lines.filter(|(other, _)| other.eq_ignore_ascii_case(name));
    found.next().map(|(_, value)| value)
}

async fn list(origin: &WebOrigin, dir: &str) -> Result<Vec<Listed>, OriginError> {
    let pages: Vec<_> = origin.list(dir).try_collect().await?;
    Ok(pages.concat())
}

async fn read(
    origin: &WebOrigin,
    object: &ObjectRef,
    range: Range<u64>,
) -> Result<Vec<u8>, OriginError> {
    let fetched = origin.get(object, range).await?;
    let pieces: Vec<_> = fetched.body.try_collect().await?;
    Ok(pieces.concat())
}

fn object(key: &str, size: u64, version: &str) -> ObjectRef {
    ObjectRef {
        key: key.into(),
        size,
        version: version.into(),
        modified_ns: 0,
    }
}

const HTML: &str = "Content-Type: text/html";
const GONE: &str = "404 Not Found";

#[tokio::test]
async fn directories_are_walked_and_each_file_is_asked_about() {
    let address = service(|head| match asked(head) {
        ("GET", "/d/") => with_head(
            "200 OK",
            &[HTML],
            b"<title>Index of /d</title><a href=\"../\">up</a><a href=\"a%20b\">x</a><a href=\"sub/\">x</a><a href=\"broken\">x</a>",
        ),
        ("GET", "/d/sub/") => with_head("200 OK", &[HTML], b"<title>Index of /d/sub</title><a href=\"c\">x</a>"),
        ("HEAD", "/d/a%20b") => with_head("200 OK", &["Content-Length: 5", "ETag: \"e\""], b""),
        // It knows no HEAD.
        ("HEAD", "/d/sub/c") => with_head("405 Method Not Allowed", &["Content-Length: 0"], b""),
        ("GET", "/d/sub/c") => with_head(
            "206 Partial Content",
            &["Content-Length: 1", "Content-Range: bytes 0-0/7", "Last-Modified: Thu, 01 Jan 1970 00:00:05 GMT"],
            b"x",
        ),
        _ => with_head(GONE, &["Content-Length: 0"], b""),
    })
    .await;
    let mut listed = list(&origin(address, "/d"), "d/").await.unwrap();
    listed.sort_by(|a, b| a.key.cmp(&b.key));
    let shown: Vec<(String, u64, &str)> = listed
        .iter()
        .map(|file| {
            let key = String::from_utf8_lossy(&file.key).into_owned();
            (key, file.size, &*file.version)
        })
        .collect();
    let expected = [
        ("d/a b", 5, "e:e"),
        ("d/broken", 0, ""),
        ("d/sub/c", 7, "t:5"),
    ];
    let expected = expected.map(|(key, size, version)| (key.to_owned(), size, version));
    assert_eq!(shown, expected);
    assert!(matches!(
        listed[1].hindrance,
        Some(crate::Hindrance::LeftOut(_))
    ));
    assert_eq!(listed[2].mtime_ns, 5_000_000_000);
}

#[tokio::test]
async fn an_index_says_what_there_is_and_small_files_with_digests_are_not_asked_about() {
    let address = service(|head| match asked(head) {
        ("GET", "/d/list") => with_head("200 OK", &[], b"a\t5\tcrc32c:9a71bb4c\nb\n"),
        ("HEAD", "/d/b") => with_head("200 OK", &["Content-Length: 9", "ETag: \"e\""], b""),
        ("GET", "/d/a") => with_head("200 OK", &["Content-Length: 5"], b"hello"),
        _ => with_head("500 Oops", &["Content-Length: 0"], b""),
    })
    .await;
    let origin = origin(address, "/d/?index=list");
    let listed = list(&origin, "d/").await.unwrap();
    let versions: Vec<_> = listed
        .iter()
        .map(|file| (file.size, &*file.version))
        .collect();
    assert_eq!(versions, [(5, "n: crc32c:9a71bb4c"), (9, "e:e")]);
    let first = object("d/a", 5, &listed[0].version);
    let fetched = origin.get(&first, 0..5).await.unwrap();
    assert!(matches!(fetched.digest, Some(Digest::Crc(_, 0x9a71_bb4c))));
    assert!(origin.checksum(&first).await.unwrap().is_some());
}

#[tokio::test]
async fn an_index_that_does_not_fit_what_is_there_is_refused() {
    for (index, said) in [
        ("gone\n", "no such file"),
        ("b\t8\n", "8 bytes"),
        ("b\t8\tx\n", "line 1"),
        ("/etc/passwd\n", "line 1"),
    ] {
        let address = service(move |head| match asked(head) {
            ("GET", "/list") => with_head("200 OK", &[], index.as_bytes()),
            ("HEAD", "/b") => with_head("200 OK", &["Content-Length: 9"], b""),
            _ => with_head(GONE, &["Content-Length: 0"], b""),
        })
        .await;
        let origin = origin(address, "/?index=list");
        let error = list(&origin, "").await.unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let address = service(|_| with_head(GONE, &["Content-Length: 0"], b"")).await;
    let error = list(&origin(address, "/?index=list"), "")
        .await
        .unwrap_err();
    assert!(error.to_string().contains("?index="), "{error}");
    let error = list(&origin(address, "/d/"), "d/").await.unwrap_err();
    assert_eq!(error.kind(), "bucket_missing");
}

#[tokio::test]
async fn a_page_that_is_no_directorys_is_refused_with_what_to_do() {
    let address = service(|_| with_head("200 OK", &[HTML], b"<title>Welcome</title>")).await;
    let error = list(&origin(address, "/d/"), "d/").await.unwrap_err();
    assert!(error.to_string().contains("?index=FILE"), "{error}");
    let address = service(|_| with_head("403 Forbidden", &["Content-Length: 0"], b"")).await;
    let error = list(&origin(address, "/d/"), "d/").await.unwrap_err();
    assert_eq!(error.kind(), "access_denied");
}

#[tokio::test]
async fn reads_are_of_the_listed_version_or_an_error() {
    let address = service(|head| {
        assert_eq!(header(head, "accept-encoding"), Some("identity"));
        let etag = match asked(head).1 {
            "/weak" => "ETag: W/\"e\"",
            "/new" => "ETag: \"other\"",
            _ => "ETag: \"e\"",
        };
        match header(head, "range") {
            Some("bytes=1-2") => with_head(
                "206 Partial Content",
                &["Content-Length: 2", "Content-Range: bytes 1-2/5", etag],
                b"el",
            ),
            None => with_head("200 OK", &["Content-Length: 5", etag], b"hello"),
            Some(other) => panic!("{other}"),
        }
    })
    .await;
    let origin = origin(address, "/");
    let same = object("same", 5, "e:e");
    assert_eq!(read(&origin, &same, 0..5).await.unwrap(), b"hello");
    assert_eq!(read(&origin, &same, 1..3).await.unwrap(), b"el");
    for changed in ["new", "weak"] {
        let error = read(&origin, &object(changed, 5, "e:e"), 1..3).await;
        assert_eq!(error.unwrap_err().kind(), "changed", "{changed}");
    }
}

#[tokio::test]
async fn a_server_that_ignores_ranges_is_read_as_a_whole_up_to_a_limit() {
    let address =
        service(|_| with_head("200 OK", &["Content-Length: 5", "ETag: \"e\""], b"hello")).await;
    let origin = origin(address, "/");
    let small = object("small", 5, "e:e");
    assert_eq!(read(&origin, &small, 3..5).await.unwrap(), b"lo");
    let address = service(|_| {
        let length = format!("Content-Length: {}", MAX_WHOLE + 1);
        with_head("200 OK", &[&length, "ETag: \"e\""], b"")
    })
    .await;
    let origin = self::origin(address, "/");
    let big = object("big", MAX_WHOLE + 1, "e:e");
    let error = read(&origin, &big, 4096..8192).await.unwrap_err();
    assert!(error.to_string().contains("ignores ranges"), "{error}");
}

#[tokio::test]
async fn redirects_lead_to_the_same_server_and_never_in_a_circle() {
    let address = service(|head| match asked(head).1 {
        "/a" => with_head("302 Found", &["Location: /b", "Content-Length: 0"], b""),
        "/b" => with_head("200 OK", &["Content-Length: 5", "ETag: \"e\""], b"hello"),
        "/near" => with_head(
            "302 Found",
            &[
                "Location: http://127.0.0.1:1/x?token=hunter2",
                "Content-Length: 0",
            ],
            b"",
        ),
        _ => with_head(
            "302 Found",
            &["Location: /circle", "Content-Length: 0"],
            b"",
        ),
    })
    .await;
    let origin = origin(address, "/");
    assert_eq!(
        read(&origin, &object("a", 5, "e:e"), 0..5).await.unwrap(),
        b"hello"
    );
    for key in ["near", "circle"] {
        let error = read(&origin, &object(key, 5, "e:e"), 0..5)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), "refused", "{error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}

/// Has the header that the test gives it.
#[derive(Debug)]
struct Given(Mutex<&'static str>, Vec<String>);

#[async_trait]
impl CredentialSource for Given {
    async fn credential(&self, _: &CredentialName) -> Result<Arc<Credential>, CredentialError> {
        Ok(Arc::new(Credential {
            kind: CredentialKind::Header {
                name: "X-Token".to_owned(),
                value: Secret::new((*self.0.lock()).to_owned()),
            },
            endpoints: self.1.clone(),
        }))
    }
}

#[tokio::test]
async fn the_header_of_a_source_s_credentials_is_sent_to_its_server_alone() {
    // Another server, to which this one sends requests on.
    let elsewhere = service(|head| match header(head, "x-token") {
        None => with_head("200 OK", &["Content-Length: 3", "ETag: \"e\""], b"abc"),
        Some(_) => with_head("400 Bad Request", &[], b""),
    })
    .await;
    let address = service(move |head| {
        let location = format!("Location: http://{elsewhere}/there");
        match (header(head, "x-token"), asked(head).1) {
            (Some("new"), "/d/sent-on") => with_head("302 Found", &[&location], b""),
            (Some("new"), "/d/") => {
                let html = ["Content-Type: text/html"];
                with_head(
                    "200 OK",
                    &html,
                    b"<title>Index of /d/</title><a href=\"f\">f</a>",
                )
            }
            (Some("new"), "/d/near") => with_head("302 Found", &["Location: /d/f"], b""),
            (Some("new"), _) => {
                let body = if asked(head).0 == "HEAD" {
                    &b""[..]
                } else {
                    b"abc"
                };
                with_head("200 OK", &["Content-Length: 3", "ETag: \"e\""], body)
            }
            _ => with_head("401 Unauthorized", &[], b""),
        }
    })
    .await;
    let open = |for_address: String| {
        let spec = OriginSpec {
            credentials: Some("team".to_owned()),
            ..OriginSpec::parse(&format!("http://{address}/d/")).unwrap()
        };
        let given = Arc::new(Given(Mutex::new("old"), vec![for_address]));
        let sources = SourcePolicy::unlimited().with_credentials(given.clone());
        (WebOrigin::open(&spec, &sources).unwrap(), given)
    };
    let (origin, given) = open(format!("http://{address}"));
    let get = async |key: &str| {
        let object = object(key, 3, "e:e");
        read(&origin, &object, 0..3).await
    };
    let error = get("d/f").await.unwrap_err();
    assert_eq!(error.kind(), "access_denied", "{error}");
    assert!(error.to_string().contains("rotate"), "{error}");
    *given.0.lock() = "new";
    let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
    // That there was no other one counts for a moment.
    while get("d/f").await.is_err() {
        assert!(std::time::Instant::now() < until, "the new one is not used");
        tokio::task::yield_now().await;
    }
    assert_eq!(get("d/near").await.unwrap(), b"abc");
    // Pages of directories and what is asked of their files have it, too.
    let listed: Vec<Vec<Listed>> = origin.list("d/").try_collect().await.unwrap();
    let listed: Vec<Listed> = listed.into_iter().flatten().collect();
    assert_eq!(listed.len(), 1);
    assert_eq!((&*listed[0].key, listed[0].size), (&b"d/f"[..], 3));
    // An address elsewhere that is near is not followed to at all; had it been, it would have come without.
    assert!(get("d/sent-on").await.is_err());

    let (origin, _) = open("http://elsewhere.lab".to_owned());
    let object = object("d/f", 3, "e:e");
    let error = read(&origin, &object, 0..3).await.unwrap_err().to_string();
    assert!(
        error.contains("credentials team") && error.contains("not for"),
        "{error}"
    );
}
