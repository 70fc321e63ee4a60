//! The pages that web servers make of their directories.
//!
//! Only pages of known kinds are taken, since a page that somebody wrote need not name all that is there: those of Apache,
//! nginx, lighttpd and Python's http.server as HTML, and of nginx and Caddy as JSON. Of the links those count that lead to
//! what lies in this very directory.

use std::collections::BTreeSet;

use serde::Deserialize;
use url::Url;

use crate::transport::encode::decode;

/// What a page of a directory has in its title, in lower case.
const TITLES: [&str; 2] = ["index of ", "directory listing for "];

/// One name in a directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Child {
    /// Decoded, without a slash.
    pub(super) name: Vec<u8>,
    pub(super) is_directory: bool,
}

/// The names in the directory at `base`, whose path ends in `/`, sorted. Or what is wrong with its page.
pub(super) fn parse(document: &[u8], content_type: &str, base: &Url) -> Result<Vec<Child>, String> {
    if content_type.trim_start().starts_with("application/json") {
        return of_json(document);
    }
    let text = String::from_utf8_lossy(document);
    let lower = text.to_ascii_lowercase();
    if !is_of_directory(&lower) {
        return Err("its page is none that a server makes of a directory".to_owned());
    }
    let mut children = BTreeSet::new();
    for link in links(&text, &lower) {
        if let Some(child) = child(&link, base) {
            children.insert(child);
        }
    }
    Ok(children.into_iter().collect())
}

/// Whether the title, or the first heading, is one of a directory's page.
fn is_of_directory(lower: &str) -> bool {
    ["<title>", "<h1>"].iter().any(|tag| {
        let inside = lower.split_once(tag).map_or("", |(_, inside)| inside);
        TITLES
            .iter()
            .any(|title| inside.trim_start().starts_with(title))
    })
}

/// The addresses that the page links to, as they are written.
fn links(text: &str, lower: &str) -> Vec<String> {
    let mut links = Vec::new();
    let mut at = 0;
    while let Some(found) = lower[at..].find("<a") {
        at += found + 2;
        if !lower[at..].starts_with(|c: char| c.is_ascii_whitespace()) {
            continue;
        }
        let end = lower[at..].find('>').map_or(lower.len(), |end| at + end);
        // A quoted address may have a `>` in it.
        let Some(href) = lower[at..end].find("href").map(|href| at + href + 4) else {
            continue;
        };
        let value = text[href..].trim_start();
        let Some(value) = value.strip_prefix('=').map(str::trim_start) else {
            continue;
        };
        let link = match value.chars().next() {
            Some(quote @ ('"' | '\'')) => value[1..].split(quote).next(),
            _ => value
                .split(|c: char| c.is_ascii_whitespace() || c == '>')
                .next(),
        };
        let link = link.unwrap_or_default();
        let plain = quick_xml::escape::unescape(link);
        links.push(plain.map_or_else(|_| link.to_owned(), std::borrow::Cow::into_owned));
    }
    links
}

/// What lies in the directory at `base` that a link leads to.
fn child(link: &str, base: &Url) -> Option<Child> {
    let to = base.join(link).ok()?;
    if to.origin() != base.origin() || to.query().is_some() || to.fragment().is_some() {
        return None;
    }
    let rest = to.path().strip_prefix(base.path())?;
    let (name, is_directory) = match rest.strip_suffix('/') {
        Some(name) => (name, true),
        None => (rest, false),
    };
    let name = decode(name.as_bytes());
    let fits = !name.is_empty() && !name.contains(&b'/');
    fits.then_some(Child { name, is_directory })
}

