use weir_core::SourceSpec;
use weir_core::dataset::{Addressing, Patience};

use super::*;

fn document(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: weir.io/v1alpha1\nkind: Dataset\nmetadata:\n  name: {name}\nspec:\n{spec}\n"
    )
}

const SPEC: &str = "  sources:\n  - url: s3://bucket/p";

fn refused(text: &str, said: &[&str]) {
    let error = parse(text.as_bytes()).unwrap_err();
    for said in said {
        assert!(error.contains(said), "{said} is not in {error}");
    }
}

#[test]
fn documents_are_read_in_their_order_as_yaml_or_json() {
    let json = r#"{"apiVersion":"weir.io/v1alpha1","kind":"Dataset","metadata":{"name":"c"},"spec":{"sources":[{"url":"file:///d","path":"x"}]}}"#;
    let text = format!(
        "# first\n{}---\n---\n{}---\n{json}\n",
        document("a", SPEC),
        document("b", SPEC)
    );
    let declared = parse(text.as_bytes()).unwrap();
    let names: Vec<String> = declared.iter().map(|d| d.name.to_string()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(declared[2].spec.sources[0].path, "/x");
}

#[test]
fn an_unknown_field_is_refused_with_its_place_and_the_nearest_name() {
    let good = document("a", SPEC);
    let bad = document("b", "  source:\n  - url: s3://b");
    refused(
        &format!("{good}---\n{bad}"),
        &[
            "document 2, line 14",
            "unknown field `source`, did you mean `sources`?",
        ],
    );
    let bad = document("b", "  sources:\n  - url: s3://b\n    endpont: http://x");
    refused(
        &bad,
        &["document 1, line 8", "`endpont`, did you mean `endpoint`?"],
    );
    refused(
        &good.replace("kind: Dataset", "kind: dataset"),
        &["line 2", "`dataset`, did you mean `Dataset`?"],
    );
    let remedy = "write `apiVersion: weir.io/v1alpha1`";
    for other in ["weir.io/v1", "weir.dev/v1alpha1", "v1"] {
        let said = format!("line 1: unknown apiVersion `{other}`");
        let text = good.replace("weir.io/v1alpha1", other);
        refused(&text, &[&said, remedy]);
    }
    assert_eq!(
        serde_json::to_value(ApiVersion::default()).unwrap(),
        ApiVersion::NEWEST
    );
    refused(
        &good.replace("  name: a", "  name: a\n  labels: {}"),
        &["line 5", "unknown field `labels`; known are `name`"],
    );
    let bad = document("b", "  sources:\n  - url: s3://b\n    addressing: vitrual");
    refused(&bad, &["did you mean `virtual`?"]);
}

#[test]
fn what_is_no_text_is_said_to_be_none() {
    for bytes in [&b"\x00\xff"[..], b"kind: \xff", b"\x1f\x8b\x08\x00\x00"] {
        let error = parse(bytes).unwrap_err();
        assert!(error.starts_with("document 1"), "{error}");
        assert!(!error.contains("IO error"), "{error}");
    }
    let error = parse(b"kind: \xff").unwrap_err();
    assert_eq!(error, "document 1: this is no text in UTF-8");
}

#[test]
fn values_that_make_no_sense_are_refused_with_what_to_change() {
    for (spec, said) in [
        ("  sources: []", "needs a source"),
        ("  sources:\n  - url: s4://b", "did you mean s3://?"),
        (
            "  sources:\n  - url: s3://b\n    patience: 30",
            "a number and a unit",
        ),
        (
            "  sources:\n  - url: s3://b\n    patience: 1d",
            "a number and a unit",
        ),
        (
            "  sources:\n  - url: s3://b\n    anonymous: yes",
            "line 8: write true or false",
        ),
        (
            "  sources:\n  - url: s3://b\n    include: ['[']",
            "spec.sources[0].include[0]",
        ),
        (
            "  sources:\n  - url: s3://b\n    include: '*.jpg'",
            "line 8: a list is expected here; write `[A, B]`",
        ),
        (
            "  sources:\n  - url: s3://b\n    region: [eu]",
            "line 8: a text is expected here",
        ),
        (
            "  sources:\n  - url: s3://b\n    path:",
            "line 8: there is no value; write one",
        ),
        ("  sources:\n  - url: *bucket", "line 7: `*` stands for"),
        ("  sources:\n  - s3://b", "line 7: fields are expected here"),
        (
            "  sources:\n  - url: s3://b\n    path: ../x",
            "spec.sources[0].path",
        ),
        ("  sources:\n  - path: /x", "the field `url` is missing"),
        (
            "  sources:\n  - url: s3://b\n    url: s3://c",
            "line 8: `url` is written twice",
        ),
    ] {
        let text = document("a", spec);
        refused(&text, &["document 1", said]);
        let error = parse(text.as_bytes()).unwrap_err();
        for words in ["column", "Option", "serialize", "mapping", "sequence"] {
            assert!(!error.contains(words), "{words} is in {error}");
        }
    }
    refused(&document("A_b/", SPEC), &["metadata.name"]);
    refused(&document("''", SPEC), &["metadata.name"]);
    refused(
        &document("team/a", SPEC),
        &["metadata.name", "write the namespace as metadata.namespace"],
    );
    let error = parse(document("-a", SPEC).as_bytes()).unwrap_err();
    assert!(
        error.contains("1 to 63 lower-case letters") && !error.contains("128"),
        "{error}"
    );
    for namespace in ["''", "Team", "a/b", "..", "\"a\\nb\""] {
        let name = format!("a\n  namespace: {namespace}");
        refused(&document(&name, SPEC), &["metadata.namespace"]);
    }
    let twice = format!(
        "{}---\n{}",
        document("a", SPEC),
        document("a\n  namespace: default", SPEC)
    );
    refused(
        &twice,
        &["document 2", "dataset a is declared a second time"],
    );
    let other = twice.replace("namespace: default", "namespace: team");
    assert_eq!(
        parse(other.as_bytes()).unwrap()[1].name.to_string(),
        "team/a"
    );
    let twice = format!("{}---\n{}", document("a", SPEC), document("a", SPEC));
    refused(
        &twice,
        &["document 2", "dataset a is declared a second time"],
    );
    refused("", &["declares nothing"]);
    refused("# nothing\n---\n", &["declares nothing"]);
    refused("a: [", &["document 1"]);
    refused("\u{0}\u{1}", &["document 1"]);
    assert!(parse(b"\xff\xfe\xff").is_err());
}

#[test]
fn bombs_end_early() {
    let started = std::time::Instant::now();
    let mut aliases = "a: &a [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for (name, before) in ('b'..='z').zip('a'..='y') {
        let many = vec![format!("*{before}"); 10].join(",");
        aliases.extend([format!("{name}: &{name} [{many}]\n")]);
    }
    let inside: String = aliases.lines().map(|line| format!("  {line}\n")).collect();
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for bomb in [
        aliases.clone(),
        document("a", &inside),
        document("a", &format!("  sources: {deep}")),
        deep,
        "a:\n".to_owned(),
        "- ".repeat(100_000),
        format!("? {}", "? ".repeat(100_000)),
    ] {
        assert!(parse(bomb.as_bytes()).is_err());
    }
    assert!(started.elapsed() < std::time::Duration::from_secs(30));
}

