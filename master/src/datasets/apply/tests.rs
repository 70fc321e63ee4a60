use std::path::Path;
use std::sync::Arc;

use prometheus_client::registry::Registry;
use prost::Message;
use weir_core::dataset::Patience;
use weir_origin::{OriginMetrics, SourcePolicy};

use super::*;
use crate::config::MasterConfig;
use crate::credentials::Credentials;
use crate::metrics::MasterMetrics;
use crate::records::Records;
use crate::store::{Change, RocksStore};

struct World {
    dir: tempfile::TempDir,
    datasets: Datasets,
}

impl World {
    fn new() -> Self {
        Self::with(&[])
    }

    /// A master whose store has these records already.
    fn with(records: &[(&str, &[u8])]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(RocksStore::open(&dir.path().join("store")).unwrap());
        let put = |(key, bytes): &(&str, &[u8])| Change::Put((*key).to_owned(), bytes.to_vec());
        let changes: Vec<Change> = records.iter().map(put).collect();
        crate::store::MetaStore::write(&*store, &changes).unwrap();
        let config = MasterConfig {
            dir: dir.path().to_owned(),
            sources: SourcePolicy::unlimited(),
            ..MasterConfig::default()
        };
        let mut registry = Registry::default();
        let metrics = MasterMetrics::register(&mut registry);
        let origin = OriginMetrics::register(&mut registry);
        let records = Records::new(store);
        let credentials = Arc::new(Credentials::load(records.clone(), None, false).unwrap());
        let (_, cluster) = tokio::sync::watch::channel(Arc::default());
        let datasets =
            Datasets::load(records, &config, credentials, cluster, metrics, origin).unwrap();
        Self { dir, datasets }
    }

    /// Puts empty files into a directory, and gives a source of it at a path.
    fn source(&self, dir: &str, path: &str, files: &[&str]) -> SourceSpec {
        let dir = self.dir.path().join(dir);
        for file in files {
            let file = dir.join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, "x").unwrap();
        }
        SourceSpec {
            url: url(&dir),
            path: path.to_owned(),
            ..SourceSpec::default()
        }
    }

    async fn apply(&self, sources: &[SourceSpec]) -> Result<v1::ApplyDatasetReply, MasterError> {
        self.send(sources, false).await
    }

    async fn send(
        &self,
        sources: &[SourceSpec],
        dry_run: bool,
    ) -> Result<v1::ApplyDatasetReply, MasterError> {
        let spec = DatasetSpec {
            sources: sources.to_vec(),
            ..DatasetSpec::default()
        };
        let request = v1::ApplyDatasetRequest {
            name: "set".to_owned(),
            spec: spec.to_json(),
            dry_run,
            ..v1::ApplyDatasetRequest::default()
        };
        self.datasets.apply(request, CancellationToken::new()).await
    }

    /// Judges a new dataset that is to be made after others.
    async fn judge_beside(&self, source: SourceSpec, beside: u32) -> Result<(), MasterError> {
        let spec = DatasetSpec {
            sources: vec![source],
            ..DatasetSpec::default()
        };
        let request = v1::ApplyDatasetRequest {
            name: "new".to_owned(),
            spec: spec.to_json(),
            dry_run: true,
            beside,
            ..v1::ApplyDatasetRequest::default()
        };
        let judged = self.datasets.apply(request, CancellationToken::new());
        judged.await.map(drop)
    }

    async fn refresh(&self) -> Result<(v1::Dataset, bool), MasterError> {
        let refresh = self.datasets.refresh("set", CancellationToken::new());
        refresh.await
    }

    /// What of the dataset is stored.
    fn stored(&self) -> Option<v1::Dataset> {
        self.datasets.get(&"set".parse().unwrap()).ok()
    }

    /// The paths of the newest snapshot's files.
    async fn files(&self) -> Vec<String> {
        let manifest = self.datasets.manifest("set", None).await.unwrap();
        let files = manifest.files_below(weir_core::manifest::ROOT);
        let mut files: Vec<String> = files.map(|file| manifest.path(file)).collect();
        files.sort();
        files
    }
}

fn url(dir: &Path) -> String {
    format!("file://{}", dir.display())
}

