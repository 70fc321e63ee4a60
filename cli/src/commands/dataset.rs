//! `weir dataset …`.

use std::collections::BTreeMap;

use serde::Serialize;
use tonic::{Code, Status};
use weir_core::dataset::did_you_mean;
use weir_core::id::split_name;
use weir_core::placement::domains::{Keep, Placement, Spread};
use weir_core::{DatasetName, DatasetSpec, LeftOut, PlaceName};
use weir_origin::{spec_of, spec_of_mounts};
use weir_proto::v1;
use weir_worker::placements::placement;

use super::apply::document;
use crate::args::{DatasetCommand, DatasetFormat, OriginArgs, OutputFormat};
use crate::commands::credentials::no_credentials;
use crate::connect::{self, CALL_DEADLINE, LISTING_DEADLINE, request};
use crate::exit::{Failure, Reason};
use crate::output::{self, Rows, size, time};
use crate::process::runtime;

/// What a master says of a dataset without sources.
const NO_SOURCE: &str = "needs a source";

/// `weir dataset list -o json` and friends.
#[derive(Serialize)]
struct DatasetView {
    /// With the namespace, if that is not `default`.
    name: String,
    namespace: String,
    mounts: Vec<MountView>,
    /// As `weir apply` takes it; `None` if it is of a version that this command does not know.
    spec: Option<DatasetSpec>,
    /// Which workers hold it; `None` if no worker has been there yet.
    placement: Option<PlacementView>,
    snapshots: Vec<SnapshotView>,
}

/// Which workers hold a dataset.
#[derive(Serialize)]
pub(super) struct PlacementView {
    version: u64,
    spread: Spread,
    domains: Vec<String>,
    pool: Option<PlaceName>,
    /// Who keeps what it reads, beside them.
    #[serde(skip_serializing_if = "Option::is_none")]
    keep: Option<Keep>,
    /// Why; `None` from masters that do not say.
    reason: Option<String>,
}

impl PlacementView {
    /// What a master says of it.
    pub(super) fn new(message: v1::Placement, reason: String) -> Self {
        let placed = placement(Some(message));
        let Placement {
            version,
            spread,
            mut domains,
            pool,
            keep,
        } = placed;
        if spread == Spread::Cluster {
            domains.clear(); // it has no names
        }
        Self {
            version,
            spread,
            domains,
            pool,
            keep,
            reason: Some(reason).filter(|reason| !reason.is_empty()),
        }
    }

    /// Writes it as a line of a table's head.
    fn print(&self) -> Result<(), Failure> {
        let reason = self.reason.iter().map(|reason| format!(" ({reason})"));
        let reason: String = reason.collect();
        output::line(format_args!("  held by {self}{reason}"))?;
        Ok(())
    }
}

impl std::fmt::Display for PlacementView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.spread {
            Spread::Cluster => f.write_str("all workers")?,
            spread => write!(f, "{spread} {}", self.domains.join(", "))?,
        }
        if let Some(pool) = &self.pool {
            write!(f, " of pool {pool}")?;
        }
        match self.keep {
            Some(Keep::Node) => f.write_str(", kept by nodes that read it"),
            None => Ok(()),
        }
    }
}

#[derive(Serialize)]
struct MountView {
    url: String,
    path: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    endpoint: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    region: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    credentials: String,
}

#[derive(Serialize)]
struct SnapshotView {
    version: u64,
    created: String,
    files: u64,
    bytes: u64,
    blocks: u64,
    left_out: BTreeMap<String, u64>,
    left_out_examples: Vec<String>,
    archived: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    archived_example: String,
    stale_reads: u64,
}

impl From<v1::Dataset> for DatasetView {
    fn from(dataset: v1::Dataset) -> Self {
        let spec = spec_of(&dataset).ok();
        let mounts = dataset.mounts.into_iter().map(|mount| {
            let origin = mount.origin.unwrap_or_default();
            MountView {
                url: origin.url,
                path: format!("/{}", mount.path),
                endpoint: origin.endpoint,
                region: origin.region,
                credentials: origin.credentials,
            }
        });
        let snapshots = dataset.snapshots.into_iter().map(|snapshot| SnapshotView {
            version: snapshot.version,
            created: time(snapshot.created_ns),
            files: snapshot.files,
            bytes: snapshot.bytes,
            blocks: snapshot.blocks,
            left_out: snapshot.left_out.into_iter().collect(),
            left_out_examples: snapshot.left_out_examples,
            archived: snapshot.archived,
            archived_example: snapshot.archived_example,
            stale_reads: snapshot.stale_reads,
        });
        Self {
            namespace: split_name(&dataset.name).0.to_owned(),
            name: dataset.name,
            mounts: mounts.collect(),
            spec,
            placement: dataset
                .placement
                .map(|placement| PlacementView::new(placement, dataset.placement_reason)),
            snapshots: snapshots.collect(),
        }
    }
}