#[test]
fn what_is_written_is_read_as_the_same() {
    let hostile = [
        "plain",
        "no",
        "null",
        "~",
        "1e3",
        "0x10",
        "2026-01-01",
        "- x",
        "a: b",
        "#x",
        "\"q\"",
        "'q'",
        "a\\b",
        "é 日本",
        " lead",
        "trail ",
        "new\nline",
        "tab\there",
        "\u{1b}[2J",
        "\u{202e}x",
        "\u{feff}",
        "*a",
        "&a",
        "!a",
        "%a",
        "@a",
        "{",
        "]",
        ",",
        "?",
        "|",
        ">",
        "\u{85}",
        "\u{2028}",
        "<<",
        "=",
        "x\u{0}y",
    ];
    let long = "x ".repeat(400);
    for text in hostile.iter().copied().chain([long.as_str()]) {
        let spec = DatasetSpec {
            sources: vec![SourceSpec {
                url: format!("s3://bucket/{text}"),
                path: "/".to_owned(),
                endpoint: Some("http://host:9000".to_owned()),
                addressing: Addressing::Path,
                anonymous: true,
                profile: Some(text.to_owned()),
                patience: Some(Patience(90)),
                include: vec!["**/*.jpg".to_owned(), "no".to_owned()],
                ..SourceSpec::default()
            }],
            ..DatasetSpec::default()
        };
        let name: DatasetName = "set".parse().unwrap();
        let written = yaml(&name, spec.clone()).unwrap();
        assert!(
            !written.chars().any(|c| c.is_control() && c != '\n'),
            "{written:?} acts on a terminal"
        );
        let read = parse(written.as_bytes()).unwrap();
        assert_eq!(read, [Declared { name, spec }], "{written}");
    }
}

