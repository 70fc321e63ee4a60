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
        self.send(&format!("GET {path} HTTP/1.1\r\n"), None)?;
        let answer = self.answer()?;
        ensure!(answer.status == 200, "{path}: {}", answer.line);
        let length = answer.length;
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

    /// Asks for `path` and returns when the first byte of its body has come. The rest is not read: drop the
    /// connection, after the clock has stopped.
    pub fn first_byte(mut self, path: &str) -> anyhow::Result<Self> {
        self.send(&format!("GET {path} HTTP/1.1\r\n"), None)?;
        let answer = self.answer()?;
        ensure!(answer.status == 200, "{path}: {}", answer.line);
        self.stream.read_exact(&mut [0])?;
        Ok(self)
    }

    /// Status of the answer to a GET of `path`, whose body is not read.
    pub fn status(mut self, path: &str) -> anyhow::Result<u16> {
        self.send(&format!("GET {path} HTTP/1.1\r\n"), None)?;
        Ok(self.answer()?.status)
    }

    /// Sends `length` bytes of `body` to `path`, with more headers, each with its line's end.
    pub fn put(
        &mut self,
        path: &str,
        headers: &str,
        mut body: impl Read,
        length: u64,
    ) -> anyhow::Result<()> {
        self.send(&format!("PUT {path} HTTP/1.1\r\n{headers}"), Some(length))?;
        let sent = std::io::copy(&mut body, self.stream.get_mut())?;
        ensure!(sent == length, "{path}: {sent} bytes of {length} were sent");
        let answer = self.answer()?;
        let mut text = vec![0; answer.length.unwrap_or(0) as usize];
        self.stream.read_exact(&mut text)?;
        let text = String::from_utf8_lossy(&text);
        ensure!(
            (200..300).contains(&answer.status),
            "{path}: {}{text}",
            answer.line
        );
        Ok(())
    }

    fn send(&mut self, begin: &str, length: Option<u64>) -> anyhow::Result<()> {
        let length = length.map_or_else(String::new, |length| {
            format!("Content-Length: {length}\r\n")
        });
        let head = format!("{begin}Host: {}\r\n{length}\r\n", self.host);
        Ok(self.stream.get_mut().write_all(head.as_bytes())?)
    }

    /// Reads the head of an answer.
    fn answer(&mut self) -> anyhow::Result<Answer> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
        let mut answer = Answer {
            status: status.with_context(|| format!("no answer of HTTP: {line:?}"))?,
            line,
            length: None,
        };
        let mut line = String::new();
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else {
                return Ok(answer);
            };
            if name.eq_ignore_ascii_case("content-length") {
                answer.length = Some(value.trim().parse()?);
            }
        }
    }
}

/// The head of an answer.
struct Answer {
    status: u16,
    line: String,
    length: Option<u64>,
}
