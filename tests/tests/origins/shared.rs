//! What holds for every kind of origin, through the same cases: those that speak HTTP with each of them behind a proxy that
//! breaks answers on demand.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use weir_tests::{Lab, Mount, content, is_mountpoint, wait_until};

use crate::Case;

mod proxy;
mod under_test;

use proxy::{Fault, Proxy};
pub(crate) use under_test::{Mistake, UnderTest};

/// The cases of every kind of origin.
pub(crate) const fn cases<T: UnderTest>() -> [Case; 5] {
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
            "mistakes_have_one_clear_error_each",
            mistakes_have_one_clear_error_each::<T>,
        ),
    ]
}

/// The cases of those that speak HTTP, too.
pub(crate) const fn http_cases<T: UnderTest>() -> [Case; 2] {
    [
        (
            "broken_answers_cost_no_byte",
            broken_answers_cost_no_byte::<T>,
        ),
        (
            "a_store_that_wants_to_be_left_alone_is",
            a_store_that_wants_to_be_left_alone_is::<T>,
        ),
    ]
}

const ESTALE: i32 = 116;
/// Longest time for an error that does not pass; one that is taken to pass is waited for 30 s.
const AT_ONCE: Duration = Duration::from_secs(10);

/// A store with files, behind a proxy if it speaks HTTP.
pub(crate) struct World<T> {
    pub(crate) store: T,
    proxy: Option<Proxy>,
    pub(crate) lab: Lab,
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

impl<T: UnderTest> World<T> {
    pub(crate) fn with(files: BTreeMap<String, Vec<u8>>) -> Self {
        let store = T::start();
        store.put_all(&files);
        let mut world = Self {
            proxy: store.address().map(Proxy::start),
            store,
            lab: Lab::new(),
            files,
        };
        for name in [
            "GOOGLE_APPLICATION_CREDENTIALS",
            "AZURE_STORAGE_ACCOUNT_NAME",
        ] {
            world.lab.set_env(name, "");
        }
        for (name, value) in world.store.environment(world.at()) {
            world.lab.set_env(name, &value);
        }
        world
    }

    /// Where the store is reached, if it speaks HTTP.
    pub(crate) fn at(&self) -> SocketAddr {
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        self.proxy.as_ref().map_or(nowhere, |proxy| proxy.address)
    }

    fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().unwrap()
    }

    pub(crate) fn mount(&self) -> Mount<'_> {
        let flags = self.store.flags(self.at());
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let flags = [&flags[..], &["--read-ahead", "off", "--refresh"]].concat();
        let url = self.store.url(self.at());
        self.lab.mount_at(&url, "mnt", &flags)
    }
}

pub(crate) fn some_files(count: u64) -> BTreeMap<String, Vec<u8>> {
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
pub(crate) fn check_all(mount: &Mount<'_>, files: &BTreeMap<String, Vec<u8>>) {
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
        "-dash",
        ".hidden/.file",
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
    let files: BTreeMap<String, Vec<u8>> = (0..T::MANY)
        .map(|n| (format!("many/{n:05}"), format!("{n}").into_bytes()))
        .collect();
    let world = World::<T>::with(files);
    let mount = world.mount();
    let shown = std::fs::read_dir(mount.path("many")).unwrap();
    assert_eq!(shown.count(), T::MANY);
    for n in [0, 999, 1000, 1001, T::MANY - 1] {
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
    let read = Instant::now();
    wait_until("a change would be seen", T::BLIND_FOR * 2, || {
        read.elapsed() >= T::BLIND_FOR
    });
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
        world.proxy().set(fault, 3);
        let mount = world.mount();
        check_all(&mount, &world.files);
        assert!(world.proxy().happened() > 2, "{fault:?} did not happen");
    }
}

fn a_store_that_wants_to_be_left_alone_is<T: UnderTest>() {
    let world = World::<T>::with(some_files(1));
    let mount = world.mount();
    world.proxy().set_once(Fault::Status(
        "503 Service Unavailable",
        "Retry-After: 2\r\n",
    ));
    let before = world.proxy().requests();
    let begun = Instant::now();
    assert_eq!(mount.read("d0/f000"), world.files["d0/f000"]);
    assert_eq!(world.proxy().happened(), 1);
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(2), "asked again after {took:?}");
    assert_eq!(world.proxy().requests() - before, 2);
}

fn mistakes_have_one_clear_error_each<T: UnderTest>() {
    let mut world = World::<T>::with(some_files(1));
    let at = world.at();
    let url = world.store.url(at);
    let (scheme, rest) = url.split_once("://").unwrap();
    let unknown = Mistake::new(format!("x{scheme}x://{rest}"), Vec::new(), "not supported");
    for mistake in world.store.mistakes(at).into_iter().chain([unknown]) {
        let begun = Instant::now();
        if let Some((name, value)) = mistake.variable {
            world.lab.set_env(name, value);
        }
        let dir = world.lab.path("mnt");
        let args = ["mount", &mistake.url, dir.to_str().unwrap(), "--refresh"];
        let flags = mistake.flags.iter().map(String::as_str);
        let outcome = world.lab.weir(args.into_iter().chain(flags));
        let (said, told) = (mistake.said, outcome.stderr);
        assert_ne!(outcome.code, 0, "{} is mounted", mistake.url);
        assert!(told.contains(said), "{said:?} is not in {told}");
        assert!(told.contains("; "), "{} has no remedy: {told}", mistake.url);
        assert!(told.lines().count() <= 5, "{told}");
        let took = begun.elapsed();
        assert!(took < AT_ONCE, "told after {took:?}: {told}");
        assert!(!is_mountpoint(&dir));
        if let Some((name, _)) = mistake.variable {
            world.lab.set_env(name, "");
        }
        for (name, value) in world.store.environment(at) {
            world.lab.set_env(name, &value);
        }
    }
    // None of them has done any harm.
    check_all(&world.mount(), &world.files);
}
