//! What Kubernetes knows of pods: of which job one is, and whether pods of a node use a dataset.
//!
//! A node plugin may not ask Kubernetes of pods: whoever may read pods reads the secrets in them, and a plugin runs on each node.
//! Nor is it asked what its pods use, since it would be given credentials by its own word. So whoever needs to know asks here, and
//! the operator, which may, comes by and answers. While no operator is there nobody waits for one.

mod questions;

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use weir_proto::v1;

use self::questions::{Questions, Said};

/// Longest wait for an answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);
/// How long those who answer wait here for a question; they have 10 s.
const POLL: Duration = Duration::from_secs(8);
/// How often those look who wait: one who was given a question may have died.
const LOOK: Duration = Duration::from_millis(300);
/// How long after somebody came by somebody is believed to be there.
const THERE_FOR: Duration = Duration::from_secs(20);
/// How long answers hold: a pod is of one job for ever, may end soon after it was seen, and may come soon after it was not.
const JOB_FOR: Duration = Duration::from_hours(1);
const USED_FOR: Duration = Duration::from_mins(10);
const UNUSED_FOR: Duration = Duration::from_secs(1);
/// Longest namespace, name or uid of a pod, in bytes.
const MAX_TEXT: usize = 256;

/// What is known of pods.
#[derive(Debug, Default)]
pub(crate) struct Pods {
    state: Mutex<State>,
    answered: Notify,
    asked: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// An empty job is none.
    jobs: Questions<v1::Pod, String>,
    uses: Questions<v1::NodeUse, bool>,
    polled: Option<Instant>,
}

impl Pods {
    /// The job that a pod is of, empty if of none; `None` if nobody says it in time.
    pub(crate) async fn job_of(&self, pod: &v1::Pod) -> Option<String> {
        let texts = [&pod.namespace, &pod.name, &pod.uid];
        if texts
            .iter()
            .any(|text| text.is_empty() || text.len() > MAX_TEXT)
        {
            return None;
        }
        self.ask(|state, is_there| state.jobs.know(pod, is_there))
            .await
    }

    /// Whether pods of a node use a dataset; `None` if nobody says it in time.
    pub(crate) async fn uses(&self, asked: &v1::NodeUse) -> Option<bool> {
        self.ask(|state, is_there| state.uses.know(asked, is_there))
            .await
    }

    /// What is known, or becomes known in time.
    async fn ask<A>(&self, know: impl Fn(&mut State, bool) -> Said<A>) -> Option<A> {
        let deadline = Instant::now() + ANSWER_DEADLINE;
        loop {
            let mut answered = std::pin::pin!(self.answered.notified());
            answered.as_mut().enable();
            let said = {
                let mut state = self.state.lock();
                let is_there = state.polled.is_some_and(|at| at.elapsed() < THERE_FOR);
                know(&mut state, is_there)
            };
            match said {
                Said::Known(answer) => return Some(answer),
                Said::Nothing => return None,
                Said::Asked => self.asked.notify_one(),
                Said::Later => {}
            }
            timeout_at(deadline, answered).await.ok()?;
        }
    }

    /// Takes answers, and gives what is asked for.
    pub(crate) async fn exchange(&self, known: v1::ExchangePodsRequest) -> v1::ExchangePodsReply {
        self.learn(known);
        let deadline = Instant::now() + POLL;
        loop {
            let asked = self.take();
            let now = Instant::now();
            let is_empty = asked.asked.is_empty() && asked.asked_uses.is_empty();
            if !is_empty || now >= deadline {
                return asked;
            }
            let _ = timeout_at(deadline.min(now + LOOK), self.asked.notified()).await;
        }
    }

