//! Who is let in.

use std::sync::Arc;

use parking_lot::RwLock;
use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3Result, s3_error};

/// The keys that are valid, and those that were.
#[derive(Clone)]
pub(crate) struct Keys(Arc<RwLock<Table>>);

struct Table {
    key: String,
    secret: SecretKey,
    expired: Vec<String>,
}

impl Keys {
    pub(crate) fn new(key: String, secret: String) -> Self {
        Self(Arc::new(RwLock::new(Table {
            key,
            secret: secret.into(),
            expired: Vec::new(),
        })))
    }

    /// Makes these the valid keys. Those before them have expired.
    pub(crate) fn replace(&self, key: &str, secret: &str) {
        let mut table = self.0.write();
        let old = std::mem::replace(&mut table.key, key.to_owned());
        table.secret = secret.into();
        table.expired.push(old);
    }
}

#[async_trait::async_trait]
impl S3Auth for Keys {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let table = self.0.read();
        if table.key == access_key {
            Ok(table.secret.clone())
        } else if table.expired.iter().any(|key| key == access_key) {
            Err(s3_error!(ExpiredToken, "The provided token has expired."))
        } else {
            Err(s3_error!(InvalidAccessKeyId))
        }
    }
}
