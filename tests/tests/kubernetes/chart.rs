//! What the chart installs.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use weir_tests::{BUCKET, wait_until};

use crate::Case;
use crate::kubernetes::cluster::root;
use crate::kubernetes::installation::{Installation, NAMESPACE, NODES, endpoint};
use crate::kubernetes::objects::{kubectl, wait_for};
use crate::kubernetes::volumes::{create, inline, pod};

/// helm asks no cluster for it when it only renders.
pub(crate) const KUBE_VERSION: &str = "--kube-version=1.34.2";

const SOON: Duration = Duration::from_mins(1);

pub(crate) const CASES: &[Case] = &[
    (
        "a_dataset_is_warmed_by_workers_with_certificates",
        a_dataset_is_warmed_by_workers_with_certificates,
    ),
    (
        "only_what_mounts_is_privileged",
        only_what_mounts_is_privileged,
    ),
    (
        "certificates_say_what_the_apiserver_knows_of_each_pod",
        certificates_say_what_the_apiserver_knows_of_each_pod,
    ),
    (
        "the_plain_manifests_are_what_the_chart_makes",
        the_plain_manifests_are_what_the_chart_makes,
    ),
    (
        "values_that_make_no_sense_are_refused",
        values_that_make_no_sense_are_refused,
    ),
    (
        "alerts_and_dashboards_ask_for_metrics_that_exist",
        alerts_and_dashboards_ask_for_metrics_that_exist,
    ),
    (
        "a_secret_that_the_chart_makes_is_an_authority",
        a_secret_that_the_chart_makes_is_an_authority,
    ),
];

fn a_dataset_is_warmed_by_workers_with_certificates(weir: &Installation) {
    let url = format!("s3://{BUCKET}/");
    let create = ["dataset", "create", "default/warmed", &url];
    let endpoint = endpoint();
    let from = ["--endpoint", &endpoint, "--anonymous"];
    weir.weir(&[&create[..], &from].concat()).ok();
    weir.weir(&["warm", "default/warmed", "--wait"]).ok();
    let status = weir.status();
    for worker in status["workers"].as_array().unwrap() {
        assert_eq!(worker["callers"], "certificates", "{worker}");
    }
    let soon = Duration::from_secs(30);
    wait_until("everything is cached", soon, || {
        let at = weir
            .weir(&["dataset", "where", "default/warmed", "-o", "json"])
            .ok();
        let at: Value = serde_json::from_str(&at).unwrap();
        let nodes = at["nodes"].as_array().unwrap();
        let cached = nodes
            .iter()
            .filter_map(|node| node["cached_bytes"].as_u64());
        let all: usize = weir.files.values().map(Vec::len).sum();
        cached.sum::<u64>() == all as u64 // wherever the master has placed it
    });
    weir.weir(&["dataset", "delete", "default/warmed"]).ok();
}

fn only_what_mounts_is_privileged(weir: &Installation) {
    let pods = weir.cluster.get(&["-n", NAMESPACE, "pods"]);
    let mut checked = 0;
    for pod in pods["items"].as_array().unwrap() {
        let spec = &pod["spec"];
        let component = &pod["metadata"]["labels"]["app.kubernetes.io/component"];
        for field in ["hostNetwork", "hostPID", "hostIPC"] {
            assert_ne!(spec[field], true, "{component}: {field}");
        }
        let containers = spec["containers"].as_array().unwrap().iter();
        let before = spec["initContainers"].as_array();
        for container in containers.chain(before.into_iter().flatten()) {
            let context = &container["securityContext"];
            assert_eq!(context["readOnlyRootFilesystem"], true, "{component}");
            if context["privileged"] == true {
                assert_eq!(component, "plugin", "{container}");
                continue;
            }
            assert_eq!(context["allowPrivilegeEscalation"], false, "{component}");
            assert_eq!(context["capabilities"]["drop"][0], "ALL", "{component}");
            assert_eq!(
                context["seccompProfile"]["type"], "RuntimeDefault",
                "{component}"
            );
            checked += 1;
        }
    }
    assert!(checked >= 2 * (1 + NODES), "only {checked} containers");
}