fn outcome(reply: Result<v1::ApplyDatasetReply, MasterError>) -> v1::ApplyOutcome {
    reply.unwrap().outcome()
}

#[tokio::test]
async fn snapshots_are_counted_on_from_where_others_saw_them() {
    let world = World::new();
    let spec = DatasetSpec {
        sources: vec![world.source("a", "/", &["1.jpg"])],
        ..DatasetSpec::default()
    };
    let apply = |after| {
        let request = v1::ApplyDatasetRequest {
            name: "set".to_owned(),
            spec: spec.to_json(),
            after,
            ..v1::ApplyDatasetRequest::default()
        };
        world.datasets.apply(request, CancellationToken::new())
    };
    let refused = apply(MAX_AFTER + 1).await;
    assert!(matches!(refused, Err(MasterError::Invalid(_))));
    apply(7).await.unwrap();
    assert_eq!(world.stored().unwrap().snapshots[0].version, 8);
    world.source("a", "/", &["2.jpg"]);
    world.refresh().await.unwrap();
    assert_eq!(world.stored().unwrap().snapshots[1].version, 9);
}

#[tokio::test]
async fn a_dataset_is_created_left_and_configured_as_its_specification_says() {
    let world = World::new();
    let source = world.source("a", "/", &["1.jpg", "x/2.jpg", "x/3.txt"]);
    let sources = [source.clone()];
    assert_eq!(
        outcome(world.send(&sources, true).await),
        v1::ApplyOutcome::Created
    );
    assert!(world.stored().is_none(), "a dry run changes nothing");
    assert_eq!(
        outcome(world.apply(&sources).await),
        v1::ApplyOutcome::Created
    );
    let first = world.stored();
    assert_eq!(
        outcome(world.apply(&sources).await),
        v1::ApplyOutcome::Unchanged
    );
    assert_eq!(world.stored(), first);

    // An option alone makes no snapshot.
    let patient = SourceSpec {
        patience: Some(Patience(600)),
        ..source.clone()
    };
    assert_eq!(
        outcome(world.send(std::slice::from_ref(&patient), true).await),
        v1::ApplyOutcome::Configured
    );
    assert_eq!(world.stored(), first);
    assert_eq!(
        outcome(world.apply(std::slice::from_ref(&patient)).await),
        v1::ApplyOutcome::Configured
    );
    let changed = world.stored().unwrap();
    assert_eq!(changed.snapshots, first.unwrap().snapshots);
    assert_eq!(
        dataset_spec(&changed).unwrap().sources,
        std::slice::from_ref(&patient)
    );

    // Other globs do.
    let images = SourceSpec {
        include: vec!["**/*.jpg".to_owned()],
        exclude: vec!["x/**".to_owned()],
        ..patient.clone()
    };
    assert_eq!(
        outcome(world.apply(std::slice::from_ref(&images)).await),
        v1::ApplyOutcome::Configured
    );
    assert_eq!(world.files().await, ["1.jpg"]);
    let newest = world.stored().unwrap().snapshots.pop().unwrap();
    assert_eq!(newest.version, 2);
    let left_out = [("excluded", 1), ("not_included", 1)].map(|(reason, n)| (reason.to_owned(), n));
    assert_eq!(newest.left_out, left_out.into());

    // And a source more; order is precedence.
    let other = world.source("b", "/", &["1.jpg", "4.jpg"]);
    let both = [other.clone(), images.clone()];
    assert_eq!(
        outcome(world.apply(&both).await),
        v1::ApplyOutcome::Configured
    );
    assert_eq!(world.files().await, ["1.jpg", "4.jpg"]);
    let manifest = world.datasets.manifest("set", None).await.unwrap();
    let shown = manifest.resolve("1.jpg").unwrap();
    assert!(manifest.mount(shown).spec.contains(&other.url));
    let swapped = [images, other.clone()];
    assert_eq!(
        outcome(world.apply(&swapped).await),
        v1::ApplyOutcome::Configured
    );
    let manifest = world.datasets.manifest("set", None).await.unwrap();
    assert!(!manifest.mount(shown).spec.contains(&other.url));

    // A refresh keeps what was declared.
    std::fs::write(world.dir.path().join("a/5.txt"), "x").unwrap();
    world.refresh().await.unwrap();
    assert_eq!(world.files().await, ["1.jpg", "4.jpg"]);
    assert_eq!(
        outcome(world.apply(&swapped).await),
        v1::ApplyOutcome::Unchanged
    );
}

