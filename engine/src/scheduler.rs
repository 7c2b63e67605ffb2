//! Which sequences run in the next step: continuous batching as plain code.
//!
//! Owns the order of waiting and running sequences, the batch bound, the token budget of a step and the KV pages that
//! are spoken for. Leaves tensors, texts, threads and time to the runner, which feeds [`Event`]s and carries out [`Plan`]s.
//! The same events give the same plans: [`replay`] checks a recorded live run.
//!
//! The rules, in order: who came first joins first, as soon as a slot and all the KV pages that it can ever need are free;
//! a sequence that must run alone waits for an empty batch, and nobody overtakes it; every running sequence whose prompt is
//! computed decodes one token in every step; what is left of the step's budget goes to prompts, first come first served.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::SequenceId;

/// What bounds a step and a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Sequences that run at once.
    pub batch_max: u32,
    /// Prompt tokens in one step, so that a long prompt delays the others' next tokens by a bounded time. Decoded tokens
    /// count against it, but one prompt token is always allowed.
    pub step_tokens: u32,
    /// KV pages of the engine.
    pub pages: u32,
    /// Tokens of a page.
    pub page_tokens: u32,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A sequence came in.
    Submitted {
        /// Which.
        id: SequenceId,
        /// Tokens to compute before it can go on: its prompt, and what an earlier attempt had generated.
        prompt_tokens: u32,
        /// Tokens that it can grow to, prompt included.
        tokens_max: u32,
        /// Whether it must have no neighbour.
        alone: bool,
    },
    /// Somebody wants no more of it.
    Cancelled {
        /// Which.
        id: SequenceId,
    },
    /// It is finished, or failed.
    Ended {
        /// Which.
        id: SequenceId,
    },
}

/// One step: a forward pass over these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Sequences that join with this step, in the order in which they came.
    pub joined: Vec<SequenceId>,
    /// What to compute, in the order of joining. Empty: there is nothing to do.
    pub work: Vec<Work>,
}

/// A sequence's part in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Whose.
    pub id: SequenceId,
    /// How many tokens go through the model.
    pub tokens: u32,
    /// Whether the last of them gives the next token: true for a decode and for a prompt's last chunk.
    pub samples: bool,
}

/// One line of a recorded run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// The scheduler was told.
    Event(Event),
    /// The scheduler was asked, and answered.
    Plan(Plan),
}

/// Keeps what a live scheduler was told and what it planned. Cloning shares it. Meant for tests and bug reports: it grows
/// with the run.
#[derive(Clone, Debug, Default)]
pub struct Recording(Arc<Mutex<Option<Limits>>>, Arc<Mutex<Vec<Record>>>);

impl Recording {
    /// The limits under which the run was recorded; `None` before the engine starts.
    pub fn limits(&self) -> Option<Limits> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All lines so far.
    pub fn records(&self) -> Vec<Record> {
        self.1.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn begin(&self, limits: Limits) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(limits);
    }

    fn push(&self, record: Record) {
        self.1.lock().unwrap_or_else(PoisonError::into_inner).push(record);
    }
}

/// A replayed plan differs from the recorded one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the recording planned {recorded:?}, the replay {replayed:?}")]
pub struct Divergence {
    /// Index into the records.
    pub line: usize,
    /// What the live run did.
    pub recorded: Plan,
    /// What the same events give now.
    pub replayed: Plan,
}

/// Feeds recorded events to a new scheduler and compares every plan.
pub fn replay(limits: Limits, records: &[Record]) -> Result<(), Divergence> {
    let mut scheduler = Scheduler::new(limits, None);
    for (line, record) in records.iter().enumerate() {
        match record {
            Record::Event(event) => {
                scheduler.feed(event.clone());
            }
            Record::Plan(recorded) => {
                let replayed = scheduler.plan();
                if replayed != *recorded {
                    return Err(Divergence { line, recorded: recorded.clone(), replayed });
                }
            }
        }
    }
    Ok(())
}