fn certificates_say_what_the_apiserver_knows_of_each_pod(weir: &Installation) {
    let pods = weir.cluster.get(&["-n", NAMESPACE, "pods"]);
    let mut seen = 0;
    for pod in pods["items"].as_array().unwrap() {
        let name = pod["metadata"]["name"].as_str().unwrap();
        let (spec, labels) = (&pod["spec"], &pod["metadata"]["labels"]);
        let component = labels["app.kubernetes.io/component"].as_str().unwrap();
        let reads_key = spec["volumes"].to_string().contains("\"weir-ca\"");
        assert_eq!(reads_key, component == "operator", "{name}");
        let node = spec["nodeName"].as_str().unwrap();
        let (role, named) = match component {
            "worker" => ("worker", node),
            "plugin" | "holder" => ("mount", node),
            "master" => ("master", name),
            "operator" => ("admin", "weir-operator"),
            _ => continue,
        };
        let show = ["weir", "certs", "show", "/certs", "-o", "json"];
        let exec = ["-n", NAMESPACE, "exec", name, "-c", component, "--"];
        let shown = weir.cluster.kubectl(&[&exec[..], &show].concat()).ok();
        let shown: Value = serde_json::from_str(&shown).unwrap();
        let certificate = &shown["certificate"];
        assert_eq!(certificate["role"], role, "{name}");
        assert_eq!(certificate["name"], named, "{name}");
        assert_eq!(certificate["state"], "valid", "{name}");
        if role == "worker" {
            assert_eq!(certificate["node"], node, "{name}");
            let address = &pod["status"]["podIP"];
            assert_eq!(certificate["addresses"][0], *address, "{name}");
            assert_eq!(certificate["max_weight_bytes"], 256 << 20, "{name}");
        }
        seen += 1;
    }
    assert!(seen > 3 * NODES + 1, "only {seen} pods");
}

fn the_plain_manifests_are_what_the_chart_makes(weir: &Installation) {
    let made = weir.cluster.scratch.path("weir.yaml");
    let mut command = Command::new(root().join("build-support/kubernetes/manifests.sh"));
    command.arg(&made);
    weir.cluster.scratch.run(command).ok();
    let checked_in = root().join("deploy/kubernetes/weir.yaml");
    let [made, kept] = [made, checked_in].map(|path| std::fs::read_to_string(path).unwrap());
    assert!(
        made == kept,
        "run `make manifests`, and look at what changed"
    );
}

fn values_that_make_no_sense_are_refused(weir: &Installation) {
    for (setting, named) in [
        ("worker.sdd=1GiB", "sdd"),
        ("worker.ssd=much", "ssd"),
        ("worker.directory=here", "directory"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("certificates.days=90", "days"),
        // Nobody would sign the pods' certificates.
        ("operator.enabled=false", "certificates.volumes."),
        ("operator.replicas=0", "replicas"),
        ("worker.replicas=many", "replicas"),
    ] {
        let chart = root().join("deploy/helm/weir");
        let args = [
            "helm",
            "template",
            KUBE_VERSION,
            chart.to_str().unwrap(),
            "--set",
            setting,
        ];
        let refused = weir.cluster.exec(&args).fails(1);
        assert!(refused.contains(named), "{setting}: {refused}");
    }
}

/// Labels that Prometheus gives to all that a pod tells, and to the buckets of a histogram.
const OF_PROMETHEUS: [&str; 3] = ["pod", "instance", "le"];

/// Metrics that a query names, each with the labels that it is chosen and added up by.
fn asked(query: &str) -> Vec<(String, Vec<String>)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let names = |list: &str| -> Vec<String> {
        let names = list.split(',').map(str::trim_start);
        let names = names.map(|part| part.chars().take_while(|c| is_name(*c)).collect());
        names.filter(|name: &String| !name.is_empty()).collect()
    };
    let grouped: Vec<String> = query
        .split("by (")
        .skip(1)
        .flat_map(|rest| names(rest.split(')').next().unwrap()))
        .collect();
    let starts = query.match_indices("weir_").map(|(at, _)| &query[at..]);
    starts
        .map(|rest| {
            let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
            let (metric, rest) = rest.split_at(end);
            let chosen = rest.strip_prefix('{').map(|rest| rest.split('}').next());
            let mut labels = names(chosen.flatten().unwrap_or_default());
            labels.extend(grouped.clone());
            (metric.to_owned(), labels)
        })
        .collect()
}

