//! The document of one page, as it was sent: `ListBucketResult`, of either version of the API.
//!
//! What a page must say is checked here, so that no part of a listing is taken for all of it. Keys are bytes: a name
//! that is no text must not hide the others of its page.

use quick_xml::Reader;
use quick_xml::escape::resolve_xml_entity;
use quick_xml::events::{BytesRef, Event};

use super::archived;
use crate::transport::time;

/// Bytes of a document that a message repeats at most.
const MAX_SHOWN: usize = 100;

/// What a page says.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Document {
    pub(super) entries: Vec<Entry>,
    /// More is to come.
    pub(super) truncated: bool,
    /// How to ask for the next page.
    pub(super) token: Option<String>,
    /// How to ask for it in the first version of the API, written like a key.
    pub(super) next_marker: Option<Vec<u8>>,
    /// The service answered in the first version.
    pub(super) first_version: bool,
    /// It says that keys are percent-encoded.
    pub(super) encoded: bool,
}

/// An object of a page.
#[derive(Debug, PartialEq)]
pub(super) struct Entry {
    /// As it was sent, perhaps percent-encoded.
    pub(super) key: Vec<u8>,
    pub(super) size: u64,
    /// Nanoseconds since 1970, if it has a time that can be read.
    pub(super) modified_ns: Option<i64>,
    pub(super) etag: String,
    /// Its storage class, if that is an archive.
    pub(super) archive: Option<&'static str>,
}

/// Why an answer is no page of a listing.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum NotAPage {
    /// It ends in the middle, or is no XML. Another attempt may bring it whole.
    #[error("it cannot be read: {0}")]
    Broken(String),
    /// It is an error in spite of its status.
    #[error("it is the error {0}")]
    Error(String),
    /// It is something else.
    #[error("it is a document of the kind <{0}>")]
    Other(String),
    /// It lacks what a page must have, or has what makes no sense.
    #[error("{0}")]
    Incomplete(String),
}

/// Reads a document.
pub(super) fn parse(text: &[u8]) -> Result<Document, NotAPage> {
    let broken = |error: &dyn std::fmt::Display| NotAPage::Broken(error.to_string());
    let mut reader = Reader::from_reader(text);
    reader.config_mut().expand_empty_elements = true;
    let mut page = Page::default();
    let mut depth = 0_usize;
    let mut text = Vec::new();
    loop {
        match reader.read_event().map_err(|error| broken(&error))? {
            Event::Start(tag) => {
                depth += 1;
                text.clear();
                page.open(depth, tag.local_name().as_ref())?;
            }
            Event::End(tag) => {
                page.close(depth, tag.local_name().as_ref(), &text)?;
                depth = depth.saturating_sub(1);
                text.clear();
            }
            Event::Text(part) => text.extend_from_slice(&part),
            Event::CData(part) => text.extend_from_slice(&part),
            Event::GeneralRef(name) => refer(&name, &mut text)?,
            Event::Eof if depth > 0 => return Err(broken(&"it ends in the middle")),
            Event::Eof => return page.finish(),
            Event::Empty(_)
            | Event::Comment(_)
            | Event::Decl(_)
            | Event::PI(_)
            | Event::DocType(_) => {}
        }
    }
}

/// Appends what `&name;` stands for.
fn refer(name: &BytesRef<'_>, text: &mut Vec<u8>) -> Result<(), NotAPage> {
    let unknown = || NotAPage::Broken(format!("it refers to &{};", shown(name)));
    let resolved = name.resolve_char_ref();
    match resolved {
        Ok(Some(character)) => {
            text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        }
        Ok(None) => {
            let name = str::from_utf8(name).map_err(|_| unknown())?;
            let meant = resolve_xml_entity(name).ok_or_else(unknown)?;
            text.extend_from_slice(meant.as_bytes());
        }
        // No XML may hold it, keys may.
        Err(_) if matches!(&**name, b"#0" | b"#x0" | b"#x00") => text.push(0),
        Err(_) => return Err(unknown()),
    }
    Ok(())
}

/// A page in the making.
#[derive(Default)]
struct Page {
    document: Document,
    truncated: Option<bool>,
    kind: Option<Kind>,
    entry: Option<Fields>,
}

enum Kind {
    Listing,
    Error(String),
}

/// The fields of an entry that were seen.
#[derive(Default)]
struct Fields {
    key: Option<Vec<u8>>,
    size: Option<u64>,
    modified_ns: Option<i64>,
    etag: String,
    archive: Option<&'static str>,
}

