//! Who is let in, and to which bucket.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3Result, s3_error};

/// The keys that are valid, and those that were.
#[derive(Clone)]
pub(crate) struct Keys(Arc<RwLock<Table>>);

struct Table {
    key: String,
    secret: SecretKey,
    expired: Vec<String>,
    /// Those of accounts that have one bucket: the secret, and the bucket.
    accounts: HashMap<String, (SecretKey, String)>,
}

impl Keys {
    pub(crate) fn new(key: String, secret: String) -> Self {
        Self(Arc::new(RwLock::new(Table {
            key,
            secret: secret.into(),
            expired: Vec::new(),
            accounts: HashMap::new(),
        })))
    }

    /// Makes these the valid keys. Those before them have expired.
    pub(crate) fn replace(&self, key: &str, secret: &str) {
        let mut table = self.0.write();
        let old = std::mem::replace(&mut table.key, key.to_owned());
        table.secret = secret.into();
        table.expired.push(old);
    }

    /// Makes keys valid for one bucket.
    pub(crate) fn add_account(&self, key: &str, secret: &str, bucket: &str) {
        let account = (secret.into(), bucket.to_owned());
        self.0.write().accounts.insert(key.to_owned(), account);
    }
}

#[async_trait::async_trait]
impl S3Auth for Keys {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let table = self.0.read();
        if table.key == access_key {
            Ok(table.secret.clone())
        } else if let Some((secret, _)) = table.accounts.get(access_key) {
            Ok(secret.clone())
        } else if table.expired.iter().any(|key| key == access_key) {
            Err(s3_error!(ExpiredToken, "The provided token has expired."))
        } else {
            Err(s3_error!(InvalidAccessKeyId))
        }
    }
}

#[async_trait::async_trait]
impl S3Access for Keys {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        let Some(credentials) = context.credentials() else {
            return Err(s3_error!(AccessDenied, "Signature is required"));
        };
        let table = self.0.read();
        let bucket = context.s3_path().get_bucket_name();
        match table.accounts.get(&credentials.access_key) {
            Some((_, own)) if bucket != Some(own) => Err(s3_error!(AccessDenied)),
            _ => Ok(()),
        }
    }
}
