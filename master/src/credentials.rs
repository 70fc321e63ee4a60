//! Credentials that sources name, apart from the datasets.
//!
//! They are in the store encrypted, and decrypted only when a process is given them: nothing that lists or shows them does
//! so. A change is durable before it is told. What a dataset uses is not deleted, nor what one uses that is being made.

mod key;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use prost::Message;
use weir_core::CredentialName;
use weir_origin::{Credential, CredentialError, CredentialSource, OriginSpec};
use weir_proto::v1;
use zeroize::Zeroizing;

use crate::error::MasterError;
use crate::records::{Records, decode, now_ns};
use crate::store::Change;
use key::Sealed;

pub use key::{CredentialKeys, KeyError};

const RECORD_KEY: &str = "credential/";
/// Holds when credentials were given to a process last.
const USED_KEY: &str = "credential-used/";
/// Most credentials of one master.
const MAX_CREDENTIALS: usize = 10_000;
/// Credentials that a message names.
const MAX_NAMED: usize = 20;
/// When they were used last is written down if it is later than what was written by so much.
const USED_GRAIN_NS: i64 = 60 * 1_000_000_000;
/// What encrypted the records.
const AES_256_GCM: u32 = 1;

/// The credentials of a master.
#[derive(Debug)]
pub(crate) struct Credentials {
    records: Records,
    keys: Option<CredentialKeys>,
    known: Mutex<BTreeMap<CredentialName, Known>>,
    /// One change at a time.
    changes: tokio::sync::Mutex<()>,
    /// Used by datasets that are being made.
    held: Mutex<HashMap<CredentialName, usize>>,
}

/// Credentials as they are stored.
#[derive(Clone, PartialEq, Message)]
struct Record {
    /// Grows with each change.
    #[prost(uint64, tag = "1")]
    revision: u64,
    #[prost(int64, tag = "2")]
    created_ns: i64,
    #[prost(int64, tag = "3")]
    changed_ns: i64,
    #[prost(uint32, tag = "4")]
    cipher: u32,
    #[prost(bytes = "vec", tag = "5")]
    nonce: Vec<u8>,
    /// A `v1::Credential`, encrypted.
    #[prost(bytes = "vec", tag = "6")]
    sealed: Vec<u8>,
}

/// Credentials, with what of them is no secret.
#[derive(Clone, Debug)]
struct Known {
    record: Record,
    kind: &'static str,
    endpoints: Vec<String>,
    /// When they were given to a process, and what of that is stored.
    used_ns: i64,
    stored_used_ns: i64,
}

impl Known {
    fn of(record: Record, credential: &Credential, used_ns: i64) -> Self {
        Self {
            record,
            kind: credential.kind_name(),
            endpoints: credential.endpoints.clone(),
            used_ns,
            stored_used_ns: used_ns,
        }
    }
}

/// Keeps credentials from being deleted.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    credentials: &'a Credentials,
    names: Vec<CredentialName>,
}

impl Credentials {
    /// The credentials in the store. Those that an older key has encrypted are encrypted with the newest; those that none
    /// opens are removed if they are to be forgotten. Blocks on the disk.
    ///
    /// # Errors
    /// When they cannot be decrypted.
    pub(crate) fn load(
        records: Records,
        keys: Option<CredentialKeys>,
        forget: bool,
    ) -> Result<Self, MasterError> {
        let stored = records.store().scan(RECORD_KEY)?;
        let used: HashMap<String, Vec<u8>> = records.store().scan(USED_KEY)?.into_iter().collect();
        // Without a key none of them opens, and all would be forgotten whose key is only not at hand.
        if !stored.is_empty() && keys.is_none() {
            let or_new = if forget {
                ", or a new one to forget those that it does not open"
            } else {
                ""
            };
            return Err(MasterError::Key(format!(
                "the master keeps {} credentials, and has no key for them: give it the one that they were set with, by --credentials-key FILE or in WEIR_CREDENTIALS_KEY{or_new}",
                stored.len()
            )));
        }
        let (mut known, mut changes, mut closed) = (BTreeMap::new(), Vec::new(), Vec::new());
        let mut is_older = false;
        for (key, bytes) in &stored {
            let name: CredentialName = key[RECORD_KEY.len()..].parse()?;
            let record = decode::<Record>(key, bytes).ok();
            let opened = record.zip(keys.as_ref()).and_then(|(record, keys)| {
                let (credential, newest) = open(keys, &name, &record)?;
                Some((record, credential, newest))
            });
            let Some((record, credential, newest)) = opened else {
                closed.push(name.to_string());
                if forget {
                    changes.push(Change::Delete(key.clone()));
                }
                continue;
            };
            let record = match &keys {
                Some(keys) if !newest => {
                    let again = seal(keys, &name, &credential, record)?;
                    changes.push(put(&name, &again));
                    is_older = true;
                    again
                }
                _ => record,
            };
            let used = used.get(&format!("{USED_KEY}{name}"));
            let used = used.and_then(|bytes| bytes.as_slice().try_into().ok());
            let used = used.map_or(0, i64::from_le_bytes);
            known.insert(name, Known::of(record, &credential, used));
        }
        let count = closed.len();
        if count > MAX_NAMED {
            closed.truncate(MAX_NAMED);
            closed.push(format!("and {} others", count - MAX_NAMED));
        }
        let closed = closed.join(", ");
        if count > 0 && forget {
            tracing::warn!("credentials that no key opens are forgotten: {closed}");
        } else if count > 0 {
            let of = if known.is_empty() {
                format!(
                    "the key is not the one that the master's credentials were set with ({closed})"
                )
            } else {
                format!(
                    "no key opens the master's credentials {closed}: they were set with one that is missing, or their records are damaged; --forget-credentials, once, forgets them"
                )
            };
            return Err(MasterError::Key(format!(
                "{of}; give that one by --credentials-key FILE or in WEIR_CREDENTIALS_KEY (a file may hold several, one in each line, the newest first)"
            )));
        }
        if !changes.is_empty() {
            records.store().write(&changes)?;
        }
        if is_older {
            tracing::info!("the stored credentials are now encrypted with the newest key");
        }
        Ok(Self {
            records,
            keys,
            known: Mutex::new(known),
            changes: tokio::sync::Mutex::default(),
            held: Mutex::default(),
        })
    }

