//! Of which job a pod is: somebody asks who has been told only the pod's name, and somebody else knows.
//!
//! A node plugin may not ask Kubernetes of pods: whoever may read pods reads the secrets in them, and a plugin runs on each node.
//! So it asks here, and the operator, which may, comes by and answers. While no operator is there nobody waits for one.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use weir_proto::v1;

/// Longest wait for an answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);
/// How long those who answer wait here for a question; they have 10 s.
const POLL: Duration = Duration::from_secs(8);
/// How often those look who wait: one who was given a question may have died.
const LOOK: Duration = Duration::from_millis(300);
/// How long after somebody came by somebody is believed to be there.
const THERE_FOR: Duration = Duration::from_secs(20);
/// How long a question is with one who was given it, before another one is.
const GIVEN_FOR: Duration = Duration::from_millis(700);
/// Pods that are known, and for how long; pods that are asked for, and most of one answer.
const MAX_KNOWN: usize = 50_000;
const KNOWN_FOR: Duration = Duration::from_hours(1);
const MAX_ASKED: usize = 4096;
const MAX_GIVEN: usize = 256;
/// Longest namespace, name or uid, in bytes.
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
    /// By the pod's uid; an empty job is none.
    known: HashMap<String, (String, Instant)>,
    asked: HashMap<String, Question>,
    polled: Option<Instant>,
}

/// What is known of a pod at once.
enum Said {
    /// Its job, empty if it has none.
    Job(String),
    /// Nobody is there who would know.
    Nothing,
    /// An answer may come.
    Later,
}

#[derive(Debug)]
struct Question {
    pod: v1::Pod,
    at: Instant,
    given: Option<Instant>,
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
        let deadline = Instant::now() + ANSWER_DEADLINE;
        loop {
            let mut answered = std::pin::pin!(self.answered.notified());
            answered.as_mut().enable();
            match self.known_or_ask(pod) {
                Said::Job(job) => return Some(job),
                Said::Nothing => return None,
                Said::Later => timeout_at(deadline, answered).await.ok()?,
            }
        }
    }

    /// What is known; if nothing is, and somebody may know, that is asked for.
    fn known_or_ask(&self, pod: &v1::Pod) -> Said {
        let now = Instant::now();
        let mut state = self.state.lock();
        let known = state.known.get(&pod.uid);
        if let Some((job, _)) = known.filter(|(_, at)| now - *at < KNOWN_FOR) {
            return Said::Job(job.clone());
        }
        let is_there = state.polled.is_some_and(|at| now - at < THERE_FOR);
        if !is_there || (state.asked.len() >= MAX_ASKED && !state.asked.contains_key(&pod.uid)) {
            return Said::Nothing;
        }
        state.asked.entry(pod.uid.clone()).or_insert_with(|| {
            self.asked.notify_one();
            Question {
                pod: pod.clone(),
                at: now,
                given: None,
            }
        });
        Said::Later
    }

    /// Takes answers, and gives what is asked for.
    pub(crate) async fn exchange(&self, known: Vec<v1::PodJob>) -> Vec<v1::Pod> {
        self.learn(known);
        let deadline = Instant::now() + POLL;
        loop {
            let asked = self.take();
            let now = Instant::now();
            if !asked.is_empty() || now >= deadline {
                return asked;
            }
            let _ = timeout_at(deadline.min(now + LOOK), self.asked.notified()).await;
        }
    }

    fn learn(&self, known: Vec<v1::PodJob>) {
        if known.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut state = self.state.lock();
        for answer in known {
            let Some(pod) = answer.pod else { continue };
            // Only what was asked for is kept.
            if state.asked.remove(&pod.uid).is_none() {
                continue;
            }
            if state.known.len() >= MAX_KNOWN {
                state.known.retain(|_, (_, at)| now - *at < KNOWN_FOR);
                if state.known.len() >= MAX_KNOWN {
                    state.known.clear();
                }
            }
            state.known.insert(pod.uid, (answer.job, now));
        }
        drop(state);
        self.answered.notify_waiters();
    }

    fn take(&self) -> Vec<v1::Pod> {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.polled = Some(now);
        state
            .asked
            .retain(|_, question| now - question.at < ANSWER_DEADLINE);
        let waiting = state
            .asked
            .values_mut()
            .filter(|question| question.given.is_none_or(|at| now - at >= GIVEN_FOR));
        let give = |question: &mut Question| {
            question.given = Some(now);
            question.pod.clone()
        };
        waiting.take(MAX_GIVEN).map(give).collect()
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

    fn is_of(uid: &str, job: &str) -> v1::PodJob {
        v1::PodJob {
            pod: Some(pod(uid)),
            job: job.to_owned(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_finds_who_answers_it_and_is_asked_once() {
        let pods = Pods::default();
        let answering = async {
            let asked = pods.exchange(Vec::new()).await;
            assert_eq!(asked, [pod("u")]);
            pods.exchange(vec![is_of("u", "job")]).await
        };
        let asking = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let asked = pod("u");
            let both = tokio::join!(pods.job_of(&asked), pods.job_of(&asked));
            assert_eq!(both, (Some("job".to_owned()), Some("job".to_owned())));
            assert_eq!(pods.job_of(&asked).await.as_deref(), Some("job"));
        };
        let (more, ()) = tokio::join!(answering, asking);
        assert!(more.is_empty(), "it is known");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_one_who_is_not_there_nor_long_for_one_who_is_silent() {
        let pods = Pods::default();
        let began = Instant::now();
        assert_eq!(pods.job_of(&pod("u")).await, None);
        assert_eq!(
            began.elapsed(),
            Duration::ZERO,
            "no operator has ever come by"
        );
        pods.exchange(Vec::new()).await;
        let began = Instant::now();
        assert_eq!(pods.job_of(&pod("u")).await, None);
        assert_eq!(began.elapsed(), ANSWER_DEADLINE);
        tokio::time::sleep(THERE_FOR).await;
        let began = Instant::now();
        assert_eq!(pods.job_of(&pod("u")).await, None);
        assert_eq!(began.elapsed(), Duration::ZERO);
        let asked = pods.exchange(Vec::new()).await;
        assert!(asked.is_empty(), "nobody waits for the answer any more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_that_one_does_not_answer_is_given_to_the_next() {
        let pods = Pods::default();
        pods.exchange(Vec::new()).await;
        let silent = pods.exchange(Vec::new());
        let asking = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            pods.job_of(&pod("u")).await
        };
        let other = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let asked = pods.exchange(Vec::new()).await;
            assert_eq!(asked, [pod("u")]);
            pods.learn(vec![is_of("u", "")]);
        };
        let (given, job, ()) = tokio::join!(silent, asking, other);
        assert_eq!((given.len(), job.as_deref()), (1, Some("")));
    }

    #[tokio::test(start_paused = true)]
    async fn answers_that_nobody_asked_for_and_questions_without_a_pod_leave_nothing() {
        let pods = Pods::default();
        pods.exchange(vec![is_of("u", "job")]).await;
        assert!(pods.state.lock().known.is_empty());
        for bad in [pod(""), pod(&"u".repeat(300)), v1::Pod::default()] {
            assert_eq!(pods.job_of(&bad).await, None);
        }
        let many = (0..2 * MAX_ASKED).map(|number| pod(&number.to_string()));
        for pod in many {
            pods.known_or_ask(&pod);
        }
        assert_eq!(pods.state.lock().asked.len(), MAX_ASKED);
    }
}
