//! What a pod says of its wait, and the gate that it gets for that.

use std::time::Duration;

use serde_json::{Value, json};
use weir_core::dataset::Patience;

use crate::json_patch::JsonPatch;
use crate::objects::{GATE, GATED_LABEL, TIMEOUT_ANNOTATION, WAIT_ANNOTATION};

/// How long a pod waits that does not say it.
const TIMEOUT: Duration = Duration::from_mins(30);

/// What a pod waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wait {
    /// Share of each of its datasets that is to be cached, in percent: 1 to 100.
    pub(crate) percent: u64,
    /// How long it waits at most, from when it was made.
    pub(crate) timeout: Duration,
}

/// An annotation that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WaitError {
    #[error(
        "annotation {WAIT_ANNOTATION}: {0:?} is no share; write a whole percentage from 1% to 100%, as in \"95%\""
    )]
    Share(String),
    #[error("annotation {TIMEOUT_ANNOTATION}: {0}")]
    Timeout(String),
}

impl Wait {
    /// What the annotations of an object ask for, if they ask for it.
    pub(crate) fn of(annotations: &Value) -> Result<Option<Self>, WaitError> {
        let Some(share) = annotations[WAIT_ANNOTATION].as_str() else {
            return Ok(None);
        };
        let wrong = || WaitError::Share(share.chars().take(32).collect());
        let number = share.trim().strip_suffix('%').ok_or_else(wrong)?;
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let percent = number.parse().map_err(|_| wrong())?;
        if !(1..=100).contains(&percent) {
            return Err(wrong());
        }
        let timeout = match annotations[TIMEOUT_ANNOTATION].as_str() {
            None => TIMEOUT,
            Some(text) => {
                let text: String = text.trim().chars().take(32).collect();
                let patience = text.parse::<Patience>().map_err(WaitError::Timeout)?;
                Duration::from_secs(patience.0.into())
            }
        };
        Ok(Some(Self { percent, timeout }))
    }
}

/// Where the gate is among those of a pod.
pub(crate) fn gate_of(pod: &Value) -> Option<usize> {
    let gates = pod["spec"]["schedulingGates"].as_array()?;
    gates.iter().position(|gate| gate["name"] == GATE)
}

/// The changes by which a new pod waits; none if it does not. `reads` tells whether it reads any dataset.
///
/// A pod that brings the gate with it gets the label, so that it is found and let go.
pub(crate) fn close(
    pod: &Value,
    reads: impl FnOnce() -> bool,
) -> Result<Option<JsonPatch>, WaitError> {
    let metadata = &pod["metadata"];
    let wait = Wait::of(&metadata["annotations"])?;
    let mut changes = JsonPatch::default();
    let has_gate = gate_of(pod).is_some();
    if !has_gate {
        if wait.is_none() || pod["spec"]["nodeName"].is_string() || !reads() {
            return Ok(None);
        }
        let gate = json!({ "name": GATE });
        if pod["spec"]["schedulingGates"].is_array() {
            changes.add("/spec/schedulingGates/-", gate);
        } else {
            changes.add("/spec/schedulingGates", json!([gate]));
        }
    }
    if metadata["labels"][GATED_LABEL].is_null() {
        changes.set(pod, "labels", GATED_LABEL, "true");
    }
    Ok(Some(changes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json_patch::applied;

    fn wait(share: &str, timeout: Option<&str>) -> Result<Option<Wait>, WaitError> {
        let mut annotations = json!({ WAIT_ANNOTATION: share });
        if let Some(timeout) = timeout {
            annotations[TIMEOUT_ANNOTATION] = json!(timeout);
        }
        Wait::of(&annotations)
    }

    #[test]
    fn a_wait_is_a_percentage_and_perhaps_a_time() {
        let of = |percent, timeout| Ok(Some(Wait { percent, timeout }));
        assert_eq!(wait("95%", None), of(95, TIMEOUT));
        assert_eq!(wait(" 100% ", Some("2h")), of(100, Duration::from_hours(2)));
        assert_eq!(Wait::of(&json!({ TIMEOUT_ANNOTATION: "1m" })), Ok(None));
        assert_eq!(Wait::of(&Value::Null), Ok(None));
        for bad in [
            "",
            "95",
            "0%",
            "101%",
            "9.5%",
            "+9%",
            "all",
            "99999999999999999999%",
        ] {
            let error = wait(bad, None).unwrap_err().to_string();
            assert!(error.contains("from 1% to 100%"), "{bad}: {error}");
        }
        let error = wait(&"9".repeat(9000), None).unwrap_err().to_string();
        assert!(error.len() < 300, "{error}");
        for bad in ["", "0s", "25h", "soon"] {
            let error = wait("95%", Some(bad)).unwrap_err().to_string();
            assert!(
                error.contains("wait-timeout") && error.contains("10m"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_pod_that_reads_data_and_asks_for_it_gets_a_gate_beside_its_own() {
        let own = json!([{ "name": "kueue.x-k8s.io/admission" }]);
        let annotations = json!({ WAIT_ANNOTATION: "95%" });
        for spec in [json!({}), json!({ "schedulingGates": own })] {
            let pod = json!({ "metadata": { "annotations": annotations }, "spec": spec });
            let changes = close(&pod, || true).unwrap().unwrap();
            let waits = applied(&pod, &changes.into_value()).unwrap();
            assert_eq!(waits["metadata"]["labels"][GATED_LABEL], "true");
            let index = gate_of(&waits).unwrap();
            assert_eq!(spec["schedulingGates"].is_array(), index == 1);
            assert_eq!(
                close(&pod, || false),
                Ok(None),
                "there is nothing to wait for"
            );
            // The apiserver may ask again.
            let again = close(&waits, || true).unwrap().unwrap();
            assert!(again.is_empty(), "{again:?}");
        }
        let bound = json!({
            "metadata": { "annotations": annotations }, "spec": { "nodeName": "n" },
        });
        assert_eq!(close(&bound, || true), Ok(None));
        assert_eq!(
            close(&json!({ "metadata": {}, "spec": {} }), || true),
            Ok(None)
        );
    }

    #[test]
    fn a_pod_that_brings_the_gate_is_found_by_its_label() {
        let pod = json!({ "metadata": {}, "spec": { "schedulingGates": [{ "name": GATE }] } });
        let changes = close(&pod, || false).unwrap().unwrap();
        let pod = applied(&pod, &changes.into_value()).unwrap();
        assert_eq!(pod["metadata"]["labels"][GATED_LABEL], "true");
        assert_eq!(pod["spec"]["schedulingGates"], json!([{ "name": GATE }]));
    }
}
