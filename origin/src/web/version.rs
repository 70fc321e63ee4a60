//! The version of a file of a web server: what its server tells of it, and the digest that an index gives.
//!
//! As text, since it is part of the block's identity: `e:ETAG`, `t:SECONDS` or `n:` and, behind a space, the digest.

use http::{HeaderMap, HeaderValue, header};
use jiff::Timestamp;

use crate::checksum::CrcKind;
use crate::digest::Digest;
use crate::error::OriginError;
use crate::transport::encode::hex;
use crate::transport::head::{Head, Witness, text};
use crate::transport::time;

const SECOND: i64 = 1_000_000_000;

/// What shows that an answer is of this version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Told {
    /// A strong ETag, without its quotes. A weak one is no witness of bytes.
    Etag(String),
    /// The time of the last change, in seconds since 1970.
    Changed(i64),
    /// Nothing.
    Nothing,
}

/// The version of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Version {
    pub(super) told: Told,
    pub(super) digest: Option<Digest>,
}

impl Version {
    /// The version that the head of an answer tells.
    pub(super) fn of(headers: &HeaderMap, digest: Option<Digest>) -> Self {
        let etag = text(headers, header::ETAG.as_str()).and_then(strong);
        let changed = || text(headers, header::LAST_MODIFIED.as_str()).and_then(time::parse);
        let told = match etag {
            Some(etag) => Told::Etag(etag.to_owned()),
            None => changed().map_or(Told::Nothing, |ns| Told::Changed(ns.div_euclid(SECOND))),
        };
        Self { told, digest }
    }

    /// A version of which a digest is all that is known.
    pub(super) fn of_digest(digest: Digest) -> Self {
        Self {
            told: Told::Nothing,
            digest: Some(digest),
        }
    }

    /// Reads a version's text. One that makes no sense matches nothing that a server could send.
    pub(super) fn parse(version: &str) -> Self {
        let (told, digest) = match version.rsplit_once(' ') {
            Some((told, digest)) => (told, Some(digest)),
            None => (version, None),
        };
        let told = match told.split_once(':') {
            Some(("e", etag)) => Told::Etag(etag.to_owned()),
            Some(("t", seconds)) => seconds
                .parse()
                .map_or_else(|_| Told::Etag(version.to_owned()), Told::Changed),
            Some(("n", "")) => Told::Nothing,
            _ => Told::Etag(version.to_owned()),
        };
        let digest = digest.and_then(|digest| parse_digest(digest).ok());
        Self { told, digest }
    }

    /// Headers of a request for this very version.
    pub(super) fn conditions(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        match &self.told {
            Told::Etag(etag) => {
                let etag = HeaderValue::from_str(&format!("\"{etag}\""));
                let etag = etag.unwrap_or(HeaderValue::from_static("\"\""));
                headers.insert(header::IF_MATCH, etag);
            }
            Told::Changed(seconds) => {
                if let Some(date) = http_date(*seconds) {
                    headers.insert(header::IF_UNMODIFIED_SINCE, date);
                }
            }
            Told::Nothing => {}
        }
        headers
    }

    /// What in an answer shows that it is of this version; an error if it is of another, since servers ignore conditions.
    pub(super) fn witness(&self, head: &Head<'_>) -> Result<Witness, OriginError> {
        let missing = |name: &str| OriginError::Malformed {
            target: head.target.clone(),
            detail: format!("it has no {name} any more"),
        };
        match &self.told {
            Told::Etag(listed) => match text(head.headers, header::ETAG.as_str()) {
                Some(sent) if strong(sent) == Some(listed) => Ok(Witness::Etag),
                Some(_) => Err(head.changed()),
                None => Err(missing("ETag")),
            },
            Told::Changed(listed) => {
                let sent = text(head.headers, header::LAST_MODIFIED.as_str());
                match sent.and_then(time::parse) {
                    Some(sent) if sent.div_euclid(SECOND) == *listed => Ok(Witness::Time),
                    Some(_) => Err(head.changed()),
                    None => Err(missing("Last-Modified")),
                }
            }
            Told::Nothing => Ok(Witness::None),
        }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.told {
            Told::Etag(etag) => write!(f, "e:{etag}")?,
            Told::Changed(seconds) => write!(f, "t:{seconds}")?,
            Told::Nothing => f.write_str("n:")?,
        }
        match &self.digest {
            None => Ok(()),
            Some(Digest::Sha256(value)) => write!(f, " sha256:{}", hex(value)),
            Some(Digest::Crc(kind, value)) => {
                let (name, digits) = crc_name(*kind);
                write!(f, " {name}:{value:0digits$x}")
            }
        }
    }
}

/// The name of a CRC in an index, and how many hexadecimal digits it has.
fn crc_name(kind: CrcKind) -> (&'static str, usize) {
    match kind {
        CrcKind::Crc32 => ("crc32", 8),
        CrcKind::Crc32c => ("crc32c", 8),
        CrcKind::Crc64Nvme => ("crc64nvme", 16),
    }
}

