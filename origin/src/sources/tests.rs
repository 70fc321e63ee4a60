use super::*;

fn policy(endpoints: &[&str]) -> SourcePolicy {
    let endpoints = endpoints.iter().map(|text| text.parse().unwrap());
    SourcePolicy::of("weir worker", Vec::new(), endpoints.collect())
}

fn spec(endpoint: &str) -> OriginSpec {
    OriginSpec {
        endpoint: Some(endpoint.to_owned()),
        anonymous: true,
        ..OriginSpec::parse("s3://bucket").unwrap()
    }
}

/// Whether a request may go to `endpoint`, and to these of the addresses that it has.
fn reaches(policy: &SourcePolicy, spec: &OriginSpec, addresses: &[&str]) -> Result<usize, String> {
    reaches_with(policy, spec, None, addresses)
}

fn reaches_with(
    policy: &SourcePolicy,
    spec: &OriginSpec,
    own: Option<&str>,
    addresses: &[&str],
) -> Result<usize, String> {
    let own = || Some(Url::parse(own?).unwrap());
    let reach = policy.reach_with(spec, own).map_err(|e| e.to_string())?;
    let uri: Uri = spec
        .endpoint_url(spec.endpoint.as_ref().unwrap())
        .unwrap()
        .as_str()
        .parse()
        .unwrap();
    let told = |refused: Forbidden| refused.of("s3://bucket".into()).to_string();
    reach.check_name(&uri, false).map_err(told)?;
    let addresses = addresses
        .iter()
        .map(|ip| SocketAddr::new(ip.parse().unwrap(), 0));
    let admitted = reach.admit(&uri, addresses.collect()).map_err(told)?;
    Ok(admitted.len())
}

#[test]
fn special_addresses_are_refused_however_they_are_written_and_the_remedy_is_named() {
    let none = policy(&[]);
    for endpoint in [
        "http://127.0.0.1:9000",
        "http://2130706433:9000",
        "http://0x7f000001",
        "http://0177.0.0.1",
        "http://127.1",
        "http://127.0.0.1.",
        "http://[::1]",
        "http://[::ffff:127.0.0.1]:80",
        "http://[::ffff:a9fe:a9fe]",
        "http://169.254.169.254/latest",
        "http://[fe80::1]",
        "http://0.0.0.0:9000",
        "http://0",
        "http://[::]",
        "http://224.0.0.1",
        "https://127.0.0.1",
    ] {
        let refused = reaches(&none, &spec(endpoint), &[]).unwrap_err();
        for said in ["s3://bucket", "`weir worker`", "--allow-endpoint"] {
            assert!(refused.contains(said), "{endpoint}: {refused}");
        }
    }
    // A user in the URL is not its host.
    let disguised = spec("http://s3.amazonaws.com@127.0.0.1/");
    assert!(reaches(&none, &disguised, &[]).is_err());
    // A name is what it resolves to.
    for ip in [
        "127.0.0.1",
        "::1",
        "169.254.169.254",
        "::ffff:127.0.0.1",
        "fe80::1",
        "0.0.0.0",
    ] {
        let refused = reaches(&none, &spec("http://minio.:9000"), &[ip]).unwrap_err();
        assert!(refused.contains("--allow-endpoint"), "{ip}: {refused}");
        assert!(
            reaches(&none, &spec("https://s3.amazonaws.com"), &[ip]).is_err(),
            "{ip}"
        );
    }
    assert_eq!(
        reaches(
            &none,
            &spec("http://minio:9000"),
            &["10.0.0.1", "127.0.0.1"]
        ),
        Ok(1)
    );
    assert_eq!(reaches(&none, &spec("http://10.0.0.1:9000"), &[]), Ok(0));
    assert_eq!(
        reaches(
            &SourcePolicy::unlimited(),
            &spec("http://minio"),
            &["127.0.0.1"]
        ),
        Ok(1)
    );
}

