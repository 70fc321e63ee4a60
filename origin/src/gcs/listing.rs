//! Pages of a listing, as JSON.

use serde::Deserialize;

use super::GZIP;
use crate::origin::{Hindrance, Listed};
use crate::store::Page;
use crate::transport::time;

/// What of each object is asked for. Names come as JSON strings, so that none can break the document.
pub(super) const QUERY: &str = "fields=kind%2CnextPageToken%2Citems(name%2Csize%2Cgeneration%2Cupdated%2CcontentEncoding)&maxResults=1000";

/// What a document of the service is.
const KIND: &str = "storage#objects";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    kind: String,
    next_page_token: Option<String>,
    #[serde(default)]
    items: Vec<Item>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    name: String,
    /// A number in a string, since JSON's numbers are not wide enough.
    size: String,
    generation: String,
    updated: Option<String>,
    content_encoding: Option<String>,
}

/// Reads a page of the objects below `prefix`, or says why it is none.
pub(super) fn parse(document: &[u8], prefix: &str) -> Result<Page, String> {
    let document: Document = serde_json::from_slice(document).map_err(|error| error.to_string())?;
    if document.kind != KIND {
        return Err(format!("it is a {:?} and no {KIND:?}", document.kind));
    }
    let objects: Result<Vec<Listed>, String> = document.items.into_iter().map(listed).collect();
    let objects = objects?;
    if let Some(stray) = objects
        .iter()
        .find(|object| !object.key.starts_with(prefix.as_bytes()))
    {
        return Err(format!(
            "it has {:?}, which does not begin with {prefix:?}",
            String::from_utf8_lossy(&stray.key)
        ));
    }
    Ok(Page {
        objects,
        next: document.next_page_token.filter(|token| !token.is_empty()),
    })
}

fn listed(item: Item) -> Result<Listed, String> {
    let size = item.size.parse().map_err(|_| {
        let Item { name, size, .. } = &item;
        format!("the size of {name:?} is {size:?}")
    })?;
    if item.generation.parse::<i64>().is_err() {
        let Item {
            name, generation, ..
        } = &item;
        return Err(format!("the generation of {name:?} is {generation:?}"));
    }
    let is_gzip = item
        .content_encoding
        .is_some_and(|encoding| encoding.trim().eq_ignore_ascii_case("gzip"));
    let mut version = item.generation;
    if is_gzip {
        version.push_str(GZIP);
    }
    let hindrance: Option<Hindrance> = None; // all its archives can be read at once
    Ok(Listed {
        key: item.name.into_bytes(),
        size,
        mtime_ns: item.updated.as_deref().and_then(time::parse).unwrap_or(0),
        version,
        hindrance,
    })
}

/// The CRC-32C, in base64, that a document about an object of this generation has.
pub(super) fn crc32c(document: &[u8], generation: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Document {
        crc32c: String,
        generation: String,
    }
    let document: Document = serde_json::from_slice(document).ok()?;
    (document.generation == generation).then_some(document.crc32c)
}

/// The word for an error in a document: `notFound`, `userProjectMissing`. Empty when it has none.
pub(super) fn reason(document: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Document {
        error: Problem,
    }
    #[derive(Deserialize)]
    struct Problem {
        #[serde(default)]
        errors: Vec<Reason>,
        #[serde(default)]
        status: String,
    }
    #[derive(Deserialize)]
    struct Reason {
        #[serde(default)]
        reason: String,
    }
    let Ok(Document { error }) = serde_json::from_slice(document) else {
        return String::new();
    };
    let reason = error.errors.into_iter().next().map(|first| first.reason);
    reason.unwrap_or(error.status)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"{"kind":"storage#objects","nextPageToken":"t","items":[
        {"name":"p/a b\n\u00e9","size":"5","generation":"17","updated":"1970-01-01T00:00:05.250Z","md5Hash":"x"},
        {"name":"p/z","size":"0","generation":"18","contentEncoding":"gzip"}]}"#;

    #[test]
    fn a_page_is_read_with_names_as_they_are() {
        let page = parse(PAGE.as_bytes(), "p/").unwrap();
        assert_eq!(page.next.as_deref(), Some("t"));
        let [first, second] = &page.objects[..] else {
            panic!("{:?}", page.objects);
        };
        assert_eq!(first.key, "p/a b\né".as_bytes());
        assert_eq!((first.size, first.mtime_ns), (5, 5_250_000_000));
        assert_eq!((&*first.version, &*second.version), ("17", "18-gzip"));
        let empty = parse(br#"{"kind":"storage#objects"}"#, "p/").unwrap();
        assert!(empty.objects.is_empty() && empty.next.is_none());
    }

    #[test]
    fn what_is_no_page_is_refused() {
        for (document, said) in [
            ("<html/>", "expected"),
            (r#"{"kind":"storage#buckets"}"#, "storage#buckets"),
            ("{}", "kind"),
            (
                r#"{"kind":"storage#objects","items":[{"name":"p/a","size":"x","generation":"1"}]}"#,
                "size",
            ),
            (
                r#"{"kind":"storage#objects","items":[{"name":"p/a","size":"1","generation":"1&x"}]}"#,
                "generation",
            ),
            (
                r#"{"kind":"storage#objects","items":[{"name":"q","size":"1","generation":"1"}]}"#,
                "begin",
            ),
        ] {
            let problem = parse(document.as_bytes(), "p/").err().unwrap();
            assert!(problem.contains(said), "{document}: {problem}");
        }
    }

    #[test]
    fn a_checksum_is_that_of_the_generation() {
        let document = br#"{"crc32c":"mnG7TA==","generation":"17"}"#;
        assert_eq!(crc32c(document, "17").as_deref(), Some("mnG7TA=="));
        assert_eq!(crc32c(document, "18"), None);
        assert_eq!(crc32c(b"{}", "17"), None);
    }

    #[test]
    fn the_word_for_an_error_is_found() {
        let document = r#"{"error":{"code":404,"message":"m","errors":[{"reason":"notFound"}]}}"#;
        assert_eq!(reason(document.as_bytes()), "notFound");
        assert_eq!(reason(br#"{"error":{"status":"DENIED"}}"#), "DENIED");
        assert_eq!(reason(b"Not Found"), "");
    }

    #[test]
    fn fuzz_pages_of_any_bytes() {
        weir_fuzz::Target::new("gcs-page")
            .seed(PAGE)
            .words(&[
                "\"name\":",
                "\"size\":\"1\"",
                "\"items\":[",
                "nextPageToken",
            ])
            .run(|document| {
                let page = parse(document, "").ok();
                (
                    page.map(|page| page.objects.len().min(3)),
                    reason(document).len().min(3),
                )
            });
    }
}
