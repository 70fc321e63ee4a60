//! The rules of volumes, on a kernel and a cluster that are made up.

use proptest::prelude::*;
use weir_core::DatasetName;

use super::*;
use crate::catalog::Known;
use crate::volume::Pod;

/// A table of mounts, and what can go wrong with them.
#[derive(Default)]
struct Fake {
    table: Mutex<Vec<Entry>>,
    dead: Mutex<BTreeSet<String>>,
    silent: Mutex<BTreeSet<String>>,
    made: Mutex<u32>,
    /// Directories that the datasets have, beside their roots.
    directories: Vec<&'static str>,
    mount_fails: Mutex<bool>,
}

impl Fake {
    fn device_at(&self, path: &Path) -> Option<String> {
        let table = self.table.lock();
        let entry = table.iter().rfind(|entry| entry.mountpoint == path);
        entry.map(|entry| entry.device.clone())
    }

    /// As when all processes of a mount are killed.
    fn kill(&self, path: &Path) {
        let device = self.device_at(path).unwrap();
        self.dead.lock().insert(device);
    }

    fn layers(&self, path: &Path) -> usize {
        let table = self.table.lock();
        table
            .iter()
            .filter(|entry| entry.mountpoint == path)
            .count()
    }

    fn push(&self, device: &str, source: &str, root: &str, at: &Path) {
        self.table.lock().push(Entry {
            device: device.to_owned(),
            root: root.into(),
            mountpoint: at.to_owned(),
            fs_type: FS_TYPE.to_owned(),
            source: source.to_owned(),
        });
    }

    fn pop(&self, path: &Path) -> bool {
        let mut table = self.table.lock();
        let top = table.iter().rposition(|entry| entry.mountpoint == path);
        top.map(|top| table.remove(top)).is_some()
    }
}

#[async_trait::async_trait]
impl System for Fake {
    fn table(&self) -> Result<Vec<Entry>, CsiError> {
        Ok(self.table.lock().clone())
    }

    async fn serve(&self, snapshot: &SnapshotId, dir: &Path) -> Result<(), CsiError> {
        tokio::task::yield_now().await;
        if *self.mount_fails.lock() {
            return Err(CsiError::Unavailable("the master is silent".to_owned()));
        }
        while self.pop(dir) {}
        let number = {
            let mut made = self.made.lock();
            *made += 1;
            *made
        };
        std::fs::create_dir_all(dir).unwrap();
        self.push(
            &format!("0:{number}"),
            &format!("weir:{snapshot}"),
            "/",
            dir,
        );
        Ok(())
    }

    async fn end(&self, dir: &Path) -> Result<(), CsiError> {
        tokio::task::yield_now().await;
        while self.pop(dir) {}
        let _ = std::fs::remove_dir(dir);
        Ok(())
    }

    async fn health(&self, at: &Path) -> Health {
        tokio::task::yield_now().await;
        match self.device_at(at) {
            Some(device) if self.dead.lock().contains(&device) => Health::Dead,
            Some(device) if self.silent.lock().contains(&device) => Health::Silent,
            _ => Health::Alive(Usage::default()),
        }
    }

    async fn bind(&self, from: &Path, path: &str, target: &Target) -> Result<(), CsiError> {
        tokio::task::yield_now().await;
        if !path.is_empty() && !self.directories.contains(&path) {
            return Err(CsiError::NotFound(format!("no directory {path}")));
        }
        let of = {
            let table = self.table.lock();
            table
                .iter()
                .rfind(|entry| entry.mountpoint == from)
                .unwrap()
                .clone()
        };
        drop(target.open_or_make()?);
        self.push(&of.device, &of.source, &format!("/{path}"), &target.path());
        Ok(())
    }

    async fn unbind(&self, target: &Target) -> Result<(), CsiError> {
        tokio::task::yield_now().await;
        self.pop(&target.path());
        Ok(())
    }

    async fn remove(&self, target: &Target) -> Result<(), CsiError> {
        target.remove()
    }
}

/// Datasets `team-a/x` with snapshots 1 to 3, and `team-a/shared`, which lets `team-b` in.
#[derive(Default)]
struct FakeCatalog {
    is_down: Mutex<bool>,
    has_none: Mutex<bool>,
    is_leaving: Mutex<bool>,
    newest: Mutex<u64>,
    /// What the pods of a job see whose name begins with the job's; while nobody knows jobs, nothing is said.
    held: Mutex<BTreeMap<String, u64>>,
    knows_no_jobs: Mutex<bool>,
    /// Datasets that are mounted no more.
    ended: Mutex<Vec<String>>,
}

