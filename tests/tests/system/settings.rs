//! Variables, profiles and services that give keys: what works as with every AWS tool, and what is told at once.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use weir_s3_server::Config;
use weir_tests::{Authority, BUCKET, Lab, content, self_signed, wait_until};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "variables_that_are_set_to_nothing_are_unset",
        variables_that_are_set_to_nothing_are_unset,
    ),
    (
        "settings_that_make_no_sense_are_told_at_once",
        settings_that_make_no_sense_are_told_at_once,
    ),
    (
        "services_that_give_no_keys_are_told_at_once",
        services_that_give_no_keys_are_told_at_once,
    ),
    (
        "a_role_of_a_web_identity_is_renewed_and_no_read_fails",
        a_role_of_a_web_identity_is_renewed_and_no_read_fails,
    ),
    (
        "profiles_are_read_however_they_are_written",
        profiles_are_read_however_they_are_written,
    ),
    (
        "a_bundle_of_authorities_is_trusted_and_a_missing_one_is_named",
        a_bundle_of_authorities_is_trusted_and_a_missing_one_is_named,
    ),
    (
        "a_certificate_that_signs_itself_is_trusted_for_its_names_if_it_is_in_the_bundle",
        a_certificate_that_signs_itself_is_trusted_for_its_names_if_it_is_in_the_bundle,
    ),
    (
        "no_proxy_exempts_every_host_with_a_star",
        no_proxy_exempts_every_host_with_a_star,
    ),
];

/// What does not pass is told within 2 s on a machine with time to spare; this one may be busy.
const AT_ONCE: Duration = Duration::from_secs(10);

/// A world whose server wants keys.
fn keyed() -> Lab {
    let lab = Lab::with(Config {
        credentials: Some(("key-0".to_owned(), "secret-0".to_owned())),
        ..Config::default()
    });
    lab.put_all(&[("f".to_owned(), content(1, 3000))].into());
    lab
}

/// The message of a mount that must be refused with `code`, at once.
#[track_caller]
fn refused(lab: &Lab, variables: &[(&str, &str)], flags: &[&str], code: i32) -> String {
    let dir = lab.path("refused");
    let endpoint = lab.s3.endpoint();
    let (url, dir) = (lab.url(""), dir.to_str().unwrap());
    let mut command = lab.command(
        ["mount", &url, dir, "--endpoint", &endpoint]
            .iter()
            .chain(flags),
    );
    command.envs(variables.iter().copied());
    let started = Instant::now();
    let output = command.output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{variables:?}: {message}");
    assert!(started.elapsed() < AT_ONCE, "{message}");
    message
}

fn variables_that_are_set_to_nothing_are_unset() {
    let mut lab = keyed();
    std::fs::create_dir(lab.path(".aws")).unwrap();
    let keys = "[default]\naws_access_key_id = key-0\naws_secret_access_key = secret-0\n";
    std::fs::write(lab.path(".aws/credentials"), keys).unwrap();
    for name in [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_PROFILE",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_CONFIG_FILE",
        "AWS_SHARED_CREDENTIALS_FILE",
        "AWS_CA_BUNDLE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "WEIR_MEM",
        "WEIR_HTTP",
        "WEIR_NODE",
        "WEIR_MASTER",
        "WEIR_PATIENCE",
        "WEIR_LOG",
        "http_proxy",
        "HTTP_PROXY",
        "https_proxy",
        "NO_PROXY",
    ] {
        lab.set_env(name, "");
    }
    let endpoint = lab.s3.endpoint();
    let mount = lab.mount_at(&lab.url(""), "mnt", &["--endpoint", &endpoint]);
    assert!(mount.read("f") == content(1, 3000));
}

fn settings_that_make_no_sense_are_told_at_once() {
    let lab = keyed();
    let gone = lab.path("gone");
    let gone = gone.to_str().unwrap();
    let agent = "http://127.0.0.1:1/";
    for (variables, flags, said) in [
        (&[][..], &["--profile", "nobody"][..], &["\"nobody\""][..]),
        (&[("AWS_PROFILE", "nobody")], &[], &["\"nobody\""]),
        (
            &[("AWS_CONFIG_FILE", gone)],
            &[],
            &["AWS_CONFIG_FILE", gone],
        ),
        (
            &[("AWS_SHARED_CREDENTIALS_FILE", "/")],
            &[],
            &["AWS_SHARED_CREDENTIALS_FILE"],
        ),
        (
            &[
                ("AWS_WEB_IDENTITY_TOKEN_FILE", gone),
                ("AWS_ROLE_ARN", "arn"),
            ],
            &[],
            &["AWS_WEB_IDENTITY_TOKEN_FILE", gone],
        ),
        (
            &[
                ("AWS_CONTAINER_CREDENTIALS_FULL_URI", agent),
                ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", gone),
            ],
            &[],
            &["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", gone],
        ),
        (
            &[("AWS_ACCESS_KEY_ID", "hidden")],
            &[],
            &["AWS_SECRET_ACCESS_KEY"],
        ),
    ] {
        let message = refused(&lab, variables, flags, 2);
        for said in said {
            assert!(message.contains(said), "{said} is not in {message}");
        }
        assert!(!message.contains("hidden"), "{message}");
    }
}

