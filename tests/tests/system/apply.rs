//! Datasets as files declare them: applied, compared, given back.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use weir_s3_server::Config;
use weir_tests::{BUCKET, Cluster, Lab};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "what_get_gives_back_is_what_apply_takes",
        what_get_gives_back_is_what_apply_takes,
    ),
    (
        "nothing_is_changed_if_one_document_is_wrong",
        nothing_is_changed_if_one_document_is_wrong,
    ),
    (
        "diff_shows_what_apply_would_change",
        diff_shows_what_apply_would_change,
    ),
    (
        "every_example_of_the_page_is_applied",
        every_example_of_the_page_is_applied,
    ),
    (
        "sources_make_one_tree_in_which_the_first_comes_first",
        sources_make_one_tree_in_which_the_first_comes_first,
    ),
    (
        "what_is_left_out_is_listed_with_its_reason",
        what_is_left_out_is_listed_with_its_reason,
    ),
    (
        "create_takes_globs_as_a_file_does",
        create_takes_globs_as_a_file_does,
    ),
    (
        "a_dataset_that_fails_keeps_no_other_from_being_applied",
        a_dataset_that_fails_keeps_no_other_from_being_applied,
    ),
];

/// A document of one dataset with these sources, each a list of fields.
fn document(name: &str, sources: &[&[(&str, &str)]]) -> String {
    let mut text = format!(
        "apiVersion: weir.io/v1alpha1\nkind: Dataset\nmetadata:\n  name: {name}\nspec:\n  sources:\n"
    );
    for source in sources {
        let fields = source
            .iter()
            .map(|(field, value)| format!("{field}: {value}"));
        let fields: Vec<String> = fields.collect();
        text.extend([format!("  - {}\n", fields.join("\n    "))]);
    }
    text
}

