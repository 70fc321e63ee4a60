//! Conditions of an object: what is true of it, since when, and why.
//!
//! The moment of a condition changes when its status does, and never else: whoever waits for it can tell how long it has been so.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use schemars::{Schema, SchemaGenerator, json_schema};

/// Longest message of a condition, in characters.
const MAX_MESSAGE: usize = 1024;

/// The schema of a list of conditions. The library's own is part of a feature with the schemas of all kinds, which takes longer to build
/// than the rest of the operator.
pub(super) fn list_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "description": "What is true of it, since when, and why.",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "reason", "message", "lastTransitionTime"],
            "properties": {
                "type": { "type": "string" },
                "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                "reason": { "type": "string" },
                "message": { "type": "string" },
                "lastTransitionTime": { "type": "string", "format": "date-time" },
                "observedGeneration": { "type": "integer", "format": "int64" },
            },
        },
    })
}

/// The schema of a moment.
pub(super) fn time_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "date-time", "nullable": true })
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Is {
    True,
    False,
    /// It cannot be told now.
    Unknown,
}

impl Is {
    fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// The conditions of an object as one look found them, put together with those of the look before.
#[derive(Debug)]
pub(crate) struct Conditions {
    before: Vec<Condition>,
    now: Vec<Condition>,
    generation: Option<i64>,
    at: Timestamp,
}

impl Conditions {
    pub(crate) fn new(before: &[Condition], generation: Option<i64>, at: Timestamp) -> Self {
        Self {
            before: before.to_vec(),
            now: Vec::new(),
            generation,
            at,
        }
    }

    /// Sets one. `reason` is one word in CamelCase, `message` one sentence.
    pub(crate) fn set(&mut self, type_: &str, is: Is, reason: &str, message: impl Into<String>) {
        let message: String = message.into();
        let message: String = message.chars().take(MAX_MESSAGE).collect();
        let before = self.before.iter().find(|before| before.type_ == type_);
        let since = before
            .filter(|before| before.status == is.as_str())
            .map_or(Time(self.at), |before| before.last_transition_time.clone());
        self.now.retain(|condition| condition.type_ != type_);
        self.now.push(Condition {
            last_transition_time: since,
            message,
            observed_generation: self.generation,
            reason: reason.to_owned(),
            status: is.as_str().to_owned(),
            type_: type_.to_owned(),
        });
    }

    /// Keeps one as it was.
    pub(crate) fn keep(&mut self, type_: &str) {
        let before = self.before.iter().find(|before| before.type_ == type_);
        if let Some(before) = before.cloned()
            && self.get(type_).is_none()
        {
            self.now.push(before);
        }
    }

    pub(crate) fn get(&self, type_: &str) -> Option<&Condition> {
        self.now.iter().find(|condition| condition.type_ == type_)
    }

    /// Those whose status or reason is another than before.
    pub(crate) fn changed(&self) -> impl Iterator<Item = &Condition> {
        self.now.iter().filter(|now| {
            let before = self.before.iter().find(|before| before.type_ == now.type_);
            before.is_none_or(|before| before.status != now.status || before.reason != now.reason)
        })
    }

    pub(crate) fn into_vec(self) -> Vec<Condition> {
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_its_moment_while_its_status_stays() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut first = Conditions::new(&[], Some(1), at(10));
        first.set("Ready", Is::False, "Listing", "a");
        let first = first.into_vec();
        let mut second = Conditions::new(&first, Some(2), at(20));
        second.set("Ready", Is::False, "AccessDenied", "b".repeat(5000));
        assert_eq!(second.changed().count(), 1, "the reason is another");
        let second = second.into_vec();
        assert_eq!(second[0].last_transition_time.0, at(10));
        assert_eq!(second[0].message.len(), MAX_MESSAGE);
        let mut third = Conditions::new(&second, Some(2), at(30));
        third.set("Ready", Is::True, "Ready", "");
        assert_eq!(third.into_vec()[0].last_transition_time.0, at(30));
        let mut fourth = Conditions::new(&second, Some(2), at(40));
        fourth.keep("Ready");
        fourth.keep("Other");
        assert_eq!(fourth.changed().count(), 0);
        assert_eq!(fourth.into_vec(), second);
    }
}