/// A service that answers each request, head and body, with a status and a body. It ends with the process.
fn service(reply: impl Fn(&str) -> (u16, String) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let Ok(request) = request(&stream) else {
                continue;
            };
            let (status, body) = reply(&request);
            let length = body.len();
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n");
            let _ = (&stream).write_all((head + &body).as_bytes());
        }
    });
    url
}

fn request(stream: &TcpStream) -> std::io::Result<String> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    let length = head.to_ascii_lowercase();
    let length = length.split("content-length: ").nth(1);
    let length = length.and_then(|rest| rest.split("\r\n").next()?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body)?;
    Ok(head + &String::from_utf8_lossy(&body))
}

fn services_that_give_no_keys_are_told_at_once() {
    let lab = keyed();
    let sts = service(|_| {
        let code = "<E><Error><Code>AccessDenied</Code><Message>m</Message></Error></E>";
        (403, code.to_owned())
    });
    let token = lab.path("token");
    std::fs::write(&token, "t").unwrap();
    let token = token.to_str().unwrap();
    let web = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/pod"),
        ("AWS_ENDPOINT_URL_STS", &sts),
    ];
    let message = refused(&lab, &web, &[], 5);
    for said in ["AccessDenied", "role/pod", "sts:AssumeRole", &sts] {
        assert!(message.contains(said), "{said} is not in {message}");
    }
    // One that is not there is said to be, and is not waited for as an origin would be.
    let nobody = "http://127.0.0.1:1";
    let on = ("AWS_EC2_METADATA_DISABLED", "false");
    let instance = [on, ("AWS_EC2_METADATA_SERVICE_ENDPOINT", nobody)];
    let message = refused(&lab, &instance, &[], 5);
    assert!(
        message.contains("metadata service") && message.contains(nobody),
        "{message}"
    );
    let message = refused(
        &lab,
        &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", nobody)],
        &[],
        5,
    );
    assert!(
        message.contains("AWS_CONTAINER") && message.contains(nobody),
        "{message}"
    );
    let message = refused(&lab, &[("AWS_EC2_METADATA_DISABLED", "TRUE")], &[], 5);
    assert!(message.contains("AWS_EC2_METADATA_DISABLED"), "{message}");
}

fn a_role_of_a_web_identity_is_renewed_and_no_read_fails() {
    const ROUNDS: usize = 4;
    let mut lab = keyed();
    let number = Arc::new(AtomicUsize::new(0));
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let (given, noted) = (number.clone(), asked.clone());
    let sts = service(move |request| {
        noted.lock().unwrap().push(request.to_owned());
        let number = given.load(Ordering::SeqCst);
        let document = format!(
            "<R><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>key-{number}</AccessKeyId>\
             <SecretAccessKey>secret-{number}</SecretAccessKey><SessionToken>T</SessionToken>\
             <Expiration>2199-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult></R>"
        );
        (200, document)
    });
    let token = lab.path("token");
    std::fs::write(&token, "token-0\n").unwrap();
    lab.set_env("AWS_WEB_IDENTITY_TOKEN_FILE", "~/token");
    lab.set_env("AWS_ROLE_ARN", "arn:aws:iam::1:role/pod");
    lab.set_env("AWS_ENDPOINT_URL", &sts);
    for round in 0..ROUNDS {
        for n in 0..8 {
            let name = format!("round-{round}/f{n}");
            lab.s3
                .edit(BUCKET, |bucket| bucket.put(name.as_str(), content(n, 3000)));
        }
    }
    let endpoint = lab.s3.endpoint();
    let mount = lab.mount_at(&lab.url(""), "mnt", &["--endpoint", &endpoint]);
    for round in 0..ROUNDS {
        for n in 0..8 {
            assert!(mount.read(&format!("round-{round}/f{n}")) == content(n, 3000));
        }
        // Tokens of pods are exchanged by Kubernetes, and the keys of the role expire.
        std::fs::write(&token, format!("token-{}\n", round + 1)).unwrap();
        number.store(round + 1, Ordering::SeqCst);
        let (key, secret) = (
            format!("key-{}", round + 1),
            format!("secret-{}", round + 1),
        );
        lab.s3.replace_keys(&key, &secret);
    }
    wait_until("the last token was used", Duration::from_secs(10), || {
        let _ = std::fs::read(mount.path("f"));
        let asked = asked.lock().unwrap();
        asked
            .last()
            .is_some_and(|last| last.contains(&format!("WebIdentityToken=token-{ROUNDS}")))
    });
    assert!(mount.metric("weir_fuse_errors_total", "") < 0.5);
    assert!(!mount.log().contains("secret-"), "a secret is in the log");
}