#[async_trait::async_trait]
impl Catalog for FakeCatalog {
    async fn look_up(&self, dataset: &DatasetName) -> Result<Known, CsiError> {
        if *self.is_down.lock() {
            return Err(CsiError::Unavailable("the master is down".to_owned()));
        }
        let newest = (*self.newest.lock()).max(3);
        let granted = match dataset.as_str() {
            "team-a/x" if !*self.has_none.lock() => &[][..],
            "team-a/shared" if !*self.has_none.lock() => &["team-b"],
            _ => return Err(CsiError::NotFound(format!("no dataset {dataset}"))),
        };
        Ok(Known {
            versions: (1..=newest).collect(),
            granted: granted.iter().map(|name| (*name).to_owned()).collect(),
            is_leaving: *self.is_leaving.lock(),
        })
    }

    async fn choose(&self, _: &DatasetName, pod: &Pod) -> Option<u64> {
        if *self.knows_no_jobs.lock() {
            return None;
        }
        let newest = (*self.newest.lock()).max(3);
        let Some((job, _)) = pod.name.split_once('/') else {
            return Some(newest);
        };
        let mut held = self.held.lock();
        Some(*held.entry(job.to_owned()).or_insert(newest))
    }

    async fn ended(&self, dataset: &DatasetName) {
        self.ended.lock().push(dataset.to_string());
    }
}

struct World {
    dir: tempfile::TempDir,
    system: Arc<Fake>,
    catalog: Arc<FakeCatalog>,
    volumes: Arc<Volumes>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pods = dir.path().join("pods");
        std::fs::create_dir(pods).unwrap();
        let system = Arc::new(Fake {
            directories: vec!["train", "train/a"],
            ..Fake::default()
        });
        let catalog = Arc::new(FakeCatalog::default());
        let volumes = Volumes::new(
            system.clone(),
            catalog.clone(),
            KubeletDir::new(dir.path()).unwrap(),
            &dir.path().join("plugins/csi.weir.io/mounts"),
            &dir.path().join("known"),
            Arc::default(),
        );
        Self {
            dir,
            system,
            catalog,
            volumes: Arc::new(volumes.unwrap()),
        }
    }

    fn target(&self, name: &str) -> Target {
        let path = self.dir.path().join("pods").join(name);
        self.volumes.target(path.to_str().unwrap()).unwrap()
    }

    fn mount_of(&self, name: &str) -> PathBuf {
        self.volumes.mounts.join(name)
    }

    fn mounts(&self) -> usize {
        let table = Table(self.system.table().unwrap());
        self.volumes.sources(&table).count()
    }

    async fn publish(&self, volume: &Volume, name: &str) -> Result<(), CsiError> {
        self.volumes.publish(volume, &self.target(name)).await
    }

    async fn unpublish(&self, name: &str) -> Result<(), CsiError> {
        self.volumes.unpublish(&self.target(name)).await
    }

    fn is_clean(&self) -> bool {
        let empty = |dir: &Path| std::fs::read_dir(dir).unwrap().next().is_none();
        let pods = self.dir.path().join("pods");
        self.system.table.lock().is_empty() && empty(&pods) && empty(&self.volumes.mounts)
    }
}

fn volume(dataset: &str, version: Option<u64>, path: &str) -> Volume {
    Volume {
        dataset: dataset.parse().unwrap(),
        version,
        path: path.to_owned(),
        is_inline: false,
        pod: pod("team-a", "alone"),
    }
}

fn pod(namespace: &str, name: &str) -> Pod {
    Pod {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: format!("uid-of-{name}"),
    }
}

fn x() -> Volume {
    volume("team-a/x", None, "")
}

#[tokio::test]
async fn pods_with_one_snapshot_share_its_mount_and_the_last_one_ends_it() {
    let world = World::new();
    world.publish(&x(), "a").await.unwrap();
    world
        .publish(&volume("team-a/x", Some(3), "train"), "b")
        .await
        .unwrap();
    world
        .publish(&volume("team-a/x", Some(1), ""), "c")
        .await
        .unwrap();
    assert_eq!(world.mounts(), 2);
    world.unpublish("a").await.unwrap();
    world.unpublish("c").await.unwrap();
    assert_eq!(world.mounts(), 1, "one volume still shows snapshot 3");
    assert!(world.catalog.ended.lock().is_empty());
    world.unpublish("b").await.unwrap();
    assert_eq!(*world.catalog.ended.lock(), ["team-a/x"]);
    assert!(world.is_clean());
}

