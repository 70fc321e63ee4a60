//! What goes wrong on the wire to the origin.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use weir_s3_server::{Fault, Rule, Target};
use weir_tests::{BUCKET, Lab, Mount, content, drop_pages, wait_until};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("busy_servers_are_asked_again", busy_servers_are_asked_again),
    (
        "broken_connections_and_bodies_cost_no_byte",
        broken_connections_and_bodies_cost_no_byte,
    ),
    (
        "answers_with_another_range_are_used_or_asked_again",
        answers_with_another_range_are_used_or_asked_again,
    ),
    (
        "a_stalled_answer_is_raced_by_a_second_request",
        a_stalled_answer_is_raced_by_a_second_request,
    ),
    (
        "a_flipped_bit_is_never_served",
        a_flipped_bit_is_never_served,
    ),
    ("a_changed_object_is_estale", a_changed_object_is_estale),
    (
        "bodies_of_another_length_are_asked_for_again_and_never_cut",
        bodies_of_another_length_are_asked_for_again_and_never_cut,
    ),
    (
        "without_an_etag_the_time_tells_a_changed_object",
        without_an_etag_the_time_tells_a_changed_object,
    ),
    (
        "what_the_origin_refuses_is_eio_with_one_line",
        what_the_origin_refuses_is_eio_with_one_line,
    ),
    ("listings_are_asked_for_again", listings_are_asked_for_again),
    (
        "what_the_origin_will_never_do_is_told_at_once_and_with_its_code",
        what_the_origin_will_never_do_is_told_at_once_and_with_its_code,
    ),
    (
        "an_outage_costs_a_reader_its_patience_once_and_shows_meanwhile",
        an_outage_costs_a_reader_its_patience_once_and_shows_meanwhile,
    ),
];

const EIO: i32 = 5;
const ESTALE: i32 = 116;

fn fill(lab: &Lab, count: u64) -> BTreeMap<String, Vec<u8>> {
    let files: BTreeMap<String, Vec<u8>> = (0..count)
        .map(|n| (format!("f{n:03}"), content(n, 10_000 + 1000 * n as usize)))
        .chain([("large".to_owned(), content(999, (9 << 20) + 5))])
        .collect();
    lab.put_all(&files);
    files
}