#[tokio::test]
async fn the_place_of_a_source_stays_and_the_error_names_the_field() {
    let world = World::new();
    let source = world.source("a", "/train", &["1"]);
    let other = world.source("b", "/", &["1"]);
    world.apply(std::slice::from_ref(&source)).await.unwrap();
    let before = world.stored();
    let moved = SourceSpec {
        path: "/val".to_owned(),
        ..source.clone()
    };
    for (sources, said) in [
        (vec![moved], "spec.sources[0].path: the place"),
        (vec![other.clone()], "spec.sources[0].url: the place"),
    ] {
        for dry_run in [true, false] {
            let error = world.send(&sources, dry_run).await.unwrap_err();
            assert!(matches!(error, MasterError::Immutable(_)));
            assert!(error.to_string().contains(said), "{error}");
            assert!(
                error.to_string().contains("weir dataset delete set"),
                "{error}"
            );
        }
        assert_eq!(world.stored(), before);
    }
    world.apply(&[source.clone(), other.clone()]).await.unwrap();
    let error = world.apply(&[other]).await.unwrap_err();
    assert!(error.to_string().contains("spec.sources[0]"), "{error}");
    let error = world.apply(&[source]).await.unwrap_err();
    assert!(
        error.to_string().contains("spec.sources[1]: the source"),
        "{error}"
    );
    assert!(
        error.to_string().contains("cannot be taken away"),
        "{error}"
    );
}

#[tokio::test]
async fn what_cannot_be_listed_or_shows_nothing_changes_nothing() {
    let world = World::new();
    let source = world.source("a", "/", &["1.txt"]);
    let missing = SourceSpec {
        url: url(&world.dir.path().join("missing")),
        path: "/more".to_owned(),
        ..SourceSpec::default()
    };
    let nothing = SourceSpec {
        include: vec!["*.jpg".to_owned()],
        ..source.clone()
    };
    let bad = SourceSpec {
        exclude: vec!["[".to_owned()],
        ..source.clone()
    };
    let errors = |all: &[SourceSpec]| all.to_vec();
    for sources in [
        errors(std::slice::from_ref(&missing)),
        errors(&[source.clone(), missing.clone()]),
        errors(std::slice::from_ref(&nothing)),
        errors(std::slice::from_ref(&bad)),
        errors(&[source.clone(), source.clone()]),
        errors(&[]),
    ] {
        world.apply(&sources).await.unwrap_err();
        assert!(world.stored().is_none());
    }
    world.apply(std::slice::from_ref(&source)).await.unwrap();
    let before = world.stored();
    for (sources, said) in [
        (errors(&[source.clone(), missing]), "missing"),
        (errors(&[nothing]), "its globs leave out all"),
        (errors(&[bad]), "spec.sources[0].exclude[0]: the glob"),
    ] {
        let error = world.apply(&sources).await.unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        assert_eq!(world.stored(), before);
    }
    // Neither does a refresh of a source that is gone.
    std::fs::remove_dir_all(world.dir.path().join("a")).unwrap();
    world.refresh().await.unwrap_err();
    assert_eq!(world.stored(), before);
}

