//! Reads and listings of a bucket over the wire, from a service whose every byte a test decides.

use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;

use futures::TryStreamExt;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::transport::testing::{service, with_head};

fn origin(address: SocketAddr) -> S3Origin {
    let spec = OriginSpec {
        endpoint: Some(format!("http://{address}")),
        anonymous: true,
        ..OriginSpec::parse("s3://bucket").unwrap()
    };
    S3Origin::open(&spec, &crate::SourcePolicy::unlimited()).unwrap()
}

fn object(size: u64) -> ObjectRef {
    ObjectRef {
        key: "k".into(),
        size,
        version: "e1".into(),
        modified_ns: 5_000_000_000,
    }
}

async fn read(origin: &S3Origin, size: u64, range: Range<u64>) -> Result<Vec<u8>, OriginError> {
    let fetched = origin.get(&object(size), range).await?;
    let pieces: Vec<_> = fetched.body.try_collect().await?;
    Ok(pieces.concat())
}

const ETAG: &str = "ETag: \"e1\"";
const CHUNKED: &str = "Transfer-Encoding: chunked";

#[tokio::test]
async fn a_body_that_does_not_tell_its_length_is_used_when_it_ends_where_it_should() {
    for (body, expected) in [
        (
            "4\r\n0123\r\n6\r\n456789\r\n0\r\n\r\n",
            Ok(b"2345".to_vec()),
        ),
        ("a\r\n0123456789\r\n1\r\nx\r\n0\r\n\r\n", Err("malformed")),
        ("b\r\n0123456789x\r\n0\r\n\r\n", Err("malformed")),
        ("9\r\n012345678\r\n0\r\n\r\n", Err("malformed")),
        ("a\r\n0123456789\r\n", Err("unavailable")),
    ] {
        let address =
            service(move |_| with_head("200 OK", &[ETAG, CHUNKED], body.as_bytes())).await;
        let got = read(&origin(address), 10, 2..6).await;
        assert_eq!(got.map_err(|error| error.kind()), expected, "{body:?}");
    }
    let part = "Content-Range: bytes 2-5/10";
    for (body, expected) in [("2345", Ok(b"2345".to_vec())), ("23456", Err("malformed"))] {
        let reply = move |_: &str| with_head("206 Partial Content", &[ETAG, part], body.as_bytes());
        let got = read(&origin(service(reply).await), 10, 2..6).await;
        assert_eq!(got.map_err(|error| error.kind()), expected, "{body:?}");
    }
}

#[tokio::test]
async fn the_stored_bytes_are_asked_for_and_that_is_not_signed() {
    let address = service(|head| {
        let head = head.to_ascii_lowercase();
        let asked = head.contains("\r\naccept-encoding: identity\r\n");
        let status = if asked { "200 OK" } else { "400 Bad Request" };
        with_head(status, &[ETAG, "Content-Length: 3"], b"abc")
    })
    .await;
    assert_eq!(read(&origin(address), 3, 0..3).await.unwrap(), b"abc");
}

#[tokio::test]
async fn that_nothing_tells_a_version_is_noticed_once() {
    let address = service(|_| with_head("200 OK", &["Content-Length: 3"], b"abc")).await;
    let origin = origin(address);
    assert!(!origin.unwitnessed.load(Ordering::Relaxed));
    assert_eq!(read(&origin, 3, 0..3).await.unwrap(), b"abc");
    assert!(origin.unwitnessed.load(Ordering::Relaxed));
}

