//! Questions of one kind, and what was answered.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

use super::ANSWER_DEADLINE;

/// How long a question is with one who was given it, before another one is.
const GIVEN_FOR: Duration = Duration::from_millis(700);
/// Answers that are known; questions that are asked, and most of them at once.
const MAX_KNOWN: usize = 50_000;
const MAX_ASKED: usize = 4096;
const MAX_GIVEN: usize = 256;

/// What can be said to a question at once.
pub(super) enum Said<A> {
    Known(A),
    /// Nobody is there who would know, or there is no room for the question.
    Nothing,
    /// It is asked now.
    Asked,
    /// It was asked before.
    Later,
}

/// Questions, and what is known.
#[derive(Debug)]
pub(super) struct Questions<Q, A> {
    /// Each until it holds no more.
    known: HashMap<Q, (A, Instant)>,
    asked: HashMap<Q, Asked>,
}

impl<Q, A> Default for Questions<Q, A> {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            asked: HashMap::new(),
        }
    }
}

#[derive(Debug)]
struct Asked {
    /// When somebody asked it last.
    at: Instant,
    given: Option<Instant>,
}

impl<Q: Clone + Eq + Hash, A: Clone> Questions<Q, A> {
    /// What is known; if nothing is, and somebody is there who may know, that is asked for.
    pub(super) fn know(&mut self, question: &Q, is_there: bool) -> Said<A> {
        let now = Instant::now();
        let known = self.known.get(question).filter(|(_, until)| now < *until);
        if let Some((answer, _)) = known {
            return Said::Known(answer.clone());
        }
        if !is_there {
            return Said::Nothing;
        }
        if let Some(asked) = self.asked.get_mut(question) {
            asked.at = now;
            return Said::Later;
        }
        if self.asked.len() >= MAX_ASKED {
            return Said::Nothing;
        }
        let asked = Asked {
            at: now,
            given: None,
        };
        self.asked.insert(question.clone(), asked);
        Said::Asked
    }

    /// Takes an answer, which holds for a time. Only what was asked for is kept.
    pub(super) fn learn(&mut self, question: Q, answer: A, holds: Duration) {
        if self.asked.remove(&question).is_none() {
            return;
        }
        let now = Instant::now();
        if self.known.len() >= MAX_KNOWN {
            self.known.retain(|_, (_, until)| now < *until);
            if self.known.len() >= MAX_KNOWN {
                self.known.clear();
            }
        }
        self.known.insert(question, (answer, now + holds));
    }

    /// What is to be answered.
    pub(super) fn take(&mut self) -> Vec<Q> {
        let now = Instant::now();
        self.asked
            .retain(|_, asked| now - asked.at < ANSWER_DEADLINE);
        let waiting = self
            .asked
            .iter_mut()
            .filter(|(_, asked)| asked.given.is_none_or(|at| now - at >= GIVEN_FOR));
        let give = |(question, asked): (&Q, &mut Asked)| {
            asked.given = Some(now);
            question.clone()
        };
        waiting.take(MAX_GIVEN).map(give).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn answers_that_nobody_asked_for_leave_nothing_and_questions_find_a_bound() {
        let mut questions = Questions::default();
        questions.learn(1, "one", Duration::from_secs(1));
        assert!(questions.known.is_empty());
        for number in 0..2 * MAX_ASKED {
            questions.know(&number, true);
            questions.know(&number, false);
        }
        assert_eq!(questions.asked.len(), MAX_ASKED);
        for number in 0..MAX_ASKED {
            questions.learn(number, "known", Duration::from_secs(1));
        }
        assert!(questions.asked.is_empty());
        assert!(matches!(questions.know(&1, false), Said::Known("known")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_that_is_asked_again_is_not_given_up() {
        let mut questions = Questions::<_, ()>::default();
        questions.know(&1, true);
        tokio::time::sleep(ANSWER_DEADLINE / 2).await;
        assert!(matches!(questions.know(&1, true), Said::Later));
        tokio::time::sleep(ANSWER_DEADLINE / 2).await;
        assert_eq!(questions.take(), [1]);
        tokio::time::sleep(ANSWER_DEADLINE / 2).await;
        assert!(questions.take().is_empty());
        assert!(questions.asked.is_empty());
    }
}
