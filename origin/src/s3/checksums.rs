//! What a bucket says of the bytes of an object: the checksum of all of it, which is in the head of an answer, or those
//! of the parts in which it was uploaded.

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use weir_core::ObjectRef;

use super::{CHECKSUM_MODE, ENABLED, S3Origin, conditions};
use crate::checksum::{CrcKind, ObjectChecksum, PartSum};
use crate::error::OriginError;
use crate::transport::head::{Witness, text};

/// Parts of an object at most, as S3 has it, and how many are asked for at once.
const MAX_PARTS: usize = 10_000;
const PAGE_PARTS: usize = 1000;
/// Longest document about so many parts, in bytes.
const MAX_DOCUMENT: usize = 1 << 20;

/// One page of the parts of an object (GetObjectAttributes).
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Attributes {
    #[serde(rename = "ObjectParts")]
    parts: Parts,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Parts {
    is_truncated: bool,
    next_part_number_marker: u32,
    #[serde(rename = "Part")]
    parts: Vec<Part>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Part {
    #[serde(rename = "PartNumber")]
    number: u32,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "ChecksumCRC64NVME")]
    crc64nvme: Option<String>,
    #[serde(rename = "ChecksumCRC32C")]
    crc32c: Option<String>,
    #[serde(rename = "ChecksumCRC32")]
    crc32: Option<String>,
}

impl Part {
    fn sum(&self, kind: CrcKind) -> Option<PartSum> {
        let text = match kind {
            CrcKind::Crc64Nvme => &self.crc64nvme,
            CrcKind::Crc32c => &self.crc32c,
            CrcKind::Crc32 => &self.crc32,
        };
        Some(PartSum {
            length: self.size,
            value: kind.parse(text.as_deref()?)?,
        })
    }
}

/// What the head of an answer says.
enum Said {
    /// The checksum of all bytes.
    Whole(CrcKind, u64),
    /// That there are such of the parts: the checksum of these is `…-3` for three of them.
    OfParts(CrcKind),
}

fn said(headers: &HeaderMap) -> Option<Said> {
    let composite = text(headers, "x-amz-checksum-type") == Some("COMPOSITE");
    CrcKind::ALL.into_iter().find_map(|kind| {
        let value = text(headers, kind.header())?;
        match kind.parse(value) {
            Some(value) if !composite => Some(Said::Whole(kind, value)),
            _ => Some(Said::OfParts(kind)),
        }
    })
}

impl S3Origin {
    pub(super) async fn ask_for_checksum(
        &self,
        object: &ObjectRef,
    ) -> Result<Option<ObjectChecksum>, OriginError> {
        let mut headers = conditions(object);
        headers.insert(CHECKSUM_MODE, ENABLED);
        let answer = self.client.head(&object.key, &headers).await?;
        let is_listed = self.head_of(object, &answer).witness()? != Witness::None;
        let said = said(&answer.headers).filter(|_| is_listed);
        // It has no body; the connection is free again.
        let _ = answer.document(0).await;
        match said {
            None => Ok(None),
            Some(Said::Whole(kind, value)) => {
                let length = object.size;
                let parts = vec![PartSum { length, value }];
                Ok(ObjectChecksum::new(kind, parts, object.size))
            }
            Some(Said::OfParts(kind)) => self.sums_of_parts(object, kind).await,
        }
    }

    async fn sums_of_parts(
        &self,
        object: &ObjectRef,
        kind: CrcKind,
    ) -> Result<Option<ObjectChecksum>, OriginError> {
        let mut parts = Vec::new();
        let mut marker = 0;
        loop {
            // If the object was replaced since its head was sent, its parts do not fit the next answers either: a part
            // then differs from what is read, and what is read of the new version is refused.
            let mut headers = conditions(object);
            let mut put = |name: &'static str, value: String| {
                if let Ok(value) = HeaderValue::from_str(&value) {
                    headers.insert(HeaderName::from_static(name), value);
                }
            };
            put("x-amz-object-attributes", "ObjectParts".to_owned());
            put("x-amz-max-parts", PAGE_PARTS.to_string());
            put("x-amz-part-number-marker", marker.to_string());
            let answer = self
                .client
                .get(Some(&object.key), "attributes=", &headers)
                .await?;
            let document = answer.document(MAX_DOCUMENT).await;
            let target = || self.client.object_url(&object.key);
            let document = document.map_err(|error| error.explain(target()))?;
            let Some(page) = read_page(&document) else {
                return Ok(None);
            };
            for part in &page.parts {
                let sum = part.sum(kind).filter(|_| parts.len() < MAX_PARTS);
                let Some(sum) = sum else { return Ok(None) };
                parts.push(sum);
            }
            let last = page.parts.last().map_or(0, |part| part.number);
            let next = page.next_part_number_marker.max(last);
            if !page.is_truncated {
                return Ok(ObjectChecksum::new(kind, parts, object.size));
            }
            if next <= marker {
                return Ok(None); // it does not advance
            }
            marker = next;
        }
    }
}

/// A page of parts in ascending order. `None` for anything else.
fn read_page(document: &[u8]) -> Option<Parts> {
    let text = str::from_utf8(document).ok()?;
    let attributes: Attributes = quick_xml::de::from_str(text).ok()?;
    let numbers = attributes.parts.parts.iter().map(|part| part.number);
    numbers
        .is_sorted_by(|a, b| a < b)
        .then_some(attributes.parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_of_checksums_sends_on_to_the_parts() {
        let said = |lines: &[(&'static str, &'static str)]| {
            let lines = lines.iter().map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            });
            match said(&lines.collect()) {
                None => "none",
                Some(Said::Whole(..)) => "whole",
                Some(Said::OfParts(_)) => "parts",
            }
        };
        let whole = ("x-amz-checksum-crc32c", "4waSgw==");
        assert_eq!(said(&[whole]), "whole");
        assert_eq!(
            said(&[whole, ("x-amz-checksum-type", "FULL_OBJECT")]),
            "whole"
        );
        assert_eq!(
            said(&[whole, ("x-amz-checksum-type", "COMPOSITE")]),
            "parts"
        );
        assert_eq!(said(&[("x-amz-checksum-crc32", "4waSgw==-3")]), "parts");
        assert_eq!(said(&[("x-amz-checksum-sha256", "4waSgw==")]), "none");
    }

    #[test]
    fn pages_of_parts_are_read_and_those_out_of_order_refused() {
        let page = |numbers: [u32; 2]| {
            let parts = numbers.map(|number| {
                format!(
                    "<Part><PartNumber>{number}</PartNumber><Size>5</Size><ChecksumCRC32C>4waSgw==</ChecksumCRC32C></Part>"
                )
            });
            let parts = parts.concat();
            format!(
                "<GetObjectAttributesResponse xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><ObjectParts><IsTruncated>true</IsTruncated><NextPartNumberMarker>{}</NextPartNumberMarker><PartsCount>4</PartsCount>{parts}</ObjectParts></GetObjectAttributesResponse>",
                numbers[1]
            )
        };
        let read = read_page(page([1, 2]).as_bytes()).unwrap();
        assert!(read.is_truncated && read.next_part_number_marker == 2);
        let sum = PartSum {
            length: 5,
            value: 0xe306_9283,
        };
        assert_eq!(read.parts[1].sum(CrcKind::Crc32c), Some(sum));
        assert_eq!(read.parts[1].sum(CrcKind::Crc32), None);
        assert!(read_page(page([2, 1]).as_bytes()).is_none());
        assert!(read_page(b"<html>").is_none());
    }
}
