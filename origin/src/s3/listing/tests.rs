//! Listings of services that answer in their own ways.

use std::sync::Mutex;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use std::time::Duration;

use super::*;
use crate::spec::OriginSpec;
use crate::transport::environment::Environment;

/// A service whose answers to queries are the results of a function. It gives the listing of all that is below
/// `prefix`, and the queries it got.
async fn list_from(
    prefix: &str,
    answer: impl Fn(&Query) -> String + Send + Sync + 'static,
) -> (Result<Vec<Listed>, OriginError>, Vec<String>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mut spec = OriginSpec::parse("s3://b").unwrap();
    spec.endpoint = Some(format!("http://{}", listener.local_addr().unwrap()));
    spec.anonymous = true;
    let queries: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = queries.clone();
    let serve = async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut first = String::new();
            let mut line = String::new();
            while stream.read_line(&mut line).await.is_ok_and(|n| n > 2) {
                if first.is_empty() {
                    first.clone_from(&line);
                }
                line.clear();
            }
            let Some((_, query)) = first
                .split(' ')
                .nth(1)
                .and_then(|path| path.split_once('?'))
            else {
                continue;
            };
            let query = query.to_owned();
            let body = answer(&Query(&query));
            seen.lock().unwrap().push(query);
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all((head + &body).as_bytes()).await;
        }
    };
    let policy = FetchPolicy {
        first_backoff: Duration::from_millis(1),
        ..FetchPolicy::default()
    };
    let client = Client::new(
        &spec,
        &crate::SourcePolicy::unlimited(),
        &Environment::of([]),
    )
    .unwrap();
    let listed = async {
        let mut pages = pages(&client, prefix.to_owned(), &policy);
        let mut all = Vec::new();
        while let Some(page) = pages.next().await {
            all.extend(page?);
        }
        Ok(all)
    };
    let listed = tokio::select! {
        listed = listed => listed,
        () = serve => unreachable!("it serves for ever"),
    };
    let queries = queries.lock().unwrap().clone();
    (listed, queries)
}

struct Query<'a>(&'a str);

impl Query<'_> {
    /// A parameter, decoded.
    fn get(&self, name: &str) -> Option<String> {
        let mut parameters = url::form_urlencoded::parse(self.0.as_bytes());
        let found = parameters.find(|(key, _)| key == name)?;
        Some(found.1.into_owned())
    }
}

fn document(inner: &str) -> String {
    format!(
        "<ListBucketResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'>{inner}</ListBucketResult>"
    )
}

fn contents(key: &str) -> String {
    format!("<Contents><Key>{key}</Key><ETag>e</ETag><Size>1</Size></Contents>")
}

const LAST: &str = "<IsTruncated>false</IsTruncated>";
const MORE: &str = "<IsTruncated>true</IsTruncated>";

fn names(listed: &[Listed]) -> Vec<String> {
    let text = |object: &Listed| String::from_utf8_lossy(&object.key).into_owned();
    listed.iter().map(text).collect()
}

/// The page of 10 of 25 keys that come after a key, with what leads on.
fn page_after(after: Option<String>, lead: impl Fn(&str) -> String) -> String {
    let keys = (0..25).map(|n| format!("{n:02}"));
    let mut rest = keys.filter(|key| after.as_ref().is_none_or(|after| key > after));
    let page: Vec<String> = rest.by_ref().take(10).collect();
    let listed: String = page.iter().map(|key| contents(key)).collect();
    match (rest.next(), page.last()) {
        (Some(_), Some(last)) => document(&format!("{listed}{MORE}{}", lead(last))),
        _ => document(&format!("{listed}{LAST}")),
    }
}

#[tokio::test]
async fn services_of_either_version_are_listed_to_the_end() {
    let token = |last: &str| format!("<NextContinuationToken>{last}</NextContinuationToken>");
    let (listed, _) = list_from("", move |query| {
        page_after(query.get("continuation-token"), token)
    })
    .await;
    assert_eq!(listed.unwrap().len(), 25);
    // A service that knows no second version, with its markers and without.
    for lead in [
        |last: &str| format!("<Marker/><NextMarker>{last}</NextMarker>"),
        |_: &str| "<Marker></Marker>".to_owned(),
    ] {
        let (listed, queries) =
            list_from("", move |query| page_after(query.get("marker"), lead)).await;
        assert_eq!(listed.unwrap().len(), 25);
        assert_eq!(queries[2], "encoding-type=url&marker=19&prefix=");
    }
}

#[tokio::test]
async fn a_listing_that_leads_nowhere_is_refused_with_its_reason_and_a_remedy() {
    let lead =
        |inner: &'static str| move |_: &Query| document(&format!("{}{MORE}{inner}", contents("k")));
    let cases = [
        (lead(""), "neither a continuation token nor a marker", 1),
        (
            lead("<NextContinuationToken>same</NextContinuationToken>"),
            "token comes again",
            2,
        ),
        (lead("<Marker/>"), "do not advance", 2),
        (lead("<NextMarker>k</NextMarker>"), "do not advance", 2),
    ];
    for (answer, said, requests) in cases {
        let (listed, queries) = list_from("", answer).await;
        let error = listed.unwrap_err();
        assert!(
            matches!(error, OriginError::Unsupported { .. }),
            "{error:?}"
        );
        let error = error.to_string();
        assert!(
            error.contains(said) && error.contains("update the service"),
            "{error}"
        );
        assert_eq!(queries.len(), requests, "{said}");
    }
}

