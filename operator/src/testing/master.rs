//! A master in memory.

use std::collections::{BTreeMap, HashMap, HashSet};

use async_trait::async_trait;
use parking_lot::Mutex;
use weir_core::{CredentialName, DatasetName, DatasetSpec};
use weir_proto::v1;

use crate::master::{Known, Master, MasterError, Refusal, Survey};

/// A master in memory.
pub(crate) struct FakeMaster {
    state: Mutex<FakeState>,
}

impl Default for FakeMaster {
    fn default() -> Self {
        let state = FakeState {
            mounted: Some(Vec::new()),
            ..FakeState::default()
        };
        Self {
            state: Mutex::new(state),
        }
    }
}

#[derive(Default)]
struct FakeState {
    datasets: HashMap<String, Known>,
    credentials: HashMap<String, v1::Credential>,
    calls: Vec<String>,
    /// Datasets whose listing never ends.
    hung: HashSet<String>,
    refused: HashMap<String, MasterError>,
    jobs: HashMap<u64, v1::Job>,
    workers: BTreeMap<String, v1::WorkerStatus>,
    is_away: bool,
    /// Pods of which it is asked whose they are, and what was said.
    asked: Vec<v1::Pod>,
    /// Nodes that have any dataset mounted; none before that is known.
    mounted: Option<Vec<String>>,
    pod_jobs: HashMap<String, String>,
    /// What was noted of datasets.
    conditions: HashMap<String, v1::DatasetCondition>,
}

impl FakeMaster {
    pub(crate) fn calls(&self) -> Vec<String> {
        self.state.lock().calls.clone()
    }

    pub(crate) fn hang(&self, name: &str) {
        self.state.lock().hung.insert(name.to_owned());
    }

    pub(crate) fn refuse(&self, name: &str, error: MasterError) {
        self.state.lock().refused.insert(name.to_owned(), error);
    }

    pub(crate) fn accept(&self, name: &str) {
        self.state.lock().refused.remove(name);
    }

    pub(crate) fn go_away(&self, is_away: bool) {
        self.state.lock().is_away = is_away;
    }

    /// Forgets all datasets, as one does that has lost its disk.
    pub(crate) fn lose_disk(&self) {
        let mut state = self.state.lock();
        state.datasets.clear();
        state.jobs.clear();
    }

    pub(crate) fn credential(&self, name: &str) -> Option<v1::Credential> {
        self.state.lock().credentials.get(name).cloned()
    }

    /// A worker on a node of its name joins, with one disk.
    pub(crate) fn join(&self, node: &str, capacity: u64, used: u64) {
        let worker = v1::WorkerInfo {
            id: node.to_owned(),
            node: node.to_owned(),
            ..v1::WorkerInfo::default()
        };
        let tier = v1::TierUsage {
            tier: "ssd".to_owned(),
            capacity_bytes: capacity,
            used_bytes: used,
            ..v1::TierUsage::default()
        };
        let status = v1::WorkerStatus {
            worker: Some(worker),
            tiers: vec![tier],
            ..v1::WorkerStatus::default()
        };
        self.state.lock().workers.insert(node.to_owned(), status);
    }

    /// A worker leaves; the master keeps that it was cordoned.
    pub(crate) fn leave(&self, node: &str) {
        let mut state = self.state.lock();
        if let Some(worker) = state.workers.get_mut(node) {
            worker.away = true;
        }
        state
            .workers
            .retain(|_, worker| !worker.away || worker.state != 0);
    }

    pub(crate) fn worker(&self, node: &str) -> Option<v1::WorkerStatus> {
        self.state.lock().workers.get(node).cloned()
    }

    /// Changes a job.
    pub(crate) fn job(&self, id: u64, change: impl FnOnce(&mut v1::Job)) {
        change(self.state.lock().jobs.get_mut(&id).unwrap());
    }

    /// What was noted of a dataset last.
    pub(crate) fn noted(&self, name: &str) -> v1::DatasetCondition {
        let state = self.state.lock();
        state.conditions.get(name).cloned().unwrap_or_default()
    }

    pub(crate) fn mount_on(&self, nodes: Option<&[&str]>) {
        let own = |nodes: &[&str]| nodes.iter().map(|node| (*node).to_owned()).collect();
        self.state.lock().mounted = nodes.map(own);
    }

