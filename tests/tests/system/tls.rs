//! Origins with TLS, and addresses that lead to none.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use weir_s3_server::{Config, Fault, Identity, Rule};
use weir_tests::{Authority, BUCKET, Lab, content, is_mountpoint};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("a_bucket_is_read_over_tls", a_bucket_is_read_over_tls),
    (
        "each_service_has_the_authorities_that_are_named_for_it",
        each_service_has_the_authorities_that_are_named_for_it,
    ),
    (
        "certificates_that_are_not_trusted_are_told_at_once",
        certificates_that_are_not_trusted_are_told_at_once,
    ),
    (
        "addresses_with_the_wrong_scheme_are_told_at_once",
        addresses_with_the_wrong_scheme_are_told_at_once,
    ),
    (
        "a_host_that_does_not_exist_is_told_at_once",
        a_host_that_does_not_exist_is_told_at_once,
    ),
];

/// Far more than an answer at once takes on a busy machine, far less than the patience of 30 s.
const AT_ONCE: Duration = Duration::from_secs(10);

fn lab_with(identity: Identity) -> Lab {
    let lab = Lab::with(Config {
        identity: Some(identity),
        ..Config::default()
    });
    lab.put_all(&[("f".to_owned(), content(1, 1000))].into());
    lab
}

/// A mount of `endpoint` that must be refused, at once. Gives its message.
#[track_caller]
fn refused(lab: &Lab, endpoint: &str) -> String {
    let dir = lab.path("refused");
    let (url, dir) = (lab.url(""), dir.to_str().unwrap());
    let start = Instant::now();
    let args = ["mount", &url, dir, "--endpoint", endpoint, "--anonymous"];
    let message = lab.weir(args).fails(7);
    assert!(start.elapsed() < AT_ONCE, "{message}");
    assert!(!is_mountpoint(dir.as_ref()));
    message
}

fn a_bucket_is_read_over_tls() {
    let authority = Authority::new();
    let mut lab = lab_with(authority.identity("127.0.0.1", false));
    let bundle = lab.path("authorities.pem");
    authority.save(&bundle);
    lab.set_env("SSL_CERT_FILE", bundle.to_str().unwrap());
    let files: BTreeMap<String, Vec<u8>> = (0..100)
        .map(|n| {
            (
                format!("d{}/f{n}", n % 7),
                content(n, 1 + 1777 * n as usize),
            )
        })
        .chain([("large".to_owned(), content(999, (13 << 20) + 5))])
        .collect();
    lab.put_all(&files);
    let mount = lab.mount("", &[]);
    lab.s3.faults().set([
        Rule::new(Fault::Truncate(5000)).probability(0.1),
        Rule::new(Fault::Reset).probability(0.1),
    ]);
    let names: Vec<_> = files.iter().collect();
    std::thread::scope(|scope| {
        for part in names.chunks(names.len() / 4) {
            let mount = &mount;
            scope.spawn(move || {
                for (name, content) in part {
                    assert!(mount.read(name) == **content, "{name}");
                }
            });
        }
    });
}

fn each_service_has_the_authorities_that_are_named_for_it() {
    let authority = Authority::new();
    let mut lab = lab_with(authority.identity("127.0.0.1", false));
    lab.put_all(&[("list".to_owned(), b"f\t1000\n".to_vec())].into());
    let bundle = lab.path("authorities.pem");
    authority.save(&bundle);
    let bundle = bundle.display();
    let endpoint = lab.s3.endpoint();
    // The same server, as a store and as a plain web server.
    let web = format!("{endpoint}/{BUCKET}/?index=list");
    for value in [
        format!("127.0.0.1={bundle}"),
        bundle.to_string(),
        format!("/nowhere,127.0.0.1={bundle}"),
    ] {
        lab.set_env("WEIR_CA_BUNDLE", &value);
        let mount = lab.mount("", &[]);
        assert!(mount.read("f") == content(1, 1000), "{value}");
        mount.unmount();
        let mount = lab.mount_at(&web, "web", &[]);
        assert!(mount.read("f") == content(1, 1000), "{value}");
        mount.unmount();
    }
    let mut other = lab_with(authority.identity("127.0.0.1", false));
    other.set_env("WEIR_CA_BUNDLE", &format!("other.example={bundle}"));
    let message = refused(&other, &other.s3.endpoint());
    assert!(message.contains("WEIR_CA_BUNDLE"), "{message}");
}

fn certificates_that_are_not_trusted_are_told_at_once() {
    let authority = Authority::new();
    for (identity, is_known, said) in [
        (
            authority.identity("127.0.0.1", false),
            false,
            "UnknownIssuer",
        ),
        (authority.identity("127.0.0.1", true), true, "expired"),
        (
            authority.identity("other.example", false),
            true,
            "other.example",
        ),
    ] {
        let mut lab = lab_with(identity);
        if is_known {
            let bundle = lab.path("authorities.pem");
            authority.save(&bundle);
            lab.set_env("SSL_CERT_FILE", bundle.to_str().unwrap());
        }
        let message = refused(&lab, &lab.s3.endpoint());
        for said in ["certificate is not trusted", "SSL_CERT_FILE", said] {
            assert!(message.contains(said), "{said} is not in {message}");
        }
    }
}

fn addresses_with_the_wrong_scheme_are_told_at_once() {
    let with_tls = lab_with(Authority::new().identity("127.0.0.1", false));
    let endpoint = with_tls.s3.endpoint().replace("https://", "http://");
    let message = refused(&with_tls, &endpoint);
    assert!(message.contains("--endpoint https://"), "{message}");

    let plain = Lab::new();
    let endpoint = plain.s3.endpoint().replace("http://", "https://");
    let message = refused(&plain, &endpoint);
    assert!(message.contains("--endpoint is http://"), "{message}");

    // One that takes TLS for noise and hangs up.
    let endpoint = format!("https://{}", curt());
    let message = refused(&plain, &endpoint);
    assert!(message.contains("--endpoint http://"), "{message}");
}

/// A service that answers requests, and closes the connection on anything else. It ends with the process.
fn curt() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut first = [0; 16 << 10];
            let read = stream.read(&mut first).unwrap_or(0);
            if first[..read].starts_with(b"HEAD ") {
                let _ = stream.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n");
            }
        }
    });
    address
}

fn a_host_that_does_not_exist_is_told_at_once() {
    let lab = Lab::new();
    // A part of a name has 63 characters at most, so no name server needs to be asked.
    let host = format!("{}.example", "x".repeat(64));
    let message = refused(&lab, &format!("http://{host}:9000"));
    assert!(message.contains(&host), "{message}");
    assert!(message.contains("--endpoint"), "{message}");
}
