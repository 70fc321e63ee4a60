//! Services whose every byte a test decides.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

type Reply = dyn Fn(&str, &str) -> Vec<u8> + Send + Sync;

/// A service that answers each request by its head, and closes the connection. It ends with the test's runtime.
pub(crate) async fn service(reply: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> SocketAddr {
    service_of_forms(move |head, _| reply(head)).await
}

/// The same, which answers by the request's head and its body.
pub(crate) async fn service_of_forms(
    reply: impl Fn(&str, &str) -> Vec<u8> + Send + Sync + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let reply: Arc<Reply> = Arc::new(reply);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, reply.clone()));
        }
    });
    address
}

async fn answer(mut stream: TcpStream, reply: Arc<Reply>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head);
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_length = name.eq_ignore_ascii_case("content-length");
        is_length.then(|| value.trim().parse().ok())?
    });
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await?;
    let body = String::from_utf8_lossy(&body);
    stream.write_all(&reply(&head, &body)).await?;
    stream.shutdown().await?;
    // What was sent with the head must be taken in, or the answer is lost with the connection.
    let mut rest = Vec::new();
    let _ = timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
    Ok(())
}

/// An answer with these lines in its head.
pub(crate) fn with_head(status: &str, lines: &[&str], body: &[u8]) -> Vec<u8> {
    let mut answer = format!("HTTP/1.1 {status}\r\nConnection: close\r\n").into_bytes();
    for line in lines {
        answer.extend_from_slice(line.as_bytes());
        answer.extend_from_slice(b"\r\n");
    }
    answer.extend_from_slice(b"\r\n");
    answer.extend_from_slice(body);
    answer
}