/// The state: who waits, who runs.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    waiting: VecDeque<Waiting>,
    running: Vec<Running>,
    pages_free: u32,
    recording: Option<Recording>,
}

#[derive(Debug)]
struct Waiting {
    id: SequenceId,
    prompt_tokens: u32,
    pages: u32,
    alone: bool,
}

#[derive(Debug)]
struct Running {
    id: SequenceId,
    /// Prompt tokens that no plan has taken yet.
    prompt_left: u32,
    pages: u32,
    alone: bool,
}

impl Scheduler {
    /// An idle scheduler. A limit of 0 counts as 1: nothing could ever run otherwise.
    pub fn new(limits: Limits, recording: Option<Recording>) -> Scheduler {
        let limits = Limits {
            batch_max: limits.batch_max.max(1),
            step_tokens: limits.step_tokens.max(1),
            pages: limits.pages.max(1),
            page_tokens: limits.page_tokens.max(1),
        };
        if let Some(recording) = &recording {
            recording.begin(limits);
        }
        Scheduler { limits, waiting: VecDeque::new(), running: Vec::new(), pages_free: limits.pages, recording }
    }

    /// Takes note of what happened. False: the id is unknown (it has ended), or, for `Submitted`, already here, or it could
    /// never run because it needs more pages than there are; nothing changed then, and the caller answers for it.
    pub fn feed(&mut self, event: Event) -> bool {
        if let Some(recording) = &self.recording {
            recording.push(Record::Event(event.clone()));
        }
        match event {
            Event::Submitted { id, prompt_tokens, tokens_max, alone } => {
                let pages = tokens_max.max(prompt_tokens).max(1).div_ceil(self.limits.page_tokens);
                if self.knows(id) || pages > self.limits.pages {
                    return false;
                }
                self.waiting.push_back(Waiting { id, prompt_tokens: prompt_tokens.max(1), pages, alone });
                true
            }
            Event::Cancelled { id } | Event::Ended { id } => {
                if let Some(at) = self.running.iter().position(|running| running.id == id) {
                    self.pages_free += self.running.remove(at).pages;
                    true
                } else if let Some(at) = self.waiting.iter().position(|waiting| waiting.id == id) {
                    self.waiting.remove(at);
                    true
                } else {
                    false
                }
            }
        }
    }

    /// The next step. The caller carries it out, or ends the sequences in it.
    pub fn plan(&mut self) -> Plan {
        let joined = self.join();
        let decoding = self.running.iter().filter(|running| running.prompt_left == 0).count();
        let mut budget = self.limits.step_tokens.saturating_sub(u32::try_from(decoding).unwrap_or(u32::MAX)).max(1);
        let mut work = Vec::with_capacity(self.running.len());
        for running in &mut self.running {
            if running.prompt_left == 0 {
                work.push(Work { id: running.id, tokens: 1, samples: true });
            } else if budget > 0 {
                let tokens = running.prompt_left.min(budget);
                budget -= tokens;
                running.prompt_left -= tokens;
                work.push(Work { id: running.id, tokens, samples: running.prompt_left == 0 });
            }
        }
        let plan = Plan { joined, work };
        if let Some(recording) = &self.recording {
            recording.push(Record::Plan(plan.clone()));
        }
        plan
    }

