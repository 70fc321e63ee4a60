//! Listings of a web server: an index to its end, or one directory's page after the other. What the server tells of each
//! file is asked for with HEAD, some at a time.

use std::collections::VecDeque;

use futures::stream::{self, BoxStream, FuturesUnordered};
use futures::{StreamExt, TryStreamExt};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use tokio::time::Instant;
use url::Url;
use weir_core::{BLOCK_SIZE, LeftOut};

use super::index::{self, Entry};
use super::secret_header::OfRequest;
use super::version::Version;
use super::window::Window;
use super::{MAX_REDIRECTS, WebOrigin, autoindex, redirect};
use crate::error::OriginError;
use crate::origin::Listed;
use crate::transport::failure::HttpError;
use crate::transport::head::text;
use crate::transport::patience::Patience;
use crate::transport::refusal::Refusal;
use crate::transport::time;

/// Longest index, and longest page of a directory, in bytes.
const MAX_INDEX: usize = 512 << 20;
const MAX_PAGE: usize = 64 << 20;
/// Files of one page of the listing.
const PAGE: usize = 1000;
/// Directories whose pages are asked for at a time, each of which may be long.
const DIRS_AT_ONCE: usize = 8;
/// Directories inside each other: links of the server's files may lead in a circle.
const MAX_DEPTH: usize = 64;

/// The files below a directory, page by page. The first error is the last item.
pub(super) fn pages(
    origin: &WebOrigin,
    dir: String,
) -> BoxStream<'_, Result<Vec<Listed>, OriginError>> {
    let mut crawl = Crawl {
        origin,
        root: dir.clone(),
        dirs: Vec::new(),
        files: VecDeque::new(),
        index: None,
        window: Window::new(),
    };
    match &origin.place.index {
        Some(index) => crawl.index = Some(index.clone()),
        None => crawl.dirs.push(dir),
    }
    stream::try_unfold(crawl, |mut crawl| async move {
        Ok(crawl.next().await?.map(|page| (page, crawl)))
    })
    .boxed()
}

/// A listing under way.
struct Crawl<'a> {
    origin: &'a WebOrigin,
    root: String,
    /// Directories whose pages are still to be asked for.
    dirs: Vec<String>,
    /// Files that are still to be asked about.
    files: VecDeque<Entry>,
    /// The index that is still to be read.
    index: Option<String>,
    /// How many files are asked about at a time.
    window: Window,
}

/// What a directory's page names.
#[derive(Default)]
struct Opened {
    files: Vec<Entry>,
    dirs: Vec<String>,
    left_out: Vec<Listed>,
}