    /// Keeps credentials, new ones or, with `replace`, in the place of others. To be run to its end.
    pub(crate) async fn set(
        &self,
        name: &CredentialName,
        new: Credential,
        replace: bool,
    ) -> Result<(), MasterError> {
        let keys = self.keys.as_ref().ok_or_else(|| {
            MasterError::Unready(
                "the master has no key to encrypt credentials with; start it with --credentials-key FILE (`umask 077; openssl rand -hex 32 > FILE`) or WEIR_CREDENTIALS_KEY".to_owned(),
            )
        })?;
        let _one_at_a_time = self.changes.lock().await;
        let before = self.known.lock().get(name).cloned();
        let (new, record, used_ns) = match before {
            Some(_) if !replace => {
                return Err(MasterError::Conflict(format!(
                    "there are credentials {name}; give them new keys with `weir credentials rotate {name}`"
                )));
            }
            None if replace => return Err(missing(name)),
            Some(before) => {
                let old = open(keys, name, &before.record).ok_or_else(|| closed(name))?;
                let new = new.in_place_of(&old.0).map_err(MasterError::Invalid)?;
                let record = Record {
                    revision: before.record.revision + 1,
                    changed_ns: now_ns(),
                    ..before.record
                };
                (new, record, before.used_ns)
            }
            None => {
                name.check_new()?;
                if self.known.lock().len() >= MAX_CREDENTIALS {
                    return Err(MasterError::Busy(format!(
                        "there are {MAX_CREDENTIALS} credentials, no more fit"
                    )));
                }
                let now = now_ns();
                let record = Record {
                    // Never one that somebody has from credentials of this name before.
                    revision: now.unsigned_abs(),
                    created_ns: now,
                    changed_ns: now,
                    ..Record::default()
                };
                (new, record, 0)
            }
        };
        new.check().map_err(MasterError::Invalid)?;
        let record = seal(keys, name, &new, record)?;
        self.records.write(vec![put(name, &record)]).await?;
        let known = Known::of(record, &new, used_ns);
        self.known.lock().insert(name.clone(), known);
        Ok(())
    }

    /// What is known of all, without secrets and without the datasets that use them.
    pub(crate) fn list(&self) -> Vec<v1::CredentialInfo> {
        let known = self.known.lock();
        let info = |(name, known): (&CredentialName, &Known)| v1::CredentialInfo {
            name: name.to_string(),
            kind: known.kind.to_owned(),
            endpoints: known.endpoints.clone(),
            datasets: Vec::new(),
            created_ns: known.record.created_ns,
            changed_ns: known.record.changed_ns,
            used_ns: known.used_ns,
        };
        known.iter().map(info).collect()
    }

    /// Forgets credentials that no dataset uses; `users` says which do. To be run to its end.
    pub(crate) async fn delete(
        &self,
        name: &CredentialName,
        users: impl FnOnce() -> Vec<String>,
    ) -> Result<(), MasterError> {
        let _one_at_a_time = self.changes.lock().await;
        let removed = {
            // Whoever makes a dataset holds them before it looks for them.
            let held = self.held.lock();
            let mut users = users();
            if held.contains_key(name) {
                users.push("one that is being made".to_owned());
            }
            if !users.is_empty() {
                return Err(MasterError::Conflict(format!(
                    "credentials {name} are used by dataset {}; delete that first, or give them new keys with `weir credentials rotate {name}`",
                    users.join(", ")
                )));
            }
            let removed = self.known.lock().remove(name);
            removed.ok_or_else(|| missing(name))?
        };
        let changes = [RECORD_KEY, USED_KEY].map(|key| Change::Delete(format!("{key}{name}")));
        let written = self.records.write(changes.to_vec()).await;
        if written.is_err() {
            self.known.lock().insert(name.clone(), removed);
        }
        written
    }

