//! Origins that fail, lie or are slow.

use std::sync::Arc;
use std::time::Duration;

use weir_s3_server::{Fault, Rule};
use weir_tests::{Lab, put_big_files, verify_under_flips};

use super::table::{Allowed, Outcome, Row};
use super::world::{Effort, Files, fill, under_readers};

/// An origin that most often fails is asked for each block for up to its patience of 30 s; the large file has three blocks.
const WAITED_FOR: Allowed = Allowed::Longest(Duration::from_mins(1));

macro_rules! row {
    ($name:ident, $what:literal, $allowed:expr, $fault:expr, $share:literal) => {
        Row {
            name: stringify!($name),
            what: $what,
            allowed: $allowed,
            run: |effort| run(effort, Rule::new($fault).probability($share)),
        }
    };
}

pub(crate) const ROWS: &[Row] = &[
    row!(
        origin_internal_error,
        "70 % of the requests are answered with 500",
        WAITED_FOR,
        Fault::Status(500, "InternalError"),
        0.7
    ),
    row!(
        origin_slow_down,
        "70 % of the requests are answered with 503 SlowDown",
        WAITED_FOR,
        Fault::Status(503, "SlowDown"),
        0.7
    ),
    row!(
        origin_reset,
        "70 % of the connections are reset",
        WAITED_FOR,
        Fault::Reset,
        0.7
    ),
    row!(
        origin_truncated,
        "70 % of the bodies end after 1,000 bytes",
        WAITED_FOR,
        Fault::Truncate(1000),
        0.7
    ),
    row!(
        origin_short_range,
        "70 % of the ranges are answered with 1,000 bytes of them",
        WAITED_FOR,
        Fault::ShortRange(1000),
        0.7
    ),
    row!(
        origin_whole_object,
        "70 % of the ranges are answered with the whole object",
        WAITED_FOR,
        Fault::IgnoreRange,
        0.7
    ),
    row!(
        origin_stalled_body,
        "70 % of the bodies stop for 1 s",
        WAITED_FOR,
        Fault::StallBody(500, Duration::from_secs(1)),
        0.7
    ),
    row!(
        origin_other_version,
        "70 % of the answers are of another version",
        Allowed::Errors,
        Fault::OtherEtag,
        0.7
    ),
    row!(
        origin_wrong_length,
        "70 % of the answers have 7 bytes more than they should, and say so",
        WAITED_FOR,
        Fault::WrongLength(7),
        0.7
    ),
    row!(
        origin_unpacked,
        "70 % of the bodies come unpacked on the way: whole, longer and without a length",
        WAITED_FOR,
        Fault::Unpacked(7),
        0.7
    ),
    Row {
        name: "origin_flipped_bits",
        what: "20 % of the bodies have a flipped bit (files of one block)",
        allowed: WAITED_FOR,
        run: |effort| flipped_bits(effort, 0.2),
    },
    Row {
        name: "origin_many_flipped_bits",
        // Of 25 requests one must be right, and there are 400 files.
        what: "50 % of the bodies have a flipped bit (files of one block)",
        allowed: WAITED_FOR,
        run: |effort| flipped_bits(effort, 0.5),
    },
    Row {
        name: "origin_flipped_bits_of_big_files",
        what: "20 % of the bodies have a flipped bit (files of several blocks, read again once they were verified)",
        allowed: WAITED_FOR,
        run: flipped_bits_of_big_files,
    },
    row!(
        origin_slow,
        "each answer begins 300 ms late",
        WAITED_FOR,
        Fault::Stall(Duration::from_millis(300)),
        1.0
    ),
    row!(
        origin_slow_bodies,
        "each body comes with 256 KiB/s",
        WAITED_FOR,
        Fault::SlowBody(256 << 10),
        1.0
    ),
];

fn run(effort: Effort, rule: Rule) -> Outcome {
    let lab = Lab::new();
    let files = fill(&lab);
    run_with(effort, rule, &lab, &files)
}

fn flipped_bits(effort: Effort, share: f64) -> Outcome {
    let lab = Lab::new();
    let files = fill(&lab);
    let small = files.iter().filter(|(name, _)| *name != "large");
    let small = small.map(|(name, content)| (name.clone(), content.clone()));
    let rule = Rule::new(Fault::FlipBit).probability(share);
    run_with(effort, rule, &lab, &Arc::new(small.collect()))
}

/// Fills empty caches again and again; what was verified is then read while the origin still flips bits.
fn flipped_bits_of_big_files(effort: Effort) -> Outcome {
    let lab = Lab::new();
    let files = Arc::new(put_big_files(&lab));
    let mut all = Outcome::default();
    for round in 0..effort.of(1, 10) {
        let cache = format!("{}:1GiB", lab.path(&format!("cache-{round}")).display());
        let mount = lab.mount("", &["--mem", "0", "--ssd", &cache]);
        verify_under_flips(&lab, &mount, &files);
        let outcome = under_readers(&mount, &files, (1, effort.pause()), |_, _| ());
        all.readers.add(outcome.readers);
        all.times += lab.s3.faults().happened().iter().sum::<usize>();
        lab.s3.faults().clear();
    }
    all
}

fn run_with(effort: Effort, rule: Rule, lab: &Lab, files: &Files) -> Outcome {
    // Nothing is kept in memory, so that the origin is asked more often.
    let mount = lab.mount("", &["--mem", "0"]);
    lab.s3.faults().set([rule]);
    let mut outcome = under_readers(&mount, files, (1, effort.fault()), |_, _| ());
    outcome.times = lab.s3.faults().happened().iter().sum();
    lab.s3.faults().clear();
    outcome
}
