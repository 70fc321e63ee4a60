//! Making one Dataset true, and telling how it is.
//!
//! A look never waits for an origin, and all that it finds is in the status: what is wrong with a Dataset is a condition of it. An
//! error of a look itself is the apiserver's or the network's, and the look is repeated.

mod deletion;
mod status;

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::Api;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use weir_core::{CredentialName, DatasetName, DatasetSpec};
use weir_origin::{check_dataset, spec_of};

use crate::context::Context;
use crate::durations::spread;
use crate::error::OperatorError;
use crate::listings::{Progress, Work};
use crate::master::{Known, MasterError};
use crate::objects::{
    Conditions, Dataset, DatasetStatus, FINALIZER, Is, Phase, REFRESH_ANNOTATION, Refreshed,
    StoredSecret, hold,
};
use crate::report;
use crate::secrets;
use crate::view::Seen;
use crate::volumes::{self, Made, Place, Removed};

/// Conditions of a Dataset.
const READY: &str = "Ready";
const ACCEPTED: &str = "Accepted";
const CREDENTIALS: &str = "CredentialsReady";
const LISTED: &str = "Listed";
const VOLUME: &str = "VolumeReady";

/// When a Dataset that is as it should be is looked at again though nothing was heard of it, and one that names Secrets, of
/// which nothing is ever heard.
const RESYNC: Duration = Duration::from_mins(30);
const RESYNC_SECRETS: Duration = Duration::from_mins(5);
/// When one is looked at again that waits for a listing, or for something that is changed elsewhere.
const LISTING_AGAIN: Duration = Duration::from_secs(2);
const WAITING_AGAIN: Duration = Duration::from_secs(10);

/// One look at a Dataset: what is found, and what follows from it.
struct Look<'a> {
    context: &'a Context,
    object: &'a Dataset,
    status: DatasetStatus,
    conditions: Conditions,
    /// Whether pods of its own namespace can use its claim, if this look has seen the claim; else it is as it was before.
    is_bound: Option<bool>,
    /// When to look again.
    again: Duration,
}

/// Looks at a Dataset once.
pub(crate) async fn look(object: &Dataset, context: &Context) -> Result<Action, OperatorError> {
    let generation = object.metadata.generation;
    let before = object.status.clone().unwrap_or_default();
    let mut look = Look {
        context,
        object,
        conditions: Conditions::new(&before.conditions, generation, Timestamp::now()),
        status: DatasetStatus {
            observed_generation: generation,
            conditions: Vec::new(),
            ..before
        },
        is_bound: None,
        again: RESYNC,
    };
    if object.metadata.deletion_timestamp.is_some() {
        if !object.finalizers().iter().any(|held| held == FINALIZER) {
            return Ok(Action::await_change());
        }
        if look.delete().await? {
            return Ok(Action::await_change());
        }
    } else {
        hold(&look.api(), object, FINALIZER).await?;
        look.all().await;
    }
    look.finish().await
}

