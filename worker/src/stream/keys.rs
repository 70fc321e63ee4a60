//! Keys for connections of the block stream, which were handed out over the control service.
//!
//! A key belongs to the caller that asked for it, known by its certificate, and to the address that it asked from. Keys are
//! kept in memory only: after a restart none is known, and clients ask again. The table has a limit for each caller and one
//! for all; where one is reached, the key that was not used for the longest goes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::Instant;
use weir_trust::{Caller, Peer, Role};
use weir_wire::{KEY_ID_LENGTH, KEY_LENGTH, Known, OpeningError, StreamKey, new_key};

/// What the table may hold, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyLimits {
    /// Keys of all.
    pub(super) total: usize,
    /// Keys of one caller, each for another address.
    pub(super) per_caller: usize,
    /// How long a key is kept without use.
    pub(super) idle: Duration,
    /// How long one is kept at most.
    pub(super) age: Duration,
}

impl Default for KeyLimits {
    fn default() -> Self {
        Self {
            total: 16_384,
            per_caller: 64,
            idle: Duration::from_mins(10),
            age: Duration::from_hours(1),
        }
    }
}

/// Whose a key is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Owner {
    role: Role,
    name: String,
    from: IpAddr,
}

impl Owner {
    fn is_same_caller(&self, other: &Self) -> bool {
        (self.role, &self.name) == (other.role, &other.name)
    }
}

struct Held {
    owner: Owner,
    peer: Arc<Peer>,
    secret: [u8; KEY_LENGTH],
    made: Instant,
    used: Instant,
}

/// A key as it is told to its caller.
pub(super) struct Issued {
    pub(super) id: [u8; KEY_ID_LENGTH],
    pub(super) secret: [u8; KEY_LENGTH],
    /// How long it is kept without use.
    pub(super) valid: Duration,
}

/// All keys that are valid.
pub(super) struct Keys {
    limits: KeyLimits,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    by_id: HashMap<[u8; KEY_ID_LENGTH], Held>,
    by_owner: HashMap<Owner, [u8; KEY_ID_LENGTH]>,
}

impl Keys {
    /// None yet.
    pub(super) fn new(limits: KeyLimits) -> Self {
        Self {
            limits,
            table: Mutex::default(),
        }
    }

    /// The key of a caller at an address: the one that it has, or a new one.
    pub(super) fn issue(&self, peer: &Arc<Peer>, from: IpAddr) -> Result<Issued, OpeningError> {
        let owner = Owner {
            role: peer.subject.role,
            name: peer.subject.name.to_string(),
            from: from.to_canonical(),
        };
        let (id, secret) = new_key()?;
        let now = Instant::now();
        let valid = self.limits.idle;
        let mut table = self.table.lock();
        if let Some(id) = table.by_owner.get(&owner).copied()
            && let Some(held) = table.by_id.get_mut(&id)
            && self.limits.keeps(held, now)
        {
            held.used = now;
            held.peer = peer.clone(); // its certificate may have been renewed
            let secret = held.secret;
            return Ok(Issued { id, secret, valid });
        }
        table.make_room(&owner, self.limits, now);
        let held = Held {
            owner: owner.clone(),
            peer: peer.clone(),
            secret,
            made: now,
            used: now,
        };
        table.by_id.insert(id, held);
        table.by_owner.insert(owner, id);
        Ok(Issued { id, secret, valid })
    }

    /// The key that somebody at an address names. It is used by that.
    pub(super) fn find(&self, id: &[u8], from: IpAddr) -> Result<Known<Caller>, OpeningError> {
        let from = from.to_canonical();
        let now = Instant::now();
        let mut table = self.table.lock();
        let held = <[u8; KEY_ID_LENGTH]>::try_from(id)
            .ok()
            .and_then(|id| table.by_id.get_mut(&id))
            .filter(|held| self.limits.keeps(held, now))
            .ok_or(OpeningError::UnknownKey)?;
        if held.owner.from != from {
            return Err(OpeningError::Refused(format!(
                "the key was given to {} at {}, and came from {from}; where addresses are translated on the way, run the worker with --stream tls",
                held.peer.subject, held.owner.from
            )));
        }
        held.used = now;
        let key = StreamKey::new(id, &held.secret).ok_or(OpeningError::UnknownKey)?;
        Ok(Known {
            key,
            client: held.peer.subject.to_string(),
            caller: Caller::Peer {
                peer: held.peer.clone(),
                from: Some(from),
            },
        })
    }
}

impl KeyLimits {
    /// Whether a key is valid still: as the certificate that it was asked for with.
    fn keeps(&self, held: &Held, now: Instant) -> bool {
        now.duration_since(held.used) < self.idle
            && now.duration_since(held.made) < self.age
            && SystemTime::now() < held.peer.expires
    }
}

