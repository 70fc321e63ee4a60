use std::path::Path;

use super::*;

/// Where the schema is kept, and the variable with which this test writes it.
const SCHEMA: &str = "../docs/dataset.schema.json";
const WRITE: &str = "WEIR_WRITE_SCHEMA";

#[test]
fn the_schema_in_docs_is_that_of_the_type() {
    let schema = schemars::schema_for!(DatasetDocument);
    let schema = format!("{}\n", serde_json::to_string_pretty(&schema).unwrap());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(SCHEMA);
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, &schema).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == schema,
        "docs/dataset.schema.json is not that of the type any more: `make schema` writes it"
    );
}

#[test]
fn a_specification_takes_its_one_form_and_survives_json() {
    let mut spec = DatasetSpec::from_json(
        r#"{"sources":[{"url":"s3://b/p","patience":"120s"},{"url":"file:///d","path":"a/b/"}]}"#,
    )
    .unwrap();
    spec.check().unwrap();
    assert_eq!(
        spec.to_json(),
        r#"{"sources":[{"url":"s3://b/p","patience":"2m"},{"url":"file:///d","path":"/a/b"}]}"#
    );
    assert_eq!(DatasetSpec::from_json(&spec.to_json()).unwrap(), spec);
}

#[test]
fn fields_that_are_not_known_are_refused_wherever_they_are() {
    for json in [
        r#"{"sources":[],"copies":1}"#,
        r#"{"sources":[{"url":"s3://b","credential":"x"}]}"#,
        r#"{"sources":[{"url":"s3://b","patience":30}]}"#,
        r#"{"sources":[{"url":"s3://b","addressing":"Path"}]}"#,
        r#"{"sources":[{"path":"/"}]}"#,
    ] {
        assert!(DatasetSpec::from_json(json).is_err(), "{json}");
    }
}

#[test]
fn a_specification_is_bounded() {
    let long = SourceSpec {
        url: format!("s3://b/{}", "x".repeat(MAX_SPEC)),
        ..SourceSpec::default()
    };
    let mut spec = DatasetSpec {
        sources: vec![long],
        ..DatasetSpec::default()
    };
    let error = spec.check().unwrap_err();
    assert!(error.to_string().contains("bytes long"), "{error}");
    let mut deep = DatasetSpec {
        sources: vec![SourceSpec {
            url: "s3://b".to_owned(),
            path: "/a".repeat(3000),
            ..SourceSpec::default()
        }],
        ..DatasetSpec::default()
    };
    let error = deep.check().unwrap_err();
    assert_eq!(error.field, "spec.sources[0].path");
    let letting_in = |namespaces: Vec<String>| DatasetSpec {
        sources: vec![SourceSpec {
            url: "s3://b".to_owned(),
            ..SourceSpec::default()
        }],
        access: Some(Access { namespaces }),
        ..DatasetSpec::default()
    };
    letting_in(vec!["team-b".to_owned(); MAX_NAMESPACES])
        .check()
        .unwrap();
    for (namespaces, field) in [
        (
            vec!["team-b".to_owned(); MAX_NAMESPACES + 1],
            "spec.access.namespaces",
        ),
        (
            vec!["team-b".to_owned(), "../x".to_owned()],
            "spec.access.namespaces[1]",
        ),
    ] {
        assert_eq!(letting_in(namespaces).check().unwrap_err().field, field);
    }
}