#[track_caller]
fn check_all(mount: &Mount<'_>, files: &BTreeMap<String, Vec<u8>>) {
    // Several at once, as a training job does: one slow object must not hold up the others.
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

fn busy_servers_are_asked_again() {
    for (status, code, share) in [(500, "InternalError", 0.3), (503, "SlowDown", 0.7)] {
        let lab = Lab::new();
        let files = fill(&lab, 60);
        let mount = lab.mount("", &[]);
        lab.s3
            .faults()
            .set([Rule::new(Fault::Status(status, code)).probability(share)]);
        check_all(&mount, &files);
        assert!(
            lab.s3.faults().happened()[0] > 10,
            "{status} did not happen"
        );
        assert!(mount.metric("weir_origin_retries_total", "") > 10.0);
    }
}

fn broken_connections_and_bodies_cost_no_byte() {
    let faults = [
        Fault::Reset,
        Fault::Truncate(0),
        Fault::Truncate(5000),
        Fault::SlowBody(200_000),
        Fault::StallBody(4000, Duration::from_millis(300)),
    ];
    for fault in faults {
        let lab = Lab::new();
        let files = fill(&lab, 30);
        let mount = lab.mount("", &[]);
        // Every slow body takes a second, so there are few of them; the others meet three requests in ten.
        let rule = match fault {
            Fault::SlowBody(_) => Rule::new(fault.clone()).times(4),
            _ => Rule::new(fault.clone()).probability(0.3),
        };
        lab.s3.faults().set([rule]);
        check_all(&mount, &files);
        assert!(
            lab.s3.faults().happened()[0] > 0,
            "{fault:?} did not happen"
        );
    }
}

fn answers_with_another_range_are_used_or_asked_again() {
    for fault in [Fault::ShortRange(1 << 20), Fault::IgnoreRange] {
        let lab = Lab::new();
        let files = fill(&lab, 0);
        let mount = lab.mount("", &[]);
        lab.s3.faults().set([Rule::new(fault.clone())]);
        check_all(&mount, &files);
        assert!(
            lab.s3.faults().happened()[0] > 0,
            "{fault:?} did not happen"
        );
    }
}

fn a_stalled_answer_is_raced_by_a_second_request() {
    let stall = Duration::from_secs(20);
    for fault in [Fault::Stall(stall), Fault::StallBody(3000, stall)] {
        let lab = Lab::new();
        let files = fill(&lab, 3);
        let mount = lab.mount("", &[]);
        lab.s3.faults().set([Rule::new(fault.clone()).times(1)]);
        let started = Instant::now();
        assert!(mount.read("f001") == files["f001"]);
        let took = started.elapsed();
        assert!(took < Duration::from_secs(3), "{fault:?} cost {took:?}");
        assert_eq!(lab.s3.faults().happened(), [1]);
        assert!(mount.metric("weir_origin_hedges_total", "") > 0.5);
    }
}

fn a_flipped_bit_is_never_served() {
    let lab = Lab::new();
    let files = fill(&lab, 5);
    let mount = lab.mount("", &[]);
    lab.s3.faults().set([
        Rule::new(Fault::FlipBit).path("f001").times(1),
        Rule::new(Fault::FlipBit).path("f002"),
    ]);
    assert!(mount.read("f001") == files["f001"]);
    let error = std::fs::read(mount.path("f002")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(EIO), "{error}");
    lab.s3.faults().clear();
    // The failure is remembered for a second, since the kernel asks twice.
    wait_until("the origin is asked again", Duration::from_secs(10), || {
        std::fs::read(mount.path("f002")).is_ok_and(|bytes| bytes == files["f002"])
    });
}

fn a_changed_object_is_estale() {
    let lab = Lab::new();
    let files = fill(&lab, 5);
    let mount = lab.mount("", &["--dataset", "set"]);
    assert!(mount.read("f001") == files["f001"]);
    lab.s3.edit(BUCKET, |bucket| {
        bucket.put("f001", "changed");
        bucket.put("f002", "changed");
        bucket.delete(b"f003");
    });
    lab.s3
        .faults()
        .set([Rule::new(Fault::OtherEtag).path("f004")]);
    // Cached blocks are those of the snapshot; what is gone is refused, never mixed.
    drop_pages([mount.path("f001")]);
    assert!(mount.read("f001") == files["f001"]);
    for name in ["f002", "f003", "f004"] {
        let error = std::fs::read(mount.path(name)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(ESTALE), "{name}: {error}");
        assert!(mount.log().contains(name), "no line names {name}");
    }
    assert!(mount.metric("weir_client_stale_reads_total", "") > 2.5);
    wait_until(
        "the master counts stale reads",
        Duration::from_secs(15),
        || {
            let dataset = lab.weir(["dataset", "get", "set", "-o", "json"]).ok();
            let dataset: serde_json::Value = serde_json::from_str(&dataset).unwrap();
            dataset["snapshots"][0]["stale_reads"].as_u64().unwrap() >= 3
        },
    );
}

fn bodies_of_another_length_are_asked_for_again_and_never_cut() {
    for fault in [Fault::Unpacked(500), Fault::WrongLength(1)] {
        let lab = Lab::new();
        let files = fill(&lab, 30);
        lab.s3
            .edit(BUCKET, |bucket| bucket.put("odd/f", content(7, 10_000)));
        let mount = lab.mount("", &[]);
        // One broken server of several costs nothing but time; what is wrong every time is told soon.
        lab.s3.faults().set([
            Rule::new(fault.clone()).path("odd/f"),
            Rule::new(fault.clone()).probability(0.3),
        ]);
        let started = Instant::now();
        let error = std::fs::read(mount.path("odd/f")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(EIO), "{fault:?}: {error}");
        let took = started.elapsed();
        assert!(took < Duration::from_secs(15), "{fault:?} took {took:?}");
        let log = mount.log();
        let told = |line: &str| line.contains("odd/f") && line.contains("not what was asked for");
        assert!(log.lines().any(told), "{fault:?}: {log}");
        check_all(&mount, &files);
        assert!(
            lab.s3.faults().happened()[1] > 0,
            "{fault:?} did not happen"
        );
    }
}

fn without_an_etag_the_time_tells_a_changed_object() {
    let lab = Lab::new();
    let files = fill(&lab, 3);
    let mount = lab.mount("", &[]);
    lab.s3.faults().set([Rule::new(Fault::NoEtag)]);
    assert!(mount.read("f000") == files["f000"]);
    let later = SystemTime::now() + Duration::from_mins(1);
    lab.s3.edit(BUCKET, |bucket| {
        bucket.put("f002", vec![b'x'; files["f002"].len()]);
        bucket.set_modified("f002", later);
    });
    let error = std::fs::read(mount.path("f002")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(ESTALE), "{error}");
}

fn what_the_origin_refuses_is_eio_with_one_line() {
    let refusals = [
        Fault::Status(403, "AccessDenied"),
        Fault::Status(400, "ExpiredToken"),
        Fault::Status(404, "NoSuchBucket"),
        Fault::WantsKey,
    ];
    let lab = Lab::new();
    // Each in a directory of its own, so that none is filled ahead of its reader.
    let files: BTreeMap<String, Vec<u8>> = (0..4)
        .map(|n| (format!("d{n}/f{n:03}"), content(n, 10_000)))
        .collect();
    lab.put_all(&files);
    let mount = lab.mount("", &[]);
    for (number, fault) in refusals.into_iter().enumerate() {
        let name = format!("d{number}/f{number:03}");
        lab.s3.faults().set([Rule::new(fault.clone())]);
        let code = match fault {
            Fault::Status(_, code) => code,
            _ => "SSE-C",
        };
        let started = Instant::now();
        let error = std::fs::read(mount.path(&name)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(EIO), "{fault:?}: {error}");
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "a refusal was retried for {:?}",
            started.elapsed()
        );
        let log = mount.log();
        let lines: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("ERROR") && line.contains(&name))
            .collect();
        assert_eq!(lines.len(), 1, "{log}");
        let told = code == "NoSuchBucket" || lines[0].contains(code);
        assert!(told, "{code} is not in {}", lines[0]);
        lab.s3.faults().clear();
        assert!(mount.read(&name) == files[&name], "{name} after {fault:?}");
    }
    assert!(mount.metric("weir_fuse_errors_total", "error=\"EIO\"") > 3.5);
    assert!(mount.metric("weir_origin_errors_total", "") > 3.5);
}

