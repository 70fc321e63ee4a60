//! The head of an answer to a read: which version and which part of the object it holds.
//!
//! Nothing is believed that the head does not show: a witness of another version is a changed object, a length or a
//! part that does not fit while the version does is an answer gone wrong, which another request may mend.

use std::ops::Range;
use std::sync::Arc;

use http::{HeaderMap, StatusCode, header};
use weir_core::{BLOCK_SIZE, ObjectRef};

use super::time::{self, TIME_VERSION};
use crate::error::OriginError;

/// What in an answer shows that it is of the version that was listed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Witness {
    /// Its ETag.
    Etag,
    /// The time of its last change.
    Time,
    /// Nothing but its length.
    None,
}

/// What a body holds of its object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Part {
    pub(crate) range: Range<u64>,
    /// The head tells the body's length. Otherwise the body shows only at its end whether it is what it should be.
    pub(crate) declared: bool,
}

/// The head of an answer to a read.
pub(crate) struct Head<'a> {
    pub(crate) target: Arc<str>,
    pub(crate) origin: Arc<str>,
    pub(crate) object: &'a ObjectRef,
    pub(crate) status: StatusCode,
    pub(crate) headers: &'a HeaderMap,
}

impl Head<'_> {
    /// Compares the version, since a service may ignore If-Match.
    pub(crate) fn witness(&self) -> Result<Witness, OriginError> {
        let listed = &*self.object.version;
        let etag = text(self.headers, header::ETAG.as_str())
            .map(plain_etag)
            .filter(|etag| !etag.is_empty());
        if let Some(etag) = etag
            && !listed.starts_with(TIME_VERSION)
        {
            return if etag == listed {
                Ok(Witness::Etag)
            } else {
                Err(self.changed())
            };
        }
        let sent = text(self.headers, header::LAST_MODIFIED.as_str());
        match sent.and_then(|sent| self.agrees(sent)) {
            Some(true) => Ok(Witness::Time),
            Some(false) => Err(self.changed()),
            None => Ok(Witness::None),
        }
    }

    /// Whether the time of the last change is the listed one; `None` when one of them is not known.
    fn agrees(&self, sent: &str) -> Option<bool> {
        match self.object.modified_ns {
            0 => time::agrees(&self.object.version, sent),
            ns => time::agrees(&time::version(Some(ns), self.object.size), sent),
        }
    }

    /// The part of the object that the body holds, which begins where `asked` does or before.
    pub(crate) fn part(&self, witness: Witness, asked: &Range<u64>) -> Result<Part, OriginError> {
        let size = self.object.size;
        let range = match self.status {
            StatusCode::PARTIAL_CONTENT => {
                let (sent, total) = text(self.headers, header::CONTENT_RANGE.as_str())
                    .and_then(parse_content_range)
                    .ok_or_else(|| self.malformed("it sent a part without saying which".into()))?;
                if let Some(total) = total.filter(|total| *total != size) {
                    return Err(self.other_length(total, witness));
                }
                if sent.end > size {
                    return Err(self.other_length(sent.end, witness));
                }
                if sent.start > asked.start || sent.end <= asked.start {
                    return Err(self.malformed(format!("it sent {sent:?} for {asked:?}")));
                }
                sent
            }
            // A service that does not know ranges sends the whole object.
            StatusCode::OK => 0..size,
            status => return Err(self.malformed(format!("it answered {status}"))),
        };
        let length = range.end - range.start;
        match self.content_length()? {
            Some(declared) if declared == length => Ok(Part {
                range,
                declared: true,
            }),
            Some(declared) if self.status == StatusCode::OK => {
                Err(self.other_length(declared, witness))
            }
            Some(declared) => Err(self.malformed(format!(
                "it announced {declared} bytes for a part of {length}"
            ))),
            None if length <= BLOCK_SIZE => Ok(Part {
                range,
                declared: false,
            }),
            None => Err(self.malformed(format!(
                "it sent {length} bytes or more for {asked:?} without saying how many"
            ))),
        }
    }

    /// The length of the body. `None` where it goes on until its end shows: in chunks, or until the connection closes.
    fn content_length(&self) -> Result<Option<u64>, OriginError> {
        if self.headers.contains_key(header::TRANSFER_ENCODING) {
            return Ok(None);
        }
        let Some(value) = self.headers.get(header::CONTENT_LENGTH) else {
            return Ok(None);
        };
        let length = value.to_str().ok().and_then(|text| text.parse().ok());
        let unreadable = || self.malformed(format!("its length is {value:?}"));
        length.map(Some).ok_or_else(unreadable)
    }

    /// The object has another length than the listing says. That is another version, unless the version is the same: then
    /// the answer is wrong, as it may be where nothing tells the version.
    fn other_length(&self, length: u64, witness: Witness) -> OriginError {
        if witness == Witness::Time {
            return self.changed();
        }
        let encoding = text(self.headers, header::CONTENT_ENCODING.as_str());
        let encoding = encoding.map_or(String::new(), |e| format!(", Content-Encoding {e}"));
        self.malformed(format!(
            "it has {length} bytes, listed were {}{encoding}",
            self.object.size
        ))
    }

    pub(crate) fn changed(&self) -> OriginError {
        OriginError::Changed {
            origin: self.origin.clone(),
            key: self.object.key.clone(),
        }
    }

    fn malformed(&self, detail: String) -> OriginError {
        OriginError::Malformed {
            target: self.target.clone(),
            detail,
        }
    }
}

/// An ETag without its quotes and its mark for weakness.
pub(crate) fn plain_etag(etag: &str) -> &str {
    etag.trim().trim_start_matches("W/").trim_matches('"')
}