#[test]
fn what_is_named_is_allowed_and_once_anything_is_named_all_else_is_refused() {
    let ip = ["127.0.0.1"];
    let far = ["52.0.0.1"];
    for (allowed, endpoint, addresses, is_allowed) in [
        ("127.0.0.1", "http://127.0.0.1:9000", &ip, true),
        ("127.0.0.1:9000", "http://127.0.0.1:9000", &ip, true),
        ("127.0.0.1:9000", "http://127.0.0.1:9001", &ip, false),
        ("127.0.0.1:9000", "http://minio:9000", &ip, true),
        ("127.0.0.0/8", "http://minio", &ip, true),
        ("10.0.0.0/8", "http://minio", &ip, false),
        ("10.0.0.0/8", "http://minio", &far, false),
        ("0.0.0.0/0", "http://minio", &far, true),
        ("minio", "http://minio:9000", &ip, true),
        ("minio", "http://MINIO.:9000", &ip, true),
        ("minio", "http://other", &far, false),
        ("minio:9000", "http://minio:9001", &far, false),
        ("*.example.com", "http://s3.example.com", &far, true),
        // Whoever may make a name in the domain must not be able to lead to this machine.
        ("*.example.com", "http://s3.example.com", &ip, false),
        ("*.example.com", "http://example.com", &far, false),
        ("minio", "https://s3.eu-west-1.amazonaws.com", &far, true),
        ("minio", "http://s3.eu-west-1.amazonaws.com", &far, false),
        (
            "minio",
            "https://x.execute-api.eu-west-1.amazonaws.com",
            &far,
            false,
        ),
        ("any", "http://169.254.169.254", &ip, true),
        ("any", "http://whatever", &ip, true),
    ] {
        let outcome = reaches(&policy(&[allowed]), &spec(endpoint), addresses);
        assert_eq!(
            outcome.is_ok(),
            is_allowed,
            "{allowed} {endpoint}: {outcome:?}"
        );
    }
}

#[test]
fn a_signature_is_for_aws_for_the_process_s_own_endpoint_and_for_what_is_named() {
    let signs = |allowed: &[&str], endpoint: &str, own: Option<&str>| {
        let signed = OriginSpec {
            anonymous: false,
            ..spec(endpoint)
        };
        reaches_with(&policy(allowed), &signed, own, &["52.0.0.1"]).map(drop)
    };
    signs(&[], "https://s3.eu-west-1.amazonaws.com", None).unwrap();
    signs(&[], "http://minio:9000", Some("http://minio:9000/")).unwrap();
    signs(&["minio"], "http://minio:9000", None).unwrap();
    for (endpoint, own) in [
        ("http://minio:9000", None),
        ("http://minio:9000", Some("http://minio:9001")),
        ("http://minio:9000", Some("https://minio:9000")),
        ("http://evil.example.com", Some("http://minio:9000")),
        // Not over a connection that anybody on the way can read, and not to a customer of AWS.
        ("http://s3.eu-west-1.amazonaws.com", None),
        ("https://x.execute-api.eu-west-1.amazonaws.com", None),
        ("https://s3.eu-west-1.amazonaws.com.evil.com", None),
    ] {
        let refused = signs(&[], endpoint, own).unwrap_err();
        for said in [
            "credentials of `weir worker`",
            "--allow-endpoint",
            "--anonymous",
        ] {
            assert!(refused.contains(said), "{endpoint}: {refused}");
        }
        assert!(
            reaches(&policy(&[]), &spec(endpoint), &["52.0.0.1"]).is_ok(),
            "{endpoint}"
        );
    }
    // The process's own endpoint may be on this machine.
    signs(&[], "http://127.0.0.1:9000", Some("http://127.0.0.1:9000")).unwrap();
    signs(
        &["minio"],
        "http://127.0.0.1:9000",
        Some("http://127.0.0.1:9000"),
    )
    .unwrap();
}

#[test]
fn the_bucket_s_own_host_counts_as_the_endpoint_and_a_redirect_as_where_it_leads() {
    let virtual_hosted = OriginSpec {
        addressing: Addressing::Virtual,
        url: "s3://My.bucket/p".to_owned(),
        ..spec("http://minio:9000")
    };
    let reach = policy(&["minio"])
        .reach_with(&virtual_hosted, || None)
        .unwrap();
    let allowed = |uri: &str| {
        let uri: Uri = uri.parse().unwrap();
        let address = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
        reach.check_name(&uri, false).is_ok()
            && reach.check_signature(&uri).is_ok()
            && reach.admit(&uri, address).is_ok()
    };
    assert!(allowed("http://My.bucket.minio:9000/p/k"));
    assert!(!allowed("http://other.minio:9000/p/k"));
    assert!(!allowed("http://evil.example.com/p/k"));
    assert!(!allowed("http://169.254.169.254/latest"));
    let reach = policy(&[]).reach_with(&spec("http://minio:9000"), || {
        Url::parse("http://minio:9000").ok()
    });
    let signs = |uri: &str| {
        reach
            .as_ref()
            .unwrap()
            .check_signature(&uri.parse().unwrap())
            .is_ok()
    };
    assert!(signs("http://minio:9000/bucket/k"));
    for elsewhere in [
        "http://minio:9001/",
        "https://minio:9000/",
        "http://eu.minio:9000/",
    ] {
        assert!(!signs(elsewhere), "{elsewhere}");
    }
}