impl Crawl<'_> {
    async fn next(&mut self) -> Result<Option<Vec<Listed>>, OriginError> {
        if let Some(index) = self.index.take() {
            self.files = self.read_index(&index).await?.into();
        }
        let mut page = Vec::new();
        while self.files.len() < PAGE && !self.dirs.is_empty() {
            let some = self.window.size().min(DIRS_AT_ONCE).min(self.dirs.len());
            let dirs = self.dirs.split_off(self.dirs.len() - some);
            let this = &*self;
            let opened: Vec<Opened> = stream::iter(dirs)
                .map(move |dir| async move { this.open(&dir).await })
                .buffered(DIRS_AT_ONCE)
                .try_collect()
                .await?;
            for opened in opened {
                self.files.extend(opened.files);
                self.dirs.extend(opened.dirs);
                page.extend(opened.left_out);
            }
        }
        if self.files.is_empty() && page.is_empty() {
            return Ok(None);
        }
        let some = self.files.len().min(PAGE);
        let mut files = self.files.drain(..some);
        let origin = self.origin;
        let mut asked = FuturesUnordered::new();
        loop {
            while asked.len() < self.window.size()
                && let Some(file) = files.next()
            {
                let since = Instant::now();
                asked.push(async move { (since, ask(origin, file).await) });
            }
            let Some((since, listed)) = asked.next().await else {
                break;
            };
            self.window.answered(since, Instant::now());
            page.push(listed?);
        }
        drop(files);
        Ok(Some(page))
    }

    async fn read_index(&self, index: &str) -> Result<Vec<Entry>, OriginError> {
        let key = format!("{}{index}", self.root);
        let page = self.page(&key, MAX_INDEX).await?;
        let (document, _) = page.ok_or_else(|| OriginError::Unsupported {
            target: self.origin.service.object_url(&key),
            problem: "there is no such index; check ?index=".to_owned(),
        })?;
        index::parse(&document, &self.origin.place, &self.root).map_err(|problem| {
            OriginError::Unsupported {
                target: self.origin.service.object_url(&key),
                problem: format!("the index is of no use: {problem}"),
            }
        })
    }

    /// What a directory's page names.
    async fn open(&self, dir: &str) -> Result<Opened, OriginError> {
        let mut opened = Opened::default();
        let target = self.origin.service.object_url(dir);
        let is_root = dir == self.root;
        let Some((document, content_type)) = self.page(dir, MAX_PAGE).await? else {
            if is_root {
                return Err(OriginError::BucketMissing { origin: target });
            }
            // It was removed since its parent was listed.
            return Ok(opened);
        };
        let address = self.origin.address(dir)?.to_string();
        let wrong = |problem: String| OriginError::Unsupported {
            target: target.clone(),
            problem: format!(
                "{problem}; switch the listing of directories on at the server (Options +Indexes, autoindex on), remove index.html, or name a list of the files: {}/{}?index=FILE",
                self.origin.service.name(),
                self.root,
            ),
        };
        let base = Url::parse(&address).map_err(|error| wrong(error.to_string()))?;
        let children = autoindex::parse(&document, &content_type, &base).map_err(wrong)?;
        let depth = dir[self.root.len()..].matches('/').count();
        for child in children {
            let Ok(name) = String::from_utf8(child.name.clone()) else {
                let key = [dir.as_bytes(), &child.name].concat();
                opened
                    .left_out
                    .push(Listed::left_out(key, LeftOut::NotUtf8));
                continue;
            };
            let key = format!("{dir}{name}");
            if !child.is_directory {
                opened.files.push(Entry {
                    key,
                    size: None,
                    digest: None,
                });
            } else if depth >= MAX_DEPTH {
                opened
                    .left_out
                    .push(Listed::left_out(key.into_bytes(), LeftOut::TooDeep));
            } else {
                opened.dirs.push(key + "/");
            }
        }
        Ok(opened)
    }

    /// The document at a path and its type; `None` if there is none.
    async fn page(&self, key: &str, most: usize) -> Result<Option<(Vec<u8>, String)>, OriginError> {
        let service = &self.origin.service;
        let target = service.object_url(key);
        let mut patience = Patience::new(&self.origin.policy, &target, service.contact());
        loop {
            match patience.ask(self.ask_for_page(key, most)).await {
                Ok(page) => return Ok(page),
                Err(error) => patience.pause(error).await?,
            }
        }
    }

    async fn ask_for_page(
        &self,
        key: &str,
        most: usize,
    ) -> Result<Option<(Vec<u8>, String)>, OriginError> {
        let service = &self.origin.service;
        let mut headers = HeaderMap::new();
        headers.insert(
            header::ACCEPT_ENCODING,
            HeaderValue::from_static("identity"),
        );
        let kinds = HeaderValue::from_static("text/html, application/json;q=0.9, */*;q=0.5");
        headers.insert(header::ACCEPT, kinds);
        let mut address = self.origin.address(key)?;
        let mut redirects = 0;
        let mut secret = OfRequest::new(self.origin.secret.as_ref());
        loop {
            let headers = secret.add(&address, &headers).await?;
            let asked = service.send(&Method::GET, &address, headers, None);
            let answer = asked.await?;
            if answer.status.is_success() {
                let kind = text(&answer.headers, header::CONTENT_TYPE.as_str());
                let kind = kind.unwrap_or_default().to_owned();
                let document = answer.document(most).await;
                let document = document.map_err(|error| match error {
                    HttpError::TooLong(most) => OriginError::Unsupported {
                        target: service.object_url(key),
                        problem: format!("it is longer than {most} bytes"),
                    },
                    error => service.explain(error, Some(key)),
                })?;
                return Ok(Some((document, kind)));
            }
            let refusal = Refusal::read(answer).await;
            if matches!(refusal.status, StatusCode::NOT_FOUND | StatusCode::GONE) {
                return Ok(None);
            }
            // What a page links to is read relative to its address, so it must be of this server.
            let next = redirect::follow(&address, &refusal);
            let next = next.filter(|next| is_same(&address, next));
            match next {
                Some(next) if redirects < MAX_REDIRECTS => {
                    redirects += 1;
                    address = next;
                }
                _ if secret.renew(refusal.status).await? => {}
                _ => return Err(self.origin.refused(&refusal, Some(key))),
            }
        }
    }
}

