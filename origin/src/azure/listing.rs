//! Pages of a listing, as XML.

use quick_xml::de::from_str;
use serde::Deserialize;

use crate::origin::{Hindrance, Listed};
use crate::store::Page;
use crate::transport::encode::decode;
use crate::transport::head::plain_etag;
use crate::transport::time;

/// The tier that must be left before a blob can be read.
const ARCHIVE: &str = "Archive";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    blobs: Blobs,
    #[serde(default)]
    next_marker: Option<String>,
}

#[derive(Deserialize)]
struct Blobs {
    #[serde(default, rename = "Blob")]
    blobs: Vec<Blob>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Blob {
    name: Name,
    #[serde(default)]
    deleted: bool,
    properties: Properties,
}

/// A name, percent-encoded where XML could not carry it.
#[derive(Deserialize)]
struct Name {
    #[serde(rename = "@Encoded", default)]
    encoded: bool,
    #[serde(rename = "$text", default)]
    text: String,
}

#[derive(Deserialize)]
struct Properties {
    #[serde(rename = "Content-Length")]
    length: Option<u64>,
    #[serde(rename = "Last-Modified", default)]
    modified: Option<String>,
    #[serde(rename = "Etag", default)]
    etag: Option<String>,
    #[serde(rename = "AccessTier", default)]
    tier: Option<String>,
    #[serde(rename = "ResourceType", default)]
    kind: Option<String>,
}

/// Reads a page of the blobs below `prefix`, or says why it is none.
pub(super) fn parse(document: &[u8], prefix: &str) -> Result<Page, String> {
    let text = std::str::from_utf8(document).map_err(|error| error.to_string())?;
    let text = text.trim_start_matches('\u{feff}');
    if !text.contains("<EnumerationResults") {
        return Err("the answer is no list of blobs".to_owned());
    }
    // Cut off in the middle it would look like a shorter one.
    if !text.trim_end().ends_with("</EnumerationResults>") {
        return Err("the answer ends in the middle".to_owned());
    }
    let document: Document = from_str(text).map_err(|error| error.to_string())?;
    let mut objects = Vec::with_capacity(document.blobs.blobs.len());
    for blob in document.blobs.blobs {
        if blob.deleted {
            continue;
        }
        let mut key = if blob.name.encoded {
            decode(blob.name.text.as_bytes())
        } else {
            blob.name.text.into_bytes()
        };
        let properties = blob.properties;
        if !key.starts_with(prefix.as_bytes()) {
            let name = String::from_utf8_lossy(&key);
            return Err(format!(
                "it has {name:?}, which does not begin with {prefix:?}"
            ));
        }
        let is_directory = properties.kind.as_deref() == Some("directory");
        if is_directory {
            key.push(b'/');
        }
        let size = properties.length.unwrap_or(0);
        let etag = properties
            .etag
            .as_deref()
            .map(plain_etag)
            .unwrap_or_default();
        if !is_directory && (etag.is_empty() || properties.length.is_none()) {
            let name = String::from_utf8_lossy(&key);
            return Err(format!(
                "it does not tell the length or the ETag of {name:?}"
            ));
        }
        let modified = properties.modified.as_deref().and_then(time::parse);
        let is_archived = properties.tier.as_deref() == Some(ARCHIVE);
        objects.push(Listed {
            key,
            size,
            mtime_ns: modified.unwrap_or(0),
            version: etag.to_owned(),
            hindrance: is_archived.then_some(Hindrance::Archived(ARCHIVE)),
        });
    }
    Ok(Page {
        objects,
        next: document.next_marker.filter(|marker| !marker.is_empty()),
    })
}

/// The word for an error in a document; empty when it has none.
pub(super) fn code(document: &[u8]) -> String {
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "PascalCase", default)]
    struct Document {
        code: String,
    }
    let text = String::from_utf8_lossy(document);
    let document: Document = from_str(text.trim_start_matches('\u{feff}')).unwrap_or_default();
    document.code
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\u{feff}<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults ServiceEndpoint=\"https://a/\" ContainerName=\"c\">\
        <Prefix>p/</Prefix><Blobs>\
        <Blob><Name>p/a &amp; b</Name><Properties><Last-Modified>Thu, 01 Jan 1970 00:00:05 GMT</Last-Modified><Etag>0x8D1</Etag><Content-Length>5</Content-Length><BlobType>BlockBlob</BlobType><AccessTier>Hot</AccessTier></Properties></Blob>\
        <Blob><Name Encoded=\"true\">p/%EF%BF%BE%01</Name><Properties><Etag>\"0x8D2\"</Etag><Content-Length>0</Content-Length><AccessTier>Archive</AccessTier></Properties></Blob>\
        <Blob><Name>p/dir</Name><Properties><Etag>0x8D3</Etag><ResourceType>directory</ResourceType><Content-Length>0</Content-Length></Properties></Blob>\
        </Blobs><NextMarker>m</NextMarker></EnumerationResults>";

    #[test]
    fn a_page_is_read_with_names_as_they_are() {
        let page = parse(PAGE.as_bytes(), "p/").unwrap();
        assert_eq!(page.next.as_deref(), Some("m"));
        let keys: Vec<&[u8]> = page.objects.iter().map(|object| &*object.key).collect();
        assert_eq!(keys, [&b"p/a & b"[..], b"p/\xef\xbf\xbe\x01", b"p/dir/"]);
        let [first, second, _] = &page.objects[..] else {
            panic!("{:?}", page.objects);
        };
        assert_eq!((first.size, first.mtime_ns), (5, 5_000_000_000));
        assert_eq!((&*first.version, &*second.version), ("0x8D1", "0x8D2"));
        assert_eq!(first.hindrance, None);
        assert_eq!(second.hindrance, Some(Hindrance::Archived(ARCHIVE)));
        let empty = "<EnumerationResults><Blobs/><NextMarker/></EnumerationResults>";
        let page = parse(empty.as_bytes(), "").unwrap();
        assert!(page.objects.is_empty() && page.next.is_none());
    }

    #[test]
    fn what_is_no_page_is_refused() {
        let cut = &PAGE[..PAGE.len() - 30];
        let no_etag = PAGE.replace("<Etag>0x8D1</Etag>", "");
        for (document, prefix, said) in [
            ("<html/>", "p/", "no list"),
            (cut, "p/", "middle"),
            (&*no_etag, "p/", "ETag"),
            (PAGE, "q/", "begin"),
        ] {
            let problem = parse(document.as_bytes(), prefix).err().unwrap();
            assert!(problem.contains(said), "{problem}");
        }
        assert_eq!(
            code(b"<Error><Code>BlobNotFound</Code></Error>"),
            "BlobNotFound"
        );
        assert_eq!(code(b"no"), "");
    }

    #[test]
    fn fuzz_pages_of_any_bytes() {
        weir_fuzz::Target::new("azure-page")
            .seed(PAGE)
            .words(&[
                "<Blob>",
                "</Blob>",
                "Encoded=\"true\"",
                "<NextMarker>",
                "&amp;",
                "<![CDATA[",
            ])
            .run(|document| {
                let page = parse(document, "").ok();
                (
                    page.map(|page| page.objects.len().min(3)),
                    code(document).len().min(3),
                )
            });
    }
}