#[tokio::test]
async fn all_pods_of_a_job_see_one_snapshot_though_the_dataset_is_listed_again() {
    let world = World::new();
    let of = |name: &str| Volume {
        pod: pod("team-a", name),
        ..x()
    };
    let shows = |name: &str| {
        let table = Table(world.system.table().unwrap());
        let entry = table.at(&world.target(name).path()).unwrap();
        shown(entry).unwrap().snapshot.version
    };
    world.publish(&of("job/0"), "a").await.unwrap();
    *world.catalog.newest.lock() = 4;
    world.publish(&of("job/1"), "b").await.unwrap();
    world.publish(&of("next/0"), "c").await.unwrap();
    world.publish(&of("alone"), "d").await.unwrap();
    let seen = ["a", "b", "c", "d"].map(shows);
    assert_eq!(seen, [3, 3, 4, 4]);
    assert_eq!(world.mounts(), 2, "one for each snapshot");
    // Whatever nobody can tell, a pod starts.
    *world.catalog.knows_no_jobs.lock() = true;
    world.publish(&of("job/2"), "e").await.unwrap();
    assert_eq!(shows("e"), 4);
    // A number in the volume comes first.
    *world.catalog.knows_no_jobs.lock() = false;
    let numbered = Volume {
        version: Some(2),
        ..of("job/3")
    };
    world.publish(&numbered, "f").await.unwrap();
    assert_eq!(shows("f"), 2);
}

#[tokio::test]
async fn calls_that_come_again_or_in_any_order_change_nothing() {
    let world = World::new();
    world.unpublish("a").await.unwrap();
    for _ in 0..3 {
        world.publish(&x(), "a").await.unwrap();
    }
    assert_eq!(world.system.layers(&world.target("a").path()), 1);
    *world.catalog.newest.lock() = 9;
    *world.catalog.is_down.lock() = true;
    world.publish(&x(), "a").await.unwrap();
    assert!(
        world.mount_of("team-a+x@3").exists(),
        "a pod keeps its snapshot"
    );
    let other = world.publish(&volume("team-a/x", Some(2), ""), "a").await;
    assert!(matches!(other, Err(CsiError::Taken(_))), "{other:?}");
    for _ in 0..3 {
        world.unpublish("a").await.unwrap();
    }
    assert!(world.is_clean());
}

#[tokio::test]
async fn calls_at_once_make_one_mount_and_one_bind() {
    let world = World::new();
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..40 {
        let volumes = world.volumes.clone();
        let target = world.target(&format!("pod-{}", number % 4));
        calls.spawn(async move { volumes.publish(&x(), &target).await });
    }
    while let Some(call) = calls.join_next().await {
        call.unwrap().unwrap();
    }
    assert_eq!((world.mounts(), *world.system.made.lock()), (1, 1));
    for number in 0..4 {
        let path = world.target(&format!("pod-{number}")).path();
        assert_eq!(world.system.layers(&path), 1);
    }
    for number in 0..16 {
        let volumes = world.volumes.clone();
        let target = world.target(&format!("pod-{}", number % 4));
        calls.spawn(async move { volumes.unpublish(&target).await });
    }
    while let Some(call) = calls.join_next().await {
        call.unwrap().unwrap();
    }
    assert!(world.is_clean());
}

#[tokio::test]
async fn a_pod_of_another_namespace_is_refused_whether_the_dataset_exists_or_not() {
    let world = World::new();
    let of = |dataset: &str| Volume {
        pod: pod("team-b", "p"),
        ..volume(dataset, None, "")
    };
    let refused = world.publish(&of("team-a/x"), "a").await.unwrap_err();
    let missing = world.publish(&of("team-a/y"), "a").await.unwrap_err();
    for (error, name) in [(refused, "team-a/x"), (missing, "team-a/y")] {
        assert!(matches!(error, CsiError::Denied(_)), "{error}");
        assert!(error.to_string().contains(name));
    }
    world.publish(&of("team-a/shared"), "b").await.unwrap();
    world.unpublish("a").await.unwrap();
    world.unpublish("b").await.unwrap();
    assert!(world.is_clean());
}

#[tokio::test]
async fn what_fails_says_why_and_leaves_no_mount() {
    let world = World::new();
    for (wanted, said) in [
        (volume("team-a/y", None, ""), "no dataset"),
        (volume("team-a/x", Some(7), ""), "has no snapshot 7"),
        (volume("team-a/x", None, "nowhere"), "no directory"),
    ] {
        let error = world.publish(&wanted, "a").await.unwrap_err();
        assert!(matches!(error, CsiError::NotFound(_)), "{error}");
        assert!(error.to_string().contains(said), "{error}");
        assert_eq!(world.mounts(), 0);
    }
    *world.system.mount_fails.lock() = true;
    assert!(world.publish(&x(), "a").await.is_err());
    world.unpublish("a").await.unwrap();
    assert!(world.is_clean());
}