impl Page {
    fn open(&mut self, depth: usize, name: &[u8]) -> Result<(), NotAPage> {
        match (depth, name) {
            (1, _) if self.kind.is_some() => {
                return Err(NotAPage::Broken("it has a second root".to_owned()));
            }
            (1, b"ListBucketResult") => self.kind = Some(Kind::Listing),
            (1, b"Error") => self.kind = Some(Kind::Error(String::new())),
            (1, _) => return Err(NotAPage::Other(shown(name))),
            (2, b"Contents") => self.entry = Some(Fields::default()),
            (2, b"CommonPrefixes") => {
                return Err(incomplete(
                    "it lists folders (CommonPrefixes) instead of the objects in them",
                ));
            }
            _ => {}
        }
        Ok(())
    }

    fn close(&mut self, depth: usize, name: &[u8], text: &[u8]) -> Result<(), NotAPage> {
        if let Some(Kind::Error(code)) = &mut self.kind {
            if (depth, name) == (2, b"Code") {
                *code = shown(text);
            }
            return Ok(());
        }
        if let (3, Some(entry)) = (depth, &mut self.entry) {
            return entry.set(name, text);
        }
        if depth != 2 {
            return Ok(());
        }
        let page = &mut self.document;
        match name {
            b"Contents" => page
                .entries
                .extend(self.entry.take().map(Fields::finish).transpose()?),
            b"IsTruncated" => self.truncated = Some(truth(text)?),
            b"NextContinuationToken" => page.token = Some(lossy(text)).filter(|t| !t.is_empty()),
            b"NextMarker" => page.next_marker = Some(text.to_vec()).filter(|t| !t.is_empty()),
            b"Marker" => page.first_version = true,
            b"EncodingType" => page.encoded = text.trim_ascii().eq_ignore_ascii_case(b"url"),
            _ => {}
        }
        Ok(())
    }

    fn finish(self) -> Result<Document, NotAPage> {
        match self.kind {
            None => return Err(NotAPage::Broken("it is empty".to_owned())),
            Some(Kind::Error(code)) => return Err(NotAPage::Error(code)),
            Some(Kind::Listing) => {}
        }
        let mut document = self.document;
        document.truncated = self.truncated.ok_or_else(|| {
            incomplete("it does not say whether it is the last page (IsTruncated)")
        })?;
        document.first_version |= document.next_marker.is_some();
        Ok(document)
    }
}

impl Fields {
    fn set(&mut self, name: &[u8], text: &[u8]) -> Result<(), NotAPage> {
        match name {
            b"Key" => self.key = Some(text.to_vec()),
            b"Size" => {
                let size = str::from_utf8(text)
                    .ok()
                    .and_then(|t| t.trim().parse().ok());
                self.size = Some(size.ok_or_else(|| {
                    NotAPage::Incomplete(format!("it gives an object the size \"{}\"", shown(text)))
                })?);
            }
            b"LastModified" => self.modified_ns = time::parse(&lossy(text)),
            b"ETag" => self.etag = lossy(text),
            b"StorageClass" => self.archive = archived::class(text),
            _ => {}
        }
        Ok(())
    }

    fn finish(self) -> Result<Entry, NotAPage> {
        let key = self
            .key
            .ok_or_else(|| incomplete("it lists an object without its key"))?;
        let size = self.size.ok_or_else(|| {
            NotAPage::Incomplete(format!("it lists \"{}\" without its size", shown(&key)))
        })?;
        Ok(Entry {
            key,
            size,
            modified_ns: self.modified_ns,
            etag: self.etag,
            archive: self.archive,
        })
    }
}

fn incomplete(what: &str) -> NotAPage {
    NotAPage::Incomplete(what.to_owned())
}

