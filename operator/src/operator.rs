//! Puts the parts together: leadership, the view of the master, and the controllers.

use std::collections::HashMap;
use std::fmt::Debug;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::apps::v1::{DaemonSet, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::ObjectMeta;
use kube::runtime::controller::{Action, Config as ControllerConfig, Controller};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weir_core::id::split_name;

use crate::context::Context;
use crate::dataset;
use crate::error::OperatorError;
use crate::gates;
use crate::jobs;
use crate::leader::{Candidate, identity};
use crate::listings::{Listings, MAX_LISTINGS, wait_after};
use crate::master::Master;
use crate::metrics::{Looked, OperatorMetrics};
use crate::noted::Noted;
use crate::objects::{CachePool, Dataset, MANAGED_BY, POOL_LABEL, Warmup};
use crate::placing::{self, Placing};
use crate::pool;
use crate::pools::Pools;
use crate::signing::{self, SigningConfig};
use crate::view::{MAX_CHANGED, View};
use crate::volumes;
use crate::warmup;
use crate::webhook;

/// Objects that are looked at at once.
const CONCURRENT: u16 = 16;
/// Longest look at one object.
const LOOK_DEADLINE: Duration = Duration::from_mins(1);
/// Changes of an object within this are looked at once.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// How often it is looked for pools that are gone.
const FORGET: Duration = Duration::from_secs(10);
/// Longest silence of the apiserver: a watch is opened anew before.
const READ_DEADLINE: Duration = Duration::from_mins(5);
/// Name of the Lease.
pub(crate) const LEASE: &str = "weir-operator";

/// What an operator needs to know.
#[derive(Clone, Debug)]
pub struct OperatorConfig {
    /// The namespace of the installation, where the Lease is.
    pub namespace: String,
    /// The pod's name, or the host's.
    pub pod: String,
    /// Where the apiserver asks about objects; nowhere without it.
    pub webhook: Option<SocketAddr>,
    /// Where pods of Weir ask for certificates; nowhere without it.
    pub signing: Option<SigningConfig>,
    /// File with the template of a worker's pod, as JSON; CachePools are not possible without it.
    pub worker_template: Option<PathBuf>,
}

/// The operator of a cluster.
pub struct Operator {
    client: Client,
    master: Arc<dyn Master>,
    metrics: Arc<OperatorMetrics>,
    config: OperatorConfig,
}

impl Operator {
    /// An operator for the apiserver of this pod, or of KUBECONFIG.
    pub async fn connect(
        master: Arc<dyn Master>,
        metrics: Arc<OperatorMetrics>,
        config: OperatorConfig,
    ) -> Result<Self, OperatorError> {
        let client = Client::try_from(connection().await?)?;
        Ok(Self::new(client, master, metrics, config))
    }

    /// An operator for the apiserver that a client reaches.
    pub fn new(
        client: Client,
        master: Arc<dyn Master>,
        metrics: Arc<OperatorMetrics>,
        config: OperatorConfig,
    ) -> Self {
        Self {
            client,
            master,
            metrics,
            config,
        }
    }

    /// Serves the webhook, signs certificates, waits for the Lease, and acts until `stop`, or until the Lease is lost, which is an error: what was under
    /// way then is best forgotten with the process.
    pub async fn run(self, stop: CancellationToken) -> Result<(), OperatorError> {
        let view = Arc::new(View::default());
        let (placing, writers) = Placing::new(self.master.clone(), view.clone());
        let placing = Arc::new(placing);
        let (changed, changes) = mpsc::channel::<String>(MAX_CHANGED);
        let ending = stop.child_token();
        // What ends by itself ends the rest.
        let serving = async {
            let _ending = ending.clone().drop_guard();
            self.serve(&placing, &ending).await
        };
        let leading = async {
            let _ending = ending.clone().drop_guard();
            self.lead(&view, &placing, changes, &ending).await
        };
        let signing = async {
            let _ending = ending.clone().drop_guard();
            self.sign(&ending).await
        };
        let asking = view.keep(&*self.master, &changed, &self.metrics, &ending);
        let watching = async {
            tokio::select! {
                () = ending.cancelled() => {}
                () = Box::pin(placing::watch(self.client.clone(), writers)) => {}
            }
        };
        let answering = jobs::answer(self.client.clone(), self.master.clone(), &ending);
        let (served, led, signed, (), (), ()) =
            tokio::join!(serving, leading, signing, asking, watching, answering);
        served.and(led).and(signed)
    }

    async fn sign(&self, stop: &CancellationToken) -> Result<(), OperatorError> {
        let Some(config) = &self.config.signing else {
            stop.cancelled().await;
            return Ok(());
        };
        let (client, metrics) = (self.client.clone(), self.metrics.clone());
        signing::serve(config, &self.config.namespace, client, metrics, stop).await
    }

    async fn serve(
        &self,
        placing: &Arc<Placing>,
        stop: &CancellationToken,
    ) -> Result<(), OperatorError> {
        let Some(listen) = self.config.webhook else {
            stop.cancelled().await;
            return Ok(());
        };
        webhook::serve(
            listen,
            &self.config.namespace,
            self.client.clone(),
            placing.clone(),
            self.metrics.clone(),
            stop,
        )
        .await
    }

    /// Acts while this operator has the Lease.
    async fn lead(
        &self,
        view: &Arc<View>,
        placing: &Arc<Placing>,
        changes: mpsc::Receiver<String>,
        stop: &CancellationToken,
    ) -> Result<(), OperatorError> {
        let candidate = Candidate::new(
            self.client.clone(),
            &self.config.namespace,
            LEASE,
            identity(&self.config.pod),
        );
        let Some(held) = candidate.acquire(stop).await else {
            return Ok(());
        };
        tracing::info!("this operator leads");
        self.metrics.leads.set(1);
        let acting = CancellationToken::new();
        let over = async {
            tokio::select! {
                () = stop.cancelled() => {}
                () = held.lost.cancelled() => {}
            }
            acting.cancel();
        };
        tokio::join!(self.control(view, placing, changes, &acting), over);
        self.metrics.leads.set(0);
        if held.lost.is_cancelled() {
            return Err(OperatorError::Deposed(LEASE.to_owned()));
        }
        held.release().await;
        Ok(())
    }

    /// Runs the controllers until `stop`.
    async fn control(
        &self,
        view: &Arc<View>,
        placing: &Arc<Placing>,
        changes: mpsc::Receiver<String>,
        stop: &CancellationToken,
    ) {
        let (client, master) = (self.client.clone(), self.master.clone());
        let (ended, endings) = mpsc::channel(MAX_LISTINGS);
        let reporter = Reporter {
            controller: MANAGED_BY.to_owned(),
            instance: Some(self.config.pod.clone()),
        };
        let context = Arc::new(Context {
            client: client.clone(),
            master: master.clone(),
            view: view.clone(),
            placing: placing.clone(),
            listings: Listings::new(master.clone(), view.clone(), self.metrics.clone(), ended),
            recorder: Recorder::new(client.clone(), reporter),
            metrics: self.metrics.clone(),
            pools: Pools::new(&self.config.namespace, self.config.worker_template.clone()),
            noted: Noted::default(),
        });
        // What is known already is not to look unknown for a moment.
        tokio::select! {
            _ = view.look(&*master) => {}
            () = stop.cancelled() => return,
        }
        let changes = received(changes).map(|name| object_of(&name));
        let triggers = stream::select(changes, received(endings));
        // Each on the heap: together they are more than a stack should hold.
        tokio::join!(
            Box::pin(datasets(client.clone(), context.clone(), triggers, stop)),
            Box::pin(warmups(client.clone(), context.clone(), stop)),
            Box::pin(pools(client.clone(), context.clone(), stop)),
            Box::pin(gates::keep(&context, stop)),
            Box::pin(jobs::review(&client, &self.master, stop)),
            Box::pin(context.noted.keep(&*self.master, stop)),
        );
        context.listings.stop();
    }
}

/// How the apiserver of this pod, or of KUBECONFIG, is reached.
pub(crate) async fn connection() -> Result<kube::Config, OperatorError> {
    let found = kube::Config::infer().await;
    let mut found = found.map_err(|error| OperatorError::Config(error.to_string()))?;
    found.read_timeout = Some(READ_DEADLINE);
    Ok(found)
}

fn received<T>(from: mpsc::Receiver<T>) -> impl Stream<Item = T> {
    stream::unfold(from, |mut from| async move {
        let item = from.recv().await?;
        Some((item, from))
    })
}

/// The object of a dataset of the master.
fn object_of(name: &str) -> ObjectRef<Dataset> {
    let (namespace, name) = split_name(name);
    ObjectRef::new(name).within(namespace)
}

/// Looks at Datasets until `stop`.
async fn datasets(
    client: Client,
    context: Arc<Context>,
    triggers: impl Stream<Item = ObjectRef<Dataset>> + Send + 'static,
    stop: &CancellationToken,
) {
    let ours = || watcher::Config::default().labels(&volumes::made_by_us());
    let owner = |meta: &ObjectMeta| {
        let (namespace, name) = volumes::dataset_of(meta)?;
        Some(ObjectRef::<Dataset>::new(&name).within(&namespace))
    };
    let claims = Api::<PersistentVolumeClaim>::all(client.clone());
    let all_volumes = Api::<PersistentVolume>::all(client.clone());
    let controller = controller(Api::<Dataset>::all(client))
        .watches(claims, ours(), move |claim| owner(&claim.metadata))
        .watches(all_volumes, ours(), move |volume| owner(&volume.metadata))
        .reconcile_on(triggers);
    keep(controller, context, stop, |object, context| {
        Box::pin(dataset::look(object, context))
    })
    .await;
}

/// Looks at Warmups until `stop`.
async fn warmups(client: Client, context: Arc<Context>, stop: &CancellationToken) {
    let controller = controller(Api::<Warmup>::all(client));
    keep(controller, context, stop, |object, context| {
        Box::pin(warmup::look(object, context))
    })
    .await;
}

/// Looks at CachePools until `stop`.
async fn pools(client: Client, context: Arc<Context>, stop: &CancellationToken) {
    let (changed, changes) = mpsc::channel(1);
    let namespace = context.pools.namespace.clone();
    let ours = || watcher::Config::default().labels(POOL_LABEL);
    let daemons = Api::<DaemonSet>::namespaced(client.clone(), &namespace);
    let stateful = Api::<StatefulSet>::namespaced(client.clone(), &namespace);
    let controller = controller(Api::<CachePool>::all(client.clone()))
        .owns(daemons, ours())
        .owns(stateful, ours())
        .reconcile_all_on(received(changes));
    let known = controller.store();
    let looking = keep(controller, context.clone(), stop, |object, context| {
        Box::pin(pool::look(object, context))
    });
    let forgetting = async {
        loop {
            tokio::time::sleep(FORGET).await;
            let is_gone = |name: &str| known.get(&ObjectRef::new(name)).is_none();
            let forgotten = context
                .pools
                .forget(is_gone, &*context.master, &context.metrics);
            forgotten.await;
        }
    };
    let watching = async {
        tokio::select! {
            () = context.pools.fleet.keep(&client, &namespace, &changed) => {}
            () = forgetting => {}
            () = stop.cancelled() => {}
        }
    };
    tokio::join!(looking, watching);
}

fn controller<K>(objects: Api<K>) -> Controller<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let config = ControllerConfig::default()
        .concurrency(CONCURRENT)
        .debounce(DEBOUNCE);
    Controller::new(objects, watcher::Config::default()).with_config(config)
}

