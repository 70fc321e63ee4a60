//! The builder against the model that holds everything in memory.

use proptest::prelude::*;
use proptest::sample::Index;

use super::model::Model;
use super::*;
use crate::OriginId;
use crate::manifest::ROOT;
use crate::manifest::mapped::MAPPED_FROM;

/// What is added to a builder.
#[derive(Clone, Debug)]
enum Step {
    Mount {
        prefix: &'static str,
        path: &'static str,
        origin: &'static str,
    },
    Add {
        mount: usize,
        key: String,
        size: u64,
        mtime_ns: i64,
        version: String,
    },
    LeaveOut(LeftOut),
}

fn step() -> impl Strategy<Value = Step> {
    let name = prop_oneof![
        6 => "[ab]{1,2}",
        1 => "[.]{1,3}",
        1 => "é|日| |\u{1}|a!|",
        1 => Just("x".repeat(255)),
    ];
    let names = proptest::collection::vec(name, 1..5);
    let key = (names, proptest::option::weighted(0.2, Just("/"))).prop_map(|(names, marker)| {
        let mut key = names.join("/");
        key.push_str(marker.unwrap_or_default());
        key
    });
    let prefix = proptest::sample::select(vec!["", "p/", "a/"]);
    let key = (prefix.clone(), key).prop_map(|(prefix, key)| format!("{prefix}{key}"));
    let size = prop_oneof![Just(0), 1..10_000_000u64, Just(MAX_OBJECT)];
    let mtime_ns = prop_oneof![-2..3i64, Just(i64::MIN), Just(i64::MAX)];
    let version = prop_oneof!["", "[vw]", "[0-9a-f]{32}", "[0-9A-F]{32}", Just("é".into())];
    prop_oneof![
        1 => (prefix, proptest::sample::select(vec!["", "a", "/a/b/", "b/c/d"]),
            proptest::sample::select(vec!["s3://x", "s3://y"]))
            .prop_map(|(prefix, path, origin)| Step::Mount { prefix, path, origin }),
        20 => (any::<usize>(), key, size, mtime_ns, version).prop_map(
            |(mount, key, size, mtime_ns, version)| Step::Add { mount, key, size, mtime_ns, version }),
        1 => Just(Step::LeaveOut(LeftOut::LinkBroken)),
    ]
}

fn mount(prefix: &str, path: &str, origin: &str) -> Mount {
    Mount {
        origin: OriginId::of_location(origin),
        spec: "{}".into(),
        prefix: prefix.into(),
        path: path.into(),
    }
}

fn snapshot(version: u64) -> SnapshotId {
    SnapshotId {
        dataset: "set".parse().unwrap(),
        version,
    }
}

/// Runs the steps on either kind of builder.
macro_rules! run {
    ($builder:expr, $steps:expr, $after:expr) => {{
        let mut builder = $builder;
        let mut mounts = vec![builder.add_mount(mount("p/", "", "s3://x")).unwrap()];
        for step in $steps {
            match step {
                Step::Mount {
                    prefix,
                    path,
                    origin,
                } => {
                    mounts.push(builder.add_mount(mount(prefix, path, origin)).unwrap());
                }
                Step::Add {
                    mount,
                    key,
                    size,
                    mtime_ns,
                    version,
                } => {
                    let mount = mounts[mount % mounts.len()];
                    builder
                        .add(mount, key.as_bytes(), *size, *mtime_ns, version)
                        .unwrap();
                }
                Step::LeaveOut(reason) => builder.leave_out(*reason, b"key"),
            }
            $after(&mut builder);
        }
        builder
    }};
}

/// Limits so small that everything goes to disk, and over several passes.
fn tiny() -> Scratch {
    Scratch {
        run_bytes: 400,
        spool_bytes: 40,
        fan_in: 2,
        mapped_from: 0,
        ..Scratch::directory(&std::env::temp_dir())
    }
}

fn build(scratch: Scratch, steps: &[Step], version: u64, previous: Option<&Manifest>) -> Manifest {
    let make_room = |builder: &mut ManifestBuilder| {
        if builder.is_full() {
            builder.make_room().unwrap();
        }
    };
    let builder = run!(ManifestBuilder::with(scratch), steps, make_room);
    builder.build(snapshot(version), 7, previous).unwrap()
}