    /// Sequences in the batch.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Whether a plan would be empty.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    fn knows(&self, id: SequenceId) -> bool {
        self.running.iter().any(|running| running.id == id) || self.waiting.iter().any(|waiting| waiting.id == id)
    }

    fn join(&mut self) -> Vec<SequenceId> {
        let mut joined = Vec::new();
        while let Some(next) = self.waiting.front() {
            let crowded = self.running.len() >= self.limits.batch_max as usize
                || self.running.iter().any(|running| running.alone)
                || (next.alone && !self.running.is_empty());
            // The first in line waits for its pages rather than being overtaken by smaller ones: nobody starves.
            if crowded || next.pages > self.pages_free {
                break;
            }
            let Waiting { id, prompt_tokens, pages, alone } = self.waiting.pop_front().expect("the front was just looked at");
            self.pages_free -= pages;
            self.running.push(Running { id, prompt_left: prompt_tokens, pages, alone });
            joined.push(id);
        }
        joined
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { batch_max: 4, step_tokens: 16, pages: 16, page_tokens: 4 };

    fn submitted(id: u64, prompt_tokens: u32) -> Event {
        Event::Submitted { id: SequenceId(id), prompt_tokens, tokens_max: prompt_tokens + 1, alone: false }
    }

    fn alone(id: u64) -> Event {
        Event::Submitted { id: SequenceId(id), prompt_tokens: 1, tokens_max: 2, alone: true }
    }

    fn ended(id: u64) -> Event {
        Event::Ended { id: SequenceId(id) }
    }

    fn decode(id: u64) -> Work {
        Work { id: SequenceId(id), tokens: 1, samples: true }
    }

    fn chunk(id: u64, tokens: u32) -> Work {
        Work { id: SequenceId(id), tokens, samples: false }
    }

    fn last_chunk(id: u64, tokens: u32) -> Work {
        Work { id: SequenceId(id), tokens, samples: true }
    }

    #[test]
    fn a_newcomer_joins_at_the_next_step() {
        let mut scheduler = Scheduler::new(LIMITS, None);
        scheduler.feed(submitted(1, 3));
        assert_eq!(scheduler.plan(), Plan { joined: vec![SequenceId(1)], work: vec![last_chunk(1, 3)] });
        scheduler.feed(submitted(2, 5));
        assert_eq!(scheduler.plan(), Plan { joined: vec![SequenceId(2)], work: vec![decode(1), last_chunk(2, 5)] });
        assert_eq!(scheduler.plan(), Plan { joined: vec![], work: vec![decode(1), decode(2)] });
    }

    #[test]
    fn a_finished_one_leaves_at_once_and_the_next_takes_its_slot() {
        let mut scheduler = Scheduler::new(Limits { batch_max: 1, ..LIMITS }, None);
        scheduler.feed(submitted(1, 1));
        scheduler.feed(submitted(2, 1));
        assert_eq!(scheduler.plan().work, vec![last_chunk(1, 1)]);
        assert_eq!(scheduler.plan().work, vec![decode(1)]);
        scheduler.feed(ended(1));
        assert_eq!(scheduler.plan().work, vec![last_chunk(2, 1)]);
    }

    #[test]
    fn a_long_prompt_is_chunked_and_stalls_nobody() {
        let mut scheduler = Scheduler::new(LIMITS, None);
        scheduler.feed(submitted(1, 1));
        scheduler.plan();
        scheduler.feed(submitted(2, 40));
        assert_eq!(scheduler.plan().work, vec![decode(1), chunk(2, 15)]);
        assert_eq!(scheduler.plan().work, vec![decode(1), chunk(2, 15)]);
        assert_eq!(scheduler.plan().work, vec![decode(1), last_chunk(2, 10)]);
        assert_eq!(scheduler.plan().work, vec![decode(1), decode(2)]);
    }

    #[test]
    fn one_that_must_be_alone_waits_for_an_empty_batch_and_is_not_overtaken() {
        let mut scheduler = Scheduler::new(LIMITS, None);
        scheduler.feed(submitted(1, 1));
        scheduler.plan();
        scheduler.feed(alone(2));
        scheduler.feed(submitted(3, 1));
        assert_eq!(scheduler.plan().work, vec![decode(1)]);
        scheduler.feed(ended(1));
        assert_eq!(scheduler.plan().work, vec![last_chunk(2, 1)]);
        assert_eq!(scheduler.plan().work, vec![decode(2)]);
        scheduler.feed(ended(2));
        assert_eq!(scheduler.plan().work, vec![last_chunk(3, 1)]);
    }

    #[test]
    fn nobody_joins_without_the_pages_for_its_whole_answer() {
        let mut scheduler = Scheduler::new(Limits { pages: 3, ..LIMITS }, None);
        let big = |id| Event::Submitted { id: SequenceId(id), prompt_tokens: 1, tokens_max: 8, alone: false };
        assert!(scheduler.feed(big(1)));
        assert!(scheduler.feed(big(2)));
        assert_eq!(scheduler.plan().joined, vec![SequenceId(1)]);
        assert_eq!(scheduler.plan().joined, vec![]);
        scheduler.feed(ended(1));
        assert_eq!(scheduler.plan().joined, vec![SequenceId(2)]);
        let hopeless = Event::Submitted { id: SequenceId(3), prompt_tokens: 1, tokens_max: 13, alone: false };
        assert!(!scheduler.feed(hopeless), "four pages never fit into three");
    }

    #[test]
    fn a_cancelled_one_is_gone_wherever_it_was() {
        let mut scheduler = Scheduler::new(Limits { batch_max: 1, ..LIMITS }, None);
        scheduler.feed(submitted(1, 1));
        scheduler.feed(submitted(2, 1));
        scheduler.plan();
        assert!(scheduler.feed(Event::Cancelled { id: SequenceId(2) }));
        assert!(scheduler.feed(Event::Cancelled { id: SequenceId(1) }));
        assert!(!scheduler.feed(Event::Cancelled { id: SequenceId(1) }));
        assert!(scheduler.is_idle());
        assert_eq!(scheduler.plan(), Plan::default());
    }

    #[derive(Clone, Debug)]
    enum Act {
        Submit { prompt: u32, answer: u32, alone: bool },
        Cancel(usize),
        Step,
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            3 => (0u32..50, 1u32..12, proptest::bool::weighted(0.1))
                .prop_map(|(prompt, answer, alone)| Act::Submit { prompt, answer, alone }),
            1 => any::<prop::sample::Index>().prop_map(|index| Act::Cancel(index.index(64))),
            5 => Just(Act::Step),
        ];
        proptest::collection::vec(act, 0..120)
    }

    fn limits() -> impl Strategy<Value = Limits> {
        (1u32..6, 1u32..24, 16u32..40, 1u32..9).prop_map(|(batch_max, step_tokens, pages, page_tokens)| Limits {
            batch_max,
            step_tokens,
            pages,
            page_tokens,
        })
    }

    /// What a runner would know of a sequence.
    struct Live {
        prompt: u32,
        computed: u32,
        answer_left: u32,
        tokens_max: u32,
        alone: bool,
        joined: bool,
    }

    /// Carries out one plan like a runner, and checks every promise about it.
    fn step(scheduler: &mut Scheduler, live: &mut BTreeMap<SequenceId, Live>, limits: Limits) -> Plan {
        let plan = scheduler.plan();
        let waiting_first = live.iter().filter(|(_, live)| !live.joined).map(|(id, _)| *id).take(plan.joined.len());
        assert_eq!(plan.joined, waiting_first.collect::<Vec<_>>(), "first come, first served");
        for id in &plan.joined {
            live.get_mut(id).expect("only live sequences join").joined = true;
        }
        let batch: Vec<_> = live.iter().filter(|(_, live)| live.joined).collect();
        assert!(batch.len() <= limits.batch_max as usize);
        assert!(batch.len() == 1 || batch.iter().all(|(_, live)| !live.alone), "alone means alone");
        let pages: u32 = batch.iter().map(|(_, live)| live.tokens_max.div_ceil(limits.page_tokens)).sum();
        assert!(pages <= limits.pages, "KV within its budget");
        let must_decode: BTreeSet<_> =
            batch.iter().filter(|(_, live)| live.computed >= live.prompt).map(|(id, _)| **id).collect();
        assert!(plan.work.len() <= batch.len());
        if batch.is_empty() {
            assert!(live.is_empty(), "somebody waits and nobody runs");
        } else {
            assert!(!plan.work.is_empty(), "every step is progress");
        }
        let mut prompt_tokens = 0;
        let mut seen = BTreeSet::new();
        for work in &plan.work {
            assert!(seen.insert(work.id), "once a step");
            let sequence = live.get_mut(&work.id).expect("only live sequences run");
            assert!(sequence.joined && work.tokens > 0);
            if sequence.computed >= sequence.prompt {
                assert_eq!((work.tokens, work.samples), (1, true));
            } else {
                prompt_tokens += work.tokens;
                assert_eq!(work.samples, sequence.computed + work.tokens == sequence.prompt);
            }
            sequence.computed += work.tokens;
            assert!(sequence.computed <= sequence.tokens_max);
        }
        assert!(must_decode.is_subset(&seen), "whoever can decode does");
        let decodes = u32::try_from(must_decode.len()).unwrap();
        assert!(prompt_tokens <= limits.step_tokens.saturating_sub(decodes).max(1), "the budget holds");
        for work in plan.work.iter().filter(|work| work.samples) {
            let sequence = live.get_mut(&work.id).unwrap();
            sequence.answer_left -= 1;
            if sequence.answer_left == 0 {
                assert!(scheduler.feed(Event::Ended { id: work.id }));
                live.remove(&work.id);
            }
        }
        plan
    }

    proptest! {
        #[test]
        fn every_sequence_ends_exactly_once_within_all_bounds(acts in acts(), limits in limits()) {
            let recording = Recording::default();
            let mut scheduler = Scheduler::new(limits, Some(recording.clone()));
            let mut live: BTreeMap<SequenceId, Live> = BTreeMap::new();
            let mut next = 0;
            for act in acts {
                match act {
                    Act::Submit { prompt, answer, alone } => {
                        next += 1;
                        let id = SequenceId(next);
                        let prompt = prompt.max(1);
                        let tokens_max = prompt + answer;
                        let taken = scheduler.feed(Event::Submitted { id, prompt_tokens: prompt, tokens_max, alone });
                        prop_assert_eq!(taken, tokens_max.div_ceil(limits.page_tokens) <= limits.pages);
                        if taken {
                            live.insert(id, Live { prompt, computed: 0, answer_left: answer, tokens_max, alone, joined: false });
                        }
                    }
                    Act::Cancel(index) => {
                        let id = live.keys().nth(index).copied().unwrap_or(SequenceId(u64::MAX));
                        prop_assert_eq!(scheduler.feed(Event::Cancelled { id }), live.remove(&id).is_some());
                    }
                    Act::Step => {
                        step(&mut scheduler, &mut live, limits);
                    }
                }
            }
            // No starvation: what is there now is through after a bounded number of steps, one token a step at the worst.
            let bound: u32 = live.values().map(|live| live.tokens_max).sum();
            for _ in 0..bound {
                step(&mut scheduler, &mut live, limits);
            }
            prop_assert!(live.is_empty());
            prop_assert!(scheduler.is_idle());
            prop_assert_eq!(scheduler.pages_free, limits.pages);
            prop_assert_eq!(replay(recording.limits().unwrap(), &recording.records()), Ok(()));
        }
    }

    #[test]
    fn a_replay_notices_another_plan() {
        let recording = Recording::default();
        let mut scheduler = Scheduler::new(LIMITS, Some(recording.clone()));
        scheduler.feed(submitted(1, 3));
        scheduler.plan();
        let mut records = recording.records();
        if let Record::Plan(plan) = &mut records[1] {
            plan.work.clear();
        }
        assert_eq!(replay(LIMITS, &records).unwrap_err().line, 1);
    }
}