pub(crate) fn run(command: DatasetCommand) -> Result<(), Failure> {
    runtime()?.block_on(async {
        match command {
            DatasetCommand::Create {
                name,
                mounts,
                origin,
                credentials,
                include,
                exclude,
                placement,
                master,
            } => {
                let mounts = mounts
                    .iter()
                    .map(|m| mount_spec(m, &origin, credentials.clone(), mounts.len() > 1))
                    .collect::<Result<Vec<_>, _>>()?;
                let mut origins = mounts.iter().filter_map(|mount| mount.origin.as_ref());
                if credentials.is_some() && origins.all(|origin| origin.credentials.is_empty()) {
                    return Err(Failure::new(
                        Reason::Usage,
                        "directories are read without credentials; leave out --credentials",
                    ));
                }
                let mut client = connect::master(&master.at, None).await?;
                if credentials.is_some() {
                    // One that knows no credentials would list with its own.
                    let asked = request(v1::ListCredentialsRequest {}, CALL_DEADLINE);
                    client
                        .list_credentials(asked)
                        .await
                        .map_err(no_credentials)?;
                }
                let mut create = v1::CreateDatasetRequest {
                    name: name.to_string(),
                    mounts,
                    spec: String::new(),
                };
                let has_globs = !(include.is_empty() && exclude.is_empty());
                let placement = placement.wanted();
                let needs_spec = has_globs || placement.is_some();
                if needs_spec {
                    let mut spec = spec_of_mounts(&create.mounts);
                    spec.placement = placement;
                    for source in &mut spec.sources {
                        source.include.clone_from(&include);
                        source.exclude.clone_from(&exclude);
                    }
                    (create.mounts, create.spec) = (Vec::new(), spec.to_json());
                }
                let mut asked = client.clone();
                let call = asked.create_dataset(request(create, LISTING_DEADLINE));
                let made = connect::listing(&client, name.as_str(), call).await;
                let made = made.map_err(|status| no_spec(status, needs_spec))?;
                show(made.into_inner(), master.output.into())
            }
            DatasetCommand::List {
                namespace,
                output,
                master,
            } => {
                let mut client = connect::master(&master, None).await?;
                let list = v1::ListDatasetsRequest {
                    namespace: namespace.clone().unwrap_or_default(),
                };
                let list = client.list_datasets(request(list, CALL_DEADLINE)).await?;
                let mut datasets = list.into_inner().datasets;
                if let Some(namespace) = namespace {
                    // Masters of earlier versions tell of all.
                    datasets.retain(|dataset| split_name(&dataset.name).0 == namespace);
                }
                show_list(datasets, output)
            }
            DatasetCommand::Get {
                name,
                output,
                master,
            } => {
                let mut client = connect::master(&master, Some(name.as_str())).await?;
                let get = v1::GetDatasetRequest {
                    name: name.to_string(),
                };
                let dataset = client.get_dataset(request(get, CALL_DEADLINE)).await?;
                show(dataset.into_inner(), output)
            }
            DatasetCommand::Where { name, path, master } => {
                let mut client = connect::master(&master.at, Some(name.as_str())).await?;
                let locate = v1::LocateDatasetRequest {
                    name: name.to_string(),
                    path: path.unwrap_or_default(),
                };
                let asked = locate.path.clone();
                let located = client.locate_dataset(request(locate, CALL_DEADLINE));
                let located = located.await.map_err(no_locations)?.into_inner();
                if located.path != asked {
                    return Err(Failure::new(
                        Reason::Refused,
                        "the master is of an earlier version, which counts whole datasets only; leave out the path, or run a newer one",
                    ));
                }
                show_located(located, master.output)
            }
            DatasetCommand::LeftOut {
                name,
                reason,
                master,
            } => {
                let reason = reason.as_deref();
                check_reason(reason)?;
                let mut client = connect::master(&master.at, Some(name.dataset.as_str())).await?;
                let list = v1::ListLeftOutRequest {
                    dataset: name.dataset.to_string(),
                    version: name.version.unwrap_or_default(),
                };
                let list = client.list_left_out(request(list, CALL_DEADLINE)).await?;
                show_left_out(&name.dataset, list.into_inner(), reason, master.output)
            }
            DatasetCommand::Delete { name, master } => {
                let mut client = connect::master(&master.at, Some(name.as_str())).await?;
                let delete = v1::DeleteDatasetRequest {
                    name: name.to_string(),
                };
                client
                    .delete_dataset(request(delete, CALL_DEADLINE))
                    .await?;
                output::line(format_args!("deleted {name}; the origin was not touched"))
            }
            DatasetCommand::Refresh { name, master } => {
                let client = connect::master(&master.at, Some(name.as_str())).await?;
                let refresh = v1::RefreshDatasetRequest {
                    name: name.to_string(),
                };
                let mut asked = client.clone();
                let call = asked.refresh_dataset(request(refresh, LISTING_DEADLINE));
                let reply = connect::listing(&client, name.as_str(), call).await?;
                let reply = reply.into_inner();
                if master.output == OutputFormat::Table && !reply.changed {
                    output::line("nothing changed")?;
                }
                show(reply.dataset.unwrap_or_default(), master.output.into())
            }
        }
    })
}