fn alerts_and_dashboards_ask_for_metrics_that_exist(weir: &Installation) {
    let chart = root().join("deploy/helm/weir");
    let alerts = std::fs::read_to_string(chart.join("alerts.yaml")).unwrap();
    let of_line = |line: &str| line.trim().strip_prefix("expr: ").map(str::to_owned);
    let mut queries: Vec<String> = alerts.lines().filter_map(of_line).collect();
    for entry in std::fs::read_dir(chart.join("dashboards")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let board: Value = serde_json::from_str(&text).unwrap();
        // Its variables: what they may be is asked for, too.
        for variable in board["templating"]["list"].as_array().unwrap() {
            let query = variable["query"].as_str().unwrap();
            if let Some(values) = query.strip_prefix("label_values(") {
                let (metric, label) = values.trim_end_matches(')').rsplit_once(", ").unwrap();
                queries.push(format!("count by ({label}) ({})", metric.replace('$', "")));
            }
        }
        for panel in board["panels"].as_array().unwrap() {
            let targets = panel["targets"].as_array().unwrap();
            queries.extend(targets.iter().map(|target| {
                // As Grafana fills its variables in.
                let query = target["expr"].as_str().unwrap();
                let query = query.replace("$__rate_interval", "5m");
                query.replace('$', "")
            }));
        }
    }
    create(weir, "watched");
    let volume = inline("dataset: watched");
    let reader = pod(
        weir,
        "watched",
        1,
        &volume,
        "cat /data/big/0.bin >/dev/null; exec sleep 3600",
    );
    weir.cluster.apply(&reader);
    wait_for(weir, "default", "Ready", "pod/watched");
    let page = std::fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let mut metrics = String::new();
    wait_until("the pod's mount tells what was read", SOON, || {
        metrics = weir.metrics();
        metrics.contains("weir_fuse_read_bytes_total{mount=\"watched@1\"} 9")
    });
    for query in &queries {
        let asked = asked(query);
        assert!(!asked.is_empty(), "{query}");
        for (metric, labels) in asked {
            let kinds = ["", "_total", "_bucket", "_sum", "_count"];
            let families = kinds.iter().filter_map(|kind| metric.strip_suffix(kind));
            let is_there = families
                .map(|family| format!("# TYPE {family} "))
                .any(|line| metrics.contains(&line));
            assert!(is_there, "no pod tells {metric}: {query}");
            let samples = metrics.lines().filter(|line| line.starts_with(&metric));
            let samples = samples.collect::<String>();
            let name = metric.trim_end_matches("_bucket");
            let mut rows = page.lines();
            let row = rows.find(|row| row.contains(&format!("`{name}`"))).unwrap();
            for label in labels {
                // What has not happened yet has no sample.
                let is_known = samples.contains(&format!("{label}=\""))
                    || row.contains(&format!("`{label}`"))
                    || OF_PROMETHEUS.contains(&label.as_str());
                assert!(is_known, "{metric} has no {label}: {query}");
            }
        }
    }
    kubectl(weir, "default", &["delete", "pod/watched", "--timeout=60s"]);
    weir.weir(&["dataset", "delete", "default/watched"]).ok();
    assert!(queries.len() > 30, "only {} queries", queries.len());
    let rules = queries.iter().enumerate().map(|(number, query)| {
        let query = serde_json::to_string(query).unwrap();
        format!("  - {{record: \"test:query:{number}\", expr: {query}}}\n")
    });
    let rules = rules.collect::<String>();
    let all = weir.cluster.scratch.path("queries.yaml");
    std::fs::write(&all, format!("groups:\n- name: test\n  rules:\n{rules}")).unwrap();
    for rules in [chart.join("alerts.yaml"), all] {
        let check = ["promtool", "check", "rules", rules.to_str().unwrap()];
        weir.cluster.exec(&check).ok();
    }
}

/// Where nobody names one, as most who try it out.
fn a_secret_that_the_chart_makes_is_an_authority(weir: &Installation) {
    let chart = root().join("deploy/helm/weir");
    let chart = chart.to_str().unwrap();
    let render = [
        "helm",
        "template",
        KUBE_VERSION,
        chart,
        "--show-only",
        "templates/secrets.yaml",
    ];
    let secrets = weir.cluster.exec(&render).ok();
    let decode = |name: &str| {
        let prefix = format!("  {name}: ");
        let value = secrets.lines().find_map(|line| line.strip_prefix(&prefix));
        let value = value.unwrap_or_else(|| panic!("no {name} in {secrets}"));
        let encoded = weir.cluster.scratch.path("encoded");
        std::fs::write(&encoded, value).unwrap();
        let args = ["base64", "-d", encoded.to_str().unwrap()];
        weir.cluster.exec(&args).ok()
    };
    let ca = weir.cluster.scratch.path("chart-ca");
    std::fs::create_dir_all(&ca).unwrap();
    for name in ["ca.crt", "ca.key"] {
        std::fs::write(ca.join(name), decode(name)).unwrap();
    }
    let key = decode("key");
    assert_eq!(key.len(), 64, "{key}");
    assert!(key.bytes().all(|byte| byte.is_ascii_hexdigit()), "{key}");
    let out = weir.cluster.scratch.path("chart-certs");
    let dirs = [ca.to_str().unwrap(), out.to_str().unwrap()];
    let issue = ["certs", "issue", dirs[0], dirs[1], "--role", "master"];
    let lab = &weir.cluster.scratch;
    lab.weir(issue.iter().copied().chain(["--name", "m"])).ok();
    lab.weir(["certs", "show", dirs[1]]).ok();
}