/// Writes a file of the lab and gives its path.
fn file(lab: &Lab, name: &str, text: &str) -> String {
    let path = lab.path(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn put(lab: &Lab, keys: &[&'static str]) {
    lab.s3.edit(BUCKET, |bucket| {
        for key in keys {
            bucket.put(*key, *key);
        }
    });
}

fn what_get_gives_back_is_what_apply_takes() {
    let lab = Lab::new();
    put(&lab, &["images/1.jpg", "images/2.txt", "more/3.jpg"]);
    let endpoint = lab.s3.endpoint();
    let cluster = Cluster::start(&lab, 0);
    let images = [
        ("url", "s3://bucket/images"),
        ("endpoint", &endpoint),
        ("anonymous", "true"),
        ("patience", "600s"),
        ("include", "['**/*.jpg']"),
    ];
    let more = [
        ("url", "s3://bucket/more/"),
        ("path", "sub//dir/"),
        ("endpoint", &endpoint),
        ("anonymous", "true"),
        ("addressing", "path"),
        ("region", "eu-central-1"),
    ];
    let wrong = document("one", &[&images, &more]);
    let path = file(&lab, "wrong.yaml", &wrong);
    let error = cluster.weir(&["apply", "-f", &path]).fails(2);
    assert!(error.contains("spec.sources[1].path"), "{error}");

    let text = format!(
        "{}---\n{}",
        wrong.replace("sub//dir/", "sub/dir/"),
        document("two", &[&images[..3]])
    );
    let path = file(&lab, "sets.yaml", &text);
    let applied = cluster.weir(&["apply", "-f", &path]).ok();
    assert_eq!(applied, "dataset one created\ndataset two created\n");
    let listed = cluster.weir(&["dataset", "list", "-o", "json"]).ok();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed[0]["snapshots"][0]["files"], 2);
    assert_eq!(listed[0]["spec"]["sources"][0]["patience"], "10m");
    assert_eq!(listed[0]["spec"]["sources"][1]["path"], "/sub/dir");

    // Back and forth, by one, by all, and through a pipe.
    let unchanged = "dataset one unchanged\ndataset two unchanged\n";
    assert_eq!(cluster.weir(&["apply", "-f", &path]).ok(), unchanged);
    let one = cluster.weir(&["dataset", "get", "one", "-o", "yaml"]).ok();
    assert!(one.contains("patience: 10m"), "{one}");
    let again = file(&lab, "one.yaml", &one);
    let applied = cluster.weir(&["apply", "-f", &again]).ok();
    assert_eq!(applied, "dataset one unchanged\n");
    assert_eq!(cluster.weir(&["diff", "-f", &again]).ok(), "");
    let all = cluster.weir(&["dataset", "list", "-o", "yaml"]).ok();
    assert_eq!(piped(&lab, &cluster, &all), unchanged);
    let again = cluster.weir(&["dataset", "get", "one", "-o", "yaml"]).ok();
    assert_eq!(again, one);

    // The short way makes the same object.
    let flags = lab.origin_flags();
    let mut create = vec!["dataset", "create", "three", "s3://bucket/images"];
    create.extend(flags.iter().map(String::as_str));
    cluster.weir(&create).ok();
    let three = cluster
        .weir(&["dataset", "get", "three", "-o", "yaml"])
        .ok();
    let path = file(&lab, "three.yaml", &document("three", &[&images[..3]]));
    let applied = cluster.weir(&["apply", "-f", &path]).ok();
    assert_eq!(applied, "dataset three unchanged\n", "{three}");
}

/// What `weir apply -f -` says of a text.
fn piped(lab: &Lab, cluster: &Cluster<'_>, text: &str) -> String {
    let mut command = lab.command(["apply", "-f", "-", "--master", &cluster.address()]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(text.as_bytes()).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

fn nothing_is_changed_if_one_document_is_wrong() {
    let lab = Lab::new();
    put(&lab, &["a/1", "b/1"]);
    let endpoint = lab.s3.endpoint();
    let cluster = Cluster::start(&lab, 0);
    let of = |url: &'static str| [("url", url), ("endpoint", &endpoint), ("anonymous", "true")];
    let known = document("known", &[&of("s3://bucket/a")]);
    cluster
        .weir(&["apply", "-f", &file(&lab, "known.yaml", &known)])
        .ok();
    let before = cluster.weir(&["dataset", "list", "-o", "yaml"]).ok();

    let new = document("new", &[&of("s3://bucket/a")]);
    let moved = document("known", &[&of("s3://bucket/b")]);
    let scheme = document("x", &[&of("s4://bucket/b")]);
    let glob = format!(
        "{}    exclude: ['[']\n",
        document("x", &[&of("s3://bucket/b")])
    );
    let overlap = document("x", &[&of("s3://bucket/b"), &of("s3://bucket/b/")]);
    let outside = document(
        "x",
        &[&[("url", "s3://b"), ("endpoint", "http://169.254.169.254")]],
    );
    let cases = [
        (
            new.replace("sources", "source"),
            2,
            "`source`, did you mean `sources`?",
        ),
        (scheme, 2, "did you mean s3://?"),
        (glob, 2, "spec.sources[0].exclude[0]"),
        (overlap, 2, "name each place once"),
        (
            document("../x", &[&of("s3://bucket/a")]),
            2,
            "metadata.name",
        ),
        (moved, 6, "spec.sources[0].url: the place of a source"),
        (outside, 5, "--allow-endpoint"),
        ("a: *b\n".to_owned(), 2, "document 2"),
        (new.clone(), 2, "a second time"),
    ];
    for (bad, code, said) in cases {
        let path = file(&lab, "bad.yaml", &format!("{new}---\n{bad}"));
        for command in ["apply", "diff"] {
            let error = cluster.weir(&[command, "-f", &path]).fails(code);
            assert!(error.contains(said), "{said} is not in {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
        let after = cluster.weir(&["dataset", "list", "-o", "yaml"]).ok();
        assert_eq!(after, before);
    }
    let missing = lab.path("missing.yaml").display().to_string();
    let error = cluster.weir(&["apply", "-f", &missing]).fails(2);
    assert!(error.contains(&missing), "{error}");
}

fn diff_shows_what_apply_would_change() {
    let lab = Lab::new();
    put(&lab, &["a/1.jpg", "a/2.txt"]);
    let endpoint = lab.s3.endpoint();
    let cluster = Cluster::start(&lab, 0);
    let source = [
        ("url", "s3://bucket/a"),
        ("endpoint", &endpoint),
        ("anonymous", "true"),
    ];
    let path = file(&lab, "set.yaml", &document("set", &[&source]));
    let diff = cluster.weir(&["diff", "-f", &path]);
    assert_eq!(diff.code, 1, "{}", diff.stderr);
    assert!(diff.stdout.contains("+  name: set"), "{}", diff.stdout);
    let listed = cluster.weir(&["dataset", "list", "-o", "json"]).ok();
    assert_eq!(listed, "[]\n", "a diff changes nothing");
    cluster.weir(&["apply", "-f", &path]).ok();
    assert_eq!(cluster.weir(&["diff", "-f", &path]).ok(), "");

    let other = [
        &source[..],
        &[("patience", "10m"), ("include", "['*.jpg']")],
    ]
    .concat();
    let path = file(&lab, "set.yaml", &document("set", &[&other]));
    let diff = cluster.weir(&["diff", "-f", &path]);
    assert_eq!(diff.code, 1, "{}", diff.stderr);
    assert!(
        diff.stdout.contains("+    patience: 10m"),
        "{}",
        diff.stdout
    );
    assert!(!diff.stdout.contains("-  name"), "{}", diff.stdout);
    let applied = cluster.weir(&["apply", "-f", &path]).ok();
    assert_eq!(applied, "dataset set configured\n");
    let get = cluster.weir(&["dataset", "get", "set", "-o", "json"]).ok();
    let get: serde_json::Value = serde_json::from_str(&get).unwrap();
    assert_eq!(get["snapshots"][1]["left_out"]["not_included"], 1);
    // A master that does not answer is no difference.
    cluster
        .weir(&["diff", "-f", &lab.path("none").display().to_string()])
        .fails(2);
    let nobody = ["diff", "-f", &path, "--master", "127.0.0.1:1"];
    lab.weir(nobody).fails(4);
}

/// The page's services, buckets and directories are the lab's here.
fn every_example_of_the_page_is_applied() {
    let (key, secret) = ("key".to_owned(), "hunter2".to_owned());
    let mut lab = Lab::with(Config {
        credentials: Some((key.clone(), secret.clone())),
        ..Config::default()
    });
    lab.set_env("WEIR_CREDENTIALS_KEY", &"1".repeat(64));
    lab.set_env("AWS_ACCESS_KEY_ID", &key);
    lab.set_env("AWS_SECRET_ACCESS_KEY", &secret);
    let buckets = ["training"];
    for bucket in buckets {
        lab.s3.edit(bucket, |bucket| {
            for key in [
                "images/a/1.jpg",
                "images/tmp/2.jpg",
                "fixes/1",
                "corpus/1",
                "corpus/2",
                "uploads/1",
            ] {
                bucket.put(key, "x");
            }
        });
    }
    let labels = lab.path("data/labels");
    std::fs::create_dir_all(&labels).unwrap();
    std::fs::write(labels.join("1.txt"), "x").unwrap();
    let cluster = Cluster::start(&lab, 0);
    for name in ["vision", "language"] {
        let (address, endpoint) = (cluster.address(), lab.s3.endpoint());
        let set = ["credentials", "set", name, "--endpoint", &endpoint];
        let set = set.into_iter().chain(["--master", &address]);
        let keys = format!("access_key_id = {key}\nsecret_access_key = {secret}\n");
        lab.weir_with_input(set, keys.as_bytes()).ok();
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/datasets.md");
    let page = std::fs::read_to_string(page).unwrap();
    let data = format!("file://{}", lab.path("data").display());
    let examples = page.split("```yaml\n").skip(1);
    let mut applied = 0;
    for example in examples.map(|rest| rest.split("```").next().unwrap()) {
        let example = example
            .replace("http://minio:9000", &lab.s3.endpoint())
            .replace("file:///data", &data)
            // The lab's server knows its callers.
            .replace("    anonymous: true\n", "");
        let path = file(&lab, "example.yaml", &example);
        let said = cluster.weir(&["apply", "-f", &path]).ok();
        assert!(
            said.lines().all(|line| line.ends_with(" created")),
            "{said}"
        );
        let said = cluster.weir(&["apply", "-f", &path]).ok();
        assert!(
            said.lines().all(|line| line.ends_with(" unchanged")),
            "{said}"
        );
        applied += 1;
    }
    assert!(applied >= 3, "only {applied} examples were found");
}

fn sources_make_one_tree_in_which_the_first_comes_first() {
    let lab = Lab::new();
    put(
        &lab,
        &[
            "fixes/a",
            "fixes/d/x",
            "all/a",
            "all/b",
            "all/c/1",
            "all/d/y",
            "all/e",
        ],
    );
    std::fs::create_dir_all(lab.path("labels/c")).unwrap();
    std::fs::write(lab.path("labels/c/2"), "label").unwrap();
    std::fs::create_dir_all(lab.path("labels/e")).unwrap();
    std::fs::write(lab.path("labels/e/3"), "label").unwrap();
    let endpoint = lab.s3.endpoint();
    let cluster = Cluster::start(&lab, 1);
    let of = |url: &'static str| [("url", url), ("endpoint", &endpoint), ("anonymous", "true")];
    let labels = format!("file://{}", lab.path("labels").display());
    let text = document(
        "set",
        &[
            &of("s3://bucket/fixes"),
            &of("s3://bucket/all"),
            &[("url", &labels)],
        ],
    );
    cluster
        .weir(&["apply", "-f", &file(&lab, "set.yaml", &text)])
        .ok();
    let mount = cluster.mount("set", "node-0");
    for (path, content) in [
        ("a", "fixes/a"),
        ("b", "all/b"),
        ("c/1", "all/c/1"),
        ("c/2", "label"),
        ("d/x", "fixes/d/x"),
        ("d/y", "all/d/y"),
        ("e/3", "label"),
    ] {
        assert_eq!(mount.read(path), content.as_bytes(), "{path}");
    }
    let get = cluster.weir(&["dataset", "get", "set", "-o", "json"]).ok();
    let get: serde_json::Value = serde_json::from_str(&get).unwrap();
    let expected = serde_json::json!({ "shadowed_by_mount": 1, "shadowed_by_directory": 1 });
    assert_eq!(get["snapshots"][0]["left_out"], expected);

    // A source that cannot be listed any more changes nothing.
    std::fs::remove_dir_all(lab.path("labels")).unwrap();
    put(&lab, &["all/new"]);
    cluster.weir(&["dataset", "refresh", "set"]).fails(3);
    let after = cluster.weir(&["dataset", "get", "set", "-o", "json"]).ok();
    let after: serde_json::Value = serde_json::from_str(&after).unwrap();
    assert_eq!(after, get);
}

fn a_dataset_that_fails_keeps_no_other_from_being_applied() {
    let lab = Lab::new();
    put(&lab, &["a/1"]);
    let endpoint = lab.s3.endpoint();
    let cluster = Cluster::start(&lab, 0);
    let of = |url: &'static str| [("url", url), ("endpoint", &endpoint), ("anonymous", "true")];
    let text = [
        document("empty", &[&of("s3://bucket/nothing")]),
        document("missing", &[&of("s3://no-such-bucket/a")]),
        document("good", &[&of("s3://bucket/a")]),
    ];
    let path = file(&lab, "sets.yaml", &text.join("---\n"));
    let outcome = cluster.weir(&["apply", "-f", &path]);
    assert_eq!(outcome.code, 3, "{}", outcome.stderr);
    assert_eq!(outcome.stdout, "dataset good created\n");
    let errors: Vec<&str> = outcome.stderr.lines().collect();
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(
        errors[0].contains("dataset empty: spec.sources[0]"),
        "{errors:?}"
    );
    assert!(errors[1].contains("dataset missing: "), "{errors:?}");

    // Nor does it that nothing can be said of them.
    let both = ["one", "two"].map(|name| document(name, &[&of("s3://bucket/a")]));
    let path = file(&lab, "both.yaml", &both.join("---\n"));
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
    let mut command = lab.command(["apply", "-f", &path, "--master", &cluster.address()]);
    let outcome = command.stdout(full.unwrap()).output().unwrap();
    let error = String::from_utf8(outcome.stderr).unwrap();
    assert_eq!(outcome.status.code(), Some(1), "{error}");
    assert!(error.contains("No space left"), "{error}");
    assert_eq!(cluster.weir(&["diff", "-f", &path]).ok(), "");
}

fn create_takes_globs_as_a_file_does() {
    let lab = Lab::new();
    put(&lab, &["a/1.jpg", "a/2.txt", "a/tmp/3.jpg", "b/4.jpg"]);
    let endpoint = lab.s3.endpoint();
    let cluster = Cluster::start(&lab, 0);
    let create = |globs: &[&str]| {
        let create = [
            "dataset",
            "create",
            "set",
            "s3://bucket/a:/",
            "s3://bucket/b:/b",
        ];
        let flags = ["--endpoint", &endpoint, "--anonymous"];
        cluster.weir(&[&create[..], &flags, globs].concat())
    };
    let globs = ["--include", "**/*.jpg", "--exclude", "tmp/**"];
    create(&globs).ok();
    let get = |format: &str| cluster.weir(&["dataset", "get", "set", "-o", format]).ok();
    let shown: serde_json::Value = serde_json::from_str(&get("json")).unwrap();
    let left_out = serde_json::json!({ "excluded": 1, "not_included": 1 });
    assert_eq!(shown["snapshots"][0]["left_out"], left_out, "{shown}");
    assert_eq!(shown["snapshots"][0]["files"], 2, "{shown}");
    // It is the object that a file declares.
    let path = file(&lab, "set.yaml", &get("yaml"));
    let applied = cluster.weir(&["apply", "-f", &path]).ok();
    assert_eq!(applied, "dataset set unchanged\n");
    // The same again changes nothing, and without globs they stay.
    create(&globs).ok();
    create(&[]).ok();
    let again: serde_json::Value = serde_json::from_str(&get("json")).unwrap();
    assert_eq!(again, shown);
    create(&["--include", "**"]).ok();
    assert!(get("yaml").contains("- \"**\""), "{}", get("yaml"));
    let refused = create(&["--include", "a["]).fails(2);
    assert!(refused.contains("a["), "{refused}");
}

fn what_is_left_out_is_listed_with_its_reason() {
    let lab = Lab::new();
    put(
        &lab,
        &[
            "a/1.jpg",
            "a/2.txt",
            "a/tmp/3.jpg",
            "a//4.jpg",
            "b/x/1.jpg",
            "a/x/1.jpg",
        ],
    );
    lab.s3.edit(BUCKET, |bucket| {
        for number in 0..2500 {
            bucket.put(format!("a/many/{number:04}.tmp"), "x");
        }
        bucket.put("a/\u{1b}[2J\u{e9}.txt", "x");
    });
    let endpoint = lab.s3.endpoint();
    let cluster = Cluster::start(&lab, 0);
    let of = |url: &'static str| [("url", url), ("endpoint", &endpoint), ("anonymous", "true")];
    let images = [
        &of("s3://bucket/a")[..],
        &[("include", "['**/*.jpg']"), ("exclude", "['tmp/**']")],
    ]
    .concat();
    let text = document("set", &[&images, &of("s3://bucket/b")]);
    let path = file(&lab, "set.yaml", &text);
    cluster.weir(&["apply", "-f", &path]).ok();
    let listed = |name: &str| -> serde_json::Value {
        let list = cluster
            .weir(&["dataset", "left-out", name, "-o", "json"])
            .ok();
        serde_json::from_str(&list).unwrap()
    };
    let list = listed("set");
    let counts = serde_json::json!({
        "empty_component": 1, "excluded": 1, "not_included": 2502, "shadowed_by_mount": 1,
    });
    assert_eq!(list["counts"], counts);
    assert_eq!(list["snapshot"], "set@1");
    let objects = list["objects"].as_array().unwrap();
    assert_eq!(objects.len(), 2003);
    for (reason, key) in [
        ("empty_component", "a//4.jpg"),
        ("excluded", "a/tmp/3.jpg"),
        ("not_included", "a/2.txt"),
        ("shadowed_by_mount", "b/x/1.jpg"),
        ("not_included", "a/many/0000.tmp"),
        ("not_included", "a/\u{1b}[2J\u{e9}.txt"),
    ] {
        let expected = serde_json::json!({ "reason": reason, "key": key });
        assert!(objects.contains(&expected), "{expected}");
    }
    let shown = cluster
        .weir(&["dataset", "left-out", "set", "--reason", "not_included"])
        .ok();
    assert!(shown.contains("and 502 more of not_included"), "{shown}");
    assert!(
        !shown.contains("a/tmp/3.jpg") && !shown.contains('\u{1b}'),
        "{shown}"
    );
    let error = cluster
        .weir(&["dataset", "left-out", "set", "--reason", "exclude"])
        .fails(2);
    assert!(error.contains("did you mean `excluded`?"), "{error}");
    cluster.weir(&["dataset", "left-out", "set@7"]).fails(3);
    cluster.weir(&["dataset", "left-out", "other"]).fails(3);

    // A refresh that changes nothing else changes this, too.
    put(&lab, &["a/tmp/5.jpg"]);
    let refreshed = cluster.weir(&["dataset", "refresh", "set"]).ok();
    assert!(refreshed.contains("nothing changed"), "{refreshed}");
    let list = listed("set@1");
    assert_eq!(list["counts"]["excluded"], 2);
    let expected = serde_json::json!({ "reason": "excluded", "key": "a/tmp/5.jpg" });
    assert!(list["objects"].as_array().unwrap().contains(&expected));
}
