//! The listing of a directory and all below it, in pages of the NameNode.
//!
//! Several directories are listed at a time, the deepest first, and a directory with more pages waits with its next page:
//! what waits is a thousand directories for each level at most, however many files there are. A page that fails is asked
//! for again while the source's patience lasts; until the cluster has answered once, no longer than somebody waits at the
//! command line.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, FuturesUnordered};
use hdfs_native::client::{EntryKind, ListedEntry};
use weir_core::keypath::LeftOut;

use super::calls::{Calls, Missing};
use super::version;
use crate::error::OriginError;
use crate::origin::Listed;
use crate::policy::FetchPolicy;
use crate::transport::patience::Patience;

/// Pages that are asked for at once: a NameNode answers thousands a second, and has other clients.
const AT_ONCE: usize = 8;
/// Files that were changed in this time are asked about once more, to see whether they are being written. Writers that
/// keep a file open for longer are rare.
const RECENT_MS: u64 = 24 * 60 * 60 * 1000;
/// Deepest directory that is walked into; HDFS has no deeper ones by default (`dfs.namenode.fs-limits.max-component-length`
/// and 8,000 bytes of path), a lying server might.
const MAX_DEPTH: usize = 1024;

type Page = Result<Vec<Listed>, OriginError>;

/// The files whose keys start with `prefix`, which is empty or ends in a slash.
pub(super) fn pages(
    calls: Arc<Calls>,
    prefix: &str,
    policy: FetchPolicy,
) -> BoxStream<'static, Page> {
    let root = Turn {
        directory: format!("/{prefix}"),
        after: Vec::new(),
        depth: 0,
    };
    let walk = Walk {
        calls,
        policy: Arc::new(policy),
        waiting: vec![root],
        running: FuturesUnordered::new(),
    };
    stream::try_unfold(walk, |mut walk| async move {
        Ok(walk.next().await?.map(|page| (page, walk)))
    })
    .boxed()
}

/// A page to be asked for.
struct Turn {
    /// Starts and ends with a slash.
    directory: String,
    /// The last name of the page before.
    after: Vec<u8>,
    depth: usize,
}

/// A page that came; `None` for a directory that went away meanwhile.
type Answer = (Turn, Option<(Vec<ListedEntry>, bool)>);

struct Walk {
    calls: Arc<Calls>,
    policy: Arc<FetchPolicy>,
    /// The next one last.
    waiting: Vec<Turn>,
    running: FuturesUnordered<BoxFuture<'static, Result<Answer, OriginError>>>,
}

impl Walk {
    async fn next(&mut self) -> Result<Option<Vec<Listed>>, OriginError> {
        loop {
            while self.running.len() < AT_ONCE
                && let Some(turn) = self.waiting.pop()
            {
                let (calls, policy) = (self.calls.clone(), self.policy.clone());
                self.running.push(Box::pin(ask(calls, policy, turn)));
            }
            let Some(answer) = self.running.next().await else {
                return Ok(None);
            };
            let (turn, Some((entries, has_more))) = answer? else {
                continue;
            };
            let listed = self.take(turn, entries, has_more)?;
            if !listed.is_empty() {
                return Ok(Some(listed));
            }
        }
    }