/// What a refusal means of a question that earlier masters do not know.
fn no_locations(status: Status) -> Failure {
    if status.code() == Code::Unimplemented {
        return Failure::new(
            Reason::Refused,
            "the master is of an earlier version, which does not tell where datasets are cached; run a newer one",
        );
    }
    status.into()
}

/// What a refusal means of a specification: a master that does not know it here sees a dataset without sources.
fn no_spec(status: Status, needs_spec: bool) -> Failure {
    let is_unknown = status.code() == Code::InvalidArgument && status.message().contains(NO_SOURCE);
    if needs_spec && is_unknown {
        return Failure::new(
            Reason::Refused,
            "the master is of an earlier version, which takes no globs and no placement here; apply a file, or run a newer one",
        );
    }
    status.into()
}

/// Reads `URL` or `URL:PATH`. A colon belongs to the path when what follows has no slash before it but the scheme's.
fn mount_spec(
    text: &str,
    origin: &OriginArgs,
    credentials: Option<String>,
    others: bool,
) -> Result<v1::MountSpec, Failure> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(Failure::new(
            Reason::Usage,
            format!(
                "{text:?} is not a URL: write s3://bucket/prefix, hdfs://namenode:port/dir, https://host/dir/ or file:///dir, with :PATH behind it to put it at a path"
            ),
        ));
    };
    // The port of a server is none of it.
    let authority = match scheme {
        "hdfs" | "http" | "https" => rest.find('/').unwrap_or(rest.len()),
        _ => 0,
    };
    let host = rest.find('/').unwrap_or(rest.len());
    let (location, path) = match rest[authority..].rfind(':') {
        // A user and a password, which are refused as such, and no path.
        Some(at) if authority == 0 && at < host && rest[at..host].contains('@') => (rest, ""),
        Some(at) => (&rest[..authority + at], &rest[authority + at + 1..]),
        None => (rest, ""),
    };
    let none = OriginArgs::default();
    // Among several mounts the flags are for the buckets, and credentials for all but directories.
    let flags = match scheme {
        "file" | "hdfs" | "http" | "https" if others => &none,
        _ => origin,
    };
    let credentials = credentials.filter(|_| !(others && scheme == "file"));
    let url = format!("{scheme}://{location}");
    Ok(v1::MountSpec {
        origin: Some(named_origin_spec(&url, flags, credentials)?.into()),
        path: path.trim_matches('/').to_owned(),
    })
}

/// The origin that a URL and the origin flags name.
pub(crate) fn origin_spec(
    url: &str,
    args: &OriginArgs,
) -> Result<weir_origin::OriginSpec, Failure> {
    named_origin_spec(url, args, None)
}

fn named_origin_spec(
    url: &str,
    args: &OriginArgs,
    credentials: Option<String>,
) -> Result<weir_origin::OriginSpec, Failure> {
    let spec = weir_origin::OriginSpec {
        url: url.to_owned(),
        endpoint: args.endpoint.clone(),
        region: args.region.clone(),
        addressing: args.addressing.into(),
        anonymous: args.anonymous,
        profile: args.profile.clone(),
        patience_seconds: args.patience,
        credentials,
        hdfs: weir_origin::HdfsOptions::default(),
    };
    spec.with_environment()
        .map_err(|error| Failure::new(Reason::Usage, error))
}