fn is_same(from: &Uri, to: &Uri) -> bool {
    from.authority() == to.authority() && from.scheme() == to.scheme()
}

/// The file of an index or a page, with what its server tells of it.
async fn ask(origin: &WebOrigin, file: Entry) -> Result<Listed, OriginError> {
    let Entry { key, size, digest } = file;
    if let (Some(size), Some(digest)) = (size, digest)
        && size <= BLOCK_SIZE
    {
        // It is read as a whole, and its digest shows whether it is this.
        return Ok(Listed {
            key: key.into_bytes(),
            size,
            mtime_ns: 0,
            version: Version::of_digest(digest).to_string(),
            hindrance: None,
        });
    }
    let target = origin.service.object_url(&key);
    let mut patience = Patience::new(&origin.policy, &target, origin.service.contact());
    let (headers, length) = loop {
        match patience.ask(head(origin, &key)).await {
            Ok(told) => break told,
            // A link of the server's files leads nowhere, or the file was removed meanwhile.
            Err(OriginError::Changed { .. }) if origin.place.index.is_none() => {
                return Ok(Listed::left_out(key.into_bytes(), LeftOut::LinkBroken));
            }
            Err(OriginError::Changed { .. }) => {
                // Whoever writes an index by hand easily takes blanks for tabs.
                let tabs = if key.contains(' ') {
                    " (with tabs, not blanks, between a path, its size and its digest)"
                } else {
                    ""
                };
                return Err(OriginError::Unsupported {
                    target: target.clone(),
                    problem: format!(
                        "the index names it, and there is no such file; make the index anew{tabs}"
                    ),
                });
            }
            Err(error) => patience.pause(error).await?,
        }
    };
    if let Some(size) = size.filter(|size| *size != length) {
        return Err(OriginError::Unsupported {
            target: target.clone(),
            problem: format!(
                "the index says that it has {size} bytes, and its server {length}; make the index anew"
            ),
        });
    }
    let modified = text(&headers, header::LAST_MODIFIED.as_str()).and_then(time::parse);
    Ok(Listed {
        key: key.into_bytes(),
        size: length,
        mtime_ns: modified.unwrap_or(0),
        version: Version::of(&headers, digest).to_string(),
        hindrance: None,
    })
}

/// What the server tells of a file, and its length.
async fn head(origin: &WebOrigin, key: &str) -> Result<(HeaderMap, u64), OriginError> {
    let answer = match origin.ask(&Method::HEAD, key, HeaderMap::new()).await {
        Err(OriginError::Refused { .. }) => None, // it may not know HEAD
        asked => Some(asked?),
    };
    if let Some(answer) = answer {
        let headers = answer.headers.clone();
        // It has no body; the connection is free again.
        let _ = answer.document(0).await;
        let length = text(&headers, header::CONTENT_LENGTH.as_str());
        if let Some(length) = length.and_then(|length| length.parse().ok()) {
            return Ok((headers, length));
        }
    }
    let mut first = HeaderMap::new();
    first.insert(header::RANGE, HeaderValue::from_static("bytes=0-0"));
    let answer = origin.ask(&Method::GET, key, first).await?;
    let length = match answer.status {
        StatusCode::PARTIAL_CONTENT => text(&answer.headers, header::CONTENT_RANGE.as_str())
            .and_then(|range| range.rsplit_once('/'))
            .and_then(|(_, total)| total.parse().ok()),
        _ => text(&answer.headers, header::CONTENT_LENGTH.as_str())
            .and_then(|length| length.parse().ok()),
    };
    let length = length.ok_or_else(|| OriginError::Unsupported {
        target: origin.service.object_url(key),
        problem: "its server does not tell its length; serve it as a file, not as the output of a program".to_owned(),
    })?;
    Ok((answer.headers.clone(), length))
}