    /// Makes a page of a directory's entries, and has its directories and its next page wait.
    fn take(
        &mut self,
        turn: Turn,
        entries: Vec<ListedEntry>,
        has_more: bool,
    ) -> Result<Vec<Listed>, OriginError> {
        let mut listed = Vec::with_capacity(entries.len());
        let mut directories = VecDeque::new();
        let last = entries.last().map(|entry| entry.name.clone());
        for entry in entries {
            let mut key = turn.directory.as_bytes()[1..].to_vec();
            key.extend_from_slice(&entry.name);
            match entry.kind {
                EntryKind::File if entry.name.is_empty() => {
                    return Err(OriginError::config(
                        self.calls.target(turn.directory.trim_end_matches('/')),
                        "it is a file",
                        "name the directory that holds it",
                    ));
                }
                EntryKind::File if entry.under_construction == Some(true) => {
                    listed.push(Listed::left_out(key, LeftOut::BeingWritten));
                }
                EntryKind::File => listed.push(Listed {
                    key,
                    size: entry.length,
                    mtime_ns: (entry.modification_time as i64).saturating_mul(1_000_000),
                    version: version(&entry),
                    hindrance: None,
                }),
                EntryKind::Symlink => listed.push(Listed::left_out(key, LeftOut::SpecialFile)),
                EntryKind::Directory => match String::from_utf8(entry.name) {
                    Ok(name) if turn.depth < MAX_DEPTH && !name.is_empty() => {
                        directories.push_front(Turn {
                            directory: format!("{}{name}/", turn.directory),
                            after: Vec::new(),
                            depth: turn.depth + 1,
                        });
                    }
                    Ok(_) => listed.push(Listed::left_out(key, LeftOut::TooDeep)),
                    Err(_) => listed.push(Listed::left_out(key, LeftOut::NotUtf8)),
                },
            }
        }
        if has_more {
            let Some(last) = last.filter(|last| *last > turn.after) else {
                return Err(OriginError::Unsupported {
                    target: self.calls.target(&turn.directory),
                    problem: "its listing does not go on, so that not all files may be in it; report this to whoever runs the cluster".to_owned(),
                });
            };
            let after = last;
            self.waiting.push(Turn { after, ..turn });
        }
        self.waiting.extend(directories);
        Ok(listed)
    }
}

/// Asks for a page until it comes, or patience ends.
async fn ask(
    calls: Arc<Calls>,
    policy: Arc<FetchPolicy>,
    turn: Turn,
) -> Result<Answer, OriginError> {
    let target = calls.target(turn.directory.trim_end_matches('/'));
    let mut patience = Patience::new(&policy, &target, &calls.contact);
    loop {
        match page(&calls, &turn).await {
            Ok(page) => return Ok((turn, Some(page))),
            Err(Missing::Path) if turn.depth > 0 => return Ok((turn, None)),
            Err(Missing::Path) => {
                let origin = target.clone();
                return Err(OriginError::BucketMissing { origin });
            }
            Err(Missing::Error(error)) => patience.pause(error).await?,
        }
    }
}

/// A page in which is known who is being written.
async fn page(calls: &Calls, turn: &Turn) -> Result<(Vec<ListedEntry>, bool), Missing> {
    let path = match turn.directory.trim_end_matches('/') {
        "" => "/",
        path => path,
    };
    let (mut entries, has_more) = calls.list_page(path, &turn.after, false).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_ms = now.map_or(0, |now| now.as_millis() as u64);
    let may_be_written = |entry: &ListedEntry| may_be_written(entry, now_ms);
    if !entries.iter().any(may_be_written) {
        return Ok((entries, has_more));
    }
    // The same names once more, with their blocks: such pages are shorter.
    let mut after = turn.after.clone();
    let mut at = 0;
    while let Some(next) = entries[at..].iter().position(may_be_written) {
        at += next;
        if at > 0 && entries[at - 1].name > after {
            after.clone_from(&entries[at - 1].name);
        }
        let (known, _) = calls.list_page(path, &after, true).await?;
        let last = known.last().map(|entry| entry.name.clone());
        let Some(last) = last.filter(|last| *last > after) else {
            break; // they are gone
        };
        after.clone_from(&last);
        let mut known = known.into_iter().peekable();
        while at < entries.len() && entries[at].name <= last {
            let entry = &mut entries[at];
            while known.next_if(|known| known.name < entry.name).is_some() {}
            match known.next_if(|known| known.name == entry.name) {
                Some(known) => *entry = known,
                // It is gone; reading it will say so.
                None => entry.under_construction = Some(false),
            }
            at += 1;
        }
    }
    Ok((entries, has_more))
}

/// Whether a file may be one that has never been closed: its time is that of its creation then, and its length that of
/// what has come so far. Older ones are asked about if they have whole blocks only, or nothing. What slips through is
/// found when it is read.
fn may_be_written(entry: &ListedEntry, now_ms: u64) -> bool {
    entry.kind == EntryKind::File
        && entry.under_construction.is_none()
        && (entry.modification_time.saturating_add(RECENT_MS) > now_ms
            || entry.blocksize == 0
            || entry.length.is_multiple_of(entry.blocksize))
}
