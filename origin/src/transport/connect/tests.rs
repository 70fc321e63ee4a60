use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpListener;

use super::*;
use crate::sources::SourcePolicy;
use crate::spec::OriginSpec;
use crate::transport::failure::HttpError;

/// A listener that counts who connects.
async fn listener(ip: &str, port: u16) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((ip, port)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let connected = Arc::new(AtomicUsize::new(0));
    let counted = connected.clone();
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    (port, connected)
}

#[tokio::test]
async fn a_name_that_has_another_address_the_second_time_leads_nowhere_else() {
    let (port, allowed) = listener("127.0.0.2", 0).await;
    let (_, forbidden) = listener("127.0.0.1", port).await;
    let endpoint = format!("http://rebound.example:{port}");
    let spec = OriginSpec {
        endpoint: Some(endpoint.clone()),
        anonymous: true,
        ..OriginSpec::parse("s3://bucket").unwrap()
    };
    let policy = SourcePolicy::of(
        "weir worker",
        Vec::new(),
        vec!["127.0.0.2".parse().unwrap()],
    );
    let asked = AtomicUsize::new(0);
    let names = Names::new(move |_| {
        let last = if asked.fetch_add(1, Ordering::Relaxed) == 0 {
            2
        } else {
            1
        };
        Ok(vec![([127, 0, 0, last], 0).into()])
    });
    let reach = policy.reach(&spec).unwrap();
    let connector = Connector {
        names,
        ..Connector::new(None, Arc::new(Proxies::none()), reach).unwrap()
    };
    let uri: Uri = endpoint.parse().unwrap();
    connector.open(&uri).await.map(drop).unwrap();
    for _ in 0..3 {
        let error = connector.open(&uri).await.map(drop).unwrap_err();
        let error = HttpError::Connect(error);
        assert!(!error.may_be_another_scheme());
        assert!(!connector.speaks_otherwise(&uri).await);
        let error = error.explain("s3://bucket".into());
        assert_eq!(error.kind(), "not_allowed", "{error}");
        assert!(
            !error.is_retryable() && error.to_string().contains("127.0.0.1"),
            "{error}"
        );
    }
    let literal: Uri = format!("http://127.0.0.1:{port}").parse().unwrap();
    let error = connector.open(&literal).await.map(drop).unwrap_err();
    assert_eq!(
        HttpError::Connect(error)
            .explain("s3://bucket".into())
            .kind(),
        "not_allowed"
    );
    assert_eq!(forbidden.load(Ordering::Relaxed), 0);
    while allowed.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
}
