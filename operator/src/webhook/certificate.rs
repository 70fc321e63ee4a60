//! The certificate of the webhook.
//!
//! The operator makes an authority of its own with one certificate, and throws the authority's key away: nothing else can ever be
//! signed by it. Both are kept in a Secret of its namespace, so that all replicas have the same; of two that make one at the same
//! time the apiserver takes one. When a third of its life is left, the next one is made; the bundle then has both authorities.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, ResourceExt};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use crate::error::OperatorError;

/// Name of the Secret.
const SECRET: &str = "weir-webhook";
/// Name of the two configurations, and of the Service that they call.
pub(crate) const CONFIGURATION: &str = "weir";
pub(crate) const SERVICE: &str = "weir-webhook";
/// Keys of the Secret.
const AUTHORITY: &str = "ca.crt";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const EXPIRES: &str = "expires";
/// How long a certificate is good for, and how long before its end there is a new one.
const LIFE: SignedDuration = SignedDuration::from_hours(24 * 365);
const RENEW_BEFORE: SignedDuration = SignedDuration::from_hours(24 * 120);

/// A certificate, its key, and the authorities that the apiserver is to trust.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Certificate {
    pub(crate) authorities: String,
    certificate: String,
    key: Zeroizing<String>,
    expires: Timestamp,
}

impl Certificate {
    /// Makes one for the Service of a namespace. `before` are authorities that are trusted for longer.
    pub(crate) fn make(
        namespace: &str,
        before: &str,
        now: Timestamp,
    ) -> Result<Self, rcgen::Error> {
        let expires = now + LIFE;
        let mut authority = CertificateParams::default();
        authority.distinguished_name =
            named(&format!("Weir webhook authority {}", now.as_second()));
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        live(&mut authority, now, expires);
        let authority_key = KeyPair::generate()?;
        let authority_certificate = authority.self_signed(&authority_key)?;
        let issuer = Issuer::new(authority, authority_key);
        let names = ["svc", "svc.cluster.local"].map(|end| format!("{SERVICE}.{namespace}.{end}"));
        let mut names = names.to_vec();
        // Of an apiserver on the same machine.
        names.push("localhost".to_owned());
        let mut own = CertificateParams::new(names)?;
        own.distinguished_name = named(SERVICE);
        own.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        live(&mut own, now, expires);
        let key = KeyPair::generate()?;
        let certificate = own.signed_by(&key, &issuer)?;
        Ok(Self {
            authorities: format!("{}{before}", authority_certificate.pem()),
            certificate: certificate.pem(),
            key: Zeroizing::new(key.serialize_pem()),
            expires,
        })
    }

    fn is_due(&self, now: Timestamp) -> bool {
        self.expires < now + RENEW_BEFORE
    }

    /// What is trusted of this one when the next is made: the newest authority alone.
    fn newest_authority(&self) -> &str {
        const END: &str = "-----END CERTIFICATE-----\n";
        let text = &self.authorities;
        text.find(END).map_or("", |at| &text[..at + END.len()])
    }

    fn read(secret: &Secret) -> Option<Self> {
        let data = secret.data.as_ref()?;
        let text = |key: &str| String::from_utf8(data.get(key)?.0.clone()).ok();
        Some(Self {
            authorities: text(AUTHORITY)?,
            certificate: text(CERTIFICATE)?,
            key: Zeroizing::new(text(KEY)?),
            expires: text(EXPIRES)?.parse().ok()?,
        })
    }

    fn secret(&self, metadata: ObjectMeta) -> Secret {
        let expires = self.expires.to_string();
        let data: BTreeMap<String, ByteString> = [
            (AUTHORITY, self.authorities.as_str()),
            (CERTIFICATE, self.certificate.as_str()),
            (KEY, self.key.as_str()),
            (EXPIRES, expires.as_str()),
        ]
        .map(|(key, value)| (key.to_owned(), ByteString(value.as_bytes().to_vec())))
        .into();
        Secret {
            metadata,
            data: Some(data),
            type_: Some("Opaque".to_owned()),
            ..Secret::default()
        }
    }

    /// What a server speaks TLS with.
    pub(crate) fn server_config(&self) -> io::Result<Arc<ServerConfig>> {
        let wrong = |error: &dyn std::fmt::Display| io::Error::other(error.to_string());
        let chain: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(self.certificate.as_bytes()).collect();
        let chain = chain.map_err(|error| wrong(&error))?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes());
        let key = key.map_err(|error| wrong(&error))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(&error))?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| wrong(&error))?;
        Ok(Arc::new(config))
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

fn live(params: &mut CertificateParams, from: Timestamp, until: Timestamp) {
    let moment = |at: Timestamp| {
        time::OffsetDateTime::from_unix_timestamp(at.as_second())
            .unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
    };
    // Clocks of a cluster differ.
    params.not_before = moment(from - SignedDuration::from_hours(1));
    params.not_after = moment(until);
}

