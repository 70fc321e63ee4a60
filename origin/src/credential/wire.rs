//! Credentials in messages of the protocol. An absent text is empty there.

use weir_proto::v1;
use weir_proto::v1::credential::Kind;

use super::{Credential, CredentialKind, Secret};
use crate::s3::signature::Keys;

impl Credential {
    /// The credentials of a message. `None` for a kind of a newer version.
    pub fn of_message(message: v1::Credential) -> Option<Self> {
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        let keys = |keys: Option<v1::StaticKeys>| {
            let keys = keys.unwrap_or_default();
            Keys {
                access_key: keys.access_key,
                secret_key: keys.secret_key,
                token: some(keys.session_token),
            }
        };
        let kind = match message.kind? {
            Kind::Keys(of) => CredentialKind::Keys(keys(Some(of))),
            Kind::Role(role) => CredentialKind::Role {
                arn: role.arn,
                external_id: some(role.external_id),
                keys: keys(role.keys),
            },
            Kind::WebIdentity(identity) => CredentialKind::WebIdentity {
                arn: identity.arn,
                token_file: identity.token_file,
            },
            Kind::Keytab(keytab) => CredentialKind::Keytab {
                principal: keytab.principal,
                keytab: Secret::new(keytab.keytab),
            },
            Kind::Header(header) => CredentialKind::Header {
                name: header.name,
                value: Secret::new(header.value),
            },
            Kind::Google(file) => CredentialKind::Google(Secret::new(file.json)),
            Kind::AzureKey(of) => CredentialKind::AzureKey {
                account: of.account,
                key: Secret::new(of.key),
            },
            Kind::AzureSas(sas) => CredentialKind::AzureSas(Secret::new(sas.query)),
        };
        Some(Self {
            kind,
            endpoints: message.endpoints,
        })
    }
}

impl From<&Credential> for v1::Credential {
    fn from(credential: &Credential) -> Self {
        let keys = |keys: &Keys| v1::StaticKeys {
            access_key: keys.access_key.clone(),
            secret_key: keys.secret_key.clone(),
            session_token: keys.token.clone().unwrap_or_default(),
        };
        let kind = match &credential.kind {
            CredentialKind::Keys(of) => Kind::Keys(keys(of)),
            CredentialKind::Role {
                arn,
                external_id,
                keys: of,
            } => Kind::Role(v1::AssumedRole {
                arn: arn.clone(),
                external_id: external_id.clone().unwrap_or_default(),
                keys: Some(keys(of)),
            }),
            CredentialKind::WebIdentity { arn, token_file } => Kind::WebIdentity(v1::WebIdentity {
                arn: arn.clone(),
                token_file: token_file.clone(),
            }),
            CredentialKind::Keytab { principal, keytab } => Kind::Keytab(v1::Keytab {
                principal: principal.clone(),
                keytab: keytab.expose().clone(),
            }),
            CredentialKind::Header { name, value } => Kind::Header(v1::HttpHeader {
                name: name.clone(),
                value: value.expose().clone(),
            }),
            CredentialKind::Google(file) => Kind::Google(v1::GoogleFile {
                json: file.expose().clone(),
            }),
            CredentialKind::AzureKey { account, key } => Kind::AzureKey(v1::AzureKey {
                account: account.clone(),
                key: key.expose().clone(),
            }),
            CredentialKind::AzureSas(query) => Kind::AzureSas(v1::AzureSas {
                query: query.expose().clone(),
            }),
        };
        Self {
            kind: Some(kind),
            endpoints: credential.endpoints.clone(),
        }
    }
}
