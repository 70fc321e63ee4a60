//! What holds for every object store and web server, with each of them behind a proxy that breaks answers on demand.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use weir_tests::{Lab, Mount, content, wait_until};

use crate::Case;

mod kinds;
mod proxy;
mod under_test;

use kinds::{Azurite, FakeGcs, Nginx, Python, S3Service};
use proxy::{Fault, Proxy};
use under_test::UnderTest;

/// The cases of one kind of store.
const fn cases<T: UnderTest>() -> [Case; 7] {
    [
        (
            "files_of_every_name_and_length_are_listed_and_read",
            files_of_every_name_and_length_are_listed_and_read::<T>,
        ),
        (
            "ranges_are_read_by_many_at_once",
            ranges_are_read_by_many_at_once::<T>,
        ),
        (
            "thousands_of_files_are_listed",
            thousands_of_files_are_listed::<T>,
        ),
        (
            "changed_and_deleted_files_are_stale_and_never_mixed",
            changed_and_deleted_files_are_stale_and_never_mixed::<T>,
        ),
        (
            "broken_answers_cost_no_byte",
            broken_answers_cost_no_byte::<T>,
        ),
        (
            "a_store_that_wants_to_be_left_alone_is",
            a_store_that_wants_to_be_left_alone_is::<T>,
        ),
        (
            "mistakes_have_one_clear_error_each",
            mistakes_have_one_clear_error_each::<T>,
        ),
    ]
}

pub(crate) const S3: &[Case] = &cases::<S3Service>();
pub(crate) const GCS: &[Case] = &cases::<FakeGcs>();
pub(crate) const AZURE: &[Case] = &cases::<Azurite>();
pub(crate) const PYTHON: &[Case] = &cases::<Python>();
pub(crate) const NGINX: &[Case] = &cases::<Nginx>();
pub(crate) const OTHERS: &[Case] = &[
    (
        "what_is_stored_compressed_is_read_as_it_is_stored",
        what_is_stored_compressed_is_read_as_it_is_stored,
    ),
    (
        "a_shared_access_signature_admits_a_reader_and_is_not_shown",
        a_shared_access_signature_admits_a_reader_and_is_not_shown,
    ),
    (
        "an_index_names_the_files_of_a_web_server",
        an_index_names_the_files_of_a_web_server,
    ),
];

const ESTALE: i32 = 116;
/// Longest time for an error that does not pass.
const AT_ONCE: Duration = Duration::from_secs(4);

/// A store with files, behind a proxy.
struct World<T> {
    store: T,
    proxy: Proxy,
    lab: Lab,
    files: BTreeMap<String, Vec<u8>>,
}

impl<T: UnderTest> World<T> {
    fn with(files: BTreeMap<String, Vec<u8>>) -> Self {
        let store = T::start();
        for (key, content) in &files {
            store.put(key, content);
        }
        let mut lab = Lab::new();
        for name in [
            "GOOGLE_APPLICATION_CREDENTIALS",
            "AZURE_STORAGE_ACCOUNT_NAME",
        ] {
            lab.set_env(name, "");
        }
        Self {
            proxy: Proxy::start(store.address()),
            store,
            lab,
            files,
        }
    }

    fn mount(&self) -> Mount<'_> {
        let flags = self.store.flags(self.proxy.address);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let flags = [&flags[..], &["--read-ahead", "off", "--refresh"]].concat();
        let url = self.store.url(self.proxy.address);
        self.lab.mount_at(&url, "mnt", &flags)
    }
}

fn some_files(count: u64) -> BTreeMap<String, Vec<u8>> {
    (0..count)
        .map(|n| {
            (
                format!("d{n}/f{n:03}"),
                content(n, 10_000 + 1000 * n as usize),
            )
        })
        .chain([("large".to_owned(), content(999, (9 << 20) + 5))])
        .collect()
}

#[track_caller]
fn check_all(mount: &Mount<'_>, files: &BTreeMap<String, Vec<u8>>) {
    let names: Vec<_> = files.iter().collect();
    std::thread::scope(|scope| {
        for part in names.chunks(names.len().div_ceil(4)) {
            scope.spawn(move || {
                for (name, content) in part {
                    assert!(mount.read(name) == **content, "{name}");
                }
            });
        }
    });
}