impl Look<'_> {
    fn namespace(&self) -> String {
        self.object.namespace().unwrap_or_default()
    }

    fn api(&self) -> Api<Dataset> {
        Api::namespaced(self.context.client.clone(), &self.namespace())
    }

    /// The name at the master.
    fn name(&self) -> Result<DatasetName, String> {
        let name = DatasetName::in_namespace(&self.namespace(), &self.object.name_any());
        let name = name.and_then(|name| name.check_new().map(|()| name));
        name.map_err(|error| error.to_string())
    }

    /// Makes a Dataset true that is to be.
    async fn all(&mut self) {
        let (name, spec) = match self.understood() {
            Ok(understood) => understood,
            Err((reason, message)) => {
                self.conditions.set(ACCEPTED, Is::False, reason, message);
                self.stay_as_published().await;
                return;
            }
        };
        self.give_credentials(&name, &spec).await;
        let seen = self.context.view.get(&name);
        let known = match &seen {
            Seen::Away(why) => {
                self.master_is_away(why);
                self.make_volumes().await;
                return;
            }
            Seen::Absent => None,
            Seen::Present(known) => Some(known.clone()),
        };
        if let Some(known) = &known {
            self.tell(known);
        }
        self.list(&name, spec, known.as_deref()).await;
        self.make_volumes().await;
    }

    /// The specification in its one form.
    fn understood(&self) -> Result<(DatasetName, DatasetSpec), (&'static str, String)> {
        let name = self.name().map_err(|error| ("InvalidName", error))?;
        let mut spec = self.object.spec.dataset.clone();
        spec.shorten_credentials(&name);
        check_dataset(&mut spec).map_err(|error| ("InvalidSpec", error.to_string()))?;
        for (index, source) in spec.sources.iter().enumerate() {
            let Some(credentials) = &source.credentials else {
                continue;
            };
            let field = format!("spec.sources[{index}].credentials");
            let named = CredentialName::of_source(&name, credentials);
            let named = named.map_err(|error| ("InvalidSpec", format!("{field}: {error}")))?;
            if named.namespace() != name.namespace() {
                return Err((
                    "InvalidSpec",
                    format!(
                        "{field}: {credentials} is of another namespace; name a Secret of {}",
                        name.namespace()
                    ),
                ));
            }
        }
        Ok((name, spec))
    }

    /// A specification that makes no sense changes nothing of what was published before it.
    async fn stay_as_published(&mut self) {
        if let Ok(name) = self.name()
            && let Seen::Present(known) = self.context.view.get(&name)
        {
            self.tell(&known);
        }
        self.make_volumes().await;
    }

    /// Where it is to have volumes: as it was, if what it is to be now is refused.
    fn places(&self) -> Vec<Place> {
        let accepted = self.conditions.get(ACCEPTED);
        if accepted.is_some_and(|accepted| accepted.status == "False") {
            volumes::places(self.object, &self.status.namespaces)
        } else {
            volumes::wanted(self.object)
        }
    }

    /// What is known of a dataset is known while the master is away, and it can be mounted.
    fn master_is_away(&mut self, why: &str) {
        let is_as_it_was =
            self.object.status.as_ref().is_some_and(|status| {
                status.observed_generation == self.object.metadata.generation
            });
        if is_as_it_was && self.status.snapshot.is_some() {
            self.conditions.keep(ACCEPTED);
            self.conditions.keep(LISTED);
        } else {
            let message = format!("the master does not answer: {why}; it is asked again");
            self.conditions
                .set(ACCEPTED, Is::Unknown, "MasterUnavailable", message);
        }
        self.again = WAITING_AGAIN;
    }

    /// Gives the master the Secrets that sources name.
    async fn give_credentials(&mut self, name: &DatasetName, spec: &DatasetSpec) {
        let mut secrets: Vec<&String> = spec
            .sources
            .iter()
            .filter_map(|source| source.credentials.as_ref())
            .collect();
        secrets.sort_unstable();
        secrets.dedup();
        if secrets.is_empty() {
            return;
        }
        self.again = self.again.min(RESYNC_SECRETS);
        let (mut given, mut by_hand, mut trouble) = (Vec::new(), Vec::new(), None);
        for secret in secrets {
            match self.give(name, secret).await {
                Ok(Some(stored)) => given.push(stored),
                Ok(None) => by_hand.push(secret.clone()),
                Err(problem) => {
                    trouble.get_or_insert(problem);
                    // What was given stays there.
                    let before = self
                        .status
                        .secrets
                        .iter()
                        .find(|known| known.name == *secret);
                    given.extend(before.cloned());
                }
            }
        }
        self.status.secrets = given;
        match trouble {
            Some((reason, message)) => {
                self.conditions.set(CREDENTIALS, Is::False, reason, message);
                self.again = WAITING_AGAIN;
            }
            None if by_hand.is_empty() => {
                self.conditions
                    .set(CREDENTIALS, Is::True, "Given", "the master has them");
            }
            None => {
                let message = format!(
                    "there is no Secret {}; the master has credentials of this name by other means",
                    by_hand.join(", ")
                );
                self.conditions
                    .set(CREDENTIALS, Is::True, "KeptByMaster", message);
            }
        }
    }

    /// Gives the master one Secret if it does not have it as it is; `None` if there is none, and never was, and it has credentials of
    /// the name.
    async fn give(
        &self,
        name: &DatasetName,
        secret: &str,
    ) -> Result<Option<StoredSecret>, (&'static str, String)> {
        let view = &self.context.view;
        let credentials = CredentialName::of_source(name, secret);
        let credentials = credentials.map_err(|error| ("InvalidSpec", error.to_string()))?;
        let is_kept = view.has_credentials(credentials.as_str());
        let mut given = self.status.secrets.iter();
        let was_given = given.any(|given| given.name == secret);
        let read = secrets::read(&self.context.client, name.namespace(), secret).await;
        let read = match read {
            Err(secrets::SecretError::Missing(_)) if is_kept && !was_given => return Ok(None),
            Err(error) => return Err((error.reason(), error.to_string())),
            Ok(read) => read,
        };
        let stored = StoredSecret {
            name: secret.to_owned(),
            version: read.version,
        };
        if !is_kept || !self.status.secrets.contains(&stored) {
            let set = self
                .context
                .master
                .set_credential(&credentials, read.credential);
            set.await.map_err(|error| match error {
                MasterError::Refused { why, message } => (why.reason(), message),
                away @ MasterError::Away(_) => ("MasterUnavailable", format!("the master: {away}")),
            })?;
            view.learn_credentials(credentials.as_str());
        }
        Ok(Some(stored))
    }

    /// Has the master list what is to be listed.
    async fn list(&mut self, name: &DatasetName, spec: DatasetSpec, known: Option<&Known>) {
        let is_applied =
            known.is_some_and(|known| spec_of(&known.dataset).is_ok_and(|there| there == spec));
        let asked = self.object.annotations().get(REFRESH_ANNOTATION);
        let asked = asked.filter(|asked| {
            let done = self.status.refreshed.as_ref();
            !asked.is_empty() && done.is_none_or(|done| done.request != **asked)
        });
        let credentials = self.conditions.get(CREDENTIALS);
        let has_credentials = credentials.is_none_or(|condition| condition.status == "True");
        let work = if !is_applied {
            if !has_credentials {
                let message = "it waits for its credentials";
                self.conditions
                    .set(ACCEPTED, Is::Unknown, "WaitsForCredentials", message);
                return;
            }
            let after = self.status.snapshot.unwrap_or_default();
            let after = u64::try_from(after).unwrap_or_default();
            Work::Apply { spec, after }
        } else if let Some(request) = asked.cloned() {
            Work::Refresh { request }
        } else {
            self.context.listings.forget(name);
            self.conditions.set(ACCEPTED, Is::True, "Accepted", "");
            self.listed();
            return;
        };
        let object = ObjectRef::from_obj(self.object);
        let progress = self.context.listings.ensure(&object, name, work.clone());
        match progress {
            Progress::Queued => {
                let message =
                    "too many other Datasets are being listed; this one is next when one has ended";
                self.is_listing("Queued", message.to_owned());
            }
            Progress::Running => {
                let waits_for = self.context.master.waits_for(name).await;
                let waits_for = waits_for.unwrap_or_default();
                if waits_for.is_empty() {
                    self.is_listing("Listing", "its sources are being listed".to_owned());
                } else {
                    self.is_listing("WaitsForOrigin", waits_for);
                }
            }
            Progress::Done { is_new } => match work {
                Work::Refresh { request } => {
                    let outcome = if is_new { "new snapshot" } else { "unchanged" };
                    let outcome = outcome.to_owned();
                    self.status.refreshed = Some(Refreshed { request, outcome });
                    self.conditions.set(ACCEPTED, Is::True, "Accepted", "");
                    self.listed();
                    self.again = LISTING_AGAIN;
                }
                // The view has it in a moment.
                Work::Apply { .. } => {
                    self.is_listing("Listing", "it was listed".to_owned());
                }
            },
            Progress::Failed { error, retry_in } => self.listing_failed(&error, retry_in),
        }
    }

    fn listed(&mut self) {
        let (snapshot, files) = (self.status.snapshot, self.status.files);
        let message = format!(
            "snapshot {} has {} files",
            snapshot.unwrap_or_default(),
            files.unwrap_or_default()
        );
        self.conditions.set(LISTED, Is::True, "Listed", message);
    }

    fn is_listing(&mut self, reason: &str, message: String) {
        let condition = self.conditions.get(ACCEPTED);
        if condition.is_none() {
            self.conditions.set(ACCEPTED, Is::True, "Accepted", "");
        }
        self.conditions.set(LISTED, Is::False, reason, message);
        self.again = LISTING_AGAIN;
    }

    fn listing_failed(&mut self, error: &MasterError, retry_in: Duration) {
        self.again = retry_in.max(Duration::from_secs(1));
        match error {
            MasterError::Away(why) => {
                let message = format!("the master does not answer: {why}; it is asked again");
                self.conditions
                    .set(ACCEPTED, Is::Unknown, "MasterUnavailable", message);
            }
            MasterError::Refused { why, message } if why.is_lasting() => {
                self.conditions
                    .set(ACCEPTED, Is::False, why.reason(), message.clone());
                self.again = RESYNC;
            }
            MasterError::Refused { why, message } => {
                self.conditions.set(ACCEPTED, Is::True, "Accepted", "");
                self.conditions
                    .set(LISTED, Is::False, why.reason(), message.clone());
            }
        }
    }

    /// Makes volumes and claims. What the apiserver refuses is told, too.
    async fn make_volumes(&mut self) {
        if self.status.snapshot.is_none() {
            return;
        }
        if let Err(error) = self.try_make_volumes().await {
            self.conditions
                .set(VOLUME, Is::Unknown, "ApiserverFailed", error.to_string());
            self.again = self.again.min(WAITING_AGAIN);
        }
    }

    /// Makes volumes and claims, and removes those of namespaces that may not use it any more.
    async fn try_make_volumes(&mut self) -> Result<(), OperatorError> {
        let bytes = u64::try_from(self.status.bytes.unwrap_or_default()).unwrap_or_default();
        let places = self.places();
        let own = self.namespace();
        let mut problem: Option<(&str, String)> = None;
        for place in &places {
            let claim = place.claim();
            if !self.status.namespaces.contains(&place.namespace) {
                self.status.namespaces.push(place.namespace.clone());
            }
            let made = volumes::make(&self.context.client, self.object, place, bytes).await?;
            if place.namespace == own {
                self.is_bound = Some(made == Made::Bound);
            }
            let found = match made {
                Made::Bound => continue,
                Made::Unbound => (
                    "Binding",
                    format!("claim {claim} is not bound to its volume yet"),
                ),
                Made::Clash(message) => ("NameClash", message),
                Made::NoNamespace => (
                    "NoNamespace",
                    format!(
                        "there is no namespace {}; make it, or take it out of spec.access.namespaces",
                        place.namespace
                    ),
                ),
                Made::Leaving => (
                    "Leaving",
                    format!("claim {claim} was deleted, and is made anew when it is gone"),
                ),
            };
            let wait = match found.0 {
                "Binding" | "Leaving" => LISTING_AGAIN,
                _ => WAITING_AGAIN,
            };
            self.again = self.again.min(wait);
            problem.get_or_insert(found);
        }
        let is_wanted =
            |namespace: &String| places.iter().any(|place| place.namespace == *namespace);
        let removed = if self.status.namespaces.iter().all(is_wanted) {
            Removed::Gone
        } else {
            volumes::remove(&self.context.client, self.object, &places).await?
        };
        if removed == Removed::Gone {
            self.status.namespaces.retain(is_wanted);
        }
        let revoked = match removed {
            Removed::Gone => None,
            Removed::Used(users) => Some(format!(
                "a namespace that may not use it any more still does: {users}"
            )),
            Removed::Leaving => {
                Some("a claim that is not allowed any more is being deleted".to_owned())
            }
        };
        if revoked.is_some() {
            self.again = self.again.min(WAITING_AGAIN);
        }
        match (problem, revoked) {
            (Some((reason, message)), _) => {
                self.conditions.set(VOLUME, Is::False, reason, message);
            }
            (None, Some(message)) => {
                self.conditions
                    .set(VOLUME, Is::True, "RevokedInUse", message);
            }
            (None, None) => {
                let message = format!("pods can use claim {}", self.object.name_any());
                self.conditions.set(VOLUME, Is::True, "Bound", message);
            }
        }
        Ok(())
    }

    /// Has node plugins tell pods why they cannot mount it.
    async fn tell_plugins(&self) {
        let Ok(name) = self.name() else {
            return;
        };
        let (noted, master) = (&self.context.noted, &*self.context.master);
        let ready = self.conditions.get(READY);
        match ready.filter(|ready| ready.status != "True") {
            _ if self.status.phase == Some(Phase::Deleting) => noted.deleting(master, &name).await,
            Some(ready) => {
                let trouble = (ready.reason.as_str(), ready.message.as_str());
                noted.trouble(master, &name, trouble).await;
            }
            None => noted.fine(master, &name).await,
        }
    }

    /// Writes what was found, if it is not what is known already, and tells of what has changed.
    async fn finish(mut self) -> Result<Action, OperatorError> {
        self.sum_up();
        self.tell_plugins().await;
        let changed = self.conditions.changed().map(report::event_of).collect();
        self.status.conditions = self.conditions.into_vec();
        let namespace = self.object.namespace().unwrap_or_default();
        let api = Api::namespaced(self.context.client.clone(), &namespace);
        report::status(self.context, &api, self.object, &self.status).await?;
        report::events(self.context, self.object, changed).await;
        Ok(Action::requeue(spread(self.again)))
    }
}

#[cfg(test)]
mod tests;