fn show(dataset: v1::Dataset, format: DatasetFormat) -> Result<(), Failure> {
    if format == DatasetFormat::Yaml {
        return output::document(&document(&dataset)?);
    }
    let view = DatasetView::from(dataset);
    if format == DatasetFormat::Json {
        return output::json(&view);
    }
    output::line(format_args!("dataset {}", view.name))?;
    for mount in &view.mounts {
        output::line(format_args!("  {} from {}", mount.path, mount.url))?;
    }
    if let Some(placement) = &view.placement {
        placement.print()?;
    }
    let mut rows = Rows::new(&[
        "snapshot",
        "listed (UTC)",
        "files",
        "size",
        "left out",
        "stale reads",
    ]);
    for snapshot in &view.snapshots {
        rows.add([
            format!("{}@{}", view.name, snapshot.version),
            snapshot.created.clone(),
            snapshot.files.to_string(),
            size(snapshot.bytes),
            snapshot.left_out.values().sum::<u64>().to_string(),
            snapshot.stale_reads.to_string(),
        ]);
    }
    rows.print()?;
    if let Some(newest) = view.snapshots.last().filter(|s| !s.left_out.is_empty()) {
        output::line(
            "left out of the newest snapshot, since it cannot show them (docs/semantics.md):",
        )?;
        for (reason, count) in &newest.left_out {
            output::line(format_args!("  {count} {reason}"))?;
        }
        for example in &newest.left_out_examples {
            output::line(format_args!("  for example {example}"))?;
        }
        output::line(format_args!(
            "  `weir dataset left-out {}` lists them",
            view.name
        ))?;
    }
    if let Some(newest) = view.snapshots.last().filter(|s| s.archived > 0) {
        output::line(format_args!(
            "{} objects of the newest snapshot are archived, for example {}",
            newest.archived, newest.archived_example
        ))?;
        output::line(
            "  reads of them fail until they are restored (`aws s3api restore-object`) or copied to another storage class",
        )?;
    }
    Ok(())
}

/// `weir dataset where -o json`.
#[derive(Serialize)]
struct LocatedView {
    name: String,
    snapshot: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    bytes: u64,
    cached_bytes: u64,
    placement: Option<PlacementView>,
    nodes: Vec<CachedView>,
    groups: Vec<CachedView>,
    zones: Vec<CachedView>,
}

#[derive(Serialize)]
struct CachedView {
    name: String,
    cached_bytes: u64,
}

fn show_located(located: v1::LocateDatasetReply, format: OutputFormat) -> Result<(), Failure> {
    let cached = |places: Vec<v1::CachedAt>| -> Vec<CachedView> {
        let view = |place: v1::CachedAt| CachedView {
            name: place.name,
            cached_bytes: place.cached_bytes,
        };
        places.into_iter().map(view).collect()
    };
    let view = LocatedView {
        name: located.name,
        snapshot: located.version,
        path: Some(located.path).filter(|path| !path.is_empty()),
        bytes: located.bytes,
        cached_bytes: located.cached_bytes,
        placement: located
            .placement
            .map(|placement| PlacementView::new(placement, located.placement_reason)),
        nodes: cached(located.nodes),
        groups: cached(located.groups),
        zones: cached(located.zones),
    };
    if format == OutputFormat::Json {
        return output::json(&view);
    }
    let share = |cached: u64| output::percent(cached, view.bytes);
    let path = view.path.iter().map(|path| format!(" {path}"));
    output::line(format_args!(
        "{}@{}{}: {} of {} cached ({})",
        view.name,
        view.snapshot,
        path.collect::<String>(),
        size(view.cached_bytes),
        size(view.bytes),
        share(view.cached_bytes)
    ))?;
    if let Some(placement) = &view.placement {
        placement.print()?;
    }
    let mut rows = Rows::new(&["where", "name", "cached", "cached %"]);
    for (what, places) in [
        ("zone", &view.zones),
        ("group", &view.groups),
        ("node", &view.nodes),
    ] {
        for place in places {
            rows.add([
                what.to_owned(),
                place.name.clone(),
                size(place.cached_bytes),
                share(place.cached_bytes),
            ]);
        }
    }
    rows.print()
}

