//! Misbehaviour on request.

use std::time::Duration;

use parking_lot::Mutex;
use rand::Rng;

/// What goes wrong with an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// This status with an S3 error document (`InternalError`, `SlowDown`, `AccessDenied`…).
    Status(u16, &'static str),
    /// The object was stored with a key of the customer's own (SSE-C), without which it is refused.
    WantsKey,
    /// The connection is reset instead of an answer.
    Reset,
    /// The answer begins this much later.
    Stall(Duration),
    /// The body stops for this long after so many bytes.
    StallBody(u64, Duration),
    /// The body comes with at most so many bytes a second.
    SlowBody(u64),
    /// The connection is closed after so many bytes of the body.
    Truncate(u64),
    /// A request for a range is answered with at most so many bytes of it, as a correct 206.
    ShortRange(u64),
    /// A request for a range is answered with the whole object and 200.
    IgnoreRange,
    /// One bit of the body is another one; headers tell of the right body.
    FlipBit,
    /// The object has another ETag than the listing said, and conditions are ignored.
    OtherEtag,
    /// The object comes unpacked by a service that means well: all of it, whatever range was asked for, in chunks and so
    /// many bytes longer.
    Unpacked(usize),
    /// The answer has so many bytes more than the object or its part, and says so.
    WrongLength(usize),
    /// The answer has no ETag, and conditions are ignored.
    NoEtag,
    /// Keys of a listing are not percent-encoded, whatever was asked for.
    RawKeys,
}

/// The requests that a rule is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Reads of objects.
    Get,
    /// Listings.
    List,
    /// Questions about objects: HEAD, and what is known of their parts.
    Head,
    /// All of these.
    All,
}

/// A fault, and when it happens.
#[derive(Clone, Debug)]
pub struct Rule {
    /// What happens.
    pub fault: Fault,
    /// To which requests.
    pub target: Target,
    /// Only to objects whose path holds this text.
    pub path: String,
    /// To which share of them, from 0 to 1.
    pub probability: f64,
    /// How often at most.
    pub times: usize,
}

impl Rule {
    /// The fault with every answer to a read.
    pub fn new(fault: Fault) -> Self {
        Self {
            fault,
            target: Target::Get,
            path: String::new(),
            probability: 1.0,
            times: usize::MAX,
        }
    }

    /// Only to these requests.
    #[must_use]
    pub fn target(self, target: Target) -> Self {
        Self { target, ..self }
    }

    /// Only to objects whose path holds `text`.
    #[must_use]
    pub fn path(self, text: &str) -> Self {
        Self {
            path: text.to_owned(),
            ..self
        }
    }

    /// Only to this share of the requests.
    #[must_use]
    pub fn probability(self, probability: f64) -> Self {
        Self {
            probability,
            ..self
        }
    }

    /// At most so often.
    #[must_use]
    pub fn times(self, times: usize) -> Self {
        Self { times, ..self }
    }
}

/// The rules in force. The first that fits a request decides.
#[derive(Debug, Default)]
pub struct Faults {
    rules: Mutex<Vec<(Rule, usize)>>,
}

impl Faults {
    /// Replaces all rules.
    pub fn set(&self, rules: impl IntoIterator<Item = Rule>) {
        *self.rules.lock() = rules.into_iter().map(|rule| (rule, 0)).collect();
    }

    /// The server behaves again.
    pub fn clear(&self) {
        self.rules.lock().clear();
    }

    /// How often each rule happened.
    pub fn happened(&self) -> Vec<usize> {
        self.rules.lock().iter().map(|(_, count)| *count).collect()
    }

    /// The fault of a request, if it has one.
    pub(crate) fn choose(&self, asked: Target, path: &str) -> Option<Fault> {
        let mut rules = self.rules.lock();
        for (rule, count) in rules.iter_mut() {
            if (rule.target == Target::All || rule.target == asked)
                && *count < rule.times
                && path.contains(&rule.path)
                && rand::rng().random_bool(rule.probability)
            {
                *count += 1;
                return Some(rule.fault.clone());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_fits_its_requests_as_often_as_it_says() {
        let faults = Faults::default();
        faults.set([
            Rule::new(Fault::Reset).path("b").times(1),
            Rule::new(Fault::FlipBit).target(Target::List),
        ]);
        assert_eq!(faults.choose(Target::Get, "/bucket/a"), Some(Fault::Reset));
        assert_eq!(faults.choose(Target::Get, "/bucket/a"), None);
        assert_eq!(faults.choose(Target::List, "/"), Some(Fault::FlipBit));
        assert_eq!(faults.happened(), [1, 1]);
        faults.clear();
        assert_eq!(faults.choose(Target::List, "/"), None);
    }
}
