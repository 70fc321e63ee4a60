//! What the chart lets each part do (`deploy/kubernetes/weir.yaml`, which is what it makes).

#![allow(clippy::unwrap_used)]

use std::path::Path;

use serde_json::Value;

fn objects() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes/weir.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    let documents = text.split("\n---\n");
    let with_lines = documents.filter(|text| text.lines().any(|line| !line.starts_with('#')));
    with_lines
        .map(|text| serde_saphyr::from_str(text).unwrap())
        .collect()
}

fn name_of(object: &Value) -> (&str, &str) {
    let name = object["metadata"]["name"].as_str();
    (object["kind"].as_str().unwrap(), name.unwrap())
}

fn words(of: &Value) -> Vec<&str> {
    let words = of.as_array().into_iter().flatten();
    words.map(|word| word.as_str().unwrap()).collect()
}

/// Rules of roles, each with the role's name.
fn rules(objects: &[Value]) -> Vec<(&str, &Value)> {
    let roles = objects
        .iter()
        .filter(|object| matches!(name_of(object).0, "Role" | "ClusterRole"));
    roles
        .flat_map(|role| {
            let rules = role["rules"].as_array().unwrap().iter();
            rules.map(|rule| (name_of(role).1, rule))
        })
        .collect()
}

#[test]
fn nobody_but_the_operator_reads_the_authoritys_key() {
    let objects = objects();
    let mut readers = Vec::new();
    for object in &objects {
        let text = object.to_string();
        // Also in a template of a pod that is a text.
        if text.contains("weir-ca\"") || text.contains("weir-ca\\n") || text.contains("weir-ca,") {
            readers.push(name_of(object));
        }
    }
    assert_eq!(readers, [("Deployment", "weir-operator")]);
}

#[test]
fn each_pod_asks_for_its_certificate_with_a_token_for_the_operator_alone() {
    let objects = objects();
    let mut asking = 0;
    for object in &objects {
        let (kind, name) = name_of(object);
        // The template of the pods that the operator makes.
        let text = object["data"]["pod.json"].as_str();
        let template: Value = text.map_or(Value::Null, |text| serde_json::from_str(text).unwrap());
        let spec = match &object["spec"]["template"]["spec"] {
            Value::Null => &template["spec"],
            spec => spec,
        };
        if spec.is_null() || name == "weir-operator" {
            continue;
        }
        assert!(spec["initContainers"].is_null(), "{kind} {name}");
        assert_eq!(spec["automountServiceAccountToken"], false, "{kind} {name}");
        let volumes = spec["volumes"].as_array().unwrap();
        let volume = |name: &str| {
            volumes
                .iter()
                .find(|volume| volume["name"] == name)
                .unwrap()
        };
        assert_eq!(volume("certs")["emptyDir"]["medium"], "Memory", "{name}");
        let proof = &volume("proof")["projected"]["sources"];
        assert_eq!(proof[0]["serviceAccountToken"]["audience"], "weir-operator");
        assert_eq!(proof[1]["configMap"]["name"], "weir-authority");
        asking += 1;
    }
    assert!(asking >= 4, "only {asking} workloads");
}

#[test]
fn nodes_are_only_read_and_secrets_only_where_somebody_lets_them_be() {
    let objects = objects();
    for (role, rule) in rules(&objects) {
        let (resources, verbs) = (words(&rule["resources"]), words(&rule["verbs"]));
        let all = [&resources[..], &verbs[..], &words(&rule["apiGroups"])[..]].concat();
        assert!(!all.contains(&"*"), "{role}: {rule}");
        if resources
            .iter()
            .any(|resource| resource.starts_with("nodes"))
        {
            let reads = ["get", "list", "watch"];
            assert!(
                verbs.iter().all(|verb| reads.contains(verb)),
                "{role}: {rule}"
            );
        }
        if resources.contains(&"secrets") && role != "weir-secret-reader" {
            let is_own = words(&rule["resourceNames"]) == ["weir-webhook"] || verbs == ["create"];
            assert!(is_own, "{role}: {rule}");
        }
    }
    let bound = |object: &&Value| name_of(object).0.ends_with("RoleBinding");
    for binding in objects.iter().filter(bound) {
        for subject in binding["subjects"].as_array().unwrap() {
            assert_eq!(subject["name"], "weir-operator", "others have no rights");
        }
        assert_ne!(binding["roleRef"]["name"], "weir-secret-reader");
    }
}