/// Refuses a reason that no object is left out for.
fn check_reason(reason: Option<&str>) -> Result<(), Failure> {
    let known = LeftOut::ALL.map(LeftOut::label);
    match reason {
        Some(reason) if !known.contains(&reason) => {
            let meant = did_you_mean(reason, known);
            Err(Failure::new(
                Reason::Usage,
                format!("unknown reason `{reason}`{meant}"),
            ))
        }
        _ => Ok(()),
    }
}

/// `weir dataset left-out -o json`.
#[derive(Serialize)]
struct LeftOutView {
    snapshot: String,
    /// Of all objects.
    counts: BTreeMap<String, u64>,
    /// The first of each reason.
    objects: Vec<LeftOutObjectView>,
}

#[derive(Serialize)]
struct LeftOutObjectView {
    reason: String,
    /// A key that is not text has its other bytes escaped.
    key: String,
}

fn show_left_out(
    dataset: &DatasetName,
    list: v1::ListLeftOutReply,
    only: Option<&str>,
    format: OutputFormat,
) -> Result<(), Failure> {
    let wanted = |reason: &str| only.is_none_or(|only| only == reason);
    let key = |key: Vec<u8>| {
        String::from_utf8(key).unwrap_or_else(|bytes| bytes.as_bytes().escape_ascii().to_string())
    };
    let counts = list.counts.into_iter().filter(|(r, _)| wanted(r));
    let objects = list
        .objects
        .into_iter()
        .filter(|object| wanted(&object.reason));
    let view = LeftOutView {
        snapshot: format!("{dataset}@{}", list.version),
        counts: counts.collect(),
        objects: objects
            .map(|object| LeftOutObjectView {
                reason: object.reason,
                key: key(object.key),
            })
            .collect(),
    };
    if format == OutputFormat::Json {
        return output::json(&view);
    }
    if view.counts.is_empty() {
        let snapshot = &view.snapshot;
        return output::line(format_args!("nothing is left out of {snapshot}"));
    }
    let mut rows = Rows::new(&["reason", "key"]);
    for object in &view.objects {
        rows.add([object.reason.clone(), object.key.clone()]);
    }
    rows.print()?;
    for (reason, count) in &view.counts {
        let listed = view.objects.iter().filter(|o| o.reason == *reason).count() as u64;
        let more = count.saturating_sub(listed);
        if more > 0 {
            output::line(format_args!(
                "and {more} more of {reason}, which are only counted"
            ))?;
        }
    }
    Ok(())
}

fn show_list(datasets: Vec<v1::Dataset>, format: DatasetFormat) -> Result<(), Failure> {
    if format == DatasetFormat::Yaml {
        let documents = datasets.iter().map(document);
        let documents: Vec<String> = documents.collect::<Result<_, _>>()?;
        return output::document(&documents.join("---\n"));
    }
    let views: Vec<DatasetView> = datasets.into_iter().map(Into::into).collect();
    if format == DatasetFormat::Json {
        return output::json(&views);
    }
    let mut rows = Rows::new(&["dataset", "snapshot", "files", "size", "origin"]);
    for view in &views {
        let newest = view.snapshots.last();
        let urls: Vec<&str> = view.mounts.iter().map(|m| m.url.as_str()).collect();
        rows.add([
            view.name.clone(),
            newest.map_or("-".to_owned(), |s| s.version.to_string()),
            newest.map_or("-".to_owned(), |s| s.files.to_string()),
            newest.map_or("-".to_owned(), |s| size(s.bytes)),
            urls.join(" "),
        ]);
    }
    rows.print()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_of_a_namenode_is_no_path_in_the_dataset() {
        for (text, url, path) in [
            ("hdfs://nn:8020/data", "hdfs://nn:8020/data", ""),
            ("hdfs://nn:8020", "hdfs://nn:8020", ""),
            ("hdfs://nn:8020/data:/train", "hdfs://nn:8020/data", "train"),
            (
                "hdfs://[::1]:8020/data:train",
                "hdfs://[::1]:8020/data",
                "train",
            ),
            ("file:///data:/train", "file:///data", "train"),
        ] {
            let Ok(spec) = mount_spec(text, &OriginArgs::default(), None, false) else {
                panic!("{text} was refused");
            };
            assert_eq!(spec.origin.unwrap_or_default().url, url, "{text}");
            assert_eq!(spec.path, path, "{text}");
        }
    }
}
