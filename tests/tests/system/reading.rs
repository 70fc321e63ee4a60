//! Every way to read a file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng;
use rustix::fs::OFlags;
use weir_s3_server::{Fault, Rule};
use weir_tests::{BUCKET, Lab, Mount, Readers, content, drop_pages, wait_until};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("reads_of_every_kind_agree", reads_of_every_kind_agree),
    (
        "many_readers_of_one_file_share_its_fills",
        many_readers_of_one_file_share_its_fills,
    ),
    (
        "a_file_of_100_gib_is_read_anywhere",
        a_file_of_100_gib_is_read_anywhere,
    ),
    (
        "a_block_past_a_full_cache_is_fetched_once_for_a_reader_of_its_parts",
        a_block_past_a_full_cache_is_fetched_once_for_a_reader_of_its_parts,
    ),
    (
        "small_files_are_filled_ahead_where_the_origin_is_slow",
        small_files_are_filled_ahead_where_the_origin_is_slow,
    ),
    (
        "small_files_come_into_the_page_cache_ahead_of_their_readers",
        small_files_come_into_the_page_cache_ahead_of_their_readers,
    ),
    (
        "nothing_is_read_ahead_when_that_is_off",
        nothing_is_read_ahead_when_that_is_off,
    ),
    (
        "a_mount_can_be_unmounted_while_it_reads_ahead",
        a_mount_can_be_unmounted_while_it_reads_ahead,
    ),
    (
        "blocks_of_a_big_file_are_fetched_ahead_of_a_sequential_reader",
        blocks_of_a_big_file_are_fetched_ahead_of_a_sequential_reader,
    ),
    (
        "an_eviction_takes_what_is_on_its_way_too",
        an_eviction_takes_what_is_on_its_way_too,
    ),
    (
        "a_cache_that_is_too_small_still_serves_right_bytes",
        a_cache_that_is_too_small_still_serves_right_bytes,
    ),
    (
        "the_steps_of_a_read_are_logged_when_that_is_turned_on",
        the_steps_of_a_read_are_logged_when_that_is_turned_on,
    ),
];

fn the_steps_of_a_read_are_logged_when_that_is_turned_on() {
    for (filter, is_on) in [("info,weir::read=trace", true), ("info", false)] {
        let mut lab = Lab::new();
        lab.set_env("WEIR_LOG", filter);
        lab.s3.edit(BUCKET, |bucket| bucket.put("a/file", "bytes"));
        let mount = lab.mount("", &["--read-ahead", "off"]);
        assert_eq!(mount.read("a/file"), b"bytes");
        let is_logged = |step: &str| {
            let log = mount.log();
            log.lines()
                .any(|line| line.contains("read{dataset=") && line.contains(step))
        };
        let steps = [
            "file=\"a/file\"",
            ":block{block=0",
            ":worker_read{object=\"a/file\"",
            ":fill{",
            ":origin_request{",
            "answered",
            "time.busy",
        ];
        if is_on {
            wait_until("each step is logged", Duration::from_secs(10), || {
                steps.into_iter().all(is_logged)
            });
            drop_pages([mount.path("a/file")]);
            assert_eq!(mount.read("a/file"), b"bytes");
            wait_until("the cached read, too", Duration::from_secs(10), || {
                is_logged(":look_up{")
            });
        } else {
            drop_pages([mount.path("a/file")]);
            assert_eq!(mount.read("a/file"), b"bytes");
            assert!(!mount.log().contains("weir::read"), "{}", mount.log());
        }
    }
}

fn reads_of_every_kind_agree() {
    let lab = Lab::new();
    let expected = content(1, (20 << 20) + 17);
    lab.s3
        .edit(BUCKET, |bucket| bucket.put("file", expected.clone()));
    let mount = lab.mount("", &["--mem", "0"]);
    let path = mount.path("file");
    let mut random = rand::rng();
    for round in 0..4 {
        drop_pages([path.clone()]);
        let mut file = File::open(&path).unwrap();
        for _ in 0..100 {
            let start = random.random_range(0..expected.len());
            let length = random.random_range(1..300_000).min(expected.len() - start);
            let mut bytes = vec![0; length];
            match random.random_range(0..3) {
                0 => file.read_exact_at(&mut bytes, start as u64).unwrap(),
                1 => {
                    file.seek(SeekFrom::Start(start as u64)).unwrap();
                    file.read_exact(&mut bytes).unwrap();
                }
                _ => {
                    rustix::fs::fadvise(&file, start as u64, None, rustix::fs::Advice::WillNeed)
                        .unwrap();
                    bytes = mapped(&file, start, length);
                }
            }
            assert!(
                bytes == expected[start..start + length],
                "{start}+{length} in round {round}"
            );
        }
        let mut behind = [0; 10];
        assert_eq!(file.read_at(&mut behind, expected.len() as u64).unwrap(), 0);
    }
}