fn listings_are_asked_for_again() {
    let lab = Lab::new();
    let files = fill(&lab, 20);
    lab.s3.faults().set([
        Rule::new(Fault::Status(503, "SlowDown"))
            .target(Target::List)
            .times(2),
        Rule::new(Fault::Reset).target(Target::List).times(2),
        Rule::new(Fault::Truncate(500))
            .target(Target::List)
            .times(1),
    ]);
    let mount = lab.mount("", &[]);
    assert_eq!(lab.s3.faults().happened(), [2, 2, 1]);
    check_all(&mount, &files);
}

fn what_the_origin_will_never_do_is_told_at_once_and_with_its_code() {
    let lab = Lab::new();
    fill(&lab, 1);
    for (status, code, exit) in [
        (501, "NotImplemented", 7),
        (405, "MethodNotAllowed", 7),
        (400, "InvalidRequest", 7),
        (301, "PermanentRedirect", 7),
        (403, "SignatureDoesNotMatch", 5),
        (404, "NoSuchBucket", 3),
    ] {
        let fault = Rule::new(Fault::Status(status, code)).target(Target::List);
        lab.s3.faults().set([fault]);
        let mountpoint = lab.path("refused");
        let [endpoint, url, anonymous] = lab.origin_flags();
        let started = Instant::now();
        let outcome = lab.weir([
            "mount",
            &lab.url(""),
            mountpoint.to_str().unwrap(),
            "--mem",
            "64MiB",
            &endpoint,
            &url,
            &anonymous,
        ]);
        let took = started.elapsed();
        let message = outcome.fails(exit);
        assert!(took < Duration::from_secs(10), "{status} took {took:?}");
        let told = exit == 3 || message.contains(code);
        assert!(told, "{code} is not in {message}");
        assert!(
            lab.s3.faults().happened()[0] <= 3,
            "{status} was asked for again"
        );
    }
}

fn an_outage_costs_a_reader_its_patience_once_and_shows_meanwhile() {
    const PATIENCE: Duration = Duration::from_secs(8);
    let lab = Lab::new();
    fill(&lab, 2);
    let mount = lab.mount("", &["--patience", "8s"]);
    lab.s3
        .faults()
        .set([Rule::new(Fault::Status(503, "ServiceUnavailable"))]);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let started = Instant::now();
            // Several pages: when they fail, the kernel asks for the first of them again.
            let error = std::fs::read(mount.path("large")).unwrap_err();
            (error.raw_os_error(), started.elapsed())
        });
        wait_until("the status shows it", PATIENCE, || {
            let status = lab.weir(["status", "-o", "json"]).ok();
            let status: serde_json::Value = serde_json::from_str(&status).unwrap();
            status["masters"][0]["workers"][0]["waiting_reads"].as_u64() >= Some(1)
        });
        let (error, took) = reader.join().unwrap();
        assert_eq!(error, Some(EIO));
        assert!(took < PATIENCE.mul_f64(1.75), "it took {took:?}");
    });
}
