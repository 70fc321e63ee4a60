//! What the variables and the profile of a process say about services: regions, endpoints, certificates.

use std::path::PathBuf;
use std::sync::Arc;

use super::profile::{Profiles, Section};
use crate::error::OriginError;
use crate::transport::environment::{self, Environment};

/// The variables of a process, the shared files, and the profile that was chosen.
pub(crate) struct Configuration<'a> {
    pub(super) environment: &'a Environment,
    pub(super) profiles: Profiles,
    /// The chosen profile's name.
    pub(super) chosen: String,
}

/// A service, as variables and the sections of services name it.
#[derive(Clone, Copy)]
pub(crate) enum Service {
    S3,
    Sts,
    Sso,
    SsoOidc,
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Sts => "sts",
            Self::Sso => "sso",
            Self::SsoOidc => "sso_oidc",
        }
    }
}

impl<'a> Configuration<'a> {
    /// Reads the files. The profile that `named` or `AWS_PROFILE` names must exist; the default one need not.
    pub(crate) fn load(
        origin: &Arc<str>,
        named: Option<&str>,
        environment: &'a Environment,
    ) -> Result<Self, OriginError> {
        let found = Self::read(origin, named, environment)?;
        let is_named = named.is_some() || environment.get("AWS_PROFILE").is_some();
        if is_named && found.profile().is_none() {
            return Err(found.profiles.missing(origin, &found.chosen));
        }
        Ok(found)
    }

    /// As [`Self::load`], but the profile need not exist.
    pub(crate) fn read(
        origin: &Arc<str>,
        named: Option<&str>,
        environment: &'a Environment,
    ) -> Result<Self, OriginError> {
        let named = named.or_else(|| environment.get("AWS_PROFILE"));
        Ok(Self {
            environment,
            profiles: Profiles::read(origin, environment)?,
            chosen: named.unwrap_or("default").to_owned(),
        })
    }

    /// The chosen profile, if there is one.
    pub(super) fn profile(&self) -> Option<&Section> {
        self.profiles.get(&self.chosen)
    }

    /// A setting of the chosen profile.
    pub(super) fn setting(&self, name: &str) -> Option<&str> {
        self.profile()?.get(name)
    }

    /// The region: `AWS_REGION`, `AWS_DEFAULT_REGION`, the profile's.
    pub(crate) fn region(&self) -> Option<&str> {
        self.environment
            .first(&["AWS_REGION", "AWS_DEFAULT_REGION"])
            .or_else(|| self.setting("region"))
    }

    /// Where a service is, if that is not left to AWS: the variable of the service, the one of all services, then the same
    /// of the profile.
    pub(crate) fn endpoint(&self, service: Service) -> Option<&str> {
        let is_ignored = self
            .environment
            .get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")
            .or_else(|| self.setting("ignore_configured_endpoint_urls"))
            .is_some_and(environment::is_true);
        if is_ignored {
            return None;
        }
        let name = service.name();
        let variable = format!("AWS_ENDPOINT_URL_{}", name.to_ascii_uppercase());
        self.environment
            .first(&[&variable, "AWS_ENDPOINT_URL"])
            .or_else(|| {
                let services = self.setting("services")?;
                let services = self.profiles.services(services)?;
                services.get(&format!("{name}.endpoint_url"))
            })
            .or_else(|| self.setting("endpoint_url"))
    }

    /// The file with the authorities that are trusted instead of the system's, and what names it.
    pub(super) fn ca_bundle(&self) -> Option<(&'static str, PathBuf)> {
        let of_profile = || {
            Some((
                "ca_bundle",
                self.environment.expand(self.setting("ca_bundle")?),
            ))
        };
        let variable = "AWS_CA_BUNDLE";
        match self.environment.path(variable) {
            Some(path) => Some((variable, path)),
            None => of_profile(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_come_before_the_profile_and_those_of_a_service_before_the_others() {
        let home = tempfile::tempdir().unwrap();
        let config = home.path().join("config");
        std::fs::write(
            &config,
            "[default]\nendpoint_url = http://profile\nservices = mine\nca_bundle = ~/ca.pem\nregion = r1\n\
             [services mine]\nsts =\n  endpoint_url = http://profile-sts\n\
             [profile off]\nendpoint_url = http://never\nignore_configured_endpoint_urls = True\n",
        )
        .unwrap();
        let config = config.to_str().unwrap();
        let found = |variables: &[(&str, &str)], named: Option<&str>| {
            let all = [("HOME", "/home/u"), ("AWS_CONFIG_FILE", config)];
            let environment = Environment::of(variables.iter().copied().chain(all));
            let origin = "s3://b".into();
            let configuration = Configuration::load(&origin, named, &environment).unwrap();
            let at = |service| configuration.endpoint(service).map(str::to_owned);
            let ca = configuration.ca_bundle();
            (at(Service::S3), at(Service::Sts), ca)
        };
        let some = |text: &str| Some(text.to_owned());
        let (s3, sts, ca) = found(&[], None);
        assert_eq!(
            (s3, sts),
            (some("http://profile"), some("http://profile-sts"))
        );
        assert_eq!(ca, Some(("ca_bundle", PathBuf::from("/home/u/ca.pem"))));
        let variables = [
            ("AWS_ENDPOINT_URL", "http://all"),
            ("AWS_ENDPOINT_URL_STS", "http://sts"),
            ("AWS_ENDPOINT_URL_S3", ""),
            ("AWS_CA_BUNDLE", "/x"),
        ];
        let (s3, sts, ca) = found(&variables, None);
        assert_eq!((s3, sts), (some("http://all"), some("http://sts")));
        assert_eq!(ca, Some(("AWS_CA_BUNDLE", PathBuf::from("/x"))));
        assert_eq!(found(&variables[..1], Some("off")).0, None);
    }

    #[test]
    fn a_profile_that_was_asked_for_must_exist() {
        let origin = "s3://b".into();
        let load = |named, variables: &[(&str, &str)]| {
            let variables = variables.iter().copied().chain([("HOME", "/nonexistent")]);
            let environment = Environment::of(variables);
            Configuration::load(&origin, named, &environment).map(|found| found.chosen)
        };
        assert_eq!(load(None, &[]).unwrap(), "default");
        assert_eq!(load(None, &[("AWS_PROFILE", "")]).unwrap(), "default");
        for (named, variables) in [
            (Some("gone"), &[][..]),
            (None, &[("AWS_PROFILE", "gone")]),
            (Some("gone"), &[("AWS_PROFILE", "")]),
        ] {
            let error = load(named, variables).unwrap_err().to_string();
            assert!(error.contains("\"gone\""), "{error}");
            assert!(error.contains("/nonexistent/.aws/config"), "{error}");
        }
    }
}
