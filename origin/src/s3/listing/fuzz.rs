//! Pages of any bytes.

use weir_fuzz::Target;

use super::document::{NotAPage, parse};
use super::encoding::Encodings;
use super::version;
use crate::transport::time;

const PAGE: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>b</Name><Prefix></Prefix><KeyCount>2</KeyCount><MaxKeys>1000</MaxKeys><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated><NextContinuationToken>1ueGcxLPRx1Tr/XYExHnhbYLgveDs2J/wm36Hy4vbOwM=</NextContinuationToken><Contents><Key>a%20b+c</Key><LastModified>2026-03-01T12:00:00.000Z</LastModified><ETag>&quot;599bab3ed2c697f1d26842727561fd94&quot;</ETag><Size>857</Size></Contents><Contents><Key>d/\u{e9}&#x41;</Key><LastModified>Sun, 01 Mar 2026 12:00:00 GMT</LastModified><ETag>\"x-2\"</ETag><Size>18446744073709551615</Size></Contents></ListBucketResult>";
const FIRST_VERSION: &str = "<ListBucketResult><IsTruncated>false</IsTruncated><Marker/><NextMarker>m</NextMarker><Contents><Key>k</Key><Size>1</Size><LastModified>2026-03-01 12:00:00</LastModified></Contents></ListBucketResult>";
const ERROR: &str =
    "<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>";

/// What a listing does with a page; tells what was found.
fn read(page: &[u8]) -> (u8, usize, usize) {
    match parse(page) {
        Ok(document) => {
            let keys = || document.entries.iter().map(|entry| entry.key.as_slice());
            let mut encodings = Encodings::new(document.encoded);
            if let Some((_, readings)) = encodings.doubt(keys()) {
                let name = readings[readings.len() - 1].1.clone();
                encodings.settle(&readings, &name);
            }
            encodings.give_up();
            let way = encodings.likeliest();
            let mut bytes = 0;
            for entry in &document.entries {
                bytes += way.decode(&entry.key).len() + version(entry).len();
            }
            let more = usize::from(document.truncated) + 2 * usize::from(document.token.is_some());
            (0, document.entries.len() + 1000 * more, bytes / 16)
        }
        Err(NotAPage::Broken(_)) => (1, 0, 0),
        Err(NotAPage::Error(code)) => (2, code.len(), 0),
        Err(NotAPage::Other(_)) => (3, 0, 0),
        Err(NotAPage::Incomplete(problem)) => (4, problem.len(), 0),
    }
}

#[test]
fn fuzz_pages_of_any_bytes() {
    assert_eq!(read(PAGE.as_bytes()).0, 0, "{:?}", parse(PAGE.as_bytes()));
    Target::new("listing")
        .seed(PAGE)
        .seed(FIRST_VERSION)
        .seed(ERROR)
        .words(&[
            "<Contents>",
            "</Contents>",
            "<Key>",
            "<Size>",
            "<IsTruncated>true</IsTruncated>",
            "<![CDATA[",
            "]]>",
            "<!--",
            "-->",
            "<!DOCTYPE a [<!ENTITY b \"cccccccc\">]>",
            "&b;",
            "&amp;",
            "&#x10ffff;",
            "&#0;",
            "%",
            "%0a",
            "+",
            "99999999999999999999",
            "-1",
            "<a><a><a><a>",
        ])
        .run(read);
}

#[test]
fn fuzz_times_of_any_bytes() {
    Target::new("time")
        .seed("2026-03-01T12:00:00.000Z")
        .seed("Sun, 01 Mar 2026 12:00:00 GMT")
        .seed("2026-03-01 12:00:00.5 +0000 UTC")
        .words(&["-", ":", "99", "0000", "+24:00", "Z", "[Europe/Paris]", "."])
        .run(|text| time::parse(&String::from_utf8_lossy(text)).is_some());
}