impl Table {
    /// Makes room for a key of this owner, of whom there is none that is valid.
    fn make_room(&mut self, owner: &Owner, limits: KeyLimits, now: Instant) {
        if let Some(id) = self.by_owner.get(owner).copied() {
            self.remove(&id);
        }
        let own = |held: &Held| held.owner.is_same_caller(owner);
        if self.by_id.values().filter(|held| own(held)).count() >= limits.per_caller {
            self.remove_oldest(own);
        }
        if self.by_id.len() >= limits.total {
            let expired = |held: &Held| !limits.keeps(held, now);
            let gone = self.by_id.iter().filter(|(_, held)| expired(held));
            let gone: Vec<_> = gone.map(|(id, _)| *id).collect();
            for id in &gone {
                self.remove(id);
            }
            if gone.is_empty() {
                self.remove_oldest(|_| true);
            }
        }
    }

    fn remove_oldest(&mut self, among: impl Fn(&Held) -> bool) {
        let some = self.by_id.iter().filter(|(_, held)| among(held));
        if let Some(id) = some.min_by_key(|(_, held)| held.used).map(|(id, _)| *id) {
            self.remove(&id);
        }
    }

    fn remove(&mut self, id: &[u8; KEY_ID_LENGTH]) {
        if let Some(held) = self.by_id.remove(id) {
            self.by_owner.remove(&held.owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use weir_trust::Subject;

    use super::*;

    const HERE: &str = "10.0.0.1";

    fn peer(name: &str) -> Arc<Peer> {
        Arc::new(Peer {
            subject: Subject::new(Role::Mount, name.parse().unwrap()),
            addresses: Vec::new(),
            begins: SystemTime::UNIX_EPOCH,
            expires: SystemTime::now() + Duration::from_hours(24),
        })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn is_known(keys: &Keys, issued: &Issued, from: &str) -> bool {
        keys.find(&issued.id, ip(from)).is_ok()
    }

    fn keys(limits: KeyLimits) -> Keys {
        Keys::new(limits)
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_has_one_key_for_each_address_and_gets_it_again() {
        let keys = keys(KeyLimits::default());
        let issue = |name: &str, from: &str| keys.issue(&peer(name), ip(from)).unwrap();
        let first = issue("a", HERE);
        let again = issue("a", "::ffff:10.0.0.1");
        assert_eq!((first.id, first.secret), (again.id, again.secret));
        for other in [issue("a", "10.0.0.2"), issue("b", HERE)] {
            assert!(other.id != first.id && other.secret != first.secret);
        }
        let found = keys.find(&first.id, ip(HERE)).unwrap();
        assert_eq!(found.client, "mount a");
        assert!(found.caller.is_one_of(&[Role::Mount]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_of_no_use_from_elsewhere_and_after_its_time() {
        let limits = KeyLimits::default();
        let keys = keys(limits);
        let issued = keys.issue(&peer("a"), ip(HERE)).unwrap();
        let elsewhere = keys.find(&issued.id, ip("10.0.0.2")).err().unwrap();
        assert!(elsewhere.to_string().contains("--stream tls"));
        for unknown in [&[0; KEY_ID_LENGTH][..], &[], &[7; 5]] {
            let error = keys.find(unknown, ip(HERE)).err().unwrap();
            assert!(matches!(error, OpeningError::UnknownKey));
        }
        // Use keeps it, until it is too old.
        let pause = limits.idle.saturating_sub(Duration::from_secs(1));
        let mut uses = 0;
        while is_known(&keys, &issued, HERE) {
            tokio::time::advance(pause).await;
            uses += 1;
        }
        assert_eq!(uses, limits.age.as_secs().div_ceil(pause.as_secs()));
        let next = keys.issue(&peer("a"), ip(HERE)).unwrap();
        assert!(next.id != issued.id);
        tokio::time::advance(limits.idle).await;
        assert!(!is_known(&keys, &next, HERE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_ends_with_the_certificate_that_it_was_asked_for_with() {
        let keys = keys(KeyLimits::default());
        let ended = Arc::new(Peer {
            expires: SystemTime::now() - Duration::from_secs(1),
            ..(*peer("a")).clone()
        });
        let issued = keys.issue(&ended, ip(HERE)).unwrap();
        assert!(!is_known(&keys, &issued, HERE));
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_from_many_addresses_loses_its_own_keys_and_nobody_elses() {
        let keys = keys(KeyLimits {
            total: 6,
            per_caller: 3,
            ..KeyLimits::default()
        });
        let other = keys.issue(&peer("other"), ip(HERE)).unwrap();
        let mut own = Vec::new();
        for last in 0..10 {
            own.push(
                keys.issue(&peer("a"), ip(&format!("10.0.0.{last}")))
                    .unwrap(),
            );
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let known = |last: usize| is_known(&keys, &own[last], &format!("10.0.0.{last}"));
        assert!((0..7).all(|last| !known(last)) && (7..10).all(known));
        assert!(is_known(&keys, &other, HERE));
        // All together have a limit, too: here it is the other's turn to be the oldest.
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!((7..10).all(known));
        for name in ["b", "c", "d"] {
            keys.issue(&peer(name), ip(HERE)).unwrap();
        }
        assert_eq!(keys.table.lock().by_id.len(), 6);
        assert_eq!(keys.table.lock().by_owner.len(), 6);
        assert!(!is_known(&keys, &other, HERE));
    }
}