#[tokio::test]
async fn an_answer_that_is_no_listing_is_told_at_once() {
    for (text, kind, said) in [
        (
            "<!DOCTYPE html><html><body>Welcome</body></html>",
            "unsupported",
            "<html>",
        ),
        (
            "<Error><Code>AccessDenied</Code></Error>",
            "access_denied",
            "AccessDenied",
        ),
        (
            "<ListBucketResult></ListBucketResult>",
            "unsupported",
            "IsTruncated",
        ),
    ] {
        let (listed, queries) = list_from("", move |_| text.to_owned()).await;
        let error = listed.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(said), "{error}");
        assert!(error.to_string().contains("--endpoint"), "{error}");
        assert_eq!(queries.len(), 1);
    }
    let (listed, queries) = list_from("", |_| document(MORE)[..40].to_owned()).await;
    assert_eq!(listed.unwrap_err().kind(), "unsupported");
    assert_eq!(queries.len(), MAX_BROKEN as usize);
}

#[tokio::test]
async fn an_error_or_a_cut_page_that_passes_is_waited_out() {
    let asked = Mutex::new(0);
    let (listed, _) = list_from("", move |_| {
        let mut asked = asked.lock().unwrap();
        *asked += 1;
        let page = document(&format!("{}{LAST}", contents("k")));
        match *asked {
            1 => "<Error><Code>InternalError</Code></Error>".to_owned(),
            2 => page[..page.len() - 5].to_owned(),
            _ => page,
        }
    })
    .await;
    assert_eq!(names(&listed.unwrap()), ["k"]);
}

/// A service that writes its keys in some way, and says so or not.
fn writes(
    keys: &'static [&'static str],
    write: fn(&str) -> String,
    says: bool,
) -> impl Fn(&Query) -> String + Send + Sync + 'static {
    move |query| {
        let prefix = query.get("prefix").unwrap();
        let found = keys.iter().filter(|key| key.starts_with(&prefix));
        let found: String = found.map(|key| contents(&write(key))).collect();
        let says = if says {
            "<EncodingType>url</EncodingType>"
        } else {
            ""
        };
        document(&format!("{says}{found}{LAST}"))
    }
}

fn form(key: &str) -> String {
    url::form_urlencoded::byte_serialize(key.as_bytes()).collect()
}

fn percent(key: &str) -> String {
    form(key).replace('+', "%20").replace("%2B", "+")
}

#[tokio::test]
async fn keys_are_found_out_however_they_are_written() {
    const ODD: &[&str] = &["50%25", "a b", "a+b", "a%20b", "é"];
    const PLAIN: &[&str] = &["a", "b-c", "d_e.f"];
    for write in [str::to_owned, form, percent] {
        for says in [true, false] {
            let (listed, queries) = list_from("", writes(ODD, write, says)).await;
            assert_eq!(names(&listed.unwrap()), ODD, "{} {says}", write("a b+c"));
            assert!(queries.len() <= 6, "{queries:?}");
            let (listed, queries) = list_from("", writes(PLAIN, write, says)).await;
            assert_eq!(
                (names(&listed.unwrap()), queries.len()),
                (names_of(PLAIN), 1)
            );
        }
    }
    // The usual case costs no request.
    let (listed, queries) = list_from("", writes(&["é", "50%25", "a+b"], form, true)).await;
    assert_eq!((listed.unwrap().len(), queries.len()), (3, 1));
}

fn names_of(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

#[tokio::test]
async fn an_object_without_a_time_that_can_be_read_is_listed() {
    let entry = |inner: &str| format!("<Contents><Key>k</Key>{inner}<Size>3</Size></Contents>");
    let answer = document(&format!(
        "{}{}{LAST}",
        entry("<LastModified>yesterday</LastModified><ETag>W/&quot;e&quot;</ETag>"),
        entry("<LastModified>1970-01-01 00:00:05</LastModified>")
    ));
    let (listed, _) = list_from("", move |_| answer.clone()).await;
    let listed = listed.unwrap();
    let seen = |at: usize| (listed[at].mtime_ns, &*listed[at].version);
    assert_eq!((seen(0), seen(1)), ((0, "e"), (5_000_000_000, "mtime-5")));
}

#[tokio::test]
async fn a_host_that_does_not_exist_is_final_until_the_origin_has_answered() {
    // A part of a name has 63 characters at most, so no name server is asked.
    let spec = OriginSpec {
        endpoint: Some(format!("http://{}.example", "x".repeat(64))),
        anonymous: true,
        ..OriginSpec::parse("s3://b").unwrap()
    };
    let policy = FetchPolicy {
        budget: Duration::from_millis(500),
        ..FetchPolicy::default()
    };
    let client = Client::new(
        &spec,
        &crate::SourcePolicy::unlimited(),
        &Environment::of([]),
    )
    .unwrap();
    let list = async || {
        let first = pages(&client, String::new(), &policy).next().await;
        first.unwrap().unwrap_err()
    };
    let error = list().await;
    assert!(matches!(error, OriginError::NoSuchHost { .. }), "{error}");
    // Who reads has a listing, so there was such a host.
    let read = client.get(Some("k"), "", &HeaderMap::new()).await;
    assert!(read.err().unwrap().is_retryable());
    client.contact().set_answered();
    let error = list().await;
    assert!(matches!(error, OriginError::GaveUp { .. }), "{error}");
    assert_eq!(error.kind(), "no_such_host");
}
