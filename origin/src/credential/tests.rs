//! Credentials of all kinds: what they are for, and what is shown of them.

use super::*;
use weir_proto::v1;

fn keys(secret: &str, token: Option<&str>) -> Keys {
    Keys {
        access_key: "AKIA".to_owned(),
        secret_key: secret.to_owned(),
        token: token.map(str::to_owned),
    }
}

fn of(kind: CredentialKind) -> Credential {
    Credential {
        kind,
        endpoints: vec!["https://store.lab:9000".to_owned()],
    }
}

/// One of each kind, whose secrets hold `secret`.
fn all(secret: &str) -> Vec<Credential> {
    let arn = || "arn:aws:iam::1:role/r".to_owned();
    vec![
        of(CredentialKind::Keys(keys(secret, Some(secret)))),
        of(CredentialKind::Role {
            arn: arn(),
            external_id: Some("team".to_owned()),
            keys: keys(secret, None),
        }),
        of(CredentialKind::WebIdentity {
            arn: arn(),
            token_file: "/var/run/token".to_owned(),
        }),
        Credential {
            endpoints: vec!["hdfs://NN.lab".to_owned()],
            ..of(CredentialKind::Keytab {
                principal: "weir@LAB".to_owned(),
                keytab: Secret::new([b"\x05\x02", secret.as_bytes()].concat()),
            })
        },
        of(CredentialKind::Google(Secret::new(
            format!(r#"{{"type":"service_account","private_key":"{secret}"}}"#).into_bytes(),
        ))),
        of(CredentialKind::AzureKey {
            account: "account".to_owned(),
            key: Secret::new(format!("{secret}A")),
        }),
        of(CredentialKind::AzureSas(Secret::new(format!(
            "sv=1&sig={secret}"
        )))),
        of(CredentialKind::Header {
            name: "Authorization".to_owned(),
            value: Secret::new(secret.to_owned()),
        }),
    ]
}

#[test]
fn all_kinds_survive_the_protocol() {
    for credential in all("hunter2") {
        credential.check().unwrap();
        let message = v1::Credential::from(&credential);
        assert_eq!(Credential::of_message(message), Some(credential));
    }
    assert_eq!(Credential::of_message(v1::Credential::default()), None);
}

#[test]
fn nothing_that_is_printed_shows_a_secret() {
    for credential in all("hunter2") {
        let message = v1::Credential::from(&credential);
        let request = v1::SetCredentialRequest {
            credential: Some(message.clone()),
            ..v1::SetCredentialRequest::default()
        };
        let bytes = format!("{:?}", b"hunter2").replace(['[', ']'], "");
        for text in [
            format!("{credential:?}"),
            format!("{:#?}", credential.kind),
            format!("{message:?} {:?} {request:?}", message.kind),
        ] {
            assert!(
                !text.contains("hunter2") && !text.contains(&bytes),
                "{text}"
            );
        }
        // Nor does what is said of one that is not valid.
        let wrong = Credential {
            endpoints: vec!["nowhere".to_owned()],
            ..credential
        };
        let error = wrong.check().unwrap_err();
        assert!(
            error.contains("nowhere") && !error.contains("hunter2"),
            "{error}"
        );
    }
    for kind in [
        CredentialKind::Keys(keys("hunter2\n", None)),
        CredentialKind::Keys(keys("", None)),
        CredentialKind::Keys(keys("s", Some("hunter2 hunter2"))),
        CredentialKind::Header {
            name: "Authorization".to_owned(),
            value: Secret::new("hunter2\r\nX: y".to_owned()),
        },
        CredentialKind::Header {
            name: "Authorization: Bearer hunter2".to_owned(),
            value: Secret::new("x".to_owned()),
        },
        CredentialKind::Header {
            name: "Host".to_owned(),
            value: Secret::new("hunter2".to_owned()),
        },
        CredentialKind::Header {
            name: "if-match".to_owned(),
            value: Secret::new("hunter2".to_owned()),
        },
        CredentialKind::Keytab {
            principal: "weir@LAB".to_owned(),
            keytab: Secret::new(b"hunter2".to_vec()),
        },
        CredentialKind::Keytab {
            principal: "weir@LAB".to_owned(),
            keytab: Secret::new(vec![5; MAX_SECRET + 1]),
        },
    ] {
        let error = of(kind).check().unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn credentials_go_to_the_services_that_they_are_for_and_to_no_other() {
    let for_endpoints = |endpoints: &[&str]| Credential {
        endpoints: endpoints
            .iter()
            .map(|&endpoint| endpoint.to_owned())
            .collect(),
        kind: CredentialKind::Keys(keys("s", None)),
    };
    let aws = for_endpoints(&[]);
    for (endpoint, fits) in [
        ("https://s3.amazonaws.com", true),
        ("https://s3.eu-west-1.amazonaws.com/", true),
        ("http://s3.amazonaws.com", false),
        ("https://evil.example/s3.amazonaws.com", false),
        ("https://s3.amazonaws.com@evil.example", false),
        ("http://minio:9000", false),
        ("", false),
    ] {
        assert_eq!(aws.check_service(endpoint).is_ok(), fits, "{endpoint}");
    }
    let own = for_endpoints(&["http://Minio:9000/", "https://store.lab"]);
    for (endpoint, fits) in [
        ("http://minio:9000", true),
        ("http://minio.:9000/below", true),
        ("https://store.lab:443", true),
        ("https://minio:9000", false),
        ("http://minio", false),
        ("http://minio.evil.example:9000", false),
        ("https://s3.amazonaws.com", false),
    ] {
        assert_eq!(own.check_service(endpoint).is_ok(), fits, "{endpoint}");
    }
    let (problem, remedy) = aws.check_service("http://minio:9000").unwrap_err();
    assert!(
        problem.contains("for AWS, not for http://minio:9000"),
        "{problem}"
    );
    assert!(remedy.contains("--endpoint http://minio:9000"), "{remedy}");
}

#[test]
fn each_kind_has_a_service_of_its_own() {
    for (url, endpoint, fits) in [
        ("gs://b", None, "google"),
        ("abfss://c@account.dfs.core.windows.net/p", None, "azure"),
        ("s3://b", None, "keys role web identity"),
        ("https://web.lab/d/", None, ""),
        ("oss://b", Some("https://oss-cn-hangzhou.aliyuncs.com"), ""),
    ] {
        let spec = OriginSpec {
            endpoint: endpoint.map(str::to_owned),
            credentials: Some("team".to_owned()),
            ..OriginSpec::parse(url).unwrap()
        };
        for credential in all("hunter2") {
            let credential = Credential {
                endpoints: Vec::new(),
                ..credential
            };
            let kind = credential.kind_name();
            let fits = fits.contains(kind) || (fits == "azure" && kind.starts_with(fits));
            assert_eq!(
                spec.check_credential(&credential).is_ok(),
                fits,
                "{url} {kind}"
            );
        }
    }
}

#[test]
fn a_kind_that_does_not_fit_the_source_is_an_error_that_says_what_does() {
    let spec = OriginSpec {
        endpoint: Some("https://store.lab:9000".to_owned()),
        credentials: Some("team".to_owned()),
        ..OriginSpec::parse("s3://bucket").unwrap()
    };
    for credential in all("hunter2") {
        let fits = matches!(
            credential.kind,
            CredentialKind::Keys(_)
                | CredentialKind::Role { .. }
                | CredentialKind::WebIdentity { .. }
        );
        match spec.check_credential(&credential) {
            Ok(()) => assert!(fits, "{credential:?}"),
            Err(error) => {
                let error = error.to_string();
                assert!(
                    !fits && error.contains("takes keys, a role or a web identity"),
                    "{error}"
                );
            }
        }
    }
    let elsewhere = OriginSpec {
        endpoint: Some("https://elsewhere".to_owned()),
        ..spec
    };
    let error = elsewhere
        .check_credential(&all("s")[0])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("team") && error.contains("https://elsewhere"),
        "{error}"
    );
}

#[test]
fn what_replaces_credentials_keeps_what_is_left_out() {
    let arn = "arn:aws:iam::1:role/r";
    let old = of(CredentialKind::Role {
        arn: arn.to_owned(),
        external_id: Some("team".to_owned()),
        keys: keys("old", None),
    });
    let new = Credential {
        endpoints: Vec::new(),
        kind: CredentialKind::Role {
            arn: String::new(),
            external_id: None,
            keys: keys("new", None),
        },
    };
    let replaced = new.clone().in_place_of(&old).unwrap();
    assert_eq!(replaced.endpoints, old.endpoints);
    let CredentialKind::Role {
        arn: kept,
        external_id,
        keys: replaced,
    } = &replaced.kind
    else {
        panic!("{replaced:?}");
    };
    assert_eq!((kept.as_str(), external_id.as_deref()), (arn, Some("team")));
    assert_eq!(*replaced, keys("new", None));
    let header = all("hunter2").pop().unwrap();
    let error = new.in_place_of(&header).unwrap_err();
    assert!(
        error.contains("kind header") && error.contains("kind role"),
        "{error}"
    );
}

#[test]
fn a_keytab_is_for_the_namenodes_that_are_named_and_needs_some() {
    let keytab = |endpoints: &[&str]| Credential {
        endpoints: endpoints.iter().map(|&of| of.to_owned()).collect(),
        kind: CredentialKind::Keytab {
            principal: "weir@LAB".to_owned(),
            keytab: Secret::new(b"\x05\x02x".to_vec()),
        },
    };
    for (endpoints, said) in [
        (&[][..], "name its NameNodes with --endpoint"),
        (&["https://nn.lab"], "write hdfs://HOST:PORT"),
        (&["nn.lab:8020"], "write hdfs://HOST:PORT"),
        (&["hdfs://u:hunter2@nn.lab"], "write hdfs://HOST:PORT"),
    ] {
        let error = keytab(endpoints).check().unwrap_err();
        assert!(error.contains(said), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    let error = of(CredentialKind::Keys(keys("s", None)));
    let error = Credential {
        endpoints: vec!["hdfs://nn.lab".to_owned()],
        ..error
    };
    assert!(error.check().unwrap_err().contains("https://HOST"));

    let config = [
        ("hadoop.security.authentication", "kerberos"),
        ("dfs.ha.namenodes.ns", "a,b"),
        ("dfs.namenode.rpc-address.ns.a", "a.lab:8020"),
        ("dfs.namenode.rpc-address.ns.b", "b.lab:9000"),
    ];
    let spec = |url: &str| {
        let mut spec = OriginSpec::parse("hdfs://nn.lab").unwrap();
        let option = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        spec.hdfs.config = config.map(option).into();
        spec.url = url.to_owned();
        spec.credentials = Some("team".to_owned());
        spec.validate().unwrap();
        spec
    };
    let both = ["hdfs://A.lab", "hdfs://b.lab:9000"];
    for (url, endpoints, fits) in [
        ("hdfs://nn.lab:8020/d", &["hdfs://nn.lab"][..], true),
        ("hdfs://nn.lab:9000/d", &["hdfs://nn.lab"], false),
        ("hdfs://other.lab/d", &["hdfs://nn.lab"], false),
        ("hdfs://ns/d", &both, true),
        ("hdfs://ns/d", &both[..1], false),
    ] {
        keytab(endpoints).check().unwrap();
        let checked = spec(url).check_credential(&keytab(endpoints));
        assert_eq!(checked.is_ok(), fits, "{url}: {checked:?}");
    }
    // Where the options do not ask for Kerberos, nobody would look at the keytab.
    let simple = OriginSpec {
        credentials: Some("team".to_owned()),
        ..OriginSpec::parse("hdfs://nn.lab").unwrap()
    };
    let error = simple.validate().unwrap_err().to_string();
    assert!(error.contains("hadoop.security.authentication"), "{error}");
}

#[test]
fn endpoints_are_bounded_so_that_a_list_of_all_credentials_is() {
    let with = |endpoints: Vec<String>| {
        let keys = CredentialKind::Keys(keys("s", None));
        let credential = Credential {
            endpoints,
            kind: keys,
        };
        credential.check()
    };
    with(vec!["http://a".to_owned(); MAX_ENDPOINTS]).unwrap();
    let error = with(vec!["http://a".to_owned(); MAX_ENDPOINTS + 1]).unwrap_err();
    assert!(error.contains("more than 64 endpoints"), "{error}");
    let long = format!("http://{}", "a".repeat(MAX_TEXT));
    assert!(with(vec![long]).is_err());
}

#[test]
fn tokens_of_google_are_asked_for_at_google_or_where_the_credentials_say() {
    let file = |uri: &str, endpoints: &[&str]| {
        Credential {
        endpoints: endpoints.iter().map(|&of| of.to_owned()).collect(),
        kind: CredentialKind::Google(Secret::new(
            serde_json::json!({"type": "service_account", "private_key": "hunter2", "token_uri": uri})
                .to_string()
                .into_bytes(),
        )),
    }
    };
    let own = "https://idp.lab/token";
    for (uri, endpoints, fits) in [
        ("https://oauth2.googleapis.com/token", &[][..], true),
        ("http://oauth2.googleapis.com/token", &[], false),
        ("https://oauth2.googleapis.com.evil/token", &[], false),
        ("http://169.254.169.254/x", &[], false),
        (own, &[], false),
        (
            own,
            &["https://storage.googleapis.com", "https://idp.lab"],
            true,
        ),
    ] {
        let checked = file(uri, endpoints).check();
        assert_eq!(checked.is_ok(), fits, "{uri}: {checked:?}");
        if let Err(error) = checked {
            assert!(
                !error.contains("hunter2") && !error.contains(uri),
                "{error}"
            );
        }
    }
}
