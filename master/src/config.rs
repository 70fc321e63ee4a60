//! How a master runs.

use std::path::PathBuf;

use weir_origin::SourcePolicy;
use weir_trust::{Access, Dial};

use crate::credentials::CredentialKeys;

/// How a master runs.
#[derive(Clone, Debug)]
pub struct MasterConfig {
    /// Its directory: the store and the manifests.
    pub dir: PathBuf,
    /// Snapshots that are kept of each dataset; the oldest goes first. The default is 64: a dataset that is
    /// refreshed daily keeps two months.
    pub max_snapshots: usize,
    /// How it calls workers.
    pub dial: Dial,
    /// How its callers are known, as `weir status` shows it.
    pub callers: &'static str,
    /// Which sources datasets may have. The default is AWS, and what is neither near nor needs a signature.
    pub sources: SourcePolicy,
    /// What encrypts the credentials that it keeps. Without it, it takes none.
    pub credentials_key: Option<CredentialKeys>,
    /// Credentials that it does not open are forgotten; else the master does not start.
    pub forget_credentials: bool,
    /// Which mounts are given credentials of the datasets that they mount. The default is all.
    pub credentials_for_mounts: CredentialsForMounts,
}

impl Default for MasterConfig {
    fn default() -> Self {
        Self {
            dir: PathBuf::from("/var/lib/weir/master"),
            max_snapshots: 64,
            dial: Dial::default(),
            callers: Access::SameUser.describe(),
            sources: SourcePolicy::default(),
            credentials_key: None,
            forget_credentials: false,
            credentials_for_mounts: CredentialsForMounts::All,
        }
    }
}

/// Which mounts are given credentials; workers are given any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialsForMounts {
    /// Those with a certificate.
    All,
    /// Those on a node where a pod uses the dataset, as the operator says.
    OfPods,
    /// None.
    None,
}