fn lossy(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

/// The beginning of a text, for messages.
fn shown(text: &[u8]) -> String {
    let text = &text[..text.len().min(MAX_SHOWN)];
    lossy(text).escape_debug().to_string()
}

fn truth(text: &[u8]) -> Result<bool, NotAPage> {
    let text = text.trim_ascii();
    if text.eq_ignore_ascii_case(b"true") {
        Ok(true)
    } else if text.eq_ignore_ascii_case(b"false") {
        Ok(false)
    } else {
        Err(NotAPage::Incomplete(format!(
            "it is truncated (IsTruncated) by \"{}\"",
            shown(text)
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(inner: &str) -> String {
        format!(
            "<?xml version='1.0' encoding='UTF-8'?>\n<ListBucketResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'>{inner}</ListBucketResult>"
        )
    }

    const K: &str = "<Contents><Key>k</Key><Size>3</Size></Contents>";
    const LAST: &str = "<IsTruncated>false</IsTruncated>";

    #[test]
    fn a_page_is_read_with_what_is_between_and_around() {
        let text = listing(
            "<Name>b</Name><Prefix/><EncodingType>url</EncodingType>\n <IsTruncated> True </IsTruncated>
            <NextContinuationToken>a&amp;\nb</NextContinuationToken>
            <Contents><Owner><ID>1</ID><Key>no key</Key></Owner><Key> a&lt;b&#10;<![CDATA[&]]></Key><Size> 3 </Size>
            <LastModified>1970-01-01T00:00:05Z</LastModified><ETag>&quot;e&quot;</ETag></Contents>
            <Owner/><Contents><Size>0</Size><Key/></Contents>",
        );
        let page = parse(text.as_bytes()).unwrap();
        assert!(page.truncated && page.encoded && !page.first_version);
        assert_eq!(page.token.as_deref(), Some("a&\nb"));
        assert_eq!(
            page.entries,
            [
                Entry {
                    key: b" a<b\n&".to_vec(),
                    size: 3,
                    modified_ns: Some(5_000_000_000),
                    etag: "\"e\"".to_owned(),
                    archive: None,
                },
                Entry {
                    key: Vec::new(),
                    size: 0,
                    modified_ns: None,
                    etag: String::new(),
                    archive: None,
                }
            ]
        );
    }

    #[test]
    fn keys_that_no_xml_may_hold_are_read_as_they_are() {
        let mut text = listing(&format!("{K}{LAST}")).into_bytes();
        let at = text.windows(3).position(|w| w == b">k<").unwrap();
        text.splice(at + 1..at + 2, *b"\xff\x01&#x0;&#1;");
        assert_eq!(parse(&text).unwrap().entries[0].key, b"\xff\x01\0\x01");
    }

    #[test]
    fn the_first_version_is_told_by_its_markers() {
        let page = |inner: &str| parse(listing(inner).as_bytes()).unwrap();
        assert!(page(&format!("<Marker/>{LAST}")).first_version);
        let next = page(&format!("<NextMarker>m</NextMarker>{LAST}"));
        assert!(next.first_version);
        assert_eq!(next.next_marker.as_deref(), Some(&b"m"[..]));
    }

    #[test]
    fn what_is_no_whole_page_is_refused_with_its_reason() {
        let error = |text: &str| parse(text.as_bytes()).unwrap_err();
        let page = listing(&format!("{K}{LAST}"));
        for end in 0..page.len() {
            assert!(matches!(error(&page[..end]), NotAPage::Broken(_)), "{end}");
        }
        assert!(matches!(
            error(&format!("{page}<ListBucketResult>")),
            NotAPage::Broken(_)
        ));
        assert!(matches!(error("{\"keys\": []}"), NotAPage::Broken(_)));
        for html in [
            "<!DOCTYPE html><html><body>hello</body></html>",
            "<html><br></html>",
        ] {
            assert_eq!(error(html), NotAPage::Other("html".to_owned()));
        }
        assert_eq!(
            error("<Error><Code>InternalError</Code><Message>m</Message></Error>"),
            NotAPage::Error("InternalError".to_owned())
        );
        for (inner, said) in [
            (K, "IsTruncated"),
            (&format!("{K}<IsTruncated>perhaps</IsTruncated>"), "perhaps"),
            (
                &format!("<Contents><Key>a</Key></Contents>{LAST}"),
                "\"a\" without its size",
            ),
            (
                &format!("<Contents><Size>1</Size></Contents>{LAST}"),
                "without its key",
            ),
            (
                &format!("<Contents><Key>a</Key><Size>-1</Size></Contents>{LAST}"),
                "\"-1\"",
            ),
            (
                &format!("<CommonPrefixes><Prefix>a/</Prefix></CommonPrefixes>{LAST}"),
                "folders",
            ),
        ] {
            let error = error(&listing(inner));
            assert!(matches!(error, NotAPage::Incomplete(_)), "{error:?}");
            assert!(error.to_string().contains(said), "{error}");
        }
    }
}
