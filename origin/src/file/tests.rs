use std::collections::BTreeMap;
use std::os::unix::fs::symlink;

use futures::TryStreamExt;
use rustix::fs::Mode;
use tempfile::TempDir;
use weir_core::keypath::LeftOut;

use super::*;
use crate::origin::Hindrance;
use crate::spec::OriginSpec;

async fn open(dir: &TempDir) -> Arc<dyn Origin> {
    let spec = OriginSpec::parse(&format!("file://{}", dir.path().display())).unwrap();
    crate::opening::open(&spec, &SourcePolicy::unlimited())
        .await
        .unwrap()
}

async fn list(origin: &dyn Origin, prefix: &str) -> BTreeMap<Vec<u8>, Listed> {
    let pages: Vec<Vec<Listed>> = origin.list(prefix).try_collect().await.unwrap();
    let listed: Vec<Listed> = pages.into_iter().flatten().collect();
    let by_key: BTreeMap<_, _> = listed.iter().map(|l| (l.key.clone(), l.clone())).collect();
    assert_eq!(by_key.len(), listed.len(), "a key was listed twice");
    by_key
}

async fn keys(origin: &dyn Origin, prefix: &str) -> Vec<String> {
    let listed = list(origin, prefix).await;
    listed
        .iter()
        .filter(|(_, listed)| listed.hindrance.is_none())
        .map(|(key, _)| key)
        .map(|key| String::from_utf8_lossy(key).into_owned())
        .collect()
}

async fn object(origin: &dyn Origin, key: &str) -> ObjectRef {
    let listed = &list(origin, "").await[key.as_bytes()];
    ObjectRef {
        key: key.into(),
        size: listed.size,
        version: listed.version.as_str().into(),
        modified_ns: listed.mtime_ns,
    }
}

async fn read(
    origin: &dyn Origin,
    object: &ObjectRef,
    range: Range<u64>,
) -> Result<Vec<u8>, OriginError> {
    let fetched = origin.get(object, range).await?;
    let pieces: Vec<Bytes> = fetched.body.try_collect().await?;
    Ok(pieces.concat())
}

fn write(dir: &TempDir, key: &str, content: &[u8]) {
    let path = dir.path().join(key);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

#[tokio::test]
async fn every_file_is_listed_once_with_its_size_and_raw_name() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..2500 {
        write(&dir, &format!("many/{number}"), b"");
    }
    write(&dir, "a b/ü\n", b"12345");
    std::fs::write(dir.path().join(std::ffi::OsStr::from_bytes(b"\xff")), b"1").unwrap();
    let origin = open(&dir).await;
    let listed = list(&*origin, "").await;
    assert_eq!(listed.len(), 2502);
    assert_eq!(listed["a b/ü\n".as_bytes()].size, 5);
    assert_eq!(listed[&b"\xff"[..]].size, 1);
    let modified = std::fs::metadata(dir.path().join("a b/ü\n"))
        .unwrap()
        .modified()
        .unwrap();
    let nanoseconds = modified
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_nanos();
    assert_eq!(listed["a b/ü\n".as_bytes()].mtime_ns as u128, nanoseconds);
}

#[tokio::test]
async fn a_prefix_selects_keys_and_not_just_directories() {
    let dir = tempfile::tempdir().unwrap();
    for key in ["train/a", "train/b/c", "train2/d", "tr", "x/train/e"] {
        write(&dir, key, b"1");
    }
    let origin = open(&dir).await;
    assert_eq!(keys(&*origin, "train/").await, ["train/a", "train/b/c"]);
    assert_eq!(
        keys(&*origin, "train").await,
        ["train/a", "train/b/c", "train2/d"]
    );
    assert_eq!(keys(&*origin, "train/b/c").await, ["train/b/c"]);
    assert!(keys(&*origin, "nothing/").await.is_empty());
}

