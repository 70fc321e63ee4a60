//! Credentials of a source from a Secret of the Dataset's namespace.
//!
//! A Secret is read by its name, when a Dataset names it, and by nothing else: the operator may neither list nor watch Secrets. What
//! it holds goes to the master and nowhere else; no message repeats any of it, and what the library for Kubernetes would log of
//! an answer that it does not understand is read here instead.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::Client;
use serde::Deserialize;
use weir_proto::v1;
use weir_proto::v1::credential::Kind;
use zeroize::{Zeroize, Zeroizing};

/// Why the credentials of a Secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// There is none of the name.
    #[error("there is no Secret {0}; make it, or name another one as `credentials` of the source")]
    Missing(String),
    /// The operator may not read it.
    #[error(
        "the operator may not read Secret {0}; bind the ClusterRole weir-secret-reader to its service account by a RoleBinding in the namespace"
    )]
    Forbidden(String),
    /// It holds no credentials.
    #[error("Secret {name}: {problem}; docs/kubernetes-objects.md lists the keys that it may have")]
    Invalid {
        /// Its name, with its namespace.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The apiserver failed.
    #[error("Secret {name} cannot be read: {error}")]
    Kube {
        /// Its name, with its namespace.
        name: String,
        /// What the apiserver said.
        error: String,
    },
}

impl SecretError {
    /// The reason of a condition.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Missing(_) => "SecretMissing",
            Self::Forbidden(_) => "SecretForbidden",
            Self::Invalid { .. } => "SecretInvalid",
            Self::Kube { .. } => "SecretUnreadable",
        }
    }
}

/// A Secret of which only what is needed is kept, and for as short as possible.
#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default)]
    resource_version: String,
}

impl Drop for Object {
    fn drop(&mut self) {
        self.data.values_mut().for_each(Zeroize::zeroize);
    }
}

/// Credentials, and the version of the Secret that they are from.
pub(crate) struct FromSecret {
    pub(crate) credential: v1::Credential,
    pub(crate) version: String,
}

