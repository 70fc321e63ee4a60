//! What is mounted, however it is written: a live mount is only taken over by what is the same.

use weir_core::DatasetRef;
use weir_origin::{Addressing, OriginSpec};

/// An origin in one canonical form, with all that decides what its keys mean: the service, how the bucket is
/// addressed, and whose bucket it is. The region is none of it: a service corrects it.
pub(super) fn of_origin(origin: &OriginSpec, dataset: &DatasetRef) -> String {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    describe(origin, dataset, variable)
}

/// A dataset of a cluster.
pub(super) fn of_dataset(master: &str, dataset: &DatasetRef) -> String {
    format!("dataset {} of master {master}", dataset.dataset)
}

fn describe(
    origin: &OriginSpec,
    dataset: &DatasetRef,
    variable: impl Fn(&str) -> Option<String>,
) -> String {
    let dataset = format!("as dataset {}", dataset.dataset);
    if origin.scheme() == "file" {
        return format!("{} {dataset}", origin.location());
    }
    if origin.scheme() == "hdfs" {
        return format!("{} at {} {dataset}", origin.prefix(), origin.location());
    }
    if matches!(origin.scheme(), "http" | "https") {
        let index = origin.index_query();
        return format!("{}/{}{index} {dataset}", origin.location(), origin.prefix());
    }
    let location = origin.location();
    let (bucket, endpoint) = location
        .split_once("?endpoint=")
        .unwrap_or((&location, "AWS"));
    let style = match (origin.addressing, &origin.endpoint) {
        (Addressing::Virtual, _) | (Addressing::Auto, None) => "virtual-hosted",
        (Addressing::Path, _) | (Addressing::Auto, Some(_)) => "by path",
    };
    let prefix = origin.prefix();
    let reader = reader(origin, variable);
    format!("{bucket}/{prefix} at {endpoint} ({style}, {reader}) {dataset}")
}

/// Whose keys are used, in the order in which they are looked for. Keys of a session are replaced every hour, so they
/// say nothing.
fn reader(origin: &OriginSpec, variable: impl Fn(&str) -> Option<String>) -> String {
    if origin.anonymous {
        return "without credentials".to_owned();
    }
    if let Some(profile) = &origin.profile {
        return format!("profile {profile}");
    }
    match (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SESSION_TOKEN")) {
        (Some(_), Some(_)) => "session keys".to_owned(),
        (Some(key), None) => format!("access key {key}"),
        (None, _) => match variable("AWS_PROFILE") {
            Some(profile) => format!("profile {profile}"),
            None => "default credentials".to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(url: &str, change: impl Fn(&mut OriginSpec), variables: &[(&str, &str)]) -> String {
        let mut origin = OriginSpec::parse(url).unwrap();
        change(&mut origin);
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        describe(&origin, &"set".parse().unwrap(), variable)
    }

    #[test]
    fn one_origin_has_one_identity_however_it_is_written() {
        let to = |endpoint: &'static str| {
            move |origin: &mut OriginSpec| origin.endpoint = Some(endpoint.into())
        };
        let plain = identity("s3://b/p", to("http://host:9000"), &[]);
        let same = [
            identity("s3://b/p/", to("http://host:9000"), &[]),
            identity("s3://b/p", to("HTTP://Host:9000/"), &[]),
            identity(
                "s3://b/p",
                |origin| {
                    to("http://host:9000")(origin);
                    origin.addressing = Addressing::Path;
                    origin.region = Some("eu-west-1".into());
                },
                &[],
            ),
        ];
        for same in same {
            assert_eq!(same, plain);
        }
        assert_eq!(
            identity("https://h/d", |_| (), &[]),
            identity("https://h/d/", |_| (), &[("AWS_ACCESS_KEY_ID", "k")])
        );
        assert_eq!(
            identity("https://h/d/", |_| (), &[]),
            "https://h/d/ as dataset set"
        );
        assert_eq!(
            identity("file:///data//set/", |_| (), &[]),
            identity("file:///data/set", |_| (), &[("AWS_ACCESS_KEY_ID", "k")])
        );
    }

    #[test]
    fn another_service_bucket_prefix_way_or_account_is_another_origin() {
        let key = ("AWS_ACCESS_KEY_ID", "one");
        let all: std::collections::BTreeSet<String> = [
            identity("s3://b/p", |_| (), &[]),
            identity("s3://b", |_| (), &[]),
            identity("s3://c/p", |_| (), &[]),
            identity(
                "s3://b/p",
                |origin| origin.endpoint = Some("http://host".into()),
                &[],
            ),
            identity(
                "s3://b/p",
                |origin| origin.addressing = Addressing::Path,
                &[],
            ),
            identity("s3://b/p", |origin| origin.anonymous = true, &[key]),
            identity(
                "s3://b/p",
                |origin| origin.profile = Some("p".into()),
                &[key],
            ),
            identity("s3://b/p", |_| (), &[key]),
            identity("s3://b/p", |_| (), &[("AWS_ACCESS_KEY_ID", "two")]),
            identity("s3://b/p", |_| (), &[("AWS_PROFILE", "q")]),
        ]
        .into();
        assert_eq!(all.len(), 10, "{all:?}");
    }

    #[test]
    fn keys_of_a_session_may_change() {
        let with = |key, token| {
            let variables = [("AWS_ACCESS_KEY_ID", key), ("AWS_SESSION_TOKEN", token)];
            identity("s3://b", |_| (), &variables)
        };
        assert_eq!(with("one", "t"), with("two", "u"));
        assert!(!with("one", "secret-token").contains("secret-token"));
    }
}
