//! Files of several blocks whose checksums the origin keeps.

use std::collections::BTreeMap;
use std::time::Duration;

use weir_s3_server::{Crc, Fault, Kept, Rule};

use crate::{BUCKET, Lab, Mount, content, wait_until};

const MIB: usize = 1 << 20;
/// Longest wait until all files are verified.
const DEADLINE: Duration = Duration::from_mins(1);

/// Puts files of two and three blocks, and the checksums that the origin keeps of them, each of another kind.
pub fn put_big_files(lab: &Lab) -> BTreeMap<String, Vec<u8>> {
    let kept = [
        Kept::Whole(Crc::Crc64Nvme),
        Kept::Whole(Crc::Crc32c),
        Kept::Whole(Crc::Crc32),
        Kept::Parts(Crc::Crc32c, 5 << 20),
        Kept::Parts(Crc::Crc64Nvme, 3_000_001),
    ];
    let files: BTreeMap<String, Vec<u8>> = (0..kept.len())
        .map(|n| (format!("big{n}"), content(n as u64, 5 * MIB + n * MIB + n)))
        .collect();
    lab.put_all(&files);
    lab.s3.edit(BUCKET, |bucket| {
        for (name, kept) in files.keys().zip(kept) {
            bucket.keep_checksum(name, kept);
        }
    });
    files
}

/// Whether all files can be read and are right.
pub fn all_right(mount: &Mount<'_>, files: &BTreeMap<String, Vec<u8>>) -> bool {
    let right = |(name, content): (&String, &Vec<u8>)| {
        std::fs::read(mount.path(name)).is_ok_and(|read| read == *content)
    };
    // All of them, so that all are fetched.
    files.iter().filter(|file| right(*file)).count() == files.len()
}

/// Reads the files of an embedded mount while the first body and one in five have a flipped bit, until all were found right.
#[track_caller]
pub fn verify_under_flips(lab: &Lab, mount: &Mount<'_>, files: &BTreeMap<String, Vec<u8>>) {
    let flips = || Rule::new(Fault::FlipBit);
    // Without the first rule a few bodies may all be right.
    lab.s3
        .faults()
        .set([flips().times(1), flips().probability(0.2)]);
    let right = || mount.metric("weir_worker_files_verified_total", "result=\"right\"");
    wait_until("all files are verified", DEADLINE, || {
        all_right(mount, files);
        right() > files.len() as f64 - 0.5
    });
    wait_until("the kernel has dropped what was wrong", DEADLINE, || {
        all_right(mount, files)
    });
}
