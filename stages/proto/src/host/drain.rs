//! When the output of a process that has ended comes no more.
//!
//! Its end is behind its output, and the exit overtakes both. An agent that has told of an exit and answers again and again since,
//! while nothing comes, will send no more. One that does not answer may only be slow, like all of its machine.

use std::time::{Duration, Instant};

/// How long after one question comes the next.
const ROUND: Duration = Duration::from_secs(1);
/// So many answers, and no output between.
const ANSWERS: u32 = 10;
/// So many questions, whatever came of them.
const QUESTIONS: u32 = 120;

/// What is seen of the output since the exit.
pub(super) struct Drain {
    /// When output came or was taken last.
    moved: Instant,
    asked: Instant,
    /// How many answers the agent had given by then.
    answers: u64,
    /// Since something moved.
    answered: u32,
    questions: u32,
}

/// What to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Wait,
    /// The agent is to be asked for a sign of life.
    Ask,
    /// It comes no more.
    GiveUp,
}

impl Drain {
    pub(super) fn new(now: Instant, answers: u64) -> Self {
        Drain {
            moved: now,
            asked: now,
            answers,
            answered: 0,
            questions: 0,
        }
    }

    /// `idle`: since when nothing has moved on any stream, `None` where bytes wait on this side; `answers`: how many questions the
    /// agent has answered by now.
    ///
    /// Streams are not judged one by one: one that was silent while the process ran is still open after it, and its end comes
    /// behind the data of the others.
    pub(super) fn look(&mut self, idle: Option<Instant>, answers: u64, now: Instant) -> Next {
        match idle {
            Some(idle) if idle <= self.moved => {}
            moved => {
                *self = Drain::new(now, answers);
                self.moved = moved.unwrap_or(now);
                return Next::Wait;
            }
        }
        if now.saturating_duration_since(self.asked) < ROUND {
            return Next::Wait;
        }
        self.asked = now;
        self.questions += 1;
        self.answered += u32::from(answers > self.answers);
        self.answers = answers;
        if self.answered > ANSWERS || self.questions > QUESTIONS {
            Next::GiveUp
        } else {
            Next::Ask
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After how many rounds output is given up: what is idle since which round, and the answers by then.
    fn rounds(seen: impl Fn(u32) -> (Option<u32>, u64)) -> Option<u32> {
        let begun = Instant::now();
        let at = |round| begun + ROUND * round;
        let mut drain = Drain::new(begun, 0);
        (1..1000).find(|&round| {
            let (idle, answers) = seen(round);
            let idle = idle.map(at);
            // Looks between do not count.
            let between = at(round) - ROUND / 2;
            assert_ne!(drain.look(idle, answers, between), Next::GiveUp);
            drain.look(idle, answers, at(round)) == Next::GiveUp
        })
    }

    #[test]
    fn row_46_output_is_given_up_when_the_agent_answers_and_nothing_comes() {
        // It answers each question.
        assert_eq!(rounds(|round| (Some(0), u64::from(round - 1))), Some(12));
        // It answers none, or says what was not asked.
        assert_eq!(rounds(|_| (Some(0), 0)), Some(121));
        assert_eq!(rounds(|round| (Some(0), u64::from(round) * 100)), Some(11));
        // Some output comes now and then, or waits here for a slow reader.
        assert_eq!(
            rounds(|round| (Some(round / 10 * 10), u64::from(round))),
            None
        );
        assert_eq!(rounds(|round| (None, u64::from(round))), None);
    }

    #[test]
    fn a_host_that_was_stopped_for_an_hour_has_waited_for_one_round() {
        let begun = Instant::now();
        let mut drain = Drain::new(begun, 0);
        let later = begun + Duration::from_secs(3600);
        assert_eq!(drain.look(Some(begun), 0, later), Next::Ask);
    }
}
