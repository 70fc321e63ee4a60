//! The thinnest HTTP client that still reads a whole answer: what a measured client is compared with must cost next
//! to nothing itself.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, ensure};

/// Longest wait for bytes.
const DEADLINE: Duration = Duration::from_mins(1);

/// A kept-alive connection.
pub struct Http {
    stream: BufReader<TcpStream>,
    host: String,
}

impl Http {
    /// Connects to `http://HOST:PORT`.
    pub fn connect(url: &str) -> anyhow::Result<Self> {
        let host = url
            .strip_prefix("http://")
            .with_context(|| format!("{url} does not begin with http://"))?;
        let host = host.split('/').next().unwrap_or_default().to_owned();
        let stream =
            TcpStream::connect(&host).with_context(|| format!("cannot connect to {host}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        Ok(Self {
            stream: BufReader::with_capacity(64 << 10, stream),
            host,
        })
    }

    /// Reads the body of `path` through `buffer` and gives its length.
    pub fn get(
        &mut self,
        path: &str,
        buffer: &mut [u8],
        mut see: impl FnMut(&[u8]),
    ) -> anyhow::Result<u64> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.host);
        self.stream.get_mut().write_all(request.as_bytes())?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        ensure!(line.starts_with("HTTP/1.1 200"), "{path}: {line}");
        let mut length = None;
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            if name.eq_ignore_ascii_case("content-length") {
                length = Some(value.trim().parse::<u64>()?);
            }
        }
        let length = length.with_context(|| format!("{path}: the answer has no Content-Length"))?;
        let mut left = length;
        while left > 0 {
            let most = buffer.len().min(left as usize);
            let read = self.stream.read(&mut buffer[..most])?;
            ensure!(
                read > 0,
                "{path}: the body broke off {left} bytes before its end"
            );
            see(&buffer[..read]);
            left -= read as u64;
        }
        Ok(length)
    }
}