/// The certificate of the installation: the one that is kept, or a new one.
pub(crate) async fn ensure(client: &Client, namespace: &str) -> Result<Certificate, OperatorError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let failed = |error: rcgen::Error| OperatorError::Certificate(error.to_string());
    let now = Timestamp::now();
    let kept = secrets.get_opt(SECRET).await?;
    let known = kept.as_ref().and_then(Certificate::read);
    if let Some(known) = &known
        && !known.is_due(now)
    {
        return Ok(known.clone());
    }
    let before = known.as_ref().map(Certificate::newest_authority);
    let new = Certificate::make(namespace, before.unwrap_or_default(), now).map_err(failed)?;
    let params = PostParams::default();
    let written = match &kept {
        None => {
            let metadata = ObjectMeta {
                name: Some(SECRET.to_owned()),
                ..ObjectMeta::default()
            };
            secrets.create(&params, &new.secret(metadata)).await
        }
        Some(kept) => {
            let metadata = ObjectMeta {
                name: Some(kept.name_any()),
                resource_version: kept.resource_version(),
                ..ObjectMeta::default()
            };
            secrets
                .replace(SECRET, &params, &new.secret(metadata))
                .await
        }
    };
    match written {
        Ok(_) => Ok(new),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            // Another replica was faster.
            let kept = secrets.get(SECRET).await?;
            let missing =
                || OperatorError::Certificate(format!("Secret {SECRET} is not understood"));
            Certificate::read(&kept).ok_or_else(missing)
        }
        Err(error) => Err(error.into()),
    }
}

/// Has the apiserver trust the certificate. Gives whether the configurations of both webhooks are there.
pub(crate) async fn trust(client: &Client, authorities: &str) -> Result<bool, OperatorError> {
    let bundle = ByteString(authorities.as_bytes().to_vec());
    let params = PostParams::default();
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let mut found_all = true;
    let found = mutating.get_opt(CONFIGURATION).await?;
    found_all &= found.is_some();
    if let Some(mut found) = found {
        let mut changed = false;
        for webhook in found.webhooks.iter_mut().flatten() {
            changed |= webhook.client_config.ca_bundle.as_ref() != Some(&bundle);
            webhook.client_config.ca_bundle = Some(bundle.clone());
        }
        if changed {
            mutating.replace(CONFIGURATION, &params, &found).await?;
        }
    }
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let found = validating.get_opt(CONFIGURATION).await?;
    found_all &= found.is_some();
    if let Some(mut found) = found {
        let mut changed = false;
        for webhook in found.webhooks.iter_mut().flatten() {
            changed |= webhook.client_config.ca_bundle.as_ref() != Some(&bundle);
            webhook.client_config.ca_bundle = Some(bundle.clone());
        }
        if changed {
            validating.replace(CONFIGURATION, &params, &found).await?;
        }
    }
    Ok(found_all)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::FakeApi;

    #[tokio::test]
    async fn all_replicas_have_one_certificate_and_the_apiserver_trusts_it() {
        let (client, api) = FakeApi::start();
        let first = ensure(&client, "weir-system").await.unwrap();
        assert!(first == ensure(&client, "weir-system").await.unwrap());
        first.server_config().unwrap();
        let path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/weir";
        let webhook = json!({
            "name": "pods.weir.io", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "clientConfig": { "service": { "name": "weir-webhook", "namespace": "weir-system" } },
        });
        api.put(
            path,
            json!({ "metadata": { "name": "weir" }, "webhooks": [webhook] }),
        );
        trust(&client, &first.authorities).await.unwrap();
        let bundle = api.get(path).unwrap()["webhooks"][0]["clientConfig"]["caBundle"].clone();
        assert!(bundle.as_str().is_some_and(|bundle| bundle.len() > 100));
        let written = api.log().len();
        trust(&client, &first.authorities).await.unwrap();
        assert_eq!(api.log().len(), written, "it is written once");
    }

    #[tokio::test]
    async fn one_that_is_due_is_replaced_while_the_old_one_is_still_trusted() {
        let (client, api) = FakeApi::start();
        let old = Timestamp::now() - SignedDuration::from_hours(24 * 300);
        let old = Certificate::make("weir-system", "", old).unwrap();
        let metadata = ObjectMeta {
            name: Some(SECRET.to_owned()),
            ..ObjectMeta::default()
        };
        let path = "/api/v1/namespaces/weir-system/secrets/weir-webhook";
        api.put(path, serde_json::to_value(old.secret(metadata)).unwrap());
        let new = ensure(&client, "weir-system").await.unwrap();
        assert!(new.certificate != old.certificate && !new.is_due(Timestamp::now()));
        assert_eq!(new.authorities.matches("BEGIN CERTIFICATE").count(), 2);
        assert!(new.authorities.ends_with(&old.authorities));
    }
}
