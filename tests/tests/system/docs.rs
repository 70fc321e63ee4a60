//! README.md and docs/ against the binary.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use weir_tests::{BUCKET, Lab};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    (
        "every_command_line_of_the_pages_is_understood",
        every_command_line_of_the_pages_is_understood,
    ),
    (
        "every_flag_of_the_pages_exists",
        every_flag_of_the_pages_exists,
    ),
    (
        "every_reason_to_leave_an_object_out_is_documented",
        every_reason_to_leave_an_object_out_is_documented,
    ),
    (
        "every_field_of_a_dataset_is_documented",
        every_field_of_a_dataset_is_documented,
    ),
    (
        "links_between_the_pages_lead_somewhere",
        links_between_the_pages_lead_somewhere,
    ),
    (
        "each_path_that_the_architecture_names_exists",
        each_path_that_the_architecture_names_exists,
    ),
    (
        "each_crate_says_what_it_is_for",
        each_crate_says_what_it_is_for,
    ),
];

/// Paths are written without `src/` in the text, and without the crate in the rows of the table of crates.
fn each_path_that_the_architecture_names_exists() {
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut checked = 0;
    for line in page.lines() {
        let crate_of_row = line
            .strip_prefix("| `")
            .and_then(|row| row.split('`').next());
        for name in line.split('`').skip(1).step_by(2) {
            let is_file = Path::new(name).extension().is_some_and(|e| e == "rs");
            if !(is_file || name.ends_with('/')) || name.starts_with('/') {
                continue;
            }
            let (first, rest) = name.split_once('/').unwrap_or((name, ""));
            let mut places = vec![root().join(name), root().join(first).join("src").join(rest)];
            places.extend(crate_of_row.map(|of| root().join(of).join(name)));
            let exists = places.iter().any(|place| place.exists());
            assert!(exists, "there is no {name}: {line}");
            checked += 1;
        }
    }
    assert!(checked > 40, "only {checked} paths were found");
}

fn each_crate_says_what_it_is_for() {
    let architecture = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut checked = 0;
    for member in members() {
        let source = root().join(&member).join("src");
        let file = ["lib.rs", "main.rs"].map(|name| source.join(name));
        let file = file.iter().find(|file| file.exists()).unwrap();
        let text = std::fs::read_to_string(file).unwrap();
        let head: String = text
            .lines()
            .take_while(|line| line.starts_with("//!"))
            .collect();
        assert!(
            head.contains("must not know"),
            "{} does not say what the crate must not know",
            file.display()
        );
        let named = architecture.contains(&format!("`{member}/`"));
        assert!(named, "ARCHITECTURE.md does not name {member}/");
        checked += 1;
    }
    assert!(checked > 10, "only {checked} crates were found");
}

/// The directories of the workspace's crates.
pub(crate) fn members() -> Vec<String> {
    let workspace = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let members = workspace.split("members = [").nth(1).unwrap();
    let members = members.split(']').next().unwrap();
    let names = members.split('"').skip(1).step_by(2);
    names.map(str::to_owned).collect()
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .unwrap()
}

