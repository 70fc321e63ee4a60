//! The keys that requests to S3 are signed with.
//!
//! They come from the environment, a profile, the program that a profile names, or a service ([`chain`]); or from
//! credentials that the source names, and then from nowhere else ([`super::owned`]).

use std::sync::Arc;
use std::time::Duration;

use super::alibaba;
use super::chain::{self, Source};
use super::configuration::Configuration;
use super::owned::Owned;
use super::signature::{Keys, Temporary};
use crate::error::OriginError;
use crate::spec::stores::Dialect;
use crate::transport::calls::{Calls, Refused};
use crate::transport::environment::Environment;
use crate::transport::renewed::{Issuer, Renewed};
use crate::transport::trust::Trust;

/// How the keys of an origin are found.
pub(super) struct Settings {
    pub(super) profile: Option<String>,
    /// The bucket's.
    pub(super) region: Option<String>,
    /// The origin in messages.
    pub(super) name: Arc<str>,
    /// Whose keys they are.
    pub(super) dialect: Dialect,
    /// Credentials that the source names.
    pub(super) named: Option<Arc<Owned>>,
}

/// The keys of one origin.
pub(super) type Credentials = Renewed<Finder>;

/// Finds the keys of one origin.
pub(super) struct Finder {
    settings: Settings,
    find: Box<Find>,
}

/// Finds out where keys come from.
type Find = dyn Fn(&Settings) -> Result<Found, OriginError> + Send + Sync;

/// Where keys come from, and how the services are reached that they may come from.
#[derive(Clone)]
pub(super) struct Found {
    source: Source,
    calls: Calls,
}

/// Finds out where keys come from, without waiting for them. Fails on a profile that makes no sense. Call inside
/// the process's own runtime.
pub(super) fn find(settings: Settings) -> Result<Credentials, OriginError> {
    let find = |settings: &Settings| Found::in_environment(settings, &Environment::of_process());
    Credentials::find(Finder {
        settings,
        find: Box::new(find),
    })
}

impl Issuer for Finder {
    type Key = Keys;
    type Source = Found;

    fn find(&self) -> Result<Found, OriginError> {
        (self.find)(&self.settings)
    }

    fn fixed(found: &Found) -> Option<&Arc<Keys>> {
        match &found.source {
            Source::Fixed(keys) => Some(keys),
            _ => None,
        }
    }

    async fn load(&self, found: &Found) -> Result<(Keys, Option<Duration>), Refused> {
        let loaded = found.source.load(&found.calls, self.target()).await;
        loaded.map(|Temporary { keys, life }| (keys, life))
    }

    fn changes(found: &Found) -> bool {
        found.source.changes()
    }

    fn target(&self) -> &Arc<str> {
        &self.settings.name
    }

    fn remedy(&self) -> &'static str {
        if self.settings.named.is_some() {
            return "check that the master answers, and `weir credentials list`";
        }
        match self.settings.dialect {
            Dialect::S3 => {
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a --profile, or use --anonymous for a public bucket"
            }
            Dialect::Oss => {
                "set OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET, give this instance or pod a role, or use --anonymous for a public bucket"
            }
        }
    }
}

impl Found {
    fn in_environment(settings: &Settings, environment: &Environment) -> Result<Self, OriginError> {
        let (origin, named) = (&settings.name, settings.profile.as_deref());
        // AWS's keys are of no use there, and are not to be shown: not unless a profile was named for it.
        if settings.dialect == Dialect::Oss && named.is_none() && settings.named.is_none() {
            return Ok(Self {
                source: alibaba::find(origin, settings.region.as_deref(), environment)?.into(),
                calls: Calls::new(Trust::of(origin, None), environment),
            });
        }
        let configuration = Configuration::load(origin, named, environment)?;
        let region = settings.region.as_deref();
        let source = match &settings.named {
            Some(owned) => Source::Owned {
                owned: owned.clone(),
                sts: chain::sts(origin, region, &configuration)?,
            },
            None => chain::find(origin, named, region, &configuration)?,
        };
        Ok(Self {
            source,
            calls: Calls::new(Trust::of(origin, configuration.ca_bundle()), environment),
        })
    }
}

#[cfg(test)]
pub(super) mod tests;