    /// Asks whose a pod is, until somebody says it.
    pub(crate) async fn ask_about(&self, pod: v1::Pod) -> String {
        let uid = pod.uid.clone();
        self.state.lock().asked.push(pod);
        loop {
            if let Some(job) = self.state.lock().pod_jobs.get(&uid) {
                return job.clone();
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    fn call(&self, line: String) -> Result<(), MasterError> {
        let mut state = self.state.lock();
        if state.is_away {
            return Err(MasterError::Away("connection refused".to_owned()));
        }
        state.calls.push(line);
        Ok(())
    }

    fn refused(&self, name: &DatasetName) -> Result<(), MasterError> {
        let refused = self.state.lock().refused.get(name.as_str()).cloned();
        refused.map_or(Ok(()), Err)
    }

    async fn list(&self, name: &DatasetName) {
        let is_hung = self.state.lock().hung.contains(name.as_str());
        if is_hung {
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl Master for FakeMaster {
    async fn survey(&self) -> Result<Survey, MasterError> {
        self.call("survey".to_owned())?;
        let state = self.state.lock();
        Ok(Survey {
            datasets: state.datasets.values().cloned().collect(),
            workers: state.workers.values().cloned().collect(),
        })
    }

    async fn judge(&self, name: &DatasetName, _: &DatasetSpec) -> Result<(), MasterError> {
        self.call(format!("judge {name}"))?;
        self.refused(name)
    }

    async fn apply(
        &self,
        name: &DatasetName,
        spec: &DatasetSpec,
        after: u64,
    ) -> Result<v1::Dataset, MasterError> {
        self.call(format!("apply {name} after {after}"))?;
        self.list(name).await;
        let mut state = self.state.lock();
        let known = state.datasets.entry(name.to_string()).or_default();
        let last = known
            .dataset
            .snapshots
            .last()
            .map_or(0, |last| last.version);
        known.dataset.name = name.to_string();
        known.dataset.spec = spec.to_json();
        let version = last.max(after) + 1;
        let (files, bytes) = (10, 4096);
        known.dataset.snapshots.push(v1::Snapshot {
            version,
            files,
            bytes,
            ..v1::Snapshot::default()
        });
        known.status = v1::DatasetStatus {
            name: name.to_string(),
            version,
            files,
            bytes,
            cached_bytes: bytes / 2,
            ..v1::DatasetStatus::default()
        };
        Ok(known.dataset.clone())
    }

    async fn refresh(&self, name: &DatasetName) -> Result<(v1::Dataset, bool), MasterError> {
        self.call(format!("refresh {name}"))?;
        self.list(name).await;
        let state = self.state.lock();
        let known = state.datasets.get(name.as_str()).cloned();
        Ok((known.unwrap_or_default().dataset, false))
    }

    async fn waits_for(&self, name: &DatasetName) -> Result<String, MasterError> {
        let is_hung = self.state.lock().hung.contains(name.as_str());
        Ok(if is_hung {
            "the bucket, which does not answer".to_owned()
        } else {
            String::new()
        })
    }

    async fn delete(&self, name: &DatasetName) -> Result<(), MasterError> {
        self.call(format!("delete {name}"))?;
        self.state.lock().datasets.remove(name.as_str());
        Ok(())
    }

    async fn set_credential(
        &self,
        name: &CredentialName,
        credential: v1::Credential,
    ) -> Result<(), MasterError> {
        self.call(format!("set {name}"))?;
        self.state
            .lock()
            .credentials
            .insert(name.to_string(), credential);
        Ok(())
    }

    async fn credentials(&self) -> Result<Vec<String>, MasterError> {
        Ok(self.state.lock().credentials.keys().cloned().collect())
    }

    async fn delete_credential(&self, name: &CredentialName) -> Result<(), MasterError> {
        self.call(format!("delete credentials {name}"))?;
        self.state.lock().credentials.remove(name.as_str());
        Ok(())
    }

    async fn locate(&self, name: &DatasetName) -> Result<v1::LocateDatasetReply, MasterError> {
        self.call(format!("locate {name}"))?;
        self.list(name).await;
        let place = v1::CachedAt {
            name: "node-1".to_owned(),
            cached_bytes: 4096,
        };
        Ok(v1::LocateDatasetReply {
            name: name.to_string(),
            bytes: 4096,
            nodes: vec![place],
            ..v1::LocateDatasetReply::default()
        })
    }

    async fn start_job(&self, job: v1::StartJobRequest) -> Result<v1::Job, MasterError> {
        self.call(format!("start {}", job.dataset))?;
        let name = job.dataset.parse().unwrap();
        self.refused(&name)?;
        let mut state = self.state.lock();
        let id = state.jobs.len() as u64 + 1;
        let job = v1::Job {
            id,
            kind: job.kind,
            state: v1::JobState::Running.into(),
            dataset: job.dataset,
            version: 1,
            paths: job.paths,
            places: job.places,
            copies: job.copies,
            total_bytes: 1000,
            started_ns: state.calls.len() as i64,
            ..v1::Job::default()
        };
        state.jobs.insert(id, job.clone());
        Ok(job)
    }

    async fn get_job(&self, id: u64) -> Result<Option<v1::Job>, MasterError> {
        self.call(format!("get job {id}"))?;
        Ok(self.state.lock().jobs.get(&id).cloned())
    }

    async fn cancel_job(&self, id: u64) -> Result<(), MasterError> {
        self.call(format!("cancel job {id}"))
    }

    async fn drain_worker(&self, id: &str) -> Result<v1::Job, MasterError> {
        self.call(format!("drain {id}"))?;
        let mut state = self.state.lock();
        if let Some(refused) = state.refused.get(id) {
            return Err(refused.clone());
        }
        if state.workers.get(id).is_none_or(|worker| worker.away) {
            return Err(MasterError::Refused {
                why: Refusal::NotFound,
                message: format!("there is no worker {id}"),
            });
        }
        let job = v1::Job {
            id: state.jobs.len() as u64 + 1,
            kind: v1::JobKind::Drain.into(),
            state: v1::JobState::Running.into(),
            worker: id.to_owned(),
            total_bytes: 1000,
            ..v1::Job::default()
        };
        state.jobs.insert(job.id, job.clone());
        if let Some(worker) = state.workers.get_mut(id) {
            worker.state = v1::WorkerState::Cordoned.into();
        }
        Ok(job)
    }

    async fn uncordon_worker(&self, id: &str) -> Result<(), MasterError> {
        self.call(format!("uncordon {id}"))?;
        let mut state = self.state.lock();
        if let Some(worker) = state.workers.get_mut(id) {
            worker.state = 0;
        }
        state.workers.retain(|_, worker| !worker.away);
        Ok(())
    }

    async fn mounted_on(&self, name: &DatasetName) -> Result<Option<Vec<String>>, MasterError> {
        self.call(format!("mounts {name}"))?;
        Ok(self.state.lock().mounted.clone())
    }

    async fn note_conditions(
        &self,
        conditions: Vec<v1::DatasetCondition>,
    ) -> Result<(), MasterError> {
        for condition in conditions {
            let v1::DatasetCondition {
                dataset,
                reason,
                deleting,
                ..
            } = &condition;
            self.call(format!("note {dataset} {reason} {deleting}"))?;
            let mut state = self.state.lock();
            state.conditions.insert(dataset.clone(), condition);
        }
        Ok(())
    }

    async fn choose_snapshot(&self, name: &DatasetName, job: &str) -> Result<u64, MasterError> {
        self.call(format!("choose {name} for {job}"))?;
        Ok(1)
    }

    async fn exchange_pods(
        &self,
        known: v1::ExchangePodsRequest,
    ) -> Result<v1::ExchangePodsReply, MasterError> {
        self.call("exchange".to_owned())?;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let mut state = self.state.lock();
        let jobs = known.known.into_iter();
        let jobs = jobs.filter_map(|known| Some((known.pod?.uid, known.job)));
        state.pod_jobs.extend(jobs);
        Ok(v1::ExchangePodsReply {
            asked: std::mem::take(&mut state.asked),
            asked_uses: Vec::new(),
        })
    }

    async fn review_jobs(&self, _: v1::ReviewJobsRequest) -> Result<Vec<String>, MasterError> {
        self.call("review".to_owned())?;
        Ok(Vec::new())
    }
}