fn pages() -> Vec<(PathBuf, String)> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(root().join("docs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.extend(["README.md", "ARCHITECTURE.md", "SECURITY.md"].map(|name| root().join(name)));
    paths
        .into_iter()
        .map(|path| (path.clone(), std::fs::read_to_string(path).unwrap()))
        .collect()
}

fn every_command_line_of_the_pages_is_understood() {
    let lab = Lab::new();
    let mut checked = 0;
    for (path, page) in pages() {
        let code = page.split("```").skip(1).step_by(2);
        for line in code
            .flat_map(str::lines)
            .filter(|line| line.starts_with("weir "))
        {
            let words = line.split('#').next().unwrap().split_whitespace().skip(1);
            // With --help behind them, the arguments are read and nothing is done.
            let outcome = lab.weir(words.chain(["--help"]));
            assert_eq!(
                outcome.code,
                0,
                "{}: {line}: {}",
                path.display(),
                outcome.stderr
            );
            checked += 1;
        }
    }
    assert!(checked > 8, "only {checked} command lines were found");
}

fn every_flag_of_the_pages_exists() {
    let lab = Lab::new();
    let commands: [&[&str]; 33] = [
        &["mount"],
        &["unmount"],
        &["master"],
        &["worker"],
        &["worker", "list"],
        &["worker", "get"],
        &["worker", "cordon"],
        &["worker", "uncordon"],
        &["worker", "drain"],
        &["warm"],
        &["evict"],
        &["status"],
        &["apply"],
        &["diff"],
        &["dataset", "create"],
        &["dataset", "left-out"],
        &["dataset", "where"],
        &["dataset", "list"],
        &["dataset", "get"],
        &["dataset", "refresh"],
        &["dataset", "delete"],
        &["credentials", "set"],
        &["credentials", "list"],
        &["credentials", "rotate"],
        &["credentials", "delete"],
        &["certs", "init"],
        &["certs", "issue"],
        &["certs", "show"],
        &["certs", "rotate"],
        &["dev"],
        &["csi"],
        &["csi", "holder"],
        &["csi", "ready"],
    ];
    let help: String = commands
        .iter()
        .map(|command| lab.weir(command.iter().copied().chain(["--help"])).ok())
        .collect();
    let flags_of = |text: &str| -> BTreeSet<String> {
        let end = |c: char| !(c.is_ascii_lowercase() || c == '-');
        text.split("--")
            .skip(1)
            .map(|rest| {
                rest.split(end)
                    .next()
                    .unwrap()
                    .trim_end_matches('-')
                    .to_owned()
            })
            .filter(|flag| !flag.is_empty())
            .collect()
    };
    let known = flags_of(&help);
    // Flags of other programs that the pages name: Docker, Cargo, kubectl, Helm and Arena.
    let others = [
        "device",
        "cap-add",
        "test",
        "bin",
        "workspace",
        "version",
        "set",
        "annotation",
        "create-namespace",
        "data",
        "for",
        "force",
        "force-conflicts",
        "from-file",
        "from-literal",
        "ignore-daemonsets",
        "ignore-not-found",
        "image",
        "no-hooks",
        "overrides",
        "replicas",
        "restart",
        "rm",
        "server-side",
        "type",
        // Of `weir operator`, which the binary of these tests does not have.
        "sign",
        "worker-template",
    ];
    for (path, page) in pages() {
        for flag in flags_of(&page) {
            let exists = known.contains(&flag) || others.contains(&flag.as_str());
            assert!(
                exists,
                "{} names --{flag}, which no command has",
                path.display()
            );
        }
    }
}

/// Each has a row in a table, as `name` or `spec.name`; those that only hold others are in these.
fn every_field_of_a_dataset_is_documented() {
    fn collect(schema: &serde_json::Value, names: &mut BTreeSet<String>) {
        match schema {
            serde_json::Value::Object(map) => {
                if let Some(properties) = map.get("properties").and_then(|p| p.as_object()) {
                    names.extend(properties.keys().cloned());
                }
                map.values().for_each(|value| collect(value, names));
            }
            serde_json::Value::Array(list) => list.iter().for_each(|value| collect(value, names)),
            _ => {}
        }
    }
    let read = |name: &str| std::fs::read_to_string(root().join("docs").join(name)).unwrap();
    let mut names = BTreeSet::new();
    let schema = serde_json::from_str(&read("dataset.schema.json")).unwrap();
    collect(&schema, &mut names);
    let pages = format!("{}\n{}", read("datasets.md"), read("placement.md"));
    let rows = pages
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let parts: BTreeSet<&str> = rows.flat_map(|field| field.split('.')).collect();
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        assert!(parts.contains(name.as_str()), "{name} is in no table");
    }
}

fn every_reason_to_leave_an_object_out_is_documented() {
    let lab = Lab::new();
    lab.s3.edit(BUCKET, |bucket| bucket.put("a", "a"));
    let mount = lab.mount("", &[]);
    let served: BTreeSet<String> = mount
        .metrics()
        .into_keys()
        .filter(|sample| sample.starts_with("weir_master_left_out_objects{"))
        .map(|sample| {
            sample
                .split("reason=\"")
                .nth(1)
                .unwrap()
                .split('"')
                .next()
                .unwrap()
                .to_owned()
        })
        .collect();
    let page = std::fs::read_to_string(root().join("docs/semantics.md")).unwrap();
    let table = page
        .split("| reason |")
        .nth(1)
        .unwrap()
        .split("\n\n")
        .next()
        .unwrap();
    let documented: BTreeSet<String> = table
        .lines()
        .filter_map(|row| row.strip_prefix("| `")?.split('`').next())
        .map(str::to_owned)
        .collect();
    assert_eq!(documented, served);
}

fn links_between_the_pages_lead_somewhere() {
    for (path, page) in pages() {
        for link in page
            .split("](")
            .skip(1)
            .map(|rest| rest.split(')').next().unwrap())
        {
            let file = link.split('#').next().unwrap();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            let target = path.parent().unwrap().join(file);
            assert!(target.exists(), "{} links to {link}", path.display());
        }
    }
}