#[tokio::test]
async fn links_are_followed_inside_the_directory_only_and_never_in_circles() {
    let outside = tempfile::tempdir().unwrap();
    write(&outside, "secret", b"secret");
    let dir = tempfile::tempdir().unwrap();
    write(&dir, "real/file", b"content");
    let link = |target: &Path, name: &str| symlink(target, dir.path().join(name)).unwrap();
    link(Path::new("real/file"), "to_file");
    link(&dir.path().join("real"), "to_dir");
    link(Path::new(".."), "real/up");
    link(&outside.path().join("secret"), "leak");
    link(outside.path(), "leak_dir");
    link(Path::new("gone"), "dangling");
    link(Path::new("self"), "self");
    rustix::fs::mkfifoat(rustix::fs::CWD, dir.path().join("pipe"), Mode::RUSR).unwrap();
    let origin = open(&dir).await;
    assert_eq!(
        keys(&*origin, "").await,
        ["real/file", "to_dir/file", "to_file"]
    );
    let listed = list(&*origin, "").await.into_iter();
    let left_out = listed.filter_map(|(key, listed)| match listed.hindrance? {
        Hindrance::LeftOut(reason) => Some((String::from_utf8(key).unwrap(), reason)),
        Hindrance::Archived(_) => None,
    });
    let expected = [
        ("dangling", LeftOut::LinkBroken),
        ("leak", LeftOut::LinkOutside),
        ("leak_dir", LeftOut::LinkOutside),
        ("pipe", LeftOut::SpecialFile),
        ("real/up", LeftOut::TooDeep),
        ("self", LeftOut::TooDeep),
        ("to_dir/up", LeftOut::TooDeep),
    ];
    assert_eq!(
        left_out.collect::<Vec<_>>(),
        expected.map(|(key, reason)| (key.to_owned(), reason))
    );
    for key in ["to_file", "to_dir/file"] {
        let object = object(&*origin, key).await;
        assert_eq!(read(&*origin, &object, 0..7).await.unwrap(), b"content");
    }
}

#[tokio::test]
async fn no_key_reads_a_file_outside_the_directory() {
    let outside = tempfile::tempdir().unwrap();
    write(&outside, "secret", b"secret");
    let dir = tempfile::tempdir().unwrap();
    symlink(outside.path().join("secret"), dir.path().join("leak")).unwrap();
    let stat = rustix::fs::stat(outside.path().join("secret")).unwrap();
    let origin = open(&dir).await;
    let name = outside.path().file_name().unwrap().to_str().unwrap();
    let absolute = outside.path().join("secret");
    for key in [
        "leak",
        &format!("../{name}/secret"),
        absolute.to_str().unwrap(),
        "",
        ".",
    ] {
        let object = ObjectRef {
            key: key.into(),
            size: 6,
            version: version(&stat).into(),
            modified_ns: 0,
        };
        assert!(read(&*origin, &object, 0..6).await.is_err(), "{key}");
    }
}

#[tokio::test]
async fn a_range_is_read_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..READ_SIZE * 2 + 77)
        .map(|i| (i * 31 % 251) as u8)
        .collect();
    write(&dir, "big", &content);
    let origin = open(&dir).await;
    let object = object(&*origin, "big").await;
    let size = content.len();
    for range in [0..size, 1..2, READ_SIZE - 1..READ_SIZE + 1, size - 1..size] {
        let got = read(&*origin, &object, range.start as u64..range.end as u64)
            .await
            .unwrap();
        assert!(got == content[range.clone()], "{range:?}");
    }
}

#[tokio::test]
async fn a_file_that_was_replaced_cut_or_deleted_has_changed() {
    let dir = tempfile::tempdir().unwrap();
    let changes: [(&str, fn(&Path)); 4] = [
        ("replaced", |path| {
            let new = path.with_extension("new");
            std::fs::write(&new, b"CONTENT").unwrap();
            std::fs::rename(new, path).unwrap();
        }),
        ("cut", |path| {
            File::options()
                .write(true)
                .open(path)
                .unwrap()
                .set_len(3)
                .unwrap();
        }),
        ("deleted", |path| std::fs::remove_file(path).unwrap()),
        ("a directory", |path| {
            std::fs::remove_file(path).unwrap();
            std::fs::create_dir(path).unwrap();
        }),
    ];
    let origin = open(&dir).await;
    for (name, change) in changes {
        write(&dir, name, b"content");
        let object = object(&*origin, name).await;
        change(&dir.path().join(name));
        let error = read(&*origin, &object, 0..7).await.unwrap_err();
        assert!(
            matches!(error, OriginError::Changed { .. }),
            "{name}: {error}"
        );
    }
}

#[tokio::test]
async fn a_file_that_changes_during_a_read_gives_an_error_and_not_its_last_bytes() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir, "file", &vec![1; READ_SIZE * 2]);
    let origin = open(&dir).await;
    let object = object(&*origin, "file").await;
    let mut body = origin.get(&object, 0..object.size).await.unwrap().body;
    assert_eq!(body.next().await.unwrap().unwrap().len(), READ_SIZE);
    let file = File::options()
        .write(true)
        .open(dir.path().join("file"))
        .unwrap();
    rustix::io::pwrite(&file, b"2", object.size - 1).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    let error = body.next().await.unwrap().unwrap_err();
    assert!(matches!(error, OriginError::Changed { .. }), "{error}");
}