/// Reads a part of a file through a mapping of the whole.
#[allow(unsafe_code, reason = "a mapping cannot be made or read without")]
fn mapped(file: &File, start: usize, length: usize) -> Vec<u8> {
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    let whole = file.metadata().unwrap().len() as usize;
    // SAFETY: a fresh mapping at an address that the kernel chooses, unmapped below after its last use; the file is
    // read-only and never shrinks.
    unsafe {
        let address = mmap(
            std::ptr::null_mut(),
            whole,
            ProtFlags::READ,
            MapFlags::SHARED,
            file,
            0,
        )
        .unwrap();
        let bytes = std::slice::from_raw_parts(address.cast::<u8>().add(start), length).to_vec();
        munmap(address, whole).unwrap();
        bytes
    }
}

fn many_readers_of_one_file_share_its_fills() {
    let lab = Lab::new();
    let expected = Arc::new(content(2, 16 << 20));
    lab.s3
        .edit(BUCKET, |bucket| bucket.put("file", expected.to_vec()));
    let mount = lab.mount("", &[]);
    let threads: Vec<_> = (0..16)
        .map(|_| {
            let (path, expected) = (mount.path("file"), expected.clone());
            std::thread::spawn(move || assert!(std::fs::read(path).unwrap() == *expected))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(
        lab.s3.stats().bytes(),
        expected.len() as u64,
        "a block was fetched twice"
    );
}

fn a_file_of_100_gib_is_read_anywhere() {
    const SIZE: u64 = 100 << 30;
    let lab = Lab::new();
    std::fs::create_dir(lab.path("source")).unwrap();
    let source = File::create(lab.path("source/huge")).unwrap();
    source.set_len(SIZE).unwrap();
    let places = [0, 1 << 32, (1 << 36) - 3, SIZE - 8];
    for place in places {
        source.write_all_at(&place.to_le_bytes(), place).unwrap();
    }
    let ssd = format!("{}:256MiB", lab.path("ssd").display());
    let url = format!("file://{}", lab.path("source").display());
    let mount = lab.mount_at(&url, "mnt", &["--ssd", &ssd, "--mem", "64MiB"]);
    let file = File::open(mount.path("huge")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), SIZE);
    for place in places {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, place).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), place);
    }
}

fn a_cache_that_is_too_small_still_serves_right_bytes() {
    let lab = Lab::new();
    let files: BTreeMap<String, Vec<u8>> = (0..200)
        .map(|n| (format!("d{}/f{n}", n % 7), content(n, 700_000)))
        .collect();
    lab.put_all(&files);
    // 140 MB of files, 64 MiB of cache.
    let ssd = format!("{}:64MiB", lab.path("ssd").display());
    let mount = lab.mount("", &["--ssd", &ssd, "--mem", "0"]);
    let files = Arc::new(files);
    let readers = Readers::start(&mount.dir, &files, 4);
    readers.read_more(files.len() + 4);
    let report = readers.finish();
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert!(report.reads > files.len(), "{} reads", report.reads);
    let used = mount.metric("weir_worker_tier_used_bytes", "tier=\"ssd\"");
    assert!(
        used > 0.0 && used <= f64::from(64 << 20),
        "{used} bytes on SSD"
    );
    assert!(mount.metric("weir_client_read_bytes_total", "source=\"ssd\"") > 0.0);
}

