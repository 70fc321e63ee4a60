//! Keys that expire, and the programs that renew them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use weir_s3_server::Config;
use weir_tests::{BUCKET, Lab, Mount, content, wait_until};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "keys_that_expire_are_renewed_and_no_read_fails",
        keys_that_expire_are_renewed_and_no_read_fails,
    ),
    (
        "a_program_that_gives_expired_keys_is_named",
        a_program_that_gives_expired_keys_is_named,
    ),
];

/// A world whose server wants keys, and whose profile `work` has a program that prints them.
struct Keyed {
    lab: Lab,
    keys: PathBuf,
    runs: PathBuf,
}

/// A time that keys have not expired at, and one that they have.
const LATER: &str = "2199-01-01T00:00:00Z";
const LONG_AGO: &str = "1999-01-01T00:00:00Z";

impl Keyed {
    fn new() -> Self {
        let lab = Lab::with(Config {
            credentials: Some(("key-0".to_owned(), "secret-0".to_owned())),
            ..Config::default()
        });
        let (keys, runs) = (lab.path("keys.json"), lab.path("runs"));
        let profile = format!(
            "[profile work]\ncredential_process = echo run >> {}; cat {}\n",
            runs.display(),
            keys.display()
        );
        std::fs::create_dir(lab.path(".aws")).unwrap();
        std::fs::write(lab.path(".aws/config"), profile).unwrap();
        let keyed = Self { lab, keys, runs };
        keyed.print(0, LATER);
        keyed
    }

    /// From now on the program prints these keys.
    fn print(&self, number: usize, expires: &str) {
        let json = format!(
            r#"{{"Version":1,"AccessKeyId":"key-{number}","SecretAccessKey":"secret-{number}","Expiration":"{expires}"}}"#
        );
        // At once, since it may be running.
        let new = self.lab.path("keys.new");
        std::fs::write(&new, json).unwrap();
        std::fs::rename(new, &self.keys).unwrap();
    }

    /// From now on the server takes these keys alone.
    fn demand(&self, number: usize) {
        let (key, secret) = (format!("key-{number}"), format!("secret-{number}"));
        self.lab.s3.replace_keys(&key, &secret);
    }

    fn flags(&self) -> [String; 4] {
        let endpoint = self.lab.s3.endpoint();
        ["--endpoint", &endpoint, "--profile", "work"].map(str::to_owned)
    }

    #[track_caller]
    fn mount(&self) -> Mount<'_> {
        let flags = self.flags();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        self.lab.mount_at(&self.lab.url(""), "mnt", &flags)
    }

    fn runs(&self) -> usize {
        let runs = std::fs::read_to_string(&self.runs).unwrap_or_default();
        runs.lines().count()
    }
}

fn keys_that_expire_are_renewed_and_no_read_fails() {
    const ROUNDS: usize = 5;
    let keyed = Keyed::new();
    // Each round reads a directory of its own, so that nothing of it was read ahead.
    let name = |round: usize, n: u64| format!("round-{round}/f{n:02}");
    let files: BTreeMap<String, Vec<u8>> = (0..ROUNDS)
        .flat_map(|round| (0..40).map(move |n| (round, n)))
        .map(|(round, n)| (name(round, n), content(n, 30_000)))
        .collect();
    keyed.lab.put_all(&files);
    let mount = keyed.mount();
    for round in 0..ROUNDS {
        let before = keyed.lab.s3.stats().gets();
        std::thread::scope(|scope| {
            for reader in 0..4 {
                let (mount, files) = (&mount, &files);
                scope.spawn(move || {
                    for n in (reader..40).step_by(4) {
                        let name = name(round, n);
                        assert!(mount.read(&name) == files[&name], "{name}");
                    }
                });
            }
            // In the middle of their reads.
            wait_until("they read", Duration::from_secs(30), || {
                keyed.lab.s3.stats().gets() > before + 3
            });
            keyed.print(round + 1, LATER);
            keyed.demand(round + 1);
        });
    }
    // Each time once, or twice if somebody was refused just before.
    let runs = keyed.runs();
    assert!((ROUNDS..=4 * ROUNDS).contains(&runs), "{runs} runs");
    assert!(mount.metric("weir_fuse_errors_total", "") < 0.5);
}

fn a_program_that_gives_expired_keys_is_named() {
    let keyed = Keyed::new();
    let (first, second) = (content(1, 3000), content(2, 3000));
    keyed.lab.s3.edit(BUCKET, |bucket| {
        bucket.put("a/f", first.clone());
        bucket.put("b/f", second.clone());
    });
    let url = keyed.lab.url("");
    let refused = |name: &str| {
        let dir = keyed.lab.path(name);
        let args = ["mount", &url, dir.to_str().unwrap()].map(str::to_owned);
        let started = Instant::now();
        let message = keyed
            .lab
            .weir(args.into_iter().chain(keyed.flags()))
            .fails(5);
        assert!(started.elapsed() < Duration::from_secs(10), "{message}");
        message
    };
    // By its own word, and by the server's.
    keyed.print(0, LONG_AGO);
    let message = refused("expired");
    for said in ["credential_process", "\"work\"", LONG_AGO, "clock"] {
        assert!(message.contains(said), "{said} is not in {message}");
    }
    keyed.print(0, LATER);
    keyed.demand(1);
    let message = refused("refused");
    assert!(message.contains("have expired"), "{message}");

    keyed.print(1, LATER);
    let mount = keyed.mount();
    assert!(mount.read("a/f") == first);
    // Those of a mount that runs.
    keyed.print(1, LONG_AGO);
    keyed.demand(2);
    let error = std::fs::read(mount.path("b/f")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    let log = mount.log();
    let told = |line: &str| line.contains("b/f") && line.contains(LONG_AGO);
    assert!(log.lines().any(told), "{log}");
    keyed.print(2, LATER);
    wait_until("it reads again", Duration::from_secs(20), || {
        std::fs::read(mount.path("b/f")).is_ok_and(|bytes| bytes == second)
    });
}