#[tokio::test]
async fn a_specification_that_this_master_does_not_know_is_refused() {
    let world = World::new();
    for (spec, said) in [
        (
            "{\"sources\":[{\"url\":\"s3://b\",\"copies\":3}]}",
            "unknown field `copies`",
        ),
        ("{}", "missing field `sources`"),
        ("[", "does not understand"),
        ("", "does not understand"),
        (&format!("\"{}\"", "x".repeat(MAX_SPEC)), "bytes long"),
    ] {
        let request = v1::ApplyDatasetRequest {
            name: "set".to_owned(),
            spec: spec.to_owned(),
            dry_run: false,
            ..v1::ApplyDatasetRequest::default()
        };
        let error = world
            .datasets
            .apply(request, CancellationToken::new())
            .await
            .unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
    assert!(world.stored().is_none());
}

/// A record as masters wrote it that had no specifications.
const BEFORE: &[u8] = b"\x0a\x03set\x12\x27\x0a\x1e\x0a\x0ds3://bucket/p\x12\x0ahttp://h:1\x38\xd8\x04\x12\x05train\x1a\x06\x08\x03\x10\x07\x18\x02\x20\x05";

#[tokio::test]
async fn a_record_from_before_specifications_is_read_and_has_that_of_its_mounts() {
    let world = World::with(&[("dataset/set", BEFORE)]);
    let source = SourceSpec {
        url: "s3://bucket/p".to_owned(),
        path: "/train".to_owned(),
        endpoint: Some("http://h:1".to_owned()),
        patience: Some(Patience(600)),
        ..SourceSpec::default()
    };
    let stored = world.stored().unwrap();
    assert_eq!(stored.snapshots[0].version, 3);
    assert_eq!(
        DatasetSpec::from_json(&stored.spec).unwrap().sources,
        std::slice::from_ref(&source)
    );
    assert_eq!(
        outcome(world.apply(std::slice::from_ref(&source)).await),
        v1::ApplyOutcome::Unchanged
    );
    let profile = SourceSpec {
        profile: Some("dev".to_owned()),
        ..source
    };
    assert_eq!(
        outcome(world.apply(std::slice::from_ref(&profile)).await),
        v1::ApplyOutcome::Configured
    );
    let bytes = world.stored().unwrap().encode_to_vec();
    let again = World::with(&[("dataset/set", &bytes)]);
    assert_eq!(
        outcome(again.apply(&[profile]).await),
        v1::ApplyOutcome::Unchanged
    );
}

#[tokio::test]
async fn one_dataset_too_many_is_refused_before_anything_is_listed() {
    let record = |number: usize| {
        let name = format!("n-{number}");
        let dataset = v1::Dataset {
            name: name.clone(),
            ..v1::Dataset::decode(BEFORE).unwrap()
        };
        (format!("dataset/{name}"), dataset.encode_to_vec())
    };
    let records: Vec<(String, Vec<u8>)> = (0..MAX_DATASETS).map(record).collect();
    let records: Vec<(&str, &[u8])> = records.iter().map(|(k, v)| (&**k, &**v)).collect();
    let world = World::with(&records);
    let source = world.source("a", "/", &["1"]);
    for dry_run in [true, false] {
        let error = world.send(std::slice::from_ref(&source), dry_run).await;
        let error = error.unwrap_err();
        assert!(matches!(error, MasterError::Busy(_)), "{error}");
        assert!(
            error.to_string().contains("there are 10000 datasets"),
            "{error}"
        );
    }
    assert!(world.stored().is_none());
}

#[tokio::test]
async fn of_many_new_datasets_the_one_that_does_not_fit_is_known_before_any_is_made() {
    let world = World::new();
    let source = world.source("a", "/", &["1"]);
    world.apply(std::slice::from_ref(&source)).await.unwrap();
    let most = u32::try_from(MAX_DATASETS).unwrap();
    world.judge_beside(source.clone(), most - 2).await.unwrap();
    for beside in [most - 1, most, u32::MAX] {
        let error = world
            .judge_beside(source.clone(), beside)
            .await
            .unwrap_err();
        assert!(matches!(error, MasterError::Busy(_)), "{error}");
        let said = format!("there are 1 datasets, no more fit after {beside} others");
        assert!(error.to_string().contains(&said), "{error}");
    }
}

#[tokio::test]
async fn the_short_way_makes_the_same_object_and_keeps_the_globs_of_a_known_one() {
    let world = World::new();
    let source = world.source("a", "/", &["1.jpg", "2.txt"]);
    let images = SourceSpec {
        include: vec!["*.jpg".to_owned()],
        ..source.clone()
    };
    world.apply(std::slice::from_ref(&images)).await.unwrap();
    let patient = weir_origin::OriginSpec {
        patience_seconds: Some(60),
        ..weir_origin::OriginSpec::of_source(&source)
    };
    let request = v1::CreateDatasetRequest {
        spec: String::new(),
        name: "set".to_owned(),
        mounts: vec![v1::MountSpec {
            origin: Some(patient.into()),
            path: String::new(),
        }],
    };
    let made = world
        .datasets
        .create(request, CancellationToken::new())
        .await
        .unwrap();
    let images = SourceSpec {
        patience: Some(Patience(60)),
        ..images
    };
    assert_eq!(dataset_spec(&made).unwrap().sources, [images]);
}

/// The record of a dataset of one source that has been listed once.
fn listed(source: SourceSpec) -> Vec<u8> {
    let spec = DatasetSpec {
        sources: vec![source],
        ..DatasetSpec::default()
    };
    let mut wanted = read(&"set".parse().unwrap(), &spec.to_json()).unwrap();
    wanted.qualify(&"set".parse().unwrap()).unwrap();
    let dataset = v1::Dataset {
        name: "set".to_owned(),
        spec: spec.to_json(),
        mounts: wanted.mounts,
        snapshots: vec![v1::Snapshot {
            version: 1,
            ..Default::default()
        }],
        created_ns: 1,
        ..Default::default()
    };
    dataset.encode_to_vec()
}

#[tokio::test]
async fn credentials_with_and_without_the_own_namespace_are_the_same() {
    let source = |name: &str| SourceSpec {
        credentials: Some(name.to_owned()),
        ..SourceSpec {
            url: "s3://bucket".to_owned(),
            path: "/".to_owned(),
            ..SourceSpec::default()
        }
    };
    for (stored, applied) in [("keys", "default/keys"), ("default/keys", "keys")] {
        let world = World::with(&[("dataset/set", &listed(source(stored)))]);
        for dry_run in [true, false] {
            let reply = world.send(&[source(applied)], dry_run).await;
            assert_eq!(outcome(reply), v1::ApplyOutcome::Unchanged, "{applied}");
        }
        let known = dataset_spec(&world.stored().unwrap()).unwrap();
        assert_eq!(known.sources, [source("keys")]);
    }
}

/// A source whose host does not exist. A part of a name has 63 characters at most, so no name server is asked.
fn lost() -> SourceSpec {
    SourceSpec {
        url: "s3://bucket".to_owned(),
        path: "/".to_owned(),
        endpoint: Some(format!("http://{}.example", "x".repeat(64))),
        anonymous: true,
        ..SourceSpec::default()
    }
}

/// Waits until the listing of the dataset is told to wait for something.
async fn told(datasets: &Datasets) -> String {
    let name = "set".parse().unwrap();
    let look = async {
        loop {
            match datasets.under_way(&name) {
                (_, Some(waits_for)) => return waits_for,
                _ => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
            }
        }
    };
    let deadline = std::time::Duration::from_secs(20);
    tokio::time::timeout(deadline, look).await.unwrap()
}

#[tokio::test]
async fn a_source_that_was_listed_before_is_waited_for_and_others_are_not() {
    let stranger = World::new();
    let error = stranger.apply(&[lost()]).await.unwrap_err();
    assert!(error.to_string().contains("there is no host"), "{error}");
    assert!(stranger.stored().is_none());

    let world = World::with(&[("dataset/set", &listed(lost()))]);
    let before = world.stored();
    let gone = CancellationToken::new();
    let mut refresh = std::pin::pin!(world.datasets.refresh("set", gone.clone()));
    let waits_for = tokio::select! {
        ended = &mut refresh => panic!("it did not wait: {ended:?}"),
        waits_for = told(&world.datasets) => waits_for,
    };
    assert!(waits_for.contains("there is no host"), "{waits_for}");
    // Another caller waits for its turn, and may give up, too.
    let other = CancellationToken::new();
    let mut second = std::pin::pin!(world.datasets.refresh("set", other.clone()));
    assert!(futures::poll!(second.as_mut()).is_pending());
    other.cancel();
    assert!(matches!(second.await, Err(MasterError::Abandoned(_))));
    // Nobody waits any more: the dataset is as it was, and free.
    gone.cancel();
    assert!(matches!(refresh.await, Err(MasterError::Abandoned(_))));
    assert_eq!(world.stored(), before);
    let name = "set".parse().unwrap();
    assert_eq!(world.datasets.under_way(&name), (false, None));
    world
        .datasets
        .listing(&name, CancellationToken::new())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_listing_whose_caller_has_gone_ends_well_if_its_source_answers() {
    let world = World::new();
    let source = world.source("a", "/", &["1.jpg"]);
    world.apply(std::slice::from_ref(&source)).await.unwrap();
    world.source("a", "/", &["2.jpg"]);
    let gone = CancellationToken::new();
    gone.cancel();
    let (_, changed) = world.datasets.refresh("set", gone).await.unwrap();
    assert!(changed);
    assert_eq!(world.files().await, ["1.jpg", "2.jpg"]);
}

#[tokio::test]
async fn a_long_listing_waits_for_others_and_a_short_one_does_not() {
    let world = World::new();
    let name: DatasetName = "set".parse().unwrap();
    let mut others = Vec::new();
    for _ in 0..crate::datasets::turn::MAX_LONG {
        let places = world.datasets.long_listings.clone();
        others.push(places.try_acquire_owned().unwrap());
    }
    let gone = CancellationToken::new();
    let listing = world.datasets.listing(&name, gone.clone()).await.unwrap();
    let mut place = None;
    listing.take_place(9_999, &mut place).await.unwrap();
    assert!(place.is_none());
    {
        let mut long = std::pin::pin!(listing.take_place(10_000, &mut place));
        assert!(futures::poll!(long.as_mut()).is_pending());
        assert!(told(&world.datasets).await.contains("other long listings"));
        others.pop();
        long.await.unwrap();
    }
    assert!(place.is_some());
    assert_eq!(world.datasets.under_way(&name), (true, None));
    // One that nobody waits for does not queue.
    gone.cancel();
    let abandoned = listing.take_place(10_000, &mut None).await;
    assert!(matches!(abandoned, Err(MasterError::Abandoned(_))));
}

#[tokio::test]
async fn a_source_without_files_makes_no_dataset_and_a_dataset_does_not_lose_all_of_its() {
    let world = World::new();
    let nothing = world.source("nothing", "/", &[]);
    std::fs::create_dir(world.dir.path().join("nothing")).unwrap();
    let error = world.apply(std::slice::from_ref(&nothing)).await;
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("spec.sources[0]: file://") && error.contains("is mounted"),
        "{error}"
    );
    assert!(world.stored().is_none());

    let (a, b) = (
        world.source("a", "/a", &["1.jpg"]),
        world.source("b", "/b", &["2.jpg"]),
    );
    world.apply(&[a, b]).await.unwrap();
    let before = world.stored();
    let gone = |file: &str| std::fs::remove_file(world.dir.path().join(file)).unwrap();
    gone("a/1.jpg");
    gone("b/2.jpg");
    let error = world
        .datasets
        .refresh("set", CancellationToken::new())
        .await
        .unwrap_err();
    assert!(matches!(error, MasterError::NotFound(_)), "{error}");
    let error = error.to_string();
    for said in ["dataset set", "2 were there", "weir dataset delete set"] {
        assert!(error.contains(said), "{error}");
    }
    assert_eq!(world.stored(), before);
    assert_eq!(world.files().await, ["a/1.jpg", "b/2.jpg"]);
    // One of several may have none.
    world.source("b", "/b", &["3.jpg"]);
    world
        .datasets
        .refresh("set", CancellationToken::new())
        .await
        .unwrap();
    assert_eq!(world.files().await, ["b/3.jpg"]);
}

#[test]
fn another_index_of_the_same_place_is_other_files_and_another_signature_is_not() {
    let spec = |url: &str, region: Option<&str>| DatasetSpec {
        sources: vec![SourceSpec {
            url: url.to_owned(),
            path: "/".to_owned(),
            region: region.map(str::to_owned),
            ..SourceSpec::default()
        }],
        ..DatasetSpec::default()
    };
    let a = spec("https://h/d/?index=a", None);
    assert!(have_same_files(&a, &spec("https://h/d?index=a", None)));
    for other in ["https://h/d/?index=b", "https://h/d/"] {
        let other = spec(other, None);
        assert!(!have_same_files(&a, &other));
        check_places(&"set".parse().unwrap(), &a, &other).unwrap();
    }
    let bucket = spec("s3://b/p", None);
    assert!(have_same_files(&bucket, &spec("s3://b/p", Some("eu"))));
    assert!(!have_same_files(&bucket, &DatasetSpec::default()));
}