#[tokio::test]
async fn a_dataset_that_is_being_deleted_stays_where_it_is_and_for_claims() {
    let world = World::new();
    let inline = Volume {
        is_inline: true,
        ..x()
    };
    world.publish(&inline, "a").await.unwrap();
    *world.catalog.is_leaving.lock() = true;
    let error = world.publish(&inline, "b").await.unwrap_err();
    assert!(error.to_string().contains("is being deleted"), "{error}");
    // Kubelet asks again for what is there, and claims let in whom Kubernetes has let in.
    world.publish(&inline, "a").await.unwrap();
    world.publish(&x(), "c").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_the_node_knows_needs_no_master() {
    let world = World::new();
    let numbered = |version| volume("team-a/x", Some(version), "");
    for version in [2, 1] {
        world.publish(&numbered(version), "a").await.unwrap();
        world.unpublish("a").await.unwrap();
    }
    *world.catalog.is_down.lock() = true;
    world.publish(&numbered(1), "a").await.unwrap();
    let unavailable = async |volume: &Volume| match world.publish(volume, "c").await {
        Err(CsiError::Unavailable(why)) => why,
        other => panic!("{other:?}"),
    };
    unavailable(&numbered(3)).await;
    unavailable(&volume("team-a/y", Some(1), "")).await;
    let foreign = Volume {
        pod: pod("team-b", "p"),
        ..numbered(1)
    };
    unavailable(&foreign).await;
    // Pods of one job might see two snapshots; a master that restarts is waited for.
    let why = unavailable(&x()).await;
    assert!(why.contains("mounts snapshot 2"), "{why}");
    tokio::time::advance(PATIENCE).await;
    world.publish(&x(), "b").await.unwrap();
    assert!(world.mount_of("team-a+x@2").exists());
    // It was there meanwhile.
    *world.catalog.is_down.lock() = false;
    world.publish(&numbered(1), "d").await.unwrap();
    *world.catalog.is_down.lock() = true;
    unavailable(&x()).await;
}

#[tokio::test]
async fn whom_a_dataset_lets_in_is_known_without_the_master_until_it_is_gone() {
    let world = World::new();
    let shared = Volume {
        pod: pod("team-b", "p"),
        ..volume("team-a/shared", Some(3), "")
    };
    world.publish(&shared, "a").await.unwrap();
    *world.catalog.is_down.lock() = true;
    world.publish(&shared, "b").await.unwrap();
    let foreign = Volume {
        pod: pod("team-c", "p"),
        ..shared.clone()
    };
    assert!(world.publish(&foreign, "c").await.is_err());
    *world.catalog.is_down.lock() = false;
    *world.catalog.has_none.lock() = true;
    assert!(world.publish(&shared, "c").await.is_err());
    *world.catalog.is_down.lock() = true;
    assert!(world.publish(&shared, "c").await.is_err());
}

#[tokio::test]
async fn what_nobody_serves_is_mounted_over_and_taken_away_whole() {
    let world = World::new();
    world.publish(&x(), "a").await.unwrap();
    world
        .publish(&volume("team-a/x", None, "train"), "b")
        .await
        .unwrap();
    let path = world.target("a").path();
    world.system.kill(&path);
    *world.catalog.newest.lock() = 9;
    *world.system.mount_fails.lock() = true;
    assert_eq!(world.volumes.sweep().await.unwrap(), 2, "not yet");
    assert_eq!(
        world.volumes.condition(&world.target("a")).await.unwrap(),
        Some(Condition::Dead)
    );
    *world.system.mount_fails.lock() = false;
    assert_eq!(world.volumes.sweep().await.unwrap(), 0);
    assert_eq!(world.volumes.sweep().await.unwrap(), 0);
    assert_eq!(world.system.layers(&path), 2, "over the dead one, once");
    for name in ["a", "b"] {
        let condition = world.volumes.condition(&world.target(name)).await.unwrap();
        assert!(matches!(condition, Some(Condition::Readable(_))), "{name}");
    }
    assert!(world.mount_of("team-a+x@3").exists(), "the same snapshot");
    for name in ["a", "b"] {
        world.unpublish(name).await.unwrap();
    }
    assert!(world.is_clean());
}

#[tokio::test]
async fn publishing_over_a_dead_mount_brings_it_back_and_over_a_silent_one_waits() {
    let world = World::new();
    world.publish(&x(), "a").await.unwrap();
    let path = world.target("a").path();
    let device = world.system.device_at(&path).unwrap();
    world.system.silent.lock().insert(device);
    let error = world.publish(&x(), "a").await.unwrap_err();
    assert!(matches!(error, CsiError::Unavailable(_)), "{error}");
    assert!(world.publish(&x(), "b").await.is_err());
    assert_eq!(world.volumes.sweep().await.unwrap(), 0, "it may come back");
    world.system.silent.lock().clear();
    world.system.kill(&path);
    world.publish(&x(), "a").await.unwrap();
    assert_eq!(*world.system.made.lock(), 2);
    world.unpublish("a").await.unwrap();
    world.unpublish("b").await.unwrap();
    assert!(world.is_clean());
}

#[tokio::test]
async fn mounts_that_a_killed_plugin_left_are_ended() {
    let world = World::new();
    world.publish(&x(), "a").await.unwrap();
    world.system.unbind(&world.target("a")).await.unwrap();
    std::fs::create_dir(world.mount_of("team-a+x@1")).unwrap();
    world.volumes.sweep().await.unwrap();
    assert_eq!(world.mounts(), 1, "somebody may be about to use it");
    world.volumes.sweep().await.unwrap();
    assert_eq!(world.mounts(), 0);
    world.unpublish("a").await.unwrap();
    assert!(world.is_clean());
}

#[tokio::test]
async fn what_is_not_weirs_is_never_touched() {
    let world = World::new();
    let path = world.target("a").path();
    std::fs::create_dir(&path).unwrap();
    world.system.push("0:99", "tmpfs", "/", &path);
    "tmpfs".clone_into(&mut world.system.table.lock()[0].fs_type);
    assert!(matches!(
        world.publish(&x(), "a").await,
        Err(CsiError::Taken(_))
    ));
    assert!(matches!(
        world.unpublish("a").await,
        Err(CsiError::Taken(_))
    ));
    assert_eq!(
        world.volumes.condition(&world.target("a")).await.unwrap(),
        None
    );
    world.volumes.sweep().await.unwrap();
    assert_eq!(world.system.layers(&path), 1);
    let own = world.volumes.mounts.join("x");
    assert!(world.volumes.target(own.to_str().unwrap()).is_err());
}

/// What kubelet, a crash or an operator may do next.
#[derive(Clone, Debug)]
enum Step {
    Publish(usize, Option<u64>, &'static str),
    Unpublish(usize),
    Kill(usize),
    Sweep,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pod = 0..4_usize;
    let version = prop_oneof![Just(None), (1..4_u64).prop_map(Some)];
    let path = prop_oneof![Just(""), Just("train"), Just("nowhere")];
    let step = prop_oneof![
        4 => (pod.clone(), version, path).prop_map(|(pod, version, path)| Step::Publish(pod, version, path)),
        3 => pod.clone().prop_map(Step::Unpublish),
        1 => pod.prop_map(Step::Kill),
        1 => Just(Step::Sweep),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #[test]
    fn whatever_happens_mounts_are_those_that_volumes_show(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::new();
            for step in steps {
                match step {
                    Step::Publish(pod, version, path) => {
                        let wanted = volume("team-a/x", version, path);
                        let name = pod.to_string();
                        let outcome = world.publish(&wanted, &name).await;
                        let shows = world.volumes.condition(&world.target(&name)).await.unwrap();
                        let is_readable = matches!(shows, Some(Condition::Readable(_)));
                        assert!(is_readable || outcome.is_err());
                    }
                    Step::Unpublish(pod) => world.unpublish(&pod.to_string()).await.unwrap(),
                    Step::Kill(pod) => {
                        let path = world.target(&pod.to_string()).path();
                        if world.system.device_at(&path).is_some() {
                            world.system.kill(&path);
                        }
                    }
                    Step::Sweep => assert_eq!(world.volumes.sweep().await.unwrap(), 0),
                }
                let table = Table(world.system.table().unwrap());
                for source in world.volumes.sources(&table) {
                    let users = world.volumes.users(&table, &source.device);
                    let is_dead = world.system.dead.lock().contains(&source.device);
                    assert!(users > 0 || is_dead, "a mount without a volume: {source:?}");
                }
            }
            for pod in 0..4 {
                world.unpublish(&pod.to_string()).await.unwrap();
            }
            for _ in 0..2 {
                world.volumes.sweep().await.unwrap();
            }
            assert!(world.is_clean());
        });
    }
}