fn profiles_are_read_however_they_are_written() {
    let mut lab = keyed();
    let sts = service(|_| {
        let document = "<R><AssumeRoleResult><Credentials><AccessKeyId>key-0</AccessKeyId><SecretAccessKey>secret-0</SecretAccessKey></Credentials></AssumeRoleResult></R>";
        (200, document.to_owned())
    });
    let keys = "AWS_ACCESS_KEY_ID=key-0\nAWS_Secret_Access_Key : secret-0\n";
    let config = format!(
        "[profile \"my prof\"]\n{keys}[profile role]\nrole_arn = arn:aws:iam::1:role/r\nsource_profile = other\nservices = local\n\
         [profile other]\naws_access_key_id = o\naws_secret_access_key = o\n[services local]\nsts =\n  endpoint_url = {sts}\n"
    );
    std::fs::write(lab.path("my config"), config).unwrap();
    lab.set_env("AWS_CONFIG_FILE", "~/my config");
    let endpoint = lab.s3.endpoint();
    for (number, profile) in ["my prof", "role"].into_iter().enumerate() {
        let flags = ["--endpoint", &endpoint, "--profile", profile];
        let mount = lab.mount_at(&lab.url(""), &format!("mnt-{number}"), &flags);
        assert!(mount.read("f") == content(1, 3000));
    }
}

fn a_bundle_of_authorities_is_trusted_and_a_missing_one_is_named() {
    let authority = Authority::new();
    let mut lab = Lab::with(Config {
        identity: Some(authority.identity("127.0.0.1", false)),
        ..Config::default()
    });
    lab.put_all(&[("f".to_owned(), content(1, 3000))].into());
    let empty = lab.path("empty");
    std::fs::write(&empty, "").unwrap();
    let gone = lab.path("gone");
    for path in [&empty, &gone] {
        let path = path.to_str().unwrap();
        let message = refused(&lab, &[("AWS_CA_BUNDLE", path)], &["--anonymous"], 2);
        assert!(
            message.contains("AWS_CA_BUNDLE") && message.contains(path),
            "{message}"
        );
    }
    authority.save(&lab.path("authorities.pem"));
    lab.set_env("AWS_CA_BUNDLE", "~/authorities.pem");
    // What is named counts instead of the system's.
    lab.set_env("SSL_CERT_FILE", empty.to_str().unwrap());
    assert!(lab.mount("", &[]).read("f") == content(1, 3000));
}

fn a_certificate_that_signs_itself_is_trusted_for_its_names_if_it_is_in_the_bundle() {
    let lab = |host: &str, expired: bool| {
        let (identity, pem) = self_signed(host, expired);
        let lab = Lab::with(Config {
            identity: Some(identity),
            ..Config::default()
        });
        lab.put_all(&[("f".to_owned(), content(1, 3000))].into());
        std::fs::write(lab.path("own.pem"), pem).unwrap();
        lab
    };
    let mut right = lab("127.0.0.1", false);
    right.set_env("AWS_CA_BUNDLE", "~/own.pem");
    assert!(right.mount("", &[]).read("f") == content(1, 3000));
    for (host, expired, said) in [
        ("other.example", false, "other.example"),
        ("127.0.0.1", true, "expired"),
    ] {
        let message = refused(
            &lab(host, expired),
            &[("AWS_CA_BUNDLE", "~/own.pem")],
            &["--anonymous"],
            7,
        );
        assert!(message.contains(said), "{said} is not in {message}");
    }
    // Another one for the same name.
    let world = lab("127.0.0.1", false);
    std::fs::write(world.path("own.pem"), self_signed("127.0.0.1", false).1).unwrap();
    let bundle = [("AWS_CA_BUNDLE", "~/own.pem")];
    let message = refused(&world, &bundle, &["--anonymous"], 7);
    assert!(message.contains("not trusted"), "{message}");
}

fn no_proxy_exempts_every_host_with_a_star() {
    let mut lab = Lab::new();
    lab.put_all(&[("f".to_owned(), content(1, 3000))].into());
    lab.set_env("http_proxy", "http://127.0.0.1:1");
    for (number, exempt) in ["*", "127.0.0.0/8", "x, 127.0.0.1"].into_iter().enumerate() {
        lab.set_env("no_proxy", exempt);
        let flags = lab.origin_flags();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let mount = lab.mount_at(&lab.url(""), &format!("mnt-{number}"), &flags);
        assert!(mount.read("f") == content(1, 3000), "{exempt}");
    }
}