#[tokio::test]
async fn objects_may_have_a_thousand_headers_and_no_more() {
    let address = service(|head| {
        let count = if head.starts_with("GET /bucket/k ") {
            1000
        } else {
            1100
        };
        let mut lines: Vec<String> = (0..count).map(|n| format!("x-amz-meta-{n}: v")).collect();
        lines.extend([ETAG.to_owned(), "Content-Length: 3".to_owned()]);
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        with_head("200 OK", &lines, b"abc")
    })
    .await;
    let origin = origin(address);
    for _ in 0..3 {
        assert_eq!(read(&origin, 3, 0..3).await.unwrap(), b"abc");
    }
    let other = ObjectRef {
        key: "other".into(),
        ..object(3)
    };
    let error = origin.get(&other, 0..3).await.unwrap_err();
    assert!(error.to_string().contains("too large"), "{error}");
}

/// As [`service`], which also tells each request's number; and how many there were.
async fn counted(
    reply: impl Fn(usize, &str) -> Vec<u8> + Send + Sync + 'static,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let address = service(move |head| reply(counter.fetch_add(1, Ordering::Relaxed), head)).await;
    (address, count)
}

fn content() -> Vec<u8> {
    with_head("200 OK", &[ETAG, "Content-Length: 3"], b"abc")
}

#[tokio::test]
async fn a_region_that_the_service_names_is_tried_once() {
    let wrong_region = || {
        let document =
            b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-nl-1</Region></Error>";
        with_head("400 Bad Request", &["Connection: close"], document)
    };
    let reply = move |number, _: &str| {
        if number == 0 {
            wrong_region()
        } else {
            content()
        }
    };
    let (address, count) = counted(reply).await;
    assert_eq!(read(&origin(address), 3, 0..3).await.unwrap(), b"abc");
    assert_eq!(count.load(Ordering::Relaxed), 2);

    let (address, count) = counted(move |_, _| wrong_region()).await;
    let error = read(&origin(address), 3, 0..3).await.unwrap_err();
    assert_eq!(error.kind(), "refused");
    assert!(error.to_string().contains("eu-nl-1"), "{error}");
    assert_eq!(count.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn redirects_are_followed_within_the_service_and_not_for_ever() {
    let redirect = |location: &str| {
        with_head(
            "307 Temporary Redirect",
            &[&format!("Location: {location}")],
            b"",
        )
    };
    let real = service(|head| {
        assert!(head.starts_with("GET /bucket/k "), "{head}");
        content()
    })
    .await;
    let address = service(move |_| redirect(&format!("http://{real}/bucket/k"))).await;
    assert_eq!(read(&origin(address), 3, 0..3).await.unwrap(), b"abc");

    for (location, requests) in [("/bucket/k", 4), ("http://other.example/bucket/k?s=1", 1)] {
        let (address, count) = counted(move |_, _| redirect(location)).await;
        let error = read(&origin(address), 3, 0..3).await.unwrap_err();
        assert_eq!(error.kind(), "refused");
        let told = location.split('?').next().unwrap();
        assert!(error.to_string().contains(told), "{error}");
        assert_eq!(count.load(Ordering::Relaxed), requests, "{location}");
    }
}

#[tokio::test]
async fn a_redirect_to_what_is_not_allowed_is_refused_and_asked_nothing() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let target = service(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        with_head("200 OK", &[ETAG, "Content-Length: 5"], b"12345")
    })
    .await;
    let location = format!("Location: http://{target}/bucket/k");
    let address = service(move |_| with_head("307 Temporary Redirect", &[&location], b"")).await;
    let spec = OriginSpec {
        endpoint: Some(format!("http://{address}")),
        anonymous: true,
        ..OriginSpec::parse("s3://bucket").unwrap()
    };
    let open = |allowed: &str| {
        let allowed = vec![allowed.parse().unwrap()];
        let policy = crate::SourcePolicy::of("weir worker", Vec::new(), allowed);
        S3Origin::open(&spec, &policy).unwrap()
    };
    let error = read(&open(&address.to_string()), 5, 0..5)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), "not_allowed", "{error}");
    assert!(error.to_string().contains(&target.to_string()), "{error}");
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    assert_eq!(read(&open("127.0.0.1"), 5, 0..5).await.unwrap(), b"12345");
}