/// Reads a Secret.
pub(crate) async fn read(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<FromSecret, SecretError> {
    let full = || format!("{namespace}/{name}");
    // Both are labels of DNS, which need no escapes.
    let url = format!("/api/v1/namespaces/{namespace}/secrets/{name}");
    let request = http::Request::get(url).body(Vec::new());
    let unreadable = |error: &dyn std::fmt::Display| SecretError::Kube {
        name: full(),
        error: error.to_string(),
    };
    let request = request.map_err(|error| unreadable(&error))?;
    let text = match client.request_text(request).await {
        Ok(text) => Zeroizing::new(text),
        Err(kube::Error::Api(status)) if status.code == 404 => {
            return Err(SecretError::Missing(full()));
        }
        Err(kube::Error::Api(status)) if status.code == 403 => {
            return Err(SecretError::Forbidden(full()));
        }
        Err(error) => return Err(unreadable(&error)),
    };
    // The parser's message may repeat what it stumbled over.
    let object: Object = serde_json::from_str(&text)
        .map_err(|_| unreadable(&"the apiserver's answer is not understood"))?;
    let invalid = |problem| SecretError::Invalid {
        name: full(),
        problem,
    };
    let credential = credential(&object.data).map_err(invalid)?;
    Ok(FromSecret {
        credential,
        version: object.metadata.resource_version.clone(),
    })
}

/// The words of a Secret's keys, as `weir credentials set` has them, by kind.
const KEYS: &[&str] = &[
    "access_key_id",
    "secret_access_key",
    "session_token",
    "role_arn",
    "external_id",
    "token_file",
    "principal",
    "keytab",
    "header",
    "value",
    "google",
    "azure_account",
    "azure_key",
    "azure_sas",
    "endpoints",
];

/// The fields of a Secret, decoded.
struct Fields(BTreeMap<&'static str, Zeroizing<Vec<u8>>>);

impl Fields {
    fn take(&mut self, key: &str) -> Option<Zeroizing<Vec<u8>>> {
        self.0.remove(key)
    }

    fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    fn text(&mut self, key: &str) -> Result<Option<String>, String> {
        let Some(bytes) = self.take(key) else {
            return Ok(None);
        };
        let text = std::str::from_utf8(&bytes).map_err(|_| format!("{key} is no text"))?;
        Ok(Some(text.trim().to_owned()))
    }

    fn needed(&mut self, key: &str, with: &str) -> Result<String, String> {
        let text = self.text(key)?.filter(|text| !text.is_empty());
        text.ok_or_else(|| format!("it has {with}, but no {key}"))
    }

    fn static_keys(&mut self) -> Result<v1::StaticKeys, String> {
        Ok(v1::StaticKeys {
            access_key: self.needed("access_key_id", "keys")?,
            secret_key: self.needed("secret_access_key", "access_key_id")?,
            session_token: self.text("session_token")?.unwrap_or_default(),
        })
    }
}

/// The credentials that a Secret's data are, or what is wrong with it.
fn credential(data: &BTreeMap<String, String>) -> Result<v1::Credential, String> {
    let mut fields = Fields(BTreeMap::new());
    for (key, value) in data {
        let plain = key.to_ascii_lowercase();
        let plain = plain.strip_prefix("aws_").unwrap_or(&plain);
        let Some(known) = KEYS.iter().find(|known| **known == plain) else {
            return Err(format!("it has a key {key:?}, which is not known"));
        };
        let value = STANDARD.decode(value);
        let value = value.map_err(|_| format!("{key} is not encoded as base64"))?;
        if fields.0.insert(known, Zeroizing::new(value)).is_some() {
            return Err(format!("it has {known} twice"));
        }
    }
    let endpoints = fields.text("endpoints")?.unwrap_or_default();
    let endpoints = endpoints.split_whitespace().map(str::to_owned).collect();
    let kind = if fields.has("token_file") {
        Kind::WebIdentity(v1::WebIdentity {
            arn: fields.needed("role_arn", "token_file")?,
            token_file: fields.needed("token_file", "role_arn")?,
        })
    } else if fields.has("role_arn") {
        Kind::Role(v1::AssumedRole {
            arn: fields.needed("role_arn", "a role")?,
            external_id: fields.text("external_id")?.unwrap_or_default(),
            keys: Some(fields.static_keys()?),
        })
    } else if fields.has("principal") {
        let principal = fields.needed("principal", "a keytab")?;
        let keytab = fields.take("keytab");
        let keytab = keytab.ok_or("it has principal, but no keytab")?.to_vec();
        Kind::Keytab(v1::Keytab { principal, keytab })
    } else if fields.has("header") {
        Kind::Header(v1::HttpHeader {
            name: fields.needed("header", "a value")?,
            value: fields.needed("value", "header")?,
        })
    } else if let Some(json) = fields.take("google") {
        let json = json.to_vec();
        Kind::Google(v1::GoogleFile { json })
    } else if fields.has("azure_account") {
        Kind::AzureKey(v1::AzureKey {
            account: fields.needed("azure_account", "azure_key")?,
            key: fields.needed("azure_key", "azure_account")?,
        })
    } else if fields.has("azure_sas") {
        let query = fields.needed("azure_sas", "a signature")?;
        let query = query.trim_start_matches('?').to_owned();
        Kind::AzureSas(v1::AzureSas { query })
    } else if fields.has("access_key_id") || fields.has("secret_access_key") {
        Kind::Keys(fields.static_keys()?)
    } else {
        return Err("it has no credentials".to_owned());
    };
    if let Some(key) = fields.0.keys().next() {
        return Err(format!("it has {key}, which does not go with the others"));
    }
    Ok(v1::Credential {
        kind: Some(kind),
        endpoints,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(data: &[(&str, &str)]) -> Result<v1::Credential, String> {
        let data = data
            .iter()
            .map(|(key, value)| ((*key).to_owned(), STANDARD.encode(value)))
            .collect();
        credential(&data)
    }

    #[test]
    fn the_keys_of_a_secret_say_which_kind_of_credentials_it_is() {
        let keys = of(&[
            ("AWS_ACCESS_KEY_ID", "a"),
            ("AWS_SECRET_ACCESS_KEY", "s\n"),
            ("endpoints", "https://one:9000\nhttps://two"),
        ])
        .unwrap();
        assert_eq!(keys.endpoints, ["https://one:9000", "https://two"]);
        let Some(Kind::Keys(keys)) = keys.kind else {
            panic!("not keys");
        };
        assert_eq!((&*keys.access_key, &*keys.secret_key), ("a", "s"));
        for (data, is_right) in [
            (&[("role_arn", "r"), ("token_file", "/t")][..], true),
            (
                &[
                    ("role_arn", "r"),
                    ("access_key_id", "a"),
                    ("secret_access_key", "s"),
                ][..],
                true,
            ),
            (&[("principal", "p"), ("keytab", "\0\x01")][..], true),
            (
                &[("header", "authorization"), ("value", "Bearer x")][..],
                true,
            ),
            (&[("google", "{}")][..], true),
            (&[("azure_account", "a"), ("azure_key", "k")][..], true),
            (&[("azure_sas", "?sv=1")][..], true),
            (&[][..], false),
            (&[("endpoints", "https://one")][..], false),
            (&[("access_key_id", "a")][..], false),
            (&[("principal", "p")][..], false),
            (&[("azure_sas", "x"), ("google", "{}")][..], false),
            (&[("password", "hunter2")][..], false),
            (
                &[("access_key_id", "a"), ("aws_access_key_id", "b")][..],
                false,
            ),
        ] {
            let read = of(data);
            assert_eq!(read.is_ok(), is_right, "{data:?}");
            if let Err(problem) = read {
                assert!(!problem.contains("hunter2"), "{problem}");
            }
        }
    }
}