#[test]
fn behind_a_proxy_the_name_must_do() {
    let behind = |allowed: &[&str], endpoint: &str| {
        let reach = policy(allowed)
            .reach_with(&spec(endpoint), || None)
            .map_err(|e| e.to_string())?;
        let uri: Uri = endpoint.parse().unwrap();
        reach.check_name(&uri, true).map_err(|e| e.to_string())
    };
    behind(&[], "http://minio").unwrap();
    behind(&["minio"], "http://minio").unwrap();
    behind(&["127.0.0.1"], "http://127.0.0.1").unwrap();
    for (allowed, endpoint) in [
        (&[] as &[&str], "http://localhost:9000"),
        (&[], "http://x.localhost"),
        (&[], "http://169.254.169.254"),
        (&["10.0.0.0/8"], "http://minio"),
    ] {
        behind(allowed, endpoint).unwrap_err();
    }
}

#[test]
fn refusals_are_remembered_up_to_a_bound() {
    let policy = policy(&[]);
    for number in 0..3 * MAX_LOGGED {
        let bucket = OriginSpec {
            url: format!("s3://b{number}"),
            ..spec("http://127.0.0.1")
        };
        policy.reach_with(&bucket, || None).unwrap_err();
    }
    assert_eq!(policy.limits.unwrap().logged.remembered(), MAX_LOGGED);
}

#[test]
fn an_allowed_directory_is_absolute() {
    for good in ["/", "/data", "/data/", "file:///data"] {
        good.parse::<AllowedDir>().unwrap();
    }
    for bad in ["", "data", "/data/../etc", "./data", "file://data"] {
        assert!(bad.parse::<AllowedDir>().is_err(), "{bad}");
    }
}

#[test]
fn datanodes_are_trusted_behind_a_namenode_that_the_operator_names() {
    let reach =
        |endpoints: &[&str], url: &str| policy(endpoints).reach(&OriginSpec::parse(url).unwrap());
    let at = |address: &str| vec![address.parse::<SocketAddr>().unwrap()];
    let uri = |address: &str| hdfs_uri(address).unwrap();
    let stranger = reach(&[], "hdfs://10.0.0.1:8020/data").unwrap();
    assert!(!stranger.vouches_for(&uri("10.0.0.1:8020"), &at("10.0.0.1:8020")));
    for (address, is_admitted) in [
        ("10.0.0.2:9866", true),
        ("127.0.0.1:9866", false),
        ("169.254.169.254:80", false),
    ] {
        let admitted = stranger.admit_named_by_other(&uri(address), at(address));
        assert_eq!(admitted.is_ok(), is_admitted, "{address}");
    }
    let named = reach(&["127.0.0.1:8020"], "hdfs://127.0.0.1:8020/data").unwrap();
    assert!(named.vouches_for(&uri("127.0.0.1:8020"), &at("127.0.0.1:8020")));
    for refused in ["hdfs://127.0.0.1:8021/", "hdfs://10.0.0.1:8020/"] {
        assert!(reach(&["127.0.0.1:8020"], refused).is_err(), "{refused}");
    }
    assert!(reach(&[], "hdfs://127.0.0.1:8020/").is_err());
}

#[test]
fn kerberos_tickets_are_shown_only_to_namenodes_that_the_operator_names() {
    let mut spec = OriginSpec::parse("hdfs://nn:8020/data").unwrap();
    let secure = "hadoop.security.authentication".to_owned();
    spec.hdfs.config.insert(secure, "kerberos".to_owned());
    let error = policy(&[]).check(&spec).unwrap_err().to_string();
    assert!(
        error.contains("Kerberos") && error.contains("--allow-endpoint nn:8020"),
        "{error}"
    );
    policy(&["nn:8020"]).check(&spec).unwrap();
    SourcePolicy::unlimited().check(&spec).unwrap();
}