fn of_json(document: &[u8]) -> Result<Vec<Child>, String> {
    #[derive(Deserialize)]
    struct Item {
        name: String,
        /// nginx: `directory`, `file` or `other`.
        #[serde(default, rename = "type")]
        kind: String,
        /// Caddy.
        #[serde(default)]
        is_dir: bool,
    }
    let items: Vec<Item> = serde_json::from_slice(document).map_err(|_| {
        "its page is JSON, and none that nginx or Caddy make of a directory".to_owned()
    })?;
    let mut children = BTreeSet::new();
    for item in items {
        let is_directory = item.is_dir || item.kind == "directory" || item.name.ends_with('/');
        let name = item.name.trim_end_matches('/').as_bytes().to_vec();
        if !name.is_empty() && !name.contains(&b'/') && item.kind != "other" {
            children.insert(Child { name, is_directory });
        }
    }
    Ok(children.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(document: &str, content_type: &str) -> Result<Vec<String>, String> {
        let base = Url::parse("http://h:8000/d%20x/").unwrap();
        let children = parse(document.as_bytes(), content_type, &base)?;
        let shown = |child: Child| {
            let name = String::from_utf8_lossy(&child.name).into_owned();
            if child.is_directory { name + "/" } else { name }
        };
        Ok(children.into_iter().map(shown).collect())
    }

    const APACHE: &str = r#"<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN">
<html><head><title>Index of /d x</title></head><body><h1>Index of /d x</h1><table>
<tr><th><a href="?C=N;O=D">Name</a></th><th><a href="?C=M;O=A">Last modified</a></th></tr>
<tr><td><a href="/">Parent Directory</a></td></tr>
<tr><td><a href="a%20b&amp;c.jpg">a b&amp;c.jpg</a></td></tr><tr><td><a href="sub/">sub/</a></td></tr></table></body></html>"#;

    #[test]
    fn the_pages_of_each_server_name_what_is_there() {
        let html = "text/html;charset=utf-8";
        assert_eq!(read(APACHE, html).unwrap(), ["a b&c.jpg", "sub/"]);
        let nginx = "<html>\r\n<head><title>Index of /d x/</title></head><body><h1>Index of /d x/</h1><hr><pre><a href=\"../\">../</a>\r\n<a href=\"sub/\">sub/</a>  29-Nov-2026 19:10 -\r\n<a href=\"50%25%2B.bin\">50%+.bin</a></pre></body></html>";
        assert_eq!(read(nginx, html).unwrap(), ["50%+.bin", "sub/"]);
        let python = "<!DOCTYPE HTML>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>Directory listing for /d x/</title>\n</head>\n<body>\n<h1>Directory listing for /d x/</h1>\n<hr>\n<ul>\n<li><a href=\"a%22%3E.txt\">a&quot;&gt;.txt</a></li>\n<li><a href='link'>link@</a></li>\n</ul>";
        assert_eq!(read(python, html).unwrap(), ["a\">.txt", "link"]);
        let json = r#"[{"name":"a.bin","type":"file","size":5},{"name":"s","type":"directory"},{"name":"c/","is_dir":true},{"name":"fifo","type":"other"}]"#;
        assert_eq!(
            read(json, "application/json").unwrap(),
            ["a.bin", "c/", "s/"]
        );
    }

    #[test]
    fn links_that_lead_elsewhere_do_not_count() {
        let page = |link: &str| {
            let page = format!("<title>Index of /</title><A  class=x  HREF = \"{link}\">");
            read(&page, "text/html").unwrap()
        };
        assert_eq!(page("a"), ["a"]);
        assert_eq!(page("http://h:8000/d%20x/a"), ["a"]);
        for elsewhere in [
            "../a",
            "/a",
            "//other/d%20x/a",
            "http://other/d%20x/a",
            "https://h:8000/d%20x/a",
            "sub/a",
            "a%2Fb",
            "?x",
            "#x",
            "a?x",
            "",
            ".",
            "./",
            "javascript:alert(1)",
            "/d%20x/",
        ] {
            assert_eq!(page(elsewhere), [""; 0], "{elsewhere}");
        }
    }

    #[test]
    fn a_page_that_somebody_wrote_is_refused() {
        for page in [
            "<title>Welcome</title><a href=\"a\">a</a>",
            "",
            "not found",
            "<title></title>",
        ] {
            assert!(read(page, "text/html").is_err(), "{page}");
        }
        assert!(read("{}", "application/json").is_err());
    }

    #[test]
    fn fuzz_pages_of_any_bytes() {
        let base = Url::parse("http://h:8000/d/").unwrap();
        weir_fuzz::Target::new("web-autoindex")
            .seed(APACHE)
            .words(&[
                "<a href=",
                "<A HREF='",
                "\">",
                "&#x",
                "%2F",
                "../",
                "<title>Index of ",
            ])
            .run(|document| {
                let children = parse(document, "text/html", &base).ok();
                if let Some(children) = &children {
                    assert!(children.iter().all(|child| !child.name.contains(&b'/')));
                }
                children.map(|children| children.len().min(3))
            });
    }
}
