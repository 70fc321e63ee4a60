//! Requests to Google Cloud Storage, whose every byte a test decides.

use std::net::SocketAddr;

use futures::TryStreamExt;

use super::*;
use crate::origin::Origin;
use crate::transport::testing::{service, with_head};

fn origin(address: SocketAddr) -> StoreOrigin<Gcs> {
    let spec = OriginSpec {
        endpoint: Some(format!("http://{address}")),
        ..OriginSpec::parse("gs://bucket").unwrap()
    };
    Gcs::open(&spec, &crate::SourcePolicy::unlimited()).unwrap()
}

fn object(version: &str) -> ObjectRef {
    ObjectRef {
        key: "a b/c".into(),
        size: 5,
        version: version.into(),
        modified_ns: 0,
    }
}

async fn read(origin: &dyn Origin, version: &str) -> Result<Vec<u8>, OriginError> {
    let fetched = origin.get(&object(version), 0..5).await?;
    let pieces: Vec<_> = fetched.body.try_collect().await?;
    Ok(pieces.concat())
}

#[tokio::test]
async fn a_generation_is_demanded_and_what_is_stored_compressed_is_asked_for_as_it_is() {
    let address = service(|head| {
        let line = head.lines().next().unwrap();
        let path = "/storage/v1/b/bucket/o/a%20b%2Fc?alt=media&ifGenerationMatch=17";
        assert_eq!(line, format!("GET {path} HTTP/1.1"));
        let is_gzip = head.contains("accept-encoding: gzip");
        assert!(
            is_gzip || head.contains("accept-encoding: identity"),
            "{head}"
        );
        let body: &[u8] = if is_gzip { b"pack!" } else { b"hello" };
        let hash = "x-goog-hash: md5=XUFAKrxLKna5cZ2REBfFkg==,crc32c=mnG7TA==";
        with_head(
            "200 OK",
            &["Content-Length: 5", "x-goog-generation: 17", hash],
            body,
        )
    })
    .await;
    let origin = origin(address);
    assert_eq!(read(&origin, "17").await.unwrap(), b"hello");
    assert_eq!(read(&origin, "17-gzip").await.unwrap(), b"pack!");
    let fetched = origin.get(&object("17"), 0..5).await.unwrap();
    assert!(matches!(
        fetched.digest,
        Some(Digest::Crc(CrcKind::Crc32c, 0x9a71_bb4c))
    ));
}

#[tokio::test]
async fn answers_of_another_generation_or_of_none_are_no_answers() {
    for (status, line, kind) in [
        ("200 OK", "x-goog-generation: 18", "changed"),
        ("200 OK", "x-other: 1", "malformed"),
        ("412 Precondition Failed", "x-other: 1", "changed"),
        ("404 Not Found", "x-other: 1", "changed"),
        ("401 Unauthorized", "x-other: 1", "access_denied"),
        ("429 Too Many", "x-other: 1", "throttled"),
        ("503 Unavailable", "Retry-After: 3", "throttled"),
    ] {
        let address =
            service(move |_| with_head(status, &["Content-Length: 5", line], b"hello")).await;
        let error = read(&origin(address), "17").await.unwrap_err();
        assert_eq!(error.kind(), kind, "{status} {line}");
    }
    let missing = "{\"error\":{\"message\":\"The specified bucket does not exist.\"}}";
    let address = service(move |_| with_head("404 Not Found", &[], missing.as_bytes())).await;
    let error = read(&origin(address), "17").await.unwrap_err();
    assert_eq!(error.kind(), "bucket_missing");
}

#[tokio::test]
async fn pages_are_followed_to_the_last_and_not_in_a_circle() {
    let page = |name: &str, next: &str| {
        format!(
            "{{\"kind\":\"storage#objects\",{next}\"items\":[{{\"name\":\"p/{name}\",\"size\":\"1\",\"generation\":\"1\"}}]}}"
        )
    };
    let address = service(move |head| {
        let line = head.lines().next().unwrap();
        assert!(line.contains("&prefix=p%2F"), "{line}");
        let body = match line {
            line if line.contains("pageToken=t%2F1") => page("b", ""),
            _ => page("a", "\"nextPageToken\":\"t/1\","),
        };
        with_head("200 OK", &[], body.as_bytes())
    })
    .await;
    let origin = origin(address);
    let pages: Vec<_> = origin.list("p/").try_collect().await.unwrap();
    let keys: Vec<_> = pages
        .concat()
        .into_iter()
        .map(|object| object.key)
        .collect();
    assert_eq!(keys, [b"p/a", b"p/b"]);
    let again = service(move |_| {
        with_head(
            "200 OK",
            &[],
            page("a", "\"nextPageToken\":\"t\",").as_bytes(),
        )
    })
    .await;
    let origin = self::origin(again);
    let ended: Result<Vec<_>, _> = origin.list("p/").try_collect().await;
    assert!(ended.unwrap_err().to_string().contains("again"));
}