#[tokio::test]
async fn a_missing_directory_and_a_file_in_its_place_are_clear_errors() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir, "file", b"");
    let open = async |name: &str| {
        let spec = OriginSpec::parse(&format!("file://{}/{name}", dir.path().display())).unwrap();
        crate::opening::open(&spec, &SourcePolicy::unlimited())
            .await
            .unwrap_err()
    };
    assert!(matches!(
        open("missing").await,
        OriginError::BucketMissing { .. }
    ));
    assert!(matches!(open("file").await, OriginError::Config { .. }));
}

/// A policy that allows these directories.
fn allowing(dirs: &[&Path]) -> SourcePolicy {
    let dirs = dirs
        .iter()
        .map(|dir| dir.to_str().unwrap().parse().unwrap());
    SourcePolicy::of("weir worker", dirs.collect(), Vec::new())
}

async fn open_at(dir: &Path, policy: &SourcePolicy) -> Result<Arc<dyn Origin>, OriginError> {
    let spec = OriginSpec::parse(&format!("file://{}", dir.display())).unwrap();
    crate::opening::open(&spec, policy).await
}

#[tokio::test]
async fn directories_are_read_below_allowed_ones_alone_and_the_refusal_names_the_flag() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir, "data/set/a", b"1");
    write(&dir, "database/b", b"1");
    symlink(dir.path().join("database"), dir.path().join("data/out")).unwrap();
    let policy = allowing(&[&dir.path().join("data")]);
    let origin = open_at(&dir.path().join("data/set"), &policy)
        .await
        .unwrap();
    assert_eq!(keys(&*origin, "").await, ["a"]);
    for (place, policy) in [
        ("database", &policy),
        ("data/out", &policy),
        ("none", &policy),
        ("data/set", &SourcePolicy::default()),
    ] {
        let error = open_at(&dir.path().join(place), policy).await.unwrap_err();
        assert_eq!(error.kind(), "not_allowed", "{place}: {error}");
        assert!(error.to_string().contains("--allow-file"), "{error}");
    }
    let error = open_at(Path::new("/etc"), &policy)
        .await
        .unwrap_err()
        .to_string();
    for said in ["file:///etc", "`weir worker`", "--allow-file"] {
        assert!(error.contains(said), "{error}");
    }
}

#[tokio::test]
async fn a_directory_that_becomes_a_link_to_another_after_it_was_listed_is_refused() {
    let home = tempfile::tempdir().unwrap();
    write(&home, "data/set/passwd", b"fine");
    write(&home, "secret/passwd", b"root");
    // As if they were of one version, which only the inode tells apart.
    for place in ["data/set/passwd", "secret/passwd"] {
        let file = File::options()
            .write(true)
            .open(home.path().join(place))
            .unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH)
            .unwrap();
    }
    let set = home.path().join("data/set");
    let origin = open_at(&set, &allowing(&[&home.path().join("data")]))
        .await
        .unwrap();
    let listed = object(&*origin, "passwd").await;
    std::fs::rename(&set, home.path().join("data/kept")).unwrap();
    symlink(home.path().join("secret"), &set).unwrap();
    let stat = rustix::fs::stat(home.path().join("secret/passwd")).unwrap();
    let secret = ObjectRef {
        version: version(&stat).into(),
        ..listed.clone()
    };
    for object in [&listed, &secret] {
        let error = read(&*origin, object, 0..4).await.unwrap_err();
        assert_eq!(error.kind(), "not_allowed", "{error}");
    }
    let pages: Result<Vec<Vec<Listed>>, _> = origin.list("").try_collect().await;
    assert_eq!(pages.unwrap_err().kind(), "not_allowed");
    // It is read again as soon as it is what it was.
    std::fs::remove_file(&set).unwrap();
    std::fs::rename(home.path().join("data/kept"), &set).unwrap();
    assert_eq!(read(&*origin, &listed, 0..4).await.unwrap(), b"fine");
    // A file that is replaced by a link out.
    std::fs::remove_file(set.join("passwd")).unwrap();
    symlink(home.path().join("secret/passwd"), set.join("passwd")).unwrap();
    let error = read(&*origin, &secret, 0..4).await.unwrap_err();
    assert_eq!(error.kind(), "changed", "{error}");
}

#[tokio::test]
async fn hostile_keys_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir, "a", b"content");
    let origin = open(&dir).await;
    let listed = object(&*origin, "a").await;
    let (deep, long) = ("x/".repeat(5000), "x".repeat(70_000));
    for key in [
        "", ".", "..", "../a", "/a", "/", "a/..", "./../a", "a\0b", "a\0", &deep, &long,
    ] {
        let object = ObjectRef {
            key: key.into(),
            ..listed.clone()
        };
        let error = read(&*origin, &object, 0..7).await.unwrap_err();
        assert!(!error.is_retryable(), "{error}");
    }
}