    /// Keeps the credentials that these sources name from being deleted, and checks that each source can be read with its
    /// own.
    pub(crate) fn hold(&self, specs: &[OriginSpec]) -> Result<Held<'_>, MasterError> {
        let names = specs.iter().filter_map(|spec| spec.credentials.as_deref());
        let names = names
            .map(str::parse)
            .collect::<Result<Vec<CredentialName>, _>>()?;
        {
            let mut held = self.held.lock();
            for name in &names {
                *held.entry(name.clone()).or_default() += 1;
            }
        }
        let held = Held {
            credentials: self,
            names,
        };
        for spec in specs {
            if let Some(name) = &spec.credentials {
                let name: CredentialName = name.parse()?;
                spec.check_credential(&self.open(&name)?)?;
            }
        }
        Ok(held)
    }

    /// The credentials themselves, with their revision.
    fn open(&self, name: &CredentialName) -> Result<Credential, MasterError> {
        let record = self
            .known
            .lock()
            .get(name)
            .map(|known| known.record.clone());
        let record = record.ok_or_else(|| missing(name))?;
        let keys = self.keys.as_ref().ok_or_else(|| closed(name))?;
        let (credential, _) = open(keys, name, &record).ok_or_else(|| closed(name))?;
        Ok(credential)
    }

    /// The credentials for a process that uses them, with their revision; `None` in their place if it has that one.
    pub(crate) async fn give(
        &self,
        name: &CredentialName,
        known_revision: u64,
    ) -> Result<(Option<Credential>, u64), MasterError> {
        let (revision, to_store) = {
            let mut known = self.known.lock();
            let known = known.get_mut(name).ok_or_else(|| missing(name))?;
            known.used_ns = now_ns();
            let is_later = known.used_ns - known.stored_used_ns >= USED_GRAIN_NS;
            if is_later {
                known.stored_used_ns = known.used_ns;
            }
            (known.record.revision, is_later.then_some(known.used_ns))
        };
        let given = if revision == known_revision {
            None
        } else {
            Some(self.open(name)?)
        };
        if let Some(used_ns) = to_store {
            let used = Change::Put(format!("{USED_KEY}{name}"), used_ns.to_le_bytes().to_vec());
            // That it is forgotten is nobody's error.
            if let Err(error) = self.records.write(vec![used]).await {
                tracing::warn!(%error, "when credentials were used last could not be stored");
            }
        }
        Ok((given, revision))
    }
}

/// The master's own listings.
#[async_trait]
impl CredentialSource for Credentials {
    async fn credential(&self, name: &CredentialName) -> Result<Arc<Credential>, CredentialError> {
        let given = self.give(name, 0).await;
        match given.map(|(given, _)| given) {
            Ok(Some(credential)) => Ok(Arc::new(credential)),
            Ok(None) | Err(MasterError::NotFound(_)) => Err(CredentialError::Denied {
                problem: "there are none".to_owned(),
                remedy: format!("make them with `weir credentials set {name}`"),
            }),
            Err(error) => Err(CredentialError::Unavailable(error.to_string())),
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut held = self.credentials.held.lock();
        for name in &self.names {
            if let Some(count) = held.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    held.remove(name);
                }
            }
        }
    }
}

fn put(name: &CredentialName, record: &Record) -> Change {
    Change::Put(format!("{RECORD_KEY}{name}"), record.encode_to_vec())
}

/// The record with this text.
fn seal(
    keys: &CredentialKeys,
    name: &CredentialName,
    credential: &Credential,
    record: Record,
) -> Result<Record, MasterError> {
    let text = Zeroizing::new(v1::Credential::from(credential).encode_to_vec());
    let sealed = keys.seal(name, record.revision, &text).ok_or_else(|| {
        MasterError::Unready("the system gives no random numbers; try again".to_owned())
    })?;
    Ok(Record {
        cipher: AES_256_GCM,
        nonce: sealed.nonce,
        sealed: sealed.text,
        ..record
    })
}

/// What a record holds, and whether the newest key has encrypted it.
fn open(
    keys: &CredentialKeys,
    name: &CredentialName,
    record: &Record,
) -> Option<(Credential, bool)> {
    if record.cipher != AES_256_GCM {
        return None;
    }
    let sealed = Sealed {
        nonce: record.nonce.clone(),
        text: record.sealed.clone(),
    };
    let (text, newest) = keys.open(name, record.revision, &sealed)?;
    let message = v1::Credential::decode(text.as_slice()).ok()?;
    Some((Credential::of_message(message)?, newest))
}

fn missing(name: &CredentialName) -> MasterError {
    MasterError::NotFound(format!(
        "there are no credentials {name}; make them with `weir credentials set {name}`"
    ))
}

fn closed(name: &CredentialName) -> MasterError {
    MasterError::Key(format!(
        "the credentials {name} cannot be decrypted; set them again"
    ))
}

#[cfg(test)]
mod tests;
