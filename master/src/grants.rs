//! Who sets credentials, and who is given them.
//!
//! Nobody whom the master does not know: not over a connection that others could have made or can read. A worker is given
//! what any dataset uses, since it may own blocks of each; whoever mounts a dataset what that uses, and on Kubernetes only where a
//! pod uses it: a node whose plugin is broken into gives away what its own pods can read, and no more.

use weir_core::{CredentialName, DatasetName, DatasetSpec};
use weir_origin::Credential;
use weir_proto::v1;
use weir_trust::{Caller, Role, Subject};

use crate::config::CredentialsForMounts;
use crate::error::MasterError;
use crate::master::Master;

impl Master {
    /// Keeps credentials.
    pub(crate) async fn set_credential(
        &self,
        caller: &Caller,
        request: v1::SetCredentialRequest,
    ) -> Result<v1::SetCredentialReply, MasterError> {
        known_caller(caller)?;
        let name: CredentialName = request.name.parse()?;
        let credential = request.credential.and_then(Credential::of_message);
        let credential = credential.ok_or_else(|| {
            MasterError::Invalid("credentials of a kind that this master does not know".to_owned())
        })?;
        let kind = credential.kind_name();
        let replace = request.replace;
        // Without endpoints they are for what the old ones are for.
        if replace && !credential.endpoints.is_empty() {
            self.datasets.check_users(&name, &credential)?;
        }
        self.credentials.set(&name, credential, replace).await?;
        let what = if replace { "replaced" } else { "set" };
        tracing::info!(%caller, credentials = %name, kind, "credentials were {what}");
        let mut all = self.list_credentials().into_iter();
        Ok(v1::SetCredentialReply {
            info: all.find(|info| info.name == name.as_str()),
        })
    }

    /// All credentials, without their secrets.
    pub(crate) fn list_credentials(&self) -> Vec<v1::CredentialInfo> {
        let mut users = self.datasets.users_of_credentials();
        let with_users = |info: v1::CredentialInfo| v1::CredentialInfo {
            datasets: users.remove(&info.name).unwrap_or_default(),
            ..info
        };
        self.credentials
            .list()
            .into_iter()
            .map(with_users)
            .collect()
    }

    /// Forgets credentials that nothing uses.
    pub(crate) async fn delete_credential(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<(), MasterError> {
        let name: CredentialName = name.parse()?;
        let datasets = self.datasets.clone();
        let users = || datasets.users_of_credentials().remove(name.as_str());
        let deleted = self
            .credentials
            .delete(&name, || users().unwrap_or_default());
        deleted.await?;
        tracing::info!(%caller, credentials = %name, "credentials were deleted");
        Ok(())
    }

    /// Gives credentials to a process that reads with them.
    pub(crate) async fn fetch_credential(
        &self,
        caller: &Caller,
        request: v1::FetchCredentialRequest,
    ) -> Result<v1::FetchCredentialReply, MasterError> {
        let name: CredentialName = request.name.parse()?;
        if let Err(why) = self.may_fetch(caller, &request.dataset, &name).await {
            if let MasterError::Denied(why) = &why {
                self.refusals.tell(why);
            }
            return Err(why);
        }
        let known = request.known_revision;
        let (credential, revision) = self.credentials.give(&name, known).await?;
        Ok(v1::FetchCredentialReply {
            credential: credential.as_ref().map(v1::Credential::from),
            revision,
        })
    }

    async fn may_fetch(
        &self,
        caller: &Caller,
        dataset: &str,
        name: &CredentialName,
    ) -> Result<(), MasterError> {
        known_caller(caller)?;
        let mounts = !dataset.is_empty();
        let denied = |why: String| Err(MasterError::Denied(why));
        if mounts && self.credentials_for_mounts == CredentialsForMounts::None {
            return denied(format!(
                "{caller} is not given credentials {name}: the master gives workers alone any (--no-origin-fallback)"
            ));
        }
        if !mounts && !caller.is_one_of(&[Role::Worker]) {
            return denied(format!(
                "{caller} is not given credentials {name} without the dataset that it mounts"
            ));
        }
        let dataset: Option<DatasetName> = mounts.then(|| dataset.parse()).transpose()?;
        if !self
            .datasets
            .uses(dataset.as_ref().map(DatasetName::as_str), name)
        {
            let what = match &dataset {
                Some(dataset) => format!("the dataset {dataset} does not use them"),
                None => "no dataset uses them".to_owned(),
            };
            return denied(format!("{caller} is not given credentials {name}: {what}"));
        }
        match (dataset, caller.peer()) {
            (Some(dataset), Some(peer))
                if peer.subject.role == Role::Mount
                    && self.credentials_for_mounts == CredentialsForMounts::OfPods =>
            {
                self.check_use(caller, &peer.subject, &dataset).await
            }
            _ => Ok(()),
        }
    }

    /// Fails unless a pod uses a dataset on the node of a mount, whose certificate is named after that.
    async fn check_use(
        &self,
        caller: &Caller,
        mount: &Subject,
        dataset: &DatasetName,
    ) -> Result<(), MasterError> {
        let node = mount.node.as_ref().unwrap_or(&mount.name);
        let spec = DatasetSpec::from_json(&self.datasets.get(dataset)?.spec);
        let access = spec.ok().and_then(|spec| spec.access);
        let mut namespaces = vec![dataset.namespace().to_owned()];
        namespaces.extend(access.into_iter().flat_map(|access| access.namespaces));
        let asked = v1::NodeUse {
            node: node.to_string(),
            dataset: dataset.to_string(),
            namespaces,
        };
        match self.pods.uses(&asked).await {
            Some(true) => Ok(()),
            Some(false) => Err(MasterError::Denied(format!(
                "{caller} is not given credentials of dataset {dataset}: no pod on node {node} uses it"
            ))),
            None => Err(MasterError::Unanswered(format!(
                "no operator says whether a pod on node {node} uses dataset {dataset}, and without that its mounts are given no credentials (--credentials-by-pods); see whether the operator runs"
            ))),
        }
    }
}

/// Whether it is known who calls.
fn known_caller(caller: &Caller) -> Result<(), MasterError> {
    if let Caller::Anybody { .. } = caller {
        return Err(MasterError::Denied(format!(
            "{caller} can neither set credentials nor be given any: this master does not ask who calls (--insecure); start it with --certs"
        )));
    }
    Ok(())
}