/// A header's value, where it is text.
pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// `bytes 0-9/100` as the range and the whole length.
fn parse_content_range(value: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let first = first.parse().ok()?;
    let end = last.parse::<u64>().ok()?.checked_add(1)?;
    let total = match total {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    (first < end).then_some((first..end, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETAG: &str = "\"e1\"";
    const TIME: &str = "Thu, 01 Jan 1970 00:00:05 GMT";
    const LATER: &str = "Thu, 01 Jan 1970 00:00:07 GMT";

    fn object(version: &str) -> ObjectRef {
        ObjectRef {
            key: "k".into(),
            size: 100,
            version: version.into(),
            modified_ns: 5_250_000_000,
        }
    }

    /// What becomes of a read of the bytes 10 to 20 of 100: the part, or the kind of error.
    fn read(
        object: &ObjectRef,
        status: u16,
        headers: &[(&str, &str)],
    ) -> Result<Part, &'static str> {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| {
                let name: http::HeaderName = name.parse().unwrap();
                (name, value.parse().unwrap())
            })
            .collect();
        let head = Head {
            target: "s3://b/k".into(),
            origin: "s3://b".into(),
            object,
            status: StatusCode::from_u16(status).unwrap(),
            headers: &headers,
        };
        let part = head
            .witness()
            .and_then(|witness| head.part(witness, &(10..20)));
        part.map_err(|error| error.kind())
    }

    fn part(range: Range<u64>, declared: bool) -> Part {
        Part { range, declared }
    }

    const RANGE: (&str, &str) = ("content-range", "bytes 10-19/100");
    const LENGTH: (&str, &str) = ("content-length", "10");

    #[test]
    fn another_length_of_the_same_version_is_an_answer_gone_wrong() {
        let object = object("e1");
        let etag = ("etag", ETAG);
        let read = |status, headers: &[_]| read(&object, status, headers);
        assert_eq!(read(206, &[etag, RANGE, LENGTH]), Ok(part(10..20, true)));
        assert_eq!(read(206, &[etag, RANGE]), Ok(part(10..20, false)));
        let chunks = ("transfer-encoding", "chunked");
        assert_eq!(
            read(206, &[etag, RANGE, LENGTH, chunks]),
            Ok(part(10..20, false))
        );
        assert_eq!(
            read(200, &[etag, ("content-length", "100")]),
            Ok(part(0..100, true))
        );
        assert_eq!(read(200, &[etag]), Ok(part(0..100, false)));
        for wrong in [
            vec![etag, LENGTH],
            vec![etag, ("content-range", "bytes 10-19/101"), LENGTH],
            vec![
                etag,
                ("content-range", "bytes 10-19/100"),
                ("content-length", "11"),
            ],
            vec![
                etag,
                ("content-range", "bytes 10-19/100"),
                ("content-length", "x"),
            ],
            vec![
                etag,
                ("content-range", "bytes 11-19/100"),
                ("content-length", "9"),
            ],
            vec![etag, ("content-range", "bytes 0-9/100"), LENGTH],
            vec![
                etag,
                ("content-range", "bytes 10-100/*"),
                ("content-length", "91"),
            ],
        ] {
            assert_eq!(read(206, &wrong), Err("malformed"), "{wrong:?}");
        }
        assert_eq!(
            read(200, &[etag, ("content-length", "101")]),
            Err("malformed")
        );
        assert_eq!(
            read(203, &[etag, ("content-length", "100")]),
            Err("malformed")
        );
        assert_eq!(
            read(206, &[("etag", "\"e2\""), RANGE, LENGTH]),
            Err("changed")
        );
    }

    #[test]
    fn without_an_etag_the_time_and_the_length_must_be_as_listed() {
        let both = [object("e1"), object("mtime-5")];
        let untimed = ObjectRef {
            modified_ns: 0,
            ..object("mtime-5")
        };
        for object in both.iter().chain([&untimed]) {
            let read = |headers: &[_]| read(object, 206, headers);
            let time = ("last-modified", TIME);
            assert_eq!(read(&[time, RANGE, LENGTH]), Ok(part(10..20, true)));
            assert_eq!(
                read(&[("last-modified", LATER), RANGE, LENGTH]),
                Err("changed")
            );
            let longer = ("content-range", "bytes 10-19/101");
            assert_eq!(read(&[time, longer, LENGTH]), Err("changed"));
            assert_eq!(read(&[RANGE, LENGTH]), Ok(part(10..20, true)));
            assert_eq!(read(&[longer, LENGTH]), Err("malformed"));
        }
        // A service may round the fraction up.
        let rounded = ("last-modified", "Thu, 01 Jan 1970 00:00:06 GMT");
        assert_eq!(
            read(&both[0], 206, &[rounded, RANGE, LENGTH]),
            Ok(part(10..20, true))
        );
        assert_eq!(
            read(&untimed, 206, &[rounded, RANGE, LENGTH]),
            Err("changed")
        );
    }

    #[test]
    fn a_long_body_that_does_not_tell_its_length_is_refused_before_it_is_read() {
        let object = ObjectRef {
            size: BLOCK_SIZE + 1,
            ..object("e1")
        };
        assert_eq!(read(&object, 200, &[("etag", ETAG)]), Err("malformed"));
    }

    #[test]
    fn content_ranges_that_make_no_sense_are_refused() {
        assert_eq!(
            parse_content_range("bytes 0-9/100"),
            Some((0..10, Some(100)))
        );
        assert_eq!(parse_content_range("bytes 5-5/*"), Some((5..6, None)));
        for bad in [
            "bytes 9-0/100",
            "0-9/100",
            "bytes */100",
            "bytes 0-18446744073709551615/1",
        ] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }
}