fn files_of_every_name_and_length_are_listed_and_read<T: UnderTest>() {
    let mut files = BTreeMap::new();
    for (number, name) in [
        "a b",
        "plus+",
        "percent%2e",
        "100%",
        "quote'\"<&>",
        "日本語/é",
        "#hash?query=1",
        "a/..b",
        "...",
        "semi;colon=,$",
        "time 12:30:00",
        "deep/a/b/c/d/e/f",
        "~tilde",
        "back\\slash",
        "[x]{y}|^`",
    ]
    .into_iter()
    .enumerate()
    {
        files.insert(name.to_owned(), content(number as u64, 100 + number));
    }
    for (number, length) in [
        0,
        1,
        65_536,
        (4 << 20) - 1,
        4 << 20,
        (4 << 20) + 1,
        (9 << 20) + 17,
    ]
    .into_iter()
    .enumerate()
    {
        files.insert(
            format!("lengths/{length}"),
            content(100 + number as u64, length),
        );
    }
    files.retain(|key, _| T::takes(key));
    let world = World::<T>::with(files);
    let mount = world.mount();
    check_all(&mount, &world.files);
    let mut shown = Vec::new();
    let mut dirs = vec![mount.dir.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                let name = path.strip_prefix(&mount.dir).unwrap();
                shown.push(name.to_str().unwrap().to_owned());
            }
        }
    }
    shown.sort();
    let expected: Vec<&String> = world.files.keys().collect();
    assert_eq!(shown.iter().collect::<Vec<_>>(), expected);
}

fn ranges_are_read_by_many_at_once<T: UnderTest>() {
    let world = World::<T>::with(some_files(1));
    let mount = world.mount();
    let (path, bytes) = (mount.path("large"), &world.files["large"]);
    std::thread::scope(|scope| {
        for seed in 0..8 {
            let path = &path;
            scope.spawn(move || {
                let file = File::open(path).unwrap();
                let mut random = SmallRng::seed_from_u64(seed);
                for _ in 0..50 {
                    let start = random.random_range(0..bytes.len());
                    let end = (start + random.random_range(1..100_000)).min(bytes.len());
                    let mut read = vec![0; end - start];
                    file.read_exact_at(&mut read, start as u64).unwrap();
                    assert!(read == bytes[start..end], "{start}..{end}");
                }
            });
        }
    });
}

fn thousands_of_files_are_listed<T: UnderTest>() {
    // More than a page of each store's listings, but that of Azure.
    let files: BTreeMap<String, Vec<u8>> = (0..2300)
        .map(|n| (format!("many/{n:05}"), format!("{n}").into_bytes()))
        .collect();
    let world = World::<T>::with(files);
    let mount = world.mount();
    assert_eq!(std::fs::read_dir(mount.path("many")).unwrap().count(), 2300);
    for n in [0, 999, 1000, 1001, 2299] {
        let name = format!("many/{n:05}");
        assert_eq!(mount.read(&name), world.files[&name], "{name}");
    }
}

fn changed_and_deleted_files_are_stale_and_never_mixed<T: UnderTest>() {
    let world = World::<T>::with(some_files(3));
    let mount = world.mount();
    let large = File::open(mount.path("large")).unwrap();
    let mut first = vec![0; 1000];
    large.read_exact_at(&mut first, 0).unwrap();
    assert!(first == world.files["large"][..1000]);
    if T::TELLS_SECONDS {
        let second = || {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_secs()
        };
        let now = second();
        wait_until("the next second", Duration::from_secs(5), || second() > now);
    }
    world
        .store
        .put("large", &content(7, world.files["large"].len()));
    world
        .store
        .put("d0/f000", &content(8, world.files["d0/f000"].len()));
    world.store.delete("d1/f001");
    let mut last = vec![0; 1000];
    let error = large.read_exact_at(&mut last, 9 << 20).map(drop);
    let error = error
        .err()
        .or_else(|| large.read_exact_at(&mut last, 8 << 20).err());
    assert_eq!(error.unwrap().raw_os_error(), Some(ESTALE));
    for name in ["d0/f000", "d1/f001"] {
        let error = std::fs::read(mount.path(name)).unwrap_err();
        assert_eq!(
            error.raw_os_error(),
            Some(ESTALE),
            "{name}: {}",
            mount.log()
        );
    }
    // What was not changed is still read.
    assert_eq!(mount.read("d2/f002"), world.files["d2/f002"]);
    drop(large);
    drop(mount);
    let mount = world.mount();
    assert!(mount.read("large") == content(7, world.files["large"].len()));
    assert!(!mount.path("d1/f001").exists());
}

fn broken_answers_cost_no_byte<T: UnderTest>() {
    for fault in [
        Fault::Status("503 Service Unavailable", ""),
        Fault::Reset,
        Fault::Cut(0),
        Fault::Cut(5000),
        Fault::Stall(4000, Duration::from_millis(1500)),
    ] {
        let world = World::<T>::with(some_files(20));
        // Listings, too.
        world.proxy.set(fault, 3);
        let mount = world.mount();
        check_all(&mount, &world.files);
        assert!(world.proxy.happened() > 2, "{fault:?} did not happen");
    }
}

