//! Against what is no NameNode, or a bad one. A real cluster is in `tests/tests/origins/hdfs.rs`.

use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use weir_core::ObjectRef;

use super::*;
use crate::sources::SourcePolicy;

/// What a server does with each connection, after the first bytes of a client have come.
#[derive(Clone, Copy)]
enum Server {
    Silent,
    Closes,
    Says(&'static [u8]),
}

/// The origin at a server of this kind. It is waited for a second.
async fn origin_at(server: Server) -> Arc<dyn Origin> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 64]).await;
            match server {
                Server::Silent => kept.push(stream),
                Server::Closes => drop(stream),
                Server::Says(bytes) => {
                    let _ = stream.write_all(bytes).await;
                    kept.push(stream);
                }
            }
        }
    });
    let spec = OriginSpec {
        patience_seconds: Some(1),
        ..OriginSpec::parse(&format!("hdfs://127.0.0.1:{port}/data")).unwrap()
    };
    crate::open(&spec, &SourcePolicy::unlimited())
        .await
        .unwrap()
}

async fn errors_at(server: Server) -> [OriginError; 2] {
    let origin = origin_at(server).await;
    let listed = origin.list("data/").next().await.unwrap().unwrap_err();
    let object = ObjectRef {
        key: "data/file".into(),
        size: 1,
        version: "1-1-1".into(),
        modified_ns: 0,
    };
    let read = origin.get(&object, 0..1).await.unwrap_err();
    [listed, read]
}

#[tokio::test(start_paused = true)]
async fn a_namenode_that_says_nothing_is_given_up() {
    for error in errors_at(Server::Silent).await {
        assert_eq!(error.kind(), "unavailable", "{error}");
        assert!(error.to_string().contains("127.0.0.1"), "{error}");
    }
}

#[tokio::test]
async fn what_is_no_namenode_is_told_from_one_that_is_away() {
    let web = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
    let longest = &[0xff; 64];
    let not_a_message = &[0, 0, 0, 4, 1, 2, 3, 4];
    for bytes in [&web[..], &longest[..], &not_a_message[..]] {
        for error in errors_at(Server::Says(bytes)).await {
            assert_eq!(error.kind(), "refused", "{bytes:?}: {error}");
            assert!(error.to_string().contains("8020"), "{error}");
        }
    }
    for error in errors_at(Server::Closes).await {
        assert_eq!(error.kind(), "unavailable", "{error}");
    }
}

/// The origin at a port that refuses, with the patience that it has by default.
async fn refused_origin() -> Arc<dyn Origin> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let spec = OriginSpec::parse(&format!("hdfs://127.0.0.1:{port}/data")).unwrap();
    let opened = crate::open(&spec, &SourcePolicy::unlimited()).await;
    opened.unwrap()
}

#[tokio::test]
async fn a_port_that_refuses_is_told_of_soon_with_what_says_where_hdfs_is() {
    let begun = std::time::Instant::now();
    let origin = refused_origin().await;
    let error = origin.list("data/").next().await.unwrap().unwrap_err();
    let text = error.to_string();
    assert_eq!(error.kind(), "unavailable", "{text}");
    assert!(text.contains("HADOOP_CONF_DIR"), "{text}");
    assert!(!text.contains("--endpoint"), "{text}");
    let took = begun.elapsed();
    assert!(took < std::time::Duration::from_secs(15), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_was_listed_before_is_waited_for() {
    let begun = tokio::time::Instant::now();
    let origin = refused_origin().await;
    origin.contact().unwrap().assume_known();
    let error = origin.list("data/").next().await.unwrap().unwrap_err();
    assert!(matches!(error, OriginError::GaveUp { .. }), "{error}");
    let waited = begun.elapsed();
    assert!(waited > std::time::Duration::from_secs(590), "{waited:?}");
}