    fn learn(&self, known: v1::ExchangePodsRequest) {
        if known.known.is_empty() && known.known_uses.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        for answer in known.known {
            if let Some(pod) = answer.pod {
                state.jobs.learn(pod, answer.job, JOB_FOR);
            }
        }
        for answer in known.known_uses {
            if let Some(of) = answer.r#use {
                let holds = if answer.used { USED_FOR } else { UNUSED_FOR };
                state.uses.learn(of, answer.used, holds);
            }
        }
        drop(state);
        self.answered.notify_waiters();
    }

    fn take(&self) -> v1::ExchangePodsReply {
        let mut state = self.state.lock();
        state.polled = Some(Instant::now());
        v1::ExchangePodsReply {
            asked: state.jobs.take(),
            asked_uses: state.uses.take(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str) -> v1::Pod {
        v1::Pod {
            namespace: "team-a".to_owned(),
            name: format!("name-of-{uid}"),
            uid: uid.to_owned(),
        }
    }

    fn on_node(node: &str) -> v1::NodeUse {
        v1::NodeUse {
            node: node.to_owned(),
            dataset: "team-a/x".to_owned(),
            namespaces: vec!["team-a".to_owned()],
        }
    }

    fn is_of(uid: &str, job: &str) -> v1::ExchangePodsRequest {
        let known = v1::PodJob {
            pod: Some(pod(uid)),
            job: job.to_owned(),
        };
        v1::ExchangePodsRequest {
            known: vec![known],
            known_uses: Vec::new(),
        }
    }

    fn is_used(node: &str, used: bool) -> v1::ExchangePodsRequest {
        let known = v1::KnownUse {
            r#use: Some(on_node(node)),
            used,
        };
        v1::ExchangePodsRequest {
            known: Vec::new(),
            known_uses: vec![known],
        }
    }

    fn nothing() -> v1::ExchangePodsRequest {
        v1::ExchangePodsRequest::default()
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_finds_who_answers_it_and_is_asked_once() {
        let pods = Pods::default();
        let answering = async {
            let asked = pods.exchange(nothing()).await;
            assert_eq!(asked.asked, [pod("u")]);
            assert!(asked.asked_uses.is_empty());
            pods.exchange(is_of("u", "job")).await
        };
        let asking = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let asked = pod("u");
            let both = tokio::join!(pods.job_of(&asked), pods.job_of(&asked));
            assert_eq!(both, (Some("job".to_owned()), Some("job".to_owned())));
            assert_eq!(pods.job_of(&asked).await.as_deref(), Some("job"));
        };
        let (more, ()) = tokio::join!(answering, asking);
        assert_eq!(more, v1::ExchangePodsReply::default(), "it is known");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_one_who_is_not_there_nor_long_for_one_who_is_silent() {
        let pods = Pods::default();
        let began = Instant::now();
        assert_eq!(pods.job_of(&pod("u")).await, None);
        assert_eq!(pods.uses(&on_node("n")).await, None);
        assert_eq!(
            began.elapsed(),
            Duration::ZERO,
            "no operator has ever come by"
        );
        pods.exchange(nothing()).await;
        let began = Instant::now();
        assert_eq!(pods.job_of(&pod("u")).await, None);
        assert_eq!(began.elapsed(), ANSWER_DEADLINE);
        tokio::time::sleep(THERE_FOR).await;
        let began = Instant::now();
        assert_eq!(pods.job_of(&pod("u")).await, None);
        assert_eq!(began.elapsed(), Duration::ZERO);
        let asked = pods.exchange(nothing()).await;
        assert!(
            asked.asked.is_empty(),
            "nobody waits for the answer any more"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_that_one_does_not_answer_is_given_to_the_next() {
        let pods = Pods::default();
        pods.exchange(nothing()).await;
        let silent = pods.exchange(nothing());
        let asking = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            pods.job_of(&pod("u")).await
        };
        let other = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let asked = pods.exchange(nothing()).await;
            assert_eq!(asked.asked, [pod("u")]);
            pods.learn(is_of("u", ""));
        };
        let (given, job, ()) = tokio::join!(silent, asking, other);
        assert_eq!((given.asked.len(), job.as_deref()), (1, Some("")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_ends_or_comes_is_noticed_and_other_namespaces_are_another_question() {
        let pods = Pods::default();
        let ask = async |answer: bool| {
            let node = on_node("n");
            let asking = pods.uses(&node);
            let answering = async {
                let asked = pods.exchange(nothing()).await;
                assert_eq!(asked.asked_uses, [on_node("n")]);
                pods.learn(is_used("n", answer));
            };
            pods.exchange(nothing()).await;
            tokio::join!(asking, answering).0
        };
        assert_eq!(ask(false).await, Some(false));
        assert_eq!(pods.uses(&on_node("n")).await, Some(false));
        tokio::time::sleep(UNUSED_FOR).await;
        assert_eq!(ask(true).await, Some(true));
        let began = Instant::now();
        tokio::time::sleep(USED_FOR.saturating_sub(UNUSED_FOR)).await;
        assert_eq!(pods.uses(&on_node("n")).await, Some(true));
        let mut other = on_node("n");
        other.namespaces.clear();
        assert_eq!(pods.uses(&other).await, None, "that was not answered");
        tokio::time::sleep_until(began + USED_FOR).await;
        assert_eq!(ask(false).await, Some(false));
    }

    #[tokio::test(start_paused = true)]
    async fn questions_without_a_pod_are_asked_of_nobody() {
        let pods = Pods::default();
        for bad in [pod(""), pod(&"u".repeat(300)), v1::Pod::default()] {
            let (job, asked) = tokio::join!(pods.job_of(&bad), pods.exchange(nothing()));
            assert_eq!((job, asked), (None, v1::ExchangePodsReply::default()));
        }
    }
}
