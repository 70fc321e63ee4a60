//! How many connections, handshakes or calls each caller has, so that one who has too many is refused and the others do not
//! notice.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::caller::Caller;
use crate::subject::Role;

/// For whom something is counted.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Counted {
    /// All who have certificates of this role and name.
    Peer(Role, String),
    /// The processes of a user of this machine.
    User(u32),
    /// All who connect from an address, or from this machine.
    Address(Option<IpAddr>),
}

impl Counted {
    /// For whom what this caller has is counted.
    pub fn of(caller: &Caller) -> Self {
        match caller {
            Caller::Peer { peer, .. } => {
                Self::Peer(peer.subject.role, peer.subject.name.to_string())
            }
            Caller::Local { uid } => Self::User(*uid),
            Caller::Anybody { from } => Self::Address(*from),
        }
    }
}

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(role, name) => write!(f, "{role} {name}"),
            Self::User(uid) => write!(f, "user {uid}"),
            Self::Address(Some(address)) => write!(f, "{address}"),
            Self::Address(None) => f.write_str("somebody"),
        }
    }
}

/// Places of one kind. Entries of callers who have none are removed, so there are no more entries than places taken.
#[derive(Clone)]
pub struct Places {
    what: &'static str,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    by_caller: HashMap<Counted, usize>,
}

/// Is counted until it is dropped.
pub struct Place {
    taken: Arc<Mutex<Taken>>,
    counted: Counted,
}

impl Places {
    /// None are taken. `what` they are is for messages.
    pub fn new(what: &'static str) -> Self {
        Self {
            what,
            taken: Arc::default(),
        }
    }

    /// A place beside the others of `counted`, of whom each may have so many, and all together. The error says who has how
    /// many.
    ///
    /// # Errors
    /// When it has as many as it may have, or all have.
    pub fn take(&self, counted: Counted, each: usize, all: usize) -> Result<Place, String> {
        let mut taken = self.taken.lock();
        let held = taken.by_caller.get(&counted).copied().unwrap_or(0);
        if held >= each || taken.all >= all {
            return Err(format!(
                "{counted} has {held} {} under way, of {each}; all have {}, of {all}",
                self.what, taken.all
            ));
        }
        taken.all += 1;
        taken.by_caller.insert(counted.clone(), held + 1);
        Ok(Place {
            taken: self.taken.clone(),
            counted,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock();
        taken.all -= 1;
        if let Some(held) = taken.by_caller.get_mut(&self.counted) {
            *held -= 1;
            if *held == 0 {
                taken.by_caller.remove(&self.counted);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_places_and_they_are_given_back() {
        let places = Places::new("calls");
        let take = |uid| places.take(Counted::User(uid), 2, 3);
        let (first, _second) = (take(1).unwrap(), take(1).unwrap());
        let why = take(1).err().unwrap();
        assert!(why.contains("user 1 has 2 calls under way, of 2"), "{why}");
        let third = take(2).unwrap();
        assert!(take(3).is_err(), "all are taken");
        drop((first, third));
        assert_eq!(places.taken.lock().by_caller.len(), 1);
        take(1).unwrap();
    }
}