/// Reads `sha256:HEX`, `crc32c:HEX`, `crc32:HEX` or `crc64nvme:HEX`, or says what is wrong.
pub(super) fn parse_digest(text: &str) -> Result<Digest, String> {
    const KINDS: &str = "sha256:HEX, crc32c:HEX, crc32:HEX or crc64nvme:HEX";
    let wrong = || format!("the digest {text:?} is not {KINDS}");
    let (name, value) = text.split_once(':').ok_or_else(wrong)?;
    if !value.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    if name == "sha256" && value.len() == 64 {
        let mut bytes = [0; 32];
        for (at, byte) in bytes.iter_mut().enumerate() {
            let digits = &value[2 * at..2 * at + 2];
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        return Ok(Digest::Sha256(bytes));
    }
    let kind = CrcKind::ALL
        .into_iter()
        .find(|kind| crc_name(*kind) == (name, value.len()))
        .ok_or_else(wrong)?;
    let value = u64::from_str_radix(value, 16).map_err(|_| wrong())?;
    Ok(Digest::Crc(kind, value))
}

/// An ETag without its quotes, if it is a strong one that a request can name.
fn strong(etag: &str) -> Option<&str> {
    let etag = etag.trim().strip_prefix('"')?.strip_suffix('"')?;
    let fits = !etag.is_empty()
        && etag
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'"');
    fits.then_some(etag)
}

/// A time as HTTP writes it.
fn http_date(seconds: i64) -> Option<HeaderValue> {
    let time = Timestamp::from_second(seconds).ok()?;
    let text = time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    HeaderValue::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use weir_core::ObjectRef;

    use super::*;

    const TIME: &str = "Thu, 01 Jan 1970 00:00:05 GMT";
    const SHA: &str = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.insert(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_version_survives_as_text() {
        for (lines, digest, text) in [
            (
                &[("etag", "\"a-1:b\""), ("last-modified", TIME)][..],
                None,
                "e:a-1:b",
            ),
            (&[("etag", "W/\"a\""), ("last-modified", TIME)], None, "t:5"),
            (
                &[("last-modified", TIME)],
                Some("crc32c:0000000a"),
                "t:5 crc32c:0000000a",
            ),
            (&[("etag", "unquoted")], Some(SHA), &*format!("n: {SHA}")),
            (&[], None, "n:"),
        ] {
            let digest = digest.map(|digest| parse_digest(digest).unwrap());
            let version = Version::of(&headers(lines), digest);
            assert_eq!(version.to_string(), text);
            assert_eq!(Version::parse(text), version);
        }
        assert_eq!(Version::parse("0x1").told, Told::Etag("0x1".to_owned()));
        assert_eq!(Version::parse("t:x").told, Told::Etag("t:x".to_owned()));
    }

    #[test]
    fn an_answer_of_another_version_is_found_out() {
        let object = ObjectRef {
            key: "k".into(),
            size: 5,
            version: "".into(),
            modified_ns: 0,
        };
        let witness = |version: &str, lines: &[(&'static str, &str)]| {
            let head = Head {
                target: "http://h/k".into(),
                origin: "http://h".into(),
                object: &object,
                status: StatusCode::OK,
                headers: &headers(lines),
            };
            Version::parse(version)
                .witness(&head)
                .map_err(|error| error.kind())
        };
        assert_eq!(witness("e:a", &[("etag", "\"a\"")]), Ok(Witness::Etag));
        assert_eq!(witness("e:a", &[("etag", "\"b\"")]), Err("changed"));
        assert_eq!(witness("e:a", &[("etag", "W/\"a\"")]), Err("changed"));
        assert_eq!(witness("e:a", &[]), Err("malformed"));
        assert_eq!(
            witness("t:5", &[("last-modified", TIME)]),
            Ok(Witness::Time)
        );
        assert_eq!(witness("t:6", &[("last-modified", TIME)]), Err("changed"));
        assert_eq!(witness("t:5", &[]), Err("malformed"));
        assert_eq!(witness("n:", &[]), Ok(Witness::None));
        let sent = Version::parse("t:5").conditions();
        assert_eq!(sent[header::IF_UNMODIFIED_SINCE], TIME);
        assert_eq!(
            Version::parse("e:a").conditions()[header::IF_MATCH],
            "\"a\""
        );
    }

    #[test]
    fn a_digest_that_is_none_is_refused() {
        for bad in [
            "",
            "sha256:12",
            "md5:00",
            "crc32c:1234567g",
            "crc32c:123456789",
            "sha256",
        ] {
            let problem = parse_digest(bad).unwrap_err();
            assert!(problem.contains("sha256:HEX"), "{problem}");
        }
    }
}