fn a_block_past_a_full_cache_is_fetched_once_for_a_reader_of_its_parts() {
    const PART: usize = 128 << 10;
    let lab = Lab::new();
    let expected = content(1, 96 << 20);
    lab.s3
        .edit(BUCKET, |bucket| bucket.put("file", expected.clone()));
    let ssd = format!("{}:32MiB", lab.path("ssd").display());
    let mount = lab.mount("", &["--ssd", &ssd, "--mem", "0"]);
    let refused = || mount.metric("weir_worker_admissions_refused_total", "");
    let file = File::options()
        .read(true)
        .custom_flags(OFlags::DIRECT.bits() as i32)
        .open(mount.path("file"))
        .unwrap();
    for start in (0..expected.len()).step_by(PART) {
        let mut part = vec![0; PART];
        file.read_exact_at(&mut part, start as u64).unwrap();
        assert!(part == expected[start..start + PART], "at {start}");
        // The fill ends meanwhile.
        wait_until("no fill is under way", Duration::from_secs(10), || {
            !start.is_multiple_of(4 << 20) || mount.metric("weir_worker_fills_in_flight", "") < 1.0
        });
    }
    assert!(refused() > 10.0, "{} blocks were refused", refused());
    assert_eq!(lab.s3.stats().bytes(), expected.len() as u64);
}

fn small_files_are_filled_ahead_where_the_origin_is_slow() {
    let lab = Lab::new();
    let files = small_files(&lab, "d");
    let mount = lab.mount("", &["--read-ahead", "tiers"]);
    lab.s3
        .faults()
        .set([Rule::new(Fault::Stall(Duration::from_millis(50)))]);
    for name in files.keys().take(12) {
        assert!(mount.read(name) == files[name], "{name}");
    }
    wait_until("the rest is filled ahead", Duration::from_secs(10), || {
        lab.s3.stats().bytes() == 100 * 5000
    });
    let gets = lab.s3.stats().gets();
    for (name, content) in &files {
        assert!(mount.read(name) == *content, "{name}");
    }
    assert_eq!(lab.s3.stats().gets(), gets);
    assert!(mount.metric("weir_client_prefetch_used_bytes_total", "") > 0.0);
}

/// 100 files of 5,000 bytes in one directory.
fn small_files(lab: &Lab, directory: &str) -> BTreeMap<String, Vec<u8>> {
    let files: BTreeMap<String, Vec<u8>> = (0..100)
        .map(|n| (format!("{directory}/f{n:03}"), content(n, 5000)))
        .collect();
    lab.put_all(&files);
    files
}

fn small_files_come_into_the_page_cache_ahead_of_their_readers() {
    let lab = Lab::new();
    let directories: Vec<_> = (0..20)
        .map(|n| small_files(&lab, &format!("d{n}")))
        .collect();
    let mount = lab.mount("", &[]);
    let requests = |operation: &str| {
        let label = format!("operation=\"{operation}\"");
        mount.metric("weir_fuse_requests_total", &label)
    };
    let ahead = || mount.metric("weir_client_prefetched_bytes_total", "");
    let mut left = directories.iter();
    // What was handed to the kernel's side may take a moment more to be there. Then it is so in the next directory.
    let what = "no reader asks for what was read or listed ahead";
    wait_until(what, Duration::from_mins(1), || {
        let files = left.next().expect("none was there in time");
        let before = ahead();
        for name in files.keys().take(2) {
            assert!(mount.read(name) == files[name], "{name}");
        }
        wait_until("others are read ahead", Duration::from_secs(10), || {
            ahead() > before
        });
        let bytes = ahead() - before;
        assert!((bytes - 16.0 * 5000.0).abs() < 1.0, "{bytes} bytes");
        let before = (requests("lookup"), requests("read"));
        for name in files.keys().take(18) {
            assert!(mount.read(name) == files[name], "{name}");
        }
        (requests("lookup"), requests("read")) == before
    });
    for (name, content) in directories.iter().flatten() {
        assert!(mount.read(name) == *content, "{name}");
    }
}

fn nothing_is_read_ahead_when_that_is_off() {
    let lab = Lab::new();
    let files = small_files(&lab, "d");
    let mount = lab.mount("", &["--read-ahead", "off"]);
    for name in files.keys().take(50) {
        assert!(mount.read(name) == files[name], "{name}");
    }
    assert_eq!(lab.s3.stats().bytes(), 50 * 5000);
    assert!(mount.metric("weir_client_prefetched_bytes_total", "") < 1.0);
}

