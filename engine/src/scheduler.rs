//! Which sequences run in the next step: continuous batching as plain code.
//!
//! Owns the order of waiting and running sequences, the batch bound, the token budget of a step and the KV pages that
//! are spoken for. Leaves tensors, texts, threads and time to the runner, which feeds [`Event`]s and carries out [`Plan`]s.
//! The same events give the same plans: [`replay`] checks a recorded live run.
//!
//! The rules, in order: who came first joins first, as soon as a slot and all the KV pages that it can ever need are free;
//! every running sequence whose prompt is computed decodes one token in every step; what is left of the step's budget goes to
//! prompts, first come first served.

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
}

#[derive(Debug)]
struct Running {
    id: SequenceId,
    /// Prompt tokens that no plan has taken yet.
    prompt_left: u32,
    pages: u32,
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
            Event::Submitted { id, prompt_tokens, tokens_max } => {
                let pages = tokens_max.max(prompt_tokens).max(1).div_ceil(self.limits.page_tokens);
                if self.knows(id) || pages > self.limits.pages {
                    return false;
                }
                self.waiting.push_back(Waiting { id, prompt_tokens: prompt_tokens.max(1), pages });
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
            let crowded = self.running.len() >= self.limits.batch_max as usize;
            // The first in line waits for its pages rather than being overtaken by smaller ones: nobody starves.
            if crowded || next.pages > self.pages_free {
                break;
            }
            let Waiting { id, prompt_tokens, pages } = self.waiting.pop_front().expect("the front was just looked at");
            self.pages_free -= pages;
            self.running.push(Running { id, prompt_left: prompt_tokens, pages });
            joined.push(id);
        }
        joined
    }
}

#[cfg(test)]
mod tests;