#[test]
fn credentials_of_the_own_namespace_have_one_form() {
    for (namespace, named, is) in [
        ("default", "keys", "keys"),
        ("default", "default/keys", "keys"),
        ("team", "keys", "keys"),
        ("team", "team/keys", "keys"),
        ("team", "default/keys", "default/keys"),
        ("default", "team/keys", "team/keys"),
    ] {
        let spec = format!("{SPEC}\n    credentials: {named}");
        let text = document(&format!("a\n  namespace: {namespace}"), &spec);
        let declared = parse(text.as_bytes()).unwrap();
        let read = declared[0].spec.sources[0].credentials.as_deref();
        assert_eq!(read, Some(is), "{named} in {namespace}");
    }
    // So they are one source.
    let twice =
        "  sources:\n  - {url: s3://b, credentials: k}\n  - {url: s3://b, credentials: default/k}";
    refused(&document("a", twice), &["spec.sources[1]"]);
}

#[test]
fn what_is_wrong_with_a_source_is_said_in_the_words_of_a_file() {
    for (fields, said) in [
        ("endpoint: minio:9000", "write endpoint http://HOST"),
        ("region: 'a b'", "eu-central-1"),
        (
            "anonymous: true, credentials: team",
            "leave out anonymous or credentials",
        ),
        (
            "profile: a, credentials: team",
            "leave out profile or credentials",
        ),
    ] {
        let text = format!(
            "{{apiVersion: weir.io/v1alpha1, kind: Dataset, metadata: {{name: set}}, spec: {{sources: [{{url: s3://b, {fields}}}]}}}}"
        );
        let problem = in_fields(&parse(text.as_bytes()).unwrap_err());
        assert!(
            problem.contains(said) && !problem.contains("--"),
            "{problem}"
        );
    }
    let commands = "start `weir worker` with --allow-endpoint x; `weir credentials set --endpoint x`, --endpoint or --regions";
    assert_eq!(
        in_fields(commands),
        "start `weir worker` with --allow-endpoint x; `weir credentials set --endpoint x`, endpoint or regions"
    );
}

#[test]
fn masses_of_empty_documents_are_refused_at_once() {
    let started = std::time::Instant::now();
    refused(&"---\n".repeat(4 << 20), &["more than 10000 datasets"]);
    assert!(started.elapsed() < std::time::Duration::from_secs(2));
    let some = format!("{}{}", "---\n".repeat(100), document("a", SPEC));
    assert_eq!(parse(some.as_bytes()).unwrap().len(), 1);
}