fn a_mount_can_be_unmounted_while_it_reads_ahead() {
    let lab = Lab::new();
    let files = small_files(&lab, "d");
    let mount = lab.mount("", &[]);
    // What is read ahead hangs.
    let stall = Fault::Stall(Duration::from_secs(20));
    lab.s3.faults().set([Rule::new(stall).path("d/f06")]);
    let gets = lab.s3.stats().gets();
    for name in ["d/f050", "d/f051"] {
        assert!(mount.read(name) == files[name], "{name}");
    }
    wait_until("files are read ahead", Duration::from_secs(10), || {
        lab.s3.stats().gets() > gets + 12
    });
    let started = Instant::now();
    mount.unmount();
    assert!(started.elapsed() < Duration::from_secs(10));
}

fn blocks_of_a_big_file_are_fetched_ahead_of_a_sequential_reader() {
    let lab = Lab::new();
    let expected = put_big_file(&lab);
    let mount = lab.mount("", &[]);
    read_with_blocks_ahead(&lab, &mount, &expected, || races(&mount.metrics()));
}

/// Requests of a process that were made beside others, which a machine with much to do has it make.
pub(crate) fn races(metrics: &BTreeMap<String, f64>) -> f64 {
    let is_race = |name: &str| {
        name.starts_with("weir_origin_hedges_total")
            || (name.starts_with("weir_client_failovers_total") && name.contains("silent"))
    };
    let races = metrics.iter().filter(|(name, _)| is_race(name));
    races.map(|(_, count)| count).sum()
}

/// Files that tell a worker, or two, whether the origin is slow: some answers, one at a time, for each.
const OTHERS: usize = 48;
const BLOCK_SIZE: u64 = 4 << 20;

/// Puts a big `file` into the bucket, and others that [`read_with_blocks_ahead`] needs; gives its content.
pub(crate) fn put_big_file(lab: &Lab) -> Vec<u8> {
    let expected = content(1, 160 << 20);
    lab.s3.edit(BUCKET, |bucket| {
        bucket.put("file", expected.clone());
        for number in 0..OTHERS {
            // Each in a directory of its own, so that none is read ahead.
            bucket.put(format!("others/{number}/file"), content(2, 1000));
        }
    });
    expected
}

/// Reads the big file, which nobody has read, from an origin that is slow, and known to be; some of its bytes must be
/// fetched into tiers ahead of that, and none twice but in as many races as `races` tells.
pub(crate) fn read_with_blocks_ahead(
    lab: &Lab,
    mount: &Mount<'_>,
    expected: &[u8],
    races: impl Fn() -> f64,
) {
    let stall = |millis| Rule::new(Fault::Stall(Duration::from_millis(millis)));
    lab.s3.faults().set([stall(20)]);
    for number in 0..OTHERS {
        mount.read(&format!("others/{number}/file"));
    }
    lab.s3.faults().set([stall(50)]);
    let (before, races_before) = (lab.s3.stats().bytes(), races());
    assert!(mount.read("file") == expected);
    let twice = lab.s3.stats().bytes() - before - expected.len() as u64;
    let raced = (races() - races_before) as u64 * BLOCK_SIZE;
    assert!(twice <= raced, "{twice} bytes were fetched twice");
    let fetched = mount.metric("weir_client_prefetched_bytes_total", "");
    let used = mount.metric("weir_client_prefetch_used_bytes_total", "");
    assert!(
        0.0 < used && used <= fetched,
        "of {fetched} bytes that were fetched ahead {used} were used"
    );
}

fn an_eviction_takes_what_is_on_its_way_too() {
    let lab = Lab::new();
    lab.s3
        .edit(BUCKET, |bucket| bucket.put("file", content(1, 100_000)));
    let mount = lab.mount("", &["--read-ahead", "off"]);
    let stall = Fault::Stall(Duration::from_millis(700));
    lab.s3.faults().set([Rule::new(stall)]);
    let in_flight = || mount.metric("weir_worker_fills_in_flight", "");
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| mount.read("file"));
        wait_until("the fill begins", Duration::from_secs(5), || {
            in_flight() > 0.0
        });
        let list = lab.weir(["dataset", "list", "-o", "json"]).ok();
        let list: serde_json::Value = serde_json::from_str(&list).unwrap();
        lab.weir(["evict", list[0]["name"].as_str().unwrap()]).ok();
        assert!(reader.join().unwrap() == content(1, 100_000));
    });
    wait_until("the fill ends", Duration::from_secs(5), || {
        in_flight() < 1.0
    });
    let blocks = mount.metric("weir_worker_tier_blocks", "");
    assert!(blocks < 1.0, "{blocks} blocks came behind the eviction");
}