/// A look at one object.
type Look<K> = for<'a> fn(&'a K, &'a Context) -> BoxFuture<'a, Result<Action, OperatorError>>;

/// Looks at objects of a kind as they need it, until `stop`.
async fn keep<K>(
    controller: Controller<K>,
    context: Arc<Context>,
    stop: &CancellationToken,
    look: Look<K>,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let looks = Arc::new(Looks {
        context,
        look,
        failures: Mutex::default(),
    });
    controller
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(
            |object, looks: Arc<Looks<K>>| async move { looks.at(&object).await },
            |object, error, looks| looks.again(&object, error),
            looks,
        )
        .for_each(|outcome| async move {
            if let Err(error) = outcome {
                tracing::debug!(%error, "a look");
            }
        })
        .await;
}

/// Looks at objects of a kind, and how often those at each have failed in a row.
struct Looks<K: Resource> {
    context: Arc<Context>,
    look: Look<K>,
    failures: Mutex<HashMap<ObjectRef<K>, u32>>,
}

impl<K> Looks<K>
where
    K: Resource<DynamicType = ()> + Clone,
{
    async fn at(&self, object: &K) -> Result<Action, OperatorError> {
        let began = Instant::now();
        let look = (self.look)(object, &self.context);
        let looked = tokio::time::timeout(LOOK_DEADLINE, look).await;
        let outcome = match looked.unwrap_or(Err(OperatorError::Deadline(LOOK_DEADLINE))) {
            // The object has gone meanwhile.
            Err(OperatorError::Kube(kube::Error::Api(status))) if status.code == 404 => {
                Ok(Action::await_change())
            }
            outcome => outcome,
        };
        let metrics = &self.context.metrics;
        metrics.look_seconds.observe(began.elapsed().as_secs_f64());
        let labels = Looked {
            kind: K::kind(&()).into_owned(),
            result: if outcome.is_ok() { "ok" } else { "error" },
        };
        metrics.looks.get_or_create(&labels).inc();
        if outcome.is_ok() {
            self.failures.lock().remove(&ObjectRef::from_obj(object));
        }
        outcome
    }

    /// When an object is looked at again whose look has failed: later each time.
    fn again(&self, object: &K, error: &OperatorError) -> Action {
        let mut failures = self.failures.lock();
        let count = failures.entry(ObjectRef::from_obj(object)).or_default();
        *count += 1;
        let wait = wait_after(*count);
        let (kind, name) = (K::kind(&()), object.name_any());
        let namespace = object.namespace().unwrap_or_default();
        tracing::warn!(%kind, object = %format_args!("{namespace}/{name}"), %error, failures = *count, again_in = ?wait, "a look failed");
        Action::requeue(wait)
    }
}