fn build_model(steps: &[Step], version: u64, previous: Option<&Manifest>) -> Manifest {
    let builder = run!(Model::new(), steps, |_: &mut Model| {});
    builder.build(snapshot(version), 7, previous).unwrap()
}

fn assert_equal(manifest: &Manifest, model: &Manifest) {
    assert_eq!(manifest.summary(), model.summary());
    assert!(manifest.as_bytes() == model.as_bytes(), "{manifest:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn the_manifest_is_the_same_as_if_all_had_been_in_memory(
        first in proptest::collection::vec(step(), 0..60),
        changes in proptest::collection::vec((any::<Index>(), proptest::option::of(step())), 0..10)) {
        let mut second = first.clone();
        for (at, change) in changes {
            if second.is_empty() {
                break;
            }
            let at = at.index(second.len());
            match change {
                // Another mount would change what the ones behind it are called.
                Some(step @ Step::Add { .. }) if matches!(second[at], Step::Add { .. }) => second[at] = step,
                Some(_) => {}
                None => drop(second.remove(at)),
            }
        }
        let model = build_model(&first, 1, None);
        let refreshed = build_model(&second, 2, Some(&model));
        for scratch in [Scratch::memory(), tiny()] {
            let manifest = build(scratch.clone(), &first, 1, None);
            assert_equal(&manifest, &model);
            assert_equal(&build(scratch, &second, 2, Some(&manifest)), &refreshed);
        }
    }
}

fn files(count: u64) -> Vec<Step> {
    let add = |number| Step::Add {
        mount: 0,
        key: format!("p/d{}/f{number}", number % 40_000),
        size: number,
        mtime_ns: 5,
        version: "v".into(),
    };
    (0..count).map(add).collect()
}

#[test]
fn a_manifest_on_disk_is_named_copied_and_opened() {
    let dir = std::env::temp_dir().join(format!("weir-manifest-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let steps = files(200_000);
    let scratch = Scratch {
        run_bytes: 1 << 20,
        ..Scratch::directory(&dir)
    };
    let manifest = build(scratch, &steps, 1, None);
    assert_equal(&manifest, &build_model(&steps, 1, None));
    assert!(manifest.as_bytes().len() > MAPPED_FROM);
    let names = || std::fs::read_dir(&dir).unwrap().count();
    assert_eq!(names(), 0, "temporary files have no names");
    // The second time the file has a name already, and one on another file system cannot get this one.
    let elsewhere = Path::new("/dev/shm").join(dir.file_name().unwrap());
    let elsewhere = elsewhere.parent().unwrap().is_dir().then_some(elsewhere);
    for path in [dir.join("1"), dir.join("1")].into_iter().chain(elsewhere) {
        manifest.write_to(&path).unwrap();
        let opened = Manifest::open(&path).unwrap();
        assert_equal(&opened, &manifest);
        assert!(opened.mapped.is_some());
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap());
        assert_eq!(mode & 0o022, 0);
        std::fs::remove_file(&path).unwrap();
        opened.release();
        assert_eq!(
            opened.files_below(ROOT).count(),
            200_000,
            "removed, but still open"
        );
    }
    // One that others may write to is read: they cannot shorten it under its readers.
    let path = dir.join("open");
    manifest.write_to(&path).unwrap();
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions(&path, everybody).unwrap();
    let opened = Manifest::open(&path).unwrap();
    assert!(opened.mapped.is_none());
    std::fs::File::options()
        .write(true)
        .truncate(true)
        .open(&path)
        .unwrap();
    assert_equal(&opened, &manifest);
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_directory_that_takes_no_files_is_an_error_that_names_it() {
    let scratch = Scratch {
        dir: Some(Path::new("/nowhere/at all").into()),
        ..tiny()
    };
    let mut builder = run!(ManifestBuilder::with(scratch), &files(4), |_: &mut _| {});
    let failed = |error: BuildError| {
        let text = error.to_string();
        assert!(matches!(error, BuildError::Scratch { .. }), "{text}");
        assert!(
            text.contains("/nowhere/at all") && text.contains("room"),
            "{text}"
        );
    };
    failed(builder.make_room().unwrap_err());
    failed(builder.build(snapshot(1), 0, None).unwrap_err());
}