fn a_store_that_wants_to_be_left_alone_is<T: UnderTest>() {
    let world = World::<T>::with(some_files(1));
    let mount = world.mount();
    world.proxy.set_once(Fault::Status(
        "503 Service Unavailable",
        "Retry-After: 2\r\n",
    ));
    let before = world.proxy.requests();
    let begun = Instant::now();
    assert_eq!(mount.read("d0/f000"), world.files["d0/f000"]);
    assert_eq!(world.proxy.happened(), 1);
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(2), "asked again after {took:?}");
    assert_eq!(world.proxy.requests() - before, 2);
}

fn mistakes_have_one_clear_error_each<T: UnderTest>() {
    let world = World::<T>::with(some_files(1));
    let at = world.proxy.address;
    let dir = world.lab.path("mnt");
    let refused = |url: &str, flags: &[String]| {
        let begun = Instant::now();
        let flags = flags.iter().map(String::as_str);
        let args = ["mount", url, dir.to_str().unwrap()]
            .into_iter()
            .chain(flags);
        let outcome = world.lab.weir(args);
        assert_ne!(outcome.code, 0, "{url} is mounted");
        let took = begun.elapsed();
        assert!(took < AT_ONCE, "told after {took:?}: {}", outcome.stderr);
        assert!(outcome.stderr.lines().count() <= 5, "{}", outcome.stderr);
        outcome.stderr
    };
    for (url, flags, said) in world.store.mistakes(at) {
        let told = refused(&url, &flags);
        assert!(told.contains(said), "{said:?} is not in {told}");
    }
    let url = world.store.url(at);
    let (scheme, rest) = url.split_once("://").unwrap();
    let told = refused(&format!("x{scheme}x://{rest}"), &[]);
    assert!(told.contains("not supported"), "{told}");
}

fn what_is_stored_compressed_is_read_as_it_is_stored() {
    let world = World::<FakeGcs>::with(some_files(1));
    // gzip -n of "hello hello hello hello\n".
    let packed = [
        0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0xcb, 0x48, 0xcd, 0xc9, 0xc9, 0x57, 0xc8, 0x40, 0x27,
        0xb9, 0x00, 0x00, 0x88, 0x59, 0x0b, 0x18, 0x00, 0x00, 0x00,
    ];
    world.store.put_compressed("packed.gz", &packed);
    let mount = world.mount();
    assert_eq!(mount.read("packed.gz"), packed);
    check_all(&mount, &world.files);
}

fn a_shared_access_signature_admits_a_reader_and_is_not_shown() {
    let mut world = World::<Azurite>::with(some_files(3));
    let (name, signature) = Azurite::TO_READ;
    world.lab.set_env(name, signature);
    let mount = world.mount();
    check_all(&mount, &world.files);
    world.store.delete("d0/f000");
    let secret = signature.split("sig=").nth(1).unwrap();
    assert!(!mount.log().contains(secret), "{}", mount.log());
    drop(mount);
    let wrong = signature.replace("sig=", "sig=0");
    world.lab.set_env(name, &wrong);
    let at = world.proxy.address;
    let flags = world.store.flags(at);
    let dir = world.lab.path("other");
    let args = ["mount", "az://bucket/", dir.to_str().unwrap(), "--refresh"].into_iter();
    let told = world.lab.weir(args.chain(flags.iter().map(String::as_str)));
    assert_ne!(told.code, 0);
    assert!(told.stderr.contains("access denied"), "{}", told.stderr);
    assert!(!told.stderr.contains(secret), "{}", told.stderr);
}

fn an_index_names_the_files_of_a_web_server() {
    let world = World::<Python>::with(some_files(3));
    let at = world.proxy.address;
    let sum = |text: &[u8]| {
        let path = world.lab.path("sum");
        std::fs::write(&path, text).unwrap();
        let mut command = std::process::Command::new("sha256sum");
        command.arg(&path);
        let printed = world.lab.run(command).ok();
        printed.split(' ').next().unwrap().to_owned()
    };
    let small = &world.files["d0/f000"];
    let index = format!(
        "# path, size, digest\nd0/f000\t{}\tsha256:{}\nd1/f001\n{{\"path\":\"large\",\"size\":{}}}\nd2/f002\t{}\tsha256:{}\n",
        small.len(),
        sum(small),
        world.files["large"].len(),
        world.files["d2/f002"].len(),
        sum(b"something else"),
    );
    world.store.put("list.txt", index.as_bytes());
    let url = format!("http://{at}/?index=list.txt");
    let mount = world.lab.mount_at(&url, "mnt", &["--read-ahead", "off"]);
    for name in ["d0/f000", "d1/f001", "large"] {
        assert!(mount.read(name) == world.files[name], "{name}");
    }
    assert!(!mount.path("list.txt").exists());
    // A file that is not what its digest says is never shown.
    let error = std::fs::read(mount.path("d2/f002")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{}", mount.log());
    assert!(mount.log().contains("checksum"), "{}", mount.log());
}
