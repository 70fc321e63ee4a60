//! Origins that want to know who asks: keys from profiles, programs, roles and the environment, and how buckets are named.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use weir_s3_server::{Config, S3Server};
use weir_tests::{Lab, content, drop_pages};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("requests_are_signed", requests_are_signed),
    (
        "keys_of_a_role_are_fetched_and_serve_readers_on_every_thread",
        keys_of_a_role_are_fetched_and_serve_readers_on_every_thread,
    ),
    (
        "buckets_are_addressed_by_virtual_host",
        buckets_are_addressed_by_virtual_host,
    ),
];

fn requests_are_signed() {
    let mut lab = Lab::new();
    let server = S3Server::start(Config {
        credentials: Some(("the-key".to_owned(), "the-secret".to_owned())),
        ..Config::default()
    })
    .unwrap();
    server.edit("private", |bucket| bucket.put("a b/ü+c", "signed"));
    let endpoint = server.endpoint();
    let url = "s3://private";
    let mnt = lab.path("mnt").to_str().unwrap().to_owned();
    let refused = lab
        .weir(["mount", url, &mnt, "--endpoint", &endpoint, "--anonymous"])
        .fails(5);
    assert!(refused.contains("private"), "{refused}");

    // Keys from the program of a profile, which is run once for many requests.
    std::fs::create_dir(lab.path(".aws")).unwrap();
    let runs = lab.path("runs");
    let program = format!(
        "[profile program]\ncredential_process = echo run >> {}; echo '{}'\n",
        runs.display(),
        r#"{"Version":1,"AccessKeyId":"the-key","SecretAccessKey":"the-secret"}"#
    );
    std::fs::write(lab.path(".aws/config"), program).unwrap();
    let flags = ["--endpoint", &endpoint, "--profile", "program"];
    let mount = lab.mount_at(url, "mnt", &flags);
    assert_eq!(mount.read("a b/ü+c"), b"signed");
    mount.unmount();
    let runs = std::fs::read_to_string(runs).unwrap().lines().count();
    assert!(runs <= 2, "the program was run {runs} times");

    // Keys from a profile, and from the environment before it.
    let profile = "[work]\naws_access_key_id = the-key\naws_secret_access_key = the-secret\n";
    std::fs::write(lab.path(".aws/credentials"), profile).unwrap();
    let mount = lab.mount_at(url, "mnt", &["--endpoint", &endpoint, "--profile", "work"]);
    assert_eq!(mount.read("a b/ü+c"), b"signed");
    mount.unmount();
    lab.set_env("AWS_ACCESS_KEY_ID", "the-key");
    lab.set_env("AWS_SECRET_ACCESS_KEY", "wrong");
    let flags = ["mount", url, &mnt, "--endpoint", &endpoint, "--refresh"];
    let refused = lab.weir(flags).fails(5);
    assert!(refused.contains("private"), "{refused}");
    assert!(
        !refused.contains("wrong"),
        "the secret is in the message: {refused}"
    );
    lab.set_env("AWS_SECRET_ACCESS_KEY", "the-secret");
    lab.set_env("AWS_ENDPOINT_URL_S3", &endpoint);
    let mount = lab.mount_at(url, "mnt", &["--refresh"]);
    drop_pages([mount.path("a b/ü+c")]);
    assert_eq!(mount.read("a b/ü+c"), b"signed");
}

/// A service that gives every caller the keys of a role, as containers have one. Its URL.
fn role_keys(key: &str, secret: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let document = format!(
        r#"{{"AccessKeyId":"{key}","SecretAccessKey":"{secret}","Token":"t","Expiration":"2099-01-01T00:00:00Z"}}"#
    );
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
            if lines.all(|line| !line.is_empty()) {
                continue; // it broke off
            }
            let length = document.len();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            let _ = (&stream).write_all(format!("{head}{document}").as_bytes());
        }
    });
    url
}

fn keys_of_a_role_are_fetched_and_serve_readers_on_every_thread() {
    let mut lab = Lab::new();
    let server = S3Server::start(Config {
        credentials: Some(("role-key".to_owned(), "role-secret".to_owned())),
        ..Config::default()
    })
    .unwrap();
    let files: Vec<(String, Vec<u8>)> = (0..64)
        .map(|n| (format!("f{n}"), content(n, 3000)))
        .collect();
    for (name, content) in &files {
        server.edit("private", |bucket| {
            bucket.put(name.as_str(), content.clone());
        });
    }
    let token = lab.path("token");
    std::fs::write(&token, "t").unwrap();
    let url = role_keys("role-key", "role-secret");
    lab.set_env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &url);
    let variable = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
    lab.set_env(variable, token.to_str().unwrap());
    let flags = ["--endpoint", &server.endpoint(), "--read-ahead", "off"];
    let mount = lab.mount_at("s3://private", "mnt", &flags);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for part in files.chunks(8) {
            let mount = &mount;
            scope.spawn(move || {
                for (name, content) in part {
                    assert!(mount.read(name) == *content, "{name}");
                }
            });
        }
    });
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "a reader waited for keys: {:?}",
        started.elapsed()
    );
}

fn buckets_are_addressed_by_virtual_host() {
    let mut lab = Lab::new();
    let server = S3Server::start(Config {
        credentials: Some(("the-key".to_owned(), "the-secret".to_owned())),
        domain: Some("s3.test".to_owned()),
        ..Config::default()
    })
    .unwrap();
    server.edit("private", |bucket| bucket.put("dir/a b", "by host"));
    // No name server knows bucket.s3.test; as a proxy, the server gets its requests all the same.
    lab.set_env("http_proxy", &server.endpoint());
    lab.set_env("AWS_ACCESS_KEY_ID", "the-key");
    lab.set_env("AWS_SECRET_ACCESS_KEY", "the-secret");
    let flags = ["--endpoint", "http://s3.test", "--addressing", "virtual"];
    let mount = lab.mount_at("s3://private/dir", "mnt", &flags);
    assert_eq!(mount.read("a b"), b"by host");
}