/// A service with TLS as far as anybody can tell who has no certificate: it answers a greeting with an alert, and closes
/// connections of all others.
async fn service_with_tls() -> SocketAddr {
    const HANDSHAKE: u8 = 22;
    const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 40];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            if stream.read_u8().await.is_ok_and(|first| first == HANDSHAKE) {
                let _ = stream.write_all(&ALERT).await;
                let _ = stream.shutdown().await;
            }
        }
    });
    address
}

/// A service without TLS, which answers whatever comes.
async fn plain_service() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            if stream.read_u8().await.is_ok() {
                let answer = with_head("400 Bad Request", &["Content-Length: 0"], b"");
                let _ = stream.write_all(&answer).await;
                let _ = stream.shutdown().await;
            }
        }
    });
    address
}

#[tokio::test]
async fn a_read_over_the_wrong_scheme_is_final_and_says_so() {
    for (endpoint, said) in [
        (format!("https://{}", plain_service().await), "TLS"),
        (format!("http://{}", service_with_tls().await), "speaks TLS"),
    ] {
        let spec = OriginSpec {
            endpoint: Some(endpoint),
            anonymous: true,
            ..OriginSpec::parse("s3://bucket").unwrap()
        };
        let origin = S3Origin::open(&spec, &crate::SourcePolicy::unlimited()).unwrap();
        for _ in 0..3 {
            let error = read(&origin, 3, 0..3).await.unwrap_err();
            assert_eq!(error.kind(), "refused", "{error}");
            assert!(error.to_string().contains(said), "{error}");
        }
    }
}

#[tokio::test]
async fn a_service_that_answered_before_and_closes_connections_is_waited_for() {
    let answers = Arc::new(AtomicUsize::new(0));
    let address = service(move |_| match answers.fetch_add(1, Ordering::Relaxed) {
        0 => with_head("200 OK", &[ETAG, "Content-Length: 3"], b"abc"),
        _ => Vec::new(),
    })
    .await;
    let origin = origin(address);
    assert_eq!(read(&origin, 3, 0..3).await.unwrap(), b"abc");
    let error = read(&origin, 3, 0..3).await.unwrap_err();
    assert_eq!(error.kind(), "unavailable", "{error}");
}

#[tokio::test]
async fn an_object_that_is_encrypted_with_its_owners_key_is_read_with_it_and_others_are_too() {
    let address = service(|head| {
        let shown = head.contains("x-amz-server-side-encryption-customer-key: ");
        let is_encrypted = head.starts_with("GET /bucket/secret");
        if shown != is_encrypted {
            return with_head("400 Bad Request", &["Content-Length: 0"], b"");
        }
        with_head("200 OK", &["Content-Length: 5", ETAG], b"hello")
    })
    .await;
    let spec = OriginSpec {
        endpoint: Some(format!("http://{address}")),
        anonymous: true,
        ..OriginSpec::parse("s3://bucket").unwrap()
    };
    let key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    let open = |variables: &[(&str, &str)]| {
        let all = variables.iter().copied().chain([("HOME", "/nonexistent")]);
        S3Origin::open_in(
            &spec,
            &crate::SourcePolicy::unlimited(),
            &Environment::of(all),
        )
        .unwrap()
    };
    let object = |key: &str| ObjectRef {
        key: key.into(),
        ..object(5)
    };
    let (with_key, without) = (open(&[("WEIR_SSE_C_KEY", key)]), open(&[]));
    for name in ["secret", "plain"] {
        let fetched = with_key.get(&object(name), 0..5).await.unwrap();
        let pieces: Vec<_> = fetched.body.try_collect().await.unwrap();
        assert_eq!(pieces.concat(), b"hello", "{name}");
    }
    without.get(&object("plain"), 0..5).await.unwrap();
    let error = without.get(&object("secret"), 0..5).await.unwrap_err();
    assert_eq!(error.kind(), "refused");
}
